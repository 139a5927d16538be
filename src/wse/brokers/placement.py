"""One user's record in the register, for the brokers that apply its rules in Python.

Redis applies the same rules in `wse.brokers.redis.scripts`; one contract suite holds all of them equal.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from wse.core.ports.broker import Device, Joined, Step, Transition

if TYPE_CHECKING:
    from collections.abc import Container, Iterable


def by_place(devices: Iterable[Device]) -> list[Device]:
    """The oldest first."""
    return sorted(devices, key=lambda device: (device.place, device.conn_id))


@dataclass(slots=True)
class UserRecord:
    """The devices of a user, the generation, and the transitions that are still to be fired.

    Attributes:
        user: The user's name.
        generation: Odd while the cluster has announced the user as present.
        last_place: The place of the newest device that there has been.
        devices: The devices by connection id.
        pending: The outboxes of all nodes, as far as they concern this user: `(node, transition)`.
    """

    user: str
    generation: int = 0
    last_place: int = 0
    devices: dict[str, Device] = field(default_factory=dict)
    pending: list[tuple[str, Transition]] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether nothing of it is needed but, for a while, the numbers."""
        return not self.devices and not self.pending

    def join(
        self,
        device: Device,
        limit: int,
        generation: int,
        *,
        fresh: bool,
        recovering: bool,
        dead: Container[str] = (),
    ) -> Joined:
        """See `wse.core.ports.broker.Broker.join`; `dead` has the nodes without a lease."""
        self.generation = max(self.generation, generation)
        registered = self.devices.get(device.conn_id)
        displaced: list[Device] = []
        if registered is None:
            if fresh:
                device = replace(device, place=self.last_place + 1)
            self.last_place = max(self.last_place, device.place)
            self.devices[device.conn_id] = device
            excess = max(0, len(self.devices) - limit)
            # Devices of dead nodes go first, then those that are away, then the oldest.
            order = sorted(self.devices.values(), key=lambda d: (d.node not in dead, not d.away, d.place, d.conn_id))
            displaced = order[:excess]
            for other in displaced:
                del self.devices[other.conn_id]
        elif registered.node != device.node:
            device = self.devices[device.conn_id] = replace(registered, node=device.node, away=False)
        else:
            device = registered
        step = self._decide(device.node, 1006, "", recovering)
        return Joined(step.generation, step.transitions, device, tuple(displaced))

    def leave(self, device: Device, generation: int, code: int, reason: str, *, recovering: bool) -> Step:
        """See `wse.core.ports.broker.Broker.leave`."""
        self.generation = max(self.generation, generation)
        registered = self.devices.get(device.conn_id)
        if registered is not None and registered.node == device.node:
            del self.devices[device.conn_id]
        return self._decide(device.node, code, reason, recovering)

    def settle(self, node: str, undecided: Transition, *, recovering: bool) -> Step:
        """See `wse.core.ports.broker.Broker.settle`."""
        self.fired(node, [undecided])
        return self._decide(node, undecided.code, undecided.reason, recovering)

    def reap(self, dead: Container[str], node: str, *, recovering: bool) -> tuple[Transition, ...]:
        """Take out devices of dead nodes, and hand their outboxes to a living one; what that one must fire."""
        for device in [device for device in self.devices.values() if device.node in dead]:
            del self.devices[device.conn_id]
        inherited = tuple(transition for owner, transition in self.pending if owner in dead)
        self.pending = [(node if owner in dead else owner, transition) for owner, transition in self.pending]
        step = self._decide(node, 1006, "", recovering)
        return (*[one for one in inherited if one.generation], *step.transitions)

    def fired(self, node: str, transitions: Iterable[Transition]) -> bool:
        """Take transitions out of a node's outbox; whether that changed anything."""
        generations = {transition.generation for transition in transitions}
        before = len(self.pending)
        self.pending = [(n, t) for n, t in self.pending if n != node or t.generation not in generations]
        return len(self.pending) != before

    def of_node(self, node: str) -> list[Transition]:
        """The node's outbox, as far as it concerns this user."""
        return [transition for owner, transition in self.pending if owner == node]

    def _decide(self, node: str, code: int, reason: str, recovering: bool) -> Step:
        """The rule: what is announced follows what is there, by a transition that stands in a node's outbox."""
        if bool(self.devices) == bool(self.generation % 2):
            return Step(self.generation)
        if recovering:
            undecided = Transition(self.user, 0, code, reason)
            self.fired(node, [undecided])
            self.pending.append((node, undecided))
            return Step(self.generation)
        self.generation += 1
        transition = Transition(self.user, self.generation, code, reason)
        self.pending.append((node, transition))
        return Step(self.generation, (transition,))
