"""What a node fires: every transition that is its own once, in order, whatever answers of the register are lost."""

import asyncio

import pytest

from support.core import ServerSide
from wse import ErrorCode, WseError
from wse.core.cluster.firing import FIRED_TTL, MAX_CLAIMED, MAX_FIRED, Firing
from wse.core.hub.connection import WseIdentity
from wse.core.ports.broker import Transition


class Register:
    """Grants what `refused` does not have, and is away while `away`; a gate holds its answers up."""

    def __init__(self):
        self.asked = []
        self.told = []
        self.refused = set()
        self.away = False
        self.gate = None

    async def claim(self, transitions):
        self.asked.append([(one.user, one.generation) for one in transitions])
        if self.gate is not None:
            await self.gate
        if self.away:
            raise WseError(ErrorCode.BROKER_UNAVAILABLE)
        granted = [one for one in transitions if (one.user, one.generation) not in self.refused]
        return granted[::-1]  # in whatever order

    def fired(self, transitions):
        self.told.append([(one.user, one.generation) for one in transitions])


class Fires:
    def __init__(self):
        side = ServerSide()
        self.scheduler, self.hub = side.scheduler, side.hub
        self.broker = Register()
        self.firing = Firing(self, self.hub)
        self.log = []
        self.users = []
        self.hub.joined(self._joined)
        self.hub.left(self._left)

    def _joined(self, user, meta):
        self.users.append(user)
        self.log.append(("joined", user.cid, meta))

    def _left(self, user, code, reason):
        self.users.append(user)
        self.log.append(("left", user.cid, code, reason))

    def do(self, coroutine):
        task = self.scheduler.start(coroutine)
        assert task.done()
        return task.result()

    def start(self, coroutine):
        return self.scheduler.start(coroutine)

    def fails(self, coroutine):
        with pytest.raises(WseError) as caught:
            self.do(coroutine)
        assert caught.value.code is ErrorCode.BROKER_UNAVAILABLE

    def identity(self, cid, **meta):
        return WseIdentity(self.hub, cid, meta)


@pytest.fixture
def node():
    return Fires()


def joined(generation=1, user="sann"):
    return Transition(user, generation)


def left(generation=2, user="sann", code=1001, reason="bye"):
    return Transition(user, generation, code, reason)


def test_a_transition_is_claimed_then_fires_then_the_register_is_told(node):
    node.do(node.firing.fire([joined()], node.identity("ann", device="phone")))
    assert node.broker.asked == [[("sann", 1)]]
    assert node.log == [("joined", "ann", {"device": "phone"})]
    assert node.broker.told == [[("sann", 1)]]
    assert node.firing.is_idle


def test_left_carries_the_code_and_the_reason_of_the_last_device(node):
    node.do(node.firing.fire([left()], node.identity("ann")))
    assert node.log == [("left", "ann", 1001, "bye")]


def test_users_of_whom_this_node_knows_nothing_are_fired_with_their_id_only(node):
    node.do(node.firing.fire([joined(user="i7"), left(user="sbob")]))
    assert node.log == [("joined", 7, {}), ("left", "bob", 1001, "bye")]
    assert all(not user.conns for user in node.users)


def test_joined_is_of_the_user_that_is_here_and_left_of_the_one_that_was(node):
    here, was = node.identity("ann", at="here"), node.identity("ann", at="was")
    node.hub.identities["ann"] = here
    node.do(node.firing.fire([joined()], was))
    node.do(node.firing.fire([left()], was))
    assert node.users == [here, was]
    node.do(node.firing.fire([joined(3)]))
    node.do(node.firing.fire([left(4)]))
    assert node.users[2:] == [here, here]


def test_what_another_node_has_inherited_does_not_fire(node):
    node.broker.refused = {("sann", 1)}
    node.do(node.firing.fire([joined(), left(user="sbob")]))
    assert [entry[:2] for entry in node.log] == [("left", "bob")]
    assert node.broker.told == [[("sbob", 2)]]
    assert node.firing.is_idle
    assert node.firing.generations("sann") == ()


def test_nothing_is_asked_when_there_is_nothing_to_claim(node):
    node.do(node.firing.fire([]))
    node.do(node.firing.retry())
    assert node.broker.asked == []


def test_what_fired_here_does_not_fire_again_when_the_outbox_brings_it_again(node):
    node.do(node.firing.fire([joined()]))
    node.do(node.firing.fire([joined()]))
    assert len(node.log) == 1
    assert len(node.broker.asked) == 1
    assert node.firing.generations("sann") == (1,)


def test_what_fired_is_remembered_for_a_minute(node):
    node.do(node.firing.fire([joined()]))
    node.scheduler.now += FIRED_TTL
    assert node.firing.generations("sann") == (1,)
    node.scheduler.now += 0.001
    assert node.firing.generations("sann") == ()
    node.do(node.firing.fire([left()]))
    assert node.firing.generations("sann") == (2,)


def test_only_a_user_s_last_transitions_are_remembered(node):
    for generation in range(1, 2 * MAX_FIRED):
        node.do(node.firing.fire([Transition("sann", generation)]))
    assert node.firing.generations("sann") == tuple(range(MAX_FIRED - 1, 2 * MAX_FIRED))


