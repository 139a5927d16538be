"""The register on every engine is the register in memory: random steps, lost answers and dead nodes lead to the same.

`wse.brokers.placement` has the rules in Python, for memory and NATS, and Redis has them in Lua.
"""

from __future__ import annotations

import asyncio
import itertools
from contextlib import AsyncExitStack, suppress
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.brokers import CLUSTERS, ENGINES
from wse import WseError
from wse.core.ports.broker import Away, Transition

profile = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture], print_blob=True
)
NODES = 2
LEASE = 600
"""Seconds: no lease runs out while a story is told, however busy the machine is."""
examples = itertools.count()

nodes = st.integers(0, NODES - 1)
users = st.sampled_from(["ann", "ann", "bob"])
conns = st.sampled_from(["c1", "c2"])
lost = st.booleans()
steps = st.one_of(
    st.tuples(st.just("join"), nodes, users, conns, st.integers(1, 2), lost),
    st.tuples(st.just("join"), nodes, users, conns, st.integers(1, 2), st.just(False)),
    st.tuples(st.just("again"), nodes, users, conns, st.integers(1, 2), lost),
    st.tuples(st.just("leave"), nodes, users, conns, st.sampled_from(["", "a reason, with ünicode"]), lost),
    st.tuples(st.just("leave"), nodes, users, conns, st.just(""), st.just(False)),
    st.tuples(st.just("set_away"), nodes, users, conns, st.sampled_from(Away), lost),
    st.tuples(st.just("move"), nodes, users, conns, lost),
    st.tuples(st.just("claim"), nodes, st.booleans(), lost),
    st.tuples(st.just("die"), nodes),
    st.tuples(st.just("reap"), nodes),
)


class Register:
    """Two nodes on one engine. What steps answer is told without what the engines number differently."""

    def __init__(self, cluster, example):
        self.cluster = cluster
        self.example = example
        self.nodes = []

    async def open(self):
        self.nodes = [await self._node() for _ in range(NODES)]

    async def _node(self):
        node = await self.cluster.node()
        await node.broker.renew(LEASE)
        return node

    def user(self, name):
        return f"{name}-{self.example}"

    async def take(self, kind, number, *args):
        """Make a step; what it has answered."""
        node = self.nodes[number]
        *args, is_lost = args or (False,)
        step = getattr(self, kind)
        if not is_lost:
            return await step(node, *args)
        with self.cluster.lose_answers(node), suppress(WseError):
            await step(node, *args)
        return "lost"

    async def join(self, node, user, conn, limit, *, fresh=True):
        # A connection belongs to one node. It has another name at each, unless it moves.
        device = node.device(self.user(user), f"{conn}-{self.nodes.index(node)}")
        joined = await node.broker.join(replace(device, place=0 if fresh else -5), limit, fresh=fresh)
        return self._told(joined), joined.device.conn_id, [device.conn_id for device in joined.displaced]

    async def again(self, node, user, conn, limit):
        return await self.join(node, user, conn, limit, fresh=False)

    async def leave(self, node, user, conn, reason):
        device = node.device(self.user(user), f"{conn}-{self.nodes.index(node)}")
        return self._told(await node.broker.leave(device, code=4000 if reason else 1001, reason=reason))

    async def set_away(self, node, user, conn, away):
        device = node.device(self.user(user), f"{conn}-{self.nodes.index(node)}")
        await node.broker.set_away(replace(device, away=away))

    async def move(self, node, user, conn):
        other = 1 - self.nodes.index(node)
        moved = await node.broker.move(node.device(self.user(user), f"{conn}-{other}"), self.nodes[other].name)
        return moved is not None and (moved.device.conn_id, moved.device.away)

    async def claim(self, node, reports):
        claimed = await node.broker.claim(await node.broker.pending())
        if reports:
            node.broker.fired(claimed)
        return sorted(map(_image, claimed))

    async def die(self, node):
        await node.broker.resign()
        await node.broker.close()
        self.nodes[self.nodes.index(node)] = await self._node()

    async def reap(self, node):
        reaped = []
        for _ in range(3):  # one node may leave others their share at first
            while found := await node.broker.reap():
                reaped += found
        return sorted({_image(transition) for transition in reaped})

    async def look(self):
        """All that there is."""
        devices = {
            user: [(device.conn_id, self._place(device.node), device.away) for device in found]
            for user in ("ann", "bob")
            for found in [await self.nodes[0].broker.devices(self.user(user))]
        }
        return devices, [sorted(map(_image, await node.broker.pending())) for node in self.nodes]

    def _place(self, name):
        return next((number for number, node in enumerate(self.nodes) if node.name == name), "dead")

    def _told(self, step):
        return step.generation % 2, [_image(transition) for transition in step.transitions]


def _image(transition: Transition):
    return transition.user, transition.is_joined, transition.code, transition.reason


async def compare(registers, story):
    for step in story:
        results = [await register.take(*step) for register in registers]
        assert results[0] == results[1], step
        views = [await register.look() for register in registers]
        assert views[0] == views[1], step


def run(kind, request, max_examples, length):
    engine = request.getfixturevalue(ENGINES[kind])
    with asyncio.Runner() as runner:

        @settings(profile, max_examples=max_examples)
        @given(st.lists(steps, max_size=length))
        def check(story):
            async def tell():
                async with AsyncExitStack() as stack:
                    example = next(examples)
                    clusters = CLUSTERS["memory"](stack), CLUSTERS[kind](stack, engine)
                    registers = [Register(cluster, example) for cluster in clusters]
                    for register in registers:
                        await register.open()
                    await compare(registers, story)

            runner.run(tell())

        check()


@pytest.mark.parametrize("kind", ENGINES)
def test_random_steps_lead_to_what_they_lead_to_in_memory(kind, request):
    run(kind, request, 15, 20)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ENGINES)
def test_thousands_of_random_steps_lead_to_what_they_lead_to_in_memory(kind, request):
    run(kind, request, 500, 60)
