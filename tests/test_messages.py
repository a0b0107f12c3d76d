"""The full text that people see for the mistakes that are made most: each names culprit and remedy."""

from __future__ import annotations

import gc
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from anyio_workflows import (
    Context,
    Event,
    HumanResponseEvent,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowFailedEvent,
    step,
)
from anyio_workflows.errors import (
    EventValidationError,
    WorkflowRuntimeError,
    WorkflowValidationError,
)

from .running import check_ending

pytestmark = pytest.mark.anyio


class Item(Event):
    text: str = ""


class Part(Event):
    n: int


class Answer(HumanResponseEvent):
    pass


class TopicStart(StartEvent):
    topic: str


class Acts(Workflow):
    """Does what the test gives."""

    def __init__(self, act: Callable[[Context], Awaitable[Any]], **kwargs: Any) -> None:
        super().__init__(**{"timeout": None, **kwargs})
        self.act = act

    @step
    async def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
        return await self.act(ctx)

    @step
    async def hear(self, ev: Answer) -> StopEvent:
        return StopEvent(result="answered")


def returns(value: Any) -> Callable[[Context], Awaitable[Any]]:
    async def act(ctx: Context) -> Any:
        return value

    return act


async def failure(act: Callable[[Context], Awaitable[Any]]) -> BaseException:
    """Return what a run fails with whose step does this."""
    _, last = await check_ending(Acts(act).run())
    assert isinstance(last, WorkflowFailedEvent)
    return last.exception


def without_ids(error: BaseException) -> str:
    """Return a message without what is between angle brackets, which differs each time."""
    return re.sub(r"<.*>", "<...>", str(error))


def graph_text(**steps: Any) -> str:
    """Return what validate() raises for a workflow of these functions."""
    cls = type("Flow", (Workflow,), {name: step(func) for name, func in steps.items()})
    with pytest.raises(WorkflowValidationError) as caught:
        cls().validate()
    return str(caught.value)


# --- 1. A return is forgotten -----------------------------------------------------------------------


