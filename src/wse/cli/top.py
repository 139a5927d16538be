"""`wse top`: the nodes of a cluster in a terminal, from what they tell when they are asked."""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from wse.brokers import as_broker
from wse.cli.output import fails_plainly
from wse.core.cluster.envelope import NODE, Answer, Query, decode, encode
from wse.core.urls import without_secrets

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wse.core.ports.broker import Broker

ANSWER_TIMEOUT = 1.0
"""Seconds that nodes have to answer."""

CLEAR = "\x1b[H\x1b[2J"

RATES = ("messages_in", "messages_out", "calls_in", "errors")
"""What is counted up, and shown per second."""


class Observer:
    """Asks the nodes of a cluster without being one; a `wse.core.ports.broker.BrokerListener`.

    Args:
        broker: The cluster's broker.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._name = secrets.token_hex(8)
        self._stamp = 0
        self._answers: dict[str, dict[str, Any]] = {}
        self._missing: set[str] = set()
        self._complete = asyncio.Event()

    async def open(self) -> None:
        """Connect.

        Raises:
            WseError: `BROKER_UNAVAILABLE`.
        """
        await self._broker.open(self._name, self)
        self._broker.subscribe(NODE + self._name)
        await self._broker.flush()

    async def close(self) -> None:
        """Disconnect."""
        await self._broker.close()

    async def ask(self) -> tuple[int, dict[str, dict[str, Any]]]:
        """How many users there are, and what each node tells; a node that does not answer in time tells nothing.

        Raises:
            WseError: `BROKER_UNAVAILABLE`.
        """
        users, nodes = await asyncio.gather(self._broker.online(), self._broker.nodes())
        self._stamp += 1
        self._answers, self._missing = {node: {} for node in nodes}, set(nodes)
        self._complete.clear()
        for node in nodes:
            self._broker.publish(NODE + node, encode(Query(self._name, self._stamp, "stats", "")))
        if nodes:
            with suppress(TimeoutError):
                async with asyncio.timeout(ANSWER_TIMEOUT):
                    await self._complete.wait()
        return users, self._answers

    def received(self, topic: str, data: bytes) -> None:
        try:
            message = decode(data)
        except Exception:  # another version's, or another program's
            return
        if isinstance(message, Answer) and message.stamp == self._stamp and message.origin in self._missing:
            if isinstance(message.value, dict):
                self._answers[message.origin] = message.value
            self._missing.discard(message.origin)
            if not self._missing:
                self._complete.set()

    def connection_lost(self, cause: Exception | None, unsent: list[tuple[str, bytes]]) -> None: ...

    def connection_restored(self) -> None: ...


def table(
    url: str,
    users: int,
    nodes: Mapping[str, Mapping[str, Any]],
    before: Mapping[str, Mapping[str, Any]],
    seconds: float,
) -> str:
    """What is shown.

    Args:
        url: The broker's URL, without secrets.
        users: The number of users.
        nodes: What each node tells.
        before: What each told the last time.
        seconds: The time since then.
    """
    heads = ("NODE", "UPTIME", "CONNS", "USERS", "AWAY", "MSG IN/s", "MSG OUT/s", "CALLS/s", "ERRORS/s", "HANDLERS")
    rows: list[tuple[str, ...]] = [heads]
    for node in sorted(nodes):
        told = nodes[node]
        if not told:
            rows.append((node, "no answer", *[""] * (len(heads) - 2)))
            continue
        numbers = [_number(told, name) for name in ("connections", "users", "detached")]
        rates = [_rate(told, before.get(node) or {}, name, seconds) for name in RATES]
        rows.append(
            (
                node,
                _duration(_number(told, "uptime")),
                *(f"{number:.0f}" for number in numbers),
                *(f"{rate:.1f}" for rate in rates),
                f"{_number(told, 'handlers'):.0f}",
            )
        )
    total = sum(_number(told, "connections") for told in nodes.values())
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    lines = [f"{url}   nodes: {len(nodes)}   users: {users}   connections: {total:.0f}", ""]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _number(told: Mapping[str, Any], name: str) -> float:
    value = told.get(name)
    return float(value) if isinstance(value, int | float) else 0.0


def _rate(told: Mapping[str, Any], before: Mapping[str, Any], name: str, seconds: float) -> float:
    if name not in before or seconds <= 0:
        return 0.0
    return max(0.0, _number(told, name) - _number(before, name)) / seconds


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours}h"
    return f"{hours}h {minutes:02}m" if hours else f"{minutes}m {seconds:02}s"


async def run(url: str, interval: float, *, once: bool) -> None:
    """Show the cluster, again and again."""
    observer = Observer(as_broker(url))
    await observer.open()
    try:
        before: Mapping[str, Mapping[str, Any]] = {}
        asked = time.monotonic()
        _, before = await observer.ask()
        while True:
            await asyncio.sleep(interval)
            now = time.monotonic()
            users, nodes = await observer.ask()
            text = table(without_secrets(url), users, nodes, before, now - asked)
            click.echo(text if once or not sys.stdout.isatty() else CLEAR + text)
            if once:
                return
            before, asked = nodes, now
    finally:
        await observer.close()


@click.command("top")
@click.argument("broker", metavar="BROKER")
@click.option(
    "--interval",
    type=click.FloatRange(0.1),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="The time between two looks.",
)
@click.option("--once", is_flag=True, help="Look once, after one interval, and end.")
@fails_plainly
def top_command(broker: str, interval: float, once: bool) -> None:
    """Show the nodes of a cluster: their connections, users and rates.

    BROKER is the URL of the cluster's broker: nats://... or redis://... The nodes are asked each time, so they have no
    costs while the command does not run. Ctrl-C ends it.
    """
    try:
        asyncio.run(run(broker, interval, once=once))
    except KeyboardInterrupt:
        pass
    except (ValueError, ImportError) as exc:
        raise click.UsageError(str(exc)) from exc
