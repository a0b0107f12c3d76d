"""The full text that people see for the mistakes that are made most: each names culprit and remedy."""

from __future__ import annotations

import copy
import gc
import logging
import pickle
import re
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
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
    WorkflowFailedEvent,
    step,
)
from anyio_workflows.errors import (
    ContextSerdeError,
    ContextStateError,
    EventValidationError,
    WorkflowConfigurationError,
    WorkflowRuntimeError,
    WorkflowTimeoutError,
    WorkflowValidationError,
)

from .running import check_ending, hog
from .samples import Answer

pytestmark = pytest.mark.anyio


class Item(Event):
    text: str = ""


class Part(Event):
    n: int


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
        "'| None' to its annotation (logged once)"
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


async def test_w3_an_answer_does_not_meet_the_requirements(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def act(ctx: Context) -> StopEvent:
        question = InputRequiredEvent()
        await ctx.wait_for_event(HumanResponseEvent, question, requirements={"name": "Ada"})
        return StopEvent()

    handler = Acts(act).run(run_id="r1")
    await anext(handler.stream_events())
    await handler.send_event(HumanResponseEvent(name="Bob"))
    [record] = [r for r in caplog.records if r.name.startswith("anyio_workflows")]
    assert record.getMessage() == (
        "run r1 of Acts: no step accepts HumanResponseEvent; step work waits for one with "
        "{'name': 'Ada'}; it is dropped"
    )
    await handler.send_event(HumanResponseEvent(name="Ada"))
    await handler


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
        "step work failed on StartEvent(), in attempt 1, 0 s after its first start",
        "is an 'await' missing? In a 'def' step: anyio.from_thread.run(ctx.wait_for_event, ...)",
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
        "StopEvent cannot be written to the stream: return it from the step, which ends the run and "
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
    assert (
        "run r1 of Acts: Answer was dropped, because it was sent after the outcome was decided"
        in caplog.messages
    )


# --- 11. A class is defined twice, as when a notebook cell is run again ----------------------------------


def define_found(event: type[Event] = Event) -> Any:
    class Found(event):  # type: ignore[misc,valid-type]
        x: int = 0

    Found.__qualname__ = "Found"
    return Found


AGAIN = (
    "two classes are named Found, because it was defined again (a notebook cell that was run twice?): "
    "define the workflow again too, and make new events"
)


def flow(**steps: Any) -> Any:
    return type("Flow", (Workflow,), {name: step(func) for name, func in steps.items()})


async def test_e8_a_step_returns_the_other_class() -> None:
    old, new = define_found(), define_found()

    async def begin(self: Any, ev: StartEvent) -> new: ...  # type: ignore[empty-body,valid-type]

    async def split(self: Any, ev: StartEvent) -> list[new]: ...  # type: ignore[empty-body,valid-type]

    fault = flow(begin=begin)().graph.steps["begin"].result_fault
    assert fault(old()) == f"step begin returned Found(x=0) (Found), but declares Found; {AGAIN}"
    fault = flow(split=split)().graph.steps["split"].result_fault
    assert fault([new(), old()]).endswith(f"but declares list[Found]; {AGAIN}")
    assert fault([new(), Item()]).endswith("but declares list[Found]; return one of those")
    assert fault(new()).endswith("but declares list[Found]; return one of those")


async def test_e8_the_other_class_is_sent(caplog: pytest.LogCaptureFixture) -> None:
    old, new = define_found(HumanResponseEvent), define_found(HumanResponseEvent)

    async def act(ctx: Context) -> StopEvent:
        return StopEvent(result=await ctx.wait_for_event(new, timeout=9))

    handler = Acts(act).run(run_id="r1")
    await anyio.sleep(1)
    assert await handler.send_event(old()) == ()
    assert caplog.messages == [f"run r1 of Acts: no step accepts Found; {AGAIN}"]
    with pytest.raises(TimeoutError):
        await handler

    async def work(self: Any, ctx: Context, ev: StartEvent | new) -> StopEvent:  # type: ignore[valid-type]
        if isinstance(ev, StartEvent):
            if ev.to is None:
                ctx.send_event(old())
            else:
                ctx.send_event(old(), step=ev.to)
        return StopEvent()

    caplog.clear()
    await flow(work=work)().run(run_id="r2", to=None)
    assert caplog.messages == [f"run r2 of Flow: no step accepts Found; {AGAIN}"]
    _, last = await check_ending(flow(work=work)().run(to="work"))
    assert str(last["exception"]) == f"cannot send Found to step 'work': {AGAIN}"


async def test_e8_the_other_class_is_collected() -> None:
    old, new = define_found(), define_found()

    async def act(ctx: Context) -> None:
        assert ctx.collect_events(new(), [new, old]) is None
        assert ctx.collect_events(old(), [new, old]) == [new(), old()]
        ctx.collect_events(old(), [Item, new])

    assert str(await failure(act)) == f"Found is not among the events to collect: {AGAIN}"


async def test_e8_the_other_class_starts_a_run() -> None:
    old, new = define_found(StartEvent), define_found(StartEvent)

    async def begin(self: Any, ev: new) -> StopEvent: ...  # type: ignore[empty-body,valid-type]

    with pytest.raises(WorkflowConfigurationError) as caught:
        flow(begin=begin)().run(start_event=old())
    assert str(caught.value) == f"Flow starts with Found, not with Found(x=0); {AGAIN}"


def test_e8_a_field_is_given_the_other_class() -> None:
    old, new = define_found(), define_found()

    class Holds(Event):
        one: new | None = None  # type: ignore[valid-type]
        many: list[new] = []  # type: ignore[valid-type]
        named: dict[str, new] = {}  # type: ignore[valid-type]

    assert event_text(lambda: Holds(one=old())) == (
        f"Holds.one: expected new | None, got Found(x=0) (Found); {AGAIN}"
    )
    assert event_text(lambda: Holds(many=[new(), old()])).endswith(f"(list); {AGAIN}")
    assert event_text(lambda: Holds(named={"a": old()})).endswith(f"(dict); {AGAIN}")
    assert event_text(lambda: Holds(named={"a": Item()})).endswith("(dict)")


def test_e8_the_graph_knows_the_other_class() -> None:
    old, new = define_found(), define_found()
    old_start, new_start = define_found(StartEvent), define_found(StartEvent)
    old_stop, new_stop = define_found(StopEvent), define_found(StopEvent)

    async def begin(self: Any, ev: StartEvent) -> old: ...  # type: ignore[empty-body,valid-type]

    async def split(self: Any, ev: StartEvent) -> list[old]: ...  # type: ignore[empty-body,valid-type]

    async def join(self: Any, evs: list[new]) -> StopEvent: ...  # type: ignore[empty-body,valid-type]

    async def end(self: Any, ev: new) -> StopEvent: ...  # type: ignore[empty-body,valid-type]

    assert graph_text(begin=begin, end=end).splitlines() == [
        "Flow has 2 faults:",
        f"  1. step end accepts Found, which no step returns; {AGAIN}",
        f"  2. step begin returns Found, which no step accepts; {AGAIN}",
    ]
    assert f"joins a list of Found, but no list leads to it; {AGAIN}" in graph_text(
        split=split, join=join
    )

    async def one(self: Any, ev: old_start) -> old_stop: ...  # type: ignore[empty-body,valid-type]

    async def other(self: Any, ev: new_start) -> new_stop: ...  # type: ignore[empty-body,valid-type]

    assert graph_text(one=one, other=other).splitlines()[1:3] == [
        f"  1. its steps accept several start events (Found, Found); {AGAIN}",
        f"  2. its steps return several stop events (Found, Found); {AGAIN}",
    ]


def define_state() -> Any:
    @attrs.define
    class Found:
        n: int = 0

    return Found


async def test_e8_the_state_is_of_the_other_class() -> None:
    old, new = define_state(), define_state()

    async def one(self: Any, ctx: Context[old], ev: StartEvent) -> Item: ...  # type: ignore[empty-body,valid-type]

    async def other(self: Any, ctx: Context[new], ev: Item) -> StopEvent: ...  # type: ignore[empty-body,valid-type]

    assert graph_text(one=one, other=other).endswith(
        f"that are unrelated (step one: Found, step other: Found); {AGAIN}"
    )

    async def only(self: Any, ctx: Context[new], ev: StartEvent) -> StopEvent:  # type: ignore[valid-type]
        await ctx.store.set_state(old())
        return StopEvent()

    _, last = await check_ending(flow(only=only)().run())
    assert str(last["exception"]).endswith(f"set_state() got a Found; {AGAIN}")


async def test_e8_a_snapshot_is_to_know_both_classes() -> None:
    handler = Acts(returns(StopEvent())).run()
    await handler
    with pytest.raises(ContextSerdeError) as caught:
        handler.ctx.to_dict(types=[define_found(), define_found()])
    assert re.sub("'.*'", "'...'", str(caught.value)) == (
        f"$: the data cannot tell two types '...' apart; {AGAIN}"
    )


async def test_e8_a_context_is_of_the_workflow_before_it_was_defined_again() -> None:
    old, new = (type("Flow", (Acts,), {}) for _ in range(2))
    with pytest.raises(ContextStateError) as caught:
        new(returns(StopEvent())).run(ctx=Context(old(returns(StopEvent()))))
    assert str(caught.value) == (
        "the context is for runs of another class Flow, from before it was defined again; "
        "Context.from_dict(workflow, ctx.to_dict()) makes one for this class"
    )


def test_e8_classes_of_one_name_in_two_modules_are_called_in_full() -> None:
    other = type("Item", (Event,), {"__module__": "shop.goods"})

    async def begin(self: Any, ev: StartEvent) -> other: ...  # type: ignore[empty-body,valid-type]

    async def end(self: Any, ev: Item) -> StopEvent: ...

    assert graph_text(begin=begin, end=end).endswith(
        f"no step accepts; two classes are named Item: shop.goods.Item and {__name__}.Item"
    )


# --- 12. A context or a handler is taken for something else --------------------------------------------------


def all_text(error: BaseException) -> str:
    return "\n".join([str(error), *getattr(error, "__notes__", ())])


@pytest.mark.parametrize(
    ("use", "remedy"),
    [
        (lambda ctx: ctx.set("x", 1), "use ctx.store.set()"),
        (lambda ctx: ctx.get("x"), "use ctx.store.get()"),
        (lambda ctx: ctx.edit_state(), "use ctx.store.edit_state()"),
        (lambda ctx: ctx.data, "kept in ctx.store: await ctx.store.set('data', value)"),
        (
            lambda ctx: setattr(ctx, "counter", 1),
            "ctx.store: await ctx.store.set('counter', value)",
        ),
        (lambda ctx: setattr(ctx, "get", 1), "use ctx.store.get()"),
    ],
)
@pytest.mark.parametrize("outside", [False, True])
async def test_e8_a_context_is_no_place_for_state(use: Any, remedy: str, outside: bool) -> None:
    async def act(ctx: Context) -> Any:
        return use(ctx)

    if outside:
        with pytest.raises(AttributeError) as caught:
            use(Context(Acts(act)))
        assert remedy in str(caught.value)
    else:
        error = await failure(act)
        assert type(error) is AttributeError
        assert remedy in all_text(error)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("counter", "kept in ctx.store: await ctx.store.set('counter', value)"),
        ("wait_for_events", "did you mean 'wait_for_event'?"),
    ],
)
async def test_e8_a_step_is_told_what_its_context_does_not_have(name: str, remedy: str) -> None:
    async def act(ctx: Context) -> None:
        getattr(ctx, name)

    error = await failure(act)
    assert type(error) is AttributeError
    assert remedy in all_text(error)


