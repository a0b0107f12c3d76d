"""Random trees of nested batches, against a model (F2-F4, F8)."""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Annotated, Any

import anyio
import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_workflows import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowHandler,
    step,
)
from anyio_workflows.collect import All, Collect, Opener, Take
from anyio_workflows.errors import WorkflowRuntimeError
from anyio_workflows.events import UnhandledEvent, WorkflowIdleEvent

from .conftest import BACKENDS
from .running import run_virtually

pytestmark = pytest.mark.anyio


@attrs.frozen
class Plan:
    """What one branch does: first the acts, then how it ends.

    Attributes:
        acts: `"loop"` goes through the step again, `"ask"` waits for a person, a number sleeps.
        end: `"leaf"` brings something to the join, `"die"` does not; a tuple opens a batch.
    """

    acts: tuple[str | float, ...]
    end: str | tuple[Plan, ...]


LEVELS = 3


def plans(level: int = 1) -> st.SearchStrategy[Plan]:
    acts = st.lists(st.sampled_from(["loop", "ask", 1.0, 2.0, 5.0]), max_size=3).map(tuple)
    ends: st.SearchStrategy[Any] = st.sampled_from(["leaf", "leaf", "die"])
    if level < LEVELS:
        ends = batches(level + 1) | ends
    return st.builds(Plan, acts, ends)


def batches(level: int = 1) -> st.SearchStrategy[tuple[Plan, ...]]:
    return st.lists(plans(level), max_size=4).map(tuple)


LIMITS = st.tuples(*[st.sampled_from([1, 2, 4])] * LEVELS)

POLICIES = st.tuples(
    *[st.sampled_from([All(), Take(2), Take(2, cancel=True), Take(3, cancel=True)])] * LEVELS
)


def canonical(values: Sequence[Any]) -> tuple[Any, ...]:
    """Return the survivors of a batch in an order that does not depend on time."""
    return tuple(sorted(values, key=repr))


def survivors(batch: Sequence[Plan], path: tuple[int, ...] = ()) -> Iterator[Any]:
    """Yield what the branches of a batch bring to its join, according to the plan."""
    for number, plan in enumerate(batch):
        if isinstance(plan.end, tuple):
            yield canonical(list(survivors(plan.end, (*path, number))))
        elif plan.end == "leaf":
            yield (*path, number, "leaf")


def planned_batches(batch: Sequence[Plan]) -> Iterator[Any]:
    """Yield the survivors of a batch and of all batches inside it."""
    yield sum(plan.end != "die" for plan in batch)
    for plan in batch:
        if isinstance(plan.end, tuple):
            yield from planned_batches(plan.end)


class Seed(StartEvent):
    plans: Any


class Node(Event):
    serial: int
    path: Any
    plan: Any


class Node1(Node): ...


class Node2(Node): ...


class Node3(Node): ...


class Leaf(Event):
    """What a branch brings to its join; the first leaf of a marked batch says which it is."""

    serial: int
    value: Any
    path: Any = None


class Leaf1(Leaf): ...


class Leaf2(Leaf): ...


class Leaf3(Leaf): ...


NODES = [Node1, Node2, Node3]

LEAVES = [Leaf1, Leaf2, Leaf3]


class WhoAreYou(InputRequiredEvent):
    serial: int


class Me(HumanResponseEvent):
    serial: int


