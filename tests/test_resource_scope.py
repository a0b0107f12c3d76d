"""Resources that all runs of a workflow instance share, and nobody has to close (P5)."""

from __future__ import annotations

import contextvars
import copy
import gc
import pickle
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_workflows import (
    Context,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowHandler,
    WorkflowTimedOutEvent,
    step,
)
from anyio_workflows._dependencies import read_dependency
from anyio_workflows.errors import (
    WorkflowConfigurationError,
    WorkflowRuntimeError,
    WorkflowTimeoutError,
    WorkflowValidationError,
)
from anyio_workflows.resource import Resource, ResourceConfig
from anyio_workflows.retry_policy import retry_policy, wait_fixed
from anyio_workflows.testing import cancel_everywhere, check_termination

from .bare import BARE_RUNNERS, run_bare
from .resources import Broken, sharing
from .running import PATIENCE, check_ending, on_each_backend, run_virtually
from .samples import Item, ProviderError

pytestmark = pytest.mark.anyio


class Made:
    """What the factories here make: equal to nothing else, and never closed."""

    def __init__(self, number: int) -> None:
        self.number = number


class Maker:
    """Makes things that take their time, and keeps what happens."""

    def __init__(self, seconds: float = 1, fails: int = 0) -> None:
        self.seconds, self.fails = seconds, fails
        self.log: list[str] = []
        self.made = self.cut = 0

    async def make(self) -> Made:
        self.log.append("begin")
        try:
            await anyio.sleep(self.seconds)
        except BaseException:
            self.cut += 1
            self.log.append("cut")
            raise
        if self.fails:
            self.fails -= 1
            self.log.append("fail")
            raise Broken
        self.made += 1
        self.log.append("made")
        return Made(self.made)


async def two_runs(workflow: Workflow) -> tuple[WorkflowHandler[Any], WorkflowHandler[Any]]:
    """Start two runs, the first of which builds."""
    builder = workflow.run()
    await anyio.sleep(0.5)
    return builder, workflow.run()


async def results(*handlers: WorkflowHandler[Any]) -> list[Any]:
    """Wait for runs; a failure is given back like a result."""
    found: list[Any] = []
    for handler in handlers:
        try:
            found.append(await handler)
        except Exception as exc:
            found.append(exc)
    return found


# --- The marker, and what it may depend on ----------------------------------------------------------


@pytest.mark.parametrize("scope", [None, "", "step", "Workflow", 3])
def test_p5_resource_refuses_other_scopes(scope: Any) -> None:
    with pytest.raises(WorkflowConfigurationError) as caught:
        Resource(Maker().make, scope=scope)
    assert str(caught.value) == f"Resource(scope=) is 'run' or 'workflow', not {scope!r}"


def test_p5_what_is_shared_by_all_runs_is_cached() -> None:
    with pytest.raises(
        WorkflowConfigurationError, match=r"kept for all runs, and cache=False keeps"
    ):
        Resource(Maker().make, cache=False, scope="workflow")


def session() -> str:
    return "session"


def helper(it: Annotated[str, Resource(session)]) -> str:
    return it


def pool(it: Annotated[str, Resource(helper, cache=False)]) -> str:
    return it


def above(it: Annotated[str, Resource(pool, scope="workflow")]) -> str:
    return it


@pytest.mark.parametrize(
    ("factory", "chain", "last"),
    [
        (helper, "helper -> session", "helper"),
        (pool, "pool -> helper -> session", "helper"),
        (above, "above -> pool -> helper -> session", "helper"),
    ],
)
def test_v1_what_is_shared_depends_on_nothing_of_a_run(
    factory: Callable[..., Any], chain: str, last: str
) -> None:
    faults: list[str] = []
    read_dependency(Annotated[str, Resource(factory, scope="workflow")], faults, faults)
    assert faults == [
        f"resource {factory.__name__} is shared by all runs and cannot depend on session, of which "
        f"each run has its own: {chain}; give session scope='workflow' too, or cache=False if {last} "
        "is to have one to itself"
    ]


def test_v1_such_a_fault_is_raised_when_the_class_is_defined() -> None:
    with pytest.raises(WorkflowValidationError, match="pool -> helper -> session"):
        sharing(pool)


