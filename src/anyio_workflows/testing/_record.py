"""The record: what happened in one run, and how a broken rule is reported."""

from __future__ import annotations

import logging
import math
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

import anyio
import anyio.from_thread
import attrs

from ..context import Context
from ..errors import WorkflowRuntimeError
from ..events import Event, StopEvent
from ..graph import StepSpec
from ..handler import OpenWait, WorkflowHandler
from ..instrument import (
    EventRecord,
    ExecutionRecord,
    ExecutionResult,
    Instrument,
    RunRecord,
    RunResult,
    WaitResult,
)
from ..workflow import Workflow
from ._scenario import Scenario

# Cancellations of one execution at one virtual instant after which it counts as swallowing them in a
# loop. Under virtual time its `cleanup_timeout` would never come.
MAX_CANCELLATIONS = 100

CauseKind = Literal["stop", "failure", "stray", "bad return", "cancel", "loop end"]


class Marker(Event):
    """Written to the stream when an execution begins and ends, to see that no event is lost (S1)."""

    step: str
    call: int
    number: int


# --- How a broken rule is reported ----------------------------------------------------------------


@attrs.frozen
class Violation:
    """A rule that a run broke.

    Attributes:
        rule: Its id: `"T1"` to `"T8"`, `"S1"` to `"S3"`, `"R2"`, `"I1"`, `"V2"`, or `"done"`: a run that is
            only slowed down ends with its stop event.
        what: How it was broken, a sentence.
    """

    rule: str
    what: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.what}"


class TerminationViolation(AssertionError):
    """A run broke the termination contract.

    Attributes:
        violations: The rules that it broke.
        backend: The backend that it ran on.
        scenario: What disturbed it.
        trace: What happened in it, a line each: virtual time, source, event.
        steady: Whether the same scenario breaks a rule each time.
    """

    def __init__(
        self,
        violations: Iterable[Violation],
        backend: str,
        scenario: Scenario,
        trace: Iterable[str],
        steady: bool = True,
    ) -> None:
        self.violations = tuple(violations)
        self.backend = backend
        self.scenario = scenario
        self.trace = tuple(trace)
        self.steady = steady
        super().__init__(self.violations, backend, scenario)

    @property
    def script(self) -> Scenario:
        """The old name of `scenario`, for one more release."""
        return self.scenario

    def __str__(self) -> str:
        broken = "\n".join(map(str, self.violations))
        each_time = "" if self.steady else ", but not each time"
        trace = "".join(f"\n    {line}" for line in self.trace)
        return (
            f"{broken}\n\n  on {self.backend}{each_time}, with this scenario:\n    {self.scenario!r}\n"
            f"  to run it again: replay(make_workflow, scenario, backend={self.backend!r}, ...)\n\n"
            f"  trace (virtual seconds, source, event):{trace}"
        )


# --- What instruments are told ------------------------------------------------------------------------

State = Literal["queued", "running", "suspended"]


