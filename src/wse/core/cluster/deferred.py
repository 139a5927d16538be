"""Holds `joined` and `left` back while other nodes may not have registered their devices yet.

An engine that has forgotten everything comes back to one node earlier than to another. The first node then sees users
join and leave who have been connected to other nodes all the time. So the events are deferred until every node has had
the time to come back, and are then fired if they still hold:

* A device was not its user's first if a device is registered that had come earlier, or if the node of such a device
  confirms it, because the device may be displaced before anybody looks.
* A device was not its user's last if a device is registered that had come before the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from wse.core.cluster.envelope import USER, Confirm

if TYPE_CHECKING:
    from collections.abc import Callable

    from wse.core.cluster.bus import Bus
    from wse.core.hub.connection import WseIdentity
    from wse.core.hub.hub import Hub
    from wse.core.ports.broker import Device

End = tuple["WseIdentity", int, str]
"""The user that has left, and the code and reason of the close."""


class DeferredEvents:
    """Knows whether the register can be trusted, and keeps the events that it caused while it could not."""

    def __init__(self, bus: Bus, hub: Hub, clock: Callable[[], float]) -> None:
        self._bus = bus
        self._hub = hub
        self._clock = clock
        self._uncertain = False  # the connection was lost, and the lease has not been renewed since
        self._recovering = False  # the lease was lost with it, and other nodes may still have to register their devices
        self._joined: dict[str, tuple[float, WseIdentity]] = {}  # by user, when its device had come
        self._left: dict[str, tuple[float, End]] = {}  # by user, when its device had gone

    def connection_lost(self) -> None:
        """The broker is away: the register may forget everything before it is reached again."""
        self._uncertain = True

    def lease_kept(self) -> None:
        """The register has kept this node's lease, so it has not forgotten anything."""
        self._uncertain = False

    def lease_lost(self) -> None:
        """The register has forgotten this node's lease.

        If the connection was there all the time, this node has slept, and the other nodes still have their leases.
        """
        self._recovering |= self._uncertain
        self._uncertain = False

    def calm(self) -> None:
        """Every living node has had the time to register its devices."""
        self._recovering = False

    def covers(self, user: str) -> bool:
        """Whether the register cannot be trusted about the user's first and last device."""
        return self._uncertain or self._recovering or user in self._joined

    def defer_joined(self, device: Device, identity: WseIdentity) -> None:
        """Defer `joined`: this is the user's first device, as far as is known."""
        known = self._joined.get(device.user)
        if known is None:
            self._bus.want(USER + device.user)  # the device may go before another node confirms
        elif known[0] < device.since:
            self._left.pop(device.user, None)  # the earlier device has come and gone unannounced
        self._joined[device.user] = device.since, identity

    def defer_left(self, user: str, end: End) -> None:
        """Defer `left`: the register says that the user has no more devices."""
        self._left[user] = self._clock(), end

    def confirm(self, user: str) -> None:
        """Tell the other nodes that the user is known here, so that they do not fire `joined`."""
        self._bus.publish(USER + user, Confirm(self._bus.node))
        self.confirmed(user)

    def confirmed(self, user: str) -> None:
        """A node has confirmed that the user is known: forget its `joined`."""
        if self._joined.pop(user, None) is not None:
            self._bus.unwant(USER + user)

    @property
    def users(self) -> set[str]:
        """The users with deferred events."""
        return {*self._joined, *self._left}

    async def resolve(self, user: str) -> None:
        """Fire the user's events that hold, once that is certain, and forget the others.

        Raises:
            WseError: `BROKER_UNAVAILABLE`.
        """
        came = [device.since for device in await self._bus.broker.devices(user)]
        if user in self._joined and any(since < self._joined[user][0] for since in came):
            self.confirmed(user)
        if user in self._left and any(since < self._left[user][0] for since in came):
            del self._left[user]
        if self._uncertain or self._recovering:
            return
        came_back = user in self._joined and user in self._left and self._left[user][0] < self._joined[user][0]
        if came_back:
            self._fire_left(user)
        if user in self._joined:
            _, identity = self._joined[user]
            if user in self._left:
                self.confirmed(user)
            else:
                self.confirm(user)
            self._hub.joined._emit(identity, identity.meta)
        if user in self._left:
            self._fire_left(user)

    def _fire_left(self, user: str) -> None:
        _, end = self._left.pop(user)
        self._hub.left._emit(*end)

    def reset(self) -> None:
        """Forget everything: this node has left the cluster."""
        self._uncertain = self._recovering = False
        self._joined.clear()
        self._left.clear()
