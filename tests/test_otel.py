"""Runs and attempts as spans of OpenTelemetry: what there is, what it says, what it is linked to."""

from __future__ import annotations

import gc
import logging
import textwrap
import weakref
from typing import Annotated, Any

import anyio
import pytest

from anyio_workflows import Context, StartEvent, StopEvent, Workflow, catch_error, step
from anyio_workflows.collect import Collect, Take
from anyio_workflows.errors import (
    WorkflowConfigurationError,
    WorkflowStalledError,
    WorkflowTimeoutError,
)
from anyio_workflows.events import StepFailedEvent
from anyio_workflows.instrument import Instrument, RunRecord
from anyio_workflows.retry_policy import retry_policy, stop_after_attempt

from .bare import BARE_RUNNERS, run_bare
from .samples import (
    A,
    Answer,
    Asks,
    AsksByReturning,
    B,
    Done,
    FanOut,
    Flaky,
    Item,
    Job,
    Joined,
    Loop,
    Next,
    OneStep,
    Part,
    ProviderError,
)
from .tracing import (
    ALWAYS_OFF,
    ALWAYS_ON,
    InMemorySpanExporter,
    OpenTelemetryInstrument,
    ParentBased,
    Sampler,
    SpanLimits,
    StatusCode,
    Telemetry,
    about,
    event_names,
    get_current_span,
    links,
    nothing_logged,
    span_id,
)

pytestmark = pytest.mark.anyio

assert nothing_logged  # a fixture for all tests here


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


def tree(text: str) -> str:
    return textwrap.dedent(text).strip()


class Line(Workflow[str]):
    @step
    async def first(self, ev: StartEvent) -> A:
        return A()

    @step
    async def second(self, ev: A) -> StopEvent:
        await anyio.sleep(2)
        return StopEvent(result="done")


class Nested(Workflow[list[list[int]]]):
    """Two batches of two and one."""

    @step
    async def plan(self, ev: StartEvent) -> list[Item]:
        return [Item(n=2), Item(n=1)]

    @step
    async def split(self, ev: Item) -> list[Part]:
        return [Part(n=ev.n * 10 + n) for n in range(ev.n)]

    @step
    async def work(self, ev: Part) -> Done:
        await anyio.sleep(ev.n / 1000)
        return Done(n=ev.n)

    @step
    async def gather(self, parts: list[Done]) -> Joined:
        return Joined(n=sum(part.n for part in parts))

    @step
    async def finish(self, ev: list[Joined]) -> StopEvent:
        return StopEvent(result=sorted(one.n for one in ev))


# --- What there is ----------------------------------------------------------------------------------


async def test_i1_a_run_is_a_span_and_each_attempt_a_child(telemetry: Telemetry) -> None:
    handler = Line(instruments=[telemetry.instrument]).run(run_id="r-1")
    assert await handler == "done"
    assert telemetry.tree() == tree(
        """
        run Line completed
          execute first returned
          execute second returned <- first
        """
    )
    run, first, second = telemetry.spans
    assert dict(run.attributes or {}) == {
        "anyio_workflows.workflow.name": "Line",
        "anyio_workflows.run.id": "r-1",
        "anyio_workflows.event.type": "StartEvent",
        "anyio_workflows.run.outcome": "completed",
        "anyio_workflows.terminal_event.type": "StopEvent",
    }
    assert dict(second.attributes or {}) == {
        "anyio_workflows.workflow.name": "Line",
        "anyio_workflows.run.id": "r-1",
        "anyio_workflows.step.name": "second",
        "anyio_workflows.execution.id": about(first, "execution.id") + 1,
        "anyio_workflows.attempt.number": 1,
        "anyio_workflows.event.type": "A",
        "anyio_workflows.queue.duration": 0.0,
        "anyio_workflows.attempt.outcome": "returned",
        "anyio_workflows.returned.types": ("StopEvent",),
    }
    assert {span.status.status_code for span in telemetry.spans} == {StatusCode.UNSET}
    assert {span.instrumentation_scope.name for span in telemetry.spans} == {"anyio_workflows"}  # type: ignore[union-attr]


