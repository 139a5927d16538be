# Made by `wse generate python`. Changes are lost when it is made again.
# fmt: off
from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    Never,
    NotRequired,
    Protocol,
    TypeAlias,
    TypedDict,
    TypeVar,
    Unpack,
    overload,
)

from wse import Channel, WseClient
from wse.client.options import ClientOptions


class Device(TypedDict):
    """What a device says of itself."""

    kind: Literal["page", "terminal"]
    name: str


class Login(TypedDict):
    """The identity of a client."""

    token: str


class NewNote(TypedDict):
    text: str


class Note(TypedDict):
    """A note, as its readers see it."""

    id: int
    owner: str
    text: str
    at: str


class NoteRef(TypedDict):
    """Names a note."""

    note: int


class Page(TypedDict):
    """A part of the notes, the newest first."""

    before: NotRequired[int | None]
    size: NotRequired[int]


class Presence(TypedDict):
    user: str
    online: bool


class Share(TypedDict):
    """A note, and the user who may read it."""

    note: int
    user: str


class Welcome(TypedDict):
    """What a client gets when it is let in."""

    user: str


ErrorCode = Literal["notes.not-yours", "sharing.no-such-user"]
"""The codes of errors that procedures declare."""

_H = TypeVar("_H")
_Decorator: TypeAlias = Callable[[_H], _H]


class _Send(Protocol):
    def __call__(self, type: Never, *args: Any, **options: Any) -> Any: ...


class _Call(Protocol):
    @overload
    async def __call__(
        self,
        name: Literal["account.devices"],
        payload: None = None,
        *,
        timeout: float | None = None,
        on_progress: Callable[[Any], Any] | None = None,
    ) -> list[Device]:
        """The user's devices. Every one is asked; one that does not answer is left out."""
        ...

    @overload
    async def __call__(
        self,
        name: Literal["account.log_out"],
        payload: None = None,
        *,
        timeout: float | None = None,
        on_progress: Callable[[Any], Any] | None = None,
    ) -> None:
        """End the session: its token is worth nothing from now on, here and in other tabs."""
        ...

    @overload
    async def __call__(
        self,
        name: Literal["account.online"],
        payload: None = None,
        *,
        timeout: float | None = None,
        on_progress: Callable[[Any], Any] | None = None,
    ) -> list[str]:
        """The users who are connected."""
        ...

    @overload
    async def __call__(
        self,
        name: Literal["notes.add"],
        payload: NewNote,
        *,
        timeout: float | None = None,
        on_progress: Callable[[Any], Any] | None = None,
    ) -> Note:
        """Add a note. All devices of the user hear of it."""
        ...

    @overload
    async def __call__(
        self,
        name: Literal["notes.list"],
        payload: Page,
        *,
        timeout: float | None = None,
        on_progress: Callable[[Any], Any] | None = None,
    ) -> list[Note]:
        """The notes of the user, and those that others share with the user. The newest come first."""
        ...

    @overload
    async def __call__(
        self,
        name: Literal["notes.remove"],
        payload: NoteRef,
        *,
        timeout: float | None = None,
        on_progress: Callable[[Any], Any] | None = None,
    ) -> bool:
        """Remove a note, after a question to the user if others read it. Returns whether it is gone."""
        ...

    @overload
    async def __call__(
        self,
        name: Literal["sharing.share"],
        payload: Share,
        *,
        timeout: float | None = None,
        on_progress: Callable[[Any], Any] | None = None,
    ) -> None:
        """Let a user read a note. The devices of that user hear of it."""
        ...

    @overload
    async def __call__(
        self,
        name: Literal["sharing.unshare"],
        payload: Share,
        *,
        timeout: float | None = None,
        on_progress: Callable[[Any], Any] | None = None,
    ) -> None:
        """Take a note from the list of a user."""
        ...


class _Stream(Protocol):
    def __call__(self, name: Never, *args: Any, **options: Any) -> Any: ...


