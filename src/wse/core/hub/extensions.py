"""The extensions of a server that need no state of its own (WIRE.md section 7)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wse.core.session.extensions import Extension

if TYPE_CHECKING:
    from wse.core.session.session import Session


class LimitsExtension(Extension):
    """`limits`: the client tells the largest message that it takes, and gets no larger ones."""

    name = "limits"

    def offered(self, session: Session, params: Any) -> bool:
        size = params.get("message_size") if isinstance(params, dict) else None
        if isinstance(size, bool) or not isinstance(size, int) or size <= 0:
            return False
        session.limit_output(size)
        return True
