"""The rows of the main table: how each job is measured, and its targets."""

from __future__ import annotations

from importlib.util import find_spec
from types import ModuleType

import attrs

from . import backends, by_hand, ours
from .by_hand import tuned
from .measuring import HAND, OURS, REFERENCE, TUNED, Job, Measure, Row, growth_of, microseconds_each
from .memory import kilobytes_each

MODULES: dict[str, ModuleType] = {OURS: ours, HAND: by_hand, TUNED: tuned}
"""The module of each side; a side takes part in the jobs for which its module has a function."""

if find_spec("workflows"):
    from . import reference

    MODULES[REFERENCE] = reference


MAIN = ("loop", "fan-out", "stream", "trivial")
"""The rows that are also measured on uvloop, for comparison; the targets do not apply there."""


def make_rows(backend: str, *, quick: bool = False) -> list[Row]:
    """Return the rows that are measured on a backend; with `quick` there are fewer items."""
    rows = [*_loops(quick), *_fans(quick), *_streams(quick), *_runs(quick)]
    if backend == backends.ASYNCIO:
        return rows
    rows = [attrs.evolve(row, sides=_without_reference(row)) for row in rows]
    if backend == backends.UVLOOP:
        rows = [attrs.evolve(row, targets={}) for row in rows if row.name in MAIN]
    return rows


def _without_reference(row: Row) -> dict[str, Measure]:
    return {side: measure for side, measure in row.sides.items() if side != REFERENCE}


def _loops(quick: bool) -> list[Row]:
    times = 1 if quick else 5  # 3000 steps take only a few milliseconds
    return [
        _timed(
            "loop",
            "loop of 3000, per step",
            3000,
            times,
            fewer={REFERENCE: 300},
            targets={HAND: 1.0, REFERENCE: 100},
        ),
        _timed(
            "ping_pong",
            "two steps in turn, per step",
            3000,
            times,
            fewer={REFERENCE: 300},
        ),
        _timed(
            "retrying_loop",
            "loop with retries configured, per step",
            3000,
            times,
            fewer={REFERENCE: 300},
        ),
        _timed(
            "counting_loop",
            "loop that writes typed state, per step",
            3000,
            times,
            fewer={REFERENCE: 300},
        ),
    ]


def _fans(quick: bool) -> list[Row]:
    times = 1 if quick else 5
    slow = 100 if quick else 1000  # the reference needs seconds for a thousand
    return [
        _timed(
            "fan_out",
            "fan-out of 1000, per item",
            1000,
            times,
            fewer={REFERENCE: slow},
            targets={HAND: 1.3, REFERENCE: 300},
        ),
        _timed("shared_fan_out", "fan-out, by hand into a shared list, per item", 1000, times),
        _growth("fan_out", 1000, 10_000, fewer={REFERENCE: (50, 500)}, most=1.2),
        _timed(
            "sleepy_fan_out",
            "fan-out, 100 workers that wait, per item",
            1000,
            fewer={REFERENCE: 200},
        ),
        _timed(
            "nested_fan_out",
            "nested fan-out, 100 x 10, per item",
            1000,
            times,
            fewer={REFERENCE: 300},
        ),
    ]


def _streams(quick: bool) -> list[Row]:
    events = 10_000 if quick else 100_000
    return [
        _timed(
            "stream",
            f"{events:,} streamed, per event",
            events,
            targets={HAND: 1.0, REFERENCE: 8},
        ),
        _timed("live_stream", "one event per loop turn, per event", events // 5),
        _timed(
            "questions",
            "1000 waits for answers, per wait",
            1000,
            fewer={REFERENCE: 100},
        ),
    ]


def _runs(quick: bool) -> list[Row]:
    trivial = 200 if quick else 1000
    many = 1000 if quick else 10_000
    return [
        _timed(
            "trivial",
            "trivial run, per run",
            trivial,
            fewer={REFERENCE: 200},
            targets={HAND: 2.0, REFERENCE: 6},
        ),
        _timed(
            "concurrent_runs",
            f"{many:,} concurrent runs, per run",
            many,
            fewer={REFERENCE: 1000},
            most_rounds=3,
        ),
        _timed("snapshot", f"snapshot of {many:,} queued events, per event", many),
        _idle(many),
        _kept_idle(many),
    ]


def _timed(
    job: str,
    work: str,
    items: int,
    times: int = 1,
    *,
    fewer: dict[str, int] | None = None,
    targets: dict[str, float] | None = None,
    most_rounds: int = 1000,
) -> Row:
    """Return a row of times; a side that does fewer items does them once."""
    fewer = fewer or {}
    sides = {
        side: microseconds_each(function, fewer.get(side, items), 1 if side in fewer else times)
        for side, function in _jobs(job).items()
    }
    fewer = {side: number for side, number in fewer.items() if number != items}
    return Row(
        job.replace("_", "-"), work, "µs", sides, fewer, targets or {}, most_rounds=most_rounds
    )


def _growth(
    job: str, small: int, large: int, *, fewer: dict[str, tuple[int, int]], most: float
) -> Row:
    """Return a row for the ratio of the cost per item with many items to that with few."""
    sides = {
        side: growth_of(function, *fewer.get(side, (small, large)))
        for side, function in _jobs(job).items()
    }
    return Row(
        "fan-out-growth",
        f"fan-out of {large:,} against {small:,}",
        "times",
        sides,
        {side: numbers[1] for side, numbers in fewer.items()},
        targets={OURS: most},
        compares=False,
    )


def _idle(runs: int) -> Row:
    """Return the row about memory. It hardly varies and is slow to trace: one round is enough."""
    fewer = {REFERENCE: 1000} if runs > 1000 else {}
    sides = {
        side: kilobytes_each(module.WaitingRuns, fewer.get(side, runs))
        for side, module in MODULES.items()
        if hasattr(module, "WaitingRuns")
    }
    targets = {HAND: 1.5, REFERENCE: 4.0}
    work = f"{runs:,} idle runs, per run"
    return Row("idle-runs", work, "KB", sides, fewer, targets, most_rounds=1, warms_up=False)


def _kept_idle(runs: int) -> Row:
    """Return the row about the memory of runs that a runtime keeps in memory."""
    return Row(
        "kept-idle-runs",
        f"{runs:,} idle runs in a runtime, per run",
        "KB",
        {OURS: kilobytes_each(ours.kept_waiting_runs, runs)},
        targets={OURS: 14},
        most_rounds=1,
        warms_up=False,
    )


def _jobs(name: str) -> dict[str, Job]:
    """Return the function for a job on each side that has one."""
    return {
        side: getattr(module, name) for side, module in MODULES.items() if hasattr(module, name)
    }
