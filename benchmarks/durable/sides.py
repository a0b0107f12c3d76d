"""The sides: what is compared, how it is configured, and what it needs."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Literal

import attrs

from ..environments import Peer

Database = Literal["none", "sqlite", "postgresql"]


@attrs.frozen(eq=False)
class Side:
    """One way to keep runs.

    Attributes:
        name: What the tables call it.
        peer: Where it runs; `None`: it is ours, and runs in the environment of this process.
        database: What it writes to.
        backend: The event loop.
        options: More for the program.
        works: The works that it takes part in; `None`: all.
    """

    name: str
    peer: Peer | None
    database: Database
    backend: str = "asyncio"
    options: Mapping[str, Any] = attrs.field(factory=dict)
    works: tuple[str, ...] | None = None

    @property
    def label(self) -> str:
        """What tells it from all others."""
        return f"{self.name}, {self.backend}"

    @property
    def program(self) -> str:
        return "ours" if self.peer is None else self.peer.program


DBOS = Peer("dbos", "plain_dbos", ("dbos==3.*", "psycopg[binary]"))
LANGGRAPH = Peer(
    "langgraph", "langgraph_sqlite", ("langgraph==1.*", "langgraph-checkpoint-sqlite==3.*")
)
REFERENCE = Peer(
    "reference",
    "reference_dbos",
    ("llama-agents-dbos==0.7.*", "llama-index-workflows==2.26.*", "dbos<3", "psycopg[binary]"),
)

UNKEPT = "no runtime"
IN_MEMORY = "runtime in memory"
STRICT = "SQLite"
EVENTUAL = "SQLite, eventual"
RELEASED = "SQLite, released from memory"


def our_sides(*, quick: bool) -> list[Side]:
    """Return ours, on each backend that is installed; with `quick`, the most important ones."""
    backends = [name for name in ("asyncio", "trio") if find_spec(name)]
    kinds: list[tuple[str, Database, str]] = [
        (STRICT, "sqlite", "strict"),
        (EVENTUAL, "sqlite", "eventual"),
        (IN_MEMORY, "none", "in memory"),
        (UNKEPT, "none", "no"),
    ]
    sides = [
        Side(name, None, database, backend, {"kept": kept})
        for name, database, kept in kinds
        for backend in backends
        if not quick or name == STRICT or (backend == "asyncio" and name != IN_MEMORY)
    ]
    if not quick:
        released = {"kept": "strict", "idle_after": 0.2}
        sides.append(Side(RELEASED, None, "sqlite", "asyncio", released, ("answer", "wait")))
    return sides


PEER_SIDES = [
    Side("DBOS, PostgreSQL", DBOS, "postgresql"),
    Side("DBOS, SQLite", DBOS, "sqlite"),
    Side("LangGraph, SQLite, sync", LANGGRAPH, "sqlite", options={"durability": "sync"}),
    Side("LangGraph, SQLite, async", LANGGRAPH, "sqlite", options={"durability": "async"}),
    Side("reference + DBOS, PostgreSQL", REFERENCE, "postgresql"),
]
