"""A step that holds the event loop is named: in a warning, and wherever something came late (I4)."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from anyio.lowlevel import checkpoint

from anyio_workflows import Context, StartEvent, StopEvent, Workflow, WorkflowHandler, step
from anyio_workflows._ledger.ledger import Ledger
from anyio_workflows.errors import (
    WorkflowCancelledByUser,
    WorkflowTimeoutError,
)
from anyio_workflows.retry_policy import retry_policy, stop_after_attempt, wait_none

from .conftest import HAS_TRIO
from .running import hog, on_asyncio, on_each_backend, read, run_virtually
from .samples import Act, Answer, Item

pytestmark = pytest.mark.anyio


def make_step(act: Act, **options: Any) -> type[Workflow[Any]]:
    """Return a workflow whose only step does what it is told; nobody has been warned of it."""

    class One(Workflow[Any]):
        @step(**options)
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            return StopEvent(result=await act(ctx))

    return One


def make_neighbour(act: Act, seconds: float = 0) -> type[Workflow[Any]]:
    """Return a workflow with a second step beside that, which waits, then holds the loop for a time."""

    class Two(Workflow[Any]):
        @step
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            return StopEvent(result=await act(ctx))

        @step
        async def crunch(self, ev: StartEvent) -> None:
            await anyio.sleep(1)
            hog(seconds)

    return Two


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was warned of, without the run and the advice."""
    texts = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    return [text.partition(": ")[2].partition(";")[0] for text in texts if "held" in text]


def held(seconds: str, name: str = "work") -> str:
    return f"step {name} held the event loop for {seconds} s"


def error_of(handler: WorkflowHandler[Any]) -> BaseException:
    """Return what a run that has ended raises."""
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        handler.result()
    return caught.value


def notes(error: BaseException) -> list[str]:
    return list(getattr(error, "__notes__", ()))


async def forever(ctx: Context) -> None:
    await anyio.sleep(math.inf)


# --- The warning ----------------------------------------------------------------------------------------


async def at_the_beginning(ctx: Context) -> None:
    hog(0.75)
    await anyio.sleep(10)


async def at_the_end(ctx: Context) -> None:
    await anyio.sleep(10)
    hog(0.75)


async def from_beginning_to_end(ctx: Context) -> None:
    hog(0.75)


async def in_the_middle(ctx: Context) -> None:
    await anyio.sleep(10)
    hog(0.5)
    hog(0.25)
    await anyio.sleep(10)


async def before_a_checkpoint(ctx: Context) -> None:
    await checkpoint()
    hog(0.75)
    await checkpoint()


async def before_an_error(ctx: Context) -> None:
    await anyio.sleep(1)
    hog(0.75)
    raise ValueError


async def while_it_is_cancelled(ctx: Context) -> None:
    with anyio.move_on_after(1):
        try:
            await anyio.sleep(math.inf)
        finally:
            hog(0.75)
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1)


async def after_a_wait(ctx: Context) -> None:
    with suppress(TimeoutError):
        await ctx.wait_for_event(Answer, timeout=1)
    hog(0.75)


async def in_a_generator(ctx: Context) -> None:
    async def numbers() -> Any:
        await checkpoint()
        hog(0.75)
        yield 1

    async for _ in numbers():
        await checkpoint()


@pytest.mark.parametrize(
    "act",
    [
        at_the_beginning,
        at_the_end,
        from_beginning_to_end,
        in_the_middle,
        before_a_checkpoint,
        before_an_error,
        while_it_is_cancelled,
        after_a_wait,
        in_a_generator,
    ],
)
async def test_i4_a_step_that_holds_the_loop_is_warned_of(
    act: Act, caplog: pytest.LogCaptureFixture
) -> None:
    await read(make_step(act)(timeout=100).run())
    assert warnings(caplog) == [held("0.75")]


async def test_i4_the_warning_says_what_to_do(caplog: pytest.LogCaptureFixture) -> None:
    await make_step(at_the_end)().run(run_id="r1")
    [record] = [one for one in caplog.records if one.levelno == logging.WARNING]
    assert record.getMessage() == (
        "run r1 of One: step work held the event loop for 0.75 s; nothing else could run in that time, not "
        "even a timeout or a cancellation. Let it await something in between, make it a plain 'def' step, "
        "which runs in a thread, or use anyio.to_thread.run_sync() (logged once)"
    )


