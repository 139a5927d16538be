"""The HTTP API for publishing: what requests do, and which are refused."""

import asyncio
import json
import logging
import socket
import struct
from contextlib import asynccontextmanager
from http import HTTPStatus
from importlib import resources

import httpx
import pytest

from support.net import TIMEOUT, soon
from wse import Inbox, Limits, Publisher, WseClient, WseError, WseServer
from wse.brokers.memory import MemoryBroker, MemoryCluster
from wse.brokers.memory_store import MemoryStore
from wse.core.admission import Admission
from wse.core.ports.http import HttpCall, HttpReply
from wse.errors import ErrorCode
from wse.http_api import HttpApi, replays
from wse.http_api.replays import Replays
from wse.testing import connect
from wse.transports.request import CompactHeaders

KEY = "the-key-of-a-test"


class Target:
    """Records what is published."""

    def __init__(self, error=None):
        self.done = []
        self.error = error

    def _do(self, *what):
        if self.error is not None:
            raise self.error
        self.done.append(what)

    def send(self, cid, type, payload=None, *, key=None):
        self._do("send", cid, type, payload, key)

    def broadcast(self, type, payload=None, *, exclude=None, key=None):
        self._do("broadcast", type, payload, exclude, key)

    async def keep(self, cid, type, payload=None, *, key=None, ttl=None):
        self._do("keep", cid, type, payload, key, ttl)
        return len(self.done)

    def room(self, name):
        target = self

        class Room:
            def send(self, type, payload=None, *, exclude=None, key=None):
                target._do("room", name, type, payload, exclude, key)

            async def keep(self, type, payload=None, *, key=None, ttl=None):
                target._do("keep-room", name, type, payload, key, ttl)
                return len(target.done)

        return Room()

    def drop_client(self, cid, reason, code):
        self._do("drop", cid, reason, code)


def call(body, method="POST", **headers):
    given = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return HttpCall(method, "/api/x", CompactHeaders([item for item in given.items() if item[1] is not None]), raw)


def answered(api, action, request):
    """The answer, also one that comes later: the target of these tests takes no time."""
    reply = api.answer(action, request)
    if not isinstance(reply, HttpReply):
        with pytest.raises(StopIteration) as ended:
            reply.send(None)
        reply = ended.value.value
    return reply


def post(api, action, body, **headers):
    reply = answered(api, action, call(body, **headers))
    return reply.status, json.loads(reply.body)


@pytest.fixture
def target():
    return Target()


@pytest.fixture
def api(target):
    return HttpApi(target, KEY)


@pytest.mark.parametrize(
    ("action", "body", "done"),
    [
        ("send", {"cid": "ann", "type": "news", "payload": [1]}, ("send", "ann", "news", [1], None)),
        ("send", {"cid": 7, "type": "news", "key": "k"}, ("send", 7, "news", None, "k")),
        ("broadcast", {"type": "news", "payload": "x"}, ("broadcast", "news", "x", None, None)),
        ("broadcast", {"type": "news", "exclude": "ann", "key": 1}, ("broadcast", "news", None, "ann", 1)),
        ("room", {"room": "lobby", "type": "n", "exclude": 3}, ("room", "lobby", "n", None, 3, None)),
        ("drop", {"cid": "ann"}, ("drop", "ann", "wse.by-server", 1000)),
        ("drop", {"cid": "ann", "reason": "bye", "code": 4001}, ("drop", "ann", "bye", 4001)),
    ],
)
def test_a_request_does_what_it_says(api, target, action, body, done):
    assert post(api, action, body) == (200, {"ok": True})
    assert target.done == [done]


@pytest.mark.parametrize(
    ("action", "body", "done"),
    [
        ("keep", {"cid": "ann", "type": "n", "payload": [1]}, ("keep", "ann", "n", [1], None, None)),
        ("keep", {"cid": 7, "type": "n", "key": "k", "ttl": 60}, ("keep", 7, "n", None, "k", 60)),
        ("keep-room", {"room": "lobby", "type": "n", "ttl": 0.5}, ("keep-room", "lobby", "n", None, None, 0.5)),
    ],
)
def test_a_request_that_keeps_a_message_is_answered_with_its_number(api, target, action, body, done):
    assert post(api, action, body) == (200, {"ok": True, "n": 1})
    assert target.done == [done]


