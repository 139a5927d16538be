"""A cluster on the broker in memory: messages, calls and events reach the right receivers, once."""

import asyncio
from enum import Enum

import msgspec
import pytest

from support.nodes import Nodes, heard
from wse import ErrorCode, WseError, WseJSON, WseMsgpack, WseServer
from wse.core.cluster import envelope
from wse.core.cluster.cluster import Cluster
from wse.core.cluster.settings import ClusterSettings
from wse.core.names import decode_name, encode_name

# Messages.


def test_messages_to_a_user_and_to_everyone_reach_all_nodes_once_and_in_order():
    nodes = Nodes(3, conns_per_user=3)
    one, two, three = nodes
    phone, laptop, bob = nodes.join(one), nodes.join(two), nodes.join(three, "bob")
    one.server.send("ann", "say", 1)
    one.server.send("ann", "say", 2)
    nodes.run()
    assert heard(phone, laptop, bob) == [[("say", 1), ("say", 2)], [("say", 1), ("say", 2)], []]
    three.server.broadcast("all", 3)
    nodes.run()
    assert heard(phone, laptop, bob) == [[("all", 3)]] * 3
    laptop.conn.client.send("mine", 4)
    nodes.run()
    assert heard(phone, laptop, bob) == [[("mine", 4)], [("mine", 4)], []]


def test_local_devices_get_a_message_at_once():
    nodes = Nodes()
    peer = nodes.join(nodes[0])
    nodes[0].server.send("ann", "say")
    assert heard(peer) == [[("say", None)]]


def test_who_is_excluded_is_excluded_everywhere():
    nodes = Nodes(2, conns_per_user=3)
    one, two = nodes
    phone, laptop, bob = nodes.join(one), nodes.join(two), nodes.join(two, "bob")
    for node, exclude in ((two, laptop.conn), (one, laptop.conn)):
        node.server.broadcast("say", exclude=exclude)
        nodes.run()
        assert heard(phone, laptop, bob) == [[("say", None)], [], [("say", None)]]
    one.server.broadcast("say", exclude="ann")
    two.server.send("ann", "mine", exclude=laptop.conn)
    nodes.run()
    assert heard(phone, laptop, bob) == [[("mine", None)], [], [("say", None)]]


def test_a_message_crosses_as_it_was_packed_and_is_one_frame_for_all_receivers():
    nodes = Nodes(2, conns_per_user=2)
    one, two = nodes
    peers = [nodes.join(two, cid) for cid in ("ann", "bob")]
    one.server.broadcast("say", {"a": 1.0})
    nodes.run()
    first, second = (peer.link.shared[-1] for peer in peers)
    assert first is second
    assert first.message == one.endpoint.protocols[0].pack("say", {"a": 1.0})


def test_a_node_packs_anew_only_for_a_protocol_that_the_sender_lacks():
    nodes = Nodes(1)
    both = nodes.start(protocols=(WseJSON(), WseMsgpack()))
    packs = [nodes.join(both, cid, protocol=both.endpoint.protocols[1]) for cid in ("ann", "bob")]
    text = nodes.join(both, "eve")
    nodes[0].server.broadcast("say", [1])
    nodes.run()
    assert heard(*packs, text) == [[("say", [1])]] * 3
    assert packs[0].link.shared[-1] is packs[1].link.shared[-1]


def test_nodes_without_a_common_protocol_understand_each_other():
    nodes = Nodes(1, protocols=(WseMsgpack(),))
    peer = nodes.join(nodes.start(protocols=(WseJSON(),)))
    nodes[0].server.send("ann", "say", [1])
    nodes.run()
    assert heard(peer) == [[("say", [1])]]


def test_a_message_in_a_protocol_that_nobody_here_knows_is_reported():
    class Secret(WseJSON):
        name = "secret"

        def pack(self, type, payload=None, stamp=None):
            return super().pack(type, payload, stamp)

    nodes = Nodes(1, protocols=(Secret(),))
    peer = nodes.join(nodes.start(protocols=(WseJSON(),)))
    nodes[0].server.send("ann", "say")
    nodes.run()
    assert heard(peer) == [[]]
    assert "secret" in str(nodes[1].error.__cause__)


def test_what_one_protocol_cannot_carry_reaches_clients_of_another_all_the_same():
    both = (WseJSON(), WseMsgpack())
    nodes = Nodes(2, protocols=both)
    one, two = nodes
    texts = [nodes.join(node, f"text {number}", protocol=both[0]) for number, node in enumerate(nodes)]
    pack = nodes.join(two, "pack", protocol=both[1])
    one.server.broadcast("say", 2**70)  # beyond the integers of MessagePack
    nodes.run()
    assert heard(*texts, pack) == [[("say", 2**70)], [("say", 2**70)], []]
    assert two.codes == [ErrorCode.MSG_PROCESSING_ERROR]
    with pytest.raises(WseError):  # as on a single server: a connection of this node cannot receive it
        two.server.broadcast("say", 2**70)
    nodes.run()
    assert heard(*texts, pack) == [[], [], []]


