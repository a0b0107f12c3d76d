"""The journal of one run: what changed in it since the last group, and what waits for the next commit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import attrs

from .._backend import LoopHandle
from .._ledger.fanin import Batch, Branch, Buffered
from .._ledger.work import Wait, Work
from ..errors import ContextSerdeError
from ..events import Event
from ..instrument import EventRecord
from ._rows import RowWriter, arrival_key, buffer_key, check_key
from ._store import RunChange, RunStatus, StoredEvent, StoredRun

Durability = Literal["strict", "eventual"]
"""`strict`: no step begins, and no answer is taken, before what it follows from is on the disk. `eventual`: a
consistent prefix of the run survives."""

Part = Batch | Branch | Buffered

Standing = tuple[RunStatus, tuple[str, ...], int]
"""How a run stands, the tags of the event types that it waits for, and how many waits are open."""

_BLOCK = 64
"""So many numbers of work are reserved at once."""


@attrs.define(eq=False, repr=False)
class Answer:
    """An answer that is not on the disk yet.

    Attributes:
        wait: The wait it is for: that of the attempt in progress, if that has begun it again meanwhile.
        event: The answer. The wait has it once it is kept, and until then no other event answers it.
    """

    wait: Wait
    event: Event


@attrs.define(eq=False, repr=False)
class Group:
    """What was committed together for one run, and is to be shown or continued now.

    Attributes:
        held: Work that may be queued at its steps now.
        answers: Answers that the executions may have now.
        events: Events that the log may show now, each with the length of its JSON.
        ended: When the terminal event was written, by the wall clock; `None` if it is not among them.
        replied: Whether mail was replied to, so that a sender may be waiting for that.
    """

    held: Sequence[Work]
    answers: Sequence[Answer]
    events: Sequence[tuple[EventRecord, int]]
    ended: float | None
    replied: bool


# What most groups have nothing of. A thousand runs leave as few new objects behind for each group as they can:
# to look at these, the garbage collector takes as long as all else that becomes of a group.
_NO_COLUMNS: dict[str, Any] = {}
_NO_EVENTS: list[StoredEvent] = []
_NO_REPLIES: dict[int, str] = {}


@attrs.define(eq=False, repr=False)
class Journal:
    """What changed in one run since the last group.

    The ledger, the stream and the workers of a run that is kept mark here what they change. The next group
    takes the marks as rows, with what may happen only after the commit.

    Attributes:
        run_id: The run.
        writer: Writes its parts as JSON.
        loop: The event loop of the run.
        strict: Whether work and answers wait for the commit; events always do.
        on_change: Called whenever something was marked, to have it committed.
        last_seq: The number of the last event of the public stream.
        new: The run, until the first group has inserted it.
        columns: What is to be written about the run itself.
        held: Work that waits for the next commit, or was dropped meanwhile.
        given: Answers that wait for the next commit.
        answers: The answers that are not on the disk yet, by the ids of their waits.
        recoveries: How often it was taken over without progress: no execution has ended, and the run has not come
            to wait for events from outside (D9).
        detached: Whether the run has been let go: nothing is recorded any more.
        decided: Whether the rows are those of the moment when the end of the run was decided; they stay so.
        replies: Answers to mail, by its id.
        touched: Executions in progress that have used the state, and may change what is in it.
        counters: Returns `next_id`, `input_asked` and `last_finished` of the ledger.
        state: Returns the state of the run.
        status: Returns how the run stands, the tags of the event types that it waits for, and the number of
            open waits.
    """

    run_id: str
    writer: RowWriter
    loop: LoopHandle
    strict: bool
    on_change: Callable[[Journal], None]
    last_seq: int = 0
    new: StoredRun | None = None
    columns: dict[str, Any] = attrs.field(factory=dict, init=False)
    held: list[Work] = attrs.field(factory=list, init=False)
    given: list[Answer] = attrs.field(factory=list, init=False)
    answers: dict[str, Answer] = attrs.field(factory=dict, init=False)
    recoveries: int = attrs.field(default=0, init=False)
    detached: bool = attrs.field(default=False, init=False)
    decided: bool = attrs.field(default=False, init=False)
    replies: dict[int, str] = attrs.field(factory=dict, init=False)
    touched: dict[int, None] = attrs.field(factory=dict, init=False)
    counters: Callable[[], tuple[int, bool, str | None]] = attrs.field(init=False)
    state: Callable[[], Any] = attrs.field(init=False)
    status: Callable[[], Standing] = attrs.field(init=False)

    numbers: dict[Part, int] = attrs.field(factory=dict, init=False)
    """The numbers of the parts that have not ended; those of their rows."""

    next_part: int = attrs.field(default=1, init=False)

    _work: dict[int, Work | None] = attrs.field(factory=dict, init=False)
    """Work whose row is to be written, or deleted, by its id."""

    _waits: dict[str, Wait] = attrs.field(factory=dict, init=False)
    """Waits whose row is to be written, by their ids."""

    _waits_of: dict[int, dict[str, None]] = attrs.field(factory=dict, init=False)
    """The ids of the waits that have rows, by the id of their work."""

    _parts: dict[Batch | Branch, None] = attrs.field(factory=dict, init=False)
    """Batches and branches whose row is to be written."""

    _rows: dict[str, str | None] = attrs.field(factory=dict, init=False)
    """Other rows, by key; `None` deletes one."""

    _fresh: dict[str, None] = attrs.field(factory=dict, init=False)
    """Keys of rows that no group has written: to delete them is to forget them."""

    _written_counters: tuple[int, bool, int] | None = attrs.field(default=None, init=False)
    """What the row of the counters says, as far as it has to be right; `None` if there may be none."""

    _state_texts: dict[str, str] = attrs.field(factory=dict, init=False)
    """The rows of the state as they were written last."""

    _last_status: Standing = attrs.field(default=("queued", (), 0), init=False)
    """What the store knows about how the run stands."""

    _stored_events: list[StoredEvent] = attrs.field(factory=list, init=False)
    _events: list[tuple[EventRecord, int]] = attrs.field(factory=list, init=False)
    """What the log shows after the commit, of the same events."""

    _ended: float | None = attrs.field(default=None, init=False)
    _wipe: bool = attrs.field(default=False, init=False)

    def restore(self, rows: Mapping[str, str], next_part: int) -> None:
        """Continue from rows that are on the disk.

        Args:
            rows: All of them, by key.
            next_part: The next number of a part.
        """
        self.next_part = next_part
        for key, text in rows.items():
            if key[0] == "v":
                self._waits_of.setdefault(int(key[1:].partition(":")[0]), {})[key[1:]] = None
            elif key[0] == "s":
                self._state_texts[key] = text
            elif key[0] == "k":  # events in buffers get new rows
                self._rows[key] = None

    def rewrite(self) -> None:
        """Delete all rows that are on the disk; the caller marks all that the run owes."""
        self._wipe, self._written_counters, self._state_texts = True, None, {}
        self.put_state()
        self.change()

    # --- Marks ----------------------------------------------------------------------------------

    @property
    def open(self) -> bool:
        """Whether rows are still recorded."""
        return not (self.detached or self.decided)

    def change(self) -> None:
        """Have what was marked committed."""
        if not self.detached:
            self.on_change(self)

    def add_work(self, work: Work) -> None:
        """Mark work that is new."""
        self._fresh[f"w{work.id}"] = None
        self.mark_work(work)

    def mark_work(self, work: Work) -> None:
        """Mark work that has changed."""
        if self.open and not work.dropped:
            self._work[work.id] = work
            self.change()

    def forget_work(self, work: Work) -> None:
        """Mark work that is over, with its waits."""
        if not self.open:
            return
        key = f"w{work.id}"
        if key in self._fresh:
            del self._fresh[key]
            self._work.pop(work.id, None)
        else:
            self._work[work.id] = None
        for wait in self._waits_of.pop(work.id, ()):
            self._delete(f"v{wait}")
            self._waits.pop(wait, None)
        self.touched.pop(work.id, None)
        if self.recoveries:
            self.columns["recoveries"] = self.recoveries = 0
        self.change()

    def mark_wait(self, wait: Wait) -> None:
        """Mark a wait that has begun or changed."""
        if self.open and not wait.work.dropped:
            self._waits[wait.id] = wait
            self._waits_of.setdefault(wait.work.id, {})[wait.id] = None
            self.change()

    def drop_waits(self, work: Work) -> None:
        """Delete the waits that work no longer has: those that timed out before a retry (W3)."""
        rows = self._waits_of.get(work.id)
        if not rows or work.history is None:
            return
        left = {wait.id for wait in work.history.waits + work.history.earlier_waits}
        for wait in rows.keys() - left:
            del rows[wait]
            self._waits.pop(wait, None)
            self._delete(f"v{wait}")

    def mark_part(self, part: Batch | Branch) -> None:
        """Mark a batch or branch that has begun or changed, unless it has ended."""
        if self.open and part in self.numbers:
            self._parts[part] = None
            self.change()

    def add_part(self, part: Part) -> int:
        """Number a part that begins; returns its number."""
        number = self.numbers[part] = self.next_part
        self.next_part += 1
        self._fresh[f"{_kind(part)}{number}"] = None
        return number

    def forget_part(self, part: Part) -> None:
        """Mark a part that has ended."""
        number = self.numbers.pop(part, None)
        if number is not None and self.open:
            if not isinstance(part, Buffered):
                self._parts.pop(part, None)
            self._delete(f"{_kind(part)}{number}")
            self.change()

    def add_buffered(self, buffered: Buffered, place: list[Any]) -> None:
        """Mark an event that came into a buffer."""
        number = self.add_part(buffered)
        self.put(f"k{number}", self.writer.buffered(buffered, place))

    def put(self, key: str, text: str, fresh: bool = False) -> None:
        """Write a row; `fresh` says that there is none of this key."""
        if self.open:
            if fresh:
                self._fresh[key] = None
            self._rows[key] = text
            self.change()

    def forget(self, key: str) -> None:
        """Delete a row."""
        self._rows[key] = None
        self.change()

    def reply(self, mail: int, text: str) -> None:
        """Answer mail, in the group of what it caused."""
        self.replies[mail] = text
        self.change()

    def delete_arrivals(self, batch: Batch, join: str, number: int) -> None:
        """Delete the rows of the events that arrived for a join."""
        if self.open:
            for place in range(number):
                self._delete(arrival_key(self.numbers[batch], join, place))

    def put_arrival(self, batch: Batch, join: str, place: int, event: Event) -> None:
        """Write the row of an event that arrived for a join."""
        key = arrival_key(self.numbers[batch], join, place)
        self.put(key, self.writer.event(event), fresh=True)

    def put_types(self, step: str, buffer_id: str | None, types: list[type[Event]] | None) -> None:
        """Write the row of the types that a collect buffer is for; `None` if that is empty."""
        if self.open:
            self._rows[buffer_key(step, buffer_id)] = (
                None if types is None else self.writer.types(types)
            )

    def _delete(self, key: str) -> None:
        if key in self._fresh:
            del self._fresh[key]
            self._rows.pop(key, None)
        else:
            self._rows[key] = None

    # --- The state --------------------------------------------------------------------------------

    def write_state(self, work: Work, over: bool = True) -> None:
        """Write what has changed in the state, if the execution has used it; `over` says that it ends.

        Values are shared by reference, so what a step has changed inside one is not announced (P1): the text of
        each is compared with what was written last.

        Raises:
            ContextSerdeError: If a value cannot be written.
        """
        if work.id not in self.touched or not self.open:
            return
        self.put_state()
        if over:
            self.touched.pop(work.id, None)

    def put_state(self) -> None:
        """Write what has changed in the state."""
        state = self.state()
        texts = {} if state is None else self.writer.state(state)
        for key in self._state_texts.keys() - texts.keys():
            self._rows[key] = None
        for key, text in texts.items():
            if self._state_texts.get(key) != text:
                self._rows[key] = text
        self._state_texts = texts
        self.change()

    # --- Events, and the end ------------------------------------------------------------------------

    def add_event(self, record: EventRecord) -> None:
        """Take an event of the public stream; the log shows it after the commit (D3)."""
        if self.detached:
            return
        self.last_seq += 1
        kept = EventRecord(self.last_seq, self.writer.wall(), record.event)
        text = self.writer.event(record.event)
        self._stored_events.append(StoredEvent(kept.seq, kept.time, text))
        self._events.append((kept, len(text)))
        self.change()

    def decide(self, row: str) -> None:
        """Keep the decision how the run ends, with the rows as they are now.

        In the group of the end of the deciding work: a run that owes nothing and has no end would be
        lost if the process died between the two.
        """
        if not self.open:
            return
        try:
            self._flush()
        except ContextSerdeError:  # what cannot be written decided this: its rows stay as they were
            self._clear_marks()
        self._rows["d"] = row
        self.decided = True
        self.change()

    def end(self, status: RunStatus, error: str | None, left: str | None) -> None:
        """Note that the terminal event has been written.

        Args:
            status: How the run ended.
            error: Why it has no result, as JSON.
            left: The row that says what `retry()` needs to know; `None` if there is nothing to continue with.
        """
        if self.detached:
            return
        ended = self.writer.wall()
        self.columns |= ending_columns(status, ended, error)
        if left is None:
            self._rows, self._wipe = {}, True
        else:
            self._rows |= {"d": None, "f": left}
        self._ended = ended
        self.change()

    # --- Groups -------------------------------------------------------------------------------------

    def take(self) -> tuple[RunChange, Group]:
        """Return what changed since the last group, and what is to be continued once that is kept.

        Raises:
            ContextSerdeError: If something cannot be written that could be when it was marked: it was
                changed since.
        """
        if not self.decided:
            self._flush()
            self._note_status()
        change = RunChange(
            self.run_id,
            self.new,
            self.columns or _NO_COLUMNS,
            self._wipe,
            self._rows,
            self._stored_events or _NO_EVENTS,
            self.replies or _NO_REPLIES,
        )
        replied = bool(self.replies)
        group = Group(self.held or (), self.given or (), self._events or (), self._ended, replied)
        self._begin_group()
        return change, group

    def _begin_group(self) -> None:
        """Forget what was taken; what is empty was not."""
        self.new, self._ended, self._wipe, self._rows = None, None, False, {}
        if self.columns:
            self.columns = {}
        if self.replies:
            self.replies = {}
        if self._events:
            self._stored_events, self._events = [], []
        if self.held:
            self.held = []
        if self.given:
            self.given = []
        self._fresh.clear()
        self.writer.texts.clear()

    def _note_status(self) -> None:
        status, tags, number = now = self.status()
        if status == "waiting" and self.recoveries:
            # It has come as far as it can: it may wait for weeks, while its process is replaced every day.
            self.columns["recoveries"] = self.recoveries = 0
        if now != self._last_status:
            self.columns |= {"status": status, "waiting_for": tags, "open_waits": number}
            self._last_status = now

    def _flush(self) -> None:
        """Write the rows of what was marked, as it is now."""
        now, rows, numbers = self.loop.current_time(), self._rows, self.numbers
        for work_id, work in self._work.items():
            if work is None:
                rows[f"w{work_id}"] = None
            else:
                branch = None if work.branch is None else numbers[work.branch]
                rows[f"w{work_id}"] = self.writer.work(work, branch, now)
        for wait_id, wait in self._waits.items():
            answer = self.answers.get(wait_id)
            rows[f"v{wait_id}"] = self.writer.wait(
                wait, wait.answer if answer is None else answer.event, now
            )
        for part in self._parts:
            if isinstance(part, Batch):
                outer = None if part.outer is None else numbers[part.outer]
                rows[f"b{numbers[part]}"] = self.writer.batch(part, outer)
            else:
                rows[f"r{numbers[part]}"] = str(numbers[part.batch])
        self._clear_marks()
        self._flush_counters()

    def _clear_marks(self) -> None:
        self._work.clear()
        self._waits.clear()
        self._parts.clear()

    def _flush_counters(self) -> None:
        """Write the row of the counters, unless it is right as it is.

        Numbers of work are reserved in blocks, so that it is not written for each step: what is left of a block
        when the run is brought back is not used (D5). Nor is it for `last_finished` alone, which only messages
        mention.
        """
        next_id, input_asked, last_finished = self.counters()
        reserved = (next_id // _BLOCK + 1) * _BLOCK
        counters = (reserved, input_asked, self.next_part)
        if counters != self._written_counters:
            self._written_counters = counters
            self._rows["m"] = self.writer.counters(*counters, last_finished)

    def check(self, *events: object) -> None:
        """Refuse an event that cannot be kept, before anything is done with it.

        Raises:
            ContextSerdeError: If one cannot be written.
        """
        for event in events:
            if isinstance(event, Event):
                self.writer.event(event)

    def check_wait(self, wait: Wait) -> None:
        """Refuse a wait that cannot be kept, before it begins.

        Raises:
            ContextSerdeError: If its type is not known, or a requirement cannot be written.
        """
        self.writer.value(wait.event_type, "event_type")
        check_key(wait.label, "waiter_id")
        for name, value in wait.requirements.items():
            try:
                self.writer.value(value)
            except ContextSerdeError as error:
                raise ContextSerdeError(
                    f"requirements[{name!r}]{error.path[1:]}", error.problem
                ) from None


def ending_columns(status: RunStatus, ended: float, error: str | None) -> dict[str, Any]:
    """Return what is written about a run when its terminal event is."""
    return {
        "status": status,
        "ended": ended,
        "error": error,
        "waiting_for": (),
        "open_waits": 0,
        "deadline": None,
    }


def _kind(part: Part) -> str:
    """Return the first letter of the keys of its rows."""
    return "r" if isinstance(part, Branch) else "b" if isinstance(part, Batch) else "k"
