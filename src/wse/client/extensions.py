"""The extensions that a client offers (WIRE.md section 7)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from wse.core.session.calling import CallsExtension
from wse.core.session.extensions import Control, Extension

if TYPE_CHECKING:
    from wse.client.session import ClientSession
    from wse.core.ports.protocol import ExtensionTypes
    from wse.core.session.endpoint import Endpoint
    from wse.types import MessageType


class AuthExtension(Extension):
    """`auth`: reasons of refusals, and fresh identities for sessions that expire."""

    name = "auth"

    def controls(self, types: ExtensionTypes) -> Mapping[MessageType, Control]:
        return {types.auth: self._asked, types.refused: self._refused}

    def _asked(self, session: ClientSession, payload: Any, stamp: Any) -> None:
        """The server asks for a fresh identity."""
        session.asked_for_identity()

    def _refused(self, session: ClientSession, payload: Any, stamp: Any) -> None:
        session.refused(payload)


class LimitsExtension(Extension):
    """`limits`: tells the server the largest message that the client takes."""

    name = "limits"

    def __init__(self, message_size: int) -> None:
        self._message_size = message_size

    def offer(self) -> Any:
        return {"message_size": self._message_size}


def add_client_extensions(endpoint: Endpoint) -> None:
    """Add everything that a client offers."""
    endpoint.extensions.add(AuthExtension())
    endpoint.extensions.add(LimitsExtension(endpoint.limits.max_frame_size))  # servers send one frame
    endpoint.extensions.add(CallsExtension(endpoint))
