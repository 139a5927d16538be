"""A server whose clients come back: honest ones, thieves, and those that send anything; with the invariants.

The fuzz target `resume` runs it.
"""

from __future__ import annotations

from support.core import ServerSide
from support.streams import OFFER
from wse.core.limits import Limits, Overflow
from wse.core.resume import Resume
from wse.errors import ErrorCode, WseError

USERS = ("ann", "eve")
VALUES = [0, 1, 2, 3, 63, 64, 65, 1000, 2**53 - 1, 2**53, 2**63, -1, 1.0, 1.5, True, None, "1", [], {}]
STREAMING = [
    ("~wse:call", ["numbers", None, {"n": 1}]),
    ("~wse:call", ["numbers", None, {"n": 256}]),
    ("~wse:call", ["total", None, {"up": 1}]),
    ("~wse:more", 5),
    ("~wse:put", 1),
    ("~wse:put", "x" * 1000),
    ("~wse:end", None),
    ("~wse:cancel", None),
]
WINDOWS = [None, 60, 1, 0, -1, 10**9, "60", True, float("inf")]
CLOSES = [(1000, ""), (1001, "bye"), (1005, ""), (1006, ""), (1011, ""), (4000, "jump"), (4001, "")]


class ReturningStory:
    """Two users on up to six sockets. Each message of the server names the user that it is for."""

    def __init__(self):
        self.side = ServerSide(
            lambda auth: auth.accept(auth.identity) if auth.identity in USERS else auth.refuse(),
            resume=Resume(window=60, bytes=4000, messages=30, detached=2, retained=8000),
            conns_per_user=2,
            overflow={"latest": Overflow.LATEST},
            limits=Limits(handler_linger=None, message_rate=50),
            timeout=5,
        )
        self.begun = self.ended = 0
        register = self.side.endpoint.procedures.register
        register("echo", lambda conn, payload: payload)
        register("numbers", self.numbers)
        register("total", self.total, upload=True)
        self.peers = []
        self.users = {}  # by link, the user that the socket belongs to
        self.closed = set()  # links
        self.tickets = []  # of all sessions that there ever were
        self.calls = []

    async def numbers(self, conn, payload):
        self.begun += 1
        try:
            for n in range(100):
                yield n
        finally:
            self.ended += 1

    async def total(self, conn, payload, items):
        return len([item async for item in items])

    def peer(self, number):
        while len(self.peers) <= number % 6:
            self.peers.append(self.side.open())
        return self.peers[number % 6]

    def replace(self, number):
        """A new socket in the place of one that is closed."""
        peer = self.peer(number)
        if peer.link in self.closed:
            peer = self.peers[number % 6] = self.side.open()
        return peer

    def hi(self, number, user, offer):
        self.replace(number)
        self.say(number, "~wse:hi", {"identity": user, "ext": {**OFFER, "resume": offer}})

    def say(self, number, type_, payload=None, stamp=None):
        peer = self.peer(number)
        if peer.link in self.closed:
            return
        if type_ == "~wse:hi" and isinstance(payload, dict):
            self.users.setdefault(peer.link, payload.get("identity"))
        try:
            data = peer.protocol.pack(type_, payload, stamp)
        except Exception:
            return
        peer.receiver.receive(data)
        self.side.scheduler.run()
        self.read(peer)

    def read(self, peer):
        """What a socket has got belongs to its user."""
        user = self.users.get(peer.link)
        for type_, payload, _ in peer.heard:
            if type_ == "~wse:ext" and "resume" in payload and "key" in payload["resume"]:
                answer = payload["resume"]
                self.tickets.append((answer["id"], answer["key"]))
            elif type_ in ("news", "latest", "ask"):
                assert payload[0] == user, f"{user} has got what is for {payload[0]}"

    def gone(self, number, close):
        peer = self.peer(number)
        if peer.link not in self.closed:
            self.closed.add(peer.link)
            peer.receiver.closed(*close)

    def send(self, user, type_, size):
        for session in self.side.hub.sessions_of(user):
            session.send(type_, [user, "x" * size])

    def call(self, user):
        for session in self.side.hub.sessions_of(user)[:1]:
            self.calls.append(self.side.scheduler.start(session.call("ask", [user], 5)))

    def check(self):
        hub = self.side.hub
        resumption = hub.resumption
        charged = 0
        for peer in self.peers:
            self.read(peer)
        for conn in hub.connections.values():
            session = conn._session
            assert session.valid
            ledger = session.ledger
            if ledger is None:
                assert session in hub.sockets.open
                continue
            assert ledger.base >= 1
            assert ledger.base - 1 <= ledger.out
            assert ledger.heard <= ledger.out
            assert ledger.got >= 0
            assert ledger.size <= 4000 or len(ledger.ring) == 1
            assert len(ledger.ring) <= 31
            assert ledger.is_attached == (session in hub.sockets.open) == (session not in resumption.detached)
            charged += ledger._charged
        assert charged == resumption.retention.used
        assert resumption.retention.used <= 8000 + 4000
        assert len(resumption.detached) <= 2
        assert len(resumption._tombstones) <= 2
        assert all(len(identity.conns) <= 2 for identity in hub.identities.values())
        assert {conn for identity in hub.identities.values() for conn in identity._devices} == set(
            hub.connections.values()
        )
        assert all(type(error) is WseError or error.code == ErrorCode.LIMIT_EXCEEDED for error, _ in self.side.errors)
        self.side.errors.clear()

    def finish(self):
        for number in range(len(self.peers)):
            self.gone(number, (1006, ""))
        self.side.scheduler.advance(1000)
        self.check()
        hub = self.side.hub
        assert (hub.identities, hub.connections, hub.sockets.open, hub.resumption.detached) == ({}, {}, set(), {})
        assert hub.sockets.unauthenticated == 0
        assert hub.resumption.retention.used == 0
        assert len(self.side.names("connected")) == len(self.side.names("disconnected"))
        assert len(self.side.names("joined")) == len(self.side.names("left"))
        assert self.begun == self.ended
        assert self.side.scheduler.timers == []
        assert self.side.scheduler.unfinished == []
        for call in self.calls:
            assert isinstance(call.exception(), WseError) or call.result() is not NotImplemented
        assert self.side.scheduler.unheard == []
