"""Sessions of a server that outlive their connection: the server's part of `resume` (WIRE.md section 7)."""

from __future__ import annotations

import gc

import pytest

from support.core import ServerSide
from wse.core.hub.connection import WseConnection
from wse.core.limits import Limits, Overflow
from wse.core.resume import Resume
from wse.core.session.ledger import BATCH
from wse.errors import ErrorCode
from wse.protocols.msgpack import WseMsgpack
from wse.types import ReadyState


class Side(ServerSide):
    """A server whose clients can come back."""

    def __init__(self, identify=None, *, resume=None, **options):
        options.setdefault("conns_per_user", 5)
        super().__init__(
            identify or (lambda auth: auth.accept(auth.identity, "welcome")), resume=resume or Resume(), **options
        )
        self.endpoint.channel.on("chat", lambda conn, payload: self.log.append(("chat", conn.cid, payload)))

    def come(self, cid="ann", *, offer=None, **claim):
        """A client says hi; what it has heard is its answer."""
        peer = self.open()
        offers = {"resume": (offer or {}) | claim}
        peer.say("~wse:hi", {"identity": cid, "meta": {}, "ext": offers})
        self.scheduler.run()
        return peer

    def join_resumable(self, cid="ann", **offer):
        peer = self.come(cid, **offer)
        (_, ext, _), (kind, *_) = peer.heard
        assert kind == "~wse:welcome"
        peer.ticket = {"id": ext["resume"]["id"], "key": ext["resume"]["key"]}
        return peer

    def back(self, peer, got, sent=(1, 0), cid="ann", **other):
        """The client of a session comes back."""
        new = self.come(cid, **(peer.ticket | {"got": got, "sent": list(sent)} | other))
        new.ticket = peer.ticket
        return new


def why(peer):
    """What a server says about the session that a client has claimed."""
    (_, ext, _), (kind, *_), *rest = peer.heard
    assert kind == "~wse:welcome"
    return ext["resume"].get("lost"), rest


def test_a_new_session_is_told_what_it_needs_to_come_back():
    side = Side(resume=Resume(window=30, bytes=1000, messages=10))
    peer = side.come()
    (_, ext, _), welcome = peer.heard
    answer = ext["resume"]
    assert {name: answer[name] for name in ("window", "bytes", "messages")} == {
        "window": 30,
        "bytes": 1000,
        "messages": 10,
    }
    assert answer["id"] == peer.conn.conn_id
    assert len(answer["key"]) == 22
    assert welcome == ("~wse:welcome", "welcome", None)
    assert answer["key"] not in repr(peer.conn)


@pytest.mark.parametrize("ext", [None, {}, {"resume": None}, {"resume": {"window": 0}}, {"resume": {"window": "1"}}])
def test_a_client_that_does_not_ask_gets_the_bytes_it_always_got(ext):
    plain, side = ServerSide(), Side()
    sent = []
    for one in (plain, side):
        peer = one.open()
        peer.say("~wse:hi", {"identity": "ann", "ext": ext})
        peer.conn.send("news", 1)
        peer.say("add", {"a": 1}, 1)
        peer.conn.drop()
        sent.append((peer.link.sent, peer.link.closes))
    assert sent[0] == sent[1]


def test_both_sides_send_again_what_the_other_has_missed():
    side = Side()
    peer = side.join_resumable()
    conn = peer.conn
    for n in range(5):
        conn.send("news", n)
        peer.say("chat", n)
    peer.vanish()
    assert side.names("detached", "disconnected", "left") == [("detached", "ann", 1006, "")]
    assert not conn.attached
    assert conn.ready_state is ReadyState.CONNECTING
    conn.send("news", "while away")
    new = side.back(peer, got=2, sent=(4, 7))
    assert new.heard == [
        ("~wse:ext", {"resume": {"id": conn.conn_id, "got": 5}}, None),
        ("~wse:welcome", "welcome", None),
        ("news", 2, None),
        ("news", 3, None),
        ("news", 4, None),
        ("news", "while away", None),
    ]
    assert conn.attached
    assert conn.ready_state is ReadyState.OPEN
    assert side.names("resumed") == [("resumed", "ann")]
    new.say("chat", 5)
    conn.send("news", 6)
    assert new.heard == [("news", 6, None)]
    assert [entry[2] for entry in side.names("chat")] == [0, 1, 2, 3, 4, 5]
    assert side.names("connected", "joined") == [("joined", "ann", {}), ("connected", "ann")]
    assert side.hub.connections == {conn.conn_id: conn}
    assert len(side.hub.sockets.open) == 1
    assert side.hub.sockets.unauthenticated == 0


@pytest.mark.parametrize("minutes", [0, 10])
def test_an_idle_session_can_come_back_again_and_again(minutes):
    side = Side()
    peer = side.join_resumable()
    for _ in range(3):
        side.scheduler.advance(60 * minutes)
        peer.vanish()
        peer = side.back(peer, got=0)
        assert why(peer) == (None, [])
    assert side.names("resumed") == [("resumed", "ann")] * 3


