"""Every wire vector of spec/vectors; its README.md describes the format."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from pathlib import Path

import pytest

from support.core import FakeLink, FakeScheduler, ServerSide
from support.net import soon
from wse import (
    Backoff,
    ClientStatus,
    CloseReason,
    ErrorCode,
    ExtensionTypes,
    Heartbeat,
    InternalTypes,
    Kept,
    ReadyState,
    WseClient,
    WseError,
)
from wse.core.hub.handshake import State
from wse.core.limits import Limits
from wse.core.resume import Resume
from wse.core.session.endpoint import Endpoint
from wse.core.session.rpc import ExposeErrors, error_from_wire, error_to_wire
from wse.protocols.json import WseJSON
from wse.protocols.msgpack import WseMsgpack
from wse.testing import Clock

VECTORS = Path(__file__).parents[2] / "spec" / "vectors"


def read(name):
    return json.loads((VECTORS / name).read_text(encoding="utf-8"))


def cases(name):
    found = read(name)["cases"]
    assert found
    return pytest.mark.parametrize("case", [pytest.param(case, id=case["name"]) for case in found])


def test_every_vector_file_is_run_and_names_its_cases_once():
    run = {"names.json", "json-decode.json", "json-encode.json", "msgpack.json", "errors.json", "close.json"}
    abouts = ("handshake", "messages", "calls", "resume")
    run |= {f"{about}-{side}.json" for about in abouts for side in ("server", "client")}
    run |= {"inbox-client.json", "rooms-client.json"}
    assert {path.name for path in VECTORS.glob("*.json")} == run
    for name in run - {"names.json"}:
        names = [case["name"] for case in read(name)["cases"]]
        assert len(names) == len(set(names)), name


# Protocols.


def data_of(case):
    if "hex" in case:
        return bytes.fromhex(case["hex"])
    if "hex_parts" in case:
        return b"".join(bytes.fromhex(piece) * times for piece, times in case["hex_parts"])
    if "parts" in case:
        return "".join(piece * times for piece, times in case["parts"])
    return case["text"]


def with_bytes(value):
    """The value with `{"$hex": …}` replaced by what it stands for."""
    if isinstance(value, dict):
        if set(value) == {"$hex"}:
            return bytes.fromhex(value["$hex"])
        return {key: with_bytes(item) for key, item in value.items()}
    return [with_bytes(item) for item in value] if isinstance(value, list) else value


def same(one, other):
    """Equality that tells 1 from true and from 1.0, as JSON does not equate them all."""
    return one == other and repr(one) == repr(other)


def check_decoding(protocol, case, data):
    if case.get("error"):
        with pytest.raises(Exception):  # noqa: B017 - Protocol.unpack may raise any
            protocol.unpack(data)
        return
    if case.get("either"):
        try:
            message = protocol.unpack(data)
        except Exception:
            return
        assert message[0] == "t"
        return
    message = protocol.unpack(data)
    if "depth" in case:
        _, payload, stamp = message
        assert stamp == "s"
        depth = 0
        while payload != []:
            (payload,) = payload
            depth += 1
        assert depth + 1 == case["depth"]
    else:
        assert same(list(message), with_bytes(case["message"]))


@cases("json-decode.json")
def test_json_decodes(case):
    check_decoding(WseJSON(), case, data_of(case))


@cases("json-decode.json")
def test_json_decodes_the_same_from_a_binary_message_in_a_memoryview(case):
    data = data_of(case)
    check_decoding(WseJSON(), case, memoryview(data.encode() if isinstance(data, str) else data))


@cases("json-encode.json")
def test_json_encodes(case):
    text = WseJSON().pack(*case["message"])
    assert text == case["text"]
    assert same(list(WseJSON().unpack(text)), case["message"])


@cases("msgpack.json")
def test_msgpack(case):
    check_decoding(WseMsgpack(), case, data_of(case))
    if "hex" in case:
        check_decoding(WseMsgpack(), case, memoryview(data_of(case)))
    if case.get("encodes"):
        assert WseMsgpack().pack(*with_bytes(case["message"])).hex() == case["hex"]


# Names and errors.


def test_names_are_those_of_the_wire():
    names = read("names.json")
    types = InternalTypes()
    assert {name: getattr(types, name) for name in names["internal_types"]} == names["internal_types"]
    assert types.names() == set(names["internal_types"].values())
    extensions = ExtensionTypes()
    assert {name: getattr(extensions, name) for name in names["extension_types"]} == names["extension_types"]
    # Ours has more than the contract, after these.
    assert [reason.value for reason in CloseReason][: len(names["close_reasons"])] == names["close_reasons"]
    assert [code.value for code in ErrorCode][: len(names["error_codes"])] == names["error_codes"]
    assert [status.value for status in ClientStatus] == names["client_status"]
    assert {state.name: state.value for state in ReadyState} == names["ready_state"]
    assert {"json": WseJSON().name, "msgpack": WseMsgpack().name} == names["protocols"]


def test_reserved_types_are_refused_and_free_ones_are_not():
    names = read("names.json")
    endpoint = Endpoint(
        (),
        protocols=(WseJSON(),),
        scheduler=FakeScheduler(),
        timeout=1,
        limits=Limits(),
        debug=False,
        report=lambda error, session: None,
    )
    for name in names["reserved_types"]:
        with pytest.raises(WseError, match="protocol-violation"):
            endpoint.check_type(name)
    for name in names["free_types"]:
        endpoint.check_type(name)


def raised(spec):
    if "wse" in spec:
        return WseError(spec["wse"]["code"], spec["wse"].get("details"))
    return type(spec["exception"]["name"], (Exception,), {})(spec["exception"]["message"])


@cases("errors.json")
def test_errors(case):
    if "receives" in case:
        error = error_from_wire(case["receives"])
        assert (str(error.code), error.details) == (case["code"], case["details"])
    else:
        wire = error_to_wire(
            raised(case["raises"]), case["procedure"], case["payload"], expose=ExposeErrors.MESSAGE, debug=False
        )
        wire.pop("message", None)
        assert same_wire(wire, {"code": case["code"], "details": case["details"]})


def same_wire(one, other):
    """Equal as JSON: the order of keys does not count, true and 1 differ."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


