"""The page of examples/tokens in Chromium: an answer word by word, the stop button, and a lost connection."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from urllib.request import urlopen

import pytest
import pytest_asyncio

from browser.needs import PATIENCE, expect
from support.programs import ROOT, free_port, program
from support.proxy import TcpProxy

pytestmark = pytest.mark.asyncio(loop_scope="module")

COMMAND = "uvicorn --app-dir examples/tokens tokens_app:app"
LONG = " ".join(f"word-{n}" for n in range(1000))
"""A question whose answer takes longer than any test."""


class Page:
    def __init__(self, page, proxy, port):
        self.page = page
        self.proxy = proxy
        self._port = port
        self.before = dict.fromkeys(("running", "complete", "stopped"), 0)
        self.troubles = []
        self.status = page.locator("#status")
        self.answer = page.locator("#answer")
        self.end = page.locator("#end")
        self.stop = page.get_by_role("button", name="Stop")
        page.on("pageerror", lambda error: self.troubles.append(str(error)))

    async def ask(self, question):
        await self.page.get_by_label("Question").fill(question)
        await self.page.get_by_role("button", name="Ask").click()

    async def answers(self):
        """What the server has counted, since this page was opened."""

        def get():
            with urlopen(f"http://127.0.0.1:{self._port}/answers") as response:
                return json.load(response)

        return {name: count - self.before[name] for name, count in (await asyncio.to_thread(get)).items()}

    async def until_answers(self, **counts):
        """Return when the server has counted so."""
        async with asyncio.timeout(PATIENCE / 1000):
            while not (await self.answers()).items() >= counts.items():
                await asyncio.sleep(0.02)


@pytest.fixture(scope="module")
def server():
    """The port of the example's server."""
    assert COMMAND in (ROOT / "examples/tokens/tokens_app.py").read_text()
    port = free_port()
    with program("-m", *COMMAND.split(), "--port", str(port), cwd=ROOT) as server:
        server.wait_until_open(port)
        yield port
        server.stop(signal.SIGINT)
    assert "Traceback" not in server.output, server.output


@pytest_asyncio.fixture(loop_scope="module")
async def page(browser, server):
    async with TcpProxy(server) as proxy, await browser.new_context() as context:
        context.set_default_timeout(PATIENCE)
        page = Page(await context.new_page(), proxy, server)
        page.before = await page.answers()
        await page.page.goto(f"http://localhost:{proxy.port}/")
        await expect(page.status).to_have_text("Connected")
        yield page
        await page.until_answers(running=0)
    assert page.troubles == []


async def test_an_answer_comes_word_by_word(page):
    await page.ask("what is a stream?")
    await expect(page.end).to_have_text("The answer has 6 words.")
    await expect(page.answer).to_have_text("You asked: what is a stream?")
    await expect(page.stop).to_be_disabled()
    assert await page.answers() == {"running": 0, "complete": 1, "stopped": 0}


async def test_the_stop_button_ends_the_generator(page):
    await page.ask(LONG)
    await expect(page.answer).to_contain_text("word-3")
    assert (await page.answers())["running"] == 1
    await page.stop.click()
    await expect(page.end).to_have_text(re.compile(r"The server has stopped after \d+ words\."))
    assert await page.answers() == {"running": 0, "complete": 0, "stopped": 1}
    shown = (await page.answer.inner_text()).split()
    assert shown == f"You asked: {LONG}".split()[: len(shown)]
    await page.ask("again?")
    await expect(page.answer).to_have_text("You asked: again?")


async def test_an_answer_goes_on_after_a_lost_connection(page):
    question = " ".join(f"word-{n}" for n in range(100))
    await page.ask(question)
    await expect(page.answer).to_contain_text("word-1")
    page.proxy.accepts = False
    page.proxy.cut()
    await expect(page.status).to_have_text("Reconnecting…")
    page.proxy.accepts = True
    await page.page.evaluate("dispatchEvent(new Event('online'))")  # and not after the next wait
    await expect(page.end).to_have_text("The answer has 102 words.")
    await expect(page.status).to_have_text("Connected")
    await expect(page.answer).to_have_text(f"You asked: {question}")
    assert await page.answers() == {"running": 0, "complete": 1, "stopped": 0}


async def test_a_page_that_is_closed_ends_its_answer(page):
    await page.ask(LONG)
    await expect(page.answer).to_contain_text("word-3")
    await page.page.close()
    await page.until_answers(running=0, stopped=1)