async def test_r4_forgotten_return(caplog: pytest.LogCaptureFixture) -> None:
    class Forgets(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            return None  # type: ignore[return-value]

    _, last = await check_ending(Forgets(timeout=None).run())
    assert caplog.records[0].getMessage().split(": ", 1)[1] == (
        "step work returned None, though it declares StopEvent; is a 'return' missing? If not, add "
        "'| None' to its annotation (this is told once)"
    )
    assert str(last["exception"]).endswith("step work returned None, though it declares StopEvent")


# --- 2. Something else than an event is returned ------------------------------------------------------


async def test_r4_a_dict_is_returned() -> None:
    assert str(await failure(returns({"answer": 42}))) == (
        "step work returned {'answer': 42} (dict), but declares StopEvent; return one of those"
    )


async def test_r4_another_event_is_returned() -> None:
    assert str(await failure(returns(Item(text="x")))) == (
        "step work returned Item(text='x') (Item), but declares StopEvent; return one of those"
    )


async def test_r4_the_class_is_returned_instead_of_an_event() -> None:
    assert without_ids(await failure(returns(StopEvent))) == (
        "step work returned <...> (type), but declares StopEvent; return one of those"
    )


async def test_r4_all_that_is_declared_is_named() -> None:
    class Declares(Workflow):
        @step
        async def work(self, ev: StartEvent) -> list[Part] | Item | StopEvent | None:
            return [Part(n=1), 2]  # type: ignore[list-item]

        @step
        async def item(self, ev: Item | Part) -> None: ...

    _, last = await check_ending(Declares().run())
    assert str(last["exception"]) == (
        "step work returned [Part(n=1), 2] (list), but declares Item | StopEvent | list[Part] | None; "
        "return one of those"
    )


# --- 3. A field is misspelt ----------------------------------------------------------------------------


def event_text(make: Callable[[], Any]) -> str:
    with pytest.raises(EventValidationError) as caught:
        make()
    return str(caught.value)


def test_e2_misspelt_field_of_an_event() -> None:
    assert event_text(lambda: Item(txt="x")) == "Item.txt: no such field, did you mean 'text'?"
    assert event_text(lambda: Item(zzz="x")) == "Item.zzz: no such field, known: text"


def test_e2_missing_field_of_an_event() -> None:
    assert event_text(Part) == "Part.n: missing, Part() needs it"


def test_e3_wrong_type_of_a_field() -> None:
    assert event_text(lambda: Part(n="5")) == "Part.n: expected int, got '5' (str)"


class Topics(Workflow):
    @step
    async def work(self, ev: TopicStart) -> StopEvent:
        return StopEvent(result=ev.topic)


async def test_e4_misspelt_keyword_of_run() -> None:
    assert event_text(lambda: Topics().run(topik="tea")) == (
        "TopicStart.topik: no such field, did you mean 'topic'?"
    )
    assert event_text(Topics().run) == "TopicStart.topic: missing, TopicStart() needs it"


async def test_e2_misspelt_keyword_of_run_that_an_open_start_event_takes() -> None:
    class Open(Workflow):
        @step
        async def work(self, ev: StartEvent) -> StopEvent:
            return StopEvent(result=ev.topic)

    _, last = await check_ending(Open().run(topik="tea"))
    assert type(last["exception"]) is AttributeError
    assert str(last["exception"]) == "'StartEvent' has no field 'topic'"
    assert "topik" in dir(last["exception"].obj), "where Python looks for what may be meant"


# --- 4. An annotation is missing --------------------------------------------------------------------------


def class_text(work: Callable[..., Any]) -> str:
    with pytest.raises(WorkflowValidationError) as caught:
        type("Flow", (Workflow,), {"work": step(work)})
    return str(caught.value)


def test_v1_missing_annotation_of_the_event() -> None:
    async def work(self, ev) -> StopEvent: ...  # type: ignore[no-untyped-def]

    assert class_text(work) == (
        "Flow: step work: parameter 'ev' has no annotation; say what it takes, as in "
        "'ev: StartEvent'"
    )


def test_v1_missing_event_parameter() -> None:
    async def work(self: Any, ctx: Context) -> StopEvent: ...

    assert class_text(work) == (
        "Flow: step work: no parameter takes an event; annotate one, as in 'ev: StartEvent'"
    )


def test_v1_missing_return_annotation() -> None:
    async def work(self: Any, ev: StartEvent): ...  # type: ignore[no-untyped-def]

    assert class_text(work) == (
        "Flow: step work: no return annotation; say which events it returns, or '-> None'"
    )


# --- 5. Nobody accepts an event -------------------------------------------------------------------------


def test_v1_an_event_that_nobody_accepts() -> None:
    async def begin(self: Any, ev: StartEvent) -> Item | StopEvent: ...

    assert graph_text(begin=begin) == (
        "Flow: step begin returns Item, which no step accepts; add a step for it, or write it to "
        "the stream instead of returning it"
    )


def test_v1_an_event_that_nobody_returns() -> None:
    async def begin(self: Any, ev: StartEvent) -> StopEvent: ...

    async def work(self: Any, ev: Item) -> StopEvent: ...

    assert graph_text(begin=begin, work=work) == (
        "Flow: step work accepts Item, which no step returns; return it from a step, or derive it "
        "from HumanResponseEvent if it comes from outside"
    )


async def test_r3_an_event_is_sent_that_nobody_accepts(caplog: pytest.LogCaptureFixture) -> None:
    async def act(ctx: Context) -> StopEvent:
        ctx.send_event(Item())
        return StopEvent()

    await Acts(act).run(run_id="r1")
    [record] = [r for r in caplog.records if r.name.startswith("anyio_workflows")]
    assert record.levelname == "WARNING"
    assert record.getMessage() == "run r1 of Acts: no step accepts Item; it is dropped"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hear", "it accepts Answer only"),
        ("heer", "no such step, did you mean 'hear'?"),
    ],
)
async def test_r3_an_event_is_sent_to_the_wrong_step(name: str, text: str) -> None:
    async def act(ctx: Context) -> None:
        ctx.send_event(Item(), step=name)

    error = await failure(act)
    assert type(error) is WorkflowRuntimeError
    assert str(error) == f"cannot send Item to step {name!r}: {text}"


async def test_s1_something_is_sent_that_is_no_event() -> None:
    async def act(ctx: Context) -> None:
        ctx.send_event("go")  # type: ignore[arg-type]

    assert str(await failure(act)) == "only events can be sent, not 'go' (str)"


# --- 6. A join without a list -------------------------------------------------------------------------------


def test_v1_a_join_that_no_list_leads_to() -> None:
    async def begin(self: Any, ev: StartEvent) -> Item: ...

    async def join(self: Any, evs: list[Item]) -> StopEvent: ...

    assert graph_text(begin=begin, join=join) == (
        "Flow: step join joins a list of Item, but no list leads to it; let a step before it return "
        "a list of events"
    )


# --- 7. An await is forgotten ---------------------------------------------------------------------------------


async def test_r4_forgotten_await_before_what_is_returned() -> None:
    async def act(ctx: Context) -> Any:
        made.append(ctx.wait_for_event(Answer))
        return made[0]

    made: list[Any] = []
    error = await failure(act)
    made[0].close()
    assert without_ids(error) == (
        "step work returned <...> (coroutine), but declares StopEvent; is an 'await' missing?"
    )


async def test_e3_forgotten_await_before_what_goes_into_an_event() -> None:
    async def ask() -> str: ...

    asked = ask()
    text = event_text(lambda: Item(text=asked))  # type: ignore[arg-type]
    asked.close()
    assert re.sub(r"<.*>", "<...>", text) == (
        "Item.text: expected str, got <...> (coroutine); is an 'await' missing?"
    )


