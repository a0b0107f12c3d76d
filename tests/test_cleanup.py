"""Nothing is alive at the end of a run, and what comes after it is refused (T6, T7)."""

from __future__ import annotations

import logging
from typing import Any

import anyio
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
from anyio_workflows.errors import WorkflowRuntimeError

from .running import check_ending, hog, on_each_backend, read, run_virtually, texts
from .samples import Ends, Item, Next, Note, Other, ProviderError

pytestmark = pytest.mark.anyio

# --- T6: nothing is alive at the end ----------------------------------------------------------


@pytest.mark.parametrize("how", ["sibling", "failure", "timeout", "cancel"])
async def test_t6_steps_have_cleaned_up_and_written_before_the_end(how: str) -> None:
    class Tidy(Workflow):
        @step
        async def fork(self, ctx: Context, ev: StartEvent) -> Item | StopEvent:
            for _ in range(3):
                ctx.send_event(Item())
            await anyio.sleep(5 if how in ("sibling", "failure") else 100)
            if how == "failure":
                raise ProviderError
            return StopEvent()

        @step
        async def tidy(self, ctx: Context, ev: Item) -> None:
            alive.append(ev)
            try:
                await anyio.sleep(1000)
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(2)
                    ctx.write_event_to_stream(Note(text="closed"))
                alive.remove(ev)

    alive: list[Event] = []
    handler = Tidy(timeout=10).run()
    await anyio.sleep(1)
    assert len(alive) == 3
    if how == "cancel":
        await handler.cancel_run()
        assert alive == []
    events = []
    async for event in handler.stream_events():
        if isinstance(event, StopEvent):
            assert alive == []
        events.append(event)
    assert texts(events) == ["closed"] * 3
    assert isinstance(events[-1], StopEvent)


class Immortal(Workflow):
    """A step that goes on for 60 seconds after being cancelled."""

    log: list[str]

    def begin(self, how: str) -> WorkflowHandler[Any]:
        self.log = []
        return self.run(how=how)

    @step
    async def immortal(self, ctx: Context, ev: StartEvent) -> Next | StopEvent:
        try:
            if ev.how == "shield":
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(70)
            else:
                await self.swallow()
        finally:
            self.log.append("ended")
        for act in (ctx.write_event_to_stream, ctx.send_event):
            try:
                act(Next())
            except WorkflowRuntimeError as refusal:
                self.log.append(str(refusal))
        if ev.how == "shield":
            raise ProviderError("too late to matter")
        return Next()

    async def swallow(self) -> None:
        for _ in range(1000):
            try:
                await anyio.sleep(0.1)
            except anyio.get_cancelled_exc_class():
                hog(0.1)

    @step
    async def never(self, ev: Next) -> StopEvent:
        raise AssertionError("started after the end")


