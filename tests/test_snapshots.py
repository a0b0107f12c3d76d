"""Snapshots, and contexts that outlive their runs: W4, P2-P4."""

from __future__ import annotations

import gc
import json
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Annotated, Any

import anyio
import attrs
import pytest
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_workflows import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StepFailedEvent,
    StopEvent,
    Workflow,
    WorkflowHandler,
    catch_error,
    step,
)
from anyio_workflows.collect import Collect, Take
from anyio_workflows.errors import (
    ContextSerdeError,
    ContextStateError,
    WorkflowCancelledByUser,
    WorkflowRuntimeError,
    WorkflowStalledError,
    WorkflowTimeoutError,
)
from anyio_workflows.events import WorkflowIdleEvent
from anyio_workflows.retry_policy import retry_policy, stop_after_attempt, wait_fixed

from .conftest import BACKENDS
from .running import Note, read, run_virtually, texts

pytestmark = pytest.mark.anyio


class Item(Event):
    n: int = 0


class Other(Event):
    n: int = 0


class Part(Event):
    n: int = 0


class Scored(Event):
    n: int = 0


class Numbers(StartEvent):
    items: list[int]


class Mail(HumanResponseEvent):
    n: int = 0


class Parcel(HumanResponseEvent):
    n: int = 0


class Question(InputRequiredEvent):
    text: str = ""


class Answer(HumanResponseEvent):
    text: str = ""


def through_json(data: dict[str, Any]) -> dict[str, Any]:
    """Return what a file would give back."""
    found = json.loads(json.dumps(data, allow_nan=False))
    assert found == data
    return found


def resume(workflow: Workflow[Any], data: Any, types: Sequence[type] = ()) -> WorkflowHandler[Any]:
    return workflow.run(ctx=Context.from_dict(workflow, data, types))


async def snapshot_at(
    seconds: float, handler: WorkflowHandler[Any], types: Sequence[type] = ()
) -> dict[str, Any]:
    """Return the snapshot of a run after some virtual seconds, and end the run."""
    await anyio.sleep(seconds)
    data = through_json(handler.ctx.to_dict(types))
    await handler.cancel_run()
    return data


def owed(data: dict[str, Any]) -> list[tuple[str, int]]:
    """Return the steps and attempts of the work in a snapshot."""
    return [(work["step"], work["attempt"]) for work in data["work"]["work"]]


class Acts(Workflow[Any]):
    """Awaits a function inside its step."""

    def __init__(self, act: Callable[[Context], Awaitable[Any]], **config: Any) -> None:
        super().__init__(**{"timeout": None, **config})
        self.act = act

    @step
    async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
        return StopEvent(result=await self.act(ctx))


class Row(Workflow[list[str]]):
    """Three steps in a row, each of which takes ten seconds and then notes its name."""

    def __init__(self, done: list[str], **config: Any) -> None:
        super().__init__(**config)
        self.done = done

    async def note(self, name: str) -> None:
        await anyio.sleep(10)
        self.done.append(name)

    @step
    async def first(self, ev: StartEvent) -> Item:
        await self.note("first")
        return Item()

    @step
    async def second(self, ev: Item) -> Other:
        await self.note("second")
        return Other()

    @step
    async def third(self, ev: Other) -> StopEvent:
        await self.note("third")
        return StopEvent(result=self.done)


# --- P3: at any moment ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "again"),
    [
        (0, ["first", "second", "third"]),
        (5, ["first", "second", "third"]),
        (15, ["second", "third"]),
        (29, ["third"]),
    ],
)
async def test_p3_finished_steps_do_not_run_again(seconds: float, again: list[str]) -> None:
    data = await snapshot_at(seconds, Row([]).run())
    assert await resume(Row([]), data) == again


async def test_p3_before_the_first_step_it_holds_the_start_event() -> None:
    class Echo(Workflow[Any]):
        @step
        async def work(self, ev: Numbers) -> StopEvent:
            return StopEvent(result=ev.items)

    handler = Echo().run(items=[1, 2])
    data = through_json(handler.ctx.to_dict())
    assert await handler == [1, 2]
    assert owed(data) == [("work", 1)]
    assert await resume(Echo(), data) == [1, 2]


async def test_p3_from_inside_a_step_it_holds_that_step() -> None:
    async def act(ctx: Context) -> Any:
        if not found:
            found.append(ctx.to_dict())
        return "done"

    found: list[Any] = []
    assert await Acts(act).run() == "done"
    assert owed(found[0]) == [("work", 1)]
    assert await resume(Acts(act), through_json(found[0])) == "done"


@pytest.mark.parametrize("backend", BACKENDS)
def test_p3_from_inside_a_sync_step(backend: str) -> None:
    class Threaded(Workflow[str]):
        @step
        def begin(self, ev: StartEvent) -> Item:
            return Item(n=7)

        @step
        def work(self, ctx: Context, ev: Item) -> StopEvent:
            found.append(ctx.to_dict())
            return StopEvent(result=f"{len(found)}: {ev.n}")

    async def main() -> list[str]:
        workflow = Threaded()
        with anyio.fail_after(10):
            return [await workflow.run(), await resume(workflow, through_json(found[0]))]

    found: list[Any] = []
    assert anyio.run(main, backend=backend) == ["1: 7", "2: 7"]
    assert owed(found[0]) == [("work", 1)]
    assert found[0] | {"work": None} == found[1] | {"work": None}


async def test_p3_after_break_out_of_the_stream() -> None:
    class Talking(Workflow[str]):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item:
            ctx.write_event_to_stream(Note(text="begin"))
            await anyio.sleep(1)
            return Item()

        @step
        async def work(self, ctx: Context, ev: Item) -> StopEvent:
            ctx.write_event_to_stream(Note(text="work"))
            await anyio.sleep(1)
            return StopEvent(result="done")

    handler = Talking().run()
    async for event in handler.stream_events():
        if texts([event]) == ["work"]:
            break
    data = through_json(handler.ctx.to_dict())
    assert await handler == "done"
    again = resume(Talking(), data)
    assert texts(await read(again)) == ["work"], "what was written before is written again"
    assert await again == "done"


async def test_p3_the_snapshot_is_no_view_of_the_run() -> None:
    async def act(ctx: Context) -> None:
        await ctx.store.set("seen", [1])
        await anyio.sleep(1)
        async with ctx.store.edit_state() as state:
            state.seen.append(2)
        await anyio.sleep(1)

    handler = Acts(act).run()
    await anyio.sleep(0.5)
    data = handler.ctx.to_dict()
    before = json.dumps(data)
    await anyio.sleep(1)
    assert json.dumps(data) == before
    data["state"]["seen"].append(3)
    assert await handler.ctx.store.get("seen") == [1, 2]
    await handler


