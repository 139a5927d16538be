"""The rule that places a new device among its user's, for the brokers that apply it in Python."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from wse.core.ports.broker import Joined

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from wse.core.ports.broker import Device

TICK = 1e-6
"""Seconds by which a fresh device is at least newer than all others of its user: the precision of a time as double."""


def by_age(devices: Iterable[Device]) -> list[Device]:
    """Sort devices, the oldest first."""
    return sorted(devices, key=lambda device: (device.since, device.conn_id))


def admit(present: Mapping[Device, bool], device: Device, limit: int, fresh: bool) -> Joined:
    """The result of `Broker.join` for a user who has the devices `present`, each with whether it was the first."""
    for other, first in present.items():
        if other.conn_id == device.conn_id:
            return Joined(other, first, again=True)
    if fresh and present:
        device = replace(device, since=max(device.since, *[other.since + TICK for other in present]))
    all_of_them = by_age([*present, device])
    return Joined(device, not present, tuple(all_of_them[: max(0, len(all_of_them) - limit)]))
