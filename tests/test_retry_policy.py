"""Retry policies (X1): what is taken, what is refused, and that tenacity would do the same."""

from __future__ import annotations

import functools
import itertools
import random
import re
import threading
from collections.abc import Awaitable, Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from unittest import mock

import anyio
import attrs
import pytest
import tenacity
import tenacity.asyncio
from hypothesis import example, given, settings
from hypothesis import strategies as st

from anyio_workflows import StartEvent, StopEvent, Workflow, WorkflowFailedEvent, step
from anyio_workflows import retry_policy as rp
from anyio_workflows.errors import (
    WorkflowConfigurationError,
    WorkflowRuntimeError,
    WorkflowValidationError,
)
from anyio_workflows.retry_policy import (
    RetryPolicy,
    retry_if_exception,
    retry_if_exception_message,
    retry_if_exception_type,
    retry_if_not_exception_type,
    retry_policy,
    stop_after_attempt,
    stop_after_delay,
    stop_before_delay,
    stop_never,
    wait_chain,
    wait_exception,
    wait_exponential,
    wait_fixed,
    wait_none,
)

from .conftest import BACKENDS
from .running import run_virtually

ERROR = ValueError("no luck")


# --- What it decides ------------------------------------------------------------------------------


def decisions(policy: RetryPolicy, *errors: Exception, each: float = 1) -> list[float | None]:
    """Ask about failures that come `each` seconds after the start or the delay before them."""
    found: list[float | None] = []
    elapsed = 0.0
    for attempt, error in enumerate(errors, 1):
        elapsed += each
        found.append(policy.next(elapsed, attempt, error))
        elapsed += found[-1] or 0
    return found


def test_x1_three_attempts_five_seconds_apart_are_the_default() -> None:
    assert decisions(retry_policy(), *[ERROR] * 4) == [5, 5, None, None]


@pytest.mark.parametrize("error", [ERROR, TimeoutError(), ExceptionGroup("two", [ERROR])], ids=repr)
def test_x1_every_exception_is_retried_by_default(error: Exception) -> None:
    assert decisions(retry_policy(), error) == [5]


def test_x1_each_part_has_its_default() -> None:
    only_retry = retry_policy(retry=retry_if_exception_type(TimeoutError))
    assert decisions(only_retry, TimeoutError(), ERROR) == [5, None]
    assert decisions(retry_policy(wait=wait_fixed(2)), *[ERROR] * 3) == [2, 2, None]
    assert decisions(retry_policy(stop=stop_after_attempt(2)), ERROR, ERROR) == [5, None]


def test_x1_parts_are_given_by_position_too() -> None:
    policy = retry_policy(
        retry_if_exception_type(TimeoutError), wait_fixed(1), stop_after_attempt(2)
    )
    assert decisions(policy, TimeoutError(), TimeoutError()) == [1, None]
    assert decisions(policy, ERROR) == [None]


def test_x1_conditions_combine() -> None:
    network = retry_if_exception_type(OSError)
    gone = retry_if_exception_message(match="gone")
    errors = [ConnectionError("gone"), ConnectionError("x"), ValueError("gone"), ValueError("x")]
    forever: Any = {"wait": wait_none(), "stop": stop_never}
    assert decisions(retry_policy(network | gone, **forever), *errors) == [0, 0, 0, None]
    assert decisions(retry_policy(network & gone, **forever), *errors) == [0, None, None, None]


def test_x1_waits_add_up() -> None:
    policy = retry_policy(wait=wait_exponential(max=4) + wait_fixed(0.5), stop=stop_never)
    assert decisions(policy, *[ERROR] * 4) == [1.5, 2.5, 4.5, 4.5]
    policy = retry_policy(wait=sum([wait_fixed(1), wait_fixed(2)]), stop=stop_never)  # type: ignore[arg-type]
    assert decisions(policy, ERROR) == [3]


def test_x1_stops_combine() -> None:
    attempts, seconds = stop_after_attempt(2), stop_after_delay(10)
    either = retry_policy(wait=wait_fixed(3), stop=attempts | seconds)
    both = retry_policy(wait=wait_fixed(3), stop=attempts & seconds)
    assert decisions(either, *[ERROR] * 2) == [3, None]
    assert decisions(both, *[ERROR] * 4) == [3, 3, 3, None]  # after 1, 5, 9, 13 s


