"""A session over several connections as a model: a real client's session, a real server, and a network between them.

What is real: the `Hub` with its `Resumption`, both sides' sessions with their `Ledger`, and the client's `Resumption`.
Modelled is what lies between: every message waits in its connection until an action delivers it, each end notices the
loss of a connection at its own time or never, and the client opens another one whenever it likes.

    client, server      an application sends the next message
    up, down            the next message of a connection arrives
    lose client/server  an end notices that its connection is gone; what was on its way to it is lost
    open                the client opens a connection and says hi
    tick                the sweep of the acks comes, after two seconds
    expire              so much time passes that the window ends

Invariants: what a side has heard in a session is the beginning of what the other has sent in it, each message once;
when everything that can happen has happened, both have heard everything, unless the client was told that the session
was lost; and what it was told then is exactly what the server has not heard.
"""

from __future__ import annotations

import itertools
import secrets

from support.core import ClientSide, FakeRequest, ServerSide
from wse.client.resumption import Resumption
from wse.client.session import ClientOpening, ClientSession
from wse.core.closing import is_retried
from wse.core.resume import Resume
from wse.protocols.json import WseJSON

WINDOW = 60
JSON = WseJSON()


class End:
    """One end of a connection: a `Link` whose writes wait for the model."""

    pings = False
    buffered = 0
    remote_addr = "192.0.2.1"

    def __init__(self):
        self.inbox = []  # what is on its way to this end
        self.other: End = self
        self.receiver = None
        self.is_closing = False  # it writes no more
        self.is_open = True  # its receiver has not been told that it is closed

    def write(self, data):
        if not self.is_closing:
            self.other.inbox.append(data)

    def write_utf8(self, data):
        self.write(data.decode())

    def write_shared(self, packed):
        self.write(packed.message)

    def close(self, code, reason):
        if not self.is_closing:
            self.other.inbox.append((code, str(reason)))
            self.is_closing = True

    def abort(self):
        self.is_closing = True

    def attach(self, receiver):
        self.receiver = receiver

    def deliver(self):
        """The next message arrives."""
        message = self.inbox.pop(0)
        if isinstance(message, tuple):
            self.lose(*message)
        else:
            self.receiver.receive(message)

    def lose(self, code=1006, reason=""):
        self.inbox.clear()
        self.is_open = False
        self.is_closing = True
        self.receiver.closed(code, reason)

    def state(self):
        return (self.is_open, self.is_closing, tuple(self.inbox))


class Client:
    """A client that does what the model says."""

    def __init__(self, model, settings, **options):
        self.model = model
        self.side = ClientSide(protocols=(JSON,), **options)
        self.endpoint = self.side.endpoint
        self.resumption = Resumption(self.endpoint, settings, self.send)
        self.endpoint.extensions.add(self.resumption)
        self.endpoint.channel.on("m", self.hear)
        self.session = None  # the present one, with a connection or without
        self.opening = None
        self.sent = {}  # by the id of the session
        self.heard = {}
        self.losses = []
        self.resumed = 0
        self.id = None

    def hear(self, n):
        self.heard[self.id].append(n)

    def send(self, type_, n, key=None):
        self.session.send(type_, n)
        self.sent[self.id].append(n)

    def open(self):
        end = self.model.connect()
        session = self.opening = ClientSession(self, self.endpoint, end, self.endpoint.protocols[0])
        end.receiver = session
        session.enter(ClientOpening(session, self, None, None))
        offers = self.endpoint.extensions.offers(session.protocol.extensions)
        session.write("~wse:hi", {"identity": "ann", "ext": offers})

    # The owner of its sessions.

    def session_welcomed(self, session, welcome):
        if self.resumption.is_stale(session):
            session.close(1000, "")
            return
        before = self.id
        going_on, loss = self.resumption.welcomed(session)
        self.session, self.opening = going_on or session, None
        self.resumed += going_on is not None
        if going_on is None:
            self.id = session.ticket[0]
            self.sent[self.id], self.heard[self.id] = [], []
        if loss is not None:
            self.losses.append((before, loss))
        session.release_input()

    def session_detached(self, session, code, reason):
        self.resumption.keep(session, code, reason)
        if not is_retried(code):
            self.session = None
            self.losses.append((self.id, self.resumption.lose("ended")))

    def session_ended(self, session, code, reason):
        if session is self.opening:
            self.opening = None
        elif session is self.session:
            self.session = None
            self.resumption.forget()
            self.losses.append((self.id, self.resumption.loss(session, "overflow")))

    def session_failed(self, session, error):
        raise error

    def socket_closed(self, session): ...

    def message_ignored(self, *message):
        raise AssertionError(message)

    @property
    def has_link(self):
        session = self.session
        return self.opening is not None or (session is not None and session.ledger.is_attached)


