"""What it takes to start: imports, and the help of the command line, in fresh interpreters."""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

from ..comparing import short
from ..tables import Table

OURS = (
    ("import anyio_workflows",),
    ("import anyio_workflows.server",),
    ("import anyio_workflows.client",),
    ("python -m anyio_workflows --help", "-m", "anyio_workflows", "--help"),
)

EMPTY = ("an empty program", "-c", "pass")

REFERENCE = (("import llama_agents.server",), ("import llama_agents.client",))


def measure_starts(python: Path | None, rounds: int) -> Table:
    """Return a table of the processor time of processes that do nothing else.

    Args:
        python: The interpreter of the reference's environment; `None` if it is not installed.
        rounds: How often each is measured; once more than that, because the first time writes the bytecode.
    """
    table = Table(
        "Starts",
        ["process", "processor time, ms", "without that of the interpreter"],
        note="Of a process that does nothing else. Each in turn, as the median over the rounds.",
    )
    commands = {name: [sys.executable, *(rest or ("-c", name))] for name, *rest in (EMPTY, *OURS)}
    if python is not None:
        commands |= {name: [str(python), "-c", name] for (name,) in REFERENCE}
    times: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            used = _processor_time(command)
            if number:
                times[name].append(used * 1e3)
    medians = {name: statistics.median(found) for name, found in times.items()}
    for name, median in medians.items():
        table.add(name, short(median), short(median - medians[EMPTY[0]]))
    return table


def _processor_time(command: list[str]) -> float:
    """Return the processor time of a process, in seconds."""
    unwanted = ["PYTHONDONTWRITEBYTECODE"]
    if command[0] != sys.executable:
        unwanted.append("PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if name not in unwanted}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
