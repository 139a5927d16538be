"""The broker on Redis or Valkey (the extra `wse[redis]`)."""

from wse.brokers.redis.broker import RedisBroker

__all__ = ["RedisBroker"]
