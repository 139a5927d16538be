"""The surroundings of the core as plain objects: a link that records, and a clock that tests move.

There is no event loop here. `FakeScheduler` replaces it as far as asyncio's futures and tasks need one, so futures,
coroutines and cancellation are real, and nothing happens before the test lets it happen.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from typing import ClassVar

from wse.client.session import ClientOpening, ClientSession
from wse.core.heartbeat import Heartbeat
from wse.core.hub.hub import Hub
from wse.core.hub.single_node import SingleNode
from wse.core.limits import Limits
from wse.core.session.endpoint import Endpoint
from wse.protocols.json import WseJSON


class FakeTimer:
    def __init__(self, callback, args, due=0.0):
        self.callback = callback
        self.args = args
        self.due = due
        self.cancelled = False

    def cancel(self):
        self.cancelled = True
        self.callback, self.args = None, ()  # as asyncio does: it holds nothing


class FakeScheduler:
    """A `wse.core.ports.scheduling.Scheduler` whose clock and turns the test controls."""

    made: ClassVar[list[FakeScheduler]] = []  # by the test that runs
    thread = None

    def __init__(self):
        self.made.append(self)
        self.now = 1000.0
        self.unheard = []  # errors that asyncio would log: exceptions that were never retrieved
        self.tasks = []
        self._order = itertools.count()
        self._soon = deque()
        self._timers = []

    def time(self):
        return self.now

    def call_soon(self, callback, *args, context=None):
        timer = FakeTimer(callback if context is None else lambda *a: context.run(callback, *a), args)
        self._soon.append(timer)
        return timer

    def post(self, callback, *args):
        self.call_soon(callback, *args)

    def call_later(self, delay, callback, *args):
        timer = FakeTimer(callback, args, self.now + delay)
        heapq.heappush(self._timers, (timer.due, next(self._order), timer))
        return timer

    def create_future(self):
        return asyncio.Future(loop=self)

    def spawn(self, coroutine):
        self.start(coroutine)

    def adopt(self, task):
        assert task in self.tasks

    def start(self, coroutine):
        """Run a coroutine as far as it goes now; returns its task."""
        task = asyncio.Task(coroutine, loop=self)
        self.tasks.append(task)
        self.run()
        return task

    def run(self):
        """Turn until nothing more happens at this instant."""
        if asyncio.current_task(self) is not None:
            return  # it has spawned another task, whose turn comes when this one waits
        outer = asyncio._get_running_loop()
        asyncio._set_running_loop(self)
        try:
            while self._soon:
                timer = self._soon.popleft()
                if not timer.cancelled:
                    timer.callback(*timer.args)
        finally:
            asyncio._set_running_loop(outer)

    def advance(self, seconds):
        """Move the clock, and run each timer at its own time."""
        end = self.now + seconds
        self.run()
        while self._timers and self._timers[0][0] <= end:
            due, order, timer = heapq.heappop(self._timers)
            assert order < 100_000, "a timer sets itself again for ever"
            if not timer.cancelled:
                self.now = max(self.now, due)
                timer.callback(*timer.args)
                self.run()
        self.now = end

    @property
    def timers(self):
        """The times at which the active timers will fire."""
        return sorted(timer.due for _, _, timer in self._timers if not timer.cancelled)

    @property
    def unfinished(self):
        return [task for task in self.tasks if not task.done()]

    @property
    def unseen(self):
        """The exceptions with which tasks ended and that were never retrieved."""
        return [task.exception() for task in self.tasks if task.done() and task._log_traceback]

    # The methods of a loop that asyncio's futures and tasks use.

    def get_debug(self):
        return False

    def call_exception_handler(self, context):
        self.unheard.append(context)


class FakeLink:
    """A `wse.core.ports.transport.PingingLink` that records what it is given."""

    pings = True

    def __init__(self, log=None, name=""):
        self.sent = []
        self.late = []  # written after the close: a link drops it
        self.closes = []
        self.aborted = False
        self.buffered = 0
        self.remote_addr = "192.0.2.1"
        self.shared = []
        self.heard = True
        self.pings_sent = 0
        self.silent_for = float("inf")
        self.receiver = None  # the session that it was opened with, until another one is attached
        self._log = log
        self._name = name

    def attach(self, session):
        self.receiver = session

    def write(self, data):
        if self.closes or self.aborted:
            self.late.append(data)
            return
        self.sent.append(data)
        if self._log is not None:
            self._log.append(("write", self._name, data))

    def write_utf8(self, data):
        assert isinstance(data, bytes)
        self.write(data.decode())

    def write_shared(self, packed):
        self.shared.append(packed)
        self.write(packed.message)

    def close(self, code, reason):
        self.closes.append((code, reason))
        if self._log is not None:
            self._log.append(("close", self._name, code, str(reason)))

    def abort(self):
        self.aborted = True

    def ping(self):
        self.pings_sent += 1

    def silence(self):
        return self.silent_for


class FakeRequest:
    def __init__(self, remote_addr="192.0.2.1"):
        self.path = "/"
        self.query = {}
        self.headers = {}
        self.cookies = {}
        self.native = None
        self.remote_addr = remote_addr


class Peer:
    """The other end of a session: it sends messages, and keeps those that it receives."""

    def __init__(self, link, session):
        self.link = link
        self.session = session
        self._read = 0

    @property
    def protocol(self):
        return self.session.protocol

    @property
    def receiver(self):
        """Who hears what this end sends."""
        return self.link.receiver or self.session

    def say(self, type, payload=None, stamp=None):
        self.receiver.receive(self.protocol.pack(type, payload, stamp))

    def vanish(self, code=1006, reason=""):
        """The socket is gone."""
        self.receiver.closed(code, reason)

    @property
    def heard(self):
        """The messages that came since the last call."""
        new = self.link.sent[self._read :]
        self._read = len(self.link.sent)
        return [tuple(self.protocol.unpack(data)) for data in new]

    @property
    def closed_with(self):
        """How the session closed its socket: one close, or None."""
        assert len(self.link.closes) <= 1, "a session closes its socket once"
        return (self.link.closes[0][0], str(self.link.closes[0][1])) if self.link.closes else None

    @property
    def conn(self):
        return self.session.conn

    def call(self, name, payload=None, timeout=None):
        """Call the peer from the session's side; returns the task of the call."""
        return self.session.endpoint.scheduler.start(self.session.call(name, payload, timeout))


