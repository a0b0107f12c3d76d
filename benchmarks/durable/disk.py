"""The disk that everything is written to, what a sync costs there, and how syncs are counted."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path
from time import perf_counter

SOURCE = Path(__file__).parent / "programs" / "syncs.c"


def default_folder() -> Path:
    """Return a folder that lies on a disk, as `/tmp` does not everywhere."""
    lasting = Path("/var/tmp")
    return lasting if os.access(lasting, os.W_OK) else Path(tempfile.gettempdir())


def file_system(folder: Path) -> str:
    """Return the type and the device of the file system that a folder is on."""
    best, found = "", "unknown"
    try:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return found
    for mount in mounts:
        place = mount.split()[4]
        if folder.resolve().is_relative_to(place) and len(place) >= len(best):
            kind, device = mount.partition(" - ")[2].split()[:2]
            best, found = place, f"{kind} on {device}"
    return found


def sync_cost(folder: Path, times: int = 200) -> float:
    """Return the median of the seconds that writing 4 KB at a file's end and `fdatasync` take."""
    costs = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(times):
            begun = perf_counter()
            os.write(file.fileno(), bytes(4096))
            os.fdatasync(file.fileno())
            costs.append(perf_counter() - begun)
    return statistics.median(costs)


def count_syncs(folder: Path) -> dict[str, str]:
    """Return environment variables that let a process count its syncs; none without a C compiler."""
    library, counter = folder / "syncs.so", folder / "syncs"
    compiler = shutil.which("cc")
    if compiler is None:
        return {}
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        return {}
    counter.write_bytes(bytes(8))
    counter.chmod(0o666)  # the database server runs as another user
    return {"LD_PRELOAD": str(library), "BENCHMARK_SYNCS": str(counter)}
