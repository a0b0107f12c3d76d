"""Collect buffers, sets and batches of the ledger (rules F4, F6, X4)."""

from __future__ import annotations

from functools import reduce
from itertools import permutations
from operator import or_
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_workflows import Event, Workflow, step
from anyio_workflows._ledger.fanin import Buffered, Buffers, ParamBuffers
from anyio_workflows._ledger.ledger import Ledger
from anyio_workflows._ledger.work import Work
from anyio_workflows.collect import All

from .ledger_graphs import (
    Apple,
    Berry,
    Bowl,
    Box,
    Braeburn,
    Sealed,
    Slice,
    Stone,
    one_at_a_time,
    routed,
    start_next,
)

# --- Collect buffers (F6) ---------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(
            st.sampled_from([("one", None), ("one", "x"), ("two", None)]),
            st.sampled_from([Apple, Stone]),
            st.sampled_from([[Apple], [Apple, Stone], [Stone, Apple, Apple], [Braeburn], []]),
        ),
        min_size=6,
    )
)
def test_f6_a_buffer_gives_the_oldest_events_that_are_expected(drawn: Any) -> None:
    buffers = Buffers()
    kept: dict[Any, list[Event]] = {}
    for key, event_type, expected in drawn:
        event = event_type()
        found = buffers.add(*key, Buffered(event, {}), expected)
        if not expected:
            assert found == []
            continue
        mine = kept.setdefault(key, [])
        mine.append(event)
        by_type = {t: [e for e in mine if type(e) is t] for t in expected}
        if any(expected.count(t) > len(events) for t, events in by_type.items()):
            assert found is None
            continue
        assert found is not None
        wanted = [by_type[t].pop(0) for t in expected]
        assert [id(one.event) for one in found] == list(map(id, wanted))
        kept[key] = [e for e in mine if all(e is not taken for taken in wanted)]


def test_f6_what_is_left_over_stays_for_the_next_round() -> None:
    buffers = Buffers()
    first, second, third = Apple(), Apple(), Apple()
    for event in (first, second, third):
        assert buffers.add("one", None, Buffered(event, {}), [Stone, Apple]) is None
    for apple in (first, second, third):
        stone = Stone()
        found = buffers.add("one", None, Buffered(stone, {}), [Stone, Apple])
        assert found is not None
        assert [id(one.event) for one in found] == [id(stone), id(apple)]
    assert buffers.add("one", None, Buffered(Stone(), {}), [Stone, Apple]) is None


def test_f6_what_a_buffer_lacks() -> None:
    buffers = Buffers()
    assert list(buffers.missing()) == []
    buffers.add("one", None, Buffered(Apple(), {}), [Apple, Stone, Apple])
    buffers.add("two", "x", Buffered(Stone(), {}), [Stone])
    assert list(buffers.missing()) == [("one", "Apple, Stone")]


def test_f6_a_buffer_with_surplus_only_lacks_nothing() -> None:
    buffers = Buffers()
    buffers.add("one", None, Buffered(Apple(), {}), [Apple, Apple])
    buffers.add("one", None, Buffered(Apple(), {}), [Apple])
    assert list(buffers.missing()) == []


FRUITS: list[type[Event]] = [Apple, Braeburn, Stone]


@attrs.frozen
class Call:
    """One call of `collect_events`, as drawn."""

    step: str
    buffer_id: str | None
    fruit: type[Event]
    expected: list[type[Event]]


CALLS = st.builds(
    Call,
    st.sampled_from(["one", "two"]),
    st.sampled_from([None, "", "x"]),
    st.sampled_from(FRUITS),
    st.lists(st.sampled_from(FRUITS), max_size=4),
)


def collect_naively(kept: list[Event], event: Event, expected: list[type[Event]]) -> Any:
    """Take the oldest event of each expected type out of `kept`, or nothing."""
    if not expected:
        return []
    kept.append(event)
    left, found = list(kept), []
    for cls in expected:
        oldest = next((position for position, e in enumerate(left) if type(e) is cls), None)
        if oldest is None:
            return None
        found.append(left.pop(oldest))
    kept[:] = left
    return found


def what_lacks(events: list[Event], expected: list[type[Event]]) -> list[type[Event]]:
    """Return the expected types, equal ones together, less those of the events."""
    lacking = sorted(expected, key=expected.index)
    for event in events:
        if type(event) in lacking:
            lacking.remove(type(event))
    return lacking


