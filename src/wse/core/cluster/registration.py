"""The devices of this node, and where each is on its way into the cluster's register and out of it.

    state       event                                   next        action
    JOINING     the register has it                     INSIDE      fire, close displaced devices, welcome
    JOINING     no answer: the broker is away           OUTSIDE     welcome
    INSIDE      the lease was lost, or it is missing    OUTSIDE
    OUTSIDE     it has come from another node, and      INSIDE      (OUTSIDE if the register does not know it)
                the register has moved it
    OUTSIDE     reconciled: joined again                INSIDE      fire, close displaced devices
    JOINING,    displaced by a newer device             DISPLACED   close the connection
    OUTSIDE,
    INSIDE
    INSIDE      its connection is broken, or back       INSIDE      say so
    INSIDE      the user's last one here has ended,     AWAY        say so
                and there is a `leave_grace`
    AWAY        the grace is over, the user is back     LEAVING     leave
                here, or the lease was lost
    any         the connection has ended                LEAVING     leave
    LEAVING     the register has taken it out           gone        fire
    DISPLACED   the connection has ended                gone        (LEAVING if it was ever joined again: that may
                                                                    have come after the displacement)

`Presence` and `Reconciler` see the events, and `Steps` makes the steps of the register, one at a time for each device.
A step whose answer is lost leaves the device where it was.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING

from wse.core.ports.broker import Away
from wse.core.session.phase import Ignoring

if TYPE_CHECKING:
    from collections.abc import Callable

    from wse.core.hub.connection import WseConnection, WseIdentity
    from wse.core.ports.broker import Device


class State(Enum):
    """Where a device of this node is; see the table above."""

    JOINING = auto()
    OUTSIDE = auto()
    INSIDE = auto()
    AWAY = auto()
    DISPLACED = auto()
    LEAVING = auto()


UNSETTLED = (State.OUTSIDE, State.LEAVING)
"""The states that ask for a step of the register."""

IN_REGISTER = (State.INSIDE, State.AWAY)
"""The states that ask for one only if the register does not know whether the device is away."""


JOINING_PHASE = Ignoring()
"""The phase between acceptance and welcome, while the register is asked."""


class Registration:
    """A device of this node, from its acceptance until the register has taken it out.

    Attributes:
        device: The device as it is registered, or is to be.
        conn: The connection.
        state: See the table of the module.
        generation: The user's generation as last heard; 0 if unknown.
        end: When the connection has ended: the user, and the code and reason of the close.
        is_busy: Whether a step is under way. A device makes one step at a time: two could overtake each other.
        origin: The node from which it has come, until the register knows.
        is_again: Whether it was joined more than once, or is about to be.
    """

    __slots__ = ("conn", "device", "end", "generation", "is_again", "is_busy", "origin", "state")

    def __init__(self, device: Device, conn: WseConnection) -> None:
        self.device = device
        self.conn = conn
        self.state = State.JOINING
        self.generation = 0
        self.end: tuple[WseIdentity, int, str] | None = None
        self.is_busy = False
        self.origin = ""
        self.is_again = False

    @property
    def away(self) -> Away:
        """What the register has to know about the connection."""
        if self.end is not None:
            return Away.GONE
        return Away.HERE if self.conn.attached else Away.DETACHED

    @property
    def is_unsettled(self) -> bool:
        """Whether a step of the register is to be made."""
        return self.state in UNSETTLED or (self.state in IN_REGISTER and self.device.away != self.away)


class Registrations(dict[str, Registration]):
    """The devices of this node, by connection id.

    Attributes:
        unsettled: Those for which a step of the register is to be made, in order.
        moved: Devices that have moved to other nodes, until the register knows.
        when_empty: Called when the last one is gone, and the last one of these.
    """

    def __init__(self) -> None:
        super().__init__()
        self.unsettled: dict[Registration, None] = {}
        self.moved: set[str] = set()
        self.when_empty: Callable[[], None] = _do_nothing

    def enter(self, registration: Registration, state: State) -> None:
        """Put a device into a state."""
        registration.state = state
        self.look_at(registration)

    def look_at(self, registration: Registration) -> None:
        """Note whether a step is to be made for a device."""
        if registration.is_unsettled:
            self.unsettled[registration] = None
        else:
            self.unsettled.pop(registration, None)

    def forget(self, registration: Registration) -> None:
        """The device is gone."""
        self.unsettled.pop(registration, None)
        if self.pop(registration.device.conn_id, None) is not None and not self and not self.moved:
            self.when_empty()

    def arrived(self, conn_id: str) -> None:
        """The register knows that a device has moved to another node."""
        self.moved.discard(conn_id)
        if not self and not self.moved:
            self.when_empty()

    def clear(self) -> None:
        super().clear()
        self.moved.clear()
        self.unsettled.clear()


def _do_nothing() -> None: ...
