"""Faults that chaos has found, each made on purpose, on both engines."""

from __future__ import annotations

import asyncio

import pytest
import redis.asyncio

from chaos.lab import lab_of, until, until_register
from support.engines import Nats, Valkey
from wse import ClientStatus, CloseReason, ErrorCode, Publisher, WseError

pytestmark = pytest.mark.slow

ENGINES = {"nats": Nats, "valkey": Valkey}


@pytest.fixture(params=ENGINES)
async def lab(request, tmp_path):
    async with lab_of(ENGINES[request.param](tmp_path)) as lab:
        yield lab


@pytest.fixture
async def valkey_lab(tmp_path):
    async with lab_of(Valkey(tmp_path)) as lab:
        yield lab


async def test_a_node_whose_reaper_has_closed_before_it_is_back_fires_joined_anew(lab):
    one, two = await lab.node("one"), await lab.node("two")
    ann = await lab.client(one)
    one.cut_off()
    await until(lambda: ("left", "ann") in two.events)
    three = await lab.node("three")
    await two.server.close()
    one.heal()
    await until(lambda: lab.fired() == ["joined", "left", "joined"])
    assert await three.server.online() == 1
    await ann.close()
    await until(lambda: lab.fired() == ["joined", "left", "joined", "left"])


async def test_a_displaced_device_goes_although_the_connection_broke_before_its_node_was_told(lab):
    one, two = await lab.node("one"), await lab.node("two")
    old = await lab.client(two)
    broker = one.cluster.broker
    flush = broker.flush

    async def break_off():
        broker.flush = flush
        one.cut_off()
        await until(lambda: not broker.connected)
        await flush()

    broker.flush = break_off
    new = await lab.client(one)
    one.heal()
    await until(lambda: [old.status, new.status].count(ClientStatus.READY) == 1)
    register = await lab.observer()
    await until_register(lambda: _has(register, 1))


async def _has(register, count, user="sann"):
    return len(await register.devices(user)) == count


async def test_a_join_that_arrives_after_the_client_has_left_on_a_new_connection_leaves_no_ghost(lab):
    one, two = await lab.node("one"), await lab.node("two")
    register = await lab.observer()
    one.proxy.stall(to_client=False)
    ann = await lab.client(one)  # welcomed without the register
    await ann.close()
    await _move(one.cluster.broker, one.proxy.port, (await lab.proxy()).port)
    await until(lambda: one.cluster.healthy and not one.presence._registrations)
    one.heal()  # what was under way arrives
    await asyncio.sleep(2)  # and might make a ghost, which cannot be awaited
    await until_register(lambda: _has(register, 0), within=35)
    assert await two.server.online() == 0


async def _move(broker, old, new):
    """Let the broker reach the engine by another proxy the next time."""
    if hasattr(broker, "_servers"):
        broker._servers = [server.replace(str(old), str(new)) for server in broker._servers]
    else:
        broker._pool.connection_kwargs["port"] = new


async def test_a_flush_of_a_publisher_fails_when_messages_were_lost(lab):
    one = await lab.node("one")
    ann, got = await lab.client(one), []
    ann.channel.on("m", got.append)
    proxy = await lab.proxy()
    async with Publisher(lab.url(proxy.port)) as publisher:
        publisher.send("ann", "m", 0)
        await publisher.flush()
        proxy.stall()
        for number in range(1, 101):
            publisher.send("ann", "m", number)
            await asyncio.sleep(0.04)
        proxy.accepts = False
        proxy.cut()
        await asyncio.sleep(0.5)
        proxy.accepts = True
        proxy.stall(False)
        await until(lambda: publisher._broker.connected)
        publisher.send("ann", "m", "last")
        with pytest.raises(WseError) as caught:
            await publisher.flush()
        assert caught.value.code == ErrorCode.BROKER_UNAVAILABLE
        await publisher.flush()
        await until(lambda: got[-1] == "last")


async def test_a_lease_is_renewed_while_very_many_users_join_a_slow_engine(lab):
    one, two = await lab.node("one"), await lab.node("two")
    await lab.client(one, "early")
    for node in one, two:
        node.proxy.delay = 0.05
    await asyncio.gather(*[lab.client(one, f"user{n}") for n in range(500)])
    assert all(node.cluster.healthy for node in (one, two))
    assert "left" not in [event for event, _ in lab.events]


async def test_an_engine_that_refuses_writes_is_reported(valkey_lab):
    one = await valkey_lab.node("one")
    async with redis.asyncio.Redis(port=valkey_lab.engine.port) as client:
        await client.config_set("min-replicas-to-write", 1)  # as at a primary that has lost its replicas
        await until(lambda: "wse.server.broker-unavailable" in one.codes())
        await until(lambda: not one.server.ready)
        await valkey_lab.client(one, "bob")
        assert valkey_lab.fired("bob") == []
        await client.config_set("min-replicas-to-write", 0)
        await until(lambda: valkey_lab.fired("bob") == ["joined"])


async def test_devices_that_moved_to_another_node_while_the_engine_hung_leave_no_ghosts(lab):
    count = 100
    one, two = await lab.node("one"), await lab.node("two")
    old = [await lab.client(one, f"user{n}") for n in range(count)]
    lab.engine.freeze()
    await asyncio.gather(*[client.close() for client in old])
    await asyncio.sleep(5)  # longer than an engine has to answer
    new = await asyncio.gather(*[lab.client(two, f"user{n}") for n in range(count)])
    lab.engine.thaw()
    await one.healthy()
    await two.healthy()
    register = await lab.observer()

    async def settled():
        devices = [await register.devices(f"suser{n}") for n in range(count)]
        return all(len(of_user) == 1 and of_user[0].node == two.cluster.node for of_user in devices)

    await until_register(settled)
    await asyncio.gather(*[client.close() for client in new])
    await until(lambda: all(lab.fired(f"user{n}")[-1] == "left" for n in range(count)))
    await until_register(lambda: _nobody_is_online(two))
    assert all(lab.fired(f"user{n}").count("joined") == lab.fired(f"user{n}").count("left") for n in range(count))


async def _nobody_is_online(node):
    return await node.server.online() == 0


async def test_devices_of_a_node_that_is_cut_off_count_until_its_lease_ends(lab):
    """What cannot be avoided, see `docs/explanation/guarantees.md`: nobody knows yet that the node is gone."""
    one, two, three = [await lab.node(name, conns_per_user=2) for name in ("one", "two", "three")]
    laptop = await lab.client(one)
    await lab.client(two)
    two.cut_off()
    closed = []
    laptop.when.closed(lambda code, reason: closed.append(str(reason)))
    await lab.client(three)
    await until(lambda: closed == [CloseReason.CLIENTS_CONCURRENCY])
    again = await lab.client(one)
    await until_register(lambda: _devices_are(three, 2))
    assert again.status == ClientStatus.READY


async def test_devices_of_a_node_whose_lease_has_ended_do_not_push_out_others(lab):
    one, two, three = [await lab.node(name, conns_per_user=2) for name in ("one", "two", "three")]
    laptop = await lab.client(one)
    await lab.client(two)
    two.cut_off()
    await until_register(lambda: _devices_are(three, 1))
    await lab.client(three)
    assert laptop.status == ClientStatus.READY
    assert lab.fired() == ["joined"]


async def _devices_are(node, count):
    return len(await node.server.devices("ann")) == count
