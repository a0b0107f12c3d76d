"""The delay before an attempt: the end of the run, the slots of the step, its batch (X1, X2, R2, F2-F4)."""

from __future__ import annotations

import math
import random
from typing import Annotated, Any

import anyio
import pytest

from anyio_workflows import (
    Context,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowHandler,
    WorkflowTimedOutEvent,
    step,
)
from anyio_workflows.collect import Collect, Take
from anyio_workflows.errors import WorkflowCancelledByUser, WorkflowTimeoutError
from anyio_workflows.events import StepStateChanged
from anyio_workflows.retry_policy import retry_policy, stop_after_attempt, wait_fixed

from .retrying import Policy, Tries, acting, counts, every
from .running import check_ending, on_each_backend, read, run_virtually
from .samples import Done, Item, Note, Other, ProviderError

pytestmark = pytest.mark.anyio

# --- T2, T6: the end of the run during a delay ----------------------------------------------------


async def test_x1_delay_past_the_deadline_lets_another_step_end_the_run() -> None:
    handler = acting(Tries(1), every(1000), then=lambda ctx: anyio.sleep(9), timeout=10)
    assert await handler is None


async def test_x1_timeout_names_the_delay() -> None:
    handler = acting(Tries(1, seconds=1), every(1000), timeout=10)
    _, last = await check_ending(handler)
    assert isinstance(last, WorkflowTimedOutEvent)
    assert last.active_steps == ["work"]
    with pytest.raises(WorkflowTimeoutError) as caught:
        await handler
    assert str(caught.value) == (
        "the run did not end within 10 s; at that time:\n"
        "  step work: in a retry delay, attempt 2 is due in 991 s\n"
        "  executions so far: work 1"
    )


async def test_x2_cancel_during_a_delay_ends_the_run_at_once() -> None:
    act = Tries(1)
    handler = acting(act, policy := every(1000))
    await anyio.sleep(5)
    await handler.cancel_run()
    assert anyio.current_time() - act.began == 5
    assert isinstance(handler.get_stop_event(), WorkflowCancelledEvent)
    await anyio.sleep(2000)
    assert (act.starts, len(policy.asked)) == ([0], 1)
    with pytest.raises(WorkflowCancelledByUser):
        await handler


async def test_x2_no_attempt_starts_after_another_step_has_ended_the_run() -> None:
    act = Tries(1)
    await acting(act, every(10), then=lambda ctx: anyio.sleep(5))
    await anyio.sleep(20)
    assert act.starts == [0]


@on_each_backend
def test_o2_end_of_the_loop_during_a_delay(backend: str) -> None:
    async def main() -> WorkflowHandler[Any]:
        acts.append(Tries(1))
        handler = acting(acts[0], every(1000))
        await anyio.sleep(1)
        return handler

    acts: list[Tries] = []
    handler = run_virtually(backend, main)
    assert isinstance(handler.get_stop_event(), WorkflowCancelledEvent)
    assert acts[0].starts == [0]


async def test_t9_delay_is_neither_a_stall_nor_idle() -> None:
    class Delayed(Workflow):
        @step(retry_policy=every(100))
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            if not ctx.retry_info().retry_number:
                raise ProviderError
            return StopEvent(result="not stalled")

        @step
        async def other(self, ev: StartEvent) -> None:
            await anyio.sleep(1)  # now nothing but the delay is left

    handler = Delayed(timeout=None).run()
    kinds = {type(event) async for event in handler.stream_events(expose_internal=True)}
    assert kinds == {StepStateChanged, StopEvent}  # no WorkflowIdleEvent
    assert await handler == "not stalled"


# --- R2: slots ------------------------------------------------------------------------------------


class Line(Workflow):
    """Items that go through one worker; those in `failing` fail in their first attempt."""

    starts: list[tuple[int, float]]

    @step
    async def fork(self, ev: StartEvent) -> list[Item]:
        self.starts, self.began, self.failing = [], anyio.current_time(), ev.failing
        return [Item(n=n) for n in range(ev.items)]

    @step(num_workers=1, retry_policy=retry_policy(wait=wait_fixed(5)))
    async def work(self, ctx: Context, ev: Item) -> Done:
        self.starts.append((ev.n, anyio.current_time() - self.began))
        await anyio.sleep(2)
        if ev.n in self.failing and not ctx.retry_info().retry_number:
            raise ProviderError
        return Done(n=ev.n)

    @step
    async def join(self, evs: list[Done]) -> StopEvent:
        return StopEvent(result=[ev.n for ev in evs])


