"""`field=value` arguments: a text as it is where texts are taken, and JSON otherwise."""

from __future__ import annotations

import datetime
import enum
from typing import Any, Literal

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyio_workflows import Event, StartEvent
from anyio_workflows._cli.problems import CommandError
from anyio_workflows._cli.values import Record
from anyio_workflows.wire import from_data, json_schema


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.Enum):
    LOW = 1
    HIGH = 2


@attrs.frozen
class Point:
    x: int
    y: int = 0


class All(Event):
    text: str = ""
    number: int = 0
    ratio: float = 0.0
    yes: bool = False
    day: datetime.date | None = None
    colour: Colour = Colour.RED
    level: Level = Level.LOW
    size: Literal["s", "m", 3] = "s"
    maybe: str | None = None
    either: int | str = 0
    numbers: list[int] = attrs.field(factory=list)
    point: Point = Point(x=1)
    anything: Any = None
    nested: dict[str, list[Point]] = attrs.field(factory=dict)


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("text=5", "5"),
        ("text=", ""),
        ("text=true", "true"),
        ('text="quoted"', '"quoted"'),
        ("text=a=b", "a=b"),
        ("number=5", 5),
        ("number=-5", -5),
        ("ratio=5", 5),
        ("ratio=1e3", 1000.0),
        ("yes=true", True),
        ("day=2026-01-31", datetime.date(2026, 1, 31)),
        ("day=null", None),
        ("colour=blue", Colour.BLUE),
        ("level=2", Level.HIGH),
        ("size=m", "m"),
        ("size=3", 3),
        ("maybe=null", None),
        ("maybe=nothing", "nothing"),
        ("maybe=5", "5"),
        ("either=5", 5),
        ("either=five", "five"),
        ("either=5.5", "5.5"),
        ("numbers=[1, 2]", [1, 2]),
        ('point={"x": 3}', Point(x=3)),
        ("anything=5", 5),
        ("anything=five", "five"),
        ('nested={"a": [{"x": 1}]}', {"a": [Point(x=1)]}),
    ],
)
def test_values_are_read_as_the_field_is_annotated(pair: str, value: object):
    data = Record.of(json_schema(All)).read([pair])
    assert from_data(data, All) == All(**{pair.partition("=")[0]: value})


@pytest.mark.parametrize(
    ("pair", "complaint"),
    [
        ("number=five", "number: expected integer, got 'five'"),
        ("number=", "number: expected integer, got ''"),
        ("yes=yes", "yes: expected true or false, got 'yes'"),
        ("ratio=NaN", "ratio: expected number, got 'NaN'"),
        ("colour=green", 'colour: expected "red" or "blue", got \'green\''),
        ("numbers=1,2", "numbers: expected array, got '1,2'; write JSON: numbers='[...]'"),
        ("numbers=" + "[" * 100_000, "numbers: expected array, got '[[["),
        (
            "textt=x",
            "All has no field 'textt', did you mean 'text'?; fields of All: text (string, default \"\"), ",
        ),
        ("=x", "'=x' is no field=value; "),
        ("text", "'text' is no field=value; "),
    ],
)
def test_what_does_not_fit_is_refused(pair: str, complaint: str):
    with pytest.raises(CommandError) as caught:
        Record.of(json_schema(All)).read([pair])
    assert str(caught.value).startswith(complaint)
    assert len(str(caught.value)) < 2000


class Node(StartEvent):
    """Refers to itself."""

    name: str
    next: Node | None = None


def test_a_schema_that_refers_to_itself():
    record = Record.of(json_schema(Node))
    data = record.read(["name=a", 'next={"name": "b"}'])
    assert from_data(data, Node) == Node(name="a", next=Node(name="b"))
    assert record.usage == "fields of Node: name (string), next (object, default null)"


@given(st.text())
def test_every_text_reaches_a_text_field_unchanged(text: str):
    assert Record.of(json_schema(All)).read([f"text={text}"]) == {"text": text}


@given(st.text())
def test_an_open_event_takes_every_text(text: str):
    [value] = Record.of(json_schema(StartEvent)).read([f"any={text}"]).values()
    assert type(value) in (str, int, float, bool, type(None), list, dict)
