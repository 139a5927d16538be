"""Every command of the command line as a program of its own, against a server that is a program as well."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import select
import shlex
import signal
import subprocess
import sys
import time

import pytest

from support.net import ClientLog
from support.programs import PATIENCE, free_port, program, unmeasured
from wse import BlockingClient, Inbox, WseClient, WseServer
from wse.errors import WseError

APP = """
from wse import WseError, WseServer

server = WseServer(lambda auth: auth.accept(auth.identity or "nobody"), conns_per_user=5000)
server.when.connected(lambda conn: print("connected", conn.cid, flush=True))

@server.register("add")
def add(conn, payload):
    return payload["a"] + payload["b"]

@server.register("echo")
def echo(conn, payload):
    return payload

@server.channel.on("chat")
def chat(conn, payload):
    server.broadcast("chat", payload)
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("app")
    (folder / "app.py").write_text(APP)
    port = free_port()
    with program("-m", "wse", "serve", "app:server", "--port", str(port), cwd=folder, measured=True) as server:
        server.wait_until_open(port)
        yield f"ws://127.0.0.1:{port}"
        assert server.stop(signal.SIGTERM) == 0


def run(*args, **options):
    """Run the command; returns its exit status, and what it prints on standard output and standard error."""
    command = [sys.executable, "-W", "error", "-m", "wse", *args]
    done = subprocess.run(
        command, env=unmeasured(), capture_output=True, text=True, timeout=PATIENCE, check=False, **options
    )
    return done.returncode, done.stdout, done.stderr


def test_a_call_prints_its_result_or_its_failure(url):
    assert run("call", url, "add", '{"a": 1, "b": 2}') == (0, "3\n", "")
    status, stdout, stderr = run("call", url, "nothing")
    assert (status, stdout, stderr) == (1, "", "wse.server.rp.not-registered: nothing: no such procedure\n")


def test_what_one_sends_another_hears(url):
    with program("-m", "wse", "listen", url, "chat", "--count", "2", "--identity", "listener") as listener:
        with BlockingClient(url) as client:
            while listener.process.poll() is None:  # until it is connected
                client.send("chat", {"text": "hello"})
                ready, _, _ = select.select([listener.process.stdout], [], [], 0.05)
                if ready:
                    break
        assert run("send", url, "chat", '{"text": "hello"}') == (0, "", "")
        assert listener.stop() == 0
        assert listener.output == 2 * '{"text":"hello"}\n'


