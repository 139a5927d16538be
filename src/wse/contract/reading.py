"""Reads contracts, for the generators of clients: what `document` writes, from whatever source."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from wse.contract.document import HI, NAME, STREAM, UPLOAD
from wse.contract.schemas import REF, Schema, free_name

Section = Literal["send", "call", "stream", "on", "register"]


class ContractError(ValueError):
    """A document that is no contract."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A message or a procedure, as the client sees it.

    Attributes:
        section: What the client does with it.
        name: Its name.
        doc: What it is.
        payload: The schema of the payload.
        answer: The schema of the result, or of the items.
        upload: The schema of the items that an upload sends; `None` if there is none.
        yields: Whether it is a stream.
        errors: The codes of the errors that it declares.
    """

    section: Section
    name: Any
    doc: str
    payload: Schema
    answer: Schema = field(default_factory=dict)
    upload: Schema | None = None
    yields: bool = False
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Opening:
    """How a client comes in.

    Attributes:
        identity: The schema of the identity, empty if it may be anything.
        meta: That of the meta.
        welcome: That of the welcome.
        doc: What the server says of it.
    """

    identity: Schema
    meta: Schema
    welcome: Schema
    doc: str = ""


@dataclass(frozen=True, slots=True)
class Contract:
    """A contract.

    Attributes:
        title: The name of the application.
        entries: The messages and procedures.
        schemas: The named schemas.
        errors: The codes of the errors that procedures declare.
        opening: How clients come in; `None` if nothing is said of that.
    """

    title: str
    entries: tuple[Entry, ...]
    schemas: Mapping[str, Schema]
    errors: tuple[str, ...]
    opening: Opening | None = None

    def section(self, section: Section) -> list[Entry]:
        """The entries of one section."""
        return [entry for entry in self.entries if entry.section == section]


def read(document: Any) -> Contract:
    """Read a document.

    Raises:
        ContractError: It is no AsyncAPI 3 document, or it refers to what it does not have.
    """
    if not isinstance(document, dict) or not str(document.get("asyncapi", "")).startswith("3."):
        raise ContractError("this is no AsyncAPI 3 document")
    try:
        entries: list[Entry] = []
        opening = None
        for operation in document.get("operations", {}).values():
            if _at(document, operation["channel"]).get("address") == HI:
                opening = _opening(document, operation)
            else:
                entries.append(_entry(document, operation))
        errors = {code for entry in entries for code in entry.errors}
        schemas = document.get("components", {}).get("schemas", {})
        return Contract(document["info"]["title"], tuple(entries), schemas, tuple(sorted(errors)), opening)
    except (KeyError, TypeError, AttributeError, IndexError) as exc:
        raise ContractError(f"this AsyncAPI document lacks something, or has it elsewhere: {exc!r}") from exc


def _opening(document: Any, operation: Any) -> Opening:
    said = _payload(document, operation["messages"][0]).get("properties", {})
    welcome = _payload(document, operation["reply"]["messages"][0])
    return Opening(said.get("identity", {}), said.get("meta", {}), welcome, operation.get("description", ""))


def _entry(document: Any, operation: Any) -> Entry:
    channel = _at(document, operation["channel"])
    name = channel[NAME] if NAME in channel else channel["address"]
    doc = operation.get("description") or operation.get("summary") or ""
    to_server = operation["action"] == "receive"
    messages = operation.get("messages") or [
        {"$ref": operation["channel"]["$ref"] + f"/messages/{key}"} for key in channel["messages"]
    ]
    payload = _payload(document, messages[0])
    if "reply" not in operation:
        return Entry("send" if to_server else "on", name, doc, payload)
    answers = {_role(each): each for each in operation["reply"]["messages"]}
    failure = answers.pop("error", None)
    codes = _payload(document, failure)["properties"]["code"]["enum"] if failure else ()
    yields = bool(operation.get(STREAM))
    answer = _payload(document, next(iter(answers.values())))
    upload = _payload(document, messages[1]) if operation.get(UPLOAD) else None
    section: Section = "register" if not to_server else "stream" if yields else "call"
    return Entry(section, name, doc, payload, answer, upload, yields, tuple(codes))


def _payload(document: Any, ref: Any) -> Schema:
    schema = _at(document, _at(document, ref)).get("payload", {})
    return schema if isinstance(schema, dict) else {}


def _role(ref: Any) -> str:
    name = str(ref["$ref"]).rpartition("/")[2]
    return name.removeprefix("client").lower()


def _at(document: Any, ref: Any) -> Any:
    """What a reference refers to; what is none stays itself."""
    if "$ref" not in ref:
        return ref
    found = document
    for part in str(ref["$ref"]).removeprefix("#/").split("/"):
        found = found[part.replace("~1", "/").replace("~0", "~")]
    return found


def identifiers(contract: Contract, taken: Iterable[str]) -> dict[str, str]:
    """Names for the named schemas that a program can use, beside those that it has already."""
    used = set(taken)
    names: dict[str, str] = {}
    for name in contract.schemas:
        wanted = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_") or "Type"
        if wanted[0].isdigit() or keyword.iskeyword(wanted):
            wanted = f"Type{wanted}" if wanted[0].isdigit() else f"{wanted}_"
        names[name] = free_name(wanted, used)
        used.add(names[name])
    return names


def name_of_ref(schema: Schema) -> str:
    """The name of the schema to which one refers."""
    return str(schema["$ref"]).removeprefix(REF)
