"""The text of plain events, written at once: exactly what the codec writes (rules E4, P4)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import date
from enum import IntEnum, StrEnum
from typing import Any, Literal

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyio_workflows._json.codec import JsonCodec
from anyio_workflows._json.hooks import Hooks
from anyio_workflows.errors import ContextSerdeError
from anyio_workflows.events import Event, StartEvent, StopEvent


class Level(IntEnum):
    LOW = 1


class Word(StrEnum):
    YES = "yes"


class Odd(int):
    pass


class Plain(Event):
    none: None = None
    flag: bool = False
    number: int = 0
    real: float = 0.0
    text: str = ""
    _private: int = 1
    either: int | str | None = 0
    maybe: float | None = None
    option: Literal["a", 1] | None = None
    anything: Any = None
    late: str = attrs.field(default="", init=False)
    converted: str = attrs.field(default="", converter=str)


class More(Plain):
    more: int = 0


class Unset(Event):
    late: int = attrs.field(init=False)


class Mixed(Event):
    number: int
    day: date | None = None
    names: list[str] = []


class Bare(Event):
    pass


class Stranger(Event):
    number: int = 0


CODEC = JsonCodec([Plain, More, Unset, Mixed, Bare, StartEvent, StopEvent])

ATOMS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([2**2048, 2**2048 - 1, -(2**2048), -(2**2048) + 1, 10**5000]),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["\ud800", '"\\/\x00\x7f\u2028', "$", "a", 1]),
)
VALUES = st.one_of(
    ATOMS,
    st.sampled_from([Level.LOW, Word.YES, Odd(3), date(2024, 5, 1), b"", object(), ValueError()]),
    st.lists(ATOMS, max_size=2),
    st.dictionaries(st.sampled_from(["$", "a"]), ATOMS, max_size=2),
)
NAMES = [field.name for field in attrs.fields(More) if field.name != "_extra"]  # type: ignore[arg-type]
PLAIN = st.builds(
    More,
    flag=st.booleans(),
    number=st.integers(),
    real=st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers()),
    text=st.text(),
    _private=st.integers(),
    either=st.one_of(st.none(), st.integers(), st.text()),
    maybe=st.none() | st.floats(-1, 1),
    option=st.sampled_from(["a", 1, None]),
    anything=st.one_of(st.none(), st.booleans(), st.integers(), st.text()),
    converted=st.text(),
    more=st.integers(),
)


def slowly(event: Event, path: str = "$", hooks: Hooks | None = None) -> str:
    return json.dumps(CODEC.dump(event, path, hooks), separators=(",", ":"))


def result(act: Callable[..., str], event: Event) -> str | tuple[str, str]:
    try:
        return act(event, "Here")
    except ContextSerdeError as error:
        return error.path, error.problem


@given(PLAIN)
def test_p4_a_plain_event_is_written_at_once_and_as_ever(event: More):
    assert CODEC._plain.text(event) == CODEC.text_of_event(event) == slowly(event)


@given(PLAIN, st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=3))
def test_p4_whatever_an_event_holds_is_written_or_refused_as_ever(
    event: More, changes: dict[str, Any]
):
    vars(event).update(changes)  # no longer what the constructor has checked
    assert result(CODEC.text_of_event, event) == result(slowly, event)


@given(st.dictionaries(st.text(max_size=3), VALUES, max_size=3), st.booleans(), VALUES)
def test_p4_events_with_any_keywords_are_written_as_ever(
    values: dict[str, Any], stops: bool, value: Any
):
    values.pop("_extra", None)
    values.pop("result", None)
    event = StopEvent(result=value, **values) if stops else StartEvent(**values)
    assert result(CODEC.text_of_event, event) == result(slowly, event)


@pytest.mark.parametrize(
    "event",
    [
        Bare(),
        StopEvent(),
        Unset(),
        Mixed(number=1),
        Mixed(number=1, day=date(2024, 5, 1)),
        Mixed(number=1, names=["a"]),
        Stranger(),
        More(real=math.inf),
    ],
    ids=lambda event: type(event).__name__,
)
def test_p4_events_of_all_kinds_are_written_or_refused_as_ever(event: Event):
    assert result(CODEC.text_of_event, event) == result(slowly, event)


def test_e4_a_value_that_its_annotation_does_not_admit_is_refused_though_it_is_plain():
    event = Plain()
    vars(event)["option"] = "b"
    assert result(CODEC.text_of_event, event) == result(slowly, event)
    assert result(CODEC.text_of_event, event)[0] == "Here.option"


class Money:
    pass


class Bill(Event):
    amount: Money | None = None
    cents: int = 0


def test_p7_what_hooks_are_asked_for_is_left_to_them():
    with pytest.raises(ContextSerdeError, match="Money"):
        JsonCodec([Bill, Money]).text_of_event(Bare())  # there are no hooks for it
    codec = JsonCodec([Bill])
    for event in (Bill(), Bill(amount=Money())):
        assert codec._plain.text(event) is None
