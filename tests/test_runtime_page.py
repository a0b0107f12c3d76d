"""The page about the runtime says what is true: its programs run as they stand."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from anyio_workflows import Runtime

from .conftest import BACKENDS
from .running import run_script

PAGE = (Path(__file__).parent.parent / "docs" / "runtime.md").read_text("utf-8")
SECTIONS = {section.partition("\n")[0]: section for section in PAGE.split("\n## ")}
PROGRAMS = {
    heading: code
    for heading, section in SECTIONS.items()
    for code in re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    if "\nanyio.run(main)\n" in code
}


@pytest.mark.parametrize("heading", PROGRAMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_programs_run_as_they_stand(heading: str, backend: str) -> None:
    code = PROGRAMS[heading]
    ran = run_script(code.replace("anyio.run(main)", f"anyio.run(main, backend={backend!r})"))
    assert (ran.returncode, ran.stderr) == (0, "")
    said = r"^ +print\(.*\)  # (.*)$|^ +# (.*)$"
    expected = [one or other for one, other in re.findall(said, code, re.MULTILINE)]
    assert ran.stdout.splitlines() == expected
    assert expected


def test_each_section_that_shows_a_program_has_one() -> None:
    assert list(PROGRAMS) == ["Start runs", "Follow a run", "Answer, cancel, retry"]


def test_k4_the_defaults_of_the_limits_are_those_of_the_code() -> None:
    given = inspect.signature(Runtime).parameters
    rows = dict(re.findall(r"^\| (`\w+`.*?) \| (.+?) \|", SECTIONS["Limits"], re.MULTILINE))
    assert rows == {
        "`max_runs`": f"{given['max_runs'].default:,}",
        "`log_events`, `log_bytes`": f"{given['log_events'].default:,}, 8 MiB",
        "`keep_ended`": f"{given['keep_ended'].default:,}",
        "`keep_ended_for`": "24 hours",
    }
    assert given["log_bytes"].default == 8 * 2**20