@pytest.mark.parametrize(
    ("action", "body"),
    [
        ("keep", {"type": "x"}),
        ("keep", {"cid": "ann", "type": "x", "exclude": "bob"}),
        ("keep", {"cid": "ann", "type": "x", "key": 1}),
        ("keep", {"cid": "ann", "type": "x", "key": ""}),
        ("keep", {"cid": "ann", "type": "x", "ttl": "60"}),
        ("keep", {"cid": "ann", "type": "x", "ttl": True}),
        ("keep-room", {"cid": "ann", "type": "x"}),
        ("send", b""),
        ("send", b"{"),
        ("send", b"\xff"),
        ("send", b"[" * 100_000),
        ("send", b'{"cid": "ann", "type": "x", "payload": NaN}'),
        ("send", b'{"cid": "ann", "type": "x", "payload": [1e999]}'),
        ("send", b'{"cid": "ann", "type": "x", "payload": {"a": -1e999}}'),
        ("send", []),
        ("send", {"type": "x"}),
        ("send", {"cid": None, "type": "x"}),
        ("send", {"cid": True, "type": "x"}),
        ("send", {"cid": ["ann"], "type": "x"}),
        ("send", {"cid": "ann"}),
        ("send", {"cid": "ann", "type": 1}),
        ("send", {"cid": "ann", "type": "x", "key": 1.5}),
        ("send", {"cid": "ann", "type": "x", "paylaod": 1}),
        ("send", {"cid": "ann", "type": "x", "exclude": "ann"}),
        ("send", {"cid": "", "type": "x"}),
        ("drop", {"cid": 0}),
        ("send", '{"cid": "ann", "type": "x"}'.encode("utf-16")),
        ("broadcast", {"type": "x", "exclude": {}}),
        ("broadcast", {"type": "x", "exclude": ""}),
        ("room", {"type": "x"}),
        ("drop", {"cid": "ann", "code": 99}),
        ("drop", {"cid": "ann", "code": "1000"}),
        ("drop", {"cid": "ann", "reason": "x" * 124}),
    ],
)
def test_a_malformed_request_does_nothing_and_says_what_is_wrong(api, target, action, body):
    status, answer = post(api, action, body)
    assert status == 400
    assert answer["error"]["message"]
    assert target.done == []


@pytest.mark.parametrize(
    ("action", "body"),
    [
        ("send", {"cid": "\ud800", "type": "x"}),
        ("send", {"cid": "ann", "type": "x\udfff"}),
        ("send", {"cid": "ann", "type": "x", "key": "\ud83d"}),
        ("send", {"cid": "ann", "type": "x", "payload": {"a": ["\udc00"]}}),
        ("send", {"cid": "ann", "type": "x", "payload": {"\udc00": 1}}),
        ("broadcast", {"type": "x", "exclude": "\ud800"}),
        ("room", {"room": "\ud800", "type": "x"}),
        ("drop", {"cid": "\ud800"}),
        ("drop", {"cid": "ann", "reason": "\ud800"}),
    ],
)
def test_half_a_character_is_no_text(api, target, action, body):
    status, answer = post(api, action, body)
    assert (status, answer["error"]["code"], target.done) == (400, "invalid-text", [])
    assert post(api, "send", {"cid": "\U0001f600", "type": "\u00e9"})[0] == 200  # two halves are a character


@pytest.mark.parametrize("number", [2**53, -(2**53), 2**64, 10**30, 10**4000])
@pytest.mark.parametrize(
    ("action", "body"),
    [
        ("send", {"cid": "?", "type": "x"}),
        ("send", {"cid": "ann", "type": "x", "key": "?"}),
        ("broadcast", {"type": "x", "exclude": "?"}),
        ("room", {"room": "?", "type": "x"}),
        ("drop", {"cid": "?"}),
        ("drop", {"cid": "ann", "code": "?"}),
    ],
)
def test_an_integer_that_not_every_program_can_read_names_nothing(api, target, action, body, number):
    status, answer = post(api, action, json.dumps(body).replace('"?"', str(number)).encode())
    assert (status, answer["error"]["code"], target.done) == (400, "invalid-integer", [])


@pytest.mark.parametrize("number", [2**53 - 1, 1 - 2**53])
def test_any_other_integer_names_a_user(api, target, number):
    assert post(api, "drop", {"cid": number})[0] == 200
    assert target.done[0][1] == number


