"""Play a scenario: one run under virtual time, with everybody who deals with it from outside."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import anyio
import attrs
from anyio.lowlevel import checkpoint

from ..errors import WorkflowRuntimeError
from ..events import Event, StartEvent, StopEvent
from ..workflow import Workflow
from ._clock import StepCounter, TurnCounter, current_clock, virtual_time
from ._instrumented import current_record, instrument_steps
from ._record import CauseKind, Marker, Record
from ._scenario import Moment, Read, Scenario

__all__ = ["LIMIT", "MakeWorkflow", "Stage", "logs_to"]

LIMIT = 1e6
"""Virtual seconds after which a run that has not ended counts as hanging."""

MOST_TURNS = 5_000
"""Turns of the event loop at one virtual instant after which something counts as spinning."""

_MOMENT = 0.001
"""Virtual seconds that somebody waits who should not have to wait."""

_THREAD_CHECKS = 50
"""How often it is looked whether threads have ended, each time for the patience of the clock."""

Answer = Callable[[Event], Event | None]


class MakeWorkflow(Protocol):
    """Makes a new workflow for each run; a workflow class, for example."""

    def __call__(self, **config: Any) -> Workflow[Any]: ...


class LeftEarly(Exception):
    """Raised in the block that owns a run, to leave it."""


@attrs.define(eq=False)
class Stage:
    """Where scenarios are played.

    Attributes:
        make_workflow: Makes the workflow.
        start: Its start event; `None` for one without fields.
        outside: Events that are sent to each run from outside.
        answer: Asked about each event in the stream; what it returns is sent to the run.
        classes: The instrumented classes made so far, by their base.
    """

    make_workflow: MakeWorkflow
    start: StartEvent | None = None
    outside: Sequence[Event] = ()
    answer: Answer | None = None
    classes: dict[type[Workflow[Any]], type[Workflow[Any]]] = attrs.field(factory=dict)

    def make(self, scenario: Scenario) -> Workflow[Any]:
        """Make a workflow with the limits that the scenario sets."""
        config = {"timeout": scenario.timeout, "cleanup_timeout": scenario.cleanup_timeout}
        return self.make_workflow(**{k: v for k, v in config.items() if v is not None})

    def play(self, scenario: Scenario, backend: str) -> Record:
        """Let a workflow run in an event loop of its own, disturbed as the scenario says."""
        workflow = self.make(scenario)
        instrument_steps(workflow, self.classes)
        record = Record(workflow, scenario, backend)
        counter = StepCounter()
        if scenario.end is not None:
            counter.limit = scenario.end.task_step
        token = current_record.set(record)
        try:
            with logs_to(record.all_logged), _quiet_about_what_is_left(record):
                self._run(_Play(self, record, counter).perform, record, counter)
                if record.ended is None and not record.hung:  # its loop ended
                    self._run(_Encore(record).perform, record, StepCounter())
        finally:
            current_record.reset(token)
            record.over.set()
        return record

    def _run(
        self, main: Callable[[], Awaitable[None]], record: Record, counter: StepCounter
    ) -> None:
        counts = counter.limit is not None  # which costs time
        name, options = counter.backend(record.backend) if counts else virtual_time(record.backend)
        name, options = TurnCounter(MOST_TURNS, record.note_spinning).watch(name, options)
        anyio.run(main, backend=name, backend_options=options)


class _Catcher(logging.Handler):
    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__(logging.WARNING)
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)


@contextmanager
def logs_to(records: list[logging.LogRecord]) -> Iterator[None]:
    """Keep what the library logs, from WARNING on, and don't show it."""
    catcher = _Catcher(records)
    logger = logging.getLogger("anyio_workflows")
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(catcher)
    try:
        yield
    finally:
        logger.removeHandler(catcher)
        logger.propagate = propagate


@contextmanager
def _quiet_about_what_is_left(record: Record) -> Iterator[None]:
    """Let Python say nothing about the bodies of steps that were left alone, since they spin."""
    hook = sys.unraisablehook

    def filtered(unraisable: sys.UnraisableHookArgs) -> None:
        if not record.spinning:
            hook(unraisable)

    sys.unraisablehook = filtered
    try:
        yield
        if record.spinning:
            gc.collect()
    finally:
        sys.unraisablehook = hook


