"""The server's side of authentication: from the open socket to the welcome (WIRE.md section 3).

`TRANSITIONS` is the complete table: a message that it does not have for the present state ends the connection or is
ignored, and such a decision is ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from inspect import isawaitable
from types import GenericAlias
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, TypeVar

from wse.core.hub.auth import refuse, unix_time
from wse.core.packed import encode
from wse.core.session.session import Session
from wse.core.session.signals import run_handler
from wse.errors import CloseReason, ErrorCode, WseError
from wse.types import ClientId

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from wse.core.hub.auth import AuthExtension
    from wse.core.hub.connection import WseConnection
    from wse.core.packed import Packed
    from wse.core.ports.scheduling import Timer
    from wse.core.ports.transport import Request


class State(Enum):
    """The state of a connection at the server."""

    STRANGER = auto()
    VALIDATING = auto()  # a handler decides; messages of the client are ignored
    CHALLENGED = auto()
    VALID = auto()
    GONE = auto()


class Event(Enum):
    """The events that change the state."""

    HI = auto()
    QUEST = auto()
    RESPONSE = auto()
    ACCEPT = auto()
    END = auto()


TRANSITIONS: Mapping[tuple[State, Event], State] = {
    (State.STRANGER, Event.HI): State.VALIDATING,
    (State.VALIDATING, Event.QUEST): State.CHALLENGED,
    (State.CHALLENGED, Event.RESPONSE): State.VALIDATING,
    (State.VALIDATING, Event.ACCEPT): State.VALID,
    (State.STRANGER, Event.END): State.GONE,
    (State.VALIDATING, Event.END): State.GONE,
    (State.CHALLENGED, Event.END): State.GONE,
}


if TYPE_CHECKING:  # Python has defaults of type variables from 3.13 on
    from typing_extensions import TypeVar as TypeVarWithDefault

    IdentityT = TypeVarWithDefault("IdentityT", default=Any)
    MetaT = TypeVarWithDefault("MetaT", default=dict[str, Any])
    WelcomeT = TypeVarWithDefault("WelcomeT", default=Any)
else:
    IdentityT, MetaT, WelcomeT = TypeVar("IdentityT"), TypeVar("MetaT"), TypeVar("WelcomeT")


class Challenge:
    """A quest, and the client's response.

    Attributes:
        quest: The server's question.
        response: The client's answer; `None` until it has come.
    """

    __slots__ = ("quest", "response")

    def __init__(self, quest: Any) -> None:
        self.quest = quest
        self.response: Any = None

    def __repr__(self) -> str:
        return "<Challenge>"  # its content is secret


class Returning(NamedTuple):
    """The session with which a client wants to go on.

    Attributes:
        cid: Its user.
        meta: The meta of its last connection.
    """

    cid: Any
    meta: dict[str, Any]


class Handshake(Generic[IdentityT, MetaT, WelcomeT]):
    """The authentication of one client: the argument `auth` of the identify handler and the challenge generator.

    With `auth: Handshake[Login]` or `Handshake[Login, Meta]`, the identity and the meta are values of these types. A
    client that sends others is refused with the reason `wse.invalid-payload`, before the handler runs. The third type,
    as in `Handshake[Login, Meta, Welcome]`, is that of the welcome which `accept` takes.

    Attributes:
        identity: The identity that the client sent; anything, including `None`.
        meta: The meta that the client sent, a dict.
        challenge: The quest and the client's response; `None` without a challenge.
        conn_id: The id of the connection.
        request: The HTTP request that opened the WebSocket: `path`, `query`, `headers`, `remote_addr`, `certificate`.
        state: What `accept` was given.
    """

    __slots__ = (
        "__weakref__",
        "_opening",
        "_own",
        "_sent",
        "challenge",
        "conn_id",
        "identity",
        "meta",
        "request",
        "state",
    )

    def __init__(self, opening: ServerOpening[Any] | None, conn_id: str, request: Request) -> None:
        self._opening = opening  # until it is decided
        self._sent: tuple[Any, dict[str, Any]] | None = None
        self._own: Callable[[Any], Any] | None = None  # the check of the welcome
        self.conn_id = conn_id
        self.request = request
        self.identity: IdentityT = None  # type: ignore[assignment]  # until the client has sent it
        self.meta: MetaT = {}  # type: ignore[assignment]  # as above
        self.challenge: Challenge | None = None
        self.state: Any = None

    if not TYPE_CHECKING:
        __class_getitem__ = classmethod(GenericAlias)  # with one argument, two or three

    @property
    def sent(self) -> tuple[Any, dict[str, Any]]:
        """The identity and the meta as the client has sent them."""
        if self._sent is not None:
            return self._sent
        return self.identity, self.meta  # type: ignore[return-value]  # not checked, so they are what was sent

    def become(self, identity: Any, meta: Any, own: Callable[[Any], Any] | None = None) -> None:
        """Have an identity and a meta that have been checked; the connection will have those that were sent.

        Args:
            identity: The identity.
            meta: The meta.
            own: Checks the welcome; `None` for any.
        """
        self._sent = self.sent
        self.identity, self.meta, self._own = identity, meta, own

    def accept(
        self,
        cid: ClientId,
        welcome: WelcomeT = None,  # type: ignore[assignment]  # unless its type says that there is one
        *,
        state: Any = None,
        expires: datetime | float | None = None,
    ) -> None:
        """Accept the client.

        Args:
            cid: The user's id, hashable. A falsy one refuses the client.
            welcome: The payload of the welcome.
            state: Any object, for `WseConnection.state`: what the application has found out about the client, for its
                handlers.
            expires: The time at which the session ends: a `datetime` with a time zone, or Unix seconds like the `exp`
                of a JWT. The connection is then closed with 1012 and `wse.session-expired`, after which clients
                reconnect. If there is a `WseServer.reauthenticate` handler, the client is asked for a fresh identity
                before that. A time that has passed refuses the client.

        A second decision does nothing, nor does one after the client has gone.

        Raises:
            TypeError: `cid` is not hashable; `expires` is not a time; the welcome is not of its type.
            ValueError: `expires` has no time zone, or is not in seconds.
            WseError: `MSG_PROCESSING_ERROR`, when the welcome cannot be encoded; `LIMIT_EXCEEDED`, when it is larger
                than the client takes.
        """
        if self._opening is not None:
            self._opening.check_thread()
            if self._own is not None:
                welcome = self._own(welcome)
            self.state = state
            self._opening.accept(cid, welcome, None if expires is None else unix_time(expires))

    def refuse(self, reason: str | None = None, retry: bool = False) -> None:
        """Close the connection with `wse.not-authorized`. A second decision does nothing.

        Args:
            reason: The reason for the client: `error.details["reason"]` of its `NOT_AUTHORIZED`. Clients of the
                original JavaScript package do not get it.
            retry: Whether a client that reconnects may try again with the same identity.

        Raises:
            WseError: `MSG_PROCESSING_ERROR`, when the reason cannot be encoded.
        """
        if self._opening is not None:
            self._opening.check_thread()
            self._opening.refuse(reason, retry)

    def quest(self, value: Any) -> None:
        """Ask the client for proof; its response is at `challenge.response` when the identify handler runs.

        Raises:
            WseError: `INVALID_CRA_GENERATOR`, when the caller is not the challenge generator;
                `MSG_PROCESSING_ERROR`, when the value cannot be encoded.
        """
        if self._opening is not None:
            self._opening.check_thread()
            self._opening.quest(value)

    async def resuming(self) -> Returning | None:
        """The session that the client wants to go on with, if the client has proved that it knows its key; else `None`.
        In a cluster, the node that has the session is asked.

        An application may trust the key, and accept the session's user without looking further:
        `auth.accept(returning.cid)`. Whoever has the key is then that user, so use TLS.
        """
        return None if self._opening is None else await self._opening.returning()

    def __repr__(self) -> str:
        return f"<Handshake {self.conn_id} from {self.request.remote_addr}>"


def handshake_of(conn: WseConnection) -> Handshake:
    """The handshake with which a connection was accepted, which is decided: for dependencies that take `auth`."""
    auth: Handshake = Handshake(None, conn.conn_id, conn.request)
    auth.identity, auth.meta, auth.challenge, auth.state = conn.identity, conn.meta, conn.challenge, conn.state
    return auth


AuthHandler = Callable[[Handshake[Any, Any, Any]], Any]

S = TypeVar("S", bound=Session)
S_contra = TypeVar("S_contra", bound=Session, contravariant=True)


class OpeningOwner(Protocol[S_contra]):
    """A server, as its connections see it before the welcome."""

    def join(
        self, session: S_contra, auth: Handshake, cid: ClientId, welcome: Packed, expires: float | None, /
    ) -> None:
        """Make a connection the user's and send it the welcome."""

    def refused(self, session: S_contra, retry: bool, /) -> None:
        """A client is about to be refused; `retry` says whether it may try again."""

    async def returning(self, session: S_contra, /) -> Returning | None:
        """The session with which the client wants to go on."""
        ...


