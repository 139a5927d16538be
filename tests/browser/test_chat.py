"""The chat page in Chromium: several people, several tabs, and a server that goes away and comes back."""

from __future__ import annotations

import asyncio
import json
import re

import pytest
import pytest_asyncio

from browser.chat_page import PASSWORD, Held, new_name, of_a_report
from browser.needs import expect

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module")
async def two_and_two_tabs(chat, people):
    """Two people who have just come, the first with two tabs."""
    ann = await people(chat.new_user("ann"))
    bob = await people(chat.new_user("bob"), timezone_id="Asia/Tokyo")
    await ann.enter(device="Ann's desk")
    second = await people(ann.user, beside=ann)
    await asyncio.gather(second.enter(device="Second tab"), bob.enter(device="Bob's phone"))
    await ann.page.bring_to_front()
    return ann, second, bob


async def test_sign_up_sends_keys_and_never_the_password(people):
    ann = await people(new_name("ann"))
    await ann.enter("Sign up")
    first, *others = [json.loads(frame)[1] for frame in ann.frames]
    signup = first["identity"]["signup"]
    assert signup["name"] == ann.user
    assert sorted(signup["keys"]) == ["iterations", "salt", "server_key", "stored_key"]
    assert all("signup" not in json.dumps(other) for other in others)
    assert PASSWORD not in "".join(ann.frames)

    # A user who has signed up logs in again; nobody else can take the name.
    await ann.page.get_by_role("button", name="Log out", exact=True).click()
    await expect(ann.page.get_by_label("Name", exact=True)).to_be_focused()
    await expect(ann.status).to_have_text("Not connected")
    await ann.enter("Sign up", password="another password", succeeds=False)
    await expect(ann.page.locator("#entry-error")).to_have_text("This name is taken. Choose another one, or log in.")
    await ann.enter("Log in")


async def test_a_password_is_prepared_alike_for_sign_up_and_log_in(people):
    ann = await people(new_name("ann"))
    await ann.enter("Sign up", password="na\u00efve\u00a0\u2168 gr\u00fc\u00dfe\u00ad")
    await ann.page.get_by_role("button", name="Log out", exact=True).click()
    await ann.enter("Log in", password="nai\u0308ve IX gr\u00fc\u00dfe")


@pytest.mark.parametrize("user", ["ada", "nobody"])
async def test_a_wrong_password_and_an_unknown_name(people, user):
    tab = await people(user)
    await tab.enter(password="byron", succeeds=False)
    await expect(tab.page.locator("#entry-error")).to_have_text("The name or the password is wrong.")
    await expect(tab.status).to_have_text("Not connected")
    await expect(tab.page.get_by_label("Password")).to_be_focused()
    if user == "ada":
        await tab.enter(password="lovelace")


async def test_names_that_are_not_allowed(people):
    tab = await people("two words")
    await tab.enter("Sign up", succeeds=False)
    await expect(tab.page.locator("#entry-error")).to_contain_text("A name has 2 to 20 characters")
    tab.user = "ab\ue000"
    await tab.enter("Sign up", succeeds=False)
    await expect(tab.page.locator("#entry-error")).to_contain_text("characters that cannot be used")


async def test_messages_reach_every_tab_and_direct_ones_only_their_addressee(chat, people, two_and_two_tabs):
    ann, second, bob = two_and_two_tabs
    cleo = await people(chat.new_user("cleo"))
    await cleo.enter()
    await ann.say("Good morning, all.")
    for tab in (ann, second, bob, cleo):
        await expect(tab.message("Good morning, all.")).to_have_count(1)
    await expect(bob.message("Good morning, all.")).to_contain_text(f"{ann.user} Ann's desk")
    await expect(second.message("Good morning, all.")).to_contain_text("You Ann's desk")

    await bob.say("Lunch, Ann?", to=ann.user)
    for tab in (ann, second):
        await expect(tab.message("Lunch, Ann?")).to_contain_text("to you only")
    await expect(bob.message("Lunch, Ann?")).to_contain_text(f"to {ann.user} only")
    # A message that was sent later has arrived at Cleo, so this one would have.
    await bob.say("See you.")
    await expect(cleo.message("See you.")).to_have_count(1)
    await expect(cleo.message("Lunch, Ann?")).to_have_count(0)

    # Nor are they in her history.
    again = await people(cleo.user, beside=cleo)
    await again.enter()
    await expect(again.message("See you.")).to_have_count(1)
    await expect(again.message("Lunch, Ann?")).to_have_count(0)

    # Markup in messages is shown as text.
    await ann.say("<img src=x onerror=alert(1)> <b>bold</b>")
    await expect(bob.message("<img src=x onerror=alert(1)> <b>bold</b>")).to_have_count(1)


