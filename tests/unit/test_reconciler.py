"""What a node does when its lease, the register or answers were lost: each case by itself, with the parts replaced."""

import asyncio
from types import SimpleNamespace

import pytest

from support.core import FakeScheduler
from wse import ErrorCode, WseError
from wse.core.cluster.firing import FIRED_TTL
from wse.core.cluster.reconciler import EARLIER, FORGOTTEN, WIDTH, Reconciler, each
from wse.core.cluster.registration import Registration, Registrations, State
from wse.core.ports.broker import Away, Device, Lease, Step, Transition


class Parts:
    """A reconciler; what it asks of the other parts is in `log`."""

    def __init__(self):
        self.log = []
        self.scheduler = FakeScheduler()
        self.registrations = Registrations()
        # As steps
        self.lease = 0
        self.restoring = {}
        # What the parts answer
        self.pages = []
        self.outbox = []
        self.reaped = []
        self.generations_of = {}
        self.lost = []
        self.departed = Step(0)
        self.away = set()
        self.reconciler = Reconciler(self, self.scheduler, self.registrations, self, self)

    def _ask(self, name, *args):
        if name in self.away:
            raise WseError(ErrorCode.BROKER_UNAVAILABLE)
        self.log.append((name, *args))

    # The register.

    async def mine(self):
        self._ask("mine")
        for page in self.pages:
            yield page

    async def leave(self, device, *, generation=0):
        self._ask("leave", device.conn_id, generation)
        return Step(2, (Transition(device.user, 2),))

    async def pending(self):
        return self.outbox

    async def settle(self, what):
        if isinstance(what, Registration):  # of the steps
            self._ask("settle", what.device.conn_id)
            self.registrations.unsettled.pop(what)
            return None
        self._ask("decide", what.user)
        return Step(4, (Transition(what.user, 4),))

    async def reap(self):
        return self.reaped.pop(0) if self.reaped else []

    # Steps and events.

    def decided(self, generations):
        self.log += [("know", *generations.items())] if generations else []

    async def depart(self, transition):
        self._ask("depart", transition.user)
        return self.departed

    def generations(self, user):
        return self.generations_of.get(user, ())

    def register_lost(self):
        self.log.append(("register lost",))
        return self.lost

    async def retry(self):
        self._ask("retry")

    async def fire(self, transitions, identity=None):
        self._ask("fire", *[(one.user, one.generation) for one in transitions], *([identity] if identity else []))

    def emit(self, events):
        self.log.append(("emit", *[(one.user, one.generation, identity) for one, identity in events]))

    # The test's part.

    def add(self, conn_id, state=State.INSIDE, user="sann", place=1, generation=0):
        one = Registration(Device(user, conn_id, "node", place), SimpleNamespace(attached=True))
        one.generation = generation
        self.registrations[conn_id] = one
        self.registrations.enter(one, state)
        return one

    def renewed(self, state, register="first", pending=False):
        self.reconciler.renewed(Lease(register, state, False, pending))
        self.log.clear()

    def do(self, coroutine):
        task = self.scheduler.start(coroutine)
        self.scheduler.run()
        assert task.done()
        return task.result()

    def reconcile(self):
        self.log.clear()
        self.do(self.reconciler.reconcile())
        return [entry for entry in self.log if entry[0] not in ("mine", "retry")]


@pytest.fixture
def node():
    node = Parts()
    node.renewed("new")
    node.reconcile()
    return node


# A lease is kept, new, or of a node that was reaped.


def test_the_first_lease_asks_for_a_comparison_and_restores_nothing():
    node = Parts()
    assert not node.reconciler.is_disturbed
    node.add("c1", State.OUTSIDE, place=0)
    node.renewed("new")
    assert node.reconciler.register == "first"
    assert node.reconciler.is_disturbed
    assert (node.lease, node.restoring) == (1, {})