@settings(max_examples=300)
@given(st.lists(CALLS, max_size=40))
def test_f6_buffers_do_what_the_naive_model_does(calls: list[Call]) -> None:
    buffers = Buffers()
    kept: dict[tuple[str, str | None], list[Event]] = {}
    wanted: dict[tuple[str, str | None], list[type[Event]]] = {}
    for n, call in enumerate(calls):
        event = call.fruit(n=n)
        found = buffers.add(call.step, call.buffer_id, Buffered(event, {}), list(call.expected))
        key = call.step, call.buffer_id
        mine = kept.setdefault(key, [])
        events = None if found is None else [one.event for one in found]
        assert events == collect_naively(mine, event, call.expected)
        wanted[key] = call.expected or wanted.get(key, [])
    assert sorted(buffers.missing()) == sorted(
        (key[0], ", ".join(cls.__name__ for cls in lacking))
        for key, events in kept.items()
        if events and (lacking := what_lacks(events, wanted[key]))
    )


# --- ParamBuffers (F4) --------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([Apple, Stone]), max_size=20))
def test_f4_sets_are_full_in_order_of_arrival(types: list[type[Event]]) -> None:
    spec = kitchen_spec()
    sets = ParamBuffers()
    events = [event_type() for event_type in types]
    full = [found for event in events if (found := sets.add(spec, Buffered(event, {}))) is not None]
    apples = [event for event in events if type(event) is Apple]
    stones = [event for event in events if type(event) is Stone]
    number = min(len(apples) // 2, len(stones))
    assert [[id(one.event) for one in found] for found in full] == [
        [id(apples[2 * n]), id(apples[2 * n + 1]), id(stones[n])] for n in range(number)
    ]


def kitchen_spec() -> Any:
    async def pair(self: Any, a: Any, b: Any, c: Any) -> Any: ...

    pair.__annotations__ = {"a": Apple, "b": Apple, "c": Stone, "return": None}
    return type("Pairs", (Workflow,), {"pair": step(pair)})().graph.steps["pair"]


# --- Recoveries (X4) --------------------------------------------------------------------------

LINES = [{}, {"mend": 1}, {"mend": 2, "nurse": 1}, {"nurse": 3}]
"""How often the ancestors of an event were recovered; the most of all is 2 and 3."""


def of_each_line(ledger: Ledger, order: tuple[int, ...], target: str | None = None) -> list[Work]:
    """Route an event of each line of descent, in some order."""
    steps = ledger.graph.steps
    aim = None if target is None else steps[target]
    work: list[Work] = []
    for n in order:
        work += routed(ledger, SHAPES[n](), aim, None, LINES[n])
    return work


SHAPES: list[type[Event]] = [Box, Sealed, Bowl, Berry]
EVERY_ORDER = list(permutations(range(4)))


@pytest.mark.parametrize("expected", EVERY_ORDER[::5])
@pytest.mark.parametrize("arrival", EVERY_ORDER[::7])
def test_x4_a_collected_list_has_the_most_recoveries_of_its_events(
    arrival: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    """Wherever they are in the list, and whichever completes it."""

    async def gather(self: Any, ev: Any) -> None: ...

    gather.__annotations__["ev"] = reduce(or_, SHAPES)
    ledger = Ledger(type("Gathers", (Workflow,), {"gather": step(gather)})().graph)
    work = of_each_line(ledger, arrival)
    start_next(ledger, *work)
    types = [SHAPES[n] for n in expected]
    found = [ledger.collect(one, None, one.payload, types) for one in work]
    assert found[:3] == [None] * 3
    assert [type(event) for event in found[3] or ()] == types
    assert work[3].recoveries == {"mend": 2, "nurse": 3}
    assert [one.recoveries for one in work[:3]] == [LINES[n] for n in arrival[:3]]


@pytest.mark.parametrize("arrival", EVERY_ORDER[::5])
def test_x4_a_set_has_the_most_recoveries_of_its_events(arrival: tuple[int, ...]) -> None:
    async def serve(self: Any, a: Box, b: Sealed, c: Bowl, d: Berry) -> None: ...

    ledger = Ledger(type("Serves", (Workflow,), {"serve": step(serve)})().graph)
    [work] = of_each_line(ledger, arrival)
    assert work.recoveries == {"mend": 2, "nurse": 3}


@pytest.mark.parametrize("arrival", EVERY_ORDER[::5])
def test_x4_a_join_has_the_most_recoveries_of_its_events(arrival: tuple[int, ...]) -> None:
    ledger = one_at_a_time(All())
    [opened] = start_next(ledger, *routed(ledger, Box(), ledger.graph.steps["open"]))
    batch = ledger.open_batch(opened)
    for n in arrival:
        branch = ledger.open_branch(batch)
        assert routed(ledger, Slice(), ledger.graph.steps["mix"], branch, LINES[n]) == []
        assert ledger.seal_branch(branch) == []
    mix, count = ledger.seal_batch(batch)
    assert mix.recoveries == count.recoveries == {"mend": 2, "nurse": 3}
