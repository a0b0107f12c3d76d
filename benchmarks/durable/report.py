"""The tables of what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs

from ..tables import Table
from .rounds import Measurement
from .sides import STRICT, UNKEPT, Side
from .works import WORKS, Work

STEPS_NOTE = (
    "A step does next to nothing: it hands a number on. The clock runs from a gate at which all runs meet "
    "until all have ended and everything is written; their start is not in it. CPU is that of the process "
    "and of the database server. A sync is a call of `fsync` or `fdatasync` of either. *Eventual* and "
    "LangGraph's *async* let a run continue before its last step is on the disk. In parentheses: how many times "
    "as long it took as ours on SQLite, round by round, with the least and the most."
)
OTHER_NOTE = (
    "Start: until a run is on the disk. One step: from the start of a run of one step to its result. "
    "Answer: from sending it to the step that waited. These are medians of runs one after the other. "
    "Recovery: a process is killed when each of its runs is inside its second step; from opening the "
    "database in another process until all runs have finished that step, per run. Memory and disk: what a run holds "
    "that waits for an answer, as resident memory and after a checkpoint of the database. Starts at once: {together:,} "
    "runs; recovery, memory and disk: {many:,}; or the number in parentheses. LangGraph keeps no run in memory that "
    "waits, and recovers nothing by itself: the program resumes each run by its name. *Released from memory* is a runtime with "
    "`idle_after`, whose runs have all been released before the first answer."
)

Values = Sequence[Measurement]


@attrs.define
class Results:
    """What was measured.

    Attributes:
        values: For each work and side, one measurement a round.
        problems: What was not measured, and why.
    """

    values: dict[tuple[str, Side], Values] = attrs.Factory(dict)
    problems: dict[str, str] = attrs.Factory(dict)

    def figures(self, work: str, side: Side, key: str) -> list[float] | None:
        """Return a figure of each round, or `None` if the side was not measured or has none."""
        found = [measured.get(key) for measured in self.values.get((work, side), ())]
        return None if not found or None in found else [float(value) for value in found]  # type: ignore[arg-type]

    def ratio(self, work: str, key: str, side: Side, base: Side) -> list[float] | None:
        """Return a figure as a multiple of another side's, round by round; `None` for the same side."""
        if side is base:
            return None
        figures, bases = self.figures(work, side, key), self.figures(work, base, key)
        if figures is None or bases is None or not all(bases):
            return None
        return [figure / other for figure, other in zip(figures, bases, strict=True)]


def base_of(side: Side, sides: Sequence[Side]) -> Side:
    """Return the side that ratios refer to: ours on SQLite, on the same backend; else itself."""
    for other in sides:
        if other.name == STRICT and other.backend == side.backend:
            return other
    return side


def steps_table(
    results: Results, works: Sequence[Work], sides: Sequence[Side], *, quick: bool
) -> Table:
    columns = ["work", "side", "backend", "steps per second", "µs per step"]
    table = Table("Steps", [*columns, "CPU µs per step", "syncs per 1,000 steps"], note=STEPS_NOTE)
    for work in works:
        for side in sides:
            seconds = results.figures(work.name, side, "seconds")
            if seconds is None:
                continue
            cell = _times(results.ratio(work.name, "seconds", side, base_of(side, sides)))
            items = statistics.median(results.figures(work.name, side, "items") or [0])
            table.add(
                work.title(side, quick=quick),
                side.name,
                side.backend,
                f"{1 / statistics.median(seconds):,.0f}",
                f"{_short(statistics.median(seconds) * 1e6)}{cell}",
                _median(results.figures(work.name, side, "cpu"), 1e6),
                _median(results.figures(work.name, side, "syncs"), 1000 / items),
            )
    return table


OTHER = [
    ("start", "start", "start, ms", 1e3),
    ("start", "together", "starts at once, ms each", 1e3),
    ("start", "end", "one step, ms", 1e3),
    ("answer", "seconds", "answer, ms", 1e3),
    ("recovery", "seconds", "recovery, ms each", 1e3),
    ("wait", "memory", "memory, KB each", 1 / 1024),
    ("wait", "disk", "disk, bytes each", 1.0),
]
"""The columns of the second table: the work, the figure, its heading, and its unit."""

MANY = ("recovery", "wait")
"""The works whose figures depend on the number of runs."""


def other_table(
    results: Results, works: Mapping[str, Work], sides: Sequence[Side], *, quick: bool
) -> Table:
    columns = [(work, key, title, unit) for work, key, title, unit in OTHER if work in works]
    by_name = {work.name: work for work in WORKS}
    sizes = {name: work.quick if quick else work.ours for name, work in by_name.items()}
    note = OTHER_NOTE.format(together=sizes["start"]["together"], many=sizes["wait"]["runs"])
    table = Table(
        "Start, answers, recovery, and waiting",
        ["side", "backend", *(title for _, _, title, _ in columns)],
        note=note,
    )
    for side in sides:
        cells = []
        for name, key, _, unit in columns:
            cell = _median(results.figures(name, side, key), unit)
            if cell != "-":
                cell += _times(results.ratio(name, key, side, base_of(side, sides)))
                size = "together" if key == "together" else "runs"
                items = by_name[name].sizes(side, quick=quick)[size]
                if (name in MANY or key == "together") and items != sizes[name][size]:
                    cell += f" ({items:,})"
            cells.append(cell)
        if set(cells) - {"-"}:
            table.add(side.name, side.backend, *cells)
    return table


TARGETS = [
    (UNKEPT, "at most 15 times the step in memory", 1 / 15),
    ("DBOS, PostgreSQL", "10 times as fast as plain DBOS", 10.0),
    ("LangGraph, SQLite, sync", "10 times as fast as LangGraph on SQLite", 10.0),
]
"""The targets for a step of 1,000 runs at once: how many times as long the other side has to take."""


def targets_table(results: Results, sides: Sequence[Side]) -> Table:
    table = Table(
        "Targets",
        ["target: a step on SQLite with 1,000 runs at once", "backend", "measured", "met"],
    )
    for name, target, least in TARGETS:
        for side in sides:
            ratio = results.ratio("steps-1000", "seconds", side, base_of(side, sides))
            if side.name != name or ratio is None:
                continue
            found = statistics.median(ratio)
            measured = f"{_short(found)} times" if least >= 1 else f"{_short(1 / found)} times"
            table.add(target, side.backend, measured, "yes" if found >= least else "no")
    return table


def problems_table(results: Results) -> Table:
    table = Table("Not measured", ["what", "why"])
    for what, why in results.problems.items():
        table.add(what, why)
    return table


def write_markdown(path: Path, command: str, tables: Sequence[Table]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    head = f"# Durable runs\n\nWritten by `{command}`; do not edit.\n"
    path.write_text("\n".join([head, *(table.as_markdown() for table in tables)]), "utf-8")


def _median(values: list[float] | None, unit: float) -> str:
    return "-" if values is None else _short(statistics.median(values) * unit)


def _times(ratio: list[float] | None) -> str:
    """Return ` (x12, 11-14)`, or nothing if there is no ratio."""
    if ratio is None:
        return ""
    low, high = min(ratio), max(ratio)
    spread = "" if len(ratio) == 1 else f", {_short(low)}-{_short(high)}"
    return f" (x{_short(statistics.median(ratio))}{spread})"


def _short(value: float) -> str:
    """Return three significant digits."""
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:.3g}"
