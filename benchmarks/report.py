"""The main table, and the file with all tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .measuring import HAND, OURS, REFERENCE, SIDES, TUNED, Result, Spread
from .tables import Table

NOTE = (
    "Figures are medians over the rounds. In parentheses: the quartiles of a ratio, which is computed "
    "round by round, or the number of items if the reference did fewer. *By hand* is AnyIO as experts "
    "write it, which the targets refer to; *tuned* is the same optimised to the last microsecond, for "
    "the jobs where that gains anything. *Reference* is llama-index-workflows. A dash means that there "
    "is no such side or no target."
)


def main_table(results: Sequence[Result]) -> Table:
    """Return the table of all rows."""
    columns = ["work", "backend", *SIDES, "ours / by hand", "ours / tuned", "reference / ours"]
    table = Table("Side by side", [*columns, "target", "met"], note=NOTE)
    for result in results:
        table.add(
            f"{result.row.work} ({result.row.unit})",
            result.backend,
            *(_figure(result, side) for side in SIDES),
            _ratio(result.ratio(HAND)),
            _ratio(result.ratio(TUNED)),
            _times(result.ratio(REFERENCE)),
            _targets(result),
            _verdict(result),
        )
    return table


def _figure(result: Result, side: str) -> str:
    found = result.figure(side)
    if found is None:
        return "-"
    text = _short(found.median)
    fewer = result.row.fewer.get(side)
    return text if fewer is None else f"{text} ({fewer:,})"


def _ratio(found: Spread | None) -> str:
    if found is None:
        return "-"
    return f"{found.median:.2f} ({found.low:.2f}-{found.high:.2f})"


def _times(found: Spread | None) -> str:
    """Return how many times faster we are than the other side."""
    if found is None:
        return "-"
    return f"{_short(1 / found.median)} ({_short(1 / found.high)}-{_short(1 / found.low)})"


def _targets(result: Result) -> str:
    words = {OURS: "ours ≤ {:g}", HAND: "by hand ≤ {:g}", REFERENCE: "reference ≥ {:g}"}
    aims = [
        words[side].format(target)
        for side, target in result.row.targets.items()
        if side in result.values
    ]
    return ", ".join(aims) or "-"


def _verdict(result: Result) -> str:
    missed = result.missed()
    if missed is None:
        return "-"
    return "no: " + ", ".join(missed) if missed else "yes"


def _short(value: float) -> str:
    """Return three significant digits."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:.3g}"


def write_markdown(path: Path, command: str, tables: Sequence[Table], picture: Path | None) -> None:
    """Write all tables into one file, with the picture below the first."""
    parts = ["# Benchmarks\n", f"Written by `{command}`; do not edit.\n"]
    for number, table in enumerate(tables):
        parts.append(table.as_markdown())
        if number == 0 and picture is not None:
            parts.append(f"![Our cost as a multiple of the others']({picture.name})\n")
    path.write_text("\n".join(parts), encoding="utf-8")
