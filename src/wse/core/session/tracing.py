"""The extension `trace`, alike at both sides: calls carry the context of their traces (WIRE.md section 7)."""

from __future__ import annotations

from wse.core.ports.tracing import TRACE
from wse.core.session.extensions import Extension


class TraceExtension(Extension):
    """`trace`: options of calls may have the keys `tp` and `ts`."""

    name = TRACE
