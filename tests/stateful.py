"""What the tests of a run's state share: a class for it, and ways to write it."""

from typing import Any

import anyio
import attrs

from anyio_workflows import Context, Workflow
from anyio_workflows.state import DictState, StateStore


@attrs.define
class Count:
    """A state with a class."""

    n: int = 0
    seen: list[Any] = attrs.field(factory=list)


async def bump(store: StateStore[Any], pause: float = 1) -> int:
    """Count up in an edit that takes some time."""
    async with store.edit_state() as state:
        before: int = state.n
        await anyio.sleep(pause)
        state.n = before + 1
    return before + 1


async def count_for_ever(ctx: Context) -> None:
    """Begin an edit that never ends."""
    async with ctx.store.edit_state() as state:
        state.n = 99
        await anyio.sleep_forever()


async def seeded(workflow: Workflow, **values: Any) -> Context:
    """Return a context for a run, with a state."""
    ctx: Context = Context(workflow)
    await ctx.store.set_state(DictState(values))
    return ctx
