"""One call to several devices: to all of them, or until the first has succeeded."""

from __future__ import annotations

import typing
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from wse.errors import WseError
from wse.types import MessageType

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

    from wse.core.ports import Scheduler

Mode: TypeAlias = Literal["first", "all", "any"]
"""Whose answer a call to a user brings: the first that succeeds, all of them, or that of the one that was asked."""


class Callee(typing.Protocol):
    """A device that can be called: a connection of this node, or of another."""

    def start_call(self, name: MessageType, payload: Any, timeout: float | None) -> tuple[int, asyncio.Future[Any]]:
        """Send a call; whoever awaits the future must end with `forget_call`.

        Raises:
            WseError: It cannot be sent.
        """
        ...

    def forget_call(self, stamp: int) -> None:
        """Nobody waits for the answer any more."""


_Started: TypeAlias = "list[tuple[Callee, int, asyncio.Future[Any]]]"


async def call_all(callees: Sequence[Callee], name: MessageType, payload: Any, timeout: float | None) -> list[Any]:
    """Call a procedure on several devices at once; errors stand in the list where results would."""
    started: _Started = []
    results: dict[Callee, Any] = dict.fromkeys(callees)
    try:
        for callee in callees:
            try:
                started.append((callee, *callee.start_call(name, payload, timeout)))
            except WseError as exc:
                results[callee] = exc
        for callee, _, future in started:
            try:
                results[callee] = await future
            except WseError as exc:
                results[callee] = exc
    finally:
        _forget(started)
    return list(results.values())


async def call_first(
    scheduler: Scheduler, callees: Sequence[Callee], name: MessageType, payload: Any, timeout: float | None
) -> Any:
    """Call a procedure on several devices at once and return the first result; what the others answer is ignored.

    Raises:
        WseError: Every device has failed; it is the error that came last.
    """
    first: asyncio.Future[Any] = scheduler.create_future()
    failures = 0

    def settled(future: asyncio.Future[Any]) -> None:
        if not first.done():
            error = future.exception()
            if error is None:
                first.set_result(future.result())
            else:
                failed(error)

    def failed(error: BaseException) -> None:
        nonlocal failures
        failures += 1
        if failures == len(callees):
            first.set_exception(error)

    started: _Started = []
    try:
        for callee in callees:
            try:
                started.append((callee, *callee.start_call(name, payload, timeout)))
            except WseError as exc:
                failed(exc)
            else:
                started[-1][2].add_done_callback(settled)
        return await first
    finally:
        _forget(started)


def _forget(started: _Started) -> None:
    for callee, stamp, future in started:
        callee.forget_call(stamp)
        if future.done() and not future.cancelled():
            future.exception()  # nobody asks any more, and asyncio need not complain
