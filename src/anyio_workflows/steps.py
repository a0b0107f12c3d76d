"""The decorators `@step` and `@catch_error`. They only mark a function: its signature is read later."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection
from datetime import datetime
from types import FunctionType
from typing import Any, Literal, Protocol, TypeVar, overload, runtime_checkable

import attrs

from ._annotations import is_positive_number, read_names
from .errors import WorkflowValidationError

__all__ = [
    "Catch",
    "GraphCheck",
    "RetryInfo",
    "RetryPolicy",
    "StepConfig",
    "catch_error",
    "step",
]


@runtime_checkable
class RetryPolicy(Protocol):
    """Decides whether, and when, a failed step is tried again."""

    def next(self, elapsed_time: float, attempts: int, error: Exception) -> float | None:
        """Decide about the next attempt.

        Called once per failed attempt, by position, but never for a cancellation or after the end of
        the run.

        Args:
            elapsed_time: Seconds from the first start of the step to this failure.
            attempts: How many attempts have been made, from 1.
            error: The exception of the last attempt.

        Returns:
            Seconds to wait before the next attempt; `None` to give up.
        """
        ...


@attrs.frozen
class RetryInfo:
    """The earlier attempts of an execution.

    Attributes:
        retry_number: 0 in the first attempt, 1 in the first retry, and so on.
        elapsed_seconds: Seconds from the first start of the step to the start of this attempt.
        last_exception: The exception of the attempt before; `None` in the first one.
        last_failed_at: When it was raised, in UTC. For information only: delays use another clock.
    """

    retry_number: int = 0
    elapsed_seconds: float = 0.0
    last_exception: Exception | None = None
    last_failed_at: datetime | None = None


GraphCheck = Literal["reachability", "terminal_event", "dead_end"]
"""The checks of the graph that `skip_graph_checks` can turn off."""

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

_MARK = "__anyio_workflows_step__"


class _WorkflowClass(Protocol):
    """For type checkers: `workflow` imports this module, so it cannot be named here."""

    @classmethod
    def add_step(cls, func: Callable[..., Any]) -> None: ...


@attrs.frozen
class Catch:
    """The arguments of `@catch_error(...)`.

    Attributes:
        for_steps: Names of the steps whose failures it takes, at least one; `None`: of all steps that no
            other error handler names.
        max_recoveries: How many failures it takes among an event and its ancestors, 1 or more.
    """

    for_steps: tuple[str, ...] | None = None
    max_recoveries: int = 1


@attrs.frozen
class StepConfig:
    """The arguments of `@step(...)` or `@catch_error(...)`, already checked.

    Attributes:
        num_workers: How many executions may be in progress at once in one run, 1 or more.
        accept_event_subclasses: Whether events of subclasses of the annotated types are taken too.
        skip_graph_checks: The checks of the graph that are left out for this step.
        timeout: Seconds for one attempt, more than 0; `None`: no limit.
        retry_policy: Has a plain method `next()`; `None`: the step is not tried again.
        catch: Set for the steps marked with `@catch_error`, and only for those.
    """

    num_workers: int = 4
    accept_event_subclasses: bool = False
    skip_graph_checks: frozenset[str] = frozenset()
    timeout: float | None = None
    retry_policy: RetryPolicy | None = None
    catch: Catch | None = None

    @classmethod
    def of(cls, member: object) -> StepConfig | None:
        """Return the configuration of a member of a class; `None` if it is no step."""
        function = member
        if isinstance(member, staticmethod | classmethod):
            function = member.__func__
        elif isinstance(member, property):
            function = member.fget
        elif isinstance(member, functools.cached_property | functools.partialmethod):
            function = member.func
        config = getattr(function, "__dict__", {}).get(_MARK)
        return config if isinstance(config, StepConfig) else None


@overload
def step(func: FunctionT, /) -> FunctionT: ...


@overload
def step(
    *,
    num_workers: int = 4,
    retry_policy: RetryPolicy | None = None,
    workflow: type[_WorkflowClass] | None = None,
    skip_graph_checks: Collection[GraphCheck] | None = None,
    accept_event_subclasses: bool = False,
    timeout: float | None = None,
) -> Callable[[FunctionT], FunctionT]: ...


def step(
    func: Callable[..., Any] | None = None,
    /,
    *,
    num_workers: int = 4,
    retry_policy: RetryPolicy | None = None,
    workflow: type[_WorkflowClass] | None = None,
    skip_graph_checks: Collection[GraphCheck] | None = None,
    accept_event_subclasses: bool = False,
    timeout: float | None = None,
) -> Any:
    """Mark a function as a step: it accepts an event and returns one, or a list, or `None`.

    The annotations of the function say which: the parameter annotated with an event class (or a
    union of them) decides what starts the step, the return annotation what it may produce. A
    parameter annotated with `Context`, anywhere in the signature, gets the context of the step.

    Args:
        func: The function, if `@step` is used without parentheses.
        num_workers: How many executions of this step may be in progress at once in one run.
        retry_policy: Decides whether a failed step is tried again, and when: the result of
            `anyio_workflows.retry_policy.retry_policy()`, or any object with a method
            `next(elapsed_time, attempts, error)` that returns seconds or `None`. Without a policy,
            the step is not tried again.
        workflow: The workflow class that a free function (not a method) is a step of.
        skip_graph_checks: The checks of the graph to leave out for this step: `"reachability"`,
            `"terminal_event"`, `"dead_end"`.
        accept_event_subclasses: Take events of subclasses of the annotated types as well.
        timeout: Seconds that one attempt may take, not counting the time it waits in
            `ctx.wait_for_event()`; then it fails with `TimeoutError`. `None` for no limit.

    Raises:
        WorkflowValidationError: If an argument has a value that cannot work, or `workflow` has a
            step of that name already.
    """

    def mark(func: Any) -> Any:
        name, function = _function_in(func, "@step")
        if type(num_workers) is not int or num_workers < 1:
            fault = f"num_workers must be a positive int, not {num_workers!r}"
            raise WorkflowValidationError(f"step {name}", [fault])
        skipped, faults = read_names("skip_graph_checks", skip_graph_checks, GraphCheck)
        if faults:
            raise WorkflowValidationError(f"step {name}", faults)
        if timeout is not None and not is_positive_number(timeout):
            fault = f"timeout must be a positive number of seconds, or None, not {timeout!r}"
            raise WorkflowValidationError(f"step {name}", [fault])
        if retry_policy is not None and (faults := _policy_faults(retry_policy)):
            raise WorkflowValidationError(f"step {name}", faults)
        config = StepConfig(num_workers, accept_event_subclasses, skipped, timeout, retry_policy)
        if workflow is not None and not hasattr(workflow, "add_step"):
            fault = f"workflow= takes a workflow class, not {workflow!r}"
            raise WorkflowValidationError(f"step {name}", [fault])
        setattr(function, _MARK, config)
        if workflow is not None:
            workflow.add_step(function)
        return func

    return mark if func is None else mark(func)


@overload
def catch_error(func: FunctionT, /) -> FunctionT: ...


@overload
def catch_error(
    *, for_steps: Collection[str] | None = None, max_recoveries: int = 1
) -> Callable[[FunctionT], FunctionT]: ...


def catch_error(
    func: Callable[..., Any] | None = None,
    /,
    *,
    for_steps: Collection[str] | None = None,
    max_recoveries: int = 1,
) -> Any:
    """Mark a function as an error handler: a step that takes over when another has failed for good.

    It is written like any other step and takes a `StepFailedEvent`. What it returns takes the place
    of what the failed step would have returned; an exception that it raises fails the run.

    Args:
        func: The function, if `@catch_error` is used without parentheses.
        for_steps: Names of the steps whose failures it takes. Without it, it takes those of all steps
            that no other error handler names.
        max_recoveries: How many failures it takes among a failed event and its ancestors, so that a
            loop through a failing step eventually fails the run.

    Raises:
        WorkflowValidationError: If an argument has a value that cannot work.
    """

    def mark(func: Any) -> Any:
        name, function = _function_in(func, "@catch_error")
        if type(max_recoveries) is not int or max_recoveries < 1:
            fault = f"max_recoveries must be a positive int, not {max_recoveries!r}"
            raise WorkflowValidationError(f"step {name}", [fault])
        if for_steps is not None and (
            isinstance(for_steps, str)
            or not isinstance(for_steps, Collection)
            or not (for_steps and all(isinstance(step, str) for step in for_steps))
        ):
            fault = f"for_steps must be a list of names of steps, or None, not {for_steps!r}"
            raise WorkflowValidationError(f"step {name}", [fault])
        names = None if for_steps is None else tuple(dict.fromkeys(for_steps))
        setattr(function, _MARK, StepConfig(catch=Catch(names, max_recoveries)))
        return func

    return mark if func is None else mark(func)


def _function_in(func: Any, decorator: str) -> tuple[str, FunctionType]:
    """Return the function that is decorated, and its name."""
    function = func.__func__ if isinstance(func, staticmethod) else func
    name = getattr(function, "__name__", repr(function))
    if not isinstance(function, FunctionType):
        fault = f"{decorator} marks a function, not a {type(function).__name__}"
        raise WorkflowValidationError(f"step {name}", [fault])
    return name, function


def _policy_faults(policy: object) -> list[str]:
    if isinstance(policy, type):
        return [
            f"retry_policy must be a policy, not the class {policy.__name__}; use an instance of it"
        ]
    decide = getattr(policy, "next", None)
    if inspect.isroutine(policy) and decide is None:
        name = policy.__name__
        return [f"retry_policy must be a policy, not the function {name}; call it: {name}()"]
    if not callable(decide):
        return [
            f"retry_policy must be a policy, not {policy!r}; wrap tenacity's strategies, as in "
            "retry_policy(stop=stop_after_attempt(3))"
        ]
    if inspect.iscoroutinefunction(decide):
        return [f"next() of {policy!r} is async; a policy is a plain method"]
    return []
