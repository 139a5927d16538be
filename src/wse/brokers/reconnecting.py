"""The common part of brokers with an engine: they connect anew when the connection breaks.

An adapter provides a `Connection`, which lives from one connect to the first failure, and the steps of the register,
which it makes through `ReconnectingBroker.ask`.
"""

from __future__ import annotations

import asyncio
import re
import typing
from abc import ABC, abstractmethod
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Generic, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from wse.backoff import Backoff
from wse.errors import ErrorCode, WseError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from wse.core.ports.broker import BrokerListener

ANSWER_TIMEOUT = 3.0
"""Seconds that an engine has to answer, or to accept a new connection."""

SUBSCRIBE_TIMEOUT = 60.0
"""Seconds that an engine has to accept all subscriptions of a new connection; a node can have a million."""

MAX_CONCURRENT_STEPS = 100
"""Steps of the register in progress at the same time. More of them wait, and their timeout begins after the wait: when
a node joins all its devices anew, the last must not time out because the first take so long."""

CHECK_INTERVAL = 3.0
"""Seconds between two checks of the connection."""

CANCEL_TIMEOUT = 1.0
"""Seconds after which a task that has been cancelled is cancelled again."""

LATE = 0.1
"""Seconds by which a timer is so late that this process has slept, or its event loop was blocked."""

READ_TIME = 1.0
"""Seconds for which a process that has slept reads what has come meanwhile, before it misses anything."""

MAX_BUFFERED = 64 * 1024 * 1024
"""Bytes that may wait for the engine to take them."""


REGISTER_VERSION = 2
"""The format of the register, a part of its name in an engine. Nodes of a version with another format keep a register
of their own, so neither damages the other's."""

DEFAULT_PREFIX = "wse"
"""The start of all names in an engine, unless the URL has a `prefix`."""


def take(url: str, **defaults: str) -> tuple[str, dict[str, str]]:
    """Split a URL into the URL for the engine's library and WSE's own parameters, of which `prefix` is always one.

    Raises:
        ValueError: The prefix has characters other than `A-Z a-z 0-9 _ -`, which all engines take.
    """
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    ours = {name: query.pop(name, value) for name, value in {"prefix": DEFAULT_PREFIX, **defaults}.items()}
    if not re.fullmatch(r"[\w-]+", ours["prefix"], re.ASCII):
        raise ValueError(f"a prefix consists of letters, digits, _ and -, not {ours['prefix']!r}")
    return urlunsplit(parts._replace(query=urlencode(query))), ours


class Connection(typing.Protocol):
    """One connection to an engine. It is never repaired: when it has failed, a new one is made."""

    broken: asyncio.Future[Exception]
    """Done when the connection has failed; the result is the cause."""

    def publish(self, topic: str, data: bytes) -> None: ...

    def subscribe(self, topic: str) -> None: ...

    def unsubscribe(self, topic: str) -> None: ...

    def take_unsent(self) -> list[tuple[str, bytes]]:
        """Remove and return the published messages that were not handed to the engine before the connection broke."""
        ...

    async def flush(self) -> None:
        """As `Broker.flush`; raises the errors of the engine's library, and need not end when the connection fails."""

    async def close(self) -> None: ...


C = TypeVar("C", bound=Connection)
T = TypeVar("T")


async def answer(connection: Connection, question: Awaitable[T], within: float) -> T:
    """Wait for the answer to a question. The time during which this process slept does not count.

    Raises:
        TimeoutError: No answer came within so many seconds.
        Exception: The cause, if the connection has failed meanwhile; or the error that the question raises.
    """
    loop = asyncio.get_running_loop()
    due = loop.time() + within
    timer = asyncio.timeout(None)

    def end(_: object) -> None:
        with suppress(RuntimeError):  # the answer came in the same turn
            timer.reschedule(0)

    def expire() -> None:
        now = loop.time()
        if not connection.broken.done():
            timer.reschedule(now + READ_TIME if now > due + LATE else 0)

    expiry = loop.call_at(due, expire)
    connection.broken.add_done_callback(end)
    try:
        async with timer:
            return await question
    except TimeoutError:
        if connection.broken.done():
            raise connection.broken.result() from None
        raise
    finally:
        expiry.cancel()
        connection.broken.remove_done_callback(end)


def cut(transport: asyncio.WriteTransport) -> None:
    """End a connection that is being closed, if that waits until the engine has taken what was written."""
    with suppress(AttributeError):  # of asyncio's own transports, if they have closed already
        if transport.get_write_buffer_size():
            transport.abort()


BRIEF = 1.0
"""Seconds within which the end of a connection is that of a failed attempt. A login that lacks a right, for example,
gets a connection, and loses it with what it may not send."""

BRIEF_ATTEMPTS = 2
"""The most such attempts that lengthen the next wait: a network that breaks often must not cost the node its lease."""


