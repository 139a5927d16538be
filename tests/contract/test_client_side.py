"""What a server sees of a `WseClient`, and what the client makes of a server's bytes (WIRE.md sections 1 to 6)."""

import asyncio
import json

import pytest

from support.net import OFFERS, ClientLog, soon
from wse import ClientStatus, ErrorCode, WseError, WseMsgpack

VIOLATED = (1000, "wse.protocol-error")


async def test_a_client_offers_its_protocol_and_says_hi_first(exchange):
    client = exchange.client(identity={"token": "é"}, meta={"device": "phone"})
    connecting = asyncio.ensure_future(client.connect())
    peer = await exchange.peer()
    assert peer.subprotocol == "wse-default-json"
    hi = {"identity": {"token": "é"}, "meta": {"device": "phone"}, "ext": OFFERS}
    assert await peer.hear() == ["~wse:hi", hi, None]
    await peer.say("~wse:welcome", {"hello": 1})
    assert await soon(connecting) == {"hello": 1}


async def test_a_client_without_identity_and_meta_says_so(exchange):
    client = exchange.client()
    connecting = asyncio.ensure_future(client.connect())
    peer = await exchange.peer()
    assert await peer.hear() == ["~wse:hi", {"identity": "", "meta": {}, "ext": OFFERS}, None]
    await peer.say("~wse:welcome")
    assert await soon(connecting) is None


async def test_another_protocol_is_offered_by_its_name_and_spoken(exchange):
    protocol = WseMsgpack()
    client = exchange.client(protocol=protocol, identity="ann")
    connecting = asyncio.ensure_future(client.connect())
    peer = await exchange.peer()
    assert peer.subprotocol == "wse-msgpack"
    assert protocol.unpack(await peer.receive()) == ("~wse:hi", {"identity": "ann", "meta": {}, "ext": OFFERS}, None)
    await peer.send(protocol.pack("~wse:welcome", b"\x00"))
    assert await soon(connecting) == b"\x00"


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("quest", [{"salt": 1}, None])
async def test_a_quest_is_answered_by_the_challenge_handler(exchange, is_async, quest):
    client = exchange.client()

    @client.challenge
    def respond(quest):
        return later(quest) if is_async else ["re", quest]

    async def later(quest):
        await asyncio.sleep(0)
        return ["re", quest]

    connecting = asyncio.ensure_future(client.connect())
    peer = await exchange.peer()
    await peer.hear()
    await peer.say("~wse:challenge", quest)
    assert await peer.hear() == ["~wse:challenge", ["re", quest], None]
    await peer.say("~wse:welcome", 1)
    assert await soon(connecting) == 1


async def test_a_response_may_be_null(exchange):
    client = exchange.client()
    client.challenge(lambda quest: None)
    connecting = asyncio.ensure_future(client.connect())
    peer = await exchange.peer()
    await peer.hear()
    await peer.say("~wse:challenge", 1)
    assert await peer.hear() == ["~wse:challenge", None, None]
    await peer.say("~wse:welcome")
    await soon(connecting)


async def test_before_the_welcome_anything_unknown_is_ignored(exchange):
    client = exchange.client()
    log = ClientLog(client)
    called = []
    client.register("proc", called.append)
    client.channel.on("chat", called.append)
    connecting = asyncio.ensure_future(client.connect())
    peer = await exchange.peer()
    await peer.hear()
    for message in (["~wse:later", 1, None], ["chat", 1, None], ["proc", 1, 7], ["~wse:challenge", 1, None], [7]):
        await peer.send(json.dumps(message))
    await peer.say("~wse:welcome", 1)
    assert await soon(connecting) == 1
    client.send("end")
    assert await peer.hear() == ["end", None, None]
    assert called == []
    assert log.all("error") == []
    assert log.all("ignored") == []


async def test_a_close_before_the_welcome_fails_the_connect(exchange):
    client = exchange.client()
    log = ClientLog(client)
    connecting = asyncio.ensure_future(client.connect())
    peer = await exchange.peer()
    await peer.hear()
    await peer.close(4321, "naïve ☕")
    with pytest.raises(WseError) as caught:
        await soon(connecting)
    assert caught.value.code == ErrorCode.CONNECTION_CLOSED
    assert caught.value.details == {"code": 4321, "reason": "naïve ☕"}
    assert log.all("closed") == [(4321, "naïve ☕")]
    assert client.status is ClientStatus.OFFLINE


async def test_a_refusal_fails_the_connect(exchange):
    client = exchange.client(reconnect=True)
    connecting = asyncio.ensure_future(client.connect())
    peer = await exchange.peer()
    await peer.close(1000, "wse.not-authorized")
    with pytest.raises(WseError) as caught:
        await soon(connecting)
    assert caught.value.code == ErrorCode.NOT_AUTHORIZED
    assert caught.value.details == {"code": 1000, "reason": "wse.not-authorized"}


@pytest.mark.parametrize(("code", "reason"), [(1000, "wse.by-client"), (1000, "naïve ☕")])
async def test_the_client_closes_with_1000_and_its_reason(exchange, code, reason):
    client = exchange.client()
    peer = await exchange.welcomed(client)
    await soon(client.close(reason) if reason != "wse.by-client" else client.close())
    assert await peer.closed() == (code, reason)


