"""The tutorial's page in Chromium: what its chapter says happens does happen."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio

from browser.needs import expect
from support.pages import blocks_of
from support.programs import ROOT, Program, free_port

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAPTER = (ROOT / "docs/tutorial/browser.md").read_text()


class Chat:
    """The chapter's files in a folder, and its server."""

    def __init__(self, folder):
        self.folder = folder
        self.port = free_port()
        self.url = f"http://localhost:{self.port}/"
        for block in blocks_of(CHAPTER):
            if block.title:
                (folder / block.title).write_text(block.code.replace("4200", str(self.port)))

    def start(self):
        self.server = Program("server.py", cwd=self.folder)
        self.server.wait_until_open(self.port)

    def stop(self):
        assert self.server.stop(signal.SIGINT) == 0
        assert self.server.output == f"The page is at {self.url}\n"

    async def terminal(self):
        program = Program("terminal.py", cwd=self.folder)
        assert await asyncio.to_thread(program.stop) == 0
        return program.output.splitlines()


@pytest_asyncio.fixture(loop_scope="module")
async def chat(tmp_path):
    chat = Chat(tmp_path)
    chat.start()
    yield chat
    chat.server.kill()


async def enter(page, user):
    await page.get_by_label("Name").fill(user)
    await page.get_by_role("button", name="Enter").click()


@pytest.mark.slow
async def test_the_chapter_comes_true(browser, chat):
    async with AsyncExitStack() as stack:

        async def tab(width):
            context = await browser.new_context(viewport={"width": width, "height": 600})
            page = await (await stack.enter_async_context(context)).new_page()
            page.on("pageerror", lambda error: pytest.fail(str(error)))
            await page.goto(chat.url)
            return page, page.locator("#log li"), page.locator("#status")

        # The numbers are those of the list below "Try it".
        ada, ada_log, ada_status = await tab(700)  # 1
        await enter(ada, "ada")
        await expect(ada_log).to_have_text(["hello, ada"])
        await ada.get_by_label("Message").fill("Hello!")
        await ada.get_by_role("button", name="Send").click()
        await expect(ada_log).to_have_text(["hello, ada", "ada: Hello!"])

        grace, grace_log, grace_status = await tab(800)  # 2
        await enter(grace, "grace")
        await expect(grace_log).to_have_text(["hello, grace"])
        await grace.get_by_label("Message").fill("Good morning.")
        await grace.get_by_label("Message").press("Enter")
        await expect(grace_log).to_have_text(["hello, grace", "grace: Good morning."])
        await expect(ada_log.last).to_have_text("grace: Good morning.")
        await grace.get_by_role("button", name="Who is online?").click()
        await expect(grace_log.last).to_have_text("online: ada,grace")

        third, third_log, third_status = await tab(900)  # 3
        await enter(third, "mallory")
        await expect(third_log.last).to_have_text("error: wse.not-authorized")
        await enter(third, "ada")  # 4
        await expect(third_log.last).to_have_text("hello, ada")
        await third.get_by_role("button", name="My devices").click()
        await expect(third_log.last).to_have_text("devices: a tab of 700 pixels,a tab of 900 pixels")

        printed = await chat.terminal()
        assert printed == ["a tab of 700 pixels", "a tab of 900 pixels", "a terminal"]
        for log in (ada_log, grace_log, third_log):
            await expect(log.last).to_have_text("ada: I am in a terminal.")

        await asyncio.to_thread(chat.stop)  # 5
        for log, status in ((ada_log, ada_status), (grace_log, grace_status), (third_log, third_status)):
            await expect(log.last).to_have_text("closed: 1012 wse.by-server")
            await expect(status).to_have_text("RE_CONNECTING")
        chat.start()
        for status in (ada_status, grace_status, third_status):
            await expect(status).to_have_text("READY")
        await asyncio.to_thread(chat.stop)