def test_a_node_is_subscribed_to_who_it_holds_and_to_nobody_else():
    nodes = Nodes(2, conns_per_user=2)
    one, two = nodes
    phone, laptop = nodes.join(one), nodes.join(one)
    nodes.join(two, "bob")
    one.server.room("tea").add(phone.conn)
    one.server.room("tea").add(laptop.conn)
    user, room = envelope.topic(envelope.USER, "ann"), envelope.topic(envelope.ROOM, "tea")
    assert list(nodes.engine.topics[user]) == list(nodes.engine.topics[room]) == [one.broker]
    assert (one.broker.subscribed.count(user), one.broker.subscribed.count(room)) == (1, 1)
    phone.session.closed(1001, "")
    assert {user, room} <= nodes.engine.topics.keys()
    laptop.session.closed(1001, "")
    nodes.run()
    assert not {user, room} & nodes.engine.topics.keys()
    assert one.leftovers == []


def test_a_user_is_dropped_on_all_nodes_and_leaves_once():
    nodes = Nodes(3, conns_per_user=3)
    peers = [nodes.join(node) for node in nodes]
    nodes[1].server.drop_client("ann", "enough", 4001)
    nodes.run()
    assert [peer.closed_with for peer in peers] == [(4001, "enough")] * 3
    assert nodes.log("left") == [("left", "ann", 4001, "enough")]
    assert len(nodes.log("disconnected")) == 3
    assert [node.leftovers for node in nodes] == [[], [], []]


def test_sending_to_who_is_not_there_does_nothing():
    nodes = Nodes()
    nodes[0].server.send("nobody", "say")
    nodes[0].server.drop_client("nobody")
    nodes[0].server.room("empty").send("say")
    nodes.run()
    assert [node.errors for node in nodes] == [[], []]


def test_a_payload_that_cannot_be_encoded_reaches_nobody():
    nodes = Nodes()
    peers = [nodes.join(nodes[0]), nodes.join(nodes[1], "bob")]
    with pytest.raises(WseError) as caught:
        nodes[0].server.broadcast("say", object())
    assert caught.value.code == ErrorCode.MSG_PROCESSING_ERROR
    with pytest.raises(WseError):
        nodes[0].server.broadcast("~wse:hi")
    nodes.run()
    assert heard(*peers) == [[], []]


def test_what_makes_no_sense_is_reported_and_harms_nothing():
    nodes = Nodes()
    one, two = nodes
    peer = nodes.join(one)
    topics = ["all", f"n.{one.cluster.node}", "u.sann"]
    said = [b"", b"\xc1", msgspec.msgpack.encode([99, "x"]), msgspec.msgpack.encode({"a": 1})]
    said.append(envelope.encode(envelope.Drop("stranger", "x" * 200)))
    for data in said:
        for topic in topics:
            two.broker.publish(topic, data)
    nodes.run()
    assert set(one.codes) == {ErrorCode.MSG_PROCESSING_ERROR}
    one.server.send("ann", "say")
    assert heard(peer) == [[("say", None)]]


# Users and rooms by their names.


@pytest.mark.parametrize("name", ["ann", "a.b", "ä", "", 5, -5, 0, "i5", "5", "\ud800", " ", "=" * 3, "s" * 999])
def test_names_cross_in_the_letters_of_brokers(name):
    there = encode_name(name)
    assert there.isascii()
    assert there.replace("-", "").replace("_", "").replace("=", "").isalnum()
    back = decode_name(there)
    assert (back, type(back)) == (name, type(name))


def test_a_member_of_an_enumeration_crosses_as_what_it_is_equal_to():
    class Room(str, Enum):  # noqa: UP042 - a StrEnum is its value already
        LOBBY = "lobby"

    class Number(int, Enum):
        ONE = 1

    assert encode_name(Room.LOBBY) == encode_name("lobby")
    assert encode_name(Number.ONE) == encode_name(1)


@pytest.mark.parametrize("name", ["s" * 1000, "ä" * 400, 10**1000, 10**5000], ids=["safe", "unsafe", "number", "huge"])
def test_names_that_brokers_would_not_take_do_not_cross(name):
    with pytest.raises(ValueError, match=r"at most 1000 characters|Exceeds the limit"):
        encode_name(name)


