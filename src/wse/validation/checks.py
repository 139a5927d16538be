"""Checks of values, made once for each type."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

from wse.errors import WseError
from wse.validation.failures import InvalidResultError, invalid_payload
from wse.validation.kinds import is_anything, mentions_pydantic

if TYPE_CHECKING:
    from collections.abc import Callable

    from wse.validation.failures import Describe


class Check:
    """Whether values are of a type.

    Attributes:
        hint: The type.
        exact: If the values of exactly this class need no look at their parts, the class.
        made: If values of exactly this class can only come from a decoder that has checked them, the class.
        convert: Makes a value of the type from what has come over the wire; raises one of `errors`.
        errors: The exceptions with which `convert` says that a value is not of the type.
        describe: What is wrong, from such an exception.
    """

    __slots__ = ("_own", "convert", "describe", "errors", "exact", "hint", "made")

    def __init__(
        self,
        hint: Any,
        *,
        convert: Callable[[Any], Any],
        own: Callable[[Any], Any],
        errors: tuple[type[Exception], ...],
        describe: Describe,
        exact: type | None = None,
        made: type | None = None,
    ) -> None:
        self.hint = hint
        self.exact = exact
        self.made = made
        self.convert = convert
        self.errors = errors
        self.describe = describe
        self._own = own

    def received(self, value: Any, **details: Any) -> Any:
        """A value of a peer as one of the type.

        Args:
            value: The value.
            details: Further details of the error.

        Raises:
            WseError: `INVALID_PAYLOAD`.
        """
        cls = type(value)
        if cls is self.exact or cls is self.made:
            return value
        try:
            return self.convert(value)
        except self.errors as exc:
            self.blame(exc, **details)

    def blame(self, exc: Exception, **details: Any) -> NoReturn:
        """Raise the error for a peer whose value is not of the type.

        Raises:
            WseError: `INVALID_PAYLOAD`.
        """
        raise invalid_payload(self.describe(exc), **details) from None

    def own(self, value: Any) -> Any:
        """A value of the application, as it is to be sent.

        Raises:
            InvalidResultError: It is not of the type.
        """
        if type(value) is self.exact:
            return value
        try:
            return self._own(value)
        except self.errors as exc:
            raise InvalidResultError(self.describe(exc)) from None


def check_for(hint: Any) -> Check | None:
    """The check for a type; `None` for types that take every value.

    Raises:
        TypeError: No library can check values of the type.
        ImportError: The library that could is not installed.
    """
    if is_anything(hint):
        return None
    try:
        return _cached(hint)
    except TypeError as exc:
        if "unhashable" not in str(exc):
            raise
        return _make(hint)  # such as `Literal` with a list


def received(hint: Any, value: Any, **details: Any) -> Any:
    """A value of a peer as one of the type; `None` stands for any type.

    Raises:
        WseError: `INVALID_PAYLOAD`.
        TypeError, ImportError: As `check_for`.
    """
    check = None if hint is None else check_for(hint)
    return value if check is None else check.received(value, **details)


def all_received(hint: Any, values: list[Any], **details: Any) -> list[Any]:
    """Values of several peers, with the error in the place of one that is not of the type.

    Raises:
        TypeError, ImportError: As `check_for`.
    """
    check = None if hint is None else check_for(hint)
    return values if check is None else [_received_or_error(check, value, details) for value in values]


def _received_or_error(check: Check, value: Any, details: dict[str, Any]) -> Any:
    if isinstance(value, WseError):
        return value
    try:
        return check.received(value, **details)
    except WseError as error:
        return error


def _make(hint: Any) -> Check:
    if mentions_pydantic(hint):
        from wse.validation import with_pydantic

        return with_pydantic.make_check(hint)
    from wse.validation import with_msgspec

    return with_msgspec.make_check(hint)


_cached = lru_cache(maxsize=1024)(_make)
