"""Peers that know the extension `calls`, frame by frame, and what may be left of their calls."""

from __future__ import annotations

from wse.client.extensions import add_client_extensions
from wse.core.session.current_call import bounded

OFFER = {"calls": {"timeout": 20}}


def join(side, ext=OFFER):
    """A client that knows the extension, and has read its welcome."""
    peer = side.open()
    peer.say("~wse:hi", {"identity": "ann", "ext": ext})
    side.scheduler.run()
    assert peer.session.valid
    assert peer.heard[-1][0] == "~wse:welcome"
    return peer


def join_server(side):
    """A server that knows the extension, and has sent its welcome."""
    add_client_extensions(side.endpoint)
    peer = side.open()
    peer.say("~wse:ext", OFFER)
    peer.say("~wse:welcome")
    return peer


def stream(peer, name, payload, stamp, n):
    """The peer calls a procedure that yields, with credit for n items."""
    peer.say("~wse:call", [name, payload, {"n": n}], stamp)
    peer.session.endpoint.scheduler.run()


def nothing_is_left(session):
    """Whether nothing of any call is left, in either direction."""
    serving, asking = session._serving, session._asking
    return (
        not bounded
        and not session.pending_calls
        and not session.running_handlers
        and not session._running_calls
        and (serving is None or (not serving.calls and not serving.streams))
        and (asking is None or not asking.calls)
    )
