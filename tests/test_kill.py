"""Processes that are killed at random moments, for real: fifty times here, thousands of times in `nox -s kill` (D1 to D9)."""

from __future__ import annotations

import sys

import pytest

from .conftest import BACKENDS
from .killing import Report, check_effects, kill

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")


@pytest.mark.parametrize(
    ("kills", "processes", "idle_after"), [(20, 1, None), (20, 3, None), (10, 2, 0.05)]
)
def test_d1_to_d9_runs_survive_processes_that_are_killed(
    kills: int, processes: int, idle_after: float | None
) -> None:
    report = kill(kills, processes, tuple(BACKENDS), idle_after)
    assert report.faults == []
    assert report.kills == kills
    assert report.runs
    assert report.again
    assert report.read


def test_v2_an_execution_that_begins_again_after_its_end_is_found() -> None:
    report = Report()
    steps = ["begin", "tick 3", "begin", "work 1", "polish 2", "polish 1", "work 2", "work 1"]
    check_effects([f"run-0-0\t{what}\tkey {what}\t1" for what in steps], report)
    assert [fault.partition(": ")[2] for fault in report.faults] == [
        "begin began after tick 3",
        "work 2 began after polish 2",
        "work 1 began after polish 1",
    ]


def test_v2_an_execution_with_another_key_is_found() -> None:
    report = Report()
    check_effects(["run-0-0\tbegin\tone\t1", "run-0-0\tbegin\ttwo\t2"], report)
    assert report.faults == ["run-0-0: begin had the key one, and then two"]
