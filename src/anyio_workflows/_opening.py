"""Opening what is asked for, and closing it, in one task (P5)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from inspect import isawaitable
from typing import Any

import attrs

from .resource import Need

__all__ = ["Opening", "leave"]


@attrs.frozen(eq=False)
class Opening:
    """What is made for one attempt of a step, or for one cached resource, and ends with it.

    Attributes:
        stack: Closes it, last opened first.
        cached: Returns a cached resource.
    """

    stack: AsyncExitStack
    cached: Callable[[Need], Awaitable[Any]]
    _made: dict[Need, Any] = attrs.field(factory=dict, init=False)

    async def arguments(self, needs: Mapping[str, Need]) -> dict[str, Any]:
        """Have the values of `needs`: each is made once, however often it is asked for."""
        return {param: await self._value_of(need) for param, need in needs.items()}

    async def _value_of(self, need: Need) -> Any:
        if need.cache:
            return await self.cached(need)
        if need not in self._made:
            self._made[need] = await self.make(need)
        return self._made[need]

    async def make(self, need: Need) -> Any:
        """Make a resource, after what it needs."""
        made = need.make(**await self.arguments(need.needs))
        if need.scoped and hasattr(type(made), "__aenter__"):
            return await self.stack.enter_async_context(made)
        if need.scoped and hasattr(type(made), "__enter__"):
            return self.stack.enter_context(made)
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