def test_listening_ends_by_ctrl_c_and_when_its_reader_ends(url):
    with BlockingClient(url) as client:
        with program("-m", "wse", "listen", url) as listener:
            while not select.select([listener.process.stdout], [], [], 0.05)[0]:
                client.send("chat", 1)
            assert listener.stop(signal.SIGINT) == 0
            assert set(listener.output.splitlines()) == {'{"type":"chat","payload":1}'}
        command = [sys.executable, "-W", "error", "-m", "wse", "listen", url]
        with subprocess.Popen(command, env=unmeasured(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as listener:
            listener.stdout.close()
            end = time.monotonic() + PATIENCE
            while listener.poll() is None:
                assert time.monotonic() < end
                client.send("chat", 1)
                time.sleep(0.05)
            assert (listener.returncode, listener.stderr.read()) == (1, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")  # noqa: PTH110 - a device
@pytest.mark.parametrize("arguments", ["version", "--help", 'call {url} add {{"a":1,"b":2}}'])
def test_an_output_that_is_full_or_closed_is_a_line_and_a_status(url, arguments):
    command = [sys.executable, "-W", "error", "-m", "wse", *arguments.format(url=url).split()]
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=unmeasured(), text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "Error: the output cannot be written: No space left on device\n")


def test_an_output_that_was_closed_before_is_a_line_and_a_status():
    command = f"{shlex.quote(sys.executable)} -W error -m wse version >&-"
    done = subprocess.run(command, shell=True, stderr=subprocess.PIPE, env=unmeasured(), text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "Error: the output cannot be written: Bad file descriptor\n")


def test_a_bench_of_many_clients_loses_nothing(url):
    status, stdout, stderr = run("bench", url, "--clients", "200", "--calls", "2000")
    counts = json.loads(stdout)
    assert (status, counts["connected"], counts["right"], counts["errors"]) == (0, 200, 2000, {})
    assert stderr.splitlines()[-1] == "200 of 200 clients, 2000 of 2000 calls"


@pytest.mark.slow
def test_a_bench_of_two_thousand_clients_loses_nothing(url):
    status, stdout, _ = run("bench", url, "--clients", "2000", "--calls", "40000", "--in-flight", "2")
    counts = json.loads(stdout)
    assert (status, counts["connected"], counts["right"]) == (0, 2000, 40000)


def test_a_shell_at_a_terminal_edits_completes_and_remembers(url, tmp_path):
    ours, theirs = pty.openpty()
    environment = {**unmeasured(), "HOME": str(tmp_path), "TERM": "dumb", "INPUTRC": "/dev/null"}
    command = [sys.executable, "-W", "error", "-m", "wse", "shell", url]
    shell = subprocess.Popen(command, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, process_group=0)
    os.close(theirs)
    output = ""

    def until(text, times=1):
        nonlocal output
        end = time.monotonic() + PATIENCE
        while output.count(text) < times:
            assert select.select([ours], [], [], max(0, end - time.monotonic()))[0], output
            output += os.read(ours, 65536).decode()

    try:
        until("wse> ")
        os.write(ours, b'ca\tadd {"a": 40, "b": 2}\r')
        until("42")
        os.write(ours, b"call a\t")
        until("call add ")
        os.write(ours, b"1\r")
        until("wse.server.rp.failed: add")
        with BlockingClient(url) as client:
            client.send("chat", "news")
        until('chat "news"')
        os.write(ours, b"\x04")
        assert shell.wait(PATIENCE) == 0
        assert (tmp_path / ".wse_history").read_text().splitlines()[-1].startswith("call add 1")
    finally:
        os.close(ours)
        if shell.poll() is None:
            shell.kill()
            shell.wait()


async def test_a_message_is_published_to_a_user_and_to_a_room(nats):
    broker = nats.url()
    server = WseServer(lambda auth: auth.accept(auth.identity), port=0, broker=broker, conns_per_user=3, inbox=Inbox())
    async with server, WseClient(server.url, identity="ada") as ada, WseClient(server.url, identity=7) as seven:
        heard, numbers = ClientLog(ada), ClientLog(seven)
        server.room("hall").add(server.clients["ada"])
        for client, log in ((ada, heard), (seven, numbers)):
            client.channel.on("invoice", log.adder("invoice"))
        await soon_run("publish", broker, "ada", "invoice", '{"number": 1}')
        await soon_run("publish", broker, "hall", "invoice", '{"number": 2}', "--room")
        await soon_run("publish", broker, "7", "invoice", "3", "--number")
        for log, payload in ((heard, {"number": 1}), (heard, {"number": 2}), (numbers, 3)):
            await log.until("invoice", payload)
        await soon_run("publish", broker, "ada", "invoice", "4", "--keep", printed="1\n")
        await soon_run("publish", broker, "hall", "invoice", "5", "--keep", "--room", printed="1\n")
        await soon_run("publish", broker, "hall", "invoice", "6", "--keep", "--room", printed="2\n")
        assert [message.payload for message in await server.room("hall").history(last=5)] == [5, 6]
        await heard.until("invoice", 6)


async def soon_run(*args, printed=""):
    assert await asyncio.to_thread(run, *args) == (0, printed, "")


def test_publishing_without_the_broker_is_a_failure():
    status, stdout, stderr = run("publish", f"nats://127.0.0.1:{free_port()}", "ada", "invoice")
    assert (status, stdout) == (1, "")
    assert stderr.startswith("wse.server.broker-unavailable: ")


RELOADED = """
from wse import WseServer

server = WseServer(lambda auth: auth.accept("ada"))
server.register("version", lambda conn, payload: {version})
"""


def version_at(url):
    """What the server answers; `None` while it closes."""
    try:
        with BlockingClient(url, timeout=PATIENCE) as client:
            return client.call("version")
    except WseError:
        return None


def until_version(url, version):
    end = time.monotonic() + PATIENCE
    while (served := version_at(url)) != version:
        assert time.monotonic() < end, f"version {served} is served"


def save(app, text):
    """Save as if within one second, where bytecode of the same size looks current."""
    app.write_text(text)
    os.utime(app, (1_700_000_000, 1_700_000_000))


def test_a_changed_file_is_served_and_a_broken_one_is_not(tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    port = free_port()
    url = f"ws://127.0.0.1:{port}"
    app = tmp_path / "app.py"
    save(app, RELOADED.format(version=1))
    arguments = ["-m", "wse", "serve", "app:server", "--reload", "--port", str(port), "--grace", "0"]
    with program(*arguments, cwd=tmp_path, measured=True) as server:
        server.read_until("1 workers are ready")
        assert version_at(url) == 1
        save(app, RELOADED.format(version=2))
        until_version(url, 2)
        server.read_until("changed: app.py")
        server.read_until("all workers have been replaced")
        save(app, "this is not Python")
        server.read_until("the old workers go on")
        until_version(url, 2)
        save(app, RELOADED.format(version=3))
        until_version(url, 3)
        assert server.stop(signal.SIGINT) == 0


def test_a_server_without_a_port_cannot_be_reloaded(tmp_path):
    (tmp_path / "app.py").write_text(APP)
    status, stdout, stderr = run("serve", "app:server", "--reload", cwd=tmp_path)
    assert (status, stdout) == (2, "")
    assert "--port 4200" in stderr
