"""Sessions of the JavaScript client in Chromium that outlive their connection."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from browser.conftest import ARGUMENTS
from browser.needs import CHROMIUM, PATIENCE, async_playwright
from support.net import make_server
from support.proxy import TcpProxy

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONNECT = """async ([url, wait]) => {
    const { WseClient } = await import('/wse.js')
    const backoff = { base: wait, cap: wait, random: () => 1 }
    const client = window.client = new WseClient({ url, reconnect: true, resume: true, backoff })
    window.told = []
    window.heard = []
    client.when.error(() => {})
    for (const name of ['ready', 'resumed', 'lost']) client.when[name](() => told.push(name))
    client.channel.on('n', (n) => heard.push(n))
    client.register('twice', (n) => 2 * n)
    await client.connect('ada')
}"""
RETURN = "dispatchEvent(new Event('online'))"  # and not after ten minutes


async def until(page, expression):
    await page.wait_for_function(expression, timeout=PATIENCE)


async def happened(event):
    async with asyncio.timeout(PATIENCE / 1000):
        await event.wait()


class Story:
    """A page with a client, its server, and the proxy between them."""

    def __init__(self, server, proxy, context, page):
        self.server = server
        self.proxy = proxy
        self.context = context
        self.page = page
        self.heard = []
        self.ends = []
        self.detached = asyncio.Event()
        self.ended = asyncio.Event()
        server.channel.on("n", lambda conn, number: self.heard.append(number))
        server.when.detached(lambda conn, code, reason: self.detached.set())
        server.when.left(self._left)

    def _left(self, client, code, reason):
        self.ends.append((code, reason))
        self.ended.set()

    async def cut(self):
        """Cut the connection, and let no other one through."""
        self.proxy.accepts = False
        self.proxy.cut()
        await until(self.page, "client.status === 'RE_CONNECTING'")
        await happened(self.detached)


@asynccontextmanager
async def story(browser, tmp_path, wait=600):
    (tmp_path / "page.html").write_text("<!doctype html><meta charset=utf-8>")
    files = dict.fromkeys(("/page", "/other"), tmp_path / "page.html")
    async with make_server(files=files, serve_client=True, origins="*") as server, TcpProxy(server.port) as proxy:
        server.identify(lambda auth: auth.accept(auth.identity))

        @server.register("same")
        def same(conn, payload):
            return payload

        async with await browser.new_context() as context:
            page = await context.new_page()
            told = Story(server, proxy, context, page)
            await page.goto(f"http://127.0.0.1:{server.port}/page")
            await page.evaluate(CONNECT, [proxy.url, wait])
            yield told


async def test_what_is_sent_while_the_connection_is_away_arrives_once_in_both_directions(browser, tmp_path):
    async with story(browser, tmp_path) as told:
        page, server = told.page, told.server
        await page.evaluate("client.send('n', 0)")
        server.send("ada", "n", 0)
        await told.cut()
        calling = asyncio.create_task(
            page.evaluate("(client.send('n', 1), client.send('n', 2), client.call('same', 'x'))")
        )
        (conn,) = server.clients["ada"].conns.values()
        called = asyncio.create_task(conn.call("twice", 21))
        server.send("ada", "n", 1)
        server.send("ada", "n", 2)
        await until(page, "client.status === 'RE_CONNECTING'")
        told.proxy.accepts = True
        await page.evaluate(RETURN)
        assert await calling == "x"
        assert await called == 42
        await page.evaluate("client.flush()")
        await conn.flush()
        assert told.heard == await page.evaluate("heard") == [0, 1, 2]
        assert await page.evaluate("told") == ["ready", "resumed"]
        assert await page.evaluate("client.recovered")
        assert told.ends == []


async def test_a_page_that_closes_leaves_no_session_behind(browser, tmp_path):
    async with story(browser, tmp_path) as told:
        await told.page.close()
        await happened(told.ended)
        assert told.ends == [(1000, "wse.by-client")]
        assert not told.detached.is_set()


async def test_a_page_that_was_frozen_comes_back_to_its_session(browser, tmp_path):
    async with story(browser, tmp_path) as told:
        devtools = await told.context.new_cdp_session(told.page)
        await devtools.send("Page.setWebLifecycleState", {"state": "frozen"})
        told.proxy.cut()
        await happened(told.detached)
        told.server.send("ada", "n", 1)
        await devtools.send("Page.setWebLifecycleState", {"state": "active"})
        await until(told.page, "client.status === 'RE_CONNECTING'")
        await told.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        await until(told.page, "heard.length === 1")
        assert await told.page.evaluate("told") == ["ready", "resumed"]


@pytest.mark.slow
async def test_a_page_that_comes_back_from_the_back_forward_cache_comes_back_to_its_session(tmp_path):
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(
            executable_path=CHROMIUM, args=ARGUMENTS, ignore_default_args=["--disable-back-forward-cache"]
        )
        async with story(browser, tmp_path, wait=0.05) as told:
            page, server = told.page, told.server
            await page.evaluate("addEventListener('pageshow', ({ persisted }) => told.push(`back: ${persisted}`))")
            await page.evaluate("client.send('n', 0)")
            server.send("ada", "n", 0)
            await until(page, "heard.length === 1")
            await page.goto(page.url.replace("/page", "/other"))
            server.send("ada", "n", 1)
            await page.go_back(wait_until="commit")  # a page from the cache is not loaded again
            await until(page, "window.heard?.length === 2")
            await page.evaluate("(client.send('n', 1), client.flush())")
            assert told.heard == await page.evaluate("heard") == [0, 1]
            assert sorted(await page.evaluate("told")) == ["back: true", "ready", "resumed"]
            assert told.ends == []
        await browser.close()


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_a_page_that_was_frozen_for_a_minute_comes_back_to_its_session(browser, tmp_path):
    async with story(browser, tmp_path, wait=0.05) as told:
        devtools = await told.context.new_cdp_session(told.page)
        await told.page.evaluate("client.send('n', 0)")
        await devtools.send("Page.setWebLifecycleState", {"state": "frozen"})
        for number in range(6):
            told.server.send("ada", "n", number)
            await asyncio.sleep(10)
            if number == 2:
                told.proxy.cut()
                await happened(told.detached)
        await devtools.send("Page.setWebLifecycleState", {"state": "active"})
        await until(told.page, "heard.length === 6")
        await told.page.evaluate("(client.send('n', 1), client.flush())")
        assert await told.page.evaluate("heard") == [0, 1, 2, 3, 4, 5]
        assert await told.page.evaluate("told") == ["ready", "resumed"]
        assert told.heard == [0, 1]
        assert told.ends == []
