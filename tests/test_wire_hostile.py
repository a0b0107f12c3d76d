"""Whatever is in an event, `to_data()` writes it: bounded, and for every reader of JSON (E7)."""

from __future__ import annotations

import inspect
import json
import sys
import threading
from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from enum import Enum, IntFlag
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_workflows import Event, StartEvent, StopEvent, WorkflowFailedEvent
from anyio_workflows._json.codec import JsonCodec, RestoredError
from anyio_workflows._json.lenient import LONGEST_REPR, MOST_REPEATED
from anyio_workflows.errors import ContextSerdeError
from anyio_workflows.wire import from_data, to_data

from .hostile import HUGE, LONG, deep


class Fault(Exception):
    """What the methods below raise."""


def fail(*args: object) -> Any:
    raise Fault(LONG)


BROKEN = {
    "repr": type("Broken", (), {"__repr__": fail}),
    "long repr": type("Broken", (), {"__repr__": lambda self: LONG}),
    "no text": type("Broken", (), {"__repr__": lambda self: 5}),
    "eq": type("Broken", (), {"__eq__": fail, "__hash__": lambda self: hash("$")}),
    "hash": type("Broken", (), {"__hash__": fail}),
    "getattr": type("Broken", (), {"__getattr__": fail, "__getattribute__": fail}),
    "class": type("Broken", (), {"__class__": property(fail)}),
    "false class": type("Broken", (), {"__class__": property(lambda self: ValueError)}),
    "len": type("Broken", (list,), {"__len__": fail, "__iter__": fail, "__getitem__": fail}),
    "items": type("Broken", (dict,), {"items": fail, "__iter__": fail, "keys": fail, "copy": fail}),
    "int": type("Broken", (int,), {"__int__": fail, "__index__": fail, "bit_length": fail}),
    "text": type("Broken", (str,), {"__str__": fail, "__hash__": fail, "__eq__": fail}),
    "endless": type("list", (), {"__len__": lambda self: 10**9, "__iter__": fail}),
}


# Its classes have no hash and no name.
META: Any = type(
    "Meta",
    (type,),
    {"__hash__": None, "__eq__": fail, "__name__": property(fail), "__module__": property(fail)},
)
BROKEN["metaclass"] = META("Broken", (), {})


class OwnError(Exception):
    def __str__(self) -> str:
        return fail()


class OtherError(Exception):
    args = property(fail)  # type: ignore[assignment]


class Big(Enum):
    BIG = 10**5000
    ODD = object


class Bits(IntFlag):
    ONE = 1


@attrs.define
class Record:
    a: Any = None
    b: Any = None


@dataclass
class Data:
    a: Any = None

    @property
    def late(self) -> int:
        return fail()


class Asked(Event):
    n: Any = None
    more: Any = None


class Lazy(Event):
    n: Any = None
    late: Any = attrs.field(init=False)


@attrs.define
class Property:
    value: int = 0

    def __getattribute__(self, name: str) -> Any:
        return fail() if name == "value" else super().__getattribute__(name)


def written(value: Any) -> Any:
    """Return the data of a value in an event, of which every reader of JSON takes the whole."""
    data = to_data(StopEvent(value))
    assert plain(data)
    assert data.keys() == {"result"}
    return json.loads(json.dumps(data, allow_nan=False))["result"]


def plain(data: Any) -> bool:
    """Return whether data consists of nothing but JSON's own types, within the bounds."""
    ahead = [(data, 0)]
    while ahead:
        part, depth = ahead.pop()
        assert depth <= 101
        assert type(part) in (dict, list, str, int, float, bool, type(None))
        if type(part) is dict:
            assert all(type(key) is str for key in part)
            if "$repr" in part and "$" not in part:
                assert len(part["$repr"]) <= LONGEST_REPR
            ahead += [(each, depth + 1) for each in part.values()]
        elif type(part) is list:
            ahead += [(each, depth + 1) for each in part]
    return True


