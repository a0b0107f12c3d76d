"""Retries in a run: X1-X3, X5, and what they mean for R2, R8, F2, F4, F6, W3 and the endings."""

from __future__ import annotations

import contextvars
import functools
import math
import random
import threading
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Annotated, Any

import anyio
import anyio.from_thread
import attrs
import pytest
from anyio.lowlevel import checkpoint

from anyio_workflows import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
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
from anyio_workflows.errors import (
    WorkflowCancelledByUser,
    WorkflowRuntimeError,
    WorkflowTimeoutError,
)
from anyio_workflows.events import StepStateChanged, UnhandledEvent
from anyio_workflows.retry_policy import (
    RetryInfo,
    retry_if_exception_type,
    retry_policy,
    stop_after_attempt,
    wait_exponential,
    wait_fixed,
    wait_none,
)

from .conftest import BACKENDS
from .running import Note, check_ending, hog, read, run_virtually, texts

pytestmark = pytest.mark.anyio

PATIENCE = 10
"""Real seconds after which a test with threads fails that hangs."""


class Question(InputRequiredEvent):
    text: str = ""


class Answer(HumanResponseEvent):
    text: str = ""


class Item(Event):
    n: int = 0


class Done(Event):
    n: int = 0


class Flaky(Exception):
    """What the steps here raise."""


@attrs.define
class Policy:
    """A policy of one's own: keeps the questions, and gives what a function answers."""

    decide: Callable[[int], Any]
    asked: list[tuple[float, int, Exception]] = attrs.field(factory=list)

    def next(self, elapsed_time: float, attempts: int, error: Exception, /) -> float | None:
        self.asked.append((elapsed_time, attempts, error))
        return self.decide(attempts)  # type: ignore[no-any-return]


def every(seconds: float) -> Policy:
    """Return a policy that never gives up."""
    return Policy(lambda attempts: seconds)


Act = Callable[[Context], Awaitable[Any]]


def acting(
    act: Act, policy: Any, *, then: Act | None = None, **kwargs: Any
) -> WorkflowHandler[Any]:
    """Run a workflow whose one step does the act; `then` ends the run in a second step."""

    class Acts(Workflow):
        @step(retry_policy=policy, timeout=kwargs.pop("step_timeout", None))
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            return StopEvent(result=await act(ctx))

    class Both(Acts):
        @step
        async def other(self, ctx: Context, ev: StartEvent) -> StopEvent:
            assert then is not None
            return StopEvent(result=await then(ctx))

    return (Both if then else Acts)(**{"timeout": None, **kwargs}).run()


class Tries:
    """An act that fails `failures` times, and keeps when it was done."""

    def __init__(self, failures: float, seconds: float = 0) -> None:
        self.failures, self.seconds = failures, seconds
        self.starts: list[float] = []
        self.infos: list[RetryInfo] = []
        self.errors: list[Exception] = []
        self.began = anyio.current_time()

    async def __call__(self, ctx: Context) -> str:
        self.starts.append(anyio.current_time() - self.began)
        self.infos.append(ctx.retry_info())
        await anyio.sleep(self.seconds)
        if len(self.starts) <= self.failures:
            self.errors.append(Flaky(len(self.starts)))
            raise self.errors[-1]
        return f"attempt {len(self.starts)}"


async def caught_cancellation() -> BaseException:
    """Return a genuine cancellation exception that has already been dealt with."""
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await anyio.sleep(1)
        except anyio.get_cancelled_exc_class() as exc:
            stray = exc
    return stray


def counts(handler: WorkflowHandler[Any], name: str = "work") -> dict[str, int]:
    """Return the counts of a step that are not 0."""
    found = attrs.asdict(handler.statistics().steps[name])
    return {what: number for what, number in found.items() if number}


# --- X1, X5: when, how often, and what is told ----------------------------------------------------


async def test_x1_delays_are_exact_and_the_run_goes_on_with_what_comes_out() -> None:
    policy = retry_policy(wait=wait_exponential(multiplier=2), stop=stop_after_attempt(4))
    act = Tries(3, seconds=1)
    assert await acting(act, policy) == "attempt 4"
    assert act.starts == [0, 3, 8, 17]  # delays of 2, 4 and 8 s after attempts of 1 s


async def test_x1_step_that_gives_up_fails_with_its_last_error() -> None:
    act = Tries(math.inf, seconds=1)
    handler = acting(act, retry_policy())
    _, last = await check_ending(handler)
    assert act.starts == [0, 6, 12]
    assert isinstance(last, WorkflowFailedEvent)
    assert (last.step_name, last.attempts, last.elapsed_seconds) == ("work", 3, 13)
    assert last.exception is act.errors[2]
    assert last.exception.__notes__ == [
        "step work failed on StartEvent(), in attempt 3, 13 s after its first start"
    ]
    assert not hasattr(act.errors[0], "__notes__")


async def test_x1_policy_learns_attempts_elapsed_time_and_the_very_error() -> None:
    act = Tries(2, seconds=1)
    await acting(act, policy := every(4))
    assert policy.asked == [(1, 1, act.errors[0]), (6, 2, act.errors[1])]


