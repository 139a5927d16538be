"""Extensions between a real client and a real server, on every transport (WIRE.md section 7)."""

import json
import time

import pytest

from support.net import OFFERS, ServerLog, hi, make_server, soon
from wse import ErrorCode, Limits, WseError

MIB = 1024 * 1024


async def test_a_raw_client_that_offers_gets_one_answer_before_the_welcome(run):
    server = make_server()
    place = await run(server)
    peer = await place.peer()
    await peer.say("~wse:hi", {"identity": "ann", "ext": {**OFFERS, "unknown": {}}})
    kind, answers, _ = await peer.hear()
    (conn,) = server.clients["ann"].conns
    rooms = {"device": conn, "state": 4096}
    assert kind == "~wse:ext"
    assert answers == {"auth": {}, "limits": {}, "calls": {"timeout": 20}, "rooms": rooms}
    assert (await peer.hear())[0] == "~wse:welcome"


async def test_a_raw_client_that_offers_nothing_gets_the_bytes_it_always_got(run):
    server = make_server(lambda auth: auth.accept("ann", 1, expires=time.time() + 0.05))
    place = await run(server)
    peer = await place.peer()
    await peer.send(hi("ann"))
    data = await peer.receive()
    assert (data if isinstance(data, str) else bytes(data).decode()) == '["~wse:welcome",1,null]'
    with pytest.raises(ConnectionError):
        await peer.receive()
    assert await peer.closed() == (1012, "wse.session-expired")


async def test_the_reason_of_a_refusal_comes_just_before_the_close(run):
    place = await run(make_server(lambda auth: auth.refuse("closed on Sundays", retry=True)))
    peer = await place.peer()
    await peer.say("~wse:hi", {"identity": "ann", "ext": OFFERS})
    assert await peer.hear() == ["~wse:refused", {"reason": "closed on Sundays", "retry": True}, None]
    assert await peer.closed() == (1000, "wse.not-authorized")


async def test_a_session_lives_on_with_fresh_identities(listen):
    server = make_server(lambda auth: auth.accept("ann", expires=time.time() + 4))
    seen = []

    @server.reauthenticate
    async def reauthenticate(conn, identity):
        seen.append((conn.cid, identity))
        return time.time() + (4 if len(seen) == 1 else -1)

    place = await listen(server)
    peer = await place.peer()
    await peer.say("~wse:hi", {"identity": "ann", "ext": OFFERS})
    assert (await peer.hear())[0] == "~wse:ext"
    assert (await peer.hear())[0] == "~wse:welcome"
    for number in range(2):
        assert await soon(peer.hear()) == ["~wse:auth", None, None]
        await peer.say("~wse:auth", number)
    assert await peer.closed() == (1012, "wse.session-expired")
    assert seen == [("ann", 0), ("ann", 1)]


async def test_a_result_that_the_client_does_not_take_fails_the_call_and_not_the_client(run):
    server = make_server()
    log = ServerLog(server)
    server.register("make", lambda conn, size: "x" * size)
    place = await run(server)
    client = await place.connect(limits=Limits(message_size=5000))
    conn = await log.conn("ann")
    assert len(await soon(client.call("make", 4000))) == 4000
    with pytest.raises(WseError) as caught:
        await soon(client.call("make", 6000))
    assert caught.value.code == ErrorCode.LIMIT_EXCEEDED
    assert (caught.value.details["limit"], caught.value.details["allowed"]) == ("message_size", 5000)
    with pytest.raises(WseError, match="limit-exceeded"):
        conn.send("chat", "x" * 6000)
    server.broadcast("chat", "x" * 6000)
    assert await soon(client.call("make", 1)) == "x"


async def test_a_message_just_under_the_limit_does_not_kill_its_own_sender(run):
    server = make_server()

    @server.register("fail")
    def fail(conn, payload):
        raise ValueError("no good")

    place = await run(server)
    client = await place.connect()
    payload = "x" * (MIB - len(json.dumps(["absent", "", 99])))
    for name in ("fail", "absent"):
        with pytest.raises(WseError) as caught:
            await soon(client.call(name, payload))
        assert "payload" not in caught.value.details
    assert caught.value.code == ErrorCode.RP_NOT_REGISTERED
