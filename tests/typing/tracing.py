"""What users write to trace workflows."""

from __future__ import annotations

from typing import assert_type

from opentelemetry.metrics import get_meter_provider
from opentelemetry.trace import get_tracer_provider

from anyio_workflows import StartEvent, StopEvent, Workflow, step
from anyio_workflows.instrument import Instrument
from anyio_workflows.otel import OpenTelemetryInstrument


class Hello(Workflow[str]):
    @step
    async def greet(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result="hello")


async def main() -> None:
    instrument: Instrument = OpenTelemetryInstrument()
    workflow = Hello(instruments=[instrument])
    providers = OpenTelemetryInstrument(get_tracer_provider(), meter_provider=get_meter_provider())
    assert_type(await workflow.run(instruments=[providers]), str)
