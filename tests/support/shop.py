"""An application with everything that a contract has. As a program it serves, and prints its URL."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta
from pydantic import BaseModel, Field

from wse import ClientProcedure, Event, Handshake, Router, WseError, WseServer

print("an application may print what it likes")


class Page(msgspec.Struct):
    """A part of a list."""

    after: int = 0
    size: Annotated[int, Meta(ge=1, le=100, description="How many.")] = 20


class Note(msgspec.Struct):
    id: int
    text: str = ""


class Draft(msgspec.Struct):
    text: str
    color: Literal["red", "blue"] = "red"


class Card(msgspec.Struct, tag="card"):
    number: str


class Cash(msgspec.Struct, tag="cash"):
    amount: int


@dataclass
class Point:
    x: float
    y: float = 0.0


class User(BaseModel):
    name: str = Field(min_length=1)
    full_age: bool = False
    seat: tuple[int, str] = (1, "a")


class Visit(msgspec.Struct):
    user: User
    when: str | None = None


note_added = Event("note-added", Note, doc="Somebody has written a note.")
full_name = ClientProcedure("full-name", None, str, errors=["client.busy"], doc="The name of the user.")
ticks = ClientProcedure("ticks", int, int, stream=True)

notes = Router(prefix="notes.", tags=["notes"])


@notes.register(errors=["notes.closed"], examples=[Page(after=3)])
async def missed(conn: Any, page: Page) -> list[Note]:
    """What came while you were away.

    The oldest first.
    """
    if page.after == 99:
        raise WseError("notes.closed")
    return [Note(page.after + 1, "Lunch?")]


@notes.register
async def tail(conn: Any, page: Page | None) -> AsyncIterator[Note]:
    """All notes, as they come."""
    for number in (1, 2):
        yield Note(number)


@notes.register(upload=True)
async def load(conn: Any, payload: None, items: AsyncIterator[Point]) -> float:
    return sum([point.x async for point in items])


@notes.channel.on("write")
def write(conn: Any, draft: Draft) -> None:
    """Write a note."""
    note_added.send(conn, Note(1, draft.text))


server = WseServer(port=0)
for part in (notes, note_added, full_name, ticks):
    server.include(part)


class Login(msgspec.Struct):
    name: str
    password: str = ""


class Device(msgspec.Struct):
    kind: Literal["page", "terminal"] = "page"


class Welcome(msgspec.Struct):
    """What a client gets when it is let in."""

    user: str
    unread: int = 0


@server.identify
def identify(auth: Handshake[Login, Device, Welcome]) -> None:
    """Everybody has a name."""
    auth.accept(auth.identity.name, Welcome(f"{auth.identity.name} on a {auth.meta.kind}"))


@server.register
def pay(conn: Any, how: Card | Cash) -> Literal["ok", "no"]:
    return "ok" if isinstance(how, Card) else "no"


@server.register
def whoami(conn: Any, visit: Visit) -> User:
    return visit.user


@server.register
def same(conn: Any, payload: Any) -> Any:
    return payload


@server.register
async def introduce(conn: Any, payload: None) -> str:
    return await full_name(conn)


@server.register
async def count(conn: Any, last: int) -> list[int]:
    return [number async for number in ticks.stream(conn, last)]


async def main() -> None:
    async with server:
        print(server.url, flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
