"""wse.transports.awaited and asgi when a web server misbehaves or ends, which no real one does on demand."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest

from support.net import JSON, ServerLog, accept_all, hi, soon
from wse import ErrorCode, Heartbeat, WseError, WseServer
from wse.core.packed import Packed
from wse.transports import awaited
from wse.transports.awaited import HIGH_WATER, AwaitedLink
from wse.transports.tcp import FAST_HIGH_WATER, UNSENT


@pytest.fixture(autouse=True)
def long_timeouts(monkeypatch):
    """Nothing is cut, however busy the machine is."""
    monkeypatch.setattr(awaited, "CLOSE_TIMEOUT", 60)
    monkeypatch.setattr(awaited, "SHUTDOWN_TIMEOUT", 60)


@pytest.fixture
def short_timeouts(long_timeouts, monkeypatch):
    """For tests of a peer that says nothing more."""
    monkeypatch.setattr(awaited, "CLOSE_TIMEOUT", 0.02)
    monkeypatch.setattr(awaited, "SHUTDOWN_TIMEOUT", 0.02)


class Session:
    """It logs the calls of a link, and runs a test's function for each message."""

    def __init__(self, link):
        self.link = link
        self.log = []
        self.on_message = lambda message: None

    def receive(self, message):
        self.log.append(message)
        self.on_message(message)

    def violated(self, code, problem):
        self.log.append(("violated", code, problem))

    def closed(self, code, reason):
        self.log.append(("closed", code, reason))

    def writable(self, writable):
        self.log.append(("writable", writable))

    def close(self, code, reason):
        self.link.close(code, reason)


class Link(AwaitedLink):
    """The side of a framework, played by the test."""

    def __init__(self, limit=100, transport=None):
        super().__init__(limit, "10.0.0.1", transport)
        self.incoming = asyncio.Queue()
        self.sent = []
        self.open = asyncio.Event()  # sends return
        self.open.set()
        self.error = None
        self.sending = False
        self.given_up = []  # messages whose sending was cancelled
        self.cuts = 0

    def _receive(self):
        return self.incoming.get()

    def _read(self, event):
        return event

    async def _send(self, message):
        if self.error is not None:
            raise self.error
        assert not self.sending, "a framework takes one message at a time"
        self.sending = True
        try:
            await self.open.wait()
            self.sent.append(message)
        except asyncio.CancelledError:
            self.given_up.append(message)
            raise
        finally:
            self.sending = False

    async def _send_close(self, code, reason):
        await self._send((code, reason))

    def _cut(self):
        self.cuts += 1

    def start(self):
        self.session = session = Session(self)
        self.task = asyncio.ensure_future(self.run(lambda link: session))
        return session

    async def turn(self, times=5):
        for _ in range(times):
            await asyncio.sleep(0)


class Clock:
    """The time of the event loop, which passes when the test says so."""

    def __init__(self, now):
        self.now = now

    def __call__(self):
        return self.now


@pytest.fixture
async def clock(monkeypatch):
    clock = Clock(1000.0)
    monkeypatch.setattr(asyncio.get_running_loop(), "time", clock)
    monkeypatch.setattr(awaited, "CLOSE_TIMEOUT", 7)
    monkeypatch.setattr(awaited, "CLOSE_LIMIT", 60)
    return clock


class Transport:
    """A framework's transport, and how many bytes wait in it."""

    def __init__(self):
        self.marks = []
        self.waiting = 1000
        self.takes = 0  # bytes that the peer takes between two looks

    def set_write_buffer_limits(self, high):
        self.marks.append(high)

    def get_extra_info(self, name):
        return None

    def get_write_buffer_size(self):
        self.waiting -= self.takes
        return self.waiting


async def test_what_a_session_writes_leaves_in_order_and_the_close_last():
    link = Link()
    session = link.start()
    session.on_message = lambda message: (link.write("a"), link.write_utf8("ü".encode()))
    link.incoming.put_nowait("go")
    await link.turn()
    link.write(b"b")
    link.write_shared(Packed(b"c", utf8=True))
    link.close(4001, "bye")
    link.close(4002, "again")
    link.write("late")
    link.write_utf8(b"late")
    await link.turn()
    assert link.sent == ["a", "ü", b"b", "c", (4001, "bye")]
    link.incoming.put_nowait((4001, ""))
    await soon(link.task)
    assert session.log == ["go", ("closed", 4001, "")]
    assert link.remote_addr == "10.0.0.1"


