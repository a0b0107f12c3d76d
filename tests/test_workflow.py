"""The door: arguments of `Workflow()` and `run()`, and what a workflow tells about itself."""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings
from decimal import Decimal
from typing import Annotated, Any

import anyio
import anyio.from_thread
import anyio.to_thread
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
from anyio_workflows.errors import (
    EventValidationError,
    WorkflowConfigurationError,
    WorkflowError,
    WorkflowRuntimeError,
    WorkflowTimeoutError,
    WorkflowValidationError,
)
from anyio_workflows.resource import Resource, ResourceConfig

from .samples import Next, Total

anyio_only = pytest.mark.anyio
BAD_NUMBERS: list[Any] = [
    -1,
    float("nan"),
    float("-inf"),
    "5",
    b"5",
    True,
    False,
    [],
    1j,
    Decimal,
]


class MyStart(StartEvent):
    topic: str
    count: int = 1


class Echo(Workflow):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=dict(ev))


class Typed(Workflow):
    @step
    async def one(self, ev: MyStart) -> Next:
        return Next(n=ev.count)

    @step
    async def two(self, ev: Next) -> Total:
        return Total(total=ev.n)


class Slow(Workflow):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        await anyio.sleep(10_000)
        return StopEvent(result="slept")


class Faulty(Workflow):
    @step
    async def only(self, ev: StartEvent) -> Next:
        return Next(n=1)


# --- The constructor --------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [*BAD_NUMBERS, 0, 0.0], ids=repr)
def test_s2_a_bad_timeout_raises_at_once(bad: Any):
    with pytest.raises(WorkflowConfigurationError, match="timeout must be a positive number"):
        Echo(timeout=bad)


@pytest.mark.parametrize("bad", [*BAD_NUMBERS, None], ids=repr)
def test_s2_a_bad_cleanup_timeout_raises_at_once(bad: Any):
    with pytest.raises(WorkflowConfigurationError, match="cleanup_timeout must be a number"):
        Echo(cleanup_timeout=bad)


@pytest.mark.parametrize("bad", [*BAD_NUMBERS, 0], ids=repr)
def test_i4_a_bad_bound_for_slow_steps_raises_at_once(bad: Any):
    with pytest.raises(
        WorkflowConfigurationError,
        match="slow_step_warning must be a positive number of seconds, or None for no warning; not ",
    ):
        Echo(slow_step_warning=bad)


@pytest.mark.parametrize("field", ["timeout", "cleanup_timeout", "slow_step_warning"])
@pytest.mark.parametrize("sign", [1, -1])
def test_s2_a_number_too_large_for_a_clock_raises_at_once(field: str, sign: int):
    with pytest.raises(WorkflowConfigurationError, match=field):
        Echo(**{field: sign * 10**400})


def test_s2_the_message_shows_the_bad_value():
    with pytest.raises(WorkflowConfigurationError, match="not '5'"):
        Echo(timeout="5")
    assert issubclass(WorkflowConfigurationError, WorkflowError)


@pytest.mark.parametrize("good", [None, 1, 0.001, 10**9, float("inf")])
@anyio_only
async def test_s2_a_good_timeout(good: float | None):
    assert await Echo(timeout=good, cleanup_timeout=0).run(a=1) == {"a": 1}


@anyio_only
async def test_s2_the_timeout_is_45_seconds_unless_told():
    start = anyio.current_time()
    with pytest.raises(WorkflowTimeoutError) as caught:
        await Slow().run()
    assert caught.value.timeout == anyio.current_time() - start == 45


@anyio_only
async def test_s2_no_timeout():
    assert await Slow(timeout=None).run() == "slept"


@pytest.mark.parametrize(
    "bad", ["dead_ends", ["dead_ends"], ["dead_end", "reach"], {1}, 5, True, [["dead_end"]]]
)
def test_v1_unknown_names_in_skip_graph_checks(bad: Any):
    with pytest.raises(WorkflowConfigurationError, match="skip_graph_checks"):
        Echo(skip_graph_checks=bad)


