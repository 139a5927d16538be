"""WIRE.md sections 2 and 4: plain messages."""

import asyncio

import pytest

from support.net import TIMEOUT, ClientLog, Log, RawSocket, ServerLog, Unpackable, hi, make_server, soon
from wse import ErrorCode, Limits, ReadyState, WseError, WseJSON, WseMsgpack


async def test_a_message_arrives_at_the_listeners_of_its_type(run):
    server = make_server()
    log = Log()
    server.channel.on("chat", lambda conn, payload: log.add("chat", conn.cid, payload))
    server.channel.on("chat", lambda conn, payload: log.add("again", conn.cid, payload))
    server.channel.on("other", log.adder("other"))
    place = await run(server)
    client = await place.connect()
    client.send("chat", {"text": "naïve ☕ 🐍"})
    await log.until("again")
    assert log.entries == [
        ("chat", "ann", {"text": "naïve ☕ 🐍"}),
        ("again", "ann", {"text": "naïve ☕ 🐍"}),
    ]


async def test_a_message_without_listener_is_ignored_aloud(run):
    server = make_server()
    log = ServerLog(server)
    place = await run(server)
    client = await place.connect()
    client.send("chat", [1])
    assert await log.until("ignored") == ("ignored", "ann", "chat", [1])
    heard = ClientLog(client)
    server.broadcast("news", [2])
    assert await heard.until("ignored") == ("ignored", "news", [2], None)


async def test_the_server_writes_three_elements(run):
    server = make_server()
    place = await run(server)
    peer = await place.peer()
    await peer.login()
    server.broadcast("bare")
    server.send("ann", "full", {"a": [1, None]})
    assert await peer.receive() == '["bare",null,null]'
    assert await peer.receive() == '["full",{"a":[1,null]},null]'


@pytest.mark.parametrize(
    ("message", "payload"),
    [
        ('["chat"]', None),
        ('["chat",1]', 1),
        ('["chat",1,null]', 1),
        ('["chat",1,0]', 1),
        ('["chat",1,""]', 1),
        ('["chat",1,null,"more","still more"]', 1),
        (b'["chat",1,null]', 1),
        (' [ "chat" , 1 ] ', 1),
    ],
)
async def test_one_to_three_elements_and_more_are_a_plain_message(run, message, payload):
    server = make_server()
    log = Log()
    server.channel.on("chat", lambda conn, payload: log.add("chat", payload))
    place = await run(server)
    peer = await place.peer()
    await peer.login()
    await peer.send(message)
    assert await log.until("chat") == ("chat", payload)


async def test_messages_go_to_all_or_to_a_user_or_to_a_device(run):
    server = make_server(conns_per_user=2)
    log = ServerLog(server)
    place = await run(server)
    peers = {}
    for cid, n in (("ann", 1), ("ann", 2), ("ben", 1)):
        peers[cid, n] = peer = await place.peer()
        await peer.login(cid, {"n": n})
    server.broadcast("all", 1)
    server.send("ann", "user", 2)
    server.clients["ann"].send("identity", 3)
    device = list(server.clients["ann"].conns.values())[1]
    device.send("device", 4)
    server.send("nobody", "user", 5)
    server.broadcast("end", 6)
    heard = {key: [] for key in peers}
    for key, peer in peers.items():
        while (message := await peer.hear())[0] != "end":
            heard[key].append(message[:2])
    to_ann = [["all", 1], ["user", 2], ["identity", 3]]
    assert heard == {("ann", 1): to_ann, ("ann", 2): [*to_ann, ["device", 4]], ("ben", 1): [["all", 1]]}
    assert log.all("error") == []


async def test_strangers_hear_no_broadcast(run):
    handshakes = asyncio.Queue()
    server = make_server(handshakes.put_nowait)
    place = await run(server)
    peer = await place.peer()
    await peer.send(hi())
    auth = await soon(handshakes.get())
    server.broadcast("early")
    auth.accept("ann")
    server.broadcast("late")
    assert [(await peer.hear())[0], (await peer.hear())[0]] == ["~wse:welcome", "late"]