async def test_a_message_without_an_answer_does_not_keep_back_what_is_written_later():
    link = Link()
    session = link.start()
    link.incoming.put_nowait("go")
    await link.turn()
    assert session.log == ["go"]
    link.write("later")
    await link.turn()
    assert link.sent == ["later"]
    link.incoming.put_nowait((1000, ""))
    await soon(link.task)


@pytest.mark.parametrize("when", ["opened", "answering", "later"])
async def test_messages_are_handed_to_the_framework_one_at_a_time(when):
    link = Link()
    link.open.clear()

    def write(*_):
        for message in ("a", "b", "c"):
            link.write(message)

    session = Session(link)
    link.task = asyncio.ensure_future(link.run(lambda link: (when == "opened" and write(), session)[1]))
    await link.turn()
    if when == "answering":
        session.on_message = write
        link.incoming.put_nowait("go")
    elif when == "later":
        write()
    await link.turn()
    link.open.set()
    await link.turn()
    assert link.sent == ["a", "b", "c"]
    link.incoming.put_nowait((1000, ""))
    await soon(link.task)


async def test_a_close_in_answer_to_a_message_is_sent_at_once_and_once():
    link = Link()
    session = link.start()
    session.on_message = lambda message: link.close(4001, "bye")
    link.incoming.put_nowait("go")
    await link.turn()
    assert link.sent == [(4001, "bye")]
    link.incoming.put_nowait("under way")
    await link.turn()
    assert link.sent == [(4001, "bye")]
    link.incoming.put_nowait((4001, ""))
    await soon(link.task)
    assert session.log == ["go", "under way", ("closed", 4001, "")]


async def test_a_close_while_the_session_is_opened_needs_no_message():
    link = Link()
    link.task = asyncio.ensure_future(link.run(lambda link: (link.close(1000, "no"), Session(link))[1]))
    await link.turn()
    assert link.sent == [(1000, "no")]
    link.incoming.put_nowait((1000, ""))
    await soon(link.task)


async def test_a_session_that_cannot_be_opened_is_the_framework_s_error():
    link = Link()

    def fail(link):
        raise WseError(ErrorCode.IDENTIFY_HANDLER_MISSING)

    with pytest.raises(WseError):
        await link.run(fail)
    link.abort()
    await link.turn()


async def test_a_message_that_comes_while_another_is_sent_is_heard_and_answered():
    link = Link()
    session = link.start()
    await link.turn()
    link.open.clear()
    link.write("stuck")
    await link.turn()
    session.on_message = link.write
    link.incoming.put_nowait("question")
    await link.turn()
    assert session.log == ["question"]
    link.open.set()
    await link.turn()
    assert link.sent == ["stuck", "question"]
    link.incoming.put_nowait((1000, ""))
    await soon(link.task)


async def test_above_the_high_water_mark_the_session_is_held_back_until_all_is_sent():
    link = Link()
    session = link.start()
    await link.turn()
    link.open.clear()
    for _ in range(3):
        link.write("x" * HIGH_WATER)
    assert session.log == [("writable", False)]
    assert link.buffered == 3 * HIGH_WATER
    await link.turn()
    assert session.log == [("writable", False)]
    link.open.set()
    await link.turn()
    assert session.log == [("writable", False), ("writable", True)]
    assert link.buffered == 0
    link.write("y")
    await link.turn()
    assert session.log == [("writable", False), ("writable", True)]
    link.write("x" * (HIGH_WATER + 1))
    assert session.log == [("writable", False), ("writable", True), ("writable", False)]
    link.incoming.put_nowait((1000, ""))
    await soon(link.task)


async def test_at_the_high_water_mark_the_session_goes_on():
    link = Link()
    session = link.start()
    await link.turn()
    link.write("x" * HIGH_WATER)
    assert session.log == []
    link.write("x")
    assert session.log == [("writable", False)]
    await link.turn()
    link.incoming.put_nowait((1000, ""))
    await soon(link.task)


