"""A client that holds on (WIRE.md section 6): fresh identities, deadlines, giving up, and decisions that overlap."""

import asyncio
import contextlib

import pytest

from support.clients import AT_ONCE, WALK, CountingBackoff, Held, accept, begin, fails, other_tasks
from support.net import TIMEOUT, ClientLog, Log, make_server, memory_peer, soon, tiny_protocol
from wse import Backoff, ClientStatus, ErrorCode, Heartbeat, WseClient, WseError
from wse.client.connection import warn_of_replacement
from wse.core.limits import Limits
from wse.testing import MemoryConnector
from wse.transports.memory import MemoryLink

FOR_EVER = Backoff(base=3600, cap=3600, random=lambda: 1.0)


async def turns(count=10):
    """Let the event loop turn, to see that something does not happen."""
    for _ in range(count):
        await asyncio.sleep(0)


def full_log(client):
    log = ClientLog(client)
    client.when.gave_up(log.adder("gave_up"))
    return log


# Retrying.


async def test_attempts_that_fail_do_not_flicker(far):
    client = far.client(reconnect=True, backoff=AT_ONCE)
    log = ClientLog(client)
    peer = await far.welcomed(client)
    far.down = 2
    await peer.close(1001, "reload")
    for code in (1013, 1006):
        peer = await far.peer()
        await peer.close(code, "later")
    await accept(far, "again")
    await log.until("ready", "again")
    assert log.walk == [*WALK, "OFFLINE", "RE_CONNECTING", "READY"]
    assert log.all("closed") == [(1001, "reload"), (1013, "later"), (1006, "later")]


async def test_the_retry_function_decides_and_is_not_asked_after_an_own_close(far):
    asked = []

    def retry(code, reason):
        asked.append((code, reason))
        return reason != "enough"

    client = far.client(reconnect=True, backoff=AT_ONCE, retry=retry)
    log = full_log(client)
    peer = await far.welcomed(client)
    await peer.close(1000, "once more")
    peer = await accept(far)
    await peer.close(1006, "enough")
    _, error = await log.until("gave_up")
    assert asked == [(1000, "once more"), (1006, "enough")]
    assert client.gave_up is error
    await far.welcomed(client)
    await client.close()
    assert len(asked) == 2


async def test_4000_after_every_welcome_is_no_storm(far):
    backoff = CountingBackoff()
    client = far.client(backoff=backoff)
    peer = await far.welcomed(client)
    for _ in range(4):
        await peer.close(4000, "jump")
        peer = await accept(far)
    assert backoff.attempts == [0, 1, 2]


# Identities that are asked for.


@pytest.mark.parametrize("is_async", [False, True])
async def test_an_identity_function_is_asked_at_every_attempt(far, is_async):
    numbers = iter(range(10))

    async def later():
        await asyncio.sleep(0)
        return {"token": next(numbers)}

    client = far.client(
        identity=later if is_async else lambda: {"token": next(numbers)}, reconnect=True, backoff=AT_ONCE
    )
    connecting = asyncio.ensure_future(client.connect())
    for n in range(3):
        peer = await far.peer()
        assert (await peer.hear())[1]["identity"] == {"token": n}
        await peer.say("~wse:welcome")
        await soon(connecting)
        await peer.close(1012)


async def test_an_identity_function_may_return_credentials(far):
    class Credential:
        def start(self):
            return "hello"

        async def respond(self, quest):
            return quest

        def finish(self, welcome):
            return welcome["for"]

    client = far.client(identity=Credential)
    connecting = asyncio.ensure_future(client.connect())
    peer = await far.peer()
    assert (await peer.hear())[1]["identity"] == "hello"
    await peer.say("~wse:welcome", {"for": 1})
    assert await soon(connecting) == 1


