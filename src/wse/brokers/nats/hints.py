"""Hints on NATS: what each node holds of each user, in a bucket of its own; see `wse.brokers.nats.broker`."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import TYPE_CHECKING

from nats.js import api
from nats.js.errors import NotFoundError

from wse.brokers.nats.requests import pack

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection

    from wse.brokers.nats.requests import Requests
    from wse.brokers.nats.wire import Message

EXPIRES = "Nats-TTL: 1s"
"""The header of a message that the server takes away after a second."""

PAGE_SIZE = 1000
"""Keys that the server sends at once."""

TURN = 10_000
"""Hints that are looked at in one turn of the event loop."""

PAGE_TIMEOUT = 1.0
"""Seconds that the server waits when some keys of a page have been removed meanwhile."""


class Hints:
    """The bucket of hints.

    Args:
        requests: The way to it.
        name: The name of the register.
    """

    def __init__(self, requests: Requests, name: str) -> None:
        self.bucket = f"KV_{name}-hints"
        self.subjects = f"$KV.{name}-hints.>"
        self._start = f"$KV.{name}-hints."
        self._requests = requests

    def put(self, node: str, user: str, conn_ids: Collection[str]) -> None:
        """Note the connections that a node holds of a user, without waiting for an answer."""
        data = " ".join(conn_ids).encode()
        # The server takes a hint that says nothing away by itself.
        self._requests.write(pack(f"{self._start}{node}.{user}", data, header="" if data else EXPIRES))

    async def of(self, node: str) -> list[tuple[str, int, list[str]]]:
        """Users of whom a node holds connections, the revision of the hint, and which connections.

        None is missing that was hinted at before: a server that is busy may send less than there is.
        """
        prefix = f"{self._start}{node}."
        start = len(prefix)
        found: list[tuple[str, int, list[str]]] = []
        seen: set[str] = set()

        def add(subject: str, revision: int, value: bytes) -> None:
            seen.add(subject)
            if value:
                found.append((subject[start:], revision, value.decode().split()))

        async for hint in self._scan(f"{prefix}*"):
            add(*hint)
        offset = 0
        while True:
            subjects, _ = await self._requests.subjects(self.bucket, f"{prefix}*", offset)
            for number, subject in enumerate(subjects):
                if not number % TURN:
                    await asyncio.sleep(0)
                if subject not in seen:
                    with suppress(NotFoundError):
                        message = await self._requests.stream.get_msg(self.bucket, subject=subject)
                        add(subject, message.seq or 0, message.data or b"")
            offset += len(subjects)
            if not subjects:
                return found

    async def purge(self, node: str, last: int) -> None:
        """Delete the hints about what a node holds, up to a revision."""
        async with self._requests.register():
            await self._requests.stream.purge_stream(self.bucket, seq=last + 1, subject=f"{self._start}{node}.*")

    async def _scan(self, subjects: str) -> AsyncIterator[tuple[str, int, bytes]]:
        """Subjects of hints, `*` stands for any part, with their revisions and values.

        What comes, goes or changes meanwhile may be missing.
        """
        async with self._requests.register():
            config = api.ConsumerConfig(
                filter_subject=subjects,
                deliver_policy=api.DeliverPolicy.LAST_PER_SUBJECT,
                ack_policy=api.AckPolicy.NONE,
                inactive_threshold=2 * PAGE_TIMEOUT,
            )
            consumer = await self._requests.stream.add_consumer(self.bucket, config)
            next_page = f"$JS.API.CONSUMER.MSG.NEXT.{self.bucket}.{consumer.name}"
            question = json.dumps({"batch": PAGE_SIZE, "expires": int(PAGE_TIMEOUT * 1e9)}).encode()
            pending = consumer.num_pending or 0
            while pending:
                page = await self._requests.several(next_page, question, _is_page)
                for message in page:
                    if message.reply:
                        revision, pending = _metadata(message.reply)
                        yield message.subject, revision, message.data
                    else:
                        pending = 0


def _is_page(messages: list[Message]) -> bool:
    """Whether this is what the server sends at once."""
    last = messages[-1].reply
    # Without a reply it is a status: the pending keys have been removed.
    return not last or len(messages) == PAGE_SIZE or not _metadata(last)[1]


def _metadata(reply: str) -> tuple[int, int]:
    """The revision of a message that a consumer delivers, and how many it has still to deliver.

    They stand in the subject for its acknowledgement, of which servers have two forms.
    """
    fields = reply.split(".")
    start = 2 if len(fields) == 9 else 4  # $JS.ACK, and in the newer form the domain and the account
    return int(fields[start + 3]), int(fields[start + 6])
