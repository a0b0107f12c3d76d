"""Measure rows: all sides in turn, as medians and ratios."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Awaitable, Callable, Mapping
from time import perf_counter

import attrs

Job = Callable[[int], Awaitable[None]]
"""An async function that does a job with the given number of items."""

Measure = Callable[[], Awaitable[float]]
"""An async function that does a job and returns its cost per item."""

OURS, HAND, TUNED, REFERENCE = "ours", "by hand", "tuned", "reference"
SIDES = (OURS, HAND, TUNED, REFERENCE)


@attrs.frozen
class Row:
    """One job, measured on every side that can do it.

    Attributes:
        name: What `--only` calls it.
        work: The job, and the item that the figures are about.
        unit: The unit of the figures.
        sides: How each side is measured.
        fewer: The number of items on a side that does fewer of them than the others.
        targets: The target by side. `HAND`: how many times as long ours may take. `REFERENCE`: how
            many times faster ours has to be. `OURS`: the limit of our own figure.
        compares: Whether the ratio of the sides' figures is meaningful.
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
    """The measurements of one row on one backend: for each side, one value per round."""

    row: Row
    backend: str
    values: Mapping[str, list[float]]

    def figure(self, side: str) -> Spread | None:
        """Return the cost per item on a side, or `None` if the side cannot do the job."""
        return Spread.of(self.values[side]) if side in self.values else None

    def ratio(self, side: str) -> Spread | None:
        """Return our cost as a multiple of another side's, computed round by round.

        A disturbance that lasts longer than a round hits both sides of the ratio.
        """
        if side not in self.values or not self.row.compares:
            return None
        pairs = zip(self.values[OURS], self.values[side], strict=True)
        return Spread.of([ours / other for ours, other in pairs])

    def missed(self) -> list[str] | None:
        """Return the sides whose target is missed; `None` if there is no target.

        Targets count to the second decimal.
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

    Each round begins with a different side, so that no side always follows the same one.
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
    """Return a measure of the ratio of the cost per item with many items to that with few.

    The small number is repeated until the total number of items is the same.
    """
    few = microseconds_each(job, small, large // small)
    many = microseconds_each(job, large)

    async def compare() -> float:
        cost = await few()
        return await many() / cost

    return compare
