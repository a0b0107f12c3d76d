"""The page about moving over says what is true: its code, its errors, its names and its rules."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import anyio
import pytest

from anyio_workflows import Context, Event, Workflow, WorkflowHandler
from anyio_workflows.state import StateStore

from .conftest import BACKENDS

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "moving-over.md").read_text("utf-8")
RULES = (ROOT / "docs" / "rules.md").read_text("utf-8")
# The code, block by block, each with the error of its last statement, or "".
BLOCKS = re.findall(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", PAGE, re.DOTALL)
TOP_LEVEL_AWAIT = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT


async def run(node: ast.stmt, names: dict[str, Any]) -> list[str]:
    """Run a statement as a notebook does; return in what words the page may tell its outcome."""
    tree: Any = ast.Expression(node.value) if isinstance(node, ast.Expr) else ast.Module([node], [])
    mode = "eval" if isinstance(node, ast.Expr) else "exec"
    try:
        value = eval(compile(tree, "moving-over.md", mode, TOP_LEVEL_AWAIT, True), names)
        if inspect.iscoroutine(value):
            value = await value
    except Exception as exc:
        return [f"{base.__name__}: {exc}" for base in type(exc).__mro__]
    return [repr(value)]


async def check(code: str, error: str, names: dict[str, Any]) -> None:
    lines = code.splitlines()
    tree: Any = compile(code, "moving-over.md", "exec", ast.PyCF_ONLY_AST | TOP_LEVEL_AWAIT)
    for node in tree.body:
        outcome = await run(node, names)
        _, _, comment = lines[node.end_lineno - 1].partition("  # ")
        if expected := comment or (node is tree.body[-1] and " ".join(error.split())):
            assert expected in outcome, outcome[0]
        elif not isinstance(node, ast.Expr):
            assert outcome == ["None"], outcome[0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_code_does_what_the_page_says(backend: str) -> None:
    pytest.importorskip("pydantic", reason="the page shows a model of pydantic")

    async def main() -> None:
        names: dict[str, Any] = {"__name__": "moving_over"}
        for code, error in BLOCKS:
            await check(code, error, names)

    anyio.run(main, backend=backend)
    assert sum(bool(error) for _, error in BLOCKS) == 6


@pytest.mark.skipif(not (shutil.which("perl") and shutil.which("grep")), reason="no perl, no grep")
def test_command_changes_the_root_of_the_imports(tmp_path: Path) -> None:
    [command] = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "a folder").mkdir()
    program = tmp_path / "a folder" / "program.py"
    installed = tmp_path / ".venv" / "lib" / "site-packages" / "library.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("from workflows import Workflow\n")
    program.write_text(
        "from workflows import Workflow\n"
        "from workflows.events import Event\n"
        "def f():\n"
        "    from llama_index.core.workflow import step\n"
        "    from llama_index.utils.workflow import draw_all_possible_flows\n"
        "from workflows_of_mine import g\n"
        "from mine import workflows\n"
        "import workflows\n"
        "import workflows.events as events\n"
        "import workflows_of_mine as mine\n"
    )
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    assert program.read_text() == (
        "from anyio_workflows import Workflow\n"
        "from anyio_workflows.events import Event\n"
        "def f():\n"
        "    from anyio_workflows import step\n"
        "    from anyio_workflows.drawing import draw_all_possible_flows\n"
        "from workflows_of_mine import g\n"
        "from mine import workflows\n"
        "import anyio_workflows as workflows\n"
        "import anyio_workflows.events as events\n"
        "import workflows_of_mine as mine\n"
    )
    assert installed.read_text() == "from workflows import Workflow\n"


def rows() -> list[list[str]]:
    """Return the cells of the tables that have three columns, without their heads."""
    lines = re.findall(r"^\| (.*) \|$", PAGE, re.MULTILINE)
    cells = [re.split(r" \| ", line.replace("\\|", "/") + " ") for line in lines]
    return [row for row in cells if len(row) == 3 and row[0] != "theirs"]


def test_each_row_says_what_is_theirs_and_what_is_ours() -> None:
    assert len(rows()) > 60
    for theirs, ours, _ in rows():
        assert ours.strip(), theirs


def test_names_of_ours_exist() -> None:
    dotted = set(re.findall(r"`anyio_workflows\.([a-z_.A-Z]+)\b", PAGE))
    assert {"wire.to_data", "wire.from_data", "wire.json_schema"} <= dotted
    for name in dotted - {"verbose"}:  # the name of a logger
        module, _, member = name.partition(".")
        assert hasattr(importlib.import_module(f"anyio_workflows.{module}"), member or "__name__")


def test_methods_of_ours_exist() -> None:
    classes: dict[str, type] = {
        "ctx": Context,
        "ctx.store": StateStore,
        "ev": Event,
        "handler": WorkflowHandler,
        "workflow": Workflow,
    }
    text = " ".join(ours for _, ours, _ in rows())
    calls = set(re.findall(r"\b(ctx|ctx\.store|ev|handler|workflow)\.(\w+)\(", text))
    assert len(calls) > 10
    assert [call for call in calls if not hasattr(classes[call[0]], call[1])] == []


def test_rules_are_those_of_the_rules() -> None:
    cited = set(re.findall(r"\b([A-Z][0-9]{1,2})\b", PAGE))
    assert len(cited) > 25
    assert cited <= set(re.findall(r"\*\*([A-Z][0-9]+)\*\*", RULES))