NESTED = """
    run Nested completed
      execute plan returned
      execute split returned <- plan
      execute split returned <- plan
      execute work returned <- split
      execute work returned <- split
      execute work returned <- split
      execute gather returned <- work
      execute gather returned <- work, work
      execute finish returned <- gather, gather
"""


async def test_i1_a_join_is_linked_to_its_branches(telemetry: Telemetry) -> None:
    assert await Nested(instruments=[telemetry.instrument]).run() == [10, 41]
    drawn = telemetry.tree().splitlines()
    assert sorted(drawn) == sorted(tree(NESTED).splitlines())
    for gather in telemetry.named("execute gather"):
        works = {there for kind, there in links(gather) if kind == "source"}
        sources = [span for span in telemetry.named("execute work") if span_id(span) in works]
        splits = {there for span in sources for _, there in links(span)}
        assert len(splits) == 1  # of the same inner batch


@pytest.mark.parametrize("runner", BARE_RUNNERS)
def test_i1_the_trace_is_the_same_in_a_bare_event_loop(telemetry: Telemetry, runner: Any) -> None:
    async def main() -> list[list[int]]:
        return await Nested(instruments=[telemetry.instrument]).run()

    assert run_bare(runner, main) == [10, 41]
    assert sorted(telemetry.tree().splitlines()) == sorted(tree(NESTED).splitlines())


async def test_i1_a_list_is_told_by_its_types_and_its_length(telemetry: Telemetry) -> None:
    await FanOut(instruments=[telemetry.instrument]).run(items=[1, 2, -1])
    split, join = telemetry.one("execute split"), telemetry.one("execute join")
    assert (about(split, "returned.types"), about(split, "returned.count")) == (("Item",), 3)
    assert about(join, "event.type") == "Done"
    assert (about(join, "returned.types"), about(join, "returned.count")) == (("StopEvent",), None)
    assert [about(span, "returned.types") for span in telemetry.named("execute work")] == [
        ("Done",),
        ("Done",),
        None,
    ]


async def test_i1_the_time_in_the_queue_is_not_part_of_the_span(telemetry: Telemetry) -> None:
    class Slow(FanOut):
        @step(num_workers=1)
        async def work(self, ev: Item) -> Done | None:
            await anyio.sleep(3)
            return Done(n=ev.n)

    await Slow(instruments=[telemetry.instrument]).run(items=[1, 2, 3])
    queued = [about(span, "queue.duration") for span in telemetry.named("execute work")]
    assert queued == [0, 3, 6]


# --- Links ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "kept", "dropped"), [(128, 128, 872), (5000, 1000, 0)])
async def test_i1_a_join_of_many_branches_is_linked_to_the_last_ones(
    limit: int, kept: int, dropped: int
) -> None:
    telemetry = Telemetry(span_limits=SpanLimits(max_links=limit))
    await FanOut(instruments=[telemetry.instrument]).run(items=[0] * 1100)
    join = telemetry.one("execute join")
    # The instrument remembers the last 1000 executions, and the SDK keeps the last 128 links.
    assert (len(join.links), join.dropped_links) == (kept, dropped)


async def test_i1_a_repeated_attempt_is_linked_to_the_one_before(telemetry: Telemetry) -> None:
    assert await Flaky(2, instruments=[telemetry.instrument]).run() == 2
    assert telemetry.tree() == tree(
        """
        run Flaky completed
          execute work retrying
          execute work retrying <- work
          execute work returned <- work
        """
    )
    run, *attempts = telemetry.spans
    assert [about(span, "attempt.number") for span in attempts] == [1, 2, 3]
    assert len({about(span, "execution.id") for span in attempts}) == 1
    assert [links(span) for span in attempts[1:]] == [
        [("retried", span_id(span))] for span in attempts[:2]
    ]
    # Each of these attempts has failed, and the run has not.
    assert [span.status.status_code.name for span in attempts] == ["ERROR", "ERROR", "UNSET"]
    assert run.status.status_code is StatusCode.UNSET


