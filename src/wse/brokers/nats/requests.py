"""Requests to JetStream, past nats-py: its own take three times as long."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

from nats.errors import BadSubjectError, NoRespondersError
from nats.js.errors import APIError, BadRequestError, NoStreamResponseError, NotFoundError

from wse.brokers.reconnecting import ANSWER_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from nats.js.api import StreamConfig

    from wse.brokers.nats.private import WiredClient
    from wse.brokers.nats.wire import Message

OTHER_CONFIGURATION = 10058
"""An error code of JetStream that nats-py does not distinguish (errors.json of the server)."""

NO_RESPONDERS = b"NATS/1.0 503"
"""The start of an answer that the server gives when nobody else answers."""

NO_SUBJECT = re.compile(r"\s").search
"""Finds what would end a subject, and could be taken for a command."""

ANSWERS = b"a"
"""The id of the subscription to answers."""


class Answers:
    """What waits for the answers to requests that were sent together."""

    __slots__ = ("done", "left", "messages")

    def __init__(self, count: int) -> None:
        self.messages: dict[str, Message] = {}  # by the number of the request
        self.left = count
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Requests:
    """Requests of one connection, and their answers.

    Args:
        client: The client of nats-py whose connection is used.
        write: Sends a line of the protocol.
        lost: Called with the cause when what is asked for is gone.
    """

    def __init__(self, client: WiredClient, write: Callable[[bytes], None], lost: Callable[[Exception], None]) -> None:
        self.client = client
        self.stream = client.jetstream(timeout=ANSWER_TIMEOUT)
        self.write = write
        self._lost = lost
        self._inbox = ""  # where answers go
        self._numbers = count(1)
        self._waiting: dict[str, Answers] = {}

    def open(self) -> None:
        """Begin to hear answers: the client is connected."""
        self._inbox = self.client.new_inbox()
        self.client.wire.listeners[ANSWERS] = self._answered
        self.write(f"SUB {self._inbox}.* {ANSWERS.decode()}\r\n".encode())

    async def one(self, subject: str, data: bytes, header: str = "") -> dict[str, Any]:
        """The answer to a request, which is JSON.

        Raises:
            BadSubjectError: The subject is none.
            NoRespondersError: Nobody answers such requests.
            APIError: The answer is an error.
        """
        (message,) = await self.many([(subject, data, header)])
        return read(message)

    async def many(self, requests: Sequence[tuple[str, bytes, str]]) -> list[Message]:
        """The answers to requests, of which each is a subject, data and a header, in their order."""
        if not requests:
            return []
        answers = Answers(len(requests))
        numbers: list[str] = []
        try:
            for subject, data, header in requests:
                if NO_SUBJECT(subject):
                    raise BadSubjectError
                number = str(next(self._numbers))
                numbers.append(number)
                self._waiting[number] = answers
                self.write(pack(subject, data, f"{self._inbox}.{number}", header))
            await answers.done
        finally:
            for number in numbers:
                self._waiting.pop(number, None)
        return [answers.messages[number] for number in numbers]

    def _answered(self, answer: Message) -> None:
        number = answer.subject.rpartition(".")[2]
        answers = self._waiting.pop(number, None)
        if answers is not None:
            answers.messages[number] = answer
            answers.left -= 1
            if not answers.left and not answers.done.done():
                answers.done.set_result(None)

    async def several(self, subject: str, data: bytes, is_all: Callable[[list[Message]], bool]) -> list[Message]:
        """The answers to one request, until they are all, as this function says of those that there are."""
        answers: list[Message] = []
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def heard(message: Message) -> None:
            answers.append(message)
            if is_all(answers) and not done.done():
                done.set_result(None)

        inbox, listener = self.client.new_inbox(), f"p{next(self._numbers)}"
        self.client.wire.listeners[listener.encode()] = heard
        self.write(f"SUB {inbox} {listener}\r\n".encode() + pack(subject, data, inbox))
        try:
            await done
        finally:
            del self.client.wire.listeners[listener.encode()]
            self.write(f"UNSUB {listener}\r\n".encode())
        return answers

    async def subjects(self, bucket: str, which: str, offset: int) -> tuple[list[str], int]:
        """Subjects of a bucket, `*` in `which` stands for any part, and the number of all, of one moment."""
        question = json.dumps({"subjects_filter": which, "offset": offset}).encode()
        async with self.register(), asyncio.timeout(ANSWER_TIMEOUT):
            # The library's own method for this request has no offset.
            state = (await self.one(f"$JS.API.STREAM.INFO.{bucket}", question))["state"]
        return [*(state.get("subjects") or ())], state["messages"]

    async def make_stream(self, config: StreamConfig) -> None:
        """See to it that a stream is there, with this configuration."""
        try:
            await self.stream.add_stream(config)
        except BadRequestError as exc:
            if exc.err_code != OTHER_CONFIGURATION:
                raise
            await self.stream.update_stream(config)

    @asynccontextmanager
    async def register(self) -> AsyncIterator[None]:
        """The context of a step of the register. If the bucket is gone, the next connection makes it anew."""
        try:
            yield
        except (NoStreamResponseError, NotFoundError) as exc:
            self._lost(exc)
            raise ConnectionError("the register is lost") from exc


def pack(subject: str, data: bytes, reply: str = "", header: str = "") -> bytes:
    """A message as the protocol writes it."""
    if not header:
        return f"PUB {subject} {reply} {len(data)}\r\n".encode() + data + b"\r\n"
    head = f"NATS/1.0\r\n{header}\r\n\r\n"  # ASCII
    line = f"HPUB {subject} {reply} {len(head)} {len(head) + len(data)}\r\n"
    return f"{line}{head}".encode() + data + b"\r\n"


def read(message: Message) -> dict[str, Any]:
    """What an answer says.

    Raises:
        NoRespondersError: Nobody answers such requests.
        APIError: It is an error.
    """
    if message.header.startswith(NO_RESPONDERS):
        raise NoRespondersError
    answer: dict[str, Any] = json.loads(message.data.decode())  # which is faster than to let it find out how
    if "error" in answer:
        raise APIError.from_error(answer["error"])
    return answer
