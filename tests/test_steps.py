"""`@step`: what it marks, how signatures are read, and the faults of one signature (V1)."""

import functools
import sys
from collections.abc import Callable
from typing import Annotated, Any, Never, NoReturn, Optional, TypeVar, Union

import pytest

from anyio_workflows import Context, Event, StartEvent, StopEvent, Workflow, step
from anyio_workflows.collect import All, Collect, Take
from anyio_workflows.errors import WorkflowConfigurationError, WorkflowValidationError
from anyio_workflows.graph import EventParam
from anyio_workflows.steps import StepConfig

pytestmark = pytest.mark.anyio
T = TypeVar("T")


class A(Event):
    n: int = 0


class SubA(A):
    pass


class B(Event):
    pass


def spec(function: Callable[..., Any], **options: Any):
    """Read one step of a workflow that has no other."""
    cls = type("Probe", (Workflow,), {"probe": step(**options)(function)})
    return cls(disable_validation=True).graph.steps["probe"]


def faults(define: Callable[[], object]) -> str:
    with pytest.raises(WorkflowValidationError) as caught:
        define()
    return str(caught.value)


# --- The decorator ----------------------------------------------------------------------------


def test_step_returns_the_very_function():
    async def one(self, ev: A) -> B: ...

    assert step(one) is one
    assert step()(one) is one
    assert step(num_workers=2)(one) is one


def test_step_keeps_what_it_was_told():
    @step(num_workers=2, accept_event_subclasses=True, skip_graph_checks=["dead_end"])
    async def one(self, ev: A) -> B: ...

    @step
    async def two(self, ev: A) -> B: ...

    @step(timeout=1.5)
    async def three(self, ev: A) -> B: ...

    assert StepConfig.of(one) == StepConfig(2, True, frozenset({"dead_end"}), None)
    assert StepConfig.of(two) == StepConfig(4, False, frozenset(), None)
    assert StepConfig.of(three) == StepConfig(4, False, frozenset(), 1.5)
    assert StepConfig.of(len) is StepConfig.of(None) is None


@pytest.mark.parametrize("outer", [step, step()])
def test_step_goes_on_static_methods_either_way_round(outer):
    async def one(ev: StartEvent) -> StopEvent: ...

    class Outside(Workflow):
        probe = outer(staticmethod(one))

    class Inside(Workflow):
        probe = staticmethod(outer(one))

    for cls in (Outside, Inside):
        found = cls().graph.steps["probe"]
        assert (found.function, found.is_method) == (one, False)


@pytest.mark.parametrize("bad", [0, -1, 1.0, "4", None, True])
def test_v1_num_workers_must_be_a_positive_int(bad: Any):
    async def fetch(self, ev: A) -> B: ...

    text = faults(lambda: step(num_workers=bad)(fetch))
    assert text == f"step fetch: num_workers must be a positive int, not {bad!r}"


@pytest.mark.parametrize("bad", [0, -1, "4", True, float("nan"), 10**400])
def test_v1_timeout_must_be_a_positive_number(bad: Any):
    async def fetch(self, ev: A) -> B: ...

    text = faults(lambda: step(timeout=bad)(fetch))
    assert text == (
        f"step fetch: timeout must be a positive number of seconds, or None, not {bad!r}"
    )


def test_v1_unknown_names_in_skip_graph_checks():
    async def fetch(self, ev: A) -> B: ...

    text = faults(lambda: step(skip_graph_checks=["dead_ends"])(fetch))
    assert "'dead_ends'" in text
    assert "did you mean 'dead_end'?" in text


@pytest.mark.parametrize("thing", [5, "name", StartEvent()])
def test_v1_step_goes_on_functions_only(thing: Any):
    assert "@step marks a function, not a" in faults(lambda: step(thing))


def test_unknown_options_are_refused_by_python():
    with pytest.raises(TypeError, match="workers"):
        step(workers=3)


