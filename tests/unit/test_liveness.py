"""The lease and the canary of a node: when it is healthy, and when it looks for dead nodes."""

import asyncio

import pytest

from support.nodes import Nodes, heard
from wse import ErrorCode, WseError
from wse.core.cluster.settings import ClusterSettings


def restart(node):
    node.do(node.cluster.close())
    node.do(node.cluster.open())


def counted(broker, name):
    """Count a step of the broker; returns a function that tells how often it was made since the last look."""
    step, times = getattr(broker, name), []

    async def count(*args, **options):
        times.append(name)
        return await step(*args, **options)

    setattr(broker, name, count)

    def since_the_last_look():
        count = len(times)
        times.clear()
        return count

    return since_the_last_look


# The canary.


@pytest.mark.parametrize("before", ["nothing", "a canary that returned", "a restart", "a broker that was away"])
def test_a_broker_is_deaf_when_a_canary_is_due_and_the_last_three_have_not_returned(before):
    nodes = Nodes(1)
    (one,) = nodes
    if before == "a canary that returned":
        nodes.advance(10)
    if before == "a restart":
        one.broker.deaf = True
        nodes.advance(2)
        restart(one)
    if before == "a broker that was away":
        one.broker.deaf = True
        nodes.advance(2)
        nodes.engine.pause()
        nodes.advance(2)
        nodes.engine.resume()
        one.errors.clear()
    one.broker.deaf = True
    nodes.advance(3.75)
    assert one.codes == []
    assert one.cluster.healthy
    nodes.advance(0.25)
    assert one.codes == [ErrorCode.BROKER_DEAF]
    assert not one.cluster.healthy


def test_a_node_that_was_deaf_is_healthy_when_it_is_started_again():
    nodes = Nodes(1)
    (one,) = nodes
    one.broker.deaf = True
    nodes.advance(5)
    assert not one.cluster.healthy
    restart(one)
    assert one.cluster.healthy


def test_a_broker_that_is_deaf_twice_is_reported_twice():
    nodes = Nodes(1)
    (one,) = nodes
    for _ in range(2):
        one.broker.deaf = True
        nodes.advance(6)
        one.broker.deaf = False
        nodes.advance(2)
    assert one.codes == [ErrorCode.BROKER_DEAF] * 2
    assert one.cluster.healthy


# The lease.


def test_a_node_is_healthy_until_its_lease_has_run_out():
    nodes = Nodes(1)
    (one,) = nodes
    nodes.sleep(one)
    nodes.advance(4.75)
    one.scheduler.now = nodes.clock.now
    assert one.cluster.healthy
    nodes.advance(0.25)
    one.scheduler.now = nodes.clock.now
    assert not one.cluster.healthy


def test_a_lease_is_not_renewed_twice_at_a_time():
    nodes = Nodes(1)
    (one,) = nodes
    renew, gate = one.broker.renew, asyncio.Future(loop=one.scheduler)
    begun = []

    async def slow(*args, **options):
        begun.append(args)
        await gate
        return await renew(*args, **options)

    one.broker.renew = slow
    nodes.advance(4)
    assert len(begun) == 1
    gate.set_result(None)
    nodes.advance(2)
    assert len(begun) == 3


def test_a_broker_that_returns_after_its_node_has_closed_is_asked_for_no_lease():
    nodes = Nodes(1)
    (one,) = nodes
    one.do(one.cluster.close())
    renewed = counted(one.broker, "renew")
    one.cluster.inbox.connection_restored()
    nodes.advance(2)
    assert renewed() == 0


def test_a_node_that_has_closed_leaves_no_timer():
    nodes = Nodes(1)
    (one,) = nodes
    nodes.advance(3)
    assert len(one.scheduler.timers) == 2
    one.do(one.cluster.close())
    assert one.scheduler.timers == []


# The search for dead nodes.


def test_a_node_looks_for_dead_nodes_when_it_has_held_its_lease_for_as_long_as_one_lasts():
    nodes = Nodes(1)
    reaped = counted(nodes[0].broker, "reap")
    nodes.advance(4.75)
    assert reaped() == 0
    nodes.advance(0.25)
    assert reaped() == 1
    nodes.advance(3)
    assert reaped() == 3


@pytest.mark.parametrize("what", ["a restart", "a failure", "a lost connection", "a sleep for as long as a lease"])
def test_a_node_waits_for_as_long_as_a_lease_lasts_after(what):
    nodes = Nodes(1)
    (one,) = nodes
    nodes.advance(10)
    reaped = counted(one.broker, "reap")
    if what == "a restart":
        restart(one)
    elif what == "a failure":
        renew = one.broker.renew

        async def fail(*args, **options):
            raise WseError(ErrorCode.BROKER_UNAVAILABLE)

        one.broker.renew = fail
        nodes.advance(1)
        one.broker.renew = renew
        nodes.advance(1)
    elif what == "a lost connection":
        nodes.engine.pause()
        nodes.engine.resume()
        nodes.run()
    else:
        nodes.sleep(one)
        nodes.advance(5)
        nodes.wake(one)
    assert reaped() == 0
    nodes.advance(4.75)
    assert reaped() == 0
    nodes.advance(0.25)
    assert reaped() == 1


def test_a_node_that_renews_in_time_goes_on_looking_for_dead_nodes():
    nodes = Nodes(1, ClusterSettings(lease_ttl=5, renew_interval=4.75))
    nodes.advance(19)
    reaped = counted(nodes[0].broker, "reap")
    nodes.advance(19)
    assert reaped() == 4


def test_a_connection_that_is_lost_and_restored_while_a_node_finds_its_lease_lost_is_no_harm():
    nodes = Nodes(2)
    one, two = nodes
    nodes.join(one)
    two.broker.deaf = True  # it does not answer what one asks
    nodes.engine.forget()
    nodes.advance(1)
    nodes.engine.pause()
    nodes.engine.resume()
    nodes.advance(6)
    assert one.cluster.healthy
    assert one.do(all_users(one)) == ["ann"]


async def all_users(node):
    return [user async for user in node.cluster.users()]


def test_a_node_that_is_there_when_another_looks_is_one_of_its_peers():
    nodes = Nodes(1)
    (one,) = nodes
    one.broker.deaf = True  # it does not hear that another one starts
    two = nodes.start()
    nodes.run()
    assert one.cluster.bus.peers == frozenset()
    nodes.advance(6)
    assert one.cluster.bus.peers == {two.cluster.node}


# The backlog, which a renewal publishes.


def test_a_backlog_that_was_published_leaves_all_its_room():
    nodes = Nodes(2, ClusterSettings(backlog_bytes=1000))
    one, two = nodes
    peer = nodes.join(two)
    for _ in range(2):
        nodes.engine.pause()
        nodes.run()
        one.server.send("ann", "say", "x" * 800)
        nodes.engine.resume()
        nodes.advance(10)
    assert heard(peer) == [[("say", "x" * 800)] * 2]
    assert one.cluster.bus.lost == 0
