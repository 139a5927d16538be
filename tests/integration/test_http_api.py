"""The HTTP API on the built-in listener: bodies in pieces, bodies that never come, and other peers that misbehave."""

import asyncio
import json

import pytest

from support.net import ClientLog, RawSocket, make_server, soon
from wse import Limits, WseClient

KEY = "the-key-of-a-test"


def head(body, path="/api/send", method="POST", **headers):
    given = {
        "Host": "localhost",
        "Authorization": f"Bearer {KEY}",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    lines = [f"{name}: {value}" for name, value in given.items() if value is not None]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode()


async def ask(place, *pieces):
    """Send a request in pieces; returns the status, the headers and the body of the answer."""
    async with await RawSocket.open(place.url) as socket:
        for piece in pieces:
            socket.writer.write(piece)
            await socket.writer.drain()
            await asyncio.sleep(0)
        return await answer_of(socket)


async def answer_of(socket):
    raw = await soon(socket.reader.read())
    top, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = top.decode().split("\r\n")
    return int(first.split()[1]), dict(line.lower().split(": ", 1) for line in lines), body


BODY = json.dumps({"cid": "ann", "type": "news", "payload": "hello"}).encode()


@pytest.mark.parametrize("cut", [None, 1, len(BODY) - 1])
async def test_a_request_reaches_the_user_however_it_is_cut(listen, cut):
    server = make_server(api_keys=KEY, path="/ws")
    place = await listen(server)
    async with WseClient(server.url, identity="ann") as client:
        log = ClientLog(client)
        whole = head(BODY) + BODY
        pieces = [whole] if cut is None else [head(BODY), BODY[:cut], BODY[cut:]]
        status, headers, body = await ask(place, *pieces)
        assert (status, headers["content-type"], json.loads(body)) == (200, "application/json", {"ok": True})
        assert (await log.until("ignored"))[1:3] == ("news", "hello")
        if cut is not None:
            assert (await ask(place, *[whole[i : i + 1] for i in range(len(whole))]))[0] == 200


async def test_a_client_that_asks_before_it_sends_a_body_is_told_to_go_on(listen):
    place = await listen(make_server(api_keys=KEY))
    async with await RawSocket.open(place.url) as socket:
        socket.writer.write(head(BODY, Expect="100-continue"))
        assert await soon(socket.reader.readuntil(b"\r\n\r\n")) == b"HTTP/1.1 100 Continue\r\n\r\n"
        socket.writer.write(BODY)
        assert (await answer_of(socket))[0] == 200


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (head(BODY, Authorization=None) + BODY, 401),
        (head(BODY, Authorization="Bearer wrong") + BODY, 401),
        (head(BODY, Origin="https://evil.example") + BODY, 403),
        (head(BODY, Content_Type="text/plain") + BODY, 415),
        (head(BODY, "/api/none") + BODY, 400),  # a body for a path that takes none
        (head(b"", "/api/none", "GET"), 404),
        (head(b"", method="GET"), 405),
        (head(b"", method="OPTIONS", Origin="https://evil.example"), 405),
        (head(BODY, Content_Length="999999999"), 413),
        (head(BODY, Content_Length="999999999", Expect="100-continue"), 413),
        (head(BODY, Content_Length="-1"), 400),
        (head(BODY, Content_Length="1, 2"), 400),
        (head(BODY, Content_Length=None, Transfer_Encoding="chunked"), 400),
        (head(BODY) + BODY + b"GET /healthz HTTP/1.1\r\n\r\n", 200),  # what follows is not read
    ],
)
async def test_what_is_not_in_order_is_refused_and_the_connection_closed(listen, raw, status):
    place = await listen(make_server(api_keys=KEY, path="/ws"))
    found, headers, _ = await ask(place, raw)
    assert found == status
    assert "access-control-allow-origin" not in headers


async def test_a_body_that_never_comes_ends_with_the_time_for_a_request(listen):
    place = await listen(make_server(api_keys=KEY, auth_timeout=0.05))
    async with await RawSocket.open(place.url) as socket:
        socket.writer.write(head(BODY) + BODY[:-1])
        assert await soon(socket.reader.read()) == b""


async def test_a_flood_of_wrong_keys_and_large_bodies_harms_no_user(listen):
    server = make_server(api_keys=KEY, limits=Limits(message_size=1024))
    place = await listen(server)
    server.register("echo", lambda conn, payload: payload)
    async with WseClient(server.url, identity="ann") as client:
        log = ClientLog(client)

        async def attack(n):
            wrong = head(BODY, Authorization=f"Bearer guess-{n}") + BODY
            large = head(BODY, Content_Length="100000000") + b"x" * 10_000
            return (await ask(place, wrong if n % 2 else large))[0]

        found = await asyncio.gather(*(attack(n) for n in range(100)), return_exceptions=True)
        assert {status for status in found if isinstance(status, int)} <= {401, 413}
        assert sum(status == 401 for status in found) == 50
        assert await soon(client.call("echo", 1)) == 1
        assert log.all("ignored") == []
    assert len(server._hub.sockets.open) <= 1


async def test_the_description_is_served_beside_it(listen):
    place = await listen(make_server(api_keys=KEY))
    status, headers, body = await ask(place, head(b"", "/api/openapi.json", "GET", Authorization=None))
    assert (status, headers["content-type"]) == (200, "application/json")
    assert json.loads(body)["openapi"].startswith("3.")
