"""The ledger of a run that is kept: it marks what changes, and lets nothing begin that is not kept yet."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import attrs

from .._ledger.fanin import Batch, Branch, Buffered, ParamBuffers, Recoveries
from .._ledger.ledger import Ledger
from .._ledger.waits import Waits
from .._ledger.work import StepQueue, StepQueues, StepStatistics, Wait, Work
from ..events import Event
from ..graph import StepSpec
from ._journal import Answer, Group, Journal


@attrs.define(eq=False, repr=False)
class DurableQueues(StepQueues):
    """Queues that get new work once it is on the disk: the first gate.

    Attributes:
        journal: Has what waits for the commit.
        held: Work that is pending and waits for it, by its id.
        newest: The highest id of the work that has been here, or is from an earlier run.
        resumed: The steps that waited when the run was let go, and are to begin their wait again.
    """

    journal: Journal = attrs.field(kw_only=True)
    held: dict[int, Work] = attrs.field(factory=dict, init=False)
    newest: int = attrs.field(default=0, init=False)
    resumed: Collection[str] = attrs.field(default=(), init=False)

    def add(self, work: Work) -> None:
        """Hold work that is new; what comes back, restored or after a retry delay, is queued."""
        if work.id > self.newest and self.journal.strict:
            self.held[work.id] = work
            self.journal.held.append(work)
        else:
            super().add(work)
        self.newest = max(self.newest, work.id)

    def release(self, work: Work) -> bool:
        """Queue work that was held, unless it was dropped meanwhile; returns whether it was queued."""
        if self.held.pop(work.id, None) is None:
            return False
        super().add(work)
        return True

    def is_held(self, work: Work) -> bool:
        """Return whether work waits for the commit."""
        return work.id in self.held

    def withdraw(self, work: Work) -> None:
        """Take back queued, delayed or held work."""
        if self.held.pop(work.id, None) is None:
            super().withdraw(work)

    def busy(self) -> int:
        """Count the work that is in progress, or will be without an event from outside."""
        return super().busy() + len(self.held) + len(self.journal.answers)

    def active_steps(self) -> list[str]:
        """Return the sorted names of the steps that run, wait, or are in a retry delay."""
        waiting = {name for name in self.resumed if self.by_step[name].queued}
        return sorted({*super().active_steps(), *waiting})

    def statistics(self) -> dict[str, StepStatistics]:
        """Return the counts of the steps that have had work; what is held counts as queued."""
        found = super().statistics()
        for work in self.held.values():
            counts = found[work.step]
            found[work.step] = attrs.evolve(counts, queued=counts.queued + 1)
        return found


@attrs.define(eq=False, repr=False)
class DurableWaits(Waits):
    """Waits whose answers are taken once they are on the disk: the third gate."""

    journal: Journal = attrs.field(kw_only=True)

    def begin(self, wait: Wait) -> None:
        """Begin a wait, and mark it."""
        self.journal.check_wait(wait)
        self.journal.write_state(wait.work, over=False)  # it may wait for weeks
        super().begin(wait)
        self.journal.mark_wait(wait)
        # The answer to the same wait of an earlier attempt is on its way to the disk: it is for this one now,
        # and no second one is taken.
        if (answer := self.journal.answers.get(wait.id)) is not None:
            answer.wait = wait
            self.open.discard(wait)

    def give(self, wait: Wait, event: Event) -> None:
        """Answer one open wait."""
        journal = self.journal
        if not journal.strict or not journal.open:
            super().give(wait, event)
            journal.mark_wait(wait)
            return
        self.open.discard(wait)
        journal.answers[wait.id] = answer = Answer(wait, event)
        journal.given.append(answer)
        journal.mark_wait(wait)

    def release(self, answer: Answer) -> None:
        """Let an execution have its answer, which is kept now."""
        wait = answer.wait
        del self.journal.answers[wait.id]
        wait.answer = answer.event
        self.end(wait)

    def end(self, wait: Wait) -> None:
        """Note that a wait is over."""
        if (
            wait.id in self.journal.answers
        ):  # it timed out just now, and its answer came before that
            return
        super().end(wait)
        if wait.timed_out:
            self.journal.mark_wait(wait)

    def keep_open(self, work: Work) -> None:
        """Let the waits of a failed attempt be answered, except for those that have been."""
        super().keep_open(work)
        for wait in work.past.earlier_waits:
            if wait.id in self.journal.answers:
                self.open.discard(wait)


def _queues_of(ledger: DurableLedger) -> DurableQueues:
    return DurableQueues(journal=ledger.journal)


def _waits_of(ledger: DurableLedger) -> DurableWaits:
    return DurableWaits(ledger.queues, journal=ledger.journal)


@attrs.define(eq=False, repr=False)
class DurableLedger(Ledger):
    """A ledger that marks what it changes."""

    journal: Journal = attrs.field(kw_only=True)
    queues: DurableQueues = attrs.field(  # pyright: ignore[reportIncompatibleVariableOverride]
        init=False, default=attrs.Factory(_queues_of, takes_self=True)
    )
    waits: DurableWaits = attrs.field(  # pyright: ignore[reportIncompatibleVariableOverride]
        init=False, default=attrs.Factory(_waits_of, takes_self=True)
    )

    def __attrs_post_init__(self) -> None:
        self.journal.counters = self._counters

    def _counters(self) -> tuple[int, bool, str | None]:
        return self.next_id, self.input_asked, self.last_finished

    def is_quiet(self, besides: Work | None = None) -> bool:
        """Return whether nothing is in progress; at once if work waits for the commit, as most often."""
        return not self.queues.held and super().is_quiet(besides)

    # --- After a commit, and after a restore --------------------------------------------------------

    def release(self, group: Group) -> list[Work]:
        """Let what waited for a commit continue; returns the work to be carried to its steps."""
        for answer in group.answers:
            self.waits.release(answer)
        return [work for work in group.held if self.queues.release(work)]

    def begin_restore(self, next_id: int) -> None:
        """Note, before anything is restored, that work below `next_id` is on the disk."""
        self.queues.newest = next_id - 1

    def number_parts(self, branches: Mapping[int, Branch], batches: Mapping[int, int]) -> None:
        """Note which rows the restored parts have, before the branches are sealed.

        Args:
            branches: The branches, by their numbers.
            batches: The number of the batch of each branch.
        """
        journal = self.journal
        for number, branch in branches.items():
            journal.numbers[branch] = number
            journal.numbers[branch.batch] = batches[number]
        # Events in buffers have no identity in a record: they get new rows.
        for place in (None, *branches.values()):
            buffers = self.param_buffers if place is None else place.param_buffers
            if buffers is not None:
                for spec, queues in buffers.by_step.items():
                    self._add_queues(place, spec, queues)
        for (step, buffer_id), buffer in self.buffers.by_key.items():
            for events in buffer.events.values():
                for one in events:
                    journal.add_buffered(one, ["collect", step, buffer_id])

    def mark_all(self) -> None:
        """Mark all that is pending, to have it written under the names of today."""
        journal = self.journal
        journal.rewrite()
        for work in self.pending.values():
            journal.mark_work(work)
            for wait in work.past.earlier_waits if work.history is not None else ():
                journal.mark_wait(wait)
        for part in list(journal.numbers):
            if not isinstance(part, Buffered):
                journal.mark_part(part)
            if isinstance(part, Batch):
                for join, arrived in part.arrived.items():
                    for place, event in enumerate(arrived or ()):
                        journal.put_arrival(part, join.name, place, event)
        for (step, buffer_id), buffer in self.buffers.by_key.items():
            journal.put_types(step, buffer_id, list(buffer.expected) if buffer.total else None)

    def set_dues(self, dues: Mapping[str, float], now: float) -> None:
        """Let restored waits time out after what is left of their time (D7), by their ids."""
        self.queues.resumed = {wait.work.step for wait in self.waits.open}
        if dues:
            for work in self.pending.values():
                for wait in work.past.earlier_waits if work.history is not None else ():
                    wait.due = now + dues.get(wait.id, math.inf)

    def _add_queues(self, branch: Branch | None, spec: StepSpec, queues: Any) -> None:
        for position, queue in enumerate(queues):
            for one in queue:
                self.journal.add_buffered(one, self._set_place(branch, spec, position))

    def _set_place(self, branch: Branch | None, spec: StepSpec, position: int) -> list[Any]:
        number = None if branch is None else self.journal.numbers[branch]
        return ["set", number, spec.name, position]

    # --- Work -----------------------------------------------------------------------------------------

    def _enqueue(self, queue: StepQueue, *args: Any, **more: Any) -> list[Work]:
        new = super()._enqueue(queue, *args, **more)
        for work in new:
            self.journal.add_work(work)
        return [work for work in new if work.id not in self.queues.held]

    def finish(self, work: Work, *args: Any, **more: Any) -> list[Work]:
        """Note that `work` is over, and pass its slot on."""
        self.journal.forget_work(work)
        return super().finish(work, *args, **more)

    def delay(self, work: Work, due: float, seconds: float = 0.0) -> None:
        """Note that an attempt failed, and that the next is to be queued at the time `due`."""
        super().delay(work, due, seconds)
        self.journal.drop_waits(work)
        self.journal.mark_work(work)

    def collect(
        self, work: Work, buffer_id: str | None, event: Event, expected: list[type[Event]]
    ) -> list[Event] | None:
        """Keep an event; returns one of each expected type once they are there."""
        found = super().collect(work, buffer_id, event, expected)
        self.journal.mark_work(work)
        return found

    def ask(self, question: Event, number: int, events_read: int) -> None:
        """Note that a question was written, which the log keeps."""
        self.input_asked = True

    # --- Batches and buffers --------------------------------------------------------------------------

    def open_batch(self, work: Work) -> Batch:
        """Open a batch for the list that the execution of `work` returned (F1)."""
        batch = super().open_batch(work)
        self.journal.add_part(batch)
        self.journal.mark_part(batch)
        return batch

    def open_branch(self, batch: Batch) -> Branch:
        """Begin a branch, for one element of the list."""
        branch = super().open_branch(batch)
        self.journal.add_part(branch)
        self.journal.mark_part(branch)
        return branch

    def _close_branch(self, branch: Branch) -> None:
        super()._close_branch(branch)
        self.journal.forget_part(branch)
        if branch.param_buffers is not None:  # they are dropped with it
            for queues in branch.param_buffers.by_step.values():
                for queue in queues:
                    for one in queue:
                        self.journal.forget_part(one)

    def _fire(self, batch: Batch) -> list[Work]:
        for join, arrived in batch.arrived.items():
            if arrived is not None:
                self.journal.delete_arrivals(batch, join.name, len(arrived))
        self.journal.forget_part(batch)
        return super()._fire(batch)

    def _leave(self, work: Work, branch: Branch) -> list[Work]:
        batch, before = branch.batch, branch.batch.recoveries
        fired = super()._leave(work, branch)
        if batch.recoveries is not before:
            self.journal.mark_part(batch)
        return fired

    def _drop_batch(self, batch: Batch) -> list[Work]:
        fired = super()._drop_batch(batch)
        inside = [batch]
        while inside:
            dropped = inside.pop()
            self.journal.mark_part(dropped)
            for branch in dropped.branches:
                inside.extend(branch.batches or ())
        return fired

    def _drop(self, work: Work, branch: Branch) -> list[Work]:
        self.journal.forget_work(work)
        return super()._drop(work, branch)

    def _add_to_join(
        self, batch: Batch, join: StepSpec, event: Event, recoveries: Recoveries
    ) -> list[Event] | None:
        waiting, before = batch.arrived[join], batch.recoveries
        place = 0 if waiting is None else len(waiting)
        arrived = super()._add_to_join(batch, join, event, recoveries)
        if arrived is not None:
            self.journal.delete_arrivals(batch, join.name, place)
            self.journal.mark_part(batch)
        elif waiting is not None:
            self.journal.put_arrival(batch, join.name, place, event)
            if batch.recoveries is not before:
                self.journal.mark_part(batch)
        return arrived

    def _add_to_set(
        self, buffers: ParamBuffers, branch: Branch | None, spec: StepSpec, buffered: Buffered
    ) -> list[Buffered] | None:
        full = super()._add_to_set(buffers, branch, spec, buffered)
        if full is None:
            queues = buffers.by_step[spec]
            position = next(n for n, queue in enumerate(queues) if queue and queue[-1] is buffered)
            self.journal.add_buffered(buffered, self._set_place(branch, spec, position))
        else:
            for one in full:  # the last one has no row
                self.journal.forget_part(one)
        return full

    def _add_to_buffer(
        self, step: str, buffer_id: str | None, buffered: Buffered, expected: list[type[Event]]
    ) -> list[Buffered] | None:
        found = super()._add_to_buffer(step, buffer_id, buffered, expected)
        if expected:
            self.journal.add_buffered(buffered, ["collect", step, buffer_id])
            for one in found or ():
                self.journal.forget_part(one)
            buffer = self.buffers.by_key[step, buffer_id]
            self.journal.put_types(step, buffer_id, expected if buffer.total else None)
        return found
