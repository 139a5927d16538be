"""Starlette on uvicorn: Starlette's own AuthenticationMiddleware authenticates the WebSocket.

Run:    uvicorn --app-dir examples/frameworks starlette_app:app
Needs:  pip install wse starlette uvicorn websockets
Shows:  the header `Authorization: Bearer t-4711` is understood by the routes and by the WebSocket at `/ws` alike.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, BaseUser, SimpleUser
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute

from wse import Handshake, WseConnection, WseServer

USERS_BY_TOKEN = {"t-4711": "ada", "t-0815": "grace"}


class TokenBackend(AuthenticationBackend):
    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, BaseUser] | None:
        user = USERS_BY_TOKEN.get(conn.headers.get("Authorization", "").removeprefix("Bearer "))
        return None if user is None else (AuthCredentials(["authenticated"]), SimpleUser(user))


server = WseServer(conns_per_user=3)  # a phone, a laptop and a second tab; by default a new device closes the old one


@server.identify
def identify(auth: Handshake) -> None:
    user = auth.request.native["user"]  # the request is an ASGI scope
    if user.is_authenticated:
        auth.accept(user.display_name, {"hello": user.display_name})
    else:
        auth.refuse()


@server.register("greet")
async def greet(conn: WseConnection, payload: None) -> str:
    device = await conn.call("device")  # the server calls the client
    return f"hello {conn.cid} on {device}"


async def me(request: Request) -> JSONResponse:
    return JSONResponse({"user": request.user.display_name, "online": sorted(map(str, server.clients))})


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with server:  # Starlette keeps the lifespan to itself
        yield


app = Starlette(
    routes=[Route("/me", me), WebSocketRoute("/ws", server.asgi)],
    middleware=[Middleware(AuthenticationMiddleware, backend=TokenBackend())],
    lifespan=lifespan,
)