async def test_a_tab_counts_what_came_for_its_user_while_it_was_away(two_and_two_tabs):
    ann, second, bob = two_and_two_tabs
    page = second.page.url
    await second.page.goto("about:blank")
    await expect(ann.devices).to_have_count(1)
    for text in ("First while you were away.", "Second while you were away."):
        await bob.say(text, to=ann.user)
        await expect(ann.message(text)).to_have_count(1)
    await expect(ann.page).to_have_title(f"{ann.user} · WSE chat")
    await second.page.goto(page)
    await expect(second.status).to_have_text("Connected")
    await expect(second.page).to_have_title(f"(2) {ann.user} · WSE chat")
    for text in ("First while you were away.", "Second while you were away."):
        await expect(second.message(text)).to_have_count(1)
    await second.say("I have read that.")
    await expect(second.page).to_have_title(f"{ann.user} · WSE chat")


async def test_others_see_who_is_typing_to_everybody(two_and_two_tabs):
    ann, second, bob = two_and_two_tabs
    typing = bob.page.locator("#typing")
    text = ann.page.get_by_label("Message", exact=True)
    await text.press_sequentially("Hel")
    await expect(typing).to_have_text(f"{ann.user} is typing…")
    await expect(second.page.locator("#typing")).to_be_empty()
    await text.press_sequentially("lo")
    await text.press("Enter")
    await expect(typing).to_be_empty()
    await text.press_sequentially("Wait")
    await expect(typing).to_have_text(f"{ann.user} is typing…")
    await expect(typing).to_be_empty()  # for a while nothing is typed
    await ann.page.locator("#to").select_option(bob.user)
    await text.press_sequentially(" a secret")
    await bob.page.get_by_label("Message", exact=True).press_sequentially("Hi")  # arrives after it
    await expect(second.page.locator("#typing")).to_have_text(f"{bob.user} is typing…")
    await expect(typing).to_be_empty()
    await text.fill("")


async def test_a_message_to_somebody_who_has_left_is_answered_in_a_sentence(two_and_two_tabs):
    ann, _, bob = two_and_two_tabs
    await ann.page.get_by_role("button", name=f"Write to {bob.user} only").click()
    await expect(ann.text).to_be_focused()
    await bob.page.close()
    await expect(ann.messages).to_contain_text(f"{bob.user} has gone offline")
    await ann.text.fill("Are you there?")
    await ann.text.press("Enter")
    sentence = f"{bob.user} is not online."
    await expect(ann.page.locator("#composer-error")).to_have_text(sentence[0].upper() + sentence[1:])
    await expect(ann.text).to_have_value("Are you there?")


async def test_devices_with_browser_and_time_zone(two_and_two_tabs):
    ann, second, bob = two_and_two_tabs
    for tab, other, own in ((ann, "Second tab", "Ann's desk"), (second, "Ann's desk", "Second tab")):
        await expect(tab.devices).to_have_count(2)
        await expect(tab.device(own)).to_contain_text("this one")
        await expect(tab.device(own)).to_contain_text(re.compile(r"(Chromium|Chrome) · Europe/Paris"))
        await expect(tab.device(other)).not_to_contain_text("this one")
    await expect(bob.devices).to_have_count(1)
    await expect(bob.device("Bob's phone")).to_contain_text("Asia/Tokyo")

    # Log out that device: the other one goes on.
    await ann.page.get_by_role("button", name="Log out Second tab").click()
    await expect(second.page.locator("#entry-error")).to_have_text("This device was logged out from another one.")
    await expect(second.status).to_have_text("Not connected")
    await expect(ann.devices).to_have_count(1)
    await ann.say("Still here.")
    await expect(bob.message("Still here.")).to_have_count(1)
    assert await second.page.locator("#messages").inner_text() == ""