async def test_x1_elapsed_time_begins_with_the_first_start_not_with_the_event() -> None:
    policy = Policy(lambda attempts: 10 if attempts < 2 else None)

    class Queue(Workflow):
        @step
        async def fork(self, ctx: Context, ev: StartEvent) -> Item | None:
            ctx.send_event(Item(n=0))
            ctx.send_event(Item(n=1))
            return None

        @step(num_workers=1, retry_policy=policy)
        async def work(self, ctx: Context, ev: Item) -> StopEvent | None:
            await anyio.sleep(7)
            if ev.n == 1:
                infos.append(ctx.retry_info())
                raise Flaky
            return None

    infos: list[RetryInfo] = []
    handler = Queue().run()
    _, last = await check_ending(handler)
    assert isinstance(last, WorkflowFailedEvent)
    assert (last.attempts, last.elapsed_seconds) == (2, 24)
    assert [asked[:2] for asked in policy.asked] == [(7, 1), (24, 2)]
    assert [info.elapsed_seconds for info in infos] == [0, 17]


async def test_x5_retry_info() -> None:
    act = Tries(2, seconds=1)
    before = datetime.now(UTC)
    await acting(act, every(4))
    first, second, third = act.infos
    assert first == RetryInfo(0, 0.0, None, None)
    assert (second.retry_number, second.elapsed_seconds) == (1, 5)
    assert (third.retry_number, third.elapsed_seconds) == (2, 10)
    assert second.last_exception is act.errors[0]
    assert third.last_exception is act.errors[1]
    assert second.last_failed_at is not None
    assert third.last_failed_at is not None
    assert before <= second.last_failed_at <= third.last_failed_at <= datetime.now(UTC)
    assert second.last_failed_at.tzinfo is UTC


async def test_x5_retry_info_is_that_of_the_execution() -> None:
    class Two(Workflow):
        @step
        async def fork(self, ev: StartEvent) -> list[Item]:
            return [Item(n=0), Item(n=1), Item(n=2)]

        @step(retry_policy=every(3))
        async def work(self, ctx: Context, ev: Item) -> Done:
            info = ctx.retry_info()
            await anyio.sleep(1)
            if info.retry_number < ev.n:
                raise Flaky
            return Done(n=info.retry_number)

        @step
        async def join(self, ctx: Context, evs: list[Done]) -> StopEvent:
            assert ctx.retry_info() == RetryInfo()
            return StopEvent(result=[ev.n for ev in evs])

    assert await Two().run() == [0, 1, 2]


async def test_x5_outside_a_step_there_is_nothing_to_tell() -> None:
    handler = acting(Tries(0), None)
    with pytest.raises(WorkflowRuntimeError, match="only a step can ask for its attempts"):
        handler.ctx.retry_info()
    await handler


@pytest.mark.parametrize("delay", [0, 0.0, -0.0])
async def test_x1_zero_delay(delay: float) -> None:
    act = Tries(5)
    handler = acting(act, every(delay), then=lambda ctx: anyio.sleep(1))
    assert await handler == "attempt 6"
    assert act.starts == [0] * 6


async def test_r6_retries_without_delay_starve_nobody() -> None:
    async def other(ctx: Context) -> str:
        for _ in range(50):
            await checkpoint()
        return "other"

    assert await acting(Tries(math.inf), every(0), then=other) == "other"


async def test_x1_infinite_delay_waits_for_the_end() -> None:
    act = Tries(1)
    handler = acting(act, every(math.inf), timeout=50_000)
    await anyio.sleep(40_000)
    assert counts(handler) == {"delayed": 1, "retried": 1}
    with pytest.raises(WorkflowTimeoutError, match="attempt 2 is due in inf s"):
        await handler
    assert act.starts == [0]


async def test_x1_infinite_delay_holds_up_no_other() -> None:
    class Two(Workflow):
        @step
        async def fork(self, ctx: Context, ev: StartEvent) -> Item | None:
            for n in (0, 1):
                ctx.send_event(Item(n=n))
            return None

        @step(retry_policy=Policy(lambda attempts: delays.pop(0)))
        async def work(self, ctx: Context, ev: Item) -> StopEvent:
            if ctx.retry_info().retry_number:
                return StopEvent(result=(ev.n, anyio.current_time() - began))
            raise Flaky

    began = anyio.current_time()
    delays = [math.inf, 30.0]
    assert await Two(timeout=None).run() == (1, 30)


async def test_x1_policy_is_shared_between_steps_and_runs() -> None:
    policy = retry_policy(wait=wait_exponential(), stop=stop_after_attempt(3))

    class Two(Workflow):
        @step(retry_policy=policy)
        async def one(self, ctx: Context, ev: StartEvent) -> Item:
            if ctx.retry_info().retry_number < 2:
                raise Flaky
            return Item()

        @step(retry_policy=policy)
        async def two(self, ctx: Context, ev: Item) -> StopEvent:
            if ctx.retry_info().retry_number < 2:
                raise Flaky
            return StopEvent(result=anyio.current_time() - began)

    began = anyio.current_time()
    runs = [Two().run(), Two().run()]
    assert [await handler for handler in runs] == [6, 6]


async def test_x1_condition_sees_the_group_that_a_task_group_raises() -> None:
    async def act(ctx: Context) -> str:
        if ctx.retry_info().retry_number:
            return repr(ctx.retry_info().last_exception)
        async with anyio.create_task_group() as group:
            group.start_soon(fail)
        raise AssertionError

    async def fail() -> None:
        raise Flaky("inside")

    policy = retry_policy(retry=retry_if_exception_type(ExceptionGroup))
    assert "Flaky('inside')" in await acting(act, policy)


# --- X1: policies that go wrong -------------------------------------------------------------------


