"""`wse serve` and its supervisor, as separate processes on a real port."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from support.engines import Nats, Valkey
from support.net import ClientLog, Log, RawSocket
from support.programs import Program, free_port, program
from wse import Backoff, ClientStatus, WseClient, WseError

PATIENCE = 60.0
NO_WAIT = Backoff(base=0.05, cap=0.05)

APP = """
import asyncio, os, sys, time
from wse import WseServer

server = WseServer(conns_per_user=100, port=int(os.environ.get("APP_PORT", "0")))

@server.identify
def identify(auth):
    auth.accept(auth.identity, os.getpid())

@server.register("pid")
def pid(conn, payload):
    return os.getpid()

@server.register("block")
def block(conn, payload):
    print("blocking", flush=True)
    time.sleep(60)

@server.register("wait")
async def wait(conn, seconds):
    print("waiting", flush=True)
    await asyncio.sleep(seconds)
    return "waited"

@server.channel.on("all")
def to_all(conn, payload):
    server.broadcast("all", payload)

def make():
    return server

no_identify = WseServer(port=0)
"""

# The supervisor through its Python interface, since with the command several workers need a broker.
SUPERVISE = """
import asyncio, sys
from wse import Backoff
from wse.cli import supervisor
from wse.cli.commands import set_up_logging

set_up_logging("info", "supervisor")
supervisor.STABLE_AFTER = {stable_after}
supervisor.KILL_TIMEOUT = {kill_timeout}
supervisor.RESTART_BACKOFF = Backoff(base={restarts}, random=lambda: 1.0)
command = {command}
sys.exit(asyncio.run(supervisor.Supervisor(command, {workers}, grace=0.1, start_timeout={start_timeout}).run()))
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


@contextmanager
def supervised(
    folder,
    workers=3,
    *,
    command=None,
    stable_after=0.0,
    start_timeout=30.0,
    kill_timeout=0.2,
    restarts=0.05,
    **program_options,
):
    """Run a supervisor; yields it and the URL of its workers."""
    port = free_port()
    if command is None:  # coverage is measured of the supervisor; other tests start single workers
        unmeasured = ["env", "-u", "COVERAGE_PROCESS_CONFIG"]
        command = [*unmeasured, sys.executable, "-m", "wse", "serve", "app:server", "--port", str(port)]
    options = {
        "stable_after": stable_after,
        "start_timeout": start_timeout,
        "kill_timeout": kill_timeout,
        "restarts": restarts,
    }
    text = SUPERVISE.format(command=command, workers=workers, **options)
    with program("-c", text, cwd=folder, measured=True, **program_options) as running:
        yield running, f"ws://127.0.0.1:{port}"


async def until(running: Program, text: str):
    return await asyncio.to_thread(running.read_until, text)


async def end(running: Program, number=signal.SIGTERM):
    return await asyncio.to_thread(running.stop, number)


async def pids(url, connections=40):
    """The process ids of the workers that answer new connections."""
    found = set()
    for _ in range(connections):
        async with WseClient(url, identity="ann") as client:
            found.add(await client.call("pid"))
    return found


def stat(pid):
    """The state of a process, Z when it has ended, and its parent."""
    try:
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return "Z", 0
    return state, int(parent)


def children(pid):
    """The child processes of a process."""
    numbers = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return {number for number in numbers if stat(number)[1] == pid and stat(number)[0] != "Z"}


async def gone(found):
    """Wait until all these processes have ended."""
    async with asyncio.timeout(PATIENCE):
        while any(stat(pid)[0] != "Z" for pid in found):
            await asyncio.sleep(0.02)


async def test_several_workers_serve_on_one_port_and_end_with_their_supervisor(folder):
    with supervised(folder) as (running, url):
        await until(running, "3 workers are ready")
        workers = children(running.process.pid)
        assert len(workers) == 3
        found = await pids(url)
        assert found <= workers
        assert len(found) > 1
        async with AsyncExitStack() as stack:
            logs = []
            for _ in range(5):
                client = await stack.enter_async_context(WseClient(url, identity="ann"))
                logs.append(ClientLog(client))
            assert await end(running) == 0
            for log in logs:
                assert await log.until("closed") == ("closed", 1012, "wse.by-server")
        assert "Traceback" not in running.output
        assert "worker 3 (pid " in running.output


