"""What a failed or stuck run says about itself: notes, logs, counts, and the lines of `verbose`."""

from __future__ import annotations

import copy
import importlib
import io
import logging
import pickle
import pkgutil
import sys
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

import anyio_workflows
from anyio_workflows import (
    Context,
    Event,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowHandler,
    WorkflowTimedOutEvent,
    catch_error,
    step,
)
from anyio_workflows.errors import (
    WorkflowCancelledByUser,
    WorkflowRuntimeError,
    WorkflowTimeoutError,
)
from anyio_workflows.events import StepFailedEvent
from anyio_workflows.retry_policy import retry_policy, stop_after_attempt, wait_fixed

from .running import check_ending, hog, texts
from .samples import Answer, Note, Other, ProviderError

pytestmark = pytest.mark.anyio


class Item(Event):
    n: int = 0
    text: Any = ""


class Acts(Workflow):
    """Hands an event to `work`, which does what the test gives."""

    def __init__(self, act: Callable[..., Awaitable[Any]], item: Any = None, **kwargs: Any) -> None:
        super().__init__(**{"timeout": None, **kwargs})
        self.act = act
        self.item = item or Item(n=1)

    @step
    async def begin(self, ev: StartEvent) -> Item:
        return self.item

    @step
    async def work(self, ctx: Context, ev: Item) -> StopEvent:
        return await self.act(ctx)


class Retries(Workflow):
    """Tries three times, 3 s apart; each attempt takes 1 s."""

    def __init__(self, act: Callable[[], Any], **kwargs: Any) -> None:
        super().__init__(**{"timeout": None, **kwargs})
        self.act = act

    @step(retry_policy=retry_policy(wait=wait_fixed(3), stop=stop_after_attempt(3)))
    async def work(self, ev: StartEvent) -> StopEvent:
        await anyio.sleep(1)
        return self.act()


def raiser(error: BaseException) -> Callable[..., Any]:
    def act() -> Any:
        raise error

    return act


def failing(error: BaseException, *, after: float = 0) -> Callable[[Context], Awaitable[Any]]:
    async def act(ctx: Context) -> Any:
        await anyio.sleep(after)
        raise error

    return act


async def failure(handler: WorkflowHandler[Any]) -> BaseException:
    """Return what a run failed with."""
    _, last = await check_ending(handler)
    assert isinstance(last, WorkflowFailedEvent)
    return last.exception


async def notes(handler: WorkflowHandler[Any]) -> list[str]:
    """Return the notes on what a run failed with."""
    return (await failure(handler)).__notes__


# --- Notes on exceptions ----------------------------------------------------------------------------


async def test_x6_a_failure_tells_step_event_attempt_and_time() -> None:
    error = ProviderError("broken", 7)
    raised = await failure(Acts(failing(error, after=2.5)).run())
    assert raised is error
    assert (type(error), error.args, str(error)) == (ProviderError, ("broken", 7), "('broken', 7)")
    assert (error.__cause__, error.__context__) == (None, None)
    assert error.__notes__ == [
        "step work failed on Item(n=1, text=''), in attempt 1, 2.5 s after its first start"
    ]
    assert "".join(traceback.format_exception_only(error)).endswith(
        "ProviderError: ('broken', 7)\n"
        "step work failed on Item(n=1, text=''), in attempt 1, 2.5 s after its first start\n"
    )


async def test_x6_own_notes_stay_in_front() -> None:
    error = ProviderError()
    error.add_note("mine")
    found = await notes(Acts(failing(error)).run())
    assert found == [
        "mine",
        "step work failed on Item(n=1, text=''), in attempt 1, 0 s after its first start",
    ]


async def test_x6_awaiting_again_adds_no_note() -> None:
    handler = Acts(failing(ProviderError())).run()
    assert len(await notes(handler)) == 1
    for _ in range(3):
        with pytest.raises(ProviderError) as caught:
            await handler
    assert len(caught.value.__notes__) == 1


async def test_x6_one_note_for_a_failure_after_retries() -> None:
    found = await notes(Retries(raiser(ProviderError())).run())
    assert found == ["step work failed on StartEvent(), in attempt 3, 9 s after its first start"]


