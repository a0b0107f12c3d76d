"""Which span is the current one, where: in steps, their tasks and threads, child runs, and around them."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import Annotated, Any

import anyio
import anyio.to_thread
import pytest

from anyio_workflows import Context, StartEvent, StopEvent, Workflow, step
from anyio_workflows.errors import WorkflowTimeoutError
from anyio_workflows.resource import Resource

from .bare import BARE_RUNNERS, run_bare
from .running import run_script
from .samples import Answer, AsksByReturning, Done, FanOut, Item, Next, Numbers, OneStep, Question
from .tracing import (
    ReadableSpan,
    Span,
    Telemetry,
    baggage,
    context,
    get_current_span,
    nothing_logged,
    set_span_in_context,
    span_id,
)

pytestmark = pytest.mark.anyio

assert nothing_logged  # a fixture for all tests here


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


def current_id() -> int:
    return get_current_span().get_span_context().span_id


def parent_id(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


class Users(Workflow[int]):
    """Two hundred executions on fifty workers, each with spans of its own around its awaits."""

    def __init__(self, telemetry: Telemetry, **options: Any) -> None:
        super().__init__(**options)
        self.telemetry = telemetry
        self.attempts: dict[int, int] = {}

    @step
    async def split(self, ev: Numbers) -> list[Item]:
        return [Item(n=n) for n in ev.items]

    @step(num_workers=50)
    async def work(self, ev: Item) -> Done:
        tracer = self.telemetry.tracer
        self.attempts[ev.n] = mine = current_id()
        with tracer.start_as_current_span(f"outer {ev.n}"):
            await anyio.sleep(ev.n % 7)
            with tracer.start_as_current_span(f"inner {ev.n}"):
                await anyio.sleep(ev.n % 3)

                async def task() -> None:
                    with tracer.start_as_current_span(f"task {ev.n}"):
                        await anyio.sleep(1)

                async with anyio.create_task_group() as group:
                    group.start_soon(task)
        assert current_id() == mine
        return Done(n=ev.n)

    @step
    async def join(self, events: list[Done]) -> StopEvent:
        return StopEvent(result=len(events))


def check_users(telemetry: Telemetry, workflow: Users, number: int) -> None:
    attempts = telemetry.named("execute work")
    assert len({span_id(span) for span in attempts}) == number
    assert sorted(workflow.attempts.values()) == sorted(span_id(span) for span in attempts)
    names = {span.name: span for span in telemetry.spans}
    for n in range(number):
        assert parent_id(names[f"outer {n}"]) == workflow.attempts[n]
        assert parent_id(names[f"inner {n}"]) == span_id(names[f"outer {n}"])
        assert parent_id(names[f"task {n}"]) == span_id(names[f"inner {n}"])
    assert {parent_id(span) for span in attempts} == {span_id(telemetry.one("run Users"))}


async def test_i1_spans_in_a_step_are_children_of_its_attempt(telemetry: Telemetry) -> None:
    workflow = Users(telemetry, timeout=None, instruments=[telemetry.instrument])
    assert await workflow.run(items=list(range(200))) == 200
    check_users(telemetry, workflow, 200)


@pytest.mark.parametrize("runner", BARE_RUNNERS)
def test_i1_so_they_are_in_a_bare_event_loop(telemetry: Telemetry, runner: Any) -> None:
    async def main() -> int:
        async def no_sleep(seconds: float) -> None:
            await anyio.lowlevel.checkpoint()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(anyio, "sleep", no_sleep)
            return await workflow.run(items=list(range(60)))

    workflow = Users(telemetry, instruments=[telemetry.instrument])
    assert run_bare(runner, main) == 60
    check_users(telemetry, workflow, 60)


async def test_i1_a_sync_step_has_its_span_in_its_thread(telemetry: Telemetry) -> None:
    class Sync(Workflow[None]):
        @step
        def first(self, ev: StartEvent) -> Next:
            with telemetry.tracer.start_as_current_span("in the thread"):
                return Next()

        @step
        async def second(self, ev: Next) -> StopEvent:
            def work() -> None:
                with telemetry.tracer.start_as_current_span("in a thread of its own"):
                    pass

            await anyio.to_thread.run_sync(work)
            return StopEvent()

    await Sync(instruments=[telemetry.instrument]).run()
    assert telemetry.tree().splitlines() == [
        "run Sync completed",
        "  execute first returned",
        "    in the thread",
        "  execute second returned <- first",
        "    in a thread of its own",
    ]


async def test_i1_a_worker_that_started_earlier_gives_no_wrong_parent(telemetry: Telemetry) -> None:
    with telemetry.tracer.start_as_current_span("request 1"):
        handler = AsksByReturning(instruments=[telemetry.instrument]).run()
    await anyio.sleep(1)
    with telemetry.tracer.start_as_current_span("request 2"):
        await handler.send_event(Answer())
        await handler
    run = telemetry.one("run AsksByReturning")
    assert parent_id(run) == span_id(telemetry.one("request 1"))
    assert parent_id(telemetry.one("execute take")) == span_id(run)


async def test_i1_the_caller_has_its_own_span_before_and_after(telemetry: Telemetry) -> None:
    with telemetry.tracer.start_as_current_span("request"):
        mine = current_id()
        handler = FanOut(instruments=[telemetry.instrument]).run(items=[1, 2])
        assert current_id() == mine
        async for _ in handler.stream_events():
            assert current_id() == mine
        await handler
        assert current_id() == mine
    assert current_id() == 0


# --- Child runs ---------------------------------------------------------------------------------------


def child_of(telemetry: Telemetry, **options: Any) -> OneStep:
    async def nothing(ctx: Context) -> None:
        await anyio.sleep(1)

    return OneStep(nothing, workflow_name="Child", instruments=[telemetry.instrument], **options)


async def test_o5_a_child_run_is_a_child_of_the_attempt_that_starts_it(
    telemetry: Telemetry,
) -> None:
    async def act(ctx: Context) -> None:
        await child_of(telemetry).run()
        with telemetry.tracer.start_as_current_span("subtask"):
            await child_of(telemetry).run()

    await OneStep(act, workflow_name="Parent", instruments=[telemetry.instrument]).run()
    assert telemetry.tree().splitlines() == [
        "run Parent completed",
        "  execute work returned",
        "    run Child completed",
        "      execute work returned",
        "    subtask",
        "      run Child completed",
        "        execute work returned",
    ]


async def test_o5_two_instruments_make_two_traces_of_child_runs_too(telemetry: Telemetry) -> None:
    async def act(ctx: Context) -> None:
        await OneStep(nothing, workflow_name="Child", instruments=both).run()

    async def nothing(ctx: Context) -> None:
        pass

    other = Telemetry()
    both = [telemetry.instrument, other.instrument]
    await OneStep(act, workflow_name="Parent", instruments=both).run()
    expected = [
        "run Parent completed",
        "  execute work returned",
        "    run Child completed",
        "      execute work returned",
    ]
    assert telemetry.tree().splitlines() == expected
    assert other.tree().splitlines() == expected
    for one in (telemetry, other):
        assert len({span.context.trace_id for span in one.spans}) == 1


# --- What is left behind ------------------------------------------------------------------------------


class Rounds(Workflow[Any]):
    """A loop that notes in which tasks its steps are executed, and what is current there."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.tasks: list[int] = []

    @step
    async def turn(self, ev: StartEvent | Next) -> Next | StopEvent:
        self.tasks.append(anyio.get_current_task().id)
        n = ev.get("n", 0)
        return Next(n=n + 1) if n < 200 else StopEvent(result=len(set(self.tasks)))


