"""The limits of the servers of a cluster, which stand in the store, so that publishers know them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from wse.core.inbox import Inbox

if TYPE_CHECKING:
    from wse.core.ports.store import Store

BOX: Final = "s.inbox"
"""The box in which they stand: the newest message counts."""

FIELDS: Final = ("messages", "bytes", "ttl", "devices", "message", "undelivered")

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode


async def announce(store: Store, settings: Inbox, *, again: bool) -> bool:
    """Write the limits of this server into the store, unless they stand there; with `again`, in any case.

    Returns:
        Whether they were written.

    Raises:
        WseError: `BROKER_UNAVAILABLE`.
    """
    said = _encode({name: getattr(settings, name) for name in FIELDS})
    if not again and await _newest(store) == said:
        return False
    await store.keep(BOX, said, settings.bounds)
    return True


async def announced(store: Store) -> Inbox | None:
    """The limits of the servers; `None` if there has been none.

    Raises:
        WseError: `BROKER_UNAVAILABLE`.
    """
    said = await _newest(store)
    if said is None:
        return None
    values = _decode(said)  # a later version may say more
    return Inbox(**{name: values[name] for name in FIELDS if name in values})


async def _newest(store: Store) -> bytes | None:
    (last,) = await store.last([BOX])
    records = (await store.read(BOX, last - 1, 1)).records if last else ()
    return records[-1].data if records else None