# --- Reading signatures -----------------------------------------------------------------------


def test_a_step_without_context():
    async def probe(self, ev: A) -> B: ...

    found = spec(probe)
    assert (found.accepts, found.returns, found.returns_none) == ((A,), (B,), False)
    assert (found.event_params, found.context_param, found.is_method) == (
        (EventParam("ev", (A,)),),
        None,
        True,
    )
    assert (found.is_plain, found.is_join, found.is_async) == (True, False, True)


async def ctx_first(self, ctx: Context, ev: A) -> B: ...
async def ctx_last(self, ev: A, ctx: Context) -> B: ...
async def ctx_keyword(self, ev: A, *, ctx: Context) -> B: ...
async def all_keywords(self, *, ctx: Context, ev: A) -> B: ...
async def ctx_text(self, ctx: "Context", ev: "A") -> "B": ...
async def ctx_annotated(self, ctx: Annotated[Context, "mine"], ev: A) -> B: ...
async def with_default(self, ctx: Context, ev: A, retries: int = 3, note="x") -> B: ...


async def test_a_context_that_may_be_none_is_given_all_the_same():
    class Flow(Workflow):
        @step
        async def only(self, ev: StartEvent, ctx: Optional[Context] = None) -> StopEvent:  # noqa: UP045
            return StopEvent(result=type(ctx))

    assert issubclass(await Flow().run(), Context)


@pytest.mark.parametrize(
    "probe",
    [
        ctx_first,
        ctx_last,
        ctx_keyword,
        all_keywords,
        ctx_text,
        ctx_annotated,
        with_default,
    ],
)
def test_the_context_may_stand_anywhere(probe):
    found = spec(probe)
    assert (found.context_param, found.event_params) == ("ctx", (EventParam("ev", (A,)),))
    assert (found.accepts, found.returns) == ((A,), (B,))


def returning(annotation: Any) -> Callable[..., Any]:
    async def probe(self, ev): ...

    probe.__annotations__ = {"ev": A, "return": annotation}
    return probe


@pytest.mark.parametrize(
    ("annotation", "returns", "optional"),
    [
        (B, (B,), False),
        (None, (), True),
        (type(None), (), True),
        (B | None, (B,), True),
        (Optional[B], (B,), True),  # noqa: UP045
        (A | B, (A, B), False),
        (Union[A, B, None], (A, B), True),  # noqa: UP007
        (Annotated[B, "x"], (B,), False),
        (Annotated[A | None, "x"], (A,), True),
        (Annotated[A, "x"] | B, (A, B), False),
        ("A | B", (A, B), False),
        ("Optional[B]", (B,), True),
        (NoReturn, (), False),
        (Never, (), False),
        (StopEvent, (StopEvent,), False),
    ],
    ids=str,
)
def test_return_annotations(annotation: Any, returns: tuple[type[Event], ...], optional: bool):
    found = spec(returning(annotation))
    assert (found.returns, found.returns_none) == (returns, optional)


def accepting(annotation: Any) -> Callable[..., Any]:
    async def probe(self, ev): ...

    probe.__annotations__ = {"ev": annotation, "return": None}
    return probe


@pytest.mark.parametrize(
    ("annotation", "accepts"),
    [
        (A, (A,)),
        (A | B, (A, B)),
        (Union[A, B], (A, B)),  # noqa: UP007
        (Annotated[A | B, "x"], (A, B)),
        ("A | B", (A, B)),
        (Event, (Event,)),
    ],
    ids=str,
)
def test_event_annotations(annotation: Any, accepts: tuple[type[Event], ...]):
    assert spec(accepting(annotation)).accepts == accepts


