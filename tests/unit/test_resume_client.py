"""A client whose session outlives its connection, against a server that the test plays (WIRE.md section 7)."""

from __future__ import annotations

import asyncio

import pytest

from support.clients import AT_ONCE, fails
from support.net import Log, soon
from support.resume import until
from wse import Backoff, ErrorCode, Limits, Overflow, Resume, WseClient, WseError, WseServer
from wse.testing import URL, MemoryConnector

FOR_EVER = Backoff(base=3600, cap=3600, random=lambda: 1.0)

ANSWER = {"id": "s1", "key": "k1", "window": 60, "bytes": 1000, "messages": 10}


def log_of(client):
    log = Log()
    for name in ("ready", "resumed", "lost", "closed", "gave_up", "updated"):
        getattr(client.when, name)(log.adder(name))
    client.channel.on("news", log.adder("news"))
    return log


async def hear_hi(peer):
    """What the client offers for `resume`."""
    kind, hi, _ = await peer.hear()
    assert kind == "~wse:hi"
    return hi["ext"].get("resume")


async def let_in(far, answer=None, welcome="hello"):
    """Accept the client's next connection; returns it and what the client has offered."""
    peer = await far.peer()
    offer = await hear_hi(peer)
    if answer is not None:
        await peer.say("~wse:ext", {"resume": answer})
    await peer.say("~wse:welcome", welcome)
    return peer, offer


async def joined(far, **options):
    """A connected client, the server's end of its connection, and its log."""
    client = far.client(**({"reconnect": True, "resume": True, "backoff": AT_ONCE} | options))
    log = log_of(client)
    connecting = asyncio.ensure_future(client.connect())
    peer, _ = await let_in(far, ANSWER)
    assert await soon(connecting) == "hello"
    return client, peer, log


async def test_only_a_client_that_wants_it_asks_for_it(far):
    for resume, offered in ((False, None), (True, {}), (Resume(window=5), {"window": 5})):
        client = far.client(resume=resume)
        connecting = asyncio.ensure_future(client.connect())
        _, offer = await let_in(far)
        await soon(connecting)
        assert offer == offered
        await client.close()


async def test_ready_is_told_once_and_to_those_who_have_come_meanwhile(far):
    client, peer, log = await joined(far)
    ready = Log()
    client.when.ready.once(ready.adder("once"))  # holds now
    await peer.close(1001, "reload")
    await log.until("closed")
    client.when.ready(ready.adder("late"))
    client.when.ready.once(ready.adder("late once"))
    waiting = asyncio.ensure_future(client.wait_ready())
    peer, offer = await let_in(far, {"id": "s2", "got": 0}, "again")
    assert offer == {"id": "s1", "key": "k1", "got": 0, "sent": [1, 0]}
    assert await soon(waiting) == "again"
    await log.until("resumed", "again")
    assert log.all("ready") == [("hello",)]
    assert ready.entries == [("once", "hello"), ("late", "again"), ("late once", "again")]
    assert client.recovered
    client.when.ready(ready.adder("later"))
    assert ready.entries[-1] == ("later", "again")
    await peer.close(1001, "reload")
    await let_in(far, {**ANSWER, "lost": {"why": "expired", "got": 0}}, "anew")
    await log.until("ready", "anew")
    assert not client.recovered
    assert ("late", "anew") in ready.entries


async def test_messages_right_behind_a_welcome_wait_for_listeners_and_are_counted_once(far):
    client = far.client(reconnect=True, resume=True, backoff=AT_ONCE)
    connecting = asyncio.ensure_future(client.connect())
    peer = await far.peer()
    await hear_hi(peer)
    await peer.say("~wse:ext", {"resume": ANSWER})
    await peer.say("~wse:welcome", None)
    for n in range(3):
        await peer.say("news", n)
    await peer.say("~wse:ask")
    await peer.close(1001, "gone at once")
    await soon(connecting)
    log = log_of(client)
    peer, offer = await let_in(far, {"id": "s1", "got": 0})
    assert log.all("news") == [(0,), (1,), (2,)]
    assert offer["got"] == 3


