"""Makes docs/reference/api.md, the API at a glance, from the docstrings of what the reference pages name.

Run:    .venv/bin/python tests/docs/api.py
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import griffe

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reference/api.md"
CODES = (ROOT / "docs/reference/codes.md").read_text()
TITLES = {
    "server": "Server",
    "client": "Client",
    "auth": "Authentication",
    "protocols": "Protocols",
    "errors": "Errors and states",
    "testing": "Tests",
}
"""The reference pages, in the order of the navigation, and what is said of them here."""

HEAD = """\
# The API at a glance

Every public name with its arguments, and a sentence for each member. Names without a module are in `wse`. The pages
that the headings link to have types, errors and the rest. They are made from the code when `make docs` builds the
documentation.

<!-- Made by tests/docs/api.py: change the docstrings, and run it again. -->
"""


def make_page() -> str:
    package = griffe.load(
        "wse", search_paths=[ROOT / "src"], docstring_parser="google", resolve_aliases=True, resolve_external=False
    )
    parts = [HEAD]
    for name, title in TITLES.items():
        parts.append(f"\n## [{title}]({name}.md)\n")
        text = (ROOT / f"docs/reference/{name}.md").read_text()
        for path, options in re.findall(r"^::: wse\.(\S+)((?:\n    .*)*)", text, re.MULTILINE):
            parts.append(entry(package[path], path, options))
    return "\n".join(parts)


def entry(found: griffe.Object | griffe.Alias, path: str, options: str) -> str:
    """What is said of a class or function."""
    name = path if found.parent is None or path.startswith(("auth.", "testing.")) else found.name
    lines = [f"### `{name}`\n", f"{summary(found)}\n"]
    if isinstance(found.final_target if found.is_alias else found, griffe.Function):
        return "\n".join([*lines, f"`{signature(found, name)}`\n"])
    if f"\n## {found.name}\n" in CODES:
        return "\n".join([*lines, f"Its members are listed at [codes and reasons](codes.md#{found.name.lower()}).\n"])
    arguments = described(found, griffe.DocstringSectionKind.parameters)
    if arguments:  # else it is not for users to make
        lines.append(f"`{signature(found.all_members['__init__'], name)}`\n")
        lines += ["| argument | |", "|---|---|", *(row(*argument) for argument in arguments.items()), ""]
    rows = list(rows_of(found, options))
    if rows:
        lines += ["| member | |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def described(found: griffe.Object | griffe.Alias, kind: griffe.DocstringSectionKind) -> dict[str, str]:
    """What a section of the docstring says of each name."""
    sections = [section for section in found.docstring.parsed if section.kind is kind] if found.docstring else []
    return {item.name: item.description for section in sections for item in section.value}


def rows_of(found: griffe.Object | griffe.Alias, options: str) -> Iterator[str]:
    """A table row for each attribute in the docstring, and each member."""
    shown = re.search(r"members: \[(.*)\]", options)
    listed = re.findall(r'"(\w+)"', shown[1]) if shown else None
    attributes = {} if listed else described(found, griffe.DocstringSectionKind.attributes)
    for name, text in attributes.items():
        yield row(name, text)
    for name, member in found.all_members.items():
        is_shown = name in listed if listed else not name.startswith("_") and name not in attributes
        if not is_shown or not member.has_docstring:
            continue
        member = member.final_target if member.is_alias else member
        text = signature(member, name) if member.is_function else name
        yield row("await " * is_awaited(member) + text, summary(member))


def row(code: str, text: str) -> str:
    return f"| `{code}` | {one_line(text)} |"


def summary(found: griffe.Object | griffe.Alias) -> str:
    """The first sentence."""
    paragraph = " ".join(found.docstring.value.split("\n\n")[0].split()) if found.docstring else ""
    return re.split(r"(?<=\.) (?=[A-Z`])", paragraph)[0]


def one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def is_awaited(member: griffe.Object) -> bool:
    return member.is_function and "async" in member.labels and "asynccontextmanager" not in member.labels


def signature(function: griffe.Function | griffe.Alias, name: str) -> str:
    """Names and defaults; types are left to the pages."""
    name = name.replace("__call__", "signal")
    parameters: list[str] = []
    kind = griffe.ParameterKind
    for parameter in function.parameters:
        if parameter.name in {"self", "cls"} or parameter.name.startswith("_"):
            continue
        if parameter.kind is kind.keyword_only and not any(each.startswith("*") for each in parameters):
            parameters.append("*")
        if parameter.kind is kind.var_positional:
            parameters.append(f"*{parameter.name}")
        elif parameter.kind is kind.var_keyword:
            parameters.append(f"**{parameter.name}")
        elif parameter.default is not None:
            parameters.append(f"{parameter.name}={parameter.default}")
        else:
            parameters.append(parameter.name)
    return f"{name}({', '.join(parameters)})"


if __name__ == "__main__":
    PAGE.write_text(make_page())