@pytest.mark.parametrize(
    ("annotation", "one", "many", "optional"),
    [
        (list[B], (), (B,), False),
        (list[A | B], (), (A, B), False),
        (list[A] | None, (), (A,), True),
        (A | list[B], (A,), (B,), False),
        (list[A] | list[B] | A, (A,), (A, B), False),
        (list[Annotated[A, "x"]], (), (A,), False),
        (Annotated[list[A], "x"], (), (A,), False),
        ("list[A] | None", (), (A,), True),
    ],
    ids=str,
)
def test_f1_lists_in_return_annotations(annotation: Any, one: Any, many: Any, optional: bool):
    found = spec(returning(annotation))
    assert (found.returns, found.returns_list, found.returns_none) == (one, many, optional)
    assert found.produces == tuple(dict.fromkeys([*one, *many]))


@pytest.mark.parametrize(
    ("annotation", "accepts", "policy"),
    [
        (list[A], (A,), All()),
        (list[A | B], (A, B), All()),
        (Annotated[list[A], Collect()], (A,), All()),
        (Annotated[list[A], "x"], (A,), All()),
        (Annotated[list[A], "x", Collect(Take(2))], (A,), Take(2)),
        (Annotated[list[A], Collect(Take(1, cancel=True))], (A,), Take(1, cancel=True)),
        ("Annotated[list[A | B], Collect(Take(3))]", (A, B), Take(3)),
    ],
    ids=str,
)
def test_f2_a_list_parameter_joins(annotation: Any, accepts: Any, policy: All | Take):
    found = spec(accepting(annotation))
    assert found.event_params == (EventParam("ev", accepts, policy),)
    assert (found.accepts, found.is_join, found.is_plain) == (accepts, True, False)


def test_f4_several_event_parameters_are_a_set():
    async def probe(self, a: A, ctx: Context, b: B | StartEvent, *, c: A) -> B: ...

    found = spec(probe)
    assert found.event_params == (
        EventParam("a", (A,)),
        EventParam("b", (B, StartEvent)),
        EventParam("c", (A,)),
    )
    assert found.accepts == (A, B, StartEvent)
    assert (found.is_join, found.is_plain, found.context_param) == (False, False, "ctx")


def test_f4_parameters_may_take_the_same_types_or_different_ones_in_any_order():
    async def probe(self, a: A | B, b: B | A, c: StartEvent) -> B: ...

    assert [param.accepts for param in spec(probe).event_params] == [(A, B), (B, A), (StartEvent,)]


def test_r5_a_plain_def_may_be_a_step():
    def probe(self, ctx: Context, ev: A) -> list[B]: ...

    found = spec(probe)
    assert (found.is_async, found.is_method, found.returns_list) == (False, True, (B,))


@pytest.mark.skipif(sys.version_info < (3, 12), reason="`type X = ...` is new in Python 3.12")
def test_type_aliases():
    namespace: dict[str, Any] = {"A": A, "B": B}
    exec("type Either = A | B\ntype Maybe = Either | None", namespace)
    assert spec(accepting(namespace["Either"])).accepts == (A, B)
    found = spec(returning(namespace["Maybe"]))
    assert (found.returns, found.returns_none) == ((A, B), True)
    assert spec(returning(namespace["Either"] | StopEvent)).returns == (A, B, StopEvent)


def test_names_that_are_local_to_a_function():
    class Local(Event):
        pass

    class Flow(Workflow):
        @step
        async def one(self, ev: "StartEvent") -> "Local | Later": ...

        @step
        async def two(self, ev: "Local | Later") -> StopEvent: ...

    class Later(Event):
        pass

    assert Flow().graph.steps["one"].returns == (Local, Later)


def test_names_that_are_local_are_still_known_after_the_function_has_returned():
    def make() -> type[Workflow]:
        class Local(Event):
            pass

        class Flow(Workflow):
            @step
            async def one(self, ev: StartEvent) -> "Local": ...

            @step
            async def two(self, ev: "Local") -> StopEvent: ...

        return Flow

    make()().validate()


