"""Reads the metrics of one server.

Everything that is read is a number that is there already, so reading them costs as much with 50,000 connections as with
one. What has to be added up over connections (`Survey`) or measured again and again is done in the background, on the
server's event loop, and only after somebody has asked for metrics at all.

The labels come from this side only: codes and reasons of WSE, limits, policies, and the names of registered procedures.
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING, Final

from wse.core.cluster.node import ClusterNode
from wse.core.session.timing import Instruments
from wse.metrics.families import Buckets, Family, Merge
from wse.metrics.survey import Survey
from wse.version import installed_version

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from wse.core.admission import Admission
    from wse.core.hub.hub import Hub
    from wse.core.stats import Histogram

TICK: Final = 0.1
"""Seconds between two looks at the event loop's lag, after which calls are timed again."""

SURVEY_EVERY: Final = 10
"""Ticks between two walks through all sessions."""


class Metrics:
    """The metrics of one server.

    Args:
        hub: The server's connections.
        admission: Its policy for new ones.
        uptime: Returns the seconds since the start.
        running: Returns the number of its own async listeners that run.
    """

    def __init__(self, hub: Hub, admission: Admission, uptime: Callable[[], float], running: Callable[[], int]) -> None:
        self._hub = hub
        self._admission = admission
        self._uptime = uptime
        self._running = running
        self._survey = Survey(hub)
        self._instruments = Instruments(hub.endpoint.procedures, perf_counter)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._ticks = 0
        self._successful = 0.0

    # In the background.

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to measure on the event loop that the server runs in."""
        self.stop()
        self._loop = loop
        self._ticks = 0
        self._hub.endpoint.instruments = self._instruments
        self._instruments.arm()
        self._set_timer(loop)

    def stop(self) -> None:
        """Stop measuring; what was measured remains."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._instruments.disarm()
        self._hub.endpoint.instruments = None

    def _set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = loop.time() + TICK
        self._timer = loop.call_at(self._due, self._tick, loop)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._instruments.lag.observe(max(0.0, loop.time() - self._due))
        self._instruments.arm()
        self._ticks += 1
        if self._ticks % SURVEY_EVERY == 1:
            self._walk(loop)
        self._set_timer(loop)

    def _walk(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None and not self._survey.step():
            loop.call_later(TICK / 20, self._walk, loop)

    # Reading.

    def read(self) -> list[Family]:
        """Read all metrics. This may be called on any thread."""
        if asyncio._get_running_loop() is self._loop:
            self._survey.refresh()
        return [*self._state(), *self._counts(), *self._times(), *self._kept(), *self._cluster()]

    def _state(self) -> list[Family]:
        hub, survey = self._hub, self._survey
        resumption = hub.resumption
        return [
            Family("wse_info", "The version of wse.", "gauge", ("version",), "max").set(1, installed_version()),
            gauge("wse_uptime_seconds", "Time since the start.", self._uptime(), "min"),
            gauge("wse_connections", "Open connections.", len(hub.sockets.open)),
            gauge(
                "wse_unauthenticated_connections",
                "Open connections that are not authenticated yet.",
                hub.sockets.unauthenticated,
            ),
            gauge("wse_users", "Users with a connection.", len(hub.identities)),
            gauge(
                "wse_detached_sessions",
                "Sessions whose client is away and may return.",
                0 if resumption is None else len(resumption.detached),
            ),
            gauge(
                "wse_retained_bytes",
                "Bytes kept for clients that may have to be sent them again.",
                0 if resumption is None else resumption.retention.used,
            ),
            gauge("wse_queued_bytes", "Bytes that wait for receivers to take them.", survey.queued),
            gauge("wse_queued_bytes_max", "Bytes that wait for one receiver, at most.", survey.largest, "max"),
            gauge("wse_running_handlers", "Async handlers that run.", survey.handlers + self._running()),
            gauge("wse_pending_calls", "Calls to clients that wait for an answer.", survey.pending_calls),
        ]

    def _counts(self) -> list[Family]:
        counters = self._hub.endpoint.counters
        both = ("direction",)
        calls = Family("wse_calls", "Calls that have ended, by their outcome.", "counter", ("direction", "outcome"))
        # A call is counted when it comes and when it fails; what did not fail has succeeded, and must never seem less.
        self._successful = max(self._successful, counters.successful)
        calls.set(self._successful, "in", "ok").set(counters.answered, "out", "ok")
        for outcome in ("error", "crash", "cancelled", "limit", "unknown"):
            calls.set(counters.unsuccessful.get(outcome, 0), "in", outcome)
        for outcome in ("error", "timeout", "disconnect", "cancelled"):
            calls.set(counters.unanswered.get(outcome, 0), "out", outcome)
        closes = Family("wse_closes", "Connections that have ended.", "counter", ("code", "reason"))
        closes.values = {(code, reason): count for (code, reason), count in counters.ends.copy().items()}
        return [
            Family("wse_connections_opened", "Connections opened.", "counter").set(counters.opened),
            closes,
            Family("wse_refused_origins", "WebSockets refused for their origin.", "counter").set(
                self._admission.refused_origins
            ),
            Family("wse_messages", "Messages, without calls and answers.", "counter", both)
            .set(counters.messages_in, "in")
            .set(counters.messages_out, "out"),
            Family("wse_bytes", "Bytes of messages, calls and answers, without framing.", "counter", both)
            .set(counters.bytes_in, "in")
            .set(counters.bytes_out, "out"),
            calls,
            counted("wse_errors", "Failures, by code.", "code", counters.errors),
            counted("wse_answers", "Errors that procedures raised on purpose, by code.", "code", counters.answers),
            counted("wse_dropped", "Messages not delivered to slow receivers.", "policy", counters.dropped),
            counted("wse_limits", "Excesses, by limit.", "limit", counters.limits),
        ]

    def _times(self) -> list[Family]:
        instruments = self._instruments
        calls = Family("wse_call_duration_seconds", "Time until a call was answered.", "histogram", ("procedure",))
        calls.histograms = {(str(name),): Buckets.of(times) for name, times in instruments.calls.copy().items()}
        return [
            calls,
            histogram("wse_broadcast_duration_seconds", "Time to hand out a broadcast.", instruments.broadcast),
            histogram("wse_rtt_seconds", "Round-trip times of pings.", instruments.rtt),
            histogram("wse_event_loop_lag_seconds", "Lateness of the event loop.", instruments.lag),
        ]

    def _kept(self) -> list[Family]:
        keeper, counters = self._hub.kept, self._hub.endpoint.counters
        undelivered = Family("wse_undelivered", "Messages that no device has got.", "counter", ("by",))
        for how in ("send", "keep"):
            undelivered.set(counters.undelivered[how], how)
        if keeper is None:
            return [undelivered]
        kept = Family("wse_kept_messages", "Messages that this server has kept.", "counter", ("of",))
        for kind in ("user", "room"):
            kept.set(counters.kept[kind], kind)
        return [
            undelivered,
            kept,
            Family("wse_inbox_lost_messages", "Kept messages that were gone before a device came.", "counter").set(
                counters.inbox_lost
            ),
            gauge(
                "wse_unread_messages",
                "Kept messages of which this server will look whether a device has handled them.",
                0 if keeper.unread is None else len(keeper.unread),
            ),
        ]

    def _cluster(self) -> list[Family]:
        node = self._hub.network
        if not isinstance(node, ClusterNode):
            return []
        bus = node.bus
        return [
            gauge("wse_broker_connected", "Whether the broker is connected.", int(node.broker.connected), "min"),
            gauge("wse_cluster_healthy", "Whether messages reach this node and leave it.", int(node.healthy), "min"),
            gauge("wse_cluster_nodes", "Nodes of the cluster.", len(bus.peers) + bus.is_open, "max"),
            gauge("wse_backlog_messages", "Messages to other nodes that wait for the broker.", bus.backlog),
            gauge("wse_backlog_bytes", "Bytes of these messages.", bus.backlog_bytes),
            Family("wse_lost_messages", "Messages to other nodes that were lost.", "counter").set(bus.lost),
            gauge("wse_lease_age_seconds", "Time since the node's lease was renewed.", node.liveness.lease_age, "max"),
        ]


def gauge(name: str, text: str, value: float, merge: Merge = "sum") -> Family:
    """A gauge without labels."""
    return Family(name, text, "gauge", (), merge).set(value)


def counted(name: str, text: str, label: str, counts: Mapping[str, int]) -> Family:
    """A counter with one label."""
    family = Family(name, text, "counter", (label,))
    family.values = {(str(key),): count for key, count in dict(counts).items()}
    return family


def histogram(name: str, text: str, values: Histogram) -> Family:
    """A histogram without labels."""
    return Family(name, text, "histogram", histograms={(): Buckets.of(values)})