async def test_x6_attempts_that_are_retried_get_no_note() -> None:
    def act() -> StopEvent:
        if len(errors) == 2:
            return StopEvent()
        errors.append(ProviderError())
        raise errors[-1]

    errors: list[ProviderError] = []
    await Retries(act).run()
    assert [getattr(error, "__notes__", None) for error in errors] == [None, None]


class Recovers(Workflow):
    """Recovers a failure, or fails with it once more."""

    def __init__(self, error: Exception, again: bool) -> None:
        super().__init__(timeout=None)
        self.error = error
        self.again = again

    @step
    async def work(self, ev: StartEvent) -> StopEvent:
        raise self.error

    @catch_error
    async def rescue(self, ev: StepFailedEvent) -> StopEvent:
        if self.again:
            await anyio.sleep(1)
            raise ev.exception
        return StopEvent(result=list(ev.exception.__notes__))


async def test_x4_the_handler_sees_the_note() -> None:
    assert await Recovers(ProviderError(), again=False).run() == [
        "step work failed on StartEvent(), in attempt 1, 0 s after its first start"
    ]


async def test_x4_a_failure_raised_again_by_its_handler_has_a_note_of_each() -> None:
    first, second = await notes(Recovers(ProviderError("it"), again=True).run())
    assert first == "step work failed on StartEvent(), in attempt 1, 0 s after its first start"
    assert second.startswith("step rescue failed on StepFailedEvent(step_name='work', ")
    assert second.endswith(", in attempt 1, 1 s after its first start")


async def test_x6_equal_notes_on_a_shared_exception_are_one() -> None:
    class Shares(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Other]:
            return [Other(n=1), Other(n=1), Other(n=2)]

        @step
        async def work(self, ev: Other) -> None:
            raise error

        @catch_error
        async def rescue(self, ev: StepFailedEvent) -> Item:
            return Item()

        @step
        async def join(self, evs: list[Item]) -> StopEvent:
            return StopEvent()

    error = ProviderError()
    await Shares().run()
    assert error.__notes__ == [
        f"step work failed on Other(n={n}), in attempt 1, 0 s after its first start" for n in (1, 2)
    ]


async def test_x1_a_failing_policy_is_noted_at_the_step() -> None:
    class Policy:
        def next(self, elapsed_time: float, attempts: int, error: Exception, /) -> float | None:
            raise LookupError("policy")

    class Asks(Workflow):
        @step(retry_policy=Policy())
        async def work(self, ev: StartEvent) -> StopEvent:
            raise ProviderError

    error = await failure(Asks().run())
    assert type(error) is LookupError
    assert type(error.__cause__) is ProviderError
    assert error.__notes__ == [
        "step work failed on StartEvent(), in attempt 1, 0 s after its first start"
    ]


async def test_x6_groups_and_base_exceptions_get_a_note_too() -> None:
    for error in (ExceptionGroup("two", [ProviderError(1), ProviderError(2)]), KeyboardInterrupt()):
        raised = await failure(Acts(failing(error)).run())
        assert raised is error
        assert len(raised.__notes__) == 1
    assert not any(hasattr(part, "__notes__") for part in (ProviderError(1), ProviderError(2)))


