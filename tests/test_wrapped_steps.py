"""Decorators on steps: a plain `def` that wraps an async function is awaited, R5."""

from __future__ import annotations

import functools
import threading
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from anyio_workflows import Context, StartEvent, StopEvent, Workflow, step
from anyio_workflows.errors import WorkflowRuntimeError
from anyio_workflows.resource import Resource
from anyio_workflows.retry_policy import retry_policy, stop_after_attempt, wait_fixed
from anyio_workflows.testing import check_termination

from .samples import Item

pytestmark = pytest.mark.anyio

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    """As tracing libraries have it: a plain function that hands over what it wraps."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        calls.append(function.__name__)
        return function(*args, **kwargs)

    return wrapper


def logged_twice(function: Callable[..., Any]) -> Callable[..., Any]:
    return logged(logged(function))


def plain_around_async(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def inner(*args: Any, **kwargs: Any) -> Any:
        return await function(*args, **kwargs)

    return logged(inner)


def async_around_plain(function: Callable[..., Any]) -> Callable[..., Any]:
    wrapped = logged(function)

    @functools.wraps(wrapped)
    async def outer(*args: Any, **kwargs: Any) -> Any:
        return await wrapped(*args, **kwargs)

    return outer


def with_other_names(function: Callable[..., Any]) -> Callable[..., Any]:
    """Has parameters of its own, and takes them by position."""

    @functools.wraps(function)
    def wrapper(itself: Any, event: Any) -> Any:
        calls.append(function.__name__)
        return function(itself, event)

    return wrapper


def by_keyword(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(self: Any, *, ev: Any) -> Any:
        calls.append(function.__name__)
        return function(self, ev)

    return wrapper


def partial(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a partial, which has no name of its own."""
    bound = functools.partial(function)
    functools.update_wrapper(bound, function)
    del bound.__wrapped__  # type: ignore[attr-defined]
    return logged(bound)


class _Callable:
    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        del self.__wrapped__  # type: ignore[attr-defined]
        self.function = function

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return await self.function(*args, **kwargs)


def callable_object(function: Callable[..., Any]) -> Callable[..., Any]:
    wrapper = logged(_Callable(function))
    wrapper.__signature__ = __import__("inspect").signature(function)  # type: ignore[attr-defined]
    return wrapper


class _Awaitable:
    def __init__(self, coroutine: Any) -> None:
        self.coroutine = coroutine

    def __await__(self) -> Any:
        return self.coroutine.__await__()


