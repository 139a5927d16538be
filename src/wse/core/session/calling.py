"""The extension `calls`, alike at both sides: streams, cancellation, deadlines and progress (WIRE.md section 7)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from wse.core.limits import Overflow
from wse.core.session.extensions import Control, Extension
from wse.core.session.flow import DEFAULT_WINDOW, is_credit
from wse.core.session.serving import is_duration

if TYPE_CHECKING:
    from wse.core.ports.protocol import ExtensionTypes
    from wse.core.session.endpoint import Endpoint
    from wse.core.session.session import Session
    from wse.types import MessageType


class Terms(NamedTuple):
    """What a peer has announced.

    Attributes:
        timeout: Seconds that its calls wait, unless they say otherwise; 0 for ever.
        window: Items of a stream for which it takes credit.
    """

    timeout: float
    window: int


class CallsExtension(Extension):
    """`calls`.

    Args:
        endpoint: The side.
    """

    name = "calls"

    def __init__(self, endpoint: Endpoint) -> None:
        timeout = endpoint.timeout
        self._announcement: dict[str, Any] = {"timeout": int(timeout) if timeout % 1 == 0 else timeout}
        if endpoint.limits.stream_window != DEFAULT_WINDOW:
            self._announcement["window"] = endpoint.limits.stream_window
        self._known: dict[Terms, Terms] = {}
        for protocol in endpoint.protocols:
            if protocol.extensions is not None:  # progress is worth something only while it is new
                endpoint.overflow.setdefault(protocol.extensions.progress, Overflow.LATEST)

    def offer(self) -> Any:
        return self._announcement

    def answered(self, session: Session, params: Any) -> None:
        if not self.offered(session, params):
            session.terms = Terms(0, DEFAULT_WINDOW)

    def offered(self, session: Session, params: Any) -> bool:
        if not isinstance(params, dict):
            return False
        timeout, window = params.get("timeout", 0), params.get("window", DEFAULT_WINDOW)
        if not is_duration(timeout) or not is_credit(window):
            return False
        terms = Terms(float(timeout), window)
        if len(self._known) < _MOST:
            terms = self._known.setdefault(terms, terms)
        session.terms = terms
        return True

    def answer(self, session: Session) -> Any:
        return self._announcement

    def controls(self, types: ExtensionTypes) -> Mapping[MessageType, Control]:
        return {
            types.call: _call,
            types.more: _more,
            types.put: _put,
            types.end: _end,
            types.cancel: _cancel,
            types.item: _item,
            types.want: _want,
            types.progress: _progress,
        }


_MOST = 100
"""Terms that sessions share: nearly all peers announce the same."""


# Frames of calls that are unknown here belong to calls that have just ended, and are ignored.


def _call(session: Session, payload: Any, stamp: Any) -> None:
    session.serving.called(payload, stamp)


def _more(session: Session, count: Any, stamp: Any) -> None:
    if session._serving is not None:
        session._serving.granted(count, stamp)


def _put(session: Session, item: Any, stamp: Any) -> None:
    if session._serving is not None:
        session._serving.put(item, stamp, session.input_size)


def _end(session: Session, payload: Any, stamp: Any) -> None:
    if session._serving is not None:
        session._serving.uploaded(stamp)


def _cancel(session: Session, payload: Any, stamp: Any) -> None:
    if session._serving is not None:
        session._serving.cancel(stamp)


def _item(session: Session, item: Any, stamp: Any) -> None:
    if session._asking is not None:
        session._asking.item(item, stamp, session.input_size)


def _want(session: Session, count: Any, stamp: Any) -> None:
    if session._asking is not None:
        session._asking.wanted(count, stamp)


def _progress(session: Session, value: Any, stamp: Any) -> None:
    if session._asking is not None:
        session._asking.progress(value, stamp)
