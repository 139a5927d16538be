"""Whatever a peer sends and whatever the application does: nothing escapes, and nothing stays behind."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support import stories
from support.stories import JSON, MSGPACK, PROCEDURES, ClientStory, ServerStory
from wse.core.hub.handshake import ServerOpening

keys = st.sampled_from(stories.KEYS)
values = st.recursive(
    st.sampled_from(stories.SCALARS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=5,
)
types = st.sampled_from(stories.TYPES)
stamps = st.sampled_from(stories.STAMPS)
errors = st.fixed_dictionaries({}, optional={"code": values, "details": values, "message": values})
identities = st.sampled_from(stories.CIDS)
his = st.fixed_dictionaries(
    {"identity": identities}, optional={"meta": st.just({}) | values, "ext": st.sampled_from(stories.OFFERS) | values}
)
messages = st.one_of(
    st.tuples(types, values, stamps),
    st.tuples(st.just("~wse:hi"), his, st.none()),
    st.tuples(st.just("~wse:challenge"), values, st.none()),
    st.tuples(st.just("~wse:response"), values, st.sampled_from([1, 2, 3])),
    st.tuples(st.just("~wse:response-err"), errors, st.sampled_from([1, 2, 3])),
    st.tuples(st.sampled_from(PROCEDURES), values, st.sampled_from([1, "s"])),
    st.tuples(st.just("chat"), values, st.none()),
)
raw = st.one_of(
    st.text(st.characters(), max_size=12),
    st.binary(max_size=12),
    st.lists(values, max_size=5).map(MSGPACK._encode),
    st.lists(st.none() | st.integers() | st.text(max_size=3), max_size=5).map(JSON._encode),
    st.sampled_from(stories.HOSTILE),
)
peers = st.integers(0, 3)
decisions = st.sampled_from(stories.DECISIONS)
timeouts = st.sampled_from(stories.TIMEOUTS)
closes = st.sampled_from(stories.CLOSES)

server_actions = st.one_of(
    st.tuples(st.just("say"), peers, messages),
    st.tuples(st.just("say"), peers, messages),
    st.tuples(st.just("raw"), peers, raw),
    st.tuples(st.just("hi"), peers, st.sampled_from(["ann", "bob"])),
    st.tuples(st.just("decide"), decisions),
    st.tuples(st.just("call"), peers, timeouts),
    st.tuples(st.just("call-all"), st.sampled_from(["ann", "bob"])),
    st.tuples(st.just("cancel")),
    st.tuples(st.just("send"), peers, values | st.just(object())),
    st.tuples(st.just("broadcast"), values),
    st.tuples(st.just("drop"), peers),
    st.tuples(st.just("drop-client"), st.sampled_from(["ann", "bob"])),
    st.tuples(st.just("violated"), peers),
    st.tuples(st.just("closed"), peers, closes),
    st.tuples(st.just("pass"), st.sampled_from(stories.PASSES)),
    st.tuples(st.just("writable"), peers, st.booleans()),
    st.tuples(st.just("drain"), peers),
)
modes = st.sampled_from(stories.IDENTIFY)
generators = st.sampled_from(stories.GENERATORS)


@given(modes, generators, st.integers(1, 2), st.sampled_from([0, 5]), st.lists(server_actions, max_size=25))
def test_a_server_survives_any_story(identify, generator, conns_per_user, auth_timeout, actions):
    story = ServerStory(identify, generator, conns_per_user, auth_timeout)
    for action in actions:
        story.act(*action)
        story.side.scheduler.run()
        story.check()
    story.finish()


@given(st.lists(server_actions, min_size=5, max_size=25))
def test_a_server_survives_any_story_of_connections_that_are_in(actions):
    story = ServerStory("accept", None, 2, 5)
    for index in range(4):
        story.act("hi", index, ("ann", "bob")[index // 2])
    assert len(story.side.hub.connections) == 4
    for action in actions:
        story.act(*action)
        story.side.scheduler.run()
        story.check()
    story.finish()


STATES = ["stranger", "validating", "challenged", "valid", "ended"]


@pytest.mark.parametrize("state", STATES)
def test_a_message_in_any_state_leads_to_a_state_of_the_table(state):
    @settings(max_examples=50)
    @given(messages | raw)
    def run(message):
        modes = {"validating": ("wait", None), "challenged": ("accept", "quest")}
        story = ServerStory(*modes.get(state, ("accept", None)), 1, 5)
        session = story.peer(0).session
        if state != "stranger":
            story.act("hi", 0, "ann")
        if state == "ended":
            story.act("drop", 0)
        states = {"valid": session.valid, "ended": session.ended}
        assert states[state] if state in states else session._phase.state.name.lower() == state
        story.act("say" if isinstance(message, tuple) else "raw", 0, message)
        story.side.scheduler.run()
        story.check()
        now = session._phase.state.name.lower() if isinstance(session._phase, ServerOpening) else None
        assert (session.ended, session.valid, now) in {
            "stranger": [(True, False, None), (False, True, None)],
            "validating": [(False, False, "validating")],
            "challenged": [(True, False, None), (False, True, None)],
            "valid": [(True, False, None), (False, True, None)],
            "ended": [(True, False, None)],
        }[state]
        story.finish()

    run()


client_actions = st.one_of(
    st.tuples(st.just("say"), messages),
    st.tuples(st.just("say"), messages),
    st.tuples(st.just("raw"), raw),
    st.tuples(st.just("welcome"), values),
    st.tuples(st.just("settle")),
    st.tuples(st.just("call"), timeouts),
    st.tuples(st.just("cancel")),
    st.tuples(st.just("send"), values),
    st.tuples(st.just("close")),
    st.tuples(st.just("violated")),
    st.tuples(st.just("closed"), closes),
    st.tuples(st.just("pass"), st.sampled_from(stories.PASSES)),
)


@given(
    st.sampled_from(stories.RESPOND),
    st.sampled_from(stories.FINISH),
    st.sampled_from([JSON, MSGPACK]),
    st.booleans(),
    st.lists(client_actions, max_size=25),
)
def test_a_client_survives_any_story(respond, finish, protocol, welcomed, actions):
    story = ClientStory(respond, finish, protocol)
    for action in [("welcome", None)] * welcomed + actions:
        story.act(*action)
        story.side.scheduler.run()
        story.check()
    story.finish()
