"""The built-in listener's reading of requests (RFC 9110, RFC 9112)."""

from http import HTTPStatus

import pytest

from wse.transports.picows.http import HttpError, HttpHead, answer

HANDSHAKE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)


def read(*lines, first="GET /ws HTTP/1.1", host="Host: localhost"):
    rows = [first, *([host] if host else []), *lines]
    return HttpHead("\r\n".join(rows).encode("latin-1"))


def refused(*lines, **parts):
    with pytest.raises(HttpError) as caught:
        read(*lines, **parts)
    return caught.value.status


def changed(old, *new):
    return [line for row in HANDSHAKE for line in (new if row.startswith(old) else (row,))]


@pytest.mark.parametrize(
    "lines",
    [
        HANDSHAKE,
        changed("Connection", "Connection: keep-alive", "Connection: Upgrade"),
        changed("Connection", "Connection: keep-alive,\tUPGRADE ,"),
        changed("Connection", "connection:upgrade"),
        changed("Upgrade", "Upgrade: h2c, WebSocket"),
        changed("Upgrade", "Upgrade: h2c", "Upgrade: websocket"),
        changed("Sec-WebSocket-Version", "sec-websocket-version:  13  "),
    ],
)
def test_a_handshake_may_have_lists_and_repeated_lines(lines):
    head = read(*lines)
    assert head.wants_websocket
    assert head.websocket_key() == "dGhlIHNhbXBsZSBub25jZQ=="


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (changed("Connection"), 400),
        (changed("Connection", "Connection: keep-alive"), 400),
        (changed("Sec-WebSocket-Key"), 400),
        (changed("Sec-WebSocket-Key", *["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="] * 2), 400),
        (changed("Sec-WebSocket-Version"), 400),
        (changed("Sec-WebSocket-Version", *["Sec-WebSocket-Version: 13"] * 2), 400),
        (changed("Sec-WebSocket-Version", "Sec-WebSocket-Version: 14"), 426),
    ],
)
def test_a_handshake_that_is_not_in_order_is_refused(lines, status):
    with pytest.raises(HttpError) as caught:
        read(*lines).websocket_key()
    assert caught.value.status == status
    if status == 426:
        assert caught.value.headers["Sec-WebSocket-Version"] == "13"  # RFC 6455, 4.4


def test_a_head_request_opens_no_websocket():
    with pytest.raises(HttpError):
        read(*HANDSHAKE, first="HEAD /ws HTTP/1.1").websocket_key()


def test_an_upgrade_is_ignored_in_http_1_0():
    assert not read(*HANDSHAKE, first="GET /ws HTTP/1.0").wants_websocket


@pytest.mark.parametrize(
    "first",
    [
        "GET  / HTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET /",
        "GET / HTTP/1.10",
        "GET / http/1.1",
        "G(T / HTTP/1.1",
        "GET * HTTP/1.1",
        "GET relative HTTP/1.1",
        "GET /\x00 HTTP/1.1",
        "GET http://user@localhost/ HTTP/1.1",
        "GET http:///ws HTTP/1.1",
        "",
    ],
)
def test_a_malformed_request_line_is_refused(first):
    assert refused(first=first) == 400


@pytest.mark.parametrize("version", ["HTTP/2.0", "HTTP/0.9"])
def test_another_version_of_http_is_refused(version):
    assert refused(first=f"GET / {version}") == 505


@pytest.mark.parametrize(
    "line",
    ["no colon", ": no name", "Name : value", " folded", "Na(me: value", "Name: a\x00b", "Name: a\rb", "Name: a\nb"],
)
def test_a_malformed_header_is_refused(line):
    assert refused(line) == 400


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "[::1]:4200", "under_score.example", "localhost:", ""])
def test_a_host_may_have_a_port(host):
    assert read(host=f"Host: {host}").headers["Host"] == host


@pytest.mark.parametrize(
    "host",
    ["user@localhost", "user:password@localhost", "a b", "a/b", "localhost:http", "[::1", "caf\xe9", "a?b", "a#b"],
)
def test_a_host_that_is_more_than_host_and_port_is_refused(host):
    assert refused(host=f"Host: {host}") == 400


def test_http_1_1_needs_exactly_one_host():
    assert refused(host=None) == 400
    assert refused("Host: localhost") == 400
    assert "Host" not in read(host=None, first="GET / HTTP/1.0").headers


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("http://app.example:81/ws?a=1", ("app.example:81", "/ws?a=1")),
        ("HTTP://app.example", ("app.example", "/")),
        ("ws://app.example?a=1", ("app.example", "/?a=1")),
    ],
)
def test_a_target_in_absolute_form_replaces_the_host(target, expected):
    head = read(first=f"GET {target} HTTP/1.1")
    assert (head.headers["Host"], head.target) == expected


def test_the_path_is_decoded_and_the_target_is_not():
    head = read(first="GET /%77s/%C3%A9?a=%20 HTTP/1.1")
    assert (head.path, head.target) == ("/ws/é", "/%77s/%C3%A9?a=%20")


@pytest.mark.parametrize(
    ("value", "text"),
    [(b"caf\xc3\xa9", "café"), (b"caf\xe9", "café"), (b"\xff\xfe", "ÿþ"), (b"a\tb", "a\tb"), (b"", "")],
)
def test_a_value_may_have_any_text(value, text):
    head = HttpHead(b"GET / HTTP/1.1\r\nHost: x\r\nX-Name: \t" + value + b" \t")
    assert head.headers["x-name"] == text


@pytest.mark.parametrize("line", ["Content-Length: 0", "Content-Length: 0, 0"])
def test_an_empty_body_is_none(line):
    assert read(line).method == "GET"


@pytest.mark.parametrize(
    "line", ["Content-Length: -1", "Content-Length: 0, 1", "Content-Length:", "Transfer-Encoding: chunked"]
)
def test_a_body_of_unknown_size_is_refused(line):
    assert refused(line) == 400


@pytest.mark.parametrize(("line", "size"), [("Content-Length: 17", 17), ("Content-Length: 17, 17", 17), ("X: y", 0)])
def test_the_size_of_a_body_is_read(line, size):
    assert read(line).body_size == size


def test_long_values_are_read_in_linear_time():
    assert read("X-Name: " + " \t" * 8000 + "x" + " \t" * 8000 + "y").headers["X-Name"].endswith("y")


def test_an_answer_to_head_has_the_length_of_the_body_and_not_the_body():
    whole = answer(HTTPStatus.OK, {"X": "1"}, b"body", head_only=False)
    head = answer(HTTPStatus.OK, {"X": "1"}, b"body", head_only=True)
    assert whole == head + b"body"
    assert b"\r\nContent-Length: 4\r\n" in head
    assert b"\r\nConnection: close\r\n" in head


def test_an_answer_that_asks_for_an_upgrade_names_it_as_a_connection_option():
    data = answer(HTTPStatus.UPGRADE_REQUIRED, {"Upgrade": "websocket"}, head_only=False)
    assert b"\r\nConnection: Upgrade, close\r\n" in data  # RFC 9110, 7.8


def test_an_answer_without_a_change_has_no_body():
    data = answer(HTTPStatus.NOT_MODIFIED, {"ETag": '"1"'}, head_only=False)
    assert data.endswith(b"\r\n\r\n")
    assert b"Content-Length" not in data
