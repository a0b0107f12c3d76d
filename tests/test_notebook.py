"""What notebooks show: the example, executed by a kernel as a person would."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from .running import PATIENCE

pytest.importorskip("nbclient", reason="nbclient executes notebooks")
pytest.importorskip("ipykernel", reason="ipykernel is the kernel that notebooks are executed by")

EXAMPLE = Path(__file__).parent.parent / "examples" / "drawing.ipynb"

_EXECUTE = """
import json, os, sys, tempfile

# Nothing of the user's settings, and no file elsewhere; short paths, because sockets have names of 100 characters.
with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
    for name in ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR"):
        os.environ["JUPYTER_" + name] = folder
    for name in ("JUPYTER_PATH", "JUPYTER_CONFIG_PATH"):
        os.environ.pop(name, None)
    os.environ.update(IPYTHONDIR=folder, JUPYTER_PLATFORM_DIRS="1", PYDEVD_DISABLE_FILE_VALIDATION="1")

    import nbformat
    from nbclient import NotebookClient
    from traitlets.config import Config

    config = Config()
    config.ConnectionFileMixin.transport = {transport!r}  # no ports that other tests may take
    config.ConnectionFileMixin.connection_file = os.path.join(folder, "kernel.json")
    notebook = nbformat.read({path!r}, as_version=4)
    client = NotebookClient(
        notebook, kernel_name="python3", config=config, timeout={patience}, startup_timeout={patience}
    )
    client.execute()
print(json.dumps([cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"]))
"""


def execute(path: Path) -> list[Any]:
    """Return the outputs of each cell of code. No cell may fail; the warnings of the tools are not ours."""
    program = _EXECUTE.format(
        path=str(path),
        patience=PATIENCE,
        transport="tcp" if sys.platform == "win32" else "ipc",
    )
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=2 * PATIENCE, check=False)
    assert ran.returncode == 0, ran.stderr
    cells: list[Any] = json.loads(ran.stdout)
    return cells


def shown(outputs: list[Any]) -> Any:
    """Return what the last expression of a cell is shown as, by mime type."""
    [data] = [one["data"] for one in outputs if one["output_type"] == "execute_result"]
    return data


def test_the_example_shows_the_workflow_and_its_runs() -> None:
    workflow, running, waiting, answered, ended, failed, of_class, text = execute(EXAMPLE)
    steps = ("plan", "search", "write", "publish")

    picture = shown(workflow)
    assert ElementTree.fromstring(picture["image/svg+xml"]).tag.endswith("svg")
    for mime in ("text/html", "image/svg+xml"):
        assert all(f">{name}<" in picture[mime] for name in steps)

    for outputs in (running, waiting, ended, failed):
        found = shown(outputs)
        assert "<svg" in found["text/html"]
        assert all(f">{name}<" in found["text/html"] for name in steps)
        assert found["text/plain"].startswith("<WorkflowHandler of ")
    assert words(running)["State"] == "running"
    assert words(waiting)["State"] == "running"
    assert "3 done" in shown(waiting)["text/html"]
    assert words(ended)["State"] == "ended, it returned StopEvent"
    assert words(ended)["Result"] == "'published'"
    assert words(ended)["Unread events"] == "1"  # displayed twice, and still there
    assert words(failed)["Error"] == "LookupError: nothing is known of unicorns, part 1"
    assert "step search" in words(failed)["Note"]

    assert shown(of_class)["image/svg+xml"] == picture["image/svg+xml"]
    assert shown(answered) == {"text/plain": "'published'"}
    [printed] = text
    assert all(name in printed["text"] for name in steps)


def words(outputs: list[Any]) -> dict[str, str]:
    """Return the table below a picture."""
    found = re.findall(
        r"<th[^>]*>(.*?)</th><td[^>]*>(.*?)</td>", shown(outputs)["text/html"], re.DOTALL
    )
    return {heading: html.unescape(text) for heading, text in found}