def test_x1_stop_before_delay_knows_the_delay_that_would_come() -> None:
    policy = retry_policy(wait=wait_fixed(3), stop=stop_before_delay(8))
    assert decisions(policy, *[ERROR] * 2) == [3, None]  # 1 + 3 < 8 <= 5 + 3


def test_x1_wait_may_depend_on_the_exception_and_on_the_attempt() -> None:
    policy = retry_policy(wait=wait_exception(lambda exc: len(str(exc))), stop=stop_never)
    assert decisions(policy, ValueError("abc"), ValueError("")) == [3, 0]
    chain = wait_chain(wait_fixed(1), wait_fixed(7))
    assert decisions(retry_policy(wait=chain, stop=stop_never), *[ERROR] * 3) == [1, 7, 7]


def test_x1_try_again_is_retried_whatever_the_condition_says() -> None:
    policy = retry_policy(retry=rp.retry_never)
    again = tenacity.TryAgain()
    assert decisions(policy, again, again, again) == [5, 5, None]
    assert decisions(policy, ERROR) == [None]


CONSTANTS = ["retry_always", "retry_never", "stop_never"]


@pytest.mark.parametrize("name", CONSTANTS)
@pytest.mark.parametrize("source", [rp, tenacity], ids=["ours", "tenacity's"])
def test_x1_constants_may_be_called_or_not(name: str, source: Any) -> None:
    constant = getattr(source, name)
    role = name.partition("_")[0]
    forms = [constant, constant(), constant()()] if source is rp else [constant]
    answer = [None] if name == "retry_never" else [0, 0, 0, 0]
    for form in forms:
        policy = retry_policy(**{"wait": wait_none(), "stop": rp.stop_never(), role: form})
        assert decisions(policy, *[ERROR] * len(answer)) == answer
        assert isinstance(form, type(constant))


@pytest.mark.parametrize("one", [False, True], ids=["uncalled", "called"])
@pytest.mark.parametrize("two", [False, True], ids=["uncalled", "called"])
def test_x1_constants_combine_called_or_not(one: bool, two: bool) -> None:
    always: Any = rp.retry_always() if one else rp.retry_always
    never: Any = rp.retry_never() if two else rp.retry_never
    no_stop: Any = rp.stop_never() if one else rp.stop_never
    two_attempts = stop_after_attempt(2)
    network = retry_if_exception_type(OSError)

    def delays(retry: Any, stop: Any) -> list[float | None]:
        return decisions(retry_policy(retry, wait_none(), stop), ERROR)

    assert delays(always | never, no_stop) == delays(never | always, no_stop) == [0]
    assert delays(always & never, no_stop) == delays(never & always, no_stop) == [None]
    assert delays(network | always, no_stop) == [0]
    assert delays(network & always, no_stop) == delays(network | never, no_stop) == [None]
    for stop in (no_stop | two_attempts, two_attempts | no_stop):
        policy = retry_policy(always, wait_none(), stop)
        assert decisions(policy, ERROR, ERROR) == [0, None]
    for stop in (no_stop & two_attempts, two_attempts & no_stop):
        policy = retry_policy(always, wait_none(), stop)
        assert decisions(policy, ERROR, ERROR, ERROR) == [0, 0, 0]


def test_x1_every_constant_of_tenacity_may_be_called() -> None:
    exported = {name: getattr(rp, name) for name in rp.__all__}
    instances = [n for n, value in exported.items() if isinstance(value, tuple(rp._BASES.values()))]
    assert sorted(instances) == CONSTANTS
    assert [repr(exported[name]()) for name in CONSTANTS] == CONSTANTS


def test_x1_plain_functions_are_strategies() -> None:
    policy = retry_policy(
        retry=lambda state: state.outcome.exception() is ERROR,
        wait=lambda state: 10.0 * state.attempt_number,
        stop=lambda state: state.seconds_since_start > 30,
    )
    assert decisions(policy, *[ERROR] * 3) == [10, 20, None]  # after 1, 12, 33 s
    assert decisions(policy, ValueError("no luck")) == [None]


@attrs.frozen
class UpTo:
    """A strategy of one's own, whose attribute means nothing to us."""

    retries: int

    def __call__(self, state: tenacity.RetryCallState) -> bool:
        return state.attempt_number > self.retries