async def test_forgotten_await_before_an_answer_that_is_used() -> None:
    async def act(ctx: Context) -> Any:
        answer: Any = ctx.wait_for_event(Answer)
        try:
            return StopEvent(result=answer.text)
        finally:
            answer.close()

    error = await failure(act)
    assert str(error) == "'coroutine' object has no attribute 'text'"
    assert error.__notes__ == [
        "step work failed on StartEvent(), in attempt 1, 0 s after its first start"
    ]


async def test_forgotten_await_before_a_method_of_the_handler() -> None:
    handler = Acts(returns(StopEvent(result="not cancelled"))).run()
    with pytest.warns(RuntimeWarning, match=r"'WorkflowHandler\.send_event' was never awaited"):
        handler.send_event(Answer())  # type: ignore[unused-coroutine]
    with pytest.warns(RuntimeWarning, match=r"'WorkflowHandler\.cancel_run' was never awaited"):
        handler.cancel_run()  # type: ignore[unused-coroutine]
    assert await handler == "not cancelled"


async def test_r4_forgotten_await_before_a_run_that_a_step_returns() -> None:
    inner = Acts(returns(StopEvent()))

    async def act(ctx: Context) -> Any:
        return inner.run()

    assert without_ids(await failure(act)) == (
        "step work returned <...> (WorkflowHandler), but declares StopEvent; is an 'await' missing?"
    )


async def test_forgotten_await_before_a_run_whose_result_is_used() -> None:
    handler = Acts(returns(StopEvent(result=[1]))).run()
    with pytest.raises(AttributeError) as caught:
        handler.answer  # type: ignore[attr-defined]  # noqa: B018
    assert str(caught.value) == (
        "'WorkflowHandler' object has no attribute 'answer'; await it for the result of the run"
    )
    with pytest.raises(TypeError, match="'WorkflowHandler' object is not subscriptable"):
        handler[0]  # type: ignore[index]
    await handler


# --- 8. A stop event is written to the stream -------------------------------------------------------------------


async def test_s1_a_stop_event_is_written_to_the_stream() -> None:
    async def act(ctx: Context) -> None:
        ctx.write_event_to_stream(StopEvent(result=1))

    error = await failure(act)
    assert type(error) is WorkflowRuntimeError
    assert str(error) == (
        "StopEvent cannot be written to the stream: return it from the step, that ends the run and "
        "publishes it"
    )


# --- 9. run() outside a loop ----------------------------------------------------------------------------------------


def outside_a_loop() -> str:
    with pytest.raises(WorkflowRuntimeError) as caught:
        Topics().run(topic="tea")
    gc.collect()  # nothing is left that was never awaited
    return str(caught.value)


RUN_OUTSIDE = (
    "Topics.run() needs a running event loop: call it in an async function under asyncio or trio, or, "
    "from a worker thread, through anyio.from_thread.run_sync()"
)


def test_o1_run_outside_a_loop() -> None:
    assert outside_a_loop() == RUN_OUTSIDE


async def test_o1_run_in_a_worker_thread() -> None:
    assert await anyio.to_thread.run_sync(outside_a_loop) == RUN_OUTSIDE


# --- 10. Sending after the end ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "summary"),
    [
        ("stop", "it returned StopEvent"),
        ("failure", "step work failed with ValueError"),
        ("timeout", "it timed out after 10 s"),
        ("cancel", "it was cancelled, cancel_run() was called"),
    ],
)
async def test_t7_sending_after_the_end(how: str, summary: str) -> None:
    async def act(ctx: Context) -> StopEvent:
        if how == "failure":
            raise ValueError
        await anyio.sleep(5 if how == "stop" else 1000)
        return StopEvent()

    handler = Acts(act, timeout=10).run()
    await anyio.sleep(1)
    if how == "cancel":
        await handler.cancel_run()
    await check_ending(handler)
    with pytest.raises(WorkflowRuntimeError) as caught:
        await handler.send_event(Answer())
    assert str(caught.value) == f"Answer cannot be sent: the run has ended, {summary}"
    with pytest.raises(WorkflowRuntimeError) as caught:
        handler.ctx.write_event_to_stream(Item())
    assert str(caught.value) == (
        f"Item cannot be written to the stream: the run has ended, {summary}"
    )


async def test_t7_sending_while_steps_clean_up_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def act(ctx: Context) -> StopEvent:
        try:
            await anyio.sleep(1000)
        finally:
            ctx.send_event(Answer())
        return StopEvent()

    caplog.set_level(logging.INFO, "anyio_workflows")
    handler = Acts(act).run(run_id="r1")
    await anyio.sleep(1)
    await handler.cancel_run()
    assert "run r1 of Acts: Answer was sent too late and dropped" in caplog.messages
