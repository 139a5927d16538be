"""The requests of the HTTP API, from the head to what they do."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import math
import re
import typing
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from wse.core.closing import check_close
from wse.core.folding import Folding
from wse.core.limits import Limits, TokenBucket, nests_deeper
from wse.core.ports.http import HttpCall, HttpReply
from wse.errors import CloseReason, ErrorCode, WseError
from wse.http_api.replays import Replays
from wse.scheduler import AsyncioScheduler
from wse.types import ClientId, MessageKey, MessageType, RoomName

if typing.TYPE_CHECKING:
    from wse.core.admission import Admission

logger = logging.getLogger("wse")

ENVELOPE: Final = 4096
"""Bytes that a body may have besides a message of the largest size."""

_DESCRIPTION: Final = "openapi.json"

_HEADERS: Final = {
    "Content-Type": "application/json",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",  # a user's id in an error is text, whatever it looks like
}

_STATUS: Final[Mapping[str, HTTPStatus]] = {
    ErrorCode.NOT_STARTED: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorCode.BROKER_UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    ErrorCode.LIMIT_EXCEEDED: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
}
"""Of errors of the target; others are the request's fault."""

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]


class _Room(typing.Protocol):
    def send(
        self, type: MessageType, payload: Any = None, *, exclude: ClientId | None = None, key: MessageKey | None = None
    ) -> None: ...

    async def keep(
        self, type: MessageType, payload: Any = None, *, key: str | None = None, ttl: float | None = None
    ) -> int: ...


class Target(typing.Protocol):
    """What the API publishes with: a `WseServer`, or a `Publisher`."""

    def send(self, cid: ClientId, type: MessageType, payload: Any = None, *, key: MessageKey | None = None) -> None: ...

    async def keep(
        self, cid: ClientId, type: MessageType, payload: Any = None, *, key: str | None = None, ttl: float | None = None
    ) -> int: ...

    def broadcast(
        self, type: MessageType, payload: Any = None, *, exclude: ClientId | None = None, key: MessageKey | None = None
    ) -> None: ...

    def room(self, name: RoomName) -> _Room: ...

    def drop_client(self, cid: ClientId, reason: str = ..., code: int = ...) -> None: ...


class _RefusedError(Exception):
    """A request that is not done, and the answer to it."""

    def __init__(self, status: HTTPStatus, problem: str, code: str = "", **headers: str) -> None:
        super().__init__(problem)
        self.status = status
        self.code = code or status.phrase.lower().replace(" ", "-")
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    @property
    def reply(self) -> HttpReply:
        return _reply(self.status, {"error": {"code": self.code, "message": str(self)}}, self.headers)


