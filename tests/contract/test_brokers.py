"""The guarantees of `wse.core.ports.broker.Broker`, tested with every broker."""

from __future__ import annotations

import asyncio
import string
from contextlib import suppress
from dataclasses import replace
from itertools import islice

import pytest

from support.brokers import CLUSTERS, WAIT, be_patient, run_cluster, unavailable, until
from support.net import soon
from wse import ErrorCode, WseError
from wse.core.ports.broker import Away, Transition

EVERY_CHARACTER = string.ascii_letters + string.digits + "_-="


@pytest.fixture(params=CLUSTERS)
async def cluster(request, monkeypatch):
    monkeypatch.setattr("wse.brokers.nats.broker.new_generation", lambda: 0)  # for the tests that count them
    be_patient(monkeypatch)
    async for cluster in run_cluster(request.param, request):
        yield cluster


# Messages.


async def test_messages_arrive_at_all_who_subscribed_in_the_order_of_their_sender_and_once(cluster):
    one, two, three = await cluster.nodes(3)
    await one.subscribe("talk")
    await two.subscribe("talk")
    await three.subscribe("other")
    for n in range(5000):
        one.broker.publish("talk", b"%d" % n)
    one.broker.publish("other", b"end")
    for node in one, two:
        await node.until("received", "talk", b"4999")
        assert node.all("received") == [("talk", b"%d" % n) for n in range(5000)]
    await three.until("received", "other", b"end")
    assert three.all("received") == [("other", b"end")]


async def test_messages_of_many_turns_arrive_in_order_and_once(cluster):
    one, two = await cluster.nodes(2, "talk")
    for n in range(200):
        one.broker.publish("talk", b"%d" % n)
        await asyncio.sleep(0)
    await two.until("received", "talk", b"199")
    assert two.all("received") == [("talk", b"%d" % n) for n in range(200)]


async def test_each_sender_has_its_own_order(cluster):
    *senders, listener = await cluster.nodes(3, "talk")
    for n in range(100):
        for sender in senders:
            sender.broker.publish("talk", f"{sender.name} {n}".encode())
    for sender in senders:
        await listener.until("received", "talk", f"{sender.name} 99".encode())
    for sender in senders:
        heard = [data.decode() for _, data in listener.all("received") if data.startswith(sender.name.encode())]
        assert heard == [f"{sender.name} {n}" for n in range(100)]


async def test_nothing_arrives_before_the_publisher_goes_on(cluster):
    node = await cluster.node("talk")
    node.broker.publish("talk", b"hello")
    assert node.entries == []
    await node.until("received", "talk", b"hello")


async def test_a_topic_is_subscribed_to_once_however_often_asked(cluster):
    node = await cluster.node("talk", "talk", "end")
    await node.subscribe("talk")
    node.broker.publish("talk", b"hello")
    node.broker.publish("end", b"")
    await node.until("received", "end")
    assert node.all("received") == [("talk", b"hello"), ("end", b"")]


async def test_nothing_is_received_of_a_topic_once_it_is_unsubscribed(cluster):
    one, two = await cluster.nodes(2, "talk", "end")
    two.broker.unsubscribe("talk")
    one.broker.publish("talk", b"hello")
    one.broker.publish("end", b"")
    await two.until("received", "end")
    await one.until("received", "end")
    assert two.all("received") == [("end", b"")]
    assert one.all("received") == [("talk", b"hello"), ("end", b"")]


async def test_a_message_under_way_to_a_node_that_unsubscribes_is_not_received(cluster):
    node = await cluster.node("talk", "end")
    node.broker.publish("talk", b"hello")
    node.broker.publish("end", b"")
    node.broker.unsubscribe("talk")
    await node.until("received", "end")
    assert node.all("received") == [("end", b"")]


async def test_what_is_subscribed_to_again_is_received_again(cluster):
    one, two = await cluster.nodes(2, "talk")
    for _ in range(3):
        two.broker.unsubscribe("talk")
        two.broker.subscribe("talk")
    await two.broker.flush()
    one.broker.publish("talk", b"hello")
    await two.until("received", "talk", b"hello")
    two.broker.unsubscribe("talk")
    await two.broker.flush()
    await two.subscribe("talk")
    one.broker.publish("talk", b"again")
    await two.until("received", "talk", b"again")
    assert two.all("received") == [("talk", b"hello"), ("talk", b"again")]


async def test_to_unsubscribe_from_what_is_not_subscribed_to_is_harmless(cluster):
    node = await cluster.node("talk")
    node.broker.unsubscribe("other")
    await node.broker.flush()
    node.broker.subscribe("other")
    node.broker.unsubscribe("other")
    await node.broker.flush()
    node.broker.publish("talk", b"hello")
    await node.until("received", "talk", b"hello")


async def test_a_listener_may_publish_and_subscribe_while_it_receives(cluster):
    node = await cluster.node("ask")
    await node.subscribe("answer")
    node.received = lambda topic, data: (
        node.add(topic, data),
        node.broker.unsubscribe(topic),
        node.broker.publish("answer", data),
    )
    node.broker.publish("ask", b"what")
    await node.until("answer", b"what")
    assert node.entries == [("ask", b"what"), ("answer", b"what")]


async def test_a_flush_that_is_cancelled_harms_nothing(cluster):
    node = await cluster.node("talk")
    flush = asyncio.ensure_future(node.broker.flush())
    await asyncio.sleep(0)
    flush.cancel()
    await node.broker.flush()
    node.broker.publish("talk", b"hello")
    await node.until("received", "talk", b"hello")
    assert node.names == ["received"]


async def test_after_a_flush_others_hear_and_are_heard(cluster):
    one, two = await cluster.nodes(2)
    topics = [f"user-{n}" for n in range(2500)]
    for topic in topics:
        one.broker.subscribe(topic)
    await one.broker.flush()
    for topic in topics:
        two.broker.publish(topic, topic.encode())
    await one.until("received", "user-2499")
    assert one.all("received") == [(topic, topic.encode()) for topic in topics]