async def test_r2_others_go_on_during_a_delay_and_the_retry_queues_at_the_tail() -> None:
    line = Line()
    assert await line.run(items=6, failing=[0]) == [1, 2, 3, 4, 5, 0]
    assert line.starts == [(0, 0), (1, 2), (2, 4), (3, 6), (4, 8), (5, 10), (0, 12)]


async def test_r2_worker_is_idle_until_the_delay_is_over() -> None:
    line = Line()
    assert await line.run(items=3, failing=[0, 2]) == [1, 0, 2]
    assert line.starts == [(0, 0), (1, 2), (2, 4), (0, 7), (2, 11)]


async def test_r2_counts_during_a_delay() -> None:
    line = Line()
    handler = line.run(items=3, failing=[0, 1])
    await anyio.sleep(3)
    assert counts(handler) == {"delayed": 1, "running": 1, "queued": 1, "retried": 1}
    await anyio.sleep(2)
    assert counts(handler) == {"delayed": 2, "running": 1, "retried": 2}
    assert await handler.ctx.running_steps() == ["work"]
    await anyio.sleep(1.5)
    assert counts(handler) == {"delayed": 2, "retried": 2, "done": 1}
    assert await handler.ctx.running_steps() == ["work"]
    assert "work: 2 delayed, 1 done, 2 retried" in repr(handler)
    await handler
    assert counts(handler) == {"done": 3, "retried": 2}


async def test_x1_counts_of_a_step_that_gives_up() -> None:
    handler = acting(Tries(math.inf), retry_policy())
    await read(handler)
    assert counts(handler) == {"done": 1, "failed": 1, "retried": 2}


@pytest.mark.parametrize("workers", [1, 4])
async def test_r2_many_delays_are_over_in_the_order_in_which_they_are_due(workers: int) -> None:
    class Many(Workflow):
        @step
        async def fork(self, ev: StartEvent) -> list[Item]:
            return [Item(n=n) for n in range(2000)]

        @step(num_workers=workers, retry_policy=Policy(lambda attempts: waits.pop()))
        async def work(self, ctx: Context, ev: Item) -> Done:
            if not ctx.retry_info().retry_number:
                due[ev.n] = anyio.current_time() + waits[-1]
                raise ProviderError
            assert anyio.current_time() == due[ev.n]
            order.append(ev.n)
            return Done(n=ev.n)

        @step
        async def join(self, evs: list[Done]) -> StopEvent:
            return StopEvent(result=[ev.n for ev in evs])

    waits = [float(random.randrange(500)) for _ in range(2000)]
    due: dict[int, float] = {}
    order: list[int] = []
    assert await Many(timeout=None).run() == order
    assert order == sorted(range(2000), key=lambda n: due[n])


async def test_r2_delay_that_begins_later_may_be_over_earlier() -> None:
    class Two(Workflow):
        @step
        async def fork(self, ev: StartEvent) -> list[Item]:
            return [Item(n=100), Item(n=1)]

        @step(num_workers=1, retry_policy=Policy(lambda attempts: delays.pop(0)))
        async def work(self, ctx: Context, ev: Item) -> Done:
            await anyio.sleep(1)
            if not ctx.retry_info().retry_number:
                raise ProviderError
            ended.append((ev.n, anyio.current_time() - began))
            return Done()

        @step
        async def join(self, evs: list[Done]) -> StopEvent:
            return StopEvent()

    began, delays = anyio.current_time(), [100.0, 1.0]
    ended: list[tuple[int, float]] = []
    await Two(timeout=None).run()
    assert ended == [(1, 4), (100, 102)]


# --- F2-F4: batches -------------------------------------------------------------------------------


async def test_f2_batch_waits_for_the_retries_of_its_branches() -> None:
    line = Line()
    assert await line.run(items=1, failing=[0]) == [0]