# Conversations.


def add_application(endpoint, note):
    """The application that README.md describes; `note` takes an event."""
    endpoint.channel.on("chat", lambda *args: note(["chat", *(conn.cid for conn in args[:-1]), args[-1]]))

    def fail(*args):
        raise ValueError("no good")

    def deny(*args):
        raise WseError("app.denied", {"why": "closed"})

    endpoint.procedures.register("echo", lambda *args: args[-1])
    endpoint.procedures.register("add", lambda *args: args[-1]["a"] + args[-1]["b"])
    endpoint.procedures.register("fail", fail)
    endpoint.procedures.register("deny", deny)
    endpoint.procedures.register("unserializable", lambda *args: object())

    async def count(*args):
        for n in range(args[-1]):
            yield n

    async def wait(*args):
        await endpoint.scheduler.create_future()

    async def total(*args):
        return args[-2] + sum([item async for item in args[-1]])

    endpoint.procedures.register("count", count)
    endpoint.procedures.register("wait", wait, cancel=True)

    async def double(*args):
        async for item in args[-1]:
            yield 2 * item

    endpoint.procedures.register("sum", total, upload=True)
    endpoint.procedures.register("double", double, upload=True)


def comparable(message):
    if message[0] == "~wse:response-err":
        message[1].pop("message", None)
    if message[0] == "~wse:hi":
        message[1].pop("ext", None)
    return message