def test_a_client_that_notices_first_takes_its_session_from_the_old_socket():
    side = Side()
    peer = side.join_resumable()
    peer.conn.send("news", 1)
    new = side.back(peer, got=0)
    assert why(new) == (None, [("news", 1, None)])
    assert peer.link.closes == [(1000, "wse.resumed-elsewhere")]
    side.log.clear()
    peer.say("chat", "from the grave")  # what the old socket still brings reaches nobody
    peer.receiver.violated(1009, "too large")
    peer.receiver.writable(False)
    peer.receiver.pong()
    peer.receiver.close(1000, "")
    assert not peer.link.aborted
    side.scheduler.advance(1.1)
    assert peer.link.aborted
    peer.vanish()
    assert side.log == []
    assert side.hub.sockets.leftovers == set()
    new.say("chat", "alive")
    assert side.names("chat") == [("chat", "ann", "alive")]
    assert side.names("detached", "disconnected") == []


def test_an_old_socket_that_closes_in_time_is_not_cut():
    side = Side()
    peer = side.join_resumable()
    side.back(peer, got=0)
    peer.vanish(1000)
    side.scheduler.advance(5)
    assert not peer.link.aborted


def test_a_session_ends_with_its_window():
    side = Side(resume=Resume(window=30))
    peer = side.join_resumable(offer={"window": 50})
    other = side.join_resumable("bob", offer={"window": 10})
    peer.say("chat", 1)
    peer.vanish()
    side.scheduler.advance(5)
    other.vanish(1001, "going away")
    side.scheduler.advance(9.9)
    assert side.names("left") == []
    side.scheduler.advance(0.2)
    assert side.names("disconnected", "left") == [
        ("disconnected", "bob", 1001, "going away"),
        ("left", "bob", 1001, "going away"),
    ]
    side.scheduler.advance(15)
    assert side.names("left")[1:] == [("left", "ann", 1006, "")]
    assert side.hub.connections == {}
    lost, _ = why(side.back(peer, got=0, sent=(1, 3)))
    assert lost == {"why": "expired", "got": 1}
    assert side.scheduler.timers == [] or side.hub.resumption.detached == {}


@pytest.mark.parametrize(("window", "grace", "leaves"), [(30, 10, 30), (10, 30, 30), (30, 30, 30)])
def test_of_the_window_and_the_leave_grace_the_longer_one_holds(window, grace, leaves):
    side = Side(resume=Resume(window=window), leave_grace=grace)
    side.join_resumable(offer={"window": 50}).vanish()
    side.scheduler.advance(leaves - 0.1)
    assert side.names("left") == []
    side.scheduler.advance(0.2)
    assert side.names("left") == [("left", "ann", 1006, "")]


def test_a_client_that_leaves_for_another_server_is_expected_for_ten_seconds():
    side = Side()
    peer = side.join_resumable()
    peer.vanish(4000, "jump")
    side.scheduler.advance(9)
    assert side.names("left") == []
    side.scheduler.advance(2)
    assert side.names("left") == [("left", "ann", 4000, "jump")]


@pytest.mark.parametrize("code", [1000, 1002, 1003, 1007, 1008, 1009, 1011, 1012, 1013, 3000, 4001])
def test_a_close_that_says_more_ends_the_session(code):
    side = Side()
    peer = side.join_resumable()
    peer.vanish(code, "bye")
    assert side.names("left") == [("left", "ann", code, "bye")]


@pytest.mark.parametrize("code", [1001, 1005, 1006])
def test_a_connection_that_goes_away_leaves_its_session(code):
    side = Side()
    side.join_resumable().vanish(code)
    assert side.names("left") == []


def test_a_tombstone_is_read_once_and_not_for_ever():
    side = Side(resume=Resume(window=10))
    peer = side.join_resumable()
    peer.vanish()
    side.scheduler.advance(11)
    assert why(side.back(peer, got=0))[0]["why"] == "expired"
    assert why(side.back(peer, got=0))[0] == {"why": "unknown", "got": None}


@pytest.mark.parametrize(
    ("claim", "expected"),
    [
        ({"id": "0" * 16}, "unknown"),
        ({"id": 7}, "unknown"),
        ({"id": None}, "unknown"),
        ({"key": "A" * 22}, "unknown"),
        ({"key": ""}, "unknown"),
        ({"key": None}, "unknown"),
        ({"got": 2}, "mismatch"),
        ({"got": 2**53}, "mismatch"),
        ({"got": -1}, "mismatch"),
        ({"got": True}, "mismatch"),
        ({"got": 0.5}, "mismatch"),
        ({"got": None}, "mismatch"),
        ({"sent": [1, 0]}, "mismatch"),
        ({"sent": [3, 1]}, "mismatch"),
        ({"sent": [0, 1]}, "mismatch"),
        ({"sent": [1]}, "mismatch"),
        ({"sent": [1, 2**53]}, "mismatch"),
        ({"sent": "1,2"}, "mismatch"),
        ({"sent": [5, 9]}, "gap"),
    ],
)
def test_a_claim_that_does_not_fit_gets_a_new_session(claim, expected):
    side = Side()
    peer = side.join_resumable()
    peer.conn.send("secret", 1)
    peer.say("chat", 1)
    new = side.back(peer, **({"got": 0, "sent": (2, 3)} | claim))
    lost, rest = why(new)
    assert (lost["why"], rest) == (expected, [])
    assert new.conn.conn_id != peer.conn.conn_id
    if expected != "gap":  # the honest client goes on
        assert lost["got"] is None
        assert not peer.session.ended
        assert why(side.back(peer, got=0, sent=(2, 1))) == (None, [("secret", 1, None)])
    else:
        assert lost["got"] == 1
        assert peer.session.ended


