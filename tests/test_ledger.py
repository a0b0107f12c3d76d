"""The ledger without a loop: a state machine against a naive model, and examples."""

from __future__ import annotations

from collections import deque
from functools import reduce
from operator import or_
from typing import Any

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from anyio_workflows import Event, StartEvent, Workflow, step
from anyio_workflows._ledger.ledger import Ledger
from anyio_workflows._ledger.work import StepQueue, StepStatistics, Work
from anyio_workflows.errors import WorkflowRuntimeError
from anyio_workflows.graph import Graph

from .ledger_graphs import Apple, Braeburn, Fruit, Stone, granted, routed

EVENTS = [Fruit, Apple, Braeburn, Stone]


@attrs.frozen
class DrawnStep:
    """What a step of a random graph was declared with."""

    name: str
    accepts: list[type[Event]]
    num_workers: int
    subclasses: bool

    def takes(self, event_type: type[Event]) -> bool:
        return any(
            event_type is accepted or (self.subclasses and issubclass(event_type, accepted))
            for accepted in self.accepts
        )

    def declare(self) -> Any:
        async def body(self: Any, ev: Any) -> Any: ...

        body.__annotations__ = {"ev": reduce(or_, self.accepts), "return": None}
        mark = step(num_workers=self.num_workers, accept_event_subclasses=self.subclasses)
        return mark(body)


DRAWN_STEPS = st.lists(
    st.tuples(
        st.lists(st.sampled_from(EVENTS), min_size=1, max_size=3, unique=True),
        st.integers(1, 4),
        st.booleans(),
    ),
    min_size=1,
    max_size=4,
).map(lambda drawn: [DrawnStep(f"step_{n}", *fields) for n, fields in enumerate(drawn)])


def graph_of(steps: list[DrawnStep]) -> Graph:
    members = {drawn.name: drawn.declare() for drawn in steps}
    return type("Drawn", (Workflow,), members)().graph


@attrs.define(eq=False)
class ModelStep:
    """A step as the naive model sees it: what waits, what runs, what is over, as plain lists."""

    drawn: DrawnStep
    queued: list[Event] = attrs.Factory(list)
    running: list[Event] = attrs.Factory(list)
    delayed: list[Event] = attrs.Factory(list)
    done: list[Event] = attrs.Factory(list)
    cancelled: int = 0
    retried: int = 0

    @property
    def callable_now(self) -> int:
        return min(len(self.queued), self.drawn.num_workers - len(self.running))


