"""The chat demo in the browser tests: its server process, and its page in a tab."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from uuid import uuid4

from support.programs import Program, free_port, program
from wse.auth import ScramKeys

PASSWORD = "correct horse battery"


def new_name(prefix):
    """A name that nobody has signed up with: a server lives as long as a module of tests."""
    return f"{prefix}-{uuid4().hex[:6]}"


class ChatServer:
    """The chat's server, a process that can be killed, frozen, and started again on its port."""

    def __init__(self, database: Path) -> None:
        self._database = database
        self._stack = ExitStack()
        self.port = free_port()
        self.url = f"http://localhost:{self.port}/"
        self.process: Program | None = None

    def start(self) -> None:
        args = ("--port", str(self.port), "--database", str(self._database))
        self.process = self._stack.enter_context(program("examples/chat/server.py", *args))
        self.process.wait_until_open(self.port)

    def new_user(self, name: str) -> str:
        """Add a user like this, whose password is soon checked: a browser takes half a second for the usual keys."""
        name = new_name(name)
        keys = json.dumps(ScramKeys.from_password(PASSWORD, iterations=4096).to_dict())
        with closing(sqlite3.connect(self._database)) as database, database:
            database.execute("INSERT INTO user VALUES (?, ?)", (name, keys))
        return name

    def kill(self) -> None:
        """End it without a close."""
        assert self.process is not None
        self.process.kill()

    def stop(self) -> None:
        """End it as with Ctrl-C: it closes its connections."""
        assert self.process is not None
        assert self.process.stop(signal.SIGINT) == 0

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """A stall: its sockets stay open, and nothing answers."""
        assert self.process is not None
        self.process.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.process.send_signal(signal.SIGCONT)

    def end(self) -> str:
        """Stop it, and return everything that the last process has printed."""
        assert self.process is not None
        if self.process.process.poll() is None:
            self.stop()
        self._stack.close()
        return self.process.output


class Held:
    """Messages between a page and its server that stay on their way until `let_go`, so that no test has to be quick.

    `holds(type, payload)` chooses them. The end of a connection waits for those that the server has sent before it.
    """

    def __init__(self, holds) -> None:
        self._holds = holds
        self._messages = []
        self._ends = []
        self._tasks = set()
        self._is_holding = True

    async def watch(self, page) -> None:
        """Watch the connections that the page opens from now on."""
        await page.route_web_socket(re.compile("^ws:"), self._connect)

    def let_go(self, *, messages=True) -> None:
        """Pass everything on; without `messages`, these are lost."""
        self._is_holding = False
        for action in (*(self._messages if messages else ()), *self._ends):
            action()

    def _connect(self, page) -> None:
        server = page.connect_to_server()
        page.on_message(lambda data: self._pass(server, data))
        server.on_message(lambda data: self._pass(page, data))
        server.on_close(lambda code, reason: self._end(lambda: self._close(page, code, reason)))

    def _pass(self, to, data) -> None:
        kind, payload, _ = json.loads(data)
        if self._is_holding and self._holds(kind, payload):
            self._messages.append(lambda: to.send(data))
        else:
            to.send(data)

    def _end(self, close) -> None:
        if self._is_holding and self._messages:
            self._ends.append(close)
        else:
            close()

    def _close(self, page, code, reason) -> None:
        task = asyncio.ensure_future(page.close(code=code, reason=reason))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def of_a_report(kind, payload, *, after=1) -> bool:
    """Whether a message tells the progress of a report after so many steps, or is the report."""
    if kind == "progress":
        return payload["done"] > after
    return kind == "~wse:response" and isinstance(payload, dict) and "words" in payload


class Tab:
    """A page as its user sees it."""

    def __init__(self, page, user):
        self.page = page
        self.user = user
        self.troubles = []
        self.frames = []
        page.on("pageerror", lambda error: self.troubles.append(str(error)))
        page.on("console", self._heard)
        page.on("websocket", lambda socket: socket.on("framesent", lambda data: self.frames.append(str(data))))
        self.text = page.get_by_label("Message", exact=True)
        self.messages = page.get_by_role("log")
        self.status = page.locator("#status")
        self.devices = page.locator("#devices li")
        self.banner = page.locator("#banner")

    def _heard(self, message):
        # A browser logs to the console that a server is away, and nothing can prevent that.
        is_absence = re.search("WebSocket connection to|net::ERR_CONNECTION", message.text)
        if message.type in {"error", "warning"} and not is_absence:
            self.troubles.append(message.text)

    async def enter(self, mode="Log in", *, password=PASSWORD, device=None, succeeds=True):
        await self.page.get_by_text(mode, exact=True).first.click()
        await self.page.get_by_label("Name", exact=True).fill(self.user)
        await self.page.get_by_label("Password").fill(password)
        if device:
            await self.page.get_by_label("This device is called").fill(device)
        await self.page.get_by_role("button", name=mode).click()
        if succeeds:
            await self.page.locator("#text:focus").wait_for()

    async def say(self, text, *, to=None):
        await self.page.bring_to_front()  # Chromium draws a tab behind another one once a second, and clicks wait
        await self.page.get_by_label("To", exact=True).select_option(to or "")
        await self.text.fill(text)
        await self.page.get_by_role("button", name="Send").click()

    def message(self, text):
        return self.messages.locator(".message", has_text=text)

    def device(self, name):
        return self.devices.filter(has_text=name)
