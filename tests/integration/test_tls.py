"""`wss:` at both sides."""

import asyncio
import logging
import ssl
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from websockets.asyncio.client import connect as ws_connect
from websockets.asyncio.server import serve as ws_serve

from support.frameworks import uvicorn_asgi
from support.net import JSON, RawSocket, make_server, soon
from wse import ClientStatus, ErrorCode, WseClient, WseError, WseServer


async def test_messages_and_calls_travel_over_tls(listen, server_ssl, client_ssl):
    server = make_server(ssl=server_ssl)
    server.register("echo", lambda conn, payload: payload)
    place = await listen(server)
    assert place.url.startswith("wss://127.0.0.1:")
    async with WseClient(place.url, identity="ann", ssl=client_ssl) as client:
        for size in (1, 1000, 100_000, 900_000):
            assert await soon(client.call("echo", "x" * size)) == "x" * size


async def test_a_client_that_does_not_trust_the_server_fails_with_ws_error(listen, server_ssl):
    place = await listen(make_server(ssl=server_ssl))
    client = WseClient(place.url)
    with pytest.raises(WseError) as caught:
        await soon(client.connect())
    assert caught.value.code == ErrorCode.WS_CLIENT_ERROR
    assert isinstance(caught.value.__cause__, ssl.SSLError)


async def test_another_library_s_client_reaches_us_over_tls(listen, server_ssl, client_ssl):
    place = await listen(make_server(ssl=server_ssl))
    async with ws_connect(place.url, ssl=client_ssl, subprotocols=[JSON], proxy=None) as socket:
        await socket.send('["~wse:hi",{"identity":"ann"}]')
        assert await soon(socket.recv()) == '["~wse:welcome",{"hello":"ann"},null]'


async def test_we_reach_another_library_s_server_over_tls(server_ssl, client_ssl):
    async def handle(socket):
        await socket.recv()
        await socket.send('["~wse:welcome",1,null]')
        await socket.wait_closed()

    async with ws_serve(handle, "127.0.0.1", 0, ssl=server_ssl, subprotocols=[JSON]) as other:
        port = other.sockets[0].getsockname()[1]
        client = WseClient(f"wss://localhost:{port}", ssl=client_ssl)
        assert await soon(client.connect()) == 1
        await soon(client.close())


async def test_speaking_plain_to_a_tls_server_fails_with_ws_error(listen, server_ssl):
    place = await listen(make_server(ssl=server_ssl))
    client = WseClient(place.url.replace("wss:", "ws:"))
    with pytest.raises(WseError) as caught:
        await soon(client.connect())
    assert caught.value.code == ErrorCode.WS_CLIENT_ERROR


async def test_speaking_tls_to_a_plain_server_fails_at_once(listen, client_ssl):
    place = await listen(make_server(auth_timeout=0))
    client = WseClient(place.url.replace("ws:", "wss:"), ssl=client_ssl, timeout=0)  # no deadline at either side
    with pytest.raises(WseError) as caught:
        await soon(client.connect())
    assert caught.value.code == ErrorCode.WS_CLIENT_ERROR


@pytest.mark.parametrize("data", [b"", b"\x16\x03\x01\x02\x00\x01"])
async def test_a_peer_that_hangs_up_in_the_handshake_leaves_one_line_at_debug(listen, server_ssl, caplog, data):
    faults = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context))
    place = await listen(make_server(ssl=server_ssl))
    logged = asyncio.Event()
    caplog.set_level(logging.DEBUG, "wse.picows")
    caplog.handler.addFilter(lambda record: logged.set() or True)
    async with await RawSocket.open(place.url) as socket:
        socket.writer.write(data)
        socket.writer.write_eof()
        await soon(logged.wait())
        await socket.eof()
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["a TLS handshake failed"]
    assert caplog.records[0].levelno == logging.DEBUG
    assert faults == []


async def test_a_server_that_hangs_up_in_the_handshake_leaves_one_line_at_debug(client_ssl, caplog):
    faults = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: faults.append(context))
    caplog.set_level(logging.DEBUG, "wse.picows")

    async def hang_up(reader, writer):
        await reader.read(100)  # a reset would be another fault
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        client = WseClient(f"wss://127.0.0.1:{server.sockets[0].getsockname()[1]}", ssl=client_ssl)
        with pytest.raises(WseError) as caught:
            await soon(client.connect())
    assert caught.value.code == ErrorCode.WS_CLIENT_ERROR
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["a TLS handshake failed"]
    assert faults == []


async def test_close_does_not_wait_for_a_handshake(listen, server_ssl):
    server = make_server(ssl=server_ssl, auth_timeout=0)
    await server.start()
    async with await RawSocket.open(server.url):
        await soon(server.close())


# Certificates of clients.


@pytest.fixture(scope="session")
def mutual(authority, server_ssl):
    """What contexts a server and a client have of which the one asks for a certificate, and the other has one."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(server)
    authority.configure_trust(server)
    server.verify_mode = ssl.CERT_OPTIONAL
    client = ssl.create_default_context()
    authority.configure_trust(client)
    authority.issue_cert(common_name="ada", organization_name="Analytical").configure_cert(client)
    return server, client


def by_certificate(auth):
    """An identify handler: the common name of the certificate is the user."""
    certificate = auth.request.certificate
    if certificate is None:
        auth.refuse()
    else:
        auth.accept(dict(pair for part in certificate["subject"] for pair in part)["commonName"])


@asynccontextmanager
async def on_listener(context):
    async with WseServer(by_certificate, port=0, ssl=context) as server:
        yield server.port


def on_uvicorn(ws):
    def run(context):
        options = {"ssl_context_factory": lambda config, default: context}
        return uvicorn_asgi(WseServer(by_certificate).asgi, ws, **options)

    return run


@asynccontextmanager
async def on_aiohttp(context):
    app = web.Application()
    app.router.add_get("/", WseServer(by_certificate).aiohttp)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    yield runner.addresses[0][1]
    await runner.cleanup()


@pytest.mark.parametrize(
    "run",
    [on_listener, on_uvicorn("wse.uvicorn:WebSocketProtocol"), on_uvicorn("websockets-sansio"), on_aiohttp],
    ids=["listener", "wse.uvicorn", "uvicorn", "aiohttp"],
)
async def test_the_identify_handler_sees_the_certificate_of_the_client(run, mutual, client_ssl):
    server_context, with_certificate = mutual
    async with run(server_context) as port:
        url = f"wss://127.0.0.1:{port}/"
        async with WseClient(url, ssl=with_certificate) as client:
            assert client.status == ClientStatus.READY
        with pytest.raises(WseError) as caught:
            await soon(WseClient(url, ssl=client_ssl).connect())
        assert caught.value.code == ErrorCode.NOT_AUTHORIZED
