"""The page about events on the wire says what is true: its programs run as they stand, one after the other."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from .conftest import BACKENDS
from .running import run_script

pytest.importorskip("pydantic", reason="pydantic is not installed")

PAGE = (Path(__file__).parent.parent / "docs" / "wire.md").read_text("utf-8")
CODE = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))


@pytest.mark.parametrize("backend", BACKENDS)
def test_e7_the_programs_run_as_they_stand(backend: str) -> None:
    ran = run_script(CODE.replace("anyio.run(main)", f"anyio.run(main, backend={backend!r})"))
    assert (ran.returncode, ran.stderr) == (0, "")
    [events] = re.findall(r"one line for each event:\n\n(.*?)\n\n`to_data", PAGE, re.DOTALL)
    [schema] = re.findall(r"```json\n(.*?)\n```", PAGE, re.DOTALL)
    remarks = re.findall(r"print\(.*\)  # (.*)", CODE)
    lines = [*textwrap.dedent(events).splitlines(), remarks[0], *schema.splitlines(), *remarks[1:]]
    assert ran.stdout.splitlines() == lines
