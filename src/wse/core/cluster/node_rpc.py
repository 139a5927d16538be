"""What one node asks another: calls to the other's devices, and what only the other knows."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from wse.core.cluster.envelope import NODE, Answer, Call, Cancel, Query, encode, in_parts, plain
from wse.core.session.rpc import NotAskedError, PendingCalls, error_from_wire
from wse.errors import ErrorCode, WseError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

    from wse.core.cluster.bus import Bus
    from wse.core.hub.connection import ServerSession
    from wse.core.hub.hub import Hub
    from wse.types import MessageType

MESSAGE_LENGTH = 1000
"""Letters of an error's message and of its code, when its details cannot cross."""


class RemoteDevice:
    """A device of another node; a `wse.core.hub.calls.Callee`."""

    __slots__ = ("_conn_id", "_node", "_rpc")

    def __init__(self, rpc: NodeRpc, node: str, conn_id: str) -> None:
        self._rpc = rpc
        self._node = node
        self._conn_id = conn_id

    def start_call(self, name: MessageType, payload: Any, timeout: float | None) -> tuple[int, asyncio.Future[Any]]:
        return self._rpc.call(self._node, self._conn_id, name, payload, timeout)

    def forget_call(self, stamp: int) -> None:
        self._rpc.cancel(stamp)