@pytest.mark.parametrize("is_async", [False, True])
async def test_an_identity_function_that_fails_is_tried_again_like_an_unreachable_server(far, is_async):
    failures = [LookupError("no token"), TimeoutError("the token service is slow"), asyncio.CancelledError()]

    def identity():
        if failures:
            raise failures.pop()
        return "ann"

    async def later():
        return identity()

    client = far.client(identity=later if is_async else identity, reconnect=True, backoff=AT_ONCE)
    log = ClientLog(client)
    await far.welcomed(client)
    errors = [error for (error,) in log.all("error")]
    assert [error.code for error in errors] == [ErrorCode.WS_CLIENT_ERROR] * 3
    assert [type(error.__cause__) for error in errors] == [asyncio.CancelledError, TimeoutError, LookupError]


async def test_without_reconnection_a_failing_identity_function_fails_the_connect(far):
    def identity():
        raise LookupError("no token")

    error = await fails(far.client(identity=identity).connect())
    assert error.code == ErrorCode.WS_CLIENT_ERROR
    assert isinstance(error.__cause__, LookupError)
    assert far.urls == []


@pytest.mark.parametrize("reconnect", [False, True])
async def test_after_a_refusal_a_fresh_identity_is_tried_once(far, reconnect):
    numbers = iter(range(10))
    client = far.client(identity=lambda: next(numbers), reconnect=reconnect, backoff=FOR_EVER)
    log = full_log(client)
    connecting, peer = await begin(far, client)
    await peer.close(1000, "wse.not-authorized")
    peer = await far.peer()
    assert (await peer.hear())[1]["identity"] == 1
    await peer.close(1000, "wse.not-authorized")
    error = await fails(connecting)
    assert error.code == ErrorCode.NOT_AUTHORIZED
    assert log.all("gave_up") == [(error,)]
    assert next(numbers) == 2


# Refusals that explain themselves.


async def test_a_refusal_brings_its_reason(far):
    client = far.client(reconnect=True, backoff=AT_ONCE)
    connecting, peer = await begin(far, client)
    await peer.say("~wse:refused", {"reason": "account locked", "retry": False})
    await peer.close(1000, "wse.not-authorized")
    error = await fails(connecting)
    assert error.code == ErrorCode.NOT_AUTHORIZED
    assert error.details == {"code": 1000, "reason": "account locked", "retry": False}


async def test_a_refusal_that_says_so_is_tried_again(far):
    client = far.client(reconnect=True, backoff=AT_ONCE)
    connecting, peer = await begin(far, client)
    for _ in range(2):
        await peer.say("~wse:refused", {"reason": "busy", "retry": True})
        await peer.close(1000, "wse.not-authorized")
        peer = await far.peer()
        await peer.hear()
    await peer.say("~wse:welcome", "at last")
    assert await soon(connecting) == "at last"


async def test_a_server_that_asks_gets_a_fresh_identity(far):
    numbers = iter(range(10))
    client = far.client(identity=lambda: next(numbers))
    connecting, peer = await begin(far, client)
    await peer.say("~wse:ext", {"auth": {}})
    await peer.say("~wse:welcome")
    await soon(connecting)
    for n in (1, 2):
        await peer.say("~wse:auth")
        assert await peer.hear() == ["~wse:auth", n, None]


async def test_a_client_with_nothing_fresh_to_offer_does_not_answer(far):
    client = far.client(identity="ann")
    connecting, peer = await begin(far, client)
    await peer.say("~wse:ext", {"auth": {}})
    await peer.say("~wse:welcome")
    await soon(connecting)
    await peer.say("~wse:auth")
    await peer.say("double", 1, 1)
    assert (await peer.hear())[0] == "~wse:response-err"


async def test_a_fresh_identity_that_fails_is_reported_and_the_connection_goes_on(far):
    identities = ["ann"]
    client = far.client(identity=lambda: identities.pop())
    log = ClientLog(client)
    connecting, peer = await begin(far, client)
    await peer.say("~wse:ext", {"auth": {}})
    await peer.say("~wse:welcome")
    await soon(connecting)
    await peer.say("~wse:auth")
    _, error = await log.until("error")
    assert isinstance(error.__cause__, IndexError)
    assert client.status is ClientStatus.READY


# Deadlines.


async def never():
    await asyncio.Event().wait()


