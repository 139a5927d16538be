"""Publishers: they send from outside a cluster, and raise every error."""

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import Future
from contextlib import suppress
from inspect import signature
from queue import SimpleQueue

import msgspec
import pytest

from support.cluster import WAIT, cluster_of, until
from support.net import accept_all, soon
from wse import BlockingPublisher, ErrorCode, Publisher, WseError, WseJSON, WseMsgpack, WseServer
from wse.brokers.memory import MemoryBroker, MemoryCluster
from wse.core.cluster import envelope
from wse.publisher.blocking import BlockingRoom
from wse.publisher.publisher import PublisherRoom


async def test_what_cannot_be_sent_is_raised():
    engine = MemoryCluster()
    async with Publisher(MemoryBroker(engine)) as publisher:
        for send, error in (
            (lambda: publisher.send("ann", "~wse:hi"), ErrorCode.PROTOCOL_VIOLATION),
            (lambda: publisher.send("ann", "say", object()), ErrorCode.MSG_PROCESSING_ERROR),
        ):
            with pytest.raises(WseError) as caught:
                send()
            assert caught.value.code == error
        with pytest.raises(TypeError, match="strings or integers"):
            publisher.room((1, 2)).send("say")
        with pytest.raises(ValueError):
            publisher.drop_client("ann", "x" * 200)


async def test_keys_cross_with_their_messages():
    engine = MemoryCluster()
    async with Publisher(MemoryBroker(engine)) as publisher:
        published = []
        publisher._broker.publish = lambda topic, data: published.append((topic, envelope.decode(data).key))
        publisher.send("ann", "price", 1, key="a")
        publisher.broadcast("price", 2, key=7)
        publisher.room("r").send("price", 3, key="c")
        publisher.send("ann", "price", 4)
        assert published == [("u.sann", "a"), ("all", 7), ("r.sr", "c"), ("u.sann", None)]


def test_a_message_of_a_node_that_knows_no_keys_is_read():
    without = msgspec.msgpack.encode([0, "node", "say", {}, None, None])
    assert envelope.decode(without) == envelope.Message("node", "say", {})


async def test_without_the_broker_sending_fails_at_once():
    engine = MemoryCluster()
    publisher = Publisher(MemoryBroker(engine))
    await publisher.open()
    engine.pause()
    for use in (lambda: publisher.broadcast("say"), lambda: publisher.drop_client("ann")):
        with pytest.raises(WseError) as caught:
            use()
        assert caught.value.code == ErrorCode.BROKER_UNAVAILABLE
    with pytest.raises(WseError) as caught:
        await publisher.__aexit__(None)  # which waits until the broker has taken all messages
    assert caught.value.code == ErrorCode.BROKER_UNAVAILABLE
    with pytest.raises(WseError) as caught:
        await soon(Publisher(MemoryBroker(engine)).open())
    assert caught.value.code == ErrorCode.BROKER_UNAVAILABLE


async def test_an_exception_inside_is_not_replaced_by_one_of_the_broker():
    engine = MemoryCluster()

    async def fail():
        async with Publisher(MemoryBroker(engine)):
            engine.pause()
            raise LookupError

    with pytest.raises(LookupError):
        await fail()


async def test_a_publisher_of_several_protocols_packs_for_each():
    engine = MemoryCluster()
    async with (
        cluster_of([MemoryBroker(engine)], protocol=[WseJSON(), WseMsgpack()]) as nodes,
        Publisher(MemoryBroker(engine), protocol=[WseMsgpack(), WseJSON()]) as publisher,
    ):
        text, packed = await nodes.device(0, "ann"), await nodes.device(0, "bob", protocol=WseMsgpack())
        publisher.broadcast("say", [1])
        await until(lambda: text.entries == packed.entries == [("say", [1])])


async def test_a_publisher_tells_nobody_of_the_connection():
    engine = MemoryCluster()
    async with Publisher(MemoryBroker(engine)) as publisher:
        engine.pause()
        engine.resume()
        await asyncio.sleep(0)
        publisher.send("ann", "say")


@pytest.mark.parametrize("publisher", [Publisher, BlockingPublisher])
def test_a_publisher_that_would_reach_no_server_is_refused_and_told_what_to_do(publisher):
    with pytest.raises(ValueError, match=r"reaches no server: give it the URL of the servers' NATS, Redis or Valkey"):
        publisher("memory:")


# Code without asyncio.


def test_the_blocking_publisher_lacks_nothing_but_what_its_methods_do_themselves():
    pairs = [(Publisher, BlockingPublisher), (PublisherRoom, BlockingRoom)]
    for theirs, ours in pairs:
        names = {name for name in dir(theirs) if not name.startswith("_")} - {"open", "flush"}
        assert names == {name for name in dir(ours) if not name.startswith("_")}
        for name in names:
            assert signature(getattr(ours, name)).parameters == signature(getattr(theirs, name)).parameters, name
    assert signature(Publisher).parameters.keys() == signature(BlockingPublisher).parameters.keys()


