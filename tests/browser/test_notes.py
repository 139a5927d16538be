"""The page of examples/notes, as Vite has built it, in Chromium."""

from __future__ import annotations

import re
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio

from browser.needs import PATIENCE, expect
from support.notes import MISSING, build, notes_server

pytestmark = [
    pytest.mark.slow,  # tests/frameworks/test_notes.py has the same application without a browser
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(MISSING is not None, reason=str(MISSING)),
]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("notes")
    build(folder / "web")
    with notes_server(folder, NOTES_WEB=str(folder / "web")) as url:
        yield url.replace("127.0.0.1", "localhost")


@pytest_asyncio.fixture(loop_scope="module")
async def log_in(browser, url):
    """`await log_in(name, password)` is the page of a user, in a browser of its own."""
    troubles = []
    async with AsyncExitStack() as stack:

        async def log_in(name, password):
            context = await stack.enter_async_context(await browser.new_context())
            context.set_default_timeout(PATIENCE)
            page = await context.new_page()
            page.on("pageerror", lambda error: troubles.append(str(error)))
            await page.goto(url)
            await page.get_by_label("Name").fill(name)
            await page.get_by_label("Password").fill(password)
            await page.get_by_role("button", name="Log in").click()
            return page

        yield log_in
    assert troubles == []


def notes(page):
    return page.get_by_role("list", name="Notes").get_by_role("listitem")


async def add(page, text):
    await page.get_by_label("New note").fill(text)
    await page.get_by_role("button", name="Add").click()


async def test_a_wrong_password_is_told(log_in):
    page = await log_in("ada", "hopper")
    await expect(page.get_by_role("alert")).to_have_text("The name or the password is wrong.")
    await expect(page.get_by_role("button", name="Log out")).to_be_hidden()


async def test_a_note_added_in_one_page_is_seen_in_another(log_in):
    one, other = await log_in("ada", "lovelace"), await log_in("ada", "lovelace")
    for page in (one, other):
        await expect(page.get_by_text("You are ada.")).to_be_visible()
    await add(one, "Lunch?")
    await expect(notes(other).filter(has_text="Lunch?")).to_be_visible()
    # The session outlives the page.
    await other.reload()
    await expect(notes(other).filter(has_text="Lunch?")).to_be_visible()
    await other.get_by_role("button", name="Log out").click()
    await expect(other.get_by_label("Password")).to_be_visible()
    await other.reload()
    await expect(other.get_by_label("Password")).to_be_visible()


async def test_a_shared_note_comes_and_goes_and_its_owner_is_asked(log_in):
    ada, grace = await log_in("ada", "lovelace"), await log_in("grace", "hopper")
    await expect(ada.get_by_text(re.compile("Online: ada, grace"))).to_be_visible()
    asked, answers = [], ["grace", True]

    async def answer(dialog):
        asked.append(dialog.message)
        said = answers.pop(0)
        await dialog.accept(said if isinstance(said, str) else "")

    ada.on("dialog", answer)
    await add(ada, "Bread")
    await notes(ada).filter(has_text="Bread").get_by_role("button", name="Share").click()
    shared = notes(grace).filter(has_text="Bread")
    await expect(shared).to_be_visible()
    await expect(shared.get_by_role("button")).to_have_count(0)
    await notes(ada).filter(has_text="Bread").get_by_role("button", name="Remove").click()
    await expect(shared).to_have_count(0)
    assert asked == ["With whom?", "grace can read this note. Remove it?"]