async def test_every_character_that_a_name_can_have(cluster):
    topic = f"{EVERY_CHARACTER}.{EVERY_CHARACTER}"
    one, two = await cluster.nodes(2, topic)
    one.broker.publish(topic, bytes(range(256)))
    assert await two.until("received") == ("received", topic, bytes(range(256)))
    device = (await one.broker.join(one.device(EVERY_CHARACTER, EVERY_CHARACTER[::-1]), 10)).device
    assert await two.broker.devices(EVERY_CHARACTER) == [device]
    assert [user async for user in two.broker.users()] == [EVERY_CHARACTER]


@pytest.mark.parametrize("size", [0, 1, 100_000, 1024 * 1024])
async def test_messages_of_all_sizes(cluster, size):
    one, two = await cluster.nodes(2, "talk")
    one.broker.publish("talk", b"x" * size)
    one.broker.publish("talk", b"small")
    await two.until("received", "talk", b"small")
    assert [len(data) for _, data in two.all("received")] == [size, 5]


async def test_a_message_that_the_engine_does_not_take_is_told_of_and_harms_nothing(cluster):
    one, two = await cluster.nodes(2, "talk")
    limit = cluster.message_size
    if limit is None:
        one.broker.publish("talk", bytes(64 * 1024 * 1024))
        _, _, data = await two.until("received")
        assert len(data) == 64 * 1024 * 1024
        return
    one.broker.publish("talk", b"before")
    with pytest.raises(WseError) as caught:
        one.broker.publish("talk", bytes(limit + 1))
    assert caught.value.code == ErrorCode.LIMIT_EXCEEDED
    assert caught.value.details == {"size": limit + 1, "limit": limit}
    one.broker.publish("talk", bytes(limit))
    one.broker.publish("talk", b"after")
    await two.until("received", "talk", b"after")
    assert [len(data) for _, data in two.all("received")] == [6, limit, 5]
    assert "lost" not in one.names


# The register.


def transitions(*steps):
    """The generations that these steps tell of, in order, each once."""
    return list(dict.fromkeys(transition.generation for step in steps for transition in step.transitions))


async def test_a_user_s_first_device_makes_the_user_present_and_the_last_one_absent(cluster):
    one, two = await cluster.nodes(2)
    first = await one.broker.join(one.device("ann", "c1"), 10)
    await fire(one, first.transitions)
    second = await two.broker.join(two.device("ann", "c2"), 10)
    assert first.transitions == (Transition("ann", 1),)
    assert (first.generation, second.generation, second.transitions) == (1, 1, ())
    for node in one, two:
        assert await node.broker.devices("ann") == [first.device, second.device]
        assert await node.broker.devices("bob") == []
        assert await node.broker.online() == 1
    left = await one.broker.leave(first.device, code=1001, reason="bye")
    assert (left.generation, left.transitions) == (1, ())
    assert await one.broker.devices("ann") == [second.device]
    last = await two.broker.leave(second.device, code=4000, reason="later")
    assert last.transitions == (Transition("ann", 2, 4000, "later"),)
    assert await one.broker.devices("ann") == []
    await fire(one, first.transitions)
    await fire(two, last.transitions)
    await until(lambda: online_is(one, 0))
    again = await one.broker.join(one.device("ann", "c3"), 10)
    assert [transition.is_joined for transition in again.transitions] == [True]


async def in_turns(steps):
    """The results of the steps, some of them at a time: the engine has a few seconds for each."""
    results = []
    while few := list(islice(steps, 100)):
        results += await asyncio.gather(*few)
    return results


async def online_is(node, count):
    """A user who has left may count until that was fired."""
    return await node.broker.online() == count


async def test_a_transition_stands_in_the_outbox_of_the_node_that_caused_it_until_it_has_been_fired(cluster):
    one, two = await cluster.nodes(2)
    joined = await one.broker.join(one.device("ann", "c1"), 10)
    left = await one.broker.leave(joined.device, code=1001, reason="bye")
    assert await two.broker.pending() == []
    assert left.transitions == (*joined.transitions, Transition("ann", 2, 1001, "bye"))
    assert await one.broker.pending() == [*left.transitions]
    assert await one.broker.claim(joined.transitions) == [*joined.transitions]
    assert await one.broker.pending() == [*left.transitions[1:]]
    assert await one.broker.claim(left.transitions[1:]) == [*left.transitions[1:]]
    assert await one.broker.pending() == []


async def test_a_claim_whose_answer_was_lost_is_granted_again_and_a_transition_of_another_node_is_not(cluster):
    one, two = await cluster.nodes(2)
    joined = await one.broker.join(one.device("ann", "c1"), 10)
    assert await two.broker.claim(joined.transitions) == []
    with cluster.lose_answers(one):
        await unavailable(one.broker.claim(joined.transitions))
    assert await one.broker.pending() == []
    assert await one.broker.claim(joined.transitions) == [*joined.transitions]
    assert await one.broker.claim([Transition("ann", 3), Transition("bob", 1)]) == []


async def test_a_dead_node_cannot_claim_what_another_one_has_inherited(cluster):
    node, other = await cluster.nodes(2)
    joined = await node.broker.join(node.device("ann", "c1"), 10)
    await node.broker.resign()
    assert joined.transitions[0] in await reap_all(other)
    await unavailable(node.broker.claim(joined.transitions))
    await node.broker.renew(10)
    assert await node.broker.claim(joined.transitions) == []
    assert await other.broker.claim(joined.transitions) == [*joined.transitions]


async def fire(node, transitions):
    """Claim what is fired, and report it."""
    node.broker.fired(await node.broker.claim(transitions))


async def pending_is(node, expected):
    return await node.broker.pending() == [*expected]


async def test_a_lease_says_whether_the_outbox_holds_something(cluster):
    node = await cluster.node()
    assert not (await node.broker.renew(WAIT)).has_pending
    joined = await node.broker.join(node.device("ann", "c1"), 10)
    assert (await node.broker.renew(WAIT)).has_pending
    await fire(node, joined.transitions)

    async def is_told():
        return not (await node.broker.renew(WAIT)).has_pending

    await until(is_told)


