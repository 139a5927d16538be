"""The broker on Redis 7 or later, or Valkey: pub/sub, and the register in Lua scripts, which run one after the other.

    redis://[[user]:password@]host[:port][/db][?prefix=app]       rediss:// with TLS, as redis-py reads it

or the URL of Sentinels that know the primary; see `wse.brokers.redis.sentinel`.

What the register is made of, under the prefix and `v2:`, the version of the format:

    register   string  a random word, made with the register: an engine that has lost it has another one
    u:<user>   hash    connection id to "node place away"; "#p" the place of the newest device; "#g" the generation and,
                       until that transition is claimed, the node whose outbox it is in. Without a device it is kept for
                       ten minutes, for the numbers
    users      set     users with a device
    o:<node>   hash    the node's outbox: "user generation" to "code reason"
    c:<node>   hash    what it has claimed of that and not yet reported as fired, likewise; for ten minutes
    n:<node>   set     "user conn_id" of the node's devices: a dead node costs what it had, not what there is
    leases     zset    node to the end of its lease, in milliseconds by the engine's clock; 0 when it has resigned
    nodes      hash    node to "epoch state": steps of another epoch are refused
    reaped     zset    dead node to when it is forgotten
    awaited    zset    while the register recovers: node to how long it is waited for

The engine is one primary: its own address, an address that leads to the current primary (a managed service), or
Sentinels that know it. Redis Cluster is not supported: a step of the register changes keys of a user, of all users and
of nodes together, and a cluster would have to keep all of these in one slot and so on one machine.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from secrets import token_hex
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from redis.asyncio import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from wse.brokers.placement import by_place
from wse.brokers.reconnecting import REGISTER_VERSION, ReconnectingBroker, take
from wse.brokers.redis.connection import RedisConnection
from wse.brokers.redis.scripts import (
    CLAIM,
    JOIN,
    LEAVE,
    MOVE,
    NODES,
    REAP,
    REGISTERED,
    RENEW,
    RESIGN,
    SET_AWAY,
    SETTLE,
    Script,
)
from wse.brokers.redis.sentinel import SCHEMES, Sentinels, split
from wse.brokers.redis.store import RedisStore
from wse.core.ports.broker import Away, Device, Joined, Lease, Step, Transition
from wse.errors import ErrorCode, WseError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Iterable, Mapping

MAX_MESSAGE_SIZE = 8 * 1024 * 1024
"""Bytes of the largest message. Engines cut subscribers for which more than 32 MiB wait, or 8 MiB for a minute
(`client-output-buffer-limit pubsub`)."""

MAX_REAPED = 500
"""Devices taken out in one step, so that others are not kept waiting for a node that had very many."""


class RedisBroker(ReconnectingBroker[RedisConnection]):
    """A `wse.core.ports.broker.Broker` on one Redis or Valkey.

    Args:
        url: The address of the engine, or of its Sentinels. Its `prefix`, by default `wse`, starts the names of all
            keys and channels, so that several applications can share an engine.
        sentinel: Options for redis-py's connections to Sentinels, such as `username` and `password`. They have the
            options of TLS from the URL.
        options: Further options for redis-py's connections, such as certificates and a `credential_provider`.

    Attributes:
        store: Keeps messages.
    """

    def __init__(self, url: str, *, sentinel: Mapping[str, Any] | None = None, **options: Any) -> None:
        super().__init__()
        url, ours = take(url)
        watched = split(url) if urlsplit(url).scheme in SCHEMES else None
        self._prefix = ours["prefix"] + ":"
        self._keys = f"{self._prefix}v{REGISTER_VERSION}:"
        self.store = RedisStore(self, self._keys)
        self._epoch = ""
        # RESP2, where a connection with subscriptions answers in the order of the commands, as any other does.
        # `ReconnectingBroker` retries, and limits the time of an answer.
        common: dict[str, Any] = {"protocol": 2, "socket_timeout": None, "retry": Retry(NoBackoff(), 0)}
        self._pool = ConnectionPool.from_url(url if watched is None else watched.url, **common, **options)
        self._sentinels: Sentinels | None = None
        if watched is not None:
            tls = {key: value for key, value in self._pool.connection_kwargs.items() if key.startswith("ssl_")}
            connect = partial(self._pool.connection_class, **common, **tls, **(sentinel or {}))
            self._sentinels = Sentinels(watched, connect)

    def publish(self, topic: str, data: bytes) -> None:
        if len(data) > MAX_MESSAGE_SIZE:
            raise WseError(ErrorCode.LIMIT_EXCEEDED, {"size": len(data), "limit": MAX_MESSAGE_SIZE})
        super().publish(topic, data)

    async def _connect(self) -> RedisConnection:
        self._epoch = ""  # what an earlier connection has sent, and the engine not yet done, is refused from now on
        if self._sentinels is not None:
            host, port = await self._sentinels.primary()
            self._pool.connection_kwargs.update(host=host, port=port)
        make: Any = self._pool.make_connection  # it is not typed
        commands, messages, leases = connections = make(), make(), make()
        try:
            await commands.connect()
            # A replica accepts connections, and then refuses every change of the register.
            await commands.send_command("DEL", self._keys + "nothing")
            await commands.read_response()
            await messages.connect()
            await leases.connect()
        except BaseException:
            for connection in connections:
                await connection.disconnect(nowait=True)
            raise
        return RedisConnection(commands, messages, leases, self._prefix, self.received)

    # The register.

    async def join(self, device: Device, limit: int, *, generation: int = 0, fresh: bool = True) -> Joined:
        reply = await self._step(JOIN, device.user, device.conn_id, device.place, limit, generation, int(fresh))
        after, transitions, place, away, displaced = reply
        return Joined(
            after,
            _transitions(transitions),
            replace(device, place=int(place), away=Away(int(away))),
            tuple(_device(device.user, *fields) for fields in displaced),
        )

    async def leave(self, device: Device, *, generation: int = 0, code: int = 1006, reason: str = "") -> Step:
        after, transitions = await self._step(LEAVE, device.user, device.conn_id, generation, code, reason)
        return Step(after, _transitions(transitions))

    async def move(self, device: Device, origin: str) -> Joined | None:
        reply = await self._step(MOVE, device.user, device.conn_id, origin)
        if reply is None:
            return None
        generation, place, away = reply
        return Joined(int(generation), (), replace(device, place=int(place), away=Away(int(away))))

    async def set_away(self, device: Device) -> None:
        await self._step(SET_AWAY, device.user, device.conn_id, int(device.away))

    async def settle(self, undecided: Transition) -> Step:
        after, transitions = await self._step(SETTLE, undecided.user, undecided.code, undecided.reason)
        return Step(after, _transitions(transitions))

    async def reap(self) -> list[Transition]:
        while True:
            more, transitions = await self._step(REAP, MAX_REAPED)
            if transitions or not more:
                return [*_transitions(transitions)]

    async def pending(self) -> list[Transition]:
        fields: list[bytes] = await self._command("HGETALL", f"{self._keys}o:{self._node}")
        entries = zip(fields[::2], fields[1::2], strict=True)
        found = [_transition(*key.split(b" "), *value.split(b" ", 1)) for key, value in entries]
        return sorted(found, key=lambda transition: transition.generation)

    async def claim(self, transitions: Iterable[Transition]) -> list[Transition]:
        by_entry = {_entry(transition): transition for transition in transitions}
        return [by_entry[entry.decode()] for entry in await self._step(CLAIM, *by_entry)]

    def fired(self, transitions: Iterable[Transition]) -> None:
        entries = [_entry(transition) for transition in transitions]
        if entries and self._connection is not None:
            self._connection.send("HDEL", f"{self._keys}c:{self._node}", *entries)

    async def mine(self) -> AsyncIterator[list[Device]]:
        async for page in self._scan("n:" + self._node):
            names = [entry.decode().split() for entry in page]
            yield [Device(user, conn_id, self._node) for user, conn_id in names]

    async def devices(self, user: str) -> list[Device]:
        fields: list[bytes] = await self._command("HGETALL", f"{self._keys}u:{user}")
        values = zip(fields[::2], fields[1::2], strict=True)
        return by_place(_device(user, key, *value.split()) for key, value in values if not key.startswith(b"#"))

    async def online(self) -> int:
        count: int = await self._command("SCARD", self._keys + "users")
        return count

    async def users(self) -> AsyncIterator[str]:
        seen: set[bytes] = set()  # an engine that resizes its table repeats some users
        async for page in self._scan("users"):
            for user in set(page) - seen:
                seen.add(user)
                yield user.decode()

    async def _scan(self, key: str) -> AsyncIterator[list[bytes]]:
        cursor = b"0"
        while True:
            cursor, page = await self._command("SSCAN", self._keys + key, cursor, "COUNT", 1000)
            yield page
            if cursor == b"0":
                return

    # Leases.

    async def renew(self, ttl: float, *, register: str = "", peers: Collection[str] = ()) -> Lease:
        args: tuple[str | int, ...] = (token_hex(8), int(ttl * 1000), register, token_hex(8), *peers)
        reply = await self.ask(
            lambda connection: connection.run_apart(RENEW, self._keys, self._node, self._epoch, *args), urgent=True
        )
        identity, epoch, state, recovering, pending = reply
        self._epoch = epoch.decode()
        return Lease(identity.decode(), state.decode(), bool(recovering), bool(pending))

    async def registered(self) -> None:
        await self._step(REGISTERED)

    async def resign(self) -> None:
        await self._run(RESIGN)

    async def nodes(self) -> frozenset[str]:
        return frozenset(node.decode() for node in await self._run(NODES))

    async def _step(self, script: Script, *args: Any) -> Any:
        if not self._epoch and self._ready:
            raise WseError(ErrorCode.BROKER_UNAVAILABLE) from ConnectionError("the node has no lease yet")
        return await self._run(script, *args)

    async def _run(self, script: Script, *args: Any) -> Any:
        return await self.ask(lambda connection: connection.run(script, self._keys, self._node, self._epoch, *args))

    async def _command(self, *args: Any) -> Any:
        return await self.ask(lambda connection: connection.command(*args))


def _device(user: str, conn_id: bytes, node: bytes, place: bytes, away: bytes) -> Device:
    return Device(user, conn_id.decode(), node.decode(), int(place), Away(int(away)))


def _entry(transition: Transition) -> str:
    return f"{transition.user} {transition.generation}"


def _transitions(replies: list[list[Any]]) -> tuple[Transition, ...]:
    return tuple(_transition(*reply) for reply in replies)


def _transition(user: bytes, generation: bytes | int, code: bytes, reason: bytes) -> Transition:
    return Transition(user.decode(), int(generation), int(code), reason.decode())
