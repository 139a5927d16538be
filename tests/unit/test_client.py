"""The life of a client (WIRE.md section 6), over links in memory; the test plays the server."""

import asyncio
import contextlib
import inspect
import logging

import pytest

from support.clients import AT_ONCE, WALK, CountingBackoff, Held, accept, begin, fails, other_tasks
from support.net import OFFERS, ClientLog, Unpackable, make_server, soon
from wse import Backoff, ClientStatus, CloseReason, ErrorCode, WseClient, WseError, WseMsgpack
from wse.testing import MemoryConnector

RETRIED = [1001, 1004, 1005, 1006, 1011, 1012, 1013, 1014, 1015, 2000]
FINAL = [1000, 1002, 1003, 1007, 1008, 1009, 1010, 3000, 3999, 4001, 4999]

# Status and signals.


async def test_status_walks_from_idle_to_offline_and_is_set_before_updated_fires(far):
    client = far.client()
    log = ClientLog(client)
    assert client.status is ClientStatus.IDLE
    await far.welcomed(client)
    assert client.status is ClientStatus.READY
    await client.close()
    assert client.status is ClientStatus.OFFLINE
    assert log.walk == ["CONNECTING", "READY", "OFFLINE"]
    assert all(told == held for told, held in log.all("updated"))


async def test_connected_fires_on_the_open_socket_and_ready_with_the_welcome(far):
    client = far.client()
    log = ClientLog(client)
    connecting, peer = await begin(far, client)
    assert log.names == ["updated", "connected"]
    await peer.say("~wse:welcome", {"n": 1})
    assert await soon(connecting) == {"n": 1}
    assert log.names == ["updated", "connected", "updated", "ready"]
    assert log.all("ready") == [({"n": 1},)]


async def test_a_late_ready_listener_gets_the_last_welcome(far):
    client = far.client(reconnect=True, backoff=AT_ONCE)
    early, late = ClientLog(client), []
    peer = await far.welcomed(client, "first")
    client.when.ready(late.append)
    assert late == ["first"]
    await peer.close(1012)
    await accept(far, "second")
    await early.until("ready", "second")
    client.when.ready(late.append)
    client.when.ready.once(late.append)
    assert late == ["first", "second", "second", "second"]


async def test_a_client_may_send_as_soon_as_ready_fires(far):
    client = far.client()
    client.when.ready(lambda welcome: client.send("first", welcome))
    peer = await far.welcomed(client, 1)
    assert await peer.hear() == ["first", 1, None]


async def test_closed_fires_once_with_code_and_reason(far):
    client = far.client()
    log = ClientLog(client)
    peer = await far.welcomed(client)
    await peer.close(1001, "away")
    await log.until("closed")
    await client.close()
    assert log.all("closed") == [(1001, "away")]
    assert client.status is ClientStatus.OFFLINE


async def test_a_listener_that_raises_is_reported_on_error(far):
    client = far.client()

    @client.when.ready
    def ready(welcome):
        raise LookupError("mine")

    log = ClientLog(client)
    await far.welcomed(client)
    _, error = await log.until("error")
    assert error.code == ErrorCode.MSG_PROCESSING_ERROR
    assert error.details == {"signal": "ready"}
    assert isinstance(error.__cause__, LookupError)
    assert client.status is ClientStatus.READY


async def test_an_error_that_nobody_listens_to_is_logged(far, caplog):
    client = far.client()
    with caplog.at_level(logging.ERROR, "wse"), pytest.raises(WseError):
        client.send("chat")
    assert "wse.client.not-ready" in caplog.text


async def test_an_error_listener_that_raises_is_logged(far, caplog):
    client = far.client()

    @client.when.error
    def on_error(error):
        raise LookupError("mine")

    with caplog.at_level(logging.ERROR, "wse"), pytest.raises(WseError, match="not-ready"):
        client.send("chat")
    assert "LookupError: mine" in caplog.text


async def test_a_message_without_listener_is_ignored_aloud_and_others_are_not(far):
    client = far.client()
    log = ClientLog(client)
    client.channel.on("chat", lambda payload: log.add("chat", payload))
    peer = await far.welcomed(client)
    await peer.say("chat", 1)
    await peer.say("other", 2, 0)
    await log.until("ignored")
    assert log.all("chat") == [(1,)]
    assert log.all("ignored") == [("other", 2, 0)]


# Failing to connect.


async def test_without_a_server_connecting_fails_with_ws_error(far):
    far.down = 1
    client = far.client()
    log = ClientLog(client)
    error = await fails(client.connect())
    assert error.code == ErrorCode.WS_CLIENT_ERROR
    assert log.walk == ["CONNECTING", "OFFLINE"]
    assert log.all("closed") == []


async def test_a_refusal_fails_with_not_authorized_and_is_not_retried(far):
    client = far.client(reconnect=True, backoff=AT_ONCE)
    log = ClientLog(client)
    connecting, peer = await begin(far, client)
    await peer.close(1000, "wse.not-authorized")
    error = await fails(connecting)
    assert error.code == ErrorCode.NOT_AUTHORIZED
    assert error.details == {"code": 1000, "reason": "wse.not-authorized"}
    assert log.walk == ["CONNECTING", "OFFLINE"]
    assert len(far.urls) == 1


