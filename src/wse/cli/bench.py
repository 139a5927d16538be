"""`wse bench`: many clients call a procedure of a server, and every answer is checked."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from contextlib import suppress
from typing import Any

import click

from wse.cli.connection import Connection, client_options
from wse.cli.output import JSON, print_json
from wse.client.client import WseClient
from wse.errors import WseError

CONNECTING = 100
"""Attempts to connect that are made at the same time."""

PERCENTILES = (50, 90, 99, 99.9)

SPARE_FILES = 200
"""File descriptors of a process besides those of its connections."""


@click.command("bench")
@client_options
@click.option("--clients", type=click.IntRange(1), default=100, show_default=True, help="Connections.")
@click.option(
    "--calls", type=click.IntRange(1), default=10_000, show_default=True, help="Calls of all clients together."
)
@click.option("--in-flight", type=click.IntRange(1), default=1, show_default=True, help="Calls of a client at a time.")
@click.option("--procedure", default="echo", show_default=True, help="The procedure.")
@click.option("--payload", type=JSON, help="Its argument, as JSON.  [default: another number in each call]")
@click.option("--expect", type=JSON, help="The right answer, as JSON.  [default: the payload]")
def bench_command(
    connection: Connection,
    clients: int,
    calls: int,
    in_flight: int,
    procedure: str,
    payload: Any,
    expect: Any,
) -> None:
    """Call a procedure from many clients at once, and check every answer.

    Progress goes to standard error, and the result to standard output, as JSON. The exit status is 1 if a client could
    not connect or lost its connection, an answer was wrong, or one is missing. `{n}` in the identity is the number of
    the client: --identity 'user-{n}'.
    """
    allow_files(clients + SPARE_FILES)
    bench = Bench(connection, clients, calls, in_flight, procedure, payload, expect)
    try:
        asyncio.run(bench.run())
    except KeyboardInterrupt:
        bench.is_cut_short = True
    print_json(bench.result())
    sys.exit(0 if bench.is_flawless else 1)


def allow_files(number: int) -> None:
    """Let this process open so many files, where the system sets a limit and allows more."""
    with suppress(ImportError, ValueError, OSError):
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = number if hard == resource.RLIM_INFINITY else min(number, hard)
        if soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def numbered(identity: Any, number: int) -> Any:
    """The identity of one client: with its number for `{n}`, in all texts of it."""
    if isinstance(identity, str):
        return identity.replace("{n}", str(number))
    if isinstance(identity, dict):
        return {key: numbered(value, number) for key, value in identity.items()}
    return identity


class Bench:
    """One measurement.

    Args:
        connection: How to connect.
        clients: How many clients.
        calls: How many calls, of all clients together.
        in_flight: How many calls of one client at a time.
        procedure: The procedure.
        payload: Its argument; `None` for another number in each call.
        expect: The right answer; `None` for the payload.
    """

    def __init__(
        self,
        connection: Connection,
        clients: int,
        calls: int,
        in_flight: int,
        procedure: str,
        payload: Any,
        expect: Any,
    ) -> None:
        self._connection = connection
        self._count = clients
        self._calls = calls
        self._in_flight = in_flight
        self._procedure = procedure
        self._payload = payload
        self._expect = expect
        self._connected = 0
        self._lost = 0  # connections
        self._begun = 0  # calls
        self._right = 0
        self._wrong = 0
        self._errors: Counter[str] = Counter()
        self._latencies: list[float] = []
        self._connecting = self._calling = 0.0  # seconds
        self.is_cut_short = False

    async def run(self) -> None:
        """Connect all clients, make all calls, and close all clients."""
        progress = asyncio.create_task(self._show_progress())
        connected: list[WseClient] = []
        try:
            began = time.perf_counter()
            gate = asyncio.Semaphore(CONNECTING)
            found = await asyncio.gather(*(self._connect(number, gate) for number in range(self._count)))
            connected += [client for client in found if client is not None]
            self._connecting = time.perf_counter() - began
            began = time.perf_counter()
            try:
                await asyncio.gather(*(self._work(client) for client in connected for _ in range(self._in_flight)))
            finally:
                self._calling = time.perf_counter() - began
        finally:
            progress.cancel()
            self._tell(end=True)
            await asyncio.gather(*(self._close(client) for client in connected))

    @property
    def is_flawless(self) -> bool:
        """Whether all clients connected and stayed, and all calls had their right answers."""
        return self._right == self._calls and self._connected == self._count and not self._lost

    def result(self) -> dict[str, Any]:
        """The measurement, for people and programs; times are in milliseconds."""
        ordered = sorted(self._latencies)
        latency: dict[str, float] = {}
        if ordered:
            for percentile in PERCENTILES:
                latency[f"p{percentile:g}"] = _ms(ordered[min(len(ordered) - 1, int(len(ordered) * percentile / 100))])
            latency["max"] = _ms(ordered[-1])
        return {
            "clients": self._count,
            "connected": self._connected,
            "connecting_s": round(self._connecting, 3),
            "connections_lost": self._lost,
            "calls": self._calls,
            "right": self._right,
            "wrong": self._wrong,
            "missing": self._calls - self._right - self._wrong,
            "errors": dict(self._errors),
            "calling_s": round(self._calling, 3),
            "calls_per_s": round(self._right / self._calling) if self._calling else 0,
            "latency_ms": latency,
        }

    async def _connect(self, number: int, gate: asyncio.Semaphore) -> WseClient | None:
        client = self._connection.client(numbered(self._connection.identity, number))
        client.when.error(lambda error: None)  # it is counted where it is raised
        async with gate:
            try:
                await client.connect()
            except WseError as exc:
                self._errors[str(exc.code)] += 1
                return None
        self._connected += 1
        client.when.closed(self._closed)
        return client

    def _closed(self, code: int, reason: str) -> None:
        self._lost += 1

    async def _close(self, client: WseClient) -> None:
        client.when.closed.off(self._closed)
        await client.close()

    async def _work(self, client: WseClient) -> None:
        while self._begun < self._calls:
            self._begun += 1
            payload = self._begun if self._payload is None else self._payload
            began = time.perf_counter()
            try:
                answer = await client.call(self._procedure, payload)
            except WseError as exc:
                self._errors[str(exc.code)] += 1
                if client.status != "READY":
                    return  # the others make the calls that are left
                continue
            self._latencies.append(time.perf_counter() - began)
            if answer == (payload if self._expect is None else self._expect):
                self._right += 1
            else:
                self._wrong += 1

    async def _show_progress(self) -> None:
        while True:
            await asyncio.sleep(0.5 if sys.stderr.isatty() else 5.0)
            self._tell()

    def _tell(self, *, end: bool = False) -> None:
        answered = self._right + self._wrong
        text = f"{self._connected} of {self._count} clients, {answered} of {self._calls} calls"
        if self._errors:
            text += f", {self._errors.total()} errors: " + ", ".join(f"{c} {n}" for c, n in self._errors.most_common(3))
        is_terminal = sys.stderr.isatty()
        click.echo(f"\r\x1b[K{text}" if is_terminal else text, err=True, nl=end or not is_terminal)


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 3)
