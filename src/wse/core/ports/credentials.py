"""An identity that takes part in the handshake."""

from __future__ import annotations

import typing
from typing import Any


@typing.runtime_checkable
class Credentials(typing.Protocol):
    """An identity that takes part in the handshake itself; see `wse.auth.Scram`.

    Pass it to a client as `identity`. It makes the identity in `hi`, answers the server's quest and checks the welcome.
    One object serves any number of connections, one after the other: each begins with `start`.
    """

    def start(self) -> Any:
        """Return the identity that `hi` carries."""

    async def respond(self, quest: Any) -> Any:
        """Return the response to the server's quest."""

    def finish(self, welcome: Any) -> Any:
        """Check the welcome payload, and return the part that belongs to the application.

        Raises:
            WseError: `NOT_AUTHORIZED`, when the server has not proved itself.
        """
