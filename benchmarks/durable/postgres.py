"""A PostgreSQL server in a temporary folder, reached through a socket there."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from ..environments import MissingError

PLACES = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql*/bin")
"""Where the server's programs lie when they are not on the path."""


@attrs.define
class Server:
    """A server that runs.

    Attributes:
        version: What it says about itself.
        process: The id of its main process.
    """

    version: str
    process: int
    _folder: Path
    _numbers: Iterator[int] = attrs.field(factory=itertools.count, init=False)

    def new_database(self) -> str:
        """Create an empty database, and return its address."""
        name = f"runs{next(self._numbers)}"
        _run(self._folder, "createdb", "-h", str(self._folder), "-U", "postgres", name)
        return f"postgresql+psycopg://postgres@/{name}?host={self._folder}"


@contextmanager
def server(folder: Path, environment: Mapping[str, str]) -> Iterator[Server]:
    """Run a server with its defaults; it listens on a socket in `folder`, and on no port.

    Args:
        folder: Where its data go; it must not exist.
        environment: More environment variables for its processes.

    Raises:
        MissingError: No server is installed, or it does not start.
    """
    folder.mkdir(mode=0o755)
    owner = _owner()
    if owner is not None:
        os.chown(folder, owner.pw_uid, owner.pw_gid)
    data = folder / "data"
    _run(folder, "initdb", "-D", str(data), "-A", "trust", "-U", "postgres", "--no-instructions")
    options = f"-c listen_addresses='' -k {folder}"
    log = str(folder / "log")
    start = ("pg_ctl", "-w", "-s", "-D", str(data), "-l", log, "-o", options, "start")
    _run(folder, *start, environment=environment)
    try:
        process = int((data / "postmaster.pid").read_text().splitlines()[0])
        yield Server(_run(folder, "postgres", "--version").strip(), process, folder)
    finally:
        _run(folder, "pg_ctl", "-w", "-s", "-D", str(data), "-m", "immediate", "stop")


def _owner() -> pwd.struct_passwd | None:
    """Return who the server runs as, which refuses to run as root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise MissingError("PostgreSQL does not run as root, and there is no user postgres or nobody")


def _program(name: str) -> str:
    if found := shutil.which(name):
        return found
    for pattern in PLACES:
        for folder in sorted(Path("/").glob(pattern[1:]), reverse=True):
            if (folder / name).exists():
                return str(folder / name)
    raise MissingError(f"PostgreSQL is not installed: no {name} found")


def _run(folder: Path, name: str, *arguments: str, environment: Mapping[str, str] = {}) -> str:
    owner = _owner()
    identity: dict[str, Any] = {}
    if owner is not None:
        identity = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
    # The server inherits the output of `pg_ctl start`: into a pipe, this would wait for its end.
    with (folder / "output").open("w+") as output:
        done = subprocess.run(
            [_program(name), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=os.environ | environment,
            check=False,
            **identity,
        )
        output.seek(0)
        printed = output.read()
    if done.returncode != 0:
        raise MissingError(f"{name} failed: {printed.strip()[-200:]}")
    return printed