@pytest.mark.parametrize("code", [*FINAL, *RETRIED])
async def test_a_close_before_the_welcome_fails_with_its_code_and_reason(far, code):
    client = far.client()
    log = ClientLog(client)
    connecting, peer = await begin(far, client)
    await peer.close(code, "because")
    error = await fails(connecting)
    assert error.code == ErrorCode.CONNECTION_CLOSED
    assert error.details == {"code": code, "reason": "because"}
    assert log.walk == ["CONNECTING", "OFFLINE"]
    assert log.all("closed") == [(code, "because")]


async def test_a_failed_client_can_connect_again(far):
    far.down = 1
    client = far.client()
    await fails(client.connect())
    connecting, peer = await begin(far, client)
    await peer.close(1000, "wse.not-authorized")
    await fails(connecting)
    await far.welcomed(client, "third time")
    assert client.status is ClientStatus.READY


async def test_an_identity_that_cannot_be_encoded_fails_the_connect_and_leaves_the_client_usable(far):
    client = far.client()
    error = await fails(client.connect(Unpackable()))
    assert error.code == ErrorCode.MSG_PROCESSING_ERROR
    assert client.status is ClientStatus.OFFLINE
    await soon(asyncio.gather(client.connect("ann"), accept(far)))


async def test_a_connector_s_own_failure_is_raised_and_leaves_the_client_usable():
    class Broken(Exception):
        pass

    async def connector(url, protocol, headers, limits, open):
        raise Broken

    client = WseClient("ws://testserver", connector=connector)
    for _ in range(2):
        with pytest.raises(Broken):
            await client.connect()
        assert client.status is ClientStatus.OFFLINE


async def test_a_connector_s_own_failure_while_reconnecting_is_reported_and_ends_it(far):
    class Broken(Exception):
        pass

    calls = []

    async def connector(*args):
        calls.append(args)
        if len(calls) == 2:
            raise Broken
        await far.connector(*args)

    client = WseClient("ws://testserver", connector=connector, reconnect=True, backoff=AT_ONCE)
    log = ClientLog(client)
    peer = await far.welcomed(client)
    await peer.close(1012)
    _, error = await log.until("error")
    assert error.code == ErrorCode.WS_CLIENT_ERROR
    assert isinstance(error.__cause__, Broken)
    assert client.status is ClientStatus.OFFLINE
    assert len(calls) == 2


async def test_a_connect_cancelled_just_after_the_welcome_leaves_nothing_behind(far):
    client = far.client()
    connecting, peer = await begin(far, client)
    client.when.ready(lambda welcome: connecting.cancel())
    await peer.say("~wse:welcome")
    await asyncio.wait([connecting])
    assert connecting.cancelled()
    assert client.status is ClientStatus.OFFLINE
    assert await peer.closed() == (1000, "wse.by-client")


async def test_connecting_twice_is_an_error_and_harms_nothing(far):
    client = far.client()
    connecting, peer = await begin(far, client)
    assert (await fails(client.connect())).code == ErrorCode.CLIENT_ALREADY_CONNECTED
    await peer.say("~wse:welcome", 1)
    assert await soon(connecting) == 1
    assert (await fails(client.connect())).code == ErrorCode.CLIENT_ALREADY_CONNECTED
    assert client.status is ClientStatus.READY


async def test_connecting_while_reconnecting_is_an_error(far):
    client = far.client(reconnect=True, backoff=Backoff(base=60, cap=60, random=lambda: 1.0))
    log = ClientLog(client)
    peer = await far.welcomed(client)
    await peer.close(1012)
    await log.until("updated", ClientStatus.RE_CONNECTING)
    assert (await fails(client.connect())).code == ErrorCode.CLIENT_ALREADY_CONNECTED
    assert client.status is ClientStatus.RE_CONNECTING


async def test_identity_and_meta_stay_unless_given(far):
    client = far.client(identity="ann", meta={"n": 1})
    for args, expected in (
        ({}, {"identity": "ann", "meta": {"n": 1}}),
        ({"identity": None}, {"identity": None, "meta": {}}),  # the meta was that of another identity
        ({"meta": {"n": 2}}, {"identity": None, "meta": {"n": 2}}),
        ({"meta": None}, {"identity": None, "meta": {}}),
        ({}, {"identity": None, "meta": {}}),
    ):
        connecting = asyncio.ensure_future(client.connect(**args))
        peer = await far.peer()
        assert (await peer.hear())[1] == {**expected, "ext": OFFERS}
        await peer.say("~wse:welcome")
        await soon(connecting)
        await client.close()


# Reconnecting.


