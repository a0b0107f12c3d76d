"""The tables of what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import attrs

from ..comparing import Results, median_cell, short
from ..tables import Table
from .load import LOADS, Load
from .sides import REFERENCE, Side
from .works import TARGETS, Target, Work

NOTE = (
    "Processor time is that of the server's process, over all of its threads. In parentheses: which part of "
    "the reference's that is, as the median over the rounds. A request that does nothing asks whether the process is healthy. Run to result: one request, which is answered when the run has ended. Delivered "
    "event: from the moment a run is told to write until all its readers have the last event, divided by events "
    "times readers; the writing of the events is part of it. The readers were there before the first event, and each checks that it "
    "gets all of them once, in order. Events without a pause are written as fast as the run can, with a checkpoint after each. First "
    "event: from the first request, on a new connection, until an event of a new run is there. Memory: resident, "
    "after a garbage collection; released from memory means kept in SQLite only, after 0.2 s. Our list is paged, the reference's is not: "
    "it answers with all of its runs. A garbage collection ends runs of the reference's that wait, since nothing else "
    "refers to them; so that they can be measured, its program keeps a reference to each."
)

LOAD_NOTE = (
    "Every reader checks that it got every event once and in order, and every result is checked. Processor time and seconds are from the first "
    "request to the last answer. Memory is resident, of the server's process."
)

FIGURES = [
    ("cpu", "request", "ms", 1e3),
    ("cpu", "result-1", "ms", 1e3),
    ("cpu", "result-20", "ms", 1e3),
    *(("cpu", f"stream-{readers}", "µs", 1e6) for readers in (1, 10, 100, 1000)),
    *(("cpu", f"tokens-{readers}", "µs", 1e6) for readers in (1, 10)),
    ("seconds", "first", "ms", 1e3),
    ("cpu", "first", "ms", 1e3),
    ("requests", "first", "", 1.0),
    ("memory", "idle", "KB", 1 / 1024),
    ("memory", "released", "KB", 1 / 1024),
    ("seconds", "list", "ms", 1e3),
    ("cpu", "list", "ms", 1e3),
    ("seconds", "list-all", "ms", 1e3),
    ("cpu", "list-all", "ms", 1e3),
]
"""The lines of the main table: the figure, the work, and the unit."""

NAMES = {"cpu": "processor time", "seconds": "time", "requests": "requests", "memory": "memory"}


def figures_table(results: Results, works: Sequence[Work], sides: Sequence[Side]) -> Table:
    table = Table("Servers", ["work", "figure", *(side.name for side in sides)], note=NOTE)
    by_name = {work.name: work for work in works}
    for key, name, unit, factor in FIGURES:
        if name not in by_name:
            continue
        cells = []
        for side in sides:
            cell = median_cell(results.figures(name, side, key), factor)
            if cell != "-" and key != "requests":
                cell += _part(results.ratio(name, key, side, REFERENCE))
            cells.append(cell)
        if set(cells) != {"-"}:
            table.add(by_name[name].title, f"{NAMES[key]}{unit and ', '}{unit}", *cells)
    return table


def _part(ratio: list[float] | None) -> str:
    """Return ` (1/8.2)` or ` (x1.3)`, or nothing if there is no ratio."""
    if ratio is None or (found := statistics.median(ratio)) <= 0:
        return ""
    return f" ({share(found)})"


def share(ratio: float) -> str:
    """Return a ratio as `1/8.2` or `x1.3`."""
    return f"x{short(ratio)}" if ratio >= 1 else f"1/{short(1 / ratio)}"


def targets_table(results: Results, sides: Sequence[Side]) -> Table:
    table = Table("Targets", ["target", "server", "measured", "met"])
    for target in TARGETS:
        for side in sides:
            if side is not REFERENCE and (verdict := _verdict(results, target, side)):
                table.add(target.text, side.name, *verdict)
    return table


def _verdict(results: Results, target: Target, side: Side) -> tuple[str, str] | None:
    if target.share is not None:
        ratio = results.ratio(target.work, target.key, side, REFERENCE)
        if ratio is None:
            return None
        found = statistics.median(ratio)
        return share(found), "yes" if found <= target.share else "no"
    figures = results.figures(target.work, side, target.key)
    if figures is None or target.most is None:
        return None
    found = statistics.median(figures)
    text = f"{short(max(found, 0) * target.unit)}{target.unit_name}"
    return text, "yes" if found <= target.most else "no"


def load_table(results: Results, sides: Sequence[Side], load: Load) -> Table:
    columns = ["load", "server", "checked", "seconds", "CPU, s"]
    table = Table("Load", [*columns, "MB before", "MB at most", "MB after"], note=LOAD_NOTE)
    for name, (_, title) in LOADS.items():
        for side in sides:
            figures = {
                key: results.figures(name, side, key)
                for key in ("delivered", "seconds", "cpu", "before", "peak", "after")
            }
            if figures["delivered"] is None:
                continue
            table.add(
                title.format(**attrs.asdict(load)),
                side.name,
                f"{figures['delivered'][0]:,.0f}",
                median_cell(figures["seconds"], 1),
                median_cell(figures["cpu"], 1),
                *(median_cell(figures[key], 2**-20) for key in ("before", "peak", "after")),
            )
    return table
