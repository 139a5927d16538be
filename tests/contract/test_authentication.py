"""WIRE.md section 3: from the open socket to the welcome."""

import asyncio

import pytest

from support.net import Log, ServerLog, hi, make_server, soon
from wse import CloseReason, ErrorCode, ReadyState, WseError
from wse.core.hub.connection import ServerSession

REFUSED = (1000, "wse.not-authorized")
VIOLATED = (1000, "wse.protocol-error")


async def test_a_client_without_identity_is_anonymous(run):
    seen = []

    def identify(auth):
        seen.append((auth.identity, auth.meta, auth.challenge))
        auth.accept("anonymous")

    server = make_server(identify)
    place = await run(server)
    client = place.client()
    assert await soon(client.connect()) is None
    assert seen == [("", {}, None)]
    assert list(server.clients) == ["anonymous"]


async def test_the_welcome_is_a_message_of_three_elements(run):
    place = await run(make_server(lambda auth: auth.accept("ann", {"hello": ["Ann"]})))
    peer = await place.peer()
    await peer.send(hi())
    assert await peer.hear() == ["~wse:welcome", {"hello": ["Ann"]}, None]


async def test_a_welcome_without_payload_is_null(run):
    place = await run(make_server(lambda auth: auth.accept("ann")))
    peer = await place.peer()
    await peer.send(hi())
    assert await peer.hear() == ["~wse:welcome", None, None]


@pytest.mark.parametrize("identity", [None, 7, "ann", ["a", 1], {"token": "é"}])
async def test_any_identity_arrives_as_it_was_sent_with_its_meta(run, identity):
    server = make_server(lambda auth: auth.accept("ann"))
    log = ServerLog(server)
    place = await run(server)
    peer = await place.peer()
    await peer.login(identity, {"device": "phone"})
    conn = await log.conn("ann")
    assert conn.identity == identity
    assert conn.meta == {"device": "phone"}
    assert conn.client.meta == {"device": "phone"}
    assert conn.ready_state is ReadyState.OPEN


@pytest.mark.parametrize(
    "message",
    [
        '["~wse:hi",{"identity":"ann"}]',
        '["~wse:hi",{"identity":"ann","meta":null},null]',
        '["~wse:hi",{"identity":"ann","meta":{}},0,"and more",4]',
        '["~wse:hi",{"identity":"ann","meta":{},"ext":{"what":{}}},""]',
        b'["~wse:hi",{"identity":"ann","meta":{}},null]',
    ],
    ids=["two elements", "null meta", "five elements", "with an extension", "binary"],
)
async def test_hi_is_understood_in_each_form_that_the_contract_allows(run, message):
    server = make_server()
    log = ServerLog(server)
    place = await run(server)
    peer = await place.peer()
    await peer.send(message)
    assert (await peer.hear())[:2] == ["~wse:welcome", {"hello": "ann"}]
    assert (await log.conn("ann")).meta == {}


async def test_hi_without_identity_identifies_as_none(run):
    place = await run(make_server())
    peer = await place.peer()
    await peer.say("~wse:hi", {})
    assert await peer.hear() == ["~wse:welcome", {"hello": None}, None]


async def test_a_refused_client_is_closed_without_a_report(run):
    server = make_server(lambda auth: auth.refuse())
    log = ServerLog(server)
    place = await run(server)
    peer = await place.peer()
    await peer.send(hi())
    assert await peer.closed() == REFUSED
    with pytest.raises(WseError) as caught:
        await place.connect()
    assert caught.value.code == ErrorCode.NOT_AUTHORIZED
    assert log.entries == []


@pytest.mark.parametrize("cid", [None, "", 0, False])
async def test_a_falsy_cid_refuses(run, cid):
    server = make_server(lambda auth: auth.accept(cid))
    place = await run(server)
    peer = await place.peer()
    await peer.send(hi())
    assert await peer.closed() == REFUSED
    assert server.clients == {}


async def test_a_refusal_by_an_async_handler_arrives(run):
    async def identify(auth):
        await asyncio.sleep(0)
        auth.refuse()

    place = await run(make_server(identify))
    peer = await place.peer()
    await peer.send(hi())
    assert await peer.closed() == REFUSED


def raising(auth):
    raise LookupError("no database")


async def raising_later(auth):
    await asyncio.sleep(0)
    raise LookupError("no database")


@pytest.mark.parametrize("identify", [raising, raising_later])
async def test_an_identify_handler_that_raises_refuses_and_is_reported(run, identify):
    server = make_server(identify)
    log = ServerLog(server)
    place = await run(server)
    peer = await place.peer()
    await peer.send(hi())
    assert await peer.closed() == REFUSED
    error = await log.error()
    assert error.code == ErrorCode.MSG_PROCESSING_ERROR
    assert isinstance(error.__cause__, LookupError)


