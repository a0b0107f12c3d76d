"""Resources in runs: which steps get them, what their factories may do (P5)."""

import contextvars
import gc
import json
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Any

import anyio
import attrs
import pytest

from anyio_workflows import (
    Context,
    StartEvent,
    StepFailedEvent,
    StopEvent,
    Workflow,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowHandler,
    catch_error,
    step,
)
from anyio_workflows.collect import Collect, Take
from anyio_workflows.errors import (
    WorkflowConfigurationError,
    WorkflowRuntimeError,
    WorkflowValidationError,
)
from anyio_workflows.resource import Resource, ResourceConfig
from anyio_workflows.retry_policy import retry_policy, wait_fixed

from .resources import Broken, Store, hang, shape, using
from .running import check_ending
from .samples import Done, Item, Next, ProviderError

pytestmark = pytest.mark.anyio

# --- Who gets them --------------------------------------------------------------------------------


class Kinds(Workflow):
    """Asks for the same resources in a step of every kind."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"timeout": None, **kwargs})
        self.seen: list[tuple[str, object, object]] = []
        self.tries = 0


def kinds(kept: Callable[..., Any], fresh: Callable[..., Any]) -> Kinds:
    """Make an instance whose steps ask for one resource that is cached, and one that is not."""
    Kept = Annotated[Any, Resource(kept)]  # noqa: N806
    Fresh = Annotated[Any, Resource(fresh, cache=False)]  # noqa: N806

    class AllKinds(Kinds):
        @step
        async def fork(self, ev: StartEvent, one: Kept, two: Fresh) -> list[Item]:
            self.seen.append(("fork", one, two))
            return [Item()]

        @step
        def thread(self, two: Fresh, ev: Item, *, one: Kept) -> Done:
            self.seen.append(("thread", one, two))
            return Done()

        @step(timeout=100)
        async def join(self, one: Kept, ctx: Context, evs: list[Done], two: Fresh) -> Item | Done:
            self.seen.append(("join", one, two))
            raise ProviderError

        @catch_error(for_steps=["join"])
        async def rescue(self, ev: StepFailedEvent, one: Kept, two: Fresh) -> Next:
            self.seen.append(("rescue", one, two))
            return Next()

        @step(retry_policy=retry_policy(wait=wait_fixed(1)))
        async def last(self, ev: Next, one: Kept, two: Fresh) -> StopEvent:
            self.seen.append(("last", one, two))
            self.tries += 1
            if self.tries % 3:
                raise ProviderError
            return StopEvent()

    return AllKinds()


ALL_STEPS = ["fork", "thread", "join", "rescue", "last", "last", "last"]


async def test_p5_steps_of_every_kind_share_what_is_cached_and_have_the_rest_to_themselves() -> (
    None
):
    store = Store()
    workflow = kinds(store.factory("kept"), store.factory("fresh"))
    await check_ending(workflow.run())
    assert [name for name, _, _ in workflow.seen] == ALL_STEPS
    assert [one for _, one, _ in workflow.seen] == ["kept 1"] * 7
    assert [two for _, _, two in workflow.seen] == [f"fresh {n}" for n in range(2, 9)]
    assert shape(store.log) == ["opened kept", *["opened fresh", "closed fresh"] * 7, "closed kept"]


async def test_p5_each_run_makes_its_own() -> None:
    store = Store()
    workflow = using(store.factory("it", opening=1))
    assert await workflow.run() == "it 1"
    one, two = workflow.run(), workflow.run()
    assert {await one, await two} == {"it 2", "it 3"}
    assert store.log.count("closed it") == 3


async def test_p5_what_no_step_that_starts_asks_for_is_not_made() -> None:
    store = Store()

    class Spares(Workflow):
        @step
        async def work(self, ev: StartEvent) -> Item | StopEvent:
            return StopEvent()

        @step
        async def spare(
            self, ev: Item, it: Annotated[Any, Resource(store.factory("it"))]
        ) -> None: ...

    await check_ending(Spares().run())
    assert store.log == []


async def test_p5_a_cached_resource_is_made_once_for_parallel_workers() -> None:
    store = Store()
    factory = store.factory("it", opening=2)

    class Pool(Workflow):
        @step
        async def fork(self, ev: StartEvent) -> list[Item]:
            return [Item(n=n) for n in range(9)]

        @step(num_workers=3)
        async def work(self, ev: Item, it: Annotated[str, Resource(factory)]) -> Done:
            seen.add(it)
            return Done()

        @step
        async def join(self, evs: list[Done]) -> StopEvent:
            return StopEvent(result=len(evs))

    seen: set[str] = set()
    assert await Pool().run() == 9
    assert seen == {"it 1"}


async def test_p5_without_cache_it_is_closed_before_the_next_attempt() -> None:
    async def act(it: str) -> str:
        store.log.append(f"using {it}")
        if store.made < 3:
            raise ProviderError
        return it

    store = Store()
    workflow = using(
        store.factory("it", closing=2), act, cache=False, policy=retry_policy(wait=wait_fixed(0))
    )
    assert await workflow.run() == "it 3"
    once = ["opening it", "opened it", "using it {}", "closing it", "closed it"]
    assert store.log == [line.format(n) for n in (1, 2, 3) for line in once]


async def test_p5_closing_counts_as_part_of_the_attempt() -> None:
    store = Store()
    handler = using(store.factory("it", closing=9), cache=False, step_timeout=5).run()
    _, last = await check_ending(handler)
    assert isinstance(last, WorkflowFailedEvent)
    assert str(last.exception) == "step work took longer than 5 s"


async def test_p5_the_attempt_has_what_is_its_own_while_it_waits() -> None:
    store = Store()

    class Waits(Workflow):
        @step
        async def work(
            self,
            ctx: Context,
            ev: StartEvent,
            it: Annotated[str, Resource(store.factory("it"), cache=False)],
        ) -> StopEvent:
            await ctx.wait_for_event(Item)
            store.log.append("using it")
            return StopEvent()

    handler = Waits(timeout=None).run()
    await anyio.sleep(100)
    await handler.send_event(Item())
    await check_ending(handler)
    assert shape(store.log) == ["opened it", "using it", "closed it"]


async def test_p5_a_branch_that_is_cancelled_closes_what_is_its_own() -> None:
    store = Store()
    factory = store.factory("it")

    class Races(Workflow):
        @step
        async def fork(self, ev: StartEvent) -> list[Item]:
            return [Item(n=n) for n in range(3)]

        @step
        async def work(self, ev: Item, it: Annotated[Any, Resource(factory, cache=False)]) -> Done:
            await anyio.sleep(1 + ev.n)
            return Done(n=ev.n)

        @step
        async def join(
            self, evs: Annotated[list[Done], Collect(Take(1, cancel=True))]
        ) -> StopEvent:
            await anyio.sleep(1)
            return StopEvent(result=store.log.count("closing it"))

    assert await Races().run() == 3


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize(
    "error",
    [
        ProviderError(),
        StopAsyncIteration(),
        ExceptionGroup("of the step", [ProviderError()]),
        KeyboardInterrupt(),
    ],
    ids=repr,
)
async def test_t5_what_a_step_raises_passes_its_resources_unchanged(
    error: BaseException, cache: bool
) -> None:
    async def act(it: Any) -> None:
        raise error

    async def factory() -> AsyncIterator[None]:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep, 1)
            yield

    _, last = await check_ending(using(factory, act, cache=cache).run())
    assert isinstance(last, WorkflowFailedEvent)
    assert last.exception is error


# --- What factories may do ------------------------------------------------------------------------


@pytest.mark.parametrize("cache", [True, False])
async def test_p5_a_generator_may_hold_a_task_group(cache: bool) -> None:
    async def ticker() -> AsyncIterator[list[int]]:
        async def tick() -> None:
            while True:
                await anyio.sleep(1)
                ticks.append(len(ticks))

        async with anyio.create_task_group() as group:
            group.start_soon(tick)
            yield ticks
            group.cancel_scope.cancel()

    async def act(ticks: list[int]) -> list[int]:
        await anyio.sleep(3.5)
        return list(ticks)

    ticks: list[int] = []
    handler = using(ticker, act, cache=cache).run()
    await check_ending(handler)
    assert await handler == [0, 1, 2]
    await anyio.sleep(10)
    assert ticks == [0, 1, 2]


async def test_p5_a_background_task_of_a_resource_that_fails_fails_the_run_at_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fragile() -> AsyncIterator[str]:
        async def crash() -> None:
            await anyio.sleep(1)
            raise Broken

        async with anyio.create_task_group() as group:
            group.start_soon(crash)
            yield "it"

    async def act(it: str) -> None:
        await anyio.sleep(3)

    handler = using(fragile, act).run()
    _, last = await check_ending(handler)
    assert isinstance(last, WorkflowFailedEvent)
    assert last.step_name == "fragile"
    assert isinstance(last.exception, ExceptionGroup)
    assert [type(exc) for exc in last.exception.exceptions] == [Broken]
    assert [record.getMessage() for record in caplog.records] == [
        f"run {handler.run_id} of Uses: resource fragile failed while it was open; closed because "
        "of that: fragile"
    ]


colour: contextvars.ContextVar[str] = contextvars.ContextVar("colour", default="none")


@pytest.mark.parametrize("cache", [True, False])
async def test_o7_factories_see_the_values_of_the_caller_and_leak_nothing(cache: bool) -> None:
    def factory() -> str:
        found = colour.get()
        colour.set("of the factory")
        return found

    async def act(it: str) -> tuple[str, str]:
        if cache:
            return it, colour.get()
        return it, "of the caller"

    token = colour.set("of the caller")
    handler = using(factory, act, cache=cache).run()
    colour.reset(token)
    assert await handler == ("of the caller", "of the caller")
    assert colour.get() == "none"


async def test_o7_what_a_factory_of_an_attempt_sets_does_not_reach_other_steps() -> None:
    def factory() -> str:
        colour.set("of the factory")
        return "it"

    class Two(Workflow):
        @step
        async def first(
            self, ev: StartEvent, it: Annotated[str, Resource(factory, cache=False)]
        ) -> Item:
            return Item()

        @step
        async def second(self, ev: Item) -> StopEvent:
            return StopEvent(result=colour.get())

    assert await Two().run() == "none"


async def test_p5_a_cached_resource_has_a_context_that_is_no_steps() -> None:
    async def factory() -> Any:
        ctx = Context.get_step_context()
        await ctx.store.set("by", "factory")
        for ask in (ctx.retry_info, lambda: ctx.collect_events(Item(), [Item])):
            with pytest.raises(WorkflowRuntimeError, match="only a step can"):
                ask()
        with pytest.raises(WorkflowRuntimeError, match="only a step can wait"):
            await ctx.wait_for_event(Item)
        return await ctx.running_steps()

    handler = using(factory).run()
    assert await handler == ["work"]
    assert await handler.ctx.store.get("by") == "factory"


async def test_p5_a_resource_of_an_attempt_has_the_context_of_its_step() -> None:
    async def factory() -> Any:
        ctx = Context.get_step_context()
        return ctx.retry_info().retry_number, ctx

    async def act(it: Any) -> Any:
        assert it[1] is Context.get_step_context()
        if it[0] == 0:
            raise ProviderError
        return it[0]

    workflow = using(factory, act, cache=False, policy=retry_policy(wait=wait_fixed(1)))
    assert await workflow.run() == 1


async def test_p5_a_resource_may_send_events() -> None:
    async def factory() -> str:
        Context.get_step_context().send_event(Item(n=7))
        return "it"

    class Takes(Workflow):
        @step
        async def work(self, ev: StartEvent, it: Annotated[str, Resource(factory)]) -> None:
            await anyio.sleep_forever()

        @step
        async def take(self, ev: Item) -> StopEvent:
            return StopEvent(result=ev.n)

    assert await Takes(skip_graph_checks=["reachability"]).run() == 7


@pytest.mark.parametrize("cache", [True, False])
async def test_o5_a_run_started_in_a_factory_is_a_child(cache: bool) -> None:
    async def factory() -> WorkflowHandler[Any]:
        return inner.run()

    store = Store()
    inner = using(store.factory("of the child", closing=2), hang)

    async def act(child: WorkflowHandler[Any]) -> WorkflowHandler[Any]:
        await anyio.sleep(1)
        return child

    handler = using(factory, act, cache=cache).run()
    await check_ending(handler)
    child = await handler
    assert store.log[-1] == "closed of the child"
    _, last = await check_ending(child)
    assert isinstance(last, WorkflowCancelledEvent)


@pytest.mark.parametrize("cache", [True, False])
async def test_o5_a_factory_may_use_the_result_of_a_child_run(cache: bool) -> None:
    async def factory() -> str:
        return f"from {await using(store.factory('inner')).run()}"

    store = Store()
    assert await using(factory, cache=cache).run() == "from inner 1"
    assert store.log[-1] == "closed inner"


async def test_o5_no_run_is_started_while_resources_close() -> None:
    async def factory() -> AsyncIterator[str]:
        yield "it"
        using(Store().factory("late")).run()

    handler = using(factory).run()
    _, last = await check_ending(handler)
    assert isinstance(last, WorkflowFailedEvent)
    assert str(last.exception) == (
        "a step cannot start a run: the run is ending, it returned StopEvent"
    )


async def test_t10_a_factory_may_cancel_its_run_and_cannot_wait_for_it() -> None:
    async def factory() -> None:
        with pytest.raises(WorkflowRuntimeError, match="a step cannot wait for the end of its own"):
            await handler
        await handler.cancel_run()
        reached.append("after the end")

    reached: list[str] = []
    handler = using(factory).run()
    _, last = await check_ending(handler)
    assert isinstance(last, WorkflowCancelledEvent)
    assert reached == []


# --- Files ----------------------------------------------------------------------------------------


@attrs.define
class Limits:
    size: int
    names: list[str] = attrs.field(factory=list)


def configured(file: Path, selector: str | None = None, kind: Any = Limits) -> Workflow:
    """Return a workflow that gives the contents of a file."""

    class Reads(Workflow):
        @step(retry_policy=retry_policy(wait=wait_fixed(1)))
        async def work(
            self, ev: StartEvent, limits: Annotated[kind, ResourceConfig(str(file), selector)]
        ) -> StopEvent:
            return StopEvent(result=limits)

        @step
        def again(
            self, ev: StartEvent, limits: Annotated[kind, ResourceConfig(str(file), selector)]
        ) -> None: ...

    return Reads(timeout=None)


@pytest.mark.parametrize("kind", ["json", "toml"])
async def test_p5_a_step_is_given_the_contents_of_a_file(kind: str, tmp_path: Path) -> None:
    file = tmp_path / f"settings.{kind}"
    text = '[server.limits]\nsize = 3\nnames = ["a"]\n'
    if kind == "json":
        text = json.dumps({"server": {"limits": {"size": 3, "names": ["a"]}}})
    file.write_text(text)
    assert await configured(file, "server.limits").run() == Limits(3, ["a"])
    assert await configured(file, "server.limits.size", int).run() == 3


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (None, "cannot be read: No such file or directory"),
        ("size = ", "not valid TOML: "),
        ("size = '5'", "$.size: expected int, got '5' (str)"),
    ],
)
async def test_p5_a_file_that_does_not_fit_fails_the_attempts(
    text: str | None, fault: str, tmp_path: Path
) -> None:
    file = tmp_path / "limits.toml"
    if text is not None:
        file.write_text(text)
    _, last = await check_ending(configured(file).run())
    assert isinstance(last, WorkflowFailedEvent)
    assert isinstance(last.exception, WorkflowConfigurationError)
    assert str(last.exception).startswith(f"{file}: {fault}")


async def test_p5_a_file_is_read_again_when_the_step_is_tried_again(tmp_path: Path) -> None:
    file = tmp_path / "limits.json"
    workflow = configured(file)
    workflow_run = workflow.run()
    await anyio.sleep(0.5)
    file.write_text('{"size": 3}')
    with pytest.raises(WorkflowConfigurationError):
        await workflow_run  # the other step is not tried again
    assert await workflow.run() == Limits(3)


# --- Faults of the graph --------------------------------------------------------------------------


def chicken(egg: "Annotated[str, Resource(lay)]") -> str:
    return "chicken"


def lay(chicken: "Annotated[str, Resource(chicken)]") -> str:
    return "egg"


def greedy(more) -> str:  # type: ignore[no-untyped-def]
    return "more"


def test_v1_faults_of_resources_are_reported_where_the_class_is_defined() -> None:
    with pytest.raises(WorkflowValidationError) as caught:

        class Faulty(Workflow):
            @step
            async def first(self, ev: StartEvent, it: Annotated[str, Resource(chicken)]) -> Item:
                return Item()

            @step
            async def second(self, ev: Item, it: Annotated[str, Resource(greedy)]) -> StopEvent:
                return StopEvent()

    assert str(caught.value) == (
        "Faulty has 2 faults:\n"
        "  1. step first: resources depend on each other: chicken -> lay -> chicken; remove one of "
        "these dependencies\n"
        "  2. step second: resource greedy: parameter 'more' is not a resource and has no default; "
        "annotate it, as in 'more: Annotated[T, Resource(make_more)]'"
    )


def undefined(it: "Annotated[str, Resource(never_defined)]") -> str:  # type: ignore[name-defined] # noqa: F821
    return it


def test_v1_names_that_are_not_defined_are_reported_at_the_latest_when_it_is_instantiated() -> None:
    class Undefined(Workflow):
        @step
        async def work(self, ev: StartEvent, it: Annotated[str, Resource(undefined)]) -> StopEvent:
            return StopEvent()

    with pytest.raises(WorkflowValidationError) as caught:
        Undefined()
    assert str(caught.value) == (
        "Undefined: step work: resource undefined: parameter 'it' is annotated with "
        "'never_defined', which is not defined"
    )


async def test_p5_inherited_steps_ask_for_what_they_asked_for() -> None:
    store = Store()
    base = type(using(store.factory("of the base")))

    class Inherits(base):  # type: ignore[misc,valid-type]
        @step
        async def other(
            self, ev: StartEvent, it: Annotated[Any, Resource(store.factory("of the other"))]
        ) -> None:
            await anyio.sleep_forever()

    assert await Inherits().run() == "of the base 1"


# --- Memory and snapshots -------------------------------------------------------------------------


class Heavy:
    """What a weak reference can tell about."""


@pytest.mark.parametrize("cache", [True, False])
async def test_o6_nothing_of_a_resource_is_kept_after_the_run(cache: bool) -> None:
    async def factory() -> AsyncIterator[Heavy]:
        heavy = Heavy()
        alive.append(weakref.ref(heavy))
        yield heavy

    async def act(heavy: Heavy) -> None:
        assert alive[0]() is heavy

    alive: list[weakref.ref[Heavy]] = []
    workflow = using(factory, act, cache=cache)
    handler = workflow.run()
    await handler
    await anyio.sleep(1)
    gc.collect()
    assert alive[0]() is None, "not even by the handler of the run"
    refs = [weakref.ref(handler), weakref.ref(handler.ctx)]
    del handler
    gc.collect()
    assert [ref() for ref in refs] == [None, None]


async def test_p3_a_run_that_goes_on_from_a_snapshot_makes_its_own() -> None:
    async def act(it: str) -> str:
        if it == "it 1":
            await anyio.sleep_forever()
        return it

    store = Store()
    workflow = using(store.factory("it"), act)
    first = workflow.run()
    await anyio.sleep(1)
    data = json.loads(json.dumps(first.ctx.to_dict()))
    await first.cancel_run()
    assert "it 1" not in json.dumps(data)
    assert await workflow.run(ctx=Context.from_dict(workflow, data)) == "it 2"
    assert await workflow.run(ctx=first.ctx) == "it 3"
    assert shape(store.log) == ["opened it", "closed it"] * 3