class ModelSession:
    """The model; see the module.

    Args:
        messages: How many each side sends.
        links: How many connections the client opens.
        ticks: How often the acks are swept.
        expires: Whether the window may end.
        settings: How much is kept at both sides.
        options: Of both sides.
    """

    def __init__(self, *, messages, links, ticks=0, expires=False, settings=None, **options):
        settings = settings or Resume(window=WINDOW)
        names = itertools.count()  # of sessions, and their keys, the same for the same steps
        secrets.token_hex = secrets.token_urlsafe = lambda size: f"name {next(names)}"
        self.side = ServerSide(resume=settings, conns_per_user=9, protocols=(JSON,), **options)
        self.links = []  # the ends of the client
        self.left = {"client": messages, "server": messages, "open": links, "tick": ticks, "expire": int(expires)}
        self.heard = {}  # by the id of the session, at the server
        self.sent = {}
        self.side.endpoint.channel.on("m", lambda conn, n: self.heard.setdefault(conn.conn_id, []).append(n))
        self.client = Client(self, settings, **options)
        self.take(("open",))

    def connect(self):
        ours, theirs = End(), End()
        ours.other, theirs.other = theirs, ours
        theirs.receiver = self.side.hub.open(theirs, FakeRequest(), self.side.endpoint.protocols[0])
        self.links.append(ours)
        return ours

    @property
    def conn(self):
        """The session at the server, if there is one."""
        conn = self.side.hub.connections.get(self.client.id)
        return None if conn is None or conn._session.ended else conn

    def actions(self):
        found = []
        client = self.client
        if self.left["client"] and client.session is not None:
            found.append(("client",))
        if self.left["server"] and self.conn is not None:
            found.append(("server",))
        for number, end in enumerate(self.links):
            if end.is_open and end.inbox:
                found.append(("down", number))
            if end.other.is_open and end.other.inbox:
                found.append(("up", number))
            if end.is_open:
                found.append(("lose client", number))
            if end.other.is_open:
                found.append(("lose server", number))
        if self.left["open"] and not client.has_link:
            found.append(("open",))
        if self.left["tick"]:
            found.append(("tick",))
        if self.left["expire"] and self.conn is not None and not self.conn.attached:
            found.append(("expire",))
        return found

    def take(self, action):
        self._take(*action)
        for side in (self.client.side, self.side):
            side.scheduler.run()

    def _take(self, what, number=0):
        if what in self.left:
            self.left[what] -= 1
        client, server = self.client, self.side
        match what:
            case "client":
                client.send("m", f"c{self.left[what]}")
            case "server":
                self.conn.send("m", f"s{self.left[what]}")
                self.sent.setdefault(self.conn.conn_id, []).append(f"s{self.left[what]}")
            case "up":
                self.links[number].other.deliver()
            case "down":
                self.links[number].deliver()
            case "lose client":
                self.links[number].lose()
            case "lose server":
                self.links[number].other.lose()
            case "open":
                client.open()
            case "tick":
                for side in (client.side, server):
                    side.scheduler.advance(2.1)
            case "expire":
                for side in (client.side, server):
                    side.scheduler.advance(WINDOW + 1)

    def state(self):
        client = self.client
        sessions = [session for session in (client.session, client.opening) if session is not None]
        sessions += [conn._session for conn in self.side.hub.connections.values()]
        return (
            tuple(map(_books, sessions)),
            client.id,
            client.session is not None,
            _items(client.sent),
            _items(client.heard),
            _items(self.heard),
            _items(self.sent),
            tuple((before, loss.why, str(loss.uncertain), str(loss.unsent)) for before, loss in client.losses),
            client.resumed,
            tuple((end.state(), end.other.state(), _told(end), _told(end.other)) for end in self.links),
            tuple(self.left.values()),
            self.side.scheduler.now,
            tuple(conn.conn_id for conn in self.side.hub.connections.values() if not conn.attached),
        )

    # What must hold.

    def problems(self):
        found = list(self._differences(complete=False))
        found += [f"reported: {error!r}" for error, _ in (*self.side.errors, *self.client.side.errors)]
        if not found:
            self._finish()
            found += self._differences(complete=True)
            found += [f"reported: {error!r}" for error, _ in (*self.side.errors, *self.client.side.errors)]
        return found

    def _finish(self):
        """Let everything happen that still can, without another fault."""
        for _ in range(100):
            if not self.client.has_link:
                self.take(("open",))
            moves = [action for action in self.actions() if action[0] in ("up", "down")]
            if moves:
                self.take(moves[-1])
                continue
            broken = [number for number, end in enumerate(self.links) if end.is_open and not end.other.is_open]
            if not broken:
                break
            self.take(("lose client", broken[0]))
        else:
            raise AssertionError("it never ends")

    def _differences(self, complete):
        client = self.client
        lost = dict(client.losses)
        for id_, sent in client.sent.items():
            heard = self.heard.get(id_, [])
            if heard != sent[: len(heard)]:
                yield f"the server has heard {heard} of {sent}"
            if complete and id_ == client.id and heard != sent:
                yield f"the server has heard only {heard} of {sent}"
            if id_ in lost:
                yield from self._check_loss(lost[id_], sent, heard)
            elif id_ != client.id:
                yield f"nobody says that {id_} was lost"
        for id_, heard in client.heard.items():
            sent = self.sent.get(id_, [])
            if heard != sent[: len(heard)]:
                yield f"the client has heard {heard} of {sent}"
            if complete and id_ == client.id and self.conn is not None and heard != sent:
                yield f"the client has heard only {heard} of {sent}"
        for session in (client.session, None if self.conn is None else self.conn._session):
            ledger = None if session is None else session.ledger
            if ledger is not None and ledger.size != sum(56 + len(_data(message)) for message in ledger.ring):
                yield f"the size of a ring is wrong: {ledger.size}"

    @staticmethod
    def _check_loss(loss, sent, heard):
        """What a client is told is all that the server has not heard, but for what was no longer kept."""
        missing = sent[len(heard) :]
        told = [n for kind, n in (*loss.uncertain, *loss.unsent) if kind == "m"]
        if told != sent[len(sent) - len(told) :]:
            yield f"{told} was told, and {sent} sent"
        if len(missing) - len(told) > loss.forgotten:
            yield f"{missing} was lost, and only {told} is known"
        if len(told) > len(missing) and not loss.uncertain:
            yield f"{missing} was lost, and {told} is said to be"
        if loss.why in ("expired", "gap") and loss.uncertain:
            yield f"the server has said what it has had, and {loss.uncertain} is uncertain"


def _data(message):
    return "" if message is None else getattr(message, "data", message)


def _books(session):
    ledger = session.ledger
    if ledger is None:
        return (session.ended, session.valid)
    return (
        session.ended,
        ledger.is_attached,
        ledger.got,
        ledger._acked,
        ledger.ack_at,
        ledger.base,
        ledger.heard,
        tuple(str(_data(message)) for message in ledger.ring),
        () if session._outbox is None else tuple(str(packed.data) for packed in session._outbox.messages),
        ledger._first,
        ledger._returns,
        ledger._is_short,
        ledger._attached_at,
    )


def _items(messages):
    return tuple((name, tuple(some)) for name, some in messages.items())


def _told(end):
    """Who hears what arrives at an end."""
    return type(end.receiver).__name__
