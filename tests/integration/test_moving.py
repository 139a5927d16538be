"""Clients behind a balancer that sends every connection to another node of the cluster, on every broker."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack

import pytest

from support.cluster import WAIT, cluster_of, until
from support.engines import nats_cluster
from support.net import Log
from support.resume import cut, cut_unnoticed
from wse import Backoff, ClusterSettings, Publisher, Resume, WseClient
from wse.brokers import from_url
from wse.testing import URL, MemoryConnector

SOON = Backoff(base=0.01, cap=0.05)
"""The waits of clients, some of which find no node for a moment."""


class Balancer:
    """A connector that takes the next server for each connection, unless that one is closed."""

    def __init__(self, servers):
        self.servers = servers
        self.next = 0

    async def __call__(self, *args):
        for _ in self.servers:
            number, self.next = self.next, (self.next + 1) % len(self.servers)
            if self.servers[number].ready:
                await MemoryConnector(self.servers[number])(*args)
                return
        raise ConnectionRefusedError


class Story:
    """A client that moves from node to node, and what it has heard and said.

    Attributes:
        heard: The messages of each sender.
        said: What the servers have heard.
        ran: The calls that the servers have handled.
    """

    def __init__(self, servers, cid="ann", **options):
        self.servers = servers
        self.cid = cid
        self.client = WseClient(
            URL,
            identity=cid,
            connector=Balancer(servers),
            **{"reconnect": True, "resume": True, "backoff": SOON, "timeout": WAIT, **options},
        )
        self.heard, self.said, self.ran, self.calls, self.sent = {}, [], [], [], 0
        self.events = Log()
        for name in ("lost", "resumed", "ready"):
            getattr(self.client.when, name)(self.events.adder(name))
        self.client.when.error(lambda error: None)  # attempts that fail
        self.client.when.ignored(
            lambda kind, payload, stamp: self.heard.setdefault((kind, payload[0]), []).append(payload[1])
        )

    async def double(self, n):
        self.ran.append(n)
        if n % 2:
            await asyncio.sleep(0.002)
        return 2 * n

    def say(self):
        self.client.send("up", self.sent)
        if not self.sent % 5:
            self.calls.append((self.sent, asyncio.ensure_future(self.client.call("double", self.sent))))
        self.sent += 1

    async def finish(self):
        async with asyncio.timeout(WAIT):
            for n, call in self.calls:
                assert await call == 2 * n
            await self.client.flush()
        assert self.events.all("lost") == []
        assert len(self.events.all("ready")) == 1
        assert self.said == list(range(self.sent))
        assert sorted(self.ran) == [n for n, _ in self.calls]


def serve(server, stories):
    """Let a server hear clients."""
    by_cid = {story.cid: story for story in stories}
    server.channel.on("up", lambda conn, n: by_cid[conn.cid].said.append(n))
    server.register("double", lambda conn, n: by_cid[conn.cid].double(n))


async def exchange(story, nodes, publisher, rounds, disturb, every):
    """Everybody sends to everybody, `rounds` times."""
    senders = [*nodes, publisher]
    for n in range(rounds):
        for number, sender in enumerate(senders):
            sender.send(story.cid, "user", (number, n))
            sender.room("lobby").send("room", (number, n))
            sender.broadcast("all", (number, n))
        story.say()
        if n % every == every - 1:
            disturb(story.client)
        await asyncio.sleep(0.001 * (n % 3))
    expected = {(kind, number) for kind in ("user", "room", "all") for number in range(len(senders))}
    await until(lambda: story.heard.keys() == expected and all(len(got) >= rounds for got in story.heard.values()))
    await story.finish()
    for one, got in story.heard.items():
        assert got == list(range(rounds)), one


def disturbing(seed):
    """Cuts that both sides notice, or the client only."""
    rnd = random.Random(seed)

    def disturb(client):
        session = client._connections.session
        if session is not None and session.ledger is not None and session.ledger.is_attached:
            (cut if rnd.random() < 0.5 else cut_unnoticed)(client)

    return disturb


async def begin(nodes, engine, stack, **options):
    """A client in the lobby, and a publisher."""
    story = Story(nodes, **options)
    for server in nodes:
        serve(server, [story])
    publisher = await stack.enter_async_context(Publisher(engine.broker()))
    await stack.enter_async_context(story.client)
    conn = next(conn for server in nodes for conn in server.clients["ann"].conns.values() if "ann" in server.clients)
    nodes[0].room("lobby").add(conn)
    await nodes[0].cluster.broker.flush()
    return story, publisher


async def test_everything_arrives_once_and_in_order_wherever_the_client_comes_back(start, engine):
    nodes = await start(2, resume=Resume(bytes=1 << 20, messages=10_000))
    async with AsyncExitStack() as stack:
        story, publisher = await begin(nodes, engine, stack)
        await exchange(story, nodes, publisher, 200, disturbing(1), 20)
        assert len(story.events.all("resumed")) >= 5
        assert nodes.fired("joined") == 1
        assert nodes.fired("left") == 0
    await until(lambda: nodes.fired("left") == 1)
    assert nodes.fired("joined") == 1
    assert nodes.codes() == set()


async def load(stories, nodes, publisher, is_over):
    """Servers and a publisher send to everybody, and everybody to the servers; returns how often."""
    n = 0
    while True:
        senders = [next(server for server in nodes if server.ready), publisher]
        for story in stories:
            for number, sender in enumerate(senders):
                sender.send(story.cid, "user", (number, n))
            story.say()
        for number, sender in enumerate(senders):
            sender.broadcast("all", (number, n))
        n += 1
        if is_over.is_set():
            return n
        await asyncio.sleep(0.005)


async def test_a_rolling_restart_loses_nothing_for_clients_that_return(start, engine):
    options = {"resume": Resume(bytes=1 << 20, messages=10_000)}
    nodes = await start(3, **options)
    logs = list(nodes.logs)
    async with AsyncExitStack() as stack:
        publisher = await stack.enter_async_context(Publisher(engine.broker()))
        stories = [Story(nodes, cid=f"user {n}") for n in range(10)]
        for server in nodes:
            serve(server, stories)
        for story in stories:
            await stack.enter_async_context(story.client)
        is_over = asyncio.Event()
        sending = asyncio.ensure_future(load(stories, nodes, publisher, is_over))
        for number in range(3):
            new = await stack.enter_async_context(cluster_of([engine.broker()], **options))
            logs += new.logs
            serve(new[0], stories)
            old, nodes[number] = nodes[number], new[0]
            await asyncio.wait_for(old.close(grace=1), WAIT)
        is_over.set()
        count = await sending
        for story in stories:
            await until(lambda story=story: all(len(got) >= count for got in story.heard.values()))
            await story.finish()
            assert story.events.all("resumed")
            assert len(story.heard) == 4
            assert all(got == list(range(count)) for got in story.heard.values())
            await story.client.close()  # before the nodes, which would wait for its return
        names = [(name, cid) for log in logs for name, cid, *_ in log.entries if name == "joined"]
        assert sorted(names) == sorted(("joined", story.cid) for story in stories)
        await until(lambda: sum(len(log.all("left")) for log in logs) == len(stories))


async def test_a_node_that_closes_waits_for_its_clients_no_longer_than_it_may(start):
    nodes = await start(2, resume=Resume(drain=0.2))
    options = {"reconnect": True, "resume": True, "backoff": SOON}
    async with WseClient(URL, identity="ann", connector=MemoryConnector(nodes[0]), **options):
        await nodes.logs[0].until("connected", "ann")
        await asyncio.wait_for(nodes[0].close(), WAIT)
        await nodes.logs[0].until("detached", "ann", 1012)
        await nodes.logs[0].until("disconnected", "ann", 1012)
        await nodes.logs[0].until("left", "ann")


async def test_nodes_that_close_together_do_not_wait_for_each_other(start):
    nodes = await start(2, resume=Resume(drain=10 * WAIT))
    options = {"reconnect": True, "resume": True, "backoff": SOON}
    async with WseClient(URL, identity="ann", connector=MemoryConnector(nodes[0]), **options):
        await nodes.logs[0].until("connected", "ann")
        await asyncio.wait_for(asyncio.gather(nodes[0].close(), nodes[1].close()), WAIT)
        await nodes.logs[0].until("left", "ann")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(5))
async def test_everything_arrives_once_and_in_order_over_many_moves(start, engine, seed):
    nodes = await start(3, resume=Resume(bytes=1 << 22, messages=10_000))
    async with AsyncExitStack() as stack:
        story, publisher = await begin(nodes, engine, stack)
        await exchange(story, nodes, publisher, 2000, disturbing(seed), 7)
        assert len(story.events.all("resumed")) >= 20  # a cut during a move is part of that one
        assert nodes.fired("joined") == 1
        assert nodes.fired("left") == 0
    assert nodes.codes() == set()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(3))
async def test_a_cluster_of_nats_servers_carries_moves(tmp_path, seed):
    """Each node is connected to another server, so that the servers have to tell each other who listens."""
    servers = nats_cluster(tmp_path)
    async with AsyncExitStack() as stack:
        for server in servers:
            stack.callback(server.stop)
            server.launch()
        for server in servers:
            await asyncio.to_thread(server.wait)
        options = {"resume": Resume(bytes=1 << 22, messages=10_000)}
        settings = ClusterSettings(wait_for_broker=WAIT)
        brokers = [from_url(server.url("app", replicas=3)) for server in servers]
        nodes = await stack.enter_async_context(cluster_of(brokers, settings, **options))
        publisher = await stack.enter_async_context(Publisher(from_url(servers[1].url("app", replicas=3))))
        story = Story(nodes)
        for server in nodes:
            serve(server, [story])
        await stack.enter_async_context(story.client)
        (conn,) = nodes[0].clients["ann"].conns.values()
        nodes[0].room("lobby").add(conn)
        await nodes[0].cluster.broker.flush()
        await asyncio.sleep(1)  # until all servers know
        await exchange(story, nodes, publisher, 1000, disturbing(seed), 20)
        await story.client.close()
