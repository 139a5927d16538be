"""The broker on Redis or Valkey (the extra `wse[redis]`)."""

try:
    from wse.brokers.redis.broker import RedisBroker
except ImportError as exc:  # pragma: no cover - the tests have the extra
    raise ImportError('wse.brokers.redis needs the redis library with hiredis: pip install "wse[redis]"') from exc

__all__ = ["RedisBroker"]
