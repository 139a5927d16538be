"""The metrics of all workers, at an address of the supervisor's own.

The supervisor asks each worker over the socket that it has with it anyway. What a worker had counted when it ended
stays in the sums, so that no counter falls when a worker is replaced.
"""

from __future__ import annotations

import asyncio
import json
import struct
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeAlias

from wse.metrics.families import Family, add_up, without_gauges
from wse.transports.picows.http import HttpError, HttpHead, answer

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Iterable

    from wse.server.server import WseServer

ASK = b"m"
"""What the supervisor sends to a worker."""

ANSWER_TIMEOUT = 1.0
"""Seconds that a worker has to answer. If its event loop is blocked, its last answer counts."""

REQUEST_TIMEOUT = 10.0
"""Seconds that Prometheus has to send its request."""

_HEAD = struct.Struct("!I")

Address: TypeAlias = tuple[str | None, int]
"""A host, or `None` for all interfaces, and a port."""


def parse_address(text: str) -> Address:
    """The host and the port of HOST:PORT; an empty host stands for all interfaces.

    Raises:
        ValueError: It is something else.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise ValueError(f"an address looks like 127.0.0.1:9300, not {text!r}")
    return host.removeprefix("[").removesuffix("]") or None, int(port)


def send_report(to: socket.socket, server: WseServer) -> None:
    """Send a worker's metrics to its supervisor, which reads them at once."""
    report = json.dumps([family.to_plain() for family in server._metrics.read()]).encode()
    with suppress(OSError):  # it has ended
        to.sendall(_HEAD.pack(len(report)) + report)


class Reports:
    """What one worker has reported.

    Attributes:
        latest: The last report.
    """

    def __init__(self) -> None:
        self.latest: list[Family] = []
        self._came = asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None
        self._is_due = False
        self._reading: asyncio.Task[None]

    async def open(self, slot: socket.socket) -> None:
        """Begin to read from a worker that is ready."""
        reader, self._writer = await asyncio.open_connection(sock=slot)
        self._reading = asyncio.create_task(self._read(reader))

    def close(self) -> None:
        """The worker has ended."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._came.set()

    async def ask(self) -> list[Family]:
        """A new report, or the last one if the worker does not answer in time."""
        if self._writer is not None:
            if not self._is_due:  # else it has not answered the last time
                self._is_due = True
                self._came.clear()
                self._writer.write(ASK)
            with suppress(TimeoutError):
                async with asyncio.timeout(ANSWER_TIMEOUT):
                    await self._came.wait()
        return self.latest

    async def _read(self, reader: asyncio.StreamReader) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                (size,) = _HEAD.unpack(await reader.readexactly(_HEAD.size))
                report = json.loads(await reader.readexactly(size))
                self.latest = [Family.from_plain(plain) for plain in report]
                self._is_due = False
                self._came.set()
        self.close()


class Sums:
    """The metrics of all workers, those that have ended included."""

    def __init__(self) -> None:
        self._living: set[Reports] = set()
        self._gone: list[Family] = []

    def add(self) -> Reports:
        """One more worker."""
        reports = Reports()
        self._living.add(reports)
        return reports

    def remove(self, reports: Reports) -> None:
        """A worker has ended."""
        reports.close()
        if reports in self._living:
            self._living.remove(reports)
            self._gone = add_up([self._gone, without_gauges(reports.latest)])

    async def read(self) -> list[Family]:
        """Ask all workers."""
        return add_up([self._gone, *await asyncio.gather(*(reports.ask() for reports in self._living))])


async def serve_metrics(address: Address, read: Callable[[], Awaitable[Iterable[Family]]]) -> asyncio.Server:
    """Answer GETs of `/metrics` at an address.

    Raises:
        OSError: The address is not available.
    """
    from wse.prometheus import exposition

    async def respond(raw: bytes) -> bytes:
        head = HttpHead(raw)
        if head.method not in ("GET", "HEAD"):
            raise HttpError(HTTPStatus.METHOD_NOT_ALLOWED, {"Allow": "GET, HEAD"})
        if head.path != "/metrics":
            raise HttpError(HTTPStatus.NOT_FOUND)
        media_type, text = exposition(await read(), head.headers.get("Accept", ""))
        return answer(HTTPStatus.OK, {"Content-Type": media_type}, text, head_only=head.method == "HEAD")

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError):
            async with asyncio.timeout(REQUEST_TIMEOUT):
                raw = (await reader.readuntil(b"\r\n\r\n"))[:-4]
                try:
                    data = await respond(raw)
                except HttpError as exc:
                    data = answer(exc.status, exc.headers, head_only=False)
                writer.write(data)
                await writer.drain()
        writer.close()

    host, port = address
    return await asyncio.start_server(handle, host, port, limit=16 * 1024)
