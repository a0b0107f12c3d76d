"""Instruments: they are told everything, once, in order (I1), and change nothing (I2)."""

from __future__ import annotations

import gc
import logging
import re
from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any
from weakref import ref

import anyio
import attrs
import pytest

from anyio_workflows import (
    Context,
    Event,
    StartEvent,
    StepFailedEvent,
    StopEvent,
    Workflow,
    WorkflowHandler,
    catch_error,
    step,
)
from anyio_workflows.collect import Collect, Take
from anyio_workflows.errors import WorkflowConfigurationError
from anyio_workflows.instrument import (
    EventRecord,
    ExecutionRecord,
    ExecutionResult,
    Instrument,
    LoggingInstrument,
    RunRecord,
    RunResult,
    SentRecord,
    WaitResult,
)
from anyio_workflows.retry_policy import retry_policy, stop_after_attempt, wait_fixed

from .running import read_all
from .samples import Answer, Done, Item, Other, Question

pytestmark = pytest.mark.anyio

HOOKS = [name for name in vars(Instrument) if name[0] != "_"]


@attrs.define(eq=False)
class Tape(Instrument):
    """Keeps all it is told: the name of the method, and what it was called with."""

    told: list[tuple[str, Any]] = attrs.field(factory=list)

    def named(self, hook: str) -> list[Any]:
        return [args for name, args in self.told if name == hook]

    def names(self) -> list[str]:
        return [name for name, _ in self.told]

    def lines(self) -> list[str]:
        """Return a line for each call about an execution or a wait."""
        found = []
        for name, args in self.told:
            if isinstance(args[0], ExecutionRecord):
                outcome = f" {args[-1].outcome}" if name.endswith("_ended") else ""
                kind = name.replace("execution_", "")
                found.append(f"{args[0].step} {args[0].attempt} {kind}{outcome}")
        return found


def _keep(name: str) -> Callable[..., None]:
    def keep(self: Tape, *args: Any) -> None:
        self.told.append((name, args))

    return keep


for _name in HOOKS:
    setattr(Tape, _name, _keep(_name))


class Works(Workflow[Any]):
    """Calls what the test gives, in a step that is tried twice."""

    def __init__(self, act: Callable[[Context], Any], **config: Any) -> None:
        super().__init__(**{"timeout": 10, **config})
        self.act = act

    @step(retry_policy=retry_policy(wait=wait_fixed(1), stop=stop_after_attempt(2)))
    async def work(self, ctx: Context, ev: StartEvent) -> Item | StopEvent | None:
        return await self.act(ctx)  # type: ignore[no-any-return]

    @step
    async def take(self, ev: Item) -> StopEvent:
        return StopEvent(result="taken")


async def finish(handler: WorkflowHandler[Any]) -> None:
    """Wait for the end of a run, however it ends."""
    with anyio.move_on_after(1000):
        try:
            await handler
        except Exception:
            return


# --- What is told (I1) ---------------------------------------------------------------------------------


async def test_i1_a_run_is_told_from_its_start_to_its_end() -> None:
    async def act(ctx: Context) -> Event:
        ctx.write_event_to_stream(Other(n=7))
        await anyio.sleep(3)
        return Item(n=1)

    tape, began = Tape(), anyio.current_time()
    handler = Works(act, instruments=[tape], workflow_name="Named").run(run_id="r1")
    assert tape.names() == ["run_started", "execution_queued"]  # inside `run()`
    assert await handler == "taken"
    assert tape.names() == [
        "run_started",
        "execution_queued",
        "execution_started",
        "event_written",
        "execution_ended",
        "execution_queued",
        "execution_started",
        "execution_ended",
        "event_written",
        "run_ended",
    ]
    [(run,)] = tape.named("run_started")
    assert attrs.asdict(run, recurse=False) == {
        "run_id": "r1",
        "workflow": "Named",
        "start_event": StartEvent(),
        "started": began,
        "parent_run_id": None,
        "parent_execution": None,
    }
    (first,), (second,) = tape.named("execution_queued")
    assert first[:] == (run, 1, 1, "work", StartEvent(), (), began)
    assert second[:] == (run, 2, 1, "take", Item(n=1), (1,), began + 3)
    assert tape.named("execution_started") == [(first, began), (second, began + 3)]
    (_, one), (_, two) = tape.named("execution_ended")
    assert one == ExecutionResult("returned", Item(n=1), None, began, began + 3)
    assert two == ExecutionResult("returned", StopEvent(result="taken"), None, began + 3, began + 3)
    assert tape.named("event_written") == [
        (run, EventRecord(1, began, Other(n=7))),
        (run, EventRecord(2, began + 3, StopEvent(result="taken"))),
    ]
    [(told_run, result)] = tape.named("run_ended")
    assert told_run is run
    assert attrs.asdict(result, recurse=False) == {
        "outcome": "completed",
        "event": StopEvent(result="taken"),
        "error": None,
        "summary": "it returned StopEvent",
        "time": began + 3,
    }


