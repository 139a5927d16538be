"""The options of the `wse` command, and how it finds the server; tests/integration/test_workers.py runs it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from click import UsageError
from click.testing import CliRunner

from support.net import make_server
from support.programs import free_port
from wse.cli.commands import name_of, problem_of_workers, use_broker
from wse.cli.commands import serve_command as serve
from wse.cli.commands import wse as command
from wse.cli.supervisor import PortError, check_port
from wse.cli.target import TargetError, load
from wse.cli.worker import VARIABLE, WorkerSlot
from wse.core.resume import Resume
from wse.server.process import SHARES_PORTS

needs_shared_ports = pytest.mark.skipif(not SHARES_PORTS, reason="processes cannot share a port on this system")

MODULE = """
from wse import WseServer

server = WseServer(lambda auth: auth.accept(1), port=4200)
without_port = WseServer(lambda auth: auth.accept(1))
clustered = WseServer(lambda auth: auth.accept(1), broker="nats://127.0.0.1")
number = 1

class holder:
    server = server

def make():
    return server

async def make_later():
    return server

def make_nothing():
    return None

def needs(something):
    return server
"""


@pytest.fixture
def app(tmp_path, monkeypatch):
    """A folder with importable modules, which are unloaded after the test."""
    (tmp_path / "an_app.py").write_text(MODULE)
    (tmp_path / "broken_app.py").write_text("import not_installed_anywhere")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    yield tmp_path
    for name in ("an_app", "broken_app"):
        sys.modules.pop(name, None)


@pytest.fixture(autouse=True)
def _signals():
    """Restore the signal handlers: the command, which normally has a process of its own, sets them."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def run(*args):
    return CliRunner().invoke(command, args)


@pytest.mark.parametrize("target", ["an_app:server", "an_app:holder.server", "an_app:make"])
def test_a_server_is_found_by_its_name_or_made_by_a_function(app, target):
    assert load(target).port == 4200


def test_a_function_can_be_insisted_on(app):
    assert load("an_app:make", factory=True).port == 4200
    with pytest.raises(TargetError, match="an_app:server is not a function"):
        load("an_app:server", factory=True)


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("an_app", "it should look like module:server"),
        (":server", "it should look like module:server"),
        ("an_app:", "it should look like module:server"),
        ("no_such_app:server", "there is no module 'no_such_app'"),
        ("an_app.deeper:server", "there is no module 'an_app.deeper'"),
        ("an_app:nothing", "an_app has no nothing"),
        ("an_app:holder.nothing", "an_app has no holder.nothing"),
        ("an_app:make_later", "an_app:make_later is an async function"),
        ("an_app:number", "an_app:number is not a WseServer but of type int"),
        ("an_app:make_nothing", "the result of an_app:make_nothing is not a WseServer but of type NoneType"),
        ("an_app:needs", "an_app:needs is not a WseServer, and cannot be called without arguments"),
    ],
)
def test_a_bad_target_is_one_plain_line_and_status_2(app, target, problem):
    result = run("serve", target)
    assert result.exit_code == 2
    assert problem in result.output.splitlines()[-1]
    assert "Traceback" not in result.output


def test_what_a_module_itself_lacks_is_raised_as_it_is(app):
    with pytest.raises(ModuleNotFoundError, match="not_installed_anywhere"):
        load("broken_app:server")


def test_a_module_that_runs_its_server_is_told_that_the_command_does(app):
    (app / "an_app.py").write_text(MODULE + "server.run()")
    with pytest.raises(RuntimeError, match="call run\\(\\) below `if __name__"):
        load("an_app:server")
    with pytest.raises(ValueError, match="needs a port"):  # as always when the module is not imported by the command
        make_server(port=None).run()


@needs_shared_ports
def test_several_workers_without_a_broker_are_told_what_to_do(app):
    result = run("serve", "an_app:server", "--workers", "2")
    assert result.exit_code == 2
    for part in ("--broker nats://127.0.0.1:4222", "--broker redis://127.0.0.1:6379", "or run one worker"):
        assert part in result.output


@pytest.mark.parametrize(
    ("port", "broker", "problem"),
    [
        (4200, "nats://127.0.0.1:4222", None),
        (4200, "redis://127.0.0.1:6379", None),
        (4200, None, "need a broker"),
        (4200, "memory:", "need a broker"),
        (0, "nats://127.0.0.1:4222", "share one port"),
        (None, "nats://127.0.0.1:4222", "share one port"),
    ],
)
def test_several_workers_need_a_port_and_what_joins_processes(port, broker, problem):
    said = problem_of_workers(make_server(port=port, broker=broker))
    assert said is None if problem is None else problem in said


@pytest.mark.parametrize("address", ["9300", "127.0.0.1:"])
def test_an_address_for_metrics_that_is_none_is_refused(app, address):
    result = run("serve", "an_app:clustered", "--metrics", address)
    assert result.exit_code == 2
    assert "an address looks like 127.0.0.1:9300" in result.output


def test_a_broker_that_the_server_has_already_is_enough():
    server = make_server(port=4200)
    use_broker(server, "nats://127.0.0.1:4222")
    assert server.cluster is not None
    assert problem_of_workers(server) is None


