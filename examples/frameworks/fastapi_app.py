"""FastAPI on uvicorn: two WSE servers by path, and the application's own login.

Run:    uvicorn --app-dir examples/frameworks --ws wse.uvicorn:WebSocketProtocol fastapi_app:app
Needs:  pip install "wse[uvicorn]" fastapi itsdangerous
Shows:  `POST /login?user=ada` starts a session, and the session's cookie then opens `/ws/chat` and, for an
        administrator, `/ws/admin`. `GET /online` lists the connected users.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from starlette.middleware.sessions import SessionMiddleware
from starlette.routing import WebSocketRoute

from wse import Handshake, WseConnection, WseServer

ADMINISTRATORS = {"ada"}

chat = WseServer(conns_per_user=3)  # a phone, a laptop and a second tab; by default a new device closes the old one
admin = WseServer()


@chat.identify
def known(auth: Handshake) -> None:
    # The request is an ASGI scope, and SessionMiddleware has put the session into it.
    user = auth.request.native["session"].get("user")
    if user is None:
        auth.refuse()
    else:
        auth.accept(user, {"hello": user})


@admin.identify
def administrator(auth: Handshake) -> None:
    user = auth.request.native["session"].get("user")
    if user in ADMINISTRATORS:
        auth.accept(user, {"online": len(chat.clients)})
    else:
        auth.refuse()


@chat.register("greet")
async def greet(conn: WseConnection, payload: None) -> str:
    device = await conn.call("device")  # the server calls the client
    return f"hello {conn.cid} on {device}"


@admin.register("announce")
def announce(conn: WseConnection, payload: str) -> int:
    chat.broadcast("news", payload)
    return len(chat.clients)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    # FastAPI keeps the lifespan to itself.
    await asyncio.gather(chat.start(), admin.start())
    yield
    await asyncio.gather(chat.close(), admin.close())


app = FastAPI(lifespan=lifespan)
app.add_middleware(SessionMiddleware, secret_key="an example's secret")
app.router.routes += [WebSocketRoute("/ws/chat", chat.asgi), WebSocketRoute("/ws/admin", admin.asgi)]


@app.post("/login")
def login(request: Request, user: str) -> dict[str, str]:
    request.session["user"] = user  # a real application asks for a password
    return {"user": user}


@app.get("/online")
async def online() -> list[str]:  # FastAPI runs plain functions in threads
    return sorted(map(str, chat.clients))
