"""The connection of a node to the others: its topics, and a backlog of messages while the broker is away."""

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

MAX_BATCH_BYTES = 16 * 1024 * 1024
"""Bytes of the backlog that are published at a time. Brokers take no more than 64 MiB at once."""


class Bus:
    """Publishes the messages of one node, and subscribes to its topics.

    Args:
        broker: Carries the messages.
        endpoint: Receives reports of messages that cannot be sent.
        backlog: How many messages are kept while the broker cannot be reached.
        backlog_bytes: How many bytes these messages may have.

    Attributes:
        node: The id of this node; a new one each time that it starts.
        peers: The other nodes, as of the last time that the cluster was undisturbed.
        is_open: Whether this node is part of the cluster; before and after, nothing is published.
        seq: How many messages of the application this node has published.
        backlog_bytes: The size of the messages that wait for the broker.
        lost: How many messages were lost because the broker was out of reach for too long.
    """

    def __init__(self, broker: Broker, endpoint: Endpoint, *, backlog: int, backlog_bytes: int) -> None:
        self.broker = broker
        self.node = ""
        self.peers: frozenset[str] = frozenset()
        self.is_open = False
        self.seq = 0
        self.lost = 0
        self._endpoint = endpoint
        self._max_count = backlog
        self._max_bytes = backlog_bytes
        self._interest: dict[str, int] = {}
        self._backlog: deque[tuple[str, bytes]] = deque()
        self.backlog_bytes = 0
        self._lost_now = 0  # since the connection was lost
        self._is_held = False

    # Interest.

    def want(self, topic: str) -> bool:
        """Count one more subscriber of the topic on this node; returns whether it is the first."""
        count = self._interest.get(topic, 0)
        self._interest[topic] = count + 1
        if not count:
            self.broker.subscribe(topic)
        return not count

    def unwant(self, topic: str) -> None:
        """Count one subscriber less."""
        count = self._interest.get(topic, 0)
        if count > 1:
            self._interest[topic] = count - 1
        elif count:
            del self._interest[topic]
            self.broker.unsubscribe(topic)

    # Messages.

    @property
    def backlog(self) -> int:
        """How many messages wait for the broker."""
        return len(self._backlog)

    @property
    def is_current(self) -> bool:
        """Whether all that was published before has left, so that nothing that is sent to one node overtakes it."""
        return self.is_open and not self._backlog and not self._is_held and self.broker.connected

    def publish(self, topic: str, message: ClusterMessage) -> None:
        """Publish a message to the nodes that have subscribed to the topic, or keep it until the broker is back."""
        self.publish_packed(topic, envelope.encode(message))

    def publish_packed(self, topic: str, data: bytes) -> None:
        """Publish a message that is already encoded; see `publish`."""
        if not self.is_open:
            return
        if self.is_current:
            self._publish(topic, data)
        else:
            self._keep(topic, data)

    def send_to(self, node: str, message: ClusterMessage) -> None:
        """Send a message to one node if the broker is connected. Such messages are of no use later."""
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
        """Keep messages in the backlog: the other nodes may not receive yet."""
        self._is_held = True

    def release(self) -> None:
        """Stop keeping messages; `catch_up` publishes the backlog."""
        self._is_held = False

    def catch_up(self) -> None:
        """Publish the backlog, or a part of it, and report how many messages did not fit into it."""
        if self._is_held:
            return
        published = 0
        while self._backlog and self.broker.connected and published < MAX_BATCH_BYTES:
            topic, data = self._backlog.popleft()
            self.backlog_bytes -= len(data)
            published += len(data)
            self._publish(topic, data)
        if self._lost_now:
            lost, self._lost_now = self._lost_now, 0
            self._endpoint.report(WseError(ErrorCode.BROKER_LOST_MESSAGES, {"lost": lost}))

    def take_back(self, unsent: list[tuple[str, bytes]]) -> None:
        """Put messages that the broker has not sent at the front of the backlog."""
        if unsent and self.is_open:
            newer, self._backlog, self.backlog_bytes = self._backlog, deque(), 0
            for topic, data in (*unsent, *newer):
                if not topic.startswith(NODE):  # messages to one node are of no use later
                    self._keep(topic, data)

    def clear(self) -> None:
        """Forget topics and backlog: this node has left the cluster."""
        self._interest.clear()
        self._backlog.clear()
        self.backlog_bytes = 0

    def _keep(self, topic: str, data: bytes) -> None:
        if len(self._backlog) < self._max_count and self.backlog_bytes + len(data) <= self._max_bytes:
            self._backlog.append((topic, data))
            self.backlog_bytes += len(data)
        else:
            self._lost_now += 1
            self.lost += 1
