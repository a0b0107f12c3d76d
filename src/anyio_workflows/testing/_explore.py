"""Check a workflow: play many scenarios, compare each run with the rules, shrink what fails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..events import Event, StartEvent, WorkflowTimedOutEvent
from ._checks import find_violations, has_succeeded
from ._clock import installed_backends
from ._harness import Harness, capture_logs
from ._record import Record, TerminationViolation, Violation
from ._scenario import End, EndKind, Scenario, simpler_scenarios
from ._strategies import Scope, accepts_keyword, can_end, load_hypothesis, scenarios

MOST_PLACES = 100_000

TRIES = 5
"""How often a scenario is played to see whether it breaks a rule each time."""


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

    Plays scenarios that hold up its steps, let them fail in eight ways, and end the run at some
    moment: by cancellation, with the block that owns it, with the event loop, by its deadline. Each
    run is compared with the rules T1 to T8, S1 to S3 and R2. What breaks one is shrunk to a short
    scenario. Everything happens under virtual time, in event loops of its own: call this in a plain
    function, a test for instance.

    Args:
        make_workflow: Makes a new workflow for each run, a workflow class for instance. If it takes
            `timeout` or `cleanup_timeout`, scenarios set those too.
        start: The start event, if it has fields that must be given.
        outside: Events to send to each run from outside, at moments that scenarios say.
        answer: Asked about each event of the stream; an event that it returns is sent to the run, a
            moment later. It plays the person who is asked.
        backends: Where to run; default: those that are installed.
        max_examples: How many scenarios to play on each backend.
        completes: Whether a run that is at most slowed down has to end with its stop event, not by
            a failure, a stall or its own timeout.
        seed: Makes the choice of scenarios repeatable.

    Raises:
        TerminationViolation: With the scenario that breaks a rule, and what happened then.
        WorkflowConfigurationError: If Hypothesis, or a backend, is not installed.
    """
    __tracebackhide__ = True
    with capture_logs([]):  # also of runs that are collected later
        for backend in backends or installed_backends():
            harness = Harness(make_workflow, start, outside, answer)
            _explore(_Check(harness, backend, completes), max_examples, seed)


def _explore(check: _Check, max_examples: int, seed: int | None) -> None:
    """Draw scenarios and play them; what fails is shrunk, and raised."""
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
        if check.has_spun:  # each play takes long, and `_shorten()` leaves out what it can
            raise check.violations[-1]
        check.play(scenario)

    test = hypothesis.given(scenario=scenarios(check.scope()))(settings(explore))
    if seed is not None:
        test = hypothesis.seed(seed)(test)
    try:
        test()
    except TerminationViolation:
        pass
    except hypothesis.errors.Flaky:  # on trio, tasks of one batch run in random order
        if not check.violations:
            raise
    if check.violations:
        shortest = min(check.violations, key=lambda found: len(repr(found.scenario)))
        raise _shorten(check, shortest)


def _shorten(check: _Check, found: TerminationViolation) -> TerminationViolation:
    """Leave out of a scenario what can be left out of it, and see whether it fails each time."""
    candidates = simpler_scenarios(found.scenario)
    while (candidate := next(candidates, None)) is not None:
        if (shorter := check.try_scenario(candidate)) is not None:
            found, candidates = shorter, simpler_scenarios(candidate)
    steady = all(check.try_scenario(found.scenario, tries=1) for _ in range(TRIES))
    return found.anew(steady)


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
    """Play one scenario again, as a failure of `check_termination()` or `cancel_everywhere()` names it.

    The other arguments are those of `check_termination()`.

    Returns:
        What happened, a line each: virtual time, who, what.

    Raises:
        TerminationViolation: If the run breaks a rule.
    """
    __tracebackhide__ = True
    check = _Check(Harness(make_workflow, start, outside, answer), backend, completes)
    if scenario.is_peaceful and scenario != Scenario():
        check.scope()
    return check.play(scenario).trace()


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
    tasks in random order, so there some others may come first.

    Args:
        make_workflow: Makes a new workflow for each run, a workflow class for instance.
        start: As for `check_termination()`.
        outside: As for `check_termination()`.
        answer: As for `check_termination()`.
        backends: Where to run; default: those that are installed.
        ends: How to end the run: `"cancel"`, `"loop"` (the event loop ends; left out for workflows
            with sync steps, whose threads might wait for ever for a loop that has ended).

    Returns:
        At how many places the workflow was ended.

    Raises:
        TerminationViolation: With the place, as a scenario, that breaks a rule.
    """
    __tracebackhide__ = True
    places = 0
    for backend in backends or installed_backends():
        harness = Harness(make_workflow, start, outside, answer)
        _Check(harness, backend, completes=False).play(Scenario())  # does it end by itself?
        for kind in ends:
            if not can_end(harness.make(Scenario()), kind):
                continue
            for task_step in range(1, MOST_PLACES):
                scenario = Scenario(end=End(kind, task_step=task_step))
                record = _Check(harness, backend, completes=False).play(scenario)
                if record.end_came_late:
                    break
                places += 1
    return places


class _Check:
    """Compares runs on one backend with the rules."""

    def __init__(self, harness: Harness, backend: str, completes: bool) -> None:
        self._harness = harness
        self._backend = backend
        self._completes = completes
        self._undisturbed = 0.0
        self.violations: list[TerminationViolation] = []
        self.has_spun = False

    def scope(self) -> Scope:
        """Play the empty scenario, to learn what others can speak about."""
        __tracebackhide__ = True
        record = self.play(Scenario())
        assert record.ended is not None
        self._undisturbed = record.ended - record.begun
        harness = self._harness
        waits: dict[str, int] = {}
        for execution in record.executions:
            name = execution.spec.name
            waits[name] = max(waits.get(name, 0), execution.waits)
        return Scope(
            record.workflow,
            Counter(execution.spec.name for execution in record.executions),
            waits,
            self._undisturbed,
            accepts_keyword(harness.make_workflow, "timeout"),
            accepts_keyword(harness.make_workflow, "cleanup_timeout"),
            len(harness.outside) + 3 * (harness.answer is not None),
        )

    def play(self, scenario: Scenario) -> Record:
        """Play a scenario.

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
        if self._completes and scenario.is_peaceful and not found:
            found += self._find_unfinished(record)
        if found:
            violation = TerminationViolation(found, self._backend, scenario, record.trace())
            self.violations.append(violation)
            raise violation
        return record

    def try_scenario(
        self, scenario: Scenario, tries: int | None = None
    ) -> TerminationViolation | None:
        """Play a scenario, on trio several times; returns how it broke a rule, if it did."""
        for _ in range(tries or (TRIES if self._backend == "trio" else 1)):
            try:
                self.play(scenario)
            except TerminationViolation as exc:
                return exc
        return None

    def _find_unfinished(self, record: Record) -> list[Violation]:
        terminal = record.handler.get_stop_event()
        if has_succeeded(terminal):
            return []
        if isinstance(terminal, WorkflowTimedOutEvent):
            slowed = self._undisturbed + record.scenario.seconds_lost
            if record.scenario.seconds_lost and slowed >= terminal.timeout:
                return []
        how = f"{type(record.outcome).__name__}: {record.outcome}"
        return [Violation("done", f"the run was at most slowed down, and did not finish: {how}")]


def _may_be_a_slow_thread(record: Record) -> bool:
    """Tell whether a run may have timed out because a thread took more than virtual time."""
    sync = any(not spec.is_async for spec in record.workflow.graph.steps.values())
    timed_out = isinstance(record.handler.get_stop_event(), WorkflowTimedOutEvent)
    return sync and timed_out and record.scenario.is_peaceful
