"""Hands what the broker delivers to the part of the node that handles it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wse.core.cluster import envelope
from wse.core.cluster.envelope import ROOM, USER
from wse.core.names import decode_name
from wse.errors import ErrorCode, WseError

if TYPE_CHECKING:
    from wse.core.cluster.boards import Boards
    from wse.core.cluster.bus import Bus
    from wse.core.cluster.claims import Claims
    from wse.core.cluster.delivery import Delivery
    from wse.core.cluster.departures import Departures
    from wse.core.cluster.liveness import Liveness
    from wse.core.cluster.node_rpc import NodeRpc
    from wse.core.cluster.reconciler import Reconciler
    from wse.core.cluster.steps import Steps
    from wse.core.cluster.watching import Watching
    from wse.core.hub.hub import Hub
    from wse.types import RoomName

PROBE_TIMEOUT = 0.25
"""Seconds between two queries that ask the other nodes whether they are back."""


class Inbox:
    """A node's `wse.core.ports.broker.BrokerListener`.

    Args:
        bus: Topics and the backlog.
        hub: The connections of this node.
        delivery: Handles messages of the application.
        rpc: Handles queries, calls and answers.
        claims: Handles sessions that come.
        departures: Handles those that go.
        steps: Handles changes of devices.
        reconciler: Is told of disturbances.
        liveness: Handles canaries, and the loss and return of the broker.
        watching: Finds out whether messages are got.
        boards: Handles the presence of rooms.
        restore_within: Seconds to wait for the other nodes after the broker has returned. A node that is not back by
            then is dead.
    """

    def __init__(
        self,
        bus: Bus,
        hub: Hub,
        delivery: Delivery,
        rpc: NodeRpc,
        claims: Claims,
        departures: Departures,
        steps: Steps,
        reconciler: Reconciler,
        liveness: Liveness,
        watching: Watching,
        boards: Boards,
        *,
        restore_within: float,
    ) -> None:
        self._bus = bus
        self._hub = hub
        self._endpoint = hub.endpoint
        self._scheduler = hub.endpoint.scheduler
        self._delivery = delivery
        self._rpc = rpc
        self._claims = claims
        self._departures = departures
        self._steps = steps
        self._reconciler = reconciler
        self._liveness = liveness
        self._watching = watching
        self._boards = boards
        self._restore_within = restore_within
        self._restoring = False
        self._lost_at: float | None = None  # when the broker was lost

    def received(self, topic: str, data: bytes) -> None:
        try:
            message = envelope.decode(data)
            if message.origin != self._bus.node or isinstance(message, envelope.Canary):
                self._dispatch(topic, message, len(data))
        except Exception as exc:  # another version, or another program with access to the broker, may have sent it
            error = WseError(
                ErrorCode.MSG_PROCESSING_ERROR, {"topic": topic}, "cannot decode a message from another node"
            )
            self._endpoint.report(error, None, exc)

    def connection_lost(self, cause: Exception | None, unsent: list[tuple[str, bytes]]) -> None:
        self._liveness.connection_lost()
        self._claims.connection_lost()
        self._bus.take_back(unsent)
        self._lost_at = self._scheduler.time()
        self._endpoint.report(WseError(ErrorCode.BROKER_UNAVAILABLE), None, cause)

    def connection_restored(self) -> None:
        away = 0.0 if self._lost_at is None else self._scheduler.time() - self._lost_at
        text = "the broker is back after %.1f s"
        self._endpoint.log.event("broker-back", text, away, seconds=round(away, 3), node=self._bus.node)
        self._bus.hold()
        self._reconciler.is_disturbed = True
        self._liveness.renew()
        if not self._restoring:
            self._restoring = True
            self._scheduler.spawn(self._restore())

    async def _restore(self) -> None:
        """Publish the backlog once the other nodes receive again, as they have lost their connections too."""
        missing = set(self._bus.peers)
        deadline = self._scheduler.time() + self._restore_within
        try:
            while self._bus.broker.connected and missing and self._scheduler.time() < deadline:
                missing -= set(await self._rpc.query_nodes(missing, "here", "", PROBE_TIMEOUT))
        finally:
            self._restoring = False
            self._bus.release()  # if the connection was lost again, its return holds the backlog anew
        self._bus.catch_up()
        self._boards.refresh()
        if self._hub.kept is not None:
            self._hub.kept.look()

    def _dispatch(self, topic: str, message: Any, size: int) -> None:
        match message:
            case envelope.Message():
                self._delivery.received(topic, message)
            case envelope.Kept():
                self._delivery.received_kept(topic, message)
            case envelope.Unread():
                if self._hub.kept is not None and self._hub.kept.unread is not None:
                    self._hub.kept.unread.watch(decode_name(message.user), message.number, message.epoch)
            case envelope.Watched():
                self._watching.asked(topic, message)
            case envelope.Reached():
                self._watching.answered(message)
            case envelope.Present():
                self._boards.received(decode_name(topic.removeprefix(ROOM)), message)
            case envelope.Drop():
                self._hub.drop_here(decode_name(topic.removeprefix(USER)), message.reason, message.code)
            case envelope.Enter():
                self._enter(topic.removeprefix(USER), decode_name(message.room), enter=message.enter)
            case envelope.Displaced():
                self._steps.displaced(message.conn_id)
            case envelope.Check():
                self._steps.check(topic.removeprefix(USER))
            case envelope.Hello():
                self._bus.peers |= {message.origin}
            case envelope.Canary():
                self._liveness.canary_returned()
            case envelope.Call():
                if not self._claims.redirect(message):
                    self._rpc.called(message)
            case envelope.FromCallee():
                self._rpc.asking.received(message, size)
            case envelope.FromCaller():
                self._rpc.serving.received(message, size)
            case envelope.Waiting():
                self._rpc.serving.waiting(message)
            case envelope.Running():
                self._rpc.asking.running(message)
            case envelope.Query():
                self._rpc.queried(message)
            case envelope.Answer():
                self._rpc.answered(message)
            case envelope.ToDevice():
                self._claims.to_device(message)
            case envelope.Arrived():
                self._departures.arrived(message.conn_id)
            case _:
                self._rpc.cancelled(message)

    def _enter(self, user: str, room: RoomName, *, enter: bool) -> None:
        rooms = self._hub.rooms
        for session in self._hub.sessions_of(decode_name(user)):
            (rooms.add if enter else rooms.discard)(room, session.conn)
        self._claims.entered(user, room, enter=enter)