def test_another_user_with_the_right_key_gets_nothing():
    side = Side()
    peer = side.join_resumable()
    peer.conn.send("secret", 1)
    peer.vanish()
    thief = side.back(peer, got=0, cid="eve")
    assert why(thief) == ({"why": "user", "got": None}, [])
    assert side.error.code == ErrorCode.PROTOCOL_VIOLATION
    assert why(side.back(peer, got=0)) == (None, [("secret", 1, None)])


def test_a_client_that_speaks_another_protocol_begins_anew():
    from wse.protocols.json import WseJSON

    side = Side(protocols=(WseJSON(), WseMsgpack()))
    peer = side.join_resumable()
    peer.vanish()
    other = side.open(protocol=side.endpoint.protocols[1])
    claim = peer.ticket | {"got": 0, "sent": [1, 0]}
    other.say("~wse:hi", {"identity": "ann", "ext": {"resume": claim}})
    assert why(other)[0]["why"] == "protocol"


def test_what_was_acknowledged_is_not_kept():
    side = Side()
    peer = side.join_resumable()
    for n in range(4):
        peer.conn.send("news", n)
    peer.say("~wse:ack", 3)
    assert len(peer.session.ledger.ring) == 1
    peer.vanish()
    assert why(side.back(peer, got=2))[0]["why"] == "overflow"


@pytest.mark.parametrize("ack", [5, -1, "4", None, 1.5, True, 2**60, 1])
def test_an_ack_of_what_was_never_sent_breaks_the_protocol(ack):
    side = Side()
    peer = side.join_resumable()
    for n in range(4):
        peer.conn.send("news", n)
    peer.say("~wse:ack", 2)
    peer.say("~wse:ack", ack)
    assert peer.closed_with == (1000, "wse.protocol-error")
    assert side.error.code == ErrorCode.PROTOCOL_VIOLATION


@pytest.mark.parametrize("count", [0, -1, "1", None, True, 1.5, 2**53])
def test_a_gap_that_makes_no_sense_breaks_the_protocol(count):
    side = Side()
    peer = side.join_resumable()
    peer.say("~wse:gap", count)
    assert peer.closed_with == (1000, "wse.protocol-error")


def test_a_gap_counts_as_that_many_messages():
    side = Side()
    peer = side.join_resumable()
    peer.say("chat", 1)
    peer.say("~wse:gap", 3)
    peer.say("chat", 5)
    peer.say("~wse:ask")
    side.scheduler.run()
    assert peer.heard == [("~wse:ack", 5, None)]


def test_messages_are_confirmed_in_batches_after_a_while_and_when_asked():
    side = Side()
    peer = side.join_resumable()
    peer.say("chat", 0)
    side.scheduler.advance(1.9)
    assert peer.heard == []
    side.scheduler.advance(0.2)
    assert peer.heard == [("~wse:ack", 1, None)]
    side.scheduler.advance(10)
    assert peer.heard == []
    for n in range(BATCH):
        peer.say("chat", n)
    side.scheduler.run()
    assert peer.heard == [("~wse:ack", 1 + BATCH, None)]
    peer.say("~wse:ask")
    peer.say("chat", "behind the question")
    side.scheduler.run()
    assert peer.heard == [("~wse:ack", 2 + BATCH, None)]
    assert side.endpoint.counters.messages_in == 2 + BATCH


def test_acks_do_not_pile_up_for_a_peer_that_takes_nothing():
    side = Side()
    peer = side.join_resumable()
    peer.receiver.writable(False)
    for _ in range(100):
        peer.say("~wse:ask")
        side.scheduler.run()
    assert peer.heard == []
    peer.receiver.writable(True)
    side.scheduler.run()
    assert peer.heard == [("~wse:ack", 0, None)]


def test_a_peer_that_never_acks_is_served_and_cannot_come_back_to_the_start():
    side = Side(resume=Resume(bytes=10_000))
    peer = side.join_resumable()
    for _ in range(1000):
        peer.conn.send("news", "x" * 100)
        assert peer.session.ledger.size <= 10_000
    assert ("~wse:ask", None, None) in peer.heard
    assert side.hub.resumption.retention.used <= 10_000
    base = peer.session.ledger.base
    assert 900 < base < 1000
    peer.vanish()
    assert why(side.back(peer, got=0))[0] == {"why": "overflow", "got": 0}


@pytest.mark.parametrize(("retained", "uncounted"), [(256 << 20, 32 << 10), (64 << 20, 8 << 10), (4096, 0)])
@pytest.mark.parametrize("size", [1, 100, 180, 300, 1000, 20_000])
def test_what_is_kept_is_counted_before_it_is_much(retained, uncounted, size):
    side = Side(resume=Resume(bytes=200_000, messages=150, retained=retained))
    peer = side.join_resumable()
    ledger, number = peer.session.ledger, 0
    for n in range(400):
        if n % 2:
            side.hub.broadcast("news", "x" * size)
        else:
            peer.conn.send("news", "x" * size)
        kept = sum(len(message if isinstance(message, bytes) else message.data) + 56 for message in ledger.ring)
        shared = [message for message in ledger.ring if not isinstance(message, bytes)]
        charged = kept - sum(len(message.data) - 8 for message in shared)
        assert 0 <= charged - side.hub.resumption.retention.used <= uncounted
        assert kept <= 200_000
        assert len(ledger.ring) <= 150
        if n % 50 == 49:
            number = max(number, ledger.out - 20)
            peer.say("~wse:ack", number)
    peer.vanish()
    assert ledger.size == side.hub.resumption.retention.used + sum(
        len(message.data) - 8 for message in ledger.ring if not isinstance(message, bytes)
    )


