"""The events of a blocking client."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVarTuple

from wse.types import F

if TYPE_CHECKING:
    from wse.client.blocking import BlockingClient
    from wse.client.resumption import Loss
    from wse.core.session.signals import Signal
    from wse.errors import WseError
    from wse.types import ClientStatus

Ts = TypeVarTuple("Ts")


class BlockingSignal(Generic[*Ts]):
    """An event of a blocking client; as `Signal`."""

    def __init__(self, client: BlockingClient, signal: Signal[*Ts]) -> None:
        self._client = client
        self._signal = signal

    def __call__(self, fn: F) -> F:
        """Call `fn` at every emission; returns `fn`."""
        self._client._do(self._signal, self._client._handlers.listener(fn))
        return fn

    def once(self, fn: F) -> F:
        """Call `fn` at the next emission only; returns `fn`."""
        self._client._do(self._signal.once, self._client._handlers.listener(fn))
        return fn

    def off(self, fn: Callable[..., Any]) -> None:
        """Stop calling `fn`; nothing happens if it is not a listener."""
        self._client._do(self._signal.off, fn)

    def wait(self, timeout: float | None = None) -> tuple[*Ts]:
        """Wait for the next emission and return its arguments, always as a tuple; as `Signal.wait`.

        Raises:
            TimeoutError: There was no emission in time.
        """
        return self._client._wait(self._signal.wait(timeout))


class BlockingSignals:
    """The events of a blocking client: `client.when`; as those of `WseClient`."""

    def __init__(self, client: BlockingClient) -> None:
        when = client._client.when
        self.connected: BlockingSignal[()] = BlockingSignal(client, when.connected)
        self.ready: BlockingSignal[Any] = BlockingSignal(client, when.ready)
        self.resumed: BlockingSignal[Any] = BlockingSignal(client, when.resumed)
        self.lost: BlockingSignal[Loss] = BlockingSignal(client, when.lost)
        self.inbox_lost: BlockingSignal[int] = BlockingSignal(client, when.inbox_lost)
        self.closed: BlockingSignal[int, str] = BlockingSignal(client, when.closed)
        self.updated: BlockingSignal[ClientStatus] = BlockingSignal(client, when.updated)
        self.gave_up: BlockingSignal[WseError] = BlockingSignal(client, when.gave_up)
        self.ignored: BlockingSignal[Any, Any, Any] = BlockingSignal(client, when.ignored)
        self.error: BlockingSignal[WseError] = BlockingSignal(client, when.error)