@pytest.mark.parametrize(
    "given", [None, "", "Bearer", "Bearer ", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", f"Basic {KEY}", KEY, "Bearer é"]
)
def test_without_the_key_nothing_is_done(api, target, given):
    reply = api.answer("send", call({"cid": "ann", "type": "x"}, Authorization=given))
    assert (reply.status, reply.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert target.done == []


def test_each_of_several_keys_is_taken(target):
    api = HttpApi(target, {"cron": "one", "php": "two"})
    for key, status in (("one", 200), ("two", 200), ("three", 401)):
        assert post(api, "broadcast", {"type": "x"}, Authorization=f"Bearer {key}")[0] == status


@pytest.mark.parametrize("keys", [[], "", ["fine", ""], {"a": "é"}, {}])
def test_keys_that_are_none_are_refused(target, keys):
    with pytest.raises(ValueError, match="keys"):
        HttpApi(target, keys)


def test_web_pages_of_other_origins_are_refused_even_with_the_key(api, target):
    assert post(api, "broadcast", {"type": "x"}, Origin="https://evil.example")[0] == 403
    assert target.done == []
    admitting = HttpApi(target, KEY, admission=Admission("https://app.example"))
    assert post(admitting, "broadcast", {"type": "x"}, Origin="https://app.example", Host="x")[0] == 200
    assert post(admitting, "broadcast", {"type": "x"}, Origin="https://evil.example", Host="x")[0] == 403


@pytest.mark.parametrize(
    "media_type", [None, "", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
def test_a_form_of_a_web_page_is_no_request(api, target, media_type):
    assert post(api, "broadcast", {"type": "x"}, Content_Type=media_type)[0] == 415
    assert post(api, "broadcast", {"type": "x"}, Content_Type="Application/JSON; charset=utf-8")[0] == 200
    assert len(target.done) == 1


def test_other_actions_and_methods_are_told_which_there_are(api):
    assert post(api, "delete-everything", {})[0] == 404
    reply = api.answer("send", call({}, method="GET"))
    assert (reply.status, reply.headers["Allow"]) == (405, "POST")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (WseError(ErrorCode.NOT_STARTED), 503),
        (WseError(ErrorCode.BROKER_UNAVAILABLE), 503),
        (WseError(ErrorCode.LIMIT_EXCEEDED), 413),
        (WseError(ErrorCode.PROTOCOL_VIOLATION), 400),
        (ValueError("too long"), 400),
    ],
)
def test_an_error_of_the_server_is_the_answer(error, status):
    api = HttpApi(Target(error), KEY)
    found, answer = post(api, "broadcast", {"type": "~wse:x"}, Idempotency_Key="again")
    assert found == status
    assert answer["error"]["message"]
    if isinstance(error, WseError):
        assert answer["error"]["code"] == error.code
    assert post(api, "keep", {"cid": "ann", "type": "x"}) == (found, answer)


def test_markup_in_an_id_stays_text(api):
    markup = "<script>alert(1)</script>"
    reply = api.answer("send", call({"cid": [markup], "type": "x", markup: 1}))
    assert reply.headers["Content-Type"] == "application/json"
    assert reply.headers["X-Content-Type-Options"] == "nosniff"


def test_bodies_payloads_and_rates_have_limits(target):
    api = HttpApi(target, {"cron": KEY, "php": "other"}, limits=Limits(message_size=100, nesting=3, message_rate=1))
    assert post(api, "broadcast", {"type": "x", "payload": "y" * 5000})[0] == 413
    assert post(api, "broadcast", {"type": "x", "payload": [[[[]]]]})[1]["error"]["code"] == "wse.limit.nesting"
    assert post(api, "broadcast", {"type": "x"})[0] == 200
    reply = api.answer("broadcast", call({"type": "x"}))
    assert (reply.status, reply.headers["Retry-After"]) == (429, "1")
    assert post(api, "broadcast", {"type": "x"}, Authorization="Bearer other")[0] == 200  # each key has its own
    assert len(target.done) == 2


def test_a_request_that_is_sent_again_with_its_key_is_done_once(api, target):
    first = api.answer("broadcast", call({"type": "x"}, Idempotency_Key="1"))
    again = api.answer("broadcast", call({"type": "x"}, Idempotency_Key="1"))
    assert (first.body, "Idempotent-Replayed" in first.headers) == (again.body, False)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert len(target.done) == 1
    assert post(api, "broadcast", {"type": "y"}, Idempotency_Key="1")[0] == 422
    assert post(api, "room", {"type": "x"}, Idempotency_Key="1")[0] == 422
    assert post(api, "broadcast", {"type": "x"}, Idempotency_Key="2")[0] == 200
    assert len(target.done) == 2
    assert post(api, "broadcast", {"type": "x"}, Idempotency_Key="")[0] == 400
    assert post(api, "broadcast", {"type": "x"}, Idempotency_Key="x" * 256)[0] == 400


def test_idempotency_keys_of_different_programs_are_different(target):
    api = HttpApi(target, {"cron": KEY, "php": "other"})
    post(api, "broadcast", {"type": "x"}, Idempotency_Key="1")
    post(api, "broadcast", {"type": "x"}, Idempotency_Key="1", Authorization="Bearer other")
    assert len(target.done) == 2


def test_the_idempotency_keys_of_a_program_push_out_none_of_another(monkeypatch, target):
    monkeypatch.setattr(replays, "MOST", 3)
    api = HttpApi(target, {"cron": KEY, "php": "other"})
    first = {"body": {"type": "x"}, "Idempotency_Key": "1"}
    post(api, "broadcast", **first)
    for n in range(10):
        post(api, "broadcast", {"type": "x"}, Idempotency_Key=str(n), Authorization="Bearer other")
    assert len(target.done) == 11
    assert api.answer("broadcast", call(**first)).headers["Idempotent-Replayed"] == "true"
    assert len(target.done) == 11


def test_a_request_that_failed_may_be_sent_again(target):
    api = HttpApi(target, KEY)
    target.error = WseError(ErrorCode.NOT_STARTED)
    assert post(api, "broadcast", {"type": "x"}, Idempotency_Key="1")[0] == 503
    target.error = None
    assert post(api, "broadcast", {"type": "x"}, Idempotency_Key="1")[0] == 200
    assert len(target.done) == 1


async def test_a_repeat_while_a_message_is_being_kept_waits_for_its_answer(target):
    api = HttpApi(target, {"cron": KEY, "php": "other"})
    gate, keep = asyncio.Event(), target.keep

    async def slow(*args, **kwargs):
        await gate.wait()
        return await keep(*args, **kwargs)

    target.keep = slow
    request = call({"cid": "ann", "type": "x"}, Idempotency_Key="1")
    first, second = (asyncio.ensure_future(api.answer("keep", request)) for _ in range(2))
    assert post(api, "keep", {"cid": "ann", "type": "y"}, Idempotency_Key="1")[0] == 422
    other = asyncio.ensure_future(api.answer("keep", call({"cid": "ann", "type": "x"}, Idempotency_Key="2")))
    first.cancel()  # its client has hung up
    gate.set()
    answer, another = await soon(second), await soon(other)
    assert (answer.status, json.loads(answer.body)) == (200, {"ok": True, "n": 1})
    assert answer.headers["Idempotent-Replayed"] == "true"
    assert json.loads(another.body)["n"] == 2
    assert answered(api, "keep", request).headers["Idempotent-Replayed"] == "true"
    assert post(api, "keep", {"cid": "ann", "type": "y"}, Idempotency_Key="1")[0] == 422
    (*_, one, _), (*_, two, _) = target.done
    assert one != two  # what tells the store, and so other nodes, which requests are one


async def test_a_message_that_could_not_be_kept_may_be_sent_again(target):
    api = HttpApi(target, KEY)
    request = call({"cid": "ann", "type": "x"}, Idempotency_Key="3")
    target.error = WseError(ErrorCode.BROKER_UNAVAILABLE)
    assert (await api.answer("keep", request)).status == 503
    target.error = None
    assert (await api.answer("keep", request)).status == 200
    own = call({"cid": "ann", "type": "x", "key": "own"}, Idempotency_Key="4")
    assert (await api.answer("keep", own)).status == 200
    assert [key for *_, key, _ in target.done][1:] == ["own"]


def test_answers_are_kept_for_some_time_and_in_some_number(monkeypatch):
    monkeypatch.setattr(replays, "MOST", 3)
    now = [0.0]
    kept = Replays(lambda: now[0])
    for n in range(10):
        assert kept.find(str(n)) is None
        kept.keep(str(n), b"", n)
    assert [n for n in range(10) if kept.find(str(n))] == [8, 9]
    now[0] = replays.KEPT
    assert kept.find("9") is None
    assert not kept._kept


def test_wrong_keys_are_logged_and_not_without_end(api, caplog):
    caplog.set_level(logging.INFO, "wse")
    for _ in range(100):
        post(api, "broadcast", {"type": "x"}, Authorization="Bearer guess")
    assert [record.kind for record in caplog.records] == ["api-refused"] * 10
    assert "guess" not in caplog.text


def test_the_description_names_what_there_is(api):
    reply = api.answer("openapi.json", call(b"", method="GET", Authorization=None))
    assert reply.status is HTTPStatus.OK
    described = json.loads(reply.body)
    assert described == json.loads(resources.files("wse.http_api").joinpath("openapi.json").read_text())
    paths = {path.removeprefix("/api/") for path in described["paths"]}
    assert paths | {"openapi.json"} == set(api.routes)
    for path, item in described["paths"].items():
        content = item["post"]["requestBody"]["content"]["application/json"]
        example = content["example"]
        assert post(api, path.removeprefix("/api/"), example)[0] == 200
        for field in content["schema"]["required"]:
            less = {name: value for name, value in example.items() if name != field}
            assert post(api, path.removeprefix("/api/"), less)[0] == 400


async def test_a_server_s_users_get_the_messages():
    server = WseServer(lambda auth: auth.accept("ann"), api_keys=[KEY])
    assert post(server.http_api, "broadcast", {"type": "news"})[0] == 503
    async with connect(server) as client:
        heard = asyncio.ensure_future(client.when.ignored.wait())
        assert post(server.http_api, "send", {"cid": "ann", "type": "news", "payload": 1})[0] == 200
        assert (await soon(heard))[:2] == ("news", 1)
        assert post(server.http_api, "send", {"cid": "absent", "type": "news"})[0] == 200
        assert post(server.http_api, "send", {"cid": "ann", "type": "~wse:welcome"})[0] == 400
        closed = asyncio.ensure_future(client.when.closed.wait())
        assert post(server.http_api, "drop", {"cid": "ann", "reason": "bye"})[0] == 200
        assert await soon(closed) == (1000, "bye")
    await server.close()


async def test_what_is_kept_by_http_waits_for_the_user_and_the_room():
    server = WseServer(lambda auth: auth.accept("ann"), port=0, host="127.0.0.1", api_keys=[KEY], inbox=Inbox())
    async with server, httpx.AsyncClient(headers={"Authorization": f"Bearer {KEY}"}) as web:
        base = f"http://127.0.0.1:{server.port}/api"
        kept = {"cid": "ann", "type": "news", "payload": 1, "key": "k"}
        for _ in range(2):
            answer = await web.post(f"{base}/keep", json=kept)
            assert (answer.status_code, answer.json()) == (200, {"ok": True, "n": 1})
        answer = await web.post(f"{base}/keep-room", json={"room": "lobby", "type": "say", "payload": "hello"})
        assert answer.json() == {"ok": True, "n": 1}
        assert [message.payload for message in await server.room("lobby").history(last=5)] == ["hello"]
        assert (await web.post(f"{base}/keep", json={**kept, "ttl": 0})).status_code == 400
        large = await web.post(f"{base}/keep", json={"cid": "ann", "type": "x", "payload": "x" * 70_000})
        assert (large.status_code, large.json()["error"]["code"]) == (413, ErrorCode.LIMIT_EXCEEDED)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=server.http_api), headers=web.headers) as asgi:
            answer = await asgi.post("http://x/keep", json={"cid": "ann", "type": "news", "payload": 2})
            assert answer.json() == {"ok": True, "n": 2}
        client = WseClient(server.url, inbox="phone")
        heard = asyncio.Queue()
        client.channel.on("news", heard.put_nowait)
        async with client:
            assert [await soon(heard.get()), await soon(heard.get())] == [1, 2]