async def test_e8_other_errors_get_no_such_advice() -> None:
    async def act(ctx: Context) -> None:
        object().x = 1  # type: ignore[attr-defined]

    assert "store" not in all_text(await failure(act))


def test_v1_a_context_without_annotation() -> None:
    async def work(self, ctx, ev: StartEvent) -> StopEvent: ...  # type: ignore[no-untyped-def]

    assert class_text(work) == (
        "Flow: step work: parameter 'ctx' has no annotation; annotate it with Context, as in "
        "'ctx: Context'"
    )


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("cancel", "use await handler.cancel_run()"),
        ("events", "iterate over handler.stream_events() with 'async for'"),
        ("stream", "iterate over handler.stream_events() with 'async for'"),
        ("is_finished", "use handler.is_done()"),
        ("emit", "use await handler.send_event(ev)"),
        ("store", "use handler.ctx, and its store"),
        ("to_dict", "use handler.ctx.to_dict()"),
        ("value", "await it for the result of the run"),
    ],
)
async def test_e8_what_handlers_of_others_have(name: str, remedy: str) -> None:
    handler = Acts(returns(StopEvent())).run()
    with pytest.raises(AttributeError) as caught:
        getattr(handler, name)
    assert str(caught.value) == f"'WorkflowHandler' object has no attribute {name!r}; {remedy}"
    await handler


