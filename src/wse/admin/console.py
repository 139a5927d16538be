"""What the operations page shows and does: the procedures that it calls.

Each node answers for itself, at once and with a bounded answer (`_answer`): for its own page directly, and for those of
other nodes as the query `admin` of the cluster. Nothing is measured or asked while no page is open.
"""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, Final, Protocol

from msgspec import Meta

from wse.admin.directory import Directory, named
from wse.admin.journal import Journal, shown
from wse.core.cluster.node import ClusterNode
from wse.core.hub.census import take_brief
from wse.core.limits import Limits
from wse.core.session.log import is_answer
from wse.errors import CloseReason, ErrorCode, WseError
from wse.metrics.survey import Survey
from wse.version import installed_version

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Hashable, Mapping

    from wse.core.hub.connection import WseConnection
    from wse.core.hub.hub import Hub

logger = logging.getLogger("wse")

LIMITS: Final = Limits(
    message_size=64 * 1024,
    handshake_size=8 * 1024,
    nesting=32,
    connections=1000,
    connections_per_address=20,
    unauthenticated=500,
    incoming_calls=20,
    outgoing_calls=10,
    handlers=20,
    streams=1,
    message_rate=20,
    message_burst=60,
)
"""What one page may ask; far more than it does. Attackers without a key get no more than the places of
`unauthenticated`, and those at one address not all of them."""

PAGE: Final = 50
"""Rows of one page of users or rooms."""

SHOWN: Final = 20
"""Failures, and blocked handlers, of one node that are shown."""

TURNS: Final = 50
"""Pieces of `SLICE` names that one page may look at; if there are more, the next page goes on there."""

ANSWER_TIMEOUT: Final = 1.0
"""Seconds that other nodes have to answer."""

FRESH: Final = 0.5
"""Seconds for which an overview serves all pages that ask."""

SURVEY_EVERY: Final = 1.0
"""Seconds between two walks through all sessions, at least."""

_PAUSE: Final = 0.005

