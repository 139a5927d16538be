"""A client's opening handshake over real sockets, with servers that answer in every way (RFC 6455, 4.1)."""

import asyncio
import base64
import hashlib
import time
from contextlib import suppress
from pathlib import Path

import pytest

from support.net import CLOSE, JSON, TEXT, TIMEOUT, Log, frame, make_server, soon
from wse import Backoff, ClientStatus, ErrorCode, WseClient, WseError

WELCOME = frame(TEXT, '["~wse:welcome","w",null]', mask=False)
OPEN_FILES = Path("/proc/self/fd")

needs_proc = pytest.mark.skipif(not OPEN_FILES.exists(), reason="there is no /proc here that counts open files")


def answer_to(head, *lines, protocol=JSON, connection="Connection: Upgrade"):
    key = next(line.split(b": ")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key"))
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()).decode()
    first = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", connection, f"Sec-WebSocket-Accept: {accept}"]
    if protocol is not None:
        first.append(f"Sec-WebSocket-Protocol: {protocol}")
    return "\r\n".join([*first, *lines, "", ""]).encode()


async def opcode(reader):
    """That of the next frame, which the client masks."""
    first, second = await reader.readexactly(2)
    size = second & 0x7F
    if size == 126:
        size = int.from_bytes(await reader.readexactly(2))
    await reader.readexactly(4 + size)
    return first & 0x0F


@pytest.fixture
async def answering():
    """`await answering(answer)` gives the URL of a server that writes `answer(head)` after each request, then waits for
    the client's close frame.
    """
    servers, writers = [], []

    async def start(answer):
        async def connected(reader, writer):
            writers.append(writer)
            head = await reader.readuntil(b"\r\n\r\n")
            for part in answer(head):
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)
            with suppress(asyncio.IncompleteReadError):
                while await opcode(reader) != CLOSE:
                    pass
                writer.write(frame(CLOSE, mask=False))
            writer.close()

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        servers.append(server)
        return f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"

    yield start
    for server in servers:
        server.close()
    for writer in writers:
        writer.close()


@pytest.mark.parametrize(
    "connection",
    [
        "Connection: Upgrade, Keep-Alive",
        "Connection: keep-alive, Upgrade",
        "Connection: keep-alive\r\nConnection: Upgrade",
    ],
)
async def test_connection_may_be_a_list(answering, connection):
    url = await answering(lambda head: [answer_to(head, connection=connection) + WELCOME])
    client = WseClient(url)
    assert await soon(client.connect()) == "w"
    await soon(client.close())


@pytest.mark.parametrize("size", [1, 7, 100])
async def test_an_answer_may_come_in_pieces(answering, size):
    messages = b"".join(frame(TEXT, f'["n",{n},null]', mask=False) for n in range(300))

    def pieces(head):
        data = answer_to(head) + WELCOME + messages
        early = data[:400]
        return [*(early[at : at + size] for at in range(0, len(early), size)), data[400:]]

    client = WseClient(await answering(pieces))
    heard = Log()
    client.channel.on("n", heard.adder("n"))
    assert await soon(client.connect()) == "w"
    await heard.until("n", 299)
    assert heard.all("n") == [(n,) for n in range(300)]
    await soon(client.close())


@pytest.mark.parametrize("size", [7, 1000])
async def test_interim_answers_may_come_before(answering, size):
    def pieces(head):
        early = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n"
        data = early + answer_to(head) + WELCOME
        return [data[at : at + size] for at in range(0, len(data), size)]

    client = WseClient(await answering(pieces))
    assert await soon(client.connect()) == "w"
    await soon(client.close())


async def test_interim_answers_without_end_are_too_many(answering):
    client = WseClient(await answering(lambda head: [b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000]))
    with pytest.raises(WseError, match="more than 16384 bytes"):
        await soon(client.connect())


async def test_more_than_a_read_buffer_may_follow_the_answer_at_once(answering):
    large = frame(TEXT, '["large","' + "x" * 100_000 + '",null]', mask=False)
    client = WseClient(await answering(lambda head: [answer_to(head) + WELCOME + large]))
    heard = Log()
    await soon(client.connect())
    client.channel.on("large", heard.adder("large"))
    _, payload = await heard.until("large")
    assert len(payload) == 100_000
    await soon(client.close())


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (lambda head: [answer_to(head, protocol="mqtt") + WELCOME], 101),
        (lambda head: [answer_to(head, "Sec-WebSocket-Extensions: permessage-deflate") + WELCOME], 101),
        (lambda head: [answer_to(head, "bad header")], 101),
        (lambda head: [b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"], 503),
        (lambda head: [b"SSH-2.0-OpenSSH_9.6\r\n\r\n"], None),
        (lambda head: [b"HTTP/1.1 101 Switching Protocols\r\n" + b"X: y\r\n" * 10_000], None),
    ],
)
async def test_a_wrong_answer_fails_the_connect_and_closes_the_socket(answering, answer, status):
    client = WseClient(await answering(answer))
    with pytest.raises(WseError) as caught:
        await soon(client.connect())
    assert caught.value.code == ErrorCode.WS_CLIENT_ERROR
    assert caught.value.details.get("status") == status
    assert isinstance(caught.value.__cause__, ValueError)