class _Encore:
    """What can be done with a run that has ended, by anybody who still holds its handler."""

    def __init__(self, record: Record) -> None:
        self.record = record

    async def perform(self) -> None:
        """Look at a run whose event loop has ended, in another one."""
        self.record.now = current_clock()
        if not self.record.handler.is_done():
            self.record.violate("T2", "the event loop ended, but the run did not")
            self.record.hung = True
            return
        await self.look_back()

    async def look_back(self) -> None:
        """Do to a run that has ended all that does not change it any more (T5, T7, S3)."""
        record = self.record
        handler = record.handler
        if not record.has_been_read:
            await self.read(Read())
        first, depth = await outcome_of(handler)
        if record.ended is None:
            record.outcome = first

        async def send() -> None:
            handler.ctx.send_event(StopEvent(result="too late"))

        async def write() -> None:
            handler.ctx.write_event_to_stream(Marker(step="", call=0, number=-1))

        async def send_from_outside() -> None:
            await handler.send_event(StopEvent(result="too late"))

        terminal = handler.get_stop_event()
        await self._expect_refusal("T7", "ctx.send_event()", send)
        await self._expect_refusal("T7", "ctx.write_event_to_stream()", write)
        await self._expect_refusal("T7", "handler.send_event()", send_from_outside)
        await self._expect_refusal("S3", "reading on", handler.stream_events().__anext__)
        await handler.cancel_run()
        second, same_depth = await outcome_of(handler)
        if first is not second or first is not record.outcome:
            shown = f"{record.outcome!r}, {first!r}, {second!r}"
            record.violate("T5", f"`await handler` gave different outcomes: {shown}")
        if depth != same_depth:
            record.violate("T5", f"its traceback grew from {depth} to {same_depth} frames")
        if handler.get_stop_event() is not terminal:
            record.violate("T7", f"{terminal!r} became {handler.get_stop_event()!r} afterwards")

    async def _expect_refusal(
        self, rule: str, what: str, act: Callable[[], Awaitable[object]]
    ) -> None:
        try:
            await act()
        except WorkflowRuntimeError:
            pass
        except StopAsyncIteration:
            self.record.violate(rule, f"{what} ended quietly, after the end of the stream")
        else:
            self.record.violate(rule, f"{what} was possible after the end")

    async def read(self, read: Read) -> None:
        """Read some of the stream."""
        record = self.record
        left = read.limit
        with anyio.move_on_after(read.patience):
            async for event in record.handler.stream_events():
                record.see(event)
                if isinstance(event, StopEvent):
                    self.check_that_it_is_over("the terminal event was read")
                self.hear(event)
                left = None if left is None else left - 1
                if left == 0:
                    break

    def hear(self, event: Event) -> None:
        """React to an event of the stream."""

    def check_that_it_is_over(self, when: str) -> None:
        """Check that the end can be seen by all, and that no step goes on (T3, T6)."""
        record = self.record
        if not record.handler.is_done() or record.handler.get_stop_event() is None:
            record.violate("T3", f"when {when}, is_done() was false")
        elif not record.has_been_read and not record.handler.statistics().unread_events:
            record.violate("T3", f"when {when}, the terminal event could not be read")
        for execution in record.executions:
            spec = execution.spec
            if execution.left is None and spec.is_async and spec.name not in record.gave_up:
                record.violate("T6", f"when {when}, step {execution} was still going on")


