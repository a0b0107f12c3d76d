"""Who is owed what. Pure: synchronous, no clock, no AnyIO; every change happens between two awaits.

# Theory of operation
#
# An event that is routed becomes one piece of `Work` for each step that takes it. From then on the
# ledger owes that work, until it is finished: `owed` holds it, in order of arrival, and nothing
# else says what is owed. The engine carries references to the work to the step, first in first out.
#
# A step has `limit` places. A *call* is a place that has been granted to the oldest work queued at
# the step, while no worker has come to take it yet. `calls` lists them in the order in which they
# were granted, over all steps: whoever is free answers the first one.
#
#                  route()                   answer()                  finish()
#     (event) ----------------> queued ---------------------> running ----------> (gone)
#                                                   wait() |     ^ a place is granted,
#                                                          v     | ahead of queued work
#                                                        waiting
#
# An execution that waits for an event gives its place back, and is granted one again before it goes
# on. What waits for company before it becomes work is in `_fanin`: batches, sets, collect buffers.
#
# Rules
# =====
#
# 1. calls + running <= limit, for every step (R2); but what is cancelled while it waits goes on
#    at once, over the limit.
# 2. calls == min(queued, limit - running), for every step, unless executions want their place back:
#    no place is free while work is queued or wants to go on.
# 3. Work is in `owed` exactly from `route()` to `finish()` or `_drop()`: nothing is lost or
#    delivered twice.
# 4. The run is idle exactly when `owed` is empty.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import attrs

from ._fanin import Batch, Branch, Buffers, Sets
from ._signatures import StepSpec
from ._waits import Waits
from ._work import Post, StepStatistics, Wait, Work, in_words
from .collect import Take
from .errors import WorkflowRuntimeError, nearest
from .events import Event
from .graph import Graph

__all__ = ["Ledger"]


@attrs.define(eq=False, init=False, repr=False)
class Ledger:
    """The books of one run.

    Attributes:
        graph: The steps.
        owed: All work that is owed, by id, in order of arrival.
        calls: The steps with a place for their oldest queued work, in the order of the grants.
        waits: The open waits, in the order in which they began.
        buffers: What `ctx.collect_events()` keeps.
        last_finished: Name of the step whose execution ended last.
        closed: Whether the run has ended, so that nothing more is owed.
    """

    graph: Graph
    owed: dict[int, Work]
    calls: deque[Post]
    waits: Waits
    buffers: Buffers
    last_finished: str | None
    closed: bool
    _sets: Sets
    _posts: dict[str, Post]
    _next_id: int

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.owed = {}
        self.calls = deque()
        self.waits = Waits()
        self.buffers = Buffers()
        self.last_finished = None
        self.closed = False
        self._sets = Sets()
        self._posts = {}
        self._next_id = 1

    # --- Routing ------------------------------------------------------------------------------

    def check_target(self, event: Event, step: str | None) -> StepSpec | None:
        """Return the step that `step` names.

        Raises:
            WorkflowRuntimeError: If there is no such step, it does not accept the event (R3), or
                it joins a batch, to which nothing can be sent (F5).
        """
        if step is None:
            return None
        spec = self.graph.steps.get(step)
        what = f"cannot send {type(event).__name__} to step {step!r}"
        if spec is None:
            raise WorkflowRuntimeError(f"{what}: no such step, {nearest(step, self.graph.steps)}")
        if any(wait.work.post.spec is spec for wait in self.waits.matching(event)):
            return spec
        if not spec.takes(type(event)):
            takes = ", ".join(accepted.__name__ for accepted in spec.accepts)
            raise WorkflowRuntimeError(f"{what}: it accepts {takes} only")
        if spec.is_join:
            raise WorkflowRuntimeError(f"{what}: it joins a batch; return the event from a step")
        return spec

    def route(
        self, event: Event, target: StepSpec | None = None, branch: Branch | None = None
    ) -> list[Work] | None:
        """Owe an event to the step `target`, or to each step that takes it (R1), and answer waits.

        Args:
            event: The event.
            target: The only step that is to have it.
            branch: The branch of a batch that it descends from.

        Returns:
            The new work, to be carried to its steps; `None` if nobody takes the event.
        """
        takers = self.graph.takers(type(event))
        if len(takers) == 1 and takers[0].is_plain and not self.waits and target is None:
            return self._owe(takers[0], event, branch)  # nothing else to think of, most often
        answered = self._answer_waits(event, target) if self.waits else ()
        if target is not None:
            return [] if target.name in answered else self._give(target, event, branch)
        new: list[Work] = []
        taken = bool(answered)
        for spec in takers:
            if spec.name in answered or (spec.is_join and not _joins(spec, branch)):
                continue
            taken = True
            new += self._give(spec, event, branch)
        if branch is not None and branch.batch.cancelled:
            new += self._drop_batch(branch.batch)
        return new if taken else None

    def _give(self, spec: StepSpec, event: Event, branch: Branch | None) -> list[Work]:
        if spec.is_plain:
            return self._owe(spec, event, branch)
        if not spec.is_join:
            if branch is None:
                sets = self._sets
            else:
                sets = branch.sets = branch.sets or Sets()
            full = sets.add(spec, event)
            return [] if full is None else self._owe(spec, full, branch)
        assert branch is not None
        batch = branch.batch
        arrived = batch.add(spec, event)
        if arrived is None:
            return []
        policy = spec.slots[0].policy
        if isinstance(policy, Take) and policy.cancel:
            batch.cancelled = True  # `route()` drops what is left of it
        return self._owe(spec, arrived, batch.outer)

    def _owe(self, spec: StepSpec, payload: Any, branch: Branch | None) -> list[Work]:
        if self.closed or (branch is not None and branch.batch.cancelled):
            return []
        post = self._posts.get(spec.name)
        if post is None:
            post = self._posts[spec.name] = Post(spec, spec.config.num_workers)
        work = Work(self._next_id, post, payload, branch)
        self._next_id += 1
        self.owed[work.id] = work
        if branch is not None:
            branch.work.add(work)
        post.queued += 1
        self._grant(post)
        return [work]

    # --- Places -------------------------------------------------------------------------------

    def _grant(self, post: Post) -> None:
        """Give a free place to an execution that wants to go on, else to queued work (rule 2)."""
        if post.calls + post.running >= post.limit:
            return
        if post.returning:
            self._go_on(post.returning.popleft())
        elif post.calls < post.queued:
            post.calls += 1
            self.calls.append(post)

    def answer(self) -> Post:
        """Take the first of `calls`; the oldest queued work of that step is to be started next."""
        post = self.calls.popleft()
        post.calls -= 1
        post.queued -= 1
        post.running += 1
        return post

    def finish(self, work: Work, came: type | None = None) -> list[Work]:
        """Note that `work` is done with, and pass its place on.

        Args:
            work: The work whose execution ended.
            came: The type of what it returned or raised; `None` if it was cancelled.

        Returns:
            New work: the joins that fire because this was the last of their batch.
        """
        del self.owed[work.id]
        post = work.post
        if work.suspended:
            self._refuse_waits(work)
        post.running -= 1
        post.done += 1
        post.last = came
        self.last_finished = post.spec.name
        self._grant(post)
        return [] if work.branch is None else self._leave(work, work.branch)

    # --- Waiting ------------------------------------------------------------------------------

    def wait(self, wait: Wait) -> None:
        """Begin a wait; the execution gives its place back.

        Raises:
            WorkflowRuntimeError: If the execution has an equal wait open (W4), or has ended.
        """
        work = wait.work
        if work.id not in self.owed:
            raise WorkflowRuntimeError(
                f"step {work.post.spec.name} has ended; only a step in progress can wait"
            )
        mine = wait.waiter_id, wait.event_type, wait.requirements
        for other in work.waits:
            theirs = other.waiter_id, other.event_type, other.requirements
            if wait.waiter_id is None and mine == theirs:
                raise WorkflowRuntimeError(
                    f"the step is waiting for {wait.event_type.__name__} already, with the same "
                    "requirements; give each wait a waiter_id"
                )
            if wait.waiter_id is not None and wait.waiter_id == other.waiter_id:
                raise WorkflowRuntimeError(
                    f"the step has an open wait with the waiter_id {wait.waiter_id!r} already"
                )
        if not work.suspended:
            work.post.running -= 1
            work.post.waiting += 1
        elif not work.waits:  # another task of the execution waits anew: no place is wanted now
            work.post.returning.remove(work)
            self._wake(work)
        work.waits += (wait,)
        self.waits.add(wait)
        self._grant(work.post)

    def _answer_waits(self, event: Event, target: StepSpec | None) -> set[str]:
        """Answer each wait that the event matches; returns the names of their steps (W2)."""
        matching = [
            wait for wait in self.waits.matching(event) if target in (None, wait.work.post.spec)
        ]
        for wait in matching:
            wait.answer = event
            self.end_wait(wait)
        return {wait.work.post.spec.name for wait in matching}

    def end_wait(self, wait: Wait) -> None:
        """Note that a wait is over, answered or not; once none is open, the place is wanted back.

        As long as another task of the same execution waits, this one goes on without a place.
        """
        if wait not in self.waits:
            return
        self.waits.discard(wait)
        work = wait.work
        work.waits = _without(work.waits, wait)
        if work.waits:
            wait.wake()
            return
        work.answered = (wait,)
        work.post.returning.append(work)
        self._grant(work.post)

    def abandon_wait(self, wait: Wait) -> None:
        """Note that a waiting task was cancelled: it goes on at once, over the limit (R2)."""
        work = wait.work
        self.waits.discard(wait)
        if wait in work.waits:
            work.waits = _without(work.waits, wait)
            if not work.waits:
                self._go_on(work)
        elif wait in work.answered:
            work.post.returning.remove(work)
            self._go_on(work)

    def close(self) -> None:
        """The run has ended: end all open waits, and owe nothing more."""
        self.closed = True
        for wait in list(self.waits):
            self._refuse_waits(wait.work)

    def _refuse_waits(self, work: Work) -> None:
        """End the waits of tasks that an execution leaves behind."""
        if work.answered:
            work.post.returning.remove(work)
        for wait in work.waits:
            wait.refused = True
            self.waits.discard(wait)
        work.answered += work.waits
        work.waits = ()
        self._go_on(work)

    def _go_on(self, work: Work) -> None:
        work.post.waiting -= 1
        work.post.running += 1
        self._wake(work)

    def _wake(self, work: Work) -> None:
        answered, work.answered = work.answered, ()
        for wait in answered:
            wait.wake()

    # --- Batches ------------------------------------------------------------------------------

    def open_batch(self, work: Work) -> Batch:
        """Open a batch for the list that the execution of `work` returned (F1)."""
        joins = self.graph.joins_of(work.post.spec)
        batch = Batch(work.branch, joins, {join: [] for join in joins})
        if work.branch is not None:
            work.branch.open(batch)
            batch.cancelled = work.branch.batch.cancelled
        return batch

    def open_branch(self, batch: Batch) -> Branch:
        """Begin a branch, for one element of the list; to be followed by `seal_branch()`."""
        branch = Branch(batch)
        batch.branches.add(branch)
        return branch

    def seal_branch(self, branch: Branch) -> list[Work]:
        """Note that the first event of the branch has been routed; returns joins that fire."""
        return self._end_branches(branch)

    def seal_batch(self, batch: Batch) -> list[Work]:
        """Note that all elements have been added; returns joins that fire."""
        batch.opening = False
        return [*self._fire(batch), *self._end_branches(batch.outer)] if batch.ended else []

    def _leave(self, work: Work, branch: Branch) -> list[Work]:
        branch.work.discard(work)
        return self._end_branches(branch)

    def _end_branches(self, branch: Branch | None) -> list[Work]:
        """End a branch if nothing is left of it, and what ends with it; returns joins that fire."""
        fired: list[Work] = []
        while branch is not None and branch.ended and branch in branch.batch.branches:
            batch = branch.batch
            batch.branches.remove(branch)
            if not batch.ended:
                break
            fired += self._fire(batch)
            branch = batch.outer
        return fired

    def _fire(self, batch: Batch) -> list[Work]:
        """Owe the joins of a batch that has ended what arrived for them."""
        fired: list[Work] = []
        for join, arrived in batch.arrived.items():
            fired += self._owe(join, arrived, batch.outer)
        batch.arrived.clear()
        if batch.outer is not None:
            batch.outer.close(batch)
        return fired

    def _drop_batch(self, batch: Batch) -> list[Work]:
        """Take back all work of a batch; returns joins that fire because of it."""
        fired: list[Work] = []
        for work in sorted(batch.cancel(), key=lambda work: work.id):
            if not work.dropped:
                fired += self._drop(work, work.branch)
        return fired

    def _drop(self, work: Work, branch: Branch) -> list[Work]:
        work.dropped = True
        if work.started:
            if work.stop is not None:
                work.stop()
            return []
        del self.owed[work.id]
        post = work.post
        post.queued -= 1
        if post.calls > post.queued:
            post.calls -= 1
            self.calls.remove(post)
            self._grant(post)
        return self._leave(work, branch)

    # --- Looking at the books -------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        """Whether nothing is owed (rule 4)."""
        return not self.owed

    def active_steps(self) -> list[str]:
        """Return the sorted names of the steps with an execution in progress or waiting."""
        return sorted(n for n, post in self._posts.items() if post.running or post.waiting)

    def statistics(self) -> dict[str, StepStatistics]:
        """Return the counts of every step of the graph."""
        found = {
            name: StepStatistics(post.queued, post.running, post.waiting, post.done)
            for name, post in self._posts.items()
        }
        return {name: found.get(name, StepStatistics()) for name in self.graph.steps}

    def last_acts(self) -> dict[str, str]:
        """Return what each step last did, in words."""
        posts = {name: self._posts.get(name) for name in self.graph.steps}
        return {
            name: in_words(post.last) if post is not None and post.done else "has not run"
            for name, post in posts.items()
        }

    def is_quiet(self, besides: Work | None = None) -> bool:
        """Return whether nothing goes on: all that is owed waits for events, or there is nothing.

        Args:
            besides: An execution that is about to end.
        """
        busy = sum(p.queued + p.running + len(p.returning) for p in self._posts.values())
        return busy == (0 if besides is None or besides.suspended else 1)

    def missing(self) -> Iterator[tuple[str, str]]:
        """Yield each step that has events kept for it, and what it lacks to go on."""
        yield from self._sets.missing()
        yield from self.buffers.missing()


def _joins(spec: StepSpec, branch: Branch | None) -> bool:
    return branch is not None and spec in branch.batch.joins


def _without(waits: tuple[Wait, ...], wait: Wait) -> tuple[Wait, ...]:
    return tuple(other for other in waits if other is not wait)
