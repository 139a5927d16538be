"""One call to several devices: to all of them, until the first has succeeded, or to the newest that can be asked.

The register has devices whose welcome has not been sent yet, and may still have some that have just gone. Neither
counts as one of the user's devices for a call: a device that was not asked is left out.
"""

from __future__ import annotations

import typing
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from wse.core.session.asking import Askable
from wse.core.session.rpc import NotAskedError
from wse.errors import ErrorCode, WseError
from wse.types import ClientId, MessageType

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from wse.core.ports.scheduling import Scheduler
    from wse.core.session.asking import Asked, Items

Mode: TypeAlias = Literal["first", "all", "any"]
"""The answers that a call to a user returns: the first success, all of them, or that of the one device asked."""


class Called(typing.Protocol):
    """What is called, as the functions of this module see it."""

    def start_call(self, name: MessageType, payload: Any, timeout: float | None) -> tuple[int, asyncio.Future[Any]]:
        """Send a call. The code that awaits the future must call `forget_call` in the end.

        Raises:
            WseError: It cannot be sent; a `NotAskedError`, also as the future's, if the device is not there.
        """
        ...

    def forget_call(self, stamp: int) -> None:
        """Forget a call whose answer is no longer awaited."""


class Callee(Called, Askable, typing.Protocol):
    """A device that can be called: a connection of this node, or of another."""


class WithOptions:
    """A device that is called with options, a `Called`.

    Args:
        callee: The device.
        on_progress: Takes the progress.
        upload: The items to send.
    """

    def __init__(self, callee: Callee, on_progress: Callable[[Any], Any] | None, upload: Items | None) -> None:
        self._callee = callee
        self._on_progress = on_progress
        self._upload = upload
        self._asked: Asked | None = None

    def start_call(self, name: MessageType, payload: Any, timeout: float | None) -> tuple[int, asyncio.Future[Any]]:
        asked = self._callee.ask(name, payload, timeout, on_progress=self._on_progress, upload=self._upload)
        self._asked = asked
        return asked.stamp, asked.future

    def forget_call(self, stamp: int) -> None:
        if self._asked is not None:
            self._asked.give_up()


_Started: TypeAlias = "list[tuple[Called, int, asyncio.Future[Any]]]"


async def call_user(
    scheduler: Scheduler,
    callees: Sequence[Called],
    cid: ClientId,
    name: MessageType,
    payload: Any,
    mode: Mode,
    timeout: float | None,
    default: float,
) -> Any:
    """Call a procedure on a user's devices; see `WseServer.call`.

    Args:
        scheduler: Time and futures.
        callees: The devices, the oldest first.
        cid: The user.
        name: The procedure.
        payload: Its argument.
        mode: The answers that are returned.
        timeout: Seconds; `None` for the default.
        default: The same; 0 for ever.

    Raises:
        WseError: `CONNECTION_MISSING`; that of a device.
    """
    try:
        if mode == "all":
            return await call_all(callees, name, payload, timeout)
        if mode == "first":
            return await call_first(scheduler, callees, name, payload, timeout)
        return await call_any(scheduler, callees, name, payload, default if timeout is None else timeout)
    except NotAskedError:
        raise WseError(ErrorCode.CONNECTION_MISSING, {"cid": cid, "rp": name}) from None


def check_mode(mode: str) -> None:
    """Reject a mode that there is not.

    Raises:
        ValueError: The same.
    """
    if mode not in ("first", "all", "any"):
        raise ValueError(f'mode must be "first", "all" or "any", not {mode!r}')


async def call_all(callees: Sequence[Called], name: MessageType, payload: Any, timeout: float | None) -> list[Any]:
    """Call a procedure on several devices at once; errors stand in the list where results would.

    Raises:
        NotAskedError: No device is there.
    """
    started: _Started = []
    results: dict[Called, Any] = dict.fromkeys(callees)
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
    answers = [result for result in results.values() if not isinstance(result, NotAskedError)]
    if not answers:
        raise _nobody(name)
    return answers


async def call_first(
    scheduler: Scheduler, callees: Sequence[Called], name: MessageType, payload: Any, timeout: float | None
) -> Any:
    """Call a procedure on several devices at once, and return the first result; the other answers are ignored.

    Raises:
        NotAskedError: No device is there.
        WseError: Every device has failed; this is the last error.
    """
    if not callees:
        raise _nobody(name)
    first: asyncio.Future[Any] = scheduler.create_future()
    waiting = len(callees)
    last: BaseException = _nobody(name)

    def settled(future: asyncio.Future[Any]) -> None:
        if not first.done() and not future.cancelled():
            error = future.exception()
            if error is None:
                first.set_result(future.result())
            else:
                failed(error)

    def failed(error: BaseException) -> None:
        nonlocal waiting, last
        waiting -= 1
        if not isinstance(error, NotAskedError):
            last = error
        if not waiting:
            first.set_exception(last)

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


async def call_any(
    scheduler: Scheduler, callees: Sequence[Called], name: MessageType, payload: Any, timeout: float
) -> Any:
    """Call a procedure on the newest device, which is the last; on an older one only if the newer are not there.

    Args:
        timeout: Seconds for all of it; 0 for ever.

    Raises:
        NotAskedError: No device is there.
        WseError: The device that was asked has failed.
    """
    began = scheduler.time()
    left = timeout
    for callee in reversed(callees):
        try:
            stamp, future = callee.start_call(name, payload, left)
            try:
                return await future
            finally:
                _forget([(callee, stamp, future)])
        except NotAskedError:
            if timeout:
                left = max(timeout - (scheduler.time() - began), 0.001)  # 0 would be for ever
    raise _nobody(name)


def _nobody(name: MessageType) -> NotAskedError:
    return NotAskedError(ErrorCode.CONNECTION_MISSING, {"rp": name})


def _forget(started: _Started) -> None:
    for callee, stamp, future in started:
        callee.forget_call(stamp)
        if not future.cancel() and not future.cancelled():
            future.exception()  # retrieved, so that asyncio does not log it
