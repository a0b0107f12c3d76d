"""Retry policies: `@step(retry_policy=retry_policy(...))`, with tenacity's strategies.

Strategies are combined as in tenacity: conditions and stops with `|` and `&`, waits with `+`:

    retry_policy(
        retry=retry_if_exception_type((TimeoutError, ConnectionError)),
        wait=wait_exponential(max=30) + wait_random(0, 1),
        stop=stop_after_attempt(5) | stop_after_delay(60),
    )

`stop_never`, `retry_always` and `retry_never` may be written with or without a call.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, Self, overload

import attrs
from tenacity import (
    Future,
    RetryCallState,
    Retrying,
    TryAgain,
    retry_all,
    retry_any,
    retry_base,
    retry_if_exception,
    retry_if_exception_cause_type,
    retry_if_exception_message,
    retry_if_exception_type,
    retry_if_not_exception_message,
    retry_if_not_exception_type,
    retry_if_not_result,
    retry_if_result,
    retry_unless_exception_type,
    stop_after_attempt,
    stop_after_delay,
    stop_all,
    stop_any,
    stop_before_delay,
    stop_when_event_set,
    wait_chain,
    wait_combine,
    wait_exception,
    wait_exponential,
    wait_exponential_jitter,
    wait_fixed,
    wait_full_jitter,
    wait_incrementing,
    wait_none,
    wait_random,
    wait_random_exponential,
)
from tenacity.stop import stop_base
from tenacity.wait import wait_base

from .errors import WorkflowConfigurationError, WorkflowRuntimeError
from .steps import RetryInfo, RetryPolicy

__all__ = [
    "RetryInfo",
    "RetryPolicy",
    "retry_all",
    "retry_always",
    "retry_any",
    "retry_if_exception",
    "retry_if_exception_cause_type",
    "retry_if_exception_message",
    "retry_if_exception_type",
    "retry_if_not_exception_message",
    "retry_if_not_exception_type",
    "retry_never",
    "retry_policy",
    "retry_unless_exception_type",
    "stop_after_attempt",
    "stop_after_delay",
    "stop_all",
    "stop_any",
    "stop_before_delay",
    "stop_never",
    "stop_when_event_set",
    "wait_chain",
    "wait_combine",
    "wait_exception",
    "wait_exponential",
    "wait_exponential_jitter",
    "wait_fixed",
    "wait_full_jitter",
    "wait_incrementing",
    "wait_none",
    "wait_random",
    "wait_random_exponential",
]


class _StopNever(stop_base):
    """Never give up. Written `stop_never()` as in llama-index-workflows, or `stop_never` as in tenacity."""

    @overload
    def __call__(self) -> Self: ...
    @overload
    def __call__(self, retry_state: RetryCallState) -> bool: ...
    def __call__(self, retry_state: RetryCallState | None = None) -> Self | bool:
        return self if retry_state is None else False

    def __repr__(self) -> str:
        return "stop_never"


class _RetryWhatever(retry_base):
    """Retry every exception, or none; written with or without a call, like `stop_never`."""

    def __init__(self, name: str, answer: bool) -> None:
        self._name = name
        self._answer = answer

    @overload
    def __call__(self) -> Self: ...
    @overload
    def __call__(self, retry_state: RetryCallState) -> bool: ...
    def __call__(self, retry_state: RetryCallState | None = None) -> Self | bool:
        return self if retry_state is None else self._answer

    def __repr__(self) -> str:
        return self._name


stop_never = _StopNever()
retry_always = _RetryWhatever("retry_always", True)
retry_never = _RetryWhatever("retry_never", False)

_Strategy = Callable[[RetryCallState], Any]
"""Called by tenacity: whether to retry, how long to wait, or whether to stop."""


def retry_policy(
    retry: Callable[[RetryCallState], bool] | None = None,
    wait: Callable[[RetryCallState], float] | None = None,
    stop: Callable[[RetryCallState], bool] | None = None,
) -> RetryPolicy:
    """Make a retry policy from tenacity's strategies.

    A step that raises `tenacity.TryAgain` is tried again whatever `retry` says, as in tenacity.
    Custom strategies can use `attempt_number`, `outcome` and `seconds_since_start` of tenacity's
    call state; stops `upcoming_sleep` as well.

    Args:
        retry: Which exceptions to retry: any `retry_if_*`; all of them if not given.
        wait: How long to wait before the next attempt: any `wait_*`; 5 s if not given.
        stop: When to give up: any `stop_*`; after 3 attempts if not given.

    Raises:
        WorkflowConfigurationError: If an argument is something else, an async strategy, or one that
            looks at the result of a step (`retry_if_result`): a step retries when it raises.
    """
    policy = _Policy(
        retry=retry_if_exception_type() if retry is None else retry,
        wait=wait_fixed(5) if wait is None else wait,
        stop=stop_after_attempt(3) if stop is None else stop,
    )
    for role, strategy in attrs.asdict(policy, recurse=False).items():
        for part in _parts(strategy):
            if fault := _fault(role, part):
                raise WorkflowConfigurationError(f"retry_policy({role}=...): {fault}")
    return policy


@attrs.frozen
class _Policy:
    """Calls the strategies in tenacity's order: retry, then wait, then stop."""

    retry: _Strategy
    wait: _Strategy
    stop: _Strategy

    def next(self, elapsed_time: float, attempts: int, error: Exception, /) -> float | None:
        state = RetryCallState(Retrying(**attrs.asdict(self, recurse=False)), None, (), {})
        state.attempt_number = attempts
        state.outcome = Future.construct(attempts, error, has_exception=True)
        state.start_time, state.outcome_timestamp = 0.0, elapsed_time
        if not (isinstance(error, TryAgain) or self.retry(state)):
            return None
        delay: float | None = self.wait(state)
        if delay is None:
            raise WorkflowRuntimeError(
                f"{self.wait!r} returned None instead of a number of seconds"
            )
        state.upcoming_sleep = delay
        return None if self.stop(state) else delay


