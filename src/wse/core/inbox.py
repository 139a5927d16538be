"""The settings of messages that are kept for users."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from wse.core.ports.store import Bounds

if TYPE_CHECKING:
    from wse.core.ports.store import Store

MOST_OF_A_NAME: Final = 200
"""Characters of the name of a device, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inbox:
    """The limits for messages that are kept for users and rooms (`WseServer.keep`, `Room.keep`).

    Each user has an inbox in the engine, with one cursor for each device. A device that connects gets what it has not
    seen. All nodes of a cluster should have the same settings.

    Args:
        messages: Messages that one inbox keeps; one more drops the oldest.
        bytes: Bytes that one inbox keeps. On NATS, this is `messages` times `message`.
        ttl: Seconds for which a message is kept. The default is a week.
        devices: Devices of a user whose cursors are kept; one more forgets the device that was used least recently.
        message: Bytes of one message, as it is encoded.
        new_device: Where a device begins that has not been seen before: `"all"` at the oldest message that is kept,
            `"none"` after the newest.
        store: Where messages are kept: a store, or the URL of a file, `"sqlite:inbox.db"`, for a server on its own.
            By default they are kept by the cluster's broker, and without a broker in memory.
        undelivered: Fire `when.undelivered(cid, type, payload)` for a message of `WseServer.keep` that no device with
            an inbox has handled after so many seconds, and that is still kept. Devices without an inbox do not count.
            It fires once, on the server that has kept the message, if that still runs; 3 seconds later if the user has
            a device then, which may not have reported yet. `None`, the default, means never.

    Raises:
        ValueError: A limit is out of its range.
    """

    messages: int = 1000
    bytes: int = 1 << 20
    ttl: float = 7 * 86400
    devices: int = 16
    message: int = 64 * 1024
    new_device: Literal["all", "none"] = "all"
    store: str | Store | None = None
    undelivered: float | None = None

    def __post_init__(self) -> None:
        for name in ("messages", "bytes", "ttl", "devices", "message"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be more than 0, not {getattr(self, name)}")
        if self.undelivered is not None and not self.undelivered > 0:
            raise ValueError(f"undelivered is in seconds, more than 0, or None, not {self.undelivered}")
        if self.new_device not in ("all", "none"):
            raise ValueError(f'new_device must be "all" or "none", not {self.new_device!r}')

    @property
    def bounds(self) -> Bounds:
        """The limits of one box."""
        return Bounds(messages=self.messages, bytes=self.bytes, ttl=self.ttl, devices=self.devices)
