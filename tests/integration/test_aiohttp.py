"""`server.aiohttp`, beyond the contract suite: what aiohttp does around the WebSocket."""

import asyncio
import logging
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from support.net import TEXT, Log, RawSocket, ServerLog, frame, hi, make_server, soon, text
from wse import Compression, WseClient
from wse.transports.picows.link import PicowsLink


@asynccontextmanager
async def serving(server, *middlewares, wait=None, access_log=None, **options):
    """aiohttp with the server at /ws; `wait` is awaited before it gets the request."""

    async def handle(request):
        if wait is not None:
            await wait(request)
        return await server.aiohttp(request)

    async def echo(request):
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            await socket.send_str(message.data.upper())
        return socket

    app = web.Application(middlewares=middlewares)
    app.router.add_get("/ws", handle)
    app.router.add_get("/echo", echo)
    runner = web.AppRunner(app, access_log=access_log, **options)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"ws://127.0.0.1:{runner.addresses[0][1]}", runner
    finally:
        await server.close()
        await runner.cleanup()


async def test_middleware_sees_the_whole_connection_and_the_access_log_its_end(caplog):
    caplog.set_level(logging.INFO, "aiohttp.access")
    server = make_server(port=None)
    seen = Log()

    @web.middleware
    async def watching(request, handler):
        seen.add("begins")
        response = await handler(request)
        seen.add("ends", response.status)
        return response

    async with serving(server, watching, access_log=logging.getLogger("aiohttp.access")) as (url, runner):
        async with WseClient(f"{url}/ws", identity="ann"):
            assert [type(session.link) for session in server._hub.sockets.open] == [PicowsLink]
            assert seen.names == ["begins"]
            assert len(runner.server.connections) == 1
        await seen.until("ends", 101)
        async with asyncio.timeout(30):
            while runner.server.connections:
                await asyncio.sleep(0.005)
    assert [record.levelno for record in caplog.records] == [logging.INFO]
    assert '"GET /ws HTTP/1.1" 101' in caplog.records[0].getMessage()


async def test_other_websockets_of_the_application_are_aiohttp_s():
    server = make_server(port=None)
    async with serving(server) as (url, _), await RawSocket.open(url) as socket, WseClient(f"{url}/ws"):
        assert (await socket.upgrade("/echo"))[0] == 101
        socket.send(frame(TEXT, "hello"))
        assert await socket.frame() == (TEXT, b"HELLO")


@pytest.mark.parametrize("at_once", [True, False])
async def test_bytes_that_come_before_the_answer_are_not_lost(at_once):
    server = make_server(port=None)
    server.register("echo", lambda conn, payload: payload)
    asked, answer = asyncio.Event(), asyncio.Event()

    async def wait(request):
        asked.set()
        await answer.wait()

    async with serving(server, wait=wait) as (url, _), await RawSocket.open(url) as socket:
        upgrading = asyncio.ensure_future(socket.upgrade("/ws"))
        if at_once:
            await asyncio.sleep(0)  # the request has been written, and goes out with this
        else:
            await soon(asked.wait())
        socket.send(frame(TEXT, hi()), text("echo", "x" * 100_000, "1"))
        await soon(asked.wait())
        answer.set()
        assert (await soon(upgrading))[0] == 101
        assert (await socket.hear())[0] == "~wse:welcome"
        assert await socket.hear() == ["~wse:response", "x" * 100_000, "1"]


@pytest.mark.parametrize("cancels", [True, False])
async def test_a_client_that_leaves_before_the_answer_is_forgotten(cancels, caplog):
    server = make_server(port=None)
    log = ServerLog(server)
    asked, left = asyncio.Event(), asyncio.Event()

    async def wait(request):
        asked.set()
        try:
            while not request.transport or not request.transport.is_closing():
                await asyncio.sleep(0.005)
                if request.transport is None:
                    break
        finally:
            left.set()

    async with serving(server, wait=wait, handler_cancellation=cancels) as (url, _):
        async with await RawSocket.open(url) as socket:
            upgrading = asyncio.ensure_future(socket.upgrade("/ws"))
            await soon(asked.wait())
        await asyncio.gather(upgrading, return_exceptions=True)
        await soon(left.wait())
    assert log.entries == []
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


async def test_with_cancellation_of_handlers_a_connection_ends_as_well():
    server = make_server(port=None)
    log = ServerLog(server)
    async with serving(server, handler_cancellation=True) as (url, runner):
        async with WseClient(f"{url}/ws", identity="ann"):
            pass
        await log.until("disconnected", "ann")
        async with asyncio.timeout(30):
            while runner.server.connections:
                await asyncio.sleep(0.005)


@pytest.mark.parametrize("headers", [{}, {"Upgrade": "websocket"}, {"Upgrade": "h2c", "Connection": "Upgrade"}])
async def test_what_asks_for_no_websocket_gets_400(headers):
    server = make_server(port=None)
    async with serving(server) as (url, _), await RawSocket.open(url) as socket:
        assert (await socket.request("/ws", **headers))[0] == 400
    async with serving(server) as (url, _), await RawSocket.open(url) as socket:
        key = {"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec_WebSocket_Version": "12"}
        assert (await socket.request("/ws", Upgrade="websocket", Connection="Upgrade", **key))[0] == 400


async def test_compression_is_agreed_on():
    server = make_server(port=None, compression=Compression())
    server.register("echo", lambda conn, payload: payload)
    async with serving(server) as (url, _):
        async with await RawSocket.open(url) as socket:
            _, headers, _ = await socket.upgrade("/ws", Sec_WebSocket_Extensions="permessage-deflate")
            assert headers["sec-websocket-extensions"].startswith("permessage-deflate")
        async with WseClient(f"{url}/ws", identity="ann", compression=Compression()) as client:
            assert await soon(client.call("echo", "x" * 50_000)) == "x" * 50_000


async def test_an_application_that_never_closes_the_server_closes_its_clients_with_1012():
    server = make_server(port=None)
    async with serving(server, shutdown_timeout=0.2) as (url, runner):
        client = WseClient(f"{url}/ws", identity="ann")
        log = Log()
        client.when.closed(log.adder("closed"))
        await soon(client.connect())
        await runner.cleanup()
        assert (await log.until("closed"))[1:] == (1012, "wse.by-server")
        await client.close()