@pytest.mark.parametrize("inside", ["no span", "a span"])
async def test_o7_the_current_span_costs_no_worker(telemetry: Telemetry, inside: str) -> None:
    others = [Telemetry().instrument, Telemetry().instrument]
    with telemetry.tracer.start_as_current_span("request") as span:
        here = set_span_in_context(span) if inside == "a span" else context.Context()
        token = context.attach(here)
        plain = await Rounds().run()
        one = await Rounds(instruments=[telemetry.instrument]).run()
        three = await Rounds(instruments=[telemetry.instrument, *others]).run()
        context.detach(token)
    assert (one, three) == (plain, plain)


async def test_o7_a_span_that_a_step_leaves_behind_is_gone_in_the_next_step(
    telemetry: Telemetry,
) -> None:
    class Leaves(Workflow[bool]):
        @step
        async def first(self, ev: StartEvent) -> Next:
            context.attach(set_span_in_context(telemetry.tracer.start_span("left behind")))
            return Next()

        @step
        async def second(self, ev: Next) -> Question | StopEvent:
            found.append(get_current_span())
            return StopEvent()

    found: list[Span] = []
    await Leaves(instruments=[telemetry.instrument]).run()
    assert [span.get_span_context().span_id for span in found] == [
        span_id(telemetry.one("execute second"))
    ]