@pytest.mark.parametrize("ending", ["timeout", "cancel"])
@pytest.mark.parametrize("how", ["shield", "swallow"])
async def test_t6_step_that_does_not_end_is_given_up(
    how: str, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    workflow = Immortal(timeout=10, cleanup_timeout=3)
    start = anyio.current_time()
    handler = workflow.begin(how)
    if ending == "cancel":
        await anyio.sleep(5)
        await handler.cancel_run()
    _, last = await check_ending(handler)
    assert type(last) is (WorkflowCancelledEvent if ending == "cancel" else WorkflowTimedOutEvent)
    expected = 8 if ending == "cancel" else 13
    assert expected - 0.1 < anyio.current_time() - start < expected + 1
    assert workflow.log == []
    [warning] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "gave up" in warning.getMessage()
    assert "immortal" in warning.getMessage()

    await anyio.sleep(150)
    assert workflow.log[0] == "ended"
    assert len(workflow.log) == 3
    how_it_ended = "it was cancelled" if ending == "cancel" else "timed out after 10 s"
    assert all(how_it_ended in refusal for refusal in workflow.log[1:])
    assert handler.get_stop_event() is last


async def test_t6_siblings_of_a_step_that_was_given_up_have_cleaned_up() -> None:
    class Pair(Workflow):
        @step
        async def fork(self, ctx: Context, ev: StartEvent) -> Item | Other | StopEvent:
            ctx.send_event(Item())
            ctx.send_event(Other())
            await anyio.sleep(5)
            return StopEvent(result="good")

        @step
        async def immortal(self, ev: Item) -> None:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(100)

        @step
        async def tidy(self, ctx: Context, ev: Other) -> None:
            try:
                await anyio.sleep(1000)
            finally:
                ctx.write_event_to_stream(Note(text="tidy"))

    handler = Pair(cleanup_timeout=1).run()
    events, last = await check_ending(handler)
    assert texts(events) == ["tidy"]
    assert last == StopEvent(result="good")


@on_each_backend
def test_t6_loop_closes_when_a_step_that_was_given_up_ends(backend: str) -> None:
    async def main() -> tuple[StopEvent | None, float]:
        start = anyio.current_time()
        handler = workflow.begin("shield")
        await anyio.sleep(1)
        await handler.cancel_run()
        return handler.get_stop_event(), anyio.current_time() - start

    workflow = Immortal(cleanup_timeout=2)
    event, seconds = run_virtually(backend, main)
    assert (event, seconds) == (WorkflowCancelledEvent(), 3)
    assert workflow.log[0] == "ended"  # asyncio interrupts it, trio waits for it


async def test_t6_cleanup_timeout_zero_lets_prompt_steps_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Prompt(Workflow):
        @step
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            try:
                await anyio.sleep(1000)
            finally:
                ctx.write_event_to_stream(Note(text="closed"))
            return StopEvent()

    for _ in range(5):
        handler = Prompt(timeout=10, cleanup_timeout=0).run()
        events, _ = await check_ending(handler)
        assert texts(events) == ["closed"]
    assert caplog.text == ""


async def test_t6_nothing_is_waited_for_without_a_step_in_progress() -> None:
    start = anyio.current_time()
    assert await Ends(cleanup_timeout=100).run(how="return") == 7
    assert anyio.current_time() == start


# --- T7: acts after the end -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "summary"),
    [
        ("return", "it returned StopEvent"),
        ("raise", "step only failed with ProviderError"),
        ("wait", "it timed out after 10 s"),
    ],
)
async def test_t7_acts_after_the_end_raise_and_say_how_it_ended(how: str, summary: str) -> None:
    handler = Ends(timeout=10).run(how=how)
    _, last = await check_ending(handler)
    with pytest.raises(WorkflowRuntimeError, match=summary):
        handler.ctx.write_event_to_stream(Note())
    with pytest.raises(WorkflowRuntimeError, match=summary):
        handler.ctx.send_event(StartEvent(how="return"))
    with pytest.raises(WorkflowRuntimeError, match=summary):
        handler.ctx.send_event(StopEvent())
    with pytest.raises(WorkflowRuntimeError, match=summary):
        await handler.send_event(StartEvent(how="return"))
    assert handler.get_stop_event() is last
    assert not handler.ctx.is_running


async def test_t7_acts_after_a_cancellation_raise() -> None:
    handler = Ends().run(how="wait")
    await handler.cancel_run()
    with pytest.raises(WorkflowRuntimeError, match="it was cancelled"):
        await handler.send_event(StartEvent(how="return"))


async def test_t7_background_task_that_outlives_its_step_is_refused() -> None:
    class Leaky(Workflow):
        @step
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            kept.append(ctx)
            return StopEvent()

    kept: list[Context] = []
    handler = Leaky().run()
    await handler
    with pytest.raises(WorkflowRuntimeError, match="has ended"):
        kept[0].write_event_to_stream(Note())
    assert await read(handler) == [StopEvent()]


async def test_t7_sending_during_cleanup_is_ignored_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Late(Workflow):
        @step
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent | Next:
            try:
                await anyio.sleep(1000)
            finally:
                ctx.write_event_to_stream(Note(text="before"))
                ctx.send_event(Next())
                ctx.send_event(StopEvent(result="late"))
                states.append((handler.statistics().state, ctx.is_running))
                ctx.write_event_to_stream(Note(text="after"))
            return StopEvent()

        @step
        async def never(self, ev: Next) -> StopEvent:
            raise AssertionError("started after the decision")

    caplog.set_level(logging.INFO, "anyio_workflows")
    states: list[Any] = []
    handler = Late().run()
    await anyio.sleep(1)
    await handler.cancel_run()
    events, last = await check_ending(handler)
    assert texts(events) == ["before", "after"]
    assert last == WorkflowCancelledEvent()
    assert states == [("ending", False)]
    assert "Next was dropped" in caplog.text


