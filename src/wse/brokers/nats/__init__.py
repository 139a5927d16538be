"""The broker on NATS with JetStream (the extra `wse[nats]`)."""

from wse.brokers.nats.broker import NatsBroker

__all__ = ["NatsBroker"]
