"""The operations page inside web frameworks, on real sockets."""

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from support.frameworks import aiohttp_web, uvicorn_asgi
from wse import ErrorCode, WseClient, WseError, WseServer

KEY = "the-key-of-a-test"


def make():
    def operators(auth):
        if auth.identity == {"name": "grace", "key": KEY}:
            auth.accept("grace")
        else:
            auth.refuse()

    return WseServer(lambda auth: auth.accept(auth.identity), admin=operators)


async def check(server, port, path):
    """The page, its files and its WebSocket are at this path; the WebSocket lets operators in only."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", follow_redirects=True) as web:
        page = await web.get(path)
        assert (page.status_code, "console.js" in page.text) == (200, True)
        assert "default-src 'none'" in page.headers["content-security-policy"]
        for name in ("console.js", "console.css", "wse.js"):
            assert (await web.get(f"{path}/{name}")).status_code == 200
    url = f"ws://127.0.0.1:{port}{path}/"
    async with WseClient(url, identity={"name": "grace", "key": KEY}) as client:
        assert (await client.call("overview"))["users"] == 0
        assert server.stats().connections == 0
    with pytest.raises(WseError) as raised:
        await WseClient(url, identity={"name": "grace", "key": "wrong"}).connect()
    assert raised.value.code == ErrorCode.NOT_AUTHORIZED
    with pytest.raises(WseError) as raised:
        await WseClient(url, identity={}, headers={"Origin": "https://evil.example"}).connect()
    assert raised.value.code == ErrorCode.WS_CLIENT_ERROR


@pytest.mark.parametrize("ws", ["wse.uvicorn:WebSocketProtocol", "wsproto"])
async def test_mounted_in_starlette_on_uvicorn(ws):
    server = make()
    app = Starlette(routes=[Mount("/ops", server.admin)])
    async with server, uvicorn_asgi(app, ws) as port:
        await check(server, port, "/ops")


async def test_as_a_handler_of_aiohttp():
    server = make()
    async with server, aiohttp_web(server.admin.aiohttp) as port:
        await check(server, port, "/ops")
