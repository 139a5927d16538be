"""A short run of every target, and the proof that faults are found: what `make fuzz` does at length."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fuzz.drivers import FoundError, plain
from fuzz.targets import TARGETS, seeds
from support.core import FakeScheduler
from wse.core.hub.resumption import Resumption
from wse.core.session import serving
from wse.core.session.current_call import bounded
from wse.core.session.flow import Inflow, Outflow, is_credit
from wse.core.session.ledger import Ledger
from wse.core.session.rpc import PendingCalls
from wse.core.session.serving import Serving
from wse.core.session.session import Session
from wse.protocols.json import WseJSON
from wse.transports.deflate import Deflate

TESTS = Path(__file__).parents[1]
INPUTS = {"unpack": 20_000, "server": 1500, "client": 2500, "resume": 1500, "calls": 1500, "assembly": 20_000}


@pytest.mark.parametrize("share", [5, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", TARGETS)
def test_nothing_is_found(name, share):
    inputs = INPUTS[name] // share
    assert plain(TARGETS[name], seeds(name), inputs=inputs) == inputs


def finds(name):
    with pytest.raises(FoundError) as caught:
        plain(TARGETS[name], seeds(name), inputs=INPUTS[name])
    with pytest.raises(type(caught.value.__cause__)):
        TARGETS[name](caught.value.data)  # one input is all that it takes to see it again
    FakeScheduler.made.clear()  # these stories have ended before they looked at the results of their calls


def test_an_unpack_that_raises_anything_else_is_found(monkeypatch):
    def unpack(self, data):
        message = original(self, data)
        if isinstance(message[1], list):
            raise KeyError("a bug")
        return message

    original = WseJSON.unpack
    monkeypatch.setattr(WseJSON, "unpack", unpack)
    finds("unpack")


def test_an_unpack_that_loses_a_stamp_is_found(monkeypatch):
    original = WseJSON.unpack
    monkeypatch.setattr(WseJSON, "unpack", lambda self, data: (*original(self, data)[:2], None))
    finds("unpack")


def test_a_call_that_is_answered_twice_is_found(monkeypatch):
    def answer_error(self, exc, name, payload, stamp):
        original(self, exc, name, payload, stamp)
        original(self, exc, name, payload, stamp)

    original = Session._answer_error
    monkeypatch.setattr(Session, "_answer_error", answer_error)
    finds("server")


@pytest.mark.parametrize("name", ["server", "client"])
def test_calls_that_stay_after_the_end_are_found(monkeypatch, name):
    monkeypatch.setattr(PendingCalls, "close", lambda self, code, reason: None)
    finds(name)


def test_a_session_that_goes_on_for_another_user_is_found(monkeypatch):
    original = Resumption.examine

    def examine(self, claim, cid, protocol):
        held = self.find(claim)
        return original(self, claim, cid if held is None else held.conn.cid, protocol)

    monkeypatch.setattr(Resumption, "examine", examine)
    finds("resume")


def test_a_ring_that_is_never_trimmed_is_found(monkeypatch):
    monkeypatch.setattr(Ledger, "_drop", lambda self, count: None)
    monkeypatch.setattr(Ledger, "_grown", lambda self: None)
    finds("resume")


def test_credit_without_a_bound_is_found(monkeypatch):
    def grant(self, count):
        if is_credit(count):
            self.credit += count

    monkeypatch.setattr(Outflow, "grant", grant)
    finds("calls")


def test_items_that_pile_up_are_found(monkeypatch):
    original = Inflow.put
    monkeypatch.setattr(
        Inflow, "put", lambda self, item, size: original(self, item, size) or not self._items.append(item)
    )
    finds("calls")


def test_streams_that_are_counted_for_ever_are_found(monkeypatch):
    monkeypatch.setattr(Serving, "_ended", lambda self, call: self._forget(call))
    finds("calls")
    bounded.clear()


def test_a_deadline_that_no_clock_can_show_is_found(monkeypatch):
    monkeypatch.setattr(serving, "is_duration", lambda value: isinstance(value, int | float) and value >= 0)
    finds("calls")
    bounded.clear()


def test_an_inflation_without_its_limit_is_found(monkeypatch):
    original = Deflate.inflate
    monkeypatch.setattr(Deflate, "inflate", lambda self, data, limit: original(self, data, 10**9))
    finds("assembly")


def test_make_fuzz_counts_its_inputs_and_asks_for_enough():
    run = [sys.executable, "-m", "fuzz", "--seconds", "1", "--least", "1000000000", "unpack"]
    done = subprocess.run(run, cwd=TESTS, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "fewer than 1,000,000,000" in done.stdout
    assert " 0 inputs" not in done.stdout
