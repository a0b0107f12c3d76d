"""What the programs of all sides share: their command line, their clock, and where runs meet.

It runs in environments that hold a peer and nothing else, so it imports the standard library only. A
program is told its job as JSON, and the last line that it prints is its measurement as JSON.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sqlite3
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn, Protocol

Job = dict[str, Any]
Measurement = dict[str, Any]

JOB: Job = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
"""What this process measures: `job`, its sizes, the `database`, and options of the side."""

TICK = 1 / os.sysconf("SC_CLK_TCK")


def main(
    jobs: dict[str, Callable[[Job], Awaitable[Measurement]]],
    run: Callable[[Callable[[], Awaitable[Measurement]]], Measurement],
) -> None:
    """Do the job of the command line with `run`, and report its measurement."""
    # Later garbage collections skip what has been imported: some peers import more than others.
    gc.collect()
    gc.freeze()
    job = jobs[JOB["job"]]
    report(run(lambda: job(JOB)))


def report(measurement: Measurement) -> NoReturn:
    """Print a measurement, and end the process at once.

    What is left, such as runs that wait or a peer's threads, is not worth an orderly end.
    """
    print(json.dumps(measurement), flush=True)
    os._exit(0)


class Clock:
    """Time, CPU and syncs to disk between `begin` and `end`."""

    def begin(self) -> None:
        gc.collect()
        self._server, self._syncs = server_cpu(), syncs()
        self._cpu = time.process_time()
        self._begun = time.perf_counter()

    def end(self) -> None:
        self.seconds = time.perf_counter() - self._begun
        self.cpu = time.process_time() - self._cpu
        self.server_cpu = server_cpu() - self._server
        after = syncs()
        self.syncs = None if after is None or self._syncs is None else after - self._syncs

    def each(self, items: int) -> Measurement:
        """Return what one of `items` cost, in seconds, and how many syncs there were in all."""
        return {
            "seconds": self.seconds / items,
            "cpu": (self.cpu + self.server_cpu) / items,
            "syncs": self.syncs,
            "items": items,
        }


def syncs() -> int | None:
    """Return how often this process and the database server called fsync and fdatasync."""
    path = os.environ.get("BENCHMARK_SYNCS")
    return int.from_bytes(Path(path).read_bytes(), "little") if path else None


def server_cpu() -> float:
    """Return the seconds of CPU that the database server's processes have used, if there is one.

    What has ended counts too: the server collects the times of its children.
    """
    server = JOB.get("server")
    if server is None:
        return 0.0
    total = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue  # it has ended since
            if int(entry.name) == server:
                total += sum(
                    map(int, fields[11:15])
                )  # its own, and of its children that have ended
            elif int(fields[1]) == server:
                total += sum(map(int, fields[11:13]))
    return total * TICK


class Signal(Protocol):
    """An event of the event loop in use."""

    def set(self) -> object: ...
    async def wait(self) -> object: ...


class Countdown:
    """Calls a function when as many have come as were expected; they may be in other threads."""

    def __init__(self, expected: int, announce: Callable[[], object]) -> None:
        self._missing = set(range(expected))
        self._announce = announce

    def come(self) -> None:
        """Count one more; what comes after the last, because a step started over, does not count."""
        if self._missing:
            self._missing.pop()  # atomic, unlike the decrement of a number
            if not self._missing:
                self._announce()


class Course:
    """The stretch that all runs go together: from a gate that all have reached to their ends.

    Between the two lies the end of `steps` steps of each run; what is kept of the end of a run counts
    as one of them. The start of a run is not in it.
    """

    def __init__(self, runs: int, steps: int, make_event: Callable[[], Signal]) -> None:
        self.clock = Clock()
        self._steps = runs * steps
        self._gate = make_event()
        self._arriving = Countdown(runs, self._open)

    async def arrive(self) -> None:
        self._arriving.come()
        await self._gate.wait()

    def _open(self) -> None:
        self.clock.begin()
        self._gate.set()

    def each(self) -> Measurement:
        """Return what a step cost, when the clock has ended."""
        return self.clock.each(self._steps)


def wait_to_be_killed(*_: object) -> NoReturn:
    """Tell the parent that all runs are where they should be, and wait for the signal.

    The event loop stands still meanwhile; what is passed stays alive.
    """
    print("ready", flush=True)
    signal.pause()
    raise AssertionError


def memory() -> int:
    """Return the resident memory of this process in bytes, without what is free in its heap."""
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def median(values: list[float]) -> float:
    return statistics.median(values)


def sqlite_size(path: str) -> int:
    """Return the size of a database of SQLite in bytes, with everything in its main file."""
    with closing(sqlite3.connect(path, timeout=60)) as database:
        database.execute("pragma wal_checkpoint(truncate)")
    return sum(file.stat().st_size for file in Path(path).parent.glob(Path(path).name + "*"))
