"""The protocol of sessions that outlive their connection, explored: every order of messages, losses and returns.

`model.resume` says what is real and what is modelled, and `model.checker` how the states are visited.
"""

from __future__ import annotations

import secrets

import pytest

from model.checker import explore
from model.resume import ModelSession
from wse.core.session.ledger import Ledger


@pytest.fixture(autouse=True)
def prepared(monkeypatch):
    """The models replace what makes ids and keys, and handlers of some thousand models need no check."""
    monkeypatch.setattr(secrets, "token_hex", secrets.token_hex)
    monkeypatch.setattr(secrets, "token_urlsafe", secrets.token_urlsafe)
    monkeypatch.setattr("wse.core.session.signals.check_handler", lambda *_, **__: None)


def check(**options):
    """All states of a model, none of which has a problem."""
    result = explore(lambda: ModelSession(**options))
    assert result.problems == (), str(result)
    assert result.complete
    return result


@pytest.mark.slow
def test_a_message_each_way_survives_a_loss_in_every_order():
    assert check(messages=1, links=2).states > 1000


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_two_messages_each_way_survive_a_loss_in_every_order():
    assert check(messages=2, links=2).states > 40_000


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_session_that_ends_in_between_is_lost_with_exactly_what_was_not_heard():
    assert check(messages=1, links=2, expires=True).states > 5000


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"messages": 2, "links": 2, "ticks": 1, "expires": True}, id="two messages, with acks"),
        pytest.param({"messages": 1, "links": 3, "expires": True}, id="three connections"),
    ],
)
def test_the_nearest_states_of_larger_models_have_no_problem(options):
    result = explore(lambda: ModelSession(**options), most=20_000)
    assert result.problems == (), str(result)


# The model finds faults.


def finds(**options):
    result = explore(lambda: ModelSession(**options))
    assert result.problems
    return result.problems


def test_a_ledger_that_forgets_what_it_has_sent_is_found(monkeypatch):
    monkeypatch.setattr(
        Ledger, "resume", lambda self, link, takes, got: (self.forget_ring(), real(self, link, takes, self.out))
    )
    assert any("heard only" in problem for problem in finds(messages=1, links=2))


def test_a_ledger_that_trims_too_little_is_found(monkeypatch):
    monkeypatch.setattr(Ledger, "resume", lambda self, link, takes, got: real(self, link, takes, max(0, got - 1)))
    assert finds(messages=1, links=2)


def test_an_old_connection_that_is_still_heard_is_found(monkeypatch):
    monkeypatch.setattr("wse.core.hub.resumption.Leftover", KeepsHearing)
    assert finds(messages=1, links=2)


real = Ledger.resume


class KeepsHearing:
    """What should silence a socket that its session has left, and does not."""

    def __init__(self, link, *_):
        self.link = link
