"""Extensions: what a client offers, what a server answers, and that nobody else notices (WIRE.md section 7)."""

from __future__ import annotations

import pytest

from support.core import ClientSide, ServerSide
from wse.core.ports.protocol import ExtensionTypes, InternalTypes
from wse.core.session.extensions import NOTHING, Extension
from wse.protocols.json import WseJSON
from wse.protocols.msgpack import WseMsgpack


class Echo(Extension):
    """An extension whose messages are kept, and which declines what is not a dict."""

    name = "echo"

    def __init__(self, name="echo"):
        self.name = name
        self.taken = []
        self.answers = []

    def offer(self):
        return {"offered": self.name}

    def offered(self, session, params):
        return isinstance(params, dict)

    def answer(self, session):
        return {"conn": session.conn.cid}

    def answered(self, session, params):
        self.answers.append(params)

    def controls(self, types):
        return {f"~wse:{self.name}": lambda session, payload, stamp: self.taken.append((session, payload, stamp))}


class Numbers(WseJSON):
    """A protocol of numbers, with names for extensions or without."""

    name = "numbers"
    internal_types = InternalTypes(hi=0, challenge=1, welcome=2, call=3, response=4, response_error=5)
    extensions = None


class NumbersWithExtensions(Numbers):
    extensions = ExtensionTypes(ext=6, auth=7, refused=8, ask=9)


def serve(*names, **options):
    side = ServerSide(**options)
    extensions = [Echo(name) for name in names]
    for extension in extensions:
        side.endpoint.extensions.add(extension)
    return side, *extensions


def come(side, ext):
    peer = side.open()
    peer.say(peer.protocol.internal_types.hi, {"identity": "ann", "ext": ext})
    return peer


# A server.


def test_a_server_answers_what_it_knows_of_the_offers_just_before_the_welcome():
    side, echo, _ = serve("echo", "other")
    peer = come(side, {"unknown": {}, "echo": {"n": 1}})
    assert peer.heard == [("~wse:ext", {"echo": {"conn": "ann"}}, None), ("~wse:welcome", "welcome", None)]
    peer.say("~wse:echo", {"x": 1})
    peer.say("~wse:echo", {"x": 2}, 7)
    assert echo.taken == [(peer.session, {"x": 1}, None), (peer.session, {"x": 2}, 7)]
    assert peer.heard == []
    assert side.names("ignored") == []
    assert side.errors == []
    assert side.endpoint.counters.messages_in == 0


def test_all_answers_stand_in_one_message_in_the_order_of_the_server():
    side, *_ = serve("a", "b")
    peer = come(side, {"b": {}, "a": {}})
    assert peer.heard[0] == ("~wse:ext", {"a": {"conn": "ann"}, "b": {"conn": "ann"}}, None)


@pytest.mark.parametrize("ext", [None, {}, [], "echo", 7, {"unknown": {}}, {"echo": None}, {"echo": [1]}, {"": {}}])
def test_a_client_that_offers_nothing_known_gets_what_it_always_got(ext):
    side, echo = serve("echo")
    peer = come(side, ext)
    assert peer.link.sent == ['["~wse:welcome","welcome",null]']
    assert peer.session.agreement is NOTHING
    assert side.errors == []
    peer.say("~wse:echo", {"x": 1})
    assert side.names("ignored") == [("ignored", "ann", "~wse:echo", {"x": 1})]
    assert echo.taken == []


def test_messages_of_an_extension_that_was_not_agreed_on_are_none():
    side, echo, other = serve("echo", "other")
    peer = come(side, {"other": {}})
    peer.say("~wse:echo")
    assert echo.taken == []
    assert side.names("ignored") == [("ignored", "ann", "~wse:echo", None)]
    peer.say("~wse:other")
    assert len(other.taken) == 1


def test_connections_with_the_same_extensions_share_what_they_agreed_on():
    side, *_ = serve("echo", "other", conns_per_user=3)
    first, second, third = (come(side, ext) for ext in ({"echo": {}}, {"echo": {}}, {"echo": {}, "other": {}}))
    assert first.session.agreement is second.session.agreement
    assert third.session.agreement.names == {"echo", "other"}


def test_a_protocol_without_names_for_extensions_has_none():
    side, *_ = serve("echo", protocols=(Numbers(),))
    peer = come(side, {"echo": {}})
    assert peer.heard == [(2, "welcome", None)]


def test_a_protocol_may_have_names_of_its_own():
    side, *_ = serve("echo", protocols=(NumbersWithExtensions(),))
    peer = come(side, {"echo": {}})
    assert [message[0] for message in peer.heard] == [6, 2]
    assert {6, 7, 8, 9} <= peer.protocol.reserved


@pytest.mark.parametrize("protocol", [WseJSON(), WseMsgpack()])
def test_the_shipped_protocols_have_the_names_of_the_wire(protocol):
    types = protocol.extensions
    assert (types.ext, types.auth, types.refused, types.ask) == ("~wse:ext", "~wse:auth", "~wse:refused", "~wse:ask")
    assert types.names() <= protocol.reserved


# A client.


def test_a_client_offers_what_it_knows():
    side = ClientSide()
    assert side.endpoint.extensions.offers(ExtensionTypes()) == {}
    side.endpoint.extensions.add(Echo())
    assert side.endpoint.extensions.offers(ExtensionTypes()) == {"echo": {"offered": "echo"}}
    assert side.endpoint.extensions.offers(None) == {}


def test_a_client_takes_the_answer_before_the_welcome():
    side = ClientSide()
    echo = Echo()
    side.endpoint.extensions.add(echo)
    peer = side.open()
    peer.say("~wse:ext", {"echo": {"n": 1}, "never offered": {}})
    peer.say("~wse:welcome", "welcome")
    assert echo.answers == [{"n": 1}]
    assert peer.session.agreement.names == {"echo"}
    peer.say("~wse:echo", "x")
    assert echo.taken == [(peer.session, "x", None)]
    assert side.names("ignored") == []


@pytest.mark.parametrize("answers", [None, [], "echo", {"unknown": {}}])
def test_a_client_takes_no_answer_that_makes_no_sense(answers):
    side = ClientSide()
    side.endpoint.extensions.add(Echo())
    peer = side.open()
    peer.say("~wse:ext", answers)
    peer.say("~wse:welcome", "welcome")
    assert peer.session.valid
    assert peer.session.agreement is NOTHING


def test_a_client_keeps_what_a_refusal_says():
    side = ClientSide()
    peer = side.open()
    assert peer.session.refusal is None
    peer.say("~wse:refused", "nonsense")
    assert peer.session.refusal is None
    peer.say("~wse:refused", {"reason": "expired", "retry": True})
    assert peer.session.refusal == {"reason": "expired", "retry": True}