class _Play(_Encore):
    """One run, with those who wait for it, read it, answer it and end it."""

    def __init__(self, stage: Stage, record: Record, counter: StepCounter) -> None:
        super().__init__(record)
        self._stage = stage
        self._counter = counter
        self._answers: list[Event] = []
        self._answered = anyio.Event()

    async def perform(self) -> None:
        """Start the run, wait for its end, and look at everything."""
        record, scenario = self.record, self.record.scenario
        record.now = current_clock()
        record.begun = record.now()
        before = _running_tasks()
        workflow, start = record.workflow, self._stage.start
        record.handler = workflow.run() if start is None else workflow.run(start_event=start)
        record.tell(
            "run", f"starts, timeout {scenario.timeout:g} s" if scenario.timeout else "starts"
        )
        with anyio.CancelScope(deadline=record.begun + LIMIT) as limit:
            if scenario.end is not None and scenario.end.kind == "loop":
                await self._read_impatiently()
                await self._come_to_the_end()
                self._tell_end("ends the event loop", "loop end")
                return
            async with anyio.create_task_group() as group:
                group.start_soon(self._wait)
                group.start_soon(self._read_all)
                for number, event in enumerate(self._stage.outside):
                    group.start_soon(self._send, number, event)
                if self._stage.answer is not None:
                    group.start_soon(self._send_answers)
                await self._end_it()
            await self.look_back()
            await self._check_tasks(before)
        if limit.cancelled_caught:
            record.hung = True
        await self._wait_for_threads()

    def hear(self, event: Event) -> None:
        """Find out what the answer to an event is, and have it sent."""
        if isinstance(event, StopEvent):
            self._answered.set()
        elif self._stage.answer is not None and not isinstance(event, Marker):
            answer = self._stage.answer(event)
            if answer is not None:
                self._answers.append(answer)
                self._answered.set()

    async def _wait(self) -> None:
        record = self.record
        if not record.handler.is_done() and record.handler.get_stop_event() is not None:
            record.violate("T3", "there was a stop event before the end")
        record.outcome, _ = await outcome_of(record.handler)
        record.ended = record.now()
        record.tell("await", "is over")
        self.check_that_it_is_over("`await handler` was over")

    async def _read_all(self) -> None:
        for read in (*self.record.scenario.reads, Read()):
            if not self.record.has_been_read:
                await self.read(read)

    async def _read_impatiently(self) -> None:
        for read in self.record.scenario.reads:
            if read.patience is not None and not self.record.has_been_read:
                await self.read(read)

    async def _send(self, number: int, event: Event) -> None:
        moments = self.record.scenario.outside
        await _come(moments[number] if number < len(moments) else Moment())
        await self._send_now(event)

    async def _send_answers(self) -> None:
        number = len(self._stage.outside)
        while not self.record.has_been_read:
            await self._answered.wait()
            self._answered = anyio.Event()
            while self._answers:
                await self._send(number, self._answers.pop(0))
                number += 1

    async def _send_now(self, event: Event) -> None:
        """Send an event from outside; a run that has ended refuses it (T7)."""
        record = self.record
        await self._intrude()
        record.tell("outside", f"sends {event!r}")
        try:
            await record.handler.send_event(event)
        except WorkflowRuntimeError:
            if not record.handler.is_done():
                record.violate("T7", f"{event!r} from outside was refused during the run")
        else:
            if record.handler.is_done():
                record.violate("T7", f"{event!r} from outside was accepted after the end")

    async def _intrude(self) -> None:
        """Try to read while somebody else waits for the next event (S3)."""
        record, handler = self.record, self.record.handler
        if not handler.statistics().reader_waiting:
            return
        with anyio.move_on_after(_MOMENT):
            try:
                # One read in many lets others run first; then the event may be there, rightly.
                record.see(await anext(handler.stream_events()))
            except WorkflowRuntimeError:
                return
            except StopAsyncIteration:
                record.violate("S3", "a second reader found the stream at its end, quietly")
            return
        record.violate("S3", "a second reader was let in while one was waiting")

    async def _end_it(self) -> None:
        """End the run from outside, if the scenario says so."""
        end = self.record.scenario.end
        if end is not None and end.kind == "cancel":
            await self._cancel()
        elif end is not None:
            await self._leave_block()

    async def _cancel(self) -> None:
        handler = self.record.handler
        await self._come_to_the_end()
        self._tell_end("calls cancel_run()", "cancel")
        await handler.cancel_run()
        if not handler.is_done():
            self.record.violate("T3", "cancel_run() returned before the end")

    async def _leave_block(self) -> None:
        error = LeftEarly()
        try:
            async with self.record.handler:
                await self._come_to_the_end()
                self._tell_end("leaves the block by an exception", "cancel")
                raise error
        except LeftEarly:
            if not self.record.handler.is_done():
                self.record.violate("T3", "the block was left before the run had ended")

    def _tell_end(self, what: str, kind: CauseKind) -> None:
        self._counter.holding = False
        self.record.end_came_late = self.record.handler.is_done()
        self.record.tell("outside", what)
        self.record.note(kind)

    async def _come_to_the_end(self) -> None:
        """Wait until it is time to end the run, or until it has ended."""
        end = self.record.scenario.end
        assert end is not None
        if end.task_step is None:
            await _come(end.at)
            await self._intrude()
            return
        reached = anyio.Event()

        def stop_the_others() -> None:
            self._counter.holding = not self.record.handler.is_done()
            reached.set()

        self._counter.begin(stop_the_others, self.record.handler.is_done)
        await reached.wait()

    async def _wait_for_threads(self) -> None:
        """Let abandoned threads end, as long as there is a loop that they can call into."""
        self.record.over.set()
        for _ in range(_THREAD_CHECKS):
            if all(e.left is not None or e.spec.is_async for e in self.record.executions):
                break
            await anyio.sleep(_MOMENT)  # takes real time while threads are at work

    async def _check_tasks(self, before: set[int]) -> None:
        """Check that no task of the run is left, when its host had time to leave (T6)."""
        threads = any(not s.is_async for s in self.record.workflow.graph.steps.values())
        if self.record.gave_up or threads:  # they may begin late, go on, and call into the loop
            return
        for _ in range(5):
            await checkpoint()
        if left := _running_tasks() - before:
            names = [task.name for task in anyio.get_running_tasks() if task.id in left]
            self.record.violate("T6", f"tasks were left behind: {names}")


async def _come(moment: Moment) -> None:
    if moment.seconds:
        await anyio.sleep(moment.seconds)
    for _ in range(moment.checkpoints):
        await checkpoint()


def _running_tasks() -> set[int]:
    return {task.id for task in anyio.get_running_tasks()}


async def outcome_of(handler: Any) -> tuple[Any, int]:
    """Return what `await handler` gives or raises, and how long the traceback is.

    Being cancelled here is no outcome, it is raised.
    """
    cancelled = anyio.get_cancelled_exc_class()
    try:
        return await handler, 0
    except cancelled:
        raise
    except BaseException as exc:
        depth, traceback = 0, exc.__traceback__
        while traceback is not None:
            depth, traceback = depth + 1, traceback.tb_next
        return exc, depth
