"""The check of an event's values against the annotations of its fields (rule E3)."""

import collections
import datetime
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NewType, Optional, Protocol, TypedDict, Union

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anyio_workflows.events import Event, WorkflowFailedEvent, WorkflowTimedOutEvent

from .event_classes import Box, Color, Found, IntBox, T, fault

# --- E3: what an annotation admits ------------------------------------------------------------


class Movie(TypedDict):
    title: str


class Closeable(Protocol):
    def close(self) -> None: ...


UserId = NewType("UserId", int)
NOW = datetime.datetime(2024, 1, 1)

ADMITTED: list[tuple[Any, list[object], list[object]]] = [
    (int, [1, True, -(10**30)], ["1", 1.0, None, b"1"]),
    (float, [1.0, 1, True, float("nan")], ["1.0", None, 1j]),
    (complex, [1j, 1.0, 1], ["1j", None]),
    (bool, [True, False], [1, 0, "true", None]),
    (str, ["", "x"], [b"x", 1, None, ["x"]]),
    (bytes, [b"x"], ["x", 1]),
    (None, [None], [0, "", False]),
    (object, [1, None, "x"], []),
    (Any, [1, None, object()], []),
    (Optional[int], [1, None], ["1", 1.5]),  # noqa: UP045
    (Union[int, str], [1, "1"], [1.5, None, b"x"]),  # noqa: UP007
    (int | list[str] | None, [1, None, [], ["x"]], [[1], ("x",), "x"]),
    (Literal["a", 1], ["a", 1], ["b", 2, 1.0, True, None]),
    (list, [[], [1, "x"]], [(), "x", {}]),
    (list[str], [[], ["x", "y"]], [["x", 1], ("x",), "x", None]),
    (list[list[int]], [[], [[]], [[1], [2]]], [[1], [["x"]]]),
    (list[Any], [[], [1, None]], [(), "x"]),
    (dict, [{}, {1: 2}], [[], None]),
    (dict[str, int], [{}, {"a": 1}], [{"a": "b"}, {1: 1}, []]),
    (dict[str, list[int]], [{"a": [1]}], [{"a": ["1"]}, {"a": 1}]),
    (Mapping[str, int], [{"a": 1}, types.MappingProxyType({})], [{"a": "b"}, []]),
    (set[int], [set(), {1}], [{"x"}, [1], frozenset({1})]),
    (frozenset[int], [frozenset({1})], [{1}, frozenset({"x"})]),
    (tuple, [(), (1, "x")], [[], "x"]),
    (tuple[int, str], [(1, "x")], [(1,), (1, 2), ("x", 1), [1, "x"], (1, "x", 2)]),
    (tuple[int, ...], [(), (1,), (1, 2, 3)], [(1, "x"), [1]]),
    (tuple[()], [()], [(1,), []]),
    (Sequence[int], [[1], (1, 2), range(3)], [["x"], {1}, 1]),
    (type, [int, Event], [1, "int"]),
    (Color, [Color.RED], ["red", "RED", 1]),
    (UserId, [1], ["1", None]),
    (list[UserId], [[1]], [["1"]]),
    (Annotated[int, "positive"], [1], ["1"]),
    (list[Annotated[str, "word"]], [["x"]], [[1]]),
    (Movie, [{"title": "x"}], ["x", [("title", "x")]]),
    (datetime.datetime, [NOW], ["2024-01-01", NOW.date(), 0]),
    (datetime.date, [NOW.date(), NOW], ["2024-01-01"]),
    (Path, [Path("x")], ["x"]),
    (Event, [Event(), Found(url="u")], [Found, {}]),
    (list[Event], [[Found(url="u")]], [[Found]]),
    (Box[int], [Box(content=1), IntBox(content=1)], [1, Event()]),
    (BaseException, [ValueError("x"), KeyboardInterrupt()], [ValueError, "x"]),
    (collections.deque[int], [collections.deque([1])], [[1]]),
]


@pytest.mark.parametrize(
    ("annotation", "good", "bad"), ADMITTED, ids=[str(row[0]) for row in ADMITTED]
)
def test_e3_an_annotation_admits_what_type_checkers_admit(
    annotation: Any, good: list[object], bad: list[object]
):
    cls = types.new_class(
        "Probe", (Event,), exec_body=lambda ns: ns.update(__annotations__={"x": annotation})
    )
    for value in good:
        assert cls(x=value)["x"] is value
    for value in bad:
        exc = fault(lambda value=value: cls(x=value))
        assert (exc.event, exc.field) == ("Probe", "x")
        assert f"({type(value).__qualname__})" in exc.problem


@pytest.mark.parametrize(
    "annotation",
    [Callable[[int], str], Closeable, T, type[int], Literal, "NoSuchName", list["NoSuchName"]],  # noqa: F821
    ids=str,
)
def test_e3_what_cannot_be_checked_cheaply_is_let_through(annotation: Any):
    cls = types.new_class(
        "Probe", (Event,), exec_body=lambda ns: ns.update(__annotations__={"x": annotation})
    )
    assert cls(x=str)["x"] is str