class HttpApi:
    """The HTTP API, also as an ASGI application.

    Args:
        target: A `WseServer` that has been started, or an open `Publisher`.
        keys: The keys, of which a request carries one as `Authorization: Bearer <key>`; give each program its own. They
            may have names, by which the log tells them apart: `{"cron": "..."}`.
        limits: Bounds on requests: `message_size` and `nesting` of the payload, `message_rate` and `message_burst` of
            each key.
        admission: The policy for requests of web pages; by default those of other origins are refused.

    Raises:
        ValueError: There is no key, or one is empty or not ASCII.
    """

    def __init__(
        self,
        target: Target,
        keys: str | Iterable[str] | Mapping[str, str],
        *,
        limits: Limits | None = None,
        admission: Admission | None = None,
    ) -> None:
        self._target = target
        self._limits = limits or Limits()
        self._admission = admission
        named = keys if isinstance(keys, Mapping) else {f"key {n}": key for n, key in enumerate(_listed(keys), 1)}
        if not named or not all(isinstance(key, str) and _KEY(key) for key in named.values()):
            raise ValueError("the HTTP API needs keys, which are not empty and consist of visible ASCII characters")
        # Digests are of one length, so that comparing them tells nothing about a key.
        self._keys = {name: _digest(key) for name, key in named.items()}
        scheduler = AsyncioScheduler()
        rate = self._limits.message_rate
        self._buckets: dict[str, TokenBucket] = {}
        if rate is not None:
            burst = self._limits.message_burst or max(1, 2 * rate)
            self._buckets = {name: TokenBucket(scheduler, rate, burst) for name in self._keys}
        self._replays = {name: Replays(scheduler.time) for name in self._keys}  # one cannot crowd out another's
        self._pending: dict[tuple[str, str], tuple[bytes, asyncio.Future[HttpReply]]] = {}  # by name of key, and token
        self._folding = Folding(scheduler.time)
        self._actions: Mapping[str, _Action] = {
            "send": self._send,
            "broadcast": self._broadcast,
            "room": self._room,
            "keep": self._keep,
            "keep-room": self._keep_room,
            "drop": self._drop,
        }

    @property
    def routes(self) -> Mapping[str, Route]:
        """What answers the requests, by path below that of the API."""
        paths = (*self._actions, _DESCRIPTION)
        return {path: Route(self, path, self.max_body) for path in paths}

    @property
    def max_body(self) -> int:
        """Bytes that a body may have."""
        return self._limits.message_size + ENVELOPE

    def answer(self, action: str, call: HttpCall) -> HttpReply | Awaitable[HttpReply]:
        """Answer a request, at once or when the store has taken the message.

        Args:
            action: The last part of its path.
            call: The request.
        """
        try:
            return self._answer(action, call)
        except _RefusedError as exc:
            return exc.reply

    def _answer(self, action: str, call: HttpCall) -> HttpReply | Awaitable[HttpReply]:
        if action == _DESCRIPTION and call.method == "GET":
            return HttpReply(HTTPStatus.OK, _description(), _HEADERS)
        do = self._actions.get(action)
        if do is None:
            raise _RefusedError(HTTPStatus.NOT_FOUND, f"the actions are {', '.join(self._actions)}")
        if call.method != "POST":
            raise _RefusedError(HTTPStatus.METHOD_NOT_ALLOWED, "use POST", Allow="POST")
        origin = call.headers.get("Origin")
        if origin is not None and (self._admission is None or not self._admission.admits(call.headers)):
            self._log("origin", f"from the web page {origin[:200]!r}")
            raise _RefusedError(HTTPStatus.FORBIDDEN, "web pages of other origins may not use this")
        key = self._authenticate(call)
        if len(call.body) > self.max_body:
            raise _RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body has at most {self.max_body} bytes")
        bucket = self._buckets.get(key)
        if bucket is not None and not bucket.take(1):
            self._log(f"rate of {key}", f"too many requests with {key}")
            raise _RefusedError(HTTPStatus.TOO_MANY_REQUESTS, "too many requests", Retry_After="1")
        request = self._read(call)
        token = call.headers.get("Idempotency-Key")
        if token is None:
            return self._do(do, request, "")
        if not 0 < len(token) <= 255:
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "an idempotency key has 1 to 255 characters")
        digest = hashlib.sha256(action.encode() + b" " + call.body).digest()
        return self._do_once(key, token, digest, do, request)

    def _do_once(
        self, key: str, token: str, digest: bytes, do: _Action, request: dict[str, Any]
    ) -> HttpReply | Awaitable[HttpReply]:
        replays = self._replays[key]
        before, pending = replays.find(token), self._pending.get((key, token))
        known = before.digest if before is not None else pending[0] if pending is not None else digest
        if not hmac.compare_digest(known, digest):
            problem = "the idempotency key belongs to another request"
            raise _RefusedError(HTTPStatus.UNPROCESSABLE_ENTITY, problem, "idempotency-key-reused")
        if before is not None:
            return _replayed(before.reply)
        if pending is not None:
            return self._replay_later(pending[1])
        # Another node may get the repeat. So the store is told that both are the same.
        reply = self._do(do, request, hashlib.sha256(self._keys[key] + token.encode() + b" " + digest).hexdigest())
        if not isinstance(reply, HttpReply):
            later = asyncio.ensure_future(self._do_once_later(key, token, digest, reply))
            self._pending[key, token] = digest, later
            later.add_done_callback(lambda _: self._pending.pop((key, token)))
            return asyncio.shield(later)  # it goes on if nobody waits for the answer any longer
        replays.keep(token, digest, reply)  # one that failed has raised, and may be tried again
        return reply

    async def _do_once_later(self, key: str, token: str, digest: bytes, later: Awaitable[HttpReply]) -> HttpReply:
        reply = await later
        if reply.status is HTTPStatus.OK:
            self._replays[key].keep(token, digest, reply)
        return reply

    @staticmethod
    async def _replay_later(pending: asyncio.Future[HttpReply]) -> HttpReply:
        reply = await asyncio.shield(pending)
        return _replayed(reply) if reply.status is HTTPStatus.OK else reply

    def _do(self, do: _Action, request: dict[str, Any], token: str) -> HttpReply | Awaitable[HttpReply]:
        with _refusing():
            kept = do(request, token)
        return _reply(HTTPStatus.OK, {"ok": True}, {}) if kept is None else self._reply_later(kept)

    @staticmethod
    async def _reply_later(kept: Awaitable[int]) -> HttpReply:
        try:
            with _refusing():
                return _reply(HTTPStatus.OK, {"ok": True, "n": await kept}, {})
        except _RefusedError as exc:
            return exc.reply

    def _authenticate(self, call: HttpCall) -> str:
        """The name of the request's key."""
        scheme, _, key = (call.headers.get("Authorization") or "").partition(" ")
        digest = _digest(key.strip()) if scheme.lower() == "bearer" else b""
        found = ""
        for name, known in self._keys.items():  # all of them, so that the time tells nothing
            if hmac.compare_digest(known, digest):
                found = name
        if not found:
            self._log("key", "without a valid key")
            raise _RefusedError(HTTPStatus.UNAUTHORIZED, "a valid key is missing", WWW_Authenticate="Bearer")
        return found

    def _read(self, call: HttpCall) -> dict[str, Any]:
        media_type = (call.headers.get("Content-Type") or "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            raise _RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the Content-Type must be application/json")
        try:
            text = call.body.decode()
            request = json.loads(text, parse_constant=_no_number, parse_float=_number)
        except (ValueError, RecursionError) as exc:
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "the body is not JSON") from exc
        if not isinstance(request, dict):
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "the body must be an object")
        if nests_deeper(request.get("payload"), self._limits.nesting):
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "the payload is nested too deep", "wse.limit.nesting")
        if "\\u" in text and not _is_text(json.dumps(request.get("payload"), ensure_ascii=False)):
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "a text of the payload has half a character", _INVALID_TEXT)
        return request

    def _log(self, alike: str, what: str) -> None:
        extra = {"kind": "api-refused"}
        text = "refused a request to the HTTP API %s"
        self._folding.log(logger, logging.INFO, ("api", alike), text, what, burst=10, extra=extra)

    # Actions take their fields out of the request, check all of them, and only then do something.

    def _send(self, request: dict[str, Any], token: str) -> None:
        cid, message = _cid(request, "cid"), _message(request)
        _end(request)
        self._target.send(cid, *message[:2], key=message[2])

    def _broadcast(self, request: dict[str, Any], token: str) -> None:
        exclude, message = _cid(request, "exclude", default=None), _message(request)
        _end(request)
        self._target.broadcast(*message[:2], exclude=exclude, key=message[2])

    def _room(self, request: dict[str, Any], token: str) -> None:
        name, message = _take(request, "room", str, int), _message(request)
        exclude = _cid(request, "exclude", default=None)
        _end(request)
        self._target.room(name).send(*message[:2], exclude=exclude, key=message[2])

    def _keep(self, request: dict[str, Any], token: str) -> Awaitable[int]:
        cid, (type_, payload, options) = _cid(request, "cid"), _kept(request, token)
        _end(request)
        return self._target.keep(cid, type_, payload, **options)

    def _keep_room(self, request: dict[str, Any], token: str) -> Awaitable[int]:
        name, (type_, payload, options) = _take(request, "room", str, int), _kept(request, token)
        _end(request)
        return self._target.room(name).keep(type_, payload, **options)

    def _drop(self, request: dict[str, Any], token: str) -> None:
        cid = _cid(request, "cid")
        reason = _take(request, "reason", str, default=str(CloseReason.BY_SERVER))
        code = _take(request, "code", int, default=1000)
        _end(request)
        check_close(code, reason)
        self._target.drop_client(cid, reason, code)

    # ASGI.

    async def __call__(
        self, scope: Scope, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        """Answer a request of an ASGI server; the application may be mounted at any path."""
        if scope["type"] == "lifespan":
            while (await receive())["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close"})
            return
        headers = _AsgiHeaders(scope["headers"])
        body, more = b"", True
        while more and len(body) <= self.max_body:
            event = await receive()
            body += event.get("body", b"")
            more = event.get("more_body", False)
        path: str = scope["path"]
        reply = self.answer(path.rpartition("/")[2], HttpCall(scope["method"], path, headers, body))
        if not isinstance(reply, HttpReply):
            reply = await reply
        flush = getattr(self._target, "flush", None)
        if flush is not None and reply.status is HTTPStatus.OK:
            try:
                await flush()
            except WseError as exc:
                for replays in self._replays.values():
                    replays.forget(reply)  # so that the request can be sent again
                reply = _RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, exc.message, str(exc.code)).reply
        content = reply.body or b""
        answered = [(name.lower().encode(), value.encode()) for name, value in reply.headers.items()]
        answered.append((b"content-length", b"%d" % len(content)))
        await send({"type": "http.response.start", "status": reply.status.value, "headers": answered})
        await send({"type": "http.response.body", "body": content})


