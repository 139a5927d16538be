"""`uvicorn --ws wse.uvicorn:WebSocketProtocol`, beyond the contract suite: what uvicorn does around the WebSocket."""

import asyncio
import importlib
import logging
import sys
from contextlib import asynccontextmanager

import aiofastnet
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, WebSocketRoute

from support.frameworks import uvicorn_asgi, uvicorn_process
from support.net import TEXT, Log, RawSocket, ServerLog, close_payload, frame, hi, make_server, soon, text
from wse import Compression, WseClient, WseServer
from wse.transports.picows.link import PicowsLink

OURS = "wse.uvicorn:WebSocketProtocol"
CLOSE = 8


def port_of(uvicorn_server):
    return uvicorn_server.servers[0].sockets[0].getsockname()[1]


@asynccontextmanager
async def serving(app, server, **options):
    async with uvicorn_asgi(app, OURS, **options) as port:
        yield f"ws://127.0.0.1:{port}"
    await server.close()


def links(server):
    return [type(session.link) for session in server._hub.sockets.open]


async def echo(scope, receive, send):
    """A WebSocket that is not WSE's."""
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept", "subprotocol": None})
    while (event := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": event["text"].upper()})


async def test_the_socket_is_taken_through_middleware_a_mount_and_a_route():
    server = make_server(port=None)
    log, seen = ServerLog(server), Log()

    class Watching:
        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            seen.add("begins", scope["path"])
            await self.app(scope, receive, send)
            seen.add("ends", scope["path"])

    routes = [Mount("/api", routes=[WebSocketRoute("/ws", server.asgi)])]
    app = Starlette(routes=routes, middleware=[Middleware(Watching)])
    async with serving(app, server) as url:
        async with WseClient(f"{url}/api/ws?x=1", identity="ann"):
            assert links(server) == [PicowsLink]
            conn = await log.conn("ann")
            assert (conn.request.path, conn.request.query) == ("/api/ws", {"x": "1"})
            assert conn.request.native["path"] == "/api/ws"
            assert conn.remote_addr == "127.0.0.1"
            assert seen.names == ["begins"]
        await seen.until("ends", "/api/ws")


async def test_other_websockets_of_the_application_go_over_uvicorn_s_own_implementation():
    server = make_server(port=None)

    async def app(scope, receive, send):
        await (echo if scope["path"] == "/echo" else server.asgi)(scope, receive, send)

    async with serving(app, server) as url, await RawSocket.open(url) as socket, WseClient(url, identity="ann"):
        assert (await socket.upgrade("/echo"))[0] == 101
        socket.send(frame(TEXT, "hello"))
        assert await socket.frame() == (TEXT, b"HELLO")
        assert links(server) == [PicowsLink]
        socket.send(frame(CLOSE, close_payload(1000)))
        assert await socket.closed() == (1000, "")


@pytest.mark.parametrize("size", [10, 100_000])
@pytest.mark.parametrize("ours", [True, False], ids=["server.asgi", "another"])
async def test_bytes_that_come_before_the_answer_are_not_lost(ours, size):
    server = make_server(port=None)
    server.register("echo", lambda conn, payload: payload)
    asked, answer = asyncio.Event(), asyncio.Event()

    async def app(scope, receive, send):
        asked.set()
        await answer.wait()
        await (server.asgi if ours else echo)(scope, receive, send)

    async with serving(app, server) as url, await RawSocket.open(url) as socket:
        upgrading = asyncio.ensure_future(socket.upgrade())
        await soon(asked.wait())
        if ours:
            socket.send(frame(TEXT, hi()), text("echo", "x" * size, "1"))
        else:
            socket.send(frame(TEXT, "x" * size))
        # What has been read is bounded, so not all of it need have come.
        await soon(socket.writer.drain())
        answer.set()
        assert (await soon(upgrading))[0] == 101
        if ours:
            assert (await socket.hear())[0] == "~wse:welcome"
            assert await socket.hear() == ["~wse:response", "x" * size, "1"]
        else:
            assert await socket.frame() == (TEXT, b"X" * size)


async def test_a_client_that_leaves_before_the_answer_is_forgotten(caplog):
    server = make_server(port=None)
    log = ServerLog(server)
    asked, answer, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def app(scope, receive, send):
        asked.set()
        await answer.wait()
        try:
            await server.asgi(scope, receive, send)
        finally:
            done.set()

    async with uvicorn_process(app, ws=OURS, lifespan="off") as uvicorn_server:
        async with await RawSocket.open(f"ws://127.0.0.1:{port_of(uvicorn_server)}") as socket:
            upgrading = asyncio.ensure_future(socket.upgrade())
            await soon(asked.wait())
        await asyncio.gather(upgrading, return_exceptions=True)
        async with asyncio.timeout(30):
            while uvicorn_server.server_state.connections:
                await asyncio.sleep(0.005)
        answer.set()
        await soon(done.wait())
    await server.close()
    assert log.entries == []
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


async def test_for_middleware_that_asks_afterwards_the_client_is_gone(caplog):
    server = make_server(port=None)
    seen = Log()

    async def app(scope, receive, send):
        await server.asgi(scope, receive, send)
        seen.add("received", await receive())
        try:
            await send({"type": "websocket.close"})
        except OSError as exc:
            seen.add("sent", type(exc).__name__)
            raise

    async with serving(app, server) as url:
        async with WseClient(url, identity="ann"):
            pass
        assert (await seen.until("received"))[1]["type"] == "websocket.disconnect"
        await seen.until("sent", "ClientDisconnected")
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


async def test_uvicorn_counts_the_connection():
    server = make_server(port=None)

    async def hello(request):
        return PlainTextResponse("hello")

    app = Starlette(routes=[Route("/", hello), WebSocketRoute("/ws", server.asgi)])
    async with serving(app, server, limit_concurrency=2) as url:

        async def status():
            async with await RawSocket.open(url) as socket:
                return (await socket.request())[0]

        assert await status() == 200
        async with WseClient(f"{url}/ws", identity="ann"):
            assert await status() == 503
        async with asyncio.timeout(30):
            while await status() != 200:
                await asyncio.sleep(0.005)


async def test_the_access_log_and_the_headers_of_uvicorn_hold(caplog):
    caplog.set_level(logging.INFO, "uvicorn.error")
    server = make_server(port=None)
    options = {"ws": OURS, "lifespan": "off", "headers": [("X-Served-By", "pod-3")], "root_path": "/api"}
    async with (
        uvicorn_process(server.asgi, **options) as uvicorn_server,
        await RawSocket.open(f"ws://127.0.0.1:{port_of(uvicorn_server)}") as socket,
    ):
        status, headers, _ = await socket.upgrade("/ws?x=1")
        assert status == 101
        assert (headers["server"], headers["x-served-by"]) == ("uvicorn", "pod-3")
        assert "date" in headers
    (line,) = [record.getMessage() for record in caplog.records if "WebSocket" in record.getMessage()]
    assert line.startswith("127.0.0.1:")
    assert line.endswith(' - "WebSocket /api/ws?x=1" [accepted]')


@pytest.mark.parametrize("version", ["12", None], ids=["unknown", "missing"])
async def test_a_handshake_that_is_not_in_order_is_answered_by_uvicorn(version):
    server = make_server(port=None)
    async with serving(server.asgi, server) as url, await RawSocket.open(url) as socket:
        headers = {} if version is None else {"Sec_WebSocket_Version": version}
        status, _, _ = await socket.request(
            "/", Connection="Upgrade", Upgrade="websocket", Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25jZQ==", **headers
        )
        assert 400 <= status < 500
        assert not server._hub.sockets.open


async def test_refusals_keep_their_status():
    server = make_server(port=None, path="/ws")
    async with serving(server.asgi, server) as url:
        for target, origin, expected in (
            ("/other", None, 404),
            ("/ws", "https://evil.example", 403),
            ("/ws", None, 101),
        ):
            async with await RawSocket.open(url) as socket:
                headers = {} if origin is None else {"Origin": origin}
                assert (await socket.upgrade(target, **headers))[0] == expected


async def test_compression_is_agreed_on():
    server = make_server(port=None, compression=Compression())
    server.register("echo", lambda conn, payload: payload)
    async with serving(server.asgi, server) as url:
        async with await RawSocket.open(url) as socket:
            _, headers, _ = await socket.upgrade(Sec_WebSocket_Extensions="permessage-deflate")
            assert headers["sec-websocket-extensions"].startswith("permessage-deflate")
        async with WseClient(url, identity="ann", compression=Compression()) as client:
            assert await soon(client.call("echo", "x" * 50_000)) == "x" * 50_000


# The end of uvicorn.


async def test_when_uvicorn_ends_calls_are_answered_and_clients_are_closed_with_1012():
    server = make_server(port=None)
    begun, go_on = asyncio.Event(), asyncio.Event()

    @server.register("slow")
    async def slow(conn, payload):
        begun.set()
        await go_on.wait()
        return "done"

    async with uvicorn_process(server.asgi, ws=OURS) as uvicorn_server:
        client = WseClient(f"ws://127.0.0.1:{port_of(uvicorn_server)}", identity="ann")
        log = Log()
        client.when.closed(log.adder("closed"))
        await soon(client.connect())
        calling = asyncio.ensure_future(client.call("slow"))
        await soon(begun.wait())
        uvicorn_server.should_exit = True
        async with asyncio.timeout(30):
            while server.ready:
                await asyncio.sleep(0.005)
        go_on.set()
        assert await soon(calling) == "done"
        assert (await log.until("closed"))[1:] == (1012, "wse.by-server")
    assert not uvicorn_server.server_state.connections
    assert not uvicorn_server.server_state.tasks
    await client.close()


async def test_after_its_own_time_limit_uvicorn_cancels_and_clients_are_closed_with_1012():
    server = make_server(port=None)

    async def app(scope, receive, send):
        take = scope["extensions"]["wse.socket"]["take"]
        scope["extensions"]["wse.socket"] = {"take": lambda stop: take(lambda: None)}  # it hears of no end
        await server.asgi(scope, receive, send)

    async with uvicorn_process(app, ws=OURS, lifespan="off", timeout_graceful_shutdown=1) as uvicorn_server:
        client = WseClient(f"ws://127.0.0.1:{port_of(uvicorn_server)}", identity="ann")
        log = Log()
        client.when.closed(log.adder("closed"))
        await soon(client.connect())
        uvicorn_server.should_exit = True
        assert (await log.until("closed"))[1:] == (1012, "wse.by-server")
    await server.close()
    await client.close()


# Other transports.


async def exchange_over(scheme, server, client_options, **options):
    """Serve, call with small and large messages, and hear a broadcast; returns the types of the links."""
    server.register("echo", lambda conn, payload: payload)
    async with uvicorn_asgi(server.asgi, OURS, **options) as port:
        heard = asyncio.Queue()
        client = WseClient(f"{scheme}://127.0.0.1:{port}", identity="ann", **client_options)
        client.channel.on("news", heard.put_nowait)
        async with client:
            for size in (1, 1000, 900_000):
                assert await soon(client.call("echo", "x" * size)) == "x" * size
            assert await asyncio.gather(*(client.call("echo", n) for n in range(100))) == list(range(100))
            server.broadcast("news", "y" * 300_000)
            assert await soon(heard.get()) == "y" * 300_000
            found = [session.link for session in server._hub.sockets.open]
    await server.close()
    return [(type(link), isinstance(link._underlying, aiofastnet.Transport)) for link in found]


def run_on(loop, scenario):
    factory = pytest.importorskip("uvloop").new_event_loop if loop == "uvloop" else None
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(scenario())


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_messages_travel_over_plain_sockets(loop):
    # The transport is the one of the built-in listener.
    assert run_on(loop, lambda: exchange_over("ws", make_server(port=None), {})) == [(PicowsLink, True)]


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_messages_travel_over_tls(loop, certificates, client_ssl):
    _, certificate, key = certificates
    options = {"ssl_certfile": certificate, "ssl_keyfile": key}
    server = make_server(port=None)
    assert run_on(loop, lambda: exchange_over("wss", server, {"ssl": client_ssl}, **options)) == [(PicowsLink, False)]


async def test_when_no_more_files_can_be_opened_the_transport_of_uvicorn_stays(monkeypatch):
    def dup(self):
        raise OSError("too many open files")

    monkeypatch.setattr(asyncio.trsock.TransportSocket, "dup", dup)
    assert await exchange_over("ws", make_server(port=None), {}) == [(PicowsLink, False)]


# What has to be installed.


def load_again(monkeypatch, *missing):
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "wse.uvicorn", raising=False)
    return importlib.import_module("wse.uvicorn")


async def test_without_websockets_uvicorn_s_implementation_on_wsproto_serves(monkeypatch):
    module = load_again(monkeypatch, "uvicorn.protocols.websockets.websockets_sansio_impl")
    server = make_server(port=None)

    async def app(scope, receive, send):
        await (echo if scope["path"] == "/echo" else server.asgi)(scope, receive, send)

    async with uvicorn_asgi(app, module.WebSocketProtocol) as port:
        url = f"ws://127.0.0.1:{port}"
        async with await RawSocket.open(url) as socket, WseClient(url, identity="ann"):
            assert links(server) == [PicowsLink]
            assert (await socket.upgrade("/echo"))[0] == 101
            socket.send(frame(TEXT, "hello"))
            assert await socket.frame() == (TEXT, b"HELLO")
    await server.close()


def test_without_uvicorn_the_error_says_what_to_install(monkeypatch):
    with pytest.raises(ImportError, match=r'pip install "wse\[uvicorn\]"'):
        load_again(monkeypatch, "uvicorn.protocols.utils")


def test_the_package_itself_does_not_need_uvicorn(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert WseServer(port=None).asgi is not None
