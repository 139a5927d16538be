"""Handlers with `ordered=True`: those of one connection run one after the other."""

from __future__ import annotations

import pytest

from support.core import ServerSide


class Doors:
    """Async handlers that wait at a door of their own until the test opens it."""

    def __init__(self, side):
        self.side = side
        self.log = []
        self.doors = {}

    async def __call__(self, conn, payload):
        self.log.append(("begins", conn.cid, payload))
        door = self.doors[payload] = self.side.scheduler.create_future()
        try:
            await door
        finally:
            self.log.append(("ends", conn.cid, payload))
        return payload

    def open(self, payload):
        self.doors[payload].set_result(None)
        self.side.scheduler.run()

    @property
    def inside(self):
        ended = {entry[1:] for entry in self.log if entry[0] == "ends"}
        return [entry[1:] for entry in self.log if entry[0] == "begins" and entry[1:] not in ended]


@pytest.fixture
def side():
    return ServerSide(conns_per_user=2)


@pytest.fixture
def doors(side):
    return Doors(side)


@pytest.fixture
def order(side):
    return side.endpoint.channel._order


def say(side, peer, *message):
    peer.say(*message)
    side.scheduler.run()


def test_messages_and_calls_of_a_connection_run_in_the_order_in_which_they_came(side, doors, order):
    side.endpoint.channel.on("edit", doors, ordered=True)
    side.endpoint.procedures.register("save", doors, ordered=True)
    peer = side.join()
    say(side, peer, "edit", 1)
    say(side, peer, "save", 2, "s")
    say(side, peer, "edit", 3)
    for number in (1, 2, 3):
        assert doors.inside == [("ann", number)]
        doors.open(number)
    assert peer.heard == [("~wse:response", 2, "s")]
    assert len(order) == 0


def test_connections_do_not_wait_for_each_other(side, doors):
    side.endpoint.channel.on("edit", doors, ordered=True)
    ann, bob = side.join("ann"), side.join("bob")
    say(side, ann, "edit", 1)
    say(side, bob, "edit", 2)
    assert doors.inside == [("ann", 1), ("bob", 2)]


def test_a_handler_that_is_not_ordered_does_not_wait(side, doors):
    side.endpoint.channel.on("edit", doors, ordered=True)
    side.endpoint.channel.on("look", doors)
    peer = side.join()
    say(side, peer, "edit", 1)
    say(side, peer, "look", 2)
    assert doors.inside == [("ann", 1), ("ann", 2)]


def test_a_plain_handler_waits_in_the_same_order(side, doors):
    heard = []
    side.endpoint.channel.on("edit", doors, ordered=True)
    side.endpoint.channel.on("note", lambda conn, payload: heard.append(payload), ordered=True)
    peer = side.join()
    say(side, peer, "edit", 1)
    say(side, peer, "note", 2)
    assert heard == []
    doors.open(1)
    assert heard == [2]


def test_an_exception_is_reported_and_the_next_runs(side, order):
    async def fails(conn, payload):
        raise ValueError(payload)

    heard = []
    side.endpoint.channel.on("edit", fails, ordered=True)
    side.endpoint.channel.on("note", lambda conn, payload: heard.append(payload), ordered=True)
    peer = side.join()
    say(side, peer, "edit", 1)
    say(side, peer, "note", 2)
    assert isinstance(side.error.__cause__, ValueError)
    assert heard == [2]
    assert len(order) == 0


@pytest.mark.parametrize("victim", [0, 1])
def test_one_that_is_cancelled_holds_up_nobody(side, doors, order, victim):
    side.endpoint.channel.on("edit", doors, ordered=True)
    peer = side.join()
    for number in (1, 2, 3):
        peer.say("edit", number)
    side.scheduler.run()
    tasks = side.scheduler.unfinished
    tasks[victim].cancel()
    side.scheduler.run()
    for number in (1, 2, 3):
        if number != victim + 1:
            assert doors.inside == [("ann", number)]
            doors.open(number)
    assert len(order) == 0


def test_one_that_is_cancelled_in_the_moment_of_its_turn_passes_it_on(side, doors, order):
    side.endpoint.channel.on("edit", doors, ordered=True)
    peer = side.join()
    for number in (1, 2, 3):
        peer.say("edit", number)
    side.scheduler.run()
    tasks = side.scheduler.unfinished
    doors.doors[1].set_result(None)
    tasks[0].add_done_callback(lambda _: tasks[1].cancel())
    side.scheduler.run()
    assert doors.inside == [("ann", 3)]
    doors.open(3)
    assert len(order) == 0


def test_off_removes_an_ordered_listener(side, doors):
    side.endpoint.channel.on("edit", doors, ordered=True)
    side.endpoint.channel.off("edit", doors)
    assert side.endpoint.channel.listener_count("edit") == 0


def test_a_stream_cannot_be_ordered(side):
    async def numbers(conn, payload):
        yield payload

    with pytest.raises(TypeError, match="cannot be ordered"):
        side.endpoint.procedures.register("numbers", numbers, ordered=True)