@pytest.mark.parametrize(
    ("message", "fits"),
    [
        ("x" * 100, True),
        ("x" * 101, False),
        ("é" * 50, True),
        ("é" * 51, False),
        (b"x" * 100, True),
        (b"x" * 101, False),
    ],
)
async def test_the_limit_counts_bytes(message, fits):
    link = Link(limit=100)
    session = link.start()
    link.incoming.put_nowait(message)
    link.incoming.put_nowait((1000, ""))
    await soon(link.task)
    too_large = ("violated", 1009, "a message is larger than 100 bytes")
    assert session.log == [message if fits else too_large, ("closed", 1000, "")]


async def test_when_a_send_fails_what_the_peer_had_sent_before_still_counts():
    link = Link()
    session = link.start()
    await link.turn()
    link.error = OSError("gone")
    link.write("to nobody")
    link.write("to nobody")
    await link.turn()
    link.write("to nobody")
    link.incoming.put_nowait("last words")
    link.incoming.put_nowait((4001, "bye"))
    await soon(link.task)
    assert session.log == ["last words", ("closed", 4001, "bye")]
    assert link.buffered == 0


@pytest.mark.parametrize("failing", ["message", "close"])
async def test_after_a_send_has_failed_nothing_more_is_sent(failing):
    link = Link()
    session = link.start()
    await link.turn()
    link.error = OSError("gone")
    if failing == "message":
        link.write("to nobody")
        link.write("x" * (HIGH_WATER + 1))
    else:
        link.close(1000, "to nobody")
    await link.turn()
    link.error = None
    link.incoming.put_nowait("last words")
    await link.turn()
    link.incoming.put_nowait((4001, "bye"))
    await soon(link.task)
    assert link.sent == []
    assert ("writable", True) not in session.log
    assert session.log[-2:] == ["last words", ("closed", 4001, "bye")]


@pytest.mark.usefixtures("short_timeouts")
async def test_when_a_send_fails_and_the_framework_tells_nothing_more_the_connection_is_cut():
    link = Link()
    session = link.start()
    await link.turn()
    link.error = OSError("gone")
    link.write("to nobody")
    await soon(link.task)
    assert session.log == [("closed", 1006, "")]
    assert link.cuts == 1


@pytest.mark.usefixtures("short_timeouts")
async def test_when_the_close_fails_the_connection_is_cut():
    link = Link()
    session = link.start()
    await link.turn()
    link.error = OSError("gone")
    link.close(1000, "bye")
    await soon(link.task)
    assert session.log == [("closed", 1006, "")]


@pytest.mark.parametrize(("code", "timeout"), [(1000, "CLOSE_TIMEOUT"), (1012, "SHUTDOWN_TIMEOUT")])
async def test_a_peer_that_does_not_answer_the_close_is_cut(code, timeout, monkeypatch):
    monkeypatch.setattr(awaited, "CLOSE_TIMEOUT", 60)
    monkeypatch.setattr(awaited, "SHUTDOWN_TIMEOUT", 60)
    monkeypatch.setattr(awaited, timeout, 0.02)
    link = Link()
    session = link.start()
    await link.turn()
    link.close(code, "bye")
    await soon(link.task)
    assert link.sent == [(code, "bye")]
    assert session.log == [("closed", 1006, "")]
    assert link.cuts == 1
    assert link.task.cancelling() == 0


@pytest.mark.usefixtures("short_timeouts")
async def test_a_close_behind_a_message_that_is_stuck_does_not_wait_for_ever():
    link = Link()
    session = link.start()
    await link.turn()
    link.open.clear()
    link.write("stuck")
    await link.turn()
    link.close(1000, "bye")
    await soon(link.task)
    assert link.sent == []
    assert session.log == [("closed", 1006, "")]


@pytest.mark.parametrize("takes", [0, 1])
async def test_a_peer_that_takes_what_waits_in_the_transport_has_longer_for_its_close_but_not_for_ever(clock, takes):
    link = Link(transport=Transport())
    session = link.start()
    await link.turn()
    link.close(1000, "bye")
    await link.turn()
    link._transport.takes = takes
    for _ in range(8):  # of seven seconds
        assert link.cuts == 0
        clock.now += 7
        await link.turn()
        if not takes:
            break
    else:
        assert link.cuts == 0
        clock.now += 4
        await link.turn()
    assert link.cuts == 1
    await link.task
    assert session.log == [("closed", 1006, "")]


