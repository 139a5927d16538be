"""Files that a standalone server sends in answer to plain GETs: the JavaScript client, or a few pages.

An application that serves more than that belongs in a web framework, with `server.asgi` or `server.aiohttp` inside.
"""

from __future__ import annotations

import hashlib
import mimetypes
from pathlib import Path

_PACKAGE = Path(__file__).parent.parent

JS_MODULES = (
    "wse.js",
    "wse-share.js",
    "wse-hub.js",
    "wse-resume.js",
    "wse-streams.js",
    "wse-inbox.js",
    "wse-rooms.js",
    "wse-trace.js",
)
"""The JavaScript client, the modules that it loads from beside it when an option asks for them, and those that
applications import."""


def js_client_path() -> Path:
    """The path of the JavaScript client, an ES module without dependencies, for web frameworks that serve files.

    Raises:
        FileNotFoundError: This installation of wse lacks it.
    """
    # In an installed package, or in the source tree.
    for path in (_PACKAGE / "js" / "wse.js", _PACKAGE.parent.parent / "js" / "wse.js"):
        if path.is_file():
            return path
    raise FileNotFoundError("this installation of wse lacks the JavaScript client, wse.js")


class StaticFile:
    """A file, read once.

    Args:
        path: Its path; the suffix decides the media type.

    Attributes:
        body: Its content.
        headers: `Content-Type`, `ETag` and `Cache-Control` of every answer: browsers cache the file, and ask each time
            whether it has changed.

    Raises:
        OSError: It cannot be read.
    """

    __slots__ = ("body", "headers")

    def __init__(self, path: Path) -> None:
        self.body = path.read_bytes()
        media_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        if media_type.startswith("text/"):
            media_type += "; charset=utf-8"
        digest = hashlib.sha256(self.body).hexdigest()
        self.headers = {"Content-Type": media_type, "ETag": f'"{digest[:32]}"', "Cache-Control": "no-cache"}

    def is_fresh(self, if_none_match: str) -> bool:
        """Whether a browser that sends this `If-None-Match` has the file already (RFC 9110, 13.1.2)."""
        tags = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
        return self.headers["ETag"] in tags or "*" in tags