@pytest.mark.parametrize("code", RETRIED)
async def test_a_reconnecting_client_returns_after_a_retryable_close(far, code):
    client = far.client(reconnect=True, backoff=AT_ONCE, identity="ann")
    log = ClientLog(client)
    peer = await far.welcomed(client)
    await peer.close(code, "lost")
    await accept(far, "again")
    await log.until("ready", "again")
    assert log.walk == [*WALK, "OFFLINE", "RE_CONNECTING", "READY"]
    assert log.all("closed") == [(code, "lost")]
    assert len(far.urls) == 2


@pytest.mark.parametrize("code", FINAL)
async def test_a_reconnecting_client_stays_away_after_a_final_close(far, code):
    client = far.client(reconnect=True, backoff=AT_ONCE)
    log = ClientLog(client)
    peer = await far.welcomed(client)
    await peer.close(code)
    await log.until("closed")
    assert client.status is ClientStatus.OFFLINE
    assert other_tasks() == set()


@pytest.mark.parametrize("code", RETRIED)
async def test_without_reconnection_no_close_is_retried(far, code):
    client = far.client()
    log = ClientLog(client)
    peer = await far.welcomed(client)
    await peer.close(code)
    await log.until("closed")
    assert client.status is ClientStatus.OFFLINE
    assert other_tasks() == set()


@pytest.mark.parametrize("reconnect", [False, True])
async def test_4000_is_retried_at_once_with_reconnection_off_too(far, reconnect):
    backoff = CountingBackoff()
    client = far.client(reconnect=reconnect, backoff=backoff)
    log = ClientLog(client)
    peer = await far.welcomed(client)
    await peer.close(4000, "jump")
    await accept(far, "again")
    await log.until("ready", "again")
    assert log.walk == [*WALK, "OFFLINE", "RE_CONNECTING", "READY"]
    assert backoff.attempts == []


@pytest.mark.parametrize("reconnect", [False, True])
async def test_4000_before_the_welcome_is_retried_by_the_same_connect(far, reconnect):
    backoff = CountingBackoff()
    client = far.client(reconnect=reconnect, backoff=backoff)
    connecting, peer = await begin(far, client)
    await peer.close(4000, "jump")
    await accept(far, "there")
    assert await soon(connecting) == "there"
    assert backoff.attempts == []


@pytest.mark.parametrize("reconnect", [False, True])
async def test_a_server_that_goes_on_closing_with_4000_is_not_hammered(far, reconnect):
    backoff = CountingBackoff()
    client = far.client(reconnect=reconnect, backoff=backoff)
    connecting, peer = await begin(far, client)
    for _ in range(3):
        await peer.close(4000, "jump")
        peer = await far.peer()
    await peer.say("~wse:welcome", "at last")
    assert await soon(connecting) == "at last"
    assert backoff.attempts == [0, 1]


async def test_a_close_that_runs_at_once_in_a_closed_listener_ends_reconnection(far):
    client = far.client(reconnect=True, backoff=AT_ONCE)

    def close_at_once(code, reason):
        with pytest.raises(StopIteration):  # as an eager task would: it has nothing to wait for
            client.close().send(None)

    client.when.closed(close_at_once)
    log = ClientLog(client)
    peer = await far.welcomed(client)
    await peer.close(1006)
    await log.until("closed")
    assert client.status is ClientStatus.OFFLINE
    assert other_tasks() == set()
    assert log.all("error") == []


async def test_each_attempt_waits_as_the_backoff_says_and_is_reported(far):
    backoff = CountingBackoff()
    client = far.client(reconnect=True, backoff=backoff)
    log = ClientLog(client)
    peer = await far.welcomed(client)
    far.down = 3
    await peer.close(1006)
    await accept(far, "again")
    await log.until("ready", "again")
    assert backoff.attempts == [0, 1, 2, 3]
    assert [error.code for (error,) in log.all("error")] == [ErrorCode.WS_CLIENT_ERROR] * 3
    assert log.walk == [*WALK, "OFFLINE", "RE_CONNECTING", "READY"]


@pytest.mark.parametrize("lasts", [True, False])
async def test_the_backoff_begins_anew_only_after_a_connection_that_has_lasted(far, lasts, monkeypatch):
    if lasts:
        monkeypatch.setattr("wse.client.retry.STABLE", 0.0)
    backoff = CountingBackoff()
    client = far.client(reconnect=True, backoff=backoff)
    log = ClientLog(client)
    peer = await far.welcomed(client)
    for n in range(2):
        far.down = 1
        await peer.close(1006)
        peer = await accept(far, n)
        await log.until("ready", n)
    assert backoff.attempts == ([0, 1, 0, 1] if lasts else [0, 1, 2, 3])


async def test_with_reconnection_connect_waits_for_a_server(far):
    backoff = CountingBackoff()
    far.down = 3
    client = far.client(reconnect=True, backoff=backoff)
    log = ClientLog(client)
    await far.welcomed(client, "at last")
    assert backoff.attempts == [0, 1, 2]
    assert len(log.all("error")) == 3
    assert log.walk == ["CONNECTING", "READY"]


