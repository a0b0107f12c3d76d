"""Compare sides that are measured in processes of their own: in turn, as medians and ratios."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import attrs

from .tables import Table

SideT = TypeVar("SideT", bound=Hashable)

Measurement = Mapping[str, Any]
"""The figures of one measurement, by name."""


class FailedError(Exception):
    """A program did not measure what it was asked to."""


def measure_in_turn(
    sides: list[SideT], rounds: int, measure: Callable[[SideT], Measurement]
) -> tuple[dict[SideT, list[Measurement]], dict[SideT, str]]:
    """Measure sides in turn, and return what was measured in each round, and who failed and why.

    Each round begins with a different side, so that no side always follows the same one. A side that
    failed once is not asked again.
    """
    measured: dict[SideT, list[Measurement]] = {side: [] for side in sides}
    failed: dict[SideT, str] = {}
    for number in range(rounds):
        first = number % len(sides) if sides else 0
        for side in sides[first:] + sides[:first]:
            if side in failed:
                continue
            try:
                measured[side].append(measure(side))
            except FailedError as error:
                failed[side] = str(error)
    return {side: values for side, values in measured.items() if side not in failed}, failed


@attrs.define
class Results:
    """What was measured.

    Attributes:
        values: For each work and side, one measurement a round.
        problems: What was not measured, and why.
    """

    values: dict[tuple[str, Hashable], Sequence[Measurement]] = attrs.Factory(dict)
    problems: dict[str, str] = attrs.Factory(dict)

    def figures(self, work: str, side: Hashable, key: str) -> list[float] | None:
        """Return a figure of each round, or `None` if the side was not measured or has none."""
        found = [measured.get(key) for measured in self.values.get((work, side), ())]
        return None if not found or None in found else [float(value) for value in found]  # type: ignore[arg-type]

    def ratio(self, work: str, key: str, side: Hashable, base: Hashable) -> list[float] | None:
        """Return a figure as a multiple of another side's, round by round; `None` for the same side."""
        if side is base:
            return None
        figures, bases = self.figures(work, side, key), self.figures(work, base, key)
        if figures is None or bases is None or not all(bases):
            return None
        return [figure / other for figure, other in zip(figures, bases, strict=True)]


def median_cell(values: list[float] | None, unit: float) -> str:
    """Return the median in a unit, or `-` if there are no values."""
    return "-" if values is None else short(statistics.median(values) * unit)


def times_cell(ratio: list[float] | None) -> str:
    """Return ` (x12, 11-14)`, or nothing if there is no ratio."""
    if ratio is None:
        return ""
    low, high = min(ratio), max(ratio)
    spread = "" if len(ratio) == 1 else f", {short(low)}-{short(high)}"
    return f" (x{short(statistics.median(ratio))}{spread})"


def short(value: float) -> str:
    """Return three significant digits."""
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:.3g}"


def problems_table(results: Results) -> Table:
    """Return a table of what was not measured, and why."""
    table = Table("Not measured", ["what", "why"])
    for what, why in results.problems.items():
        table.add(what, why)
    return table


def write_markdown(path: Path, title: str, command: str, tables: Sequence[Table]) -> None:
    """Write a page of tables, which says with which command it was made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = f"# {title}\n\nWritten by `{command}`; do not edit.\n"
    path.write_text("\n".join([head, *(table.as_markdown() for table in tables)]), "utf-8")


def tell(what: str) -> None:
    """Report on standard error what is being done."""
    print(f"... {what}", file=sys.stderr, flush=True)
