"""The options of the commands that are clients."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any

import click
import msgspec

from wse.client.blocking import BlockingClient
from wse.client.client import WseClient
from wse.core.ports.protocol import Protocol
from wse.protocols.json import WseJSON
from wse.protocols.msgpack import WseMsgpack

PROTOCOLS: Mapping[str, Callable[[], Protocol]] = {"json": WseJSON, "msgpack": WseMsgpack}

PASSWORD = "WSE_PASSWORD"  # noqa: S105 - the name of a variable
"""The environment variable with the password for `--scram`."""


@dataclass(frozen=True, slots=True)
class Connection:
    """How to connect: what the options of a command say.

    Attributes:
        url: The address of the server.
        identity: The client's identity.
        headers: Headers of the HTTP request.
        protocol: The name of the message protocol.
        timeout: Seconds for connecting, and for the answer to a call.
    """

    url: str
    identity: Any
    headers: Mapping[str, str]
    protocol: str
    timeout: float

    def blocking(self, **options: Any) -> BlockingClient:
        """A client that is not connected yet.

        Raises:
            click.UsageError: The URL or a header is not valid.
        """
        client: BlockingClient = self._made(BlockingClient, **options)
        return client

    def client(self, identity: Any) -> WseClient:
        """The same with asyncio, for another identity."""
        client: WseClient = self._made(WseClient, identity=identity)
        return client

    def _made(self, make: Callable[..., Any], **options: Any) -> Any:
        given = {
            "identity": self.identity,
            "headers": self.headers,
            "protocol": PROTOCOLS[self.protocol](),
            "timeout": self.timeout,
        }
        try:
            return make(self.url, **(given | options))
        except ValueError as exc:
            raise click.UsageError(str(exc)) from exc


_OPTIONS = (
    click.argument("url"),
    click.option("--token", envvar="WSE_TOKEN", help='Connect with the identity {"token": TOKEN}.  [env: WSE_TOKEN]'),
    click.option("--identity", help="Connect with this identity: JSON, or any other text as it is."),
    click.option("--scram", metavar="USER", help=f"Log in by SCRAM, with the password in {PASSWORD} or typed."),
    click.option("--header", "headers", multiple=True, metavar="'NAME: VALUE'", help="A header of the HTTP request."),
    click.option("--protocol", type=click.Choice(list(PROTOCOLS)), default="json", show_default=True),
    click.option(
        "--timeout",
        type=click.FloatRange(0),
        default=20.0,
        show_default=True,
        metavar="SECONDS",
        help="For connecting, and for the answer to a call; 0 for ever.",
    ),
)


def client_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the argument URL and the options of a client; the command gets a `Connection` as its first argument."""

    @wraps(command)
    def with_connection(
        url: str,
        token: str | None,
        identity: str | None,
        scram: str | None,
        headers: tuple[str, ...],
        protocol: str,
        timeout: float,
        **rest: Any,
    ) -> Any:
        found = identity_of(token, identity, scram)
        return command(Connection(url, found, headers_of(headers), protocol, timeout), **rest)

    decorated: Callable[..., Any] = with_connection
    for add in reversed(_OPTIONS):
        decorated = add(decorated)
    return decorated


def identity_of(token: str | None, identity: str | None, scram: str | None) -> Any:
    """The identity that the options give; the empty one without any.

    Raises:
        click.UsageError: There is more than one, or SCRAM is not installed.
    """
    if (identity is not None or scram is not None) and token == os.environ.get("WSE_TOKEN"):
        token = None  # what is said on the command line counts
    if sum(option is not None for option in (token, identity, scram)) > 1:
        raise click.UsageError("--token, --identity and --scram exclude each other")
    if token is not None:
        return {"token": token}
    if scram is not None:
        try:
            from wse.auth import Scram
        except ImportError as exc:
            raise click.UsageError(str(exc)) from exc
        return Scram(scram, password())
    if identity is None:
        return ""
    try:
        return msgspec.json.decode(identity)
    except (msgspec.DecodeError, UnicodeEncodeError):
        return identity


def password() -> str:
    """The password for SCRAM: from the environment, typed, or a line of standard input."""
    found = os.environ.get(PASSWORD)
    if found is not None:
        return found
    if sys.stdin.isatty():
        return str(click.prompt("Password", hide_input=True, err=True))
    return sys.stdin.readline().rstrip("\n")


def headers_of(lines: tuple[str, ...]) -> dict[str, str]:
    """The headers, from lines `Name: value`.

    Raises:
        click.UsageError: A line has another form.
    """
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name.strip():
            raise click.UsageError(f"a header looks like 'Name: value', not {line!r}")
        headers[name.strip()] = value.strip()
    return headers
