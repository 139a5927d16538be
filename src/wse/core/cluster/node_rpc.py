"""Requests between nodes: calls to devices of another node, and queries for what only that node knows."""

from __future__ import annotations

import typing
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from wse.core.cluster.envelope import NODE, OUTSIDE, Answer, Call, CallWith, Cancel, Query, encode, in_parts, plain
from wse.core.cluster.remote_asking import RemoteAsking
from wse.core.cluster.remote_serving import RemoteServing
from wse.core.session.current_call import bounded, inherited
from wse.core.session.rpc import NotAskedError, PendingCalls, error_from_wire
from wse.errors import ErrorCode, WseError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

    from wse.core.cluster.bus import Bus
    from wse.core.cluster.envelope import ClusterMessage
    from wse.core.hub.connection import ServerSession, WseConnection
    from wse.core.session.endpoint import Endpoint
    from wse.types import MessageType

MAX_ERROR_LENGTH = 1000
"""The length to which an error's message and code are cut when its details cannot be encoded."""


class Devices(typing.Protocol):
    """A hub, as requests see it.

    Attributes:
        endpoint: Settings and time.
        connections: The devices that can be called, by their ids.
    """

    endpoint: Endpoint
    connections: dict[str, WseConnection]


class NodeRpc:
    """The requests of this node that wait for their answers, and its answers to other nodes.

    Args:
        bus: The connection to the other nodes.
        hub: The devices that other nodes may call.
        query_timeout: Seconds that other nodes have to answer a query.

    Attributes:
        queries: The queries that this node answers, by name. Each is a function of a name that returns a plain value;
            a list that it returns consists of encoded names, or of pieces of bytes, and may have any length.
        asking: The calls of this node that have more than an answer.
        serving: Those of other nodes.
    """

    def __init__(self, bus: Bus, hub: Devices, query_timeout: float) -> None:
        self._bus = bus
        self._hub = hub
        self._endpoint = hub.endpoint
        self._query_timeout = query_timeout
        self.queries: dict[str, Callable[[str], Any]] = {}
        self.asking = RemoteAsking(self, bus, hub.endpoint, query_timeout)
        self.serving = RemoteServing(self, bus)
        self._pending = PendingCalls(self._endpoint.scheduler, self._endpoint.timeout)
        self._asked: dict[int, tuple[str, MessageType]] = {}  # by stamp, the node whose answer is due, and the name
        self._parts: dict[int, list[list[Any]]] = {}  # by stamp, the parts of an answer that have come
        # Calls of other nodes by origin and stamp, while devices of this node have not answered them.
        self._called: dict[tuple[str, int], tuple[ServerSession, int, asyncio.Future[Any]]] = {}
        self._absent: set[str] = set()  # origins of such calls that had no lease at the last look

    # Asking.

    def call(
        self,
        node: str,
        conn_id: str,
        name: MessageType,
        payload: Any,
        timeout: float | None,
        options: dict[str, Any] | None = None,
    ) -> tuple[int, asyncio.Future[Any]]:
        """Call a device of another node; see `wse.core.session.session.Session.start_call`.

        Raises:
            WseError: `RP_SEND_FAILED`; `PROTOCOL_VIOLATION` for a name that WSE reserves; `RP_TIMEOUT`, when the
                deadline of the procedure that calls has passed.
        """
        self._endpoint.check_sent(name)
        if bounded:
            timeout = inherited(timeout, self._endpoint.timeout, name)
        tracer = self._endpoint.tracer
        trace = None if tracer is None else dict(tracer.headers())
        stamp, future = self._pending.add(name, timeout)
        try:
            if options is None:
                self.send(node, Call(self._bus.node, stamp, conn_id, name, payload, timeout, trace))
            else:
                self.send(node, CallWith(self._bus.node, stamp, conn_id, name, payload, timeout, trace, options))
        except Exception as exc:
            self._pending.discard(stamp)
            raise WseError(ErrorCode.RP_SEND_FAILED, {"rp": name}, f"the call cannot leave this node: {exc}") from exc
        self._asked[stamp] = node, name
        return stamp, future

    async def query(self, what: str, about: str, *, strict: bool = False) -> list[Any]:
        """Ask all other nodes; see `query_nodes`.

        Raises:
            WseError: `BROKER_UNAVAILABLE`.
        """
        nodes = await self._bus.broker.nodes() - {self._bus.node}
        return await self.query_nodes(nodes, what, about, self._query_timeout, strict=strict)

    async def query_nodes(
        self, nodes: Iterable[str], what: str, about: str, timeout: float, *, strict: bool = False
    ) -> list[Any]:
        """Ask these nodes, and return the answers that come within `timeout` seconds, in no particular order.

        Args:
            nodes: The nodes to ask.
            what: The name of the query.
            about: Its argument.
            timeout: Seconds for all nodes together.
            strict: Whether to fail when a node answers with an error; otherwise its answer is left out.

        Raises:
            WseError: `BROKER_UNAVAILABLE`.
        """
        asked: list[tuple[str, int, asyncio.Future[Any]]] = []
        answers: list[Any] = []
        try:
            for node in nodes:
                stamp, future = self._pending.add(what, timeout)
                asked.append((node, stamp, future))
                self._asked[stamp] = node, what
                self._send(node, encode(Query(self._bus.node, stamp, what, about)))
            for node, _, future in asked:
                try:
                    answers.append(await future)
                except WseError as exc:
                    # A node that does not answer is dying or overloaded, and its answer is left out.
                    if strict and exc.code not in (ErrorCode.RP_TIMEOUT, ErrorCode.RP_DISCONNECT):
                        details = {"node": node, "query": what}
                        problem = f"a node cannot answer a query: {exc}"
                        raise WseError(ErrorCode.BROKER_UNAVAILABLE, details, problem) from exc
        finally:
            for _, stamp, future in asked:
                self.forget(stamp)
                if future.done() and not future.cancelled():
                    future.exception()
        return answers

    def answered(self, answer: Answer) -> None:
        """Handle an answer of another node."""
        stamp, value = answer.stamp, answer.value
        if answer.parts > 1 and answer.error is None:
            if stamp not in self._asked:
                return
            parts = self._parts.setdefault(stamp, [])
            parts.append(value)
            if len(parts) < answer.parts:
                return
            value = [name for part in parts for name in part]
        self._asked.pop(stamp, None)
        self._parts.pop(stamp, None)
        if answer.error is None:
            self._pending.resolve(stamp, value)
            return
        error = error_from_wire(answer.error)
        if answer.absent:
            error = NotAskedError(error.code, error.details, error.message)
        self._pending.reject(stamp, error)

    def forget(self, stamp: int) -> None:
        """Forget a request: no caller waits for its answer."""
        self._asked.pop(stamp, None)
        self._parts.pop(stamp, None)
        self._pending.discard(stamp)

    def cancel(self, stamp: int) -> None:
        """Forget a call to a device, and tell the device's node that no caller waits for the answer."""
        asked = self._asked.get(stamp)
        self.forget(stamp)
        if asked is not None:
            # If this message is lost, the other node forgets the call after the call's own timeout.
            self._bus.send_to(asked[0], Cancel(self._bus.node, stamp))

    def node_of(self, stamp: int) -> str:
        """The node that has the device of a call; an empty string when the call has ended."""
        return self._asked.get(stamp, ("", ""))[0]

    @property
    def waiting(self) -> int:
        """How many requests of this node wait for their answers."""
        return len(self._asked)

    def alive(self, nodes: frozenset[str]) -> None:
        """Give up requests to and from all nodes but these: only these live. Tell them which calls wait."""
        for stamp, (node, name) in self._asked.items():
            if node not in nodes:
                details = {"rp": name, "disconnected": [1006, ""]}
                self._pending.reject(
                    stamp, WseError(ErrorCode.RP_DISCONNECT, details, "the node of the device is dead")
                )
        # An engine that has lost all leases knows a node's lease again only when the node has renewed it.
        # Publishers have none: a call of theirs that they no longer wait for ends at its timeout.
        absent = {origin for origin, _ in self._called if not origin.startswith(OUTSIDE)} - nodes
        dead = absent & self._absent
        self._absent = absent
        for origin, stamp in [call for call in self._called if call[0] in dead]:
            # The node may only have slept, and then a caller may still wait there.
            problem = "the calling node was considered dead"
            self.fail(origin, stamp, WseError(ErrorCode.RP_DISCONNECT, {"disconnected": [1006, ""]}, problem))
        self.asking.beat()
        self.serving.beat()

    def close(self) -> None:
        """Give up all requests: the node ends."""
        self._pending.close(1012, "")
        for stamp, (node, _) in self._asked.items():
            self._bus.send_to(node, Cancel(self._bus.node, stamp))
        self._asked.clear()
        self._parts.clear()
        for call in list(self._called):
            self.give_up(*call)
        self._absent.clear()

    # Answering.

    def called(self, call: Call) -> None:
        """Call a device of this node for another node."""
        origin = call.origin
        conn = self._hub.connections.get(call.conn_id)
        try:
            if conn is None:
                raise NotAskedError(ErrorCode.RP_DISCONNECT, {"rp": call.name, "disconnected": [1006, ""]})
            session = conn._session
            tracer = self._endpoint.tracer
            with nullcontext() if tracer is None else tracer.continuing(call.trace or {}):
                if isinstance(call, CallWith):
                    stamp, future = self.serving.start(session, call)
                else:
                    stamp, future = session.start_call(call.name, call.payload, call.timeout)
        except WseError as exc:
            self._answer_error(origin, call.stamp, exc)
        else:
            self._called[origin, call.stamp] = session, stamp, future
            future.add_done_callback(partial(self._called_back, origin, call.stamp))

    def cancelled(self, cancel: Cancel) -> None:
        """Give up a call of another node; the device may have answered already."""
        self.give_up(cancel.origin, cancel.stamp)

    def queried(self, query: Query) -> None:
        """Answer a query of another node."""
        answer = self.queries.get(query.what)
        if answer is None:  # the other node runs a newer version
            return
        try:
            value = answer(query.about)
        except Exception as exc:
            self._answer_error(query.origin, query.stamp, WseError(ErrorCode.RP_EXECUTION_FAILED, {}, str(exc)))
            raise
        parts = in_parts(value) if isinstance(value, list) else [value]
        for part in parts:
            if not self._answer(query.origin, query.stamp, part, len(parts)):
                break

    def _called_back(self, origin: str, stamp: int, future: asyncio.Future[Any]) -> None:
        """Send the answer of a device, or the error instead of it."""
        self._called.pop((origin, stamp), None)
        sent = self.serving.end(origin, stamp)
        if future.cancelled():
            return
        try:
            result = future.result()
        except WseError as exc:
            self._answer_error(origin, stamp, exc)
        else:
            self._answer(origin, stamp, result if sent is None else sent)

    def give_up(self, origin: str, stamp: int) -> None:
        """Forget another node's call; it gets no answer."""
        future = self._forget_called(origin, stamp)
        if future is not None:
            future.cancel()

    def fail(self, origin: str, stamp: int, error: WseError) -> None:
        """Forget another node's call, and answer it with an error."""
        future = self._forget_called(origin, stamp)
        if future is not None and not future.done():
            future.set_exception(error)

    def _forget_called(self, origin: str, stamp: int) -> asyncio.Future[Any] | None:
        called = self._called.pop((origin, stamp), None)
        if called is None:
            return None
        session, its_stamp, future = called
        session.forget_call(its_stamp)
        return future

    def _answer(self, origin: str, stamp: int, value: Any, parts: int = 1) -> bool:
        """Send an answer, or a part of one; returns False if an error had to be sent instead."""
        try:
            self.send(origin, Answer(self._bus.node, stamp, value, parts=parts))
        except Exception as exc:
            problem = f"the result cannot leave this node: {exc}"
            self._answer_error(origin, stamp, WseError(ErrorCode.RP_EXECUTION_FAILED, {}, problem))
            return False
        return True

    def _answer_error(self, origin: str, stamp: int, error: WseError) -> None:
        wire: dict[str, Any] = {"code": str(error.code), "message": error.message, "details": error.details}
        answer = Answer(self._bus.node, stamp, error=wire, absent=isinstance(error, NotAskedError))
        try:
            self._send(origin, encode(answer))
        except Exception:
            # Its details cannot be encoded or are too large. The caller must not wait for the timeout because of that.
            answer.error = {"code": _cut(error.code), "message": _cut(error.message), "details": {}}
            self._bus.send_to(origin, answer)

    def send(self, node: str, message: ClusterMessage) -> None:
        """Send a message with a value of an application, which arrives unchanged or not at all.

        Raises:
            Exception: The value cannot be encoded; as `_send`.
        """
        self._send(node, plain(message))

    def _send(self, node: str, data: bytes) -> None:
        """Send a message now or not at all: a caller does not wait for a broker that is away.

        Raises:
            WseError: `BROKER_UNAVAILABLE`; `LIMIT_EXCEEDED` for a message that is larger than the broker takes.
        """
        if not self._bus.broker.connected:
            raise WseError(ErrorCode.BROKER_UNAVAILABLE)
        self._bus.broker.publish(NODE + node, data)


def _cut(text: str) -> str:
    """The text, shortened and without surrogates, so that every broker takes it."""
    return str(text)[:MAX_ERROR_LENGTH].encode("utf-8", "replace").decode()
