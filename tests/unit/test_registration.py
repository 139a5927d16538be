"""The table of a node's devices: which of them ask for a step of the register."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from wse.core.cluster.registration import UNSETTLED, Registration, Registrations, State
from wse.core.ports.broker import Away, Device


@pytest.fixture
def devices():
    return Registrations()


def a_device(conn_id="c1"):
    return Registration(Device("sann", conn_id, "node"), SimpleNamespace(attached=True))


def enter(devices, state, conn_id="c1"):
    one = a_device(conn_id)
    devices[conn_id] = one
    devices.enter(one, state)
    return one


def test_a_new_device_joins_and_has_made_no_step():
    one = a_device()
    assert (one.state, one.generation, one.end, one.is_busy, one.is_again) == (State.JOINING, 0, None, False, False)


@pytest.mark.parametrize("state", State)
def test_a_device_outside_or_leaving_asks_for_a_step(devices, state):
    one = enter(devices, state)
    assert one.state is state
    assert (one in devices.unsettled) == (state in UNSETTLED)


@pytest.mark.parametrize("state", [State.INSIDE, State.DISPLACED])
def test_a_device_that_is_inside_or_displaced_asks_for_nothing_more(devices, state):
    one = enter(devices, State.OUTSIDE)
    devices.enter(one, state)
    assert one not in devices.unsettled
    assert devices == {"c1": one}


@pytest.mark.parametrize(
    ("attached", "end", "away"),
    [(True, None, Away.HERE), (False, None, Away.DETACHED), (True, "left", Away.GONE), (False, "left", Away.GONE)],
)
@pytest.mark.parametrize("known", Away)
def test_a_device_in_the_register_asks_for_a_step_if_that_does_not_know_whether_it_is_away(
    devices, attached, end, away, known
):
    one = a_device()
    one.conn.attached, one.end = attached, end
    one.device = replace(one.device, away=known)
    assert one.away is away
    for state in (State.INSIDE, State.AWAY):
        devices.enter(one, state)
        assert one.is_unsettled == (one in devices.unsettled) == (known != away)
    one.device = replace(one.device, away=away)
    devices.look_at(one)
    assert devices.unsettled == {}


def test_devices_make_their_steps_in_the_order_in_which_they_began_to_wait(devices):
    waiting = [enter(devices, State.OUTSIDE, conn_id) for conn_id in "cab"]
    assert [*devices.unsettled] == waiting


def test_the_end_of_the_last_device_is_told_once(devices):
    told = []
    devices.when_empty = lambda: told.append(len(devices))
    one, other = enter(devices, State.LEAVING, "c1"), enter(devices, State.LEAVING, "c2")
    devices.forget(one)
    assert told == []
    assert [*devices.unsettled] == [other]
    devices.forget(one)
    assert told == []
    devices.forget(other)
    assert told == [0]
    devices.forget(other)
    assert told == [0]


def test_nobody_need_listen_for_the_end_of_the_last(devices):
    devices.forget(enter(devices, State.LEAVING))
    assert devices == {}


def test_after_the_end_of_the_node_s_membership_nothing_is_to_be_done(devices):
    enter(devices, State.OUTSIDE)
    devices.clear()
    assert devices == {}
    assert devices.unsettled == {}
