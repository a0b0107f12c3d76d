"""What `import anyio_workflows` costs, in fresh interpreters."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec

from .measuring import HAND, OURS, REFERENCE, Measure, Result, Row, measure
from .tables import Table

NAME = "import"

_STATEMENT = "import anyio_workflows"
_BASELINE = "import anyio, attrs"
_REFERENCE = "import workflows"

_TIMED = """
from time import perf_counter
begun = perf_counter()
{statement}
print((perf_counter() - begun) * 1e3)
"""

_TIMING = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)")


async def measure_import(rounds: int) -> Result:
    """Compare with the imports that every hand-written program needs too.

    That flatters the baseline: AnyIO imports its own parts, and asyncio or trio, on first use.
    """
    sides = {OURS: _measure(_STATEMENT), HAND: _measure(_BASELINE)}
    if find_spec("workflows"):
        sides[REFERENCE] = _measure(_REFERENCE)
    row = Row(NAME, _STATEMENT, "ms", sides, targets={REFERENCE: 2.0})
    return await measure(row, rounds, "-")


def _measure(statement: str) -> Measure:
    async def measured() -> float:
        return _milliseconds(statement)

    return measured


def _milliseconds(statement: str) -> float:
    """Return the duration of the statement, without the start of the interpreter.

    All sides are compiled beforehand: the warm-up round writes the bytecode.
    """
    command = [sys.executable, "-c", _TIMED.format(statement=statement)]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return float(done.stdout)


def list_imports() -> Table:
    """Return a table of what is imported beyond the baseline, the slowest first."""
    table = Table(
        f"What `{_STATEMENT}` imports beyond `{_BASELINE}`",
        ["package", "modules", "ms"],
        note="From `python -X importtime`, which adds time of its own; each module without its imports.",
    )
    known = {module for module, _ in _import_times(_BASELINE)}
    packages: dict[str, list[int]] = {}
    for module, microseconds in _import_times(_STATEMENT):
        if module not in known:
            packages.setdefault(module.partition(".")[0], []).append(microseconds)
    for package, times in sorted(packages.items(), key=lambda item: -sum(item[1]))[:12]:
        table.add(package, str(len(times)), f"{sum(times) / 1e3:.1f}")
    return table


def _import_times(statement: str) -> list[tuple[str, int]]:
    """Return each imported module with its own microseconds, those of its imports left out."""
    command = [sys.executable, "-X", "importtime", "-c", statement]
    report = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    return [(name, int(own)) for own, name in _TIMING.findall(report)]