def test_one_that_has_had_them_all_but_for_the_acks_comes_back():
    side = Side(resume=Resume(messages=10))
    peer = side.join_resumable()
    for n in range(100):
        peer.conn.send("news", n)
        assert len(peer.session.ledger.ring) <= 10
    peer.vanish()
    lost, rest = why(side.back(peer, got=98))
    assert (lost, rest) == (None, [("news", 98, None), ("news", 99, None)])


def test_a_session_that_has_ended_is_not_held_until_its_window_would_have():
    side = Side(resume=Resume(bytes=10_000))
    peers = [side.join_resumable(cid) for cid in ("ann", "bob")]
    for peer in peers:
        peer.vanish()
    peers[0].conn.drop()
    assert side.names("left")
    assert len(side.hub.resumption.detached) == 1
    del peers[0], peer
    side.scheduler.run()
    gc.collect()
    ours = [
        one for one in gc.get_objects() if isinstance(one, WseConnection) and one._session.endpoint is side.endpoint
    ]
    assert [conn.cid for conn in ours] == ["bob"]


def test_a_client_that_comes_and_goes_all_the_time_takes_no_memory():
    side = Side()
    peer = side.join_resumable()
    for _ in range(1000):
        peer.vanish()
        peer = side.back(peer, got=0)
    assert len(side.hub.resumption._ends) < 200
    peer.vanish()
    side.scheduler.advance(59)
    assert side.names("left") == []
    side.scheduler.advance(2)
    assert side.names("left") == [("left", "ann", 1006, "")]


def test_too_much_for_a_client_that_is_away_ends_its_session():
    side = Side(resume=Resume(bytes=10_000))
    peer = side.join_resumable()
    peer.conn.send("news", "before")
    peer.vanish()
    seen = []
    side.hub.disconnected(lambda conn, code, reason: seen.append(conn.undelivered()))
    for _ in range(100):
        peer.conn.send("news", "x" * 1000)
    assert side.names("left") == [("left", "ann", 1013, "wse.slow-receiver")]
    assert seen[0][0] == ("news", "before")
    assert len(seen[0]) == 11
    assert side.hub.resumption.retention.used == 0
    assert why(side.back(peer, got=0))[0] == {"why": "overflow", "got": 0}


def test_types_with_a_policy_give_way_first():
    side = Side(resume=Resume(bytes=10_000), overflow={"price": Overflow.LATEST})
    peer = side.join_resumable()
    peer.vanish()
    for n in range(100):
        peer.conn.send("price", "x" * 1000 + str(n))
        if n % 40 == 0:
            peer.conn.send("news", n)
    new = side.back(peer, got=0)
    lost, rest = why(new)
    assert lost is None
    assert [(kind, payload[-2:] if kind == "price" else payload) for kind, payload, _ in rest] == [
        ("news", 0),
        ("news", 40),
        ("news", 80),
        ("price", "99"),
    ]
    new.say("~wse:ack", 4)
    assert side.errors == [] or side.error.code == ErrorCode.SLOW_RECEIVER


def test_two_mebibytes_for_a_client_that_is_away_are_too_much_unless_only_the_newest_counts():
    side = Side(overflow={"price": Overflow.LATEST})
    ordinary, latest = side.join_resumable("ordinary"), side.join_resumable("latest")
    ordinary.vanish()
    latest.vanish()
    latest.conn.send("news", 1)
    for n in range(2048):
        payload = str(n).zfill(1000)
        latest.conn.send("price", payload)
        if not ordinary.session.ended:
            ordinary.conn.send("news", payload)
    latest.conn.send("news", 2)
    assert why(side.back(ordinary, got=0, cid="ordinary"))[0] == {"why": "overflow", "got": 0}
    lost, messages = why(side.back(latest, got=0, cid="latest"))
    assert lost is None
    assert [(kind, payload) for kind, payload, _ in messages] == [
        ("news", 1),
        ("price", "2047".zfill(1000)),
        ("news", 2),
    ]


def test_with_too_many_clients_away_the_longest_away_ends():
    side = Side(resume=Resume(detached=2))
    peers = [side.join_resumable(cid) for cid in ("ann", "bob", "cid")]
    for peer in peers:
        peer.vanish()
    assert side.names("left") == [("left", "ann", 1006, "")]
    assert why(side.back(peers[0], got=0))[0]["why"] == "overflow"
    assert why(side.back(peers[2], got=0, cid="cid"))[0] is None


def test_all_sessions_together_keep_no_more_than_the_server_allows():
    side = Side(resume=Resume(retained=50_000, bytes=40_000))
    away, here = side.join_resumable("away"), side.join_resumable("here")
    away.vanish()
    for _ in range(30):
        away.conn.send("news", "x" * 1000)
    for _ in range(30):
        here.conn.send("news", "x" * 1000)
    assert side.hub.resumption.retention.used <= 50_000
    assert not here.session.ended
    for _ in range(40):
        here.conn.send("news", "x" * 1000)
        here.say("~wse:ack", here.session.ledger.out)
    more = [side.join_resumable(f"m{n}") for n in range(3)]
    for peer in more:
        peer.vanish()
        for _ in range(30):
            peer.conn.send("news", "x" * 1000)
    assert side.hub.resumption.retention.used <= 50_000
    assert not here.session.ended
    assert side.names("left")[0][1] == "away"  # the longest away


