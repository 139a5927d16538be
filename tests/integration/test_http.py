"""The HTTP side of our own listener: paths, health, upgrades."""

import pytest

from support.net import TEXT, RawSocket, ServerLog, frame, hi, make_server, soon
from wse import WseClient


async def test_healthz_answers_200(listen):
    place = await listen(make_server())
    async with await RawSocket.open(place.url) as socket:
        status, _, body = await socket.request("/healthz")
        assert (status, body) == (200, b"ok\n")
        await socket.eof()


async def test_healthz_answers_whatever_the_path_is_that_opens_websockets(listen):
    place = await listen(make_server(path="/ws"))
    async with await RawSocket.open(place.url) as socket:
        status, _, body = await socket.request("/healthz")
        assert (status, body) == (200, b"ok\n")


async def test_readyz_tells_whether_new_connections_are_taken(listen):
    server = make_server(path="/ws")
    place = await listen(server)
    for reasons, expected in (((), (200, b"ready\n")), (("a reason",), (503, b"503 Service Unavailable\n"))):
        server._acceptor.admission.unready.update(reasons)
        async with await RawSocket.open(place.url) as socket:
            status, _, body = await socket.request("/readyz")
            assert (status, body) == expected


async def test_healthz_answers_when_the_server_is_not_ready(listen):
    server = make_server()
    place = await listen(server)
    server._acceptor.admission.unready.add("a reason")
    async with await RawSocket.open(place.url) as socket:
        assert (await socket.request("/healthz"))[0] == 200


async def test_pages_and_files_need_no_origin(listen, tmp_path):
    (tmp_path / "page.html").write_text("page")
    place = await listen(make_server(files={"/": tmp_path / "page.html"}))
    async with await RawSocket.open(place.url) as socket:
        status, _, body = await socket.request("/", Origin="https://evil.example")
        assert (status, body) == (200, b"page")


async def test_a_plain_get_is_told_to_upgrade(listen):
    place = await listen(make_server())
    async with await RawSocket.open(place.url) as socket:
        status, headers, _ = await socket.request("/")
        assert status == 426
        assert headers["upgrade"] == "websocket"
        await socket.eof()


@pytest.mark.parametrize("target", ["/", "/other", "/ws/", "/ws/deeper", "/WS"])
async def test_another_path_is_not_found_with_and_without_upgrade(listen, target):
    place = await listen(make_server(path="/ws"))
    for upgrade in (True, False):
        async with await RawSocket.open(place.url) as socket:
            status, _, _ = await (socket.upgrade(target) if upgrade else socket.request(target))
            assert status == 404
            await socket.eof()


async def test_the_path_itself_opens_a_websocket_with_and_without_a_query(listen):
    place = await listen(make_server(path="/ws"))
    assert place.url.endswith("/ws")
    for target in ("/ws", "/ws?token=1"):
        async with await RawSocket.open(place.url) as socket:
            status, headers, _ = await socket.upgrade(target)
            assert status == 101
            assert headers["sec-websocket-protocol"] == "wse-default-json"


async def test_without_a_path_every_path_opens_a_websocket(listen):
    place = await listen(make_server())
    for target in ("/", "/any/where", "/healthz"):
        async with await RawSocket.open(place.url) as socket:
            status, _, _ = await socket.upgrade(target)
            assert status == 101


@pytest.mark.parametrize("connection", ["keep-alive, Upgrade", "Upgrade", "upgrade", "Keep-Alive,UPGRADE"])
async def test_the_connection_header_may_hold_more_than_upgrade_as_firefox_sends_it(listen, connection):
    place = await listen(make_server())
    async with await RawSocket.open(place.url) as socket:
        status, _, _ = await socket.upgrade(connection=connection)
        assert status == 101
        socket.send(frame(TEXT, hi()))
        assert (await socket.hear())[0] == "~wse:welcome"


async def test_a_connection_header_without_upgrade_opens_nothing(listen):
    place = await listen(make_server())
    async with await RawSocket.open(place.url) as socket:
        status, _, _ = await socket.upgrade(connection="keep-alive")
        assert status == 400


async def test_subprotocols_may_come_in_several_headers(listen):
    place = await listen(make_server())
    async with await RawSocket.open(place.url) as socket:
        socket.writer.write(
            b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            b"Sec-WebSocket-Protocol: unknown, ,other\r\nSec-WebSocket-Protocol: wse-default-json\r\n\r\n"
        )
        head = (await soon(socket.reader.readuntil(b"\r\n\r\n"))).decode().lower()
        assert " 101 " in head
        assert "sec-websocket-protocol: wse-default-json\r\n" in head
        assert "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n" in head


