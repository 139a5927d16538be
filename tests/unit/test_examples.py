"""Every example runs, as a program of its own, and prints what it promises."""

from __future__ import annotations

import asyncio
import re
import shlex
import signal
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from urllib.request import urlopen

import pytest
from examples.chat.server import make_server
from examples.chat.store import PASSWORDS, Store

import wse
from support.programs import ROOT, free_port, program, unmeasured
from wse.auth import Scram, ScramKeys

EXAMPLES = ROOT / "examples"
CHAT = EXAMPLES / "chat"
WSE_JS = wse.js_client_path()

OUTPUT = {
    "anonymous.py": """\
the first guest is let in, others there: 0
the second guest is let in, others there: 1
the second guest hears: HELLO
""",
    "token_auth.py": """\
with a known token, the welcome is: {'hello': 'ada'}
the server knows: ['ada']
with an unknown token: wse.not-authorized: the server refused the identity
""",
    "jwt_auth.py": """\
a valid token
  client: welcome, for another N seconds
an expired token
  server: refused, ExpiredSignatureError
  client: wse.not-authorized
a token signed by somebody else
  server: refused, InvalidSignatureError
  client: wse.not-authorized
""",
    "sqlite_auth.py": """\
ada's key: signed in as ada
another key: wse.not-authorized
ada's key after it was revoked: wse.not-authorized
""",
    "challenge.py": """\
sensor-1 is let in; connected: sensor-1
sensor-2 is turned away: wse.not-authorized
sensor-3 is turned away: wse.not-authorized
""",
    "scram_auth.py": """\
what the server stores of a password: salt stored_key server_key iterations
the server:
  ada with 'lovelace': signed in
  ada with 'byron': wse.not-authorized
  nobody with 'lovelace': wse.not-authorized
a server that only claims to know ada:
  ada with 'lovelace': wse.not-authorized
""",
}


def run(script: Path, *args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", str(script), *args],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
        env=unmeasured(),
    )


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(OUTPUT)
    assert {path.name for path in CHAT.glob("*.py")} == {"server.py", "client.py", "demo.py", "store.py"}


@pytest.mark.parametrize("name", OUTPUT)
def test_example(name: str) -> None:
    result = run(EXAMPLES / name)
    assert result.stderr == ""
    assert re.sub(r"\d+ seconds", "N seconds", result.stdout) == OUTPUT[name]
    assert result.returncode == 0


# The chat.


def test_demo_shows_messages_and_calls_then_ends() -> None:
    result = run(CHAT / "demo.py", "--exit", "--port", "0")
    assert result.stderr == ""
    assert result.returncode == 0
    for line in (
        "ada/laptop     signs in; online: ada",
        "grace/desktop  signs in; online: ada, grace",
        "server         ada/phone says about itself: {'kind': 'phone', 'app': 'demo'}",
        "grace/desktop  hears ada/laptop: Hello, all.",
        "ada/phone      hears grace/desktop, to ada only: Lunch?",
        "ada/laptop     hears grace/desktop, to ada only: Lunch?",
        "ada/phone      hears ada/laptop, to this device only: Buy bread.",
        "ada/phone      gets: {'ada': 2, 'grace': 1}",
        "grace/desktop  gets the error chat.not-online: charles is not online",
        "grace/desktop  learns that ada has gone offline",
    ):
        assert f"  {line}\n" in result.stdout
    # A message to all of ada's devices, or to one of them, is for nobody else.
    assert "grace/desktop  hears grace/desktop" not in result.stdout
    assert "ada/laptop     hears ada/laptop, to this device" not in result.stdout


