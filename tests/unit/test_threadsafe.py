"""Other threads than that of the event loop: `server.threadsafe` serves them, the loop's own methods refuse them."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from inspect import signature
from queue import SimpleQueue

import pytest

from support.hosted import hosted
from support.net import TIMEOUT, make_server, soon
from support.programs import free_port, program
from wse import BlockingClient, ErrorCode, Inbox, WseClient, WseError, WseServer, current_call
from wse.server.threadsafe import Threadsafe
from wse.testing import connect


@pytest.fixture
def place():
    with hosted(make_server(conns_per_user=9)) as place:
        yield place


@pytest.fixture
def ann(place):
    with BlockingClient(place.url, identity="ann") as client:
        client.heard = SimpleQueue()
        client.on("news", client.heard.put)
        client.register("name", lambda payload: f"Ann {payload}")
        yield client


def failed(function, *args, **kwargs):
    with pytest.raises(WseError) as caught:
        function(*args, **kwargs)
    return caught.value


def heard(client):
    return client.heard.get(timeout=TIMEOUT)


# server.threadsafe


def test_its_methods_take_what_those_of_the_server_take():
    for name in ("send", "keep", "broadcast", "drop_client", "call", "stream", "devices", "online"):
        ours, theirs = signature(getattr(Threadsafe, name)), signature(getattr(WseServer, name))
        assert ours.parameters == theirs.parameters, name


def test_messages_are_sent_from_another_thread_in_order(place, ann):
    threadsafe = place.server.threadsafe
    assert place.server.threadsafe is threadsafe
    for number in range(100):
        if number % 2:
            threadsafe.send("ann", "news", number)
        else:
            threadsafe.broadcast("news", number)
    assert [heard(ann) for _ in range(100)] == list(range(100))
    threadsafe.send("ann", "news", 1, exclude="ann")
    threadsafe.broadcast("news", 2, exclude="ann")
    threadsafe.send("bob", "news", 3)
    threadsafe.send("ann", "news", 4, key="k")
    assert heard(ann) == 4


def test_calls_return_their_results_and_raise_their_errors(place, ann):
    threadsafe = place.server.threadsafe
    assert threadsafe.call("ann", "name", 1) == "Ann 1"
    assert threadsafe.call("ann", "name", 2, mode="all") == ["Ann 2"]
    assert failed(threadsafe.call, "bob", "name").code == ErrorCode.CONNECTION_MISSING
    assert failed(threadsafe.call, "ann", "nothing").code == ErrorCode.RP_NOT_REGISTERED
    assert failed(threadsafe.send, "ann", "news", object()).code == ErrorCode.MSG_PROCESSING_ERROR
    assert failed(threadsafe.broadcast, "~wse:hi").code == ErrorCode.PROTOCOL_VIOLATION


def test_rooms_are_entered_and_left(place, ann):
    room = place.server.threadsafe.room("lobby")
    room.send("news", "nobody hears it")
    room.add(place.server.clients["ann"])
    assert (room.name, room.members()) == ("lobby", {"ann"})
    room.send("news", "in")
    assert heard(ann) == "in"
    room.discard(place.server.clients["ann"])
    assert room.members() == frozenset()
    with pytest.raises(TypeError, match="a member of a room"):
        room.add("ann")


def test_its_rooms_take_what_those_of_the_server_take(place):
    ours, theirs = place.server.threadsafe.room("lobby"), place.server.room("lobby")
    names = {name for name in dir(theirs) if not name.startswith("_")} - {"name", "presence", "when"}
    for name in names:
        assert signature(getattr(ours, name)).parameters == signature(getattr(theirs, name)).parameters, name


def test_what_is_sent_for_later_is_kept():
    with hosted(make_server(inbox=Inbox())) as place:
        threadsafe = place.server.threadsafe
        assert threadsafe.keep("bob", "news", 1) == 1
        lobby = threadsafe.room("lobby")
        assert [lobby.keep("news", number, ttl=60) for number in range(3)] == [1, 2, 3]
        assert lobby.keep("news", 2, key="k") == lobby.keep("news", 2, key="k") == 4
        assert [message.payload for message in lobby.history(last=2)] == [2, 2]
        assert [message.n for message in lobby.history(after=1)] == [2, 3, 4]
        with BlockingClient(place.url, identity="bob") as bob:
            bob.heard = SimpleQueue()
            bob.on("news", bob.heard.put)
            (conn,) = place.server.clients["bob"].conns.values()
            lobby.add(conn, last=2)
            lobby.keep("news", "live")
            assert [heard(bob) for _ in range(3)] == [2, 2, "live"]
    assert failed(threadsafe.keep, "bob", "news").code == ErrorCode.NOT_STARTED


def test_a_stream_of_a_client_is_read_in_another_thread(place, ann):
    closed = threading.Event()

    def numbers(payload):
        try:
            yield from range(payload)
        finally:
            closed.set()

    ann.register("numbers", numbers)
    threadsafe = place.server.threadsafe
    assert list(threadsafe.stream("ann", "numbers", 3)) == [0, 1, 2]
    assert closed.wait(TIMEOUT)
    closed.clear()
    with threadsafe.stream("ann", "numbers", 1_000_000, window=2) as stream:
        assert next(stream) == 0
    assert closed.wait(TIMEOUT)
    closed.clear()
    stream = threadsafe.stream("ann", "numbers", 1_000_000)
    assert next(stream) == 0
    del stream  # the garbage collector closes it
    assert closed.wait(TIMEOUT)
    assert failed(next, threadsafe.stream("bob", "numbers")).code == ErrorCode.CONNECTION_MISSING


def test_a_stream_of_a_server_that_was_closed_ends_and_hides_no_error():
    with hosted(make_server()) as place:
        ann = BlockingClient(place.url, identity="ann")

        @ann.register("forever")
        def forever(payload):
            while True:
                yield 1

        with ann:
            stream = place.server.threadsafe.stream("ann", "forever")
            with suppress(KeyError), stream:
                assert next(stream) == 1
                place.run(place.server.close())
                assert failed(next, stream).code == ErrorCode.NOT_STARTED
                raise KeyError
    stream.close()


def test_presence_and_the_end_of_a_user(place, ann):
    threadsafe = place.server.threadsafe
    assert (threadsafe.online(), threadsafe.users()) == (1, ["ann"])
    (device,) = threadsafe.devices("ann")
    assert device.cid == "ann"
    assert (threadsafe.stats().connections, threadsafe.stats().identities) == (1, 1)
    threadsafe.drop_client("ann", "bye")
    assert ann.wait_closed().details["reason"] == "bye"


def test_anything_is_run_in_the_loop(place, ann):
    run = place.server.threadsafe.run
    (conn,) = place.server.clients["ann"].conns.values()
    run(conn.send, "news", "by conn")
    assert heard(ann) == "by conn"
    assert run(conn.call, "name", 3, timeout=TIMEOUT) == "Ann 3"
    assert run(lambda: threading.current_thread().name) == "test-server"


def test_many_threads_share_it(place, ann):
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda number: place.server.threadsafe.call("ann", "name", number), range(100)))
    assert results == [f"Ann {number}" for number in range(100)]


def test_a_server_that_does_not_run_says_so():
    server = make_server()
    for use in (server.threadsafe.online, lambda: server.threadsafe.broadcast("news")):
        assert failed(use).code == ErrorCode.NOT_STARTED
    with hosted(server):
        assert server.threadsafe.online() == 0
    for use in (server.threadsafe.online, lambda: server.threadsafe.broadcast("news")):
        assert failed(use).code == ErrorCode.NOT_STARTED
    assert failed(server.broadcast, "news").code == ErrorCode.NOT_STARTED


def test_a_loop_that_ends_ends_the_wait():
    server = make_server()
    started, waits = threading.Event(), threading.Event()

    async def main():
        await server.start()
        started.set()
        await asyncio.to_thread(waits.wait, TIMEOUT)
        await server.close()

    def forever():
        waits.set()
        return asyncio.Event().wait()

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(asyncio.run, main())
        assert started.wait(TIMEOUT)
        assert failed(server.threadsafe.run, forever).code == ErrorCode.NOT_STARTED
        running.result(TIMEOUT)


async def test_in_the_thread_of_the_loop_messages_leave_soon_and_nothing_waits():
    server = make_server()
    errors = []
    server.when.error(lambda error, conn: errors.append(error.code))
    async with connect(server, identity="ann") as client:
        received = asyncio.ensure_future(client.when.ignored.wait(TIMEOUT))
        await asyncio.sleep(0)
        server.threadsafe.send("ann", "news", object())
        server.threadsafe.send("ann", "news", 1)
        assert (await received)[:2] == ("news", 1)
        assert errors == [ErrorCode.MSG_PROCESSING_ERROR]
        error = failed(server.threadsafe.call, "ann", "name")
        assert error.code == ErrorCode.WRONG_THREAD
        assert "the event loop would wait for itself" in str(error)
        server.threadsafe.room("lobby").add("nobody")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(errors) == 2


SIGNALLED = """
import signal, sys
from wse import WseServer
server = WseServer(lambda auth: auth.accept("ann"), port=int(sys.argv[1]))
signal.signal(signal.SIGUSR1, lambda *_: server.threadsafe.broadcast("news", "signal"))
server.when.connected(lambda conn: print("connected", flush=True))
print("ready", flush=True)
server.run()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGUSR1")
def test_a_signal_handler_sends():
    port = free_port()
    with program("-c", SIGNALLED, str(port)) as running:
        running.wait_until_open(port)
        with BlockingClient(f"ws://127.0.0.1:{port}") as client:
            news = SimpleQueue()
            client.on("news", news.put)
            running.read_until("connected")
            os.kill(running.process.pid, signal.SIGUSR1)
            assert news.get(timeout=TIMEOUT) == "signal"
        assert running.stop(signal.SIGINT) == 0


