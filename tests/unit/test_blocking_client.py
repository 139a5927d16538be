"""The client for programs without asyncio: every method waits, handlers may block, and it ends cleanly."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from inspect import signature
from queue import SimpleQueue

import pytest

from support.hosted import hosted
from support.net import TIMEOUT, make_server
from support.programs import PATIENCE, program, unmeasured
from wse import BlockingClient, ClientStatus, ErrorCode, Inbox, WseClient, WseError, current_call


@pytest.fixture
def place():
    server = make_server(conns_per_user=9)
    ended = SimpleQueue()

    @server.register("add")
    def add(conn, payload):
        return payload["a"] + payload["b"]

    @server.register("count")
    async def count(conn, payload):
        try:
            for number in range(payload):
                yield number
        finally:
            ended.put("closed")

    @server.register("sum", upload=True)
    async def total(conn, payload, items):
        result = 0
        async for item in items:
            result += item
            current_call().progress(result)
        return result

    @server.register("ask back")
    async def ask_back(conn, payload):
        return await conn.call("answer", payload)

    @server.register("never")
    async def never(conn, payload):
        ended.put("began")
        try:
            await asyncio.Event().wait()
        finally:
            ended.put("cancelled")

    @server.register("refuse")
    def refuse(conn, payload):
        raise WseError("app.no", {"why": payload})

    @server.channel.on("echo")
    def echo(conn, payload):
        conn.send("echo", payload)

    @server.when.disconnected
    def disconnected(conn, code, reason):
        ended.put((code, reason))

    server.unregister("never")
    server.register("never", never, cancel=True)
    with hosted(server) as place:
        place.events = ended
        yield place


@pytest.fixture
def client(place):
    with BlockingClient(place.url, identity="ann") as client:
        yield client


def failed(function, *args, **kwargs):
    with pytest.raises(WseError) as caught:
        function(*args, **kwargs)
    return caught.value


def test_it_takes_the_arguments_of_the_client_and_of_its_methods():
    assert signature(BlockingClient) == signature(WseClient)
    for name in ("call", "send", "flush", "connect", "jump", "close", "wait_ready", "wait_closed", "challenge"):
        ours, theirs = signature(getattr(BlockingClient, name)), signature(getattr(WseClient, name))
        assert ours == theirs, name
    ours, theirs = signature(BlockingClient.stream), signature(WseClient.stream)
    assert ours.parameters == theirs.parameters


def public(thing):
    return {name for name in dir(thing) if not name.startswith("_")}


def test_it_lacks_nothing_of_the_client(place, client):
    of_channel = {"on", "once", "off"}
    theirs = WseClient(place.url)
    assert public(theirs) - {"channel"} == public(client) - of_channel
    assert public(theirs.when) == public(client.when)
    room, ours = theirs.room("lobby"), client.room("lobby")
    assert public(room) == public(ours)
    assert public(room.presence) == public(ours.presence)
    assert public(room.presence.when) == public(ours.presence.when)
    for one, other in (room, ours), (room.presence, ours.presence):
        for name in public(one) - {"name", "presence", "when", "members", "device"}:
            assert signature(getattr(one, name)).parameters == signature(getattr(other, name)).parameters, name


def test_a_stream_of_a_client_that_was_closed_ends_and_starts_nothing(place):
    client = BlockingClient(place.url, identity="ann")
    with client:
        stream = client.stream("count", 1000)
        assert next(stream) == 0
    threads = threading.active_count()
    assert failed(next, stream).code == ErrorCode.CLIENT_NOT_READY
    stream.close()
    del stream
    assert threading.active_count() == threads
    assert client.status is ClientStatus.OFFLINE
    client.stream("count", 1000).close()  # nothing was begun
    assert threading.active_count() == threads


async def test_a_stream_cannot_be_read_in_the_loop_of_its_client(place):
    results = SimpleQueue()
    with BlockingClient(place.url, identity="ann") as client:
        stream = client.stream("count", 1000)
        assert next(stream) == 0

        async def read(payload):
            results.put(failed(next, stream).code)

        client.on("echo", read)
        client.send("echo")
        assert results.get(timeout=TIMEOUT) == ErrorCode.WRONG_THREAD
        assert next(stream) == 1


def test_it_enters_rooms_and_shows_states_there():
    server = make_server()
    server.room("lobby", presence=True)
    server.room_guard(lambda conn, name: name == "lobby")
    changes, heard = SimpleQueue(), SimpleQueue()
    with (
        hosted(server) as place,
        BlockingClient(place.url, identity="ann") as ann,
        BlockingClient(place.url, identity="bob") as bob,
    ):
        room = ann.room("lobby")
        room.presence.when.changed(changes.put)
        room.join()
        other = bob.room("lobby")
        other.join(TIMEOUT)
        other.presence.set({"typing": True}, ttl=60)
        device = other.presence.device
        assert changes.get(timeout=TIMEOUT) == {"bob": {device: {"typing": True}}}
        assert room.presence.members == {"bob": {device: {"typing": True}}}
        other.presence.clear()
        assert changes.get(timeout=TIMEOUT) == {"bob": {device: None}}
        ann.on("news", heard.put)
        place.server.threadsafe.room("lobby").send("news", 1)
        assert heard.get(timeout=TIMEOUT) == 1
        room.leave()
        assert place.server.threadsafe.room("lobby").members() == {"bob"}
        assert failed(ann.room("cellar").join).code == ErrorCode.NOT_AUTHORIZED
        assert repr(room) == "<BlockingClientRoom lobby>"


def test_its_inbox_tells_what_was_kept_and_what_is_gone():
    with hosted(make_server(inbox=Inbox(messages=3))) as place:
        keep = place.server.threadsafe.keep
        assert [keep("ann", "task", number) for number in range(5)] == [1, 2, 3, 4, 5]
        client = BlockingClient(place.url, identity="ann", inbox="desk")
        heard, lost = SimpleQueue(), SimpleQueue()
        client.on("task", lambda payload: heard.put((payload, client.kept.n)))
        client.when.inbox_lost(lost.put)
        with client:
            assert [heard.get(timeout=TIMEOUT) for _ in range(3)] == [(2, 3), (3, 4), (4, 5)]
            assert lost.get(timeout=TIMEOUT) == 2
            assert client.kept is None


def test_a_plain_listener_of_a_kept_message_may_close_the_client():
    with hosted(make_server(inbox=Inbox())) as place:
        place.server.threadsafe.keep("ann", "task", 1)
        client, times = BlockingClient(place.url, identity="ann", inbox="desk"), SimpleQueue()

        @client.on("task")
        def task(payload):
            times.put(time.monotonic())
            client.close()
            times.put(time.monotonic())

        client.connect()
        start, end = times.get(timeout=TIMEOUT), times.get(timeout=TIMEOUT)
        assert end - start < 0.9
        assert client.status is ClientStatus.OFFLINE


def test_entering_connects_and_leaving_closes(place):
    client = BlockingClient(place.url, identity="ann", meta={"device": "phone"})
    assert (client.status, client.url) == (ClientStatus.IDLE, place.url)
    with client as entered:
        assert entered is client
        assert client.status is ClientStatus.READY
        assert client.wait_ready(TIMEOUT) == {"hello": "ann"}
        (conn,) = place.server.clients["ann"].conns.values()
        assert conn.meta == {"device": "phone"}
        assert (client.gave_up, client.recovered, client.rtt) == (None, False, None)
        assert client.protocol.name == "wse-default-json"
    assert place.next_event() == (1000, "wse.by-client")
    assert client.status is ClientStatus.OFFLINE
    assert not [thread for thread in threading.enumerate() if thread.name == "wse-client"]


def test_it_calls_and_raises_what_the_procedure_raised(client):
    assert client.call("add", {"a": 2, "b": 3}) == 5
    error = failed(client.call, "refuse", "late")
    assert (error.code, error.details["why"]) == ("app.no", "late")
    assert failed(client.call, "unknown").code == ErrorCode.RP_NOT_REGISTERED
    assert failed(client.call, "never", timeout=0.01).code == ErrorCode.RP_TIMEOUT


def test_messages_reach_listeners_in_order(client):
    heard = SimpleQueue()
    assert client.on("echo", heard.put) == heard.put
    for number in range(100):
        client.send("echo", number)
    assert [heard.get(timeout=TIMEOUT) for _ in range(100)] == list(range(100))


def test_a_class_runs_in_a_thread_even_if_its_objects_are_async_functions(client):
    heard = SimpleQueue()

    class Heard:
        def __init__(self, payload):
            heard.put((payload, threading.current_thread().name))

        async def __call__(self, payload):
            raise NotImplementedError

    client.on("echo", Heard)
    client.send("echo", 1)
    assert heard.get(timeout=TIMEOUT) == (1, "wse-client-events")


def test_listeners_are_added_and_removed_as_functions_and_decorators(client):
    heard = SimpleQueue()

    @client.on("echo")
    def often(payload):
        heard.put(("often", payload))

    @client.once("echo")
    def once(payload):
        heard.put(("once", payload))

    client.send("echo", 1)
    assert [heard.get(timeout=TIMEOUT) for _ in range(2)] == [("often", 1), ("once", 1)]
    client.off("echo", often)
    client.once("echo", lambda payload: heard.put(("last", payload)))
    client.send("echo", 2)
    assert heard.get(timeout=TIMEOUT) == ("last", 2)
    client.on("echo", often)
    client.off("echo")
    ignored = SimpleQueue()
    client.when.ignored(lambda kind, payload, stamp: ignored.put(payload))
    client.send("echo", 3)
    assert ignored.get(timeout=TIMEOUT) == 3


def test_wrong_handlers_are_rejected_as_by_the_client(client):
    with pytest.raises(TypeError, match="must take"):
        client.on("echo", lambda: None)
    with pytest.raises(TypeError, match="must be a function"):
        client.when.closed(3)
    with pytest.raises(TypeError, match="needs a name"):
        client.register(lambda payload: None)
    assert failed(client.on, "~wse:hi", print).code == ErrorCode.PROTOCOL_VIOLATION


def test_a_stream_is_a_plain_iterator(client, place):
    assert list(client.stream("count", 100)) == list(range(100))
    assert place.next_event() == "closed"
    with client.stream("count", 10**9) as numbers:
        assert next(numbers) == 0
    assert place.next_event() == "closed"
    for number in client.stream("count", 10**9):
        if number == 5:
            break
    assert place.next_event() == "closed"
    numbers = client.stream("count", 10**9, window=1)
    assert next(numbers) == 0
    numbers.close()
    assert place.next_event() == "closed"
    assert failed(list, client.stream("add")).code == ErrorCode.RP_NOT_A_STREAM


def test_uploads_and_progress_may_block(client):
    def items():
        for number in (1, 2, 3):
            client.call("add", {"a": 1, "b": 1})
            yield number

    told = []
    done = threading.Event()

    def progress(value):
        client.call("add", {"a": 1, "b": 1})
        told.append(value)
        if value == 6:
            done.set()

    assert client.call("sum", upload=items(), on_progress=progress) == 6
    assert done.wait(TIMEOUT)
    assert told == sorted(told)
    assert client.call("sum", upload=[1, 2]) == 3


def test_an_upload_that_fails_fails_the_call(client):
    def items():
        yield 1
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        client.call("sum", upload=items())


def test_handlers_may_call_the_client(client):
    """Also while the server waits for an answer of this client: no handler waits for another one's thread."""
    heard = SimpleQueue()
    client.register("answer", lambda payload: client.call("add", {"a": payload, "b": 1}))
    client.on("echo", lambda payload: heard.put(client.call("ask back", payload)))
    client.send("echo", 7)
    assert heard.get(timeout=TIMEOUT) == 8
    client.when.closed(lambda code, reason: heard.put(client.status))
    client.close()
    assert heard.get(timeout=TIMEOUT) is ClientStatus.OFFLINE