class Route:
    """One path of the API; a `wse.core.ports.http.Route`."""

    def __init__(self, api: HttpApi, action: str, max_body: int) -> None:
        self._api = api
        self._action = action
        self.methods = ("GET",) if action == _DESCRIPTION else ("POST",)
        self.max_body = 0 if action == _DESCRIPTION else max_body

    def answer(self, call: HttpCall) -> HttpReply | Awaitable[HttpReply]:
        """Answer a request."""
        return self._api.answer(self._action, call)


class _AsgiHeaders:
    """The headers of an ASGI request; see `wse.core.admission.Headers`."""

    def __init__(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self._items = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in headers]

    def get(self, name: str, /) -> str | None:
        return next(iter(self.getall(name, [])), None)

    def getall(self, name: str, default: list[str], /) -> list[str]:
        wanted = name.lower()
        return [value for present, value in self._items if present == wanted] or default


_MISSING: Any = object()

_INVALID_TEXT = "invalid-text"

_WORDS: Final[Mapping[tuple[type, ...], str]] = {
    (str,): "a string",
    (int,): "an integer",
    (str, int): "a string or an integer",
    (int, float): "a number",
}

_Action = Callable[[dict[str, Any], str], Awaitable[int] | None]
"""Takes a request and its idempotency key, and does what it says; returns what is not done at once."""


