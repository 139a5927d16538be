"""One user's record in the register, for the brokers that apply its rules in Python.

Redis applies the same rules in `wse.brokers.redis.scripts`; one contract suite holds all of them equal.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from wse.core.ports.broker import Away, Device, Joined, Step, Transition

if TYPE_CHECKING:
    from collections.abc import Container, Iterable


def by_place(devices: Iterable[Device]) -> list[Device]:
    """Sort devices, the oldest first."""
    return sorted(devices, key=lambda device: (device.place, device.conn_id))


MAX_CLAIMED = 8
"""How many claims a record keeps that were not reported as fired."""


@dataclass(slots=True)
class UserRecord:
    """The devices of a user, the generation, and the transitions that are still to be fired.

    Attributes:
        user: The user's name.
        generation: Odd while the cluster has announced the user as present.
        last_place: The place of the newest device that there has been.
        devices: The devices by connection id.
        pending: The outboxes of all nodes, as far as they concern this user: `(node, transition)`.
        claimed: Transitions that a node has taken out of its outbox and not yet reported as fired, likewise.
    """

    user: str
    generation: int = 0
    last_place: int = 0
    devices: dict[str, Device] = field(default_factory=dict)
    pending: list[tuple[str, Transition]] = field(default_factory=list)
    claimed: list[tuple[str, Transition]] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether nothing of it is needed but, for a while, the numbers."""
        return self._is_empty("", 0)

    def is_empty_after(self, node: str, fired: Transition) -> bool:
        """Whether it will be empty when this transition is reported as fired."""
        return self._is_empty(node, fired.generation)

    def _is_empty(self, node: str, fired: int) -> bool:
        return (
            not self.devices
            and not self.pending
            and all(
                one.generation < self.generation or (owner == node and one.generation <= fired)
                for owner, one in self.claimed
            )
        )

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
        self._raise(generation)
        registered = self.devices.get(device.conn_id)
        displaced: list[Device] = []
        if registered is None:
            device = replace(device, place=self.last_place + 1 if fresh else device.place, away=Away.HERE)
            self.last_place = max(self.last_place, device.place)
            self.devices[device.conn_id] = device
            excess = max(0, len(self.devices) - limit)
            # Devices of dead nodes go first, then those that are away, then the oldest.
            order = sorted(self.devices.values(), key=lambda d: (d.node not in dead, d.away.rank, d.place, d.conn_id))
            displaced = order[:excess]
            for other in displaced:
                del self.devices[other.conn_id]
        elif registered.node != device.node:
            device = self.devices[device.conn_id] = replace(registered, node=device.node, away=Away.HERE)
        else:
            device = registered
        step = self._decide(device.node, 1006, "", recovering)
        transitions = step.transitions if registered is None else self._open(device.node)
        return Joined(step.generation, transitions, device, tuple(displaced))

    def leave(self, device: Device, generation: int, code: int, reason: str, *, recovering: bool) -> Step:
        """See `wse.core.ports.broker.Broker.leave`."""
        self._raise(generation)
        registered = self.devices.get(device.conn_id)
        if registered is not None and registered.node == device.node:
            del self.devices[device.conn_id]
        step = self._decide(device.node, code, reason, recovering)
        return step if registered is not None else Step(step.generation, self._open(device.node))

    def move(self, device: Device, origin: str) -> Joined | None:
        """See `wse.core.ports.broker.Broker.move`."""
        registered = self.devices.get(device.conn_id)
        if registered is None or registered.node not in (origin, device.node):
            return None
        if registered.node == origin:
            registered = self.devices[device.conn_id] = replace(registered, node=device.node, away=Away.HERE)
        return Joined(self.generation, (), registered)

    def set_away(self, device: Device) -> None:
        """See `wse.core.ports.broker.Broker.set_away`."""
        registered = self.devices.get(device.conn_id)
        if registered is not None and registered.node == device.node:
            self.devices[device.conn_id] = replace(registered, away=Away(device.away))

    def settle(self, node: str, undecided: Transition, *, recovering: bool) -> Step:
        """See `wse.core.ports.broker.Broker.settle`."""
        self._drop_undecided(node)
        return self._decide(node, undecided.code, undecided.reason, recovering)

    def reap(self, dead: Container[str], node: str, *, recovering: bool) -> tuple[Transition, ...]:
        """Take out devices of dead nodes, and hand their outboxes to a living one; what that one must fire."""
        for device in [device for device in self.devices.values() if device.node in dead]:
            del self.devices[device.conn_id]
        has_inherited = any(owner in dead for owner, _ in self.pending)
        self.pending = [(node if owner in dead else owner, transition) for owner, transition in self.pending]
        step = self._decide(node, 1006, "", recovering)
        return self._open(node) if has_inherited else step.transitions

    def claim(self, node: str, transitions: Iterable[Transition]) -> list[Transition]:
        """See `wse.core.ports.broker.Broker.claim`."""
        wanted = {transition.generation for transition in transitions}
        mine = [one for one in self.pending if one[0] == node and one[1].generation in wanted]
        self.pending = [one for one in self.pending if one not in mine]
        earlier = [one for one in self.claimed if one[0] == node and one[1].generation in wanted]
        self.claimed = (self.claimed + mine)[-MAX_CLAIMED:]  # of the older ones it has been reported, or will not be
        return [transition for _, transition in earlier + mine]

    def fired(self, node: str, transitions: Iterable[Transition]) -> None:
        """See `wse.core.ports.broker.Broker.fired`. A node fires in order, so the earlier ones have been as well."""
        last = max(transition.generation for transition in transitions)
        self.claimed = [one for one in self.claimed if one[0] != node or one[1].generation > last]

    def _raise(self, generation: int) -> None:
        """A node remembers a later generation: that has been announced, and what is pending has been before it."""
        if generation > self.generation:
            self.generation = generation
            self.pending = [one for one in self.pending if not one[1].generation]

    def _drop_undecided(self, node: str) -> None:
        self.pending = [(owner, one) for owner, one in self.pending if owner != node or one.generation]

    def of_node(self, node: str) -> list[Transition]:
        """The node's outbox, as far as it concerns this user."""
        return [transition for owner, transition in self.pending if owner == node]

    def _decide(self, node: str, code: int, reason: str, recovering: bool) -> Step:
        """The rule: what is announced follows what is there, by a transition that stands in a node's outbox."""
        if bool(self.devices) == bool(self.generation % 2):
            return Step(self.generation)
        last = next((one for one in reversed(self.pending) if one[1].generation), None)
        if last is not None and last[0] != node:  # it has not claimed it yet, and would fire it after this one
            self.pending.remove(last)
            self.generation += 1
            return Step(self.generation)
        if recovering:
            self._drop_undecided(node)
            self.pending.append((node, Transition(self.user, 0, code, reason)))
            return Step(self.generation)
        self.generation += 1
        self.pending.append((node, Transition(self.user, self.generation, code, reason)))
        return Step(self.generation, self._open(node))

    def _open(self, node: str) -> tuple[Transition, ...]:
        """What the node has still to fire; the answers that told it of earlier ones may have been lost."""
        return tuple(transition for transition in self.of_node(node) if transition.generation)