async def test_ctrl_c_ends_it_as_well(folder):
    with supervised(folder, 2, own_group=True) as (running, url):
        await until(running, "2 workers are ready")
        async with WseClient(url, identity="ann") as client:
            log = ClientLog(client)
            call = asyncio.ensure_future(client.call("wait", 0.05))
            await until(running, "waiting")
            os.killpg(running.process.pid, signal.SIGINT)  # as a terminal does: to all that it has started
            assert await call == "waited"
            assert await log.until("closed") == ("closed", 1012, "wse.by-server")
        assert await asyncio.to_thread(running.stop) == 0
        assert running.output.count("closing 2 workers") == 1


async def test_a_worker_that_is_killed_is_replaced_at_once(folder):
    with supervised(folder) as (running, url):
        await until(running, "3 workers are ready")
        victim = min(children(running.process.pid))
        os.kill(victim, signal.SIGKILL)
        await until(running, f"(pid {victim}) ended with SIGKILL; another starts in 0 s")
        await until(running, "is ready\n")
        workers = children(running.process.pid)
        assert len(workers) == 3
        assert victim not in workers
        assert await pids(url) <= workers
        assert await end(running) == 0


async def successor(running, victim):
    """The worker that replaces the only one, once it is ready."""
    async with asyncio.timeout(PATIENCE):
        while not (found := children(running.process.pid) - {victim}):
            await asyncio.sleep(0.02)
    (pid,) = found
    await until(running, f"worker 1 (pid {pid}) is ready")
    return pid


async def test_waits_grow_while_workers_die_young(folder):
    with supervised(folder, 1, stable_after=1000.0) as (running, _):
        await until(running, "1 workers are ready")
        (victim,) = children(running.process.pid)
        for wait in ("0.05", "0.1", "0.2"):
            os.kill(victim, signal.SIGKILL)
            await until(running, f"(pid {victim}) ended with SIGKILL; another starts in {wait} s")
            victim = await successor(running, victim)
        assert await end(running) == 0


async def test_a_place_that_waits_for_its_worker_is_taken_by_a_roll_and_not_again(folder):
    with supervised(folder, 2, stable_after=1000.0, restarts=1.0) as (running, _):
        await until(running, "2 workers are ready")
        first = min(children(running.process.pid))
        os.kill(first, signal.SIGKILL)
        await until(running, f"(pid {first}) ended with SIGKILL; another starts in 1 s")
        running.process.send_signal(signal.SIGHUP)
        await until(running, "all workers have been replaced")
        workers = children(running.process.pid)
        second = min(workers)
        os.kill(second, signal.SIGKILL)
        await until(running, f"(pid {second}) ended with SIGKILL; another starts in 1 s")
        (successor,) = await new_children(running, workers)  # after a wait that is longer than the first
        assert children(running.process.pid) == workers - {second} | {successor}
        assert await end(running) == 0


async def new_children(running, known):
    async with asyncio.timeout(PATIENCE):
        while not (found := children(running.process.pid) - known):
            await asyncio.sleep(0.02)
    return found


async def test_sighup_replaces_all_workers_while_clients_come_back(folder):
    with supervised(folder) as (running, url):
        await until(running, "3 workers are ready")
        before = children(running.process.pid)
        async with WseClient(url, identity="ann", reconnect=True, backoff=NO_WAIT) as client:
            log = ClientLog(client)
            assert await client.call("pid") in before
            running.process.send_signal(signal.SIGHUP)
            await until(running, "all workers have been replaced")
            after = children(running.process.pid)
            assert len(after) == 3
            assert not after & before
            assert await log.until("closed") == ("closed", 1012, "wse.by-server")
            async with asyncio.timeout(PATIENCE):
                while client.status is not ClientStatus.READY or await pid_of(client) not in after:
                    await asyncio.sleep(0.02)
        assert await end(running) == 0


async def pid_of(client):
    try:
        return await client.call("pid")
    except WseError:
        return None


async def test_a_roll_whose_new_worker_fails_leaves_the_old_ones(folder):
    with supervised(folder) as (running, url):
        await until(running, "3 workers are ready")
        before = children(running.process.pid)
        (folder / "app.py").write_text("raise RuntimeError('half a deployment')")
        running.process.send_signal(signal.SIGHUP)
        await until(running, "before it was ready; the old workers go on")
        assert children(running.process.pid) == before
        assert await pids(url, 5) <= before
        assert await end(running) == 0


