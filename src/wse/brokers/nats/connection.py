"""One connection to NATS, for `wse.brokers.nats`: subjects, and a bucket of keys with revisions."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from wse.brokers.nats.private import SecureClient, share_queue
from wse.brokers.reconnecting import ANSWER_TIMEOUT, MAX_BUFFERED

try:
    from nats.aio.msg import Msg
    from nats.errors import Error, NoServersError
    from nats.js import api
    from nats.js.errors import APIError, BadRequestError, NoStreamResponseError, NotFoundError
except ImportError as exc:  # pragma: no cover - the tests have the extra
    raise ImportError('wse.brokers.nats needs the nats-py library: pip install "wse[nats]"') from exc

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection

    from nats.aio.subscription import Subscription

PING_INTERVAL = 0.5
"""Seconds for which messages are handed to an engine that does not answer. Whether these arrive is unknown."""

CLOSE_TIMEOUT = 1.0
"""Seconds that closing may take."""

# Error codes of JetStream that nats-py does not distinguish (errors.json of the server).
WRONG_REVISION = (10071, 10164, 10043)  # the last one when the key is to be deleted
NO_KEY = 10037
OTHER_CONFIGURATION = 10058
GONE = (*WRONG_REVISION, NO_KEY)

EXPIRES = {"Nats-TTL": "1s"}
"""The header of a message that the server takes away after a second."""

PAGE_SIZE = 1000
"""Keys that the server sends at once."""

PAGE_TIMEOUT = 1.0
"""Seconds that the server waits when some keys of a page have been removed meanwhile."""


class OutdatedError(Exception):
    """The key's revision is not the expected one."""


class Inbox(asyncio.Future[Msg]):
    """Receives the messages of subscriptions straight from the client's parser.

    nats-py hands the messages of a subscription with a future to that future, and then needs neither a task nor a queue
    for the subscription. This future is never done.
    """

    def __init__(self, heard: Callable[[Msg], None]) -> None:
        super().__init__()
        self._heard = heard

    def set_result(self, message: Msg, /) -> None:
        self._heard(message)


