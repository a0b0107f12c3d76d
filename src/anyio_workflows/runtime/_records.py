"""What a runtime says about its runs, and the checks of what it is given."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Protocol, get_args

import attrs

from .._engine.outcome import Outcome
from .._messages import closest, short_repr, shortened, text_of
from ..errors import (
    WorkflowCancelledByUser,
    WorkflowConfigurationError,
    WorkflowError,
    WorkflowStalledError,
    WorkflowTimeoutError,
)
from ..events import StopEvent, WorkflowFailedEvent
from ._store import ACTIVE, RunStatus, StoredRun


@attrs.frozen
class RunError:
    """Why a run has no result.

    Attributes:
        type: The name of the class of the exception that `await run` raises.
        message: Its text, of at most 10 000 characters.
        step: The step that failed; `None` if the run timed out or was cancelled.
        attempts: How often that step was tried; `None` if no step failed.
        notes: The notes of the exception: which event the step was given, and so on.
    """

    type: str
    message: str
    step: str | None = None
    attempts: int | None = None
    notes: tuple[str, ...] = ()


@attrs.frozen
class RunInfo:
    """A run, as it stands. Times are aware, in UTC.

    Attributes:
        id: Identifies the run in its runtime.
        workflow: The name under which its workflow is registered.
        status: `"queued"`, until it begins, which it does at once unless it waits for a slot among
            `num_concurrent_runs`; `"running"`; `"waiting"`, if nothing is in progress and it can only
            continue with an event from outside; `"completed"`, `"failed"`, `"timed_out"` or `"cancelled"`; with
            a database also `"incompatible"` or `"stuck"`, if it is parked until a person has mended it.
        created: When it was started.
        ended: When its terminal event was written; `None` before that.
        last_seq: The number of the last event in its log; 0 if there is none yet.
        open_waits: How many waits can be answered now; `await run.open_waits()` describes them.
        metadata: What was said about it when it was started; a copy.
        error: Why it has no result; `None` unless it failed, timed out, was cancelled or is parked.
    """

    id: str
    workflow: str
    status: RunStatus
    created: datetime
    ended: datetime | None
    last_seq: int
    open_waits: int
    metadata: dict[str, Any]
    error: RunError | None

    @property
    def cursor(self) -> str:
        """What to give to `Runtime.runs()` as `before=` for the runs that are older than this one."""
        return cursor_behind(self)


def number_of_waits(stored: StoredRun) -> int:
    """Return how many waits of a run can be answered now: none if it is parked."""
    return stored.open_waits if stored.status in ACTIVE else 0


def info_of(stored: StoredRun) -> RunInfo:
    """Describe a run as a store knows it."""
    return RunInfo(
        id=stored.id,
        workflow=stored.workflow,
        status=stored.status,
        created=datetime.fromtimestamp(stored.created, UTC),
        ended=None if stored.ended is None else datetime.fromtimestamp(stored.ended, UTC),
        last_seq=stored.last_seq,
        open_waits=number_of_waits(stored),
        metadata=read_metadata(stored.metadata),
        error=read_error(stored.error),
    )


@attrs.frozen
class RunPage:
    """A part of the list of runs.

    Attributes:
        runs: The runs, newest first.
        next: What to give as `before=` for the following part; `None` if there is none.
    """

    runs: list[RunInfo]
    next: str | None


@attrs.frozen
class RuntimeStatistics:
    """Counts of the runs of a runtime.

    Attributes:
        runs: Status -> number of runs, for each status that occurs.
        in_progress: How many runs have not ended; at most `max_runs`.
        removed: How many ended runs retention, or `delete()`, has removed so far.
        log_events: How many events the logs hold in memory.
        log_bytes: How many bytes these take, as far as that is known.
    """

    runs: Mapping[RunStatus, int]
    in_progress: int
    removed: int
    log_events: int
    log_bytes: int


_LONGEST_MESSAGE = 10_000


def describe_error(error: BaseException, event: object) -> RunError:
    """Describe why a run with this terminal event has no result."""
    failed = event if isinstance(event, WorkflowFailedEvent) else None
    return RunError(
        type(error).__name__,
        shortened(text_of(error), _LONGEST_MESSAGE),
        None if failed is None else failed.step_name,
        None if failed is None else failed.attempts,
        tuple(shortened(str(note), 1000) for note in getattr(error, "__notes__", ())[:100]),
    )


_OURS = {
    cls.__name__: cls
    for cls in (WorkflowTimeoutError, WorkflowCancelledByUser, WorkflowStalledError)
}
"""The exceptions of the library with which runs end: they come back as they were."""


def error_text(error: BaseException | None, event: object) -> str | None:
    """Describe why a run has no result, as JSON; `None` if it has one."""
    if error is None:
        return None
    facts = attrs.asdict(describe_error(error, event))
    if type(error) in _OURS.values():
        facts["args"] = error.args
    return json.dumps(facts)


def outcome_of(event: StopEvent, error: str | None) -> Outcome:
    """Return how a run ended, of which the terminal event was read.

    Args:
        event: The terminal event.
        error: What `error_text()` said.
    """
    if error is None:
        return Outcome.stopped(event)
    facts = json.loads(error)
    exception: BaseException
    if facts["type"] in _OURS and "args" in facts:
        exception = _OURS[facts["type"]](*facts["args"])
    elif isinstance(event, WorkflowFailedEvent):
        exception = event.exception
    else:
        exception = WorkflowError(facts["message"])
    return Outcome(event, exception, f"it ended with {facts['type']}")


def read_error(text: str | None) -> RunError | None:
    """Read what `error_text()` wrote."""
    if text is None:
        return None
    facts = json.loads(text)
    facts.pop("args", None)
    return RunError(**{**facts, "notes": tuple(facts["notes"])})


# --- What is given -----------------------------------------------------------------------------------

NAME_PATTERN = r"(?!\.{1,2}$)[A-Za-z0-9._-]{1,128}"
NAME_RULE = "1 to 128 of the characters A-Z a-z 0-9 . _ -, and not . or .. alone"
"""What ids of runs and names of workflows consist of: they are parts of URLs and files."""

_NAME = re.compile(NAME_PATTERN)


def is_name(text: object) -> bool:
    """Return whether a value can be the id of a run, or the name of a workflow."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def check_run_id(run_id: object) -> None:
    """Refuse an id that a run cannot have.

    Raises:
        WorkflowConfigurationError: Which says what an id consists of.
    """
    if not is_name(run_id):
        raise WorkflowConfigurationError(
            f"run_id must be a str of {NAME_RULE}; not {short_repr(run_id)}"
        )


