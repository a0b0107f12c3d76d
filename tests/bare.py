"""Event loops as programs without AnyIO start them.

`anyio.run()`, and with it AnyIO's pytest plugin, notes which library is running. Here nobody does, so
AnyIO has to find out, and can do so only where there is a current task.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import anyio
import pytest

T = TypeVar("T")
Main = Callable[[], Coroutine[Any, Any, T]]

PATIENCE = 10
"""Real seconds after which a test that hangs fails."""


def _run_asyncio(main: Main[T]) -> T:
    return asyncio.run(main())


def _run_in_debug_mode(main: Main[T]) -> T:
    return asyncio.run(main(), debug=True)


def _run_eagerly(main: Main[T]) -> T:
    async def with_eager_tasks() -> T:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
        return await asyncio.create_task(main())

    return asyncio.run(with_eager_tasks())


def _run_uvloop(main: Main[T]) -> T:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())


def _run_trio(main: Main[T]) -> T:
    import trio

    return trio.run(main)


def _needs(module: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        importlib.util.find_spec(module) is None, reason=f"{module} is not installed"
    )


BARE_RUNNERS = [
    pytest.param(_run_asyncio, id="asyncio.run"),
    pytest.param(_run_trio, id="trio.run", marks=_needs("trio")),
    pytest.param(_run_in_debug_mode, id="asyncio.run-debug"),
    pytest.param(
        _run_eagerly,
        id="asyncio.run-eager",
        marks=pytest.mark.skipif(
            sys.version_info < (3, 12), reason="eager tasks came with Python 3.12"
        ),
    ),
    pytest.param(_run_uvloop, id="uvloop", marks=_needs("uvloop")),
]


def run_bare(runner: Callable[[Main[T]], T], main: Main[T]) -> T:
    """Run `main` in such an event loop, with a real clock, but not for ever."""

    async def bounded() -> T:
        with anyio.fail_after(PATIENCE):
            return await main()

    return runner(bounded)


def call_in_loop(func: Callable[..., object], *args: Any) -> None:
    """Have a function called in a callback of the current event loop, which is in no step's task."""
    if "trio" in sys.modules:
        import trio

        if trio.lowlevel.in_trio_run():
            trio.lowlevel.current_trio_token().run_sync_soon(func, *args)
            return
    asyncio.get_running_loop().call_soon(func, *args)
