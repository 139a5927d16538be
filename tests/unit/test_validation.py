"""Whether a value is of a type: who checks it, what is said of one that is not, and which types cannot be checked."""

import datetime as dt
import enum
import uuid
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple, NewType

import annotated_types
import attrs
import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta
from typing_extensions import TypedDict

from wse import ErrorCode, WseError
from wse.validation.checks import all_received, check_for, received
from wse.validation.failures import LONGEST, MOST, InvalidResultError


class Page(msgspec.Struct):
    after: int = 0
    size: Annotated[int, Meta(ge=1, le=100)] = 20


@dataclass
class Point:
    x: int
    y: int = 0
    tags: list[str] = field(default_factory=list)


class Options(TypedDict, total=False):
    dark: bool


@attrs.define
class Pen:
    colour: str


class Pair(NamedTuple):
    left: int
    right: str


class Note(pydantic.BaseModel):
    text: str
    stars: int = pydantic.Field(default=0, ge=0)


@pydantic.dataclasses.dataclass
class Reply:
    to: int


@dataclass
class Thread:
    notes: list[Note]


class Mixed(msgspec.Struct):
    id: int
    note: Note


class Colour(enum.Enum):
    RED = "red"


UserId = NewType("UserId", int)


def errors_of(hint: Any, value: Any) -> list[dict[str, str]]:
    with pytest.raises(WseError) as caught:
        received(hint, value)
    assert caught.value.code is ErrorCode.INVALID_PAYLOAD
    for error in caught.value.details["errors"]:
        assert set(error) == {"path", "message", "type"}
        assert all(type(part) is str for part in error.values())
    return caught.value.details["errors"]


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (Page, {}, Page()),
        (Page, {"after": 5, "size": 1}, Page(5, 1)),
        (Point, {"x": 1}, Point(1)),
        (Options, {}, {}),
        (Options, {"dark": True, "unknown": 1}, {"dark": True}),
        (Pen, {"colour": "red"}, Pen("red")),
        (Pair, [1, "b"], Pair(1, "b")),
        (int, 5, 5),
        (float, 5, 5.0),
        (dict, {"a": 1}, {"a": 1}),
        (list, [1, "a"], [1, "a"]),
        (str, "", ""),
        (bool, False, False),
        (type(None), None, None),
        (UserId, 7, 7),
        (int | None, None, None),
        (list[int], [1], [1]),
        (dict[int, Point], {"3": {"x": 1}}, {3: Point(1)}),
        (set[int], [1, 1], {1}),
        (tuple[int, str], [1, "a"], (1, "a")),
        (Literal["a", "b"], "a", "a"),
        (Colour, "red", Colour.RED),
        (bytes, "aGk=", b"hi"),
        (bytes, b"hi", b"hi"),
        (dt.date, "2026-11-28", dt.date(2026, 11, 28)),
        (uuid.UUID, "00000000-0000-0000-0000-000000000001", uuid.UUID(int=1)),
        (Annotated[int, Meta(gt=3)], 4, 4),
        (Any, {"any": "thing"}, {"any": "thing"}),
        (object, 5, 5),
        (Note, {"text": "a"}, Note(text="a")),
        (Note, {"text": "a", "stars": "3"}, Note(text="a", stars=3)),  # pydantic converts by default
        (list[Note], [{"text": "a"}], [Note(text="a")]),
        (dict[str, Note | None], {"a": None}, {"a": None}),
        (Reply, {"to": 1}, Reply(1)),
        (Thread, {"notes": [{"text": "a"}]}, Thread([Note(text="a")])),
        (Mixed, {"id": 1, "note": {"text": "a"}}, Mixed(1, Note(text="a"))),
        (list[Mixed], [{"id": 1, "note": {"text": "a"}}], [Mixed(1, Note(text="a"))]),
        (pydantic.PositiveInt, "4", 4),
        (Annotated[int, annotated_types.Ge(2)], 2, 2),
        (pydantic.HttpUrl, "http://a.example", pydantic.HttpUrl("http://a.example")),
    ],
)
def test_a_value_of_a_type_is_made_of_what_has_come(hint, value, expected):
    made = received(hint, value)
    assert made == expected
    assert type(made) is type(expected)


