"""Calls of this node to devices of other nodes that are answered with more than a result: the side of the caller."""

from __future__ import annotations

from functools import partial
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, cast

import msgspec

from wse.core.cluster.envelope import Cancel, End, Flow, FromCallee, Item, More, Progress, Put, Waiting, Want
from wse.core.cluster.flows import NodeInflow, NodeOutflow, flow_of, lost
from wse.core.ports.scheduling import sleep
from wse.core.session.asking import Asked, Asking
from wse.core.session.handlers import discard
from wse.core.session.signals import HANDLER_ERRORS, settle
from wse.errors import ErrorCode, WseError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from wse.core.cluster.bus import Bus
    from wse.core.cluster.envelope import Running
    from wse.core.cluster.node_rpc import NodeRpc
    from wse.core.hub.calls import Callee
    from wse.core.session.asking import Items
    from wse.core.session.endpoint import Endpoint
    from wse.core.session.flow import Outflow
    from wse.types import MessageType

PAUSE = 0.05
"""Seconds until a node is asked again to which a session is on its way."""

Place = int | str | None
"""Where a device is: at the node that was asked, with the largest window of a stream, 0 for none; at another node; on
its way to the node that was asked (an empty string); or nowhere.
"""


class RemoteDevice:
    """A device of another node; a `wse.core.hub.calls.Callee`."""

    __slots__ = ("_conn_id", "_node", "_problem", "_rpc", "_window")

    def __init__(self, rpc: NodeRpc, node: str, conn_id: str) -> None:
        self._rpc = rpc
        self._node = node
        self._conn_id = conn_id
        self._window = 0
        self._problem = ""

    def start_call(self, name: MessageType, payload: Any, timeout: float | None) -> tuple[int, asyncio.Future[Any]]:
        return self._rpc.call(self._node, self._conn_id, name, payload, timeout)

    def forget_call(self, stamp: int) -> None:
        self._rpc.cancel(stamp)

    def ask(
        self,
        name: MessageType,
        payload: Any,
        timeout: float | None,
        *,
        window: int | None = None,
        on_progress: Callable[[Any], Any] | None = None,
        upload: Items | None = None,
    ) -> Asked:
        """See `wse.core.session.asking.Askable.ask`; the device has been found (`RemoteAsking.locate`)."""
        if not self._window:
            raise WseError(ErrorCode.UNSUPPORTED, {"extension": "calls", "rp": name}, self._problem or None)
        asking = self._rpc.asking
        inflow = None if window is None else NodeInflow(asking.scheduler, min(window, self._window))
        start_call = partial(self._rpc.call, self._node, self._conn_id)
        return asking.begin(start_call, name, payload, timeout, inflow, on_progress, upload)