@pytest.mark.parametrize("step", ["identity", "socket", "welcome", "challenge"])
async def test_the_deadline_covers_every_step_up_to_the_welcome(far, step):
    options = {"timeout": 0.01}
    if step == "identity":
        options["identity"] = never
    client = WseClient("ws://testserver", connector=Held() if step == "socket" else far.connector, **options)
    log = ClientLog(client)
    client.challenge(lambda quest: never())
    connecting = asyncio.ensure_future(client.connect())
    if step == "challenge":
        peer = await far.peer()
        await peer.say("~wse:challenge", 1)
    error = await fails(connecting)
    if step in ("identity", "socket"):
        assert error.code == ErrorCode.WS_CLIENT_ERROR
        assert "no answer in time" in str(error)
        assert log.all("closed") == []
    else:
        assert error.code == ErrorCode.CONNECTION_CLOSED
        assert error.details == {"code": 1006, "reason": ""}
        assert log.all("closed") == [(1006, "")]
    assert client.status is ClientStatus.OFFLINE
    await client.close()
    assert client._connections._sockets == set()


async def test_an_attempt_that_takes_too_long_is_retried(far):
    client = far.client(reconnect=True, backoff=AT_ONCE, timeout=0.05)
    connecting, silent = await begin(far, client)
    assert (await silent.closed())[0] == 1006
    client._endpoint.timeout = TIMEOUT
    await accept(far, "late")
    assert await soon(connecting) == "late"


async def test_a_timeout_of_0_waits_for_ever(far):
    client = far.client(timeout=0)
    connecting, peer = await begin(far, client)
    await turns()
    await peer.say("~wse:welcome", 1)
    assert await soon(connecting) == 1


class DeafLink(MemoryLink):
    """The peer does not answer a close, and the end of the socket comes only with `abort`."""

    def close(self, code, reason):
        self._closing = True


async def test_close_ends_in_time_whatever_the_peer_does(monkeypatch):
    monkeypatch.setattr("wse.client.manager.CLOSE_TIMEOUT", 0.01)

    async def connector(url, protocol, headers, limits, open):
        ours, theirs = DeafLink.pair(limits, Limits())
        theirs.session = open  # nobody, who hears nothing
        theirs._deliver = lambda: None
        ours.session = open(ours)
        ours.session.receive('["~wse:welcome",null,null]')

    client = WseClient("ws://testserver", connector=connector)
    log = ClientLog(client)
    await client.connect()
    await soon(client.close("enough"))
    assert log.all("closed") == [(1000, "enough")]
    assert client._connections._sockets == set()


async def test_close_does_not_wait_for_ever_for_an_attempt_that_does_not_end(monkeypatch):
    monkeypatch.setattr("wse.client.manager.CLOSE_TIMEOUT", 0.01)
    release = asyncio.Event()

    async def connector(*args):
        try:
            await asyncio.Event().wait()
        finally:
            await release.wait()

    client = WseClient("ws://testserver", connector=connector)
    connecting = asyncio.ensure_future(client.connect())
    await turns()
    await soon(client.close())
    assert (await fails(connecting)).code == ErrorCode.CONNECTION_CLOSED
    release.set()
    await turns()
    assert other_tasks() == set()


# Giving up.


@pytest.mark.parametrize("reconnect", [False, True])
async def test_a_client_that_gives_up_says_so(far, reconnect):
    client = far.client(reconnect=reconnect, backoff=AT_ONCE)
    log = full_log(client)
    seen = []
    client.when.gave_up(lambda error: seen.append((client.gave_up is error, client.status)))
    peer = await far.welcomed(client)
    assert client.gave_up is None
    await peer.close(1000, "wse.clients-concurrency")
    _, error = await log.until("gave_up")
    assert error.code == ErrorCode.CONNECTION_CLOSED
    assert error.details == {"code": 1000, "reason": "wse.clients-concurrency"}
    assert seen == [(True, ClientStatus.OFFLINE)]
    assert log.names[-2:] == ["closed", "gave_up"]
    await far.welcomed(client)
    assert client.gave_up is None


