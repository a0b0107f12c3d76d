"""Rows: after any acts of a ledger, cut after any group, what is read back equals what it owes."""

from __future__ import annotations

import math
import time
from collections import deque
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from anyio_workflows import Context, Event, StartEvent, StopEvent, Workflow, step
from anyio_workflows._ledger.pending import LedgerRecord, WorkRecord, restore, take
from anyio_workflows._ledger.work import StepQueue, Wait, Work
from anyio_workflows._snapshot import _codec, _ledger_faults
from anyio_workflows.collect import All, Take
from anyio_workflows.errors import ContextSerdeError
from anyio_workflows.runtime import Runtime
from anyio_workflows.runtime._books import DurableLedger
from anyio_workflows.runtime._journal import Journal
from anyio_workflows.runtime._rows import RowReader, RowWriter, RunRecord

from .ledger_graphs import OPENERS, POLICIES, TAKES, TYPES, Berry, Pit, Reply, kitchen


def canonical(record: LedgerRecord) -> LedgerRecord:
    """Return a record that is equal to another one if they owe the same.

    Branches are numbered in order; buffers of different steps and waits are in no order; times pass. Numbers of
    work are reserved in blocks (`check_next_id`), and what finished last is written with them.
    """
    ids = {branch.id: n for n, branch in enumerate(b for o in record.batches for b in o.branches)}

    def number(branch: int | None) -> int | None:
        return None if branch is None else ids[branch]

    def sets(records: list[Any]) -> list[Any]:
        return sorted(records, key=lambda one: one.step)

    def work(one: WorkRecord) -> Any:
        waits = [attrs.evolve(wait, question_number=0) for wait in one.waits]
        return repr(one.last_error), attrs.evolve(
            one,
            branch=number(one.branch),
            elapsed=None if one.attempt == 1 else 0.0,
            due_in=None,  # one that is over is still in its row
            last_error=None,
            last_failed_at=None,
            waits=sorted(waits, key=lambda wait: (wait.label, wait.number)),
        )

    batches = [
        attrs.evolve(
            batch,
            outer=number(batch.outer),
            branches=[attrs.evolve(b, id=ids[b.id], sets=sets(b.sets)) for b in batch.branches],
        )
        for batch in record.batches
    ]
    buffers = [
        attrs.evolve(one, kept=sorted(one.kept, key=lambda kept: repr(type(kept.event))))
        for one in sorted(record.buffers, key=lambda one: (one.step, one.buffer_id or ""))
    ]
    return attrs.evolve(
        record,
        work=[work(one) for one in record.work],
        batches=batches,
        sets=sets(record.sets),
        buffers=buffers,
        questions=[],
        events_read=0,
        next_id=0,
        last_finished=None,
    )


@attrs.define
class Clock:
    """Stands for the event loop of a run."""

    now: float = 0.0

    def current_time(self) -> float:
        return self.now


