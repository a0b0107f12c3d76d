"""The README says what is true, and the links of all pages lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .conftest import BACKENDS
from .running import run_script

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
CODE = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_example_runs_as_it_stands(backend: str) -> None:
    source = CODE[0].replace("anyio.run(main)", f"anyio.run(main, backend={backend!r})")
    ran = run_script(source)
    assert ran.stdout.splitlines() == [
        "Step one got 'Start the workflow.'",
        "First",
        "step",
        "complete.",
        "Final result Workflow complete.",
    ]
    assert (ran.returncode, ran.stderr) == (0, "")


def test_the_tests_are_run_by_the_command_of_the_readme() -> None:
    [command] = re.findall(r"^    (python3 .* nox .*-s tests)$", README, re.MULTILINE)
    assert command in (ROOT / ".ci" / "run").read_text("utf-8").splitlines()


def test_the_benchmarks_are_those_of_the_last_run() -> None:
    assert (ROOT / "benchmarks" / "results" / "targets.md").read_text("utf-8") in README


PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^):#]*)(?:#([^)]*))?\)", page.read_text("utf-8"))
    assert links or page.name != "README.md"
    for target, anchor in links:
        linked = page.parent / target if target else page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors(linked), f"{target}#{anchor}"


def anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
