"""The page about snapshots says what is true: its programs run as they stand."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from .conftest import BACKENDS
from .running import run_script

PAGE = (Path(__file__).parent.parent / "docs" / "snapshots.md").read_text("utf-8")
PROGRAMS = {
    section.partition("\n")[0]: re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    for section in PAGE.split("\n## ")
    if "```python" in section
}
"""Heading -> the blocks under it, which are one program."""


@pytest.mark.parametrize("heading", PROGRAMS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_p7_p8_the_programs_run_as_they_stand(heading: str, backend: str) -> None:
    blocks = [block for block in PROGRAMS[heading] if "import numpy" not in block]
    code = "\n".join(block for block in blocks if "import pandas" not in block)
    ran = run_script(re.sub(r"anyio\.run\((\w+)\)", rf"anyio.run(\1, backend={backend!r})", code))
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.splitlines() == re.findall(r"^ +print\(.*\)  # (.*)", code, re.MULTILINE)


NUMPY = """
    from anyio_workflows.errors import ContextSerdeError

    class Arrays(Chat):
        types = (np.ndarray,)

    async def main():
        for value in [np.arange(6.0).reshape(2, 3), np.array(["a", "b"]), np.array(5)]:
            back = await through_json(Arrays, value)
            assert (back == value).all() and back.dtype == value.dtype
        try:
            await through_json(Arrays, np.ma.masked_array([1, 2], mask=[0, 1]))
        except ContextSerdeError as error:
            print(error)
"""

PANDAS = """
    class Frames(Chat):
        types = (pd.DataFrame,)

    async def main():
        days = pd.to_datetime(["2024-05-01", "2024-05-02"])
        frame = pd.DataFrame({"n": [1, 2], "name": ["a", "b"], "day": days})
        assert frame.equals(await through_json(Frames, frame))
"""

THROUGH_JSON = """
    import json

    async def through_json(workflow, value):
        ctx = Context(workflow(converter=converter))
        await ctx.store.set("it", value)
        data = json.loads(json.dumps(ctx.to_dict()))
        return await Context.from_dict(workflow(converter=converter), data).store.get("it")

    anyio.run(main)
"""


def run_with_hooks(module: str, program: str) -> str:
    """Run a program after the hooks of the page for values of a module; return what it printed."""
    first, *more = PROGRAMS["Values of other classes"]
    (hooks,) = (block for block in more if f"import {module}" in block)
    parts = [first.partition("async def main")[0], hooks, program, THROUGH_JSON]
    ran = run_script("\n".join(map(textwrap.dedent, parts)))
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


def test_p7_arrays_come_back() -> None:
    pytest.importorskip("numpy")
    printed = run_with_hooks("numpy", NUMPY)
    assert printed.startswith("$.state.it: a MaskedArray would come back as ndarray; register")


def test_p7_frames_come_back() -> None:
    pytest.importorskip("pyarrow")
    pytest.importorskip("pandas")
    assert run_with_hooks("pandas", PANDAS) == ""
