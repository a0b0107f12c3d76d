"""The examples whose runs are kept, as users run them: real processes, killed for real."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import BACKENDS
from .running import PATIENCE

EXAMPLES = Path(__file__).parent.parent / "examples"
KILLS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]
STOPPED = "stopped; the same command continues from here"

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


class Example:
    """One of the examples, with its database and its backend."""

    def __init__(self, name: str, file: Path, backend: str) -> None:
        self.command = [sys.executable, "-X", "dev", "-W", "error", str(EXAMPLES / name)]
        self.options = ["--file", str(file), "--backend", backend]
        self.file = file
        self.first_line = f"runs are kept in {file}"
        self.programs = 0

    def start(self, *args: str) -> Program:
        """Start it in a process."""
        self.programs += 1
        errors = self.file.with_suffix(f".stderr{self.programs}")
        return Program([*self.command, *args, *self.options], errors)

    def run(self, *args: str, code: int = 0, complaint: str = "") -> list[str]:
        """Run it to its end; returns what it printed, without the first line."""
        first, *lines = self.start(*args).end(code, complaint)
        assert first == self.first_line
        return lines


class Program:
    """A process that runs an example. It is killed if it hangs."""

    def __init__(self, command: list[str], errors: Path) -> None:
        self.errors = errors
        with errors.open("w") as stderr:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=stderr, text=True, start_new_session=True
            )
        self.timer = threading.Timer(PATIENCE, self.process.kill)
        self.timer.daemon = True
        self.timer.start()

    def read_until(self, wanted: str, times: int = 1) -> list[str]:
        """Read lines until `times` of them begin so; returns all of them."""
        assert self.process.stdout is not None
        lines = []
        for line in self.process.stdout:
            lines.append(line.rstrip("\n"))
            times -= lines[-1].startswith(wanted)
            if not times:
                return lines
        raise AssertionError(f"it ended before that: {lines}, {self._complaint()}")

    def end(self, code: int = 0, complaint: str = "") -> list[str]:
        """Wait for the end, with this exit code; returns what else it printed."""
        assert self.process.stdout is not None
        with self.process.stdout:
            lines = self.process.stdout.read().splitlines()
            assert (self.process.wait(), self._complaint()) == (code, complaint)
        self.timer.cancel()
        return lines

    def kill(self, sign: int) -> list[str]:
        """Send a signal, before the end; returns what else it had printed."""
        self.process.send_signal(sign)
        return self.end(*((1, STOPPED) if sign == signal.SIGINT else (-sign, "")))

    def _complaint(self) -> str:
        """Return what it wrote to stderr, but not what asyncio's debug mode says on a slow machine."""
        said = self.errors.read_text().splitlines()
        return "\n".join(line for line in said if not line.startswith("Executing <"))


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Let the processes of a test take SIGINT, which a shell has its background jobs ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


# --- The approval -------------------------------------------------------------------------------------

RESERVED = "1. a standing desk is reserved"
QUESTION = "2. Buy a standing desk for 450.00? (answer yes, or answer no)"
ORDERED = "Ordered a standing desk, approved by Ada."


@pytest.fixture
def approval(tmp_path: Path, backend: str) -> Example:
    return Example("approval_service.py", tmp_path / "orders.db", backend)


def test_d2_d8_a_question_stays_open_and_is_asked_once(approval: Example) -> None:
    events = 0
    for sign in KILLS:
        program = approval.start()
        lines = program.read_until("2. ")
        assert lines[1:] == [f"order-17 has {events} events so far", RESERVED, QUESTION]
        assert program.kill(sign) == []
        events = 2
    assert approval.run("answer", "yes") == [ORDERED]  # by a process that is alone
    last = ["order-17 has 3 events so far", RESERVED, QUESTION, ORDERED]
    assert approval.run() == last


def test_d6_an_answer_from_another_process_reaches_the_one_that_waits(approval: Example) -> None:
    program = approval.start()
    program.read_until("2. ")
    no = "Grace said no to a standing desk."
    assert approval.run("answer", "no", "--by", "Grace") == [no]
    assert program.end() == [no]
    closed = "order-17 has no open question, it is completed"
    assert approval.run("answer", "yes") == [closed, no]


def test_each_order_is_a_run_of_its_own(approval: Example) -> None:
    unknown = "there is no run 'order-18': it was never started here, or it ended long ago and has been removed"
    assert approval.run("answer", "yes", "--order", "18", code=1, complaint=unknown) == []
    telescope = approval.start("--order", "18", "--item", "a telescope", "--price", "1200")
    assert telescope.read_until("2. ")[-1].startswith("2. Buy a telescope for 1200.00?")
    desk = approval.start()
    desk.read_until("2. ")
    assert approval.run("answer", "yes") == [ORDERED]
    assert desk.end() == [ORDERED]
    assert telescope.kill(signal.SIGKILL) == []
    last = "Ordered a telescope, approved by Ada."
    assert approval.run("answer", "yes", "--order", "18") == [last]


# --- The batch ----------------------------------------------------------------------------------------

ITEMS = 40
ARGS = ["--items", str(ITEMS), "--seconds", "0.3"]
ALL_DONE = f"{ITEMS} of {ITEMS}, 0 running, 0 to be retried"
WORDS = f"{sum(100 + number for number in range(1, ITEMS + 1))} words"


@pytest.fixture
def batch(tmp_path: Path, backend: str) -> Example:
    return Example("slow_batch.py", tmp_path / "batch.db", backend)


def items(lines: list[str]) -> list[int]:
    """Return the items that some lines say are done."""
    return [int(line.split()[1]) for line in lines if line.startswith("item ")]


def test_d1_d3_no_finished_item_is_done_again(batch: Example) -> None:
    printed: list[int] = []
    for sign in KILLS:
        program = batch.start(*ARGS)
        lines = program.read_until("item ", times=4)
        batch_1, before, rest = lines[1].split(maxsplit=2)
        assert (batch_1, rest) == ("batch-1:", f"of {ITEMS} items were done before")
        assert int(before) >= len(printed)  # what was shown is on the disk
        printed += items(lines + program.kill(sign))
    lines = batch.run("--items", "7", "--seconds", "9")  # the first start counts
    printed += items(lines)
    assert len(set(printed)) == len(printed)
    # Each execution that ended has one event in the log: there is one for each item.
    assert lines[-2].partition(": ")[2] == ALL_DONE
    assert lines[-1] == WORDS
    assert batch.run(*ARGS) == [f"batch-1: {ITEMS} of {ITEMS} items were done before", WORDS]
