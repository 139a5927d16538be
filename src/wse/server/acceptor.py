"""The side of a server that transports see."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from wse.core.admission import Admission
    from wse.core.heartbeat import Heartbeat
    from wse.core.hub.connection import ServerSession
    from wse.core.hub.hub import Hub
    from wse.core.limits import Limits
    from wse.core.ports.protocol import Protocol
    from wse.core.ports.transport import Link, Request


class ServerAcceptor:
    """A server as transports see it; a `wse.core.ports.transport.Acceptor`."""

    __slots__ = ("_hub", "_protocols", "admission", "heartbeat", "limits")

    def __init__(self, hub: Hub, admission: Admission, heartbeat: Heartbeat) -> None:
        self._hub = hub
        self._protocols = {protocol.name: protocol for protocol in hub.endpoint.protocols}
        self.admission = admission
        self.heartbeat = heartbeat
        self.limits: Limits = hub.endpoint.limits

    @property
    def ready(self) -> bool:
        """See `WseServer.ready`."""
        return not self.admission.unready and self._hub.network.healthy

    def select(self, offered: Iterable[str]) -> Protocol | None:
        """The first protocol that the client offers and the server has (WIRE.md section 1)."""
        return next((self._protocols[name] for name in offered if name in self._protocols), None)

    def open(self, link: Link, request: Request, protocol: Protocol | None) -> ServerSession:
        """Take over a WebSocket that has just been opened."""
        return self._hub.open(link, request, protocol)