@pytest.mark.parametrize("generator", [raising, raising_later])
async def test_a_challenge_generator_that_raises_refuses_and_is_reported(run, generator):
    identified = []
    server = make_server(identified.append)
    server.use_challenge(generator)
    log = ServerLog(server)
    place = await run(server)
    peer = await place.peer()
    await peer.send(hi())
    assert await peer.closed() == REFUSED
    error = await log.error()
    assert error.code == ErrorCode.INVALID_CRA_GENERATOR
    assert isinstance(error.__cause__, LookupError)
    assert identified == []


async def test_challenge_and_response_reach_the_identify_handler(run):
    def identify(auth):
        challenge = auth.challenge
        auth.accept(auth.identity, [challenge.quest, challenge.response])

    server = make_server(identify)

    @server.use_challenge
    def generate(auth):
        auth.quest({"for": auth.identity, "on": auth.meta["device"]})

    place = await run(server)
    peer = await place.peer()
    await peer.send(hi("ann", {"device": "phone"}))
    quest = {"for": "ann", "on": "phone"}
    assert await peer.hear() == ["~wse:challenge", quest, None]
    await peer.say("~wse:challenge", 42)
    assert await peer.hear() == ["~wse:welcome", [quest, 42], None]


@pytest.mark.parametrize("is_async", [False, True])
async def test_what_the_generator_returns_is_the_quest(run, is_async):
    server = make_server(lambda auth: auth.accept("ann", auth.challenge.response))

    async def later(auth):
        await asyncio.sleep(0)
        return 20

    server.use_challenge(later if is_async else lambda auth: 20)
    place = await run(server)
    client = place.client()
    client.challenge(lambda quest: quest + 1)
    assert await soon(client.connect()) == 21


async def test_quest_and_response_may_be_null(run):
    responses = []

    def identify(auth):
        responses.append(auth.challenge.response)
        auth.accept("ann")

    server = make_server(identify)
    server.use_challenge(lambda auth: auth.quest(None))
    place = await run(server)
    peer = await place.peer()
    await peer.send(hi())
    assert await peer.hear() == ["~wse:challenge", None, None]
    await peer.say("~wse:challenge", None)
    assert (await peer.hear())[0] == "~wse:welcome"
    assert responses == [None]


async def test_the_generator_can_refuse(run):
    server = make_server()
    server.use_challenge(lambda auth: auth.refuse())
    place = await run(server)
    peer = await place.peer()
    await peer.send(hi())
    assert await peer.closed() == REFUSED


@pytest.mark.parametrize("message", ['["~wse:hi",{"identity":"x"},null]', '["chat","x",null]', '["add",1,1]'])
async def test_a_challenged_client_that_sends_something_else_is_closed_unidentified(run, message):
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


async def test_what_a_client_sends_while_it_is_validated_is_ignored(run, monkeypatch):
    arrived = Log()
    receive = ServerSession.receive
    monkeypatch.setattr(ServerSession, "receive", lambda *args: (receive(*args), arrived.add(args[1])))
    decide = asyncio.Event()
    asked = []

    async def identify(auth):
        asked.append(auth.identity)
        await decide.wait()
        auth.accept(auth.identity)

    server = make_server(identify)
    server.register("add", lambda conn, payload: payload)
    log = ServerLog(server)
    place = await run(server)
    peer = await place.peer()
    await peer.send(hi())
    await peer.say("chat", "too early")
    await peer.say("add", "too early", 7)
    await peer.send("not even JSON")
    await peer.send(hi("ben"))
    await arrived.until(hi("ben"))
    decide.set()
    assert (await peer.hear())[0] == "~wse:welcome"
    await peer.say("add", "in time", 8)
    assert await peer.hear() == ["~wse:response", "in time", 8]
    assert asked == ["ann"]
    assert log.all("ignored") == []
    assert log.all("error") == []


async def test_only_the_first_decision_counts(run):
    def identify(auth):
        auth.accept("ann", 1)
        auth.accept("ben", 2)
        auth.refuse()

    server = make_server(identify)
    log = ServerLog(server)
    server.register("who", lambda conn, payload: conn.cid)
    place = await run(server)
    client = await place.connect()
    assert await client.call("who") == "ann"
    assert log.names == ["joined", "connected"]


async def test_an_accept_after_a_refusal_does_nothing(run):
    def identify(auth):
        auth.refuse()
        auth.accept("ann")

    server = make_server(identify)
    log = ServerLog(server)
    place = await run(server)
    peer = await place.peer()
    await peer.send(hi())
    assert await peer.closed() == REFUSED
    assert server.clients == {}
    assert log.entries == []


