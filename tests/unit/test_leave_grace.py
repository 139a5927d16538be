"""`leave_grace`: a user who goes and returns at once has been there all the time, on one server and in a cluster."""

import pytest

from support.core import ServerSide
from support.nodes import Nodes
from wse import ClusterSettings, ErrorCode, WseError, WseServer
from wse.core.hub.hub import Hub

JOINED, LEFT = ("joined", "ann"), ("left", "ann")


def presence(side):
    return [entry[:2] for entry in side.names("joined", "left")]


def online(side):
    return side.scheduler.start(side.hub.network.online()).result()


async def collect(users):
    return [user async for user in users]


# One server.


def test_a_user_who_returns_within_the_grace_has_not_left():
    side = ServerSide(leave_grace=5)
    side.join().session.closed(1001, "")
    side.scheduler.advance(4.9)
    peer = side.join()
    side.scheduler.advance(10)
    assert presence(side) == [JOINED]
    assert [entry[0] for entry in side.names("connected", "disconnected")] == ["connected", "disconnected", "connected"]
    peer.session.closed(1001, "")
    side.scheduler.advance(5)
    assert presence(side) == [JOINED, LEFT]


def test_a_user_who_does_not_return_leaves_when_the_grace_is_over_with_the_code_of_the_close():
    side = ServerSide(leave_grace=5)
    side.join().session.closed(1001, "gone")
    side.scheduler.advance(4.9)
    assert (presence(side), online(side)) == ([JOINED], 1)
    assert side.scheduler.start(collect(side.hub.network.users())).result() == ["ann"]
    side.scheduler.advance(0.1)
    assert side.names("left") == [("left", "ann", 1001, "gone")]
    assert online(side) == 0


def test_the_grace_begins_anew_each_time():
    side = ServerSide(leave_grace=5)
    for _ in range(5):
        side.join().session.closed(1001, "")
        side.scheduler.advance(4)
    assert presence(side) == [JOINED]
    side.scheduler.advance(1)
    assert presence(side) == [JOINED, LEFT]


def test_a_user_with_another_device_needs_no_grace():
    side = ServerSide(leave_grace=5, conns_per_user=2)
    one, two = side.join(), side.join()
    one.session.closed(1001, "")
    side.scheduler.advance(4)
    two.session.closed(1000, "")
    side.scheduler.advance(4)
    assert presence(side) == [JOINED]
    side.scheduler.advance(1)
    assert side.names("left") == [("left", "ann", 1000, "")]


def test_a_server_that_closes_does_not_wait_for_the_grace():
    side = ServerSide(leave_grace=5)
    side.join().session.closed(1001, "")
    side.scheduler.start(side.hub.network.close())
    assert presence(side) == [JOINED, LEFT]
    side.scheduler.advance(10)
    assert presence(side) == [JOINED, LEFT]


@pytest.mark.parametrize("grace", [-1, float("nan"), float("inf")])
def test_a_grace_that_makes_no_sense_is_rejected(grace):
    with pytest.raises(ValueError, match="leave_grace"):
        WseServer(leave_grace=grace)


def test_there_is_no_grace_by_default():
    assert Hub.__init__.__kwdefaults__["leave_grace"] == 0
    side = ServerSide()
    side.join().session.closed(1001, "")
    assert presence(side) == [JOINED, LEFT]


# A cluster.


@pytest.mark.parametrize("back_at", [0, 1])
def test_a_user_who_returns_to_any_node_within_the_grace_has_not_left(back_at):
    nodes = Nodes(2, leave_grace=5)
    nodes.join(nodes[0]).session.closed(1001, "")
    nodes.advance(4)
    assert nodes[1].do(nodes[1].server.online()) == 1
    peer = nodes.join(nodes[back_at])
    nodes.advance(20)
    assert nodes.presence() == [JOINED]
    assert [device.conn_id for device in nodes[0].do(nodes[0].server.devices("ann"))] == [peer.conn.conn_id]
    peer.session.closed(1000, "")
    nodes.advance(6)
    assert nodes.presence() == [JOINED, LEFT] or sorted(nodes.presence()) == [JOINED, LEFT]
    assert [node.leftovers for node in nodes] == [[], []]


