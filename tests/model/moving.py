"""A session that moves between two nodes as a model: real hubs and real nodes, and the orders in which they work.

What is real: the `Hub` with its `Resumption`, the `ClusterNode` with its `Claims`, and the register of `MemoryBroker`.
Each node has a queue of what it has still to do, such as to take the next message from the broker, and an action lets
it do the next thing. So messages between nodes take any time, and arrive in the order of one engine. The client is
modelled: what a server writes to its newest connection has arrived, and what is written to older ones never does.

    node N              node N does the next thing in its queue
    send N              node N sends a message to the user, `publish` sends one from outside
    say                 the client sends a message
    open N              the client opens a connection to node N and says hi; the old one is deaf from now on
    crash N             node N dies
    lose                the next answer with the session in it is lost

Invariants: what the client has heard of each sender is the beginning of what it has sent, each message once, and the
same the other way round; when everything that can happen has happened, everybody has heard everything, unless the
client was told that the session was lost, which happens only if a node has died; the user has joined once; one node has
the session, and the register says so.
"""

from __future__ import annotations

import itertools
import secrets
from functools import partial
from typing import ClassVar

from support.core import FakeLink, FakeRequest
from support.nodes import Nodes
from wse.core.cluster import envelope
from wse.core.resume import Resume
from wse.protocols.json import WseJSON

JSON = WseJSON()
PUBLISHER = "publisher"