def test_a_generic_event_stands_for_its_class():
    from typing import Generic

    class Box(Event, Generic[T]):
        content: T

    async def probe(self, ev: Box[int]) -> Box[str]: ...

    found = spec(probe)
    assert (found.accepts, found.returns) == ((Box,), (Box,))


def test_a_decorated_step_keeps_its_signature():
    def logged(func):
        @functools.wraps(func)
        async def call(*args, **kwargs):
            return await func(*args, **kwargs)

        return call

    @logged
    async def probe(self, ctx: Context, ev: A) -> B: ...

    found = spec(probe)
    assert (found.accepts, found.returns, found.context_param) == ((A,), (B,), "ctx")


# --- How a step is called ---------------------------------------------------------------------


def by_name_only(func):
    @functools.wraps(func)
    async def call(self, **kwargs):
        return await func(self, **kwargs)

    return call


async def event(self, ev: A) -> None:
    return self, ev


async def context_event(self, ctx: Context, ev: A) -> None:
    return self, ctx, ev


async def event_context(self, ev: A, ctx: Context) -> None:
    return self, ev, ctx


async def event_by_name(self, *, ev: A) -> None:
    return self, ev


async def context_and_event_by_name(self, ctx: Context, *, ev: A) -> None:
    return self, ctx, ev


async def something_between(self, n: int = 1, ev: A = None) -> None:
    return self, n, ev


async def something_after(self, ev: A, n: int = 1) -> None:
    return self, ev, n


async def two_events(self, b: B, a: A) -> None:
    return self, b, a


async def many_events(self, events: list[A]) -> None:
    return self, events


@by_name_only
async def wrapped(self, ctx: Context, ev: A) -> None:
    return self, ctx, ev


@pytest.mark.parametrize(
    ("function", "payload", "got"),
    [
        (event, "ev", ("self", "ev")),
        (context_event, "ev", ("self", "ctx", "ev")),
        (event_context, "ev", ("self", "ev", "ctx")),
        (event_by_name, "ev", ("self", "ev")),
        (context_and_event_by_name, "ev", ("self", "ctx", "ev")),
        (something_between, "ev", ("self", 1, "ev")),
        (something_after, "ev", ("self", "ev", 1)),
        (two_events, ("b", "a"), ("self", "b", "a")),
        (many_events, ["a", "a"], ("self", ["a", "a"])),
        (wrapped, "ev", ("self", "ctx", "ev")),
    ],
)
def test_each_parameter_gets_what_it_asks_for(function, payload, got):
    found = spec(function)
    for call in (found.call, found.invoke):
        with pytest.raises(StopIteration) as returned:
            call("self", "ctx", payload).send(None)
        assert returned.value.value == got


async def free_event(ev: A) -> None:
    return (ev,)


async def free_context_event(ctx: Context, ev: A) -> None:
    return ctx, ev


async def free_event_context(ev: A, ctx: Context) -> None:
    return ev, ctx


@pytest.mark.parametrize(
    ("function", "got"),
    [
        (free_event, ("ev",)),
        (free_context_event, ("ctx", "ev")),
        (free_event_context, ("ev", "ctx")),
    ],
)
def test_a_free_step_is_not_given_the_workflow(function, got):
    found = spec(staticmethod(function))
    for call in (found.call, found.invoke):
        with pytest.raises(StopIteration) as returned:
            call("self", "ctx", "ev").send(None)
        assert returned.value.value == got


# --- Faults of one signature (V1) -------------------------------------------------------------


