"""The event loops to measure on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from typing import Any, TypeVar

import anyio

T = TypeVar("T")

ASYNCIO, TRIO, UVLOOP = "asyncio", "trio", "uvloop"


def installed() -> list[str]:
    """Return the backends that can be used here."""
    return [name for name in (ASYNCIO, TRIO, UVLOOP) if find_spec(name)]


def run(backend: str, func: Callable[..., Awaitable[T]], *args: object) -> T:
    """Run an async function in a fresh event loop of one of the backends."""
    if backend == UVLOOP:
        options: dict[str, Any] = {"use_uvloop": True}
        return anyio.run(func, *args, backend=ASYNCIO, backend_options=options)
    return anyio.run(func, *args, backend=backend)
