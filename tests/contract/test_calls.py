"""WIRE.md section 4: calls, in both directions."""

import asyncio

import pytest

from support.net import ServerLog, Unpackable, make_server, soon
from wse import ErrorCode, WseError, current_call


@pytest.fixture(params=["client calls", "server calls"])
async def sides(request, run):
    """The side that registers and the side that calls, whichever way round; both take calls and procedures alike."""

    class Sides:
        async def start(self, **options):
            server = make_server(**options)
            self.server = server
            self.log = ServerLog(server)
            place = await run(server)
            client = await place.connect(debug=options.get("debug", False))
            self.client = client
            self.conn = conn = await self.log.conn("ann")
            self.errors = []
            if request.param == "client calls":
                self.call = client.call
                self.register = lambda name, fn: server.register(name, lambda conn, payload: fn(payload))
                self.pending = lambda: client._connections.session.pending_calls
                server.when.error(lambda err, conn: self.errors.append((err, conn)))
                self.where = {"cid": "ann", "conn_id": conn.conn_id}
                self.hears_close = lambda code, reason: (code, reason)
            else:
                self.call = conn.call
                self.register = client.register
                self.pending = lambda: conn._session.pending_calls
                client.when.error(lambda err: self.errors.append((err, None)))
                self.where = {}
                self.hears_close = place.hears_close
            return self

    return Sides()


async def fails(call):
    with pytest.raises(WseError) as caught:
        await soon(call)
    return caught.value


@pytest.mark.parametrize("payload", [None, 0, False, "", [], {}, {"a": [1, {"b": None}]}, "é☕", 2**53])
async def test_a_call_brings_its_payload_and_returns_the_result(sides, payload):
    await sides.start()
    sides.register("echo", lambda payload: payload)
    assert await sides.call("echo", payload) == payload
    assert sides.pending() == 0


async def test_an_async_procedure_answers_when_it_is_done(sides):
    await sides.start()
    gate = asyncio.Event()

    async def slow(payload):
        await gate.wait()
        return payload

    sides.register("slow", slow)
    sides.register("fast", lambda payload: payload)
    slow_call = asyncio.ensure_future(sides.call("slow", 1))
    assert await sides.call("fast", 2) == 2
    assert not slow_call.done()
    gate.set()
    assert await soon(slow_call) == 1


async def test_many_calls_at_once_each_get_their_own_answer(sides):
    await sides.start()

    async def square(n):
        for _ in range(n % 5):
            await asyncio.sleep(0)
        return n * n

    sides.register("square", square)
    results = await soon(asyncio.gather(*(sides.call("square", n) for n in range(200))))
    assert results == [n * n for n in range(200)]
    assert sides.pending() == 0


async def test_an_unknown_procedure_is_answered_so(sides):
    await sides.start()
    error = await fails(sides.call("missing", {"a": 1}))
    assert error.code == ErrorCode.RP_NOT_REGISTERED
    assert error.details == {"rp": "missing", "rpc": "missing", "payload": {"a": 1}}
    assert sides.errors == []


async def test_a_wse_error_keeps_its_code_details_and_message(sides):
    await sides.start()

    def refuse(payload):
        raise WseError("shop.sold-out", {"left": 0, "rp": "mine", "payload": "mine, too"}, "come back tomorrow")

    sides.register("buy", refuse)
    error = await fails(sides.call("buy", {"n": 1}))
    assert error.code == "shop.sold-out"
    assert error.details == {"left": 0, "rp": "mine", "rpc": "buy", "payload": "mine, too"}
    assert error.message == "come back tomorrow"


async def test_a_null_payload_is_not_in_the_error_s_details(sides):
    await sides.start()

    def refuse(payload):
        raise WseError("no")

    sides.register("buy", refuse)
    assert (await fails(sides.call("buy"))).details == {"rp": "buy", "rpc": "buy"}


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("debug", [False, True])
async def test_another_exception_tells_its_origin_and_the_stack_only_in_debug_mode(sides, is_async, debug):
    await sides.start(debug=debug)

    def fail(payload):
        raise LookupError("no such thing")

    async def fail_later(payload):
        await asyncio.sleep(0)
        raise LookupError("no such thing")

    sides.register("fail", fail_later if is_async else fail)
    error = await fails(sides.call("fail", 7))
    assert error.code == ErrorCode.RP_EXECUTION_FAILED
    assert {key: value for key, value in error.details.items() if key != "origin"} == {
        "rp": "fail",
        "rpc": "fail",
        "payload": 7,
    }
    origin = error.details["origin"]
    stack = origin.pop("stack", None)
    assert origin == {"name": "LookupError", "message": "no such thing"}
    assert (stack is not None) is debug
    if debug:
        assert "raise LookupError" in stack
    ((report, conn),) = sides.errors
    assert report.code == ErrorCode.RP_EXECUTION_FAILED
    assert isinstance(report.__cause__, LookupError)
    expected = {"type": "fail", "payload": 7, **sides.where}
    assert {key: report.details[key] for key in expected} == expected
    assert report.details["stamp"]
    if sides.where:
        assert conn is sides.conn


