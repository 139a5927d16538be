"""The life of a server on a real port: starting, closing, restarting, and what its clients see of it."""

import ast
import asyncio
import contextlib
import os
import queue
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

from support.net import (
    CLOSE,
    TEXT,
    TIMEOUT,
    ClientLog,
    Log,
    RawSocket,
    ServerLog,
    accept_all,
    close_payload,
    frame,
    make_server,
    soon,
    text,
)
from support.programs import free_port
from wse import Backoff, ClientStatus, ErrorCode, Limits, WseClient, WseError, WseServer
from wse.testing import connect

AT_ONCE = Backoff(base=0)


async def test_port_0_takes_a_free_port_and_url_says_which():
    server = make_server()
    assert server.port == 0
    async with server:
        assert server.port != 0
        assert server.url == f"ws://127.0.0.1:{server.port}"
        async with WseClient(server.url, identity="ann") as client:
            assert client.status is ClientStatus.READY


async def test_two_servers_cannot_have_one_port():
    async with make_server() as first:
        second = make_server(port=first.port)
        with pytest.raises(OSError, match="in use"):
            await second.start()
        await second.close()


async def test_starting_twice_is_an_error_and_harms_nothing():
    async with make_server() as server:
        with pytest.raises(RuntimeError, match="started"):
            await server.start()
        async with WseClient(server.url, identity="ann"):
            assert list(server.clients) == ["ann"]


async def test_a_server_that_is_closed_while_it_starts_does_not_listen_and_may_start_again():
    server = make_server(port=free_port())
    starting = asyncio.ensure_future(server.start())
    await asyncio.sleep(0)
    await server.close()
    with pytest.raises(RuntimeError, match="closed while it started"):
        await starting
    assert not server.ready
    async with make_server(port=server.port), asyncio.timeout(TIMEOUT):
        pass
    async with server, WseClient(server.url, identity="ann"):
        assert list(server.clients) == ["ann"]


async def test_a_start_that_fails_leaves_nothing_behind():
    server = make_server(broker=f"redis://127.0.0.1:{free_port()}")
    with pytest.raises(WseError) as caught:
        await soon(server.start())
    assert caught.value.code == ErrorCode.BROKER_UNAVAILABLE
    assert server.stats().uptime == 0
    for thread in threading.enumerate():
        if thread.name == "wse-watchdog":
            thread.join(5)
            assert not thread.is_alive()
    await soon(server.close(notice=3600))  # there is nobody to give notice to


async def test_starting_twice_at_once_is_an_error_and_one_listener():
    server = make_server()
    results = await asyncio.gather(server.start(), server.start(), return_exceptions=True)
    assert [type(result) for result in results] == [type(None), RuntimeError]
    await server.close()


async def test_starting_without_an_identify_handler_is_an_error():
    server = WseServer(port=0)
    with pytest.raises(WseError) as caught:
        await server.start()
    assert caught.value.code == ErrorCode.IDENTIFY_HANDLER_MISSING
    server.identify(accept_all)
    async with server, WseClient(server.url):
        assert list(server.clients) == ["anonymous"]


def test_running_without_a_port_is_an_error():
    with pytest.raises(ValueError, match="port"):
        WseServer(accept_all).run()


async def test_a_server_without_a_port_starts_without_a_listener():
    server = make_server(port=None)
    await server.start()
    assert server.port is None
    assert server.ready
    assert server.stats().uptime > 0
    with pytest.raises(RuntimeError, match="has already been started"):
        await server.start()
    async with connect(server, "ann") as client:
        heard = asyncio.get_running_loop().create_future()
        client.channel.on("news", heard.set_result)
        server.send("ann", "news", 1)
        assert await soon(heard) == 1
    serving = asyncio.ensure_future(server.serve_forever())
    await asyncio.sleep(0)
    await server.close()
    await soon(serving)
    assert not server.ready
    async with server:
        assert server.ready


async def test_close_tells_clients_and_frees_the_port_and_may_be_repeated():
    server = make_server()
    log = ServerLog(server)
    await server.start()
    port, url = server.port, server.url
    clients = [WseClient(url, identity=name) for name in ("ann", "ben")]
    logs = [ClientLog(client) for client in clients]
    for client in clients:
        await client.connect()
    await soon(server.close())
    for heard in logs:
        assert await heard.until("closed") == ("closed", 1012, "wse.by-server")
    assert sorted(log.all("left")) == [(name, 1012, "wse.by-server") for name in ("ann", "ben")]
    assert server.clients == {}
    await soon(server.close())
    with pytest.raises(OSError, match=r"refused|Connect call failed"):
        await asyncio.open_connection("127.0.0.1", port)