async def test_a_peer_whose_web_server_takes_messages_has_longer_for_its_close(clock):
    link = Link()
    session = link.start()
    await link.turn()
    link.open.clear()
    for message in ("a", "b", "c", "d"):
        link.write(message)
    await link.turn()
    link.close(1000, "bye")
    for taken in (["a"], ["a", "b"]):
        link.open.set()
        link.open.clear()
        await link.turn()
        clock.now += 7
        await link.turn()
        assert (link.sent, link.cuts) == (taken, 0)
    clock.now += 7
    await link.turn()
    assert (link.sent, link.cuts) == (["a", "b"], 1)
    await link.task
    assert session.log == [("closed", 1006, "")]


async def test_a_receiver_that_shows_to_be_fast_is_held_back_later_where_the_transport_is_out_of_reach_too(clock):
    link = Link()
    session = link.start()
    await link.turn()
    for _ in range(16):
        link.write("x" * (HIGH_WATER + 1))
        await link.turn()
    session.log.clear()
    link.write("x" * FAST_HIGH_WATER)
    assert session.log == []
    await link.turn()
    assert len(link.sent) == 17
    link.incoming.put_nowait((1000, ""))
    await link.task


@pytest.mark.skipif(not hasattr(socket, "TCP_NOTSENT_LOWAT"), reason="this system has no such bound")
async def test_what_waits_in_the_kernel_is_bounded_where_the_transport_has_a_socket(monkeypatch):
    with socket.socket() as sock:
        monkeypatch.setattr(Transport, "get_extra_info", lambda self, name: {"socket": sock}[name])
        Link(transport=Transport())
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == UNSENT


async def test_a_receiver_that_shows_to_be_fast_is_held_back_later(clock):
    link = Link(transport=Transport())
    session = link.start()
    await link.turn()
    assert link._transport.marks == [HIGH_WATER]
    for _ in range(16):
        link.write("x" * (HIGH_WATER + 1))
        clock.now += 0.04
        await link.turn()
    assert link._transport.marks == [HIGH_WATER, FAST_HIGH_WATER]
    session.log.clear()
    link.write("x" * FAST_HIGH_WATER)
    assert session.log == []
    link.write("x")
    assert session.log == [("writable", False)]
    clock.now += 1
    await link.turn()
    assert link._transport.marks == [HIGH_WATER, FAST_HIGH_WATER, HIGH_WATER]
    link.incoming.put_nowait((1000, ""))
    await link.task


async def test_abort_ends_the_connection_and_not_the_framework_s_task():
    link = Link()
    session = link.start()
    await link.turn()
    link.abort()
    link.abort()
    link.write("x" * (HIGH_WATER + 1))
    link.close(1000, "late")
    assert link.buffered == 0
    await soon(link.task)
    assert session.log == [("closed", 1006, "")]
    assert link.task.cancelling() == 0
    assert (link.sent, link.cuts) == ([], 1)


async def test_after_the_end_nothing_is_written_or_cut():
    link = Link()
    session = link.start()
    link.incoming.put_nowait((1000, ""))
    await soon(link.task)
    link.write("late")
    link.close(1000, "late")
    link.abort()
    await link.turn()
    assert (link.sent, link.buffered, link.cuts) == ([], 0, 0)
    assert session.log == [("closed", 1000, "")]


async def test_a_message_that_is_stuck_is_given_up_when_the_connection_ends():
    link = Link()
    link.start()
    await link.turn()
    link.open.clear()
    link.write("stuck")
    await link.turn()
    link.incoming.put_nowait((1000, ""))
    await soon(link.task)
    await link.turn()
    assert (link.sent, link.given_up) == ([], ["stuck"])


async def test_an_abort_from_within_ends_even_a_task_that_need_not_wait():
    link = Link()
    session = link.start()
    session.on_message = lambda message: link.abort()
    link.incoming.put_nowait("end")
    link.incoming.put_nowait((1000, ""))

    async def framework():
        await link.task
        await asyncio.sleep(0)

    await soon(framework())
    assert session.log == ["end", ("closed", 1000, "")]
    assert link.task.cancelling() == 0


