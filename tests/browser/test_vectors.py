"""The wire vectors in Chromium: js/test/vectors.test.js, the runner that Node runs, with a stand-in for Node around it.

An import map gives the runner our `node:` modules (tests/browser/node/), and requests of the page are answered from the
working tree, so that nothing listens anywhere.
"""

from __future__ import annotations

import json
import mimetypes
from urllib.parse import urlsplit

import pytest

import browser.needs  # noqa: F401 - skips this module where there is no browser
from support.programs import ROOT

pytestmark = pytest.mark.asyncio(loop_scope="module")

ORIGIN = "http://localhost:1"
VECTORS = ROOT / "spec/vectors"
RUNNER = "js/test/vectors.test.js"
MSGPACK = "js/node_modules/@msgpack/msgpack/dist.esm/index.mjs"
# The runner plays the client.
SERVER_SIDE = {"calls-server.json", "handshake-server.json", "messages-server.json", "resume-server.json"}


def index_page(has_msgpack: bool) -> str:
    imports = {
        "node:assert/strict": "/tests/browser/node/assert.js",
        "node:fs": "/tests/browser/node/fs.js",
        "node:test": "/tests/browser/node/test.js",
        "@msgpack/msgpack": f"/{MSGPACK}" if has_msgpack else "/tests/browser/node/no-msgpack.js",
    }
    files = {path.name: path.read_text() for path in VECTORS.glob("*.json")}
    data = json.dumps(files).replace("<", "\\u003c")
    return f"""<!doctype html><meta charset="utf-8"><title>vectors</title>
<script type="importmap">{json.dumps({"imports": imports})}</script>
<script type="application/json" id="files">{data}</script>"""


async def test_vectors(browser):
    has_msgpack = (ROOT / MSGPACK).is_file()

    async def answer(route):
        path = urlsplit(route.request.url).path
        file = ROOT / path[1:]
        if path == "/":
            await route.fulfill(body=index_page(has_msgpack), content_type="text/html")
        elif file.is_file():
            kind = "text/javascript" if file.suffix == ".mjs" else mimetypes.guess_type(file.name)[0]
            await route.fulfill(body=file.read_bytes(), content_type=kind)
        else:
            await route.fulfill(status=404)

    async with await browser.new_context() as context:
        await context.route("**/*", answer)
        page = await context.new_page()
        await page.goto(f"{ORIGIN}/")
        results = await page.evaluate(
            f"""async () => {{
                await import('/tests/browser/node/globals.js')
                await import('/{RUNNER}')
                return (await import('node:test')).results()
            }}"""
        )

    ran = {(result["suite"], result["name"]) for result in results if not result["skipped"]}
    failed = [f"{r['suite']}: {r['name']}: {r['error']}" for r in results if r["error"]]
    assert not failed, "\n".join(failed)
    for path in VECTORS.glob("*.json"):
        cases = json.loads(path.read_text()).get("cases", [])
        if path.name in SERVER_SIDE or (path.name == "msgpack.json" and not has_msgpack):
            continue
        expected = {(path.name, case["name"]) for case in cases if "needs" not in case}
        missing = {name for _, name in expected - ran}
        # What Node skips, too: the decoder of @msgpack/msgpack is lenient there.
        assert missing <= {"a string that is no UTF-8"}, path.name
    assert any(suite == "names.json" for suite, _ in ran)
    if not has_msgpack:
        pytest.skip("all others are green, msgpack.json needs js/node_modules (npm ci)")