async def test_i1_a_retry_is_an_attempt_of_the_same_execution() -> None:
    errors: list[Exception] = []

    async def act(ctx: Context) -> Event:
        errors.append(ValueError(len(errors)))
        raise errors[-1]

    tape, began = Tape(), anyio.current_time()
    handler = Works(act).run(instruments=[tape])
    await finish(handler)
    assert tape.lines() == [
        "work 1 queued",
        "work 1 started",
        "work 1 ended retrying",
        "work 2 queued",
        "work 2 started",
        "work 2 ended failed",
    ]
    (first,), (second,) = tape.named("execution_queued")
    assert (first.id, first.queued) == (second.id, began)
    assert second.queued == began + 1
    (_, one), (_, two) = tape.named("execution_ended")
    assert (one.error, one.retry_at) == (errors[0], began + 1)
    assert (two.error, two.retry_at) == (errors[1], None)
    [(_, result)] = tape.named("run_ended")
    assert (result.outcome, result.error) == ("failed", errors[1])
    assert tape.names()[-2:] == ["event_written", "run_ended"]


async def test_i1_a_recovered_failure_ends_before_its_handler_is_queued() -> None:
    class Recovers(Works):
        @catch_error(for_steps=["work"])
        async def rescue(self, ev: StepFailedEvent) -> StopEvent:
            return StopEvent()

    async def act(ctx: Context) -> Any:
        return 5

    tape = Tape()
    await Recovers(act, instruments=[tape]).run()
    assert tape.lines() == [
        "work 1 queued",
        "work 1 started",
        "work 1 ended recovered",
        "rescue 1 queued",
        "rescue 1 started",
        "rescue 1 ended returned",
    ]
    _, (rescue,) = tape.named("execution_queued")
    assert rescue.sources == (1,)


async def test_i1_a_wait_is_told_around_the_time_without_a_worker() -> None:
    async def act(ctx: Context) -> Event:
        await ctx.wait_for_event(Answer, Question(text="?"), waiter_id="w")
        return StopEvent()

    tape, began = Tape(), anyio.current_time()
    handler = Works(act).run(instruments=[tape])
    await anyio.sleep(2)
    [wait] = handler.open_waits()
    assert await handler.send_event(Answer(text="!"), wait=wait.id) == ("work",)
    await handler
    assert tape.names()[2:-3] == [
        "execution_started",
        "execution_suspended",
        "event_written",
        "wait_started",
        "idle",
        "wait_ended",
        "execution_resumed",
        "event_sent",
    ]
    assert tape.lines()[-1] == "work 1 ended returned"
    [(execution, told, time)] = tape.named("wait_started")
    assert (told, time) == (wait, began)
    [(execution_too, told_too, result)] = tape.named("wait_ended")
    assert execution_too is execution
    assert told_too == wait
    assert attrs.asdict(result, recurse=False) == {
        "outcome": "answered",
        "answer": Answer(text="!"),
        "time": began + 2,
        "source": None,
    }
    [(run, sent)] = tape.named("event_sent")
    assert attrs.asdict(sent, recurse=False) == {
        "event": Answer(text="!"),
        "step": None,
        "wait": wait.id,
        "taken_by": ("work",),
        "sender": None,
        "time": began + 2,
    }
    assert tape.named("idle") == [(run, began)]