class _Register(Protocol):
    @overload
    def __call__(
        self,
        name: Literal["confirm"],
        fn: Callable[[str], bool | Awaitable[bool]],
        *,
        cancel: bool = False,
        ordered: bool = False,
        thread: bool = False,
    ) -> Callable[[str], bool | Awaitable[bool]]:
        """Ask the user a question."""
        ...

    @overload
    def __call__(
        self,
        name: Literal["confirm"],
        fn: None = None,
        *,
        cancel: bool = False,
        ordered: bool = False,
        thread: bool = False,
    ) -> _Decorator[Callable[[str], bool | Awaitable[bool]]]:
        """Ask the user a question."""
        ...

    @overload
    def __call__(
        self,
        name: Literal["device"],
        fn: Callable[[None], Device | Awaitable[Device]],
        *,
        cancel: bool = False,
        ordered: bool = False,
        thread: bool = False,
    ) -> Callable[[None], Device | Awaitable[Device]]:
        """Which device this is."""
        ...

    @overload
    def __call__(
        self,
        name: Literal["device"],
        fn: None = None,
        *,
        cancel: bool = False,
        ordered: bool = False,
        thread: bool = False,
    ) -> _Decorator[Callable[[None], Device | Awaitable[Device]]]:
        """Which device this is."""
        ...


class _On(Protocol):
    @overload
    def __call__(
        self,
        type: Literal["account.presence"],
        fn: Callable[[Presence], Any],
        *,
        ordered: bool = False,
    ) -> Callable[[Presence], Any]:
        """A user has come, or has gone."""
        ...

    @overload
    def __call__(
        self,
        type: Literal["account.presence"],
        fn: None = None,
        *,
        ordered: bool = False,
    ) -> _Decorator[Callable[[Presence], Any]]:
        """A user has come, or has gone."""
        ...

    @overload
    def __call__(
        self,
        type: Literal["notes.added"],
        fn: Callable[[Note], Any],
        *,
        ordered: bool = False,
    ) -> Callable[[Note], Any]:
        """There is a note that the user may read."""
        ...

    @overload
    def __call__(
        self, type: Literal["notes.added"], fn: None = None, *, ordered: bool = False
    ) -> _Decorator[Callable[[Note], Any]]:
        """There is a note that the user may read."""
        ...

    @overload
    def __call__(
        self,
        type: Literal["notes.removed"],
        fn: Callable[[int], Any],
        *,
        ordered: bool = False,
    ) -> Callable[[int], Any]:
        """A note is gone; its id."""
        ...

    @overload
    def __call__(
        self, type: Literal["notes.removed"], fn: None = None, *, ordered: bool = False
    ) -> _Decorator[Callable[[int], Any]]:
        """A note is gone; its id."""
        ...


class _Channel(Channel):
    if TYPE_CHECKING:
        on: _On  # type: ignore[assignment]  # only names of the contract


class Client(WseClient):
    """A client of notes_app.main."""

    if TYPE_CHECKING:

        def __init__(
            self,
            url: str,
            *,
            identity: Login | Callable[[], Login | Awaitable[Login]] = ...,
            meta: dict[str, Any] | None = ...,
            **options: Unpack[ClientOptions],
        ) -> None:
            """A client brings the token of its login."""
            ...

        async def connect(
            self,
            identity: Login | Callable[[], Login | Awaitable[Login]] = ...,
            meta: dict[str, Any] | None = ...,
        ) -> Welcome: ...

        async def jump(
            self,
            url: str,
            identity: Login | Callable[[], Login | Awaitable[Login]] = ...,
            meta: dict[str, Any] | None = ...,
        ) -> Welcome: ...

        async def wait_ready(self, timeout: float | None = None) -> Welcome: ...

        send: _Send  # type: ignore[assignment]  # only names of the contract
        call: _Call  # type: ignore[assignment]  # only names of the contract
        stream: _Stream  # type: ignore[assignment]  # only names of the contract
        register: _Register  # type: ignore[assignment]  # only names of the contract

        @property
        def channel(self) -> _Channel: ...
