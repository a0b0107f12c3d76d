"""`run`: a workflow in this process, shown while it runs."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import anyio

from .._documents import converter_of
from ..errors import (
    ContextSerdeError,
    UnknownRunError,
    WorkflowConfigurationError,
    WorkflowRuntimeError,
)
from ..runtime import RunHandle, Runtime
from ..wire import from_data, json_schema
from ..workflow import Workflow
from .follow import follow
from .local import LocalRun
from .problems import CANCELLED, EXIT_OF_STATUS, FAILED, LET_GO, TIMED_OUT, CommandError
from .showing import answerer_for, print_result, view_for
from .targets import load_one
from .texts import Data
from .values import Record, read_input

_ADVICE = (
    "Ctrl-C cancels the run; to answer, give --answer field=value ..., or --answer ask to be asked"
)


def run(args: Namespace, options: dict[str, Any] | None) -> int:
    """Run a workflow, and return the exit status that tells how the run ended."""
    target = load_one(args.target)
    workflow = target.instance()
    try:
        runtime = Runtime(args.db, workflows=[workflow])
    except WorkflowConfigurationError as error:
        raise CommandError(str(error)) from error
    return anyio.run(_run, args, runtime, workflow, backend=args.backend, backend_options=options)


async def _run(args: Namespace, runtime: Runtime, workflow: Workflow[Any]) -> int:
    running = _Running(args.db is not None)
    ended: Data | None = None
    async with runtime:
        handle, how = await _started(args, runtime, workflow)
        run = LocalRun(handle, converter_of(workflow))
        with view_for(args) as view:
            view.begin(await run.whole(), how)
            async with anyio.create_task_group() as group:
                running.scope = group.cancel_scope
                group.start_soon(running.heed_signals, run, view.close)
                if args.timeout is not None:
                    group.start_soon(running.end_after, args.timeout, run)
                answerer = answerer_for(args, view)
                ended = await follow(run, view, answerer=answerer, advice=_ADVICE)
                group.cancel_scope.cancel()
    if ended is None:  # SIGTERM, while a database keeps the run
        print(
            f"run {handle.id} is kept in {args.db}; the same command continues it", file=sys.stderr
        )
        return LET_GO
    if args.traceback and ended["error"] is not None:
        await _print_traceback(handle)
    if not args.json:
        print_result(ended)
    if running.out_of_time and ended["status"] == "cancelled":
        return TIMED_OUT
    return EXIT_OF_STATUS.get(ended["status"], FAILED)


async def _started(
    args: Namespace, runtime: Runtime, workflow: Workflow[Any]
) -> tuple[RunHandle[Any], str]:
    """Return the run with the id that was given, or start one; and say which it was."""
    if args.run_id is not None:
        try:
            return await runtime.get(args.run_id), "continues"
        except UnknownRunError:
            pass
        except (WorkflowConfigurationError, WorkflowRuntimeError) as error:  # of another workflow
            raise CommandError(str(error)) from error
    cls = workflow.start_event_class
    record = Record.of(json_schema(cls))
    data = {**read_input(args.input), **record.read(args.fields)}
    try:
        start_event: Any = from_data(data, cls, converter=converter_of(workflow))
    except ContextSerdeError as error:
        raise CommandError(f"the input does not fit: {error}; {record.usage}") from error
    try:
        [name] = runtime.workflows
        handle = await runtime.start(name, run_id=args.run_id, start_event=start_event)
    except (WorkflowConfigurationError, WorkflowRuntimeError) as error:
        raise CommandError(str(error)) from error
    return handle, "starts"


async def _print_traceback(handle: RunHandle[Any]) -> None:
    try:
        await handle
    except BaseException as error:
        traceback.print_exception(error)


class _Running:
    """How the command was told to end before the run.

    Attributes:
        out_of_time: Whether `--timeout` has passed.
        scope: Cancelled to let go of a run that a database keeps.
    """

    def __init__(self, is_kept: bool) -> None:
        self._is_kept = is_kept
        self.out_of_time = False
        self.scope = anyio.CancelScope()

    async def heed_signals(self, run: LocalRun, close: Callable[[], None]) -> None:
        """Cancel the run at the first Ctrl-C; at the second one, do not wait for its cleanup.

        Args:
            run: The run.
            close: Leaves the terminal as it was.
        """
        if sys.platform == "win32":
            return  # Ctrl-C raises KeyboardInterrupt there, and the runtime is left
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with anyio.create_task_group() as group:
                async for one in signals:
                    if one == signal.SIGTERM and self._is_kept:
                        self.scope.cancel()
                    elif run.is_being_cancelled:
                        # A step that takes its time to clean up would hold back any other way of ending.
                        close()
                        print("the cleanup was not awaited", file=sys.stderr, flush=True)
                        os._exit(CANCELLED)
                    else:
                        group.start_soon(run.cancel)

    async def end_after(self, seconds: float, run: LocalRun) -> None:
        """Cancel the run after some seconds."""
        await anyio.sleep(seconds)
        self.out_of_time = True
        await run.cancel()