class Names(dict):
    """What `$id` and the like stand for, bound where they are seen first."""

    def fill(self, value):
        """The value with the names replaced by what they stand for."""
        if isinstance(value, dict):
            return {key: self.fill(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.fill(item) for item in value]
        return self.get(value, value) if isinstance(value, str) else value

    def bind(self, expected, seen):
        """Bind the names of an expectation that have no meaning yet."""
        if isinstance(expected, dict) and isinstance(seen, dict):
            for key, item in expected.items():
                self.bind(item, seen.get(key))
        elif isinstance(expected, list) and isinstance(seen, list):
            for item, other in zip(expected, seen, strict=False):
                self.bind(item, other)
        elif isinstance(expected, str) and expected.startswith("$") and isinstance(seen, str):
            self.setdefault(expected, seen)


class Conversation:
    """What both sides' conversations have in common; every method named `do_…` is a step."""

    json = WseJSON()

    def __init__(self):
        self.events = []
        self.codes = []
        self.outcomes = deque()
        self.read = {}
        self.names = Names()

    def data(self, message):
        message = self.names.fill(message)
        return data_of(message) if isinstance(message, dict) else json.dumps(message)

    def check_out(self, link, expected):
        start = self.read.get(id(link), 0)
        self.read[id(link)] = len(link.sent)
        messages = [comparable(list(self.json.unpack(data))) for data in link.sent[start:]]
        assert all(json.loads(data)[2:] for data in link.sent[start:]), "three elements are always written"
        self.names.bind(expected, messages)
        assert same_wire(messages, self.names.fill(expected))

    def check_close(self, link, expected):
        assert [[code, str(reason)] for code, reason in link.closes] == ([] if expected is None else [expected])

    def check_events(self, expected):
        events, self.events = self.events, []
        assert same_wire(events, expected)

    def check_errors(self, expected):
        codes, self.codes = self.codes, []
        assert codes == expected

    def check_failure(self, error, expected):
        assert isinstance(error, WseError)
        assert error.code == expected["code"]
        if "details" in expected:
            assert same_wire(error.details, expected["details"])


class ServerConversation(Conversation):
    def __init__(self, setup):
        super().__init__()
        self.setup = setup
        self.seen = None
        self.waiting = deque()
        joined = setup.get("joined")
        generator = setup.get("challenge")
        self.side = ServerSide(
            self.identify if not joined else lambda auth: auth.accept(auth.identity),
            None if generator is None else self.decide_with(generator),
            conns_per_user=setup.get("conns_per_user", 1),
            auth_timeout=setup.get("auth_timeout", 20),
            timeout=setup.get("timeout", 10),
            resume=Resume(),
        )
        add_application(self.side.endpoint, self.events.append)
        self.peers = {}

    def identify(self, auth):
        self.seen = {"identity": auth.identity, "meta": auth.meta}
        if auth.challenge is not None:
            self.seen |= {"quest": auth.challenge.quest, "response": auth.challenge.response}
        return self.decide_with(self.setup["identify"])(auth)

    def decide_with(self, decisions):
        steps = decisions if isinstance(decisions, list) else [decisions]

        async def wait(auth):
            future = self.side.scheduler.create_future()
            self.waiting.append(future)
            self.decide(auth, await future)

        def handler(auth):
            if steps == [{"wait": True}]:
                return wait(auth)
            for step in steps:
                self.decide(auth, step)
            return None

        return handler

    @staticmethod
    def decide(auth, decision):
        ((what, value),) = decision.items()
        match what:
            case "accept":
                auth.accept(*value)
            case "accept_identity":
                auth.accept(auth.identity)
            case "refuse":
                auth.refuse()
            case "quest":
                auth.quest(value)
            case "raise":
                raise RuntimeError(value)
            case _:
                raise AssertionError(what)

    def peer(self, name):
        if name not in self.peers:
            peer = self.peers[name] = self.side.open(name)
            if self.setup.get("joined"):
                cid = self.setup.get("cids", {}).get(name, "ann")
                peer.say("~wse:hi", {"identity": cid, "meta": {}})
                assert peer.session.valid
                self.read[id(peer.link)] = len(peer.link.sent)
                self.take_events()
        return self.peers[name]

    def take_events(self):
        kinds = ("joined", "left", "connected", "disconnected", "detached", "resumed", "ignored")
        log, self.side.log[:] = self.side.names(*kinds), []
        return [list(entry) for entry in log]

    def run(self, steps):
        self.peer("a")
        for step in steps:
            step = dict(step)
            peer = self.peer(step.pop("on", "a"))
            timeout = step.pop("timeout", None)
            ((what, value),) = step.items()
            self.step(peer, what, value, timeout)
            self.side.scheduler.run()
        assert self.side.scheduler.unheard == []

    def step(self, peer, what, value, timeout):
        match what:
            case "in":
                peer.receiver.receive(self.data(value))
            case "out":
                self.check_out(peer.link, value)
            case "state":
                assert self.state(peer.session) == value
            case "close":
                self.check_close(peer.link, value)
            case "gone":
                peer.vanish(*value)
            case "pass":
                self.side.scheduler.advance(value)
            case "decide":
                self.waiting.popleft().set_result(value)
            case "sees":
                assert same_wire(self.seen, value)
            case "events":
                chats = [event for event in self.events if event[0] == "chat"]
                self.events.clear()
                self.events += self.take_events() + chats
                check = self.events[:]
                self.events.clear()
                assert same_wire(check, value)
            case "errors":
                assert [str(error.code) for error, _ in self.side.errors] == value
                self.side.errors.clear()
            case "call":
                self.outcomes.append(peer.call(*value, timeout))
            case "send":
                peer.session.send(*value)
            case "result":
                assert same(self.outcomes.popleft().result(), value)
            case "fails":
                self.check_failure(self.outcomes.popleft().exception(), value)
            case "pending":
                assert peer.session.pending_calls == value
            case _:
                raise AssertionError(what)

    def state(self, session):
        if session.ended:
            return "gone"
        return "valid" if session.valid else session._phase.state.name.lower()


@cases("handshake-server.json")
def test_handshake_at_the_server(case):
    ServerConversation(case["setup"]).run(case["steps"])


@cases("messages-server.json")
def test_messages_at_the_server(case):
    ServerConversation(case["setup"]).run(case["steps"])


@cases("calls-server.json")
def test_calls_with_options_at_a_server(case):
    ServerConversation(case["setup"]).run(case["steps"])


@cases("resume-server.json")
def test_sessions_of_a_server_outlive_their_connection(case):
    ServerConversation(case["setup"]).run(case["steps"])


def test_the_vectors_name_every_state():
    states = {
        step["state"] for case in read("handshake-server.json")["cases"] for step in case["steps"] if "state" in step
    }
    assert states == {state.name.lower() for state in State}


class Sockets:
    """A connector whose sockets open at once and end in the test's hands."""

    def __init__(self):
        self.links = []
        self.sessions = []

    async def __call__(self, url, protocol, headers, limits, open):
        self.links.append(FakeLink())
        self.sessions.append(open(self.links[-1]))

    async def has_opened(self, number):
        """Return when there are more than that many sockets."""
        while len(self.sessions) <= number:
            await asyncio.sleep(0.0001)

    def receiver(self, number):
        """Who hears what comes from a socket."""
        return self.links[number].receiver or self.sessions[number]


def as_lists(*messages):
    return [[list(message) for message in some] for some in messages]


async def turns():
    """Let everything happen that needs no time."""
    for _ in range(20):
        await asyncio.sleep(0)


def uploaded(spec):
    """The items of an upload, which may fail at its end."""
    if isinstance(spec, list):
        return spec

    async def failing():
        for item in spec["items"]:
            yield item
        raise WseError(spec["fails"]["code"])

    return failing()


class ClientConversation(Conversation):
    def __init__(self, setup):
        super().__init__()
        self.setup = setup
        self.sockets = Sockets()
        resume = setup.get("resume", False)
        inbox = setup.get("inbox", {})
        after = inbox.get("after")
        self.client = client = WseClient(
            "ws://test",
            identity=setup.get("identity", ""),
            meta=setup.get("meta"),
            timeout=10,
            heartbeat=Heartbeat(interval=0),
            connector=self.sockets,
            reconnect=resume or setup.get("reconnect", False),
            backoff=Backoff(base=1e-9, cap=1e-9),
            resume=resume,
            inbox=inbox.get("device"),
            after=Kept(after["n"], 0.0, after["epoch"]) if isinstance(after, dict) else after,
        )
        self.clock = Clock()
        if not resume and not setup.get("reconnect"):
            client._scheduler.use(self.clock)
        self.stream = None
        self.next = None  # the item for which the application waits
        note = self.events.append
        client.when.connected(lambda: note(["connected"]))
        client.when.ready(lambda welcome: note(["ready", welcome]))
        client.when.closed(lambda code, reason: note(["closed", code, str(reason)]))
        client.when.resumed(lambda welcome: note(["resumed", welcome]))
        client.when.lost(lambda loss: note(["lost", loss.why, *as_lists(loss.uncertain, loss.unsent)]))
        client.when.inbox_lost(lambda count: note(["inbox_lost", count]))
        if setup.get("rooms"):
            client.room("doc").presence.when.changed(lambda changes: note(["changed", changes]))
        if inbox:
            client.channel.on("note", lambda payload: note(["note", client.kept.n, client.kept.at, payload]))
            client.channel.on("bad", lambda payload: 1 / 0)
        client.when.ignored(lambda *args: note(["ignored", *args]))
        client.when.error(lambda error: self.codes.append(str(error.code)))
        add_application(client._endpoint, note)
        if "challenge" in setup:
            client.challenge(self.respond)

    def respond(self, quest):
        spec = self.setup["challenge"]
        if "raise" in spec:
            raise RuntimeError(spec["raise"])
        return spec["answer"]

    async def run(self, steps):
        connecting = asyncio.create_task(self.client.connect())
        await turns()
        if self.setup.get("joined"):
            if "calls" in self.setup:
                self.sockets.sessions[0].receive(self.data(["~wse:ext", {"calls": self.setup["calls"]}, None]))
            self.sockets.sessions[0].receive('["~wse:welcome",null,null]')
            await connecting
            self.events.clear()
            self.read[id(self.sockets.links[0])] = len(self.sockets.links[0].sent)
        for step in steps:
            step = dict(step)
            socket = "abc".index(step.pop("on", "a"))
            await soon(self.sockets.has_opened(socket))
            (what, value), *options = step.items()
            options = dict(options)
            if what in {"call", "stream"}:
                self.ask(what, *value, **options)
            else:
                assert not options
                await self.step(connecting, what, value, self.sockets.receiver(socket), self.sockets.links[socket])
            await turns()
        for socket in range(len(self.sockets.links)):
            self.sockets.receiver(socket).closed(1000, "")
        await self.client.close()
        if self.next is not None:
            self.next.cancel()
            self.outcomes.append(self.next)
        await asyncio.gather(connecting, *self.outcomes, return_exceptions=True)

    def ask(self, what, name, payload, *, progress=False, **options):
        if "upload" in options:
            options["upload"] = uploaded(options["upload"])
        if what == "stream":
            self.stream = self.client.stream(name, payload, **options)
            self.next = asyncio.create_task(self.item())
        else:
            on_progress = (lambda value: self.events.append(["progress", value])) if progress else None
            self.outcomes.append(
                asyncio.create_task(self.client.call(name, payload, on_progress=on_progress, **options))
            )

    def show(self, state, ttl=None):
        """Show a state in the room; one that is refused is a call that has failed."""
        try:
            self.client.room("doc").presence.set(state, ttl)
        except WseError as error:
            failure = asyncio.get_running_loop().create_future()
            failure.set_exception(error)
            self.outcomes.append(failure)

    async def item(self):
        """The next item of the stream in a list, which is empty at its end."""
        async for item in self.stream:
            return [item]
        return []

    async def asked(self):
        """The task that waits for the next item, or has got it."""
        task = self.next or asyncio.create_task(self.item())
        self.next = None
        await turns()
        return task

    async def step(self, connecting, what, value, session, link):
        match what:
            case "in":
                session.receive(self.data(value))
            case "in_a_row":
                for message in value:
                    session.receive(self.data(message))
            case "pass":
                await self.clock.advance(value)
            case "items":
                for item in value:
                    assert same((await self.asked()).result(), [item])
            case "waits":
                self.next = await self.asked()
                assert not self.next.done()
            case "stream_ends":
                task = await self.asked()
                if value is None:
                    assert task.result() == []
                else:
                    self.check_failure(task.exception(), value)
            case "leaves":
                await self.stream.aclose()
            case "gives_up":
                self.outcomes.popleft().cancel()
            case "offers":
                offered = json.loads(link.sent[0])[1]["ext"]
                assert same_wire({name: offered[name] for name in value}, value)
            case "recovered":
                assert self.client.recovered is value
            case "out":
                self.check_out(link, value)
            case "status":
                assert self.client.status == value
            case "close":
                self.check_close(link, value)
            case "gone":
                session.closed(*value)
            case "events":
                check = self.events[:]
                self.events.clear()
                assert same_wire(check, value)
            case "errors":
                self.check_errors(value)
            case "send":
                self.client.send(*value)
            case "join":
                self.outcomes.append(asyncio.create_task(self.client.room(value).join()))
            case "leave":
                self.outcomes.append(asyncio.create_task(self.client.room(value).leave()))
            case "show":
                self.show(*value)
            case "clear":
                self.client.room("doc").presence.clear()
            case "members":
                assert same(self.client.room("doc").presence.members, value)
            case "device":
                assert self.client.room("doc").presence.device == value
            case "result":
                assert same(self.outcomes.popleft().result(), value)
            case "fails":
                self.check_failure(self.outcomes.popleft().exception(), value)
            case "connected":
                assert same(connecting.result(), value)
            case "connect_fails":
                self.check_failure(connecting.exception(), value)
            case _:
                raise AssertionError(what)


@cases("handshake-client.json")
async def test_handshake_at_the_client(case):
    await ClientConversation(case["setup"]).run(case["steps"])


@cases("messages-client.json")
async def test_messages_at_the_client(case):
    await ClientConversation(case["setup"]).run(case["steps"])


@cases("calls-client.json")
async def test_calls_with_options_at_a_client(case):
    await ClientConversation(case["setup"]).run(case["steps"])


@cases("resume-client.json")
async def test_a_clients_session_outlives_its_connection(case):
    await ClientConversation(case["setup"]).run(case["steps"])


@cases("inbox-client.json")
async def test_a_clients_inbox(case):
    await ClientConversation(case["setup"]).run(case["steps"])


@cases("rooms-client.json")
async def test_a_clients_rooms(case):
    await ClientConversation(case["setup"]).run(case["steps"])


@cases("close.json")
@pytest.mark.parametrize("reconnect", [True, False], ids=["reconnecting", "not_reconnecting"])
async def test_what_a_client_does_after_a_close(case, reconnect):
    sockets = Sockets()
    backoff = Backoff(base=3600, cap=3600, random=lambda: 1.0)
    client = WseClient("ws://test", reconnect=reconnect, backoff=backoff, connector=sockets)
    identity = (lambda: "ann") if case.get("identity") == "function" else "ann"
    connecting = asyncio.create_task(client.connect(identity))
    await turns()
    sockets.sessions[0].receive('["~wse:welcome"]')
    await connecting
    times = case.get("times", 1)
    for number in range(times):
        sockets.sessions[number].closed(case["code"], case["reason"])
        await turns()
    retried = case["retried"] if reconnect else case.get("without_reconnect", False)
    assert client.status == ("RE_CONNECTING" if retried else "OFFLINE")
    assert len(sockets.sessions) == times + case.get("at_once", False)
    for session in sockets.sessions:
        session.closed(1000, "")
    await client.close()
