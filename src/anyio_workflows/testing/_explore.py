"""Search for a scenario in which a workflow breaks a rule, and make the one that is found short."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..events import Event, StartEvent, WorkflowTimedOutEvent
from ._checks import find_violations, has_succeeded
from ._clock import installed_backends
from ._harness import Harness, capture_logs
from ._record import Record, TerminationViolation, Violation
from ._scenario import (
    End,
    EndKind,
    Scenario,
    ScenarioSpace,
    can_end,
    load_hypothesis,
    scenarios,
    simpler_scenarios,
)

# Task steps after which `cancel_everywhere()` stops trying later ones.
MAX_TASK_STEPS = 100_000

# How often a scenario is run where chance may decide whether it breaks a rule.
TRIES = 5


def check_termination(
    make_workflow: Callable[..., Any],
    *,
    start: StartEvent | None = None,
    outside: Sequence[Event] = (),
    answer: Callable[[Event], Event | None] | None = None,
    backends: Iterable[str] | None = None,
    max_examples: int = 200,
    completes: bool = True,
    seed: int | None = None,
) -> None:
    """Check that the runs of a workflow end as promised, whatever happens to them.

    Runs the workflow under random scenarios. They pause its steps, let them fail in eight ways, and
    end the run at some moment: by cancellation, with the block that owns it, with the event loop, by
    its deadline. Each run is compared with the rules T1 to T8, S1 to S3, R2 and I1. A scenario that breaks
    one is shrunk to a short one. Everything happens under virtual time, in event loops of its own:
    call this in a plain function, a test for instance.

    Args:
        make_workflow: Makes a new workflow for each run, a workflow class for instance. If it takes
            `timeout` or `cleanup_timeout`, scenarios set those too.
        start: The start event, if it has fields that must be given.
        outside: Events to send to each run from outside, at moments that the scenario chooses.
        answer: Called with each event of the stream; the event that it returns is sent to the run, a
            moment later. It stands in for the person who is asked.
        backends: Where to run; default: those that are installed.
        max_examples: The number of scenarios on each backend.
        completes: Whether a run that is only slowed down has to end with its stop event, not by
            a failure, a stall or its own timeout.
        seed: Makes the choice of scenarios repeatable.

    Raises:
        TerminationViolation: With the scenario that breaks a rule, and what happened in its run.
        WorkflowConfigurationError: If Hypothesis, or a backend, is not installed.
    """
    __tracebackhide__ = True
    with capture_logs([]):  # also what runs log that are collected later
        for backend in backends or installed_backends():
            harness = Harness(make_workflow, start, outside, answer)
            _explore(_Checker(harness, backend, completes), max_examples, seed)


def _explore(checker: _Checker, max_examples: int, seed: int | None) -> None:
    """Draw scenarios and run them; raise the shortest violation."""
    __tracebackhide__ = True
    hypothesis = load_hypothesis()
    settings = hypothesis.settings(
        max_examples=max_examples,
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
        deadline=None,
        database=None,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(hypothesis.HealthCheck),
    )

    def explore(scenario: Scenario) -> None:
        if checker.has_spun:  # each run takes long now, and `_shrink()` needs fewer of them
            raise checker.violations[-1]
        checker.run(scenario)

    test = hypothesis.given(scenario=scenarios(checker.measure()))(settings(explore))
    if seed is not None:
        test = hypothesis.seed(seed)(test)
    try:
        test()
    except TerminationViolation:
        pass
    except hypothesis.errors.Flaky:  # on trio, tasks of one batch run in random order
        if not checker.violations:
            raise
    # Hypothesis shrinks what it drew, and gives up on what fails only sometimes. So any violation
    # that was seen counts, and the last word is `_shrink()`'s.
    if checker.violations:
        shortest = min(checker.violations, key=lambda found: len(repr(found.scenario)))
        raise _shrink(checker, shortest)


def _shrink(checker: _Checker, found: TerminationViolation) -> TerminationViolation:
    """Leave out of a scenario what can be left out, and find out whether it fails each time."""
    candidates = simpler_scenarios(found.scenario)
    while (candidate := next(candidates, None)) is not None:
        if (simpler := checker.try_scenario(candidate)) is not None:
            found, candidates = simpler, simpler_scenarios(candidate)
    steady = all(checker.try_scenario(found.scenario, tries=1) for _ in range(TRIES))
    # A new exception: Hypothesis has added notes and a traceback to those that it saw.
    return TerminationViolation(
        found.violations, found.backend, found.scenario, found.trace, steady
    )


def replay(
    make_workflow: Callable[..., Any],
    scenario: Scenario,
    *,
    backend: str = "asyncio",
    start: StartEvent | None = None,
    outside: Sequence[Event] = (),
    answer: Callable[[Event], Event | None] | None = None,
    completes: bool = True,
) -> list[str]:
    """Run one scenario again, as a failure of `check_termination()` or `cancel_everywhere()` shows it.

    The other arguments are those of `check_termination()`.

    Returns:
        The trace: a line for each thing that happened, with the virtual time and its source.

    Raises:
        TerminationViolation: If the run breaks a rule.
    """
    __tracebackhide__ = True
    checker = _Checker(Harness(make_workflow, start, outside, answer), backend, completes)
    if scenario.only_delays and scenario != Scenario():
        checker.measure()  # which the rule `done` compares with
    return checker.run(scenario).format_trace()


def cancel_everywhere(
    make_workflow: Callable[..., Any],
    *,
    start: StartEvent | None = None,
    outside: Sequence[Event] = (),
    answer: Callable[[Event], Event | None] | None = None,
    backends: Iterable[str] | None = None,
    ends: Iterable[EndKind] = ("cancel", "loop"),
) -> int:
    """End a workflow at each of its checkpoints in turn, and compare each run with the rules.

    Counts the task steps in the event loop, where a task runs from one checkpoint to the next. The
    run is ended after the first of them, in another run after the second, and so on, until the run
    ends undisturbed. On asyncio nothing else happens between the task step and the end; trio runs
    tasks in random order, so some others may come first.

    Args:
        make_workflow: Makes a new workflow for each run, a workflow class for instance.
        start: As for `check_termination()`.
        outside: As for `check_termination()`.
        answer: As for `check_termination()`.
        backends: Where to run; default: those that are installed.
        ends: How to end the run: `"cancel"`, `"loop"` (the event loop ends; left out for workflows
            with sync steps, whose threads might wait for ever for a loop that has ended).

    Returns:
        The number of places at which the workflow was ended.

    Raises:
        TerminationViolation: With the place, as a scenario, that breaks a rule.
    """
    __tracebackhide__ = True
    places = 0
    for backend in backends or installed_backends():
        harness = Harness(make_workflow, start, outside, answer)
        checker = _Checker(harness, backend, completes=False)
        checker.run(Scenario())  # does it end by itself?
        for kind in ends:
            if not can_end(harness.make(Scenario()), kind):
                continue
            for task_step in range(1, MAX_TASK_STEPS):
                if checker.run(Scenario(end=End(kind, task_step=task_step))).end_came_late:
                    break
                places += 1
    return places


class _Checker:
    """Runs scenarios on one backend, and compares each run with the rules.

    Attributes:
        violations: Every run that broke a rule, in order.
        has_spun: Whether something was spinning in one of the runs.
    """

    def __init__(self, harness: Harness, backend: str, completes: bool) -> None:
        self._harness = harness
        self._backend = backend
        self._completes = completes
        self._undisturbed_seconds = 0.0
        self.violations: list[TerminationViolation] = []
        self.has_spun = False

    def measure(self) -> ScenarioSpace:
        """Run the empty scenario, to learn which other ones make a difference."""
        __tracebackhide__ = True
        record = self.run(Scenario())
        assert record.ended is not None
        self._undisturbed_seconds = record.ended - record.started
        harness = self._harness
        waits: dict[str, int] = {}
        for execution in record.executions:
            name = execution.spec.name
            waits[name] = max(waits.get(name, 0), execution.waits)
        return ScenarioSpace(
            record.workflow,
            calls=Counter(execution.spec.name for execution in record.executions),
            waits=waits,
            seconds=self._undisturbed_seconds,
            timeout=_accepts_keyword(harness.make_workflow, "timeout"),
            cleanup_timeout=_accepts_keyword(harness.make_workflow, "cleanup_timeout"),
            # How many questions a disturbed run asks is not known; three answers get moments.
            outside=len(harness.outside) + 3 * (harness.answer is not None),
        )

    def run(self, scenario: Scenario) -> Record:
        """Run a scenario.

        Raises:
            TerminationViolation: If the run breaks a rule.
        """
        __tracebackhide__ = True
        record = self._harness.run(scenario, self._backend)
        self.has_spun = self.has_spun or record.spinning
        found = find_violations(record)
        for _ in range(TRIES):
            if found or not _may_be_a_slow_thread(record):
                break
            record = self._harness.run(scenario, self._backend)
            found = find_violations(record)
        if self._completes and scenario.only_delays and not found:
            found += self._check_done(record)
        if found:
            violation = TerminationViolation(found, self._backend, scenario, record.format_trace())
            self.violations.append(violation)
            raise violation
        return record

    def try_scenario(
        self, scenario: Scenario, tries: int | None = None
    ) -> TerminationViolation | None:
        """Run a scenario, on trio several times; return the violation, if there was one."""
        for _ in range(tries or (TRIES if self._backend == "trio" else 1)):
            try:
                self.run(scenario)
            except TerminationViolation as exc:
                return exc
        return None

    def _check_done(self, record: Record) -> list[Violation]:
        """The rule `done`: a run that is only slowed down ends with its stop event."""
        terminal = record.handler.get_stop_event()
        if has_succeeded(terminal):
            return []
        if isinstance(terminal, WorkflowTimedOutEvent):
            # The scenario may have cost it the time that was left until its own deadline.
            slowed = self._undisturbed_seconds + record.scenario.seconds_lost
            if record.scenario.seconds_lost and slowed >= terminal.timeout:
                return []
        how = f"{type(record.outcome).__name__}: {record.outcome}"
        return [Violation("done", f"the run was at most slowed down, and did not finish: {how}")]


def _may_be_a_slow_thread(record: Record) -> bool:
    """Tell whether a run may have timed out because a thread took longer than the clock waited."""
    sync = any(not spec.is_async for spec in record.workflow.graph.steps.values())
    timed_out = isinstance(record.handler.get_stop_event(), WorkflowTimedOutEvent)
    return sync and timed_out and record.scenario.only_delays


def _accepts_keyword(make: Callable[..., object], name: str) -> bool:
    parameters = inspect.signature(make).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())
