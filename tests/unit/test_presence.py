"""Leases, brokers that fail, and nodes that sleep or die: `joined` and `left` fire once for each real change."""

import asyncio

import pytest

from support.nodes import Nodes, heard
from wse import ErrorCode, WseError
from wse.core.cluster import envelope
from wse.core.cluster.envelope import NODE
from wse.core.cluster.reconciler import each
from wse.core.cluster.registration import State
from wse.core.cluster.settings import ClusterSettings
from wse.core.names import encode_name
from wse.core.ports.broker import Device

JOINED, LEFT = ("joined", "ann"), ("left", "ann")


def held_up(broker, name):
    """Make a step of the register wait; returns the future that lets it continue."""
    step, loop = getattr(broker, name), broker._side.scheduler
    gate = asyncio.Future(loop=loop)

    async def wait(*args, **options):
        result = await step(*args, **options)
        await gate
        return result

    setattr(broker, name, wait)
    gate.add_done_callback(lambda _: setattr(broker, name, step))
    return gate


def made_late(broker, name):
    """Make a step of the register only when the returned future lets it go."""
    step, loop = getattr(broker, name), broker._side.scheduler
    gate = asyncio.Future(loop=loop)

    async def wait(*args, **options):
        await gate
        return await step(*args, **options)

    setattr(broker, name, wait)
    gate.add_done_callback(lambda _: setattr(broker, name, step))
    return gate


def fails_once(broker, name):
    """Make a step of the register fail the next time, and not be made."""
    step = getattr(broker, name)

    async def fail(*args, **options):
        setattr(broker, name, step)
        raise WseError(ErrorCode.BROKER_UNAVAILABLE)

    setattr(broker, name, fail)


def begin(node, cid="ann"):
    """A client that has sent hi."""
    peer = node.open()
    peer.say("~wse:hi", {"identity": cid})
    return peer


# Nodes that die.


def test_a_dead_node_s_devices_are_taken_out_within_ten_seconds_and_users_leave_once():
    nodes = Nodes(3, conns_per_user=2)
    one, two, three = nodes
    nodes.join(three), nodes.join(three, "bob"), nodes.join(two, "bob")
    nodes.advance(20)
    nodes.kill(three)
    nodes.advance(10)
    assert nodes.log("left") == [("left", "ann", 1006, "")]
    assert one.do(one.server.online()) == 1
    assert [device.node for device in one.do(one.server.devices("bob"))] == [two.cluster.node]
    assert all(node.cluster.healthy for node in nodes)


def test_a_dead_node_is_found_no_later_when_the_survivors_have_only_just_begun():
    nodes = Nodes(2)
    nodes.join(nodes[1])
    nodes.kill(nodes[1])
    nodes.advance(10)
    assert nodes.presence() == [LEFT]


def test_the_identity_of_a_user_who_left_with_a_dead_node_has_no_connections():
    nodes = Nodes(2)
    left = []
    nodes[0].hub.left(lambda identity, code, reason: left.append(identity))
    nodes.join(nodes[1], 7)
    nodes.kill(nodes[1])
    nodes.advance(10)
    (identity,) = left
    assert (identity.cid, dict(identity.conns), identity.meta) == (7, {}, {})


# A node that sleeps.


def test_a_node_that_slept_past_its_lease_registers_its_devices_and_users_join_anew():
    nodes = Nodes(2, conns_per_user=2)
    one, two = nodes
    ann = nodes.join(two)
    nodes.join(two, "bob"), nodes.join(one, "bob")
    nodes.advance(8)
    nodes.sleep(two)
    nodes.advance(10)
    assert nodes.log("left") == [("left", "ann", 1006, "")]
    nodes.wake(two)
    nodes.advance(2)
    assert nodes.presence().count(JOINED) == 2
    assert nodes.presence().count(("joined", "bob")) == 1
    assert [device.conn_id for device in one.do(one.server.devices("ann"))] == [ann.conn.conn_id]
    assert one.do(one.server.online()) == 2
    ann.session.closed(1001, "")
    nodes.run()
    assert nodes.presence().count(LEFT) == 2
    nodes.advance(20)
    assert nodes.presence().count(LEFT) == nodes.presence().count(JOINED) == 2


def test_a_node_that_slept_until_the_register_had_forgotten_it_announces_its_users_anew():
    nodes = Nodes(2)
    one, two = nodes
    ann = nodes.join(two)
    nodes.advance(8)
    nodes.sleep(two)
    nodes.advance(620)
    nodes.join(one, "bob")
    assert encode_name("ann") not in nodes.engine._users
    nodes.wake(two)
    nodes.advance(2)
    assert (nodes.presence().count(JOINED), nodes.presence().count(LEFT)) == (2, 1)
    ann.session.closed(1001, "")
    nodes.advance(1)
    assert nodes.presence().count(LEFT) == 2


def test_a_ghost_is_taken_out_of_a_new_register_without_what_was_fired_of_an_earlier_record():
    nodes = Nodes(2)
    one, two = nodes
    nodes.advance(8)
    nodes.engine.forget()
    nodes.advance(8)
    ann = nodes.join(one)
    ann.session.closed(1001, "")
    nodes.advance(1)
    del nodes.engine._users[encode_name("ann")]  # as NATS forgets it at once
    nodes.engine._gone.clear()
    nodes.join(two)
    nodes.engine._users[encode_name("ann")].devices["ghost"] = Device(encode_name("ann"), "ghost", one.cluster.node)
    one.cluster.reconciler.is_disturbed = True
    nodes.advance(2)
    assert nodes.presence() == [JOINED, LEFT, JOINED]
    assert len(one.do(one.server.devices("ann"))) == 1


def test_devices_that_were_replaced_while_their_node_slept_are_pushed_out():
    nodes = Nodes(2)
    one, two = nodes
    old = nodes.join(two)
    nodes.advance(8)
    nodes.sleep(two)
    nodes.advance(10)
    new = nodes.join(one)
    nodes.wake(two)
    nodes.advance(2)
    assert (old.closed_with, new.closed_with) == ((1000, "wse.clients-concurrency"), None)
    assert nodes.presence() == [JOINED, LEFT, JOINED] or sorted(nodes.presence()) == [JOINED, JOINED, LEFT]
    assert two.leftovers == []


def test_a_device_that_ended_while_its_node_was_taken_for_dead_does_not_leave_again():
    nodes = Nodes(2)
    two = nodes[1]
    peer = nodes.join(two)
    nodes.advance(8)
    nodes.sleep(two)
    nodes.advance(10)
    two.awake = True
    peer.session.closed(1001, "")  # received before the node knows how long it has slept
    nodes.wake(two)
    nodes.advance(10)
    assert nodes.presence().count(LEFT) == 1
    assert two.leftovers == []


def test_a_node_that_is_taken_for_dead_just_as_it_wakes_hears_of_it():
    nodes = Nodes(2)
    one, two = nodes
    nodes.join(two)
    reap, gate = one.broker.reap, asyncio.Future(loop=one.scheduler)

    async def reap_slowly():
        gone = await reap()
        if gone:
            await gate
        return gone

    one.broker.reap = reap_slowly
    nodes.sleep(two)
    nodes.advance(10)
    assert one.do(one.server.online()) == 0  # it has reaped, but has no answer yet
    nodes.wake(two)
    nodes.advance(1)
    gate.set_result(None)
    nodes.advance(20)
    assert nodes.presence() == [JOINED]  # it is back before anybody has fired `left`
    assert one.do(one.server.online()) == 1