def test_x1_attributes_of_a_strategy_of_ones_own_mean_nothing() -> None:
    assert decisions(retry_policy(stop=UpTo(1)), ERROR, ERROR) == [5, None]


def test_x1_policy_keeps_nothing_between_two_executions() -> None:
    policy = retry_policy(wait=wait_exponential())
    assert decisions(policy, *[ERROR] * 3) == decisions(policy, *[ERROR] * 3) == [1, 2, None]


def test_x1_strategy_that_raises_raises_out_of_the_policy() -> None:
    policy = retry_policy(wait=wait_exception(lambda exc: 1 / 0))
    with pytest.raises(ZeroDivisionError):
        policy.next(0, 1, ERROR)


def test_x1_wait_that_answers_nothing_does_not_pass_for_giving_up() -> None:
    policy = retry_policy(wait=wait_exception(lambda exc: None))  # type: ignore[arg-type,return-value]
    with pytest.raises(WorkflowRuntimeError, match="returned None instead of a number of seconds"):
        policy.next(0, 1, ERROR)


# --- As in the reference --------------------------------------------------------------------------


def test_x1_constant_delay() -> None:
    assert decisions(rp.ConstantDelayRetryPolicy(), *[ERROR] * 3) == [5, 5, None]
    policy = rp.ConstantDelayRetryPolicy(maximum_attempts=2, delay=7)
    assert decisions(policy, ERROR, ERROR) == [7, None]
    assert decisions(rp.ConstantDelayRetryPolicy(1, 7), ERROR) == [None]


def test_x1_exponential_backoff() -> None:
    policy = rp.ExponentialBackoffRetryPolicy(jitter=False)
    assert decisions(policy, *[ERROR] * 5) == [1, 2, 4, 8, None]
    policy = rp.ExponentialBackoffRetryPolicy(4, 2, 3, 10, False)
    assert decisions(policy, *[ERROR] * 4) == [2, 6, 10, None]


def test_x1_jitter_draws_from_the_whole_interval() -> None:
    random.seed(1)
    policy = rp.ExponentialBackoffRetryPolicy(initial_delay=8)
    drawn = [policy.next(0, 2, ERROR) or 0 for _ in range(200)]
    assert min(drawn) < 2
    assert 14 < max(drawn) <= 16


def test_x1_a_policy_is_asked_by_keyword_too() -> None:
    policy: Any = retry_policy(wait=wait_fixed(2))
    assert policy.next(elapsed_time=1.0, attempts=1, error=ERROR) == 2
    assert policy.next(0, 1, ERROR, seed=None) == 2
    with pytest.raises(WorkflowRuntimeError, match="no use for seed=3"):
        policy.next(0, 1, ERROR, seed=3)


class ForTheReference:
    """A policy with the signature that the reference asks for, around one of ours."""

    inner: Any = retry_policy(wait=wait_fixed(3), stop=stop_after_attempt(2))

    def next(
        self, elapsed_time: float, attempts: int, error: Exception, *, seed: int | None = None
    ) -> float | None:
        found: float | None = self.inner.next(
            elapsed_time=elapsed_time, attempts=attempts, error=error, seed=seed
        )
        return found


@pytest.mark.parametrize("backend", BACKENDS)
def test_x1_a_policy_that_was_written_for_the_reference(backend: str) -> None:
    starts: list[float] = []

    class Flaky(Workflow):
        @step(retry_policy=ForTheReference())
        async def work(self, ev: StartEvent) -> StopEvent:
            starts.append(anyio.current_time())
            raise ERROR

    async def main() -> None:
        with pytest.raises(ValueError, match="no luck"):
            await Flaky().run()

    run_virtually(backend, main)
    assert starts == [0, 3]


def test_x1_policies_are_known_by_their_method() -> None:
    assert isinstance(retry_policy(), RetryPolicy)
    assert isinstance(ForTheReference(), RetryPolicy)
    assert not isinstance(wait_fixed(1), RetryPolicy)