def test_demo_serves_on_until_ctrl_c(tmp_path: Path) -> None:
    port = free_port()
    with program(str(CHAT / "demo.py"), "--port", str(port), "--database", str(tmp_path / "chat")) as demo:
        url = f"ws://127.0.0.1:{port}"
        output = demo.read_until(f"--user grace --password hopper --url {url}\n")

        # The command that it prints works as it is.
        command = re.search(r"^  (.* --user ada --password lovelace .*)$", output, re.MULTILINE)
        assert command
        joined = subprocess.run(
            shlex.split(command[1]),
            input="Hi.\n/to grace psst\n",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=ROOT,
            env=unmeasured(),
        )
        assert joined.returncode == 0
        assert "* signed in as ada; online: ada, grace\n" in joined.stdout
        demo.read_until("grace/desktop  hears ada/terminal, to grace only: psst")
        demo.read_until("server         ada/terminal says about itself: {'device': 'terminal'")

        # So does the page.
        assert f"\n  http://localhost:{port}/\n" in output
        for path in ("/", "/chat.js", "/keys.js", "/chat.css", "/icon.svg", "/wse.js"):
            with urlopen(f"http://127.0.0.1:{port}{path}") as answer:
                file = WSE_JS if path == "/wse.js" else CHAT / "web" / (path[1:] or "index.html")
                assert answer.read() == file.read_bytes()

        assert demo.stop(signal.SIGINT) == 0
        assert demo.output.endswith("\nThe demo has ended.\n")
        assert "Traceback" not in demo.output


@pytest.mark.parametrize("script", ["demo.py", "server.py"])
def test_a_taken_port_is_told_in_one_line(script: str, tmp_path: Path) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        result = run(CHAT / script, "--port", str(port), "--database", str(tmp_path / "chat"))
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert str(port) in result.stderr


def test_two_people_chat(tmp_path: Path) -> None:
    port = free_port()
    url = f"ws://127.0.0.1:{port}"
    with program(str(CHAT / "server.py"), "--port", str(port), "--database", str(tmp_path / "chat")) as server:
        server.read_until("user grace, password hopper")
        server.wait_until_open(port)
        client = str(CHAT / "client.py")
        with (
            program(client, "--user", "ada", "--password", "lovelace", "--url", url, "--device", "sofa") as ada,
            program(client, "--user", "grace", "--password", "hopper", "--url", url) as grace,
        ):
            ada.read_until("/quit")
            grace.read_until("/quit")

            ada.type("Hello, Grace.")
            grace.read_until("ada/sofa: Hello, Grace.\n")
            ada.read_until("ada/sofa: Hello, Grace.\n")
            grace.type("/to ada Hello, Ada.")
            ada.read_until("grace/terminal, to you only: Hello, Ada.\n")
            ada.type("/who")
            ada.read_until("  ada, 1 device\n")
            ada.read_until("  grace, 1 device\n")
            ada.type("/to charles Are you there?")
            ada.read_until("! charles is not online\n")
            ada.type("/devices")
            ada.read_until("ada/sofa  {'device': 'sofa'")
            device = re.search(r"([0-9a-f]{16})  ada/sofa", ada.output)
            assert device
            ada.type(f"/note {device[1]} Remember.")
            ada.read_until("ada/sofa, to this device: Remember.\n")
            ada.type("/note 0000 Remember.")
            ada.read_until("! you have no such device\n")
            grace.type("/history")
            grace.read_until("  ada/sofa: Hello, Grace.\n")
            grace.read_until("  grace/terminal, to ada only: Hello, Ada.\n")
            # What others write does not control the terminal.
            grace.type("\x1b[2Jcleared?")
            ada.read_until("grace/terminal: [2Jcleared?\n")

            ada.type("/quit")
            assert ada.stop() == 0
            grace.read_until("* ada has gone offline\n")
            assert "to you only: Hello, Ada." not in grace.output

            # The server goes down and its clients try again.
            assert server.stop(signal.SIGTERM) == 0
            grace.read_until("* the connection is lost (1012), trying again\n")
            assert grace.stop(signal.SIGINT) == 0
        assert "Traceback" not in server.output + ada.output + grace.output

    # What was said is there after a restart: to everybody, and to those whom it concerns.
    with program(str(CHAT / "server.py"), "--port", str(port), "--database", str(tmp_path / "chat")) as server:
        server.wait_until_open(port)
        with program(client, "--user", "ada", "--password", "lovelace", "--url", url) as ada:
            ada.read_until("/quit")
            ada.type("/history")
            ada.read_until("  ada/sofa: Hello, Grace.\n")
            ada.read_until("  grace/terminal, to ada only: Hello, Ada.\n")
            ada.read_until("  grace/terminal: [2Jcleared?\n")
            ada.type("/quit")
            assert ada.stop() == 0


