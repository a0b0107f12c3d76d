"""Snapshots of runs that wait for events: what was asked and answered (rules W4, P4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import pytest

from anyio_workflows import Context, Event, StartEvent, StopEvent, Workflow, WorkflowHandler, step
from anyio_workflows.errors import ContextSerdeError
from anyio_workflows.retry_policy import retry_policy, wait_fixed

from .running import read
from .samples import Answer, OneStep, Question
from .snapshotting import resume, snapshot_at

pytestmark = pytest.mark.anyio

TYPES = [Answer, Question]


async def snapshot_when_read(
    seconds: float, handler: WorkflowHandler[Any], types: Sequence[type]
) -> dict[str, Any]:
    """Return the snapshot of a run after some seconds, in which its stream is read."""
    with anyio.move_on_after(seconds):
        await read(handler)
    return await snapshot_at(0, handler, types)


async def interview(ctx: Context) -> list[str]:
    """Ask three questions, one after the other, ten seconds apart."""
    answers = []
    for n in range(3):
        answer = await ctx.wait_for_event(Answer, Question(text=f"{n}?"), timeout=100)
        answers.append(answer.text)
        await anyio.sleep(10)
    return answers


async def answer(handler: WorkflowHandler[Any], *words: str) -> None:
    for word in words:
        await anyio.sleep(20)
        await handler.send_event(Answer(text=word))


def questions(events: Sequence[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Question)]


@pytest.mark.parametrize(
    ("answers", "seconds", "asked_again"),
    [
        ([], 5, ["1?", "2?"]),
        (["a"], 5, ["1?", "2?"]),  # in the middle of what comes after an answer
        (["a"], 15, ["2?"]),
        (["a", "b"], 15, []),
    ],
)
async def test_w4_answers_are_given_again_and_prompts_are_not_written_again(
    answers: list[str], seconds: float, asked_again: list[str]
) -> None:
    handler = OneStep(interview).run()
    await answer(handler, *answers)
    data = await snapshot_when_read(seconds, handler, TYPES)
    again = resume(OneStep(interview), data, TYPES)
    await answer(again, *["a", "b", "c"][len(answers) :])
    assert questions(await read(again)) == asked_again
    assert await again == ["a", "b", "c"]


async def test_w4_an_answer_right_after_the_restart_is_not_lost() -> None:
    async def act(ctx: Context) -> str:
        await anyio.sleep(10)
        return (await ctx.wait_for_event(Answer, Question(text="?"))).text

    data = await snapshot_when_read(15, OneStep(act).run(), TYPES)
    again = resume(OneStep(act), data, TYPES)
    await again.send_event(Answer(text="at once"))
    assert questions(await read(again)) == []
    assert await again == "at once"


async def test_w4_an_answer_before_the_step_comes_to_its_wait_is_in_the_next_snapshot() -> None:
    async def act(ctx: Context) -> str:
        await anyio.sleep(10)
        return (await ctx.wait_for_event(Answer, Question(text="?"))).text

    data = await snapshot_when_read(15, OneStep(act).run(), TYPES)
    again = resume(OneStep(act), data, TYPES)
    await again.send_event(Answer(text="early"))
    data = await snapshot_at(5, again, TYPES)
    assert await resume(OneStep(act), data, TYPES) == "early"


async def test_w4_a_wait_begins_again_with_its_full_time() -> None:
    handler = OneStep(interview).run()
    data = await snapshot_when_read(60, handler, TYPES)
    started = anyio.current_time()
    with pytest.raises(TimeoutError):
        await resume(OneStep(interview), data, TYPES)
    assert anyio.current_time() - started == 100


async def test_w4_a_prompt_whose_wait_timed_out_is_not_written_again() -> None:
    async def act(ctx: Context) -> str:
        try:
            found = await ctx.wait_for_event(Answer, Question(text="?"), timeout=10)
        except TimeoutError:
            await anyio.sleep(10)
            return "no answer"
        return found.text

    data = await snapshot_when_read(15, OneStep(act).run(), TYPES)
    again = resume(OneStep(act), data, TYPES)
    assert questions(await read(again)) == []
    assert await again == "no answer"


async def test_w4_an_answer_during_a_restored_retry_delay_is_for_the_next_attempt() -> None:
    class Hasty(Workflow[str]):
        @step(retry_policy=retry_policy(wait=wait_fixed(100)))
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            with anyio.move_on_after(5 if ctx.retry_info().retry_number == 0 else 1000):
                found = await ctx.wait_for_event(Answer, Question(text="?"))
                return StopEvent(result=f"{found.text} at {anyio.current_time() - started}")
            raise ValueError("too slow")

    started = anyio.current_time()
    data = await snapshot_when_read(15, Hasty(timeout=None).run(), TYPES)
    again = resume(Hasty(timeout=None), data, TYPES)
    await anyio.sleep(10)
    await again.send_event(Answer(text="early"))
    assert questions(await read(again)) == []
    assert await again == "early at 105.0"


async def test_w4_waits_of_several_tasks_are_told_apart() -> None:
    async def act(ctx: Context) -> dict[str, str]:
        async def ask(name: str) -> None:
            prompt = Question(text=name)
            found[name] = (await ctx.wait_for_event(Answer, prompt, waiter_id=name)).text

        found: dict[str, str] = {}
        async with anyio.create_task_group() as group:
            for name in ("one", "two"):
                group.start_soon(ask, name)
        return found

    data = await snapshot_when_read(5, OneStep(act).run(), TYPES)
    again = resume(OneStep(act), data, TYPES)
    await answer(again, "both")
    assert questions(await read(again)) == []
    assert await again == {"one": "both", "two": "both"}


async def test_w4_requirements_are_kept() -> None:
    async def act(ctx: Context) -> str:
        wanted = {"text": "right"}
        found = await ctx.wait_for_event(Answer, requirements=wanted)
        return found.text

    data = await snapshot_when_read(5, OneStep(act).run(), TYPES)
    again = resume(OneStep(act), data, TYPES)
    await again.send_event(Answer(text="wrong"))
    await answer(again, "wrong", "right")
    assert await again == "right"


async def test_p4_an_awaited_type_that_the_workflow_does_not_declare_is_named() -> None:
    handler = OneStep(interview).run()
    await anyio.sleep(5)
    with pytest.raises(ContextSerdeError, match=r"Answer.*types=\[") as caught:
        handler.ctx.to_dict()
    assert caught.value.path == "$.work.work[0].waits[0].event_type"
    await handler.cancel_run()
