"""The commands that are clients, in the process of the tests; tests/integration/test_command_line.py runs programs."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from queue import SimpleQueue

import click
import pytest
from click.testing import CliRunner

from support.hosted import hosted
from support.net import TIMEOUT, make_server
from wse import BlockingClient, ErrorCode, WseError, WseMsgpack
from wse.auth import ScramKeys, ScramServer
from wse.cli import shell as shell_module
from wse.cli.bench import Bench, allow_files, numbered
from wse.cli.commands import wse as command
from wse.cli.connection import Connection, identity_of
from wse.cli.output import describe, to_json
from wse.cli.shell import Shell, names_of


def identify(auth):
    if auth.identity == "stranger":
        auth.refuse("nobody knows you")
    else:
        auth.accept(json.dumps(auth.identity))


@pytest.fixture(scope="module")
def place():
    server = make_server(identify, conns_per_user=100, protocol=(make_server().protocol, WseMsgpack()))

    @server.register("who")
    def who(conn, payload):
        return [conn.cid, conn.protocol.name, conn.request.headers.get("X-Test"), payload]

    @server.register("refuse")
    def refuse(conn, payload):
        raise WseError("app.no", {"why": payload}, "not today")

    @server.register("fail")
    def fail(conn, payload):
        raise LookupError("lost")

    @server.register("count")
    def count(conn, payload):
        yield from range(payload)

    @server.register("echo")
    def echo(conn, payload):
        return payload

    @server.register("bytes")
    def some_bytes(conn, payload):
        return b"\x00\x01"

    @server.register("drop")
    def drop(conn, payload):
        conn.drop("bye", 4001)

    @server.register("late")
    def late(conn, payload):
        raise WseError(ErrorCode.RP_TIMEOUT, {"timeout": 0.05})

    with hosted(server) as place:
        server.channel.on("say", lambda conn, payload: place.events.put(payload))
        server.when.connected(lambda conn: place.events.put("connected"))
        yield place


@pytest.fixture(autouse=True)
def _clean(place):
    """Restore the signal handlers that a command sets, and forget what happened before."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    place.events = SimpleQueue()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def run(*args, **options):
    return CliRunner().invoke(command, args, **options)


def result(*args, **options):
    done = run(*args, **options)
    assert (done.exit_code, done.stderr) == (0, ""), done.output
    return json.loads(done.stdout)


def failure(*args, status=1, **options):
    done = run(*args, **options)
    assert (done.exit_code, done.stdout) == (status, "")
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


def test_a_result_is_json_and_no_identity_is_the_empty_one(place):
    assert result("call", place.url, "who") == ['""', "wse-default-json", None, None]
    assert result("call", place.url, "who", '{"a": [1, "é"]}')[3] == {"a": [1, "é"]}
    assert result("call", place.url, "who", "-", input="[1]")[3] == [1]


def test_the_options_say_who_connects_and_how(place):
    assert result("call", place.url, "who", "--identity", "ada")[0] == '"ada"'
    assert result("call", place.url, "who", "--identity", '{"name": "ada"}')[0] == '{"name": "ada"}'
    assert result("call", place.url, "who", "--token", "t-1")[0] == '{"token": "t-1"}'
    assert result("call", place.url, "who", env={"WSE_TOKEN": "t-2"})[0] == '{"token": "t-2"}'
    assert result("call", place.url, "who", "--protocol", "msgpack")[1] == "wse-msgpack"
    assert result("call", "--header", "X-Test: yes", place.url, "who")[2] == "yes"
    assert result("call", "--protocol", "msgpack", place.url, "bytes") == "AAE="


