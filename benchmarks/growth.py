"""How the cost of one item grows with their number: not at all, where cost is linear (F7)."""

from __future__ import annotations

import statistics

import anyio
import attrs

from . import ours
from .measuring import Job, microseconds_each

NAME = "growth"

BASE = 1000


@attrs.frozen
class Growth:
    """One job, measured with more and more items.

    Attributes:
        name: What the table calls it.
        job: The job.
        sizes: The numbers of items; the first is what the others are compared with.
    """

    name: str
    job: Job
    sizes: tuple[int, ...] = (BASE, 10_000, 100_000)


JOBS = [
    Growth("fan-out", ours.fan_out),
    Growth("nested fan-out", ours.nested_fan_out),
    Growth("answered waits", ours.answered, (BASE, 10_000)),
]


async def measure_growth(job: Growth, rounds: int) -> dict[int, list[float]]:
    """Return the microseconds for each item, round by round, for each number of items.

    All sizes in turn; the small ones often enough to last as long as 10 000 items.
    """
    found: dict[int, list[float]] = {size: [] for size in job.sizes}
    measures = {
        size: microseconds_each(job.job, size, max(1, 10_000 // size)) for size in job.sizes
    }
    for _ in range(rounds):
        for size, measure in measures.items():
            found[size].append(await measure())
    return found


def report_growth(backend: str, rounds: int, *, quick: bool) -> None:
    """Print a line for each job: what one item costs, and how often that is of the smallest size."""
    for job in JOBS:
        if quick:
            job = attrs.evolve(job, sizes=job.sizes[:2])
        found = anyio.run(measure_growth, job, rounds, backend=backend)
        base = statistics.median(found[job.sizes[0]])
        cells = []
        for size, values in found.items():
            each = statistics.median(values)
            cells.append(f"{size:>9,}: {each:8.2f} us (x{each / base:.2f})")
        print(f"{job.name:20}{backend:9}{'  '.join(cells)}", flush=True)
