"""The one exception of WSE, and the catalogue of its codes and reasons.

    Exception
    └── WseError             code: ErrorCode or the application's own string
        │                    details: facts about it, for programs
        └── HandlerError     also a TypeError: a handler that cannot be one

`ErrorCode` says why something failed, `CloseReason` says why a connection was closed. Their values are sent over the
wire (WIRE.md section 5) and are shared with JavaScript applications, so they never change.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any


class ErrorCode(StrEnum):
    """A code that says why something failed: `WseError.code`."""

    # At the client.
    INVALID_CRA_HANDLER = "wse.client.invalid-cra-handler"
    RP_TIMEOUT = "wse.client.rp.timeout"
    RP_DISCONNECT = "wse.client.rp.disconnect"
    RP_SEND_FAILED = "wse.client.rp.send-failed"
    CLIENT_ALREADY_CONNECTED = "wse.client.already-connected"
    WS_CLIENT_ERROR = "wse.client.ws-error"
    NOT_AUTHORIZED = "wse.not-authorized"
    CLIENT_NOT_READY = "wse.client.not-ready"
    CONNECTION_CLOSED = "wse.client.connection-closed"
    # At the server.
    CONNECTION_MISSING = "wse.server.client.connection-missing"
    IDENTIFY_HANDLER_MISSING = "wse.server.auth.identify-handler-missing"
    INVALID_CRA_GENERATOR = "wse.server.auth.invalid-cra-generator"
    RP_EXECUTION_FAILED = "wse.server.rp.failed"
    RP_NOT_REGISTERED = "wse.server.rp.not-registered"
    RP_ALREADY_REGISTERED = "wse.server.rp.already-registered"
    PROTOCOL_VIOLATION = "wse.server.protocol-violation"
    CONNECTION_ERROR = "wse.server.connection-error"
    MSG_PROCESSING_ERROR = "wse.server.msg-processing-error"
    # Beyond the original: limits, handlers that misbehave, clusters. Other implementations pass them on as strings.
    LIMIT_EXCEEDED = "wse.limit-exceeded"
    SLOW_RECEIVER = "wse.slow-receiver"
    NOT_STARTED = "wse.server.not-started"
    HANDLER_BLOCKED = "wse.server.handler-blocked"
    HANDLER_CANCELLED = "wse.server.handler-cancelled"
    LIFESPAN_FAILED = "wse.server.lifespan-failed"
    BROKER_UNAVAILABLE = "wse.server.broker-unavailable"
    BROKER_DEAF = "wse.server.broker-deaf"
    BROKER_LOST_MESSAGES = "wse.server.broker-lost-messages"
    # Sessions that outlive their connection.
    SESSION_LOST = "wse.session-lost"
    UNSUPPORTED = "wse.unsupported"
    # Values that are not of the type that was asked for.
    INVALID_PAYLOAD = "wse.invalid-payload"
    # Programs with several threads.
    WRONG_THREAD = "wse.wrong-thread"
    # Streams.
    RP_IS_A_STREAM = "wse.rp.is-a-stream"
    RP_NOT_A_STREAM = "wse.rp.not-a-stream"
    # The names of the original's documentation.
    CONNECTION_NOT_READY = CLIENT_NOT_READY
    NO_CLIENT_CONNECTION = CONNECTION_MISSING
    MESSAGE_PROCESSING_ERROR = MSG_PROCESSING_ERROR


class CloseReason(StrEnum):
    """A reason string of the close frame, which says why a connection was closed."""

    NO_REASON = ""
    CLIENTS_CONCURRENCY = "wse.clients-concurrency"
    NOT_AUTHORIZED = "wse.not-authorized"
    AUTH_TIMEOUT = "wse.auth-timeout"
    PROTOCOL_ERROR = "wse.protocol-error"
    BY_CLIENT = "wse.by-client"
    BY_SERVER = "wse.by-server"
    # Beyond the original: the limit that was exceeded (see `wse.Limits`), sent with 1008, 1009 or 1013.
    SLOW_RECEIVER = "wse.slow-receiver"
    LIMIT_MESSAGE_SIZE = "wse.limit.message-size"
    LIMIT_HANDSHAKE_SIZE = "wse.limit.handshake-size"
    LIMIT_NESTING = "wse.limit.nesting"
    LIMIT_HANDLERS = "wse.limit.handlers"
    LIMIT_MESSAGE_RATE = "wse.limit.message-rate"
    LIMIT_BYTE_RATE = "wse.limit.byte-rate"
    LIMIT_CONNECTIONS = "wse.limit.connections"
    LIMIT_CONNECTIONS_PER_ADDRESS = "wse.limit.connections-per-address"
    LIMIT_UNAUTHENTICATED = "wse.limit.unauthenticated"
    # Beyond the original: a session that was accepted until a given time, closed with 1012.
    SESSION_EXPIRED = "wse.session-expired"
    # Beyond the original: the session goes on over a newer connection, or on another node of the cluster.
    RESUMED_ELSEWHERE = "wse.resumed-elsewhere"
    MOVED = "wse.moved"
    # The name of the original's documentation.
    PROTOCOL_ERR = PROTOCOL_ERROR


_MESSAGES: dict[str, str] = {
    ErrorCode.INVALID_CRA_HANDLER: "the challenge handler failed",
    ErrorCode.RP_TIMEOUT: "no answer in time",
    ErrorCode.RP_DISCONNECT: "the connection ended before the answer came",
    ErrorCode.RP_SEND_FAILED: "the call could not be sent",
    ErrorCode.CLIENT_ALREADY_CONNECTED: "the client is already connected or connecting",
    ErrorCode.WS_CLIENT_ERROR: "the WebSocket could not be opened",
    ErrorCode.NOT_AUTHORIZED: "the server refused the identity",
    ErrorCode.CLIENT_NOT_READY: "the client is not connected",
    ErrorCode.CONNECTION_CLOSED: "the connection was closed before the welcome",
    ErrorCode.CONNECTION_MISSING: "the user has no connection",
    ErrorCode.IDENTIFY_HANDLER_MISSING: "the server needs an identify handler",
    ErrorCode.INVALID_CRA_GENERATOR: "the challenge generator failed",
    ErrorCode.RP_EXECUTION_FAILED: "the procedure failed",
    ErrorCode.RP_NOT_REGISTERED: "no such procedure",
    ErrorCode.RP_ALREADY_REGISTERED: "a procedure of that name already exists",
    ErrorCode.PROTOCOL_VIOLATION: "the peer broke the protocol",
    ErrorCode.CONNECTION_ERROR: "the connection failed",
    ErrorCode.MSG_PROCESSING_ERROR: "a message could not be processed",
    ErrorCode.LIMIT_EXCEEDED: "a limit was exceeded",
    ErrorCode.SLOW_RECEIVER: "the peer takes messages more slowly than they are sent",
    ErrorCode.NOT_STARTED: "the server has not been started, or has been closed",
    ErrorCode.HANDLER_BLOCKED: "a handler blocked the event loop",
    ErrorCode.HANDLER_CANCELLED: "a handler outlived its connection and was cancelled",
    ErrorCode.LIFESPAN_FAILED: "a lifespan of the server failed",
    ErrorCode.BROKER_UNAVAILABLE: "the broker cannot be reached",
    ErrorCode.BROKER_DEAF: "the broker does not deliver published messages",
    ErrorCode.BROKER_LOST_MESSAGES: "messages to other nodes were lost while the broker could not be reached",
    ErrorCode.SESSION_LOST: "the session ended before the peer had confirmed everything",
    ErrorCode.UNSUPPORTED: "the peer does not have this extension",
    ErrorCode.INVALID_PAYLOAD: "the payload is not of the type that was asked for",
    ErrorCode.WRONG_THREAD: "a method was called in another thread than that of its event loop",
    ErrorCode.RP_IS_A_STREAM: "the procedure is a stream, and was called like a plain one",
    ErrorCode.RP_NOT_A_STREAM: "the procedure is not a stream",
}


class WseError(Exception):
    """A failure that WSE reports, or that a procedure sends to its caller.

    Args:
        code: An `ErrorCode`, or a string of the application's own.
        details: Facts for programs.
        message: A text for people; by default it is made from the code and the details.

    A `WseError` that a procedure raises arrives at the caller with the same code and details.
    """

    code: ErrorCode | str
    details: dict[str, Any]

    def __init__(
        self, code: ErrorCode | str, details: dict[str, Any] | str | None = None, message: str | None = None
    ) -> None:
        if isinstance(details, str):  # a text for people, where the details belong
            details, message = None, message or details
        super().__init__(code, details, message)
        try:
            self.code = ErrorCode(code)
        except ValueError:
            self.code = code
        self.details = {} if details is None else details
        self._message = message

    @property
    def message(self) -> str:
        """The text for people."""
        if self._message:
            return self._message
        origin = self.details.get("origin")
        if isinstance(origin, dict):
            parts = [str(origin[key]) for key in ("name", "message") if origin.get(key)]
            if parts:
                return ": ".join(parts)
        return _MESSAGES.get(self.code, "")

    def __str__(self) -> str:
        parts = [str(self.code)]
        procedure = self.details.get("rp")
        if procedure is not None:
            parts.append(str(procedure))
        if self.message:
            parts.append(self.message)
        return ": ".join(parts)

    def __repr__(self) -> str:
        return f"WseError({str(self.code)!r}, {self.details!r})"


class HandlerError(WseError, TypeError):
    """Raised for a handler that is not a function, or cannot take its arguments, if WSE has a code for that."""


def text_of(value: object) -> str:
    """The text of an object of the application; reports about it must not fail because its `__str__` does."""
    try:
        return str(value)
    except Exception:
        return f"<{type(value).__name__} without a text>"