async def test_a_long_call_tells_how_far_it_is(chat, people):
    held = Held(of_a_report)
    ann = await people(chat.new_user("ann"), held=held)
    await ann.enter()
    second = await people(ann.user, beside=ann)
    await second.enter()
    await ann.say("one two three")
    button = ann.page.get_by_role("button", name="Make a report")
    await button.click()
    progress = ann.page.get_by_role("progressbar", name="Progress of the report")
    await expect(ann.page.locator("#percent")).to_have_text("5 %")
    await expect(progress).to_be_visible()
    await expect(button).to_be_disabled()
    # It keeps neither this tab nor others waiting, and what happens meanwhile does not end it.
    await ann.say("While the report is made.")
    for tab in (ann, second):
        await expect(tab.message("While the report is made.")).to_have_count(1)
    await expect(ann.page.locator(".pending")).to_have_count(0)
    await expect(progress).to_be_visible()
    await expect(button).to_be_disabled()
    await expect(ann.page.get_by_role("button", name="Send")).to_be_enabled()
    held.let_go()
    await expect(ann.page.locator("#report")).to_have_text(re.compile(r"^\d+ messages, \d+ words\. Most by: "))
    await expect(progress).to_be_hidden()
    await expect(button).to_be_enabled()
    await expect(second.page.locator("#percent")).to_be_empty()  # progress is for the caller


@pytest.mark.slow
async def test_a_device_that_is_being_logged_out_looks_so_when_the_devices_change(chat, people):
    held = Held(lambda kind, payload: kind == "log-out-device")
    ann = await people(chat.new_user("ann"), held=held)
    await ann.enter(device="Desk")
    second = await people(ann.user, beside=ann)
    await second.enter(device="Second tab")
    button = ann.page.get_by_role("button", name="Log out Second tab")
    await button.click()
    await expect(button).to_be_disabled()
    third = await people(ann.user, beside=ann)
    await third.enter(device="Third tab")
    await expect(ann.devices).to_have_count(3)
    await expect(button).to_be_disabled()
    await expect(ann.page.get_by_role("button", name="Log out Third tab")).to_be_enabled()
    held.let_go()
    await expect(ann.devices).to_have_count(2)
    await expect(second.page.locator("#entry-error")).to_have_text("This device was logged out from another one.")


@pytest.mark.parametrize("how", ["kill", pytest.param("stop", marks=pytest.mark.slow)])
async def test_the_server_goes_away_and_comes_back(chat, people, two_and_two_tabs, artifact, how):
    held = Held(of_a_report)
    _, second, bob = two_and_two_tabs
    ann = await people(second.user, beside=second, held=held)
    await ann.enter()
    tabs = (ann, *two_and_two_tabs)
    before, between, after = (f"{text} the {how}." for text in ("Before", "Written during", "After"))
    await ann.say(before)
    await expect(bob.message(before)).to_have_count(1)
    await ann.page.get_by_role("button", name="Make a report").click()
    await expect(ann.page.locator("#percent")).to_have_text("5 %")

    getattr(chat, how)()
    held.let_go(messages=how == "stop")  # a server that was killed has not sent them
    for tab in tabs:
        await expect(tab.status).to_have_text("Reconnecting…")
        await expect(tab.banner).to_be_visible()
    await ann.say(between)
    await expect(ann.page.locator(".pending", has_text=between)).to_contain_text("Not sent yet")
    await ann.page.screenshot(path=artifact(f"reconnecting-after-{how}.png"))

    chat.start()
    for tab in tabs:
        await expect(tab.status).to_have_text("Connected")
        await expect(tab.banner).to_be_hidden()
    # A server that is stopped lets calls that run end before it closes.
    lost, done = "The connection was lost before the server could answer.", re.compile(r"^\d+ messages, \d+ words\.")
    await expect(ann.page.locator("#report")).to_have_text(lost if how == "kill" else done)
    # Users and history are those from before, and messages flow again.
    await bob.say(after)
    late = await people(bob.user, beside=bob)
    await late.enter()
    for tab in (*tabs, late):
        for text in (before, between, after):
            await expect(tab.message(text)).to_have_count(1)
    await expect(ann.devices).to_have_count(3)


