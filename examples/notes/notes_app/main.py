"""The application: the WSE server with its routers, the login, and the page.

Run:    uvicorn --app-dir examples/notes --ws wse.uvicorn:WebSocketProtocol notes_app.main:app
Then:   http://127.0.0.1:8000/ in a browser
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from starlette.routing import WebSocketRoute

from wse import Handshake, WseIdentity, WseServer

from . import account, login, notes, sharing
from .database import Db, create_tables, open_database

WEB = os.environ.get("NOTES_WEB", Path(__file__).parents[1] / "web" / "dist")

server = WseServer(conns_per_user=8)
for router in (notes.router, sharing.router, account.router):
    server.include(router)


class Welcome(msgspec.Struct):
    """What a client gets when it is let in."""

    user: str


@server.identify
def identify(auth: Handshake[login.Login, dict[str, Any], Welcome], db: Db) -> None:
    """A client brings the token of its login."""
    session = login.session_of(db, auth.identity.token)
    if session is None:
        auth.refuse("log in again")
    else:
        auth.accept(session.user, Welcome(session.user), expires=session.expires)


@server.when.joined
def joined(identity: WseIdentity, meta: dict[str, Any]) -> None:
    account.presence.send(server, account.Presence(identity.cid, online=True))


@server.when.left
def left(identity: WseIdentity, code: int, reason: str) -> None:
    account.presence.send(server, account.Presence(identity.cid, online=False))


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    create_tables()
    with closing(open_database()) as db:
        if not db.execute("SELECT 1 FROM user").fetchone():
            for name, password in login.PASSWORDS.items():
                login.add_user(db, name, password)
            db.commit()
    async with server:
        yield


app = FastAPI(lifespan=lifespan)
app.include_router(login.http)
app.router.routes.append(WebSocketRoute("/ws", server.asgi))
app.mount("/", StaticFiles(directory=WEB, html=True, check_dir=False))  # what `npm run build` makes
