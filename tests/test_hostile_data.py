"""Hostile snapshots: a `ContextSerdeError` with a short text, and no more than linear time (P4).

Time is not measured: comparisons are counted, and what would take quadratic time is so large here
that it would not end.
"""

from __future__ import annotations

import copy
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from enum import IntFlag
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID

import anyio
import attrs
import pytest

from anyio_workflows import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)
from anyio_workflows._json.codec import JsonCodec, RestoredError
from anyio_workflows._messages import nearest, short_repr, shortened
from anyio_workflows.checkpoint import load_checkpoint, run_with_checkpoints
from anyio_workflows.errors import ContextSerdeError

pytestmark = pytest.mark.anyio

LONG = "a" * 3_000_000
HUGE = 16**6000
HUGE_TEXT = {"$": "int", "value": hex(HUGE)}


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


class Page(Event):
    n: int = 0


class Ask(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> Page:
        return Page(n=1)

    @step
    async def ask(self, ctx: Context, ev: Page) -> StopEvent:
        await ctx.wait_for_event(HumanResponseEvent, InputRequiredEvent())
        return StopEvent()


class Done(Event):
    pass


class Fan(Workflow):
    @step
    async def split(self, ev: StartEvent) -> list[Page]:
        return [Page()]

    @step
    async def work(self, ev: Page) -> Done:
        await anyio.sleep(10)
        return Done()

    @step
    async def end(self, evs: list[Done]) -> StopEvent:
        return StopEvent(result=len(evs))


CODEC = JsonCodec([Key, Bits, Holder, Page, StartEvent])


def tag(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def refused(act: Callable[..., object], *args: Any) -> ContextSerdeError:
    with pytest.raises(ContextSerdeError) as caught:
        act(*args)
    error = caught.value
    assert len(str(error)) <= 1000
    assert len(repr(error)) <= 1100
    return error


async def snapshot() -> dict[str, Any]:
    handler = Ask().run()
    await anext(handler.stream_events())
    data: dict[str, Any] = json.loads(json.dumps(handler.ctx.to_dict()))
    await handler.cancel_run()
    return data


def put(data: Any, path: tuple[str | int, ...], value: Any) -> Any:
    """Return a copy of some data with another value in one place."""
    data = place = copy.deepcopy(data)
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return data


WORK = ("work", "work", 0)
INTS = [10**400, -(10**400), HUGE, -HUGE, 2**53 + 1]


@pytest.mark.parametrize("number", INTS, ids=lambda number: f"{number.bit_length()}-bits")
@pytest.mark.parametrize(
    "path",
    [
        ("version",),
        ("work", "next_id"),
        (*WORK, "id"),
        (*WORK, "branch"),
        (*WORK, "attempt"),
        (*WORK, "elapsed"),
        (*WORK, "due_in"),
        (*WORK, "events"),
        (*WORK, "recoveries"),
    ],
    ids=lambda path: path[-1],
)
async def test_p4_integers_of_any_size_are_refused_where_they_make_no_sense(
    path: tuple[str | int, ...], number: int
) -> None:
    good = await snapshot()
    value: Any = {"ask": number} if path[-1] == "recoveries" else number
    data = put(good, path, value)
    if number == 2**53 + 1 and path[-1] in ("elapsed", "due_in"):
        Context.from_dict(Ask(), data)  # a long time, but one
        return
    error = refused(Context.from_dict, Ask(), data)
    assert str(path[-1]) in error.path
    tagged = {"$": "int", "value": hex(number)}
    value = {"ask": tagged} if path[-1] == "recoveries" else tagged
    refused(Context.from_dict, Ask(), put(good, path, value))


PLACES: list[tuple[tuple[str | int, ...], Any]] = [
    (("version",), LONG),
    (("version",), [LONG]),
    (("workflow",), [LONG]),
    (("state",), LONG),
    ((LONG,), 1),
    ((*WORK, "step"), LONG),
    ((*WORK, "step"), {LONG: 1}),
    ((*WORK, LONG), 1),
    ((*WORK, "recoveries"), {LONG: 1}),
    ((*WORK, "recoveries"), {"ask": LONG}),
    ((*WORK, "last_failed_at"), LONG),
    ((*WORK, "events", 0, "$"), LONG),
    ((*WORK, "events", 0, "value"), {LONG: 1}),
    ((*WORK, "events", 0, "value", "n"), LONG),
    ((*WORK, "waits", 0, "event_type"), {"$": "type", "value": LONG}),
    ((*WORK, "waits", 0, "event_type"), {"$": LONG, "value": 1}),
    (("work", "batches"), [LONG]),
    (("work", "sets"), [{"step": LONG, "queues": []}]),
    (("work", "buffers"), [{"step": LONG, "buffer_id": LONG, "expected": [], "kept": []}]),
]


@pytest.mark.parametrize(
    ("path", "value"), PLACES, ids=[f"{n}-{str(p[0][-1])[:20]}" for n, p in enumerate(PLACES)]
)
async def test_p4_long_texts_anywhere_are_refused_in_few_words(
    path: tuple[str | int, ...], value: Any
) -> None:
    refused(Context.from_dict, Ask(), put(await snapshot(), path, value))


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
    ids=lambda data: short_repr(data)[:30],
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


def deep(depth: int, wrap: Callable[[Any], Any]) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = wrap(value)
    return value


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


async def test_p4_a_value_that_cannot_be_written_is_named_in_few_words() -> None:
    ctx = Context(Ask())
    for value in [
        {LONG: object()},
        [HUGE, object()],
        {"a": {HUGE: object()}},
        deep(300, lambda v: [v]),
    ]:
        await ctx.store.set("it", value)
        assert refused(ctx.to_dict).path.startswith("$")


async def test_p4_batches_may_be_nested_at_any_depth() -> None:
    handler = Fan(timeout=None).run()
    await anyio.sleep(1)
    data = handler.ctx.to_dict()
    await handler.cancel_run()
    (batch,) = data["work"]["batches"]
    outer, depth = batch["branches"], 3000
    data["work"]["batches"] = [
        {**batch, "outer": n - 1 if n else None, "branches": [{**outer[0], "id": n}]}
        for n in range(depth)
    ]
    data["work"]["work"][0]["branch"] = depth - 1
    workflow = Fan(timeout=None)
    ctx = Context.from_dict(workflow, json.loads(json.dumps(data)))
    assert ctx.to_dict() == data
    handler = workflow.run(ctx=ctx)
    await anyio.sleep(1)
    assert len(handler.ctx.to_dict()["work"]["batches"]) == depth
    assert await handler == 1


# --- The words --------------------------------------------------------------------------------------


def test_p4_hints_compare_nothing_long_and_list_no_multitude() -> None:
    assert nearest(LONG, ["first", "second"]) == "known: first, second"
    assert nearest("frist", ["first", LONG]) == "did you mean 'first'?"
    assert len(nearest("x", (f"name{n}" for n in range(100_000)))) < 1000
    assert nearest("x", [LONG]) == "there are none"


def test_p4_a_short_text_of_anything() -> None:
    class Talks:
        def __repr__(self) -> str:
            return LONG

    class Fails:
        def __repr__(self) -> str:
            raise RecursionError

    for value in [
        HUGE,
        -HUGE,
        LONG,
        [HUGE] * 1000,
        {LONG: HUGE},
        {HUGE},
        Talks(),
        Fails(),
        b"x" * 10**6,
    ]:
        assert len(short_repr(value)) < 600
    assert short_repr(HUGE) == "<int of 24001 bits>"
    assert short_repr(12) == "12"
    assert shortened("abcdefghijkl", 9) == "abc...jkl"


# --- Files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"version": 1, "wor',
        b'{"version": 1, "workflow": "\xff\xfe"}',
        b'\xef\xbb\xbf{"version": 1}',
        b"[" * 200_000,
        b'{"state":' * 200_000,
        b'{"version": ' + b"9" * 5000 + b"}",
        b'{"version": 1e999}',
        b'{"version": 1, "state": null, "work": null}',
        b'{"version": 1, "workflow": "x", "state": {"' + b"a" * 10**6 + b'": NaN}, "work": null}',
        b"\x00" * 1000,
    ],
    ids=lambda content: f"{content[:20]!r}",
)
async def test_p4_whatever_is_in_a_file_the_error_names_it(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "job.json"
    file.write_bytes(content)
    for call in (load_checkpoint, run_with_checkpoints):
        with pytest.raises(ContextSerdeError, match=r"job\.json") as caught:
            await call(Ask(), file)  # type: ignore[operator]
        assert len(str(caught.value)) <= 1000
        assert file.read_bytes() == content


def test_p4_time_overflow_is_no_time(tmp_path: Path) -> None:
    assert CODEC.load({"$": "timedelta", "value": "P999999999D"}) == timedelta(999999999)
