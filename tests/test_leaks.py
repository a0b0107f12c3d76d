"""What a step leaves on the loop keeps nothing of an ended run alive: O6."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterator
from typing import Annotated, Any

import anyio
import attrs
import pytest
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from anyio_workflows import Context, StartEvent, StopEvent, Workflow, WorkflowHandler, step
from anyio_workflows.errors import WorkflowRuntimeError
from anyio_workflows.resource import Resource

from .running import read, texts
from .samples import Item, Note

pytestmark = pytest.mark.anyio

RUNS = 2000
LIVE_TIMERS = 1000
AN_HOUR = 3600

Leave = Callable[["Leaves"], Any]


@attrs.define
class State:
    values: list[int] = attrs.field(factory=list)


class Alive:
    """Weak references to all that belongs to the runs of a test."""

    def __init__(self) -> None:
        self._refs: dict[str, list[weakref.ref[Any]]] = {}

    def note(self, *objects: object) -> None:
        for thing in objects:
            self._refs.setdefault(type(thing).__name__, []).append(weakref.ref(thing))

    def counts(self) -> dict[str, int]:
        """Return how many are alive, by type; types of which none is are left out."""
        gc.collect()
        counts = {name: sum(ref() is not None for ref in refs) for name, refs in self._refs.items()}
        return {name: count for name, count in counts.items() if count}

    @property
    def noted(self) -> set[str]:
        return set(self._refs)


class Leaves(Workflow):
    """Leaves something on the loop, in its first step."""

    def __init__(self, leave: Leave, pool: TaskGroup, alive: Alive) -> None:
        super().__init__()
        self.leave, self.pool, self.alive = leave, pool, alive

    @step
    async def begin(self, ctx: Context[State], ev: StartEvent) -> Item:
        self.leave(self)
        async with ctx.store.edit_state() as state:
            state.values = [1]
            self.alive.note(state)
        item = Item(n=1)
        self.alive.note(ctx, ev, item)
        return item

    @step
    async def end(self, ctx: Context[State], ev: Item) -> StopEvent:
        ctx.write_event_to_stream(Note(text="written"))
        self.alive.note(ctx, self)
        return StopEvent(result=ev)


BELONGINGS = {"Context", "Item", "Leaves", "StartEvent", "State", "StepContext", "WorkflowHandler"}


async def run_and_drop(leave: Leave, pool: TaskGroup, alive: Alive) -> None:
    handler = Leaves(leave, pool, alive).run()
    alive.note(handler, handler.ctx)
    await handler


def under_asyncio() -> bool:
    return "asyncio" in sys.modules and anyio.get_cancelled_exc_class() is asyncio.CancelledError


def leave_timer(workflow: Leaves) -> None:
    """What runs later, on its own: a timer, or a system task that sleeps."""
    if under_asyncio():
        handle = asyncio.get_running_loop().call_later(AN_HOUR, int)
        kept.append(handle)
    else:
        import trio

        trio.lowlevel.spawn_system_task(trio.sleep, AN_HOUR, context=contextvars.copy_context())


def leave_cancelled_timer(workflow: Leaves) -> None:
    scope = anyio.CancelScope(deadline=anyio.current_time() + AN_HOUR)
    with scope:
        pass
    kept.append(scope)


def leave_task(workflow: Leaves) -> None:
    """As a connection pool does that starts its reaper at first use."""
    workflow.pool.start_soon(anyio.sleep_forever)


def leave_callback(workflow: Leaves) -> None:
    context = contextvars.copy_context()
    kept.append(context)


def leave_thread(workflow: Leaves) -> None:
    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(let_threads_go.wait,), daemon=True)
    thread.start()
    kept.append(thread)


LEFT: list[Leave] = [
    leave_timer,
    leave_cancelled_timer,
    leave_task,
    leave_callback,
    leave_thread,
]

kept: list[Any] = []
let_threads_go = threading.Event()


@pytest.fixture(autouse=True)
def _clean_up() -> Iterator[None]:
    let_threads_go.clear()
    yield
    let_threads_go.set()
    for thing in kept:
        if isinstance(thing, threading.Thread):
            thing.join()
    kept.clear()


async def let_all_end() -> None:
    """Let the tasks end whose run has published its terminal event."""
    for _ in range(5):
        await checkpoint()


async def check_nothing_lives(use: Callable[[TaskGroup, Alive], Awaitable[None]]) -> None:
    alive = Alive()
    async with anyio.create_task_group() as pool:
        with anyio.CancelScope(deadline=anyio.current_time() + AN_HOUR / 2):
            await use(pool, alive)
            await let_all_end()
            assert alive.noted >= BELONGINGS
            assert alive.counts() == {}
        pool.cancel_scope.cancel()


@pytest.mark.parametrize("leave", LEFT)
async def test_o6_what_a_step_leaves_keeps_nothing_of_its_run_alive(leave: Leave) -> None:
    async def use(pool: TaskGroup, alive: Alive) -> None:
        for _ in range(10):
            await run_and_drop(leave, pool, alive)

    await check_nothing_lives(use)


async def test_o6_two_thousand_ended_runs_leave_nothing_on_a_loop_with_timers() -> None:
    async def use(pool: TaskGroup, alive: Alive) -> None:
        for number in range(RUNS):
            leave = leave_timer if number < LIVE_TIMERS else leave_cancelled_timer
            await run_and_drop(leave, pool, alive)

    await check_nothing_lives(use)


async def test_o6_what_a_resource_leaves_keeps_nothing_of_its_run_alive() -> None:
    class Connection:
        pass

    def connect() -> Connection:
        pools[0].start_soon(anyio.sleep_forever)
        return Connection()

    class Uses(Leaves):
        @step
        async def begin(
            self, ctx: Context, ev: StartEvent, db: Annotated[Connection, Resource(connect)]
        ) -> Item:
            self.alive.note(ctx, ev, self, db)
            return Item(n=1)

    async def use() -> None:
        handler = Uses(leave_task, pools[0], alive).run()
        alive.note(handler)
        await handler

    alive = Alive()
    pools: list[TaskGroup] = []
    async with anyio.create_task_group() as pool:
        pools.append(pool)
        await use()
        await let_all_end()
        assert alive.noted >= {"Connection", "StartEvent", "StepContext", "Uses"}
        assert alive.counts() == {}
        pool.cancel_scope.cancel()


async def test_o6_child_run_keeps_nothing_of_its_parent_alive() -> None:
    class Parent(Leaves):
        @step
        async def begin(self, ctx: Context[State], ev: StartEvent) -> Item:
            await run_and_drop(leave_task, self.pool, self.alive)
            self.alive.note(self)
            return Item(n=2)

    async def use(pool: TaskGroup, alive: Alive) -> None:
        await Parent(leave_task, pool, alive).run()

    await check_nothing_lives(use)


# --- Tasks that outlive their step --------------------------------------------------------------


class Outlived(Workflow):
    """Its first step starts a task in somebody else's task group, which acts after that step."""

    def __init__(self, pool: TaskGroup, act: Callable[[], Any]) -> None:
        super().__init__()
        self.pool, self.act = pool, act
        self.go_on = anyio.Event()
        self.acted = anyio.Event()

    async def later(self) -> None:
        await self.go_on.wait()
        try:
            self.act()
        finally:
            self.acted.set()

    @step
    async def begin(self, ev: StartEvent) -> Item:
        self.pool.start_soon(self.later)
        return Item(n=1)

    @step
    async def end(self, ev: Item) -> StopEvent:
        self.go_on.set()
        await self.acted.wait()
        return StopEvent()


