"""What the `resume` extension has in common at both sides (WIRE.md section 7): its messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from wse.core.session.extensions import Control, Extension

if TYPE_CHECKING:
    from wse.core.ports.protocol import ExtensionTypes
    from wse.core.session.session import Session
    from wse.types import MessageType


class Resuming(Extension):
    """`resume`: sessions that outlive their connection."""

    name = "resume"

    def controls(self, types: ExtensionTypes) -> Mapping[MessageType, Control]:
        return {types.ack: _ack, types.ask: _ask, types.gap: _gap}


def _ack(session: Session, payload: Any, stamp: Any) -> None:
    if session.ledger is not None:
        session.ledger.ack_came(payload)


def _ask(session: Session, payload: Any, stamp: Any) -> None:
    if session.ledger is not None:
        session.ledger.ask_came()


def _gap(session: Session, payload: Any, stamp: Any) -> None:
    if session.ledger is not None:
        session.ledger.gap_came(payload)
