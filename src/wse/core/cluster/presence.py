"""Users come and go: the devices of this node are registered before their welcome, and leave when they end.

`connected` and `disconnected` are what the node itself sees, and fire at once. `joined` and `left` are decided by the
register: each step answers with the transitions that this node must fire.

    wse.core.cluster.registration   a device of this node, and the table of its states
    wse.core.cluster.steps          the steps that devices make in the register
    wse.core.cluster.firing         the events that this node fires
    wse.core.cluster.reconciler     what was lost, and is repaired
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from wse.core.cluster.envelope import USER
from wse.core.cluster.reconciler import each
from wse.core.cluster.registration import JOINING_PHASE, Registration, State
from wse.core.hub.connection import WseIdentity
from wse.core.names import encode_name
from wse.core.ports.broker import Device
from wse.errors import CloseReason, WseError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable

    from wse.core.cluster.bus import Bus
    from wse.core.cluster.firing import Event, Firing
    from wse.core.cluster.reconciler import Reconciler
    from wse.core.cluster.registration import Registrations
    from wse.core.cluster.steps import Steps
    from wse.core.hub.connection import ServerSession, WseConnection
    from wse.core.hub.hub import Hub
    from wse.core.packed import Packed
    from wse.core.ports.broker import Joined
    from wse.core.ports.scheduling import Timer
    from wse.types import ClientId


class Presence:
    """This node's part of who is there.

    Args:
        bus: The way to the other nodes, and the broker.
        hub: The connections of this node.
        registrations: The devices of this node.
        steps: Makes steps of the register.
        firing: Fires what the steps cause.
        reconciler: Settles what could not be settled at once.
    """

    def __init__(
        self,
        bus: Bus,
        hub: Hub,
        registrations: Registrations,
        steps: Steps,
        firing: Firing,
        reconciler: Reconciler,
    ) -> None:
        self._bus = bus
        self._hub = hub
        self._broker = bus.broker
        self._scheduler = hub.endpoint.scheduler
        self._registrations = registrations
        self._steps = steps
        self._firing = firing
        self._reconciler = reconciler
        self._joining: dict[str, list[Registration]] = {}  # by user, those between acceptance and welcome
        self._graces: dict[str, tuple[Registration, Timer]] = {}  # by user, those that are AWAY
        self._marks: dict[Registration, None] = {}  # those of which the register must learn whether they are away
        self._is_marking = False
        self._emptied: asyncio.Future[None] | None = None
        registrations.when_empty = self._done

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
        conn, steps = registration.conn, self._steps
        identity = WseIdentity(self._hub, cid, conn.meta)
        lease = steps.lease
        try:
            joined = await steps.join(registration.device, fresh=True)
            if lease == steps.lease:
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
        is_inside = joined is not None and lease == steps.lease
        if joined is not None and is_inside:  # what an earlier lease was told says nothing about this one
            registration.device, registration.generation = joined.device, joined.generation
        if not was_displaced:
            self._registrations.enter(registration, State.INSIDE if is_inside else State.OUTSIDE)
        if session.ended or was_displaced:
            # The user was in the register for a moment, and so present for a moment.
            steps.displace(() if joined is None else joined.displaced)
            self._firing.emit(claimed)
            session.close(1000, CloseReason.CLIENTS_CONCURRENCY)
            self.leave(conn, identity, 1006, "")
            return
        self._hub.add(conn, cid)
        if joined is None:
            self._hub.push_out(conn)
        else:
            steps.displace(joined.displaced)
        if is_inside:
            self._end_grace(registration.device.user)
        self._firing.emit(claimed[:-1])
        self._hub.welcome(session, welcome, is_first=bool(claimed))
        self._broker.fired([transition for transition, _ in claimed[-1:]])

    def drop_joining(self, cid: ClientId, reason: str, code: int) -> None:
        """Close the user's devices that have no welcome yet."""
        for registration in tuple(self._joining.get(encode_name(cid), ())):
            registration.conn._session.close(code, reason)

    # A connection moves.

    def registration(self, conn: WseConnection) -> Registration | None:
        """A device of this node, unless a step that the register may yet make could undo a move."""
        registration = self._registrations.get(conn.conn_id)
        if registration is None or (registration.is_busy and registration.state is not State.INSIDE):
            return None
        return registration

    def adopt(self, conn: WseConnection, device: Device, generation: int, origin: str) -> None:
        """Register a device that has come from another node."""
        registration = Registration(replace(device, node=self._bus.node), conn)
        registration.generation, registration.origin = generation, origin
        self._registrations[conn.conn_id] = registration
        self._registrations.enter(registration, State.OUTSIDE)
        self._bus.want(USER + device.user)
        self._scheduler.spawn(self._try(self._steps.settle(registration)))

    def moved(self, conn: WseConnection) -> None:
        """A device goes on at another node, which tells the register."""
        registration = self._registrations.get(conn.conn_id)
        if registration is None:  # the node has left the cluster already
            return
        self._bus.unwant(USER + registration.device.user)
        self._registrations.moved.add(conn.conn_id)
        self._registrations.forget(registration)

    def arrived(self, conn_id: str) -> None:
        """The register knows that a device goes on at another node."""
        self._registrations.arrived(conn_id)

    def take_out(self, device: Device) -> None:
        """A device does not go on at another node after all."""
        self._scheduler.spawn(self._take_out(device))

    async def _take_out(self, device: Device) -> None:
        await self._try(self._reconciler.take_out(device))
        self._registrations.arrived(device.conn_id)

    # A connection breaks, and comes back.

    def mark(self, conn: WseConnection) -> None:
        """Tell the register whether a device is away. Nothing waits for that; of changes in quick succession it learns
        the last one.
        """
        registration = self._registrations.get(conn.conn_id)
        if registration is None:  # the node has left the cluster already
            return
        self._registrations.look_at(registration)
        if registration.state is State.INSIDE and registration.is_unsettled:
            self._marks[registration] = None
            if not self._is_marking:
                self._is_marking = True
                self._scheduler.spawn(self._mark())

    async def _mark(self) -> None:
        try:
            while self._marks:
                marks, self._marks = self._marks, {}
                await self._try(each(self._scheduler, marks, self._steps.settle))
        finally:
            self._is_marking = False

    # A connection goes.

    def leave(self, conn: WseConnection, identity: WseIdentity, code: int, reason: str, grace: float = 0.0) -> None:
        """The connection has ended; if there is a grace, the user has so many seconds to return."""
        registration = self._registrations.get(conn.conn_id)
        if registration is None:  # the node has left the cluster already
            return
        self._bus.unwant(USER + registration.device.user)
        if registration.state is State.DISPLACED and not registration.is_again:
            self._registrations.forget(registration)
            return
        registration.end = identity, code, reason
        if grace and registration.state is State.INSIDE:
            self._begin_grace(registration, grace)
        else:
            self._registrations.enter(registration, State.LEAVING)
        self._scheduler.spawn(self._try(self._steps.settle(registration)))

    def _begin_grace(self, registration: Registration, grace: float) -> None:
        """Keep a device in the register whose connection has ended, so that its user is still there."""
        user = registration.device.user
        self._end_grace(user)  # of an earlier one
        self._registrations.enter(registration, State.AWAY)
        self._graces[user] = registration, self._scheduler.call_later(grace, self._end_grace, user)

    def _end_grace(self, user: str) -> None:
        if user in self._graces:
            registration, timer = self._graces.pop(user)
            timer.cancel()
            if registration.state is State.AWAY:
                self._registrations.enter(registration, State.LEAVING)
                self._scheduler.spawn(self._try(self._steps.settle(registration)))

    # The end.

    async def close(self, timeout: float) -> None:
        """Wait until all devices are out of the register, but no longer than `timeout` seconds."""
        if not self._registrations and not self._registrations.moved and self._firing.is_idle:
            return
        for user in tuple(self._graces):
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
        await self._try(self._reconciler.settle())
        if not self._registrations and not self._registrations.moved:
            self._done()

    def reset(self) -> None:
        """The node has left the cluster. Other nodes reap what the register still holds of it."""
        for _, timer in self._graces.values():
            timer.cancel()
        self._graces.clear()
        self._joining.clear()
        self._marks.clear()
        self._registrations.clear()
        self._firing.reset()
        self._reconciler.reset()

    def _done(self) -> None:
        if self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)

    async def _try(self, step: Awaitable[None]) -> None:
        """Make a step; if the broker is away it is repeated, or after the end of this node others reap it."""
        try:
            await step
        except WseError:
            self._done()
