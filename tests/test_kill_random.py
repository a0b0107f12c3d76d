"""Random workflows, killed at random commits: they come to the same end (D1 to D9)."""

from __future__ import annotations

import functools
from typing import Annotated, Any, Literal

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
    StepFailedEvent,
    StopEvent,
    Workflow,
    catch_error,
    step,
)
from anyio_workflows.collect import All, Collect, Opener, Take
from anyio_workflows.retry_policy import retry_policy, stop_after_attempt, wait_fixed
from anyio_workflows.testing import Kill, kill_at

from .conftest import BACKENDS

LEVELS = 2
ACTS = [
    "loop",
    "ask",
    "ask three",
    "late",
    "fail",
    "write",
    "keep",
    "edit",
    "send",
    "pair",
    1.0,
    3.0,
]

Act = str | float


@attrs.frozen
class Plan:
    """What one branch does: first the acts, then how it ends.

    Attributes:
        acts: `"loop"` goes through the step again, `"ask"` waits for a person, `"ask three"` three times at
            once, `"late"` for something that does not come in time; `"fail"` fails once; the others write to the
            stream, to the state, and to other steps; a number sleeps.
        end: `"leaf"` brings something to the join, `"die"` does not, `"break"` fails for good, which an error
            handler makes up for; a list opens a batch.
    """

    acts: list[str | float]
    end: str | list[Plan]


def plans(level: int = 1, most: int = 3) -> st.SearchStrategy[Plan]:
    acts = st.lists(st.sampled_from(ACTS), max_size=3)
    ends: st.SearchStrategy[Any] = st.sampled_from(["leaf", "leaf", "die", "break"])
    if level < LEVELS:
        ends = st.lists(plans(level + 1, 2), max_size=2) | ends
    return st.builds(Plan, acts, ends)


class Seed(StartEvent):
    plans: list[Plan] = []


class Node(Event):
    path: str
    plan: Plan


class Node1(Node): ...


class Node2(Node): ...


class Leaf(Event):
    value: Any


class Leaf1(Leaf): ...


class Leaf2(Leaf): ...


class Mark(Event):
    path: str


class Left(Event):
    path: str


class Right(Event):
    path: str


class Ask(InputRequiredEvent):
    path: str


class Say(HumanResponseEvent):
    path: str


class Never(HumanResponseEvent):
    pass


def say(event: Event) -> Event | None:
    return Say(path=event.path) if isinstance(event, Ask) else None


async def ask(ctx: Context, name: str) -> None:
    said = await ctx.wait_for_event(
        Say, Ask(path=name), requirements={"path": name}, waiter_id=name
    )
    assert said.path == name


async def act(ctx: Context, ev: Node, position: int, what: Act) -> None:
    """Do one of the acts of a plan; what it writes does not depend on how often it is done."""
    name = f"{ev.path}.{len(ev.plan.acts) - position}"
    match what:
        case "ask":
            await ask(ctx, name)
        case "ask three":
            async with anyio.create_task_group() as group:
                for n in range(3):
                    group.start_soon(ask, ctx, f"{name}.{n}")
        case "late":
            with pytest.raises(TimeoutError):
                await ctx.wait_for_event(Never, timeout=5, waiter_id=name)
        case "fail":
            if ctx.retry_info().retry_number == 0:
                raise OSError(name)
        case "write":
            ctx.write_event_to_stream(Mark(path=name))
        case "keep":
            await ctx.store.set(f"keep {name}", [name])
        case "edit":
            async with ctx.store.edit_state() as state:
                state.setdefault("edits", {})[name] = name
                await anyio.sleep(0.5)
        case "send":
            ctx.send_event(Mark(path=name))
        case "pair":
            ctx.send_event(Left(path=name))
            ctx.send_event(Right(path=name))
        case float():
            await anyio.sleep(what)


async def visit(ctx: Context, ev: Node) -> Any:
    """Do what the plan says; returns the event itself, a batch of plans, or what the branch brings."""
    for position, what in enumerate(ev.plan.acts, start=1):
        if what == "loop":
            rest = Plan(ev.plan.acts[position:], ev.plan.end)
            return ev.replace(plan=rest)
        await act(ctx, ev, position, what)
    if ev.plan.end == "break":
        raise ValueError(ev.path)
    return ev.plan.end


