"""SCRAM-SHA-256 (RFC 5802, RFC 7677) in WSE's challenge-response handshake.

The client proves that it knows the password, and the server that it knows the keys made of it, without either going
over the wire. Each of SCRAM's four messages travels as `{"scram": message}`:

    hi.identity   client-first     the username and a nonce
    challenge     server-first     salt, iteration count, nonce      (server to client)
    challenge     client-final     the client's proof                (client to server)
    welcome       server-final     the server's proof, beside the application's own payload:
                                   {"scram": server-final, "welcome": payload}

The cryptography is the `scramp` library's. Channel binding is not used: the gs2 header is `n,,`.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import typing
from base64 import b64decode, b64encode
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from wse.errors import ErrorCode, WseError

try:
    from scramp import ScramClient, ScramException, ScramMechanism
except ImportError as exc:  # pragma: no cover - the tests have the extra
    raise ImportError("wse.auth needs the scramp library: pip install wse[scram]") from exc

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wse.core.hub.handshake import Handshake
    from wse.server.server import WseServer
    from wse.types import ClientId

MECHANISM = "SCRAM-SHA-256"
ITERATIONS = 600_000
"""How often the password is hashed by default. It slows down whoever tries passwords on stolen keys; of those who log
in only the client pays for it. RFC 7677 asks for 4096 at least."""

_SALT_BYTES = 16
_KEY_BYTES = 32


@dataclass(frozen=True, slots=True, repr=False)
class ScramKeys:
    """What a server stores of a password: enough to check it, not enough to log in with (RFC 5802, section 3).

    Attributes:
        salt: Random bytes, the user's own.
        stored_key: Checks the client's proof.
        server_key: Makes the server's proof.
        iterations: How often the password was hashed.
    """

    salt: bytes
    stored_key: bytes
    server_key: bytes
    iterations: int

    @classmethod
    def from_password(cls, password: str, *, iterations: int = ITERATIONS) -> ScramKeys:
        """Make the keys of a password. Takes a good part of a second of CPU with the default count.

        Raises:
            ValueError: The password is empty or has characters that SASLprep (RFC 4013) forbids, or the count is
                below 4096.
        """
        if not password:
            raise ValueError("a password must not be empty")
        try:
            salt, stored_key, server_key, count = ScramMechanism(MECHANISM).make_auth_info(
                password, iteration_count=iterations, salt=secrets.token_bytes(_SALT_BYTES)
            )
        except ScramException as exc:
            raise ValueError(str(exc)) from exc
        return cls(salt, stored_key, server_key, count)

    def to_dict(self) -> dict[str, str | int]:
        """The keys as strings (base64) and a number, to be stored as JSON."""
        return {
            "salt": b64encode(self.salt).decode(),
            "stored_key": b64encode(self.stored_key).decode(),
            "server_key": b64encode(self.server_key).decode(),
            "iterations": self.iterations,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ScramKeys:
        """The keys that `to_dict` made a dict of.

        Raises:
            KeyError, ValueError: It did not.
        """
        salt, stored_key, server_key = (
            b64decode(data[name], validate=True) for name in ("salt", "stored_key", "server_key")
        )
        return cls(salt, stored_key, server_key, int(data["iterations"]))

    def __repr__(self) -> str:
        return "<ScramKeys>"


class UserStore(typing.Protocol):
    """Where a server has its users' keys."""

    async def get(self, username: str) -> ScramKeys | None:
        """The keys of a user; `None` for one that does not exist. The name has gone through SASLprep (RFC 4013)."""
        ...


class Scram:
    """The client's half: the identity of a user with a password.

        async with WseClient(url, identity=Scram("ada", "secret")) as client: ...

    The connection fails with `NOT_AUTHORIZED` also when the server does not prove that it knows the user.

    Args:
        username: The user's name.
        password: The password; it never leaves this process.

    Raises:
        ValueError: A name or password with characters that SASLprep (RFC 4013) forbids.
    """

    def __init__(self, username: str, password: str) -> None:
        self._username = username
        self._password = password
        self._exchange = self._begin()

    def _begin(self) -> ScramClient:
        try:
            return ScramClient([MECHANISM], self._username, self._password)
        except ScramException as exc:
            raise ValueError(str(exc)) from exc

    def start(self) -> dict[str, str]:
        """Client-first, with a new nonce."""
        self._exchange = self._begin()
        return {"scram": self._exchange.get_client_first()}

    async def respond(self, quest: Any) -> dict[str, str]:
        """Client-final, in answer to server-first. The hashing runs in a thread.

        Raises:
            WseError: `INVALID_CRA_HANDLER`, when the server's message is none of SCRAM's.
        """
        exchange = self._exchange
        try:
            exchange.set_server_first(_message(quest))
            return {"scram": await asyncio.to_thread(exchange.get_client_final)}
        except ScramException as exc:
            raise WseError(ErrorCode.INVALID_CRA_HANDLER, None, f"the server's quest is not SCRAM: {exc}") from exc

    def finish(self, welcome: Any) -> Any:
        """Check server-final and return the application's own welcome.

        Raises:
            WseError: `NOT_AUTHORIZED`, when the server has not proved that it knows the user's keys.
        """
        try:
            self._exchange.set_server_final(_message(welcome))
        except ScramException as exc:
            problem = "the server has not proved that it knows the user"
            raise WseError(ErrorCode.NOT_AUTHORIZED, None, problem) from exc
        return welcome.get("welcome")

    def __repr__(self) -> str:
        return "<Scram>"