async def test_devices_have_the_order_in_which_they_joined(cluster):
    one, two = await cluster.nodes(2)
    joined = [
        await node.broker.join(node.device("ann", name), 10) for node, name in ((one, "c3"), (two, "c1"), (one, "c2"))
    ]
    assert await one.broker.devices("ann") == [each.device for each in joined]
    await one.broker.leave(joined[2].device)
    last = await two.broker.join(two.device("ann", "c0"), 10)
    assert [device.conn_id for device in await two.broker.devices("ann")] == ["c3", "c1", "c0"]
    assert last.device.place > joined[2].device.place


async def test_the_oldest_devices_are_displaced(cluster):
    one, two = await cluster.nodes(2)
    devices = [
        (await node.broker.join(node.device("ann", f"c{n}"), 3)).device for n, node in enumerate([one, two, one])
    ]
    await fire(one, await one.broker.pending())
    joined = await two.broker.join(two.device("ann", "c3"), 2)
    assert joined.displaced == (devices[0], devices[1])
    assert transitions(joined) == []
    assert await one.broker.devices("ann") == [devices[2], joined.device]
    assert transitions(await one.broker.leave(devices[0])) == []
    assert transitions(await two.broker.leave(joined.device)) == []
    assert transitions(await one.broker.leave(devices[2]))[-1] == 2


async def test_a_device_that_is_away_is_displaced_before_older_ones_of_living_nodes(cluster):
    one, two = await cluster.nodes(2)
    old = (await one.broker.join(one.device("ann", "c1"), 2)).device
    away = (await two.broker.join(two.device("ann", "c2"), 2)).device
    await two.broker.set_away(replace(away, away=True))
    assert await one.broker.devices("ann") == [old, replace(away, away=True)]
    joined = await one.broker.join(one.device("ann", "c3"), 2)
    assert [device.conn_id for device in joined.displaced] == ["c2"]


async def test_a_device_that_is_back_is_displaced_in_its_turn(cluster):
    (node,) = await cluster.nodes(1)
    old = (await node.broker.join(node.device("ann", "c1"), 2)).device
    away = (await node.broker.join(node.device("ann", "c2"), 2)).device
    await node.broker.set_away(replace(away, away=True))
    await node.broker.set_away(away)
    joined = await node.broker.join(node.device("ann", "c3"), 2)
    assert joined.displaced == (old,)


async def test_a_device_that_is_gone_is_displaced_before_an_older_one_whose_client_may_come_back(cluster):
    one, two = await cluster.nodes(2)
    here = (await one.broker.join(one.device("ann", "c1"), 3)).device
    detached = (await one.broker.join(one.device("ann", "c2"), 3)).device
    gone = (await two.broker.join(two.device("ann", "c3"), 3)).device
    await one.broker.set_away(replace(detached, away=Away.DETACHED))
    await two.broker.set_away(replace(gone, away=Away.GONE))
    seen = await one.broker.devices("ann")
    assert [device.away for device in seen] == [Away.HERE, Away.DETACHED, Away.GONE]
    joined = await one.broker.join(one.device("ann", "c4"), 2)
    assert {device.conn_id: device.away for device in joined.displaced} == {"c3": Away.GONE, "c2": Away.DETACHED}
    assert await two.broker.devices("ann") == [here, joined.device]


async def test_a_device_that_is_registered_again_is_as_far_away_as_the_register_knows(cluster):
    one, two = await cluster.nodes(2)
    device = (await one.broker.join(one.device("ann", "c1"), 3)).device
    away = replace(device, away=Away.DETACHED)
    await one.broker.set_away(away)
    assert (await one.broker.join(device, 3, fresh=False)).device == away
    there = replace(device, node=two.name)
    assert (await two.broker.join(replace(away, node=two.name), 3, fresh=False)).device == there
    assert await one.broker.devices("ann") == [there]
    other = replace(two.device("ann", "c2"), place=-5, away=Away.DETACHED)
    assert (await two.broker.join(other, 3, fresh=False)).device == replace(other, away=Away.HERE)


async def test_only_the_node_that_has_a_device_says_that_it_is_away(cluster):
    one, two = await cluster.nodes(2)
    device = (await one.broker.join(one.device("ann", "c1"), 2)).device
    await two.broker.set_away(replace(device, node=two.name, away=True))
    await two.broker.set_away(replace(device, conn_id="c2", node=two.name, away=True))
    assert await two.broker.devices("ann") == [device]


async def test_a_user_whose_device_is_away_is_still_there(cluster):
    (node,) = await cluster.nodes(1)
    device = (await node.broker.join(node.device("ann", "c1"), 2)).device
    await node.broker.set_away(replace(device, away=True))
    assert await node.broker.online() == 1
    assert transitions(await node.broker.join(node.device("ann", "c2"), 2)) == []
    assert transitions(await node.broker.leave(device)) == []


async def test_a_device_of_a_dead_node_is_displaced_before_the_older_one_of_a_living_node(cluster):
    node = await cluster.node()
    old = (await node.broker.join(node.device("ann", "c1"), 10)).device
    dead = await cluster.dead_node(("ann", "c2"))
    joined = await node.broker.join(node.device("ann", "c3"), 2)
    assert [device.node for device in joined.displaced] == [dead.name]
    assert await node.broker.devices("ann") == [old, joined.device]


async def test_devices_of_a_dead_node_are_the_first_to_go_for_a_node_that_has_none(cluster):
    one, two, dead = await cluster.nodes(3)
    oldest = (await one.broker.join(one.device("ann", "c1"), 2)).device
    gone = (await dead.broker.join(dead.device("ann", "c2"), 2)).device
    await dead.broker.resign()
    newest = await two.broker.join(two.device("ann", "c3"), 2)
    assert newest.displaced == (gone,)
    assert await two.broker.devices("ann") == [oldest, newest.device]


async def test_a_device_that_is_registered_again_keeps_its_place(cluster):
    node = await cluster.node()
    old = (await node.broker.join(node.device("ann", "c1"), 10)).device
    new = (await node.broker.join(node.device("ann", "c2"), 10)).device
    await node.broker.leave(old)
    assert (await node.broker.join(old, 10, fresh=False)).device == old
    assert await node.broker.devices("ann") == [old, new]
    fresh = (await node.broker.join(node.device("ann", "c3"), 10)).device
    assert fresh.place > new.place