def _take(request: dict[str, Any], name: str, *types: type, default: Any = _MISSING) -> Any:
    """Take a field out of a request."""
    value = request.pop(name, default)
    if value is default and default is not _MISSING:
        return value
    if value is _MISSING or isinstance(value, bool) or not isinstance(value, types):
        problem = "is missing" if value is _MISSING else f"must be {_WORDS[types]}"
        raise ValueError(f"{name} {problem}")
    if isinstance(value, str) and not _is_text(value):
        raise _RefusedError(HTTPStatus.BAD_REQUEST, f"{name} has half a character", _INVALID_TEXT)
    if isinstance(value, int) and abs(value) >= 2**53:
        problem = f"{name} is an integer that not every program can read: it must be below 2^53"
        raise _RefusedError(HTTPStatus.BAD_REQUEST, problem, "invalid-integer")
    return value


def _cid(request: dict[str, Any], name: str, *, default: Any = _MISSING) -> Any:
    """Take a user out of a request."""
    cid = _take(request, name, str, int, default=default)
    if not cid and cid is not None:  # nobody is accepted with it
        raise ValueError(f"{name} must not be empty, or 0")
    return cid


@contextmanager
def _refusing() -> Iterator[None]:
    """Make an answer of an error of the target.

    Raises:
        _RefusedError: The answer.
    """
    try:
        yield
    except WseError as exc:
        raise _RefusedError(_STATUS.get(exc.code, HTTPStatus.BAD_REQUEST), exc.message, str(exc.code)) from exc
    except (TypeError, ValueError) as exc:
        raise _RefusedError(HTTPStatus.BAD_REQUEST, str(exc)) from exc


def _is_text(text: str) -> bool:
    """Whether a text can be sent: JSON can say a half of a surrogate pair, which no encoding can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _message(request: dict[str, Any]) -> tuple[str, Any, Any]:
    """The type, the payload and the key of a message."""
    return (
        _take(request, "type", str),
        request.pop("payload", None),
        _take(request, "key", str, int, default=None),
    )


def _kept(request: dict[str, Any], token: str) -> tuple[str, Any, dict[str, Any]]:
    """The type and the payload of a message that is to be kept, and how.

    Args:
        request: The request.
        token: The key of a message that has none of its own.
    """
    type_, payload = _take(request, "type", str), request.pop("payload", None)
    key = _take(request, "key", str, default=None)
    if key == "":
        raise ValueError("key must not be empty")
    ttl = _take(request, "ttl", int, float, default=None)
    return type_, payload, {"key": key if key is not None else token or None, "ttl": ttl}


def _end(request: dict[str, Any]) -> None:
    """See that nothing is left, as a misspelt field would do nothing."""
    if request:
        raise ValueError(f"unknown fields: {', '.join(sorted(request))[:200]}")


@cache
def _description() -> bytes:
    return (Path(__file__).parent / _DESCRIPTION).read_bytes()


_KEY = re.compile(r"[!-~]+").fullmatch


def _listed(keys: str | Iterable[str]) -> Iterable[str]:
    return (keys,) if isinstance(keys, str) else keys


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _no_number(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _number(text: str) -> float:
    number = float(text)
    if math.isinf(number):  # it would arrive as null
        raise _RefusedError(HTTPStatus.BAD_REQUEST, "a number is too large")
    return number


def _replayed(reply: HttpReply) -> HttpReply:
    return HttpReply(reply.status, reply.body, {**reply.headers, "Idempotent-Replayed": "true"})


def _reply(status: HTTPStatus, content: Any, headers: Mapping[str, str]) -> HttpReply:
    return HttpReply(status, json.dumps(content).encode() + b"\n", {**_HEADERS, **headers})