@pytest.mark.parametrize(
    ("hint", "value", "path", "type"),
    [
        (Page, {"after": "x"}, "$.after", "wrong_type"),
        (Page, {"size": 0}, "$.size", "greater_than_equal"),
        (Page, {"size": 101}, "$.size", "less_than_equal"),
        (Page, None, "$", "wrong_type"),
        (Page, [], "$", "wrong_type"),
        (Point, {}, "$.x", "missing"),
        (Point, {"x": True}, "$.x", "wrong_type"),
        (Point, {"x": 1, "tags": ["a", 5]}, "$.tags[1]", "wrong_type"),
        (list[Point], [{"x": 1}, {}], "$[1].x", "missing"),
        (dict[str, list[int]], {"a": [1, None]}, "$[...][1]", "wrong_type"),
        (dict[int, int], {"a": 1}, "$", "wrong_type"),
        (int, "5", "$", "wrong_type"),
        (int, True, "$", "wrong_type"),
        (int, 1.5, "$", "wrong_type"),
        (str, None, "$", "wrong_type"),
        (type(None), 0, "$", "wrong_type"),
        (Literal["a"], "b", "$", "enum"),
        (dict, [], "$", "wrong_type"),
        (list, {}, "$", "wrong_type"),
        (float, "5", "$", "wrong_type"),
        (Annotated[str, Meta(min_length=2)], "a", "$", "too_short"),
        (Annotated[str, Meta(max_length=2)], "abc", "$", "too_long"),
        (Annotated[str, Meta(pattern="^a")], "b", "$", "pattern_mismatch"),
        (Annotated[int, Meta(multiple_of=2)], 3, "$", "multiple_of"),
        (uuid.UUID, "x", "$", "value_error"),
        (tuple[int, str], [1], "$", "wrong_length"),
        (Note, {}, "$.text", "missing"),
        (Note, {"text": "a", "stars": -1}, "$.stars", "greater_than_equal"),
        (list[Note], [{"text": "a"}, {"text": 1}], "$[1].text", "string_type"),
        (Thread, {"notes": [{}]}, "$.notes[0].text", "missing"),
        (Mixed, {"id": 1, "note": {}}, "$.note.text", "value_error"),
        (list[Mixed], [{"id": 1, "note": {"text": 5}}], "$[0].note.text", "value_error"),
        (dict[str, Note], {"a b": {}}, "$['a b'].text", "missing"),
        (pydantic.PositiveInt, 0, "$", "greater_than"),
    ],
)
def test_an_error_says_where_and_what(hint, value, path, type):
    first, *_ = errors_of(hint, value)
    assert (first["path"], first["type"]) == (path, type)
    assert first["message"]
    assert " at `" not in first["message"]


def test_pydantic_tells_all_errors_at_once():
    assert [error["path"] for error in errors_of(Note, {"stars": "many"})] == ["$.text", "$.stars"]


def test_an_unknown_field_is_named_where_it_is_forbidden():
    class Strict(msgspec.Struct, forbid_unknown_fields=True):
        a: int = 0

    assert errors_of(list[Strict], [{"b": 1}])[0] == {
        "path": "$[0].b",
        "message": "Object contains unknown field `b`",
        "type": "extra_forbidden",
    }


def test_the_error_does_not_grow_with_what_a_peer_sends():
    huge = "x" * 100_000

    class Strict(msgspec.Struct, forbid_unknown_fields=True):
        pass

    class Strictest(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="forbid")

    for hint in (Strict, Strictest):
        (error,) = errors_of(hint, {huge: 1})
        assert all(len(part) <= LONGEST + 10 for part in error.values())
    assert len(errors_of(list[Note], [{}] * 100)) == MOST
    assert errors_of(list[Note], [{}] * 100_000) == [
        {"path": "$", "message": "100000 errors", "type": "too_many_errors"}
    ]


def test_what_a_peer_writes_into_a_name_is_not_taken_for_a_path():
    class Strict(msgspec.Struct, forbid_unknown_fields=True):
        pass

    (error,) = errors_of(Strict, {"` - at `$.a`": 1})
    assert error["type"] == "extra_forbidden"
    assert error["path"].startswith("$")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_json_is_a_value_or_an_error_with_a_path(value):
    for hint in (Page, Point, list[Point], Thread, Mixed, dict[str, list[Note]], int | list[str], Options):
        (result,) = all_received(hint, [value])
        if isinstance(result, WseError):
            assert result.code is ErrorCode.INVALID_PAYLOAD
            assert result.details["errors"]
            assert all(each["path"].startswith("$") and each["message"] for each in result.details["errors"])