async def test_a_burst_keeps_its_order_in_both_directions(run):
    server = make_server()
    numbers = []
    log = Log()

    @server.channel.on("n")
    def on_n(conn, n):
        numbers.append(n)
        conn.send("back", n)
        if n == 999:
            log.add("end")

    place = await run(server)
    client = await place.connect()
    back = []

    @client.channel.on("back")
    def on_back(n):
        back.append(n)
        if n == 999:
            log.add("back")

    for n in range(1000):
        client.send("n", n)
    await log.until("end")
    await log.until("back")
    assert numbers == list(range(1000))
    assert back == list(range(1000))


async def test_sends_broadcasts_and_answers_keep_their_common_order(run):
    server = make_server()

    @server.register("mix")
    def mix(conn, n):
        conn.send("sent", n)
        server.broadcast("broadcast", n)
        server.send(conn.cid, "user", n)
        return n

    place = await run(server)
    peer = await place.peer()
    await peer.login()
    for n in range(1, 51):
        await peer.say("mix", n, n)
    expected = [[kind, n] for n in range(1, 51) for kind in ("sent", "broadcast", "user", "~wse:response")]
    assert [(await peer.hear())[:2] for _ in expected] == expected


async def test_large_and_small_messages_keep_their_order(run):
    server = make_server(limits=Limits(message_size=1 << 20))
    log = Log()
    server.channel.on("m", lambda conn, payload: log.add("m", len(payload)))
    place = await run(server)
    client = await place.connect()
    sizes = [1, 100_000, 2, 3000, 4, 70_000, 5]
    for size in sizes:
        client.send("m", "x" * size)
    await log.until("m", 5)
    assert log.all("m") == [(size,) for size in sizes]


async def test_async_listeners_start_in_the_order_of_arrival_and_run_concurrently(run):
    server = make_server()
    log = Log()
    gate = asyncio.Event()

    @server.channel.on("n")
    async def on_n(conn, n):
        log.add("start", n)
        await gate.wait()
        log.add("end", n)

    place = await run(server)
    client = await place.connect()
    for n in range(5):
        client.send("n", n)
    await log.until("start", 4)
    assert log.entries == [("start", n) for n in range(5)]
    gate.set()
    await log.until("end", 4)


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_listener_that_raises_is_reported_and_the_connection_lives_on(run, is_async):
    server = make_server()
    log = ServerLog(server)

    def listener(conn, payload):
        raise LookupError(payload)

    async def async_listener(conn, payload):
        await asyncio.sleep(0)
        raise LookupError(payload)

    server.channel.on("boom", async_listener if is_async else listener)
    server.register("echo", lambda conn, payload: payload)
    place = await run(server)
    client = await place.connect()
    client.send("boom", "oh")
    _, error, conn = await log.until("error")
    assert error.code == ErrorCode.MSG_PROCESSING_ERROR
    assert isinstance(error.__cause__, LookupError)
    assert conn.cid == "ann"
    assert await client.call("echo", 1) == 1


async def test_a_payload_that_cannot_be_encoded_is_the_sender_s_error_and_sends_nothing(run):
    server = make_server()
    log = ServerLog(server)
    place = await run(server)
    client = await place.connect()
    conn = await log.conn("ann")
    heard = ClientLog(client)
    for send in (
        lambda: client.send("chat", Unpackable()),
        lambda: conn.send("chat", Unpackable()),
        lambda: server.broadcast("chat", Unpackable()),
        lambda: server.send("ann", "chat", Unpackable()),
    ):
        with pytest.raises(WseError) as caught:
            send()
        assert caught.value.code == ErrorCode.MSG_PROCESSING_ERROR
    client.send("end")
    conn.send("end")
    await log.until("ignored")
    await heard.until("ignored")
    assert log.all("ignored") == [("ann", "end", None)]
    assert heard.all("ignored") == [("end", None, None)]


async def test_sending_to_a_dropped_connection_does_nothing(run):
    server = make_server()
    log = ServerLog(server)
    place = await run(server)
    peer = await place.peer()
    await peer.login()
    conn = await log.conn("ann")
    conn.drop("bye")
    conn.send("late")
    assert conn.ready_state in (ReadyState.CLOSING, ReadyState.CLOSED)
    with pytest.raises(ConnectionError):
        await peer.receive()
    assert await peer.closed() == (1000, "bye")
    assert log.all("error") == []