class ServerOpening(Generic[S]):
    """The phase of a server's session before the welcome.

    Args:
        session: The connection.
        conn_id: Its id.
        request: The HTTP request that opened it.
        identify: The application's identify handler.
        generator: Its challenge generator, if any.
        deadline: Seconds until the connection must be valid; 0 for ever.
        auth: Knows when sessions expire.
        owner: The server.
    """

    __slots__ = (
        "_auth",
        "_deadline",
        "_generator",
        "_identify",
        "_owner",
        "_session",
        "handshake",
        "state",
    )

    def __init__(
        self,
        session: S,
        *,
        conn_id: str,
        request: Request,
        identify: AuthHandler,
        generator: AuthHandler | None,
        deadline: float,
        auth: AuthExtension,
        owner: OpeningOwner[S],
    ) -> None:
        self.state = State.STRANGER
        self.handshake = Handshake(self, conn_id, request)
        self._session = session
        self._identify = identify
        self._generator = generator
        self._auth = auth
        self._owner = owner
        self._deadline: Timer | None = None
        if deadline:
            self._deadline = session.endpoint.scheduler.call_later(deadline, self._too_late)

    # The session's side.

    @property
    def ignores_input(self) -> bool:
        return self.state is State.VALIDATING

    @property
    def max_size(self) -> int:
        return self._session.endpoint.limits.handshake_size

    def message(self, type: Any, payload: Any, stamp: Any) -> None:
        types = self._session.protocol.internal_types
        if self.state is State.STRANGER and type == types.hi:
            self._hi(payload)
        elif self.state is State.CHALLENGED and type == types.challenge:
            self._move(Event.RESPONSE)
            assert self.handshake.challenge is not None  # set by the quest that led to this state
            self.handshake.challenge.response = payload
            self._validate()
        else:
            expected = "challenge" if self.state is State.CHALLENGED else "hi"
            self._session.violation(f"a {self.state.name.lower()} connection must send {expected} first")

    def stop(self) -> None:
        self._over(Event.END)

    # The application's decisions.

    def check_thread(self) -> None:
        """Reject a decision in another thread; see `Endpoint.check_thread`."""
        self._session.endpoint.check_thread()

    def accept(self, cid: ClientId, welcome: Any, expires: float | None) -> None:
        if self.state is not State.VALIDATING:
            return
        hash(cid)  # an unhashable id is the handler's error, here and now
        if not cid:
            self.refuse()
            return
        if expires is not None and self._auth.has_passed(expires):
            self.refuse(CloseReason.SESSION_EXPIRED)
            return
        packed = encode(self._session.protocol, self._session.protocol.internal_types.welcome, welcome)
        self._session.check_size(packed.data, {"type": "welcome"})
        self._over(Event.ACCEPT)
        self._owner.join(self._session, self.handshake, cid, packed, expires)

    def refuse(self, reason: str | None = None, retry: bool = False) -> None:
        # A challenge generator may still refuse, or raise, after it has asked.
        if self.state in (State.VALIDATING, State.CHALLENGED):
            self._owner.refused(self._session, retry)
            refuse(self._session, reason, retry)

    def quest(self, value: Any) -> None:
        if self.state is not State.VALIDATING:
            return
        if self._generator is None or self.handshake.challenge is not None:
            problem = "only the challenge generator may send a quest, and only once"
            raise WseError(ErrorCode.INVALID_CRA_GENERATOR, None, problem)
        self._session.write(self._session.protocol.internal_types.challenge, value)
        self.handshake.challenge = Challenge(value)
        self._move(Event.QUEST)

    async def returning(self) -> Returning | None:
        return await self._owner.returning(self._session)

    # Inside.

    def _move(self, event: Event) -> None:
        self.state = TRANSITIONS.get((self.state, event), self.state)

    def _hi(self, payload: Any) -> None:
        meta = payload.get("meta") if isinstance(payload, dict) else None
        if not meta and not isinstance(meta, list):  # falsy in JavaScript (WIRE.md section 3)
            meta = {}
        if not isinstance(payload, dict) or not isinstance(meta, dict):
            self._session.violation("hi must carry an object with an identity, and meta must be an object")
            return
        self._move(Event.HI)
        self.handshake.identity = payload.get("identity")
        self.handshake.meta = meta
        offers = payload.get("ext")
        if offers is not None:
            session = self._session
            extensions = session.endpoint.extensions
            session.agreement = extensions.take_offers(session, session.protocol.extensions, offers)
        if self._generator is None:
            self._validate()
        else:
            self._run(self._generator, self.quest, ErrorCode.INVALID_CRA_GENERATOR, "the challenge generator")

    def _validate(self) -> None:
        self._run(self._identify, self._no_value, ErrorCode.MSG_PROCESSING_ERROR, "the identify handler")

    def _run(self, handler: AuthHandler, use: Callable[[Any], None], code: ErrorCode, which: str) -> None:
        run_handler(self._session, self._handle, (handler, use), self._failed, code, which)

    def _handle(self, handler: AuthHandler, use: Callable[[Any], None]) -> Any:
        value = handler(self.handshake)
        if value is not None and isawaitable(value):
            return self._handle_later(value, use)
        if value is not None:
            use(value)
        return None

    async def _handle_later(self, awaitable: Any, use: Callable[[Any], None]) -> None:
        value = await awaitable
        if value is not None:
            use(value)

    def _no_value(self, value: Any) -> None:
        if self.state is State.VALIDATING:
            raise TypeError(
                "an identify handler must call auth.accept(cid, welcome) or auth.refuse() and return None, "
                f"not a value of type {type(value).__name__}"
            )

    def _failed(self, exc: Exception, code: ErrorCode, which: str) -> None:
        """Refuse the client and report the error, because a handler raised."""
        error = WseError(code, {"conn_id": self.handshake.conn_id}, f"{which} raised")
        self._session.endpoint.report(error, self._session, exc)
        self.refuse()

    def _too_late(self) -> None:
        self._deadline = None
        self._session.close(1000, CloseReason.AUTH_TIMEOUT)

    def _over(self, event: Event) -> None:
        self._move(event)
        # Both keep the phase alive: the timer until it is due, the handshake until the garbage is collected.
        self.handshake._opening = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