def test_a_lease_that_is_kept_changes_nothing(node):
    one = node.add("c1", generation=3)
    node.renewed("kept")
    assert (node.lease, node.restoring, node.reconciler.is_disturbed) == (1, {}, False)
    assert (one.state, one.device.place) == (State.INSIDE, 1)


@pytest.mark.parametrize(("state", "now"), [(State.INSIDE, State.OUTSIDE), (State.AWAY, State.LEAVING),
                                            (State.LEAVING, State.LEAVING), (State.DISPLACED, State.DISPLACED),
                                            (State.JOINING, State.JOINING)])  # fmt: skip
def test_after_a_new_lease_devices_are_registered_again_or_leave(node, state, now):
    one = node.add("c1", state)
    node.renewed("reaped")
    assert one.state is now
    assert node.lease == 2
    assert node.reconciler.is_disturbed


def test_after_a_reaping_nothing_is_restored_and_devices_come_before_those_that_came_since(node):
    one, new = node.add("c1", place=5, generation=3), node.add("c2", State.OUTSIDE, place=0)
    node.renewed("reaped")
    assert node.restoring == {}
    assert (one.device.place, new.device.place) == (5 - EARLIER, 0)


def test_a_register_that_was_lost_is_told_the_newest_generation_of_each_user(node):
    for conn_id, generation in (("c1", 3), ("c2", 5), ("c3", 4)):
        node.add(conn_id, generation=generation)
    node.add("c4", user="sbob", generation=1)
    node.add("c5", user="seve")
    node.renewed("new", "second")
    assert node.restoring == {"sann": 5, "sbob": 1}
    assert node.registrations["c1"].device.place == 1 - EARLIER


def test_a_register_that_has_gone_back_in_time_is_told_generations_and_keeps_places(node):
    one = node.add("c1", place=5, generation=3)
    node.renewed("kept")
    node.renewed("new")
    assert node.restoring == {"sann": 3}
    assert one.device.place == 5


@pytest.mark.parametrize(("slept", "restoring"), [(FORGOTTEN, {"sann": 3}), (FORGOTTEN + 1, {})])
def test_a_node_whose_lease_is_forgotten_after_a_long_sleep_was_reaped(node, slept, restoring):
    one = node.add("c1", place=5, generation=3)
    node.renewed("kept")
    node.scheduler.now += slept
    node.renewed("new")
    assert node.restoring == restoring
    assert one.device.place == (5 if restoring else 5 - EARLIER)


def test_what_was_lost_is_the_same_until_the_lease_is_kept(node):
    node.add("c1", generation=3)
    node.renewed("kept")
    node.renewed("reaped")
    node.renewed("new")  # the answer to the last renewal was lost
    assert node.restoring == {}
    node.renewed("kept")
    node.renewed("new")
    assert node.restoring == {"sann": 3}
    assert node.lease == 4


def test_restoring_begins_anew_with_each_lease(node):
    one = node.add("c1", generation=3)
    node.renewed("kept")
    node.renewed("new")
    del node.registrations["c1"]
    node.registrations.unsettled.pop(one)
    node.renewed("new")
    assert node.restoring == {}


# The register is another one.


def test_left_that_a_register_was_lost_before_is_decided_by_the_next_one(node):
    transition = Transition("sbob", 2)
    node.lost = [(transition, "Bob")]
    node.reconciler.renewed(Lease("second", "new", False, False))
    assert node.log.count(("register lost",)) == 1
    node.departed = Step(2, (Transition("sbob", 2),))
    assert node.reconcile() == [("depart", "sbob"), ("fire", ("sbob", 2), "Bob")]
    assert node.reconcile() == []


def test_a_user_who_has_come_again_since_left_in_between(node):
    node.lost = [(Transition("sbob", 2), "Bob")]
    node.renewed("new", "second")
    node.departed = Step(3)
    assert node.reconcile() == [("depart", "sbob"), ("emit", ("sbob", 2, "Bob")), ("fire", "Bob")]