def test_names_of_other_kinds_do_not_cross():
    with pytest.raises(TypeError, match="strings or integers"):
        encode_name((1, 2))
    with pytest.raises(ValueError, match="not an encoded name"):
        decode_name("x1")


@pytest.mark.parametrize("cid", [("ann", 1), "a" * 5000, 10**5000], ids=["tuple", "string", "number"])
def test_a_user_whose_id_cannot_cross_is_refused_and_reported(cid):
    nodes = Nodes(1, identify=lambda auth: auth.accept(cid))
    peer = nodes[0].open()
    peer.say("~wse:hi", {"identity": "ann"})
    assert peer.closed_with == (1000, "wse.not-authorized")
    assert isinstance(nodes[0].error.__cause__, (TypeError, ValueError))
    assert nodes[0].leftovers == []


def test_rooms_that_cannot_cross_are_rejected_at_once():
    nodes = Nodes(1)
    peer = nodes.join(nodes[0])
    room = nodes[0].server.room((1, 2))
    for use in (lambda: room.add(peer.conn), lambda: room.send("say")):
        with pytest.raises(TypeError, match="strings or integers"):
            use()
    peer.session.closed(1001, "")
    nodes.run()
    assert nodes[0].leftovers == []


# Devices and presence.


def test_the_oldest_device_anywhere_is_pushed_out():
    nodes = Nodes(3, conns_per_user=2)
    old = nodes.join(nodes[0])
    middle = nodes.join(nodes[1])
    new = nodes.join(nodes[2])
    assert [peer.closed_with for peer in (old, middle, new)] == [(1000, "wse.clients-concurrency"), None, None]
    newest = nodes.join(nodes[2])
    assert [peer.closed_with for peer in (middle, new, newest)] == [(1000, "wse.clients-concurrency"), None, None]
    assert nodes.presence() == [("joined", "ann")]
    assert [device.conn_id for device in nodes[0].do(nodes[0].server.devices("ann"))] == [
        peer.conn.conn_id for peer in (new, newest)
    ]


def test_a_device_is_pushed_out_by_one_of_its_own_node_in_the_contract_s_order():
    nodes = Nodes(1)
    (one,) = nodes
    nodes.join(one, name="old")
    one.log.clear()
    nodes.join(one, name="new")
    steps = [(entry[0], entry[1]) for entry in one.log if entry[0] != "left"]
    assert steps == [("close", "old"), ("disconnected", "ann"), ("write", "new"), ("connected", "ann")]


def test_joined_and_left_fire_once_per_user():
    nodes = Nodes(3, conns_per_user=3)
    peers = [nodes.join(node) for node in nodes]
    assert nodes.presence() == [("joined", "ann")]
    for peer in peers:
        peer.session.closed(1001, "away")
        nodes.run()
    assert nodes.log("left") == [("left", "ann", 1001, "away")]
    assert [node.leftovers for node in nodes] == [[], [], []]


def test_devices_are_told_with_their_user_and_node():
    nodes = Nodes(2)
    peer = nodes.join(nodes[0])
    (device,) = nodes[1].do(nodes[1].cluster.devices("ann"))
    assert (device.cid, device.conn_id, device.node) == ("ann", peer.conn.conn_id, nodes[0].cluster.node)


def test_users_and_their_number_are_those_of_the_whole_cluster():
    nodes = Nodes(2, conns_per_user=2)
    one, two = nodes
    for node, cid in ((one, "ann"), (two, "ann"), (two, 7)):
        nodes.join(node, cid)

    async def users():
        return {cid async for cid in one.server.users()}

    assert one.do(users()) == {"ann", 7}
    assert one.do(one.server.online()) == 2
    assert [device.node for device in one.do(one.server.devices("ann"))] == [one.cluster.node, two.cluster.node]
    assert one.do(one.server.devices("nobody")) == []


def test_a_device_that_goes_before_it_is_registered_was_there_for_a_moment():
    nodes = Nodes(1)
    (one,) = nodes
    peer = one.open()
    peer.session.receive(peer.protocol.pack("~wse:hi", {"identity": "ann"}))
    # FakeScheduler starts a spawned coroutine at once, so the register is delayed instead.
    assert nodes.presence() == [("joined", "ann")]
    peer.session.closed(1001, "")
    nodes.run()
    assert nodes.presence() == [("joined", "ann"), ("left", "ann")]


# Calls.


def ask(node, mode="first", timeout=None, payload=None, cid="ann"):
    return node.scheduler.start(node.server.call(cid, "where", payload, mode=mode, timeout=timeout))


def answer(nodes, peer, result):
    (stamp,) = [stamp for kind, _, stamp in peer.heard if kind == "where"]
    if isinstance(result, WseError):
        peer.say("~wse:response-err", {"code": result.code, "message": "no", "details": {"a": 1}}, stamp)
    else:
        peer.say("~wse:response", result, stamp)
    nodes.run()