async def test_a_connect_that_fails_gives_up(far):
    far.down = 1
    client = far.client()
    log = full_log(client)
    error = await fails(client.connect())
    assert log.all("gave_up") == [(error,)]
    assert client.gave_up is error


async def test_an_own_close_is_not_giving_up(far):
    client = far.client(reconnect=True, backoff=FOR_EVER)
    log = full_log(client)
    peer = await far.welcomed(client)
    await client.close()
    await far.welcomed(client)
    peer = client._connections.session.link.peer
    peer.close(1012, "")
    await log.until("closed", 1012)
    await client.close()
    connecting, _ = await begin(far, client)
    await client.close()
    await fails(connecting)
    assert log.all("gave_up") == []
    assert client.gave_up is None


async def test_wait_closed_returns_when_the_client_has_ended_for_good(far):
    client = far.client(reconnect=True, backoff=AT_ONCE)
    assert await soon(client.wait_closed()) is None  # it has not begun
    peer = await far.welcomed(client)
    waiting = asyncio.ensure_future(client.wait_closed())
    await peer.close(1012)
    peer = await accept(far)
    await turns()
    assert not waiting.done()
    await peer.close(1000)
    assert await soon(waiting) is client.gave_up
    assert client.gave_up.details == {"code": 1000, "reason": ""}


async def test_wait_closed_returns_after_an_own_close(far):
    client = far.client()
    await far.welcomed(client)
    waiting = asyncio.ensure_future(client.wait_closed())
    await turns()
    await client.close()
    await soon(waiting)
    assert client._connections._sockets == set()


async def test_wait_ready_returns_the_welcome_when_there_is_one(far):
    client = far.client(reconnect=True, backoff=AT_ONCE)
    waiting = asyncio.ensure_future(client.wait_ready())
    peer = await far.welcomed(client, 1)
    assert await soon(waiting) == 1
    assert await soon(client.wait_ready()) == 1
    await peer.close(1012)
    waiting = asyncio.ensure_future(client.wait_ready(timeout=5))
    await accept(far, 2)
    assert await soon(waiting) == 2


async def test_wait_ready_raises_why_there_will_be_no_welcome(far):
    client = far.client(reconnect=True, backoff=FOR_EVER)
    with pytest.raises(TimeoutError):
        await client.wait_ready(timeout=0.01)
    waiting = asyncio.ensure_future(client.wait_ready())
    connecting, peer = await begin(far, client)
    await peer.close(1000, "wse.not-authorized")
    assert await fails(waiting) is await fails(connecting) is client.gave_up
    peer = await far.welcomed(client)
    await peer.close(1012)
    waiting = asyncio.ensure_future(client.wait_ready())
    await turns()
    await client.close()
    assert (await fails(waiting)).code == ErrorCode.CLIENT_NOT_READY


async def test_the_first_time_that_another_device_takes_over_is_logged(far, caplog):
    warn_of_replacement.cache_clear()
    client = far.client()
    for _ in range(2):
        peer = await far.welcomed(client)
        await peer.close(1000, "wse.clients-concurrency")
        await soon(client.wait_closed())
    assert [record.message for record in caplog.records if "conns_per_user" in record.message] != []
    assert len(caplog.records) == 1


# Listeners that come late, and none after the end.


async def test_a_ready_listener_that_is_added_while_away_waits(far):
    client = far.client(reconnect=True, backoff=AT_ONCE)
    late = Log()
    peer = await far.welcomed(client, "first")
    await peer.close(1012)
    client.when.ready(late.adder("on"))
    client.when.ready.once(late.adder("once"))
    waiting = asyncio.ensure_future(client.when.ready.wait())
    await turns()
    assert late.entries == []
    await accept(far, "second")
    assert await soon(waiting) == ("second",)
    assert late.entries == [("on", "second"), ("once", "second")]


async def test_waiting_for_ready_on_a_connected_client_returns_at_once(far):
    client = far.client()
    await far.welcomed(client, "hello")
    assert await soon(client.when.ready.wait()) == ("hello",)


