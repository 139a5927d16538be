"""The register's protocol, explored: nodes of a cluster do what they do in every order, with every fault.

`model.cluster` says what is real and what is modelled, and `model.checker` how the states are visited.
"""

from __future__ import annotations

import pytest

from model.checker import explore
from model.cluster import FAULTS, ModelCluster
from wse.brokers.memory import MemoryCluster
from wse.brokers.placement import UserRecord
from wse.core.cluster.firing import Firing
from wse.core.cluster.reconciler import Reconciler
from wse.core.cluster.steps import Steps

ONE = ("ann",)
TWO = ("ann", "ann")
WITHOUT_LOSS = tuple(kind for kind in FAULTS if kind not in ("forget", "flush"))
"""Two faults, of which one loses the register: there are stories that cannot be avoided."""


@pytest.fixture(autouse=True)
def quiet(caplog):
    """A user with one device is warned of once for each of some thousand models."""
    caplog.set_level("ERROR", "wse")


def check(**options):
    """Explore all states of a model, none of which has a problem."""
    result = explore(lambda: ModelCluster(**options))
    print(result)
    assert result.problems == ()
    assert result.complete


@pytest.mark.parametrize("limit", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_without_a_fault_every_order_of_two_users_on_three_nodes_is_right(limit):
    check(nodes=3, users=("ann", "ann", "bob"), limit=limit, faults=0)


@pytest.mark.slow
def test_any_one_fault_at_any_moment_of_a_device_s_life_is_repaired():
    check(nodes=2, users=ONE, faults=1)


@pytest.mark.parametrize("kind", ["slow", "crash", "lose", "twice"])
def test_any_one_fault_of_a_kind_is_repaired_while_a_second_device_displaces_the_first(kind):
    check(nodes=2, users=TWO, limit=1, faults=1, kinds=(kind,))


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"nodes": 2, "users": TWO, "limit": 1, "faults": 1}, id="two devices"),
        pytest.param(
            {"nodes": 3, "users": ("ann", "bob"), "limit": 1, "faults": 1, "kinds": ("crash", "stall")},
            id="two users on three nodes",
        ),
        pytest.param(
            {"nodes": 2, "users": ONE, "limit": 1, "faults": 2, "kinds": WITHOUT_LOSS}, id="two faults of any kinds"
        ),
    ],
)
def test_any_faults_are_repaired(options):
    check(**options)


# The model finds what is wrong: each of these turns a part of the protocol off.


def claim_without_asking(self, node, transitions):
    return list(transitions)


def always_in_force(self, node, epoch):
    return True


def join_anew(self, device, limit, generation, *, fresh, recovering, dead=()):
    self.devices.pop(device.conn_id, None)
    self.generation += self.generation % 2
    return JOIN(self, device, limit, generation, fresh=True, recovering=recovering, dead=dead)


def reap_without_inheriting(self, dead, node, *, recovering):
    self.pending = [(owner, one) for owner, one in self.pending if owner not in dead]
    return REAP(self, dead, node, recovering=recovering)


async def do_nothing(*args, **options):
    pass


def stay(self, devices):
    pass


def never_recovering(self):
    return False


def forget_claims(self, node, transitions):
    granted = CLAIM(self, node, transitions)
    self.claimed.clear()
    return granted


JOIN, REAP, CLAIM = UserRecord.join, UserRecord.reap, UserRecord.claim

MUTANTS = {
    "nobody claims": (UserRecord, "claim", claim_without_asking, {"kinds": ("cut",)}),
    "a claim is not remembered": (UserRecord, "claim", forget_claims, {"kinds": ("expire",)}),
    "no step is fenced": (MemoryCluster, "is_in_force", always_in_force, {"kinds": ("cut",)}),
    "a repeated join is another one": (UserRecord, "join", join_anew, {"kinds": ("twice",)}),
    "nobody inherits": (UserRecord, "reap", reap_without_inheriting, {"kinds": ("cut", "crash")}),
    "nobody reads the outbox": (Reconciler, "fire_pending", do_nothing, {"kinds": ("forget", "flush")}),
    "nobody reaps": (Reconciler, "reap", do_nothing, {"kinds": ("crash",)}),
    "displaced devices stay": (Steps, "displace", stay, {"users": TWO, "limit": 1, "faults": 0}),
    "lost claims are not repeated": (Firing, "retry", do_nothing, {"kinds": ("expire", "lose")}),
    "events fire while the register recovers": (
        MemoryCluster,
        "is_recovering",
        property(never_recovering),
        {"kinds": ("forget",), "users": TWO},
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_model_finds_the_fault_when(mutant, monkeypatch):
    owner, name, replacement, options = MUTANTS[mutant]
    options = {"nodes": 2, "users": ONE, "faults": 1, **options}
    monkeypatch.setattr(owner, name, replacement)
    result = explore(lambda: ModelCluster(**options))
    print(result)
    assert result.problems


def test_the_faults_are_all_there_are():
    assert set(FAULTS) <= {name for name in dir(ModelCluster) if not name.startswith("_")}