async def test_p3_the_same_snapshot_is_resumed_several_times() -> None:
    async def act(ctx: Context) -> Any:
        async with ctx.store.edit_state() as state:
            state.seen = [*state.get("seen", []), len(state.get("seen", []))]
        await anyio.sleep(10)
        return await ctx.store.get("seen")

    data = await snapshot_at(5, Acts(act).run())
    before = json.dumps(data)
    assert await resume(Acts(act), data) == [0, 1]
    both = resume(Acts(act), data), resume(Acts(act), data)
    assert [await handler for handler in both] == [[0, 1], [0, 1]]
    assert json.dumps(data) == before


async def test_p3_the_resumed_run_has_the_full_timeout() -> None:
    data = await snapshot_at(25, Row([], timeout=30).run())
    started = anyio.current_time()
    assert await resume(Row([], timeout=30), data) == ["third"]
    assert anyio.current_time() - started == 10
    handler = resume(Row([], timeout=9), data)
    with pytest.raises(WorkflowTimeoutError):
        await handler
    assert anyio.current_time() - started == 19


async def test_p3_ids_are_never_used_again() -> None:
    ids, data = [], None
    for seconds in (5, 15, 15):
        handler = Row([]).run() if data is None else resume(Row([]), data)
        data = await snapshot_at(seconds, handler)
        ids.append([work["id"] for work in data["work"]["work"]])
        assert data["work"]["next_id"] == ids[-1][-1] + 1
    assert ids == [[1], [2], [3]]


async def test_p3_a_run_that_is_queued_for_a_place() -> None:
    workflow = Row([], num_concurrent_runs=1, timeout=35)
    running, queued = workflow.run(), workflow.run()
    data = await snapshot_at(5, queued)
    assert owed(data) == [("first", 1)]
    assert await running == ["first", "second", "third"]
    assert await resume(Row([]), data) == ["first", "second", "third"]
    again = resume(workflow, data)
    await again.cancel_run()
    assert owed(again.ctx.to_dict()) == [("first", 1)]


class Mailbox(Workflow[list[int]]):
    """Sums up what comes from outside, in its state, until 0 comes."""

    @step
    async def begin(self, ev: StartEvent) -> None: ...

    @step
    async def take(self, ctx: Context, ev: Mail) -> StopEvent | None:
        if not ev.n:
            return StopEvent(result=await ctx.store.get("seen"))
        async with ctx.store.edit_state() as state:
            state.seen = [*state.get("seen", []), ev.n]
        return None


async def test_p3_an_idle_run_that_waits_for_events_from_outside() -> None:
    handler = Mailbox().run()
    await handler.send_event(Mail(n=1))
    data = await snapshot_at(5, handler)
    assert owed(data) == []
    again = resume(Mailbox(), data)
    async for event in again.stream_events(expose_internal=True):
        if isinstance(event, WorkflowIdleEvent):
            break
    await again.send_event(Mail(n=2))
    await anyio.sleep(1)
    await again.send_event(Mail())
    assert await again == [1, 2]


async def test_p3_t9_a_restored_run_remembers_that_it_asked_for_input() -> None:
    class Asking(Workflow[str]):
        @step
        async def begin(self, ev: StartEvent) -> Question | None:
            return Question(text="name?")

        @step
        async def end(self, ev: Item) -> StopEvent:
            return StopEvent(result="told")

        @step
        async def make(self, ev: Other) -> Item | Other:
            return Item()

    handler = Asking(skip_graph_checks=["reachability"]).run()
    data = await snapshot_at(1, handler)
    again = resume(Asking(skip_graph_checks=["reachability"]), data)
    await anyio.sleep(1)
    await again.send_event(Other())
    assert await again == "told"
    data["work"]["input_asked"] = False
    with pytest.raises(WorkflowStalledError):
        await resume(Asking(skip_graph_checks=["reachability"]), data)


# --- P3: retries ----------------------------------------------------------------------------------


class Stubborn(Workflow[Any]):
    """Fails three times, ten seconds into each attempt, with delays of 100 seconds."""

    @step(retry_policy=retry_policy(wait=wait_fixed(100), stop=stop_after_attempt(4)))
    async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
        info = ctx.retry_info()
        started = anyio.current_time()
        await anyio.sleep(10)
        if info.retry_number < 3:
            raise ValueError("attempt", info.retry_number)
        return StopEvent(result=(info, started))


async def test_p3_a_retry_delay_goes_on_where_it_was_and_attempts_are_counted_on() -> None:
    data = await snapshot_at(40, Stubborn(timeout=None).run())
    (work,) = data["work"]["work"]
    assert (work["attempt"], work["elapsed"], work["due_in"]) == (2, 40, 70)
    started = anyio.current_time()
    info, began = await resume(Stubborn(timeout=None), data)
    assert began - started == 70 + 110 + 110
    assert (info.retry_number, info.elapsed_seconds) == (3, 40 + 290)
    assert type(info.last_exception) is ValueError
    assert info.last_exception.args == ("attempt", 2)


async def test_p3_an_interrupted_attempt_is_made_again_under_its_number() -> None:
    data = await snapshot_at(115, Stubborn(timeout=None).run())
    (work,) = data["work"]["work"]
    assert (work["attempt"], work["elapsed"], work["due_in"]) == (2, 115, None)
    assert work["last_error"] == {
        "$": "exception",
        "value": {"type": "ValueError", "text": "('attempt', 0)", "args": ["attempt", 0]}
        | {key: value for key, value in work["last_error"]["value"].items() if key == "notes"},
    }
    started = anyio.current_time()
    info, began = await resume(Stubborn(timeout=None), data)
    assert began - started == 220
    assert (info.retry_number, info.elapsed_seconds) == (3, 115 + 220)


async def test_p3_attempts_are_not_exceeded_over_any_number_of_snapshots() -> None:
    class Failing(Workflow[None]):
        @step(retry_policy=retry_policy(wait=wait_fixed(10), stop=stop_after_attempt(3)))
        async def work(self, ev: StartEvent) -> StopEvent:
            attempts.append(anyio.current_time())
            raise ValueError("no")

    attempts: list[float] = []
    data = await snapshot_at(5, Failing().run())
    data = await snapshot_at(10, resume(Failing(), data))
    with pytest.raises(ValueError, match="no"):
        await resume(Failing(), data)
    assert len(attempts) == 3


async def test_p4_a_foreign_exception_comes_back_as_one_that_keeps_type_and_text() -> None:
    class OddError(Exception): ...

    class Failing(Workflow[Any]):
        @step(retry_policy=retry_policy(wait=wait_fixed(10)))
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            if (error := ctx.retry_info().last_exception) is None:
                raise OddError("very odd")
            return StopEvent(result=error)

    data = await snapshot_at(5, Failing().run())
    error = await resume(Failing(), data)
    assert str(error) == "very odd"
    assert error.type_name.endswith("OddError")


class Recovering(Workflow[Any]):
    """Its step always fails, and is recovered twice at most."""

    @step
    async def begin(self, ev: StartEvent) -> Item:
        return Item()

    @step
    async def work(self, ev: Item) -> StopEvent:
        await anyio.sleep(10)
        raise ValueError(ev.n)

    @catch_error(max_recoveries=2)
    async def recover(self, ev: StepFailedEvent) -> Item:
        await anyio.sleep(10)
        assert isinstance(ev.input_event, Item)
        assert ev.exception.args == (ev.input_event.n,)
        return Item(n=ev.input_event.n + 1)


