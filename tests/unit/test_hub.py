"""Users and their devices: what the contract suite cannot time to the step."""

import asyncio

import pytest

from support.core import ServerSide
from wse import ErrorCode, WseError, WseServer
from wse.testing import connect


def test_nothing_reaches_a_new_device_before_its_welcome_even_from_a_listener_of_the_old_ones_end():
    side = ServerSide(conns_per_user=1)
    side.join("ann", "old")
    side.hub.disconnected(lambda conn, code, reason: conn.client.send("gone"))
    side.hub.disconnected(lambda conn, code, reason: side.hub.broadcast("gone", None))
    peer = side.open()
    peer.say("~wse:hi", {"identity": "ann"})
    assert [message[0] for message in peer.heard] == ["~wse:welcome"]


def test_a_device_that_is_dropped_while_it_pushes_out_another_gets_no_welcome_and_leaves_nothing():
    side = ServerSide(conns_per_user=1)
    side.join("ann", "old")
    side.hub.disconnected.once(lambda conn, code, reason: conn.client.drop("all of you"))
    peer = side.open()
    peer.say("~wse:hi", {"identity": "ann"})
    assert peer.closed_with == (1000, "all of you")
    assert peer.heard == []
    assert (side.hub.identities, side.hub.connections) == ({}, {})
    assert len(side.names("left")) == 1


@pytest.mark.parametrize("stamp", [[], {}])
def test_an_empty_array_or_object_is_a_stamp_as_in_javascript(stamp):
    side = ServerSide()
    peer = side.join("ann", "one")
    side.endpoint.procedures.register("echo", lambda conn, payload: payload)
    peer.say("echo", 5, stamp)
    assert list(peer.heard[-1]) == ["~wse:response", 5, stamp]


def test_a_negative_timeout_is_rejected_at_once():
    side = ServerSide()
    peer = side.join("ann", "one")
    with pytest.raises(ValueError, match="timeout"):
        peer.session.start_call("x", None, -1)
    assert peer.session.pending_calls == 0


async def test_a_plain_procedure_may_return_a_future():
    server = WseServer(lambda auth: auth.accept("ann"))
    loop = asyncio.get_running_loop()

    @server.register("later")
    def later(conn, payload):
        future = loop.create_future()
        loop.call_soon(future.set_result, payload)
        return future

    @server.register("fails")
    def fails(conn, payload):
        future = loop.create_future()
        loop.call_soon(future.set_exception, WseError("app.no"))
        return future

    async with connect(server) as client:
        assert await client.call("later", 7) == 7
        with pytest.raises(WseError) as caught:
            await client.call("fails")
        assert caught.value.code == "app.no"
        with pytest.raises(WseError) as caught:
            await client.call("absent")
        assert caught.value.code == ErrorCode.RP_NOT_REGISTERED


async def test_an_error_that_a_procedure_raises_on_purpose_is_logged_as_its_answer(caplog):
    caplog.set_level("INFO", "wse")
    server = WseServer(lambda auth: auth.accept("ann"))

    @server.register("no")
    def no(conn, payload):
        raise WseError("app.no")

    async with connect(server) as client:
        with pytest.raises(WseError):
            await client.call("no")
    (record,) = [record for record in caplog.records if "app.no" in record.getMessage()]
    assert (record.name, record.levelname, record.exc_info) == ("wse", "INFO", None)
    assert (record.kind, record.code, record.cid, record.rp) == ("answer", "app.no", "ann", "no")
    assert "'no'" in record.getMessage()
    assert "'ann'" in record.getMessage()
    assert (server.stats().errors, server.stats().answers) == ({}, {"other": 1})


def test_a_close_that_is_cancelled_in_the_turn_of_the_last_socket_s_end_does_not_trip_another():
    side = ServerSide()
    peer = side.join()
    cancelled, other = (side.scheduler.start(side.hub.close(1012, "bye")) for _ in range(2))
    cancelled.cancel()
    peer.session.closed(1012, "bye")
    side.scheduler.run()
    assert cancelled.cancelled()
    assert other.result() is None


def test_however_many_there_are_all_are_closed_within_a_bound(monkeypatch):
    monkeypatch.setattr("wse.core.hub.sockets.CLOSES_PER_SECOND", 10)
    monkeypatch.setattr("wse.core.hub.sockets.CLOSED_WITHIN", 2.0)
    side = ServerSide()
    peers = [side.join(f"user {number}") for number in range(101)]
    closing = side.scheduler.start(side.hub.close(1012, "bye"))
    side.scheduler.advance(1.0)
    assert 50 <= sum(peer.closed_with is not None for peer in peers) <= 70
    side.scheduler.advance(1.0)
    assert all(peer.closed_with == (1012, "bye") for peer in peers)
    for peer in peers:
        peer.session.closed(1012, "bye")
    side.scheduler.run()
    assert closing.result() is None


def test_a_hub_that_closes_turns_new_clients_away_and_is_done_when_all_have_gone_by_themselves(monkeypatch):
    monkeypatch.setattr("wse.core.hub.sockets.CLOSES_PER_SECOND", 10)
    side = ServerSide()
    peers = [side.join(cid) for cid in ("ann", "bob", "cid")]
    closing = side.scheduler.start(side.hub.close(1012, "bye"))
    assert side.open().closed_with == (1012, "bye")
    for session in tuple(side.hub.sockets.open):
        session.closed(1006, "")
    side.scheduler.advance(1)
    assert closing.result() is None
    assert sum(peer.closed_with == (1012, "bye") for peer in peers) == 1
    assert side.open().closed_with is None
