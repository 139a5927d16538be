"""WIRE.md section 1: which protocol a connection speaks."""

import pytest

from support.net import ServerLog, make_server
from wse import ErrorCode, WseJSON, WseMsgpack

JSON, MSGPACK = WseJSON.name, WseMsgpack.name


@pytest.mark.parametrize(
    ("offer", "chosen"),
    [
        ((JSON,), JSON),
        ((MSGPACK, JSON), MSGPACK),
        ((JSON, MSGPACK), JSON),
        (("of-another-time", MSGPACK, JSON), MSGPACK),
    ],
)
async def test_the_client_s_order_decides_among_the_protocols_of_the_server(run, offer, chosen):
    place = await run(make_server(protocol=[WseJSON(), WseMsgpack()]))
    peer = await place.peer(*offer)
    assert peer.subprotocol == chosen


async def test_a_client_that_offers_nothing_is_upgraded_and_closed(run):
    server = make_server()
    log = ServerLog(server)
    place = await run(server)
    peer = await place.unnamed_peer()
    assert peer.subprotocol is None
    assert await peer.closed() == (1000, "wse.protocol-error")
    error = await log.error()
    assert error.code == ErrorCode.PROTOCOL_VIOLATION
    assert error.details["from"] == "stranger"


async def test_a_client_that_offers_only_unknown_protocols_is_upgraded_and_closed(run):
    server = make_server()
    ServerLog(server)
    place = await run(server)
    peer = await place.peer("mqtt", "WSE-DEFAULT-JSON")
    assert peer.subprotocol is None
    assert await peer.closed() == (1000, "wse.protocol-error")


async def test_a_client_without_a_protocol_is_never_asked_who_it_is(run):
    asked = []
    server = make_server(asked.append)
    ServerLog(server)
    place = await run(server)
    peer = await place.unnamed_peer()
    await peer.closed()
    assert asked == []
    assert server.clients == {}


async def test_the_request_s_path_and_query_reach_the_identify_handler(run):
    requests = []

    def identify(auth):
        requests.append(auth.request)
        auth.accept("ann")

    place = await run(make_server(identify))
    peer = await place.peer(target="/chat/room?token=a%20b&n=1&n=2&empty=")
    await peer.login()
    (request,) = requests
    assert request.path == "/chat/room"
    assert request.query == {"token": "a b", "n": "1", "empty": ""}


async def test_the_path_is_as_it_was_sent(run):
    requests = []

    def identify(auth):
        requests.append(auth.request)
        auth.accept("ann")

    place = await run(make_server(identify))
    peer = await place.peer(target="/a%3Fb/%C3%A9%2Fx?n=1%26")
    await peer.login()
    assert (requests[0].path, requests[0].query) == ("/a%3Fb/%C3%A9%2Fx", {"n": "1&"})


async def test_the_connection_knows_its_protocol(run):
    json, msgpack = WseJSON(), WseMsgpack()
    server = make_server(protocol=[json, msgpack])
    log = ServerLog(server)
    place = await run(server)
    await place.connect("ann")
    await place.connect("ben", protocol=WseMsgpack())
    assert (await log.conn("ann")).protocol is json
    assert (await log.conn("ben")).protocol is msgpack
