"""The stores of a runtime: a state machine of two hosts, against a naive model."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from anyio_workflows.errors import HostLostError
from anyio_workflows.runtime._store import (
    ACTIVE,
    ENDED,
    RunChange,
    RunQuery,
    Store,
    StoredEvent,
    StoredRun,
)

from .conftest import BACKENDS
from .stores import MemoryPlace, SqlitePlace

RUNS = st.sampled_from("abcde")
STATUSES = st.sampled_from(
    ["queued", "running", "waiting", "completed", "failed", "incompatible", "stuck"]
)
WORKFLOWS = st.sampled_from(["review", "other"])
TAGS = st.lists(st.sampled_from(["m:A", "m:B", "m:C"]), unique=True).map(tuple)
TIMES = st.integers(0, 5).map(float)
ROWS = st.dictionaries(st.sampled_from(["w1", "w2", "s", "m"]), st.none() | st.text(max_size=3))
HOSTS = st.integers(0, 1)


@attrs.define
class NaiveRun:
    """What a run should be, with a host as its owner instead of an id."""

    facts: StoredRun
    owner: NaiveHost | None
    rows: dict[str, str] = attrs.field(factory=dict)
    events: list[StoredEvent] = attrs.field(factory=list)


@attrs.define
class NaiveMail:
    run_id: str
    data: str
    sender: NaiveHost | None
    reply: str | None = None


@attrs.define(eq=False)
class NaiveHost:
    store: Store
    id: str
    is_dead: bool = False


class Stores(RuleBasedStateMachine):
    def __init__(self, place: Any, portal: BlockingPortal) -> None:
        super().__init__()
        self.place = place
        self.call = portal.call
        self.runs: dict[str, NaiveRun] = {}
        self.mail: dict[int, NaiveMail] = {}
        self.hosts = [self.open_host(), self.open_host()]
        self.dead: list[NaiveHost] = []  # nobody knows yet
        self.lost: list[NaiveHost] = []

    def open_host(self) -> NaiveHost:
        store = self.place.store()
        return NaiveHost(store, self.call(store.open))

    def teardown(self) -> None:
        for host in (*self.hosts, *self.dead, *self.lost):
            self.call(host.store.close)

    # --- Groups -------------------------------------------------------------------------------

    @rule(host=HOSTS, changes=st.lists(st.tuples(RUNS, st.data()), unique_by=lambda each: each[0]))
    def commit(self, host: int, changes: list[tuple[str, Any]]) -> None:
        mine = self.hosts[host]
        drawn = [self.draw_change(mine, run_id, data.draw) for run_id, data in changes]
        refused = self.call(mine.store.commit, drawn)
        assert refused == {each.run_id for each in drawn if not self.make(mine, each)}

    def draw_change(self, mine: NaiveHost, run_id: str, draw: Any) -> RunChange:
        change = RunChange(run_id, rows=draw(ROWS), wipe=draw(st.booleans()))
        last = self.runs[run_id].facts.last_seq if run_id in self.runs else 0
        if run_id not in self.runs or draw(st.integers(0, 4)) == 0:
            owner = mine.id if draw(st.booleans()) else None
            facts = {"created": draw(TIMES), "waiting_for": draw(TAGS), "owner": owner}
            change.new = StoredRun(run_id, draw(WORKFLOWS), draw(STATUSES), **facts)
        elif draw(st.booleans()):
            status = draw(STATUSES)
            change.columns = {"status": status, "waiting_for": draw(TAGS)}
            change.columns["ended"] = draw(TIMES) if status in ENDED else None
        if draw(st.booleans()):
            change.columns["asleep_since"] = 0.0
            change.columns["wake_at"] = draw(st.none() | TIMES)
            change.released = True
        if draw(st.booleans()):
            seqs = range(last + 1, last + 1 + draw(st.integers(0, 3)))
            change.events = [StoredEvent(seq, 1.5, draw(st.text(max_size=3))) for seq in seqs]
        for number, mail in self.mail.items():
            if mail.run_id == run_id and draw(st.booleans()):
                change.replies[number] = draw(st.text(max_size=3))
        return change

    def make(self, mine: NaiveHost, change: RunChange) -> bool:
        run = self.runs.get(change.run_id)
        if change.new is not None:
            if run is not None:
                return False
            owner = mine if change.new.owner == mine.id else None
            run = self.runs[change.run_id] = NaiveRun(change.new, owner)
        elif run is None or run.owner is not mine:
            return False
        run.facts = attrs.evolve(run.facts, **change.columns)
        if change.events:
            run.facts = attrs.evolve(run.facts, last_seq=change.events[-1].seq)
        if change.released or run.facts.status not in ACTIVE:
            run.owner = None
        if change.wipe:
            run.rows = {}
        written = {**run.rows, **change.rows}
        run.rows = {key: text for key, text in written.items() if text is not None}
        run.events += change.events
        for number, reply in change.replies.items():
            self.mail[number].reply = reply
        self.remove_what_nobody_waits_for()
        return True

    # --- Hosts and claims ---------------------------------------------------------------------

    @rule(host=HOSTS)
    def kill(self, host: int) -> None:
        killed = self.hosts[host]
        self.place.kill(killed.store)
        self.dead.append(killed)
        self.hosts[host] = self.open_host()

    @rule(host=HOSTS)
    def restart(self, host: int) -> None:
        closed = self.hosts[host]
        self.call(closed.store.close)
        self.give_up(closed, 0)
        self.hosts[host] = self.open_host()

    def give_up(self, host: NaiveHost, recoveries: int) -> None:
        for run in self.runs.values():
            if run.owner is host:
                run.owner = None
                recovered = run.facts.recoveries + recoveries
                run.facts = attrs.evolve(run.facts, recoveries=recovered)
        for mail in self.mail.values():
            if mail.sender is host:
                mail.sender = None
        self.remove_what_nobody_waits_for()

    @rule(
        host=HOSTS,
        workflows=st.lists(WORKFLOWS),
        now=TIMES,
        limit=st.integers(0, 4),
    )
    def claim(self, host: int, workflows: list[str], now: float, limit: int) -> None:
        mine = self.hosts[host]
        claimed = self.call(mine.store.claim, workflows, now, limit)
        for dead in self.dead:
            self.give_up(dead, 1)
        self.lost += self.dead
        self.dead = []
        asked = {mail.run_id for mail in self.mail.values() if mail.reply is None}
        free = sorted(self.runs.values(), key=lambda run: (run.facts.created, run.facts.id))
        expected = []
        for run in free:
            facts = run.facts
            if run.owner is not None or facts.status not in ACTIVE:
                continue
            if facts.workflow not in workflows or len(expected) == limit:
                continue
            is_due = facts.wake_at is not None and facts.wake_at <= now
            if facts.asleep_since is not None and not is_due and facts.id not in asked:
                continue
            run.facts = attrs.evolve(facts, asleep_since=None, wake_at=None)
            run.owner = mine
            expected.append(run)
        assert claimed == [attrs.evolve(run.facts, owner=mine.id) for run in expected]

    @rule()
    def write_as_one_who_was_taken_for_dead(self) -> None:
        """D6."""
        for host in self.lost:
            for act, args in (
                (host.store.commit, [RunChange("a", wipe=True)]),
                (host.store.post, ("a", "send", "x")),
                (host.store.delete, ("a",)),
            ):
                with pytest.raises(HostLostError):
                    self.call(act, *(args if isinstance(args, tuple) else (args,)))

    # --- Mail, lists, deletion ----------------------------------------------------------------

    @rule(host=HOSTS, run_id=RUNS, data=st.text(max_size=3))
    def post(self, host: int, run_id: str, data: str) -> None:
        number = self.call(self.hosts[host].store.post, run_id, "send", data)
        if run_id not in self.runs or self.runs[run_id].facts.status not in ACTIVE:
            assert number is None
        else:
            assert number not in self.mail
            self.mail[number] = NaiveMail(run_id, data, self.hosts[host])

    @rule(host=HOSTS, data=st.data())
    def want_no_reply(self, host: int, data: Any) -> None:
        number = data.draw(st.sampled_from([*self.mail, 999]))
        self.call(self.hosts[host].store.want_no_reply, number)
        if number in self.mail:
            self.mail[number].sender = None
            self.remove_what_nobody_waits_for()

    def remove_what_nobody_waits_for(self) -> None:
        for number, mail in list(self.mail.items()):
            if mail.sender is None and mail.reply is not None:
                del self.mail[number]

    @rule(host=HOSTS, data=st.data())
    def take_reply(self, host: int, data: Any) -> None:
        number = data.draw(st.sampled_from([*self.mail, 999]))
        reply = self.call(self.hosts[host].store.take_reply, number)
        assert reply == (self.mail[number].reply if number in self.mail else None)
        if reply is not None:
            del self.mail[number]

    @rule(
        host=HOSTS,
        status=st.none() | STATUSES,
        workflow=st.none() | WORKFLOWS,
        tags=TAGS,
        limit=st.integers(0, 6),
        before=st.none() | st.tuples(TIMES, RUNS),
    )
    def find(self, host: int, tags: Any, limit: int, before: Any, **wanted: Any) -> None:
        query = RunQuery(waiting_for=tags, limit=limit, before=before, **wanted)
        found = self.call(self.hosts[host].store.find_runs, query)
        assert [run.id for run in found] == [
            facts.id
            for facts in sorted(
                (run.facts for run in self.runs.values()),
                key=lambda facts: (facts.created, facts.id),
                reverse=True,
            )
            if all(value in (None, getattr(facts, name)) for name, value in wanted.items())
            and (not tags or set(tags) & set(facts.waiting_for))
            and (before is None or (facts.created, facts.id) < before)
        ][:limit]

    @rule(host=HOSTS, run_id=RUNS)
    def requeue(self, host: int, run_id: str) -> None:
        run = self.runs.get(run_id)
        can_be = run is not None and run.facts.status not in {*ACTIVE, "completed"}
        assert self.call(self.hosts[host].store.requeue, run_id, "late") == can_be
        if can_be and run is not None:
            cleared: dict[str, Any] = {"ended": None, "error": None, "wake_at": None}
            run.facts = attrs.evolve(
                run.facts, status="queued", asleep_since=None, recoveries=0, **cleared
            )
            for mail in self.mail.values():
                if mail.run_id == run_id and mail.reply is None:
                    mail.reply = "late"
            self.remove_what_nobody_waits_for()

    @rule(host=HOSTS, run_id=RUNS)
    def delete(self, host: int, run_id: str) -> None:
        can_be = run_id in self.runs and self.runs[run_id].facts.status not in ACTIVE
        assert self.call(self.hosts[host].store.delete, run_id) == can_be
        if can_be:
            self.remove(run_id)

    @rule(host=HOSTS, ended_before=TIMES)
    def purge(self, host: int, ended_before: float) -> None:
        old = [
            run_id
            for run_id, run in self.runs.items()
            if run.facts.has_ended
            and run.facts.ended is not None
            and run.facts.ended < ended_before
        ]
        assert self.call(self.hosts[host].store.purge, ended_before) == len(old)
        for run_id in old:
            self.remove(run_id)

    def remove(self, run_id: str) -> None:
        del self.runs[run_id]
        self.mail = {number: mail for number, mail in self.mail.items() if mail.run_id != run_id}

    # --- What is there ------------------------------------------------------------------------

    @invariant()
    def everything_is_as_it_should_be(self) -> None:
        self.call(self.check)

    async def check(self) -> None:
        store = self.hosts[0].store
        for run_id, run in self.runs.items():
            owner = run.owner.id if run.owner is not None else None
            assert await store.find_run(run_id) == attrs.evolve(run.facts, owner=owner)
            assert await store.rows(run_id) == run.rows
            later = [event for event in run.events if event.seq > 1]
            assert await store.events(run_id, 1, 3) == later[:3]
        rows = {run_id: run.rows for run_id, run in self.runs.items()}
        assert await store.rows_of_each([*rows]) == [*rows.values()]
        for host in self.hosts:
            assert [(each.id, each.run_id, each.data) for each in await host.store.mail()] == [
                (number, mail.run_id, mail.data)
                for number, mail in self.mail.items()
                if mail.reply is None and self.runs[mail.run_id].owner is host
            ]


@pytest.fixture(scope="module", params=BACKENDS)
def portal(request: pytest.FixtureRequest) -> Iterator[BlockingPortal]:
    with start_blocking_portal(request.param) as portal:
        yield portal


def test_a_store_in_memory_is_as_the_model_says(portal: BlockingPortal):
    run_state_machine_as_test(
        lambda: Stores(MemoryPlace(), portal),
        settings=settings(max_examples=25, stateful_step_count=30),
    )


def test_a_database_is_as_the_model_says(portal: BlockingPortal):
    with tempfile.TemporaryDirectory() as folder:
        numbers = iter(range(10**6))
        run_state_machine_as_test(
            lambda: Stores(SqlitePlace(Path(folder, f"{next(numbers)}.db")), portal),
            settings=settings(max_examples=12, stateful_step_count=30),
        )