def called():
    nodes = Nodes(3, conns_per_user=2)
    old, new = nodes.join(nodes[0]), nodes.join(nodes[1])
    return nodes, old, new


def test_a_call_reaches_devices_wherever_they_are_and_the_first_success_counts():
    nodes, old, new = called()
    task = ask(nodes[2], payload={"a": [1]})
    nodes.run()
    answer(nodes, old, WseError("app.busy"))
    assert not task.done()
    answer(nodes, new, "here")
    assert task.result() == "here"
    assert [node.leftovers for node in nodes][2] == []
    assert old.session.pending_calls + new.session.pending_calls == 0


def test_a_call_to_all_brings_results_and_errors_the_oldest_device_first():
    nodes, old, new = called()
    task = ask(nodes[0], "all")
    nodes.run()
    answer(nodes, new, WseError("app.busy"))
    answer(nodes, old, "here")
    result, error = task.result()
    assert (result, error.code, error.message, error.details) == ("here", "app.busy", "no", {"a": 1})


def test_a_call_to_any_asks_the_newest_device_only():
    nodes, old, new = called()
    task = ask(nodes[0], "any")
    nodes.run()
    assert heard(old) == [[]]
    answer(nodes, new, "here")
    assert task.result() == "here"


def test_an_identity_calls_its_devices_everywhere():
    nodes, old, new = called()
    task = nodes[0].scheduler.start(old.conn.client.call("where"))
    nodes.run()
    for peer, result in ((old, 1), (new, 2)):
        answer(nodes, peer, result)
    assert task.result() == [1, 2]


def test_a_call_to_nobody_fails():
    nodes, _, _ = called()
    assert ask(nodes[0], cid="bob").exception().code == ErrorCode.CONNECTION_MISSING


def test_a_call_that_is_not_answered_in_time_leaves_nothing():
    nodes, _, new = called()
    task = ask(nodes[2], "any", timeout=3)
    nodes.advance(3)
    assert task.exception().code == ErrorCode.RP_TIMEOUT
    assert [node.cluster.rpc.waiting for node in nodes] == [0, 0, 0]
    assert new.session.pending_calls == 0


def published(node):
    """The messages that a node publishes from now on, decoded."""
    said, publish = [], node.broker.publish

    def note(topic, data):
        said.append(envelope.decode(data))
        publish(topic, data)

    node.broker.publish = note
    return said


@pytest.mark.parametrize("timeout", [None, 0])
def test_a_cancelled_call_leaves_nothing_on_any_node(timeout):
    nodes, _, new = called()
    task = ask(nodes[2], "any", timeout)
    nodes.run()
    assert new.session.pending_calls == 1
    task.cancel()
    nodes.run()
    assert task.cancelled()
    assert new.session.pending_calls == 0
    answer(nodes, new, "late")
    assert [node.leftovers for node in nodes][2] == []
    assert nodes[1].cluster.rpc._called == {}
    assert [node.scheduler.unheard for node in nodes] == [[], [], []]
    assert [node.errors for node in nodes] == [[], [], []]


def test_devices_that_lost_the_race_are_not_waited_for_on_their_node():
    nodes, old, new = called()
    said = published(nodes[2])
    task = ask(nodes[2])
    nodes.run()
    answer(nodes, new, "here")
    assert task.result() == "here"
    assert old.session.pending_calls == 0
    assert [type(each) for each in said] == [envelope.Call, envelope.Call, envelope.Cancel]
    answer(nodes, old, "late")
    assert nodes[0].cluster.rpc._called == {}


def test_a_call_that_was_answered_is_not_cancelled():
    nodes, old, new = called()
    said = published(nodes[2])
    task = ask(nodes[2], "all")
    nodes.run()
    answer(nodes, old, "here")
    answer(nodes, new, WseError("app.busy"))
    assert task.done()
    assert [type(each) for each in said] == [envelope.Call, envelope.Call]


@pytest.mark.parametrize("first", ["the answer", "the end"])
def test_a_call_that_is_answered_as_it_is_cancelled_leaves_nothing(first):
    nodes, _, new = called()
    task = ask(nodes[2], "any")
    nodes.run()
    (stamp,) = [stamp for kind, _, stamp in new.heard if kind == "where"]
    if first == "the answer":
        new.say("~wse:response", "here", stamp)
        task.cancel()
    else:
        task.cancel()
        nodes[2].scheduler.run()
        new.say("~wse:response", "here", stamp)
    nodes.run()
    assert nodes[2].leftovers == []
    assert nodes[1].cluster.rpc._called == {}
    assert [node.errors for node in nodes] == [[], [], []]