class ReconnectingBroker(ABC, Generic[C]):
    """The part of a `wse.core.ports.broker.Broker` that connects and carries messages.

    After a failure it tries again for ever. The waits between attempts are random and grow up to 5 seconds, so that the
    nodes do not all reconnect at once.
    """

    spreads = False

    def __init__(self) -> None:
        self._backoff = Backoff(base=0.25, cap=5.0)
        self._node = ""
        self._listener: BrokerListener
        self._topics: set[str] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._connection: C | None = None  # from the moment that it takes subscriptions
        self._ready = False  # all subscriptions are in force on it
        self._steps = asyncio.Semaphore(MAX_CONCURRENT_STEPS)
        self._cause: Exception = ConnectionError("the broker is not open")

    @abstractmethod
    async def _connect(self) -> C:
        """Make a new connection within `ANSWER_TIMEOUT` seconds, or raise the error of the engine's library."""

    @property
    def connected(self) -> bool:
        return self._ready

    async def open(self, node: str, listener: BrokerListener) -> None:
        self._node, self._listener = node, listener
        self._steps = asyncio.Semaphore(MAX_CONCURRENT_STEPS)  # of this event loop
        try:
            connection = await self._establish()
        except Exception as exc:
            raise WseError(ErrorCode.BROKER_UNAVAILABLE) from exc
        self._keeper = asyncio.create_task(self._keep(connection))

    async def close(self, within: float = ANSWER_TIMEOUT) -> None:
        if self._keeper is None:
            return
        end = asyncio.get_running_loop().time() + within
        keeper, self._keeper = self._keeper, None
        while not keeper.done():
            keeper.cancel()
            await asyncio.wait((keeper,), timeout=CANCEL_TIMEOUT)  # the engine's library may swallow a cancellation
        if self._ready:
            with suppress(WseError, TimeoutError):  # if the engine is away, nothing can be sent
                async with asyncio.timeout_at(end):
                    await self.flush()
        self._fail(ConnectionError("the broker is closed"))
        if self._connection is not None:
            await self._drop(self._connection)
        self._topics.clear()

    # Messages.

    def publish(self, topic: str, data: bytes) -> None:
        if self._ready:
            assert self._connection is not None
            self._connection.publish(topic, data)

    def subscribe(self, topic: str) -> None:
        if topic not in self._topics:
            self._topics.add(topic)
            if self._connection is not None:
                self._connection.subscribe(topic)

    def unsubscribe(self, topic: str) -> None:
        if topic in self._topics:
            self._topics.remove(topic)
            if self._connection is not None:
                self._connection.unsubscribe(topic)

    async def flush(self) -> None:
        await self.ask(lambda connection: connection.flush())

    def received(self, topic: str, data: bytes) -> None:
        """Hand a message from a connection to the listener."""
        if topic in self._topics:  # it may have been in flight when the node unsubscribed
            self._listener.received(topic, data)

    # The connection.

    async def ask(
        self, step: Callable[[C], Awaitable[T]], within: float = ANSWER_TIMEOUT, *, urgent: bool = False
    ) -> T:
        """The result of a step that the engine makes, within so many seconds from when it is asked.

        Args:
            step: What is asked of the connection.
            within: Seconds.
            urgent: Do not wait for other steps that are under way.

        Raises:
            WseError: `BROKER_UNAVAILABLE`, caused by the exception of the engine or its library.
        """
        if urgent:
            return await self._ask(step, within)
        async with self._steps:
            return await self._ask(step, within)

    async def _ask(self, step: Callable[[C], Awaitable[T]], within: float) -> T:
        if not self._ready:
            raise WseError(ErrorCode.BROKER_UNAVAILABLE) from self._cause
        assert self._connection is not None
        try:
            return await answer(self._connection, step(self._connection), within)
        except Exception as exc:
            raise WseError(ErrorCode.BROKER_UNAVAILABLE) from exc

    async def _establish(self) -> C:
        """Connect, and bring all subscriptions into force."""
        async with asyncio.timeout(ANSWER_TIMEOUT):
            connection = self._connection = await self._connect()
        async with AsyncExitStack() as undo:
            undo.push_async_callback(self._drop, connection)
            for topic in self._topics:
                connection.subscribe(topic)
            await answer(connection, connection.flush(), SUBSCRIBE_TIMEOUT)
            if connection.broken.done():  # pragma: no cover - before Python 3.12 the flush itself ends so
                raise connection.broken.result()
            undo.pop_all()
        self._ready = True
        return connection

    async def _drop(self, connection: C) -> None:
        self._connection = None
        await connection.close()

    async def _keep(self, connection: C) -> None:
        clock = asyncio.get_running_loop().time
        brief = 0  # connections in a row
        while True:
            since = clock()
            cause = await self._watch(connection)
            brief = min(brief + 1, BRIEF_ATTEMPTS) if clock() - since < BRIEF else 0
            self._fail(cause)
            self._listener.connection_lost(cause, connection.take_unsent())
            await self._drop(connection)
            connection = await self._reconnect(brief)
            self._listener.connection_restored()

    async def _watch(self, connection: C) -> Exception:
        """Wait until the connection fails, and return the cause."""
        while True:
            await asyncio.wait((connection.broken,), timeout=CHECK_INTERVAL)
            if connection.broken.done():
                return connection.broken.result()
            try:
                await answer(connection, connection.flush(), ANSWER_TIMEOUT)
            except Exception as exc:
                return exc

    async def _reconnect(self, attempt: int) -> C:
        while True:
            await asyncio.sleep(self._backoff.delay(attempt))
            try:
                return await self._establish()
            except Exception as exc:
                self._cause = exc
                attempt += 1

    def _fail(self, cause: Exception) -> None:
        self._ready = False
        self._cause = cause