def test_a_user_who_returns_to_no_node_leaves_when_the_grace_is_over():
    nodes = Nodes(2, leave_grace=5)
    nodes.join(nodes[0]).session.closed(1001, "gone")
    nodes.advance(4.5)
    assert nodes.presence() == [JOINED]
    nodes.advance(1)
    assert nodes.log("left") == [("left", "ann", 1001, "gone")]
    assert nodes[0].leftovers == []
    assert nodes[1].do(nodes[1].server.online()) == 0


def test_a_device_that_is_away_is_not_shown_and_not_called_and_takes_nobody_s_place():
    nodes = Nodes(2, leave_grace=5, conns_per_user=2)
    one, two = nodes
    old = nodes.join(two)
    nodes.join(one).session.closed(1001, "")
    nodes.run()
    assert [device.node for device in one.do(one.server.devices("ann"))] == [two.cluster.node]
    assert len(one.do(one.cluster.callees("ann"))) == 1
    nodes.join(two)
    assert old.closed_with is None
    nodes.advance(20)
    assert nodes.presence() == [JOINED]
    assert one.leftovers == []


def test_when_a_node_dies_users_in_their_grace_leave_with_it():
    nodes = Nodes(2, leave_grace=60)
    nodes.join(nodes[1]).session.closed(1001, "")
    nodes.advance(8)
    nodes.kill(nodes[1])
    nodes.advance(10)
    assert nodes.presence() == [LEFT]


def test_a_node_that_closes_does_not_wait_for_the_grace():
    nodes = Nodes(2, leave_grace=60)
    nodes.join(nodes[1]).session.closed(1001, "")
    nodes.run()
    nodes[1].do(nodes[1].cluster.close())
    nodes.advance(1)
    assert nodes.presence() == [JOINED, LEFT]
    nodes.advance(100)
    assert nodes.presence() == [JOINED, LEFT]


def test_a_user_in_the_grace_leaves_once_when_the_register_was_lost():
    nodes = Nodes(2, leave_grace=60)
    nodes.join(nodes[1]).session.closed(1001, "")
    nodes.advance(2)
    nodes.engine.forget()
    nodes.advance(100)
    assert nodes.presence() == [JOINED, LEFT]
    assert nodes[1].leftovers == []


def test_that_a_device_is_away_is_said_again_when_the_broker_did_not_answer():
    nodes = Nodes(1, leave_grace=60)
    (one,) = nodes
    set_away = one.broker.set_away

    async def fail(device):
        one.broker.set_away = set_away
        raise WseError(ErrorCode.BROKER_UNAVAILABLE)

    one.broker.set_away = fail
    nodes.join(one).session.closed(1001, "")
    nodes.run()
    (record,) = nodes.engine._users.values()
    assert [device.away for device in record.devices.values()] == [False]
    nodes.advance(2)
    assert [device.away for device in record.devices.values()] == [True]


def test_in_a_cluster_too_the_grace_ends_with_the_return_to_the_same_node():
    nodes = Nodes(1, leave_grace=60, conns_per_user=2)
    (one,) = nodes
    nodes.join(one).session.closed(1001, "")
    nodes.run()
    new = nodes.join(one)
    assert one.cluster.presence._graces == {}
    (record,) = nodes.engine._users.values()
    assert [*record.devices] == [new.conn.conn_id]
    assert not any(timer.args == ("sann",) and not timer.cancelled for _, _, timer in one.scheduler._timers)


def test_of_several_devices_that_end_only_the_last_one_stays_for_the_grace():
    nodes = Nodes(1, leave_grace=60, conns_per_user=3)
    (one,) = nodes
    first, second = nodes.join(one), nodes.join(one)
    (record,) = nodes.engine._users.values()
    first.session.closed(1001, "")
    nodes.run()
    second.session.closed(1001, "")
    nodes.run()
    assert [*record.devices] == [second.conn.conn_id]
    nodes.advance(60)
    assert record.devices == {}
    assert nodes.presence() == [JOINED, LEFT]


def test_the_grace_ends_in_time_whatever_else_the_node_does_seldom():
    nodes = Nodes(1, ClusterSettings(lease_ttl=1000, renew_interval=500), leave_grace=5)
    nodes.join(nodes[0]).session.closed(1001, "")
    nodes.advance(4.75)
    assert nodes.presence() == [JOINED]
    nodes.advance(0.25)
    assert nodes.presence() == [JOINED, LEFT]
