"""Checkpoints: a run that goes on in another process where one was killed.

    result = await run_with_checkpoints(MyWorkflow(timeout=None), "job.json", topic="tea")

Started again with the same file, it goes on from there. Finished steps are not executed again; those
that were in progress when the process died start over. By hand, the same is
`async for ev in handler.stream_events(expose_internal=True)`, with `handler.ctx.to_dict()` saved
when a `StepStateChanged` comes by.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from .context import Context
from .errors import ContextSerdeError, WorkflowConfigurationError, shortened
from .events import Event, InternalDispatchEvent, StartEvent
from .handler import ResultT, WorkflowHandler
from .steps import is_positive_number
from .workflow import Workflow

__all__ = ["load_checkpoint", "run_with_checkpoints", "save_checkpoint"]


async def run_with_checkpoints(
    workflow: Workflow[ResultT],
    path: str | os.PathLike[str],
    *,
    every: float = 1.0,
    on_event: Callable[[Event], object] | None = None,
    types: Iterable[type] = (),
    start_event: StartEvent | None = None,
    **fields: Any,
) -> ResultT:
    """Run a workflow to its end, saving snapshots; go on from the saved one if there is one.

    The run belongs to the call: cancelling it cancels the run, and saves what is left to do. After a
    stop event the file holds the state alone. After a failure, it also holds what `ctx.retry_failed()`
    makes owed again: `load_checkpoint()`, `ctx.retry_failed()` and `save_checkpoint()` let the next
    call repeat the step that failed. Otherwise that starts anew with the state.

    Args:
        workflow: The workflow.
        path: The file of the snapshots. Each is written beside it and then takes its place, so that
            there is a complete one at any moment.
        every: Seconds between two snapshots at least; what happens in that time is done again after
            a kill.
        on_event: Called with each event of the public stream. A question counts as read, so that it is
            not asked again after a restart, when this has returned (W4).
        types: Types that state and events may hold, besides those that the workflow declares.
        start_event: The event to start with, if there is no work left from an earlier run.
        **fields: The fields of the start event, instead.

    Returns:
        What `await workflow.run()` returns.

    Raises:
        ContextSerdeError: If the file holds no snapshot of this workflow, or something in the run
            cannot be written as JSON.
        WorkflowConfigurationError: If `every` is no number of seconds.
        OSError: If the file cannot be read or written.
        BaseException: As `await workflow.run()` does.
    """
    if not is_positive_number(every, or_zero=True):
        raise WorkflowConfigurationError(f"every must be a number of seconds, not {every!r}")
    types = tuple(types)
    ctx = await load_checkpoint(workflow, path, types)
    if ctx.has_work_left:
        start_event, fields = None, {}
    handler = workflow.run(ctx=ctx, start_event=start_event, **fields)
    try:
        async with handler:
            await _drain(handler, path, every, on_event, types)
            return await handler
    finally:
        with anyio.CancelScope(shield=True):
            await save_checkpoint(ctx, path, types)


async def _drain(
    handler: WorkflowHandler[Any],
    path: str | os.PathLike[str],
    every: float,
    on_event: Callable[[Event], object] | None,
    types: tuple[type, ...],
) -> None:
    """Read the stream to its end, and save when something has happened, if it is time."""
    events = handler.stream_events(expose_internal=True)
    events.acknowledge()
    saved, due = -math.inf, math.inf
    while True:
        event: Event | str | None = None
        with anyio.CancelScope(deadline=due):
            event = await anext(events, "the end")
        now = anyio.current_time()
        if isinstance(event, str):
            return
        if event is None:
            await save_checkpoint(handler.ctx, path, types)
            saved, due = anyio.current_time(), math.inf
            continue
        due = min(due, max(now, saved + every))
        if on_event is not None and not isinstance(event, InternalDispatchEvent):
            on_event(event)
            events.acknowledge()


async def load_checkpoint(
    workflow: Workflow[Any], path: str | os.PathLike[str], types: Iterable[type] = ()
) -> Context[Any]:
    """Make a context of a saved snapshot; a fresh one if there is no such file.

    Raises:
        ContextSerdeError: If the file holds no snapshot of this workflow.
        OSError: If it cannot be read.
    """
    try:
        content = await anyio.Path(path).read_bytes()
    except FileNotFoundError:
        return Context(workflow)
    name = shortened(os.fspath(path), 200)
    try:
        data = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise ContextSerdeError("$", f"{name} holds no JSON: {error}") from None
    try:
        return Context.from_dict(workflow, data, types)
    except ContextSerdeError as error:
        problem = shortened(error.problem, 480)
        raise ContextSerdeError(error.path, f"{problem} (in {name})") from error


async def save_checkpoint(
    ctx: Context[Any], path: str | os.PathLike[str], types: Iterable[type] = ()
) -> None:
    """Save a snapshot of a run: at once, or not at all.

    Raises:
        ContextSerdeError: If it holds a value that cannot be written as JSON.
        OSError: If the file cannot be written.
    """
    text = json.dumps(ctx.to_dict(types))
    await anyio.to_thread.run_sync(_replace, Path(path), text)


def _replace(path: Path, text: str) -> None:
    """Write a file beside `path`, and put it in its place when it is on the disk."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    if os.name == "posix":  # the new name has to be on the disk as well
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
