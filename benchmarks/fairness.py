"""How long other tasks wait next to a run whose steps never await (R6)."""

from __future__ import annotations

import statistics
from contextlib import AsyncExitStack
from time import perf_counter

import anyio
import attrs

from anyio_workflows import (
    Context,
    Event,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowHandler,
    step,
)

from . import backends
from .tables import Table

NAME = "fairness"

PERIOD = 0.005
"""Seconds between two beats, and between two events of a spinning run."""


class StartSpinning(StartEvent):
    burn: float


class Turn(Event):
    burn: float
    written: float


class Written(Event):
    at: float


class Spin(Workflow[None]):
    """A loop of steps that take `burn` seconds each and never await, until the run is cancelled."""

    @step
    async def begin(self, ev: StartSpinning) -> Turn:
        return Turn(burn=ev.burn, written=0.0)

    @step
    async def turn(self, ctx: Context, ev: Turn) -> Turn | StopEvent:
        now = perf_counter()
        written = ev.written
        if now - written > PERIOD:
            ctx.write_event_to_stream(Written(at=now))
            written = now
        while perf_counter() - now < ev.burn:
            pass
        return Turn(burn=ev.burn, written=written)


class StartBeating(StartEvent):
    beats: int


class Beat(Event):
    late: float
    at: float


class Heart(Workflow[None]):
    """A run that sleeps again and again, and publishes how late it woke up."""

    @step
    async def beat(self, ctx: Context, ev: StartBeating) -> StopEvent:
        for _ in range(ev.beats):
            begun = perf_counter()
            await anyio.sleep(PERIOD)
            now = perf_counter()
            ctx.write_event_to_stream(Beat(late=now - begun - PERIOD, at=now))
        return StopEvent()


@attrs.frozen
class Latencies:
    """Seconds of waiting, one for each sample."""

    timer: list[float] = attrs.Factory(list)
    reader: list[float] = attrs.Factory(list)
    own_reader: list[float] = attrs.Factory(list)
    cancel: list[float] = attrs.Factory(list)


def measure_fairness(backend_names: list[str], *, quick: bool) -> Table:
    """Return a table of how long other tasks wait: medians, 95th percentiles and maxima."""
    table = Table(
        "Latency next to a run that never awaits",
        [
            "next to",
            "backend",
            "timer of another run",
            "reader of another run",
            "reader of the spinning run",
            "cancel of a spinning run",
        ],
        note="Milliseconds: median / 95th percentile / maximum. Timer: how much longer than requested a sleep "
        "took. Reader: from writing an event to receiving it. Cancel: from the call of `cancel_run()` to "
        "the end of that run, while the first run keeps spinning. Next to nothing, a sleeping run is "
        "cancelled instead.",
    )
    conditions: list[tuple[str, float | None]] = [
        ("nothing", None),
        ("a run of empty steps", 0.0),
        ("a run of steps of 0.2 ms", 0.0002),
    ]
    samples = 20 if quick else 200
    for name, burn in conditions:
        for backend in backend_names:
            found = backends.run(backend, _measure, burn, samples)
            table.add(name, backend, *map(_cell, attrs.astuple(found, recurse=False)))
    return table


async def _measure(burn: float | None, samples: int) -> Latencies:
    found = Latencies()
    async with AsyncExitStack() as stack:
        if burn is not None:
            spinning = Spin(timeout=None).run(burn=burn)
            stack.push_async_callback(spinning.cancel_run)
            await _read_spinning(spinning, found, samples)
        await _read_beats(found, samples)
        for _ in range(samples // 4):
            found.cancel.append(await _time_cancel(burn))
    return found


async def _read_spinning(handler: WorkflowHandler[None], found: Latencies, samples: int) -> None:
    async for event in handler.stream_events():
        if isinstance(event, Written):
            found.own_reader.append(perf_counter() - event.at)
            if len(found.own_reader) == samples:
                return


async def _read_beats(found: Latencies, samples: int) -> None:
    async for event in Heart(timeout=None).run(beats=samples).stream_events():
        if isinstance(event, Beat):
            found.reader.append(perf_counter() - event.at)
            found.timer.append(event.late)


async def _time_cancel(burn: float | None) -> float:
    """Return how long it takes to cancel a run that is in progress."""
    handler = (
        Heart(timeout=None).run(beats=1_000_000)
        if burn is None
        else Spin(timeout=None).run(burn=burn)
    )
    async for _ in handler.stream_events():
        break
    begun = perf_counter()
    await handler.cancel_run()
    return perf_counter() - begun


def _cell(seconds: list[float]) -> str:
    if not seconds:
        return "-"
    most = statistics.quantiles(seconds, n=20, method="inclusive")[-1]
    found = statistics.median(seconds), most, max(seconds)
    return " / ".join(f"{value * 1e3:.2f}" for value in found)