async def test_e8_the_stream_is_mistaken() -> None:
    handler = Acts(returns(StopEvent())).run()
    with pytest.raises(TypeError, match=r"use 'async for ev in handler.stream_events\(\)'"):
        async for _ in handler:  # type: ignore[attr-defined]
            pass
    with pytest.raises(TypeError, match="read it with 'async for'"):
        await handler.stream_events()  # type: ignore[misc]
    await handler


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
async def test_e8_handlers_and_contexts_are_not_copied(duplicate: Callable[[Any], Any]) -> None:
    async def act(ctx: Context) -> StopEvent:
        duplicate(ctx)
        return StopEvent()

    handler = Acts(act).run()
    for thing in (handler, handler.ctx):
        with pytest.raises(TypeError, match=r"ctx\.to_dict\(\) .* Context\.from_dict\(\)"):
            duplicate(thing)
    with pytest.raises(TypeError, match=r"ctx\.to_dict\(\)"):
        await handler


# --- 13. A run never ends, or blocks the event loop -----------------------------------------------------------


class Round(Event):
    n: int


async def timeout_text(handler: Any) -> str:
    with pytest.raises(WorkflowTimeoutError) as caught:
        await handler
    return str(caught.value)


async def test_t2_an_endless_loop_shows_in_the_numbers_of_executions() -> None:
    class Loop(Workflow):
        @step
        async def again(self, ev: StartEvent | Round) -> Round:
            await anyio.sleep(0.125)
            return Round(n=1)

        @step
        async def look(self, ev: Round) -> StopEvent | None: ...

    assert await timeout_text(Loop(timeout=10.0625).run()) == (
        "the run did not end within 10.0625 s; at that time:\n"
        "  step again: running for 0.0625 s\n"
        "  executions so far: again 80, look 80"
    )


