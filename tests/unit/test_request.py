"""The HTTP request that opened a WebSocket, as handlers see it."""

import pytest

from wse.transports.request import CompactHeaders, HttpRequest, tokens

HEADERS = CompactHeaders([("Host", "example.org"), ("X-Many", "one"), ("Cookie", "a=1; b=x%20y"), ("x-many", "two")])


def test_the_target_is_taken_apart():
    request = HttpRequest("/a/b?x=1&y=a%20b&x=2&empty=", HEADERS, "192.0.2.1")
    assert request.path == "/a/b"
    assert request.query_string == "x=1&y=a%20b&x=2&empty="
    assert request.query == {"x": "1", "y": "a b", "empty": ""}
    assert request.remote_addr == "192.0.2.1"
    assert request.native is None


def test_cookies_are_taken_apart():
    assert HttpRequest("/", HEADERS, "").cookies == {"a": "1", "b": "x%20y"}
    assert HttpRequest("/", CompactHeaders([]), "").cookies == {}


@pytest.mark.parametrize(
    ("cookie", "value"),
    [
        ("a=1", "1"),
        ("a=1; a=2", "2"),
        (" a = 1 ", "1"),
        ("a=b=c", "b=c"),
        ('a="b c"', "b c"),
        (r'a="\054\"\\"', ',"\\'),
        ('a="', '"'),
        ("a=", ""),
        ("A=1", None),
        ("a", None),
        ("", None),
    ],
)
def test_a_cookie_has_the_value_that_other_libraries_give_it(cookie, value):
    assert HttpRequest("/", {"cookie": cookie}, "").cookies.get("a") == value


def test_cookies_may_come_in_several_lines():
    assert HttpRequest("/", CompactHeaders([("Cookie", "a=1"), ("cookie", "b=2")]), "").cookies == {"a": "1", "b": "2"}


def test_what_may_be_secret_is_not_shown():
    assert repr(HttpRequest("/ws?token=secret", HEADERS, "192.0.2.1")) == "<HttpRequest /ws from 192.0.2.1>"


def test_headers_are_found_without_regard_to_case_and_the_first_counts():
    assert HEADERS["host"] == HEADERS["HOST"] == "example.org"
    assert HEADERS["x-many"] == "one"
    assert HEADERS.get("absent") is None
    with pytest.raises(KeyError):
        HEADERS["absent"]


def test_all_values_of_a_header_are_found_in_order():
    assert HEADERS.getall("X-MANY", []) == ["one", "two"]
    assert HEADERS.getall("absent", ["default"]) == ["default"]


def test_headers_are_counted_and_listed_once_by_name():
    assert len(HEADERS) == 3
    assert set(HEADERS) == {"Host", "X-Many", "Cookie"}
    assert dict(CompactHeaders([])) == {}


@pytest.mark.parametrize(
    ("values", "names"),
    [([], []), (["a"], ["a"]), (["a, b", "c"], ["a", "b", "c"]), ([" ,a,,"], ["a"])],
)
def test_tokens_keep_the_clients_order(values, names):
    assert tokens(values) == names
