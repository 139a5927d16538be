"""Everything that WSE uses of redis-py without its promise: names that begin with an underscore.

`pyproject.toml` caps the version of redis-py, and `tests/unit/test_redis_private.py` names each of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio

    from redis.asyncio.connection import AbstractConnection


def transport_of(connection: AbstractConnection) -> asyncio.WriteTransport:
    """The transport of a connection that is open."""
    writer = connection._writer
    assert writer is not None
    return writer.transport
