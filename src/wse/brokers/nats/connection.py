"""One connection to NATS, for `wse.brokers.nats`: messages of topics, and the register's buckets."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Any

from nats.errors import BadSubjectError, NoServersError
from nats.js import api
from nats.js.errors import NotFoundError

from wse.brokers.nats.bucket import NO_KEY, Bucket
from wse.brokers.nats.hints import Hints
from wse.brokers.nats.private import WiredClient
from wse.brokers.nats.requests import NO_SUBJECT, Requests
from wse.brokers.nats.wire import Wire
from wse.brokers.reconnecting import ANSWER_TIMEOUT, MAX_BUFFERED, REGISTER_VERSION
from wse.tasks import wake

if TYPE_CHECKING:
    from collections.abc import Callable

PING_INTERVAL = 0.5
"""Seconds for which messages are handed to an engine that does not answer. Whether these arrive is unknown."""

CLOSE_TIMEOUT = 1.0
"""Seconds that closing may take."""

ELECTION_PATIENCE = 0.5
"""Seconds that a new connection waits to hear whether the buckets are still there."""

MAX_WRITTEN = 256 * 1024
"""Bytes of messages in one write, about. Whether those in a socket's buffer arrive is unknown."""

MAX_LINES = 1000
"""Subscriptions in one write."""