@pytest.mark.slow
async def test_logging_out_and_in_while_there_is_no_server(chat, people):
    tab = await people("ada")
    await tab.enter(password="lovelace")
    chat.kill()
    await expect(tab.status).to_have_text("Reconnecting…")
    await tab.page.get_by_role("button", name="Log out", exact=True).click()
    await expect(tab.page.get_by_label("Name", exact=True)).to_be_focused()
    await expect(tab.status).to_have_text("Not connected")
    await tab.enter(password="lovelace", succeeds=False)
    await expect(tab.page.locator("#entry-error")).to_have_text("The server cannot be reached.")
    chat.start()
    await tab.enter(password="lovelace")


async def test_a_first_visitor_is_not_called_disconnected(people):
    tab = await people("ada")
    await expect(tab.status).to_be_empty()
    await expect(tab.status).to_be_hidden()
    await expect(tab.banner).to_be_hidden()


# Messages that are not acknowledged.


@pytest.mark.slow  # it waits until a server counts as lost
async def test_in_a_stall_a_message_looks_unacknowledged_and_arrives_once(chat, people, two_and_two_tabs, artifact):
    held = Held(lambda kind, payload: kind == "say")
    _, second, bob = two_and_two_tabs
    ann = await people(second.user, beside=second, held=held)
    await ann.enter()
    # The message is under way, and there is no answer.
    await ann.say("During the stall.")
    pending = ann.page.locator(".pending", has_text="During the stall.")
    await expect(pending).to_have_count(1)
    await expect(ann.text).to_have_value("")
    await expect(pending).to_contain_text("No answer from the server yet")
    await expect(ann.status).to_have_text("Waiting for an answer…")
    await ann.page.screenshot(path=artifact("stall.png"))
    with chat.frozen():
        held.let_go()
        # A server that stays silent counts as lost, and the message as not sent yet.
        for tab in (ann, *two_and_two_tabs):
            await expect(tab.status).to_have_text("Reconnecting…")
        await expect(pending).to_contain_text("Not sent yet")
    for tab in (ann, *two_and_two_tabs):
        await expect(tab.status).to_have_text("Connected")
        await expect(tab.message("During the stall.")).to_have_count(1)
    await expect(ann.page.locator(".pending")).to_have_count(0)
    # The server had the message in its socket when it went on: sent again, it was kept once.
    again = await people(bob.user, beside=bob)
    await again.enter()
    await expect(again.message("During the stall.")).to_have_count(1)


async def test_enter_while_away_says_what_happens(chat, people):
    tab = await people("ada")
    await tab.enter(password="lovelace")
    chat.kill()
    await expect(tab.status).to_have_text("Reconnecting…")
    await tab.text.fill("Is anybody there?")
    await tab.text.press("Enter")
    pending = tab.page.locator(".pending", has_text="Is anybody there?")
    await expect(pending).to_contain_text("Not sent yet: it will be when the connection is back.")
    await expect(tab.text).to_have_value("")
    chat.start()
    await expect(tab.status).to_have_text("Connected")
    await expect(pending).to_have_count(0)
    await expect(tab.message("Is anybody there?")).to_have_count(1)


