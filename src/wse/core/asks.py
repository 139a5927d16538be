"""What one node asks another: calls to the other's devices, and what only the other knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wse.core.envelope import NODE, Answer, Call, Query, encode, plain
from wse.core.rpc import PendingCalls, error_from_wire
from wse.errors import ErrorCode, WseError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable

    from wse.core.cluster import Cluster
    from wse.core.connection import ServerSession
    from wse.types import MessageType


class RemoteDevice:
    """A device of another node; a `wse.core.calls.Callee`."""

    __slots__ = ("_asks", "_conn_id", "_node")

    def __init__(self, asks: Asks, node: str, conn_id: str) -> None:
        self._asks = asks
        self._node = node
        self._conn_id = conn_id

    def start_call(self, name: MessageType, payload: Any, timeout: float | None) -> tuple[int, asyncio.Future[Any]]:
        return self._asks.call(self._node, self._conn_id, name, payload, timeout)

    def forget_call(self, stamp: int) -> None:
        self._asks.forget(stamp)


class Asks:
    """The questions of this node that wait for their answer, and its answers to others.

    Args:
        cluster: The node.
        queries: What other nodes may ask, by name: a function of a name that returns a plain value.
    """

    def __init__(self, cluster: Cluster, queries: dict[str, Callable[[str], Any]]) -> None:
        self._cluster = cluster
        self._hub = cluster.hub
        self._endpoint = cluster.hub.endpoint
        self._queries = queries
        self._pending = PendingCalls(self._endpoint.scheduler, self._endpoint.timeout)
        self._asked: dict[int, tuple[str, MessageType]] = {}  # by stamp, the node that must answer, and what

    # Asking.

    def call(
        self, node: str, conn_id: str, name: MessageType, payload: Any, timeout: float | None
    ) -> tuple[int, asyncio.Future[Any]]:
        """Call a device of another node; see `wse.core.session.Session.start_call`.

        Raises:
            WseError: `RP_SEND_FAILED`; `PROTOCOL_VIOLATION` for a name that is WSE's own.
        """
        self._endpoint.check_type(name)
        stamp, future = self._pending.add(name, timeout)
        try:
            self._send(node, plain(Call(self._cluster.node, stamp, conn_id, name, payload, timeout)))
        except Exception as exc:
            self._pending.discard(stamp)
            raise WseError(ErrorCode.RP_SEND_FAILED, {"rp": name}, f"the call cannot cross: {exc}") from exc
        self._asked[stamp] = node, name
        return stamp, future

    async def query(self, what: str, about: str) -> list[Any]:
        """Ask all other nodes; the answers that came in time, in no order.

        Raises:
            WseError: `BROKER_UNAVAILABLE`.
        """
        nodes = await self._cluster.broker.nodes() - {self._cluster.node}
        return await self.query_nodes(nodes, what, about, self._cluster.settings.query)

    async def query_nodes(self, nodes: Iterable[str], what: str, about: str, timeout: float) -> list[Any]:
        """Ask these nodes; the answers that came within `timeout` seconds.

        Raises:
            WseError: `BROKER_UNAVAILABLE`.
        """
        asked: list[tuple[int, asyncio.Future[Any]]] = []
        answers: list[Any] = []
        try:
            for node in nodes:
                asked.append(self._pending.add(what, timeout))
                stamp = asked[-1][0]
                self._asked[stamp] = node, what
                self._send(node, encode(Query(self._cluster.node, stamp, what, about)))
            for _, future in asked:
                try:
                    answers.append(await future)
                except WseError:
                    continue  # it is dying, or overloaded: what it knows is missing
        finally:
            for stamp, future in asked:
                self.forget(stamp)
                if future.done() and not future.cancelled():
                    future.exception()
        return answers

    def answered(self, answer: Answer) -> None:
        """Another node has answered."""
        if answer.error is None:
            self._pending.resolve(answer.stamp, answer.value)
        else:
            self._pending.reject(answer.stamp, error_from_wire(answer.error))

    def forget(self, stamp: int) -> None:
        """Nobody waits for the answer any more."""
        self._asked.pop(stamp, None)
        self._pending.discard(stamp)

    @property
    def waiting(self) -> int:
        """How many questions wait for their answer."""
        return len(self._asked)

    def alive(self, nodes: frozenset[str]) -> None:
        """Only these nodes live: the others will not answer."""
        for stamp, (node, name) in self._asked.items():
            if node not in nodes:
                details = {"rp": name, "disconnected": [1006, ""]}
                self._pending.reject(
                    stamp, WseError(ErrorCode.RP_DISCONNECT, details, "the node of the device is dead")
                )

    def close(self) -> None:
        """The node ends."""
        self._pending.close(1012, "")
        self._asked.clear()

    # Answering.

    def called(self, call: Call) -> None:
        """Another node calls one of our devices."""
        conn = self._hub.connections.get(call.conn_id)
        try:
            if conn is None:
                raise WseError(ErrorCode.RP_DISCONNECT, {"rp": call.name, "disconnected": [1006, ""]})
            session = conn._session
            started = session.start_call(call.name, call.payload, call.timeout)
        except WseError as exc:
            self._answer_error(call, exc)
        else:
            self._endpoint.scheduler.spawn(self._answer_later(call, session, *started))

    def queried(self, query: Query) -> None:
        """Another node asks for what we know."""
        answer = self._queries.get(query.what)
        if answer is not None:  # else it runs a newer version than we do
            self._answer(query, answer(query.about))

    async def _answer_later(self, call: Call, session: ServerSession, stamp: int, future: asyncio.Future[Any]) -> None:
        try:
            result = await future
        except WseError as exc:
            self._answer_error(call, exc)
        else:
            self._answer(call, result)
        finally:
            session.forget_call(stamp)

    def _answer(self, ask: Call | Query, value: Any) -> None:
        try:
            self._send(ask.origin, plain(Answer(self._cluster.node, ask.stamp, value)))
        except Exception as exc:
            problem = f"the result cannot cross: {exc}"
            self._answer_error(ask, WseError(ErrorCode.RP_EXECUTION_FAILED, {}, problem))

    def _answer_error(self, ask: Call | Query, error: WseError) -> None:
        wire = {"code": str(error.code), "message": error.message, "details": error.details}
        self._cluster.tell(ask.origin, Answer(self._cluster.node, ask.stamp, error=wire))

    def _send(self, node: str, data: bytes) -> None:
        """Say it now or not at all: who asks does not wait for a broker that is away.

        Raises:
            WseError: `BROKER_UNAVAILABLE`; `LIMIT_EXCEEDED` for what is larger than the broker takes.
        """
        if not self._cluster.broker.connected:
            raise WseError(ErrorCode.BROKER_UNAVAILABLE)
        self._cluster.broker.publish(NODE + node, data)