@pytest.mark.parametrize("good", [None, [], (), {"dead_end"}, ["reachability", "terminal_event"]])
def test_v1_known_names_in_skip_graph_checks(good: Any):
    Echo(skip_graph_checks=good).validate()


def test_s2_an_unknown_argument_is_refused_by_python():
    with pytest.raises(TypeError, match="time_out"):
        Echo(time_out=3)


# --- What a workflow tells --------------------------------------------------------------------


def test_s2_workflow_name():
    assert Echo().workflow_name == "Echo"
    assert Echo(workflow_name="tea").workflow_name == "tea"


def test_s2_events_and_the_start_and_stop_class():
    workflow = Typed()
    assert workflow.events == [MyStart, Next, Total]
    assert (workflow.start_event_class, workflow.stop_event_class) == (MyStart, Total)
    assert (Echo().start_event_class, Echo().stop_event_class) == (StartEvent, StopEvent)


def test_s2_without_start_or_stop_event_their_class_raises():
    class Middling(Workflow):
        @step
        async def only(self, ev: Next) -> None: ...

    with pytest.raises(WorkflowValidationError, match="no step accepts a StartEvent"):
        _ = Middling().start_event_class
    with pytest.raises(WorkflowValidationError, match="no step returns a StopEvent"):
        _ = Middling().stop_event_class


def test_s2_instances_of_a_class_share_its_graph():
    assert Typed().graph is Typed().graph
    assert list(Typed().graph.steps) == ["one", "two"]


# --- Validation -------------------------------------------------------------------------------


def test_v1_validate_raises_the_faults_under_the_workflows_name():
    with pytest.raises(WorkflowValidationError) as caught:
        Faulty(workflow_name="tea").validate()
    assert caught.value.where == "tea"
    assert len(caught.value.faults) == 2


@anyio_only
async def test_v1_run_validates_before_the_first_step():
    with pytest.raises(WorkflowValidationError, match="only returns Next"):
        Faulty().run()


@anyio_only
async def test_v1_disable_validation():
    Faulty(disable_validation=True).run()
    with pytest.raises(WorkflowValidationError):
        Faulty(disable_validation=True).validate()


def make_client(limits: Annotated[dict[str, int], ResourceConfig("gone.toml")]) -> object:
    raise NotImplementedError


class Configured(Workflow):
    @step
    async def first(
        self,
        ev: StartEvent,
        client: Annotated[object, Resource(make_client)],
        most: Annotated[int, ResourceConfig("limits.json", "most", label="Limit")],
    ) -> StopEvent: ...


def test_v1_validate_reads_the_files_of_resources(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "limits.json").write_text('{"most": "many"}')
    assert Configured().validate(validate_resource_configs=False) is False
    assert Configured().validate(validate_resource_configs=False, validate_resources=True) is False
    with pytest.raises(WorkflowValidationError) as caught:
        Configured().validate()
    assert caught.value.faults == (
        "step first: parameter 'client': gone.toml: cannot be read: No such file or directory",
        "step first: parameter 'most': limits.json: most: expected int, got 'many' (str)",
    )
    (tmp_path / "limits.json").write_text('{"most": 3}')
    (tmp_path / "gone.toml").write_text("each = 3")
    assert Configured().validate() is False


def test_v1_validate_reports_the_faults_of_the_graph_and_of_the_files_together(
    tmp_path, monkeypatch
):
    class Worse(Configured):
        @step
        async def second(self, ev: Next) -> StopEvent: ...

    monkeypatch.chdir(tmp_path)
    with pytest.raises(WorkflowValidationError) as caught:
        Worse().validate()
    assert ["Next" in fault for fault in caught.value.faults] == [True, False, False]


def test_v1_validate_tells_whether_the_workflow_asks_people():
    class Asks(Workflow):
        @step
        async def first(self, ev: StartEvent) -> InputRequiredEvent | StopEvent: ...

    class Listens(Workflow):
        @step
        async def first(self, ev: StartEvent) -> None: ...
        @step
        async def second(self, ev: HumanResponseEvent) -> StopEvent: ...

    assert Asks().validate() is True
    assert Listens(skip_graph_checks=["dead_end"]).validate() is True


