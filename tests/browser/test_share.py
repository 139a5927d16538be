"""Three tabs of one Chromium share a connection to a server that allows each user one."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import pytest

from browser.needs import PATIENCE
from support.net import make_server
from wse import WseError
from wse.auth import ScramKeys, ScramServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONNECT = """async ({ name, identity, procedures }) => {
    const { WseClient } = await import('/wse.js')
    const url = location.origin.replace('http', 'ws') + '/'
    const client = window.client = new WseClient({ url, share: true, timeout: 60 })
    window.heard = []
    window.walk = []
    window.errors = []
    client.channel.on('chat', (text) => heard.push(text))
    client.when.updated((status) => walk.push(status))
    client.when.error((error) => errors.push(String(error)))
    for (const procedure of procedures) client.register(procedure, (payload) => `${name} did ${procedure} ${payload}`)
    return client.connect(identity, { name })
}"""

# Counts what a page posts on its channels, and lets a page be deaf for what comes there.
CHANNELS = """
    delete window.SharedWorker
    window.posted = 0
    window.BroadcastChannel = class extends BroadcastChannel {
        static deaf = false
        postMessage(message) {
            super.postMessage(message)
            if (message.message?.number) posted++
        }
        set onmessage(listener) {
            super.onmessage = (event) => BroadcastChannel.deaf || listener(event)
        }
    }
