"""A store in a file, for a server on its own that keeps messages over a restart: SQLite, of the standard library.

    messages   box, n, at, expires, data, size
    boxes      box, last, until, epoch
    cursors    box, device, after, used
    keys       box, key, n, until

The database is used by one thread of its own, so that the event loop does not wait for the disk. Messages that are kept
at the same time are committed together: SQLite then writes to the disk once for all of them.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from secrets import token_hex
from typing import TYPE_CHECKING, TypeVar

from wse.core.ports.store import REPEAT_WITHIN, Cursor, Page, Record, Span
from wse.errors import ErrorCode, WseError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from wse.core.ports.store import Bounds

T = TypeVar("T")

_SCHEMA = """
create table if not exists boxes (box text primary key, last integer not null, until real not null, epoch text not null)
without rowid;
create table if not exists messages (
    box text not null, n integer not null, at real not null, expires real not null, data blob not null,
    primary key (box, n)
) without rowid;
create table if not exists cursors (
    box text not null, device blob not null, after integer not null, used integer not null, primary key (box, device)
) without rowid;
create table if not exists keys (
    box text not null, key blob not null, n integer not null, at real not null, until real not null,
    primary key (box, key)
) without rowid;
create index if not exists keys_until on keys (until);
create index if not exists boxes_until on boxes (until);
"""


class SqliteStore:
    """A `wse.core.ports.store.Store` in an SQLite database. One server at a time uses the file.

    Args:
        path: The file; it is made if it does not exist.
        clock: The time of day, in Unix seconds.
    """

    def __init__(self, path: str, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._thread: ThreadPoolExecutor | None = None
        self._database: sqlite3.Connection
        self._waiting: list[tuple[Callable[[], object], asyncio.Future[object]]] = []

    async def open(self) -> None:
        if self._thread is None:
            thread = ThreadPoolExecutor(1, "wse-sqlite")
            try:
                await asyncio.get_running_loop().run_in_executor(thread, self._connect)
            except sqlite3.Error as exc:
                thread.shutdown()
                raise WseError(ErrorCode.BROKER_UNAVAILABLE, {"path": self._path}) from exc
            self._thread = thread

    async def close(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.get_running_loop().run_in_executor(thread, self._database.close)
            thread.shutdown()

    def _connect(self) -> None:
        # In this thread, and in `close`, which runs in it as well.
        self._database = sqlite3.connect(self._path, isolation_level=None)
        self._database.execute("pragma journal_mode = wal")
        self._database.execute("pragma synchronous = full")
        self._database.executescript(_SCHEMA)

    # Steps.

    async def keep(
        self, box: str, data: bytes, bounds: Bounds, *, key: str | None = None, ttl: float | None = None
    ) -> tuple[Record, bool]:
        return await self._step(lambda: self._keep(box, data, bounds, _name(key), ttl))

    async def read(self, box: str, after: int, count: int) -> Page:
        return await self._step(lambda: self._read(box, after, count))

    async def cursor(self, box: str, device: str, bounds: Bounds, *, from_now: bool = False) -> Cursor:
        return await self._step(lambda: self._cursor(box, _name(device), bounds, from_now))

    async def seen(self, box: str, device: str, number: int) -> None:
        await self._step(lambda: self._seen(box, _name(device), number))

    async def furthest(self, box: str) -> int:
        return await self._step(lambda: self._furthest(box))

    async def last(self, boxes: Sequence[str]) -> list[int]:
        return await self._step(lambda: [self._last(box) for box in boxes])

    async def _step(self, step: Callable[[], T]) -> T:
        """Run a step in the thread, together with others that wait for it."""
        thread = self._thread
        if thread is None:
            raise WseError(ErrorCode.BROKER_UNAVAILABLE) from ConnectionError("the store is not open")
        loop = asyncio.get_running_loop()
        result: asyncio.Future[T] = loop.create_future()
        self._waiting.append((step, result))  # type: ignore[arg-type]  # a future of what its step returns
        if len(self._waiting) == 1:
            loop.call_soon(self._start, thread, loop)
        try:
            return await result
        except Exception as exc:
            problem = f"the file {self._path} cannot be used: {exc}"
            raise WseError(ErrorCode.BROKER_UNAVAILABLE, {"path": self._path}, problem) from exc

    def _start(self, thread: ThreadPoolExecutor, loop: asyncio.AbstractEventLoop) -> None:
        steps, self._waiting = self._waiting, []
        if self._thread is None:
            for _, result in steps:
                _settle(result, None, sqlite3.ProgrammingError("the store is closed"))
        else:
            thread.submit(self._run, steps, loop)

    def _run(
        self, steps: list[tuple[Callable[[], object], asyncio.Future[object]]], loop: asyncio.AbstractEventLoop
    ) -> None:
        """One transaction for all steps; if it fails, each has failed."""
        outcomes: list[tuple[object, Exception | None]] = []
        try:
            self._database.execute("begin immediate")
            for step, _ in steps:
                outcomes.append(self._try(step))
            self._database.execute("commit")
        except Exception as exc:  # the disk is full, or another program has the file
            with suppress(sqlite3.Error):
                self._database.execute("rollback")
            outcomes = [(None, exc)] * len(steps)
        for (_, result), (value, failure) in zip(steps, outcomes, strict=True):
            loop.call_soon_threadsafe(_settle, result, value, failure)

    def _try(self, step: Callable[[], object]) -> tuple[object, Exception | None]:
        """Make a step; if it fails, nothing of it is left."""
        self._database.execute("savepoint step")
        outcome: tuple[object, Exception | None]
        try:
            outcome = step(), None
        except Exception as exc:
            self._database.execute("rollback to step")
            outcome = None, exc
        self._database.execute("release step")
        return outcome

    # In the thread.

    def _keep(self, box: str, data: bytes, bounds: Bounds, key: bytes, ttl: float | None) -> tuple[Record, bool]:
        execute, now = self._database.execute, self._clock()
        self._forget(now)
        if key:
            found = execute("select n, at from keys where box = ? and key = ?", (box, key)).fetchone()
            if found is not None:
                return Record(found[0], found[1], data, self._epoch(box)), False
        number = self._last(box) + 1
        expires = now + bounds.lifetime(ttl)
        execute("insert into messages values (?, ?, ?, ?, ?)", (box, number, now, expires, data))
        until = now + 2 * bounds.ttl
        execute("insert into boxes values (?, ?, ?, ?) on conflict do update set last = excluded.last, "
                "until = excluded.until", (box, number, until, token_hex(4)))  # fmt: skip
        if key:
            execute("insert into keys values (?, ?, ?, ?, ?)", (box, key, number, now, now + REPEAT_WITHIN))
        self._trim(box, number, bounds, now)
        return Record(number, now, data, self._epoch(box)), True

    def _trim(self, box: str, last: int, bounds: Bounds, now: float) -> None:
        execute = self._database.execute
        execute("delete from messages where box = ? and (n <= ? or expires <= ?)", (box, last - bounds.messages, now))
        (size,) = execute("select sum(length(data)) from messages where box = ?", (box,)).fetchone()
        while size > bounds.bytes:
            number, length = execute(
                "select n, length(data) from messages where box = ? order by n limit 1", (box,)
            ).fetchone()
            if number == last:
                break
            execute("delete from messages where box = ? and n = ?", (box, number))
            size -= length

    def _read(self, box: str, after: int, count: int) -> Page:
        now = self._clock()
        rows = self._database.execute(
            "select n, at, data from messages where box = ? and n > ? and expires > ? order by n limit ?",
            (box, after, now, count),
        )
        return Page(tuple(Record(*row) for row in rows), self._span(box, now))

    def _cursor(self, box: str, device: bytes, bounds: Bounds, from_now: bool) -> Cursor:
        execute, now = self._database.execute, self._clock()
        execute("insert into boxes values (?, 0, ?, ?) on conflict do update set until = max(until, excluded.until)",
                (box, now + 2 * bounds.ttl, token_hex(4)))  # fmt: skip
        span = self._span(box, now)
        found = execute("select after from cursors where box = ? and device = ?", (box, device)).fetchone()
        after: int = span.last + 1 if found is None else found[0]
        if after > span.last:
            after = span.last if from_now else 0
        (used,) = execute("select coalesce(max(used), 0) + 1 from cursors where box = ?", (box,)).fetchone()
        execute("insert into cursors values (?, ?, ?, ?) on conflict do update set after = excluded.after, "
                "used = excluded.used", (box, device, after, used))  # fmt: skip
        execute("delete from cursors where box = ? and device not in "
                "(select device from cursors where box = ? order by used desc limit ?)",
                (box, box, bounds.devices))  # fmt: skip
        return Cursor(after, span)

    def _seen(self, box: str, device: bytes, number: int) -> None:
        self._database.execute(
            "update cursors set after = max(after, ?1), "
            "used = (select max(used) + 1 from cursors where box = ?2) where box = ?2 and device = ?3",
            (min(number, self._last(box)), box, device),
        )

    def _last(self, box: str) -> int:
        found = self._database.execute("select last from boxes where box = ?", (box,)).fetchone()
        return 0 if found is None else int(found[0])

    def _epoch(self, box: str) -> str:
        found = self._database.execute("select epoch from boxes where box = ?", (box,)).fetchone()
        return "" if found is None else str(found[0])

    def _furthest(self, box: str) -> int:
        (after,) = self._database.execute("select max(after) from cursors where box = ?", (box,)).fetchone()
        return after or 0

    def _span(self, box: str, now: float) -> Span:
        last = self._last(box)
        (first,) = self._database.execute(
            "select min(n) from messages where box = ? and expires > ?", (box, now)
        ).fetchone()
        return Span(last + 1 if first is None else first, last, self._epoch(box))

    def _forget(self, now: float) -> None:
        """Forget keys, and a few boxes that have not been used for long."""
        execute = self._database.execute
        execute("delete from keys where until <= ?", (now,))
        for (box,) in execute("select box from boxes where until <= ? limit 10", (now,)).fetchall():
            for table in ("messages", "cursors", "boxes"):
                execute(f"delete from {table} where box = ?", (box,))  # noqa: S608 - the names above


def _name(name: str | None) -> bytes:
    """A key or the name of a device, of which any characters may be made."""
    return b"" if name is None else b"k" + name.encode("utf-8", "surrogatepass")


def _settle(result: asyncio.Future[object], value: object, failure: Exception | None) -> None:
    if result.done():  # the caller was cancelled
        return
    if failure is None:
        result.set_result(value)
    else:
        result.set_exception(failure)
