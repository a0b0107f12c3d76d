"""Which questions are open, and answering one of them alone (W5)."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import anyio.from_thread
import attrs
import pytest

from anyio_workflows import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowHandler,
    step,
)
from anyio_workflows.errors import WorkflowCancelledByUser, WorkflowRuntimeError
from anyio_workflows.handler import OpenWait
from anyio_workflows.retry_policy import retry_policy, stop_after_attempt, wait_fixed

from .conftest import BACKENDS
from .running import run_virtually
from .samples import Item, OneStep

pytestmark = pytest.mark.anyio


class Said(Event):
    n: int
    text: str


class Question(InputRequiredEvent):
    n: int = 0


class Answer(HumanResponseEvent):
    text: str = ""
    user: str = ""


class LongAnswer(Answer):
    pages: int = 1


class Crowd(Workflow[dict[int, str]]):
    """Asks two people at once, in two executions of a step; the others take their answers too."""

    @step
    async def begin(self, ev: StartEvent) -> list[Item]:
        return [Item(n=1), Item(n=2)]

    @step
    async def ask(self, ctx: Context, ev: Item) -> Said:
        answer = await ctx.wait_for_event(Answer, Question(n=ev.n))
        return Said(n=ev.n, text=answer.text)

    @step
    async def join(self, said: list[Said]) -> StopEvent:
        return StopEvent(result={one.n: one.text for one in said})


class Acts(OneStep):
    """Its only step does what it is told."""

    types = (Question, Answer, LongAnswer)


def saved(ctx: Context) -> Any:
    return json.loads(json.dumps(ctx.to_dict(), allow_nan=False))


def ids(source: WorkflowHandler[Any] | Context) -> list[str]:
    return [wait.id for wait in source.open_waits()]


def by_number(handler: WorkflowHandler[Any]) -> dict[int, OpenWait]:
    found: dict[int, OpenWait] = {}
    for wait in handler.open_waits():
        assert isinstance(wait.question, Question)
        found[wait.question.n] = wait
    return found


async def wait_once(ctx: Context) -> str:
    return (await ctx.wait_for_event(Answer, Question(n=1))).text


# --- What is listed -------------------------------------------------------------------------------


async def test_w5_an_open_wait_says_all_there_is_to_know() -> None:
    async def act(ctx: Context) -> str:
        wanted = {"user": "ann"}
        question = Question(n=7)
        return (await ctx.wait_for_event(Answer, question, "boss", wanted)).text

    before = datetime.now(UTC)
    handler = Acts(act).run()
    await anyio.sleep(1)
    (wait,) = handler.open_waits()
    assert handler.ctx.open_waits() == [wait]
    assert attrs.asdict(wait, recurse=False) == {
        "id": "1:1:boss",
        "step": "work",
        "event_type": Answer,
        "question": Question(n=7),
        "requirements": {"user": "ann"},
        "waiter_id": "boss",
        "since": wait.since,
    }
    assert wait.since.utcoffset() == timedelta(0)
    assert before <= wait.since <= datetime.now(UTC)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        wait.id = "other"  # type: ignore[misc]
    await handler.cancel_run()


async def test_w5_what_is_over_is_not_listed() -> None:
    async def act(ctx: Context) -> Any:
        assert ctx.open_waits() == []
        first = await ctx.wait_for_event(Answer)
        seen.append([wait.id for wait in ctx.open_waits()])
        with pytest.raises(TimeoutError):
            await ctx.wait_for_event(Answer, timeout=5)
        with anyio.move_on_after(5):
            await ctx.wait_for_event(Answer, timeout=50)
        seen.append([wait.id for wait in ctx.open_waits()])
        await anyio.sleep(10)
        return first.text

    seen: list[list[str]] = []
    handler = Acts(act).run()
    assert handler.open_waits() == []
    await anyio.sleep(1)
    assert ids(handler) == ["1:1:Answer"]
    await handler.send_event(Answer(text="a"))
    assert ids(handler) == []
    await anyio.sleep(2)
    assert ids(handler) == ["1:2:Answer"]
    await anyio.sleep(5)
    assert ids(handler) == ["1:3:Answer"]
    assert await handler == "a"
    assert seen == [[], []]
    assert handler.open_waits() == handler.ctx.open_waits() == []


async def test_w5_a_context_without_a_run_waits_for_nothing() -> None:
    assert Context(Crowd()).open_waits() == []


async def test_w5_waits_of_one_execution_have_different_ids() -> None:
    async def act(ctx: Context) -> None:
        async with anyio.create_task_group() as group:
            for user in ("ann", "bob"):
                group.start_soon(ctx.wait_for_event, Answer, None, user)
                group.start_soon(ctx.wait_for_event, Answer, None, None, {"user": user})
            group.start_soon(ctx.wait_for_event, LongAnswer)
            group.start_soon(ctx.wait_for_event, Answer, None, "LongAnswer")

    handler = Acts(act).run()
    await anyio.sleep(1)
    assert sorted(ids(handler)) == [
        "1:1:Answer",
        "1:1:LongAnswer",
        "1:1:ann",
        "1:1:bob",
        "1:2:Answer",
        "1:2:LongAnswer",
    ]
    await handler.cancel_run()
    assert len(ids(handler)) == 6


@pytest.mark.parametrize("end", ["cancel", "timeout", "kill"])
async def test_w5_after_an_early_end_the_context_lists_what_it_will_go_on_with(end: str) -> None:
    workflow = Crowd(timeout=5)
    handler = workflow.run()
    await anyio.sleep(1)
    before = handler.open_waits()
    assert [wait.step for wait in before] == ["ask", "ask"]
    data = saved(handler.ctx)
    if end == "timeout":
        await anyio.sleep(5)
    await handler.cancel_run()
    assert handler.is_done()
    assert handler.open_waits() == before
    ctx = handler.ctx if end != "kill" else Context.from_dict(workflow, data)
    assert ctx.open_waits() == before
    again = workflow.run(ctx=ctx)
    assert again.open_waits() == before  # no step has begun
    await anyio.sleep(1)
    assert again.open_waits() == before
    if end != "kill":
        assert handler.open_waits() == []  # its work has passed to the other run
    await again.cancel_run()
    ctx = again.ctx
    ctx.discard_work()
    assert ctx.open_waits() == []


async def test_w5_while_the_run_ends_it_lists_what_was_open_at_the_decision() -> None:
    async def act(ctx: Context) -> None:
        try:
            await ctx.wait_for_event(Answer)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1)

    handler = Acts(act).run()
    await anyio.sleep(1)
    async with anyio.create_task_group() as group:
        group.start_soon(handler.cancel_run)
        await anyio.sleep(0.5)
        assert ids(handler) == ["1:1:Answer"]
        with pytest.raises(WorkflowRuntimeError, match="the run is ending, it was cancelled"):
            await handler.send_event(Answer(), wait="1:1:Answer")
    with pytest.raises(WorkflowRuntimeError, match="the run has ended, it was cancelled"):
        await handler.send_event(Answer(), wait="1:1:Answer")
    assert ids(handler.ctx) == ["1:1:Answer"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_w5_from_the_thread_of_a_sync_step(backend: str) -> None:
    class Mixed(Workflow[Any]):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await ctx.wait_for_event(Answer)
            return StopEvent()

        @step
        def look(self, ctx: Context, ev: StartEvent) -> StopEvent:
            while not (found := ctx.open_waits()):
                anyio.from_thread.run(anyio.sleep, 0)
            return StopEvent(result=[wait.id for wait in found])

    async def main() -> Any:
        return await Mixed().run()

    (found,) = anyio.run(main, backend=backend)
    assert found.endswith(":1:Answer")


@pytest.mark.parametrize("backend", BACKENDS)
def test_w5_after_the_end_it_can_be_asked_anywhere(backend: str) -> None:
    async def main() -> WorkflowHandler[Any]:
        handler = Crowd().run()
        await anyio.sleep(1)
        return handler

    assert len(run_virtually(backend, main).open_waits()) == 2


# --- Answering one of them ------------------------------------------------------------------------


async def test_w5_an_answer_with_an_id_goes_to_that_wait_alone() -> None:
    class Mixed(Crowd):
        @step
        async def take(self, ctx: Context, ev: Answer) -> None:
            taken.append(ev.text)

    taken: list[str] = []
    handler = Mixed().run()
    await anyio.sleep(1)
    waits = by_number(handler)
    assert await handler.send_event(Answer(text="two"), wait=waits[2].id) == ("ask",)
    assert handler.open_waits() == [waits[1]]
    assert await handler.send_event(Answer(text="one"), "ask", waits[1].id) == ("ask",)
    assert await handler == {1: "one", 2: "two"}
    assert taken == []


async def test_w5_what_is_answered_is_refused_and_the_open_ones_are_named() -> None:
    class Slow(Crowd):
        @step
        async def ask(self, ctx: Context, ev: Item) -> Said:
            answer = await ctx.wait_for_event(Answer, Question(n=ev.n))
            await anyio.sleep(1)
            return Said(n=ev.n, text=answer.text)

    handler = Slow().run()
    await anyio.sleep(1)
    one, two = handler.open_waits()
    await handler.send_event(Answer(text="a"), wait=one.id)
    with pytest.raises(WorkflowRuntimeError) as caught:
        await handler.send_event(Answer(text="b"), wait=one.id)
    assert str(caught.value) == (
        f"Answer cannot answer wait {one.id!r}: it has been answered already; "
        f"open waits: {two.id!r} (ask)"
    )
    await anyio.sleep(2)
    with pytest.raises(
        WorkflowRuntimeError, match="no step in progress has such a wait; open waits: '3:1:Answer'"
    ):
        await handler.send_event(Answer(text="b"), wait=one.id)
    await handler.send_event(Answer(text="c"))
    assert await handler == {1: "a", 2: "c"}


@pytest.mark.parametrize(
    "wait",
    ["", "1", "1:1", "1:2:Answer", "1:1:answer", "9:1:Answer", "x", "9" * 9999, "²:1:Answer"],
)
async def test_w5_an_id_that_nothing_has_is_refused(wait: str) -> None:
    handler = Acts(wait_once).run()
    await anyio.sleep(1)
    with pytest.raises(
        WorkflowRuntimeError, match=r"has such a wait; open waits: '1:1:Answer' \(work\)"
    ) as caught:
        await handler.send_event(Answer(text="a"), wait=wait)
    assert len(str(caught.value)) < 300
    assert ids(handler) == ["1:1:Answer"]
    await handler.cancel_run()


async def test_w5_what_is_no_id_is_refused() -> None:
    handler = Acts(wait_once).run()
    await anyio.sleep(1)
    (wait,) = handler.open_waits()
    with pytest.raises(WorkflowRuntimeError, match="wait is the id of an open wait, a str"):
        await handler.send_event(Answer(text="a"), wait=wait)  # type: ignore[arg-type]
    with pytest.raises(WorkflowRuntimeError, match="only events can be sent"):
        await handler.send_event("a", wait=wait.id)  # type: ignore[arg-type]
    await handler.send_event(Answer(text="a"), wait=wait.id)
    assert await handler == "a"


async def test_w5_the_message_names_ten_thousand_waits_in_short() -> None:
    class Many(Crowd):
        @step
        async def begin(self, ev: StartEvent) -> list[Item]:
            return [Item(n=n) for n in range(1000)]

        @step(num_workers=1000)
        async def ask(self, ctx: Context, ev: Item) -> Said:
            answer = await ctx.wait_for_event(Answer, Question(n=ev.n))
            return Said(n=ev.n, text=answer.text)

    handler = Many().run()
    await anyio.sleep(1)
    with pytest.raises(WorkflowRuntimeError, match="and 995 more") as caught:
        await handler.send_event(Answer(), wait="none")
    assert len(str(caught.value)) < 400
    for wait in handler.open_waits()[::-1]:
        assert isinstance(wait.question, Question)
        await handler.send_event(Answer(text=str(wait.question.n)), wait=wait.id)
    assert await handler == {n: str(n) for n in range(1000)}


@pytest.mark.parametrize(
    ("event", "problem"),
    [
        (Question(), "Question cannot answer wait '1:1:Answer': step work waits for Answer"),
        (LongAnswer(user="ann"), "LongAnswer cannot answer .*: step work waits for Answer"),
        (Answer(user="bob"), "Answer cannot answer .*: step work requires user = 'ann'"),
        (Answer(), "step work requires user = 'ann'"),
        (StopEvent(), "StopEvent cannot answer"),
    ],
)
@pytest.mark.parametrize("restored", [False, True])
async def test_w5_an_event_that_does_not_match_is_refused_and_the_wait_stays_open(
    event: Event, problem: str, restored: bool
) -> None:
    async def act(ctx: Context) -> str:
        return (await ctx.wait_for_event(Answer, requirements={"user": "ann"})).text

    workflow = Acts(act)
    handler = workflow.run()
    await anyio.sleep(1)
    if restored:
        data = saved(handler.ctx)
        await handler.cancel_run()
        handler = workflow.run(ctx=Context.from_dict(workflow, data))
    with pytest.raises(WorkflowRuntimeError, match=problem):
        await handler.send_event(event, wait="1:1:Answer")
    assert ids(handler) == ["1:1:Answer"]
    await handler.send_event(Answer(text="a", user="ann"), wait="1:1:Answer")
    assert await handler == "a"


async def test_w5_e8_two_classes_of_one_name_are_told_apart() -> None:
    workflow = Acts(wait_once)
    handler = workflow.run()
    await anyio.sleep(1)
    other = type("Answer", (HumanResponseEvent,), {})
    with pytest.raises(WorkflowRuntimeError, match="two classes are named Answer"):
        await handler.send_event(other(), wait="1:1:Answer")
    await handler.cancel_run()


async def test_w5_a_step_that_takes_subclasses_is_answered_with_one() -> None:
    class Broad(Workflow[Any]):
        @step(accept_event_subclasses=True)
        async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            return StopEvent(result=await ctx.wait_for_event(Answer))

    handler = Broad().run()
    await anyio.sleep(1)
    (wait,) = handler.open_waits()
    await handler.send_event(LongAnswer(text="a"), wait=wait.id)
    assert await handler == LongAnswer(text="a")


async def test_w5_step_and_wait_have_to_agree() -> None:
    handler = Crowd().run()
    await anyio.sleep(1)
    wait = handler.open_waits()[0]
    for other in ("join", "none"):
        with pytest.raises(WorkflowRuntimeError, match=f"step ask waits there, not {other}"):
            await handler.send_event(Answer(), step=other, wait=wait.id)
    assert len(handler.open_waits()) == 2
    await handler.cancel_run()


async def test_w5_an_answer_comes_before_the_restored_step_gets_to_its_question() -> None:
    async def act(ctx: Context) -> list[str]:
        await anyio.sleep(10)
        answers = []
        for n in range(3):
            answers.append((await ctx.wait_for_event(Answer, Question(n=n))).text)
        return answers

    workflow = Acts(act)
    handler = workflow.run()
    await anyio.sleep(15)
    await handler.send_event(Answer(text="a"), wait="1:1:Answer")
    await anyio.sleep(1)
    data = saved(handler.ctx)
    await handler.cancel_run()
    again = workflow.run(ctx=Context.from_dict(workflow, data))
    assert ids(again) == ["1:2:Answer"]
    with pytest.raises(WorkflowRuntimeError, match="it has been answered already"):
        await again.send_event(Answer(text="x"), wait="1:1:Answer")
    await again.send_event(Answer(text="b"), wait="1:2:Answer")
    assert ids(again) == []
    with pytest.raises(WorkflowRuntimeError, match="answered already; no wait is open"):
        await again.send_event(Answer(text="x"), wait="1:2:Answer")
    await anyio.sleep(11)
    assert ids(again) == ["1:3:Answer"]
    await again.send_event(Answer(text="c"), wait="1:3:Answer")
    assert await again == ["a", "b", "c"]


async def test_w5_an_id_that_was_seen_after_the_snapshot_means_the_same_question_again() -> None:
    async def act(ctx: Context) -> dict[str, str]:
        async def ask(name: str, seconds: float) -> None:
            await anyio.sleep(seconds)
            found[name] = (await ctx.wait_for_event(Answer, waiter_id=name)).text

        found: dict[str, str] = {}
        delays.reverse()
        async with anyio.create_task_group() as group:
            for name, seconds in zip(("one", "two"), delays, strict=True):
                group.start_soon(ask, name, seconds)
        return found

    delays = [1.0, 2.0]
    workflow = Acts(act)
    handler = workflow.run()
    data = saved(handler.ctx)
    await anyio.sleep(5)
    seen = {wait.waiter_id: wait.id for wait in handler.open_waits()}
    await handler.cancel_run()
    again = workflow.run(ctx=Context.from_dict(workflow, data))
    await anyio.sleep(5)
    for name in ("one", "two"):
        await again.send_event(Answer(text=f"{name}!"), wait=seen[name])
    assert await again == {"one": "one!", "two": "two!"}


class Retrying(Workflow[list[str]]):
    """Asks twice in each attempt; the first one gives up while it waits, the second after."""

    @step(retry_policy=retry_policy(wait=wait_fixed(100), stop=stop_after_attempt(3)))
    async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
        attempt = ctx.retry_info().retry_number
        one = await ctx.wait_for_event(Answer, Question(n=1))
        with anyio.move_on_after(5 if attempt == 0 else 1000):
            two = await ctx.wait_for_event(Answer, Question(n=2))
            if attempt == 2:
                return StopEvent(result=[one.text, two.text])
        raise ValueError(attempt)


@pytest.mark.parametrize("restored", [False, True])
async def test_w5_ids_are_the_same_in_retry_delays_and_later_attempts(restored: bool) -> None:
    workflow = Retrying(timeout=None)
    handler = workflow.run()
    await anyio.sleep(1)
    await handler.send_event(Answer(text="a"), wait="1:1:Answer")
    await anyio.sleep(2)
    (wait,) = handler.open_waits()
    assert wait.id == "1:2:Answer"
    await anyio.sleep(10)
    assert handler.statistics().steps["ask"].delayed == 1
    assert handler.open_waits() == [wait]
    if restored:
        data = saved(handler.ctx)
        await handler.cancel_run()
        handler = workflow.run(ctx=Context.from_dict(workflow, data))
    await anyio.sleep(1)
    assert handler.open_waits() == [wait]
    await handler.send_event(Answer(text="b"), wait=wait.id)
    with pytest.raises(WorkflowRuntimeError, match="it has been answered already"):
        await handler.send_event(Answer(text="c"), wait=wait.id)
    assert await handler == ["a", "b"]


async def test_w5_a_wait_that_timed_out_cannot_be_answered_and_is_numbered_anew() -> None:
    class Hasty(Workflow[Any]):
        @step(retry_policy=retry_policy(wait=wait_fixed(10), stop=stop_after_attempt(2)))
        async def ask(self, ctx: Context, ev: StartEvent) -> StopEvent:
            first = await ctx.wait_for_event(Answer, waiter_id="a")
            try:
                await ctx.wait_for_event(Answer, waiter_id="b", timeout=5)
            except TimeoutError:
                await anyio.sleep(5)
                raise
            return StopEvent(result=first.text)

    handler = Hasty(timeout=None).run()
    await anyio.sleep(1)
    await handler.send_event(Answer(text="x"), wait="1:1:a")
    await anyio.sleep(7)
    with pytest.raises(WorkflowRuntimeError, match="'1:1:b': it is over; no wait is open"):
        await handler.send_event(Answer(), wait="1:1:b")
    await anyio.sleep(14)
    assert ids(handler) == ["1:1:b"]  # asked anew, in the second attempt
    await handler.send_event(Answer(), wait="1:1:b")
    assert await handler == "x"


@pytest.mark.parametrize("backend", BACKENDS)
def test_w5_answering_in_another_loop_is_refused(backend: str) -> None:
    async def main() -> None:
        handler = Acts(wait_once).run()
        await anyio.sleep(0.1)

        async def elsewhere() -> None:
            with pytest.raises(WorkflowRuntimeError, match="in the event loop"):
                await handler.send_event(Answer(), wait="1:1:Answer")

        await anyio.to_thread.run_sync(lambda: anyio.run(elsewhere, backend=backend))
        await handler.cancel_run()
        with pytest.raises(WorkflowCancelledByUser):
            await handler

    anyio.run(main, backend=backend)


async def test_w5_a_waiter_id_is_a_text() -> None:
    async def act(ctx: Context) -> str:
        return (await ctx.wait_for_event(Answer, waiter_id=5)).text  # type: ignore[arg-type]

    with pytest.raises(WorkflowRuntimeError, match="waiter_id must be a str, or None, not 5"):
        await Acts(act).run()
