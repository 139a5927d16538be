"""Clients whose server the test plays (`far`): backoffs, connectors, and the steps of an opening."""

from __future__ import annotations

import asyncio

import pytest

from support.net import soon
from wse import Backoff, WseError

AT_ONCE = Backoff(base=0)
WALK = ["CONNECTING", "READY"]


class CountingBackoff(Backoff):
    """Never waits, and remembers for which attempts it was asked to."""

    def __init__(self):
        super().__init__()
        object.__setattr__(self, "attempts", [])

    def delay(self, attempt):
        self.attempts.append(attempt)
        return 0.0


class Held:
    """A connector that does not come back until it is told to."""

    def __init__(self):
        self.called = asyncio.Event()
        self.release = asyncio.Event()

    async def __call__(self, url, protocol, headers, limits, open):
        self.called.set()
        await self.release.wait()


async def fails(awaitable):
    with pytest.raises(WseError) as caught:
        await soon(awaitable)
    return caught.value


async def begin(far, client):
    """A connect that has said hi, and the server's end of it."""
    connecting = asyncio.ensure_future(client.connect())
    peer = await far.peer()
    await peer.hear()
    return connecting, peer


async def accept(far, welcome=None):
    """Welcome the next connection."""
    peer = await far.peer()
    await peer.hear()
    await peer.say("~wse:welcome", welcome)
    return peer


def other_tasks():
    return asyncio.all_tasks() - {asyncio.current_task()}