@pytest.mark.parametrize("kind", [ZeroDivisionError, KeyboardInterrupt, SystemExit])
async def test_x1_policy_that_raises_fails_the_run_with_its_own_error(
    kind: type[BaseException],
) -> None:
    error = kind("mine")

    def decide(attempts: int) -> float:
        if attempts == 2:
            raise error
        return 5

    act = Tries(math.inf, seconds=1)
    handler = acting(act, Policy(decide), then=lambda ctx: anyio.sleep(100))
    _, last = await check_ending(handler)
    assert isinstance(last, WorkflowFailedEvent)
    assert last.exception is error
    assert error.__cause__ is act.errors[1]
    assert (last.step_name, last.attempts, last.elapsed_seconds) == ("work", 2, 7)


async def test_x1_policy_that_raises_keeps_the_cause_it_gave() -> None:
    def decide(attempts: int) -> float:
        raise ZeroDivisionError from cause

    cause = LookupError()
    with pytest.raises(ZeroDivisionError) as caught:
        await acting(Tries(1), Policy(decide))
    assert caught.value.__cause__ is cause


async def test_x1_policy_that_raises_the_error_of_the_step() -> None:
    def decide(attempts: int) -> float:
        raise policy.asked[0][2]

    act = Tries(1)
    policy = Policy(decide)
    with pytest.raises(Flaky) as caught:
        await acting(act, policy)
    assert caught.value is act.errors[0]
    assert caught.value.__cause__ is None


async def test_t5_policy_that_raises_stop_iteration() -> None:
    delays = iter([1.0])
    act = Tries(math.inf)
    handler = acting(act, Policy(lambda attempts: next(delays)))
    for _ in range(2):
        with pytest.raises(
            WorkflowRuntimeError, match="policy of step work raised StopIter"
        ) as caught:
            await handler
        assert caught.value.__cause__ is act.errors[1]


@pytest.mark.parametrize(
    "answer", [-1, -0.001, math.nan, -math.inf, True, False, "5", 5j, [5], 10**400, (5,)], ids=repr
)
async def test_x1_policy_that_answers_no_time_fails_the_run(answer: Any) -> None:
    act = Tries(math.inf, seconds=2)
    handler = acting(act, Policy(lambda attempts: answer))
    _, last = await check_ending(handler)
    assert isinstance(last, WorkflowFailedEvent)
    assert type(last.exception) is WorkflowRuntimeError
    assert str(last.exception) == (
        f"the retry policy of step work answered {answer!r}; it is to answer a number of seconds, "
        "0 or more, or None"
    )
    assert last.exception.__cause__ is act.errors[0]
    assert (last.step_name, last.attempts, last.elapsed_seconds) == ("work", 1, 2)


async def test_x1_policy_that_answers_an_awaitable_fails_the_run() -> None:
    async def slowly(attempts: int) -> float: ...

    answers: list[Any] = []

    def decide(attempts: int) -> Any:
        answers.append(slowly(attempts))
        return answers[0]

    with pytest.raises(WorkflowRuntimeError, match="step work answered <coroutine object"):
        await acting(Tries(1), Policy(decide))
    answers[0].close()


async def test_x1_error_of_a_policy_stops_the_other_steps() -> None:
    async def other(ctx: Context) -> None:
        try:
            await anyio.sleep(100)
        finally:
            ctx.write_event_to_stream(Note(text="tidy"))

    handler = acting(Tries(1, seconds=1), every(-1), then=other)
    assert texts(await read(handler)) == ["tidy"]


# --- X2: what no policy is asked about ------------------------------------------------------------


def fails_when_cancelled(error: BaseException | None = None) -> Act:
    async def act(ctx: Context) -> None:
        try:
            await anyio.sleep(1000)
        finally:
            if error is not None:
                raise error

    return act


@pytest.mark.parametrize("error", [None, Flaky()], ids=repr)
@pytest.mark.parametrize("how", ["cancel", "deadline", "other step", "other failure"])
async def test_x2_policy_is_not_asked_once_the_end_is_decided(
    how: str, error: Exception | None
) -> None:
    async def other(ctx: Context) -> None:
        await anyio.sleep(5 if how.startswith("other") else 1000)
        if how == "other failure":
            raise LookupError

    timeout = 5 if how == "deadline" else None
    handler = acting(fails_when_cancelled(error), policy := every(0), then=other, timeout=timeout)
    await anyio.sleep(4)
    if how == "cancel":
        await handler.cancel_run()
    _, last = await check_ending(handler)
    wanted = {
        "cancel": WorkflowCancelledEvent,
        "deadline": WorkflowTimedOutEvent,
        "other step": StopEvent,
        "other failure": WorkflowFailedEvent,
    }
    assert type(last) is wanted[how]
    assert policy.asked == []


@pytest.mark.parametrize("seconds", [10, 11])
@pytest.mark.parametrize("hogs", [False, True])
async def test_x2_policy_is_not_asked_at_the_deadline(hogs: bool, seconds: float) -> None:
    async def act(ctx: Context) -> None:
        if hogs:
            hog(seconds)
        else:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(seconds)
        raise Flaky

    handler = acting(act, policy := every(0), timeout=10, cleanup_timeout=100)
    _, last = await check_ending(handler)
    assert isinstance(last, WorkflowTimedOutEvent)
    assert last.active_steps == ["work"]
    assert policy.asked == []


async def test_x2_policy_is_asked_until_the_deadline() -> None:
    async def act(ctx: Context) -> None:
        hog(9.5)
        raise Flaky

    handler = acting(act, policy := every(0.5), timeout=10)
    with pytest.raises(WorkflowTimeoutError, match="attempt 2 is due now"):
        await handler
    assert [asked[:2] for asked in policy.asked] == [(9.5, 1)]


async def test_x2_policy_that_hogs_past_the_deadline_gets_no_attempt() -> None:
    def decide(attempts: int) -> float:
        hog(20)
        return 0

    act = Tries(math.inf)
    with pytest.raises(WorkflowTimeoutError):
        await acting(act, Policy(decide), timeout=10)
    assert act.starts == [0]


