"""The waits of the ledger: which are open, and which of them an event answers (rules W2-W4, R2)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from anyio_workflows import Event, HumanResponseEvent, StartEvent, Workflow, step
from anyio_workflows._ledger.ledger import Ledger
from anyio_workflows._ledger.waits import WaitIndex
from anyio_workflows._ledger.work import StepQueue, Wait, Work
from anyio_workflows.collect import All, Take
from anyio_workflows.errors import WorkflowRuntimeError

from .ledger_graphs import Berry, Box, Reply, Slice, granted, one_at_a_time, routed, start_next


def test_r3_an_execution_that_waits_on_while_it_ends_keeps_nothing_busy() -> None:
    """A task that it left behind waits: it holds no slot that its end could free."""
    ledger = one_at_a_time(All())
    [leaving] = start_next(ledger, *routed(ledger, Berry(), ledger.graph.steps["weigh"]))
    assert not ledger.is_quiet()
    assert ledger.is_quiet(besides=leaving)
    wait = Wait(leaving, Reply, {}, None)
    ledger.waits.begin(wait)
    assert ledger.is_quiet()
    assert ledger.is_quiet(besides=leaving)
    [other] = start_next(ledger, *routed(ledger, Berry(), ledger.graph.steps["weigh"]))
    assert not ledger.is_quiet(besides=leaving), "another one is at work"
    assert ledger.is_quiet(besides=other)
    ledger.finish(leaving)
    assert not ledger.is_quiet()
    assert ledger.is_quiet(besides=other)


def test_r2_the_slot_of_dropped_work_goes_to_an_execution_that_wants_to_continue() -> None:
    ledger = one_at_a_time(Take(1, cancel=True))
    [waiting] = start_next(ledger, *routed(ledger, Berry(), ledger.graph.steps["peel"]))
    wait = Wait(waiting, Reply, {}, None)
    ledger.waits.begin(wait)
    [box] = start_next(ledger, *routed(ledger, Box(), ledger.graph.steps["open"]))
    batch = ledger.open_batch(box)
    branch = ledger.open_branch(batch)
    [peel, _] = routed(ledger, Berry(), None, branch)
    assert peel.queue in granted(ledger), "the slot of the execution that waits"
    assert routed(ledger, Reply()) == []
    assert (waiting.queue.running, waiting.queue.waiting) == (0, 1)
    assert len(routed(ledger, Slice(), None, branch)) == 1
    assert peel.dropped
    assert peel.queue not in granted(ledger)
    assert (waiting.queue.running, waiting.queue.waiting) == (1, 0)


def a_wait(ledger: Ledger, event_type: type[Event], requirements: dict[str, Any]) -> Wait:
    [work] = start_next(ledger, *routed(ledger, Berry(), ledger.graph.steps["weigh"]))
    wait = Wait(work, event_type, requirements, None)
    ledger.waits.begin(wait)
    return wait


def another_attempt(ledger: Ledger, work: Work) -> None:
    """Let the attempt fail, and the next one begin."""
    ledger.delay(work, 0.0)
    assert ledger.queues.end_delays(0.0) == [work]
    start_next(ledger, work)


def test_w3_the_wait_of_an_earlier_attempt_is_open_once() -> None:
    """When the next attempt has come to it, its answer is no answer to the one before as well."""
    ledger = one_at_a_time(All())
    wait = a_wait(ledger, Reply, {})
    another_attempt(ledger, wait.work)
    assert list(ledger.waits.open) == [wait]
    again = Wait(wait.work, Reply, {}, None)
    ledger.waits.begin(again)
    assert list(ledger.waits.open) == [again]
    first = Reply(n=1)
    assert ledger.route(first) == []
    assert again.answer is first
    assert ledger.route(Reply(n=2)) is None, "nobody waits for a second one"
    assert wait.answer is None


def test_w4_a_wait_that_had_timed_out_does_so_at_once() -> None:
    ledger = one_at_a_time(All())
    [work] = start_next(ledger, *routed(ledger, Berry(), ledger.graph.steps["weigh"]))
    work.past.earlier_waits = [Wait(work, Reply, {}, None, timed_out=True)]
    wait = Wait(work, Reply, {}, None)
    ledger.waits.begin(wait)
    assert wait.timed_out
    assert not work.suspended
    assert not ledger.waits.open


def test_r2_an_execution_that_waits_anew_does_not_request_a_slot_yet() -> None:
    """One of its tasks was answered and wants to go on, another begins to wait meanwhile."""
    ledger = one_at_a_time(All())
    [waiting] = start_next(ledger, *routed(ledger, Berry(), ledger.graph.steps["peel"]))
    woken: list[str] = []
    first = Wait(waiting, Reply, {"n": 1}, None, wake=lambda: woken.append("first"))
    ledger.waits.begin(first)
    [other] = start_next(ledger, *routed(ledger, Berry(), ledger.graph.steps["peel"]))
    assert ledger.route(Reply(n=1)) == []
    assert woken == [], "the only slot is taken"
    assert ledger.queues.busy() == 2, "one at work, one that wants to go on"
    assert not ledger.is_quiet(besides=other)
    second = Wait(waiting, Reply, {"n": 2}, None, wake=lambda: woken.append("second"))
    ledger.waits.begin(second)
    assert woken == ["first"], "it continues without a slot, beside a task that waits"
    assert ledger.queues.busy() == 1
    ledger.finish(other)
    assert (waiting.queue.running, waiting.queue.waiting) == (0, 1)
    assert ledger.route(Reply(n=2)) == []
    assert woken == ["first", "second"]
    assert (waiting.queue.running, waiting.queue.waiting) == (1, 0)


def test_w2_a_wait_can_be_aimed_at_where_no_event_of_its_type_is_accepted() -> None:
    ledger = one_at_a_time(All())
    spec = ledger.graph.steps["weigh"]
    with pytest.raises(WorkflowRuntimeError, match="it accepts Berry only"):
        ledger.check_target(Reply(), "weigh")
    wait = a_wait(ledger, Reply, {"n": 1})
    assert ledger.check_target(Reply(n=1), "weigh") is spec
    with pytest.raises(WorkflowRuntimeError, match="it accepts Berry only"):
        ledger.check_target(Reply(n=2), "weigh")
    assert ledger.route(Reply(n=1), spec) == []
    assert wait.over


def test_w2_an_attribute_that_cannot_be_read_is_not_equal() -> None:
    class Ratio(HumanResponseEvent):
        n: int

        @property
        def inverse(self) -> float:
            return 1 / self.n

    ledger = one_at_a_time(All())
    wait = a_wait(ledger, Ratio, {"inverse": 0.5})
    assert ledger.route(Ratio(n=0)) is None
    assert ledger.route(Ratio(n=2)) == []
    assert wait.answer == Ratio(n=2)


class Anything:
    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return True


class Touchy:
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        raise ValueError("compare me with nothing")


VALUES: list[Any] = [0, 1, 1.0, True, "1", None, [1], (1, [2]), float("nan"), Anything(), Touchy()]


class Loose(HumanResponseEvent):
    """Takes any attributes."""


class Looser(Loose):
    pass


class Waiters(Workflow):
    @step
    async def strict(self, ev: StartEvent) -> None: ...

    @step(accept_event_subclasses=True)
    async def lax(self, ev: StartEvent) -> None: ...


def naively_equal(event: Event, name: str, value: Any) -> bool:
    try:
        return name in event and bool(event[name] == value)
    except ValueError:
        return False


ATTRIBUTES = st.dictionaries(st.sampled_from("ab"), st.sampled_from(VALUES), max_size=2)


@example([("strict", Loose, {"a": Anything()})], [(Loose, {}), (Loose, {"a": 1})], [])
@given(
    st.lists(
        st.tuples(st.sampled_from(["strict", "lax"]), st.sampled_from([Loose, Looser]), ATTRIBUTES),
        max_size=8,
    ),
    st.lists(st.tuples(st.sampled_from([Loose, Looser, Reply]), ATTRIBUTES), max_size=5),
    st.lists(st.integers(0, 7), max_size=3),
)
def test_w2_an_event_finds_the_waits_that_it_answers(
    drawn: list[Any], events: list[Any], ended: list[int]
) -> None:
    graph = Waiters().graph
    waits = [
        Wait(Work(n, StepQueue(graph.steps[name], 1), StartEvent()), event_type, requirements, None)
        for n, (name, event_type, requirements) in enumerate(drawn)
    ]
    found = WaitIndex()
    for wait in waits:
        found.add(wait)
    for wait in [waits[n] for n in ended if n < len(waits)]:
        found.discard(wait)  # once or twice
        waits = [other for other in waits if other is not wait]
    assert list(found) == waits
    assert len(found) == len(waits)
    for event_type, attributes in events:
        event = event_type(**({"n": 1} if event_type is Reply else attributes))
        expected = [
            wait
            for wait in waits
            if event_type is wait.event_type
            or (issubclass(event_type, wait.event_type) and wait.work.queue.spec.name == "lax")
        ]
        expected = [
            wait
            for wait in expected
            if all(naively_equal(event, *item) for item in wait.requirements.items())
        ]
        assert found.matching(event) == expected


@given(st.lists(st.tuples(st.sampled_from([Loose, Reply]), st.integers(0, 3)), max_size=8))
def test_w2_waits_that_are_over_leave_nothing_in_the_index(drawn: list[Any]) -> None:
    """A run may ask for ever, each time for another value."""
    spec = Waiters().graph.steps["strict"]
    found = WaitIndex()
    waits = [
        Wait(Work(n, StepQueue(spec, 1), StartEvent()), event_type, {"n": value}, None)
        for n, (event_type, value) in enumerate(drawn)
    ]
    for wait in waits:
        found.add(wait)
    for wait in waits:
        found.discard(wait)
    assert not any(found._index.values())
