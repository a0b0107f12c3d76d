"""The toolkit's instrument: what it is told about a run, checked against I1 as it is told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Literal

import attrs

from ..events import Event
from ..handler import OpenWait
from ..instrument import (
    EventRecord,
    ExecutionRecord,
    ExecutionResult,
    Instrument,
    RunRecord,
    RunResult,
    WaitResult,
)

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