async def test_the_welcome_of_another_identity_is_not_replayed(far):
    client = far.client()
    late = Log()
    await far.welcomed(client, "ann's")
    await client.close()
    connecting = asyncio.ensure_future(client.connect("ben"))
    peer = await far.peer()
    client.when.ready(late.adder("ready"))
    await peer.say("~wse:welcome", "ben's")
    await soon(connecting)
    assert late.entries == [("ready", "ben's")]


async def test_a_late_updated_listener_gets_the_present_status(far):
    client = far.client()
    early, late = Log(), Log()
    client.when.updated(early.adder("updated"))
    assert early.entries == []  # nothing has been updated yet
    await far.welcomed(client)
    client.when.updated(late.adder("updated"))
    assert late.entries == [("updated", ClientStatus.READY)]
    waiting = asyncio.ensure_future(client.when.updated.wait())  # for the next one, or loops around it would not end
    await turns()
    assert not waiting.done()
    await client.close()
    assert await soon(waiting) == (ClientStatus.OFFLINE,)


@pytest.mark.parametrize("when", ["connecting", "ready", "with messages behind the welcome", "waiting"])
async def test_nothing_fires_after_close(far, when):
    client = far.client(reconnect=True, backoff=AT_ONCE if when != "waiting" else FOR_EVER)
    log = full_log(client)
    connecting, peer = await begin(far, client)
    if when != "connecting":
        await peer.say("~wse:welcome")
        if when != "ready":
            await peer.say("chat", 1)
        await soon(connecting)
    if when == "waiting":
        await peer.close(1012)
        await log.until("updated", ClientStatus.RE_CONNECTING)
    await soon(client.close())
    fired = list(log.entries)
    peer.vanish()
    await turns()
    assert log.entries == fired
    if when == "connecting":
        await fails(connecting)


# Messages right behind the welcome.


async def test_messages_behind_the_welcome_wait_for_the_code_that_awaited_connect(far):
    client = far.client()
    heard = Log()
    connecting, peer = await begin(far, client)
    await peer.say("~wse:welcome")
    for n in range(3):
        await peer.say("chat", n)
    await peer.say("double", 21, 7)
    await soon(connecting)
    client.channel.on("chat", heard.adder("chat"))
    client.register("double", lambda n: n * 2)
    await heard.until("chat", 2)
    assert heard.all("chat") == [(0,), (1,), (2,)]
    assert await peer.hear() == ["~wse:response", 42, 7]


@pytest.mark.parametrize("wrap", [asyncio.wait_for, None])
async def test_they_wait_for_a_connect_with_a_time_limit_too(far, wrap):
    client = far.client()
    heard = Log()

    async def application():
        await (asyncio.wait_for(client.connect(), TIMEOUT) if wrap else asyncio.gather(client.connect()))
        client.channel.on("chat", heard.adder("chat"))

    running = asyncio.ensure_future(application())
    peer = await far.peer()
    await peer.say("~wse:welcome")
    await peer.say("chat", 1)
    await soon(running)
    await heard.until("chat", 1)


async def test_a_close_right_behind_them_comes_after_them(far):
    client = far.client()
    log = full_log(client)
    connecting, peer = await begin(far, client)
    await peer.say("~wse:welcome", "w")
    await peer.say("chat", 1)
    await peer.close(4001, "bye")
    assert await soon(connecting) == "w"
    client.channel.on("chat", log.adder("chat"))
    await log.until("closed")
    assert log.names[-4:] == ["chat", "updated", "closed", "gave_up"]


async def test_a_client_may_send_and_call_before_they_are_dispatched(far):
    client = far.client()
    connecting, peer = await begin(far, client)
    await peer.say("~wse:welcome")
    await peer.say("chat", 1)
    await soon(connecting)
    client.send("first")
    call = asyncio.ensure_future(client.call("add"))
    assert (await peer.hear())[0] == "first"
    _, _, stamp = await peer.hear()
    await peer.say("~wse:response", 3, stamp)
    assert await soon(call) == 3


