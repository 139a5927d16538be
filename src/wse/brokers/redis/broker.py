"""The broker on Redis 7 or later, or Valkey: pub/sub, and the register in Lua scripts, which run one after the other.

    redis://[[user]:password@]host[:port][/db][?prefix=app]       rediss:// with TLS, as redis-py reads it

The keys of the register, after the prefix:

    u:<user>     hash     connection id to "node since first"; `first` is whether the device was its user's first
    users        set      users with a device
    n:<node>     set      "user conn_id" of the node's devices, so that reaping a node costs only what it had
    leases       zset     node to the end of its lease, in milliseconds by the engine's clock; 0 when it has resigned
    epochs       hash     node to a random word for the unbroken series of its renewals, which shows it a new series
    l:<conn_id>  string   the device has left and was its user's last: for a repeated `leave`, kept for a minute

The engine is one primary, or an address that leads to the current primary (Sentinel with a proxy, or a managed
service). Redis Cluster is not supported: a step of the register changes keys of a user, of all users and of nodes
together, and a cluster would have to keep all of these in one slot and so on one machine.
"""

from __future__ import annotations

from secrets import token_hex
from typing import TYPE_CHECKING, Any

from wse.brokers.placement import by_age
from wse.brokers.reconnecting import ReconnectingBroker, take
from wse.brokers.redis.connection import RedisConnection
from wse.brokers.redis.scripts import JOIN, LEAVE, NODES, REAP, RENEW, RESIGN, Script
from wse.core.ports.broker import Device, Gone, Joined
from wse.errors import ErrorCode, WseError

try:
    from redis.asyncio import ConnectionPool
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
except ImportError as exc:  # pragma: no cover - the tests have the extra
    raise ImportError("wse.brokers.redis needs the redis library with hiredis: pip install wse[redis]") from exc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

MESSAGE_SIZE = 8 * 1024 * 1024
"""Bytes of the largest message. Engines disconnect subscribers for which more than 32 MiB wait, or 8 MiB for a minute
(`client-output-buffer-limit pubsub`)."""

REMEMBERED = 60
"""Seconds for which the engine remembers that a device was its user's last."""

REAPED = 500
"""Devices removed in one step, so that other clients need not wait for a node that had very many."""


class RedisBroker(ReconnectingBroker[RedisConnection]):
    """A `wse.core.ports.broker.Broker` on one Redis or Valkey.

    Args:
        url: The address of the engine. Its `prefix`, by default `wse`, starts the names of all keys and channels, so
            that several applications can share an engine.
        options: Further options for redis-py's connections, such as certificates and a `credential_provider`.
    """

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__()
        url, ours = take(url)
        self._prefix = ours["prefix"] + ":"
        self._epoch = b""
        # RESP2, where a connection with subscriptions answers in the order of the commands, as any other does.
        # `ReconnectingBroker` retries, and limits the time of an answer.
        self._pool = ConnectionPool.from_url(
            url,
            protocol=2,
            socket_timeout=None,
            retry=Retry(NoBackoff(), 0),
            **options,
        )

    def publish(self, topic: str, data: bytes) -> None:
        if len(data) > MESSAGE_SIZE:
            raise WseError(ErrorCode.LIMIT_EXCEEDED, {"size": len(data), "limit": MESSAGE_SIZE})
        super().publish(topic, data)

    async def _connect(self) -> RedisConnection:
        make: Any = self._pool.make_connection  # it is not typed
        commands, messages = make(), make()
        try:
            await commands.connect()
            # A replica accepts connections, and then refuses every change of the register.
            await commands.send_command("DEL", self._prefix + "nothing")
            await commands.read_response()
            await messages.connect()
        except BaseException:
            await commands.disconnect(nowait=True)
            await messages.disconnect(nowait=True)
            raise
        return RedisConnection(commands, messages, self._prefix, self.received)

    # The register.

    async def join(self, device: Device, limit: int, *, fresh: bool = True) -> Joined:
        self._unanswered.pop(device.conn_id, None)
        since, first, again, *displaced = await self._run(
            JOIN, device.user, device.conn_id, device.node, repr(device.since), limit, int(fresh)
        )
        of_user = [_device(device.user, *fields) for fields in displaced]
        registered = Device(device.user, device.conn_id, device.node, float(since))
        return Joined(registered, bool(first), tuple(of_user), bool(again))

    async def leave(self, device: Device) -> bool:
        repeated = int(device.conn_id in self._unanswered)
        with self._remember(device) as asked:

            async def step(connection: RedisConnection) -> Any:
                asked()
                return await connection.run(LEAVE, self._prefix, device.user, device.conn_id, repeated, REMEMBERED)

            return bool(await self.ask(step))

    async def devices(self, user: str) -> list[Device]:
        fields: list[bytes] = await self._command("HGETALL", f"{self._prefix}u:{user}")
        values = zip(fields[::2], fields[1::2], strict=True)
        return by_age(_device(user, conn_id, *value.split()[:2]) for conn_id, value in values)

    async def online(self) -> int:
        count: int = await self._command("SCARD", self._prefix + "users")
        return count

    async def users(self) -> AsyncIterator[str]:
        cursor = b"0"
        seen: set[bytes] = set()  # an engine that resizes its table returns some users again
        while True:
            cursor, users = await self._command("SSCAN", self._prefix + "users", cursor, "COUNT", 1000)
            for user in set(users) - seen:
                seen.add(user)
                yield user.decode()
            if cursor == b"0":
                return

    # Leases.

    async def renew(self, ttl: float) -> bool:
        epoch: bytes = await self._run(RENEW, self._node, int(ttl * 1000), token_hex(8))
        is_kept = epoch == self._epoch
        self._epoch = epoch
        return is_kept

    async def resign(self) -> None:
        await self._run(RESIGN, self._node)

    async def nodes(self) -> frozenset[str]:
        return frozenset(node.decode() for node in await self._run(NODES))

    async def reap(self) -> list[Gone]:
        gone: list[Gone] = []
        while True:
            try:
                more, *reaped = await self._run(REAP, REAPED)
            except WseError:
                if not gone:
                    raise
                return gone  # only this node knows of the removed devices; the others wait for the next time
            gone += [Gone(_device(user.decode(), *fields), bool(last)) for last, user, *fields in reaped]
            if not more:
                return gone

    async def _run(self, script: Script, *args: Any) -> Any:
        return await self.ask(lambda connection: connection.run(script, self._prefix, *args))

    async def _command(self, *args: Any) -> Any:
        return await self.ask(lambda connection: connection.command(*args))


def _device(user: str, conn_id: bytes, node: bytes, since: bytes) -> Device:
    return Device(user, conn_id.decode(), node.decode(), float(since))