async def test_a_worker_that_never_gets_ready_ends_everything_with_a_message(folder):
    (folder / "app.py").write_text("raise RuntimeError('broken')")
    with supervised(folder) as (running, _):
        assert await asyncio.to_thread(running.stop) == 1
        assert "giving up: worker 1 (pid " in running.output
        assert "ended with status 1 before it was ready" in running.output


async def test_workers_that_can_start_no_more_are_given_up(folder):
    with supervised(folder, 1) as (running, _):
        await until(running, "1 workers are ready")
        (folder / "app.py").write_text("raise RuntimeError('broken')")
        (victim,) = children(running.process.pid)
        os.kill(victim, signal.SIGKILL)
        assert await asyncio.to_thread(running.stop) == 1
        assert "ended with status 1, 5 times in a row, and no other is ready" in running.output


async def test_a_worker_that_hangs_at_its_start_is_killed(folder):
    command = [sys.executable, "-c", "import time; time.sleep(1000)"]
    with supervised(folder, 2, command=command, start_timeout=0.3) as (running, _):
        assert await asyncio.to_thread(running.stop) == 1
        assert "was not ready after 0.3 s" in running.output
        assert "ended with SIGKILL before it was ready" in running.output


async def test_a_worker_that_cannot_be_started_at_all_is_told(folder):
    with supervised(folder, command=["/no/such/program"]) as (running, _):
        assert await asyncio.to_thread(running.stop) == 1
        assert "giving up: a worker cannot be started: [Errno 2]" in running.output


async def test_a_worker_that_does_not_end_is_killed(folder):
    with supervised(folder, 1) as (running, url):
        await until(running, "1 workers are ready")
        client = WseClient(url, identity="ann")
        await client.connect()
        call = asyncio.ensure_future(client.call("block"))
        await until(running, "blocking")
        assert await end(running) == 0
        with pytest.raises(WseError):
            await call
        assert "did not end in time and is killed" in running.output
        await client.close()


async def test_workers_end_when_their_supervisor_has_died(folder):
    with supervised(folder) as (running, _):
        await until(running, "3 workers are ready")
        workers = children(running.process.pid)
        running.process.kill()
        await gone(workers)


# The command itself, with one process.


async def test_one_process_serves_until_it_is_told_to_end(folder):
    port = free_port()
    for extra in ([], ["--uvloop"]):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            with program(
                "-m", "wse", "serve", "app:server", "--port", str(port), *extra, cwd=folder, measured=True
            ) as running:
                await until(running, f"listening on ws://127.0.0.1:{port}")
                async with WseClient(f"ws://127.0.0.1:{port}", identity="ann") as client:
                    log = Log()
                    client.when.closed(log.adder("closed"))
                    assert await end(running, number) == 0
                    assert await log.until("closed") == ("closed", 1012, "wse.by-server")
            assert "Traceback" not in running.output


async def test_running_handlers_have_the_grace_until_a_second_signal(folder):
    port = free_port()
    with program(
        "-m", "wse", "serve", "app:server", "--port", str(port), "--grace", "60", cwd=folder, measured=True
    ) as running:
        await until(running, f"listening on ws://127.0.0.1:{port}")
        async with WseClient(f"ws://127.0.0.1:{port}", identity="ann") as client:
            log = ClientLog(client)
            first = asyncio.ensure_future(client.call("wait", 0.3))
            second = asyncio.ensure_future(client.call("wait", 1000))
            await until(running, "waiting\nwaiting")
            running.process.send_signal(signal.SIGTERM)
            assert await first == "waited"
            running.process.send_signal(signal.SIGTERM)
            assert await log.until("closed") == ("closed", 1012, "wse.by-server")
            with pytest.raises(WseError):
                await second
        assert await asyncio.to_thread(running.stop) == 0
        assert "Traceback" not in running.output


async def test_load_balancers_are_told_for_as_long_as_asked(folder):
    port = free_port()
    options = ["--port", str(port), "--notice", "60"]
    with program("-m", "wse", "serve", "app:server", *options, cwd=folder, measured=True) as running:
        await until(running, f"listening on ws://127.0.0.1:{port}")
        async with WseClient(f"ws://127.0.0.1:{port}", identity="ann") as client:
            running.process.send_signal(signal.SIGTERM)
            await until(running, "closing")
            async with await RawSocket.open(f"ws://127.0.0.1:{port}") as socket:
                assert (await socket.request("/readyz"))[0] == 503
            assert await client.call("pid") == running.process.pid
        assert await end(running) == 0