@pytest.mark.parametrize(("seconds", "left"), [(5, 50), (15, 40), (25, 30), (35, 20), (45, 10)])
async def test_p3_recoveries_are_counted_on(seconds: float, left: float) -> None:
    data = await snapshot_at(seconds, Recovering(timeout=None).run())
    started = anyio.current_time()
    with pytest.raises(ValueError, match="2"):
        await resume(Recovering(timeout=None), data)
    assert anyio.current_time() - started == left


# --- W4: waits ------------------------------------------------------------------------------------


TYPES = [Answer, Question]


async def snapshot_when_read(
    seconds: float, handler: WorkflowHandler[Any], types: Sequence[type]
) -> dict[str, Any]:
    """Return the snapshot of a run after some seconds, in which its stream is read."""
    with anyio.move_on_after(seconds):
        await read(handler)
    return await snapshot_at(0, handler, types)


async def interview(ctx: Context) -> list[str]:
    """Ask three questions, one after the other, ten seconds apart."""
    answers = []
    for n in range(3):
        answer = await ctx.wait_for_event(Answer, Question(text=f"{n}?"), timeout=100)
        answers.append(answer.text)
        await anyio.sleep(10)
    return answers


async def answer(handler: WorkflowHandler[Any], *words: str) -> None:
    for word in words:
        await anyio.sleep(20)
        await handler.send_event(Answer(text=word))


def questions(events: Sequence[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Question)]


@pytest.mark.parametrize(
    ("answers", "seconds", "asked_again"),
    [
        ([], 5, ["1?", "2?"]),
        (["a"], 5, ["1?", "2?"]),  # in the middle of what comes after an answer
        (["a"], 15, ["2?"]),
        (["a", "b"], 15, []),
    ],
)
async def test_w4_answers_are_given_again_and_prompts_are_not_written_again(
    answers: list[str], seconds: float, asked_again: list[str]
) -> None:
    handler = Acts(interview).run()
    await answer(handler, *answers)
    data = await snapshot_when_read(seconds, handler, TYPES)
    again = resume(Acts(interview), data, TYPES)
    await answer(again, *["a", "b", "c"][len(answers) :])
    assert questions(await read(again)) == asked_again
    assert await again == ["a", "b", "c"]


async def test_w4_an_answer_right_after_the_restart_is_not_lost() -> None:
    async def act(ctx: Context) -> str:
        await anyio.sleep(10)
        return (await ctx.wait_for_event(Answer, Question(text="?"))).text

    data = await snapshot_when_read(15, Acts(act).run(), TYPES)
    again = resume(Acts(act), data, TYPES)
    await again.send_event(Answer(text="at once"))
    assert questions(await read(again)) == []
    assert await again == "at once"


async def test_w4_an_answer_before_the_step_comes_to_its_wait_is_in_the_next_snapshot() -> None:
    async def act(ctx: Context) -> str:
        await anyio.sleep(10)
        return (await ctx.wait_for_event(Answer, Question(text="?"))).text

    data = await snapshot_when_read(15, Acts(act).run(), TYPES)
    again = resume(Acts(act), data, TYPES)
    await again.send_event(Answer(text="early"))
    data = await snapshot_at(5, again, TYPES)
    assert await resume(Acts(act), data, TYPES) == "early"


async def test_w4_a_wait_begins_again_with_its_full_time() -> None:
    handler = Acts(interview).run()
    data = await snapshot_when_read(60, handler, TYPES)
    started = anyio.current_time()
    with pytest.raises(TimeoutError):
        await resume(Acts(interview), data, TYPES)
    assert anyio.current_time() - started == 100


async def test_w4_a_prompt_whose_wait_timed_out_is_not_written_again() -> None:
    async def act(ctx: Context) -> str:
        try:
            found = await ctx.wait_for_event(Answer, Question(text="?"), timeout=10)
        except TimeoutError:
            await anyio.sleep(10)
            return "no answer"
        return found.text

    data = await snapshot_when_read(15, Acts(act).run(), TYPES)
    again = resume(Acts(act), data, TYPES)
    assert questions(await read(again)) == []
    assert await again == "no answer"


async def test_w4_an_answer_during_a_restored_retry_delay_is_for_the_next_attempt() -> None:
    class Hasty(Workflow[str]):
        @step(retry_policy=retry_policy(wait=wait_fixed(100)))
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            with anyio.move_on_after(5 if ctx.retry_info().retry_number == 0 else 1000):
                found = await ctx.wait_for_event(Answer, Question(text="?"))
                return StopEvent(result=f"{found.text} at {anyio.current_time() - started}")
            raise ValueError("too slow")

    started = anyio.current_time()
    data = await snapshot_when_read(15, Hasty(timeout=None).run(), TYPES)
    again = resume(Hasty(timeout=None), data, TYPES)
    await anyio.sleep(10)
    await again.send_event(Answer(text="early"))
    assert questions(await read(again)) == []
    assert await again == "early at 105.0"


async def test_w4_waits_of_several_tasks_are_told_apart() -> None:
    async def act(ctx: Context) -> dict[str, str]:
        async def ask(name: str) -> None:
            prompt = Question(text=name)
            found[name] = (await ctx.wait_for_event(Answer, prompt, waiter_id=name)).text

        found: dict[str, str] = {}
        async with anyio.create_task_group() as group:
            for name in ("one", "two"):
                group.start_soon(ask, name)
        return found

    data = await snapshot_when_read(5, Acts(act).run(), TYPES)
    again = resume(Acts(act), data, TYPES)
    await answer(again, "both")
    assert questions(await read(again)) == []
    assert await again == {"one": "both", "two": "both"}


async def test_w4_requirements_are_kept() -> None:
    async def act(ctx: Context) -> str:
        wanted = {"text": "right"}
        found = await ctx.wait_for_event(Answer, requirements=wanted)
        return found.text

    data = await snapshot_when_read(5, Acts(act).run(), TYPES)
    again = resume(Acts(act), data, TYPES)
    await again.send_event(Answer(text="wrong"))
    await answer(again, "wrong", "right")
    assert await again == "right"


async def test_p4_an_awaited_type_that_the_workflow_does_not_declare_is_named() -> None:
    handler = Acts(interview).run()
    await anyio.sleep(5)
    with pytest.raises(ContextSerdeError, match=r"Answer.*types=\[") as caught:
        handler.ctx.to_dict()
    assert caught.value.path == "$.work.work[0].waits[0].event_type"
    await handler.cancel_run()


# --- F1-F6: batches, sets, collect buffers ----------------------------------------------------------