def _parts(strategy: object) -> Iterator[object]:
    """Yield a strategy, and those that it combines, at any depth."""
    yield strategy
    for combination, attribute in _COMBINATIONS.items():
        if isinstance(strategy, combination):
            for part in getattr(strategy, attribute):
                yield from _parts(part)


_COMBINATIONS: dict[type, str] = {
    retry_any: "retries",
    retry_all: "retries",
    stop_any: "stops",
    stop_all: "stops",
    wait_combine: "wait_funcs",
    wait_chain: "strategies",
}

_BASES: dict[str, type] = {"retry": retry_base, "wait": wait_base, "stop": stop_base}

_EXAMPLES = {
    "retry": "retry_if_exception_type(TimeoutError)",
    "wait": "wait_fixed(5)",
    "stop": "stop_after_attempt(3)",
}


def _fault(role: str, strategy: object) -> str | None:
    if isinstance(strategy, retry_if_result | retry_if_not_result):
        return (
            f"{type(strategy).__name__} looks at results, but a step is retried when it raises; "
            "raise an exception in the step"
        )
    if isinstance(strategy, type):
        return f"{strategy.__name__} is a class; use an instance, such as {_EXAMPLES[role]}"
    for other, base in _BASES.items():
        if other != role and isinstance(strategy, base):
            return f"{type(strategy).__name__} belongs to {other}="
    if not callable(strategy):
        return f"{strategy!r} is not a strategy; use one such as {_EXAMPLES[role]}"
    if _is_async(strategy) or _is_async(getattr(strategy, "predicate", None)):
        return f"{strategy!r} is async; strategies are plain functions"
    return None


def _is_async(function: object) -> bool:
    called = getattr(type(function), "__call__", None)  # noqa: B004
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)