@pytest.mark.parametrize("how", ["timeout", "scope", "left behind", "run ends"])
async def test_i1_each_wait_ends_once_and_before_its_execution(how: str) -> None:
    async def act(ctx: Context) -> Event:
        async def wait() -> None:
            await ctx.wait_for_event(Answer, timeout=1 if how == "timeout" else None)

        if how == "timeout":
            with pytest.raises(TimeoutError):
                await wait()
        elif how == "scope":
            with anyio.move_on_after(1):
                await wait()
        elif how == "run ends":
            await wait()
        else:
            outside.start_soon(swallow, wait)
            await anyio.sleep(1)
        return StopEvent()

    async def swallow(wait: Callable[[], Any]) -> None:
        with pytest.raises(Exception, match=r"has ended|is ending"):
            await wait()

    tape = Tape()
    async with anyio.create_task_group() as outside:
        handler = Works(act, timeout=5).run(instruments=[tape])
        await finish(handler)
    expected = "timed_out" if how == "timeout" else "cancelled"
    lines = tape.lines()
    ended = lines.index(f"work 1 wait_ended {expected}")
    assert lines.index("work 1 wait_started") < ended
    assert Counter(line.split()[2] for line in lines)["wait_ended"] == 1
    assert lines[-1].startswith("work 1 ended")
    assert tape.names()[-2:] == ["event_written", "run_ended"]


async def test_i1_a_repeated_answer_is_told_once() -> None:
    async def act(ctx: Context) -> Event:
        await ctx.wait_for_event(Answer)
        if ctx.retry_info().retry_number == 0:
            raise ValueError
        return StopEvent()

    tape = Tape()
    handler = Works(act).run(instruments=[tape])
    await anyio.sleep(1)
    await handler.send_event(Answer())
    await handler
    counted = Counter(tape.names())
    assert (counted["wait_started"], counted["wait_ended"]) == (1, 1)
    assert (counted["execution_suspended"], counted["execution_resumed"]) == (1, 1)


class Fan(Workflow[Any]):
    """Two levels of lists, joined twice; one branch returns nothing."""

    @step
    async def begin(self, ev: StartEvent) -> list[Item]:
        return [Item(n=n) for n in range(3)]

    @step(num_workers=2)
    async def spread(self, ev: Item) -> list[Other]:
        return [Other(n=ev.n)] * ev.n

    @step(num_workers=4)
    async def work(self, ev: Other) -> Done | None:
        return Done() if ev.n > 0 else None

    @step
    async def inner(self, evs: list[Done]) -> Answer:
        return Answer(text=str(len(evs)))

    @step
    async def outer(self, evs: list[Answer]) -> StopEvent:
        return StopEvent(result=sorted(ev.text for ev in evs))


async def test_i1_sources_are_the_executions_that_the_events_came_from() -> None:
    tape = Tape()
    assert await Fan().run(instruments=[tape]) == ["0", "1", "2"]
    queued = {one.id: one for (one,) in tape.named("execution_queued")}
    ended = {one.id: result for one, result in tape.named("execution_ended")}
    assert len(queued) == len(ended) == 1 + 3 + 3 + 3 + 1
    for one in queued.values():
        given = one.event if isinstance(one.event, list) else [one.event]
        returned: list[Event] = []
        for source in one.sources:
            result = ended[source].returned
            returned += result if isinstance(result, list) else [result]
        if one.step == "begin":
            assert one.sources == ()
        elif one.step == "inner" and not given:  # fired by the empty list itself
            assert [queued[source].step for source in one.sources] == ["spread"]
        else:
            assert all(any(each is event for event in returned) for each in given)
    assert {
        queued[s].step for one in queued.values() if one.step == "outer" for s in one.sources
    } == {"inner"}
    joined = [len(one.sources) for one in queued.values() if one.step == "inner"]
    assert sorted(joined) == [1, 1, 2]


async def test_i1_sources_of_a_set_and_of_sent_events() -> None:
    class Pairs(Workflow[Any]):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item:
            ctx.send_event(Other())
            return Item()

        @step
        async def both(self, a: Item, b: Other, c: Answer) -> StopEvent:
            return StopEvent()

    tape = Tape()
    handler = Pairs(skip_graph_checks=["reachability"]).run(instruments=[tape])
    await anyio.sleep(1)
    await handler.send_event(Answer())
    await handler
    [_, (both,)] = tape.named("execution_queued")
    assert both.event == (Item(), Other(), Answer())
    assert both.sources == (1,)
    senders = [
        (type(sent.event), sent.sender, sent.taken_by) for _, sent in tape.named("event_sent")
    ]
    assert senders == [(Other, 1, ("both",)), (Answer, None, ("both",))]


