"""The books of a session that outlives its connection (WIRE.md section 7, `resume`).

Both sides number the messages of each direction by counting, from 1 after the welcome: no message carries its number.
The ledger stands between a session and its link, and everything passes through it. It counts what comes, and confirms
it now and then; it keeps what goes until the peer has confirmed it, and sends the rest again over the next link. Only
its own messages (`ack`, `ask`, `gap`) are not counted.
"""

from __future__ import annotations

import typing
from math import inf
from typing import TYPE_CHECKING, Any, Final

from wse.core.packed import Packed, encode
from wse.errors import ErrorCode, WseError
from wse.tasks import wake

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from wse.core.ports.protocol import ExtensionTypes
    from wse.core.ports.transport import Link, PingingLink, Receiver
    from wse.core.resume import Resume
    from wse.core.session.acks import Acks
    from wse.core.session.outbox import Outbox
    from wse.core.session.retention import Retention
    from wse.core.session.session import Session

BATCH: Final = 64
"""Messages after which an ack is sent at once. Fewer are confirmed by the next sweep (`Acks`), or when asked."""

OVERHEAD: Final = 56
"""Bytes that a kept message takes beside its payload."""

SHARED: Final = 64
"""Bytes that a kept message takes that others keep as well."""

UNCOUNTED: Final = 32 * 1024
"""Bytes that a growing ring may hold before they are counted. Mostly they are confirmed before."""

PART: Final = 8192
"""The part of what all sessions keep together that each may hold before it is counted: one in so many."""

UNIT: Final = 256
"""Bytes that a message is taken for until it is counted; a longer one is taken for several such."""

SMALL: Final = UNIT - OVERHEAD
"""Bytes of the payload of a message that takes no more than a `UNIT`."""

MAX_NUMBER: Final = 2**53 - 1
"""The largest number that a message can have."""

STUCK_AFTER: Final = 5
"""How often the same message may be the first to be sent again, each time on a link that breaks within `STUCK_WITHIN`
seconds. A proxy may break every connection that carries it."""

STUCK_WITHIN: Final = 5.0


class _NoLink:
    """Stands for the link of a session that has none."""

    pings = False
    buffered = 0
    remote_addr = ""

    def write(self, data: str | bytes) -> None: ...

    def write_utf8(self, data: bytes) -> None: ...

    def write_shared(self, packed: Packed) -> None: ...

    def close(self, code: int, reason: str) -> None: ...

    def abort(self) -> None: ...

    def attach(self, session: Receiver) -> None: ...


NO_LINK: Final[Link] = _NoLink()


