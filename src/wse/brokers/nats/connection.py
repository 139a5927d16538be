"""One connection to NATS, for `wse.brokers.nats`: subjects, and a bucket of keys with revisions."""

from __future__ import annotations

import asyncio
import json
import re
from base64 import b64decode
from collections import deque
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import TYPE_CHECKING, Any

from nats.aio.msg import Msg
from nats.errors import BadSubjectError, NoRespondersError, NoServersError
from nats.js import api
from nats.js.errors import APIError, BadRequestError, NoStreamResponseError, NotFoundError

from wse.brokers.nats.private import WiredClient
from wse.brokers.nats.wire import Message, Wire
from wse.brokers.reconnecting import ANSWER_TIMEOUT, MAX_BUFFERED, REGISTER_VERSION
from wse.tasks import wake

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection

PING_INTERVAL = 0.5
"""Seconds for which messages are handed to an engine that does not answer. Whether these arrive is unknown."""

CLOSE_TIMEOUT = 1.0
"""Seconds that closing may take."""

# Error codes of JetStream that nats-py does not distinguish (errors.json of the server).
WRONG_REVISION = (10071, 10164, 10043)  # the last one when the key is to be deleted
NO_KEY = 10037
OTHER_CONFIGURATION = 10058
GONE = (*WRONG_REVISION, NO_KEY)

EXPIRES = "Nats-TTL: 1s"
"""The header of a message that the server takes away after a second."""

NO_RESPONDERS = b"NATS/1.0 503"
"""The start of an answer that the server gives when nobody else answers."""

NO_SUBJECT = re.compile(r"\s").search
"""Finds what would end a subject, and could be taken for a command."""

ANSWERS = b"a"
"""The id of the subscription to answers."""

MAX_WRITTEN = 256 * 1024
"""Bytes of messages in one write, about. Whether those in a socket's buffer arrive is unknown."""

MAX_LINES = 1000
"""Subscriptions in one write."""

ELECTION_PATIENCE = 0.5
"""Seconds that a new connection waits to hear whether the buckets are still there."""

PAGE_SIZE = 1000
"""Keys that the server sends at once."""

PAGE_TIMEOUT = 1.0
"""Seconds that the server waits when some keys of a page have been removed meanwhile."""


class OutdatedError(Exception):
    """The key's revision is not the expected one."""


