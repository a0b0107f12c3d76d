"""A virtual environment for a peer: its dependencies do not agree with those of the others."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import attrs


@attrs.frozen
class Peer:
    """A program in an environment of its own.

    Attributes:
        name: The environment's folder.
        program: The module in `programs/`.
        requirements: What is installed; its first package gives the peer's version.
    """

    name: str
    program: str
    requirements: tuple[str, ...]


class MissingError(Exception):
    """Something that a side needs cannot be had on this machine."""


def default_cache() -> Path:
    """Return the folder in which environments are kept from one time to the next."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "anyio-workflows-benchmarks"


def python_of(peer: Peer, cache: Path) -> Path:
    """Return the interpreter of a peer's environment, which is made if it is not there.

    Raises:
        MissingError: It cannot be installed, for example without a network.
    """
    folder = cache / f"{peer.name}-{sys.version_info.major}.{sys.version_info.minor}"
    python, done = folder / "bin" / "python", folder / "installed.json"
    wanted = json.dumps(peer.requirements)
    if not done.exists() or done.read_text("utf-8") != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(folder)])
        _run([str(python), "-m", "pip", "install", "--quiet", *peer.requirements])
        done.write_text(wanted, encoding="utf-8")
    return python


def versions_of(peer: Peer, python: Path) -> dict[str, str]:
    """Return the installed versions of what the peer requires."""
    names = [requirement.split("=")[0].split("<")[0] for requirement in peer.requirements]
    names = [name.split("[")[0] for name in names]
    code = (
        "import importlib.metadata as m, json, sys\n"
        "print(json.dumps({name: m.version(name) for name in sys.argv[1:]}))"
    )
    found: dict[str, str] = json.loads(_run([str(python), "-c", code, *names]))
    return found


def _run(command: list[str]) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    except OSError as error:
        raise MissingError(str(error)) from error
    if done.returncode != 0:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise MissingError(f"{' '.join(command[1:5])} failed: {' '.join(last)}")
    return done.stdout
