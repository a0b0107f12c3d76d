"""Fixtures that every test can use."""

from __future__ import annotations

import gc
import importlib.util
import logging
import os
import re
from collections.abc import Callable
from typing import Any

import anyio.lowlevel
import anyio.to_thread
import pytest
from hypothesis import HealthCheck, settings

from anyio_workflows.testing import virtual_time

# A slow machine fails no test; on CI the same examples are tried each time.
settings.register_profile(
    "suite",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize="CI" in os.environ,
)
settings.load_profile("suite")

# In development mode asyncio logs what takes longer than 0.1 s: on a slow machine anything does.
logging.getLogger("asyncio").addFilter(
    lambda record: not record.getMessage().startswith("Executing ")
)


def pytest_collection_finish() -> None:
    """Keep what was imported out of the garbage collections that tests ask for."""
    gc.collect()
    gc.freeze()


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name a test the same in each process that collects it: without the address of an object."""
    return re.sub(r" at 0x[0-9a-f]+", "", val) if isinstance(val, str) else None


HAS_TRIO = importlib.util.find_spec("trio") is not None
BACKENDS = ["asyncio", "trio"] if HAS_TRIO else ["asyncio"]


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Run an async test on each backend that is installed, under virtual time."""
    return virtual_time(request.param)


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write where the loop runs: virtual time does not wait for a thread."""

    async def run_here(func: Callable[..., Any], *args: Any, **options: Any) -> Any:
        await anyio.lowlevel.checkpoint()
        return func(*args)

    monkeypatch.setattr(anyio.to_thread, "run_sync", run_here)
