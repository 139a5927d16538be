"""What a peer must not send closes its connection and no other (WIRE.md sections 3 and 4)."""

import asyncio

import pytest

from support.net import ClientLog, ServerLog, hi, make_server, soon
from wse import ErrorCode, Limits

VIOLATED = (1000, "wse.protocol-error")
NESTED = "[" * 400 + "]" * 400  # 1000 is too deep for the decoder of some Pythons, and not of others

UNDECODABLE = {
    "half an object": '{"',
    "nothing": "",
    "no bytes": b"",
    "an object": "{}",
    "a number": "1",
    "a string": '"chat"',
    "null": "null",
    "an empty array": "[]",
    "binary garbage": b"\xff\xfe\x00",
    "more than one value": '["chat",1,null]["chat",1,null]',
    "deeper than any payload": '["chat",' + "[" * 100_000 + "]" * 100_000 + ",null]",
    "an endless array": "[" * 100_000,
}
DECODABLE = {
    "neither type nor stamp": "[null,1,null]",
    "only null": "[null]",
    "an empty type": '["",1,0]',
    "an unhashable type": '[["chat"],1,null]',
    "an object for a type": '[{"a":1},1,null]',
    "an unhashable procedure": '[["add"],1,7]',
    "a type nested deeply": f"[{NESTED},1,null]",
    "400 arrays": NESTED,
}
NOT_HI = {
    "a message": '["chat","x",null]',
    "a call": '["echo",1,1]',
    "a response": '["~wse:response",1,1]',
    "a challenge": '["~wse:challenge",1,null]',
    "hi with null": '["~wse:hi",null,null]',
    "hi alone": '["~wse:hi"]',
    "hi with a list": '["~wse:hi",["ann",{}],null]',
    "hi with a string": '["~wse:hi","ann",null]',
    "hi whose meta is a list": '["~wse:hi",{"identity":"ann","meta":[]},null]',
    "hi whose meta is a number": '["~wse:hi",{"identity":"ann","meta":7},null]',
    "bye": '["~wse:bye",{"identity":"ann","meta":{}},null]',
}


class Scene:
    """A server, with a bystander whom nothing of it may touch."""

    @classmethod
    async def set(cls, run, **options):
        scene = cls()
        scene.server = server = make_server(**options)
        server.register("echo", lambda conn, payload: payload)
        scene.log = ServerLog(server)
        scene.place = await run(server)
        scene.bystander = await scene.place.connect("bystander")
        return scene

    async def intruder(self):
        peer = await self.place.peer()
        await peer.login("intruder")
        self.conn = await self.log.conn("intruder")
        return peer

    async def check(self, error_code, sender):
        """The one report there is says who it was; everybody else goes on."""
        assert await soon(self.bystander.call("echo", 1)) == 1
        newcomer = await self.place.connect("newcomer")
        assert await soon(newcomer.call("echo", 2)) == 2
        (error, conn), *more = self.log.all("error")
        assert more == []
        assert error.code == error_code
        assert error.details["from"] == sender
        assert sorted(self.server.clients) == ["bystander", "newcomer"]
        return error, conn


@pytest.mark.parametrize("message", UNDECODABLE.values(), ids=UNDECODABLE)
async def test_bytes_that_do_not_decode_close_a_valid_connection(run, message):
    scene = await Scene.set(run)
    peer = await scene.intruder()
    await peer.send(message)
    assert await peer.closed() == VIOLATED
    error, conn = await scene.check(ErrorCode.MSG_PROCESSING_ERROR, f"intruder#{scene.conn.conn_id}")
    assert error.__cause__ is not None
    assert conn is scene.conn
    assert scene.log.all("disconnected") == [("intruder", *VIOLATED)]


@pytest.mark.parametrize("message", DECODABLE.values(), ids=DECODABLE)
async def test_messages_that_nobody_could_mean_close_a_valid_connection(run, message):
    scene = await Scene.set(run)
    peer = await scene.intruder()
    await peer.send(message)
    assert await peer.closed() == VIOLATED
    _, conn = await scene.check(ErrorCode.PROTOCOL_VIOLATION, f"intruder#{scene.conn.conn_id}")
    assert conn is scene.conn


async def test_nesting_1000_deep_closes_only_its_connection(run):
    scene = await Scene.set(run)
    peer = await scene.intruder()
    await peer.send("[" * 1000 + "]" * 1000)
    assert await peer.closed() == VIOLATED
    (error, _), *more = scene.log.all("error")
    assert more == []
    await scene.check(error.code, f"intruder#{scene.conn.conn_id}")


@pytest.mark.parametrize("message", UNDECODABLE.values(), ids=UNDECODABLE)
async def test_bytes_that_do_not_decode_close_a_stranger(run, message):
    scene = await Scene.set(run, limits=Limits(handshake_size=1024 * 1024))  # some are larger than strangers' may be
    peer = await scene.place.peer()
    await peer.send(message)
    assert await peer.closed() == VIOLATED
    await scene.check(ErrorCode.MSG_PROCESSING_ERROR, "stranger")


