"""One connection to Redis or Valkey."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, cast

import hiredis
from redis.exceptions import NoScriptError, ReadOnlyError, ResponseError

from wse.brokers.reconnecting import MAX_BUFFERED
from wse.brokers.redis.wire import Wire
from wse.tasks import wake

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

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
        self._commands = Wire(commands, self._replied, self._break)
        self._messages = Wire(messages, self._heard, self._break)
        self._leases = Wire(leases, self._renewed, self._break)
        self._lease_lock = asyncio.Lock()
        self._renewal: asyncio.Future[Any] = self._loop.create_future()  # the answer to the last one
        self._prefix = prefix
        self._start = len(prefix)  # where the topic starts in a channel
        self._received = received
        self._queue: deque[tuple[tuple[Any, ...], asyncio.Future[Any] | None]] = deque()  # None for messages only
        self._size = 0  # bytes of the messages in the queue
        self._unanswered: deque[asyncio.Future[Any] | None] = deque()  # commands that were sent
        self._topics: dict[str, bool] = {}  # subscriptions to be changed
        self._pings: list[asyncio.Future[None]] = []  # pings to be sent to see that they are in force
        self._pongs: deque[asyncio.Future[None]] = deque()
        self._is_scheduled = False

    def publish(self, topic: str, data: bytes) -> None:
        self._size += len(data)
        self._put(("PUBLISH", self._prefix + topic, data), None)
        if self._size > MAX_BUFFERED:
            self._break(OverflowError(f"more than {MAX_BUFFERED} bytes wait for the engine"))

    def take_unsent(self) -> list[tuple[str, bytes]]:
        unsent = [(args[1][self._start :], args[2]) for args, _ in self._queue if args[0] == "PUBLISH"]
        self._queue.clear()
        return unsent

    def subscribe(self, topic: str) -> None:
        self._topics[topic] = True
        self._schedule()

    def unsubscribe(self, topic: str) -> None:
        self._topics[topic] = False
        self._schedule()

    async def flush(self) -> None:
        pong = self._loop.create_future()
        self._pings.append(pong)
        await self.command("PING")
        await pong

    async def command(self, *args: str | bytes | int) -> Any:
        answer = self._loop.create_future()
        self._put(args, answer)
        return await answer

    def send(self, *args: str | bytes | int) -> None:
        """Send a command whose answer is of no interest."""
        self._put(args, None)

    async def run_apart(self, script: Script, *args: str | int) -> Any:
        """Run a script that does not wait for other commands."""
        async with self._lease_lock:
            for command in (("EVALSHA", script.sha, 0, *args), ("EVAL", script.text, 0, *args)):
                self._renewal = self._loop.create_future()
                self._leases.write(pack(command))
                try:
                    return await self._renewal
                except NoScriptError:
                    continue
                except ReadOnlyError as exc:  # a primary no more
                    self._break(exc)
                    raise
                except asyncio.CancelledError:  # the answer to come would be taken for that of the next command
                    self._break(ConnectionError("a renewal was not answered in time"))
                    raise
        raise AssertionError("the engine has just been given the script")

    async def run(self, script: Script, *args: str | bytes | int) -> Any:
        try:
            return await self.command("EVALSHA", script.sha, 0, *args)
        except NoScriptError:
            return await self.command("EVAL", script.text, 0, *args)

    async def close(self) -> None:
        self._break(ConnectionError("the connection is closed"))
        for wire in (self._commands, self._messages, self._leases):
            await wire.close()

    def _break(self, cause: Exception) -> None:
        if not self.broken.done():
            self.broken.set_result(cause)

    # Sending.

    def _put(self, command: tuple[Any, ...], answer: asyncio.Future[Any] | None) -> None:
        self._queue.append((command, answer))
        self._schedule()

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        self._is_scheduled = False
        if self.broken.done():
            return
        if self._topics or self._pings:
            self._send_changes()
        queue = self._queue
        if queue and not self._unanswered:
            count = min(len(queue), MAX_BATCH)
            if self._size > MAX_BATCH_BYTES:
                count = min(count, len(queue) * MAX_BATCH_BYTES // self._size + 1)
            batch = [queue.popleft() for _ in range(count)]
            self._size -= sum([len(args[2]) for args, _ in batch if args[0] == "PUBLISH"])
            self._unanswered.extend([answer for _, answer in batch])
            self._commands.write(b"".join([pack(args) for args, _ in batch]))

    def _send_changes(self) -> None:
        changes, self._topics = self._topics, {}
        pings, self._pings = self._pings, []
        packed = [
            *self._pack("SUBSCRIBE", [topic for topic, wanted in changes.items() if wanted]),
            *self._pack("UNSUBSCRIBE", [topic for topic, wanted in changes.items() if not wanted]),
            *[pack(("PING",)) for _ in pings],
        ]
        self._pongs.extend(pings)
        self._messages.write(b"".join(packed))

    def _pack(self, command: str, topics: list[str]) -> Iterable[bytes]:
        for start in range(0, len(topics), MAX_BATCH):
            channels = [self._prefix + topic for topic in topics[start : start + MAX_BATCH]]
            yield pack((command, *channels))

    # Receiving.

    def _replied(self, reply: Any) -> None:
        answer = self._unanswered.popleft()
        if isinstance(reply, ResponseError):
            # The engine refuses a message, for which no caller waits; or it has become a replica.
            if answer is None or isinstance(reply, ReadOnlyError):
                self._break(reply)
            elif not answer.done():
                answer.set_exception(reply)
        elif answer is not None and not answer.done():
            answer.set_result(reply)
        if self._queue and not self._unanswered:
            self._schedule()

    def _renewed(self, reply: Any) -> None:
        if not self._renewal.done():
            if isinstance(reply, ResponseError):
                self._renewal.set_exception(reply)
            else:
                self._renewal.set_result(reply)

    def _heard(self, reply: Any) -> None:
        # The answer to a ping is b"PONG" without a subscription, and [b"pong", b""] with one.
        match reply:
            case [b"message", channel, data]:
                self._received(channel[self._start :].decode(), data)
            case [b"subscribe" | b"unsubscribe", *_]:
                pass
            case ResponseError():
                self._break(reply)
            case _:
                pong = self._pongs.popleft()
                wake(pong)
