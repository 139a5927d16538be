"""The guarantees of `wse.core.ports.broker.Broker`, tested with every broker."""

from __future__ import annotations

import asyncio
import string

import pytest

from support.brokers import CLUSTERS, run_cluster, unavailable, until
from support.net import soon
from wse import ErrorCode, WseError
from wse.core.ports.broker import Gone, Joined

EVERY_CHARACTER = string.ascii_letters + string.digits + "_-="


@pytest.fixture(params=CLUSTERS)
async def cluster(request):
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
    device = one.device(EVERY_CHARACTER, EVERY_CHARACTER[::-1])
    await one.broker.join(device, 10)
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


async def test_the_first_device_of_a_user_is_told_so(cluster):
    one, two = await cluster.nodes(2)
    mine, theirs = one.device("ann", "c1", 10.5), two.device("ann", "c2", 20.25)
    assert await one.broker.join(mine, 10) == Joined(mine, first=True)
    assert await two.broker.join(theirs, 10) == Joined(theirs, first=False)
    for node in one, two:
        assert await node.broker.devices("ann") == [mine, theirs]
        assert await node.broker.devices("bob") == []
        assert await node.broker.online() == 1


async def test_the_last_device_of_a_user_is_told_so(cluster):
    one, two = await cluster.nodes(2)
    mine, theirs = one.device("ann", "c1"), two.device("ann", "c2", 2000.0)
    await one.broker.join(mine, 10)
    await two.broker.join(theirs, 10)
    assert await one.broker.leave(mine) is False
    assert await one.broker.devices("ann") == [theirs]
    assert await two.broker.leave(theirs) is True
    assert await one.broker.devices("ann") == []
    assert await one.broker.online() == 0
    assert (await one.broker.join(mine, 10)).first


async def test_the_oldest_devices_are_displaced(cluster):
    one, two = await cluster.nodes(2)
    devices = [node.device("ann", f"c{n}", float(n)) for n, node in enumerate([one, two, one, two])]
    for device in devices[:3]:
        await one.broker.join(device, 3)
    assert (await two.broker.join(devices[3], 2)).displaced == (devices[0], devices[1])
    assert await one.broker.devices("ann") == devices[2:]
    assert await one.broker.leave(devices[0]) is False
    assert await one.broker.leave(devices[3]) is False
    assert await one.broker.leave(devices[2]) is True


async def test_the_only_device_displaced_by_another_is_not_the_users_last(cluster):
    node = await cluster.node()
    old, new = node.device("ann", "c1"), node.device("ann", "c2", 2000.0)
    await node.broker.join(old, 1)
    assert await node.broker.join(new, 1) == Joined(new, first=False, displaced=(old,))
    assert await node.broker.leave(old) is False
    assert await node.broker.online() == 1


async def test_a_fresh_device_is_the_newest_whatever_the_clocks_say(cluster):
    one, two = await cluster.nodes(2)
    ahead = 1_799_999_999.123456
    first = (await one.broker.join(one.device("ann", "c1", ahead), 10)).device
    second = (await two.broker.join(two.device("ann", "c2", ahead - 3600), 10)).device
    third = (await two.broker.join(two.device("ann", "c0", ahead), 10)).device
    assert first.since == ahead
    assert ahead < second.since < third.since < ahead + 0.001
    assert await one.broker.devices("ann") == [first, second, third]
    assert (await one.broker.join(one.device("ann", "c4", 0.0), 3)).displaced == (first,)


async def test_a_device_that_is_not_fresh_keeps_its_place(cluster):
    node = await cluster.node()
    new = (await node.broker.join(node.device("ann", "c2", 20.0), 10)).device
    old = node.device("ann", "c1", 10.0)
    assert await node.broker.join(old, 10, fresh=False) == Joined(old, first=False)
    assert await node.broker.devices("ann") == [old, new]


async def test_a_device_that_is_not_fresh_may_itself_have_to_go(cluster):
    node = await cluster.node()
    new = (await node.broker.join(node.device("ann", "c2", 20.0), 1)).device
    old = node.device("ann", "c1", 10.0)
    assert await node.broker.join(old, 1, fresh=False) == Joined(old, first=False, displaced=(old,))
    assert await node.broker.devices("ann") == [new]
    assert await node.broker.leave(old) is False


async def test_to_join_again_changes_nothing_and_names_nobody(cluster):
    node = await cluster.node()
    device = (await node.broker.join(node.device("ann", "c1", 10.0), 10)).device
    other = (await node.broker.join(node.device("ann", "c2", 20.0), 10)).device
    for fresh in True, False:
        again = node.device("ann", "c1", 30.0)
        assert await node.broker.join(again, 1, fresh=fresh) == Joined(device, first=True, again=True)
        again = node.device("ann", "c2", 30.0)
        assert await node.broker.join(again, 1, fresh=fresh) == Joined(other, first=False, again=True)
    assert await node.broker.devices("ann") == [device, other]