async def test_i1_an_event_from_outside_is_linked_to_its_sender(telemetry: Telemetry) -> None:
    with telemetry.tracer.start_as_current_span("request 1"):
        handler = AsksByReturning(instruments=[telemetry.instrument]).run()
    await anyio.sleep(1)
    with telemetry.tracer.start_as_current_span("request 2"):
        assert await handler.send_event(Answer(text="fine")) == ("take",)
    assert await handler == "fine"
    assert telemetry.tree() == tree(
        """
        request 1
          run AsksByReturning completed
            execute ask returned
            execute take returned <- request 2
        request 2
        """
    )
    assert links(telemetry.one("execute take")) == [("sender", span_id(telemetry.one("request 2")))]
    [event] = telemetry.one("run AsksByReturning").events
    assert (event.name, dict(event.attributes or {})) == (
        "event sent",
        {"anyio_workflows.event.type": "Answer", "anyio_workflows.taken_by": ("take",)},
    )


async def test_i1_an_event_that_a_step_sends_is_linked_to_its_attempt(telemetry: Telemetry) -> None:
    class Sends(Workflow[None]):
        @step
        async def first(self, ctx: Context, ev: StartEvent) -> B | None:
            ctx.send_event(A())
            await anyio.sleep(1)
            return None

        @step
        async def second(self, ev: A) -> StopEvent:
            return StopEvent()

    await Sends(instruments=[telemetry.instrument], disable_validation=True).run()
    second = telemetry.one("execute second")
    first = next(span for span in telemetry.spans if span.name == "execute first")
    assert links(second) == [("source", span_id(first))]
    assert event_names(first) == ["event sent"]
    assert event_names(telemetry.one("run Sends")) == []


# --- Waits ------------------------------------------------------------------------------------------


async def test_i1_a_wait_is_a_span_that_is_linked_to_the_sender_of_the_answer(
    telemetry: Telemetry,
) -> None:
    handler = Asks(instruments=[telemetry.instrument]).run()
    await anyio.sleep(10)
    [wait] = handler.open_waits()
    with telemetry.tracer.start_as_current_span("request 2"):
        await handler.send_event(Answer(text="fine"), wait=wait.id)
    assert await handler == "fine"
    assert telemetry.tree() == tree(
        """
        run Asks completed
          execute ask returned
            wait for Answer answered <- request 2
        request 2
        """
    )
    span = telemetry.one("wait for Answer")
    assert (about(span, "wait.id"), about(span, "question.type")) == (wait.id, "Question")
    assert event_names(telemetry.one("run Asks")) == ["event sent"]
    assert event_names(telemetry.one("execute ask")) == []


async def test_i1_a_wait_is_below_the_span_in_which_it_begins(telemetry: Telemetry) -> None:
    async def act(ctx: Context) -> None:
        with telemetry.tracer.start_as_current_span("approval"):
            await ctx.wait_for_event(Answer)

    handler = OneStep(act, instruments=[telemetry.instrument]).run()
    await anyio.sleep(1)
    await handler.send_event(Answer())
    await handler
    assert telemetry.tree() == tree(
        """
        run OneStep completed
          execute work returned
            approval
              wait for Answer answered
        """
    )


async def test_i1_a_wait_that_is_not_answered_says_why(telemetry: Telemetry) -> None:
    async def act(ctx: Context) -> None:
        with pytest.raises(TimeoutError):
            await ctx.wait_for_event(Answer, timeout=3)
        with anyio.move_on_after(2):
            await ctx.wait_for_event(Answer)

    await OneStep(act, instruments=[telemetry.instrument]).run()
    waits = telemetry.named("wait for Answer")
    assert [about(span, "wait.outcome") for span in waits] == ["timed_out", "cancelled"]
    assert {span.status.status_code for span in waits} == {StatusCode.UNSET}


