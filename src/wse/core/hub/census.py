"""The numbers of `server.stats()`, the counters of a server and its present state, and the few that operators watch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wse.core.stats import Stats

if TYPE_CHECKING:
    from wse.core.hub.hub import Hub


def take_stats(hub: Hub, *, uptime: float, running_handlers: int, refused_origins: int) -> Stats:
    """See `WseServer.stats`."""
    counters = hub.endpoint.counters
    queued = [session.queued for session in hub.sessions]
    return Stats(
        uptime=uptime,
        connections=len(hub.sockets.open),
        unauthenticated=hub.sockets.unauthenticated,
        identities=len(hub.identities),
        queued_bytes=sum(queued),
        queued_bytes_max=max(queued, default=0),
        running_handlers=running_handlers + len(hub.tasks),
        pending_calls=sum(session.pending_calls for session in hub.sessions),
        detached=0 if hub.resumption is None else len(hub.resumption.detached),
        retained=0 if hub.resumption is None else hub.resumption.retention.used,
        opened=counters.opened,
        messages_in=counters.messages_in,
        messages_out=counters.messages_out,
        calls_in=counters.calls_in,
        calls_out=counters.calls_out,
        bytes_in=counters.bytes_in,
        bytes_out=counters.bytes_out,
        errors=dict(counters.errors),
        answers=dict(counters.answers),
        closes=dict(counters.closes),
        close_codes=dict(counters.close_codes),
        dropped=dict(counters.dropped),
        limits=dict(counters.limits),
        refused_origins=refused_origins,
    )


def take_brief(hub: Hub, *, uptime: float) -> dict[str, float]:
    """The numbers that `wse top` and the operations page show of a node. Each is there already, so they cost as much
    with 50,000 connections as with one.
    """
    counters = hub.endpoint.counters
    return {
        "uptime": uptime,
        "connections": len(hub.sockets.open),
        "users": len(hub.identities),
        "detached": 0 if hub.resumption is None else len(hub.resumption.detached),
        "handlers": counters.calls_running,
        "messages_in": counters.messages_in,
        "messages_out": counters.messages_out,
        "bytes_in": counters.bytes_in,
        "bytes_out": counters.bytes_out,
        "calls_in": counters.calls_in,
        "calls_out": counters.calls_out,
        "errors": counters.errors.total(),
    }
