"""The page about runs in a database says what is true: its programs are run, and killed, as they stand."""

from __future__ import annotations

import inspect
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from anyio_workflows import Runtime

from .conftest import BACKENDS
from .running import PATIENCE

PAGE = (Path(__file__).parent.parent / "docs" / "durable.md").read_text("utf-8")
CRAWL, ORDER, ASK, ANSWER = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)

on_each_backend = pytest.mark.parametrize("backend", BACKENDS)


def start(folder: Path, name: str, code: str, backend: str) -> subprocess.Popen[str]:
    """Start a program of the page, saved under a name."""
    code = code.replace("anyio.run(main)", f"anyio.run(main, backend={backend!r})")
    (folder / name).write_text(code)
    command = [sys.executable, "-X", "dev", "-W", "error", name]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)


def end(process: subprocess.Popen[str]) -> list[str]:
    """Wait for the end of a process of which nothing has been read; returns what it printed."""
    printed, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    return printed.splitlines()


@on_each_backend
def test_d1_d3_the_program_that_is_killed_and_started_again(tmp_path: Path, backend: str) -> None:
    first = start(tmp_path, "crawl.py", CRAWL, backend)
    assert first.stdout is not None
    assert first.stdout.readline() == "events so far: 0\n"
    assert first.stdout.readline().startswith("1 Fetched(number=")
    first.kill()
    rest = first.communicate(timeout=PATIENCE)[0].splitlines()
    assert first.returncode == -signal.SIGKILL, "it was over before it was killed"
    so_far, *lines = end(start(tmp_path, "crawl.py", CRAWL, backend))
    seen = int(so_far.removeprefix("events so far: "))
    assert seen > len(rest)
    numbers = [int(line.split()[0]) for line in lines[:-1]]
    assert numbers == list(range(seen + 1, 22))  # twenty pages, and the terminal event
    assert lines[-1] == "20 pages"
    again = end(start(tmp_path, "crawl.py", CRAWL, backend))
    assert again == ["events so far: 21", "20 pages"]


@pytest.mark.parametrize("killed", [False, True])
@on_each_backend
def test_d2_d6_the_program_that_answers(tmp_path: Path, backend: str, killed: bool) -> None:
    (tmp_path / "order.py").write_text(ORDER)
    asking = start(tmp_path, "ask.py", ASK, backend)
    assert asking.stdout is not None
    assert asking.stdout.readline() == "open: Buy tea?\n"
    if killed:
        asking.kill()
    [said] = re.findall(r"^It prints `(.*)`, `(.*)` and `(.*)`,", PAGE, re.MULTILINE)
    assert end(start(tmp_path, "answer.py", ANSWER, backend)) == [*said]
    if killed:
        asking.communicate()
        assert asking.returncode == -signal.SIGKILL
    else:
        assert end(asking) == [said[-1]]


def test_the_defaults_are_those_of_the_code() -> None:
    given = inspect.signature(Runtime).parameters
    for name in ("max_recoveries", "max_runs"):
        assert f"`{name}={given[name].default:_}`" in PAGE
    assert given["idle_after"].default is None
    assert given["durability"].default == "strict"
