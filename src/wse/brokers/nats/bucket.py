"""The register's bucket on NATS: keys with revisions; see `wse.brokers.nats.broker`."""

from __future__ import annotations

import json
from base64 import b64decode
from typing import TYPE_CHECKING, NamedTuple

from nats.errors import NoRespondersError
from nats.js.errors import APIError, NoStreamResponseError, NotFoundError

from wse.brokers.nats.requests import pack, read

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from wse.brokers.nats.requests import Requests
    from wse.brokers.nats.wire import Message

# Error codes of JetStream that nats-py does not distinguish (errors.json of the server).
WRONG_REVISION = (10071, 10164, 10043)  # the last one when the key is to be deleted
NO_KEY = 10037


class OutdatedError(Exception):
    """The key's revision is not the expected one."""


class Write(NamedTuple):
    """A key to be set; to be deleted, without a trace, if the value is empty.

    Attributes:
        key: The key.
        value: Its value.
        revision: The revision that it must have; 0 for a key that does not exist; None for any.
        ttl: Seconds after which the server takes it away; None for never.
    """

    key: str
    value: bytes
    revision: int | None = None
    ttl: int | None = None


class Bucket:
    """The bucket of the register.

    Args:
        requests: The way to it.
        name: Its name.
    """

    def __init__(self, requests: Requests, name: str) -> None:
        self.bucket = f"KV_{name}"
        self.subjects = f"$KV.{name}.>"
        self._start = f"$KV.{name}."
        self._requests = requests

    async def get(self, key: str) -> tuple[int, bytes]:
        """A key's revision and value; 0 and an empty value if there is no such key."""
        (found,) = await self.get_many([key])
        return found

    async def get_many(self, keys: Iterable[str]) -> list[tuple[int, bytes]]:
        """The revision and value of each key, as `get`."""
        subject = f"$JS.API.STREAM.MSG.GET.{self.bucket}"
        questions = [(subject, b'{"last_by_subj":"%b"}' % (self._start + key).encode(), "") for key in keys]
        async with self._requests.register():
            return [_found(answer) for answer in await self._requests.many(questions)]

    async def glance(self, keys: Sequence[str]) -> dict[str, tuple[int, bytes]]:
        """The revision and value of those of the keys that some server has, perhaps not the latest ones.

        This costs much less than `get_many`. A server that cannot do it has none.
        """
        question = json.dumps({"multi_last": [self._start + key for key in keys]}).encode()
        messages = await self._requests.several(f"$JS.API.DIRECT.GET.{self.bucket}", question, is_end)
        found: dict[str, tuple[int, bytes]] = {}
        for message in messages:
            sequence = message.field(b"Nats-Sequence")
            if sequence:
                key = message.field(b"Nats-Subject").decode().removeprefix(self._start)
                found[key] = int(sequence), message.data
        return found

    async def put(self, key: str, value: bytes, revision: int | None = None, ttl: int | None = None) -> int:
        """Set a key, for `ttl` seconds if given, and return its new revision.

        Raises:
            OutdatedError: The key's revision is not `revision`, where 0 stands for a key that does not exist.
        """
        (result,) = await self._write_many([(self._start + key, value, _conditions(revision, ttl))])
        if isinstance(result, OutdatedError):
            raise result
        return result

    async def write_many(self, writes: Iterable[Write]) -> list[int | OutdatedError]:
        """Set and delete keys; the new revision of each, or that the key has another one than expected."""
        return await self._write_many(
            [
                (self._start + write.key, write.value, _conditions(write.revision, write.ttl))
                if write.value
                else self._deletion(write.revision or 0)
                for write in writes
            ]
        )

    async def _write_many(self, requests: Sequence[tuple[str, bytes, str]]) -> list[int | OutdatedError]:
        async with self._requests.register():
            results: list[int | OutdatedError] = []
            for answer in await self._requests.many(requests):
                try:
                    results.append(read(answer).get("seq", 0))
                except NoRespondersError as exc:
                    raise NoStreamResponseError from exc
                except APIError as exc:
                    if exc.err_code not in WRONG_REVISION:
                        raise
                    results.append(OutdatedError(str(exc)))
            return results

    def _deletion(self, revision: int) -> tuple[str, bytes, str]:
        return f"$JS.API.STREAM.MSG.DELETE.{self.bucket}", b'{"seq":%d}' % revision, ""

    def delete_soon(self, revision: int) -> None:
        """Delete the key with this revision, unless it has a later one, without waiting for an answer."""
        subject, data, _ = self._deletion(revision)
        self._requests.write(pack(subject, data))

    async def purge(self, keys: str) -> None:
        """Delete keys, whatever their revision; `*` stands for any part."""
        async with self._requests.register():
            await self._requests.stream.purge_stream(self.bucket, subject=self._start + keys)

    async def keys(self, which: str, offset: int = 0) -> tuple[list[str], int]:
        """Keys and the number of all keys, of one moment; `*` in `which` stands for any part.

        The keys begin at the offset and are as many as the server returns at once, which is 100,000.
        """
        subjects, count = await self._requests.subjects(self.bucket, self._start + which, offset)
        start = len(self._start)
        return [subject[start:] for subject in subjects], count


def is_end(messages: list[Message]) -> bool:
    """Whether the last one is a status: the end, or an error."""
    return messages[-1].header.startswith(b"NATS/1.0 ")


def _conditions(revision: int | None, ttl: int | None) -> str:
    headers = [] if revision is None else [f"Nats-Expected-Last-Subject-Sequence: {revision}"]
    if ttl is not None:
        headers.append(f"Nats-TTL: {ttl}")
    return "\r\n".join(headers)


def _found(message: Message) -> tuple[int, bytes]:
    try:
        found = read(message)["message"]
    except NotFoundError as exc:
        if exc.err_code != NO_KEY:
            raise
        return 0, b""
    return found["seq"], b64decode(found.get("data", ""))