async def test_close_waits_for_sockets_that_do_not_answer_only_so_long(monkeypatch):
    monkeypatch.setattr("wse.transports.picows.link.CLOSE_TIMEOUT", 0.02)
    server = make_server()
    await server.start()
    async with RawSocket.user(server.url) as socket:
        await soon(server.close())
        assert await socket.closed() == (1012, "wse.by-server")
        await socket.eof()


@pytest.mark.parametrize("when", ["afterwards", "meanwhile"])
async def test_a_close_that_was_given_up_does_not_end_another(when):
    server = make_server()
    await server.start()
    async with RawSocket.user(server.url) as socket:
        first = asyncio.ensure_future(server.close())
        assert await socket.closed() == (1012, "wse.by-server")
        second = asyncio.ensure_future(server.close()) if when == "meanwhile" else None
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        second = second or asyncio.ensure_future(server.close())
        await asyncio.sleep(0)
        assert not second.done()
    await soon(second)


async def test_close_cancels_handlers_that_still_run():
    server = make_server()
    log = Log()
    ended = []

    @server.register("work")
    async def work(conn, payload):
        log.add("started")
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(payload)

    async with server:
        client = WseClient(server.url, identity="ann")
        await client.connect()
        call = asyncio.ensure_future(client.call("work", 1))
        await log.until("started")
    assert ended == [1]
    with pytest.raises(WseError) as caught:
        await soon(call)
    assert caught.value.code == ErrorCode.RP_DISCONNECT
    assert caught.value.details["disconnected"] == [1012, "wse.by-server"]


async def test_serve_forever_starts_and_returns_when_the_server_is_closed():
    server = make_server()
    serving = asyncio.ensure_future(server.serve_forever())
    while not server.port:
        await asyncio.sleep(0)
    async with WseClient(server.url, identity="ann"):
        assert not serving.done()
    await server.close()
    await soon(serving)


async def test_a_cancelled_serve_forever_leaves_the_server_to_be_closed():
    async with make_server() as server:
        serving = asyncio.ensure_future(server.serve_forever())
        await asyncio.sleep(0)
        serving.cancel()
        await asyncio.wait([serving])
        async with WseClient(server.url, identity="ann"):
            assert list(server.clients) == ["ann"]


async def test_a_closed_server_can_start_again():
    server = make_server()
    server.register("echo", lambda conn, payload: payload)
    for n in range(2):
        async with server, WseClient(server.url, identity="ann") as client:
            assert await soon(client.call("echo", n)) == n


def test_a_server_and_a_client_can_live_again_in_another_event_loop():
    server = make_server()
    server.register("echo", lambda conn, payload: payload)
    log = ServerLog(server)
    clients = []

    async def once(n):
        async with server:
            if not clients:
                clients.append(WseClient(server.url, identity="ann"))
                result = await clients[0].connect()
            else:
                result = await clients[0].jump(server.url)
            assert result == {"hello": "ann"}
            assert await soon(clients[0].call("echo", n)) == n
            await clients[0].close()

    for n in range(2):
        asyncio.run(once(n))
    assert log.names == ["joined", "connected", "disconnected", "left"] * 2


async def test_a_reconnecting_client_survives_a_restart_of_the_server():
    server = make_server()
    server.register("echo", lambda conn, payload: payload)
    await server.start()
    port = server.port
    client = WseClient(server.url, identity="ann", reconnect=True, backoff=AT_ONCE)
    log = ClientLog(client)
    await client.connect()
    await server.close()
    again = make_server(port=port)
    again.register("echo", lambda conn, payload: ["again", payload])
    await log.until("updated", ClientStatus.RE_CONNECTING)
    log.entries.clear()
    async with again:
        await log.until("ready")
        assert await soon(client.call("echo", 1)) == ["again", 1]
        await soon(client.close())


async def test_a_jump_moves_a_client_from_one_server_to_another():
    first, second = make_server(), make_server(path="/there")
    log = ServerLog(first)
    async with first, second, WseClient(first.url, identity="ann") as client:
        assert await soon(client.jump(second.url)) == {"hello": "ann"}
        assert await log.until("disconnected") == ("disconnected", "ann", 4000, "jump")
        assert list(second.clients) == ["ann"]


# Backpressure.


async def flood(conn, size=64 * 1024):
    """Send and drain until the peer does not take more; the drain that waits, and how much was sent."""
    for n in range(1, 2000):
        conn.send("n", "x" * size)
        draining = asyncio.ensure_future(conn.drain())
        done, _ = await asyncio.wait([draining], timeout=0.05)
        if not done:
            return draining, n
    raise AssertionError("a peer that does not read never held the sender back")


