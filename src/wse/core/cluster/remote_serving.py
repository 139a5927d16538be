"""Calls of other nodes to devices of this one that are answered with more than a result: the side of the device.

Items of a device go on to the caller's node at once, and the caller's credit to the device, so nothing waits here.
Items of an upload wait for the device's socket, as many as the device takes.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from wse.core.cluster.envelope import End, Flow, Item, More, Progress, Put, Running, Want
from wse.core.cluster.flows import NodeInflow, flow_of, lost
from wse.core.session.flow import Sink
from wse.core.session.serving import WINDOW
from wse.errors import ErrorCode, WseError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from wse.core.cluster.bus import Bus
    from wse.core.cluster.envelope import CallWith, FromCaller, Waiting
    from wse.core.cluster.node_rpc import NodeRpc
    from wse.core.hub.connection import ServerSession


class Relay(Sink):
    """The items of a device, on their way to the caller's node.

    Args:
        send: Sends an item with its number; raises for one that cannot cross.
        fail: Ends the call with an error.
        window: Items that may be on their way.

    Attributes:
        sent: Items that have been sent.
    """

    __slots__ = ("_fail", "_send", "_total", "sent")

    def __init__(self, send: Callable[[int, Any], None], fail: Callable[[WseError], None], window: int) -> None:
        super().__init__(window)
        self._send = send
        self._fail = fail
        self._total = window
        self.sent = 0

    def put(self, item: Any, size: int) -> bool:
        if self.sent >= self._total:
            return False
        try:
            self._send(self.sent + 1, item)
        except Exception as exc:
            problem = f"an item cannot leave this node: {exc}"
            self.end(WseError(ErrorCode.RP_EXECUTION_FAILED, {}, problem))
        else:
            self.sent += 1
        return True

    def end(self, error: BaseException | None = None) -> None:
        if not self.is_over:
            self.is_over = True
            if isinstance(error, WseError):
                self._fail(error)

    def grant_total(self, total: int) -> None:
        """The caller takes so many items, in all."""
        if total > self._total:
            more, self._total = total - self._total, total
            self.grant(more)


class Served:
    """A call of another node.

    Attributes:
        name: The procedure.
        relay: Its items, if it is a stream.
        inflow: The items of the caller, if it takes an upload.
    """

    __slots__ = ("inflow", "name", "relay")

    def __init__(self, name: Any, relay: Relay | None, inflow: NodeInflow | None) -> None:
        self.name = name
        self.relay = relay
        self.inflow = inflow

    @property
    def flow(self) -> Flow:
        """How far it is."""
        return flow_of(self.inflow, 0 if self.relay is None else self.relay.sent)


class RemoteServing:
    """The calls of other nodes to devices of this one that are answered with more than a result.

    Args:
        rpc: Sends the answers.
        bus: The connection to the other nodes.

    Attributes:
        calls: The calls, by origin and stamp.
    """

    def __init__(self, rpc: NodeRpc, bus: Bus) -> None:
        self._rpc = rpc
        self._bus = bus
        self.calls: dict[tuple[str, int], Served] = {}

    def start(self, session: ServerSession, call: CallWith) -> tuple[int, asyncio.Future[Any]]:
        """Call the device.

        Raises:
            WseError: As `Session.start_call`.
        """
        origin, stamp, options = call.origin, call.stamp, call.options
        asking = session.asking
        relay = inflow = on_progress = None
        if "n" in options:
            send = partial(self._send_item, origin, stamp)
            relay = Relay(send, partial(self._rpc.fail, origin, stamp), session.window(options["n"]))
        if "up" in options:
            inflow = NodeInflow(asking.scheduler, session.window(WINDOW))
            inflow.grant = partial(self._want, origin, stamp, inflow)
        if "p" in options:
            on_progress = partial(self._progress, origin, stamp)
        asked = asking.begin(session.start_call, call.name, call.payload, call.timeout, relay, on_progress, inflow)
        self.calls[origin, stamp] = Served(call.name, relay, inflow)
        if inflow is not None:
            self._bus.send_to(origin, Want(self._bus.node, stamp, inflow.granted))
        return asked.stamp, asked.future

    def end(self, origin: str, stamp: int) -> int | None:
        """Forget a call that has ended; returns how many items it has had, if it was a stream."""
        served = self.calls.pop((origin, stamp), None)
        if served is None:
            return None
        if served.inflow is not None:
            served.inflow.drop()
        return None if served.relay is None else served.relay.sent

    def _send_item(self, origin: str, stamp: int, number: int, item: Any) -> None:
        self._rpc.send(origin, Item(self._bus.node, stamp, number, item))

    def _want(self, origin: str, stamp: int, inflow: NodeInflow, count: int) -> None:
        inflow.granted += count
        self._bus.send_to(origin, Want(self._bus.node, stamp, inflow.granted))

    def _progress(self, origin: str, stamp: int, value: Any) -> None:
        self._bus.send_to(origin, Progress(self._bus.node, stamp, value))

    # Messages of the caller's node.

    def received(self, message: FromCaller, size: int) -> None:
        """Handle a message of that many bytes; one about an unknown call belongs to one that has ended."""
        served = self.calls.get((message.origin, message.stamp))
        if served is None:
            return
        relay, inflow = served.relay, served.inflow
        match message:
            case More():
                if relay is not None:
                    relay.grant_total(message.total)
            case Put():
                if inflow is not None and not inflow.take_item(message.number, message.item, size):
                    self._rpc.fail(message.origin, message.stamp, lost(served.name))
            case End():
                self._sent(message.origin, message.stamp, served, message.count, ended=True)

    def _sent(self, origin: str, stamp: int, served: Served, count: int, *, ended: bool) -> None:
        """The caller has sent so many items."""
        inflow = served.inflow
        if inflow is not None and count != inflow.got:
            self._rpc.fail(origin, stamp, lost(served.name))
        elif inflow is not None and ended:
            inflow.end()

    def waiting(self, message: Waiting) -> None:
        """A node tells which of its calls wait, and how far they are."""
        origin = message.origin
        unknown: dict[int, Flow | None] = {}
        for stamp, flow in message.calls.items():
            served = self.calls.get((origin, stamp))
            if served is None:
                unknown[stamp] = None
                continue
            if served.relay is not None:
                served.relay.grant_total(flow.granted)
            self._sent(origin, stamp, served, flow.sent, ended=flow.ended)
        if unknown:  # their answers were lost, or have just left
            self._bus.send_to(origin, Running(self._bus.node, unknown))

    def beat(self) -> None:
        """Tell the nodes of the callers which calls are answered here, and how far they are."""
        by_origin: dict[str, dict[int, Flow | None]] = {}
        for (origin, stamp), served in self.calls.items():
            by_origin.setdefault(origin, {})[stamp] = served.flow
        for origin, calls in by_origin.items():
            self._bus.send_to(origin, Running(self._bus.node, calls))