async def test_i1_a_repeated_attempt_does_not_wait_again_for_what_it_has_got(
    telemetry: Telemetry,
) -> None:
    class AsksTwice(Workflow[str]):
        @step(retry_policy=retry_policy(stop=stop_after_attempt(2)))
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            answer = await ctx.wait_for_event(Answer)
            if ctx.retry_info().retry_number == 0:
                raise ProviderError("down")
            return StopEvent(result=answer.text)

    handler = AsksTwice(instruments=[telemetry.instrument]).run()
    await anyio.sleep(1)
    with telemetry.tracer.start_as_current_span("request 2"):
        await handler.send_event(Answer(text="fine"))
    assert await handler == "fine"
    assert telemetry.tree() == tree(
        """
        run AsksTwice completed
          execute work retrying
            wait for Answer answered <- request 2
          execute work returned <- work
        request 2
        """
    )


async def test_i1_an_answer_that_a_step_returns_is_linked_to_that_step(
    telemetry: Telemetry,
) -> None:
    class Inside(Workflow[str]):
        @step
        async def split(self, ctx: Context, ev: StartEvent) -> None:
            ctx.send_event(A())
            ctx.send_event(B())

        @step
        async def ask(self, ctx: Context, ev: A) -> StopEvent:
            await ctx.wait_for_event(Joined)
            return StopEvent()

        @step
        async def reply(self, ev: B) -> Joined:
            await anyio.sleep(1)
            return Joined()

    with telemetry.tracer.start_as_current_span("request 1"):
        handler = Inside(instruments=[telemetry.instrument], disable_validation=True).run()
    await handler
    [reply] = telemetry.named("execute reply")
    assert links(telemetry.one("wait for Joined")) == [("source", reply.context.span_id)]


# --- Errors and endings -------------------------------------------------------------------------------


async def test_i1_the_error_of_a_step_is_recorded_once(telemetry: Telemetry) -> None:
    async def act(ctx: Context) -> None:
        raise ProviderError("down")

    with pytest.raises(ProviderError):
        await OneStep(act, instruments=[telemetry.instrument]).run()
    run, attempt = telemetry.spans
    [event] = attempt.events
    assert event.name == "exception"
    assert event.attributes is not None
    assert event.attributes["exception.message"] == "down"
    assert event.attributes["exception.type"] == "tests.samples.ProviderError"
    assert "in act" in str(event.attributes["exception.stacktrace"])
    assert event_names(run) == []
    for span in (run, attempt):
        assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "down")
        assert (span.attributes or {})["error.type"] == "tests.samples.ProviderError"
    assert telemetry.tree() == tree(
        """
        run OneStep failed
          execute work failed
        """
    )


async def test_i1_an_error_without_a_text_is_recorded_too(telemetry: Telemetry) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    async def act(ctx: Context) -> None:
        raise Mute

    with pytest.raises(Mute):
        await OneStep(act, instruments=[telemetry.instrument]).run()
    assert event_names(telemetry.one("execute work")) == ["exception"]


async def test_i1_a_long_error_is_shortened_in_the_status(telemetry: Telemetry) -> None:
    async def act(ctx: Context) -> None:
        raise ProviderError("x" * 100_000)

    with pytest.raises(ProviderError):
        await OneStep(act, instruments=[telemetry.instrument]).run()
    assert len(telemetry.one("execute work").status.description or "") == 1000


async def test_i1_a_failure_that_is_recovered_is_one_of_the_attempt(telemetry: Telemetry) -> None:
    class Recovers(Workflow[str]):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            raise ProviderError("down")

        @catch_error
        async def rescue(self, ev: StepFailedEvent) -> StopEvent:
            return StopEvent(result="rescued")

    assert await Recovers(instruments=[telemetry.instrument]).run() == "rescued"
    assert telemetry.tree() == tree(
        """
        run Recovers completed
          execute work recovered
          execute rescue returned <- work
        """
    )
    run, work, _ = telemetry.spans
    assert work.status.status_code is StatusCode.ERROR
    assert run.status.status_code is StatusCode.UNSET