def test_v1_a_resource_of_a_run_may_depend_on_one_of_the_workflow() -> None:
    faults: list[str] = []
    assert read_dependency(Annotated[str, Resource(helper)], faults, faults) is not None
    assert faults == []


def chicken(egg: Annotated[Any, Resource(egg, cache=False)]) -> None: ...
def egg(chicken: Annotated[Any, Resource(chicken, scope="workflow")]) -> None: ...


def test_v1_circles_through_scopes_are_faults() -> None:
    faults: list[str] = []
    read_dependency(Annotated[Any, Resource(egg)], faults, faults)
    assert faults == [
        "resources depend on each other: chicken -> egg -> chicken; remove one of these dependencies"
    ]


# --- Sharing ----------------------------------------------------------------------------------------


async def test_p5_all_runs_of_an_instance_share_it() -> None:
    maker = Maker()
    workflow = sharing(maker.make)
    first = await workflow.run()
    assert await results(workflow.run(), workflow.run()) == [first, first]
    assert maker.log == ["begin", "made"]


async def test_p5_another_instance_has_its_own() -> None:
    maker = Maker()
    workflow = sharing(maker.make)
    other = type(workflow)(timeout=None)
    one, two = await results(workflow.run(), other.run())
    assert one is not two
    assert await results(workflow.run(), other.run()) == [one, two]


async def test_p5_runs_at_the_same_time_wait_for_one_build() -> None:
    maker = Maker(10)
    workflow = sharing(maker.make)
    began = anyio.current_time()
    handlers = []
    for _ in range(5):
        handlers.append(workflow.run())
        await anyio.sleep(1)
    found = await results(*handlers)
    assert len(set(found)) == maker.made == 1
    assert anyio.current_time() - began == 10


async def test_p5_the_same_factory_with_two_scopes_makes_two_resources() -> None:
    class Both(Workflow):
        @step
        async def work(
            self,
            ev: StartEvent,
            one: Annotated[Made, Resource(maker.make, scope="workflow")],
            two: Annotated[Made, Resource(maker.make)],
            three: Annotated[Made, Resource(maker.make, cache=False)],
        ) -> StopEvent:
            return StopEvent(result=(one, two, three))

    maker = Maker()
    workflow = Both()
    first, second = await workflow.run(), await workflow.run()
    assert first[0] is second[0]
    assert len({*first, *second}) == maker.made == 5


async def test_p5_steps_and_resources_of_any_kind_share_it() -> None:
    def repository(it: Annotated[Made, Resource(maker.make, scope="workflow")]) -> tuple[str, Made]:
        return "repository", it

    async def transaction(
        it: Annotated[Made, Resource(maker.make, scope="workflow")],
    ) -> AsyncIterator[Made]:
        yield it

    class Shares(Workflow):
        @step
        async def first(
            self, ev: StartEvent, it: Annotated[Made, Resource(transaction, cache=False)]
        ) -> Item:
            seen.append(it)
            return Item()

        @step
        def second(self, ev: Item, it: Annotated[Any, Resource(repository)]) -> StopEvent:
            seen.append(it[1])
            return StopEvent()

    maker = Maker()
    seen: list[Made] = []
    workflow = Shares()
    await workflow.run()
    await workflow.run()
    assert len(seen) == 4
    assert len(set(seen)) == maker.made == 1


async def test_p5_what_it_is_made_of_is_shared_or_its_own() -> None:
    def model(
        shared: Annotated[Made, Resource(maker.make, scope="workflow")],
        own: Annotated[Made, Resource(maker.make, cache=False)],
    ) -> list[Made]:
        return [shared, own]

    def other(
        shared: Annotated[Made, Resource(maker.make, scope="workflow")],
        own: Annotated[Made, Resource(maker.make, cache=False)],
    ) -> list[Made]:
        return [shared, own]

    class Shares(Workflow):
        @step
        async def work(
            self,
            ev: StartEvent,
            one: Annotated[list[Made], Resource(model, scope="workflow")],
            two: Annotated[list[Made], Resource(other, scope="workflow")],
        ) -> StopEvent:
            return StopEvent(result=[one, two])

    maker = Maker()
    workflow = Shares()
    one, two = await workflow.run()
    assert one[0] is two[0]
    assert one[1] is not two[1]
    assert await workflow.run() == [one, two]
    assert maker.made == 3


