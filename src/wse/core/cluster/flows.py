"""The two ends of a flow of items between nodes: items are numbered, and credit is told in total.

A broker may lose messages when a connection breaks. A lost item is then noticed by the next number, and lost credit is
repaired by the next total. Both are told again from time to time (`Waiting`, `Running`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wse.core.cluster.envelope import Flow
from wse.core.ports.scheduling import next_turn
from wse.core.session.flow import Inflow, Outflow
from wse.errors import ErrorCode, WseError

if TYPE_CHECKING:
    from collections.abc import Callable

    from wse.core.ports.scheduling import Scheduler
    from wse.types import MessageType

ANY = 1 << 62
"""The largest credit: nodes of one cluster trust each other."""


class NodeInflow(Inflow):
    """The receiving end.

    Args:
        scheduler: Futures.
        window: Items that may be on their way.

    Attributes:
        granted: Items that the sender may send, in all.
        got: Items that have come.
    """

    __slots__ = ("got", "granted")

    def __init__(self, scheduler: Scheduler, window: int) -> None:
        super().__init__(scheduler, window)
        self.granted = window
        self.got = 0

    def take_item(self, number: int, item: Any, size: int) -> bool:
        """An item has come; returns whether it is the next one, and the sender had credit for it."""
        if number != self.got + 1:
            return False
        self.got = number
        return self.put(item, size)


class NodeOutflow(Outflow):
    """The sending end.

    Args:
        scheduler: Futures.
        send: Sends an item with its number; raises for one that cannot cross.
        total: Items that may be sent, in all.

    Attributes:
        sent: Items that have been sent.
        ended: Whether these are all.
    """

    __slots__ = ("_send", "_total", "ended", "sent")

    def __init__(self, scheduler: Scheduler, send: Callable[[int, Any], None], total: int = 0) -> None:
        super().__init__(scheduler, ANY, total)
        self._send = send
        self._total = total
        self.sent = 0
        self.ended = False

    def grant_total(self, total: int) -> None:
        """The receiver takes so many items, in all."""
        if total > self._total:
            more, self._total = total - self._total, total
            self.grant(more)

    @property
    def is_writable(self) -> bool:
        return True

    async def drain(self) -> None:
        await next_turn(self._scheduler)

    def put(self, item: Any) -> None:
        self._send(self.sent + 1, item)
        self.sent += 1


def flow_of(inflow: NodeInflow | None, sent: int, *, ended: bool = False) -> Flow:
    """How far this side is."""
    return Flow(0 if inflow is None else inflow.granted, sent, ended)


def lost(name: MessageType, problem: str = "messages between nodes have been lost") -> WseError:
    """The error of a call of which a part has not arrived."""
    return WseError(ErrorCode.RP_DISCONNECT, {"rp": name, "disconnected": [1006, ""]}, problem)
