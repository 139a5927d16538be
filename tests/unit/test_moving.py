"""Sessions that move from node to node, because their clients come back to another one."""

from __future__ import annotations

import msgspec
import pytest

from support.moves import STEPS, Cluster, answered, at, plain, say_hi, stepwise
from wse.core.cluster import envelope
from wse.core.cluster.registration import State
from wse.core.cluster.transfer import SILENT, Question
from wse.core.limits import Overflow
from wse.errors import ErrorCode, WseError
from wse.protocols.json import WseJSON
from wse.protocols.msgpack import WseMsgpack


def test_a_client_that_comes_back_to_another_node_finds_its_session_there():
    nodes = Cluster()
    one, two = nodes
    peer = nodes.first(one)
    conn = peer.conn
    peer.say("chat", 1)
    peer.say("chat", 2)
    for n in range(3):
        conn.send("news", n)
    peer.vanish()
    conn.send("news", 3)
    new = nodes.back(two, peer, got=1, sent=[2, 2])
    answer, messages = answered(new)
    assert answer == {"id": f"{conn.conn_id}.{two.cluster.node}", "got": 2}
    assert plain(messages) == [("news", 1), ("news", 2), ("news", 3)]
    session = nodes.session(two, new)
    assert session.conn.conn_id == conn.conn_id
    session.send("news", 4)
    assert plain(new.heard) == [("news", 4)]
    assert conn.conn_id not in one.hub.connections
    assert one.names("disconnected") == [("disconnected", "ann", 4000, "wse.moved")]
    assert [entry[0] for entry in two.log if entry[0] != "write"] == ["connected", "resumed"]
    assert nodes.presence() == [("joined", "ann")]
    assert session.conn.moved
    assert not conn.moved


def test_the_device_is_the_new_node_s_in_the_register():
    nodes = Cluster()
    one, two = nodes
    peer = nodes.first(one)
    other = nodes.first(two)
    peer.vanish()
    new = nodes.back(two, peer)
    answered(new)
    devices = two.do(two.cluster.devices("ann"))
    assert [(device.conn_id, device.node) for device in devices] == [
        (peer.conn.conn_id, two.cluster.node),
        (other.conn.conn_id, two.cluster.node),
    ]
    nodes.advance(60)
    assert nodes.presence() == [("joined", "ann")]
    new.vanish(1000)
    other.vanish(1000)
    nodes.advance(5)
    assert nodes.presence() == [("joined", "ann"), ("left", "ann")]
    assert [node.leftovers for node in nodes] == [[], []]


def test_a_session_goes_back_and_forth():
    nodes = Cluster(3)
    peer = nodes.first(nodes[0])
    peer.conn.send("news", 0)
    for n in range(1, 10):
        node = nodes[n % 3]
        if n % 2:
            peer.vanish()
        peer = nodes.back(node, peer, got=n - 1)
        answer, messages = answered(peer)
        assert plain(messages) == [("news", n - 1)]
        assert answer["got"] == 0
        nodes.session(node, peer).send("news", n)
    nodes.advance(30)
    assert nodes.presence() == [("joined", "ann")]
    assert sum(len(node.hub.connections) for node in nodes) == 1


def test_messages_from_everywhere_arrive_once_and_in_order():
    nodes = Cluster(3)
    one = nodes[0]
    peer = nodes.first(one)
    one.hub.rooms.add("lobby", peer.conn)
    sent = []

    def send(number):
        for which, node in enumerate(nodes):
            node.hub.send("ann", "user", (which, number))
            node.hub.rooms.send("lobby", "room", (which, number), None)
            node.hub.broadcast("all", (which, number))
        sent.append(number)

    heard = []
    got = 0
    for turn in range(12):
        send(3 * turn)
        nodes.run()
        if turn % 2:
            peer.vanish()
        else:
            send(3 * turn + 1)
            nodes.run()
        heard += (new := plain(peer.heard))
        got += len(new)
        # While the client comes, messages are sent at every step of the move.
        node = nodes[(turn + 1) % 3]
        back = node.open()
        back.say(
            "~wse:hi", {"identity": "ann", "meta": {}, "ext": {"resume": {**peer.ticket, "got": got, "sent": [1, 0]}}}
        )
        while any(each.scheduler._soon for each in nodes):
            for each in nodes:
                for _ in range(len(each.scheduler._soon)):
                    timer = each.scheduler._soon.popleft()
                    if not timer.cancelled:
                        timer.callback(*timer.args)
            if len(sent) < 40 * (turn + 1):
                send(1000 * (turn + 1) + len(sent))
        back.ticket = dict(peer.ticket)
        answer, messages = answered(back)
        assert "lost" not in answer
        heard += plain(messages)
        got += len(messages)
        peer = back
    for kind in ("user", "room", "all"):
        for which in range(3):
            assert [n for k, (w, n) in heard if (k, w) == (kind, which)] == sent


def test_a_message_that_a_listener_sends_while_another_is_delivered_is_told_from_it():
    nodes = Cluster()
    one, two = nodes
    peer = nodes.first(one)
    peer.vanish()
    sends = []
    two.hub.connected(lambda conn: sends.append(two.hub.send("ann", "hello", 1)))
    new = nodes.back(two, peer)
    two.hub.send("ann", "hello", 2)
    _, messages = answered(new)
    assert plain(messages) == [("hello", 1), ("hello", 2)]