async def test_after_a_reconnection_they_are_dispatched_in_order(far):
    client = far.client(reconnect=True, backoff=AT_ONCE)
    log = ClientLog(client)
    client.channel.on("chat", log.adder("chat"))
    peer = await far.welcomed(client)
    await peer.close(1012)
    peer = await accept(far, "again")
    await peer.say("chat", 1)
    await log.until("chat", 1)
    assert log.names[-2:] == ["ready", "chat"]


# Overlapping.


async def test_a_connect_during_a_close_is_a_connection_of_its_own(far):
    client = far.client()
    log = ClientLog(client)
    old = await far.welcomed(client)
    closing = asyncio.ensure_future(client.close("old"))
    await asyncio.sleep(0)
    assert not closing.done()
    connecting, new = await begin(far, client)
    await soon(closing)
    assert await old.closed() == (1000, "old")
    await new.say("~wse:welcome", "new")
    assert await soon(connecting) == "new"
    client.send("chat", 1)
    assert await new.hear() == ["chat", 1, None]
    assert log.walk == [*WALK, "OFFLINE", *WALK]


async def test_a_close_and_a_connect_while_connecting_leave_one_connection(far):
    client = far.client()
    first, one = await begin(far, client)
    closing = asyncio.ensure_future(client.close("first"))
    second = asyncio.ensure_future(client.connect())
    assert (await fails(first)).details == {"code": 1000, "reason": "first"}
    assert await one.closed() == (1000, "first")
    await accept(far, 2)
    assert await soon(second) == 2
    await soon(closing)
    assert client.status is ClientStatus.READY
    assert len(client._connections._sockets) == 1


async def test_a_socket_that_opens_after_the_close_is_closed():
    links = []
    opens = asyncio.Event()

    async def connector(url, protocol, headers, limits, open):
        try:
            await asyncio.Event().wait()
        finally:  # as the network may do it: open in the same turn
            ours, theirs = MemoryLink.pair(limits, Limits())
            theirs.session = links
            links.append(ours)
            ours.session = open(ours)
            opens.set()

    client = WseClient("ws://testserver", connector=connector)
    log = ClientLog(client)
    connecting = asyncio.ensure_future(client.connect())
    await turns()
    closing = asyncio.ensure_future(client.close())
    await fails(connecting)
    await soon(opens.wait())
    assert links[0]._closing
    links[0].abort()
    await soon(closing)
    assert log.all("connected") == []


async def test_a_connector_that_opens_a_socket_after_it_was_given_up_has_it_closed():
    opens = []

    async def connector(url, protocol, headers, limits, open):
        opens.append(open)
        await asyncio.Event().wait()

    client = WseClient("ws://testserver", connector=connector)
    log = ClientLog(client)
    connecting = asyncio.ensure_future(client.connect())
    await turns()
    await soon(client.close())
    await fails(connecting)
    ours, theirs = MemoryLink.pair(Limits(), Limits())
    peer = memory_peer(theirs, None)
    ours.session = opens[0](ours)
    assert await peer.closed() == (1000, "wse.by-client")
    assert log.all("connected") == []


@pytest.mark.parametrize("signal", ["connected", "updated", "ready"])
@pytest.mark.parametrize("act", ["close", "jump"])
async def test_a_listener_may_decide_anew(far, signal, act):
    """At whatever point of an opening, and in the same turn: the last decision is what holds."""
    client = far.client()
    decided = []

    def decide(*args):
        if not decided and (signal != "updated" or client.status is ClientStatus.READY):
            step = client.close() if act == "close" else client.jump("ws://other")
            decided.append(asyncio.get_running_loop().create_task(step))

    getattr(client.when, signal)(decide)
    connecting = asyncio.ensure_future(client.connect())
    peer = await far.peer()
    await peer.say("~wse:welcome", 1)
    await asyncio.wait([connecting])
    if act == "jump" and signal != "connected":
        await accept(far, 2)
        assert await soon(decided[0]) == 2
        assert client.url == "ws://other"
    else:
        await asyncio.wait(decided)
    connecting.exception()
    decided[0].exception()
    await soon(client.close())
    assert client._connections._sockets == set()
    assert client.status is ClientStatus.OFFLINE


