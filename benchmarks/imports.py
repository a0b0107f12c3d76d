"""What `import anyio_workflows` costs, in fresh interpreters."""

from __future__ import annotations

import re
import subprocess
import sys
from time import perf_counter

from .measuring import Result, Row, measure

OURS = "import anyio_workflows"
BASELINE = "import anyio, attrs"

NAME = "import"

_TIMING = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)")


async def measure_import(rounds: int) -> Result:
    """Compare with importing what everybody who writes it by hand imports too.

    That flatters the baseline: AnyIO imports its own parts, and asyncio or trio, on first use.
    """

    async def ours() -> float:
        return _milliseconds(OURS)

    async def baseline() -> float:
        return _milliseconds(BASELINE)

    return await measure(Row(NAME, "ms", ours, baseline), rounds)


def interpreter_alone(rounds: int) -> float:
    """Return the milliseconds that Python takes to start and end with nothing to do."""
    return min(_milliseconds("pass") for _ in range(rounds))


def _milliseconds(code: str) -> float:
    begun = perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return (perf_counter() - begun) * 1e3


def extra_modules() -> list[tuple[float, str]]:
    """Return what is imported beyond the baseline, the dearest first.

    Modules count for the package that they are in: (milliseconds, package and number of modules).
    """
    known = {module for module, _ in _import_times(BASELINE)}
    packages: dict[str, list[int]] = {}
    for module, microseconds in _import_times(OURS):
        if module not in known:
            packages.setdefault(module.partition(".")[0], []).append(microseconds)
    return sorted(
        ((sum(times) / 1e3, f"{name} ({len(times)})") for name, times in packages.items()),
        reverse=True,
    )


def _import_times(code: str) -> list[tuple[str, int]]:
    """Return each imported module with its own microseconds, those of its imports left out."""
    command = [sys.executable, "-X", "importtime", "-c", code]
    report = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    return [(name, int(own)) for own, name in _TIMING.findall(report)]