@attrs.define(eq=False)
class Gardener:
    """What the steps of a tree do, and the books that a test keeps about it.

    Attributes:
        limits: `num_workers` of the steps of each level.
        policies: When the joins of each level fire; `None` for unmarked trees, where all wait.
        started: The serial numbers of the events that started a step.
        inside: How many executions of a step are in progress.
        arrivals: What was brought to each batch of a marked tree; its number is a serial number.
        joined: What each join got.
        cancelled: The batches that were cancelled.
        sown: The event whose step opened each batch, by the path of the batch.
        origins: The paths of the events that the joins got as the openers of their batches.
    """

    limits: tuple[int, ...]
    policies: tuple[All | Take, ...] | None = None
    serials: Iterator[int] = attrs.Factory(lambda: count(1))
    started: dict[str, list[int]] = attrs.Factory(lambda: defaultdict(list))
    inside: Counter[str] = attrs.Factory(Counter)
    arrivals: dict[tuple[int, ...], list[int]] = attrs.Factory(lambda: defaultdict(list))
    joined: list[list[Leaf]] = attrs.Factory(list)
    joined_at: dict[tuple[int, ...], list[list[int]]] = attrs.Factory(lambda: defaultdict(list))
    cancelled: set[tuple[int, ...]] = attrs.Factory(set)
    sown: dict[tuple[int, ...], Event] = attrs.Factory(dict)
    origins: list[tuple[int, ...]] = attrs.Factory(list)

    def sow(
        self, level: int, ev: Event, path: tuple[int, ...], batch: Sequence[Plan]
    ) -> list[Event]:
        assert path not in self.sown
        self.sown[path] = ev
        events: list[Event] = []
        if self.policies is not None:
            events.append(self.leaf(level, (*path, -1), "mark", path=path))
        for number, plan in enumerate(batch):
            node = NODES[level - 1](serial=next(self.serials), path=(*path, number), plan=plan)
            events.append(node)
        return events

    def leaf(self, level: int, branch: tuple[int, ...], value: Any, **fields: Any) -> Leaf:
        """Bring something to the join of the batch that the branch belongs to."""
        leaf = LEAVES[level - 1](serial=next(self.serials), value=value, **fields)
        batch = branch[:-1]
        if self.policies is not None and not self.is_cancelled(branch):
            arrived = self.arrivals[batch]
            arrived.append(leaf.serial)
            policy = self.policies[level - 1]
            if isinstance(policy, Take) and policy.cancel and len(arrived) == policy.n:
                self.cancelled.add(batch)
        return leaf

    def is_cancelled(self, path: tuple[int, ...]) -> bool:
        """Return whether a branch was cancelled, with a batch that it belongs to."""
        return any(path[:length] in self.cancelled for length in range(len(path)))

    def enter(self, name: str, limit: int) -> None:
        self.inside[name] += 1
        assert self.inside[name] <= limit, "more executions in progress than num_workers"

    async def visit(self, level: int, ctx: Context, ev: Node) -> Any:
        """Do what the plan says."""
        name, limit = f"visit{level}", self.limits[level - 1]
        assert not self.is_cancelled(ev.path), "a cancelled branch went on"
        self.started[name].append(ev.serial)
        self.enter(name, limit)
        try:
            for position, act in enumerate(ev.plan.acts, start=1):
                if act == "loop":
                    rest = attrs.evolve(ev.plan, acts=ev.plan.acts[position:])
                    return ev.replace(serial=next(self.serials), plan=rest)
                if act == "ask":
                    self.inside[name] -= 1
                    try:
                        await self.ask(ctx)
                    finally:
                        self.inside[name] += 1
                    assert self.inside[name] <= limit, "went on without a place"
                else:
                    await anyio.sleep(act)
        finally:
            self.inside[name] -= 1
        if ev.plan.end == "die":
            return None
        if ev.plan.end == "leaf":
            return self.leaf(level, ev.path, (*ev.path, "leaf"))
        return self.sow(level + 1, ev, ev.path, ev.plan.end)

    async def ask(self, ctx: Context) -> None:
        serial = next(self.serials)
        await ctx.wait_for_event(
            Me, WhoAreYou(serial=serial), requirements={"serial": serial}, timeout=None
        )

    async def join(self, level: int, leaves: list[Leaf], origin: Event) -> Any:
        """Bring what was joined one level up."""
        serials = [leaf.serial for leaf in leaves]
        path: tuple[int, ...] = origin.path if isinstance(origin, Node) else ()
        assert self.sown[path] is origin, "not what opened the batch"
        self.origins.append(path)
        assert serials == sorted(serials), "not in the order of completion"
        if self.policies is not None:
            assert leaves[0].path == path, "what opened another batch"
            leaves = leaves[1:]
            assert not self.is_cancelled(path), "a join in a cancelled branch fired"
            self.joined_at[path].append(serials)
        self.joined.append(leaves)
        value = canonical([leaf.value for leaf in leaves])
        if level == 1:
            return StopEvent(result=value)
        return self.leaf(level - 1, path, value)