class NatsConnection:
    """A client of nats-py that lasts until the first failure. Messages and requests are sent past it, on its socket.

    All that is sent in one turn of the event loop leaves in one write.
    """

    def __init__(self, prefix: str, received: Callable[[str, bytes], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self.broken: asyncio.Future[Exception] = self._loop.create_future()
        self.register = ""  # the identity of the register, once the lease has been renewed on this connection
        self._prefix = prefix
        self._name = f"{prefix}-v{REGISTER_VERSION}"
        self._bucket = f"KV_{self._name}"
        self._hints = f"KV_{self._name}-hints"
        self._wire = Wire(self._heard, self._send)
        self._client = WiredClient(self._wire)
        self._stream = self._client.jetstream(timeout=ANSWER_TIMEOUT)
        self._received = received
        self._start = len(prefix) + 1  # where the topic starts in a subject
        self._numbers = count(1)  # of subscriptions and requests
        self._topics: dict[str, int] = {}  # the numbers of the subscriptions
        self._lines: list[bytes] = []  # what waits for the end of the turn only
        self._queue: deque[tuple[str, bytes]] = deque()  # messages, which may wait longer
        self._size = 0  # bytes in the queue
        self._is_scheduled = False
        self._flushes: list[asyncio.Future[None]] = []
        self._inbox = ""  # where answers to requests go
        self._requests: dict[str, asyncio.Future[Message]] = {}
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
        self._inbox = self._client.new_inbox()
        self._wire.listeners[ANSWERS] = self._answered
        self._write(f"SUB {self._inbox}.* {ANSWERS.decode()}\r\n".encode())

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

    async def _request(self, subject: str, data: bytes, header: str = "") -> dict[str, Any]:
        """The answer to a request, which is JSON.

        The library's own requests take three times as long.

        Raises:
            BadSubjectError: The subject is none.
            NoRespondersError: Nobody answers such requests.
            APIError: The answer is an error.
        """
        if NO_SUBJECT(subject):
            raise BadSubjectError
        number = str(next(self._numbers))
        self._requests[number] = request = self._loop.create_future()
        self._write(_pack(subject, data, f"{self._inbox}.{number}", header))
        try:
            answer = await request
        finally:
            del self._requests[number]
        if answer.header.startswith(NO_RESPONDERS):
            raise NoRespondersError
        return _checked(json.loads(answer.data))

    def _answered(self, answer: Message) -> None:
        request = self._requests.get(answer.subject.rpartition(".")[2])
        if request is not None and not request.done():
            request.set_result(answer)

    # The bucket.

    async def has_buckets(self) -> bool:
        """Whether the buckets, which were there before, are still there as far as anybody knows.

        Servers that elect their leaders answer late or with another error. Messages do not depend on leaders.
        """
        question = json.dumps({"last_by_subj": self._key("meta.register")}).encode()
        requests = [
            self._request(f"$JS.API.STREAM.MSG.GET.{bucket}", question) for bucket in (self._bucket, self._hints)
        ]
        with suppress(TimeoutError):
            async with asyncio.timeout(ELECTION_PATIENCE):
                answers = await asyncio.gather(*requests, return_exceptions=True)
                return not any(isinstance(error, NotFoundError) and error.err_code != NO_KEY for error in answers)
        return True

    async def prepare(self, replicas: int) -> None:
        """See to it that the buckets are there."""
        for name, subjects in ((self._bucket, self._key(">")), (self._hints, self._hint_key(">"))):
            config = api.StreamConfig(
                name=name,
                subjects=[subjects],
                max_msgs_per_subject=1,
                storage=api.StorageType.MEMORY,
                num_replicas=replicas,
                discard=api.DiscardPolicy.NEW,
                allow_msg_ttl=True,
                allow_rollup_hdrs=True,
                # With direct access any replica answers, perhaps with a value that is out of date.
                allow_direct=False,
            )
            try:
                await self._stream.add_stream(config)
            except BadRequestError as exc:
                if exc.err_code != OTHER_CONFIGURATION:
                    raise
                await self._stream.update_stream(config)

    # Hints: what each node holds of each user.

    def hint(self, node: str, user: str, conn_ids: Collection[str], revision: int | None = None) -> None:
        """Note the connections that a node holds of a user, without waiting for an answer.

        If a revision is given, and the hint has another one when this arrives, nothing happens.
        """
        data = " ".join(conn_ids).encode()
        # The server takes a hint that says nothing away by itself.
        headers = [] if data else [EXPIRES]
        if revision is not None:
            headers.append(f"Nats-Expected-Last-Subject-Sequence: {revision}")
        self._write(_pack(self._hint_key(f"{node}.{user}"), data, header="\r\n".join(headers)))

    async def hints(self, node: str) -> AsyncIterator[tuple[str, int, list[str]]]:
        """Users of whom a node holds connections, the revision of the hint, and which connections.

        None is missing that was hinted at before: a server that is busy may send less than there is.
        """
        prefix = self._hint_key(f"{node}.")
        scanned = {subject: (revision, value) async for subject, revision, value in self._scan(f"{prefix}*")}
        offset = 0
        while True:
            subjects, _ = await self._subjects(self._hints, f"{prefix}*", offset)
            for subject in subjects:
                if subject not in scanned:
                    with suppress(NotFoundError):
                        message = await self._stream.get_msg(self._hints, subject=subject)
                        scanned[subject] = message.seq or 0, message.data or b""
            offset += len(subjects)
            if not subjects:
                break
        for subject, (revision, value) in scanned.items():
            if value:
                yield subject[len(prefix) :], revision, value.decode().split()

    def _hint_key(self, key: str) -> str:
        return f"$KV.{self._name}-hints.{key}"

    # The register.

    async def get(self, key: str) -> tuple[int, bytes]:
        """A key's revision and value; 0 and an empty value if there is no such key."""
        try:
            async with self._register():
                question = json.dumps({"last_by_subj": self._key(key)}).encode()
                answer = await self._request(f"$JS.API.STREAM.MSG.GET.{self._bucket}", question)
        except NotFoundError:
            return 0, b""
        message = answer["message"]
        return message["seq"], b64decode(message.get("data", ""))

    async def put(self, key: str, value: bytes, revision: int | None = None, ttl: int | None = None) -> int:
        """Set a key, for `ttl` seconds if given, and return its new revision.

        Raises:
            OutdatedError: The key's revision is not `revision`, where 0 stands for a key that does not exist.
        """
        headers = []
        if revision is not None:
            headers.append(f"Nats-Expected-Last-Subject-Sequence: {revision}")
        if ttl is not None:
            headers.append(f"Nats-TTL: {ttl}")
        async with self._register():
            try:
                answer = await self._request(self._key(key), value, "\r\n".join(headers))
            except NoRespondersError as exc:
                raise NoStreamResponseError from exc
        seq: int = answer["seq"]
        return seq

    async def delete(self, revision: int) -> None:
        """Delete the key with this revision, without a trace.

        Raises:
            OutdatedError: The key has a later revision.
        """
        async with self._register():
            await self._request(f"$JS.API.STREAM.MSG.DELETE.{self._bucket}", b'{"seq":%d}' % revision)

    def delete_soon(self, revision: int) -> None:
        """Delete the key with this revision, unless it has a later one, without waiting for an answer."""
        self._write(_pack(f"$JS.API.STREAM.MSG.DELETE.{self._bucket}", b'{"seq":%d}' % revision))

    async def purge(self, keys: str) -> None:
        """Delete keys, whatever their revision; `*` stands for any part."""
        async with self._register():
            await self._stream.purge_stream(self._bucket, subject=self._key(keys))

    async def keys(self, which: str, offset: int = 0) -> tuple[list[str], int]:
        """Keys and the number of all keys, of one moment; `*` in `which` stands for any part.

        The keys begin at the offset and are as many as the server returns at once, which is 100,000.
        """
        subjects, count = await self._subjects(self._bucket, self._key(which), offset)
        start = len(self._key(""))
        return [subject[start:] for subject in subjects], count

    async def _subjects(self, bucket: str, which: str, offset: int) -> tuple[list[str], int]:
        question = json.dumps({"subjects_filter": which, "offset": offset}).encode()
        async with self._register(), asyncio.timeout(ANSWER_TIMEOUT):
            # The library's own method for this request has no offset.
            state = (await self._request(f"$JS.API.STREAM.INFO.{bucket}", question))["state"]
        return [*(state.get("subjects") or ())], state["messages"]

    async def _scan(self, subjects: str) -> AsyncIterator[tuple[str, int, bytes]]:
        """Subjects of hints, `*` stands for any part, with their revisions and values.

        What comes, goes or changes meanwhile may be missing.
        """
        async with self._register():
            config = api.ConsumerConfig(
                filter_subject=subjects,
                deliver_policy=api.DeliverPolicy.LAST_PER_SUBJECT,
                ack_policy=api.AckPolicy.NONE,
                inactive_threshold=2 * PAGE_TIMEOUT,
            )
            consumer = await self._stream.add_consumer(self._hints, config)
            next_page = f"$JS.API.CONSUMER.MSG.NEXT.{self._hints}.{consumer.name}"
            question = json.dumps({"batch": PAGE_SIZE, "expires": int(PAGE_TIMEOUT * 1e9)}).encode()
            pending = consumer.num_pending or 0
            while pending:
                page = await self._page(next_page, question)
                for message in page:
                    yield message.subject, self._metadata(message).sequence.stream, message.data
                pending = self._metadata(page[-1]).num_pending if page else 0

    async def _page(self, next_page: str, question: bytes) -> list[Message]:
        """One page of what a consumer delivers."""
        page: list[Message] = []
        done = self._loop.create_future()

        def heard(message: Message) -> None:
            if message.reply:  # otherwise it is a status: the pending keys have been removed
                page.append(message)
            is_last = not message.reply or len(page) == PAGE_SIZE or not self._metadata(message).num_pending
            if is_last and not done.done():
                done.set_result(None)

        inbox, listener = self._client.new_inbox(), f"p{next(self._numbers)}"
        self._wire.listeners[listener.encode()] = heard
        self._write(f"SUB {inbox} {listener}\r\n".encode() + _pack(next_page, question, inbox))
        try:
            await done
        finally:
            del self._wire.listeners[listener.encode()]
            self._write(f"UNSUB {listener}\r\n".encode())
        return page

    def _metadata(self, message: Message) -> Msg.Metadata:
        """What the server says of a message that a consumer delivers."""
        return Msg(self._client, reply=message.reply).metadata

    def _key(self, key: str) -> str:
        return f"$KV.{self._name}.{key}"

    @asynccontextmanager
    async def _register(self) -> AsyncIterator[None]:
        """The context of a step of the register. If the bucket is gone, the next connection makes it anew."""
        try:
            yield
        except (NoStreamResponseError, APIError) as exc:
            if isinstance(exc, APIError) and exc.err_code in WRONG_REVISION:
                raise OutdatedError(str(exc)) from exc
            if isinstance(exc, NoStreamResponseError) or (isinstance(exc, NotFoundError) and exc.err_code != NO_KEY):
                self._break(exc)
                raise ConnectionError("the register is lost") from exc
            raise


def _pack(subject: str, data: bytes, reply: str = "", header: str = "") -> bytes:
    """A message as the protocol writes it."""
    if not header:
        return f"PUB {subject} {reply} {len(data)}\r\n".encode() + data + b"\r\n"
    head = f"NATS/1.0\r\n{header}\r\n\r\n"  # ASCII
    line = f"HPUB {subject} {reply} {len(head)} {len(head) + len(data)}\r\n"
    return f"{line}{head}".encode() + data + b"\r\n"


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
    if "error" in answer:
        raise APIError.from_error(answer["error"])
    return answer