def test_a_node_keeps_its_lease_however_long_it_reaps():
    nodes = Nodes(2)
    one, two = nodes
    nodes.join(two)
    reap, gate = one.broker.reap, asyncio.Future(loop=one.scheduler)
    begun = []

    async def reap_slowly():
        begun.append(one)
        await gate
        return await reap()

    nodes.kill(two)
    one.broker.reap = reap_slowly
    nodes.advance(30)
    assert len(begun) == 1
    assert one.cluster.healthy
    assert one.do(one.broker.nodes()) == {one.cluster.node}
    gate.set_result(None)
    nodes.advance(1)
    assert nodes.presence() == [LEFT]


def test_a_register_that_fails_while_a_node_reaps_is_asked_again():
    nodes = Nodes(2)
    one, two = nodes
    nodes.join(two)
    reap, failures = one.broker.reap, [WseError(ErrorCode.BROKER_UNAVAILABLE)]

    async def fail_once():
        if failures:
            raise failures.pop()
        return await reap()

    nodes.kill(two)
    one.broker.reap = fail_once
    nodes.advance(10)
    assert nodes.presence() == [LEFT]


# The register is lost.


def test_after_the_register_was_lost_all_is_registered_again_and_nothing_fires():
    nodes = Nodes(3, conns_per_user=2)
    for node in nodes:
        nodes.join(node), nodes.join(node, f"of {node.cluster.node}")
    before = nodes.presence()
    nodes.advance(8)
    nodes.engine.forget()
    nodes.advance(10)
    assert nodes.presence() == before
    assert nodes[0].do(nodes[0].server.online()) == 4
    assert len(nodes[0].do(nodes[0].server.devices("ann"))) == 2


def test_who_left_while_the_register_was_lost_leaves_once():
    nodes = Nodes(2, conns_per_user=2)
    one, two = nodes
    phone, laptop = nodes.join(one), nodes.join(two)
    gone = nodes.join(two, "bob")
    nodes.advance(8)
    nodes.engine.pause()
    nodes.engine.forget()
    nodes.advance(1)
    for peer in (phone, laptop, gone):
        peer.session.closed(1001, "")
    assert nodes.log("left") == []
    nodes.engine.resume()
    nodes.advance(10)
    assert sorted(entry[1] for entry in nodes.log("left")) == ["ann", "bob"]
    assert one.leftovers == two.leftovers == []


def test_a_user_s_second_device_is_news_when_the_first_was_taken_for_dead():
    nodes = Nodes(2, conns_per_user=2)
    two = nodes[1]
    nodes.join(two)
    nodes.advance(8)
    nodes.sleep(two)
    nodes.advance(10)
    two.awake = True
    peer = begin(two)  # the first message that the node receives when it wakes
    nodes.wake(two)
    nodes.advance(2)
    assert peer.session.valid
    assert sorted(nodes.presence()) == [JOINED, JOINED, LEFT]


# The broker cannot be reached.


def test_without_the_broker_devices_come_and_go_and_are_reconciled_when_it_is_back():
    nodes = Nodes(2)
    one, two = nodes
    gone, stays = nodes.join(one, "gone"), nodes.join(one, "stays")
    nodes.engine.pause()
    nodes.run()
    assert one.codes == two.codes == [ErrorCode.BROKER_UNAVAILABLE]
    assert not one.cluster.healthy
    fresh, brief = nodes.join(one, "fresh"), nodes.join(one, "brief")
    brief.session.closed(1001, "")
    gone.session.closed(1001, "")
    one.server.broadcast("say")
    nodes.advance(5)
    assert heard(stays, fresh) == [[("say", None)], [("say", None)]]
    assert nodes.presence() == [("joined", "gone"), ("joined", "stays")]
    assert [entry[1] for entry in one.names("connected")] == ["gone", "stays", "fresh", "brief"]
    nodes.engine.resume()
    nodes.advance(10)
    assert nodes.presence()[2:] == [("joined", "fresh"), ("left", "gone")] or sorted(nodes.presence()[2:]) == [
        ("joined", "fresh"),
        ("left", "gone"),
    ]
    assert two.do(two.server.online()) == 2
    assert one.cluster.healthy
    assert one.codes == [ErrorCode.BROKER_UNAVAILABLE]


def test_without_the_broker_the_oldest_device_of_this_node_is_pushed_out_and_later_the_oldest_of_all():
    nodes = Nodes(2)
    one, two = nodes
    nodes.engine.pause()
    nodes.run()
    old, new = nodes.join(one), nodes.join(one)
    assert (old.closed_with, new.closed_with) == ((1000, "wse.clients-concurrency"), None)
    nodes.clock.now += 1
    newest = nodes.join(two)
    nodes.engine.resume()
    nodes.advance(10)
    assert (new.closed_with, newest.closed_with) == ((1000, "wse.clients-concurrency"), None)
    assert nodes.presence() == [JOINED]
    assert one.leftovers == []


def test_of_devices_that_came_while_the_broker_was_away_the_last_to_be_registered_stays():
    nodes = Nodes(2)
    one, two = nodes
    nodes.engine.pause()
    nodes.run()
    old = nodes.join(one)
    nodes.clock.now += 1
    new = nodes.join(two)
    nodes.sleep(one)
    nodes.engine.resume()
    nodes.advance(2)
    nodes.wake(one)
    nodes.advance(2)
    assert (old.closed_with, new.closed_with) == (None, (1000, "wse.clients-concurrency"))
    assert nodes.presence() == [JOINED]


def test_messages_wait_for_the_broker_up_to_a_bound_and_the_rest_is_counted_and_reported():
    nodes = Nodes(2, ClusterSettings(backlog=2))
    one, two = nodes
    peer = nodes.join(two)
    nodes.engine.pause()
    nodes.run()
    for number in range(5):
        one.server.send("ann", "say", number)
    nodes.advance(1)
    assert heard(peer) == [[]]
    nodes.engine.resume()
    nodes.run()
    assert heard(peer) == [[("say", 0), ("say", 1)]]
    assert one.codes == [ErrorCode.BROKER_UNAVAILABLE, ErrorCode.BROKER_LOST_MESSAGES]
    assert one.errors[-1][0].details == {"lost": 3}
    assert one.cluster.bus.lost == 3
    one.server.send("ann", "say", 5)
    nodes.run()
    assert heard(peer) == [[("say", 5)]]


def lose(node, *unsent):
    """The broker gives back what it could not send."""
    node.broker.cluster.reachable = False
    node.cluster.inbox.connection_lost(None, [*unsent])


def test_what_could_not_be_sent_is_sent_before_what_came_since_when_the_broker_is_back():
    nodes = Nodes(2)
    one, two = nodes
    peer = nodes.join(two)
    unsent = []
    one.broker.publish = lambda topic, data: unsent.append((topic, data))
    one.server.send("ann", "say", 1)
    one.server.send("ann", "say", 2)
    del one.broker.publish
    nodes.engine.reachable = False
    one.server.send("ann", "say", 3)
    lose(one, *unsent)
    one.server.send("ann", "say", 4)
    nodes.engine.reachable = True
    one.cluster.inbox.connection_restored()
    nodes.advance(1)
    assert heard(peer) == [[("say", 1), ("say", 2), ("say", 3), ("say", 4)]]
    assert one.cluster.bus.lost == 0
    assert one.leftovers == []


def test_what_could_not_be_sent_is_bounded_like_all_that_waits_and_the_rest_is_counted():
    nodes = Nodes(1, ClusterSettings(backlog=3))
    (one,) = nodes
    nodes.engine.reachable = False
    for number in range(2):
        one.server.broadcast("say", number)
    lose(one, *[("u.ann", b"%d" % number) for number in range(2)])
    assert [data for _, data in one.cluster.bus._backlog][:2] == [b"0", b"1"]
    assert len(one.cluster.bus._backlog) == 3
    assert one.cluster.bus.backlog_bytes == sum(len(data) for _, data in one.cluster.bus._backlog)
    assert one.cluster.bus.lost == 1


