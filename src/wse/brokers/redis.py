"""The broker on Redis 7 or later, or Valkey: pub/sub, and the register in Lua scripts, which run one after the other.

    redis://[[user]:password@]host[:port][/db][?prefix=app]       rediss:// with TLS, as redis-py reads it

What the register is made of, under the prefix:

    u:<user>     hash     connection id to "node since first"; whether it was the user's first when it joined
    users        set      users with a device
    n:<node>     set      "user conn_id" of the node's devices: a dead node costs what it had, not what there is
    leases       zset     node to the end of its lease, in milliseconds by the engine's clock; 0 when it has resigned
    epochs       hash     node to a word for the unbroken series of its renewals, by which it knows a new one
    l:<conn_id>  string   the device has left and was its user's last: for `leave` that is repeated, for a minute

The engine is one primary, or an address that leads to the primary of the day (Sentinel with a proxy, or a managed
service). Redis Cluster is not supported: a step of the register touches the keys of a user, of all users and of nodes
together, which a cluster would have to keep in one slot, so on one of its machines, anyway.
"""

from __future__ import annotations

import asyncio
from collections import deque
from secrets import token_hex
from typing import TYPE_CHECKING, Any, cast

from wse.brokers.kept import BUFFER, KeptBroker, take
from wse.brokers.lua import JOIN, LEAVE, NODES, REAP, RENEW, RESIGN, Script
from wse.brokers.register import by_age
from wse.core.ports.broker import Device, Gone, Joined
from wse.errors import ErrorCode, WseError

try:
    import hiredis
    from redis.asyncio import ConnectionPool
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.exceptions import NoScriptError, ReadOnlyError, ResponseError
except ImportError as exc:  # pragma: no cover - the tests have the extra
    raise ImportError("wse.brokers.redis needs the redis library with hiredis: pip install wse[redis]") from exc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterable

    from redis.asyncio.connection import AbstractConnection

pack = cast("Callable[[tuple[str | bytes | int, ...]], bytes]", hiredis.pack_command)  # whose stub knows tuples of one

MESSAGE_SIZE = 8 * 1024 * 1024
"""Bytes of the largest message. Engines cut subscribers that owe them more than 32 MiB, or 8 MiB for a minute
(`client-output-buffer-limit pubsub`)."""

BATCH = 1000
"""Commands that leave in one write, and topics in one command."""

BATCH_SIZE = 1024 * 1024
"""Bytes that leave in one write, about. Nobody knows what became of the last write when the engine does not answer."""

REMEMBERED = 60
"""Seconds for which the engine remembers who was a user's last device."""

REAPED = 500
"""Devices taken out in one step, so that others are not kept waiting for a node that had very many."""


class RedisBroker(KeptBroker["RedisConnection"]):
    """A `wse.core.ports.broker.Broker` on one Redis or Valkey.

    Args:
        url: Where the engine is. Its `prefix`, `wse` by default, starts the names of all keys and channels, so that
            several applications can share an engine.
        options: For redis-py's connections, beside what the URL says: certificates, a `credential_provider`.
    """

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__()
        url, ours = take(url)
        self._prefix = ours["prefix"] + ":"
        self._epoch = b""
        # RESP2, where a connection with subscriptions answers in the order of what was sent, as any other does. The
        # keeper is who retries, and who knows how long an answer may take.
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
            # A replica would let us in, and then refuse all that changes the register.
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
        seen: set[bytes] = set()  # an engine that resizes its table tells some users again
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
                return gone  # nobody else is told of these; the others are left for the next time
            gone += [Gone(_device(user.decode(), *fields), bool(last)) for last, user, *fields in reaped]
            if not more:
                return gone

    async def _run(self, script: Script, *args: Any) -> Any:
        return await self.ask(lambda connection: connection.run(script, self._prefix, *args))

    async def _command(self, *args: Any) -> Any:
        return await self.ask(lambda connection: connection.command(*args))


def _device(user: str, conn_id: bytes, node: bytes, since: bytes) -> Device:
    return Device(user, conn_id.decode(), node.decode(), float(since))