@pytest.mark.parametrize("sends", [True, False])
async def test_i1_the_source_of_an_answer_is_the_execution_that_gave_it(sends: bool) -> None:
    class Asks(Workflow[Any]):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(n=0), Item(n=1)]

        @step
        async def work(self, ctx: Context, ev: Item) -> Other | Done:
            if ev.n == 0:
                await ctx.wait_for_event(Other)
                return Done()
            await anyio.sleep(1)
            if sends:
                ctx.send_event(Other())
            return Done() if sends else Other()

        @step
        async def join(self, evs: list[Done]) -> StopEvent:
            return StopEvent()

    tape = Tape()
    await Asks(disable_validation=True).run(instruments=[tape])
    [(_, _, result)] = tape.named("wait_ended")
    executions = [one for (one,) in tape.named("execution_queued")]
    [sender] = [one.id for one in executions if one.event == Item(n=1)]
    assert (result.outcome, result.source) == ("answered", sender)


async def test_i1_what_a_batch_drops_is_cancelled_after_its_cause() -> None:
    class Race(Workflow[Any]):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(n=n) for n in range(3)]

        @step(num_workers=2)
        async def work(self, ev: Item) -> Done:
            await anyio.sleep(ev.n)
            return Done()

        @step
        async def join(
            self, evs: Annotated[list[Done], Collect(Take(1, cancel=True))]
        ) -> StopEvent:
            return StopEvent()

    tape = Tape()
    await Race().run(instruments=[tape])
    lines = tape.lines()
    cause = lines.index("work 1 ended returned")
    assert sorted(lines[cause + 1 : cause + 3]) == ["join 1 queued", "work 1 ended cancelled"]
    assert lines.count("work 1 ended cancelled") == 2
    assert lines.index("work 1 ended cancelled") > cause
    started = [result.started for _, result in tape.named("execution_ended")]
    assert None in started  # what was queued never begins


@pytest.mark.parametrize("how", ["cancelled", "timed_out", "failed"])
async def test_i1_what_is_in_progress_is_over_before_the_run(how: str) -> None:
    class Busy(Workflow[Any]):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(n=n) for n in range(3)]

        @step(num_workers=2)
        async def work(self, ev: Item) -> Done:
            await anyio.sleep(1)
            if how == "failed":
                raise ValueError
            with anyio.CancelScope(shield=True):
                await anyio.sleep(100)
            return Done()

        @step
        async def join(self, evs: list[Done]) -> StopEvent: ...

    tape = Tape()
    handler = Busy(timeout=5, cleanup_timeout=1).run(instruments=[tape])
    await anyio.sleep(2)
    if how == "cancelled":
        await handler.cancel_run()
    await finish(handler)
    await anyio.sleep(200)  # what was given up ends, and nothing is told of it
    assert tape.names()[-2:] == ["event_written", "run_ended"]
    [(_, result)] = tape.named("run_ended")
    assert (result.outcome, result.event) == (how, handler.get_stop_event())
    queued = [one for (one,) in tape.named("execution_queued")]
    ended = [one for one, _ in tape.named("execution_ended")]
    assert len(queued) == 4
    assert sorted(map(id, queued)) == sorted(map(id, ended))


async def test_i1_restored_work_is_told_when_the_run_starts() -> None:
    async def act(ctx: Context) -> Event:
        await ctx.wait_for_event(Answer, Question(text="?"))
        return StopEvent()

    handler = Works(act).run()
    await anyio.sleep(1)
    data = handler.ctx.to_dict([Answer, Question])
    await handler.cancel_run()
    tape, workflow = Tape(), Works(act)
    ctx = Context.from_dict(workflow, data, [Answer, Question])
    again = workflow.run(ctx=ctx, instruments=[tape])
    await anyio.sleep(1)
    await again.send_event(Answer())
    await again
    assert tape.names()[:3] == ["run_started", "execution_queued", "execution_started"]
    assert tape.named("run_started")[0][0].start_event is None
    assert [record.seq for _, record in tape.named("event_written")] == [1, 2]