async def test_x2_attempt_that_is_due_at_the_deadline_does_not_start() -> None:
    act = Tries(math.inf)
    handler = acting(act, every(10), timeout=10)
    with pytest.raises(WorkflowTimeoutError):
        await handler
    assert act.starts == [0]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(2)], ids=repr)
async def test_x2_interrupts_fail_the_run_at_once(error: BaseException) -> None:
    async def act(ctx: Context) -> None:
        if ctx.retry_info().retry_number:
            raise error
        raise Flaky

    handler = acting(act, policy := every(1))
    _, last = await check_ending(handler)
    assert isinstance(last, WorkflowFailedEvent)
    assert last.exception is error
    assert (last.attempts, last.elapsed_seconds) == (2, 1)
    assert len(policy.asked) == 1


@pytest.mark.parametrize("wrong", ["text", [], Note()], ids=repr)
async def test_r4_wrong_return_value_is_not_retried(wrong: Any) -> None:
    class Wrong(Workflow):
        @step(retry_policy=(policy := every(0)))
        async def work(self, ev: StartEvent) -> StopEvent:
            return wrong  # type: ignore[no-any-return]

        asked = policy.asked

    with pytest.raises(WorkflowRuntimeError, match="step work returned"):
        await Wrong().run()
    assert Wrong.asked == []


@pytest.mark.parametrize("group", [False, True])
async def test_t8_stray_cancellation_is_retried(group: bool) -> None:
    async def act(ctx: Context) -> str:
        if ctx.retry_info().retry_number:
            return "fine"
        stray = await caught_cancellation()
        raise BaseExceptionGroup("stray", [stray]) if group else stray

    handler = acting(act, policy := every(2))
    assert await handler == "fine"
    [(_, _, error)] = policy.asked
    assert type(error) is WorkflowRuntimeError
    wanted = BaseExceptionGroup if group else anyio.get_cancelled_exc_class()
    assert isinstance(error.__cause__, wanted)


async def test_r8_attempt_that_times_out_is_retried_with_the_full_time() -> None:
    async def act(ctx: Context) -> str:
        starts.append(anyio.current_time() - began)
        await anyio.sleep(4 - len(starts))
        return "in time"

    began = anyio.current_time()
    starts: list[float] = []
    policy = retry_policy(retry=retry_if_exception_type(TimeoutError), wait=wait_fixed(10))
    assert await acting(act, policy, step_timeout=1.5) == "in time"
    assert starts == [0, 11.5, 23]


async def test_r8_timeouts_of_all_attempts_fail_the_step() -> None:
    handler = acting(lambda ctx: anyio.sleep(100), retry_policy(), step_timeout=2)
    _, last = await check_ending(handler)
    assert isinstance(last, WorkflowFailedEvent)
    assert str(last.exception) == "step work took longer than 2 s"
    assert (last.attempts, last.elapsed_seconds) == (3, 16)


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
        "  step work: in a retry delay, attempt 2 is due in 991 s"
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


@pytest.mark.parametrize("backend", BACKENDS)
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
                raise Flaky
            return StopEvent(result="not stalled")

        @step
        async def other(self, ev: StartEvent) -> None:
            await anyio.sleep(1)  # now nothing but the delay is left

    handler = Delayed(timeout=None).run()
    kinds = {type(event) async for event in handler.stream_events(expose_internal=True)}
    assert kinds == {StepStateChanged, StopEvent}  # no WorkflowIdleEvent
    assert await handler == "not stalled"


# --- R2: places -----------------------------------------------------------------------------------


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
            raise Flaky
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
                raise Flaky
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
                raise Flaky
            ended.append((ev.n, anyio.current_time() - began))
            return Done()

        @step
        async def join(self, evs: list[Done]) -> StopEvent:
            return StopEvent()

    began, delays = anyio.current_time(), [100.0, 1.0]
    ended: list[tuple[int, float]] = []
    await Two(timeout=None).run()
    assert ended == [(1, 4), (100, 102)]


# --- X3: what every attempt gets, and what stays --------------------------------------------------


async def test_x3_every_attempt_gets_the_same_event() -> None:
    class Same(Workflow):
        @step
        async def fork(self, ev: StartEvent) -> Item:
            return sent

        @step(retry_policy=every(1))
        async def work(self, ctx: Context, ev: Item) -> StopEvent:
            got.append(ev)
            if len(got) < 3:
                raise Flaky
            return StopEvent()

    sent = Item(n=7)
    got: list[Item] = []
    await Same().run()
    assert len(got) == 3
    assert all(event is sent for event in got)


async def test_x3_what_a_failed_attempt_wrote_and_sent_stays() -> None:
    class Sends(Workflow):
        @step(retry_policy=every(1))
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            number = ctx.retry_info().retry_number
            ctx.write_event_to_stream(Note(text=f"attempt {number}"))
            ctx.send_event(Item(n=number))
            await anyio.sleep(1)
            if number < 2:
                raise Flaky
            return StopEvent()

        @step
        async def tell(self, ctx: Context, ev: Item) -> None:
            ctx.write_event_to_stream(Note(text=f"item {ev.n}"))

    assert texts(await read(Sends(skip_graph_checks=["reachability"]).run())) == [
        *("attempt 0", "item 0"),
        *("attempt 1", "item 1"),
        *("attempt 2", "item 2"),
    ]