async def test_each_connection_is_spoken_to_in_its_own_protocol(run, tiny):
    server = make_server(protocol=[WseJSON(), WseMsgpack(), tiny])
    server.register("double", lambda conn, payload: payload * 2)
    place = await run(server)
    protocols = {"json": WseJSON(), "msgpack": WseMsgpack(), "tiny": tiny}
    clients = {name: await place.connect(name, protocol=protocol) for name, protocol in protocols.items()}
    logs = {name: ClientLog(client) for name, client in clients.items()}
    server.broadcast("news", {"n": [1, 2.5, "é"]})
    for name, client in clients.items():
        assert await logs[name].until("ignored") == ("ignored", "news", {"n": [1, 2.5, "é"]}, None)
        assert await client.call("double", 21) == 42
        with pytest.raises(WseError) as caught:
            await client.call("missing")
        assert caught.value.code == ErrorCode.RP_NOT_REGISTERED


async def test_a_custom_protocol_may_use_integers_for_every_type(run, tiny):
    server = make_server(protocol=tiny)
    server.use_challenge(lambda auth: auth.quest("2+2"))
    log = Log()
    server.channel.on(100, lambda conn, payload: log.add("message", payload))
    server.register(0, lambda conn, payload: ["zero", payload])
    place = await run(server)
    client = place.client(identity="ann", protocol=tiny)
    client.challenge(lambda quest: 4)
    assert await soon(client.connect()) == {"hello": "ann"}
    client.send(100, "hello")
    assert await log.until("message") == ("message", "hello")
    assert await client.call(0, 1) == ["zero", 1]
    with pytest.raises(WseError) as caught:
        client.send(3)
    assert caught.value.code == ErrorCode.PROTOCOL_VIOLATION


async def test_text_in_a_binary_protocol_closes_the_connection(run):
    server = make_server(protocol=WseMsgpack())
    ServerLog(server)
    place = await run(server)
    peer = await place.peer(WseMsgpack.name)
    await peer.send(hi())
    assert await peer.closed() == (1000, "wse.protocol-error")


async def test_a_producer_that_drains_waits_for_a_receiver_that_reads(run):
    server = make_server()
    log = ServerLog(server)
    place = await run(server)
    client = await place.connect()
    conn = await log.conn("ann")
    got = Log()
    client.channel.on("n", got.adder("n"))
    for n in range(200):
        conn.send("n", [n, "x" * 10_000])
        await soon(conn.drain())
    await got.until("n")
    client_done = asyncio.ensure_future(client.call("none"))
    with pytest.raises(WseError):
        await soon(client_done)
    assert [entry[0][0] for entry in got.all("n")] == list(range(200))
    conn.drop()
    await soon(conn.drain())


@pytest.mark.parametrize("end", ["vanishes", "is dropped"])
async def test_a_producer_is_held_back_until_a_receiver_that_does_not_read_is_gone(run, monkeypatch, end):
    for transport in ("awaited", "picows.link"):
        monkeypatch.setattr(f"wse.transports.{transport}.CLOSE_TIMEOUT", 0.02)
    server = make_server()
    log = ServerLog(server)
    place = await run(server)
    if not place.has_frames:
        pytest.skip("memory holds back nobody")

    async def produce(conn):
        while conn.ready_state is ReadyState.OPEN:
            conn.send("n", "x" * 100_000)
            await conn.drain()

    async with RawSocket.user(place.url) as socket:
        conn = await log.conn("ann")
        producer = asyncio.ensure_future(produce(conn))
        async with asyncio.timeout(TIMEOUT):
            while conn._session._writable:
                await asyncio.sleep(0)
        assert not producer.done()
        if end == "vanishes":
            socket.writer.transport.abort()
        else:
            conn.drop("too slow", 4001)
        await log.until("disconnected")
        await soon(producer)
        if end == "vanishes" or place.lets_go:
            await place.empty()
