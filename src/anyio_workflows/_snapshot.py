"""Snapshots: what `ctx.to_dict()` returns and `Context.from_dict()` reads (P3, P4).

The format, version 3, is JSON:

    {
      "version": 3,
      "workflow": the name of the workflow class, for readers,
      "state": the state of the store; null if it was never used,
      "failed": null, or after a failure the pending work that `retry_failed()` restores, as in "work",
      "work": null after a stop event or a failure, else the pending work {
        "next_id": the id of the next execution,
        "input_asked": whether the run has asked for input,
        "last_finished": the step that finished last, or null,
        "work": [{"id", "step", "events", "branch", "recoveries", "attempt",
                  "elapsed": seconds since its first start, or null,
                  "due_in": seconds left of its retry delay, or null,
                  "last_error", "last_failed_at",
                  "waits": [{"event_type", "requirements", "waiter_id", "asked", "timed_out",
                             "answer", "question", "question_number", "number", "since"}],
                  "collected": [{"buffer_id", "expected", "events"}],
                  "opener": the event that opened the batch it joins, if the step takes that, or null}],
        "batches": [{"outer": the branch it was opened in, or null,
                     "branches": [{"id", "sets"}],
                     "arrived": {join: events, or null once it has fired}, "recoveries",
                     "cancelled", "opener": the event that opened it, if a join takes that, or null}],
        "sets": [{"step", "queues": for each parameter [{"event", "recoveries"}]}],
        "buffers": [{"step", "buffer_id", "expected", "kept": [{"event", "recoveries"}]}],
        "questions": [{"number", "event"}],
        "events_read": how many events of the stream had been read
      }
    }

A question is an event of the stream. Its number is its position there, from 1, or 0 if it was read in an
earlier run. If the number is above "events_read", it was never read, and it is asked again (W4).

Version 2 lacks "opener" and, in "arrived", the joins that have fired. Version 1 lacks "failed", "questions",
"events_read", and in "waits" the last four names, too.

Values that JSON does not know are tagged, `{"$": tag, "value": ...}`. The tag of an event, or of another class
that the workflow declares, is `module:qualname`. It is looked up among those classes, those in the `types` of
the workflow class, and the event classes that its code names. Nothing that a snapshot names is ever imported.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import attrs

from . import events as our_events
from ._code_names import declared_types, named_event_classes
from ._json.codec import JsonCodec
from ._json.hooks import Hooks
from ._json.renamed import Renamed, unknown_step
from ._ledger.pending import (
    BatchRecord,
    BufferRecord,
    LedgerRecord,
    SavedState,
    SetRecord,
    WaitRecord,
    WorkRecord,
)
from ._messages import names_of, short_repr
from .errors import ContextSerdeError
from .events import Event, InputRequiredEvent, StopEvent
from .graph import Graph, StepSpec
from .state import DictState

VERSION = 3

# A codec looks at every class that a workflow mentions, which takes longer than a small snapshot. One is kept
# for each `types=` that was given, as long as the graph lives.
_codecs: WeakKeyDictionary[Graph, dict[tuple[type, ...], JsonCodec]] = WeakKeyDictionary()


@attrs.frozen
class Snapshot:
    """A `SavedState` as a record. What has a default is not in version 1."""

    version: int
    workflow: str
    state: Any
    work: LedgerRecord | None
    failed: LedgerRecord | None = None


def dump(saved: SavedState, types: tuple[type, ...] = ()) -> dict[str, Any]:
    """Return the snapshot of what one run leaves to the next.

    Raises:
        ContextSerdeError: If a value in it cannot be written as JSON.
    """
    state = saved.state()
    snapshot = Snapshot(
        version=VERSION,
        workflow=saved.graph.name,
        state=dict(state) if isinstance(state, DictState) else state,
        work=saved.pending_work(),
        failed=saved.failed_work(),
    )
    codec = _codec(saved.graph, saved.types + types)
    data: dict[str, Any] = codec.dump(snapshot, hooks=saved.hooks)["value"]
    return data


def load(
    graph: Graph,
    data: Mapping[str, Any],
    types: tuple[type, ...] = (),
    renamed: object = None,
    hooks: Hooks | None = None,
) -> SavedState:
    """Return what a snapshot leaves to the next run of a workflow.

    Args:
        graph: The steps of the workflow.
        data: The snapshot.
        types: Types that it may name, besides those that the workflow declares or names.
        renamed: What it may call by other names, as the caller gave it.
        hooks: The hooks of the workflow's converter, if it has one.

    Raises:
        ContextSerdeError: If the data is not a snapshot, or does not fit the workflow.
        WorkflowConfigurationError: If `renamed` is wrong.
    """
    codec = _codec(graph, types)
    names = codec.renamed(renamed, graph.steps)
    _check_version(data)
    snapshot: Snapshot = codec.load(dict(data), Snapshot, renamed=names, hooks=hooks)
    if names.steps:
        snapshot = _with_steps_of_today(snapshot, names)
    for path, problem in _faults(snapshot, graph):
        raise ContextSerdeError(
            path, problem
        )  # the first one: later checks rely on the earlier ones
    saved = SavedState(graph, types, hooks, pending=snapshot.work, failed=snapshot.failed)
    if snapshot.state is not None:
        state = DictState(snapshot.state) if graph.state_type is None else snapshot.state
        saved.store._restore(state)
    return saved


def _check_version(data: object) -> None:
    if not isinstance(data, Mapping):
        hint = "; json.loads() makes one of JSON" if isinstance(data, str | bytes) else ""
        raise ContextSerdeError("$", f"a snapshot is a mapping, not {type(data).__name__}{hint}")
    if "is_running" in data:  # every snapshot of llama-index-workflows has it, and none of ours
        problem = (
            "this is a snapshot of llama-index-workflows, whose runs cannot be continued here; finish them "
            "there, or start over with Context(workflow), to which ctx.store.set() gives their state"
        )
        raise ContextSerdeError("$", problem)
    if "version" not in data:
        problem = "this is no snapshot: there is no 'version', which to_dict() writes"
        raise ContextSerdeError("$", problem)
    version = data["version"]
    if type(version) is not int or version < 1:
        problem = f"expected a version from 1 to {VERSION}, got {short_repr(version)}"
        raise ContextSerdeError("$.version", problem)
    if version > VERSION:
        problem = (
            f"it was written by a newer release, in version {short_repr(version)} of the format; this "
            f"release reads versions up to {VERSION}"
        )
        raise ContextSerdeError("$.version", problem)


def _with_steps_of_today(snapshot: Snapshot, names: Renamed) -> Snapshot:
    taken: dict[str, str] = {}

    def renew(record: LedgerRecord | None) -> LedgerRecord | None:
        return record and record.with_steps(lambda step: names.new_step(step, taken))

    return attrs.evolve(snapshot, work=renew(snapshot.work), failed=renew(snapshot.failed))


def _codec(graph: Graph, types: tuple[type, ...]) -> JsonCodec:
    codecs = _codecs.setdefault(graph, {})
    if types not in codecs:
        ours = [cls for name in our_events.__all__ if _is_event(cls := getattr(our_events, name))]
        state = [] if graph.state_type is None else [graph.state_type]
        declared = [] if graph.owner is None else declared_types(graph.owner)
        given = dict.fromkeys([Snapshot, *ours, *graph.events, *state, *declared, *types])
        codecs[types] = JsonCodec(given, _named_in_code(graph))
    return codecs[types]


def _named_in_code(graph: Graph) -> list[type[Event]]:
    """Return the event classes that the code of a workflow names, since its steps may wait for or send them."""
    steps = [spec.function for spec in graph.steps.values()]
    return [] if graph.owner is None else named_event_classes(graph.owner, steps)


def _is_event(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Event)


# --- What does not fit the workflow -----------------------------------------------------------------
#
# The codec has seen to it that each value is of its type. What is left are values that are no ids, counts or
# seconds, names of steps, branches and ids that are not there or are there twice, and events that a step does
# not take. Whatever passes must not break the ledger.

_MOST = 2**53
"""The largest id or count: what every reader of JSON reads exactly, and more than a run can count."""

_LARGEST = sys.float_info.max

_Faults = Iterator[tuple[str, str]]
"""The path of each value that does not fit, and what is wrong with it."""


def _faults(snapshot: Snapshot, graph: Graph) -> _Faults:
    wanted = graph.state_type or dict
    if snapshot.state is not None and not isinstance(snapshot.state, wanted):
        yield "$.state", f"expected {wanted.__name__}, got {type(snapshot.state).__name__}"
    if snapshot.work is not None and snapshot.failed is not None:
        yield "$.failed", "there is work left in 'work', so the run has not failed"
    if snapshot.work is not None:
        yield from _ledger_faults("$.work", snapshot.work, graph)
    if snapshot.failed is not None:
        yield from _ledger_faults("$.failed", snapshot.failed, graph)


def _ledger_faults(root: str, record: LedgerRecord, graph: Graph) -> _Faults:
    if not 0 < record.next_id <= _MOST:
        yield f"{root}.next_id", f"ids count from 1, got {short_repr(record.next_id)}"
    branches: set[int] = set()
    for n, batch in enumerate(record.batches):
        yield from _batch_faults(f"{root}.batches[{n}]", batch, graph, branches)
    ids: set[int] = set()
    for n, work in enumerate(record.work):
        path = f"{root}.work[{n}]"
        if work.id in ids:
            yield f"{path}.id", f"{work.id} is taken by other work"
        if not 0 < work.id < record.next_id:
            problem = f"{short_repr(work.id)} is not from 1 to below next_id ({record.next_id})"
            yield f"{path}.id", problem
        ids.add(work.id)
        if work.branch is not None and work.branch not in branches:
            yield f"{path}.branch", f"no branch {short_repr(work.branch)} in 'batches'"
        yield from _work_faults(path, work, graph)
    yield from _set_faults(root, record.sets, graph)
    yield from _buffer_faults(root, record.buffers, graph)
    yield from _question_faults(root, record)


def _step_faults(path: str, step: str, graph: Graph, events: Collection[Event] = ()) -> _Faults:
    """Check the name of a step.

    Args:
        path: Where it is.
        step: The name.
        graph: The steps that there are.
        events: What it has to do with one event parameter, or a join, if known.
    """
    if step in graph.steps:
        return
    types = {type(event) for event in events}
    fitting = [spec.name for spec in graph.steps.values() if types and all(map(spec.takes, types))]
    problem = f"{graph.name} has no step {short_repr(step)}"
    yield path, f"{problem}; {unknown_step(step, graph.steps, fitting)}"


def _recovery_faults(path: str, recoveries: Mapping[str, int], graph: Graph) -> _Faults:
    for name, number in recoveries.items():
        yield from _step_faults(f"{path}.recoveries", name, graph)
        if not 0 < number <= _MOST:
            yield f"{path}.recoveries.{name}", f"expected 1 or more, got {short_repr(number)}"


def _event_faults(path: str, events: Iterable[Event], spec: StepSpec) -> _Faults:
    """Check the events that are meant for a step with one event parameter, or a join."""
    for n, event in enumerate(events):
        if not spec.fits(spec.event_params[0], event):
            yield f"{path}[{n}]", f"step {spec.name} does not take {type(event).__name__}"


def _batch_faults(path: str, batch: BatchRecord, graph: Graph, branches: set[int]) -> _Faults:
    if batch.outer is not None and batch.outer not in branches:
        yield f"{path}.outer", f"no branch {short_repr(batch.outer)} in an earlier batch"
    if not batch.branches:
        yield f"{path}.branches", "an open batch has at least one branch, got none"
    for n, branch in enumerate(batch.branches):
        if not 0 <= branch.id <= _MOST:
            problem = f"branch ids count from 0, got {short_repr(branch.id)}"
            yield f"{path}.branches[{n}].id", problem
        if branch.id in branches:
            yield f"{path}.branches[{n}].id", f"there is a branch {branch.id} already"
        branches.add(branch.id)
        yield from _set_faults(f"{path}.branches[{n}]", branch.sets, graph)
    for join, events in batch.arrived.items():
        yield from _step_faults(f"{path}.arrived", join, graph)
        if not graph.steps[join].is_join:
            yield f"{path}.arrived", f"step {join} joins no batch, since it takes no list of events"
        yield from _event_faults(f"{path}.arrived.{join}", events or (), graph.steps[join])
        if events is not None:
            yield from _opener_faults(path, batch.opener, graph.steps[join])
    yield from _recovery_faults(path, batch.recoveries, graph)


def _opener_faults(path: str, opener: Event | None, join: StepSpec) -> _Faults:
    """Check the event that opened the batch of a join, which may ask for it."""
    wanted = join.opener_param
    if wanted is None or isinstance(opener, wanted.accepts):
        return
    got = f"not {type(opener).__name__}"
    if opener is None:
        got = (
            "but there is none; the snapshot was taken before the step asked for it, or by an earlier "
            "release: finish its run there"
        )
    yield (
        f"{path}.opener",
        f"step {join.name} takes the event that opened its batch as {wanted.name!r} "
        f"({names_of(wanted.accepts)}), {got}",
    )


def _set_faults(path: str, sets: list[SetRecord], graph: Graph) -> _Faults:
    seen: set[str] = set()
    for n, record in enumerate(sets):
        where = f"{path}.sets[{n}]"
        yield from _step_faults(f"{where}.step", record.step, graph)
        spec = graph.steps[record.step]
        if len(spec.event_params) < 2:
            yield f"{where}.step", f"step {record.step} takes no sets of events"
        if record.step in seen:
            yield f"{where}.step", f"the sets of step {record.step} are there already"
        seen.add(record.step)
        if len(record.queues) != len(spec.event_params):
            problem = (
                f"step {record.step} takes {len(spec.event_params)} events at once, got queues "
            )
            yield f"{where}.queues", problem + f"for {len(record.queues)}"
        for i, (param, queue) in enumerate(zip(spec.event_params, record.queues, strict=True)):
            for k, kept in enumerate(queue):
                place = f"{where}.queues[{i}][{k}]"
                if not spec.fits(param, kept.event):
                    problem = f"{param.name!r} does not take {type(kept.event).__name__}"
                    yield f"{place}.event", f"step {record.step}: {problem}"
                yield from _recovery_faults(place, kept.recoveries, graph)


def _question_faults(root: str, record: LedgerRecord) -> _Faults:
    if not 0 <= record.events_read <= _MOST:
        yield f"{root}.events_read", f"expected 0 or more, got {short_repr(record.events_read)}"
    for n, question in enumerate(record.questions):
        path = f"{root}.questions[{n}]"
        if not 0 < question.number <= _MOST:
            yield f"{path}.number", f"events count from 1, got {short_repr(question.number)}"
        if not isinstance(question.event, InputRequiredEvent):
            got = type(question.event).__name__
            yield f"{path}.event", f"expected an InputRequiredEvent, got {got}"


def _buffer_faults(root: str, buffers: list[BufferRecord], graph: Graph) -> _Faults:
    seen: set[tuple[str, str | None]] = set()
    for n, buffer in enumerate(buffers):
        path = f"{root}.buffers[{n}]"
        yield from _step_faults(f"{path}.step", buffer.step, graph)
        if (buffer.step, buffer.buffer_id) in seen:
            yield path, f"step {buffer.step} has a buffer {short_repr(buffer.buffer_id)} already"
        seen.add((buffer.step, buffer.buffer_id))
        yield from _type_faults(f"{path}.expected", buffer.expected)
        for k, kept in enumerate(buffer.kept):
            yield from _recovery_faults(f"{path}.kept[{k}]", kept.recoveries, graph)


def _type_faults(path: str, types: list[type[Event]]) -> _Faults:
    for n, cls in enumerate(types):
        if not _is_event(cls):
            yield f"{path}[{n}]", f"expected an event class, got {cls.__name__}"


def _wait_faults(path: str, waits: list[WaitRecord]) -> _Faults:
    seen: set[tuple[str, int]] = set()
    numbered = any(wait.number for wait in waits)  # version 1 has no numbers
    for n, wait in enumerate(waits):
        place = f"{path}.waits[{n}]"
        if not _is_event(wait.event_type):
            problem = f"expected an event class, got {wait.event_type.__name__}"
            yield f"{place}.event_type", problem
        if wait.answer is not None and not isinstance(wait.answer, wait.event_type):
            problem = f"expected {wait.event_type.__name__}, got {type(wait.answer).__name__}"
            yield f"{place}.answer", problem
        if isinstance(wait.question, StopEvent):
            yield f"{place}.question", f"a step cannot ask with {type(wait.question).__name__}"
        if not 0 <= wait.question_number <= _MOST:
            problem = f"expected 0 or more, got {short_repr(wait.question_number)}"
            yield f"{place}.question_number", problem
        if numbered and not 0 < wait.number <= _MOST:
            yield f"{place}.number", f"{short_repr(wait.number)} is below 1 or too large"
        if numbered and (wait.label, wait.number) in seen:
            yield f"{place}.number", f"{wait.number} is taken by another wait of that name"
        seen.add((wait.label, wait.number))
        if wait.since.tzinfo is None:
            yield f"{place}.since", "the time has no UTC offset, as in '2024-05-01T12:00:00+00:00'"


def _work_faults(path: str, work: WorkRecord, graph: Graph) -> _Faults:
    yield from _step_faults(f"{path}.step", work.step, graph, work.events)
    yield from _recovery_faults(path, work.recoveries, graph)
    if not 0 < work.attempt <= _MOST:
        yield f"{path}.attempt", f"attempts count from 1, got {short_repr(work.attempt)}"
    for name, least in (("elapsed", 0.0), ("due_in", -_LARGEST)):
        value = getattr(work, name)
        endless = name == "due_in" and value == math.inf  # a policy may say so
        if value is not None and not (endless or least <= value <= _LARGEST):
            yield f"{path}.{name}", f"expected a number of seconds, got {short_repr(value)}"
    spec = graph.steps[work.step]
    if spec.is_join:
        yield from _event_faults(f"{path}.events", work.events, spec)
        yield from _opener_faults(path, work.opener, spec)
    elif len(work.events) != len(spec.event_params):
        wanted, got = len(spec.event_params), len(work.events)
        yield f"{path}.events", f"step {work.step} takes {wanted}, got {got} events"
    else:
        for n, (param, event) in enumerate(zip(spec.event_params, work.events, strict=True)):
            if not spec.fits(param, event):
                problem = f"step {work.step} does not take {type(event).__name__} here"
                yield f"{path}.events[{n}]", problem
    yield from _wait_faults(path, work.waits)
    for n, one in enumerate(work.collected):
        place = f"{path}.collected[{n}]"
        yield from _type_faults(f"{place}.expected", one.expected)
        if one.events is not None and [type(event) for event in one.events] != one.expected:
            yield f"{place}.events", "not of the types in 'expected'"
