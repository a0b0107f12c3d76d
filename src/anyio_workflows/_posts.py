"""The places of each step, and who has them. Pure, like the ledger that owns them.

# Theory of operation
#
# A step has `limit` places. A *call* is a place that has been granted to the oldest work queued at
# the step, while no worker has come to take it yet. `calls` lists them in the order in which they
# were granted, over all steps: whoever is free answers the first one.
#
#                 answer()            leave()
#     queued ---------------> running -------> (gone)
#       ^                     |  |  ^
#       | end_delays()        |  |  | a place is granted, ahead of queued work
#       |             delay() |  |  |
#       +---------- delayed <-+  +-> waiting
#                                suspend()
#
# Rules
# =====
#
# 1. calls + running <= limit, for every step (R2); but what is cancelled while it waits goes on
#    at once, over the limit.
# 2. calls == min(queued, limit - running), for every step, unless executions want their place back:
#    no place is free while work is queued or wants to go on.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable

import attrs

from ._work import Post, StepStatistics, Work
from .events import StepState
from .graph import StepSpec

__all__ = ["Posts"]


@attrs.define(eq=False, repr=False)
class Posts:
    """The places of every step of a run.

    Attributes:
        calls: The steps with a place for their oldest queued work, in the order of the grants.
        by_step: The steps that have had work, by name.
        tell: Told when work is queued, waits, goes on or is withdrawn, while somebody listens. The
            crew tells when it starts, the dispatch when it is over.
    """

    calls: deque[Post] = attrs.field(factory=deque)
    by_step: dict[str, Post] = attrs.field(factory=dict)
    tell: Callable[[Work, StepState], None] | None = None
    _delays: list[tuple[float, int, Work]] = attrs.field(factory=list)

    def of(self, spec: StepSpec) -> Post:
        """Return the places of a step."""
        post = self.by_step.get(spec.name)
        if post is None:
            post = self.by_step[spec.name] = Post(spec, spec.config.num_workers)
        return post

    def queue(self, work: Work) -> None:
        """Note that work waits for a place."""
        post = work.post
        post.queued += 1
        if post.calls + post.running < post.limit:  # then nobody is ahead of it (rule 2)
            post.calls += 1
            self.calls.append(post)
        if self.tell is not None:
            self.tell(work, StepState.PREPARING)

    def withdraw(self, work: Work) -> None:
        """Take work back that has no place yet."""
        post = work.post
        if work.due is not None:
            post.delayed -= 1
            return
        post.queued -= 1
        if self.tell is not None:
            self.tell(work, StepState.NOT_RUNNING)
        if post.calls > post.queued:
            post.calls -= 1
            self.calls.remove(post)
            self._grant(post)

    def _grant(self, post: Post) -> None:
        """Give a free place to an execution that wants to go on, else to queued work (rule 2)."""
        if post.calls + post.running >= post.limit:
            return
        if post.returning:
            self.go_on(post.returning.popleft())
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

    def leave(self, post: Post) -> None:
        """Give the place of an execution that is over to the next one."""
        post.running -= 1
        if post.queued > post.calls or post.returning:
            self._grant(post)

    # --- Waiting ------------------------------------------------------------------------------

    def suspend(self, work: Work) -> None:
        """Note that an execution begins to wait, and gives its place back."""
        work.post.running -= 1
        work.post.waiting += 1
        if self.tell is not None:
            self.tell(work, StepState.WAITING)
        self._grant(work.post)

    def want_back(self, work: Work) -> None:
        """Note that an execution wants its place back."""
        if work.post.returning is None:
            work.post.returning = deque()
        work.post.returning.append(work)
        self._grant(work.post)

    def want_no_more(self, work: Work) -> None:
        """Note that an execution that wanted its place back has another way to go on."""
        if work.post.returning is not None:
            work.post.returning.remove(work)

    def go_on(self, work: Work) -> None:
        """Let an execution go on that waited."""
        self.stop_waiting(work)
        if self.tell is not None:
            self.tell(work, StepState.RUNNING)

    def stop_waiting(self, work: Work) -> None:
        """Let an execution go on, or end, that waited."""
        work.post.waiting -= 1
        work.post.running += 1
        wake(work)

    # --- Retry delays -------------------------------------------------------------------------

    def delay(self, work: Work, due: float) -> None:
        """Note that an execution gives its place back, until it is queued again at time `due`."""
        self.hold(work, due)
        self.leave(work.post)

    def hold(self, work: Work, due: float) -> None:
        """Keep work that has no place, until it is queued at time `due`."""
        work.due = due
        work.post.delayed += 1
        heapq.heappush(self._delays, (due, work.id, work))

    @property
    def next_due(self) -> float:
        """When the next delay is over; infinite if there is none."""
        while self._delays and self._delays[0][2].dropped:
            heapq.heappop(self._delays)
        return self._delays[0][0] if self._delays else math.inf

    def end_delays(self, now: float) -> list[Work]:
        """Queue the work whose delay is over; it is to be carried to its steps."""
        over: list[Work] = []
        while self.next_due <= now:
            _, _, work = heapq.heappop(self._delays)
            work.due = None
            work.post.delayed -= 1
            self.queue(work)
            over.append(work)
        return over

    # --- Counts -------------------------------------------------------------------------------

    def active_steps(self) -> list[str]:
        """Return the sorted names of the steps that are at work, wait, or are in a retry delay."""
        active = (p for p in self.by_step.values() if p.running or p.waiting or p.delayed)
        return sorted(post.spec.name for post in active)

    def statistics(self) -> dict[str, StepStatistics]:
        """Return the counts of the steps that have had work."""
        counts = [field.name for field in attrs.fields(StepStatistics)]
        return {
            name: StepStatistics(**{count: getattr(post, count) for count in counts})
            for name, post in self.by_step.items()
        }

    def busy(self) -> int:
        """Return how many executions go on, or will without an event from outside."""
        posts = self.by_step.values()
        return sum(p.queued + p.running + p.delayed + len(p.returning or ()) for p in posts)


def wake(work: Work) -> None:
    """Let the tasks of an execution go on whose waits are over."""
    answered, work.answered = work.answered, ()
    for wait in answered:
        wait.wake()