async def test_drain_holds_a_producer_back_while_the_receiver_does_not_read():
    server = make_server(limits=Limits(message_size=1 << 20))
    log = ServerLog(server)
    async with server, RawSocket.user(server.url) as socket:
        socket.reader._transport.pause_reading()
        conn = await log.conn("ann")
        draining, sent = await flood(conn)
        assert conn._session.link.buffered < 4 * 64 * 1024  # no more than a few messages wait in memory
        server.register("echo", lambda conn, payload: payload)
        async with WseClient(server.url, identity="ben") as other:
            assert await soon(other.call("echo", 1)) == 1
        assert not draining.done()
        socket.reader._transport.resume_reading()
        for _ in range(sent):
            assert (await socket.hear())[0] == "n"
        await soon(draining)


@pytest.mark.parametrize("how", ["one by one", "to all", "as answers"])
async def test_what_waits_for_a_peer_that_does_not_read_is_bounded_in_one_turn_too(how):
    server = make_server(limits=Limits(send_buffer=1 << 20))
    queued = []

    @server.register("much")
    def much(conn, payload):
        queued.append(conn.queued)
        return "x" * 100_000

    log = ServerLog(server)
    async with server, RawSocket.user(server.url) as socket:
        socket.reader._transport.pause_reading()
        conn = await log.conn("ann")
        if how == "as answers":
            socket.send(b"".join(text("much", None, n) for n in range(1, 201)))
        else:
            for _ in range(200):
                conn.send("n", "x" * 100_000) if how == "one by one" else server.broadcast("n", "x" * 100_000)
                queued.append(conn.queued)
        assert (await log.until("disconnected", "ann"))[2:] == (1013, "wse.slow-receiver")
        assert max(queued) < 2 << 20
        socket.reader._transport.abort()


@pytest.mark.parametrize("end", ["the server drops it", "it vanishes"])
async def test_drain_ends_when_the_receiver_that_does_not_read_goes(monkeypatch, end):
    monkeypatch.setattr("wse.transports.picows.link.CLOSE_TIMEOUT", 0.02)
    server = make_server()
    log = ServerLog(server)
    async with server, RawSocket.user(server.url) as socket:
        socket.reader._transport.pause_reading()
        conn = await log.conn("ann")
        draining, _ = await flood(conn)
        if end == "it vanishes":
            socket.writer.transport.abort()
        else:
            conn.drop("too slow")
        await soon(draining)
        await log.until("disconnected")
        await soon(conn.drain())


# `run`, in a process of its own.

HEAD = """
import asyncio, sys
from wse import WseServer

def announce(server):
    # Tells the clients that the signal has come, which they cannot see otherwise.
    close = server.close
    async def closing(*args, **options):
        server.broadcast("closing")
        await close(*args, **options)
    server.close = closing
"""

PROGRAM = (
    HEAD
    + """

class Server(WseServer):
    async def start(self):
        await super().start()
        print(self.url, flush=True)

server = Server(port=0)

@server.identify
def identify(auth):
    auth.accept("ann")

@server.register("work")
async def work(conn, payload):
    await asyncio.Event().wait()

server.register("echo", lambda conn, payload: payload)
announce(server)
server.run(grace=float(sys.argv[1]))
print("done", flush=True)
"""
)

GRACE = (
    HEAD
    + """
class Server(WseServer):
    async def start(self):
        await super().start()
        print(self.url, flush=True)

server = Server(port=0)
begun, finish = asyncio.Event(), asyncio.Event()

@server.identify
def identify(auth):
    auth.accept("ann")

@server.register("work")
async def work(conn, payload):
    begun.set()
    await finish.wait()
    return "worked"

@server.register("working")
async def working(conn, payload):
    await begun.wait()

@server.register("finish")
async def finish_work(conn, payload):
    finish.set()
    return "as ever"

announce(server)
server.run(grace=3600)
"""
)


# In development mode, asyncio reports turns of more than 0.1 s, of which a busy machine has some.
QUIET = """
import logging
logging.getLogger("asyncio").addFilter(lambda record: record.msg != "Executing %s took %.3f seconds")
"""