@anyio_only
async def test_v1_a_class_without_steps():
    class Nothing(Workflow):
        pass

    for cls in (Nothing, Workflow):
        with pytest.raises(WorkflowValidationError, match="it has no steps; mark its methods"):
            cls().run()
        with pytest.raises(WorkflowValidationError, match="no step accepts a StartEvent"):
            cls(disable_validation=True).run()


@anyio_only
async def test_a_subclass_that_forgets_super_init_has_the_default_configuration():
    class Forgetful(Echo):
        def __init__(self) -> None:
            self.model = "gpt"

    workflow = Forgetful()
    workflow.validate()
    assert workflow.workflow_name == "Forgetful"
    assert await workflow.run(a=1) == {"a": 1}


@anyio_only
async def test_v1_a_subclass_that_forgets_super_init_is_checked_all_the_same():
    class Forgetful(Workflow):
        def __init__(self) -> None:
            pass

        @step
        async def only(self, ev: StartEvent) -> Nowhere: ...  # noqa: F821

    with pytest.raises(WorkflowValidationError, match="Nowhere"):
        Forgetful().run()


# --- E4: the keywords of run() ----------------------------------------------------------------


@anyio_only
async def test_e4_the_keywords_of_run_go_to_the_start_event_as_they_are():
    value = object()
    result = await Echo().run(value=value, none=None, timeout="x")
    assert result == {"value": value, "none": None, "timeout": "x"}
    assert result["value"] is value


@pytest.mark.parametrize("name", ["self", "ev", "ctx_", "workflow", "kwargs", "name"])
@anyio_only
async def test_e4_any_keyword_goes_to_an_open_start_event(name: str):
    assert await Echo().run(**{name: 1}) == {name: 1}


@anyio_only
async def test_e4_nothing_is_converted():
    with pytest.raises(EventValidationError) as caught:
        Typed().run(topic="tea", count="5")
    assert (caught.value.event, caught.value.field) == ("MyStart", "count")


@anyio_only
async def test_e2_unknown_keywords_of_run():
    with pytest.raises(EventValidationError, match=r"MyStart\.topc: .*did you mean 'topic'"):
        Typed().run(topc="tea")


@anyio_only
async def test_e3_missing_keywords_of_run():
    with pytest.raises(EventValidationError, match="topic: missing"):
        Typed().run()


@anyio_only
async def test_s2_run_takes_a_start_event_instead_of_keywords():
    handler = Typed().run(start_event=MyStart(topic="tea", count=3))
    assert isinstance(handler, WorkflowHandler)
    assert await handler == Total(total=3)


@anyio_only
async def test_s2_the_start_event_reaches_the_step_as_the_same_object():
    class Same(Workflow):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            return StopEvent(result=ev)

    event = StartEvent(a=1)
    assert await Same().run(start_event=event) is event


@anyio_only
async def test_s2_not_both_a_start_event_and_keywords():
    with pytest.raises(WorkflowConfigurationError, match="not both; got count, topic as well"):
        Typed().run(start_event=MyStart(topic="tea"), count=2, topic="x")


@pytest.mark.parametrize("wrong", [StartEvent(topic="tea"), Next(n=1), MyStart, {}, "tea", 0])
@anyio_only
async def test_s2_a_start_event_of_the_wrong_class(wrong: Any):
    with pytest.raises(WorkflowConfigurationError, match="Typed starts with MyStart, not with"):
        Typed().run(start_event=wrong)


@anyio_only
async def test_r1_a_subclass_of_the_start_event_where_the_step_takes_subclasses():
    class Wide(Workflow):
        @step(accept_event_subclasses=True)
        async def only(self, ev: StartEvent) -> StopEvent:
            return StopEvent(result=type(ev).__name__)

    assert await Wide().run(start_event=MyStart(topic="tea")) == "MyStart"
    with pytest.raises(WorkflowConfigurationError, match="starts with StartEvent"):
        Echo().run(start_event=MyStart(topic="tea"))


