"""The complete programs in the recipes run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .conftest import BACKENDS
from .running import run_script

PAGE = (Path(__file__).parent.parent / "docs" / "recipes.md").read_text("utf-8")
PROGRAMS = [
    code
    for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    if "\nanyio.run(main)\n" in code
]


@pytest.mark.parametrize("backend", BACKENDS)
def test_f8_the_program_with_an_opener(backend: str) -> None:
    [program] = [code for code in PROGRAMS if "Opener()" in code]
    ran = run_script(program.replace("anyio.run(main)", f"anyio.run(main, backend={backend!r})"))
    [said] = re.findall(r"^It prints `(.*)` and `(.*)`\.", PAGE, re.MULTILINE)
    assert ran.stdout.splitlines() == [*said]
    assert (ran.returncode, ran.stderr) == (0, "")