def test_an_answer_that_is_being_worked_on_at_the_old_node_comes_through_the_new_one():
    nodes = Cluster()
    one, two = nodes
    wait = one.scheduler.create_future()

    async def slow(conn, payload):
        await wait
        return payload + 1

    one.endpoint.procedures.register("slow", slow)
    peer = nodes.first(one)
    peer.say("slow", 1, 7)
    peer.say("slow", "x", 8)
    nodes.run()
    peer.vanish()
    new = nodes.back(two, peer, sent=[1, 2])
    answer, messages = answered(new)
    assert (answer["got"], messages) == (2, [])
    wait.set_result(None)
    nodes.run()
    (first, payload, stamp), (second, error, other) = new.heard
    assert (first, payload, stamp) == ("~wse:response", 2, 7)
    assert (second, error["code"], other) == ("~wse:response-err", "wse.server.rp.failed", 8)
    assert nodes.session(two, new).ledger.out == 2


def test_streams_of_a_session_that_moves_end_and_other_calls_are_answered():
    nodes = Cluster()
    nodes.ext = {"calls": {"timeout": 0}}
    one, two = nodes
    wait = one.scheduler.create_future()
    ended = []

    async def numbers(conn, payload):
        try:
            for n in range(10):
                yield n
        finally:
            ended.append("numbers")

    async def total(conn, payload, items):
        return sum([item async for item in items])

    async def slow(conn, payload):
        await wait
        return payload

    one.endpoint.procedures.register("numbers", numbers)
    one.endpoint.procedures.register("total", total, upload=True)
    one.endpoint.procedures.register("slow", slow, cancel=True)
    peer = nodes.first(one)
    peer.say("~wse:call", ["numbers", None, {"n": 1}], 1)
    peer.say("~wse:call", ["total", None, {"up": 1}], 2)
    peer.say("slow", 5, 3)
    nodes.run()
    session = nodes.session(one, peer)
    got = len(peer.heard)
    peer.vanish()
    new = nodes.back(two, peer, got=got, sent=[1, 3])
    wait.set_result(None)
    nodes.run()
    _, messages = answered(new)
    answers = {stamp: (kind, payload) for kind, payload, stamp in messages}
    assert answers.pop(3) == ("~wse:response", 5)
    assert {stamp: (kind, error["code"]) for stamp, (kind, error) in answers.items()} == {
        1: ("~wse:response-err", "wse.client.rp.disconnect"),
        2: ("~wse:response-err", "wse.client.rp.disconnect"),
    }
    assert answers[1][1]["details"]["arrived"] is True
    assert ended == ["numbers"]
    assert not session.tasks


def test_the_client_is_told_that_nobody_waits_for_the_calls_of_the_old_node():
    nodes = Cluster()
    nodes.ext = {"calls": {"timeout": 0}}
    one, two = nodes
    peer = nodes.first(one)
    session = nodes.session(one, peer)
    session.ask("numbers", None, 0, window=4)
    task = peer.call("slow")
    nodes.run()
    got = len(peer.heard)
    peer.vanish()
    new = nodes.back(two, peer, got=got)
    _, messages = answered(new)
    assert messages == [("~wse:cancel", None, 1), ("~wse:cancel", None, 2)]
    assert task.exception().code == "wse.client.rp.disconnect"


def test_an_answer_follows_a_session_that_moves_on_and_waits_while_its_client_is_away():
    nodes = Cluster(3)
    wait = nodes[0].scheduler.create_future()

    async def slow(conn, payload):
        await wait
        return "done"

    nodes[0].endpoint.procedures.register("slow", slow)
    peer = nodes.first(nodes[0])
    peer.say("slow", None, 7)
    nodes.run()
    second = nodes.back(nodes[1], peer, sent=[1, 1])
    answered(second)
    third = nodes.back(nodes[2], second, sent=[2, 1])
    answered(third)
    third.vanish()
    wait.set_result(None)
    nodes.run()
    fourth = nodes.back(nodes[2], third, sent=[2, 1])
    assert answered(fourth)[1] == [("~wse:response", "done", 7)]


def test_calls_of_the_old_node_fail_and_say_whether_they_have_arrived():
    nodes = Cluster()
    one, two = nodes
    peer = nodes.first(one)
    had, missed = peer.call("ask", 1), peer.call("ask", 2)
    peer.vanish()
    unsent = one.scheduler.start(peer.session.call("ask", 3, None))
    new = nodes.back(two, peer, got=1)
    _, messages = answered(new)
    assert messages == [("~wse:gap", 1, None)]  # nobody waits for these
    for call, arrived in ((had, True), (missed, False), (unsent, False)):
        error = call.exception()
        assert error.code == ErrorCode.RP_DISCONNECT
        assert error.details["disconnected"] == [4000, "wse.moved"]
        assert error.details["arrived"] is arrived
    call = two.scheduler.start(nodes.session(two, new).call("ask", 4, None))
    ((_, _, stamp),) = new.heard
    assert stamp == 4  # a late answer to the others settles nothing
    new.say("~wse:response", "late", 1)
    new.say("~wse:response", "four", stamp)
    nodes.run()
    assert call.result() == "four"


def test_a_call_reaches_a_device_that_is_on_its_way_and_one_that_has_moved():
    nodes = Cluster(3)
    one, two, three = nodes
    peer = nodes.first(one)
    peer.vanish()
    move, two.broker.move = two.broker.move, None  # the register hears of it late

    async def late(device, origin):
        nodes.held = (device, origin)
        return await two.scheduler.create_future()

    two.broker.move = late
    new = nodes.back(two, peer)
    answered(new)
    call = three.scheduler.start(three.hub.call("ann", "ask", 1, "any", None))
    nodes.run()
    ((name, payload, stamp),) = new.heard
    assert (name, payload) == ("ask", 1)
    new.say("~wse:response", "here", stamp)
    nodes.run()
    assert call.result() == "here"
    two.broker.move = move


