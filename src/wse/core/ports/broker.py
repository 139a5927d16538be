"""The interface to brokers: messages between the nodes of one cluster, and the register of connected devices.

A broker carries bytes between nodes and keeps the register of all devices. It does not know about sockets, messages and
protocols. Only `wse.core.cluster` calls it. The names of users, connections, nodes and topics are strings of
`A-Z a-z 0-9 _ - =`, which every engine accepts as a part of its own names. Topics may have single dots between them.

    publish, subscribe            bytes to topics, at most once
    join, leave, move, settle,    steps of the register: each is atomic for the whole cluster
    reap, set_away
    pending, claim, fired         the register's outbox: `joined` and `left` events that are still to be fired
    renew, registered, nodes      leases: a node that does not renew its lease is dead, and others reap its devices

For each user the register holds the devices, and a generation number. The number is odd while the cluster has announced
the user as present, and even while it has not. Every step ends with the same rule. If the user has devices and the
generation is even, or has none and it is odd, the generation rises by one. The register writes this transition into the
outbox of the node that must fire it. All of this is one atomic step. A node claims a transition before it fires it, and
only one node can claim it. If that node dies first, the node that reaps it inherits the transition. So exactly one node
fires each transition, and the transitions of a user alternate. See `docs/explanation/cluster.md`.
"""

from __future__ import annotations

import typing
from collections.abc import AsyncIterator, Collection, Iterable
from dataclasses import dataclass
from enum import IntEnum


class Away(IntEnum):
    """What is left of a device's connection. A value that is not 0 is one of a device that is away."""

    HERE = 0
    """It is there."""
    GONE = 1
    """It has ended. The device stays for a while, so that its user does not leave."""
    DETACHED = 2
    """It is broken, and its session waits for its client: the device gets messages and calls when that comes back."""

    @property
    def rank(self) -> int:
        """The order in which devices of living nodes are displaced: the lowest first."""
        return (self + 2) % 3


@dataclass(frozen=True, slots=True)
class Device:
    """One connection as the whole cluster knows it.

    Attributes:
        user: The user's name.
        conn_id: The connection's id, unique in the cluster.
        node: The node that holds the connection.
        place: Its position in the order of the user's devices. The register assigns it, without a clock.
        away: What is left of its connection.
    """

    user: str
    conn_id: str
    node: str
    place: int = 0
    away: Away = Away.HERE


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
        displaced: Devices that the register has removed because there were more than `limit`. The new device may be
            among them if it is not fresh.
    """

    device: Device = Device("", "", "")
    displaced: tuple[Device, ...] = ()


@dataclass(frozen=True, slots=True)
class Lease:
    """The result of `renew`.

    Attributes:
        register: The identity of the register, a random string that is made with it. If an engine has lost the
            register, the new one has another identity.
        state: `"kept"`: the register holds the devices that this node has registered. `"reaped"`: the lease had run
            out, and other nodes have removed the node's devices. `"new"`: the register does not know the node, because
            the node has just started, or the engine has lost the register or its latest changes. `renew` returns the
            last two until the node calls `registered`.
        is_recovering: Whether the register was lost, and some nodes of the cluster have not registered their devices
            again. Transitions are held during that time.
        has_pending: Whether the node's outbox holds transitions.
    """

    register: str
    state: typing.Literal["kept", "reaped", "new"] = "kept"
    is_recovering: bool = False
    has_pending: bool = False


class BrokerListener(typing.Protocol):
    """A node, as its broker sees it. The broker calls these methods on the node's event loop. They do not raise."""

    def received(self, topic: str, data: bytes) -> None:
        """Handle a message on a topic that the node has subscribed to, published by this node or another."""

    def connection_lost(self, cause: Exception | None, unsent: list[tuple[str, bytes]]) -> None:
        """Note that the engine cannot be reached. The broker keeps trying, and calls `connection_restored` before it
        calls this again.

        Args:
            cause: The exception of the engine or its library.
            unsent: Topics and data of the messages that were published but certainly not sent, in that order.
        """

    def connection_restored(self) -> None:
        """Note that the engine is reached again, and that every subscription is in force again.

        The engine may have lost its latest changes. So the node joins all its devices anew, even if its lease is still
        in force.
        """


