"""Whatever runs do in a block, resources of both scopes live as long as they should (P5, O3)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from inspect import Parameter, Signature
from typing import Annotated, Any

import anyio
import attrs
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_workflows import Event, StartEvent, StopEvent, Workflow, WorkflowHandler, step
from anyio_workflows.resource import Resource

from .running import on_each_backend, run_virtually
from .samples import ProviderError


@attrs.frozen
class Plan:
    """A resource: how long it lives, how it is made, and which of those before it it needs."""

    scope: str
    cache: bool
    closes: bool
    opening: int
    closing: int
    needs: frozenset[int]


@attrs.frozen
class RunPlan:
    starts: int
    lasts: int
    fails: bool
    gives_up: int


@st.composite
def resource_plans(draw: st.DrawFn) -> list[Plan]:
    plans: list[Plan] = []
    for n in range(draw(st.integers(1, 6))):
        scope = draw(st.sampled_from(["run", "workflow", "workflow"]))
        cache = scope == "workflow" or draw(st.booleans())
        allowed = [i for i in range(n) if scope == "run" or may_be_shared(plans, i)]
        needs = (
            draw(st.frozensets(st.sampled_from(allowed), max_size=3)) if allowed else frozenset()
        )
        plans.append(
            Plan(
                scope=scope,
                cache=cache,
                closes=draw(st.booleans()),
                opening=draw(st.integers(0, 3)),
                closing=draw(st.integers(0, 2)),
                needs=needs,
            )
        )
    return plans


def may_be_shared(plans: list[Plan], n: int) -> bool:
    """Return whether a resource of the workflow may depend on this one."""
    if plans[n].cache:
        return plans[n].scope == "workflow"
    return all(may_be_shared(plans, below) for below in plans[n].needs)


@attrs.define(eq=False)
class Thing:
    """One resource that was made."""

    n: int
    needs: list[Thing]
    task: int
    alive: bool = True


class World:
    """Makes what the plans say, and checks that it lives as long as it should."""

    def __init__(self, plans: list[Plan]) -> None:
        self.plans = plans
        self.things: list[Thing] = []
        self.faults: list[str] = []
        self.started: list[WorkflowHandler[Any]] = []
        self.runs_of: dict[Thing, list[WorkflowHandler[Any]]] = {}
        self.stacks: dict[int, list[Thing]] = {}
        self.marks: list[Any] = []
        for n, plan in enumerate(plans):
            scope: Any = plan.scope
            self.marks.append(Annotated[Any, Resource(self.factory(n), plan.cache, scope)])

    def expect(self, holds: bool, fault: str) -> None:
        if not holds:
            self.faults.append(fault)

    def signature(
        self, wanted: frozenset[int], *params: Parameter, returns: Any = None
    ) -> Signature:
        asked = [
            Parameter(f"x{n}", Parameter.KEYWORD_ONLY, annotation=self.marks[n])
            for n in sorted(wanted)
        ]
        return Signature([*params, *asked], return_annotation=returns)

    def factory(self, n: int) -> Any:
        plan = self.plans[n]

        async def plain(**given: Thing) -> Thing:
            await anyio.sleep(plan.opening)
            return self.open(n, given)

        async def closing(**given: Thing) -> AsyncIterator[Thing]:
            await anyio.sleep(plan.opening)
            thing = self.open(n, given)
            stack = self.stacks.setdefault(thing.task, [])
            stack.append(thing)
            try:
                yield thing
            finally:
                self.expect(stack.pop() is thing, "not closed in reverse order")
                self.expect(anyio.get_current_task().id == thing.task, "closed by another task")
                self.close(thing)
                await anyio.sleep(plan.closing)

        make = closing if plan.closes else plain
        make.__signature__ = self.signature(plan.needs)  # type: ignore[attr-defined]
        return make

    def open(self, n: int, given: dict[str, Thing]) -> Thing:
        self.expect({thing.n for thing in given.values()} == self.plans[n].needs, "wrong needs")
        self.expect(all(thing.alive for thing in given.values()), "made of what is closed")
        thing = Thing(n, list(given.values()), anyio.get_current_task().id)
        self.things.append(thing)
        return thing

    def close(self, thing: Thing) -> None:
        users = [user for user in self.things if user.alive and thing in user.needs]
        self.expect(not [u for u in users if self.plans[u.n].closes], "closed before what needs it")
        if self.plans[thing.n].scope == "workflow":
            runs = self.runs_of.get(thing, ())
            self.expect(all(run.is_done() for run in runs), "closed before a run that uses it")
        thing.alive = False

    def workflow(self, wanted: list[frozenset[int]]) -> Workflow:
        """Return a workflow whose two steps, one after the other, use these resources."""

        def user(event: type[Event], wants: frozenset[int], returns: type[Event]) -> Any:
            async def work(self_: Any, ev: Any, **given: Thing) -> Event:
                for thing in given.values():
                    self.runs_of.setdefault(thing, []).append(ev.me())
                try:
                    await anyio.sleep(ev.lasts)
                finally:
                    self.expect(all(thing.alive for thing in given.values()), "closed too early")
                if ev.fails:
                    raise ProviderError
                return returns(**dict(ev))

            params = [
                Parameter("self_", Parameter.POSITIONAL_OR_KEYWORD),
                Parameter("ev", Parameter.POSITIONAL_OR_KEYWORD, annotation=event),
            ]
            work.__signature__ = self.signature(wants, *params, returns=returns)  # type: ignore[attr-defined]
            return step(work)

        class Random(Workflow):
            first = user(StartEvent, wanted[0], Event)
            second = user(Event, wanted[1], StopEvent)

        return Random(timeout=None, cleanup_timeout=1000)


run_plans = st.lists(
    st.builds(
        RunPlan,
        starts=st.integers(0, 9),
        lasts=st.integers(0, 6),
        fails=st.booleans(),
        gives_up=st.integers(1, 12),
    ),
    max_size=5,
)


async def one(world: World, workflow: Workflow, plan: RunPlan) -> None:
    """Start a run, and cancel it if it takes too long."""
    await anyio.sleep(plan.starts)
    me: list[WorkflowHandler[Any]] = []
    me.append(workflow.run(me=lambda: me[0], lasts=plan.lasts, fails=plan.fails))
    world.started += me
    with suppress(ProviderError), anyio.move_on_after(plan.gives_up):
        await me[0]
    await me[0].cancel_run()


async def in_block(
    world: World, workflow: Workflow, plans: list[RunPlan], leaves: int, raises: bool
) -> None:
    """Start runs in the block of a workflow, and leave it at some moment."""
    async with workflow, anyio.create_task_group() as group:
        for plan in plans:
            group.start_soon(one, world, workflow, plan)
        if raises:
            await anyio.sleep(leaves)
            raise ProviderError
        if leaves % 2:
            await anyio.sleep(leaves)
            group.cancel_scope.cancel()


@on_each_backend
@given(resource_plans(), st.data(), run_plans, run_plans, st.integers(0, 20), st.booleans())
@settings(max_examples=80)
def test_p5_what_runs_share_outlives_them_and_is_closed_with_their_block(
    backend: str,
    resources: list[Plan],
    data: st.DataObject,
    first: list[RunPlan],
    second: list[RunPlan],
    leaves: int,
    raises: bool,
) -> None:
    world = World(resources)
    some = st.frozensets(st.integers(0, len(resources) - 1), max_size=4)
    wanted = [data.draw(some), data.draw(some)]

    async def main() -> None:
        workflow = world.workflow(wanted)
        for plans in (first, second):
            try:
                await in_block(world, workflow, plans, leaves, raises)
            except* ProviderError:
                pass
            assert all(run.is_done() for run in world.started)
            open_ones = [thing for thing in world.things if thing.alive]
            assert not [thing for thing in open_ones if resources[thing.n].closes]
        for run in world.started:
            run.get_stop_event()  # or its failure is logged

    run_virtually(backend, main)
    assert world.faults == []
    assert not any(world.stacks.values())
    shared = [thing for thing in world.things if resources[thing.n].scope == "workflow"]
    for n in range(len(resources)):
        blocks = 2 if closes_with_block(resources, n) else 1
        assert len([thing for thing in shared if thing.n == n]) <= blocks


def closes_with_block(plans: list[Plan], n: int) -> bool:
    return plans[n].closes or any(closes_with_block(plans, below) for below in plans[n].needs)