def test_a_call_of_a_node_that_died_is_forgotten():
    nodes, _, new = called()
    nodes.advance(10)
    ask(nodes[2], "any", timeout=0)
    nodes.run()
    nodes.kill(nodes[2])
    nodes.advance(10)
    assert new.session.pending_calls == 0
    assert nodes[1].cluster.rpc._called == {}
    assert nodes[1].scheduler.unheard == []


def test_a_call_of_a_node_that_slept_too_long_fails():
    nodes, _, new = called()
    nodes.advance(10)
    task = ask(nodes[2], "any", timeout=0)
    nodes.run()
    nodes.sleep(nodes[2])
    nodes.advance(10)
    assert new.session.pending_calls == 0
    nodes.wake(nodes[2])
    nodes.advance(1)
    assert task.exception().code == ErrorCode.RP_DISCONNECT


def test_a_call_outlives_the_loss_of_all_leases():
    nodes, old, new = called()
    new.session.closed(1001, "")
    nodes.advance(10)
    task = ask(nodes[2], timeout=0)
    nodes.run()
    nodes.engine.forget()  # the first node to renew its lease finds no other
    nodes.advance(10)
    answer(nodes, old, "here")
    assert task.result() == "here"


def test_a_call_that_is_answered_as_its_node_is_taken_for_dead_has_its_result():
    nodes, _, new = called()
    task = ask(nodes[2], "any")
    nodes.run()
    nodes[1].cluster.rpc.alive(frozenset())
    (stamp,) = [stamp for kind, _, stamp in new.heard if kind == "where"]
    new.say("~wse:response", "here", stamp)
    nodes[1].cluster.rpc.alive(frozenset())
    nodes.run()
    assert task.result() == "here"


def test_a_node_that_closes_forgets_the_calls_of_others():
    nodes, _, new = called()
    nodes.advance(10)
    task = ask(nodes[2], "any", timeout=0)
    nodes.run()
    nodes[1].scheduler.start(nodes[1].cluster.close())  # its device stays longer
    nodes.advance(10)
    assert new.session.pending_calls == 0
    assert nodes[1].cluster.rpc._called == {}
    assert task.exception().code == ErrorCode.RP_DISCONNECT


def test_a_device_that_goes_while_it_is_asked_fails_the_call_and_no_other_is_asked():
    nodes, old, new = called()
    task = ask(nodes[2], "any")
    nodes.run()
    new.session.closed(1001, "away")
    nodes.run()
    error = task.exception()
    assert (error.code, error.details["disconnected"]) == (ErrorCode.RP_DISCONNECT, [1001, "away"])
    assert heard(old) == [[]]


@pytest.mark.parametrize(("mode", "result"), [("any", "here"), ("first", "here"), ("all", ["here"])])
def test_a_device_that_has_gone_before_the_question_comes_is_left_out(mode, result):
    nodes, old, new = called()
    task = ask(nodes[2], mode)
    new.session.closed(1001, "away")
    nodes.run()
    answer(nodes, old, "here")
    assert task.result() == result


def joining(nodes, node):
    """A device that is registered, but not welcomed before the returned future is done."""
    gate = asyncio.Future(loop=node.scheduler)

    async def wait():
        await gate

    node.broker.flush = wait
    peer = node.open()
    peer.say("~wse:hi", {"identity": "ann"})
    nodes.run()
    assert not peer.session.valid
    return peer, gate


@pytest.mark.parametrize(("mode", "result"), [("any", "here"), ("first", "here"), ("all", ["here"])])
@pytest.mark.parametrize("caller", [0, 1, 2])
def test_a_device_that_waits_for_its_welcome_is_left_out(mode, result, caller):
    nodes = Nodes(3, conns_per_user=2)
    old = nodes.join(nodes[0])
    new, gate = joining(nodes, nodes[1])
    task = ask(nodes[caller], mode)
    nodes.run()
    answer(nodes, old, "here")
    assert task.result() == result
    gate.set_result(None)
    nodes.run()
    assert [kind for kind, _, _ in new.heard] == ["~wse:welcome"]


@pytest.mark.parametrize("mode", ["any", "first", "all"])
@pytest.mark.parametrize("caller", [0, 1])
def test_a_user_whose_only_device_waits_for_its_welcome_has_none_to_call(mode, caller):
    nodes = Nodes(2)
    joining(nodes, nodes[1])
    task = ask(nodes[caller], mode)
    nodes.run()
    error = task.exception()
    assert (error.code, error.details) == (ErrorCode.CONNECTION_MISSING, {"cid": "ann", "rp": "where"})
    assert nodes[0].leftovers == []