def test_what_one_node_was_told_and_could_not_be_sent_is_neither_kept_nor_counted():
    nodes = Nodes(1, ClusterSettings(backlog=0))
    (one,) = nodes
    lose(one, (NODE + one.cluster.node, b"canary"), (NODE + "other", b"answer"))
    assert one.leftovers == []
    assert one.cluster.bus.lost == 0


def test_a_large_backlog_is_published_in_parts_and_in_order():
    nodes = Nodes(2)
    one, two = nodes
    peer = nodes.join(two)
    nodes.engine.pause()
    nodes.run()
    texts = [str(number) * 600_000 for number in range(8)]
    for text in texts:
        one.server.send("ann", "say", text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("wse.core.cluster.bus.MAX_BATCH_BYTES", 1_000_000)
        nodes.engine.resume()
        nodes.run()
        assert len(one.cluster.bus._backlog) == 6
        nodes.advance(1)
        one.server.send("ann", "say", "new")
        nodes.advance(3)
    assert heard(peer) == [[("say", text) for text in [*texts, "new"]]]


def test_the_bytes_that_wait_are_bounded():
    nodes = Nodes(1, ClusterSettings(backlog_bytes=1000))
    nodes.engine.pause()
    for _ in range(3):
        nodes[0].server.broadcast("say", "x" * 500)
    assert nodes[0].cluster.bus.lost == 2


def test_what_waits_leaves_in_order_also_when_the_broker_says_nothing():
    nodes = Nodes(2)
    one, two = nodes
    peer = nodes.join(two)
    nodes.engine.reachable = False
    one.server.send("ann", "say", 1)
    nodes.engine.reachable = True
    one.server.send("ann", "say", 2)
    nodes.advance(3)
    assert heard(peer) == [[("say", 1), ("say", 2)]]


def test_without_the_broker_calls_reach_the_devices_of_this_node_only():
    nodes = Nodes(2, conns_per_user=2)
    one, two = nodes
    here = nodes.join(one)
    nodes.join(two)
    nodes.join(two, "bob")
    nodes.engine.pause()
    task = one.scheduler.start(one.server.call("ann", "where"))
    (stamp,) = [stamp for kind, _, stamp in here.heard if kind == "where"]
    here.say("~wse:response", "here", stamp)
    one.scheduler.run()
    assert task.result() == "here"
    for ask in (one.server.call("bob", "where"), one.server.devices("ann"), one.server.online(),
                one.server.room("tea").members()):  # fmt: skip
        assert one.scheduler.start(ask).exception().code == ErrorCode.BROKER_UNAVAILABLE


def test_a_call_that_can_no_longer_cross_fails_at_once():
    nodes = Nodes(2)
    one, two = nodes
    nodes.join(two)
    (callee,) = one.do(one.cluster.callees("ann"))
    nodes.engine.pause()
    with pytest.raises(WseError) as caught:
        callee.start_call("where", None, None)
    assert caught.value.code == ErrorCode.RP_SEND_FAILED
    assert caught.value.__cause__.code == ErrorCode.BROKER_UNAVAILABLE
    assert one.leftovers == []


def test_a_message_that_the_broker_does_not_take_is_reported_and_delivered_here():
    nodes = Nodes(1)
    (one,) = nodes
    peer = nodes.join(one)

    def refuse(topic, data):
        raise WseError(ErrorCode.LIMIT_EXCEEDED, {"size": len(data), "limit": 10})

    one.broker.publish = refuse
    one.server.send("ann", "say")
    assert heard(peer) == [[("say", None)]]
    assert one.error.__cause__.code == ErrorCode.LIMIT_EXCEEDED


# A subscription that does not deliver.


def test_a_deaf_subscription_shows_within_five_seconds_and_so_does_its_end():
    nodes = Nodes(2)
    one, two = nodes
    nodes.advance(10)
    one.broker.deaf = True
    nodes.advance(5)
    assert (one.cluster.healthy, two.cluster.healthy) == (False, True)
    assert one.codes == [ErrorCode.BROKER_DEAF]
    nodes.advance(5)
    assert one.codes == [ErrorCode.BROKER_DEAF]
    one.broker.deaf = False
    nodes.advance(2)
    assert one.cluster.healthy


def test_a_device_that_was_pushed_out_while_its_node_was_deaf_goes_when_it_hears_again():
    nodes = Nodes(2)
    one, two = nodes
    old = nodes.join(one)
    one.broker.deaf = True
    nodes.join(two)
    nodes.advance(5)
    one.broker.deaf = False
    nodes.advance(5)
    assert old.closed_with == (1000, "wse.clients-concurrency")


def test_a_node_that_slept_is_not_deaf():
    nodes = Nodes(2)
    nodes.sleep(nodes[0])
    nodes.advance(30)
    nodes.wake(nodes[0])
    nodes.advance(5)
    assert nodes[0].cluster.healthy
    assert nodes[0].codes == []


def test_a_register_that_does_not_answer_makes_a_node_unhealthy():
    nodes = Nodes(1)

    async def fail(ttl, **options):
        raise WseError(ErrorCode.BROKER_UNAVAILABLE)

    nodes[0].broker.renew = fail
    nodes.advance(4)
    assert nodes[0].cluster.healthy
    nodes.advance(2)
    assert not nodes[0].cluster.healthy


# An engine that comes back empty, for one node later than for another.


def restart(nodes, late):
    """The engine forgets everything; one node notices its return later."""
    nodes.advance(10)
    late.awake = False
    nodes.engine.pause()
    nodes.engine.forget()
    nodes.engine.resume()
    nodes.run()


@pytest.mark.parametrize("stays", [True, False])
def test_a_user_whose_other_device_is_not_registered_yet_does_not_join_anew(stays):
    nodes = Nodes(2, conns_per_user=2)
    one, two = nodes
    old = nodes.join(one)
    restart(nodes, late=one)
    new = nodes.join(two)
    if not stays:
        new.session.closed(1001, "")
    nodes.advance(3)
    nodes.wake(one)
    nodes.advance(20)
    assert nodes.presence() == [JOINED]
    assert [device.node for device in one.do(one.server.devices("ann"))] == [one.cluster.node, two.cluster.node][
        : 1 + stays
    ]
    for peer in (old, new)[: 1 + stays]:
        peer.session.closed(1001, "")
        nodes.run()
    assert nodes.presence() == [JOINED, LEFT] or sorted(nodes.presence()) == [JOINED, LEFT]
    assert [node.leftovers for node in nodes] == [[], []]


def test_a_user_who_comes_meanwhile_joins_when_all_nodes_are_back():
    nodes = Nodes(2, conns_per_user=2)
    one, two = nodes
    restart(nodes, late=one)
    peer = nodes.join(two)
    assert peer.session.valid
    nodes.advance(3)
    nodes.wake(one)
    also = nodes.join(one)
    nodes.advance(10)
    assert nodes.presence() == [JOINED]
    for one_of_them in (peer, also):
        one_of_them.session.closed(1001, "")
    nodes.advance(10)
    assert sorted(nodes.presence()) == [JOINED, LEFT]
    assert [node.leftovers for node in nodes] == [[], []]


def test_a_user_who_comes_and_goes_and_comes_back_meanwhile_joins_once():
    nodes = Nodes(2)
    one, two = nodes
    restart(nodes, late=one)
    nodes.join(two).session.closed(1001, "")
    nodes.advance(1)
    peer = nodes.join(two)
    nodes.wake(one)
    nodes.advance(10)
    assert nodes.presence() == [JOINED]
    peer.session.closed(1001, "")
    nodes.run()
    assert nodes.presence() == [JOINED, LEFT]
    assert [node.leftovers for node in nodes] == [[], []]


def test_a_user_who_goes_meanwhile_leaves_when_all_nodes_are_back():
    nodes = Nodes(2)
    one, two = nodes
    old = nodes.join(two)
    restart(nodes, late=one)
    nodes.advance(1)
    old.session.closed(1001, "")
    nodes.advance(1)
    assert nodes.presence() == [JOINED]
    nodes.wake(one)
    nodes.advance(10)
    assert nodes.presence() == [JOINED, LEFT]
    assert two.leftovers == []


def test_a_device_that_goes_before_its_welcome_meanwhile_was_never_there():
    nodes = Nodes(2)
    one, two = nodes
    restart(nodes, late=one)
    gate = held_up(two.broker, "join")
    begin(two).session.closed(1001, "")
    gate.set_result(None)
    nodes.wake(one)
    nodes.advance(10)
    assert nodes.presence() == []
    assert two.leftovers == []


def test_of_two_devices_of_a_node_in_doubt_the_older_one_counts():
    nodes = Nodes(2, conns_per_user=3)
    one, two = nodes
    nodes.advance(10)
    nodes.engine.pause()
    nodes.join(two)
    nodes.advance(1)
    nodes.engine.forget()
    one.awake = False
    nodes.engine.resume()
    nodes.run()
    nodes.join(two)
    nodes.advance(3)
    nodes.wake(one)
    nodes.join(one)
    nodes.advance(10)
    assert nodes.presence() == [JOINED]


def test_a_user_who_goes_meanwhile_and_comes_back_has_been_there_all_the_time():
    nodes = Nodes(2)
    one, two = nodes
    old = nodes.join(two)
    restart(nodes, late=one)
    nodes.advance(1)
    old.session.closed(1001, "")
    nodes.advance(1)
    nodes.join(two)
    nodes.wake(one)
    nodes.advance(10)
    assert nodes.presence() == [JOINED]


def test_a_device_that_has_ended_takes_nobody_s_place_meanwhile():
    nodes = Nodes(2, conns_per_user=2)
    one, two = nodes
    phone = nodes.join(two)
    restart(nodes, late=one)
    for _ in range(3):
        nodes.join(two).session.closed(1001, "")
        nodes.run()
    nodes.wake(one)
    nodes.advance(10)
    assert phone.closed_with is None
    assert nodes.presence() == [JOINED]


def test_the_older_of_two_who_came_while_the_engine_was_away_joins():
    nodes = Nodes(2, conns_per_user=2)
    one, two = nodes
    nodes.advance(10)
    nodes.engine.pause()
    peers = [nodes.join(one)]
    nodes.advance(1)
    peers.append(nodes.join(two))
    nodes.engine.forget()
    one.awake = False
    nodes.engine.resume()
    nodes.advance(3)
    nodes.wake(one)
    nodes.advance(10)
    assert nodes.presence() == [JOINED]
    for peer in peers:
        peer.session.closed(1001, "")
    nodes.advance(10)
    assert sorted(nodes.presence()) == [JOINED, LEFT]
    assert [node.leftovers for node in nodes] == [[], []]


def test_a_user_is_vouched_for_whose_device_is_put_out_before_anybody_looks():
    nodes = Nodes(2)
    one, two = nodes
    old = nodes.join(one)
    restart(nodes, late=one)
    new = nodes.join(two)
    nodes.advance(3)
    nodes.wake(one)
    nodes.advance(10)
    assert old.closed_with == (1000, "wse.clients-concurrency")
    assert new.closed_with is None
    assert nodes.presence() == [JOINED]


def test_a_user_who_comes_and_goes_meanwhile_was_never_there():
    nodes = Nodes(2)
    one, two = nodes
    restart(nodes, late=one)
    nodes.join(two).session.closed(1001, "")
    nodes.advance(3)
    nodes.wake(one)
    nodes.advance(10)
    assert nodes.presence() == []
    assert [node.leftovers for node in nodes] == [[], []]


def test_a_user_who_came_while_the_engine_was_away_does_not_join_anew():
    nodes = Nodes(2, conns_per_user=2)
    one, two = nodes
    nodes.join(one)
    nodes.advance(10)
    nodes.engine.pause()
    nodes.join(two)
    nodes.engine.forget()
    one.awake = False
    nodes.engine.resume()
    nodes.advance(3)
    nodes.wake(one)
    nodes.advance(10)
    assert nodes.presence() == [JOINED]
    assert len(one.do(one.server.devices("ann"))) == 2


def test_after_a_loss_of_the_connection_only_users_join_and_leave_at_once():
    nodes = Nodes(2)
    one, _ = nodes
    nodes.advance(10)
    nodes.engine.pause()
    nodes.engine.resume()
    nodes.advance(1)
    nodes.join(one).session.closed(1001, "")
    nodes.run()
    assert nodes.presence() == [JOINED, LEFT]
    assert one.leftovers == []


# Answers that are lost.


def test_a_join_whose_answer_was_lost_is_made_good():
    nodes = Nodes(2)
    one, two = nodes
    nodes.advance(10)
    old = nodes.join(one)
    nodes.engine.answers = False
    new, bob = nodes.join(two), nodes.join(two, "bob")
    nodes.engine.answers = True
    assert new.session.valid
    nodes.advance(3)
    assert nodes.presence() == [JOINED, ("joined", "bob")]
    assert (old.closed_with, new.closed_with) == ((1000, "wse.clients-concurrency"), None)
    for peer in (new, bob):
        peer.session.closed(1001, "")
    nodes.advance(1)
    assert sorted(nodes.presence()) == [JOINED, ("joined", "bob"), LEFT, ("left", "bob")]
    assert [node.leftovers for node in nodes] == [[], []]


def test_a_leave_whose_answer_was_lost_is_made_good():
    nodes = Nodes(1)
    (one,) = nodes
    peer = nodes.join(one)
    nodes.advance(10)
    nodes.engine.answers = False
    peer.session.closed(1001, "")
    nodes.run()
    nodes.engine.answers = True
    nodes.advance(3)
    assert nodes.presence() == [JOINED, LEFT]
    assert one.leftovers == []


# Between the two.


def test_a_device_that_goes_before_its_welcome_was_there_for_a_moment():
    nodes = Nodes(1)
    (one,) = nodes
    gate = held_up(one.broker, "join")
    peer = begin(one)
    assert heard(peer) == [[]]
    peer.say("early")
    peer.session.closed(1001, "")
    gate.set_result(None)
    nodes.run()
    assert nodes.presence() == [JOINED, LEFT]
    assert one.names("connected", "disconnected") == []
    assert one.leftovers == []


def test_a_device_that_goes_before_its_welcome_displaces_others_and_its_user_leaves_as_it_came():
    nodes = Nodes(2)
    one, two = nodes
    old = nodes.join(two)
    left = []
    for node in nodes:
        node.hub.left(lambda identity, code, reason: left.append((identity.cid, identity.meta, code, reason)))
    gate = held_up(one.broker, "join")
    peer = one.open()
    peer.say("~wse:hi", {"identity": "ann", "meta": {"device": "phone"}})
    peer.session.closed(1001, "bye")
    gate.set_result(None)
    nodes.run()
    assert old.closed_with == (1000, "wse.clients-concurrency")
    assert left == [("ann", {"device": "phone"}, 1006, "")]
    assert peer.closed_with is None
    assert heard(peer) == [[]]
    assert one.hub.connections == {}


def test_a_user_who_was_there_for_a_moment_only_came_with_the_meta_of_the_hi():
    nodes = Nodes(1)
    (one,) = nodes
    gate = held_up(one.broker, "join")
    peer = one.open()
    peer.say("~wse:hi", {"identity": "ann", "meta": {"device": "phone"}})
    peer.session.closed(1001, "")
    gate.set_result(None)
    nodes.run()
    assert one.log[-2:] == [("joined", "ann", {"device": "phone"}), ("left", "ann", 1006, "")]


def test_the_register_hears_at_once_that_joined_has_fired():
    nodes = Nodes(1)
    nodes.join(nodes[0])
    (record,) = nodes.engine._users.values()
    assert (record.pending, record.claimed) == ([], [])


def test_a_user_whose_left_was_held_back_fires_it_before_joined_once():
    nodes = Nodes(1)
    (one,) = nodes
    old = nodes.join(one)
    fails_once(one.broker, "claim")
    old.session.closed(1001, "")
    nodes.run()
    assert nodes.presence() == [JOINED]
    nodes.join(one)
    assert nodes.presence() == [JOINED, LEFT, JOINED]
    (record,) = nodes.engine._users.values()
    assert (record.pending, record.claimed) == ([], [])


def test_a_device_is_not_handed_over_while_a_step_is_on_its_way_that_could_undo_that():
    nodes = Nodes(1)
    (one,) = nodes
    presence = one.cluster.presence
    peer = nodes.join(one)
    assert presence.registration(peer.conn).device.conn_id == peer.conn.conn_id
    registration = presence.registration(peer.conn)
    registration.is_busy = True
    assert presence.registration(peer.conn) is registration
    registration.state = State.OUTSIDE
    assert presence.registration(peer.conn) is None
    registration.is_busy = False
    assert presence.registration(peer.conn) is registration
    registration.state = State.INSIDE
    peer.session.closed(1001, "")
    nodes.run()
    assert presence.registration(peer.conn) is None
    presence.moved(peer.conn)  # of a device that is gone: nothing happens
    assert one.leftovers == []


def test_a_node_that_has_left_its_cluster_keeps_nothing_for_the_next_time():
    nodes = Nodes(1, leave_grace=60)
    (one,) = nodes
    nodes.join(one).session.closed(1001, "")
    held_up(one.broker, "join")
    begin(one, "bob")
    fails_once(one.broker, "leave")
    presence = one.cluster.presence
    ((_, timer),) = presence._graces.values()
    presence.reset()
    assert timer.cancelled
    assert (presence._graces, presence._joining, dict(presence._registrations)) == ({}, {}, {})
    assert (one.cluster.presence._reconciler.register, presence._firing.is_idle) == ("", True)


def test_a_device_that_is_pushed_out_before_its_welcome_gets_none():
    nodes = Nodes(2)
    one, two = nodes
    gate = held_up(one.broker, "join")
    old = begin(one)
    new = nodes.join(two)
    gate.set_result(None)
    nodes.run()
    assert (old.closed_with, new.closed_with) == ((1000, "wse.clients-concurrency"), None)
    assert heard(old) == [[]]
    assert nodes.presence() == [JOINED]
    assert one.leftovers == []


@pytest.mark.parametrize("by", [0, 1])
def test_a_user_who_is_dropped_before_the_welcome_gets_none(by):
    nodes = Nodes(2)
    one, _ = nodes
    gate = held_up(one.broker, "join")
    peer, other = begin(one), begin(one, "bob")
    nodes.run()
    nodes[by].server.drop_client("ann", "banned")
    nodes.run()
    assert peer.closed_with == (1000, "banned")
    assert other.closed_with is None
    gate.set_result(None)
    nodes.run()
    assert (heard(peer), [kind for kind, *_ in other.heard]) == ([[]], ["~wse:welcome"])
    peer.session.closed(1000, "banned")
    other.session.closed(1001, "")
    nodes.run()
    assert sorted(nodes.presence()) == [JOINED, ("joined", "bob"), LEFT, ("left", "bob")]
    assert one.leftovers == []


def test_a_user_of_this_node_can_be_called_while_the_register_does_not_know():
    nodes = Nodes(1)
    (one,) = nodes
    peer = nodes.join(one)
    nodes.engine.forget()
    call = one.scheduler.start(one.server.call("ann", "name"))
    nodes.run()
    _, _, stamp = peer.heard[-1]
    peer.say("~wse:response", "me", stamp)
    nodes.run()
    assert call.result() == "me"


def test_a_node_that_waits_for_the_others_when_it_closes_says_everything_when_it_is_started_again():
    nodes = Nodes(2)
    one, two = nodes
    peer = nodes.join(two)
    nodes.advance(8)
    two.awake = False
    nodes.engine.pause()
    nodes.engine.resume()
    nodes.run()
    for task in one.scheduler.tasks:
        task.cancel()
    nodes.run()
    one.do(one.cluster.close())
    two.awake = True
    nodes.run()
    one.do(one.cluster.open())
    one.server.send("ann", "say")
    nodes.run()
    assert ("say", None) in heard(peer)[0]


def test_what_is_sent_during_the_welcome_of_a_device_does_not_precede_it():
    nodes = Nodes(2, conns_per_user=2)
    one, two = nodes
    gate = held_up(one.broker, "flush")
    peer = begin(one)
    two.server.send("ann", "early")
    nodes.run()
    gate.set_result(None)
    nodes.run()
    two.server.send("ann", "late")
    nodes.run()
    assert [message[0] for message in peer.heard] == ["~wse:welcome", "late"]


def test_of_two_devices_that_come_at_once_neither_is_welcomed_before_its_user_is_subscribed_to():
    nodes = Nodes(1, conns_per_user=2)
    (one,) = nodes
    gate = held_up(one.broker, "flush")
    peers = [begin(one), begin(one)]
    nodes.run()
    assert heard(*peers) == [[], []]
    gate.set_result(None)
    nodes.run()
    assert [[kind for kind, *_ in peer.heard] for peer in peers] == [["~wse:welcome"]] * 2


def test_a_device_that_ends_while_it_is_registered_again_leaves_no_ghost():
    nodes = Nodes(1)
    (one,) = nodes
    peer = nodes.join(one)
    gate = held_up(one.broker, "join")
    nodes.engine.forget()
    nodes.advance(2)
    peer.session.closed(1001, "")
    gate.set_result(None)
    nodes.advance(10)
    assert nodes.presence() == [JOINED, LEFT]
    assert one.leftovers == []
    assert one.do(one.server.online()) == 0


def test_a_device_that_ends_before_it_is_registered_again_leaves_after_that():
    nodes = Nodes(1)
    (one,) = nodes
    fails_once(one.broker, "join")
    peer = nodes.join(one)
    gate = made_late(one.broker, "join")
    nodes.advance(2)
    peer.session.closed(1001, "")
    nodes.run()
    gate.set_result(None)
    nodes.run()
    assert one.do(one.server.online()) == 0
    assert one.leftovers == []
    assert nodes.presence() == [JOINED, LEFT]


def test_a_device_that_is_displaced_before_it_is_registered_again_is_taken_out():
    nodes = Nodes(2)
    one, two = nodes
    fails_once(one.broker, "join")
    old = nodes.join(one)
    gate = made_late(one.broker, "join")
    nodes.advance(2)
    two.cluster.bus.send_to(one.cluster.node, envelope.Displaced(two.cluster.node, old.conn.conn_id))
    nodes.run()
    assert old.closed_with == (1000, "wse.clients-concurrency")
    gate.set_result(None)
    nodes.run()
    assert one.do(one.server.online()) == 0
    assert one.leftovers == []
    assert nodes.presence() == [JOINED, LEFT]


def test_a_device_that_was_joined_again_after_it_was_displaced_and_hears_of_it_then_leaves_no_ghost():
    nodes = Nodes(2)
    one, two = nodes
    old = nodes.join(one)
    one.cluster.steps.check(encode_name("ann"))
    nodes.advance(1)
    two.cluster.bus.send_to(one.cluster.node, envelope.Displaced(two.cluster.node, old.conn.conn_id))
    nodes.run()
    assert old.closed_with == (1000, "wse.clients-concurrency")
    assert one.do(one.server.online()) == 0
    assert one.leftovers == []
    assert nodes.presence() == [JOINED, LEFT]


def test_a_device_hears_that_it_was_displaced_by_one_that_had_no_answer_and_has_left_since():
    nodes = Nodes(2)
    one, two = nodes
    old = nodes.join(one)
    nodes.advance(2)  # past the first reconciliation
    join = two.broker.join

    async def made_but_not_told(*args, **options):
        two.broker.join = join
        await join(*args, **options)
        raise WseError(ErrorCode.BROKER_UNAVAILABLE)

    two.broker.join = made_but_not_told
    nodes.join(two).session.closed(1001, "")
    nodes.advance(3)
    assert old.closed_with is None
    assert [device.conn_id for device in one.do(one.server.devices("ann"))] == [old.conn.conn_id]
    nodes.advance(10)
    assert nodes.presence().count(JOINED) - nodes.presence().count(LEFT) == 1


def test_what_a_node_remembers_is_not_restored_in_a_register_that_lost_nothing():
    nodes = Nodes(2)
    one, two = nodes
    for _ in range(3):
        nodes.join(one).session.closed(1001, "")
    nodes.join(two)
    nodes.run()
    record = nodes.engine._users[encode_name("ann")]
    assert record.generation == 7
    record.generation = 1  # as NATS begins a record anew
    record.devices["ghost"] = Device(record.user, "ghost", one.cluster.node)
    nodes.advance(31)
    assert [*record.devices.values()] == two.do(two.broker.devices(record.user))
    assert record.generation == 1
    assert nodes.presence().count(JOINED) == 4


def test_leaving_is_tried_again_when_the_broker_did_not_answer():
    nodes = Nodes(1)
    (one,) = nodes
    peer = nodes.join(one)
    leave = one.broker.leave

    async def fail(device, **options):
        one.broker.leave = leave
        raise WseError(ErrorCode.BROKER_UNAVAILABLE)

    one.broker.leave = fail
    peer.session.closed(1001, "")
    nodes.run()
    assert nodes.log("left") == []
    nodes.advance(2)
    assert nodes.log("left") == [("left", "ann", 1001, "")]
    assert one.leftovers == []


def test_a_device_whose_end_and_displacement_cross_leaves_nothing():
    nodes = Nodes(2)
    one, two = nodes
    old = nodes.join(one)
    gate = held_up(one.broker, "leave")
    begin(two)
    old.session.closed(1001, "")
    nodes.run()
    gate.set_result(None)
    nodes.run()
    assert one.leftovers == []
    assert nodes.presence() == [JOINED]


def test_being_displaced_twice_or_unknown_is_harmless():
    nodes = Nodes(2)
    one, two = nodes
    old = nodes.join(one)
    for _ in range(2):
        two.cluster.bus.send_to(one.cluster.node, envelope.Displaced(two.cluster.node, old.conn.conn_id))
    nodes.run()
    assert old.closed_with == (1000, "wse.clients-concurrency")
    assert one.errors == []


def claims_fail(node):
    """Let the node's claims fail until the returned function is called."""
    claim = node.broker.claim

    async def fail(transitions):
        raise WseError(ErrorCode.BROKER_UNAVAILABLE)

    node.broker.claim = fail
    return lambda: setattr(node.broker, "claim", claim)


def test_a_user_who_left_and_came_to_another_node_before_it_could_fire_was_there_all_the_time():
    nodes = Nodes(2)
    one, two = nodes
    peer = nodes.join(one)
    heal = claims_fail(one)
    peer.session.closed(1001, "")
    nodes.advance(2)
    back = nodes.join(two)
    nodes.advance(2)
    heal()
    nodes.advance(2)
    assert nodes.presence() == [JOINED]
    assert one.leftovers == []
    back.session.closed(1001, "")
    nodes.run()
    assert sorted(nodes.presence()) == [JOINED, LEFT]


@pytest.mark.parametrize("is_back", [True, False])
def test_whether_a_user_has_left_is_decided_anew_when_the_register_is_lost_before_it_could_fire(is_back):
    nodes = Nodes(2)
    one, two = nodes
    peer = nodes.join(one)
    heal = claims_fail(one)
    peer.session.closed(1001, "bye")
    nodes.run()
    if is_back:
        nodes.join(two)
    nodes.engine.forget()
    heal()
    nodes.advance(10)
    assert nodes.presence() == ([JOINED] if is_back else [JOINED, LEFT])
    assert one.do(one.server.online()) == is_back
    if not is_back:
        assert [node.leftovers for node in nodes] == [[], []]


# Nodes that start and close.


def test_a_node_that_closes_takes_its_devices_along_and_leaves_nothing():
    nodes = Nodes(2)
    one, two = nodes
    peers = [nodes.join(one), nodes.join(one, "bob")]
    for peer in peers:
        peer.session.closed(1012, "")
    one.do(one.cluster.close())
    one.do(one.cluster.close())
    assert sorted(nodes.log("left")) == [("left", "ann", 1012, ""), ("left", "bob", 1012, "")]
    assert two.do(two.broker.nodes()) == {two.cluster.node}
    assert one.leftovers == []
    assert one.scheduler.timers == []
    assert not one.cluster.healthy


@pytest.mark.parametrize("held", ["leave", "claim"])
def test_a_node_that_closes_waits_until_left_has_fired(held):
    nodes = Nodes(1)
    (one,) = nodes
    peer = nodes.join(one)
    gate = held_up(one.broker, held)
    peer.session.closed(1001, "")
    nodes.run()
    closing = one.scheduler.start(one.cluster.close())
    nodes.advance(1)
    gate.set_result(None)
    nodes.run()
    assert closing.done()
    assert nodes.presence() == [JOINED, LEFT]


def test_a_node_that_closes_waits_for_the_register_but_not_for_ever():
    nodes = Nodes(1)
    (one,) = nodes
    held_up(one.broker, "leave")
    peer = nodes.join(one)
    peer.session.closed(1012, "")
    task = one.scheduler.start(one.cluster.close())
    nodes.advance(2.75)
    assert not task.done()
    nodes.advance(0.25)
    assert task.done()
    assert one.leftovers == []
    assert nodes.engine.nodes() == frozenset()
    peer.session.closed(1012, "")


def test_a_node_closes_without_its_broker_and_says_so():
    nodes = Nodes(1)
    (one,) = nodes
    nodes.join(one).session.closed(1012, "")

    async def fail():
        raise WseError(ErrorCode.BROKER_UNAVAILABLE)

    one.broker.resign = fail
    one.do(one.cluster.close())
    assert one.codes == [ErrorCode.BROKER_UNAVAILABLE]


def test_a_node_that_closes_does_not_wait_for_ever_for_a_broker_that_does_not_answer():
    nodes = Nodes(1, ClusterSettings(close_timeout=10))
    (one,) = nodes
    answer = held_up(one.broker, "resign")
    closed_with = []
    one.broker.close = lambda within: closed(closed_with.append(within))
    task = one.scheduler.start(one.cluster.close())
    nodes.advance(7.75)
    assert not task.done()
    nodes.advance(0.25)
    assert task.done()
    assert closed_with == [2.0]
    assert one.codes == [ErrorCode.BROKER_UNAVAILABLE]
    answer.set_result(None)
    nodes.run()
    assert one.codes == [ErrorCode.BROKER_UNAVAILABLE]


async def closed(_):
    """A broker that can be closed at once."""


def test_a_node_that_closes_while_the_broker_is_away_gives_up_at_once():
    nodes = Nodes(1)
    (one,) = nodes
    peer = nodes.join(one)
    nodes.engine.pause()
    nodes.run()
    peer.session.closed(1012, "")
    one.do(one.cluster.close())
    assert one.leftovers == []


def test_a_node_starts_again_under_another_name():
    nodes = Nodes(1)
    (one,) = nodes
    before = one.cluster.node
    one.do(one.cluster.close())
    one.do(one.cluster.open())
    assert one.cluster.node != before
    nodes.join(one)
    assert one.cluster.healthy


def test_a_node_that_cannot_reach_the_broker_does_not_start():
    nodes = Nodes(1)
    (one,) = nodes
    one.do(one.cluster.close())
    nodes.engine.pause()
    assert one.scheduler.start(one.cluster.open()).exception().code == ErrorCode.BROKER_UNAVAILABLE
    nodes.engine.resume()

    async def fail():
        raise WseError(ErrorCode.BROKER_UNAVAILABLE)

    flush, one.broker.flush = one.broker.flush, fail
    assert one.scheduler.start(one.cluster.open()).exception().code == ErrorCode.BROKER_UNAVAILABLE
    assert not one.broker.connected
    one.broker.flush = flush
    one.do(one.cluster.open())


def test_of_several_connections_that_start_a_node_one_does():
    nodes = Nodes(1)
    (one,) = nodes
    one.do(one.cluster.close())
    gate = held_up(one.broker, "flush")
    tasks = [one.scheduler.start(one.cluster.open()) for _ in range(3)]
    gate.set_result(None)
    nodes.run()
    assert all(task.result() is None for task in tasks)
    assert len(nodes.engine.nodes()) == 1


@pytest.mark.parametrize("gone", [0, 1], ids=["who does it", "who waits"])
def test_one_of_them_that_goes_meanwhile_takes_none_of_the_others_along(gone):
    nodes = Nodes(1)
    (one,) = nodes
    one.do(one.cluster.close())
    gate = held_up(one.broker, "flush")
    tasks = [one.scheduler.start(one.cluster.open()) for _ in range(3)]
    leaver = tasks.pop(gone)
    leaver.cancel()
    nodes.run()
    assert leaver.cancelled()
    if not gate.done():
        gate.set_result(None)
    nodes.run()
    assert all(task.result() is None for task in tasks)
    assert one.cluster.bus.is_open


def test_a_client_that_comes_after_the_end_is_turned_away_and_nothing_is_said():
    nodes = Nodes(1)
    (one,) = nodes
    one.do(one.cluster.close())
    peer = begin(one)
    assert peer.closed_with == (1012, "wse.by-server")
    one.server.broadcast("say")
    assert one.leftovers == []


async def test_many_things_are_done_some_at_a_time_until_one_fails():
    from wse.scheduler import AsyncioScheduler

    done = []

    async def do(item):
        await asyncio.sleep(0)
        if item in (50, 51):
            raise WseError(ErrorCode.BROKER_UNAVAILABLE)
        done.append(item)

    await each(AsyncioScheduler(), range(40), do)
    assert done == list(range(40))
    await each(AsyncioScheduler(), (), do)
    with pytest.raises(WseError):
        await each(AsyncioScheduler(), range(1000), do)
    assert len(done) < 40 + 150


# Steps that overlap.


def test_a_lease_that_runs_out_again_while_devices_are_registered_is_no_harm():
    nodes = Nodes(1)
    (one,) = nodes
    users = [f"user {number}" for number in range(40)]
    for cid in users:
        nodes.join(one, cid)
    join = held_up(one.broker, "join")
    nodes.engine.forget()
    nodes.advance(6)  # some wait for their answers, and the rest wait for these
    ask = held_up(one.broker, "nodes")
    nodes.engine.forget()
    nodes.advance(2)
    join.set_result(None)
    nodes.run()
    ask.set_result(None)
    nodes.advance(10)
    assert one.do(one.broker.online()) == 40
    assert [entry[1] for entry in nodes.log("joined")] == users
    assert not one.cluster.presence._registrations.unsettled


def test_a_user_who_came_while_the_register_was_recovering_has_been_announced_when_it_is_lost_again():
    nodes = Nodes(2)
    one, two = nodes
    nodes.advance(2)
    nodes.sleep(two)  # the new register waits for what this one holds
    nodes.engine.forget()
    nodes.advance(2)
    ann = nodes.join(one)
    nodes.advance(1)
    assert nodes.presence() == []
    nodes.advance(10)
    assert nodes.presence() == [JOINED]
    nodes.engine.forget()
    nodes.advance(15)
    assert nodes.presence() == [JOINED]
    ann.session.closed(1001, "")
    nodes.advance(15)
    assert nodes.presence() == [JOINED, LEFT]


def test_a_user_who_is_about_to_leave_when_the_register_is_lost_again_leaves_once():
    nodes = Nodes(2, leave_grace=20)
    one, two = nodes
    nodes.advance(2)
    nodes.sleep(two)
    nodes.engine.forget()
    nodes.advance(2)
    ann = nodes.join(one)
    ann.session.closed(1001, "")
    nodes.advance(8)
    assert nodes.presence() == [JOINED]
    nodes.engine.forget()
    nodes.advance(40)
    assert nodes.presence() == [JOINED, LEFT]


def test_a_lease_that_runs_out_while_a_device_joins_registers_it_again():
    nodes = Nodes(1)
    (one,) = nodes
    gate = held_up(one.broker, "join")
    begin(one)
    nodes.engine.forget()
    nodes.advance(4)
    gate.set_result(None)
    nodes.advance(4)
    assert nodes.presence() == [JOINED]
    assert one.do(one.broker.online()) == 1


def test_a_device_that_waits_for_the_register_when_the_broker_returns_is_let_in_once():
    nodes = Nodes(1)
    (one,) = nodes
    gate = held_up(one.broker, "join")
    peer = begin(one)
    nodes.engine.pause()
    nodes.run()
    nodes.engine.resume()
    nodes.advance(1)
    gate.set_result(None)
    nodes.advance(4)
    assert [message[0] for message in peer.heard] == ["~wse:welcome"]
    assert nodes.presence() == [JOINED]


def test_registering_again_is_tried_again_when_the_broker_does_not_answer():
    nodes = Nodes(1)
    (one,) = nodes
    nodes.join(one)
    join = one.broker.join

    async def fail(*args, **options):
        one.broker.join = join
        raise WseError(ErrorCode.BROKER_UNAVAILABLE)

    one.broker.join = fail
    nodes.engine.forget()
    nodes.advance(6)
    assert one.do(one.broker.online()) == 1
    assert nodes.presence() == [JOINED]


def test_a_device_that_joins_is_not_called_before_its_welcome():
    nodes = Nodes(1, conns_per_user=2)
    (one,) = nodes
    here = nodes.join(one)
    held_up(one.broker, "join")
    begin(one)
    assert len(one.do(one.server.devices("ann"))) == 2
    assert [callee.conn for callee in one.do(one.cluster.callees("ann"))] == [here.conn]


def test_a_call_whose_answer_cannot_cross_ends_in_time():
    nodes = Nodes(2)
    one, two = nodes
    peer = nodes.join(two)
    task = one.scheduler.start(one.server.call("ann", "where", timeout=5))
    nodes.run()
    (stamp,) = [stamp for kind, _, stamp in peer.heard if kind == "where"]
    nodes.engine.pause()
    peer.say("~wse:response", "here", stamp)
    nodes.advance(5)
    assert task.exception().code == ErrorCode.RP_TIMEOUT
    assert two.errors[0][0].code == ErrorCode.BROKER_UNAVAILABLE
    assert len(two.errors) == 1


def test_a_cancelled_question_leaves_nothing():
    nodes = Nodes(2)
    one, two = nodes
    nodes.sleep(two)
    task = one.scheduler.start(one.server.room("tea").members())
    one.scheduler.run()
    task.cancel()
    nodes.run()
    assert one.cluster.rpc.waiting == 0
    assert one.leftovers == []


# Other nodes come back later.


def test_what_was_kept_waits_for_nodes_that_are_not_back_yet():
    nodes = Nodes(2)
    one, two = nodes
    peer = nodes.join(two)
    nodes.engine.pause()
    nodes.run()
    one.server.send("ann", "say", 1)
    two.broker.deaf = True
    nodes.engine.resume()
    nodes.advance(3)
    one.server.send("ann", "say", 2)
    nodes.advance(1)
    assert heard(peer) == [[]]
    two.broker.deaf = False
    nodes.advance(1)
    assert heard(peer) == [[("say", 1), ("say", 2)]]


def test_it_does_not_wait_for_the_dead():
    nodes = Nodes(3)
    one, two, three = nodes
    peer = nodes.join(two)
    nodes.engine.pause()
    nodes.run()
    one.server.send("ann", "say", 1)
    nodes.kill(three)
    nodes.engine.resume()
    nodes.advance(4)
    assert heard(peer) == [[]]
    nodes.advance(2)
    assert heard(peer) == [[("say", 1)]]


def test_a_connection_that_is_lost_again_while_it_waits_keeps_what_was_kept():
    nodes = Nodes(2)
    one, two = nodes
    peer = nodes.join(two)
    nodes.engine.pause()
    nodes.run()
    one.server.send("ann", "say", 1)
    two.broker.deaf = True
    for _ in range(2):
        nodes.engine.resume()
        nodes.run()
        nodes.engine.pause()
        nodes.engine.resume()  # before any node has noticed
        nodes.advance(1)
        nodes.engine.pause()
        nodes.advance(2)
    assert len(one.cluster.bus._backlog) == 1
    two.broker.deaf = False
    nodes.engine.resume()
    nodes.advance(1)
    assert heard(peer) == [[("say", 1)]]


def test_a_connection_that_is_lost_as_the_wait_ends_keeps_what_was_kept():
    nodes = Nodes(2)
    one, two = nodes
    peer = nodes.join(two)
    nodes.engine.pause()
    nodes.run()
    one.server.send("ann", "say", 1)
    nodes.engine.resume()
    one.scheduler.run()  # it sends the query
    two.scheduler.run()  # and gets the answer
    nodes.engine.reachable = False
    nodes.run()
    assert len(one.cluster.bus._backlog) == 1
    nodes.engine.reachable = True
    one.cluster.inbox.connection_restored()
    nodes.advance(1)
    assert heard(peer) == [[("say", 1)]]


def test_a_connection_that_outlives_its_node_ends_in_peace():
    nodes = Nodes(1)
    (one,) = nodes
    peer = nodes.join(one)
    one.server.room("tea").add(peer.conn)
    task = one.scheduler.start(one.cluster.close())
    nodes.advance(6)
    assert task.done()
    peer.session.closed(1001, "")
    assert one.names("disconnected") == [("disconnected", "ann", 1001, "")]
    assert one.leftovers == []


def test_a_device_that_goes_before_its_welcome_as_one_of_several_fires_nothing():
    nodes = Nodes(1, conns_per_user=2)
    (one,) = nodes
    nodes.join(one)
    gate = held_up(one.broker, "join")
    begin(one).session.closed(1001, "")
    gate.set_result(None)
    nodes.run()
    assert nodes.presence() == [JOINED]


def test_a_node_closes_at_once_when_its_broker_fails_meanwhile():
    nodes = Nodes(1)
    (one,) = nodes

    async def fail(device, **options):
        raise WseError(ErrorCode.BROKER_UNAVAILABLE)

    one.broker.leave = fail
    nodes.join(one).session.closed(1012, "")
    one.do(one.cluster.close())
    assert one.leftovers == []


def test_a_device_is_owed_nothing_when_the_register_was_lost_and_knew_it():
    nodes = Nodes(2, conns_per_user=2)
    one, two = nodes
    nodes.join(one), nodes.join(two)
    gate = held_up(one.broker, "join")
    nodes.engine.pause()
    nodes.engine.resume()
    nodes.run()  # it joins again, and is not the first
    nodes.engine.forget()
    nodes.advance(3)
    gate.set_result(None)
    nodes.advance(4)
    assert nodes.presence() == [JOINED]
    assert len(one.do(one.server.devices("ann"))) == 2


# Found by tests/model.


def test_a_user_s_events_keep_their_order_when_the_answer_to_the_first_is_lost():
    nodes = Nodes(1)
    (one,) = nodes
    nodes.engine.answers = False
    peer = begin(one)
    nodes.run()
    nodes.engine.answers = True
    peer.session.closed(1001, "")
    nodes.run()
    assert nodes.presence() == [JOINED, LEFT]


def test_a_device_that_came_without_the_register_does_not_announce_a_user_who_was_announced_before():
    nodes = Nodes(2, conns_per_user=2)
    one = nodes[0]
    nodes.join(one)
    nodes.engine.pause()
    nodes.engine.forget()
    begin(one)  # it has heard no generation, and is the first to be registered again
    nodes.run()
    nodes.engine.resume()
    nodes.advance(20)
    assert nodes.presence() == [JOINED]
    assert len(one.do(one.server.devices("ann"))) == 2


def test_a_user_who_had_left_with_a_node_that_only_slept_is_there_when_the_register_is_lost_before_left_has_fired():
    nodes = Nodes(2)
    one, two = nodes
    nodes.join(two)
    nodes.advance(8)
    nodes.sleep(two)
    claim = held_up(one.broker, "claim")
    nodes.advance(6)
    assert one.cluster.firing._open  # it has reaped, and wants to fire `left`
    nodes.engine.pause()
    nodes.engine.forget()
    claim.set_exception(WseError(ErrorCode.BROKER_UNAVAILABLE))
    nodes.engine.resume()
    nodes.wake(two)
    nodes.advance(20)
    assert nodes.presence() == [JOINED]


def test_a_user_who_had_left_with_a_dead_node_leaves_when_the_register_is_lost_before_left_has_fired():
    nodes = Nodes(2)
    one, two = nodes
    nodes.join(two)
    nodes.advance(8)
    nodes.kill(two)
    claim = held_up(one.broker, "claim")
    nodes.advance(6)
    assert one.cluster.firing._open
    nodes.engine.pause()
    nodes.engine.forget()
    claim.set_exception(WseError(ErrorCode.BROKER_UNAVAILABLE))
    nodes.engine.resume()
    nodes.advance(20)
    assert nodes.presence() == [LEFT]
    assert one.do(one.broker.pending()) == []
