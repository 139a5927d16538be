"""The JavaScript client in Chromium, where Node differs: its own macrotasks, and the events of pages."""

from __future__ import annotations

import pytest

from browser.needs import PATIENCE
from support.net import make_server

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONNECT = """async ({ url, options }) => {
    const { WseClient } = await import('/wse.js')
    const client = window.client = new WseClient({ url, ...options, backoff: { base: 600, cap: 600, random: () => 1 } })
    client.when.error(() => {})
    await client.connect('ada')
    window.heard = []
    client.channel.on('n', (n) => heard.push(n))
}"""
EVENTS = {
    "online": "dispatchEvent(new Event('online'))",
    "pageshow": "dispatchEvent(new Event('pageshow'))",
    "visibilitychange": "document.dispatchEvent(new Event('visibilitychange'))",
}


@pytest.fixture
def files(tmp_path):
    (tmp_path / "page.html").write_text("<!doctype html><meta charset=utf-8>")
    return {"/page": tmp_path / "page.html"}


async def test_messages_right_behind_the_welcome_reach_code_that_awaits_connect(browser, files):
    async with make_server(files=files, serve_client=True) as server, await browser.new_context() as context:
        server.identify(lambda auth: auth.accept("ada"))
        server.when.connected(lambda conn: [conn.send("n", number) for number in range(3)] and None)
        page = await context.new_page()
        await page.goto(f"http://127.0.0.1:{server.port}/page")
        await page.evaluate(CONNECT, {"url": server.url, "options": {}})
        await page.wait_for_function("heard.length === 3", timeout=PATIENCE)
        assert await page.evaluate("heard") == [0, 1, 2]


@pytest.mark.parametrize("event", EVENTS)
async def test_a_client_that_waits_tries_at_once_when_the_page_or_the_network_is_back(browser, files, event):
    async with make_server(files=files, serve_client=True) as pages, await browser.new_context() as context:
        async with make_server(origins="*") as server:
            server.identify(lambda auth: auth.accept("ada"))
            port = server.port
            page = await context.new_page()
            await page.goto(f"http://127.0.0.1:{pages.port}/page")
            await page.evaluate(CONNECT, {"url": server.url, "options": {"reconnect": True}})
        await page.wait_for_function("client.status === 'RE_CONNECTING'", timeout=PATIENCE)
        async with make_server(origins="*", port=port) as server:
            server.identify(lambda auth: auth.accept("ada"))
            await page.evaluate(EVENTS[event])
            await page.wait_for_function("client.status === 'READY'", timeout=PATIENCE)  # and not after ten minutes
            await page.evaluate("client.close()")