async def no_annotation(self, ev) -> StopEvent: ...
async def no_return(self, ev: StartEvent): ...
async def no_event(self) -> StopEvent: ...
async def only_context(self, ctx: Context) -> StopEvent: ...
async def list_and_event(self, a: list[StartEvent], b: StartEvent) -> StopEvent: ...
async def two_lists(self, a: list[StartEvent], b: list[A]) -> StopEvent: ...
async def overlapping(self, a: StartEvent | A, b: A | B) -> StopEvent: ...
async def bad_list(self, ev: list[int]) -> StopEvent: ...
async def mixed_list(self, ev: list[StartEvent | int]) -> StopEvent: ...
async def list_or_event(self, ev: list[A] | StartEvent) -> StopEvent: ...
async def returns_stops(self, ev: StartEvent) -> list[A | StopEvent]: ...
async def returns_ints(self, ev: StartEvent) -> list[A | int]: ...
async def mixed(self, ev: StartEvent | int) -> StopEvent: ...
async def returns_int(self, ev: StartEvent) -> int: ...
async def returns_mixed(self, ev: StartEvent) -> StopEvent | str: ...
async def unknown_param(self, ev: StartEvent, n: int) -> StopEvent: ...
async def positional_only(self, ev: StartEvent, /) -> StopEvent: ...
async def positional_context(self, ctx: Context, /, ev: StartEvent) -> StopEvent: ...
async def star_event(self, *ev: StartEvent) -> StopEvent: ...
async def two_contexts(self, ctx: Context, ev: StartEvent, ctx2: Context) -> StopEvent: ...
async def no_self(*, ev: StartEvent) -> StopEvent: ...
async def only_none(self, ev: None) -> StopEvent: ...
async def no_type(self, ev: "1 +") -> StopEvent: ...  # noqa: F722


async def yields(self, ev: StartEvent) -> StopEvent:
    yield StopEvent()


def yields_plainly(self, ev: StartEvent) -> StopEvent:
    yield StopEvent()


@pytest.mark.parametrize(
    ("probe", "words"),
    [
        (no_annotation, "parameter 'ev' has no annotation"),
        (no_return, "no return annotation"),
        (no_event, "no parameter takes an event"),
        (only_context, "no parameter takes an event"),
        (list_and_event, "a step that joins a list of events takes no other events; split it"),
        (two_lists, "a step that joins a list of events takes no other events; split it"),
        (overlapping, "parameters 'a' and 'b' share some types"),
        (bad_list, "parameter 'ev' is neither an event nor the context but list[int]"),
        (mixed_list, "'ev' mixes events with int"),
        (list_or_event, "parameter 'ev' takes events one by one and in lists"),
        (returns_stops, "it returns StopEvent in a list; one stop event ends the run"),
        (returns_ints, "it returns int, which is not an event"),
        (mixed, "'ev' mixes events with int"),
        (returns_int, "it returns int, which is not an event"),
        (returns_mixed, "it returns str, which is not an event"),
        (unknown_param, "parameter 'n' is neither an event nor the context but int"),
        (positional_only, "parameter 'ev'"),
        (positional_context, "parameter 'ctx'"),
        (star_event, "parameter 'ev'"),
        (two_contexts, "ctx, ctx2"),
        (no_self, "has no 'self' parameter"),
        (only_none, "parameter 'ev'"),
        (no_type, "'ev' is annotated with '1 +': it is not a type"),
        (yields, "it yields; return one event, and use ctx.send_event() for more"),
        (yields_plainly, "it yields; return one event, or a list of events"),
    ],
)
def test_v1_faults_of_a_signature_raise_where_the_class_is_defined(probe, words: str):
    text = faults(lambda: type("Probe", (Workflow,), {"probe": step(probe)}))
    assert words in text
    assert text.startswith("Probe: step probe: ")


def test_v1_all_faults_of_all_signatures_are_reported_together():
    with pytest.raises(WorkflowValidationError) as caught:

        class Flow(Workflow):
            one = step(list_and_event)
            two = step(no_return)
            three = step(yields_plainly)

            @step
            async def four(self, ev, n: int): ...

    found = caught.value.faults
    assert [fault.split(":")[0] for fault in found] == [
        "step one",
        "step two",
        "step three",
        "step four",
        "step four",
        "step four",
    ]
    assert str(caught.value).startswith("Flow has 6 faults:\n  1. step one: ")


