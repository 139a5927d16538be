"""Serves the operations page: on the built-in listener, in ASGI applications and in aiohttp.

The page finds its files and its WebSocket below its own address, so it works at any path, also behind a proxy that
takes a part of the path away.
"""

from __future__ import annotations

import hashlib
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from wse.core.ports.http import HttpReply

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, MutableMapping

    from wse.core.ports.http import HttpCall

_FOLDER: Final = Path(__file__).parent / "static"

_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)

_HEADERS: Final[Mapping[str, str]] = {
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

_FILES: Final = ("console.css", "console.js")

_TYPES: Final = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
}


class Page:
    """The page and its files; a `wse.core.ports.http.Route` for each of them.

    Args:
        client: The path of the JavaScript client.

    Raises:
        OSError: A file is missing.
    """

    methods = ("GET",)
    max_body = 0

    def __init__(self, client: Path) -> None:
        self._html = (_FOLDER / "index.html").read_text(encoding="utf-8")
        self._files = {path.name: path.read_bytes() for path in (*map(_FOLDER.joinpath, _FILES), client)}

    def paths(self, base: str) -> list[str]:
        """The paths of all that there is, for a page at a path without a slash at its end."""
        return [base or "/", *(f"{base}/{name}" for name in ("", *self._files))]

    def answer(self, call: HttpCall) -> HttpReply:
        """The page, or one of its files."""
        return self.reply(call.path, call.headers.get("If-None-Match"))

    def reply(self, path: str, if_none_match: str | None) -> HttpReply:
        """What is at a path: the last part of it decides.

        Args:
            path: The path.
            if_none_match: The header of that name.
        """
        name = path.rpartition("/")[2]
        body = self._files.get(name)
        headers = {**_HEADERS, "Content-Type": _TYPES[name.rpartition(".")[2] if body else "html"]}
        if body is None:
            # A browser resolves relative addresses from the last slash on.
            body = self._html.replace("{base}", f"./{quote(name)}/" if name else "./").encode()
            headers["Content-Security-Policy"] = _POLICY
        tag = headers["ETag"] = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        if if_none_match is not None and tag in if_none_match:
            return HttpReply(HTTPStatus.NOT_MODIFIED, headers=headers)
        return HttpReply(body=body, headers=headers)


class AdminApp:
    """The operations page as an ASGI application, which may be mounted at any path: `server.admin`.

    Args:
        page: The page.
        websocket: The application for its WebSocket.
        aiohttp: The same for aiohttp, if it is asked for.
    """

    def __init__(self, page: Page, websocket: Callable[..., Awaitable[None]], aiohttp: Callable[[], Any]) -> None:
        self._page = page
        self._websocket = websocket
        self._aiohttp = aiohttp

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[Any]],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        """Answer a request, or serve a WebSocket."""
        if scope["type"] != "http":
            await self._websocket(scope, receive, send)
            return
        if scope["method"] not in ("GET", "HEAD"):
            reply = HttpReply(HTTPStatus.METHOD_NOT_ALLOWED, headers={"Allow": "GET, HEAD"})
        else:
            tags = [value.decode("latin-1") for name, value in scope["headers"] if name.lower() == b"if-none-match"]
            reply = self._page.reply(scope["path"], tags[0] if tags else None)
        headers = [(name.lower().encode(), value.encode()) for name, value in reply.headers.items()]
        body = reply.body or b""
        if reply.status is not HTTPStatus.NOT_MODIFIED:
            headers.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": reply.status.value, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def aiohttp(self, request: Any) -> Any:
        """Answer a request of aiohttp: `app.router.add_get("/admin{rest:(/.*)?}", server.admin.aiohttp)`.

        Raises:
            ImportError: aiohttp is not installed.
        """
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await self._aiohttp()(request)
        from aiohttp import web

        reply = self._page.reply(request.path, request.headers.get("If-None-Match"))
        return web.Response(status=reply.status, body=reply.body, headers=reply.headers)