@pytest.mark.parametrize(
    ("claim", "why"),
    [
        ({"key": "x" * 22}, "unknown"),
        ({"key": ""}, "unknown"),
        ({"got": 1}, "mismatch"),
        ({"cid": "eve"}, "user"),
        ({"sent": [3, 3]}, "gap"),
    ],
)
def test_a_claim_that_does_not_fit_gets_nothing_from_another_node(claim, why):
    nodes = Cluster()
    one, two = nodes
    peer = nodes.first(one)
    peer.say("chat", 1)
    peer.vanish()
    peer.conn.send("secret", 1)
    new = nodes.back(two, peer, **{"sent": [2, 1], **claim})
    answer, messages = answered(new)
    assert answer["lost"]["why"] == why
    assert messages == []
    assert ("disconnected", "ann", 4000, "wse.moved") not in one.log
    if why == "gap":
        assert answer["lost"]["got"] == 1
        assert "disconnected" in [entry[0] for entry in one.log]
    else:  # the honest session goes on
        honest = nodes.back(two, peer, sent=[2, 1])
        assert plain(answered(honest)[1]) == [("secret", 1)]
    if why == "user":
        assert one.codes == ["wse.server.protocol-violation"]


def test_a_client_that_speaks_another_protocol_begins_anew():

    nodes = Cluster(protocols=(WseJSON(), WseMsgpack()))
    one, two = nodes
    peer = nodes.first(one)
    peer.vanish()
    new = two.open(protocol=two.endpoint.protocols[1])
    offer = {**peer.ticket, "got": 0, "sent": [1, 0]}
    new.say(new.protocol.internal_types.hi, {"identity": "ann", "ext": {"resume": offer}})
    nodes.run()
    (_, ext, _), _ = new.heard
    assert ext["resume"]["lost"] == {"why": "protocol", "got": 0}


@pytest.mark.parametrize(
    "id_",
    [
        "{conn}.{dead}",
        "{conn}.x",
        "{conn}.",
        "{conn}.*",
        "{conn}.n.{node}",
        "{conn}",
        ".{node}",
        "x.{node}",
        "{conn}.>",
    ],
)
def test_a_forged_id_costs_a_moment_at_most(id_):
    nodes = Cluster()
    one, two = nodes
    peer = nodes.first(one)
    forged = id_.format(conn=peer.conn.conn_id, dead="f" * 16, node=one.cluster.node)
    new = two.open()
    offer = {"id": forged, "key": "k" * 22, "got": 0, "sent": [1, 0]}
    new.say("~wse:hi", {"identity": "eve", "ext": {"resume": offer}})
    nodes.advance(SILENT + 1)
    (_, ext, _), (kind, *_) = new.heard
    assert kind == "~wse:welcome"
    assert ext["resume"]["lost"] == {"why": "unknown", "got": None}
    assert peer.session.valid
    assert [node.errors for node in nodes] == [[], []]


def test_a_client_that_is_refused_causes_no_traffic():
    nodes = Cluster()
    one, two = nodes
    peer = nodes.first(one)
    two.hub.identify = lambda auth: auth.refuse()
    published = []
    publish = two.broker.publish
    two.broker.publish = lambda topic, data: (published.append(topic), publish(topic, data))
    new = nodes.back(two, peer)
    assert new.closed_with == (1000, "wse.not-authorized")
    assert published == []
    assert peer.session.valid


def test_an_identify_handler_may_ask_another_node_whose_session_it_is():
    nodes = Cluster(3)
    one, two, three = nodes
    found = []

    async def identify(auth):
        returning = await auth.resuming()
        found.append(returning)
        auth.accept(returning.cid if returning else auth.identity)

    peer = nodes.first(one)
    peer.vanish()
    for node in two, three:
        node.hub.identify = identify
    new = nodes.back(two, peer, cid="whoever")
    answered(new)
    assert found.pop() == ("ann", {})
    again = nodes.back(three, peer, cid="whoever", id=peer.ticket["id"])  # as one that has missed the answer
    answer, _ = answered(again)
    assert found.pop() == ("ann", {})
    assert "lost" not in answer
    nodes.back(two, again, cid="eve", key="k" * 22)
    assert found.pop() is None
    assert nodes.presence()[0] == ("joined", "ann")


def test_a_client_that_has_missed_the_answer_asks_the_old_node_and_is_sent_on():
    nodes = Cluster(3)
    one, two, three = nodes
    peer = nodes.first(one)
    peer.conn.send("news", 1)
    nodes.back(two, peer)  # the answer is lost
    new = nodes.back(three, peer)
    assert plain(answered(new)[1]) == [("news", 1)]
    back = nodes.back(one, peer)
    assert plain(answered(back)[1]) == [("news", 1)]
    assert nodes.session(one, back).valid


def test_nodes_that_send_a_client_in_circles_are_left_alone():
    nodes = Cluster(3)
    one, two, three = nodes
    peer = nodes.first(one)
    second = nodes.back(two, peer)
    answered(second)
    nodes.session(two, second).close(1000, "")
    for node, to in ((one, two), (two, one)):
        stones = node.hub.resumption._tombstones
        conn_id = peer.ticket["id"].partition(".")[0]
        stones[conn_id] = stones[conn_id]._replace(to=to.cluster.node)
    new = nodes.back(three, peer)
    nodes.advance(SILENT)
    answer, _ = answered(new)
    assert answer["lost"] == {"why": "unreachable", "got": None}


