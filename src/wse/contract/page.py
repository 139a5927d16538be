"""A page for people that shows a contract: one document without scripts, which loads nothing."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from html import escape
from typing import TYPE_CHECKING, Any, Final

from wse.contract.reading import Contract, Entry, Opening, Section, name_of_ref, read
from wse.core.ports.http import HttpReply

if TYPE_CHECKING:
    from wse.core.ports.http import HttpCall

_STYLE: Final = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent); --accent: #2f6fdb; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 56rem; margin: 0 auto; padding: 2.5rem 1.25rem 6rem; }
h1 { margin: 0; font-size: 2rem; } h2 { margin: 3rem 0 .5rem; font-size: 1.25rem; } h3 { margin: 0; font-size: 1rem; }
code, pre, h3 { font-family: ui-monospace, monospace; } code, pre { font-size: .875rem; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1rem; margin: 1rem 0; }
article { border: 1px solid var(--line); border-radius: .6rem; padding: .9rem 1.1rem; margin: .8rem 0; }
article:target { border-color: var(--accent); }
p { white-space: pre-line; margin: .4rem 0; } pre { overflow-x: auto; margin: 0; }
dl { display: grid; grid-template-columns: 5.5rem 1fr; gap: .25rem .75rem; margin: .6rem 0 0; }
dt { opacity: .65; } dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
"""

_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

HEADERS: Final[Mapping[str, str]] = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

_SECTIONS: Final[Mapping[Section, str]] = {
    "call": "Procedures of the server",
    "stream": "Streams of the server",
    "send": "Messages to the server",
    "on": "Messages from the server",
    "register": "Procedures of the client",
}


def page_of(document: dict[str, Any], source: str) -> str:
    """The page of a document.

    Args:
        document: The document.
        source: The address of the document itself.
    """
    contract = read(document)
    title = escape(contract.title)
    known: dict[Section, list[Entry]] = {section: contract.section(section) for section in _SECTIONS}
    links = ['<a href="#open">Connecting</a>'] if contract.opening else []
    links += [f'<a href="#{name}">{_SECTIONS[name]}</a>' for name, entries in known.items() if entries]
    links += ['<a href="#types">Types</a>'] if contract.schemas else []
    body = [
        f"<h1>{title}</h1>",
        f"<p>{escape(document['info'].get('description', ''))}</p>",
        f'<nav>{"".join(links)}<a href="{escape(source)}">AsyncAPI</a></nav>',
    ]
    if contract.opening:
        body += ['<h2 id="open">Connecting</h2>', _opening(contract.opening)]
    for section, entries in known.items():
        if entries:
            body.append(f'<h2 id="{section}">{_SECTIONS[section]}</h2>')
            body += [_entry(entry) for entry in entries]
    if contract.schemas:
        body.append('<h2 id="types">Types</h2>')
        body += [_named(name, contract) for name in contract.schemas]
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
        f"<style>{_STYLE}</style>"
    )
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'


def _opening(opening: Opening) -> str:
    rows = [("Identity", opening.identity), ("Meta", opening.meta), ("Welcome", opening.welcome)]
    doc = f"<p>{escape(opening.doc)}</p>" if opening.doc else ""
    return f"<article>{doc}{_rows([(name, _type(schema)) for name, schema in rows])}</article>"


def _entry(entry: Entry) -> str:
    rows = [("Payload", _type(entry.payload))]
    if entry.upload is not None:
        rows.append(("Upload", _type(entry.upload)))
    if entry.section in ("call", "stream", "register"):
        rows.append(("Items" if entry.yields else "Result", _type(entry.answer)))
    if entry.errors:
        rows.append(("Errors", " ".join(f"<code>{escape(code)}</code>" for code in entry.errors)))
    name = escape(str(entry.name))
    doc = f"<p>{escape(entry.doc)}</p>" if entry.doc else ""
    return f'<article id="{entry.section}-{name}"><h3>{name}</h3>{doc}{_rows(rows)}</article>'


def _named(name: str, contract: Contract) -> str:
    schema = contract.schemas[name]
    doc = f"<p>{escape(schema['description'])}</p>" if schema.get("description") else ""
    properties = schema.get("properties")
    if properties:
        required = set(schema.get("required", ()))
        inner = _rows([(key + ("" if key in required else "?"), _type(each)) for key, each in properties.items()])
    else:
        inner = _type(schema)
    return f'<article id="type-{escape(name)}"><h3>{escape(name)}</h3>{doc}{inner}</article>'


def _rows(rows: list[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(key)}</dt><dd>{value}</dd>" for key, value in rows) + "</dl>"


def _type(schema: Any) -> str:
    """A schema as one line, with links to the named ones."""
    if not isinstance(schema, dict) or not schema:
        return "<code>anything</code>"
    if "$ref" in schema:
        name = escape(name_of_ref(schema))
        return f'<a href="#type-{name}"><code>{name}</code></a>'
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            return " or ".join(_type(each) for each in schema[several])
    if schema.get("type") == "array" and isinstance(schema.get("items"), dict):
        return f"list of {_type(schema['items'])}"
    if "enum" in schema:
        return " or ".join(f"<code>{escape(json.dumps(value))}</code>" for value in schema["enum"])
    more = {key: value for key, value in schema.items() if key not in ("type", "title", "description")}
    note = f" <code>{escape(json.dumps(more, ensure_ascii=False))}</code>" if more else ""
    text = f": {escape(schema['description'])}" if schema.get("description") else ""
    return f"<code>{escape(str(schema.get('type', 'anything')))}</code>{note}{text}"


class ContractRoute:
    """Answers requests for a contract; a `wse.core.ports.http.Route`.

    Args:
        make: Makes the document.
        said: What the document is made of. It is made again when that has changed.
        source: The address of the document; `None` if it is what this route answers with.
    """

    methods = ("GET",)
    max_body = 0

    def __init__(self, make: Callable[[], dict[str, Any]], said: Callable[[], Any], source: str | None) -> None:
        self._make = make
        self._said = said
        self._source = source
        self._made: tuple[Any, HttpReply] | None = None

    def answer(self, call: HttpCall) -> HttpReply:
        """The page, or the document."""
        said = self._said()
        if self._made is None or self._made[0] != said:
            self._made = (said, self._reply())
        return self._made[1]

    def _reply(self) -> HttpReply:
        document = self._make()
        if self._source is not None:
            return HttpReply(body=page_of(document, self._source).encode(), headers=HEADERS)
        headers = {"Content-Type": "application/json", "Cache-Control": "no-cache"}
        return HttpReply(body=json.dumps(document, indent=2, ensure_ascii=False).encode(), headers=headers)