async def test_with_reconnection_connect_outlives_a_retryable_close_before_the_welcome(far):
    client = far.client(reconnect=True, backoff=AT_ONCE)
    connecting, peer = await begin(far, client)
    await peer.close(1013, "try again later")
    await accept(far, "later")
    assert await soon(connecting) == "later"


async def test_a_refusal_while_reconnecting_ends_it_and_is_reported(far):
    client = far.client(reconnect=True, backoff=AT_ONCE)
    log = ClientLog(client)
    peer = await far.welcomed(client)
    await peer.close(1012)
    peer = await far.peer()
    await peer.close(1000, "wse.not-authorized")
    _, error = await log.until("error")
    assert error.code == ErrorCode.NOT_AUTHORIZED
    assert client.status is ClientStatus.OFFLINE
    assert len(far.urls) == 2
    await far.welcomed(client)


async def test_being_pushed_out_by_another_device_ends_it():
    server = make_server()
    connector = MemoryConnector(server)
    old, new = (
        WseClient("ws://testserver", identity="ann", reconnect=True, backoff=AT_ONCE, connector=connector)
        for _ in range(2)
    )
    log = ClientLog(old)
    await old.connect()
    await new.connect()
    assert await log.until("closed") == ("closed", 1000, "wse.clients-concurrency")
    assert old.status is ClientStatus.OFFLINE
    assert len(server.clients["ann"].conns) == 1
    await new.close()
    await server.close()


async def test_a_closed_listener_may_connect_again_itself(far):
    client = far.client(reconnect=True, backoff=AT_ONCE)
    log = ClientLog(client)
    again = []

    @client.when.closed
    def closed(code, reason):
        if not again:
            again.append(asyncio.ensure_future(client.connect("ben")))

    peer = await far.welcomed(client)
    await peer.close(1000)
    peer = await far.peer()
    assert (await peer.hear())[1]["identity"] == "ben"
    await peer.say("~wse:welcome", 2)
    assert await soon(again[0]) == 2
    assert log.walk == [*WALK, "OFFLINE", *WALK]


# Jumping.


async def test_a_jump_leaves_with_4000_and_resolves_with_the_new_welcome(far):
    client = far.client(identity="ann", meta={"n": 1})
    log = ClientLog(client)
    old = await far.welcomed(client, 1)
    jumping = asyncio.ensure_future(client.jump("ws://other/path"))
    assert await old.closed() == (4000, "jump")
    new = await far.peer()
    assert await new.hear() == ["~wse:hi", {"identity": "ann", "meta": {"n": 1}, "ext": OFFERS}, None]
    await new.say("~wse:welcome", 2)
    assert await soon(jumping) == 2
    assert client.url == "ws://other/path"
    assert far.urls[1:] == ["ws://other/path"]
    assert log.walk == [*WALK, "OFFLINE", "RE_CONNECTING", "READY"]
    assert log.all("closed") == [(4000, "jump")]


async def test_a_jump_may_bring_another_identity_and_meta(far):
    client = far.client(identity="ann", meta={"n": 1})
    await far.welcomed(client)
    jumping = asyncio.ensure_future(client.jump("ws://other", identity="ben", meta={"n": 2}))
    new = await far.peer()
    assert (await new.hear())[1] == {"identity": "ben", "meta": {"n": 2}, "ext": OFFERS}
    await new.say("~wse:welcome")
    await soon(jumping)


async def test_on_an_idle_client_jump_is_connect(far):
    client = far.client(identity="ann")
    log = ClientLog(client)
    result, _ = await soon(asyncio.gather(client.jump("ws://other"), accept(far, 1)))
    assert result == 1
    assert far.urls == ["ws://other"]
    assert log.walk == WALK


async def test_on_an_offline_client_jump_is_connect(far):
    client = far.client(identity="ann")
    peer = await far.welcomed(client)
    await peer.close(1000)
    await client.close()
    result, _ = await soon(asyncio.gather(client.jump("ws://other", identity="ben"), accept(far, 1)))
    assert result == 1
    assert client.status is ClientStatus.READY


async def test_a_jump_while_reconnecting_replaces_the_waiting_attempt(far):
    client = far.client(reconnect=True, backoff=Backoff(base=60, cap=60, random=lambda: 1.0))
    log = ClientLog(client)
    peer = await far.welcomed(client)
    await peer.close(1012)
    await log.until("updated", ClientStatus.RE_CONNECTING)
    result, _ = await soon(asyncio.gather(client.jump("ws://other"), accept(far, 2)))
    assert result == 2
    assert far.urls[1:] == ["ws://other"]
    assert client.status is ClientStatus.READY
    assert other_tasks() == set()


async def test_a_jump_while_an_attempt_to_reconnect_is_open_leaves_that_server(far):
    client = far.client(reconnect=True, backoff=AT_ONCE)
    peer = await far.welcomed(client)
    await peer.close(1012)
    half = await far.peer()
    await half.hear()
    result, _ = await soon(asyncio.gather(client.jump("ws://other"), accept(far, 3)))
    assert result == 3
    await half.closed()
    assert client.status is ClientStatus.READY


