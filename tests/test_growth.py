"""The cost of one item does not grow with their number (F7), counted in executed lines."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import anyio
import pytest

import anyio_workflows
from anyio_workflows import Context, StartEvent, StopEvent, Workflow, step

from .conftest import BACKENDS
from .running import run_virtually
from .samples import Answer, Item

PACKAGE = anyio_workflows.__path__[0]


class FanOut(Workflow[int]):
    @step
    async def split(self, ev: StartEvent) -> list[Item]:
        return [Item(n=n) for n in range(ev.count)]

    @step
    async def work(self, ev: Item) -> Item | Answer:
        return Answer(n=ev.n)

    @step
    async def join(self, answers: list[Answer]) -> StopEvent:
        return StopEvent(result=len(answers))


class Asking(FanOut):
    """Every branch waits at once, for an answer of its own."""

    @step(num_workers=1)
    async def work(self, ctx: Context, ev: Item) -> Answer:
        return await ctx.wait_for_event(Answer, requirements={"n": ev.n})


def lines_executed(backend: str, workflow: type[FanOut], count: int) -> int:
    """Run a workflow and count the lines of the library that are executed meanwhile."""
    lines = 0

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal lines
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        lines += event == "line"
        return trace

    async def main() -> int:
        handler = workflow().run(count=count)
        if workflow is Asking:
            await anyio.sleep(1)
            for n in reversed(range(count)):
                await handler.send_event(Answer(n=n))
        return await handler

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        assert run_virtually(backend, main) == count
    finally:
        sys.settrace(before)
    return lines


@pytest.mark.parametrize("workflow", [FanOut, Asking])
@pytest.mark.parametrize("backend", BACKENDS)
def test_f7_cost_is_linear_in_the_number_of_items(backend: str, workflow: type[FanOut]) -> None:
    lines_executed(backend, workflow, 1)  # compiles what is compiled once
    few, many = (lines_executed(backend, workflow, count) for count in (50, 500))
    assert many < 10.5 * few
