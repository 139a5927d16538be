"""The operations page in Chromium: an operator signs in, finds users, drops and sends; hostile names stay text."""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio

from browser.conftest import DESKTOP
from browser.needs import PATIENCE, expect
from support.net import soon
from wse import WseClient, WseError, WseServer
from wse.admin.console import Console

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "the-key-of-a-test"
MARKUP = "<img src=x onerror=alert(1)>"
EXPECTED = ("This document requires 'TrustedHTML'", "Applying inline style violates")
"""What Chromium says where a test tries what the page's policy forbids; nothing else may try it."""
PHONE = {"width": 390, "height": 780}


def operators(auth):
    if auth.identity["key"] == KEY:
        auth.accept(auth.identity["name"])
    else:
        auth.refuse("wrong key")


def make_server():
    server = WseServer(lambda auth: auth.accept(auth.identity), port=0, conns_per_user=3, admin=operators)

    @server.when.connected
    def enter(conn):
        server.room("lobby").add(conn)

    @server.when.error
    def failed(error, conn):
        """Keep the tests' failures out of the log."""

    @server.register("charge")
    def charge(conn, payload):
        raise LookupError(payload)

    return server


@pytest_asyncio.fixture(loop_scope="module")
async def stage(browser):
    """A server, the page in a tab, and what goes wrong there; `connect(name)` connects a user."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(make_server())
        context = await stack.enter_async_context(await browser.new_context(viewport=DESKTOP))
        context.set_default_timeout(PATIENCE)
        page, troubles = await context.new_page(), []
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
        page.on("dialog", lambda dialog: troubles.append(dialog.message))

        async def connect(name):
            return await stack.enter_async_context(WseClient(server.url, identity=name))

        await page.goto(f"http://127.0.0.1:{server.port}/admin")
        yield server, page, connect
        assert [trouble for trouble in troubles if not trouble.startswith(EXPECTED)] == []


async def sign_in(page, key=KEY):
    await page.get_by_label("Name").fill("grace")
    await page.get_by_label("Key").fill(key)
    await page.keyboard.press("Enter")


async def test_an_operator_signs_in_finds_a_user_sends_and_drops(stage):
    server, page, connect = stage
    for n in range(60):
        await connect(f"user-{n}")
    ada, phone = await connect("ada"), await connect("ada")
    await sign_in(page, "wrong")
    await expect(page.get_by_role("alert").first).to_have_text("wrong key")
    await expect(page.locator("#main")).to_be_hidden()
    await sign_in(page)
    await expect(page.locator("#status")).to_have_text("live")
    await expect(page.locator("#operator")).to_have_text("grace")
    await expect(page.locator(".tile").first).to_contain_text("62")
    await expect(page.locator("#nodes tr")).to_have_count(1)
    await expect(page.locator("#nodes")).to_contain_text("up")

    # More users than one page has.
    await expect(page.locator("#users tr")).to_have_count(50)
    await page.get_by_role("button", name="Show more users").click()
    await expect(page.locator("#users tr")).to_have_count(61)
    await expect(page.locator("#users-more")).to_be_hidden()

    # By the keyboard alone: search, open, send, drop.
    await page.keyboard.press("/")
    await expect(page.get_by_label("Search").first).to_be_focused()
    await page.keyboard.type("ad")
    await expect(page.locator("#users tr")).to_have_count(1)
    await page.keyboard.press("Tab")
    await expect(page.get_by_role("button", name="Devices of ada")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.locator("#devices tr")).to_have_count(2)
    await expect(page.locator("#devices")).to_contain_text("lobby")
    heard = [asyncio.ensure_future(client.when.ignored.wait()) for client in (ada, phone)]
    await page.get_by_role("button", name="Send a message").press("Enter")
    await page.keyboard.type("news")
    await page.get_by_label("Payload").fill("not JSON")
    await page.get_by_role("button", name="Send", exact=True).press("Enter")
    await expect(page.locator("#message-problem")).to_contain_text("not JSON")
    await page.get_by_label("Payload").fill('{"text": "hello"}')
    await page.get_by_role("button", name="Send", exact=True).press("Enter")
    for message in heard:
        assert (await soon(message))[:2] == ("news", {"text": "hello"})
    await expect(page.locator("#user-say")).to_have_text("The message has been sent.")
    first = next(iter(server.clients["ada"].conns))
    closed = asyncio.ensure_future(ada.when.closed.wait())
    await page.get_by_role("button", name=f"Drop the device {first}").press("Enter")
    await page.get_by_role("button", name=f"Sure? Drop the device {first}").press("Enter")
    assert await soon(closed) == (1000, "wse.by-server")
    await expect(page.locator("#devices tr")).to_have_count(1)
    closed = asyncio.ensure_future(phone.when.closed.wait())
    await page.get_by_role("button", name="Drop the user").press("Enter")
    await page.get_by_role("button", name="Sure? Drop the user").press("Enter")
    await soon(closed)
    await page.keyboard.press("Escape")
    await expect(page.locator("#user")).to_be_hidden()
    await expect(page.locator("#users")).to_have_text("No such user")

    # The page comes back by itself, and is empty after the operator has left.
    await server.close()
    await expect(page.locator("#status")).to_have_text("reconnecting")
    await server.start()
    await expect(page.locator("#status")).to_have_text("live")
    await page.get_by_role("button", name="Sign out").click()
    await expect(page.locator("#main")).to_be_hidden()
    await expect(page.get_by_label("Key")).to_have_value("")
    assert await page.locator("#users tr").count() == 0


async def test_what_is_asked_about_one_user_is_not_done_to_the_next(stage, monkeypatch):
    server, page, connect = stage
    for name in ("ada", "bob"):
        await connect(name)
    await sign_in(page)
    ask_all, reached, let_go = Console._ask_all, asyncio.Event(), asyncio.Event()

    async def ask_slowly(console, **asked):
        told = await ask_all(console, **asked)
        if asked.get("user") == "sada" and not reached.is_set():
            reached.set()
            await let_go.wait()
        return told

    monkeypatch.setattr(Console, "_ask_all", ask_slowly)
    await page.get_by_role("button", name="Devices of ada").click()
    await soon(reached.wait())
    await page.get_by_role("button", name="Drop the user").click()
    await expect(page.get_by_role("button", name="Sure? Drop the user")).to_be_visible()
    await page.keyboard.press("Escape")
    await page.get_by_role("button", name="Devices of bob").click()
    bobs = next(iter(server.clients["bob"].conns))
    await expect(page.locator("#devices")).to_contain_text(bobs)
    let_go.set()
    await page.get_by_role("button", name="Drop the user", exact=True).click()
    await expect(page.get_by_role("button", name="Sure? Drop the user")).to_be_visible()
    await expect(page.locator("#devices")).to_contain_text(bobs)
    assert set(server.clients) == {"ada", "bob"}


async def test_the_lists_are_there_again_after_another_operator_signs_in(stage):
    _, page, connect = stage
    for n in range(60):
        await connect(f"user-{n}")
    await sign_in(page)
    await page.get_by_role("button", name="Show more users").click()
    await expect(page.locator("#users tr")).to_have_count(60)
    await page.get_by_role("button", name="Sign out").click()
    await sign_in(page)
    await expect(page.locator("#users tr")).to_have_count(50)
    await expect(page.get_by_role("button", name="Show more users")).to_be_visible()


async def test_hostile_names_stay_text_in_every_size_and_scheme(stage):
    server, page, connect = stage
    eve = await connect(MARKUP)
    long = await connect("x" * 900)
    for client in (eve, long):
        with pytest.raises(WseError):
            await client.call("charge", MARKUP)
        client.send(MARKUP, MARKUP)
    server.room(MARKUP).add(server.clients[MARKUP])
    server._handler_blocked(MARKUP, 2.0)
    await sign_in(page)
    for place in ("#users", "#rooms", "#failures", "#blocked"):
        await expect(page.locator(place)).to_contain_text(MARKUP)
    await page.get_by_role("button", name=f"Devices of {MARKUP}").click()
    await expect(page.locator("#user-name")).to_have_text(MARKUP)
    await expect(page.locator("#devices")).to_contain_text(MARKUP)
    await page.keyboard.press("Escape")
    assert await page.locator("img").count() == 0
    for viewport in (DESKTOP, PHONE):
        await page.set_viewport_size(viewport)
        for scheme in ("light", "dark"):
            await page.emulate_media(color_scheme=scheme)
            background = await page.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == (scheme == "dark")
            assert await page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]


async def test_the_page_runs_no_script_but_its_own(stage):
    _, page, _ = stage
    await page.evaluate(
        "addEventListener('securitypolicyviolation', event => { window.blocked = event.violatedDirective })"
    )
    with pytest.raises(Exception, match="Trusted"):
        await page.evaluate("document.body.innerHTML = '<b>x</b>'")
    await page.evaluate(
        """() => {
          const script = document.createElement('style')
          script.textContent = 'body { display: none }'
          document.head.append(script)
        }"""
    )
    await page.wait_for_function("window.blocked === 'style-src-elem'")
    assert await page.evaluate("getComputedStyle(document.body).display") == "block"


@pytest.mark.slow
async def test_a_picture_for_the_documentation(stage, artifact):
    """`make pictures` puts it into docs/screenshots/."""
    server, page, connect = stage
    people = [await connect(name) for name in ("ada", "ada", "grace", "alan", "edsger", "barbara", "donald")]
    for name in ("news", "support"):
        server.room(name).add(server.clients["ada"])
        server.room(name).add(server.clients["alan"])
    with pytest.raises(WseError):
        await people[2].call("charge", "no card on file")
    server._handler_blocked("report (app.py:41)", 1.4)
    await page.set_viewport_size({"width": 1000, "height": 860})
    await sign_in(page)
    await expect(page.locator("#status")).to_have_text("live")
    points = page.locator(".tile svg polyline").first
    turn = 0
    async with asyncio.timeout(PATIENCE / 1000):
        while len((await points.get_attribute("points") or "").split()) < 12:
            turn += 1
            people[turn % len(people)].send("typing", "x" * (turn * turn % 97))
            if turn % 3 == 0:
                server.broadcast("news", "x" * (turn * 31 % 400))
            await asyncio.sleep(0.05)  # the plots show rates: so many messages in a second
    await page.locator("h1").click()
    path = artifact("operations.png")
    await page.screenshot(path=path)
    assert path.stat().st_size < 100_000
