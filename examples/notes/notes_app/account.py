"""The account: who is here, the user's devices, and the end of a session."""

from typing import Literal

import msgspec

from wse import ClientProcedure, CloseReason, Event, Router, WseConnection

from . import login
from .database import Db

router = Router(prefix="account.", tags=["account"])


class Device(msgspec.Struct):
    """What a device says of itself."""

    kind: Literal["page", "terminal"]
    name: str


class Presence(msgspec.Struct):
    user: str
    online: bool


presence = Event("account.presence", Presence, tags=["account"], doc="A user has come, or has gone.")
confirm = ClientProcedure("confirm", str, bool, tags=["account"], doc="Ask the user a question.")
device = ClientProcedure("device", None, Device, tags=["account"], doc="Which device this is.")
for declaration in (presence, confirm, device):
    router.include(declaration)


@router.register
def online(conn: WseConnection, payload: None) -> list[str]:
    """The users who are connected."""
    return sorted(conn.server.clients)


@router.register
async def devices(conn: WseConnection, payload: None) -> list[Device]:
    """The user's devices. Every one is asked; one that does not answer is left out."""
    answers = await conn.client.call(device.name, result=Device, timeout=5)
    return [answer for answer in answers if isinstance(answer, Device)]


@router.register
def log_out(conn: WseConnection, payload: None, db: Db) -> None:
    """End the session: its token is worth nothing from now on, here and in other tabs."""
    login.forget(db, conn.identity["token"])
    for other in tuple(conn.client.conns.values()):
        if other is not conn and other.identity == conn.identity:
            other.drop(CloseReason.NOT_AUTHORIZED)