async def test_i1_an_instrument_that_is_given_twice_is_told_once() -> None:
    async def act(ctx: Context) -> Event:
        return StopEvent()

    tape, other = Tape(), Tape()
    await Works(act, instruments=[tape, tape]).run(instruments=[other, tape])
    assert len(tape.named("run_started")) == len(tape.named("execution_queued")) == 1
    assert tape.names() == other.names()


async def test_i1_a_child_run_names_its_parent() -> None:
    tape = Tape()

    async def leaf(ctx: Context) -> Event:
        return StopEvent()

    async def act(ctx: Context) -> Event:
        await Works(leaf, instruments=[tape]).run(run_id="child")
        return StopEvent()

    await Works(act).run(run_id="parent")
    [(run,)] = tape.named("run_started")
    assert (run.run_id, run.parent_run_id, run.parent_execution) == ("child", "parent", 1)


async def test_i1_an_unhandled_event_and_internal_events() -> None:
    async def act(ctx: Context) -> Event:
        await ctx.wait_for_event(Answer)
        return StopEvent()

    tape = Tape()
    handler = Works(act).run(instruments=[tape])
    handler.stream_events(expose_internal=True)
    await anyio.sleep(1)
    await handler.send_event(Done())
    await handler.send_event(Answer())
    await handler
    [(run, event, idle, time)] = tape.named("event_unhandled")
    assert (event, idle, time) == (Done(), True, run.started + 1)
    assert len(await read_all(handler)) > 1
    assert [record.event for _, record in tape.named("event_written")] == [StopEvent()]


async def test_i1_the_step_sees_what_its_start_has_set() -> None:
    """And the worker that executes the next step is the same one: it is as it was (O7)."""
    from contextvars import ContextVar

    current: ContextVar[str] = ContextVar("current", default="nothing")
    seen: list[str] = []
    tasks: list[Any] = []

    class Sets(Instrument):
        def __init__(self) -> None:
            self.tokens: dict[ExecutionRecord, Any] = {}

        def execution_started(self, execution: ExecutionRecord, time: float) -> None:
            self.tokens[execution] = current.set(f"{execution.step} {execution.id}")

        def execution_ended(self, execution: ExecutionRecord, result: ExecutionResult) -> None:
            current.reset(self.tokens.pop(execution))

    class Two(Workflow[Any]):
        @step
        async def first(self, ev: StartEvent) -> Item:
            seen.append(current.get())
            tasks.append(anyio.get_current_task().id)
            return Item()

        @step
        async def second(self, ev: Item) -> Other:
            seen.append(current.get())
            tasks.append(anyio.get_current_task().id)
            return Other()

        @step
        def third(self, ev: Other) -> StopEvent:
            seen.append(current.get())
            return StopEvent()

    await Two(instruments=[Sets()]).run()
    assert seen == ["first 1", "second 2", "third 3"]
    assert tasks[0] == tasks[1]
    assert current.get() == "nothing"


# --- It changes nothing (I2) -----------------------------------------------------------------------------


class Broken(Tape):
    """Raises in one of its methods."""

    def __init__(self, hook: str, error: BaseException) -> None:
        super().__init__()

        def fail(*args: Any) -> None:
            self.told.append((hook, args))
            raise error

        setattr(self, hook, fail)


