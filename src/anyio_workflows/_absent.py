"""Names of other libraries that are not here, and what to use instead.

Those that programs import from llama-index-workflows, the reference, or give as keywords; and the methods of
model classes, of which programs think that events have them. What a context or handler does not have is
listed where these are defined.
"""

from __future__ import annotations

import dis
import functools
import importlib
import inspect
import reprlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

NO_SERIALIZER = (
    "snapshots have one form, and need no serializer: json.dumps(ctx.to_dict()) writes one, and "
    "Context.from_dict(workflow, json.loads(text)) reads it; Workflow(converter=...) is for values of "
    "classes that JSON has no form for"
)
_NO_PICKLE = f"reading a pickle can run any code, so there is none; {NO_SERIALIZER}"
_STORE = "the store of a run is ctx.store, of the class anyio_workflows.state.StateStore"
_PLAIN = (
    "annotate the field with the type itself: events are values in snapshots and models as they are"
)
_CALL_STATE = (
    "strategies are tenacity's, called with its call state: write 'def wait(state): ...', or combine "
    "those of this module"
)

_IN_ERRORS = "import it from anyio_workflows.errors"
_IN_DRAWING = "import it from anyio_workflows.drawing"
_NO_AGENTS = "there are no agents here; draw() takes any workflow"

NAMES: Mapping[str, Mapping[str, str]] = {
    "": {  # what llama_index.core.workflow has, from which the reference came
        "Checkpoint": "snapshots are kept by anyio_workflows.checkpoint",
        "JsonPickleSerializer": _NO_PICKLE,
        "JsonSerializer": NO_SERIALIZER,
        "PickleSerializer": _NO_PICKLE,
        "WorkflowCheckpointer": "snapshots are kept by anyio_workflows.checkpoint",
        "WorkflowRuntimeError": _IN_ERRORS,
        "WorkflowTimeoutError": _IN_ERRORS,
        "WorkflowValidationError": _IN_ERRORS,
        "draw_all_possible_flows": _IN_DRAWING,
        "draw_most_recent_execution": _IN_DRAWING,
    },
    "context": {
        "BaseSerializer": NO_SERIALIZER,
        "InMemoryStateStore": _STORE,
        "JsonPickleSerializer": _NO_PICKLE,
        "JsonSerializer": NO_SERIALIZER,
        "PickleSerializer": _NO_PICKLE,
    },
    "decorators": {
        "CatchErrorHandler": "the arguments of @catch_error are in anyio_workflows.steps.Catch",
        "StepConfig": "the arguments of @step are in anyio_workflows.steps.StepConfig",
        "StepFunction": "a step remains the function that was decorated, with its type",
        "StepGraphCheck": "use anyio_workflows.steps.GraphCheck",
        "StepRole": "the 'catch' of a StepConfig says whether a step is an error handler",
        "WorkflowGraphCheck": "use anyio_workflows.steps.GraphCheck",
        "make_step_function": "mark the function with @step, and add it with MyWorkflow.add_step()",
    },
    "drawing": {  # those of llama_index.utils.workflow
        "draw_agent_with_tools": _NO_AGENTS,
        "draw_agent_with_tools_mermaid": _NO_AGENTS,
        "draw_agent_workflow": _NO_AGENTS,
        "draw_agent_workflow_mermaid": _NO_AGENTS,
        "draw_all_possible_flows_mermaid": "draw(workflow, 'mermaid') returns the text",
        "draw_most_recent_execution_mermaid": "draw(workflow, 'mermaid', run=handler) returns the text",
    },
    "errors": {
        "WorkflowDone": "no exception ends a run; look for its StopEvent",
        "WorkflowStepDoesNotExistError": "a step that does not exist raises WorkflowRuntimeError",
    },
    "events": {
        "CollectionReleaseEvent": "the input_event of a StepFailedEvent is a list if a join has failed",
        "DictLikeModel": "every Event can be read like a mapping; ev.replace() makes a changed copy",
        "EventType": "write type[Event]",
        "IdleReleasedEvent": "a run that waits is not released; take ctx.to_dict(), cancel it, and "
        "continue with Context.from_dict()",
        "SerializableEvent": _PLAIN,
        "SerializableEventType": _PLAIN,
        "SerializableException": _PLAIN,
        "SerializableOptionalEvent": _PLAIN,
        "SerializableOptionalException": _PLAIN,
        "UnreconstructedException": "an exception that a snapshot cannot restore becomes an Exception "
        "with the name of its type in 'type_name' and its text in 'text'",
    },
    "resource": {
        "ResourceDefinition": "workflow.graph.steps has what the steps ask for",
        "ResourceDescriptor": "a resource of another kind is a factory: Resource(make_it)",
        "ResourceManager": "each run makes and closes its own resources: Resource(lambda: client) hands out "
        "one that exists, Resource(make, scope='workflow') is made once for all runs of a workflow",
    },
    "retry_policy": {
        "ComposableRetryPolicy": "use retry_policy(retry=..., wait=..., stop=...)",
        "RetryCondition": "retry_if_exception(f) makes a condition of a function of an exception",
        "StopCondition": _CALL_STATE,
        "WaitStrategy": _CALL_STATE,
        "time_unit_type": "write float | timedelta",
    },
    "state": {"InMemoryStateStore": _STORE},
    "workflow": {
        "WorkflowMeta": "Workflow has no metaclass; write type[Workflow]",
        "dispatcher": "an anyio_workflows.instrument.Instrument is told what happens in runs",
    },
}
"""Module, "" for the package -> name in the same module of the reference -> what to use instead."""

