"""Every public name of llama-index-workflows, the reference: at the same place here, or listed with the reason.

Where a program can meet what is not here, it raises an error that says what to use instead: the lists have
a pattern for its text. An entry that is no longer needed fails. `nox -s reference` installs the reference.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import attrs
import pytest

from anyio_workflows import Context, Event, StartEvent, StopEvent, Workflow, step

from .conftest import BACKENDS
from .running import run_virtually

THEIRS = pytest.importorskip(
    "workflows", reason="llama-index-workflows is not installed; 'nox -s reference' does so"
)
ROOT = Path(THEIRS.__file__).parent

# --- What is not here -----------------------------------------------------------------------------------

_INSIDE = "the inside of the reference; programs do not import it"

ABSENT_MODULES = {
    "context.context_types": _INSIDE,
    "context.external_context": _INSIDE,
    "context.internal_context": _INSIDE,
    "context.pre_context": _INSIDE,
    "context.serializers": "a snapshot has one form; anyio_workflows.context says so for each name",
    "context.state_store_integration": _INSIDE,
    "context.utils": _INSIDE,
    "plugins": "a run belongs to the event loop; anyio_workflows.runtime keeps runs",
    "protocol": "the messages between client and server; docs/server.md describes ours",
    "representation": "anyio_workflows.drawing draws pictures; workflow.graph has the steps and events",
    "runtime.control_loop": _INSIDE,
    "runtime.runtime_decorators": _INSIDE,
    "runtime.types": _INSIDE,
    "runtime.verbose": _INSIDE,
    "types": "type variables; Workflow[Result] says what a run returns",
    "utils": _INSIDE,
}
"""Module, or package with all its modules -> why it is not here, and what there is today."""

SEPARATE = {"client": "WorkflowClient", "server": "WorkflowServer"}
"""Module of the reference that passes names of a separate package on -> the one that programs import, and that is here.

docs/moving-over.md says what the others are for, and what does that here.
"""

MOVED = {"context.context": "context", "context.state_store": "state", "testing.runner": "testing"}
"""Module of the reference -> module of ours that has what programs import from there."""

_NO_SERIALIZER = r"no serializer: json\.dumps\(ctx\.to_dict\(\)\)"

ABSENT_NAMES = {
    "context.BaseSerializer": _NO_SERIALIZER,
    "context.JsonSerializer": _NO_SERIALIZER,
    "context.PickleSerializer": "pickle can run any code, so there is none; .*" + _NO_SERIALIZER,
    "context.state_store.InMemoryStateStore": r"ctx\.store, of the class anyio_workflows\.state\.StateStore",
    "decorators.CatchErrorHandler": r"anyio_workflows\.steps\.Catch",
    "decorators.StepConfig": r"anyio_workflows\.steps\.StepConfig",
    "decorators.StepFunction": "remains the function that was decorated",
    "decorators.StepGraphCheck": r"anyio_workflows\.steps\.GraphCheck",
    "decorators.StepRole": "'catch' of a StepConfig",
    "decorators.WorkflowGraphCheck": r"anyio_workflows\.steps\.GraphCheck",
    "decorators.make_step_function": r"MyWorkflow\.add_step\(\)",
    "errors.WorkflowDone": "StopEvent",
    "errors.WorkflowStepDoesNotExistError": "raises WorkflowRuntimeError",
    "events.CollectionReleaseEvent": "input_event of a StepFailedEvent",
    "events.DictLikeModel": "every Event can be read like a mapping",
    "events.EventType": r"write type\[Event\]",
    "events.IdleReleasedEvent": r"ctx\.to_dict\(\), cancel it, and continue with Context\.from_dict\(\)",
    "events.SerializableEvent": "annotate the field with the type itself",
    "events.SerializableEventType": "annotate the field with the type itself",
    "events.SerializableException": "annotate the field with the type itself",
    "events.SerializableOptionalEvent": "annotate the field with the type itself",
    "events.SerializableOptionalException": "annotate the field with the type itself",
    "events.UnreconstructedException": "becomes an Exception with the name of its type in 'type_name'",
    "resource.ResourceDefinition": r"workflow\.graph\.steps",
    "resource.ResourceDescriptor": r"Resource\(make_it\)",
    "resource.ResourceManager": r"Resource\(lambda: client\)",
    "retry_policy.RetryCondition": r"retry_if_exception\(f\)",
    "retry_policy.StopCondition": r"call state: write 'def wait\(state\)",
    "retry_policy.WaitStrategy": r"call state: write 'def wait\(state\)",
    "retry_policy.time_unit_type": r"float \| timedelta",
    "workflow.WorkflowMeta": r"type\[Workflow\]",
    "workflow.dispatcher": r"anyio_workflows\.instrument\.Instrument",
}
"""Name -> the text of the error at its import."""

_INTERNALS = {
    "context.context": "EventBuffer",
    "context.state_store": """
    InMemorySerializedState StateCheckpoint StateRecord StateStorage StateStoreFacade
    UnserializableKeyWarning apply_state_patch assign_path_step copy_state_for_edit create_cleared_state
    create_in_memory_payload decode_seed_state decode_state decode_state_tree deserialize_dict_state_data
    deserialize_state_from_dict encode_state encode_state_tree get_by_path infer_state_type
    is_declared_model_path_segment is_durable_serialized_state merge_state parse_in_memory_state
    restored_run_id serialize_dict_state_data set_by_path set_by_path_copy string_record_from_state
    traverse_path_step STATE_TREE_KEY KNOWN_UNSERIALIZABLE_KEYS MAX_DEPTH
    """,
}
INTERNALS = {(module, name) for module, names in _INTERNALS.items() for name in names.split()}
"""What modules of the reference share with each other: not for programs."""

_PYDANTIC = None  # a hook of pydantic, which only pydantic calls

ABSENT_MEMBERS = {
    "Context.get_result": "await the handler for the result",
    "Context.stream_events": r"async for ev in handler\.stream_events\(\)",
    "Context.streaming_queue": r"async for ev in handler\.stream_events\(\)",
    "DictState.custom_model_dump": _PYDANTIC,
    "DictState.to_dict": None,  # a mapping: dict(state)
    "Event.custom_model_dump": _PYDANTIC,
    "Event.to_dict": r"dict\(ev\)",
    "StateStore.state_type": r"type\(await ctx\.store\.get_state\(\)\)",
    "StateStore.to_dict": r"ctx\.to_dict\(\)",
    "Workflow.runtime": None,  # an error of ours would forbid steps of that name
    "Workflow.serializer": None,
    "WorkflowHandler.cancel": r"await handler\.cancel_run\(\)",
}
"""Member of a class -> the text of the error when it is read; `None`: Python's own."""

