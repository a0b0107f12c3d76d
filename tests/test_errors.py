"""Exceptions: each takes facts, keeps them as attributes and writes its own sentence (14.4)."""

from __future__ import annotations

import copy
import pickle

import pytest

from anyio_workflows import errors
from anyio_workflows.errors import (
    CheckpointInUseError,
    ContextSerdeError,
    ContextStateError,
    EventValidationError,
    HostLostError,
    RemoteRunError,
    ServerUnreachableError,
    StoreError,
    TooManyRunsError,
    UnknownRunError,
    WorkflowCancelledByUser,
    WorkflowConfigurationError,
    WorkflowError,
    WorkflowRuntimeError,
    WorkflowServerError,
    WorkflowStalledError,
    WorkflowTimeoutError,
    WorkflowValidationError,
)

SAMPLES: list[tuple[WorkflowError, dict[str, object], str]] = [
    (WorkflowError("it broke"), {}, "it broke"),
    (WorkflowConfigurationError("bad timeout"), {}, "bad timeout"),
    (WorkflowRuntimeError("the run has ended"), {}, "the run has ended"),
    (ContextStateError("an edit is open"), {}, "an edit is open"),
    (
        ContextSerdeError("$.state.items[3]", "a Client cannot be written as JSON"),
        {"path": "$.state.items[3]", "problem": "a Client cannot be written as JSON"},
        "$.state.items[3]: a Client cannot be written as JSON",
    ),
    (
        StoreError("runs.db", "the disk is full; the runs continue once there is room"),
        {"store": "runs.db", "problem": "the disk is full; the runs continue once there is room"},
        "runs.db: the disk is full; the runs continue once there is room",
    ),
    (
        HostLostError("runs.db", "another process executes its runs"),
        {"store": "runs.db", "problem": "another process executes its runs"},
        "runs.db: another process executes its runs",
    ),
    (
        TooManyRunsError(3),
        {"in_progress": 3},
        "3 runs are in progress, and this Runtime takes no more at once; wait for one of them to end, or give it a "
        "higher max_runs",
    ),
    (
        UnknownRunError("order-17"),
        {"run_id": "order-17"},
        "there is no run 'order-17': it was never started here, or it ended long ago and has been removed",
    ),
    (
        WorkflowValidationError("Tea", ["no steps"]),
        {"where": "Tea", "faults": ("no steps",)},
        "Tea: no steps",
    ),
    (
        WorkflowValidationError("Tea", iter(["one", "two"])),
        {"where": "Tea", "faults": ("one", "two")},
        "Tea has 2 faults:\n  1. one\n  2. two",
    ),
    (
        EventValidationError("Found", "url", "missing"),
        {"event": "Found", "field": "url", "problem": "missing"},
        "Found.url: missing",
    ),
    (
        WorkflowTimeoutError(1.5, ("a",), {"a": "running for 1 s", "b": "3 queued"}),
        {
            "timeout": 1.5,
            "active_steps": ["a"],
            "activities": {"a": "running for 1 s", "b": "3 queued"},
        },
        "the run did not end within 1.5 s; at that time:\n  step a: running for 1 s\n  step b: 3 queued",
    ),
    (
        WorkflowTimeoutError(1.5, ["a"], {"a": "1 queued"}, {"a": 70}, 0.25, ["a", "b"]),
        {"executions": {"a": 70}, "late": 0.25, "suspects": ["a", "b"]},
        "the run did not end within 1.5 s; at that time:\n  step a: 1 queued\n"
        "  executions so far: a 70\n"
        "  noticed 0.25 s late, because something blocked the event loop until then, probably one of the "
        "steps a, b: does it call time.sleep(), or compute for long? A plain 'def' step may, in a thread",
    ),
    (
        WorkflowTimeoutError(30, []),
        {"timeout": 30, "active_steps": [], "activities": {}},
        "the run did not end within 30 s; no step was active",
    ),
    (
        WorkflowCancelledByUser("cancel_run() was called"),
        {"reason": "cancel_run() was called"},
        "the run was cancelled: cancel_run() was called",
    ),
    (
        CheckpointInUseError("/tmp/job.json", 0),
        {"path": "/tmp/job.json", "pid": 0},
        "/tmp/job.json is in use by a run in process 0; wait until that run has ended, or give this run "
        "a file of its own",
    ),
    (
        CheckpointInUseError("/tmp/job.json"),
        {"path": "/tmp/job.json", "pid": None},
        "/tmp/job.json is in use by a run in another process; wait until that run has ended, or give this "
        "run a file of its own",
    ),
    (
        WorkflowServerError(
            "POST /v1/workflows/buy/runs",
            422,
            "Unprocessable",
            "$.input.n: not an int",
            "$.input.n",
        ),
        {"status": 422, "title": "Unprocessable", "path": "$.input.n", "retry_after": None},
        "POST /v1/workflows/buy/runs: 422 Unprocessable: $.input.n: not an int",
    ),
    (
        WorkflowServerError("GET /", 422, "Unprocessable", "unknown", "$.inputs", 5.0),
        {"request": "GET /", "detail": "unknown", "retry_after": 5.0},
        "GET /: 422 Unprocessable: $.inputs: unknown",
    ),
    (
        WorkflowServerError("GET /", 502, "Bad Gateway"),
        {"detail": "", "path": None},
        "GET /: 502 Bad Gateway",
    ),
    (
        ServerUnreachableError("http://here:8000", "GET /v1/runs", "no answer"),
        {"url": "http://here:8000", "request": "GET /v1/runs", "unknown": None},
        "http://here:8000: GET /v1/runs: no answer",
    ),
    (
        ServerUnreachableError(
            "http://here", "POST /", "no answer", "whether it was sent is not known"
        ),
        {"problem": "no answer", "unknown": "whether it was sent is not known"},
        "http://here: POST /: no answer; whether it was sent is not known",
    ),
    (
        RemoteRunError("order-17", "failed", "ValueError", "sold out", "buy", 3, ["with tea"]),
        {
            "run_id": "order-17",
            "status": "failed",
            "type": "ValueError",
            "message": "sold out",
            "step": "buy",
            "attempts": 3,
            "notes": ("with tea",),
            "__notes__": ["with tea"],
        },
        "run 'order-17' failed in step buy: ValueError: sold out",
    ),
    (
        RemoteRunError("order-17", "timed_out", "WorkflowTimeoutError", ""),
        {"step": None, "attempts": None, "notes": ()},
        "run 'order-17' timed out: WorkflowTimeoutError",
    ),
    (
        RemoteRunError("order-17", "stuck", "WorkflowRuntimeError", "recovered 10 times"),
        {"status": "stuck"},
        "run 'order-17' is stuck: WorkflowRuntimeError: recovered 10 times",
    ),
    (
        WorkflowStalledError({"one": "returned None", "two": "has not run"}),
        {"last_acts": {"one": "returned None", "two": "has not run"}, "missing": ()},
        "The run has stalled: no step is queued, running or waiting, and this workflow accepts no "
        "external events. Make one of these steps return a StopEvent:\n  step one returned None\n  step two has not run",
    ),
    (
        WorkflowStalledError({"one": "returned A"}, iter([("two", "B, B")])),
        {"last_acts": {"one": "returned A"}, "missing": (("two", "B, B"),)},
        "The run has stalled: no step is queued, running or waiting, and this workflow accepts no "
        "external events. Make one of these steps return a StopEvent:\n  step one returned A\n  step two waits for B, B",
    ),
]

samples = pytest.mark.parametrize(
    ("error", "facts", "sentence"), SAMPLES, ids=[type(row[0]).__name__ for row in SAMPLES]
)


@samples
def test_each_exception_keeps_its_facts_and_writes_its_sentence(
    error: WorkflowError, facts: dict[str, object], sentence: str
):
    assert {name: getattr(error, name) for name in facts} == facts
    assert str(error) == sentence


@samples
def test_each_exception_survives_pickling_and_copying(
    error: WorkflowError, facts: dict[str, object], sentence: str
):
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        twin = pickle.loads(pickle.dumps(error, protocol))
        assert type(twin) is type(error)
        assert (vars(twin), str(twin)) == (vars(error), sentence)
    assert vars(copy.copy(error)) == vars(copy.deepcopy(error)) == vars(error)
    assert type(error).__name__ in repr(error)


def test_every_exception_has_a_sample_and_is_a_workflow_error():
    public = {getattr(errors, name) for name in errors.__all__}
    assert public == {type(error) for error, _, _ in SAMPLES}
    assert all(issubclass(cls, WorkflowError) for cls in public)


def test_an_event_validation_error_is_a_value_error():
    assert issubclass(EventValidationError, ValueError)
