"""Finds the primary by asking Sentinels, as clients of Sentinel do.

    redis+sentinel://[[user]:password@]host[:port][,host[:port]...]/name[/db]       rediss+sentinel:// with TLS

User and password are those of the primary. All Sentinels are asked at once, so that one that hangs costs no time. Their
answer may be out of date, so `RedisBroker` makes sure that the engine takes writes.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from redis.exceptions import RedisError

if TYPE_CHECKING:
    from collections.abc import Callable

SCHEMES = {"redis+sentinel": "redis", "rediss+sentinel": "rediss"}
"""The schemes of such URLs, each with that of the primary."""

DEFAULT_PORT = 26379


class Setup(NamedTuple):
    """A primary and its Sentinels.

    Attributes:
        url: The URL of the primary, with a placeholder for its address.
        name: The name under which the Sentinels know it.
        addresses: Host and port of each Sentinel.
    """

    url: str
    name: str
    addresses: list[tuple[str, int]]


def split(url: str) -> Setup:
    """Read the URL of Sentinels.

    Raises:
        ValueError: The URL does not name the primary, or has a port that is not a number.
    """
    parts = urlsplit(url)
    login, at, hosts = parts.netloc.rpartition("@")
    name, _, db = parts.path.removeprefix("/").partition("/")
    if not name:
        raise ValueError(f"{parts.scheme}:// needs the name of the primary after the Sentinels, as in .../mymaster")
    addresses = []
    for host in hosts.split(","):
        address = urlsplit(f"//{host}")
        addresses.append((address.hostname or "localhost", address.port or DEFAULT_PORT))
    primary = parts._replace(scheme=SCHEMES[parts.scheme], netloc=f"{login}{at}primary", path=f"/{db}")
    return Setup(primary.geturl(), name, addresses)


class Sentinels:
    """Several Sentinels that watch one primary.

    Args:
        setup: Their addresses, and the name of the primary.
        connect: Makes a connection of redis-py; takes `host` and `port`.
    """

    def __init__(self, setup: Setup, connect: Callable[..., Any]) -> None:
        self._addresses = setup.addresses
        self._name = setup.name
        self._connect = connect

    async def primary(self) -> tuple[str, int]:
        """The address of the primary.

        Raises:
            ConnectionError: No Sentinel knows it. The cause is the error of the last one that could not be asked.
        """
        cause: Exception | None = None
        questions = [asyncio.create_task(self._ask(*address)) for address in self._addresses]
        try:
            for question in asyncio.as_completed(questions):
                try:
                    found = await question
                except (OSError, RedisError) as exc:
                    cause = exc
                else:
                    if found is not None:
                        return found
        finally:
            for task in questions:
                task.cancel()
            await asyncio.gather(*questions, return_exceptions=True)
        raise ConnectionError(f"no Sentinel knows the primary of {self._name}") from cause

    async def _ask(self, host: str, port: int) -> tuple[str, int] | None:
        connection = self._connect(host=host, port=port)
        try:
            await connection.connect()
            await connection.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._name)
            reply = await connection.read_response()
        finally:
            await connection.disconnect(nowait=True)
        return None if reply is None else (reply[0].decode(), int(reply[1]))
