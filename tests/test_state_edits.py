"""Edits of a run's state: several at once, and of steps that fail or are given up (rules P1, T6, T7)."""

import threading
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint

from anyio_workflows import (
    Context,
    StartEvent,
    StepFailedEvent,
    StopEvent,
    Workflow,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowTimedOutEvent,
    catch_error,
    step,
)
from anyio_workflows.collect import Collect, Take
from anyio_workflows.errors import WorkflowRuntimeError
from anyio_workflows.retry_policy import retry_policy, wait_none
from anyio_workflows.state import StateStore

from .running import PATIENCE, check_ending
from .samples import Done, Item, OneStep, ProviderError
from .stateful import Count, bump, count_for_ever, seeded

pytestmark = pytest.mark.anyio


# --- Several at once ------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [1, 4, 20])
async def test_p1_edits_of_parallel_workers_lose_nothing(workers: int) -> None:
    class Counts(Workflow):
        @step
        async def fork(self, ctx: Context[Count], ev: StartEvent) -> list[Item]:
            return [Item(n=n) for n in range(20)]

        @step(num_workers=workers)
        async def work(self, ctx: Context[Count], ev: Item) -> Done:
            async with ctx.store.edit_state() as state:
                before = state.n
                await anyio.sleep(ev.n % 3)
                state.n = before + 1
                state.seen.append(ev.n)
            return Done(n=ev.n)

        @step
        async def join(self, ctx: Context[Count], evs: list[Done]) -> StopEvent:
            return StopEvent(result=await ctx.store.get_state())

    state = await Counts().run()
    assert state == Count(20, list(range(20)))


async def test_p1_edits_of_parallel_threads_lose_nothing() -> None:
    class Counts(Workflow):
        @step
        async def fork(self, ev: StartEvent) -> list[Item]:
            return [Item(n=n) for n in range(20)]

        @step(num_workers=5)
        def work(self, ctx: Context, ev: Item) -> Done:
            anyio.from_thread.run(bump, ctx.store)
            return Done()

        @step
        async def join(self, ctx: Context, evs: list[Done]) -> StopEvent:
            return StopEvent(result=await ctx.store.get("n"))

    workflow = Counts(timeout=None)
    assert await workflow.run(ctx=await seeded(workflow, n=0)) == 20


