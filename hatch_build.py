"""Makes the page on PyPI from README.md: links and pictures that are relative in the repository become absolute."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

PICTURES = (".png", ".svg")


def absolute(text: str, source: str, version: str) -> str:
    """A page of the repository, whose relative links lead to the repository at a version.

    Args:
        text: The page, in Markdown.
        source: The address of the repository on GitHub.
        version: The version, whose tag is `v` and the version.
    """
    files = f"{source}/blob/v{version}/"
    pictures = f"{source.replace('//github.com/', '//raw.githubusercontent.com/')}/v{version}/"

    def replaced(link: re.Match[str]) -> str:
        target = link[1]
        return f"]({pictures if target.endswith(PICTURES) else files}{target})"

    return re.sub(r"\]\((?![a-z]+:|#)([^)\s]+)\)", replaced, text)


class ReadmeHook(MetadataHookInterface):
    """Gives the distributions their description."""

    def update(self, metadata: dict[str, Any]) -> None:
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        page = absolute(text, metadata["urls"]["Source"], metadata["version"])
        metadata["readme"] = {"content-type": "text/markdown", "text": page}
