"""The contract as an AsyncAPI 3 document, with the server as its application.

A channel is a name: a message type, or a procedure. Operations that the server receives are messages and calls of
clients; those that it sends are messages and calls to them. A reply has a message for each kind of answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from wse.contract.schemas import Mode, Schema, Use, free_name, schemas_of
from wse.typed.operations import Opening, Operation
from wse.validation.foreign import encode_foreign

VERSION: Final = "3.0.0"

STREAM: Final = "x-wse-stream"
"""The reply comes item by item."""

UPLOAD: Final = "x-wse-upload"
"""The caller sends items as well, of which the second message speaks."""

NAME: Final = "x-wse-name"
"""The name of a channel, if it is no string."""

HI: Final = "~wse:hi"
"""The name of the channel for a client's first message, which has the identity and the meta."""

WELCOME: Final = "~wse:welcome"
"""That for its answer."""

_DESCRIPTION: Final = (
    "Messages and calls of one WebSocket, over the protocol of WSE. A channel is the type of a message, or the name of "
    "a procedure; its payload stands in a frame `[type, payload, stamp]`."
)


def document_of(
    operations: Iterable[Operation],
    *,
    opening: Opening = Opening(),  # noqa: B008 - it does not change
    title: str,
    version: str,
    description: str = "",
    url: str | None = None,
) -> dict[str, Any]:
    """The document of a server.

    Args:
        operations: The procedures and messages of both sides.
        opening: How its clients come in.
        title: The name of the application.
        version: The version of its contract.
        description: What it is.
        url: The address of the server, if it is known.

    Raises:
        TypeError: There is no schema for a type, or an example cannot be encoded.
    """
    known = sorted(operations, key=lambda each: (str(each.name), each.kind == "message", each.receiver == "client"))
    uses = [
        Use(opening.identity, "validation"),
        Use(opening.meta, "validation"),
        Use(opening.welcome, "serialization"),
    ]
    parts = [_Parts(operation, uses) for operation in known]
    schemas, components = schemas_of(uses)
    channels: dict[str, Any] = {}
    sent: dict[str, Any] = {}
    keys: dict[Any, str] = {}
    if opening:
        _open(channels, sent, opening.doc, *schemas[:3])
    for part in parts:
        name = part.operation.name
        # 1 and True are equal
        key = keys.setdefault((type(name), name), _key(name, channels))
        channel = channels.setdefault(key, _channel(name))
        part.add_to(channel["messages"], schemas)
        sent[f"{part.prefix}.{key}"] = part.described(key)
    document: dict[str, Any] = {
        "asyncapi": VERSION,
        "info": {"title": title, "version": version, "description": description or _DESCRIPTION},
        "defaultContentType": "application/json",
    }
    if url is not None:
        document["servers"] = {"default": _server(url)}
    document["channels"] = channels
    document["operations"] = dict(sorted(sent.items()))
    if components:
        document["components"] = {"schemas": components}
    return document


def _open(
    channels: dict[str, Any], operations: dict[str, Any], doc: str, identity: Schema, meta: Schema, welcome: Schema
) -> None:
    """Add the first message of a client, and its answer."""
    said = {name: schema for name, schema in (("identity", identity), ("meta", meta)) if schema}
    hi = {"type": "object", "properties": said, "required": list(said)} if said else {"type": "object"}
    for key, name, payload in (("hi", HI, hi), ("welcome", WELCOME, welcome)):
        channels[key] = {"address": name, "messages": {key: {"name": name, "payload": payload}}}
    operations["open"] = {
        "action": "receive",
        "channel": {"$ref": "#/channels/hi"},
        **_texts(doc),
        "messages": [{"$ref": "#/channels/hi/messages/hi"}],
        "reply": {
            "channel": {"$ref": "#/channels/welcome"},
            "messages": [{"$ref": "#/channels/welcome/messages/welcome"}],
        },
    }


