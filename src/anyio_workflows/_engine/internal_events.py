"""The internal events of a run, which `stream_events(expose_internal=True)` shows (S4, I3)."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from .._messages import text_of
from ..events import (
    Event,
    ExecutionOutcome,
    StepState,
    StepStateChanged,
    UnhandledEvent,
    WorkflowIdleEvent,
)
from ..instrument import ExecutionRecord, ExecutionResult, Instrument, RunRecord
from .stream import EventStream


@attrs.define(eq=False)
class InternalEvents(Instrument):
    """Writes what it is told to the stream of the run, as events."""

    _stream: EventStream

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
            error = _last_line_of(result.error)
        self._write(execution, StepState.NOT_RUNNING, result.outcome, returned, error)

    def event_unhandled(self, run: RunRecord, event: Event, idle: bool, time: float) -> None:
        cls = type(event)
        name = f"{cls.__module__}.{cls.__qualname__}"
        self._stream.write(UnhandledEvent(event_type=cls.__name__, qualified_name=name, idle=idle))

    def idle(self, run: RunRecord, time: float) -> None:
        self._stream.write(WorkflowIdleEvent())

    def _write(
        self,
        execution: ExecutionRecord,
        state: StepState,
        outcome: ExecutionOutcome | None = None,
        returned: str | None = None,
        error: str | None = None,
    ) -> None:
        self._stream.write(
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


def _last_line_of(error: BaseException) -> str:
    """Return the last line of the traceback of an exception."""
    text = text_of(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
