"""The examples inside web frameworks, as the real server processes that their docstrings start."""

from __future__ import annotations

import asyncio
import re
import signal
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest

from support.net import ClientLog, soon
from support.programs import ROOT, free_port, program
from wse import ErrorCode, WseClient, WseError

EXAMPLES = ROOT / "examples" / "frameworks"
BY_UVICORN = (1012, "")  # uvicorn closes WebSockets itself, before the application is told that it ends
BY_WSE = (1012, "wse.by-server")


@dataclass
class Example:
    """One example, and how its server is started and ends.

    Attributes:
        name: The file's name, without its ending.
        command: What its docstring says, without `python -m`; the port's option follows.
        port_option: The option, up to the port.
        up: What the server prints when it is ready; None to try its port.
        headers: What opens the WebSocket; empty for those that log in.
        login: How to get a session's cookie.
        path: Of the WebSocket.
        goodbye: The close that a client sees when the server gets SIGTERM, or several that it may see.
        status: The server's exit status then.
        complains: What the server prints then, though nothing is wrong.
    """

    name: str
    command: list[str]
    port_option: str = "--port "
    headers: dict[str, str] = field(default_factory=dict)
    login: tuple[str, str] | None = ("POST", "/login?user=ada")
    online: str = "/online"
    path: str = "/ws"
    goodbye: tuple[tuple[int, str], ...] = (BY_UVICORN,)
    status: int = -signal.SIGTERM  # uvicorn ends by the signal that it was sent
    complains: str = ""


UVICORN = ["uvicorn", "--app-dir", "examples/frameworks"]
OURS = [*UVICORN, "--ws", "wse.uvicorn:WebSocketProtocol"]
ALL = [
    Example("fastapi_app", [*OURS, "fastapi_app:app"], path="/ws/chat", goodbye=(BY_WSE,)),
    Example(
        "starlette_app",
        [*UVICORN, "starlette_app:app"],
        headers={"Authorization": "Bearer t-4711"},
        login=None,
        online="/me",
    ),
    Example("litestar_app", [*OURS, "litestar_app:app"], goodbye=(BY_WSE,)),
    Example("django_app", [*OURS, "django_app:application"], login=("GET", "/login?user=ada"), goodbye=(BY_WSE,)),
    Example("quart_app", ["examples/frameworks/quart_app.py"], port_option="", goodbye=(BY_WSE,), status=0),
    Example(
        "quart_app",
        ["hypercorn", "quart_app:app"],
        port_option="--graceful-timeout 1 --bind 127.0.0.1:",
        goodbye=(BY_WSE,),
        status=0,
        # hypercorn cancels connections that are open after its graceful timeout, which asyncio's streams report
        # in Python 3.11 (https://github.com/python/cpython/issues/110467, mended in 3.12 and 3.13).
        complains=r"Exception in callback _?StreamReaderProtocol\.(.*\n)+?.*CancelledError\n",
    ),
    Example(
        "granian_app",
        ["granian", "--interface", "asgi", "--working-dir", "examples/frameworks", "granian_app:app"],
        headers={"X-Api-Key": "k-4711"},
        login=None,
        # granian cuts its WebSockets before it tells the application that it ends; a close may still be in time.
        goodbye=((1006, ""), BY_WSE),
        status=0,
    ),
    Example(
        "aiohttp_app",
        ["aiohttp.web", "-H", "127.0.0.1", "-P", "8000", "aiohttp_app:make_app"],
        port_option="-P ",
        path="/ws/chat",
        goodbye=(BY_WSE,),
        status=0,
    ),
]


@dataclass
class Running:
    example: Example
    program: Any
    url: str
    http: aiohttp.ClientSession
    headers: dict[str, str]

    def client(self, path=None, headers=None):
        client = WseClient(
            f"ws{self.url.removeprefix('http')}{path or self.example.path}",
            headers=self.headers if headers is None else headers,
        )
        client.register("device", lambda payload: "a phone")
        return client

    async def get(self, path):
        async with self.http.get(self.url + path, headers=self.headers) as response:
            return response.status, await response.json()

    async def stop(self):
        """End it by SIGTERM; its exit status. The loop goes on turning: clients answer the server's close."""
        return await asyncio.to_thread(self.program.stop, signal.SIGTERM)


