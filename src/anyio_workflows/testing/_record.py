"""What happened in one run: executions, causes, events; and how a violated rule is reported."""

from __future__ import annotations

import logging
import math
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any, Literal

import anyio
import anyio.from_thread
import attrs

from ..context import Context
from ..errors import WorkflowRuntimeError
from ..events import Event, StopEvent
from ..graph import StepSpec
from ..handler import WorkflowHandler
from ..workflow import Workflow
from ._scenario import Scenario

MOST_CANCELLATIONS = 100
"""A step that is cancelled more often, one after the other, swallows that in a loop."""

CauseKind = Literal["stop", "failure", "stray", "bad return", "cancel", "loop end"]


class Marker(Event):
    """What the toolkit writes to the stream in each execution, to see what becomes of it."""

    step: str
    call: int
    number: int


@attrs.frozen
class Violation:
    """A rule that a run broke.

    Attributes:
        rule: Its id: `"T1"` to `"T8"`, `"S1"` to `"S3"`, `"R2"`, or `"done"`: a run that nothing
            disturbs ends with its stop event.
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
        backend: Where.
        scenario: What disturbed it.
        trace: What happened, a line each: virtual time, who, what.
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
            f"  try it again with replay(make_workflow, scenario, backend={self.backend!r}, ...)\n\n"
            f"  what happened (virtual seconds, who, what):{trace}"
        )


@attrs.define(eq=False)
class Cause:
    """Something that would end the run if nothing else had.

    Attributes:
        kind: What it is.
        time: When.
        value: The stop event, the exception, or the fault of what was returned.
        execution: The execution that caused it, if one did.
        first: Whether the run said, right before, that nothing had been decided.
        exact: Whether the run decides at that very moment. What a thread does it learns later.
        final: Whether it ends the run for sure: no retry and no other step can recover.
    """

    kind: CauseKind
    time: float
    value: Any = None
    execution: Execution | None = None
    first: bool = True
    exact: bool = True
    final: bool = True

    def __str__(self) -> str:
        who = "outside" if self.execution is None else str(self.execution)
        return f"{self.kind} by {who} at {self.time:g} s"


@attrs.define(eq=False)
class Execution:
    """One call of a step by the run.

    Attributes:
        spec: The step.
        call: Which of its calls this is, from 1.
        ctx: Its context.
        entered: When it began, in virtual seconds.
        left: When it ended.
        waits: How often its body has waited for something.
        must_wake: Whether it hangs where a cancellation has to reach it at once.
        injected: The stray cancellation that it raises.
        resumed: How often its body was resumed.
        cancellations: How often it was cancelled at the virtual time `cancelled_at`, one after the other.
    """

    record: Record = attrs.field(repr=False)
    spec: StepSpec
    call: int
    ctx: Context
    entered: float
    left: float | None = None
    waits: int = 0
    must_wake: bool = False
    injected: BaseException | None = None
    resumed: int = 0
    cancellations: int = 0
    cancelled_at: float | None = None

    @property
    def exact(self) -> bool:
        """Whether the run takes note of its end in the moment when it ends."""
        spec = self.spec
        bounded = spec.config.timeout is not None or self.record.workflow.graph.cancels_branches
        closes = not all(each.cache for each in spec.dependencies.values())
        return spec.is_async and not bounded and not closes

    def write(self) -> None:
        """Write to the stream; a run that has ended refuses that (T7)."""
        record, step = self.record, self.spec.name
        event = Marker(step=step, call=self.call, number=len(record.written))
        done = record.handler.is_done()
        try:
            self.ctx.write_event_to_stream(event)
        except WorkflowRuntimeError as exc:
            if self.exact and not done:
                record.violate("T7", f"a write of step {step} was refused during the run: {exc}")
        except RuntimeError:
            if self.spec.is_async:
                raise
        else:
            record.written.append(event)
            if done:
                record.violate("T7", f"step {step} could write to the stream after the end")

    def note_cancellation(self) -> None:
        """Note that its body is cancelled, perhaps once more since it swallows that."""
        if self.cancelled_at != self.record.now():
            self.cancelled_at, self.cancellations = self.record.now(), 0
        self.cancellations += 1
        if self.cancellations == MOST_CANCELLATIONS:
            self.record.note_spinning(self)

    def expect_undecided(self) -> None:
        """Check that the run was not decided before now: that would have cancelled a wait (T6)."""
        causes = self.record.deciding_causes()
        decided = min([self.record.deadline, *(cause.time for cause in causes)])
        if self.exact and decided < self.record.now():
            self.record.violate("T6", f"step {self} was not cancelled at {decided:g} s")

    def leave_with(self, result: object) -> None:
        """Note that the body returned; to be called in the moment before the run learns of it."""
        self._leave(f"returns {_short(result)}")
        if fault := self.spec.result_fault(result):
            self._note("bad return", fault)
        elif isinstance(result, StopEvent):
            self._note("stop", result)

    def leave_by(self, error: BaseException, cancelled: bool) -> None:
        """Note that the body raised.

        Args:
            error: What it raised.
            cancelled: Whether that is nothing but a cancellation.
        """
        stray = error is self.injected
        self._leave(f"raises {_short(error)}" if stray or not cancelled else "is cancelled")
        if stray:
            self._note("stray", error)
        elif not cancelled:
            self._note("failure", error)

    def _leave(self, how: str) -> None:
        self.left = self.record.now()
        self.record.tell(str(self), how)

    def _note(self, kind: CauseKind, value: Any) -> None:
        recoverable = kind in ("failure", "stray") and self.record.recovers(self.spec)
        if isinstance(value, BaseException) and not isinstance(value, Exception):
            recoverable = recoverable and kind == "stray"
        self.record.note(kind, value, self, exact=self.exact, final=not recoverable)

    def __str__(self) -> str:
        return f"{self.spec.name} #{self.call}"


@attrs.define(eq=False)
class Record:
    """What happened in one run.

    Attributes:
        workflow: The workflow.
        scenario: What disturbs its run.
        backend: The backend that it runs on.
        now: Tells the virtual time, in any thread.
        handler: The run.
        begun: When it began, in virtual seconds.
        ended: When `await handler` was over; `None` if the loop ended before.
        outcome: What `await handler` returned or raised.
        hung: Whether the run did not end.
        end_came_late: Whether the run had ended when the scenario wanted to end it.
        executions: The calls of its steps, in order.
        causes: What would have ended it, in order.
        written: What the toolkit wrote to the stream, in order.
        seen: What was read from the stream, in order.
        all_logged: What the library logged meanwhile.
        violations: The rules that were seen to be broken on the way.
        spinning: Whether the clock stood still because something spins. Then the bodies of the steps
            are left alone, so that the run can end.
        over: Set when nobody looks any more; threads wait for it.
    """

    workflow: Workflow[Any]
    scenario: Scenario
    backend: str
    now: Callable[[], float] = anyio.current_time
    handler: WorkflowHandler[Any] = attrs.field(init=False)
    begun: float = 0.0
    ended: float | None = None
    outcome: Any = None
    hung: bool = False
    end_came_late: bool = False
    executions: list[Execution] = attrs.field(factory=list)
    causes: list[Cause] = attrs.field(factory=list)
    written: list[Marker] = attrs.field(factory=list)
    seen: list[Event] = attrs.field(factory=list)
    all_logged: list[logging.LogRecord] = attrs.field(factory=list)
    violations: list[Violation] = attrs.field(factory=list)
    spinning: bool = False
    over: threading.Event = attrs.field(factory=threading.Event)
    _given_up: bool = False
    _told: list[tuple[float, str, str]] = attrs.field(factory=list)

    @property
    def deadline(self) -> float:
        """When the run has to time out; infinite if the scenario does not say."""
        timeout = self.scenario.timeout
        return math.inf if timeout is None else self.begun + timeout

    @property
    def has_been_read(self) -> bool:
        """Whether the terminal event has been read."""
        return bool(self.seen) and isinstance(self.seen[-1], StopEvent)

    @property
    def logged(self) -> list[logging.LogRecord]:
        """What the library logged about this run."""
        return [line for line in self.all_logged if self.handler.run_id in line.getMessage()]

    @property
    def gave_up(self) -> str:
        """The warning that names the steps which were given up; `""` if there was none."""
        said = (logged.getMessage() for logged in self.logged)
        return next((text for text in said if "gave up waiting for steps" in text), "")

    def recovers(self, spec: StepSpec) -> bool:
        """Tell whether the run may go on when this step fails: retries, steps that catch errors."""
        if getattr(spec.config, "retry_policy", None) is not None:
            return True
        steps = self.workflow.graph.steps.values()
        return any(t.__name__ == "StepFailedEvent" for step in steps for t in step.accepts)

    def enter(self, spec: StepSpec) -> Execution | None:
        """Note that a step is called.

        Returns:
            The execution; `None` if the run did not call it, but a step, or another run.
        """
        try:
            ctx = Context.get_step_context()
        except WorkflowRuntimeError:
            return None
        busy = [execution for execution in self.executions if execution.left is None]
        if ctx.run_id != self.handler.run_id or any(e.ctx is ctx for e in busy):
            return None
        call = sum(execution.spec is spec for execution in self.executions) + 1
        execution = Execution(self, spec, call, ctx, self.now())
        self.executions.append(execution)
        self.tell(str(execution), "begins")
        self._check_start(execution)
        return execution

    def _check_start(self, execution: Execution) -> None:
        """Check that there is time for another execution, and room (T4, R2)."""
        spec = execution.spec
        if spec.is_async:
            if decided := self.deciding_causes():
                self.violate(
                    "T4", f"step {spec.name} began after the run was decided, {decided[0]}"
                )
            elif self.now() >= self.deadline:
                self.violate("T4", f"step {spec.name} began after the deadline")
            statistics = self.handler.statistics()
        elif spec.config.timeout is not None or self.workflow.graph.cancels_branches:
            return  # threads that were abandoned do not count, and cannot be told
        elif self.handler.is_done():
            return
        else:
            try:
                statistics = anyio.from_thread.run_sync(self.handler.statistics)
            except RuntimeError:  # the loop has ended meanwhile
                return
        active = sum(e.spec is spec and e.left is None for e in self.executions)
        active -= statistics.steps[spec.name].waiting
        limit = spec.config.num_workers
        if active > limit:
            self.violate("R2", f"step {spec.name} is executed {active} times at once, not {limit}")

    def deciding_causes(self) -> list[Cause]:
        """Return the causes that have decided how the run ends, if there are any.

        The loop's end is none: the tasks learn of it one after the other.
        """
        return [c for c in self.causes if c.exact and c.final and c.kind != "loop end"]

    def note(
        self,
        kind: CauseKind,
        value: Any = None,
        execution: Execution | None = None,
        *,
        exact: bool = True,
        final: bool = True,
    ) -> None:
        """Note something that ends the run unless it is decided already."""
        # A thread cannot ask, and what it does is not exact.
        in_loop = execution is None or execution.spec.is_async
        first = in_loop and not self.handler.is_done() and self.handler.ctx.is_running
        self.causes.append(Cause(kind, self.now(), value, execution, first, exact, final))

    def see(self, event: Event) -> None:
        """Note that an event was read from the stream."""
        self.seen.append(event)
        if not isinstance(event, Marker):
            self.tell("stream", _short(event))

    def violate(self, rule: str, what: str) -> None:
        """Note that a rule was broken."""
        self.violations.append(Violation(rule, what))
        self.tell("!", f"{rule}: {what}")

    def note_spinning(self, swallowing: Execution | None = None) -> None:
        """Note that the clock stands still, since a task goes on and on, or swallows its cancellation."""
        if self.spinning:
            if swallowing is None and not self._given_up:
                self._given_up = True
                print(
                    f"{self.violations[-1]}\nIt cannot be stopped: end this program",
                    file=sys.stderr,
                )
            return
        self.spinning = True
        if swallowing is not None:
            self.violate(
                "T6",
                f"step {swallowing} swallows its cancellation again and again, so its run could only "
                "give it up; raise the cancellation again, or leave the loop",
            )
            return
        alive = [e for e in self.executions if e.left is None and e.spec.is_async]
        busiest = max(alive, key=lambda execution: execution.resumed, default=None)
        who = "something other than a step" if busiest is None else f"step {busiest}"
        self.violate(
            "V2",
            f"{who} goes on and on while no time passes; let it sleep, or wait for what it polls",
        )

    def tell(self, who: str, what: str) -> None:
        """Add a line to the trace."""
        self._told.append((self.now(), who, what))

    def trace(self) -> list[str]:
        """Return what happened, a line each."""
        width = max((len(who) for _, who, _ in self._told), default=0)
        return [f"{time:9.3f}  {who:<{width}}  {what}" for time, who, what in self._told]


def _short(value: object) -> str:
    shown = " ".join(repr(value).split())
    return shown if len(shown) <= 100 else f"{shown[:97]}..."
