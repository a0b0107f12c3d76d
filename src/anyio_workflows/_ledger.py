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
#
# Rules
# =====
#
# 1. calls + running <= limit, for every step (R2).
# 2. calls == min(queued, limit - running), for every step: no place is free while work is queued.
# 3. Work is in `owed` exactly from `route()` to `finish()`: nothing is lost or delivered twice.
# 4. The run is idle exactly when `owed` is empty.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import attrs

from .errors import WorkflowRuntimeError, nearest
from .events import Event
from .graph import Graph, StepSpec

__all__ = ["Ledger", "Post", "StepStatistics", "Work"]


@attrs.frozen
class StepStatistics:
    """Counts of the work of one step in one run.

    Attributes:
        queued: Events that wait for a worker.
        running: Executions in progress.
        done: Executions that ended, failed ones included.
    """

    queued: int
    running: int
    done: int


@attrs.define(eq=False, repr=False)
class Work:
    """One event that is owed to one step.

    Attributes:
        id: Number of this work in its run; rises in the order of arrival.
        post: The step's entry in the ledger.
        event: The event that starts the step.
        attempt: The attempt that comes next or is in progress, from 1.
    """

    id: int
    post: Post
    event: Event
    attempt: int = 1


@attrs.define(eq=False, repr=False)
class Post:
    """One step's entry in the ledger: how much of its work is where."""

    spec: StepSpec
    limit: int
    queued: int = 0
    calls: int = 0
    running: int = 0
    done: int = 0


@attrs.define(eq=False, init=False, repr=False)
class Ledger:
    """The books of one run.

    Attributes:
        graph: The steps.
        owed: All work that is owed, by id, in order of arrival.
        calls: The steps with a place for their oldest queued work, in the order of the grants.
        last_finished: Name of the step whose execution ended last.
    """

    graph: Graph
    owed: dict[int, Work]
    calls: deque[Post]
    last_finished: str | None
    _posts: dict[str, Post]
    _next_id: int

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.owed = {}
        self.calls = deque()
        self.last_finished = None
        self._posts = {}
        self._next_id = 1

    def check_target(self, event: Event, step: str | None) -> StepSpec | None:
        """Return the step that `step` names.

        Raises:
            WorkflowRuntimeError: If there is no such step, or it does not accept the event (R3).
        """
        if step is None:
            return None
        spec = self.graph.steps.get(step)
        name = type(event).__name__
        if spec is None:
            hint = nearest(step, self.graph.steps)
            raise WorkflowRuntimeError(f"cannot send {name} to step {step!r}: no such step, {hint}")
        if not spec.takes(type(event)):
            takes = ", ".join(accepted.__name__ for accepted in spec.accepts)
            raise WorkflowRuntimeError(
                f"cannot send {name} to step {step!r}: it accepts {takes} only"
            )
        return spec

    def route(self, event: Event, target: StepSpec | None = None) -> list[Work]:
        """Owe an event to the step `target`, or to each step that takes it (R1)."""
        takers: Iterable[StepSpec]
        takers = (target,) if target is not None else self.graph.takers(type(event))
        return [self._owe(spec, event) for spec in takers]

    def _owe(self, spec: StepSpec, event: Event) -> Work:
        post = self._posts.get(spec.name)
        if post is None:
            post = self._posts[spec.name] = Post(spec, spec.config.num_workers)
        work = Work(self._next_id, post, event)
        self._next_id += 1
        self.owed[work.id] = work
        post.queued += 1
        self._call(post)
        return work

    def _call(self, post: Post) -> None:
        """Grant a place to queued work if there is one left (rule 2)."""
        if post.calls < post.queued and post.calls + post.running < post.limit:
            post.calls += 1
            self.calls.append(post)

    def answer(self) -> Post:
        """Take the first of `calls`; the oldest queued work of that step is to be started next."""
        post = self.calls.popleft()
        post.calls -= 1
        post.queued -= 1
        post.running += 1
        return post

    def finish(self, work: Work) -> None:
        """Note that `work` is done with, and pass its place on."""
        del self.owed[work.id]
        post = work.post
        post.running -= 1
        post.done += 1
        self.last_finished = post.spec.name
        self._call(post)

    @property
    def idle(self) -> bool:
        """Whether nothing is owed (rule 4)."""
        return not self.owed

    def active_steps(self) -> list[str]:
        """Return the sorted names of the steps with an execution in progress."""
        return sorted(name for name, post in self._posts.items() if post.running)

    def statistics(self) -> dict[str, StepStatistics]:
        """Return the counts of every step of the graph."""
        none = StepStatistics(0, 0, 0)
        found = {
            name: StepStatistics(post.queued, post.running, post.done)
            for name, post in self._posts.items()
        }
        return {name: found.get(name, none) for name in self.graph.steps}
