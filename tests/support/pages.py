"""The fenced blocks of the pages in docs/."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass

_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<lang>[\w+-]*)(?P<info>.*)$")
_TITLE = re.compile(r'title="([^"]*)"')


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    lang: str
    title: str
    code: str
    line: int

    @property
    def is_output(self) -> bool:
        return self.lang == "text" and self.title == "Output"


def blocks_of(text: str) -> list[Block]:
    blocks: list[Block] = []
    lines = iter(enumerate(text.splitlines(), 1))
    for number, line in lines:
        match = _FENCE.match(line)
        if match is None:
            continue
        body: list[str] = []
        for _, inner in lines:
            if inner.strip() == match["fence"]:
                break
            body.append(inner)
        else:
            raise ValueError(f"line {number}: the block does not end")
        title = _TITLE.search(match["info"])
        code = textwrap.dedent("\n".join(body))
        blocks.append(Block(match["lang"], title[1] if title else "", f"{code}\n", number))
    return blocks
