"""The page about pydantic says what is true: its programs run as they stand, one after the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .conftest import BACKENDS
from .running import run_script

pytest.importorskip("pydantic", reason="pydantic is not installed")

PAGE = (Path(__file__).parent.parent / "docs" / "pydantic.md").read_text("utf-8")
CODE = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))


@pytest.mark.parametrize("backend", BACKENDS)
def test_p6_e6_the_programs_run_as_they_stand(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where the file is written
    ran = run_script(
        re.sub(r"anyio\.run\((.*?)\)(?=\n|  #)", rf"anyio.run(\1, backend={backend!r})", CODE)
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    expected = re.findall(r"(?:print|anyio\.run)\(.*\)  # (.*)", CODE)
    assert ran.stdout.splitlines() == expected