async def test_x6_a_join_is_noted_with_the_first_of_its_events() -> None:
    class Joins(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> list[Other]:
            return [Other(n=n) for n in range(ev.n)]

        @step
        async def join(self, evs: list[Other]) -> StopEvent:
            raise ProviderError

    for n, shown in [(0, "[]"), (1, "[Other(n=0)]"), (2, "[Other(n=0), Other(n=1)]")]:
        [note] = await notes(Joins().run(n=n))
        assert note == f"step join failed on {shown}, in attempt 1, 0 s after its first start"
    [note] = await notes(Joins().run(n=1000))
    assert note.startswith("step join failed on [Other(n=0), Other(n=1), ")
    assert "..." in note
    assert len(note) < 300


async def test_x6_huge_events_are_cut() -> None:
    [note] = await notes(Acts(failing(ProviderError()), Item(n=1, text="x" * 10**6)).run())
    assert note.startswith("step work failed on Item(n=1, text='xxx")
    assert note.endswith("xxx'), in attempt 1, 0 s after its first start")
    assert len(note) < 220


class Broken:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


async def test_x6_events_that_cannot_be_shown_are_named() -> None:
    error = ProviderError()
    raised = await failure(Acts(failing(error), Item(text=Broken())).run())
    assert raised is error
    [note] = error.__notes__
    assert note.startswith("step work failed on <Item instance at 0x")


class Refuses(Exception):
    def add_note(self, note: str) -> None:
        raise TypeError("no notes")


class Frozen(Exception):
    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("frozen")


class Spoilt(Exception):
    __notes__ = 5  # type: ignore[assignment]


@pytest.mark.parametrize("kind", [Refuses, Frozen, Spoilt])
async def test_t5_exceptions_that_refuse_notes_pass_unchanged(kind: type[Exception]) -> None:
    error = kind("as it is")
    raised = await failure(Acts(failing(error)).run())
    assert raised is error
    assert error.args == ("as it is",)


# --- Several failures ------------------------------------------------------------------------------


class Several(Workflow):
    """`first` fails after a second; the others, when they are cancelled because of that."""

    def __init__(self, first: BaseException | None, *others: BaseException, **kw: Any) -> None:
        super().__init__(**kw)
        self.error = first
        self.others = list(others)

    @step
    async def first(self, ctx: Context, ev: StartEvent) -> Item | StopEvent:
        for _ in self.others:
            ctx.send_event(Item())
        await anyio.sleep(1)
        if self.error is not None:
            raise self.error
        return StopEvent(result="fine")

    @step
    async def other(self, ctx: Context, ev: Item) -> StopEvent:
        error = self.others.pop(0)
        try:
            await anyio.sleep(1000)
        finally:
            ctx.write_event_to_stream(Note(text=str(ctx.is_running)))
            raise error


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [r for r in caplog.records if r.name.startswith("anyio_workflows")]


async def test_x6_later_failures_are_listed_in_a_note_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, second = ProviderError("first"), LookupError("second")
    handler = Several(first, second).run(run_id="r1")
    assert await failure(handler) is first
    assert first.__notes__ == [
        "step first failed on StartEvent(), in attempt 1, 1 s after its first start",
        "after that:\n  step other failed with LookupError: second",
    ]
    assert second.__notes__ == [
        "step other failed on Item(n=0, text=''), in attempt 1, 1 s after its first start"
    ]
    [record] = warnings_in(caplog)
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        "run r1 of Several: ignored, because the outcome was already decided: step other failed with LookupError"
    )
    assert record.exc_info is not None
    assert record.exc_info[1] is second
    assert "raise error\nLookupError: second\n" in caplog.text


async def test_x6_all_of_many_later_failures_are_listed(caplog: pytest.LogCaptureFixture) -> None:
    first = ProviderError("first")
    later = [ProviderError(f"later {n}") for n in range(3)]
    assert await failure(Several(first, *later).run()) is first
    head, *listed = first.__notes__[1].splitlines()
    assert head == "after that:"
    assert sorted(listed) == [
        f"  step other failed with ProviderError: later {n}" for n in range(3)
    ]
    logged = [record.exc_info[1] for record in warnings_in(caplog) if record.exc_info]
    assert sorted(map(str, logged)) == [str(error) for error in later]


async def test_x6_failures_at_the_same_time_name_each_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Same(Workflow):
        @step
        async def one(self, ev: StartEvent) -> StopEvent:
            await anyio.sleep(1)
            raise errors["one"]

        @step
        async def two(self, ev: StartEvent) -> StopEvent:
            await anyio.sleep(1)
            raise errors["two"]

    errors = {"one": ProviderError("of one"), "two": ProviderError("of two")}
    _, last = await check_ending(Same().run())
    [later] = errors.keys() - {last["step_name"]}
    assert last["exception"].__notes__[1:] == [
        f"after that:\n  step {later} failed with ProviderError: of {later}"
    ]
    [record] = warnings_in(caplog)
    assert record.exc_info is not None
    assert record.exc_info[1] is errors[later]


