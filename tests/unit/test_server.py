"""A server's arguments, properties and registrations; what needs a connection is in the contract suite."""

import asyncio
import contextlib
import ssl

import pytest

from support.net import accept_all, in_memory, make_server, soon
from wse import ErrorCode, Limits, WseError, WseJSON, WseMsgpack, WseServer


def test_the_documented_defaults():
    server = WseServer()
    assert server.conns_per_user == 1
    assert server.timeout == 20.0
    assert server.port is None
    assert server.protocol.name == "wse-default-json"
    assert server.clients == {}
    assert server._acceptor.limits == Limits()


def test_arguments_are_as_given():
    protocol, limits = WseMsgpack(), Limits(message_size=10)
    server = WseServer(conns_per_user=3, timeout=1.5, port=4200, protocol=protocol, limits=limits)
    assert (server.conns_per_user, server.timeout, server.port) == (3, 1.5, 4200)
    assert server.protocol is protocol
    assert server._acceptor.limits is limits


def test_several_protocols_stay_in_their_order():
    json, msgpack = WseJSON(), WseMsgpack()
    assert WseServer(protocol=[msgpack, json]).protocol == (msgpack, json)
    assert WseServer(protocol=[json]).protocol is json
    assert WseServer(protocol=iter([json, msgpack])).protocol == (json, msgpack)


@pytest.mark.parametrize(
    "options",
    [
        {"conns_per_user": 0},
        {"conns_per_user": -1},
        {"timeout": -1},
        {"auth_timeout": -0.1},
        {"protocol": []},
        {"protocol": [WseJSON(), WseJSON()]},
    ],
)
def test_arguments_out_of_their_range_are_rejected_at_once(options):
    with pytest.raises(ValueError, match=r"\w"):
        WseServer(**options)


@pytest.mark.parametrize("protocol", [WseJSON, "wse-default-json", [WseJSON(), "json"], 7])
def test_what_is_no_protocol_is_rejected_at_once(protocol):
    with pytest.raises(TypeError):
        WseServer(protocol=protocol)


@pytest.mark.parametrize(
    ("options", "url"),
    [
        ({"port": 4200}, "ws://127.0.0.1:4200"),
        ({"port": 4200, "path": "/ws"}, "ws://127.0.0.1:4200/ws"),
        ({"port": 4200, "host": None}, "ws://127.0.0.1:4200"),
        ({"port": 4200, "host": ""}, "ws://127.0.0.1:4200"),
        ({"port": 4200, "host": "0.0.0.0"}, "ws://127.0.0.1:4200"),
        ({"port": 4200, "host": "::"}, "ws://[::1]:4200"),
        ({"port": 4200, "host": "::1"}, "ws://[::1]:4200"),
        ({"port": 4200, "host": "chat.example"}, "ws://chat.example:4200"),
        ({"port": 4200, "ssl": ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)}, "wss://127.0.0.1:4200"),
    ],
)
def test_url_is_where_clients_of_this_machine_reach_it(options, url):
    assert WseServer(**options).url == url


@pytest.mark.parametrize("offer", [["wse-msgpack", "wse-default-json"], ["unknown", "wse-msgpack"]])
def test_select_takes_the_first_offer_that_it_has(offer):
    server = WseServer(protocol=[WseJSON(), WseMsgpack()])
    assert server._acceptor.select(offer).name == "wse-msgpack"


@pytest.mark.parametrize("offer", [[], ["unknown"], [""]])
def test_select_finds_nothing_where_there_is_nothing(offer):
    assert WseServer()._acceptor.select(offer) is None


def test_handlers_that_cannot_take_their_arguments_are_rejected_at_once():
    server = WseServer()
    for register in (
        lambda: WseServer(lambda: None),
        lambda: server.identify(lambda auth, more: None),
        lambda: server.use_challenge(lambda: None),
        lambda: server.channel.on("chat", lambda payload: None),
        lambda: server.register("add", lambda payload: None),
        lambda: server.when.joined(lambda identity: None),
        lambda: server.when.error(lambda err: None),
        lambda: server.register("add", "no function"),
    ):
        with pytest.raises(TypeError):
            register()


def test_decorators_return_the_function():
    server = WseServer()

    def auth_handler(auth): ...

    def handler(conn, payload): ...

    assert server.identify(auth_handler) is auth_handler
    assert server.use_challenge(auth_handler) is auth_handler
    assert server.register("a")(handler) is handler
    assert server.register("b", handler) is handler
    assert server.channel.on("a")(handler) is handler


