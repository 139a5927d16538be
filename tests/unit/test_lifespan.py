"""What an application has for as long as its server serves."""

import asyncio
import signal
from contextlib import asynccontextmanager

import pytest

from support.net import TIMEOUT
from wse import ErrorCode, WseError, WseServer
from wse.server.lifecycle import serve_until_signal
from wse.testing import connect


@pytest.fixture
def server():
    return WseServer(lambda auth: auth.accept("ann"))


@pytest.fixture
def log():
    return []


def logging(log, name):
    async def lifespan():
        log.append(f"{name} begins")
        try:
            yield
        finally:
            log.append(f"{name} ends")

    return lifespan


async def until(condition) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not condition():
            await asyncio.sleep(0)


async def test_lifespans_are_entered_in_order_and_left_in_reverse(server, log):
    for name in "ab":
        server.lifespan(logging(log, name))
    assert log == []
    async with server:
        assert log == ["a begins", "b begins"]
    assert log == ["a begins", "b begins", "b ends", "a ends"]
    async with server:  # again
        assert log[4:] == ["a begins", "b begins"]


async def test_a_lifespan_takes_the_server_or_nothing(server, log):
    @server.lifespan
    async def generator(it):
        log.append(it)
        yield

    @server.lifespan
    @asynccontextmanager
    async def manager():
        log.append("manager")
        yield

    async with server:
        assert log == [server, "manager"]


@pytest.mark.parametrize("kind", ["coroutine", "plain", "two", "value"])
def test_what_is_no_lifespan_is_rejected(server, kind):
    async def coroutine(server): ...

    def plain(server):
        yield

    async def two(server, more):
        yield

    fn = {"coroutine": coroutine, "plain": plain, "two": two, "value": 5}[kind]
    with pytest.raises(TypeError, match="a lifespan"):
        server.lifespan(fn)


async def test_a_server_that_runs_takes_no_more(server, log):
    async with server:
        with pytest.raises(RuntimeError, match="already been started"):
            server.lifespan(logging(log, "late"))


async def test_it_holds_from_before_the_first_connection_until_after_the_last_handler(server, log):
    server.lifespan(logging(log, "pool"))
    server.when.joined(lambda identity, meta: log.append("joined"))
    server.when.left(lambda identity, code, reason: log.append("left"))
    running = asyncio.Event()

    @server.register
    async def slow(conn, payload):
        try:
            running.set()
            await asyncio.Event().wait()
        finally:
            log.append("handler ends")

    async with connect(server) as client:
        call = asyncio.create_task(client.call("slow"))
        await running.wait()
        await server.close()
        with pytest.raises(WseError):
            await call
    assert (log[:2], log[-1]) == (["pool begins", "joined"], "pool ends")
    assert set(log[2:-1]) == {"left", "handler ends"}


async def test_the_port_opens_when_the_lifespan_has_been_entered(log):
    server = WseServer(lambda auth: auth.accept("ann"), port=0)
    gate = asyncio.Event()

    @server.lifespan
    async def waits():
        log.append("waits")
        await gate.wait()
        yield

    starting = asyncio.create_task(server.start())
    await until(lambda: log)
    assert not server.ready
    assert server.port == 0
    gate.set()
    await starting
    assert server.ready
    await server.close()
    assert not server.ready


@pytest.mark.parametrize("start", ["start", "connection"])
async def test_a_lifespan_that_fails_at_the_start_fails_it_and_leaves_those_before_it(server, log, start):
    server.lifespan(logging(log, "a"))
    attempts = []

    @server.lifespan
    async def fails():
        attempts.append(1)
        if len(attempts) == 1:
            raise OSError("no database")
        yield

    with pytest.raises(OSError, match="no database"):
        await (server.start() if start == "start" else connect(server).__aenter__())
    assert log == ["a begins", "a ends"]
    async with connect(server):  # the next attempt may succeed
        assert log[2:] == ["a begins"]
    await server.close()
    assert log[3:] == ["a ends"]


async def test_what_fails_later_is_reported(server, log):
    server.when.error(lambda error, conn: log.append((error.code, type(error.__cause__))))

    @server.lifespan
    async def fails():
        yield
        raise OSError("gone")

    async with server:
        pass
    assert log == [(ErrorCode.LIFESPAN_FAILED, OSError)]


async def test_a_background_task_that_fails_is_reported_while_the_server_runs(server, log):
    server.when.error(lambda error, conn: log.append(error.code))
    fail = asyncio.Event()

    async def background():
        await fail.wait()
        raise OSError("gone")

    @server.lifespan
    async def tasks():
        async with asyncio.TaskGroup() as group:
            group.create_task(background())
            yield

    async with server:
        fail.set()
        await until(lambda: log)
        assert log == [ErrorCode.LIFESPAN_FAILED]
        async with connect(server) as client:
            assert client.status == "READY"


async def test_closing_a_server_that_waits_for_its_lifespan_gives_it_up(server, log):
    @server.lifespan
    async def never():
        try:
            log.append("waits")
            await asyncio.Event().wait()
        finally:
            log.append("gives up")
        yield

    starting = asyncio.create_task(server.start())
    await until(lambda: log)
    await server.close()
    with pytest.raises(RuntimeError):
        await starting
    assert log == ["waits", "gives up"]


async def test_serving_until_a_signal_enters_and_leaves_it(log):
    server = WseServer(lambda auth: auth.accept("ann"), port=0)
    server.lifespan(logging(log, "a"))
    serving = asyncio.create_task(serve_until_signal(server, 0.0, 0.0))
    await until(lambda: server.ready)
    assert log == ["a begins"]
    signal.raise_signal(signal.SIGTERM)
    await serving
    assert log == ["a begins", "a ends"]


async def test_the_lifespan_of_an_asgi_application_enters_and_leaves_it(server, log):
    server.lifespan(logging(log, "a"))
    said = []
    events = asyncio.Queue()

    async def send(message):
        said.append(message["type"])

    await events.put({"type": "lifespan.startup"})
    running = asyncio.create_task(server.asgi({"type": "lifespan"}, events.get, send))
    await until(lambda: said)
    assert (said, log) == (["lifespan.startup.complete"], ["a begins"])
    await events.put({"type": "lifespan.shutdown"})
    await running
    assert (said[1:], log[1:]) == (["lifespan.shutdown.complete"], ["a ends"])


def test_each_event_loop_has_its_own(log):
    server = WseServer(lambda auth: auth.accept("ann"))
    server.lifespan(logging(log, "a"))

    async def serve_and_leave():
        await server.start()

    async def serve():
        async with server:
            pass

    asyncio.run(serve_and_leave())  # the end of the loop ends it
    assert log == ["a begins", "a ends"]
    asyncio.run(serve())
    assert log[2:] == ["a begins", "a ends"]