@contextlib.asynccontextmanager
async def running(program, *args):
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        QUIET + textwrap.dedent(program),
        *args,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONDEVMODE": "1"},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_run_ends_cleanly_on_a_signal_and_tells_its_clients(number):
    async with running(PROGRAM, "0") as process:
        url = (await asyncio.wait_for(process.stdout.readline(), TIMEOUT)).decode().strip()
        client = WseClient(url)
        log = ClientLog(client)
        await soon(client.connect())
        call = asyncio.ensure_future(client.call("work"))
        process.send_signal(number)
        assert await log.until("closed") == ("closed", 1012, "wse.by-server")
        with pytest.raises(WseError, match="disconnect"):
            await call
        out, err = await asyncio.wait_for(process.communicate(), TIMEOUT)
        assert (process.returncode, out, err) == (0, b"done\n", b"")


async def started(process):
    return (await asyncio.wait_for(process.stdout.readline(), TIMEOUT)).decode().strip()


async def test_calls_that_run_have_a_grace_and_their_answers_arrive_before_the_close():
    async with running(GRACE) as process, WseClient(await started(process)) as client:
        log = ClientLog(client)
        call = asyncio.ensure_future(client.call("work"))
        await client.call("working")
        process.send_signal(signal.SIGTERM)
        await log.until("ignored", "closing")  # new ones are still served
        assert await client.call("finish") == "as ever"
        assert await soon(call) == "worked"
        assert await log.until("closed") == ("closed", 1012, "wse.by-server")
        assert (await asyncio.wait_for(process.wait(), TIMEOUT)) == 0


async def test_a_second_signal_ends_the_grace():
    async with running(PROGRAM, "3600") as process, WseClient(await started(process)) as client:
        log = ClientLog(client)
        call = asyncio.ensure_future(client.call("work"))
        assert await client.call("echo", 1) == 1
        process.send_signal(signal.SIGTERM)
        await log.until("ignored", "closing")
        process.send_signal(signal.SIGTERM)
        assert await log.until("closed") == ("closed", 1012, "wse.by-server")
        with pytest.raises(WseError, match="disconnect"):
            await call
        out, err = await asyncio.wait_for(process.communicate(), TIMEOUT)
        assert (process.returncode, out, err) == (0, b"done\n", b"")


async def test_nobody_is_let_in_while_the_server_closes_and_readiness_goes_first():
    server = make_server()
    gate = asyncio.Event()

    @server.register("work")
    async def work(conn, payload):
        await gate.wait()

    async with server, await RawSocket.open(server.url) as early, WseClient(server.url) as client:
        call = asyncio.ensure_future(client.call("work"))
        async with asyncio.timeout(TIMEOUT):
            while not server.stats().running_handlers:
                await asyncio.sleep(0)
        closing = asyncio.ensure_future(server.close(grace=60))
        async with asyncio.timeout(TIMEOUT):
            while server._lifecycle._listener is not None:
                await asyncio.sleep(0)
        status, _, _ = await early.upgrade()  # its socket was accepted before
        assert status == 503
        assert not server.ready
        with pytest.raises(ConnectionRefusedError):
            await RawSocket.open(f"ws://127.0.0.1:{early.writer.get_extra_info('peername')[1]}")
        assert not closing.done()
        gate.set()
        await soon(call)
        await soon(closing)


async def test_many_connections_are_closed_over_some_time(monkeypatch):
    monkeypatch.setattr("wse.core.hub.sockets.CLOSES_PER_SECOND", 100)
    server = make_server()
    async with server, contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(WseClient(server.url, identity=f"user {n}")) for n in range(35)]
        logs = [ClientLog(client) for client in clients]
        began = asyncio.get_running_loop().time()
        await server.close()
        took = asyncio.get_running_loop().time() - began
        assert took >= 0.3
        for log in logs:
            assert await log.until("closed") == ("closed", 1012, "wse.by-server")


async def test_run_raises_what_start_raises():
    async with running("from wse import WseServer; WseServer(port=0).run()") as process:
        _, err = await asyncio.wait_for(process.communicate(), TIMEOUT)
        assert process.returncode == 1
        assert b"wse.server.auth.identify-handler-missing" in err


async def test_text_after_a_close_does_not_stall_the_end_of_a_server():
    server = make_server()
    async with server, RawSocket.user(server.url) as socket:
        socket.send(frame(CLOSE, close_payload(1000)), frame(TEXT, '["chat"]'))
        await socket.closed()
        await socket.eof()
    assert server.clients == {}


# Event loops that end.


