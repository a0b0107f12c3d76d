"""Checkpoints: save a run in a file, and continue it in another process after a kill.

    async with checkpointed(MyWorkflow(timeout=None), "job.json", topic="tea") as handler:
        async for event in handler.stream_events():
            ...

Started again with the same file, the run continues from there. Finished steps are not executed again;
those that were in progress when the process died start over. `run_with_checkpoints()` does the same for
runs that need no handler. To do it by hand, iterate over `handler.stream_events(expose_internal=True)`
and call `save_checkpoint(handler.ctx, ...)` at each `StepStateChanged`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar

import anyio
import anyio.to_thread
import attrs

from ._annotations import is_positive_number
from ._backend import find_loop, is_cancellation
from ._messages import add_note, shortened
from ._snapshot_file import SnapshotFile, replace
from .context import Context
from .errors import ContextSerdeError, WorkflowConfigurationError
from .events import Event, StartEvent
from .handler import ResultT, WorkflowHandler
from .instrument import Instrument
from .workflow import Workflow

__all__ = ["checkpointed", "load_checkpoint", "run_with_checkpoints", "save_checkpoint"]

T = TypeVar("T")

_LONGEST_SAVE = 60.0
"""Seconds after which a save fails, so that a disk that hangs does not keep a run from ending."""


async def run_with_checkpoints(
    workflow: Workflow[ResultT],
    path: str | os.PathLike[str],
    *,
    every: float = 1.0,
    on_event: Callable[[Event], object] | None = None,
    types: Iterable[type] = (),
    renamed: Mapping[str, str | None] | None = None,
    start_event: StartEvent | None = None,
    instruments: Iterable[Instrument] = (),
    **fields: Any,
) -> ResultT:
    """Run a workflow to its end, saving snapshots; continue from a saved one if there is one.

    The run belongs to the call: cancelling the call cancels the run and saves its pending work. After a
    stop event the file holds only the state. After a failure it also holds the work that
    `ctx.retry_failed()` makes pending again: `load_checkpoint()`, `ctx.retry_failed()` and
    `save_checkpoint()` let the next call repeat the failed step. Otherwise the next call starts anew
    with the state.

    Args:
        workflow: The workflow.
        path: The file of the snapshots, as for `checkpointed()`.
        every: Minimum number of seconds between two snapshots; what happens in between is done again
            after a kill.
        on_event: Called with each event of the public stream. Once it has returned, a question counts
            as read and is not asked again after a restart (W4).
        types: Types that state and events may hold, besides those that the workflow declares.
        renamed: Names that have changed since the file was written, as for `Context.from_dict()` (P8).
        start_event: The event to start with, if there is no work left from an earlier run.
        instruments: Told what happens in the run, as for `workflow.run()`.
        **fields: The fields of the start event, instead.

    Returns:
        What `await workflow.run()` returns.

    Raises:
        BaseException: As `checkpointed()` and `await workflow.run()` do.
    """
    block = checkpointed(
        workflow,
        path,
        every=every,
        types=types,
        renamed=renamed,
        start_event=start_event,
        instruments=instruments,
        **fields,
    )
    async with block as handler:
        events = handler.stream_events()
        events.acknowledge()  # what is read counts when `on_event` has returned (W4)
        async for event in events:
            if on_event is not None:
                on_event(event)
                events.acknowledge()
        return await handler


def checkpointed(
    workflow: Workflow[ResultT],
    path: str | os.PathLike[str],
    *,
    every: float = 1.0,
    types: Iterable[type] = (),
    renamed: Mapping[str, str | None] | None = None,
    start_event: StartEvent | None = None,
    instruments: Iterable[Instrument] = (),
    **fields: Any,
) -> AbstractAsyncContextManager[WorkflowHandler[ResultT]]:
    """Run a workflow in a block, saving snapshots; continue from a saved one if there is one (C2).

    `async with checkpointed(...) as handler:` gives the handler, to stream events, answer questions and
    cancel. A question counts as read when it was taken from the stream, or, with an iterator that calls
    `acknowledge()`, when it was acknowledged (W4). The block owns the run as `async with handler` does:
    leaving it normally waits for the run and raises its failure, leaving it by an exception cancels the
    run. Either way the pending work is saved. After a stop event or a failure the next run starts anew
    with the state in the file; see `run_with_checkpoints()` for what else it holds after a failure.

    If a snapshot cannot be saved, the run is cancelled, saving is tried once more when the run has
    ended, and the block raises the first error; `handler.ctx` still has what was not saved. If the run
    has failed by itself, its own exception is raised, with a note about the save.

    Args:
        workflow: The workflow.
        path: The file of the snapshots. Each one is written to a temporary file that then replaces it,
            so the file is complete at any moment.
        every: Minimum number of seconds between two snapshots. They are saved whenever something has
            happened in the run; what happens in between is done again after a kill.
        types: Types that state and events may hold, besides those that the workflow declares.
        renamed: Names that have changed since the file was written, as for `Context.from_dict()` (P8).
        start_event: The event to start with, if there is no work left from an earlier run.
        instruments: Told what happens in the run, as for `workflow.run()`.
        **fields: The fields of the start event, instead.

    Raises:
        CheckpointInUseError: On entering, if another run saves in this file, here or in another
            process.
        ContextSerdeError: On entering, if the file does not hold a snapshot of this workflow; on
            leaving, if something in the run cannot be written as JSON.
        WorkflowConfigurationError: If `every` is not a number of seconds; on entering, if `renamed` is
            wrong.
        OSError: If the file cannot be read or written; `TimeoutError` if that takes over a minute.
        BaseException: As `async with workflow.run()` does.
    """
    if not is_positive_number(every, or_zero=True):
        raise WorkflowConfigurationError(f"every must be a number of seconds, not {every!r}")
    file = SnapshotFile(path)
    return _Block(
        workflow, file, every, tuple(types), renamed, start_event, tuple(instruments), fields
    )


async def load_checkpoint(
    workflow: Workflow[Any],
    path: str | os.PathLike[str],
    types: Iterable[type] = (),
    renamed: Mapping[str, str | None] | None = None,
) -> Context[Any]:
    """Restore a context from a saved snapshot; return a new one if there is no such file.

    Args:
        workflow: The workflow.
        path: The file.
        types: As for `Context.from_dict()`.
        renamed: As for `Context.from_dict()`.

    Raises:
        ContextSerdeError: If the file does not hold a snapshot of this workflow.
        WorkflowConfigurationError: If `renamed` is wrong.
        OSError: If the file cannot be read.
    """
    types = tuple(types)
    try:
        content = await anyio.Path(path).read_bytes()
    except FileNotFoundError:
        ctx = Context[Any](workflow)
        if renamed is not None:  # what is wrong with it shows at once, not when there is a file
            Context.from_dict(workflow, ctx.to_dict(types), types, renamed)
        return ctx
    name = shortened(os.fspath(path), 200)
    try:
        data = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise ContextSerdeError("$", f"{name} does not hold JSON: {error}") from None
    try:
        return Context.from_dict(workflow, data, types, renamed)
    except ContextSerdeError as error:
        problem = shortened(error.problem, 480)
        raise ContextSerdeError(error.path, f"{problem} (in {name})") from error


async def save_checkpoint(
    ctx: Context[Any], path: str | os.PathLike[str], types: Iterable[type] = ()
) -> None:
    """Save a snapshot of a run, completely or not at all.

    It does not check whether another run saves in this file; `checkpointed()` does.

    Raises:
        ContextSerdeError: If it holds a value that cannot be written as JSON.
        OSError: If the file cannot be written.
    """
    data = ctx.to_dict(types)
    await _in_thread(lambda: replace(Path(path), json.dumps(data)))


async def _in_thread(call: Callable[[], T]) -> T:
    """Call a function in a worker thread, and wait for it even when cancelled, natively or by a scope.

    Raises:
        TimeoutError: If it takes too long; it then continues in its thread.
    """
    returned: list[T] = []
    raised: list[Exception] = []

    async def wait() -> None:
        with anyio.move_on_after(_LONGEST_SAVE, shield=True):
            try:
                limiter = anyio.CapacityLimiter(1)
                found = await anyio.to_thread.run_sync(
                    call, abandon_on_cancel=True, limiter=limiter
                )
                returned.append(found)
            except Exception as error:
                raised.append(error)

    async with anyio.create_task_group() as group:  # which outlasts asyncio's own cancellation
        group.start_soon(wait)
    if raised:
        raise raised[0]
    if not returned:
        raise TimeoutError(f"the file system did not answer within {_LONGEST_SAVE:g} s")
    return returned[0]


# --- The block ----------------------------------------------------------------------------------


@attrs.define(eq=False)
class _Block(AbstractAsyncContextManager[WorkflowHandler[ResultT]], Generic[ResultT]):
    """Not an async generator: an unfinished one would have to be closed in its task."""

    _workflow: Workflow[ResultT]
    _file: SnapshotFile
    _every: float
    _types: tuple[type, ...]
    _renamed: Mapping[str, str | None] | None
    _start_event: StartEvent | None
    _instruments: tuple[Instrument, ...]
    _fields: dict[str, Any]
    _handler: WorkflowHandler[ResultT] = attrs.field(init=False)
    _saver: _Saver = attrs.field(init=False)

    async def __aenter__(self) -> WorkflowHandler[ResultT]:
        try:
            await _in_thread(self._file.open)
            ctx = await load_checkpoint(self._workflow, self._file.path, self._types, self._renamed)
            start_event, fields = self._start_event, self._fields
            if ctx.has_work_left:
                start_event, fields = None, {}
            loop = find_loop()
            changes = _Changes()
            self._handler = self._workflow.run(
                ctx=ctx,
                start_event=start_event,
                instruments=[*self._instruments, changes],
                **fields,
            )
        except BaseException:
            with anyio.CancelScope(shield=True):
                await _in_thread(self._file.close)
            raise
        assert loop is not None
        self._saver = _Saver(ctx, self._handler, self._file, self._every, self._types)
        changes.on_change = self._handler._on_change = self._saver.note_change
        # In a task of the loop: the block holds no cancel scope open, and can be left anywhere.
        loop.start(self._saver.serve, self._saver.ended.set)
        return self._handler

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._handler.__aexit__(exc_type, exc, traceback)
        except BaseException as error:
            exc = error
            raise
        finally:
            await self._saver.finish(exc)


class _Changes(Instrument):
    """Calls a function whenever something has happened that a snapshot would show."""

    def __init__(self) -> None:
        self.on_change: Callable[[], None] = lambda: None

    def _note(self, *args: Any, **kwargs: Any) -> None:
        self.on_change()

    execution_queued = execution_started = execution_ended = _note
    execution_suspended = execution_resumed = event_sent = _note


@attrs.define(eq=False)
class _Saver:
    """Saves the snapshots of a run, one after the other, in a task of its own.

    Attributes:
        ended: Set when the last one is saved and the file is released.
    """

    _ctx: Context[Any]
    _handler: WorkflowHandler[Any]
    _file: SnapshotFile
    _every: float
    _types: tuple[type, ...]
    ended: anyio.Event = attrs.field(factory=anyio.Event)
    _changed: anyio.Event = attrs.field(factory=anyio.Event)
    _leaving: anyio.Event = attrs.field(factory=anyio.Event)
    _saves: int = 0
    _error: Exception | None = None

    def note_change(self) -> None:
        """Note that something has happened in the run."""
        if not self._changed.is_set():
            self._changed.set()

    async def finish(self, raised: BaseException | None) -> None:
        """Save for the last time, and raise the error of the first save that failed.

        Args:
            raised: The exception of the block itself. If the run has failed by itself, this exception
                is kept and gets a note.
        """
        self._leaving.set()
        self._changed.set()
        interruption: BaseException | None = None
        while not self.ended.is_set():  # no longer than `_in_thread()` takes
            try:
                with anyio.CancelScope(shield=True):
                    await self.ended.wait()
            except anyio.get_cancelled_exc_class() as exc:  # asyncio's own
                interruption = exc
        if self._error is not None:
            if raised is None or is_cancellation(raised) or not self._run_failed():
                raise self._error
            problem = f"{type(self._error).__name__}: {self._error}"
            add_note(raised, f"and the last snapshot of its run could not be saved: {problem}")
        if interruption is not None:
            raise interruption

    def _run_failed(self) -> bool:
        """Return whether the run has failed by itself, not because of a failed save."""
        outcome = self._handler._run.outcome
        return outcome is not None and outcome.error is not None and not outcome.is_cancellation

    async def serve(self) -> None:
        """Save whenever something has happened, and at the end."""
        try:
            await self._save_changes()
        except anyio.get_cancelled_exc_class():
            pass  # the event loop ends
        for act in (self._save, self._release):
            try:
                with anyio.CancelScope(shield=True):
                    await act()
            except anyio.get_cancelled_exc_class():  # asyncio's own; it is done nevertheless
                pass

    async def _release(self) -> None:
        try:
            await _in_thread(self._file.close)
        except OSError as error:
            self._error = self._error or error

    async def _save_changes(self) -> None:
        while not self._leaving.is_set() and self._error is None:
            await self._changed.wait()
            if self._leaving.is_set():
                return
            self._changed = anyio.Event()
            await self._save()
            with anyio.move_on_after(self._every):
                await self._leaving.wait()
        await self._leaving.wait()

    async def _save(self) -> None:
        self._saves += 1
        try:
            data, number = self._ctx.to_dict(self._types), self._saves
            await _in_thread(lambda: self._file.write(number, json.dumps(data)))
        except Exception as error:
            if self._error is None:
                self._error = error
                self._handler._run.cancel(f"its snapshot could not be saved: {error}")