async def test_an_attempt_that_a_jump_replaced_may_end_late(far):
    give_up, ended = asyncio.Event(), asyncio.Event()
    calls = []

    async def connector(url, protocol, headers, limits, open):
        calls.append(url)
        await far.connector(url, protocol, headers, limits, open)
        if len(calls) == 2:
            try:
                await asyncio.Event().wait()
            finally:
                await give_up.wait()
                ended.set()

    client = WseClient("ws://testserver", connector=connector, reconnect=True, backoff=AT_ONCE)
    log = ClientLog(client)
    peer = await far.welcomed(client)
    await peer.close(1012)
    await (await far.peer()).hear()  # the second attempt has said hi, and its connector hangs
    jumping = asyncio.ensure_future(client.jump("ws://other"))
    peer = await far.peer()
    await peer.hear()
    give_up.set()
    await soon(ended.wait())
    await asyncio.sleep(0)
    await peer.say("~wse:welcome", 3)
    assert await soon(jumping) == 3
    assert client.status is ClientStatus.READY
    client.send("end")
    assert (await peer.hear())[0] == "end"
    assert log.all("error") == []
    await client.close()


@pytest.mark.parametrize("reconnect", [False, True])
async def test_a_jump_to_a_server_that_refuses_fails_and_ends_offline(far, reconnect):
    client = far.client(reconnect=reconnect, backoff=AT_ONCE)
    log = ClientLog(client)
    await far.welcomed(client)
    jumping = asyncio.ensure_future(client.jump("ws://other"))
    peer = await far.peer()
    await peer.close(1000, "wse.not-authorized")
    assert (await fails(jumping)).code == ErrorCode.NOT_AUTHORIZED
    assert log.walk == [*WALK, "OFFLINE", "RE_CONNECTING", "OFFLINE"]
    assert log.all("closed") == [(4000, "jump"), (1000, "wse.not-authorized")]


async def test_a_jump_to_where_nobody_is_fails_and_ends_offline(far):
    client = far.client()
    old = await far.welcomed(client)
    far.down = 1
    assert (await fails(client.jump("ws://other"))).code == ErrorCode.WS_CLIENT_ERROR
    assert client.status is ClientStatus.OFFLINE
    assert await old.closed() == (4000, "jump")


async def test_a_jump_during_connect_or_another_jump_is_an_error(far):
    client = far.client()
    connecting, peer = await begin(far, client)
    assert (await fails(client.jump("ws://other"))).code == ErrorCode.CLIENT_ALREADY_CONNECTED
    await peer.say("~wse:welcome", 1)
    await soon(connecting)
    jumping = asyncio.ensure_future(client.jump("ws://other"))
    peer = await far.peer()
    await peer.hear()
    assert (await fails(client.jump("ws://third"))).code == ErrorCode.CLIENT_ALREADY_CONNECTED
    await peer.say("~wse:welcome", 2)
    assert await soon(jumping) == 2
    assert client.url == "ws://other"


async def test_a_jump_to_no_websocket_url_changes_nothing(far):
    client = far.client()
    await far.welcomed(client)
    url = client.url
    with pytest.raises(ValueError, match="WebSocket URL"):
        await client.jump("http://other")
    assert (client.url, client.status) == (url, ClientStatus.READY)


async def test_calls_pending_at_a_jump_are_settled(far):
    client = far.client()
    await far.welcomed(client)
    call = asyncio.ensure_future(client.call("slow"))
    await asyncio.sleep(0)
    await soon(asyncio.gather(client.jump("ws://other"), accept(far)))
    error = await fails(call)
    assert error.code == ErrorCode.RP_DISCONNECT
    assert error.details["disconnected"] == [4000, "jump"]


# Closing.


async def test_closing_an_idle_client_does_nothing(far):
    client = far.client()
    log = ClientLog(client)
    await client.close()
    assert client.status is ClientStatus.IDLE
    assert log.entries == []


async def test_close_returns_once_the_socket_is_closed_and_may_be_repeated(far):
    client = far.client()
    log = ClientLog(client)
    peer = await far.welcomed(client)
    await soon(asyncio.gather(client.close("first"), client.close("second")))
    await client.close("third")
    assert await peer.closed() == (1000, "first")
    assert log.all("closed") == [(1000, "first")]


async def test_a_closed_client_does_not_reconnect(far):
    client = far.client(reconnect=True, backoff=AT_ONCE)
    await far.welcomed(client)
    await client.close()
    assert client.status is ClientStatus.OFFLINE
    assert other_tasks() == set()
    assert len(far.urls) == 1


async def test_close_before_the_welcome_fails_the_connect(far):
    client = far.client(reconnect=True, backoff=AT_ONCE)
    connecting, peer = await begin(far, client)
    await soon(client.close())
    error = await fails(connecting)
    assert error.code == ErrorCode.CONNECTION_CLOSED
    assert error.details == {"code": 1000, "reason": CloseReason.BY_CLIENT}
    assert await peer.closed() == (1000, "wse.by-client")
    assert client.status is ClientStatus.OFFLINE


