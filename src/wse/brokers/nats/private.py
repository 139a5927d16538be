"""Everything that WSE uses of nats-py without its promise: names that begin with an underscore.

`pyproject.toml` caps the version of nats-py, and `tests/unit/test_nats_private.py` names each of them. A release that
lacks one therefore fails a test and not a cluster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nats.aio.client import Client
from nats.errors import Error

if TYPE_CHECKING:
    import asyncio
    from typing import Any

    from wse.brokers.nats.wire import Wire


class WiredClient(Client):
    """A client on a transport of ours.

    It insists on TLS for `tls://`: nats-py would go on in plain text if the server does not offer it.
    """

    def __init__(self, wire: Wire) -> None:
        super().__init__()
        self._transport = self.wire = wire

    def _connect_command(self) -> bytes:
        server = self._current_server
        if server is not None and server.uri.scheme == "tls" and not self._server_info.get("tls_required"):
            raise Error("nats: the server does not offer TLS")
        return super()._connect_command()

    def ping(self, pong: asyncio.Future[Any]) -> None:
        """Send a ping; the future is done when the server answers.

        It must never be cancelled: nats-py would fail at the answer. Its own `flush` has this fault.
        """
        self._pongs.append(pong)
        self.wire.write(b"PING\r\n")