async def test_messages_of_both_sides_arrive_once_after_a_cut_of_the_network(two_and_two_tabs):
    ann, second, bob = two_and_two_tabs
    await ann.say("Before the cut.")
    await expect(bob.message("Before the cut.")).to_have_count(1)
    await ann.page.get_by_role("button", name="Cut the network").click()
    await expect(ann.status).to_have_text("Reconnecting…")
    await expect(ann.banner).to_be_visible()
    for text in ("First of Bob's.", "Second of Bob's."):
        await bob.say(text)
        await expect(second.message(text)).to_have_count(1)
    await ann.say("From the tunnel.")
    await expect(ann.page.locator(".pending", has_text="From the tunnel.")).to_contain_text("Not sent yet")
    await expect(ann.message("of Bob's.")).to_have_count(0)
    # To the others she has not gone.
    await expect(bob.messages).not_to_contain_text(f"{ann.user} has gone offline")
    await ann.page.get_by_role("button", name="Mend the network").click()
    await expect(ann.status).to_have_text("Connected")
    await expect(ann.messages).to_contain_text(
        re.compile(r"Back after \d+ s\. Messages that arrived meanwhile: 2; of yours that were sent: 1\.")
    )
    for tab in (ann, second, bob):
        for text in ("First of Bob's.", "Second of Bob's.", "From the tunnel."):
            await expect(tab.message(text)).to_have_count(1)
    await expect(ann.page.locator(".pending")).to_have_count(0)
    await expect(bob.messages).not_to_contain_text(f"{ann.user} has come back")


# Reloading.


async def test_a_reload_keeps_the_login_and_the_browser_no_password(chat, people):
    ann = await people(chat.new_user("ann"))
    await ann.enter(device="Desk")
    await ann.say("Before the reload.")
    storage = "JSON.stringify([{...sessionStorage}, {...localStorage}, document.cookie])"
    assert PASSWORD not in await ann.page.evaluate(storage)
    for restart in (False, True):
        if restart:
            chat.stop()
            chat.start()
        await ann.page.reload()
        await expect(ann.status).to_have_text("Connected")
        await expect(ann.text).to_be_focused()
        await expect(ann.page.locator("#who")).to_have_text(ann.user)
        await expect(ann.message("Before the reload.")).to_have_count(1)
        await expect(ann.device("Desk")).to_contain_text("this one")
        await expect(ann.page.get_by_label("Name", exact=True)).to_be_hidden()

    # Logging out ends the session, also for a copy of its key.
    key = await ann.page.evaluate("sessionStorage.getItem('wse-chat-session')")
    await ann.page.get_by_role("button", name="Log out", exact=True).click()
    await expect(ann.page.get_by_label("Name", exact=True)).to_be_focused()
    await ann.page.evaluate("key => sessionStorage.setItem('wse-chat-session', key)", key)
    await ann.page.reload()
    await expect(ann.page.locator("#entry-error")).to_have_text("Your session has ended. Please log in again.")
    await ann.page.reload()
    await expect(ann.page.get_by_label("Name", exact=True)).to_be_focused()
    await expect(ann.page.locator("#entry-error")).to_be_empty()


async def test_a_device_that_was_logged_out_from_another_one_stays_out_after_a_reload(two_and_two_tabs):
    ann, second, _ = two_and_two_tabs
    await ann.page.get_by_role("button", name="Log out Second tab").click()
    await expect(second.page.locator("#entry-error")).to_have_text("This device was logged out from another one.")
    await second.page.reload()
    await expect(second.page.get_by_label("Name", exact=True)).to_be_focused()


@pytest.mark.slow
async def test_a_reload_while_the_server_is_away_comes_back_with_it(chat, people):
    tab = await people("ada")
    await tab.enter(password="lovelace")
    chat.kill()
    await expect(tab.status).to_have_text("Reconnecting…")
    chat.start()
    await tab.page.reload()
    await expect(tab.status).to_have_text("Connected")


# The conversation.


async def test_pasted_lines_keep_their_breaks(people, two_and_two_tabs):
    ann, _, bob = two_and_two_tabs
    await ann.text.fill("first line\n  second line\n\nlast line")
    await ann.text.press("Enter")
    text = bob.message("second line").locator(".text")
    await expect(text).to_have_count(1)
    assert await text.inner_text() == "first line\n  second line\n\nlast line"
    await ann.text.press_sequentially("uno")
    await ann.text.press("Shift+Enter")
    await ann.text.press_sequentially("dos")
    await ann.text.press("Enter")
    await expect(bob.message("uno\ndos")).to_have_count(1)


