"""How the cost per item grows with the number of items: not at all if it is linear (F7)."""

from __future__ import annotations

import attrs

from . import backends, by_hand, ours
from .measuring import Job, Measure, Spread, microseconds_each
from .tables import Table

NAME = "growth"

SIZES = (100, 1000, 10_000, 100_000)
BASE = 1000


@attrs.frozen
class Growth:
    """One job, measured with more and more items.

    Attributes:
        name: What the table calls it.
        ours: The job done with the library.
        by_hand: The job written by hand.
        slow: Whether the largest number takes so long that it is measured with `--only growth`
            alone, and in a single round.
    """

    name: str
    ours: Job
    by_hand: Job
    slow: bool = False


JOBS = (
    Growth("steps of a loop", ours.loop, by_hand.loop),
    Growth("items of a fan-out", ours.fan_out, by_hand.fan_out),
    Growth("items of a nested fan-out", ours.nested_fan_out, by_hand.nested_fan_out),
    Growth("streamed events", ours.stream, by_hand.stream),
    Growth("queued events", ours.queue, by_hand.queue),
    Growth("steps that wait at once", ours.questions, by_hand.questions, slow=True),
)


def measure_growth(backend_names: list[str], rounds: int, *, quick: bool, alone: bool) -> Table:
    """Return a table of the cost per item, and of its ratio to the cost with 1000 items.

    Args:
        backend_names: Where to measure.
        rounds: How many rounds to measure; more than 3 count as 3.
        quick: Whether to omit the large numbers.
        alone: Whether there is time for all of them.
    """
    sizes = SIZES[:-2] if quick else SIZES
    table = Table(
        "Cost per item as the number of items grows",
        ["items", "backend", *(f"of {size:,}" for size in sizes), "by hand, of most"],
        note=f"Microseconds per item, and the factor against the cost with {BASE:,} items. With the fewest "
        "items, the cost of the run itself shows. Growth that the hand-written program (last column) "
        "shares comes from garbage collection and cache misses.",
    )
    for job in JOBS:
        for backend in backend_names:
            here = sizes[:-1] if job.slow and not (alone or quick) else sizes
            found, by_hand_found = backends.run(backend, _measure, job, here, rounds)
            cells = [_cell(found[size], found[BASE]) if size in found else "-" for size in sizes]
            last = _cell(by_hand_found[here[-1]], by_hand_found[BASE])
            table.add(job.name, backend, *cells, last)
    return table


async def _measure(
    job: Growth, sizes: tuple[int, ...], rounds: int
) -> tuple[dict[int, float], dict[int, float]]:
    """Return the microseconds for each item, ours and by hand, for each number of items.

    All sizes in turn; the small ones several times, to last longer.
    """

    def measures(work: Job, of: tuple[int, ...]) -> dict[int, Measure]:
        many = min(10_000, sizes[-1])
        return {size: microseconds_each(work, size, max(1, many // size)) for size in of}

    sides = measures(job.ours, sizes), measures(job.by_hand, (BASE, sizes[-1]))
    found: list[dict[int, list[float]]] = [{size: [] for size in side} for side in sides]
    await sides[0][BASE]()  # warms up
    await sides[1][BASE]()
    for _ in range(1 if job.slow else min(rounds, 3)):
        for side, values in zip(sides, found, strict=True):
            for size, measure in side.items():
                values[size].append(await measure())
    ours_found, by_hand_found = (
        {size: Spread.of(values).median for size, values in side.items()} for side in found
    )
    return ours_found, by_hand_found


def _cell(cost: float, base: float) -> str:
    return f"{cost:.2f} (x{cost / base:.2f})"
