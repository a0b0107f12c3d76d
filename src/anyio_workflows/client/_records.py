"""What a server says, as records; and the event classes that a client knows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, TypeVar

import attrs

from .. import events as _events
from .._ledger.work import StepStatistics
from .._messages import short_repr
from ..errors import ContextSerdeError, WorkflowConfigurationError
from ..events import Event
from ..runtime import LogStatistics, RunError, RunStatus
from ..wire import from_data

RecordT = TypeVar("RecordT")


# --- Events -----------------------------------------------------------------------------------------


@attrs.frozen
class RemoteEvent:
    """An event of a class that this program does not know, or whose data does not fit that class here.

    Attributes:
        type: The name of its class.
        bases: The names of the event classes from which that is derived, without `Event`.
        data: Its fields, as `wire.to_data()` writes them; `{"$too_large": bytes}` if they are larger than the server
            sends.
    """

    type: str
    bases: tuple[str, ...]
    data: Mapping[str, Any]


@attrs.frozen
class RemoteRecord:
    """An event of a run on a server.

    Attributes:
        seq: Its number in the run: 1, 2, 3, and so on. Internal events have that of the event before.
        time: When it was written, in seconds since 1970, by the clock on the server's wall.
        event: The event: an instance of its class, if the client knows that (`types=`), else a `RemoteEvent`.
        internal: Whether it is about the run itself.
        document: What the server sent, as plain data.
    """

    seq: int
    time: float
    event: Event | RemoteEvent
    internal: bool = False
    document: Mapping[str, Any] = attrs.field(factory=dict, eq=False, repr=False, kw_only=True)

    @property
    def type(self) -> str:
        """The name of the class of the event."""
        return self.event.type if isinstance(self.event, RemoteEvent) else type(self.event).__name__


_LIBRARY = [
    cls
    for cls in (getattr(_events, name) for name in _events.__all__)
    if isinstance(cls, type) and issubclass(cls, Event) and cls is not Event
]
"""Event classes that need not be given."""


@attrs.frozen(eq=False)
class KnownTypes:
    """The event classes that a client knows, by name."""

    _classes: Mapping[str, type[Event]]

    @classmethod
    def of(cls, types: Iterable[type[Event]]) -> KnownTypes:
        """Return these classes, with those of the library.

        Raises:
            WorkflowConfigurationError: If one is no event class, or two have the same name.
        """
        named = {one.__name__: one for one in _LIBRARY}
        given: dict[str, type[Event]] = {}
        if isinstance(types, str) or not isinstance(types, Iterable):
            raise WorkflowConfigurationError(
                f"types must be a list of event classes, not {short_repr(types)}"
            )
        for one in types:
            if not (isinstance(one, type) and issubclass(one, Event)):
                raise WorkflowConfigurationError(
                    f"types must be a list of event classes; {short_repr(one)} is none"
                )
            if given.setdefault(one.__name__, one) is not one:
                raise WorkflowConfigurationError(
                    f"two classes in types are named {one.__name__}, and a server names events by that alone"
                )
        return cls(named | given)

    def read(self, name: str, bases: Iterable[str], data: Mapping[str, Any]) -> Event | RemoteEvent:
        """Return an event that a server described."""
        known = self._classes.get(name)
        if known is not None and "$too_large" not in data:
            try:
                return from_data(data, known)
            except ContextSerdeError:
                pass  # another version of the class, for example: nothing of it is lost
        return RemoteEvent(name, tuple(bases), data)

    def read_record(self, document: Mapping[str, Any]) -> RemoteRecord:
        """Return an event of the log of a run."""
        return RemoteRecord(
            document["seq"],
            read_time(document["time"]).timestamp(),
            self.read(document["type"], document["bases"], document["data"]),
            document.get("internal", False),
            document=document,
        )


# --- Runs -------------------------------------------------------------------------------------------


@attrs.frozen
class RemoteRunInfo:
    """A run on a server, as it stood when the server said so. Times are aware, in UTC.

    Attributes:
        id: Identifies the run there.
        workflow: The name of its workflow.
        status: How it stands, as in `RunInfo`.
        created: When it was started.
        ended: When its terminal event was written; `None` before that.
        last_seq: The number of the last event in its log; 0 if there is none yet.
        questions: How many questions can be answered now; `await run.questions()` returns them.
        metadata: What was said about it when it was started.
        error: Why it has no result; `None` unless it failed, timed out, was cancelled or is parked.
        result: Its result, as data; `None` unless it is completed, and in lists.
        log: Counts of its events and of their readers; `None` in lists.
        steps: Counts per step; `None` in lists.
        document: What the server sent, as plain data.
    """

    id: str
    workflow: str
    status: RunStatus
    created: datetime
    ended: datetime | None
    last_seq: int
    questions: int
    metadata: Mapping[str, Any]
    error: RunError | None
    result: Any = None
    log: LogStatistics | None = None
    steps: Mapping[str, StepStatistics] | None = None
    document: Mapping[str, Any] = attrs.field(factory=dict, eq=False, repr=False, kw_only=True)


@attrs.frozen
class RemoteRunPage:
    """A part of the list of runs.

    Attributes:
        runs: The runs, newest first.
        next: What to give as `before=` for the following part; `None` if there is none.
    """

    runs: list[RemoteRunInfo]
    next: str | None


def read_run(document: Mapping[str, Any]) -> RemoteRunInfo:
    """Return what is said about a run."""
    ended, error = document["ended"], document["error"]
    log, steps = document.get("log"), document.get("steps")
    if error is not None:
        error = _record(RunError, {**error, "notes": tuple(error["notes"])})
    return RemoteRunInfo(
        id=document["id"],
        workflow=document["workflow"],
        status=document["status"],
        created=read_time(document["created"]),
        ended=None if ended is None else read_time(ended),
        last_seq=document["last_seq"],
        questions=document["questions"],
        metadata=document["metadata"],
        error=error,
        result=document.get("result"),
        log=None if log is None else _record(LogStatistics, log),
        steps=None
        if steps is None
        else {name: _record(StepStatistics, counts) for name, counts in steps.items()},
        document=document,
    )


# --- Questions and workflows ------------------------------------------------------------------------


@attrs.frozen
class RemoteQuestion:
    """A step that waits for an event, and can be answered now.

    Attributes:
        id: Identifies the wait: `await run.answer(question, ...)`.
        step: The name of the step.
        answer_type: The name of the class of the event that answers it.
        question: The event that the step published when the wait began; `None` if it published none.
        requirements: Field -> value that the answer must have.
        waiter_id: The name that the step gave to the wait; `None` if it gave none.
        since: When the wait began; `None` if that is not known.
        schema: The JSON Schema of the data of the answer.
        document: What the server sent, as plain data.
    """

    id: str
    step: str
    answer_type: str
    question: Event | RemoteEvent | None
    requirements: Mapping[str, Any]
    waiter_id: str | None
    since: datetime | None
    schema: Mapping[str, Any] = attrs.field(repr=False)
    document: Mapping[str, Any] = attrs.field(factory=dict, eq=False, repr=False, kw_only=True)


def read_question(document: Mapping[str, Any], known: KnownTypes) -> RemoteQuestion:
    """Return an open wait."""
    question, since = document["question"], document["since"]
    if question is not None:
        question = known.read(question["type"], question.get("bases", ()), question["data"])
    return RemoteQuestion(
        document["id"],
        document["step"],
        document["answer_type"],
        question,
        document["requirements"],
        document["waiter_id"],
        None if since is None else read_time(since),
        document["schema"],
        document=document,
    )


@attrs.frozen
class RemoteWorkflow:
    """A workflow of a server.

    Attributes:
        name: The name under which its runs are started.
        doc: What it is for; empty if that is not said.
        steps: The names of its steps.
        input: The JSON Schema of the input of a run. This and what follows is `None` in the list of workflows.
        output: The JSON Schema of the terminal event.
        events: Name of each of its event classes -> JSON Schema.
        document: What the server sent, as plain data.
    """

    name: str
    doc: str
    steps: tuple[str, ...]
    input: Mapping[str, Any] | None = attrs.field(default=None, repr=False)
    output: Mapping[str, Any] | None = attrs.field(default=None, repr=False)
    events: Mapping[str, Mapping[str, Any]] | None = attrs.field(default=None, repr=False)
    document: Mapping[str, Any] = attrs.field(factory=dict, eq=False, repr=False, kw_only=True)


def read_workflow(document: Mapping[str, Any]) -> RemoteWorkflow:
    """Return a workflow."""
    return RemoteWorkflow(
        document["name"],
        document["doc"],
        tuple(step if isinstance(step, str) else step["name"] for step in document["steps"]),
        document.get("input"),
        document.get("output"),
        document.get("events"),
        document=document,
    )


# --- Parts ------------------------------------------------------------------------------------------


def read_time(text: str) -> datetime:
    """Return a time that is written as RFC 3339 has it."""
    return datetime.fromisoformat(text)


def _record(cls: type[RecordT], data: Mapping[str, Any]) -> RecordT:
    """Return a record of those members that it has: a newer server may say more."""
    names = {field.name for field in attrs.fields(cls)}  # type: ignore[arg-type]
    return cls(**{name: value for name, value in data.items() if name in names})