LEFT_OPEN = """
import asyncio

from wse import WseClient, WseServer

log = []
server = WseServer(lambda auth: auth.accept("ann"), port=0)
server.when.left(lambda identity, code, reason: log.append(("left", code)))
client = WseClient("ws://127.0.0.1:1")
client.when.closed(lambda code, reason: log.append(("closed", code)))


async def leave_open():
    await server.start()
    await client.jump(server.url)


async def go_on():
    url = client.url
    await client.close()
    await server.close()
    await server.start()
    assert server.url == url
    async with asyncio.timeout(30):
        await client.connect()
        await client.close()
        await server.close()


async def start_again():
    await server.start()
    async with asyncio.timeout(30):
        await client.connect()
        await client.close()
        await server.close()


asyncio.run(leave_open())
asyncio.run(go_on())
print(log)
log.clear()
asyncio.run(leave_open())
asyncio.run(start_again())
print(log)
"""


def test_what_was_left_open_in_an_event_loop_that_has_ended_can_be_closed_and_used_in_the_next():
    # In a process of its own: such sockets are closed by the garbage collection, with warnings.
    result = subprocess.run([sys.executable, "-c", LEFT_OPEN], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    lost, ended = {("closed", 1006), ("left", 1006)}, {("closed", 1000), ("left", 1000)}
    lines = result.stdout.splitlines()
    assert len(lines) == 2
    for log in map(ast.literal_eval, lines):
        assert len(log) == 4
        assert set(log[:2]) == lost
        assert set(log[2:]) == ended


async def test_a_server_on_a_free_port_keeps_it_when_it_starts_again():
    server = make_server()
    async with server:
        port = server.port
    async with server:
        assert server.port == port
    async with make_server(port=port), server:
        assert server.port not in (0, port)


# A server that ends, and its listeners.


@pytest.fixture
def listeners():
    """A server whose async listeners need a moment, and what they did."""
    server = make_server()
    log, gate = Log(), asyncio.Event()

    async def listen(name):
        try:
            await gate.wait()
        except asyncio.CancelledError:
            log.add(f"{name} cancelled")
            raise
        log.add(name)

    @server.when.disconnected
    async def disconnected(conn, code, reason):
        log.add("begun")
        await listen("disconnected")

    @server.when.left
    async def left(identity, code, reason):
        await listen("left")

    return server, log, gate


async def test_async_listeners_of_the_last_clients_finish_within_the_grace(listeners):
    server, log, gate = listeners
    await server.start()
    async with WseClient(server.url):
        closing = asyncio.ensure_future(server.close(grace=TIMEOUT))
        await log.until("begun")
        gate.set()
        await soon(closing)
        assert sorted(log.names) == ["begun", "disconnected", "left"]


async def test_async_listeners_that_outlast_the_grace_are_cancelled(listeners):
    server, log, _ = listeners
    await server.start()
    async with WseClient(server.url):
        await soon(server.close(grace=0.05))
        assert sorted(log.names) == ["begun", "disconnected cancelled", "left cancelled"]


async def test_the_lifespan_of_a_web_application_gives_listeners_a_grace(listeners):
    server, log, gate = listeners
    events = asyncio.Queue()
    done = asyncio.Queue()
    lifespan = asyncio.ensure_future(server.asgi({"type": "lifespan"}, events.get, done.put))
    events.put_nowait({"type": "lifespan.startup"})
    assert await soon(done.get()) == {"type": "lifespan.startup.complete"}
    async with connect(server, "ann"):
        events.put_nowait({"type": "lifespan.shutdown"})
        await log.until("begun")
        gate.set()
        assert await soon(done.get()) == {"type": "lifespan.shutdown.complete"}
    await lifespan
    assert sorted(log.names) == ["begun", "disconnected", "left"]


# A server beside another program.


@pytest.mark.parametrize("is_main", [True, False])
def test_run_works_in_a_thread_and_returns_when_a_handler_closes_the_server(is_main):
    server = make_server()
    urls = queue.SimpleQueue()

    @server.register("end")
    async def end(conn, payload):
        await server.close()

    async def use():
        async with WseClient(await asyncio.to_thread(urls.get), identity="ann") as client:
            with pytest.raises(WseError):
                await client.call("end")

    start = server.start

    async def starting():
        await start()
        urls.put(server.url)

    server.start = starting
    run, client = server.run, lambda: asyncio.run(use())
    other = threading.Thread(target=client if is_main else run)
    other.start()
    (run if is_main else client)()
    other.join(TIMEOUT)
    assert not other.is_alive()
    assert not server.ready


async def test_a_loop_without_signal_handlers_serves_without_them(monkeypatch):
    def add_signal_handler(*_):
        raise NotImplementedError  # as on Windows

    monkeypatch.setattr(asyncio.get_running_loop(), "add_signal_handler", add_signal_handler, raising=False)
    with make_server()._lifecycle.stopped_by(signal.SIGINT) as stop:
        assert not stop.is_set()
