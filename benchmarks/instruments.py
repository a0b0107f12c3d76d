"""What it costs a step to be told about (I2): by instruments that do nothing, and by OpenTelemetry."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from anyio_workflows.instrument import Instrument

from . import backends, ours
from .measuring import Measure, Row, Spread, measure, microseconds_each
from .tables import Table

NAME = "instruments"

ALONE = "none"
STEPS = 3000


class Silent(Instrument):
    """Is told everything, and does nothing."""

    def run_started(self, run: Any) -> None: ...
    def run_ended(self, run: Any, result: Any) -> None: ...
    def event_written(self, run: Any, record: Any) -> None: ...
    def event_sent(self, run: Any, sent: Any) -> None: ...
    def execution_queued(self, execution: Any) -> None: ...
    def execution_started(self, execution: Any, time: float) -> None: ...
    def execution_ended(self, execution: Any, result: Any) -> None: ...


def measure_instruments(backend_names: list[str], rounds: int, *, quick: bool) -> Table:
    """Return a table of what a step of the loop costs with some instruments.

    Args:
        backend_names: Where to measure.
        rounds: How often to measure each.
        quick: Whether to take fewer steps.
    """
    steps = STEPS // 10 if quick else STEPS
    table = Table(
        "Instruments",
        ["told about each step", "backend", "a step", "added", "times"],
        note=f"Microseconds for a step of a loop of {steps:,}: in all, what the instrument adds, and how many "
        "times as long it takes as without. OpenTelemetry's spans pass the SDK's batch processor to an "
        "exporter that drops them; its metrics are kept in memory.",
    )
    for backend in backend_names:
        with listeners() as listening:
            sides = {name: _cost(instruments, steps) for name, instruments in listening.items()}
            row = Row(NAME, "a step that is told about", "µs", sides)
            values = backends.run(backend, measure, row, rounds, backend).values
        for name, each in values.items():
            pairs = list(zip(each, values[ALONE], strict=True))
            added = Spread.of([told - alone for told, alone in pairs]).median
            times = Spread.of([told / alone for told, alone in pairs]).median
            cost = Spread.of(each).median
            table.add(name, backend, f"{cost:.2f}", f"{added:+.2f}", f"x{times:.1f}")
    return table


def _cost(instruments: list[Instrument], steps: int) -> Measure:
    async def loop(steps: int) -> None:
        await ours.Loop(timeout=ours.TIMEOUT, instruments=instruments).run(left=steps)

    return microseconds_each(loop, steps)


@contextmanager
def listeners() -> Iterator[dict[str, list[Instrument]]]:
    """Make what is compared, by its name; OpenTelemetry only as far as it is installed."""
    found: dict[str, list[Instrument]] = {
        ALONE: [],
        "one that asks for nothing": [Instrument()],
        "one that does nothing": [Silent()],
    }
    if not find_spec("opentelemetry"):
        yield found
        return
    from anyio_workflows.otel import OpenTelemetryInstrument

    found["OpenTelemetry, no provider"] = [OpenTelemetryInstrument()]
    if not find_spec("opentelemetry.sdk"):
        yield found
        return
    from opentelemetry.metrics import NoOpMeterProvider
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
    from opentelemetry.trace import NoOpTracerProvider

    class Nowhere(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            return SpanExportResult.SUCCESS

    off = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    on = TracerProvider(shutdown_on_exit=False)
    on.add_span_processor(BatchSpanProcessor(Nowhere(), max_queue_size=100 * STEPS))
    meters = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    kinds = {
        "OpenTelemetry, spans that are not sampled": (off, NoOpMeterProvider()),
        "OpenTelemetry, spans": (on, NoOpMeterProvider()),
        "OpenTelemetry, metrics": (NoOpTracerProvider(), meters),
        "OpenTelemetry, spans and metrics": (on, meters),
    }
    found |= {name: [OpenTelemetryInstrument(*providers)] for name, providers in kinds.items()}
    yield found
    for provider in (off, on, meters):
        provider.shutdown()
