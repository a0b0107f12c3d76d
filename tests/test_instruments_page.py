"""The page about instruments says what is true: its program prints what it says it prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from anyio_workflows.instrument import Instrument

from .conftest import BACKENDS
from .running import run_script

PAGE = (Path(__file__).parent.parent / "docs" / "instruments.md").read_text("utf-8")
[CODE] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("backend", BACKENDS)
def test_i1_the_program_prints_what_the_page_says(backend: str) -> None:
    code = CODE.replace("anyio.sleep(0.1)", "anyio.sleep(0)").replace(":.1f}", ":.0f}")
    ran = run_script(code.replace("anyio.run(main)", f"anyio.run(main, backend={backend!r})"))
    assert (ran.stdout, ran.stderr, ran.returncode) == ("0 s\n", "", 0)


def test_i1_the_page_names_every_method() -> None:
    named = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE)))
    assert sorted(named) == sorted(name for name in vars(Instrument) if name[0] != "_")