ABSENT_KEYWORDS = {
    "Context(previous_context)": r"Context\.from_dict\(workflow, data\)",
    "Context(serializer)": _NO_SERIALIZER,
    "Context.from_dict(serializer)": _NO_SERIALIZER,
    "Context.to_dict(include_state)": r"await ctx\.store\.clear\(\)",
    "Context.to_dict(serializer)": _NO_SERIALIZER,
    "RetryPolicy.next(seed)": None,  # we never pass one; policies that take it fit
    "Workflow(resource_manager)": r"Resource\(lambda: client\)",
    "Workflow(runtime)": r"await runtime\.start\(workflow, \.\.\.\)",
    "Workflow(serializer)": _NO_SERIALIZER,
    "WorkflowHandler(ctx)": None,  # made by run() only
    "WorkflowHandler(external_adapter)": None,
    "WorkflowHandler(workflow)": None,
    "catch_error(func)": None,  # by position only, as everybody writes it: @catch_error
    "step(func)": None,
}
"""Keyword of a function -> the text of the error when it is given; `None`: Python's own."""

OTHER_POSITIONS = {
    "Context.from_dict": "types= is where the serializer was; it refuses one",
    "Context.to_dict": "types= is where the serializer was; it refuses one",
    "WorkflowHandler": "made by run() only",
}
"""Function that takes something else by position -> why nothing is mistaken for another thing."""

# --- What there is in the reference -----------------------------------------------------------------------


def public_modules() -> Iterator[str]:
    """Yield the names of its public modules, below the package; "" is the package itself."""
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if not any(part.startswith("_") or part in SEPARATE for part in parts):
            yield ".".join(parts)


def load(package: str, module: str) -> Any:
    return importlib.import_module(f"{package}.{module}".rstrip("."))


def public_names(module: str) -> list[str]:
    """Return what a module lists, or else what it defines; type variables and loggers are no names."""
    theirs = load("workflows", module)
    if hasattr(theirs, "__all__"):
        return sorted(theirs.__all__)
    found: set[str] = set()
    for node in ast.parse(inspect.getsource(theirs)).body:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                found.add(name)
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                found.add(name)
    return sorted(
        name
        for name in found
        if name[0] != "_"
        and not isinstance(getattr(theirs, name), TypeVar | ParamSpec | logging.Logger)
    )


def is_absent(module: str) -> bool:
    return any(f"{module}.".startswith(f"{absent}.") for absent in ABSENT_MODULES)


