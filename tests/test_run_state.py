"""The state of a run: in steps of every kind, before the run, after it, and in the next (rules P1, P2)."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from anyio_workflows import (
    Context,
    StartEvent,
    StepFailedEvent,
    StopEvent,
    Workflow,
    WorkflowFailedEvent,
    catch_error,
    step,
)
from anyio_workflows.errors import ContextStateError, WorkflowRuntimeError

from .conftest import BACKENDS
from .running import check_ending, run_virtually
from .samples import Done, Item, OneStep, ProviderError
from .stateful import bump, count_for_ever, seeded

pytestmark = pytest.mark.anyio


class SyncActs(Workflow):
    """Calls a function inside its step, in a worker thread."""

    def __init__(self, act: Callable[[Context], Any], **kwargs: Any) -> None:
        super().__init__(**{"timeout": None, **kwargs})
        self.act = act

    @step
    def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
        return StopEvent(result=self.act(ctx))


# --- In steps -------------------------------------------------------------------------------------


async def test_p1_an_async_step_reads_and_writes() -> None:
    async def act(ctx: Context) -> Any:
        assert await ctx.store.get_state() == {}
        await ctx.store.set("user.name", "ada")
        async with ctx.store.edit_state() as state:
            state.user["age"] = 36
            state.n = 1
        return await ctx.store.get("user"), await ctx.store.get("n"), await ctx.store.get("m", 0)

    assert await OneStep(act).run() == ({"name": "ada", "age": 36}, 1, 0)


async def test_p1_a_sync_step_reads_and_writes_through_the_loop() -> None:
    def act(ctx: Context) -> Any:
        anyio.from_thread.run(ctx.store.set, "n", 6)
        counted = anyio.from_thread.run(bump, ctx.store, 0)
        with pytest.raises(ValueError, match="missing"):
            anyio.from_thread.run(ctx.store.get, "missing")
        return counted, anyio.from_thread.run(ctx.store.get_state)

    handler = SyncActs(act).run()
    assert await handler == (7, {"n": 7})
    assert await handler.ctx.store.get("n") == 7


async def test_p1_steps_of_every_kind_share_one_state() -> None:
    class Kinds(Workflow):
        @step
        async def fork(self, ctx: Context, ev: StartEvent) -> list[Item]:
            await ctx.store.set("seen", ["fork"])
            return [Item(n=1)]

        @step
        def thread(self, ctx: Context, ev: Item) -> Done:
            anyio.from_thread.run(note, ctx, "thread")
            return Done()

        @step
        async def join(self, ctx: Context, evs: list[Done]) -> Item | StopEvent:
            await note(ctx, "join")
            raise ProviderError

        @catch_error
        async def rescue(self, ctx: Context, ev: StepFailedEvent) -> StopEvent:
            await note(ctx, "rescue")
            return StopEvent(result=await ctx.store.get("seen"))

    async def note(ctx: Context, what: str) -> None:
        async with ctx.store.edit_state() as state:
            state.seen.append(what)

    assert await Kinds(timeout=None).run() == ["fork", "thread", "join", "rescue"]


async def test_p2_the_step_context_that_is_looked_up_is_the_one_the_step_got() -> None:
    async def act(ctx: Context) -> bool:
        return Context.get_step_context() is ctx

    def in_thread(ctx: Context) -> bool:
        return Context.get_step_context() is ctx

    assert await OneStep(act).run()
    assert await SyncActs(in_thread).run()


async def test_p1_steps_share_the_very_objects() -> None:
    class Shares(Workflow):
        @step
        async def make(self, ctx: Context, ev: StartEvent) -> Item:
            await ctx.store.set("seen", [])
            (await ctx.store.get("seen")).append("got")
            await ctx.store.set("ready", anyio.Event())
            return Item()

        @step
        async def wait(self, ctx: Context, ev: Item) -> StopEvent:
            await (await ctx.store.get("ready")).wait()
            return StopEvent(result=await ctx.store.get("seen"))

        @step
        def wake(self, ctx: Context, ev: Item) -> None:
            anyio.from_thread.run(ctx.store.get, "seen").append("in a thread")
            anyio.from_thread.run_sync(anyio.from_thread.run(ctx.store.get, "ready").set)

    workflow = Shares(timeout=None)
    handler = workflow.run()
    result = await handler
    assert result == ["got", "in a thread"]
    assert await handler.ctx.store.get("seen") is result


async def test_p1_p3_a_snapshot_is_a_copy_and_the_next_run_shares_the_values() -> None:
    async def act(ctx: Context) -> Any:
        seen = await ctx.store.get("seen")
        seen.append(len(seen))
        snapshots.append(ctx.to_dict())
        seen.append(len(seen))
        return seen

    snapshots: list[dict[str, Any]] = []
    workflow = OneStep(act)
    ctx = await seeded(workflow, seen=(mine := []))
    assert await workflow.run(ctx=ctx) is mine
    assert await workflow.run(ctx=ctx) is mine
    assert mine == [0, 1, 2, 3]
    assert [data["state"]["seen"] for data in snapshots] == [[0], [0, 1, 2]]
    restored = Context.from_dict(workflow, snapshots[0])
    restored.discard_work()
    assert await workflow.run(ctx=restored) == [0, 1, 2]
    assert snapshots[0]["state"] == {"seen": [0]}
    assert mine == [0, 1, 2, 3]


@pytest.mark.parametrize("write", ["edit_state", "set", "set_state", "clear"])
async def test_p1_writing_inside_ones_own_edit_fails_the_step_and_frees_the_state(
    write: str,
) -> None:
    async def act(ctx: Context) -> None:
        async with ctx.store.edit_state() as state:
            state.n = 99
            if write == "edit_state":
                await ctx.store.edit_state().__aenter__()
            elif write == "clear":
                await ctx.store.clear()
            else:
                await getattr(ctx.store, write)(*{"set": ("n", 1), "set_state": ({},)}[write])

    workflow = OneStep(act)
    handler = workflow.run(ctx=await seeded(workflow, n=0))
    _, last = await check_ending(handler)
    assert isinstance(last, WorkflowFailedEvent)
    assert isinstance(last.exception, ContextStateError)
    assert str(last.exception) == (
        f"{write}() inside an edit of the same task would wait for itself; use the state that "
        "`async with store.edit_state() as state:` gives"
    )
    assert await bump(handler.ctx.store) == 1


# --- Before, during and after the run -------------------------------------------------------------


async def test_p2_a_state_is_seeded_before_the_run() -> None:
    async def act(ctx: Context) -> int:
        return await bump(ctx.store)

    workflow = OneStep(act)
    ctx = await seeded(workflow, n=6)
    handler = workflow.run(ctx=ctx)
    assert await handler == 7
    assert await ctx.store.get("n") == await handler.ctx.store.get("n") == 7


async def test_p2_contexts_and_runs_without_one_start_with_states_of_their_own() -> None:
    workflow = OneStep(lambda ctx: ctx.store.get("n", None))
    one, two = await seeded(workflow, n=1), await seeded(workflow, n=2)
    handlers = [workflow.run(ctx=one), workflow.run(ctx=two), workflow.run()]
    assert [await handler for handler in handlers] == [1, 2, None]


async def test_p2_the_state_is_carried_from_run_to_run() -> None:
    async def act(ctx: Context) -> int:
        return await bump(ctx.store)

    workflow = OneStep(act)
    ctx = await seeded(workflow, n=0)
    first = workflow.run(ctx=ctx)
    await first
    assert await workflow.run(ctx=first.ctx) == 2
    assert await OneStep(act).run(ctx=ctx) == 3, "another instance of the workflow may go on"


@pytest.mark.parametrize("second", BACKENDS)
@pytest.mark.parametrize("first", BACKENDS)
def test_p2_the_state_is_carried_from_event_loop_to_event_loop(first: str, second: str) -> None:
    async def act(ctx: Context) -> int:
        return await bump(ctx.store)

    async def run() -> int:
        return await workflow.run(ctx=ctx)

    async def seed() -> Context:
        return await seeded(workflow, n=0)

    workflow = OneStep(act)
    ctx = run_virtually(first, seed)
    assert [run_virtually(backend, run) for backend in (first, second, first)] == [1, 2, 3]


@pytest.mark.parametrize("second", BACKENDS)
@pytest.mark.parametrize("first", BACKENDS)
def test_o2_an_edit_that_the_end_of_the_loop_cut_off_holds_up_no_later_run(
    first: str, second: str
) -> None:
    async def start() -> Context:
        workflow = OneStep(count_for_ever)
        ctx = await seeded(workflow, n=0)
        workflow.run(ctx=ctx)
        await anyio.sleep(1)
        return ctx

    async def go_on() -> Any:
        ctx.discard_work()
        return await OneStep(lambda ctx: bump(ctx.store)).run(ctx=ctx)

    ctx = run_virtually(first, start)
    assert run_virtually(second, go_on) == 1


@pytest.mark.parametrize("how", ["stop", "failure", "deadline", "cancel"])
async def test_t7_the_state_is_read_and_written_after_the_end(how: str) -> None:
    async def act(ctx: Context) -> None:
        await ctx.store.set("n", 7)
        if how == "failure":
            raise ProviderError
        if how != "stop":
            await anyio.sleep_forever()

    handler = OneStep(act, timeout=10 if how == "deadline" else None).run()
    if how == "cancel":
        await anyio.sleep(1)
        await handler.cancel_run()
    await check_ending(handler)
    assert await handler.ctx.store.get_state() == {"n": 7}
    assert await bump(handler.ctx.store) == 8


async def test_p2_a_context_has_one_run_at_a_time() -> None:
    async def act(ctx: Context) -> None:
        with pytest.raises(ContextStateError):
            workflow.run(ctx=ctx)
        await anyio.sleep(1)

    workflow = OneStep(act)
    handler = workflow.run(ctx=(ctx := await seeded(workflow)))
    for same in (ctx, handler.ctx):
        with pytest.raises(ContextStateError) as caught:
            workflow.run(ctx=same)
    assert str(caught.value) == (
        "the run of this context is still in progress; await its handler first, or use another context"
    )
    await check_ending(handler)
    await check_ending(workflow.run(ctx=ctx))


async def test_p2_a_context_is_of_one_workflow_class() -> None:
    with pytest.raises(ContextStateError) as caught:
        OneStep(count_for_ever).run(ctx=Context(SyncActs(print)))
    assert str(caught.value) == "the context is for runs of SyncActs, not of OneStep"


async def test_p2_the_owner_shares_the_state_of_a_run_in_progress() -> None:
    async def act(ctx: Context) -> Any:
        await ctx.store.set("n", 1)
        await anyio.sleep(2)
        return await bump(ctx.store)

    began = anyio.current_time()
    handler = OneStep(act).run()
    await anyio.sleep(1)
    assert await handler.ctx.store.get("n") == 1
    async with handler.ctx.store.edit_state() as state:  # from 1 to 5; the step waits from 2 on
        await anyio.sleep(4)
        state.n = 10
    assert await handler == 11
    assert anyio.current_time() - began == 6


async def test_p2_an_edit_of_the_owner_outlives_the_run() -> None:
    handler = OneStep(lambda ctx: anyio.sleep(3)).run()
    async with handler.ctx.store.edit_state() as state:
        await handler
        state.n = 1
    assert await handler.ctx.store.get_state() == {"n": 1}


def test_o1_the_state_of_a_run_in_progress_is_not_for_other_threads() -> None:
    async def act(ctx: Context) -> int:
        async with ctx.store.edit_state() as state:
            state.mine = 1
            await anyio.to_thread.run_sync(meddle, handler)
        return await ctx.store.get_state()

    def meddle(handler: Any) -> None:
        with pytest.raises(WorkflowRuntimeError):
            anyio.run(lambda: handler.ctx.store.set("other", 2))

    async def main() -> Any:
        nonlocal handler
        handler = OneStep(act).run()
        return await handler

    handler: Any = None
    assert anyio.run(main) == {"mine": 1}


async def test_p2_child_runs_have_a_state_of_their_own() -> None:
    async def act(ctx: Context) -> Any:
        await ctx.store.set("n", 1)
        child = OneStep(inner).run()
        return await child, await ctx.store.get_state(), await child.ctx.store.get_state()

    async def inner(ctx: Context) -> Any:
        before = await ctx.store.get_state()
        await ctx.store.set("m", 2)
        return before

    assert await OneStep(act).run() == ({}, {"n": 1}, {"m": 2})


async def test_p2_a_child_run_goes_on_from_the_context_that_its_parent_gives_it() -> None:
    async def act(ctx: Context) -> Any:
        workflow = OneStep(lambda inner: bump(inner.store))
        given = await seeded(workflow, n=4)
        async with ctx.store.edit_state() as state:  # no edit of the child's state
            state.n = await workflow.run(ctx=given)
        return await ctx.store.get("n"), await given.store.get("n")

    assert await OneStep(act).run() == (5, 5)


async def test_o6_nothing_is_pinned() -> None:
    async def run() -> list[weakref.ref[Any]]:
        workflow = OneStep(lambda ctx: bump(ctx.store))
        ctx = await seeded(workflow, n=0)
        handler = workflow.run(ctx=ctx)
        await handler
        return [weakref.ref(it) for it in (workflow, ctx, ctx.store, handler, handler.ctx)]

    found = await run()
    await anyio.sleep(1)
    gc.collect()
    assert [ref() for ref in found] == [None] * 5
