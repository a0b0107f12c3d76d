"""What the tests of tracing share: telemetry that is kept in memory, and a trace as a tree of text.

They import OpenTelemetry from here, where they are skipped without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk", reason="opentelemetry-sdk is not installed")

from opentelemetry import baggage as baggage
from opentelemetry import context as context
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan as ReadableSpan
from opentelemetry.sdk.trace import SpanLimits as SpanLimits
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import (
    InMemorySpanExporter as InMemorySpanExporter,
)
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF as ALWAYS_OFF
from opentelemetry.sdk.trace.sampling import ALWAYS_ON as ALWAYS_ON
from opentelemetry.sdk.trace.sampling import ParentBased as ParentBased
from opentelemetry.sdk.trace.sampling import Sampler as Sampler
from opentelemetry.trace import Span as Span
from opentelemetry.trace import StatusCode as StatusCode
from opentelemetry.trace import get_current_span as get_current_span
from opentelemetry.trace import set_span_in_context as set_span_in_context

from anyio_workflows.otel import OpenTelemetryInstrument as OpenTelemetryInstrument

PREFIX = "anyio_workflows."


@pytest.fixture(autouse=True)
def nothing_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail if OpenTelemetry complains: of a context that cannot be detached, or an ended span."""
    yield
    records = caplog.get_records("call")
    assert not [record for record in records if record.name.startswith("opentelemetry")]


class StartOrder(SpanProcessor):
    """Keeps the ids of spans in the order in which they began: clocks may be coarse."""

    def __init__(self) -> None:
        self.ids: list[int] = []

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self.ids.append(span.context.span_id)


class Telemetry:
    """An instrument whose spans and metrics are kept, and a tracer for spans of the user's own."""

    def __init__(self, **options: Any) -> None:
        self.exporter = InMemorySpanExporter()
        self.order = StartOrder()
        resource = Resource.get_empty()
        self.provider = TracerProvider(resource=resource, shutdown_on_exit=False, **options)
        self.provider.add_span_processor(self.order)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.meters = MeterProvider([self.reader], resource=resource, shutdown_on_exit=False)
        self.instrument = OpenTelemetryInstrument(self.provider, self.meters)
        self.tracer = self.provider.get_tracer("tests")

    @property
    def spans(self) -> list[ReadableSpan]:
        """The spans that have ended, in the order in which they began."""
        ended = {span_id(span): span for span in self.exporter.get_finished_spans()}
        return [ended[key] for key in self.order.ids if key in ended]

    def named(self, name: str) -> list[ReadableSpan]:
        """Return the spans of a name, in the order in which they began."""
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        """Return the only span of a name."""
        [span] = self.named(name)
        return span

    def tree(self) -> str:
        """Draw the spans, each below its parent: name, outcome, and what it is linked to."""
        return "\n".join(draw(self.spans))

    def metric(self, name: str) -> dict[tuple[str, ...], Any]:
        """Return the data points of a metric, by the values of their attributes in order of name."""
        data = self.reader.get_metrics_data()
        scopes = () if data is None else data.resource_metrics[0].scope_metrics
        points = [
            point
            for scope in scopes
            for metric in scope.metrics
            if metric.name == PREFIX + name
            for point in metric.data.data_points
        ]
        return {
            tuple(str(value) for _, value in sorted((point.attributes or {}).items())): point
            for point in points
        }

    def counts(self, name: str) -> dict[tuple[str, ...], int]:
        """Return how many values a histogram has for each combination of attributes."""
        return {key: point.count for key, point in self.metric(name).items()}

    def values(self, name: str) -> dict[tuple[str, ...], float]:
        """Return the value of a counter for each combination of attributes."""
        return {key: point.value for key, point in self.metric(name).items()}


def span_id(span: ReadableSpan) -> int:
    """Return the id of a span."""
    return span.context.span_id


def about(span: ReadableSpan, name: str) -> Any:
    """Return an attribute of this library; `None` if it is not there."""
    return (span.attributes or {}).get(PREFIX + name)


def event_names(span: ReadableSpan) -> list[str]:
    """Return the names of the events of a span."""
    return [event.name for event in span.events]


def links(span: ReadableSpan) -> list[tuple[str, int]]:
    """Return the kind of each link of a span, and the id of the span that it leads to."""
    return [(str(link.attributes[PREFIX + "link"]), link.context.span_id) for link in span.links]


def draw(spans: Sequence[ReadableSpan]) -> Iterable[str]:
    """Yield a line for each span, indented below its parent."""
    known = {span_id(span): span for span in spans}

    def lines(parent: int | None, indent: str) -> Iterable[str]:
        for span in spans:
            above = span.parent.span_id if span.parent is not None else None
            if (above if above in known else None) != parent:
                continue
            text = indent + span.name
            for kind in ("run", "attempt", "wait"):
                if outcome := about(span, f"{kind}.outcome"):
                    text += f" {outcome}"
            linked = [
                known[there].name.removeprefix("execute ") if there in known else "?"
                for _, there in links(span)
            ]
            yield text + (f" <- {', '.join(linked)}" if linked else "")
            yield from lines(span_id(span), indent + "  ")

    return lines(None, "")
