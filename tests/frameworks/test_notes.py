"""The application of examples/notes, over real sockets and with its generated clients; tests/browser has its page."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from contextlib import AsyncExitStack

import httpx
import pytest
from click.testing import CliRunner

from support.notes import COMMAND, MISSING, NOTES, WEB, module, node, notes_server
from support.programs import PATIENCE, ROOT, unmeasured
from wse import CloseReason, ErrorCode, WseError
from wse.cli.commands import wse as command

PASSWORDS = {"ada": "lovelace", "grace": "hopper"}
Client = module("notes_client").Client


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with notes_server(tmp_path_factory.mktemp("notes")) as url:
        yield url


@pytest.fixture(scope="module")
def tokens(url):
    """A token of each user, for all tests that do not end its session."""
    return {name: log_in(url, name, password).json()["token"] for name, password in PASSWORDS.items()}


def log_in(url, name, password):
    return httpx.post(f"{url}/login", json={"name": name, "password": password})


@pytest.fixture
async def connect(url, tokens):
    """`await connect(user)` is a device of a user. It has a queue `heard` with what it has been told."""
    async with AsyncExitStack() as stack:

        async def connect(user, *, token=None):
            client = Client(f"{url.replace('http', 'ws')}/ws", identity={"token": token or tokens[user]})
            client.heard = asyncio.Queue()
            for name in ("notes.added", "notes.removed", "account.presence"):
                client.channel.on(name, lambda payload, name=name: client.heard.put_nowait((name, payload)))
            return await stack.enter_async_context(client)

        yield connect


async def told(client, name):
    """What the next message of that name says."""
    async with asyncio.timeout(PATIENCE):
        while True:
            found, payload = await client.heard.get()
            if found == name:
                return payload


async def failure(call):
    with pytest.raises(WseError) as failed:
        await call
    return failed.value.code


@pytest.mark.parametrize(("name", "password"), [("ada", "hopper"), ("nobody", "lovelace"), ("", "")])
def test_a_wrong_name_or_password_gets_no_token(url, name, password):
    answer = log_in(url, name, password)
    assert (answer.status_code, answer.json()) == (401, {"detail": "The name or the password is wrong."})


async def test_an_unknown_token_is_refused_with_a_reason(connect):
    with pytest.raises(WseError) as failed:
        await connect("ada", token="stolen")
    assert (failed.value.code, failed.value.details["reason"]) == (ErrorCode.NOT_AUTHORIZED, "log in again")


async def test_a_note_reaches_the_other_devices_of_its_owner_and_nobody_else(connect):
    ada, phone, grace = [await connect(user) for user in ("ada", "ada", "grace")]
    note = await ada.call("notes.add", {"text": "Lunch?"})
    assert (note["owner"], note["text"]) == ("ada", "Lunch?")
    assert await told(phone, "notes.added") == note
    assert (await ada.call("notes.list", {"size": 1})) == [note]
    assert note not in await ada.call("notes.list", {"before": note["id"]})
    assert note not in await grace.call("notes.list", {})
    assert "notes.added" not in [name for name, _ in grace.heard._queue]


async def test_a_shared_note_reaches_the_devices_of_its_reader(connect):
    ada, grace = [await connect(user) for user in ("ada", "grace")]
    note = await ada.call("notes.add", {"text": "Bread"})
    await ada.call("sharing.share", {"note": note["id"], "user": "grace"})
    assert await told(grace, "notes.added") == note
    assert note in await grace.call("notes.list", {})
    await ada.call("sharing.unshare", {"note": note["id"], "user": "grace"})
    assert await told(grace, "notes.removed") == note["id"]
    assert note not in await grace.call("notes.list", {})
    assert await failure(ada.call("sharing.share", {"note": note["id"], "user": "eve"})) == "sharing.no-such-user"


async def test_guards_keep_notes_to_their_owners(connect):
    ada, grace = [await connect(user) for user in ("ada", "grace")]
    ref = {"note": (await ada.call("notes.add", {"text": "Mine"}))["id"]}
    for call in (
        grace.call("notes.remove", ref),
        grace.call("sharing.share", {**ref, "user": "grace"}),
        grace.call("sharing.unshare", {**ref, "user": "grace"}),
        ada.call("notes.remove", {"note": 0}),
    ):
        assert await failure(call) == "notes.not-yours"


@pytest.mark.parametrize("yes", [True, False])
async def test_the_owner_is_asked_before_a_note_that_others_read_is_removed(connect, yes):
    ada, grace = [await connect(user) for user in ("ada", "grace")]
    note = (await ada.call("notes.add", {"text": "Ours"}))["id"]
    await ada.call("sharing.share", {"note": note, "user": "grace"})
    asked = []
    ada.register("confirm", lambda question: asked.append(question) or yes)
    assert await ada.call("notes.remove", {"note": note}) is yes
    assert asked == ["grace can read this note. Remove it?"]
    assert (note in [each["id"] for each in await grace.call("notes.list", {})]) is not yes
    if yes:
        assert [await told(each, "notes.removed") for each in (ada, grace)] == [note, note]


async def test_devices_are_asked_and_one_that_answers_nonsense_is_left_out(connect):
    for said in ({"kind": "page", "name": "Firefox"}, {"kind": "toaster", "name": "?"}):
        other = await connect("ada")
        other.register("device", lambda _, said=said: said)
    ada = await connect("ada")
    ada.register("device", lambda _: {"kind": "terminal", "name": "here"})
    devices = await ada.call("account.devices")
    assert sorted(each["name"] for each in devices) == ["Firefox", "here"]


async def test_users_come_and_go(connect):
    ada = await connect("ada")
    async with asyncio.timeout(PATIENCE):
        while await ada.call("account.online") != ["ada"]:  # the devices of other tests are leaving
            pass
    grace = await connect("grace")
    while await told(ada, "account.presence") != {"user": "grace", "online": True}:
        pass
    assert await ada.call("account.online") == ["ada", "grace"]
    await grace.close()
    assert await told(ada, "account.presence") == {"user": "grace", "online": False}


async def test_logging_out_ends_the_session_everywhere(url, connect):
    token = log_in(url, "ada", "lovelace").json()["token"]
    page, tab, other = await connect("ada", token=token), await connect("ada", token=token), await connect("ada")
    closed = asyncio.Queue()
    tab.when.closed(lambda code, reason: closed.put_nowait(reason))
    await page.call("account.log_out")
    assert await asyncio.wait_for(closed.get(), PATIENCE) == CloseReason.NOT_AUTHORIZED
    with pytest.raises(WseError):
        await connect("ada", token=token)
    assert "ada" in await other.call("account.online")


async def test_garbage_is_refused_before_it_reaches_a_handler(connect):
    ada = await connect("ada")
    garbage = {"notes.add": {"text": ""}, "notes.list": {"size": 1000}, "sharing.share": {"note": "x"}}
    for name, payload in garbage.items():
        assert await failure(ada.call(name, payload)) == ErrorCode.INVALID_PAYLOAD


def test_the_program_with_the_generated_client_adds_a_note(url):
    done = subprocess.run(
        [sys.executable, "-W", "error", "examples/notes/add.py", "grace", "Tea", "--password", "hopper", "--url", url],
        cwd=ROOT,
        env=unmeasured(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.stderr == ""
    assert " of grace: Tea\nseen by: terminal " in done.stdout


@pytest.mark.parametrize(("language", "file"), [("typescript", "web/src/api.ts"), ("python", "notes_client.py")])
def test_the_generated_clients_are_up_to_date(language, file):
    source = ["notes_app.main:server", "--app-dir", str(NOTES)]
    done = CliRunner().invoke(command, ["generate", language, *source, "-o", str(NOTES / file), "--check"])
    assert done.exit_code == 0, done.output


def test_what_its_pages_say_of_the_command_is_so():
    assert COMMAND in (NOTES / "README.md").read_text()
    assert COMMAND in (NOTES / "notes_app" / "main.py").read_text()
    assert "npm run " in (NOTES / "README.md").read_text()
    for script in ("api", "dev", "build"):
        assert script in json.loads((WEB / "package.json").read_text())["scripts"]


@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
def test_the_page_is_clean_for_the_strict_compiler_and_a_wrong_name_is_not(tmp_path):
    done = node("typescript", "bin/tsc")
    assert (done.returncode, done.stdout) == (0, "")
    config = json.loads((WEB / "tsconfig.json").read_text())
    assert config["compilerOptions"]["strict"]
    shutil.copytree(WEB / "src", tmp_path / "src")
    page = tmp_path / "src" / "main.ts"
    page.write_text(page.read_text().replace("{ text: text.value }", "{ txt: text.value }"))
    options = {"paths": {"wse-js": [str(ROOT / "js" / "wse.d.ts")]}, "typeRoots": [str(WEB / "node_modules")]}
    config["compilerOptions"].update(options, types=[])
    (tmp_path / "tsconfig.json").write_text(json.dumps({**config, "include": ["src"]}))
    wrong = node("typescript", "bin/tsc", "--project", str(tmp_path), "--pretty", "false")
    assert wrong.returncode != 0
    assert "'txt' does not exist in type 'NewNote'" in wrong.stdout