@pytest.mark.parametrize(("subclasses", "fine"), [(False, True), (True, False)])
def test_f4_parameters_may_not_overlap_by_subclasses_either(subclasses: bool, fine: bool):
    async def probe(self, a: A, b: SubA) -> B: ...

    def define() -> object:
        return spec(probe, accept_event_subclasses=subclasses)

    if fine:
        define()
    else:
        assert "parameters 'a' and 'b' share some types" in faults(define)


def test_v1_an_unresolved_name_raises_at_the_first_instantiation():
    class Flow(Workflow):
        @step
        async def one(self, ev: StartEvent) -> "Nowhere": ...  # noqa: F821

    with pytest.raises(WorkflowValidationError) as caught:
        Flow()
    assert caught.value.faults == (
        "step one: the annotation of 'return' names 'Nowhere', which is not defined",
    )
    with pytest.raises(WorkflowValidationError):  # and again
        Flow(disable_validation=True)


def test_v1_unresolved_names_of_all_steps_are_reported_together():
    class Flow(Workflow):
        @step
        async def one(self, ev: StartEvent) -> "No1": ...  # noqa: F821

        @step
        async def two(self, ev: "No2") -> "No3": ...  # noqa: F821

    with pytest.raises(WorkflowValidationError) as caught:
        Flow()
    assert [name in str(caught.value) for name in ("No1", "No2", "No3")] == [True] * 3


def test_v1_a_name_that_is_defined_later_in_the_module():
    class Flow(Workflow):
        @step
        async def one(self, ev: StartEvent) -> "DefinedLater": ...

        @step
        async def two(self, ev: "DefinedLater") -> StopEvent: ...

    Flow().validate()


def test_v1_a_missing_attribute_of_a_module_is_reported():
    def define() -> Workflow:
        class Flow(Workflow):
            @step
            async def one(self, ev: StartEvent) -> "sys.nothing": ...

        return Flow()

    assert "step one" in faults(define)
    assert "'nothing'" in faults(define)


# --- The markers of joins (F4) ----------------------------------------------------------------


@pytest.mark.parametrize("bad", [0, -1, 1.0, "1", None, True])
def test_f4_take_takes_a_positive_int(bad: Any):
    with pytest.raises(WorkflowConfigurationError) as caught:
        Take(bad)
    assert str(caught.value) == f"Take() takes a positive int, not {bad!r}"


@pytest.mark.parametrize("bad", [2, None, Take, "All"])
def test_f4_collect_takes_a_policy(bad: Any):
    with pytest.raises(WorkflowConfigurationError) as caught:
        Collect(bad)
    assert str(caught.value) == f"Collect() takes All() or Take(n), not {bad!r}"


def test_f4_the_markers_compare_by_value():
    assert Collect() == Collect(All())
    assert Collect(Take(2)) == Collect(Take(2, cancel=False)) != Collect(Take(2, cancel=True))


# --- Free functions and sharing ---------------------------------------------------------------


async def run_to_end(workflow: Workflow, **fields: Any) -> Any:
    return await workflow.run(**fields)


async def test_free_functions_join_a_workflow():
    class Flow(Workflow):
        pass

    @step(workflow=Flow)
    async def first(ev: StartEvent) -> A:
        return A(n=ev.n)

    @step
    async def second(ctx: Context, ev: A) -> StopEvent:
        return StopEvent(result=ev.n + ctx.is_running)

    Flow.add_step(second)
    assert list(Flow().graph.steps) == ["first", "second"]
    assert await run_to_end(Flow(), n=1) == 2


async def test_a_free_function_can_call_itself_like_any_function():
    class Flow(Workflow):
        pass

    @step(workflow=Flow)
    async def only(ev: StartEvent) -> StopEvent:
        return StopEvent(result="free")

    assert (await only(StartEvent())).result == "free"
    assert await run_to_end(Flow()) == "free"