async def test_i4_the_recipes_quote_the_warning(caplog: pytest.LogCaptureFixture) -> None:
    async def parse(ctx: Context) -> None:
        hog(3.2)

    await make_step(parse)(workflow_name="Report").run(run_id="7c0e")
    [record] = [one for one in caplog.records if one.levelno == logging.WARNING]
    page = (Path(__file__).parent.parent / "docs" / "recipes.md").read_text("utf-8")
    quoted = " ".join(line[2:] for line in page.splitlines() if line.startswith("> "))
    assert record.getMessage().replace("step work", "step parse") in quoted


async def short_holds(ctx: Context) -> None:
    for _ in range(10):
        hog(0.4375)
        await checkpoint()
    await anyio.sleep(10)
    hog(0.4375)


async def others_hold(ctx: Context) -> None:
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(hog_in_a_task)


async def hog_in_a_task() -> None:
    hog(2)


@pytest.mark.parametrize("act", [short_holds, others_hold])
async def test_i4_only_what_the_step_does_without_a_pause_counts(
    act: Act, caplog: pytest.LogCaptureFixture
) -> None:
    await make_step(act)().run()
    assert warnings(caplog) == []


@pytest.mark.parametrize(
    ("bound", "warned"), [(0.25, True), (0.75, True), (0.875, False), (60, False), (None, False)]
)
async def test_i4_the_bound_is_an_argument(
    bound: float | None, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    for act in (at_the_beginning, at_the_end):
        caplog.clear()
        await make_step(act)(slow_step_warning=bound).run()
        assert bool(warnings(caplog)) is warned


async def test_i4_a_bound_may_be_shorter_than_what_is_noticeable(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def short(ctx: Context) -> None:
        hog(0.0078125)
        await checkpoint()

    await make_step(short)(slow_step_warning=0.005).run()
    assert warnings(caplog) == [held("0.00781")]


async def test_i4_one_warning_per_step_whatever_the_run_and_the_instance(
    caplog: pytest.LogCaptureFixture,
) -> None:
    parent = make_step(at_the_end)

    class Heir(parent):  # type: ignore[misc, valid-type]
        @step
        async def another(self, ev: StartEvent) -> None:
            hog(0.5)
            await checkpoint()
            hog(4)

    for _ in range(2):
        await parent().run()
        await Heir().run()
    assert sorted(warnings(caplog)) == [held("0.5", "another"), held("0.75")]


async def test_i4_a_step_does_not_answer_for_another_one_in_the_same_task(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Line(Workflow[Any]):
        @step
        async def first(self, ev: StartEvent) -> Item:
            hog(2**-12)  # too short for a checkpoint after it
            return Item()

        @step
        async def second(self, ev: Item) -> StopEvent:
            hog(0.5 - 2**-13)
            return StopEvent()

    await Line().run()
    assert warnings(caplog) == []


async def test_i4_each_step_answers_for_its_own_time(caplog: pytest.LogCaptureFixture) -> None:
    class Line(Workflow[Any]):
        @step
        async def first(self, ev: StartEvent) -> Item:
            hog(2)
            return Item()

        @step
        async def second(self, ev: Item) -> StopEvent:
            await checkpoint()
            return StopEvent()

        @step
        async def beside(self, ev: Item) -> None:
            await anyio.sleep(1)
            hog(0.5)

    await Line().run()
    assert warnings(caplog) == [held("2", "first")]


async def test_i4_no_step_is_accused_of_the_time_that_a_long_list_before_it_takes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    original = Ledger.seal_batch

    def seal_slowly(ledger: Ledger, *args: Any) -> Any:
        hog(3)
        return original(ledger, *args)

    monkeypatch.setattr(Ledger, "seal_batch", seal_slowly)

    class Fan(Workflow[Any]):
        @step
        async def split(self, ev: StartEvent) -> list[Item]:
            return [Item()]

        @step
        async def work(self, ev: Item) -> StopEvent:
            hog(ev.n)
            return StopEvent()

    await Fan().run()
    assert warnings(caplog) == []


def wrapping(function: Callable[..., Any]) -> Any:
    @functools.wraps(function)
    def wrapped(*args: Any) -> Any:
        hog(0.75)
        return function(*args)

    return wrapped


async def test_i4_a_decorator_in_the_loop_counts(caplog: pytest.LogCaptureFixture) -> None:
    class Wrapped(Workflow[Any]):
        @step
        @wrapping
        async def work(self, ev: StartEvent) -> StopEvent:
            return StopEvent()

    await Wrapped().run()
    assert warnings(caplog) == [held("0.75")]


async def test_i4_a_plain_step_in_a_thread_never_counts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even if the machine is so busy that its thread takes long to start."""

    async def start_slowly(func: Callable[..., Any], *args: Any, **options: Any) -> Any:
        hog(3)
        await checkpoint()
        return func(*args)

    monkeypatch.setattr(anyio.to_thread, "run_sync", start_slowly)

    class Plain(Workflow[Any]):
        @step
        def work(self, ev: StartEvent) -> StopEvent:
            return StopEvent()

    await Plain().run()
    assert warnings(caplog) == []


async def test_i4_what_a_thread_asks_of_the_loop_counts_for_no_step(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Plain(Workflow[Any]):
        @step
        def work(self, ev: StartEvent) -> StopEvent:
            anyio.from_thread.run_sync(hog, 2)
            return StopEvent()

    await Plain().run()
    assert warnings(caplog) == []


async def test_i4_a_run_in_a_step_has_a_bound_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    child = make_step(at_the_end)

    async def start_child(ctx: Context) -> None:
        await child(slow_step_warning=None).run()
        hog(2)

    await make_step(start_child)().run()
    assert warnings(caplog) == [held("2")]


# --- What comes late ------------------------------------------------------------------------------------


async def timeout_of(workflow: Workflow[Any]) -> WorkflowTimeoutError:
    with pytest.raises(WorkflowTimeoutError) as caught:
        await workflow.run()
    return caught.value


async def test_t2_a_late_timeout_says_which_step_held_the_loop() -> None:
    error = await timeout_of(make_neighbour(forever, 5)(timeout=2))
    assert (error.late, error.holders) == (4, {"crunch": 5})
    assert str(error).endswith(
        "\n  noticed 4 s late, because step crunch held the event loop for 5 s: does it call time.sleep(), "
        "or compute for long? A plain 'def' step may, in a thread"
    )


async def test_t2_the_step_that_holds_the_loop_may_be_in_another_run() -> None:
    other = make_step(at_the_end)
    async with other().run(run_id="busy"):
        error = await timeout_of(make_step(forever)(timeout=10.25))
    assert error.holders == {"work of run busy of One": 0.75}
    assert ", because step work of run busy of One held the event loop for 0.75 s: " in str(error)


async def test_t2_a_late_timeout_names_the_three_that_held_the_loop_longest() -> None:
    async def crunch(seconds: float) -> None:
        await anyio.sleep(1)
        hog(seconds)
        await anyio.sleep(10)

    class Several(Workflow[Any]):
        @step
        async def a(self, ev: StartEvent) -> StopEvent | None:
            await crunch(0.5)

        @step
        async def b(self, ev: StartEvent) -> None:
            await crunch(3)

        @step
        async def c(self, ev: StartEvent) -> None:
            await crunch(1)

        @step
        async def d(self, ev: StartEvent) -> None:
            await crunch(2)

    error = await timeout_of(Several(timeout=1.25))
    assert error.late == 6.25
    assert list(error.holders.items()) == [("b", 3), ("d", 2), ("c", 1)]
    told = ", because step b held the event loop for 3 s, step d for 2 s, step c for 1 s: "
    assert told in str(error)


async def test_t2_a_step_is_not_accused_of_what_it_does_not_explain() -> None:
    async def hold_and_fail(ctx: Context) -> None:
        await anyio.sleep(1)
        hog(1)
        raise ValueError

    handler = make_step(hold_and_fail)(timeout=2).run()
    await anyio.sleep(0.5)
    hog(4)  # both the step and the timeout are late now
    await read(handler)
    error = error_of(handler)
    assert isinstance(error, WorkflowTimeoutError)
    assert error.late >= 2.5
    assert error.holders == {}
    assert "because something blocked the event loop until then" in str(error)


async def test_t2_a_step_is_not_accused_of_what_its_tasks_do() -> None:
    async def start_task(ctx: Context) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(hold_and_send, ctx)

    async def hold_and_send(ctx: Context) -> None:
        await anyio.sleep(1)
        hog(3)
        ctx.send_event(StopEvent())

    error = await timeout_of(make_step(start_task)(timeout=2))
    assert (error.late, error.holders, error.suspects) == (2, {}, ["work"])


async def test_t2_a_timeout_that_is_noticed_in_time_names_no_step() -> None:
    error = await timeout_of(make_neighbour(forever, 1.03125)(timeout=2))
    assert (error.late, error.holders) == (0.03125, {})


async def test_t4_a_step_that_sends_the_stop_event_too_late_is_named() -> None:
    async def send_late(ctx: Context) -> None:
        await anyio.sleep(1)
        hog(3)
        ctx.send_event(StopEvent())
        hog(1)

    error = await timeout_of(make_step(send_late)(timeout=2))
    assert (error.late, error.holders) == (2, {"work": 3})


async def test_t2_without_the_watch_a_late_timeout_knows_suspects_only() -> None:
    error = await timeout_of(make_neighbour(forever, 5)(timeout=2, slow_step_warning=None))
    assert (error.holders, error.suspects) == ({}, ["crunch", "work"])


async def test_r8_a_late_timeout_of_a_step_says_which_step_held_the_loop() -> None:
    async def hold(ctx: Context) -> None:
        await anyio.sleep(1)
        hog(3)

    handler = make_step(hold, timeout=2)().run()
    await read(handler)
    assert str(error_of(handler)) == "step work took longer than 2 s"
    assert notes(error_of(handler))[0] == f"noticed 2 s late, because {held('3')}"

    class Beside(make_neighbour(forever, 3)):  # type: ignore[misc]
        @step(timeout=2)
        async def wait(self, ev: StartEvent) -> None:
            await anyio.sleep(math.inf)

    handler = Beside().run()
    await read(handler)
    assert str(error_of(handler)) == "step wait took longer than 2 s"
    assert notes(error_of(handler))[0] == f"noticed 2 s late, because {held('3', 'crunch')}"


async def test_r8_a_timeout_in_time_or_late_for_another_reason_accuses_none() -> None:
    async def clean_up(ctx: Context) -> None:
        try:
            await anyio.sleep(math.inf)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(10)
                hog(0.25)

    async def hold_a_moment(ctx: Context) -> None:
        await anyio.sleep(1)
        hog(1.03125)

    for act in (forever, clean_up, hold_a_moment):
        handler = make_step(act, timeout=2)().run()
        await read(handler)
        assert not [note for note in notes(error_of(handler)) if "late" in note]


MAY_BE_LATE = "it may have come late: "


async def cancelled_after(seconds: float, **options: Any) -> BaseException:
    """Cancel a run after a time, or as soon as its step lets go of the loop for which it holds it."""
    handler = make_neighbour(forever, 5)(**options).run()
    await anyio.sleep(seconds)
    await handler.cancel_run()
    return error_of(handler)


async def test_i4_a_cancellation_that_came_late_says_which_step_held_the_loop() -> None:
    error = await cancelled_after(2)
    assert str(error) == "the run was cancelled: cancel_run() was called"
    assert notes(error) == [MAY_BE_LATE + held("5", "crunch")]


async def test_i4_a_cancellation_that_came_in_time_names_no_step() -> None:
    for seconds in (0.5, 6.5, 60):
        assert notes(await cancelled_after(seconds)) == []
    for bound in (8, None):
        assert notes(await cancelled_after(2, slow_step_warning=bound)) == []


async def test_i4_a_failure_never_comes_late() -> None:
    handler = make_step(before_an_error)().run()
    await read(handler)
    assert not [note for note in notes(error_of(handler)) if "late" in note]


async def test_i4_a_cancellation_says_which_step_held_the_loop_while_it_was_cleaning_up() -> None:
    async def clean_up(ctx: Context) -> None:
        try:
            await anyio.sleep(math.inf)
        finally:
            hog(3)

    handler = make_step(clean_up)().run()
    await anyio.sleep(1)
    await handler.cancel_run()
    assert notes(error_of(handler)) == [MAY_BE_LATE + held("3")]


async def test_i4_a_block_that_was_left_late_says_which_step_held_the_loop() -> None:
    with anyio.move_on_after(2):
        async with make_neighbour(forever, 5)().run() as handler:
            await anyio.sleep(math.inf)
    assert isinstance(error_of(handler), WorkflowCancelledByUser)
    assert notes(error_of(handler)) == [MAY_BE_LATE + held("5", "crunch")]


@on_each_backend
def test_i4_a_loop_that_ended_late_says_which_step_held_it(backend: str) -> None:
    async def main() -> WorkflowHandler[Any]:
        handler = make_neighbour(forever, 5)().run()
        await anyio.sleep(2)
        return handler

    error = error_of(run_virtually(backend, main))
    assert str(error) == "the run was cancelled: its event loop ended"
    assert notes(error) == [MAY_BE_LATE + held("5", "crunch")]


async def test_t6_the_warning_of_a_step_that_was_given_up_says_which_step_held_the_loop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class GivesUp(Workflow[Any]):
        @step
        async def slow(self, ev: StartEvent) -> None:
            try:
                await anyio.sleep(math.inf)
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(100)

        @step
        async def crunch(self, ev: StartEvent) -> StopEvent:
            try:
                await anyio.sleep(math.inf)
            finally:
                with anyio.CancelScope(shield=True):
                    await checkpoint()
                hog(7)

    handler = GivesUp(cleanup_timeout=5).run()
    await anyio.sleep(1)
    await handler.cancel_run()
    [text] = [one.getMessage() for one in caplog.records if "gave up" in one.getMessage()]
    assert text.endswith(f"after being cancelled: slow; {held('7', 'crunch')}")


# --- An endless loop ------------------------------------------------------------------------------------


async def test_t2_an_endless_loop_of_attempts_shows_in_the_numbers_of_executions() -> None:
    async def fail(ctx: Context) -> None:
        await anyio.sleep(0.25)
        raise ValueError

    endless = retry_policy(wait=wait_none(), stop=stop_after_attempt(10_000))
    error = await timeout_of(make_step(fail, retry_policy=endless)(timeout=10.125))
    assert error.executions == {"work": 40}
    assert "\n  executions so far: work 40" in str(error)


# --- What it leaves alone -------------------------------------------------------------------------------


def names_of(task: Any) -> Iterator[str]:
    """Follow a suspended task, as debuggers do."""
    while task is not None:
        yield task.cr_frame.f_code.co_name if hasattr(task, "cr_frame") else type(task).__name__
        task = getattr(task, "cr_await", None)


@on_asyncio
async def test_i4_the_stack_of_a_worker_can_be_followed_on_asyncio() -> None:
    handler = make_step(forever)().run()
    await anyio.sleep(1)
    stacks = [list(names_of(task.get_coro())) for task in asyncio.all_tasks()]
    [stack] = [names for names in stacks if "_execute_steps" in names]
    assert [
        name for name in stack if name in ("_run_task", "_execute_steps", "work", "forever")
    ] == [
        "_run_task",
        "_execute_steps",
        "work",
        "forever",
    ]
    await handler.cancel_run()


@pytest.mark.skipif(not HAS_TRIO, reason="trio is not installed")
@pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)
async def test_i4_the_stack_of_a_worker_can_be_followed_on_trio() -> None:
    import trio

    stacks = []

    async def look(ctx: Context) -> None:
        task = trio.lowlevel.current_task()
        async with anyio.create_task_group() as group:
            group.start_soon(note_stack, task)

    async def note_stack(task: Any) -> None:
        stacks.append([frame.f_code.co_name for frame, _ in task.iter_await_frames()])

    await make_step(look)().run()
    [names] = stacks
    known = ("_run_task", "_execute_steps", "work", "look")
    assert [name for name in names if name in known] == list(known)


@on_each_backend
def test_i4_what_is_known_of_a_loop_keeps_neither_loop_nor_run_alive(backend: str) -> None:
    alive: list[weakref.ref[Any]] = []

    async def main() -> None:
        workflow = make_neighbour(forever, 5)(
            timeout=2, slow_step_warning=60
        )  # a log would keep it
        assert (await timeout_of(workflow)).holders
        loop = asyncio.get_running_loop() if backend == "asyncio" else trio_token()
        alive.append(weakref.ref(loop))

    run_virtually(backend, main)
    run_virtually(backend, checkpoint)
    gc.collect()
    assert [one for one in alive if one() is not None] == []


def trio_token() -> Any:
    import trio

    return trio.lowlevel.current_trio_token()


@on_asyncio
async def test_t8_what_is_thrown_into_a_worker_arrives_in_its_step() -> None:
    """A native cancellation that meets no future but a bare `yield`."""

    async def be_cancelled(ctx: Context) -> None:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_soon(task.cancel)
        await asyncio.sleep(0)

    handler = make_step(be_cancelled)().run()
    await read(handler)
    assert isinstance(error_of(handler).__cause__, asyncio.CancelledError)
