"""This node's devices in the cluster's register, and the `joined` and `left` events that the node fires.

`connected` and `disconnected` are what the node itself sees, and fire at once. `joined` and `left` are decided by the
register (see `wse.core.ports.broker`): each step answers with the transitions that this node must fire.

A device of this node is in one of these states:

    state       event                                   next        action
    JOINING     the register has it                     INSIDE      fire, close displaced devices, welcome
    JOINING     no answer: the broker is away           OUTSIDE     welcome
    INSIDE      the lease was lost, or it is missing    OUTSIDE
    OUTSIDE     reconciled: joined again                INSIDE      fire, close displaced devices
    JOINING,    displaced by a newer device             DISPLACED   close the connection
    OUTSIDE,
    INSIDE
    INSIDE      the user's last one here has ended,     AWAY        say so
                and there is a `leave_grace`
    AWAY        the grace is over, the user is back     LEAVING     leave
                here, or the lease was lost
    any         the connection has ended                LEAVING     leave
    LEAVING     the register has taken it out           gone        fire
    DISPLACED   the connection has ended                gone        (LEAVING if it was ever joined again: that may
                                                                    have come after the displacement)

A step whose answer is lost leaves the device where it was. Reconciliation repairs the rest, whatever caused it: it
compares what the register holds under this node's name with what the node holds itself, both ways. It runs after
every disturbance, and now and then without one.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum, auto
from typing import TYPE_CHECKING, Any

from wse.core.cluster.envelope import USER, Check, Displaced, decode_name, encode_name
from wse.core.hub.connection import WseIdentity
from wse.core.ports.broker import Device
from wse.errors import CloseReason, WseError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Collection, Iterable

    from wse.core.cluster.bus import Bus
    from wse.core.hub.connection import ServerSession, WseConnection
    from wse.core.hub.hub import Hub
    from wse.core.packed import Packed
    from wse.core.ports.broker import Joined, Lease, Transition
    from wse.core.ports.scheduling import Scheduler, Timer
    from wse.types import ClientId

WIDTH = 32
"""Steps that are under way at a time, when there are many."""

EARLIER = 1 << 40
"""How far a device is placed before all others that was registered before the register was lost."""

FIRED_TTL = 60.0
"""Seconds for which the node remembers what it has fired: the outbox may bring it again, until `fired` has arrived."""


MAX_FIRED = 8
"""How many of a user's transitions are remembered."""


class State(Enum):
    """Where a device of this node is; see the table above."""

    JOINING = auto()
    OUTSIDE = auto()
    INSIDE = auto()
    AWAY = auto()
    DISPLACED = auto()
    LEAVING = auto()


UNSETTLED = (State.OUTSIDE, State.AWAY, State.LEAVING)
"""The states that ask for a step of the register; a device that is away needs it only once."""


class _Joining:
    """The phase between acceptance and welcome, while the register is asked; what the client sends is ignored."""

    ignores_input = True
    max_size = 0

    def message(self, type: Any, payload: Any, stamp: Any) -> None: ...

    def stop(self) -> None: ...


JOINING_PHASE = _Joining()


class Registration:
    """A device of this node, from its acceptance until the register has taken it out.

    Attributes:
        device: The device as it is registered, or is to be.
        conn: The connection.
        state: See the table of the module.
        generation: The user's generation as last heard; 0 if unknown.
        restored: The generation that the register is to restore, because it may have lost it; 0 for none.
        end: When the connection has ended: the user, and the code and reason of the close.
        is_busy: Whether a step is under way. A device makes one step at a time: two could overtake each other.
        is_again: Whether it was joined more than once, or is about to be.
    """

    __slots__ = ("conn", "device", "end", "generation", "is_again", "is_busy", "restored", "state")

    def __init__(self, device: Device, conn: WseConnection) -> None:
        self.device = device
        self.conn = conn
        self.state = State.JOINING
        self.generation = 0
        self.restored = 0
        self.end: tuple[WseIdentity, int, str] | None = None
        self.is_busy = False
        self.is_again = False


