"""Brokers connect the nodes of a cluster; each implements the port `wse.core.ports.broker.Broker`.

Stores keep messages, by the port `wse.core.ports.store.Store`. Each of these brokers has one: its attribute `store`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from wse.core.ports.broker import Broker
    from wse.core.ports.store import Store

SCHEMES = ("memory", "nats", "tls", "redis", "rediss", "redis+sentinel", "rediss+sentinel")


def from_url(url: str) -> Broker:
    """Make the broker for a URL; it does not connect yet.

    * `memory:` needs no engine: for a server on its own.
    * `nats://` and, with TLS, `tls://`: NATS with JetStream; `wse.brokers.nats.broker` describes the URL.
    * `redis://` and, with TLS, `rediss://`: Redis or Valkey; `wse.brokers.redis.broker` describes the URL.
    * `redis+sentinel://`, `rediss+sentinel://`: the same behind Sentinels; see `wse.brokers.redis.sentinel`.

    Raises:
        ValueError: There is no broker for this scheme, or the URL is not valid.
        ImportError: The library that the broker needs is not installed.
    """
    match urlsplit(url).scheme:
        case "memory":
            from wse.brokers.memory import MemoryBroker

            return MemoryBroker()
        case "nats" | "tls":
            from wse.brokers.nats.broker import NatsBroker

            return NatsBroker(url)
        case "redis" | "rediss" | "redis+sentinel" | "rediss+sentinel":
            from wse.brokers.redis.broker import RedisBroker

            return RedisBroker(url)
        case scheme:
            raise ValueError(f"no broker has URLs that start with {scheme!r}; known are {', '.join(SCHEMES)}")


def as_broker(broker: str | Broker) -> Broker:
    """Return the broker itself, or make the one for a URL.

    Raises:
        ValueError, ImportError: As `from_url`.
    """
    return from_url(broker) if isinstance(broker, str) else broker


def store_of(store: str | Store | None, broker: Broker | None) -> Store:
    """The store that is given, or that of the broker; without either, one in memory.

    Raises:
        ValueError: There is no store for the URL, or the broker has none.
    """
    if isinstance(store, str):
        if broker is not None:
            raise ValueError("a file keeps the messages of a server on its own; in a cluster, the broker keeps them")
        from wse.brokers.sqlite_store import SqliteStore

        scheme, _, path = store.partition(":")
        if scheme != "sqlite" or not path.strip("/"):
            raise ValueError(f"the URL of a store is that of a file, such as 'sqlite:inbox.db', not {store!r}")
        return SqliteStore(path.removeprefix("//"))
    if store is not None:
        return store
    if broker is None:
        from wse.brokers.memory_store import MemoryStore

        return MemoryStore()
    own: Store | None = getattr(broker, "store", None)
    if own is None:
        raise ValueError(f"{type(broker).__name__} keeps no messages: give Inbox(store=...)")
    return own