class RedisConnection:
    """Two connections: one for commands, one that receives messages.

    What is to be sent on either waits for the next turn of the event loop, or for the answers to what was sent before,
    and then leaves in one write.
    """

    def __init__(
        self,
        commands: AbstractConnection,
        messages: AbstractConnection,
        prefix: str,
        received: Callable[[str, bytes], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.broken: asyncio.Future[Exception] = self._loop.create_future()
        self._commands = commands
        self._messages = messages
        self._prefix = prefix
        self._received = received
        self._queue: deque[tuple[tuple[Any, ...], asyncio.Future[Any] | None]] = deque()  # None with messages alone
        self._size = 0  # bytes of the messages in the queue
        self._queued = asyncio.Event()
        self._topics: dict[str, bool] = {}  # subscriptions that are to change
        self._pings: list[asyncio.Future[Any]] = []  # that are to be sent
        self._changed = asyncio.Event()
        self._pongs: deque[asyncio.Future[Any]] = deque()
        steps = (self._send_commands(), self._send_changes(), self._receive())
        self._tasks = [self._loop.create_task(self._run_until_broken(step)) for step in steps]

    def publish(self, topic: str, data: bytes) -> None:
        self._queue.append((("PUBLISH", self._prefix + topic, data), None))
        self._size += len(data)
        self._queued.set()
        if self._size > BUFFER:
            self._break(OverflowError(f"more than {BUFFER} bytes wait for the engine"))

    def take_unsent(self) -> list[tuple[str, bytes]]:
        start = len(self._prefix)
        unsent = [(args[1][start:], args[2]) for args, answer in self._queue if answer is None]
        self._queue.clear()
        return unsent

    def subscribe(self, topic: str) -> None:
        self._topics[topic] = True
        self._changed.set()

    def unsubscribe(self, topic: str) -> None:
        self._topics[topic] = False
        self._changed.set()

    async def flush(self) -> None:
        pong = self._loop.create_future()
        self._pings.append(pong)
        self._changed.set()
        await asyncio.gather(self.command("PING"), pong)

    async def command(self, *args: str | bytes | int) -> Any:
        answer = self._loop.create_future()
        self._queue.append((args, answer))
        self._queued.set()
        return await answer

    async def run(self, script: Script, *args: str | int) -> Any:
        try:
            return await self.command("EVALSHA", script.sha, 0, *args)
        except NoScriptError:
            return await self.command("EVAL", script.text, 0, *args)

    async def close(self) -> None:
        self._break(ConnectionError("the connection is closed"))
        for task in self._tasks:
            task.cancel()
        await self._commands.disconnect(nowait=True)
        await self._messages.disconnect(nowait=True)
        await asyncio.wait(self._tasks)

    def _break(self, cause: Exception) -> None:
        if not self.broken.done():
            self.broken.set_result(cause)

    async def _run_until_broken(self, steps: Coroutine[Any, Any, None]) -> None:
        try:
            await steps
        except Exception as exc:
            self._break(exc)

    async def _send_commands(self) -> None:
        connection, queue = self._commands, self._queue
        while True:
            await self._queued.wait()
            self._queued.clear()
            while queue and not self.broken.done():
                count = min(len(queue), BATCH)
                if self._size > BATCH_SIZE:
                    count = min(count, len(queue) * BATCH_SIZE // self._size + 1)
                batch = [queue.popleft() for _ in range(count)]
                self._size -= sum([len(args[2]) for args, answer in batch if answer is None])
                packed = b"".join([pack(args) for args, _ in batch])
                await connection.send_packed_command(packed, check_health=False)
                for _, answer in batch:
                    try:
                        reply = await connection.read_response()
                    except ResponseError as exc:
                        # A message that the engine refuses, which nobody waits to hear; or a primary no more.
                        if answer is None or isinstance(exc, ReadOnlyError):
                            raise
                        if not answer.done():
                            answer.set_exception(exc)
                    else:
                        if answer is not None and not answer.done():
                            answer.set_result(reply)

    async def _send_changes(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            changes, self._topics = self._topics, {}
            pings, self._pings = self._pings, []
            packed = [
                *self._pack("SUBSCRIBE", [topic for topic, wanted in changes.items() if wanted]),
                *self._pack("UNSUBSCRIBE", [topic for topic, wanted in changes.items() if not wanted]),
                *[pack(("PING",)) for _ in pings],
            ]
            self._pongs.extend(pings)
            await self._messages.send_packed_command(packed, check_health=False)

    def _pack(self, command: str, topics: list[str]) -> Iterable[bytes]:
        for start in range(0, len(topics), BATCH):
            channels = [self._prefix + topic for topic in topics[start : start + BATCH]]
            yield pack((command, *channels))

    async def _receive(self) -> None:
        read, start = self._messages.read_response, len(self._prefix)
        while True:
            reply = await read()
            # Without a subscription a ping is answered with b"PONG", else with [b"pong", b""].
            match reply:
                case [b"message", channel, data]:
                    self._received(channel[start:].decode(), data)
                case [b"subscribe" | b"unsubscribe", *_]:
                    pass
                case _:
                    pong = self._pongs.popleft()
                    if not pong.done():
                        pong.set_result(None)