async def test_close_before_the_socket_opens_fails_the_connect():
    held = Held()
    client = WseClient("ws://testserver", connector=held)
    connecting = asyncio.ensure_future(client.connect())
    await soon(held.called.wait())
    await soon(client.close())
    error = await fails(connecting)
    assert error.code == ErrorCode.CONNECTION_CLOSED
    assert error.details == {"code": 1000, "reason": CloseReason.BY_CLIENT}
    assert client.status is ClientStatus.OFFLINE


async def test_close_ends_a_reconnect_that_waits(far):
    client = far.client(reconnect=True, backoff=Backoff(base=60, cap=60, random=lambda: 1.0))
    log = ClientLog(client)
    peer = await far.welcomed(client)
    await peer.close(1012)
    await log.until("updated", ClientStatus.RE_CONNECTING)
    await soon(client.close())
    await asyncio.sleep(0)
    assert client.status is ClientStatus.OFFLINE
    assert other_tasks() == set()
    assert log.walk == [*WALK, "OFFLINE", "RE_CONNECTING", "OFFLINE"]


async def test_close_ends_a_reconnect_that_has_said_hi(far):
    client = far.client(reconnect=True, backoff=AT_ONCE)
    peer = await far.welcomed(client)
    await peer.close(1012)
    half = await far.peer()
    await half.hear()
    await soon(client.close("enough"))
    assert await half.closed() == (1000, "enough")
    assert client.status is ClientStatus.OFFLINE
    assert len(far.urls) == 2


@pytest.mark.parametrize("when", ["no socket", "no welcome"])
async def test_a_cancelled_connect_leaves_nothing_behind(far, when):
    held = Held()
    client = WseClient("ws://testserver", connector=held if when == "no socket" else far.connector)
    connecting = asyncio.ensure_future(client.connect())
    peer = None
    if when == "no socket":
        await soon(held.called.wait())
    else:
        peer = await far.peer()
        await peer.hear()
    connecting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await connecting
    assert connecting.cancelled()
    assert other_tasks() == set()
    assert client.status is ClientStatus.OFFLINE
    if peer is not None:
        assert (await peer.closed())[0] == 1000
        await soon(asyncio.gather(client.connect(), accept(far)))
        await client.close()


async def test_a_connect_that_times_out_outside_can_be_tried_again(far):
    client = far.client()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await client.connect()
    await (await far.peer()).closed()
    await far.welcomed(client, "patience")
    assert client.status is ClientStatus.READY


async def test_a_cancelled_jump_leaves_the_client_offline(far):
    client = far.client()
    await far.welcomed(client)
    jumping = asyncio.ensure_future(client.jump("ws://other"))
    peer = await far.peer()
    await peer.hear()
    jumping.cancel()
    await asyncio.wait([jumping])
    assert jumping.cancelled()
    assert client.status is ClientStatus.OFFLINE
    assert (await peer.closed())[0] == 1000


async def test_the_context_manager_connects_with_identity_and_meta_and_closes():
    server = make_server(lambda auth: auth.accept(auth.identity, auth.meta))
    client = WseClient("ws://testserver", identity="ann", meta={"n": 1}, connector=MemoryConnector(server))
    async with client as entered:
        assert entered is client
        assert client.status is ClientStatus.READY
        assert server.clients["ann"].meta == {"n": 1}
    assert client.status is ClientStatus.OFFLINE
    assert server.clients == {}


async def test_leaving_the_context_cancels_handlers_that_still_run():
    server = make_server()
    ended = []
    async with WseClient("ws://testserver", identity="ann", connector=MemoryConnector(server)) as client:
        started = asyncio.Event()

        @client.channel.on("work")
        async def work(payload):
            started.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.append(payload)

        server.broadcast("work", 1)
        await soon(started.wait())
    assert ended == [1]


# Not ready.


@pytest.mark.parametrize("use", ["send", "call"])
async def test_sending_and_calling_need_a_welcomed_connection(far, use):
    client = far.client(reconnect=True, backoff=Backoff(base=60, cap=60, random=lambda: 1.0))
    log = ClientLog(client)

    async def send():
        client.send("chat", 1)

    uses = {"send": send, "call": lambda: client.call("add", 1)}

    async def try_it():
        error = await fails(uses[use]())
        assert error.code == ErrorCode.CLIENT_NOT_READY
        assert error.details == {"status": str(client.status)}
        assert log.entries[-1] == ("error", error)

    await try_it()  # IDLE
    connecting, peer = await begin(far, client)
    await try_it()  # CONNECTING
    await peer.say("~wse:welcome")
    await soon(connecting)
    await peer.close(1012)
    await log.until("updated", ClientStatus.RE_CONNECTING)
    await try_it()
    await client.close()
    await try_it()  # OFFLINE
    assert len(log.all("error")) == 4