class SlowStore(MemoryStore):
    """A store that takes its time."""

    def __init__(self):
        super().__init__()
        self.is_keeping, self.gate = asyncio.Event(), asyncio.Event()

    async def keep(self, *args, **kwargs):
        self.is_keeping.set()
        await self.gate.wait()
        return await super().keep(*args, **kwargs)


@asynccontextmanager
async def keeping(**options):
    """A server whose store is slow, a request to keep a message that has reached it, and a device of the user."""
    store = SlowStore()
    server = WseServer(
        lambda auth: auth.accept("ann"), port=0, host="127.0.0.1", api_keys=KEY, inbox=Inbox(store=store), **options
    )
    async with server, WseClient(server.url) as client:
        heard = asyncio.Queue()
        client.channel.on("news", heard.put_nowait)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        body = json.dumps({"cid": "ann", "type": "news", "payload": "hello"}).encode()
        writer.write(
            b"POST /api/keep HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Authorization: Bearer %b\r\nContent-Length: %d\r\n\r\n%b" % (KEY.encode(), len(body), body)
        )
        await soon(store.is_keeping.wait())
        yield server, store, heard, reader, writer
        writer.close()


async def test_what_a_client_wants_kept_reaches_the_devices_also_if_it_hangs_up():
    async with keeping() as (server, store, heard, _, writer):
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not an end
        writer.transport.abort()
        async with asyncio.timeout(TIMEOUT):
            while server._lifecycle._listener.connections:
                await asyncio.sleep(0)
        store.gate.set()
        assert await soon(heard.get()) == "hello"
        assert server.stats().messages_out == 1