@anyio_only
async def test_s2_a_start_event_for_a_step_that_takes_any_event():
    class Anything(Workflow):
        @step(accept_event_subclasses=True)
        async def take(self, ev: Event) -> StopEvent:
            return StopEvent(result=type(ev))

    workflow = Anything(disable_validation=True)
    assert await workflow.run(start_event=StartEvent()) is StartEvent
    with pytest.raises(WorkflowValidationError, match="no step accepts a StartEvent"):
        workflow.run()


@anyio_only
async def test_s2_run_id():
    workflow = Echo()
    assert workflow.run(run_id="tea-1").run_id == "tea-1"
    one, other = workflow.run(), workflow.run()
    assert one.run_id != other.run_id


@anyio_only
async def test_t2_a_custom_stop_event_is_the_result_itself():
    assert await Typed().run(topic="tea", count=2) == Total(total=2)


@anyio_only
async def test_s2_an_instance_may_run_many_times_and_at_once():
    workflow = Echo()
    handlers = [workflow.run(n=n) for n in range(5)]
    assert [await handler for handler in handlers] == [{"n": n} for n in range(5)]


@anyio_only
async def test_a_stateful_workflow_keeps_its_own_attributes():
    class Counting(Workflow):
        def __init__(self, start: int, **options: Any) -> None:
            super().__init__(**options)
            self.count = start

        @step
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            self.count += 1
            return StopEvent(result=self.count)

    one, other = Counting(10, timeout=5), Counting(20)
    assert [await w.run() for w in (one, one, other)] == [11, 12, 21]


# --- O1: where run() may be called ------------------------------------------------------------


@pytest.fixture
def no_leftovers():
    """Fail where a coroutine was made and never awaited."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
        gc.collect()
    assert [str(warning.message) for warning in caught] == []


@pytest.mark.usefixtures("no_leftovers")
def test_o1_outside_a_loop_run_raises_one_clear_error():
    with pytest.raises(WorkflowRuntimeError, match=r"Echo\.run\(\) needs a running event loop"):
        Echo().run()


@pytest.mark.usefixtures("no_leftovers")
@anyio_only
async def test_o1_in_a_worker_thread_run_raises_one_clear_error():
    def call() -> None:
        with pytest.raises(WorkflowRuntimeError, match=r"from_thread\.run_sync\(\)"):
            Echo().run()

    await anyio.to_thread.run_sync(call)


@pytest.mark.usefixtures("no_leftovers")
@anyio_only
async def test_o1_in_a_foreign_thread_run_raises_one_clear_error():
    caught: list[Exception] = []

    def call() -> None:
        try:
            Echo().run()
        except Exception as exc:
            caught.append(exc)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert [type(exc) for exc in caught] == [WorkflowRuntimeError]


@anyio_only
async def test_o1_a_worker_thread_starts_a_run_through_the_loop():
    handler = await anyio.to_thread.run_sync(
        lambda: anyio.from_thread.run_sync(lambda: Echo().run(a=1))
    )
    assert await handler == {"a": 1}


@anyio_only
async def test_o1_no_step_begins_inside_run():
    begun: list[str] = []

    class Noting(Workflow):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            begun.append("step")
            return StopEvent()

    handler = Noting().run()
    assert begun == []
    assert not handler.is_done()
    await handler
    assert begun == ["step"]


def test_o1_a_workflow_can_be_made_outside_a_loop_and_run_in_several():
    workflow = Echo()
    for n in range(2):

        async def main(n: int = n) -> Any:
            return await workflow.run(n=n)

        assert asyncio.run(main()) == {"n": n}


@pytest.mark.skipif(not hasattr(asyncio, "eager_task_factory"), reason="new in Python 3.12")
def test_o1_no_step_begins_inside_run_under_an_eager_task_factory():
    begun: list[str] = []

    class Noting(Workflow):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            begun.append("step")
            return StopEvent(result="eager")

    async def main() -> Any:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        handler = Noting().run()
        assert begun == []
        return await handler

    assert asyncio.run(main()) == "eager"


@anyio_only
async def test_e4_a_failing_start_event_starts_nothing():
    with pytest.raises(EventValidationError):
        Typed().run(zzz=1)
    assert await Typed().run(topic="tea") == Total(total=1)