class Blocks(Workflow):
    """Blocks the event loop for a while, after it has waited for a second."""

    def __init__(self, late: float, **kwargs: Any) -> None:
        super().__init__(timeout=30, **kwargs)
        self.late = late

    @step
    async def block(self, ev: StartEvent) -> StopEvent:
        await anyio.sleep(1)
        hog(29 + self.late)
        if ev.get("then_wait"):
            await anyio.sleep(1)
        return StopEvent()


REMEDY = ": does it call time.sleep(), or compute for long? A plain 'def' step may, in a thread"


@pytest.mark.parametrize("then_wait", [False, True])
async def test_t4_a_timeout_that_is_noticed_late_says_who_was_busy(then_wait: bool) -> None:
    assert await timeout_text(Blocks(2.5).run(then_wait=then_wait)) == (
        "the run did not end within 30 s; at that time:\n  step block: running for 30 s\n"
        "  noticed 2.5 s late, because step block held the event loop for 31.5 s" + REMEDY
    )


async def test_t4_a_timeout_that_is_noticed_in_time_accuses_nobody() -> None:
    for late in (0, 0.01):
        assert "late" not in await timeout_text(Blocks(late).run())


async def test_t4_a_late_timeout_accuses_none_that_waits_or_is_in_a_thread() -> None:
    class Waits(Blocks):
        @step
        async def ask(self, ctx: Context, ev: StartEvent) -> None:
            await ctx.wait_for_event(Answer)

        @step
        async def doze(self, ev: StartEvent) -> None:
            await anyio.sleep(1000)

    text = await timeout_text(Waits(5, slow_step_warning=None).run())
    assert text.endswith("until then, probably one of the steps block, doze" + REMEDY)