def test_a_procedure_registers_once_until_it_is_taken_away():
    server = WseServer()
    server.register("add", lambda conn, payload: 1)
    with pytest.raises(WseError) as caught:
        server.register("add", lambda conn, payload: 2)
    assert (caught.value.code, caught.value.details) == (ErrorCode.RP_ALREADY_REGISTERED, {"rp": "add"})
    server.unregister("add")
    with pytest.raises(WseError) as caught:
        server.unregister("add")
    assert (caught.value.code, caught.value.details) == (ErrorCode.RP_NOT_REGISTERED, {"rp": "add"})


def test_wse_s_own_types_cannot_be_used():
    server = WseServer()
    for use in (
        lambda: server.broadcast("~wse:welcome"),
        lambda: server.broadcast("~wse:custom"),
        lambda: server.register("~wse:call", lambda conn, payload: None),
        lambda: server.channel.once("~wse:hi", lambda conn, payload: None),
        lambda: server.broadcast(""),
        lambda: server.broadcast(None),
        lambda: server.broadcast(["unhashable"]),
    ):
        with pytest.raises(WseError) as caught:
            use()
        assert caught.value.code == ErrorCode.PROTOCOL_VIOLATION


def test_clients_are_read_only():
    server = WseServer()
    with pytest.raises(TypeError):
        server.clients["ann"] = None


async def test_conns_are_read_only_and_have_readable_names():
    server = make_server()
    async with in_memory(server) as place:
        await place.connect("ann")
        identity = server.clients["ann"]
        (conn,) = identity.conns.values()
        with pytest.raises(TypeError):
            identity.conns["x"] = conn
        assert repr(identity) == "<WseIdentity ann with 1 connections>"
        assert repr(conn) == f"<WseConnection ann#{conn.conn_id} OPEN>"


async def test_closing_a_server_that_was_never_started_does_nothing():
    await soon(WseServer(accept_all, port=0).close())
    await soon(WseServer().close())


async def test_without_an_identify_handler_no_connection_is_taken():
    async with in_memory(WseServer()) as place:
        with pytest.raises(WseError) as caught:
            await place.peer()
        assert caught.value.code == ErrorCode.IDENTIFY_HANDLER_MISSING


async def test_errors_that_nobody_listens_to_are_logged(caplog):
    server = make_server()

    @server.register("fail")
    def fail(conn, payload):
        raise LookupError("no such thing")

    async with in_memory(server) as place:
        client = await place.connect()
        with pytest.raises(WseError):
            await client.call("fail")
    (record,) = [record for record in caplog.records if record.name == "wse"]
    assert "wse.server.rp.failed" in record.message
    assert isinstance(record.exc_info[1], LookupError)


async def test_a_server_listener_that_raises_is_reported_with_its_connection():
    server = make_server()
    errors = []
    server.when.error(lambda err, conn: errors.append((err, conn)))

    @server.when.connected
    def connected(conn):
        raise LookupError("mine")

    @server.when.joined
    async def joined(identity, meta):
        raise LookupError("mine, too")

    async with in_memory(server) as place:
        await place.connect()
        (conn,) = server.clients["ann"].conns.values()
    assert sorted((err.details["signal"], who) for err, who in errors) == [("connected", conn), ("joined", None)]
    assert all(isinstance(err.__cause__, LookupError) for err, _ in errors)


def test_a_protocol_without_a_name_is_rejected_at_once():
    class Nameless(WseJSON):
        name = ""

    with pytest.raises(TypeError, match="name"):
        WseServer(protocol=Nameless())


def test_a_server_that_was_left_open_in_one_event_loop_serves_in_the_next():
    server = make_server()

    async def once():
        async def receive():
            return {"type": "lifespan.startup"}

        sent = []

        async def send(message):
            sent.append(message["type"])
            raise ConnectionError

        with contextlib.suppress(ConnectionError):
            await server.asgi({"type": "lifespan"}, receive, send)
        assert sent == ["lifespan.startup.complete"]
        return server._scheduler.create_future().get_loop() is asyncio.get_running_loop()

    assert asyncio.run(once())
    assert asyncio.run(once())


async def test_a_server_with_a_port_is_ready_from_start_to_close():
    server = make_server()
    assert not server.ready
    for _ in range(2):
        await server.start()
        assert server.ready
        await server.close()
        assert not server.ready