def test_add_step_refuses_what_is_no_step_and_what_is_there_already():
    class Flow(Workflow):
        @step
        async def one(self, ev: StartEvent) -> StopEvent: ...

    async def unmarked(ev: A) -> B: ...

    @step
    async def one(ev: A) -> B: ...

    assert "mark it with @step" in faults(lambda: Flow.add_step(unmarked))
    assert "has a step 'one' already" in faults(lambda: Flow.add_step(one))
    assert list(Flow().graph.steps) == ["one"]


def test_a_faulty_free_function_leaves_the_workflow_as_it_was():
    class Flow(Workflow):
        @step
        async def one(self, ev: StartEvent) -> StopEvent: ...

    @step
    async def two(ev: A): ...

    assert "no return annotation" in faults(lambda: Flow.add_step(two))
    assert list(Flow().graph.steps) == ["one"]
    Flow().validate()


async def test_a_step_added_to_a_base_class_is_seen_by_subclasses():
    class Base(Workflow):
        pass

    class Child(Base):
        @step
        async def second(self, ev: A) -> StopEvent:
            return StopEvent(result=ev.n)

    class GrandChild(Child):
        pass

    assert "no step accepts StartEvent" in faults(GrandChild().validate)

    @step(workflow=Base)
    async def first(ev: StartEvent) -> A:
        return A(n=7)

    assert await run_to_end(Child()) == await run_to_end(GrandChild()) == 7
    assert "second" not in Base().graph.steps


def test_a_step_added_to_a_subclass_is_not_seen_by_its_base():
    class Base(Workflow):
        @step
        async def one(self, ev: StartEvent) -> StopEvent: ...

    class Child(Base):
        pass

    @step(workflow=Child, skip_graph_checks=["reachability"])
    async def two(ev: A) -> StopEvent: ...

    assert list(Base().graph.steps) == ["one"]
    assert list(Child().graph.steps) == ["one", "two"]


def test_a_method_of_a_subclass_overrides_a_free_step_of_its_base():
    class Base(Workflow):
        pass

    @step(workflow=Base)
    async def one(ev: StartEvent) -> StopEvent: ...

    class Child(Base):
        @step
        async def one(self, ev: StartEvent) -> A | StopEvent: ...

    assert Child().graph.steps["one"].returns == (A, StopEvent)
    assert Child().graph.steps["one"].is_method
    assert not Base().graph.steps["one"].is_method


@pytest.mark.parametrize("workflow", [5, int, Workflow])
def test_the_workflow_of_a_free_function_must_be_a_class_of_the_users(workflow: Any):
    async def only(ev: StartEvent) -> StopEvent: ...

    try:
        assert "step only" in faults(lambda: step(workflow=workflow)(only))
    finally:
        Workflow._free_steps.pop("only", None)
        Workflow._specs = {}
        Workflow._forget_graph()


def test_marks_in_the_wrong_order_or_on_the_wrong_thing_are_reported():
    async def probe(self, ev: StartEvent) -> StopEvent: ...

    def partial() -> object:
        return type("Flow", (Workflow,), {"probe": step(functools.partial(probe))})

    def on_class_method() -> object:
        return type("Flow", (Workflow,), {"probe": step(classmethod(probe))})

    def in_class_method() -> object:
        return type("Flow", (Workflow,), {"probe": classmethod(step(probe))})

    for define in (partial, on_class_method, in_class_method):
        assert "step" in faults(define)


async def test_one_function_may_be_a_step_of_two_workflows():
    @step
    async def first(ev: StartEvent) -> A:
        return A(n=ev.n)

    class Adds(Workflow):
        @step
        async def second(self, ev: A) -> StopEvent:
            return StopEvent(result=ev.n + 1)

    class Doubles(Workflow):
        @step
        async def second(self, ev: A) -> StopEvent:
            return StopEvent(result=ev.n * 2)

    Adds.add_step(first)
    Doubles.add_step(first)
    assert await run_to_end(Adds(), n=5) == 6
    assert await run_to_end(Doubles(), n=5) == 10


