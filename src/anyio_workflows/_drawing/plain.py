"""Pictures as plain text, for terminals and logs."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping

from .picture import Edge, EdgeKind, Node, NodeKind, NodeState, Picture, edge_legend, node_legend

_INTO: Mapping[EdgeKind, str] = {"event": "◀──", "list": "◀══", "failure": "◀╌╌", "wait": "◀┄┄"}
_OUT_OF: Mapping[EdgeKind, str] = {"event": "──▶", "list": "══▶", "failure": "╌╌▶", "wait": "┄┄▶"}
_SIGNS: Mapping[NodeKind, str] = {"step": "□", "join": "▣", "error_handler": "◇"}
_STATE_SIGNS: Mapping[NodeState, str] = {"running": "▷", "waiting": "…", "done": "✓", "failed": "✗"}
_ENDS: Mapping[NodeKind, str] = {
    "start": "starts a run",
    "stop": "ends the run",
    "question": "asks outside",
    "answer": "an answer from outside",
    "outside": "from outside: no step returns it",
    "unhandled": "no step takes it",
}
_LONGEST_COLUMN = 30
"""Characters of the names of events before the column is not aligned with longer ones."""


def plain(picture: Picture, width: int = 80) -> str:
    """Return a picture as text: for each step what it takes and returns, from where and where to.

    Args:
        picture: The picture.
        width: Characters in a line; only names that are longer themselves exceed it.
    """
    return "\n".join(_lines(picture, width)) + "\n"


def _lines(picture: Picture, width: int) -> Iterator[str]:
    nodes = {node.id: node for node in picture.nodes}
    steps = [node for node in picture.nodes if node.kind in _SIGNS]
    rows = {node.id: list(_rows(node, picture, nodes)) for node in steps}
    lengths = [len(event) for of_step in rows.values() for _, event, _ in of_step]
    column = max([n for n in lengths if n <= _LONGEST_COLUMN], default=0)
    yield from _wrapped(picture.title, "", width)
    if not steps:
        yield "  (no steps)"
    for node in steps:
        yield ""
        sign = _STATE_SIGNS.get(node.state, _SIGNS[node.kind])
        yield from _wrapped("; ".join([f"{sign} {node.label}", *node.notes]), "      ", width)
        for arrow, event, others in rows[node.id]:
            yield from _wrapped(f"  {arrow} {event:{column}}  {', '.join(others)}", "      ", width)
    if steps:
        yield ""
        legend = ", ".join(one.replace(" ", "\xa0") for one in _legend(picture))
        yield from _wrapped(f"Legend: {legend}", "        ", width)


def _rows(
    node: Node, picture: Picture, nodes: Mapping[str, Node]
) -> Iterator[tuple[str, str, list[str]]]:
    """Yield an arrow, the name of an event, and where it comes from or goes to."""
    for arrows, here, there in ((_INTO, "target", "source"), (_OUT_OF, "source", "target")):
        found: dict[tuple[str, str], list[str]] = {}
        for edge in picture.edges:
            if getattr(edge, here) == node.id:
                other = nodes[getattr(edge, there)]
                for event in _events(edge, other):
                    found.setdefault((arrows[edge.kind], event), []).append(_name(other))
        yield from ((arrow, event, others) for (arrow, event), others in found.items())


def _events(edge: Edge, other: Node) -> tuple[str, ...]:
    """Return the names of the events that go along an edge; at an event, that is its own name."""
    if edge.kind == "failure":
        return ("failure",)
    return (other.label,) if other.kind in _ENDS else edge.labels


def _name(other: Node) -> str:
    """Say where events come from or go to."""
    if other.kind not in _ENDS:
        return other.label
    return f"({'; '.join([_ENDS[other.kind], *other.notes])})"


def _legend(picture: Picture) -> Iterator[str]:
    for kind, words in node_legend(picture).items():
        if kind in _SIGNS:
            yield f"{_SIGNS[kind]} {words}"
    for state, sign in _STATE_SIGNS.items():
        if any(node.state == state for node in picture.nodes if node.kind in _SIGNS):
            yield f"{sign} {state}"
    for edge_kind, words in edge_legend(picture).items():
        yield f"{_OUT_OF[edge_kind]} {words}"


def _wrapped(text: str, indent: str, width: int) -> list[str]:
    """Break a text into lines, but not in a name, and not at spaces that are not to be broken."""
    lines = textwrap.wrap(
        text,
        width,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace("\xa0", " ") for line in lines]