@pytest.mark.parametrize("workers", [1, 2])
async def test_signals_that_come_while_modules_are_imported_are_taken_as_later(folder, workers):
    (folder / "slow.py").write_text("import time; print('importing', flush=True); time.sleep(60)")
    options = ["--port", str(free_port()), "--workers", str(workers), "--broker", "nats://127.0.0.1:1"]
    with program("-m", "wse", "serve", "slow:server", *options, cwd=folder, measured=True) as running:
        await until(running, "importing")
        if workers > 1:
            running.process.send_signal(signal.SIGHUP)
        assert await end(running, signal.SIGTERM) == 0


async def test_a_broker_that_is_not_there_is_one_line_that_says_why(folder):
    options = ["--port", str(free_port()), "--broker", "redis://:secret@127.0.0.1:1"]
    with program("-m", "wse", "serve", "app:server", *options, cwd=folder, measured=True) as running:
        assert await asyncio.to_thread(running.stop) == 1
        assert running.output.startswith("Error: the server cannot start: wse.server.broker-unavailable")
        assert "127.0.0.1:1" in running.output
        assert "secret" not in running.output
        assert running.output.count("\n") == 1


@pytest.fixture
def stack():
    with ExitStack() as stack:
        yield stack


@pytest.mark.parametrize("engine", [Nats, Valkey])
async def test_workers_that_share_a_broker_are_one(folder, stack, tmp_path, engine):
    """With the command: users on one worker reach those on the other."""
    broker = stack.enter_context(engine(tmp_path)).url()
    port = free_port()
    options = ["--factory", "--host", "127.0.0.1", "--port", str(port), "--workers", "2", "--broker", broker]
    with program("-m", "wse", "serve", "app:make", *options, cwd=folder, measured=True) as running:
        await until(running, "2 workers are ready")
        assert len(children(running.process.pid)) == 2
        async with AsyncExitStack() as users:
            pids, heard, clients = set(), [], []
            while len(pids) < 2:  # the kernel chooses the worker
                client = WseClient(f"ws://127.0.0.1:{port}", identity=f"user {len(clients)}")
                await users.enter_async_context(client)
                pids.add(await client.call("pid"))
                client.channel.on("all", heard.append)
                clients.append(client)
            clients[0].send("all", "hello")
            async with asyncio.timeout(PATIENCE):
                while len(heard) < len(clients):
                    await asyncio.sleep(0.001)
        with program("-m", "wse", "serve", "app:make", *options, cwd=folder, measured=True) as second:
            assert await asyncio.to_thread(second.stop) == 1
            assert second.output == f"Error: port {port} of 127.0.0.1 is not available: Address already in use\n"
        assert await end(running) == 0


@pytest.mark.parametrize("engine", [pytest.param(Nats, marks=pytest.mark.slow), Valkey])
async def test_sighup_loses_nothing_for_clients_that_take_their_sessions_along(folder, tmp_path, engine):
    port = free_port()
    with ExitStack() as stack:
        running_engine = stack.enter_context(engine(tmp_path))
        options = ["--port", str(port), "--workers", "3", "--broker", running_engine.url()]
        running = stack.enter_context(program("-m", "wse", "serve", "app:server", *options, cwd=folder))
        await until(running, "3 workers are ready")
        before = children(running.process.pid)
        log, heard = Log(), []
        options = {"reconnect": True, "resume": True, "backoff": NO_WAIT, "timeout": PATIENCE}
        async with WseClient(f"ws://127.0.0.1:{port}", identity="ann", **options) as client:
            client.channel.on("all", heard.append)
            for name in ("resumed", "lost"):
                getattr(client.when, name)(log.adder(name))
            first = await client.call("pid")
            running.process.send_signal(signal.SIGHUP)
            replaced = asyncio.ensure_future(until(running, "all workers have been replaced"))
            count = 0
            while not replaced.done():
                client.send("all", count)
                count += 1
                await asyncio.sleep(0.01)
            await replaced
            await client.flush()
            async with asyncio.timeout(PATIENCE):
                while len(heard) < count:
                    await asyncio.sleep(0.02)
            assert heard == list(range(count))
            assert log.all("lost") == []
            assert len(log.all("resumed")) >= 1
            last = await client.call("pid")
            assert first in before
            assert last not in before
        assert await end(running) == 0


