"""The ledger without a loop: state machines against naive models, and examples."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterator
from functools import reduce
from itertools import permutations
from operator import or_
from typing import Annotated, Any

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from anyio_workflows import Event, HumanResponseEvent, StartEvent, Workflow, step
from anyio_workflows._ledger.fanin import Batch, Branch, Buffered, Buffers, ParamBuffers
from anyio_workflows._ledger.ledger import Ledger
from anyio_workflows._ledger.waits import Index
from anyio_workflows._ledger.work import StepQueue, StepStatistics, Wait, Work
from anyio_workflows.collect import All, Collect, Take
from anyio_workflows.errors import WorkflowRuntimeError
from anyio_workflows.graph import Graph


class Fruit(Event):
    pass


class Apple(Fruit):
    pass


class Braeburn(Apple):
    pass


class Stone(Event):
    pass


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
        self.calls: list[str] = []
        self.last_finished: str | None = None

    def grant_calls(self) -> None:
        """Call a worker for each place that is free while work is queued."""
        for name, found in self.model.items():
            self.calls += [name] * (found.callable_now - self.calls.count(name))

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
        self.grant_calls()

    @precondition(lambda self: self.calls)
    @rule()
    def answer(self) -> None:
        queue = self.ledger.queues.take_slot()
        name = self.calls.pop(0)
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
        assert self.ledger.finish(work) == []
        self.last_finished = work.queue.spec.name
        found = self.model[work.queue.spec.name]
        found.done.append(found.running.pop(index_of(work.payload, found.running)))
        self.grant_calls()

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
        self.grant_calls()

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
            self.grant_calls()

    @invariant()
    def capacity_is_respected(self) -> None:  # rule 1
        for queue in self.inboxes:
            assert queue.granted >= 0
            assert queue.running >= 0
            assert queue.granted + queue.running <= queue.limit == queue.spec.config.num_workers

    @invariant()
    def no_place_is_free_while_work_is_queued(self) -> None:  # rule 2
        for queue in self.inboxes:
            assert queue.granted == min(queue.queued, queue.limit - queue.running)
            assert queue.granted == self.ledger.queues.granted.count(queue)
        assert [queue.spec.name for queue in self.ledger.queues.granted] == self.calls

    @invariant()
    def everything_is_owed_until_it_is_finished(self) -> None:  # rule 3
        queued = [work for inbox in self.inboxes.values() for work in inbox]
        delayed = [work for _, work in self.delayed]
        carried = sorted(queued + self.running + delayed, key=lambda work: work.id)
        assert list(self.ledger.pending.values()) == carried
        assert list(self.ledger.pending) == [work.id for work in carried]

    @invariant()
    def idle_means_that_nothing_is_owed(self) -> None:  # rule 4
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
                retried=found.retried,
            )
            for name, found in self.model.items()
        }

    def teardown(self) -> None:
        """Work off what is left: it all gets its turn."""
        if not hasattr(self, "ledger"):
            return
        while self.calls or self.running or self.delayed:
            if self.calls:
                self.answer()
            elif self.running:
                self.finish(0)
            else:
                self.let_time_pass(4)
            self.no_place_is_free_while_work_is_queued()
        assert self.ledger.idle
        assert not self.ledger.queues.granted
        assert not any(self.inboxes.values())


def index_of(event: Event, events: list[Event]) -> int:
    """Return the position of this very object; events compare by value."""
    return next(n for n, other in enumerate(events) if other is event)


LedgerMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestLedgerMachine = LedgerMachine.TestCase


# --- Fan-out, fan-in and waiting --------------------------------------------------------------


class Order(Event):
    n: int = 0


class Box(Order):
    """Of the outer level, as `Sealed` and `Bowl` are."""


class Sealed(Order):
    pass


class Bowl(Order):
    pass


class Berry(Order):
    """Of the inner level, as `Slice` and `Pit` are."""


class Slice(Order):
    pass


class Pit(Order):
    pass


class Reply(HumanResponseEvent):
    n: int = 0


TAKES: dict[str, list[tuple[type[Event], ...]]] = {
    "pack": [(Order,)],
    "open": [(Box,)],
    "peel": [(Berry,)],
    "weigh": [(Berry,)],
    "glue": [(Slice,), (Slice,), (Pit,)],
    "taste": [(Bowl,), (Sealed,)],
    "mix": [(Slice,)],
    "count": [(Slice, Pit)],
    "serve": [(Bowl, Sealed)],
}
"""The types that each parameter takes; the last three steps take lists of them."""
GIVES: dict[str, Any] = {
    "pack": list[Box] | None,
    "open": list[Berry | Slice] | Sealed | None,
    "peel": Slice | Pit | Berry | None,
    "weigh": Pit | None,
    "glue": Slice | None,
    "taste": None,
    "mix": Bowl | None,
    "count": Bowl | Box | None,
    "serve": Order | None,
}
JOINS = {"pack": ["serve"], "open": ["mix", "count"]}
TYPES = [Order, Box, Sealed, Bowl, Berry, Slice, Pit, Reply]
POLICIES = st.just(All()) | st.builds(Take, st.integers(1, 3), cancel=st.booleans())


def kitchen(limits: dict[str, int], policies: dict[str, All | Take]) -> Graph:
    """Make a graph of two levels of batches, with sets at both."""
    members = {}
    for name, slots in TAKES.items():

        async def one(self: Any, a: Any) -> Any: ...
        async def two(self: Any, a: Any, b: Any) -> Any: ...
        async def three(self: Any, a: Any, b: Any, c: Any) -> Any: ...

        body = (one, two, three)[len(slots) - 1]
        takes: list[Any] = [reduce(or_, types) for types in slots]
        if name in policies:
            takes = [Annotated[list[takes[0]], Collect(policies[name])]]
        body.__annotations__ = {**dict(zip("abc", takes, strict=False)), "return": GIVES[name]}
        members[name] = step(num_workers=limits[name])(body)
    return type("Kitchen", (Workflow,), members)().graph


@attrs.define(eq=False)
class NaiveBatch:
    joins: list[str]
    outer: NaiveBranch | None
    arrived: dict[str, list[Event]]
    fired: Counter[str] = attrs.Factory(Counter)
    opening: bool = True
    cancelled: bool = False


@attrs.define(eq=False)
class NaiveBranch:
    batch: NaiveBatch
    opening: bool = True
    sets: dict[str, list[list[Event]]] = attrs.Factory(dict)

    def around(self) -> Iterator[NaiveBatch]:
        """Yield the batches that it is in, the innermost first."""
        branch: NaiveBranch | None = self
        while branch is not None:
            yield branch.batch
            branch = branch.batch.outer


@attrs.define(eq=False)
class NaiveWork:
    step: str
    payload: list[Event]
    branch: NaiveBranch | None
    real: Work = attrs.field(init=False)
    dropped: bool = False
    over_the_limit: bool = False
    waits: list[Wait] = attrs.Factory(list)
    answered: list[Wait] = attrs.Factory(list)
    begun: list[Wait] = attrs.Factory(list)
    earlier: list[Wait] = attrs.Factory(list)

    def is_in(self, batch: NaiveBatch) -> bool:
        return self.branch is not None and batch in self.branch.around()


@attrs.define(eq=False)
class NaiveStep:
    limit: int
    policy: All | Take | None
    queued: list[NaiveWork] = attrs.Factory(list)
    running: list[NaiveWork] = attrs.Factory(list)
    waiting: list[NaiveWork] = attrs.Factory(list)
    resuming: list[NaiveWork] = attrs.Factory(list)
    delayed: list[tuple[float, NaiveWork]] = attrs.Factory(list)
    done: int = 0
    retried: int = 0


class NaiveBooks:
    """What the ledger has to say, found by looking through everything each time."""

    def __init__(self, limits: dict[str, int], policies: dict[str, All | Take]) -> None:
        self.steps = {name: NaiveStep(limits[name], policies.get(name)) for name in TAKES}
        self.calls: list[str] = []
        self.pending: list[NaiveWork] = []
        self.batches: list[NaiveBatch] = []
        self.branches: list[NaiveBranch] = []
        self.ended: list[NaiveBatch] = []
        self.sets: dict[str, list[list[Event]]] = {}
        self.waits: list[Wait] = []
        self.work_of: dict[Wait, NaiveWork] = {}
        self.woken: list[Wait] = []
        self.stopped: list[NaiveWork] = []

    # Work and places

    def owe(self, name: str, payload: list[Event], branch: NaiveBranch | None) -> list[NaiveWork]:
        if branch is not None and any(batch.cancelled for batch in branch.around()):
            return []
        work = NaiveWork(name, payload, branch)
        self.pending.append(work)
        self.steps[name].queued.append(work)
        self.grant(name)
        return [work]

    def grant(self, name: str) -> None:
        here = self.steps[name]
        while self.calls.count(name) + len(here.running) < here.limit:
            if here.resuming:
                self.resume(here.resuming.pop(0))
            elif self.calls.count(name) < len(here.queued):
                self.calls.append(name)
            else:
                break

    def start(self) -> NaiveWork:
        here = self.steps[self.calls.pop(0)]
        here.running.append(here.queued.pop(0))
        return here.running[-1]

    def finish(self, work: NaiveWork) -> list[NaiveWork]:
        here = self.steps[work.step]
        self.pending.remove(work)
        self.leave(work)
        self.waits = [wait for wait in self.waits if wait not in work.earlier]
        here.done += 1
        self.grant(work.step)
        return self.settle()

    def delay(self, work: NaiveWork, due: float) -> None:
        here = self.steps[work.step]
        self.leave(work)
        here.delayed.append((due, work))
        here.retried += 1
        work.earlier, work.begun = work.begun + work.earlier, []
        left = [w for w in work.earlier if w.answer is None and not w.timed_out]
        self.waits += [wait for wait in left if wait not in self.waits]
        self.grant(work.step)

    def end_delays(self, now: float) -> list[NaiveWork]:
        over = [(d, w.real.id, w) for s in self.steps.values() for d, w in s.delayed if d <= now]
        works = [work for *_, work in sorted(over, key=lambda delay: delay[:2])]
        for work in works:
            here = self.steps[work.step]
            here.delayed = [delay for delay in here.delayed if delay[1] is not work]
            here.queued.append(work)
            self.grant(work.step)
        return works

    def leave(self, work: NaiveWork) -> None:
        here = self.steps[work.step]
        if work in here.waiting:
            here.waiting.remove(work)
            self.woken += work.answered + work.waits
            if work in here.resuming:
                here.resuming.remove(work)
            self.waits = [wait for wait in self.waits if wait not in work.waits]
            work.waits, work.answered = [], []
        else:
            here.running.remove(work)

    # Routing

    def route(
        self, event: Event, target: str | None = None, branch: NaiveBranch | None = None
    ) -> list[NaiveWork] | None:
        answered = self.answer(event, target)
        new: list[NaiveWork] = []
        taken = bool(answered)
        for name, slots in TAKES.items():
            takes = target in (None, name) and any(type(event) in types for types in slots)
            join = self.steps[name].policy is not None
            if name in answered or not takes:
                continue
            if not join:
                taken = True
                new += self.take(name, event, branch)
            elif branch is not None and name in branch.batch.joins:
                taken = True
                new += self.join(name, event, branch.batch)
        if branch is not None and branch.batch.cancelled:
            self.drop(branch.batch)
        assert self.settle() == []
        return new if taken else None

    def take(self, name: str, event: Event, branch: NaiveBranch | None) -> list[NaiveWork]:
        if len(TAKES[name]) == 1:
            return self.owe(name, [event], branch)
        sets = self.sets if branch is None else branch.sets
        queues = sets.setdefault(name, [[] for _ in TAKES[name]])
        fitting = [n for n, types in enumerate(TAKES[name]) if type(event) in types]
        shortest = min(len(queues[n]) for n in fitting)
        next(queues[n] for n in fitting if len(queues[n]) == shortest).append(event)
        if not all(queues):
            return []
        return self.owe(name, [queue.pop(0) for queue in queues], branch)

    def join(self, name: str, event: Event, batch: NaiveBatch) -> list[NaiveWork]:
        policy = self.steps[name].policy
        if batch.fired[name]:
            return []
        batch.arrived[name].append(event)
        if not isinstance(policy, Take) or len(batch.arrived[name]) < policy.n:
            return []
        batch.fired[name] += 1
        batch.cancelled = batch.cancelled or policy.cancel
        return self.owe(name, batch.arrived[name], batch.outer)

    def drop(self, batch: NaiveBatch) -> None:
        for work in [work for work in self.pending if work.is_in(batch) and not work.dropped]:
            work.dropped = True
            here = self.steps[work.step]
            delayed = [delay for delay in here.delayed if delay[1] is work]
            if work not in here.queued and not delayed:
                self.stopped.append(work)
                continue
            self.pending.remove(work)
            self.waits = [wait for wait in self.waits if wait not in work.earlier]
            if delayed:
                here.delayed.remove(delayed[0])
                continue
            here.queued.remove(work)
            if self.calls.count(work.step) > len(here.queued):
                self.calls.remove(work.step)
            self.grant(work.step)

    # Batches

    def open_batch(self, work: NaiveWork) -> NaiveBatch:
        joins = JOINS[work.step]
        batch = NaiveBatch(joins, work.branch, {join: [] for join in joins})
        self.batches.append(batch)
        return batch

    def open_branch(self, batch: NaiveBatch) -> NaiveBranch:
        self.branches.append(NaiveBranch(batch))
        return self.branches[-1]

    def seal(self, part: NaiveBatch | NaiveBranch) -> list[NaiveWork]:
        part.opening = False
        return self.settle()

    def has_ended(self, batch: NaiveBatch) -> bool:
        inside = [b for b in self.batches if b.outer is not None and batch in b.outer.around()]
        branches = [branch for branch in self.branches if branch.batch is batch]
        return not (
            batch.opening
            or inside
            or any(branch.opening for branch in branches)
            or any(work.is_in(batch) for work in self.pending)
        )

    def settle(self) -> list[NaiveWork]:
        """Fire what is left to fire in the batches that have ended."""
        new: list[NaiveWork] = []
        while ended := next(filter(self.has_ended, self.batches), None):
            self.batches.remove(ended)
            self.ended.append(ended)
            for join in ended.joins:
                if not ended.fired[join]:
                    ended.fired[join] += 1
                    new += self.owe(join, ended.arrived[join], ended.outer)
        return new

    # Waits

    def wait(self, work: NaiveWork, wait: Wait) -> None:
        here = self.steps[work.step]
        if work in here.running:
            here.running.remove(work)
            here.waiting.append(work)
            work.over_the_limit = False
        elif work in here.resuming:
            here.resuming.remove(work)
            self.wake(work)
        work.waits.append(wait)
        self.waits.append(wait)
        self.work_of[wait] = work
        self.grant(work.step)

    def answer(self, event: Event, target: str | None) -> set[str]:
        matching = []
        for wait in self.waits:
            fits = type(event) is wait.event_type
            fits = fits and wait.requirements in ({}, {"n": getattr(event, "n", None)})
            if fits and target in (None, self.work_of[wait].step):
                matching.append(wait)
        for wait in matching:
            self.end_wait(wait)
        return {self.work_of[wait].step for wait in matching}

    def end_wait(self, wait: Wait) -> None:
        work = self.work_of[wait]
        self.waits.remove(wait)
        if wait not in work.waits:
            return
        work.waits.remove(wait)
        if work.waits:
            self.woken.append(wait)
        else:
            work.answered.append(wait)
            self.steps[work.step].resuming.append(work)
            self.grant(work.step)

    def abandon_wait(self, wait: Wait) -> None:
        work = self.work_of[wait]
        if wait in work.waits:
            self.waits.remove(wait)
            work.waits.remove(wait)
            if work.waits:
                return
        elif wait in work.answered:
            self.steps[work.step].resuming.remove(work)
        else:
            return
        work.over_the_limit = True
        self.resume(work)

    def resume(self, work: NaiveWork) -> None:
        here = self.steps[work.step]
        here.waiting.remove(work)
        here.running.append(work)
        self.wake(work)

    def wake(self, work: NaiveWork) -> None:
        self.woken += work.answered
        work.answered = []


def asks_the_same(one: Wait, other: Wait) -> bool:
    key = (one.waiter_id, one.event_type) == (other.waiter_id, other.event_type)
    return key and (one.waiter_id is not None or one.requirements == other.requirements)


class KitchenMachine(RuleBasedStateMachine):
    """Send, execute, return events and lists, wait and be cancelled at random."""

    @initialize(
        limits=st.fixed_dictionaries({name: st.integers(1, 3) for name in TAKES}),
        policies=st.fixed_dictionaries(dict.fromkeys(("mix", "count", "serve"), POLICIES)),
        boxes=st.lists(
            st.lists(st.sampled_from([Berry, Slice]), min_size=1, max_size=4),
            min_size=1,
            max_size=4,
        ),
    )
    def declare(
        self,
        limits: dict[str, int],
        policies: dict[str, All | Take],
        boxes: list[list[type[Event]]],
    ) -> None:
        self.ledger = Ledger(kitchen(limits, policies))
        self.books = NaiveBooks(limits, policies)
        self.inboxes: dict[StepQueue, deque[Work]] = {}
        self.batches: list[tuple[Batch, NaiveBatch]] = []
        self.branches: dict[Branch | None, NaiveBranch | None] = {None: None}
        self.woken: list[Wait] = []
        self.stopped: list[NaiveWork] = []
        self.now = 0.0
        self.last_id = 0
        self.last_finished: str | None = None
        steps = self.ledger.graph.steps
        for name, joins in JOINS.items():
            assert [join.name for join in self.ledger.graph.joins_of(steps[name])] == joins
        self.fill(boxes)

    def fill(self, boxes: list[list[type[Event]]]) -> None:
        """Let an order be packed and the first of its boxes be opened."""
        self.send(Order, 0)
        self.answer()
        [order] = self.started()
        self.emit_list(order, [Box() for _ in boxes])
        self.end(order)
        for _ in range(20):
            if self.books.calls:
                self.answer()
            opened = [work for work in self.started() if work.step == "open"]
            if opened and boxes:
                self.emit_list(opened[0], [event_type() for event_type in boxes.pop()])
                self.end(opened[0])

    def carry(self, new: list[Work] | None, expected: list[NaiveWork] | None) -> None:
        """Compare new work with what was expected, and carry it to its step."""
        assert (new is None) is (expected is None)
        for work, naive in zip(new or [], expected or [], strict=True):
            naive.real = work
            assert work.queue.spec.name == naive.step
            assert self.branches[work.branch] is naive.branch
            payload = [work.payload] if work.queue.spec.is_plain else list(work.payload)
            assert list(map(id, payload)) == list(map(id, naive.payload))
            assert type(work.payload) is (
                list
                if work.queue.spec.is_join
                else type(payload[0])
                if work.queue.spec.is_plain
                else tuple
            )
            assert work.id > self.last_id
            self.last_id = work.id
            self.inboxes.setdefault(work.queue, deque()).append(work)

    def started(self) -> list[NaiveWork]:
        return [work for work in self.books.pending if work.real.started is not None]

    # What happens

    @rule(event_type=st.sampled_from(TYPES), n=st.integers(0, 1))
    def send(self, event_type: Any, n: int) -> None:
        event = event_type(n=n)
        self.carry(self.ledger.route(event), self.books.route(event))

    @rule(event_type=st.sampled_from(TYPES), n=st.integers(0, 1), name=st.sampled_from(list(TAKES)))
    def aim(self, event_type: Any, n: int, name: str) -> None:
        event = event_type(n=n)
        waited_for = any(
            wait.matches(event) and self.books.work_of[wait].step == name
            for wait in self.books.waits
        )
        takes = any(event_type in types for types in TAKES[name])
        if waited_for or (takes and self.books.steps[name].policy is None):
            target = self.ledger.check_target(event, name)
            assert target is self.ledger.graph.steps[name]
            new = self.ledger.route(event, target)
            assert new is not None
            self.carry(new, self.books.route(event, name))
        else:
            words = "it joins a batch" if takes else "it accepts"
            with pytest.raises(WorkflowRuntimeError, match=words):
                self.ledger.check_target(event, name)

    @precondition(lambda self: self.books.calls)
    @rule()
    def answer(self) -> None:
        queue = self.ledger.queues.take_slot()
        naive = self.books.start()
        assert queue.spec.name == naive.step
        inbox = self.inboxes[queue]
        while inbox[0].dropped:
            inbox.popleft()
        work = inbox.popleft()
        assert work is naive.real, "not the oldest work of its step"
        work.started = 0.0
        work.stop = lambda: self.stopped.append(naive)

    @precondition(lambda self: self.books.calls)
    @rule(data=st.data(), number=st.integers(1, 5))
    def execute(self, data: st.DataObject, number: int) -> None:
        """Let the oldest calls be answered by steps that never wait."""
        for _ in range(number):
            if self.books.calls:
                work = self.books.steps[self.books.calls[0]].queued[0]
                self.answer()
                self.end_with_result(work, data)

    @precondition(lambda self: self.started())
    @rule(data=st.data(), choice=st.integers(0), leaves_tasks=st.integers(0, 3))
    def finish(self, data: st.DataObject, choice: int, leaves_tasks: int) -> None:
        """Let an execution end; seldom one that leaves tasks behind which are waiting."""
        works = [work for work in self.started() if not leaves_tasks or self.may_end(work)]
        if works:
            work = works[choice % len(works)]
            for wait in [*work.waits, *work.answered] if leaves_tasks else ():
                self.abandon(wait)  # it is cancelled
            self.end_with_result(work, data)

    @precondition(lambda self: self.started())
    @rule(choice=st.integers(0), seconds=st.integers(0, 3), leaves_tasks=st.booleans())
    def fail(self, choice: int, seconds: int, leaves_tasks: bool) -> None:
        """Let an attempt fail that is not the last one."""
        works = [w for w in self.started() if not w.dropped and (leaves_tasks or self.may_end(w))]
        if works:
            work = works[choice % len(works)]
            work.real.stop = None
            self.ledger.delay(work.real, self.now + seconds)
            self.books.delay(work, self.now + seconds)

    @precondition(lambda self: self.ledger.queues.next_due < math.inf)
    @rule(seconds=st.integers(1, 3))
    def let_time_pass(self, seconds: int) -> None:
        self.now += seconds
        over = self.ledger.queues.end_delays(self.now)
        assert over == [work.real for work in self.books.end_delays(self.now)]
        for work in over:
            self.inboxes[work.queue].append(work)

    def may_end(self, work: NaiveWork) -> bool:
        return work.dropped or not (work.waits or work.answered)

    def end_with_result(self, work: NaiveWork, data: st.DataObject) -> None:
        work.real.stop = None
        spec = work.real.queue.spec
        kinds = ["one"] * len(spec.returns) + ["list"] * 2 * bool(spec.returns_list) + ["none"]
        kind = "none" if work.dropped else data.draw(st.sampled_from(kinds), label="returns")
        if kind == "one":
            event = data.draw(st.sampled_from(spec.returns))()
            new = self.ledger.route(event, None, work.real.branch)
            self.carry(new, self.books.route(event, None, work.branch))
        elif kind == "list":
            made = data.draw(st.lists(st.sampled_from(spec.returns_list), max_size=5))
            self.emit_list(work, [event_type() for event_type in made])
        self.end(work)

    def emit_list(self, work: NaiveWork, events: list[Event]) -> None:
        work.real.stop = None
        batch, naive_batch = self.ledger.open_batch(work.real), self.books.open_batch(work)
        self.batches.append((batch, naive_batch))
        for event in events:
            branch, naive = self.ledger.open_branch(batch), self.books.open_branch(naive_batch)
            self.branches[branch] = naive
            new = self.ledger.route(event, None, branch)
            self.carry(new, self.books.route(event, None, naive))
            self.carry(self.ledger.seal_branch(branch), self.books.seal(naive))
        self.carry(self.ledger.seal_batch(batch), self.books.seal(naive_batch))

    def end(self, work: NaiveWork) -> None:
        left = list(work.waits)
        self.last_finished = work.step
        self.carry(self.ledger.finish(work.real), self.books.finish(work))
        assert all(wait.refused and wait.answer is None for wait in left)

    @precondition(lambda self: self.started())
    @rule(
        choice=st.integers(0),
        event_type=st.sampled_from([Reply, Berry]),
        n=st.none() | st.integers(0, 1),
        waiter_id=st.sampled_from([None, None, "a", "b"]),
    )
    def wait(self, choice: int, event_type: Any, n: int | None, waiter_id: str | None) -> None:
        works = self.started()
        work = works[choice % len(works)]
        requirements = {} if n is None else {"n": n}
        wait = Wait(work.real, event_type, requirements, waiter_id)
        wait.wake = lambda: self.woken.append(wait)
        names = [(w.waiter_id or (w.event_type, w.requirements)) for w in work.waits]
        if (waiter_id or (event_type, requirements)) in names:
            with pytest.raises(WorkflowRuntimeError, match="already"):
                self.ledger.waits.begin(wait)
        else:
            self.ledger.waits.begin(wait)
            earlier = next((w for w in work.earlier if asks_the_same(w, wait)), None)
            work.earlier = [w for w in work.earlier if w is not earlier]
            self.books.waits = [w for w in self.books.waits if w is not earlier]
            work.begun.append(wait)
            if earlier is not None and earlier.answer is not None:
                assert wait.answer is earlier.answer
                assert wait not in self.ledger.waits.open
            else:
                assert wait.answer is None
                self.books.wait(work, wait)

    def suspended(self) -> list[Wait]:
        """Return the waits that a task waits for, not those that an earlier attempt has left open."""
        return [wait for wait in self.books.waits if wait in self.books.work_of[wait].waits]

    @precondition(lambda self: self.suspended())
    @rule(choice=st.integers(0))
    def time_out(self, choice: int) -> None:
        wait = self.suspended()[choice % len(self.suspended())]
        self.ledger.waits.end(wait)
        self.books.end_wait(wait)

    @precondition(lambda self: self.books.work_of)
    @rule(choice=st.integers(0))
    def cancel_wait(self, choice: int) -> None:
        """Cancel a task that waits, or that has just been woken."""
        waits = list(self.books.work_of)
        self.abandon(waits[choice % len(waits)])

    def abandon(self, wait: Wait) -> None:
        self.ledger.waits.abandon(wait)
        self.books.abandon_wait(wait)

    # What is true at any moment

    @invariant()
    def capacity_is_respected(self) -> None:  # rule 1
        for queue in self.inboxes:
            over = sum(work.over_the_limit for work in self.books.steps[queue.spec.name].running)
            assert min(queue.granted, queue.queued, queue.running, queue.waiting) >= 0
            assert queue.granted + queue.running <= queue.limit + over

    @invariant()
    def no_place_is_free_while_it_is_wanted(self) -> None:  # rule 2
        for queue in self.inboxes:
            if queue.granted + queue.running < queue.limit:
                assert queue.granted == queue.queued
                assert not queue.resuming
            assert queue.granted == self.ledger.queues.granted.count(queue)
        assert [queue.spec.name for queue in self.ledger.queues.granted] == self.books.calls

    @invariant()
    def everything_is_owed_until_it_is_finished_or_dropped(self) -> None:  # rule 3
        assert list(self.ledger.pending.values()) == [work.real for work in self.books.pending]
        assert self.ledger.idle is not bool(self.books.pending)  # rule 4
        carried = [work for inbox in self.inboxes.values() for work in inbox if not work.dropped]
        queued = [w.real for found in self.books.steps.values() for w in found.queued]
        assert set(carried) == set(queued)
        assert len(carried) == len(queued)

    @invariant()
    def waits_are_answered_in_order_and_woken_once(self) -> None:
        assert list(self.ledger.waits.open) == self.books.waits
        assert self.woken == self.books.woken
        assert len(set(self.woken)) == len(self.woken)

    @invariant()
    def what_a_join_cancels_is_stopped_once(self) -> None:
        # The execution that brought the last event is over anyway.
        stopped = [work for work in self.books.stopped if work in self.stopped]
        assert self.stopped == stopped
        for work in self.books.stopped:
            assert work.real.dropped
            assert work in self.stopped or work not in self.books.pending

    @invariant()
    def batches_end_when_nothing_is_left_of_them(self) -> None:
        for batch, naive in self.batches:
            assert batch.ended is (naive in self.books.ended)
            assert not (batch.ended and batch.arrived)
            assert all(naive.fired[join] <= 1 for join in naive.joins)
            assert set(batch.arrived) == {
                join for join in batch.joins if not naive.fired[join.name]
            }

    @invariant()
    def reports_agree_with_the_model(self) -> None:
        steps = self.books.steps
        assert self.ledger.queues.active_steps() == sorted(
            name for name, s in steps.items() if s.running or s.waiting or s.delayed
        )
        assert self.ledger.last_finished == self.last_finished
        assert self.ledger.statistics() == {
            name: StepStatistics(
                queued=len(s.queued),
                running=len(s.running),
                waiting=len(s.waiting),
                delayed=len(s.delayed),
                done=s.done,
                retried=s.retried,
            )
            for name, s in steps.items()
        }
        quiet = not any(s.queued or s.running or s.resuming or s.delayed for s in steps.values())
        assert self.ledger.is_quiet() is quiet
        lacking = {
            name: ", ".join(p for p, queue in zip("abc", queues, strict=False) if not queue)
            for name, queues in self.books.sets.items()
            if any(queues)
        }
        assert dict(self.ledger.missing()) == lacking

    def teardown(self) -> None:
        """Work off what is left: it all gets its turn, and every join has fired once."""
        if not hasattr(self, "ledger"):
            return
        while self.books.pending:
            if self.books.calls:
                self.answer()
            elif self.suspended():
                self.time_out(0)
            elif self.ledger.queues.next_due < math.inf:
                self.let_time_pass(3)
            else:
                work = next(work for work in self.started() if not work.answered)
                work.real.stop = None
                self.end(work)
            self.no_place_is_free_while_it_is_wanted()
        assert self.ledger.idle
        assert not self.ledger.queues.granted
        assert not self.ledger.waits.open
        assert not self.books.batches
        for batch, naive in self.batches:
            assert batch.ended
            assert naive.fired == Counter(naive.joins)


KitchenMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
TestKitchenMachine = KitchenMachine.TestCase


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


@given(st.lists(st.sampled_from([Apple, Stone]), max_size=20))
def test_f4_sets_are_full_in_order_of_arrival(types: list[type[Event]]) -> None:
    spec = kitchen_spec()
    sets = ParamBuffers()
    events = [event_type() for event_type in types]
    full = [found for event in events if (found := sets.add(spec, event, {})) is not None]
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


def test_r3_an_execution_that_waits_on_while_it_ends_keeps_nothing_busy() -> None:
    """A task that it left behind waits: it holds no place that its end could free."""
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


# --- Places and waits, example by example (R2, W2) ----------------------------------------------


def one_at_a_time(policy: All | Take) -> Ledger:
    limits = {**dict.fromkeys(TAKES, 4), "peel": 1}
    return Ledger(kitchen(limits, {"mix": policy, "count": All(), "serve": All()}))


def start_next(ledger: Ledger, *expected: Work) -> list[Work]:
    for work in expected:
        assert ledger.queues.take_slot() is work.queue
        work.started = 0.0
    return list(expected)


def test_r2_the_place_of_dropped_work_goes_to_an_execution_that_wants_to_go_on() -> None:
    ledger = one_at_a_time(Take(1, cancel=True))
    [waiting] = start_next(ledger, *routed(ledger, Berry(), ledger.graph.steps["peel"]))
    wait = Wait(waiting, Reply, {}, None)
    ledger.waits.begin(wait)
    [box] = start_next(ledger, *routed(ledger, Box(), ledger.graph.steps["open"]))
    batch = ledger.open_batch(box)
    branch = ledger.open_branch(batch)
    [peel, _] = routed(ledger, Berry(), None, branch)
    assert peel.queue in ledger.queues.granted, "the place of the execution that waits"
    assert routed(ledger, Reply()) == []
    assert (waiting.queue.running, waiting.queue.waiting) == (0, 1)
    assert len(routed(ledger, Slice(), None, branch)) == 1
    assert peel.dropped
    assert peel.queue not in ledger.queues.granted
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


def test_r2_an_execution_that_waits_anew_does_not_want_its_place_back_yet() -> None:
    """One of its tasks was answered and wants to go on, another begins to wait meanwhile."""
    ledger = one_at_a_time(All())
    [waiting] = start_next(ledger, *routed(ledger, Berry(), ledger.graph.steps["peel"]))
    woken: list[str] = []
    first = Wait(waiting, Reply, {"n": 1}, None, wake=lambda: woken.append("first"))
    ledger.waits.begin(first)
    [other] = start_next(ledger, *routed(ledger, Berry(), ledger.graph.steps["peel"]))
    assert ledger.route(Reply(n=1)) == []
    assert woken == [], "the only place is taken"
    assert ledger.queues.busy() == 2, "one at work, one that wants to go on"
    assert not ledger.is_quiet(besides=other)
    second = Wait(waiting, Reply, {"n": 2}, None, wake=lambda: woken.append("second"))
    ledger.waits.begin(second)
    assert woken == ["first"], "it goes on without a place, beside a task that waits"
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
    found = Index()
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
    found = Index()
    waits = [
        Wait(Work(n, StepQueue(spec, 1), StartEvent()), event_type, {"n": value}, None)
        for n, (event_type, value) in enumerate(drawn)
    ]
    for wait in waits:
        found.add(wait)
    for wait in waits:
        found.discard(wait)
    assert not any(by_value for by_name in found._index.values() for by_value in by_name.values())


# --- Examples ---------------------------------------------------------------------------------


FRUIT_SHOP = [
    DrawnStep("peel", [Apple, Stone], num_workers=1, subclasses=False),
    DrawnStep("weigh", [Fruit], num_workers=2, subclasses=True),
]


@pytest.fixture
def ledger() -> Ledger:
    return Ledger(graph_of(FRUIT_SHOP))


def routed(ledger: Ledger, *args: Any) -> list[Work]:
    """Route an event that somebody takes."""
    work = ledger.route(*args)
    assert work is not None
    return work


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
    assert not ledger.queues.granted


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
    assert [queue.spec.name for queue in ledger.queues.granted] == ["peel"], "one place, one call"
    assert ledger.queues.take_slot() is first.queue
    assert not ledger.queues.granted
    ledger.finish(first)
    assert list(ledger.queues.granted) == [second.queue]
    assert list(ledger.pending.values()) == [second]
