"""Hostile values: a `ContextSerdeError` with a short text, and no more than linear time (P4).

Time is not measured: comparisons are counted, and what would take quadratic time is so large here
that it would not end.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from enum import IntFlag
from typing import Any, ClassVar
from uuid import UUID

import attrs
import pytest

from anyio_workflows import StartEvent
from anyio_workflows._json.codec import JsonCodec, RestoredError

from .hostile import HUGE, LONG, deep, refused


@attrs.frozen
class Key:
    """Counts how often it is compared; all have one hash."""

    n: int
    compared: ClassVar[int] = 0

    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        Key.compared += 1
        return isinstance(other, Key) and self.n == other.n


class Bits(IntFlag):
    ONE = 1


@dataclass
class Holder:
    by_id: dict[UUID, int]
    days: list[date]


CODEC = JsonCodec([Key, Bits, Holder, StartEvent])


def tag(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def test_p4_a_path_of_long_keys_is_shortened_in_the_middle() -> None:
    data: Any = object()
    for _ in range(80):
        data = {"key" * 20: data}
    error = refused(CODEC.load, {"first": data})
    assert error.path.startswith("$.first.keykey")
    assert len(error.path) == 300


# --- Equal hashes -----------------------------------------------------------------------------------

P = sys.hash_info.modulus
CLASHING: dict[str, list[Any]] = {
    "ints": [n * P for n in range(5000)],
    "Decimals": [{"$": "Decimal", "value": str(n * P)} for n in range(5000)],
    "UUIDs": [{"$": "UUID", "value": str(UUID(int=n * P))} for n in range(5000)],
    "tuples": [{"$": "tuple", "value": [n * P]} for n in range(5000)],
    "records": [{"$": tag(Key), "value": {"n": n}} for n in range(5000)],
    "huge ints": [{"$": "int", "value": hex(n * P << 61 * 50_000)} for n in range(1, 3)],
    "a Decimal and a huge int": [
        {"$": "Decimal", "value": "1"},
        {"$": "int", "value": hex(1 << 61 * 50_000)},
    ],
}


@pytest.mark.parametrize("items", CLASHING.values(), ids=CLASHING)
def test_p4_a_set_or_dict_of_clashing_hashes_is_refused(items: list[Any]) -> None:
    Key.compared = 0
    for cls in ("set", "frozenset"):
        assert "the same hash" in refused(CODEC.load, {"$": cls, "value": items}).problem
    pairs = [[item, 1] for item in items]
    assert "the same hash" in refused(CODEC.load, {"$": "dict", "value": pairs}).problem
    assert Key.compared == 0


def test_p4_clashing_keys_that_an_annotation_makes_of_texts_are_refused() -> None:
    by_id = {str(UUID(int=n * P)): n for n in range(5000)}
    data = {"$": tag(Holder), "value": {"by_id": by_id, "days": []}}
    assert "the same hash" in refused(CODEC.load, data).problem


def test_p4_nested_sets_of_clashing_hashes_are_refused() -> None:
    """Each set is small, but to compare two of them costs the square of what is in them."""

    def nested(depth: int, counter: Iterator[int]) -> Any:
        if not depth:
            return next(counter) * P
        return {"$": "frozenset", "value": [nested(depth - 1, counter) for _ in range(8)]}

    assert "the same hash" in refused(CODEC.load, nested(5, iter(range(10**6)))).problem


def test_p4_what_clashes_in_honest_data_is_written_and_read() -> None:
    grid = {(x, y, z) for x in range(-3, 3) for y in range(-3, 3) for z in range(-3, 3)}
    powers = {1 << n for n in range(2000)}
    mixed = {-1, -2, -1.5, Decimal("-1.25"), frozenset({-1}), frozenset({-2})}
    for value in [grid, powers, mixed, dict.fromkeys(grid, 1), {Key(1), Key(2)}]:
        assert CODEC.load(json.loads(json.dumps(CODEC.dump(value)))) == value


def test_p4_what_could_not_be_read_is_not_written() -> None:
    keys = [n * P for n in range(1100)]
    assert "the same hash" in refused(CODEC.dump, set(keys)).problem
    assert "the same hash" in refused(CODEC.dump, dict.fromkeys(keys, 1)).problem


# --- Values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        {"$": "set", "value": [[]]},
        {"$": "set", "value": [{}]},
        {"$": "dict", "value": [[[], 1]]},
        {"$": "dict", "value": [[1, 2, 3]]},
        {"$": "set", "value": [{"$": "Decimal", "value": "sNaN"}]},
        {"$": "timedelta", "value": "P9999999999D"},
        {"$": "timedelta", "value": f"P{'9' * 5000}D"},
        {"$": "timedelta", "value": f"P{'9' * 3_000_000}D"},
        {"$": "date", "value": "99999-01-01"},
        {"$": "datetime", "value": LONG},
        {"$": "Decimal", "value": f"1E{'9' * 30}"},
        {"$": "Decimal", "value": LONG},
        {"$": "float", "value": "1" * 1_000_000},
        {"$": "complex", "value": "1" * 1_000_000},
        {"$": "UUID", "value": LONG},
        {"$": "bytes", "value": LONG + "!"},
        {"$": "int", "value": LONG + "g"},
        {"$": tag(Bits), "value": HUGE},
        {"$": tag(Bits), "value": {"$": "int", "value": "0x" + "f" * 3_000_000}},
        {"$": "exception", "value": {"type": "UnicodeDecodeError", "text": LONG, "args": [LONG]}},
        {"$": "exception", "value": {"type": LONG, "text": LONG, "args": 5}},
        {"$": tag(Holder), "value": {"by_id": {LONG: 1}, "days": []}},
        {"$": tag(Holder), "value": {"by_id": {}, "days": [LONG]}},
        math.nan,
        math.inf,
        {HUGE: 1},
        sys,
    ],
)
def test_p4_hostile_values_are_refused_in_few_words(data: Any) -> None:
    refused(CODEC.load, data)


def test_p4_large_exponents_are_read_as_what_they_are() -> None:
    assert CODEC.load({"$": "Decimal", "value": "1E+999999"}) == Decimal("1E+999999")
    assert CODEC.load({"$": "float", "value": "1e999"}) == math.inf


def test_p4_an_exception_of_another_type_shows_a_short_text_and_keeps_the_long_one() -> None:
    data = {"$": "exception", "value": {"type": LONG, "text": LONG}}
    error = CODEC.load(data)
    assert isinstance(error, RestoredError)
    assert len(str(error)) == 1000
    assert len(repr(error)) < 1300
    assert (error.type_name, error.text) == (LONG, LONG)
    assert CODEC.dump(error) == data


WRAPS: dict[str, Callable[[Any], Any]] = {
    "list": lambda value: [value],
    "tuple": lambda value: (value,),
    "dict": lambda value: {"a": value},
    "pairs": lambda value: {1: value},
    "frozenset": lambda value: frozenset({value}),
    "event": lambda value: StartEvent(of=value),
    "error": lambda value: ValueError(value),
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
@pytest.mark.parametrize("depth", [200, 20_000])
def test_p4_deep_values_are_refused_on_writing(wrap: Callable[[Any], Any], depth: int) -> None:
    holder = [deep(depth, wrap)]
    if wrap is not WRAPS["error"]:
        assert "nested" in refused(CODEC.dump, holder).problem
    else:  # an exception whose arguments cannot be written comes back as what stands for it
        sent = [OSError(5, "disk"), *holder]
        assert str(CODEC.load(CODEC.dump(sent))[0]) == "[Errno 5] disk"
    while holder:  # taken apart here, not by a destructor that recurses
        value = holder.pop()
        if isinstance(value, list | tuple | frozenset):
            holder += value
        elif isinstance(value, dict):
            holder += value.values()
        elif isinstance(value, StartEvent):
            holder.append(value["of"])


def test_p4_what_contains_itself_is_refused_on_writing() -> None:
    loop: list[Any] = []
    loop += [loop, loop]
    table: dict[Any, Any] = {}
    table[1] = table
    for value in (loop, table, {"a": loop}, StartEvent(of=loop)):
        assert "contains itself" in refused(CODEC.dump, value).problem
    loop.clear()
    table.clear()


def test_p4_an_exception_that_holds_too_much_comes_back_as_what_stands_for_it() -> None:
    holds_itself = ValueError("x")
    holds_itself.args = (holds_itself, [holds_itself])
    for error in (holds_itself, ValueError(deep(70, WRAPS["list"])), ValueError(object())):
        again = CODEC.load(CODEC.dump(error))
        assert isinstance(again, RestoredError)
        assert again.type_name == "ValueError"
    holds_itself.args = ()
    kept = CODEC.load(CODEC.dump(ValueError(LONG)))
    assert type(kept) is ValueError
    assert kept.args == (LONG,)


def test_p4_what_a_class_says_against_its_fields_is_cut() -> None:
    @attrs.define
    class Picky:
        n: int

        def __attrs_post_init__(self) -> None:
            raise ValueError(LONG)

    codec = JsonCodec([Picky])
    refused(codec.load, {"$": tag(Picky), "value": {"n": 1}})


def test_p4_time_overflow_is_no_time() -> None:
    assert CODEC.load({"$": "timedelta", "value": "P999999999D"}) == timedelta(999999999)
