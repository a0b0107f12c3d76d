"""The memory of a waiting run, and whether a long-running program grows."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager

import attrs

from anyio_workflows import Event, StartEvent, StopEvent, Workflow, step

from . import backends, ours
from .measuring import Measure
from .tables import Table

NAME = "memory"

SAMPLES = 50


def kilobytes_each(
    waiting_runs: Callable[[int], AbstractAsyncContextManager[None]], runs: int
) -> Measure:
    """Return a measure of the memory that each run holds while it waits."""

    async def weigh() -> float:
        async with waiting_runs(10):
            pass  # what is imported or cached on first use must not count
        with _tracing():
            before = _kilobytes()
            async with waiting_runs(runs):
                after = _kilobytes()
        return (after - before) / runs

    return weigh


@contextmanager
def _tracing() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


def _kilobytes() -> float:
    """Return what has been allocated since tracing began, without garbage."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0] / 1024


class Begin(StartEvent):
    turns: int
    samples: list[float]


class Turn(Event):
    number: int
    begin: Begin


class SampledLoop(Workflow[None]):
    """A loop that samples the memory in use at equal intervals."""

    @step
    async def begin(self, ev: Begin) -> Turn:
        return Turn(number=0, begin=ev)

    @step
    async def turn(self, ev: Turn) -> Turn | StopEvent:
        begin = ev.begin
        if ev.number % (begin.turns // SAMPLES) == 0:
            begin.samples.append(_kilobytes())
        if ev.number == begin.turns:
            return StopEvent()
        return Turn(number=ev.number + 1, begin=begin)


async def sample_loop(turns: int) -> list[float]:
    """Sample the memory of one run at equal intervals."""
    samples: list[float] = []
    await SampledLoop(timeout=None).run(start_event=Begin(turns=turns, samples=samples))
    return samples


async def sample_runs(runs: int) -> list[float]:
    """Sample the memory of a program that starts one run after the other, at equal intervals."""
    samples = [_kilobytes()]
    for _ in range(SAMPLES):
        await ours.trivial(runs // SAMPLES)
        samples.append(_kilobytes())
    return samples


@attrs.frozen
class Endurance:
    """A job that takes long.

    Attributes:
        name: What the table calls it.
        sample: Does it a number of times, and returns the memory in use at equal intervals.
        times: How many times.
    """

    name: str
    sample: Callable[[int], Awaitable[list[float]]]
    times: int


def measure_flatness(backend_names: list[str], *, quick: bool) -> Table:
    """Return a table of how much more memory the second half of a job needs than the first."""
    table = Table(
        "Memory of a long-running program",
        ["work", "backend", "KB in the first half", "KB in the second half", "bytes each"],
        note="The maximum that Python has allocated, after a garbage collection, and its growth with each "
        "turn or run. Trio keeps up to a thousand deadlines that are no longer in use.",
    )
    for job in (
        Endurance("turns of one loop", sample_loop, 10_000 if quick else 100_000),
        Endurance("runs, one after the other", sample_runs, 4_000 if quick else 10_000),
    ):
        for backend in backend_names:
            with _tracing():
                samples = backends.run(backend, job.sample, job.times)
            first, second = max(samples[: SAMPLES // 2]), max(samples[SAMPLES // 2 :])
            each = (second - first) * 1024 / (job.times / 2)
            figures = (f"{first:.1f}", f"{second:.1f}", f"{each:+.2f}")
            table.add(f"{job.times:,} {job.name}", backend, *figures)
    return table
