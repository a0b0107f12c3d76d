"""Measure one side of a work, in a process of its own."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from ..comparing import FailedError, Measurement
from .postgres import Server
from .sides import Side
from .works import Work

PROGRAMS = Path(__file__).parent / "programs"


@attrs.define
class Bench:
    """Where sides are measured.

    Attributes:
        folder: Where SQLite's files go.
        pythons: The interpreter of each peer that is installed, by its name.
        server: PostgreSQL, if it is there.
        counting: The environment variables that make a process count its syncs.
        patience: After how many seconds a measurement counts as failed.
        quick: Whether the sizes are small.
    """

    folder: Path
    pythons: Mapping[str, Path]
    server: Server | None
    counting: Mapping[str, str]
    quick: bool
    patience: float = 300.0
    _numbers: Iterator[int] = attrs.field(factory=itertools.count, init=False)

    def measure(self, work: Work, side: Side) -> Measurement:
        """Do a job once, with an empty database.

        Raises:
            FailedError: The program failed, or took too long.
        """
        job = {
            "job": work.job,
            "backend": side.backend,
            "database": self._new_database(side),
            **side.options,
            **work.sizes(side, quick=self.quick),
        }
        if side.database == "postgresql" and self.server is not None:
            job["server"] = self.server.process
        if work.killed:
            self._start_and_kill(side, job | {"job": "interrupt"})
        with self._started(side, job) as program:
            printed = program.communicate()[0].splitlines()
        if program.returncode != 0 or not printed:
            raise FailedError(self._why(program))
        measurement: Measurement = json.loads(printed[-1])
        return measurement

    def _new_database(self, side: Side) -> str | None:
        if side.database == "postgresql":
            assert self.server is not None
            return self.server.new_database()
        if side.database == "none":
            return None
        return str(self.folder / f"runs{next(self._numbers)}.db")

    def _start_and_kill(self, side: Side, job: Mapping[str, Any]) -> None:
        """Let the runs begin, and kill their process when all are in the middle of a step."""
        with self._started(side, job) as program:
            assert program.stdout is not None
            ready = any(line.strip() == "ready" for line in program.stdout)
            program.kill()
            program.wait()
        if not ready:
            raise FailedError(self._why(program))

    @contextmanager
    def _started(self, side: Side, job: Mapping[str, Any]) -> Iterator[subprocess.Popen[str]]:
        """Run a program, and kill it when its time is over."""
        environment = dict(os.environ) | dict(self.counting)
        python = sys.executable
        if side.peer is not None:
            python = str(self.pythons[side.peer.name])
            environment.pop("PYTHONPATH", None)
        command = [python, str(PROGRAMS / f"{side.program}.py"), json.dumps(job)]
        with self._errors.open("w") as errors:
            program = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
            )
        timer = threading.Timer(self.patience, program.kill)
        timer.start()
        with program:
            try:
                yield program
            finally:
                timer.cancel()
                program.kill()  # it has ended by itself, unless this command is told to end

    def _why(self, program: subprocess.Popen[str]) -> str:
        """Return why a program failed, from the last thing that it said."""
        if program.returncode == -signal.SIGKILL:
            return f"took more than {self.patience:.0f} s"
        said = self._errors.read_text("utf-8", errors="replace").strip().splitlines()
        return said[-1][:200] if said else "it printed nothing"

    @property
    def _errors(self) -> Path:
        return self.folder / "errors"