class Presence:
    """This node's devices in the register.

    Args:
        bus: The way to the other nodes, and the broker.
        hub: The connections of this node.
    """

    def __init__(self, bus: Bus, hub: Hub) -> None:
        self._bus = bus
        self._hub = hub
        self._broker = bus.broker
        self._scheduler = hub.endpoint.scheduler
        self._registrations: dict[str, Registration] = {}
        self._joining: dict[str, list[Registration]] = {}  # by user, those between acceptance and welcome
        self._unsettled: set[Registration] = set()  # those for which a step is to be made
        self._away: dict[str, tuple[Registration, Timer]] = {}  # by user, those that are AWAY
        # By user and generation: transitions that this node has heard of and not fired, with the user as it was.
        self._claims: dict[tuple[str, int], tuple[Transition, WseIdentity | None]] = {}
        self._fired: dict[str, tuple[tuple[int, ...], float]] = {}  # by user, generations fired here, and when
        self._lost_at = -FIRED_TTL  # when the register was found to have lost what it held
        self._lease = 0  # counts the leases: an answer of an earlier one need not hold under the present one
        self.register = ""
        self.is_disturbed = False
        self._emptied: asyncio.Future[None] | None = None

    # A connection comes.

    def admit(self, session: ServerSession, cid: ClientId, welcome: Packed) -> None:
        """Register a connection, then welcome it.

        Raises:
            TypeError, ValueError: A user of a cluster cannot have this `cid`.
        """
        if not self._bus.is_open:
            session.close(1012, CloseReason.BY_SERVER)
            return
        try:
            user = encode_name(cid)
        except (TypeError, ValueError):
            session.close(1000, CloseReason.NOT_AUTHORIZED)
            raise
        conn = session.conn
        registration = Registration(Device(user, conn.conn_id, self._bus.node), conn)
        self._registrations[conn.conn_id] = registration
        session.enter(JOINING_PHASE)
        others = self._joining.setdefault(user, [])
        # Whether the subscription may not be in force yet: another device may have asked for it a moment ago.
        is_new = self._bus.want(USER + user) or bool(others)
        others.append(registration)
        self._scheduler.spawn(self._join(registration, cid, welcome, is_new))

    async def _join(self, registration: Registration, cid: ClientId, welcome: Packed, subscribing: bool) -> None:
        joined: Joined | None = None
        claimed: list[Transition] = []
        lease = self._lease
        try:
            joined = await self._broker.join(registration.device, self._hub.conns_per_user)
            if subscribing:
                await self._broker.flush()  # messages that are sent after the welcome must arrive
            if lease == self._lease:
                claimed = await self._claim(joined.transitions)
        except WseError:
            pass  # reconciliation registers it, or claims its transition, when the broker is back
        joining = self._joining.get(registration.device.user, [])
        if registration in joining:  # else the node has left the cluster meanwhile
            joining.remove(registration)
            if not joining:
                del self._joining[registration.device.user]
        conn = registration.conn
        session = conn._session
        was_displaced = registration.state is State.DISPLACED
        is_inside = joined is not None and lease == self._lease
        if joined is not None and is_inside:  # what an earlier lease was told says nothing about this one
            registration.device, registration.generation = joined.device, joined.generation
        if not was_displaced:
            self._enter(registration, State.INSIDE if is_inside else State.OUTSIDE)
        if session.ended or was_displaced:
            # The user was in the register for a moment, and so present for a moment.
            identity = WseIdentity(self._hub, cid, conn.meta)
            self._displace(() if joined is None else joined.displaced)
            self._emit(claimed, identity)
            self._broker.fired(claimed)
            session.close(1000, CloseReason.CLIENTS_CONCURRENCY)
            self.leave(conn, identity, 1006, "")
            return
        self._hub.add(conn, cid)
        if joined is None:
            self._hub.push_out(conn)
        else:
            self._displace(joined.displaced)
        if is_inside:
            self._end_grace(registration.device.user)
        self._hub.welcome(session, welcome, is_first=bool(claimed))
        self._broker.fired(claimed)

    def drop_joining(self, cid: ClientId, reason: str, code: int) -> None:
        """Close the user's devices that have no welcome yet."""
        for registration in tuple(self._joining.get(encode_name(cid), ())):
            registration.conn._session.close(code, reason)

    # A connection goes.

    def leave(
        self, conn: WseConnection, identity: WseIdentity, code: int, reason: str, *, is_last_here: bool = False
    ) -> None:
        """The connection has ended."""
        registration = self._registrations.get(conn.conn_id)
        if registration is None:  # the node has left the cluster already
            return
        self._bus.unwant(USER + registration.device.user)
        if registration.state is State.DISPLACED and not registration.is_again:
            self._forget(registration)
            return
        registration.end = identity, code, reason
        if is_last_here and self._hub.leave_grace and registration.state is State.INSIDE:
            self._begin_grace(registration)
        else:
            self._enter(registration, State.LEAVING)
        self._scheduler.spawn(self._try(self._settle(registration)))

    def _begin_grace(self, registration: Registration) -> None:
        """Keep a device in the register whose connection has ended, so that its user is still there."""
        user = registration.device.user
        self._end_grace(user)  # of an earlier one
        registration.device = replace(registration.device, away=True)
        self._enter(registration, State.AWAY)
        self._away[user] = registration, self._scheduler.call_later(self._hub.leave_grace, self._end_grace, user)

    def _end_grace(self, user: str) -> None:
        if user in self._away:
            registration, timer = self._away.pop(user)
            timer.cancel()
            if registration.state is State.AWAY:
                self._enter(registration, State.LEAVING)
                self._scheduler.spawn(self._try(self._settle(registration)))

    async def _leave(self, registration: Registration) -> None:
        assert registration.end is not None
        identity, code, reason = registration.end
        lease = self._lease
        step = await self._broker.leave(registration.device, generation=registration.restored, code=code, reason=reason)
        if lease == self._lease:  # else it leaves once more
            self._forget(registration)
            await self._fire(step.transitions, identity)

    def displaced(self, conn_id: str) -> None:
        """The register has taken this device out, for a newer one."""
        registration = self._registrations.get(conn_id)
        if registration is None or registration.end is not None or registration.state is State.DISPLACED:
            return
        was = registration.state
        self._enter(registration, State.DISPLACED)
        if was is not State.JOINING:  # else it waits for its welcome, and `_join` will see
            registration.conn.drop(CloseReason.CLIENTS_CONCURRENCY)

    def check(self, user: str) -> None:
        """Devices of the user may have been displaced without notice: register them again, or find out."""
        for registration in self._registrations.values():
            if registration.device.user == user and registration.state is State.INSIDE:
                self._enter(registration, State.OUTSIDE)

    def _displace(self, devices: Iterable[Device]) -> None:
        for device in devices:
            if device.node == self._bus.node:
                self.displaced(device.conn_id)
            else:  # to the user's topic, since what is sent to one node is not kept while the broker is away
                self._bus.publish(USER + device.user, Displaced(self._bus.node, device.conn_id))

    def _enter(self, registration: Registration, state: State) -> None:
        registration.state = state
        if state in UNSETTLED:
            self._unsettled.add(registration)
        else:
            self._unsettled.discard(registration)

    def _forget(self, registration: Registration) -> None:
        self._unsettled.discard(registration)
        if self._registrations.pop(registration.device.conn_id, None) is not None and not self._registrations:
            self._done()

    # Events.

    async def _fire(self, transitions: Iterable[Transition], identity: WseIdentity | None = None) -> None:
        """Claim transitions, and fire those that are this node's to fire.

        Raises:
            WseError: `BROKER_UNAVAILABLE`: it is not known whose they are. `settle` claims them again.
        """
        if transitions:
            claimed = await self._claim(transitions, identity)
            self._emit(claimed, identity)
            self._broker.fired(claimed)

    async def _claim(self, transitions: Iterable[Transition], identity: WseIdentity | None = None) -> list[Transition]:
        """Claim transitions; those that are this node's to fire, and that nobody but the caller fires."""
        wanted = [one for one in transitions if one.generation not in self._fired_generations(one.user)]
        for transition in wanted:
            self._claims[transition.user, transition.generation] = transition, identity
        claimed = await self._broker.claim(wanted) if wanted else []
        # Another caller may have claimed and fired the same meanwhile.
        mine = [one for one in claimed if self._claims.pop((one.user, one.generation), None) is not None]
        for transition in wanted:
            self._claims.pop((transition.user, transition.generation), None)
        for transition in mine:
            self._note_fired(transition)
        return mine

    def _emit(self, transitions: Iterable[Transition], identity: WseIdentity | None) -> None:
        for transition in transitions:
            cid = decode_name(transition.user)
            user = identity or self._hub.identities.get(cid) or WseIdentity(self._hub, cid, {})
            if transition.is_joined:
                self._hub.joined._emit(user, user.meta)
            else:
                self._hub.left._emit(user, transition.code, transition.reason)

    def _note_fired(self, transition: Transition) -> None:
        now = self._scheduler.time()
        generations = self._fired_generations(transition.user)
        self._fired.pop(transition.user, None)
        self._fired[transition.user] = (*generations[-MAX_FIRED:], transition.generation), now
        oldest = next(iter(self._fired))
        if self._fired[oldest][1] + FIRED_TTL < now:  # one for each that is added keeps the memory bounded by the rate
            del self._fired[oldest]

    def _fired_generations(self, user: str) -> tuple[int, ...]:
        """The generations of the user that were fired here lately, the last one last."""
        generations, at = self._fired.get(user, ((), 0.0))
        return generations if at + FIRED_TTL >= self._scheduler.time() else ()

    async def fire_pending(self, *, recovering: bool) -> None:
        """Fire what the outbox holds: transitions whose answer was lost, and those of users that were undecided.

        Raises:
            WseError: `BROKER_UNAVAILABLE`.
        """
        # Answers that are still on their way bring theirs themselves, and with the user's connection.
        asked = {one.device.user for one in self._registrations.values() if one.state in (State.JOINING, State.LEAVING)}
        for transition in await self._broker.pending():
            if transition.user in asked:
                continue
            if transition.generation:
                await self._fire([transition])
            elif not recovering:
                step = await self._broker.settle(transition)
                await self._fire(step.transitions)

    async def reap(self) -> None:
        """Remove the devices of dead nodes from the register.

        Raises:
            WseError: `BROKER_UNAVAILABLE`.
        """
        await self._fire(await self._broker.reap())

    # The register comes back, and may not hold what it held.

    def renewed(self, lease: Lease) -> None:
        """The lease has been renewed, or is a new one."""
        is_first = self.register == ""
        is_other = not is_first and lease.register != self.register
        self.register = lease.register
        if is_other:
            self._fired.clear()
            # Nobody has reaped this node in the old register, so nobody else fires these.
            for transition, identity in self._claims.values():
                self._emit([transition], identity)
            self._claims.clear()
        if lease.state == "kept":
            return
        self._lease += 1
        self._lost_at = self._scheduler.time() if lease.state == "new" and not is_first else -FIRED_TTL
        self.is_disturbed = True
        for registration in self._registrations.values():
            device = registration.device
            if device.place > 0 and (is_other or lease.state == "reaped"):
                # The places of those that have come since begin anew.
                registration.device = replace(device, place=device.place - EARLIER)
            # Of a node that was reaped others have fired `left` since; a register that was lost has to be told.
            registration.restored = 0 if lease.state == "reaped" else registration.generation
            if registration.state is State.INSIDE:
                self._enter(registration, State.OUTSIDE)
        for user in tuple(self._away):
            self._end_grace(user)

    async def reconcile(self) -> None:
        """Compare what the register holds of this node with what the node holds itself, and repair both.

        Raises:
            WseError: `BROKER_UNAVAILABLE`.
        """
        self.is_disturbed = False
        try:
            missing = {one for one in self._registrations.values() if one.state is State.INSIDE}
            ghosts: list[Device] = []
            async for page in self._broker.mine():
                for device in page:
                    registration = self._registrations.get(device.conn_id)
                    if registration is None:
                        ghosts.append(device)
                    else:
                        missing.discard(registration)
            for registration in missing:
                if registration.state is State.INSIDE:
                    self._enter(registration, State.OUTSIDE)
            await each(self._scheduler, ghosts, self._take_out)
            await self.settle()
        except BaseException:
            self.is_disturbed = True
            raise

    async def settle(self) -> None:
        """Register what is outside, and take out what has ended.

        Raises:
            WseError: `BROKER_UNAVAILABLE`.
        """
        for transition, identity in tuple(self._claims.values()):
            await self._fire([transition], identity)
        await each(self._scheduler, tuple(self._unsettled), self._settle)

    async def _settle(self, registration: Registration) -> None:
        """Make the steps that the device's state asks for, unless this goes on already."""
        if registration.is_busy:
            return
        registration.is_busy = True
        try:
            while registration in self._unsettled:
                if registration.state is State.OUTSIDE:
                    await self._join_again(registration)
                elif registration.state is State.AWAY:
                    await self._broker.set_away(registration.device)
                    if registration.state is State.AWAY:
                        self._unsettled.discard(registration)
                else:
                    await self._leave(registration)
        finally:
            registration.is_busy = False

    async def _take_out(self, device: Device) -> None:
        """Take out a device that this node does not hold."""
        if device.conn_id not in self._registrations:
            was_lost = self._scheduler.time() - self._lost_at < FIRED_TTL  # an engine may have gone back in time
            generations = self._fired_generations(device.user) if was_lost else ()
            step = await self._broker.leave(device, generation=generations[-1] if generations else 0)
            await self._fire(step.transitions)

    async def _join_again(self, registration: Registration) -> None:
        lease = self._lease
        is_new = not registration.device.place
        registration.is_again = True
        joined = await self._broker.join(
            registration.device,
            self._hub.conns_per_user,
            generation=registration.restored,
            fresh=is_new,
        )
        if lease != self._lease:
            return
        registration.device, registration.generation, registration.restored = joined.device, joined.generation, 0
        if registration.state is State.OUTSIDE:
            self._enter(registration, State.INSIDE)
        self._displace(joined.displaced)
        await self._fire(joined.transitions)
        if is_new:  # an earlier attempt may have displaced devices, and its answer was lost
            self._bus.publish(USER + registration.device.user, Check(self._bus.node))
            self.check(registration.device.user)

    # The end.

    async def close(self, timeout: float) -> None:
        """Wait until all devices are out of the register, but no longer than `timeout` seconds."""
        if not self._registrations:
            return
        for user in tuple(self._away):
            self._end_grace(user)
        self._emptied = self._scheduler.create_future()
        timer = self._scheduler.call_later(timeout, self._done)
        self._scheduler.spawn(self._settle_last())
        try:
            await self._emptied
        finally:
            timer.cancel()
            self._emptied = None

    async def _settle_last(self) -> None:
        await self._try(self.settle())

    def reset(self) -> None:
        """The node has left the cluster. Other nodes reap what the register still holds of it."""
        for _, timer in self._away.values():
            timer.cancel()
        self._away.clear()
        self._registrations.clear()
        self._joining.clear()
        self._unsettled.clear()
        self._claims.clear()
        self._fired.clear()
        self.register = ""
        self.is_disturbed = False

    def _done(self) -> None:
        if self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)

    async def _try(self, step: Awaitable[None]) -> None:
        """Make a step; if the broker is away, `settle` repeats it, or after the end of this node others reap it."""
        try:
            await step
        except WseError:
            self._done()


async def each(scheduler: Scheduler, items: Collection[Any], do: Callable[[Any], Awaitable[None]]) -> None:
    """Call `do` with every item, `WIDTH` of them at a time, and stop at the first error.

    Raises:
        WseError: The first error that `do` raised.
    """
    if not items:
        return
    iterator = iter(items)
    done = scheduler.create_future()
    running = WIDTH

    async def work() -> None:
        nonlocal running
        try:
            for item in iterator:
                await do(item)
                if done.done():
                    return
        except WseError as exc:
            if not done.done():
                done.set_exception(exc)
        finally:
            running -= 1
            if not running and not done.done():
                done.set_result(None)

    for _ in range(WIDTH):
        scheduler.spawn(work())
    await done
