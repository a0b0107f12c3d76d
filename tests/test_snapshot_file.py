"""The file of a checkpoint on a real disk: names, permissions, locks, and what is left behind (C1)."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from anyio_workflows import _snapshot_file as module
from anyio_workflows._snapshot_file import SnapshotFile, replace
from anyio_workflows.errors import CheckpointInUseError

from .conftest import BACKENDS
from .running import run_script

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "job.json"


def beside(path: Path) -> list[str]:
    return sorted(each.name for each in path.parent.iterdir())


def opened(path: Path) -> SnapshotFile:
    file = SnapshotFile(path)
    file.open()
    return file


def test_c1_each_snapshot_replaces_the_one_before(path: Path) -> None:
    file = opened(path)
    for number, text in enumerate(["one", "two"], 1):
        file.write(number, text)
        assert path.read_text("utf-8") == text
    assert beside(path) == [".job.json.checkpoint-lock", "job.json"]
    file.close()
    assert beside(path) == ["job.json"]
    file.close()


def test_c1_a_write_that_comes_late_changes_nothing(path: Path) -> None:
    file = opened(path)
    file.write(2, "second")
    file.write(1, "first")
    assert path.read_text("utf-8") == "second"
    file.close()
    file.write(3, "third")
    assert path.read_text("utf-8") == "second"


def test_c1_no_two_writes_have_the_same_temporary_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        seen.append([name for name in beside(path) if "checkpoint-" in name])
        if len(seen) == 1:
            replace(path, "inner")
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    replace(path, "outer")
    assert path.read_text("utf-8") == "outer"
    assert len(set(seen[1])) == 2
    assert beside(path) == ["job.json"]


@posix
def test_c1_the_permissions_of_a_file_are_kept(path: Path) -> None:
    path.write_text("old")
    for mode in (0o600, 0o640, 0o606):
        path.chmod(mode)
        replace(path, "new")
        assert stat.S_IMODE(path.stat().st_mode) == mode


@posix
def test_c1_a_symbolic_link_stays_and_its_file_is_replaced(path: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    real = tmp_path / "data" / "real.json"
    path.symlink_to(real)
    for number, text in enumerate(["one", "two"], 1):  # first it leads nowhere
        file = opened(path)
        file.write(number, text)
        file.close()
        assert path.is_symlink()
        assert real.read_text("utf-8") == text
        assert beside(real) == ["real.json"]


def test_c1_where_nothing_can_be_written_the_error_says_so(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **options: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionError, match=r"no checkpoint can be saved beside .*job"):
        opened(path)
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError, match=r"no checkpoint can be saved beside .*missing"):
        opened(path.parent / "missing" / "job.json")


@posix
def test_c1_what_dead_processes_left_is_removed_and_nothing_else(path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    gone = [f".job.json.checkpoint-{dead.pid}-{n}" for n in (1, 22)]
    gone.append(f".job.json.checkpoint-{os.getpid()}-7")  # of an earlier process of this number
    kept = [
        f".job.json.checkpoint-{os.getppid()}-1",
        f".other.json.checkpoint-{dead.pid}-1",
        f".job.json.checkpoint-{dead.pid}",
        f".job.json.checkpoint-{dead.pid}-1.bak",
        f".job.json.checkpoint-0{dead.pid}-1",
        f".job-json.checkpoint-{dead.pid}-1",
        f"job.json.checkpoint-{dead.pid}-1",
        ".job.json.checkpoint-notes-1",
        ".job.json.123",
        "job.json.bak",
    ]
    for name in gone + kept:
        (path.parent / name).write_text("x")
    file = opened(path)
    file.close()
    assert beside(path) == sorted(kept)


def test_c1_what_this_process_writes_is_left_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(fd: int) -> None:
        monkeypatch.undo()
        opened(path).close()

    monkeypatch.setattr(os, "fsync", fsync)
    replace(path, "whole")
    assert path.read_text("utf-8") == "whole"


# --- Locks ----------------------------------------------------------------------------------------


def test_c2_a_file_has_one_user_at_a_time(path: Path) -> None:
    first = opened(path)
    for _ in range(2):
        with pytest.raises(CheckpointInUseError) as caught:
            opened(path)
        assert caught.value.pid == os.getpid()
    other = opened(path.with_name("other.json"))
    other.close()
    first.write(1, "it goes on")
    first.close()
    opened(path).close()


HOLDER = """
import os, sys
from anyio_workflows._snapshot_file import SnapshotFile
file = SnapshotFile(sys.argv[1])
file.open()
child = len(sys.argv) > 2 and os.fork() == 0
if child or len(sys.argv) == 2:  # the child lives on; when it runs, it has let go of the lock
    print("held", flush=True)