MODULES = list(public_modules())
NAMES = [
    (module, name) for module in MODULES if not is_absent(module) for name in public_names(module)
]


def path_of(module: str, name: str) -> str:
    return f"{module}.{name}".lstrip(".")


PRESENT = [pair for pair in NAMES if path_of(*pair) not in ABSENT_NAMES and pair not in INTERNALS]


def home_of(module: str) -> Any:
    """Return our module that has what programs import from a module of the reference."""
    return load("anyio_workflows", MOVED.get(module, module))


def pair_of(module: str, name: str) -> tuple[Any, Any]:
    """Return the thing with a name in the reference, and ours."""
    return getattr(load("workflows", module), name), getattr(home_of(module), name, None)


# --- Modules and names --------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [module for module in MODULES if module not in MOVED])
def test_every_module_is_here_or_listed(module: str) -> None:
    if is_absent(module):
        with pytest.raises(ModuleNotFoundError, match=r"No module named 'anyio_workflows\."):
            load("anyio_workflows", module)
    else:
        load("anyio_workflows", module)


@pytest.mark.parametrize("module", SEPARATE)
def test_what_is_in_separate_packages_of_the_reference_is_here(module: str) -> None:
    assert (ROOT / module).is_dir()
    assert SEPARATE[module] in load("anyio_workflows", module).__all__


@pytest.mark.parametrize("module", [*ABSENT_MODULES, *MOVED])
def test_every_module_that_is_listed_is_needed(module: str) -> None:
    assert any(f"{known}.".startswith(f"{module}.") for known in MODULES)
    with pytest.raises(ModuleNotFoundError):
        load("anyio_workflows", module)


def test_every_name_that_is_listed_is_needed() -> None:
    known = {path_of(*pair) for pair in NAMES}
    assert sorted(ABSENT_NAMES.keys() - known) == []
    assert sorted(INTERNALS - set(NAMES)) == []
    assert [name for module, name in INTERNALS if hasattr(home_of(module), name)] == []


@pytest.mark.parametrize(("module", "name"), PRESENT)
def test_every_name_is_here_or_listed(module: str, name: str) -> None:
    getattr(home_of(module), name)


@pytest.mark.parametrize("path", ABSENT_NAMES)
def test_the_import_of_an_absent_name_says_what_to_use(path: str) -> None:
    module, _, name = path.rpartition(".")
    ours = f"anyio_workflows.{MOVED.get(module, module)}"
    with pytest.raises(ImportError) as caught:
        exec(f"from {ours} import {name}", {})
    assert str(caught.value).startswith(f"{ours} has no {name!r}; ")
    assert re.search(ABSENT_NAMES[path], str(caught.value))


# --- Members and keywords ---------------------------------------------------------------------------------


def members(cls: type) -> dict[str, Any]:
    """Return the public members of a class that the reference itself defines, fields included."""
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        if base.__module__.startswith("workflows."):
            named = {**dict.fromkeys(inspect.get_annotations(base)), **vars(base)}
            found |= {
                name: getattr(base, name, None)
                for name in named
                if name[0] != "_" and name not in ("model_config", "model_post_init")
            }
    return found


def owner_of(cls: type, member: str) -> str:
    """Return the name under which a member is listed: `Event` for what all events have."""
    return (
        "Event"
        if issubclass(cls, THEIRS.events.Event) and member in members(THEIRS.events.Event)
        else cls.__name__
    )


def parameters(function: Any) -> dict[str, inspect.Parameter]:
    try:
        found = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: one for name, one in found.items() if one.kind in named and name != "self"}


def takes_any(function: Any) -> bool:
    return any(
        one.kind is one.VAR_KEYWORD for one in inspect.signature(function).parameters.values()
    )


def has(ours: Any, member: str) -> bool:
    fields = {field.name for field in attrs.fields(ours)} if attrs.has(ours) else set()
    return member in fields or hasattr(ours, member)


def functions() -> Iterator[tuple[str, Any, Any]]:
    """Yield the functions, classes and methods that are in both, with the path of each in the lists."""
    for pair in PRESENT:
        theirs, ours = pair_of(*pair)
        if not (callable(theirs) and callable(ours)) or (
            inspect.isclass(theirs) and issubclass(theirs, Exception)
        ):
            continue
        yield pair[1], theirs, ours
        for member, value in members(theirs).items() if inspect.isclass(theirs) else ():
            if inspect.isroutine(value) and has(ours, member):
                yield f"{owner_of(theirs, member)}.{member}", value, getattr(ours, member)


FUNCTIONS = {path: (theirs, ours) for path, theirs, ours in functions()}