def test_scram_asks_for_the_password():
    class Users:
        async def get(self, username):
            return ScramKeys.from_password("secret", iterations=4096) if username == "ada" else None

    server = make_server(None)
    ScramServer(Users(), iterations=4096).attach(server)
    server.register("who", lambda conn, payload: conn.cid)
    with hosted(server) as place:
        assert result("call", place.url, "who", "--scram", "ada", env={"WSE_PASSWORD": "secret"}) == "ada"
        assert result("call", place.url, "who", "--scram", "ada", input="secret\n") == "ada"
        said = failure("call", place.url, "who", "--scram", "ada", input="wrong\n")
        assert said.startswith("wse.not-authorized: ")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("nothing",), "wse.server.rp.not-registered: nothing: no such procedure"),
        (("refuse", '"late"'), 'app.no: refuse: not today {"why":"late"}'),
        (("fail",), "wse.server.rp.failed: fail: LookupError: lost"),
        (("count", "3"), "wse.rp.is-a-stream: count: the procedure is a stream, and was called like a plain one"),
        (("late",), 'wse.client.rp.timeout: late: no answer in time {"timeout":0.05'),
        (("who", "--identity", "stranger"), "wse.not-authorized: the server refused the identity"),
        (("drop",), "wse.client.rp.disconnect: drop: the connection ended before the answer came"),
    ],
)
def test_a_failure_is_code_and_message_on_standard_error(place, args, said):
    assert failure("call", place.url, *args).startswith(said)


def test_a_server_that_cannot_be_reached_is_a_failure(unused_tcp_port):
    for name in ("call", "send", "listen", "shell"):
        arguments = ["x"] if name in ("call", "send") else []
        said = failure(name, f"ws://127.0.0.1:{unused_tcp_port}", *arguments)
        assert said.startswith("wse.client.ws-error: "), said


@pytest.fixture
def unused_tcp_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield probe.getsockname()[1]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("call", "ws://127.0.0.1", "x", "{"), "'{' is not JSON"),
        (("call", "http://127.0.0.1", "x"), "Error: "),
        (("call", "ws://127.0.0.1", "x", "--header", "nothing"), "a header looks like 'Name: value'"),
        (("call", "ws://127.0.0.1", "x", "--header", "A b: c"), "Error: "),
        (("call", "ws://127.0.0.1", "x", "--token", "t", "--identity", "i"), "exclude each other"),
        (("publish", "memory:", "ada", "news"), "reaches no server"),
        (("publish", "nonsense", "ada", "news"), "no broker has URLs"),
        (("publish", "nats://127.0.0.1", "ada", "news", "--number"), "invalid literal"),
    ],
)
def test_a_wrong_command_is_status_2(args, said):
    assert said in failure(*args, status=2)


def test_a_stream_is_a_line_for_each_item(place):
    done = run("call", place.url, "count", "3", "--stream")
    assert (done.exit_code, done.stdout) == (0, "0\n1\n2\n")
    assert failure("call", place.url, "echo", "--stream").startswith("wse.rp.not-a-stream: echo")


def test_a_message_is_sent(place):
    assert run("send", place.url, "say", '{"a": 1}').output == ""
    assert [place.next_event(), place.next_event()] == ["connected", {"a": 1}]
    assert failure("send", place.url, "~wse:hi").startswith("wse.server.protocol-violation")


def send_when_connected(place, *messages):
    """Send messages as soon as a client is connected, or raise a signal."""

    def connected(conn):
        for message in messages:
            conn.send(*message)

    place.server.threadsafe.run(place.server.when.connected.once, connected)


def test_messages_are_lines_for_programs(place):
    send_when_connected(place, ("chat", {"text": "hello"}), ("other", 1), ("chat", "two\nlines"))
    done = run("listen", place.url, "chat", "--count", "2")
    assert (done.exit_code, done.stdout) == (0, '{"text":"hello"}\n"two\\nlines"\n')
    send_when_connected(place, ("a", 1), ("b", 2))
    done = run("listen", place.url, "b", "a", "--count", "2")
    assert done.stdout == '{"type":"a","payload":1}\n{"type":"b","payload":2}\n'
    send_when_connected(place, ("any", None))
    assert run("listen", place.url, "--count", "1").stdout == '{"type":"any","payload":null}\n'


def test_listening_ends_with_the_connection(place):
    place.server.threadsafe.run(place.server.when.connected.once, lambda conn: conn.drop("bye", 4001))
    assert failure("listen", place.url).startswith("wse.client.connection-closed: ")


