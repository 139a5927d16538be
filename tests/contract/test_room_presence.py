"""Rooms that clients enter by themselves, and presence in them, with real clients on every transport."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from support.net import TRANSPORTS, ServerLog, make_server, soon
from support.resume import RETURNING, cut, session_of, until
from wse import ErrorCode, Limits, WseError, WseMsgpack, WseServer
from wse.testing import connect


@pytest.fixture(
    params=["memory", *(pytest.param(name, marks=pytest.mark.slow) for name in TRANSPORTS if name != "memory")]
)
async def run(request):
    """`await run(server)` runs a server on a transport. The sessions and rooms above them are the same on all."""
    async with AsyncExitStack() as stack:

        async def run(server):
            return await stack.enter_async_context(TRANSPORTS[request.param](server))

        yield run


AGAIN = {**RETURNING, "resume": False}
"""A client that connects again, with a new session."""


def make_rooms(**options):
    """A server with a room that has presence, whose guard refuses some names."""
    server = make_server(conns_per_user=10, **options)
    server.room("doc", presence=True)

    @server.room_guard
    async def guard(conn, name):
        if name == "secret":
            raise WseError("app.secret", {"room": name})
        return name != "closed"

    return server


def states(client, name="doc"):
    """What a client sees, without the names of devices."""
    return {user: sorted(devices.values()) for user, devices in client.room(name).presence.members.items()}


def lose(client):
    """Break the connection of a client without `resume`."""
    session_of(client).link.abort()


class Changes(list):
    """The changes that a client has been told."""

    def __init__(self, client, name="doc"):
        super().__init__()
        client.room(name).presence.when.changed(self.append)


async def enter(place, identity, **options):
    client = place.client(identity=identity, **options)
    await soon(client.connect())
    await soon(client.room("doc").join())
    return client


async def test_members_see_what_others_show_and_that_they_leave(run):
    server = make_rooms()
    place = await run(server)
    ann = await enter(place, "ann")
    ann.room("doc").presence.set({"cursor": [3, 9]})
    await until(lambda: states(ann) == {"ann": [{"cursor": [3, 9]}]})
    bob = await enter(place, "bob")
    assert states(bob) == {"ann": [{"cursor": [3, 9]}]}  # the snapshot is there when `join` returns
    changes = Changes(bob)
    seen = []
    bob.room("doc").presence.when.changed(lambda _: seen.append(states(bob)))
    ann.room("doc").presence.set({"cursor": [4, 0]})
    await until(lambda: states(bob) == {"ann": [{"cursor": [4, 0]}]})
    assert changes == [{"ann": {ann.room("doc").presence.device: {"cursor": [4, 0]}}}]
    assert seen == [{"ann": [{"cursor": [4, 0]}]}]  # `members` has it already
    bob.room("doc").presence.set("here", ttl=60)
    await until(lambda: states(ann) == {"ann": [{"cursor": [4, 0]}], "bob": ["here"]})
    ann.room("doc").presence.clear()
    await until(lambda: states(bob) == {"bob": ["here"]})
    (conn,) = server.clients["ann"].conns.values()
    server.room("doc").presence.set(conn, "from the server", ttl=60)
    await until(lambda: states(bob) == {"ann": ["from the server"], "bob": ["here"]})
    assert server.room("doc").presence.members == bob.room("doc").presence.members
    await soon(ann.room("doc").leave())
    assert states(ann) == {}
    await until(lambda: states(bob) == {"bob": ["here"]})
    await soon(bob.close())
    assert states(bob) == {}
    await until(lambda: not server.room("doc").presence.members)


async def test_states_expire(run):
    place = await run(make_rooms())
    ann, bob = await enter(place, "ann"), await enter(place, "bob")
    ann.room("doc").presence.set("typing", ttl=0.1)
    bob.room("doc").presence.set("stays")
    await until(lambda: states(bob) == states(ann) == {"bob": ["stays"]})


async def test_a_user_has_one_entry_with_all_devices(run):
    place = await run(make_rooms())
    phone, laptop = await enter(place, "ann"), await enter(place, "ann")
    phone.room("doc").presence.set("phone")
    laptop.room("doc").presence.set("laptop")
    await until(lambda: states(phone) == states(laptop) == {"ann": ["laptop", "phone"]})
    assert set(phone.room("doc").presence.members["ann"]) == {
        phone.room("doc").presence.device,
        laptop.room("doc").presence.device,
    }


async def test_a_client_gets_what_is_sent_to_the_room_until_it_leaves(run):
    server = make_rooms()
    server.register("flush", lambda conn, payload: None)
    place = await run(server)
    ann = place.client(identity="ann")
    heard = []
    ann.channel.on("say", heard.append)
    await soon(ann.connect())
    await soon(ann.room("plain").join())
    server.room("plain").send("say", 1)
    await soon(ann.room("plain").leave())
    server.room("plain").send("say", 2)
    await soon(ann.call("flush"))
    assert heard == [1]
    await soon(ann.room("plain").leave())


async def test_the_guard_refuses_and_nobody_enters_without_one(run):
    server = make_rooms(limits=Limits(rooms=1))
    place = await run(server)
    ann = place.client(identity="ann")
    await soon(ann.connect())
    for name, code in [("secret", "app.secret"), ("closed", ErrorCode.NOT_AUTHORIZED), ("", ErrorCode.INVALID_PAYLOAD)]:
        with pytest.raises(WseError) as caught:
            await soon(ann.room(name).join())
        assert caught.value.code == code
    await soon(ann.room("doc").join())
    with pytest.raises(WseError) as caught:
        await soon(ann.room("another").join())
    assert caught.value.code == ErrorCode.LIMIT_EXCEEDED
    with pytest.raises(WseError) as caught:
        ann.room("another").presence.set(1)
    assert caught.value.code == ErrorCode.CLIENT_NOT_READY
    server._hub.entrance.guard = None
    with pytest.raises(WseError) as caught:
        await soon(ann.room("doc").join())
    assert caught.value.code == ErrorCode.NOT_AUTHORIZED


async def test_after_a_reconnect_the_client_enters_again_and_shows_its_state_again(run):
    server = make_rooms()
    place = await run(server)
    ann = await enter(place, "ann", **AGAIN)
    bob = await enter(place, "bob")
    ann.room("doc").presence.set("before", ttl=60)
    await until(lambda: states(bob) == {"ann": ["before"]})
    device = ann.room("doc").presence.device
    changes = Changes(bob)
    lose(ann)
    ann.room("doc").presence.set("meanwhile")
    await until(lambda: states(bob) == {"ann": ["meanwhile"]})
    assert ann.room("doc").presence.device != device
    gone = {"ann": {device: None}}
    assert gone in changes or any(change.get("ann", {}).get(device, 0) is None for change in changes)
    await until(lambda: states(ann) == {"ann": ["meanwhile"]})


async def test_a_session_that_goes_on_keeps_its_state_and_learns_what_it_has_missed(run):
    server = make_rooms()
    place = await run(server)
    log = ServerLog(server)
    ann = await enter(place, "ann", **RETURNING)
    bob = await enter(place, "bob")
    ann.room("doc").presence.set("ann")
    await until(lambda: states(bob) == {"ann": ["ann"]})
    for n in range(3):
        changes = Changes(bob)
        cut(ann)
        bob.room("doc").presence.set(n)
        if n == 2:
            ann.room("doc").presence.set("away")
        shown = "away" if n == 2 else "ann"
        await until(lambda: states(ann) == states(bob) == {"ann": [shown], "bob": [n]})  # noqa: B023 - awaited in the loop
        assert not any(None in change.get("ann", {}).values() for change in changes)
    assert log.all("resumed")


async def test_a_client_that_the_guard_refuses_after_a_reconnect_is_out_and_the_error_is_reported(run):
    server = make_rooms()
    place = await run(server)
    ann = await enter(place, "ann", **AGAIN)
    errors = []
    ann.when.error(errors.append)
    ann.room("doc").presence.set("here")
    await until(lambda: states(ann) == {"ann": ["here"]})

    @server.room_guard
    def guard(conn, name):
        raise WseError("app.banned")

    lose(ann)
    await until(lambda: "app.banned" in [error.code for error in errors])
    assert states(ann) == {}
    with pytest.raises(WseError) as caught:
        ann.room("doc").presence.set("here")
    assert caught.value.code == ErrorCode.CLIENT_NOT_READY


async def test_a_client_that_the_server_adds_or_removes_knows(run):
    server = make_rooms()
    place = await run(server)
    ann = place.client(identity="ann")
    await soon(ann.connect())
    bob = await enter(place, "bob")
    bob.room("doc").presence.set("here")
    await until(lambda: states(bob) == {"bob": ["here"]})
    (conn,) = server.clients["ann"].conns.values()
    server.room("doc").add(conn)
    await until(lambda: states(ann) == {"bob": ["here"]})
    ann.room("doc").presence.set("here as well")  # without `join`
    await until(lambda: states(bob) == {"bob": ["here"], "ann": ["here as well"]})
    server.room("doc").discard(conn)
    await until(lambda: states(ann) == {})
    await until(lambda: states(bob) == {"bob": ["here"]})
    with pytest.raises(WseError) as caught:
        ann.room("doc").presence.set("back")
    assert caught.value.code == ErrorCode.CLIENT_NOT_READY


async def test_clients_of_different_protocols_see_the_same(run):
    server = make_rooms(protocol=[*make_server().protocols, WseMsgpack()])
    place = await run(server)
    ann, bob = await enter(place, "ann", protocol=WseMsgpack()), await enter(place, "bob")
    ann.room("doc").presence.set({"at": [1, 2.5]})
    bob.room("doc").presence.set({"at": "ü"})
    await until(lambda: states(ann) == states(bob) == {"ann": [{"at": [1, 2.5]}], "bob": [{"at": "ü"}]})


# What does not depend on the transport.


async def test_a_state_that_is_none_or_too_large_is_refused_at_the_client():
    server = make_rooms(limits=Limits(state_size=100))
    async with connect(server, "ann") as ann:
        presence = ann.room("doc").presence
        await ann.room("doc").join()
        with pytest.raises(WseError) as caught:
            presence.set("x" * 100)
        assert caught.value.details == {"limit": "state_size", "allowed": 100, "size": 102}
        for state, ttl, error in [(None, None, TypeError), (object(), None, TypeError), (1, 0, ValueError)]:
            with pytest.raises(error):
                presence.set(state, ttl)
        await ann.room("plain").join()
        with pytest.raises(WseError) as caught:
            ann.room("plain").presence.set(1)
        assert caught.value.code == ErrorCode.UNSUPPORTED
    await server.close()


async def test_before_it_is_connected_a_client_is_in_no_room():
    server = make_rooms()
    async with connect(server, "ann") as ann:
        room = ann.room("doc")
        assert room is ann.room("doc")
        await ann.close()
        with pytest.raises(WseError) as caught:
            await room.join()
        assert caught.value.code == ErrorCode.CLIENT_NOT_READY
        await room.leave()
        assert room.presence.members == {}
        await ann.connect()
        await room.join()
        room.presence.set("again")
        await until(lambda: states(ann) == {"ann": ["again"]})
        await ann.close()
        await ann.connect()  # the application has left it by `close`
        assert not server.room("doc").presence.members
        with pytest.raises(WseError):
            room.presence.set("not there")
    await server.close()


async def test_a_state_that_is_set_while_the_client_enters_is_shown_when_it_is_in():
    server = make_rooms()
    verdict = asyncio.Event()

    @server.room_guard
    async def guard(conn, name):
        await verdict.wait()

    async with connect(server, "ann") as ann:
        entering = asyncio.ensure_future(ann.room("doc").join())
        await asyncio.sleep(0)
        ann.room("doc").presence.set("soon")
        verdict.set()
        await soon(entering)
        await until(lambda: states(ann) == {"ann": ["soon"]})
    await server.close()


async def test_a_client_that_leaves_while_it_enters_is_out_in_the_end():
    server = make_rooms()
    verdict = asyncio.Event()

    @server.room_guard
    async def guard(conn, name):
        await verdict.wait()

    async with connect(server, "ann") as ann:
        room = ann.room("doc")
        entering, leaving = asyncio.ensure_future(room.join()), asyncio.ensure_future(room.leave())
        again = asyncio.ensure_future(ann.room("other").join())
        await asyncio.sleep(0)
        verdict.set()
        await soon(asyncio.gather(entering, leaving, again))
        assert not server.room("doc")._rooms.local("doc")
        with pytest.raises(WseError):
            room.presence.set("there")
    await server.close()


async def test_a_client_that_no_longer_waits_for_the_answer_can_leave():
    server = make_rooms()
    verdict, has_decided = asyncio.Event(), asyncio.Event()

    @server.room_guard
    async def guard(conn, name):
        await verdict.wait()
        has_decided.set()

    async with connect(server, "ann") as ann:
        room = ann.room("plain")
        with pytest.raises(WseError) as caught:
            await soon(room.join(timeout=0.01))
        assert caught.value.code == ErrorCode.RP_TIMEOUT
        await soon(room.leave())
        verdict.set()
        await soon(has_decided.wait())
        await soon(ann.room("other").join())  # what was decided before has been done
        assert not server.room("plain")._rooms.local("plain")
    await server.close()


async def test_presence_is_refused_to_a_room_whose_name_no_client_can_be_told():
    server = make_rooms()
    with pytest.raises(TypeError, match="a string or an integer"):
        server.room(("doc", 7), presence=True)
    assert server.room(("doc", 7)).name == ("doc", 7)
    assert server.room(7, presence=True).presence.members == {}
    await server.close()


async def test_true_is_another_state_than_1():
    server = make_rooms()
    async with connect(server, "ann") as ann:
        room = ann.room("doc")
        await soon(room.join())
        for state in (1, True, 1.0):
            changed = asyncio.ensure_future(room.presence.when.changed.wait())
            await asyncio.sleep(0)
            room.presence.set({"typing": state})
            await soon(changed)
            (shown,) = states(ann)["ann"]
            assert type(shown["typing"]) is type(state)
    await server.close()


async def test_a_state_is_not_shown_again_when_its_time_is_over():
    server = make_rooms()
    async with connect(server, "ann", **AGAIN) as ann:
        await ann.room("doc").join()
        ann.room("doc").presence.set("short", ttl=0.05)
        device = ann.room("doc").presence.device
        await until(lambda: states(ann) == {"ann": ["short"]})
        await until(lambda: states(ann) == {})
        lose(ann)
        await until(lambda: ann.room("doc").presence.device not in ("", device))
        await ann.room("doc").join()
        assert states(ann) == {}
    await server.close()


async def test_another_user_does_not_show_what_the_one_before_has_shown():
    server = make_rooms()
    async with connect(server, "ann") as client:
        await client.room("doc").join()
        client.room("doc").presence.set("ann's")
        await until(lambda: states(client) == {"ann": ["ann's"]})
        await client.jump(client.url, "eve")
        await until(lambda: server.room("doc")._rooms.local("doc"))
        await client.room("doc").join()
        assert states(client) == {}
    await server.close()


async def test_a_server_that_knows_no_rooms_is_found_out(far):
    client = far.client(identity="ann")
    connecting = asyncio.ensure_future(client.connect())
    peer = await soon(far.peer())
    await peer.hear()
    await peer.say("~wse:welcome", None)
    await soon(connecting)
    with pytest.raises(WseError) as caught:
        await client.room("doc").join()
    assert caught.value.code == ErrorCode.UNSUPPORTED
    await client.close()


@pytest.mark.parametrize(
    "payload",
    [None, 7, [], ["doc"], ["doc", 7], ["doc", [1]], ["doc", [["ann", "d"]]], ["doc", [["ann", [], 1]]], [[], []]],
)
async def test_nonsense_of_a_server_breaks_the_protocol(far, payload):
    client = far.client(identity="ann")
    errors = []
    client.when.error(errors.append)
    connecting = asyncio.ensure_future(client.connect())
    peer = await soon(far.peer())
    await peer.hear()
    await peer.say("~wse:ext", {"rooms": {"device": "me", "state": 4096}})
    await peer.say("~wse:welcome", None)
    await soon(connecting)
    await peer.say("~wse:presence", ["doc", [["ann", "d", 1]], True])
    await until(lambda: states(client) == {"ann": [1]})
    await peer.say("~wse:presence", payload)
    assert await peer.closed() == (1000, "wse.protocol-error")
    assert [error.code for error in errors] == [ErrorCode.PROTOCOL_VIOLATION]
    await client.close()


async def test_a_guard_may_take_dependencies_and_must_take_the_connection_and_the_name():
    server = WseServer(lambda auth: auth.accept(auth.identity))
    with pytest.raises(TypeError):

        @server.room_guard
        def guard(conn):
            """Takes too little."""
