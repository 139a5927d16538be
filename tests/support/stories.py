"""Stories: a session with an application that behaves in every way, and the invariants that hold after each step.

Property tests and fuzzing run them; they differ in the source of the steps.
"""

from __future__ import annotations

import re
from collections import Counter
from contextlib import nullcontext

import pytest

from support.core import ClientSide, ServerSide
from wse import Limits, WseError, WseJSON, WseMsgpack
from wse.client.session import ClientOpening
from wse.core.hub.handshake import ServerOpening, State
from wse.types import ReadyState

JSON, MSGPACK = WseJSON(), WseMsgpack()
NO_LINGER = Limits(handler_linger=None)
"""Handlers end when a story lets them, and no timer waits for them."""

INTERNAL = ["~wse:hi", "~wse:challenge", "~wse:welcome", "~wse:call", "~wse:response", "~wse:response-err", "~wse:ext"]
INTERNAL += ["~wse:auth", "~wse:refused", "~wse:ask"]
PROCEDURES = ["echo", "late", "fails", "fails-late", "broken", "odd", "leave", "calls-back"]
TYPES = [*INTERNAL, *PROCEDURES, "chat", "leave-chat", "other", None, "", 0, 7, ["a"], {"a": 1}]
STAMPS = [None, None, 0, "", False, 1, 2, 3, "s", 1.0, True, [1], {"a": 1}]
SCALARS = [None, True, False, 0, 1, "", "a", 1.5, b"\x00", float("nan")]
KEYS = ["a", "identity", "meta"]
OFFERS = [
    {},
    {"auth": {}},
    {"auth": None, "limits": {"message_size": 1 << 20}},
    {"limits": {"message_size": "a"}},
    "auth",
]
CIDS = ["ann", "bob", 1, None, "", ["ann"], {"a": 1}]
HOSTILE = ['["chat"]', '["\\ud800",1,1]', "[]", "{}", '["echo",1,1,2,3]', "[" * 5000, b"\x91" * 5000]
DECISIONS = [
    *(("accept", cid) for cid in ("ann", "bob", ["x"], 0)),
    *(("quest", value) for value in (1, object())),
    ("welcome", object()),
    ("refuse",),
    ("raise",),
    ("return", 5),
]
TIMEOUTS = [None, 0, 1, 10]
CLOSES = [(1000, ""), (1001, "bye"), (1006, ""), (4000, "jump")]
PASSES = [0.5, 1, 5, 10]
IDENTIFY = ["accept", "accept", "wait", "refuse", "raise", "return", "twice"]
GENERATORS = [None, None, "quest", "wait", "refuse", "raise", "return", "quest-raise"]
RESPOND = [None, "answer", "wait", "raise", "broken"]
FINISH = [None, None, "pass", "raise", "refuse"]


class Actor:
    """The common part of both sides' stories: an application with procedures that behave in every way."""

    def __init__(self, side):
        self.side = side
        self.waiting = []
        self.tasks = []
        side.endpoint.channel.on("chat", lambda *args: None)
        side.endpoint.channel.on("leave-chat", lambda *args: self.leave(args))
        for name in PROCEDURES:
            side.endpoint.procedures.register(name, getattr(self, name.replace("-", "_")))

    def session_of(self, args):
        raise NotImplementedError

    def wait(self):
        future = self.side.scheduler.create_future()
        self.waiting.append(future)
        return future

    def echo(self, *args):
        return args[-1]

    async def late(self, *args):
        await self.wait()
        return args[-1]

    def fails(self, *args):
        raise ValueError(args[-1])

    async def fails_late(self, *args):
        await self.wait()
        raise WseError("app.late", {"object": object()})

    def broken(self, *args):
        return object()

    def odd(self, *args):
        raise WseError("app.odd", {"value": args[-1]})

    def leave(self, *args):
        self.session_of(args).close(1000, "left")
        return 1

    async def calls_back(self, *args):
        return await self.session_of(args).call("info", 1, None)

    def start_call(self, session, timeout):
        self.tasks.append(self.side.scheduler.start(session.call("info", 1, timeout)))

    def settle(self):
        """Let everything that waits for the test continue."""
        self.side.scheduler.run()
        while self.waiting:
            future = self.waiting.pop()
            if not future.done():
                future.set_result(None)
            self.side.scheduler.run()

    def check_nothing_is_left(self):
        scheduler = self.side.scheduler
        assert scheduler.timers == []
        assert scheduler.unfinished == []
        for task in self.tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                assert isinstance(error, WseError)
        scheduler.tasks.clear()
        self.tasks.clear()
        assert scheduler.unheard == []


