"""The deadline counts from the moment when it passes, whoever keeps the processor busy then (T4)."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from anyio_workflows import Event, StartEvent, StopEvent, Workflow, step
from anyio_workflows.errors import WorkflowTimeoutError

from .conftest import BACKENDS
from .running import hog, run_virtually
from .samples import Answer


class Waiting(Workflow[Any]):
    def __init__(self) -> None:
        super().__init__(timeout=1)
        self.begun: list[Event] = []

    @step
    async def start(self, ev: StartEvent) -> None:
        self.begun.append(ev)

    @step
    async def react(self, ev: Answer) -> StopEvent:
        self.begun.append(ev)
        return StopEvent(result="too late")


@pytest.mark.parametrize("backend", BACKENDS)
def test_t4_no_step_begins_after_a_deadline_that_passed_outside(backend: str) -> None:
    async def main() -> list[Event]:
        workflow = Waiting()
        handler = workflow.run()
        await anyio.sleep(0.25)
        hog(2)
        handler.ctx.send_event(Answer())
        with pytest.raises(WorkflowTimeoutError):
            await handler
        return workflow.begun

    assert run_virtually(backend, main) == [StartEvent()]