async def test_a_device_that_is_registered_again_may_itself_have_to_go(cluster):
    node = await cluster.node()
    old = (await node.broker.join(node.device("ann", "c1"), 10)).device
    new = await node.broker.join(node.device("ann", "c2"), 1)
    assert new.displaced == (old,)
    again = await node.broker.join(old, 1, fresh=False)
    assert again.displaced == (old,)
    assert transitions(again) == []
    assert await node.broker.devices("ann") == [new.device]


async def test_a_place_before_all_others_is_kept(cluster):
    node = await cluster.node()
    new = (await node.broker.join(node.device("ann", "c1"), 10)).device
    old = replace(node.device("ann", "c2"), place=3 - (1 << 40))
    assert (await node.broker.join(old, 10, fresh=False)).device == old
    assert await node.broker.devices("ann") == [old, new]


async def test_a_step_that_is_repeated_changes_nothing_and_tells_what_was_not_fired(cluster):
    node = await cluster.node()
    joined = await node.broker.join(node.device("ann", "c1"), 10)
    device = joined.device
    assert (await node.broker.join(node.device("ann", "c1"), 10)).transitions == joined.transitions
    await fire(node, joined.transitions)
    other = (await node.broker.join(node.device("ann", "c2"), 10)).device
    for fresh in True, False:
        again = await node.broker.join(node.device("ann", "c1"), 1, fresh=fresh)
        assert (again.device, again.displaced, again.transitions) == (device, (), ())
    assert await node.broker.devices("ann") == [device, other]
    for expected in ((), ()):
        assert (await node.broker.leave(other)).transitions == expected
    assert transitions(await node.broker.leave(device), await node.broker.leave(device)) == [2]


async def test_a_device_is_taken_over_by_another_node_and_nobody_is_told(cluster):
    one, two, three = await cluster.nodes(3)
    joined = await one.broker.join(one.device("ann", "c1"), 10)
    await fire(one, joined.transitions)
    other = (await three.broker.join(three.device("ann", "c2"), 10)).device
    await one.broker.set_away(replace(joined.device, away=True))
    here = replace(joined.device, node=two.name)
    with cluster.lose_answers(two):
        await unavailable(two.broker.move(replace(here, place=0), one.name))
    for _ in range(2):
        moved = await two.broker.move(replace(here, place=0), one.name)
        assert (moved.device, moved.generation, moved.transitions, moved.displaced) == (here, 1, (), ())
    assert await one.broker.devices("ann") == [here, other]
    assert transitions(await one.broker.leave(joined.device)) == []
    assert await one.broker.devices("ann") == [here, other]
    assert await one.broker.pending() == await two.broker.pending() == []
    assert [device async for page in one.broker.mine() for device in page] == []
    assert [device.conn_id async for page in two.broker.mine() for device in page] == ["c1"]


async def test_a_node_that_was_not_told_that_its_device_was_displaced_can_find_out(cluster):
    one, two = await cluster.nodes(2)
    devices = [(await one.broker.join(one.device(user, f"c-{user}"), 1)).device for user in ("ann", "bob")]
    assert [device.conn_id for device in (await two.broker.join(two.device("ann", "c2"), 1)).displaced] == ["c-ann"]

    async def listed():
        listed = [device async for page in one.broker.mine() for device in page]
        return sorted((device.conn_id, device.away) for device in listed if device.away is not Away.GONE)

    assert await listed() == [("c-bob", Away.HERE)]
    await one.broker.leave(devices[0])
    assert [device.conn_id async for page in one.broker.mine() for device in page] == ["c-bob"]
    assert [device.conn_id for device in await one.broker.devices("ann")] == ["c2"]


async def test_a_device_that_the_other_node_does_not_have_is_not_taken_over(cluster):
    one, two, three = await cluster.nodes(3)
    device = (await one.broker.join(one.device("ann", "c1"), 10)).device
    assert await two.broker.move(two.device("ann", "c1"), three.name) is None
    assert await two.broker.move(two.device("ann", "c2"), one.name) is None
    assert await two.broker.move(two.device("bob", "c1"), one.name) is None
    assert await one.broker.devices("ann") == [device]
    assert await one.broker.devices("bob") == []
    assert await one.broker.online() == 1
    assert [found async for page in two.broker.mine() for found in page] == []


async def test_a_device_that_joins_at_another_node_has_moved_there_and_its_old_node_cannot_take_it_out(cluster):
    one, two = await cluster.nodes(2)
    old = (await one.broker.join(one.device("ann", "c1"), 10)).device
    moved = await two.broker.join(replace(old, node=two.name), 10, fresh=False)
    assert moved.device == replace(old, node=two.name)
    assert transitions(moved) == []
    assert transitions(await one.broker.leave(old)) == []
    assert await one.broker.devices("ann") == [moved.device]
    assert [page async for page in one.broker.mine()] in ([], [[]])


async def test_a_generation_that_a_node_remembers_raises_that_of_the_register(cluster):
    node = await cluster.node()
    present = await node.broker.join(node.device("ann", "c1"), 10, generation=5)
    assert (present.generation, present.transitions) == (5, ())
    absent = await node.broker.join(node.device("bob", "c2"), 10, generation=4)
    assert (absent.generation, transitions(absent)) == (5, [5])
    lower = await node.broker.leave(present.device, generation=3)
    assert transitions(lower) == [6]
    departed = await node.broker.leave(node.device("eve", "c3"), generation=7, code=1001, reason="bye")
    assert departed.transitions == (Transition("eve", 8, 1001, "bye"),)
    again = await node.broker.leave(node.device("eve", "c3"), generation=8)
    assert (again.generation, again.transitions) == (8, departed.transitions)


async def test_what_a_step_has_caused_is_found_in_the_outbox_when_its_answer_was_lost(cluster):
    one, two = await cluster.nodes(2)
    with cluster.lose_answers(one):
        await unavailable(one.broker.join(one.device("ann", "c1"), 10))
    (device,) = await two.broker.devices("ann")
    assert device.conn_id == "c1"
    assert await one.broker.pending() == [Transition("ann", 1)]
    again = await one.broker.join(one.device("ann", "c1"), 10)
    assert (again.device, again.generation, again.transitions) == (device, 1, (Transition("ann", 1),))
    with cluster.lose_answers(one):
        await unavailable(one.broker.leave(device, code=1001, reason="bye"))
    assert await two.broker.devices("ann") == []
    told = (await one.broker.leave(device, code=1001, reason="bye")).transitions
    assert told == (Transition("ann", 1), Transition("ann", 2, 1001, "bye"))
    assert await one.broker.pending() == [*told]


