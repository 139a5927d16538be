"""A cluster as a model: real nodes, a real register, and a network between them that does whatever it may.

What is real: `ClusterNode` with all its parts, the `Hub`, and the register of `MemoryCluster` with the rules of
`wse.brokers.placement`. Modelled is what lies between: a request waits in the node's connection until the engine makes
the step, and its answer waits there until the node hears it. So the coroutines of the nodes stop wherever they ask the
register, and an action decides which one goes on.

    connect, end        a client comes, or goes
    serve               the engine makes the step of the node's first request, and the node hears the answer
    make, hear          the same apart: the answer is late
    slow                other things happen before the node's requests are served
    twice               the engine makes the step twice, as when a library sends it again
    expire, lose        the node gives up waiting; the request stays under way, or is lost
    stray               a request is made whose node has given up, lost its connection, or died
    cut, heal           the connection of a node to the engine breaks, and is made anew
    beat, deaf          a node renews its lease; `deaf` does not hear the answer
    message, mute       a message between nodes arrives, or is lost
    wait, stall         so much time passes that leases run out; with `stall` the lease of a node that lives as well
    crash               a node dies
    forget, flush       the engine loses the register, and with `forget` all connections as well

In the calm course of things a request is served before anything else happens. Each deviation from that, of which
`FAULTS` has the list, uses up one of a number that bounds the model. While a node is slow, its requests come between
other things wherever they can, and that is free. Nodes and devices that have not been used are interchangeable, so only
the first of them is used next.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
from collections import Counter, deque
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from types import MethodType
from typing import ClassVar

from support.core import FakeLink, FakeRequest, FakeScheduler, accept_identity
from wse import ErrorCode, WseError
from wse.brokers.memory import MemoryCluster
from wse.core.cluster.node import ClusterNode
from wse.core.cluster.registration import Registration, Registrations
from wse.core.cluster.settings import ClusterSettings
from wse.core.heartbeat import Heartbeat
from wse.core.hub.connection import ServerSession, WseConnection
from wse.core.hub.hub import Hub
from wse.core.limits import Limits
from wse.core.names import decode_name, encode_name
from wse.core.ports.broker import Device, Joined, Lease, Step, Transition
from wse.core.session.endpoint import Endpoint
from wse.protocols.json import WseJSON
from wse.types import ReadyState

SETTINGS = ClusterSettings()
JSON = WseJSON()
FAULTS = ("slow", "make", "twice", "expire", "lose", "cut", "deaf", "mute", "stall", "crash", "forget", "flush")
READS = ("pending", "mine")
"""Questions that change nothing, and that the engine answers without a lease."""


class Request:
    """A step that a node has asked for.

    Attributes:
        answer: What the engine has answered; None until it has made the step.
        future: What the node waits for; None when it has given up.
    """

    def __init__(self, node, name, args):
        self.node = node
        self.name = name  # of the method of `MemoryCluster`
        self.args = args
        self.epoch = node.broker.epoch
        self.answer = None
        self.future = node.scheduler.create_future()

    @property
    def is_in_force(self):
        return self.name in READS or self.node.world.engine.is_in_force(self.node.name, self.epoch)

    def make(self):
        """The engine makes the step."""
        if self.is_in_force:
            world = self.node.world
            before = world.announced()
            result = getattr(world.engine, self.name)(*self.args)
            if self.name not in ("claim", *READS):
                world.cancelled += world.announced() - before  # what has a number, and stands in no outbox
            self.answer = (list(result) if self.name in READS else result,)
            if self.name == "reap":
                self.node.world.has_reaped = True
        else:
            self.answer = WseError(ErrorCode.BROKER_UNAVAILABLE)

    def hear(self):
        """The node hears the answer."""
        future, self.future = self.future, None
        if isinstance(self.answer, WseError):
            future.set_exception(self.answer)
        else:
            future.set_result(*self.answer)

    def give_up(self):
        if self.future is not None:
            future, self.future = self.future, None
            future.set_exception(WseError(ErrorCode.BROKER_UNAVAILABLE))


class ModelBroker:
    """A `wse.core.ports.broker.Broker` whose steps wait until the model makes them."""

    spreads = False

    def __init__(self, node):
        self.node = node
        self.engine = node.world.engine
        self.connected = True
        self.epoch = ""
        self.is_deaf = False  # to the answer of the next renewal
        self.requests = []  # in the order in which the engine gets them
        self.messages = []
        self.topics = set()

    async def open(self, node, listener):
        self.listener = listener
        self.node.cluster.bus.node = self.node.name

    def lose(self):
        """The connection breaks; returns the requests that may still be under way."""
        self.connected, self.epoch = False, ""
        requests, self.requests = self.requests, []
        self.messages.clear()
        for request in requests:
            request.give_up()
        return [request for request in requests if request.answer is None]

    # Messages.

    def publish(self, topic, data):
        if self.connected:
            for node in self.node.world.nodes:
                if node is not self.node and node.can_hear and topic in node.broker.topics:
                    node.broker.messages.append((topic, data))

    def subscribe(self, topic):
        self.topics.add(topic)

    def unsubscribe(self, topic):
        self.topics.discard(topic)

    async def flush(self):
        self._reach()

    # The register.

    async def join(self, device, limit, *, generation=0, fresh=True):
        return await self._ask("join", device, limit, generation, fresh)

    async def leave(self, device, *, generation=0, code=1006, reason=""):
        return await self._ask("leave", device, generation, code, reason)

    async def move(self, device, origin):
        return await self._ask("move", device, origin)

    async def set_away(self, device):
        await self._ask("set_away", device)

    async def settle(self, undecided):
        return await self._ask("settle", self.node.name, undecided)

    async def reap(self):
        if not self.engine._leases.keys() - self.engine.nodes():
            return []  # nobody is dead; that this is found earlier or later makes no difference
        return await self._ask("reap", self.node.name)

    async def pending(self):
        return sorted(await self._ask("pending", self.node.name), key=lambda transition: transition.generation)

    async def claim(self, transitions):
        return await self._ask("claim", self.node.name, tuple(transitions))

    def fired(self, transitions):
        if self.connected and self.engine.is_in_force(self.node.name, self.epoch):
            self.engine.fired(self.node.name, transitions)

    async def mine(self):
        for page in await self._ask("mine", self.node.name):
            yield page

    async def registered(self):
        await self._ask("registered", self.node.name)

    async def _ask(self, name, *args):
        self._reach()
        request = Request(self.node, name, args)
        self.requests.append(request)
        return await request.future

    def _reach(self):
        if not self.connected:
            raise WseError(ErrorCode.BROKER_UNAVAILABLE)

    # Leases. Renewals have a connection of their own, and nothing comes between question and answer.

    async def renew(self, ttl, *, register="", peers=()):
        self._reach()
        fresh = f"epoch {next(self.node.world.numbers)}"
        epoch = self.engine.renew(self.node.name, self.epoch, fresh, ttl, register, peers)
        if self.is_deaf:
            raise WseError(ErrorCode.BROKER_UNAVAILABLE)
        self.epoch = epoch
        return self.engine.lease(self.node.name)

    async def nodes(self):
        self._reach()
        return self.engine.nodes()


class ModelScheduler(FakeScheduler):
    made: ClassVar = deque(maxlen=0)  # nobody needs a list of them all


class Events:
    """Takes the place of a signal, and counts."""

    def __init__(self, counts, kind):
        self.counts = counts
        self.kind = kind

    def _emit(self, identity, *args):
        self.counts[identity.cid, self.kind] += 1


class ModelNode:
    """A node of the cluster with its hub."""

    def __init__(self, world, number):
        self.world = world
        self.number = number
        self.name = f"node{number}"
        self.is_alive = True
        self.is_used = False
        self.is_slow = False
        self.granted = []
        self.scheduler = ModelScheduler()
        self.broker = ModelBroker(self)
        endpoint = Endpoint(
            ("conn",),
            protocols=(JSON,),
            scheduler=self.scheduler,
            timeout=10.0,
            limits=Limits(),
            report=lambda error, session: None,
        )
        self.hub = Hub(
            endpoint,
            conns_per_user=world.limit,
            auth_timeout=0,
            heartbeat=Heartbeat(interval=0),
            clock=lambda: world.now,
        )
        self.hub.identify = accept_identity
        self.hub.joined, self.hub.left = Events(world.fired, "joined"), Events(world.fired, "left")
        self.cluster = self.hub.network = ClusterNode(self.hub, self.broker, SETTINGS, readers=())
        self.liveness, self.reconciler = self.cluster.liveness, self.cluster.reconciler
        self.firing, self.registrations = self.cluster.firing, self.cluster.presence._registrations
        self._note_fired = self.firing._note_fired
        self.firing._note_fired = self.note_fired
        self.scheduler.spawn(self.cluster.open())

    def note_fired(self, transition):
        self._note_fired(transition)
        self.world.note_fired(self, transition)

    @property
    def is_busy(self):
        return self.is_alive and bool(self.broker.requests or self.broker.messages)

    @property
    def can_hear(self):
        return self.is_alive and self.broker.connected

    def connect(self, user, name):
        """A client connects and is accepted."""
        link = FakeLink()
        session = self.hub.open(link, FakeRequest(), JSON)
        session.conn.conn_id = name
        session.receive(JSON.pack(JSON.internal_types.hi, {"identity": user, "meta": {}}))
        return session

    def heal(self):
        """The connection to the engine is made anew. Messages of applications are not part of the model."""
        self.broker.connected = True
        self.cluster.inbox._restoring = True
        self.cluster.inbox.connection_restored()
        self.cluster.bus.release()

    def beat(self):
        self.liveness.renew()


class ModelCluster:
    """The model; see `model.checker.Model`.

    Args:
        nodes: How many nodes there are.
        users: The user of each device.
        limit: How many devices a user may have.
        faults: How many faults may happen.
        kinds: Which faults may happen.
    """

    def __init__(self, nodes=3, users=("ann", "ann", "bob"), limit=2, faults=1, kinds=FAULTS):
        self.limit = limit
        self.faults = faults
        self.kinds = kinds
        self.now = 1000.0
        self.numbers = itertools.count()
        self.engine = MemoryCluster(lambda: self.now)
        self.fired = Counter()  # by user and event
        self.granted = set()  # by register, user and generation: what nodes have been given to fire
        self.excused = set()  # users of whom the register cannot know what was announced
        self.registers = [self.engine._identity]
        self.faulty = []
        self.has_reaped = False
        self.cancelled = Counter()  # by user, transitions that have cancelled each other out
        self.strays = []
        self.users = users
        self.sessions = [None] * len(users)
        self.ended = [False] * len(users)
        self.nodes = []
        for number in range(nodes):
            self.nodes.append(ModelNode(self, number))
            self._serve_all()
        for node in self.nodes:
            node.beat()
            self._serve_all()

    # What can happen.

    def actions(self):
        busy = next((node for node in self.nodes if node.is_busy and not node.is_slow), None)
        actions = self._calm_actions() if busy is None else [self._next(busy)]
        if self.faults:
            actions += [action for action in self._faults(busy) if action[0] in self.kinds]
        return actions

    def _calm_actions(self):
        actions = [("stray", number) for number, stray in enumerate(self.strays) if self._is_first(stray)]
        if None in self.sessions:
            device = self.sessions.index(None)
            places = [node for node in self.nodes if node.is_alive]
            actions += [("connect", device, node.number) for node in self._first_unused(places)]
        actions += [("end", d) for d, s in enumerate(self.sessions) if s is not None and self._is_there(d)]
        for node in self.nodes:
            if node.is_busy:
                actions.append(self._next(node))
            if node.can_hear and self._has_work(node):
                actions.append(("beat", node.number))
            if node.is_alive and not node.broker.connected:
                actions.append(("heal", node.number))
        if self._is_lease_ending() and not any(node.is_busy for node in self.nodes):
            actions.append(("wait",))
        return actions

    def _next(self, node):
        """What happens next at a node if nothing comes between."""
        broker = node.broker
        kind = "message" if broker.messages else "serve" if broker.requests[0].answer is None else "hear"
        return kind, node.number

    def _faults(self, busy):
        for kind in ("forget", "flush"):
            yield (kind,)
        for node in self._first_unused([node for node in self.nodes if node.is_alive]):
            if sum(one.is_alive for one in self.nodes) > 1:
                yield "crash", node.number
            if node.can_hear:
                yield from ((kind, node.number) for kind in ("cut", "stall", "deaf"))
            if node is busy or (busy is None and node.is_busy):
                yield from ((kind, node.number) for kind in self._faults_of(node, node.broker.requests))

    def _faults_of(self, node, requests):
        if not node.is_slow:
            yield "slow"
        if node.broker.messages:
            yield "mute"
        elif requests[0].answer is None:
            yield "twice"
            if requests[0].future is not None:
                yield from ("make", "expire", "lose")

    def _first_unused(self, places):
        unused = [node for node in places if not node.is_used]
        return [node for node in places if node not in unused[1:]]

    def _has_work(self, node):
        """Whether a renewal of its lease leads to anything."""
        lease = self.engine._leases.get(node.name)
        return (
            node.reconciler.is_disturbed
            or bool(node.registrations.unsettled or node.firing._open or node.reconciler._departed)
            or lease is None
            or (lease.epoch, lease.state) != (node.broker.epoch, "kept")
            or self.engine.lease(node.name).has_pending
            or any(lease.until <= self.now and not lease.is_reaped for lease in self.engine._leases.values())
        )

    def _is_first(self, stray):
        """Whether it is the first of its connection: a connection keeps the order."""
        return next(s for s in self.strays if (s.node, s.epoch) == (stray.node, stray.epoch)) is stray

    def _is_there(self, device):
        session = self.sessions[device]
        return not session.ended and self._node_of(session).is_alive

    def _node_of(self, session):
        return next(node for node in self.nodes if node.hub is session._owner)

    def _is_lease_ending(self):
        engine = self.engine
        return engine.is_recovering or any(
            not lease.is_reaped and not self._by_name(name).can_hear for name, lease in engine._leases.items()
        )

    def _by_name(self, name):
        return next(node for node in self.nodes if node.name == name)

    # What happens.

    def take(self, action):
        kind, *args = action
        if kind in FAULTS:
            self.faults -= 1
        if args and kind not in ("stray", "end"):
            node = self.nodes[args[-1]]
            node.is_used = node.is_used or kind != "beat"
            getattr(self, kind)(node, *args[:-1])
        else:
            getattr(self, kind)(*args)
        self._run()

    def connect(self, node, device):
        self.sessions[device] = node.connect(self.users[device], f"device{device}")

    def end(self, device):
        self.sessions[device].closed(1001, "")

    def serve(self, node):
        request = node.broker.requests.pop(0)
        request.make()
        if request.future is not None:
            request.hear()

    def slow(self, node):
        node.is_slow = True

    def make(self, node):
        node.is_slow = True
        node.broker.requests[0].make()

    def hear(self, node):
        node.broker.requests.pop(0).hear()

    def twice(self, node):
        node.broker.requests[0].make()
        self.serve(node)

    def expire(self, node):
        node.is_slow = True
        node.broker.requests[0].give_up()

    def lose(self, node):
        node.broker.requests.pop(0).give_up()

    def stray(self, number):
        stray = self.strays.pop(number)
        stray.make()
        if stray.name == "claim" and not stray.node.is_alive and not isinstance(stray.answer, WseError):
            self._excuse(stray.node, *stray.answer)

    def cut(self, node):
        self.strays += node.broker.lose()
        node.broker.listener.connection_lost(None, [])

    def heal(self, node):
        node.heal()

    def beat(self, node):
        node.beat()

    def deaf(self, node):
        node.broker.is_deaf = True
        node.beat()
        node.broker.is_deaf = False

    def message(self, node):
        node.broker.listener.received(*node.broker.messages.pop(0))

    def mute(self, node):
        node.broker.messages.pop(0)

    def stall(self, node):
        self.wait(node)

    def wait(self, *stalled):
        for _ in range(2):
            self.now += SETTINGS.lease_ttl / 2
            for node in self.nodes:
                node.scheduler.now = self.now
            for node in self.nodes:
                if node.can_hear and node not in stalled:
                    node.beat()
            self._run()
        for name, until in self.engine._awaited.items():
            if until <= self.now:  # the cluster has recovered without what this node knows
                self._excuse_users_of(self._by_name(name))

    def crash(self, node):
        for record in self.engine._users.values():
            self._excuse(node, [one for owner, one in record.claimed if owner == node.name])
        lease = self.engine._leases.get(node.name)
        if lease is None or lease.state != "kept":
            self._excuse_users_of(node)
        node.is_alive = False
        self.strays += [request for request in node.broker.requests if request.answer is None]
        node.broker.requests.clear()
        node.broker.messages.clear()

    def forget(self):
        for node in self.nodes:
            if node.can_hear:
                self.cut(node)
        self.strays.clear()
        self.flush()

    def flush(self):
        for node in self.nodes:
            if not node.is_alive:
                self._excuse_users_of(node)
        self.engine.forget()
        self.registers.append(self.engine._identity)

    # The promises.

    def note_fired(self, node, transition):
        """A node has been given a transition to fire."""
        grant = self._era(node), transition.user, transition.generation
        if grant in self.granted:
            self.faulty.append(f"{transition} was given to be fired twice")
        if any((era, user) == grant[:2] and later > grant[2] for era, user, later in node.granted):
            self.faulty.append(f"{transition} fires after a later one")
        self.granted.add(grant)
        node.granted.append(grant)

    def _era(self, node):
        """How many registers there were before the one that the node knows."""
        return self.registers.index(node.reconciler.register)

    def announced(self):
        """How many transitions of each user there were that do not stand in an outbox."""
        records = self.engine._users.items()
        return Counter(
            {user: record.generation - len([t for _, t in record.pending if t.generation]) for user, record in records}
        )

    def _excuse(self, node, transitions):
        """Nobody fires these: a node has claimed them and died."""
        for transition in transitions:
            grant = self._era(node), transition.user, transition.generation
            if grant in self.granted:
                continue
            self.granted.add(grant)
            self.fired[decode_name(transition.user), "joined" if transition.is_joined else "left"] += 1

    def _concerns(self, record, node):
        """Whether what the register knows of the user is partly the node's."""
        owners = {device.node for device in record.devices.values()}
        owners |= {owner for owner, _ in (*record.pending, *record.claimed)}
        return node.name in owners

    def _excuse_users_of(self, node):
        """The node is gone together with the register, so nobody knows what it had announced."""
        self.excused |= {decode_name(one.device.user) for one in node.registrations.values()}
        self.excused |= {decode_name(user) for user in node.firing._open}
        self.excused |= {record.user for record in self.engine._users.values() if self._concerns(record, node)}

    def problems(self):
        if not self.faulty and not any(node.broker.requests for node in self.nodes):
            self._be_quiet()
            self._check_quiet()
        return self.faulty

    def _be_quiet(self):
        """No more faults, and time passes."""
        for number in reversed(range(len(self.strays))):
            self.stray(number)
        for node in self.nodes:
            if node.is_alive and not node.broker.connected:
                node.heal()
        for _ in range(4):
            self._serve_all()
            for node in self.nodes:
                node.liveness._reconcile_at = 0.0
            self.wait()
        self._serve_all()

    def _serve_all(self):
        for _ in range(500):
            self._run()
            busy = next((node for node in self.nodes if node.is_busy), None)
            if busy is None:
                return
            self.take(self._next(busy))
        raise AssertionError("the nodes do not come to rest")

    def _run(self):
        """Let all nodes run until each waits for an action."""
        nodes = [node for node in self.nodes if node.is_alive]
        while any(node.scheduler._soon for node in nodes):
            for node in nodes:
                node.scheduler.run()
        for session in self.sessions:
            if session is not None and session.link.closes and session.ready_state is not ReadyState.CLOSED:
                session.closed(*session.link.closes[0])
        for node in nodes:
            node.is_slow = node.is_slow and node.is_busy
        self.strays = [stray for stray in self.strays if stray.name not in READS and stray.is_in_force]

    def _check_quiet(self):
        """Nothing happens any more: the register has what there is, and has told of each change once."""
        problems = self.faulty
        there = [d for d, session in enumerate(self.sessions) if session is not None and self._is_there(d)]
        registered = {name for user in set(self.users) for name in self._registered(user)}
        problems += [f"device{d} is not registered" for d in there if f"device{d}" not in registered]
        problems += [f"{ghost} is a ghost" for ghost in registered - {f"device{d}" for d in there}]
        for user in set(self.users):
            joined, left = self.fired[user, "joined"], self.fired[user, "left"]
            present = any(self.users[d] == user for d in there)
            record = self.engine._users.get(encode_name(user))
            if len([d for d in there if self.users[d] == user]) > self.limit:
                problems.append(f"{user} has too many devices")
            if user not in self.excused and joined - left != present:
                problems.append(f"{user} has joined {joined} times and left {left} times, and is present: {present}")
            if record is None:
                continue
            if bool(record.generation % 2) != present:
                problems.append(f"{user}: {record.generation}, and is present: {present}")
            if len(self.registers) == 1 and joined + left + self.cancelled[record.user] != record.generation:
                problems.append(f"{user} has joined {joined} times and left {left} times: {record.generation}")
            came = sum(self.users[d] == user for d, session in enumerate(self.sessions) if session is not None)
            if joined > came and not self.has_reaped and len(self.registers) == 1:
                problems.append(f"{user} has joined {joined} times, with {came} devices")
            if record.pending:
                problems.append(f"{record.pending} was never fired")
        for node in self.nodes:
            if node.is_alive:
                problems += [f"{task} has not ended" for task in node.scheduler.unfinished]
                problems += [f"{task} has failed" for task in node.scheduler.unseen]
                if len(node.registrations) != len([d for d in there if self._node_of(self.sessions[d]) is node]):
                    problems.append(f"{node.name} holds {list(node.registrations)}")
                if node.registrations.unsettled or node.firing._open:
                    problems.append(f"{node.name} is not settled")

    def _registered(self, user):
        return [device.conn_id for device in self.engine.devices(encode_name(user))]

    # The state.

    def state(self):
        engine = self.engine
        world = (
            self.faults, self.users, self.fired, self.granted, self.excused, self.faulty, self.strays,
            len(self.registers), self.has_reaped, self.cancelled, engine._users, engine._awaited,
            [None if s is None else (s.ended, s.valid, self._node_of(s).name) for s in self.sessions],
            {name: (one.until > self.now, one.state, one.is_reaped) for name, one in engine._leases.items()},
        )  # fmt: skip
        return freeze((world, [self._parts(node) if node.is_alive else node.is_used for node in self.nodes]), self)

    def _parts(self, node):
        """All that a node's future depends on."""
        broker, firing, reconciler, liveness = node.broker, node.firing, node.reconciler, node.liveness
        return (
            node.is_used, node.is_slow, node.granted,
            broker.connected, broker.requests, broker.messages, broker.topics,
            self.engine.is_in_force(node.name, broker.epoch),
            node.registrations, node.registrations.unsettled, node.cluster.presence._joining,
            firing._open, {user: generations for user, (generations, _) in firing._fired.items()},
            node.cluster.steps.restoring, reconciler._departed, reconciler._set_back_at > 0, reconciler.is_disturbed,
            self._era(node), node.cluster.bus.peers, node.cluster.bus._backlog,
            max(liveness._renewed, self.now - SETTINGS.lease_ttl), liveness._renewed_since, liveness._maintaining,
            Counter(freeze(task.get_coro(), self) for task in node.scheduler.unfinished),
        )  # fmt: skip