def test_a_node_that_does_not_answer_has_lost_the_session():
    nodes = Cluster()
    one, two = nodes
    peer = nodes.first(one)
    nodes.sleep(one)
    new = nodes.back(two, peer)
    assert new.heard == []
    nodes.advance(SILENT)
    answer, _ = answered(new)
    assert answer["lost"] == {"why": "unreachable", "got": None}
    nodes.advance(30)
    nodes.wake(one)
    nodes.advance(10)
    assert nodes.presence() == [("joined", "ann")]


def test_a_node_that_is_dead_is_not_waited_for():
    nodes = Cluster()
    one, two = nodes
    peer = nodes.first(one)
    nodes.kill(one)
    nodes.advance(20)
    new = nodes.back(two, peer)
    answer, _ = answered(new)
    assert answer["lost"] == {"why": "unknown", "got": None}


def test_a_session_is_lost_while_the_broker_is_away():
    nodes = Cluster()
    one, two = nodes
    peer = nodes.first(one)
    nodes.engine.pause()
    nodes.run()
    new = nodes.back(two, peer)
    answer, _ = answered(new)
    assert answer["lost"] == {"why": "unreachable", "got": None}
    nodes.engine.resume()
    nodes.advance(30)


def test_a_session_whose_end_came_first_tells_it_at_another_node():
    nodes = Cluster()
    one, two = nodes
    expired, dropped, away = nodes.first(one), nodes.first(one, "bob"), nodes.first(one, "cy")
    expired.vanish()
    nodes.advance(61)
    new = nodes.back(two, expired, sent=[1, 1])
    assert answered(new)[0]["lost"] == {"why": "expired", "got": 0}
    dropped.vanish()
    two.hub.drop_client("bob", "banned", 4001)
    nodes.run()
    new = nodes.back(two, dropped, cid="bob")
    assert new.closed_with == (4001, "banned")
    away.vanish()
    for _ in range(300):
        one.hub.send("cy", "bulk", "x" * 1000)
    nodes.run()
    new = nodes.back(two, away, cid="cy")
    assert answered(new)[0]["lost"] == {"why": "overflow", "got": 0}


def in_each(do, steps=30):
    """Does something before each of the first steps."""
    counted = [0]

    def count():
        counted[0] += 1
        if counted[0] <= steps:
            do()

    return count


@pytest.mark.parametrize("step", STEPS)
def test_a_user_who_is_dropped_during_the_move_is_dropped(step):
    nodes = Cluster()
    one, two = nodes
    peer = nodes.first(one)
    new = say_hi(two, peer)
    stepwise(nodes, at(step, lambda: one.hub.drop_client("ann", "banned", 4001)))
    nodes.advance(5)
    assert new.closed_with == (4001, "banned")
    assert nodes.presence() == [("joined", "ann"), ("left", "ann")]
    assert [node.leftovers for node in nodes] == [[], []]


@pytest.mark.parametrize("step", STEPS)
def test_a_room_that_is_entered_during_the_move_is_entered(step):
    nodes = Cluster()
    one, two = nodes
    peer = nodes.first(one)
    new = say_hi(two, peer)
    sent, entered = [], []

    def enter():
        for node in nodes:
            if peer.conn.conn_id in node.hub.connections:
                entered.append(node)
                node.hub.rooms.add("lobby", node.hub.connections[peer.conn.conn_id])
        for _ in range(2):
            sent.append(len(sent))
            one.hub.rooms.send("lobby", "room", sent[-1], None)

    stepwise(nodes, at(step, enter))
    one.hub.rooms.send("lobby", "room", "last", None)
    nodes.run()
    heard = [payload for kind, payload in plain(new.heard) if kind == "room"]
    assert heard == ([0, 1, "last"] if entered else [])


@pytest.mark.parametrize("step", STEPS)
def test_a_user_who_is_put_into_a_room_from_another_node_during_the_move_is_in_it(step):
    nodes = Cluster(3)
    one, two, three = nodes
    peer = nodes.first(one)
    new = say_hi(two, peer)
    stepwise(nodes, at(step, lambda: three.hub.rooms.enter_elsewhere("lobby", "ann", enter=True)))
    assert "lobby" in two.hub.rooms.of(nodes.session(two, new).conn)
    assert one.hub.rooms.of(peer.conn) == ()


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("where", [0, 1, 2])
def test_a_client_that_goes_during_the_move_can_come_back_anywhere(step, where):
    nodes = Cluster(3)
    one, two, _ = nodes
    peer = nodes.first(one)
    peer.conn.send("news", 1)
    new = say_hi(two, peer)
    back = []
    stepwise(nodes, at(step, lambda: (new.vanish(), back.append(say_hi(nodes[where], peer)))))
    nodes.advance(SILENT)
    again = back[0]
    assert again.closed_with is None
    answer, messages = answered(again)
    assert "lost" not in answer
    assert plain(messages) == [("news", 1)]
    nodes.advance(10)
    assert nodes.presence() == [("joined", "ann")]
    assert sum(len(node.hub.connections) for node in nodes) == 1


