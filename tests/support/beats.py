"""Lets a test wait until a node has run for a while: the node reports each renewal of its lease."""

from __future__ import annotations


def when_renewed(server, tell):
    """Call `tell` at each renewal. Right after it the node looks for dead nodes, and settles its devices."""
    broker = server.cluster.broker
    renew = broker.renew

    async def renew_and_tell(ttl):
        is_kept = await renew(ttl)
        tell()
        return is_kept

    broker.renew = renew_and_tell
