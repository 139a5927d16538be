"""A Python module of a contract: types for `WseClient`, and nothing that runs besides."""

from __future__ import annotations

import keyword
import re
from typing import Any, Final

from wse.contract.reading import Contract, Entry, Section, identifiers, name_of_ref
from wse.contract.schemas import Schema

_TAKEN: Final = (
    "Any", "AsyncIterable", "AsyncIterator", "Awaitable", "Callable", "Channel", "Client", "ErrorCode", "Iterable",
    "Iterator", "Literal", "Never", "Sequence", "TypeAlias", "TypeVar",
    "ClientOptions", "Unpack",
    "NotRequired", "Protocol", "Stream", "TYPE_CHECKING", "TypedDict", "WseClient", "dict",
    "list", "str", "int", "float", "bool", "tuple", "overload", "cast", "property",
)  # fmt: skip

_WIDTH: Final = 88
"""The length of lines, which is that of formatters."""

_HEADER: Final = """\
# Made by `wse generate python`. Changes are lost when it is made again.
# fmt: off
from __future__ import annotations
"""

_NARROWER: Final = "# type: ignore[assignment]  # only names of the contract"
"""Stands behind what takes less than the method of `WseClient` that it replaces."""

_OVERRIDES: Final = "# type: ignore[override]  # only types of the contract"
"""The same for a method that is written out."""


def python_of(contract: Contract) -> str:
    """The module, as text."""
    return _Writer(contract).module()


