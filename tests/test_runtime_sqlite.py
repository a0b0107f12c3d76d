"""The SQLite store: whose file it is, what it refuses, and what a failure leaves behind."""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import attrs
import pytest

from anyio_workflows import Runtime
from anyio_workflows.errors import HostLostError, StoreError
from anyio_workflows.runtime import _sqlite as sqlite
from anyio_workflows.runtime import _sqlite_file as files
from anyio_workflows.runtime import _sqlite_tables as tables
from anyio_workflows.runtime._sqlite import SqliteStore
from anyio_workflows.runtime._store import RunChange, RunQuery, StoredEvent

from .conftest import BACKENDS
from .running import on_asyncio
from .samples import Asks
from .stores import event, new_run, opened

pytestmark = pytest.mark.anyio

on_linux = pytest.mark.skipif(
    not Path("/proc/self/mountinfo").exists(), reason="needs /proc of Linux"
)


@pytest.fixture(params=BACKENDS)
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run the tests in real time: virtual time does not wait for threads."""
    return request.param


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


async def refusal(path: Path | str) -> str:
    """Return what is said when a store is opened that cannot be."""
    store = SqliteStore(path, patience=0)
    with pytest.raises(StoreError) as caught:
        await store.open()
    await store.close()
    assert caught.value.store == os.fspath(path)
    return caught.value.problem


async def check_usable(path: Path, *runs: str) -> None:
    """Assert that a database can be opened and written, and that it has these runs and no others."""
    async with opened(store := SqliteStore(path)) as host:
        found = [run.id for run in await store.find_runs(RunQuery(limit=1000))]
        assert sorted(found) == sorted(runs)
        await store.commit([new_run("probe", host)])
        await store.commit([RunChange("probe", columns={"status": "completed", "ended": 1.0})])
        assert await store.delete("probe")
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("SELECT count(*) FROM hosts").fetchone() == (0,)


def content(path: Path) -> bytes:
    return path.read_bytes()


def overwrite(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def foreign(path: Path, *statements: str) -> None:
    """Do something to a database, as another program does."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for statement in statements:
            db.execute(statement)


# --- Where it may be ------------------------------------------------------------------------------


async def test_a_database_is_made_and_closed_without_leaving_other_files(path: Path):
    await check_usable(path)
    assert [entry.name for entry in path.parent.iterdir()] == ["runs.db"]
    await check_usable(path)


async def test_a_missing_directory_is_refused(tmp_path: Path):
    missing = tmp_path / "none"
    assert f"there is no directory {missing}" in await refusal(missing / "runs.db")
    assert not missing.exists()
    (tmp_path / "file").write_text("x")
    assert "there is no directory" in await refusal(tmp_path / "file" / "runs.db")


