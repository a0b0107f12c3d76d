"""Metrics of runs, attempts and queues: what is counted and timed, in which unit, by what."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from anyio_workflows import Context, step
from anyio_workflows.errors import WorkflowTimeoutError

from .samples import Answer, Done, FanOut, Flaky, Item, Job, Loop, OneStep, ProviderError
from .tracing import Telemetry

pytestmark = pytest.mark.anyio


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


async def test_i1_runs_are_timed_by_their_outcome(telemetry: Telemetry) -> None:
    instruments = [telemetry.instrument]
    await Job(instruments=instruments).run()
    with pytest.raises(ProviderError):
        await Job(instruments=instruments).run(how="raise")
    with pytest.raises(WorkflowTimeoutError):
        await Job(timeout=4, instruments=instruments).run()
    handler = Job(instruments=instruments).run()
    await anyio.sleep(1)
    assert telemetry.values("run.active") == {("Job",): 1}
    await handler.cancel_run()
    assert telemetry.values("run.active") == {("Job",): 0}
    points = telemetry.metric("run.duration")
    assert {key: (point.count, point.sum) for key, point in points.items()} == {
        ("completed", "Job"): (1, 10),
        ("failed", "Job", "tests.samples.ProviderError"): (1, 10),
        ("timed_out", "Job", "anyio_workflows.errors.WorkflowTimeoutError"): (1, 6),
        ("cancelled", "Job"): (1, 3),
    }


async def test_i1_attempts_are_timed_by_their_step_and_outcome(telemetry: Telemetry) -> None:
    await Flaky(2, instruments=[telemetry.instrument]).run()
    assert telemetry.counts("attempt.duration") == {
        ("retrying", "work", "Flaky", "tests.samples.ProviderError"): 2,
        ("returned", "work", "Flaky"): 1,
    }


async def test_i1_waits_for_events_are_not_part_of_the_duration(telemetry: Telemetry) -> None:
    async def act(ctx: Context) -> None:
        await anyio.sleep(1)
        await ctx.wait_for_event(Answer)
        await anyio.sleep(2)
        with pytest.raises(TimeoutError):
            await ctx.wait_for_event(Answer, timeout=50)

    handler = OneStep(act, instruments=[telemetry.instrument]).run()
    await anyio.sleep(100)
    await handler.send_event(Answer())
    await handler
    [attempt] = telemetry.metric("attempt.duration").values()
    [run] = telemetry.metric("run.duration").values()
    assert (attempt.sum, run.sum) == (3, 152)


async def test_i1_an_attempt_that_ends_while_it_waits_is_timed_until_then(
    telemetry: Telemetry,
) -> None:
    async def act(ctx: Context) -> None:
        await anyio.sleep(1)
        await ctx.wait_for_event(Answer)

    handler = OneStep(act, instruments=[telemetry.instrument]).run()
    await anyio.sleep(100)
    await handler.cancel_run()
    assert [point.sum for point in telemetry.metric("attempt.duration").values()] == [1]


async def test_i1_queues_have_a_length_and_a_duration(telemetry: Telemetry) -> None:
    class Slow(FanOut):
        @step(num_workers=1)
        async def work(self, ev: Item) -> Done | None:
            await anyio.sleep(3)
            return Done(n=ev.n)

    handler = Slow(instruments=[telemetry.instrument]).run(items=[1, 2, 3, 4])
    await anyio.sleep(4)
    assert telemetry.values("queue.length")["work", "Slow"] == 2
    await handler.cancel_run()
    assert telemetry.values("queue.length") == {("split", "Slow"): 0, ("work", "Slow"): 0}
    point = telemetry.metric("queue.duration")["work", "Slow"]
    assert (point.count, point.sum) == (2, 3)  # two of them never began


async def test_i1_metrics_do_not_grow_with_runs(telemetry: Telemetry) -> None:
    def points() -> int:
        names = ["run.active", "run.duration", "queue.length", "queue.duration", "attempt.duration"]
        return sum(len(telemetry.metric(name)) for name in names)

    workflow = Loop(instruments=[telemetry.instrument])
    await workflow.run()
    before = points()
    for _ in range(20):
        await workflow.run()
    assert points() == before == 8


async def test_i1_units_and_descriptions_are_those_of_the_conventions(telemetry: Telemetry) -> None:
    await Loop(instruments=[telemetry.instrument]).run()
    data = telemetry.reader.get_metrics_data()
    assert data is not None
    [scope] = [
        one for one in data.resource_metrics[0].scope_metrics if one.scope.name == "anyio_workflows"
    ]
    assert {
        metric.name.removeprefix("anyio_workflows."): metric.unit for metric in scope.metrics
    } == {
        "run.active": "{run}",
        "run.duration": "s",
        "queue.length": "{attempt}",
        "queue.duration": "s",
        "attempt.duration": "s",
    }
    assert all(metric.description.endswith(".") for metric in scope.metrics)
    for metric in scope.metrics:
        for point in metric.data.data_points:
            bounds: Any = getattr(point, "explicit_bounds", [1, 60])
            assert 1 in bounds  # seconds
            assert 60 in bounds
