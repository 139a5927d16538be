"""Presence under long random stories: the events of `tests/model`, with more devices and more faults at a time.

The nodes are real, and the engine is simulated on a virtual clock; see `model.cluster`.
"""

from __future__ import annotations

import logging

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.cluster import FAULTS, ModelCluster

USERS = ("ann", "ann", "ann", "bob", "bob", "eve")
profile = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@pytest.fixture(autouse=True)
def silence(caplog):
    """A server with one device for each user warns of the second, each time that it is made."""
    caplog.set_level(logging.ERROR, "wse")


def tell(data, nodes, limit, faults, kinds, steps):
    """A story: what happens next is drawn from what can happen. Once it is over, and quiet, nothing is wrong."""
    model = ModelCluster(nodes=nodes, users=USERS, limit=limit, faults=faults, kinds=kinds)
    story = []
    for number in data.draw(st.lists(st.integers(0, 1 << 16), min_size=steps // 2, max_size=steps)):
        actions = model.actions()
        if not actions:
            break
        action = actions[number % len(actions)]
        story.append(action)
        model.take(action)
        assert model.faulty == [], story
    while busy := next((node for node in model.nodes if node.is_busy), None):
        model.take(model._next(busy))
    assert model.problems() == [], story


REPAIRED = tuple(kind for kind in FAULTS if kind not in ("crash", "forget", "flush"))
"""Faults that lose nothing: any number of them leaves no trace."""

some = given(st.data(), st.integers(2, 4), st.integers(1, 3), st.integers(0, 12))
at_most_one = given(st.data(), st.integers(2, 4), st.integers(1, 3), st.integers(0, 1))


@settings(profile, max_examples=40, derandomize=True)
@some
def test_whatever_is_slow_cut_or_lost_presence_is_right_in_the_end(data, nodes, limit, faults):
    tell(data, nodes, limit, faults, REPAIRED, 40)


@settings(profile, max_examples=40, derandomize=True)
@at_most_one
def test_whatever_fails_once_presence_is_right_in_the_end(data, nodes, limit, faults):
    tell(data, nodes, limit, faults, FAULTS, 40)


@pytest.mark.long
@pytest.mark.timeout(3600)
@settings(profile, max_examples=2000)
@some
def test_whatever_is_slow_cut_or_lost_in_a_long_story_presence_is_right_in_the_end(data, nodes, limit, faults):
    tell(data, nodes, limit, faults, REPAIRED, 120)


@pytest.mark.long
@pytest.mark.timeout(3600)
@settings(profile, max_examples=2000)
@at_most_one
def test_whatever_fails_once_in_a_long_story_presence_is_right_in_the_end(data, nodes, limit, faults):
    tell(data, nodes, limit, faults, FAULTS, 120)