async def test_p5_a_file_is_read_when_what_asks_for_it_is_made(tmp_path: Any) -> None:
    file = tmp_path / "a.json"
    file.write_text("1")

    def settings(n: Annotated[int, ResourceConfig(str(file))]) -> int:
        return n

    class Reads(Workflow):
        @step
        async def work(
            self,
            ev: StartEvent,
            shared: Annotated[int, Resource(settings, scope="workflow")],
            own: Annotated[int, ResourceConfig(str(file))],
        ) -> StopEvent:
            return StopEvent(result=(shared, own))

    workflow = Reads()
    assert await workflow.run() == (1, 1)
    file.write_text("2")
    assert await workflow.run() == (1, 2)
    assert await Reads().run() == (2, 2)


colour: contextvars.ContextVar[str] = contextvars.ContextVar("colour", default="none")


async def test_o7_its_factory_sees_the_variables_of_the_run_that_asked_first() -> None:
    def factory() -> str:
        found = colour.get()
        colour.set("of the factory")
        return found

    async def act(it: str) -> tuple[str, str]:
        return it, colour.get()

    workflow = sharing(factory, act)
    colour.set("red")
    first = workflow.run()
    colour.set("blue")
    assert await first == ("red", "red")
    assert await workflow.run() == ("red", "blue")


async def test_p5_a_child_run_of_the_same_instance_shares_it() -> None:
    class Nests(Workflow):
        @step
        async def work(
            self, ev: StartEvent, it: Annotated[Made, Resource(maker.make, scope="workflow")]
        ) -> StopEvent:
            if ev.depth:
                return StopEvent(result=[it, *await self.run(depth=ev.depth - 1)])
            return StopEvent(result=[it])

    maker = Maker()
    found = await Nests().run(depth=3)
    assert len(found) == 4
    assert maker.made == 1


# --- Builds that fail or are cut short --------------------------------------------------------------


async def test_p5_a_failure_is_raised_in_all_runs_that_wait_and_not_remembered() -> None:
    maker = Maker(fails=1)
    workflow = sharing(maker.make)
    handlers = [workflow.run() for _ in range(3)]
    errors = await results(*handlers)
    assert [type(error) for error in errors] == [Broken] * 3
    assert len(set(map(id, errors))) == 1
    assert maker.log == ["begin", "fail"]
    assert (await workflow.run()).number == 1


async def test_p5_a_step_that_is_retried_asks_again() -> None:
    class Retries(Workflow):
        @step(retry_policy=retry_policy(wait=wait_fixed(1)))
        async def work(
            self, ev: StartEvent, it: Annotated[Made, Resource(maker.make, scope="workflow")]
        ) -> StopEvent:
            return StopEvent(result=it.number)

    maker = Maker(fails=1)
    workflow = Retries()
    assert await results(*[workflow.run() for _ in range(3)]) == [1, 1, 1]
    assert maker.log == ["begin", "fail", "begin", "made"]


async def test_t5_tracebacks_of_a_shared_failure_do_not_grow() -> None:
    workflow = sharing(Maker(fails=1).make)
    handlers = [workflow.run() for _ in range(3)]
    (error, *_) = await results(*handlers)
    depths: list[int] = []
    for _ in range(3):
        await results(*handlers)
        traceback, depth = error.__traceback__, 0
        while traceback is not None:
            traceback, depth = traceback.tb_next, depth + 1
        depths.append(depth)
    assert len(set(depths)) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3)], ids=repr)
async def test_p5_what_ends_the_program_is_raised_in_the_run_that_builds_alone(
    error: BaseException,
) -> None:
    async def factory() -> str:
        await anyio.sleep(1)
        if not tried:
            tried.append(True)
            raise error
        return "it"

    tried: list[bool] = []
    workflow = sharing(factory)
    builder, other = await two_runs(workflow)
    await check_ending(other)
    assert await other == "it"
    _, last = await check_ending(builder)
    assert isinstance(last, WorkflowFailedEvent)
    assert last.exception is error