class Ledger:
    """A `Link` for its session, and the `Receiver` of the session's present link.

    Args:
        session: The session.
        bounds: How much is kept for it.
        acks: The acks of all sessions of the endpoint that are due.
        retention: What all sessions of the endpoint keep together.

    Attributes:
        link: The present link; `NO_LINK` while there is none.
        ring: The messages that the peer has not confirmed, in order, each as it was written; `None` is one that must
            not be delivered any more.
        base: The number of the first of them.
        unsent: What was never sent, when the session has ended.
        got: How many messages have come.
        heard: How many messages the peer has confirmed.
        is_certain: Whether the peer has certainly not had what is in the ring, since it has said what it had.
    """

    __slots__ = (
        "_ack_scheduled",
        "_acked",
        "_acks",
        "_asked",
        "_attached_at",
        "_bounds",
        "_charged",
        "_counted",
        "_first",
        "_flushes",
        "_is_short",
        "_late_ack",
        "_look_at",
        "_owes_ack",
        "_resend",
        "_retention",
        "_returns",
        "_saved",
        "_size",
        "_takes",
        "_waiting",
        "ack_at",
        "base",
        "got",
        "heard",
        "is_certain",
        "link",
        "pings",
        "ring",
        "session",
        "unsent",
    )

    def __init__(self, session: Session, bounds: Resume, acks: Acks, retention: Retention) -> None:
        self.session = session
        self.link: Link = NO_LINK
        self.pings = False
        self.ring: list[Packed | str | bytes | None] = []
        self.base = 1
        self.unsent: tuple[Packed, ...] = ()
        self.got = 0
        self.heard = 0
        self.is_certain = False
        self.ack_at: float = 1
        self._bounds = bounds
        self._acks = acks
        self._retention = retention
        self._acked = 0  # how much of `got` the peer has been told
        self._ack_scheduled = False
        self._late_ack = False  # an ack is due when the socket takes more
        self._owes_ack = False  # the peer has asked for one
        self._asked = False  # the peer for an ack
        self._look_at = 0  # the length of the ring above which it is counted
        self._counted = 0  # how many of its messages have been
        self._size = 0  # their bytes, with `OVERHEAD` for each
        self._saved = 0  # those of these that others keep as well
        self._charged = 0  # bytes that the retention has for this session
        self._flushes: tuple[tuple[int, asyncio.Future[None]], ...] = ()  # by number
        self._waiting: tuple[tuple[int, asyncio.Future[None]], ...] = ()  # the same by the place in the outbox
        self._takes = True  # the socket takes more
        self._resend: int | None = None  # the number of the next message to be sent again
        self._attached_at = 0.0
        self._is_short = False  # the last link broke within STUCK_WITHIN
        self._first = 0  # the first number that was sent again on the last return
        self._returns = 0  # in a row that began with it
        self._set_look()

    @property
    def out(self) -> int:
        """How many messages have been numbered."""
        return self.base + len(self.ring) - 1

    @property
    def newest(self) -> Packed | str | bytes | None:
        """The message that was written last, if it is kept."""
        return self.ring[-1] if self.ring else None

    @property
    def is_attached(self) -> bool:
        """Whether there is a link."""
        return self.link is not NO_LINK

    # Link: called by the session.

    def write(self, data: str | bytes) -> None:
        ring = self.ring
        ring.append(data)
        if len(data) > SMALL:
            self._look_at -= (len(data) + OVERHEAD) // UNIT
        if len(ring) > self._look_at:
            self._grown()
        self.link.write(data)

    def write_utf8(self, data: bytes) -> None:
        ring = self.ring
        ring.append(data)
        if len(data) > SMALL:
            self._look_at -= (len(data) + OVERHEAD) // UNIT
        if len(ring) > self._look_at:
            self._grown()
        self.link.write_utf8(data)

    def write_shared(self, packed: Packed) -> None:
        ring = self.ring
        ring.append(packed)
        if len(packed.data) > SMALL:
            self._look_at -= (len(packed.data) + OVERHEAD) // UNIT
        if len(ring) > self._look_at:
            self._grown()
        self.link.write_shared(packed)

    def close(self, code: int, reason: str) -> None:
        self.link.close(code, reason)

    def abort(self) -> None:
        self.link.abort()

    def attach(self, session: Receiver) -> None:
        self.link.attach(session)

    @property
    def buffered(self) -> int:
        return self.link.buffered

    @property
    def remote_addr(self) -> str:
        return self.link.remote_addr

    @property
    def pinger(self) -> PingingLink:
        """The present link, if it `pings`."""
        return typing.cast("PingingLink", self.link)

    # Receiver: called by the link.

    def receive(self, data: str | bytes | memoryview) -> None:
        self.got = got = self.got + 1
        if got >= self.ack_at:
            self._ack_due()
        self.session.receive(data)

    def closed(self, code: int, reason: str) -> None:
        session = self.session
        if session.ended or not session.outlives(code):
            session.closed(code, reason)
        else:
            self.detach(code, reason)

    def writable(self, writable: bool) -> None:
        self._takes = writable
        if writable and self._late_ack:
            self._late_ack = False
            self._ack_soon()
        if self._resend is None:
            self.session.writable(writable)
        elif writable:
            self._send_again()

    def violated(self, code: int, problem: str) -> None:
        self.session.violated(code, problem)

    def pong(self) -> None:
        self.session.pong()

    # From link to link.

    def begin(self, link: Link, takes: bool) -> None:
        """Count from here on; everything that was written before is not counted.

        Args:
            link: The link.
            takes: Whether its socket takes more.
        """
        self.link = link
        self.pings = link.pings
        self._takes = takes
        self._late_ack = self._owes_ack = False
        self._attached_at = self.session.endpoint.scheduler.time()

    def listen(self) -> None:
        """Count what comes from here on, too, where that was not so from the beginning."""
        self._takes = self.session._writable
        self.link.attach(self)

    def detach(self, code: int, reason: str) -> None:
        """The link is gone, and the session goes on without one."""
        self.leave()
        self.session.detached(code, reason)

    def leave(self) -> None:
        """Write to the link no longer; until there is another one, and what was missed has been sent, messages wait."""
        self.session.writable(False)
        self.link = NO_LINK
        self.pings = False
        self._asked = False
        self._resend = None
        self._is_short = self.session.endpoint.scheduler.time() - self._attached_at < STUCK_WITHIN
        self._acks.remove(self)

    def obstacle(self, got: int, sent: tuple[int, int]) -> str | None:
        """Why the session cannot go on with a peer that has handled `got` messages and keeps those from `sent[0]` to
        `sent[1]`; `None` if it can.
        """
        if got > self.out or self.got > sent[1]:
            return "mismatch"
        if got < self.base - 1:
            return "overflow"
        if self.got + 1 < sent[0]:
            return "gap"
        return "stuck" if self._breaks_links(got + 1) else None

    @property
    def breakage(self) -> tuple[int, int, bool]:
        """What is known about messages that break links: the first that was sent again on the last link, on how many
        links in a row it was the first, and whether the last one broke at once.
        """
        return self._first, self._returns, self._is_short

    def restore(
        self, got: int, base: int, ring: list[Packed | str | bytes | None], breakage: tuple[int, int, bool]
    ) -> None:
        """Take over the books of a session that goes on here."""
        self.got = self._acked = got
        self.ack_at = got + 1
        self.ring = ring
        self.base = base
        self.heard = base - 1
        self._count()
        self._set_look()
        self._first, self._returns, self._is_short = breakage

    @property
    def is_stuck(self) -> bool:
        """Whether the first message that is kept has broken too many links."""
        return bool(self.ring) and self._breaks_links(self.base)

    def _breaks_links(self, number: int) -> bool:
        """Whether that message was the first to be sent again on each of the last links, which broke at once."""
        return self._is_short and self._first == number and self._returns >= STUCK_AFTER

    def resume(self, link: Link, takes: bool, got: int) -> None:
        """Go on over a link whose peer has handled `got` messages: send the others again, then what waits."""
        self.confirm(got)
        if self.ring:
            is_same = self._is_short and self._first == self.base
            self._returns = self._returns + 1 if is_same else 1
            self._first = self.base
        self._acked = self.got
        self.ack_at = self.got + 1
        self.begin(link, takes)
        link.attach(self)
        self.charge()  # what waits is the socket's affair again
        self._resend = self.base
        self._send_again()

    def _send_again(self) -> None:
        """Send what the peer has missed, as far as the socket takes it; then the session goes on writing."""
        session = self.session
        gap = 0
        while self._resend is not None and self._resend <= self.out and self._takes:
            message = self.ring[self._resend - self.base]
            self._resend += 1
            if message is None:
                gap += 1
                continue
            if gap:
                self._control(self._types.gap, gap)
                gap = 0
            if isinstance(message, Packed):
                self.link.write_shared(message)
            elif isinstance(message, bytes) and session.protocol.codec.utf8:
                self.link.write_utf8(message)
            else:
                self.link.write(message)
        if gap:
            self._control(self._types.gap, gap)
        if self._resend is not None and self._resend > self.out:
            self._resend = None
            if self._takes:
                session.writable(True)
            if self._flushes:
                self.ask()

    def finish_resending(self) -> None:
        """Send all that is left to be sent again, since the link is about to be closed."""
        if self._resend is not None:
            self._takes = True
            self._send_again()

    # What the peer confirms.

    def confirm(self, number: int) -> None:
        """The peer has handled the messages up to this number."""
        self.heard = number
        self._asked = False
        count = number - self.base + 1
        if count > 0:
            self._drop(count)
        while self._flushes and self._flushes[0][0] <= number:
            (_, future), *later = self._flushes
            self._flushes = tuple(later)
            wake(future)
        if self._flushes and self._resend is None:
            self.ask()

    def _drop(self, count: int) -> None:
        """Keep the oldest messages no longer."""
        ring = self.ring
        counted = self._counted
        if counted > count:
            size, saved = _sizes(ring[:count])
            self._size -= size
            self._saved -= saved
            self._counted = counted - count
        elif counted:
            self._size = self._saved = self._counted = 0
        del ring[:count]
        self.base += count
        if self._charged:
            self._charge()
        if len(ring) > self._counted:
            self._look_at -= count
        else:
            self._set_look()

    def ask(self) -> None:
        """Ask the peer for an ack, once."""
        if not self._asked and self.is_attached:
            self._asked = True
            self._control(self._types.ask, None)

    def flushed(self, outbox: Outbox | None) -> asyncio.Future[None]:
        """A future that is done when the peer has handled everything that has been sent until now."""
        future: asyncio.Future[None] = self.session.endpoint.scheduler.create_future()
        if outbox:
            self._waiting += ((outbox.last, future),)
        elif self.out <= self.heard:
            future.set_result(None)
        else:
            self._flushes += ((self.out, future),)
            if self._resend is None:
                self.ask()
        return future

    def outbox_moved(self, outbox: Outbox) -> None:
        """Messages have left the outbox, so they have numbers now."""
        moved = 0
        while self._waiting and (not outbox or self._waiting[0][0] < outbox.first):
            self._flushes += ((self.out, self._waiting[0][1]),)
            self._waiting = self._waiting[1:]
            moved += 1
        if moved:
            self.ask()

    # What this side confirms.

    def _ack_due(self) -> None:
        if self.ack_at == self._acked + 1:
            self.ack_at = self._acked + BATCH
            self._acks.add(self)
        else:
            self._ack_soon()

    def _ack_soon(self) -> None:
        """Send an ack in the next turn: what has just been counted may turn out not to count."""
        self.ack_at = inf
        if not self._ack_scheduled:
            self._ack_scheduled = True
            self.session.endpoint.scheduler.call_soon(self.send_ack)

    def send_ack(self) -> None:
        """Tell the peer how many messages have been handled, if it does not know that or has asked."""
        self._ack_scheduled = False
        self._acks.remove(self)
        has_news = self.got > self._acked or self._owes_ack  # else two sides would confirm each other's acks for ever
        if self.session.ended or not self.is_attached or not has_news:
            self.ack_at = self._acked + 1
        elif not self._takes:
            self._late_ack = True  # a peer that takes nothing must not make acks pile up
        else:
            self._acked = self.got
            self._owes_ack = False
            self.ack_at = self.got + 1
            self._control(self._types.ack, self.got)

    def _control(self, type_: Any, payload: Any) -> None:
        """Send a message that is not counted."""
        self.link.write_shared(encode(self.session.protocol, type_, payload))

    @property
    def _types(self) -> ExtensionTypes:
        types = self.session.protocol.extensions
        assert types is not None  # else nothing could be negotiated
        return types

    # Messages of the peer that are not counted, although they have just been.

    def ack_came(self, number: Any) -> None:
        self.got -= 1
        if not is_count(number) or not self.heard <= number <= self.out:
            self.session.violation(f"the peer confirms {number!r} messages: {self.heard} to {self.out} are possible")
        elif self._resend is None or number < self._resend:
            self.confirm(number)
        else:
            self.session.violation(f"the peer confirms {number} messages, but {self._resend} has not been sent again")

    def ask_came(self) -> None:
        self.got -= 1
        self._owes_ack = True
        self._ack_soon()

    def gap_came(self, count: Any) -> None:
        self.got -= 1
        if not is_count(count) or not count or self.got + count > MAX_NUMBER:
            self.session.violation(f"a gap of {count!r} messages")
        else:
            self.got += count
            if self.got >= self.ack_at:
                self._ack_due()

    # Bounds.

    def _grown(self) -> None:
        """The ring has grown by so much that something has to be decided."""
        bounds = self._bounds
        ring = self.ring
        self._count()
        while self._size > bounds.bytes or len(ring) > bounds.messages:
            # The peer reads but does not confirm. The connection goes on, but the session may not outlive it.
            self._drop((len(ring) + 1) // 2)
        if self._size > bounds.bytes // 2 or len(ring) > bounds.messages // 2:
            self.ask()
        self._charge()
        self._set_look()

    @property
    def size(self) -> int:
        """The bytes of the messages in the ring, with `OVERHEAD` for each."""
        self._count()
        return self._size

    def _count(self) -> None:
        """Count the messages that have not been counted yet."""
        if self._counted < len(self.ring):
            size, saved = _sizes(self.ring[self._counted :])
            self._size += size
            self._saved += saved
            self._counted = len(self.ring)

    def _set_look(self) -> None:
        """Decide how far the ring may grow, all of which has been counted, before that must be done again."""
        bounds, length = self._bounds, len(self.ring)
        room = min(UNCOUNTED, bounds.retained // PART, bounds.bytes - self._size) // UNIT
        self._look_at = length + min(room, bounds.messages - length)

    def charge(self) -> None:
        """Tell the retention how much this session keeps."""
        self._count()
        self._charge()

    def _charge(self) -> None:
        queued = 0 if self.is_attached else self.session.outbox_size
        change = self._size - self._saved + queued - self._charged
        if change:
            self._charged += change
            self._retention.charge(self, change)

    def forget_ring(self) -> None:
        """Keep nothing of what has been sent: the session does not outlive this link."""
        if self.ring:
            self._drop(len(self.ring))

    def room(self, outbox: Outbox) -> int:
        """Bytes that may wait in the outbox while there is no link."""
        room = self._bounds.bytes - self.size
        if len(self.ring) + len(outbox) >= self._bounds.messages:
            room = min(room, outbox.size)  # one more must take the place of another
        return room

    # The end.

    def withdraw(self, message: Packed | str | bytes) -> bool | None:
        """Take back a message that must not be delivered any more.

        Returns:
            Whether the peer has had it; `None` if that is not known.
        """
        ring = self.ring
        for index in range(len(ring) - 1, -1, -1):
            if ring[index] is message:
                self._count()
                size, saved = _sizes((message,))
                self._size -= size - OVERHEAD
                self._saved -= saved
                ring[index] = None
                return False if self.is_certain else None
        if any(waiting is message for waiting in self.unsent):
            return False
        return True if self.base - 1 <= self.heard else None

    def set_aside(self, outbox: Outbox) -> None:
        """Keep what waits apart: it will not be sent."""
        self.unsent += tuple(outbox.messages)
        outbox.clear()

    def end(self, outbox: Outbox | None) -> None:
        """The session has ended; what the peer has not confirmed stays for those who ask."""
        self._forget_waiting()
        if outbox is not None:
            self.set_aside(outbox)
        self._acks.remove(self)
        if self._charged:
            change, self._charged = -self._charged, 0
            self._retention.charge(self, change)

    def _forget_waiting(self) -> None:
        for _, future in (*self._flushes, *self._waiting):
            if not future.done():
                future.set_exception(WseError(ErrorCode.SESSION_LOST))
        self._flushes = self._waiting = ()


def is_count(value: Any) -> typing.TypeGuard[int]:
    """Whether a value of a peer is a number of messages."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_NUMBER


def _sizes(messages: Iterable[Packed | str | bytes | None]) -> tuple[int, int]:
    """The bytes of messages with `OVERHEAD`, and those of them that this session does not account for."""
    size = saved = 0
    for message in messages:
        size += OVERHEAD
        if isinstance(message, Packed):
            length = len(message.data)
            size += length
            if message.shared:
                saved += length + OVERHEAD - SHARED
        elif message is not None:
            size += len(message)
    return size, saved