class RemoteAsking(Asking):
    """The calls of this node to devices of other nodes that are answered with more than a result.

    Args:
        rpc: Sends them.
        bus: The connection to the other nodes.
        endpoint: Receives reports, and has the limits of this node.
        patience: Seconds that another node has to tell where its devices are.
    """

    __slots__ = ("_bus", "_endpoint", "_patience", "_rpc", "_running")

    def __init__(self, rpc: NodeRpc, bus: Bus, endpoint: Endpoint, patience: float) -> None:
        super().__init__(endpoint.scheduler)
        self._rpc = rpc
        self._bus = bus
        self._endpoint = endpoint
        self._patience = patience
        self._running = 0  # async listeners of progress

    # Finding a device.

    async def locate(self, devices: Sequence[Callee]) -> list[Callee]:
        """Those of the devices that are there, with what the nodes of the others say about them.

        Raises:
            WseError: `BROKER_UNAVAILABLE`.
        """
        missing = {device._conn_id: device for device in devices if isinstance(device, RemoteDevice)}
        gone: set[Callee] = set()
        until = self.scheduler.time() + self._patience
        while missing:
            here = {device._node for device in missing.values()}
            left = max(until - self.scheduler.time(), PAUSE)
            answers = await self._rpc.query_nodes(here, "here", _encode(list(missing)), left)
            for answer in answers:
                self._note(answer, missing, gone)
            if missing and (not answers or self.scheduler.time() >= until):
                break
            if missing:
                await sleep(self.scheduler, PAUSE)
        gone.update(missing.values())
        return [device for device in devices if device not in gone]

    def _note(self, answer: Any, missing: dict[str, RemoteDevice], gone: set[Callee]) -> None:
        """A node has answered where its devices are."""
        if not isinstance(answer, dict):  # a node of a version that does not know the question answers with its name
            for conn_id in [conn_id for conn_id, device in missing.items() if device._node == answer]:
                missing.pop(conn_id)._problem = "the device is connected to a node of an older version"
            return
        for conn_id, place in answer["places"].items():
            device = missing.get(conn_id)
            if device is None or device._node != answer["node"]:
                continue
            if isinstance(place, str):
                device._node = place or device._node
                continue
            del missing[conn_id]
            if place is None:
                gone.add(device)
            else:
                device._window = min(place, self._endpoint.limits.stream_window)

    # The way to the callee.

    def forget(self, stamp: int) -> None:
        self._rpc.cancel(stamp)

    def grant(self, stamp: int, count: int) -> None:
        asked = self.calls.get(stamp)
        if asked is not None:
            inflow = cast("NodeInflow", asked.inflow)
            inflow.granted += count
            self._tell(stamp, More(self._bus.node, stamp, inflow.granted))

    def outflow(self, stamp: int, name: MessageType) -> Outflow:
        return NodeOutflow(self.scheduler, partial(self._put, stamp))

    def _put(self, stamp: int, number: int, item: Any) -> None:
        self._rpc.send(self._rpc.node_of(stamp), Put(self._bus.node, stamp, number, item))

    def complete(self, asked: Asked) -> None:
        outflow = cast("NodeOutflow", asked.outflow)
        outflow.ended = True
        self._tell(asked.stamp, End(self._bus.node, asked.stamp, outflow.sent))

    def _tell(self, stamp: int, message: More | End) -> None:
        """Send a message whose loss is repaired by the next `Waiting`."""
        self._bus.send_to(self._rpc.node_of(stamp), message)

    def _settled(self, asked: Asked, future: asyncio.Future[Any]) -> None:
        inflow = asked.inflow
        is_answered = not future.cancelled() and future.exception() is None
        if is_answered and isinstance(inflow, NodeInflow) and future.result() != inflow.got:
            inflow.end(lost(asked.name))  # the answer to a stream is the number of its items
        super()._settled(asked, future)
        self._rpc.cancel(asked.stamp)  # unless the other node has answered

    # Messages of the device's node.

    def received(self, message: FromCallee, size: int) -> None:
        """Handle a message of that many bytes; one with an unknown stamp belongs to a call that has been given up."""
        asked = self.calls.get(message.stamp)
        if asked is None or asked.future.done():
            return
        match message:
            case Item():
                inflow = cast("NodeInflow", asked.inflow)
                if not inflow.is_over and not inflow.take_item(message.number, message.item, size):
                    self._lose(asked)
            case Want():
                cast("NodeOutflow", asked.outflow).grant_total(message.total)
            case Progress():
                self._progress(asked, message.value)

    def _lose(self, asked: Asked) -> None:
        """An item has not arrived."""
        self.forget(asked.stamp)
        asked.future.set_exception(lost(asked.name))

    def _progress(self, asked: Asked, value: Any) -> None:
        try:
            result = cast("Callable[[Any], Any]", asked.on_progress)(value)
        except HANDLER_ERRORS as exc:
            self._progress_failed(exc, asked.name)
            return
        if result is None or not isawaitable(result):
            return
        if self._running < self._endpoint.max_handlers:
            self._running += 1
            self.scheduler.spawn(self._settle(result, asked.name))
        else:  # a device floods
            discard(result)
            self._endpoint.counters.limits["handlers"] += 1
            details = {"limit": "handlers", "allowed": self._endpoint.limits.handlers, "rp": asked.name}
            self.forget(asked.stamp)
            asked.future.set_exception(WseError(ErrorCode.LIMIT_EXCEEDED, details))

    async def _settle(self, awaitable: Any, name: MessageType) -> None:
        try:
            await settle(awaitable, self._progress_failed, name)
        finally:
            self._running -= 1

    def _progress_failed(self, exc: BaseException, name: MessageType) -> None:
        error = WseError(ErrorCode.MSG_PROCESSING_ERROR, {"rp": name}, "on_progress raised")
        self._endpoint.report(error, None, exc)

    # What nodes tell each other again and again, so that nothing waits for a message that was lost.

    def beat(self) -> None:
        """Tell the nodes of the devices which calls wait, and how far they are."""
        by_node: dict[str, dict[int, Flow]] = {}
        for stamp, asked in self.calls.items():
            if not asked.future.done():
                inflow = cast("NodeInflow | None", asked.inflow)
                outflow = cast("NodeOutflow | None", asked.outflow)
                flow = flow_of(inflow, 0) if outflow is None else flow_of(inflow, outflow.sent, ended=outflow.ended)
                by_node.setdefault(self._rpc.node_of(stamp), {})[stamp] = flow
        for node, calls in by_node.items():
            self._bus.send_to(node, Waiting(self._bus.node, calls))

    def running(self, message: Running) -> None:
        """The node of some devices tells how far the calls are that it answers."""
        for stamp, flow in message.calls.items():
            asked = self.calls.get(stamp)
            if asked is None or asked.future.done():
                if flow is not None:
                    self._bus.send_to(message.origin, Cancel(self._bus.node, stamp))  # again: the first was lost
                continue
            inflow, outflow = cast("NodeInflow | None", asked.inflow), cast("NodeOutflow | None", asked.outflow)
            if flow is None or (inflow is not None and flow.sent > inflow.got):
                self._lose(asked)
            elif outflow is not None:
                outflow.grant_total(flow.granted)


def _encode(conn_ids: list[str]) -> str:
    return msgspec.json.encode(conn_ids).decode()