def test_procedures_of_every_kind_run(client, place):
    (conn,) = place.server.clients["ann"].conns.values()
    threads = SimpleQueue()

    @client.register("plain")
    def plain(payload):
        threads.put(threading.current_thread().name)
        return payload

    @client.register("async")
    async def asynchronous(payload):
        threads.put(threading.current_thread().name)
        return payload

    @client.register("generator")
    def generator(payload):
        threads.put(threading.current_thread().name)
        yield from range(payload)

    @client.register("upload", upload=True)
    def upload(payload, items):
        threads.put(threading.current_thread().name)
        return [payload, *items]

    @client.register("both", upload=True)
    def both(payload, items):
        for item in items:
            yield payload + item

    async def all_of(stream):
        return [item async for item in stream]

    assert place.run(conn.call("plain", 1)) == 1
    assert place.run(conn.call("async", 2)) == 2
    assert place.run(all_of(conn.stream("generator", 3))) == [0, 1, 2]
    assert place.run(conn.call("upload", 0, upload=[1, 2])) == [0, 1, 2]
    assert place.run(all_of(conn.stream("both", 10, upload=[1, 2]))) == [11, 12]
    names = [threads.get(timeout=TIMEOUT) for _ in range(4)]
    assert names == ["wse-client-calls", "wse-client", "wse-client-items", "wse-client-calls"]
    client.unregister("plain")
    assert failed(place.run, conn.call("plain", 1)).code == ErrorCode.RP_NOT_REGISTERED


