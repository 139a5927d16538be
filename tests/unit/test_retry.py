"""Whether and when a client tries again (WIRE.md section 6)."""

import pytest

from support.clients import CountingBackoff
from wse import ErrorCode, WseClient, WseError
from wse.client.retry import STABLE, Retry

CLOSED = WseError(ErrorCode.CONNECTION_CLOSED)
REFUSED = WseError(ErrorCode.NOT_AUTHORIZED, {"code": 1000, "reason": "wse.not-authorized"})


class Recorder(CountingBackoff):
    """Waits as many seconds as attempts have failed before."""

    def delay(self, attempt):
        super().delay(attempt)
        return float(attempt)


def retry(*, reconnect=True, rule=None, reports=None):
    def report(error, session, cause):
        reports.append((error, cause))

    return Retry(reconnect=reconnect, backoff=Recorder(), rule=rule, report=report)


def after(retry, code, reason="", error=CLOSED, *, renewable=False):
    return retry.wait_after(error, (code, reason), renewable=renewable)


def test_a_client_tries_again_after_every_close_but_final_ones_and_those_of_applications():
    final = {1000, 1002, 1003, *range(1007, 1011), *range(3000, 5000)} - {4000}
    for code in range(1000, 5001):
        assert (after(retry(), code) is None) == (code in final), code


def test_without_reconnection_only_4000_is_retried():
    assert [code for code in range(1000, 5001) if after(retry(reconnect=False), code) is not None] == [4000]


def test_a_failure_of_the_client_s_own_is_final():
    assert retry().wait_after(CLOSED, None, renewable=True) is None


def test_the_waits_grow_until_a_connection_has_lasted():
    one = retry()
    assert [after(one, 1006) for _ in range(3)] == [0, 1, 2]
    one.lasted(STABLE - 0.1)
    assert after(one, 1006) == 3
    one.lasted(STABLE)
    assert after(one, 1006) == 0


def test_4000_is_retried_at_once_and_then_like_any_other_until_a_connection_has_lasted():
    one = retry(reconnect=False)
    assert [after(one, 4000) for _ in range(4)] == [0, 0, 1, 2]  # the first of them without the backoff
    assert one._backoff.attempts == [0, 1, 2]
    one.lasted(STABLE)
    assert after(one, 4000) == 0
    assert one._backoff.attempts == [0, 1, 2]


def test_an_own_rule_replaces_the_default_for_every_code_but_4000():
    asked = []

    def rule(code, reason):
        asked.append((code, reason))
        return code in (1000, 4321)

    one = retry(rule=rule)
    assert after(one, 1000, "why") is not None
    assert after(one, 4321) is not None
    assert after(one, 1006) is None
    assert after(one, 1000, "wse.not-authorized", REFUSED) is not None
    assert after(one, 4000, "jump") is not None
    assert asked == [(1000, "why"), (4321, ""), (1006, ""), (1000, "wse.not-authorized")]


def test_an_own_rule_is_not_asked_without_reconnection():
    assert after(retry(reconnect=False, rule=lambda code, reason: pytest.fail("asked")), 1006) is None


def test_an_own_rule_that_raises_is_reported_and_the_default_holds():
    def rule(code, reason):
        raise LookupError("mine")

    reports = []
    one = retry(rule=rule, reports=reports)
    assert after(one, 1006) is not None
    assert after(one, 1000) is None
    assert [error.code for error, _ in reports] == [ErrorCode.MSG_PROCESSING_ERROR] * 2
    assert all(isinstance(cause, LookupError) for _, cause in reports)


def test_a_rule_that_cannot_be_asked_is_rejected_at_once():
    async def later(code, reason):
        return True

    for rule in (lambda: True, lambda code: True, later, 7):
        with pytest.raises(TypeError):
            WseClient("ws://localhost", reconnect=True, retry=rule)


@pytest.mark.parametrize("reconnect", [False, True])
def test_a_refusal_is_retried_once_with_a_fresh_identity(reconnect):
    one = retry(reconnect=reconnect)
    refusals = [after(one, 1000, "wse.not-authorized", REFUSED, renewable=True) for _ in range(3)]
    assert refusals == [0, None, None]
    one.lasted(STABLE)
    assert after(one, 1000, "wse.not-authorized", REFUSED, renewable=True) == 0


def test_a_refusal_of_a_fixed_identity_is_final():
    assert after(retry(), 1000, "wse.not-authorized", REFUSED) is None


@pytest.mark.parametrize(("say", "again"), [(True, True), (False, False), (1, False), ("yes", False), (None, False)])
def test_a_refusal_that_says_so_is_retried(say, again):
    refused = WseError(ErrorCode.NOT_AUTHORIZED, {"code": 1000, "reason": "busy", "retry": say})
    assert (after(retry(), 1000, "wse.not-authorized", refused) is not None) == again
    assert after(retry(reconnect=False), 1000, "wse.not-authorized", refused) is None