def test_x1_exponential_waits_are_capped_at_a_minute() -> None:
    def delays(wait: Any) -> list[float | None]:
        policy = retry_policy(wait=wait, stop=stop_never)
        return [policy.next(0, attempt, ERROR) for attempt in (1, 6, 7, 99)]

    assert delays(wait_exponential()) == [1, 32, 60, 60]
    assert delays(wait_exponential(2, exp_base=3, max=timedelta(seconds=100), min=5)) == [
        5,
        100,
        100,
        100,
    ]
    assert delays(rp.wait_exponential_jitter(initial=4, jitter=0)) == [4, 60, 60, 60]
    assert delays(rp.wait_exponential_jitter(2, exp_base=1, jitter=0, max=9)) == [2, 2, 2, 2]
    assert rp.wait_full_jitter is rp.wait_random_exponential
    random.seed(1)
    drawn = [retry_policy(wait=rp.wait_full_jitter(min=5)).next(0, 2, ERROR) or 0] * 50
    assert all(2 <= each <= 5 for each in drawn)
    assert max(delays(rp.wait_random_exponential(8))[1:]) <= 60  # type: ignore[type-var]


@pytest.mark.parametrize(
    "wait", [rp.wait_exponential, rp.wait_random_exponential, rp.wait_exponential_jitter]
)
def test_x1_what_tenacity_has_in_another_order_is_given_by_keyword(wait: Any) -> None:
    with pytest.raises(TypeError, match="positional"):
        wait(1, 2)


def test_x1_a_pattern_is_searched_for_anywhere_in_the_message() -> None:
    errors = [ValueError("HTTP 503: rate limit"), ValueError("Rate limit"), ValueError("HTTP")]
    forever: Any = {"wait": wait_none(), "stop": stop_never}

    def retried(condition: Any) -> list[bool]:
        found = decisions(retry_policy(condition, **forever), *errors)
        return [delay is not None for delay in found]

    yes, no = rp.retry_if_exception_message, rp.retry_if_not_exception_message
    assert retried(yes(match="rate limit")) == [True, False, False]
    assert retried(no(match="rate limit|^Rate")) == [False, False, True]
    assert retried(yes(match=re.compile("RATE", re.IGNORECASE))) == [True, True, False]
    assert retried(yes(message="HTTP")) == [False, False, True]
    assert retried(no("HTTP")) == [True, True, False]


@pytest.mark.parametrize("given", [{}, {"message": "a", "match": "b"}], ids=["none", "both"])
def test_x1_a_condition_on_messages_takes_a_message_or_a_pattern(given: Any) -> None:
    with pytest.raises(TypeError, match=r"takes one of message= and match="):
        rp.retry_if_not_exception_message(**given)


class WaitsForTheReference:
    def __call__(self, attempts: int, *, seed: int | None = None) -> float:
        raise NotImplementedError

    def __repr__(self) -> str:
        return "WaitsForTheReference()"


def retries_for_the_reference(failure: BaseException) -> bool:
    raise NotImplementedError


def stops_for_the_reference(
    attempts: int, elapsed_time: float, *, upcoming_sleep: float = 0
) -> bool:
    raise NotImplementedError


@pytest.mark.parametrize(
    ("role", "strategy", "remedy"),
    [
        ("retry", lambda error: True, "retry_if_exception(f) makes a condition of a function f"),
        ("retry", rp.retry_never | (lambda exc: True), "retry_if_exception(f) makes a condition"),
        (
            "retry",
            lambda x: isinstance(x, OSError),
            "a parameter named 'state'; retry_if_exception(f)",
        ),
        ("retry", retries_for_the_reference, "retry_if_exception(f) makes a condition"),
        ("wait", lambda n: 2**n, "in state.attempt_number, from 1"),
        ("wait", WaitsForTheReference(), "takes (attempts, seed), but"),
        ("wait", WaitsForTheReference(), "in state.attempt_number, from 1"),
        ("stop", stops_for_the_reference, "state.seconds_since_start and state.upcoming_sleep"),
    ],
)
def test_x1_strategies_for_another_library_are_refused(
    role: str, strategy: Any, remedy: str
) -> None:
    with pytest.raises(WorkflowConfigurationError) as caught:
        retry_policy(**{role: strategy})
    assert str(caught.value).startswith(f"retry_policy({role}=...): ")
    assert "but a strategy is called with tenacity's call state" in str(caught.value)
    assert remedy in str(caught.value)


def annotated(call: tenacity.RetryCallState) -> bool:
    return call.attempt_number > 0


