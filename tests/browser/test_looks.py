"""Pictures of the chat page, wide and narrow, light and dark; they are kept in .artifacts/."""

from __future__ import annotations

import re

import pytest

from browser.chat_page import Held, of_a_report
from browser.needs import expect

pytestmark = pytest.mark.asyncio(loop_scope="module")

DESKTOP = {"width": 1100, "height": 720}
PHONE = {"width": 390, "height": 780}
LOW = {"width": 390, "height": 400}  # a phone with its keyboard open


@pytest.mark.slow
async def test_looks(people, artifact):
    ada = await people("ada", held=Held(lambda kind, payload: of_a_report(kind, payload, after=10)))

    async def pictures(name):
        """Take pictures of the page in every size and colour scheme."""
        for size, viewport in {"desktop": DESKTOP, "phone": PHONE}.items():
            await ada.page.set_viewport_size(viewport)
            if await ada.messages.is_visible():
                await expect(ada.messages.locator(".message").last).to_be_in_viewport(ratio=1)
            for scheme in ("light", "dark"):
                await ada.page.emulate_media(color_scheme=scheme)
                background = await ada.page.evaluate("getComputedStyle(document.body).backgroundColor")
                assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == (scheme == "dark")
                assert await ada.page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
                await ada.page.screenshot(path=artifact(f"{name}-{size}-{scheme}.png"))
        await ada.page.emulate_media(color_scheme="light")
        await ada.page.set_viewport_size(DESKTOP)

    await pictures("entry")
    await ada.enter(password="lovelace", device="Laptop")
    phone, grace = await people("ada", timezone_id="Europe/London"), await people("grace")
    await phone.enter(password="lovelace", device="Phone")
    await grace.enter(password="hopper", device="Desktop")
    conversation = [
        (grace, "Has anybody tried the new compiler?", None),
        (grace, "It finishes my sentences.", None),
        (ada, "It found my mistake before I did.", None),
        (phone, "I am on my way, by the way. Messages reach all my devices.", None),
        (grace, "Lunch at noon? I have a moth to show you.", "ada"),
        (ada, "With pleasure!", "grace"),
        (grace, "The server restarts at five. Your page will come back by itself.", None),
        (ada, "Good to know.", None),
    ]
    for tab, text, to in conversation:
        await tab.say(text, to=to)
        await expect(ada.message(text)).to_be_in_viewport()
    await expect(ada.devices).to_have_count(2)
    await ada.page.get_by_role("button", name="Make a report").click()
    await expect(ada.page.locator("#percent")).to_have_text("50 %")
    await pictures("chat")

    # On a narrow screen people and devices are a sheet that opens and closes.
    side, toggle = ada.page.locator("#side"), ada.page.get_by_role("button", name="People and devices")
    await expect(side).to_be_visible()
    await expect(toggle).to_be_hidden()
    # The list scrolls in the frame in which its size changes, as it does when a message came just before.
    await ada.page.evaluate(
        "addEventListener('resize', () => document.querySelector('#messages').dispatchEvent(new Event('scroll')))"
    )
    for viewport in LOW, PHONE:
        await ada.page.set_viewport_size(viewport)
        await expect(side).to_be_hidden()
        await expect(ada.message(conversation[-1][1])).to_be_in_viewport(ratio=1)
    await toggle.click()
    await expect(toggle).to_have_attribute("aria-expanded", "true")
    await expect(ada.device("Laptop")).to_be_in_viewport()
    assert await ada.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    await ada.page.screenshot(path=artifact("side-phone-light.png"))
    await ada.page.keyboard.press("Escape")
    await expect(side).to_be_hidden()
    await expect(toggle).to_be_focused()