async def test_a_result_that_cannot_be_encoded_fails_the_call(sides):
    await sides.start()
    sides.register("bad", lambda payload: Unpackable())
    error = await fails(sides.call("bad", 1))
    assert error.code == ErrorCode.RP_EXECUTION_FAILED
    assert len(sides.errors) == 1


async def test_error_details_lose_only_what_cannot_be_encoded(sides):
    await sides.start()

    def fail(payload):
        raise WseError(
            "custom", {"what": Unpackable(), "n": 7, "list": [1, Unpackable()], "deep": {"a": 1, "b": Unpackable()}}
        )

    sides.register("bad", fail)
    error = await fails(sides.call("bad", 1))
    assert error.code == "custom"
    kept = {"n": 7, "list": [1, None], "deep": {"a": 1}}
    assert error.details == {**kept, "rp": "bad", "rpc": "bad", "payload": 1}


async def test_a_call_without_answer_times_out_and_leaves_nothing_behind(sides):
    await sides.start()
    never = asyncio.Event()

    async def hang(payload):
        await never.wait()

    sides.register("hang", hang)
    sides.register("echo", lambda payload: payload)
    error = await fails(sides.call("hang", 1, timeout=0.01))
    assert error.code == ErrorCode.RP_TIMEOUT
    assert error.details["rp"] == "hang"
    assert sides.pending() == 0
    never.set()  # the late answer is dropped in silence
    assert await sides.call("echo", 2) == 2
    assert sides.errors == []


async def test_the_endpoint_s_own_timeout_applies_to_a_call_without_one(sides):
    server_timeout = await sides.start(timeout=0.01, auth_timeout=0)
    never = asyncio.Event()

    async def hang(payload):
        await never.wait()

    sides.register("hang", hang)
    if sides.call == sides.client.call:
        sides.client._endpoint.timeout = 0.01
    first, second = await soon(
        asyncio.gather(server_timeout.call("hang"), server_timeout.call("hang"), return_exceptions=True)
    )
    assert first.code == second.code == ErrorCode.RP_TIMEOUT
    assert sides.pending() == 0
    never.set()


async def test_a_timeout_of_zero_waits_for_ever(sides):
    await sides.start()
    gate = asyncio.Event()

    async def hang(payload):
        await gate.wait()
        return "at last"

    sides.register("hang", hang)
    patient = asyncio.ensure_future(sides.call("hang", timeout=0))
    assert (await fails(sides.call("hang", timeout=0.01))).code == ErrorCode.RP_TIMEOUT
    assert not patient.done()
    gate.set()
    assert await soon(patient) == "at last"


async def test_a_call_that_cannot_be_encoded_is_not_sent_and_leaves_nothing_behind(sides):
    await sides.start()
    error = await fails(sides.call("echo", Unpackable()))
    assert error.code == ErrorCode.RP_SEND_FAILED
    assert sides.pending() == 0


async def test_a_cancelled_call_leaves_nothing_behind(sides):
    await sides.start()
    started = asyncio.Event()

    async def hang(payload):
        started.set()
        await asyncio.Event().wait()

    sides.register("hang", hang)
    call = asyncio.ensure_future(sides.call("hang"))
    await soon(started.wait())
    assert sides.pending() == 1
    call.cancel()
    await asyncio.wait([call])
    assert sides.pending() == 0


@pytest.mark.parametrize("closing", ["client closes", "server drops"])
async def test_a_peer_that_goes_away_settles_all_pending_calls(sides, closing):
    await sides.start()
    started = asyncio.Semaphore(0)

    async def hang(payload):
        started.release()
        await asyncio.Event().wait()

    sides.register("hang", hang)
    session = sides.client._connections.session
    calls = [asyncio.ensure_future(sides.call("hang", timeout=timeout)) for timeout in (None, 0, 60)]
    for _ in calls:
        await soon(started.acquire())
    if closing == "client closes":
        await sides.client.close("enough")
        disconnected = [*sides.hears_close(1000, "enough")]
    else:
        sides.conn.drop("moved", 4001)
        disconnected = [4001, "moved"]
    for call in calls:
        error = await fails(call)
        assert error.code == ErrorCode.RP_DISCONNECT
        assert error.details["disconnected"] == disconnected
        assert error.details["rp"] == "hang"
    assert session.pending_calls == 0
    assert sides.conn._session.pending_calls == 0


