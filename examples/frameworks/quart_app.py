"""Quart on hypercorn: its signed session cookie opens the WebSocket.

Run:    python examples/frameworks/quart_app.py [PORT]
   or:  cd examples/frameworks && hypercorn quart_app:app
        (hypercorn stops the application only after its graceful timeout, so clients are closed later)
Needs:  pip install wse quart hypercorn
Shows:  `POST /login?user=ada` starts a session, and the session's cookie then opens the WebSocket at `/ws`.
"""

import asyncio
import signal
import sys
from collections.abc import Mapping
from typing import Any

from hypercorn.asyncio import serve
from hypercorn.config import Config
from quart import Quart, jsonify, request, session
from quart.sessions import SecureCookieSessionInterface
from quart.typing import ResponseReturnValue

from wse import Handshake, WseConnection, WseServer

app = Quart(__name__)
app.secret_key = "an example's secret"

# A phone, a laptop and a second tab; by default a new device closes the old one.
server = WseServer(path="/ws", conns_per_user=3)
serializer = SecureCookieSessionInterface().get_signing_serializer(app)


def session_of(cookies: Mapping[str, str]) -> dict[str, Any]:
    """The session in Quart's signed cookie; empty if there is none, or a forged one."""
    assert serializer is not None  # the application has a secret_key
    valid, content = serializer.loads_unsafe(cookies.get("session", ""))
    return content if valid else {}


@server.identify
def identify(auth: Handshake) -> None:
    user = session_of(auth.request.cookies).get("user")
    if user is None:
        auth.refuse()
    else:
        auth.accept(user, {"hello": user})


@server.register("greet")
async def greet(conn: WseConnection, payload: None) -> str:
    device = await conn.call("device")  # the server calls the client
    return f"hello {conn.cid} on {device}"


@app.post("/login")
async def login() -> ResponseReturnValue:
    session["user"] = request.args["user"]  # a real application asks for a password
    return jsonify(user=session["user"])


@app.get("/online")
async def online() -> ResponseReturnValue:
    return jsonify(sorted(map(str, server.clients)))


app.before_serving(server.start)
app.after_serving(server.close)

quart_asgi = app.asgi_app


async def asgi_app(scope: Any, receive: Any, send: Any) -> None:
    """WebSockets go to WSE; everything else, the lifespan included, goes to Quart."""
    await (server.asgi if scope["type"] == "websocket" else quart_asgi)(scope, receive, send)


app.asgi_app = asgi_app  # type: ignore[method-assign] # how Quart's documentation adds a middleware


async def main(port: str) -> None:
    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)

    async def shutdown() -> None:
        await stop.wait()
        await server.close()  # WebSockets first, because hypercorn waits for them

    await serve(app, config, shutdown_trigger=shutdown)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "8000"))
