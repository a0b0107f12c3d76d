"""Scenarios, what disturbs one run: how they are written, drawn at random and made simpler.

A scenario is plain data. Its repr is the code that makes it again. Hypothesis is imported when the
first strategy is asked for, so that the rest of the toolkit does without it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

import attrs

from ..errors import WorkflowConfigurationError
from ..workflow import Workflow

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

# --- Written --------------------------------------------------------------------------------------------

FaultKind = Literal[
    "raise",
    "raise after",
    "raise in cleanup",
    "stray cancellation",
    "hang",
    "slow cleanup",
    "swallow cancellation",
    "write in cleanup",
]

# Faults that a sync step cannot have: its thread is abandoned, not cancelled.
_ASYNC_ONLY = frozenset({"raise in cleanup", "slow cleanup", "swallow cancellation"})

EndKind = Literal["cancel", "block", "loop"]


class ReprAsCode:
    """A repr that is the call which makes the object; what has its default is left out."""

    def __repr__(self) -> str:
        shown = []
        for field in attrs.fields(type(self)):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if field.default is attrs.NOTHING:
                shown.append(repr(value))
            elif value != field.default:
                shown.append(f"{field.name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"


def one_of(*allowed: str) -> Any:
    """Return a validator that refuses other values than these."""

    def check(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value not in allowed:
            raise WorkflowConfigurationError(
                f"{type(instance).__name__}.{attribute.name} must be one of "
                f"{', '.join(map(repr, allowed))}; not {value!r}"
            )

    return check


@attrs.frozen(repr=False)
class Pause(ReprAsCode):
    """A pause in one call of a step.

    Args:
        step: Name of the step.
        call: Which of its calls in the run, from 1.
        at: Where: 0 is before its body, `n` after the n-th time that the body has waited for
            something, -1 after the body. A sync step can be paused before and after its body only.
        seconds: For how long, in virtual time.
        checkpoints: How many times it lets other tasks run after that.
    """

    step: str
    call: int = 1
    at: int = 0
    seconds: float = 0.0
    checkpoints: int = 0


@attrs.frozen(repr=False)
class Fault(ReprAsCode):
    """Something that goes wrong in one call of a step.

    Args:
        step: Name of the step.
        kind: `"raise"` before the body, `"raise after"` it, `"raise in cleanup"` when the call is
            cancelled; `"stray cancellation"`: raise one that no scope asked for; `"hang"` until
            cancelled; `"slow cleanup"`: take `seconds`, shielded, after the body or a cancellation,
            and write to the stream then; `"swallow cancellation"`: return `None` instead of being
            cancelled; `"write in cleanup"`: write to the stream after the body or a cancellation.
        call: Which of its calls in the run, from 1. Each attempt of a retried step is a call.
        seconds: How long the slow cleanup takes, in virtual time.
    """

    step: str
    kind: FaultKind = attrs.field(validator=one_of(*get_args(FaultKind)))
    call: int = 1
    seconds: float = 0.0


@attrs.frozen(repr=False)
class Moment(ReprAsCode):
    """Some virtual seconds from now, and then some checkpoints later."""

    seconds: float = 0.0
    checkpoints: int = 0


@attrs.frozen(repr=False)
class End(ReprAsCode):
    """How the run is ended from outside, and when.

    Args:
        kind: `"cancel"` calls `cancel_run()`, `"block"` leaves the `async with` block of the run by
            an exception, `"loop"` ends the event loop.
        at: When.
        task_step: Instead of `at`: after this many task steps in the event loop.
    """

    kind: EndKind = attrs.field(validator=one_of(*get_args(EndKind)))
    at: Moment = Moment()
    task_step: int | None = None


@attrs.frozen(repr=False)
class Read(ReprAsCode):
    """Read the stream until `limit` events have come or `patience` virtual seconds have passed."""

    limit: int | None = None
    patience: float | None = None


@attrs.frozen(repr=False)
class Scenario(ReprAsCode):
    """Everything that disturbs one run. The empty scenario disturbs nothing.

    Args:
        pauses: Pauses in the steps.
        faults: Faults in the steps.
        end: How the run is ended from outside.
        timeout: The run's deadline, in seconds; for workflows that can be made with `timeout=`.
        cleanup_timeout: Likewise `cleanup_timeout=`.
        outside: When each event from outside comes; those without a moment come at once.
        reads: How the stream is read, before it is read to its end.
    """

    pauses: tuple[Pause, ...] = ()
    faults: tuple[Fault, ...] = ()
    end: End | None = None
    timeout: float | None = None
    cleanup_timeout: float | None = None
    outside: tuple[Moment, ...] = ()
    reads: tuple[Read, ...] = ()

    @property
    def only_delays(self) -> bool:
        """Whether it can only slow a run down, so that the run has to finish all the same."""
        return not self.faults and self.end is None and self.timeout is None

    @property
    def seconds_lost(self) -> float:
        """The virtual seconds by which it can delay a run, at least."""
        pauses = sum(pause.seconds for pause in self.pauses)
        return pauses + sum(moment.seconds for moment in self.outside)


# --- Drawn at random ------------------------------------------------------------------------------------

# Pauses are drawn for this many waits of a body at most. A loop that waits a thousand times would draw
# nearly all of its pauses where nothing new can happen.
_MAX_WAITS = 8


def load_hypothesis() -> Any:
    """Return the module `hypothesis`.

    Raises:
        WorkflowConfigurationError: If it is not installed.
    """
    try:
        import hypothesis
        import hypothesis.strategies
    except ImportError as exc:
        raise WorkflowConfigurationError(
            'hypothesis is not installed; run `pip install "anyio-workflows[testing]"`'
        ) from exc
    return hypothesis


@attrs.frozen
class ScenarioSpace:
    """The scenarios that make a difference to a workflow.

    Attributes:
        workflow: The workflow.
        calls: How often each step is called in an undisturbed run; 3 times if it is not there.
        waits: How often the body of each step waits for something.
        seconds: The duration of an undisturbed run, in virtual seconds.
        timeout: Whether the workflow can be made with `timeout=`.
        cleanup_timeout: Whether it can be made with `cleanup_timeout=`.
        outside: The number of events from outside, at most.
    """

    workflow: Workflow[Any]
    calls: Mapping[str, int]
    waits: Mapping[str, int]
    seconds: float
    timeout: bool
    cleanup_timeout: bool
    outside: int


def can_end(workflow: Workflow[Any], kind: EndKind) -> bool:
    """Tell whether a run of the workflow can be ended in this way.

    On asyncio, a thread that calls into an event loop which has ended may wait for ever, and keep
    the interpreter from exiting. So the loop is not ended under a workflow with sync steps.
    """
    return kind != "loop" or all(spec.is_async for spec in workflow.graph.steps.values())


def faults(
    workflow: Workflow[Any], *, calls: Mapping[str, int] | None = None
) -> SearchStrategy[Fault]:
    """Return a strategy of faults in the steps of a workflow.

    Args:
        workflow: The workflow.
        calls: How often each step is called; a fault is in one of these calls. 3 if not given.

    Raises:
        WorkflowConfigurationError: If Hypothesis is not installed.
    """
    st = load_hypothesis().strategies
    found = []
    for name, spec in workflow.graph.steps.items():
        kinds = [kind for kind in get_args(FaultKind) if spec.is_async or kind not in _ASYNC_ONLY]
        call = st.integers(1, max(1, (calls or {}).get(name, 3)))
        args = st.just(name), st.sampled_from(kinds), call, _seconds(st, 8)
        found.append(st.builds(_make_fault, *args))
    return st.one_of(found)  # type: ignore[no-any-return]


def _make_fault(step: str, kind: FaultKind, call: int, seconds: float) -> Fault:
    return Fault(step, kind, call, seconds if kind == "slow cleanup" else 0.0)


def scenarios(space: ScenarioSpace) -> SearchStrategy[Scenario]:
    """Return a strategy of scenarios."""
    st = load_hypothesis().strategies
    moments = st.builds(Moment, _seconds(st, space.seconds + 4), st.integers(0, 12))
    reads = st.builds(Read, st.none() | st.integers(1, 3), st.none() | _seconds(st, 2))
    pauses = st.lists(_pauses(st, space), min_size=1, max_size=4, unique_by=_position).map(tuple)
    order = {
        "pauses": st.just(()) | pauses,
        "outside": _tuples(st, moments, space.outside),
        "reads": _tuples(st, reads, 2),
    }
    kinds = [kind for kind in get_args(EndKind) if can_end(space.workflow, kind)]
    ends = st.builds(End, st.sampled_from(kinds), moments)
    limits = {}
    if space.timeout:
        limits["timeout"] = st.none() | _seconds(st, space.seconds + 3, least=1)
    if space.cleanup_timeout:
        limits["cleanup_timeout"] = st.none() | _seconds(st, 4)
    fault = faults(space.workflow, calls=space.calls)
    some_faults = st.lists(fault, min_size=1, max_size=3, unique_by=_position).map(tuple)
    # At least a third of them only delay: those have to finish (the rule `done`).
    return st.one_of(  # type: ignore[no-any-return]
        st.builds(Scenario, **{**order, "pauses": pauses}),
        st.builds(Scenario, **order, **limits, end=st.none() | ends),
        st.builds(Scenario, **order, **limits, end=st.none() | ends, faults=some_faults),
    )


def _pauses(st: Any, space: ScenarioSpace) -> Any:
    found = []
    for name, spec in space.workflow.graph.steps.items():
        bounded = spec.config.timeout is not None  # a pause would be its failure
        pause = st.builds(
            Pause,
            st.just(name),
            st.integers(1, max(1, space.calls.get(name, 3))),
            st.integers(-1, min(_MAX_WAITS, space.waits.get(name, 0))),
            st.just(0.0) if bounded else _seconds(st, 4),
            st.integers(1, 4),
        )
        found.append(pause)
    return st.one_of(found)


def _seconds(st: Any, most: float, least: int = 0) -> Any:
    # Multiples of 1/4: sums are exact, and two things often happen at the same instant.
    return st.integers(least, max(least, int(most * 4))).map(lambda quarters: quarters / 4)


def _tuples(st: Any, elements: Any, most: int) -> Any:
    return st.lists(elements, max_size=most).map(tuple)


def _position(part: Pause | Fault) -> tuple[str, int, int]:
    return part.step, part.call, part.at if isinstance(part, Pause) else 0


# --- Made simpler ---------------------------------------------------------------------------------------


def simpler_scenarios(scenario: Scenario) -> Iterator[Scenario]:
    """Yield scenarios with one part less, or with a shorter pause.

    Each is strictly simpler than the given one, so simplifying again and again comes to an end.
    """
    for limit in ("end", "timeout", "cleanup_timeout"):
        if getattr(scenario, limit) is not None:
            yield _with(scenario, limit, None)
    for name in ("faults", "pauses", "reads", "outside"):
        parts: tuple[Any, ...] = getattr(scenario, name)
        for n in range(len(parts)):
            yield _with(scenario, name, (*parts[:n], *parts[n + 1 :]))
    for n, pause in enumerate(scenario.pauses):
        one_checkpoint = attrs.evolve(pause, seconds=0.0, checkpoints=1)
        for shorter in (one_checkpoint, attrs.evolve(pause, checkpoints=0)):
            if (shorter.seconds, shorter.checkpoints) < (pause.seconds, pause.checkpoints):
                parts = (*scenario.pauses[:n], shorter, *scenario.pauses[n + 1 :])
                yield _with(scenario, "pauses", parts)


def _with(scenario: Scenario, name: str, value: Any) -> Scenario:
    changes: dict[str, Any] = {name: value}
    return attrs.evolve(scenario, **changes)