@pytest.mark.parametrize("step", STEPS)
def test_a_client_that_comes_to_two_nodes_at_once_has_its_session_at_one(step):
    nodes = Cluster(3)
    one, two, three = nodes
    peer = nodes.first(one)
    peer.conn.send("news", 1)
    first, later = say_hi(two, peer), []
    stepwise(nodes, at(step, lambda: later.append(say_hi(three, peer))))
    nodes.advance(SILENT)
    winners = [one for one in (first, *later) if one.link.closes == []]
    assert len(winners) == 1
    assert plain(answered(winners[0])[1]) == [("news", 1)]
    assert sum(len(node.hub.connections) for node in nodes) == 1
    nodes.advance(30)
    assert nodes.presence() == [("joined", "ann")]


@pytest.mark.parametrize("step", STEPS)
def test_a_device_that_is_displaced_during_the_move_goes(step):
    nodes = Cluster(3, conns_per_user=1)
    one, two, three = nodes
    peer = nodes.first(one)
    new = say_hi(two, peer)
    newer = three.open()
    stepwise(nodes, at(step, lambda: newer.say("~wse:hi", {"identity": "ann"})))
    nodes.advance(30)
    assert nodes.presence() == [("joined", "ann")]
    assert sum(len(node.hub.connections) for node in nodes) == 1
    assert newer.session.valid
    assert new.closed_with == (1000, "wse.clients-concurrency")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("victim", [0, 1])
def test_a_node_that_dies_during_the_move_costs_the_session_at_most(step, victim):
    nodes = Cluster(3)
    one, two, three = nodes
    peer = nodes.first(one)
    peer.conn.send("news", 1)
    new = say_hi(two, peer)

    def kill():
        node = (one, two)[victim]
        nodes.kill(node)
        node.broker._loop = None
        node.scheduler.run()  # what it still does reaches nobody

    stepwise(nodes, at(step, kill))
    nodes.advance(SILENT)
    again = nodes.back(three, new)
    nodes.advance(SILENT)
    answer, messages = answered(again)
    assert "lost" in answer or plain(messages) == [("news", 1)]
    nodes.advance(30)
    assert len(three.hub.connections) in (1, 2)
    assert ("joined", "ann") in three.log or nodes.presence().count(("left", "ann")) == 0


@pytest.mark.parametrize("step", STEPS)
def test_answers_of_the_engine_that_are_lost_during_the_move_change_nothing(step):
    nodes = Cluster()
    one, two = nodes
    peer = nodes.first(one)
    peer.conn.send("news", 1)
    new = say_hi(two, peer)
    stepwise(nodes, at(step, lambda: setattr(nodes.engine, "answers", False)))
    nodes.advance(SILENT)
    nodes.engine.answers = True
    _, messages = answered(new)
    assert plain(messages) == [("news", 1)]
    nodes.advance(40)
    assert nodes.presence() == [("joined", "ann")]
    assert [(device.conn_id, device.node) for device in two.do(two.cluster.devices("ann"))] == [
        (peer.conn.conn_id, two.cluster.node)
    ]


def test_a_message_without_a_number_ends_the_move():
    nodes = Cluster()
    one, two = nodes
    peer = nodes.first(one)
    new = say_hi(two, peer)

    old = envelope.encode(envelope.Message("old", "news", {"wse-default-json": (True, b'["news",1,null]')}))[:-1]

    def publish():
        nodes.engine.publish(one.scheduler, "all", bytes([old[0] - 1]) + old[1:])

    stepwise(nodes, in_each(publish))
    nodes.advance(SILENT)
    answer, _ = answered(new)
    assert answer["lost"]["why"] == "unreachable"
    assert [node.errors for node in nodes] == [[], []]


def test_a_connection_is_counted_once_wherever_its_session_comes_from():
    nodes = Cluster()
    one, two = nodes
    peer = nodes.first(one)
    for node in (two, one, two):
        peer = nodes.back(node, peer)
        answered(peer)
    assert [node.endpoint.counters.opened for node in nodes] == [2, 2]


def test_a_message_larger_than_the_client_takes_is_skipped_also_on_the_way():
    nodes = Cluster()
    one, two = nodes
    peer = nodes.first(one)
    new = two.open()
    new.ticket = dict(peer.ticket)
    offer = {"resume": {**peer.ticket, "got": 0, "sent": [1, 0]}, "limits": {"message_size": 1000}}
    new.say("~wse:hi", {"identity": "ann", "ext": offer})
    stepwise(nodes, in_each(lambda: two.hub.send("ann", "news", "x" * 2000)))
    two.hub.send("ann", "news", "small")
    nodes.run()
    heard = plain(answered(new)[1])
    assert heard[-1] == ("news", "small")
    assert len(heard) + two.endpoint.counters.dropped["too-large"] == 31  # the old node knew of no limit
    assert two.endpoint.counters.dropped["too-large"] > 20


def test_a_client_that_is_gone_when_its_session_comes_is_away():
    nodes = Cluster()
    one, two = nodes
    peer = nodes.first(one)
    new = say_hi(two, peer)
    stepwise(nodes, at(STEPS[-2], new.vanish))
    nodes.run()
    names = [entry[0] for node in nodes for entry in node.log if entry[0] in ("connected", "detached", "disconnected")]
    assert names in (["connected", "disconnected", "connected", "detached"], ["connected"])


def test_data_goes_with_the_session():
    nodes = Cluster()
    one, two = nodes
    peer = nodes.first(one)
    peer.conn.data["cart"] = ["apple", 2]
    found = []
    two.hub.connected(lambda conn: found.append((conn.moved, conn.data, conn.meta)))
    answered(nodes.back(two, peer))
    assert found == [(True, {"cart": ["apple", 2]}, {})]


