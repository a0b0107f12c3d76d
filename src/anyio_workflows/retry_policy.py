"""Retry policies: `@step(retry_policy=retry_policy(...))`, with tenacity's strategies.

Strategies are combined as in tenacity: conditions and stops with `|` and `&`, waits with `+`:

    retry_policy(
        retry=retry_if_exception_type((TimeoutError, ConnectionError)),
        wait=wait_exponential(max=30) + wait_random(0, 1),
        stop=stop_after_attempt(5) | stop_after_delay(60),
    )

They are tenacity's own, but for what would mean one thing there and another in llama-index-workflows:
the exponential waits are capped at a minute unless `max=` says otherwise and take all but their first
argument by keyword, and `match=` of the conditions on messages is searched for anywhere in the message.
`stop_never`, `retry_always` and `retry_never` may be written with or without a call.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self, overload

import attrs
import tenacity
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
    retry_if_exception_type,
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
    wait_fixed,
    wait_incrementing,
    wait_none,
    wait_random,
)
from tenacity.stop import stop_base
from tenacity.wait import wait_base

from ._absent import absent_names
from .errors import WorkflowConfigurationError, WorkflowRuntimeError
from .steps import RetryInfo, RetryPolicy

__all__ = [
    "ConstantDelayRetryPolicy",
    "ExponentialBackoffRetryPolicy",
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

if not TYPE_CHECKING:
    __getattr__ = absent_names(__name__)


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


class retry_if_exception_message(retry_if_exception):  # noqa: N801
    """Retry exceptions with a certain message.

    Args:
        message: The message.
        match: A regular expression, searched for anywhere in the message.

    Raises:
        TypeError: If not exactly one of the two is given.
    """

    _wanted = True

    def __init__(
        self, message: str | None = None, match: str | re.Pattern[str] | None = None
    ) -> None:
        if (message is None) == (match is None):
            raise TypeError(f"{type(self).__name__}() takes one of message= and match=")
        self.message = message
        self.match = None if match is None else re.compile(match)
        super().__init__(self._decide)

    def _decide(self, error: BaseException) -> bool:
        text = str(error)
        found = text == self.message if self.match is None else self.match.search(text) is not None
        return found is self._wanted


class retry_if_not_exception_message(retry_if_exception_message):  # noqa: N801
    """Retry exceptions unless they have a certain message; takes what its counterpart takes."""

    _wanted = False


_Seconds = float | timedelta


class wait_exponential(tenacity.wait_exponential):  # noqa: N801
    """Wait `multiplier * exp_base ** n` seconds before retry n, from 0; between `min` and `max`."""

    def __init__(
        self,
        multiplier: float = 1,
        *,
        exp_base: float = 2,
        max: _Seconds = 60,  # noqa: A002
        min: _Seconds = 0,  # noqa: A002
    ) -> None:
        super().__init__(multiplier=multiplier, exp_base=exp_base, max=max, min=min)


class wait_random_exponential(tenacity.wait_random_exponential, wait_exponential):  # noqa: N801
    """Wait between `min` and what `wait_exponential()` would wait, at random ("full jitter")."""


wait_full_jitter = wait_random_exponential


class wait_exponential_jitter(tenacity.wait_exponential_jitter):  # noqa: N801
    """Wait `initial * exp_base ** n` seconds before retry n, and up to `jitter` more; at most `max`.

    Args:
        initial: Seconds before the first retry.
        exp_base: By how much each delay is longer than the one before it.
        max: Seconds of the longest delay.
        jitter: Seconds that are added at most.
        **others: What tenacity's strategy takes besides, in the version that is installed.
    """

    def __init__(
        self,
        initial: float = 1,
        *,
        exp_base: float = 2,
        max: _Seconds = 60,  # noqa: A002
        jitter: _Seconds = 1,
        **others: Any,
    ) -> None:
        with warnings.catch_warnings():  # newer versions prefer another name than `initial`
            warnings.simplefilter("ignore", DeprecationWarning)
            super().__init__(initial, exp_base=exp_base, max=max, jitter=jitter, **others)


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


def ConstantDelayRetryPolicy(maximum_attempts: int = 3, delay: float = 5) -> RetryPolicy:  # noqa: N802
    """Make a policy with the same delay before each retry.

    Args:
        maximum_attempts: How many attempts to make, the first included.
        delay: Seconds between two attempts.
    """
    return retry_policy(wait=wait_fixed(delay), stop=stop_after_attempt(maximum_attempts))


def ExponentialBackoffRetryPolicy(  # noqa: N802
    maximum_attempts: int = 5,
    initial_delay: float = 1,
    multiplier: float = 2,
    max_delay: float = 60,
    jitter: bool = True,
) -> RetryPolicy:
    """Make a policy with delays that grow exponentially.

    Args:
        maximum_attempts: How many attempts to make, the first included.
        initial_delay: Seconds before the first retry.
        multiplier: How many times longer each delay is than the one before it.
        max_delay: Seconds of the longest delay.
        jitter: Draw each delay at random, between 0 and what it would be otherwise.
    """
    backoff = wait_random_exponential if jitter else wait_exponential
    wait = backoff(initial_delay, exp_base=multiplier, max=max_delay)
    return retry_policy(wait=wait, stop=stop_after_attempt(maximum_attempts))


@attrs.frozen
class _Policy:
    """Calls the strategies in tenacity's order: retry, then wait, then stop."""

    retry: _Strategy
    wait: _Strategy
    stop: _Strategy

    def next(
        self, elapsed_time: float, attempts: int, error: Exception, *, seed: int | None = None
    ) -> float | None:
        if seed is not None:  # a policy that wraps this one may pass the keyword on
            raise WorkflowRuntimeError(
                f"delays are drawn from the random module; a policy has no use for seed={seed!r}"
            )
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
    if not isinstance(strategy, _BASES[role]) and not _takes_call_state(strategy):
        given = ", ".join(inspect.signature(strategy).parameters)
        return (
            f"{strategy!r} takes ({given}), but a strategy is called with tenacity's call state, in a "
            f"parameter named 'state'; {_CALLS[role]}"
        )
    return None


_CALLS = {
    "retry": "retry_if_exception(f) makes a condition of a function f that takes an exception",
    "wait": "write 'def wait(state): ...', which finds the number of the attempt in "
    "state.attempt_number, from 1",
    "stop": "write 'def stop(state): ...', which finds the number of the attempt in "
    "state.attempt_number, and the time in state.seconds_since_start and state.upcoming_sleep",
}


def _takes_call_state(strategy: Callable[..., Any]) -> bool:
    """Return whether a strategy of the user's says that it is called with one argument, a call state.

    One that was written for an exception would run as well, and never find what it looks for. So its
    parameter has to be named or annotated like a call state.
    """
    try:
        signature = inspect.signature(strategy)
    except ValueError:  # some builtins have none
        return True
    try:
        signature.bind(None)
    except TypeError:
        return False
    first = next(iter(signature.parameters.values()))
    return (
        first.kind is first.VAR_POSITIONAL
        or first.name in ("_", "rs")
        or "state" in first.name
        or "RetryCallState" in str(first.annotation)
    )


def _is_async(function: object) -> bool:
    called = getattr(type(function), "__call__", None)  # noqa: B004
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called)