async def test_a_server_that_does_not_get_its_port_is_not_ready():
    async with make_server() as first:
        second = make_server(port=first.port)
        with pytest.raises(OSError, match="in use"):
            await second.start()
        assert not second.ready


async def test_a_server_is_not_ready_while_it_closes():
    server = make_server()
    seen = []
    server.when.left(lambda *_: seen.append(server.ready))
    async with in_memory(server) as place:
        await server._lifecycle.attach()
        await place.connect()
        assert server.ready
        await server.close()
    assert seen == [False]


async def test_inside_a_web_application_a_server_is_ready_until_it_is_closed():
    server = make_server(port=None)
    assert server.ready  # or no load balancer would send the first connection
    await server._lifecycle.attach()
    assert server.ready
    await server.close()
    assert not server.ready
    await server._lifecycle.attach()
    assert server.ready


async def test_a_reason_of_the_server_s_own_outlasts_its_start():
    server = make_server()
    server._acceptor.admission.unready.add("deaf")
    async with server:
        assert not server.ready
        server._acceptor.admission.unready.discard("deaf")
        assert server.ready


async def test_a_server_sends_to_rooms_and_calls_a_users_devices():
    server = make_server(conns_per_user=2)

    @server.channel.on("enter")
    def enter(conn, name):
        server.room(name).add(conn)
        server.room(name).send("entered", conn.cid, exclude=conn)

    async with in_memory(server) as place:
        ann, bob = await place.connect("ann"), await place.connect("bob")
        entered = asyncio.get_running_loop().create_future()
        ann.channel.on("entered", entered.set_result)
        bob.register("age", lambda payload: 42)
        for client in (ann, bob):
            client.send("enter", "tea")
        assert await soon(entered) == "bob"
        assert await soon(server.room("tea").members()) == {"ann", "bob"}
        assert await soon(server.call("bob", "age")) == 42
        assert await soon(server.call("bob", "age", mode="all")) == [42]
        assert [device.cid for device in await soon(server.devices("bob"))] == ["bob"]
        assert await soon(server.online()) == 2
        assert {cid async for cid in server.users()} == {"ann", "bob"}


async def test_a_server_that_has_started_joins_no_cluster_any_more():
    async with make_server() as server:
        with pytest.raises(RuntimeError, match="has already been started"):
            server.use_broker("memory:")
    server.use_broker("memory:")
    assert server.cluster is not None


ACTIONS = {
    "broadcast": lambda server: server.broadcast("news"),
    "send": lambda server: server.send("ann", "news"),
    "drop_client": lambda server: server.drop_client("ann"),
    "a room's send": lambda server: server.room("tea").send("news"),
    "call": lambda server: server.call("ann", "age"),
}


@pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)
@pytest.mark.parametrize("broker", [None, "memory:"])
async def test_before_its_start_and_after_its_end_a_server_sends_nothing_and_says_so(action, broker):
    server = WseServer(accept_all, broker=broker)

    async def act():
        result = action(server)
        if result is not None:
            await result

    for _ in range(2):
        with pytest.raises(WseError) as caught:
            await act()
        assert caught.value.code == ErrorCode.NOT_STARTED == "wse.server.not-started"
        async with server:
            with contextlib.suppress(WseError):
                await act()
                caught = None
            assert caught is None or action is ACTIONS["call"]  # nobody is there to be called


async def test_the_first_connection_starts_a_server_inside_a_web_application():
    server = make_server(port=None)
    async with in_memory(server) as place:
        await place.connect()
        server.broadcast("news")
    await server.close()


async def test_listeners_of_the_last_clients_may_still_send():
    server = make_server()
    sent = []

    @server.when.disconnected
    async def disconnected(conn, code, reason):
        await asyncio.sleep(0)
        server.broadcast("left", conn.cid)
        sent.append(conn.cid)

    async with in_memory(server) as place:
        await place.connect()
        await server.close(grace=5)
    assert sent == ["ann"]


@pytest.mark.parametrize(("allowed", "warned"), [(1, 1), (2, 0)])
async def test_a_second_device_where_one_is_allowed_is_warned_of_once(caplog, allowed, warned):
    async with in_memory(make_server(conns_per_user=allowed)) as place:
        for _ in range(4):
            await place.connect("ann")
    assert caplog.text.count("WseServer(conns_per_user=") == warned