async def test_a_jump_closes_with_4000(exchange):
    client = exchange.client(identity="ann")
    first = await exchange.welcomed(client, 1)
    jumping = asyncio.ensure_future(client.jump(client.url))
    assert await first.closed() == (4000, "jump")
    second = await exchange.peer()
    assert (await second.hear())[1]["identity"] == "ann"
    await second.say("~wse:welcome", 2)
    assert await soon(jumping) == 2


@pytest.mark.parametrize(
    "message",
    ["[", "", "{}", "[]", b"\xff", '[["chat"],1,null]', '[["chat"],1,7]'],
)
async def test_what_no_server_may_send_closes_and_is_reported(exchange, message):
    client = exchange.client(reconnect=True)
    log = ClientLog(client)
    peer = await exchange.welcomed(client)
    await peer.send(message)
    assert await peer.closed() == VIOLATED
    _, error = await log.until("error")
    assert error.code in (ErrorCode.PROTOCOL_VIOLATION, ErrorCode.MSG_PROCESSING_ERROR)
    assert error.details["from"] == "server"
    assert await log.until("closed") == ("closed", *VIOLATED)
    assert client.status is ClientStatus.OFFLINE


async def test_a_message_without_a_type_is_ignored(exchange):
    client = exchange.client()
    log = ClientLog(client)
    peer = await exchange.welcomed(client)
    await peer.send("[null,1,null]")
    await peer.send('["",2]')
    assert await log.until("ignored", "") == ("ignored", "", 2, None)
    assert log.all("ignored") == [(None, 1, None), ("", 2, None)]
    assert log.all("error") == []
    assert client.status is ClientStatus.READY


async def test_bytes_that_do_not_decode_before_the_welcome_fail_the_connect(exchange):
    client = exchange.client()
    log = ClientLog(client)
    connecting = asyncio.ensure_future(client.connect())
    peer = await exchange.peer()
    await peer.hear()
    await peer.send("{")
    assert await peer.closed() == VIOLATED
    with pytest.raises(WseError) as caught:
        await soon(connecting)
    assert caught.value.code == ErrorCode.CONNECTION_CLOSED
    assert caught.value.details == {"code": 1000, "reason": "wse.protocol-error"}
    assert len(log.all("error")) == 1


async def test_the_client_s_procedures_answer_under_the_caller_s_stamp(exchange):
    client = exchange.client()
    client.register("double", lambda payload: payload * 2)
    peer = await exchange.welcomed(client)
    for stamp in (1, "x", 2.5):
        await peer.say("double", 21, stamp)
        assert await peer.hear() == ["~wse:response", 42, stamp]
    await peer.say("missing", {"p": 1}, 9)
    kind, payload, stamp = await peer.hear()
    assert (kind, stamp) == ("~wse:response-err", 9)
    assert payload["code"] == "wse.server.rp.not-registered"
    assert payload["details"] == {"rp": "missing", "rpc": "missing", "payload": {"p": 1}}


async def test_the_client_s_calls_and_messages_are_arrays_of_three(exchange):
    client = exchange.client()
    peer = await exchange.welcomed(client)
    client.send("chat")
    assert await peer.receive() == '["chat",null,null]'
    call = asyncio.ensure_future(client.call("add", {"a": 1}))
    name, payload, stamp = await peer.hear()
    assert (name, payload) == ("add", {"a": 1})
    assert stamp
    await peer.say("~wse:response", None, stamp)
    assert await soon(call) is None


async def test_an_error_from_an_original_server_becomes_a_wse_error(exchange):
    client = exchange.client()
    peer = await exchange.welcomed(client)
    call = asyncio.ensure_future(client.call("add"))
    _, _, stamp = await peer.hear()
    await peer.say("~wse:response-err", {"code": "wse.server.rp.failed", "details": {"rpc": "add"}}, stamp)
    with pytest.raises(WseError) as caught:
        await soon(call)
    assert caught.value.code is ErrorCode.RP_EXECUTION_FAILED
    assert caught.value.details == {"rpc": "add"}


async def test_an_answer_from_before_the_jump_settles_nothing_after_it(exchange):
    client = exchange.client()
    first = await exchange.welcomed(client)
    old = asyncio.ensure_future(client.call("old"))
    _, _, stamp = await first.hear()
    jumping = asyncio.ensure_future(client.jump(client.url))
    second = await exchange.peer()
    await second.hear()
    await second.say("~wse:welcome")
    await soon(jumping)
    with pytest.raises(WseError) as caught:
        await soon(old)
    assert caught.value.code == ErrorCode.RP_DISCONNECT
    assert caught.value.details["disconnected"] == [4000, "jump"]
    new = asyncio.ensure_future(client.call("new"))
    _, _, new_stamp = await second.hear()
    await second.say("~wse:response", "stale", f"{stamp}")
    await second.say("~wse:response", "fresh", new_stamp)
    assert await soon(new) == "fresh"


async def test_a_fragmented_message_is_one_message(exchange):
    client = exchange.client()
    log = ClientLog(client)
    peer = await exchange.welcomed(client)
    await peer.send_fragments('["ch', 'at","naïv', 'e",null]')
    assert await log.until("ignored") == ("ignored", "chat", "naïve", None)


async def test_a_server_that_vanishes_is_closed_with_1006(exchange):
    client = exchange.client()
    log = ClientLog(client)
    peer = await exchange.welcomed(client)
    peer.vanish()
    assert await log.until("closed") == ("closed", 1006, "")
