"""The presence of rooms in clusters, with real clients, on every broker."""

from __future__ import annotations

import pytest

from support.brokers import ENGINES, be_patient, run_cluster
from support.cluster import cluster_of, until
from support.resume import RETURNING, cut
from wse import WseError
from wse.testing import MemoryConnector


@pytest.fixture(params=["memory", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ENGINES)])
async def nodes(request, monkeypatch):
    """Two servers with a room that has presence."""
    be_patient(monkeypatch)
    async for cluster in run_cluster(request.param, request):
        async with cluster_of([cluster.broker(), cluster.broker()], conns_per_user=10) as nodes:
            nodes.cluster = cluster
            for server in nodes:
                server.room("doc", presence=True)

                @server.room_guard
                def guard(conn, name):
                    return name == "doc"

            yield nodes


def states(client):
    """What a client sees, without the names of devices."""
    return {user: sorted(devices.values()) for user, devices in client.room("doc").presence.members.items()}


async def enter(nodes, number, identity, **options):
    client = (await nodes.device(number, identity, **options)).client
    await client.room("doc").join()
    return client


async def test_members_of_all_nodes_see_the_states_of_all(nodes):
    ann = await enter(nodes, 0, "ann")
    ann.room("doc").presence.set({"cursor": [3, 9]})
    await until(lambda: states(ann) == {"ann": [{"cursor": [3, 9]}]})
    bob = await enter(nodes, 1, "bob")
    assert states(bob) == {"ann": [{"cursor": [3, 9]}]}  # the snapshot is there when `join` returns
    bob.room("doc").presence.set("here", ttl=60)
    await until(lambda: states(ann) == {"ann": [{"cursor": [3, 9]}], "bob": ["here"]})
    assert nodes[0].room("doc").presence.members == nodes[1].room("doc").presence.members
    for n in range(100):
        ann.room("doc").presence.set(n)
    bob.room("doc").presence.clear()
    await until(lambda: states(bob) == states(ann) == {"ann": [99]})
    await ann.room("doc").leave()
    await until(lambda: states(bob) == {})
    with pytest.raises(WseError):
        await bob.room("other").join()
    await until(lambda: not nodes[0].room("doc").presence.members)
    assert nodes.codes() == {"wse.server.rp.failed"}  # of the guard's refusal


async def test_states_expire_and_connections_end_on_all_nodes(nodes):
    ann, bob = await enter(nodes, 0, "ann"), await enter(nodes, 1, "bob")
    ann.room("doc").presence.set("typing", ttl=0.2)
    await until(lambda: states(bob) == {"ann": ["typing"]})
    await until(lambda: states(bob) == {})
    ann.room("doc").presence.set("here")
    await until(lambda: states(bob) == {"ann": ["here"]})
    await ann.close()
    await until(lambda: states(bob) == {})


async def test_the_states_of_a_node_that_dies_are_gone_with_its_lease(nodes):
    ann, bob = await enter(nodes, 0, "ann"), await enter(nodes, 1, "bob")
    ann.room("doc").presence.set("here")
    await until(lambda: states(bob) == {"ann": ["here"]})
    node = nodes[0]._hub.network
    node.liveness.stop()  # its lease is renewed no more
    node.bus.is_open = False  # and it says nothing
    await until(lambda: states(bob) == {})
    node.bus.is_open = True


async def test_a_session_that_moves_takes_its_state_along(nodes):
    ann = await enter(nodes, 0, "ann", **RETURNING)
    bob = await enter(nodes, 1, "bob")
    ann.room("doc").presence.set("mine")
    await until(lambda: states(bob) == {"ann": ["mine"]})
    device = ann.room("doc").presence.device
    ann._connections._connector = MemoryConnector(nodes[1])
    cut(ann)
    await until(lambda: "ann" in nodes[1].clients and ann.status == "READY")
    await until(lambda: states(bob) == states(ann) == {"ann": ["mine"]})
    assert ann.recovered
    ann.room("doc").presence.set("and on")
    await until(lambda: states(bob) == states(ann) == {"ann": ["and on"]})
    assert set(bob.room("doc").presence.members["ann"]) == {device}
