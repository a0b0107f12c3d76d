"""The JSON Schemas of what is answered and taken, by name: what `_documents` makes, for others to read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from ..runtime import RunStatus
from ..runtime._records import NAME_PATTERN

_TEXT = {"type": "string"}
_NUMBER = {"type": "integer"}
_TIME = {"type": "string", "format": "date-time"}
_TEXTS = {"type": "array", "items": _TEXT}
_OBJECT = {"type": "object", "additionalProperties": True}


def _or_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    if "$ref" in schema:
        return {"anyOf": [schema, {"type": "null"}]}
    return {**schema, "type": [schema["type"], "null"]}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _list(name: str) -> dict[str, Any]:
    return {"type": "array", "items": _ref(name)}


def _record(
    description: str, members: Mapping[str, Any], *optional: str, closed: bool = False
) -> dict[str, Any]:
    """Return the schema of an object, all of whose members are there but the optional ones."""
    schema: dict[str, Any] = {
        "type": "object",
        "description": description,
        "properties": dict(members),
    }
    if required := [name for name in members if name not in optional]:
        schema["required"] = required
    if closed:
        schema["additionalProperties"] = False
    return schema


_RUN = {
    "id": _TEXT,
    "workflow": _TEXT,
    "status": {"type": "string", "enum": list(get_args(RunStatus))},
    "created": _TIME,
    "ended": _or_null(_TIME),
    "last_seq": {**_NUMBER, "description": "The number of its last event; 0 if there is none."},
    "questions": {**_NUMBER, "description": "How many open questions it has."},
    "metadata": _OBJECT,
    "error": _or_null(_ref("RunError")),
}

SCHEMAS: Mapping[str, dict[str, Any]] = {
    "Problem": _record(
        "What is wrong, and what to do about it (RFC 9457).",
        {
            "type": _TEXT,
            "title": _TEXT,
            "status": _NUMBER,
            "detail": _TEXT,
            "path": {**_TEXT, "description": "Where it is in the body, such as `$.input.n`."},
        },
        "path",
    ),
    "StartRun": _record(
        "A run to be started.",
        {
            "input": {
                **_OBJECT,
                "description": "The fields of the start event, as the `input` of the workflow says.",
            },
            "metadata": {**_OBJECT, "description": "What is worth knowing about the run."},
            "run_id": {"type": "string", "pattern": f"^{NAME_PATTERN}$"},
        },
        "input",
        "metadata",
        "run_id",
        closed=True,
    ),
    "SendEvent": _record(
        "An event for a run.",
        {
            "type": {**_TEXT, "description": "The name of its type."},
            "data": {**_OBJECT, "description": "Its fields."},
            "step": {**_TEXT, "description": "The only step to send it to."},
        },
        "data",
        "step",
        closed=True,
    ),
    "Answer": _record(
        "The answer to a question.",
        {"data": {**_OBJECT, "description": "Its fields, as the `schema` of the question says."}},
        "data",
        closed=True,
    ),
    "Taken": _record("Where an event went.", {"taken_by": _TEXTS}),
    "RunError": _record(
        "Why a run has no result.",
        {
            "type": _TEXT,
            "message": _TEXT,
            "step": _or_null(_TEXT),
            "attempts": _or_null(_NUMBER),
            "notes": _TEXTS,
        },
    ),
    "RunSummary": _record("A run in a list.", _RUN),
    "RunPage": _record(
        "Some of the runs, newest first.",
        {
            "runs": _list("RunSummary"),
            "next": {**_or_null(_TEXT), "description": "Where the next page begins."},
        },
    ),
    "Run": _record(
        "A run.",
        {
            **_RUN,
            "result": {"description": "What it returned; null unless it was completed."},
            "log": _ref("Log"),
            "steps": {
                "type": "object",
                "additionalProperties": _ref("StepCounts"),
                "description": "Counts of the executions of each step, while this process executes the run.",
            },
        },
    ),
    "Log": _record(
        "How the log of a run stands in memory.",
        dict.fromkeys(("first", "last", "kept", "bytes", "trimmed", "readers", "max_lag"), _NUMBER),
    ),
    "StepCounts": _record(
        "How many executions of a step are or were in which state.",
        {
            **dict.fromkeys(
                (
                    "queued",
                    "running",
                    "waiting",
                    "delayed",
                    "done",
                    "failed",
                    "cancelled",
                    "retried",
                ),
                _NUMBER,
            ),
            "seconds": {"type": "number"},
        },
    ),
    "Event": _record(
        "An event of a run.",
        {
            "seq": _NUMBER,
            "time": _TIME,
            "type": _TEXT,
            "bases": {**_TEXTS, "description": "The classes between its own and `Event`."},
            "data": _OBJECT,
            "internal": {"type": "boolean"},
        },
        "internal",
    ),
    "EventPage": _record(
        "Some of the events of a run.",
        {
            "events": _list("Event"),
            "next": {**_NUMBER, "description": "What to give as `after` for the next page."},
            "done": {"type": "boolean", "description": "Whether the run has ended, with these."},
            "gap": _or_null(_ref("Gap")),
        },
    ),
    "Gap": _record(
        "Events that are not kept any more.",
        {"first": _NUMBER, "last": _NUMBER, "reason": _TEXT},
    ),
    "Question": _record(
        "An open wait of a step.",
        {
            "id": _TEXT,
            "step": _TEXT,
            "answer_type": _TEXT,
            "question": _or_null(_ref("QuestionEvent")),
            "requirements": _OBJECT,
            "waiter_id": _or_null(_TEXT),
            "since": _TIME,
            "schema": {**_OBJECT, "description": "The JSON Schema of the answer."},
        },
    ),
    "QuestionEvent": _record("The event that asks.", {"type": _TEXT, "data": _OBJECT}),
    "Questions": _record("The open waits of a run.", {"questions": _list("Question")}),
    "WorkflowSummary": _record(
        "A workflow in a list.", {"name": _TEXT, "doc": _TEXT, "steps": _TEXTS}
    ),
    "Workflows": _record("The workflows.", {"workflows": _list("WorkflowSummary")}),
    "Step": _record(
        "A step of a workflow.",
        {
            "name": _TEXT,
            "doc": _TEXT,
            "num_workers": _NUMBER,
            "takes": _TEXTS,
            "returns": _TEXTS,
        },
    ),
    "Workflow": _record(
        "A workflow, with JSON Schemas.",
        {
            "name": _TEXT,
            "doc": _TEXT,
            "input": _OBJECT,
            "output": _OBJECT,
            "events": {"type": "object", "additionalProperties": _OBJECT},
            "steps": _list("Step"),
        },
    ),
    "Graph": _record("The graph of a workflow.", {"name": _TEXT, "steps": _list("Step")}),
    "Health": _record("That it works.", {"status": _TEXT}),
    "Anything": _OBJECT,
}
"""The schemas, by the names under which routes mention them."""