async def test_one_method_may_be_a_step_of_two_classes():
    class Adds(Workflow):
        by = 1

        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            return StopEvent(result=ev.n + self.by)

    class Other(Workflow):
        by = 10
        only = Adds.only

    assert await run_to_end(Adds(), n=5) == 6
    assert await run_to_end(Other(), n=5) == 15


def test_marking_a_function_again_for_another_workflow_leaves_the_first_alone():
    class One(Workflow):
        pass

    class Two(Workflow):
        pass

    async def only(ev: StartEvent) -> StopEvent: ...

    step(workflow=One, num_workers=1)(only)
    step(workflow=Two, num_workers=9)(only)
    assert One().graph.steps["only"].config.num_workers == 1
    assert Two().graph.steps["only"].config.num_workers == 9


# --- Inheritance ------------------------------------------------------------------------------


class Base(Workflow):
    @step
    async def first(self, ev: StartEvent) -> A:
        return A(n=1)

    @step
    async def second(self, ev: A) -> StopEvent:
        return StopEvent(result=ev.n)


async def test_a_subclass_overrides_a_step_by_a_step():
    class Child(Base):
        @step(num_workers=1)
        async def second(self, ev: A) -> StopEvent:
            return StopEvent(result=(await super().second(ev)).result + 10)

    assert list(Child().graph.steps) == ["first", "second"]
    assert Child().graph.steps["second"].config.num_workers == 1
    assert (await run_to_end(Base()), await run_to_end(Child())) == (1, 11)


def test_a_subclass_may_mark_a_step_of_its_base_anew():
    class Child(Base):
        second = step(num_workers=1)(Base.second)

    assert Child().graph.steps["second"].config.num_workers == 1
    assert Base().graph.steps["second"].config.num_workers == 4


def test_a_subclass_may_turn_a_free_step_into_a_method_and_back():
    @step
    async def only(ev: StartEvent) -> StopEvent: ...

    class Static(Workflow):
        probe = staticmethod(only)

    with pytest.raises(WorkflowValidationError, match="no parameter takes an event"):

        class Method(Static):
            probe = only


def test_a_step_may_not_take_the_place_of_what_workflow_needs():
    for name in ("run", "validate"):
        text = faults(lambda name=name: type("Flow", (Workflow,), {name: step(ctx_first)}))
        assert repr(name) in text


def test_v1_a_subclass_drops_a_step_by_none():
    class WithNone(Base):
        second = None

    class Again(WithNone):
        @step
        async def third(self, ev: A) -> StopEvent: ...

    assert list(WithNone().graph.steps) == ["first"]
    assert list(Again().graph.steps) == ["first", "third"]
    assert list(Base().graph.steps) == ["first", "second"]


async def test_steps_come_from_mixins_too():
    class Ending:
        @step
        async def second(self, ev: A) -> StopEvent:
            return StopEvent(result="mixin")

    class Flow(Ending, Workflow):
        @step
        async def first(self, ev: StartEvent) -> A:
            return A()

    assert await run_to_end(Flow()) == "mixin"


async def test_the_first_base_wins_among_several():
    class Ending:
        @step
        async def second(self, ev: A) -> StopEvent:
            return StopEvent(result="mixin")

    class Front(Ending, Base):
        pass

    class Back(Base, Ending):
        pass

    assert await run_to_end(Front()) == "mixin"
    assert await run_to_end(Back()) == 1


async def test_the_step_that_runs_is_the_one_that_was_declared_with_its_context():
    class Flow(Workflow):
        @step
        async def only(self, *, ctx: Context, ev: StartEvent) -> StopEvent:
            assert isinstance(ctx, Context)
            return StopEvent(result=(type(self), ctx is Context.get_step_context()))

    assert await run_to_end(Flow()) == (Flow, True)


class DefinedLater(Event):
    pass