def at_once(coroutine):
    """Run the first step now, in which the decision falls, as eager tasks do."""
    with contextlib.suppress(StopIteration, RuntimeError):  # what follows needs a task
        coroutine.send(None)
        coroutine.close()


MOMENTS = [
    ("updated", ClientStatus.CONNECTING),
    ("connected",),
    ("updated", ClientStatus.READY),
    ("ready",),
    ("updated", ClientStatus.OFFLINE),
    ("closed",),
    ("updated", ClientStatus.RE_CONNECTING),
    ("error",),
    ("gave_up",),
]


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_close_at_once_in_any_listener_is_the_last_word(far, moment):
    client = far.client(reconnect=True, backoff=AT_ONCE)
    log = full_log(client)
    name, *expected = moment
    decided = []

    def decide(*args):
        if list(args[: len(expected)]) == expected and not decided:
            decided.append(True)
            at_once(client.close())

    getattr(client.when, name)(decide)

    async def serve():
        for code in (1012, 1000):
            peer = await accept(far)
            await log.until("ready")
            far.down = 1
            await peer.close(code)

    serving = asyncio.ensure_future(serve())
    connecting = asyncio.ensure_future(client.connect())
    async with asyncio.timeout(TIMEOUT):
        while not decided:
            await asyncio.sleep(0)
    await turns(30)
    assert client.status is ClientStatus.OFFLINE
    assert client.gave_up is None
    assert client._connections._sockets == set()
    assert client._connections.session is None
    serving.cancel()
    await asyncio.wait([serving, connecting])
    connecting.exception()
    assert other_tasks() == set()
    await far.welcomed(client)


@pytest.mark.parametrize("opened", [True, False])
async def test_a_retry_function_that_closes_has_the_last_word(far, opened):
    client = far.client(reconnect=True, backoff=AT_ONCE, retry=lambda code, reason: at_once(client.close()) or True)
    far.down = 0 if opened else 1
    connecting = asyncio.ensure_future(client.connect())
    if opened:
        await (await far.peer()).close(1006)
    assert (await fails(connecting)).details == {"code": 1000, "reason": "wse.by-client"}
    await turns()
    assert client.status is ClientStatus.OFFLINE
    assert other_tasks() == set()


async def test_a_close_at_once_in_a_listener_of_a_jump_has_the_last_word(far):
    client = far.client()
    await far.welcomed(client)
    again = []

    @client.when.closed
    def closed(code, reason):
        if not again:
            again.append(True)
            at_once(client.close())

    error = await fails(client.jump("ws://other"))
    assert error.code == ErrorCode.CONNECTION_CLOSED
    await turns()
    assert client.status is ClientStatus.OFFLINE
    assert len(far.urls) == 1


# Silent servers, on a transport without pings.


QUICK = Heartbeat(interval=0.02, timeout=0.02)
PATIENT = Heartbeat(interval=0.02, timeout=TIMEOUT)


async def test_a_silent_server_is_asked_and_given_up(far):
    client = far.client(heartbeat=QUICK, reconnect=True, backoff=FOR_EVER)
    log = ClientLog(client)
    peer = await far.welcomed(client)
    name, payload, stamp = await peer.hear()
    assert name.startswith("~wse:")
    assert payload is None
    assert stamp
    assert await log.until("closed") == ("closed", 1006, "")
    assert client.status is ClientStatus.RE_CONNECTING


async def test_a_server_that_answers_is_kept_and_the_way_is_timed(far):
    client = far.client(heartbeat=PATIENT)
    log = ClientLog(client)
    peer = await far.welcomed(client)
    assert client.rtt is None
    for _ in range(3):
        name, _, stamp = await peer.hear()
        await peer.say("~wse:response-err", {"code": "wse.server.rp.not-registered", "details": {"rp": name}}, stamp)
    assert 0 <= client.rtt < TIMEOUT
    assert log.all("closed") == []
    assert log.all("error") == []


async def test_a_server_that_sends_is_not_asked(far):
    client = far.client(heartbeat=Heartbeat(interval=1, timeout=TIMEOUT))
    peer = await far.welcomed(client)
    for _ in range(24):
        await peer.say("tick")
        await asyncio.sleep(0.05)  # the pace is what is tested
    client.send("end")
    assert (await peer.hear())[0] == "end"