def test_when_all_that_are_asked_fail_the_error_is_one_of_theirs():
    nodes = Nodes(3, conns_per_user=2)
    old = nodes.join(nodes[0])
    joining(nodes, nodes[1])
    nodes.sleep(nodes[1])
    task = ask(nodes[2])
    nodes.run()
    answer(nodes, old, WseError("app.busy"))
    assert not task.done()
    nodes.wake(nodes[1])
    assert task.exception().code == "app.busy"


@pytest.mark.parametrize(("mode", "result"), [("any", "here"), ("first", "here"), ("all", ["here"])])
def test_a_device_of_this_node_that_goes_while_the_register_is_asked_is_left_out(mode, result):
    nodes = Nodes(2, conns_per_user=2)
    old, new = nodes.join(nodes[1]), nodes.join(nodes[0])
    devices, gate = nodes[0].broker.devices, asyncio.Future(loop=nodes[0].scheduler)

    async def wait(user):
        found = await devices(user)
        await gate
        return found

    nodes[0].broker.devices = wait
    task = ask(nodes[0], mode)
    new.session.closed(1001, "")
    gate.set_result(None)
    nodes.run()
    answer(nodes, old, "here")
    assert task.result() == result


def test_a_call_to_any_takes_no_longer_when_it_tries_another_device():
    nodes = Nodes(3, conns_per_user=2)
    old = nodes.join(nodes[0])
    joining(nodes, nodes[1])
    nodes.sleep(nodes[1])
    task = ask(nodes[2], "any", timeout=3)
    nodes.advance(2)
    nodes.wake(nodes[1])
    assert [kind for kind, _, _ in old.heard] == ["where"]
    nodes.advance(0.75)
    assert not task.done()
    nodes.advance(0.25)
    assert task.exception().code == ErrorCode.RP_TIMEOUT


def test_a_call_to_any_for_ever_stays_one_when_it_tries_another_device():
    nodes = Nodes(3, conns_per_user=2)
    old = nodes.join(nodes[0])
    joining(nodes, nodes[1])
    task = ask(nodes[2], "any", timeout=0)
    nodes.advance(60)
    answer(nodes, old, "here")
    assert task.result() == "here"


def test_a_call_for_ever_ends_with_the_node_that_was_asked():
    nodes, _, _ = called()
    nodes.advance(10)
    task = ask(nodes[2], "any", timeout=0)
    nodes.run()
    nodes.kill(nodes[1])
    nodes.advance(10)
    assert task.exception().code == ErrorCode.RP_DISCONNECT
    assert nodes[1].cluster.rpc.waiting == 0


def test_a_node_that_closes_fails_its_own_calls():
    nodes, _, _ = called()
    task = ask(nodes[2], "any", timeout=0)
    nodes.run()
    nodes[2].do(nodes[2].cluster.close())
    assert task.exception().code == ErrorCode.RP_DISCONNECT


@pytest.mark.parametrize(
    ("payload", "code"), [(object(), ErrorCode.RP_SEND_FAILED), (1 << 70, ErrorCode.RP_SEND_FAILED)]
)
def test_a_payload_that_cannot_cross_fails_the_call(payload, code):
    nodes, _, _ = called()
    task = ask(nodes[2], payload=payload)
    assert task.exception().code == code
    assert nodes[2].leftovers == []


def test_a_result_that_cannot_cross_fails_the_call():
    nodes, _, new = called()
    task = ask(nodes[2], "any")
    nodes.run()
    answer(nodes, new, 1 << 70)
    assert task.exception().code == ErrorCode.RP_EXECUTION_FAILED
    assert "cannot leave this node" in task.exception().message


def limit(node, size):
    """Limit the size of a message that the node's broker takes."""
    publish = node.broker.publish

    def check(topic, data):
        if len(data) > size:
            raise WseError(ErrorCode.LIMIT_EXCEEDED, {"size": len(data), "limit": size})
        publish(topic, data)

    node.broker.publish = check


@pytest.mark.parametrize(
    ("details", "message", "told"),
    [
        ({"n": 1 << 70}, "no", "no"),
        ({"n": "x" * 20_000}, "no", "no"),
        ({"n": 1 << 70}, "\ud800 no", "? no"),
        ({}, "x" * 20_000, "x" * 1000),
        ({"n": 1 << 70}, "x" * 20_000, "x" * 1000),
    ],
)
def test_an_error_that_cannot_cross_arrives_without_its_details(details, message, told):
    nodes, _, new = called()
    limit(nodes[1], 10_000)
    task = ask(nodes[2], "any")
    nodes.run()
    ((_, session_call),) = nodes[1].cluster.rpc._called.items()
    session_call[0]._calls.reject(session_call[1], WseError("app.bad", details, message))
    nodes.run()
    error = task.exception()
    assert (error.code, error.message, error.details) == ("app.bad", told, {})
    assert nodes[1].errors == []
    assert nodes[1].cluster.rpc._called == {}
    assert new.session.pending_calls == 0