@given(st.lists(st.integers() | st.just("wrong"), min_size=1).filter(lambda numbers: "wrong" in numbers))
def test_a_path_leads_to_the_first_wrong_value(numbers):
    at = numbers.index("wrong")
    assert errors_of(list[int], numbers)[0]["path"] == f"$[{at}]"
    assert errors_of(list[Point], [{"x": number} for number in numbers])[0]["path"] == f"$[{at}].x"
    assert (
        errors_of(list[Note], [{"text": "", "stars": abs(n) if n != "wrong" else n} for n in numbers])[0]["path"]
        == f"$[{at}].stars"
    )


class Session:
    """Not made of JSON."""


class Cat(msgspec.Struct):
    name: str


class Dog(msgspec.Struct):
    name: str


@pytest.mark.parametrize(
    ("hint", "problem"),
    [
        (Session, "Session is a class that no JSON makes"),
        (list[Session], "Session is a class"),
        (Cat | Dog, "multiple Struct types"),
        (list["Missing"], "Missing"),  # noqa: F821 - unknown on purpose
        (Annotated[list[Note], Meta(max_length=1)], "use pydantic.Field"),
        (list[Note | Session], "pydantic cannot check"),
    ],
)
def test_a_type_that_cannot_be_checked_is_an_error(hint, problem):
    with pytest.raises(TypeError, match=problem):
        check_for(hint)


def test_a_check_is_made_once():
    assert check_for(list[Point]) is check_for(list[Point])


def test_results_of_several_peers_are_checked_each():
    lost = WseError("lost")
    good, bad, same = all_received(int, [1, "x", lost], rp="battery")
    assert good == 1
    assert isinstance(bad, WseError)
    assert bad.details["rp"] == "battery"
    assert same is lost
    assert all_received(None, [1, "x"]) == [1, "x"]


@pytest.mark.parametrize(
    ("hint", "value", "sent"),
    [
        (int, 5, 5),
        (Page, Page(1), Page(1)),
        (Page, {"after": 1}, Page(1)),
        (list[Point], [Point(1), {"x": 2}], [Point(1), Point(2)]),
        (Note, Note(text="a"), {"text": "a", "stars": 0}),
        (list[Note], [Note(text="a"), {"text": "b"}], [{"text": "a", "stars": 0}, {"text": "b", "stars": 0}]),
        (Mixed, Mixed(1, Note(text="a")), Mixed(1, Note(text="a"))),
        (dt.datetime, dt.datetime(2026, 1, 1, tzinfo=dt.UTC), dt.datetime(2026, 1, 1, tzinfo=dt.UTC)),
        (None, None, None),
        (set[int], {1}, {1}),
    ],
)  # fmt: skip
def test_a_value_of_ones_own_is_made_ready_to_be_sent(hint, value, sent):
    check = check_for(hint)
    assert check is not None
    assert check.own(value) == sent


def test_fields_that_the_type_does_not_have_are_not_sent():
    class User(msgspec.Struct):
        name: str
        password: str

    class Public(msgspec.Struct):
        name: str

    check = check_for(Public)
    assert check is not None
    assert msgspec.to_builtins(check.own(User("ann", "secret"))) == {"name": "ann"}


@pytest.mark.parametrize(
    ("hint", "value"),
    [
        (int, "x"),
        (None, 0),
        (Page, Page(after="x")),
        (Page, Page(size=0)),
        (list[Point], [Point("x")]),
        (Note, Note.model_construct(text=5)),
        (Note, {"text": None}),
        (int, object()),
    ],
)
def test_a_wrong_value_of_ones_own_is_a_type_error(hint, value):
    check = check_for(hint)
    assert check is not None
    with pytest.raises(InvalidResultError, match=r"(?s)not of the declared type: .+ \(\$"):
        check.own(value)


def test_the_error_of_a_wrong_model_does_not_tell_its_values():
    check = check_for(Note)
    assert check is not None
    with pytest.raises(InvalidResultError, match=r"text \(expected `str`\)") as caught:
        check.own(Note.model_construct(text=987654321))
    assert "987654321" not in str(caught.value)
