"""The readers of one box on this node: each gets every message once, in order, whatever way it comes.

A message comes as a *hint*, when it has just been kept, or is read from the store. A hint is handed out if it is the
next one. After any other hint, and for readers that are behind, the store is read: by one task for all readers, in
pages. A reader that does not take more is left behind, and goes on when it does, so nothing waits for it in memory.
"""

from __future__ import annotations

import typing
from typing import TYPE_CHECKING

from wse.core.hub.fanout import deliver
from wse.core.ports.scheduling import next_turn
from wse.errors import WseError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from wse.core.hub.connection import WseConnection
    from wse.core.hub.kept.form import Kept
    from wse.core.packed import Packed
    from wse.core.ports.protocol import Protocol
    from wse.core.ports.store import Record, Store
    from wse.core.session.endpoint import Endpoint

PAGE = 64
"""Messages that are read at a time."""

RETRY_AFTER = 2.0
"""Seconds after which a store that has failed is read again."""


class Reader:
    """A device that gets all messages of a box.

    Args:
        conn: The device.
        position: The number of the last message that it has.
        epoch: The epoch in which it has that number; empty if that is not known.

    Attributes:
        position: The number of the last message that was written to it.
        epoch: The epoch of that number.
        wants: Whether it wants more at the moment.
    """

    __slots__ = ("conn", "epoch", "is_waiting", "position", "wants")

    def __init__(self, conn: WseConnection, position: int = 0, epoch: str = "") -> None:
        self.conn = conn
        self.position = position
        self.epoch = epoch
        self.wants = True
        self.is_waiting = False  # until its socket takes more

    @property
    def takes(self) -> bool:
        """Whether it takes a message now."""
        return self.wants and self.conn._session._writable

    def came(self) -> None:
        """A page of messages has come."""

    def gone(self) -> None:
        """It reads the box no more."""

    def lost(self) -> None:
        """The box was lost, and numbers its messages anew."""
        self.position = 0


class Desk(typing.Protocol):
    """What all feeds of a node share."""

    endpoint: Endpoint
    store: Store

    def decode(self, box: str, record: Record) -> Kept | None:
        """The message; `None` if it cannot be decoded, which is reported."""
        ...


class Feed:
    """The readers of one box.

    Args:
        desk: The store, and what belongs to it.
        box: The name of the box.
        form: The form in which its readers get a message.

    Attributes:
        readers: The readers, by the ids of their connections.
        last: The number of the newest message, as far as is known.
        epoch: The epoch of the box, as far as is known.
    """

    __slots__ = ("_box", "_desk", "_form", "_is_reading", "_must_look", "_will_retry", "epoch", "last", "readers")

    def __init__(self, desk: Desk, box: str, form: Callable[[Kept, Protocol], Packed]) -> None:
        self._desk = desk
        self._box = box
        self._form = form
        self.readers: dict[str, Reader] = {}
        self.last = 0
        self.epoch = ""
        self._is_reading = False
        self._must_look = False
        self._will_retry = False

    def add(self, reader: Reader) -> None:
        """Add a reader. `look` gives it what it has not got."""
        replaced = self.readers.get(reader.conn.conn_id)
        self.readers[reader.conn.conn_id] = reader
        if replaced is not None:
            replaced.gone()

    def heard(self, number: int, epoch: str, message: Kept | None) -> None:
        """A message has been kept.

        Args:
            number: Its number.
            epoch: The epoch of the box.
            message: The message; `None` if it must be read.
        """
        if message is None or self._is_reading or number != self.last + 1 or epoch != self.epoch:
            self.look()
            return
        self.last = number
        waiting = [reader for reader in self.readers.values() if reader.position == number - 1]
        self._hand_out([(number, message)], waiting)
        if any(reader.position < number and reader.wants and not reader.is_waiting for reader in self.readers.values()):
            self.look()

    def look(self) -> None:
        """Read what there is in the store."""
        self._must_look = True
        if not self._is_reading and self.readers:
            self._is_reading = True
            self._desk.endpoint.scheduler.spawn(self._read())

    async def _read(self) -> None:
        scheduler = self._desk.endpoint.scheduler
        try:
            while self.readers and (ready := self._find_ready()) is not None:
                await self._read_page(ready)
                await next_turn(scheduler)  # what was written leaves, and shows which readers are slow
        except WseError as exc:
            problem = f"kept messages cannot be read: {exc}"
            self._desk.endpoint.report(WseError(exc.code, {"box": self._box}, problem), None, exc)
            if not self._will_retry:
                self._will_retry = True
                scheduler.call_later(RETRY_AFTER, self._retry)
        finally:
            self._is_reading = False

    def _retry(self) -> None:
        self._will_retry = False
        self.look()

    def _find_ready(self) -> list[Reader] | None:
        """The readers that are behind and take more; `None` if there is nothing to read."""
        ready: list[Reader] = []
        for reader in self.readers.values():
            if reader.position < self.last or self._must_look:
                if reader.takes:
                    ready.append(reader)
                elif reader.wants and not reader.is_waiting:
                    reader.is_waiting = True
                    self._desk.endpoint.scheduler.spawn(self._wait_for(reader))
        return ready or None

    async def _wait_for(self, reader: Reader) -> None:
        try:
            await reader.conn._session.drain()
        finally:
            reader.is_waiting = False
        if reader.conn.conn_id in self.readers:
            self.look()

    async def _read_page(self, ready: list[Reader]) -> None:
        self._must_look = False
        after = min(reader.position for reader in ready)
        page = await self._desk.store.read(self._box, after, PAGE)
        # Readers may have come, gone and got hints meanwhile: none of them gets anything twice, or out of order. A hint
        # that came meanwhile has set `_must_look`.
        self.last = page.span.last
        self.epoch = epoch = page.span.epoch
        # The engine has lost the box, which may have grown again.
        beyond = [reader for reader in ready if reader.position > self.last or reader.epoch not in ("", epoch)]
        for reader in beyond:
            reader.epoch = epoch
            reader.lost()
        ready = [reader for reader in ready if self.readers.get(reader.conn.conn_id) is reader and reader not in beyond]
        self._must_look = self._must_look or bool(beyond)
        for reader in ready:
            reader.epoch = epoch
        self._hand_out([(record.number, self._desk.decode(self._box, record)) for record in page.records], ready)
        if len(page.records) < PAGE:  # what is missing up to here is no longer there
            for reader in ready:
                if not page.records or reader.position >= page.records[-1].number:
                    reader.position = max(reader.position, page.span.last)
        for reader in ready:
            reader.came()

    def _hand_out(self, messages: list[tuple[int, Kept | None]], readers: list[Reader]) -> None:
        """Write messages in order to those that take them; the others are left behind."""
        for number, message in messages:
            readers = [reader for reader in readers if reader.takes]
            conns: list[WseConnection] = []
            for reader in readers:
                if reader.position < number:
                    reader.position = number
                    conns.append(reader.conn)
            if message is not None and conns:
                deliver_kept(self._desk.endpoint, message, self._form, conns)


def deliver_kept(
    endpoint: Endpoint,
    message: Kept,
    form: Callable[[Kept, Protocol], Packed],
    conns: Collection[WseConnection],
) -> None:
    """Send a kept message to valid connections, encoded once for each message protocol that they speak."""
    forms: dict[Protocol, Packed] = {}
    for protocol in {conn._session.protocol for conn in conns}:
        try:
            forms[protocol] = form(message, protocol)
        except WseError as exc:  # it cannot carry the message; others can
            endpoint.report(exc)
    if forms:
        deliver(endpoint, [conn for conn in conns if conn._session.protocol in forms], message.type, forms)