async def test_too_much_for_a_server_that_is_away_ends_the_session(far):
    client, peer, log = await joined(far, resume=Resume(bytes=1000))
    client.send("chat", "before")
    assert await peer.hear() == ["chat", "before", None]
    far.down = 10_000
    await peer.close(1006, "")
    await log.until("closed")
    call = asyncio.ensure_future(client.call("ask"))
    await asyncio.sleep(0)
    while not log.all("lost"):
        client.send("chat", "x" * 100)
    with pytest.raises(WseError, match="not-ready"):
        client.send("chat", "x")
    ((loss,),) = log.all("lost")
    assert loss.why == "overflow"
    assert loss.uncertain == [("chat", "before")]
    assert {payload for _, payload in loss.unsent} == {"x" * 100}
    assert "overflow" in repr(loss)
    error = await fails(call)
    assert (error.code, error.details["arrived"]) == (ErrorCode.RP_DISCONNECT, False)
    far.down = 0
    _, offer = await let_in(far, ANSWER)
    assert offer == {"window": 60}
    await log.until("ready", "hello")


async def test_types_with_a_policy_give_way_while_the_server_is_away(far):
    client, peer, log = await joined(far, resume=Resume(bytes=1000), overflow={"pos": Overflow.LATEST})
    far.down = 10_000
    await peer.close(1006, "")
    await log.until("closed")
    for n in range(100):
        client.send("pos", n)
    client.send("chat", "end")
    far.down = 0
    peer, _ = await let_in(far, {"id": "s1", "got": 0})
    assert [await peer.hear() for _ in range(2)] == [["pos", 99, None], ["chat", "end", None]]


async def test_a_jump_offers_the_session_to_the_next_server(far):
    client, peer, log = await joined(far)
    client.send("chat", 1)
    jumping = asyncio.ensure_future(client.jump(URL))
    peer2, offer = await let_in(far, {"id": "s1", "got": 0}, "there")
    assert offer == {"id": "s1", "key": "k1", "got": 0, "sent": [1, 1]}
    assert await soon(jumping) == "there"
    assert await peer2.hear() == ["chat", 1, None]
    assert await peer.closed() == (4000, "jump")
    await log.until("resumed", "there")


async def test_a_jump_as_another_user_forgets_the_session(far):
    client, _, log = await joined(far)
    client.send("chat", 1)
    call = asyncio.ensure_future(client.call("ask"))
    await asyncio.sleep(0)
    jumping = asyncio.ensure_future(client.jump(URL, identity="bob"))
    _, offer = await let_in(far, ANSWER)
    await soon(jumping)
    assert offer == {}
    assert (await fails(call)).code == ErrorCode.RP_DISCONNECT
    assert log.all("lost") == []


async def test_close_while_away_ends_the_session_and_its_calls(far):
    client, peer, log = await joined(far, backoff=FOR_EVER)
    await peer.close(1006, "")
    await log.until("closed")
    call = asyncio.ensure_future(client.call("ask"))
    flush = asyncio.ensure_future(client.flush())
    client.send("chat", 1)
    await asyncio.sleep(0)
    flush2 = asyncio.ensure_future(client.flush())
    await asyncio.sleep(0)
    await client.close()
    assert (await fails(call)).details["disconnected"] == [1000, "wse.by-client"]
    assert flush.done()  # nothing had been sent but the call
    assert (await fails(flush2)).code == ErrorCode.SESSION_LOST
    assert log.all("lost") == []
    assert (await fails(client.flush())).code == ErrorCode.CLIENT_NOT_READY