# --- Values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BROKEN)
def test_e7_a_broken_value_costs_only_its_place(name: str):
    def make() -> Any:
        return BROKEN[name]()

    first, broken, last = written([1, make(), 2])
    assert (first, last) == (1, 2)
    if name in ("int", "text"):
        assert broken == (0 if name == "int" else "")
    else:
        assert broken.keys() in ({"$repr"}, {"$", "value"})
    assert written(Record(1, make()))["value"]["a"] == 1
    assert written({"a": 1, "b": make()})["a"] == 1
    pairs = written({1: make(), 2: 3})["value"]
    assert pairs[1] == [2, 3]
    error = written(ValueError(make()))
    assert error["value"]["type"] == "ValueError"
    assert to_data(StartEvent(x=make(), y=1))["y"] == 1


@pytest.mark.parametrize("name", ["eq", "repr", "class", "long repr"])
def test_e7_a_broken_key_costs_only_its_place(name: str):
    key = BROKEN[name]()
    pairs = written({key: 1, "a": 2})["value"]
    assert pairs[0][0].keys() == {"$repr"}
    assert pairs[0][1] == 1
    assert pairs[1] == ["a", 2]
    assert written({key})["value"][0].keys() == {"$repr"}


def test_e7_a_broken_field_costs_only_its_place():
    assert written([Property()])[0]["value"] == {"value": {"$repr": "<not readable: Fault>"}}
    unset = Asked(n=1)
    del vars(unset)["more"]
    assert to_data(unset) == {"n": 1}


def test_e7_broken_exceptions_are_written():
    assert written(OwnError(1))["value"]["text"] == "(it has no text)"
    assert written(OtherError(1))["value"]["text"] == "(it has no text)"
    error = ValueError(1)
    error.__notes__ = 5  # type: ignore[assignment]
    assert written([error, 1]) == [written(ValueError(1)), 1]
    restored = RestoredError("a.Error", "text")
    restored.text = object()  # type: ignore[assignment]
    assert written([restored, 1]) == [{"$repr": "<RestoredError: ContextSerdeError>"}, 1]
    event = WorkflowFailedEvent(step_name="a", exception=OwnError(threading.Lock()))
    assert to_data(event)["exception"]["value"]["type"] == "tests.test_wire_hostile.OwnError"


@pytest.mark.parametrize(
    ("value", "data"),
    [
        ("\ud800", "\ud800"),
        (float("nan"), {"$": "float", "value": "nan"}),
        (-float("inf"), {"$": "float", "value": "-inf"}),
        (HUGE, {"$": "int", "value": hex(HUGE)}),
        (Big.BIG, {"$": "tests.test_wire_hostile:Big", "value": "BIG"}),
        (Bits(1 << 5000 | 1), None),
        ({1: 2, "1": 3}, {"$": "dict", "value": [[1, 2], ["1", 3]]}),
        ({"$": 1}, {"$": "dict", "value": [["$", 1]]}),
        (LONG, LONG),
        (Decimal("sNaN"), {"$": "Decimal", "value": "sNaN"}),
        (1j, {"$": "complex", "value": "1j"}),
    ],
    ids=range(11),
)
def test_e7_odd_values_are_written_for_every_reader(value: Any, data: Any):
    assert written(value) == data or data is None
    assert written([value])[0] == written(value)


def test_e7_keys_that_are_no_texts_are_written():
    event = attrs.evolve(StartEvent(), _extra={1: 2, "a": 3})
    assert to_data(event) == {"1": 2, "a": 3}


def test_e7_an_event_without_its_parts_is_written():
    event = StartEvent()
    object.__setattr__(event, "_extra", 5)
    assert to_data(event) == {"$repr": "<StartEvent: AttributeError>"}
    assert to_data(event, tagged=True) == to_data(event)
    empty = StopEvent.__new__(StopEvent)
    assert to_data(empty) == {}


def test_e7_many_values_with_one_hash_are_written_without_comparing_them():
    items = {n * sys.hash_info.modulus for n in range(2000)}
    assert len(written(items)["value"]) == 2000


# --- Depth and size -------------------------------------------------------------------------------

