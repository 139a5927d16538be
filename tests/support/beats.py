"""How a test knows that a node has gone on for a while: it tells each time that it has renewed its lease."""

from __future__ import annotations


def when_renewed(server, tell):
    """Call `tell` each time. The node looks for dead nodes, and settles what it owes the register, right after that."""
    broker = server.cluster.broker
    renew = broker.renew

    async def renew_and_tell(ttl):
        is_kept = await renew(ttl)
        tell()
        return is_kept

    broker.renew = renew_and_tell