@attrs.define(eq=False)
class Told(Instrument):
    """What instruments are told about one run.

    Attributes:
        add_trace: Called with a source and a line for the trace of the run.
        complain: Called with a sentence that says how I1 is broken.
        started: How often each step was told to begin.
        written: The public events that were told to be written, in order.
        result: The end of the run; `None` before it is told.
    """

    add_trace: Callable[[str, str], None]
    complain: Callable[[str], None]
    started: Counter[str] = attrs.field(factory=Counter)
    written: list[Event] = attrs.field(factory=list)
    result: RunResult | None = None
    _run: RunRecord | None = None
    _states: dict[ExecutionRecord, State] = attrs.field(factory=dict)
    _waits: set[tuple[ExecutionRecord, str]] = attrs.field(factory=set)

    def run_started(self, run: RunRecord) -> None:
        """Note the start."""
        if self._run is not None:
            self.complain("the start of the run was told twice")
        self._run = run

    def run_ended(self, run: RunRecord, result: RunResult) -> None:
        """Note the end, and what has not ended before."""
        self._check_open(run, "the end of the run")
        self.result = result
        for execution in self._states:
            self.complain(f"no end of step {_name(execution)} was told")
        if not self.written or self.written[-1] is not result.event:
            self.complain("the terminal event was not told last")

    def event_written(self, run: RunRecord, record: EventRecord) -> None:
        """Note an event of the public stream."""
        self._check_open(run, repr(record.event))
        self.written.append(record.event)
        if record.seq != len(self.written):
            self.complain(f"event {len(self.written)} has the number {record.seq}")

    def event_unhandled(self, run: RunRecord, event: Event, idle: bool, time: float) -> None:
        """Add a line to the trace."""
        self._check_open(run, repr(event))
        self.add_trace("run", f"no step takes {event!r}")

    def execution_queued(self, execution: ExecutionRecord) -> None:
        """Note an attempt."""
        self._check_open(execution.run, f"step {_name(execution)}")
        if execution in self._states:
            self.complain(f"step {_name(execution)} was told twice to be queued")
        self._states[execution] = "queued"

    def execution_started(self, execution: ExecutionRecord, time: float) -> None:
        """Note that an attempt begins."""
        self._follow(execution, "queued", "running")
        self.started[execution.step] += 1

    def execution_suspended(self, execution: ExecutionRecord, time: float) -> None:
        """Note that an attempt waits."""
        self._follow(execution, "running", "suspended")

    def execution_resumed(self, execution: ExecutionRecord, time: float) -> None:
        """Note that an attempt continues."""
        self._follow(execution, "suspended", "running")

    def execution_ended(self, execution: ExecutionRecord, result: ExecutionResult) -> None:
        """Note that an attempt is over."""
        state = self._states.pop(execution, None)
        if state is None or (state == "queued") is not (result.started is None):
            self.complain(f"step {_name(execution)} was {state} when its end was told")
        if any(waiting is execution for waiting, _ in self._waits):
            self.complain(f"step {_name(execution)} was told to end before its wait")
        if result.retry_at is not None:
            self.add_trace(_name(execution), f"is retried at {result.retry_at:g} s")

    def wait_started(self, execution: ExecutionRecord, wait: OpenWait, time: float) -> None:
        """Note a wait."""
        if execution not in self._states or (execution, wait.id) in self._waits:
            self.complain(f"wait {wait.id} was told to begin twice, or after its step")
        self._waits.add((execution, wait.id))
        self.add_trace(_name(execution), f"waits for {wait.event_type.__name__}")

    def wait_ended(self, execution: ExecutionRecord, wait: OpenWait, result: WaitResult) -> None:
        """Note the end of a wait."""
        if (execution, wait.id) not in self._waits:
            self.complain(f"wait {wait.id} was told to end, and had not begun")
        self._waits.discard((execution, wait.id))
        self.add_trace(_name(execution), f"is {result.outcome}")

    def _follow(self, execution: ExecutionRecord, before: State, now: State) -> None:
        self._check_open(execution.run, f"step {_name(execution)}")
        found = self._states.get(execution)
        if found != before:
            self.complain(f"step {_name(execution)} was {found} when it was told to be {now}")
        self._states[execution] = now

    def _check_open(self, run: RunRecord, what: str) -> None:
        if self._run is not run:
            self.complain(f"{what} was told of another run, or before its start")
        if self.result is not None:
            self.complain(f"{what} was told after the end of the run")


def _name(execution: ExecutionRecord) -> str:
    return f"{execution.step}, execution {execution.id}, attempt {execution.attempt}"


# --- What happened ----------------------------------------------------------------------------------


@attrs.define(eq=False)
class Cause:
    """Something that ends the run, unless it was decided before.

    Attributes:
        kind: What it is.
        time: When it happened, in virtual seconds.
        value: The stop event, the exception, or the fault of what was returned.
        execution: The execution that caused it; `None` for what comes from outside.
        undecided_before: Whether the run said, right before, that nothing had been decided.
        exact: Whether the run learns of it at that very moment. Only causes that are exact can be
            compared by their time.
        final: Whether it ends the run for sure: no retry and no other step can recover.
    """

    kind: CauseKind
    time: float
    value: Any = None
    execution: Execution | None = None
    undecided_before: bool = True
    exact: bool = True
    final: bool = True

    def __str__(self) -> str:
        source = "outside" if self.execution is None else str(self.execution)
        return f"{self.kind} by {source} at {self.time:g} s"


