"""The example that asks a person, with a person whose answers are known beforehand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import BACKENDS
from .running import PATIENCE

EXAMPLE = Path(__file__).parent.parent / "examples" / "approval.py"

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


def approve(backend: str, typed: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run the example as a program in which every warning is an error."""
    command = [sys.executable, "-X", "dev", "-W", "error", str(EXAMPLE), "--backend", backend]
    return subprocess.run(
        [*command, *args],
        input=typed,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def complaints(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the lines of stderr, but not what asyncio's debug mode says on a slow machine."""
    return [line for line in done.stderr.splitlines() if not line.startswith("Executing <")]


@pytest.mark.parametrize(
    ("typed", "last"),
    [
        ("y\nAda\n", "Ordered a standing desk, approved by Ada."),
        ("  YES \nAda Lovelace\n", "Ordered a standing desk, approved by Ada Lovelace."),
        ("n\nGrace\n", "Grace said no to a standing desk."),
        ("maybe\n\nno\nGrace\n", "Grace said no to a standing desk."),
    ],
)
def test_a_person_decides(backend: str, typed: str, last: str) -> None:
    done = approve(backend, typed)
    assert (done.returncode, complaints(done)) == (0, [])
    assert done.stdout.startswith("Buy a standing desk for 450.00? [y/n] ")
    assert done.stdout.count("Please answer y or n: ") == typed.count("\n") - 2
    assert done.stdout.splitlines()[-1].endswith(f"And who are you? {last}")


def test_nobody_is_asked_about_small_things(backend: str) -> None:
    done = approve(backend, "", "--item", "pencils", "--price", "3.5")
    assert (done.returncode, complaints(done)) == (0, [])
    assert done.stdout == "Ordered pencils, approved by the house rules.\n"


def test_end_of_the_input_ends_the_program(backend: str) -> None:
    """The block is left by an exception: the run is cancelled, and nothing hangs."""
    done = approve(backend, "y\n")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("EOFError")