class NatsConnection:
    """A client of nats-py that lasts until the first failure. Messages and requests are sent past it, on its socket.

    All that is sent in one turn of the event loop leaves in one write.

    Attributes:
        broken: Done when the connection has failed.
        bucket: The bucket of the register.
        hints: The bucket of hints.
        requests: Requests to JetStream.
        register: The identity of the register, once the lease has been renewed on this connection.
    """

    def __init__(self, prefix: str, received: Callable[[str, bytes], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self.broken: asyncio.Future[Exception] = self._loop.create_future()
        self.register = ""
        self._prefix = prefix
        self._wire = Wire(self._heard, self._send)
        self._client = WiredClient(self._wire)
        self.requests = Requests(self._client, self._write, self._break)
        self.bucket = Bucket(self.requests, f"{prefix}-v{REGISTER_VERSION}")
        self.hints = Hints(self.requests, f"{prefix}-v{REGISTER_VERSION}")
        self._received = received
        self._start = len(prefix) + 1  # where the topic starts in a subject
        self._numbers = count(1)  # of subscriptions
        self._topics: dict[str, int] = {}  # the numbers of the subscriptions
        self._lines: list[bytes] = []  # what waits for the end of the turn only
        self._queue: deque[tuple[str, bytes]] = deque()  # messages, which may wait longer
        self._size = 0  # bytes in the queue
        self._is_scheduled = False
        self._flushes: list[asyncio.Future[None]] = []
        self._pong: asyncio.Future[Any] | None = None  # the answer to the last ping
        self._pinged = 0.0  # when that ping was sent
        self._failure: Exception | None = None
        self._is_connected = False

    async def connect(self, servers: list[str], options: dict[str, Any]) -> None:
        try:
            await self._client.connect(
                servers,
                error_cb=self._failed,
                closed_cb=self._closed,
                connect_timeout=int(ANSWER_TIMEOUT),
                # `ReconnectingBroker` reconnects. One server is tried twice, then the next.
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                **options,
            )
        except NoServersError as exc:
            raise self._failure or exc from None
        self._is_connected = True
        self.requests.open()

    async def has_buckets(self) -> bool:
        """Whether the buckets, which were there before, are still there as far as anybody knows.

        Servers that elect their leaders answer late or with another error. Messages do not depend on leaders.
        """
        question = json.dumps({"last_by_subj": self.bucket.subjects.replace(">", "meta.register")}).encode()
        requests = [
            self.requests.one(f"$JS.API.STREAM.MSG.GET.{bucket.bucket}", question)
            for bucket in (self.bucket, self.hints)
        ]
        with suppress(TimeoutError):
            async with asyncio.timeout(ELECTION_PATIENCE):
                answers = await asyncio.gather(*requests, return_exceptions=True)
                return not any(isinstance(error, NotFoundError) and error.err_code != NO_KEY for error in answers)
        return True

    async def prepare(self, replicas: int) -> None:
        """See to it that the buckets are there."""
        for bucket in (self.bucket, self.hints):
            config = api.StreamConfig(
                name=bucket.bucket,
                subjects=[bucket.subjects],
                max_msgs_per_subject=1,
                storage=api.StorageType.MEMORY,
                num_replicas=replicas,
                discard=api.DiscardPolicy.NEW,
                allow_msg_ttl=True,
                allow_rollup_hdrs=True,
                allow_direct=True,
            )
            await self.requests.make_stream(config)

    @property
    def message_size(self) -> int:
        """Bytes of the largest message that the server takes."""
        return self._client.max_payload

    def publish(self, topic: str, data: bytes) -> None:
        if NO_SUBJECT(topic):
            self._break(BadSubjectError())
            return
        self._queue.append((topic, data))
        self._size += len(data)
        self._schedule()
        if self._size > MAX_BUFFERED:
            self._break(OverflowError(f"more than {MAX_BUFFERED} bytes wait for the engine"))

    def take_unsent(self) -> list[tuple[str, bytes]]:
        unsent = [*self._queue]
        self._queue.clear()
        return unsent

    def subscribe(self, topic: str) -> None:
        if NO_SUBJECT(topic):
            self._break(BadSubjectError())
        elif topic not in self._topics:
            self._topics[topic] = number = next(self._numbers)
            self._write(f"SUB {self._prefix}.{topic} t{number}\r\n".encode())

    def unsubscribe(self, topic: str) -> None:
        number = self._topics.pop(topic, None)
        if number is not None:
            self._write(f"UNSUB t{number}\r\n".encode())

    async def flush(self) -> None:
        if self._queue or self._lines:
            sent = self._loop.create_future()
            self._flushes.append(sent)
            await sent
        await asyncio.shield(self._ping())

    def _ping(self) -> asyncio.Future[Any]:
        """Send a ping; the future is done when the server answers. It must never be cancelled."""
        pong = self._loop.create_future()
        self._client.ping(pong)
        return pong

    async def close(self) -> None:
        self._break(ConnectionError("the connection is closed"))
        with suppress(Exception):  # nats-py raises errors of the socket, or waits for an answer that never comes
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._client.close()
        self._wire.abort()

    # Failures.

    async def _failed(self, exc: Exception) -> None:
        self._failure = exc
        # While the client connects, another server may accept it.
        if self._is_connected:
            self._break(exc)

    async def _closed(self) -> None:
        self._break(self._failure or self._client.last_error or ConnectionError("the server closed the connection"))

    def _break(self, cause: Exception) -> None:
        if not self.broken.done():
            self.broken.set_result(cause)

    # Sending.

    def _write(self, line: bytes) -> None:
        """Send a line of the protocol, which waits for no message, at the end of this turn."""
        self._lines.append(line)
        if len(self._lines) < MAX_LINES:
            self._schedule()
        else:
            self._send()

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._end_turn)

    def _end_turn(self) -> None:
        self._is_scheduled = False
        self._send()

    def _send(self) -> None:
        if self.broken.done() or not self._is_connected:
            return
        queue, lines = self._queue, self._lines
        while True:
            if queue and self._may_send():
                size = 0
                while queue and size < MAX_WRITTEN:
                    topic, data = queue.popleft()
                    lines += f"PUB {self._prefix}.{topic} {len(data)}\r\n".encode(), data, b"\r\n"
                    size += len(data)
                self._size -= size
            if not lines:
                break
            self._wire.write(b"".join(lines))
            lines.clear()
        if not queue:
            for flush in self._flushes:
                wake(flush)
            self._flushes.clear()

    def _may_send(self) -> bool:
        """Whether messages can be handed to the engine now: if it does not answer they might be lost, waiting ones are
        not."""
        if self._wire.is_full:
            return False
        now = self._loop.time()
        if now - self._pinged >= PING_INTERVAL:
            if self._pong is not None and not self._pong.done():
                return False
            self._pong, self._pinged = self._ping(), now
            self._pong.add_done_callback(lambda _: self._send())
        return True

    # Receiving.

    def _heard(self, subject: bytes, data: bytes) -> None:
        self._received(subject[self._start :].decode(), data)
