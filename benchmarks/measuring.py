"""Time and memory of one job, and both sides measured in turn."""

from __future__ import annotations

import gc
import statistics
import tracemalloc
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from time import perf_counter

import anyio
import attrs

Job = Callable[[int], Awaitable[None]]
"""Does something with the given number of items."""

Measure = Callable[[], Awaitable[float]]
"""Does a job and returns what one item of it costs."""


@attrs.frozen
class Row:
    """One job, measured on both sides.

    Attributes:
        name: What `--only` calls it.
        unit: Of what the measures return.
        ours: The job done with the library.
        by_hand: The job written by hand.
        target: The highest ratio that meets the aim; `None` for a row that is just shown.
        most_rounds: The number of rounds that suffices.
    """

    name: str
    unit: str
    ours: Measure
    by_hand: Measure
    target: float | None = None
    most_rounds: int = 1000


@attrs.frozen
class Result:
    """What the rounds of one row gave: one pair of values for each round."""

    ours: list[float]
    by_hand: list[float]

    @property
    def ratios(self) -> list[float]:
        """Ours against written by hand, round by round."""
        return [ours / by_hand for ours, by_hand in zip(self.ours, self.by_hand, strict=True)]

    @property
    def ratio(self) -> float:
        """The median of the ratios: a disturbance of one round does not move it."""
        return statistics.median(self.ratios)


async def measure(row: Row, rounds: int) -> Result:
    """Measure both sides in turn; the first round warms up and does not count."""
    result = Result([], [])
    for number in range(min(rounds, row.most_rounds) + 1):
        pair = await row.ours(), await row.by_hand()
        if number:
            result.ours.append(pair[0])
            result.by_hand.append(pair[1])
    return result


def microseconds_each(job: Job, items: int, times: int = 1) -> Measure:
    """Return a measure of the time that `job` takes for each of its items.

    The garbage collector stays on, as it is in real programs, but starts with nothing to do.
    """

    async def time_job() -> float:
        gc.collect()
        begun = perf_counter()
        for _ in range(times):
            await job(items)
        return (perf_counter() - begun) / (items * times) * 1e6

    return time_job


def kilobytes_each(
    idle_runs: Callable[[int], AbstractAsyncContextManager[None]], runs: int
) -> Measure:
    """Return a measure of the memory that each run keeps while it waits."""

    async def weigh() -> float:
        tracemalloc.start()
        try:
            gc.collect()
            before, _ = tracemalloc.get_traced_memory()
            async with idle_runs(runs):
                await anyio.wait_all_tasks_blocked()
                gc.collect()
                after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        return (after - before) / runs / 1024

    return weigh