class _Writer:
    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._names = identifiers(contract, _TAKEN)

    def module(self) -> str:
        types = [block for name, schema in self._contract.schemas.items() for block in self._declared(name, schema)]
        codes = _call("Literal", [_literal(code) for code in self._contract.errors], "[", "]", "ErrorCode = ")
        doc = '"""The codes of errors that procedures declare."""'
        errors = f"{codes}\n{doc}" if self._contract.errors else f"ErrorCode = Never\n{doc}"
        title = self._contract.title.replace("\\", "\\\\").replace('"', "'")
        client = [f"class Client(WseClient):\n{_doc(f'A client of {title}.', '    ')}\n    if TYPE_CHECKING:\n"]
        protocols: list[str] = []
        methods: tuple[Section, ...] = ("send", "call", "stream", "register")
        for section in methods:
            name = f"_{section.capitalize()}"
            protocols.append(_protocol(name, self._methods(section)))
            client.append(f"        {section}: {name}  {_NARROWER}\n")
        client[1:1] = self._opening()
        protocols.append(_protocol("_On", self._methods("on")))
        protocols.append(f"class _Channel(Channel):\n    if TYPE_CHECKING:\n        on: _On  {_NARROWER}\n")
        client.append("\n        @property\n        def channel(self) -> _Channel: ...\n")
        helpers = '_H = TypeVar("_H")\n_Decorator: TypeAlias = Callable[[_H], _H]\n'
        body = "\n\n".join([*types, f"{errors}\n\n{helpers}", *protocols, "".join(client)])
        return _HEADER + "\n" + _imports(body) + "\n\n\n" + body

    def _opening(self) -> list[str]:
        """The methods that take an identity, or have the welcome."""
        opening = self._contract.opening
        if opening is None:
            return []
        identity = self._top(opening.identity)
        if identity != "Any":
            identity = f"{identity} | Callable[[], {identity} | Awaitable[{identity}]]"
        meta = f"{self._type(opening.meta) if opening.meta else 'dict[str, Any]'} | None"
        given = [f"identity: {identity} = ...", f"meta: {meta} = ..."]
        welcome = self._top(opening.welcome)
        options = "**options: Unpack[ClientOptions]"
        wait = ["self", "timeout: float | None = None"]
        note = _OVERRIDES if opening.meta else ""  # a narrower type in the place of Any is none
        methods = [
            _def("__init__", ["self", "url: str", "*", *given, options], "None", opening.doc, indent="        "),
            _def("connect", ["self", *given], welcome, "", is_async=True, note=note, indent="        "),
            _def("jump", ["self", "url: str", *given], welcome, "", is_async=True, note=note, indent="        "),
            _def("wait_ready", wait, welcome, "", is_async=True, indent="        "),
        ]
        return ["\n", *(f"{method}\n" for method in methods)]

    # Types.

    def _declared(self, name: str, schema: Schema) -> list[str]:
        called = self._names[name]
        doc = schema.get("description", "")
        properties = schema.get("properties")
        if not properties or {"anyOf", "oneOf", "allOf", "enum", "const"} & set(schema):
            text = f"{called}: TypeAlias = {_quote(self._type(schema))}\n"
            return [text + (_doc(doc, "") if doc else "")]
        required = set(schema.get("required", ()))
        fields = [(key, self._type(each, key not in required), each) for key, each in properties.items()]
        if all(key.isidentifier() and not keyword.iskeyword(key) and not key.startswith("__") for key, *_ in fields):
            lines = [f"class {called}(TypedDict):\n"]
            lines += [_doc(doc, "    ") + "\n"] if doc else []
            for key, kind, each in fields:
                lines.append(f"    {key}: {kind}\n")
                if isinstance(each, dict) and each.get("description"):
                    lines.append(_doc(each["description"], "    "))
            return ["".join(lines)]
        inner = "".join(f"        {_literal(key)}: {_quote(kind)},\n" for key, kind, _ in fields)
        return [f"{called} = TypedDict(\n    {_literal(called)},\n    {{\n{inner}    }},\n)\n"]

    def _top(self, schema: Schema) -> str:
        return self._type(schema) if schema else "Any"

    def _type(self, schema: Any, optional: bool = False) -> str:
        if optional:
            return f"NotRequired[{self._type(schema)}]"
        if not isinstance(schema, dict) or not schema:
            return "Any"
        if "$ref" in schema:
            return self._names[name_of_ref(schema)]
        if "const" in schema:
            return _literals([schema["const"]])
        if "enum" in schema:
            return _literals(schema["enum"])
        for several in ("anyOf", "oneOf"):
            if several in schema:
                return " | ".join(dict.fromkeys(self._type(each) for each in schema[several]))
        if "allOf" in schema:
            return self._type(schema["allOf"][0]) if len(schema["allOf"]) == 1 else "Any"
        kind = schema.get("type")
        if isinstance(kind, list):
            return " | ".join(dict.fromkeys(self._type({**schema, "type": each}) for each in kind))
        if kind == "array":
            items = schema.get("items", {})
            if isinstance(items, list):  # JSON makes lists, and whoever sends may have tuples
                inner = " | ".join(dict.fromkeys(self._type(each) for each in items)) or "Any"
                return f"Sequence[{inner}]"
            return f"list[{self._type(items)}]"
        if kind == "object":
            more = schema.get("additionalProperties")
            return f"dict[str, {self._type(more) if isinstance(more, dict) else 'Any'}]"
        return _PLAIN.get(str(kind), "Any")

    # Methods.

    def _methods(self, section: Section) -> list[str]:
        known = [each for each in self._contract.section(section) if isinstance(each.name, str | int)]
        methods = [text for entry in known for text in self._method(section, entry)]
        if not methods:
            kind = "type" if section in ("send", "on") else "name"
            return [_def("__call__", ["self", f"{kind}: Never", "*args: Any", "**options: Any"], "Any", "")]
        return [f"    @overload\n{text}" for text in methods] if len(methods) > 1 else methods

    def _method(self, section: Section, entry: Entry) -> list[str]:
        name = f"Literal[{_literal(entry.name)}]"
        payload = self._top(entry.payload)
        may_miss = payload in ("None", "Any") or "None" in payload.split(" | ")
        given = f"payload: {payload}" + (" = None" if may_miss else "")
        answer = self._top(entry.answer)
        doc = entry.doc
        if section == "send":
            return [_def("__call__", ["self", f"type: {name}", given, "*", "key: Any = None"], "None", doc)]
        upload: list[str] = []
        if entry.upload is not None:
            item = self._top(entry.upload)
            upload.append(f"upload: Iterable[{item}] | AsyncIterable[{item}]")
        if section == "call":
            options = ["timeout: float | None = None", "on_progress: Callable[[Any], Any] | None = None"]
            options += upload
            return [_def("__call__", ["self", f"name: {name}", given, "*", *options], answer, doc, is_async=True)]
        if section == "stream":
            options = ["window: int = 32", "timeout: float | None = None", "deadline: float | None = None"]
            options += upload
            return [_def("__call__", ["self", f"name: {name}", given, "*", *options], f"Stream[{answer}]", doc)]
        if section == "on":
            handler = f"Callable[[{payload}], Any]"
            options = ["*", "ordered: bool = False"]
            first = f"type: {name}"
        else:
            result = f"AsyncIterator[{answer}] | Iterator[{answer}]" if entry.yields else ""
            handler = f"Callable[[{payload}], {result or _either(answer)}]"
            options = ["*", "cancel: bool = False", "ordered: bool = False", "thread: bool = False"]
            first = f"name: {name}"
        return [
            _def("__call__", ["self", first, f"fn: {handler}", *options], handler, doc),
            _def("__call__", ["self", first, "fn: None = None", *options], f"_Decorator[{handler}]", doc),
        ]