async def test_an_abort_takes_the_place_of_a_close_that_is_about_to_be_sent():
    link = Link()
    session = link.start()
    await link.turn()
    link.close(1000, "bye")
    asyncio.get_running_loop().call_soon(link.abort)
    await soon(link.task)
    assert session.log == [("closed", 1006, "")]
    assert link.task.cancelling() == 0


async def test_a_write_just_before_the_end_is_dropped():
    link = Link()
    session = link.start()
    await link.turn()
    link.incoming.put_nowait((1000, ""))
    session.closed = lambda *close: None
    link._wake()
    link._task = None
    link._start_sender()
    await soon(link.task)
    await link.turn()
    assert link.sent == []


@pytest.mark.parametrize("stuck", [False, True])
async def test_a_web_server_that_cancels_a_connection_still_says_goodbye(stuck):
    link = Link()
    session = link.start()
    await link.turn()
    if stuck:
        link.open.clear()
        link.write("stuck")
        await link.turn()
    link.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await soon(link.task)
    assert link.sent == ([] if stuck else [(1012, "wse.by-server")])
    assert session.log == [("closed", 1006, "")]


@pytest.mark.usefixtures("short_timeouts")
async def test_a_web_server_that_cancels_a_connection_and_takes_no_close_is_not_kept_waiting():
    link = Link()
    session = link.start()
    await link.turn()
    link.open.clear()
    link.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await soon(link.task)
    assert (link.sent, link.given_up) == ([], [(1012, "wse.by-server")])
    assert session.log == [("closed", 1006, "")]


async def test_a_cancellation_from_outside_is_not_mistaken_for_our_own():
    link = Link()
    session = link.start()
    await link.turn()
    link.abort()
    link.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await soon(link.task)
    assert session.log == [("closed", 1006, "")]


# ASGI.


class Web:
    """An ASGI server that the test directs."""

    def __init__(self, app, *, kind="websocket", **scope):
        self.incoming = asyncio.Queue()
        self.outgoing = asyncio.Queue()
        self.scope = {"type": kind, "path": "/", "headers": [], "query_string": b"", "subprotocols": [JSON], **scope}
        if kind == "websocket":
            self.feed("websocket.connect")
        self.task = asyncio.ensure_future(app(self.scope, self.incoming.get, self.outgoing.put))

    def feed(self, type, **event):
        self.incoming.put_nowait({"type": type, **event})

    def hear(self):
        return soon(self.outgoing.get())

    async def accepted(self):
        assert (await self.hear())["type"] == "websocket.accept"
        return self

    async def message(self):
        return json.loads((await self.hear())["text"])


async def test_a_connection_starts_the_server_when_there_is_no_lifespan():
    requests = []
    server = WseServer(lambda auth: (requests.append(auth.request), auth.accept("ann"))[1])
    log = ServerLog(server)
    web = await Web(server.asgi, headers=[(b"cookie", b"a=b"), (b"x-name", b"\xe9")], path="/x y").accepted()
    web.feed("websocket.receive", text=hi())
    assert (await web.message())[0] == "~wse:welcome"
    web.feed("websocket.receive", text=None, bytes=b'["binary",1]')
    await log.until("ignored", "ann", "binary", 1)
    web.feed("websocket.receive")
    web.feed("websocket.disconnect")
    await soon(web.task)
    (request,) = requests
    assert (request.path, request.query, request.remote_addr) == ("/x%20y", {}, "")
    assert request.cookies == {"a": "b"}
    assert request.headers["X-Name"] == "é"
    assert request.native is web.scope


async def test_connections_of_a_web_server_are_not_pinged_by_us():
    server = WseServer(accept_all, heartbeat=Heartbeat(interval=0.01, timeout=0.01))
    web = await Web(server.asgi).accepted()
    web.feed("websocket.receive", text=hi())
    await web.message()
    await asyncio.sleep(0.1)  # ten times as long as a silent peer would have
    assert not web.task.done()
    web.feed("websocket.disconnect")
    await soon(web.task)
    await server.close()


@pytest.mark.parametrize("scope", [{}, {"extensions": {"websocket.http.response": {}}}], ids=["close", "response"])
async def test_a_refused_origin_is_refused_and_nothing_more(scope):
    server = WseServer(accept_all)
    web = Web(server.asgi, headers=[(b"origin", b"https://evil.example")], **scope)
    await soon(web.task)
    said = [web.outgoing.get_nowait()["type"] for _ in range(web.outgoing.qsize())]
    assert said in (["websocket.close"], ["websocket.http.response.start", "websocket.http.response.body"])
    await server.close()