async def test_i1_a_timeout_is_an_error_of_the_run(telemetry: Telemetry) -> None:
    with pytest.raises(WorkflowTimeoutError):
        await Job(timeout=5, instruments=[telemetry.instrument]).run()
    assert telemetry.tree() == tree(
        """
        run Job timed_out
          execute work cancelled
        """
    )
    run, attempt = telemetry.spans
    assert run.status.status_code is StatusCode.ERROR
    assert (run.attributes or {})["error.type"] == "anyio_workflows.errors.WorkflowTimeoutError"
    assert event_names(run) == ["exception"]  # no attempt has it
    assert (attempt.status.status_code, attempt.events) == (StatusCode.UNSET, ())


async def test_i1_a_cancellation_is_no_error(telemetry: Telemetry) -> None:
    handler = Job(instruments=[telemetry.instrument]).run()
    await anyio.sleep(1)
    await handler.cancel_run()
    assert telemetry.tree() == tree(
        """
        run Job cancelled
          execute work cancelled
        """
    )
    for span in telemetry.spans:
        assert (span.status.status_code, span.events) == (StatusCode.UNSET, ())
        assert "error.type" not in (span.attributes or {})


async def test_i1_a_run_that_stalls_is_told_where_its_event_was_lost(telemetry: Telemetry) -> None:
    class Stalls(Workflow[None]):
        @step
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent | None:
            ctx.send_event(B())
            return None

    with pytest.raises(WorkflowStalledError):
        await Stalls(instruments=[telemetry.instrument]).run()
    run = telemetry.one("run Stalls")
    assert event_names(run) == ["event unhandled", "exception"]
    assert run.status.status_code is StatusCode.ERROR


async def test_i1_the_attempt_of_a_step_that_is_given_up_ends_with_the_run(
    telemetry: Telemetry,
) -> None:
    async def act(ctx: Context) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(100)
            over.set()

    over = anyio.Event()
    workflow = OneStep(act, timeout=1, cleanup_timeout=2, instruments=[telemetry.instrument])
    with pytest.raises(WorkflowTimeoutError):
        await workflow.run()
    expected = tree(
        """
        run OneStep timed_out
          execute work cancelled
        """
    )
    assert telemetry.tree() == expected
    await over.wait()
    await anyio.sleep(1)
    assert telemetry.tree() == expected


async def test_i1_what_is_cancelled_in_the_queue_has_no_span(telemetry: Telemetry) -> None:
    class Slow(FanOut):
        @step(num_workers=1)
        async def work(self, ev: Item) -> Done | None:
            await anyio.sleep(3)
            return Done(n=ev.n)

    with pytest.raises(WorkflowTimeoutError):
        await Slow(timeout=4, instruments=[telemetry.instrument]).run(items=[1, 2, 3])
    outcomes = [about(span, "attempt.outcome") for span in telemetry.named("execute work")]
    assert outcomes == ["returned", "cancelled"]
    assert set(telemetry.values("queue.length").values()) == {0}


async def test_f4_what_is_cancelled_with_its_batch_is_told_so(telemetry: Telemetry) -> None:
    class First(FanOut):
        @step
        async def join(self, events: Annotated[list[Done], Collect(Take(1))]) -> Next:
            return Next()

        @step
        async def after(self, ev: Next) -> StopEvent:
            await anyio.sleep(1)
            return StopEvent(result=[])

    await First(instruments=[telemetry.instrument]).run(items=[1, 5, 5])
    assert telemetry.tree() == tree(
        """
        run First completed
          execute split returned
          execute work returned <- split
          execute work cancelled <- split
          execute work cancelled <- split
          execute join returned <- work
          execute after returned <- join
        """
    )


async def test_i1_a_run_that_continues_is_traced_anew(telemetry: Telemetry) -> None:
    class Slow(FanOut):
        @step
        async def join(self, ctx: Context, events: list[Done]) -> StopEvent:
            await anyio.sleep(3)
            return StopEvent(result=[])

    handler = Slow(timeout=3, instruments=[telemetry.instrument]).run(items=[1])
    with pytest.raises(WorkflowTimeoutError):
        await handler
    telemetry.exporter.clear()
    await Slow(instruments=[telemetry.instrument]).run(ctx=handler.ctx)
    assert telemetry.tree() == tree(
        """
        run Slow completed
          execute join returned
        """
    )
    assert about(telemetry.one("run Slow"), "event.type") is None


