"""The interface to brokers: messages between the nodes of one cluster, and the register of connected devices.

A broker carries bytes between nodes and keeps the register of all devices. It knows nothing of sockets, messages or
protocols: `wse.core.cluster` does, and is the only caller. Users, connections, nodes and topics are named to a broker
by strings of `A-Z a-z 0-9 _ - =`, which every engine takes as a part of its own names; topics may have single dots
between such strings.

    publish, subscribe            bytes to topics, at most once
    join, leave, settle, reap,    steps of the register: each is atomic for the whole cluster
    set_away
    pending, claim, fired         the register's outbox: `joined` and `left` events that are still to be fired
    renew, registered, nodes      leases: a node that does not renew its lease is dead, and others reap its devices

The register holds for each user the devices, and a generation number. The number is odd while the cluster has announced
the user as present, and even while it has not. Every step ends with the same rule: if the user has devices and the
generation is even, or none and it is odd, the generation rises by one, and that transition is written into the outbox
of the node that must fire it. All of this is one atomic step. A node claims a transition before it fires it, and only
one node can: if it dies first, the node that reaps it inherits the transition. So each transition is fired by exactly
one node, and transitions of a user alternate. See `docs/explanation/cluster.md`.
"""

from __future__ import annotations

import typing
from collections.abc import AsyncIterator, Collection, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Device:
    """One connection as the whole cluster knows it.

    Attributes:
        user: The user's name.
        conn_id: The connection's id, unique in the cluster.
        node: The node that holds the connection.
        place: Its position in the order of the user's devices, which the register assigns; no clock has a part in it.
        away: Whether its connection is broken and may be resumed.
    """

    user: str
    conn_id: str
    node: str
    place: int = 0
    away: bool = False


@dataclass(frozen=True, slots=True)
class Transition:
    """A user has become present or absent; one entry of the register's outbox.

    Attributes:
        user: The user's name.
        generation: The user's generation since then: odd if `joined` is to be fired, even if `left` is. 0 if the
            register could not decide it, because it was recovering from a loss: `settle` must be called after that.
        code: The close code of the last device, for `left`.
        reason: The reason of that close.
    """

    user: str
    generation: int
    code: int = 1006
    reason: str = ""

    @property
    def is_joined(self) -> bool:
        """Whether `joined` is to be fired, and not `left`."""
        return self.generation % 2 == 1


@dataclass(frozen=True, slots=True)
class Step:
    """The result of a step of the register.

    Attributes:
        generation: The user's generation after it.
        transitions: What this node must claim, fire, and then report as `fired`. A step that causes a transition, and
            one that is repeated, tells of all that the node's outbox holds of the user: earlier answers may be lost.
    """

    generation: int
    transitions: tuple[Transition, ...] = ()


@dataclass(frozen=True, slots=True)
class Joined(Step):
    """The result of `join`.

    Attributes:
        device: The device as it is registered.
        displaced: Devices that had to go because there were more than `limit`, and that the register has taken out.
            The new one may be among them when it is not fresh.
    """

    device: Device = Device("", "", "")
    displaced: tuple[Device, ...] = ()


@dataclass(frozen=True, slots=True)
class Lease:
    """The result of `renew`.

    Attributes:
        register: The identity of the register, a random word that is made with it. An engine that has lost the register
            has another one.
        state: `"kept"`: the register holds what this node has registered. `"reaped"`: the lease had run out, and others
            have taken the node's devices out. `"new"`: the register does not know the node: it has just started, or
            the engine has lost the register or its latest changes. The last two are repeated until `registered`.
        is_recovering: The register was lost, and nodes that were part of the cluster have not registered their devices
            again: transitions are held.
        has_pending: Whether the node's outbox holds transitions.
    """

    register: str
    state: typing.Literal["kept", "reaped", "new"] = "kept"
    is_recovering: bool = False
    has_pending: bool = False


class BrokerListener(typing.Protocol):
    """A node, as its broker sees it. Everything is called on the node's event loop, and none of it raises."""

    def received(self, topic: str, data: bytes) -> None:
        """A message was published on a topic that the node has subscribed to, by itself or by another."""

    def connection_lost(self, cause: Exception | None, unsent: list[tuple[str, bytes]]) -> None:
        """The engine cannot be reached; the broker goes on trying. Not called twice without `connection_restored`.

        Args:
            cause: What the engine or its library raised.
            unsent: Topics and data of what was published but certainly never left, in that order.
        """

    def connection_restored(self) -> None:
        """The engine is reached again, and every subscription is in force again.

        It may have lost the last of what it knew, so the node joins all its devices anew, whether or not its lease is
        still in force.
        """