async def test_a_procedure_that_was_taken_away_is_unknown(sides):
    await sides.start()
    sides.register("echo", lambda payload: payload)
    (sides.server if sides.where else sides.client).unregister("echo")
    assert (await fails(sides.call("echo"))).code == ErrorCode.RP_NOT_REGISTERED


async def test_wse_s_own_names_cannot_be_called(sides):
    await sides.start()
    for name in ("~wse:call", "~wse:hi", "~wse:anything", "", None):
        assert (await fails(sides.call(name))).code == ErrorCode.PROTOCOL_VIOLATION


async def test_calling_a_dropped_connection_fails_at_once(run):
    server = make_server()
    log = ServerLog(server)
    place = await run(server)
    await place.connect()
    conn = await log.conn("ann")
    conn.drop()
    assert (await fails(conn.call("echo"))).code == ErrorCode.CLIENT_NOT_READY


async def test_calling_a_user_calls_every_device_and_lists_results_and_errors(run):
    server = make_server(conns_per_user=3)
    place = await run(server)
    for n in range(3):
        client = await place.connect(meta={"n": n})
        if n != 1:
            client.register("where", lambda payload, n=n: [n, payload])
    identity = server.clients["ann"]
    first, second, third = await soon(identity.call("where", "?"))
    assert first == [0, "?"]
    assert isinstance(second, WseError)
    assert second.code == ErrorCode.RP_NOT_REGISTERED
    assert third == [2, "?"]
    identity.drop()
    assert (await fails(identity.call("where"))).code == ErrorCode.CONNECTION_MISSING


# What travels, seen by a raw peer.


async def test_a_call_travels_under_its_procedure_s_name_and_the_answer_under_its_stamp(run):
    server = make_server()
    server.register("add", lambda conn, payload: payload["a"] + payload["b"])
    place = await run(server)
    peer = await place.peer()
    await peer.login()
    for stamp in (1, "x", 2.5, True, [1], {"n": 1}):
        await peer.say("add", {"a": 5, "b": 3}, stamp)
        assert await peer.hear() == ["~wse:response", 8, stamp]


async def test_the_server_s_call_travels_under_its_name_with_a_truthy_stamp(run):
    server = make_server()
    log = ServerLog(server)
    place = await run(server)
    peer = await place.peer()
    await peer.login()
    conn = await log.conn("ann")
    call = asyncio.ensure_future(conn.call("client-info", {"a": 1}))
    name, payload, stamp = await peer.hear()
    assert (name, payload) == ("client-info", {"a": 1})
    assert stamp
    await peer.say("~wse:response", ["info"], stamp)
    assert await soon(call) == ["info"]


async def test_an_error_travels_as_code_message_and_details(run):
    server = make_server()
    ServerLog(server)

    @server.register("no")
    def no(conn, payload):
        raise WseError("custom", {"a": 1}, "not now")

    @server.register("bug")
    def bug(conn, payload):
        raise LookupError("gone")

    place = await run(server)
    peer = await place.peer()
    await peer.login()
    await peer.say("no", None, 1)
    details = {"a": 1, "rp": "no", "rpc": "no"}
    assert await peer.hear() == ["~wse:response-err", {"code": "custom", "message": "not now", "details": details}, 1]
    await peer.say("bug", {"p": 1}, 2)
    origin = {"name": "LookupError", "message": "gone"}
    kind, payload, stamp = await peer.hear()
    assert (kind, stamp) == ("~wse:response-err", 2)
    assert payload["code"] == "wse.server.rp.failed"
    assert payload["details"] == {"origin": origin, "rp": "bug", "rpc": "bug", "payload": {"p": 1}}
    await peer.say("none", None, 3)
    kind, payload, stamp = await peer.hear()
    assert (kind, stamp) == ("~wse:response-err", 3)
    assert payload["code"] == "wse.server.rp.not-registered"
    assert payload["details"] == {"rp": "none", "rpc": "none"}