class NatsConnection:
    """A client of nats-py that lasts until the first failure, with a queue in front of it."""

    def __init__(self, prefix: str, received: Callable[[str, bytes], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self.broken: asyncio.Future[Exception] = self._loop.create_future()
        self.register = ""  # the identity of the register, once the lease has been renewed on this connection
        self._prefix = prefix
        self._bucket = f"KV_{prefix}"
        self._hints = f"KV_{prefix}-hints"
        self._client = SecureClient()
        self._stream = self._client.jetstream(timeout=ANSWER_TIMEOUT)
        self._received = received
        self._start = len(prefix) + 1  # where the topic starts in a subject
        self._inbox = Inbox(self._heard)
        self._unused: asyncio.Queue[Msg] = asyncio.Queue()
        self._subscriptions: dict[str, Subscription] = {}
        self._queue: deque[tuple[str, bytes]] = deque()
        self._size = 0  # bytes in the queue
        self._topics: dict[str, bool] = {}  # subscriptions to be changed
        self._queued = asyncio.Event()
        self._flushes: list[asyncio.Future[None]] = []
        self._pong: asyncio.Future[Any] | None = None  # the answer to the last ping
        self._pinged = 0.0  # when that ping was sent
        self._failure: Exception | None = None
        self._sender: asyncio.Task[None] | None = None

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
        self._sender = self._loop.create_task(self._send_until_broken())

    @property
    def message_size(self) -> int:
        """Bytes of the largest message that the server takes."""
        return self._client.max_payload

    def publish(self, topic: str, data: bytes) -> None:
        self._queue.append((f"{self._prefix}.{topic}", data))
        self._size += len(data)
        self._queued.set()
        if self._size > MAX_BUFFERED:
            self._break(OverflowError(f"more than {MAX_BUFFERED} bytes wait for the engine"))

    def take_unsent(self) -> list[tuple[str, bytes]]:
        own = f"{self._prefix}."
        unsent = [(subject[self._start :], data) for subject, data in self._queue if subject.startswith(own)]
        self._queue.clear()
        return unsent

    def subscribe(self, topic: str) -> None:
        self._topics[topic] = True
        self._queued.set()

    def unsubscribe(self, topic: str) -> None:
        self._topics[topic] = False
        self._queued.set()

    async def flush(self) -> None:
        sent = self._loop.create_future()
        self._flushes.append(sent)
        self._queued.set()
        await sent
        await asyncio.shield(await self._ping())

    async def _ping(self) -> asyncio.Future[Any]:
        """Send a ping; the future is done when the server answers. It must never be cancelled."""
        pong = self._loop.create_future()
        await self._client.ping(pong)
        return pong

    async def close(self) -> None:
        self._break(ConnectionError("the connection is closed"))
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.wait((self._sender,))
        with suppress(Exception):  # nats-py raises errors of the socket, or waits for an answer that never comes
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._client.close()

    # Failures.

    async def _failed(self, exc: Exception) -> None:
        self._failure = exc
        # While the client connects, another server may accept it.
        if self._sender is not None:
            self._break(exc)

    async def _closed(self) -> None:
        self._break(self._failure or self._client.last_error or ConnectionError("the server closed the connection"))

    def _break(self, cause: Exception) -> None:
        if not self.broken.done():
            self.broken.set_result(cause)

    def _heard(self, message: Msg) -> None:
        self._received(message.subject[self._start :], message.data)

    # Sending.

    async def _send_until_broken(self) -> None:
        try:
            while not self.broken.done():  # nats-py swallows a cancellation while it waits for its buffer to empty
                await self._queued.wait()
                self._queued.clear()
                await self._send()
        except Exception as exc:
            self._break(exc)

    async def _send(self) -> None:
        client, queue = self._client, self._queue
        flushes, self._flushes = self._flushes, []
        changes, self._topics = self._topics, {}
        for topic, wanted in changes.items():
            if not wanted:
                subscription = self._subscriptions.pop(topic, None)
                if subscription is not None:
                    await subscription.unsubscribe()
            elif topic not in self._subscriptions:
                subscription = await client.subscribe(f"{self._prefix}.{topic}", future=self._inbox)
                share_queue(subscription, self._unused)
                self._subscriptions[topic] = subscription
        if queue:
            await self._see_to_an_answer()
        while queue and not self.broken.done():
            subject, data = queue.popleft()
            if not subject.startswith("$KV."):
                self._size -= len(data)
            headers = None if data or not subject.startswith("$KV.") else EXPIRES
            await client.publish(subject, data, headers=headers)
        for flush in flushes:
            if not flush.done():
                flush.set_result(None)

    async def _see_to_an_answer(self) -> None:
        """Wait while the engine does not answer: messages that it is handed might be lost, waiting ones are not."""
        now = self._loop.time()
        if now - self._pinged < PING_INTERVAL:
            return
        if self._pong is None or self._pong.done():
            self._pong, self._pinged = await self._ping(), now
        else:
            await asyncio.shield(self._pong)

    # The bucket.

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

    def hint(self, node: str, user: str, conn_ids: Collection[str]) -> None:
        """Note the connections that a node holds of a user, without waiting for an answer."""
        # The server takes a hint that says nothing away by itself.
        self._queue.append((self._hint_key(f"{node}.{user}"), " ".join(conn_ids).encode()))
        self._queued.set()

    async def hints(self, node: str) -> AsyncIterator[tuple[str, list[str]]]:
        """Users of whom a node holds connections, and which.

        None is missing that was hinted at before: a server that is busy may send less than there is.
        """
        prefix = self._hint_key(f"{node}.")
        scanned = {subject: value async for subject, value in self._scan(self._hints, f"{prefix}*")}
        offset = 0
        while True:
            subjects, _ = await self._subjects(self._hints, f"{prefix}*", offset)
            for subject in subjects:
                if subject not in scanned:
                    with suppress(NotFoundError):
                        scanned[subject] = (await self._stream.get_msg(self._hints, subject=subject)).data or b""
            offset += len(subjects)
            if not subjects:
                break
        for subject, value in scanned.items():
            if value:
                yield subject[len(prefix) :], value.decode().split()

    def _hint_key(self, key: str) -> str:
        return f"$KV.{self._prefix}-hints.{key}"

    # The register.

    async def get(self, key: str) -> tuple[int, bytes]:
        """A key's revision and value; 0 and an empty value if there is no such key."""
        try:
            async with self._register():
                message = await self._stream.get_msg(self._bucket, subject=self._key(key))
        except NotFoundError:
            return 0, b""
        return message.seq or 0, message.data or b""

    async def put(self, key: str, value: bytes, revision: int | None = None, ttl: int | None = None) -> int:
        """Set a key, for `ttl` seconds if given, and return its new revision.

        Raises:
            OutdatedError: The key's revision is not `revision`, where 0 stands for a key that does not exist.
        """
        headers = None if revision is None else {api.Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value: str(revision)}
        async with self._register():
            answer = await self._stream.publish(self._key(key), value, headers=headers, msg_ttl=ttl)
        return answer.seq

    async def delete(self, revision: int) -> None:
        """Delete the key with this revision, without a trace.

        Raises:
            OutdatedError: The key has a later revision.
        """
        async with self._register():
            await self._stream.delete_msg(self._bucket, revision)

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
        async with self._register():
            # The library's own method for this request has no offset.
            reply = await self._client.request(f"$JS.API.STREAM.INFO.{bucket}", question, timeout=ANSWER_TIMEOUT)
            state = _checked(json.loads(reply.data))["state"]
        return [*(state.get("subjects") or ())], state["messages"]

    async def _scan(self, bucket: str, subjects: str) -> AsyncIterator[tuple[str, bytes]]:
        """Subjects of a bucket, `*` stands for any part, with their values.

        What comes, goes or changes meanwhile may be missing.
        """
        async with self._register():
            config = api.ConsumerConfig(
                filter_subject=subjects,
                deliver_policy=api.DeliverPolicy.LAST_PER_SUBJECT,
                ack_policy=api.AckPolicy.NONE,
                inactive_threshold=2 * PAGE_TIMEOUT,
            )
            consumer = await self._stream.add_consumer(bucket, config)
            next_page = f"$JS.API.CONSUMER.MSG.NEXT.{bucket}.{consumer.name}"
            question = json.dumps({"batch": PAGE_SIZE, "expires": int(PAGE_TIMEOUT * 1e9)}).encode()
            pending = consumer.num_pending or 0
            while pending:
                page: list[Msg] = []

                def heard(message: Msg, page: list[Msg] = page) -> bool:
                    if not message.reply:  # a status: the pending keys have been removed
                        return True
                    page.append(message)
                    return len(page) == PAGE_SIZE or message.metadata.num_pending == 0

                await self._converse([(next_page, question)], heard)
                for message in page:
                    yield message.subject, message.data
                pending = page[-1].metadata.num_pending if page else 0

    async def _converse(self, questions: list[tuple[str, bytes]], heard: Callable[[Msg], bool]) -> None:
        """Send all requests at once, and pass each answer to `heard` until it returns True.

        The last part of an answer's subject is the number of its request. The library's own requests take three times
        as long, and allow only one answer each.
        """
        done = self._loop.create_future()

        def answered(message: Msg) -> None:
            if not done.done():
                try:
                    if heard(message):
                        done.set_result(None)
                except Exception as exc:
                    done.set_exception(exc)

        inbox = self._client.new_inbox()
        subscription = await self._client.subscribe(f"{inbox}.*", future=Inbox(answered))
        try:
            for number, (subject, data) in enumerate(questions):
                await self._client.publish(subject, data, reply=f"{inbox}.{number}")
            await done
        finally:
            with suppress(Error):  # the connection may have failed
                await subscription.unsubscribe()

    def _key(self, key: str) -> str:
        return f"$KV.{self._prefix}.{key}"

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


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
    if "error" in answer:
        raise APIError.from_error(answer["error"])
    return answer