async def test_t7_event_returned_after_the_decision_starts_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Late(Workflow):
        @step
        async def work(self, ev: StartEvent) -> Next | InputRequiredEvent:
            try:
                await anyio.sleep(1000)
            except anyio.get_cancelled_exc_class():
                pass
            return Next() if ev.what == "next" else InputRequiredEvent()

        @step
        async def never(self, ev: Next | HumanResponseEvent) -> StopEvent:
            raise AssertionError("started after the decision")

    caplog.set_level(logging.INFO, "anyio_workflows")
    returned = {"next": "Next", "input": "InputRequiredEvent"}
    for what, name in returned.items():
        handler = Late().run(what=what)
        await anyio.sleep(1)
        await handler.cancel_run()
        assert await read(handler) == [WorkflowCancelledEvent()]
        assert (
            f"ignored, because the outcome was already decided: step work returned {name}"
            in caplog.text
        )


async def test_t7_queued_work_never_starts_after_the_end() -> None:
    class Queue(Workflow):
        @step
        async def fork(self, ctx: Context, ev: StartEvent) -> Next | None:
            for n in range(5):
                ctx.send_event(Next(n=n))

        @step(num_workers=1)
        async def work(self, ev: Next) -> StopEvent | None:
            started.append(ev.n)
            await checkpoint()
            return StopEvent() if ev.n == 1 else None

    started: list[int] = []
    await check_ending(Queue().run())
    assert started == [0, 1]


class Broken(Workflow):
    """A step that leaves a cancel scope or a task group open; another one follows."""

    left_open: list[Any]

    @step
    async def breaks(self, ev: StartEvent) -> Next | InputRequiredEvent:
        self.left_open = []
        await anyio.sleep(1)
        if ev.what == "group":
            group = anyio.create_task_group()
            await group.__aenter__()
            self.left_open.append(group)
        elif ev.what == "generator":
            self.left_open.append(self.numbers())
            async for _ in self.left_open[0]:
                break
        elif ev.what == "dropped":
            async for _ in self.numbers():
                break
        else:
            shield = ev.what == "shield"
            deadline = anyio.current_time() + (3 if ev.what == "deadline" else 1e6)
            self.left_open.append(anyio.CancelScope(shield=shield, deadline=deadline).__enter__())
        return InputRequiredEvent() if ev.then == "person" else Next()

    async def numbers(self) -> Any:
        with anyio.fail_after(3):
            for n in range(10):
                yield n

    @step
    async def innocent(self, ev: Next | HumanResponseEvent) -> StopEvent:
        await anyio.sleep(10)
        return StopEvent(result="fine")


BREAKS = ["scope", "shield", "deadline", "group", "generator"]


@pytest.mark.parametrize("then", ["step", "person"])
@pytest.mark.parametrize("what", BREAKS)
async def test_t6_broken_cancel_scope_does_not_hang_the_run(what: str, then: str) -> None:
    with anyio.fail_after(100):
        async with Broken(timeout=30).run(what=what, then=then) as handler:
            await anyio.sleep(2)
            try:
                await handler.send_event(HumanResponseEvent())
            except WorkflowRuntimeError:
                assert handler.is_done()
            _, last = await check_ending(handler)
            # Either the step that broke its scope is blamed, or it did no harm.
            assert last.result == "fine" or (
                isinstance(last, WorkflowFailedEvent) and last.step_name == "breaks"
            )


@pytest.mark.parametrize("what", ["shield", "generator"])
async def test_t6_broken_cancel_scope_leaves_the_next_step_cancellable(what: str) -> None:
    start = anyio.current_time()
    with anyio.fail_after(100):
        await check_ending(Broken(timeout=3, cleanup_timeout=20).run(what=what, then="step"))
    assert anyio.current_time() - start <= 3


@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")  # trio's, about the step
@pytest.mark.filterwarnings("ignore:.*async_generator:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("what", [*BREAKS, "dropped"])
@on_each_backend
def test_t6_broken_cancel_scope_does_not_break_the_loop(backend: str, what: str) -> None:
    async def main() -> int:
        handler = Broken(timeout=30).run(what=what, then="step")
        await anyio.sleep(1)
        other = await Ends().run(how="return")
        last = (await read(handler))[-1]
        assert isinstance(last, StopEvent)
        assert last.result == "fine" or isinstance(last, WorkflowFailedEvent)
        return other

    assert run_virtually(backend, main) == 7
