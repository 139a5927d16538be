"""The parts of a connection's life in which messages do not go to the application."""

from __future__ import annotations

import typing
from typing import Any


class Phase(typing.Protocol):
    """A part of a connection's life in which messages do not go to the application."""

    @property
    def ignores_input(self) -> bool:
        """Whether incoming messages are ignored without being decoded."""
        ...

    @property
    def max_size(self) -> int:
        """The bytes that a message may have."""
        ...

    def message(self, type: Any, payload: Any, stamp: Any) -> None:
        """Handle a decoded message."""

    def stop(self) -> None:
        """End the phase: the connection has ended."""


class Ignoring:
    """A phase in which every message is ignored."""

    ignores_input = True
    max_size = 0

    def message(self, type: Any, payload: Any, stamp: Any) -> None: ...

    def stop(self) -> None: ...


ENDED = Ignoring()
"""The last phase."""