@needs_shared_ports
@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--host", "127.0.0.1", "--broker", "redis://127.0.0.1", "--uvloop", "--metrics", f"127.0.0.1:{free_port()}"],
    ],
)
def test_the_workers_are_told_what_the_command_was_told(app, monkeypatch, options):
    commands = []

    class Recorder:
        def __init__(self, command, workers, *, grace, notice, drain, metrics):
            commands.append((command, workers, (grace, notice, drain)))

        async def run(self):
            return 0

    monkeypatch.setattr("wse.cli.commands.Supervisor", Recorder)
    port = free_port()
    waits = ["--grace", "2", "--notice", "3"]
    result = run("serve", "an_app:clustered", "--workers", "3", "--port", str(port), *waits, *options)
    assert result.exit_code == 0, result.output
    ((worker, workers, told_to_wait),) = commands
    assert (workers, told_to_wait) == (3, (2.0, 3.0, Resume().drain))
    assert worker[1:5] == ["-m", "wse", "serve", "an_app:clustered"]
    told = serve.make_context("serve", worker[4:]).params
    assert (told["port"], told["grace"], told["notice"], told["workers"]) == (port, 2.0, 3.0, 1)
    assert (told["uvloop"], told["log_level"], told["factory"]) == ("--uvloop" in options, "info", False)
    assert (told["host"], told["broker"]) == (("127.0.0.1", "redis://127.0.0.1") if options else (None, None))
    assert told["app_dir"] == str(Path.cwd())


def test_a_bad_broker_is_a_plain_line():
    with pytest.raises(UsageError, match="no broker has URLs"):
        use_broker(make_server(), "nonsense")


def test_a_port_that_is_taken_stops_several_workers_at_once(app):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortError, match=f"port {port} of 127.0.0.1 is not available: Address already in use"):
            check_port("127.0.0.1", port)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "", None])
def test_a_free_port_is_free_on_any_interface(host):
    port = free_port()
    check_port(host, port)
    check_port(host, port)


def test_a_family_that_the_kernel_lacks_is_passed_over(monkeypatch):
    real = socket.socket

    class WithoutIPv6(real):
        def __init__(self, family=-1, *args, **options):
            if family == socket.AF_INET6:
                raise OSError(97, "Address family not supported by protocol")
            super().__init__(family, *args, **options)

    port = free_port()
    monkeypatch.setattr(socket, "socket", WithoutIPv6)
    check_port("", port)
    with pytest.raises(PortError, match="Address family not supported"):
        check_port("::1", port)


def test_a_seat_that_nobody_has_given_is_a_plain_line(app, monkeypatch):
    for value in ("1", "1:x", "1:9999"):
        monkeypatch.setenv(VARIABLE, value)
        result = run("serve", "an_app:server")
        assert result.exit_code == 2
        assert f"{VARIABLE}={value} is in the environment, but only the supervisor may set it" in result.output


def test_a_worker_takes_its_seat_once(monkeypatch):
    ours, theirs = socket.socketpair()
    monkeypatch.setenv(VARIABLE, f"3:{theirs.detach()}")
    seat = WorkerSlot.taken()
    assert seat is not None
    with ours, seat.socket:
        seat.socket.send(b"x")
        assert (seat.number, ours.recv(1)) == (3, b"x")
    assert VARIABLE not in os.environ
    assert WorkerSlot.taken() is None
    assert [name_of(seat, supervises=False), name_of(None, supervises=False), name_of(None, supervises=True)] == [
        "worker 3",
        "server",
        "supervisor",
    ]


async def test_where_a_server_listens_cannot_change_while_it_does():
    server = make_server(host=None)
    assert server.host is None
    server.configure(host="127.0.0.1", port=0)
    assert (server.host, server.port) == ("127.0.0.1", 0)
    server.configure()
    assert (server.host, server.port) == ("127.0.0.1", 0)
    async with server:
        with pytest.raises(RuntimeError, match="started"):
            server.configure(port=1)


@needs_shared_ports
async def test_two_servers_that_reuse_a_port_share_it():
    first = make_server()
    first.configure(reuse_port=True)
    async with first:
        second = make_server(port=first.port)
        second.configure(reuse_port=True)
        async with second:
            assert first.port == second.port


def test_version_is_that_of_the_package():
    result = run("version")
    assert result.output == f"{version('wse')}\n"


def without(library, *args):
    """Run the command as if a library were not installed."""
    program = f"import sys; sys.modules[{library!r}] = None; sys.argv[0] = 'wse'; from wse.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program, *args], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr.splitlines()[-1]


def test_without_click_one_line_names_the_extra():
    assert without("click", "version") == (1, 'the wse command needs the click library: pip install "wse[cli]"')


def test_without_uvloop_one_line_names_the_extra():
    status, said = without("uvloop", "serve", "x:y", "--uvloop")
    assert (status, said) == (2, 'Error: --uvloop needs the uvloop library: pip install "wse[uvloop]"')


def test_an_error_inside_the_command_is_not_taken_for_a_missing_library():
    status, said = without("wse.cli.worker", "version")
    assert status == 1
    assert "wse.cli.worker" in said