async def test_t4_a_failure_in_finally_after_success_is_logged_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    events, last = await check_ending(Several(None, ProviderError("late")).run(run_id="r1"))
    assert texts(events) == ["False"]
    assert last == StopEvent(result="fine")
    [record] = warnings_in(caplog)
    assert (
        record.getMessage()
        == "run r1 of Several: ignored, because the outcome was already decided: step other failed with ProviderError"
    )
    assert "ProviderError: late" in caplog.text


@pytest.mark.parametrize("ending", [WorkflowCancelledEvent, WorkflowTimedOutEvent])
async def test_x6_a_failure_in_finally_is_listed_with_whatever_ended_the_run(
    ending: type[StopEvent], caplog: pytest.LogCaptureFixture
) -> None:
    async def act(ctx: Context) -> Any:
        try:
            await anyio.sleep(1000)
        finally:
            raise ProviderError("late")

    handler = Acts(act, timeout=10).run()
    await anyio.sleep(5)
    if ending is WorkflowCancelledEvent:
        await handler.cancel_run()
    _, last = await check_ending(handler)
    assert type(last) is ending
    with pytest.raises((WorkflowCancelledByUser, WorkflowTimeoutError)) as caught:
        await handler
    assert caught.value.__notes__ == ["after that:\n  step work failed with ProviderError: late"]
    assert len(warnings_in(caplog)) == 1


async def test_t4_a_wrong_return_value_after_the_decision_is_listed() -> None:
    class Late(Several):
        @step
        async def other(self, ctx: Context, ev: Item) -> StopEvent:
            try:
                await anyio.sleep(1000)
            except anyio.get_cancelled_exc_class():
                return "late"  # type: ignore[return-value]
            raise AssertionError("was not cancelled")

    first = ProviderError("first")
    assert await failure(Late(first, ProviderError("unused")).run()) is first
    assert first.__notes__[1] == (
        "after that:\n  step other failed with WorkflowRuntimeError: step other returned 'late' "
        "(str), but declares StopEvent; return one of those"
    )


class Speechless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize("position", ["first", "later"])
async def test_t5_exceptions_without_a_text_end_runs_all_the_same(position: str) -> None:
    mute, other = Speechless(), ProviderError("text")
    errors = (mute, other) if position == "first" else (other, mute)
    with anyio.fail_after(100):
        assert await failure(Several(*errors).run()) is errors[0]
    assert len(errors[0].__notes__) == 2


# --- Timeouts ------------------------------------------------------------------------------------------


async def timed_out(handler: WorkflowHandler[Any]) -> WorkflowTimeoutError:
    """Return the error of a run that must time out."""
    _, last = await check_ending(handler)
    assert isinstance(last, WorkflowTimedOutEvent)
    with pytest.raises(WorkflowTimeoutError) as caught:
        await handler
    assert caught.value.active_steps == last.active_steps
    return caught.value