async def test_a_ref_is_that_of_one_message_and_nobody_leaves_the_conversation():
    with closing(Store(":memory:")) as store:
        async with make_server(0, store, log=lambda line: None) as server:
            ada, grace = (
                wse.WseClient(server.url, identity=Scram(name, PASSWORDS[name]), meta={"device": name})
                for name in ("ada", "grace")
            )
            heard = asyncio.Queue()
            grace.channel.on("message", heard.put_nowait)
            async with ada, grace:
                private = await ada.call("tell", {"to": "grace", "text": "psst", "ref": "1"})
                assert await ada.call("tell", {"to": "grace", "text": "psst", "ref": "1"}) == private
                for call, payload in (("say", {}), ("tell", {"to": "ada"}), ("tell", {"to": "nobody"})):
                    with pytest.raises(wse.WseError) as failed:
                        await ada.call(call, {"text": "psst", "ref": "1", **payload})
                    assert failed.value.code == "chat.bad-ref"
                room = grace.room("chat")
                await room.join()
                await room.leave()
                said = await ada.call("say", {"text": "hello", "ref": "2"})
                assert await ada.call("say", {"text": "hello", "ref": "2"}) == said
                async with asyncio.timeout(10):
                    assert await heard.get() == said
                assert heard.empty()
                with pytest.raises(wse.WseError):
                    await grace.room("everybody").join()


GOOD_KEYS = ScramKeys.from_password("correct horse").to_dict()
BAD_NAMES = ("", "a", "Ada", "ad a", "a" * 21, "ada/x", "ad\n", ".ada", "\u0430da")
BAD_KEYS = ({"iterations": 4096}, {"iterations": None}, {"salt": ""}, {"stored_key": "!"}, {"server_key": 1})
SIGN_UPS = {
    "bad-name": [{"name": name, "keys": GOOD_KEYS} for name in BAD_NAMES],
    "bad-request": [
        *(None, [], {}, "ada", {"name": "eve"}, {"name": None, "keys": GOOD_KEYS}, {"name": "eve", "keys": []}),
        *({"name": "eve", "keys": {**GOOD_KEYS, **wrong}} for wrong in BAD_KEYS),
    ],
    "name-taken": [{"name": "ada", "keys": GOOD_KEYS}],
    "done": [{"name": "eve", "keys": GOOD_KEYS}],
}


async def test_whoever_signs_up_is_answered_and_not_let_in(tmp_path: Path) -> None:
    port = free_port()
    url = f"ws://127.0.0.1:{port}"
    with program(str(CHAT / "server.py"), "--port", str(port), "--database", str(tmp_path / "chat")) as server:
        server.wait_until_open(port)
        for answer, sign_ups in SIGN_UPS.items():
            for sign_up in sign_ups:
                client = wse.WseClient(url, identity={"signup": sign_up})
                quests: list[object] = []
                client.challenge(quests.append)
                with pytest.raises(wse.WseError) as failed:
                    await client.connect()
                assert failed.value.code == wse.ErrorCode.NOT_AUTHORIZED
                assert quests == [{"signup": answer}], sign_up
        # The keys of the one who could sign up are in use, and nobody has replaced Ada's.
        for name, password in (("eve", "correct horse"), ("ada", "lovelace")):
            async with wse.WseClient(url, identity=Scram(name, password)) as client:
                assert set(await client.call("who-is-online")) == {name}
        assert server.stop(signal.SIGTERM) == 0
        assert "Traceback" not in server.output


def test_a_database_that_cannot_be_had_is_told_in_one_line() -> None:
    result = run(CHAT / "server.py", "--port", "0", "--database", str(ROOT / "no" / "such" / "directory"))
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1


def test_a_wrong_password_and_an_absent_server(tmp_path: Path) -> None:
    port = free_port()
    args = ("--user", "ada", "--password", "byron", "--url", f"ws://127.0.0.1:{port}")
    result = run(CHAT / "client.py", *args)
    assert result.returncode == 1
    assert result.stderr == f"No server at ws://127.0.0.1:{port}.\n"

    with program(str(CHAT / "server.py"), "--port", str(port), "--database", str(tmp_path / "chat")) as server:
        server.wait_until_open(port)
        result = run(CHAT / "client.py", *args)
    assert result.returncode == 1
    assert result.stderr.endswith(": the server refused the identity\n")
    assert len(result.stderr.splitlines()) == 1
