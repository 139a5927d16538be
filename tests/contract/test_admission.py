"""Who may open a WebSocket, and where from, on every transport that has HTTP requests."""

import pytest

from support.net import TEXT, TRANSPORTS, RawSocket, ServerLog, accept_all, frame, hi, make_server

pytestmark = pytest.mark.parametrize("run", sorted(TRANSPORTS.keys() - {"memory"}), indirect=True)


async def upgrade(place, **headers):
    """The status and headers of the answer to a request of `localhost`."""
    async with await RawSocket.open(place.url) as socket:
        status, answered, _ = await socket.upgrade(**headers)
        return status, answered


@pytest.mark.parametrize("origin", ["http://localhost", "https://LOCALHOST", "https://app.example"])
async def test_pages_of_the_server_s_host_and_listed_ones_may_connect(run, origin):
    place = await run(make_server(origins=["https://app.example"]))
    async with await RawSocket.open(place.url) as socket:
        assert (await socket.upgrade(Origin=origin))[0] == 101
        socket.send(frame(TEXT, hi()))
        assert (await socket.hear())[0] == "~wse:welcome"


async def test_programs_may_connect_whatever_pages_may(run):
    place = await run(make_server(origins=[]))
    await place.connect()


@pytest.mark.parametrize("origin", ["https://evil.example", "http://localhost:1", "null"])
async def test_other_pages_get_403_and_nobody_hears_of_them(run, origin):
    asked = []
    server = make_server(lambda auth: (asked.append(auth), accept_all(auth)))
    log = ServerLog(server)
    place = await run(server)
    status, _ = await upgrade(place, Origin=origin)
    assert status == 403
    assert server._acceptor.admission.refused_origins == 1
    await place.connect()  # so the server has gone on, and had time to complain
    assert log.all("error") == []
    assert len(asked) == 1


async def test_while_the_server_is_not_ready_connections_get_503_and_when_to_come_back(run):
    server = make_server()
    place = await run(server)
    await place.connect()
    assert server.ready
    server._acceptor.admission.unready.add("a reason")
    assert not server.ready
    status, headers = await upgrade(place)
    assert (status, headers["retry-after"]) == (503, "1")
    server._acceptor.admission.unready.clear()
    await place.connect("ben")


FORWARDED = {"X_Forwarded_For": "198.51.100.1, 203.0.113.9, 127.0.0.2"}


@pytest.mark.parametrize(
    ("proxies", "headers", "address"),
    [
        ((), FORWARDED, "127.0.0.1"),
        (("10.0.0.0/8",), FORWARDED, "127.0.0.1"),
        (("127.0.0.0/8",), FORWARDED, "203.0.113.9"),
        (("127.0.0.0/8",), {"Forwarded": 'for=198.51.100.1, for="203.0.113.9:80"'}, "203.0.113.9"),
        (("127.0.0.0/8",), {}, "127.0.0.1"),
    ],
)
async def test_forwarding_headers_count_from_trusted_proxies_only(run, proxies, headers, address):
    addresses = []

    def identify(auth):
        addresses.append(auth.request.remote_addr)
        auth.accept("ann")

    server = make_server(identify, trusted_proxies=proxies)
    log = ServerLog(server)
    place = await run(server)
    async with await RawSocket.open(place.url) as socket:
        assert (await socket.upgrade(**headers))[0] == 101
        socket.send(frame(TEXT, hi()))
        assert (await log.conn("ann")).remote_addr == address
    assert addresses == [address]