@pytest.mark.slow
async def test_days_are_separated_and_messages_of_one_sender_grouped(people, two_and_two_tabs):
    ann, second, bob = two_and_two_tabs
    conversation = {"One.": ann, "Two.": ann, "Three.": bob, "Four, for Ann.": bob, "Five.": second}
    for text, sender in conversation.items():
        await sender.say(text, to=ann.user if "Ann" in text else None)
        for tab in (ann, bob):
            await expect(tab.message(text)).to_have_count(1)
        await expect(sender.page.locator(".pending")).to_have_count(0)
    for tab in (ann, bob):
        grouped = ["joined" in await tab.message(text).get_attribute("class") for text in conversation]
        # Not with another sender, device or addressee.
        assert grouped == [False, True, False, False, False]
        await expect(tab.messages.locator(".day").last).to_have_text(re.compile(r"\b20\d\d$"))

    # Messages from the day before stand under their own date, wherever they come in.
    late = {"at": "2020-02-29T12:00:00Z", "from": f"{bob.user}/x", "text": "Long ago.", "id": 0}
    chat = await people(bob.user, beside=bob)
    await chat.page.route_web_socket(re.compile("^ws:"), lambda socket: with_history(socket, late))
    await chat.page.reload()
    await chat.enter()
    await expect(chat.messages.locator(".day").first).to_have_text(re.compile(r"^Saturday,? 29 February 2020$"))
    order = await chat.messages.locator("li").all_inner_texts()
    first = next(at for at, text in enumerate(order) if "29 February 2020" in text)
    assert "Long ago." in order[first + 1]
    assert re.search(r"20\d\d$", order[first + 2])


def with_history(socket, message):
    """Put a message at the beginning of the history that the server answers."""
    server = socket.connect_to_server()

    def answer(data):
        kind, payload, stamp = json.loads(data)
        if kind == "~wse:response" and isinstance(payload, list) and payload and "text" in payload[0]:
            data = json.dumps([kind, [message, *payload], stamp])
        socket.send(data)

    server.on_message(answer)


@pytest.mark.slow
async def test_devices_keep_their_order_when_one_comes_back(chat, people):
    ann = await people(chat.new_user("ann"))
    await ann.enter(device="Tab")
    others = [await people(ann.user, beside=ann) for _ in range(2)]
    for tab in others:
        await tab.enter(device="Tab")
    await expect(ann.devices).to_have_count(3)
    for tab, place in ((ann, 0), (others[0], 1), (others[1], 2), (ann, 0)):
        await tab.page.reload()
        await expect(tab.devices).to_have_count(3)
        await expect(tab.devices.nth(place)).to_contain_text("this one")


async def test_on_a_phone_it_shows_who_is_logged_in(chat, people):
    tab = await people(chat.new_user("a-long-name"), viewport={"width": 360, "height": 700})
    await tab.enter()
    who = tab.page.locator("#who")
    await expect(who).to_have_text(tab.user)
    await expect(who).to_be_in_viewport(ratio=1)
    assert await tab.page.evaluate("document.documentElement.scrollWidth") <= 360


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_the_placeholder_can_be_read(people, scheme):
    tab = await people("ada", color_scheme=scheme)
    await tab.enter(password="lovelace")
    await expect(tab.page.get_by_role("button", name="Send")).to_be_enabled()
    for to in ("", None):
        if to is None:  # the field of a direct message has a background of its own
            await tab.page.evaluate("document.getElementById('composer').classList.add('direct')")
        ink, paper = await tab.text.evaluate(
            "el => [getComputedStyle(el, '::placeholder').color, getComputedStyle(el).backgroundColor]"
        )
        assert contrast(ink, paper) >= 4.5  # WCAG 2.2, 1.4.3
        assert await tab.text.evaluate("el => getComputedStyle(el, '::placeholder').opacity") == "1"


def contrast(*colours):
    """The ratio of WCAG 2.2 between two opaque colours, as `getComputedStyle` writes them."""

    def luminance(colour):
        assert colour.startswith("rgb("), colour
        parts = (int(part) / 255 for part in re.findall(r"\d+", colour))
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted(map(luminance, colours))
    return (light + 0.05) / (dark + 0.05)