async def test_of_many_that_take_the_same_device_out_at_the_same_moment_one_is_told(cluster):
    node = await cluster.node()
    for n in range(10):
        device = (await node.broker.join(node.device(f"user-{n}", f"c{n}"), 10)).device
        steps = await asyncio.gather(*[node.broker.leave(device) for _ in range(3)])
        assert transitions(*steps) == [1, 2]


async def test_of_nodes_that_join_one_user_at_the_same_moment_exactly_one_is_first(cluster):
    one, two = await cluster.nodes(2)
    for n in range(30):
        user = f"user-{n}"
        joined = await asyncio.gather(
            one.broker.join(one.device(user, "c1"), 1), two.broker.join(two.device(user, "c2"), 1)
        )
        assert transitions(*joined) == [1]
        (winner,) = [each.device for each in joined if not each.transitions]
        (loser,) = [each.device for each in joined if each.transitions]
        assert [each.displaced for each in joined if not each.transitions] == [(loser,)]
        assert [each.displaced for each in joined if each.transitions] == [()]
        assert await one.broker.devices(user) == [winner]


async def test_no_device_is_displaced_twice_when_many_join_at_once(cluster):
    nodes = await cluster.nodes(4)
    for n in range(5):
        user = f"user-{n}"
        joined = await asyncio.gather(
            *[node.broker.join(node.device(user, f"c{k}-{node.name}"), 3) for node in nodes for k in range(4)]
        )
        displaced = [device for each in joined for device in each.displaced]
        left = await nodes[0].broker.devices(user)
        assert transitions(*joined) == [1]
        assert len(left) == 3
        assert len(displaced) == len(set(displaced)) == 13
        assert set(displaced) | set(left) == {each.device for each in joined}


async def test_transitions_of_a_user_who_comes_and_goes_at_many_nodes_alternate(cluster):
    nodes = await cluster.nodes(3)
    fired = []

    async def make(node, step):
        step = await step
        claimed = await node.broker.claim(step.transitions)
        node.broker.fired(claimed)
        fired.extend(one.generation for one in claimed)
        return step

    async def come_and_go(node):
        for n in range(10):
            joined = await make(node, node.broker.join(node.device("ann", f"{node.name}-{n}"), 10))
            await make(node, node.broker.leave(joined.device))

    await asyncio.gather(*map(come_and_go, nodes))
    assert sum(generation % 2 for generation in fired) == len(fired) / 2 > 0
    await until(lambda: online_is(nodes[0], 0))


async def test_a_transition_and_its_opposite_on_another_node_cancel_out_before_the_first_is_claimed(cluster):
    one, two = await cluster.nodes(2)
    first = await one.broker.join(one.device("ann", "c1"), 10)
    await fire(one, first.transitions)
    left = await one.broker.leave(first.device)
    assert transitions(left) == [2]
    back = await two.broker.join(two.device("ann", "c2"), 10)
    assert (back.generation, back.transitions) == (3, ())
    assert await one.broker.claim(left.transitions) == []
    assert await one.broker.pending() == await two.broker.pending() == []
    gone = await two.broker.leave(back.device)
    assert transitions(gone) == [4]
    await fire(two, gone.transitions)
    again = await one.broker.join(one.device("ann", "c3"), 10)
    assert len(await one.broker.claim(again.transitions)) == 1


async def test_a_transition_that_was_inherited_cancels_out_as_well(cluster):
    (node,) = await cluster.nodes(1)
    await cluster.dead_node(("ann", "c1"))
    heir = await cluster.node()
    assert [each.generation for each in await reap_all(heir)] == [1, 2]
    back = await node.broker.join(node.device("ann", "c2"), 10)
    assert back.transitions == ()
    assert [each.generation for each in await heir.broker.pending()] == [1]


async def test_what_a_dead_heir_has_not_announced_is_not_announced_after_what_follows(cluster):
    (node,) = await cluster.nodes(1)
    await cluster.dead_node(("ann", "c1"))
    heir = await cluster.node()
    assert [each.generation for each in await reap_all(heir)] == [1, 2]
    await heir.broker.resign()
    await heir.broker.close()
    back = await node.broker.join(node.device("ann", "c2"), 10)
    gone = await node.broker.leave(back.device)
    assert (gone.generation, gone.transitions) == (4, ())
    assert await reap_all(node) == []
    again = await node.broker.join(node.device("ann", "c3"), 10)
    assert [each.is_joined for each in again.transitions] == [True]


async def test_each_open_transition_cancels_out_with_one_of_another_node_the_last_one_first(cluster):
    one, two = await cluster.nodes(2)
    for conn in ("c1", "c2"):
        joined = await one.broker.join(one.device("ann", conn), 10)
        left = await one.broker.leave(joined.device, code=4000, reason=conn)
    assert transitions(left) == [1, 2, 3, 4]
    back = await two.broker.join(two.device("ann", "c3"), 10)
    assert [each.generation for each in await one.broker.pending()] == [1, 2, 3]
    gone = await two.broker.leave(back.device)
    assert (gone.generation, gone.transitions) == (6, ())
    again = await one.broker.join(one.device("ann", "c4"), 10)
    assert transitions(again) == [1, 2, 7]
    assert await one.broker.pending() == [*again.transitions]
    claimed = await one.broker.claim(again.transitions)
    assert [each.generation for each in claimed] == [1, 2, 7]
    await one.broker.leave(again.device)
    assert [each.generation for each in await one.broker.pending()] == [8]


async def test_a_generation_that_a_node_remembers_ends_what_was_open_before(cluster):
    one, two = await cluster.nodes(2)
    await one.broker.join(one.device("ann", "c1"), 10)
    back = await two.broker.join(two.device("ann", "c2"), 10, generation=5)
    assert (back.generation, back.transitions) == (5, ())
    assert await one.broker.pending() == []