async def test_f2_branch_that_gives_up_fails_the_run() -> None:
    class Batch(Line):
        @step(retry_policy=retry_policy(stop=stop_after_attempt(2)))
        async def work(self, ctx: Context, ev: Item) -> Done:
            if ev.n == 1:
                raise ProviderError
            return Done(n=ev.n)

    _, last = await check_ending(Batch().run(items=3, failing=[]))
    assert isinstance(last, WorkflowFailedEvent)
    assert (last.step_name, last.attempts, last.elapsed_seconds) == ("work", 2, 5)


async def test_f3_retries_in_nested_batches() -> None:
    class Nested(Workflow):
        @step
        async def fork(self, ev: StartEvent) -> list[Other]:
            return [Other(n=n) for n in (1, 2)]

        @step(retry_policy=every(3))
        async def fork_again(self, ctx: Context, ev: Other) -> list[Item]:
            if ctx.retry_info().retry_number < ev.n:
                raise ProviderError
            return [Item(n=10 * ev.n + n) for n in (1, 2)]

        @step(retry_policy=every(5))
        async def work(self, ctx: Context, ev: Item) -> Done:
            if ctx.retry_info().retry_number < ev.n % 10:
                raise ProviderError
            return Done(n=ev.n)

        @step(retry_policy=every(7))
        async def join(self, ctx: Context, evs: list[Done]) -> Note:
            if not ctx.retry_info().retry_number:
                raise ProviderError
            return Note(text=[ev.n for ev in evs])

        @step(retry_policy=every(9))
        async def join_again(self, ctx: Context, evs: list[Note]) -> StopEvent:
            if not ctx.retry_info().retry_number:
                raise ProviderError
            return StopEvent(result=([ev.text for ev in evs], anyio.current_time() - began))

    began = anyio.current_time()
    result, seconds = await Nested().run()
    assert result == [[11, 12], [21, 22]]
    assert seconds == 3 * 2 + 5 * 2 + 7 + 9


@pytest.mark.parametrize("queued", [False, True])
async def test_f4_retry_is_dropped_with_its_batch(queued: bool) -> None:
    """In its delay, or queued after it behind the step that ends the batch."""

    policy = every(3 if queued else 100)

    class Race(Workflow):
        @step
        async def fork(self, ev: StartEvent) -> list[Item]:
            return [Item(n=0), Item(n=1)]

        @step(num_workers=1, retry_policy=policy)
        async def work(self, ctx: Context, ev: Item) -> Done:
            started.append(ev.n)
            if ev.n == 0:
                raise ProviderError
            await anyio.sleep(5)
            return Done(n=ev.n)

        @step
        async def first(
            self, evs: Annotated[list[Done], Collect(Take(1, cancel=True))]
        ) -> StopEvent:
            await anyio.sleep(1000)
            return StopEvent(result=[ev.n for ev in evs])

    started: list[int] = []
    handler = Race(timeout=None).run()
    await anyio.sleep(4)
    assert counts(handler) == {"running": 1, "queued" if queued else "delayed": 1, "retried": 1}
    await anyio.sleep(100)
    assert counts(handler) == {"done": 1, "retried": 1}
    assert await handler.ctx.running_steps() == ["first"]
    assert await handler == [1]
    assert started == [0, 1]
    assert len(policy.asked) == 1


async def test_f4_policy_is_not_asked_about_a_dropped_attempt() -> None:
    policy = every(0)

    class Race(Workflow):
        @step
        async def fork(self, ev: StartEvent) -> list[Item]:
            return [Item(n=0), Item(n=1)]

        @step(retry_policy=policy)
        async def work(self, ctx: Context, ev: Item) -> Done:
            try:
                await anyio.sleep(1 if ev.n else 1000)
            finally:
                if not ev.n:
                    raise ProviderError
            return Done(n=ev.n)

        @step
        async def first(
            self, evs: Annotated[list[Done], Collect(Take(1, cancel=True))]
        ) -> StopEvent:
            await anyio.sleep(1000)
            return StopEvent(result=[ev.n for ev in evs])

    handler = Race(timeout=None).run()
    assert await handler == [1]
    assert policy.asked == []