def test_a_generator_of_the_client_is_closed_when_the_server_leaves(client, place):
    (conn,) = place.server.clients["ann"].conns.values()
    closed = threading.Event()

    @client.register("endless")
    def endless(payload):
        try:
            while True:
                yield 1
        finally:
            closed.set()

    async def take_one():
        async with conn.stream("endless") as items:
            return await anext(items)

    assert place.run(take_one()) == 1
    assert closed.wait(TIMEOUT)


@pytest.mark.parametrize("raised", [KeyError("k"), StopIteration(), SystemExit(3), KeyboardInterrupt()])
def test_what_a_handler_raises_is_reported_and_nothing_ends(client, place, raised):
    errors = SimpleQueue()
    client.when.error(errors.put)

    def fail(payload):
        raise raised

    client.on("echo", fail)
    client.register("answer", fail)
    client.send("echo", 1)
    cause = errors.get(timeout=TIMEOUT).__cause__
    assert cause is raised or cause.__cause__ is raised
    assert failed(client.call, "ask back", 1).code == ErrorCode.RP_EXECUTION_FAILED
    assert client.call("add", {"a": 1, "b": 1}) == 2


def test_signals_are_heard_waited_for_and_left(place):
    client = BlockingClient(place.url, identity="ann")
    heard = SimpleQueue()
    client.when.ready(heard.put)
    client.when.connected.once(lambda: heard.put("connected"))
    never = client.when.ready(lambda welcome: heard.put("never"))
    client.when.ready.off(never)
    with client:
        assert {str(heard.get(timeout=TIMEOUT)) for _ in range(2)} == {"connected", "{'hello': 'ann'}"}
        client.when.ready(lambda welcome: heard.put("late"))
        assert heard.get(timeout=TIMEOUT) == "late"
        assert client.when.ready.wait(TIMEOUT) == ({"hello": "ann"},)
        with pytest.raises(TimeoutError):
            client.when.closed.wait(0.01)
        place.server.threadsafe.drop_client("ann", "bye")
        client.wait_closed()
        assert client.gave_up.details["reason"] == "bye"