async def test_what_is_no_regular_file_is_refused(tmp_path: Path):
    assert "no regular file" in await refusal(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        assert "no regular file" in await refusal(tmp_path / "pipe")


@on_linux
async def test_a_directory_in_which_no_file_can_be_made_is_refused():
    problem = await refusal("/proc/runs.db")
    assert "cannot be opened" in problem or "not writable" in problem


@contextmanager
def without_rights() -> Iterator[Path]:
    """Give a directory of somebody else; the block is executed with the rights of nobody."""
    if not hasattr(os, "geteuid"):
        pytest.skip("needs the permissions of POSIX")
    folder = Path(tempfile.mkdtemp())
    me = os.geteuid()
    try:
        folder.chmod(0o755)
        if me == 0:
            os.seteuid(65534)
        yield folder
    finally:
        os.seteuid(me)
        folder.chmod(0o755)
        shutil.rmtree(folder)


async def test_a_directory_that_is_not_writable_is_refused():
    with without_rights() as folder:
        if os.geteuid() != 65534:
            folder.chmod(0o555)
        assert f"the directory {folder} is not writable" in await refusal(folder / "runs.db")


async def test_a_read_only_file_is_refused(path: Path):
    with without_rights() as folder:
        target = folder / "runs.db"
        me, nobody = os.getuid(), os.geteuid()
        os.seteuid(me)
        target.touch()
        target.chmod(0o444)
        folder.chmod(0o777)
        os.seteuid(nobody)
        assert "the file is read-only" in await refusal(target)


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "ceph", "lustre"])
async def test_a_network_file_system_is_refused(
    kind: str, path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(files, "file_system", lambda folder: kind)
    problem = await refusal(path)
    assert f"on a network file system ({kind})" in problem
    assert "use a disk of this machine" in problem
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("kind", [None, "ext4", "tmpfs", "overlay", "9p", "fuse.ntfs", "nfsd"])
async def test_other_file_systems_are_used(
    kind: str | None, path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(files, "file_system", lambda folder: kind)
    await check_usable(path)


MOUNTS = r"""
20 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
21 20 0:40 / /mnt rw - nfs4 server:/export rw,vers=4.2
22 21 0:41 / /mnt/local\040disk rw master:2 propagate_from:3 - xfs /dev/vdb rw
23 20 0:42 / /srv rw - ext4 /dev/vdc rw
24 20 0:43 / /srv rw - cifs //server/share rw
broken
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/", "ext4"),
        ("/home/me", "ext4"),
        ("/mnt", "nfs4"),
        ("/mnt/a/b", "nfs4"),
        ("/mntx", "ext4"),
        ("/mnt/local disk", "xfs"),
        ("/mnt/local disk/a", "xfs"),
        ("/srv/a", "cifs"),
    ],
)
def test_a_file_system_is_found_by_its_mount(tmp_path: Path, folder: str, kind: str):
    (tmp_path / "mounts").write_text(MOUNTS)
    assert files.file_system(folder, str(tmp_path / "mounts")) == kind


def test_the_file_system_is_unknown_where_there_is_no_list_of_mounts(tmp_path: Path):
    assert files.file_system("/", str(tmp_path / "none")) is None


@on_linux
def test_the_file_system_of_a_real_directory_is_found():
    assert files.file_system("/proc") == "proc"


async def test_an_old_sqlite_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(files, "OLDEST_SQLITE", (99, 1, 0))
    problem = await refusal(path)
    assert "SQLite 99.1 or later" in problem
    assert sqlite3.sqlite_version in problem


async def test_a_path_that_no_system_takes_is_refused():
    assert "embedded null" in await refusal("a\0b")


async def test_a_relative_path_stays_where_it_was(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(path.parent)
    async with opened(store := SqliteStore("runs.db")) as host:
        monkeypatch.chdir("/")
        await store.commit([new_run("a", host)])
    await check_usable(path, "a")


async def test_a_link_leads_to_one_database(path: Path):
    link = path.parent / "link" / "other.db"
    link.parent.mkdir()
    link.symlink_to(path)
    async with opened(one := SqliteStore(path)), opened(two := SqliteStore(link)):
        await one.commit([new_run("a")])
        assert await two.find_run("a") is not None
        assert await one.claim(["review"], 0) != []
        assert await two.claim(["review"], 0) == []
    assert [entry.name for entry in link.parent.iterdir()] == ["other.db"]


# --- Whose it is ----------------------------------------------------------------------------------


async def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path):
    overwrite(path, b"Dear diary, " * 1000)
    assert "no SQLite database" in await refusal(path)
    assert content(path) == b"Dear diary, " * 1000
    assert [entry.name for entry in path.parent.iterdir()] == ["runs.db"]


@pytest.mark.parametrize(
    "statement",
    ["CREATE TABLE notes (text)", "PRAGMA application_id = 7", "PRAGMA user_version = 7"],
)
async def test_the_database_of_another_program_is_refused_and_left_alone(
    path: Path, statement: str
):
    foreign(path, statement)
    before = content(path)
    assert "the database of another program" in await refusal(path)
    assert content(path) == before
    assert [entry.name for entry in path.parent.iterdir()] == ["runs.db"]


async def test_an_empty_file_becomes_a_database(path: Path):
    overwrite(path, b"")
    await check_usable(path)


@pytest.mark.parametrize("statement", ["PRAGMA application_id", "PRAGMA user_version"])
async def test_a_database_that_another_process_makes_meanwhile_is_not_that_of_another_program(
    path: Path, statement: str
):
    """D6: what is read before the file is changed is of one moment."""
    others = []

    def make(executed: str) -> None:
        if executed == statement and not others:
            other = files.connect(os.fspath(path), 0)
            others.append(other)
            with suppress(sqlite3.OperationalError):  # it has to wait
                files.prepare(other, "other", os.fspath(path), 0, tables.MIGRATIONS)

    with closing(files.connect(os.fspath(path), 0)) as db:
        db.set_trace_callback(make)
        files.prepare(db, "this", os.fspath(path), 0, tables.MIGRATIONS)
    assert others
    others[0].close()
    await check_usable(path)


async def test_a_database_of_a_newer_version_is_refused_and_left_alone(path: Path):
    await check_usable(path)
    foreign(path, "PRAGMA user_version = 99")
    problem = await refusal(path)
    assert "format 99; this one knows 1" in problem
    assert "upgrade" in problem
    foreign(path, "PRAGMA user_version = 1")
    await check_usable(path)


async def test_a_database_says_whose_it_is_and_writes_ahead_and_in_full(path: Path):
    async with opened(store := SqliteStore(path)):
        connections = store._open
        assert connections is not None
        db = connections.writer
        assert db.execute("PRAGMA application_id").fetchone() == (int.from_bytes(b"anyw"),)
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert db.execute("PRAGMA synchronous").fetchone() == (2,)
        with pytest.raises(sqlite3.OperationalError):
            connections.reader.execute("DELETE FROM runs")


# --- Migrations -----------------------------------------------------------------------------------


def add_color(db: sqlite3.Connection) -> None:
    db.execute("ALTER TABLE runs ADD COLUMN color TEXT")
    db.execute("UPDATE runs SET color = 'green'")


def fail(db: sqlite3.Connection) -> None:
    db.execute("ALTER TABLE runs ADD COLUMN shape TEXT")
    db.execute("INSERT INTO none VALUES (1)")


def color(path: Path) -> list[Any]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute("SELECT id, color FROM runs").fetchall()


async def test_a_database_is_migrated_step_by_step(path: Path, monkeypatch: pytest.MonkeyPatch):
    async with opened(store := SqliteStore(path)):
        await store.commit([new_run("a")])
    monkeypatch.setattr(tables, "MIGRATIONS", [*tables.MIGRATIONS, add_color])
    await check_usable(path, "a")
    assert color(path) == [("a", "green")]
    foreign(path, "UPDATE runs SET color = 'red'")
    await check_usable(path, "a")
    assert color(path) == [("a", "red")]
    monkeypatch.undo()
    assert "format 2; this one knows 1" in await refusal(path)


async def test_a_migration_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch):
    await check_usable(path)
    with monkeypatch.context() as patch:
        patch.setattr(tables, "MIGRATIONS", [*tables.MIGRATIONS, add_color, fail])
        assert "no such table: none" in await refusal(path)
    await check_usable(path)


async def test_a_database_is_not_migrated_while_older_hosts_use_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    async with opened(store := SqliteStore(path)) as host:
        with monkeypatch.context() as patch:
            patch.setattr(tables, "MIGRATIONS", [*tables.MIGRATIONS, add_color])
            problem = await refusal(path)
            assert f"an older version of anyio-workflows uses it (process {os.getpid()})" in problem
        await store.commit([new_run("a", host)])
    await check_usable(path, "a")


# --- D10: writes that fail ------------------------------------------------------------------------


def writer(store: SqliteStore) -> sqlite3.Connection:
    assert store._open is not None
    return store._open.writer


def big_group(host: str) -> list[RunChange]:
    changes = [new_run(f"r{n}", host) for n in range(50)]
    for change in changes:
        change.rows = {"w": "x" * 5000}
        change.events = [event(1)]
    return changes


async def test_nothing_of_a_group_is_written_when_the_disk_is_full(path: Path):
    """D10."""
    async with opened(store := SqliteStore(path)) as host:
        await store.commit([new_run("a", host)])
        (pages,) = writer(store).execute("PRAGMA page_count").fetchone()
        writer(store).execute(f"PRAGMA max_page_count = {pages + 10}")
        for _ in range(2):
            with pytest.raises(StoreError, match="the disk is full: make room") as caught:
                await store.commit([RunChange("a", rows={"k": "v"}), *big_group(host)])
            assert str(path) in str(caught.value)
        assert [run.id for run in await store.find_runs(RunQuery())] == ["a"]
        assert await store.rows("a") == {}
        assert await store.commit([RunChange("r1", rows={"k": "v"})]) == {"r1"}
        writer(store).execute("PRAGMA max_page_count = 1000000")
        assert await store.commit([RunChange("a", rows={"k": "v"}), *big_group(host)]) == set()
        assert await store.commit([RunChange("r1", rows={"k": "v"})]) == set()
        assert await store.rows("r1") == {"w": "x" * 5000, "k": "v"}
    await check_usable(path, "a", *(f"r{n}" for n in range(50)))


async def test_a_host_that_cannot_write_its_end_counts_as_dead(
    path: Path, caplog: pytest.LogCaptureFixture
):
    store = SqliteStore(path, patience=0)
    await store.commit([new_run("a", await store.open())])
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        await store.close()
        other.execute("ROLLBACK")
    assert "runs could not be given up" in caplog.text
    assert str(path) in caplog.text
    async with opened(later := SqliteStore(path)):
        (run,) = await later.claim(["review"], 0)
        assert (run.id, run.recoveries) == ("a", 1)
    await check_usable(path, "a")


async def test_a_database_that_another_program_keeps_locked_is_waited_for_in_vain(path: Path):
    async with opened(store := SqliteStore(path, patience=0.01)) as host:
        await store.commit([new_run("a", host)])
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreError, match=r"kept it locked for 0\.01 s"):
                await store.commit([RunChange("a", rows={"k": "v"})])
            assert "kept it locked for 0 s" in await refusal(path)
            assert await store.rows("a") == {}  # readers wait for nobody
            other.execute("ROLLBACK")
        await store.commit([RunChange("a", rows={"k": "v"})])
        assert await store.rows("a") == {"k": "v"}
    await check_usable(path, "a")


async def test_a_number_that_was_used_is_refused_with_its_whole_group(path: Path):
    """D3: the last safeguard of L1."""
    async with opened(store := SqliteStore(path)) as host:
        await store.commit([new_run("a", host), new_run("b", host)])
        await store.commit([RunChange("a", events=[event(1)])])
        with pytest.raises(StoreError, match="UNIQUE"):
            await store.commit(
                [RunChange("b", rows={"k": "v"}), RunChange("a", events=[event(1, "again")])]
            )
        assert await store.rows("b") == {}
        assert await store.events("a", 0, 9) == [event(1)]
        await store.commit([RunChange("a", events=[event(2)])])


@pytest.mark.parametrize(
    "change",
    [
        RunChange("a", rows={"k": "\ud800"}),
        RunChange("a", events=[StoredEvent(2**70, 1.0, "x")]),
        RunChange("a", columns={"last_seq": "no number"}),
        RunChange("a", columns={"metadata": [1]}),
    ],
)
async def test_what_sqlite_cannot_keep_is_refused_with_its_whole_group(
    path: Path, change: RunChange
):
    async with opened(store := SqliteStore(path)) as host:
        await store.commit([new_run("a", host), new_run("b", host)])
        with pytest.raises(StoreError):
            await store.commit([RunChange("b", rows={"k": "v"}), change])
        assert await store.rows("b") == {}
        await store.commit([RunChange("b", rows={"k": "v"})])


async def test_a_run_that_waits_takes_less_than_a_kilobyte(path: Path):
    async def size_with(runs: range) -> int:
        async with Runtime(f"sqlite:///{path}", workflows=[Asks(timeout=None)]) as runtime:
            for n in runs:
                run = await runtime.start(Asks, f"run-{n}")
                await anext(run.stream_events())  # its question
        foreign(path, "VACUUM")
        return len(content(path))

    first = await size_with(range(50))
    assert await size_with(range(50, 150)) - first < 100 * 1000


async def test_runs_that_change_in_any_order_fill_the_pages_as_well(path: Path):
    """Tasks of trio run in an order that is drawn: whatever the order, a group is written in that of the trees."""
    sizes = []
    for order in (range(600), random.Random(1).sample(range(600), 600)):
        path = path.with_suffix(f".{len(sizes)}")
        async with opened(store := SqliteStore(path)) as host:
            started = [new_run(f"{n}", host) for n in range(600)]
            for change in started:
                change.rows = {"m": "x" * 40, "w": "x" * 90}
            await store.commit(started)
            columns = {"status": "waiting", "waiting_for": ("m:A",)}
            await store.commit(
                [RunChange(f"{n}", rows={"v": "x" * 200}, columns=columns) for n in order]
            )
        sizes.append(len(content(path)))
    assert sizes[1] == sizes[0]


async def test_a_text_that_is_damaged_is_that_of_its_run_alone(path: Path):
    """What is no UTF-8 is read as a text that is no JSON, so that it parks its run, and nobody else."""
    async with opened(store := SqliteStore(path)) as host:
        runs = [new_run(run_id, host) for run_id in "ab"]
        for run in runs:
            run.rows = {"w1": '{"step":"é"}'}
        await store.commit(runs)
    foreign(path, "UPDATE rows SET data = CAST(x'7B22E9227D' AS TEXT) WHERE run = 1")
    async with opened(store := SqliteStore(path)):
        assert [run.id for run in await store.claim(["review"], 0)] == ["a", "b"]
        damaged, whole = await store.rows_of_each("ab")
        assert damaged == {"w1": """b'{"\\xe9"}'"""}
        assert whole == {"w1": '{"step":"é"}'}


async def test_a_checkpoint_is_made_while_nobody_can_write(path: Path, monkeypatch: Any):
    """D1: a commit at that moment can cost pages, in many versions of SQLite."""
    monkeypatch.setattr(sqlite, "_PAGES_PER_CHECKPOINT", 1)
    refused: list[str] = []

    def try_to_write(statement: str) -> None:
        with closing(files.connect(str(path), 0)) as other:
            assert statement == "PRAGMA wal_checkpoint(PASSIVE)"
            try:
                other.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                refused.append(str(error))

    async with opened(store := SqliteStore(path)) as host:
        connections = store._connections()
        for db in (connections.writer, connections.reader, connections.checkpointer):
            (at,) = db.execute("PRAGMA wal_autocheckpoint").fetchone()
            assert at == 0 or db.execute("PRAGMA query_only").fetchone() == (1,)
        connections.checkpointer.set_trace_callback(try_to_write)
        await store.commit([new_run("a", host)])
        assert refused == ["database is locked"]
        shutil.copy(path, path.with_name("copy.db"))  # without what was written ahead
        with closing(sqlite3.connect(path.with_name("copy.db"))) as copy:
            assert copy.execute("SELECT id FROM runs").fetchall() == [("a",)]
        connections.checkpointer.close()
        await store.commit([new_run("b", host)])  # is kept, though its checkpoint fails
    await check_usable(path, "a", "b")


async def test_what_is_written_ahead_is_bounded(path: Path):
    ahead = path.with_name("runs.db-wal")
    async with opened(store := SqliteStore(path)) as host:
        await store.commit([new_run("a", host)])
        for number in range(1, 400):
            await store.commit([RunChange("a", rows={f"w{number}": "x" * 9000})])
        assert ahead.stat().st_size < 2000 * 4096
        async with opened(SqliteStore(path)):
            for number in range(400, 800):  # with another process, too
                await store.commit([RunChange("a", rows={f"w{number}": "x" * 9000})])
        assert ahead.stat().st_size < 2000 * 4096


async def test_a_damaged_database_is_named(path: Path):
    async with opened(store := SqliteStore(path)) as host:
        await store.commit(big_group(host))
    foreign(path, "PRAGMA wal_checkpoint(TRUNCATE)")
    whole, first = content(path), 2 * 4096
    overwrite(path, whole[:first] + os.urandom(len(whole) - first))
    store = SqliteStore(path)
    with pytest.raises(StoreError, match=r"damaged: restore a copy.*SQLITE_CORRUPT") as caught:
        async with opened(store):
            await store.find_runs(RunQuery())
    assert caught.value.store == str(path)
    await store.close()
    overwrite(path, whole)
    await check_usable(path, *(f"r{n}" for n in range(50)))


async def test_a_run_that_was_edited_into_nonsense_is_named(path: Path):
    async with opened(store := SqliteStore(path)):
        await store.commit([new_run("a")])
        foreign(path, "DROP TRIGGER run_waits", "UPDATE runs SET waiting_for = 'nonsense'")
        with pytest.raises(StoreError, match=str(path)):
            await store.find_run("a")


# --- Lists ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [
        RunQuery(),
        RunQuery(status="failed"),
        RunQuery(workflow="w"),
        RunQuery(workflow="w", status="failed"),
        RunQuery(waiting_for=["m:A"]),
        RunQuery(waiting_for=["m:A", "m:B"]),
        RunQuery(waiting_for=["m:A", "m:B"], workflow="w", status="waiting"),
    ],
)
@pytest.mark.parametrize("before", [None, (1.0, "a")])
async def test_a_page_of_runs_is_read_from_an_index_in_order(
    path: Path, query: RunQuery, before: Any
):
    async with opened(store := SqliteStore(path)):
        statement, values = tables.page_of(attrs.evolve(query, before=before))
        plan = plan_of(store, statement, values)
        assert "SCAN runs USING INDEX" in plan or "SCAN runs" not in plan
        assert "SCAN waits" not in plan
        sorts = [line for line in plan.splitlines() if "TEMP B-TREE" in line]
        # By the id, those that were created at the same time.
        whole = [line for line in sorts if not re.search("(RIGHT PART|LAST .*TERM.*) OF", line)]
        assert len(whole) <= bool(query.waiting_for)  # of the page itself


@pytest.mark.parametrize("before", [None, 700.0])
@pytest.mark.parametrize(
    "query",
    [
        {},
        {"workflow": "review", "status": "waiting"},
        {"waiting_for": ["m:A"]},
        {"waiting_for": ["m:A", "m:B"], "status": "waiting"},
    ],
)
async def test_a_page_of_runs_costs_the_same_however_many_runs_there_are(
    path: Path, query: Any, before: float | None
):
    async with opened(store := SqliteStore(path)):
        steps = []
        for first in (0, 800):
            facts = {"status": "waiting", "waiting_for": ("m:A", "m:B")}
            await store.commit(
                [new_run(f"r{n}", created=float(n), **facts) for n in range(first, first + 800)]
            )
            assert store._open is not None
            steps.append(0)

            def count() -> int:
                steps[-1] += 1
                return 0

            store._open.reader.set_progress_handler(count, 1)
            cursor = None if before is None else (before, "r700")
            page = await store.find_runs(RunQuery(**query, limit=5, before=cursor))
            last = int(first + 800 if before is None else before)
            assert [run.id for run in page] == [f"r{n}" for n in range(last - 1, last - 6, -1)]
        assert steps[1] < steps[0] * 1.2


def plan_of(store: SqliteStore, statement: str, values: Any) -> str:
    plan = writer(store).execute(f"EXPLAIN QUERY PLAN {statement}", values)
    return "\n".join(row[3] for row in plan)


async def test_what_is_asked_again_and_again_is_read_from_indexes(path: Path):
    async with opened(store := SqliteStore(path)):
        named = {"workflows": '["w"]', "now": 1.0, "limit": 10, "also": "[]"}
        for statement, values in (
            (tables.DUE, named),
            (tables.MAIL, ("host",)),
            (tables.EVENTS, ("a", 0, 10)),
            (tables.ROWS, ("a",)),
            (tables.GIVE_UP, (1, "host")),
            (tables.PURGE, (1.0, 10)),
        ):
            plan = plan_of(store, statement, values)
            assert "SCAN runs" not in plan, plan
            assert plan.count("SCAN inbox") == plan.count("INDEX inbox_open")
            assert "SCAN rows" not in plan
            assert "SCAN events" not in plan


# --- Threads and cancellation ---------------------------------------------------------------------


async def test_a_caller_that_is_cancelled_waits_for_its_transaction(path: Path):
    """D10: it is written as a whole, and the store knows what it has."""
    async with opened(store := SqliteStore(path)) as host:
        await store.commit([new_run("a", host)])
        done = []

        async def give_up() -> None:
            done.append(await store.commit([RunChange("a", rows={"k": "v"}, released=True)]))

        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            async with anyio.create_task_group() as group:
                group.start_soon(give_up)
                await anyio.wait_all_tasks_blocked()
                group.cancel_scope.cancel()
                other.execute("ROLLBACK")
        assert done == [set()]
        assert await store.rows("a") == {"k": "v"}
        assert await store.commit([RunChange("a", rows={"k": "late"})]) == {"a"}
        assert [run.id for run in await store.claim(["review"], 0)] == ["a"]
    await check_usable(path, "a")


async def test_a_caller_that_is_cancelled_before_it_began_writes_nothing(path: Path):
    async with opened(store := SqliteStore(path)) as host:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await store.commit([new_run("a", host)])
        assert await store.find_run("a") is None


@on_asyncio
async def test_the_next_call_waits_for_the_thread_of_one_that_was_cancelled_natively(path: Path):
    """Asyncio's own cancellation waits for no thread."""
    async with opened(store := SqliteStore(path)) as host:
        await store.commit([new_run("a", host)])
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            change = RunChange("a", rows={"k": "v"}, released=True)
            task = asyncio.create_task(store.commit([change]))
            await anyio.wait_all_tasks_blocked()
            task.cancel()
            await asyncio.wait([task])
            other.execute("ROLLBACK")
        assert task.cancelled()
        assert await store.commit([RunChange("a", rows={"k": "late"})]) == {"a"}
        assert await store.rows("a") == {"k": "v"}


async def test_a_store_does_not_depend_on_the_threads_of_steps(path: Path):
    limiter = anyio.to_thread.current_default_thread_limiter()
    holders = [object() for _ in range(int(limiter.total_tokens))]
    async with opened(store := SqliteStore(path)) as host:
        for holder in holders:
            limiter.acquire_on_behalf_of_nowait(holder)
        try:
            await store.commit([new_run("a", host)])
            assert await store.find_run("a") is not None
        finally:
            for holder in holders:
                limiter.release_on_behalf_of(holder)


async def test_readers_do_not_wait_for_a_writer(path: Path):
    async with opened(store := SqliteStore(path)) as host:
        await store.commit([new_run("a", host)])
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            async with anyio.create_task_group() as group:
                group.start_soon(store.commit, [RunChange("a", rows={"k": "v"})])
                await anyio.wait_all_tasks_blocked()
                assert await store.rows("a") == {}
                assert await store.find_run("a") is not None
                assert not await store.changed()
                other.execute("ROLLBACK")
        assert await store.rows("a") == {"k": "v"}


async def test_calls_from_many_tasks_are_made_one_after_the_other(path: Path):
    async with opened(store := SqliteStore(path)) as host:
        await store.commit([new_run("a", host)])

        async def write(n: int) -> None:
            await store.commit([RunChange("a", rows={f"k{n}": "v"})])
            assert f"k{n}" in await store.rows("a")

        async with anyio.create_task_group() as group:
            for n in range(30):
                group.start_soon(write, n)
        assert len(await store.rows("a")) == 30


# --- Hosts ----------------------------------------------------------------------------------------


def lock_files(path: Path) -> set[str]:
    return {entry.name for entry in path.parent.glob("runs.db.host-*")}


async def test_a_host_has_a_lock_file_while_it_is_open(path: Path):
    async with opened(SqliteStore(path)) as one, opened(SqliteStore(path)) as two:
        assert lock_files(path) == {f"runs.db.host-{one}", f"runs.db.host-{two}"}
    assert lock_files(path) == set()


async def test_a_host_whose_lock_file_was_removed_is_fenced_off(path: Path):
    """D6: others cannot know that it is alive, and it can write nothing any more."""
    async with opened(store := SqliteStore(path)) as host, opened(other := SqliteStore(path)):
        await store.commit([new_run("a", host)])
        lock = f"{path}.host-{host}"
        os.unlink(lock)
        assert [run.id for run in await other.claim(["review"], 0)] == ["a"]
        with pytest.raises(HostLostError) as caught:
            await store.commit([RunChange("a", rows={"k": "late"})])
        assert lock in str(caught.value)
        assert await other.rows("a") == {}


async def test_lock_files_without_a_host_are_removed_and_nothing_else(path: Path):
    left = path.with_name("runs.db.host-99-0123456789ab")
    others = [path.with_name(name) for name in ("runs.db.host-x", "other.db.host-1-0123456789ab")]
    for file in (left, *others):
        file.touch()
    async with opened(SqliteStore(path)) as host:
        assert lock_files(path) == {f"runs.db.host-{host}", "runs.db.host-x"}
        async with opened(SqliteStore(path)):
            assert f"runs.db.host-{host}" in lock_files(path)
    assert all(file.exists() for file in others)


async def test_a_host_that_cannot_be_asked_counts_as_alive(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    """D6: in doubt, nobody is dead."""
    async with opened(store := SqliteStore(path)) as host, opened(other := SqliteStore(path)):
        await store.commit([new_run("a", host)])

        def no_more_files(path: str, patience: float) -> sqlite3.Connection:
            raise sqlite3.OperationalError("unable to open database file")

        with monkeypatch.context() as patch:
            patch.setattr(files, "connect", no_more_files)
            assert await other.claim(["review"], 0) == []
        await store.commit([RunChange("a", rows={"k": "v"})])