async def test_a_join_whose_answer_was_lost_tells_the_same_again(cluster):
    one, two = await cluster.nodes(2)
    mine, theirs = one.device("ann", "c1", 10.0), one.device("ann", "c2", 20.0)
    with cluster.lose_answers(one):
        await unavailable(one.broker.join(mine, 10))
        await unavailable(one.broker.join(theirs, 10))
    assert await two.broker.devices("ann") == [mine, theirs]
    assert await one.broker.join(mine, 10, fresh=False) == Joined(mine, first=True, again=True)
    assert await one.broker.join(theirs, 10, fresh=False) == Joined(theirs, first=False, again=True)
    await two.broker.join(two.device("ann", "c3", 30.0), 2)
    assert await one.broker.join(theirs, 10) == Joined(theirs, first=False, again=True)


async def test_a_leave_whose_answer_was_lost_tells_the_same_again(cluster):
    one, two = await cluster.nodes(2)
    for user in "ann", "bob":
        await one.broker.join(one.device(user, f"c-{user}"), 10)
    await two.broker.join(two.device("bob", "d-bob", 2000.0), 10)
    with cluster.lose_answers(one):
        for user in "ann", "bob":
            await unavailable(one.broker.leave(one.device(user, f"c-{user}")))
    assert await two.broker.devices("ann") == []
    assert [device.conn_id for device in await two.broker.devices("bob")] == ["d-bob"]
    assert await one.broker.leave(one.device("ann", "c-ann")) is True
    assert await one.broker.leave(one.device("bob", "c-bob")) is False
    for user in "ann", "bob":
        assert await one.broker.leave(one.device(user, f"c-{user}")) is False


async def test_a_leave_whose_answer_was_lost_tells_the_same_when_others_have_come_since(cluster):
    one, two = await cluster.nodes(2)
    device = one.device("ann", "c1")
    await one.broker.join(device, 10)
    with cluster.lose_answers(one):
        await unavailable(one.broker.leave(device))
    assert (await two.broker.join(two.device("ann", "c2"), 10)).first
    assert not (await two.broker.join(two.device("ann", "c3"), 10)).first
    assert await one.broker.leave(device) is True
    assert await one.broker.leave(device) is False


async def test_who_has_joined_anew_after_a_leave_whose_answer_was_lost_leaves_as_anybody(cluster):
    one, two = await cluster.nodes(2)
    mine, theirs = one.device("ann", "c1"), two.device("ann", "c2", 2000.0)
    await one.broker.join(mine, 10)
    with cluster.lose_answers(one):
        await unavailable(one.broker.leave(mine))
    assert await one.broker.join(mine, 10, fresh=False) == Joined(mine, first=True)
    await two.broker.join(theirs, 1)
    assert await one.broker.leave(mine) is False
    assert await two.broker.leave(theirs) is True


async def test_a_leave_that_was_not_made_before_the_device_was_displaced_names_nobody_when_it_is_repeated(cluster):
    one, two = await cluster.nodes(2)
    mine, theirs = one.device("ann", "c1"), two.device("ann", "c2", 2000.0)
    await one.broker.join(mine, 10)
    cluster.stop()
    await unavailable(one.broker.leave(mine))
    cluster.start()
    await asyncio.gather(one.connected(), two.connected())
    await one.broker.join(mine, 10, fresh=False)
    await two.broker.join(theirs, 1)
    assert await one.broker.leave(mine) is False


async def test_of_two_that_take_the_same_device_out_at_the_same_moment_one_is_told(cluster):
    node = await cluster.node()
    for n in range(10):
        device = node.device(f"user-{n}", f"c{n}")
        await node.broker.join(device, 10)
        last = await asyncio.gather(*[node.broker.leave(device) for _ in range(3)])
        assert sorted(last) == [False, False, True]


async def test_to_leave_again_changes_nothing_and_names_nobody(cluster):
    node = await cluster.node()
    device = node.device("ann", "c1")
    assert await node.broker.leave(device) is False
    await node.broker.join(device, 10)
    assert await node.broker.leave(device) is True
    assert await node.broker.leave(device) is False