def test_an_identity_that_is_a_function_may_block(place):
    threads = []

    def identity():
        threads.append(threading.current_thread().name)
        return "bob"

    with BlockingClient(place.url, identity=identity) as client:
        assert client.wait_ready() == {"hello": "bob"}
        assert client.jump(place.url, identity=lambda: "cyd") == {"hello": "cyd"}
    assert threads == ["wse-client-calls"]


def test_a_challenge_is_answered_in_a_thread():
    server = make_server(lambda auth: auth.accept(auth.challenge.response))
    server.use_challenge(lambda auth: auth.quest("who"))
    with hosted(server) as place:
        client = BlockingClient(place.url)
        client.challenge(lambda quest: f"{quest}-{threading.current_thread().name}")
        with client:
            assert list(server.clients) == ["who-wse-client-calls"]


def test_it_is_used_by_many_threads(client):
    def work(number):
        return [client.call("add", {"a": number, "b": index}) for index in range(20)]

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(8)))
    assert results == [[number + index for index in range(20)] for number in range(8)]


def test_a_refused_client_raises_and_leaves_no_thread():
    with hosted(make_server(lambda auth: auth.refuse("no"))) as place:
        client = BlockingClient(place.url)
        error = failed(client.__enter__)
        assert (error.code, error.details["reason"]) == (ErrorCode.NOT_AUTHORIZED, "no")
        assert client._thread is None


def test_an_exception_in_the_block_closes_the_client(place):
    with pytest.raises(LookupError), BlockingClient(place.url):
        raise LookupError
    assert place.next_event() == (1000, "wse.by-client")