async def test_a_client_that_has_ended_its_side_gets_the_answer():
    async with keeping() as (_, store, _, reader, writer):
        writer.write_eof()
        await asyncio.sleep(0.05)  # time in which the server could end its side as well
        store.gate.set()
        assert (await soon(reader.read())).endswith(b'{"ok": true, "n": 1}\n')


async def test_the_time_for_a_request_is_not_that_for_its_answer():
    async with keeping(auth_timeout=1) as (_, store, _, reader, _):
        await asyncio.sleep(1.3)
        store.gate.set()
        assert (await soon(reader.read())).endswith(b'{"ok": true, "n": 1}\n')


async def test_a_server_that_closes_answers_what_it_is_doing():
    async with keeping() as (server, store, _, reader, _):
        closing = asyncio.ensure_future(server.close())
        await asyncio.sleep(0.05)
        store.gate.set()
        assert (await soon(reader.read())).endswith(b'{"ok": true, "n": 1}\n')
        await soon(closing)


async def test_a_server_that_is_in_a_hurry_says_that_it_has_not_done_it():
    async with keeping() as (server, store, _, reader, _):
        closing = asyncio.ensure_future(server.close())
        await asyncio.sleep(0.05)
        server._lifecycle._scheduler.hurry()
        assert (await soon(reader.read())).startswith(b"HTTP/1.1 503 ")
        await soon(closing)
        store.gate.set()


