"""The commands and their options."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wse.brokers.memory import MemoryBroker
from wse.cli.bench import bench_command
from wse.cli.client import call_command, listen_command, publish_command, send_command
from wse.cli.contract import contract_command, generate_command
from wse.cli.metrics import parse_address
from wse.cli.output import Commands
from wse.cli.reload import check_watchfiles, run_reloading
from wse.cli.shell import shell_command
from wse.cli.supervisor import PortError, Supervisor, check_port
from wse.cli.target import TargetError, load
from wse.cli.top import top_command
from wse.cli.worker import StartError, WorkerSlot, serve
from wse.server.process import HANGUP, SHARES_PORTS
from wse.version import installed_version

if TYPE_CHECKING:
    from collections.abc import Callable

    from wse.cli.metrics import Address
    from wse.server.server import WseServer

LEVELS = ("debug", "info", "warning", "error", "critical")


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
def wse() -> None:
    """WebSocket Everywhere: serve applications written with the wse package, and talk to them."""


for command in (
    call_command,
    send_command,
    listen_command,
    shell_command,
    publish_command,
    bench_command,
    top_command,
    contract_command,
    generate_command,
):
    wse.add_command(command)


@wse.command()
def version() -> None:
    """Print the version of wse."""
    click.echo(installed_version())


@wse.command("serve")
@click.argument("target", metavar="MODULE:SERVER")
@click.option("--factory", is_flag=True, help="SERVER must be a function that returns the server.")
@click.option("--app-dir", default=".", show_default=True, help="The folder that is searched first for modules.")
@click.option("--host", help="The interface to listen on; '' for all.  [default: the server's own]")
@click.option("--port", type=click.IntRange(0, 65535), help="The port to listen on.  [default: the server's own]")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes that share the port.")
@click.option("--broker", metavar="URL", help="The broker that connects workers and nodes: nats://... or redis://...")
@click.option(
    "--metrics", metavar="HOST:PORT", help='Serve the metrics of all workers (pip install "wse[prometheus]").'
)
@click.option("--uvloop", is_flag=True, help='Run on uvloop (pip install "wse[uvloop]").')
@click.option("--log-level", type=click.Choice(LEVELS), default="info", show_default=True, help="The lowest level.")
@click.option("--reload", is_flag=True, help='Replace the workers when a file changes (pip install "wse[reload]").')
@click.option(
    "--grace",
    type=click.FloatRange(0),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="The time that running handlers have to end when the server closes.",
)
@click.option(
    "--notice",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    metavar="SECONDS",
    help="The time before closing in which /readyz answers 503, so that load balancers notice.",
)
def serve_command(
    target: str,
    factory: bool,
    app_dir: str,
    host: str | None,
    port: int | None,
    workers: int,
    broker: str | None,
    metrics: str | None,
    uvloop: bool,
    log_level: str,
    reload: bool,
    grace: float,
    notice: float,
) -> None:
    """Serve a WseServer until SIGINT or SIGTERM.

    With several workers, each is a process of its own and all share the port. A worker that dies is replaced, and
    SIGHUP replaces all of them, one by one. Workers need a broker, which carries messages between them.

    With --reload, a change of a Python file in the folder of --app-dir does the same as SIGHUP. If the new worker
    cannot start, the old one goes on.
    """
    # Importing modules takes time, and until there is an event loop signals would have their default effect.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if reload:
        check_watchfiles()
        # Python tells bytecode by size and whole seconds: of two saves within one, it would run the first.
        sys.dont_write_bytecode = True
    if (workers > 1 or reload) and not SHARES_PORTS:
        which = "--reload" if workers == 1 else "--workers"
        raise click.UsageError(f"{which} needs processes that share a port, which this system does not have")
    if (workers > 1 or reload) and HANGUP is not None:
        signal.signal(HANGUP, signal.SIG_IGN)  # there is nothing to replace yet
    try:
        slot = WorkerSlot.taken()
    except StartError as exc:
        raise click.UsageError(str(exc)) from exc
    app_dir = str(Path(app_dir).resolve())  # a module may change the current folder
    set_up_logging(log_level, name_of(slot, supervises=workers > 1 or reload))
    sys.path.insert(0, app_dir)
    new_loop = uvloop_factory() if uvloop else None
    try:
        server = load(target, factory=factory)
    except TargetError as exc:
        raise click.UsageError(str(exc)) from exc
    server.configure(host=host, port=port, reuse_port=slot is not None)
    if broker is not None:
        use_broker(server, broker)
    address = None if metrics is None else address_of(metrics)
    if workers == 1 and not reload:
        try:
            with asyncio.Runner(loop_factory=new_loop) as runner:
                runner.run(serve(server, grace=grace, notice=notice, slot=slot, metrics=address))
        except StartError as exc:
            raise click.ClickException(str(exc)) from exc
        return
    problem = problem_of_workers(server) if workers > 1 else problem_of_port(server)
    if problem is not None:
        raise click.UsageError(problem)
    assert server.port is not None  # or there was a problem
    try:
        check_port(server.host, server.port)
        if address is not None:
            check_port(*address)
    except PortError as exc:
        raise click.ClickException(str(exc)) from exc
    command = [sys.executable, *["-B"] * reload, "-m", "wse", "serve", target]
    command += ["--app-dir", app_dir, "--log-level", log_level]
    command += ["--port", str(server.port), "--grace", str(grace), "--notice", str(notice)]
    command += ["--factory"] * factory + ["--uvloop"] * uvloop
    if host is not None:
        command += ["--host", host]
    if broker is not None:
        command += ["--broker", broker]
    if metrics is not None:
        command += ["--metrics", metrics]
    resumption = server._hub.resumption
    drain = 0.0 if resumption is None else resumption.drain
    supervisor = Supervisor(command, workers, grace=grace, notice=notice, drain=drain, metrics=address)
    sys.exit(asyncio.run(run_reloading(supervisor, app_dir) if reload else supervisor.run()))


def address_of(metrics: str) -> Address:
    """The address for metrics."""
    try:
        import wse.prometheus  # noqa: F401 - so that a missing library is told before anything is started
    except ImportError as exc:
        raise click.UsageError(f"--metrics: {exc}") from exc
    try:
        return parse_address(metrics)
    except ValueError as exc:
        raise click.UsageError(f"--metrics: {exc}") from exc


def problem_of_port(server: WseServer) -> str | None:
    """The reason why workers cannot share the port of this server, and the remedy; `None` if they can."""
    if server.port is None or server.port == 0:
        return "several workers share one port, which must be given, as in --port 4200; so do those of --reload"
    return None


def problem_of_workers(server: WseServer) -> str | None:
    """The reason why several workers cannot serve this server, and the remedy; `None` if they can."""
    problem = problem_of_port(server)
    if problem is not None:
        return problem
    if server.cluster is None or isinstance(server.cluster.broker, MemoryBroker):
        return (
            "several workers need a broker, because without one, users on different workers cannot reach each other: "
            "start NATS and pass --broker nats://127.0.0.1:4222, or start Valkey or Redis and pass --broker "
            "redis://127.0.0.1:6379, or run one worker"
        )
    return None


def use_broker(server: WseServer, url: str) -> None:
    """Make the server a node of the broker's cluster."""
    try:
        server.use_broker(url)
    except (ValueError, ImportError) as exc:
        raise click.UsageError(str(exc)) from exc


def uvloop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """The factory of uvloop's event loops."""
    try:
        import uvloop
    except ImportError as exc:
        raise click.UsageError('--uvloop needs the uvloop library: pip install "wse[uvloop]"') from exc
    return uvloop.new_event_loop


def name_of(slot: WorkerSlot | None, *, supervises: bool) -> str:
    """The name of this process in logs."""
    if slot is not None:
        return f"worker {slot.number}"
    return "supervisor" if supervises else "server"


def set_up_logging(level: str, name: str) -> None:
    """Log to standard error, with the name and the pid of this process in every line."""
    logging.basicConfig(
        level=level.upper(), format=f"%(asctime)s %(levelname)s {name} (pid %(process)d) %(name)s: %(message)s"
    )
