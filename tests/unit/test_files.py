"""Files that a standalone server serves: the JavaScript client, and an application's few pages."""

import importlib.metadata
import json
import re
from pathlib import Path

import pytest

from support.net import RawSocket, make_server
from wse import js_client_path
from wse.server.files import StaticFile


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "index.html"
    path.write_text("<p>hello</p>")
    return path


def test_the_javascript_client_is_where_it_is_said_to_be() -> None:
    assert js_client_path().name == "wse.js"
    assert "export class WseClient" in js_client_path().read_text()


def test_an_installation_without_the_javascript_client_says_so(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("wse.server.files._PACKAGE", tmp_path / "a" / "b")
    with pytest.raises(FileNotFoundError, match=r"wse\.js"):
        js_client_path()


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("a.html", "text/html; charset=utf-8"),
        ("a.css", "text/css; charset=utf-8"),
        ("a.js", "text/javascript; charset=utf-8"),
        ("a.png", "image/png"),
        ("a.nothing-known", "application/octet-stream"),
    ],
)
def test_a_file_has_the_media_type_of_its_suffix(tmp_path, name, media_type) -> None:
    (tmp_path / name).write_bytes(b"x")
    assert StaticFile(tmp_path / name).headers["Content-Type"] == media_type


@pytest.mark.parametrize(
    ("if_none_match", "fresh"),
    [("", False), ('"other"', False), ("*", True), ("{tag}", True), ("W/{tag}", True), ('"other", {tag}', True)],
)
def test_a_browser_that_has_the_file_is_told_so(page, if_none_match, fresh) -> None:
    file = StaticFile(page)
    assert file.is_fresh(if_none_match.replace("{tag}", file.headers["ETag"])) is fresh


def test_the_tag_follows_the_content(page) -> None:
    before = StaticFile(page).headers["ETag"]
    page.write_text("<p>changed</p>")
    assert StaticFile(page).headers["ETag"] != before


def test_a_file_that_is_not_there_fails_at_once() -> None:
    with pytest.raises(OSError, match="absent"):
        make_server(files={"/": "absent.html"})


async def test_the_server_serves_its_files_and_the_client_beside_websockets(listen, page) -> None:
    place = await listen(make_server(files={"/": page}, serve_client=True))
    async with await RawSocket.open(place.url) as socket:
        status, headers, body = await socket.request("/")
        assert (status, body) == (200, b"<p>hello</p>")
        assert headers["content-type"] == "text/html; charset=utf-8"
    async with await RawSocket.open(place.url) as socket:
        status, headers, body = await socket.request("/wse.js?v=1")
        assert (status, body) == (200, js_client_path().read_bytes())
        assert headers["content-type"] == "text/javascript; charset=utf-8"
        tag = headers["etag"]
    async with await RawSocket.open(place.url) as socket:
        status, headers, body = await socket.request("/wse.js", **{"If-None-Match": tag})
        assert (status, headers["etag"], body) == (304, tag, b"")
    loaded = {"wse.js", "wse-trace.js"}  # applications import this one themselves
    for name in (sources := ["wse.js"]):
        source = js_client_path().with_name(name).read_text()
        found = set(re.findall(r"(?:import\(|from )'\./(.+?)'", source)) - loaded
        sources += found
        loaded |= found
    assert loaded == {path.name for path in js_client_path().parent.glob("wse*.js")}
    for name in loaded:
        async with await RawSocket.open(place.url) as socket:
            _, headers, body = await socket.request(f"/{name}")
            module = js_client_path().with_name(name).read_bytes()
            assert (headers["content-type"], body) == ("text/javascript; charset=utf-8", module)
    async with await RawSocket.open(place.url) as socket:
        assert (await socket.upgrade("/"))[0] == 101


async def test_the_client_is_served_only_when_asked_for(listen) -> None:
    place = await listen(make_server(path="/ws"))
    async with await RawSocket.open(place.url) as socket:
        assert (await socket.request("/wse.js"))[0] == 404


def test_the_npm_package_has_the_version_of_the_python_package() -> None:
    package = json.loads((js_client_path().parent / "package.json").read_text())
    assert package["version"] == importlib.metadata.version("wse")