class Fan(Workflow[list[int]]):
    """Nested batches: item n takes 10 * n seconds, and has n parts that take 10 seconds each."""

    def __init__(self, done: list[Any], **config: Any) -> None:
        super().__init__(**{"timeout": None, **config})
        self.done = done

    @step
    async def split(self, ev: Numbers) -> list[Item]:
        self.done.append("split")
        return [Item(n=n) for n in ev.items]

    @step
    async def open(self, ev: Item) -> list[Part]:
        if ev.n:  # else it is never in progress when a snapshot is taken
            await anyio.sleep(10 * ev.n)
        self.done.append(("open", ev.n))
        return [Part(n=ev.n)] * ev.n

    @step(num_workers=1)
    async def work(self, ev: Part) -> Other:
        await anyio.sleep(10)
        self.done.append(("work", ev.n))
        return Other(n=ev.n)

    @step
    async def inner(self, events: list[Other]) -> Scored:
        self.done.append(("inner", len(events)))
        return Scored(n=sum(event.n for event in events))

    @step
    async def outer(self, events: list[Scored]) -> StopEvent:
        self.done.append("outer")
        return StopEvent(result=sorted(event.n for event in events))


@pytest.mark.parametrize("seconds", [0, 5, 15, 25, 35, 45, 55, 65, 75])
@pytest.mark.parametrize("items", [[1, 2, 3], [0, 3], [1, 1]])
async def test_p3_open_and_nested_batches(seconds: float, items: list[int]) -> None:
    done: list[Any] = []
    handler = Fan(done).run(items=items)
    await anyio.sleep(seconds)
    if handler.is_done():
        assert through_json(handler.ctx.to_dict())["work"] is None
    else:
        data = await snapshot_at(0, handler)
        assert await resume(Fan(done), data) == [n * n for n in items]
    parts = [("work", n) for n in items for _ in range(n)]
    opened = [("open", n) for n in items]
    closed = [("inner", n) for n in items]
    assert Counter(done) == Counter(["split", *opened, *parts, *closed, "outer"])


async def test_p3_an_empty_batch_inside_another() -> None:
    handler = Fan(done := []).run(items=[0, 1])
    data = await snapshot_at(5, handler)
    assert await resume(Fan(done), data) == [0, 1]
    assert done.count(("inner", 0)) == 1


class Race(Workflow[Any]):
    """The first two of its items that are there win; `linger` makes the others slow to go."""

    linger = 0.0
    cancel = True

    def __init__(self, done: list[Any], **config: Any) -> None:
        super().__init__(**{"timeout": None, **config})
        self.done = done

    @step
    async def split(self, ev: Numbers) -> list[Item]:
        return [Item(n=n) for n in ev.items]

    @step(num_workers=3)
    async def work(self, ev: Item) -> Scored:
        try:
            await anyio.sleep(10 * ev.n)
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await anyio.sleep(self.linger)
            raise
        self.done.append(ev.n)
        return Scored(n=ev.n)

    @step
    async def first(self, events: Annotated[list[Scored], Collect(Take(2, cancel=True))]) -> Other:
        await anyio.sleep(10)
        self.done.append("first")
        return Other(n=sum(event.n for event in events))

    @step
    async def every(self, events: list[Scored]) -> Part:
        self.done.append(f"every {len(events)}")
        return Part(n=len(events))

    @step
    async def both(self, a: Other, b: Part) -> StopEvent:
        return StopEvent(result=(a.n, b.n))


@pytest.mark.parametrize("linger", [0, 2, 6, 30])
@pytest.mark.parametrize("seconds", [5, 15, 21, 25, 29])
async def test_p3_a_batch_that_is_cancelled_while_work_is_going(
    linger: float, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Race, "linger", linger)
    done: list[Any] = []
    handler = Race(done).run(items=[3, 1, 2, 4, 5])
    await anyio.sleep(seconds)
    data = through_json(handler.ctx.to_dict())
    finished = [*done]
    await handler.cancel_run()
    del done[:]
    assert await resume(Race(done), data) == (3, 2)
    assert Counter([*finished, *done]) == Counter([1, 2, "first", "every 2"])


async def test_p3_f4_joins_inside_a_cancelled_batch_do_not_fire_after_a_restore() -> None:
    class Nested(Workflow[Any]):
        @step
        async def split(self, ev: Numbers) -> list[Item]:
            return [Item(n=n) for n in ev.items]

        @step
        async def open(self, ev: Item) -> list[Part]:
            return [Part(n=ev.n)]

        @step
        async def work(self, ev: Part) -> Other:
            try:
                await anyio.sleep(10 * ev.n)
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(5)
            return Other(n=ev.n)

        @step
        async def inner(self, events: list[Other]) -> Scored:
            joined.append([event.n for event in events])
            return Scored()

        @step
        async def outer(
            self, events: Annotated[list[Scored], Collect(Take(1, cancel=True))]
        ) -> StopEvent:
            await anyio.sleep(10)
            return StopEvent(result=len(events))

    joined: list[list[int]] = []
    data = await snapshot_at(17, Nested().run(items=[1, 2]))
    assert owed(data) == [("outer", 1)]
    assert await resume(Nested(), data) == 1
    assert joined == [[1]]


async def test_p3_take_without_cancelling() -> None:
    class Early(Workflow[Any]):
        @step
        async def split(self, ev: Numbers) -> list[Item]:
            return [Item(n=n) for n in ev.items]

        @step
        async def work(self, ev: Item) -> Scored:
            await anyio.sleep(10 * ev.n)
            done.append(ev.n)
            return Scored(n=ev.n)

        @step
        async def early(self, events: Annotated[list[Scored], Collect(Take(1))]) -> None:
            done.append(f"early {events[0].n}")

        @step
        async def late(self, events: list[Scored]) -> StopEvent:
            return StopEvent(result=[event.n for event in events])

    done: list[Any] = []
    data = await snapshot_at(15, Early().run(items=[1, 2, 3]))
    assert await resume(Early(), data) == [1, 2, 3]
    assert done == [1, "early 1", 2, 3]


class Sets(Workflow[Any]):
    """Pairs what comes from outside; what is negative goes to the second parameter."""

    @step
    async def begin(self, ev: StartEvent) -> None: ...

    @step
    async def pair(self, a: Mail, b: Parcel) -> StopEvent | None:
        return StopEvent(result=(a.n, b.n)) if b.n == 3 else None


async def test_p3_sets_outside_of_branches_keep_their_surplus_in_order() -> None:
    handler = Sets().run()
    await anyio.sleep(1)
    for n in (1, 2, 3, 4):
        await handler.send_event(Mail(n=n))
    await handler.send_event(Parcel(n=1))
    data = await snapshot_at(1, handler)
    assert [
        [kept["event"]["value"]["n"] for kept in queue]
        for queue in data["work"]["sets"][0]["queues"]
    ] == [[2, 3, 4], []]
    again = resume(Sets(), data)
    await again.send_event(Parcel(n=2))
    await again.send_event(Parcel(n=3))
    assert await again == (3, 3)


