"""The page about resources says what is true: its programs print what it says they print."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .conftest import BACKENDS
from .running import run_script

PAGE = (Path(__file__).parent.parent / "docs" / "resources.md").read_text("utf-8")
CODE = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))


@pytest.mark.parametrize("backend", BACKENDS)
def test_p5_the_programs_print_what_the_page_says(backend: str) -> None:
    ran = run_script(re.sub(r"anyio\.run\((\w+)\)", rf"anyio.run(\1, backend={backend!r})", CODE))
    assert ran.stdout.splitlines() == re.findall(r"^# (.*)", CODE, re.MULTILINE)
    assert (ran.returncode, ran.stderr) == (0, "")