class Broker(typing.Protocol):
    """One node's way to the others.

    Guarantees:

    * Messages that one node publishes on one topic arrive in that order, each at most once. Messages that are under way
      when the connection to the engine breaks may be lost; those that have not left by then are given back.
    * A step of the register is atomic for the whole cluster, and idempotent: a step that is repeated, because its
      answer was lost, changes nothing. The transitions that it has caused stand in the outbox (`pending`).
    * A step of a lease that is no longer in force does nothing and fails: a request of a connection that has ended, or
      of a node that was reaped, cannot change the register later.
    * `publish`, `subscribe`, `unsubscribe` and `fired` never block and never raise for what the engine or the network
      does. What is published in one turn of the event loop may leave in one write. An engine that takes less than is
      published, for so long that the broker's buffer is full, counts as one that cannot be reached.
    * The asynchronous methods raise a `WseError` with `ErrorCode.BROKER_UNAVAILABLE`, and the engine's own exception as
      its cause, when the engine cannot be reached or does not answer within a few seconds. Whether the step was made
      is then unknown. The node compares what the register holds of it (`mine`) with what it holds itself, and repairs.
    """

    @property
    def connected(self) -> bool:
        """Whether the engine is reached, as far as is known."""
        ...

    async def open(self, node: str, listener: BrokerListener) -> None:
        """Connect as that node.

        Raises:
            WseError: `BROKER_UNAVAILABLE`: the engine cannot be reached. Only `open` gives up at the first failure.
        """

    async def close(self, within: float = 3.0) -> None:
        """Send what is still to be sent, for so many seconds at most, and disconnect, which takes one more at most.

        Nothing is received any more. Harmless when not open.
        """

    # Messages.

    def publish(self, topic: str, data: bytes) -> None:
        """Send to every node that has subscribed to the topic, this one included. Nothing happens while the engine is
        not reached: who must not lose the message asks `connected` first.

        Raises:
            WseError: `LIMIT_EXCEEDED`, with `size` and `limit` in bytes: the engine takes no message that large.
                Nothing was sent, and the connection to the engine goes on.
        """

    def subscribe(self, topic: str) -> None:
        """Receive what is published on the topic from soon on. A topic is subscribed to once, however often asked."""

    def unsubscribe(self, topic: str) -> None:
        """Receive no more of the topic; harmless when it is not subscribed to."""

    async def flush(self) -> None:
        """Return when the engine has taken all that was published and subscribed to before."""

    # The register. Each step needs a lease in force.

    async def join(self, device: Device, limit: int, *, generation: int = 0, fresh: bool = True) -> Joined:
        """Add a device to its user's, and take out those above `limit`: first devices of dead nodes, then devices that
        are away, then the oldest.

        Args:
            device: The device; its `place` counts only if it is not fresh.
            limit: How many devices the user may have.
            generation: The user's generation as this node last heard it; 0 if it has not. The register's own is never
                lowered, and raised to this one.
            fresh: Whether the device is new, and so the newest of the user's. One that is registered again keeps its
                place; in a register that was made anew, it is older than any fresh one.

        A device that is registered already stays as it is, and displaces nobody.
        """
        ...

    async def leave(self, device: Device, *, generation: int = 0, code: int = 1006, reason: str = "") -> Step:
        """Take a device out, if it is registered by this node.

        Args:
            device: The device.
            generation: As for `join`.
            code: Of the close, for the transition that this may cause.
            reason: The same.
        """
        ...

    async def set_away(self, device: Device) -> None:
        """Note whether the device's connection is broken, as `device.away` says, if it is registered by this node."""

    async def settle(self, undecided: Transition) -> Step:
        """Decide a transition that the outbox holds with generation 0: apply the rule, and take the entry out."""
        ...

    async def reap(self) -> list[Transition]:
        """Take out the devices of nodes without a lease, take over their outboxes, and forget these nodes.

        Returns:
            Transitions that this node must fire. Each is given to exactly one of the nodes that reap at the same time.
        """
        ...

    async def pending(self) -> list[Transition]:
        """The node's outbox: transitions that it must claim and fire, in order of their generations."""
        ...

    async def claim(self, transitions: Iterable[Transition]) -> list[Transition]:
        """Take transitions out of the node's outbox, to fire them.

        Returns:
            Those that are the node's to fire: from its outbox, or claimed by it before and not yet reported as `fired`,
            since that answer may have been lost. The others belong to the node that has reaped this one.
        """
        ...

    def fired(self, transitions: Iterable[Transition]) -> None:
        """Forget that transitions were claimed, because they have been fired. Nothing depends on it but memory."""

    def mine(self) -> AsyncIterator[list[Device]]:
        """All devices that the register holds of this node, in pages and in no order.

        Devices that come or go meanwhile may be missing or there.
        """
        ...

    async def devices(self, user: str) -> list[Device]:
        """The user's devices on all nodes, the oldest first."""
        ...

    async def online(self) -> int:
        """How many users have a device on any node."""
        ...

    def users(self) -> AsyncIterator[str]:
        """All users with a device on any node, in no order; users who come or go meanwhile may be missing or there."""
        ...

    # Leases.

    async def renew(self, ttl: float, *, register: str = "", peers: Collection[str] = ()) -> Lease:
        """Keep this node's lease for `ttl` seconds from now, by the engine's clock; take one if there is none.

        Every new connection to the engine begins with this. Renewals do not wait for steps that are under way.

        Args:
            ttl: Seconds.
            register: The identity of the register that the node knew last; empty if it knew none.
            peers: Other nodes of the cluster that the node knew. If the register is another one now, it recovers until
                each of these has called `registered`, or has not come for `ttl` seconds.
        """
        ...

    async def registered(self) -> None:
        """Say that the register now holds all devices of this node."""

    async def resign(self) -> None:
        """Give the lease up: the node has left with all its devices."""

    async def nodes(self) -> frozenset[str]:
        """The nodes whose lease is in force."""
        ...
