"""Values that only the hooks of a cattrs converter know how to write: `Workflow(converter=...)` (P7)."""

from __future__ import annotations

import gc
import json
import weakref
from abc import ABC
from collections import OrderedDict, deque
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import anyio
import attrs
import cattrs
import pytest
from cattrs import Converter

from anyio_workflows import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)
from anyio_workflows._json.codec import JsonCodec
from anyio_workflows._json.hooks import Hooks
from anyio_workflows.checkpoint import checkpointed
from anyio_workflows.errors import (
    ContextSerdeError,
    WorkflowConfigurationError,
    WorkflowValidationError,
)
from anyio_workflows.wire import from_data, to_data

from .hostile import LONG, refused
from .running import run_script
from .samples import Item

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_threads")]


class Array:
    """Somebody else's class."""

    def __init__(self, *items: float) -> None:
        self.items = items

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.items == self.items

    def __hash__(self) -> int:
        return hash(self.items)

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self.items}"


class Masked(Array):
    mask = 0


class Message:
    """The base of somebody else's classes, whose data says which of them it is."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.text == self.text

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.text!r})"

    __hash__ = None  # type: ignore[assignment]


class Human(Message):
    pass


class Machine(Message):
    pass


def to_bytes(array: Array) -> bytes:
    return b",".join(str(float(item)).encode() for item in array.items)


def from_bytes(data: Any, cls: type[Array]) -> Array:
    assert type(data) is bytes
    return cls(*map(float, data.split(b",")))


def message_data(message: Message) -> Any:
    return {"kind": type(message).__name__, "text": message.text}


def message_from(data: Any, cls: type) -> Message:
    return {"Human": Human, "Machine": Machine}[data["kind"]](data["text"])


def converter() -> Converter:
    made = Converter()
    made.register_unstructure_hook(Array, to_bytes)
    made.register_structure_hook(Array, from_bytes)
    made.register_unstructure_hook(Message, message_data)
    made.register_structure_hook(Message, message_from)
    return made


class Sample(Event):
    array: Array
    arrays: list[Array] = []
    maybe: Array | None = None
    by_name: dict[str, Array] = {}
    either: Array | str | list[int] = ""
    message: Message = Human("hi")
    anything: Any = None


@attrs.define
class State:
    arrays: list[Array] = attrs.Factory(list)


class Flow(Workflow):
    @step
    async def begin(self, ctx: Context[State], ev: StartEvent) -> Sample:
        async with ctx.store.edit_state() as state:
            state.arrays = [Array(7)]
        return Sample(array=Array(1, 2), anything=[Machine("ok")])

    @step
    async def work(self, ctx: Context[State], ev: Sample) -> StopEvent:
        await ctx.wait_for_event(HumanResponseEvent, InputRequiredEvent(array=ev.array))
        return StopEvent(result=(ev, await ctx.store.get("arrays")))


def flow(made: Any = None) -> Flow:
    return Flow(timeout=None, converter=made or converter())


async def saved(workflow: Workflow[Any]) -> Any:
    handler = workflow.run()
    await anext(handler.stream_events())
    data = json.loads(json.dumps(handler.ctx.to_dict()))
    await handler.cancel_run()
    return data


async def test_p7_a_run_is_saved_and_continued_with_the_hooks_of_its_workflow(
    tmp_path: Path,
) -> None:
    data = await saved(flow())
    workflow = flow()
    handler = workflow.run(ctx=Context.from_dict(workflow, data))
    await handler.send_event(HumanResponseEvent())
    expected = (Sample(array=Array(1, 2), anything=[Machine("ok")]), [Array(7)])
    assert await handler == expected

    for _ in range(2):
        async with checkpointed(flow(), tmp_path / "job.json") as handler:
            await anyio.sleep(1)
            await handler.cancel_run()
    async with checkpointed(flow(), tmp_path / "job.json") as handler:
        await handler.send_event(HumanResponseEvent())
        assert await handler == expected


async def test_p7_a_context_uses_the_hooks_of_the_workflow_that_runs_with_it() -> None:
    bare = Flow(timeout=None)
    ctx = Context(bare)
    await ctx.store.set("arrays", [Array(1)])
    refused(ctx.to_dict)
    handler = flow().run(ctx=ctx)
    await anyio.sleep(1)
    data = handler.ctx.to_dict()
    await handler.cancel_run()
    assert ctx.to_dict()["state"] == data["state"]
    handler = bare.run(ctx=ctx)
    await anyio.sleep(1)
    assert ctx.to_dict()["state"] == data["state"]  # it was written before, and still can be
    await handler.cancel_run()


# --- The form of the values -----------------------------------------------------------------------

CODEC = JsonCodec([Sample, State, Message, Human])
ARRAYS = JsonCodec([State])
HOOKS = Hooks(converter())
HERE = __name__


def through_json(value: Any, hooks: Hooks = HOOKS, codec: JsonCodec = CODEC) -> Any:
    data = json.loads(json.dumps(codec.dump(value, hooks=hooks), allow_nan=False))
    return codec.load(data, hooks=hooks)


def tagged(tag: str, value: Any) -> Any:
    return {"$": tag, "value": value}


BYTES = tagged("bytes", "MS4wLDIuMA==")


@pytest.mark.parametrize(
    ("value", "data"),
    [
        (Array(1.0, 2.0), tagged(f"{HERE}:Array", BYTES)),
        ([Array(1.0, 2.0)], [tagged(f"{HERE}:Array", BYTES)]),
        (Human("a"), tagged(f"{HERE}:Human", {"kind": "Human", "text": "a"})),
        (Machine("a"), tagged(f"{HERE}:Message", {"kind": "Machine", "text": "a"})),
        (Array, tagged("type", f"{HERE}:Array")),
        ({Array(1.0, 2.0)}, tagged("set", [tagged(f"{HERE}:Array", BYTES)])),
        (ValueError(Array(1.0)), ...),
    ],
    ids=lambda value: str(type(value).__name__),
)
def test_p7_a_value_is_written_with_its_tag_and_comes_back(value: Any, data: Any) -> None:
    written = CODEC.dump(value, hooks=HOOKS)
    assert data is ... or written == data
    back = through_json(value)
    assert type(back) is type(value)
    assert back == value or back.args == value.args


def test_p7_the_tag_is_left_out_where_the_annotation_names_the_class() -> None:
    holder = attrs.make_class("Holder", {"one": attrs.field(type=Message | None)})
    codec = JsonCodec([holder])
    for message, written in [
        (Human("a"), tagged(f"{HERE}:Message", {"kind": "Human", "text": "a"})),
        (None, None),
    ]:
        assert codec.dump(holder(message), hooks=HOOKS)["value"] == {"one": written}
    holder = attrs.make_class("Holder", {"one": attrs.field(type=Human | None)})
    codec = JsonCodec([holder])
    assert codec.dump(holder(Human("a")), hooks=HOOKS)["value"]["one"] == {
        "kind": "Human",
        "text": "a",
    }
    assert through_json(holder(Human("a")), codec=codec) == holder(Human("a"))


@pytest.mark.parametrize(
    "field",
    [
        {"arrays": [Array(1), Array(2)]},
        {"maybe": Array(1)},
        {"by_name": {"a": Array(1)}},
        {"either": Array(1)},
        {"either": "a"},
        {"either": [1]},
        {"message": Machine("a")},
        {"anything": ({"a": Array(1)}, (Array(2),))},
    ],
    ids=str,
)
def test_p7_values_come_back_wherever_an_annotation_allows_them(field: dict[str, Any]) -> None:
    value = Sample(array=Array(5), **field)
    assert through_json(value) == value


@pytest.mark.parametrize(
    "plain",
    [
        None,
        5,
        "a",
        b"\x00",
        (1, 2),
        {1, 2},
        [date(2024, 5, 1)],
        {"$": "bytes"},
        {"$": "bytes", "value": 1},
        {1: [None]},
        {"deep": {"array": Array(1)}},
        [Human("a"), State([Array(1)])],
    ],
    ids=repr,
)
def test_p7_the_data_of_a_hook_may_be_anything_that_can_be_written(plain: Any) -> None:
    class Box:
        inside: Any = "?"

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Box) and other.inside == self.inside

        __hash__ = None  # type: ignore[assignment]

    def structure(data: Any, cls: type) -> Box:
        box = Box()
        box.inside = data
        return box

    made = converter()
    made.register_unstructure_hook(Box, lambda box: box.inside)
    made.register_structure_hook(Box, structure)
    holder = attrs.make_class(
        "Holder",
        {
            "one": attrs.field(type=Box),
            "maybe": attrs.field(type=Box | None),
            "other": attrs.field(type=Box | int | None),
            "any": attrs.field(type=Any),
        },
    )
    box = structure(plain, Box)
    value = holder(box, box, box, [box])
    assert through_json(value, Hooks(made), JsonCodec([holder, Sample, State, Human])) == value


def test_p7_protocols_and_abstract_classes_stay_what_they_were() -> None:
    class Sized(Protocol):
        def __len__(self) -> int: ...

    class Number(ABC):  # noqa: B024
        pass

    Number.register(int)
    holder = attrs.make_class(
        "Holder", {"sized": attrs.field(type=Sized), "number": attrs.field(type=Number | None)}
    )
    codec = JsonCodec([holder])
    value = holder(["a"], 5)
    for hooks in (None, HOOKS):
        assert codec.dump(value, hooks=hooks)["value"] == {"sized": ["a"], "number": 5}
        assert codec.load(codec.dump(value, hooks=hooks), hooks=hooks) == value

    # With hooks for it, what stands for itself is told apart from what a hook has made.
    made = Converter()
    made.register_unstructure_hook(Number, lambda number: str(number))
    made.register_structure_hook(Number, lambda data, _: int(data))
    data = codec.dump(value, hooks=Hooks(made))
    assert data["value"]["number"] == tagged("int", "0x5")
    assert codec.load(data, hooks=Hooks(made)) == value


# --- Which hooks are found ------------------------------------------------------------------------


def test_p7_hooks_by_a_predicate_and_by_a_factory_are_found() -> None:
    made = Converter()
    made.register_unstructure_hook_func(lambda cls: cls is Array, to_bytes)
    made.register_structure_hook_factory(lambda cls: cls is Array, lambda cls: from_bytes)
    assert through_json(Array(1), Hooks(made), ARRAYS) == Array(1)
    parent = converter()
    child = Converter(
        unstructure_fallback_factory=parent.get_unstructure_hook,
        structure_fallback_factory=parent.get_structure_hook,
    )
    assert through_json(Array(1), Hooks(child), ARRAYS) == Array(1)


def test_p7_hooks_that_are_registered_later_count() -> None:
    made = Converter()
    hooks = Hooks(made)
    assert hooks.missing(Array)
    made.register_unstructure_hook(Array, to_bytes)
    made.register_structure_hook(Array, from_bytes)
    assert through_json(Array(1), hooks, ARRAYS) == Array(1)


def test_p7_a_base_converter_will_do() -> None:
    made = cattrs.BaseConverter()
    made.register_unstructure_hook(Array, to_bytes)
    made.register_structure_hook(Array, from_bytes)
    assert through_json(Array(1), Hooks(made), ARRAYS) == Array(1)


@pytest.mark.parametrize(
    ("cls", "missing"),
    [
        (Message, ["register_unstructure_hook(Message, ...)", "register_structure_hook(Message"]),
        (Array, ["register_structure_hook(Array, ...)"]),
        (Masked, ["register_structure_hook(Masked, ...)"]),
        (str, []),
    ],
)
def test_p7_a_class_needs_both_hooks(cls: type, missing: list[str]) -> None:
    made = Converter()
    made.register_unstructure_hook(Array, to_bytes)
    made.register_unstructure_hook(str, str)
    found = Hooks(made).missing(cls).split(" and ")
    assert [len(missing), *found[: len(missing)]] == [
        len(missing),
        *(one if one.endswith(")") else f"{one}, ...)" for one in missing),
    ]


class Pair(NamedTuple):
    a: int


class Text(str):
    __slots__ = ()


def test_p7_what_cattrs_leaves_as_it_is_needs_a_hook() -> None:
    codec = JsonCodec([attrs.make_class("Holder", {"one": attrs.field(type=Pair | Text)})])
    for value in (Pair(1), Text("a")):
        name = type(value).__name__
        error = refused(lambda value=value: codec.dump(value, hooks=HOOKS))
        assert f"the converter has no register_unstructure_hook({name}, ...)" in error.problem
        assert ("or put str(value) in its place" in error.problem) == (name == "Text")
    made = Converter()
    made.register_unstructure_hook(Pair, list)
    made.register_unstructure_hook(Text, str.__str__)
    made.register_structure_hook(
        Pair, lambda data, cls: cls(*data)
    )  # its annotations are postponed
    for value in (Pair(1), Text("a")):
        back = through_json(value, Hooks(made), codec)
        assert (type(back), back) == (type(value), value)


def test_p7_a_subclass_is_written_by_the_hooks_of_its_base_if_it_comes_back() -> None:
    assert through_json([Machine("a"), Human("b")]) == [Machine("a"), Human("b")]
    error = refused(lambda: CODEC.dump([Masked(1)], hooks=HOOKS))
    assert str(error) == (
        "$[0]: a Masked would come back as Array; register hooks for it, and name it in types=[...]"
    )
    assert through_json(Masked(1), codec=JsonCodec([Sample, Masked])) == Masked(1)


def test_p7_what_a_collection_holds_is_not_turned_into_data_for_good() -> None:
    """The hooks that cattrs has itself for collections take apart what these hold, and leave it so."""
    hooks, codec = Hooks(Converter()), JsonCodec([Item, deque, OrderedDict])
    same: list[Any] = [deque([1, "a"]), OrderedDict(a=1.5), deque([date(2024, 5, 1), None])]
    for value in same:
        assert through_json(value, hooks, codec) == value
    changed: list[Any] = [deque([Item(n=1)]), OrderedDict(a=Item(n=1)), deque([(1, 2)])]
    for value in changed:
        with pytest.raises(ContextSerdeError, match=r"would come back as .*; register hooks for"):
            codec.dump({"it": value}, hooks=hooks)


def test_p7_what_the_codec_writes_itself_is_not_for_hooks() -> None:
    made = Converter()
    for cls in (State, date, int, ValueError):
        made.register_unstructure_hook(cls, lambda _: "hooked")
        made.register_structure_hook(cls, lambda *_: "hooked")
    made.register_unstructure_hook(Array, to_bytes)
    made.register_structure_hook(Array, from_bytes)
    value = [State([Array(1)]), date(2024, 5, 1), 5]
    assert through_json(value, Hooks(made), ARRAYS) == value
    assert "hooked" not in json.dumps(ARRAYS.dump([*value, ValueError(5)], hooks=Hooks(made)))


# --- What is refused ------------------------------------------------------------------------------


async def test_p7_without_a_converter_the_error_says_how_to_give_one() -> None:
    handler = Flow(timeout=None).run()
    await anyio.sleep(1)
    error = refused(handler.ctx.to_dict)
    await handler.cancel_run()
    problem = "give Workflow(converter=...) hooks for it, or keep it out of what is saved"
    assert error.problem == (
        f"a value of type Array cannot be written as JSON; {problem}; see docs/snapshots.md"
    )
    data = await saved(flow())
    error = refused(lambda: Context.from_dict(Flow(), data))
    assert error.path == "$.state.arrays[0]"
    assert f"Array needs the hooks of a converter; {problem}" in error.problem
    data["state"]["value"]["arrays"] = []
    data["work"]["work"][0]["events"][0]["value"] = {"array": "abc"}
    error = refused(lambda: Context.from_dict(Flow(), data))
    assert error.path == "$.work.work[0].events[0].array"
    assert "expected tests.test_converter.Array, got 'abc' (str); give Workflow" in error.problem


async def test_p7_a_class_has_to_be_known_as_well() -> None:
    class Plain(Workflow):
        @step
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            return StopEvent()

    ctx = Context(Plain(converter=converter()))
    await ctx.store.set("it", Array(1))
    error = refused(ctx.to_dict)
    assert error.problem.endswith("it is not among the known types; name it in types=[...]")
    data = ctx.to_dict([Array])
    assert (
        "unknown type"
        in refused(lambda: Context.from_dict(Plain(converter=converter()), data)).problem
    )
    again = Context.from_dict(Plain(converter=converter()), data, [Array])
    assert await again.store.get("it") == Array(1)
    for given in (lambda: ctx.to_dict([Broken]), lambda: Context(Plain()).to_dict([Array])):
        error = refused(given)
        assert "is not an event class, attrs class, dataclass, pydantic model" in error.problem
        assert "converter" in error.problem


class Broken:
    pass


def broken(unstructure: Any, structure: Any = lambda data, cls: Broken()) -> Hooks:
    made = Converter()
    made.register_unstructure_hook(Broken, unstructure)
    made.register_structure_hook(Broken, structure)
    return Hooks(made)


def fail(*args: Any) -> Any:
    raise KeyError(LONG)


def recurse() -> Any:
    return recurse()


BROKEN = JsonCodec([Broken])


@pytest.mark.parametrize(
    ("unstructure", "problem"),
    [
        (fail, "the unstructure hook for Broken raised KeyError: 'aaaa"),
        (lambda it: it, "the unstructure hook for Broken returned one, and no plain data"),
        (lambda it: Broken(), "the unstructure hook for Broken returned one, and no plain data"),
        (lambda it: [it], "nested too deeply, or it contains itself"),
        (lambda it: recurse(), "nested too deeply, or it contains itself"),
        (lambda it: object(), "in what the unstructure hook for Broken returned: a value of type"),
        (lambda it: len, "in what the unstructure hook for Broken returned: a value of type"),
        (lambda it: {"a": [len]}, "in what the unstructure hook for Broken returned: a value"),
    ],
)
def test_p7_a_hook_that_makes_no_data_is_refused_when_it_is_written(
    unstructure: Any, problem: str
) -> None:
    error = refused(lambda: BROKEN.dump({"here": Broken()}, hooks=broken(unstructure)))
    assert problem in error.problem
    if "nested" not in problem:
        assert error.path.startswith("$.here")
    if unstructure is fail:
        assert type(error.__cause__) is KeyError


@pytest.mark.parametrize(
    ("structure", "problem"),
    [
        (fail, "the structure hook for Broken raised KeyError: 'aaaa"),
        (lambda data, cls: None, "the structure hook for Broken returned None (NoneType)"),
        (lambda data, cls: recurse(), "nested too deeply, or it contains itself"),
        (lambda data, cls: LONG, "the structure hook for Broken returned 'aaaa"),
    ],
)
def test_p7_a_hook_that_makes_no_value_is_refused(structure: Any, problem: str) -> None:
    hooks = broken(lambda it: 1, structure)
    data = BROKEN.dump({"here": Broken()}, hooks=hooks)
    error = refused(lambda: BROKEN.load(data, hooks=hooks))
    assert error.path == ("$" if "nested" in problem else "$.here")
    assert problem in error.problem
    assert (type(error.__cause__) is KeyError) == (structure is fail)


def test_p7_a_hook_is_interrupted_as_any_code() -> None:
    def interrupted(*args: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        BROKEN.dump(Broken(), hooks=broken(interrupted))
    with pytest.raises(KeyboardInterrupt):
        BROKEN.load(tagged(f"{HERE}:Broken", 1), hooks=broken(lambda it: 1, interrupted))


@pytest.mark.parametrize(
    "data", [None, 1, LONG, [], {}, {"$": 1}, {"$": "x", "value": 1}, {LONG: 1}, [{"a": [LONG]}]]
)
def test_p7_hostile_data_for_a_hook_is_refused(data: Any) -> None:
    refused(lambda: CODEC.load(tagged(f"{HERE}:Array", data), hooks=HOOKS))
    refused(lambda: CODEC.load({"array": data}, Sample, hooks=HOOKS))


# --- Events on the wire ---------------------------------------------------------------------------


@pytest.mark.parametrize("tagged_too", [False, True])
def test_e7_p7_events_go_to_other_programs_and_back_with_hooks(tagged_too: bool) -> None:
    event = Sample(array=Array(1), arrays=[Array(2)], either=Array(3), message=Machine("a"))
    data = json.loads(json.dumps(to_data(event, tagged=tagged_too, converter=converter())))
    for types in (Sample, [Sample], [Sample, Item]):
        assert from_data(data, types, converter=converter()) == event
    bare = to_data(event)
    assert bare["array"] == {"$repr": "Array(1,)"}
    for wrong in (data, bare, {"array": 5}):
        with pytest.raises(ContextSerdeError) as caught:
            from_data(wrong, Sample)
        assert "array" in caught.value.path
        assert "Workflow" not in caught.value.problem
    for call in (lambda: to_data(event, converter=5), lambda: from_data(data, Sample, converter=5)):  # type: ignore[arg-type]
        with pytest.raises(WorkflowConfigurationError):
            call()


def test_e7_p7_a_hook_that_fails_costs_only_its_value() -> None:
    made = converter()
    made.register_unstructure_hook(Array, fail)
    data = to_data(Sample(array=Array(1), either=[1], message=Human("a")), converter=made)
    assert data["array"] == {"$repr": "Array(1,)"}
    assert data["message"] == tagged(f"{HERE}:Message", {"kind": "Human", "text": "a"})
    masked = to_data(Sample(array=Masked(1)), converter=converter())
    assert masked["array"] == {"$repr": "Masked(1,)"}
    with pytest.raises(ContextSerdeError, match="the structure hook for Array raised"):
        from_data({"array": "no bytes"}, Sample, converter=converter())


# --- The workflow ---------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [5, "json", Converter, json, cattrs, object()])
def test_p7_what_is_no_converter_is_refused(wrong: Any) -> None:
    with pytest.raises(
        WorkflowConfigurationError, match=r"converter must be a cattrs\.Converter, not "
    ):
        Flow(converter=wrong)


class Declares(Flow):
    types = (Array, State)


class Inherits(Declares):
    types = (Message,)


def test_p7_types_that_need_a_converter_are_refused_when_an_instance_has_none() -> None:
    for workflow in (Declares, Inherits):
        with pytest.raises(
            WorkflowConfigurationError, match=r"is not an event class.*converter="
        ) as caught:
            workflow()
        assert "see docs/snapshots.md" in str(caught.value)
        workflow(converter=converter())
    only_one = Converter()
    only_one.register_unstructure_hook(Array, to_bytes)
    with pytest.raises(WorkflowConfigurationError, match=r"no register_structure_hook\(Array"):
        Declares(converter=only_one)


@pytest.mark.parametrize("wrong", [int, date, list, list[int], 5, "Array", ValueError, object])
def test_p7_types_that_no_converter_helps_are_refused_in_the_class(wrong: Any) -> None:
    with pytest.raises(WorkflowValidationError, match="in types is not an event class"):
        type("Wrong", (Flow,), {"types": (Array, wrong)})


async def test_p8_a_class_with_hooks_can_be_renamed() -> None:
    data = await saved(flow())
    text = json.dumps(data).replace(f"{HERE}:Array", "app:Vector")
    old = json.loads(text)
    renamed: dict[str, str | None] = {"app:Vector": f"{HERE}:Array"}
    assert Context.from_dict(flow(), old, renamed=renamed).to_dict() == data
    with pytest.raises(WorkflowConfigurationError, match="Array has no fields"):
        Context.from_dict(flow(), old, renamed={**renamed, "app:Vector.items": "parts"})
    with pytest.raises(ContextSerdeError, match="renamed="):
        Context.from_dict(flow(), old)


async def test_p7_a_converter_is_not_kept_alive() -> None:
    class Weak(Converter):
        __slots__ = ("__weakref__",)

    made = Weak()
    made.register_unstructure_hook(Array, to_bytes)
    made.register_structure_hook(Array, from_bytes)
    made.register_unstructure_hook(Message, message_data)
    made.register_structure_hook(Message, message_from)
    gone = weakref.ref(made)
    workflow = flow(made)
    data = await saved(workflow)
    Context.from_dict(workflow, data).to_dict()
    del made, workflow
    await anyio.sleep(1)  # the task of the run ends
    gc.collect()  # cattrs has cycles itself
    assert gone() is None


def test_p7_cattrs_is_imported_for_a_converter_only() -> None:
    ran = run_script(
        """
        import sys
        from anyio_workflows import *
        class Flow(Workflow):
            @step
            async def only(self, ev: StartEvent) -> StopEvent:
                return StopEvent()
        Context.from_dict(Flow(), Context(Flow()).to_dict())
        print("cattrs" in sys.modules)
        import cattrs
        Flow(converter=cattrs.Converter())
        """
    )
    assert (ran.returncode, ran.stderr, ran.stdout) == (0, "", "False\n")
