"""Work that waits for answers from outside."""

from __future__ import annotations

import math

import anyio
import attrs
from anyio import create_memory_object_stream, create_task_group, fail_after

from .events import Answer, Item, Question, Scored

TIMEOUT = 600.0
PATIENCE = 2000.0


@attrs.define
class Wait:
    """One wait for an answer."""

    answered: anyio.Event = attrs.Factory(anyio.Event)
    answer: Answer | None = None


async def questions(items: int) -> None:
    """A task for each item, which sends a question to a stream and waits; a dict finds its wait."""
    ask, asked = create_memory_object_stream[Question](math.inf)
    waits: dict[int, Wait] = {}
    scored: list[Scored] = []

    async def score(item: Item) -> None:
        wait = waits[item.number] = Wait()
        ask.send_nowait(Question(number=item.number))
        with fail_after(PATIENCE):
            await wait.answered.wait()
        assert wait.answer is not None
        scored.append(Scored(score=wait.answer.number))

    def reply(answer: Answer) -> None:
        wait = waits.pop(answer.number)
        wait.answer = answer
        wait.answered.set()

    with fail_after(TIMEOUT), ask, asked:
        async with create_task_group() as group:
            for number in range(items):
                group.start_soon(score, Item(number=number))
            numbers = [(await asked.receive()).number for _ in range(items)]
            for number in numbers:
                reply(Answer(number=number))
    assert sum(event.score for event in scored) == sum(range(items))