def test_a_user_whose_device_is_still_leaving_leaves_with_it(node):
    node.add("c1", State.LEAVING, user="sbob")
    node.add("c2", State.INSIDE, user="seve")
    node.lost = [(Transition("sbob", 2), "Bob"), (Transition("seve", 2), "Eve")]
    node.renewed("new", "second")
    assert [entry for entry in node.reconcile() if entry[0] == "depart"] == [("depart", "seve")]


def test_the_register_is_lost_once(node):
    node.reconciler.renewed(Lease("second", "new", False, False))
    assert node.log.count(("register lost",)) == 1
    node.log.clear()
    node.reconciler.renewed(Lease("second", "kept", False, False))
    assert node.log == []


def test_a_departure_without_an_answer_is_asked_for_again(node):
    node.lost = [(Transition("sbob", 2), None)]
    node.renewed("new", "second")
    node.away = {"depart"}
    with pytest.raises(WseError):
        node.reconcile()
    node.away = set()
    assert node.reconcile()[0] == ("depart", "sbob")


def test_a_node_that_has_left_meanwhile_fires_no_departure(node):
    node.lost = [(Transition("sbob", 2), None)]
    node.renewed("new", "second")
    depart = node.depart

    async def left(transition):
        node.reconciler.reset()
        return await depart(transition)

    node.depart = left
    assert node.reconcile() == [("depart", "sbob")]


# Comparing.


def test_what_the_register_does_not_hold_is_registered_again(node):
    node.pages = [[Device("sann", "c1", "node", 1)], [Device("sann", "c2", "node", 2)]]
    for conn_id in ("c1", "c2", "c3"):
        node.add(conn_id)
    assert node.reconcile() == [("settle", "c3")]
    assert node.registrations["c3"].state is State.OUTSIDE
    assert not node.reconciler.is_disturbed


def test_a_device_that_has_changed_while_the_register_was_read_is_left_alone(node):
    one = node.add("c1")
    mine = node.mine

    async def later():
        async for page in mine():
            yield page
        node.registrations.enter(one, State.DISPLACED)

    node.mine = later
    assert node.reconcile() == []
    assert one.state is State.DISPLACED


def test_a_device_that_others_have_taken_out_is_registered_again_and_a_ghost_of_that_kind_is_taken_out(node):
    node.add("c1")
    node.pages = [[Device("sann", "c1", "node", away=Away.GONE), Device("sann", "ghost", "node", away=Away.GONE)]]
    assert node.reconcile() == [("leave", "ghost", 0), ("fire", ("sann", 2)), ("settle", "c1")]
    assert node.registrations["c1"].state is State.OUTSIDE


def test_ghosts_are_taken_out_and_what_that_causes_is_fired(node):
    node.pages = [[Device("sann", "ghost", "node", 1)]]
    assert node.reconcile() == [("leave", "ghost", 0), ("fire", ("sann", 2))]


def test_a_device_that_is_on_its_way_from_or_to_another_node_is_no_ghost(node):
    node.pages = [[Device("sann", "moving", "node", 1)]]
    node.registrations.moved.add("moving")
    assert node.reconcile() == []


@pytest.mark.parametrize(("after", "generation"), [(FIRED_TTL - 1, 7), (FIRED_TTL, 0)])
def test_a_register_that_has_gone_back_in_time_is_told_for_a_minute_what_was_fired(node, after, generation):
    node.generations_of = {"sann": (6, 7)}
    node.renewed("kept")
    node.renewed("new")
    node.scheduler.now += after
    node.pages = [[Device("sann", "ghost", "node", 1)]]
    assert node.reconcile()[0] == ("leave", "ghost", generation)


@pytest.mark.parametrize("state", ["reaped", "new"])
def test_no_other_register_is_told_what_was_fired(node, state):
    node.generations_of = {"sann": (7,)}
    node.renewed("kept")
    node.renewed("new")  # back in time, but that is over
    node.renewed(state, "second" if state == "new" else "first")
    node.pages = [[Device("sann", "ghost", "node", 1)]]
    assert node.reconcile()[0] == ("leave", "ghost", 0)


