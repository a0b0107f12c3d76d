"""What there is to draw: the nodes and edges of a picture, in words and kinds, without places."""

from __future__ import annotations

from typing import Literal

import attrs

NodeKind = Literal[
    "start", "stop", "step", "join", "error_handler", "question", "answer", "outside", "unhandled"
]
"""What a node is; the last five are events: `"outside"` is one that no step returns, `"unhandled"` one
that no step takes."""

EdgeKind = Literal["event", "list", "failure", "wait"]
"""How an event goes: by itself, as one of a returned list, as a failure, or to a wait inside a step."""

NodeState = Literal["", "running", "waiting", "done", "failed"]
"""What became of a node in the run that is drawn; empty if none is, or nothing did."""


@attrs.frozen
class Node:
    """A step, or an event that comes from outside or leaves the workflow.

    Attributes:
        id: Unique in the picture: the name of a step, or the name of an event in parentheses.
        label: The text in the node.
        kind: What it is.
        notes: Smaller lines below the label, as in "4 workers", or "3 done" of a run.
        state: What became of it in the run that is drawn.
        doc: The first paragraph of the docstring; empty if there is none.
    """

    id: str
    label: str
    kind: NodeKind
    notes: tuple[str, ...] = ()
    state: NodeState = ""
    doc: str = ""


@attrs.frozen
class Edge:
    """A way of events between two nodes.

    Attributes:
        source: The id of the node where it begins.
        target: The id of the node where it ends.
        kind: How the events go.
        labels: The names of the events that go this way, if both nodes are steps.
    """

    source: str
    target: str
    kind: EdgeKind = "event"
    labels: tuple[str, ...] = ()


@attrs.frozen
class Picture:
    """All there is to draw.

    Attributes:
        title: The name of the workflow; of a run also how it stands or ended.
        nodes: In the order of definition, as far as the graph has one.
        edges: In the order of their sources.
    """

    title: str
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