@pytest.mark.skipif(sys.platform == "win32", reason="there, these signals end the process")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_listening_ends_by_a_signal(place, number):
    place.server.threadsafe.run(place.server.when.connected.once, lambda conn: os.kill(os.getpid(), number))
    done = run("listen", place.url)
    assert (done.exit_code, done.output) == (0, "")


# wse bench


def test_a_bench_counts_calls_and_tells_percentiles(place):
    done = run("bench", place.url, "--clients", "5", "--calls", "200", "--in-flight", "2", "--identity", "u-{n}")
    assert done.exit_code == 0, done.output
    counts = json.loads(done.stdout)
    assert (counts["connected"], counts["right"], counts["missing"], counts["errors"]) == (5, 200, 0, {})
    assert list(counts["latency_ms"]) == ["p50", "p90", "p99", "p99.9", "max"]
    assert done.stderr.splitlines()[-1] == "5 of 5 clients, 200 of 200 calls"


@pytest.mark.parametrize(
    ("args", "counts", "errors"),
    [
        (("--expect", "-1"), {"right": 0, "wrong": 20, "missing": 0}, {}),
        (("--payload", "1", "--expect", "1"), {"right": 20, "wrong": 0}, {}),
        (("--procedure", "nothing"), {"right": 0, "missing": 20}, {"wse.server.rp.not-registered": 20}),
        (("--procedure", "late"), {"right": 0, "missing": 20}, {"wse.client.rp.timeout": 20}),
        (("--identity", "stranger"), {"connected": 0, "missing": 20}, {"wse.not-authorized": 2}),
        (("--procedure", "drop"), {"connections_lost": 2, "missing": 20}, {"wse.client.rp.disconnect": 2}),
    ],
)
def test_a_bench_fails_by_any_loss_or_wrong_answer(place, args, counts, errors):
    done = run("bench", place.url, "--clients", "2", "--calls", "20", *args)
    found = json.loads(done.stdout)
    assert ({name: found[name] for name in counts}, found["errors"]) == (counts, errors)
    assert done.exit_code == (0 if counts["right"] == 20 else 1) if "right" in counts else done.exit_code == 1


def test_a_bench_that_is_interrupted_tells_what_it_has(place, monkeypatch):
    async def interrupted(bench):
        raise KeyboardInterrupt

    monkeypatch.setattr(Bench, "run", interrupted)
    done = run("bench", place.url, "--calls", "1")
    assert (done.exit_code, json.loads(done.stdout)["missing"]) == (1, 1)


def test_each_client_of_a_bench_has_its_number():
    assert numbered({"name": "u-{n}", "age": 5}, 7) == {"name": "u-7", "age": 5}
    assert numbered("{n}", 7) == "7"
    assert numbered(3, 7) == 3


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
def test_files_are_allowed_as_far_as_the_system_lets():
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, before[0]), before[1]))
        allow_files(300)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 300
        allow_files(100)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 300
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


# wse shell


def test_a_script_for_the_shell_is_done_line_by_line(place):
    script = 'call who {"a": 1}\n\nstream count 2\nsend say 5\nstatus\nexit\ncall nothing\n'
    done = run("shell", place.url, input=script)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines() == ['["\\"\\"","wse-default-json",null,{"a":1}]', "0", "1", "READY"]
    assert [place.next_event(), place.next_event()] == ["connected", 5]


def test_a_script_that_fails_goes_on_and_has_status_1(place):
    script = "nonsense\ncall nothing\ncall who {\ncall\nhelp\n"
    done = run("shell", place.url, input=script)
    assert done.exit_code == 1
    said = [line for line in done.stderr.splitlines() if not line.startswith("#")]
    assert said[0] == "there is no command nonsense: help lists them"
    assert said[1] == "wse.server.rp.not-registered: nothing: no such procedure"
    assert said[2].startswith("'{' is not JSON")
    assert said[3] == "usage: call NAME [JSON]     call a procedure, and print its result"
    assert done.stdout.startswith("call NAME [JSON] ")


@pytest.fixture
def shell(place):
    with BlockingClient(place.url, identity="ada") as client:
        yield Shell(client, {"add", "answer"})