# --- Several instruments, none, and other providers ----------------------------------------------------


async def test_i1_an_instrument_of_a_run_and_one_of_the_workflow(telemetry: Telemetry) -> None:
    other = Telemetry()
    workflow = Nested(instruments=[telemetry.instrument])
    await workflow.run(instruments=[other.instrument])
    await workflow.run()
    assert sorted(other.tree().splitlines()) == sorted(tree(NESTED).splitlines())
    assert sorted(telemetry.tree().splitlines()) == sorted(2 * tree(NESTED).splitlines())
    assert not {span_id(span) for span in other.spans} & {span_id(span) for span in telemetry.spans}


@pytest.mark.parametrize("given", [InMemorySpanExporter(), "http://localhost:4317", 3])
def test_i1_what_is_no_provider_is_refused(given: Any) -> None:
    with pytest.raises(
        WorkflowConfigurationError, match=r"takes a TracerProvider, not .*BatchSpanProcessor\("
    ):
        OpenTelemetryInstrument(given)
    with pytest.raises(
        WorkflowConfigurationError, match=r"takes a MeterProvider, not .*MeterProvider\("
    ):
        OpenTelemetryInstrument(meter_provider=given)


async def test_i1_what_is_not_sampled_is_not_traced(telemetry: Telemetry) -> None:
    async def act(ctx: Context) -> bool:
        with telemetry.tracer.start_as_current_span("own"):
            return get_current_span().is_recording()

    telemetry = Telemetry(sampler=ParentBased(ALWAYS_OFF))
    assert await OneStep(act, instruments=[telemetry.instrument]).run() is False
    assert telemetry.spans == []
    assert telemetry.counts("run.duration") == {("completed", "OneStep"): 1}


async def test_i2_a_sampler_that_raises_does_not_change_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Broken(Sampler):
        def should_sample(self, parent_context: Any, trace_id: int, name: str, *args: Any, **options: Any) -> Any:  # fmt: skip
            if name == "execute second":
                raise RuntimeError("no sample")
            return ALWAYS_ON.should_sample(parent_context, trace_id, name, *args, **options)

        def get_description(self) -> str:
            return "broken"

    class Pair(Workflow[str]):
        @step
        async def first(self, ctx: Context, ev: StartEvent) -> A:
            return A()

        @step
        async def second(self, ev: A) -> StopEvent:
            return StopEvent(result="done")

        @step
        async def meanwhile(self, ev: StartEvent) -> None:
            await anyio.sleep(1)

    class Watch(Instrument):
        def run_started(self, run: RunRecord) -> None:
            runs.append(weakref.ref(run))

    telemetry = Telemetry(sampler=Broken())
    runs: list[weakref.ref[RunRecord]] = []
    logged: list[str] = []
    # Not with `caplog`, which keeps the traceback, and with it the run.
    logger = logging.getLogger("anyio_workflows._engine.instruments")
    monkeypatch.setattr(logger, "filters", [lambda record: logged.append(record.getMessage())])
    workflow = Pair(instruments=[telemetry.instrument, Watch()])
    assert await workflow.run() == "done"
    assert await workflow.run() == "done"
    [message] = logged
    assert "raised RuntimeError in execution_started() and has been taken off" in message
    gc.collect()
    assert [run() for run in runs] == [None, None]


async def test_i1_nothing_of_a_run_is_kept(telemetry: Telemetry) -> None:
    class Watch(Instrument):
        def run_started(self, run: RunRecord) -> None:
            kept.append(weakref.ref(run))
            kept.append(weakref.ref(run.start_event))  # type: ignore[arg-type]

    kept: list[weakref.ref[Any]] = []
    workflow = Loop(instruments=[telemetry.instrument, Watch()])
    for _ in range(200):
        handlers = [workflow.run() for _ in range(10)]
        for handler in handlers:
            await handler
        telemetry.exporter.clear()
        telemetry.order.ids.clear()
    del handlers, handler
    gc.collect()
    assert len(kept) == 4000
    assert [one for one in kept if one() is not None] == []