def test_a_message_to_many_counts_little_for_each():
    side = Side()
    peers = [side.join_resumable(f"u{n}") for n in range(50)]
    side.hub.broadcast("news", "x" * 10_000)
    for peer in peers:
        peer.vanish()
    assert side.hub.resumption.retention.used == 50 * 64


def test_calls_live_through_an_outage_at_both_sides():
    side = Side(timeout=100)
    release = side.scheduler.create_future()

    async def slow(conn, payload):
        return await release

    side.endpoint.procedures.register("slow", slow)
    peer = side.join_resumable()
    asked = peer.call("ask", 1)
    peer.say("slow", 1, 1)
    peer.vanish()
    late = peer.call("late", 2)
    release.set_result("done")
    side.scheduler.run()
    new = side.back(peer, got=1, sent=(2, 1))
    assert why(new)[1] == [("late", 2, 2), ("~wse:response", "done", 1)]
    new.say("~wse:response", "one", 1)
    new.say("~wse:response", "two", 2)
    side.scheduler.run()
    assert (asked.result(), late.result()) == ("one", "two")


def test_a_call_that_has_timed_out_before_it_was_sent_never_is():
    side = Side()
    peer = side.join_resumable()
    peer.vanish()
    call = peer.call("late", 1, timeout=1)
    peer.conn.send("news", 1)
    side.scheduler.advance(2)
    error = call.exception()
    assert (error.code, error.details["arrived"]) == (ErrorCode.RP_TIMEOUT, False)
    assert why(side.back(peer, got=0)) == (None, [("news", 1, None)])


def test_a_call_that_has_timed_out_is_not_sent_again():
    side = Side()
    peer = side.join_resumable()
    peer.conn.send("news", 1)
    calls = [peer.call("slow", n, timeout=1) for n in range(2)]
    peer.conn.send("news", 2)
    third = peer.call("slow", 3, timeout=1)
    side.scheduler.advance(2)
    assert [call.exception().details["arrived"] for call in (*calls, third)] == [None] * 3
    peer.vanish()
    new = side.back(peer, got=0)
    assert why(new) == (
        None,
        [("news", 1, None), ("~wse:gap", 2, None), ("news", 2, None), ("~wse:gap", 1, None)],
    )
    new.say("~wse:ack", 5)
    assert side.errors == []


def test_a_call_says_whether_it_had_arrived():
    side = Side()
    peer = side.join_resumable()
    arrived = peer.call("slow", 1)
    peer.say("~wse:ack", 1)
    unknown = peer.call("slow", 2)
    peer.vanish()
    unsent = peer.call("slow", 3)
    side.scheduler.advance(100)
    errors = [call.exception() for call in (arrived, unknown, unsent)]
    assert [error.details["arrived"] for error in errors] == [True, None, False]


def test_a_cancelled_call_is_taken_back():
    side = Side()
    peer = side.join_resumable()
    peer.vanish()
    call = peer.call("late", 1)
    call.cancel()
    side.scheduler.run()
    assert why(side.back(peer, got=0)) == (None, [])


def test_a_session_that_the_application_ends_while_away_tells_its_client_on_return():
    side = Side()
    peer = side.join_resumable()
    peer.vanish()
    side.hub.drop_client("ann", "banned", 4001)
    assert side.names("left") == [("left", "ann", 4001, "banned")]
    new = side.back(peer, got=0)
    assert new.heard == []
    assert new.closed_with == (4001, "banned")
    assert why(side.back(peer, got=0))[0]["why"] == "unknown"


def test_a_close_that_the_client_may_have_missed_is_told_again():
    side = Side()
    peer = side.join_resumable()
    peer.conn.drop("bye")
    assert side.back(peer, got=0).closed_with == (1000, "bye")


def test_a_session_that_breaks_its_bounds_begins_anew():
    side = Side(limits=Limits(send_buffer=100))
    peer = side.join_resumable()
    peer.say("chat", 1)
    peer.receiver.writable(False)
    peer.conn.send("news", "x" * 1000)
    assert peer.closed_with == (1013, "wse.slow-receiver")
    assert why(side.back(peer, got=0))[0] == {"why": "overflow", "got": 1}


@pytest.mark.parametrize("code", [1012, 4000])
def test_a_device_that_is_asked_to_come_back_keeps_its_session(code):
    side = Side()
    peer = side.join_resumable()
    peer.conn.send("news", 1)
    peer.conn.drop("jump", code)
    assert peer.closed_with == (code, "jump")
    assert side.names("detached", "left") == [("detached", "ann", code, "jump")]
    peer.conn.send("news", 2)
    side.hub.drop_client("ann", "jump", code)  # it is on its way already
    side.scheduler.advance(50)
    new = side.back(peer, got=0)
    assert why(new) == (None, [("news", 1, None), ("news", 2, None)])
    new.vanish(4000, "jump")  # the client's own
    side.scheduler.advance(11)
    assert side.names("left") == [("left", "ann", 4000, "jump")]


def test_an_application_s_close_that_is_retried_begins_anew():
    side = Side()
    peer = side.join_resumable()
    peer.say("chat", 1)
    peer.conn.drop("later", 1011)
    assert why(side.back(peer, got=0))[0] == {"why": "ended", "got": 1}


def test_a_new_device_displaces_one_that_is_away():
    side = Side(conns_per_user=2)
    living, ghost = side.join_resumable(), side.join_resumable()
    ghost.vanish()
    third = side.join_resumable()
    assert side.names("disconnected") == [("disconnected", "ann", 1000, "wse.clients-concurrency")]
    assert not living.session.ended
    assert not third.session.ended
    assert ghost.session.ended
    assert side.back(ghost, got=0).closed_with == (1000, "wse.clients-concurrency")


