"""The certificates of clients (mutual TLS); see `wse.core.ports.transport.Request`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncio import BaseTransport
    from collections.abc import Mapping

    from wse.core.ports.transport import Certificate

_ATTRIBUTES = {
    "CN": "commonName",
    "L": "localityName",
    "ST": "stateOrProvinceName",
    "O": "organizationName",
    "OU": "organizationalUnitName",
    "C": "countryName",
    "STREET": "streetAddress",
    "DC": "domainComponent",
    "UID": "userId",
}
"""Types of attributes (RFC 4514, 3), and the names that `ssl` gives to them."""

_ESCAPED = re.compile(rb"\\([0-9A-Fa-f]{2}|.)", re.DOTALL)


def transport_certificate(transport: BaseTransport | None) -> Certificate | None:
    """The certificate that the TLS of a transport has checked; `None` if there is none."""
    return (transport.get_extra_info("peercert") if transport is not None else None) or None


def extension_certificate(tls: Mapping[str, Any]) -> Certificate | None:
    """The certificate that an ASGI server has checked.

    Args:
        tls: The extension `tls`, https://asgi.readthedocs.io/en/latest/specs/tls.html.
    """
    chain, name = tls.get("client_cert_chain"), tls.get("client_cert_name")
    if not chain or not name or tls.get("client_cert_error"):
        return None
    return {"subject": _subject(name), "chain": list(chain)}


def _subject(name: str) -> tuple[tuple[tuple[str, str], ...], ...]:
    """A distinguished name (RFC 4514) in the form of `ssl.SSLSocket.getpeercert`."""
    return tuple(tuple(map(_attribute, _split(part, "+"))) for part in reversed(_split(name, ",")))


def _split(text: str, separator: str) -> list[str]:
    """The parts between separators that are not escaped."""
    return re.findall(rf"(?:[^\\{separator}]|\\.)+", text)


def _attribute(text: str) -> tuple[str, str]:
    kind, _, value = text.strip().partition("=")
    return _ATTRIBUTES.get(kind.upper(), kind), _ESCAPED.sub(_unescaped, value.encode()).decode("utf-8", "replace")


def _unescaped(found: re.Match[bytes]) -> bytes:
    return bytes.fromhex(found[1].decode()) if len(found[1]) == 2 else found[1]
