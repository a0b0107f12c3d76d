"""The layers of the package: who may import whom, and what no module imports."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import anyio_workflows

from .running import run_script

PACKAGE = Path(anyio_workflows.__file__).parent


def module_name(path: Path) -> str:
    """Return the name below the package: "events", "testing._clock", "testing" for its `__init__`."""
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}

LAYERS = [
    "errors _absent _arguments _messages _annotations _pydantic _backend",
    "_foreign events collect steps decorators",
    "retry_policy state resource _dependencies _json wire _pydantic_fields",
    "graph _signatures _validation _code_names",
    "_ledger",
    "_snapshot _suspension instrument",
    "_drawing",
    "context",
    "_engine",
    "handler",
    "workflow",
    "checkpoint _snapshot_file drawing runtime",
    "testing",
    "__init__",
    "_documents",
    "client server",
    "otel _demo",
    "_cli",
    "__main__",
]
"""Modules and folders from the ground up: each may import its own layer, and those before it."""

LAYER = {name: n for n, names in enumerate(LAYERS) for name in names.split()}

PURE = LAYERS[1].split() + LAYERS[3].split() + LAYERS[4].split()
"""Declaring and deciding: they need no event loop."""

ENGINE_USERS = {"_engine", "handler", "workflow", "runtime"}
"""What may import from `_engine/`: the doors to a run, what keeps runs, and nothing else."""

PUBLIC_ONLY = {"testing", "_demo", "__main__"}
"""What uses the library as anybody would."""


def folder_of(module: str) -> str:
    """Return the folder below the package that a module is in; the module itself at the top."""
    return module.partition(".")[0]


def imported(source: str, module: str = "events") -> set[str]:
    """Return the full dotted names that a module of the package imports, wherever it does."""
    found: set[str] = set()
    package = ["anyio_workflows", *module.split(".")]
    is_package = MODULES.get(module, PACKAGE / "events.py").name == "__init__.py"
    if module != "__init__" and not is_package:
        package.pop()
    elif module == "__init__":
        package = ["anyio_workflows"]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join(filter(None, [*above, node.module]))
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def ours(source: str, module: str = "events") -> set[str]:
    found = set()
    for name in imported(source, module):
        root, *rest = name.split(".")
        if root == "anyio_workflows":
            names = (".".join(rest[:depth]) for depth in (2, 1))
            found.add(next((name for name in names if name in MODULES), "__init__"))
    return found


GRAPH = {name: ours(path.read_text(), name) for name, path in MODULES.items()}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from .events import Event", {"events"}),
        ("from . import events", {"events"}),
        ("from . import Event", {"__init__"}),
        ("import anyio_workflows.events", {"events"}),
        ("def f():\n    from anyio_workflows.graph import Graph", {"graph"}),
        ("if TYPE_CHECKING:\n    from ._engine import Run", {"_engine"}),
        ("import anyio", set()),
        ("from .testing import _clock", {"testing._clock"}),
        ("from .testing import replay", {"testing"}),
    ],
)
def test_imports_are_found_wherever_they_stand(source: str, found: set[str]):
    assert ours(source) == found


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("testing._harness", "from ._clock import StepCounter", {"testing._clock"}),
        ("testing._harness", "from ..events import Event", {"events"}),
        ("testing._harness", "from .. import Event", {"__init__"}),
        ("testing", "from ._clock import StepCounter", {"testing._clock"}),
        ("__init__", "from .events import Event", {"events"}),
    ],
)
def test_imports_in_a_sub_package_are_found(module: str, source: str, found: set[str]):
    assert ours(source, module) == found


def test_every_module_and_folder_has_a_layer():
    assert {folder_of(module) for module in MODULES} <= set(LAYER)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_its_own_layer_and_those_before_it(module: str):
    mine = LAYER[folder_of(module)]
    assert not [name for name in GRAPH[module] if LAYER[folder_of(name)] > mine]


def test_the_map_names_every_module_and_folder():
    text = (PACKAGE / "__init__.py").read_text()
    drawn = text[text.index("# General layout") : text.index("\nfrom ")]
    places = {folder_of(module) for module in MODULES} - {"__init__"}
    assert places - set(re.findall(r"\w+", drawn)) == set()
    named = set(re.findall(r"\b_[a-z_]+\b|\b\w+(?=/)", drawn)) - {"__all__", "tests", "__init__"}
    assert named - places == set()


def test_importing_the_package_loads_only_what_runs_need():
    late = {
        "wire",
        "_snapshot",
        "_json.codec",
        "checkpoint",
        "cattrs",
        "pydantic",
        "drawing",
        "_drawing",
        "otel",
        "opentelemetry",
        "runtime",
        "runtime._store",
        "sqlite3",
    }
    # A tool that starts with the interpreter, such as one that measures coverage, loads modules of its own.
    script = "import sys; before = set(sys.modules); import anyio_workflows; print(*sys.modules.keys() - before)"
    loaded = run_script(script).stdout.split()
    assert "anyio_workflows.workflow" in loaded
    assert not late & {name.removeprefix("anyio_workflows.") for name in loaded}


def test_there_are_no_import_cycles():
    list(TopologicalSorter(GRAPH).static_order())  # raises CycleError


@pytest.mark.parametrize("module", MODULES)
def test_only_the_doors_to_a_run_know_the_engine(module: str):
    if folder_of(module) not in ENGINE_USERS:
        assert not [name for name in GRAPH[module] if folder_of(name) == "_engine"]


@pytest.mark.parametrize("module", MODULES)
def test_tests_and_demos_use_public_modules_only(module: str):
    mine = folder_of(module)
    if mine in PUBLIC_ONLY:
        private = {name for name in GRAPH[module] if name.startswith("_") and name != "__init__"}
        allowed = {mine, "_cli"} if mine == "__main__" else {mine}
        assert {folder_of(name) for name in private} <= allowed


@pytest.mark.parametrize("module", MODULES)
def test_nobody_imports_private_parts_of_anyio_and_trio(module: str):
    for name in imported(MODULES[module].read_text(), module):
        root, *rest = name.split(".")
        if root in ("anyio", "trio"):
            assert not [part for part in rest if part.startswith("_")], name


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"_backend", "_demo", "testing._clock"}))
def test_only_the_backend_module_knows_asyncio_and_trio(module: str):
    roots = {name.partition(".")[0] for name in imported(MODULES[module].read_text(), module)}
    assert not roots & {"asyncio", "trio"}


@pytest.mark.parametrize("module", [name for name in MODULES if folder_of(name) in PURE])
def test_declaring_and_deciding_need_no_event_loop(module: str):
    roots = {name.partition(".")[0] for name in imported(MODULES[module].read_text(), module)}
    assert not roots & {"anyio", "time", "threading"}
