"""What is fuzzed. A target takes bytes and raises for a fault: an exception that escapes, or a rule that is broken."""

from __future__ import annotations

import json
import random
import zlib
from pathlib import Path

import msgspec

from fuzz.source import Source
from support import calling, returning, stories
from support.calling import CallingStory
from support.returning import ReturningStory
from support.stories import JSON, MSGPACK, ClientStory, ServerStory, shown
from wse import Compression
from wse.transports.picows.assembly import Assembly, ViolationError

VECTORS = Path(__file__).parents[2] / "spec" / "vectors"
STEPS = 40  # of one story; more finds nothing that several stories do not

NO_MESSAGE = (msgspec.DecodeError, ValueError, TypeError, RecursionError)
"""What `unpack` raises for bytes that are no message."""


def unpack(data):
    """Bytes are a message or fail; a message that was read can be written, and is then read as the same."""
    source = Source(data)
    protocol, form = source.pick([JSON, MSGPACK]), source.pick([bytes, memoryview, None])
    raw = source.rest()
    check_unpack(protocol, raw.decode(errors="replace") if form is None else form(raw))


def check_unpack(protocol, data):
    try:
        message = protocol.unpack(data)
    except NO_MESSAGE:
        try:
            protocol.codec.decode(data)
        except NO_MESSAGE:
            return
        raise AssertionError("the short way accepts what the long one does not") from None
    assert type(message) is tuple
    assert len(message) == 3
    try:
        short = tuple(protocol.codec.decode(data))
    except NO_MESSAGE:
        pass  # it is for what most peers send, not for all
    else:
        assert shown(short) == shown(message), "the short way reads another message"
    packed = protocol.pack(*message)
    again = protocol.unpack(packed)
    assert shown(again) == shown(message), "a round trip changes the message"
    assert protocol.pack(*again) == packed, "a round trip changes the message"
    assert shown(tuple(protocol.codec.decode(packed))) == shown(message), "the short way reads another message"


