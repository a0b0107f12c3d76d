"""The SQLite store and several processes: deaths, stops, forks, and commits that are cut."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import anyio
import pytest

from anyio_workflows.runtime._sqlite import SqliteStore
from anyio_workflows.runtime._store import RunChange, RunQuery, StoredRun

from .running import on_each_backend, run_script
from .stores import opened

needs_signals = pytest.mark.skipif(
    not hasattr(signal, "SIGKILL"), reason="needs the signals of POSIX"
)

HOST = """
import sys
import anyio
import anyio.to_thread
from anyio_workflows.errors import StoreError
from anyio_workflows.runtime._sqlite import SqliteStore
from anyio_workflows.runtime._store import RunChange, StoredEvent, StoredRun

def say(*words):
    print(*words, flush=True)

async def obey(store, host):
    "Write each line of the standard input as a key of the run."
    await store.commit([new_run("a", host)])
    say(host)
    while key := (await anyio.to_thread.run_sync(sys.stdin.readline)).strip():
        try:
            say(await store.commit([RunChange("a", rows={key: "v"})]) or "written")
        except StoreError as error:
            say(type(error).__name__)

def new_run(run_id, host):
    return RunChange(run_id, new=StoredRun(run_id, "review", "running", 1.0, owner=host))

async def write_groups(store, host):
    "Write groups without end; tell the number of each that is written."
    names = [f"r{n}" for n in range(40)]
    await store.commit([new_run(name, host) for name in names])
    say(0)
    number = 0
    while True:
        number += 1
        event, rows = StoredEvent(number, 1.0, "x" * 500), {"k": str(number), f"k{number}": "x" * 500}
        await store.commit([RunChange(name, rows=rows, events=[event]) for name in names])
        say(number)

async def share(store, host):
    "Start some runs, then execute whatever runs there are."
    for n in range(11):
        if n < 10:
            await store.commit([new_run(f"{host}-{n}", None)])
        for run in await store.claim(["review"], 0, limit=2 if n < 10 else 99):
            rows = {"by": host}
            assert not await store.commit([RunChange(run.id, rows=rows, events=[StoredEvent(1, 1.0, host)])])
            assert not await store.commit([RunChange(run.id, columns={"status": "completed", "ended": 1.0})])
    say("done")

async def main(path, act):
    store = SqliteStore(path)
    host = await store.open()
    await globals()[act](store, host)
    await store.close()

