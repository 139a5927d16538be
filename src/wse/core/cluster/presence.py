"""This node's devices in the cluster's register.

`connected` and `disconnected` are what the node itself sees, and fire at once. `joined` and `left` are decided by the
register: each step answers with the transitions that this node must fire, which `wse.core.cluster.firing` does.

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

from wse.core.cluster.envelope import USER, Check, Displaced, encode_name
from wse.core.cluster.firing import FIRED_TTL, Firing
from wse.core.hub.connection import WseIdentity
from wse.core.ports.broker import Device
from wse.errors import CloseReason, WseError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Collection, Iterable

    from wse.core.cluster.bus import Bus
    from wse.core.cluster.firing import Event
    from wse.core.hub.connection import ServerSession, WseConnection
    from wse.core.hub.hub import Hub
    from wse.core.packed import Packed
    from wse.core.ports.broker import Joined, Lease
    from wse.core.ports.scheduling import Scheduler, Timer
    from wse.types import ClientId

WIDTH = 32
"""Steps that are under way at a time, when there are many."""

EARLIER = 1 << 40
"""How far a device is placed before all others that was registered before the register was lost."""


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
        end: When the connection has ended: the user, and the code and reason of the close.
        is_busy: Whether a step is under way. A device makes one step at a time: two could overtake each other.
        is_again: Whether it was joined more than once, or is about to be.
    """

    __slots__ = ("conn", "device", "end", "generation", "is_again", "is_busy", "state")

    def __init__(self, device: Device, conn: WseConnection) -> None:
        self.device = device
        self.conn = conn
        self.state = State.JOINING
        self.generation = 0
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
        self._firing = Firing(bus, hub)
        self._registrations: dict[str, Registration] = {}
        self._joining: dict[str, list[Registration]] = {}  # by user, those between acceptance and welcome
        self._unsettled: dict[Registration, None] = {}  # those for which a step is to be made, in order
        self._away: dict[str, tuple[Registration, Timer]] = {}  # by user, those that are AWAY
        # By user, the generation that the register is to restore with the user's next step: it may have lost it.
        self._restoring: dict[str, int] = {}
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
        claimed: list[Event] = []
        conn = registration.conn
        identity = WseIdentity(self._hub, cid, conn.meta)
        lease = self._lease
        try:
            joined = await self._ask_join(registration.device, fresh=True)
            if lease == self._lease:
                claimed = await self._firing.claim(joined.transitions, identity)
            if subscribing:
                await self._broker.flush()  # messages that are sent after the welcome must arrive
        except WseError:
            pass  # reconciliation registers it, or claims its transition, when the broker is back
        joining = self._joining.get(registration.device.user, [])
        if registration in joining:  # else the node has left the cluster meanwhile
            joining.remove(registration)
            if not joining:
                del self._joining[registration.device.user]
        session = conn._session
        was_displaced = registration.state is State.DISPLACED
        is_inside = joined is not None and lease == self._lease
        if joined is not None and is_inside:  # what an earlier lease was told says nothing about this one
            registration.device, registration.generation = joined.device, joined.generation
        if not was_displaced:
            self._enter(registration, State.INSIDE if is_inside else State.OUTSIDE)
        if session.ended or was_displaced:
            # The user was in the register for a moment, and so present for a moment.
            self._displace(() if joined is None else joined.displaced)
            self._firing.emit(claimed)
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
        self._firing.emit(claimed[:-1])
        self._hub.welcome(session, welcome, is_first=bool(claimed))
        self._broker.fired([transition for transition, _ in claimed[-1:]])

    async def _ask_join(self, device: Device, *, fresh: bool) -> Joined:
        lease, generation = self._lease, self._restoring.get(device.user, 0)
        joined = await self._broker.join(device, self._hub.conns_per_user, generation=generation, fresh=fresh)
        if lease == self._lease:
            self._restoring.pop(device.user, None)
        return joined

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
        user = registration.device.user
        generation = self._restoring.get(user, 0)
        step = await self._broker.leave(registration.device, generation=generation, code=code, reason=reason)
        if lease == self._lease:  # else it leaves once more
            self._restoring.pop(user, None)
            await self._firing.fire(step.transitions, identity)
            self._forget(registration)

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
            self._unsettled[registration] = None
        else:
            self._unsettled.pop(registration, None)

    def _forget(self, registration: Registration) -> None:
        self._unsettled.pop(registration, None)
        if self._registrations.pop(registration.device.conn_id, None) is not None and not self._registrations:
            self._done()

    # Events.

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
                await self._firing.fire([transition])
            elif not recovering:
                step = await self._broker.settle(transition)
                await self._firing.fire(step.transitions)

    async def reap(self) -> None:
        """Remove the devices of dead nodes from the register.

        Raises:
            WseError: `BROKER_UNAVAILABLE`.
        """
        await self._firing.fire(await self._broker.reap())

    # The register comes back, and may not hold what it held.

    def renewed(self, lease: Lease) -> None:
        """The lease has been renewed, or is a new one."""
        is_first = self.register == ""
        is_other = not is_first and lease.register != self.register
        self.register = lease.register
        if is_other:
            leaving = {one.device.user for one in self._registrations.values() if one.state is State.LEAVING}
            self._firing.register_lost(leaving)
        if lease.state == "kept":
            return
        self._lease += 1
        self._lost_at = self._scheduler.time() if lease.state == "new" and not is_first else -FIRED_TTL
        self.is_disturbed = True
        self._restoring.clear()
        for registration in self._registrations.values():
            device = registration.device
            # Of a node that was reaped others have fired `left` since; a register that was lost has to be told.
            if registration.generation and lease.state != "reaped":
                self._restoring[device.user] = max(registration.generation, self._restoring.get(device.user, 0))
            if device.place > 0 and (is_other or lease.state == "reaped"):
                # The places of those that have come since begin anew.
                registration.device = replace(device, place=device.place - EARLIER)
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
            missing = {one: None for one in self._registrations.values() if one.state is State.INSIDE}
            ghosts: list[Device] = []
            async for page in self._broker.mine():
                for device in page:
                    registration = self._registrations.get(device.conn_id)
                    if registration is None:
                        ghosts.append(device)
                    else:
                        missing.pop(registration, None)
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
        await self._firing.retry()
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
                        self._unsettled.pop(registration, None)
                else:
                    await self._leave(registration)
        finally:
            registration.is_busy = False

    async def _take_out(self, device: Device) -> None:
        """Take out a device that this node does not hold."""
        if device.conn_id not in self._registrations:
            was_lost = self._scheduler.time() - self._lost_at < FIRED_TTL  # an engine may have gone back in time
            generations = self._firing.generations(device.user) if was_lost else ()
            step = await self._broker.leave(device, generation=generations[-1] if generations else 0)
            await self._firing.fire(step.transitions)

    async def _join_again(self, registration: Registration) -> None:
        lease = self._lease
        is_new = not registration.device.place
        registration.is_again = True
        joined = await self._ask_join(registration.device, fresh=is_new)
        if lease != self._lease:
            return
        registration.device, registration.generation = joined.device, joined.generation
        if registration.state is State.OUTSIDE:
            self._enter(registration, State.INSIDE)
        self._displace(joined.displaced)
        await self._firing.fire(joined.transitions)
        if is_new:  # an earlier attempt may have displaced devices, and its answer was lost
            self._bus.publish(USER + registration.device.user, Check(self._bus.node))
            self.check(registration.device.user)

    # The end.

    async def close(self, timeout: float) -> None:
        """Wait until all devices are out of the register, but no longer than `timeout` seconds."""
        if not self._registrations and self._firing.is_idle:
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
        if not self._registrations:
            self._done()

    def reset(self) -> None:
        """The node has left the cluster. Other nodes reap what the register still holds of it."""
        for _, timer in self._away.values():
            timer.cancel()
        self._away.clear()
        self._registrations.clear()
        self._joining.clear()
        self._unsettled.clear()
        self._restoring.clear()
        self._firing.reset()
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
    running = min(WIDTH, len(items))

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

    for _ in range(running):
        scheduler.spawn(work())
    await done