async def test_p5_a_cancellation_that_a_factory_leaks_stays_in_the_run_that_builds() -> None:
    async def factory() -> str:
        await anyio.sleep(1)
        tried.append(True)
        with anyio.CancelScope() as scope:
            scope.cancel()
            try:
                await anyio.sleep(1)
            except anyio.get_cancelled_exc_class() as exc:
                stray = exc
        if len(tried) == 1:
            raise stray
        return "it"

    tried: list[bool] = []
    workflow = sharing(factory)
    builder, other = await results(*await two_runs(workflow))
    assert isinstance(builder, WorkflowRuntimeError)
    assert "raised a cancellation, although it had not been cancelled" in str(builder)
    assert other == "it"


async def test_p5_a_plain_factory_that_leaves_a_scope_open_shares_nothing() -> None:
    async def leaves_open() -> Any:
        scope = anyio.CancelScope()
        scope.__enter__()
        return scope

    workflow = sharing(leaves_open)
    for handler in (workflow.run(), workflow.run()):
        with pytest.raises(WorkflowRuntimeError, match="left a cancel scope or task group open"):
            await handler


@pytest.mark.parametrize("how", ["cancel", "deadline", "block"])
async def test_p5_if_the_run_that_builds_ends_another_one_builds_anew(how: str) -> None:
    maker = Maker(10)
    workflow = sharing(maker.make, timeout=100)
    impatient = sharing(maker.make, timeout=4)
    workflow._compiled()
    if how == "deadline":
        workflow._settings, settings = impatient._settings, workflow._settings
    builder = workflow.run()
    if how == "deadline":
        workflow._settings = settings
    await anyio.sleep(2)
    others = [workflow.run() for _ in range(3)]
    await anyio.sleep(2)
    if how == "cancel":
        await builder.cancel_run()
    elif how == "block":
        with pytest.raises(ProviderError):
            async with builder:
                raise ProviderError
    found = await results(*others)
    assert maker.log == ["begin", "cut", "begin", "made"]
    assert len(set(found)) == 1
    _, last = await check_ending(builder)
    wanted = WorkflowTimedOutEvent if how == "deadline" else WorkflowCancelledEvent
    assert type(last) is wanted


async def test_t2_the_deadline_of_a_run_that_waits_for_the_build_of_another() -> None:
    maker = Maker(10)
    workflow = sharing(maker.make)
    builder = workflow.run()
    await anyio.sleep(1)
    patient, workflow._settings = workflow._settings, sharing(maker.make, timeout=3)._settings
    waiting = workflow.run()
    workflow._settings = patient
    began = anyio.current_time()
    with pytest.raises(WorkflowTimeoutError):
        await waiting
    assert anyio.current_time() - began == 3
    assert (await builder).number == 1
    assert maker.log == ["begin", "made"]


async def test_p5_an_attempt_that_times_out_leaves_the_build_to_the_next_one() -> None:
    class Retries(Workflow):
        @step(timeout=2, retry_policy=retry_policy(wait=wait_fixed(3)))
        async def work(
            self, ev: StartEvent, it: Annotated[Made, Resource(maker.make, scope="workflow")]
        ) -> StopEvent:
            return StopEvent(result=it.number)

    maker = Maker(4)
    assert await Retries().run() == 1
    assert maker.log == ["begin", "made"]


async def test_t6_a_build_that_cannot_be_cancelled_is_left_behind_and_made_by_another() -> None:
    async def factory() -> int:
        builds.append(len(builds))
        number = len(builds)
        with anyio.CancelScope(shield=number == 1):
            await anyio.sleep(100 if number == 1 else 1)
        return number

    builds: list[int] = []
    workflow = sharing(factory, cleanup_timeout=5)
    builder, other = await two_runs(workflow)
    await anyio.sleep(0.5)
    began = anyio.current_time()
    await builder.cancel_run()
    assert await other == 2
    assert anyio.current_time() - began == pytest.approx(6, abs=0.1)
    await anyio.sleep(200)
    assert await workflow.run() == 2, "the first value that was ready stays"
    assert len(builds) == 2


