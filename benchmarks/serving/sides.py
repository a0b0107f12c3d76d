"""The servers that are compared."""

from __future__ import annotations

from importlib.util import find_spec

import attrs

from ..environments import Peer


@attrs.frozen
class Side:
    """A server.

    Attributes:
        name: What the tables call it.
        peer: Where it runs; `None`: it is ours, and runs in the environment of this process.
        backend: The event loop.
    """

    name: str
    peer: Peer | None
    backend: str = "asyncio"

    @property
    def program(self) -> str:
        return "ours" if self.peer is None else self.peer.program


REFERENCE = Side(
    "reference",
    Peer(
        "reference-server",
        "reference",
        ("llama-agents-server==0.8.*", "llama-index-workflows==2.26.*"),
    ),
)

UVICORN, HYPERCORN = Side("uvicorn, asyncio", None), Side("hypercorn, trio", None, "trio")


def our_sides() -> list[Side]:
    """Return ours, as far as their event loops are installed."""
    return [side for side in (UVICORN, HYPERCORN) if find_spec(side.backend)]