class Busy(Workflow):
    """Is everything a run can be at its deadline, as told."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(timeout=30, stall_check=False, **kwargs)

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Item | Other | Answer | StopEvent | None:
        await anyio.sleep(2)
        for event in ev.events:
            ctx.send_event(event)
        return None

    @step(num_workers=1)
    async def run_long(self, ev: Item) -> None:
        await anyio.sleep(1000)

    @step(num_workers=1, retry_policy=retry_policy(wait=wait_fixed(100)))
    async def fail(self, ev: Other) -> None:
        await anyio.sleep(ev.n)
        raise ProviderError

    @step(num_workers=2)
    async def ask(self, ctx: Context, ev: Answer) -> None:
        if ev.n == 0:
            await ctx.wait_for_event(Answer, requirements={"n": 100}, timeout=None)
        await anyio.sleep(1000)


DEADLINE = "the run did not end within 30 s; "
EXECUTED = "executions so far: begin 1"


@pytest.mark.parametrize(
    ("events", "lines", "failed"),
    [
        ([Item()], ["step run_long: running for 28 s"], 0),
        ([Item()] * 4, ["step run_long: running for 28 s, 3 queued"], 0),
        ([Answer()], ["step ask: waiting for Answer"], 0),
        ([Answer()] * 3, ["step ask: waiting for Answer (3 times)"], 0),
        ([Answer(n=1)] * 2, ["step ask: running for 28 s (2 times)"], 0),
        (
            [Other(n=3)],
            ["step fail: in a retry delay, attempt 2 is due in 75 s"],
            1,
        ),
        (
            [Other(n=3), Other(n=5)],
            ["step fail: in a retry delay (2 times), attempt 2 is due in 75 s"],
            2,
        ),
        (
            [Other(n=3), Other(n=1000), Other()],
            ["step fail: running for 25 s, in a retry delay, attempt 2 is due in 75 s, 1 queued"],
            1,
        ),
        (
            [Item(), Other(), Answer(), Answer(n=1)],
            [
                "step ask: running for 28 s, waiting for Answer",
                "step fail: in a retry delay, attempt 2 is due in 72 s",
                "step run_long: running for 28 s",
            ],
            1,
        ),
    ],
    ids=[
        "running",
        "queued",
        "waiting",
        "several waiting",
        "several running",
        "delayed",
        "several delayed",
        "all of a step",
        "all steps",
    ],
)
async def test_t2_a_timeout_says_what_each_step_was_doing(
    events: list[Event], lines: list[str], failed: int
) -> None:
    error = await timed_out(Busy(skip_graph_checks=["reachability"]).run(events=events))
    executed = f"{EXECUTED}, fail {failed}" if failed else EXECUTED  # attempts count, too
    assert str(error) == "\n  ".join([DEADLINE + "at that time:", *lines, executed])
    assert error.active_steps == [line.split(":")[0].split()[1] for line in lines]


async def test_t2_a_timeout_of_a_run_in_which_nothing_goes_on_says_so() -> None:
    error = await timed_out(Busy(skip_graph_checks=["reachability"]).run(events=[]))
    assert str(error) == f"{DEADLINE}no step was active\n  {EXECUTED}"
    assert (error.active_steps, error.activities) == ([], {})


async def test_t2_a_timeout_names_executions_that_want_a_worker_back() -> None:
    events = [Answer(), Answer(n=1), Answer(n=1)]
    handler = Busy(skip_graph_checks=["reachability"]).run(events=events)
    await anyio.sleep(5)
    await handler.send_event(Answer(n=100))
    assert str(await timed_out(handler)) == (
        DEADLINE + "at that time:\n"
        "  step ask: running for 28 s (2 times), waiting for a slot to continue\n  " + EXECUTED
    )


async def test_t2_a_timeout_names_all_types_that_a_step_waits_for() -> None:
    class Asks(Workflow):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            async with anyio.create_task_group() as group:
                for name, cls in [("a", Answer), ("b", Other), ("c", Answer)]:
                    group.start_soon(ctx.wait_for_event, cls, None, name)
            return StopEvent()

    error = await timed_out(Asks(timeout=30).run())
    assert error.activities["ask"] in {
        "waiting for Answer, Other (3 times)",
        "waiting for Other, Answer (3 times)",
    }


async def test_t2_a_timeout_counts_the_attempt_in_progress_only() -> None:
    class Tries(Workflow):
        @step(retry_policy=retry_policy(wait=wait_fixed(2)))
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            if ctx.retry_info().retry_number == 0:
                await anyio.sleep(8)
                raise ProviderError
            await anyio.sleep(1000)
            return StopEvent()

    assert (await timed_out(Tries(timeout=30).run())).activities == {"work": "running for 20 s"}


async def test_t2_a_retry_that_was_due_before_a_late_timeout_is_not_due_in_the_past() -> None:
    class Hogs(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            await anyio.sleep(1)
            hog(100)
            return StopEvent()

        @step(retry_policy=retry_policy(wait=wait_fixed(5)))
        async def fail(self, ev: StartEvent) -> None:
            raise ProviderError

    error = await timed_out(Hogs(timeout=30).run())
    assert error.activities["work"] == "running for 30 s"
    assert error.activities["fail"] == "in a retry delay, attempt 2 is due now"


@pytest.mark.parametrize(
    "make", [copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))]
)
async def test_t2_a_timeout_survives_copies(make: Callable[[Any], Any]) -> None:
    error = await timed_out(Busy(skip_graph_checks=["reachability"]).run(events=[Item()]))
    error.add_note("seen")
    copied = make(error)
    assert type(copied) is WorkflowTimeoutError
    assert copied is not error
    assert (copied.timeout, copied.active_steps) == (30, ["run_long"])
    assert copied.activities == {"run_long": "running for 28 s"}
    assert (str(copied), copied.__notes__) == (str(error), ["seen"])


# --- Runs in which nothing can happen any more ---


async def test_t9_late_acts_on_a_stalled_run_say_that_it_stalled() -> None:
    class Forgets(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent | None:
            return None

    handler = Forgets().run()
    await check_ending(handler)
    with pytest.raises(WorkflowRuntimeError) as caught:
        await handler.send_event(StartEvent())
    assert str(caught.value) == (
        "StartEvent cannot be sent: the run has ended, nothing could happen any more"
    )


# --- Counts ----------------------------------------------------------------------------------------------


def counts(handler: WorkflowHandler[Any]) -> dict[str, dict[str, int]]:
    """Return what statistics() counts, without zeros."""
    names = ("queued", "running", "waiting", "delayed", "done", "failed", "retried")
    return {
        step_name: {name: n for name in names if (n := getattr(found, name))}
        for step_name, found in handler.statistics().steps.items()
    }


async def test_statistics_and_repr_count_each_state() -> None:
    events = [*[Item()] * 3, Other(n=3), Other(n=1), Answer(), Answer(), Answer(n=1)]
    handler = Busy(skip_graph_checks=["reachability"]).run(events=events, run_id="r1")
    name = "<WorkflowHandler of run r1 of Busy: "
    hint = "; await it for the result, no task is needed>"
    assert counts(handler)["begin"] == {"queued": 1}
    assert repr(handler) == name + "running, 0 unread events; begin: 1 queued" + hint
    await anyio.sleep(1)
    assert repr(handler) == name + "running, 0 unread events; begin: 1 running" + hint
    await anyio.sleep(10)
    assert counts(handler) == {
        "begin": {"done": 1},
        "run_long": {"running": 1, "queued": 2},
        "fail": {"delayed": 2, "retried": 2},
        "ask": {"waiting": 2, "running": 1},
    }
    assert repr(handler) == (
        name + "running, 0 unread events; begin: 1 done; run_long: 2 queued, 1 running; "
        "fail: 2 delayed, 2 retried; ask: 1 running, 2 waiting" + hint
    )
    await handler.send_event(Answer(n=100))
    await anyio.sleep(1)
    assert counts(handler)["ask"] == {"waiting": 1, "running": 2}
    await handler.cancel_run()
    assert counts(handler) == {
        "begin": {"done": 1},
        "run_long": {"done": 1, "queued": 2},
        "fail": {"delayed": 2, "retried": 2},
        "ask": {"done": 3},
    }
    assert repr(handler).startswith(name + "ended, 1 unread events; begin: 1 done; ")


async def test_statistics_count_failures_and_retries_once_each() -> None:
    handler = Retries(raiser(ProviderError())).run()
    await anyio.sleep(2)
    assert counts(handler) == {"work": {"delayed": 1, "retried": 1}}
    await failure(handler)
    assert counts(handler) == {"work": {"done": 1, "failed": 1, "retried": 2}}


async def test_statistics_count_a_recovered_step_as_failed() -> None:
    handler = Recovers(ProviderError(), again=False).run()
    await handler
    assert counts(handler) == {"work": {"done": 1, "failed": 1}, "rescue": {"done": 1}}


async def test_statistics_count_a_wrong_return_value_as_failed() -> None:
    async def act(ctx: Context) -> Any:
        return 5

    handler = Acts(act).run()
    await failure(handler)
    assert counts(handler) == {"begin": {"done": 1}, "work": {"done": 1, "failed": 1}}


async def test_statistics_tell_when_steps_are_cleaning_up() -> None:
    async def act(ctx: Context) -> Any:
        try:
            await anyio.sleep(1000)
        finally:
            states.append(handler.statistics().state)

    states: list[str] = []
    handler = Acts(act).run()
    await anyio.sleep(1)
    assert handler.statistics().state == "running"
    await handler.cancel_run()
    assert [*states, handler.statistics().state] == ["ending", "ended"]


# --- verbose=True ------------------------------------------------------------------------------------------


class Talks(Workflow):
    """Fails and is tried again, fails for good and is recovered, waits, and ends as told."""

    @step
    async def begin(self, ctx: Context, ev: StartEvent) -> Item:
        return Item()

    @step(retry_policy=retry_policy(wait=wait_fixed(1.5), stop=stop_after_attempt(2)))
    async def work(self, ev: Item) -> Other | None:
        raise ProviderError("secret")

    @catch_error(for_steps=["work"])
    async def rescue(self, ev: StepFailedEvent) -> Other:
        return Other()

    @step
    async def finish(self, ctx: Context, ev: Other) -> StopEvent | None:
        answer = await ctx.wait_for_event(Answer)
        if answer.n == 1:
            raise ProviderError("secret")
        return StopEvent() if answer.n == 0 else None


BEGINNING = [
    "Running step begin",
    "Step begin returned Item",
    "Running step work",
    "Step work failed with ProviderError; attempt 2 in 1.5 s",
    "Running step work, attempt 2",
    "Step work failed with ProviderError",
    "Step rescue takes over from work",
    "Running step rescue",
    "Step rescue returned Other",
    "Running step finish",
    "Step finish waits for Answer",
]
ENDINGS = {
    "stop": ["Step finish returned StopEvent", "Run ended: it returned StopEvent"],
    "failure": [
        "Step finish failed with ProviderError",
        "Run ended: step finish failed with ProviderError",
    ],
    "timeout": ["Step finish was cancelled", "Run ended: it timed out after 10 s"],
    "cancel": [
        "Step finish was cancelled",
        "Run ended: it was cancelled, cancel_run() was called",
    ],
    "stalled": ["Step finish returned None", "Run ended: nothing could happen any more"],
}


async def tell_all(ending: str) -> None:
    """Run a verbose workflow to one of its ends."""
    handler = Talks(verbose=True, timeout=10).run()
    await anyio.sleep(3)
    if ending == "cancel":
        await handler.cancel_run()
    elif ending != "timeout":
        number = {"stop": 0, "failure": 1, "stalled": 2}[ending]
        await handler.send_event(Answer(n=number))
    await check_ending(handler)


@pytest.mark.parametrize("ending", ENDINGS)
async def test_verbose_tells_a_line_for_everything(
    ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await tell_all(ending)
    out, err = capsys.readouterr()
    assert out.splitlines() == BEGINNING + ENDINGS[ending]
    assert err == ""


async def test_verbose_goes_to_its_logger_if_that_is_enabled(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO, "anyio_workflows.verbose")
    await tell_all("stop")
    told = [r for r in caplog.records if r.name == "anyio_workflows.verbose"]
    assert [record.getMessage() for record in told] == BEGINNING + ENDINGS["stop"]
    assert {record.levelname for record in told} == {"INFO"}
    assert capsys.readouterr().out == ""


async def test_verbose_ends_no_run_when_stdout_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed)
    await tell_all("stop")


async def test_nothing_is_told_unless_asked(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO, "anyio_workflows.verbose")
    await Recovers(ProviderError(), again=False).run()
    assert capsys.readouterr().out == ""
    assert [r for r in caplog.records if r.name == "anyio_workflows.verbose"] == []


async def test_x4_a_recovery_is_logged_with_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "anyio_workflows")
    error = ProviderError()
    await Recovers(error, again=False).run(run_id="r1")
    [record] = warnings_in(caplog)
    assert record.getMessage() == "run r1 of Recovers: step work failed; rescue takes over"
    assert record.levelname == "INFO"
    assert record.exc_info is not None
    assert record.exc_info[1] is error


def test_each_module_that_logs_has_a_logger_of_its_own_name() -> None:
    modules = {
        info.name
        for info in pkgutil.walk_packages(anyio_workflows.__path__, "anyio_workflows.")
        if not info.name.endswith("__main__")
    }
    loggers = {
        name: module.logger.name
        for name in modules
        if hasattr(module := importlib.import_module(name), "logger")
    }
    assert {name: name for name in loggers} == loggers
    assert len(loggers) > 1
    known = {name for name in logging.root.manager.loggerDict if name.startswith("anyio_workflows")}
    assert known - modules <= {"anyio_workflows", "anyio_workflows.verbose"}
