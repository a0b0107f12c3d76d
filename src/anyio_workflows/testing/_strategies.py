"""Hypothesis strategies of faults and scenarios. Hypothesis is imported when they are asked for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, get_args

import attrs

from ..errors import WorkflowConfigurationError
from ..workflow import Workflow
from ._scenario import ASYNC_ONLY, End, EndKind, Fault, FaultKind, Moment, Pause, Read, Scenario

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy


MOST_WAITS = 8
"""A step that waits more often is not held up after each time."""


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
            "hypothesis is not installed; run `pip install anyio-workflows[testing]`"
        ) from exc
    return hypothesis


@attrs.frozen
class Scope:
    """What scenarios for a workflow can speak about.

    Attributes:
        workflow: The workflow.
        calls: How often each step is called, as far as known; 3 times if not.
        waits: How often the body of each step waits for something, as far as known.
        seconds: How long a run takes that nothing disturbs, in virtual seconds.
        timeout: Whether scenarios may set the run's deadline.
        cleanup_timeout: Whether they may set the time for cleanup.
        outside: How many events come from outside, at most.
    """

    workflow: Workflow[Any]
    calls: Mapping[str, int] = {}
    waits: Mapping[str, int] = {}
    seconds: float = 0.0
    timeout: bool = False
    cleanup_timeout: bool = False
    outside: int = 0


def accepts_keyword(make: Callable[..., object], name: str) -> bool:
    """Tell whether a function or class takes a keyword."""
    parameters = inspect.signature(make).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def can_end(workflow: Workflow[Any], kind: EndKind) -> bool:
    """Tell whether runs can be ended like that.

    A thread that calls into an event loop which has ended may wait for ever, and keep the
    interpreter from exiting: such is asyncio. So the loop of a workflow with sync steps is not ended.
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
        kinds = [kind for kind in get_args(FaultKind) if spec.is_async or kind not in ASYNC_ONLY]
        call = st.integers(1, max(1, (calls or {}).get(name, 3)))
        args = st.just(name), st.sampled_from(kinds), call, _seconds(st, 8)
        found.append(st.builds(_make_fault, *args))
    return st.one_of(found)  # type: ignore[no-any-return]


def _make_fault(step: str, kind: FaultKind, call: int, seconds: float) -> Fault:
    return Fault(step, kind, call, seconds if kind == "slow cleanup" else 0.0)


def scenarios(scope: Scope) -> SearchStrategy[Scenario]:
    """Return a strategy of scenarios: a third of them disturb the order of things only."""
    st = load_hypothesis().strategies
    moments = st.builds(Moment, _seconds(st, scope.seconds + 4), st.integers(0, 12))
    reads = st.builds(Read, st.none() | st.integers(1, 3), st.none() | _seconds(st, 2))
    pauses = st.lists(_pauses(st, scope), min_size=1, max_size=4, unique_by=_place).map(tuple)
    order = {
        "pauses": st.just(()) | pauses,
        "outside": _tuples(st, moments, scope.outside),
        "reads": _tuples(st, reads, 2),
    }
    kinds = [kind for kind in get_args(EndKind) if can_end(scope.workflow, kind)]
    ends = st.builds(End, st.sampled_from(kinds), moments)
    limits = {}
    if scope.timeout:
        limits["timeout"] = st.none() | _seconds(st, scope.seconds + 3, least=1)
    if scope.cleanup_timeout:
        limits["cleanup_timeout"] = st.none() | _seconds(st, 4)
    fault = faults(scope.workflow, calls=scope.calls)
    wrong = st.lists(fault, min_size=1, max_size=3, unique_by=_place).map(tuple)
    return st.one_of(  # type: ignore[no-any-return]
        st.builds(Scenario, **{**order, "pauses": pauses}),
        st.builds(Scenario, **order, **limits, end=st.none() | ends),
        st.builds(Scenario, **order, **limits, end=st.none() | ends, faults=wrong),
    )


def _pauses(st: Any, scope: Scope) -> Any:
    found = []
    for name, spec in scope.workflow.graph.steps.items():
        bounded = spec.config.timeout is not None  # being held up would be its failure
        pause = st.builds(
            Pause,
            st.just(name),
            st.integers(1, max(1, scope.calls.get(name, 3))),
            st.integers(-1, min(MOST_WAITS, scope.waits.get(name, 0))),
            st.just(0.0) if bounded else _seconds(st, 4),
            st.integers(1, 4),
        )
        found.append(pause)
    return st.one_of(found)


def _seconds(st: Any, most: float, least: int = 0) -> Any:
    """Multiples of 1/4: sums are exact, ties are frequent."""
    return st.integers(least, max(least, int(most * 4))).map(lambda quarters: quarters / 4)


def _tuples(st: Any, elements: Any, most: int) -> Any:
    return st.lists(elements, max_size=most).map(tuple)


def _place(thing: Pause | Fault) -> tuple[str, int, int]:
    return thing.step, thing.call, thing.at if isinstance(thing, Pause) else 0
