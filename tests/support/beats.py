"""Lets a test wait until a node has run for a while: the node reports each renewal of its lease."""

from __future__ import annotations


def when_renewed(server, tell):
    """Call `tell` each time. The node settles its devices and looks for dead nodes right after that."""
    broker = server.cluster.broker
    renew = broker.renew

    async def renew_and_tell(ttl, **options):
        lease = await renew(ttl, **options)
        tell()
        return lease

    broker.renew = renew_and_tell