_PLAIN: Final = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None"}


def _either(answer: str) -> str:
    return "Any" if answer == "Any" else f"{answer} | Awaitable[{answer}]"


def _protocol(name: str, methods: list[str]) -> str:
    return f"class {name}(Protocol):\n" + "\n".join(methods)


def _def(
    name: str,
    parameters: list[str],
    result: str,
    doc: str,
    *,
    is_async: bool = False,
    note: str = "",
    indent: str = "    ",
) -> str:
    """A method without a body, as formatters lay it out.

    Args:
        name: Its name.
        parameters: Its parameters.
        result: The type of its result.
        doc: Its docstring.
        is_async: Whether it is async.
        note: A comment on its first line.
        indent: What stands before its lines.
    """
    start = f"{indent}{'async ' if is_async else ''}def {name}"
    end = f" -> {result}:" + ("" if doc else " ...")
    first, line, rest = _call(start, parameters, "(", ")", "", end).partition("\n")
    head = first + (f"  {note}" if note else "") + line + rest
    return head + "\n" + (_doc(doc, f"{indent}    ") + f"{indent}    ...\n" if doc else "")


def _call(start: str, parts: list[str], opens: str, closes: str, before: str, end: str = "") -> str:
    indent = " " * (len(start) - len(start.lstrip()))
    line = f"{before}{start}{opens}{', '.join(parts)}{closes}{end}"
    if len(line) <= _WIDTH:
        return line
    inner = f"{indent}    {', '.join(parts)}"
    if len(inner) <= _WIDTH:
        return f"{before}{start}{opens}\n{inner}\n{indent}{closes}{end}"
    lines = "".join(f"{indent}    {part},\n" for part in parts)
    return f"{before}{start}{opens}\n{lines}{indent}{closes}{end}"


def _imports(body: str) -> str:
    """The imports of the names that occur."""
    lines = []
    for module, names in _MODULES.items():
        used = [name for name in names if re.search(rf"\b{name}\b", body)]
        if used:
            line = f"from {module} import {', '.join(used)}"
            if len(line) > _WIDTH:
                line = f"from {module} import (\n" + "".join(f"    {name},\n" for name in used) + ")"
            lines.append(line)
        if module == "typing":
            lines.append("")
    return "\n".join(lines)


_MODULES: Final = {
    "collections.abc": (
        "AsyncIterable", "AsyncIterator", "Awaitable", "Callable", "Iterable", "Iterator", "Sequence",
    ),
    "typing": (
        "TYPE_CHECKING", "Any", "Literal", "Never", "NotRequired", "Protocol", "TypeAlias", "TypedDict", "TypeVar",
        "Unpack", "overload",
    ),
    "wse": ("Channel", "Stream", "WseClient"),
    "wse.client.options": ("ClientOptions",),
}  # fmt: skip


def _literals(values: list[Any]) -> str:
    known = [value for value in values if value is None or isinstance(value, str | int)]
    return f"Literal[{', '.join(_literal(value) for value in known)}]" if len(known) == len(values) else "Any"


def _literal(value: Any) -> str:
    if not isinstance(value, str):
        return repr(value)
    text = repr(value)
    if text.startswith("'") and '"' not in text:
        text = '"' + text[1:-1].replace("\\'", "'") + '"'
    return text


def _quote(kind: str) -> str:
    """A type as text, which is evaluated only when it is asked for."""
    return _literal(kind) if '"' not in kind else repr(kind)


def _doc(text: str, indent: str) -> str:
    text = text.strip().replace("\\", "\\\\").replace('"""', '\\"\\"\\"')
    if text.endswith('"'):
        text = text[:-1] + '\\"'
    lines = text.splitlines()
    if len(lines) == 1:
        return f'{indent}"""{lines[0]}"""\n'
    rest = "".join(f"{indent}{line}".rstrip() + "\n" for line in lines[1:])
    return f'{indent}"""{lines[0].rstrip()}\n{rest}{indent}"""\n'