@functools.cache
def tree_class(limits: tuple[int, ...], policies: tuple[All | Take, ...]) -> type[Workflow]:
    """Return a workflow with a step that fans out and one that joins, for each level."""
    first, second, third = limits
    join_first, join_second, join_third = (
        Annotated[list[leaf], Collect(policy)]  # type: ignore[valid-type]
        for leaf, policy in zip(LEAVES, policies, strict=True)
    )

    class Tree(Workflow):
        gardener: Gardener

        @step
        async def plant(self, ev: Seed) -> list[Node1 | Leaf1]:
            return self.gardener.sow(1, ev, (), ev.plans)  # type: ignore[return-value]

        @step(num_workers=first)
        async def visit1(
            self, ctx: Context, ev: Node1
        ) -> Node1 | list[Node2 | Leaf2] | Leaf1 | None:
            return await self.gardener.visit(1, ctx, ev)

        @step(num_workers=second)
        async def visit2(
            self, ctx: Context, ev: Node2
        ) -> Node2 | list[Node3 | Leaf3] | Leaf2 | None:
            return await self.gardener.visit(2, ctx, ev)

        @step(num_workers=third)
        async def visit3(self, ctx: Context, ev: Node3) -> Node3 | Leaf3 | None:
            return await self.gardener.visit(3, ctx, ev)

        @step
        async def join3(self, leaves: join_third, by: Annotated[Node2, Opener()]) -> Leaf2:  # type: ignore[valid-type]
            return await self.gardener.join(3, leaves, by)

        @step
        async def join2(self, leaves: join_second, by: Annotated[Node1, Opener()]) -> Leaf1:  # type: ignore[valid-type]
            return await self.gardener.join(2, leaves, by)

        @step
        async def join1(self, leaves: join_first, by: Annotated[Seed, Opener()]) -> StopEvent:  # type: ignore[valid-type]
            return await self.gardener.join(1, leaves, by)

    return Tree


async def answer(handler: WorkflowHandler[Any], serial: int) -> None:
    try:
        await handler.send_event(Me(serial=serial))
    except WorkflowRuntimeError:
        assert handler.is_done()


def grow(
    backend: str,
    gardener: Gardener,
    batch: Sequence[Plan],
    *,
    patient: bool,
) -> tuple[Any, WorkflowHandler[Any]]:
    """Run a tree; a patient reader answers only when nothing else goes on, last question first."""
    policies = gardener.policies or (All(),) * LEVELS

    async def main() -> tuple[Any, WorkflowHandler[Any]]:
        workflow = tree_class(gardener.limits, policies)(timeout=10_000)
        workflow.gardener = gardener  # type: ignore[attr-defined]
        handler = workflow.run(plans=batch)
        open_questions: list[int] = []
        async for event in handler.stream_events(expose_internal=True):
            assert not isinstance(event, UnhandledEvent) or gardener.cancelled
            if isinstance(event, WhoAreYou):
                open_questions.append(event.serial)
            if isinstance(event, WorkflowIdleEvent) or not patient:
                while open_questions:
                    await answer(handler, open_questions.pop())
        return await handler, handler

    return run_virtually(backend, main)


def check_order(gardener: Gardener) -> None:
    """Events of one step start in the order in which they came; all that started has ended."""
    for serials in gardener.started.values():
        assert serials == sorted(serials)
    assert not any(gardener.inside.values())


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=150, deadline=None)
@given(batch=batches(), limits=LIMITS, patient=st.booleans())
def test_f2_f3_random_trees_give_what_the_plan_says(
    backend: str, batch: tuple[Plan, ...], limits: tuple[int, ...], patient: bool
) -> None:
    gardener = Gardener(limits)
    result, handler = grow(backend, gardener, batch, patient=patient)
    assert result == canonical(list(survivors(batch)))
    assert Counter(map(len, gardener.joined)) == Counter(planned_batches(batch))
    assert sorted(gardener.origins) == sorted(gardener.sown)
    check_order(gardener)
    for found in handler.statistics().steps.values():
        assert (found.queued, found.running, found.waiting) == (0, 0, 0)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=150, deadline=None)
@given(batch=batches(), limits=LIMITS, policies=POLICIES, patient=st.booleans())
def test_f4_random_trees_with_early_joins(
    backend: str,
    batch: tuple[Plan, ...],
    limits: tuple[int, ...],
    policies: tuple[All | Take, ...],
    patient: bool,
) -> None:
    gardener = Gardener(limits, policies)
    grow(backend, gardener, batch, patient=patient)
    check_order(gardener)
    for path, arrived in gardener.arrivals.items():
        policy = policies[len(path)]
        expected = arrived[: policy.n] if isinstance(policy, Take) else arrived
        joined = gardener.joined_at[path]
        if policies[0] == All() and not gardener.is_cancelled(path):
            assert joined == [expected]
        else:  # the run ended, or the branch was cancelled, perhaps before the join started
            assert joined in ([], [expected])
    assert len(gardener.joined_at[()]) == 1
    assert len(set(gardener.origins)) == len(gardener.origins)
