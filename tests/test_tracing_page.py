"""The page about tracing says what is true: its program runs as it stands, and its picture is of that run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .conftest import BACKENDS
from .running import run_script

tracing_picture = pytest.importorskip(
    "tests.tracing_picture", reason="opentelemetry-sdk is not installed"
)

PAGE = tracing_picture.PAGE.read_text("utf-8")
CODE = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))


@pytest.mark.parametrize("backend", BACKENDS)
def test_i1_the_program_runs_as_it_stands(backend: str) -> None:
    program = CODE.replace("anyio.run(main)", f"anyio.run(main, backend={backend!r})")
    ran = run_script(program)
    assert (ran.returncode, ran.stderr) == (0, "")
    names = re.findall(r'^    "name": "(.*)",$', ran.stdout, re.MULTILINE)
    [number] = re.findall(r"^It prints (\d+) spans\.", PAGE, re.MULTILINE)
    assert len(names) == int(number)
    assert set(names) == {
        "request",
        "run Research",
        *(f"execute {name}" for name in ("plan", "search", "read", "summarize", "report")),
    }


def test_i1_the_picture_is_of_that_run() -> None:
    telemetry, times = tracing_picture.trace()
    assert tracing_picture.PICTURE.read_text("utf-8") == tracing_picture.draw(telemetry, times)


def test_i1_the_page_lists_all_attributes_and_metrics() -> None:
    from anyio_workflows import otel

    source = Path(otel.__file__).read_text("utf-8")
    names = set(re.findall(r'"(anyio_workflows\.[a-z_.]+|error\.type)"', source))
    missing = [name for name in sorted(names) if f"`{name}`" not in PAGE]
    assert missing == []
    shown = set(re.findall(r"`(anyio_workflows\.[a-z]+\.[a-z_]+)`", PAGE))
    assert shown - names == set()
