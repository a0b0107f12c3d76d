"""The page about the client says what is true: its programs run as they stand, against its server."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("httpx2")
pytest.importorskip("starlette")
pytest.importorskip("orjson")
pytest.importorskip("uvicorn")
pytest.importorskip("hypercorn")

from anyio_workflows.client import WorkflowClient

from .conftest import BACKENDS
from .running import PATIENCE, run_script

PAGE = (Path(__file__).parent.parent / "docs" / "client.md").read_text("utf-8")
SERVER, *PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)

START = "    anyio.run(server.serve)\n"
START_ANYWHERE = """
    async def main():
        async with anyio.create_task_group() as group:
            async def serve(*, task_status):
                await server.serve(port=0, task_status=task_status)
            print(await group.start(serve), flush=True)
    anyio.run(main, backend={backend!r})
"""


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def shop(backend: str, tmp_path: Path) -> Iterator[str]:
    """Start the server of the page at a free port, and give its address."""
    assert SERVER.endswith(START)
    code = SERVER.removesuffix(START) + START_ANYWHERE.format(backend=backend)
    (tmp_path / "shop.py").write_text(code)
    command = [sys.executable, "shop.py"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()
            assert process.wait(PATIENCE) == 0


def test_the_programs_run_as_they_stand(backend: str, shop: str, tmp_path: Path) -> None:
    assert len(PROGRAMS) == 5
    for code in PROGRAMS:
        program = code.replace("http://127.0.0.1:8000", shop.rstrip("/"))
        program = program.replace("anyio.run(main)", f"anyio.run(main, backend={backend!r})")
        find_shop = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        ran = run_script(find_shop + program)
        assert (ran.returncode, ran.stderr) == (0, "")
        said = r"^ +print\(.*\)  # (.*)$|^ +# (.*)$"
        expected = [one or other for one, other in re.findall(said, code, re.MULTILINE)]
        assert expected
        # The id of a run that the server made up is not on the page.
        printed = [line for line in ran.stdout.splitlines() if not line.startswith("run '")]
        assert printed == expected


def test_the_defaults_of_the_arguments_are_those_of_the_code() -> None:
    given = inspect.signature(WorkflowClient).parameters
    table = PAGE[PAGE.index("| argument | default |") :]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", table, re.MULTILINE))
    none = {"none": None, "`()`": ()}
    assert {name: none.get(text, text) for name, text in rows.items()} == {
        name: parameter.default if parameter.default in (None, ()) else f"{parameter.default:g}"
        for name, parameter in given.items()
        if name != "url"
    }
