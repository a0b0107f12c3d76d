"""Going on after a failure: `ctx.retry_failed()` repeats the step that failed, and no finished one (X7)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_workflows import (
    Context,
    StartEvent,
    StepFailedEvent,
    StopEvent,
    Workflow,
    WorkflowHandler,
    catch_error,
    step,
)
from anyio_workflows.checkpoint import load_checkpoint, run_with_checkpoints, save_checkpoint
from anyio_workflows.collect import Collect, Take
from anyio_workflows.errors import (
    ContextSerdeError,
    ContextStateError,
    WorkflowRuntimeError,
    WorkflowStalledError,
    WorkflowTimeoutError,
)
from anyio_workflows.resource import Resource
from anyio_workflows.retry_policy import retry_policy, stop_after_attempt, wait_fixed

from .conftest import BACKENDS
from .running import read, run_virtually
from .samples import Answer, Done, Item, Mail, Other, Question

pytestmark = pytest.mark.anyio

THROUGH_JSON = pytest.mark.parametrize("through_json", [False, True])


class Noting(Workflow[Any]):
    """Notes which steps ran, and fails until it is mended."""

    types = (Answer, Question)

    def __init__(self) -> None:
        super().__init__(timeout=None)
        self.ran: list[str] = []
        self.mended = False

    def note(self, name: str, error: BaseException | None = None) -> None:
        self.ran.append(name)
        if error is not None and not self.mended:
            raise error


async def fail(
    handler: WorkflowHandler[Any], error: type[BaseException] = ConnectionError
) -> Context:
    with pytest.raises(error):
        await handler
    assert handler.ctx.has_work_left is False
    return handler.ctx


def retry(workflow: Noting, ctx: Context, through_json: bool = False) -> WorkflowHandler[Any]:
    """Mend a workflow and run what failed again."""
    workflow.mended = True
    workflow.ran.append("|")
    if through_json:
        ctx = Context.from_dict(workflow, saved(ctx))
    ctx.retry_failed()
    assert ctx.has_work_left
    return workflow.run(ctx=ctx)


def saved(ctx: Context) -> Any:
    return json.loads(json.dumps(ctx.to_dict(), allow_nan=False))


class Report(Noting):
    @step
    async def load(self, ev: StartEvent) -> Item:
        self.note("load")
        return Item(n=7)

    @step(retry_policy=retry_policy(wait=wait_fixed(10), stop=stop_after_attempt(2)))
    async def publish(self, ctx: Context, ev: Item) -> StopEvent:
        info = ctx.retry_info()
        await ctx.store.set("tries", (await ctx.store.get("tries", 0)) + 1)
        self.note(f"publish {info.retry_number} {info.elapsed_seconds:g} {info.last_exception!r}")
        await anyio.sleep(1)
        self.note("published", ConnectionError("later"))
        return StopEvent(result=(ev.n, await ctx.store.get("tries")))


@THROUGH_JSON
async def test_x7_the_failed_step_is_repeated_and_no_finished_one(through_json: bool) -> None:
    workflow = Report()
    ctx = await fail(workflow.run())
    await anyio.sleep(1000)
    assert await retry(workflow, ctx, through_json) == (7, 3)
    assert workflow.ran == [
        "load",
        "publish 0 0 None",
        "published",
        "publish 1 11 ConnectionError('later')",
        "published",
        "|",
        "publish 0 0 None",  # attempts from 1, and the time anew
        "published",
    ]


@THROUGH_JSON
async def test_x7_it_may_fail_and_be_repeated_again_and_again(through_json: bool) -> None:
    workflow = Report()
    ctx = await fail(workflow.run())
    for _ in range(3):
        if through_json:
            ctx = Context.from_dict(workflow, saved(ctx))
        ctx.retry_failed()
        ctx = await fail(workflow.run(ctx=ctx))
    assert await retry(workflow, ctx, through_json) == (7, 9)
    assert workflow.ran.count("load") == 1
    assert workflow.ran.count("publish 0 0 None") == 5
    assert workflow.ran.count("publish 1 11 ConnectionError('later')") == 4


@THROUGH_JSON
async def test_p3_without_retry_failed_a_run_starts_anew_with_the_state(through_json: bool) -> None:
    workflow = Report()
    ctx = await fail(workflow.run())
    if through_json:
        ctx = Context.from_dict(workflow, saved(ctx))
    workflow.mended = True
    assert await workflow.run(ctx=ctx) == (7, 3)
    assert workflow.ran.count("load") == 2
    with pytest.raises(ContextStateError, match="no step of its last run has failed for good"):
        ctx.retry_failed()


async def test_x7_what_was_owed_can_be_saved_before_and_after_it_is_owed_again() -> None:
    workflow = Report()
    ctx = await fail(workflow.run())
    failed = saved(ctx)
    assert failed["work"] is None
    assert [work["step"] for work in failed["failed"]["work"]] == ["publish"]
    ctx.retry_failed()
    pending = saved(ctx)
    assert (pending["work"], pending["failed"]) == (failed["failed"], None)
    workflow.mended = True
    assert await workflow.run(ctx=Context.from_dict(workflow, pending)) == (7, 3)
    assert workflow.ran.count("load") == 1


async def test_x7_start_keywords_make_no_sense_with_what_is_owed_again() -> None:
    workflow = Report()
    ctx = await fail(workflow.run())
    ctx.retry_failed()
    with pytest.raises(ContextStateError, match="has work left"):
        workflow.run(ctx=ctx, topic="tea")


# --- Nothing to retry -----------------------------------------------------------------------------


async def test_x7_there_is_nothing_to_repeat_before_a_run_or_after_a_stop_event() -> None:
    workflow = Report()
    with pytest.raises(ContextStateError, match="no failed step to repeat"):
        Context(workflow).retry_failed()
    workflow.mended = True
    handler = workflow.run()
    with pytest.raises(ContextStateError, match="still in progress"):
        handler.ctx.retry_failed()
    await handler
    with pytest.raises(ContextStateError, match="no failed step to repeat"):
        handler.ctx.retry_failed()
    with pytest.raises(ContextStateError, match="no failed step to repeat"):
        Context.from_dict(workflow, saved(handler.ctx)).retry_failed()


async def test_x7_twice_is_refused() -> None:
    workflow = Report()
    ctx = await fail(workflow.run())
    ctx.retry_failed()
    with pytest.raises(ContextStateError, match="it has work left already"):
        ctx.retry_failed()
    workflow.mended = True
    assert await workflow.run(ctx=ctx) == (7, 3)
    with pytest.raises(ContextStateError, match="no failed step to repeat"):
        ctx.retry_failed()


async def test_x7_in_a_step_it_is_refused() -> None:
    class Inside(Noting):
        @step
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            with pytest.raises(ContextStateError, match="still in progress"):
                ctx.retry_failed()
            return StopEvent()

    await Inside().run()


async def test_x7_until_cleanup_is_over_it_is_refused() -> None:
    class Slow(Noting):
        @step
        async def bad(self, ev: StartEvent) -> StopEvent:
            await anyio.sleep(0.5)
            raise ConnectionError

        @step
        async def slow(self, ev: StartEvent) -> StopEvent:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(5)
            return StopEvent()

    handler = Slow().run()
    await anyio.sleep(1)
    assert not handler.is_done()
    with pytest.raises(ContextStateError, match="still in progress"):
        handler.ctx.retry_failed()
    (await fail(handler)).retry_failed()


async def test_x7_discard_work_drops_what_failed() -> None:
    workflow = Report()
    ctx = await fail(workflow.run())
    ctx.discard_work()
    assert saved(ctx)["failed"] is None
    with pytest.raises(ContextStateError, match="no failed step to repeat"):
        ctx.retry_failed()


async def test_x7_after_a_timeout_the_work_is_left_already() -> None:
    workflow = Report()
    handler = workflow.run()
    await anyio.sleep(5)
    await handler.cancel_run()
    with pytest.raises(ContextStateError, match="it has work left already"):
        handler.ctx.retry_failed()


@THROUGH_JSON
async def test_x7_t9_a_stalled_run_has_no_step_to_repeat(through_json: bool) -> None:
    class Stalling(Noting):
        @step
        async def begin(self, ev: StartEvent) -> Item | None:
            return None

        @step
        async def end(self, ev: Item) -> StopEvent:
            return StopEvent()

    workflow = Stalling()
    ctx = await fail(workflow.run(), WorkflowStalledError)
    if through_json:
        ctx = Context.from_dict(workflow, saved(ctx))
    with pytest.raises(ContextStateError, match="no failed step to repeat"):
        ctx.retry_failed()


async def test_x7_p5_a_resource_that_failed_to_close_leaves_no_step_to_repeat() -> None:
    def client() -> Iterator[str]:
        yield "client"
        raise ConnectionError

    class Using(Noting):
        @step
        async def work(self, ev: StartEvent, client: Annotated[str, Resource(client)]) -> StopEvent:
            return StopEvent(result=client)

    ctx = await fail(Using().run())
    with pytest.raises(ContextStateError, match="no failed step to repeat"):
        ctx.retry_failed()


async def test_p3_what_failed_and_cannot_be_saved_is_named_until_it_is_discarded() -> None:
    class Holding(Noting):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            raise ConnectionError

    workflow = Holding()
    ctx = await fail(workflow.run(client=object()))
    with pytest.raises(ContextSerdeError) as caught:
        ctx.to_dict()
    assert caught.value.path.startswith("$.failed.work[0].events[0].client")
    ctx.discard_work()
    assert ctx.to_dict()["failed"] is None


async def test_x7_c1_a_failed_run_with_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run_here(func: Callable[..., Any], *args: Any, **options: Any) -> Any:
        await anyio.lowlevel.checkpoint()  # virtual time does not wait for a thread
        return func(*args)

    monkeypatch.setattr(anyio.to_thread, "run_sync", run_here)
    file, workflow = tmp_path / "job.json", Report()
    with pytest.raises(ConnectionError):
        await run_with_checkpoints(workflow, file)
    ctx = await load_checkpoint(workflow, file)
    ctx.retry_failed()
    await save_checkpoint(ctx, file)
    workflow.mended = True
    assert await run_with_checkpoints(workflow, file) == (7, 3)
    assert workflow.ran.count("load") == 1
    assert await run_with_checkpoints(workflow, file) == (7, 4)  # anew, with the state
    assert workflow.ran.count("load") == 2


# --- Kinds of failure -----------------------------------------------------------------------------


@THROUGH_JSON
async def test_x7_r4_after_a_wrong_result(through_json: bool) -> None:
    class Wrong(Noting):
        @step
        async def begin(self, ev: StartEvent) -> Item:
            self.note("begin")
            return Item() if self.mended else Other()  # type: ignore[return-value]

        @step
        async def end(self, ev: Item) -> StopEvent:
            return StopEvent(result="ok")

    workflow = Wrong()
    ctx = await fail(workflow.run(), WorkflowRuntimeError)
    assert await retry(workflow, ctx, through_json) == "ok"
    assert workflow.ran == ["begin", "|", "begin"]


class Interrupt(BaseException): ...


@pytest.mark.parametrize("error", [Interrupt, TimeoutError, StopIteration])
async def test_x7_after_any_kind_of_exception(error: type[BaseException]) -> None:
    class Raising(Noting):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            self.note("work", error())
            return StopEvent(result="ok")

    workflow = Raising()
    raised = WorkflowRuntimeError if error is StopIteration else error
    assert await retry(workflow, await fail(workflow.run(), raised)) == "ok"


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        SystemExit(1),
        BaseExceptionGroup("", [ValueError(), KeyboardInterrupt()]),
    ],
    ids=repr,
)
async def test_p3_what_ends_the_program_in_a_step_leaves_its_work(error: BaseException) -> None:
    class Raising(Noting):
        @step
        async def begin(self, ev: StartEvent) -> Item:
            self.note("begin")
            return Item(n=1)

        @step
        async def work(self, ev: Item) -> StopEvent:
            self.note("work", error)
            return StopEvent(result="ok")

    workflow = Raising()
    handler = workflow.run()
    with pytest.raises(type(error)):
        await handler
    assert handler.ctx.has_work_left
    workflow.mended = True
    ctx: Context = Context.from_dict(workflow, saved(handler.ctx))
    assert await workflow.run(ctx=ctx) == "ok"
    assert workflow.ran == ["begin", "work", "work"]


async def test_x7_after_a_policy_that_raises() -> None:
    class Bad:
        def next(self, elapsed_time: float, attempts: int, error: Exception) -> float | None:
            raise LookupError

    class Raising(Noting):
        @step(retry_policy=Bad())
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            self.note("work", ConnectionError())
            return StopEvent(result="ok")

    workflow = Raising()
    assert await retry(workflow, await fail(workflow.run(), LookupError)) == "ok"


@pytest.mark.parametrize("error", [WorkflowTimeoutError, WorkflowStalledError])
async def test_x7_p3_the_end_of_a_child_run_is_a_failure_of_the_step(
    error: type[BaseException],
) -> None:
    class Child(Workflow[Any]):
        @step
        async def work(self, ev: StartEvent) -> StopEvent | None:
            await anyio.sleep(10 if error is WorkflowTimeoutError else 0)
            return None

    class Parent(Noting):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            self.note("work")
            if not self.mended:
                await Child(timeout=5).run()
            return StopEvent(result="ok")

    workflow = Parent()
    assert await retry(workflow, await fail(workflow.run(), error)) == "ok"
    assert workflow.ran == ["work", "|", "work"]


# --- What else was pending ------------------------------------------------------------------------


@THROUGH_JSON
async def test_x7_what_was_in_progress_queued_or_delayed_is_gone_on_with(
    through_json: bool,
) -> None:
    class Busy(Noting):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            self.note("begin")
            return [Item(n=n) for n in range(4)]

        @step(num_workers=2)
        async def work(self, ev: Item) -> Done:
            await anyio.sleep(1 + ev.n)
            self.note(f"work {ev.n}", ConnectionError() if ev.n == 1 else None)
            return Done(n=ev.n)

        @step(retry_policy=retry_policy(wait=wait_fixed(100), stop=stop_after_attempt(2)))
        async def flaky(self, ctx: Context, ev: StartEvent) -> Mail:
            number = ctx.retry_info().retry_number
            self.note(f"flaky {number}")
            if number == 0:
                raise ValueError
            return Mail(n=number)

        @step
        async def mail(self, ctx: Context, ev: Mail) -> StopEvent | None:
            await ctx.store.set("mail", ev.n)
            return None

        @step
        async def join(self, ctx: Context, events: list[Done]) -> StopEvent:
            await anyio.sleep(200)
            return StopEvent(result=([ev.n for ev in events], await ctx.store.get("mail")))

    workflow = Busy()
    ctx = await fail(workflow.run())
    assert await retry(workflow, ctx, through_json) == ([0, 1, 2, 3], 1)
    done, again = "|".join(workflow.ran).split("|||")
    assert set(done.split("|")) == {"begin", "flaky 0", "work 0", "work 1"}
    assert set(again.split("|")) == {"work 1", "work 2", "work 3", "flaky 1"}


@THROUGH_JSON
async def test_x7_nested_batches_and_their_joins_hold(through_json: bool) -> None:
    class Fan(Noting):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(n=n) for n in (1, 2)]

        @step
        async def split(self, ev: Item) -> list[Other]:
            return [Other(n=10 * ev.n + i) for i in range(3)]

        @step(num_workers=1)
        async def work(self, ev: Other) -> Done:
            self.note(f"work {ev.n}", ConnectionError() if ev.n == 11 else None)
            return Done(n=ev.n)

        @step
        async def inner(self, events: list[Done]) -> Mail:
            self.note("inner")
            return Mail(n=sum(ev.n for ev in events))

        @step
        async def outer(self, events: list[Mail]) -> StopEvent:
            self.note("outer")
            return StopEvent(result=sorted(ev.n for ev in events))

    workflow = Fan()
    ctx = await fail(workflow.run())
    assert await retry(workflow, ctx, through_json) == [33, 63]
    counts = Counter(workflow.ran)
    assert counts["work 11"] == 2
    assert {counts[f"work {n}"] for n in (10, 12, 20, 21, 22)} == {1}
    assert (counts["inner"], counts["outer"]) == (2, 1)


@THROUGH_JSON
async def test_x7_a_join_that_failed_gets_its_events_again(through_json: bool) -> None:
    class Fan(Noting):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(n=n) for n in range(5)]

        @step
        async def work(self, ev: Item) -> Done:
            self.note("work")
            await anyio.sleep(ev.n)
            return Done(n=ev.n)

        @step
        async def join(
            self, events: Annotated[list[Done], Collect(Take(2, cancel=True))]
        ) -> StopEvent:
            self.note("join", ConnectionError())
            return StopEvent(result=[ev.n for ev in events])

    workflow = Fan()
    ctx = await fail(workflow.run())
    assert await retry(workflow, ctx, through_json) == [0, 1]
    assert workflow.ran[workflow.ran.index("|") :] == ["|", "join"]


@THROUGH_JSON
async def test_x7_sets_and_collect_buffers_hold(through_json: bool) -> None:
    class Pairs(Noting):
        @step
        async def begin(self, ev: StartEvent) -> None:
            self.note("begin")

        @step
        async def pair(self, a: Mail, b: Answer) -> Done:
            return Done(n=a.n)

        @step
        async def collect(self, ctx: Context, ev: Mail) -> Item | None:
            found = ctx.collect_events(ev, [Mail, Mail, Mail])
            self.note(f"collect {ev.n}", ConnectionError() if ev.n == 3 else None)
            if found is None:
                return None
            return Item(n=sum(one.n for one in found if isinstance(one, Mail)))

        @step
        async def meet(self, a: Item, b: Done) -> StopEvent:
            return StopEvent(result=(a.n, b.n))

    workflow = Pairs()
    handler = workflow.run()
    for n in (1, 2, 3):
        await anyio.sleep(1)
        await handler.send_event(Mail(n=n))
    again = retry(workflow, await fail(handler), through_json)
    await anyio.sleep(1)
    await again.send_event(Answer())
    assert await again == (6, 1)
    assert workflow.ran == ["begin", "collect 1", "collect 2", "collect 3", "|", "collect 3"]


# --- Recoveries -----------------------------------------------------------------------------------


class Recovered(Noting):
    @step
    async def work(self, ev: StartEvent) -> StopEvent:
        self.note("work", ConnectionError())
        return StopEvent(result="work")

    @catch_error(max_recoveries=2)
    async def recover(self, ev: StepFailedEvent) -> StartEvent | StopEvent:
        self.note("recover")
        return await self.after(ev)

    async def after(self, ev: StepFailedEvent) -> StartEvent | StopEvent:
        return StartEvent()


@THROUGH_JSON
async def test_x7_x4_exhausted_recoveries_stay_exhausted(through_json: bool) -> None:
    workflow = Recovered()
    ctx = await fail(workflow.run())
    assert workflow.ran == ["work", "recover", "work", "recover", "work"]
    ctx.retry_failed()
    ctx = await fail(workflow.run(ctx=ctx))
    assert workflow.ran[5:] == ["work"]  # it is tried again, but not recovered again
    assert await retry(workflow, ctx, through_json) == "work"


@THROUGH_JSON
async def test_x7_x4_an_error_handler_that_fails_is_repeated(through_json: bool) -> None:
    class Helpless(Recovered):
        async def after(self, ev: StepFailedEvent) -> StartEvent | StopEvent:
            self.note("helpless", LookupError())
            return StopEvent(result=(ev.step_name, repr(ev.exception)))

    workflow = Helpless()
    ctx = await fail(workflow.run(), LookupError)
    assert await retry(workflow, ctx, through_json) == ("work", "ConnectionError()")
    assert workflow.ran == ["work", "recover", "helpless", "|", "recover", "helpless"]


# --- Waits ----------------------------------------------------------------------------------------


class Interview(Noting):
    @step
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        one = await ctx.wait_for_event(Answer, Question(text="one?"))
        try:
            two = await ctx.wait_for_event(Answer, Question(text="two?"), timeout=10)
        except TimeoutError:
            self.note("late")
            raise ConnectionError from None
        return StopEvent(result=[one.text, two.text])


@THROUGH_JSON
async def test_x7_answers_are_given_again_and_what_timed_out_is_asked_anew(
    through_json: bool,
) -> None:
    workflow = Interview()
    handler = workflow.run()
    await anyio.sleep(1)
    await handler.send_event(Answer(text="1"))
    ctx = await fail(handler)
    assert [ev.text for ev in await read(handler) if isinstance(ev, Question)] == ["one?", "two?"]
    assert ctx.open_waits() == []
    again = retry(workflow, ctx, through_json)
    await anyio.sleep(1)
    await again.send_event(Answer(text="2"))
    assert await again == ["1", "2"]
    assert [ev.text for ev in await read(again) if isinstance(ev, Question)] == ["two?"]


@THROUGH_JSON
@pytest.mark.parametrize("was_read", [False, True])
async def test_x7_w4_open_questions_are_asked_again_if_nobody_had_read_them(
    through_json: bool, was_read: bool
) -> None:
    class Beside(Noting):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            answer = await ctx.wait_for_event(Answer, Question(text="well?"))
            return StopEvent(result=answer.text)

        @step
        async def work(self, ev: StartEvent) -> None:
            await anyio.sleep(5)
            self.note("work", ConnectionError())

    workflow = Beside()
    ctx = await fail(handler := workflow.run())
    if was_read:
        await read(handler)
    assert ctx.open_waits() == []
    again = retry(workflow, ctx, through_json)
    (wait,) = again.open_waits()
    assert wait.question == Question(text="well?")
    await again.send_event(Answer(text="yes"), wait=wait.id)
    assert await again == "yes"
    asked = [ev for ev in await read(again) if isinstance(ev, Question)]
    assert len(asked) == 0  # it was answered before the step came to it again


# --- The property: wherever a step fails for good, and is repeated, each step finishes once --------


class Plan(StartEvent):
    widths: list[int]


class Tree(Workflow[int]):
    """A tree of batches. Each execution fails as often as `left` says."""

    def __init__(self, finished: list[str]) -> None:
        super().__init__(timeout=None)
        self.finished = finished
        self.left: Counter[str] = Counter()

    async def act(self, ctx: Context, label: str, seconds: float) -> None:
        await anyio.sleep(seconds)
        if self.left[label]:
            self.left[label] -= 1
            raise ConnectionError(label)
        if ctx.is_running:  # what comes too late is not finished, and will be repeated
            self.finished.append(label)

    @step
    async def begin(self, ctx: Context, ev: Plan) -> list[Item]:
        await self.act(ctx, "begin", 1)
        return [Item(n=n) for n in ev.widths]

    @step(num_workers=2)
    async def split(self, ctx: Context, ev: Item) -> list[Other]:
        await self.act(ctx, f"split {ev.n}", ev.n % 3)
        return [Other(n=10 * ev.n + i) for i in range(ev.n)]

    @step(
        num_workers=2,
        retry_policy=retry_policy(wait=wait_fixed(0.5), stop=stop_after_attempt(2)),
    )
    async def work(self, ctx: Context, ev: Other) -> Done:
        answer = await ctx.wait_for_event(Answer, waiter_id=str(ev.n))
        await self.act(ctx, f"work {ev.n}", len(answer.text))
        return Done(n=ev.n)

    @step
    async def inner(self, ctx: Context, events: list[Done]) -> Mail:
        total = sum(ev.n for ev in events)
        await self.act(ctx, f"inner {total}", 1)
        return Mail(n=total)

    @step
    async def outer(self, ctx: Context, events: list[Mail]) -> StopEvent:
        await self.act(ctx, "outer", 1)
        return StopEvent(result=sum(ev.n for ev in events))


async def answer_all(handler: WorkflowHandler[Any], asked: list[str]) -> None:
    while not handler.is_done():
        for wait in handler.open_waits():
            assert wait.waiter_id is not None
            with suppress(WorkflowRuntimeError):  # the run has just failed
                await handler.send_event(Answer(text="x"), wait=wait.id)
                asked.append(wait.waiter_id)
        await anyio.sleep(0.5)


LABELS = ["begin", "split 1", "split 2", "split 3", "work 10", "work 21", "work 31", "outer"]


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=60)
@given(
    widths=st.lists(st.sampled_from([0, 1, 2, 3]), unique=True, max_size=4),
    failing=st.lists(st.sampled_from(LABELS), max_size=5),
    through_json=st.booleans(),
)
def test_x7_every_step_finishes_once_however_often_the_run_fails(
    backend: str, widths: list[int], failing: list[str], through_json: bool
) -> None:
    async def main() -> None:
        finished: list[str] = []
        asked: list[str] = []
        workflow = Tree(finished)
        workflow.left.update(failing)
        handler = workflow.run(widths=widths)
        for _ in range(20):
            async with anyio.create_task_group() as group:
                group.start_soon(answer_all, handler, asked)
            if type(handler.get_stop_event()) is StopEvent:
                break
            ctx = await fail(handler)
            if through_json:
                ctx = Context.from_dict(workflow, saved(ctx))
            ctx.retry_failed()
            handler = workflow.run(ctx=ctx)
        numbers = [10 * n + i for n in widths for i in range(n)]
        assert await handler == sum(numbers)
        assert Counter(asked) == Counter(map(str, numbers)), "somebody was asked twice"
        assert sorted(finished) == sorted(
            ["begin", "outer"]
            + [f"split {n}" for n in widths]
            + [f"work {n}" for n in numbers]
            + [f"inner {sum(10 * n + i for i in range(n))}" for n in widths]
        )

    run_virtually(backend, main)
