"""Random programs, interrupted at random moments, as instruments are told about them (I1, I2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_workflows import Event
from anyio_workflows.instrument import (
    EventRecord,
    ExecutionRecord,
    ExecutionResult,
    Instrument,
    RunRecord,
    RunResult,
    SentRecord,
    WaitResult,
)

from .programs import Moment, moments, play, whole_programs
from .running import on_each_backend, run_virtually

HOOKS = [name for name in vars(Instrument) if name[0] != "_"]


@attrs.define(eq=False)
class Life:
    """What has been told about one run."""

    run: RunRecord
    time: float
    written: list[Event] = attrs.field(factory=list)
    result: RunResult | None = None
    states: dict[ExecutionRecord, str] = attrs.field(factory=dict)
    waits: set[tuple[ExecutionRecord, str]] = attrs.field(factory=set)
    last: dict[int, tuple[ExecutionRecord, str]] = attrs.field(factory=dict)
    """The last attempt of each execution, and how it ended."""
    returned: dict[int, Any] = attrs.field(factory=dict)
    """What the executions returned that have ended."""

    def pass_to(self, time: float) -> None:
        assert self.result is None, "told after the end of the run"
        assert time >= self.time, "told of an earlier time than before"
        self.time = time


class Lives(Instrument):
    """Checks what it is told, and that it is all there is.

    It raises `AssertionError`, which takes it off: then a run has no end here.
    """

    def __init__(self) -> None:
        self.lives: dict[RunRecord, Life] = {}

    def run_started(self, run: RunRecord) -> None:
        assert run not in self.lives
        self.lives[run] = Life(run, run.started)

    def run_ended(self, run: RunRecord, result: RunResult) -> None:
        life = self.lives[run]
        life.pass_to(result.time)
        assert not life.states
        assert not life.waits
        assert life.written[-1] is result.event
        assert (result.error is None) == (result.outcome == "completed")
        life.result = result

    def event_written(self, run: RunRecord, record: EventRecord) -> None:
        life = self.lives[run]
        life.pass_to(record.time)
        life.written.append(record.event)
        assert record.seq == len(life.written)

    def event_sent(self, run: RunRecord, sent: SentRecord) -> None:
        self.lives[run].pass_to(sent.time)

    def event_unhandled(self, run: RunRecord, event: Event, idle: bool, time: float) -> None:
        self.lives[run].pass_to(time)

    def idle(self, run: RunRecord, time: float) -> None:
        self.lives[run].pass_to(time)

    def execution_queued(self, execution: ExecutionRecord) -> None:
        life = self.lives[execution.run]
        life.pass_to(execution.queued)
        assert all(execution.id != other.id for other in life.states)
        if execution.id in life.last:
            before, outcome = life.last[execution.id]
            assert outcome == "retrying"
            assert execution.attempt == before.attempt + 1
            assert execution.sources == before.sources
        elif execution.run.start_event is not None:
            assert execution.attempt == 1
            self._check_sources(life, execution)
        life.states[execution] = "queued"

    def _check_sources(self, life: Life, execution: ExecutionRecord) -> None:
        """The events come from the sources, and something from each; no step here sends any."""
        assert len(set(execution.sources)) == len(execution.sources)
        given = execution.event if isinstance(execution.event, Sequence) else [execution.event]
        if not given:  # a join of nothing comes from what ended its batch
            [source] = execution.sources
            assert source in life.returned
            return
        for source in execution.sources:
            returned = life.returned[source]
            if life.last[source][1] == "recovered":  # its error handler is given what it was given
                returned = given
            assert any(one is event for one in returned for event in given)
        found = [one for source in execution.sources for one in life.returned[source]]
        if not any(life.last[source][1] == "recovered" for source in execution.sources):
            assert all(any(one is event for one in found) for event in given if execution.sources)
        known = (one for returned in life.returned.values() for one in returned)
        assert execution.sources or not any(one is event for one in known for event in given)

    def execution_started(self, execution: ExecutionRecord, time: float) -> None:
        self._follow(execution, "queued", "running", time)

    def execution_suspended(self, execution: ExecutionRecord, time: float) -> None:
        self._follow(execution, "running", "suspended", time)

    def execution_resumed(self, execution: ExecutionRecord, time: float) -> None:
        self._follow(execution, "suspended", "running", time)

    def _follow(self, execution: ExecutionRecord, before: str, now: str, time: float) -> None:
        life = self.lives[execution.run]
        life.pass_to(time)
        assert life.states[execution] == before
        life.states[execution] = now

    def execution_ended(self, execution: ExecutionRecord, result: ExecutionResult) -> None:
        life = self.lives[execution.run]
        life.pass_to(result.time)
        state = life.states.pop(execution)
        assert (state == "queued") == (result.started is None)
        assert not any(waiting is execution for waiting, _ in life.waits)
        assert (result.error is not None) == (result.outcome not in ("returned", "cancelled"))
        assert (result.retry_at is not None) == (result.outcome == "retrying")
        assert result.returned is None or result.outcome == "returned"
        life.last[execution.id] = (execution, result.outcome)
        if result.started is not None:
            some = result.returned is not None
            several = isinstance(result.returned, list)
            life.returned[execution.id] = (
                result.returned if several else [result.returned] if some else []
            )

    def wait_started(self, execution: ExecutionRecord, wait: Any, time: float) -> None:
        life = self.lives[execution.run]
        life.pass_to(time)
        assert life.states[execution] == "suspended"
        assert (execution, wait.id) not in life.waits
        life.waits.add((execution, wait.id))

    def wait_ended(self, execution: ExecutionRecord, wait: Any, result: WaitResult) -> None:
        life = self.lives[execution.run]
        life.pass_to(result.time)
        life.waits.remove((execution, wait.id))
        assert (result.answer is not None) == (result.outcome == "answered")


@on_each_backend
@settings(max_examples=40)
@given(todo=whole_programs, moments=st.lists(moments, max_size=2), twice=st.booleans())
def test_i1_every_life_is_told_from_its_start_to_its_end(
    backend: str, todo: list[Any], moments: list[Moment], twice: bool
) -> None:
    lives = Lives()
    run_virtually(backend, play, todo, moments, twice, [lives])
    assert lives.lives
    assert all(life.result is not None for life in lives.lives.values())


class Bomb(Instrument):
    """Raises the n-th time it is told anything."""

    def __init__(self, left: int, error: BaseException) -> None:
        self.left, self.error = left, error


def _count(self: Bomb, *args: Any) -> None:
    self.left -= 1
    if self.left < 0:
        raise self.error


for _name in HOOKS:
    setattr(Bomb, _name, _count)

ERRORS: list[Callable[[], BaseException]] = [
    ValueError,
    KeyboardInterrupt,
    GeneratorExit,
    StopIteration,
    lambda: BaseExceptionGroup("several", [SystemExit()]),
]


@on_each_backend
@settings(max_examples=20)
@given(
    todo=whole_programs,
    moments=st.lists(moments, max_size=1),
    left=st.integers(0, 60),
    error=st.sampled_from(ERRORS),
)
def test_i2_whatever_is_raised_wherever_the_run_is_the_same(
    backend: str, todo: list[Any], moments: list[Moment], left: int, error: Any
) -> None:
    lives = Lives()
    told = run_virtually(backend, play, todo, moments, False, [Bomb(left, error()), lives])
    alone = run_virtually(backend, play, todo, moments, False)
    assert [line.result for line in told] == [line.result for line in alone]
    if backend == "asyncio":  # trio executes what is due at the same time in any order
        assert [line.finished for line in told] == [line.finished for line in alone]
    assert all(life.result is not None for life in lives.lives.values())
