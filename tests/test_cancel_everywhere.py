"""One workflow, ended at every point where it can be: cancelled, with its loop, by its deadline.

The sweeps count task steps: a task runs from one of its checkpoints to the next. After the n-th of
them, wherever that is, the run is ended; n rises until the run completes undisturbed.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise
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
    WorkflowHandler,
    WorkflowTimedOutEvent,
    step,
)
from anyio_workflows.errors import WorkflowCancelledByUser, WorkflowTimeoutError
from anyio_workflows.testing import virtual_time
from anyio_workflows.testing._clock import StepCounter

from .conftest import BACKENDS
from .samples import Done, Item, Note

ITEMS = 3
SHIELDED = 0.125
"""Seconds that one step shields itself for."""

on_each_backend = pytest.mark.parametrize("backend", BACKENDS)


# --- The workflow ------------------------------------------------------------------------------


class Everything(Workflow[list[int]]):
    """Fans out, nests task groups, shields cleanups, and has more work than workers."""

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        self.opened: list[str] = []
        self.closed: list[str] = []
        self.finished: list[int] = []

    @step
    async def prepare(self, ctx: Context, ev: StartEvent) -> Item:
        self.opened.append("prepare")
        try:
            ctx.write_event_to_stream(Note(text="preparing"))
            await anyio.sleep(0.25)
            for number in range(1, ITEMS):
                ctx.send_event(Item(n=number))
                await checkpoint()
        finally:
            with anyio.CancelScope(shield=True):
                try:
                    await anyio.sleep(SHIELDED)  # the end of asyncio's loop interrupts it once
                finally:
                    ctx.write_event_to_stream(Note(text="prepare"))
                    self.closed.append("prepare")
        return Item(n=0)

    @step(num_workers=2)
    async def work(self, ctx: Context, ev: Item) -> Done:
        async def part(seconds: float) -> None:
            name = f"part {ev.n} {seconds}"
            self.opened.append(name)
            try:
                await anyio.sleep(seconds)
            finally:
                ctx.write_event_to_stream(Note(text=name))
                self.closed.append(name)

        name = f"work {ev.n}"
        self.opened.append(name)
        child = part(0.5)
        try:
            async with anyio.create_task_group() as group:
                group.create_task(child)
                await part(0.25)
        finally:
            child.close()  # asyncio's loop may have thrown its task away before it began
            ctx.write_event_to_stream(Note(text=name))
            self.closed.append(name)
        return Done(n=ev.n)

    @step(num_workers=1)
    async def gather(self, ctx: Context, ev: Done) -> StopEvent | None:
        self.opened.append(f"gather {ev.n}")
        try:
            await checkpoint()
            self.finished.append(ev.n)
        finally:
            ctx.write_event_to_stream(Note(text=f"gather {ev.n}"))
            self.closed.append(f"gather {ev.n}")
        if len(self.finished) == ITEMS:
            return StopEvent(result=sorted(self.finished))
        return None


async def check_end(workflow: Everything, handler: WorkflowHandler[list[int]]) -> StopEvent:
    """Check what has to be true of each end; return the terminal event."""
    events = [event async for event in handler.stream_events()]
    last = events[-1]
    assert [event for event in events if isinstance(event, StopEvent)] == [last]
    assert handler.get_stop_event() is last
    assert isinstance(last, StopEvent)
    assert sorted(workflow.closed) == sorted(workflow.opened), "a `finally` did not run"
    notes = [event.text for event in events if isinstance(event, Note)]
    assert [text for text in notes if text != "preparing"] == workflow.closed
    if isinstance(last, WorkflowCancelledEvent):
        with pytest.raises(WorkflowCancelledByUser):
            await handler
    elif isinstance(last, WorkflowTimedOutEvent):
        with pytest.raises(WorkflowTimeoutError):
            await handler
    else:
        assert await handler == list(range(ITEMS))
    return last


async def let_tasks_exit() -> None:
    """Let the host of a run that has just published its end leave."""
    for _ in range(3):
        await checkpoint()


def running_tasks() -> set[int]:
    return {task.id for task in anyio.get_running_tasks()}


# --- The sweeps --------------------------------------------------------------------------------


def run_and_cancel(backend: str, limit: int) -> StopEvent:
    """Cancel the run after its `limit`-th task step; return its terminal event."""
    counter = StepCounter(limit)

    async def main() -> StopEvent:
        before = running_tasks()
        workflow = Everything()
        handler = workflow.run()
        cancelled_at: list[float] = []

        def cancel() -> None:
            # What `cancel_run()` does first; that can't be awaited between two task steps.
            handler._run.cancel("cancel_run() was called")
            cancelled_at.append(anyio.current_time())

        counter.begin(cancel, lambda: False)
        with anyio.fail_after(100):
            await ended(handler)
        for time in cancelled_at:
            assert anyio.current_time() <= time + SHIELDED, "something was not cancelled"
        last = await check_end(workflow, handler)
        await let_tasks_exit()
        assert running_tasks() == before, "a task was left behind"
        return last

    name, options = counter.watch(*virtual_time(backend))
    return anyio.run(main, backend=name, backend_options=options)


async def ended(handler: WorkflowHandler[Any]) -> None:
    with suppress(WorkflowCancelledByUser, WorkflowTimeoutError):
        await handler


@on_each_backend
def test_cancelled_after_each_task_step(backend: str) -> None:
    limit = 1
    while isinstance(run_and_cancel(backend, limit), WorkflowCancelledEvent):
        limit += 1
        assert limit < 1000
    assert limit > 20, "the workflow has more checkpoints than that"


@on_each_backend
@pytest.mark.parametrize("sweep", range(3))  # trio runs the tasks of one batch in random order
def test_the_loop_ends_after_each_task_step(backend: str, sweep: int) -> None:
    limit = 1
    while isinstance(run_and_end_loop(backend, limit), WorkflowCancelledEvent):
        limit += 1
        assert limit < 1000
    assert limit > 20, "the workflow has more checkpoints than that"


def run_and_end_loop(backend: str, limit: int) -> StopEvent:
    """Let the event loop end after the `limit`-th task step; look at the run in a new one."""
    counter = StepCounter(limit)
    workflow = Everything()

    async def main() -> WorkflowHandler[list[int]]:
        handler = workflow.run()
        over = anyio.Event()
        counter.begin(over.set, lambda: False)
        with anyio.fail_after(100):
            await over.wait()
        return handler

    name, options = counter.watch(*virtual_time(backend))
    handler = anyio.run(main, backend=name, backend_options=options)
    assert handler.is_done()
    name, options = virtual_time(backend)
    return anyio.run(check_end, workflow, handler, backend=name, backend_options=options)


@on_each_backend
def test_the_deadline_comes_at_each_time(backend: str) -> None:
    times = times_of_task_steps(backend)
    assert len(times) > 5
    between = [(early + late) / 2 for early, late in pairwise(times)]
    end = times[-1]
    for timeout in sorted([*times[1:], *between, end + 0.5]):
        last = run_with_timeout(backend, timeout)
        if timeout <= end:
            assert isinstance(last, WorkflowTimedOutEvent)
            assert last.timeout == timeout
        else:
            assert type(last) is StopEvent


def times_of_task_steps(backend: str) -> list[float]:
    """Return the different virtual times at which something happens in an undisturbed run."""
    times: list[float] = []
    counter = StepCounter()

    async def main() -> None:
        handler = Everything(timeout=None).run()
        begun = anyio.current_time()

        def note() -> bool:
            times.append(anyio.current_time() - begun)
            return False

        counter.begin(lambda: None, note)  # asks after each step whether it is over
        await handler

    name, options = counter.watch(*virtual_time(backend))
    anyio.run(main, backend=name, backend_options=options)
    return sorted(set(times))


def run_with_timeout(backend: str, timeout: float) -> StopEvent:
    async def main() -> StopEvent:
        before = running_tasks()
        workflow = Everything(timeout=timeout)
        handler = workflow.run()
        with anyio.fail_after(100):
            await ended(handler)
        last = await check_end(workflow, handler)
        await let_tasks_exit()
        assert running_tasks() == before, "a task was left behind"
        return last

    name, options = virtual_time(backend)
    return anyio.run(main, backend=name, backend_options=options)
