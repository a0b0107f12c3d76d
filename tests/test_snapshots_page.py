"""The page about snapshots says what is true: its programs run as they stand, one after the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .conftest import BACKENDS
from .running import run_script

PAGE = (Path(__file__).parent.parent / "docs" / "snapshots.md").read_text("utf-8")
CODE = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))


@pytest.mark.parametrize("backend", BACKENDS)
def test_p8_the_programs_run_as_they_stand(backend: str) -> None:
    ran = run_script(re.sub(r"anyio\.run\((\w+)\)", rf"anyio.run(\1, backend={backend!r})", CODE))
    assert ran.stdout.splitlines() == re.findall(r"print\(.*\)  # (.*)", CODE)
    assert (ran.returncode, ran.stderr) == (0, "")