async def test_t4_a_late_timeout_accuses_no_step_if_all_wait() -> None:
    async def act(ctx: Context) -> None:
        await ctx.wait_for_event(Answer)

    handler = Acts(act, timeout=30).run()
    await anyio.sleep(1)
    hog(31)
    assert (await timeout_text(handler)).endswith(
        "\n  noticed 2 s late, because something blocked the event loop until then"
    )


# --- 14. An await is forgotten in a 'def' step, or before what an event is to hold -----------------------------


async def never_awaited() -> None: ...


FORGOTTEN = "expected Any, got <...> (coroutine); is an 'await' missing?"
FROM_THREAD = " In a 'def' step: anyio.from_thread.run(ctx.wait_for_event, ...)"


class Holds(Event):
    anything: Any
    maybe: Any | None = None


class Awaits(Event):
    later: Awaitable[Any]
    unseen: Unseen = None  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("make", "where"),
    [
        (lambda it: StopEvent(result=it), "StopEvent.result"),
        (lambda it: StopEvent(it), "StopEvent.result"),
        (lambda it: StopEvent(more=it), "StopEvent.more"),
        (lambda it: StartEvent(topic=it), "StartEvent.topic"),
        (lambda it: Holds(anything=it), "Holds.anything"),
        (lambda it: Holds(anything=1).replace(anything=it), "Holds.anything"),
        (lambda it: HumanResponseEvent(answer=it), "HumanResponseEvent.answer"),
    ],
)
def test_e3_a_coroutine_is_no_value_of_an_event(make: Any, where: str) -> None:
    StopEvent(), Holds(anything=1)
    for _ in range(2):
        it = never_awaited()
        text = event_text(lambda: make(it))  # noqa: B023
        it.close()
        assert without_ids(EventValidationError("", "", text)).endswith(f"{where}: {FORGOTTEN}")


def test_e3_a_coroutine_may_be_where_it_is_annotated_and_other_awaitables_anywhere() -> None:
    class Later:
        def __await__(self) -> Any: ...

    for _ in range(2):
        it = never_awaited()
        assert Awaits(later=it).later is it
        assert Awaits(later=it, unseen=it).unseen is it
        it.close()
        later = Later()
        assert StopEvent(later).result is Holds(anything=later).anything is later


async def test_e8_an_async_method_of_the_context_is_called_in_a_def_step() -> None:
    class Threaded(Workflow):
        @step
        def work(self, ctx: Context, ev: StartEvent) -> StopEvent:
            made.append(ctx.store.get("x") if ev.how == "store" else ctx.wait_for_event(Answer))
            return made[-1] if ev.how == "returned" else StopEvent(result=made[-1])

    made: list[Any] = []
    texts = {}
    for how in ("result", "returned", "store"):
        _, last = await check_ending(Threaded().run(how=how))
        texts[how] = without_ids(last["exception"])
        made.pop().close()
    assert texts == {
        "result": f"StopEvent.result: {FORGOTTEN}{FROM_THREAD}",
        "returned": "step work returned <...> (coroutine), but declares StopEvent; is an 'await' "
        f"missing?{FROM_THREAD}",
        "store": f"StopEvent.result: {FORGOTTEN} In a 'def' step: anyio.from_thread.run("
        "ctx.store.get, ...)",
    }
