"""The machine and the versions that were measured."""

from __future__ import annotations

import os
import platform
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .tables import Table

PACKAGES = (
    "anyio-workflows",
    "anyio",
    "attrs",
    "cattrs",
    "tenacity",
    "trio",
    "uvloop",
    "llama-index-workflows",
    "llama-index-instrumentation",
    "pydantic",
    "starlette",
    "uvicorn",
    "hypercorn",
)
"""The packages that run in a measurement, if they are installed."""


def describe() -> Table:
    """Return a table of the machine and of the versions."""
    table = Table("Machine and versions", ["what", "value"])
    table.add("date", date.today().isoformat())
    table.add("processor", _processor())
    table.add("cores", str(_cores()))
    table.add("load before", _load())
    table.add("system", _system())
    table.add("Python", f"{platform.python_implementation()} {platform.python_version()}")
    for package in PACKAGES:
        try:
            table.add(package, version(package))
        except PackageNotFoundError:
            table.add(package, "not installed")
    return table


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _load() -> str:
    """Return the load of the last minute: on a busy machine, the figures are unreliable."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def _system() -> str:
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        name = platform.version()
    return f"{name}, {platform.system()} {platform.release()}, {platform.machine()}"