@pytest.mark.parametrize("decision", ["accept", "refuse"])
async def test_a_decision_after_the_client_has_gone_does_nothing(run, decision):
    handshakes = asyncio.Queue()
    server = make_server(handshakes.put_nowait)
    log = ServerLog(server)
    place = await run(server)
    peer = await place.peer()
    await peer.send(hi())
    auth = await soon(handshakes.get())
    await peer.close()
    await place.empty()
    if decision == "accept":
        auth.accept("ann")
    else:
        auth.refuse()
    assert server.clients == {}
    assert log.entries == []


async def test_a_client_that_does_not_say_hi_meets_the_deadline(run):
    place = await run(make_server(auth_timeout=0.02))
    peer = await place.peer()
    assert await peer.closed() == (1000, "wse.auth-timeout")


async def test_a_client_that_owes_its_response_meets_the_deadline(run):
    server = make_server(auth_timeout=0.02)
    server.use_challenge(lambda auth: auth.quest(1))
    place = await run(server)
    with pytest.raises(WseError) as caught:
        await place.connect()  # without a challenge handler, the client ignores the quest
    assert caught.value.code == ErrorCode.CONNECTION_CLOSED
    assert caught.value.details == {"code": 1000, "reason": CloseReason.AUTH_TIMEOUT}


async def test_a_client_that_nobody_decides_on_meets_the_deadline(run):
    place = await run(make_server(lambda auth: None, auth_timeout=0.02))
    peer = await place.peer()
    await peer.send(hi())
    assert await peer.closed() == (1000, "wse.auth-timeout")


async def test_a_welcomed_client_outlives_the_deadline(listen):
    server = make_server(auth_timeout=3)
    place = await listen(server)
    client = await place.connect()
    late = await place.peer()
    assert await late.closed() == (1000, "wse.auth-timeout")  # its deadline is later than the client's was
    server.register("echo", lambda conn, payload: payload)
    assert await client.call("echo", 1) == 1


async def test_a_deadline_of_zero_is_none(run):
    with_deadline = await run(make_server(auth_timeout=0.02))
    without = await run(make_server(auth_timeout=0))
    patient = await without.peer()
    hurried = await with_deadline.peer()
    await hurried.closed()
    assert await patient.login() == {"hello": "ann"}


async def test_one_device_too_many_pushes_out_the_oldest(run):
    server = make_server(conns_per_user=2)
    log = ServerLog(server)
    place = await run(server)
    first, second, third = [await place.peer() for _ in range(3)]
    await first.login(meta={"n": 1})
    await second.login(meta={"n": 2})
    assert list(server.clients["ann"].conns.values()) == [entry[1] for entry in log.all("connected")]
    await third.login(meta={"n": 3})
    assert await first.closed() == (1000, "wse.clients-concurrency")
    identity = server.clients["ann"]
    assert [conn.meta["n"] for conn in identity.conns.values()] == [2, 3]
    assert identity.meta == {"n": 1}
    assert log.all("disconnected") == [("ann", 1000, "wse.clients-concurrency")]
    assert log.all("joined") == [("ann", {"n": 1})]
    assert log.all("left") == []
    await second.close(1000, "bye")
    await third.close(4001, "bye bye")
    await log.until("left")
    assert log.all("left") == [("ann", *place.hears_close(4001, "bye bye"))]
    assert server.clients == {}


async def test_with_one_connection_per_user_a_new_one_replaces_the_old_one_and_nobody_leaves(run):
    server = make_server()
    log = ServerLog(server)
    place = await run(server)
    old = await place.connect()
    closed = asyncio.ensure_future(old.when.closed.wait(5))
    new = await place.connect()
    assert await closed == (1000, "wse.clients-concurrency")
    assert log.names == ["joined", "connected", "disconnected", "connected"]
    server.register("echo", lambda conn, payload: payload)
    assert await new.call("echo", 1) == 1


async def test_welcome_comes_before_joined_and_joined_before_connected(run):
    server = make_server(conns_per_user=2)

    @server.when.joined
    def joined(identity, meta):
        identity.send("joined", meta)

    @server.when.connected
    def connected(conn):
        conn.send("connected", conn.meta)

    place = await run(server)
    first, second = await place.peer(), await place.peer()
    await first.send(hi(meta={"n": 1}))
    assert [await first.hear() for _ in range(3)] == [
        ["~wse:welcome", {"hello": "ann"}, None],
        ["joined", {"n": 1}, None],
        ["connected", {"n": 1}, None],
    ]
    await second.send(hi(meta={"n": 2}))
    assert [(await second.hear())[0] for _ in range(2)] == ["~wse:welcome", "connected"]


async def test_a_connection_dropped_in_joined_is_never_connected(run):
    server = make_server()
    log = ServerLog(server)
    server.when.joined(lambda identity, meta: identity.drop("not today"))
    place = await run(server)
    peer = await place.peer()
    await peer.send(hi())
    assert await peer.closed() == (1000, "not today")
    assert log.names == ["joined", "disconnected", "left"]
    assert server.clients == {}
