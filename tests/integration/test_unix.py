"""Unix sockets, and sockets that are bound already, at both sides."""

import asyncio
import socket
import stat
import tempfile
from pathlib import Path

import pytest
from aiohttp import web

from support.frameworks import uvicorn_asgi
from support.net import ServerLog, accept_all, make_server, soon
from wse import ErrorCode, WseClient, WseError, WseServer
from wse.transports.picows.link import PicowsLink

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="Python has no Unix sockets on this system")


@pytest.fixture
def folder():
    """A folder whose path is short: that of a Unix socket has at most some hundred bytes."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture
def place(folder):
    return folder / "chat.sock"


async def exchange(client):
    """Small and large messages in both directions, and many at a time."""
    for size in (1, 1000, 900_000):
        assert await soon(client.call("echo", "x" * size)) == "x" * size
    assert await asyncio.gather(*(client.call("echo", n) for n in range(100))) == list(range(100))


def echo_server(**options):
    server = WseServer(accept_all, **options)
    server.register("echo", lambda conn, payload: payload)
    return server


async def test_messages_travel_over_a_unix_socket_which_is_removed_at_the_end(place):
    async with echo_server(unix=place) as server:
        assert server.url == f"ws+unix://{place}:/"
        assert server.port is None
        log = ServerLog(server)
        async with WseClient(server.url, identity="ann") as client:
            await exchange(client)
            conn = await log.conn("ann")
            assert conn.remote_addr == ""
            assert conn.request.headers["Host"] == "localhost"
    assert not place.exists()


@pytest.mark.parametrize("form", ["ws+unix://{}:/chat/ws?room=1", "ws+unix:{}:/chat/ws?room=1"])
async def test_a_colon_separates_the_path_of_the_request_from_that_of_the_socket(place, form):
    async with echo_server(unix=place, path="/chat/ws") as server:
        assert server.url == f"ws+unix://{place}:/chat/ws"
        log = ServerLog(server)
        async with WseClient(form.format(place), identity="ann"):
            assert (await log.conn("ann")).request.query == {"room": "1"}
        refused = WseClient(f"ws+unix://{place}", identity="ann")
        with pytest.raises(WseError) as caught:
            await soon(refused.connect())
        assert caught.value.details["status"] == 404


async def test_a_path_with_spaces_and_colons_is_escaped_in_the_url(folder):
    async with echo_server(unix=folder / "a chat: ü.sock") as server, WseClient(server.url) as client:
        await exchange(client)


async def test_messages_travel_over_tls_on_a_unix_socket(place, server_ssl, client_ssl):
    async with echo_server(unix=place, ssl=server_ssl) as server:
        assert server.url.startswith("wss+unix:///")
        async with WseClient(server.url, identity="ann", ssl=client_ssl) as client:
            await exchange(client)


@pytest.mark.parametrize("mode", [0o600, 0o666])
async def test_the_permissions_of_the_socket_can_be_set(place, mode):
    async with echo_server(unix=place, unix_mode=mode):
        assert stat.S_IMODE(place.stat().st_mode) == mode


async def test_a_socket_that_an_ended_server_has_left_is_replaced(place):
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(place))
    async with echo_server(unix=place) as server, WseClient(server.url) as client:
        await exchange(client)


async def test_the_socket_of_a_server_that_listens_is_not_replaced(place):
    async with echo_server(unix=place) as server:
        with pytest.raises(OSError, match=str(place)):
            await echo_server(unix=place).start()
        async with WseClient(server.url) as client:
            await exchange(client)


async def test_another_file_is_not_replaced(place):
    place.write_text("precious")
    with pytest.raises(OSError, match=str(place)):
        await echo_server(unix=place).start()
    assert place.read_text() == "precious"


async def test_a_server_starts_again_at_the_same_path(place):
    server = echo_server(unix=place)
    for _ in range(2):
        async with server, WseClient(server.url) as client:
            await exchange(client)


async def test_nobody_at_the_path_is_an_error_of_the_client(place):
    with pytest.raises(WseError) as caught:
        await soon(WseClient(f"ws+unix://{place}:/").connect())
    assert caught.value.code == ErrorCode.WS_CLIENT_ERROR
    assert isinstance(caught.value.__cause__, FileNotFoundError)


@pytest.mark.parametrize("family", ["AF_INET", "AF_UNIX"])
async def test_a_server_listens_on_a_socket_that_is_bound_already_and_again_after_its_end(family, place):
    with socket.socket(getattr(socket, family)) as bound:
        bound.bind(("127.0.0.1", 0) if family == "AF_INET" else str(place))
        server = echo_server(sock=bound)
        assert not server.ready
        for _ in range(2):
            async with server, WseClient(server.url) as client:
                await exchange(client)


async def test_the_command_s_port_replaces_the_unix_socket(place):
    server = echo_server(unix=place)
    server.configure(port=0)
    async with server, WseClient(server.url) as client:
        await exchange(client)
        assert not place.exists()


def test_a_server_listens_at_one_place():
    with pytest.raises(ValueError, match="one place"):
        WseServer(port=0, unix="/run/chat.sock")


@pytest.mark.parametrize("ws", ["wse.uvicorn:WebSocketProtocol", "websockets-sansio"])
async def test_uvicorn_serves_on_a_unix_socket(place, ws):
    server = echo_server()
    async with uvicorn_asgi(server.asgi, ws, uds=str(place)), WseClient(f"ws+unix://{place}:/ws") as client:
        await exchange(client)
        (session,) = server._hub.sockets.open
        assert isinstance(session.link, PicowsLink) == ws.startswith("wse")
    await server.close()


async def test_aiohttp_serves_on_a_unix_socket(place):
    server = make_server(port=None)
    server.register("echo", lambda conn, payload: payload)
    app = web.Application()
    app.router.add_get("/ws", server.aiohttp)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.UnixSite(runner, str(place)).start()
    async with WseClient(f"ws+unix://{place}:/ws") as client:
        await exchange(client)
    await server.close()
    await runner.cleanup()


@pytest.mark.parametrize("side", ["server", "client"])
async def test_where_python_has_no_unix_sockets_the_error_says_so(side, place, monkeypatch):
    monkeypatch.delattr(socket, "AF_UNIX")
    if side == "server":
        with pytest.raises(OSError, match="no Unix sockets"):
            await echo_server(unix=place).start()
    else:
        with pytest.raises(WseError, match="no Unix sockets") as caught:
            await soon(WseClient(f"ws+unix://{place}:/").connect())
        assert caught.value.code == ErrorCode.WS_CLIENT_ERROR