HASHABLE = (str, int, bool, bytes, type(None), Device, Transition, Step, Joined)


def freeze(value, world):
    """A hashable image of whatever the nodes hold, coroutines under way included; times are relative to now."""
    kind = type(value)
    if kind in HASHABLE:
        return value
    if kind is float:
        return max(value - world.now, -SETTINGS.lease_ttl)
    if kind in (tuple, list, deque):
        return tuple([freeze(item, world) for item in value])
    if kind in (dict, Counter, Registrations):
        return frozenset([(freeze(key, world), freeze(item, world)) for key, item in value.items()])
    if kind in (set, frozenset):
        return frozenset([freeze(item, world) for item in value])
    if issubclass(kind, Enum):
        return value.name
    if kind is Lease:
        return value.state, value.is_recovering, value.has_pending, world.registers.index(value.register)
    if is_dataclass(value):
        return tuple([freeze(getattr(value, name), world) for name in _names(kind)])
    if kind is Registration:
        ended = value.end is not None
        return value.device, value.state, value.generation, ended, value.is_busy, value.is_again
    if kind is Request:
        waits = value.future is not None
        return (
            value.node.name,
            value.name,
            freeze(value.args, world),
            waits,
            freeze(value.answer, world),
            value.is_in_force,
        )
    if kind is MethodType:
        return value.__func__.__qualname__
    if kind is WseConnection:
        return value.conn_id
    if kind is ServerSession:
        return value.conn.conn_id
    if hasattr(value, "cr_frame"):
        return _freeze_coroutine(value, world)
    if hasattr(value, "__length_hint__"):
        return freeze(list(copy.copy(value)), world)
    if isinstance(value, asyncio.Future):
        return value.done()
    return kind.__name__


def _freeze_coroutine(coroutine, world):
    frames = []
    while hasattr(coroutine, "cr_frame"):
        frame = coroutine.cr_frame
        held = {name: item for name, item in frame.f_locals.items() if name != "self"}
        if "lease" in held and type(held["lease"]) is int:
            held["lease"] = held["lease"] == held.get("steps", frame.f_locals["self"]).lease
        frames.append((coroutine.__qualname__, frame.f_lasti, freeze(held, world)))
        coroutine = coroutine.cr_await
    return tuple(frames)


@cache
def _names(kind):
    return [field.name for field in fields(kind)]