Text = Annotated[str, Meta(max_length=2000)]
Position = Annotated[int, Meta(ge=0, le=2**53)]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A page of users or rooms.

    Attributes:
        search: How their names begin; empty for all.
        after: Where the page before ended: a node, and a position there.
    """

    search: Text = ""
    after: tuple[Text, Position] | None = None


@dataclass(frozen=True, slots=True)
class User:
    """A user, by a `ref` of the directory."""

    user: Text


@dataclass(frozen=True, slots=True)
class Device:
    """A device."""

    conn_id: Text


@dataclass(frozen=True, slots=True)
class Message:
    """A message to a user, a room, or everyone.

    Attributes:
        type: Its type.
        payload: Its content.
        user: A `ref` of the directory.
        room: The same, for a room.
    """

    type: Text
    payload: Any = None
    user: Text | None = None
    room: Text | None = None


class Backstage(Protocol):
    """The server of the page, as the console sees it."""

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def register(self, name: str, fn: Callable[..., Any]) -> Any: ...


class Console:
    """The operations page of a server.

    Args:
        hub: The server's connections.
        uptime: Returns the seconds since its start.
        backstage: A server for the page alone.

    Attributes:
        backstage: The same.
    """

    def __init__(self, hub: Hub, uptime: Callable[[], float], backstage: Backstage) -> None:
        self._hub = hub
        self._uptime = uptime
        self.backstage = backstage
        self._directory = Directory(hub)
        self._journal = Journal(monotonic)
        self._survey = Survey(hub)
        self._surveyed_at = 0.0
        self._overview: tuple[float, dict[str, Any]] = (0.0, {})
        procedures: dict[str, Callable[..., Any]] = {
            "overview": self._show_overview,
            "users": self._show_users,
            "rooms": self._show_rooms,
            "devices": self._show_devices,
            "drop-device": self._drop_device,
            "drop-user": self._drop_user,
            "send": self._send,
        }
        for name, procedure in procedures.items():
            backstage.register(name, procedure)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serve the page as long as the server serves."""
        network = self._hub.network
        if isinstance(network, ClusterNode):
            network.rpc.queries["admin"] = self._answer_query
        await self.backstage.start()
        try:
            yield
        finally:
            await self.backstage.close()

    def note(self, error: WseError, context: Mapping[str, Any]) -> None:
        """Remember a failure of the server; what a procedure answers on purpose is none."""
        if not is_answer(error):
            self._journal.note(error, context)

    # One node answers for itself.

    def _answer_query(self, asked: str) -> dict[str, Any] | None:
        return self._answer(json.loads(asked))

    def _answer(self, asked: dict[str, Any]) -> dict[str, Any] | None:
        what = asked["what"]
        if what == "overview":
            return self._look()
        if what in ("users", "rooms"):
            find = self._directory.users if what == "users" else self._directory.rooms
            return find(asked["search"], asked["start"], asked["most"])
        if what == "devices":
            return {"rows": self._directory.devices(self._directory.user_of(asked["user"]))}
        if what == "drop":
            return {"found": self._directory.drop(asked["conn_id"])}
        return None  # the other node runs a newer version

    def _look(self) -> dict[str, Any]:
        self._begin_survey()
        node, survey = self._hub.network, self._survey
        cluster = None
        if isinstance(node, ClusterNode):
            cluster = {
                "healthy": node.healthy,
                "broker": node.broker.connected,
                "peers": len(node.bus.peers),
                "backlog": node.bus.backlog,
                "lost": node.bus.lost,
                "lease_age": node.liveness.lease_age,
            }
        blocked, failures = self._journal.entries()
        return {
            **take_brief(self._hub, uptime=self._uptime()),
            "version": installed_version(),
            "unauthenticated": self._hub.sockets.unauthenticated,
            "rooms": len(self._hub.rooms.by_name),
            "queued": survey.queued,
            "cluster": cluster,
            "slow": [self._slow(queued, conn_id) for queued, conn_id in survey.slowest],
            "failures": failures[:SHOWN],
            "blocked": blocked[:SHOWN],
        }

    def _slow(self, queued: int, conn_id: str) -> dict[str, Any]:
        conn = self._hub.connections.get(conn_id)
        return {"user": "" if conn is None else shown(conn.cid), "conn_id": conn_id, "queued": queued}

    def _begin_survey(self) -> None:
        now = monotonic()
        if now - self._surveyed_at >= SURVEY_EVERY:
            self._surveyed_at = now
            self._walk()

    def _walk(self) -> None:
        if not self._survey.step():
            asyncio.get_running_loop().call_later(_PAUSE, self._walk)

    # All nodes.

    async def _nodes(self) -> list[str]:
        node = self._hub.network
        if not isinstance(node, ClusterNode):
            return [node.name]
        try:
            return sorted(await node.broker.nodes() | {node.node})
        except WseError:  # the broker is away
            return [node.node]

    async def _ask(self, node: str, **asked: Any) -> dict[str, Any] | None:
        """The answer of a node; `None` if it does not come in time."""
        here = self._hub.network
        if node == here.name or not isinstance(here, ClusterNode):
            return self._answer(asked)
        return await self._query(here, node, "admin", json.dumps(asked))

    async def _query(self, here: ClusterNode, node: str, what: str, about: str) -> dict[str, Any] | None:
        try:
            answers = await here.rpc.query_nodes([node], what, about, ANSWER_TIMEOUT)
        except WseError:  # the broker is away
            return None
        return answers[0] if answers and isinstance(answers[0], dict) else None

    async def _ask_all(self, **asked: Any) -> dict[str, dict[str, Any] | None]:
        nodes = await self._nodes()
        answers = await asyncio.gather(*(self._ask(node, **asked) for node in nodes))
        return dict(zip(nodes, answers, strict=True))

    # What the page calls.

    async def _show_overview(self, conn: WseConnection, payload: None) -> dict[str, Any]:
        at, overview = self._overview
        if monotonic() - at > FRESH:
            overview = await self._oversee()
            self._overview = monotonic(), overview
        return overview

    async def _oversee(self) -> dict[str, Any]:
        here = self._hub.network
        told = await self._ask_all(what="overview")
        for node, answer in told.items():
            if answer is None and isinstance(here, ClusterNode):  # it may have no page, but knows what `wse top` asks
                told[node] = await self._query(here, node, "stats", "")
        users = sum(answer["users"] for answer in told.values() if answer)
        if isinstance(here, ClusterNode):
            with suppress(WseError):  # the broker is away
                users = await here.online()
        return {
            "here": here.name,
            "users": users,
            "nodes": [{"node": node, **(answer or {"silent": True})} for node, answer in told.items()],
        }

    async def _show_users(self, conn: WseConnection, payload: Wanted) -> dict[str, Any]:
        return await self._page("users", payload)

    async def _show_rooms(self, conn: WseConnection, payload: Wanted) -> dict[str, Any]:
        return await self._page("rooms", payload)

    async def _page(self, what: str, wanted: Wanted) -> dict[str, Any]:
        nodes = await self._nodes()
        at, start = wanted.after or (nodes[0], 0)
        rows: list[dict[str, Any]] = []
        for _ in range(TURNS):
            node = next((node for node in nodes if node >= at), None)
            if node is None:
                return {"rows": rows, "next": None}
            if node != at:  # the one before has ended, or has no more
                at, start = node, 0
            most = PAGE - len(rows)
            answer = await self._ask(node, what=what, search=wanted.search, start=start, most=most)
            rows += [{"node": node, **row} for row in (answer or {"rows": ()})["rows"]]
            following = None if answer is None else answer["next"]
            # After the last position comes the next node: no name of one is between these two.
            at, start = (f"{node} ", 0) if following is None else (node, following)
            if len(rows) >= PAGE:
                break
            await asyncio.sleep(0)
        return {"rows": rows, "next": [at, start] if any(node >= at for node in nodes) else None}

    async def _show_devices(self, conn: WseConnection, payload: User) -> list[dict[str, Any]]:
        self._directory.user_of(payload.user)
        told = await self._ask_all(what="devices", user=payload.user)
        return [{"node": node, **row} for node, answer in told.items() if answer for row in answer["rows"]]

    async def _drop_device(self, conn: WseConnection, payload: Device) -> bool:
        told = await self._ask_all(what="drop", conn_id=payload.conn_id)
        found = any(answer["found"] for answer in told.values() if answer)
        if found:
            _log(conn, "dropped the device", conn_id=payload.conn_id)
        return found

    def _drop_user(self, conn: WseConnection, payload: User) -> None:
        cid = self._addressed(payload.user)
        self._hub.drop_client(cid, CloseReason.BY_SERVER, 1000)
        _log(conn, "dropped the user", cid=cid)

    def _addressed(self, ref: str) -> Hashable:
        cid = self._directory.user_of(ref)
        if cid is None:  # known by a device only, which is gone
            raise WseError(ErrorCode.INVALID_PAYLOAD, {}, "the device by which this user is known has left")
        return cid

    def _send(self, conn: WseConnection, payload: Message) -> None:
        if payload.user is not None:
            user = self._addressed(payload.user)
            self._hub.send(user, payload.type, payload.payload)
            _log(conn, "sent a message to the user", cid=user)
        elif payload.room is not None:
            room = named(payload.room)
            self._hub.rooms.send(room, payload.type, payload.payload, None)
            _log(conn, "sent a message to the room", room=room)
        else:
            self._hub.broadcast(payload.type, payload.payload)
            _log(conn, "sent a message to everyone")


def _log(conn: WseConnection, text: str, **whom: object) -> None:
    extra = {"kind": "operated", "operator": conn.cid, **whom}
    names = "".join(f" {name!r:.200}" if isinstance(name, str) else f" {name!r}" for name in whom.values())
    logger.info("the operator %.200r %s%s", conn.cid, text, names, extra=extra)