def server(data):
    """A server with up to four connections, in every state of the handshake (see `support.stories`)."""
    source = Source(data)
    story = ServerStory(
        source.pick(stories.IDENTIFY), source.pick(stories.GENERATORS), 1 + source.byte() % 2, source.pick([0, 5])
    )
    if source.byte() % 2:
        for index in range(4):
            story.act("hi", index, ("ann", "bob")[index // 2])
    tell(story, source, server_action)


def client(data):
    """A client's session, before its welcome and after it."""
    source = Source(data)
    story = ClientStory(source.pick(stories.RESPOND), source.pick(stories.FINISH), source.pick([JSON, MSGPACK]))
    if source.byte() % 2:
        story.act("welcome", None)
    tell(story, source, client_action)


def tell(story, source, action):
    for _ in range(STEPS):
        if not source.left:
            break
        story.act(*action(source))
        story.side.scheduler.run()
        story.check()
    story.finish()


def server_action(source):
    what, peer = source.byte() % 20, source.byte() % 4
    match what:
        case 0 | 1 | 2 | 3 | 4:
            return "say", peer, source.message()
        case 5 | 6:
            return "raw", peer, source.raw()
        case 7:
            return "hi", peer, source.pick(["ann", "bob"])
        case 8:
            return "decide", source.pick(stories.DECISIONS)
        case 9 | 10:
            return "call", peer, source.pick(stories.TIMEOUTS)
        case 11:
            return "call-all", source.pick(["ann", "bob"])
        case 12:
            return ("cancel",)
        case 13:
            return "send", peer, source.value()
        case 14:
            return "broadcast", source.value()
        case 15:
            return source.pick([("drop", peer), ("violated", peer)])
        case 16:
            return "drop-client", source.pick(["ann", "bob"])
        case 17:
            return "closed", peer, source.pick(stories.CLOSES)
        case 18:
            return "pass", source.pick(stories.PASSES)
        case _:
            return source.pick([("writable", peer, True), ("writable", peer, False), ("drain", peer)])


def client_action(source):
    match source.byte() % 14:
        case 0 | 1 | 2 | 3:
            return "say", source.message()
        case 4 | 5:
            return "raw", source.raw()
        case 6:
            return "welcome", source.value()
        case 7:
            return ("settle",)
        case 8 | 9:
            return "call", source.pick(stories.TIMEOUTS)
        case 10:
            return source.pick([("cancel",), ("close",), ("violated",)])
        case 11:
            return "send", source.value()
        case 12:
            return "closed", source.pick(stories.CLOSES)
        case _:
            return "pass", source.pick(stories.PASSES)


def resume(data):
    """A server whose clients come back, with claims that fit and with any others (see `support.returning`)."""
    source = Source(data)
    story = ReturningStory()
    for number, user in enumerate(returning.USERS):
        story.hi(number, user, {})
    for _ in range(STEPS):
        if not source.left:
            break
        resume_action(story, source)
        story.side.scheduler.run()
        story.check()
    story.finish()


def resume_action(story, source):
    what, number, user = source.byte() % 16, source.byte() % 6, source.pick(returning.USERS)
    match what:
        case 0 | 1 | 2:
            id_, key = source.pick(story.tickets)
            claim = {"id": id_, "key": key, "got": source.pick(returning.VALUES)}
            claim["sent"] = [source.pick(returning.VALUES), source.pick(returning.VALUES)]
            story.hi(number, user, claim)
        case 3 | 4 | 5:
            story.hi(number, user, honest_claim(story, source))
        case 6:
            offer = {"window": source.pick(returning.WINDOWS), source.pick(["id", "key", "sent", "x"]): source.value()}
            story.hi(number, user, source.pick([offer, source.value()]))
        case 7 | 8:
            story.say(number, source.pick(["~wse:ack", "~wse:gap", "~wse:ask"]), source.pick(returning.VALUES))
        case 9:
            story.say(number, *source.message())
        case 10 | 11:
            story.send(user, source.pick(["news", "latest"]), source.pick([0, 10, 500, 5000]))
        case 12:
            story.gone(number, source.pick(returning.CLOSES))
        case 13:
            if source.byte() % 3:
                story.say(number, *source.pick(returning.STREAMING), source.pick([1, 2, 3, 4]))
            else:
                story.say(number, source.pick(["chat", "echo"]), 1, source.pick([None, 1]))
        case 14:
            story.side.scheduler.advance(source.pick([1, 2.5, 6, 61]))
        case _:
            match source.byte() % 4:
                case 0:
                    story.call(user)
                case 1:
                    story.side.hub.drop_client(user, "", 1000)
                case _:
                    peer = story.peer(number)
                    if peer.link not in story.closed:
                        peer.receiver.writable(bool(source.byte() % 2))


def honest_claim(story, source):
    """The claim of a client that has kept its books, for a session that may still be there."""
    id_, key = source.pick(story.tickets)
    conn = story.side.hub.connections.get(id_)
    ledger = None if conn is None else conn._session.ledger
    if ledger is None:
        return {"id": id_, "key": key, "got": 0, "sent": [1, 0]}
    got = ledger.base - 1 + source.byte() % (len(ledger.ring) + 1)
    return {"id": id_, "key": key, "got": got, "sent": [ledger.got + 1, ledger.got + source.byte() % 3]}


def calls(data):
    """A server and a peer that stream to each other, with frames that fit and with others (see `support.calling`)."""
    source = Source(data)
    story = CallingStory(source.pick([JSON, MSGPACK]))
    for _ in range(STEPS):
        if not source.left:
            break
        calls_action(story, source)
        story.side.scheduler.run()
        story.check()
    story.finish()


def calls_action(story, source):
    what, which = source.byte() % 32, source.byte()
    match what:
        case 0 | 1 | 2 | 3 | 4:
            story.call(source.pick(calling.PROCEDURES), source.pick(calling.PAYLOADS), fitting(source))
        case 5 | 6:
            story.call(
                source.pick(calling.STREAMS), source.pick(calling.PAYLOADS), {"n": source.pick(calling.COUNTS[:6])}
            )
        case 7 | 8:
            story.call(source.pick(calling.UPLOADS), source.pick(calling.PAYLOADS), {"up": 1})
        case 9 | 10 | 11:
            story.frame("more", source.pick(calling.COUNTS), story.served(which))
        case 12 | 13 | 14:
            story.frame(source.pick(calling.OF_CALLER), source.pick(calling.COUNTS), story.served(which))
        case 15 | 16 | 17 | 18:
            story.frame(source.pick(calling.OF_CALLEE), source.pick(calling.COUNTS), story.asked(which))
        case 19:
            story.frame(source.pick(calling.OF_CALLER + calling.OF_CALLEE), source.value(), source.pick(calling.STAMPS))
        case 20:
            story.say(source.pick(calling.PROCEDURES), source.pick(calling.PAYLOADS), source.pick(calling.STAMPS))
        case 21 if which % 4 == 0:
            options = {key: source.pick(calling.COUNTS + calling.SECONDS) for key in ("t", "n") if source.byte() % 2}
            story.call(source.pick(calling.PROCEDURES), source.value(), options, source.pick(calling.STAMPS))
        case 21 if which % 4 == 1:
            story.raw(source.raw())
        case 22 | 23:
            story.open_stream(source.pick([1, 2, 32, 10**6]), upload=which % 2)
        case 24:
            story.read_stream(source.pick([1, 5, 50]))
        case 25:
            (story.leave_stream, story.cancel)[which % 2]()
        case 26:
            story.start_call(source.pick([None, 0, 1, 10]), progress=which % 2, upload=which // 2 % 2)
        case 27 | 28:
            story.settle()
        case 29:
            story.side.scheduler.advance(source.pick(calling.PASSES))
        case 30:
            story.session.writable(which % 4 != 0)
        case 31 if which % 8 == 0:
            story.vanish()


def fitting(source):
    """Options that a call may have."""
    options = {
        "t": source.pick([0, 0.5, 1, 3, 5, 10, 100, 10**400]),
        "n": source.pick(calling.COUNTS[:6]),
        "p": 1,
        "up": 1,
    }
    which = source.byte()
    return {key: value for bit, (key, value) in enumerate(options.items()) if which >> bit & 1}


def assembly(data):
    """Parts become the message that they are parts of, wherever they were cut, and nothing above the limit."""
    source = Source(data)
    text, compressed = source.byte() % 2 == 1, source.pick([None, "anything", "packed"])
    takeover, limit = source.byte() % 2 == 1, source.pick([1, 20, 100, 5000])
    cuts = sorted(source.byte() for _ in range(source.byte() % 4))
    payload = source.pick([1, 1, 1, 300]) * source.rest()  # many times the same is what compresses well
    settings = Compression(context_takeover=takeover)
    wire = payload
    if compressed == "packed":
        wire = peers(settings)[0].deflate(payload)
        if wire is None:
            return
    whole = assembled(wire, [], text, limit, None if compressed is None else peers(settings)[1])
    parts = assembled(wire, cuts, text, limit, None if compressed is None else peers(settings)[1])
    if isinstance(whole, int) or isinstance(parts, int):
        assert {whole, parts} <= {1002, 1007, 1009}, "only one of them fails"
    else:
        assert whole == parts
        assert len(whole.encode() if text else whole) <= limit
    if compressed == "anything":
        return
    if len(payload) > limit or len(wire) > limit:
        assert whole == 1009
    elif text:
        try:
            assert whole == payload.decode()
        except UnicodeDecodeError:
            assert whole == 1007
    else:
        assert whole == payload


def peers(settings):
    """The compression of a server and of a client that have agreed."""
    answer, server = settings.accept(settings.offer())
    return server, settings.accepted(answer)


def assembled(wire, cuts, text, limit, deflate):
    """The message, or the code of the close frame that it leads to."""
    making = Assembly(text=text, limit=limit, deflate=deflate)
    ends = [*cuts, max(len(wire), *cuts, 0)]
    start = 0
    try:
        for index, end in enumerate(ends):
            message = making.add(wire[start:end], last=index == len(ends) - 1)
            start = end
            assert (message is None) == (index < len(ends) - 1)
    except ViolationError as exc:
        return exc.code
    return message


TARGETS = {target.__name__: target for target in (unpack, server, client, resume, calls, assembly)}


def seeds(name):
    """Where a target begins: every message of the wire vectors, in each form that the target reads."""
    texts, binaries = [], []
    for path in sorted(VECTORS.glob("*.json")):
        for case in json.loads(path.read_text(encoding="utf-8")).get("cases", ()):
            if isinstance(case.get("text"), str):
                texts.append(case["text"].encode(errors="replace"))
            if isinstance(case.get("hex"), str):
                binaries.append(bytes.fromhex(case["hex"]))
            texts += [json.dumps(step["in"]).encode() for step in case.get("steps", ()) if "in" in step]
    if name == "unpack":
        found = [b"\x00" + form + text for text in texts for form in (b"\x00", b"\x02")]
        found += [b"\x01\x00" + binary for binary in binaries]
    elif name == "assembly":
        found = [b"\x01\x00\x00\x03\x02\x03\x05\x00" + text for text in texts]
        found += [b"\x01\x01\x00\x03\x01\x05\x00" + zlib.compress(text, wbits=-15) for text in texts]
    elif name == "calls":
        found = stories_at_random(200)
    elif name == "resume":
        found = [*stories_at_random(200), *(bytes((number, *text[:60])) for number, text in enumerate(texts[:200]))]
    else:  # as raw messages of a stranger, of a valid connection, and of one that has been asked
        found = []
        for text in texts:
            for modes in (b"\x00\x00\x00\x00\x00", b"\x00\x00\x01\x01\x01", b"\x02\x02\x00\x01\x00"):
                head = b"\x05\x00\x02" if name == "server" else b"\x04\x02"
                found.append((modes if name == "server" else modes[1:]) + head + bytes((min(len(text), 31),)) + text)
    return list(dict.fromkeys(found))


def stories_at_random(count):
    """Bytes for stories, the same in each run."""
    return [random.Random(number).randbytes(160) for number in range(count)]