def test_a_session_is_not_displaced_by_its_own_return():
    side = Side(conns_per_user=1)
    peer = side.join_resumable()
    peer.vanish()
    assert why(side.back(peer, got=0))[0] is None
    assert side.names("disconnected") == []


def test_a_refused_user_leaves_no_ghost():
    allowed = ["ann"]

    def identify(auth):
        if auth.identity in allowed:
            auth.accept(auth.identity, "welcome")
        else:
            auth.refuse(retry=auth.meta.get("retry", False))

    side = Side(identify)
    peer = side.join_resumable()
    peer.vanish()
    allowed.clear()
    other = side.come("ann", id=peer.ticket["id"], key="wrong", got=0, sent=[1, 0])
    assert other.closed_with == (1000, "wse.not-authorized")
    assert side.names("left") == []
    assert side.back(peer, got=0).closed_with == (1000, "wse.not-authorized")
    assert side.names("left") == [("left", "ann", 1000, "wse.not-authorized")]


def test_a_refusal_for_the_moment_leaves_the_session():
    refuse = []

    def identify(auth):
        if refuse:
            auth.refuse(retry=True)
        else:
            auth.accept(auth.identity, "welcome")

    side = Side(identify)
    peer = side.join_resumable()
    peer.vanish()
    refuse.append(1)
    side.back(peer, got=0)
    refuse.clear()
    assert why(side.back(peer, got=0))[0] is None


def test_an_identify_handler_may_trust_the_key_of_a_session():
    seen = []

    async def identify(auth):
        returning = await auth.resuming()
        seen.append(returning)
        auth.accept(auth.identity if returning is None else returning.cid, "welcome")
        assert await auth.resuming() is None  # decided

    side = Side(identify)
    peer = side.join_resumable()
    peer.vanish()
    assert why(side.back(peer, got=0, cid="whoever", key="wrong"))[0]["why"] == "unknown"
    assert why(side.back(peer, got=0, cid="whoever"))[0] is None
    assert seen == [None, None, ("ann", {})]
    assert side.join("bob").conn.cid == "bob"
    plain = ServerSide(identify)
    assert plain.join("cid").conn.cid == "cid"


def test_the_window_waits_while_its_client_is_being_authenticated():
    release = []

    def identify(auth):
        if release:

            async def later():
                await release[0]
                auth.accept(auth.identity, "welcome")

            return later()
        auth.accept(auth.identity, "welcome")
        return None

    side = Side(identify, resume=Resume(window=10))
    peer = side.join_resumable()
    peer.vanish()
    release.append(side.scheduler.create_future())
    side.scheduler.advance(9)
    new = side.back(peer, got=0)
    side.scheduler.advance(5)
    assert side.names("left") == []
    release[0].set_result(None)
    side.scheduler.run()
    assert why(new)[0] is None
    assert not peer.session.ended


def test_a_window_that_is_over_ends_when_its_client_fails():
    release = []

    def identify(auth):
        if release:

            async def later():
                await release[0]

            return later()
        auth.accept(auth.identity, "welcome")
        return None

    side = Side(identify, resume=Resume(window=10), auth_timeout=20)
    peer = side.join_resumable()
    peer.vanish()
    release.append(side.scheduler.create_future())
    side.scheduler.advance(9)
    new = side.back(peer, got=0)
    side.scheduler.advance(5)
    assert side.names("left") == []
    new.vanish()
    assert side.names("left") == [("left", "ann", 1006, "")]


def test_the_new_link_brings_identity_meta_request_and_time():
    side = Side(lambda auth: auth.accept("ann", "welcome", expires=auth.identity["until"]))
    peer = side.join_resumable({"until": side.scheduler.now + 50})
    conn = peer.conn
    peer.vanish()
    side.request_from = "192.0.2.9"
    new = side.open()
    until = side.scheduler.now + 500
    claim = peer.ticket | {"got": 0, "sent": [1, 0]}
    new.say("~wse:hi", {"identity": {"until": until}, "meta": {"n": 2}, "ext": {"resume": claim, "auth": {}}})
    assert (conn.identity, conn.meta, conn.remote_addr) == ({"until": until}, {"n": 2}, "192.0.2.9")
    assert conn.expires == until
    assert "auth" in peer.session.agreement.names


def test_a_session_that_expires_closes_its_socket_and_waits_for_a_fresh_identity():
    side = Side(lambda auth: auth.accept("ann", "welcome", expires=side.scheduler.now + 50))
    peer = side.join_resumable()
    side.scheduler.advance(51)
    assert peer.closed_with == (1012, "wse.session-expired")
    assert side.names("detached", "left") == [("detached", "ann", 1012, "wse.session-expired")]
    assert why(side.back(peer, got=0))[0] is None
    side.log.clear()
    peer.vanish()  # the old socket ends at last
    assert side.log == []


def test_handlers_go_on_while_their_client_is_away():
    side = Side(limits=Limits(handler_linger=1))
    release = side.scheduler.create_future()

    async def slow(conn, payload):
        await release
        conn.send("done", payload)

    side.endpoint.channel.on("work", slow)
    peer = side.join_resumable()
    peer.say("work", 7)
    peer.vanish()
    side.scheduler.advance(10)
    release.set_result(None)
    side.scheduler.run()
    assert side.errors == []
    assert why(side.back(peer, got=0, sent=(2, 1)))[1] == [("done", 7, None)]


