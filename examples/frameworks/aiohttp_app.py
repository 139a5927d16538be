"""aiohttp: two WSE servers as handlers of its router, and a login of the application's own.

Run:    cd examples/frameworks && python -m aiohttp.web -H 127.0.0.1 -P 8000 aiohttp_app:make_app
Needs:  pip install "wse[aiohttp]"
Shows:  `POST /login?user=ada` sets a cookie, which then opens `/ws/chat`. `/ws/status` is open to everybody.
"""

import asyncio
import secrets
from itertools import count

from aiohttp import web

from wse import Handshake, WseConnection, WseServer

USERS_BY_SESSION: dict[str, str] = {}
VISITORS = count(1)

chat = WseServer(conns_per_user=3)  # a phone, a laptop and a second tab; by default a new device closes the old one
status = WseServer()


@chat.identify
def identify(auth: Handshake) -> None:
    user = USERS_BY_SESSION.get(auth.request.cookies.get("session", ""))
    if user is None:
        auth.refuse()
    else:
        auth.accept(user, {"hello": user})


@status.identify
def anybody(auth: Handshake) -> None:
    auth.accept(f"visitor {next(VISITORS)}", {"online": len(chat.clients)})


@chat.register("greet")
async def greet(conn: WseConnection, payload: None) -> str:
    device = await conn.call("device")  # the server calls the client
    return f"hello {conn.cid} on {device}"


async def login(request: web.Request) -> web.Response:
    user = request.query["user"]  # a real application asks for a password
    session = secrets.token_urlsafe()
    USERS_BY_SESSION[session] = user
    response = web.json_response({"user": user})
    response.set_cookie("session", session, httponly=True)
    return response


async def online(request: web.Request) -> web.Response:
    return web.json_response(sorted(map(str, chat.clients)))


async def startup(app: web.Application) -> None:
    await asyncio.gather(chat.start(), status.start())


async def shutdown(app: web.Application) -> None:
    await asyncio.gather(chat.close(), status.close())


def make_app(argv: list[str] | None = None) -> web.Application:
    app = web.Application()
    app.router.add_post("/login", login)
    app.router.add_get("/online", online)
    app.router.add_get("/ws/chat", chat.aiohttp)
    app.router.add_get("/ws/status", status.aiohttp)
    app.on_startup.append(startup)
    app.on_shutdown.append(shutdown)
    return app


if __name__ == "__main__":
    web.run_app(make_app(), host="127.0.0.1", port=8000)