def test_the_memory_of_users_is_emptied_as_others_come(node):
    for number in range(10):
        node.do(node.firing.fire([joined(user=f"i{number}")]))
    node.scheduler.now += FIRED_TTL
    node.do(node.firing.fire([joined(user="i10")]))
    assert len(node.firing._fired) == 11
    node.scheduler.now += 0.001
    for number in range(11, 20):
        node.do(node.firing.fire([joined(user=f"i{number}")]))
        assert len(node.firing._fired) == 11
    node.do(node.firing.fire([left(user="i10")]))  # the last one that fired is the last to be forgotten
    assert list(node.firing._fired)[-1] == "i10"


def test_without_an_answer_nothing_fires_until_it_is_asked_again(node):
    node.broker.away = True
    node.fails(node.firing.fire([joined()], node.identity("ann", device="phone")))
    assert not node.firing.is_idle
    node.fails(node.firing.retry())
    assert node.log == []
    node.broker.away = False
    node.do(node.firing.retry())
    assert node.log == [("joined", "ann", {"device": "phone"})]
    assert node.firing.is_idle


def test_the_user_as_heard_of_first_is_the_one_that_fires(node):
    node.broker.away = True
    node.fails(node.firing.fire([joined()], node.identity("ann", at="first")))
    node.broker.away = False
    node.do(node.firing.fire([joined()], node.identity("ann", at="second")))
    assert node.log == [("joined", "ann", {"at": "first"})]


def test_a_later_transition_takes_along_an_earlier_one_whose_answer_was_lost(node):
    node.broker.away = True
    node.fails(node.firing.fire([joined()]))
    node.broker.away = False
    node.do(node.firing.fire([left()]))
    assert node.broker.asked[-1] == [("sann", 1), ("sann", 2)]
    assert [entry[0] for entry in node.log] == ["joined", "left"]
    assert node.broker.told == [[("sann", 1), ("sann", 2)]]


def test_transitions_that_are_heard_of_out_of_order_fire_in_order(node):
    node.do(node.firing.fire([left(4), joined(3), left(2), joined(1)]))
    assert [entry[0] for entry in node.log] == ["joined", "left", "joined", "left"]
    assert node.firing.generations("sann") == (1, 2, 3, 4)


def test_two_callers_that_claim_the_same_fire_it_once(node):
    node.broker.gate = asyncio.Future(loop=node.scheduler)
    tasks = [node.start(node.firing.fire([joined()])) for _ in range(2)]
    assert node.broker.asked == [[("sann", 1)]] * 2
    node.broker.gate.set_result(None)
    node.scheduler.run()
    assert all(task.done() for task in tasks)
    assert len(node.log) == 1
    assert node.firing.is_idle


def test_one_that_comes_while_another_is_claimed_stays_open(node):
    node.broker.gate = gate = asyncio.Future(loop=node.scheduler)
    first = node.start(node.firing.fire([joined()]))
    node.broker.away = True
    node.broker.gate = None
    node.fails(node.firing.fire([left()]))
    node.broker.away = False
    gate.set_result(None)
    node.scheduler.run()
    assert first.done()
    assert [entry[0] for entry in node.log] == ["joined"]
    assert not node.firing.is_idle
    node.do(node.firing.retry())
    assert [entry[0] for entry in node.log] == ["joined", "left"]


def test_the_caller_of_claim_fires_what_it_got(node):
    events = node.do(node.firing.claim([joined()], user := node.identity("ann")))
    assert events == [(joined(), user)]
    assert node.log == []
    assert node.firing.generations("sann") == (1,)  # nobody else fires it
    assert node.firing.is_idle
    node.firing.emit(events)
    assert node.log == [("joined", "ann", {})]
    assert node.broker.told == [[("sann", 1)]]


def test_very_many_are_claimed_in_several_steps(node):
    node.do(node.firing.fire([joined(user=f"i{number}") for number in range(MAX_CLAIMED + 1)]))
    assert [len(step) for step in node.broker.asked] == [MAX_CLAIMED, 1]
    assert [cid for _, cid, _ in sorted(node.log, key=lambda entry: entry[1])] == list(range(MAX_CLAIMED + 1))


# The register is lost.


def open_ones(node, *transitions, identity=None):
    node.broker.away = True
    node.fails(node.firing.fire(transitions, identity))


def test_of_a_lost_register_joined_fires_and_left_waits_for_the_new_one(node):
    ann, bob = node.identity("ann"), node.identity("bob")
    open_ones(node, joined(), identity=ann)
    open_ones(node, left(user="sbob"), identity=bob)
    assert node.firing.register_lost() == [(left(user="sbob"), bob)]
    assert node.log == [("joined", "ann", {})]
    assert node.firing.is_idle
    node.broker.away = False
    node.do(node.firing.retry())
    assert len(node.log) == 1


def test_of_a_lost_register_all_but_the_last_left_fires_in_order(node):
    open_ones(node, left(4), joined(3), left(2), joined(1))
    assert node.firing.register_lost() == [(left(4), None)]
    assert [entry[0] for entry in node.log] == ["joined", "left", "joined"]


def test_of_a_lost_register_all_fires_that_ends_with_joined(node):
    open_ones(node, joined(3), left(2))
    assert node.firing.register_lost() == []
    assert [entry[0] for entry in node.log] == ["left", "joined"]


def test_generations_of_a_lost_register_are_forgotten(node):
    node.do(node.firing.fire([joined()]))
    node.firing.register_lost()
    assert node.firing.generations("sann") == ()
    node.do(node.firing.fire([joined()]))
    assert len(node.log) == 2


def test_a_node_that_has_left_the_cluster_forgets_everything(node):
    node.do(node.firing.fire([joined(user="sbob")]))
    open_ones(node, joined())
    node.firing.reset()
    assert node.firing.is_idle
    assert node.firing.generations("sbob") == ()
