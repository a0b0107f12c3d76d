"""The example with a bug: its ordinary test passes, the toolkit finds the bug in seconds."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from anyio_workflows.testing import Pause, Scenario, TerminationViolation, replay

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "test_my_workflow.py"


@pytest.fixture(scope="module")
def report() -> str:
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", str(EXAMPLE)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


def test_the_ordinary_test_does_not_show_the_bug(report: str) -> None:
    assert "::test_the_cheapest_offer PASSED" in report
    assert "::test_the_fixed_one_always_ends PASSED" in report
    assert "::test_it_always_ends FAILED" in report
    assert "1 failed, 2 passed" in report


def test_the_report_names_the_bug_and_a_short_scenario(report: str) -> None:
    told = " ".join(report.replace("\nE ", "\n").split())
    assert "done: the run was at most slowed down, and did not finish: WorkflowStalledErr" in told
    assert "step decide waits for Offer" in told
    assert re.search(
        r"on \w+(, but not each time)?, with this scenario: Scenario\(pauses=\(Pause\('call'[^)]*\),\)\)",
        told,
    ), report


def test_the_report_in_the_documentation_is_what_the_scenario_gives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    example = importlib.import_module(EXAMPLE.stem)
    page = (ROOT / "docs" / "testing.md").read_text()
    shown = page.split("## Reading the report")[1].split("```")[1]
    scenario = Scenario(pauses=(Pause("call", checkpoints=1),))
    with pytest.raises(TerminationViolation) as caught:
        replay(example.Shopping, scenario)
    assert str(caught.value).split() == shown.split()
