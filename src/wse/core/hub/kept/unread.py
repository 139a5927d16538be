"""Tells the application of messages that no device has read for a while: `Inbox(undelivered=...)`.

The node that has kept a message looks after it: when the time has passed, it compares the message's number with the
cursors of the user's devices. A repeat with the same key may have made another node look as well, so the event is
claimed in the store, by a message with a key in a box of its own.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from wse.core.hub.kept.feed import RETRY_AFTER
from wse.core.hub.kept.form import box_of
from wse.core.hub.network import USER
from wse.core.ports.store import REPEAT_WITHIN
from wse.errors import ErrorCode, WseError

if TYPE_CHECKING:
    from wse.core.hub.hub import Hub
    from wse.core.hub.kept.keeper import Keeper
    from wse.core.ports.scheduling import Timer
    from wse.core.session.signals import Signal
    from wse.types import ClientId

MOST: Final = 100_000
"""Messages that one node looks after; one more, and it forgets the oldest, which is reported."""

REPORTED_WITHIN: Final = 3.0
"""Seconds within which a connected device has told what it has handled: it does so every 2 seconds."""

CLAIMS: Final = "w."
"""How the names of the boxes begin in which events are claimed."""


class Unchecked(NamedTuple):
    """A message that somebody should read.

    Attributes:
        due: When it is looked at.
        cid: Its user.
        number: Its number.
        epoch: The epoch of its number.
    """

    due: float
    cid: ClientId
    number: int
    epoch: str


class Unread:
    """The messages of one node that nobody may have read.

    Args:
        keeper: The boxes.
        hub: Knows whether a user has a device.
        after: Seconds that devices have to read a message.
        undelivered: Fires for a message that none has read.
    """

    def __init__(self, keeper: Keeper, hub: Hub, after: float, undelivered: Signal[ClientId, object, object]) -> None:
        self._keeper = keeper
        self._hub = hub
        self._after = after
        self._undelivered = undelivered
        self._scheduler = keeper.endpoint.scheduler
        self._unchecked: deque[Unchecked] = deque()
        self._again = 0  # messages that are looked at once more
        self._timer: Timer | None = None

    def __len__(self) -> int:
        return len(self._unchecked) + self._again

    def watch(self, cid: ClientId, number: int, epoch: str) -> None:
        """Look after a message that has just been kept."""
        self._unchecked.append(Unchecked(self._scheduler.time() + self._after, cid, number, epoch))
        if len(self._unchecked) > MOST:
            details = {"limit": "undelivered", "allowed": MOST, "cid": self._unchecked.popleft().cid}
            problem = "there are too many kept messages whose reading is waited for"
            self._keeper.endpoint.report(WseError(ErrorCode.LIMIT_EXCEEDED, details, problem))
        if self._timer is None:
            self._timer = self._scheduler.call_later(self._after, self._look)

    def stop(self) -> None:
        """Look after nothing any longer."""
        self._unchecked.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def forget_loop(self) -> None:
        """The event loop has ended: nothing of it runs again."""
        self._timer = None
        self._unchecked.clear()

    def _look(self) -> None:
        self._timer = None
        now = self._scheduler.time()
        users: dict[ClientId, list[Unchecked]] = {}
        while self._unchecked and self._unchecked[0].due <= now:
            message = self._unchecked.popleft()
            users.setdefault(message.cid, []).append(message)
        if self._unchecked:
            self._timer = self._scheduler.call_later(self._unchecked[0].due - now, self._look)
        if users:
            self._scheduler.spawn(self._check(users))

    async def _check(self, users: dict[ClientId, list[Unchecked]], *, is_last: bool = False) -> None:
        """Look at messages that are due. With `is_last`, fire now for those that are unread; otherwise those of users
        with a device, which may not have told yet, are looked at once more.
        """
        left = dict(users)
        again: dict[ClientId, list[Unchecked]] = {}
        try:
            for cid, messages in users.items():
                box = box_of(USER, cid)
                read = await self._keeper.store.furthest(box)
                messages[:] = [message for message in messages if message.number > read]
                if messages and not is_last and await self._hub.network.devices(cid):
                    again[cid] = messages
                else:
                    await self._tell(box, messages)
                del left[cid]
        except WseError as exc:
            problem = f"it is not known whether kept messages have been read: {exc}"
            self._keeper.endpoint.report(WseError(exc.code, {}, problem), None, exc)
            self._check_after(RETRY_AFTER, left, is_last=is_last)
        if again:
            self._check_after(REPORTED_WITHIN, again, is_last=True)

    def _check_after(self, wait: float, users: dict[ClientId, list[Unchecked]], *, is_last: bool) -> None:
        if not self._keeper.is_open:
            return
        number = sum(map(len, users.values()))
        self._again += number

        def check() -> None:
            self._again -= number
            if self._keeper.is_open:
                self._scheduler.spawn(self._check(users, is_last=is_last))

        self._scheduler.call_later(wait, check)

    async def _tell(self, box: str, messages: list[Unchecked]) -> None:
        """Fire for messages, and take them out of the list."""
        while messages:
            await self._tell_one(box, messages[0])
            del messages[0]

    async def _tell_one(self, box: str, message: Unchecked) -> None:
        store, bounds = self._keeper.store, self._keeper.settings.bounds
        page = await store.read(box, message.number - 1, 1)
        if not page.records or page.records[0].number != message.number or page.span.epoch != message.epoch:
            return  # it is no longer there
        claim = f"{message.epoch}.{message.number}"
        _, is_first = await store.keep(CLAIMS + box, b"", bounds, key=claim, ttl=REPEAT_WITHIN)
        kept = self._keeper.decode(box, page.records[0]) if is_first else None
        if kept is not None:
            self._keeper.endpoint.counters.undelivered["keep"] += 1
            self._undelivered._emit(message.cid, kept.type, kept.payload)
