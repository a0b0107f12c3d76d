"""Pictures in the DOT language of Graphviz."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from .picture import (
    EDGE_COLOURS,
    LEGEND_COLUMNS,
    NODE_COLOURS,
    STATE_COLOURS,
    Edge,
    EdgeKind,
    Node,
    NodeKind,
    Picture,
    edge_labels,
    edge_legend,
    node_legend,
    quoted,
)

_SHAPES: Mapping[NodeKind, str] = {
    "start": 'shape=box style="rounded,filled"',
    "stop": 'shape=box peripheries=2 style="rounded,filled"',
    "step": 'shape=box style="filled"',
    "join": 'shape=box3d style="filled"',
    "error_handler": 'shape=octagon style="filled"',
    "question": 'shape=cds margin="0.2,0.15" style="filled"',
    "answer": 'shape=parallelogram style="filled"',
    "outside": 'shape=parallelogram style="filled,dashed"',
    "unhandled": 'shape=box style="rounded,filled,dashed"',
}
_LINES: Mapping[EdgeKind, str] = {
    "list": "penwidth=3",
    "failure": "style=dashed penwidth=2",
    "wait": "style=dotted penwidth=2",
}


def dot(picture: Picture) -> str:
    """Return a picture as a digraph; names may contain anything."""
    lines = [
        f"digraph {quoted(picture.title)} {{",
        f'    graph [label={_text(picture.title)} labelloc=t rankdir=LR bgcolor=transparent fontname="sans-serif" fontcolor="#6e7781"]',
        '    node [fontname="sans-serif" fontcolor="#1f2328"]',
        '    edge [fontname="sans-serif" fontcolor="#6e7781" color="#6e7781"]',
    ]
    ids = {node.id: _dot_id(number, node) for number, node in enumerate(picture.nodes)}
    lines += [f"    {_node(ids[node.id], node)}" for node in picture.nodes]
    lines += [f"    {_edge(ids[edge.source], ids[edge.target], edge)}" for edge in picture.edges]
    lines += _legend(picture)
    return "\n".join([*lines, "}"]) + "\n"


def _dot_id(number: int, node: Node) -> str:
    """Return the id of a node, or one like no other if Graphviz could read something else in it (`%1`)."""
    return quoted(node.id if re.fullmatch(r"\w+|\(\w+\)", node.id) else f"#{number}")


def _node(name: str, node: Node) -> str:
    fill, outline = NODE_COLOURS[node.kind]
    width = ""
    if node.state:
        outline, width = STATE_COLOURS[node.state], " penwidth=3"
    looks = f'{_SHAPES[node.kind]} fillcolor="{fill}" color="{outline}"{width}'
    tip = f" tooltip={_text(node.doc)}" if node.doc else ""
    return f"{name} [label={_text(node.label, *node.notes)} {looks}{tip}]"


def _edge(source: str, target: str, edge: Edge) -> str:
    looks = _edge_looks(edge.kind, edge_labels(edge))
    return f"{source} -> {target}" + (f" [{looks}]" if looks else "")


def _edge_looks(kind: EdgeKind, labels: Sequence[str]) -> str:
    looks = [f"label={_text(*labels)}"] if labels else []
    if kind in _LINES:
        looks.append(_LINES[kind])
    if kind in EDGE_COLOURS:
        looks.append(f'color="{EDGE_COLOURS[kind]}"')
    return " ".join(looks)


def _legend(picture: Picture) -> Iterator[str]:
    """Yield a box with rows of the kinds of nodes, and a row of the kinds of edges."""
    if not picture.nodes:
        return
    yield "    subgraph cluster_legend {"
    yield '        graph [label="Legend" color="#8c959f" fontsize=11]'
    yield "        node [fontsize=11]"
    yield "        edge [fontsize=11]"
    for number, (kind, words) in enumerate(node_legend(picture).items()):
        yield f"        {_node(_legend_id(number), Node('', words, kind))}"
        if number % LEGEND_COLUMNS:
            yield f"        {_legend_id(number - 1)} -> {_legend_id(number)} [style=invis]"
    edges = edge_legend(picture)
    for number in range(len(edges) + 1) if edges else ():
        looks = '[label="" shape=circle width=0.1 color="#8c959f"]'
        yield f"        {_legend_id(number, 'end')} {looks}"
    for number, (edge_kind, words) in enumerate(edges.items()):
        source, target = _legend_id(number, "end"), _legend_id(number + 1, "end")
        yield f"        {source} -> {target} [{_edge_looks(edge_kind, [words])}]"
    yield "    }"


def _legend_id(number: int, what: str = "form") -> str:
    return quoted(f"legend {what} {number}")  # with a space, as in no other id


def _text(*lines: str) -> str:
    """Return a quoted text of several lines, without the sequences of Graphviz for names and breaks.

    Graphviz reads `&name;` as in HTML.
    """
    return '"' + "\\n".join(quoted(line.replace("&", "&amp;"))[1:-1] for line in lines) + '"'