@pytest.mark.parametrize("away", ["mine", "leave", "retry", "settle"])
def test_a_comparison_that_fails_is_made_again(node, away):
    node.pages = [[Device("sann", "ghost", "node", 1)]]
    node.add("c1")
    node.away = {away}
    with pytest.raises(WseError):
        node.reconcile()
    assert node.reconciler.is_disturbed


def test_transitions_without_an_answer_are_claimed_before_devices_make_new_steps(node):
    node.add("c1", State.OUTSIDE)
    node.log.clear()
    node.do(node.reconciler.settle())
    assert node.log == [("retry",), ("settle", "c1")]


def test_a_node_that_has_left_the_cluster_forgets_what_it_was_to_repair(node):
    node.lost = [(Transition("sbob", 2), None)]
    node.add("c1", generation=1)
    node.renewed("new", "second")
    node.reconciler.reset()
    assert (node.reconciler.register, node.reconciler.is_disturbed, node.restoring) == ("", False, {})
    node.registrations.clear()
    assert node.reconcile() == []
    node.renewed("new", "third")  # a first one again
    assert ("register lost",) not in node.log


# The outbox, and dead nodes.


def test_the_outbox_is_fired_but_for_users_whose_answer_is_on_its_way(node):
    node.outbox = [Transition("sann", 1), Transition("sbob", 2), Transition("seve", 3), Transition("sdan", 5)]
    node.add("c1", State.JOINING, user="sann")
    node.add("c2", State.LEAVING, user="sbob")
    node.add("c3", State.INSIDE, user="sdan")
    node.do(node.reconciler.fire_pending(recovering=False))
    assert node.log[-2:] == [("fire", ("seve", 3)), ("fire", ("sdan", 5))]
    assert not [entry for entry in node.log if entry[0] == "decide"]


@pytest.mark.parametrize("recovering", [True, False])
def test_undecided_users_are_decided_when_the_register_has_recovered(node, recovering):
    node.outbox = [Transition("sann", 0)]
    node.log.clear()
    node.do(node.reconciler.fire_pending(recovering=recovering))
    assert node.log == ([] if recovering else [("decide", "sann"), ("fire", ("sann", 4)), ("know", ("sann", 4))])


def test_dead_nodes_are_reaped_until_nothing_is_left(node):
    node.reaped = [[Transition("sann", 2)], [Transition("sbob", 2)]]
    node.log.clear()
    node.do(node.reconciler.reap())
    assert node.log == [("fire", ("sann", 2)), ("fire", ("sbob", 2))]


# Many at a time.


def test_many_items_are_worked_on_a_bounded_number_at_a_time():
    scheduler = FakeScheduler()
    gates, running, most = {}, set(), 0

    async def work(item):
        nonlocal most
        running.add(item)
        most = max(most, len(running))
        gates[item] = asyncio.Future(loop=scheduler)
        await gates[item]
        running.discard(item)

    task = scheduler.start(each(scheduler, range(WIDTH + 5), work))
    while not task.done():
        next(gate for gate in gates.values() if not gate.done()).set_result(None)
        scheduler.run()
    assert most == WIDTH
    assert sorted(gates) == list(range(WIDTH + 5))


def test_nothing_is_started_for_no_items():
    scheduler = FakeScheduler()
    assert scheduler.start(each(scheduler, (), None)).done()
    assert len(scheduler.tasks) == 1


def test_the_first_error_ends_the_work():
    scheduler = FakeScheduler()
    done = []

    async def work(item):
        if item % 2:
            raise WseError(ErrorCode.BROKER_UNAVAILABLE, {"item": item})
        done.append(item)
        await asyncio.sleep(0)

    task = scheduler.start(each(scheduler, range(3 * WIDTH), work))
    scheduler.run()
    assert task.exception().details == {"item": 1}
    assert len(done) < WIDTH
