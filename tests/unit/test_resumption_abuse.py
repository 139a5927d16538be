"""Clients that claim sessions and do not come back: the honest one does, and nothing is left of the others.

`test_resumption.py` has claims that do not fit, acks of what was never sent, and clients that never confirm. The fuzz
target `resume` mixes them, and the hostile suite has them at a server under load.
"""

from __future__ import annotations

import gc
from weakref import ref

import pytest

from support.core import ServerSide
from wse.core.resume import Resume


class Side(ServerSide):
    """A server whose users are accepted at once, or when the test has decided so."""

    def __init__(self, **options):
        self.deciding = None
        super().__init__(self.decide, conns_per_user=3, resume=Resume(window=30), **options)

    def decide(self, auth):
        if self.deciding is None:
            auth.accept(auth.identity)
            return None
        return self.decide_later(auth, self.deciding)

    async def decide_later(self, auth, decision):
        await decision
        auth.accept(auth.identity)

    def come(self, cid, resume):
        peer = self.open()
        peer.say("~wse:hi", {"identity": cid, "ext": {"resume": resume}})
        self.scheduler.run()
        return peer

    def join_resumable(self, cid="ann"):
        peer = self.come(cid, {})
        answer = peer.heard[0][1]["resume"]
        peer.ticket = {"id": answer["id"], "key": answer["key"]}
        return peer

    def comes_back(self, peer):
        """Whether the honest client gets its session, with everything that it has missed."""
        peer.conn.send("news", 1)
        new = self.come("ann", {**peer.ticket, "got": 0, "sent": [1, 0]})
        (_, ext, _), welcome, *missed = new.heard
        return welcome[0] == "~wse:welcome" and "lost" not in ext["resume"] and missed == [("news", 1, None)]


def claims_of(peer):
    """What thieves claim: a forged id, a forged key, counts that were never reached, and the right ones."""
    id_, key = peer.ticket.values()
    return {
        "forged id": {"id": "0" * 16, "key": key, "got": 0, "sent": [1, 0]},
        "forged key": {"id": id_, "key": "A" * 22, "got": 0, "sent": [1, 0]},
        "count too high": {"id": id_, "key": key, "got": 2**53 - 1, "sent": [1, 0]},
        "right": {"id": id_, "key": key, "got": 0, "sent": [1, 0]},
    }


@pytest.mark.parametrize("many", [400, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("is_away", [True, False])
def test_half_resumes_leave_nothing_behind(is_away, many):
    """Sockets that claim a session, and close while their user is still being identified."""
    side = Side()
    honest = side.join_resumable()
    if is_away:
        honest.vanish()
    claims = list(claims_of(honest).values())
    timers = side.scheduler.timers
    thieves = []
    for number in range(many):
        side.deciding = side.scheduler.create_future()
        thief = side.come(("ann", "eve")[number // 4 % 2], claims[number % 4])
        assert thief.heard == []
        thief.vanish()
        side.deciding.set_result(None)
        side.scheduler.run()
        side.scheduler.tasks.clear()
        thieves.append(ref(thief.link))
    side.log.clear()
    del thief
    assert side.errors == []
    assert side.scheduler.timers == timers
    assert side.hub.sockets.unauthenticated == 0
    assert honest.session.ticket.claimants == 0
    gc.collect()
    assert [link for link in thieves if link() is not None] == []
    side.deciding = None
    assert side.comes_back(honest)


def test_the_patience_of_an_earlier_claim_does_not_end_a_later_one():
    side = Side(auth_timeout=20.0)
    honest = side.join_resumable()
    honest.vanish()
    side.scheduler.advance(12)
    side.deciding = side.scheduler.create_future()
    side.come("ann", claims_of(honest)["right"]).vanish()
    side.deciding.set_result(None)
    side.scheduler.advance(17)
    decision = side.deciding = side.scheduler.create_future()
    back = side.come("ann", claims_of(honest)["right"])
    side.scheduler.advance(10)  # the window has ended meanwhile, and the patience of the first claim is over
    decision.set_result(None)
    side.scheduler.run()
    (_, ext, _), _ = back.heard
    assert "lost" not in ext["resume"]
    assert not honest.session.ended
    assert side.scheduler.timers == []


def test_a_thief_with_the_key_who_never_finishes_holds_the_window_no_longer_than_it_may_take():
    side = Side(auth_timeout=20.0)
    honest = side.join_resumable()
    honest.vanish()
    side.scheduler.advance(25)
    for _ in range(10):
        side.deciding = side.scheduler.create_future()
        side.come("eve", claims_of(honest)["right"])
        side.scheduler.advance(4)
    assert honest.session.ended
    assert [name for name, *_ in side.names("left")] == ["left"]
    side.scheduler.advance(30)
    assert side.scheduler.timers == []