async def test_pending_calls_are_settled_when_the_connection_is_lost(far):
    client = far.client()
    peer = await far.welcomed(client)
    calls = [asyncio.ensure_future(client.call("slow", n, timeout=n)) for n in (0, 20)]
    await peer.hear()
    await peer.hear()
    session = client._connections.session
    peer.vanish()
    for call in calls:
        error = await fails(call)
        assert error.code == ErrorCode.RP_DISCONNECT
        assert error.details == {"rp": "slow", "disconnected": [1006, ""]}
    assert session.pending_calls == 0


async def test_pending_calls_are_settled_before_the_reconnect(far):
    client = far.client(reconnect=True, backoff=AT_ONCE)
    peer = await far.welcomed(client)
    call = asyncio.ensure_future(client.call("slow"))
    await peer.hear()
    await peer.close(1012, "restart")
    error = await fails(call)
    assert error.details["disconnected"] == [1012, "restart"]
    await accept(far)


async def test_wse_s_own_types_cannot_be_sent_registered_or_listened_to(far):
    client = far.client()
    peer = await far.welcomed(client)
    for use in (
        lambda: client.send("~wse:hi"),
        lambda: client.register("~wse:anything", lambda payload: None),
        lambda: client.channel.on("~wse:welcome", lambda payload: None),
    ):
        with pytest.raises(WseError) as caught:
            use()
        assert caught.value.code == ErrorCode.PROTOCOL_VIOLATION
    client.send("end")
    assert (await peer.hear())[0] == "end"


async def test_procedures_register_once_and_as_decorators(far):
    client = far.client()

    @client.register("add")
    def add(payload):
        return sum(payload)

    with pytest.raises(WseError) as caught:
        client.register("add", add)
    assert caught.value.code == ErrorCode.RP_ALREADY_REGISTERED
    peer = await far.welcomed(client)
    await peer.say("add", [1, 2], 1)
    assert await peer.hear() == ["~wse:response", 3, 1]
    client.unregister("add")
    with pytest.raises(WseError) as caught:
        client.unregister("add")
    assert caught.value.code == ErrorCode.RP_NOT_REGISTERED


# Challenges.


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_challenge_handler_that_raises_fails_the_connect(far, is_async):
    client = far.client(reconnect=True, backoff=AT_ONCE)

    def respond(quest):
        raise LookupError("no key")

    async def respond_later(quest):
        await asyncio.sleep(0)
        raise LookupError("no key")

    client.challenge(respond_later if is_async else respond)
    connecting, peer = await begin(far, client)
    await peer.say("~wse:challenge", 1)
    error = await fails(connecting)
    assert error.code == ErrorCode.INVALID_CRA_HANDLER
    assert isinstance(error.__cause__, LookupError)
    assert await peer.closed() == (1000, "wse.by-client")
    assert client.status is ClientStatus.OFFLINE


async def test_a_challenge_handler_s_own_wse_error_fails_the_connect_as_it_is(far):
    client = far.client()

    @client.challenge
    def respond(quest):
        raise WseError("no.key", {"quest": quest})

    connecting, peer = await begin(far, client)
    await peer.say("~wse:challenge", 1)
    error = await fails(connecting)
    assert (error.code, error.details) == ("no.key", {"quest": 1})


async def test_a_response_that_cannot_be_encoded_fails_the_connect(far):
    client = far.client()
    client.challenge(lambda quest: Unpackable())
    connecting, peer = await begin(far, client)
    await peer.say("~wse:challenge", 1)
    assert (await fails(connecting)).code == ErrorCode.MSG_PROCESSING_ERROR
    assert (await peer.closed())[0] == 1000


async def test_without_a_challenge_handler_the_quest_is_ignored_until_the_deadline(far):
    client = far.client()
    connecting, peer = await begin(far, client)
    await peer.say("~wse:challenge", 1)
    await peer.close(1000, "wse.auth-timeout")
    error = await fails(connecting)
    assert error.code == ErrorCode.CONNECTION_CLOSED
    assert error.details == {"code": 1000, "reason": "wse.auth-timeout"}


async def test_a_response_that_comes_after_the_close_goes_nowhere(far):
    client = far.client()
    log = ClientLog(client)
    started, gate, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @client.challenge
    async def respond(quest):
        started.set()
        await gate.wait()
        done.set()
        return 1

    connecting, peer = await begin(far, client)
    await peer.say("~wse:challenge", 1)
    await soon(started.wait())
    await peer.close(1000, "wse.auth-timeout")
    await fails(connecting)
    gate.set()
    await soon(done.wait())
    await asyncio.sleep(0)
    assert log.all("error") == []


async def test_a_failure_of_a_challenge_after_the_close_changes_nothing(far):
    client = far.client()
    started, gate = asyncio.Event(), asyncio.Event()

    @client.challenge
    async def respond(quest):
        started.set()
        await gate.wait()
        raise LookupError

    connecting, peer = await begin(far, client)
    await peer.say("~wse:challenge", 1)
    await soon(started.wait())
    await peer.close(4001, "bye")
    assert (await fails(connecting)).details["code"] == 4001
    again = asyncio.ensure_future(client.connect())
    peer = await far.peer()
    gate.set()
    await peer.say("~wse:welcome", "fine")
    assert await soon(again) == "fine"


