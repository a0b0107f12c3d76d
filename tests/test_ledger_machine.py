"""The ledger with batches, sets and waits: a state machine against a naive model."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from anyio_workflows import Event
from anyio_workflows._ledger.fanin import Batch, Branch
from anyio_workflows._ledger.ledger import Ledger
from anyio_workflows._ledger.work import StepQueue, StepStatistics, Wait, Work
from anyio_workflows.collect import All, Take
from anyio_workflows.errors import WorkflowRuntimeError

from .ledger_graphs import (
    JOINS,
    OPENERS,
    POLICIES,
    TAKES,
    TYPES,
    Berry,
    Box,
    Order,
    Reply,
    Slice,
    granted,
    kitchen,
)


@attrs.define(eq=False)
class NaiveBatch:
    joins: list[str]
    opener: Event
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
    opener: Event | None = None
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
    cancelled: int = 0
    retried: int = 0


class NaiveBooks:
    """What the ledger has to say, found by looking through everything each time."""

    def __init__(
        self, limits: dict[str, int], policies: dict[str, All | Take], asking: set[str]
    ) -> None:
        self.asking = asking
        self.steps = {name: NaiveStep(limits[name], policies.get(name)) for name in TAKES}
        self.granted: list[str] = []
        self.pending: list[NaiveWork] = []
        self.batches: list[NaiveBatch] = []
        self.branches: list[NaiveBranch] = []
        self.ended: list[NaiveBatch] = []
        self.sets: dict[str, list[list[Event]]] = {}
        self.waits: list[Wait] = []
        self.work_of: dict[Wait, NaiveWork] = {}
        self.woken: list[Wait] = []
        self.stopped: list[NaiveWork] = []

    # Work and slots

    def enqueue(
        self,
        name: str,
        payload: list[Event],
        branch: NaiveBranch | None,
        opener: Event | None = None,
    ) -> list[NaiveWork]:
        if branch is not None and any(batch.cancelled for batch in branch.around()):
            return []
        work = NaiveWork(name, payload, branch, opener if name in self.asking else None)
        self.pending.append(work)
        self.steps[name].queued.append(work)
        self.grant(name)
        return [work]

    def grant(self, name: str) -> None:
        here = self.steps[name]
        while self.granted.count(name) + len(here.running) < here.limit:
            if here.resuming:
                self.resume(here.resuming.pop(0))
            elif self.granted.count(name) < len(here.queued):
                self.granted.append(name)
            else:
                break

    def start(self) -> NaiveWork:
        here = self.steps[self.granted.pop(0)]
        here.running.append(here.queued.pop(0))
        return here.running[-1]

    def finish(self, work: NaiveWork, cancelled: bool) -> list[NaiveWork]:
        here = self.steps[work.step]
        self.pending.remove(work)
        self.leave(work)
        self.waits = [wait for wait in self.waits if wait not in work.earlier]
        here.done += 1
        here.cancelled += cancelled
        self.grant(work.step)
        return self.settle()

    def delay(self, work: NaiveWork, due: float) -> None:
        here = self.steps[work.step]
        self.leave(work)
        here.delayed.append((due, work))
        here.retried += 1
        # What has timed out is waited for anew, and so is nothing to be given again.
        work.earlier = [wait for wait in work.begun + work.earlier if not wait.timed_out]
        work.begun = []
        left = [wait for wait in work.earlier if wait.answer is None]
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
            return self.enqueue(name, [event], branch)
        sets = self.sets if branch is None else branch.sets
        queues = sets.setdefault(name, [[] for _ in TAKES[name]])
        fitting = [n for n, types in enumerate(TAKES[name]) if type(event) in types]
        shortest = min(len(queues[n]) for n in fitting)
        next(queues[n] for n in fitting if len(queues[n]) == shortest).append(event)
        if not all(queues):
            return []
        return self.enqueue(name, [queue.pop(0) for queue in queues], branch)

    def join(self, name: str, event: Event, batch: NaiveBatch) -> list[NaiveWork]:
        policy = self.steps[name].policy
        if batch.fired[name]:
            return []
        batch.arrived[name].append(event)
        if not isinstance(policy, Take) or len(batch.arrived[name]) < policy.n:
            return []
        batch.fired[name] += 1
        batch.cancelled = batch.cancelled or policy.cancel
        return self.enqueue(name, batch.arrived[name], batch.outer, batch.opener)

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
            if self.granted.count(work.step) > len(here.queued):
                self.granted.remove(work.step)
            self.grant(work.step)

    # Batches

    def open_batch(self, work: NaiveWork) -> NaiveBatch:
        joins = JOINS[work.step]
        batch = NaiveBatch(joins, work.payload[0], work.branch, {join: [] for join in joins})
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
                    new += self.enqueue(join, ended.arrived[join], ended.outer, ended.opener)
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
        asking=st.sets(st.sampled_from([*OPENERS])),
    )
    def declare(
        self,
        limits: dict[str, int],
        policies: dict[str, All | Take],
        boxes: list[list[type[Event]]],
        asking: set[str],
    ) -> None:
        self.ledger = Ledger(kitchen(limits, policies, asking))
        self.books = NaiveBooks(limits, policies, asking)
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
            if self.books.granted:
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
            assert work.opener is naive.opener
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

    @precondition(lambda self: self.books.granted)
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
        work.cancel = lambda: self.stopped.append(naive)

    @precondition(lambda self: self.books.granted)
    @rule(data=st.data(), number=st.integers(1, 5))
    def execute(self, data: st.DataObject, number: int) -> None:
        """Let the oldest calls be answered by steps that never wait."""
        for _ in range(number):
            if self.books.granted:
                work = self.books.steps[self.books.granted[0]].queued[0]
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
            work.real.cancel = None
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
        work.real.cancel = None
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
        self.end(work, cancelled=work.dropped)

    def emit_list(self, work: NaiveWork, events: list[Event]) -> None:
        work.real.cancel = None
        batch, naive_batch = self.ledger.open_batch(work.real), self.books.open_batch(work)
        self.batches.append((batch, naive_batch))
        for event in events:
            branch, naive = self.ledger.open_branch(batch), self.books.open_branch(naive_batch)
            self.branches[branch] = naive
            new = self.ledger.route(event, None, branch)
            self.carry(new, self.books.route(event, None, naive))
            self.carry(self.ledger.seal_branch(branch), self.books.seal(naive))
        self.carry(self.ledger.seal_batch(batch), self.books.seal(naive_batch))

    def end(self, work: NaiveWork, cancelled: bool = False) -> None:
        left = list(work.waits)
        self.last_finished = work.step
        result = None if cancelled else Berry
        self.carry(self.ledger.finish(work.real, result), self.books.finish(work, cancelled))
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
    def capacity_is_respected(self) -> None:  # rule 2
        for queue in self.inboxes:
            over = sum(work.over_the_limit for work in self.books.steps[queue.spec.name].running)
            assert min(queue.granted, queue.queued, queue.running, queue.waiting) >= 0
            assert queue.granted + queue.running <= queue.limit + over

    @invariant()
    def no_slot_is_free_while_it_is_wanted(self) -> None:  # rule 3
        for queue in self.inboxes:
            if queue.granted + queue.running < queue.limit:
                assert queue.granted == queue.queued
                assert not queue.resuming
            assert queue.granted == granted(self.ledger).count(queue)
        assert [queue.spec.name for queue in granted(self.ledger)] == self.books.granted

    @invariant()
    def everything_is_pending_until_it_is_finished_or_dropped(self) -> None:  # rule 1
        assert list(self.ledger.pending.values()) == [work.real for work in self.books.pending]
        assert self.ledger.idle is not bool(self.books.pending)  # rule 1
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
            left = {name for name in naive.joins if not naive.fired[name]}
            assert left == {
                join.name for join, arrived in batch.arrived.items() if arrived is not None
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
                cancelled=s.cancelled,
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
            if self.books.granted:
                self.answer()
            elif self.suspended():
                self.time_out(0)
            elif self.ledger.queues.next_due < math.inf:
                self.let_time_pass(3)
            else:
                work = next(work for work in self.started() if not work.answered)
                work.real.cancel = None
                self.end(work, cancelled=True)
            self.no_slot_is_free_while_it_is_wanted()
        assert self.ledger.idle
        assert not granted(self.ledger)
        assert not self.ledger.waits.open
        assert not self.books.batches
        for batch, naive in self.batches:
            assert batch.ended
            assert naive.fired == Counter(naive.joins)


KitchenMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
TestKitchenMachine = KitchenMachine.TestCase