class Side:
    """The common part of a server and a client under test: an endpoint, a scheduler, and a log."""

    takes: tuple[str, ...] = ()

    def __init__(self, *, protocols=None, timeout=10.0, limits=None, **options):
        self.scheduler = self._make_scheduler()
        self.errors = []
        self.log = []
        self.endpoint = Endpoint(
            self.takes,
            protocols=protocols or (WseJSON(),),
            scheduler=self.scheduler,
            timeout=timeout,
            limits=limits or Limits(),
            report=self._report,
            **options,
        )

    def _make_scheduler(self):
        return FakeScheduler()

    def _report(self, error, session):
        self.errors.append((error, session))

    @property
    def error(self):
        """The only error that was reported."""
        assert len(self.errors) == 1, self.errors
        return self.errors[0][0]

    def names(self, *kinds):
        """The log's entries of these kinds."""
        return [entry for entry in self.log if entry[0] in kinds]


def accept_identity(auth):
    """An identify handler: the identity is the user's id."""
    auth.accept(auth.identity, "welcome")


class ServerSide(Side):
    """A hub with connections whose other ends the test controls."""

    takes = ("conn",)

    def __init__(
        self,
        identify=accept_identity,
        generator=None,
        *,
        conns_per_user=1,
        leave_grace=0.0,
        auth_timeout=20.0,
        heartbeat=None,
        resume=None,
        **options,
    ):
        super().__init__(**options)
        heartbeat = heartbeat or Heartbeat(interval=0)
        self.hub = Hub(
            self.endpoint,
            conns_per_user=conns_per_user,
            leave_grace=leave_grace,
            auth_timeout=auth_timeout,
            heartbeat=heartbeat,
            clock=lambda: self.scheduler.now,
            resume=resume,
        )
        self.hub.network = SingleNode(self.hub)
        self.hub.identify = identify
        self.hub.generator = generator
        self.names_of = {}
        self.request_from = "192.0.2.1"
        self.hub.joined(lambda identity, meta: self.log.append(("joined", identity.cid, meta)))
        self.hub.left(lambda identity, code, reason: self.log.append(("left", identity.cid, code, str(reason))))
        self.hub.connected(lambda conn: self.log.append(("connected", conn.cid)))
        self.hub.disconnected(lambda conn, code, reason: self.log.append(("disconnected", conn.cid, code, str(reason))))
        self.hub.detached(lambda conn, code, reason: self.log.append(("detached", conn.cid, code, str(reason))))
        self.hub.resumed(lambda conn: self.log.append(("resumed", conn.cid)))
        self.hub.ignored(lambda conn, *message: self.log.append(("ignored", conn.cid, *message)))

    def open(self, name="", protocol=None):
        """A socket opens; its client has not sent anything."""
        link = FakeLink(self.log, name)
        return Peer(link, self.hub.open(link, FakeRequest(self.request_from), protocol or self.endpoint.protocols[0]))

    def join(self, cid="ann", name="", protocol=None):
        """A client that has been accepted and has read its welcome."""
        peer = self.open(name, protocol)
        peer.say(peer.protocol.internal_types.hi, {"identity": cid, "meta": {}})
        self.scheduler.run()
        assert peer.session.valid
        assert peer.heard[-1][0] == peer.protocol.internal_types.welcome
        return peer


class Owner:
    """A client, as its session sees it, that only records its calls."""

    def __init__(self, log):
        self.log = log

    def session_welcomed(self, session, welcome):
        self.log.append(("welcomed", welcome))
        session.release_input()

    def session_failed(self, session, error):
        self.log.append(("failed", error))

    def session_ended(self, session, code, reason):
        self.log.append(("ended", code, str(reason)))

    def socket_closed(self, session):
        self.log.append(("socket closed",))

    def identity_asked(self, session):
        self.log.append(("identity asked",))

    def message_ignored(self, type, payload, stamp):
        self.log.append(("ignored", type, payload, stamp))


class ClientSide(Side):
    """A client's session whose server the test plays."""

    def open(self, respond=None, finish=None):
        link = FakeLink(self.log)
        owner = Owner(self.log)
        session = ClientSession(owner, self.endpoint, link, self.endpoint.protocols[0])
        session.enter(ClientOpening(session, owner, respond, finish))
        return Peer(link, session)

    def join(self):
        """A session that has been welcomed."""
        peer = self.open()
        peer.say(peer.protocol.internal_types.welcome, "welcome")
        assert peer.session.valid
        return peer