def any_awaitable(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        calls.append(function.__name__)
        return _Awaitable(function(*args, **kwargs))

    return wrapper


DECORATORS: list[Decorator] = [
    logged,
    logged_twice,
    plain_around_async,
    async_around_plain,
    with_other_names,
    by_keyword,
    partial,
    callable_object,
    any_awaitable,
]

calls: list[str] = []


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    calls.clear()


def in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@pytest.mark.parametrize("below", [True, False], ids=["step above", "step below"])
@pytest.mark.parametrize("decorator", DECORATORS)
async def test_r5_wrapped_async_step_is_awaited_in_the_loop(
    decorator: Decorator, below: bool
) -> None:
    async def work(self: Any, ev: StartEvent) -> StopEvent:
        await checkpoint()
        return StopEvent(result=in_main_thread())

    class Wrapped(Workflow):
        only = step(decorator(work)) if below else decorator(step(work))

    assert await Wrapped(timeout=5).run() is True
    assert set(calls) == {"work"}


async def test_r5_with_context_resources_timeout_and_retries() -> None:
    def connect() -> str:
        return "connected"

    class Wrapped(Workflow):
        @step(timeout=5, retry_policy=retry_policy(wait=wait_fixed(1), stop=stop_after_attempt(3)))
        @logged
        async def only(
            self, ctx: Context, ev: StartEvent, db: Annotated[str, Resource(connect)]
        ) -> StopEvent:
            await checkpoint()
            if ctx.retry_info().retry_number < 2:
                raise ValueError
            assert Context.get_step_context() is ctx
            return StopEvent(result=(db, in_main_thread()))

    assert await Wrapped().run() == ("connected", True)
    assert calls == ["only"] * 3


async def test_r5_timeout_cancels_what_a_wrapper_returned() -> None:
    class Wrapped(Workflow):
        @step(timeout=1)
        @logged
        async def only(self, ev: StartEvent) -> StopEvent:
            await anyio.sleep_forever()
            return StopEvent()

    with pytest.raises(TimeoutError, match="step only took longer than 1 s"):
        await Wrapped().run()


async def test_r5_wrapped_steps_fan_out_and_join() -> None:
    class Fan(Workflow):
        @step
        @logged
        async def split(self, ev: StartEvent) -> list[Item]:
            return [Item(n=n) for n in range(5)]

        @step
        @logged
        async def join(self, items: list[Item]) -> StopEvent:
            return StopEvent(result=[item.n for item in items])

    assert await Fan().run() == list(range(5))


async def test_r5_free_function_and_static_method() -> None:
    class Free(Workflow):
        @step
        @staticmethod
        @logged
        async def first(ev: StartEvent) -> Item:
            return Item(n=1)

    @step(workflow=Free)
    @logged
    async def second(ctx: Context, ev: Item) -> StopEvent:
        await checkpoint()
        return StopEvent(result=in_main_thread())

    assert await Free().run() is True
    assert calls == ["first", "second"]


async def test_r5_wrapper_that_knows_the_answer_itself() -> None:
    def cached(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return StopEvent(result="from the cache")

        return wrapper

    class Cached(Workflow):
        @step
        @cached
        async def only(self, ev: StartEvent) -> StopEvent:
            return StopEvent()

    assert await Cached().run() == "from the cache"


async def test_r5_wrapper_that_raises() -> None:
    def broken(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            raise LookupError("in the wrapper")

        return wrapper

    class Broken(Workflow):
        @step
        @broken
        async def only(self, ev: StartEvent) -> StopEvent:
            return StopEvent()

    with pytest.raises(LookupError, match="in the wrapper"):
        await Broken().run()


async def test_r5_wrapped_plain_step_stays_in_a_thread() -> None:
    class Wrapped(Workflow):
        @step
        @with_other_names
        def only(self, ev: StartEvent) -> StopEvent:
            return StopEvent(result=in_main_thread())

    assert await Wrapped().run() is False
    assert calls == ["only"]


async def test_r4_wrapped_async_generator_is_told() -> None:
    class Yields(Workflow):
        @step
        @logged
        async def only(self, ev: StartEvent) -> AsyncIterator[StopEvent]:  # type: ignore[misc]
            yield StopEvent()

        only.__annotations__["return"] = StopEvent

    with pytest.raises(WorkflowRuntimeError, match=r"step only returned .*; it yields; return one"):
        await Yields().run()


async def test_r5_wrapper_that_exhausts_an_async_generator() -> None:
    def last_one(function: Callable[..., Any]) -> Callable[..., Any]:
        async def last_of(events: AsyncIterator[Any]) -> Any:
            return [event async for event in events][-1]

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return last_of(function(*args, **kwargs))

        return wrapper

    async def only(self: Any, ev: StartEvent) -> Any:
        yield StopEvent(result=1)
        yield StopEvent(result=2)

    only.__annotations__["return"] = StopEvent

    class Last(Workflow):
        work = step(last_one(only))

    assert await Last().run() == 2


def test_v2_wrapped_steps_are_checked_as_async_ones() -> None:
    class Wrapped(Workflow):
        @step
        @logged
        async def first(self, ev: StartEvent) -> Item:
            await anyio.sleep(1)
            return Item()

        @step
        @logged
        async def last(self, ev: Item) -> StopEvent:
            return StopEvent()

    check_termination(Wrapped, max_examples=20)
