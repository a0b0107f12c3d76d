"""The rows of a run: what it owes, in small pieces with keys, written and read back.

The first letter of a key says what the row is:

    m                       counters: a number above those of all work, the next one of a part; what finished last
    w7                      work 7: its step and events, attempt, recoveries, retry delay, last error
    v7:1:Answer             a wait of work 7, by its id, with its question and its answer
    b3                      batch 3: the branch it was opened in, its joins, and which of them have fired
    r4                      branch 4: its batch
    a3/join/00000012        what arrived for a join of batch 3, in this place
    k9                      an event in a buffer: of `ctx.collect_events()`, or of a step with several events
    x["step","buffer"]      the types that the last call of `ctx.collect_events()` asked for
    scount                  the value of the state's key "count"
    d                       the decision how the run ends, until its terminal event is written
    f                       after the end, if rows are left: what `retry()` needs to know

Batches, branches and buffered events are numbered in the order in which they began, as *parts*.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, NamedTuple

import attrs

from .._json.codec import JsonCodec, compact
from .._json.hooks import Hooks
from .._json.renamed import Renamed
from .._ledger.fanin import Batch, Buffered
from .._ledger.pending import (
    BatchRecord,
    BranchRecord,
    BufferRecord,
    KeptRecord,
    LedgerRecord,
    SetRecord,
    WaitRecord,
    WorkRecord,
    take_collected,
    take_wait,
)
from .._ledger.work import History, Wait, Work
from .._messages import short_repr
from ..errors import ContextSerdeError
from ..events import Event
from ..graph import Graph
from ..state import DictState


def arrival_key(batch: int, join: str, place: int) -> str:
    """Return the key of what arrived for a join."""
    return f"a{batch}/{join}/{place:08d}"


def check_key(key: str, path: str) -> None:
    """Refuse a text that cannot be part of a key, because it has half of a surrogate pair in it.

    Raises:
        ContextSerdeError: Which names it by `path`.
    """
    if not key.isascii():
        try:
            key.encode()
        except UnicodeEncodeError as error:
            raise ContextSerdeError(path, f"{short_repr(key)} is no text: {error.reason}") from None


def buffer_key(step: str, buffer_id: str | None) -> str:
    """Return the key of the types that a collect buffer is for."""
    return "x" + compact([step, buffer_id])


def _due(left: float, wall: float) -> str:
    """Return how many seconds are left of a time, as the last parts of a row.

    Both in seconds and until when: time passes while nobody executes the run, and the wall clock may be set
    back (D7).
    """
    return f'"due_in":{left!r},"due_at":{wall + left!r}'


def _take_due(row: dict[str, Any], wall: float) -> float | None:
    """Return how many seconds are left, which is never more than there were; `None` without a limit."""
    left, until = row.pop("due_in", None), row.pop("due_at", None)
    return None if left is None else max(0.0, min(left, until - wall))


@attrs.define(eq=False, repr=False)
class RowWriter:
    """Writes parts of a run as JSON.

    Attributes:
        codec: Knows the types that the run may hold.
        hooks: The hooks of the converter of the workflow, if it has one.
        wall: Returns the wall clock's time, in seconds since 1970.
        texts: The events that were written since the last group, by their ids, each with its JSON: an
            event is written once, though several steps take it. The events are kept, so that their ids stay theirs.
    """

    codec: JsonCodec
    hooks: Hooks | None = None
    wall: Callable[[], float] = time.time
    texts: dict[int, tuple[Event, str]] = attrs.field(factory=dict, init=False)

    def value(self, value: Any, path: str = "$") -> str:
        """Return a value as JSON.

        Raises:
            ContextSerdeError: If it cannot be written.
        """
        return compact(self.codec.dump(value, path, self.hooks))

    def event(self, event: Event) -> str:
        """Return an event as JSON.

        Raises:
            ContextSerdeError: If it, or something in it, cannot be written.
        """
        known = self.texts.get(id(event))
        if known is None:
            text = self.codec.text_of_event(event, type(event).__name__, self.hooks)
            known = self.texts[id(event)] = (event, text)
        return known[1]

    def events(self, events: Iterable[Event]) -> str:
        """Return events as a JSON array."""
        return f"[{','.join(map(self.event, events))}]"

    def work(self, work: Work, branch: int | None, now: float) -> str:
        """Return a row for work; what most work does not have is left out."""
        payload = work.payload
        events = self.events([payload] if isinstance(payload, Event) else payload)
        parts = [f'{{"step":{quoted(work.step)},"events":{events}']
        if branch is not None:
            parts.append(f'"branch":{branch}')
        if work.recoveries:
            parts.append(f'"recoveries":{compact(work.recoveries)}')
        if work.opener is not None:
            parts.append(f'"opener":{self.event(work.opener)}')
        if work.attempt > 1:
            parts.append(f'"attempt":{work.attempt}')
        if work.due is not None:
            parts.append(_due(work.due - now, self.wall()))
        if work.history is not None:
            parts += self._history(work.history, now)
        return ",".join(parts) + "}"

    def _history(self, history: History, now: float) -> list[str]:
        parts = []
        if history.first_started is not None:
            parts.append(f'"elapsed":{now - history.first_started!r}')
        if history.last_error is not None:
            parts.append(f'"last_error":{self.value(history.last_error)}')
            parts.append(f'"last_failed_at":{self.value(history.last_failed_at)}')
        if collected := history.collected + history.earlier_collected:
            records = [take_collected(one) for one in collected]
            parts.append(f'"collected":{self.value(records)}')
        return parts

    def wait(self, wait: Wait, answer: Event | None, now: float) -> str:
        """Return a row for a wait, with its answer; what most waits do not have is left out."""
        record = take_wait(wait)
        if answer is not None:  # the wait itself may have it only when this row is on the disk
            record = attrs.evolve(record, answer=answer, question=None)
        # What was written to the log counts as read: nothing is asked again (D2).
        record = attrs.evolve(record, question_number=0)
        fields = self._fields(record, f"wait {wait.label}")
        text = compact(
            {name: value for name, value in fields.items() if value != _BLANK_WAIT.get(name, ...)}
        )
        if math.isinf(wait.due):
            return text
        return f"{text[:-1]},{_due(wait.due - now, self.wall())}}}"

    def batch(self, batch: Batch, outer: int | None) -> str:
        """Return a row for a batch."""
        fields = {
            "outer": outer,
            "joins": {join.name: arrived is None for join, arrived in batch.arrived.items()},
            "recoveries": batch.recoveries,
            "cancelled": batch.cancelled,
        }
        opener = "" if batch.opener is None else f',"opener":{self.event(batch.opener)}'
        return compact(fields)[:-1] + opener + "}"

    def buffered(self, buffered: Buffered, place: list[Any]) -> str:
        """Return a row for an event in a buffer; `place` says in which one."""
        recoveries = compact(buffered.recoveries)
        return f"[{compact(place)},{self.event(buffered.event)},{recoveries}]"

    def counters(
        self, next_id: int, input_asked: bool, next_part: int, last_finished: str | None
    ) -> str:
        """Return the row of the counters; what most runs do not have is left out."""
        fields: dict[str, Any] = {"next_id": next_id}
        if input_asked:
            fields["input_asked"] = True
        if last_finished is not None:
            fields["last_finished"] = last_finished
        if next_part > 1:
            fields["next_part"] = next_part
        return compact(fields)

    def types(self, types: Iterable[type[Event]]) -> str:
        """Return a row for event types."""
        return self.value(list(types))

    def state(self, state: Any) -> dict[str, str]:
        """Return the rows of the state, by its top-level keys.

        Raises:
            ContextSerdeError: If a value cannot be written, or a key is no text.
        """
        if isinstance(state, DictState):
            for key in state:
                if type(key) is not str:
                    raise ContextSerdeError(
                        "$.state",
                        f"the keys of a state that is kept are texts, not {short_repr(key)}",
                    )
                check_key(key, "$.state")
            return {f"s{key}": self.value(value, f"$.state.{key}") for key, value in state.items()}
        data = self._fields(state, "$.state")
        if not isinstance(data, dict):  # a model with a root
            return {"s": compact(data)}
        return {f"s{key}": compact(value) for key, value in data.items()}

    def _fields(self, record: Any, path: str) -> Any:
        return self.codec.dump(record, path, self.hooks)["value"]


# --- Reading ------------------------------------------------------------------------------------


class RunRecord(NamedTuple):
    """What the rows of a run say.

    Attributes:
        ledger: What is pending.
        batches: The number of the batch of each branch, by the number of the branch.
        next_part: The next number for a part of it.
        wait_dues: How many seconds are left until each wait times out that has a limit, by its id.
        state: The state; `None` if it was never used.
        decision: The row of the decision, if there is one.
        left: The row that says what `retry()` needs to know, if the run has ended.
    """

    ledger: LedgerRecord
    batches: dict[int, int]
    next_part: int
    wait_dues: dict[str, float]
    state: Any
    decision: Mapping[str, Any] | None
    left: Mapping[str, Any] | None


# What is left out of rows: a run that waits for weeks takes less than a kilobyte, with all its indexes.
_BLANK_WAIT: dict[str, Any] = {
    "requirements": {},
    "waiter_id": None,
    "asked": True,
    "timed_out": False,
    "answer": None,
    "question": None,
    "question_number": 0,
}

_BLANK_WORK: dict[str, Any] = {
    "branch": None,
    "recoveries": {},
    "attempt": 1,
    "elapsed": None,
    "due_in": None,
    "last_error": None,
    "last_failed_at": None,
    "waits": [],
    "collected": [],
}


@attrs.define(eq=False, repr=False)
class RowReader:
    """Reads the rows of a run of a workflow.

    Attributes:
        codec: Knows the types that the run may hold.
        hooks: The hooks of the converter of the workflow, if it has one.
        renamed: What the rows may call by other names.
    """

    codec: JsonCodec
    hooks: Hooks | None = None
    renamed: Renamed = attrs.field(factory=Renamed)

    def value(self, text: str, as_type: Any = None, path: str = "$") -> Any:
        """Return the value that JSON stands for.

        Raises:
            ContextSerdeError: If there is none.
        """
        return self._load(_parsed(text, path), as_type, path)

    def event(self, text: str, path: str = "$") -> Event:
        """Return the event that JSON stands for."""
        event = self.value(text, None, path)
        if not isinstance(event, Event):
            raise ContextSerdeError(path, f"expected an event, got {short_repr(event)}")
        return event

    def _load(self, data: Any, as_type: Any, path: str) -> Any:
        return self.codec.load(data, as_type, path, self.renamed, self.hooks)

    def run(self, rows: Mapping[str, str], graph: Graph, wall: float) -> RunRecord:
        """Read the rows of a run, at the wall clock's time `wall`.

        Raises:
            ContextSerdeError: If a row cannot be read; its path begins with the key of the row.
        """
        try:
            found = self._run(rows, graph, wall)
        except ContextSerdeError:
            raise
        except Exception as error:  # a key or a value is not what any release writes
            raise ContextSerdeError("rows", f"damaged: {type(error).__name__}: {error}") from error
        if not self.renamed.steps:
            return found
        taken: dict[str, str] = {}
        ledger = found.ledger.with_steps(lambda step: self.renamed.new_step(step, taken))
        return found._replace(ledger=ledger)

    def _run(self, rows: Mapping[str, str], graph: Graph, wall: float) -> RunRecord:
        by_kind: dict[str, list[str]] = {}
        for key in rows:
            by_kind.setdefault(key[:1], []).append(key)

        def parsed(key: str) -> Any:
            return _parsed(rows[key], f"row {key}")

        def keys(kind: str) -> list[str]:
            return sorted(by_kind.get(kind, ()), key=lambda key: int(key[1:]))

        counters = parsed("m") if "m" in rows else {}
        wait_dues: dict[str, float] = {}
        waits = self._waits(rows, by_kind.get("v", ()), wall, wait_dues)
        work = [
            self._work(int(key[1:]), parsed(key), waits.get(int(key[1:]), []), wall)
            for key in keys("w")
        ]
        batch_of = {int(key[1:]): int(parsed(key)) for key in keys("r")}
        places = [(key, parsed(key)) for key in keys("k")]
        kept = [(place, self._kept(f"row {key}", row)) for key, (place, *row) in places]
        record = LedgerRecord(
            next_id=counters.get("next_id", 1),
            input_asked=counters.get("input_asked", False),
            last_finished=counters.get("last_finished"),
            work=work,
            batches=self._batches(rows, keys("b"), batch_of, by_kind.get("a", ()), kept, graph),
            sets=self._sets(kept, None, graph),
            buffers=self._buffers(rows, by_kind.get("x", ()), kept),
        )
        return RunRecord(
            record,
            batch_of,
            counters.get("next_part", 1),
            wait_dues,
            self._state(rows, by_kind.get("s", ()), graph),
            parsed("d") if "d" in rows else None,
            parsed("f") if "f" in rows else None,
        )

    def _work(
        self, number: int, row: dict[str, Any], waits: list[WaitRecord], wall: float
    ) -> WorkRecord:
        due_in = _take_due(row, wall)
        data = {**_BLANK_WORK, "id": number, **row, "due_in": due_in}
        work: WorkRecord = self._load(data, WorkRecord, f"row w{number}")
        return attrs.evolve(work, waits=waits)

    def _waits(
        self, rows: Mapping[str, str], keys: Iterable[str], wall: float, dues: dict[str, float]
    ) -> dict[int, list[WaitRecord]]:
        """Return the waits by the ids of their work; what is left of their time goes into `dues`."""
        found: dict[int, list[WaitRecord]] = {}
        for key in keys:
            row = _parsed(rows[key], f"row {key}")
            if (due := _take_due(row, wall)) is not None:
                dues[key[1:]] = due
            wait = self._load({**_BLANK_WAIT, **row}, WaitRecord, f"row {key}")
            found.setdefault(int(key[1:].partition(":")[0]), []).append(wait)
        for waits in found.values():
            waits.sort(key=lambda wait: (wait.since, wait.number))
        return found

    def _kept(self, path: str, row: list[Any]) -> KeptRecord:
        event, recoveries = row
        return KeptRecord(self._load(event, None, path), recoveries)

    def _batches(
        self,
        rows: Mapping[str, str],
        keys: Iterable[str],
        batch_of: Mapping[int, int],
        arrivals: Iterable[str],
        kept: list[tuple[list[Any], KeptRecord]],
        graph: Graph,
    ) -> list[BatchRecord]:
        arrived: dict[tuple[int, str], list[Event]] = {}
        for key in sorted(arrivals):
            batch, join, _ = key[1:].split("/")
            arrived.setdefault((int(batch), join), []).append(self.event(rows[key], f"row {key}"))
        batches = []
        for key in keys:
            number, row = int(key[1:]), _parsed(rows[key], f"row {key}")
            branches = [branch for branch, batch in batch_of.items() if batch == number]
            opener = row.get("opener")
            batches.append(
                BatchRecord(
                    outer=row["outer"],
                    branches=[BranchRecord(one, self._sets(kept, one, graph)) for one in branches],
                    arrived={
                        join: None if fired else arrived.get((number, join), [])
                        for join, fired in row["joins"].items()
                    },
                    recoveries=row["recoveries"],
                    cancelled=row["cancelled"],
                    opener=None if opener is None else self._load(opener, None, f"row {key}"),
                )
            )
        return batches

    def _buffers(
        self,
        rows: Mapping[str, str],
        keys: Iterable[str],
        kept: list[tuple[list[Any], KeptRecord]],
    ) -> list[BufferRecord]:
        buffers = []
        for key in keys:
            step, buffer_id = json.loads(key[1:])
            inside = [one for place, one in kept if place == ["collect", step, buffer_id]]
            expected = self.value(rows[key], list[type[Event]], f"row {key}")
            if inside:
                buffers.append(BufferRecord(step, buffer_id, expected, inside))
        return buffers

    def _state(self, rows: Mapping[str, str], keys: Iterable[str], graph: Graph) -> Any:
        data = {key[1:]: _parsed(rows[key], f"row {key}") for key in keys}
        if not data:
            return None
        if graph.state_type is None or graph.state_type is DictState:
            values = {key: self._load(value, None, f"row s{key}") for key, value in data.items()}
            return DictState(values)
        return self._load(data.get("", data), graph.state_type, "$.state")

    def _sets(
        self, kept: list[tuple[list[Any], KeptRecord]], branch: int | None, graph: Graph
    ) -> list[SetRecord]:
        """Return the buffers of steps with several events, of one branch or outside of all."""
        sets: dict[str, list[list[KeptRecord]]] = {}
        for place, one in kept:
            if place[0] == "set" and place[1] == branch:
                _, _, step, position = place
                spec = graph.steps.get(self.renamed.steps.get(step, step))
                number = position + 1 if spec is None else len(spec.event_params)
                queues = sets.setdefault(step, [])
                queues.extend([] for _ in range(number - len(queues)))
                queues[position].append(one)
        return [SetRecord(step, queues) for step, queues in sets.items()]


def _parsed(text: str, path: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ContextSerdeError(path, f"no JSON: {error}") from None