class BranchSets(Workflow[Any]):
    """Both halves of a pair come from one branch, at different times."""

    @step
    async def split(self, ev: Numbers) -> list[Part]:
        return [Part(n=n) for n in ev.items]

    @step
    async def left(self, ev: Part) -> Item:
        await anyio.sleep(ev.n)
        return Item(n=ev.n)

    @step
    async def right(self, ev: Part) -> Other:
        await anyio.sleep(10 - ev.n)
        return Other(n=ev.n)

    @step
    async def pair(self, a: Item, b: Other) -> Scored:
        assert a.n == b.n, "events of different branches were paired"
        return Scored(n=a.n)

    @step
    async def join(self, events: list[Scored]) -> StopEvent:
        return StopEvent(result=sorted(event.n for event in events))


@pytest.mark.parametrize("seconds", [0, 2.5, 4.5, 7.5])
async def test_p3_sets_inside_branches(seconds: float) -> None:
    data = await snapshot_at(seconds, BranchSets().run(items=[1, 8, 3]))
    assert await resume(BranchSets(), data) == [1, 3, 8]


class Pairs(Workflow[Any]):
    """Collects two items at a time, then works on them for ten seconds."""

    def __init__(self, done: list[Any], **config: Any) -> None:
        super().__init__(**{"timeout": None, **config})
        self.done = done

    @step
    async def begin(self, ev: StartEvent) -> None: ...

    @step(num_workers=8)
    async def work(self, ctx: Context, ev: Mail) -> StopEvent | None:
        found = ctx.collect_events(ev, [Mail, Mail], buffer_id=f"{ev.n % 2}")
        if found is None:
            return None
        await anyio.sleep(10)
        self.done.append([event.n for event in found if isinstance(event, Mail)])
        return StopEvent(result=self.done) if len(self.done) == 3 else None


async def test_p3_f6_collect_buffers_and_what_an_execution_took_from_them() -> None:
    handler = Pairs([]).run()
    await anyio.sleep(1)
    for n in (1, 2, 3, 5):
        await handler.send_event(Mail(n=n))
    data = await snapshot_at(5, handler)
    again = resume(Pairs([]), data)
    await again.send_event(Mail(n=4))
    await again.send_event(Mail(n=7))
    assert sorted(await again) == [[1, 3], [2, 4], [5, 7]]


async def test_p3_f6_surplus_in_a_collect_buffer() -> None:
    class Uneven(Workflow[Any]):
        @step
        async def begin(self, ev: StartEvent) -> None: ...

        @step
        async def work(self, ctx: Context, ev: Mail | Parcel) -> StopEvent | None:
            found = ctx.collect_events(ev, [Mail, Parcel])
            return StopEvent(result=[dict(event) for event in found]) if found else None

    handler = Uneven().run()
    await anyio.sleep(1)
    for n in (1, 2, 3):
        await handler.send_event(Mail(n=n))
    data = await snapshot_at(1, handler)
    again = resume(Uneven(), data)
    await again.send_event(Parcel(n=9))
    assert await again == [{"n": 1}, {"n": 9}]


async def test_p3_a_failed_join_is_recovered_with_the_events_of_its_batch() -> None:
    class Failing(Workflow[Any]):
        @step
        async def split(self, ev: Numbers) -> list[Item]:
            return [Item(n=n) for n in ev.items]

        @step
        async def join(self, events: list[Item]) -> StopEvent:
            raise ValueError("no")

        @catch_error
        async def recover(self, ev: StepFailedEvent) -> StopEvent:
            await anyio.sleep(10)
            return StopEvent(result=ev.input_event)

    data = await snapshot_at(5, Failing().run(items=[1, 2]))
    assert owed(data) == [("recover", 1)]
    assert await resume(Failing(), data) == [Item(n=1), Item(n=2)]


# --- P3: the end, and what comes before it ----------------------------------------------------------


async def test_p3_during_cleanup_it_holds_what_was_owed_when_the_end_was_decided() -> None:
    async def act(ctx: Context) -> str:
        if found:
            return "again"
        try:
            await anyio.sleep(1000)
        finally:
            found.append(through_json(ctx.to_dict()))
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1)
        return "never"

    found: list[Any] = []
    handler = Acts(act, timeout=10).run()
    await anyio.sleep(10.5)
    found.append(through_json(handler.ctx.to_dict()))
    with pytest.raises(WorkflowTimeoutError):
        await handler
    found.append(through_json(handler.ctx.to_dict()))
    assert [owed(data) for data in found] == [[("work", 1)]] * 3
    for data in found[:2]:
        assert await resume(Acts(act), data) == "again"


async def test_p3_during_the_cleanup_after_a_stop_event_nothing_is_owed() -> None:
    class Two(Workflow[int]):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> Item | StopEvent:
            ctx.send_event(Item())
            await anyio.sleep(10)
            return StopEvent(result=1)

        @step
        async def work(self, ctx: Context, ev: Item) -> None:
            try:
                await anyio.sleep(1000)
            finally:
                found.append(ctx.to_dict()["work"])

    found: list[Any] = []
    assert await Two().run() == 1
    assert found == [None]


class Counting(Workflow[Any]):
    """Counts its runs in the state; ends as the start event says."""

    @step
    async def count(self, ctx: Context, ev: StartEvent) -> Item:
        async with ctx.store.edit_state() as state:
            state.runs = state.get("runs", 0) + 1
        return Item(n=ev.get("end", 0))

    @step
    async def end(self, ctx: Context, ev: Item) -> StopEvent | None:
        if ev.n == 1:
            raise ValueError("as told")
        if ev.n == 2:
            return None
        if ev.n == 3 and await ctx.store.get("runs") == 1:
            await ctx.store.set("runs", 10)
            await anyio.sleep(1000)
        return StopEvent(result=await ctx.store.get("runs"))


@pytest.mark.parametrize("in_process", [True, False])
@pytest.mark.parametrize(("end", "error"), [(0, None), (1, ValueError), (2, WorkflowStalledError)])
async def test_p3_after_a_stop_or_failure_it_starts_anew_with_its_state(
    end: int, error: type[Exception] | None, in_process: bool
) -> None:
    handler = Counting().run(end=end)
    with suppress(error or ()):
        await handler
    ctx: Any = handler.ctx
    data = through_json(ctx.to_dict())
    assert (data["work"], data["state"]) == (None, {"runs": 1})
    if not in_process:
        ctx = Context.from_dict(Counting(), data)
    assert await Counting().run(ctx=ctx, end=0) == 2
    assert await Counting().run(ctx=ctx) == 3


