"""What each store of a runtime does: the port `Store`, for all that implement it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest

from anyio_workflows.errors import HostLostError, StoreError
from anyio_workflows.runtime._memory import MemoryData, MemoryStore
from anyio_workflows.runtime._store import (
    ENDED,
    MailKind,
    RunChange,
    RunQuery,
    Store,
    StoredRun,
)

from .conftest import BACKENDS
from .stores import MemoryPlace, SqlitePlace, ended_run, event, new_run, opened

pytestmark = pytest.mark.anyio


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run the tests in real time: virtual time does not wait for threads."""
    return request.param


@pytest.fixture(params=["memory", "sqlite"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A place that outlives the stores which are opened there."""
    return MemoryPlace() if request.param == "memory" else SqlitePlace(tmp_path / "runs.db")


@pytest.fixture
async def store(place: Any, anyio_backend: str) -> AsyncIterator[Store]:
    store: Store = place.store()
    async with opened(store):
        yield store


@pytest.fixture
async def other(place: Any, anyio_backend: str) -> AsyncIterator[Store]:
    """Another host."""
    store: Store = place.store()
    async with opened(store):
        yield store


async def start(store: Store, *runs: str, **columns: Any) -> str:
    """Start runs that the store's host executes; returns the id of that host."""
    await store.commit([new_run(run_id, **columns) for run_id in runs])
    claimed = await store.claim(["review"], 0)
    assert {run.id for run in claimed} == set(runs)
    assert claimed[0].owner is not None
    return claimed[0].owner


async def found(store: Store, run_id: str) -> StoredRun:
    run = await store.find_run(run_id)
    assert run is not None
    return run


async def post(store: Store, run_id: str, kind: MailKind = "send", data: str = "x") -> int:
    mail = await store.post(run_id, kind, data)
    assert mail is not None
    return mail


async def ids(store: Store, **query: Any) -> list[str]:
    return [run.id for run in await store.find_runs(RunQuery(**query))]


async def claim(store: Store, now: float = 0, **limit: int) -> list[str]:
    return [run.id for run in await store.claim(["review"], now, **limit)]


# --- Groups -------------------------------------------------------------------------------------


async def test_a_group_is_written_with_all_that_it_changes(store: Store):
    change = new_run("a", metadata='{"x": 1}', deadline=9.5, fingerprint="f", waiting_for=("m:A",))
    change.rows = {"w1": "one", "w2": "zwei ü \N{SNOWMAN}"}
    change.events = [event(1, "first"), event(2, "second")]
    assert await store.commit([change, new_run("b")]) == set()
    run = await found(store, "a")
    assert (run.id, run.workflow, run.status, run.created) == ("a", "review", "running", 1.0)
    assert (run.metadata, run.deadline, run.fingerprint) == ('{"x": 1}', 9.5, "f")
    assert (run.waiting_for, run.last_seq, run.owner) == (("m:A",), 2, None)
    assert (run.ended, run.error, run.wake_at, run.asleep_since, run.recoveries) == (
        None,
        None,
        None,
        None,
        0,
    )
    assert await store.rows("a") == {"w1": "one", "w2": "zwei ü \N{SNOWMAN}"}
    assert await store.events("a", 0, 10) == [event(1, "first"), event(2, "second")]
    assert await store.rows("b") == {}


async def test_a_run_is_inserted_once_and_the_rest_of_the_group_is_written(store: Store):
    await store.commit([new_run("a", metadata="1")])
    again = new_run("a", metadata="2")
    again.rows, again.events = {"w": "x"}, [event(1)]
    assert await store.commit([again, new_run("b")]) == {"a"}
    run = await found(store, "a")
    assert (run.metadata, run.last_seq) == ("1", 0)
    assert await store.rows("a") == {}
    assert await store.events("a", 0, 10) == []
    assert await store.find_run("b") is not None


async def test_rows_are_written_replaced_and_deleted(store: Store):
    await start(store, "a", "b")
    await store.commit(
        [RunChange("a", rows={"k1": "1", "k2": "2"}), RunChange("b", rows={"k1": "b"})]
    )
    await store.commit([RunChange("a", rows={"k1": "new", "k2": None, "k3": "3", "k4": None})])
    assert await store.rows("a") == {"k1": "new", "k3": "3"}
    assert await store.rows("b") == {"k1": "b"}
    await store.commit([RunChange("a", wipe=True, rows={"k9": "9"})])
    assert await store.rows("a") == {"k9": "9"}
    assert await store.rows("b") == {"k1": "b"}


async def test_rows_of_many_runs_are_read_together_up_to_a_bound(store: Store):
    rows = {"a": {"k1": "12", "k2": "3"}, "b": {}, "c": {"k": "45"}}
    await start(store, *rows)
    await store.commit([RunChange(run_id, rows={**each}) for run_id, each in rows.items()])
    assert await store.rows_of_each(["c", "none", "a", "b"]) == [rows["c"], {}, rows["a"], {}]
    assert await store.rows_of_each(["b", "a", "c"], 3) == [{}, rows["a"]]
    assert await store.rows_of_each(["a", "b", "c"], 4) == [*rows.values()]
    assert await store.rows_of_each(["c", "a"], 1) == [rows["c"]]
    assert await store.rows_of_each([]) == []


async def test_many_runs_are_found_together(store: Store):
    await store.commit([new_run("a"), new_run("b", status="waiting"), new_run("c")])
    assert await store.find_each(["b", "none", "a"]) == {
        "a": await found(store, "a"),
        "b": await found(store, "b"),
    }
    assert await store.find_each([]) == {}


async def test_columns_are_changed_one_by_one(store: Store):
    await start(store, "a", "b")
    columns = {"status": "waiting", "waiting_for": ("m:A", "m:B"), "deadline": 5.0}
    await store.commit([RunChange("a", columns=columns), RunChange("b", columns={"recoveries": 3})])
    a, b = await found(store, "a"), await found(store, "b")
    assert (a.status, a.waiting_for, a.deadline) == ("waiting", ("m:A", "m:B"), 5.0)
    assert (b.status, b.waiting_for, b.recoveries) == ("running", (), 3)


async def test_the_last_number_follows_from_the_events(store: Store):
    await start(store, "a")
    await store.commit([RunChange("a", events=[event(1), event(2)])])
    await store.commit([RunChange("a", columns={"recoveries": 0}, events=[event(3)])])
    run = await found(store, "a")
    assert run.last_seq == 3


async def test_events_are_read_behind_a_cursor(store: Store):
    await start(store, "a", "b")
    await store.commit([RunChange("b", events=[event(1, "other")])])
    await store.commit([RunChange("a", events=[event(n) for n in range(1, 8)])])
    assert [each.seq for each in await store.events("a", 0, 3)] == [1, 2, 3]
    assert [each.seq for each in await store.events("a", 3, 3)] == [4, 5, 6]
    assert [each.seq for each in await store.events("a", 6, 3)] == [7]
    assert await store.events("a", 7, 3) == []
    assert await store.events("none", 0, 3) == []


async def test_what_is_not_there_is_not_found(store: Store):
    assert await store.find_run("a") is None
    assert await store.rows("a") == {}
    assert await store.commit([RunChange("a", rows={"k": "v"})]) == {"a"}
    assert await store.rows("a") == {}
    assert await store.commit([]) == set()


# --- D6: one host executes a run ------------------------------------------------------------------


async def test_a_host_owns_what_it_starts_or_claims_until_it_lets_go(place: Any):
    store = place.store()
    async with opened(store) as host:
        await store.commit([new_run("a", host), new_run("b")])
        assert await claim(store) == ["b"]
        assert await claim(store) == []
        assert await store.commit([RunChange(run, rows={"k": "v"}) for run in "ab"]) == set()
        await store.commit([RunChange("a", rows={"k": "last"}, released=True)])
        assert await store.commit([RunChange("a", rows={"k": "late"})]) == {"a"}
        assert await store.rows("a") == {"k": "last"}
        assert await claim(store) == ["a"]


@pytest.mark.parametrize("status", [*sorted(ENDED), "incompatible", "stuck"])
async def test_a_run_that_has_ended_or_is_parked_has_no_owner(store: Store, status: str):
    await start(store, "a")
    await store.commit([RunChange("a", columns={"status": status})])
    run = await found(store, "a")
    assert run.owner is None
    assert await claim(store) == []
    assert await store.commit([RunChange("a", rows={"k": "late"})]) == {"a"}


async def test_only_the_host_that_executes_a_run_can_change_it(store: Store, other: Store):
    """D6."""
    await start(store, "a")
    assert await claim(other) == []
    assert await other.commit([RunChange("a", rows={"k": "v"}), new_run("b")]) == {"a"}
    assert await store.rows("a") == {}
    assert await store.find_run("b") is not None


async def test_the_runs_of_a_dead_host_are_taken_over_and_it_can_write_nothing(
    place: Any, store: Store, other: Store
):
    """D6: taking over fences the host off."""
    await start(store, "a", "b")
    await store.commit([RunChange("a", rows={"k": "v"})])
    place.kill(store)
    taken = await other.claim(["review"], 0)
    assert [(run.id, run.recoveries) for run in taken] == [("a", 1), ("b", 1)]
    with pytest.raises(HostLostError):
        await store.commit([RunChange("a", rows={"k": "late"})])
    for write in (
        store.claim(["review"], 0),
        store.post("a", "send", ""),
        store.requeue("a", "late"),
        store.take_reply(1),
        store.purge(99),
        store.delete("a"),
    ):
        with pytest.raises(HostLostError):
            await write
    assert await other.rows("a") == {"k": "v"}
    assert await other.commit([RunChange("a", rows={"k": "new"})]) == set()


async def test_a_host_that_closes_gives_its_runs_up_without_a_recovery(place: Any, other: Store):
    """D8."""
    store = place.store()
    async with opened(store):
        await start(store, "a")
    run = await found(other, "a")
    assert (run.owner, run.recoveries) == (None, 0)
    assert await claim(other) == ["a"]


async def test_closing_a_lost_host_leaves_the_runs_to_those_who_have_them(
    place: Any, other: Store, caplog: pytest.LogCaptureFixture
):
    """D6."""
    store = place.store()
    async with opened(store):
        await start(store, "a")
        place.kill(store)
        assert await claim(other) == ["a"]
    run = await found(other, "a")
    assert run.owner is not None
    assert await other.commit([RunChange("a", rows={"k": "v"})]) == set()
    assert not caplog.records


async def test_a_host_that_is_alive_keeps_its_runs_whoever_claims(store: Store, place: Any):
    """D6."""
    await start(store, "a")
    for _ in range(3):
        async with opened(third := place.store()):
            assert await claim(third) == []
    assert await store.commit([RunChange("a", rows={"k": "v"})]) == set()


# --- Claims -------------------------------------------------------------------------------------


async def test_only_runs_that_have_to_be_continued_are_claimed_the_oldest_first(store: Store):
    await store.commit(
        [
            new_run("late", created=3.0),
            new_run("early", created=1.0, status="waiting"),
            new_run("middle", created=2.0, status="queued"),
            new_run("foreign", workflow="other"),
            new_run("mended", status="incompatible"),
            new_run("parked", status="stuck"),
            ended_run("over"),
        ]
    )
    assert await claim(store, limit=2) == ["early", "middle"]
    assert await claim(store, limit=2) == ["late"]
    assert await store.claim([], 0) == []
    assert [run.id for run in await store.claim(["other", "none"], 0)] == ["foreign"]


async def test_a_run_that_is_asleep_is_claimed_when_it_is_due_or_has_mail(store: Store):
    """D7."""
    await store.commit(
        [new_run("a", asleep_since=0.0, wake_at=5.0), new_run("b", asleep_since=0.0)]
    )
    assert await claim(store, now=4.9) == []
    (a,) = await store.claim(["review"], 5.0)
    assert (a.id, a.asleep_since, a.wake_at) == ("a", None, None)
    assert await store.find_run("a") == a
    assert await claim(store, now=1e12) == []
    assert await store.post("b", "send", "x") is not None
    assert await claim(store) == ["b"]


async def test_a_run_that_fell_asleep_in_the_future_is_claimed(store: Store):
    """D7: the clock was set back, and its time may be over."""
    await store.commit([new_run("a", asleep_since=9.0, wake_at=20.0)])
    assert await claim(store, now=9.0) == []
    assert await claim(store, now=8.9) == ["a"]


async def test_a_run_that_is_asleep_is_claimed_by_its_id(store: Store):
    await store.commit([new_run("a", asleep_since=0.0), new_run("b", asleep_since=0.0)])
    assert [run.id for run in await store.claim(["review"], 0, also=["b", "c"])] == ["b"]


async def test_mail_that_was_replied_to_wakes_nobody(store: Store):
    await start(store, "a")
    mail = await post(store, "a")
    asleep = RunChange("a", columns={"asleep_since": 0.0}, replies={mail: "took it"}, released=True)
    await store.commit([asleep])
    assert await claim(store) == []


async def test_it_is_counted_how_often_a_run_was_taken_over(place: Any, store: Store):
    """D9."""
    await store.commit([new_run("a"), new_run("b")])
    async with AsyncExitStack() as stack:
        for deaths in range(3):
            await stack.enter_async_context(opened(mortal := place.store()))
            taken = await mortal.claim(["review"], 0)
            assert [(run.id, run.recoveries) for run in taken] == [
                ("a", deaths),
                ("b", min(deaths, 1)),
            ]
            await mortal.commit([RunChange("b", columns={"recoveries": 0})])  # there was progress
            place.kill(mortal)
        taken = await store.claim(["review"], 0)
        assert [(run.id, run.recoveries) for run in taken] == [("a", 3), ("b", 1)]
    await store.commit([RunChange("a", columns={"status": "stuck", "error": '"why"'})])
    a = await found(store, "a")
    assert (a.status, a.error, a.owner, a.recoveries) == ("stuck", '"why"', None, 3)
    assert await claim(store) == []


async def test_a_run_that_failed_or_is_parked_can_be_queued_again(store: Store):
    facts = {"ended": 2.0, "error": '"no"', "recoveries": 11}
    for status in ("failed", "timed_out", "cancelled", "incompatible", "stuck"):
        await store.commit(
            [new_run(status, status=status, asleep_since=0.0, wake_at=99.0, **facts)]
        )
        assert await store.requeue(status, "late")
        run = await found(store, status)
        assert (run.status, run.ended, run.error, run.recoveries) == ("queued", None, None, 0)
        assert await claim(store) == [status]
        assert not await store.requeue(status, "late")
    await store.commit([ended_run("over")])
    assert not await store.requeue("over", "late")
    assert not await store.requeue("none", "late")


# --- Mail ---------------------------------------------------------------------------------------


async def test_mail_waits_for_its_reply_in_order(store: Store, other: Store):
    await start(store, "a", "b")
    one = await post(other, "a", "send", "first")
    two = await post(other, "b", "cancel", "why")
    three = await post(other, "a", "send", "second")
    assert [(mail.run_id, mail.kind, mail.data) for mail in await store.mail()] == [
        ("a", "send", "first"),
        ("b", "cancel", "why"),
        ("a", "send", "second"),
    ]
    assert await other.mail() == []
    assert await other.take_reply(one) is None
    await store.commit([RunChange("a", replies={one: "took it", 99: "for nobody"})])
    assert [mail.id for mail in await store.mail()] == [two, three]
    assert await other.take_reply(one) == "took it"
    assert await other.take_reply(one) is None
    assert await other.take_reply(99) is None


async def test_a_reply_that_nobody_waits_for_is_not_kept(place: Any, store: Store, other: Store):
    await start(store, "a")
    one, two, three = [await post(other, "a") for _ in range(3)]
    await other.want_no_reply(one)
    assert [mail.id for mail in await store.mail()] == [one, two, three]
    await store.commit([RunChange("a", replies={one: "1", two: "2"})])
    assert place.mail() == [two, three]
    await other.want_no_reply(two)
    await other.want_no_reply(99)
    assert place.mail() == [three]
    await store.commit([RunChange("a", replies={three: "3"})])
    assert await other.take_reply(three) == "3"
    assert place.mail() == []


@pytest.mark.parametrize("ends", ["close", "kill"])
async def test_the_replies_to_a_host_go_with_it(place: Any, store: Store, ends: str):
    await start(store, "a")
    await store.commit([ended_run("b", status="failed")])
    await store.requeue("b", "late")
    mine = await post(store, "a")
    await (sender := place.store()).open()
    one, two = [await post(sender, "a") for _ in range(2)]
    three = await post(sender, "b")
    await store.commit([RunChange("a", replies={mine: "0", one: "1"})])
    if ends == "kill":
        place.kill(sender)
        await claim(store)
    await sender.close()
    assert place.mail() == [mine, two, three]
    await store.commit([RunChange("a", replies={two: "2"})])
    assert place.mail() == [mine, three]
    assert await store.take_reply(mine) == "0"
    await claim(store)
    await store.commit([RunChange("b", columns={"status": "failed"})])
    assert place.mail() == [three]
    await store.requeue("b", "late")
    assert place.mail() == []


async def test_a_reply_is_written_with_its_group_or_not_at_all(store: Store, other: Store):
    """D2."""
    await start(store, "a")
    mail = await post(other, "a")
    assert await other.commit([RunChange("a", replies={mail: "not mine"})]) == {"a"}
    assert await other.take_reply(mail) is None
    assert [each.id for each in await store.mail()] == [mail]


async def test_mail_is_taken_by_runs_that_have_to_be_continued(store: Store):
    await store.commit([ended_run("over"), new_run("parked", status="stuck"), new_run("a")])
    assert await store.post("over", "send", "x") is None
    assert await store.post("none", "send", "x") is None
    assert await store.post("parked", "cancel", "x") is None
    assert await store.mail() == []
    await claim(store)
    assert await store.post("a", "send", "x") is not None
    assert [mail.run_id for mail in await store.mail()] == ["a"]


async def test_no_mail_gets_an_id_that_another_one_had(store: Store):
    await store.commit([new_run("a"), new_run("b")])
    first = await post(store, "a")
    await claim(store)
    await store.commit([RunChange("a", columns={"status": "stuck"})])
    assert await store.delete("a")
    assert await post(store, "b") > first


async def test_a_host_is_told_that_others_have_written(store: Store, other: Store):
    await store.changed()
    assert not await store.changed()
    await start(store, "a")
    assert not await store.changed()
    await other.post("a", "send", "x")
    assert await store.changed()
    assert not await store.changed()
    assert await other.changed()
    await other.post("a", "send", "x")
    await store.commit([RunChange("a", rows={"k": "v"})])
    assert await store.changed()


# --- Lists --------------------------------------------------------------------------------------


async def test_runs_are_listed_newest_first_in_pages(store: Store):
    await store.commit([new_run(f"r{n}", created=float(n // 2)) for n in range(7)])
    assert await ids(store) == ["r6", "r5", "r4", "r3", "r2", "r1", "r0"]
    first = await store.find_runs(RunQuery(limit=3))
    assert [run.id for run in first] == ["r6", "r5", "r4"]
    before = (first[-1].created, first[-1].id)
    assert await ids(store, limit=3, before=before) == ["r3", "r2", "r1"]
    assert await ids(store, limit=0) == []


async def test_runs_are_listed_by_status_workflow_and_what_they_wait_for(store: Store):
    await store.commit(
        [
            new_run("a", waiting_for=("m:A",)),
            new_run("b", status="waiting", waiting_for=("m:A", "m:B"), created=2.0),
            new_run("c", status="waiting", workflow="other", waiting_for=("m:B",), created=3.0),
            ended_run("d", workflow="other", created=4.0),
        ]
    )
    assert await ids(store, status="waiting") == ["c", "b"]
    assert await ids(store, workflow="other") == ["d", "c"]
    assert await ids(store, workflow="other", status="waiting") == ["c"]
    assert await ids(store, waiting_for=["m:A"]) == ["b", "a"]
    assert await ids(store, waiting_for=["m:A", "m:B", "m:C", "m:A"]) == ["c", "b", "a"]
    assert await ids(store, waiting_for=["m:A", "m:B"], status="waiting", limit=1) == ["c"]
    assert await ids(store, waiting_for=["m:B"], workflow="review") == ["b"]
    assert await ids(store, waiting_for=["m:A", "m:B"], before=(3.0, "c")) == ["b", "a"]
    assert await ids(store, waiting_for=["m:C"]) == []
    assert await ids(store, status="stuck") == []


async def test_a_list_follows_what_runs_wait_for(store: Store):
    await start(store, "a")
    await store.commit([RunChange("a", columns={"waiting_for": ("m:A", "m:B")})])
    assert await ids(store, waiting_for=["m:B"]) == ["a"]
    await store.commit([RunChange("a", columns={"waiting_for": ("m:A",)})])
    assert await ids(store, waiting_for=["m:B"]) == []
    assert await ids(store, waiting_for=["m:A"]) == ["a"]
    await store.commit([RunChange("a", columns={"status": "completed", "waiting_for": ()})])
    assert await ids(store, waiting_for=["m:A"]) == []


# --- Deleting -----------------------------------------------------------------------------------


async def test_runs_that_ended_long_ago_are_purged_with_all_that_belongs_to_them(store: Store):
    old = ended_run("old", ended=1.0, waiting_for=("m:A",))
    old.rows, old.events = {"k": "v"}, [event(1)]
    parked = new_run("parked", status="stuck")
    await store.commit([old, ended_run("new", ended=5.0), parked, new_run("going")])
    assert await store.purge(5.0) == 1
    assert await ids(store) == ["parked", "new", "going"]
    assert await ids(store, waiting_for=["m:A"]) == []
    assert await store.rows("old") == {}
    assert await store.events("old", 0, 9) == []
    assert await store.purge(5.0) == 0
    assert await store.commit([new_run("old")]) == set()
    assert await store.rows("old") == {}
    assert await store.events("old", 0, 9) == []


async def test_a_new_run_inherits_nothing_from_one_that_was_deleted(store: Store):
    for run_id in ("first", "second"):
        await store.commit([new_run(run_id, status="incompatible", waiting_for=("m:A",))])
        assert await store.rows(run_id) == {}
        assert await store.events(run_id, 0, 9) == []
        assert await store.requeue(run_id, "late")
        assert await claim(store) == [run_id]
        assert await store.mail() == []
        await store.commit([RunChange(run_id, columns={"waiting_for": ()}, rows={"k": "v"})])
        await store.commit(
            [RunChange(run_id, columns={"waiting_for": ("m:B",)}, events=[event(1)])]
        )
        await post(store, run_id)
        assert await ids(store, waiting_for=["m:B"]) == [run_id]
        await store.commit([RunChange(run_id, columns={"status": "stuck"})])
        assert await store.delete(run_id)
    await store.commit([new_run("third")])
    assert await ids(store, waiting_for=["m:A", "m:B"]) == []
    assert await store.rows("third") == {}
    assert await store.events("third", 0, 9) == []


async def test_a_purge_takes_so_many_at_once_those_that_ended_first(store: Store):
    await store.commit([ended_run(f"r{n}", ended=float(n)) for n in range(5)])
    assert await store.purge(4.0, limit=3) == 3
    assert await ids(store) == ["r4", "r3"]
    assert await store.purge(4.0, limit=3) == 1


async def test_a_run_is_deleted_unless_it_has_to_be_continued(store: Store):
    await store.commit([new_run("a"), new_run("parked", status="incompatible"), ended_run("over")])
    assert not await store.delete("a")
    assert not await store.delete("none")
    assert await store.delete("parked")
    assert await store.delete("over")
    assert not await store.delete("over")
    assert await ids(store) == ["a"]


# --- The block ----------------------------------------------------------------------------------


async def test_each_host_has_an_id_of_its_own(place: Any):
    hosts = set()
    for store in [place.store() for _ in range(3)]:
        async with opened(store) as host:
            hosts.add(host)
    assert len(hosts) == 3


async def test_a_store_can_be_opened_again(place: Any):
    store = place.store()
    async with opened(store):
        await start(store, "a")
    async with opened(store):
        assert await claim(store) == ["a"]


async def test_a_store_that_is_not_open_says_so(place: Any):
    store = place.store()
    with pytest.raises(StoreError, match="not open"):
        await store.find_run("a")
    async with opened(store):
        with pytest.raises(StoreError, match="open already"):
            await store.open()
    for call in (store.find_run("a"), store.commit([]), store.changed(), store.mail()):
        with pytest.raises(StoreError, match="not open"):
            await call
    await store.close()


async def test_a_store_is_closed_even_if_its_task_is_cancelled(place: Any, other: Store):
    store = place.store()
    with anyio.CancelScope() as scope:
        async with opened(store):
            await start(store, "a")
            scope.cancel()
    assert await claim(other) == ["a"]


# --- In memory ----------------------------------------------------------------------------------


async def test_a_store_in_memory_tells_each_transaction_that_wrote_something():
    told: list[int] = []
    store = MemoryStore(on_commit=told.append)
    await store.open()
    await store.commit([new_run("a")])
    await claim(store)
    await claim(store)
    await store.find_run("a")
    mail = await post(store, "a")
    await store.take_reply(mail)
    await store.commit([RunChange("a", columns={"status": "failed"}, replies={mail: "y"})])
    await store.take_reply(mail)
    await store.requeue("a", "late")
    await store.delete("a")
    await store.purge(9)
    assert told == list(range(1, 7))


async def test_a_host_in_memory_can_be_killed_right_after_a_transaction():
    """D6, as the test toolkit does it: what was written stays, and nothing follows."""
    data = MemoryData()
    store = MemoryStore(data, on_commit=lambda number: number == 2 and store.kill())
    host = await store.open()
    await store.commit([new_run("a", host)])
    await store.commit([RunChange("a", rows={"k": "v"})])
    with pytest.raises(HostLostError):
        await store.commit([RunChange("a", rows={"k": "late"})])
    await store.close()
    async with opened(later := MemoryStore(data)):
        (run,) = await later.claim(["review"], 0)
        assert (run.id, run.recoveries) == ("a", 1)
        assert await later.rows("a") == {"k": "v"}


async def test_a_store_in_memory_can_be_broken_and_mended():
    """D10."""
    store = MemoryStore()
    host = await store.open()
    store.problem = "the disk is full"
    with pytest.raises(StoreError, match="the disk is full"):
        await store.commit([new_run("a", host)])
    assert await store.find_run("a") is None
    store.problem = None
    assert await store.commit([new_run("a", host)]) == set()
