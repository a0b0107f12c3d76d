"""The workflows of `samples` do what they are there for."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from anyio_workflows import Context, Event, WorkflowFailedEvent
from anyio_workflows.testing import check_termination

from .conftest import BACKENDS
from .running import check_ending, read, texts
from .samples import (
    Answer,
    Asks,
    AsksByReturning,
    Ends,
    FanOut,
    Flaky,
    Job,
    Loop,
    Note,
    Numbers,
    OneStep,
    Question,
    Total,
)

pytestmark = pytest.mark.anyio


async def test_one_step_gives_what_its_function_returns() -> None:
    async def act(ctx: Context) -> str:
        ctx.write_event_to_stream(Note(text="acted"))
        return "result"

    handler = OneStep(act).run()
    assert texts(await read(handler)) == ["acted"]
    assert await handler == "result"


@pytest.mark.parametrize("rounds", [0, 1, 3])
async def test_the_loop_turns_as_often_as_it_is_told(rounds: int) -> None:
    handler = Loop().run(rounds=rounds)
    assert texts(await read(handler)) == list(range(rounds, 0, -1))
    assert await handler == "over"


async def test_the_fan_out_joins_the_branches_that_live() -> None:
    start = anyio.current_time()
    assert await FanOut().run(start_event=Numbers(items=[3, -4, 1])) == [1, 3]
    assert anyio.current_time() - start == 4


async def test_the_question_is_in_the_stream_and_the_answer_is_the_result() -> None:
    handler = Asks().run()
    async for event in handler.stream_events():
        if isinstance(event, Question):
            assert event.text == "well?"
            await handler.send_event(Answer(text="quite"))
    assert await handler == "quite"


async def test_the_flaky_step_fails_as_often_as_it_is_told() -> None:
    start = anyio.current_time()
    assert await Flaky(failures=3).run() == 3
    assert anyio.current_time() - start == 3


async def test_the_flaky_step_gives_up_after_ten_attempts() -> None:
    _, last = await check_ending(Flaky(failures=10).run())
    assert isinstance(last, WorkflowFailedEvent)
    assert str(last.exception) == "attempt 10"


async def test_a_question_that_is_returned_is_answered_by_an_event() -> None:
    handler = AsksByReturning().run()
    await handler.send_event(Answer(text="quite"))
    assert await read(handler) == [Question(text="well?"), await handler.stop_event_result()]
    assert await handler == "quite"


@pytest.mark.parametrize("how", ["return", "send", "subclass", "send subclass"])
async def test_the_step_that_ends_its_run_does_so_as_it_is_told(how: str) -> None:
    assert await Ends().run(how=how) == (Total(total=3) if "subclass" in how else 7)


def reply(event: Event) -> Answer | None:
    return Answer() if isinstance(event, Question) else None


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("workflow", "options"),
    [
        (Job, {}),
        (Loop, {}),
        (FanOut, {"start": Numbers(items=[2, -1, 3])}),
        (Asks, {"answer": reply}),
        (AsksByReturning, {"answer": reply}),
        (Flaky, {}),
    ],
)
def test_v2_the_workflows_end_as_promised_whatever_happens(
    workflow: Any, options: dict[str, Any], backend: str
) -> None:
    check_termination(workflow, **options, max_examples=20, backends=[backend])
