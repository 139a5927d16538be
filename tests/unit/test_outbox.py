"""The queue of a slow receiver, and its overflow policies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.core import ClientSide, ServerSide
from support.nodes import Nodes
from wse import ErrorCode, Limits, Overflow, WseError, WseJSON, WseMsgpack
from wse.core.packed import Packed, encode
from wse.core.session.outbox import Outbox

POLICIES = {
    "newest": Overflow.DROP_NEWEST,
    "oldest": Overflow.DROP_OLDEST,
    "latest": Overflow.LATEST,
}


def rest_of(outbox):
    return [outbox.take().data for _ in range(len(outbox))]


def test_messages_leave_in_order():
    outbox = Outbox({})
    for data in ("a", "bb", "ccc"):
        assert outbox.put("chat", Packed(data, False), 100) == (Overflow.CLOSE, 0)
    assert outbox.size == 6
    assert rest_of(outbox) == ["a", "bb", "ccc"]
    assert outbox.size == 0


def test_without_a_choice_what_does_not_fit_is_not_kept():
    outbox = Outbox(POLICIES)
    assert outbox.put("chat", Packed("x" * 10, False), 10) == (Overflow.CLOSE, 0)
    assert outbox.put("chat", Packed("x", False), 10) == (Overflow.CLOSE, 1)
    assert outbox.put(None, Packed("x", False), 10) == (Overflow.CLOSE, 1)
    assert outbox.clear() == 1
    assert (len(outbox), outbox.size) == (0, 0)


def put_all(outbox, *messages, room=10):
    return [outbox.put(kind, Packed(data, False, *key), room) for kind, data, *key in messages]


def test_the_newest_is_dropped():
    outbox = Outbox(POLICIES)
    put_all(outbox, ("newest", "aaaa"), ("newest", "bbbb"))
    assert put_all(outbox, ("newest", "cccc")) == [(Overflow.DROP_NEWEST, 1)]
    assert put_all(outbox, ("newest", "cc")) == [(Overflow.DROP_NEWEST, 0)]
    assert rest_of(outbox) == ["aaaa", "bbbb", "cc"]


def test_the_oldest_of_the_same_type_are_dropped():
    outbox = Outbox(POLICIES)
    put_all(outbox, ("oldest", "aaa"), ("chat", "bbb"), ("oldest", "ccc"))
    assert put_all(outbox, ("oldest", "dddd")) == [(Overflow.DROP_OLDEST, 1)]
    assert rest_of(outbox) == ["bbb", "ccc", "dddd"]


def test_a_message_too_large_even_so_is_dropped_itself():
    outbox = Outbox(POLICIES)
    put_all(outbox, ("chat", "bbbbb"), ("oldest", "aaa"))
    assert put_all(outbox, ("oldest", "d" * 6)) == [(Overflow.DROP_OLDEST, 2)]
    assert rest_of(outbox) == ["bbbbb"]


def test_only_the_latest_waits_and_in_its_own_place():
    outbox = Outbox(POLICIES)
    put_all(outbox, ("latest", "a"), ("chat", "b"))
    assert put_all(outbox, ("latest", "c")) == [(Overflow.LATEST, 1)]
    assert put_all(outbox, ("chat", "d"), ("latest", "e"))[1] == (Overflow.LATEST, 1)
    assert rest_of(outbox) == ["b", "d", "e"]


def test_the_latest_of_each_key_waits_in_the_place_of_the_older_one():
    outbox = Outbox(POLICIES)
    put_all(outbox, ("latest", "a1", "a"), ("latest", "b1", "b"), ("chat", "c"))
    assert put_all(outbox, ("latest", "a2", "a"), ("latest", "b22", "b")) == [(Overflow.LATEST, 1)] * 2
    assert put_all(outbox, ("latest", "n", None), ("latest", "1", 1)) == [(Overflow.LATEST, 0)] * 2
    assert rest_of(outbox) == ["a2", "b22", "c", "n", "1"]
    assert outbox.size == 0


def test_a_key_that_changes_all_the_time_gets_its_turn():
    outbox = Outbox(POLICIES)
    taken = []
    for n in range(200):
        put_all(
            outbox, ("latest", f"hot {n}", "hot"), *(("latest", f"{n}", key) for key in range(n, n + 2)), room=10_000
        )
        taken.append(outbox.take().data)
    assert sum(data.startswith("hot") for data in taken) > 1


def test_a_key_matters_for_no_other_policy():
    outbox = Outbox(POLICIES)
    assert put_all(outbox, ("oldest", "a", "k"), ("newest", "b", "k"), ("chat", "c", "k"), ("chat", "d", "k")) == [
        (Overflow.DROP_OLDEST, 0), (Overflow.DROP_NEWEST, 0), (Overflow.CLOSE, 0), (Overflow.CLOSE, 0)
    ]  # fmt: skip
    assert rest_of(outbox) == ["a", "b", "c", "d"]


def test_the_oldest_keys_give_way_when_the_latest_of_all_are_too_many():
    outbox = Outbox(POLICIES)
    put_all(outbox, ("latest", "aaaa", "a"), ("latest", "bbbb", "b"))
    assert put_all(outbox, ("latest", "cccc", "c")) == [(Overflow.LATEST, 1)]
    assert put_all(outbox, ("latest", "b" * 9, "b")) == [(Overflow.LATEST, 2)]  # it no longer fits in its place
    assert rest_of(outbox) == ["b" * 9]
    assert put_all(outbox, ("latest", "b", "b")) == [(Overflow.LATEST, 0)]


def test_what_has_left_does_not_give_way():
    outbox = Outbox(POLICIES)
    put_all(outbox, ("latest", "a"), ("oldest", "b"), ("oldest", "c"))
    assert [outbox.take().data, outbox.take().data] == ["a", "b"]
    assert put_all(outbox, ("latest", "d"), ("oldest", "e" * 9)) == [(Overflow.LATEST, 0), (Overflow.DROP_OLDEST, 1)]
    assert rest_of(outbox) == ["d", "e" * 9]


@pytest.mark.parametrize("kind", ["chat", "latest"])
def test_a_shared_message_that_becomes_text_meanwhile_takes_its_whole_size_with_it(kind):
    outbox = Outbox(POLICIES)
    shared = Packed("żółć".encode(), True)
    outbox.put(kind, shared, 10)
    assert shared.message == "żółć"  # another receiver's transport takes text
    outbox.put(kind, Packed("x", False), 10)
    rest_of(outbox)
    assert outbox.size == 0


STEPS = st.one_of(
    st.tuples(st.sampled_from(["chat", "newest", "oldest", "latest", None]), st.integers(1, 12)), st.just("take")
)


@given(st.lists(STEPS, max_size=60), st.integers(5, 40))
def test_it_is_bounded_in_order_and_loses_only_what_it_says(steps, room):
    outbox = Outbox(POLICIES)
    given_in, taken, dropped = 0, [], 0
    for step in steps:
        if step == "take":
            if outbox:
                taken.append(outbox.take().data)
            continue
        kind, size = step
        given_in += 1
        policy, lost = outbox.put(kind, Packed(f"{given_in:03}".ljust(size + 3, "x"), False), room)
        dropped += lost
        if lost:
            assert policy is POLICIES.get(kind, Overflow.CLOSE)
        assert outbox.size <= room
    taken += rest_of(outbox)
    assert taken == sorted(taken)
    assert len(taken) + dropped == given_in
    assert outbox.size == 0


KEYED = st.one_of(
    st.tuples(st.sampled_from(["latest", "oldest", "chat"]), st.integers(0, 3), st.integers(1, 12)), st.just("take")
)


@given(st.lists(KEYED, max_size=80), st.integers(5, 40))
def test_with_keys_the_newest_of_each_is_never_followed_by_an_older_one(steps, room):
    outbox = Outbox(POLICIES)
    given_in, taken, dropped = 0, [], 0
    for step in [*steps, *["take"] * len(steps)]:
        if step == "take":
            if outbox:
                taken.append(outbox.take().data.split())
            continue
        kind, key, size = step
        given_in += 1
        dropped += outbox.put(kind, Packed(f"{kind} {key} {given_in:03} {'x' * size}", False, key), room)[1]
        assert outbox.size <= room
    assert len(taken) + dropped == given_in
    assert outbox.size == 0
    assert not outbox._latest
    for subject in {(kind, key) for kind, key, *_ in taken}:
        numbers = [number for kind, key, number, *_ in taken if (kind, key) == subject]
        assert numbers == sorted(numbers)


# At a session.


def heard(peer):
    return [(kind, payload) for kind, payload, _ in peer.heard]


@pytest.fixture(params=[ServerSide, ClientSide], ids=["server", "client"])
def side(request):
    return request.param(limits=Limits(send_buffer=1000), overflow=POLICIES)


def test_nothing_is_written_while_the_socket_takes_nothing_and_all_in_order_afterwards(side):
    side.endpoint.procedures.register("echo", lambda *args: args[-1])
    peer = side.join()
    peer.session.writable(False)
    peer.session.send("chat", 1)
    peer.say("echo", 2, 5)
    peer.call("info", 3)
    peer.say("nobody", 4, 6)
    assert peer.heard == []
    assert peer.session.queued > 0
    peer.session.writable(True)
    assert [(kind, stamp) for kind, _, stamp in peer.heard] == [
        ("chat", None), ("~wse:response", 5), ("info", 1), ("~wse:response-err", 6)
    ]  # fmt: skip
    assert peer.session.queued == 0


def test_a_socket_that_soon_takes_no_more_gets_no_more(side):
    peer = side.join()
    peer.session.writable(False)
    for n in range(3):
        peer.session.send("chat", n)
    write = peer.link.write_shared

    def full(packed):
        write(packed)
        peer.session.writable(False)

    peer.link.write_shared = full
    for n in range(3):
        peer.session.writable(True)
        assert heard(peer) == [("chat", n)]


def test_what_waits_leaves_before_a_close(side):
    peer = side.join()
    peer.session.writable(False)
    peer.session.send("chat", "last words")
    peer.session.close(1000, "bye")
    assert heard(peer) == [("chat", "last words")]
    assert peer.closed_with == (1000, "bye")


def test_what_the_socket_has_not_taken_counts(side):
    peer = side.join()
    peer.session.writable(False)
    peer.link.buffered = 990
    peer.session.send("chat", "does not fit")
    assert peer.closed_with == (1013, "wse.slow-receiver")


def test_a_slow_receiver_is_closed_and_reported(side):
    peer = side.join()
    peer.session.writable(False)
    for _ in range(10):
        peer.session.send("chat", "x" * 200)
    assert peer.closed_with == (1013, "wse.slow-receiver")
    assert peer.heard == []
    assert side.error.code == ErrorCode.SLOW_RECEIVER
    assert side.error.details["allowed"] == 1000
    assert side.error.details["close"] == [1013, "wse.slow-receiver"]
    assert side.endpoint.counters.dropped == {"close": 5}


def test_an_answer_that_does_not_fit_closes_too(side):
    side.endpoint.procedures.register("much", lambda *args: "x" * 2000)
    peer = side.join()
    peer.say("much", None, 1)
    assert len(peer.heard) == 1  # alone it may be larger
    peer.session.writable(False)
    peer.say("much", None, 2)
    assert peer.closed_with == (1013, "wse.slow-receiver")


@pytest.mark.parametrize(
    ("kind", "left"),
    [("newest", [0, 1, 2]), ("oldest", [7, 8, 9]), ("latest", [9])],
)
def test_with_a_choice_messages_give_way_and_the_connection_lives(side, kind, left):
    peer = side.join()
    peer.session.writable(False)
    for n in range(10):
        peer.session.send(kind, [n, "x" * 270])
    assert peer.closed_with is None
    assert side.endpoint.counters.dropped == {POLICIES[kind]: 10 - len(left)}
    assert ("send_buffer" in side.endpoint.counters.limits) == (kind != "latest")
    assert side.error.code == ErrorCode.SLOW_RECEIVER  # once
    peer.session.writable(True)
    assert [payload[0] for _, payload in heard(peer)] == left


def test_each_message_that_gives_way_is_counted():
    side = ServerSide(limits=Limits(send_buffer=100), overflow={"chat": Overflow.DROP_NEWEST})
    peer = side.join()
    peer.session.writable(False)
    for _ in range(3):
        peer.session.send("chat", "x" * 80)
    assert side.endpoint.counters.limits == {"send_buffer": 2}


def test_a_broadcast_waits_for_the_slow_and_for_nobody_else():
    side = ServerSide(limits=Limits(send_buffer=1000), overflow={"price": "latest"})
    slow, quick = side.join("slow"), side.join("quick")
    slow.session.writable(False)
    for n in range(50):
        side.hub.broadcast("price", n)
    assert [payload for _, payload in heard(quick)] == list(range(50))
    slow.session.writable(True)
    assert heard(slow) == [("price", 49)]


def test_a_broadcast_in_several_protocols_waits_too():
    from wse import WseJSON, WseMsgpack

    json, msgpack = WseJSON(), WseMsgpack()
    side = ServerSide(protocols=(json, msgpack))
    slow, other = side.join("slow", protocol=msgpack), side.join("other", protocol=json)
    slow.session.writable(False)
    side.hub.broadcast("chat", 1)
    assert (heard(slow), heard(other)) == ([], [("chat", 1)])
    slow.session.writable(True)
    assert heard(slow) == [("chat", 1)]


def test_a_broadcast_too_many_closes_the_slow_one_only():
    side = ServerSide(limits=Limits(send_buffer=1000))
    slow, quick = side.join("slow"), side.join("quick")
    slow.session.writable(False)
    for _ in range(10):
        side.hub.broadcast("chat", "x" * 300)
    assert slow.closed_with == (1013, "wse.slow-receiver")
    assert len(quick.heard) == 10
    assert side.names("disconnected") == [("disconnected", "slow", 1013, "wse.slow-receiver")]


def test_a_broadcast_is_not_kept_for_who_has_gone_while_it_was_sent():
    side = ServerSide(limits=Limits(send_buffer=100))
    one, other = side.join("one"), side.join("other")
    side.hub.disconnected(lambda conn, code, reason: other.conn.drop() if conn.cid == "one" else None)
    for peer in one, other:
        peer.session.writable(False)
    side.hub.broadcast("chat", "x" * 200)
    assert one.closed_with == (1013, "wse.slow-receiver")
    assert other.closed_with == (1000, "wse.by-server")
    assert other.session.queued == 0


@pytest.mark.parametrize("kind", ["~wse:hi", None])
def test_a_choice_is_for_an_application_s_own_types(kind):
    with pytest.raises(WseError, match="protocol-violation"):
        ServerSide(overflow={kind: Overflow.LATEST})


def test_a_choice_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="drop-everything"):
        ServerSide(overflow={"chat": "drop-everything"})


# From the application to the outbox.


EVERYWHERE = ["to the user", "to all", "to a room"]


@pytest.mark.parametrize(
    ("how", "sender"),
    [
        *((how, "this node") for how in [*EVERYWHERE, "to the identity", "to the device"]),
        *((how, "another node") for how in EVERYWHERE),
    ],
)
def test_a_key_goes_with_its_message_on_every_way(how, sender):
    nodes = Nodes(2, overflow=POLICIES, protocols=(WseJSON(), WseMsgpack()))
    here = nodes[0]
    peers = [nodes.join(here, protocol=protocol) for protocol in here.endpoint.protocols[:1]]
    peers.append(nodes.join(here, "bob", protocol=here.endpoint.protocols[1]))
    for peer in peers:
        here.server.room("all").add(peer.conn)
        peer.session.writable(False)
    nodes.run()
    node = here if sender == "this node" else nodes[1]
    ann = peers[0].conn

    def send(payload, key):
        if how == "to all":
            node.server.broadcast("latest", payload, key=key)
        elif how == "to a room":
            node.server.room("all").send("latest", payload, key=key)
        elif how == "to the user":
            for cid in ("ann", "bob"):
                node.server.send(cid, "latest", payload, key=key)
        else:
            for peer in peers:
                (peer.conn if how == "to the device" else peer.conn.client).send("latest", payload, key=key)

    for n in range(3):
        send(n, "one")
        send(n, 2)
        send(n, None)
    nodes.run()
    assert ann.queued > 0
    for peer in peers:
        assert len(peer.session._outbox) == 3
        peer.session.writable(True)
        assert [payload for _, payload, _ in peer.heard] == [2, 2, 2]


@pytest.mark.parametrize("key", [1.5, b"k", ["k"], ("a", 1), True, 2**64, -(2**63) - 1])
def test_a_key_that_could_not_cross_is_an_error_at_once(side, key):
    peer = side.join()
    with pytest.raises(TypeError, match="a message's key must be a string or an integer"):
        peer.session.send("latest", 1, key)
    with pytest.raises(TypeError, match="a message's key must be a string or an integer"):
        encode(peer.session.protocol, "latest", 1, key)
    assert peer.heard == []