async def test_all_users_are_told_and_counted(cluster):
    one, two = await cluster.nodes(2)
    names = [f"user-{n}" for n in range(1200)]
    joined = await in_turns(one.broker.join(one.device(name, f"c-{name}"), 10) for name in names)
    await in_turns(two.broker.join(two.device(name, f"d-{name}"), 10) for name in names[:200])
    assert await two.broker.online() == len(names)
    assert sorted([user async for user in two.broker.users()]) == sorted(names)
    steps = await in_turns(one.broker.leave(each.device) for each in joined)
    await fire(one, [transition for step in [*joined, *steps] for transition in step.transitions])
    await until(lambda: online_is(two, 200))
    assert sorted([user async for user in two.broker.users()]) == sorted(names[:200])


async def mine(node):
    return [device async for page in node.broker.mine() for device in page]


async def test_a_node_reads_what_the_register_holds_under_its_name(cluster):
    one, two = await cluster.nodes(2)
    joined = await in_turns(one.broker.join(one.device(f"user-{n}", f"c{n}"), 10) for n in range(1200))
    (other,) = [(await two.broker.join(two.device("user-7", "d7"), 10)).device]

    async def all_are_there():
        return {device.conn_id for device in await mine(one)} == {each.device.conn_id for each in joined}

    await until(all_are_there)
    assert [(device.user, device.conn_id) for device in await mine(two)] == [("user-7", "d7")]
    await two.broker.leave(other)
    assert await mine(two) == []


# Leases.


async def test_a_lease_is_new_until_the_node_has_registered_its_devices_and_then_kept(cluster):
    node, other = cluster.closed_node(), await cluster.node()
    await node.open()
    assert await other.broker.nodes() == {other.name}
    for _ in range(2):
        assert (await node.broker.renew(10)).state == "new"
    assert await other.broker.nodes() == {node.name, other.name}
    await node.broker.registered()
    for _ in range(2):
        assert (await node.broker.renew(10)).state == "kept"


async def test_nodes_agree_on_the_identity_of_the_register(cluster):
    one, two = await cluster.nodes(2)
    registers = {(await node.broker.renew(10)).register for node in (one, two, one)}
    assert len(registers) == 1
    assert registers != {""}


async def test_a_node_that_does_not_renew_its_lease_is_dead_and_its_devices_are_reaped(cluster):
    node, other = await cluster.nodes(2)
    joined = await node.broker.join(node.device("ann", "c1"), 10)
    await fire(node, joined.transitions)
    assert await reap_all(other) == []
    await node.broker.renew(cluster.ttl)

    async def dead():
        return await other.broker.nodes() == {other.name}

    await until(dead)
    assert await other.broker.devices("ann") == [joined.device]
    assert await reap_all(other) == [Transition("ann", 2)]
    assert await reap_all(other) == []
    assert await other.broker.devices("ann") == []
    assert (await node.broker.renew(10)).state == "reaped"
    assert await other.broker.nodes() == {node.name, other.name}


async def test_what_a_dead_node_had_not_fired_is_inherited_in_order(cluster):
    node, other = await cluster.nodes(2)
    await node.broker.join(node.device("ann", "c1"), 10)
    bob = await node.broker.join(node.device("bob", "c2"), 10)
    await fire(node, bob.transitions)
    await until(lambda: pending_is(node, (Transition("ann", 1),)))
    await node.broker.leave(bob.device, code=1001, reason="bye")
    await node.broker.resign()
    inherited = await reap_all(other)
    assert [one for one in inherited if one.user == "ann"] == [Transition("ann", 1), Transition("ann", 2)]
    assert [one for one in inherited if one.user == "bob"] == [Transition("bob", 2, 1001, "bye")]
    assert sorted(await other.broker.pending(), key=repr) == sorted(inherited, key=repr)
    await fire(other, inherited)
    await until(lambda: pending_is(other, ()))


async def test_what_a_dead_heir_has_not_claimed_is_inherited_in_turn(cluster):
    await cluster.dead_node(("ann", "c1"))
    heir, other = await cluster.nodes(2)
    assert await reap_all(heir) == [Transition("ann", 1), Transition("ann", 2)]
    assert await reap_all(other) == []
    await heir.broker.resign()
    await heir.broker.close()
    assert await reap_all(other) == [Transition("ann", 1), Transition("ann", 2)]
    await fire(other, await other.broker.pending())
    assert await reap_all(other) == []
    await until(lambda: pending_is(other, ()))


async def test_a_node_whose_lease_has_run_out_reaps_nobody_and_keeps_its_outbox(cluster):
    node = await cluster.node()
    await cluster.dead_node(("bob", "c2"))
    joined = await node.broker.join(node.device("ann", "c1"), 10)
    await node.broker.renew(cluster.ttl)

    async def has_run_out():
        return node.name not in await node.broker.nodes()

    await until(has_run_out)
    with suppress(WseError):  # an engine refuses it, or leaves the node itself out
        await node.broker.reap()
    await node.broker.renew(10)
    assert [each for each in await node.broker.pending() if each.user == "ann"] == [*joined.transitions]
    assert [device.conn_id for device in await node.broker.devices("ann")] == ["c1"]


async def test_steps_of_a_node_that_was_reaped_are_refused_until_it_has_a_new_lease(cluster):
    node, other = await cluster.nodes(2)
    joined = await node.broker.join(node.device("ann", "c1"), 10)
    device = joined.device
    await fire(node, joined.transitions)
    await node.broker.resign()
    await fire(other, await reap_all(other))
    await unavailable(node.broker.join(node.device("bob", "c2"), 10))
    assert (await node.broker.renew(10)).state == "reaped"
    again = await node.broker.join(device, 10, fresh=False)
    assert [generation % 2 for generation in transitions(again)] == [1]
    await node.broker.registered()
    assert (await node.broker.renew(10)).state == "kept"
    assert await reap_all(other) == []