class ScramServer:
    """The server's half.

    The short form lets in whoever knows a user's password, under the username as `cid`:

        ScramServer(users).attach(server)

    In the long form the application decides: `server.use_challenge(scram.challenge)`, and in the identify handler
    `scram.verify(auth)`, then `scram.accept(auth, cid, welcome)`.

    An unknown user is asked the same as a known one and fails at the same point, so that nobody learns from it who
    exists. For that it needs a made-up salt that is always the same for a name.

    Args:
        users: Where the keys are.
        secret: What made-up salts are derived from: at least 16 random bytes, the same on every server and after
            every restart. By default random, which lets a patient observer tell unknown users after a restart.
        iterations: The count that an unknown user is asked for: that of the users' keys.

    Raises:
        ValueError: A secret shorter than 16 bytes.
    """

    def __init__(self, users: UserStore, *, secret: bytes | None = None, iterations: int = ITERATIONS) -> None:
        if secret is not None and len(secret) < 16:
            raise ValueError("the secret has at least 16 random bytes")
        self._users = users
        self._secret = secret or secrets.token_bytes(32)
        self._iterations = iterations
        # Until the connection is decided on; a client that goes away takes its entry along.
        self._exchanges: WeakKeyDictionary[Handshake, _Exchange] = WeakKeyDictionary()

    def attach(self, server: WseServer) -> None:
        """Let a server accept the users, each under the name as `cid`."""
        server.use_challenge(self.challenge)
        server.identify(self._identify)

    async def challenge(self, auth: Handshake) -> dict[str, str] | None:
        """The challenge generator: server-first for the user that `hi` names. A malformed `hi` is refused."""
        try:
            client_first = _message(auth.identity)
            username = _username(client_first)
            keys = await self._users.get(username)
            exchange = _Exchange(client_first, username, keys or self._made_up(username), known=keys is not None)
        except ScramException:
            auth.refuse()
            return None
        self._exchanges[auth] = exchange
        return {"scram": exchange.server_first}

    def verify(self, auth: Handshake) -> str | None:
        """The name of the user who has proved to know the password; `None` for a wrong proof or an unknown user."""
        exchange = self._exchanges.get(auth)
        if exchange is None or auth.challenge is None:
            return None
        return exchange.verify(auth.challenge.response)

    def accept(self, auth: Handshake, cid: ClientId, welcome: Any = None) -> None:
        """Let in a user that `verify` has named, with the server's own proof beside the welcome.

        Raises:
            RuntimeError: `verify` has not named a user for this connection.
        """
        exchange = self._exchanges.get(auth)
        if exchange is None or exchange.server_final is None:
            raise RuntimeError("scram.accept needs a connection that scram.verify has approved")
        auth.accept(cid, {"scram": exchange.server_final, "welcome": welcome})

    def _identify(self, auth: Handshake) -> None:
        username = self.verify(auth)
        if username is None:
            auth.refuse()
        else:
            self.accept(auth, username)

    def _made_up(self, username: str) -> ScramKeys:
        """Keys that no password has, always the same for a name."""

        def derive(purpose: str) -> bytes:
            return hmac.digest(self._secret, f"{purpose} {username}".encode(), "sha256")

        return ScramKeys(derive("salt")[:_SALT_BYTES], derive("stored"), derive("server"), self._iterations)


class _Exchange:
    """One client's way through SCRAM, at the server."""

    __slots__ = ("_known", "_scram", "_username", "server_final", "server_first")

    def __init__(self, client_first: str, username: str, keys: ScramKeys, *, known: bool) -> None:
        auth_info = (keys.salt, keys.stored_key, keys.server_key, keys.iterations)
        self._scram = ScramMechanism(MECHANISM).make_server(lambda _: auth_info)
        self._scram.set_client_first(client_first)
        self._username = username
        self._known = known
        self.server_first: str = self._scram.get_server_first()
        self.server_final: str | None = None

    def verify(self, response: Any) -> str | None:
        try:
            self._scram.set_client_final(_message(response))
        except ScramException:
            return None
        if not self._known:
            return None
        self.server_final = self._scram.get_server_final()
        return self._username


def _message(payload: Any) -> str:
    """The SCRAM message in a payload.

    Raises:
        ScramException: There is none.
    """
    message = payload.get("scram") if isinstance(payload, dict) else None
    if not isinstance(message, str):
        raise ScramException("expected an object with a string at 'scram'")
    return message


def _username(client_first: str) -> str:
    """The name in client-first: `scramp` tells it only to the function that it asks for keys, which must not wait.

    Raises:
        ScramException: It is no client-first message.
    """
    names: list[str] = []
    server = ScramMechanism(MECHANISM).make_server(names.append)
    try:
        server.set_client_first(client_first)
    except ScramException:
        if not names:
            raise
    return names[0]