class GatedBroker(MemoryBroker):
    """A broker that opens and flushes when the test lets it: it puts a future for each into `gates`."""

    def __init__(self, gates):
        super().__init__()
        self.gates = gates

    async def open(self, node, listener):
        await self.pass_gate()
        await super().open(node, listener)

    async def flush(self):
        await self.pass_gate()

    async def pass_gate(self):
        gate = Future()
        self.gates.put(gate)
        await asyncio.wrap_future(gate)


@pytest.fixture
def next_gate(monkeypatch):
    """`next_gate()` returns the next future for which a broker waits."""
    gates = SimpleQueue()
    monkeypatch.setattr("wse.brokers.from_url", lambda url: GatedBroker(gates))
    yield lambda: gates.get(timeout=WAIT)
    assert gates.empty()


@pytest.fixture
def handed_over(monkeypatch):
    """A semaphore that counts the coroutines that threads hand to event loops."""
    count = threading.Semaphore(0)
    hand_over = asyncio.run_coroutine_threadsafe

    def counted(coroutine, loop):
        future = hand_over(coroutine, loop)
        count.release()
        return future

    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", counted)
    return count


def in_thread(function, *args):
    """The outcome of a call in a thread of its own, a daemon, so that a call that hangs does not block the end."""
    outcome = Future()

    def run():
        try:
            outcome.set_result(function(*args))
        except BaseException as exc:
            outcome.set_exception(exc)

    threading.Thread(target=run, daemon=True).start()
    return outcome


@pytest.fixture
def in_memory(monkeypatch):
    """Every URL leads to a broker in memory."""
    monkeypatch.setattr("wse.brokers.from_url", lambda url: MemoryBroker())


def publisher_threads():
    return [thread for thread in threading.enumerate() if thread.name == "wse-publisher"]


def test_code_without_asyncio_is_told_what_cannot_be_sent(in_memory):
    publisher = BlockingPublisher("redis://engine")
    with pytest.raises(WseError) as caught:
        publisher.send("ann", "~wse:hi")
    assert caught.value.code == ErrorCode.PROTOCOL_VIOLATION
    with publisher:
        publisher.room("tea").send("say")
        publisher.broadcast("say")
        publisher.drop_client("ann", "bye")
        assert len(publisher_threads()) == 1
    publisher.close()
    assert publisher_threads() == []


def test_a_publisher_without_asyncio_needs_a_broker():
    publisher = BlockingPublisher("nats://127.0.0.1:1")
    with pytest.raises(WseError) as caught:
        publisher.send("ann", "say")
    assert caught.value.code == ErrorCode.BROKER_UNAVAILABLE
    for thread in publisher_threads():
        thread.join(WAIT)
    assert publisher_threads() == []
    publisher.close()
    with pytest.raises(ValueError, match="no broker"):
        BlockingPublisher("http://127.0.0.1")


def test_calls_that_wait_for_one_attempt_to_connect_share_its_error_and_a_later_one_tries_anew(next_gate, handed_over):
    publisher = BlockingPublisher("redis://engine")
    calls = [in_thread(publisher.send, "ann", "say") for _ in range(4)]
    attempt = next_gate()
    for _ in calls:
        assert handed_over.acquire(timeout=WAIT)
    error = WseError(ErrorCode.BROKER_UNAVAILABLE)
    attempt.set_exception(error)
    assert [call.exception(WAIT) for call in calls] == [error] * 4
    later = in_thread(publisher.send, "ann", "say")
    next_gate().set_result(None)  # the next attempt
    next_gate().set_result(None)
    assert later.result(WAIT) is None
    publisher.close()


def test_calls_under_way_end_before_another_thread_has_closed(next_gate):
    publisher = BlockingPublisher("redis://engine")
    taken = in_thread(publisher.send, "ann", "say")
    next_gate().set_result(None)  # now it is open
    gate = next_gate()
    failed = in_thread(publisher.send, "ann", "say")
    failing_gate = next_gate()
    closed = in_thread(publisher.close)
    with pytest.raises(TimeoutError):
        closed.result(0.2)
    gate.set_result(None)
    error = WseError(ErrorCode.BROKER_UNAVAILABLE)
    failing_gate.set_exception(error)
    assert taken.result(WAIT) is None
    assert failed.exception(WAIT) is error
    assert closed.result(WAIT) is None
    assert publisher_threads() == []