sys.stdin.read()
os._exit(0)
"""


@posix
@pytest.mark.parametrize("forks", [(), ("fork",)], ids=["plain", "with a forked child"])
def test_c2_another_process_is_refused_until_this_one_is_dead(
    path: Path, forks: tuple[str, ...]
) -> None:
    command = [sys.executable, "-c", HOLDER, str(path), *forks]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(CheckpointInUseError, match=f"a run in process {holder.pid};") as caught:
            opened(path)
        assert caught.value.pid == holder.pid
        holder.kill()
        holder.wait()
        opened(path).close()
        assert beside(path) == []


@posix
def test_c2_a_lock_file_that_is_removed_meanwhile_is_no_lock(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened(path)
    real, calls = module._lock, 0

    def lock(fd: int) -> bool:
        nonlocal calls
        calls += 1
        if calls == 1:
            first.close()  # between the opening of the lock file and the locking
        return real(fd)

    monkeypatch.setattr(module, "_lock", lock)
    second = opened(path)
    assert calls == 2
    with pytest.raises(CheckpointInUseError):
        opened(path)
    second.close()


def test_c2_without_locks_in_the_file_system_it_goes_on_with_a_warning(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(*args: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    file = opened(path)
    file.write(1, "text")
    file.close()
    assert "not locked against other processes" in caplog.text


# --- The page ---------------------------------------------------------------------------------------


@posix
def test_c2_the_program_of_the_page_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "checkpoints.md").read_text("utf-8")
    source = page.partition("```python\n")[2].partition("```")[0]
    command = [sys.executable, "-W", "error", "-c", source]
    printed: list[str] = []
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            printed.append(line)
            if len(printed) == 10:
                process.kill()
    file = tmp_path / "crawl.json"
    batches = json.loads(file.read_text("utf-8"))["work"]["batches"] if file.exists() else []
    done = {e["value"]["number"] for batch in batches for e in batch["arrived"].get("end", [])}
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    *pages, last = again.stdout.splitlines()
    assert last == "20 pages"
    assert {int(line.split()[1]) for line in pages} == {*range(20)} - done
    assert beside(file) == ["crawl.json"]


# --- Ctrl-C while a save is in progress -------------------------------------------------------------

INTERRUPTED = """
import json, os, pathlib, sys, tempfile, threading, time
import anyio
from anyio_workflows import Context, Event, StartEvent, StopEvent, Workflow, step
from anyio_workflows.checkpoint import checkpointed, run_with_checkpoints, save_checkpoint

backend, kind = BACKEND, KIND
job = pathlib.Path(tempfile.mkdtemp(), "job.json")
real, calls, slow, let_go = os.fsync, [], threading.Event(), threading.Event()
together = []

class Next(Event):
    pass

class Count(Workflow):
    @step
    async def count(self, ctx: Context, ev: StartEvent | Next) -> Next | StopEvent:
        await anyio.sleep(0.001)
        return Next()

def fsync(fd):
    calls.append(fd)
    if len(calls) == 7:
        slow.set()
        let_go.wait()
    together.append(sum(1 for name in os.listdir(job.parent) if name.count("-") == 2))
    real(fd)

os.fsync = fsync

async def save():
    await run_with_checkpoints(Count(timeout=None), job, every=0)

def release():
    slow.wait()
    time.sleep(0.2)  # the cancellation comes while the save is in progress
    let_go.set()

async def main():
    threading.Thread(target=release).start()
    if kind == "native":
        import asyncio
        task = asyncio.create_task(save())
        await anyio.to_thread.run_sync(slow.wait)
        task.cancel()
        await asyncio.sleep(0.01)
        task.cancel()
        [raised] = await asyncio.gather(task, return_exceptions=True)
        assert isinstance(raised, asyncio.CancelledError), raised
    else:
        async with anyio.create_task_group() as group:
            group.start_soon(save)
            await anyio.to_thread.run_sync(slow.wait)
            group.cancel_scope.cancel()
    assert os.listdir(job.parent) == ["job.json"], os.listdir(job.parent)
    assert json.loads(job.read_text())["work"] is not None
    assert max(together) == 1, together

anyio.run(main, backend=backend)
print("fine")
"""


@pytest.mark.parametrize(
    ("backend", "kind"),
    [(backend, "scope") for backend in BACKENDS] + [("asyncio", "native")],
)
def test_c1_a_cancellation_during_a_save_waits_for_it_and_saves_what_is_left(
    backend: str, kind: str
) -> None:
    source = INTERRUPTED.replace("BACKEND", repr(backend)).replace("KIND", repr(kind))
    done = run_script(source)
    assert done.stdout == "fine\n", done.stderr


def test_c1_a_snapshot_is_whole_json_whenever_it_is_looked_at(path: Path) -> None:
    file = opened(path)
    for number in range(1, 30):
        file.write(number, json.dumps({"n": number, "pad": "x" * 10_000}))
        assert json.loads(path.read_text("utf-8"))["n"] == number
    file.close()