class LedgerMachine(RuleBasedStateMachine):
    """Route, answer and finish work at random, carrying it in a deque per step as the engine does."""

    @initialize(steps=DRAWN_STEPS)
    def declare(self, steps: list[DrawnStep]) -> None:
        self.ledger = Ledger(graph_of(steps))
        self.inboxes: dict[StepQueue, deque[Work]] = {}
        self.running: list[Work] = []
        self.delayed: list[tuple[float, Work]] = []
        self.now = 0.0
        self.last_id = 0
        self.model = {drawn.name: ModelStep(drawn) for drawn in steps}
        self.granted: list[str] = []
        self.last_finished: str | None = None

    def grant_slots(self) -> None:
        """Grant each slot that is free while work is queued."""
        for name, found in self.model.items():
            self.granted += [name] * (found.callable_now - self.granted.count(name))

    @rule(event_type=st.sampled_from(EVENTS), choice=st.integers(0), aimed=st.booleans())
    def route(self, event_type: type[Event], choice: int, aimed: bool) -> None:
        event = event_type()
        takers = [found for found in self.model.values() if found.drawn.takes(event_type)]
        target = None
        if aimed and takers:
            takers = [takers[choice % len(takers)]]
            target = self.ledger.check_target(event, takers[0].drawn.name)
        work = self.ledger.route(event, target)
        assert (work is None) is (not takers)
        work = work or []
        assert [item.queue.spec.name for item in work] == [found.drawn.name for found in takers]
        for item, found in zip(work, takers, strict=True):
            assert item.payload is event
            assert item.id > self.last_id
            assert item.attempt == 1
            self.last_id = item.id
            self.inboxes.setdefault(item.queue, deque()).append(item)
            found.queued.append(event)
        self.grant_slots()

    @precondition(lambda self: self.granted)
    @rule()
    def answer(self) -> None:
        queue = self.ledger.queues.take_slot()
        name = self.granted.pop(0)
        assert queue.spec.name == name
        work = self.inboxes[queue].popleft()
        found = self.model[name]
        event = found.queued.pop(0)
        found.running.append(event)
        assert work.payload is event, "not the oldest event of its step"
        work.started = 0.0
        self.running.append(work)

    @precondition(lambda self: self.running)
    @rule(choice=st.integers(0))
    def finish(self, choice: int) -> None:
        work = self.running.pop(choice % len(self.running))
        cancelled = choice % 2 == 1
        assert self.ledger.finish(work, None if cancelled else Stone) == []
        self.last_finished = work.queue.spec.name
        found = self.model[work.queue.spec.name]
        found.cancelled += cancelled
        found.done.append(found.running.pop(index_of(work.payload, found.running)))
        self.grant_slots()

    @precondition(lambda self: self.running)
    @rule(choice=st.integers(0), seconds=st.integers(0, 4))
    def fail(self, choice: int, seconds: int) -> None:
        """Let an attempt fail that is not the last one (X1)."""
        work = self.running.pop(choice % len(self.running))
        attempt = work.attempt
        self.ledger.delay(work, self.now + seconds)
        assert (work.attempt, work.started) == (attempt + 1, None)
        self.delayed.append((self.now + seconds, work))
        found = self.model[work.queue.spec.name]
        found.delayed.append(found.running.pop(index_of(work.payload, found.running)))
        found.retried += 1
        self.grant_slots()

    @precondition(lambda self: self.delayed)
    @rule(seconds=st.integers(1, 4))
    def let_time_pass(self, seconds: int) -> None:
        """What is due queues at the tail, in the order of the times (R2)."""
        assert self.ledger.queues.next_due == min(due for due, _ in self.delayed)
        self.now += seconds
        self.delayed.sort(key=lambda delay: (delay[0], delay[1].id))
        over = [work for due, work in self.delayed if due <= self.now]
        self.delayed = [delay for delay in self.delayed if delay[0] > self.now]
        assert self.ledger.queues.end_delays(self.now) == over
        for work in over:
            self.inboxes[work.queue].append(work)
            found = self.model[work.queue.spec.name]
            found.queued.append(found.delayed.pop(index_of(work.payload, found.delayed)))
            self.grant_slots()

    @invariant()
    def capacity_is_respected(self) -> None:  # rule 2
        for queue in self.inboxes:
            assert queue.granted >= 0
            assert queue.running >= 0
            assert queue.granted + queue.running <= queue.limit == queue.spec.config.num_workers

    @invariant()
    def no_slot_is_free_while_work_is_queued(self) -> None:  # rule 3
        for queue in self.inboxes:
            assert queue.granted == min(queue.queued, queue.limit - queue.running)
            assert queue.granted == granted(self.ledger).count(queue)
        assert [queue.spec.name for queue in granted(self.ledger)] == self.granted

    @invariant()
    def everything_is_pending_until_it_is_finished(self) -> None:  # rule 1
        queued = [work for inbox in self.inboxes.values() for work in inbox]
        delayed = [work for _, work in self.delayed]
        carried = sorted(queued + self.running + delayed, key=lambda work: work.id)
        assert list(self.ledger.pending.values()) == carried
        assert list(self.ledger.pending) == [work.id for work in carried]

    @invariant()
    def idle_means_that_nothing_is_pending(self) -> None:  # rule 1
        busy = any(f.queued or f.running or f.delayed for f in self.model.values())
        assert self.ledger.idle is not busy

    @invariant()
    def reports_agree_with_the_model(self) -> None:
        assert self.ledger.queues.active_steps() == sorted(
            name for name, found in self.model.items() if found.running or found.delayed
        )
        assert self.ledger.last_finished == self.last_finished
        assert self.ledger.statistics() == {
            name: StepStatistics(
                queued=len(found.queued),
                running=len(found.running),
                delayed=len(found.delayed),
                done=len(found.done),
                cancelled=found.cancelled,
                retried=found.retried,
            )
            for name, found in self.model.items()
        }

    def teardown(self) -> None:
        """Work off what is left: it all gets its turn."""
        if not hasattr(self, "ledger"):
            return
        while self.granted or self.running or self.delayed:
            if self.granted:
                self.answer()
            elif self.running:
                self.finish(0)
            else:
                self.let_time_pass(4)
            self.no_slot_is_free_while_work_is_queued()
        assert self.ledger.idle
        assert not granted(self.ledger)
        assert not any(self.inboxes.values())