@pytest.mark.parametrize("error", [None, WseError(ErrorCode.BROKER_UNAVAILABLE)], ids=["succeeds", "fails"])
def test_a_call_that_waits_for_an_attempt_to_connect_ends_when_another_thread_closes(next_gate, error):
    publisher = BlockingPublisher("redis://engine")
    call = in_thread(publisher.send, "ann", "say")
    attempt = next_gate()
    closed = in_thread(publisher.close)
    with pytest.raises(TimeoutError):
        closed.result(0.2)
    if error is None:
        attempt.set_result(None)
        next_gate().set_result(None)
    else:
        attempt.set_exception(error)
    assert call.exception(WAIT) is error
    assert closed.result(WAIT) is None


def test_a_call_that_is_handed_over_while_another_thread_closes_ends(monkeypatch, in_memory):
    publisher = BlockingPublisher("redis://engine")
    publisher.send("ann", "say")
    hand_over = asyncio.run_coroutine_threadsafe
    closed = []

    def hand_over_late(coroutine, loop):
        if not closed:
            closed.append(in_thread(publisher.close))
            with suppress(TimeoutError):  # which must not happen before the fork is done
                closed[0].result(0.2)
        return hand_over(coroutine, loop)

    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", hand_over_late)
    assert in_thread(publisher.send, "ann", "say").result(WAIT) is None
    assert closed[0].result(WAIT) is None
    assert publisher_threads() == []


def run(program, *args):
    """The output of a program, which may end without ending its threads."""
    command = [sys.executable, "-c", program, *args]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_publisher_connects_anew_in_a_process_that_was_forked():
    program = """
import gc, os
import wse.brokers
from wse import BlockingPublisher
from wse.brokers.memory import MemoryBroker

wse.brokers.from_url = lambda url: MemoryBroker()
publisher = BlockingPublisher("redis://engine")
publisher.send("ann", "say")
if not os.fork():
    publisher.close()  # not the other's
    publisher.send("ann", "say")
    del publisher
    gc.collect()
    os._exit(7)
print(os.waitstatus_to_exitcode(os.wait()[1]))
publisher.send("ann", "say")
"""
    assert run(program) == "7\n"


@pytest.mark.parametrize("moment", ["make", "open"])
def test_a_process_that_was_forked_sends_though_a_thread_was_connecting_then(moment):
    program = """
import asyncio, os, signal, sys, threading
import wse.brokers
from wse import BlockingPublisher
from wse.brokers.memory import MemoryBroker

parent = os.getpid()
connecting = threading.Event()

def from_url(url):
    if sys.argv[1] == "make" and threading.current_thread() is not threading.main_thread():
        connecting.set()
        threading.Event().wait()
    return Broker()

class Broker(MemoryBroker):
    async def open(self, node, listener):
        if os.getpid() == parent:
            connecting.set()
            await asyncio.Event().wait()
        await super().open(node, listener)

wse.brokers.from_url = from_url
publisher = BlockingPublisher("redis://engine")
threading.Thread(target=publisher.send, args=("ann", "say"), daemon=True).start()
connecting.wait()
if not os.fork():
    signal.alarm(20)  # if it hangs
    publisher.send("ann", "say")
    os._exit(7)
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""
    assert run(program, moment) == "7\n"


@pytest.mark.parametrize("scheme", ["nats", "redis"])
def test_a_publisher_imports_its_broker_before_a_thread_can_be_cut_off_from_it_by_a_fork(scheme):
    program = """
import sys
from wse import BlockingPublisher, WseError
publisher = BlockingPublisher(sys.argv[1] + "://127.0.0.1:1")
before = set(sys.modules)
try:
    publisher.send("ann", "say")
except WseError as error:
    print(error.code, [name for name in set(sys.modules) - before if name.startswith(("wse", "nats", "redis"))])
"""
    assert run(program, scheme) == "wse.server.broker-unavailable []\n"


# Servers and their brokers.


async def test_a_server_without_its_broker_does_not_start():
    engine = MemoryCluster()
    engine.pause()
    server = WseServer(accept_all, port=0, broker=MemoryBroker(engine))
    with pytest.raises(WseError) as caught:
        await soon(server.start())
    assert caught.value.code == ErrorCode.BROKER_UNAVAILABLE
    engine.resume()
    async with server:
        assert server.cluster.healthy
    assert not server.cluster.healthy


async def test_a_web_application_without_its_broker_does_not_start():
    engine = MemoryCluster()
    engine.pause()
    sent = []

    async def receive():
        return {"type": "lifespan.startup"}

    async def send(message):
        sent.append(message)

    server = WseServer(accept_all, broker=MemoryBroker(engine))
    await soon(server.asgi({"type": "lifespan"}, receive, send))
    assert [message["type"] for message in sent] == ["lifespan.startup.failed"]
    assert "broker" in sent[0]["message"]


async def test_a_server_that_cannot_listen_leaves_its_cluster():
    engine = MemoryCluster()
    async with WseServer(accept_all, port=0) as other:
        server = WseServer(accept_all, port=other.port, broker=MemoryBroker(engine))
        with pytest.raises(OSError):
            await soon(server.start())
    assert engine.nodes() == frozenset()
