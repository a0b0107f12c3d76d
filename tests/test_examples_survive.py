"""`examples/survive_a_kill.py`, killed for real."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import BACKENDS
from .running import PATIENCE

EXAMPLE = Path(__file__).parent.parent / "examples" / "survive_a_kill.py"


def done_in(file: Path) -> set[int]:
    """Return the items that are done, as the snapshot has it."""
    batches = json.loads(file.read_text("utf-8"))["work"]["batches"]  # none before the first step
    return {event["value"]["number"] for batch in batches for event in batch["arrived"]["end"]}


@pytest.mark.parametrize("backend", BACKENDS)
def test_p3_killed_at_any_moment_it_ends_with_every_item_done_and_none_redone(
    backend: str, tmp_path: Path
) -> None:
    file, log = tmp_path / "job.json", tmp_path / "done.log"
    command = [sys.executable, "-X", "dev", "-W", "error", str(EXAMPLE), "--items", "100"]
    command += ["--file", str(file), "--log", str(log), "--backend", backend]
    saved: set[int] = set()
    for _ in range(2):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + PATIENCE
        while not (file.exists() and done_in(file) > saved) and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.2))
        process.kill()
        assert process.wait() == -9, "it was over before it was killed"
        assert saved < done_in(file)
        saved = done_in(file)
        log_before = log.read_text("utf-8").splitlines()
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert ended.stdout.splitlines()[-1] == "100 items are done"
    said = [line for line in ended.stderr.splitlines() if not line.startswith("Executing <")]
    assert not said  # besides what asyncio's debug mode says on a slow machine
    assert {path.name for path in tmp_path.iterdir()} == {"done.log"}
    assert not file.exists()
    log_after = [int(line.split()[0]) for line in log.read_text("utf-8").splitlines()]
    assert set(log_after) == set(range(100))
    redone = set(log_after[len(log_before) :])
    assert not redone & saved
    # What was done but not saved yet when the process was killed, ten workers at most each time.
    assert sum(Counter(log_after).values()) <= 100 + 2 * 30


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let the processes of a test take SIGINT, which a shell has its background jobs ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("interruptible")
def test_c1_ctrl_c_saves_everything_that_was_done(backend: str, tmp_path: Path) -> None:
    file, log = tmp_path / "job.json", tmp_path / "done.log"
    command = [sys.executable, "-X", "dev", str(EXAMPLE), "--items", "60"]
    command += ["--file", str(file), "--log", str(log), "--backend", backend]
    for _ in range(2):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(b"item"):
                break
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode in (-2, 1, 130)
        assert b"KeyboardInterrupt" in said.splitlines()  # where a step was hit, notes follow
        assert {path.name for path in tmp_path.iterdir()} == {"job.json", "done.log"}
        assert saved_once(file, log)
    subprocess.run(command, capture_output=True, timeout=PATIENCE, check=True)
    assert {path.name for path in tmp_path.iterdir()} == {"done.log"}


def saved_once(file: Path, log: Path) -> bool:
    """Return whether all that was done is saved, but for what was cancelled in between."""
    logged = {int(line.split()[0]) for line in log.read_text("utf-8").splitlines()}
    return done_in(file) <= logged and len(logged - done_in(file)) <= 10
