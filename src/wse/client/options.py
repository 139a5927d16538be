"""The options of a client as a type, for functions that pass them on: `**options: Unpack[ClientOptions]`."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    import ssl as _ssl
    from collections.abc import Mapping

    from wse.backoff import Backoff
    from wse.client.retry import RetryRule
    from wse.core.heartbeat import Heartbeat
    from wse.core.limits import Limits, Overflow
    from wse.core.ports.protocol import Protocol
    from wse.core.ports.transport import Connector
    from wse.core.resume import Resume
    from wse.core.session.rpc import ExposeErrors
    from wse.transports.deflate import Compression
    from wse.types import MessageType


class ClientOptions(TypedDict, total=False):
    """The options of `WseClient`, which describes them; without the URL, the identity and the meta."""

    reconnect: bool
    retry: RetryRule | None
    timeout: float
    protocol: Protocol | None
    ssl: _ssl.SSLContext | None
    proxy: str | None
    headers: Mapping[str, str] | None
    backoff: Backoff | None
    limits: Limits | None
    compression: Compression | None
    overflow: Mapping[MessageType, Overflow | str] | None
    heartbeat: Heartbeat | None
    resume: Resume | bool
    inbox: str | None
    after: int | None
    expose_errors: ExposeErrors | str
    debug: bool
    connector: Connector | None
