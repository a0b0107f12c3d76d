"""The harness: run a workflow under virtual time as a scenario says, and record what happens.

It also plays the caller: it awaits the run, reads its stream, sends events to it, and ends it.
"""

from __future__ import annotations

import functools
import gc
import logging
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import anyio
import attrs
from anyio.lowlevel import checkpoint

from ..errors import WorkflowConfigurationError, WorkflowRuntimeError
from ..events import Event, StartEvent, StopEvent
from ..workflow import Workflow
from ._checks import (
    check_has_ended,
    check_run_of_ended_loop,
    check_stays_ended,
    outcome_of,
    read_stream,
)
from ._clock import StepCounter, TurnCounter, current_clock, virtual_time
from ._instrumented import current_record, instrument_steps
from ._record import CauseKind, Marker, Record
from ._scenario import Moment, Read, Scenario

# Virtual seconds after which a run that has not ended counts as hanging. Virtual time costs nothing,
# so this is far beyond any deadline that a workflow may have.
RUN_LIMIT = 1e6

# Turns of the event loop at one virtual instant after which something counts as spinning.
MAX_TURNS = 5_000

# Virtual seconds for what has to happen at once, and how often threads are given that time: the clock
# waits its `patience`, in real time, before each jump.
_MOMENT = 0.001
_THREAD_CHECKS = 50


def check_makes_workflows(value: object) -> None:
    """Refuse what is no function that makes workflows."""
    if not callable(value):
        raise WorkflowConfigurationError(
            "make_workflow makes a new workflow for each run: give the class, or a function, not "
            f"{value!r}"
        )


@attrs.define(eq=False)
class Harness:
    """Runs a workflow again and again, each time with another scenario.

    Attributes:
        make_workflow: Makes a new workflow for each run; a workflow class, for example.
        start: The start event; `None` for one without fields.
        outside: Events that are sent to each run from outside.
        answer: Called with each event of the stream; the event that it returns is sent to the run.
    """

    make_workflow: Callable[..., Workflow[Any]] = attrs.field(
        validator=lambda instance, attribute, value: check_makes_workflows(value)
    )
    start: StartEvent | None = None
    outside: Sequence[Event] = ()
    answer: Callable[[Event], Event | None] | None = None
    # One instrumented subclass per class, for all runs: each new class would be inspected and validated anew.
    _classes: dict[type[Workflow[Any]], type[Workflow[Any]]] = attrs.field(factory=dict, init=False)

    def make(self, scenario: Scenario) -> Workflow[Any]:
        """Make a workflow with the limits that the scenario sets."""
        config = {"timeout": scenario.timeout, "cleanup_timeout": scenario.cleanup_timeout}
        return self.make_workflow(**{k: v for k, v in config.items() if v is not None})

    def run(self, scenario: Scenario, backend: str) -> Record:
        """Run a workflow in an event loop of its own, disturbed as the scenario says."""
        workflow = self.make(scenario)
        instrument_steps(workflow, self._classes)
        record = Record(workflow, scenario, backend)
        counter = StepCounter(None if scenario.end is None else scenario.end.task_step)
        token = current_record.set(record)
        try:
            with capture_logs(record.library_log), _silence_dropped_steps(record):
                _run_loop(_Driver(self, record, counter).drive, record, counter)
                if record.ended is None and not record.hung:  # the scenario ended the loop
                    check = functools.partial(check_run_of_ended_loop, record)
                    _run_loop(check, record, StepCounter())
        finally:
            current_record.reset(token)
            record.closed.set()
        return record


def _run_loop(main: Callable[[], Awaitable[None]], record: Record, counter: StepCounter) -> None:
    name, options = virtual_time(record.backend)
    if counter.limit is not None:  # counting task steps costs time
        name, options = counter.watch(name, options)
    name, options = TurnCounter(MAX_TURNS, record.report_spinning).watch(name, options)
    anyio.run(main, backend=name, backend_options=options)


class _LogCapture(logging.Handler):
    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__(logging.WARNING)
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)


@contextmanager
def capture_logs(records: list[logging.LogRecord]) -> Iterator[None]:
    """Append what the library logs, from WARNING on, to a list, and show none of it."""
    capture = _LogCapture(records)
    logger = logging.getLogger("anyio_workflows")
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(capture)
    try:
        yield
    finally:
        logger.removeHandler(capture)
        logger.propagate = propagate