def retried(n: int) -> Any:
    return retry_policy(wait=wait_fixed(n), stop=stop_after_attempt(2))


@functools.cache
def tree_class(limits: tuple[int, ...], policies: tuple[All | Take, ...]) -> type[Workflow]:
    """Return a workflow with a step that fans out and one that joins, for each level."""
    joins = [
        Annotated[list[leaf], Collect(policy)]  # type: ignore[valid-type]
        for leaf, policy in zip((Leaf1, Leaf2), policies, strict=True)
    ]

    def joined(level: int, leaves: list[Any]) -> Any:
        """What reaches a join that does not wait for all depends on time; how much does not."""
        if any(isinstance(policy, Take) for policy in policies[level - 1 :]):
            return len(leaves)
        return sorted((leaf.value for leaf in leaves), key=repr)

    class Tree(Workflow):
        @step
        async def plant(self, ev: Seed) -> list[Node1]:
            return [Node1(path=str(n), plan=plan) for n, plan in enumerate(ev.plans)]

        @step(num_workers=limits[0], retry_policy=retried(2))
        async def visit1(self, ctx: Context, ev: Node1) -> Node1 | list[Node2] | Leaf1 | None:
            found = await visit(ctx, ev)
            if isinstance(found, list):
                return [Node2(path=f"{ev.path}/{n}", plan=plan) for n, plan in enumerate(found)]
            if isinstance(found, str):
                return Leaf1(value=ev.path) if found == "leaf" else None
            return found

        @step(num_workers=limits[1], retry_policy=retried(1))
        async def visit2(self, ctx: Context, ev: Node2) -> Node2 | Leaf2 | None:
            found = await visit(ctx, ev)
            if isinstance(found, str):
                return Leaf2(value=ev.path) if found == "leaf" else None
            return found

        @catch_error(for_steps=["visit1"])
        async def mend1(self, ev: StepFailedEvent) -> Leaf1:
            return Leaf1(value=f"broken {ev.input_event.path} {ev.attempts}")

        @catch_error(for_steps=["visit2"])
        async def mend2(self, ev: StepFailedEvent) -> Leaf2:
            return Leaf2(value=f"broken {ev.input_event.path} {ev.attempts}")

        @step
        async def join2(self, leaves: joins[1], by: Annotated[Node1, Opener()]) -> Leaf1:
            return Leaf1(value=(by.path, joined(2, leaves)))

        @step
        async def join1(self, ctx: Context, leaves: joins[0]) -> StopEvent:
            return StopEvent(result=joined(1, leaves))

        @step(num_workers=2)
        async def mark(self, ctx: Context, ev: Mark) -> None:
            await ctx.store.set(f"mark {ev.path}", True)

        @step(num_workers=2)
        async def pair(self, ctx: Context, left: Left, right: Right) -> Mark:
            found = ctx.collect_events(left, [Left] * 2, buffer_id="pairs")
            return Mark(path=f"{left.path} {right.path} {found is None}")

    return Tree


KILLS = st.builds(
    Kill,
    st.integers(1, 12),
    st.sampled_from(["before", "after"]),
    st.sampled_from(["kill", "kill", "leave"]),
)
POLICIES = st.sampled_from([All(), All(), Take(2), Take(2, cancel=True)])


@pytest.mark.parametrize("backend", BACKENDS)
@given(
    batch=st.lists(plans(), min_size=1, max_size=3),
    limits=st.tuples(*[st.sampled_from([1, 2, 4])] * LEVELS),
    policies=st.tuples(*[POLICIES] * LEVELS),
    kills=st.lists(KILLS, min_size=1, max_size=3),
    durability=st.sampled_from(["strict", "eventual"]),
)
@settings(max_examples=100)
def test_d1_to_d9_random_trees_come_to_the_same_end(
    backend: str,
    batch: list[Plan],
    limits: tuple[int, ...],
    policies: tuple[All | Take, ...],
    kills: list[Kill],
    durability: Literal["strict", "eventual"],
) -> None:
    tree = tree_class(limits, policies)
    kill_at(
        lambda: tree(timeout=10_000, skip_graph_checks=["reachability", "dead_end"]),
        *kills,
        backend=backend,
        start=Seed(plans=batch),
        answer=say,
        durability=durability,
    )
