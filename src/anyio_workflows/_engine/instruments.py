"""Telling instruments what happens in a run (I1), and the one that writes internal events (I3)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any, Literal

import attrs

from .._ledger.ledger import Ledger
from .._ledger.pending import RunPort
from .._ledger.work import OVER, QUEUED, RUNNING, WAITING, Wait, Work
from .._messages import last_line_of, short_repr
from ..context import _current_step
from ..events import (
    Event,
    ExecutionOutcome,
    StepState,
    StepStateChanged,
    UnhandledEvent,
    WorkflowIdleEvent,
)
from ..instrument import (
    EventRecord,
    ExecutionRecord,
    ExecutionResult,
    Instrument,
    RunRecord,
    RunResult,
    SentRecord,
    WaitResult,
)
from .outcome import Outcome

logger = logging.getLogger(__name__)

Hooks = tuple[tuple[Instrument, Callable[..., None]], ...]
"""The methods that are called for one kind of news, each with its instrument."""

_make = tuple.__new__
"""Makes a named tuple in half the time that its class takes."""

_HOOKS = [name for name in vars(Instrument) if not name.startswith("_")]
_ABOUT_EXECUTIONS = [name for name in _HOOKS if name.startswith(("execution_", "wait_"))]


def _methods_of(instrument: Instrument) -> dict[str, Callable[..., None]]:
    """Return the methods that an instrument overrides, by name."""
    methods = {name: getattr(instrument, name) for name in _HOOKS}
    return {
        name: method
        for name, method in methods.items()
        if getattr(method, "__func__", None) is not getattr(Instrument, name)
    }


@attrs.define(eq=False, repr=False)
class Instruments:
    """The instruments of one run.

    Attributes:
        run: The run.
        name: Name of the workflow.
        shared: Those of the workflow, for all of its runs; one that raises is removed from it.
        active: Whether any of them wants to be told anything. The engine looks at it before each call: a run
            without instruments pays one attribute.
        telling: Whether one of them is being told something: the ledger is between two states then, and
            nothing may change or save it (I2).
    """

    run: RunPort
    name: str
    shared: list[Instrument]
    active: bool = attrs.field(default=False, init=False)
    telling: bool = attrs.field(default=False, init=False)

    # What follows is there from `_begin()` on, that is, while `active` is or has been true.

    _record: RunRecord = attrs.field(init=False)
    """The run, as instruments are told about it."""

    _own: list[Instrument] = attrs.field(init=False)
    """Those of this run alone."""

    _told: list[Instrument] = attrs.field(init=False)
    """Those that are told, in order."""

    _hooks: dict[str, Hooks] = attrs.field(init=False)
    """The methods that they override, by name."""

    _executions: dict[int, ExecutionRecord] = attrs.field(init=False)
    """The attempts that have been told to be queued, and not to be over, by the id of their work."""

    _written: int = attrs.field(init=False)
    """How many public events have been told."""

    # The hooks that each execution needs. They are called in loops of their own, as `_tell()` would: an
    # instrument that does nothing then costs 1.4 us an execution instead of 1.8.
    _queued: Hooks = attrs.field(init=False)
    _started: Hooks = attrs.field(init=False)
    _ended: Hooks = attrs.field(init=False)
    _ledger: Ledger = attrs.field(init=False)
    _current_time: Callable[[], float] = attrs.field(init=False)

    def _begin(self, own: Iterable[Instrument], event: Event | None) -> None:
        run, context = self.run, _current_step()
        self._ledger, self._current_time = run.ledger, run.loop.current_time
        work = None if context is None else context._work
        self._record = RunRecord(
            run.run_id,
            self.name,
            event,
            self._current_time(),
            None if run.parent is None else run.parent.run_id,
            None if run.parent is None or work is None else work.id,
        )
        self._own = list(own)
        told = {id(one): one for one in (*self.shared, *self._own)}  # each is told once
        self._told = list(told.values())
        self._executions, self._written = {}, 0
        self._find_hooks()

    def start(self, own: Iterable[Instrument], event: Event | None) -> None:
        """Begin to tell, with the start of the run and with what it continues.

        Args:
            own: Instruments for this run alone.
            event: The start event.
        """
        self._begin(own, event)
        self._tell("run_started", self._record)
        for work in self._ledger.pending.values():
            if work.due is None:
                self._state_changed(work, QUEUED)

    def join(self, instrument: Instrument) -> list[tuple[ExecutionRecord, StepState]]:
        """Tell an instrument as well, from now on.

        Returns:
            The attempts that are queued or in progress, which it has not been told about.
        """
        if not self.active:
            self._begin((), None)
        self._own.append(instrument)
        self._told.append(instrument)
        self._find_hooks()
        present = []
        for work in self._ledger.pending.values():
            if work.due is None and not self._ledger.queues.is_held(work):
                state = QUEUED
                if work.started is not None:
                    state = WAITING if work.suspended else RUNNING
                present.append((self._executions.get(work.id) or self._new_record(work), state))
        return present

    def _find_hooks(self) -> None:
        hooks: dict[str, Hooks] = {}
        for each in self._told:
            for name, method in _methods_of(each).items():
                hooks[name] = (*hooks.get(name, ()), (each, method))
        self._hooks, self.active = hooks, bool(hooks)
        self._queued = hooks.get("execution_queued", ())
        self._started = hooks.get("execution_started", ())
        self._ended = hooks.get("execution_ended", ())
        executions = any(name in hooks for name in _ABOUT_EXECUTIONS)
        self._ledger.queues.on_change = self._state_changed if executions else None
        self._ledger.waits.on_end = self._wait_ended if executions else None

    def _tell(self, hook: str, *args: Any) -> None:
        self.telling = True
        for instrument, method in self._hooks.get(hook, ()):
            try:
                method(*args)
            except BaseException as exc:  # it must not change the run, whatever it raises (I2)
                self._take_off(instrument, hook, exc)
        self.telling = False

    def _take_off(self, instrument: Instrument, hook: str, error: BaseException) -> None:
        """Tell an instrument nothing any more, in this run and in later ones of the workflow (I2)."""
        first = any(one is instrument for one in (*self.shared, *self._own))
        for instruments in (self.shared, self._own, self._told):
            instruments[:] = [one for one in instruments if one is not instrument]
        self._find_hooks()
        if first:  # else it has raised in another run of the workflow
            what = f"raised {type(error).__name__} in {hook}() and has been taken off"
            logger.error(
                "%s: instrument %s %s", self.run, short_repr(instrument), what, exc_info=error
            )

    # --- Executions -----------------------------------------------------------------------------

    def _new_record(self, work: Work) -> ExecutionRecord:
        now, name = self._current_time(), work.queue.spec.name
        record = _make(
            ExecutionRecord,
            (self._record, work.id, work.attempt, name, work.payload, work.sources, now),
        )
        self._executions[work.id] = record
        return record

    def _state_changed(self, work: Work, state: StepState) -> None:
        if state is QUEUED:
            record = self._new_record(work)
            self.telling = True
            for instrument, told in self._queued:
                try:
                    told(record)
                except BaseException as exc:
                    self._take_off(instrument, "execution_queued", exc)
            self.telling = False
        elif state is OVER:  # dropped with its batch: nothing comes from it
            source = self._ledger.source
            self.execution_ended(work, "cancelled", None, self._current_time())
            self._ledger.source = source
        else:
            hook = "execution_suspended" if state is WAITING else "execution_resumed"
            self._tell(hook, self._executions[work.id], self._current_time())

    def execution_started(self, work: Work, now: float) -> None:
        """Tell that an attempt begins."""
        if (record := self._executions.get(work.id)) is not None:
            self.telling = True
            for instrument, told in self._started:
                try:
                    told(record, now)
                except BaseException as exc:
                    self._take_off(instrument, "execution_started", exc)
            self.telling = False

    def execution_ended(
        self,
        work: Work,
        outcome: ExecutionOutcome,
        result: Any,
        now: float,
        retry_at: float | None = None,
    ) -> None:
        """Tell that an attempt is over; what is routed next comes from it.

        Args:
            work: What was executed.
            outcome: How it ended.
            result: What it returned or raised; `None` if it was cancelled.
            now: When it ended.
            retry_at: When the next attempt is to be queued.
        """
        self._ledger.source = work.id
        if work.waits:  # of tasks that it leaves behind
            for wait in work.waits:
                self._end_wait(wait, now)
        if (record := self._executions.pop(work.id, None)) is None:
            return
        error = None
        if outcome != "returned":
            result, error = None, result
        end = _make(ExecutionResult, (outcome, result, error, work.started, now, retry_at))
        self.telling = True
        for instrument, told in self._ended:
            try:
                told(record, end)
            except BaseException as exc:
                self._take_off(instrument, "execution_ended", exc)
        self.telling = False

    def wait_started(self, wait: Wait) -> None:
        """Tell that an attempt begins to wait."""
        if record := self._executions.get(wait.work.id):
            self._tell("wait_started", record, wait.as_open(), self._current_time())

    def _wait_ended(self, wait: Wait) -> None:
        self._end_wait(wait, self._current_time())

    def _end_wait(self, wait: Wait, now: float) -> None:
        """Tell that a wait is over, unless its attempt has been told to be over."""
        if record := self._executions.get(wait.work.id):
            outcome: Literal["answered", "timed_out", "cancelled"] = "cancelled"
            if wait.over:
                outcome = "timed_out" if wait.timed_out else "answered"
            source = self._ledger.source if outcome == "answered" else None
            result = WaitResult(outcome, wait.answer, now, source)
            self._tell("wait_ended", record, wait.as_open(), result)

    # --- Events, and the run ----------------------------------------------------------------------

    def event_written(self, event: Event) -> None:
        """Tell that an event was written to the public stream."""
        self._written += 1
        if "event_written" in self._hooks:
            record = EventRecord(self._written, self._current_time(), event)
            self._tell("event_written", self._record, record)

    def sending(self, sender: Work | None) -> None:
        """Take note of which execution sends the event that is routed next."""
        self._ledger.source = None if sender is None else sender.id

    def event_sent(
        self, event: Event, taken_by: tuple[str, ...], step: str | None, wait: str | None = None
    ) -> None:
        """Tell that an event was sent."""
        now, sender = self._current_time(), self._ledger.source
        self._tell("event_sent", self._record, SentRecord(event, step, wait, taken_by, sender, now))

    def event_unhandled(self, event: Event, idle: bool) -> None:
        """Tell that no step takes an event."""
        self._tell("event_unhandled", self._record, event, idle, self._current_time())

    def idle(self) -> None:
        """Tell that the run waits for an event from outside."""
        self._tell("idle", self._record, self._current_time())

    def end_executions(self) -> None:
        """Tell that what is queued or in progress ends with the run."""
        now = self._current_time()
        for work in self._ledger.pending.values():
            self.execution_ended(work, "cancelled", None, now)

    def end_run(self, outcome: Outcome) -> None:
        """Tell that the run has ended, and nothing after that."""
        self.event_written(outcome.event)
        now = self._current_time()
        result = RunResult(outcome.kind, outcome.event, outcome.error, outcome.summary, now)
        self._tell("run_ended", self._record, result)
        # A step that outlasted the cleanup may still end.
        self._told.clear()
        self._find_hooks()


# --- The internal events ------------------------------------------------------------------------------


@attrs.define(eq=False)
class InternalEvents(Instrument):
    """Writes what it is told to the stream of the run, as events."""

    _write_event: Callable[[Event], None]

    def write_states(self, present: Iterable[tuple[ExecutionRecord, StepState]]) -> None:
        """Write the states of the executions that are queued or in progress."""
        for execution, state in present:
            self._write(execution, state)

    def execution_queued(self, execution: ExecutionRecord) -> None:
        self._write(execution, StepState.PREPARING)

    def execution_started(self, execution: ExecutionRecord, time: float) -> None:
        self._write(execution, StepState.RUNNING)

    def execution_suspended(self, execution: ExecutionRecord, time: float) -> None:
        self._write(execution, StepState.WAITING)

    def execution_resumed(self, execution: ExecutionRecord, time: float) -> None:
        self._write(execution, StepState.RUNNING)

    def execution_ended(self, execution: ExecutionRecord, result: ExecutionResult) -> None:
        returned, error = _name_of(result.returned), None
        if result.error is not None:
            error = last_line_of(result.error)
        self._write(execution, StepState.NOT_RUNNING, result.outcome, returned, error)

    def event_unhandled(self, run: RunRecord, event: Event, idle: bool, time: float) -> None:
        cls = type(event)
        name = f"{cls.__module__}.{cls.__qualname__}"
        self._write_event(UnhandledEvent(event_type=cls.__name__, qualified_name=name, idle=idle))

    def idle(self, run: RunRecord, time: float) -> None:
        self._write_event(WorkflowIdleEvent())

    def _write(
        self,
        execution: ExecutionRecord,
        state: StepState,
        outcome: ExecutionOutcome | None = None,
        returned: str | None = None,
        error: str | None = None,
    ) -> None:
        self._write_event(
            StepStateChanged(
                name=execution.step,
                step_state=state,
                worker_id=str(execution.id),
                input_event_name=execution.event_name,
                output_event_name=returned,
                attempt=execution.attempt,
                outcome=outcome,
                error=error,
            )
        )


def _name_of(result: Event | list[Event] | None) -> str | None:
    """Name what a step returned."""
    if isinstance(result, list):
        names = dict.fromkeys(type(event).__name__ for event in result)
        return f"list[{' | '.join(names)}]" if result else "[]"
    return None if result is None else type(result).__name__
