"""What handlers are given, and how each of it is checked."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from functools import lru_cache
from typing import Any, get_args

from wse.errors import ErrorCode, WseError
from wse.typed.dependencies import Checking, Sources
from wse.validation.checks import Check, check_for


def payload_check(hint: Any) -> Callable[[Any], Any] | None:
    """The check of a payload, or of an identity."""
    check = check_for(hint)
    return None if check is None else check.received


class CheckedItems:
    """The items of an upload, each of its type."""

    __slots__ = ("_check", "_items")

    def __init__(self, items: AsyncIterator[Any], check: Check) -> None:
        self._items = items
        self._check = check

    def __aiter__(self) -> CheckedItems:
        return self

    async def __anext__(self) -> Any:
        return self._check.received(await anext(self._items))


@lru_cache(maxsize=256)
def items_check(hint: Any) -> Callable[[Any], Any] | None:
    """The check of the items of an upload, hinted as `AsyncIterator[Chunk]`."""
    args = get_args(hint)
    check = check_for(args[0]) if args else None
    return None if check is None else lambda items: CheckedItems(items, check)


@lru_cache(maxsize=256)
def handshake_check(hint: Any) -> Callable[[Any], Any] | None:
    """The check of a handshake, whose hint has one to three types: `Handshake[Login, Meta, Welcome]`.

    A client whose identity or meta is not of its type is refused with the reason `wse.invalid-payload`. A welcome that
    is not of its type is an exception in `accept`.
    """
    checks = [check_for(part) for part in get_args(hint)]
    if not any(checks):
        return None
    own = checks[2].own if len(checks) > 2 and checks[2] is not None else None

    def checked(auth: Any) -> Any:
        values = [auth.identity, auth.meta]
        for index, check in enumerate(checks[:2]):
            if check is not None:
                try:
                    values[index] = check.received(values[index])
                except WseError as error:
                    name = ("identity", "meta")[index]
                    for failure in error.details["errors"]:
                        failure["path"] = f"$.{name}{failure['path'][1:]}"
                    auth.refuse(str(ErrorCode.INVALID_PAYLOAD))
                    raise
        auth.become(*values, own)
        return auth

    return checked


NOTHING: Mapping[str, Callable[[Any], Any]] = {}

_CHECKS: Mapping[str, Checking] = {"payload": payload_check, "items": items_check, "auth": handshake_check}


def of_handlers(before: tuple[str, ...], made: Mapping[str, Callable[[Any], Any]], *, uploads: bool) -> Sources:
    """What a procedure or a listener is given.

    Args:
        before: What comes before the payload: `("conn",)` at a server.
        made: What is made of the first argument, by name.
        uploads: Whether it takes an upload.
    """
    return Sources((*before, "payload", *(("items",) if uploads else ())), made, _CHECKS)


OF_HANDSHAKES = Sources(("auth",), NOTHING, {"auth": handshake_check})
"""What an identify handler or a challenge generator is given."""

OF_REAUTHENTICATION = Sources(("conn", "identity"), NOTHING, {"identity": payload_check})
"""What a handler of fresh identities is given."""

OF_ROOM_GUARDS = Sources(("conn", "name"), NOTHING, {})
"""What a guard of rooms is given."""
