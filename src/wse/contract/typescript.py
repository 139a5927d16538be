"""A TypeScript module of a contract: types for the generic `WseClient` of wse.js, and nothing that runs besides."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from wse.contract.reading import Contract, Entry, Section, identifiers, name_of_ref
from wse.contract.schemas import Schema

_TAKEN: Final = (
    "Client", "Contract", "ErrorCode", "WseClient", "WseContract", "WseErrorCode", "Record", "Array",
    # Words of the language, which no type may have as its name.
    "any", "await", "bigint", "boolean", "break", "case", "catch", "class", "const", "continue", "debugger", "default",
    "delete", "do", "else", "enum", "export", "extends", "false", "finally", "for", "function", "if", "implements",
    "import", "in", "instanceof", "interface", "let", "never", "new", "null", "number", "object", "package", "private",
    "protected", "public", "return", "static", "string", "super", "switch", "symbol", "this", "throw", "true", "try",
    "type", "typeof", "undefined", "unknown", "var", "void", "while", "with", "yield",
)  # fmt: skip

_SECTIONS: Final[Mapping[Section, str]] = {
    "send": "Messages that the client sends: `client.send(name, payload)`.",
    "call": "Procedures of the server: `await client.call(name, payload)`.",
    "stream": "Procedures of the server that yield: `for await (const item of client.stream(name, payload))`.",
    "on": "Messages that the server sends: `client.channel.on(name, (payload) => ...)`.",
    "register": "Procedures of the client: `client.register(name, (payload) => ...)`.",
}

_OPENING: Final = {
    "identity": "What the server asks of a client: `client.connect(identity)`.",
    "meta": "What a client says besides: `client.connect(identity, meta)`.",
    "welcome": "What it gets: `const welcome = await client.connect(identity)`.",
}

_INLINE: Final = 100
"""Characters up to which an object stands on one line."""


def typescript_of(contract: Contract, *, module: str = "wse-js") -> str:
    """The module, as text.

    Args:
        contract: The contract.
        module: What it imports the client from.
    """
    return _Writer(contract).module(module)


class _Writer:
    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._names = identifiers(contract, _TAKEN)

    def module(self, source: str) -> str:
        contract = self._contract
        lines = [
            "// Made by `wse generate typescript`. Changes are lost when it is made again.",
            f"import {{ WseClient, type WseErrorCode }} from {_quoted(source)}",
            "",
        ]
        for name, schema in contract.schemas.items():
            lines += [*_doc(schema.get("description", ""), ""), *self._declared(self._names[name], schema), ""]
        codes = [*(_quoted(code) for code in contract.errors), "WseErrorCode"]
        lines += ["/** The codes of errors: those that procedures declare, and those of WSE. */"]
        lines += [f"export type ErrorCode = {' | '.join(codes)}", ""]
        lines += [*_doc(f"What {contract.title} and its clients say to each other.", ""), "export interface Contract {"]
        lines += self._opening()
        for section, doc in _SECTIONS.items():
            entries = [entry for entry in contract.section(section) if isinstance(entry.name, str | int | float)]
            entries = [entry for entry in entries if not isinstance(entry.name, bool)]
            lines += [f"  /** {doc} */", f"  {section}: {{" + ("" if entries else "}")]
            for entry in entries:
                lines += [*_doc(entry.doc, "    "), f"    {_key(entry.name)}: {self._entry(entry)}"]
            lines += ["  }"] if entries else []
        lines += ["}", "", *_doc(f"A client of {contract.title}.", "")]
        lines += ["export class Client extends WseClient<Contract> {}"]
        return "\n".join(lines) + "\n"

    def _opening(self) -> list[str]:
        opening = self._contract.opening
        if opening is None:
            return []
        lines: list[str] = []
        for name, schema in (("identity", opening.identity), ("meta", opening.meta), ("welcome", opening.welcome)):
            if schema:
                lines += [f"  /** {_OPENING[name]} */", f"  {name}: {self._type(schema, '  ')}"]
        return lines

    def _entry(self, entry: Entry) -> str:
        payload = self._top(entry.payload)
        if entry.section in ("send", "on"):
            return payload
        parts = [f"payload: {payload}", f"{'item' if entry.yields else 'result'}: {self._top(entry.answer)}"]
        if entry.upload is not None:
            parts.append(f"upload: {self._top(entry.upload)}")
        return f"{{ {'; '.join(parts)} }}"

    def _top(self, schema: Schema) -> str:
        """A type of which nothing is said can be anything."""
        return self._type(schema, "    ") if schema else "any"

    def _declared(self, name: str, schema: Schema) -> list[str]:
        if "properties" in schema and not {"anyOf", "oneOf", "allOf", "enum", "const"} & set(schema):
            return [f"export interface {name} {self._object(schema, '', block=True)}"]
        return [f"export type {name} = {self._type(schema, '')}"]

    def _type(self, schema: Any, indent: str) -> str:
        if not isinstance(schema, dict) or not schema:
            return "never" if schema is False else "unknown"
        if "$ref" in schema:
            return self._names[name_of_ref(schema)]
        if "const" in schema:
            return _literal(schema["const"])
        if "enum" in schema:
            return _union([_literal(value) for value in schema["enum"]])
        for several in ("anyOf", "oneOf"):
            if several in schema:
                return _union([self._type(each, indent) for each in schema[several]])
        if "allOf" in schema:
            return " & ".join(_grouped(self._type(each, indent)) for each in schema["allOf"])
        kind = schema.get("type")
        if isinstance(kind, list):
            return _union([self._type({**schema, "type": each}, indent) for each in kind])
        if kind == "object" or "properties" in schema:
            return self._object(schema, indent)
        if kind == "array":
            return self._array(schema, indent)
        return _PLAIN.get(str(kind), "unknown")

    def _array(self, schema: Schema, indent: str) -> str:
        items = schema.get("items", schema.get("prefixItems", {}))
        if isinstance(items, list):
            least = schema.get("minItems", len(items))
            types = [self._type(each, indent) for each in items]
            return f"[{', '.join(t if i < least else f'({t})?' for i, t in enumerate(types))}]"
        return f"{_grouped(self._type(items, indent))}[]"

    def _object(self, schema: Schema, indent: str, *, block: bool = False) -> str:
        properties = schema.get("properties")
        more = schema.get("additionalProperties")
        if not properties:
            if block:
                return "{}"
            return f"Record<string, {self._type(more, indent) if more is not None else 'unknown'}>"
        required = set(schema.get("required", ()))
        inner = f"{indent}  "
        lines: list[str] = []
        for name, each in properties.items():
            doc = each.get("description", "") if isinstance(each, dict) and "$ref" not in each else ""
            mark = "" if name in required else "?"
            lines += [*_doc(doc, inner), f"{inner}{_key(name)}{mark}: {self._type(each, inner)}"]
        if not block and not any("\n" in line or "/**" in line for line in lines):
            inline = f"{{ {'; '.join(line.strip() for line in lines)} }}"
            if len(inline) <= _INLINE:
                return inline
        return "\n".join(["{", *lines, f"{indent}}}"])


_PLAIN: Final = {"string": "string", "integer": "number", "number": "number", "boolean": "boolean", "null": "null"}


def _union(types: list[str]) -> str:
    return " | ".join(dict.fromkeys(types)) or "never"


def _grouped(kind: str) -> str:
    return f"({kind})" if re.search(r"[|&]", kind) else kind


def _literal(value: Any) -> str:
    if isinstance(value, str):
        return _quoted(value)
    return json.dumps(value) if value is None or isinstance(value, bool | int | float) else "unknown"


def _quoted(text: str) -> str:
    inner = json.dumps(text, ensure_ascii=False)[1:-1].replace('\\"', '"').replace("'", "\\'")
    return f"'{inner}'"


def _key(name: Any) -> str:
    if not isinstance(name, str):
        return f"[{json.dumps(name)}]"
    return name if re.fullmatch(r"[A-Za-z_$][\w$]*", name, re.ASCII) else _quoted(name)


def _doc(text: str, indent: str) -> list[str]:
    lines = text.strip().replace("*/", "*\\/").splitlines()
    if len(lines) < 2:
        return [f"{indent}/** {line} */" for line in lines]
    return [f"{indent}/**", *(f"{indent} * {line}".rstrip() for line in lines), f"{indent} */"]