@pytest.mark.parametrize(
    ("event", "close"),
    [
        ({"code": 4001, "reason": "bye"}, (4001, "bye")),
        ({"code": 4001, "reason": None}, (4001, "")),
        ({"code": 4001}, (4001, "")),
        ({"code": 1005, "reason": ""}, (1005, "")),
        ({"code": 1005}, (1006, "")),
        ({"code": 1006}, (1006, "")),
        ({}, (1006, "")),
    ],
)
async def test_what_a_server_says_of_a_disconnect(event, close):
    server = WseServer(accept_all)
    log = ServerLog(server)
    web = await Web(server.asgi).accepted()
    web.feed("websocket.receive", text=hi())
    await web.message()
    web.feed("websocket.disconnect", **event)
    await soon(web.task)
    assert log.all("left") == [("ann", *close)]


@pytest.mark.usefixtures("short_timeouts")
@pytest.mark.parametrize("extensions", [{}, {"extensions": {}}, {"extensions": None}])
async def test_another_path_is_refused_with_what_the_server_has(extensions):
    server = WseServer(accept_all, path="/ws")
    web = Web(server.asgi, path="/other", **extensions)
    assert await web.hear() == {"type": "websocket.close"}
    await soon(web.task)
    web = Web(server.asgi, path="/other", extensions={"websocket.http.response": {}})
    start = await web.hear()
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 404)
    assert await web.hear() == {"type": "websocket.http.response.body", "body": b"404 Not Found\n"}
    await soon(web.task)
    await Web(server.asgi, path="/ws").accepted()
    await soon(server.close())


async def test_a_plain_request_is_told_to_upgrade():
    web = Web(WseServer(accept_all).asgi, kind="http")
    start = await web.hear()
    assert start["status"] == 426
    assert (b"upgrade", b"websocket") in start["headers"]
    assert await web.hear() == {"type": "http.response.body", "body": b"426 Upgrade Required\n"}
    await soon(web.task)


async def test_the_lifespan_starts_and_stops_the_server():
    server = WseServer(accept_all)
    lifespan = Web(server.asgi, kind="lifespan")
    lifespan.feed("lifespan.startup")
    assert await lifespan.hear() == {"type": "lifespan.startup.complete"}
    web = await Web(server.asgi).accepted()
    web.feed("websocket.receive", text=hi())
    await web.message()
    lifespan.feed("lifespan.something-new")
    lifespan.feed("lifespan.shutdown")
    assert await web.hear() == {"type": "websocket.close", "code": 1012, "reason": "wse.by-server"}
    web.feed("websocket.disconnect", code=1012)
    assert await lifespan.hear() == {"type": "lifespan.shutdown.complete"}
    await soon(asyncio.gather(web.task, lifespan.task))
    assert server.clients == {}


def test_a_server_can_start_again_in_another_event_loop():
    server = WseServer(accept_all)

    async def life():
        lifespan = Web(server.asgi, kind="lifespan")
        lifespan.feed("lifespan.startup")
        await lifespan.hear()
        web = await Web(server.asgi).accepted()
        web.feed("websocket.receive", text=hi())
        assert (await web.message())[0] == "~wse:welcome"
        web.feed("websocket.disconnect", code=1000, reason="")
        await soon(web.task)
        lifespan.feed("lifespan.shutdown")
        await soon(lifespan.task)

    asyncio.run(life())
    asyncio.run(life())


async def test_without_an_identify_handler_the_application_does_not_start():
    server = WseServer()
    lifespan = Web(server.asgi, kind="lifespan")
    lifespan.feed("lifespan.startup")
    failed = await lifespan.hear()
    assert failed["type"] == "lifespan.startup.failed"
    assert ErrorCode.IDENTIFY_HANDLER_MISSING in failed["message"]
    await soon(lifespan.task)
    with pytest.raises(WseError) as caught:
        await soon(Web(server.asgi).task)
    assert caught.value.code == ErrorCode.IDENTIFY_HANDLER_MISSING
