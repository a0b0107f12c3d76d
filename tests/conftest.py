"""Fixtures that every test can use."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from .virtual_time import VirtualTimeLoop

# A slow machine fails no test; on CI the same examples are tried each time.
settings.register_profile(
    "suite",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize="CI" in os.environ,
)
settings.load_profile("suite")

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