class NodeRpc:
    """The questions of this node that wait for their answer, and its answers to others.

    Args:
        bus: The way to the others.
        hub: The devices that they may call.
        query_timeout: Seconds that other nodes have for an answer to a query.

    Attributes:
        queries: What other nodes may ask, by name: a function of a name that returns a plain value; a list is one of
            encoded names, however many.
    """

    def __init__(self, bus: Bus, hub: Hub, query_timeout: float) -> None:
        self._bus = bus
        self._hub = hub
        self._endpoint = hub.endpoint
        self._query_timeout = query_timeout
        self.queries: dict[str, Callable[[str], Any]] = {}
        self._pending = PendingCalls(self._endpoint.scheduler, self._endpoint.timeout)
        self._asked: dict[int, tuple[str, MessageType]] = {}  # by stamp, the node whose answer is due, and to what
        self._parts: dict[int, list[list[str]]] = {}  # by stamp, those of an answer that have come
        # Calls of other nodes by origin and stamp, while our devices have not answered them.
        self._called: dict[tuple[str, int], tuple[ServerSession, int, asyncio.Future[Any]]] = {}
        self._absent: set[str] = set()  # origins of such calls that had no lease when we last looked

    # Asking.

    def call(
        self, node: str, conn_id: str, name: MessageType, payload: Any, timeout: float | None
    ) -> tuple[int, asyncio.Future[Any]]:
        """Call a device of another node; see `wse.core.session.session.Session.start_call`.

        Raises:
            WseError: `RP_SEND_FAILED`; `PROTOCOL_VIOLATION` for a name that is WSE's own.
        """
        self._endpoint.check_type(name)
        stamp, future = self._pending.add(name, timeout)
        try:
            self._send(node, plain(Call(self._bus.node, stamp, conn_id, name, payload, timeout)))
        except Exception as exc:
            self._pending.discard(stamp)
            raise WseError(ErrorCode.RP_SEND_FAILED, {"rp": name}, f"the call cannot cross: {exc}") from exc
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
        """Ask these nodes; the answers that came within `timeout` seconds, in no order.

        Args:
            nodes: Who is asked.
            what: The name of the question.
            about: What it is about.
            timeout: Seconds for all of them.
            strict: Whether it fails when one answers with an error, rather than that its answer is missing.

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
                    # Without an answer the node is dying, or overloaded: what it knows is missing.
                    if strict and exc.code not in (ErrorCode.RP_TIMEOUT, ErrorCode.RP_DISCONNECT):
                        details = {"node": node, "query": what}
                        problem = f"a node cannot tell what it knows: {exc}"
                        raise WseError(ErrorCode.BROKER_UNAVAILABLE, details, problem) from exc
        finally:
            for _, stamp, future in asked:
                self.forget(stamp)
                if future.done() and not future.cancelled():
                    future.exception()
        return answers

    def answered(self, answer: Answer) -> None:
        """Another node has answered."""
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
        """Nobody waits for the answer any more."""
        self._asked.pop(stamp, None)
        self._parts.pop(stamp, None)
        self._pending.discard(stamp)

    def cancel(self, stamp: int) -> None:
        """Nobody waits for the answer of a device any more; where it is due, it is due no longer."""
        asked = self._asked.get(stamp)
        self.forget(stamp)
        if asked is not None:
            # If this is lost, the other node waits for the call's own timeout.
            self._bus.send_to(asked[0], Cancel(self._bus.node, stamp))

    @property
    def waiting(self) -> int:
        """How many questions of ours wait for their answer."""
        return len(self._asked)

    def alive(self, nodes: frozenset[str]) -> None:
        """Only these nodes live: the others will not answer, and need no answer."""
        for stamp, (node, name) in self._asked.items():
            if node not in nodes:
                details = {"rp": name, "disconnected": [1006, ""]}
                self._pending.reject(
                    stamp, WseError(ErrorCode.RP_DISCONNECT, details, "the node of the device is dead")
                )
        # An engine that has lost all leases knows those of the others only when each has renewed its own.
        absent = {origin for origin, _ in self._called} - nodes
        dead = absent & self._absent
        self._absent = absent
        for origin, stamp in [call for call in self._called if call[0] in dead]:
            # It may only have slept, and then somebody may still wait there.
            problem = "the node that called was taken for dead"
            self._drop(origin, stamp, WseError(ErrorCode.RP_DISCONNECT, {"disconnected": [1006, ""]}, problem))

    def close(self) -> None:
        """The node ends."""
        self._pending.close(1012, "")
        self._asked.clear()
        self._parts.clear()
        for call in list(self._called):
            self._drop(*call)
        self._absent.clear()

    # Answering.

    def called(self, call: Call) -> None:
        """Another node calls one of our devices."""
        origin = call.origin
        conn = self._hub.connections.get(call.conn_id)
        try:
            if conn is None:
                raise NotAskedError(ErrorCode.RP_DISCONNECT, {"rp": call.name, "disconnected": [1006, ""]})
            session = conn._session
            stamp, future = session.start_call(call.name, call.payload, call.timeout)
        except WseError as exc:
            self._answer_error(origin, call.stamp, exc)
        else:
            self._called[origin, call.stamp] = session, stamp, future
            future.add_done_callback(partial(self._called_back, origin, call.stamp))

    def cancelled(self, cancel: Cancel) -> None:
        """Another node does not wait for a device of ours any more; it may have answered already."""
        self._drop(cancel.origin, cancel.stamp)

    def queried(self, query: Query) -> None:
        """Another node asks for what we know."""
        answer = self.queries.get(query.what)
        if answer is None:  # it runs a newer version than we do
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
        """A device has answered, or will not."""
        self._called.pop((origin, stamp), None)
        if future.cancelled():
            return
        try:
            result = future.result()
        except WseError as exc:
            self._answer_error(origin, stamp, exc)
        else:
            self._answer(origin, stamp, result)

    def _drop(self, origin: str, stamp: int, error: WseError | None = None) -> None:
        """Forget another node's call as one of our own is forgotten; without an error it gets no answer."""
        called = self._called.pop((origin, stamp), None)
        if called is None:
            return
        session, its_stamp, future = called
        session.forget_call(its_stamp)
        if error is None:
            future.cancel()
        elif not future.done():
            future.set_exception(error)

    def _answer(self, origin: str, stamp: int, value: Any, parts: int = 1) -> bool:
        """Whether the answer, or this part of it, has been sent; otherwise the error has."""
        try:
            self._send(origin, plain(Answer(self._bus.node, stamp, value, parts=parts)))
        except Exception as exc:
            problem = f"the result cannot cross: {exc}"
            self._answer_error(origin, stamp, WseError(ErrorCode.RP_EXECUTION_FAILED, {}, problem))
            return False
        return True

    def _answer_error(self, origin: str, stamp: int, error: WseError) -> None:
        wire: dict[str, Any] = {"code": str(error.code), "message": error.message, "details": error.details}
        answer = Answer(self._bus.node, stamp, error=wire, absent=isinstance(error, NotAskedError))
        try:
            self._send(origin, encode(answer))
        except Exception:
            # Its details cannot be encoded, or are too large. Who asks must not wait for the timeout because of that.
            answer.error = {"code": _cut(error.code), "message": _cut(error.message), "details": {}}
            self._bus.send_to(origin, answer)

    def _send(self, node: str, data: bytes) -> None:
        """Say it now or not at all: who asks does not wait for a broker that is away.

        Raises:
            WseError: `BROKER_UNAVAILABLE`; `LIMIT_EXCEEDED` for what is larger than the broker takes.
        """
        if not self._bus.broker.connected:
            raise WseError(ErrorCode.BROKER_UNAVAILABLE)
        self._bus.broker.publish(NODE + node, data)


def _cut(text: str) -> str:
    """The text in a form that crosses in any case."""
    return str(text)[:MESSAGE_LENGTH].encode("utf-8", "replace").decode()