def test_a_code_that_cannot_cross_is_cut():
    nodes, _, new = called()
    limit(nodes[1], 10_000)
    task = ask(nodes[2], "any")
    nodes.run()
    answer(nodes, new, WseError("app." + "x" * 20_000))
    assert task.exception().code == "app." + "x" * 996


def test_names_of_wse_s_own_cannot_be_called():
    nodes, _, _ = called()
    task = nodes[2].scheduler.start(nodes[2].server.call("ann", "~wse:hi"))
    assert task.exception().code == ErrorCode.PROTOCOL_VIOLATION


# Rooms.


def test_a_room_spans_the_cluster():
    nodes = Nodes(3, conns_per_user=2)
    one, two, three = nodes
    ann, bob, eve = nodes.join(one), nodes.join(two, "bob"), nodes.join(three, "eve")
    one.server.room("tea").add(ann.conn)
    two.server.room("tea").add(bob.conn)
    three.server.room("tea").send("say", 1)
    nodes.run()
    assert heard(ann, bob, eve) == [[("say", 1)], [("say", 1)], []]
    two.server.room("tea").send("say", 2, exclude=bob.conn)
    nodes.run()
    assert heard(ann, bob, eve) == [[("say", 2)], [], []]
    task = three.scheduler.start(three.server.room("tea").members())
    nodes.run()
    assert task.result() == {"ann", "bob"}


def test_an_identity_is_added_and_taken_out_with_its_devices_on_all_nodes():
    nodes = Nodes(2, conns_per_user=2)
    one, two = nodes
    phone, laptop = nodes.join(one), nodes.join(two)
    events = []
    two.server.room("tea").when.joined(lambda conn: events.append(("in", conn.conn_id)))
    two.server.room("tea").when.left(lambda conn: events.append(("out", conn.conn_id)))
    room = one.server.room("tea")
    room.add(phone.conn.client)
    nodes.run()
    room.send("say", 1)
    nodes.run()
    assert heard(phone, laptop) == [[("say", 1)], [("say", 1)]]
    room.discard(phone.conn.client)
    nodes.run()
    room.send("say", 2)
    nodes.run()
    assert heard(phone, laptop) == [[], []]
    assert events == [("in", laptop.conn.conn_id), ("out", laptop.conn.conn_id)]


def test_members_of_a_node_that_does_not_answer_are_missing():
    nodes = Nodes(3)
    for node, cid in zip(nodes, ("ann", "bob", "eve"), strict=True):
        node.server.room("tea").add(nodes.join(node, cid).conn)
    nodes.sleep(nodes[2])
    task = nodes[0].scheduler.start(nodes[0].server.room("tea").members())
    nodes.advance(0.5)
    assert not task.done()
    nodes.advance(0.5)
    assert task.result() == {"ann", "bob"}
    assert nodes[0].cluster.rpc.waiting == 0


def tea(nodes, number, users):
    """Connect these users to a node, and add them to the room."""
    node = nodes[number]
    for cid in users:
        node.server.room("tea").add(nodes.join(node, cid).conn)


def test_names_are_put_in_parts_by_their_bytes(monkeypatch):
    monkeypatch.setattr(envelope, "MAX_PART_BYTES", 20)
    assert envelope.in_parts([]) == [[]]
    assert envelope.in_parts(["a" * 5, "b" * 5]) == [["a" * 5, "b" * 5]]
    assert envelope.in_parts(["a" * 5, "b" * 6, "c"]) == [["a" * 5], ["b" * 6, "c"]]
    assert envelope.in_parts(["a" * 50, "b", "c" * 50]) == [["a" * 50], ["b"], ["c" * 50]]


def test_members_who_are_too_many_for_one_message_are_told_in_several(monkeypatch):
    nodes = Nodes(3)
    users = [f"user {number}" for number in range(30)]
    tea(nodes, 1, users[:20])
    tea(nodes, 2, users[20:])
    monkeypatch.setattr(envelope, "MAX_PART_BYTES", 100)
    said = published(nodes[1])
    limit(nodes[1], 200)
    task = nodes[0].scheduler.start(nodes[0].server.room("tea").members())
    nodes.run()
    assert task.result() == set(users)
    assert len(said) > 1
    assert nodes[0].leftovers == []
    assert nodes[0].cluster.rpc._parts == {}


