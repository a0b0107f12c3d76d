"""Pictures in the DOT language of Graphviz."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from .picture import (
    LEGEND_COLUMNS,
    Edge,
    EdgeKind,
    Node,
    NodeKind,
    NodeState,
    Picture,
    edge_labels,
    edge_legend,
    node_legend,
)

_NODES: Mapping[NodeKind, str] = {
    "start": 'shape=box style="rounded,filled" fillcolor="#ddf4ff" color="#57606a"',
    "stop": 'shape=box style="rounded,filled" fillcolor="#ddf4ff" color="#57606a" peripheries=2',
    "step": 'shape=box style="filled" fillcolor="#f6f8fa" color="#57606a"',
    "join": 'shape=box3d style="filled" fillcolor="#f6f8fa" color="#57606a"',
    "error_handler": 'shape=octagon style="filled" fillcolor="#ffebe9" color="#cf222e"',
    "question": 'shape=cds margin="0.2,0.15" style="filled" fillcolor="#fff8c5" color="#9a6700"',
    "answer": 'shape=parallelogram style="filled" fillcolor="#fff8c5" color="#9a6700"',
    "outside": 'shape=parallelogram style="filled,dashed" fillcolor="#fff8c5" color="#9a6700"',
    "unhandled": 'shape=box style="rounded,filled,dashed" fillcolor="#ffebe9" color="#cf222e"',
}
_EDGES: Mapping[EdgeKind, str] = {
    "event": "",
    "list": "penwidth=3",
    "failure": 'style=dashed color="#e5534b" penwidth=2',
    "wait": 'style=dotted color="#bf8700" penwidth=2',
}
_STATES: Mapping[NodeState, str] = {
    "running": 'color="#0969da" penwidth=3',
    "waiting": 'color="#9a6700" penwidth=3',
    "done": 'color="#1a7f37" penwidth=3',
    "failed": 'color="#cf222e" penwidth=3',
}


def dot(picture: Picture) -> str:
    """Return a picture as a digraph; names may contain anything."""
    lines = [
        f"digraph {_quoted(picture.title)} {{",
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
    return _quoted(node.id if re.fullmatch(r"\w+|\(\w+\)", node.id) else f"#{number}")


def _node(name: str, node: Node) -> str:
    looks = " ".join(filter(None, [_NODES[node.kind], _STATES.get(node.state)]))
    tip = f" tooltip={_text(node.doc)}" if node.doc else ""
    return f"{name} [label={_text(node.label, *node.notes)} {looks}{tip}]"


def _edge(source: str, target: str, edge: Edge) -> str:
    labels = edge_labels(edge)
    label = f"label={_text(*labels)}" if labels else ""
    looks = " ".join(filter(None, [label, _EDGES[edge.kind]]))
    return f"{source} -> {target}" + (f" [{looks}]" if looks else "")


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
        looks = " ".join(filter(None, [f"label={_text(words)}", _EDGES[edge_kind]]))
        source, target = _legend_id(number, "end"), _legend_id(number + 1, "end")
        yield f"        {source} -> {target} [{looks}]"
    yield "    }"


def _legend_id(number: int, what: str = "form") -> str:
    return _quoted(f"legend {what} {number}")  # with a space, as in no other id


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _text(*lines: str) -> str:
    """Return a quoted text of several lines, without the sequences of Graphviz for names and breaks.

    Graphviz reads `&name;` as in HTML.
    """
    return '"' + "\\n".join(_quoted(line.replace("&", "&amp;"))[1:-1] for line in lines) + '"'
