"""SCRAM-SHA-256 (RFC 5802, RFC 7677) in WSE's challenge-response handshake.

The client proves that it knows the password, and the server that it knows the keys derived from it. Neither is sent.
Each of SCRAM's four messages is sent as `{"scram": message}`:

    hi.identity   client-first     the username and a nonce
    challenge     server-first     salt, iteration count, nonce      (server to client)
    challenge     client-final     the client's proof                (client to server)
    welcome       server-final     the server's proof, next to the application's own payload:
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
    raise ImportError('wse.auth needs the scramp library: pip install "wse[scram]"') from exc

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wse.core.hub.handshake import Handshake
    from wse.server.server import WseServer
    from wse.types import ClientId

MECHANISM = "SCRAM-SHA-256"
ITERATIONS = 600_000
"""The default number of times that a password is hashed. It slows down an attacker who tries passwords on stolen keys.
At login only the client has to hash. RFC 7677 requires at least 4096."""

_SALT_BYTES = 16


@dataclass(frozen=True, slots=True, repr=False)
class ScramKeys:
    """The keys that a server stores for a password: enough to check it, not enough to log in (RFC 5802, section 3).

    Attributes:
        salt: Random bytes, different for each user.
        stored_key: The key that checks the client's proof.
        server_key: The key that makes the server's proof.
        iterations: The number of times that the password was hashed.
    """

    salt: bytes
    stored_key: bytes
    server_key: bytes
    iterations: int

    @classmethod
    def from_password(cls, password: str, *, iterations: int = ITERATIONS) -> ScramKeys:
        """Make the keys of a password. With the default count this takes a large part of a second of CPU time.

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
        """Reverse `to_dict`.

        Raises:
            KeyError, ValueError: `to_dict` does not return such a dict.
        """
        salt, stored_key, server_key = (
            b64decode(data[name], validate=True) for name in ("salt", "stored_key", "server_key")
        )
        return cls(salt, stored_key, server_key, int(data["iterations"]))

    def __repr__(self) -> str:
        return "<ScramKeys>"


class UserStore(typing.Protocol):
    """The application's storage of its users' keys."""

    async def get(self, username: str) -> ScramKeys | None:
        """The keys of a user; `None` if there is no such user. SASLprep (RFC 4013) has been applied to the name."""
        ...


class Scram:
    """SCRAM-SHA-256 at the client: the identity of a user with a password.

        async with WseClient(url, identity=Scram("ada", "secret")) as client: ...

    The connection also fails, with `NOT_AUTHORIZED`, if the server does not prove that it knows the user.

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
        """Make the client-first message, with a new nonce."""
        self._exchange = self._begin()
        return {"scram": self._exchange.get_client_first()}

    async def respond(self, quest: Any) -> dict[str, str]:
        """Make the client-final message, the answer to server-first. The hashing runs in a thread.

        Raises:
            WseError: `INVALID_CRA_HANDLER`: the server's message is not a SCRAM message.
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
            WseError: `NOT_AUTHORIZED`: the server has not proved that it knows the user's keys.
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
    """SCRAM-SHA-256 at the server: challenges clients, and checks their proofs.

    The short form accepts every client that knows a user's password, with the username as `cid`:

        ScramServer(users).attach(server)

    In the long form the application decides: `server.use_challenge(scram.challenge)`, and in the identify handler
    `scram.verify(auth)`, then `scram.accept(auth, cid, welcome)`.

    An unknown user gets the same questions as a known one and fails at the same point, so attackers do not learn which
    users exist. For this, the server derives a salt for an unknown name, which is always the same for that name.

    Args:
        users: The storage of the keys.
        secret: The salts for unknown names are derived from this secret: at least 16 random bytes, the same on every
            server and after every restart. By default it is random at each start, so a patient attacker can recognise
            unknown users after a restart.
        iterations: The iteration count for unknown users; it should be that of the users' keys.

    Raises:
        ValueError: The secret is shorter than 16 bytes.
    """

    def __init__(self, users: UserStore, *, secret: bytes | None = None, iterations: int = ITERATIONS) -> None:
        if secret is not None and len(secret) < 16:
            raise ValueError("the secret must have at least 16 random bytes")
        self._users = users
        self._secret = secret or secrets.token_bytes(32)
        self._iterations = iterations
        # An entry lasts until the connection is accepted or refused, or until the client goes away.
        self._exchanges: WeakKeyDictionary[Handshake, _Exchange] = WeakKeyDictionary()

    def attach(self, server: WseServer) -> None:
        """Set the server's challenge generator and identify handler; a user's name becomes the `cid`."""
        server.use_challenge(self.challenge)
        server.identify(self._identify)

    async def challenge(self, auth: Handshake) -> dict[str, str] | None:
        """Make the challenge: server-first for the user that `hi` names. Refuse a malformed `hi`."""
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
        """Check the proof and return the user's name; `None` for a wrong proof or an unknown user."""
        exchange = self._exchanges.get(auth)
        if exchange is None or auth.challenge is None:
            return None
        return exchange.verify(auth.challenge.response)

    def accept(self, auth: Handshake, cid: ClientId, welcome: Any = None) -> None:
        """Accept a user that `verify` has named, with the server's own proof next to the welcome.

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
        """Keys to which no password belongs, always the same for a name."""

        def derive(purpose: str) -> bytes:
            return hmac.digest(self._secret, f"{purpose} {username}".encode(), "sha256")

        return ScramKeys(derive("salt")[:_SALT_BYTES], derive("stored"), derive("server"), self._iterations)


class _Exchange:
    """The server's state of one SCRAM exchange."""

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
        ScramException: The payload does not contain one.
    """
    message = payload.get("scram") if isinstance(payload, dict) else None
    if not isinstance(message, str):
        raise ScramException("expected an object with a string at 'scram'")
    return message


def _username(client_first: str) -> str:
    """The name in client-first. `scramp` passes it only to its function for keys, which must not be asynchronous.

    Raises:
        ScramException: The message is not a client-first message.
    """
    names: list[str] = []
    server = ScramMechanism(MECHANISM).make_server(names.append)
    try:
        server.set_client_first(client_first)
    except ScramException:
        if not names:
            raise
    return names[0]
