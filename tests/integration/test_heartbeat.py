"""The heartbeat over real sockets: dead connections are found, slow ones are spared, and round trips are timed."""

import asyncio
import math
import socket

import pytest

from support.net import (
    CLOSE,
    PING,
    PONG,
    TEXT,
    TIMEOUT,
    TRANSPORTS,
    RawSocket,
    ServerLog,
    close_payload,
    frame,
    make_server,
    text,
)
from wse import ClientStatus, Heartbeat, WseClient
from wse.core.session.keepalive import Keepalive
from wse.transports.tcp import seconds_since_last_byte

QUICK = Heartbeat(interval=0.1, timeout=0.1)
PATIENT = Heartbeat(interval=0.1, timeout=TIMEOUT)
"""Pings as often, and forgives a machine that lets the peer wait."""


async def test_a_silent_client_is_pinged_and_its_pong_times_the_way():
    server = make_server(heartbeat=Heartbeat(interval=0.05, timeout=TIMEOUT))
    log = ServerLog(server)
    async with server, WseClient(server.url, identity="ann"):
        conn = await log.conn("ann")
        assert conn.rtt is None
        async with asyncio.timeout(TIMEOUT):
            while conn.rtt is None:
                await asyncio.sleep(0.01)
        assert 0 < conn.rtt < TIMEOUT


async def test_a_half_open_connection_is_found():
    server = make_server(heartbeat=QUICK)
    log = ServerLog(server)
    async with server, RawSocket.user(server.url) as peer:
        assert await peer.frame() == (PING, b"")
        entry = await log.until("disconnected", "ann")  # no pong, no byte
        assert entry[2:] == (1006, "")
        assert server.stats().close_codes == {1006: 1}
        await peer.eof()
    assert server.clients == {}


@pytest.mark.parametrize("transport", ["aiohttp", "uvicorn-socket"])
async def test_a_half_open_connection_is_found_inside_a_web_server_that_gives_its_socket_away(transport):
    server = make_server(port=None, heartbeat=QUICK)
    log = ServerLog(server)
    async with TRANSPORTS[transport](server) as place, RawSocket.user(place.url) as peer:
        assert await peer.frame() == (PING, b"")
        entry = await log.until("disconnected", "ann")
        assert entry[2:] == (1006, "")


async def test_a_client_that_only_answers_pings_stays():
    server = make_server(heartbeat=PATIENT)
    log = ServerLog(server)
    async with server, RawSocket.user(server.url) as peer:
        for _ in range(5):
            opcode, payload = await peer.frame()
            assert opcode == PING
            peer.send(frame(PONG, payload))
        assert log.all("disconnected") == []


async def test_a_message_that_comes_a_byte_at_a_time_keeps_its_connection():
    server = make_server(heartbeat=Heartbeat(interval=0.1, timeout=1))
    server.register("echo", lambda conn, payload: payload)
    async with server, RawSocket.user(server.url) as peer:
        data = text("echo", "slow", 1)
        for at in range(len(data)):
            peer.send(data[at : at + 1])
            await asyncio.sleep(0.06)  # the pace is what is tested: longer than interval and timeout in all
        while (message := await peer.frame())[0] == PING:
            pass
        assert message == (TEXT, b'["~wse:response","slow",1]')


async def test_a_client_times_the_way_to_its_server():
    server = make_server()
    async with server, WseClient(server.url, heartbeat=Heartbeat(interval=0.05, timeout=TIMEOUT)) as client:
        assert client.rtt is None
        async with asyncio.timeout(TIMEOUT):
            while client.rtt is None:
                await asyncio.sleep(0.01)
        assert 0 < client.rtt < TIMEOUT
    assert client.rtt is None


async def test_a_connection_that_closes_is_not_pinged():
    server = make_server()
    log = ServerLog(server)
    async with server, RawSocket.user(server.url) as peer:
        conn = await log.conn("ann")
        conn.drop()
        conn._session.link.ping()
        assert await peer.closed() == (1000, "wse.by-server")  # and no ping before it,
        peer.send(frame(CLOSE, close_payload(1000)))
        await peer.eof()  # nor after


async def test_both_sides_may_ping_at_once():
    server = make_server(heartbeat=PATIENT)
    server.register("echo", lambda conn, payload: payload)
    async with server, WseClient(server.url, heartbeat=PATIENT) as client:
        for n in range(30):
            assert await client.call("echo", n) == n
            await asyncio.sleep(0.02)
        assert client.status is ClientStatus.READY


def test_nobody_knows_of_bytes_without_a_socket():
    assert seconds_since_last_byte(None) == math.inf


def test_sockets_that_are_no_tcp_tell_nothing():
    one, other = socket.socketpair()
    with one, other:
        assert seconds_since_last_byte(one) == math.inf


@pytest.mark.parametrize("end", ["the client's", "the server's"])
def test_a_client_times_the_way_in_another_event_loop_too(end):
    server = make_server(port=0, heartbeat=Heartbeat(interval=0))
    clients = []

    async def once(end):
        async with server:
            client = (
                WseClient(server.url, heartbeat=Heartbeat(interval=1, timeout=TIMEOUT)) if not clients else clients[0]
            )
            clients.append(client)
            await client.jump(server.url)
            if len(clients) == 2:
                async with asyncio.timeout(TIMEOUT):
                    while client.rtt is None:
                        await asyncio.sleep(0.01)
            if end == "the client's":
                await client.close()
                assert not [timer for timer in asyncio.get_running_loop()._scheduled if _is_of(timer, Keepalive)]

    for _ in range(2):
        asyncio.run(once(end))


def _is_of(timer, kind):
    return not timer.cancelled() and isinstance(getattr(timer._callback, "__self__", None), kind)