@asynccontextmanager
async def running(example):
    """The example's server process, ready, and what its user is known by after the login."""
    port = free_port()
    docstring = (EXAMPLES / f"{example.name}.py").read_text().split('"""')[1]
    command = " ".join(example.command)
    assert command in docstring
    inside = re.search(f"cd {EXAMPLES.relative_to(ROOT)} && (python -m )?{re.escape(command)}", docstring) is not None
    arguments = ["-m", *example.command, *f"{example.port_option}{port}".split()]
    if not example.port_option:
        arguments = [*example.command, str(port)]
    # The option that comes last counts, and aiohttp wants its application last.
    if example.port_option == "-P ":
        arguments = [*arguments[:-3], *arguments[-2:], arguments[-3]]
    with program(*arguments, cwd=EXAMPLES if inside else ROOT) as process:
        await asyncio.to_thread(process.wait_until_open, port)
        url = f"http://127.0.0.1:{port}"
        async with aiohttp.ClientSession() as http:
            headers = dict(example.headers)
            if example.login is not None:
                method, target = example.login
                async with http.request(method, url + target) as response:
                    assert response.ok, await response.text()
                    assert await response.json() == {"user": "ada"}
                    headers["Cookie"] = "; ".join(f"{key}={morsel.value}" for key, morsel in response.cookies.items())
            yield Running(example, process, url, http, headers)
    output = re.sub(example.complains, "", process.output) if example.complains else process.output
    assert "Traceback" not in output, output
    assert "ERROR" not in output.replace(", errors: 0", "").upper(), output


@pytest.fixture(params=ALL, ids=lambda example: f"{example.name} by {example.command[0]}")
async def app(request):
    async with running(request.param) as app:
        yield app


async def test_the_example_works_and_ends_well(app):
    # Its own routes.
    status, online = await app.get(app.example.online)
    assert status == 200
    assert online in ([], {"user": "ada", "online": []})

    # Without its authentication there is no way in.
    for headers in ({}, {"Cookie": "session=guessed; sessionid=guessed"}, {"X-Api-Key": "guessed"}):
        with pytest.raises(WseError) as caught:
            await soon(app.client(headers=headers).connect())
        assert caught.value.code == ErrorCode.NOT_AUTHORIZED

    # With it, calls go both ways, beside the routes.
    client = app.client()
    log = ClientLog(client)
    assert await soon(client.connect()) == {"hello": "ada"}
    assert await soon(client.call("greet")) == "hello ada on a phone"
    status, online = await app.get(app.example.online)
    assert online in (["ada"], {"user": "ada", "online": ["ada"]})

    # A client sees its end, which is a good one.
    assert await app.stop() == app.example.status, app.program.output
    assert (await log.until("closed"))[1:] in app.example.goodbye


async def test_two_servers_share_fastapi_by_path():
    async with running(ALL[0]) as app:
        chat, admin = app.client(), app.client("/ws/admin")
        log = ClientLog(chat)
        assert await soon(chat.connect()) == {"hello": "ada"}
        assert await soon(admin.connect()) == {"online": 1}
        assert await soon(admin.call("announce", "tea")) == 1
        assert await log.until("ignored") == ("ignored", "news", "tea", None)
        with pytest.raises(WseError) as caught:
            await soon(chat.call("announce", "mine"))
        assert caught.value.code == ErrorCode.RP_NOT_REGISTERED
        with pytest.raises(WseError) as caught:
            await soon(app.client("/ws/other").connect())
        assert caught.value.code == ErrorCode.WS_CLIENT_ERROR
        await app.stop()


async def test_two_servers_share_aiohttp_by_path():
    async with running(ALL[-1]) as app:
        chat, status = app.client(), app.client("/ws/status", headers={})
        assert await soon(chat.connect()) == {"hello": "ada"}
        assert await soon(status.connect()) == {"online": 1}
        await app.stop()


@pytest.mark.parametrize("name", ["django_app", "quart_app", "granian_app"])
async def test_no_websocket_opens_under_another_path(name):
    example = next(example for example in ALL if example.name == name)
    async with running(example) as app:
        with pytest.raises(WseError) as caught:
            await soon(app.client("/elsewhere").connect())
        assert caught.value.code == ErrorCode.WS_CLIENT_ERROR
        assert "404" in str(caught.value)
        await app.stop()


async def test_a_session_that_django_has_ended_does_not_get_in():
    example = next(example for example in ALL if example.name == "django_app")
    async with running(example) as app:
        async with app.client():
            pass
        ended = dict(app.headers)
        async with app.http.get(f"{app.url}/login?user=ada") as response:
            app.headers["Cookie"] = f"sessionid={response.cookies['sessionid'].value}"
        async with app.http.get(f"{app.url}/password?new=analytical", headers=app.headers) as response:
            assert await response.json() == {"user": "ada"}
            app.headers["Cookie"] = f"sessionid={response.cookies['sessionid'].value}"
        async with app.client():
            pass  # the session that changed the password stays
        with pytest.raises(WseError) as caught:
            await soon(app.client(headers=ended).connect())
        assert caught.value.code == ErrorCode.NOT_AUTHORIZED
        await app.stop()