async def test_p1_readers_do_not_wait_and_see_what_is_committed() -> None:
    class Two(Workflow):
        @step
        async def edit(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await bump(ctx.store, 10)
            await anyio.sleep(3)
            return StopEvent()

        @step
        async def look(self, ctx: Context, ev: StartEvent) -> None:
            for _ in range(3):
                await anyio.sleep(4)
                seen.append(await ctx.store.get("n"))

    seen: list[int] = []
    workflow = Two()
    await workflow.run(ctx=await seeded(workflow, n=0))
    assert seen == [0, 0, 1]


# --- Edits that fail ------------------------------------------------------------------------------


async def test_p1_a_failing_step_leaves_no_half_edit_and_frees_the_state_at_once() -> None:
    class Fails(Workflow):
        @step
        async def work(self, ctx: Context, ev: StartEvent) -> Item:
            async with ctx.store.edit_state() as state:
                state.n = 99
                await anyio.sleep(3)
                raise ProviderError

        @step
        async def wait(self, ctx: Context, ev: StartEvent) -> None:
            await anyio.sleep(1)
            began = anyio.current_time()
            seen["counted"] = await bump(ctx.store, 0)
            seen["waited"] = anyio.current_time() - began

        @catch_error
        async def rescue(self, ctx: Context, ev: StepFailedEvent) -> Item:
            await anyio.sleep(1)
            return Item()

        @step
        async def end(self, ev: Item) -> StopEvent:
            return StopEvent()

    seen: dict[str, float] = {}
    workflow = Fails()
    await workflow.run(ctx=await seeded(workflow, n=0))
    assert seen == {"counted": 1, "waited": 2}


async def test_x3_a_retry_sees_what_was_committed_and_nothing_else() -> None:
    class Retries(Workflow):
        @step(retry_policy=retry_policy(wait=wait_none()))
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            seen.append(await ctx.store.get("n"))
            await bump(ctx.store)
            async with ctx.store.edit_state() as state:
                state.n += 100
                if len(seen) < 3:
                    raise ProviderError
            return StopEvent(result=await ctx.store.get("n"))

    seen: list[int] = []
    workflow = Retries()
    assert await workflow.run(ctx=await seeded(workflow, n=0)) == 103
    assert seen == [0, 1, 2]


async def test_r8_an_edit_is_rolled_back_at_the_timeout_of_its_step() -> None:
    class Slow(Workflow):
        @step(timeout=5, retry_policy=retry_policy(wait=wait_none()))
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            if ctx.retry_info().retry_number == 0:
                await ctx.store.set("committed", True)
                await count_for_ever(ctx)
            return StopEvent(result=(await ctx.store.get_state(), await bump(ctx.store)))

    workflow = Slow()
    began = anyio.current_time()
    result = await workflow.run(ctx=await seeded(workflow, n=0))
    assert result == ({"n": 0, "committed": True}, 1)
    assert anyio.current_time() - began == 6


@pytest.mark.parametrize("how", ["cancel", "deadline", "failure", "stop"])
async def test_p1_an_edit_is_rolled_back_when_the_run_ends(how: str) -> None:
    class Ends(Workflow):
        @step
        async def work(self, ctx: Context, ev: StartEvent) -> None:
            await count_for_ever(ctx)

        @step
        async def end(self, ev: StartEvent) -> StopEvent:
            await anyio.sleep(2 if how in ("failure", "stop") else 1000)
            if how == "failure":
                raise ProviderError
            return StopEvent()

    workflow = Ends(timeout=2 if how == "deadline" else None)
    handler = workflow.run(ctx=await seeded(workflow, n=0))
    if how == "cancel":
        await anyio.sleep(2)
        await handler.cancel_run()
    _, last = await check_ending(handler)
    kinds = {
        "cancel": WorkflowCancelledEvent,
        "deadline": WorkflowTimedOutEvent,
        "failure": WorkflowFailedEvent,
        "stop": StopEvent,
    }
    assert type(last) is kinds[how]
    assert await handler.ctx.store.get_state() == {"n": 0}
    assert not handler.ctx.store.statistics().writing
    assert await bump(handler.ctx.store) == 1


async def test_f4_an_edit_is_rolled_back_when_its_batch_is_cancelled() -> None:
    class Races(Workflow):
        @step
        async def fork(self, ev: StartEvent) -> list[Item]:
            return [Item(n=0), Item(n=1)]

        @step
        async def work(self, ctx: Context, ev: Item) -> Done:
            if ev.n == 0:
                await count_for_ever(ctx)
            await anyio.sleep(3)
            return Done(n=ev.n)

        @step
        async def join(
            self, ctx: Context, evs: Annotated[list[Done], Collect(Take(1, cancel=True))]
        ) -> StopEvent:
            began = anyio.current_time()
            counted = await bump(ctx.store, 0)
            return StopEvent(result=(counted, anyio.current_time() - began))

    workflow = Races()
    assert await workflow.run(ctx=await seeded(workflow, n=0)) == (1, 0)


async def test_t7_what_a_step_writes_while_it_cleans_up_stays() -> None:
    async def act(ctx: Context) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await ctx.store.set("cleaned", True)

    handler = OneStep(act, timeout=5).run()
    await check_ending(handler)
    assert await handler.ctx.store.get("cleaned") is True


# --- Too late -------------------------------------------------------------------------------------


async def test_t7_a_step_cannot_use_the_state_after_the_run() -> None:
    async def act(ctx: Context) -> None:
        kept.append(ctx)

    kept: list[Context] = []
    handler = OneStep(act).run()
    await handler
    with pytest.raises(WorkflowRuntimeError) as caught:
        _ = kept[0].store
    assert str(caught.value) == (
        "the context of a step cannot be used: the run has ended, it returned StopEvent"
    )
    assert await handler.ctx.store.get_state() == {}


async def outlast(ctx: Context, released: anyio.Event, act: Callable[[], Awaitable[Any]]) -> None:
    """Go on after the run has given the step up, and do the act then."""
    with anyio.CancelScope(shield=True):
        await released.wait()
        with pytest.raises(WorkflowRuntimeError):
            await act()


async def test_t6_a_step_that_was_given_up_cannot_use_the_state() -> None:
    async def act(ctx: Context) -> None:
        async def write() -> None:
            await ctx.store.set("n", 99)

        await outlast(ctx, released, write)
        over.set()

    released, over = anyio.Event(), anyio.Event()
    workflow = OneStep(act, timeout=5)
    handler = workflow.run(ctx=await seeded(workflow, n=0))
    await check_ending(handler)
    released.set()
    await over.wait()
    assert await handler.ctx.store.get("n") == 0


async def test_t6_a_step_that_was_given_up_cannot_use_a_store_that_it_kept() -> None:
    async def act(ctx: Context) -> None:
        store = ctx.store
        await outlast(ctx, released, lambda: store.set("n", 99))
        over.set()

    released, over = anyio.Event(), anyio.Event()
    workflow = OneStep(act, timeout=5)
    handler = workflow.run(ctx=await seeded(workflow, n=0))
    await check_ending(handler)
    released.set()
    with anyio.move_on_after(5):
        await over.wait()
    assert await handler.ctx.store.get("n") == 0


async def test_t6_an_edit_of_a_step_that_was_given_up_is_rolled_back_and_released() -> None:
    async def act(ctx: Context) -> None:
        if await ctx.store.get("again", False):
            await bump(ctx.store)
            return
        try:
            async with ctx.store.edit_state() as state:
                state.n = 99
                with anyio.CancelScope(shield=True):
                    await released.wait()
        finally:
            over.set()

    released, over = anyio.Event(), anyio.Event()
    workflow = OneStep(act, timeout=5)
    handler = workflow.run(ctx=await seeded(workflow, n=0))
    await check_ending(handler)
    try:
        handler.ctx.discard_work()
        with anyio.fail_after(5):
            await handler.ctx.store.set("again", True)
        await check_ending(workflow.run(ctx=handler.ctx))
    finally:
        released.set()
        await over.wait()
    await anyio.sleep(1)
    assert await handler.ctx.store.get("n") == 1


class Abandoned(Workflow):
    """A thread of it is given up with its batch, and does the act when it is let go."""

    def __init__(self, act: Callable[[Context, StateStore[Any]], Any]) -> None:
        super().__init__(timeout=None)
        self.act = act
        self.entered, self.released, self.over = (threading.Event() for _ in range(3))
        self.outcome: Any = None

    @step
    async def fork(self, ev: StartEvent) -> list[Item]:
        return [Item(n=0), Item(n=1)]

    @step
    def work(self, ctx: Context, ev: Item) -> Done:
        if ev.n == 1:
            assert self.entered.wait(PATIENCE)
            return Done()
        store = ctx.store
        self.entered.set()
        assert self.released.wait(PATIENCE)
        try:
            self.outcome = self.act(ctx, store)
        except BaseException as exc:
            self.outcome = exc
        self.over.set()
        return Done()

    @step
    async def join(self, evs: Annotated[list[Done], Collect(Take(1, cancel=True))]) -> StopEvent:
        await anyio.sleep(1)
        self.released.set()
        assert await anyio.to_thread.run_sync(self.over.wait, PATIENCE)
        return StopEvent()


async def test_f4_a_thread_that_was_given_up_cannot_use_the_state() -> None:
    workflow = Abandoned(lambda ctx, store: ctx.store)
    await workflow.run()
    assert isinstance(workflow.outcome, WorkflowRuntimeError)
    assert str(workflow.outcome) == "step work was cancelled with its batch and has ended"


async def test_f4_a_thread_that_was_given_up_cannot_use_a_store_that_it_kept() -> None:
    workflow = Abandoned(lambda ctx, store: anyio.from_thread.run(store.set, "n", 99))
    handler = workflow.run()
    await handler
    assert isinstance(workflow.outcome, BaseException)
    assert await handler.ctx.store.get_state() == {}


async def test_r8_a_thread_that_was_given_up_cannot_use_the_state() -> None:
    class Slow(Workflow):
        @step(timeout=1)
        def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            entered.set()
            assert released.wait(PATIENCE)
            try:
                _ = ctx.store
            except Exception as exc:
                outcomes.append(exc)
            over.set()
            return StopEvent()

        @step
        async def keep_the_clock_standing(self, ev: StartEvent) -> None:
            while not entered.is_set():
                await checkpoint()

        @catch_error
        async def rescue(self, ev: StepFailedEvent) -> StopEvent:
            released.set()
            assert await anyio.to_thread.run_sync(over.wait, PATIENCE)
            return StopEvent(result=ev.exception)

    entered, released, over = (threading.Event() for _ in range(3))
    outcomes: list[Exception] = []
    assert isinstance(await Slow(timeout=None).run(), TimeoutError)
    assert [str(exc) for exc in outcomes] == [
        "step work was cancelled at its timeout and has ended"
    ]
    assert isinstance(outcomes[0], WorkflowRuntimeError)


async def test_t6_who_waits_for_an_edit_of_a_step_that_was_given_up_gets_its_turn() -> None:
    async def act(ctx: Context) -> None:
        async with ctx.store.edit_state():
            with anyio.CancelScope(shield=True):
                await released.wait()

    released = anyio.Event()
    handler = OneStep(act, timeout=5, cleanup_timeout=2).run()
    began = anyio.current_time()
    await anyio.sleep(6)
    try:
        with anyio.fail_after(100):
            await handler.ctx.store.set("n", 1)
        assert anyio.current_time() - began == 7
    finally:
        released.set()
    assert await handler.ctx.store.get_state() == {"n": 1}
    await check_ending(handler)


async def test_t6_several_edits_of_steps_that_were_given_up() -> None:
    async def act(ctx: Context) -> None:
        release = releases[await ctx.store.get("run")]
        async with ctx.store.edit_state() as state:
            state.run = 99
            with anyio.CancelScope(shield=True):
                await release.wait()

    releases = [anyio.Event() for _ in range(3)]
    workflow = OneStep(act, timeout=5)
    ctx: Context = Context(workflow)
    try:
        with anyio.fail_after(1000):
            for number in range(3):
                await ctx.store.set("run", number)
                ctx.discard_work()
                handler = workflow.run(ctx=ctx)
                await anyio.sleep(1)
                if number:
                    releases[number - 1].set()  # while the next one is in its edit
                await check_ending(handler)
            await ctx.store.set("run", 3)
    finally:
        for release in releases:
            release.set()
    await anyio.sleep(1)
    assert await ctx.store.get("run") == 3