path, act, backend = sys.argv[1:]
anyio.run(main, path, act, backend=backend)
"""


@contextmanager
def process(path: Path, *args: str, program: str = HOST) -> Iterator[subprocess.Popen[str]]:
    """Run a host in a process of its own, until the end of the block at the latest."""
    command, pipe = [sys.executable, "-c", program, str(path), *args], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def said(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def tell(child: subprocess.Popen[str], line: str) -> str:
    assert child.stdin is not None
    print(line, file=child.stdin, flush=True)
    return said(child)


def stop(child: subprocess.Popen[str]) -> None:
    child.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED)


async def claim(store: SqliteStore) -> list[tuple[str, int]]:
    return [(run.id, run.recoveries) for run in await store.claim(["review"], 0)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


def lock_files(path: Path) -> list[Path]:
    return list(path.parent.glob("runs.db.host-*"))


@needs_signals
@on_each_backend
def test_the_runs_of_a_killed_process_are_taken_over(path: Path, backend: str):
    """D6."""

    async def main() -> None:
        async with opened(store := SqliteStore(path)):
            with process(path, "obey", backend) as child:
                host = said(child)
                assert tell(child, "k") == "written"
                assert await claim(store) == []
                child.kill()
                child.wait()
                assert Path(f"{path}.host-{host}") in lock_files(path)
                assert await claim(store) == [("a", 1)]
                assert Path(f"{path}.host-{host}") not in lock_files(path)
            assert await store.rows("a") == {"k": "v"}
            assert await store.commit([RunChange("a", rows={"k": "mine"})]) == set()

    anyio.run(main, backend=backend)


@needs_signals
@on_each_backend
def test_a_process_that_is_stopped_is_not_dead(path: Path, backend: str):
    """D6."""

    async def main() -> None:
        async with opened(store := SqliteStore(path)):
            with process(path, "obey", backend) as child:
                said(child)
                stop(child)
                assert await claim(store) == []
                child.send_signal(signal.SIGCONT)
                assert tell(child, "k") == "written"
                assert await claim(store) == []
                assert await store.rows("a") == {"k": "v"}

    anyio.run(main, backend=backend)


@needs_signals
@on_each_backend
def test_a_process_that_was_taken_for_dead_can_write_nothing(path: Path, backend: str):
    """D6."""

    async def main() -> None:
        async with opened(store := SqliteStore(path)):
            with process(path, "obey", backend) as child:
                host = said(child)
                stop(child)
                os.unlink(f"{path}.host-{host}")
                assert await claim(store) == [("a", 1)]
                child.send_signal(signal.SIGCONT)
                assert tell(child, "k") == "HostLostError"
                assert await store.rows("a") == {}
                assert tell(child, "") == ""  # it ends, and gives up nothing that is not its own
                assert child.wait() == 0
            run = await store.find_run("a")
            assert run is not None
            assert run.owner is not None

    anyio.run(main, backend=backend)


@needs_signals
@on_each_backend
def test_a_commit_that_is_cut_by_a_kill_is_there_as_a_whole_or_not_at_all(path: Path, backend: str):
    """D10, D4: whatever was told to be written is there."""

    async def check(told: int) -> None:
        async with opened(store := SqliteStore(path)):
            taken = await claim(store)
            assert [recoveries for _, recoveries in taken] == [1] * 40
            numbers = set()
            for run_id, _ in taken:
                rows, events = await store.rows(run_id), await store.events(run_id, 0, 10**6)
                numbers.add(last := int(rows.get("k", 0)))
                assert [event.seq for event in events] == list(range(1, last + 1))
                assert len(rows) == (last + 1 if last else 0)
                run = await store.find_run(run_id)
                assert run is not None
                assert run.last_seq == last
            assert len(numbers) == 1
            assert numbers.pop() - told in (0, 1)
            for run_id, _ in taken:
                await store.commit([RunChange(run_id, columns={"status": "failed"})])
                assert await store.delete(run_id)

    for cut_after in (0, 1, 7):
        with process(path, "write_groups", backend) as child:
            while (number := int(said(child))) < cut_after:
                pass
            child.kill()
            child.wait()
            assert child.stdout is not None
            rest = [line for line in child.stdout.readlines() if line.endswith("\n")]
        anyio.run(check, int(rest[-1]) if rest else number, backend=backend)


@on_each_backend
def test_processes_that_start_at_once_share_one_file(path: Path, backend: str):
    """D6: each run is executed by one of them, once."""

    async def check() -> list[StoredRun]:
        async with opened(store := SqliteStore(path)):
            runs = await store.find_runs(RunQuery(limit=100))
            for run in runs:
                events = await store.events(run.id, 0, 9)
                assert [event.text for event in events] == list((await store.rows(run.id)).values())
            return runs

    with ExitStack() as stack:
        hosts = [stack.enter_context(process(path, "share", backend)) for _ in range(3)]
        assert [said(host) for host in hosts] == ["done"] * 3
        assert [host.wait() for host in hosts] == [0] * 3
    runs = anyio.run(check, backend=backend)
    assert len(runs) == 30
    assert {run.status for run in runs} == {"completed"}
    assert {run.recoveries for run in runs} == {0}
    assert [entry.name for entry in path.parent.iterdir()] == ["runs.db"]


@on_each_backend
def test_a_disk_that_fails_stops_a_group_and_the_next_one_succeeds(path: Path, backend: str):
    """D10: here the system refuses to write more than so many bytes of a file."""
    pytest.importorskip("resource")
    script = f"""
        import anyio, resource
        from anyio_workflows.errors import StoreError
        from anyio_workflows.runtime._sqlite import SqliteStore
        from anyio_workflows.runtime._store import RunChange, StoredRun

        async def main():
            store = SqliteStore({str(path)!r})
            host = await store.open()
            await store.commit([RunChange("a", new=StoredRun("a", "review", "running", 1.0, owner=host))])
            big = RunChange("a", rows={{str(n): "x" * 1000 for n in range(3000)}})
            _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, most))
            for _ in range(2):
                try:
                    await store.commit([RunChange("b", new=StoredRun("b", "review", "queued", 1.0)), big])
                except StoreError as error:
                    print(error)
            assert await store.rows("a") == {{}}
            assert await store.find_run("b") is None
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
            await store.commit([big])
            assert len(await store.rows("a")) == 3000
            await store.close()
            print("closed")

        anyio.run(main, backend={backend!r})
    """
    done = run_script(script)
    assert done.returncode == 0, done.stderr
    *problems, last = done.stdout.splitlines()
    assert last == "closed"
    assert len(problems) == 2
    for problem in problems:
        assert problem.startswith(
            f"{path}: the file system failed to read or write: check the disk"
        )


FORKING = """
import os, signal, sys, warnings
import anyio
from anyio_workflows.errors import StoreError
from anyio_workflows.runtime._sqlite import SqliteStore
from anyio_workflows.runtime._store import RunChange, StoredRun