_IN_STEPS = "the annotations of the steps say which events start and end a run"
_NO_RUNTIME = (
    "a runtime is given its workflows, not the other way round: 'async with Runtime(workflows=[workflow]) "
    "as runtime:', and there 'await runtime.start(workflow, ...)'"
)

ARGUMENTS: Mapping[str, Mapping[str, str]] = {
    "Workflow()": {
        "resource_manager": NAMES["resource"]["ResourceManager"],
        "runtime": _NO_RUNTIME,
        "serializer": NO_SERIALIZER,
        "start_event_class": _IN_STEPS,  # of earlier versions
        "stop_event_class": _IN_STEPS,
    },
    "Context()": {
        "previous_context": "use Context.from_dict(workflow, data)",
        "serializer": NO_SERIALIZER,
    },
    "Context.to_dict()": {
        "include_state": "a snapshot has the state; await ctx.store.clear() empties it",
        "serializer": NO_SERIALIZER,
    },
    "Context.from_dict()": {"serializer": NO_SERIALIZER},
}
"""Function -> keyword of the reference -> what to do instead."""


_WIRE = "anyio_workflows.wire"
_AS_DATA = f"dict(ev) gives the fields of an event, {_WIRE}.to_data(ev) gives data for JSON"
_A_COPY = "ev.replace(field=...) makes a changed copy of an event"
_FROM_DATA = (
    f"{_WIRE}.from_data(data, EventClass) reads JSON data, EventClass(**fields) takes a dict"
)
_SCHEMA = f"{_WIRE}.json_schema(EventClass) describes the data of an event class"
_FIELDS = "attrs.fields(EventClass) lists the fields of an event class"

CLASS_METHODS: Mapping[str, str] = {
    **dict.fromkeys(
        ("model_validate", "model_validate_json", "from_dict", "from_json"), _FROM_DATA
    ),
    **dict.fromkeys(("parse_obj", "parse_raw"), _FROM_DATA),
    **dict.fromkeys(("model_json_schema", "schema", "schema_json"), _SCHEMA),
    "model_fields": _FIELDS,
}
MODEL_METHODS: Mapping[str, str] = {
    **CLASS_METHODS,
    **dict.fromkeys(("model_dump", "dict", "asdict", "to_dict", "_asdict"), _AS_DATA),
    **dict.fromkeys(("model_dump_json", "json", "to_json"), _AS_DATA),
    **dict.fromkeys(("model_copy", "copy", "_replace", "evolve", "update"), _A_COPY),
}
"""Attribute of the model classes of other libraries -> what to use for events; those of the class come first."""


class Absent:
    """A descriptor for an attribute that a class does not have: its error names what to use instead.

    `hasattr()` is false, and `help()` shows the hint.
    """

    def __init__(self, name: str, instead: str) -> None:
        self._name, self._instead = name, instead
        self.__doc__ = f"Not there: {instead}" + ("" if instead.endswith("?") else ".")

    def __get__(self, instance: object, owner: type) -> Any:
        message = f"{owner.__name__!r} has no {self._name!r}; {self._instead}"
        raise AttributeError(message, name=self._name, obj=instance)


def absent_names(module: str, late: Mapping[str, str] | None = None) -> Callable[[str], Any]:
    """Return the `__getattr__` of a module, which raises an error with what to use instead.

    Args:
        module: The name of the module.
        late: Public names that are imported when they are first asked for, each with its module.
    """
    names = NAMES[module.partition(".")[2]]

    def __getattr__(name: str) -> Any:  # noqa: N807
        if late is not None and name in late:
            return getattr(importlib.import_module(late[name]), name)
        message = f"module {module!r} has no attribute {name!r}"
        if name in names:
            message = f"{module} has no {name!r}; {names[name]}"
            # 'from module import name' discards the text of an AttributeError; hasattr() needs one.
            # No exception can be of both types, because their layouts differ.
            if _is_from_import(inspect.currentframe()):
                raise ImportError(message, name=module)
        raise AttributeError(message, name=name, obj=sys.modules[module])

    return __getattr__


def _is_from_import(frame: Any) -> bool:
    """Return whether the caller of a function with this frame executes 'from ... import ...'."""
    caller = frame and frame.f_back
    return caller is not None and (
        caller.f_code.co_code[caller.f_lasti] == dis.opmap["IMPORT_FROM"]
    )


def types_given(types: object, function: str) -> tuple[type, ...]:
    """Return the classes given as `types=`, which the reference calls with a serializer at this place."""
    if isinstance(types, Iterable) and not isinstance(types, str):
        return tuple(types)
    given = reprlib.repr(types)
    raise TypeError(f"{function}: types= is a list of classes, not {given}; {NO_SERIALIZER}")


def refuse_arguments(function: str) -> Callable[[FunctionT], FunctionT]:
    """Let a function refuse the keywords in `ARGUMENTS`, with what to do instead.

    `None` and `True`, with which they ask for nothing special, are ignored.
    """
    absent = ARGUMENTS[function]

    def decorate(wrapped: FunctionT) -> FunctionT:
        @functools.wraps(wrapped)
        def call(*args: Any, **kwargs: Any) -> Any:
            for name in absent.keys() & kwargs:
                value = kwargs.pop(name)
                if value is not None and value is not True:
                    raise TypeError(
                        f"{function} got an unexpected keyword argument {name!r}; {absent[name]}"
                    )
            return wrapped(*args, **kwargs)

        return call  # type: ignore[return-value]

    return decorate
