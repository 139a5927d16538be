"""The network of a server without a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wse.core.hub.fanout import send_to_all
from wse.core.hub.network import DeviceInfo
from wse.core.hub.tickets import Refusal, Why

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Hashable, Sequence

    from wse.core.hub.calls import Callee
    from wse.core.hub.connection import ServerSession, WseConnection, WseIdentity
    from wse.core.hub.fallback import Watch
    from wse.core.hub.hub import Hub
    from wse.core.hub.presence.board import Board, Entry
    from wse.core.hub.tickets import Claim
    from wse.core.packed import Packed
    from wse.core.ports.scheduling import Timer
    from wse.core.ports.store import Record
    from wse.types import ClientId, MessageKey, MessageType, RoomName


class SingleNode:
    """A `Network` of one: there are no others."""

    reaches_others = False
    has_others = False
    name = ""
    healthy = True

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._endpoint = hub.endpoint
        # Users without a device whose `left` waits: the timer, and what is fired.
        self._leaving: dict[ClientId, tuple[Timer, tuple[WseIdentity, int, str]]] = {}

    async def open(self) -> None: ...

    async def close(self) -> None:
        for cid in tuple(self._leaving):
            self._left(cid)

    def admit(self, session: ServerSession, cid: ClientId, welcome: Packed) -> None:
        is_first = self._hub.add(session.conn, cid)
        if cid in self._leaving:
            timer, _ = self._leaving.pop(cid)
            timer.cancel()
            is_first = False
        self._hub.push_out(session.conn)
        self._hub.welcome(session, welcome, is_first)

    def leave(self, conn: WseConnection, identity: WseIdentity, code: int, reason: str, grace: float | None) -> None:
        if grace is None:
            return
        if grace:
            timer = self._endpoint.scheduler.call_later(grace, self._left, identity.cid)
            self._leaving[identity.cid] = timer, (identity, code, reason)
        else:
            self._hub.left._emit(identity, code, reason)

    def _left(self, cid: ClientId) -> None:
        timer, left = self._leaving.pop(cid)
        timer.cancel()
        self._hub.left._emit(*left)

    def announce_end(self) -> None: ...

    async def fetch(
        self, holder: str, claim: Claim, cid: ClientId, protocol: str, is_wanted: Callable[[], bool]
    ) -> Refusal:
        return Refusal(Why.UNKNOWN)

    async def find(self, holder: str, claim: Claim) -> None: ...

    def mark(self, conn: WseConnection) -> None: ...

    def moved(self, conn: WseConnection, to: str) -> None: ...

    def drop_joining(self, cid: ClientId, reason: str, code: int) -> None: ...

    def send(
        self,
        kind: str,
        name: Hashable,
        conns: Collection[WseConnection],
        type: MessageType,
        payload: Any,
        not_conn: str | None,
        not_user: ClientId | None,
        key: MessageKey | None,
    ) -> None:
        send_to_all(self._endpoint, conns, type, payload, key)

    def kept(self, kind: str, name: Hashable, record: Record) -> None: ...

    def watch(self, watch: Watch) -> None:
        self._hub.fallbacks.settle(watch, False)

    def drop(self, cid: ClientId, reason: str, code: int) -> None: ...

    async def subscribed(self) -> None: ...

    def want_room(self, name: RoomName) -> None: ...

    def unwant_room(self, name: RoomName) -> None: ...

    def enter(self, name: RoomName, cid: ClientId, *, enter: bool) -> None: ...

    async def members(self, name: RoomName) -> frozenset[ClientId]:
        return frozenset()

    def open_board(self, board: Board) -> None: ...

    def close_board(self, board: Board) -> None: ...

    def post(self, board: Board, entries: list[Entry]) -> None: ...

    async def gathered(self, board: Board) -> None: ...

    async def callees(self, cid: ClientId) -> list[Callee]:
        return [*self._hub.sessions_of(cid)]

    async def locate(self, callees: Sequence[Callee]) -> list[Callee]:
        return [*callees]

    async def devices(self, cid: ClientId) -> list[DeviceInfo]:
        return [DeviceInfo(cid, conn.conn_id, away=not conn.attached) for conn in self._hub.conns_of(cid)]

    async def online(self) -> int:
        return len(self._hub.identities) + len(self._leaving)

    async def users(self) -> AsyncIterator[ClientId]:
        for cid in (*self._hub.identities, *self._leaving):
            yield cid