@pytest.mark.parametrize(("module", "name"), PRESENT)
def test_every_member_is_here_or_listed(module: str, name: str) -> None:
    theirs, ours = pair_of(module, name)
    if inspect.isclass(theirs):
        missing = [member for member in members(theirs) if not has(ours, member)]
        assert [
            one for one in missing if f"{owner_of(theirs, one)}.{one}" not in ABSENT_MEMBERS
        ] == []


@pytest.mark.parametrize("path", FUNCTIONS)
def test_every_keyword_is_here_or_listed(path: str) -> None:
    theirs, ours = (parameters(one) for one in FUNCTIONS[path])
    missing = [name for name in theirs if name not in ours]
    if not takes_any(FUNCTIONS[path][1]):
        assert [name for name in missing if f"{path}({name})" not in ABSENT_KEYWORDS] == []


@pytest.mark.parametrize("path", sorted(FUNCTIONS.keys() - OTHER_POSITIONS))
def test_what_is_given_by_position_is_in_the_same_order(path: str) -> None:
    theirs, ours = (
        [
            name
            for name, one in parameters(function).items()
            if one.kind is one.POSITIONAL_OR_KEYWORD
        ]
        for function in FUNCTIONS[path]
    )
    assert ours[: len(theirs)] == theirs[: len(ours)]


def listed_functions() -> Iterator[tuple[str, str, str]]:
    for entry in ABSENT_KEYWORDS:
        path, _, keyword = entry.rstrip(")").partition("(")
        yield entry, path, keyword


def test_every_keyword_that_is_listed_is_needed() -> None:
    for entry, path, keyword in listed_functions():
        theirs, ours = FUNCTIONS[path]
        assert keyword in parameters(theirs), entry
        assert keyword not in parameters(ours), entry


def test_every_member_that_is_listed_is_needed() -> None:
    pairs = {name: pair_of(module, name) for module, name in PRESENT}
    for path in ABSENT_MEMBERS:
        cls, _, member = path.partition(".")
        theirs, ours = pairs[cls]
        assert member in members(theirs), path
        assert not has(ours, member), path


# --- The errors ---------------------------------------------------------------------------------------------


class Plain(Workflow):
    @step
    async def only(self, ev: StartEvent) -> StopEvent:
        return StopEvent()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_member_that_is_absent_says_what_to_use(backend: str) -> None:
    async def main() -> None:
        handler = Plain().run()
        instances: dict[str, Any] = {
            "Context": handler.ctx,
            "DictState": await handler.ctx.store.get_state(),
            "Event": Event(),
            "StateStore": handler.ctx.store,
            "Workflow": Plain(),
            "WorkflowHandler": handler,
        }
        for path, pattern in ABSENT_MEMBERS.items():
            cls, _, member = path.partition(".")
            with pytest.raises(AttributeError) as caught:
                getattr(instances[cls], member)
            assert member in str(caught.value)
            assert pattern is None or re.search(pattern, str(caught.value)), path
        await handler

    run_virtually(backend, main)


CALLS: dict[str, Callable[..., Any]] = {
    "Context": lambda **given: Context(Plain(), **given),
    "Context.from_dict": lambda *given, **named: Context.from_dict(
        Plain(), Context(Plain()).to_dict(), *given, **named
    ),
    "Context.to_dict": lambda *given, **named: Context(Plain()).to_dict(*given, **named),
    "Workflow": Plain,
}


@pytest.mark.parametrize(
    "entry", [entry for entry, pattern in ABSENT_KEYWORDS.items() if pattern is not None]
)
def test_a_keyword_that_is_absent_says_what_to_do(entry: str) -> None:
    [(path, keyword)] = [found[1:] for found in listed_functions() if found[0] == entry]
    with pytest.raises(TypeError) as caught:
        CALLS[path](**{keyword: False})
    name = path if "." in path else f"{path}()"
    assert f"unexpected keyword argument {keyword!r}; " in str(caught.value)
    assert str(caught.value).startswith(name)
    assert re.search(str(ABSENT_KEYWORDS[entry]), str(caught.value))
    CALLS[path](**{keyword: None})  # nothing special is no reason to fail


@pytest.mark.parametrize("path", ["Context.from_dict", "Context.to_dict"])
def test_a_serializer_by_position_says_what_to_do(path: str) -> None:
    with pytest.raises(TypeError) as caught:
        CALLS[path](THEIRS.context.JsonSerializer())
    assert re.match(rf"{path}\(\): types= is a list of classes, not <", str(caught.value))
    assert re.search(_NO_SERIALIZER, str(caught.value))
