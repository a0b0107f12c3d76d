"""Opening what is asked for, and closing it, in one task (P5)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from inspect import isawaitable
from typing import Any

from .resource import Need

__all__ = ["arguments", "leave", "make"]


async def arguments(
    needs: Mapping[str, Need], stack: AsyncExitStack, cached: Callable[[Need], Awaitable[Any]]
) -> dict[str, Any]:
    """Have the values of `needs`: the cached ones from `cached`, the others made onto `stack`."""
    return {
        param: await (cached(need) if need.cache else make(need, stack, cached))
        for param, need in needs.items()
    }


async def make(need: Need, stack: AsyncExitStack, cached: Callable[[Need], Awaitable[Any]]) -> Any:
    made = need.make(**await arguments(need.needs, stack, cached))
    if need.scoped and hasattr(type(made), "__aenter__"):
        return await stack.enter_async_context(made)
    if need.scoped and hasattr(type(made), "__enter__"):
        return stack.enter_context(made)
    return await made if isawaitable(made) else made


async def leave(stack: AsyncExitStack, error: BaseException | None) -> BaseException | None:
    """Close what is on the stack because of `error`; return what is to be raised then, if anything.

    That is `error` itself, also where something on the stack swallowed it, or a task group there
    wrapped it.
    """
    try:
        if error is None:
            await stack.aclose()
        else:
            await stack.__aexit__(type(error), error, error.__traceback__)
    except BaseException as exc:
        # AnyIO rebuilds the groups that pass a task group on trio, so it is their leaves that count.
        return error if error is not None and _leaves(exc) <= _leaves(error) else exc
    return error


def _leaves(exc: BaseException) -> set[int]:
    if isinstance(exc, BaseExceptionGroup):
        return set().union(*map(_leaves, exc.exceptions))
    return {id(exc)}