def index_of(event: Event, events: list[Event]) -> int:
    """Return the position of this very object; events compare by value."""
    return next(n for n, other in enumerate(events) if other is event)


LedgerMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestLedgerMachine = LedgerMachine.TestCase


# --- Examples ---------------------------------------------------------------------------------


FRUIT_SHOP = [
    DrawnStep("peel", [Apple, Stone], num_workers=1, subclasses=False),
    DrawnStep("weigh", [Fruit], num_workers=2, subclasses=True),
]


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(graph_of(FRUIT_SHOP))


def test_no_target_is_no_step(ledger: Ledger) -> None:
    assert ledger.check_target(Apple(), None) is None


def test_a_target_is_found_by_name(ledger: Ledger) -> None:
    assert ledger.check_target(Apple(), "peel") is ledger.graph.steps["peel"]
    assert ledger.check_target(Braeburn(), "weigh") is ledger.graph.steps["weigh"]


def test_an_unknown_target_is_refused_with_the_nearest_name(ledger: Ledger) -> None:
    with pytest.raises(WorkflowRuntimeError) as caught:
        ledger.check_target(Apple(), "wiegh")
    assert str(caught.value) == (
        "cannot send Apple to step 'wiegh': no such step, did you mean 'weigh'?"
    )


def test_a_target_that_does_not_take_the_event_is_refused(ledger: Ledger) -> None:
    with pytest.raises(WorkflowRuntimeError) as caught:
        ledger.check_target(Braeburn(), "peel")
    assert str(caught.value) == (
        "cannot send Braeburn to step 'peel': it accepts Apple, Stone only"
    )


def test_a_refused_target_leaves_the_books_as_they_are(ledger: Ledger) -> None:
    with pytest.raises(WorkflowRuntimeError):
        ledger.check_target(Stone(), "weigh")
    assert ledger.idle
    assert not granted(ledger)


def test_an_event_that_nobody_takes_is_owed_to_nobody(ledger: Ledger) -> None:
    assert ledger.route(StartEvent()) is None
    assert ledger.idle


def test_an_aimed_event_goes_to_its_target_alone(ledger: Ledger) -> None:
    event = Apple()
    [work] = routed(ledger, event, ledger.check_target(event, "weigh"))
    assert work.queue.spec.name == "weigh"
    assert ledger.statistics() == {
        "peel": StepStatistics(queued=0, running=0, done=0),
        "weigh": StepStatistics(queued=1, running=0, done=0),
    }


def test_the_same_event_twice_is_two_pieces_of_work(ledger: Ledger) -> None:
    event = Stone()
    [first], [second] = routed(ledger, event), routed(ledger, event)
    assert first.id < second.id
    assert [queue.spec.name for queue in granted(ledger)] == ["peel"], "one slot, granted once"
    assert ledger.queues.take_slot() is first.queue
    assert not granted(ledger)
    ledger.finish(first)
    assert granted(ledger) == [second.queue]
    assert list(ledger.pending.values()) == [second]
