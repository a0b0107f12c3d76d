"""What is asked again after a restore: the questions that nobody has read (W4)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_workflows import Context, Event, StartEvent, StopEvent, Workflow, WorkflowHandler, step
from anyio_workflows.checkpoint import run_with_checkpoints
from anyio_workflows.errors import WorkflowCancelledByUser, WorkflowTimeoutError
from anyio_workflows.retry_policy import retry_policy, stop_after_attempt, wait_fixed

from .conftest import BACKENDS
from .running import read, run_virtually
from .samples import Answer, AsksByReturning, Note, Question

pytestmark = pytest.mark.anyio


class Ask(Workflow[str]):
    """Asks one question, in the middle of its only step."""

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        ctx.write_event_to_stream(Note(text="before"))
        answer = await ctx.wait_for_event(Answer, Question(text="well?"))
        return StopEvent(result=answer.text)


BOTH = pytest.mark.parametrize("workflow", [Ask, AsksByReturning])


def saved(ctx: Context) -> Any:
    return json.loads(json.dumps(ctx.to_dict(), allow_nan=False))


def resume(workflow: type[Workflow[Any]], data: Any) -> WorkflowHandler[Any]:
    made = workflow(timeout=1000)
    return made.run(ctx=Context.from_dict(made, data))


def asked(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Question)]


async def read_for(seconds: float, handler: WorkflowHandler[Any]) -> list[str]:
    """Return the questions that come within some seconds."""
    events: list[Event] = []
    with anyio.move_on_after(seconds):
        async for event in handler.stream_events():
            events.append(event)
    return asked(events)


async def answered(handler: WorkflowHandler[Any]) -> list[str]:
    """Answer a run; return the questions that it asked."""
    await anyio.sleep(1)
    await handler.send_event(Answer(text="yes"))
    events = await read(handler)
    assert await handler == "yes"
    return asked(events)


@BOTH
@pytest.mark.parametrize("was_read", [True, False])
async def test_w4_a_question_is_asked_again_if_nobody_had_read_it(
    workflow: type[Workflow[Any]], was_read: bool
) -> None:
    handler = workflow().run()
    await anyio.sleep(1)
    if was_read:
        assert await read_for(1, handler) == ["well?"]
    data = saved(handler.ctx)
    await handler.cancel_run()
    assert await answered(resume(workflow, data)) == ([] if was_read else ["well?"])


@BOTH
async def test_w4_what_is_read_after_the_snapshot_is_asked_again(
    workflow: type[Workflow[Any]],
) -> None:
    handler = workflow().run()
    await anyio.sleep(1)
    data = saved(handler.ctx)
    assert await read_for(1, handler) == ["well?"]
    await handler.cancel_run()
    assert await answered(resume(workflow, data)) == ["well?"]


@BOTH
async def test_w4_an_unread_question_survives_any_number_of_snapshots(
    workflow: type[Workflow[Any]],
) -> None:
    handler = workflow().run()
    for seconds in (1, 0, 1, 0):  # also before the step has come to it again
        await anyio.sleep(seconds)
        data = saved(handler.ctx)
        await handler.cancel_run()
        handler = resume(workflow, data)
    assert await read_for(1, handler) == ["well?"]
    for seconds in (1, 0, 1):
        await anyio.sleep(seconds)
        data = saved(handler.ctx)
        await handler.cancel_run()
        handler = resume(workflow, data)
    assert await answered(handler) == []


@BOTH
@pytest.mark.parametrize("through_json", [True, False])
@pytest.mark.parametrize("end", ["timeout", "cancel"])
@pytest.mark.parametrize("was_read", [True, False])
async def test_w4_what_is_read_after_the_end_counts_until_the_context_is_used(
    workflow: type[Workflow[Any]], through_json: bool, end: str, was_read: bool
) -> None:
    handler = workflow(timeout=5).run()
    await anyio.sleep(1)
    if end == "cancel":
        await handler.cancel_run()
    with pytest.raises((WorkflowTimeoutError, WorkflowCancelledByUser)):
        await handler
    if was_read:
        assert asked(await read(handler)) == ["well?"]
    again = workflow(timeout=1000)
    ctx = Context.from_dict(again, saved(handler.ctx)) if through_json else handler.ctx
    assert await answered(again.run(ctx=ctx)) == ([] if was_read else ["well?"])


async def test_w4_reading_an_earlier_event_is_not_reading_the_question() -> None:
    handler = Ask().run()
    await anyio.sleep(1)
    note = await anext(handler.stream_events())
    assert isinstance(note, Note)
    data = saved(handler.ctx)
    await handler.cancel_run()
    assert await answered(resume(Ask, data)) == ["well?"]


async def test_w4_each_of_several_returned_questions_counts_for_itself() -> None:
    class Form(Workflow[Any]):
        @step
        async def ask(self, ev: StartEvent) -> list[Question]:
            return [Question(text=str(n)) for n in range(5)]

        @step
        async def take(self, ev: Answer) -> StopEvent:
            return StopEvent(result=ev.text)

    handler = Form(skip_graph_checks={"dead_end"}).run()
    await anyio.sleep(1)
    events = handler.stream_events()
    assert asked([await anext(events), await anext(events)]) == ["0", "1"]
    data = saved(handler.ctx)
    await handler.cancel_run()
    workflow = Form(skip_graph_checks={"dead_end"})
    again = workflow.run(ctx=Context.from_dict(workflow, data))
    assert await answered(again) == ["2", "3", "4"]


async def test_w3_a_failed_attempt_leaves_its_question_in_the_stream() -> None:
    class Hasty(Workflow[str]):
        @step(retry_policy=retry_policy(wait=wait_fixed(10), stop=stop_after_attempt(3)))
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            with anyio.move_on_after(5 if ctx.retry_info().retry_number < 2 else 1000):
                answer = await ctx.wait_for_event(Answer, Question(text="well?"))
                return StopEvent(result=answer.text)
            raise ValueError("too slow")

    handler = Hasty(timeout=None).run()
    await anyio.sleep(22)  # in the second attempt
    (wait,) = handler.open_waits()
    assert wait.question == Question(text="well?")
    data = saved(handler.ctx)
    await anyio.sleep(20)  # in the third
    assert await answered(handler) == ["well?"]  # nobody has read before
    workflow = Hasty(timeout=None)
    again = workflow.run(ctx=Context.from_dict(workflow, data))
    await anyio.sleep(40)
    assert await answered(again) == ["well?"]


async def test_w4_a_reader_that_acknowledges_decides_what_counts_as_read() -> None:
    handler = Ask().run()
    await anyio.sleep(1)
    events = handler.stream_events()
    events.acknowledge()
    assert isinstance(await anext(events), Note)
    assert isinstance(await anext(events), Question)
    unsaid = saved(handler.ctx)
    events.acknowledge()
    said = saved(handler.ctx)
    await handler.cancel_run()
    assert await answered(resume(Ask, unsaid)) == ["well?"]
    assert await answered(resume(Ask, said)) == []


async def test_w4_a_child_run_is_not_in_the_snapshot_of_its_parent() -> None:
    class Parent(Workflow[str]):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
            return StopEvent(result=await ctx.relay_events(Ask(timeout=None).run()))

    workflow = Parent(timeout=None)
    handler = workflow.run()
    assert await read_for(1, handler) == ["well?"]
    data = saved(handler.ctx)
    await handler.cancel_run()
    again = workflow.run(ctx=Context.from_dict(workflow, data))
    assert await read_for(1, again) == ["well?"]
    assert again.open_waits() == []  # it is the child that waits
    await again.cancel_run()


# --- Checkpoints: read is what `on_event` has returned from ---------------------------------------


async def seen_in(
    seconds: float, file: Path, workflow: type[Workflow[Any]], fail: bool = False
) -> list[str]:
    """Run with checkpoints for some seconds; return the questions that `on_event` was given."""
    events: list[Event] = []

    def on_event(event: Event) -> None:
        if isinstance(event, Question) and fail:
            raise BrokenPipeError("the terminal is gone")
        events.append(event)

    with anyio.move_on_after(seconds):
        await run_with_checkpoints(workflow(timeout=None), file, every=0, on_event=on_event)
    return asked(events)


@BOTH
@pytest.mark.usefixtures("no_threads")
async def test_w4_c1_a_question_that_on_event_could_not_deliver_is_asked_again(
    workflow: type[Workflow[Any]], tmp_path: Path
) -> None:
    file = tmp_path / "job.json"
    for _ in range(2):
        with pytest.raises(BrokenPipeError):
            await seen_in(10, file, workflow, fail=True)
    assert await seen_in(10, file, workflow) == ["well?"]
    assert await seen_in(10, file, workflow) == []


@pytest.mark.usefixtures("no_threads")
async def test_w4_c1_without_on_event_nobody_reads(tmp_path: Path) -> None:
    file = tmp_path / "job.json"
    with anyio.move_on_after(10):
        await run_with_checkpoints(Ask(timeout=None), file, every=0)
    assert await seen_in(10, file, Ask) == ["well?"]


# --- The property: whenever it is killed, each question reaches its reader, once ------------------


class Interview(Workflow[list[str]]):
    """Asks three questions in a row, and two beside it by returning them."""

    @step
    async def begin(self, ev: StartEvent) -> Question:
        await anyio.sleep(1)
        return Question(text="beside")

    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        answers = []
        for n in range(3):
            await anyio.sleep(0.5)
            answer = await ctx.wait_for_event(Answer, Question(text=str(n)))
            answers.append(answer.text)
        return StopEvent(result=answers)


async def answer_what_was_read(handler: WorkflowHandler[Any], found: list[str]) -> None:
    while not handler.is_done():
        for wait in handler.open_waits():
            assert isinstance(wait.question, Question)
            if wait.question.text in found:
                await handler.send_event(Answer(text=f"{wait.question.text}!"), wait=wait.id)
        await anyio.sleep(0.25)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 12).map(lambda quarters: quarters / 4),
            st.integers(0, 3),
            st.booleans(),
        ),
        max_size=6,
    )
)
def test_w4_every_question_is_read_once_wherever_the_run_is_killed(
    backend: str, kills: list[tuple[float, int, bool]]
) -> None:
    """Each kill: after some seconds, with some events read, through JSON or in the process."""

    async def main() -> None:
        found: list[str] = []
        workflow = Interview(timeout=None)
        handler = workflow.run()
        for seconds, count, through_json in kills:
            await anyio.sleep(seconds)
            events = handler.stream_events()
            for _ in range(min(count, handler.statistics().unread_events)):
                found += asked([await anext(events)])
            data = saved(handler.ctx)
            await handler.cancel_run()
            ctx = Context.from_dict(workflow, data) if through_json else handler.ctx
            handler = workflow.run(ctx=ctx)
        async with anyio.create_task_group() as group:
            group.start_soon(answer_what_was_read, handler, found)
            async for event in handler.stream_events():
                found += asked([event])
        assert await handler == ["0!", "1!", "2!"]
        assert sorted(found) == ["0", "1", "2", "beside"]

    run_virtually(backend, main)