async def test_o7_every_attempt_sees_the_context_variables_of_the_caller() -> None:
    async def act(ctx: Context) -> list[str]:
        seen.append(var.get())
        var.set(f"set in attempt {len(seen)}")
        if len(seen) < 3:
            raise Flaky
        return seen

    var = contextvars.ContextVar[str]("var")
    var.set("caller's")
    seen: list[str] = []
    handler = acting(act, every(1))
    var.set("set later")
    assert await handler == ["caller's"] * 3


async def test_o5_child_of_a_failed_attempt_is_a_child_of_the_run() -> None:
    class Child(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            try:
                await anyio.sleep(ev.seconds)
            finally:
                ended.append((ev.seconds, anyio.current_time() - began))
            return StopEvent()

    async def act(ctx: Context) -> None:
        for seconds in (3, 1000):
            children.append(Child(timeout=None).run(seconds=seconds))
        await anyio.sleep(1)
        if len(children) == 2:
            raise Flaky

    began = anyio.current_time()
    ended: list[tuple[float, float]] = []
    children: list[WorkflowHandler[Any]] = []
    await acting(act, every(10))
    assert ended[0] == (3, 3)
    assert sorted(ended[1:]) == [(3, 12), (1000, 12), (1000, 12)]
    assert all(child.is_done() for child in children)


async def test_x3_retried_join_gets_the_same_events() -> None:
    class Joins(Workflow):
        @step
        async def fork(self, ev: StartEvent) -> list[Item]:
            return [Item(n=n) for n in range(3)]

        @step(retry_policy=every(1))
        async def join(self, ctx: Context, evs: list[Item]) -> StopEvent:
            got.append([ev.n for ev in evs])
            while evs:  # an attempt may do with its list what it likes
                evs.pop()
            if len(got) < 3:
                raise Flaky
            return StopEvent()

    got: list[list[int]] = []
    await Joins().run()
    assert got == [[0, 1, 2]] * 3


async def test_x3_retried_step_with_a_set_of_events() -> None:
    class Pairs(Workflow):
        @step
        async def fork(self, ctx: Context, ev: StartEvent) -> Item | Done | None:
            for event in (Item(n=1), Item(n=2), Done(n=3), Done(n=4)):
                ctx.send_event(event)
            return None

        @step(num_workers=1, retry_policy=every(1))
        async def pair(self, ctx: Context, one: Item, two: Done) -> StopEvent | None:
            got.append((one.n, two.n))
            if not ctx.retry_info().retry_number:
                raise Flaky
            return StopEvent() if one.n == 2 else None

    got: list[tuple[int, int]] = []
    await Pairs().run()
    assert got == [(1, 3), (2, 4), (1, 3), (2, 4)]


# --- F2-F4: batches -------------------------------------------------------------------------------


async def test_f2_batch_waits_for_the_retries_of_its_branches() -> None:
    line = Line()
    assert await line.run(items=1, failing=[0]) == [0]


async def test_f2_branch_that_gives_up_fails_the_run() -> None:
    class Batch(Line):
        @step(retry_policy=retry_policy(stop=stop_after_attempt(2)))
        async def work(self, ctx: Context, ev: Item) -> Done:
            if ev.n == 1:
                raise Flaky
            return Done(n=ev.n)

    _, last = await check_ending(Batch().run(items=3, failing=[]))
    assert isinstance(last, WorkflowFailedEvent)
    assert (last.step_name, last.attempts, last.elapsed_seconds) == ("work", 2, 5)


class Outer(Event):
    n: int = 0


async def test_f3_retries_in_nested_batches() -> None:
    class Nested(Workflow):
        @step
        async def fork(self, ev: StartEvent) -> list[Outer]:
            return [Outer(n=n) for n in (1, 2)]

        @step(retry_policy=every(3))
        async def fork_again(self, ctx: Context, ev: Outer) -> list[Item]:
            if ctx.retry_info().retry_number < ev.n:
                raise Flaky
            return [Item(n=10 * ev.n + n) for n in (1, 2)]

        @step(retry_policy=every(5))
        async def work(self, ctx: Context, ev: Item) -> Done:
            if ctx.retry_info().retry_number < ev.n % 10:
                raise Flaky
            return Done(n=ev.n)

        @step(retry_policy=every(7))
        async def join(self, ctx: Context, evs: list[Done]) -> Note:
            if not ctx.retry_info().retry_number:
                raise Flaky
            return Note(text=[ev.n for ev in evs])

        @step(retry_policy=every(9))
        async def join_again(self, ctx: Context, evs: list[Note]) -> StopEvent:
            if not ctx.retry_info().retry_number:
                raise Flaky
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
                raise Flaky
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
                    raise Flaky
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


# --- W3: a retried step that waits ----------------------------------------------------------------


class Person:
    """Answers each question a second after it was read, with its number, and keeps them."""

    def __init__(self, handler: WorkflowHandler[Any]) -> None:
        self.handler = handler
        self.questions: list[str] = []

    async def __call__(self) -> Any:
        async for event in self.handler.stream_events():
            if isinstance(event, Question):
                self.questions.append(event.text)
                await anyio.sleep(1)
                await self.handler.send_event(Answer(text=f"{len(self.questions)}: {event.text}"))
        return await self.handler


async def test_w3_answers_are_given_again_in_order_and_nobody_is_asked_twice() -> None:
    async def act(ctx: Context) -> list[list[str]]:
        attempts.append([])
        for word in ("a", "b", "c"):
            attempts[-1].append((await ctx.wait_for_event(Answer, Question(text=word))).text)
            if len(attempts) <= len(attempts[-1]) < 3:
                raise Flaky
        return attempts

    attempts: list[list[str]] = []
    person = Person(acting(act, every(10)))
    assert await person() == [["1: a"], ["1: a", "2: b"], ["1: a", "2: b", "3: c"]]
    assert person.questions == ["a", "b", "c"]


async def test_w3_answer_given_again_is_the_same_object_and_takes_no_time() -> None:
    async def act(ctx: Context) -> Any:
        began = anyio.current_time()
        got.append(await ctx.wait_for_event(Answer))
        if len(got) < 3:
            raise Flaky
        return anyio.current_time() - began

    got: list[Answer] = []
    handler = acting(act, every(10))
    await anyio.sleep(5)
    await handler.send_event(Answer())
    assert await handler == 0
    assert got[0] is got[1] is got[2]


async def test_w3_unanswered_prompt_is_not_written_again() -> None:
    """The first attempt fails while its question is open; the answer goes to the second."""

    async def act(ctx: Context) -> str:
        async with anyio.create_task_group() as group:
            if not ctx.retry_info().retry_number:
                group.start_soon(fail)
            got = await ctx.wait_for_event(Answer, Question(text="name?"))
        return got.text

    async def fail() -> None:
        await anyio.sleep(1)
        raise Flaky

    handler = acting(act, every(10))
    await anyio.sleep(5)
    assert counts(handler) == {"delayed": 1, "retried": 1}
    await anyio.sleep(10)
    assert counts(handler) == {"waiting": 1, "retried": 1}
    await handler.send_event(Answer(text="Ada"))
    assert await handler == "Ada"
    assert [type(event) for event in await read(handler)] == [Question, StopEvent]


async def test_w3_answer_that_comes_during_the_delay_is_not_lost() -> None:
    async def act(ctx: Context) -> str:
        async with anyio.create_task_group() as group:
            if not ctx.retry_info().retry_number:
                group.start_soon(fail)
            return (await ctx.wait_for_event(Answer, Question(text="name?"))).text

    async def fail() -> None:
        await anyio.sleep(1)
        raise Flaky

    handler = acting(act, every(10), timeout=1000)
    await anyio.sleep(5)
    await handler.send_event(Answer(text="Ada"))
    events, last = await check_ending(handler)
    assert last.result == "Ada"
    assert [event.text for event in events if isinstance(event, Question)] == ["name?"]


async def test_w3_question_that_the_last_attempt_did_not_come_to_is_closed_with_it() -> None:
    async def act(ctx: Context) -> str:
        if ctx.retry_info().retry_number:
            return "without an answer"
        async with anyio.create_task_group() as group:
            group.start_soon(fail)
            await ctx.wait_for_event(Answer, Question(text="name?"))
        return "unreachable"

    async def fail() -> None:
        await anyio.sleep(1)
        raise Flaky

    class Waits(Workflow):
        @step(retry_policy=every(10))
        async def work(self, ctx: Context, ev: StartEvent) -> Item:
            return Item() if await act(ctx) else Item(n=1)

        @step
        async def end(self, ctx: Context, ev: Item) -> StopEvent:
            await anyio.sleep(100)
            return StopEvent()

    handler = Waits(timeout=None).run()
    stream = handler.stream_events(expose_internal=True)
    await anyio.sleep(20)
    await handler.send_event(Answer(text="late"))
    assert any([isinstance(event, UnhandledEvent) async for event in stream])


async def test_w3_wait_that_timed_out_asks_again() -> None:
    async def act(ctx: Context) -> str:
        return (await ctx.wait_for_event(Answer, Question(text="name?"), timeout=5)).text

    handler = acting(act, every(10))
    await anyio.sleep(16)
    await handler.send_event(Answer(text="Ada"))
    assert await handler == "Ada"
    assert [type(event) for event in await read(handler)] == [Question, Question, StopEvent]


async def test_w3_timeout_of_a_wait_is_an_error_that_the_policy_sees() -> None:
    async def act(ctx: Context) -> str:
        return (await ctx.wait_for_event(Answer, timeout=5)).text

    with pytest.raises(TimeoutError, match="no Answer"):
        await acting(act, policy := Policy(lambda attempts: 10 if attempts < 2 else None))
    assert [asked[:2] for asked in policy.asked] == [(5, 1), (20, 2)]


async def test_w3_next_attempt_may_wait_for_something_else() -> None:
    async def act(ctx: Context) -> Any:
        if not ctx.retry_info().retry_number:
            await ctx.wait_for_event(Answer, requirements={"text": "a"})
            raise Flaky
        got = await ctx.wait_for_event(Answer, requirements={"text": "b"})
        again = await ctx.wait_for_event(Answer, requirements={"text": "a"})
        return got.text, again.text

    handler = acting(act, every(2))
    for word in ("a", "b"):
        await anyio.sleep(5)
        await handler.send_event(Answer(text=word))
    assert await handler == ("b", "a")


async def test_w3_attempt_that_fails_early_loses_no_answer_of_an_earlier_one() -> None:
    async def act(ctx: Context) -> Any:
        number = ctx.retry_info().retry_number
        got = []
        for n in range(2):
            if (number, n) == (1, 1):
                raise Flaky
            got.append((await ctx.wait_for_event(Answer, Question(text=str(n)))).text)
        if number == 0:
            raise Flaky
        return got

    person = Person(acting(act, every(10)))
    assert await person() == ["1: 0", "2: 1"]
    assert person.questions == ["0", "1"]


@pytest.mark.parametrize("told_apart_by", ["waiter_id", "requirements"])
async def test_w3_concurrent_waits_get_their_own_answers_again(told_apart_by: str) -> None:
    """The tasks come in another order in each attempt."""

    async def act(ctx: Context) -> dict[str, str]:
        got: dict[str, str] = {}
        number = ctx.retry_info().retry_number
        async with anyio.create_task_group() as group:
            for word in ("abc", "cab", "bca")[number]:
                group.start_soon(ask, ctx, word, got)
        if number < 2:
            raise Flaky
        return got

    async def ask(ctx: Context, word: str, got: dict[str, str]) -> None:
        asked.append(word)
        if told_apart_by == "waiter_id":
            wait = {"waiter_id": word}
            await anyio.sleep(ord(word) - ord("a"))  # each has its own answer, one after another
        else:
            wait = {"requirements": {"text": word}}
        got[word] = (await ctx.wait_for_event(Answer, Question(text=word), **wait)).text  # type: ignore[arg-type]

    asked: list[str] = []
    handler = acting(act, every(100))
    for word in "abc":
        await anyio.sleep(0.9)
        await handler.send_event(Answer(text=word))
    assert await handler == {"a": "a", "b": "b", "c": "c"}
    assert sorted(asked) == sorted("abc" * 3)
    prompts = [event.text for event in await read(handler) if isinstance(event, Question)]
    assert sorted(prompts) == ["a", "b", "c"]


async def test_w3_only_the_unanswered_of_concurrent_waits_is_open_in_the_next_attempt() -> None:
    async def act(ctx: Context) -> list[str]:
        got: dict[str, str] = {}
        async with anyio.create_task_group() as group:
            for word in "ab":
                group.start_soon(ask, ctx, word, got)
            if not ctx.retry_info().retry_number:
                await anyio.sleep(5)
                raise Flaky
        return sorted(got.values())

    async def ask(ctx: Context, word: str, got: dict[str, str]) -> None:
        wanted = {"text": word}
        answer = await ctx.wait_for_event(Answer, Question(text=word), requirements=wanted)
        got[word] = answer.text

    handler = acting(act, every(10))
    await anyio.sleep(1)
    await handler.send_event(Answer(text="b"))
    await anyio.sleep(20)
    assert counts(handler) == {"waiting": 1, "retried": 1}
    await handler.send_event(Answer(text="a"))
    assert await handler == ["a", "b"]
    prompts = [event.text for event in await read(handler) if isinstance(event, Question)]
    assert sorted(prompts) == ["a", "b"]


async def test_w3_executions_do_not_get_each_others_answers() -> None:
    class Crowd(Workflow):
        @step
        async def fork(self, ev: StartEvent) -> list[Item]:
            return [Item(n=n) for n in range(3)]

        @step(retry_policy=every(10))
        async def work(self, ctx: Context, ev: Item) -> Note:
            wanted = {"text": str(ev.n)}
            got = await ctx.wait_for_event(Answer, requirements=wanted)
            if not ctx.retry_info().retry_number:
                raise Flaky
            return Note(text=(ev.n, got.text))

        @step
        async def join(self, evs: list[Note]) -> StopEvent:
            return StopEvent(result=sorted(ev.text for ev in evs))

    handler = Crowd().run()
    await anyio.sleep(1)
    for n in (2, 0, 1):
        await handler.send_event(Answer(text=str(n)))
    assert await handler == [(0, "0"), (1, "1"), (2, "2")]


async def test_r8_time_spent_waiting_does_not_count_in_any_attempt() -> None:
    async def act(ctx: Context) -> str:
        got = await ctx.wait_for_event(Answer)
        await anyio.sleep(3 if not ctx.retry_info().retry_number else 1)
        return got.text

    handler = acting(act, policy := every(10), step_timeout=2)
    await anyio.sleep(100)
    await handler.send_event(Answer(text="slow"))
    assert await handler == "slow"
    assert [asked[:2] for asked in policy.asked] == [(102, 1)]


# --- F6: a retried step that collects -------------------------------------------------------------


class Collects(Workflow):
    """Collects pairs; an execution fails in its first attempt where `failing` says so."""

    told: list[tuple[int, int, list[int] | None]]

    @step
    async def fork(self, ctx: Context, ev: StartEvent) -> Item | None:
        self.told, self.failing = [], ev.failing
        for n in range(ev.items):
            ctx.send_event(Item(n=n))
        return None

    @step(num_workers=1, retry_policy=every(10))
    async def work(self, ctx: Context, ev: Item) -> StopEvent | None:
        number = ctx.retry_info().retry_number
        found = ctx.collect_events(ev, [Item, Item])
        self.told.append((ev.n, number, found and [item["n"] for item in found]))
        if found:
            found.clear()  # an attempt may do with its list what it likes
        if ev.n in self.failing and number < 2:
            raise Flaky
        return None

    @step
    async def end(self, ev: Note) -> StopEvent:
        return StopEvent(result=self.told)


async def collected(items: int, *failing: int) -> list[tuple[int, int, list[int] | None]]:
    handler = Collects(skip_graph_checks=["reachability"]).run(items=items, failing=failing)
    await anyio.sleep(40)
    await handler.send_event(Note())
    return await handler  # type: ignore[no-any-return]


async def test_f6_retry_gets_the_same_list_and_the_surplus_stays() -> None:
    assert await collected(4, 1) == [
        (0, 0, None),
        (1, 0, [0, 1]),
        (2, 0, None),
        (3, 0, [2, 3]),
        (1, 1, [0, 1]),
        (1, 2, [0, 1]),
    ]


async def test_f6_retry_gets_the_same_nothing_and_collects_nothing_twice() -> None:
    assert await collected(3, 0) == [
        (0, 0, None),
        (1, 0, [0, 1]),
        (2, 0, None),
        (0, 1, None),
        (0, 2, None),
    ]


async def test_f6_several_questions_are_answered_again_in_order() -> None:
    async def act(ctx: Context) -> Any:
        number = ctx.retry_info().retry_number
        found: list[Any] = []
        for n in range(4):
            found.append(ctx.collect_events(Item(n=n), [Item, Item]))
            if number < 3 and n == (0, 2, 1)[number]:
                raise Flaky
        found.append(ctx.collect_events(Item(n=9), [Item], buffer_id="other"))
        return [events and [event.n for event in events] for events in found]

    assert await acting(act, every(1)) == [None, [0, 1], None, [2, 3], [9]]


# --- Tasks and threads that an attempt leaves behind ----------------------------------------------


@pytest.mark.parametrize("when", ["delay", "next attempt"])
async def test_w4_context_of_a_failed_attempt_can_neither_wait_nor_collect(when: str) -> None:
    async def act(ctx: Context) -> None:
        contexts.append(ctx)
        if len(contexts) == 1:
            raise Flaky
        await anyio.sleep(10)

    contexts: list[Context] = []
    handler = acting(act, every(10))
    await anyio.sleep(5 if when == "delay" else 15)
    before = counts(handler)
    with pytest.raises(WorkflowRuntimeError, match="attempt 1 of step work has ended"):
        await contexts[0].wait_for_event(Answer, timeout=1)
    with pytest.raises(WorkflowRuntimeError, match="attempt 1 of step work has ended"):
        contexts[0].collect_events(Item(), [Item])
    assert counts(handler) == before
    await handler


async def test_w4_task_that_is_left_behind_waiting_is_refused_when_its_attempt_fails() -> None:
    async def act(ctx: Context) -> str:
        if not ctx.retry_info().retry_number:
            group.start_soon(wait, ctx)
            await anyio.sleep(1)
            raise Flaky
        return "fine"

    async def wait(ctx: Context) -> None:
        with pytest.raises(WorkflowRuntimeError, match="step work has ended"):
            await ctx.wait_for_event(Answer)
        refused_at.append(anyio.current_time() - began)

    began = anyio.current_time()
    refused_at: list[float] = []
    async with anyio.create_task_group() as group:
        handler = acting(act, every(10))
        assert await handler == "fine"
    assert refused_at == [1]
    assert counts(handler) == {"done": 1, "retried": 1}


def in_real_time(backend: str, main: Callable[[], Awaitable[None]]) -> None:
    """Run `main` in an event loop with a real clock, but not for ever."""

    async def bounded() -> None:
        with anyio.fail_after(PATIENCE):
            await main()

    anyio.run(bounded, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_r5_sync_step_is_retried(backend: str) -> None:
    class Sync(Workflow):
        @step(retry_policy=retry_policy(wait=wait_none()))
        def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            info = ctx.retry_info()
            threads.append(threading.get_ident())
            if info.retry_number < 2:
                raise Flaky(info.retry_number)
            return StopEvent(result=(info.retry_number, repr(info.last_exception)))

    async def main() -> None:
        assert await Sync().run() == (2, "Flaky(1)")

    threads: list[int] = []
    in_real_time(backend, main)
    assert len(threads) == 3
    assert threading.get_ident() not in threads


@pytest.mark.parametrize("backend", BACKENDS)
def test_r5_retried_sync_step_gets_its_answers_again(backend: str) -> None:
    class Sync(Workflow):
        @step(retry_policy=retry_policy(wait=wait_none()))
        def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            ask = functools.partial(ctx.wait_for_event, Answer)
            got = [anyio.from_thread.run(ask, Question(text=word)).text for word in "ab"]
            if not ctx.retry_info().retry_number:
                raise Flaky
            return StopEvent(result=got)

    async def main() -> None:
        handler = Sync().run()
        async for event in handler.stream_events():
            if isinstance(event, Question):
                questions.append(event.text)
                await handler.send_event(Answer(text=event.text.upper()))
        assert await handler == ["A", "B"]

    questions: list[str] = []
    in_real_time(backend, main)
    assert questions == ["a", "b"]


LATE_ACTS: list[Callable[[Context], Any]] = [
    lambda ctx: ctx.write_event_to_stream(Note(text="late")),
    lambda ctx: ctx.send_event(StopEvent(result="late")),
    lambda ctx: ctx.collect_events(Item(), [Item]),
    lambda ctx: anyio.from_thread.run(ctx.wait_for_event, Answer),
]


@pytest.mark.parametrize("backend", BACKENDS)
def test_r8_thread_of_a_timed_out_attempt_is_refused_while_the_next_one_runs(backend: str) -> None:
    class Slow(Workflow):
        @step(num_workers=1, timeout=0.5, retry_policy=retry_policy(wait=wait_none()))
        def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            if ctx.retry_info().retry_number:
                release.set()
                assert over.wait(PATIENCE)
                return StopEvent(result="attempt 2")
            assert release.wait(PATIENCE)
            for act in LATE_ACTS:
                try:
                    outcomes.append(act(ctx))
                except Exception as exc:
                    outcomes.append(exc)
            over.set()
            return StopEvent(result="attempt 1")

    async def main() -> None:
        handler = Slow().run()
        events, _ = await check_ending(handler)
        assert texts(events) == []
        assert await handler == "attempt 2"
        assert counts(handler) == {"done": 1, "retried": 1}

    release, over = threading.Event(), threading.Event()
    outcomes: list[Any] = []
    in_real_time(backend, main)
    assert [type(outcome) for outcome in outcomes] == [WorkflowRuntimeError] * 4
    assert all("ended" in str(outcome) for outcome in outcomes)