@pytest.mark.parametrize(
    "strategy",
    [lambda state: True, lambda retry_state: True, lambda _: True, lambda *args: True, annotated],
    ids=["named", "as in tenacity", "unused", "any", "annotated"],
)
def test_x1_strategies_of_ones_own_take_the_call_state(strategy: Any) -> None:
    assert decisions(retry_policy(retry=strategy), ERROR) == [5]


# --- What is refused ------------------------------------------------------------------------------


async def slow_strategy(state: tenacity.RetryCallState) -> bool:
    raise NotImplementedError


async def slow_predicate(exc: BaseException) -> Any:
    raise NotImplementedError


class Slow:
    """Called like a function, but async."""

    async def __call__(self, arg: object) -> bool:
        raise NotImplementedError

    def __repr__(self) -> str:
        return "Slow()"


looks_at_results = tenacity.retry_if_result(bool)
NO_RESULTS = (
    "retry_if_result looks at results, but a step is retried when it raises; "
    "raise an exception in the step"
)
slow_part = tenacity.asyncio.retry_if_exception(slow_predicate)
slow_condition = retry_if_exception(slow_predicate)  # type: ignore[arg-type]
slow_delay = wait_exception(slow_predicate)
slow_object = retry_if_exception(Slow())  # type: ignore[arg-type]
slow_either = slow_part | rp.retry_never  # type: ignore[operator]
no_strategy: Any = 3
partial: Any = functools.partial(slow_strategy)


@pytest.mark.parametrize(
    ("role", "wrong", "fault"),
    [
        ("retry", looks_at_results, NO_RESULTS),
        ("retry", retry_if_exception_type() | looks_at_results, NO_RESULTS),
        ("retry", retry_if_exception_type() & looks_at_results, NO_RESULTS),
        ("retry", rp.retry_never | (rp.retry_always & looks_at_results), NO_RESULTS),
        (
            "retry",
            tenacity.retry_if_not_result(bool) | retry_if_exception_type(),
            NO_RESULTS.replace("if_result", "if_not_result"),
        ),
        (
            "retry",
            TimeoutError,
            "TimeoutError is a class; use an instance, such as "
            "retry_if_exception_type(TimeoutError)",
        ),
        ("wait", wait_none, "wait_none is a class; use an instance, such as wait_fixed(5)"),
        (
            "stop",
            stop_after_attempt,
            "stop_after_attempt is a class; use an instance, such as stop_after_attempt(3)",
        ),
        (
            "retry",
            "always",
            "'always' is not a strategy; use one such as retry_if_exception_type(TimeoutError)",
        ),
        (
            "retry",
            False,
            "False is not a strategy; use one such as retry_if_exception_type(TimeoutError)",
        ),
        ("wait", 5, "5 is not a strategy; use one such as wait_fixed(5)"),
        (
            "wait",
            timedelta(1),
            f"{timedelta(1)!r} is not a strategy; use one such as wait_fixed(5)",
        ),
        ("wait", wait_chain(no_strategy), "3 is not a strategy; use one such as wait_fixed(5)"),
        ("wait", wait_none() + no_strategy, "3 is not a strategy; use one such as wait_fixed(5)"),
        ("stop", 3, "3 is not a strategy; use one such as stop_after_attempt(3)"),
        (
            "stop",
            stop_never | no_strategy,
            "3 is not a strategy; use one such as stop_after_attempt(3)",
        ),
        ("retry", slow_strategy, f"{slow_strategy!r} is async; strategies are plain functions"),
        ("wait", slow_strategy, f"{slow_strategy!r} is async; strategies are plain functions"),
        (
            "stop",
            stop_never & slow_strategy,
            f"{slow_strategy!r} is async; strategies are plain functions",
        ),  # type: ignore[operator]
        ("stop", partial, f"{partial!r} is async; strategies are plain functions"),
        ("wait", Slow(), "Slow() is async; strategies are plain functions"),
        ("retry", slow_part, f"{slow_part!r} is async; strategies are plain functions"),
        ("retry", slow_either, f"{slow_either!r} is async; strategies are plain functions"),  # type: ignore[operator]
        ("retry", slow_condition, f"{slow_condition!r} is async; strategies are plain functions"),
        ("wait", slow_delay, f"{slow_delay!r} is async; strategies are plain functions"),
        ("retry", slow_object, f"{slow_object!r} is async; strategies are plain functions"),  # type: ignore[arg-type]
    ],
)
def test_x1_retry_policy_refuses(role: str, wrong: Any, fault: str) -> None:
    with pytest.raises(WorkflowConfigurationError) as caught:
        retry_policy(**{role: wrong})
    assert str(caught.value) == f"retry_policy({role}=...): {fault}"