@pytest.mark.parametrize("in_process", [True, False])
@pytest.mark.parametrize("cancelled", [True, False])
async def test_p3_after_a_timeout_or_cancellation_it_goes_on(
    cancelled: bool, in_process: bool
) -> None:
    handler = Counting(timeout=50).run(end=3)
    if cancelled:
        await anyio.sleep(5)
        await handler.cancel_run()
    with pytest.raises(WorkflowCancelledByUser if cancelled else WorkflowTimeoutError):
        await handler
    ctx: Any = handler.ctx
    if not in_process:
        ctx = Context.from_dict(Counting(), through_json(ctx.to_dict()))
    assert await Counting().run(ctx=ctx) == 10
    assert await Counting().run(ctx=ctx, end=0) == 11


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("next_backend", BACKENDS)
@pytest.mark.parametrize("in_process", [True, False])
def test_p3_after_the_end_of_its_loop_it_goes_on_in_another(
    backend: str, next_backend: str, in_process: bool
) -> None:
    async def first() -> Context[Any]:
        handler = Fan(done).run(items=[1, 2])
        await anyio.sleep(15)
        return handler.ctx

    async def second() -> list[int]:
        return await Fan(done).run(ctx=context)

    done: list[Any] = []
    context = run_virtually(backend, first)
    if not in_process:
        context = Context.from_dict(Fan(done), through_json(context.to_dict()))
    assert run_virtually(next_backend, second) == [1, 4]
    parts = [("work", n) for n in (1, 2, 2)]
    both = [(what, n) for what in ("open", "inner") for n in (1, 2)]
    assert Counter(done) == Counter(["split", *both, *parts, "outer"])


async def test_p3_a_run_that_is_cancelled_before_its_first_step_goes_on() -> None:
    handler = Counting().run(end=0)
    await handler.cancel_run()
    assert owed(through_json(handler.ctx.to_dict())) == [("count", 1)]
    assert await Counting().run(ctx=handler.ctx) == 1


@pytest.mark.parametrize("how", ["keywords", "start_event"])
async def test_p3_there_is_nothing_to_start_with_while_work_is_left(how: str) -> None:
    start: Any = {"end": 0} if how == "keywords" else {"start_event": StartEvent(end=0)}
    handler = Counting().run(end=3)
    data = await snapshot_at(5, handler)
    for ctx in (handler.ctx, Context.from_dict(Counting(), data)):
        with pytest.raises(ContextStateError, match=r"discard_work\(\)"):
            Counting().run(ctx=ctx, **start)
        assert await Counting().run(ctx=ctx) == 10, "the refused call took something away"
        await ctx.store.set("runs", 1)


async def test_p3_discard_work_drops_what_is_left_and_keeps_the_state() -> None:
    handler = Counting().run(end=3)
    data = await snapshot_at(5, handler)
    for ctx in (handler.ctx, Context.from_dict(Counting(), data)):
        ctx.discard_work()
        found = through_json(ctx.to_dict())
        assert (found["work"], found["state"]) == (None, {"runs": 10})
        assert await Counting().run(ctx=ctx, end=0) == 11
        ctx.discard_work()  # there is nothing: nothing happens


# --- P2: one context, one run at a time ---------------------------------------------------------------


async def test_p2_a_second_run_while_one_goes_on_raises() -> None:
    handler = Row([]).run()
    for _ in range(2):
        with pytest.raises(ContextStateError, match="still going on"):
            Row([]).run(ctx=handler.ctx)
        with pytest.raises(ContextStateError, match="still going on"):
            handler.ctx.discard_work()
        await anyio.sleep(5)
    assert await handler == ["first", "second", "third"]


async def test_p2_a_second_run_raises_until_cleanup_is_over() -> None:
    async def act(ctx: Context) -> None:
        try:
            await anyio.sleep(1000)
        finally:
            with pytest.raises(ContextStateError, match="still going on"):
                workflow.run(ctx=outer.ctx)

    workflow = Acts(act)
    outer = workflow.run()
    await anyio.sleep(1)
    await outer.cancel_run()
    assert owed(outer.ctx.to_dict()) == [("work", 1)]


@pytest.mark.parametrize("left", [True, False])
async def test_p2_a_context_of_another_workflow_class_is_refused(left: bool) -> None:
    class Kin(Row): ...

    context: Any = Context(Row([]))
    if left:
        context = Context.from_dict(Row([]), await snapshot_at(5, Row([]).run()))
    for other in (Kin([]), Counting()):
        with pytest.raises(ContextStateError, match="is for runs of Row, not of"):
            other.run(ctx=context)
    assert await Row([]).run(ctx=context) == ["first", "second", "third"]


async def test_p2_a_context_made_before_the_run_is_saved_with_its_seeded_state() -> None:
    context: Any = Context(Counting())
    assert through_json(context.to_dict())["state"] is None
    await context.store.set("runs", 41)
    again = Context.from_dict(Counting(), through_json(context.to_dict()))
    assert await Counting().run(ctx=again, end=0) == 42
    assert await Counting().run(ctx=context, end=0) == 42


# --- P1, P4: values and types ---------------------------------------------------------------------


@attrs.define
class Basket:
    items: list[str] = attrs.Factory(list)
    owner: Any = None


@attrs.frozen
class Person:
    name: str


class Shop(Workflow[Any]):
    @step
    async def fill(self, ctx: Context[Basket], ev: StartEvent) -> Item:
        async with ctx.store.edit_state() as basket:
            basket.items.append("apple")
            basket.owner = ev.get("owner")
        return Item()

    @step
    async def pay(self, ctx: Context[Basket], ev: Item) -> StopEvent:
        await anyio.sleep(10)
        return StopEvent(result=await ctx.store.get_state())


async def test_p3_typed_state_comes_back_as_its_type() -> None:
    data = await snapshot_at(5, Shop().run(owner=5))
    assert await resume(Shop(), data) == Basket(items=["apple"], owner=5)


async def test_p4_types_are_needed_on_both_sides() -> None:
    handler = Shop().run(owner=Person(name="Ada"))
    await anyio.sleep(5)
    with pytest.raises(ContextSerdeError, match=r"Person.*types=\[") as caught:
        handler.ctx.to_dict()
    assert caught.value.path == "$.state.owner"
    data = through_json(handler.ctx.to_dict(types=[Person]))
    await handler.cancel_run()
    with pytest.raises(ContextSerdeError, match=r"Person.*types=\[") as caught:
        Context.from_dict(Shop(), data)
    assert caught.value.path == "$.state.owner"
    again = resume(Shop(), data, [Person])
    assert again.ctx.to_dict() == data, "the types are known from then on"
    assert await again == Basket(items=["apple"], owner=Person(name="Ada"))


class Carrying(Workflow[Any]):
    @step
    async def begin(self, ev: StartEvent) -> Item:
        return Item()

    @step
    async def work(self, ctx: Context, ev: Item) -> StopEvent:
        await ctx.store.set("made", {"of": [1, lambda: 0]})
        await anyio.sleep(10)
        await ctx.store.set("made", None)
        await anyio.sleep(10)
        return StopEvent(result="went on")


async def test_p3_a_value_that_cannot_be_saved_is_named_and_the_run_goes_on() -> None:
    handler = Carrying().run()
    await anyio.sleep(5)
    with pytest.raises(ContextSerdeError, match="function") as caught:
        handler.ctx.to_dict()
    assert caught.value.path == "$.state.made.of[1]"
    await anyio.sleep(10)
    data = through_json(handler.ctx.to_dict())
    assert await handler == "went on"
    assert await resume(Carrying(), data) == "went on"


async def test_p3_an_event_that_cannot_be_saved_is_named() -> None:
    async def act(ctx: Context) -> str:
        with pytest.raises(ContextSerdeError, match="object") as caught:
            ctx.to_dict()
        return caught.value.path

    assert await Acts(act).run(thing={"a": object()}) == "$.work.work[0].events[0].thing.a"