async def test_our_own_server_answers_without_an_error():
    server = make_server()
    errors = []
    server.when.error(lambda error, conn: errors.append(error))
    client = WseClient("ws://testserver", identity="ann", heartbeat=PATIENT, connector=MemoryConnector(server))
    await client.connect()
    async with asyncio.timeout(TIMEOUT):
        while client.rtt is None:
            await asyncio.sleep(0.01)
    assert errors == []
    assert client.status is ClientStatus.READY
    await client.close()
    await server.close()


async def test_a_protocol_that_cannot_encode_the_question_asks_none(far):
    class Numbers(type(tiny_protocol())):
        def pack(self, type, payload=None, stamp=None):
            if not isinstance(type, int):
                raise TypeError("types are integers")
            return super().pack(type, payload, stamp)

    protocol = Numbers()
    client = far.client(heartbeat=QUICK, protocol=protocol)
    log = ClientLog(client)
    connecting = asyncio.ensure_future(client.connect())
    peer = await far.peer()
    await peer.send(protocol.pack(3))
    await soon(connecting)
    await asyncio.sleep(0.1)  # longer than interval and timeout
    assert log.all("closed") == []
    assert client.status is ClientStatus.READY


# Handlers and event loops.


@pytest.mark.parametrize("handler", [None, 7, "respond"])
def test_a_challenge_handler_that_is_not_a_function_is_an_error_of_both_kinds(handler):
    client = WseClient("ws://localhost")
    with pytest.raises(WseError) as caught:
        client.challenge(handler)
    assert isinstance(caught.value, TypeError)
    assert caught.value.code == ErrorCode.INVALID_CRA_HANDLER


def test_a_client_left_open_in_a_loop_that_has_ended_connects_in_another():
    server = make_server()
    client = WseClient("ws://testserver", identity="ann", connector=MemoryConnector(server))
    log = ClientLog(client)

    async def leave_open():
        await client.connect()

    async def use_again():
        assert await client.connect() == {"hello": "ann"}
        assert log.all("closed") == [(1006, "")]
        await client.close()

    asyncio.run(leave_open())
    asyncio.run(use_again())
    assert log.walk == [*WALK, "OFFLINE", *WALK, "OFFLINE"]


def test_a_client_left_open_in_a_loop_that_has_ended_can_be_closed_in_another():
    server = make_server()
    client = WseClient("ws://testserver", identity="ann", connector=MemoryConnector(server))

    async def leave_open():
        await client.connect()

    async def close():
        await soon(client.close())

    asyncio.run(leave_open())
    asyncio.run(close())
    assert client.status is ClientStatus.OFFLINE


def test_a_client_left_open_in_a_loop_that_has_ended_is_not_connected_in_another():
    server = make_server()
    client = WseClient("ws://testserver", identity="ann", connector=MemoryConnector(server))
    asyncio.run(client.connect())

    async def wait():
        with pytest.raises(WseError) as caught:
            await client.wait_ready()
        assert caught.value.code == ErrorCode.CLIENT_NOT_READY

    asyncio.run(wait())


def test_a_client_left_open_in_a_loop_that_has_ended_has_closed_in_another():
    server = make_server()
    client = WseClient("ws://testserver", identity="ann", connector=MemoryConnector(server))
    asyncio.run(client.connect())
    assert asyncio.run(client.wait_closed()) is None
    assert client.status is ClientStatus.OFFLINE


def test_a_client_that_is_in_use_in_another_loop_says_so():
    server = make_server()
    client = WseClient("ws://testserver", identity="ann", connector=MemoryConnector(server))
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    try:
        first.run_until_complete(client.connect())
        for use in (client.connect, client.close, client.wait_ready, client.wait_closed):
            with pytest.raises(RuntimeError, match="another event loop"):
                second.run_until_complete(use())
        first.run_until_complete(client.close())
        first.run_until_complete(server.close())
    finally:
        first.close()
        second.close()
