"""A server's cluster, as the application sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wse.core.cluster.node import ClusterNode
    from wse.core.cluster.settings import ClusterSettings
    from wse.core.ports.broker import Broker


class Cluster:
    """The cluster that this server is a node of: `server.cluster`."""

    __slots__ = ("_node",)

    def __init__(self, node: ClusterNode) -> None:
        self._node = node

    @property
    def node(self) -> str:
        """The id of this node. It is new at each start, and an empty string before the first."""
        return self._node.node

    @property
    def healthy(self) -> bool:
        """Whether messages reach this node and leave it: the broker is connected and delivers, and the lease holds."""
        return self._node.healthy

    @property
    def lost(self) -> int:
        """The number of messages to other nodes that were lost because the broker could not be reached for too long.

        Messages that were in flight when the connection broke do not count, because they may have arrived.
        """
        return self._node.bus.lost

    @property
    def broker(self) -> Broker:
        """The broker that connects the nodes."""
        return self._node.broker

    @property
    def settings(self) -> ClusterSettings:
        """The times and bounds of the cluster."""
        return self._node.settings

    def __repr__(self) -> str:
        return f"<Cluster node {self.node or 'not started'}>"
