"""Rows of several sides, measured in turn."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Awaitable, Callable, Mapping
from time import perf_counter

import attrs

Job = Callable[[int], Awaitable[None]]
"""Does something with the given number of items."""

Measure = Callable[[], Awaitable[float]]
"""Does a job and returns what one item of it costs."""

OURS, HAND, TUNED, REFERENCE = "ours", "by hand", "tuned", "reference"
SIDES = (OURS, HAND, TUNED, REFERENCE)


@attrs.frozen
class Row:
    """One job, measured on every side that can do it.

    Attributes:
        name: What `--only` calls it.
        work: What is done, and what the figures are given for.
        unit: Of the figures.
        sides: How each side is measured.
        fewer: The number of items on a side that does fewer of them than the others.
        targets: What is aimed at. `HAND`: ours takes at most so many times as long. `REFERENCE`:
            ours is at least so many times faster. `OURS`: our own figure is at most so high.
        compares: Whether the sides' figures have a ratio that says something.
        most_rounds: The number of rounds that suffices.
        warms_up: Whether the first round does not count.
    """

    name: str
    work: str
    unit: str
    sides: Mapping[str, Measure]
    fewer: Mapping[str, int] = attrs.field(factory=dict)
    targets: Mapping[str, float] = attrs.field(factory=dict)
    compares: bool = True
    most_rounds: int = 1000
    warms_up: bool = True


@attrs.frozen
class Spread:
    """The median and the quartiles of some values."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Summarize one value or more."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


@attrs.frozen
class Result:
    """What the rounds of one row gave on one backend: for each side one value per round."""

    row: Row
    backend: str
    values: Mapping[str, list[float]]

    def figure(self, side: str) -> Spread | None:
        """Return what one item costs on a side, if the side can do the job."""
        return Spread.of(self.values[side]) if side in self.values else None

    def ratio(self, side: str) -> Spread | None:
        """Return our cost as a multiple of another side's, each round compared with itself.

        A disturbance that lasts longer than a round hits both sides of the ratio.
        """
        if side not in self.values or not self.row.compares:
            return None
        pairs = zip(self.values[OURS], self.values[side], strict=True)
        return Spread.of([ours / other for ours, other in pairs])

    def missed(self) -> list[str] | None:
        """Return the sides whose target is missed; `None` if nothing is aimed at.

        What is aimed at counts to the second decimal.
        """
        verdicts = {}
        for side, target in self.row.targets.items():
            found = self.figure(OURS) if side == OURS else self.ratio(side)
            if found is not None:
                most = 1 / target if side == REFERENCE else target + 0.005
                verdicts[side] = found.median <= most
        if not verdicts:
            return None
        return [side for side, met in verdicts.items() if not met]


async def measure(row: Row, rounds: int, backend: str) -> Result:
    """Measure all sides of a row in turn; the first round warms up and does not count.

    Each round begins with another side, so that no side always comes after the same one.
    """
    sides = list(row.sides)
    values: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(0 if row.warms_up else 1, min(rounds, row.most_rounds) + 1):
        first = number % len(sides)
        for side in sides[first:] + sides[:first]:
            value = await row.sides[side]()
            if number > 0:
                values[side].append(value)
    return Result(row, backend, values)


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


def growth_of(job: Job, small: int, large: int) -> Measure:
    """Return a measure of how many times as much an item costs where there are more of them.

    The small number is done as often as it takes to make as many items.
    """
    few = microseconds_each(job, small, large // small)
    many = microseconds_each(job, large)

    async def compare() -> float:
        cost = await few()
        return await many() / cost

    return compare
