"""Sessions over many connections: whatever is sent, called, lost and awaited, in whatever order.

The two sides and the network are those of `model.resume`. Beside plain messages there are types of which only the
latest is kept, calls with timeouts in both directions, sockets that take nothing for a while, bounds that are
reached, and servers that end the session.
"""

from __future__ import annotations

import secrets

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from model.resume import ModelSession
from wse.core.limits import Overflow
from wse.core.resume import Resume
from wse.errors import ErrorCode, WseError

EXPECTED = {ErrorCode.SLOW_RECEIVER}


class Calls:
    """The calls of one side, and what its peer did with them."""

    def __init__(self, caller, callee):
        self.ran = []
        self.tasks = {}
        self.caller = caller
        callee.procedures.register("do", self._do)

    def _do(self, *args):
        self.ran.append(args[-1])
        return args[-1]

    def make(self, session, timeout):
        number = len(self.tasks)
        self.tasks[number] = self.caller.scheduler.start(session.call("do", number, timeout))

    def check(self):
        assert len(set(self.ran)) == len(self.ran), "a call ran twice"
        for number, task in self.tasks.items():
            if not task.done():
                continue
            error = task.exception()
            if error is None:
                assert number in self.ran
                assert task.result() == number
                continue
            assert isinstance(error, WseError)
            arrived = error.details.get("arrived")
            if arrived is not None:
                assert arrived == (number in self.ran), (number, error, self.ran)


class Story(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.model = ModelSession(
            messages=10**6,
            links=10**6,
            ticks=10**6,
            settings=Resume(window=60, bytes=3000, messages=20),
            overflow={"latest": Overflow.LATEST},
            timeout=1000,
        )
        client, server = self.model.client, self.model.side
        self.up = Calls(client.endpoint, server.endpoint)
        self.down = Calls(server.endpoint, client.endpoint)
        self.latest = {"up": [], "down": []}
        self.heard = {"up": [], "down": []}
        server.endpoint.channel.on("latest", lambda conn, n: self.heard["up"].append(n))
        client.endpoint.channel.on("latest", self.heard["down"].append)

    # What the applications do.

    @rule()
    @precondition(lambda self: self.model.client.session is not None)
    def client_sends(self):
        self.model.take(("client",))

    @rule()
    @precondition(lambda self: self.model.conn is not None)
    def server_sends(self):
        self.model.take(("server",))

    @rule(size=st.integers(0, 600))
    @precondition(lambda self: self.model.client.session is not None)
    def client_sends_the_latest(self, size):
        self.latest["up"].append(len(self.latest["up"]) + size * 10**6)
        self.model.client.session.send("latest", self.latest["up"][-1])

    @rule()
    @precondition(lambda self: self.model.conn is not None)
    def server_sends_the_latest(self):
        self.latest["down"].append(len(self.latest["down"]))
        self.model.conn.send("latest", self.latest["down"][-1])

    @rule(timeout=st.sampled_from([1, 5, 500]))
    @precondition(lambda self: self.model.client.session is not None)
    def client_calls(self, timeout):
        self.up.make(self.model.client.session, timeout)

    @rule(timeout=st.sampled_from([1, 5, 500]))
    @precondition(lambda self: self.model.conn is not None)
    def server_calls(self, timeout):
        self.down.make(self.model.conn._session, timeout)

    # What the network does.

    @rule(data=st.data(), times=st.integers(1, 6))
    def something_happens(self, data, times):
        for _ in range(times):
            found = [action for action in self.model.actions() if action[0] in ("up", "down", "open")]
            if found:
                self.model.take(data.draw(st.sampled_from(found)))

    @rule(data=st.data())
    def a_connection_is_lost(self, data):
        found = [action for action in self.model.actions() if action[0].startswith("lose")]
        if found:
            self.model.take(data.draw(st.sampled_from(found)))

    @rule(server=st.booleans(), takes=st.booleans())
    def a_socket_takes_more_or_not(self, server, takes):
        end = self.model.links[-1]
        end = end.other if server else end
        if end.is_open and not end.is_closing:
            end.receiver.writable(takes)

    @rule()
    def two_seconds_pass(self):
        self.model.take(("tick",))

    @rule()
    @precondition(lambda self: self.model.conn is not None and not self.model.conn.attached)
    def the_window_ends(self):
        self.model.left["expire"] = 1
        self.model.take(("expire",))

    @rule(code=st.sampled_from([1000, 1012, 4001]))
    @precondition(lambda self: self.model.conn is not None)
    def the_server_ends_the_session(self, code):
        self.model.conn.drop("enough", code)

    # What must hold.

    @invariant()
    def what_was_heard_is_what_was_sent(self):
        self._check(complete=False)

    def teardown(self):
        model = self.model
        for end in model.links:
            for one in (end, end.other):
                if one.is_open and not one.is_closing:
                    one.receiver.writable(True)
        model._finish()
        self._check(complete=True)
        for side in (model.client.side, model.side):
            side.scheduler.advance(2000)
        assert all(task.done() for calls in (self.up, self.down) for task in calls.tasks.values())
        self._check(complete=False)
        assert model.side.hub.resumption.retention.used >= 0

    def _check(self, complete):
        assert list(self.model._differences(complete)) == []
        for side in (self.model.side, self.model.client.side):
            assert {error.code for error, _ in side.errors} <= EXPECTED, side.errors
            assert side.scheduler.unheard == []
        self.up.check()
        self.down.check()
        for way, heard in self.heard.items():
            sent = iter(self.latest[way])
            assert all(n in sent for n in heard), f"{way}: {heard} is not in the order of {self.latest[way]}"


@pytest.fixture
def names(monkeypatch):
    monkeypatch.setattr(secrets, "token_hex", secrets.token_hex)
    monkeypatch.setattr(secrets, "token_urlsafe", secrets.token_urlsafe)


def tell(examples, steps, *, same):
    """Run that many stories; with `same`, each time the same ones."""
    run_state_machine_as_test(
        Story,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
            derandomize=same,
        ),
    )


def test_nothing_is_lost_or_doubled_in_silence(names):
    tell(60, 50, same=True)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_nothing_is_lost_or_doubled_in_thousands_of_stories(names):
    tell(3000, 70, same=False)