def test_the_rest_of_an_identify_handler_belongs_to_the_session_that_goes_on():
    async def identify(auth):
        auth.accept(auth.identity, "welcome")
        await side.scheduler.create_future()

    side = Side(identify, limits=Limits(handler_linger=1))
    peer = side.join_resumable()
    peer.vanish()
    side.back(peer, got=0)
    assert len(peer.session.tasks) == 2
    peer.conn.drop()
    side.scheduler.advance(2)
    assert [error.code for error, _ in side.errors] == [ErrorCode.HANDLER_CANCELLED] * 2


def test_drain_waits_through_the_outage():
    side = Side()
    peer = side.join_resumable()
    peer.vanish()
    drained = side.scheduler.start(peer.conn.drain())
    side.scheduler.advance(5)
    assert not drained.done()
    side.back(peer, got=0)
    side.scheduler.run()
    assert drained.done()


def test_flush_waits_until_the_client_has_handled_everything():
    side = Side()
    peer = side.join_resumable()
    assert side.scheduler.start(peer.conn.flush()).result() is None
    peer.conn.send("news", 1)
    flush = side.scheduler.start(peer.conn.flush())
    assert peer.heard == [("news", 1, None), ("~wse:ask", None, None)]
    peer.conn.send("news", 2)
    second = side.scheduler.start(peer.conn.flush())
    peer.say("~wse:ack", 1)
    side.scheduler.run()
    assert flush.done()
    assert not second.done()
    assert peer.heard == [("news", 2, None), ("~wse:ask", None, None)]
    peer.vanish()
    peer.conn.send("news", 3)
    third = side.scheduler.start(peer.conn.flush())
    new = side.back(peer, got=2)
    side.scheduler.run()
    assert second.done()
    assert not third.done()
    assert why(new)[1] == [("news", 3, None), ("~wse:ask", None, None)]
    new.say("~wse:ack", 3)
    side.scheduler.run()
    assert third.done()


def test_flush_fails_with_the_session_in_time_or_not_at_all():
    side = Side()
    peer = side.join_resumable()
    peer.conn.send("news", 1)
    early = side.scheduler.start(peer.conn.flush(5))
    late = side.scheduler.start(peer.conn.flush())
    side.scheduler.advance(6)
    assert isinstance(early.exception(), TimeoutError)
    peer.conn.drop()
    side.scheduler.run()
    assert late.exception().code == ErrorCode.SESSION_LOST
    assert side.scheduler.start(peer.conn.flush()).exception().code == ErrorCode.SESSION_LOST
    plain = side.join("bob")
    assert side.scheduler.start(plain.conn.flush()).exception().code == ErrorCode.UNSUPPORTED


def test_undelivered_are_messages_only():
    side = Side()
    peer = side.join_resumable()
    peer.conn.send("news", 1)
    peer.call("ask", 2)
    peer.conn.send("news", 3)
    peer.say("~wse:ack", 1)
    peer.vanish()
    peer.conn.send("news", 4)
    assert peer.conn.undelivered() == [("news", 3), ("news", 4)]
    assert side.join("bob").conn.undelivered() == []


def test_a_resend_does_not_outrun_the_socket():
    side = Side()
    peer = side.join_resumable()
    for n in range(10):
        peer.conn.send("news", n)
    peer.vanish()
    peer.conn.send("news", 10)
    new = side.open()
    written = []

    def write(data, write=new.link.write):
        write(data)
        written.append(data)
        if len(written) == 5:  # ext, welcome and three messages
            new.receiver.writable(False)

    new.link.write = write
    claim = peer.ticket | {"got": 0, "sent": [1, 0]}
    new.say("~wse:hi", {"identity": "ann", "ext": {"resume": claim}})
    assert len(written) == 5
    peer.conn.send("news", 11)
    assert len(written) == 5
    new.receiver.writable(True)
    assert [message[1] for message in new.heard[2:]] == list(range(12))
    assert peer.session.ledger.out == 12


def test_nothing_overtakes_a_resend_after_a_loss_that_the_server_has_not_noticed():
    side = Side()
    peer = side.join_resumable()
    peer.conn.send("news", 0)
    new = side.open()
    new.receiver.writable(False)
    claim = peer.ticket | {"got": 0, "sent": [1, 0]}
    new.say("~wse:hi", {"identity": "ann", "ext": {"resume": claim}})
    peer.conn.send("news", 1)
    new.receiver.writable(True)
    assert [message[1] for message in new.heard[2:]] == [0, 1]


def test_a_close_during_a_resend_sends_everything_first_in_order():
    side = Side()
    peer = side.join_resumable()
    for n in range(4):
        peer.conn.send("news", n)
    peer.vanish()
    new = side.open()
    new.receiver.writable(False)
    claim = peer.ticket | {"got": 0, "sent": [1, 0]}
    new.say("~wse:hi", {"identity": "ann", "ext": {"resume": claim}})
    peer.conn.send("news", 4)
    peer.conn.drop("bye")
    assert [message[1] for message in new.heard[2:]] == [0, 1, 2, 3, 4]
    assert new.closed_with == (1000, "bye")


def test_a_message_that_breaks_every_link_is_not_sent_for_ever():
    side = Side()
    peer = side.join_resumable()
    peer.conn.send("poison", 1)
    for _ in range(5):
        peer.vanish()
        peer = side.back(peer, got=0)
        assert why(peer)[0] is None
    peer.vanish()
    assert why(side.back(peer, got=0))[0]["why"] == "stuck"


