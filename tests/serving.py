"""What the tests of real servers share: the program in a process of its own, and requests on plain sockets."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from .conftest import HAS_TRIO
from .running import PATIENCE

ROOT = Path(__file__).parent.parent

PROGRAM = (sys.executable, "-X", "dev", "-W", "error", "-m", "tests.served")


def _missing(name: str) -> pytest.MarkDecorator:
    there = importlib.util.find_spec(name) is not None
    return pytest.mark.skipif(not there, reason=f"{name} is not installed")


SERVERS = [
    pytest.param({"backend": "asyncio"}, id="uvicorn", marks=_missing("uvicorn")),
    pytest.param(
        {"backend": "asyncio", "uvloop": True},
        id="uvicorn-uvloop",
        marks=[_missing("uvicorn"), _missing("uvloop")],
    ),
    pytest.param(
        {"backend": "trio"},
        id="hypercorn-trio",
        marks=[
            _missing("hypercorn"),
            pytest.mark.skipif(not HAS_TRIO, reason="trio is not installed"),
        ],
    ),
]

on_each_server = pytest.mark.parametrize("options", SERVERS)
"""Runs a test on each server that can be here, with the options of the program."""


@attrs.define(eq=False)
class Served:
    """The program, in a process.

    Attributes:
        process: The process.
        address: Where it listens.
    """

    process: subprocess.Popen[str]
    address: tuple[str, int]

    @property
    def host(self) -> str:
        return "{}:{}".format(*self.address)

    @contextmanager
    def request(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> Iterator[http.client.HTTPResponse]:
        """Send a request; give what is answered, of which the head has come. The client leaves when the block ends."""
        if body is not None:
            headers["content-type"] = "application/json"
        sent = None if body is None else json.dumps(body).encode()
        with closing(http.client.HTTPConnection(*self.address, timeout=PATIENCE)) as connection:
            connection.request(method, path, sent, headers)
            with connection.getresponse() as response:
                yield response

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        """Send a request; return the JSON of what is answered."""
        with self.request(method, path, body, **headers) as response:
            return json.loads(response.read())

    def start(self, workflow: str, **input_: Any) -> str:
        """Start a run; return its path."""
        run = self.ask("POST", f"/v1/workflows/{workflow}/runs", {"input": input_})
        return f"/v1/runs/{run['id']}"

    def connect(self, request: str) -> socket.socket:
        """Send the lines of a request on a socket."""
        lines = [*request.split("\n"), f"Host: {self.host}", "", ""]
        connection = socket.create_connection(self.address, timeout=PATIENCE)
        connection.sendall("\r\n".join(lines).encode())
        return connection

    def end(self, number: int = signal.SIGTERM) -> None:
        """Have it end, and check that it does so in silence."""
        self.process.send_signal(number)
        self.check_ended()

    def check_ended(self) -> None:
        """Check that it ends in silence."""
        out, err = self.process.communicate(timeout=PATIENCE)
        assert (self.process.returncode, out, err) == (0, "ended\n", ""), (out, err)


@contextmanager
def serving(options: dict[str, Any], **more: Any) -> Iterator[Served]:
    """Run the program while this block runs."""
    source = [str(ROOT), *sys.path]
    process = subprocess.Popen(
        [*PROGRAM, json.dumps({**options, **more})],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, source))},
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline()
        assert url.startswith("http://127.0.0.1:"), process.communicate()
        yield Served(process, ("127.0.0.1", int(url.rstrip("/\n").rpartition(":")[2])))
    finally:
        process.kill()
        process.communicate()


def frames(response: http.client.HTTPResponse) -> Iterator[dict[str, str]]:
    """Yield the fields of each frame of an event stream, comments included under the name `""`."""
    fields: dict[str, str] = {}
    while line := response.readline():
        if line == b"\n":
            yield fields
            fields = {}
        else:
            name, _, value = line.decode().rstrip("\n").partition(":")
            fields[name] = value.removeprefix(" ")


def patiently(check: Any) -> None:
    """Wait until a condition is true."""
    limit = time.monotonic() + PATIENCE
    while not check():
        assert time.monotonic() < limit
        time.sleep(0.02)
