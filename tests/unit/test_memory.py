"""The in-memory link's own edges; what a transport must do is in the contract suite."""

import asyncio

from wse import Limits
from wse.transports.memory import MemoryLink


class Recorder:
    def __init__(self):
        self.heard = []

    def receive(self, data):
        self.heard.append(data)

    def closed(self, code, reason):
        self.heard.append((code, reason))


def pair():
    one, other = MemoryLink.pair(Limits(), Limits())
    one.session, other.session = Recorder(), Recorder()
    return one, other


async def turns(count=3):
    for _ in range(count):
        await asyncio.sleep(0)


async def test_closing_twice_says_it_once():
    one, other = pair()
    one.close(1000, "bye")
    one.close(4000, "again")
    await turns()
    assert other.session.heard == [(1000, "bye")]
    assert one.session.heard == [(1000, "bye")]


async def test_nothing_arrives_after_an_abort():
    one, other = pair()
    other.abort()
    one.write("late")
    await turns()
    assert other.session.heard == [(1006, "")]
    assert one.session.heard == [(1006, "")]


async def test_what_waits_to_arrive_is_what_is_buffered():
    one, other = pair()
    one.write("four")
    one.write_utf8(b"two")
    assert one.buffered == 7
    await turns()
    assert one.buffered == 0
    assert other.session.heard == ["four", "two"]
