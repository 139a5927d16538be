"""`WseClient(proxy=...)`, through small real proxies."""

import asyncio

import pytest

from support.net import make_server, soon
from support.tunnels import Tunnels, connect_handshake, socks5_handshake
from wse import ErrorCode, WseClient, WseError

HANDSHAKES = {"http": connect_handshake, "https": connect_handshake, "socks5": socks5_handshake}
LOGIN = ("ann", "p@ss:word/")


@pytest.fixture(params=HANDSHAKES)
def scheme(request):
    return request.param


def tunnels(scheme, server_ssl, login=None):
    return Tunnels.running(HANDSHAKES[scheme], login=login, ssl=server_ssl if scheme == "https" else None)


async def exchange(client):
    for size in (1, 1000, 900_000):
        assert await soon(client.call("echo", "x" * size)) == "x" * size
    assert await asyncio.gather(*(client.call("echo", n) for n in range(50))) == list(range(50))


@pytest.mark.parametrize("secure", [False, True], ids=["ws", "wss"])
async def test_messages_travel_through_a_proxy(scheme, secure, listen, server_ssl, client_ssl):
    server = make_server(ssl=server_ssl if secure else None)
    server.register("echo", lambda conn, payload: payload)
    await listen(server)
    async with tunnels(scheme, server_ssl) as proxy:
        url = f"{'wss' if secure else 'ws'}://localhost:{server.port}/"
        async with WseClient(url, proxy=f"{scheme}://127.0.0.1:{proxy.port}", ssl=client_ssl) as client:
            await exchange(client)
        assert proxy.asked == [("localhost", server.port)]


async def test_a_proxy_gets_the_user_and_the_password_of_its_url(scheme, listen, server_ssl, client_ssl):
    server = make_server()
    server.register("echo", lambda conn, payload: payload)
    place = await listen(server)
    async with tunnels(scheme, server_ssl, LOGIN) as proxy:
        with_login = f"{scheme}://ann:p%40ss%3Aword%2F@127.0.0.1:{proxy.port}"
        async with WseClient(place.url, proxy=with_login, ssl=client_ssl) as client:
            await exchange(client)
        for wrong in (f"{scheme}://127.0.0.1:{proxy.port}", f"{scheme}://ann:secret@127.0.0.1:{proxy.port}"):
            with pytest.raises(WseError) as caught:
                await soon(WseClient(place.url, proxy=wrong, ssl=client_ssl).connect())
            assert caught.value.code == ErrorCode.WS_CLIENT_ERROR
            assert "secret" not in f"{caught.value} {caught.value.details}"


async def test_a_proxy_that_is_not_there_or_never_answers_is_an_error(scheme, unused_port, server_ssl, client_ssl):
    client = WseClient("ws://localhost:1", proxy=f"{scheme}://127.0.0.1:{unused_port}", ssl=client_ssl)
    with pytest.raises(WseError) as caught:
        await soon(client.connect())
    assert caught.value.code == ErrorCode.WS_CLIENT_ERROR

    async def never(reader, writer, login):
        await asyncio.Event().wait()

    async with Tunnels.running(never, ssl=server_ssl if scheme == "https" else None) as proxy:
        url = f"{scheme}://127.0.0.1:{proxy.port}"
        with pytest.raises(WseError) as caught:
            await soon(WseClient("ws://localhost:1", proxy=url, ssl=client_ssl, timeout=0.2).connect())
        assert caught.value.code == ErrorCode.WS_CLIENT_ERROR


async def test_a_server_that_the_client_does_not_trust_is_refused_behind_a_proxy(listen, server_ssl):
    place = await listen(make_server(ssl=server_ssl))
    async with Tunnels.running(connect_handshake) as proxy:
        with pytest.raises(WseError) as caught:
            await soon(WseClient(place.url, proxy=f"http://127.0.0.1:{proxy.port}").connect())
        assert caught.value.code == ErrorCode.WS_CLIENT_ERROR


@pytest.mark.parametrize(
    "url", ["", "proxy:3128", "ftp://proxy:21", "http://proxy", "http://:80", "socks5://u:pw@proxy:x", "http://a b:80"]
)
def test_what_is_not_the_url_of_a_proxy_is_refused_without_showing_it(url):
    with pytest.raises(ValueError, match="the URL of a proxy") as caught:
        WseClient("ws://localhost", proxy=url)
    assert "pw" not in str(caught.value)
