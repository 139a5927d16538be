"""The steps that this node's devices make in the cluster's register; see `wse.core.cluster.registration`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from wse.core.cluster.envelope import USER, Arrived, Check, Displaced
from wse.core.cluster.registration import IN_REGISTER, State
from wse.core.ports.broker import Device
from wse.errors import CloseReason

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from wse.core.cluster.bus import Bus
    from wse.core.cluster.firing import Firing
    from wse.core.cluster.registration import Registration, Registrations
    from wse.core.hub.hub import Hub
    from wse.core.ports.broker import Joined, Step, Transition


GONE = "-"
"""The connection id of a device that is not there."""


class Steps:
    """Makes steps of the register.

    Args:
        bus: The way to the other nodes, and the broker.
        hub: The connections of this node.
        registrations: The devices of this node.
        firing: Fires what the steps cause.

    Attributes:
        lease: Counts the leases: an answer of an earlier one need not hold under the present one.
        restoring: By user, the generation that the register is to restore with the user's next step: it may have lost
            it.
    """

    def __init__(self, bus: Bus, hub: Hub, registrations: Registrations, firing: Firing) -> None:
        self._bus = bus
        self._broker = bus.broker
        self._hub = hub
        self._registrations = registrations
        self._firing = firing
        self.lease = 0
        self.restoring: dict[str, int] = {}

    async def join(self, device: Device, *, fresh: bool) -> Joined:
        """See `Broker.join`."""
        lease, generation = self.lease, self.restoring.get(device.user, 0)
        joined = await self._broker.join(device, self._hub.conns_per_user, generation=generation, fresh=fresh)
        if lease == self.lease:
            self.restoring.pop(device.user, None)
        return joined

    async def settle(self, registration: Registration) -> None:
        """Make the steps that the device's state asks for, unless this goes on already.

        Raises:
            WseError: `BROKER_UNAVAILABLE`.
        """
        if registration.is_busy:
            return
        registration.is_busy = True
        try:
            while registration in self._registrations.unsettled:
                if registration.origin:
                    await self._move(registration)
                elif registration.state is State.OUTSIDE:
                    await self._join_again(registration)
                elif registration.state in IN_REGISTER:
                    await self._set_away(registration)
                else:
                    await self._leave(registration)
        finally:
            registration.is_busy = False

    async def _move(self, registration: Registration) -> None:
        """Take a device over from the node from which it has come."""
        lease, origin = self.lease, registration.origin
        moved = await self._broker.move(registration.device, origin)
        if lease != self.lease:
            return  # once more
        registration.origin = ""
        if moved is not None:
            registration.device, registration.generation = moved.device, moved.generation
            if registration.state is State.OUTSIDE:
                self._registrations.enter(registration, State.INSIDE)
        self._bus.send_to(origin, Arrived(self._bus.node, registration.device.conn_id))

    async def _set_away(self, registration: Registration) -> None:
        away = registration.away
        await self._broker.set_away(replace(registration.device, away=away))
        registration.device = replace(registration.device, away=away)  # its place may be another one by now
        self._registrations.look_at(registration)

    async def _join_again(self, registration: Registration) -> None:
        lease = self.lease
        is_new = not registration.device.place
        registration.is_again = True
        joined = await self.join(registration.device, fresh=is_new)
        if lease != self.lease:
            return
        registration.device, registration.generation = joined.device, joined.generation
        if registration.state is State.OUTSIDE:
            self._registrations.enter(registration, State.INSIDE)
        self.displace(joined.displaced)
        await self._firing.fire(joined.transitions)
        if is_new:
            self._check_everywhere(registration.device.user)

    async def _leave(self, registration: Registration) -> None:
        assert registration.end is not None
        identity, code, reason = registration.end
        lease = self.lease
        user, is_new = registration.device.user, not registration.device.place
        generation = self.restoring.get(user, 0)
        step = await self._broker.leave(registration.device, generation=generation, code=code, reason=reason)
        if lease == self.lease:  # else it leaves once more
            self.restoring.pop(user, None)
            await self._firing.fire(step.transitions, identity)
            self._registrations.forget(registration)
            if is_new:
                self._check_everywhere(user)

    async def depart(self, left: Transition) -> Step:
        """Ask the register about a user who had left, in a register that was lost, before `left` had fired."""
        device = Device(left.user, GONE, self._bus.node)
        return await self._broker.leave(device, generation=left.generation - 1, code=left.code, reason=left.reason)

    def decided(self, generations: Mapping[str, int]) -> None:
        """The register, which had been lost, has decided about users whose devices joined before it did.

        They must know that: if the register is lost once more, they say what has been announced.
        """
        for registration in self._registrations.values() if generations else ():
            generation = generations.get(registration.device.user, 0)
            registration.generation = max(registration.generation, generation)
            if registration.device.user in self.restoring:  # it has been lost meanwhile
                self.restoring[registration.device.user] = max(generation, self.restoring[registration.device.user])

    def _check_everywhere(self, user: str) -> None:
        """The device's first join had no answer: it may have displaced others of the user, who do not know."""
        self._bus.publish(USER + user, Check(self._bus.node))
        self.check(user)

    def displace(self, devices: Iterable[Device]) -> None:
        """The register has taken these devices out: tell their nodes."""
        for device in devices:
            if device.node == self._bus.node:
                self.displaced(device.conn_id)
            else:  # to the user's topic, since what is sent to one node is not kept while the broker is away
                self._bus.publish(USER + device.user, Displaced(self._bus.node, device.conn_id))

    def displaced(self, conn_id: str) -> None:
        """The register has taken this device out, for a newer one."""
        registration = self._registrations.get(conn_id)
        if registration is None or registration.end is not None or registration.state is State.DISPLACED:
            return
        is_joining = registration.state is State.JOINING
        self._registrations.enter(registration, State.DISPLACED)
        if not is_joining:  # else it waits for its welcome, and does not get it
            registration.conn.drop(CloseReason.CLIENTS_CONCURRENCY)

    def check(self, user: str) -> None:
        """Devices of the user may have been displaced without notice: register them again, or find out."""
        for registration in self._registrations.values():
            if registration.device.user == user and registration.state is State.INSIDE:
                self._registrations.enter(registration, State.OUTSIDE)
