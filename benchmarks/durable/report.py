"""The tables of what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from ..comparing import Results, median_cell, short, times_cell
from ..tables import Table
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
            cell = times_cell(results.ratio(work.name, "seconds", side, base_of(side, sides)))
            items = statistics.median(results.figures(work.name, side, "items") or [0])
            table.add(
                work.title(side, quick=quick),
                side.name,
                side.backend,
                f"{1 / statistics.median(seconds):,.0f}",
                f"{short(statistics.median(seconds) * 1e6)}{cell}",
                median_cell(results.figures(work.name, side, "cpu"), 1e6),
                median_cell(results.figures(work.name, side, "syncs"), 1000 / items),
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
            cell = median_cell(results.figures(name, side, key), unit)
            if cell != "-":
                cell += times_cell(results.ratio(name, key, side, base_of(side, sides)))
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
            measured = f"{short(found)} times" if least >= 1 else f"{short(1 / found)} times"
            table.add(target, side.backend, measured, "yes" if found >= least else "no")
    return table