@pytest.mark.parametrize("data", [object(), "x" * 65536])
def test_a_session_with_data_that_cannot_travel_stays_and_its_node_says_so(data):
    nodes = Cluster()
    one, two = nodes
    peer = nodes.first(one)
    peer.conn.data["it"] = data
    new = nodes.back(two, peer)
    answer, _ = answered(new)
    assert answer["lost"] == {"why": "unreachable", "got": None}
    assert "wse.server.msg-processing-error" in one.codes
    assert peer.session.valid


def test_what_waits_in_the_outbox_keeps_its_policy_and_its_place():

    nodes = Cluster(overflow={"price": Overflow.LATEST})
    one, two = nodes
    peer = nodes.first(one)
    peer.vanish()
    for n in range(3):
        peer.conn.send("price", n, key="a")
        peer.conn.send("news", n)
    new = say_hi(two, peer)
    stepwise(nodes, lambda: None)
    _, messages = answered(new)
    assert plain(messages) == [("price", 2), ("news", 0), ("news", 1), ("news", 2)]


def test_a_message_that_breaks_every_link_is_not_sent_for_ever_from_node_to_node():
    nodes = Cluster()
    peer = nodes.first(nodes[0])
    peer.conn.send("poison", 1)
    reasons = []
    for n in range(8):
        peer.vanish()
        peer = nodes.back(nodes[(n + 1) % 2], peer)
        reasons.append(answered(peer)[0].get("lost", {}).get("why"))
    assert "stuck" in reasons


def test_too_much_for_a_session_that_is_on_its_way_is_an_overflow(monkeypatch):
    monkeypatch.setattr("wse.core.cluster.placeholder.MAX_KEPT", 2)
    nodes = Cluster()
    one, two = nodes
    peer = nodes.first(one)
    new = say_hi(two, peer)
    stepwise(nodes, in_each(lambda: two.hub.send("ann", "bulk", "x" * 500)))
    nodes.advance(SILENT)
    answer, _ = answered(new)
    assert answer["lost"]["why"] == "overflow"
    nodes.advance(61)
    assert nodes.presence() == [("joined", "ann")]
    assert len(nodes.log("connected")) == 1 + len(nodes.log("disconnected"))


def test_nobody_who_does_not_come_back_causes_traffic():
    nodes = Cluster()
    one = nodes[0]
    published = []
    for node in nodes:
        publish = node.broker.publish
        node.broker.publish = lambda topic, data, publish=publish: (published.append(topic), publish(topic, data))
    peer = nodes.first(one)
    peer.vanish()
    again = nodes.back(one, peer)
    answered(again)
    nodes.advance(0.1)
    assert [topic for topic in published if topic.startswith("n.")] == []


def test_a_user_whose_id_cannot_be_one_of_a_cluster_is_refused_and_the_session_stays():
    nodes = Cluster()
    one, two = nodes
    peer = nodes.first(one)
    two.hub.identify = lambda auth: auth.accept((1, 2))
    new = nodes.back(two, peer)
    assert new.closed_with == (1000, "wse.not-authorized")
    assert two.codes == ["wse.server.msg-processing-error"]
    assert peer.session.valid


@pytest.mark.parametrize("node", ["x", None])
def test_a_session_cannot_be_looked_for_while_the_broker_is_away(node):
    nodes = Cluster()
    one, two = nodes
    found = []

    async def identify(auth):
        found.append(await auth.resuming())
        auth.accept(auth.identity)

    two.hub.identify = identify
    peer = nodes.first(one)
    nodes.engine.pause()
    id_ = peer.ticket["id"] if node is None else peer.ticket["id"].partition(".")[0] + ".x"
    new = nodes.back(two, peer, id=id_)
    answer, _ = answered(new)
    assert answer["lost"] == {"why": "unreachable", "got": None}
    assert found == [None]
    nodes.engine.resume()
    nodes.advance(30)


def test_a_broker_that_fails_while_a_session_is_looked_for_costs_the_session(monkeypatch):
    nodes = Cluster()
    one, two = nodes
    found = []

    async def identify(auth):
        found.append(await auth.resuming())
        auth.accept(auth.identity)

    def fail(node, data):
        raise WseError(ErrorCode.BROKER_UNAVAILABLE)

    peer = nodes.first(one)
    two.hub.identify = identify
    monkeypatch.setattr(two.cluster.rpc, "_send", fail)
    new = nodes.back(two, peer)
    answer, _ = answered(new)
    assert answer["lost"] == {"why": "unreachable", "got": None}
    assert found == [None]


def test_a_node_that_keeps_no_sessions_has_none_to_hand_over():
    nodes = Cluster()
    one, two = nodes
    peer = nodes.first(one)
    three = nodes.start(resume=None)
    nodes.run()
    found = []

    async def identify(auth):
        found.append(await auth.resuming())
        auth.accept(auth.identity)

    two.hub.identify = identify
    new = nodes.back(two, peer, id=f"{peer.conn.conn_id}.{three.cluster.node}")
    assert answered(new)[0]["lost"] == {"why": "unknown", "got": None}
    assert found == [None]