@pytest.mark.parametrize("name", ["retry_if_result", "retry_if_not_result"])
def test_x1_strategies_that_make_no_sense_are_not_offered(name: str) -> None:
    assert callable(getattr(tenacity, name))
    assert name not in rp.__all__


# --- @step(retry_policy=) --------------------------------------------------------------------------


class Slowly:
    async def next(self, elapsed_time: float, attempts: int, error: Exception, /) -> None:
        raise NotImplementedError

    def __repr__(self) -> str:
        return "Slowly()"


WRAP = "; wrap tenacity's strategies, as in retry_policy(stop=stop_after_attempt(3))"


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        (Slowly, "retry_policy must be a policy, not the class Slowly; use an instance of it"),
        (
            wait_fixed,
            "retry_policy must be a policy, not the class wait_fixed; use an instance of it",
        ),
        (
            ValueError,
            "retry_policy must be a policy, not the class ValueError; use an instance of it",
        ),
        (3, f"retry_policy must be a policy, not 3{WRAP}"),
        (True, f"retry_policy must be a policy, not True{WRAP}"),
        (stop_never, f"retry_policy must be a policy, not {stop_never!r}{WRAP}"),
        (
            retry_policy,
            "retry_policy must be a policy, not the function retry_policy; call it: retry_policy()",
        ),
        (SimpleNamespace(next=5), f"retry_policy must be a policy, not namespace(next=5){WRAP}"),
        (Slowly(), "next() of Slowly() is async; a policy is a plain method"),
    ],
)
def test_x1_step_refuses_what_is_no_policy(wrong: Any, fault: str) -> None:
    async def fetch(self: Any, ev: StartEvent) -> StopEvent: ...

    with pytest.raises(WorkflowValidationError) as caught:
        step(retry_policy=wrong)(fetch)
    assert str(caught.value) == f"step fetch: {fault}"


class Delays:
    """A policy of one's own: it inherits nothing."""

    def __init__(self, *delays: float | None) -> None:
        self.asked: list[tuple[float, int, Exception]] = []
        self.delays = iter(delays)

    def next(self, elapsed_time: float, attempts: int, error: Exception, /) -> float | None:
        self.asked.append((elapsed_time, attempts, error))
        return next(self.delays)


@pytest.mark.anyio
async def test_x1_policy_of_ones_own_is_asked_once_per_failure() -> None:
    policy = Delays(4, 0, None)

    class Fails(Workflow):
        @step(retry_policy=policy)
        async def work(self, ev: StartEvent) -> StopEvent:
            errors.append(ValueError(len(errors)))
            await anyio.sleep(1)
            raise errors[-1]

    errors: list[ValueError] = []
    handler = Fails().run()
    with pytest.raises(ValueError, match="2"):
        await handler
    assert policy.asked == [(1, 1, errors[0]), (6, 2, errors[1]), (7, 3, errors[2])]


@pytest.mark.anyio
async def test_x1_no_policy_never_retries() -> None:
    class Fails(Workflow):
        @step(retry_policy=None)
        async def work(self, ev: StartEvent) -> StopEvent:
            raise ERROR

    handler = Fails().run()
    with pytest.raises(ValueError, match="no luck"):
        await handler
    last = handler.get_stop_event()
    assert isinstance(last, WorkflowFailedEvent)
    assert (last.attempts, last.elapsed_seconds) == (1, 0)


# --- The same as tenacity --------------------------------------------------------------------------
#
# Each example is done twice, in two loops whose clocks begin at 0: by a step with a policy, and by
# tenacity around a plain coroutine that does the same. Drawn times are multiples of 1/8, so that
# comparing them with a limit is exact.


class Flaw(Exception):
    pass


class Glitch(Flaw):
    pass


