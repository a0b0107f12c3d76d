"""What the doors say about runs, events, questions and workflows: data for JSON, the same on the wire and in a terminal."""

from __future__ import annotations

import functools
import inspect
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import attrs

from .events import Event, InternalDispatchEvent, StopEvent
from .handler import OpenWait
from .instrument import EventRecord
from .runtime import Gap, LogStatistics, RunHandle, RunInfo
from .wire import json_schema, to_data
from .workflow import Workflow

if TYPE_CHECKING:
    from cattrs import BaseConverter

HIDDEN = "$"
"""Keys of metadata that begin with this are notes of a door, and not for others."""


# --- Runs -------------------------------------------------------------------------------------------


def describe_run(info: RunInfo) -> dict[str, Any]:
    """Return a run as it stands in a list."""
    return {
        "id": info.id,
        "workflow": info.workflow,
        "status": info.status,
        "created": time_text(info.created),
        "ended": None if info.ended is None else time_text(info.ended),
        "last_seq": info.last_seq,
        "questions": info.open_waits,
        "metadata": {key: value for key, value in info.metadata.items() if key[:1] != HIDDEN},
        "error": None if info.error is None else attrs.asdict(info.error),
    }


async def describe_whole_run(
    run: RunHandle[Any], converter: BaseConverter | None = None
) -> dict[str, Any]:
    """Return a run with its result, its log, and the counts of its steps."""
    info, statistics = run.info, run.statistics()
    result = value_data(await run, converter) if info.status == "completed" else None
    return {
        **describe_run(info),
        "result": result,
        "log": attrs.asdict(statistics.log),
        "steps": {name: attrs.asdict(counts) for name, counts in statistics.steps.items()},
    }


def describe_unread_run(info: RunInfo) -> dict[str, Any]:
    """Return a run of which more cannot be read here, as another program knows its workflow or types."""
    last = info.last_seq
    log = LogStatistics(last + 1, last, 0, 0, last, 0, 0)
    return {**describe_run(info), "result": None, "log": attrs.asdict(log), "steps": {}}


def value_data(value: object, converter: BaseConverter | None = None) -> Any:
    """Return a value from anywhere, such as the result of a run, as data."""
    if isinstance(value, Event):
        return to_data(value, converter=converter)
    return to_data(StopEvent(result=value), converter=converter)["result"]


# --- Events -----------------------------------------------------------------------------------------


def describe_record(record: EventRecord, converter: BaseConverter | None = None) -> dict[str, Any]:
    """Return an event with its number. An internal event has that of the public one before it."""
    data = to_data(record.event, converter=converter)
    return {**describe_record_without_data(record), "data": data}


def describe_record_without_data(record: EventRecord) -> dict[str, Any]:
    """Return what is said about an event, but not what is in it."""
    cls = type(record.event)
    facts = {
        "seq": record.seq,
        "time": _clock_text(record.time),
        "type": cls.__name__,
        "bases": bases_of(cls),
    }
    if issubclass(cls, InternalDispatchEvent):
        facts["internal"] = True
    return facts


def describe_gap(gap: Gap) -> dict[str, Any]:
    """Return which events a reader missed, and why."""
    return attrs.asdict(gap)


def bases_of(cls: type[Event]) -> list[str]:
    """Return the names of the classes of events between a class and `Event`: what a reader may know it as."""
    between = cls.__mro__[1 : cls.__mro__.index(Event)]
    return [
        base.__name__
        for base in between
        if issubclass(base, Event) and not base.__name__.startswith("_")
    ]


def _clock_text(seconds: float) -> str:
    """Return a time in seconds since 1970 as `time_text()` does, in a third of its time: each event has one."""
    second = int(seconds)
    microseconds = round((seconds - second) * 1_000_000)
    if microseconds == 1_000_000:
        second, microseconds = second + 1, 0
    return f"{_second_text(second)}.{microseconds // 1000:03d}Z"


@functools.lru_cache(maxsize=16)
def _second_text(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).isoformat()[:19]


def time_text(time: datetime) -> str:
    """Return a time in UTC as RFC 3339 has it, with milliseconds."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# --- Questions --------------------------------------------------------------------------------------


def describe_wait(wait: OpenWait, converter: BaseConverter | None = None) -> dict[str, Any]:
    """Return an open wait, with the JSON Schema of what answers it."""
    question = wait.question
    requirements = wait.requirements.items()
    return {
        "id": wait.id,
        "step": wait.step,
        "answer_type": wait.event_type.__name__,
        "question": None
        if question is None
        else {"type": type(question).__name__, "data": to_data(question, converter=converter)},
        "requirements": {name: value_data(value, converter) for name, value in requirements},
        "waiter_id": wait.waiter_id,
        "since": time_text(wait.since),
        "schema": json_schema(wait.event_type),
    }


def converter_of(workflow: Workflow[Any]) -> BaseConverter | None:
    """Return what reads and writes the values of foreign classes in the events of a workflow (P7)."""
    hooks = workflow._config.hooks
    return None if hooks is None else hooks.converter


# --- Workflows --------------------------------------------------------------------------------------


def describe_workflow(name: str, workflow: Workflow[Any]) -> dict[str, Any]:
    """Return what a workflow is for, and the names of its steps."""
    return {
        "name": name,
        "doc": _doc_of(type(workflow), Workflow),
        "steps": list(workflow.graph.steps),
    }


def describe_whole_workflow(name: str, workflow: Workflow[Any]) -> dict[str, Any]:
    """Return a workflow with the JSON Schemas of its input, output and events, and its steps."""
    return {
        "name": name,
        "doc": _doc_of(type(workflow), Workflow),
        "input": json_schema(workflow.start_event_class),
        "output": json_schema(workflow.stop_event_class),
        "events": {cls.__name__: json_schema(cls) for cls in workflow.events},
        "steps": [
            {
                "name": spec.name,
                "doc": inspect.getdoc(spec.function) or "",
                "num_workers": spec.config.num_workers,
                "takes": [cls.__name__ for cls in spec.accepts],
                "returns": [cls.__name__ for cls in (*spec.returns, *spec.returns_list)],
            }
            for spec in workflow.graph.steps.values()
        ],
    }


def _doc_of(cls: type, base: type) -> str:
    """Return the docstring of a class, if it has one of its own."""
    doc = inspect.getdoc(cls) or ""
    return "" if doc == (inspect.getdoc(base) or "") else doc
