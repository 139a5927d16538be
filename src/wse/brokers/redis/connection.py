"""One connection to Redis or Valkey."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, cast

from wse.brokers.reconnecting import MAX_BUFFERED

try:
    import hiredis
    from redis.exceptions import NoScriptError, ReadOnlyError, ResponseError
except ImportError as exc:  # pragma: no cover - the tests have the extra
    raise ImportError('wse.brokers.redis needs the redis library with hiredis: pip install "wse[redis]"') from exc

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from redis.asyncio.connection import AbstractConnection

    from wse.brokers.redis.scripts import Script

pack = cast("Callable[[tuple[str | bytes | int, ...]], bytes]", hiredis.pack_command)  # its stub says tuples of one

MAX_BATCH = 1000
"""Commands in one write, and topics in one command."""

MAX_BATCH_BYTES = 1024 * 1024
"""Bytes in one write, about. Whether the last write arrived is unknown when the engine does not answer."""


class RedisConnection:
    """Three connections: one for commands, one that receives messages, one for leases, which wait for nothing else.

    Commands wait for the next turn of the event loop, or for the answers to the commands before, and then leave in one
    write.
    """

    def __init__(
        self,
        commands: AbstractConnection,
        messages: AbstractConnection,
        leases: AbstractConnection,
        prefix: str,
        received: Callable[[str, bytes], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.broken: asyncio.Future[Exception] = self._loop.create_future()
        self._commands = commands
        self._messages = messages
        self._leases = leases
        self._lease_lock = asyncio.Lock()
        self._prefix = prefix
        self._received = received
        self._queue: deque[tuple[tuple[Any, ...], asyncio.Future[Any] | None]] = deque()  # None for messages only
        self._size = 0  # bytes of the messages in the queue
        self._queued = asyncio.Event()
        self._topics: dict[str, bool] = {}  # subscriptions to be changed
        self._pings: list[asyncio.Future[Any]] = []  # pings to be sent
        self._changed = asyncio.Event()
        self._pongs: deque[asyncio.Future[Any]] = deque()
        steps = (self._send_commands(), self._send_changes(), self._receive())
        self._tasks = [self._loop.create_task(self._run_until_broken(step)) for step in steps]

    def publish(self, topic: str, data: bytes) -> None:
        self._queue.append((("PUBLISH", self._prefix + topic, data), None))
        self._size += len(data)
        self._queued.set()
        if self._size > MAX_BUFFERED:
            self._break(OverflowError(f"more than {MAX_BUFFERED} bytes wait for the engine"))

    def take_unsent(self) -> list[tuple[str, bytes]]:
        start = len(self._prefix)
        unsent = [(args[1][start:], args[2]) for args, _ in self._queue if args[0] == "PUBLISH"]
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

    def send(self, *args: str | bytes | int) -> None:
        """Send a command whose answer is of no interest."""
        self._queue.append((args, None))
        self._queued.set()

    async def run_apart(self, script: Script, *args: str | int) -> Any:
        """Run a script that does not wait for other commands."""
        async with self._lease_lock:
            for command in (("EVALSHA", script.sha, 0, *args), ("EVAL", script.text, 0, *args)):
                try:
                    await self._leases.send_packed_command([pack(command)], check_health=False)
                    return await self._leases.read_response()
                except NoScriptError:
                    continue
                except ReadOnlyError as exc:  # a primary no more
                    self._break(exc)
                    raise
                except asyncio.CancelledError:  # the answer to come would be taken for that of the next command
                    self._break(ConnectionError("a renewal was not answered in time"))
                    raise
        raise AssertionError("the engine has just been given the script")

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
        await self._leases.disconnect(nowait=True)
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
                count = min(len(queue), MAX_BATCH)
                if self._size > MAX_BATCH_BYTES:
                    count = min(count, len(queue) * MAX_BATCH_BYTES // self._size + 1)
                batch = [queue.popleft() for _ in range(count)]
                self._size -= sum([len(args[2]) for args, _ in batch if args[0] == "PUBLISH"])
                packed = b"".join([pack(args) for args, _ in batch])
                await connection.send_packed_command(packed, check_health=False)
                for _, answer in batch:
                    try:
                        reply = await connection.read_response()
                    except ResponseError as exc:
                        # The engine refuses a message, for which no caller waits; or it has become a replica.
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
        for start in range(0, len(topics), MAX_BATCH):
            channels = [self._prefix + topic for topic in topics[start : start + MAX_BATCH]]
            yield pack((command, *channels))

    async def _receive(self) -> None:
        read, start = self._messages.read_response, len(self._prefix)
        while True:
            reply = await read()
            # The answer to a ping is b"PONG" without a subscription, and [b"pong", b""] with one.
            match reply:
                case [b"message", channel, data]:
                    self._received(channel[start:].decode(), data)
                case [b"subscribe" | b"unsubscribe", *_]:
                    pass
                case _:
                    pong = self._pongs.popleft()
                    if not pong.done():
                        pong.set_result(None)
