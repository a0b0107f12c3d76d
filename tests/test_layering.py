"""The layers of the package: who may import whom, and what nobody imports (section 13)."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import anyio_workflows

PACKAGE = Path(anyio_workflows.__file__).parent
MODULES = {path.stem: path for path in sorted(PACKAGE.rglob("*.py"))}

PUBLIC = "errors events retry_policy collect resource steps graph workflow context handler state"

ALLOWED = {
    "_annotations": "",
    "_backend": "",
    "_version": "",
    "errors": "",
    "_kinds": "_annotations",
    "events": "_annotations _kinds errors",
    "_retries": "",
    "retry_policy": "_retries errors",
    "collect": "errors",
    "resource": "errors",
    "steps": "_retries errors",
    "_signatures": "_annotations steps events collect resource errors",
    "graph": "_signatures steps events collect resource errors",
    "_fanin": "_signatures graph collect events errors",
    "_work": "_fanin _signatures graph events errors",
    "_waits": "_posts _signatures _work events errors",
    "_posts": "_work _signatures",
    "_ledger": "_waits _posts _work _fanin _signatures graph collect events errors",
    "state": "errors",
    "_stream": "_backend events errors",
    "snapshot": "_ledger _work _fanin graph state events errors",
    "context": "steps graph snapshot _ledger _work _stream state events errors _backend _retries",
    "_words": "_ledger _work",
    "_outcome": "events errors",
    "_narrator": "_words _work _stream events",
    "_settings": "",
    "_crew": "_outcome context _ledger _work graph events errors _backend",
    "_dispatch": "_crew _outcome _narrator _words context _ledger _work _fanin _signatures _stream "
    "steps events errors",
    "_engine": "_dispatch _crew _outcome _narrator _words _settings context _ledger _work _fanin "
    "_stream state resource graph events errors _backend",
    "handler": "_engine _ledger _work context _stream events errors",
    "workflow": "handler _engine _settings context graph _signatures steps events errors _backend "
    "_ledger _stream resource retry_policy collect snapshot state",
    "testing": f"{PUBLIC} __init__",
    "_demo": f"{PUBLIC} __init__",
    "__main__": f"{PUBLIC} __init__ _demo",
    "__init__": f"{PUBLIC} _version",
}
"""Module -> the modules of ours that it may import."""


def imported(source: str) -> set[str]:
    """Return the full dotted names that a module of the package imports, wherever it does."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(filter(None, ["anyio_workflows" * bool(node.level), node.module]))
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def ours(source: str) -> set[str]:
    found = set()
    for name in imported(source):
        root, *rest = name.split(".")
        if root == "anyio_workflows":
            found.add(rest[0] if rest and rest[0] in MODULES else "__init__")
    return found


GRAPH = {name: ours(path.read_text()) for name, path in MODULES.items()}


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
    ],
)
def test_s13_imports_are_found_wherever_they_stand(source: str, found: set[str]):
    assert ours(source) == found


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
    for name in imported(MODULES[module].read_text()):
        root, *rest = name.split(".")
        if root in ("anyio", "trio"):
            assert not [part for part in rest if part.startswith("_")], name


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"_backend", "_demo"}))
def test_s13_only_the_backend_module_knows_asyncio_and_trio(module: str):
    roots = {name.partition(".")[0] for name in imported(MODULES[module].read_text())}
    assert not roots & {"asyncio", "trio"}


PURE = [
    "_annotations",
    "_fanin",
    "_kinds",
    "_ledger",
    "_posts",
    "_retries",
    "_signatures",
    "_waits",
    "_work",
    "collect",
    "errors",
    "events",
    "graph",
    "retry_policy",
    "steps",
]


@pytest.mark.parametrize("module", [name for name in PURE if name in MODULES])
def test_s13_declaring_and_deciding_need_no_event_loop(module: str):
    roots = {name.partition(".")[0] for name in imported(MODULES[module].read_text())}
    assert not roots & {"anyio", "time", "threading"}
