"""The way to the other nodes: the topics of this one, and a backlog of messages while the broker is away."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from wse.core.cluster import envelope
from wse.core.cluster.envelope import NODE
from wse.errors import ErrorCode, WseError

if TYPE_CHECKING:
    from wse.core.cluster.envelope import ClusterMessage
    from wse.core.ports.broker import Broker
    from wse.core.session.endpoint import Endpoint

BATCH = 16 * 1024 * 1024
"""Bytes of the backlog that are published at a time: brokers take no more than 64 MiB at once."""


class Bus:
    """What one node publishes and subscribes to.

    Args:
        broker: What carries it.
        endpoint: Told of what cannot cross.
        backlog: How many messages are kept while the broker cannot be reached.
        backlog_bytes: How many bytes they may have.

    Attributes:
        node: The id of this node; a new one each time that it starts.
        peers: The other nodes, when all was well.
        is_open: Whether this node is part of the cluster; before and after, nothing is published.
        lost: How many messages were lost because the broker was out of reach for too long.
    """

    def __init__(self, broker: Broker, endpoint: Endpoint, *, backlog: int, backlog_bytes: int) -> None:
        self.broker = broker
        self.node = ""
        self.peers: frozenset[str] = frozenset()
        self.is_open = False
        self.lost = 0
        self._endpoint = endpoint
        self._max_count = backlog
        self._max_bytes = backlog_bytes
        self._interest: dict[str, int] = {}
        self._backlog: deque[tuple[str, bytes]] = deque()
        self._backlog_bytes = 0
        self._lost_now = 0  # since the connection was lost
        self._is_held = False

    # Interest.

    def want(self, topic: str) -> bool:
        """One more here wants the topic; whether it is the first."""
        count = self._interest.get(topic, 0)
        self._interest[topic] = count + 1
        if not count:
            self.broker.subscribe(topic)
        return not count

    def unwant(self, topic: str) -> None:
        """One less here wants the topic."""
        count = self._interest.get(topic, 0)
        if count > 1:
            self._interest[topic] = count - 1
        elif count:
            del self._interest[topic]
            self.broker.unsubscribe(topic)

    # Messages.

    def publish(self, topic: str, message: ClusterMessage) -> None:
        """Publish a message to the nodes that want the topic, or keep it until the broker is reached again."""
        self.publish_packed(topic, envelope.encode(message))

    def publish_packed(self, topic: str, data: bytes) -> None:
        """As `publish`, for a message that is encoded already."""
        if not self.is_open:
            return
        if not self._backlog and not self._is_held and self.broker.connected:
            self._publish(topic, data)
        else:
            self._keep(topic, data)

    def send_to(self, node: str, message: ClusterMessage) -> None:
        """Send a message to one node, if the broker is connected: it would be of no use later."""
        if self.is_open and self.broker.connected:
            self._publish(NODE + node, envelope.encode(message))

    def _publish(self, topic: str, data: bytes) -> None:
        try:
            self.broker.publish(topic, data)
        except WseError as exc:
            problem = "a message cannot be sent to other nodes"
            self._endpoint.report(WseError(ErrorCode.MSG_PROCESSING_ERROR, {"topic": topic}, problem), None, exc)

    # The backlog.

    def hold(self) -> None:
        """Keep what is published: the others may not hear yet."""
        self._is_held = True

    def release(self) -> None:
        """Keep nothing any more; `catch_up` publishes what has been."""
        self._is_held = False

    def catch_up(self) -> None:
        """Publish what was kept, or a part of it, and report what could not be."""
        if self._is_held:
            return
        published = 0
        while self._backlog and self.broker.connected and published < BATCH:
            topic, data = self._backlog.popleft()
            self._backlog_bytes -= len(data)
            published += len(data)
            self._publish(topic, data)
        if self._lost_now:
            lost, self._lost_now = self._lost_now, 0
            self._endpoint.report(WseError(ErrorCode.BROKER_LOST_MESSAGES, {"lost": lost}))

    def take_back(self, unsent: list[tuple[str, bytes]]) -> None:
        """Keep what the broker was given and has not sent, before what came later."""
        if unsent and self.is_open:
            newer, self._backlog, self._backlog_bytes = self._backlog, deque(), 0
            for topic, data in (*unsent, *newer):
                if not topic.startswith(NODE):  # what one node is told is of no use to it later
                    self._keep(topic, data)

    def clear(self) -> None:
        """We have left the cluster."""
        self._interest.clear()
        self._backlog.clear()
        self._backlog_bytes = 0

    def _keep(self, topic: str, data: bytes) -> None:
        if len(self._backlog) < self._max_count and self._backlog_bytes + len(data) <= self._max_bytes:
            self._backlog.append((topic, data))
            self._backlog_bytes += len(data)
        else:
            self._lost_now += 1
            self.lost += 1