"""

LOG_IN = """async () => {
    const { Scram, WseClient } = await import('/wse.js')
    window.client = new WseClient({ url: location.origin.replace('http', 'ws') + '/', share: true })
    return client.connect(new Scram('ada', 'lovelace'))
}"""


class Users:
    async def get(self, username):
        return ScramKeys.from_password("lovelace", iterations=4096) if username == "ada" else None


class Tabs:
    def __init__(self, context, server):
        self.context = context
        self.server = server
        self.pages = []
        self.connected = []
        self.disconnected = []

    async def open(self, name, *procedures, identity="ada"):
        page = await self.context.new_page()
        self.pages.append(page)
        await page.goto(f"http://127.0.0.1:{self.server.port}/page")
        arguments = {"name": name, "identity": identity, "procedures": list(procedures)}
        assert await page.evaluate(CONNECT, arguments) == f"hello {identity}"
        return page


@asynccontextmanager
async def three_tabs(browser, tmp_path, has_workers, policy=""):
    policy = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    (tmp_path / "page.html").write_text("<!doctype html><meta charset=utf-8>" + policy)
    async with make_server(files={"/page": tmp_path / "page.html"}, serve_client=True, conns_per_user=1) as server:
        server.identify(lambda auth: auth.accept(auth.identity, f"hello {auth.identity}"))

        @server.register("twice")
        async def twice(conn, payload):
            await asyncio.sleep(0)
            return [payload, payload]

        async with await browser.new_context() as context:
            if not has_workers:
                await context.add_init_script(CHANNELS)
            tabs = Tabs(context, server)
            server.when.connected(tabs.connected.append)
            server.when.disconnected(lambda conn, code, reason: tabs.disconnected.append((code, reason)))
            yield tabs, await tabs.open("first", "paint"), await tabs.open("second", "sing"), await tabs.open("third")


async def until(page, expression):
    await page.wait_for_function(expression, timeout=PATIENCE)


@pytest.mark.parametrize("has_workers", [True, False], ids=["SharedWorker", "Web Lock"])
async def test_tabs_share_a_connection_and_keep_their_own_calls_and_listeners(browser, tmp_path, has_workers):
    async with three_tabs(browser, tmp_path, has_workers) as (tabs, *pages):
        (conn,) = tabs.connected
        assert tabs.server.clients["ada"].conns == {conn.conn_id: conn}
        assert conn.meta == {"name": "first"}

        # What the server sends arrives in every tab.
        tabs.server.send("ada", "chat", "hi")
        for page in pages:
            await until(page, "heard.length === 1")

        # Each call is answered in its own tab, though all count their calls from 1.
        calls = [
            page.evaluate(f"Promise.all([1, 2, 3].map(n => client.call('twice', '{i}-' + n)))")
            for i, page in enumerate(pages)
        ]
        answers = await asyncio.gather(*calls)
        assert answers == [[[f"{i}-{n}"] * 2 for n in (1, 2, 3)] for i in range(3)]

        # The server's call is answered by the tab that has the procedure.
        assert await conn.call("paint", "red") == "first did paint red"
        assert await conn.call("sing", "do") == "second did sing do"
        with pytest.raises(WseError, match="not-registered"):
            await conn.call("dance")

        # A tab that closes its client leaves the others alone.
        await pages[2].evaluate("client.close()")
        assert await pages[1].evaluate("client.call('twice', 1)") == [1, 1]
        assert await pages[2].evaluate("client.status") == "OFFLINE"
        assert tabs.disconnected == []
        # The last one ends the connection.
        await pages[1].evaluate("client.close()")
        await pages[0].evaluate("client.close('done')")
        await wait_until(lambda: tabs.disconnected == [(1000, "done")])
        assert len(tabs.connected) == 1


async def wait_until(condition):
    async with asyncio.timeout(PATIENCE / 1000):
        while not condition():
            await asyncio.sleep(0.01)


async def test_the_tab_that_came_first_may_close_and_nothing_is_lost(browser, tmp_path):
    async with three_tabs(browser, tmp_path, True) as (tabs, first, second, third):
        (conn,) = tabs.connected
        sent = 0
        closing = asyncio.create_task(first.close())
        while not closing.done() or sent < 50:
            tabs.server.send("ada", "chat", sent)
            sent += 1
            await asyncio.sleep(0.005)
        for page in (second, third):
            await until(page, f"heard.length === {sent}")
            assert await page.evaluate("walk") == ["CONNECTING", "READY"]
        assert await conn.call("sing", "do") == "second did sing do"
        assert await third.evaluate("client.call('twice', 1)") == [1, 1]
        assert (len(tabs.connected), tabs.disconnected) == (1, [])
        # A tab that ends without a word leaves, too, and the last of them ends the connection.
        await second.close()
        await third.close()
        await wait_until(lambda: tabs.disconnected)


async def test_without_shared_workers_too_the_tab_that_leads_may_close_and_nothing_is_lost(browser, tmp_path):
    async with three_tabs(browser, tmp_path, False) as (tabs, first, second, third):
        (conn,) = tabs.connected
        called, answers = asyncio.Event(), asyncio.Event()

        @tabs.server.register("slow")
        async def slow(conn, payload):
            called.set()
            await answers.wait()
            return payload

        # Calls of both sides are under way.
        calling = asyncio.create_task(second.evaluate("client.call('slow', 'from the tab')"))
        await third.evaluate("client.register('wait', () => new Promise((resolve) => window.answer = resolve))")
        asking = asyncio.create_task(conn.call("wait"))
        await called.wait()
        await until(third, "Boolean(window.answer)")
        sent = 0
        closing = asyncio.create_task(first.close())
        while not closing.done() or sent < 50:
            tabs.server.send("ada", "chat", sent)
            sent += 1
            await asyncio.sleep(0.005)
        await third.evaluate("answer('from the server')")
        answers.set()
        assert await asking == "from the server"
        assert await calling == "from the tab"
        for page in (second, third):
            await until(page, f"heard.length === {sent}")
            assert await page.evaluate("heard") == list(range(sent))
            await until(page, "walk.length === 5")
            assert await page.evaluate("walk.slice(2)") == ["OFFLINE", "RE_CONNECTING", "READY"]
        # To the server it is the same connection, and the next leader may close as well.
        assert (len(tabs.connected), tabs.disconnected) == (1, [])
        await second.close()
        tabs.server.send("ada", "chat", "again")
        await until(third, "heard.at(-1) === 'again'")
        assert await third.evaluate("client.call('twice', 1)") == [1, 1]
        assert (len(tabs.connected), tabs.disconnected) == (1, [])
        # The last one ends the connection.
        await third.close()
        await wait_until(lambda: tabs.disconnected)
        assert tabs.disconnected == [(1000, "wse.by-client")]


async def test_what_a_leader_has_not_taken_before_it_closes_goes_out_once_by_the_next_one(browser, tmp_path):
    async with three_tabs(browser, tmp_path, False) as (tabs, first, second, third):
        said = []
        tabs.server.channel.on("say", lambda conn, payload: said.append(payload))
        await second.evaluate("client.send('say', 'taken')")
        await wait_until(lambda: said == ["taken"])
        # Its page is busy, hears nothing from the other tabs, and is closed like that.
        await first.evaluate("BroadcastChannel.deaf = true")
        waiting = asyncio.gather(
            second.evaluate("Promise.all([client.call('twice', 1), client.send('say', 1), client.call('twice', 2)])"),
            third.evaluate("Promise.all([client.send('say', 2), client.send('say', 3), client.call('twice', 3)])"),
        )
        await until(second, "posted === 4")
        await until(third, "posted === 3")
        await first.close()
        assert await waiting == [[[1, 1], None, [2, 2]], [None, None, [3, 3]]]
        assert await second.evaluate("client.call('twice', 4)") == [4, 4]
        assert said[0] == "taken"
        assert sorted(said[1:]) == [1, 2, 3]
        assert said.index(2) < said.index(3)


async def test_a_leader_that_crashes_costs_calls_without_an_answer_and_others_lead(browser, tmp_path):
    async with three_tabs(browser, tmp_path, False) as (tabs, first, second, third):
        called = asyncio.Event()
        calls = []

        @tabs.server.register("slow")
        async def slow(conn, payload):
            calls.append(payload)
            called.set()
            await asyncio.Event().wait()

        failing = asyncio.create_task(second.evaluate("client.call('slow', 1).catch((error) => error.code)"))
        await called.wait()
        devtools = await tabs.context.new_cdp_session(first)
        crashing = asyncio.ensure_future(devtools.send("Page.crash"))
        assert await failing == "wse.client.rp.disconnect"
        for page in (second, third):
            await until(page, "walk.length === 5 && client.status === 'READY'")
        assert await third.evaluate("client.call('twice', 1)") == [1, 1]
        assert calls == [1]
        assert len(tabs.connected) == 2
        crashing.cancel()
        await asyncio.gather(crashing, return_exceptions=True)


async def test_tabs_that_log_in_with_a_password_share_too(browser, tmp_path):
    (tmp_path / "page.html").write_text("<!doctype html><meta charset=utf-8>")
    async with make_server(files={"/page": tmp_path / "page.html"}, serve_client=True) as server:
        scram = ScramServer(Users(), iterations=4096)
        server.use_challenge(scram.challenge)

        @server.identify
        def identify(auth):
            scram.accept(auth, scram.verify(auth), "hello")

        async with await browser.new_context() as context:
            for _ in range(2):
                page = await context.new_page()
                await page.goto(f"http://127.0.0.1:{server.port}/page")
                assert await page.evaluate(LOG_IN) == "hello"
            for page in context.pages:
                assert await page.evaluate("client.status") == "READY"
            assert len(server.clients["ada"].conns) == 1


async def test_a_policy_without_workers_is_no_obstacle(browser, tmp_path):
    async with three_tabs(browser, tmp_path, True, policy="worker-src 'none'") as (tabs, *pages):
        tabs.server.send("ada", "chat", "hi")
        for page in pages:
            await until(page, "heard.length === 1")
        assert len(tabs.connected) == 1


async def test_another_user_has_a_connection_of_her_own(browser, tmp_path):
    async with three_tabs(browser, tmp_path, True) as (tabs, *_):
        grace = await tabs.open("fourth", identity="grace")
        tabs.server.send("grace", "chat", "for grace")
        await until(grace, "heard.length === 1")
        assert [conn.cid for conn in tabs.connected] == ["ada", "grace"]
        assert await tabs.pages[0].evaluate("heard") == []


async def test_a_close_by_the_server_ends_all_tabs(browser, tmp_path):
    async with three_tabs(browser, tmp_path, True) as (tabs, *pages):
        tabs.server.drop_client("ada", "wse.by-server")
        for page in pages:
            await until(page, "client.gaveUp")
            assert await page.evaluate("client.gaveUp.details") == {"code": 1000, "reason": "wse.by-server"}