# The loop's own methods.


def elsewhere(call):
    """Run a coroutine in another thread, in a loop of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, call).result(TIMEOUT)


def test_the_servers_methods_refuse_other_threads_and_name_the_remedy(place, ann):
    server = place.server
    identity = server.clients["ann"]
    (conn,) = identity.conns.values()
    room = server.room("lobby")

    async def users():
        return [user async for user in server.users()]

    uses = {
        "send": lambda: server.send("ann", "news", 1),
        "send to nobody": lambda: server.send("bob", "news", 1),
        "broadcast": lambda: server.broadcast("news", 1),
        "drop_client": lambda: server.drop_client("ann"),
        "call": lambda: elsewhere(server.call("ann", "name")),
        "online": lambda: elsewhere(server.online()),
        "devices": lambda: elsewhere(server.devices("ann")),
        "users": lambda: elsewhere(users()),
        "stream": lambda: elsewhere(anext(server.stream("ann", "name"))),
        "close": lambda: elsewhere(server.close()),
        "start": lambda: elsewhere(server.start()),
        "stats": server.stats,
        "room.send": lambda: room.send("news", 1),
        "room.add": lambda: room.add(conn),
        "room.discard": lambda: room.discard(conn),
        "room.members": lambda: elsewhere(room.members()),
        "conn.send": lambda: conn.send("news", 1),
        "conn.call": lambda: elsewhere(conn.call("name")),
        "conn.stream": lambda: elsewhere(anext(conn.stream("name"))),
        "conn.drop": conn.drop,
        "conn.drain": lambda: elsewhere(conn.drain()),
        "conn.flush": lambda: elsewhere(conn.flush()),
        "conn.extend": lambda: conn.extend(None),
        "conn.queued": lambda: conn.queued,
        "conn.undelivered": conn.undelivered,
        "identity.send": lambda: identity.send("news", 1),
        "identity.drop": identity.drop,
        "identity.call": lambda: elsewhere(identity.call("name")),
    }
    for name, use in uses.items():
        error = failed(use)
        assert (name, error.code) == (name, ErrorCode.WRONG_THREAD)
        assert error.details == {"use": "server.threadsafe"}
        assert str(error) == (
            "wse.wrong-thread: this method belongs to the thread of the event loop; in other threads, use "
            "server.threadsafe"
        )
    server.threadsafe.send("ann", "news", "all is well")
    assert heard(ann) == "all is well"


@pytest.mark.parametrize("method", ["accept", "refuse", "quest"])
async def test_a_handshake_is_decided_in_the_loop(method):
    seen = []

    async def decide(auth):
        with pytest.raises(WseError) as caught:
            await asyncio.to_thread(getattr(auth, method), *([] if method == "refuse" else ["ann"]))
        seen.append(caught.value.code)
        auth.refuse("decided")

    server = make_server(decide)
    if method == "quest":
        server.use_challenge(decide)
    with pytest.raises(WseError) as caught:
        async with connect(server):
            pass
    assert (seen, caught.value.details["reason"]) == ([ErrorCode.WRONG_THREAD], "decided")


async def test_progress_may_be_told_in_any_thread():
    async with make_server() as server:

        @server.register("job", thread=True)
        def job(conn, payload):
            for percent in (50, 100):
                current_call().progress(percent)
            current_call().progress(object())
            return "done"

        heard, errors = [], []
        server.when.error(lambda error, conn: errors.append(error.code))
        async with connect(server) as client:
            assert await client.call("job", on_progress=heard.append) == "done"
    assert heard == [50, 100]
    assert errors == [ErrorCode.MSG_PROCESSING_ERROR]


async def test_the_clients_methods_refuse_other_threads(listen):
    place = await listen(make_server())
    async with WseClient(place.url) as client:
        uses = {
            "send": lambda: client.send("news"),
            "call": lambda: asyncio.run(client.call("name")),
            "stream": lambda: asyncio.run(anext(client.stream("name"))),
            "flush": lambda: asyncio.run(client.flush()),
            "connect": lambda: asyncio.run(client.connect()),
            "jump": lambda: asyncio.run(client.jump(place.url)),
            "close": lambda: asyncio.run(client.close()),
            "wait_ready": lambda: asyncio.run(client.wait_ready()),
        }
        for name, use in uses.items():
            error = await soon(asyncio.to_thread(failed, use))
            assert (name, error.code) == (name, ErrorCode.WRONG_THREAD)
            assert "BlockingClient" in str(error)
    assert (await asyncio.to_thread(failed, client.send, "news")).code == ErrorCode.CLIENT_NOT_READY


def test_a_server_and_a_client_can_go_on_in_another_thread():
    server = make_server()
    client = WseClient("ws://127.0.0.1", identity="ann")

    async def once():
        async with server:
            await client.jump(server.url)
            news = asyncio.ensure_future(client.when.ignored.wait(TIMEOUT))
            await asyncio.sleep(0)
            server.broadcast("news", 1)
            await news
            client.send("bye")
            await client.close()

    for _ in range(2):
        elsewhere(once())
    asyncio.run(once())