async def test_a_server_that_keeps_nothing_says_so():
    server = WseServer(lambda auth: auth.accept("ann"), port=0, host="127.0.0.1", api_keys=[KEY])
    async with server:
        reply = await server.http_api.answer("keep", call({"cid": "ann", "type": "x"}))
        assert (reply.status, json.loads(reply.body)["error"]["code"]) == (400, ErrorCode.UNSUPPORTED)


def test_it_is_off_by_default():
    with pytest.raises(ValueError, match="api_keys"):
        _ = WseServer(lambda auth: None).http_api


async def test_as_an_asgi_application_it_publishes_for_a_cluster():
    cluster = MemoryCluster()
    server = WseServer(lambda auth: auth.accept("ann"), broker=MemoryBroker(cluster))
    async with connect(server) as client, Publisher(MemoryBroker(cluster)) as publisher:
        api = HttpApi(publisher, KEY)
        transport = httpx.ASGITransport(app=api)
        headers = {"Authorization": f"Bearer {KEY}", "Idempotency-Key": "1"}
        async with httpx.AsyncClient(transport=transport, base_url="http://x/anywhere", headers=headers) as web:
            heard = asyncio.ensure_future(client.when.ignored.wait())
            answer = await web.post("/api/send", json={"cid": "ann", "type": "news", "payload": 1})
            assert (answer.status_code, answer.json()) == (200, {"ok": True})
            assert (await soon(heard))[:2] == ("news", 1)
            assert (await web.post("/api/none", json={})).status_code == 404
            assert (await web.get("/api/openapi.json")).json()["openapi"]
            large = await web.post(
                "/api/send", content=b"x" * (api.max_body + 1), headers={"Content-Type": "application/json"}
            )
            assert large.status_code == 413

            async def fails():
                raise WseError(ErrorCode.BROKER_UNAVAILABLE)

            publisher.flush, flush = fails, publisher.flush
            request = {"headers": {"Idempotency-Key": "2"}, "json": {"cid": "ann", "type": "news"}}
            assert (await web.post("/api/send", **request)).status_code == 503
            publisher.flush = flush
            answer = await web.post("/api/send", **request)  # it is done again
            assert (answer.status_code, "idempotent-replayed" in answer.headers) == (200, False)
    await server.close()


async def test_the_application_has_a_lifespan_and_takes_no_websockets(api):
    sent = []

    async def send(message):
        sent.append(message["type"])

    events = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

    async def receive():
        return next(events)

    async with asyncio.timeout(TIMEOUT):
        await api({"type": "lifespan"}, receive, send)
        await api({"type": "websocket"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete", "websocket.close"]