def test_without_a_connection_it_is_not_ready_and_can_connect_later(place):
    client = BlockingClient(place.url, identity="ann")
    heard = SimpleQueue()
    client.on("echo", heard.put)
    assert failed(client.send, "echo", 1).code == ErrorCode.CLIENT_NOT_READY
    for _ in range(2):  # in a new thread each time
        assert client.connect() == {"hello": "ann"}
        assert failed(client.connect).code == ErrorCode.CLIENT_ALREADY_CONNECTED
        client.send("echo", 2)
        assert heard.get(timeout=TIMEOUT) == 2
        client.close()
        client.close()
    assert failed(client.call, "add").code == ErrorCode.CLIENT_NOT_READY
    client.close()


def test_closing_ends_calls_and_waits_of_other_threads(client, place):
    with ThreadPoolExecutor(2) as pool:
        call = pool.submit(failed, client.call, "never")
        assert place.next_event() == "began"
        wait = pool.submit(failed, client.when.lost.wait)
        while not client._client.when.lost.has_listeners:
            client.call("add", {"a": 1, "b": 1})
        client.close()
        assert call.result(TIMEOUT).code == ErrorCode.RP_DISCONNECT
        assert wait.result(TIMEOUT).code == ErrorCode.CLIENT_NOT_READY


def test_a_handler_may_close_the_client(client, place):
    client.on("echo", lambda payload: client.close("bye"))
    client.send("echo")
    assert place.next_event() == (1000, "bye")


def test_an_async_handler_is_told_that_it_would_wait_for_itself(client):
    errors = SimpleQueue()

    @client.on("echo")
    async def echo(payload):
        for use in (partial(client.call, "add"), client.close):
            errors.put(failed(use))

    client.send("echo")
    for _ in range(2):
        error = errors.get(timeout=TIMEOUT)
        assert error.code == ErrorCode.WRONG_THREAD
        assert "use a plain handler" in str(error)


def test_a_forgotten_client_closes(place):
    client = BlockingClient(place.url, identity="ann")
    client.connect()
    gone = weakref.ref(client)
    del client
    gc.collect()
    assert gone() is None
    assert place.next_event() == (1000, "wse.by-client")


def run_script(text, *args):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", text, *args],
        env=unmeasured(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


SCRIPT = """
import sys, time
from wse import BlockingClient
client = BlockingClient(sys.argv[1], identity="ann")
client.connect()
"""


@pytest.mark.parametrize("end", ["", "raise SystemExit(0)", "client.on('echo', time.sleep); client.send('echo', 100)"])
def test_a_client_that_is_open_when_the_program_ends_is_closed(place, end):
    done = run_script(SCRIPT + end, place.url)
    assert (done.returncode, done.stderr) == (0, "")
    assert place.next_event() == (1000, "wse.by-client")


def test_an_exception_that_ends_the_program_is_shown_and_the_client_closed(place):
    done = run_script(SCRIPT + "raise LookupError('lost')", place.url)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "LookupError: lost"
    assert place.next_event() == (1000, "wse.by-client")


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for one process")
def test_ctrl_c_ends_a_waiting_call_and_the_client(place):
    text = "import sys\nfrom wse import BlockingClient\nwith BlockingClient(sys.argv[1]) as c:\n    c.call('never')"
    with program("-c", text, place.url) as running:
        assert place.next_event() == "began"
        assert running.stop(signal.SIGINT) == -signal.SIGINT
        assert running.output.splitlines()[-1] == "KeyboardInterrupt"
    assert {place.next_event(), place.next_event()} == {"cancelled", (1000, "wse.by-client")}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_is_told_that_the_client_is_not_its_own(place):
    text = SCRIPT + (
        "import os\nfrom wse import WseError\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    try: client.call('add', {'a': 1, 'b': 1})\n"
        "    except WseError as error: print(error, flush=True)\n"
        "    sys.exit(7)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), client.call('add', {'a': 1, 'b': 1}), flush=True)\n"
    )
    done = run_script("import warnings; warnings.simplefilter('ignore')\n" + text, place.url)
    said = "wse.client.not-ready: the client belongs to the process from which this one was forked"
    assert (done.stdout.splitlines(), done.stderr) == ([said, "7 2"], "")