def test_a_session_whose_device_is_being_registered_again_is_waited_for():
    nodes = Cluster()
    one, two = nodes
    peer = nodes.first(one)
    registration = one.cluster.presence._registrations[peer.conn.conn_id]
    registration.state, registration.is_busy = State.OUTSIDE, True
    new = nodes.back(two, peer)
    nodes.advance(0.5)
    assert new.heard == []
    registration.state, registration.is_busy = State.INSIDE, False
    nodes.advance(0.5)
    assert "lost" not in answered(new)[0]


def test_a_node_that_closes_ends_the_calls_that_it_still_handles_for_sessions_that_have_moved():
    nodes = Cluster()
    one, two = nodes

    async def slow(conn, payload):
        await one.scheduler.create_future()

    one.endpoint.procedures.register("slow", slow)
    peer = nodes.first(one)
    peer.say("slow", 1, 7)
    nodes.run()
    new = nodes.back(two, peer, sent=[1, 1])
    assert answered(new)[1] == []
    closing = one.scheduler.start(one.cluster.close())
    nodes.advance(1)
    assert closing.done()
    ((kind, _, stamp),) = new.heard
    assert (kind, stamp) == ("~wse:response-err", 7)


@pytest.mark.parametrize("step", STEPS)
def test_a_call_to_a_device_on_its_way_reaches_it(step):
    nodes = Cluster(3)
    one, two, three = nodes
    peer = nodes.first(one)
    new = say_hi(two, peer)
    calls = []
    stepwise(nodes, at(step, lambda: calls.append(three.scheduler.start(three.hub.call("ann", "ask", 1, "any", 10.0)))))
    nodes.run()
    asked = [entry for entry in new.heard if entry[0] == "ask"]
    for _, payload, stamp in asked:
        new.say("~wse:response", payload, stamp)
    nodes.advance(1)
    # One that had been sent before the session moved, and had not arrived, has failed.
    assert calls[0].done()
    if asked:
        assert calls[0].result() == 1
    else:
        assert calls[0].exception().code in (ErrorCode.RP_DISCONNECT, ErrorCode.CONNECTION_MISSING)
        assert not calls[0].exception().details.get("arrived")


@pytest.mark.parametrize("step", STEPS)
def test_an_answer_that_is_ready_during_the_move_arrives(step):
    nodes = Cluster()
    one, two = nodes
    wait = one.scheduler.create_future()

    async def slow(conn, payload):
        await wait
        return "done"

    one.endpoint.procedures.register("slow", slow)
    peer = nodes.first(one)
    peer.say("slow", None, 7)
    nodes.run()
    new = say_hi(two, peer, sent=[1, 1])
    stepwise(nodes, at(step, lambda: wait.set_result(None)))
    nodes.run()
    assert answered(new)[1] == [("~wse:response", "done", 7)]


# A node that gives up.


class Answers:
    """The answers of other nodes that reach a node; the next ones with a session in them can be lost."""

    def __init__(self, node):
        self.lost = 0
        self._answered = node.cluster.rpc.answered
        node.cluster.rpc.answered = self

    def __call__(self, answer):
        has_session = isinstance(answer.value, list) and isinstance(answer.value[0], bytes)
        if has_session and self.lost:
            self.lost -= 1
        else:
            self._answered(answer)


def test_an_answer_with_the_session_that_is_lost_is_given_again():
    nodes = Cluster()
    one, two = nodes
    peer = nodes.first(one)
    peer.conn.send("news", 1)
    peer.vanish()
    Answers(two).lost = 1
    new = say_hi(two, peer)
    nodes.run()
    one.hub.send("ann", "news", 2)
    nodes.advance(2)
    answer, messages = answered(new)
    assert "lost" not in answer
    assert plain(messages) == [("news", 1), ("news", 2)]
    assert nodes.presence() == [("joined", "ann")]
    nodes.advance(15)
    assert not one.cluster.departures._sent


def devices(node):
    return [device.conn_id for device in node.do(node.server.devices("ann"))]


@pytest.mark.parametrize("stays", [True, False])
def test_a_session_that_its_old_node_has_let_go_in_vain_leaves_nothing_behind(stays):
    nodes = Cluster()
    one, two = nodes
    peer = nodes.first(one)
    peer.vanish()
    nodes.run()
    Answers(two).lost = 2
    new = say_hi(two, peer)
    nodes.run()
    if not stays:
        new.vanish()
    nodes.advance(4)
    if stays:
        assert answered(new)[0]["lost"]["why"] == "unreachable"
        assert devices(two) == [new.conn.conn_id]
        new.vanish(1000)
        nodes.run()
    assert devices(two) == []
    assert nodes.presence() == [("joined", "ann"), ("left", "ann")]
    nodes.advance(15)
    assert [node.leftovers for node in nodes] == [[], []]
    assert [node.cluster.departures._sent for node in nodes] == [{}, {}]


def test_a_device_whose_new_node_says_nothing_more_is_taken_out():
    nodes = Cluster()
    one, two = nodes
    peer = nodes.first(one)
    peer.vanish()
    nodes.run()
    new = say_hi(two, peer)
    stepwise(nodes, lambda: None if peer.conn.conn_id in one.hub.connections else nodes.sleep(two))
    assert new.heard == []
    nodes.advance(11)
    assert devices(one) == []
    assert nodes.presence() == [("joined", "ann"), ("left", "ann")]
    assert not one.leftovers