class Password:
    """Credentials that take part in the handshake."""

    def __init__(self):
        self.started = 0

    def start(self):
        self.started += 1
        return {"n": self.started}

    async def respond(self, quest):
        return quest * 2

    def finish(self, welcome):
        if welcome["proof"] != "right":
            raise WseError(ErrorCode.NOT_AUTHORIZED, {"server": "unproven"})
        return welcome["for"]


async def test_credentials_make_the_identity_answer_the_quest_and_check_the_welcome(far):
    client = far.client(identity=Password(), reconnect=True, backoff=AT_ONCE)
    log = ClientLog(client)
    connecting = asyncio.ensure_future(client.connect())
    for n in (1, 2):
        peer = await far.peer()
        assert (await peer.hear())[1]["identity"] == {"n": n}
        await peer.say("~wse:challenge", 21)
        assert await peer.hear() == ["~wse:challenge", 42, None]
        await peer.say("~wse:welcome", {"proof": "right", "for": ["you", n]})
        await log.until("ready", ["you", n])
        await peer.close(1012)
    assert await soon(connecting) == ["you", 1]


async def test_credentials_that_cannot_start_fail_the_connect_and_leave_the_client_usable(far):
    class Broken(Password):
        def start(self):
            raise LookupError("no key")

    client = far.client(identity=Broken())
    with pytest.raises((LookupError, WseError)):
        await soon(client.connect())
    assert client.status is ClientStatus.OFFLINE
    await soon(asyncio.gather(client.connect("ann"), accept(far)))


async def test_a_server_that_does_not_prove_itself_fails_the_connect(far):
    client = far.client(identity=Password(), reconnect=True, backoff=AT_ONCE)
    log = ClientLog(client)
    connecting, peer = await begin(far, client)
    await peer.say("~wse:welcome", {"proof": "wrong"})
    error = await fails(connecting)
    assert error.code == ErrorCode.NOT_AUTHORIZED
    assert error.details == {"server": "unproven"}
    assert (await peer.closed())[0] == 1000
    assert client.status is ClientStatus.OFFLINE
    assert log.all("ready") == []


async def test_whatever_a_credential_s_check_raises_fails_the_connect(far):
    client = far.client(identity=Password())
    connecting, peer = await begin(far, client)
    await peer.say("~wse:welcome", {})  # the check stumbles over what is missing
    with pytest.raises((WseError, KeyError)):
        await soon(connecting)
    assert (await peer.closed())[0] == 1000
    assert client.status is ClientStatus.OFFLINE


# Arguments.


@pytest.mark.parametrize(
    "url", ["", "localhost:4200", "http://localhost", "ws://", "ws:///path", "ws://host/#part", "wss:host", "ws//x"]
)
def test_what_is_no_websocket_url_is_rejected_at_once(url):
    with pytest.raises(ValueError, match="WebSocket URL"):
        WseClient(url)


@pytest.mark.parametrize("url", ["ws://localhost", "wss://host.example:8443/path?query=1", "ws://[::1]:4200/"])
def test_websocket_urls_are_kept_as_they_are(url):
    assert WseClient(url).url == url


def test_a_negative_timeout_is_rejected():
    with pytest.raises(ValueError, match="timeout"):
        WseClient("ws://localhost", timeout=-1)


def test_a_challenge_handler_that_takes_no_quest_is_rejected():
    with pytest.raises(TypeError, match="quest"):
        WseClient("ws://localhost").challenge(lambda: None)


def test_a_client_shows_its_status_and_no_secret():
    client = WseClient("ws://localhost/?token=secret", identity="secret")
    assert repr(client) == "<WseClient IDLE>"


def test_a_client_has_the_protocol_that_was_given():
    protocol = WseMsgpack()
    assert WseClient("ws://localhost", protocol=protocol).protocol is protocol
    assert WseClient("ws://localhost").protocol.name == "wse-default-json"


async def test_headers_are_given_to_the_connector(far):
    client = far.client(headers={"X-Token": "1"})
    await far.welcomed(client)
    assert far.headers["X-Token"] == "1"


async def test_a_connect_that_is_cancelled_after_a_close_stays_cancelled(far):
    client = far.client()
    connecting, _ = await begin(far, client)
    closing = asyncio.ensure_future(client.close())
    await asyncio.sleep(0)
    connecting.cancel()
    await soon(closing)
    with pytest.raises(asyncio.CancelledError):
        await connecting
    assert client.status is ClientStatus.OFFLINE


async def test_a_welcome_that_comes_with_the_cancellation_is_of_no_use(far):
    client = far.client()
    connecting, peer = await begin(far, client)
    await peer.say("~wse:welcome", "too late")
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting
    assert client.status is ClientStatus.OFFLINE
    assert (await peer.closed())[0] == 1000


def test_an_argument_that_is_not_given_shows_in_the_signature():
    assert "<as before>" in str(inspect.signature(WseClient.connect))
