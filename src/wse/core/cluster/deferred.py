"""What the register told this node while other nodes may not have registered their devices with it.

An engine that has forgotten everything comes back to one node earlier than to another. To the first, users of the
others seem to be first and last, though they have been there all the time. So `joined` and `left` are debts until every
node has had the time to come back, and are then fired if they hold:

* Whoever was told to be first was not, if a device is registered that had come earlier, or if its node vouches for it:
  it may be displaced before anybody looks.
* Whoever was told to be last was not, if a device is registered that had come before the end.
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
"""Who has left, and the code and reason of the close."""


class DeferredEvents:
    """Whether the register of this node's cluster can be believed, and what it told while it could not."""

    def __init__(self, bus: Bus, hub: Hub, clock: Callable[[], float]) -> None:
        self._bus = bus
        self._hub = hub
        self._clock = clock
        self._uncertain = False  # the connection was lost, and the lease has not been renewed since
        self._recovering = False  # the lease was lost with it, and other nodes may still have to register their devices
        self._joined: dict[str, tuple[float, WseIdentity]] = {}  # by user, who was told so, and when it had come
        self._left: dict[str, tuple[float, End]] = {}  # by user, who was told so, and when it had gone

    def connection_lost(self) -> None:
        """The register may forget everything until it is reached again."""
        self._uncertain = True

    def lease_kept(self) -> None:
        """It has our lease, so it has not."""
        self._uncertain = False

    def lease_lost(self) -> None:
        """It has, or we have slept: then the others have not lost theirs, and the connection was there."""
        self._recovering |= self._uncertain
        self._uncertain = False

    def calm(self) -> None:
        """Every node that lives has had the time to register its devices."""
        self._recovering = False

    def covers(self, user: str) -> bool:
        """Whether nobody can say of the user who is first and last."""
        return self._uncertain or self._recovering or user in self._joined

    def defer_joined(self, device: Device, identity: WseIdentity) -> None:
        """This is the user's first device, as far as is known."""
        known = self._joined.get(device.user)
        if known is None:
            self._bus.want(USER + device.user)  # the device may go before another node vouches
        elif known[0] < device.since:
            self._left.pop(device.user, None)  # who was there before has come and gone unheard
        self._joined[device.user] = device.since, identity

    def defer_left(self, user: str, end: End) -> None:
        """It has told that the user has no more devices."""
        self._left[user] = self._clock(), end

    def confirm(self, user: str) -> None:
        """`joined` has fired here for the user: who else was told to be first was not."""
        self._bus.publish(USER + user, Confirm(self._bus.node))
        self.confirmed(user)

    def confirmed(self, user: str) -> None:
        """`joined` has fired somewhere for the user."""
        if self._joined.pop(user, None) is not None:
            self._bus.unwant(USER + user)

    @property
    def users(self) -> set[str]:
        """Those of whom it told something."""
        return {*self._joined, *self._left}

    async def resolve(self, user: str) -> None:
        """Fire what holds, once that can be told, and forget what does not.

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
        """We have left the cluster."""
        self._uncertain = self._recovering = False
        self._joined.clear()
        self._left.clear()