@contextmanager
def _silence_dropped_steps(record: Record) -> Iterator[None]:
    """Keep Python from reporting that step bodies, dropped because they spin, ignored GeneratorExit."""
    hook = sys.unraisablehook

    def filtered(unraisable: sys.UnraisableHookArgs) -> None:
        if not record.spinning:
            hook(unraisable)

    sys.unraisablehook = filtered
    try:
        yield
        if record.spinning:
            gc.collect()  # those in reference cycles go now, while the hook is in place
    finally:
        sys.unraisablehook = hook


class _LeftEarly(Exception):
    """Raised in the `async with` block of a run, to leave it."""


class _Driver:
    """One run, and the tasks that await it, read its stream, send events to it and end it."""

    def __init__(self, harness: Harness, record: Record, counter: StepCounter) -> None:
        self._harness = harness
        self._record = record
        self._counter = counter
        self._answers: list[Event] = []
        self._answered = anyio.Event()

    async def drive(self) -> None:
        """Start the run, let everything happen to it, and check that it stays ended."""
        record, scenario = self._record, self._record.scenario
        record.now = current_clock()
        record.started = record.now()
        tasks_before = _running_tasks()
        workflow, start = record.workflow, self._harness.start
        in_block = workflow.graph.closed_with_workflow is not None
        if in_block:  # left below; it stays open if the loop ends or the run hangs
            await workflow.__aenter__()
        record.handler = workflow.run(start_event=start, instruments=[record.told])
        timeout = f", timeout {scenario.timeout:g} s" if scenario.timeout else ""
        record.add_trace("run", f"starts{timeout}")
        with anyio.CancelScope(deadline=record.started + RUN_LIMIT) as limit:
            if scenario.end is not None and scenario.end.kind == "loop":
                await self._read_for_a_while()
                await self._wait_for_end_moment()
                self._note_end("ends the event loop", "loop end")
                return  # out of the loop's main function: the loop ends, with the run in it
            async with anyio.create_task_group() as group:
                group.start_soon(self._await_outcome)
                group.start_soon(self._read_all)
                for number, event in enumerate(self._harness.outside):
                    group.start_soon(self._send, number, event)
                if self._harness.answer is not None:
                    group.start_soon(self._send_answers)
                await self._end_run()
            await check_stays_ended(record)
            if in_block:
                with suppress(
                    Exception
                ):  # a resource may fail to close, as it may at the end of a run
                    await workflow.__aexit__(None, None, None)
            await self._check_no_task_is_left(tasks_before)
        if limit.cancelled_caught:
            record.hung = True
            if not record.violations:
                record.add_violation(
                    "T1", f"the run did not end within {RUN_LIMIT:g} virtual seconds"
                )
        await self._wait_for_threads()

    # --- Awaiting, reading, sending ---

    async def _await_outcome(self) -> None:
        record = self._record
        if not record.handler.is_done() and record.handler.get_stop_event() is not None:
            record.add_violation("T3", "there was a stop event before the end")
        record.outcome, _ = await outcome_of(record.handler)
        record.ended = record.now()
        record.add_trace("await", "is over")
        check_has_ended(record, "`await handler` was over")

    async def _read_all(self) -> None:
        for read in (*self._record.scenario.reads, Read()):
            if not self._record.has_been_read:
                await read_stream(self._record, read, self._queue_answer)

    async def _read_for_a_while(self) -> None:
        """Do the reads that end by themselves, whatever the run does."""
        for read in self._record.scenario.reads:
            if read.patience is not None and not self._record.has_been_read:
                await read_stream(self._record, read, self._queue_answer)

    def _queue_answer(self, event: Event) -> None:
        if isinstance(event, StopEvent):
            self._answered.set()  # there will be no more answers
        elif self._harness.answer is not None and not isinstance(event, Marker):
            answer = self._harness.answer(event)
            if answer is not None:
                self._answers.append(answer)
                self._answered.set()

    async def _send_answers(self) -> None:
        number = len(self._harness.outside)
        while not self._record.has_been_read:
            await self._answered.wait()
            self._answered = anyio.Event()
            while self._answers:
                await self._send(number, self._answers.pop(0))
                number += 1

    async def _send(self, number: int, event: Event) -> None:
        """Send an event at its moment; only a run that has ended may refuse it (T7)."""
        record, moments = self._record, self._record.scenario.outside
        await _wait_for(moments[number] if number < len(moments) else Moment())
        await self._try_second_reader()
        record.add_trace("outside", f"sends {event!r}")
        try:
            await record.handler.send_event(event)
        except WorkflowRuntimeError:
            if not record.handler.is_done():
                record.add_violation("T7", f"{event!r} from outside was refused during the run")
        else:
            if record.handler.is_done():
                record.add_violation("T7", f"{event!r} from outside was accepted after the end")

    async def _try_second_reader(self) -> None:
        """Try to read while another task waits for the next event, which is refused (S3)."""
        record, handler = self._record, self._record.handler
        if not handler.statistics().reader_waiting:
            return
        with anyio.move_on_after(_MOMENT):
            try:
                event = await anext(handler.stream_events())
            except WorkflowRuntimeError:
                return
            except StopAsyncIteration:
                record.add_violation("S3", "a second reader found the stream at its end, quietly")
                return
            # Now and then a read lets other tasks run first. If the waiting reader got its event
            # meanwhile, this read was alone, and rightly got the next one.
            record.add_read_event(event)
            self._queue_answer(event)
            return
        record.add_violation("S3", "a second reader was let in while one was waiting")

    # --- Ending the run ---

    async def _end_run(self) -> None:
        """End the run from outside, if the scenario says so."""
        end = self._record.scenario.end
        if end is not None and end.kind == "cancel":
            await self._cancel()
        elif end is not None:
            await self._leave_block()

    async def _cancel(self) -> None:
        handler = self._record.handler
        await self._wait_for_end_moment()
        self._note_end("calls cancel_run()", "cancel")
        await handler.cancel_run()
        if not handler.is_done():
            self._record.add_violation("T3", "cancel_run() returned before the end")

    async def _leave_block(self) -> None:
        try:
            async with self._record.handler:
                await self._wait_for_end_moment()
                self._note_end("leaves the block by an exception", "cancel")
                raise _LeftEarly
        except _LeftEarly:
            if not self._record.handler.is_done():
                self._record.add_violation("T3", "the block was left before the run had ended")

    async def _wait_for_end_moment(self) -> None:
        """Wait until it is time to end the run, or until it has ended."""
        end = self._record.scenario.end
        assert end is not None
        if end.task_step is None:
            await _wait_for(end.at)
            await self._try_second_reader()
            return
        reached = anyio.Event()

        def hold_other_tasks() -> None:
            # From here until `_note_end()` only this task runs, so that the run is ended right after
            # the task step that was asked for.
            self._counter.holding = not self._record.handler.is_done()
            reached.set()

        self._counter.begin(hold_other_tasks, self._record.handler.is_done)
        await reached.wait()

    def _note_end(self, what: str, kind: CauseKind) -> None:
        self._counter.holding = False
        self._record.end_came_late = self._record.handler.is_done()
        self._record.add_trace("outside", what)
        self._record.add_cause(kind)

    # --- Afterwards ---

    async def _check_no_task_is_left(self, before: set[int]) -> None:
        """Check that no task of the run is left, once its host had time to leave (T6)."""
        threads = any(not s.is_async for s in self._record.workflow.graph.steps.values())
        if (
            self._record.gave_up_warning or threads
        ):  # they may begin late, run on, and call into the loop
            return
        for _ in range(5):
            await checkpoint()
        if left := _running_tasks() - before:
            names = [task.name for task in anyio.get_running_tasks() if task.id in left]
            self._record.add_violation("T6", f"tasks were left behind: {names}")

    async def _wait_for_threads(self) -> None:
        """Let abandoned threads end while there is a loop that they can call into."""
        self._record.closed.set()
        for _ in range(_THREAD_CHECKS):
            if all(e.ended is not None or e.spec.is_async for e in self._record.executions):
                break
            await anyio.sleep(_MOMENT)  # takes real time while threads are at work


async def _wait_for(moment: Moment) -> None:
    if moment.seconds:
        await anyio.sleep(moment.seconds)
    for _ in range(moment.checkpoints):
        await checkpoint()


def _running_tasks() -> set[int]:
    return {task.id for task in anyio.get_running_tasks()}