def test_e3_the_message_names_event_field_expected_and_got():
    exc = fault(lambda: Found(url=5))
    assert str(exc) == "Found.url: expected str, got 5 (int)"
    exc = fault(lambda: Found(url="u", tags=["x", 1]))
    assert str(exc) == "Found.tags: expected list[str], got ['x', 1] (list)"


def test_e3_long_values_are_cut_in_the_message():
    exc = fault(lambda: Found(url=list(range(1000))))
    assert len(str(exc)) < 120
    assert "..." in str(exc)


def test_e3_a_value_whose_repr_raises_still_gives_the_error():
    class Rude:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    assert fault(lambda: Found(url=Rude())).field == "url"


def test_e3_the_terminal_events_are_checked_too():
    assert WorkflowTimedOutEvent(timeout=3, active_steps=["a"]).result is None
    assert fault(lambda: WorkflowTimedOutEvent(timeout="3", active_steps=[])).field == "timeout"
    error = ValueError("x")
    event = WorkflowFailedEvent(step_name="s", exception=error)
    assert (event.exception, event.attempts, event.elapsed_seconds) == (error, None, None)


Check = Callable[[Any], bool]


def _is_int(value: object) -> bool:
    return isinstance(value, int)


leaf_annotations: st.SearchStrategy[tuple[Any, Check]] = st.sampled_from(
    [
        (int, _is_int),
        (str, lambda v: isinstance(v, str)),
        (bool, lambda v: v is True or v is False),
        (float, lambda v: isinstance(v, float | int)),
        (None, lambda v: v is None),
        (Any, lambda v: True),
        (Color, lambda v: v in list(Color)),
        (UserId, _is_int),
        (Literal["a", 1], lambda v: (type(v), v) in [(str, "a"), (int, 1)]),
    ]
)


def _compound(inner: st.SearchStrategy[tuple[Any, Check]]) -> st.SearchStrategy[tuple[Any, Check]]:
    def list_of(item: tuple[Any, Check]) -> tuple[Any, Check]:
        kind, check = item
        return list[kind], lambda v: isinstance(v, list) and all(map(check, v))

    def dict_of(item: tuple[Any, Check]) -> tuple[Any, Check]:
        kind, check = item
        return (
            dict[str, kind],
            lambda v: (
                isinstance(v, dict)
                and all(isinstance(key, str) and check(val) for key, val in v.items())
            ),
        )

    def tuple_of(items: list[tuple[Any, Check]]) -> tuple[Any, Check]:
        kinds, checks = [kind for kind, _ in items], [check for _, check in items]
        return (
            tuple[(*kinds,)],
            lambda v: (
                isinstance(v, tuple)
                and len(v) == len(checks)
                and all(check(part) for check, part in zip(checks, v, strict=True))
            ),
        )

    def union_of(items: list[tuple[Any, Check]]) -> tuple[Any, Check]:
        checks = [check for _, check in items]
        return Union[tuple(kind for kind, _ in items)], lambda v: any(c(v) for c in checks)  # noqa: UP007

    some = st.lists(inner, min_size=1, max_size=3)
    return inner.map(list_of) | inner.map(dict_of) | some.map(tuple_of) | some.map(union_of)


annotations = st.recursive(leaf_annotations, _compound, max_leaves=4)
atoms = st.sampled_from([0, 1, True, "a", "b", 1.5, None, Color.RED, b"x"])
values = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.sampled_from(["k", "l", 3]), inner, max_size=2)
    ),
    max_leaves=4,
)


@given(annotations, st.lists(values, min_size=1, max_size=5))
def test_e3_property_a_value_is_accepted_exactly_if_the_oracle_says_so(
    drawn: tuple[Any, Check], candidates: list[Any]
):
    annotation, admits = drawn
    cls = types.new_class(
        "Probe", (Event,), exec_body=lambda ns: ns.update(__annotations__={"x": annotation})
    )
    for value in candidates:
        if admits(value):
            assert cls(x=value)["x"] is value
        else:
            fault(lambda value=value: cls(x=value))


@pytest.mark.skipif(sys.version_info < (3, 12), reason="`type X = ...` is new in Python 3.12")
def test_e3_an_alias_may_contain_itself():
    names: dict[str, Any] = {}
    exec(
        "type Tree = dict[str, Tree] | list[Tree] | int\ntype One = Two | None\ntype Two = list[One]",
        names,
    )

    class Recursive(Event):
        tree: names["Tree"]  # type: ignore[name-defined]  # noqa: F821
        one: names["One"] = None  # type: ignore[name-defined]  # noqa: F821

    event = Recursive(tree={"a": [1, {"b": 2}]}, one=[None, [None]])
    assert event.tree == {"a": [1, {"b": 2}]}
    assert "expected Tree, got" in str(fault(lambda: Recursive(tree={"a": ["2"]})))
    assert "expected One, got [[3]]" in str(fault(lambda: Recursive(tree=1, one=[[3]])))
