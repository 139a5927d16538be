"""Whether a client tries again after it has lost its connection or not got one, and when (WIRE.md section 6)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from wse.core.closing import JUMP, is_retried
from wse.core.session.signals import check_handler
from wse.errors import ErrorCode, WseError

if TYPE_CHECKING:
    from wse.backoff import Backoff

STABLE: Final = 10.0
"""Seconds that a connection must have lasted before the waits start anew."""

RetryRule: TypeAlias = Callable[[int, str], bool]
"""An application's own rule: takes the code and the reason of a close, returns whether to try again."""


def checked_rule(rule: RetryRule | None) -> RetryRule | None:
    """The rule, if it can be asked.

    Raises:
        TypeError: It cannot.
    """
    if rule is not None:
        check_handler(rule, "code", "reason")
        if inspect.iscoroutinefunction(rule):
            raise TypeError("retry must be a plain function that returns True or False, not an async one")
    return rule


class Retry:
    """The decision whether and when a client tries again.

    It counts since the last connection that lasted, so a server that lets a client in and drops it at once, again and
    again, meets longer and longer waits.

    Args:
        reconnect: Whether the application wants reconnection.
        backoff: The waits.
        rule: The application's own rule; replaces the default for every code but 4000.
        report: Called with what the rule raises.
    """

    __slots__ = ("_backoff", "_failures", "_has_jumped", "_has_renewed", "_reconnect", "_report", "_rule")

    def __init__(
        self, *, reconnect: bool, backoff: Backoff, rule: RetryRule | None, report: Callable[..., None]
    ) -> None:
        self._reconnect = reconnect
        self._backoff = backoff
        self._rule = checked_rule(rule)
        self._report = report
        self.start_anew()

    def start_anew(self) -> None:
        """Forget all failures."""
        self._failures = 0
        self._has_jumped = False
        self._has_renewed = False

    def lasted(self, seconds: float) -> None:
        """A welcomed connection has ended after that time."""
        if seconds >= STABLE:
            self.start_anew()

    def wait_after(self, error: WseError, close: tuple[int, str] | None, *, renewable: bool) -> float | None:
        """Return the seconds to wait before the next attempt, or `None` to give up.

        Args:
            error: Why there is no connection.
            close: The code and the reason of the close, (1006, "") for a server that could not be reached, or `None`
                for a failure of the client's own, which is final.
            renewable: Whether the next attempt has a fresh identity.
        """
        if close is None:
            return None
        code, reason = close
        if code == JUMP:
            if not self._has_jumped:
                self._has_jumped = True
                return 0.0
            return self._next_wait()
        if self._reconnect and self._rule is not None:
            return self._next_wait() if self._ask(self._rule, code, reason) else None
        if error.code == ErrorCode.NOT_AUTHORIZED:
            return self._wait_after_refusal(error.details, renewable)
        return self._next_wait() if self._reconnect and is_retried(code) else None

    def _wait_after_refusal(self, details: dict[str, Any], renewable: bool) -> float | None:
        if self._reconnect and details.get("retry") is True:
            return self._next_wait()
        if renewable and not self._has_renewed:
            self._has_renewed = True
            return 0.0
        return None

    def _next_wait(self) -> float:
        wait = self._backoff.delay(self._failures)
        self._failures += 1
        return wait

    def _ask(self, rule: RetryRule, code: int, reason: str) -> bool:
        try:
            return bool(rule(code, reason))
        except Exception as exc:
            details = {"code": code, "reason": reason}
            error = WseError(ErrorCode.MSG_PROCESSING_ERROR, details, "the retry function raised")
            self._report(error, None, exc)
            return is_retried(code)
