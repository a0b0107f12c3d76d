"""Fixtures that every test can use."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from .virtual_time import VirtualTimeLoop

HAS_TRIO = importlib.util.find_spec("trio") is not None
BACKENDS = ["asyncio", "trio"] if HAS_TRIO else ["asyncio"]


def virtual_backend(name: str) -> tuple[str, dict[str, Any]]:
    """Return a backend and its options, as `anyio.run()` takes them, under virtual time."""
    if name == "asyncio":
        return name, {"loop_factory": VirtualTimeLoop}
    from trio.testing import MockClock

    return name, {"clock": MockClock(autojump_threshold=0)}


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Run an async test on each backend that is installed, under virtual time."""
    return virtual_backend(request.param)
