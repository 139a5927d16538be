"""The origins that Chromium sends: of the server's own page, and of one from elsewhere."""

from __future__ import annotations

import pytest

import browser.needs  # noqa: F401 - skips this module where there is no browser
from support.net import make_server

pytestmark = pytest.mark.asyncio(loop_scope="module")

OPENS = """url => new Promise(resolve => {
    const socket = new WebSocket(url, 'wse-default-json')
    socket.onopen = () => resolve(true)
    socket.onclose = () => resolve(false)
})"""


async def opens(browser, page_url, url):
    """Whether a page may open a WebSocket."""
    async with await browser.new_context() as context:
        page = await context.new_page()
        await page.goto(page_url)
        return await page.evaluate(OPENS, url)


@pytest.mark.parametrize(
    ("origins", "from_elsewhere"), [(None, False), ("https://{}", False), ("http://{}", True), ("*", True)]
)
async def test_the_own_page_may_connect_and_one_from_elsewhere_if_it_is_listed(
    browser, tmp_path, origins, from_elsewhere
):
    (tmp_path / "page.html").write_text("<!doctype html>")
    files = {"/page": tmp_path / "page.html"}
    async with make_server(files=files) as elsewhere:
        listed = origins and origins.format(f"127.0.0.1:{elsewhere.port}")
        async with make_server(files=files, origins=listed) as server:
            own_page, other_page = (f"http://127.0.0.1:{port}/page" for port in (server.port, elsewhere.port))
            assert await opens(browser, own_page, server.url)
            assert await opens(browser, other_page, server.url) is from_elsewhere
            assert server._acceptor.admission.refused_origins == (not from_elsewhere)
