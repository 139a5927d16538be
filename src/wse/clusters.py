"""Servers and publishers put together with the broker of their cluster."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from wse.core.cluster.cluster import Cluster
from wse.protocols.json import WseJSON
from wse.protocols.msgpack import WseMsgpack

if TYPE_CHECKING:
    from wse.core.cluster.settings import ClusterSettings
    from wse.core.hub.hub import Hub
    from wse.core.ports.broker import Broker


def join_cluster(hub: Hub, broker: str | Broker, settings: ClusterSettings) -> Cluster:
    """A server's hub as a node of a cluster, still to be opened."""
    readers = (WseJSON(), WseMsgpack())
    return Cluster(hub, as_broker(broker), settings, clock=time.time, readers=readers)


def as_broker(broker: str | Broker) -> Broker:
    """A broker, given as such or by its URL."""
    if isinstance(broker, str):
        from wse.brokers import from_url

        return from_url(broker)
    return broker