def test_a_message_that_is_slow_to_be_confirmed_is_no_poison():
    side = Side()
    peer = side.join_resumable()
    peer.conn.send("news", 1)
    for _ in range(10):
        side.scheduler.advance(6)
        peer.vanish()
        peer = side.back(peer, got=0)
        assert why(peer)[0] is None


def test_what_a_client_has_had_to_keep_does_not_count_for_its_rate():
    side = Side(limits=Limits(message_rate=1, message_burst=3))
    peer = side.join_resumable()
    peer.vanish()
    side.scheduler.advance(10)
    new = side.back(peer, got=0, sent=(1, 20))
    for n in range(20):
        new.say("chat", n)
    assert len(side.names("chat")) == 20
    for n in range(5):
        new.say("chat", n)
    assert new.closed_with == (1008, "wse.limit.message-rate")


def test_a_server_that_closes_ends_those_that_are_away():
    side = Side()
    here, away = side.join_resumable("here"), side.join_resumable("away")
    away.vanish()
    closing = side.scheduler.start(side.hub.close(1012, "wse.by-server"))
    assert side.names("left") == [("left", "away", 1006, ""), ("left", "here", 1012, "wse.by-server")]
    here.vanish(1012)
    side.scheduler.run()
    assert closing.done()
    assert side.scheduler.timers == [] or side.hub.resumption.detached == {}


def test_the_counters_know_who_is_away():
    from wse.core.hub.census import take_stats

    side = Side()
    peer = side.join_resumable()
    peer.vanish()
    peer.conn.send("news", "x" * 100)
    call = peer.call("ask")
    stats = take_stats(side.hub, uptime=0, running_handlers=0, refused_origins=0)
    assert (stats.connections, stats.detached, stats.identities, stats.pending_calls) == (0, 1, 1, 1)
    assert stats.retained > 100
    assert stats.queued_bytes > 100
    assert stats.close_codes == {1006: 1}
    side.scheduler.advance(100)
    assert call.exception()
    stats = take_stats(side.hub, uptime=0, running_handlers=0, refused_origins=0)
    assert (stats.detached, stats.retained, stats.close_codes) == (0, 0, {1006: 1})


def test_addresses_are_counted_by_socket():
    side = Side(limits=Limits(connections_per_address=2))
    peer = side.join_resumable()
    peer.vanish()
    assert side.hub.sockets.by_address == {}
    new = side.back(peer, got=0)
    assert side.hub.sockets.by_address == {"192.0.2.1": 1}
    newer = side.back(new, got=0)
    assert side.hub.sockets.by_address == {"192.0.2.1": 1}
    assert why(newer)[0] is None
    newer.vanish(1000)
    assert side.hub.sockets.by_address == {}


def test_rooms_and_users_reach_a_client_that_is_away():
    side = Side()
    peer = side.join_resumable()
    side.hub.rooms.add("news", peer.conn)
    peer.vanish()
    side.hub.rooms.send("news", "one", 1, None)
    side.hub.send("ann", "two", 2)
    side.hub.broadcast("three", 3)
    assert [kind for kind, *_ in why(side.back(peer, got=0))[1]] == ["one", "two", "three"]


def test_a_call_to_the_newest_device_prefers_one_that_is_there():
    side = Side()
    old, new = side.join_resumable(), side.join_resumable()
    new.vanish()
    side.scheduler.start(side.hub.call("ann", "ask", 1, "any", None))
    assert old.heard == [("ask", 1, 1)]


def test_a_call_may_wait_for_a_user_who_is_away():
    side = Side()
    with pytest.raises(ValueError, match="wait"):
        side.scheduler.start(side.hub.call("ann", "ask", 1, "first", None, -1)).result()
    missing = side.scheduler.start(side.hub.call("ann", "ask", 1, "first", None, 5))
    side.scheduler.advance(6)
    assert missing.exception().code == ErrorCode.CONNECTION_MISSING
    call = side.scheduler.start(side.hub.call("ann", "ask", 1, "first", None, 5))
    side.scheduler.advance(3)
    peer = side.open()
    peer.say("~wse:hi", {"identity": "ann"})
    side.scheduler.run()
    assert peer.heard[1:] == [("ask", 1, 1)]
    peer.say("~wse:response", "yes", 1)
    side.scheduler.run()
    assert call.result() == "yes"
    assert not side.hub._arrivals


def test_a_lost_answer_is_given_again():
    side = Side()
    peer = side.join_resumable()
    peer.conn.send("news", 1)
    peer.vanish()
    new = side.back(peer, got=0)  # and breaks before the client has read anything
    new.vanish()
    assert why(side.back(peer, got=0)) == (None, [("news", 1, None)])


def test_the_heartbeat_looks_at_the_present_link():
    from wse.core.heartbeat import Heartbeat

    side = Side(heartbeat=Heartbeat(interval=10, timeout=10))
    peer = side.join_resumable()
    peer.vanish()
    side.scheduler.advance(15)
    new = side.back(peer, got=0)
    side.scheduler.advance(40)
    assert new.link.pings_sent
    assert new.link.aborted
    assert not peer.link.aborted


@pytest.mark.parametrize("bounds", [{"window": 0}, {"bytes": 0}, {"messages": -1}, {"detached": 0}, {"retained": 0}])
def test_bounds_are_positive(bounds):
    with pytest.raises(ValueError, match="must be more than 0"):
        Resume(**bounds)