async def test_with_the_keyboard_only(chat, people):
    """Tab, arrows, Enter and the letters, from the empty page to a direct message and a log-out."""
    bob = await people(chat.new_user("bob"))
    await bob.enter()
    ann = await people(new_name("ann"))
    keys = ann.page.keyboard

    async def walk_to(locator, key="Tab"):
        for _ in range(20):
            if await locator.evaluate("element => element === document.activeElement"):
                break
            await keys.press(key)
        await expect(locator).to_be_focused()
        # A keyboard user sees where the focus is: the element, or the face of a radio button, is outlined.
        outline = "el => getComputedStyle(el.type === 'radio' ? el.nextElementSibling : el).outlineStyle"
        assert await locator.evaluate(outline) == "solid"

    await expect(ann.page.get_by_label("Name", exact=True)).to_be_focused()
    await walk_to(ann.page.get_by_role("radio", name="Log in"), "Shift+Tab")
    await keys.press("ArrowRight")
    await expect(ann.page.get_by_role("radio", name="Sign up")).to_be_checked()
    await walk_to(ann.page.get_by_label("Name", exact=True))
    await keys.type(ann.user)
    await walk_to(ann.page.get_by_label("Password"))
    await keys.type(PASSWORD)
    await keys.press("Enter")
    await expect(ann.text).to_be_focused()

    await keys.type("Typed.")
    await keys.press("Enter")
    await expect(bob.message("Typed.")).to_have_count(1)
    await expect(ann.text).to_have_value("")
    await expect(ann.text).to_be_focused()

    write = ann.page.get_by_role("button", name=f"Write to {bob.user} only")
    await walk_to(write)
    second = await people(bob.user, beside=bob)
    await second.enter()
    await ann.page.bring_to_front()
    await expect(ann.page.locator("#people")).to_contain_text("2 devices")
    await expect(write).to_be_focused()  # though the list has been drawn anew
    await keys.press("Enter")
    await expect(ann.text).to_be_focused()
    await keys.type("For you.")
    await keys.press("Enter")
    await expect(bob.message("For you.")).to_contain_text("to you only")
    await keys.press("Escape")
    await expect(ann.page.get_by_label("To", exact=True)).to_have_value("")

    await walk_to(ann.messages, "Shift+Tab")  # so that its scrolling needs no mouse
    await walk_to(ann.page.get_by_role("button", name="Log out", exact=True), "Shift+Tab")
    await keys.press("Space")
    await expect(ann.page.get_by_label("Name", exact=True)).to_be_focused()


async def test_every_control_has_a_name_and_messages_are_announced(two_and_two_tabs):
    ann, *_ = two_and_two_tabs
    await expect(ann.devices).to_have_count(2)
    names = await ann.page.locator("input, select, button").evaluate_all(
        "all => all.map(el => el.ariaLabel || [...el.labels ?? []].map(l => l.textContent).join() || el.innerText)"
    )
    assert len(names) > 10
    assert all(names)
    await expect(ann.messages).to_have_attribute("aria-live", "polite")
    await expect(ann.status).to_have_attribute("role", "status")
    for error in ("#entry-error", "#composer-error", "#devices-error", "#banner"):
        await expect(ann.page.locator(error)).to_have_attribute("role", "alert")


async def test_the_page_runs_under_a_strict_content_security_policy(people):
    tab = await people("ada")
    policy = await tab.page.locator("meta[http-equiv='Content-Security-Policy']").get_attribute("content")
    assert policy.startswith("default-src 'self';")
    assert "unsafe" not in policy
    # It is in force: a forbidden script does not run.
    async with tab.page.expect_console_message():
        await tab.page.evaluate(
            "document.body.append(Object.assign(document.createElement('script'), { text: 'window.ran = 1' }))"
        )
    assert await tab.page.evaluate("window.ran") is None
    assert tab.troubles
    assert all("Content Security Policy" in trouble for trouble in tab.troubles)
    # All other tests run under it as well, and fail for every trouble.
    tab.troubles.clear()