async def test_p3_a_value_that_contains_itself_is_named() -> None:
    async def act(ctx: Context) -> str:
        knot: list[Any] = []
        knot.append(knot)
        await ctx.store.set("knot", knot)
        with pytest.raises(ContextSerdeError, match="contains itself") as caught:
            ctx.to_dict()
        return caught.value.path

    assert (await Acts(act).run()).startswith("$")


# --- O6: nothing pinned ---------------------------------------------------------------------------


@pytest.mark.parametrize("left", [True, False])
async def test_o6_nothing_is_pinned_by_snapshots_and_contexts(left: bool) -> None:
    async def use() -> list[weakref.ref[Any]]:
        class Local(Fan): ...

        workflow = Local([])
        first = workflow.run(items=[1, 2])
        await anyio.sleep(15)
        data = first.ctx.to_dict()
        await first.cancel_run()
        context = Context.from_dict(workflow, data)
        second = workflow.run(ctx=context)
        if left:
            await anyio.sleep(5)
            await second.cancel_run()
        else:
            assert await second == [1, 4]
        things = [workflow, Local, first, second, context, context.store, first._run, second._run]
        return [weakref.ref(thing) for thing in things]

    refs = await use()
    await anyio.sleep(1)
    for _ in range(3):
        gc.collect()
    assert [ref() for ref in refs] == [None] * len(refs)


async def test_o6_a_context_that_goes_on_does_not_pin_earlier_runs() -> None:
    handler = Counting().run(end=0)
    await handler
    context = handler.ctx
    earlier = weakref.ref(handler._run)
    del handler
    assert await Counting().run(ctx=context, end=0) == 2
    await checkpoint()
    gc.collect()
    assert earlier() is None


# --- The property: whenever it is snapshotted, a run goes on as if nothing had happened ------------


class Job(Event):
    """A token that carries its own program: what to do now, what afterwards, what around it.

    The label is the path to it, so each piece of work has one of its own, in every run.
    """

    label: str
    op: list[Any] = []
    todo: list[Any] = []
    frames: list[Any] = []
    value: int = 0


class Rest(Job): ...


class Flaky(Job): ...


class Broken(Job): ...


class Fork(Job): ...


class Halves(Job): ...


class Left(Job): ...


class Right(Job): ...


class Ask(Job): ...


class Meet(Job): ...


class EndAll(Job): ...


class EndTwo(Job): ...


class EndFirst(Job): ...


class Program(StartEvent):
    todo: list[Any]


class Prompt(InputRequiredEvent):
    label: str


class Reply(HumanResponseEvent):
    label: str
    n: int


InBatch = Rest | Flaky | Broken | Fork | Halves | Ask | Meet | EndAll | EndTwo | EndFirst
Next = InBatch | StopEvent

JOBS: dict[str, type[Job]] = {
    "rest": Rest,
    "flaky": Flaky,
    "broken": Broken,
    "halves": Halves,
    "ask": Ask,
    "meet": Meet,
    "all": Fork,
    "two": Fork,
    "first": Fork,
}
ENDS: dict[str, type[Job]] = {"all": EndAll, "two": EndTwo, "first": EndFirst}


def advance(job: Job, label: str, gain: int) -> Any:
    """Return the event for what comes next in a program."""
    value = job.value + gain
    if job.todo:
        (op, *todo), name = job.todo, f"{label}.{job.todo[0][0]}"
        return JOBS[op[0]](label=name, op=op, todo=todo, frames=job.frames, value=value)
    if job.frames:
        return ENDS[job.frames[-1][0]](label=label, frames=job.frames, value=value)
    return StopEvent(result=value)


def after_fork(events: Sequence[Job], gain: int) -> Any:
    """Return the event for what comes after a fork; each of the events knows its way back."""
    if not events:
        return None  # the batch belongs to another join
    *frames, (_, label, todo, value) = events[0].frames
    return advance(Job(label=label, todo=todo, frames=frames, value=value), f"{label}+", gain)


class Machine(Workflow[int]):
    """Executes programs; each step notes its label in the statement before it ends.

    What is sent before a snapshot stays sent, so its steps send nothing.
    """

    def __init__(self, finished: list[str], **config: Any) -> None:
        super().__init__(**{"timeout": None, **config})
        self.finished = finished

    @step
    async def start(self, ev: Program) -> Next:
        self.finished.append("start")
        return advance(Job(label="", todo=ev.todo), "", 0)

    @step(num_workers=2)
    async def rest(self, ev: Rest) -> Next:
        try:
            await anyio.sleep(ev.op[1])
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.5)  # what was cancelled with its batch is slow to go
            raise
        self.finished.append(ev.label)
        return advance(ev, ev.label, 1)

    @step(retry_policy=retry_policy(stop=stop_after_attempt(4), wait=wait_fixed(0.75)))
    async def flaky(self, ctx: Context, ev: Flaky) -> Next:
        await anyio.sleep(ev.op[1])
        number = ctx.retry_info().retry_number
        self.finished.append(f"{ev.label} attempt {number}")
        if number < ev.op[2]:
            raise ValueError(ev.label)
        return advance(ev, ev.label, 1)

    @step(num_workers=3)
    async def broken(self, ev: Broken) -> Next:
        await anyio.sleep(ev.op[1])
        self.finished.append(ev.label)
        raise ValueError(ev.label)

    @catch_error(for_steps=["broken"], max_recoveries=1000)
    async def recover(self, ev: StepFailedEvent) -> Next:
        job = ev.input_event
        assert isinstance(job, Broken)
        assert ev.exception.args == (job.label,)
        await anyio.sleep(job.op[1])
        self.finished.append(f"{job.label} recovered")
        return advance(job, job.label, 1)

    @step
    async def left(self, ev: Halves) -> Left:
        await anyio.sleep(ev.op[1])
        self.finished.append(f"{ev.label} left")
        return Left(**ev)

    @step
    async def right(self, ev: Halves) -> Right:
        await anyio.sleep(ev.op[2])
        self.finished.append(f"{ev.label} right")
        return Right(**ev)

    @step
    async def pair(self, left: Left, right: Right) -> Next:
        assert left.label == right.label
        await anyio.sleep(left.op[1])
        self.finished.append(f"{left.label} pair")
        return advance(left, left.label, 1)

    @step(num_workers=1)
    async def ask(self, ctx: Context, ev: Ask) -> Next:
        wanted = {"label": ev.label}
        reply = await ctx.wait_for_event(Reply, Prompt(label=ev.label), requirements=wanted)
        await anyio.sleep(ev.op[1])
        self.finished.append(ev.label)
        return advance(ev, ev.label, reply.n)

    @step
    async def meet(self, ctx: Context, ev: Meet) -> InBatch | None:
        _, seconds, number = ev.op
        place = ev.frames[-1][1]
        found = ctx.collect_events(ev, [Meet] * number, buffer_id=place)
        await anyio.sleep(seconds)
        self.finished.append(ev.label)
        if found is None:
            return None
        total = sum(one.value for one in found if isinstance(one, Meet))
        return advance(ev, f"{place} met", total - ev.value)

    @step
    async def fork(self, ev: Fork) -> list[InBatch]:
        kind, programs = ev.op
        await anyio.sleep(0.25)
        self.finished.append(ev.label)
        frames = [*ev.frames, [kind, ev.label, ev.todo, ev.value]]
        jobs = [Job(label="", todo=program, frames=frames) for program in programs]
        return [advance(job, f"{ev.label} {n}", 0) for n, job in enumerate(jobs)]

    @step
    async def join_all(self, events: list[EndAll]) -> Next | None:
        return self.joined(events, sum(event.value for event in events))

    @step
    async def join_two(self, events: Annotated[list[EndTwo], Collect(Take(2))]) -> Next | None:
        return self.joined(events, len(events))

    @step
    async def join_first(
        self, events: Annotated[list[EndFirst], Collect(Take(1, cancel=True))]
    ) -> Next | None:
        return self.joined(events, len(events))

    def joined(self, events: Sequence[Job], gain: int) -> Any:
        if events:
            self.finished.append(f"{events[0].frames[-1][1]} joined")
        return after_fork(events, gain)