@pytest.mark.parametrize(
    "payload", [None, [], "text", 7, {}, {"code": 5}, {"code": ""}, {"details": {}}, {"code": None, "details": {}}]
)
async def test_a_malformed_error_still_settles_the_call(run, payload):
    server = make_server()
    log = ServerLog(server)
    place = await run(server)
    peer = await place.peer()
    await peer.login()
    conn = await log.conn("ann")
    call = asyncio.ensure_future(conn.call("info"))
    _, _, stamp = await peer.hear()
    await peer.say("~wse:response-err", payload, stamp)
    assert (await fails(call)).code == ErrorCode.RP_EXECUTION_FAILED


@pytest.mark.parametrize("details", [None, [], "text"])
async def test_an_error_with_malformed_details_keeps_its_code(run, details):
    server = make_server()
    log = ServerLog(server)
    place = await run(server)
    peer = await place.peer()
    await peer.login()
    conn = await log.conn("ann")
    call = asyncio.ensure_future(conn.call("info"))
    _, _, stamp = await peer.hear()
    await peer.say("~wse:response-err", {"code": "custom", "details": details, "message": 5}, stamp)
    error = await fails(call)
    assert (error.code, error.details) == ("custom", {})


async def test_answers_that_nobody_waits_for_are_dropped_in_silence(run):
    server = make_server()
    log = ServerLog(server)
    server.register("echo", lambda conn, payload: payload)
    place = await run(server)
    peer = await place.peer()
    await peer.login()
    for stamp in (1, 99, "x", [1], {"a": 1}):
        await peer.say("~wse:response", "what?", stamp)
        await peer.say("~wse:response-err", {"code": "what?"}, stamp)
    await peer.say("echo", "still here", 7)
    assert await peer.hear() == ["~wse:response", "still here", 7]
    conn = await log.conn("ann")
    call = asyncio.ensure_future(conn.call("info"))
    _, _, stamp = await peer.hear()
    await peer.say("~wse:response", "again", [stamp])
    await peer.say("~wse:response", "right", stamp)
    assert await soon(call) == "right"
    await peer.say("~wse:response", "twice", stamp)
    await peer.say("echo", "end", 8)
    assert await peer.hear() == ["~wse:response", "end", 8]
    assert log.names == ["joined", "connected"]


async def test_an_answer_on_another_connection_settles_nothing(run):
    server = make_server(conns_per_user=2)
    log = ServerLog(server)
    server.register("echo", lambda conn, payload: payload)
    place = await run(server)
    called, other = await place.peer(), await place.peer()
    await called.login(meta={"n": 1})
    conn = await log.conn("ann")
    await other.login(meta={"n": 2})
    call = asyncio.ensure_future(conn.call("secret"))
    _, _, stamp = await called.hear()
    await other.say("~wse:response", "forged", stamp)
    await other.say("echo", 1, 1)
    await other.hear()
    assert not call.done()
    await called.say("~wse:response", "genuine", stamp)
    assert await soon(call) == "genuine"


async def test_plain_messages_do_not_call_procedures_nor_do_calls_reach_listeners(run):
    server = make_server()
    log = ServerLog(server)
    called, heard = [], []
    server.register("name", lambda conn, payload: called.append(payload))
    server.channel.on("name", lambda conn, payload: heard.append(payload))
    place = await run(server)
    peer = await place.peer()
    await peer.login()
    await peer.say("name", "message")
    await peer.say("name", "call", 1)
    await peer.hear()
    assert (called, heard) == (["call"], ["message"])
    assert log.all("error") == []


async def test_pipelined_calls_are_answered_in_order(run):
    server = make_server()
    server.register("echo", lambda conn, payload: payload)
    place = await run(server)
    peer = await place.peer()
    await peer.login()
    for n in range(1, 301):
        await peer.say("echo", n, n)
    assert [await peer.hear() for _ in range(300)] == [["~wse:response", n, n] for n in range(1, 301)]


async def test_the_deadline_of_a_call_is_told_to_the_procedure_and_is_its_timeout(run):
    server = make_server()
    remaining = []

    @server.register("slow")
    async def slow(conn, payload):
        remaining.append(current_call().remaining)
        if payload:
            await asyncio.Event().wait()

    place = await run(server)
    client = place.client()
    await soon(client.connect())
    await soon(client.call("slow", deadline=40))
    await soon(client.call("slow", timeout=50, deadline=0))
    await soon(client.call("slow", timeout=30, deadline=40))
    for seconds, limit in zip(remaining, (40, 50, 30), strict=True):
        assert limit - 10 < seconds <= limit
    with pytest.raises(WseError) as caught:
        await soon(client.call("slow", True, deadline=0.05))
    assert caught.value.code == ErrorCode.RP_TIMEOUT