@pytest.mark.parametrize(
    "data", [b"nonsense\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"\r\n\r\n"]
)
async def test_what_is_no_http_is_turned_away_and_the_server_goes_on(listen, data):
    server = make_server()
    place = await listen(server)
    async with await RawSocket.open(place.url) as socket:
        socket.writer.write(data)
        answer = await soon(socket.reader.read())
        assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")
    await place.connect()


@pytest.mark.parametrize(
    "data", [b"GET /healthz HTTP/1.0\n\n", b"GET / HTTP/1.1\r\nHost: x\n", b"\x16\x03\x01\x02\x00\x01"]
)
async def test_what_cannot_become_a_request_is_answered_at_once(listen, data):
    place = await listen(make_server(auth_timeout=0))  # no deadline
    async with await RawSocket.open(place.url) as socket:
        socket.writer.write(data)
        assert (await soon(socket.reader.read())).startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("target", ["/é", "/%zz?%zz=%", "/?" + "a=1&" * 500, "//double//", "*"])
async def test_odd_targets_do_not_disturb_the_server(listen, target):
    place = await listen(make_server())
    async with await RawSocket.open(place.url) as socket:
        socket.writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        answer = await soon(socket.reader.read())
        assert answer.split(b" ")[1] in (b"426", b"400", b"404")
    await place.connect()


@pytest.mark.parametrize("target", [b"/\xff", b"/\xc3\xa9", b"/%ff"])
async def test_a_path_of_any_bytes_opens_a_websocket(listen, target):
    paths = []

    def identify(auth):
        paths.append(auth.request.path)
        auth.accept("ann")

    place = await listen(make_server(identify))
    async with await RawSocket.open(place.url) as socket:
        socket.writer.write(
            b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            b"Sec-WebSocket-Protocol: wse-default-json\r\n\r\n"
        )
        await soon(socket.reader.readuntil(b"\r\n\r\n"))
        socket.send(frame(TEXT, hi()))
        assert (await socket.hear())[0] == "~wse:welcome"
        assert paths == [target.decode("utf-8", "replace")]


async def test_a_client_that_sends_no_request_is_cut_after_the_deadline(listen):
    place = await listen(make_server(auth_timeout=0.02))
    async with await RawSocket.open(place.url) as socket:
        await socket.eof()


async def test_the_request_is_visible_to_the_identify_handler(listen):
    requests = []

    def identify(auth):
        requests.append(auth.request)
        auth.accept("ann")

    server = make_server(identify)
    log = ServerLog(server)
    place = await listen(server)
    client = WseClient(place.url + "/room?token=a%20b&token=2&flag", headers={"X-Device": "phone", "Cookie": "a=1"})
    async with client:
        (request,) = requests
        assert request.path == "/room"
        assert request.query == {"token": "a b", "flag": ""}
        assert request.headers["x-device"] == "phone"
        assert request.headers["X-DEVICE"] == "phone"
        assert request.headers["cookie"] == "a=1"
        assert request.remote_addr == "127.0.0.1"
        conn = await log.conn("ann")
        assert conn.request is request
        assert conn.remote_addr == "127.0.0.1"
        assert "token" not in repr(request)


async def test_forwarding_headers_do_not_change_the_address(listen):
    addresses = []

    def identify(auth):
        addresses.append(auth.request.remote_addr)
        auth.accept("ann")

    place = await listen(make_server(identify))
    async with WseClient(place.url, headers={"X-Forwarded-For": "203.0.113.9", "Forwarded": "for=203.0.113.9"}):
        assert addresses == ["127.0.0.1"]


UPGRADE = (
    b"GET /ws?a=1 HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive\r\nConnection: Upgrade\r\n"
    b"Upgrade: h2c, websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Protocol: unknown\r\nSec-WebSocket-Protocol: wse-default-json\r\nX-Name: caf\xc3\xa9\r\n\r\n"
)


async def test_a_request_may_arrive_in_any_pieces_and_with_the_first_message(listen):
    headers = []

    def identify(auth):
        headers.append(auth.request.headers)
        auth.accept("ann", auth.request.path)

    place = await listen(make_server(identify, path="/ws"))
    data = b"\r\n" + UPGRADE + frame(TEXT, hi())
    for at in (1, 2, 3, 30, len(UPGRADE) - 1, len(UPGRADE) + 1, len(UPGRADE) + 2, len(UPGRADE) + 5, len(data)):
        async with await RawSocket.open(place.url) as socket:
            socket.writer.write(data[:at])
            async with await RawSocket.open(place.url) as other:
                await other.request("/healthz")  # so the server has read the first part
            socket.writer.write(data[at:])
            answer = await soon(socket.reader.readuntil(b"\r\n\r\n"))
            assert answer.startswith(b"HTTP/1.1 101 ")
            assert b"\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in answer
            assert await socket.hear() == ["~wse:welcome", "/ws", None]
        assert headers[-1]["X-Name"] == "café"
        assert "Sec-WebSocket-Key" not in headers[-1]


@pytest.mark.parametrize("target", ["/healthz", "/readyz", "/", "/page", "/absent"])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_health_checks_of_every_kind_are_answered(listen, tmp_path, target, version):
    (tmp_path / "page.html").write_text("page")
    place = await listen(make_server(path="/ws", files={"/page": tmp_path / "page.html"}))
    answers = []
    for method in ("GET", "HEAD"):
        async with await RawSocket.open(place.url) as socket:
            host = "" if version == "1.0" else "Host: localhost\r\n"
            socket.writer.write(f"{method} {target} HTTP/{version}\r\n{host}\r\n".encode())
            head, _, body = (await soon(socket.reader.read())).partition(b"\r\n\r\n")
            answers.append(([line for line in head.split(b"\r\n") if not line.startswith(b"Date:")], body))
    (get, body), (head, nothing) = answers
    assert get == head
    assert body
    assert nothing == b""
    assert b" 200 " in get[0] or target in ("/", "/absent")


@pytest.mark.parametrize("method", ["POST", "OPTIONS", "BREW"])
async def test_another_method_is_told_which_are_allowed(listen, method):
    place = await listen(make_server())
    async with await RawSocket.open(place.url) as socket:
        status, headers, _ = await socket.request("/healthz", method=method)
        assert (status, headers["allow"]) == (405, "GET, HEAD")


async def test_a_head_that_is_too_large_is_refused(listen):
    place = await listen(make_server())
    async with await RawSocket.open(place.url) as socket:
        status, _, _ = await socket.request("/", X_Name="x" * 16 * 1024)
        assert status == 431
    await place.connect()


async def test_close_cuts_connections_whose_request_has_not_come():
    """Browsers open some in advance."""
    server = make_server(auth_timeout=0)
    await server.start()
    async with await RawSocket.open(server.url) as silent, await RawSocket.open(server.url) as half:
        half.writer.write(b"GET / HTTP/1.1\r\nHost:")
        async with await RawSocket.open(server.url) as answered:
            assert (await answered.request("/healthz"))[0] == 200  # the server has accepted the others
        await soon(server.close())
        await silent.eof()
        await half.eof()


async def test_close_waits_for_an_answer_that_is_not_read_only_so_long(tmp_path, monkeypatch):
    monkeypatch.setattr("wse.transports.picows.server.CLOSE_TIMEOUT", 0.05)
    (tmp_path / "large").write_bytes(bytes(32 * 1024 * 1024))
    server = make_server(auth_timeout=0, files={"/": tmp_path / "large"})
    await server.start()
    async with await RawSocket.open(server.url) as socket:
        socket.writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await soon(socket.reader.readuntil(b"\r\n\r\n"))
        await soon(server.close())


async def test_a_listed_origin_may_import_the_javascript_client(listen):
    place = await listen(make_server(serve_client=True, origins=["http://localhost:5173", "https://*.example.com"]))
    for origin, allowed in (
        ("http://localhost:5173", "http://localhost:5173"),
        ("https://app.example.com", "https://app.example.com"),
        ("https://evil.example", None),
        (None, None),
    ):
        for known in ("", "*"):
            async with await RawSocket.open(place.url) as socket:
                headers = {"Origin": origin} if origin else {}
                status, answered, _ = await socket.request("/wse.js", If_None_Match=known, **headers)
                assert status == (304 if known else 200)
                assert answered.get("access-control-allow-origin") == allowed
                assert answered["vary"] == "Origin"


async def test_any_origin_may_import_the_javascript_client_where_any_may_connect(listen):
    place = await listen(make_server(serve_client=True, origins="*"))
    async with await RawSocket.open(place.url) as socket:
        _, answered, _ = await socket.request("/wse.js", Origin="https://app.example")
        assert answered["access-control-allow-origin"] == "*"
        assert "vary" not in answered