def shown(value):
    """A value as text that distinguishes 1 from True, is equal for NaN, and contains no addresses of objects."""
    return re.sub(r" object at 0x[0-9a-f]+", "", repr(value))


class Answers:
    """Counts the calls that a peer makes and the answers that it gets; each call may have one answer."""

    def __init__(self, peer):
        self.peer = peer
        self._calls = Counter()
        self._answers = Counter()
        self._read = 0

    def hears(self, data):
        """Count a message that the session is about to receive."""
        try:
            _, _, stamp = self.peer.protocol.unpack(data)
        except Exception:
            return
        self._calls[shown(stamp)] += 1

    def check(self):
        types = self.peer.protocol.internal_types
        sent = self.peer.link.sent
        for data in sent[self._read :]:
            type_, _, stamp = self.peer.protocol.unpack(data)
            if type_ in (types.response, types.response_error):
                self._answers[shown(stamp)] += 1
                assert self._answers[shown(stamp)] <= self._calls[shown(stamp)], "a call is answered once"
        self._read = len(sent)


def check_link(peer):
    session, link = peer.session, peer.link
    assert len(link.closes) <= 1
    types = peer.protocol.internal_types
    for data in link.late:  # a link drops it; only answers to calls that were running may come too late
        assert peer.protocol.unpack(data)[0] in (types.response, types.response_error)
    if session.ended:
        assert session.pending_calls == 0
        assert link.closes or session.ready_state is ReadyState.CLOSED
    else:
        assert session.ready_state is ReadyState.OPEN


class ServerStory(Actor):
    """A server, up to four connections, and a choice for everything that the application may decide."""

    def __init__(self, identify, generator, conns_per_user, auth_timeout):
        self.identify_mode = identify
        self.generator_mode = generator
        super().__init__(
            ServerSide(
                self.identify,
                None if generator is None else self.generate,
                conns_per_user=conns_per_user,
                auth_timeout=auth_timeout,
                protocols=(JSON, MSGPACK),
                timeout=5,
                limits=NO_LINGER,
            )
        )
        self.peers = {}
        self.answers = {}
        self.closed = set()

    def session_of(self, args):
        while isinstance(args[0], tuple):
            (args,) = args
        return args[0]._session

    def identify(self, auth):
        match self.identify_mode:
            case "accept":
                auth.accept(auth.identity, auth.meta)
            case "refuse":
                auth.refuse()
            case "raise":
                raise RuntimeError("identify")
            case "return":
                return auth.identity
            case "twice":
                auth.accept("ann")
                auth.refuse()
                auth.accept("bob")
            case "wait":
                return self.decide_later(auth)
        return None

    def generate(self, auth):
        match self.generator_mode:
            case "quest":
                auth.quest(auth.identity)
            case "refuse":
                auth.refuse()
            case "raise":
                raise RuntimeError("generator")
            case "return":
                return 7
            case "quest-raise":
                auth.quest(1)
                raise RuntimeError("generator")
            case "wait":
                return self.decide_later(auth)
        return None

    async def decide_later(self, auth):
        match await self.wait():
            case ("accept", cid):
                auth.accept(cid)
            case ("welcome", welcome):
                auth.accept("ann", welcome)
            case ("refuse",):
                auth.refuse()
            case ("quest", value):
                auth.quest(value)
            case ("raise",):
                raise RuntimeError("late")
            case ("return", value):
                return value
        return None

    def peer(self, index):
        """The connection with this number; the odd ones speak MessagePack."""
        if index not in self.peers:
            self.peers[index] = self.side.open(str(index), MSGPACK if index % 2 else JSON)
            self.answers[index] = Answers(self.peers[index])
        return self.peers[index]

    def act(self, what, *args):
        match what, *args:
            case "say", index, message:
                peer = self.peer(index)
                try:
                    data = peer.protocol.pack(*message)
                except Exception:
                    return
                self.receive(index, data)
            case "raw", index, data:
                self.receive(index, data)
            case "hi", index, cid:
                self.receive(index, self.peer(index).protocol.pack("~wse:hi", {"identity": cid}))
            case "decide", decision:
                if self.waiting and not (future := self.waiting.pop(0)).done():
                    future.set_result(decision)
            case "call", index, timeout:
                self.start_call(self.peer(index).session, timeout)
            case "call-all", cid:
                if cid in self.side.hub.identities:
                    self.tasks.append(self.side.scheduler.start(self.side.hub.identities[cid].call("info")))
            case ("cancel",):
                if self.tasks:
                    self.tasks[-1].cancel()
            case "send", index, payload:
                with pytest.raises(WseError) if type(payload) is object else nullcontext():
                    self.peer(index).conn.send("news", payload)
            case "broadcast", payload:
                self.side.hub.broadcast("news", payload)
            case "drop", index:
                self.peer(index).conn.drop()
            case "drop-client", cid:
                self.side.hub.drop_client(cid, "", 1000)
            case "violated", index:
                self.peer(index).session.violated(1009, "too large")
            case "closed", index, close:
                self.close(index, close)
            case "pass", seconds:
                self.side.scheduler.advance(seconds)
            case "writable", index, writable:
                self.peer(index).session.writable(writable)
            case "drain", index:
                self.side.scheduler.start(self.peer(index).session.drain())
            case _:
                raise AssertionError(what)

    def receive(self, index, data):
        peer = self.peer(index)
        if index not in self.closed:
            deaf = peer.session.ended
            before = len(peer.link.sent) + len(peer.link.late), len(self.side.errors), len(self.side.log)
            self.answers[index].hears(data)
            peer.session.receive(data)
            if deaf:
                assert before == (len(peer.link.sent) + len(peer.link.late), len(self.side.errors), len(self.side.log))

    def close(self, index, close):
        peer = self.peer(index)
        if index not in self.closed:
            self.closed.add(index)
            peer.session.closed(*close)

    def check(self):
        hub = self.side.hub
        valid = set()
        for index, peer in self.peers.items():
            check_link(peer)
            self.answers[index].check()
            session = peer.session
            phase = session._phase
            if session.valid:
                valid.add(peer.conn)
                assert peer.conn.client is hub.identities[peer.conn.cid]
            elif not session.ended:
                assert isinstance(phase, ServerOpening)
                assert phase.state in (State.STRANGER, State.VALIDATING, State.CHALLENGED)
            assert (session in hub.sockets.open) == (index not in self.closed)
        assert set(hub.connections.values()) == valid
        assert {conn for identity in hub.identities.values() for conn in identity.conns.values()} == valid
        assert all(1 <= len(identity.conns) <= hub.conns_per_user for identity in hub.identities.values())

    def finish(self):
        for index in self.peers:
            self.close(index, (1006, ""))
        self.settle()
        self.check()
        hub = self.side.hub
        assert (hub.identities, hub.connections, hub.sockets.open) == ({}, {}, set())
        for opened, ended in (("joined", "left"), ("connected", "disconnected")):
            assert len(self.side.names(opened)) == len(self.side.names(ended))
        assert all(peer.session.pending_calls == 0 for peer in self.peers.values())
        self.check_nothing_is_left()