async def test_a_second_signal_kills_at_once(folder):
    with supervised(folder, 1, kill_timeout=1000.0) as (running, url):
        await until(running, "1 workers are ready")
        client = WseClient(url, identity="ann")
        await client.connect()
        call = asyncio.ensure_future(client.call("block"))
        await until(running, "blocking")
        running.process.send_signal(signal.SIGTERM)
        await until(running, "closing 1 workers")
        assert await end(running) == 0
        with pytest.raises(WseError):
            await call
        await client.close()


async def test_a_taken_port_is_one_line_and_status_1(folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with program("-m", "wse", "serve", "app:server", "--port", str(port), cwd=folder, measured=True) as running:
            assert await asyncio.to_thread(running.stop) == 1
            assert running.output.startswith("Error: the server cannot start: ")
            assert "address already in use" in running.output
            assert running.output.count("\n") == 1


async def test_a_server_that_lacks_something_is_one_line_and_status_1(folder):
    with program("-m", "wse", "serve", "app:no_identify", cwd=folder, measured=True) as running:
        assert await asyncio.to_thread(running.stop) == 1
        assert running.output == (
            "Error: the server cannot start: wse.server.auth.identify-handler-missing: "
            "the server needs an identify handler\n"
        )


async def scraped(port):
    """The samples at the address of the supervisor, by name and labels as Prometheus reads them."""
    async with httpx.AsyncClient(trust_env=False) as client:
        text = (await client.get(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE)).text
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}


async def test_the_supervisor_serves_the_sum_of_its_workers_metrics_which_never_falls(folder, tmp_path):
    port, metrics = free_port(), free_port()
    with Valkey(tmp_path) as engine:
        options = ["--port", str(port), "--workers", "2", "--broker", engine.url(), "--metrics", f"127.0.0.1:{metrics}"]
        with program("-m", "wse", "serve", "app:server", *options, cwd=folder, measured=True) as running:
            await until(running, "2 workers are ready")
            async with AsyncExitStack() as stack:
                found = set()
                while len(found) < 2:  # the kernel chooses the worker
                    client = WseClient(f"ws://127.0.0.1:{port}", identity="ann")
                    await stack.enter_async_context(client)
                    found.add(await client.call("pid"))
                samples = await scraped(metrics)
                opened = samples["wse_connections"]
                assert opened == samples["wse_connections_opened_total"] >= 2
                assert samples['wse_calls_total{direction="in",outcome="ok"}'] == opened
                assert samples['wse_call_duration_seconds_count{procedure="pid"}'] == opened
                assert samples["wse_cluster_nodes"] == 2
                os.kill(min(found), signal.SIGKILL)
                async with asyncio.timeout(PATIENCE):
                    while (samples := await scraped(metrics))["wse_connections"] == opened:
                        assert samples["wse_connections_opened_total"] >= opened
                        await asyncio.sleep(0.01)
                await until(running, "another starts in")
                assert samples["wse_connections_opened_total"] >= opened
            async with httpx.AsyncClient(trust_env=False) as client:
                for path, method, status in (("/", "GET", 404), ("/metrics", "POST", 405), ("/metrics", "HEAD", 200)):
                    answer = await client.request(method, f"http://127.0.0.1:{metrics}{path}", timeout=PATIENCE)
                    assert answer.status_code == status
            assert await end(running) == 0
            assert "Traceback" not in running.output


async def test_a_single_process_serves_its_metrics_at_an_address_of_their_own(folder):
    port, metrics = free_port(), free_port()
    options = ["--port", str(port), "--metrics", f"127.0.0.1:{metrics}"]
    with program("-m", "wse", "serve", "app:server", *options, cwd=folder, measured=True) as running:
        await until(running, f"listening on ws://127.0.0.1:{port}")
        assert (await scraped(metrics))["wse_connections"] == 0
        with program("-m", "wse", "serve", "app:server", "--port", "0", *options[2:], cwd=folder) as second:
            assert await asyncio.to_thread(second.stop) == 1
            assert "in use" in second.output
        assert await end(running) == 0