class KeptKitchenMachine(RuleBasedStateMachine):
    """Act on a ledger that is kept, commit its groups, and kill it: what was committed continues."""

    @initialize(
        limits=st.fixed_dictionaries({name: st.integers(1, 3) for name in TAKES}),
        policies=st.fixed_dictionaries(dict.fromkeys(("mix", "count", "serve"), POLICIES)),
        asking=st.sets(st.sampled_from([*OPENERS])),
        strict=st.booleans(),
        first_id=st.integers(1, 64),
    )
    def declare(
        self,
        limits: dict[str, int],
        policies: dict[str, All | Take],
        asking: set[str],
        strict: bool,
        first_id: int,
    ) -> None:
        self.graph = kitchen(limits, policies, asking)
        self.codec = _codec(self.graph, (Reply,))
        self.strict = strict
        self.clock: Any = Clock()
        self.rows: dict[str, str] = {}
        self.begin()
        self.ledger.next_id = first_id
        self.committed = canonical(take(self.ledger, 0.0, 0))

    def begin(self) -> None:
        writer = RowWriter(self.codec)
        self.journal = Journal("r", writer, self.clock, self.strict, lambda journal: None)
        self.journal.status = lambda: ("running", (), 0)
        self.journal.state = lambda: None
        self.ledger = DurableLedger(self.graph, journal=self.journal)
        self.inboxes: dict[StepQueue, deque[Work]] = {}
        self.kept_waits: set[str] = set()
        self.kept_work: set[int] = set()

    def read(self) -> RunRecord:
        return RowReader(self.codec).run(self.rows, self.graph, time.time())

    def check_next_id(self, found: LedgerRecord) -> None:
        """Check that no number of work is used again, and few are left out."""
        assert self.next_id <= found.next_id <= self.next_id + 64

    def carry(self, new: list[Work] | None) -> None:
        for work in new or ():
            self.inboxes.setdefault(work.queue, deque()).append(work)

    def started(self) -> list[Work]:
        return [work for work in self.ledger.pending.values() if work.started is not None]

    def pick(self, choice: int) -> Work:
        started = self.started()
        return started[choice % len(started)]

    # What happens

    @rule(event_type=st.sampled_from(TYPES), n=st.integers(0, 1))
    def send(self, event_type: Any, n: int) -> None:
        self.carry(self.ledger.route(event_type(n=n)))

    @precondition(lambda self: self.ledger.queues.first_granted)
    @rule(number=st.integers(1, 5))
    def start(self, number: int) -> None:
        for _ in range(number):
            if self.ledger.queues.first_granted:
                inbox = self.inboxes[self.ledger.queues.take_slot()]
                work = inbox.popleft()
                while work.dropped:
                    work = inbox.popleft()
                work.started = self.clock.now
                work.cancel = lambda: None
                # The first gate: it is on the disk, and what it follows from is.
                assert not self.strict or f"w{work.id}" in self.rows

    @precondition(lambda self: self.started())
    @rule(data=st.data(), choice=st.integers(0))
    def finish(self, data: st.DataObject, choice: int) -> None:
        work = self.pick(choice)
        work.cancel = None
        spec = work.queue.spec
        kinds = ["one"] * len(spec.returns) + ["list"] * 2 * bool(spec.returns_list) + ["none"]
        kind = "none" if work.dropped else data.draw(st.sampled_from(kinds), label="returns")
        if kind == "one":
            event = data.draw(st.sampled_from(spec.returns))()
            self.carry(self.ledger.route(event, None, work.branch, work.recoveries))
        elif kind == "list":
            made = data.draw(st.lists(st.sampled_from(spec.returns_list), max_size=5))
            self.emit_list(work, [event_type() for event_type in made])
        self.carry(self.ledger.finish(work, None if work.dropped else Berry))

    def emit_list(self, work: Work, events: list[Event]) -> None:
        batch = self.ledger.open_batch(work)
        for event in events:
            branch = self.ledger.open_branch(batch)
            self.carry(self.ledger.route(event, None, branch, work.recoveries))
            self.carry(self.ledger.seal_branch(branch))
        self.carry(self.ledger.seal_batch(batch))

    @precondition(lambda self: self.started())
    @rule(choice=st.integers(0), name=st.sampled_from(["taste", "glue", "peel"]))
    def recover(self, choice: int, name: str) -> None:
        """Let what an execution returns have been recovered by an error handler."""
        work = self.pick(choice)
        if work.dropped or work.queue.spec.name != "peel":
            return
        work.cancel = None
        recoveries = {**work.recoveries, name: work.recoveries.get(name, 0) + 1}
        self.carry(self.ledger.route(Pit(), None, work.branch, recoveries))
        self.carry(self.ledger.finish(work, Berry, True))

    @precondition(lambda self: self.started())
    @rule(choice=st.integers(0), seconds=st.integers(0, 3))
    def fail(self, choice: int, seconds: int) -> None:
        work = self.pick(choice)
        if not work.dropped:
            work.cancel = None
            work.past.first_started = work.first_started
            work.past.last_error = ValueError("no", seconds)
            self.ledger.delay(work, self.clock.now + seconds)

    @precondition(lambda self: self.ledger.queues.next_due < math.inf)
    @rule(seconds=st.integers(1, 3))
    def let_time_pass(self, seconds: int) -> None:
        self.clock.now += seconds
        self.carry(self.ledger.queues.end_delays(self.clock.now))

    @precondition(lambda self: self.started())
    @rule(
        choice=st.integers(0),
        event_type=st.sampled_from([Reply, Berry]),
        n=st.none() | st.integers(0, 1),
        waiter_id=st.sampled_from([None, None, "a", "b/:"]),
    )
    def wait(self, choice: int, event_type: Any, n: int | None, waiter_id: str | None) -> None:
        work = self.pick(choice)
        wait = Wait(work, event_type, {} if n is None else {"n": n}, waiter_id)
        if not work.dropped and not any(wait.equals(other) for other in work.waits):
            wait.question = Pit() if n else None
            wait.asked = n == 1
            self.ledger.waits.begin(wait)

    @precondition(lambda self: any(work.waits for work in self.started()))
    @rule(choice=st.integers(0), cancel=st.booleans())
    def end_wait(self, choice: int, cancel: bool) -> None:
        """Let a wait time out, or cancel its task."""
        waits = [wait for work in self.started() for wait in work.waits]
        wait = waits[choice % len(waits)]
        (self.ledger.waits.abandon if cancel else self.ledger.waits.end)(wait)

    @precondition(lambda self: self.started())
    @rule(
        choice=st.integers(0),
        expected=st.lists(st.sampled_from([Berry, Pit, Reply]), max_size=3),
        event_type=st.sampled_from([Berry, Pit, Reply]),
        buffer_id=st.sampled_from([None, "one", "two/b"]),
    )
    def collect(
        self, choice: int, expected: list[type[Event]], event_type: Any, buffer_id: str | None
    ) -> None:
        work = self.pick(choice)
        if not work.dropped:
            self.ledger.collect(work, buffer_id, event_type(), expected)

    # What is kept

    @rule()
    def ask(self) -> None:
        self.ledger.ask(Pit(), 1, 0)
        self.journal.change()

    @rule()
    def commit(self) -> None:
        change, group = self.journal.take()
        for key, text in change.rows.items():
            if text is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = text
        self.carry(self.ledger.release(group))
        self.committed = canonical(take(self.ledger, self.clock.now, 0))
        self.next_id = self.ledger.next_id
        record = self.read()
        found = record.ledger
        self.check_next_id(found)
        assert record.next_part == self.journal.next_part
        assert canonical(found) == self.committed
        delayed = {work.id for work in self.ledger.pending.values() if work.due is not None}
        assert delayed <= {work.id for work in found.work if work.due_in is not None}

    @rule()
    def kill(self) -> None:
        """Lose what was not committed, and continue from the rows."""
        found = self.read()
        if self.rows:
            self.check_next_id(found.ledger)
        assert canonical(found.ledger) == self.committed
        assert not list(_ledger_faults("$", found.ledger, self.graph))
        self.begin()
        self.ledger.begin_restore(found.ledger.next_id)
        queued, branches = restore(found.ledger, self.ledger, self.clock.now)
        self.journal.restore(self.rows, found.next_part)
        self.ledger.number_parts(branches, found.batches)
        for branch in branches.values():
            queued += self.ledger.seal_branch(branch)
        self.carry(queued)
        self.commit()

    @invariant()
    def nothing_begins_that_is_not_kept(self) -> None:  # the third gate
        if self.strict:
            for work in self.started():
                for wait in work.past.waits if work.history else ():
                    assert wait.answer is None or f"v{wait.id}" in self.rows


TestKeptKitchen = KeptKitchenMachine.TestCase
TestKeptKitchen.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


@pytest.mark.parametrize("where", ["state", "wait"])
def test_a_key_that_is_no_text_fails_its_step_and_not_the_group(where: str, tmp_path: Path) -> None:
    """SQLite takes no half of a surrogate pair in a key."""

    class Odd(Workflow):
        @step
        async def begin(self, ctx: Context, ev: StartEvent) -> StopEvent:
            if where == "state":
                await ctx.store.set("\ud800", 1)
            else:
                await ctx.wait_for_event(Reply, waiter_id="\ud800")
            return StopEvent()

    async def main() -> None:
        async with Runtime(f"sqlite:///{tmp_path}/runs.db", workflows=[Odd()]) as runtime:
            with pytest.raises(ContextSerdeError, match="is no text: surrogates not allowed"):
                await (await runtime.start("odd"))

    anyio.run(main)
