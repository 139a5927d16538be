"""`WseServer(path=...)` inside ASGI applications that are mounted, or that a proxy serves below a path."""

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from support.frameworks import uvicorn_asgi
from support.net import RawSocket, make_server
from wse import WseServer


def mounted(path, asgi):
    return Starlette(routes=[Mount(path, asgi)])


@pytest.mark.parametrize("ws", ["websockets-sansio", "wse.uvicorn:WebSocketProtocol"])
@pytest.mark.parametrize(
    ("path", "mount", "root_path", "requested"),
    [
        ("/ws", None, "", "/ws"),
        ("/ws", None, "/api", "/ws"),
        ("/ws", "/chat", "", "/chat/ws"),
        ("/ws", "/chat", "/api", "/chat/ws"),
        ("/chat/ws", "/chat", "", "/chat/ws"),
        ("/chat/ws", "/chat", "/api", "/chat/ws"),
        ("/api/ws", None, "/api", "/ws"),
    ],
)
async def test_a_path_is_found_below_a_root_path(path, mount, root_path, requested, ws):
    server = make_server(path=path)
    app = mounted(mount, server.asgi) if mount else server.asgi
    async with uvicorn_asgi(app, ws, root_path) as port:
        # The proxy in front has taken the root path away.
        for target, expected in ((requested, 101), (f"{requested}/", 404), (f"/x{requested}", 404)):
            async with await RawSocket.open(f"ws://127.0.0.1:{port}") as socket:
                assert (await socket.upgrade(target))[0] in (expected, 403 if expected == 404 else 101)
    await server.close()


@pytest.mark.parametrize(
    ("requested", "root_path"),
    [
        ("/ws", "/api"),
        ("/api/ws", "/api"),
        ("/api/ws", "/api/"),
        ("/api/ws", "/api/ws"),
        ("/api/v1/ws", "/api/v1/chat"),
        ("/chat/ws", "/api/chat"),  # hypercorn and granian with a root path, and a mount
        ("/chat/ws", "/api/chat/"),
    ],
)
async def test_servers_differ_in_what_the_path_includes(requested, root_path):
    assert await accepts(requested, root_path)


@pytest.mark.parametrize(
    ("requested", "root_path"),
    [("/api/ws", ""), ("/api/ws", "/apiary"), ("/chat/ws", "/api/xchat"), ("/other/ws", "/api"), ("/api/x/ws", "/api")],
)
async def test_another_path_is_not_found(requested, root_path):
    assert not await accepts(requested, root_path)


async def accepts(path, root_path):
    """Whether a WebSocket opens, in a server for `/ws`."""
    sent = []

    async def receive():
        return {"type": "websocket.connect"} if not sent else {"type": "websocket.disconnect", "code": 1000}

    async def send(message):
        sent.append(message["type"])

    server = WseServer(lambda auth: auth.accept("ann"), path="/ws")
    scope = {"type": "websocket", "path": path, "root_path": root_path, "headers": [], "subprotocols": []}
    await server.asgi(scope, receive, send)
    await server.close()
    return sent[0] == "websocket.accept"
