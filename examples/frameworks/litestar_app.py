"""Litestar on uvicorn: its own session authenticates the WebSocket.

Run:    uvicorn --app-dir examples/frameworks --ws wse.uvicorn:WebSocketProtocol litestar_app:app
Needs:  pip install "wse[uvicorn]" litestar
Shows:  `POST /login?user=ada` starts a session, and the session's cookie then opens the WebSocket at `/ws`.
"""

from typing import Any

from litestar import Litestar, Request, asgi, get, post
from litestar.middleware.session.server_side import ServerSideSessionConfig
from litestar.params import FromQuery
from litestar.types import Receive, Scope, Send

from wse import Handshake, WseConnection, WseServer

server = WseServer(conns_per_user=3)  # a phone, a laptop and a second tab; by default a new device closes the old one


@server.identify
def identify(auth: Handshake) -> None:
    # The request is an ASGI scope, and the session middleware has put the session into it.
    user = (auth.request.native["session"] or {}).get("user")
    if user is None:
        auth.refuse()
    else:
        auth.accept(user, {"hello": user})


@server.register("greet")
async def greet(conn: WseConnection, payload: None) -> str:
    device = await conn.call("device")  # the server calls the client
    return f"hello {conn.cid} on {device}"


@asgi("/ws", copy_scope=False)
async def ws(scope: Scope, receive: Receive, send: Send) -> None:
    await server.asgi(scope, receive, send)  # type: ignore[arg-type] # Litestar's own names for the same


@post("/login")
async def login(request: Request[Any, Any, Any], user: FromQuery[str]) -> dict[str, str]:
    request.set_session({"user": user})  # a real application asks for a password
    return {"user": user}


@get("/online")
async def online() -> list[str]:
    return sorted(map(str, server.clients))


app = Litestar(
    [ws, login, online],
    middleware=[ServerSideSessionConfig().middleware],
    lifespan=[lambda _: server],  # Litestar keeps the lifespan to itself
)