@on_each_backend
@pytest.mark.parametrize("runs", [2, 3])
def test_p5_the_run_that_builds_is_cancelled_at_every_checkpoint(backend: str, runs: int) -> None:
    """Whatever moment it is, one of the others builds, and nobody hangs or is cancelled."""

    async def factory() -> Made:
        for _ in range(4):
            await checkpoint()
        made.append(True)
        return Made(len(made))

    async def main(ticks: int) -> tuple[bool, list[Any]]:
        workflow = sharing(factory)
        builder = workflow.run()
        others = [workflow.run() for _ in range(runs - 1)]
        for _ in range(ticks):
            await checkpoint()
        done = builder.is_done()
        await builder.cancel_run()
        with anyio.fail_after(10):
            return done, await results(*others)

    for ticks in range(60):
        made: list[bool] = []
        done, found = run_virtually(backend, lambda ticks=ticks: main(ticks))
        assert len(found) == runs - 1
        assert {type(value) for value in found} == {Made}
        assert len(set(found)) == 1
        if done:
            break
    else:
        pytest.fail("the run that builds never ended by itself")
    assert ticks > 8


@st.composite
def _plans(draw: st.DrawFn) -> list[tuple[float, float]]:
    """When runs start, and how long they are patient."""
    moment = st.integers(0, 12).map(float)
    return draw(st.lists(st.tuples(moment, st.integers(1, 12).map(float)), min_size=1, max_size=8))


@on_each_backend
@given(_plans(), st.integers(0, 2))
@settings(max_examples=60)
def test_p5_any_number_of_runs_that_give_up_when_they_like(
    backend: str, plans: list[tuple[float, float]], fails: int
) -> None:
    maker = Maker(5, fails)

    async def one(workflow: Workflow, starts: float, patience: float) -> None:
        await anyio.sleep(starts + 0.001)
        handler = workflow.run()
        with anyio.move_on_after(patience):
            found.extend(await results(handler))
        if not handler.is_done():
            gave_up.append(patience)
            await handler.cancel_run()

    async def main() -> None:
        workflow = sharing(maker.make)
        async with anyio.create_task_group() as group:
            for starts, patience in plans:
                group.start_soon(one, workflow, starts, patience)

    found: list[Any] = []
    gave_up: list[float] = []
    run_virtually(backend, main)
    assert len(found) + len(gave_up) == len(plans)
    values = {value for value in found if isinstance(value, Made)}
    assert {type(value) for value in found} <= {Made, Broken}
    assert len(values) <= maker.made <= 1
    begun = 0
    for line in maker.log:  # one build at a time
        begun += 1 if line == "begin" else -1
        assert begun in (0, 1)
    assert begun == 0


# --- Event loops and threads ------------------------------------------------------------------------


@on_each_backend
def test_p5_it_outlives_an_event_loop(backend: str) -> None:
    async def main() -> Made:
        return await workflow.run()  # type: ignore[no-any-return]

    maker = Maker()
    workflow = sharing(maker.make)
    assert run_virtually(backend, main) is run_virtually(backend, main)
    assert maker.made == 1


@pytest.mark.parametrize("runner", BARE_RUNNERS)
def test_p5_in_loops_that_nobody_announced(runner: Any) -> None:
    async def main() -> list[Any]:
        return await results(workflow.run(), workflow.run())

    maker = Maker(0.01)
    workflow = sharing(maker.make)
    found = [*run_bare(runner, main), *run_bare(runner, main)]
    assert len(set(found)) == maker.made == 1


@on_each_backend
def test_p5_a_build_that_ends_with_its_loop_is_begun_anew_in_the_next(backend: str) -> None:
    async def leave() -> None:
        workflow.run()
        await anyio.sleep(1)

    async def main() -> Made:
        return await workflow.run()  # type: ignore[no-any-return]

    maker = Maker(5)
    workflow = sharing(maker.make)
    run_virtually(backend, leave)
    assert maker.log == ["begin", "cut"]
    assert run_virtually(backend, main).number == 1


