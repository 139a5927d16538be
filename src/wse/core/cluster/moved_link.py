"""The way to a client whose session has moved to another node, for what still runs here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wse.core.cluster.envelope import ToDevice

if TYPE_CHECKING:
    from wse.core.cluster.bus import Bus
    from wse.core.packed import Packed
    from wse.core.ports.transport import Receiver


class MovedLink:
    """The `Link` of a session that goes on at another node: the answers of its handlers that still run here go there.

    Args:
        bus: The connection to the other nodes.
        node: The node that the session has moved to.
        conn_id: The connection.
    """

    pings = False
    buffered = 0
    remote_addr = ""

    def __init__(self, bus: Bus, node: str, conn_id: str) -> None:
        self._bus = bus
        self._node = node
        self._conn_id = conn_id

    def write(self, data: str | bytes) -> None:
        self._send(data, utf8=False)

    def write_utf8(self, data: bytes) -> None:
        self._send(data, utf8=True)

    def write_shared(self, packed: Packed) -> None:
        self._send(packed.data, utf8=packed.utf8)

    def _send(self, data: str | bytes, *, utf8: bool) -> None:
        self._bus.send_to(self._node, ToDevice(self._bus.node, self._conn_id, data, utf8))

    def close(self, code: int, reason: str) -> None: ...

    def abort(self) -> None: ...

    def attach(self, session: Receiver) -> None: ...