class Broker(typing.Protocol):
    """The connection of one node to the other nodes, and to the register.

    Guarantees:

    * Messages that one node publishes on one topic arrive in that order, each at most once. Messages that are under way
      when the connection to the engine breaks may be lost. Messages that have not left by then are returned as unsent.
    * A step of the register is atomic for the whole cluster, and idempotent. If a step is repeated because its answer
      was lost, it changes nothing. The transitions that it has caused stay in the outbox (`pending`).
    * A step under a lease that is no longer in force does nothing and fails. So a connection that has ended, or a node
      that was reaped, cannot change the register later.
    * `publish`, `subscribe`, `unsubscribe` and `fired` never block, and never raise because of the engine or the
      network. Messages of one turn of the event loop may leave in one write. If the engine is so slow that the broker's
      buffer is full, it counts as one that cannot be reached.
    * The asynchronous methods raise a `WseError` with `ErrorCode.BROKER_UNAVAILABLE`, and the engine's own exception as
      its cause, if the engine cannot be reached or does not answer within a few seconds. It is then unknown whether the
      step was made. The node compares its devices in the register (`mine`) with its own list, and repairs both.
    """

    @property
    def spreads(self) -> bool:
        """Whether the engine may consist of several servers, to which a subscription spreads after a `flush`. A message
        that this node sends to another one does not overtake it.
        """
        ...

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
        """Send the remaining messages, for at most `within` seconds, and disconnect, which takes at most one second.

        The broker receives nothing after that. If it is not open, nothing happens.
        """

    # Messages.

    def publish(self, topic: str, data: bytes) -> None:
        """Send to every node that has subscribed to the topic, including this one. Nothing happens while the engine
        cannot be reached. A caller that must not lose the message checks `connected` first.

        Raises:
            WseError: `LIMIT_EXCEEDED`, with `size` and `limit` in bytes: the message is larger than the engine accepts.
                Nothing was sent, and the connection to the engine stays open.
        """

    def subscribe(self, topic: str) -> None:
        """Begin to receive messages on the topic, soon after this call. A second call for a topic does nothing."""

    def unsubscribe(self, topic: str) -> None:
        """Stop receiving messages on the topic; nothing happens if it is not subscribed to."""

    async def flush(self) -> None:
        """Return when the engine has taken all messages and subscriptions so far."""

    # The register. Each step needs a lease in force.

    async def join(self, device: Device, limit: int, *, generation: int = 0, fresh: bool = True) -> Joined:
        """Add a device to its user, and remove devices above `limit`: first those of dead nodes, then those that are
        away, by the `rank` of that, then the oldest.

        Args:
            device: The device, which is not away; its `place` counts only if it is not fresh.
            limit: The number of devices that the user may have.
            generation: The user's generation as this node last received it; 0 if it has received none. The register
                raises its own generation to this one, and never lowers it. It then removes what the outboxes hold of
                the user's lower generations: the register had been lost, or had gone back in time.
            fresh: Whether the device is new, and so the newest of its user. A device that is registered again keeps its
                place. In a register that was made anew, it is older than any fresh device.

        A device that is already registered stays as it is, and displaces no other.
        """
        ...

    async def leave(self, device: Device, *, generation: int = 0, code: int = 1006, reason: str = "") -> Step:
        """Remove a device, if this node has registered it.

        Args:
            device: The device.
            generation: As for `join`.
            code: The close code, for the transition that this may cause.
            reason: The close reason, for the same transition.
        """
        ...

    async def move(self, device: Device, origin: str) -> Joined | None:
        """Take over a device from the node `origin`. It keeps its place and is not away; nobody is displaced, and no
        transition is caused.

        Returns:
            The device as it is registered, also if it has been moved before; `None` if neither node has it.
        """
        ...

    async def set_away(self, device: Device) -> None:
        """Note `device.away`, if the device is registered by this node."""

    async def settle(self, undecided: Transition) -> Step:
        """Decide a transition that the outbox holds with generation 0: apply the rule, and remove the entry."""
        ...

    async def reap(self) -> list[Transition]:
        """Remove the devices of nodes without a lease, take over their outboxes, and forget these nodes.

        Returns:
            Transitions that this node must fire, some at a time; none if nothing is left for it to do now. If several
            nodes reap at the same time, exactly one gets each of them.
        """
        ...

    async def pending(self) -> list[Transition]:
        """Return the node's outbox: transitions that it must claim and fire, in order of their generations."""
        ...

    async def claim(self, transitions: Iterable[Transition]) -> list[Transition]:
        """Take transitions out of the node's outbox, to fire them.

        Returns:
            The transitions that the node must fire: those from its outbox, and those that it has claimed before and not
            yet reported as `fired`, because that answer may have been lost. The others belong to the node that has
            reaped this one.
        """
        ...

    def fired(self, transitions: Iterable[Transition]) -> None:
        """Forget that transitions were claimed, because they have been fired. This only frees memory."""

    def mine(self) -> AsyncIterator[list[Device]]:
        """Iterate over all devices of this node in the register, in pages and in no particular order.

        Devices that join or leave during the iteration may be included or not. One that others have taken out may be
        included as `Away.GONE`, so that the node can `leave`.
        """
        ...

    async def devices(self, user: str) -> list[Device]:
        """Return the user's devices on all nodes, the oldest first."""
        ...

    async def online(self) -> int:
        """Return the number of users with a device on any node."""
        ...

    def users(self) -> AsyncIterator[str]:
        """Iterate over all users with a device on any node, in no particular order. Users that come or go during the
        iteration may be included or not.
        """
        ...

    # Leases.

    async def renew(self, ttl: float, *, register: str = "", peers: Collection[str] = ()) -> Lease:
        """Keep this node's lease for `ttl` seconds from now, by the engine's clock; take one if there is none.

        Every new connection to the engine begins with this. Renewals do not wait for steps that are under way.

        Args:
            ttl: The length of the lease, in seconds.
            register: The identity of the register that the node knew last; empty if it knew none.
            peers: The other nodes of the cluster that the node knew. If the register has another identity now, it
                recovers until each of these nodes has called `registered`, or has not appeared for `ttl` seconds.
        """
        ...

    async def registered(self) -> None:
        """State that the register now holds all devices of this node."""

    async def resign(self) -> None:
        """Give up the lease: the node has left with all its devices."""

    async def nodes(self) -> frozenset[str]:
        """Return the nodes whose lease is in force."""
        ...