async def test_o7_context_variables_of_the_step_are_as_before(telemetry: Telemetry) -> None:
    class Changes(Workflow[str]):
        @step
        async def first(self, ev: StartEvent) -> Next:
            var.set("changed")
            return Next()

        @step
        async def second(self, ev: Next) -> StopEvent:
            return StopEvent(result=var.get())

    var: ContextVar[str] = ContextVar("var", default="as it was")
    assert await Changes(instruments=[telemetry.instrument]).run() == "as it was"


async def test_i1_a_step_that_fails_is_cancelled_or_repeated_leaves_nothing_behind(
    telemetry: Telemetry,
) -> None:
    async def act(ctx: Context) -> None:
        with telemetry.tracer.start_as_current_span("own"):
            await anyio.sleep(10)

    workflow = OneStep(act, timeout=1, instruments=[telemetry.instrument])
    with pytest.raises(WorkflowTimeoutError):
        await workflow.run()
    assert current_id() == 0
    own = telemetry.one("own")
    assert parent_id(own) == span_id(telemetry.one("execute work"))


async def test_i1_a_given_up_step_keeps_its_span_to_itself(
    telemetry: Telemetry, caplog: pytest.LogCaptureFixture
) -> None:
    async def act(ctx: Context) -> None:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(100)
            late.append(current_id())
            over.set()

    late: list[int] = []
    over = anyio.Event()
    workflow = OneStep(act, timeout=1, cleanup_timeout=2, instruments=[telemetry.instrument])
    with caplog.at_level(logging.WARNING), pytest.raises(WorkflowTimeoutError):
        await workflow.run()
    await over.wait()
    await anyio.sleep(1)
    assert late == [span_id(telemetry.one("execute work"))]


# --- What surrounds the steps --------------------------------------------------------------------------


async def test_i1_baggage_of_the_caller_is_there_in_the_steps(telemetry: Telemetry) -> None:
    async def act(ctx: Context) -> object:
        return baggage.get_baggage("user")

    token = context.attach(baggage.set_baggage("user", "ada"))
    handler = OneStep(act, instruments=[telemetry.instrument]).run()
    context.detach(token)
    assert await handler == "ada"


async def test_i1_resources_are_opened_below_the_caller(telemetry: Telemetry) -> None:
    async def client() -> str:
        with telemetry.tracer.start_as_current_span("connect"):
            return "client"

    class Uses(Workflow[str]):
        @step
        async def work(self, ev: StartEvent, client: Annotated[str, Resource(client)]) -> StopEvent:
            return StopEvent(result=client)

    with telemetry.tracer.start_as_current_span("request"):
        assert await Uses(instruments=[telemetry.instrument]).run() == "client"
    # A resource may be shared by several steps, or by all runs of a workflow: it belongs to no attempt.
    assert parent_id(telemetry.one("connect")) == span_id(telemetry.one("request"))


def test_i1_without_a_provider_nothing_is_traced_until_there_is_one() -> None:
    done = run_script(
        """
        import anyio
        from anyio_workflows import StartEvent, StopEvent, Workflow, step
        from anyio_workflows.otel import OpenTelemetryInstrument
        from opentelemetry import context, trace
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

        class Hello(Workflow):
            @step
            async def greet(self, ev: StartEvent) -> StopEvent:
                span = trace.get_current_span().get_span_context()
                return StopEvent(result=(span.span_id, len(context.get_current())))

        async def main():
            print(await workflow.run())
            remote = trace.SpanContext(1, 2, is_remote=True)
            with trace.use_span(trace.NonRecordingSpan(remote)):
                print(await workflow.run())
            exporter = InMemorySpanExporter()
            provider = TracerProvider()
            provider.add_span_processor(SimpleSpanProcessor(exporter))
            trace.set_tracer_provider(provider)
            await workflow.run()
            for span in exporter.get_finished_spans():
                print(span.name)

        workflow = Hello(instruments=[OpenTelemetryInstrument()])
        anyio.run(main)
        """
    )
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.splitlines() == ["(0, 0)", "(2, 1)", "execute greet", "run Hello"]


def test_i1_without_the_api_the_error_names_the_extra() -> None:
    done = run_script(
        """
        import sys
        sys.modules["opentelemetry"] = None
        import anyio_workflows.otel
        """
    )
    assert "pip install 'anyio-workflows[otel]'" in done.stderr