async def test_that_a_lease_was_lost_is_told_until_it_has_been_heard(cluster):
    node, other = await cluster.nodes(2)
    await node.broker.resign()
    await reap_all(other)
    with cluster.lose_answers(node):
        for _ in range(2):
            await unavailable(node.broker.renew(10))
    assert node.name in await other.broker.nodes()
    for _ in range(2):
        assert (await node.broker.renew(10)).state == "reaped"
    await node.broker.registered()
    assert (await node.broker.renew(10)).state == "kept"


async def test_a_lease_that_ran_out_and_was_not_reaped_is_taken_up_again(cluster):
    node, other = await cluster.nodes(2)
    device = (await node.broker.join(node.device("ann", "c1"), 10)).device
    await node.broker.resign()
    await node.broker.renew(10)
    again = await node.broker.join(device, 10, fresh=False)
    assert (again.device, transitions(again)) == (device, [1])  # which has not been fired
    await node.broker.registered()
    assert await reap_all(other) == []
    assert await other.broker.devices("ann") == [device]


async def test_a_lease_that_is_renewed_lasts(cluster):
    node, other = await cluster.nodes(2)
    passed = await cluster.node()
    await passed.broker.renew(cluster.ttl)
    await node.broker.renew(cluster.ttl)

    async def a_lease_has_run_out():
        await node.broker.renew(10)
        return passed.name not in await other.broker.nodes()

    await until(a_lease_has_run_out)
    assert (await node.broker.renew(10)).state == "kept"
    assert node.name in await other.broker.nodes()


async def reap_all(node):
    """All that there is to reap: one call may leave other nodes their share."""
    reaped = []
    for _ in range(3):
        while found := await node.broker.reap():
            reaped += found
    return reaped


async def test_a_user_with_another_device_does_not_leave_with_a_dead_node(cluster):
    living = await cluster.node()
    kept = (await living.broker.join(living.device("ann", "c1"), 10)).device
    await cluster.dead_node(("ann", "c2"), ("bob", "c3"), ("bob", "c4"))
    reaped = await reap_all(living)
    assert [(each.user, each.generation) for each in reaped] == [("bob", 1), ("bob", 2)]
    assert await living.broker.devices("ann") == [kept]
    assert await living.broker.devices("bob") == []
    await fire(living, reaped)
    await until(lambda: online_is(living, 1))


async def test_the_devices_that_a_dead_node_has_left_of_a_user_are_reaped_when_one_was_displaced(cluster):
    living, dead = await cluster.nodes(2)
    for conn_id in ("c1", "c2"):
        await dead.broker.join(dead.device("ann", conn_id), 2)
    newest = await living.broker.join(living.device("ann", "c3"), 2)
    assert [device.conn_id for device in newest.displaced] == ["c1"]
    await living.broker.flush()
    await dead.broker.resign()
    await dead.broker.close()
    await reap_all(living)
    assert await living.broker.devices("ann") == [newest.device]


async def test_each_transition_of_a_dead_node_is_told_to_exactly_one_of_those_that_reap(cluster):
    nodes = await cluster.nodes(3)
    devices = [(f"user-{n // 600}-{n % 300}", f"c{n}") for n in range(1200)]
    await cluster.dead_node(*devices[:600])
    await cluster.dead_node(*devices[600:])
    shares = await asyncio.gather(*[reap_all(node) for node in nodes])
    granted = {user: [] for user, _ in devices}
    for node, share in zip(nodes, shares, strict=True):
        for claimed in await node.broker.claim(dict.fromkeys(share)):
            granted[claimed.user].append(claimed.generation)
            node.broker.fired([claimed])
    # Where one node had inherited the first, and another was to fire the second, they have cancelled each other out.
    assert {tuple(sorted(generations)) for generations in granted.values()} <= {(1, 2), ()}
    await until(lambda: online_is(nodes[0], 0))


async def test_a_user_who_leaves_while_another_device_is_reaped_leaves_once(cluster):
    one, two = await cluster.nodes(2)
    users = [f"user-{n}" for n in range(20)]
    joined = [await one.broker.join(one.device(user, f"c-{user}"), 10) for user in users]
    devices = [step.device for step in joined]
    await fire(one, [each for step in joined for each in step.transitions])
    await cluster.dead_node(*[(user, f"d-{user}") for user in users])
    left, reaped, reaped_too = await asyncio.gather(
        asyncio.gather(*[one.broker.leave(device) for device in devices]), reap_all(one), reap_all(two)
    )
    told = [each for step in left for each in step.transitions] + reaped + reaped_too
    assert sorted(each.user for each in told if each.generation == 2) == sorted(users)


# A register that was lost.


async def test_while_a_lost_register_recovers_transitions_are_held_and_decided_afterwards(cluster):
    one, two = await cluster.nodes(2)
    register = (await one.broker.renew(10)).register
    await cluster.forget(one, two)
    lease = await one.broker.renew(10, register=register, peers=[two.name])
    assert lease.register != register
    assert (lease.state, lease.is_recovering) == ("new", True)
    ann = await one.broker.join(one.device("ann", "c1"), 10)
    bob = await one.broker.leave(one.device("bob", "c2"), generation=3, code=1001, reason="bye")
    eve = await one.broker.join(one.device("eve", "c3"), 10)
    assert transitions(ann, bob, eve) == []
    held = await one.broker.pending()
    assert sorted((each.user, each.generation, each.code) for each in held) == [
        ("ann", 0, 1006), ("bob", 0, 1001), ("eve", 0, 1006)
    ]  # fmt: skip
    await one.broker.registered()
    assert (await one.broker.renew(10)).is_recovering
    assert (await two.broker.renew(10, register=register, peers=[one.name])).is_recovering
    # The other node had announced her: she was there all the time.
    assert transitions(await two.broker.join(two.device("ann", "c4"), 10, generation=5)) == []
    await two.broker.registered()
    lease = await one.broker.renew(10, register=register)
    assert (lease.state, lease.is_recovering, lease.has_pending) == ("kept", False, True)
    steps = {each.user: await one.broker.settle(each) for each in held}
    assert steps["ann"].transitions == ()
    assert steps["bob"].transitions == (Transition("bob", 4, 1001, "bye"),)
    assert steps["eve"].transitions == (Transition("eve", 1),)
    await fire(one, [*steps["bob"].transitions, *steps["eve"].transitions])
    await until(lambda: pending_is(one, ()))