warnings.simplefilter("ignore")  # of threads and forks

def say(*words):
    print(*words, flush=True)

def answer(coroutine):
    try:
        coroutine.send(None)
    except StopIteration:
        return "done"
    except StoreError as error:
        return error.problem

async def main(path):
    store = SqliteStore(path)
    host = await store.open()
    await store.commit([RunChange("a", new=StoredRun("a", "review", "running", 1.0, owner=host))])
    for n in range(3):  # a fork waits until no thread is at work
        async with anyio.create_task_group() as group:
            rows = {str(n): "x" * 1000 for n in range(1000)}
            group.start_soon(store.commit, [RunChange("a", rows=rows)])
            await anyio.wait_all_tasks_blocked()
            if not os.fork():
                say(answer(store.commit([RunChange("a", rows={"child": "v"})])))
                say(answer(store.find_run("a")))
                say(answer(store.close()))
                store._open = None  # as when the child ends: its copies are closed
                os._exit(0)
            os.wait()
    await store.commit([RunChange("a", rows={"parent": "v"})])
    if os.fork():
        say("its last child lives on")
        signal.pause()
    sys.stdin.read()
    os._exit(0)

anyio.run(main, sys.argv[1], backend=sys.argv[2])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")
@on_each_backend
def test_a_forked_child_is_not_the_host(path: Path, backend: str):
    """D6: the lock ends with the parent, even if the child lives on."""

    async def main() -> None:
        with process(path, backend, program=FORKING) as parent:
            for _ in range(3):
                for _ in ("commit", "find_run"):
                    assert said(parent).startswith(f"the store was opened in process {parent.pid}")
                assert said(parent) == "done"
            assert said(parent) == "its last child lives on"
            async with opened(store := SqliteStore(path)):
                assert await claim(store) == []
                assert (await store.rows("a")).keys() == {*map(str, range(1000)), "parent"}
                parent.kill()
                parent.wait()
                assert await claim(store) == [("a", 1)]

    anyio.run(main, backend=backend)


OUTLIVING = """
import os, sys, warnings
import anyio
from anyio_workflows.runtime._sqlite import SqliteStore

warnings.simplefilter("ignore")  # of threads and forks
path, backend = sys.argv[1:]
store = SqliteStore(path)
anyio.run(store.open, backend=backend)
if os.fork():
    anyio.run(store.close, backend=backend)
    print("closed", flush=True)
    os._exit(0)
sys.stdin.readline()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")
@on_each_backend
def test_a_forked_child_that_outlives_its_parent_deletes_nothing(path: Path, backend: str):
    """D6: SQLite would take it for the last process that uses the database, as it looks like its parent."""

    async def main() -> None:
        with process(path, backend, program=OUTLIVING) as parent:
            assert said(parent) == "closed"
            with process(path, "obey", backend) as other:
                said(other)
                assert tell(other, "k1") == "written"
                other.kill()
                other.wait()
            parent.communicate("end\n")  # also waits for the child, which has the same pipe
            async with opened(store := SqliteStore(path)):
                assert await store.rows("a") == {"k1": "v"}

    anyio.run(main, backend=backend)


FORKING_MEANWHILE = """
import os, sys, threading, warnings
import anyio
import anyio_workflows.runtime._sqlite_file as files
from anyio_workflows.runtime._sqlite import SqliteStore

warnings.simplefilter("ignore")  # of threads and forks
is_opening, forks, is_within, prepare = threading.Event(), threading.Event(), False, files.prepare

def prepare_meanwhile(*args):
    global is_within
    is_within = True
    is_opening.set()
    forks.wait()
    prepare(*args)
    is_within = False

async def use(path):
    store = SqliteStore(path)
    await store.open()
    await store.close()

files.prepare = prepare_meanwhile
os.register_at_fork(before=forks.set)  # called before that of the store
threads = [threading.Thread(target=anyio.run, args=(use, sys.argv[1])) for _ in range(2)]
for thread in threads:
    thread.start()
is_opening.wait()
if not (child := os.fork()):
    os._exit(is_within)
assert os.waitpid(child, 0)[1] == 0, "it was forked while a thread opened a store"
for thread in threads:
    thread.join()
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork()")
def test_a_fork_waits_while_a_store_is_opened(path: Path):
    """D6: the child would have locks within SQLite that nobody there releases."""
    with process(path, program=FORKING_MEANWHILE) as parent:
        assert said(parent) == "done"
