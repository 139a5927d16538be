"""A cluster of hubs on `MemoryBroker`; the test controls the clock and messages, and stops and kills nodes.

Each node has a scheduler of its own, so that one can sleep (SIGSTOP) or die (kill -9) while the others go on.
"""

from __future__ import annotations

from support.core import FakeScheduler, ServerSide
from wse.brokers.memory import MemoryBroker, MemoryCluster
from wse.core.cluster.node import ClusterNode
from wse.core.cluster.settings import ClusterSettings
from wse.protocols.json import WseJSON
from wse.protocols.msgpack import WseMsgpack
from wse.server.messaging import Messaging


class NodeBroker(MemoryBroker):
    """A broker that runs on the node's own scheduler, and keeps messages while the node sleeps."""

    def __init__(self, cluster, node):
        super().__init__(cluster)
        self._side = node
        self.deaf = False
        self.subscribed = []

    async def open(self, node, listener):
        self._reach()
        self._node, self._listener, self._loop = node, listener, self._side.scheduler
        self.cluster.attach(self)

    def deliver(self, topic, data):
        if not self.deaf:
            self._side.scheduler.call_soon(super().deliver, topic, data)

    def subscribe(self, topic):
        self.subscribed.append(topic)
        super().subscribe(topic)


class Node(ServerSide):
    """A hub with its node of the cluster."""

    def __init__(self, engine, clock, settings, **options):
        self._clock = clock
        super().__init__(**options)
        self.awake = True
        self.broker = NodeBroker(engine, self)
        self.cluster = self.hub.network = ClusterNode(
            self.hub, self.broker, settings, readers=(WseJSON(), WseMsgpack())
        )
        self.server = Messaging()
        self.server._hub = self.hub

    def _make_scheduler(self):
        scheduler = FakeScheduler()
        scheduler.now = self._clock.now
        return scheduler

    def do(self, coroutine):
        """The result of a coroutine that does not wait for other nodes."""
        return self.scheduler.start(coroutine).result()

    @property
    def codes(self):
        return [str(error.code) for error, _ in self.errors]

    @property
    def leftovers(self):
        """The counts that must be zero when no client is connected."""
        presence, rpc = self.cluster.presence, self.cluster.rpc
        return [
            *presence._registrations, *presence._joining, *presence._graces,
            *rpc._asked, *rpc._pending.waiting, *self.cluster.bus._interest, *self.cluster.bus._backlog,
        ]  # fmt: skip


class Clock:
    def __init__(self):
        self.now = 1000.0


class Nodes(list):
    """Several nodes; `advance` moves the clock for all that are awake."""

    def __init__(self, count=2, settings=None, **options):
        self.clock = Clock()
        self.engine = MemoryCluster(lambda: self.clock.now)
        self._settings = settings or ClusterSettings()
        self._options = options
        super().__init__()
        for _ in range(count):
            self.start()

    def start(self, **options):
        node = Node(self.engine, self.clock, self._settings, **{**self._options, **options})
        self.append(node)
        node.do(node.cluster.open())
        return node

    def run(self):
        """Run all nodes until none has anything to do at this instant."""
        while any(node.scheduler._soon for node in self if node.awake):
            for node in self:
                if node.awake:
                    node.scheduler.run()

    def advance(self, seconds, step=0.25):
        self.run()
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now = min(end, self.clock.now + step)
            for node in self:
                if node.awake:
                    node.scheduler.advance(self.clock.now - node.scheduler.now)
            self.run()

    def kill(self, node):
        """Kill a node: nothing of it is left, except its state in the engine."""
        node.awake = False
        self.remove(node)
        self.engine.detach(node.broker)
        for brokers in self.engine.topics.values():
            brokers.pop(node.broker, None)

    def sleep(self, node):
        node.awake = False

    def wake(self, node):
        """Wake a node: every timer that was due meanwhile fires now, once."""
        node.awake = True
        node.scheduler.now = self.clock.now
        node.scheduler.advance(0)
        self.run()

    def join(self, node, cid="ann", name="", protocol=None):
        """A client that has been welcomed by a node."""
        peer = node.join(cid, name, protocol)
        self.run()
        return peer

    def log(self, *kinds):
        """The events of all nodes."""
        return [entry for node in self for entry in node.names(*kinds)]

    def presence(self):
        return [entry[:2] for entry in self.log("joined", "left")]


def heard(*peers):
    """The messages that each peer has received since the last call: types and payloads."""
    return [[(kind, payload) for kind, payload, _ in peer.heard] for peer in peers]
