"""A real Chromium, driven by Playwright, against the chat's real server process."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from browser.chat_page import ChatServer, Tab
from support.programs import ROOT

ARTIFACTS = ROOT / ".artifacts"
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]
DESKTOP = {"width": 1100, "height": 720}
INTERNALS = re.compile(r"Traceback|\bat .+:\d+:\d+|wse\.\w+|undefined|\[object")
"""What no user is to see."""


@pytest.hookimpl(tryfirst=True)  # before xdist looks at the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests of a module run in one process: each process would start a browser of its own."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser():
    """A Chromium with a fresh profile."""
    from browser.needs import CHROMIUM, PATIENCE, async_playwright, expect  # not before: it skips whoever imports it

    expect.set_options(timeout=PATIENCE)
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        await browser.close()


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatServer]:
    server = ChatServer(tmp_path_factory.mktemp("chat") / "chat.sqlite3")
    server.start()
    yield server
    output = server.end()
    assert "Traceback" not in output, output


@pytest_asyncio.fixture(loop_scope="module")
async def people(browser, chat):
    """`await people(name, …)` opens a tab in a browser context of its own, or in that of the tab `beside`.

    Some of its messages may be `held`.
    """
    async with AsyncExitStack() as stack:
        from browser.needs import PATIENCE

        tabs = []

        async def open_tab(user, *, beside=None, held=None, **options):
            if beside is None:
                options = {"viewport": DESKTOP, "locale": "en-GB", "timezone_id": "Europe/Paris", **options}
                context = await stack.enter_async_context(await browser.new_context(**options))
                context.set_default_timeout(PATIENCE)
            else:
                context = beside.page.context
            tab = Tab(await context.new_page(), user)
            tabs.append(tab)
            if held:
                await held.watch(tab.page)
            await tab.page.goto(chat.url)
            return tab

        yield open_tab
        assert [tab.troubles for tab in tabs if tab.troubles] == []
        for tab in tabs:
            if not tab.page.is_closed():
                seen = await tab.page.locator("body").inner_text()
                assert not INTERNALS.search(seen), seen


@pytest.fixture
def artifact():
    """`artifact(name)` is where a screenshot goes."""
    folder = Path(os.environ.get("WSE_ARTIFACTS", ARTIFACTS))
    folder.mkdir(exist_ok=True)
    return lambda name: folder / name