async def everything(ctx: Context) -> Event:
    """Do whatever an instrument can be told about."""
    if ctx.retry_info().retry_number == 0:
        raise ValueError("try again")
    ctx.write_event_to_stream(Other())
    ctx.send_event(Done())
    await ctx.wait_for_event(Answer)
    return Item()


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("error", [ValueError("boo"), KeyboardInterrupt()], ids=["error", "exit"])
async def test_i2_one_that_raises_is_logged_once_and_taken_off(
    hook: str, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    broken, tape = Broken(hook, error), Tape()
    workflow = Works(everything, instruments=[broken, tape])
    for _ in range(2):
        handler = workflow.run()
        await anyio.sleep(3)
        await handler.send_event(Answer())
        assert await handler == "taken"
    assert broken.names().count(hook) == 1
    assert broken.names()[-1] == hook
    assert set(HOOKS) == set(tape.names())  # each of them is told, the other one to the end
    assert tape.names().count("run_ended") == 2
    logged = [r for r in caplog.records if r.name == "anyio_workflows._engine.instruments"]
    assert [(r.levelname, r.exc_info and r.exc_info[1]) for r in logged] == [("ERROR", error)]
    assert f"{type(error).__name__} in {hook}()" in logged[0].getMessage()


async def test_i2_runs_at_the_same_time_log_it_once(caplog: pytest.LogCaptureFixture) -> None:
    async def act(ctx: Context) -> Event:
        await anyio.sleep(1)
        return StopEvent()

    workflow = Works(act, instruments=[Broken("execution_ended", ValueError())])
    handlers = [workflow.run() for _ in range(3)]
    for handler in handlers:
        await handler
    logged = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert len(logged) == 1


async def test_i2_what_is_not_overridden_costs_nothing() -> None:
    async def act(ctx: Context) -> Event:
        return StopEvent()

    handler = Works(act).run(instruments=[Instrument()])
    assert not handler._run._instruments.active
    assert handler._run.ledger.queues.on_change is None
    await handler


async def test_o6_an_instrument_keeps_no_run_alive() -> None:
    async def act(ctx: Context) -> Event:
        return StopEvent()

    class Deaf(Instrument):
        """Is told everything, and keeps nothing."""

    for name in HOOKS:
        setattr(Deaf, name, lambda self, *args: None)
    workflow = Works(act, instruments=[Deaf()])
    handler = workflow.run()
    await handler
    gone = ref(handler._run)
    del handler
    await anyio.sleep(1)  # its host task ends
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("given", [Tape, 5, [Tape], [None], Tape(), "ab"])
async def test_i1_what_is_no_instrument_is_refused(given: Any) -> None:
    async def act(ctx: Context) -> Event:
        return StopEvent()

    with pytest.raises(WorkflowConfigurationError, match="instrument"):
        Works(act, instruments=given)
    with pytest.raises(WorkflowConfigurationError, match="instrument"):
        Works(act).run(instruments=given)


@pytest.mark.parametrize("hook", HOOKS)
def test_i1_an_async_method_is_refused_when_the_class_is_defined(hook: str) -> None:
    async def method(self: Instrument, *args: Any) -> None: ...

    with pytest.raises(WorkflowConfigurationError, match=rf"^Slow\.{hook}\(\) is async, .* 'def'"):
        type("Slow", (Instrument,), {hook: method})
    assert type("Fine", (Instrument,), {"flush": method, hook: print})


@pytest.mark.parametrize(
    ("given", "remedy"),
    [("mine", "logging.getLogger('mine')"), (3, "logging.getLogger('my_program')")],
)
def test_i1_a_logging_instrument_takes_a_logger(given: Any, remedy: str) -> None:
    with pytest.raises(
        WorkflowConfigurationError, match=re.escape(f"not {given!r}; give it {remedy}")
    ):
        LoggingInstrument(given)


async def test_i1_a_logging_instrument_logs_where_it_is_told(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO, "mine")
    logger = logging.getLogger("mine")
    await Fan().run(instruments=[LoggingInstrument(logger)])
    lines = [record.getMessage() for record in caplog.records if record.name == "mine"]
    assert lines[:2] == ["Running step begin", "Step begin returned a list of events"]
    assert lines[-1] == "Run ended: it returned StopEvent"
    logger.setLevel(logging.WARNING)
    await Fan().run(instruments=[LoggingInstrument(logger)])
    assert capsys.readouterr().out == ""


def test_i1_two_records_are_equal_only_if_they_are_the_same() -> None:
    run = RunRecord("r", "W", None, 0.0)
    one, other = (ExecutionRecord(run, 1, 1, "s", StartEvent(), (), 0.0) for _ in range(2))
    assert one == one
    assert one != other
    assert {one: 1}[one] == 1
    assert other not in {one: 1}
    assert SentRecord(Done(), None, None, (), None, 0.0) != SentRecord(
        Done(), None, None, (), None, 0.0
    )
    assert RunResult("completed", StopEvent(), None, "", 0.0).outcome == "completed"
    assert WaitResult("cancelled", None, 0.0).answer is None