def _texts(doc: str) -> dict[str, str]:
    return {"summary": doc.split("\n\n")[0].replace("\n", " "), "description": doc} if doc else {}


class _Parts:
    """The messages of an operation.

    Args:
        operation: The operation.
        uses: Takes its types.
    """

    def __init__(self, operation: Operation, uses: list[Use]) -> None:
        self.operation = operation
        incoming: Mode = "validation" if operation.receiver == "server" else "serialization"
        outgoing: Mode = "serialization" if operation.receiver == "server" else "validation"
        self._types: dict[str, int] = {}
        hints: list[tuple[str, Any, Mode]]
        if operation.kind == "message":
            hints = [("message", operation.payload, incoming)]
        else:
            hints = [("call", operation.payload, incoming)]
            if operation.yields:
                hints.append(("item", operation.item, outgoing))
            else:
                hints.append(("result", operation.result, outgoing))
            if operation.uploads:
                hints.append(("upload", operation.upload, incoming))
        for role, hint, mode in hints:
            self._types[role] = len(uses)
            uses.append(Use(type(None) if hint is None else hint, mode))

    @property
    def prefix(self) -> str:
        """What stands before the name, in the name of the operation."""
        action = "receive" if self.operation.receiver == "server" else "send"
        return action + ("Message" if self.operation.kind == "message" else "Call")

    def _id(self, role: str) -> str:
        return role if self.operation.receiver == "server" else f"client{role.capitalize()}"

    def add_to(self, messages: dict[str, Any], schemas: list[Schema]) -> None:
        """Add the messages to those of the channel."""
        for role, index in self._types.items():
            message: dict[str, Any] = {"name": str(self.operation.name), "payload": schemas[index]}
            if role in ("message", "call") and self.operation.examples:
                message["examples"] = [{"payload": _plain(each)} for each in self.operation.examples]
            messages[self._id(role)] = message
        if self.operation.errors:
            messages[self._id("error")] = {
                "name": str(self.operation.name),
                "payload": {
                    "type": "object",
                    "properties": {
                        "code": {"type": "string", "enum": list(dict.fromkeys(self.operation.errors))},
                        "message": {"type": "string"},
                        "details": {"type": "object"},
                    },
                    "required": ["code"],
                },
            }

    def described(self, key: str) -> dict[str, Any]:
        """The operation itself."""
        operation = self.operation
        result: dict[str, Any] = {
            "action": "receive" if operation.receiver == "server" else "send",
            "channel": {"$ref": f"#/channels/{key}"},
            **_texts(operation.doc),
        }
        if operation.tags:
            result["tags"] = [{"name": tag} for tag in operation.tags]

        def ref(role: str) -> dict[str, str]:
            return {"$ref": f"#/channels/{key}/messages/{self._id(role)}"}

        result["messages"] = [ref("message" if operation.kind == "message" else "call")]
        if operation.uploads:
            result["messages"].append(ref("upload"))
            result[UPLOAD] = True
        if operation.kind == "procedure":
            answers = [ref("item" if operation.yields else "result")]
            if operation.errors:
                answers.append(ref("error"))
            result["reply"] = {"channel": {"$ref": f"#/channels/{key}"}, "messages": answers}
            if operation.yields:
                result[STREAM] = True
        return result


def _channel(name: Any) -> dict[str, Any]:
    if isinstance(name, str) and not {"{", "}"} & set(name):
        return {"address": name, "messages": {}}
    return {"address": None, NAME: name, "messages": {}}


def _key(name: Any, taken: dict[str, Any]) -> str:
    """A name as references may have it."""
    return free_name(re.sub(r"[^A-Za-z0-9_.:\-]", "_", str(name)) or "_", taken, "_")


def _server(url: str) -> dict[str, str]:
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    return {"host": host, "protocol": scheme} | ({"pathname": slash + path} if path else {})


def _plain(value: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value, enc_hook=encode_foreign))