class ClientStory(Actor):
    def __init__(self, respond, finish, protocol):
        super().__init__(ClientSide(protocols=(protocol,), timeout=5, limits=NO_LINGER))
        handlers = {
            "answer": self.echo,
            "wait": self.respond_later,
            "raise": self.fails,
            "broken": self.broken,
        }
        finishers = {"pass": self.echo, "raise": self.fails, "refuse": self.odd}
        self.peer = self.side.open(handlers.get(respond), finishers.get(finish))
        self.answers = Answers(self.peer)
        self.closed = False

    def session_of(self, args):
        return self.peer.session

    async def respond_later(self, quest):
        await self.wait()
        return quest

    def act(self, what, *args):
        session = self.peer.session
        match what, *args:
            case "say", message:
                try:
                    data = self.peer.protocol.pack(*message)
                except Exception:
                    return
                self.receive(data)
            case "raw", data:
                self.receive(data)
            case "welcome", payload:
                self.receive(self.peer.protocol.pack("~wse:welcome", payload))
            case ("settle",):
                self.settle()
            case "call", timeout:
                self.start_call(session, timeout)
            case ("cancel",):
                if self.tasks:
                    self.tasks[-1].cancel()
            case "send", payload:
                session.send("news", payload)
            case ("close",):
                session.close(1000, "wse.by-client")
            case ("violated",):
                session.violated(1007, "no UTF-8")
            case "closed", close:
                self.close(close)
            case "pass", seconds:
                self.side.scheduler.advance(seconds)
            case _:
                raise AssertionError(what)

    def receive(self, data):
        if not self.closed:
            self.answers.hears(data)
            self.peer.session.receive(data)

    def close(self, close):
        if not self.closed:
            self.closed = True
            self.peer.session.closed(*close)

    def check(self):
        check_link(self.peer)
        self.answers.check()
        session = self.peer.session
        assert session.valid or session.ended or isinstance(session._phase, ClientOpening)
        assert len(self.side.names("welcomed")) <= 1
        assert len(self.side.names("ended")) == session.ended

    def finish(self):
        self.close((1006, ""))
        self.settle()
        self.check()
        assert self.peer.session.ended
        self.check_nothing_is_left()
