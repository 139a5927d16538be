"""Sessions that move between nodes, explored: every order in which the nodes, their clients and senders work.

`model.moving` says what is real and what is modelled, and `model.checker` how the states are visited.
"""

from __future__ import annotations

import secrets

import pytest

from model.checker import explore
from model.moving import JSON, ModelMove
from wse.core.cluster.placeholder import Placeholder
from wse.core.hub.tickets import Refusal


@pytest.fixture(autouse=True)
def prepared(monkeypatch):
    """The models replace what makes ids and keys, and handlers of some thousand models need no check."""
    monkeypatch.setattr(secrets, "token_hex", secrets.token_hex)
    monkeypatch.setattr(secrets, "token_urlsafe", secrets.token_urlsafe)
    monkeypatch.setattr("wse.core.session.signals.check_handler", lambda *_, **__: None)
    yield
    ModelMove.end()


def check(**options):
    """All states of a model, none of which has a problem."""
    result = explore(lambda: ModelMove(**options))
    assert result.problems == (), str(result)
    assert result.complete
    return result


@pytest.mark.parametrize(
    ("options", "states"),
    [
        pytest.param({"sends": (1, 0, 0)}, 60, id="the old node sends"),
        pytest.param({"sends": (0, 1, 0)}, 80, id="the new node sends"),
        pytest.param({"sends": (0, 0, 1)}, 80, id="a publisher sends"),
        pytest.param({"sends": (0, 0, 1), "rooms": True}, 80, id="a publisher sends to a room"),
        pytest.param({"says": 1, "crash": 0}, 50, id="the old node dies"),
        pytest.param({"says": 1, "crash": 1}, 50, id="the new node dies"),
        pytest.param({"says": 1, "opens": (1, 0)}, 150, id="the client goes back"),
        pytest.param({"says": 1, "opens": (1, 1)}, 130, id="the client tries again"),
        pytest.param({"sends": (0, 0, 1), "losses": 1}, 150, id="an answer is lost"),
        pytest.param({"losses": 2}, 40, id="answers are lost"),
    ],
)
def test_a_session_moves_in_every_order(options, states):
    assert check(**options).states > states


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("options", "states"),
    [
        pytest.param({"sends": (1, 1, 1)}, 8000, id="all send"),
        pytest.param({"sends": (1, 1, 0), "rooms": True}, 600, id="both nodes send to a room"),
        pytest.param({"sends": (0, 0, 2)}, 300, id="a publisher sends twice"),
        pytest.param({"sends": (0, 0, 1), "says": 1, "losses": 1}, 350, id="an answer is lost"),
        pytest.param({"losses": 1, "opens": (1, 0)}, 100, id="an answer is lost and the client goes back"),
        pytest.param({"losses": 2, "opens": (1, 0)}, 150, id="answers are lost and the client goes back"),
        pytest.param({"sends": (0, 0, 1), "crash": 0}, 150, id="the old node dies"),
        pytest.param({"sends": (0, 0, 1), "crash": 1}, 140, id="the new node dies"),
        pytest.param({"sends": (0, 0, 1), "opens": (1, 0)}, 500, id="the client goes back"),
        pytest.param({"sends": (0, 0, 1), "says": 1, "opens": (1, 0)}, 1000, id="both sides send"),
        pytest.param({"says": 1, "opens": (1, 0, 1)}, 500, id="the client goes back and forth"),
    ],
)
def test_a_session_moves_in_every_order_of_larger_models(options, states):
    assert check(**options).states > states


# The model finds faults.


def finds(**options):
    result = explore(lambda: ModelMove(**options))
    assert result.problems
    return result.problems


@pytest.mark.parametrize("sends", [(1, 0, 0), (0, 0, 1)])
def test_a_node_that_keeps_what_the_other_has_heard_is_found(monkeypatch, sends):
    monkeypatch.setattr(Placeholder, "unheard", lambda self, heard, rooms: self._kept)
    assert any("has heard [0, 0]" in problem for problem in finds(sends=sends))


@pytest.mark.parametrize("sends", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_a_node_that_does_not_listen_in_time_is_found(monkeypatch, sends):
    monkeypatch.setattr(Placeholder, "take", lambda self, topic, message: None)
    assert any("has heard only" in problem for problem in finds(sends=sends))


def test_a_node_that_fetches_a_session_for_nobody_is_found(monkeypatch):
    monkeypatch.setattr("wse.core.hub.moving.Moving._fetch", fetch_for_ever)
    assert finds(opens=(1, 0))


async def fetch_for_ever(self, arrival, holder):
    network = self._hub.network
    fetched = await network.fetch(holder, arrival.claim, arrival.cid, JSON.name, lambda: True)
    if not isinstance(fetched, Refusal):
        self._arrived(arrival, fetched)