@attrs.define(eq=False)
class Execution:
    """One call of a step by the run.

    Attributes:
        spec: The step.
        call: Which of its calls this is, from 1.
        ctx: Its context. No two executions that overlap share one.
        started: When it began, in virtual seconds.
        ended: When it ended; `None` while it runs, and for ever if it is abandoned.
        waits: How often its body has waited for something and got it.
        hangs: Whether it waits, unshielded, for nothing but a cancellation: that has to come in the
            instant in which the run is decided (T6).
        stray: The cancellation that it raises although no scope asked for one.
        resumed: How often its body was resumed: the one that spins leads.
        cancellations: How often it was cancelled at the virtual time `cancelled_at`, one after the other.
        cancelled_at: When it was cancelled last.
    """

    record: Record = attrs.field(repr=False)
    spec: StepSpec
    call: int
    ctx: Context
    started: float
    ended: float | None = None
    waits: int = 0
    hangs: bool = False
    stray: BaseException | None = None
    resumed: int = 0
    cancellations: int = 0
    cancelled_at: float | None = None

    @property
    def exact(self) -> bool:
        """Whether the run learns of its end in the moment when it ends.

        Not so if a thread has to come back, a scope around it has to be left, or a resource of its
        own has to be closed.
        """
        spec = self.spec
        bounded = spec.config.timeout is not None or self.record.workflow.graph.cancels_branches
        closes = not all(each.cache for each in spec.dependencies.values())
        return spec.is_async and not bounded and not closes

    def write_marker(self) -> None:
        """Write to the stream; only a run that has ended may refuse it (T7)."""
        record, step = self.record, self.spec.name
        marker = Marker(step=step, call=self.call, number=len(record.markers))
        done = record.handler.is_done()
        try:
            self.ctx.write_event_to_stream(marker)
        except WorkflowRuntimeError as exc:
            if self.exact and not done:
                refusal = f"a write of step {step} was refused during the run: {exc}"
                record.add_violation("T7", refusal)
        except RuntimeError:  # the loop that a thread calls into has ended
            if self.spec.is_async:
                raise
        else:
            record.markers.append(marker)
            if done:
                record.add_violation("T7", f"step {step} could write to the stream after the end")

    def note_cancellation(self) -> None:
        """Count a cancellation of the body, and report a body that swallows one after the other."""
        if self.cancelled_at != self.record.now():
            self.cancelled_at, self.cancellations = self.record.now(), 0
        self.cancellations += 1
        if self.cancellations == MAX_CANCELLATIONS:
            self.record.report_spinning(self)

    def check_undecided(self) -> None:
        """Check that the run was not decided before now: a wait would have been cancelled (T6)."""
        causes = self.record.deciding_causes()
        decided = min([self.record.deadline, *(cause.time for cause in causes)])
        if self.exact and decided < self.record.now():
            self.record.add_violation("T6", f"step {self} was not cancelled at {decided:g} s")

    def end_with_result(self, result: object) -> None:
        """Note that the body returned. Nothing may run between this and the return to the run."""
        self._end(f"returns {short(result)}")
        if fault := self.spec.result_fault(result):
            self._add_cause("bad return", fault)
        elif isinstance(result, StopEvent):
            self._add_cause("stop", result)

    def end_with_error(self, error: BaseException, cancelled: bool) -> None:
        """Note that the body raised.

        Args:
            error: What it raised.
            cancelled: Whether that is a cancellation, and nothing else.
        """
        stray = error is self.stray
        self._end(f"raises {short(error)}" if stray or not cancelled else "is cancelled")
        if stray:
            self._add_cause("stray", error)
        elif not cancelled:
            self._add_cause("failure", error)

    def _end(self, how: str) -> None:
        self.ended = self.record.now()
        self.record.add_trace(str(self), how)

    def _add_cause(self, kind: CauseKind, value: Any) -> None:
        recoverable = kind in ("failure", "stray") and self.record.recovers(self.spec)
        # Retries and handlers take exceptions only; a stray cancellation reaches them as one.
        if isinstance(value, BaseException) and not isinstance(value, Exception):
            recoverable = recoverable and kind == "stray"
        self.record.add_cause(kind, value, self, exact=self.exact, final=not recoverable)

    def __str__(self) -> str:
        return f"{self.spec.name} #{self.call}"