KINDS: list[type[Exception]] = [Flaw, Glitch, ConnectionError, ValueError, tenacity.TryAgain]
MESSAGES = ["", "busy", "busy: 3", "gone"]


@attrs.frozen
class Act:
    """What one attempt does: it takes its time, perhaps sets the event that stops, and fails."""

    seconds: float
    kinds: tuple[type[Exception], ...]
    message: str
    sets_event: bool

    def error(self) -> Exception:
        """Make the exception, with its chain of causes."""
        chain = [kind(self.message) for kind in self.kinds]
        for error, cause in itertools.pairwise(chain):
            error.__cause__ = cause
        return chain[0]


set_by_act = threading.Event()
eighths = st.integers(0, 64).map(lambda n: n / 8)
times = eighths | eighths.map(lambda seconds: timedelta(seconds=seconds))
kinds = st.sampled_from(KINDS)
some_kinds = kinds | st.tuples(kinds, kinds)
acts = st.builds(
    Act,
    seconds=eighths,
    kinds=st.lists(kinds, min_size=1, max_size=3).map(tuple),
    message=st.sampled_from(MESSAGES),
    sets_event=st.sampled_from([False, False, False, True]),
)


def with_operators(
    leaves: st.SearchStrategy[Any], any_of: Any, all_of: Any
) -> st.SearchStrategy[Any]:
    """Combine strategies with `|` and `&`, and with what these make."""

    def grow(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        pairs = st.tuples(parts, parts)
        several = st.lists(parts, max_size=3)
        return (
            pairs.map(lambda pair: pair[0] | pair[1])
            | pairs.map(lambda pair: pair[0] & pair[1])
            | several.map(lambda found: any_of(*found))
            | several.map(lambda found: all_of(*found))
        )

    return st.recursive(leaves, grow, max_leaves=4)


messages = st.fixed_dictionaries({"message": st.sampled_from(MESSAGES)}) | st.fixed_dictionaries(
    {"match": st.sampled_from(["busy", "b?", "$", ".*3"])}
)
retries = with_operators(
    st.sampled_from([rp.retry_always, rp.retry_always, rp.retry_never])
    | st.builds(rp.retry_if_exception_type, some_kinds)
    | st.builds(rp.retry_if_not_exception_type, some_kinds)
    | st.builds(rp.retry_unless_exception_type, some_kinds)
    | st.builds(rp.retry_if_exception_cause_type, some_kinds)
    | st.sampled_from(MESSAGES).map(lambda text: retry_if_exception(lambda e: text in str(e)))
    | messages.map(lambda found: rp.retry_if_exception_message(**found))
    | messages.map(lambda found: rp.retry_if_not_exception_message(**found)),
    rp.retry_any,
    rp.retry_all,
)
exponents = {"multiplier": eighths, "max": times, "exp_base": st.sampled_from([1, 1.5, 2, 3])}
waits = st.recursive(
    st.builds(rp.wait_none)
    | st.builds(rp.wait_fixed, times)
    | st.builds(rp.wait_random, st.just(1), st.sampled_from([1, 2.5, timedelta(seconds=9)]))
    | st.builds(rp.wait_incrementing, times, st.integers(-2, 8), st.just(10) | times)
    | st.builds(rp.wait_exponential, **exponents, min=times)
    | st.builds(rp.wait_random_exponential, **exponents)
    | st.builds(rp.wait_full_jitter, **exponents)
    | st.builds(rp.wait_exponential_jitter, **exponents, jitter=times, min=times)
    | eighths.map(lambda s: wait_exception(lambda exc: s * len(str(exc)))),
    lambda parts: (
        st.tuples(parts, parts).map(lambda pair: pair[0] + pair[1])
        | st.lists(parts, min_size=1, max_size=3).map(sum)
        | st.lists(parts, max_size=3).map(lambda found: rp.wait_combine(*found))
        | st.lists(parts, min_size=1, max_size=3).map(lambda found: rp.wait_chain(*found))
    ),
    max_leaves=4,
)
stops = with_operators(
    st.builds(rp.stop_after_attempt, st.integers(0, 6))
    | st.builds(rp.stop_after_delay, st.integers(0, 400).map(lambda n: n / 8))
    | st.builds(rp.stop_before_delay, st.integers(0, 400).map(lambda n: n / 8))
    | st.just(rp.stop_never)
    | st.just(rp.stop_when_event_set(set_by_act)),
    rp.stop_any,
    rp.stop_all,
)


@attrs.define
class Course:
    """What became of the acts: when each attempt began, the delays, and how it ended."""

    starts: list[float] = attrs.field(factory=list)
    delays: list[float] = attrs.field(factory=list)
    end: str = ""

    def body(self, acts: list[Act]) -> Callable[[], Awaitable[None]]:
        """Return a coroutine function that does the next act each time."""

        async def attempt() -> None:
            self.starts.append(anyio.current_time())
            if len(self.starts) > len(acts):
                return
            act = acts[len(self.starts) - 1]
            await anyio.sleep(act.seconds)
            if act.sets_event:
                set_by_act.set()
            raise act.error()

        return attempt

    def next_of(self, policy: RetryPolicy) -> RetryPolicy:
        """Return a policy that keeps what the given one answers."""

        def decide(elapsed_time: float, attempts: int, error: Exception) -> float | None:
            delay = policy.next(elapsed_time, attempts, error)
            if delay is not None:
                self.delays.append(delay)
            return delay

        return SimpleNamespace(next=decide)


def course_of_step(backend: str, acts: list[Act], **strategies: Any) -> Course:
    """Let a step do the acts."""
    course = Course()
    attempt = course.body(acts)

    class Does(Workflow):
        @step(retry_policy=course.next_of(retry_policy(**strategies)))
        async def work(self, ev: StartEvent) -> StopEvent:
            await attempt()
            return StopEvent()

    async def main() -> None:
        handler = Does(timeout=None).run()
        try:
            await handler
        except Exception as exc:
            course.end = f"{type(exc).__name__}: {exc}"
            last = handler.get_stop_event()
            assert isinstance(last, WorkflowFailedEvent)
            assert last.attempts == len(course.starts)
            assert last.elapsed_seconds == anyio.current_time()

    run_virtually(backend, main)
    return course


def course_of_tenacity(backend: str, acts: list[Act], retry: Any, **strategies: Any) -> Course:
    """Let tenacity do the acts, by the virtual clock.

    Some of its conditions also retry what did not fail; a step that did not fail is done.
    """
    course = Course()
    failed = retry_if_exception_type()
    attempt = course.body(acts)

    async def sleep(seconds: float) -> None:
        course.delays.append(float(seconds))
        await anyio.sleep(seconds)

    async def main() -> None:
        try:
            retrying = tenacity.AsyncRetrying(sleep=sleep, retry=failed & retry, **strategies)
            await retrying(attempt)
        except tenacity.RetryError as exc:
            error = exc.last_attempt.exception()
            course.end = f"{type(error).__name__}: {error}"
        except Exception as exc:
            course.end = f"{type(exc).__name__}: {exc}"

    with mock.patch.object(tenacity, "time", SimpleNamespace(monotonic=anyio.current_time)):
        run_virtually(backend, main)
    return course


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=250)
@given(
    retry=retries,
    wait=waits,
    stop=stops,
    acts=st.lists(acts, max_size=7),
    seed=st.integers(0, 9),
)
@example(
    retry=rp.retry_never,
    wait=rp.wait_random_exponential(max=5) + rp.wait_fixed(1),
    stop=rp.stop_before_delay(20),
    acts=[Act(1, (tenacity.TryAgain,), "", False)] * 7,
    seed=1,
)
@example(
    retry=retry_if_not_exception_type(Glitch),
    wait=rp.wait_exponential(),
    stop=rp.stop_when_event_set(set_by_act) & rp.stop_after_delay(4),
    acts=[Act(0.5, (Flaw, Glitch), "busy", True)] * 7,
    seed=1,
)
def test_x1_attempts_and_delays_are_those_of_tenacity(
    backend: str, retry: Any, wait: Any, stop: Any, acts: list[Act], seed: int
) -> None:
    courses = []
    for course_of in (course_of_step, course_of_tenacity):
        set_by_act.clear()
        random.seed(seed)
        courses.append(course_of(backend, acts, retry=retry, wait=wait, stop=stop))
    ours, theirs = courses
    assert ours.delays == theirs.delays
    assert ours.starts == pytest.approx(theirs.starts, rel=1e-12)
    assert ours.end == theirs.end