@on_each_backend
def test_p5_two_loops_at_once_get_the_same_value(backend: str) -> None:
    both = threading.Barrier(2)

    async def factory() -> Made:
        await checkpoint()
        both.wait(PATIENCE)  # neither loop waits for the other but here
        made.append(True)
        return Made(len(made))

    def run_loop() -> None:
        async def main() -> None:
            found.extend(await results(workflow.run(), workflow.run()))

        anyio.run(main, backend=backend)

    made: list[bool] = []
    found: list[Any] = []
    workflow = sharing(factory)
    threads = [threading.Thread(target=run_loop) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(found) == 4
    assert len(made) == 2
    assert len(set(found)) == 1
    assert type(found[0]) is Made


async def test_o1_a_run_that_a_thread_starts_shares_it() -> None:
    maker = Maker()
    workflow = sharing(maker.make)
    first = await workflow.run()
    handler = await anyio.to_thread.run_sync(lambda: anyio.from_thread.run_sync(workflow.run))
    assert await handler is first


# --- Nothing is pinned ------------------------------------------------------------------------------


async def test_o6_the_instance_holds_the_value_and_an_ended_run_holds_nothing() -> None:
    maker = Maker()
    workflow = sharing(maker.make)
    value = weakref.ref(await workflow.run())
    gc.collect()
    assert value() is not None
    instance = weakref.ref(workflow)
    del workflow
    for _ in range(5):
        await checkpoint()
    gc.collect()
    assert instance() is None
    assert value() is None


async def test_o6_a_run_that_waited_in_vain_is_not_kept_by_the_build() -> None:
    maker = Maker(100)
    workflow = sharing(maker.make)
    builder = workflow.run()
    await anyio.sleep(1)
    waiting = workflow.run()
    await anyio.sleep(1)
    await waiting.cancel_run()
    run = weakref.ref(waiting._run)
    del waiting
    for _ in range(5):
        await checkpoint()
    gc.collect()
    assert run() is None
    assert (await builder).number == 1


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
@pytest.mark.parametrize("slots", [(), ("label",)], ids=["no slots", "slots"])
async def test_p5_a_copy_is_another_instance(copied: Callable[[Any], Any], slots: Any) -> None:
    class Labelled(Workflow):
        __slots__ = slots

        @step
        async def work(
            self, ev: StartEvent, it: Annotated[Made, Resource(maker.make, scope="workflow")]
        ) -> StopEvent:
            return StopEvent(result=it)

    maker = Maker()
    workflow: Any = Labelled(workflow_name="labelled")
    workflow.label = ["kept"]
    first = await workflow.run()
    async with workflow:
        other = copied(workflow)
        async with other:
            assert await other.run() is not first
        assert await workflow.run() is first
    assert (other.label, other.workflow_name) == (["kept"], "labelled")


class Picklable(Workflow):
    @step
    async def work(
        self, ev: StartEvent, it: Annotated[Any, Resource(threading.Lock, scope="workflow")]
    ) -> StopEvent:
        return StopEvent(result=it)


async def test_p5_a_pickled_workflow_leaves_it_behind() -> None:
    workflow = Picklable()
    first = await workflow.run()
    other = pickle.loads(pickle.dumps(workflow))
    assert await other.run() is not first


async def test_p5_a_workflow_that_does_not_call_its_base_has_it_too() -> None:
    class Careless(Workflow):
        def __init__(self) -> None:
            pass

        @step
        async def work(
            self, ev: StartEvent, it: Annotated[Made, Resource(maker.make, scope="workflow")]
        ) -> StopEvent:
            return StopEvent(result=it)

    maker = Maker()
    workflow = Careless()
    assert await workflow.run() is await workflow.run()
    assert await Careless().run() is not await workflow.run()


# --- The toolkit for tests --------------------------------------------------------------------------


class ForTheToolkit(Workflow):
    @step
    async def first(
        self, ev: StartEvent, it: Annotated[Made, Resource(Maker(0.5).make, scope="workflow")]
    ) -> Item:
        return Item(n=it.number)

    @step
    async def second(
        self, ctx: Context, ev: Item, it: Annotated[Made, Resource(Maker(0.5).make)]
    ) -> StopEvent:
        await anyio.sleep(1)
        return StopEvent()


@on_each_backend
def test_v2_the_toolkit_runs_it(backend: str) -> None:
    check_termination(ForTheToolkit, backends=[backend], max_examples=15)
    cancel_everywhere(ForTheToolkit, backends=[backend])
