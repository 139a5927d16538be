"""Brings the cluster's register and this node into agreement, after every disturbance, and now and then without one.

It compares what the register holds under this node's name with what the node holds itself, both ways. This repairs
whatever was lost, whatever the cause.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum, auto
from itertools import count
from typing import TYPE_CHECKING, Any

from wse.core.cluster.firing import FIRED_TTL
from wse.core.cluster.registration import State
from wse.core.ports.broker import Away
from wse.errors import WseError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from wse.core.cluster.firing import Event, Firing
    from wse.core.cluster.registration import Registrations
    from wse.core.cluster.steps import Steps
    from wse.core.ports.broker import Broker, Device, Lease
    from wse.core.ports.scheduling import Scheduler

WIDTH = 32
"""Steps that are under way at a time, when there are many."""

FORGOTTEN = 300.0
"""Seconds without a lease after which the register may have forgotten that others have reaped this node."""

EARLIER = 1 << 40
"""How far a device is placed before all others that was registered before the register was lost."""


class Loss(Enum):
    """What the register has lost of this node, until it has registered its devices again."""

    NONE = auto()
    LEASE = auto()
    """The lease had run out, and others have reaped the node."""
    REGISTER = auto()
    """All: it is another register. Or the node has just started."""
    TIME = auto()
    """Its latest changes: it has gone back in time."""


class Reconciler:
    """Compares the register with this node, and repairs both.

    Args:
        broker: The register.
        scheduler: Time, and tasks.
        registrations: The devices of this node.
        steps: Makes steps for them.
        firing: Fires what the steps cause.

    Attributes:
        register: The identity of the register, as of the last renewal of the lease.
        is_disturbed: Whether something may have been lost since the last reconciliation.
    """

    def __init__(
        self, broker: Broker, scheduler: Scheduler, registrations: Registrations, steps: Steps, firing: Firing
    ) -> None:
        self._broker = broker
        self._scheduler = scheduler
        self._registrations = registrations
        self._steps = steps
        self._firing = firing
        self._renewed_at = 0.0  # when the lease was renewed last
        self._loss = Loss.NONE
        self._set_back_at = -FIRED_TTL  # when the register was found to have gone back in time
        self._departed: dict[str, Event] = {}  # by user, `left` that the register was lost before it fired
        self.register = ""
        self.is_disturbed = False

    def renewed(self, lease: Lease) -> None:
        """The lease has been renewed, or is a new one."""
        is_first = self.register == ""
        is_other = not is_first and lease.register != self.register
        self.register = lease.register
        now, renewed_at = self._scheduler.time(), self._renewed_at
        self._renewed_at = now
        if is_other:
            leaving = {one.device.user for one in self._registrations.values() if one.state is State.LEAVING}
            for event in self._firing.register_lost():
                if event[0].user not in leaving:  # else its device leaves once more
                    self._departed[event[0].user] = event
        if lease.state == "kept":
            self._loss = Loss.NONE
            return
        if lease.state == "reaped":
            self._loss = Loss.LEASE
        elif is_first or is_other:
            self._loss = Loss.REGISTER
        elif self._loss is Loss.NONE:
            self._loss = Loss.LEASE if now - renewed_at > FORGOTTEN else Loss.TIME
        self._set_back_at = now if self._loss is Loss.TIME else -FIRED_TTL
        was_reaped = self._loss is Loss.LEASE
        self.is_disturbed = True
        steps = self._steps
        steps.lease += 1
        steps.restoring.clear()
        for registration in self._registrations.values():
            device = registration.device
            # Of a node that was reaped others have fired `left` since; a register that was lost has to be told.
            if registration.generation and not was_reaped:
                steps.restoring[device.user] = max(registration.generation, steps.restoring.get(device.user, 0))
            if device.place > 0 and (is_other or was_reaped):
                # The places of those that have come since begin anew.
                registration.device = replace(device, place=device.place - EARLIER)
            if registration.state is State.INSIDE:
                self._registrations.enter(registration, State.OUTSIDE)
            elif registration.state is State.AWAY:
                self._registrations.enter(registration, State.LEAVING)

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
                    elif device.away is not Away.GONE:
                        missing.pop(registration, None)
            for registration in missing:
                if registration.state is State.INSIDE:
                    self._registrations.enter(registration, State.OUTSIDE)
            await each(self._scheduler, ghosts, self._take_out)
            await self.settle()
        except BaseException:
            self.is_disturbed = True
            raise

    async def _take_out(self, device: Device) -> None:
        """Take out a device that this node does not hold."""
        if device.conn_id not in self._registrations and device.conn_id not in self._registrations.moved:
            await self.take_out(device)

    async def take_out(self, device: Device) -> None:
        """Take out a device that nobody holds; nothing happens if another node has registered it.

        Raises:
            WseError: `BROKER_UNAVAILABLE`.
        """
        was_set_back = self._scheduler.time() - self._set_back_at < FIRED_TTL
        generations = self._firing.generations(device.user) if was_set_back else ()
        step = await self._broker.leave(device, generation=generations[-1] if generations else 0)
        await self._firing.fire(step.transitions)

    async def _depart(self, user: str) -> None:
        """Fire `left`, unless the user is there after all."""
        transition, identity = self._departed[user]
        step = await self._steps.depart(transition)
        if self._departed.pop(user, None) is None:
            return  # the node has left the cluster meanwhile
        if step.generation > transition.generation:  # the user has come again, after leaving
            self._firing.emit([(transition, identity)])
        await self._firing.fire(step.transitions, identity)

    async def settle(self) -> None:
        """Register what is outside, take out what has ended, and claim again what no answer has come for.

        Raises:
            WseError: `BROKER_UNAVAILABLE`.
        """
        await self._firing.retry()
        await each(self._scheduler, tuple(self._registrations.unsettled), self._steps.settle)
        await each(self._scheduler, tuple(self._departed), self._depart)

    async def fire_pending(self, *, recovering: bool) -> None:
        """Fire what the outbox holds: transitions whose answer was lost, and those of users that were undecided.

        Raises:
            WseError: `BROKER_UNAVAILABLE`.
        """
        # Answers that are still on their way bring theirs themselves, and with the user's connection.
        asked = {one.device.user for one in self._registrations.values() if one.state in (State.JOINING, State.LEAVING)}
        decided: dict[str, int] = {}
        try:
            for transition in await self._broker.pending():
                if transition.user in asked:
                    continue
                if transition.generation:
                    await self._firing.fire([transition])
                elif not recovering:
                    step = await self._broker.settle(transition)
                    decided[transition.user] = step.generation
                    await self._firing.fire(step.transitions)
        finally:
            self._steps.decided(decided)

    async def reap(self) -> None:
        """Remove the devices of dead nodes from the register.

        Raises:
            WseError: `BROKER_UNAVAILABLE`.
        """
        while transitions := await self._broker.reap():
            await self._firing.fire(transitions)

    def reset(self) -> None:
        """The node has left the cluster."""
        self._steps.restoring.clear()
        self._departed.clear()
        self.register = ""
        self.is_disturbed = False


async def each(scheduler: Scheduler, items: Collection[Any], do: Callable[[Any], Awaitable[None]]) -> None:
    """Call `do` with every item, `WIDTH` of them at a time, and stop at the first error.

    Raises:
        WseError: The first error that `do` raised.
    """
    if not items:
        return
    iterator = iter(items)
    done = scheduler.create_future()
    width = min(WIDTH, len(items))
    ended = count(1)

    async def work() -> None:
        try:
            for item in iterator:
                await do(item)
                if done.done():
                    return
        except WseError as exc:
            if not done.done():
                done.set_exception(exc)
        finally:
            if next(ended) == width and not done.done():
                done.set_result(None)

    for _ in range(width):
        scheduler.spawn(work())
    await done