WRAPS: dict[str, Callable[[Any], Any]] = {
    "list": lambda value: [value],
    "tuple": lambda value: (value,),
    "dict": lambda value: {"a": value},
    "pairs": lambda value: {1: value},
    "frozenset": lambda value: frozenset({value}),
    "record": lambda value: Record(value),
    "event": lambda value: StartEvent(of=value),
    "error": lambda value: ValueError(value),
    "subclass": lambda value: OrderedDict(a=value),
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
@pytest.mark.parametrize("depth", [35, 60, 101, 500, 20_000])
def test_e7_deep_values_end_where_nothing_would_read_them(wrap: Callable[[Any], Any], depth: int):
    holder = [deep(depth, wrap)]
    assert written(holder)
    while holder:  # taken apart here, not by a destructor that recurses
        value = holder.pop()
        if isinstance(value, list | tuple | frozenset):
            holder += value
        elif isinstance(value, dict):
            holder += value.values()
        elif isinstance(value, ValueError):
            holder += value.args
            value.args = ()
        elif isinstance(value, StartEvent):
            holder.append(value["of"])
        elif isinstance(value, Record):
            holder.append(value.a)


def test_e7_the_text_says_what_is_nested_too_deeply():
    data = json.dumps(written(deep(200, WRAPS["list"])))
    assert data.strip("[]") == '{"$repr": "<nested too deeply>"}'


def test_e7_the_deepest_place_has_a_text_of_its_own():
    lock = threading.Lock()
    data = json.dumps(written(deep(99, lambda value: [lock if value == 1 else value])))
    assert data.strip("[]") == json.dumps({"$repr": repr(lock)})


def test_e7_little_stack_is_enough():
    event = StopEvent([1, deep(40, WRAPS["record"]), 2])
    assert plain(to_data(event))
    limit = sys.getrecursionlimit()
    frames = len(inspect.stack(0))
    texts = set()
    try:
        for more in range(60, 250, 7):
            sys.setrecursionlimit(frames + more)
            text = str(to_data(event))
            sys.setrecursionlimit(limit)
            texts.add(text)
    finally:
        sys.setrecursionlimit(limit)
    assert len(texts) > 5
    assert any("'$repr': '<Record: nested too deeply>'" in text for text in texts)


def test_e7_what_contains_itself_ends():
    loop: list[Any] = []
    loop += [loop, loop]
    table: dict[Any, Any] = {}
    table[1] = table["a"] = table
    record = Record()
    record.a = record.b = [record]
    error = ValueError("x")
    error.args = (error, [error])
    for value in (loop, table, record, error, {"a": loop}, StartEvent(of=loop)):
        assert len(json.dumps(written(value))) < 10_000_000
    loop.clear()
    table.clear()
    record.a = record.b = None
    error.args = ()


SHARES: dict[str, Callable[[Any], Any]] = {
    "list": lambda part: [part, part],
    "tuple": lambda part: (part, part),
    "dict": lambda part: {"a": part, "b": part},
    "pairs": lambda part: {1: part, 2: part},
    "record": lambda part: Record(part, part),
    "data": lambda part: Data([part, part]),
    "event": lambda part: StartEvent(a=part, b=part),
    "error": lambda part: ValueError(part, part),
    "own error": lambda part: OSError(part, part),
    "subclass": lambda part: OrderedDict(a=part, b=part),
    "defaults": lambda part: defaultdict(list, a=part, b=part),
    "named": lambda part: namedtuple("Pair", "a b")(part, part),  # noqa: PYI024
}


AROUND = {"bare": lambda value: value, "in an error": lambda value: ValueError(value)}


@pytest.mark.parametrize("share", SHARES.values(), ids=SHARES)
@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
def test_e7_shared_parts_are_written_so_often_and_no_more(share: Any, around: Any):
    """Written in full, they would have 2**60 parts."""
    value: Any = [1]
    for _ in range(60):
        value = share(value)
    data = written(around(value))
    size, ahead = 0, [data]
    while ahead:
        part = ahead.pop()
        size += 1
        ahead += part.values() if type(part) is dict else part if type(part) is list else ()
    assert size < 10 * MOST_REPEATED


def test_e7_shared_parts_within_the_bound_are_written_in_full():
    part = [1, 2]
    assert written([part] * 30_000) == [part] * 30_000
    cut = written([part] * 50_000)
    assert cut[0] == part
    assert cut[-1] == {"$repr": "<list: repeated too often>"}
    text = "a" * 100_000
    assert written([text] * 200)[-1] == {"$repr": "<str: repeated too often>"}
    assert written([text[:500]] * 5_000) == [text[:500]] * 5_000
    assert written([b"a" * 100_000] * 200)[-1] == {"$repr": "<bytes: repeated too often>"}


def test_e7_the_parts_of_large_values_are_no_repetition():
    many = [[n, str(n)] for n in range(60_000)]
    assert written(many) == many


def test_e7_foreign_containers_have_a_short_repr():
    for value in (
        deque([LONG] * 10),
        SimpleNamespace(a=LONG),
        iter([]),
        object(),
        threading.Lock(),
        len,
    ):
        assert written(value).keys() == {"$repr"}


# --- Anything -------------------------------------------------------------------------------------

ODD = [HUGE, "$", "$repr", "\ud800", Big.BIG, Big.ODD, Bits(3), date, len]
ATOMS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(st.characters(), max_size=20),
    st.binary(max_size=20),
    st.dates(),
    st.decimals(),
    st.sampled_from(range(9)).map(lambda n: ODD[n]),  # Hypothesis would show them with `repr()`
    st.builds(object),
)
# Hypothesis itself asks for the class of what it draws.
HOSTILE = st.sampled_from(sorted({*BROKEN} - {"class", "getattr", "metaclass"})).map(
    lambda name: BROKEN[name]()
)
KEYS = st.one_of(
    st.text(max_size=5), st.sampled_from(["$", "value", "$repr"]), st.integers(), st.builds(object)
)


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    few = st.lists(inner, max_size=4)
    return st.one_of(
        few,
        few.map(tuple),
        few.map(deque),
        few.map(lambda items: [items, items]),
        few.map(lambda items: ValueError(*items)),
        few.map(lambda items: OrderedDict(enumerate(items))),
        few.map(lambda items: type("Sub", (list,), {})(items)),
        few.map(
            lambda items: ExceptionGroup("g", [OwnError(item) for item in items] or [KeyError()])
        ),
        st.dictionaries(KEYS, inner, max_size=4),
        st.builds(Record, inner, inner),
        st.builds(Data, inner),
        st.builds(lambda value: StartEvent(of=value), inner),
        st.builds(lambda value: Lazy(n=value), inner),
    )


