"""The layers of the package: who may import whom, and what nobody imports (section 13)."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import anyio_workflows

PACKAGE = Path(anyio_workflows.__file__).parent


def module_name(path: Path) -> str:
    """Return the name below the package: "events", "testing._clock", "testing" for its `__init__`."""
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}

PUBLIC = "errors events retry_policy collect resource steps graph workflow context handler state"

ALLOWED = {
    # leaves
    "_annotations": "",
    "_constructors": "_kinds",
    "_backend": "",
    "_retries": "",
    "_version": "",
    "errors": "",
    "_kinds": "_annotations",
    # declare
    "events": "_annotations _constructors _kinds errors",
    "retry_policy": "_retries errors",
    "collect": "errors",
    "resource": "_annotations _json errors",
    "steps": "_retries errors",
    "_specs": "steps collect resource events errors",
    "_signatures": "_annotations _specs steps collect resource state events errors",
    "graph": "_specs collect events errors",
    # values
    "_state_values": "errors",
    "_write_lock": "_backend errors",
    "state": "_state_values _write_lock errors",
    "_json_texts": "",
    "_json_types": "_annotations _kinds events errors",
    "_json_shapes": "_annotations _json_types _json_texts errors",
    "_json_reader": "_annotations _json_types _json_shapes _json_texts errors",
    "_named_types": "events",
    "_json": "_json_reader _json_types _json_shapes _json_texts events errors",
    # run
    "_fanin": "_specs graph collect events",
    "_work": "_fanin _specs events",
    "_posts": "_work _specs events",
    "_waits": "_posts _work _specs events errors",
    "_ledger": "_waits _posts _work _fanin _specs graph collect events errors",
    "_records": "_ledger _work _fanin graph events",
    "_continuation": "_records _stream _ledger _work _backend graph state events errors",
    "_suspension": "_continuation _work events errors",
    "context": "_suspension _continuation _retries _work snapshot steps graph state events errors",
    "_words": "_ledger _work _specs",
    "_outcome": "events errors",
    "_narrator": "_ledger _words _work _stream events errors",
    "_settings": "",
    "_opening": "resource",
    "_keeper": "_backend _opening resource errors",
    "_crew": "_backend _continuation _suspension _keeper _narrator _outcome context _work events errors",
    "_dispatch": "context _backend _continuation _crew _outcome _narrator _words _ledger _work _fanin _specs _stream "
    "steps events errors",
    "_engine": "_continuation _dispatch _crew _keeper _outcome _narrator _words _settings _records "
    "_ledger _work _fanin _stream _backend context events errors",
    # observe
    "_stream": "_backend events errors",
    "handler": "_engine _work _stream context events errors",
    "workflow": "handler _engine _continuation _json_types _settings _signatures _specs _backend context graph "
    "steps events errors",
    # persist
    "snapshot": "_continuation _records _json _named_types graph state events errors",
    "_snapshot_file": "errors",
    "checkpoint": f"{PUBLIC} _backend _dispatch _engine _snapshot_file",
    # try it
    "testing._clock": "errors",
    "testing._runner": PUBLIC,
    "testing._script": "errors",
    "testing._record": f"{PUBLIC} testing._script",
    "testing._understudy": f"{PUBLIC} testing._record testing._script",
    "testing._stage": f"{PUBLIC} testing._clock testing._record testing._script testing._understudy",
    "testing._rules": f"{PUBLIC} testing._record testing._stage",
    "testing._strategies": f"{PUBLIC} testing._script",
    "testing._explore": f"{PUBLIC} testing._clock testing._record testing._rules testing._script "
    "testing._stage testing._strategies",
    "testing": "testing._clock testing._explore testing._record testing._runner testing._script "
    "testing._strategies testing._understudy",
    "_demo": f"{PUBLIC} __init__",
    "__main__": f"{PUBLIC} __init__ _demo",
    "__init__": f"{PUBLIC} _version",
}
"""Module -> the modules of ours that it may import."""


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
def test_s13_imports_are_found_wherever_they_stand(source: str, found: set[str]):
    assert ours(source) == found


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("testing._stage", "from ._clock import StepCounter", {"testing._clock"}),
        ("testing._stage", "from ..events import Event", {"events"}),
        ("testing._stage", "from .. import Event", {"__init__"}),
        ("testing", "from ._clock import StepCounter", {"testing._clock"}),
        ("__init__", "from .events import Event", {"events"}),
    ],
)
def test_s13_imports_in_a_sub_package_are_found(module: str, source: str, found: set[str]):
    assert ours(source, module) == found


def test_s13_every_module_has_its_place():
    assert set(MODULES) <= set(ALLOWED)
    assert {"events", "graph", "_engine", "workflow"} <= set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_s13_a_module_imports_only_what_its_layer_allows(module: str):
    assert GRAPH[module] <= set(ALLOWED[module].split())


def test_s13_there_are_no_import_cycles():
    list(TopologicalSorter(GRAPH).static_order())  # raises CycleError
    list(TopologicalSorter({name: set(to.split()) for name, to in ALLOWED.items()}).static_order())


@pytest.mark.parametrize("module", MODULES)
def test_s13_nobody_imports_private_parts_of_anyio_and_trio(module: str):
    for name in imported(MODULES[module].read_text(), module):
        root, *rest = name.split(".")
        if root in ("anyio", "trio"):
            assert not [part for part in rest if part.startswith("_")], name


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"_backend", "_demo", "testing._clock"}))
def test_s13_only_the_backend_module_knows_asyncio_and_trio(module: str):
    roots = {name.partition(".")[0] for name in imported(MODULES[module].read_text(), module)}
    assert not roots & {"asyncio", "trio"}


PURE = [
    "_annotations",
    "_fanin",
    "_json",
    "_json_reader",
    "_json_shapes",
    "_json_texts",
    "_json_types",
    "_kinds",
    "_ledger",
    "_posts",
    "_records",
    "_retries",
    "_signatures",
    "_specs",
    "_state_values",
    "_waits",
    "_work",
    "collect",
    "errors",
    "events",
    "graph",
    "resource",
    "retry_policy",
    "steps",
]


@pytest.mark.parametrize("module", [name for name in PURE if name in MODULES])
def test_s13_declaring_and_deciding_need_no_event_loop(module: str):
    roots = {name.partition(".")[0] for name in imported(MODULES[module].read_text(), module)}
    assert not roots & {"anyio", "time", "threading"}