async def test_o6_task_that_outlives_its_step_has_a_context_while_the_run_goes_on() -> None:
    def act() -> None:
        Context.get_step_context().write_event_to_stream(Note(text="from a task"))

    async with anyio.create_task_group() as pool:
        assert texts(await read(Outlived(pool, act).run())) == ["from a task"]


async def test_o6_such_a_context_is_in_no_step() -> None:
    def act() -> None:
        with pytest.raises(WorkflowRuntimeError, match="only a step can collect events"):
            Context.get_step_context().collect_events(Note(), [Note])

    async with anyio.create_task_group() as pool:
        await Outlived(pool, act).run()


async def test_o6_a_task_that_outlives_its_run_has_no_context() -> None:
    async def later() -> None:
        await over.wait()
        with pytest.raises(WorkflowRuntimeError, match="outside a step"):
            Context.get_step_context()
        tried.append(True)

    over = anyio.Event()
    tried: list[bool] = []
    async with anyio.create_task_group() as pool:
        handler = Outlived(pool, lambda: pool.start_soon(later)).run()
        await handler
        over.set()
    assert tried == [True]


async def test_o5_run_started_by_a_task_that_outlives_its_step_is_a_child() -> None:
    class Child(Workflow):
        @step
        async def wait(self, ev: StartEvent) -> StopEvent:
            await anyio.sleep_forever()
            return StopEvent()

    def act() -> None:
        children.append(Child(timeout=None).run())

    children: list[WorkflowHandler[Any]] = []
    async with anyio.create_task_group() as pool:
        await Outlived(pool, act).run()
        assert children[0].is_done()
