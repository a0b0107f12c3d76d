"""The process of a server, which is asked over HTTP, and over its standard input for what it has used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs

from ..comparing import FailedError
from .sides import REFERENCE, Side
from .wires import OUR_WIRE, REFERENCE_WIRE, Wire

PROGRAMS = Path(__file__).parent / "programs"


@attrs.define
class Server:
    """A server that listens.

    Attributes:
        address: Where it listens.
        wire: How it is asked.
    """

    address: tuple[str, int]
    wire: Wire
    _process: subprocess.Popen[str]

    def begin(self) -> float:
        """Return the processor time that it has used, in seconds, after it has collected its garbage."""
        return float(self._ask("begin")["cpu"])

    def cpu(self) -> float:
        """Return the processor time that it has used, in seconds."""
        return float(self._ask("end")["cpu"])

    def memory(self) -> int:
        """Return its resident memory, in bytes, after it has collected its garbage."""
        return int(self._ask("memory")["memory"])

    def peak(self) -> int:
        """Return the most resident memory that it had, in bytes."""
        return int(self._ask("memory")["peak"])

    def _ask(self, question: str) -> Mapping[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{question}\n")
        self._process.stdin.flush()
        return _answer(self._process)


def _answer(process: subprocess.Popen[str]) -> Mapping[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise FailedError("the server has ended")
    answer: Mapping[str, Any] = json.loads(line)
    return answer


@contextmanager
def started(
    side: Side, python: Path | None, options: Mapping[str, Any], folder: Path, patience: float
) -> Iterator[Server]:
    """Run a server, and end its process, at the latest after so many seconds.

    Args:
        side: Which server.
        python: The interpreter of its environment; `None` for that of this process.
        options: How it is configured.
        folder: Where what it writes on standard error goes.
        patience: Seconds after which it is killed, so that whatever asks it fails.

    Raises:
        FailedError: It did not start.
    """
    environment = dict(os.environ)
    if python is not None:
        environment.pop("PYTHONPATH", None)
    given = json.dumps({"backend": side.backend, **options})
    command = [str(python or sys.executable), str(PROGRAMS / f"{side.program}.py"), given]
    errors = folder / "errors"
    with errors.open("w") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            env=environment,
        )
    timer = threading.Timer(patience, process.kill)
    timer.start()
    with process:
        try:
            parts = urlsplit(_answer(process)["url"])
            wire = REFERENCE_WIRE if side is REFERENCE else OUR_WIRE
            yield Server((parts.hostname or "", parts.port or 0), wire, process)
        except (FailedError, OSError, EOFError) as error:
            said = errors.read_text("utf-8", errors="replace").strip().splitlines()
            why = [str(error) or type(error).__name__, *(line[:200] for line in said[-1:])]
            raise FailedError("; ".join(why)) from error
        finally:
            timer.cancel()
            process.kill()
