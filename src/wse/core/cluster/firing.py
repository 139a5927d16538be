"""The `joined` and `left` events that this node fires: each transition once, and a user's in their order.

The register writes a transition into the outbox of one node, which claims it before it fires it; see
`wse.core.ports.broker`. From hearing of a transition until its event has fired:

    heard of    `claim`          the node asks whether the transition is its own to fire
    no answer   `retry`          it asks again; a later transition of the same user takes this one along
    granted     `emit`           the event fires, and the register may forget that it was claimed
    refused                      another node has inherited it, or it has fired here already
    lost        `register_lost`  the register is gone, and nobody else knows of it: `joined` fires, and the new register
                                 decides about `left`
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wse.core.hub.connection import WseIdentity
from wse.core.names import decode_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from wse.core.cluster.bus import Bus
    from wse.core.hub.hub import Hub
    from wse.core.ports.broker import Transition

    Event = tuple[Transition, WseIdentity | None]
    """A transition, and the user as it was here."""

FIRED_TTL = 60.0
"""Seconds for which the node remembers what it has fired: the outbox may bring it again, until `fired` has arrived."""

MAX_CLAIMED = 500
"""Users whose transitions are claimed in one step: others are not kept waiting when a node with very many has died."""

MAX_FIRED = 8
"""How many of a user's transitions are remembered."""


class Firing:
    """What this node has to fire.

    Args:
        bus: The way to the broker.
        hub: Fires the events.
    """

    def __init__(self, bus: Bus, hub: Hub) -> None:
        self._broker = bus.broker
        self._hub = hub
        self._scheduler = hub.endpoint.scheduler
        self._open: dict[str, dict[int, Event]] = {}  # by user and generation, what was heard of and is not decided
        self._fired: dict[str, tuple[tuple[int, ...], float]] = {}  # by user, generations fired here, and when

    async def fire(self, transitions: Iterable[Transition], identity: WseIdentity | None = None) -> None:
        """Claim transitions, and fire those that are this node's to fire.

        Args:
            transitions: What a step of the register has answered, or its outbox holds.
            identity: The user as it was here.

        Raises:
            WseError: `BROKER_UNAVAILABLE`: it is not known whose they are; see `retry`.
        """
        await self._fire(self._hear(transitions, identity))

    async def claim(self, transitions: Iterable[Transition], identity: WseIdentity | None = None) -> list[Event]:
        """Claim transitions; those that are this node's to fire, and that nobody but the caller fires.

        Raises:
            WseError: As `fire`.
        """
        return await self._claim(self._hear(transitions, identity))

    def _hear(self, transitions: Iterable[Transition], identity: WseIdentity | None) -> list[str]:
        """Note transitions that are not decided; their users."""
        users: dict[str, None] = {}
        for one in transitions:
            if one.generation not in self.generations(one.user):
                users[one.user] = None
                self._open.setdefault(one.user, {}).setdefault(one.generation, (one, identity))
        return [*users]

    async def _fire(self, users: list[str]) -> None:
        for start in range(0, len(users), MAX_CLAIMED):
            self.emit(await self._claim(users[start : start + MAX_CLAIMED]))

    async def _claim(self, users: Iterable[str]) -> list[Event]:
        # An earlier one, whose answer was lost, must not fire after a later one.
        events = [self._open.get(user, {}) for user in users]
        wanted = [of_user[generation][0] for of_user in events for generation in sorted(of_user)]
        claimed = await self._broker.claim(wanted) if wanted else []
        claimed.sort(key=lambda transition: transition.generation)
        # Another caller may have claimed and fired the same meanwhile.
        mine = [event for one in claimed if (event := self._close(one)) is not None]
        for one in wanted:
            self._close(one)
        for transition, _ in mine:
            self._note_fired(transition)
        return mine

    def emit(self, events: Iterable[Event]) -> None:
        """Fire events that `claim` has returned."""
        for transition, identity in events:
            cid = decode_name(transition.user)
            here = self._hub.identities.get(cid)
            if transition.is_joined:
                user = here or identity or WseIdentity(self._hub, cid, {})
                self._hub.joined._emit(user, user.meta)
            else:
                user = identity or here or WseIdentity(self._hub, cid, {})
                self._hub.left._emit(user, transition.code, transition.reason)
        self._broker.fired([transition for transition, _ in events])

    async def retry(self) -> None:
        """Claim again what no answer has come for.

        Raises:
            WseError: As `fire`.
        """
        await self._fire([*self._open])

    @property
    def is_idle(self) -> bool:
        """Whether all that was heard of is decided."""
        return not self._open

    def register_lost(self) -> list[Event]:
        """The register is another one: nobody has reaped this node in the old one, so nobody else fires these.

        Returns:
            The last event of each user who had left. The user may be at another node, which had been taken for dead or
            to which the user has come meanwhile.
        """
        self._fired.clear()
        events: list[Event] = []
        departed: list[Event] = []
        for of_user in self._open.values():
            *earlier, last = [of_user[generation] for generation in sorted(of_user)]
            events += earlier
            (events if last[0].is_joined else departed).append(last)
        self._open.clear()
        self.emit(events)
        return departed

    def reset(self) -> None:
        """The node has left the cluster."""
        self._open.clear()
        self._fired.clear()

    def generations(self, user: str) -> tuple[int, ...]:
        """The generations of the user that were fired here lately, the last one last."""
        generations, at = self._fired.get(user, ((), 0.0))
        return generations if at + FIRED_TTL >= self._scheduler.time() else ()

    def _close(self, transition: Transition) -> Event | None:
        """It is decided whose the transition is."""
        events = self._open.get(transition.user, {})
        event = events.pop(transition.generation, None)
        if not events:
            self._open.pop(transition.user, None)
        return event

    def _note_fired(self, transition: Transition) -> None:
        now = self._scheduler.time()
        generations = self.generations(transition.user)
        self._fired.pop(transition.user, None)
        self._fired[transition.user] = (*generations[-MAX_FIRED:], transition.generation), now
        oldest = next(iter(self._fired))
        if self._fired[oldest][1] + FIRED_TTL < now:  # one for each that is added keeps the memory bounded by the rate
            del self._fired[oldest]