async def test_of_nodes_that_join_one_user_at_the_same_moment_exactly_one_is_first(cluster):
    one, two = await cluster.nodes(2)
    for n in range(30):
        user = f"user-{n}"
        joined = await asyncio.gather(
            one.broker.join(one.device(user, "c1"), 1), two.broker.join(two.device(user, "c2"), 1)
        )
        assert sorted(each.first for each in joined) == [False, True]
        (winner,) = [each.device for each in joined if not each.first]
        (loser,) = [each.device for each in joined if each.first]
        assert [each.displaced for each in joined if not each.first] == [(loser,)]
        assert [each.displaced for each in joined if each.first] == [()]
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
        assert sum(each.first for each in joined) == 1
        assert len(left) == 3
        assert len(displaced) == len(set(displaced)) == 13
        assert set(displaced) | set(left) == {each.device for each in joined}


async def test_of_nodes_that_leave_at_the_same_moment_exactly_one_was_the_last(cluster):
    nodes = await cluster.nodes(4)
    for n in range(10):
        user = f"user-{n}"
        for node in nodes:
            await node.broker.join(node.device(user, node.name), 10)
        last = await asyncio.gather(*[node.broker.leave(node.device(user, node.name)) for node in nodes])
        assert sorted(last) == [False, False, False, True]
        assert await nodes[0].broker.devices(user) == []


async def test_a_user_who_comes_and_goes_at_many_nodes_is_counted_right(cluster):
    nodes = await cluster.nodes(3)

    async def come_and_go(node):
        for n in range(10):
            device = node.device("ann", f"{node.name}-{n}")
            yield (await node.broker.join(device, 10)).first
            if await node.broker.leave(device):
                yield None

    async def count(node):
        return [event async for event in come_and_go(node)]

    events = [event for events in await asyncio.gather(*map(count, nodes)) for event in events]
    assert events.count(True) == events.count(None) > 0
    assert await nodes[0].broker.online() == 0


async def test_all_users_are_told_and_counted(cluster):
    one, two = await cluster.nodes(2)
    names = [f"user-{n}" for n in range(3000)]
    await asyncio.gather(*[one.broker.join(one.device(name, f"c-{name}"), 10) for name in names])
    await asyncio.gather(*[two.broker.join(two.device(name, f"d-{name}"), 10) for name in names[:500]])
    assert await two.broker.online() == 3000
    assert sorted([user async for user in two.broker.users()]) == sorted(names)
    await asyncio.gather(*[one.broker.leave(one.device(name, f"c-{name}")) for name in names])
    assert await two.broker.online() == 500
    assert sorted([user async for user in two.broker.users()]) == sorted(names[:500])


# Leases.


async def test_a_lease_is_new_at_first_and_then_in_force(cluster):
    node, other = cluster.closed_node(), await cluster.node()
    await node.open()
    assert await other.broker.nodes() == {other.name}
    assert await node.broker.renew(10) is False
    assert await node.broker.renew(10) is True
    assert await other.broker.nodes() == {node.name, other.name}


async def test_a_node_that_does_not_renew_its_lease_is_dead(cluster):
    node, other = await cluster.nodes(2)
    device = node.device("ann", "c1")
    await node.broker.join(device, 10)
    assert await other.broker.reap() == []
    await node.broker.renew(cluster.ttl)

    async def dead():
        return await other.broker.nodes() == {other.name}

    await until(dead)
    assert await other.broker.devices("ann") == [device]
    assert await other.broker.reap() == [Gone(device, last=True)]
    assert await other.broker.reap() == []
    assert await other.broker.devices("ann") == []
    assert await node.broker.renew(10) is False
    assert await other.broker.nodes() == {node.name, other.name}


async def test_a_node_that_slept_past_its_lease_joins_anew_and_is_safe(cluster):
    node, other = await cluster.nodes(2)
    device = node.device("ann", "c1")
    await node.broker.join(device, 10)
    await node.broker.resign()
    assert await node.broker.renew(10) is False
    assert await node.broker.join(device, 10, fresh=False) == Joined(device, first=True, again=True)
    assert await other.broker.reap() == []
    assert await other.broker.devices("ann") == [device]


async def test_the_device_of_a_node_that_slept_woke_and_died_is_reaped(cluster):
    node, other = await cluster.nodes(2)
    early, late = node.device("ann", "c1"), node.device("bob", "c2")
    await node.broker.renew(cluster.ttl)
    await node.broker.join(early, 10)

    async def dead():
        return node.name not in await other.broker.nodes()

    await until(dead)
    assert await other.broker.reap() == [Gone(early, last=True)]
    for _ in range(2):
        assert await other.broker.reap() == []
    await node.broker.join(late, 10)  # it has not noticed yet, and now it never will
    assert await other.broker.reap() == [Gone(late, last=True)]
    assert await other.broker.online() == 0


