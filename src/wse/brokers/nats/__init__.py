"""The broker on NATS with JetStream (the extra `wse[nats]`)."""

try:
    from wse.brokers.nats.broker import NatsBroker
except ImportError as exc:  # pragma: no cover - the tests have the extra
    raise ImportError('wse.brokers.nats needs the nats-py library: pip install "wse[nats]"') from exc

__all__ = ["NatsBroker"]