async def test_a_redirect_is_not_followed(answering):
    asked = []

    def never(head):
        asked.append(head)
        return []

    other = await answering(never)
    for code in (301, 302, 303, 307, 308):
        redirect = f"HTTP/1.1 {code} Elsewhere\r\nLocation: {other}\r\nContent-Length: 0\r\n\r\n".encode()
        url = await answering(lambda head, redirect=redirect: [redirect])
        client = WseClient(url, identity="secret", headers={"Authorization": "Bearer secret", "Cookie": "a=secret"})
        with pytest.raises(WseError, match="redirects are not followed") as caught:
            await soon(client.connect())
        assert caught.value.details["status"] == code
    assert asked == []


async def test_an_answer_without_a_subprotocol_leaves_the_word_to_the_server(answering):
    closing = frame(CLOSE, b"\x03\xe8wse.protocol-error", mask=False)
    client = WseClient(await answering(lambda head: [answer_to(head, protocol=None) + closing]))
    with pytest.raises(WseError) as caught:
        await soon(client.connect())
    assert caught.value.details == {"code": 1000, "reason": "wse.protocol-error"}


async def test_the_request_is_what_the_client_was_told(answering):
    heads = []

    def answer(head):
        heads.append(head)
        return [b"HTTP/1.1 503 no\r\n\r\n"]

    url = await answering(answer)
    authority = url[5:-1]
    client = WseClient(f"ws://ann:secret@{authority}/rooms/tea?x=1", headers={"X-Name": "ada"})
    with pytest.raises(WseError):
        await soon(client.connect())
    first, *lines = heads[0].decode().strip().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    assert first == "GET /rooms/tea?x=1 HTTP/1.1"
    assert len(base64.b64decode(headers.pop("Sec-WebSocket-Key"))) == 16
    assert headers == {
        "Host": authority,
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Protocol": JSON,
        "X-Name": "ada",
    }


def open_files():
    return len(list(OPEN_FILES.iterdir()))


async def until_no_more_than(files):
    async with asyncio.timeout(TIMEOUT):
        while open_files() > files:
            await asyncio.sleep(0.01)


@needs_proc
@pytest.mark.parametrize("scheme", ["ws", "wss"])  # wss: the server says nothing in the TLS handshake
@pytest.mark.parametrize("timeout", [20, 0])
@pytest.mark.parametrize("how", ["cancelled", "close"])
async def test_an_attempt_that_is_given_up_closes_its_socket(scheme, timeout, how):
    taken = asyncio.Queue()

    class Silent(asyncio.Protocol):
        def connection_made(self, transport):
            taken.put_nowait(transport)

    listening = await asyncio.get_running_loop().create_server(Silent, "127.0.0.1", 0)
    async with listening:
        before = open_files()
        client = WseClient(f"{scheme}://127.0.0.1:{listening.sockets[0].getsockname()[1]}/", timeout=timeout)
        for _ in range(3):
            connecting = asyncio.ensure_future(client.connect())
            await soon(taken.get())
            if how == "close":
                await soon(client.close())
            else:
                connecting.cancel()
            await asyncio.wait([connecting])
            assert connecting.cancelled() or connecting.exception().code == ErrorCode.CONNECTION_CLOSED
        await until_no_more_than(before)


@needs_proc
@pytest.mark.parametrize("scheme", ["ws", "wss"])
async def test_an_attempt_that_takes_too_long_closes_its_socket(scheme):
    listening = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
    async with listening:
        before = open_files()
        client = WseClient(f"{scheme}://127.0.0.1:{listening.sockets[0].getsockname()[1]}/", timeout=0.05)
        with pytest.raises(WseError, match="no answer in time") as caught:
            await soon(client.connect())
        assert caught.value.code == ErrorCode.WS_CLIENT_ERROR
        await until_no_more_than(before)


# With our own server.


async def test_a_refusal_brings_the_application_s_reason_and_whether_to_try_again():
    attempts = []

    def identify(auth):
        attempts.append(auth.identity)
        if len(attempts) < 3:
            auth.refuse("the directory is down", retry=True)
        elif auth.identity == "locked":
            auth.refuse("account locked")
        else:
            auth.accept(auth.identity, "welcome")

    async with make_server(identify) as server:
        client = WseClient(server.url, identity="ann", reconnect=True, backoff=Backoff(base=0))
        reported = Log()
        client.when.error(reported.adder("error"))
        assert await soon(client.connect()) == "welcome"
        assert attempts == ["ann"] * 3
        for (error,) in reported.all("error"):
            assert (error.details["reason"], error.details["retry"]) == ("the directory is down", True)
        await soon(client.close())
        with pytest.raises(WseError) as caught:
            await soon(client.connect("locked"))
        assert caught.value.code == ErrorCode.NOT_AUTHORIZED
        assert caught.value.details == {"code": 1000, "reason": "account locked", "retry": False}


async def test_a_session_that_is_about_to_expire_goes_on_with_a_fresh_identity():
    server = make_server(lambda auth: auth.accept("ann", expires=time.time() + 4))
    heard = Log()

    @server.reauthenticate
    def reauthenticate(conn, identity):
        heard.add("identity", identity)
        return time.time() + 3600

    numbers = iter(range(10))
    async with server, WseClient(server.url, identity=lambda: next(numbers)) as client:
        assert await heard.until("identity") == ("identity", 1)
        assert client.status is ClientStatus.READY