async def test_giving_up_loses_the_session(far):
    client, peer, log = await joined(far)
    client.send("chat", 1)
    await peer.hear()
    await peer.say("~wse:ack", 1)
    client.send("chat", 2)
    await peer.hear()
    await peer.close(1006, "")
    peer = await far.peer()
    await hear_hi(peer)
    await peer.close(1000, "wse.not-authorized")
    await log.until("gave_up")
    ((loss,),) = log.all("lost")
    assert (loss.why, loss.uncertain, loss.unsent) == ("ended", [("chat", 2)], [])
    assert log.names.index("lost") < log.names.index("gave_up")
    with pytest.raises(WseError, match="not-ready"):
        loss.resend(uncertain=True)


async def test_a_lost_session_can_be_sent_again(far):
    client, peer, log = await joined(far)

    @client.when.lost
    def send_again(loss):
        loss.resend()

    client.send("chat", 1)
    await peer.hear()
    await peer.close(1006, "")
    await log.until("closed")
    client.send("chat", 2)
    peer, _ = await let_in(far, {**ANSWER, "lost": {"why": "expired", "got": 0}})
    assert [await peer.hear() for _ in range(2)] == [["chat", 1, None], ["chat", 2, None]]
    assert log.names[-3:] != []


@pytest.mark.parametrize("lost", [True, 7, "expired", {}, {"why": None, "got": "1"}, {"why": "new", "got": 99}])
async def test_a_server_that_explains_nothing_still_ends_the_session(far, lost):
    client, peer, log = await joined(far)
    client.send("chat", 1)
    await peer.hear()
    await peer.close(1006, "")
    await let_in(far, {**ANSWER, "lost": lost})
    _, loss = await log.until("lost")
    assert (loss.uncertain, loss.unsent) == ([("chat", 1)], [])
    await log.until("updated", "READY")


@pytest.mark.parametrize("answer", [{}, {"id": 1, "key": "k"}, {"id": "s"}, {"id": "s", "key": None}, [], None, 5])
async def test_an_answer_that_makes_no_sense_is_none(far, answer):
    client = far.client(reconnect=True, resume=True, backoff=AT_ONCE)
    connecting = asyncio.ensure_future(client.connect())
    peer = await far.peer()
    await hear_hi(peer)
    await peer.say("~wse:ext", {"resume": answer})
    await peer.say("~wse:welcome", None)
    await soon(connecting)
    assert (await fails(client.flush())).code == ErrorCode.UNSUPPORTED
    await peer.close(1006, "")
    peer = await far.peer()
    assert await hear_hi(peer) == {}


@pytest.mark.parametrize("got", [2, -1, None, "0", True])
async def test_a_server_that_goes_on_with_what_has_never_been_breaks_the_protocol(far, got):
    client, peer, log = await joined(far)
    client.send("chat", 1)
    await peer.hear()
    await peer.close(1006, "")
    peer, _ = await let_in(far, {"id": "s1", "got": got})
    assert await peer.closed() == (1000, "wse.protocol-error")
    _, loss = await log.until("lost")
    assert (loss.why, loss.uncertain) == ("mismatch", [("chat", 1)])
    await soon(client.wait_closed())


async def test_an_attempt_that_is_given_up_does_not_end_the_session_at_the_server(far):
    client, peer, log = await joined(far)
    await peer.close(1006, "")
    peer = await far.peer()
    await hear_hi(peer)
    jumping = asyncio.ensure_future(client.jump(URL))
    assert await peer.closed() == (4000, "jump")  # 1000 would end the session, which the server may have just taken up
    _, offer = await let_in(far, {"id": "s1", "got": 0})
    assert offer["id"] == "s1"
    await soon(jumping)
    await log.until("resumed")


async def test_a_message_that_breaks_every_connection_is_not_sent_for_ever(far):
    client, peer, log = await joined(far)
    client.send("poison", 1)
    await peer.hear()
    for _ in range(5):
        await peer.close(1006, "")
        peer, offer = await let_in(far, {"id": "s1", "got": 0})
        assert offer["sent"] == [1, 1]
        assert await peer.hear() == ["poison", 1, None]
    await peer.close(1006, "")
    peer, offer = await let_in(far, ANSWER)
    assert offer == {}
    ((loss,),) = log.all("lost")
    assert (loss.why, loss.uncertain) == ("stuck", [("poison", 1)])
    await log.until("updated", "READY")