@attrs.define
class Moment:
    """When to snapshot a run, and how to go on."""

    seconds: float
    checkpoints: int
    in_process: bool
    delay: float
    """Of the replies, after it has gone on."""


@attrs.define
class Line:
    """What has been done in a line of runs, each of which goes on from the one before."""

    finished: list[str] = attrs.field(factory=list)
    asked: list[str] = attrs.field(factory=list)
    replied: list[str] = attrs.field(factory=list)
    result: int | None = None

    def copy(self) -> Line:
        return Line([*self.finished], [*self.asked], [*self.replied], self.result)


class Leg:
    """One run, whose prompts are answered, those of earlier runs too."""

    def __init__(self, line: Line, context: Any, delay: float, todo: list[Any]) -> None:
        self.line, self.delay = line, delay
        self.killed = False
        self.workflow = Machine(line.finished)
        if context is None:
            self.handler = self.workflow.run(todo=todo)
        elif isinstance(context, Context):
            self.handler = self.workflow.run(ctx=context)
        else:
            context = Context.from_dict(self.workflow, context, types=[Reply])
            self.handler = self.workflow.run(ctx=context)

    async def play(self, moment: Moment | None) -> Any:
        """Play it up to a moment, or to its end; return what to go on from, if there is."""
        left: Any = None
        async with anyio.create_task_group() as replies:
            for label in self.line.asked:
                if label not in self.line.replied:
                    replies.start_soon(self.reply, label)
            async with anyio.create_task_group() as reader:
                reader.start_soon(self.read, replies)
                if moment is not None:
                    with anyio.move_on_after(moment.seconds):
                        await self.handler
                    for _ in range(moment.checkpoints):
                        await checkpoint()
                    left = await self.stop(moment)
            replies.cancel_scope.cancel()
        if left is None:
            self.line.result = await self.handler
        return left

    async def stop(self, moment: Moment) -> Any:
        running = self.handler.ctx.is_running
        data = json.loads(json.dumps(self.handler.ctx.to_dict([Reply]), allow_nan=False))
        assert running == (data["work"] is not None)
        if not running:
            return None
        self.workflow.finished = []  # what comes from now on does not count
        self.killed = not moment.in_process
        await self.handler.cancel_run()
        return self.handler.ctx if moment.in_process else data

    async def read(self, replies: TaskGroup) -> None:
        async for event in self.handler.stream_events():
            if isinstance(event, Prompt) and not self.killed:
                self.line.asked.append(event.label)
                replies.start_soon(self.reply, event.label)

    async def reply(self, label: str) -> None:
        await anyio.sleep(self.delay)
        with suppress(WorkflowRuntimeError):  # the run has ended
            await self.handler.send_event(Reply(label=label, n=2))
            if self.handler.ctx.is_running:
                self.line.replied.append(label)


async def play(todo: list[Any], moments: Sequence[Moment], twice: bool) -> list[Line]:
    """Play a program, interrupted at these moments; `twice` also plays on without the others."""
    line, left, others = Line(), None, []
    for n, moment in enumerate([*moments, None]):
        delay = moments[n - 1].delay if n else 0.5
        leg = Leg(line, left, delay, todo)
        left = await leg.play(moment)
        if left is None:
            break
        if twice and isinstance(left, dict):
            other = line.copy()
            await Leg(other, left, 0.25, todo).play(None)
            others.append(other)
    return [line, *others]


times = st.sampled_from([0.0, 0.25, 0.5, 1.0])
simple_ops = (
    st.tuples(st.just("rest"), times)
    | st.tuples(st.just("flaky"), times, st.integers(0, 2))
    | st.tuples(st.just("broken"), times)
    | st.tuples(st.just("halves"), times, times)
    | st.tuples(st.just("ask"), times)
).map(list)


def forks(programs: st.SearchStrategy[list[Any]]) -> st.SearchStrategy[list[Any]]:
    several = st.lists(programs, min_size=1, max_size=4)
    plain = st.tuples(st.sampled_from(["all", "two", "first"]), several).map(list)
    return plain | st.builds(_gathering, several, times)


def _gathering(programs: list[list[Any]], seconds: float) -> list[Any]:
    meet = ["meet", seconds, len(programs)]
    return ["all", [[*program, meet] for program in programs]]


programs = st.recursive(
    st.lists(simple_ops, max_size=3),
    lambda inner: st.lists(simple_ops | forks(inner), min_size=1, max_size=3),
    max_leaves=8,
)
whole_programs = st.builds(
    lambda first, fork: [*first, fork], st.lists(simple_ops, max_size=2), forks(programs)
).map(lambda todo: [["all", [todo]]] if todo[-1][0] != "all" else todo)
moments = st.builds(
    Moment,
    seconds=st.integers(0, 24).map(lambda quarters: quarters / 4),
    checkpoints=st.integers(0, 12),
    in_process=st.booleans(),
    delay=st.sampled_from([0.0, 0.5]),
)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=150)
@given(
    todo=whole_programs,
    interruptions=st.lists(moments, min_size=1, max_size=4),
    twice=st.booleans(),
)
def test_p3_a_run_goes_on_from_any_moment(
    backend: str, todo: list[Any], interruptions: list[Moment], twice: bool
) -> None:
    async def main() -> tuple[list[Line], list[Line]]:
        with anyio.fail_after(10_000):
            return await play(todo, [], False), await play(todo, interruptions, twice)

    (whole,), lines = run_virtually(backend, main)
    needed = {label for label in whole.finished if ".first " not in label}
    for line in lines:
        assert line.result == whole.result
        assert {label: n for label, n in Counter(line.finished).items() if n > 1} == {}
        assert {label for label in line.finished if ".first " not in label} == needed
        assert len(line.asked) == len(set(line.asked)), "a prompt was written twice"