async def test_a_lease_that_is_a_new_one_is_told_so_until_that_is_heard(cluster):
    node, other = await cluster.nodes(2)
    await node.broker.resign()
    with cluster.lose_answers(node):
        for _ in range(2):
            await unavailable(node.broker.renew(10))
    assert node.name in await other.broker.nodes()
    assert await node.broker.renew(10) is False
    assert await node.broker.renew(10) is True


async def test_a_lease_that_is_renewed_lasts(cluster):
    node, other = await cluster.nodes(2)
    passed = await cluster.node()
    await passed.broker.renew(cluster.ttl)
    assert await node.broker.renew(cluster.ttl) in (True, False)

    async def a_lease_has_run_out():
        assert await node.broker.renew(10) in (True, False)
        return passed.name not in await other.broker.nodes()

    await until(a_lease_has_run_out)
    assert await node.broker.renew(10) is True
    assert node.name in await other.broker.nodes()


async def test_a_node_that_resigns_leaves_its_devices_to_be_reaped(cluster):
    node, other = await cluster.nodes(2)
    device = node.device("ann", "c1")
    await node.broker.join(device, 10)
    await node.broker.resign()
    assert await other.broker.nodes() == {other.name}
    assert await other.broker.reap() == [Gone(device, last=True)]
    await node.broker.resign()
    assert await node.broker.renew(10) is False


async def reap_all(node):
    """Reap until all is done: one reap may leave a share to other nodes, even if these are busy or dead."""
    gone = []
    while reaped := await node.broker.reap():
        gone += reaped
    return gone


async def test_the_device_of_a_node_without_a_lease_is_reaped(cluster):
    node, other = cluster.closed_node(), await cluster.node()
    await node.open()
    device = node.device("ann", "c1")
    await node.broker.join(device, 10)
    assert await other.broker.reap() == [Gone(device, last=True)]


async def test_only_the_last_device_of_a_user_is_the_last_when_a_node_is_reaped(cluster):
    living = await cluster.node()
    mine = (await living.broker.join(living.device("ann", "c1"), 10)).device
    await cluster.dead_node(("ann", "c2"), ("bob", "c3"), ("bob", "c4"))
    gone = await reap_all(living)
    assert sorted((each.device.user, each.device.conn_id) for each in gone) == [
        ("ann", "c2"), ("bob", "c3"), ("bob", "c4")
    ]  # fmt: skip
    assert sorted((each.device.user, each.last) for each in gone) == [("ann", False), ("bob", False), ("bob", True)]
    assert await living.broker.devices("ann") == [mine]
    assert await living.broker.devices("bob") == []
    assert await living.broker.online() == 1


async def test_each_device_of_a_dead_node_is_told_to_exactly_one_of_those_who_reap(cluster):
    nodes = await cluster.nodes(3)
    devices = [(f"user-{n % 400}", f"c{n}") for n in range(1200)]
    await cluster.dead_node(*devices[:600])
    await cluster.dead_node(*devices[600:])
    gone = [each for reaped in await asyncio.gather(*[reap_all(node) for node in nodes]) for each in reaped]
    assert sorted((each.device.user, each.device.conn_id) for each in gone) == sorted(devices)
    assert sorted(each.device.user for each in gone if each.last) == sorted({user for user, _ in devices})
    assert await nodes[0].broker.online() == 0


async def test_who_leaves_while_another_device_is_reaped_is_the_last_or_the_other_is(cluster):
    one, two = await cluster.nodes(2)
    users = [f"user-{n}" for n in range(20)]
    for user in users:
        await one.broker.join(one.device(user, f"c-{user}"), 10)
    await cluster.dead_node(*[(user, f"d-{user}") for user in users])
    left, reaped, reaped_too = await asyncio.gather(
        asyncio.gather(*[one.broker.leave(one.device(user, f"c-{user}")) for user in users]),
        reap_all(one),
        reap_all(two),
    )
    last = [user for user, was_last in zip(users, left, strict=True) if was_last]
    last += [each.device.user for each in reaped + reaped_too if each.last]
    assert sorted(last) == sorted(users)


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
    ):
        await unavailable(step)


async def test_the_register_is_as_it_was_or_quite_empty_when_the_engine_is_back(cluster):
    node = await cluster.node()
    device = node.device("ann", "c1")
    await node.broker.join(device, 10)
    cluster.stop()
    await node.until("lost")
    cluster.start()
    await node.until("restored")
    assert await node.broker.renew(10) is cluster.keeps_the_register
    assert await node.broker.devices("ann") == ([device] if cluster.keeps_the_register else [])
    joined = await node.broker.join(device, 10, fresh=False)
    assert joined == Joined(device, first=True, again=cluster.keeps_the_register)
    assert await node.broker.reap() == []
    assert await node.broker.renew(10) is True


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
    assert await two.broker.renew(10) in (True, False)
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
