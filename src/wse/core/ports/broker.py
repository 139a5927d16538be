"""The interface between the nodes of a cluster and their broker, with the guarantees that each side gives.

A broker carries bytes between nodes and keeps the register of who is connected where. It knows nothing of sockets,
messages or protocols, and `wse.core.cluster` is its only caller. Users, connections, nodes and topics are named
to a broker by strings of `A-Z a-z 0-9 _ - =`, which every engine takes as a part of its own names; topics may also
have single dots between such strings.

    publish, subscribe     bytes to topics, at most once
    join, leave, devices   the register: each of these is one atomic step for the whole cluster
    renew, reap, nodes     leases: a node that does not renew its lease is dead, and others take its devices out
"""

from __future__ import annotations

import typing
from collections.abc import AsyncIterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Device:
    """One connection as the whole cluster knows it.

    Attributes:
        user: The user that it belongs to.
        conn_id: Its id, unique in the cluster.
        node: The node that holds the connection.
        since: When it joined, in seconds since the epoch. It orders the devices of one user: `join` sees to it that
            a fresh device is the newest, whatever the clocks of the nodes say.
    """

    user: str
    conn_id: str
    node: str
    since: float


@dataclass(frozen=True, slots=True)
class Joined:
    """The result of `join`.

    Attributes:
        device: The device as it is registered; its `since` may be later than the one given.
        first: Whether the user had no device before.
        displaced: Devices that had to go, the oldest first, and that the register has forgotten. The new one is among
            them when it is not fresh and `limit` newer ones are there.
        again: Whether it was registered already; `first` is then as it was answered before, and `displaced` is empty.
    """

    device: Device
    first: bool
    displaced: tuple[Device, ...] = ()
    again: bool = False


@dataclass(frozen=True, slots=True)
class Gone:
    """A device of a dead node.

    Attributes:
        device: The device, which the register has forgotten.
        last: Whether it was the user's last.
    """

    device: Device
    last: bool


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
    """The connection of one node to the others.

    Guarantees:

    * Messages that one node publishes on one topic arrive in that order, each at most once. Messages that are under way
      when the connection to the engine breaks may be lost; those that have not left by then are given back.
    * A step of the register is atomic for the whole cluster: of several nodes that join devices of one user at the same
      moment, exactly one is told `first`, and no device is displaced twice; of several that `leave` or `reap`, exactly
      one is told of the last device.
    * `publish`, `subscribe` and `unsubscribe` never block and never raise for what the engine or the network does. What
      is published in one turn of the event loop may leave in one write. An engine that takes less than is published,
      for so long that the broker's buffer is full, counts as one that cannot be reached.
    * The asynchronous methods raise a `WseError` with `ErrorCode.BROKER_UNAVAILABLE`, and the engine's own exception as
      its cause, when the engine cannot be reached or does not answer within a few seconds. Whether the step was made
      is then unknown, and all of them may safely be repeated and then tell the same again: `join` whether the device
      was the first, `leave` whether it was the last, `renew` that the lease is a new one. A step that was answered
      names nobody when it is made again: a device that has left, was displaced or was reaped is nobody's last.

    Facts that are lost with an answer:

    * The devices that a `join` has displaced, or a `reap` has taken out: the register has forgotten them.
    * The earlier answer, after the register itself was lost: a device that is joined anew counts as new.
    * Whether a device was the last, when `leave` is repeated later than a minute after, or by a broker that was opened
      since. On NATS, where a device that leaves leaves no trace, the repeat concludes it from the devices that are
      there. The answer "last" is wrong if the device was reaped or displaced before the step could be made,
      and the device that displaced it has left; "not last" is wrong if others came and the first of them has left.
    * Whether a step whose answer is missing will yet be made: an engine that hung makes it when it goes on.
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

        Nothing is received after that. Harmless when not open.
        """

    # Messages.

    def publish(self, topic: str, data: bytes) -> None:
        """Send to every node that has subscribed to the topic, this one included. Nothing happens while the engine is
        not reached: a caller that must not lose the message asks `connected` first.

        Raises:
            WseError: `LIMIT_EXCEEDED`, with `size` and `limit` in bytes: the engine takes no message that large.
                Nothing was sent, and the connection to the engine goes on.
        """

    def subscribe(self, topic: str) -> None:
        """Receive from the topic, beginning soon. A second subscription to the same topic changes nothing."""

    def unsubscribe(self, topic: str) -> None:
        """Stop receiving from the topic; harmless when it is not subscribed to."""

    async def flush(self) -> None:
        """Return when the engine has taken all that was published and subscribed to before."""

    # The register.

    async def join(self, device: Device, limit: int, *, fresh: bool = True) -> Joined:
        """Add a device to its user's, and take out the oldest above `limit`.

        A fresh device is made the newest of the user's: its `since` is moved up behind theirs where need be. One that
        is not fresh, registered anew after the register was lost or the lease had run out, keeps its place.

        A device that is registered stays as it is; see `Joined.again`.
        """
        ...

    async def leave(self, device: Device) -> bool:
        """Take a device out; whether it was registered and the user's last.

        The repeat of a `leave` that was not answered tells what that would have told.
        """
        ...

    async def devices(self, user: str) -> list[Device]:
        """The user's devices anywhere, the oldest first."""
        ...

    async def online(self) -> int:
        """How many users have a device anywhere."""
        ...

    def users(self) -> AsyncIterator[str]:
        """All users with a device anywhere, in no order; users who come or go meanwhile may be missing or there."""
        ...

    # Leases.

    async def renew(self, ttl: float) -> bool:
        """Keep this node's lease for `ttl` seconds from now, by the engine's clock.

        Returns:
            Whether the lease was still in force. If not (a new node; the register was lost; the node slept past its
            lease and may have been reaped) it is a new one, and the node must join all its devices anew. That is
            repeated until an answer has arrived; on NATS it is also said when the answer of the last renewal was lost.
        """
        ...

    async def resign(self) -> None:
        """Give the lease up: the node has left with all its devices."""

    async def nodes(self) -> frozenset[str]:
        """The nodes whose lease is in force."""
        ...

    async def reap(self) -> list[Gone]:
        """Take out the devices of nodes without a lease, and forget these nodes.

        Each device is told to exactly one of the nodes that reap at the same time. One of these may leave the others
        their share, and takes what is left of that when it reaps again.
        """
        ...