class Wire(FakeLink):
    """A connection of the client; what a server writes arrives at once, as long as it is the newest."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.session = None

    def write(self, data):
        super().write(data)
        if self.model.wire is self and not self.closes:
            self.model.hear(*JSON.unpack(data))

    def receive(self, data):
        (self.receiver or self.session).receive(data)

    def close(self, code, reason):
        super().close(code, reason)
        if self.model.wire is self:
            self.model.closed = (code, str(reason))


class ModelMove:
    """The model; see the module.

    Args:
        sends: How often which nodes and the publisher send.
        says: How often the client sends.
        opens: The nodes to which the client comes, one after the other.
        crash: The node that may die.
        rooms: Whether messages go to a room, and not to the user.
        losses: How many answers with the session in them may be lost. If there are two, the session may be lost.
    """

    last: ClassVar[ModelMove | None] = None

    def __init__(self, *, sends=(0, 0, 0), says=0, opens=(1,), crash=None, rooms=False, losses=0):
        self.end()
        ModelMove.last = self
        names = itertools.count()
        secrets.token_hex = lambda size: f"{next(names):016x}"
        secrets.token_urlsafe = lambda size: f"key{next(names)}"
        self.nodes = Nodes(2, resume=Resume(), conns_per_user=5, protocols=(JSON,))
        self.all = [*self.nodes]
        self.left = dict(zip(("send 0", "send 1", "publish"), sends, strict=True))
        self.left |= {"say": says, "crash": int(crash is not None), "lose": losses}
        self.losses, self.losing = losses, 0
        self.opens = list(opens)
        self.crashing = crash
        self.rooms = rooms
        self.sent, self.heard = {}, {}
        self.said, self.served = [], []
        self.got, self.ticket, self.lost, self.closed, self.wire = 0, None, None, None, None
        for node in self.nodes:
            node.cluster.rpc.answered = partial(self._answered, node.cluster.rpc.answered)
            node.endpoint.channel.on("up", lambda conn, n: self.served.append(n))
        self._open(0)
        self.nodes.run()
        if rooms:
            (conn,) = self.nodes[0].hub.connections.values()
            self.nodes[0].hub.rooms.add("room", conn)
            self.nodes.run()

    @classmethod
    def end(cls):
        """End the model before this one: Python complains of coroutines that are forgotten before they have begun."""
        if cls.last is not None:
            cls.last.nodes.run()
            cls.last = None

    def _answered(self, answered, answer):
        if self.losing and isinstance(answer.value, list) and isinstance(answer.value[0], bytes):
            self.losing -= 1
        else:
            answered(answer)

    # The client.

    def hear(self, type_, payload, stamp):
        if type_ == "~wse:ext":
            answer = payload["resume"]
            if "key" in answer:
                self.got = 0
            self.ticket = (self.ticket or {}) | {name: answer[name] for name in ("id", "key") if name in answer}
            self.lost = self.lost or answer.get("lost")
            self.answer = answer
        elif type_ == "~wse:welcome":
            for n in self.said[self.answer.get("got", len(self.said)) :]:
                self.wire.receive(JSON.pack("up", n, None))
        elif type_ == "m":
            self.got += 1
            self.heard.setdefault(payload[0], []).append(payload[1])

    def _open(self, number):
        node = self.all[number]
        if self.wire is not None and not self.is_ready and not self.wire.closes:
            self.wire.session.closed(1006, "")  # the client has given up, and the node sees that
        self.wire = wire = Wire(self)
        self.closed = None
        session = node.hub.open(wire, FakeRequest(), JSON)
        wire.session = session
        offer = {} if self.ticket is None else {**self.ticket, "got": self.got, "sent": [1, len(self.said)]}
        session.receive(JSON.pack("~wse:hi", {"identity": "ann", "ext": {"resume": offer}}, None))

    # What can happen.

    def actions(self):
        found = [("node", number) for number, node in enumerate(self.all) if node.awake and node.scheduler._soon]
        found += [(what,) for what, left in self.left.items() if left and what != "crash" and self._can(what)]
        if self.opens and self.all[self.opens[0]].awake:
            found.append(("open",))
        if self.left["crash"]:
            found.append(("crash",))
        return found

    def _can(self, what):
        if what.startswith("send"):
            return self.all[int(what[-1])].awake
        return what == "publish" or (self.is_ready and self.lost is None)

    @property
    def is_ready(self):
        return self.closed is None and any('"~wse:welcome"' in data for data in self.wire.sent)

    def take(self, action):
        what = action[0]
        if what in self.left:
            self.left[what] -= 1
        if what == "node":
            timer = self.all[action[1]].scheduler._soon.popleft()
            if not timer.cancelled:
                timer.callback(*timer.args)
        elif what == "open":
            self._open(self.opens.pop(0))
        elif what == "crash":
            self._crash()
        elif what == "lose":
            self.losing += 1
        elif what == "say":
            self.said.append(len(self.said))
            self.wire.receive(JSON.pack("up", self.said[-1], None))
        else:
            self._send(what)

    def _send(self, what):
        number = len(self.sent.setdefault(what, []))
        self.sent[what].append(number)
        if what == "publish":
            topic = "r.sroom" if self.rooms else "u.sann"
            packed = JSON.pack("m", (what, number), None).encode()
            data = envelope.encode(envelope.Message(PUBLISHER, "m", {JSON.name: (True, packed)}, seq=number + 1))
            for broker in tuple(self.nodes.engine.topics.get(topic, ())):
                broker.deliver(topic, data)
            return
        hub = self.all[int(what[-1])].hub
        if self.rooms:
            hub.rooms.send("room", "m", (what, number), None)
        else:
            hub.send("ann", "m", (what, number))

    def _crash(self):
        node = self.all[self.crashing]
        self.nodes.kill(node)
        node.broker._loop = None
        node.scheduler.run()
        if self.wire.session._owner is node.hub:
            self.closed = (1006, "")

    # What is.

    def state(self):
        return (
            tuple(self._node(node) for node in self.all),
            tuple(self.left.values()),
            tuple(self.opens),
            str(self.heard),
            str(self.sent),
            tuple(self.served),
            self.got,
            str(self.ticket),
            str(self.lost),
            self.closed,
            self.losing,
            len(self.wire.sent),
            str(self.nodes.engine._users),
        )

    @staticmethod
    def _node(node):
        hub = node.hub
        return (
            node.awake,
            tuple(_name(timer) for timer in node.scheduler._soon if not timer.cancelled),
            tuple(_place(task) for task in node.scheduler.unfinished),
            tuple((conn_id, _books(conn._session)) for conn_id, conn in hub.connections.items()),
            str(hub.resumption._tombstones),
            str(sorted(node.cluster.bus._interest.items())),
            str([placeholder._kept for placeholder in node.cluster.delivery.placeholders]),
            str(node.cluster.delivery.heard.last),
            str([(one.state, one.device, one.origin) for one in node.cluster.presence._registrations.values()]),
            str([entry[:2] for entry in node.names("joined", "left", "connected", "disconnected")]),
        )

    # What must hold.

    def problems(self):
        found = [*self._differences(complete=False)]
        if not found:
            self._finish()
            found = [*self._differences(complete=True)]
        found += [f"reported: {error!r}" for node in self.all for error, _ in node.errors]
        return found

    def _finish(self):
        """Let everything happen that still can, without another fault."""
        self.nodes.run()
        if len(self.nodes) < len(self.all) or not self.is_ready:
            self.nodes.advance(20, step=1.0)

    def _differences(self, complete):
        for sender, heard in self.heard.items():
            sent = self.sent.get(sender, [])
            if heard != sent[: len(heard)]:
                yield f"the client has heard {heard} of {sent} from {sender}"
        if self.served != self.said[: len(self.served)]:
            yield f"the servers have heard {self.served} of {self.said}"
        joined = [entry for node in self.all for entry in node.names("joined")]
        left = [entry for node in self.all for entry in node.names("left")]
        has_crashed = len(self.nodes) < 2
        may_end = has_crashed or self.losses > 1
        if len(joined) > 1 + may_end or left[may_end:]:
            yield f"{joined} {left}"
        if not complete:
            return
        if self.closed is None and not has_crashed:
            yield from self._ghosts()
        if self.lost is not None or self.closed is not None:
            if not has_crashed and self.losses < 2:
                yield f"lost: {self.lost} {self.closed}"
            return
        for sender, sent in self.sent.items():
            if self.heard.get(sender, []) != sent and not (has_crashed and sender == f"send {self.crashing}"):
                yield f"the client has heard only {self.heard.get(sender)} of {sent} from {sender}"
        if self.served != self.said:
            yield f"the servers have heard only {self.served} of {self.said}"
        yield from self._ghosts()

    def _ghosts(self):
        holders = [node for node in self.nodes if node.hub.connections]
        devices = self.nodes.engine.devices("sann")
        if [device.node for device in devices] != [node.cluster.node for node in holders] or len(devices) != 1:
            yield f"{devices} are registered"


def _name(timer):
    callback = timer.callback
    task = getattr(callback, "__self__", None)
    where = _place(task) if hasattr(task, "get_coro") else getattr(callback, "__qualname__", str(type(callback)))
    return where, tuple(one for one in timer.args if isinstance(one, str | bytes | int))


def _place(task):
    """Where a task waits."""
    places = []
    coroutine = task.get_coro()
    while coroutine is not None and hasattr(coroutine, "cr_frame"):
        frame = coroutine.cr_frame
        places.append((coroutine.__qualname__, None if frame is None else frame.f_lineno))
        coroutine = coroutine.cr_await
    return tuple(places)


def _books(session):
    ledger, outbox = session.ledger, session._outbox
    return (
        ledger.is_attached,
        ledger.got,
        ledger.base,
        tuple(str(getattr(message, "data", message)) for message in ledger.ring),
        () if outbox is None else tuple(str(packed.data) for packed in outbox.messages),
    )
