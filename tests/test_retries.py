"""When a failed step is tried again, and what its policy is asked (X1, X2, X5)."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyio_workflows import (
    Context,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowTimedOutEvent,
    step,
)
from anyio_workflows.errors import WorkflowRuntimeError, WorkflowTimeoutError
from anyio_workflows.retry_policy import (
    RetryInfo,
    retry_if_exception_type,
    retry_policy,
    stop_after_attempt,
    wait_exponential,
    wait_fixed,
)

from .retrying import Policy, Tries, acting, counts, every
from .running import caught_cancellation, check_ending, hog, read, texts
from .samples import Act, Done, Item, Note, ProviderError

pytestmark = pytest.mark.anyio

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
                raise ProviderError
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
                raise ProviderError
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
            raise ProviderError

    began = anyio.current_time()
    delays = [math.inf, 30.0]
    assert await Two(timeout=None).run() == (1, 30)


async def test_x1_policy_is_shared_between_steps_and_runs() -> None:
    policy = retry_policy(wait=wait_exponential(), stop=stop_after_attempt(3))

    class Two(Workflow):
        @step(retry_policy=policy)
        async def one(self, ctx: Context, ev: StartEvent) -> Item:
            if ctx.retry_info().retry_number < 2:
                raise ProviderError
            return Item()

        @step(retry_policy=policy)
        async def two(self, ctx: Context, ev: Item) -> StopEvent:
            if ctx.retry_info().retry_number < 2:
                raise ProviderError
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
        raise ProviderError("inside")

    policy = retry_policy(retry=retry_if_exception_type(ExceptionGroup))
    assert "ProviderError('inside')" in await acting(act, policy)


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
    with pytest.raises(ProviderError) as caught:
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
        f"the retry policy of step work returned {answer!r}; it must return a number of seconds, "
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

    with pytest.raises(WorkflowRuntimeError, match="step work returned <coroutine object"):
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


@pytest.mark.parametrize("error", [None, ProviderError()], ids=repr)
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
        raise ProviderError

    handler = acting(act, policy := every(0), timeout=10, cleanup_timeout=100)
    _, last = await check_ending(handler)
    assert isinstance(last, WorkflowTimedOutEvent)
    assert last.active_steps == ["work"]
    assert policy.asked == []


async def test_x2_policy_is_asked_until_the_deadline() -> None:
    async def act(ctx: Context) -> None:
        hog(9.5)
        raise ProviderError

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
        raise ProviderError

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
