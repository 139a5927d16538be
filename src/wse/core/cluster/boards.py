"""The presence of rooms on all nodes: each node holds the states of its own connections, and tells the others.

A node takes part while it has a member in the room. Then it asks the others for their parts, and hears their changes.
Each node numbers its changes. So a lost one shows at the next, or at the beat by which a node repeats its last number,
and the node that has lost it asks for the whole part. The part of a node that is dead, or silent for long, is
forgotten.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from wse.core.cluster import envelope
from wse.core.cluster.envelope import ROOM, topic
from wse.core.hub.presence.board import Entry
from wse.core.names import decode_name, encode_name
from wse.errors import WseError
from wse.tasks import wake

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from wse.core.cluster.bus import Bus
    from wse.core.cluster.node_rpc import NodeRpc
    from wse.core.cluster.settings import ClusterSettings
    from wse.core.hub.hub import Hub
    from wse.core.hub.presence.board import Board
    from wse.core.ports.scheduling import Timer
    from wse.types import RoomName

SILENT_BEATS: Final = 4
"""Beats of this node within which another one must have been heard, or its part is forgotten."""


class Heard:
    """What has been heard of a node.

    Attributes:
        number: The number of its last change that this node has.
        beats: Beats of this node since it was last heard.
    """

    __slots__ = ("beats", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self.beats = 0


class SharedBoard:
    """A room in which this node takes part.

    Attributes:
        board: Its states.
        number: The number of the last change of this node.
        heard: The nodes that have told their parts.
        asked: Nodes that have been asked for theirs, and what has come from them since.
        gathering: Callers that wait until all have been asked; `None` when that is over.
    """

    __slots__ = ("asked", "board", "gathering", "heard", "number")

    def __init__(self, board: Board, number: int) -> None:
        self.board = board
        self.number = number
        self.heard: dict[str, Heard] = {}
        self.asked: dict[str, list[envelope.Present]] = {}
        self.gathering: list[asyncio.Future[None]] | None = []


class Boards:
    """The rooms in which this node takes part.

    Args:
        bus: The connection to the other nodes.
        hub: The rooms of this node.
        rpc: Asks other nodes, and answers them.
        settings: Times.
    """

    def __init__(self, bus: Bus, hub: Hub, rpc: NodeRpc, settings: ClusterSettings) -> None:
        self._bus = bus
        self._hub = hub
        self._rpc = rpc
        self._settings = settings
        self._scheduler = hub.endpoint.scheduler
        self._shared: dict[RoomName, SharedBoard] = {}
        self._last = 0  # no number of a room is used twice, also when the node comes back to the room
        self._timer: Timer | None = None
        rpc.queries["presence"] = self._part

    # The hub.

    def open(self, board: Board) -> None:
        """Take part in a room."""
        shared = self._shared[board.name] = SharedBoard(board, self._last)
        self._publish(shared, [], is_whole=True)
        self._scheduler.spawn(self._gather(shared))
        if self._timer is None:
            self._timer = self._scheduler.call_later(self._settings.lease_ttl, self._beat)

    def close(self, board: Board) -> None:
        """Take part no longer."""
        shared = self._shared.pop(board.name)
        self._last = max(self._last, shared.number)
        self._publish(shared, [], is_whole=True, is_last=True)
        self._gathered(shared)
        if not self._shared and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def post(self, board: Board, entries: list[Entry]) -> None:
        """Tell the other nodes of changes."""
        shared = self._shared.get(board.name)
        if shared is not None:
            for part in _in_parts(entries):
                shared.number += 1
                self._publish(shared, part)

    async def gathered(self, board: Board) -> None:
        """Return when the other nodes have told their parts, as far as they answer in time."""
        shared = self._shared.get(board.name)
        if shared is not None and shared.gathering is not None:
            future = self._scheduler.create_future()
            shared.gathering.append(future)
            await future

    def _publish(
        self, shared: SharedBoard, entries: list[Entry], *, is_whole: bool = False, is_last: bool = False
    ) -> None:
        # What cannot be sent now is not sent later: by then it may be wrong, and the others ask.
        if self._bus.is_current:
            told = [(encode_name(user), device, data) for user, device, data in entries]
            message = envelope.Present(self._bus.node, shared.number, told, is_whole, is_last)
            self._bus.publish(topic(ROOM, shared.board.name), message)

    # Other nodes.

    def received(self, room: RoomName, message: envelope.Present) -> None:
        """Another node tells of its part."""
        shared = self._shared.get(room)
        if shared is not None:
            self._take(shared, message)
        elif self._hub.rooms.local(room):
            self._hub.rooms.make_board(room)  # which asks everybody

    def _take(self, shared: SharedBoard, message: envelope.Present) -> None:
        origin, number = message.origin, message.number
        if origin in shared.asked:
            shared.asked[origin].append(message)
            return
        heard = shared.heard.get(origin)
        if heard is not None:
            heard.beats = 0
        if message.is_last:
            self._forget(shared, origin)
        elif message.is_whole:
            self._replace(shared, origin, number, _entries(message.entries))
        elif heard is None or number > heard.number + bool(message.entries):
            self._ask(shared, [origin])  # something was lost
        elif number > heard.number:
            heard.number = number
            shared.board.take(origin, _entries(message.entries))

    @staticmethod
    def _replace(shared: SharedBoard, origin: str, number: int, entries: list[Entry]) -> None:
        heard = shared.heard.get(origin)
        if heard is None or number >= heard.number:
            shared.heard[origin] = Heard(number)
            shared.board.replace(origin, entries)

    def _ask(self, shared: SharedBoard, nodes: Iterable[str]) -> None:
        asked = [node for node in nodes if node not in shared.asked]
        if asked:
            shared.asked |= {node: [] for node in asked}
            self._scheduler.spawn(self._fetch(shared, asked))

    async def _gather(self, shared: SharedBoard) -> None:
        try:
            await self._bus.broker.flush()  # from here on, all changes come
            nodes = [node for node in self._bus.peers if node not in shared.asked]
            shared.asked |= {node: [] for node in nodes}
            await self._fetch(shared, nodes)
        except WseError:
            pass  # the broker is away: everybody is asked when it is back
        finally:
            self._gathered(shared)

    @staticmethod
    def _gathered(shared: SharedBoard) -> None:
        waiters, shared.gathering = shared.gathering, None
        for future in waiters or ():
            wake(future)

    async def _fetch(self, shared: SharedBoard, nodes: list[str]) -> None:
        """Ask nodes for their whole parts."""
        about, timeout = encode_name(shared.board.name), self._settings.query_timeout
        try:
            answers = await self._rpc.query_nodes(nodes, "presence", about, timeout)
        except WseError:
            answers = []
        finally:
            since = [message for node in nodes for message in shared.asked.pop(node, ())]
        if self._shared.get(shared.board.name) is not shared:
            return
        for head, *entries in answers:
            origin, number = envelope.decode_value(head)
            if number is None:
                self._forget(shared, origin)
            else:
                self._replace(shared, origin, number, _entries(envelope.decode_value(entry) for entry in entries))
        for message in since:
            self._take(shared, message)

    def _part(self, room: str) -> list[bytes]:
        """What this node answers when it is asked: its name, and its number if it takes part, then its states."""
        shared = self._shared.get(decode_name(room))
        if shared is None:
            return [envelope.encode_value((self._bus.node, None))]
        shared.board.report()
        own = [(encode_name(user), device, data) for user, device, data in shared.board.own]
        return [envelope.encode_value(value) for value in ((self._bus.node, shared.number), *own)]

    # Time.

    def _beat(self) -> None:
        self._timer = self._scheduler.call_later(self._settings.lease_ttl, self._beat)
        for shared in list(self._shared.values()):
            self._publish(shared, [])
            for origin, heard in list(shared.heard.items()):
                heard.beats += 1
                if heard.beats >= SILENT_BEATS:
                    self._forget(shared, origin)
                elif heard.beats > 1:
                    self._ask(shared, [origin])

    def alive(self, nodes: frozenset[str]) -> None:
        """These nodes have a lease. Any other is dead."""
        for shared in list(self._shared.values()):
            for origin in shared.heard.keys() - nodes:
                self._forget(shared, origin)

    def refresh(self) -> None:
        """The broker was away: changes may be lost."""
        for shared in list(self._shared.values()):
            self._ask(shared, self._bus.peers)

    @staticmethod
    def _forget(shared: SharedBoard, origin: str) -> None:
        shared.heard.pop(origin, None)
        shared.board.forget(origin)


def _entries(told: Iterable[tuple[str, str, bytes | None]]) -> list[Entry]:
    return [Entry(decode_name(user), device, data) for user, device, data in told]


def _in_parts(entries: list[Entry]) -> Iterable[list[Entry]]:
    """Lists that brokers take."""
    part: list[Entry] = []
    size = 0
    for entry in entries:
        length = len(entry.data or b"") + 100
        if part and size + length > envelope.MAX_PART_BYTES:
            yield part
            part, size = [], 0
        part.append(entry)
        size += length
    yield part