async def test_a_session_that_ends_while_the_server_takes_it_up_is_ended_there_as_well(far):
    client, peer, log = await joined(far, resume=Resume(bytes=1000))
    await peer.close(1006, "")
    peer = await far.peer()
    offer = await hear_hi(peer)
    assert offer["id"] == "s1"
    while not log.all("lost"):
        client.send("chat", "x" * 100)
    await peer.say("~wse:ext", {"resume": {"id": "s1", "got": 0}})
    await peer.say("~wse:welcome", None)
    await peer.say("news", "of the old session")
    assert await peer.closed() == (1000, "wse.by-client")
    peer, offer = await let_in(far, ANSWER)
    assert "id" not in offer
    await log.until("updated", "READY")
    assert log.all("news") == []
    assert len(log.all("lost")) == 1


async def test_without_reconnection_a_lost_connection_loses_the_session(far):
    client, peer, log = await joined(far, reconnect=False)
    client.send("chat", 1)
    await peer.hear()
    await peer.close(1001, "")
    await log.until("gave_up")
    assert [name for name in log.names if name in ("closed", "lost", "gave_up")] == ["closed", "lost", "gave_up"]


async def test_a_violation_of_the_server_loses_the_session_once(far):
    client, peer, log = await joined(far)
    client.send("chat", 1)
    await peer.hear()
    await peer.say("~wse:ack", 7)
    assert await peer.closed() == (1000, "wse.protocol-error")
    await log.until("lost")
    await soon(client.wait_closed())
    assert len(log.all("lost")) == 1


async def test_a_slow_server_loses_the_session_and_says_what_it_has_not_had(far):
    client, peer, log = await joined(far, limits=Limits(send_buffer=1000))
    session = client._connections.session
    session.ledger.writable(False)
    for n in range(100):
        try:
            client.send("chat", "x" * 100 + str(n))
        except WseError:
            break
    _, loss = await log.until("lost")
    assert loss.why == "overflow"
    assert len(loss.unsent) == n  # all that `send` has taken
    await peer.closed()


async def test_a_call_over_an_outage_times_out_in_time(far):
    client, peer, log = await joined(far, backoff=FOR_EVER)
    await peer.close(1006, "")
    await log.until("closed")
    error = await fails(client.call("ask", timeout=0.01))
    assert (error.code, error.details["arrived"]) == (ErrorCode.RP_TIMEOUT, False)
    assert client._connections._resumption.kept.queued == 0


async def test_the_server_calls_over_an_outage(far):
    client, peer, log = await joined(far)
    release = asyncio.Event()

    @client.register("slow")
    async def slow(payload):
        await release.wait()
        return payload

    await peer.say("slow", 7, 1)
    await until(lambda: client._connections.session.running_handlers)
    await peer.close(1006, "")
    await log.until("closed")
    release.set()
    peer, offer = await let_in(far, {"id": "s1", "got": 0})
    assert offer["got"] == 1
    assert await peer.hear() == ["~wse:response", 7, 1]


def test_the_client_can_be_used_in_another_event_loop_while_its_session_waits():
    server = WseServer(lambda auth: auth.accept("ann"))
    client = WseClient(
        "ws://x",
        reconnect=True,
        resume=True,
        connector=MemoryConnector(server),
        backoff=FOR_EVER,
    )

    async def lose():
        await client.connect()
        client._connections.session.ledger.abort()
        await soon(client.when.closed.wait())
        client.send("chat", 1)

    async def again():
        await client.connect()
        await client.close()
        await server.close()

    asyncio.run(lose())
    asyncio.run(again())
