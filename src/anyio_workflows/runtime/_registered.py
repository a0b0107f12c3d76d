"""A workflow that is registered in a runtime with a store, and how its runs are written and read there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import attrs

from .._json.codec import JsonCodec
from .._json.hooks import Hooks
from .._json.renamed import Renamed
from .._snapshot import _codec, _ledger_faults
from ..errors import ContextSerdeError, WorkflowConfigurationError
from ..graph import Graph
from ..workflow import Workflow
from ._rows import RowReader, RowWriter, RunRecord

NOT_RENAMED = Renamed()


@attrs.frozen(eq=False, repr=False)
class Registered:
    """A workflow of a runtime.

    Attributes:
        name: The name under which it is registered.
        workflow: The instance.
        types: Types that its runs may hold, besides those that it names itself.
        codec: Knows all of them.
        renamed: What rows that were written earlier may call by other names.
        fingerprint: That of its graph.
    """

    name: str
    workflow: Workflow[Any]
    types: tuple[type, ...]
    codec: JsonCodec
    renamed: Renamed
    fingerprint: str

    @property
    def graph(self) -> Graph:
        """Its steps."""
        return self.workflow.graph

    @property
    def hooks(self) -> Hooks | None:
        """The hooks of its converter, if it has one."""
        return self.workflow._config.hooks

    def reader(self) -> RowReader:
        """Return what reads rows and events of its runs."""
        return RowReader(self.codec, self.hooks, self.renamed)

    def read_run(self, rows: Mapping[str, str], wall: float) -> RunRecord:
        """Read what one of its runs owes, at the wall clock's time `wall`.

        Raises:
            ContextSerdeError: If that cannot be read, or does not fit the workflow as it is now.
        """
        found = self.reader().run(rows, self.graph, wall)
        for path, problem in _ledger_faults("$", found.ledger, self.graph):
            raise ContextSerdeError(path, problem)
        return found

    def writer(self, wall: Callable[[], float]) -> RowWriter:
        """Return what writes the rows of one of its runs; `wall` returns the wall clock's time."""
        return RowWriter(self.codec, self.hooks, wall)


def register(
    workflows: Mapping[str, Workflow[Any]],
    types: Collection[type],
    renamed: Mapping[str, str | None] | None,
) -> dict[str, Registered]:
    """Return the workflows by name, ready to write and read their runs.

    Args:
        workflows: The workflows by name.
        types: Types that their runs may hold, besides those that they name themselves.
        renamed: Old names with new ones, for all of them together.

    Raises:
        WorkflowConfigurationError: If an entry of `renamed` is right for none of the workflows.
    """
    codecs = {name: _codec(one.graph, tuple(types)) for name, one in workflows.items()}
    useless: dict[str, WorkflowConfigurationError] = {}
    used: dict[str, dict[str, str | None]] = {name: {} for name in workflows}
    for old in renamed or ():
        entries = _chain(old, renamed or {})
        for name, codec in codecs.items():
            try:
                codec.renamed(entries, workflows[name].graph.steps)
            except WorkflowConfigurationError as fault:
                useless.setdefault(old, fault)
            else:
                used[name] |= entries
    for old, error in useless.items():
        if not any(old in entries for entries in used.values()):
            raise error
    return {
        name: Registered(
            name,
            one,
            tuple(types),
            codecs[name],
            codecs[name].renamed(used[name], one.graph.steps),
            one.graph.fingerprint(),
        )
        for name, one in workflows.items()
    }


def _chain(old: str, renamed: Mapping[str, str | None]) -> dict[str, str | None]:
    """Return an entry with those that it leads to: names change more than once as time passes."""
    found: dict[str, str | None] = {}
    name: str | None = old
    while name is not None and name in renamed and name not in found:
        found[name] = renamed[name]
        owner, dot, _ = name.rpartition(".")
        name = renamed[name]
        if dot and name is not None and ":" in owner and ":" not in name:
            # A field: its new name is without the type, which may have another name itself.
            found |= _chain(owner, renamed)
            name = f"{owner}.{name}"
    return found