ANYTHING = st.recursive(ATOMS | HOSTILE, containers, max_leaves=30)


@given(ANYTHING)
@settings(max_examples=300)
def test_e7_any_event_is_written(value: Any):
    written(value)
    for event in (StopEvent(value), StartEvent(a=value), Lazy(n=value)):
        data = to_data(event, tagged=True)
        assert plain(data)
        assert json.dumps(data, allow_nan=False)
        assert data["value"] == to_data(event) or data != data


@given(ANYTHING)
def test_e7_what_is_written_is_read_or_refused(value: Any):
    data = to_data(StopEvent(value), tagged=True)
    try:
        event = from_data(data, [StopEvent, StartEvent, Lazy])
    except ContextSerdeError as error:
        text = str(error)
    else:
        text = ""
        assert type(event) is StopEvent
    assert len(text) <= 1000


class Known(Event):
    """Knows all types that `ANYTHING` has."""

    value: Any
    mentions: StartEvent | StopEvent | Lazy | Record | Data | Big | Bits | None = None


STRICT = JsonCodec([Known])


@given(st.recursive(ATOMS, containers, max_leaves=30))
@settings(max_examples=300)
def test_e7_what_a_snapshot_takes_is_written_in_the_same_way(value: Any):
    event = Known(value=value)
    try:
        expected = json.dumps(STRICT.dump(event), allow_nan=False)
    except Exception:  # broken methods are not caught there
        return
    data = to_data(event, tagged=True)
    assert json.dumps(data) == expected
    assert type(from_data(json.loads(expected), Known)) is Known


def test_e7_a_dict_that_changes_meanwhile_costs_only_its_place():
    table: dict[Any, Any] = {}

    class Changing:
        def __repr__(self) -> str:
            table[len(table)] = 1
            return "changing"

    table.update({"a": 1, "b": Changing(), "c": 2})
    assert written([1, table])[0] == 1


@dataclass
class Late:
    held: Any = field(default=None, init=False)


def test_e7_what_is_not_written_counts_for_the_text_of_an_exception():
    late = Late()
    late.held = deep(20, lambda part: [part, part])
    error = written(ValueError(late))["value"]
    assert error == {"type": "ValueError", "text": "(it has too many arguments)"}