@attrs.define(eq=False)
class Record:
    """What happened in one run.

    Written by the harness and by the instrumented steps, in the event loop and in worker threads. Threads
    only append to the lists, and set fields of their own execution.

    Attributes:
        workflow: The workflow.
        scenario: What disturbs its run.
        backend: The backend that it runs on.
        now: Returns the virtual time, in any thread.
        handler: The handler of the run.
        started: When it began, in virtual seconds.
        ended: When `await handler` was over; `None` if the loop ended before.
        outcome: What `await handler` returned or raised.
        hung: Whether the run did not end.
        end_came_late: Whether the run had ended by itself when the scenario wanted to end it.
        executions: The calls of its steps, in the order in which they began.
        causes: What could end it, in the order in which it happened.
        markers: What the toolkit wrote to the stream, in order.
        read_events: What was read from the stream, in order, by all readers.
        library_log: What the library logged meanwhile, from WARNING on.
        violations: The rules that were seen to be broken during the run.
        told: What instruments were told about it (I1).
        spinning: Whether the clock stands still because something spins. From then on the bodies of
            the steps are dropped, so that the run can end.
        closed: Set when the run has been examined; threads that hang wait for it.
    """

    workflow: Workflow[Any]
    scenario: Scenario
    backend: str
    now: Callable[[], float] = anyio.current_time
    handler: WorkflowHandler[Any] = attrs.field(init=False)
    started: float = 0.0
    ended: float | None = None
    outcome: Any = None
    hung: bool = False
    end_came_late: bool = False
    executions: list[Execution] = attrs.field(factory=list)
    causes: list[Cause] = attrs.field(factory=list)
    markers: list[Marker] = attrs.field(factory=list)
    read_events: list[Event] = attrs.field(factory=list)
    library_log: list[logging.LogRecord] = attrs.field(factory=list)
    violations: list[Violation] = attrs.field(factory=list)
    told: Told = attrs.field(
        init=False,
        default=attrs.Factory(
            lambda record: Told(record.add_trace, partial(record.add_violation, "I1")),
            takes_self=True,
        ),
    )
    spinning: bool = False
    closed: threading.Event = attrs.field(factory=threading.Event)
    _cannot_be_stopped: bool = False
    _trace: list[tuple[float, str, str]] = attrs.field(factory=list)

    @property
    def deadline(self) -> float:
        """When the run has to time out; infinite if the scenario does not say."""
        timeout = self.scenario.timeout
        return math.inf if timeout is None else self.started + timeout

    @property
    def has_been_read(self) -> bool:
        """Whether the terminal event has been read."""
        return bool(self.read_events) and isinstance(self.read_events[-1], StopEvent)

    @property
    def run_log(self) -> list[logging.LogRecord]:
        """What the library logged about this run; others may be collected at the same time."""
        return [line for line in self.library_log if self.handler.run_id in line.getMessage()]

    @property
    def gave_up_warning(self) -> str:
        """The warning that names the steps which were given up; `""` if there was none."""
        messages = (line.getMessage() for line in self.run_log)
        return next((text for text in messages if "gave up waiting for steps" in text), "")

    def recovers(self, spec: StepSpec) -> bool:
        """Tell whether the run may continue when this step fails: by a retry, or an error handler."""
        if getattr(spec.config, "retry_policy", None) is not None:
            return True
        steps = self.workflow.graph.steps.values()
        return any(t.__name__ == "StepFailedEvent" for step in steps for t in step.accepts)

    def begin_execution(self, spec: StepSpec) -> Execution | None:
        """Note that a step is called.

        Returns:
            The execution; `None` if the call is not one of the run's own: another step called it, which
            has its context, or another run did.
        """
        try:
            ctx = Context.get_step_context()
        except WorkflowRuntimeError:
            return None
        running = [execution for execution in self.executions if execution.ended is None]
        if ctx.run_id != self.handler.run_id or any(e.ctx is ctx for e in running):
            return None
        call = sum(execution.spec is spec for execution in self.executions) + 1
        execution = Execution(self, spec, call, ctx, self.now())
        self.executions.append(execution)
        self.add_trace(str(execution), "begins")
        self._check_begin(execution)
        return execution

    def _check_begin(self, execution: Execution) -> None:
        """Check that the step may begin: the run is undecided, and a slot is free (T4, R2)."""
        spec = execution.spec
        if spec.is_async:
            if decided := self.deciding_causes():
                late = f"step {spec.name} began after the run was decided, {decided[0]}"
                self.add_violation("T4", late)
            elif self.now() >= self.deadline:
                self.add_violation("T4", f"step {spec.name} began after the deadline")
            statistics = self.handler.statistics()
        elif spec.config.timeout is not None or self.workflow.graph.cancels_branches:
            return  # abandoned threads do not count, and cannot be told from the others
        elif self.handler.is_done():
            return
        else:
            try:
                statistics = anyio.from_thread.run_sync(self.handler.statistics)
            except RuntimeError:  # the loop has ended meanwhile
                return
        running = sum(e.spec is spec and e.ended is None for e in self.executions)
        running -= statistics.steps[spec.name].waiting  # a suspended step has no slot
        limit = spec.config.num_workers
        if running > limit:
            too_many = f"step {spec.name} is executed {running} times at once, not {limit}"
            self.add_violation("R2", too_many)

    def deciding_causes(self) -> list[Cause]:
        """Return the causes that have decided how the run ends, if there are any.

        The end of the loop is not one of them: the tasks learn of it one after the other, and may do
        something until then.
        """
        return [c for c in self.causes if c.exact and c.final and c.kind != "loop end"]

    def add_cause(
        self,
        kind: CauseKind,
        value: Any = None,
        execution: Execution | None = None,
        *,
        exact: bool = True,
        final: bool = True,
    ) -> None:
        """Note something that ends the run, unless it was decided before."""
        # A thread cannot ask the run, and what it does is not exact.
        in_loop = execution is None or execution.spec.is_async
        undecided = in_loop and not self.handler.is_done() and self.handler.ctx.is_running
        self.causes.append(Cause(kind, self.now(), value, execution, undecided, exact, final))

    def add_read_event(self, event: Event) -> None:
        """Note that an event was read from the stream."""
        self.read_events.append(event)
        if not isinstance(event, Marker):
            self.add_trace("stream", short(event))

    def add_violation(self, rule: str, what: str) -> None:
        """Note that a rule was broken."""
        self.violations.append(Violation(rule, what))
        self.add_trace("!", f"{rule}: {what}")

    def report_spinning(self, swallowing: Execution | None = None) -> None:
        """Note that the clock stands still.

        Called again while it does. The second time the bodies of the steps have been dropped already, so
        what spins is out of reach.

        Args:
            swallowing: The execution that swallows its cancellation in a loop; `None` if a task just
                keeps running.
        """
        if self.spinning:
            if swallowing is None and not self._cannot_be_stopped:
                self._cannot_be_stopped = True
                print(
                    f"{self.violations[-1]}\nIt cannot be stopped: end this program",
                    file=sys.stderr,
                )
            return
        self.spinning = True
        if swallowing is not None:
            self.add_violation(
                "T6",
                f"step {swallowing} swallows its cancellation again and again, so its run could only "
                "give it up; raise the cancellation again, or leave the loop",
            )
            return
        running = [e for e in self.executions if e.ended is None and e.spec.is_async]
        busiest = max(running, key=lambda execution: execution.resumed, default=None)
        source = "something other than a step" if busiest is None else f"step {busiest}"
        self.add_violation(
            "V2",
            f"{source} keeps running while no time passes; let it sleep, or wait for what it polls",
        )

    def add_trace(self, source: str, what: str) -> None:
        """Add a line to the trace."""
        self._trace.append((self.now(), source, what))

    def format_trace(self) -> list[str]:
        """Return what happened, a line each: virtual time, source, event."""
        width = max((len(source) for _, source, _ in self._trace), default=0)
        return [f"{time:9.3f}  {source:<{width}}  {what}" for time, source, what in self._trace]


def short(value: object, most: int = 100) -> str:
    """Return the repr of a value on one line, shortened."""
    shown = " ".join(repr(value).split())
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."