def test_a_session_whose_node_was_asleep_ends_there_when_its_client_has_a_new_one():
    nodes = Cluster()
    one, two = nodes
    peer = nodes.first(one)
    peer.vanish()
    nodes.run()
    nodes.sleep(one)
    new = say_hi(two, peer)
    nodes.advance(4)
    answer, _ = answered(new)
    assert answer["lost"] == {"why": "unreachable", "got": None}
    nodes.wake(one)
    nodes.advance(1)
    assert devices(two) == [new.conn.conn_id]
    assert not one.hub.connections
    assert nodes.presence() == [("joined", "ann")]
    assert one.leftovers == []


@pytest.mark.parametrize("step", STEPS)
def test_a_session_of_a_node_that_falls_asleep_during_the_move_is_at_one_node_in_the_end_or_at_none(step):
    nodes = Cluster()
    one, two = nodes
    peer = nodes.first(one)
    peer.vanish()
    nodes.run()
    new = say_hi(two, peer)
    stepwise(nodes, at(step, lambda: nodes.sleep(one)))
    nodes.advance(3)
    nodes.wake(one)
    nodes.advance(4)
    answer, _ = answered(new)
    session = nodes.session(two, new)
    assert session.conn.conn_id == (new.conn.conn_id if "lost" in answer else peer.conn.conn_id)
    assert devices(one) == devices(two) == [session.conn.conn_id]
    assert nodes.presence() == [("joined", "ann")]
    assert not one.hub.connections
    assert one.leftovers == []


def test_a_client_that_has_left_a_node_which_waits_in_vain_finds_its_session_where_it_was():
    nodes = Cluster(3)
    one, two, three = nodes
    peer = nodes.first(one)
    peer.conn.send("news", 1)
    peer.vanish()
    nodes.run()
    nodes.sleep(one)
    say_hi(two, peer).vanish()
    nodes.advance(4)
    nodes.wake(one)
    nodes.advance(2)
    answer, messages = answered(nodes.back(three, peer))
    assert "lost" not in answer
    assert plain(messages) == [("news", 1)]


def test_a_node_that_gives_up_ends_no_session_but_the_one_whose_key_it_knows():
    nodes = Cluster()
    one, two = nodes
    peer = nodes.first(one)
    peer.vanish()
    nodes.run()
    conn_id = peer.conn.conn_id
    for proof in ("", "0" * 64):
        question = msgspec.json.encode(Question(two.cluster.node, conn_id, proof, is_lost=True)).decode()
        two.cluster.bus.send_to(one.cluster.node, envelope.Query(two.cluster.node, 0, "give-up", question))
        nodes.run()
        assert conn_id in one.hub.connections
    assert answered(nodes.back(one, peer))[0].get("lost") is None


# An engine of several servers, which pass messages on at different speeds.


class Route:
    """The way from one node to another, on which messages wait until it is `open`."""

    def __init__(self, origin, to):
        self.is_open = True
        self._waiting = []
        self._origin = origin.cluster.node
        self._deliver = to.broker.deliver
        to.broker.deliver = self

    def __call__(self, topic, data):
        if not self.is_open and envelope.decode(data).origin == self._origin:
            self._waiting.append((topic, data))
        else:
            self._deliver(topic, data)

    def open(self):
        self.is_open = True
        for message in self._waiting:
            self._deliver(*message)
        self._waiting.clear()


@pytest.fixture
def spreading(monkeypatch):
    monkeypatch.setattr("support.nodes.NodeBroker.spreads", True, raising=False)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_a_session_moves_on_an_engine_of_several_servers(spreading, count):
    nodes = Cluster(count)
    one, two = nodes[:2]
    peer = nodes.first(one)
    peer.vanish()
    new = say_hi(two, peer)
    nodes.advance(1)
    for node in nodes:
        node.hub.send("ann", "news", nodes.index(node))
        nodes.run()
    answer, messages = answered(new)
    assert "lost" not in answer
    assert plain(messages) == [("news", n) for n in range(count)]
    nodes.advance(5)
    assert not any(node.cluster.departures._catching_up for node in nodes)


def test_a_message_that_is_slow_to_the_old_node_moves_with_the_session(spreading):
    nodes = Cluster(3)
    one, two, three = nodes
    peer = nodes.first(one)
    peer.vanish()
    nodes.run()
    route = Route(three, one)
    route.is_open = False
    three.hub.send("ann", "news", "sent before the new node listens")
    nodes.run()
    new = say_hi(two, peer)
    nodes.advance(0.3, step=0.05)
    assert new.heard == []
    three.hub.send("ann", "news", "sent while both listen")
    nodes.run()
    route.open()
    nodes.advance(1)
    three.hub.send("ann", "news", "sent after the move")
    nodes.run()
    answer, messages = answered(new)
    assert "lost" not in answer
    assert [payload for _, payload in plain(messages)] == [
        "sent before the new node listens",
        "sent while both listen",
        "sent after the move",
    ]


def test_a_node_that_does_not_answer_holds_a_session_up_for_half_a_second(spreading):
    nodes = Cluster(3)
    one, two, three = nodes
    peer = nodes.first(one)
    peer.vanish()
    nodes.run()
    nodes.sleep(three)
    new = say_hi(two, peer)
    nodes.advance(1.5)
    assert "lost" not in answered(new)[0]


def test_a_claim_that_is_not_repeated_is_forgotten(spreading):
    nodes = Cluster(3)
    one, two, _ = nodes
    peer = nodes.first(one)
    peer.vanish()
    nodes.run()
    new = say_hi(two, peer)
    stepwise(nodes, lambda: one.cluster.departures._catching_up and new.vanish())
    nodes.advance(3)
    assert not one.cluster.departures._catching_up
    assert "lost" not in answered(nodes.back(one, peer))[0]