def test_the_shell_completes_commands_and_names(shell, place, capsys):
    assert shell.complete("s", "") == ["send ", "status ", "stream "]
    assert shell.complete("a", "call ") == ["add ", "answer "]
    assert shell.complete("", "status ") == []
    assert shell.complete("a", "call add ") == []
    assert shell.do("call echo 1")
    assert shell.complete("e", "call ") == ["echo "]
    shell._heard("news", 1, None)
    assert shell.complete("n", "send ") == ["news "]
    assert capsys.readouterr().out == "1\nnews 1\n"


def test_at_a_terminal_the_shell_has_a_prompt_history_and_completion(shell, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(shell_module, "HISTORY", tmp_path / "history")
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    typed = iter(["call echo 1", KeyboardInterrupt(), "call nothing", EOFError()])

    def read(prompt):
        shell._print("meanwhile")
        item = next(typed)
        if isinstance(item, BaseException):
            raise item
        return item

    monkeypatch.setattr("builtins.input", read)
    assert shell.run()
    assert "\r\x1b[Kmeanwhile\nwse> " in capsys.readouterr().out
    assert (tmp_path / "history").exists()
    monkeypatch.setattr(shell_module, "HISTORY", tmp_path / "no" / "folder")
    typed = iter(["exit"])
    assert shell.run()
    assert "the history cannot be kept" in capsys.readouterr().err
    monkeypatch.setattr(shell_module, "readline", None)
    typed = iter([EOFError()])
    assert shell.run()


def connection(url):
    return Connection(url, "", {}, "json", TIMEOUT)


def test_the_timeout_is_that_of_the_client():
    for client in (connection("ws://x").client("ada"), connection("ws://x").blocking()._client):
        assert client._endpoint.timeout == TIMEOUT


def test_names_are_those_of_a_contract_if_the_server_has_one(place, tmp_path):
    assert names_of(connection(place.url)) == frozenset()
    assert names_of(connection("ws://127.0.0.1:1")) == frozenset()
    contract = tmp_path / "contract"
    contract.write_text(json.dumps({"asyncapi": "3.0.0", "channels": {"add": {}, "x": {"address": "notes.missed"}}}))
    broken = tmp_path / "broken"
    broken.write_text('{"channels": [1]}')
    with hosted(make_server(files={"/contract.json": contract})) as other:
        assert names_of(connection(other.url)) == {"add", "notes.missed"}
    real = make_server(contract=True)
    real.register("add", lambda conn, payload: payload)
    with hosted(real) as other:
        assert names_of(connection(other.url)) == {"add"}
    with hosted(make_server(files={"/contract.json": broken})) as other:
        assert names_of(connection(other.url)) == frozenset()


def test_names_are_asked_of_the_server_alone_and_without_the_user_of_the_url(monkeypatch):
    asked = []

    class Nowhere:
        def __init__(self, host, port, timeout):
            asked.append((host, port))

        def request(self, *args, **kwargs):
            raise OSError

        def close(self):
            pass

    monkeypatch.setattr("http.client.HTTPConnection", Nowhere)
    for url in ("ws+unix:///run/chat.sock:/ws", "ws://ann:secret@chat.example.com/ws", "ws://[::1]:4200"):
        assert names_of(connection(url)) == frozenset()
    assert asked == [("chat.example.com", None), ("::1", 4200)]


# What they print.


def test_an_error_is_described_in_one_line():
    error = WseError(ErrorCode.WS_CLIENT_ERROR, {"url": "ws://x"})
    error.__cause__ = OSError("refused")
    assert describe(error) == "wse.client.ws-error: the WebSocket could not be opened (refused)"
    assert describe(WseError("app.no", {"rp": "a", "n": 1, "x": None})) == 'app.no: a {"n":1}'


def test_what_json_cannot_say_becomes_a_string():
    assert to_json({"at": 1j}) == '{"at":"1j"}'


def test_what_the_command_line_says_counts_more_than_a_token_in_the_environment(monkeypatch):
    monkeypatch.setenv("WSE_TOKEN", "abc")
    assert identity_of("abc", None, None) == {"token": "abc"}
    assert identity_of("abc", "ada", None) == "ada"
    with pytest.raises(click.UsageError):
        identity_of("other", "ada", None)