def check_status(status: object) -> None:
    """Refuse a status that does not exist.

    Raises:
        WorkflowConfigurationError: Which names the ones there are.
    """
    known = get_args(RunStatus)
    if status is not None and status not in known:
        hint = closest(status, known) if isinstance(status, str) else ""
        raise WorkflowConfigurationError(
            f"status must be one of {', '.join(known)}; not {short_repr(status)}{hint and f'; {hint}'}"
        )


def metadata_text(metadata: object) -> str:
    """Return metadata as JSON.

    Raises:
        WorkflowConfigurationError: If it is not a dict of JSON values; it names the key.
    """
    if metadata is None:
        return "{}"
    if not isinstance(metadata, Mapping):
        raise WorkflowConfigurationError(
            f"metadata must be a dict with values for JSON, not {short_repr(metadata)}"
        )
    for key, value in metadata.items():
        if not isinstance(key, str):
            raise WorkflowConfigurationError(
                f"the keys of metadata must be texts, not {short_repr(key)}"
            )
        if fault := _json_fault(value):
            raise WorkflowConfigurationError(f"metadata[{short_repr(key)}] {fault}")
    return json.dumps(dict(metadata))


def read_metadata(text: str) -> dict[str, Any]:
    """Return metadata that `metadata_text()` wrote, as a dict of the caller's own."""
    if text == "{}":
        return {}
    metadata: dict[str, Any] = json.loads(text)
    return metadata


def _json_fault(value: object) -> str | None:
    """Say why a value has no form in JSON that comes back equal; `None` if it has."""
    try:
        same: bool = json.loads(json.dumps(value, allow_nan=False)) == value
    except (TypeError, ValueError, RecursionError) as exc:
        return f"cannot be written as JSON: {shortened(text_of(exc), 200)}"
    if same:
        return None
    return (
        f"does not come back from JSON as it is, because of a tuple or a key: {short_repr(value)}"
    )


# --- Where a page of the list ends ---------------------------------------------------------------------


class _Created(Protocol):
    @property
    def id(self) -> str: ...

    @property
    def created(self) -> datetime: ...


def cursor_behind(run: _Created) -> str:
    """Return the cursor of the runs that are older than this one."""
    return f"{run.created.timestamp()!r}~{run.id}"


def read_cursor(cursor: object) -> tuple[float, str] | None:
    """Return when the last run of a page was created, and its id.

    Raises:
        WorkflowConfigurationError: If it is not a cursor.
    """
    if cursor is None:
        return None
    if isinstance(cursor, str):
        created, _, run_id = cursor.partition("~")
        try:
            seconds = float(created)
        except ValueError:
            seconds = math.nan
        if is_name(run_id) and math.isfinite(seconds):
            return seconds, run_id
    raise WorkflowConfigurationError(
        f"before must be the 'next' of an earlier page, not {short_repr(cursor)}"
    )