def test_members_of_a_node_of_whose_answer_a_part_is_lost_are_missing(monkeypatch):
    nodes = Nodes(3)
    tea(nodes, 1, [f"user {number}" for number in range(30)])
    tea(nodes, 2, ["bob"])
    monkeypatch.setattr(envelope, "MAX_PART_BYTES", 100)
    publish, count = nodes[1].broker.publish, iter(range(100))
    nodes[1].broker.publish = lambda topic, data: None if next(count) == 1 else publish(topic, data)
    task = nodes[0].scheduler.start(nodes[0].server.room("tea").members())
    nodes.run()
    assert nodes[0].cluster.rpc._parts
    nodes.advance(1)
    assert task.result() == {"bob"}
    assert nodes[0].cluster.rpc._parts == {}


def test_parts_of_an_answer_that_nobody_waits_for_are_not_kept():
    nodes = Nodes(1)
    nodes[0].cluster.rpc.answered(envelope.Answer("another", 1, ["sann"], parts=2))
    assert nodes[0].cluster.rpc._parts == {}


def test_members_fails_when_a_node_cannot_tell(monkeypatch):
    nodes = Nodes(3)
    tea(nodes, 1, ["ann"])
    tea(nodes, 2, ["bob"])
    limit(nodes[1], 200)
    monkeypatch.setattr(nodes[1].hub.rooms, "local_users", lambda room: frozenset(["x" * 300]))
    task = nodes[0].scheduler.start(nodes[0].server.room("tea").members())
    nodes.run()
    error = task.exception()
    assert error.code == ErrorCode.BROKER_UNAVAILABLE
    assert error.details == {"node": nodes[1].cluster.node, "query": "members"}
    assert "cannot leave this node" in error.message
    assert nodes[0].leftovers == []


def test_a_node_that_fails_to_find_out_what_it_is_asked_says_so(monkeypatch):
    nodes = Nodes(2)
    tea(nodes, 1, ["ann"])

    def fail(room):
        raise ZeroDivisionError("nothing")

    monkeypatch.setattr(nodes[1].hub.rooms, "local_users", fail)
    task = nodes[0].scheduler.start(nodes[0].server.room("tea").members())
    nodes.run()
    assert task.exception().code == ErrorCode.BROKER_UNAVAILABLE
    assert isinstance(nodes[1].error.__cause__, ZeroDivisionError)
    task = nodes[0].scheduler.start(nodes[0].cluster.rpc.query("members", "stea"))
    nodes.run()
    assert task.result() == []


def test_a_question_of_a_newer_version_is_not_answered():
    nodes = Nodes(2)
    task = nodes[0].scheduler.start(nodes[0].cluster.rpc.query("mood", ""))
    nodes.advance(1)
    assert task.result() == []
    assert nodes[1].errors == []


# Opening and closing.


def test_nodes_that_run_already_are_peers_of_one_that_starts():
    one, two = Nodes(2)
    assert (one.cluster.bus.peers, two.cluster.bus.peers) == (frozenset(), {one.cluster.node})


def test_a_node_that_cannot_resign_its_lease_reports_why_and_closes():
    (one,) = Nodes(1)
    cause = WseError(ErrorCode.BROKER_UNAVAILABLE)

    async def fail():
        raise cause

    one.broker.resign = fail
    one.do(one.cluster.close())
    assert one.error.code == ErrorCode.BROKER_UNAVAILABLE
    assert "could not resign" in str(one.error)
    assert one.error.__cause__ is cause


# What the application sees.


def test_the_cluster_of_a_server_shows_its_node():
    nodes = Nodes(1, ClusterSettings(backlog=0))
    (one,) = nodes
    cluster = Cluster(one.cluster)
    assert (cluster.node, cluster.broker, cluster.settings) == (one.cluster.node, one.broker, one.cluster.settings)
    assert repr(cluster) == f"<Cluster node {cluster.node}>"
    assert (cluster.healthy, cluster.lost) == (True, 0)
    nodes.engine.pause()
    one.server.send("ann", "say")
    assert (cluster.healthy, cluster.lost) == (False, 1)
    one.do(one.cluster.close())
    assert not cluster.healthy


def test_a_cluster_without_a_started_node_says_so():
    server = WseServer(broker="memory:")
    assert (server.cluster.node, server.cluster.healthy) == ("", False)
    assert repr(server.cluster) == "<Cluster node not started>"


# Settings.


@pytest.mark.parametrize(
    "settings",
    [
        {"lease_ttl": 1, "renew_interval": 1},
        {"renew_interval": 0},
        {"canary_interval": 0},
        {"canary_misses": 0},
        {"backlog": -1},
        {"query_timeout": -1},
    ],
)
def test_settings_that_cannot_work_are_rejected(settings):
    with pytest.raises(ValueError):
        ClusterSettings(**settings)
