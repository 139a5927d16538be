"""Engines as people run them: Sentinel, failover, ACLs, TLS, full engines, clusters of NATS, nkeys, leaf nodes.

docs/reference/brokers.md has a table of these.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import ExitStack

import pytest
import redis.asyncio as redis_py

from support.brokers import Node, unavailable
from support.cluster import cluster_of, until
from support.engines import Sentinel, Valkey
from wse import ClusterSettings, ErrorCode
from wse.brokers import from_url
from wse.brokers.redis.sentinel import split

SETTINGS = ClusterSettings(lease_ttl=5.0, renew_interval=0.5, canary_interval=0.5)
"""Close to the defaults: a failover takes a few seconds."""

FAILOVER = 30.0
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
    """Users on two nodes keep their devices through a failover: messages cross again, and nobody joins or leaves."""
    async with cluster_of(brokers, SETTINGS, conns_per_user=2) as nodes:
        ann, bob = await nodes.device(0, "ann"), await nodes.device(1, "bob")
        nodes[0].send("bob", "before")
        await bob.until("before")
        fail()
        await until(lambda: nodes.codes() >= {str(ErrorCode.BROKER_UNAVAILABLE)})
        async with asyncio.timeout(FAILOVER):
            while not all(node.cluster.healthy for node in nodes):
                await asyncio.sleep(0.05)
        late = await nodes.device(1, "ann")
        nodes[0].send("bob", "after")
        nodes[1].send("ann", "after")
        for device in (ann, late, bob):
            await device.until("after")
        assert await nodes[0].online() == 2
        assert {device.node for device in await nodes[1].devices("ann")} == {node.cluster.node for node in nodes}
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


@pytest.mark.slow
async def test_a_failover_by_sentinels_loses_nobody(watched):
    primary, replica, sentinels = watched
    await survives_a_failover([from_url(url_of(sentinels)) for _ in range(2)], primary.stop)
    assert str(replica.port) in sentinels[0].ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")


@pytest.mark.slow
async def test_a_failover_that_is_ordered_loses_nobody(watched):
    _, _, sentinels = watched
    await survives_a_failover(
        [from_url(url_of(sentinels)) for _ in range(2)], lambda: sentinels[0].ask("SENTINEL", "FAILOVER", "main")
    )


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