async def test_a_recovery_does_not_wait_for_a_node_that_does_not_come_back(cluster):
    one, two = await cluster.nodes(2)
    register = (await one.broker.renew(10)).register
    await two.broker.close()
    await cluster.forget(one)
    assert (await one.broker.renew(cluster.ttl, register=register, peers=[two.name])).is_recovering
    await one.broker.registered()

    async def is_over():
        return not (await one.broker.renew(10)).is_recovering

    await until(is_over)
    assert transitions(await one.broker.join(one.device("ann", "c1"), 10)) == [1]


async def test_a_register_that_a_new_node_makes_needs_no_recovery(cluster):
    node = await cluster.node()
    assert not (await node.broker.renew(10)).is_recovering
    assert transitions(await node.broker.join(node.device("ann", "c1"), 10)) == [1]


# Engines that fail.


async def test_open_fails_when_the_engine_is_away(cluster):
    node = cluster.closed_node()
    cluster.stop()
    await unavailable(node.open())
    assert not node.broker.connected
    await node.broker.close()
    cluster.start()
    await node.open()
    assert node.broker.connected
    assert node.entries == []


async def test_nodes_are_told_when_the_engine_goes_and_when_it_is_back(cluster):
    one, two = await cluster.nodes(2, "talk")
    assert one.broker.connected
    cluster.stop()
    for node in one, two:
        _, cause = await node.until("lost")
        assert isinstance(cause, Exception)
        assert not node.broker.connected
    cluster.start()
    for node in one, two:
        await node.until("restored")
        assert node.broker.connected
        assert node.names == ["lost", "restored"]


async def test_every_subscription_is_in_force_again_when_the_engine_is_back(cluster):
    one, two = await cluster.nodes(2, "kept", "dropped")
    cluster.stop()
    await two.until("lost")
    await one.until("lost")
    two.broker.unsubscribe("dropped")
    two.broker.subscribe("added")
    cluster.start()
    await two.until("restored")
    await one.until("restored")
    for topic in "dropped", "added", "kept":
        one.broker.publish(topic, b"hello")
    await two.until("received", "kept")
    assert two.all("received") == [("added", b"hello"), ("kept", b"hello")]


async def test_what_is_published_while_the_engine_is_away_goes_nowhere(cluster):
    one, two = await cluster.nodes(2, "talk")
    cluster.stop()
    await one.until("lost")
    one.broker.publish("talk", b"lost")
    cluster.start()
    await one.until("restored")
    await two.until("restored")
    one.broker.publish("talk", b"found")
    await two.until("received")
    assert two.all("received") == [("talk", b"found")]


async def test_every_step_fails_while_the_engine_is_away(cluster):
    node = await cluster.node()
    cluster.stop()
    await node.until("lost")
    device = node.device("ann", "c1")
    broker = node.broker
    for step in (
        broker.flush(),
        broker.join(device, 1),
        broker.leave(device),
        broker.devices("ann"),
        broker.online(),
        anext(broker.users()),
        broker.renew(10),
        broker.resign(),
        broker.nodes(),
        broker.reap(),
        broker.pending(),
        anext(broker.mine()),
        broker.registered(),
        broker.settle(Transition("ann", 0)),
    ):
        await unavailable(step)


async def test_the_register_is_as_it_was_or_another_one_when_the_engine_is_back(cluster):
    node = await cluster.node()
    device = (await node.broker.join(node.device("ann", "c1"), 10)).device
    register = (await node.broker.renew(10)).register
    cluster.stop()
    await node.until("lost")
    cluster.start()
    await node.until("restored")
    lease = await node.broker.renew(10, register=register)
    kept = cluster.keeps_the_register
    assert (lease.register == register, lease.state == "kept") == (kept, kept)
    assert await node.broker.devices("ann") == ([device] if kept else [])
    joined = await node.broker.join(device, 10, generation=1, fresh=False)
    assert (joined.device, joined.generation, transitions(joined)) == (device, 1, [1] * kept)
    await node.broker.registered()
    assert await node.broker.reap() == []
    assert (await node.broker.renew(10)).state == "kept"


async def test_a_step_fails_on_a_new_connection_until_the_lease_has_been_renewed(cluster):
    node = await cluster.node()
    cluster.stop()
    await node.until("lost")
    cluster.start()
    await node.until("restored")
    await unavailable(node.broker.join(node.device("ann", "c1"), 10))
    await node.broker.renew(10)
    assert transitions(await node.broker.join(node.device("ann", "c1"), 10)) in ([1], [])


async def test_a_broker_that_is_closed_hears_nothing_and_does_nothing(cluster):
    one, two = await cluster.nodes(2, "talk")
    await two.broker.close()
    await two.broker.close()
    assert not two.broker.connected
    two.broker.publish("talk", b"from two")
    one.broker.publish("talk", b"from one")
    await one.until("received")
    assert one.all("received") == [("talk", b"from one")]
    assert two.entries == []


async def test_what_was_published_before_closing_is_sent(cluster):
    one, two = await cluster.nodes(2, "talk")
    for n in range(100):
        one.broker.publish("talk", b"%d" % n)
    await one.broker.close()
    await two.until("received", "talk", b"99")


async def test_a_broker_can_be_opened_again(cluster):
    one, two = await cluster.nodes(2, "old")
    await two.broker.close()
    await two.open()
    assert two.broker.connected
    await two.subscribe("new")
    one.broker.publish("old", b"")
    one.broker.publish("new", b"")
    await two.until("received")
    assert two.all("received") == [("new", b"")]
    await two.broker.renew(10)
    assert await one.broker.nodes() == {one.name, two.name}


async def test_a_broker_can_be_closed_while_the_engine_is_away(cluster):
    node = await cluster.node()
    cluster.stop()
    await node.until("lost")
    await soon(node.broker.close())
    assert node.names == ["lost"]


async def test_a_broker_that_was_not_opened_can_be_closed_and_does_nothing(cluster):
    node = cluster.closed_node()
    node.broker.publish("talk", b"hello")
    assert not node.broker.connected
    await node.broker.close()
