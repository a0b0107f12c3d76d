"""How much memory an event counts in a log (L3)."""

from __future__ import annotations

import dataclasses
import enum
from collections import OrderedDict, defaultdict, deque
from typing import Any, NamedTuple

import attrs
import pytest

from anyio_workflows import Event, StopEvent
from anyio_workflows.runtime._sizes import estimate_size

from .samples import Note

KB = 1000


def size(value: Any) -> int:
    """Return what a value adds to the size of an event."""
    return estimate_size(Note(text=value)) - estimate_size(Note())


@attrs.define
class Slotted:
    text: str
    more: Any = None
    unset: int = attrs.field(init=False)


@attrs.define(slots=False)
class Plain:
    text: str


@dataclasses.dataclass
class Data:
    text: str


class Pair(NamedTuple):
    one: str
    two: str


class Base(Event):
    text: str = ""


class Derived(Base):
    more: str = ""


@pytest.mark.parametrize(
    "wrap",
    [
        lambda text: text,
        lambda text: text.encode(),
        lambda text: bytearray(text, "ascii"),
        lambda text: [text],
        lambda text: (1, text),
        lambda text: {text},
        lambda text: frozenset([text]),
        lambda text: {"key": text},
        lambda text: {text: 1},
        lambda text: deque([text]),
        lambda text: defaultdict(list, a=[text]),
        lambda text: OrderedDict(a=text),
        lambda text: Pair("", text),
        lambda text: [[[[[[text]]]]]],
        lambda text: Slotted(text),
        lambda text: Slotted("", more=[text]),
        lambda text: Plain(text),
        lambda text: Data(text),
        lambda text: Note(text=text),
        lambda text: StopEvent(result=text),
        lambda text: StopEvent(extra=text),
        lambda text: Derived(more=text),
        lambda text: Derived(text=text),
        lambda text: type("Text", (str,), {})(text),
    ],
)
def test_l3_the_content_of_a_value_counts_wherever_it_is(wrap: Any):
    grown = size(wrap("x" * 100 * KB)) - size(wrap(""))
    assert 100 * KB <= grown <= 110 * KB


def test_l3_large_numbers_and_text_of_any_script_count():
    assert size(1 << (8 * 100 * KB)) >= 100 * KB
    assert size("\N{SNOWMAN}" * 50 * KB) >= 100 * KB


def test_l3_a_model_of_pydantic_counts():
    pydantic = pytest.importorskip("pydantic")

    class Model(pydantic.BaseModel):  # type: ignore[name-defined,misc]
        text: str

    assert size(Model(text="x" * 100 * KB)) >= 100 * KB


def test_l3_a_small_event_has_a_small_size():
    assert 100 < estimate_size(Note(text="hello")) < 1000
    assert estimate_size(Event()) > 0


@pytest.mark.parametrize("make", [list, set, tuple, lambda numbers: dict.fromkeys(numbers)])
def test_l3_what_is_too_much_to_look_at_counts_by_its_average(make: Any):
    small, large = size(make(range(1000, 1500))), size(make(range(1000, 101_000)))
    assert 100 < large / small < 300


def test_l3_a_large_value_inside_many_counts_wherever_it_is():
    assert size([*range(100), "x" * 100 * KB, *range(800)]) >= 100 * KB
    rows = [[0.5] * 100] * 10_000
    assert 10 * 1000 * KB < size(rows) < 100 * 1000 * KB
    assert 10 * KB < size([{"a": 1, "b": [1, 2, 3]}] * 100) < 200 * KB


def test_l3_the_size_of_what_contains_itself_is_finite():
    loop: list[Any] = []
    loop += [loop, {"loop": loop}]
    assert size(loop) < 1000 * KB
    assert size([loop]) > 0


class Hostile:
    """Whatever is done to an instance is an error."""

    def refuse(self, *args: object) -> Any:
        raise AssertionError("the code of a value was called")

    __len__ = __iter__ = __repr__ = __bool__ = __sizeof__ = __hash__ = __eq__ = refuse  # type: ignore[assignment]
    __getattr__ = __getattribute__ = refuse
    __class__ = __dict__ = property(refuse)  # type: ignore[assignment]


class HostileList(Hostile, list[Any]):
    pass


class HostileDict(Hostile, dict[Any, Any]):
    __hash__ = None  # type: ignore[assignment]


class Grade(enum.Enum):
    GOOD = "good"


@pytest.mark.parametrize(
    "value", [Hostile, HostileList, HostileDict, object, lambda: Grade.GOOD, lambda: Hostile]
)
def test_l3_no_code_of_a_value_is_called(value: Any):
    assert size([value(), "x" * 100 * KB]) >= 100 * KB  # the text after it was still looked at


def test_l3_nothing_inside_a_service_counts():
    class Client:
        def __init__(self) -> None:
            self.cache = ["x" * 100 * KB]

    assert size(Client()) < KB


def test_l3_an_event_that_cannot_be_looked_into_has_a_size_too():
    class Odd(Event):
        __dict__ = property(lambda self: 1 / 0)  # type: ignore[assignment]

    assert estimate_size(Odd.__new__(Odd)) > 0
