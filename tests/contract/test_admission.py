"""Who may open a WebSocket, and where from, on every transport that has HTTP requests."""

import pytest

from support.net import TEXT, TRANSPORTS, RawSocket, ServerLog, accept_all, frame, hi, make_server, soon, transports

pytestmark = pytest.mark.parametrize("run", transports(sorted(TRANSPORTS.keys() - {"memory"})), indirect=True)


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


ODD_COOKIES = [
    'prefs={"theme":"dark"}; session=abc',
    "iam/name=x; session=abc",
    "a@b=1; session=abc",
    "list[0]=x; session=abc",
    "path=/x; session=abc",
    "version=2; session=abc",
    "flag; session=abc",
    "a=1;; session=abc",
    "a=hello world; session=abc",
    'a="open; session=abc',
    "=nameless; session=abc",
    "session=abc; a",
]


async def test_one_odd_cookie_does_not_hide_the_others(run):
    seen = []

    def identify(auth):
        seen.append(auth.request.cookies.get("session"))
        auth.accept(auth.conn_id)

    place = await run(make_server(identify))
    for cookie in ODD_COOKIES:
        async with await RawSocket.open(place.url) as socket:
            assert (await socket.upgrade(Cookie=cookie))[0] == 101
            socket.send(frame(TEXT, hi()))
            assert (await socket.hear())[0] == "~wse:welcome"
    assert seen == ["abc"] * len(ODD_COOKIES)


async def test_headers_and_cookies_may_have_any_text(run, request):
    if request.node.callspec.params["run"] == "uvicorn-legacy":
        pytest.skip("uvicorn answers 500 to such a request with its deprecated implementation")
    place = await run(
        make_server(lambda auth: auth.accept("ann", [*auth.request.cookies.values(), auth.request.headers["X-A"]]))
    )
    async with await RawSocket.open(place.url) as socket:
        assert (await socket.upgrade(Cookie="a=café; session=abc", X_A="☕"))[0] == 101
        socket.send(frame(TEXT, hi()))
        assert await socket.hear() == ["~wse:welcome", ["café", "abc", "☕"], None]


async def test_a_host_with_a_user_is_refused(run):
    place = await run(make_server())
    async with await RawSocket.open(place.url) as socket:
        socket.writer.write(
            b"GET / HTTP/1.1\r\nHost: user:password@localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nOrigin: http://localhost\r\n\r\n"
        )
        status = (await soon(socket.reader.readline())).split(b" ")[1]
    assert status == b"400"
    await place.connect()