@pytest.mark.parametrize("message", [*NOT_HI.values(), *DECODABLE.values()], ids=[*NOT_HI, *DECODABLE])
async def test_a_stranger_whose_first_message_is_not_hi_is_closed(run, message):
    scene = await Scene.set(run)
    peer = await scene.place.peer()
    await peer.send(message)
    assert await peer.closed() == VIOLATED
    await scene.check(ErrorCode.PROTOCOL_VIOLATION, "stranger")


@pytest.mark.parametrize("message", ["[", '["chat",1,null]'])
async def test_a_challenged_client_s_violation_is_a_stranger_s(run, message):
    identified = []
    server = make_server(identified.append)
    server.use_challenge(lambda auth: auth.quest(1))
    log = ServerLog(server)
    place = await run(server)
    peer = await place.peer()
    await peer.send(hi())
    await peer.hear()
    await peer.send(message)
    assert await peer.closed() == VIOLATED
    assert (await log.error()).details["from"] == "stranger"
    assert identified == []


async def test_a_message_as_large_as_allowed_is_heard(run):
    scene = await Scene.set(run, limits=Limits(message_size=1000))
    peer = await scene.intruder()
    payload = "x" * (1000 - len('["echo","",1]'))
    message = f'["echo","{payload}",1]'
    assert len(message) == 1000
    await peer.send(message)
    assert await peer.hear() == ["~wse:response", payload, 1]
    await peer.send_fragments(message[:600], message[600:])
    assert await peer.hear() == ["~wse:response", payload, 1]


@pytest.mark.parametrize("size", [1001, 5000, 200_000])
@pytest.mark.parametrize("kind", ["text", "binary"])
async def test_an_oversized_message_closes_with_1009(run, size, kind):
    scene = await Scene.set(run, limits=Limits(message_size=1000))
    peer = await scene.intruder()
    await peer.send("x" * size if kind == "text" else b"x" * size)
    code, _ = await peer.closed()
    assert code == 1009
    await scene.check(ErrorCode.LIMIT_EXCEEDED, f"intruder#{scene.conn.conn_id}")
    assert [entry[:2] for entry in scene.log.all("disconnected")] == [("intruder", 1009)]


@pytest.mark.parametrize("kind", ["text", "binary"])
async def test_an_oversized_message_in_small_fragments_closes_with_1009(run, kind):
    scene = await Scene.set(run, limits=Limits(message_size=1000))
    peer = await scene.intruder()
    await peer.send_fragments(*["x" * 300 if kind == "text" else b"x" * 300] * 4)
    code, _ = await peer.closed()
    assert code == 1009
    await scene.check(ErrorCode.LIMIT_EXCEEDED, f"intruder#{scene.conn.conn_id}")


async def test_the_size_counts_in_bytes_not_in_characters(run):
    scene = await Scene.set(run, limits=Limits(message_size=1000))
    peer = await scene.intruder()
    await peer.send('["chat","' + "é" * 496 + '"]')  # 503 characters in 1003 bytes
    code, _ = await peer.closed()
    assert code == 1009


async def test_an_oversized_message_from_a_stranger_is_a_stranger_s(run):
    scene = await Scene.set(run, limits=Limits(message_size=1000))
    peer = await scene.place.peer()
    await peer.send("x" * 1001)
    code, _ = await peer.closed()
    assert code == 1009
    await scene.check(ErrorCode.LIMIT_EXCEEDED, "stranger")


async def test_an_oversized_message_to_a_client_closes_with_1009_and_is_reported_there(run):
    scene = await Scene.set(run)
    client = await scene.place.connect("small", limits=Limits(message_size=1000))
    heard = ClientLog(client)
    (conn,) = scene.server.clients["small"].conns.values()
    conn._session.limit_output(2**30)  # as a server that does not know `limits` would do
    scene.server.send("small", "big", "x" * 1000)
    closed = await heard.until("closed")
    assert closed[1] == 1009
    (error,) = heard.all("error")[0]
    assert error.code == ErrorCode.LIMIT_EXCEEDED
    assert error.details["from"] == "server"
    entry = await scene.log.until("disconnected", "small")
    assert entry[2] == scene.place.hears_close(1009, "")[0]
    assert await soon(scene.bystander.call("echo", 1)) == 1


async def test_a_procedure_waiting_while_its_caller_is_closed_harms_nobody(run):
    scene = await Scene.set(run)
    started, gate, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @scene.server.register("slow")
    async def slow(conn, payload):
        started.set()
        await gate.wait()
        conn.send("to nobody")
        done.set()
        return payload

    peer = await scene.intruder()
    await peer.say("slow", 1, 1)
    await soon(started.wait())
    await peer.send("[")
    await peer.closed()
    gate.set()
    await soon(done.wait())
    await scene.check(ErrorCode.MSG_PROCESSING_ERROR, f"intruder#{scene.conn.conn_id}")


async def test_half_an_emoji_is_heard_as_a_replacement_character(run):
    scene = await Scene.set(run)
    peer = await scene.intruder()
    await peer.send('["echo","\\ud83d!",1]')
    assert await peer.hear() == ["~wse:response", "\ufffd!", 1]
