"""Pictures in the DOT language of Graphviz."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from .picture import (
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
    "question": 'shape=rarrow style="filled" fillcolor="#fff8c5" color="#9a6700"',
    "answer": 'shape=larrow style="filled" fillcolor="#fff8c5" color="#9a6700"',
    "outside": 'shape=parallelogram style="filled,dashed" fillcolor="#fff8c5" color="#9a6700"',
    "unhandled": 'shape=box style="rounded,filled,dashed" fillcolor="#ffebe9" color="#cf222e"',
}
_EDGES: Mapping[EdgeKind, str] = {
    "event": "",
    "list": "penwidth=3",
    "failure": 'style=dashed color="#cf222e"',
    "wait": 'style=dotted color="#9a6700" penwidth=2',
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
        f'    graph [label={_text(picture.title)} labelloc=t rankdir=LR bgcolor=transparent fontcolor="#6e7781"]',
        '    node [fontname="sans-serif" fontcolor="#1f2328"]',
        '    edge [fontname="sans-serif" fontcolor="#6e7781" color="#6e7781"]',
    ]
    lines += [f"    {_node(node)}" for node in picture.nodes]
    lines += [f"    {_edge(edge)}" for edge in picture.edges]
    lines += _legend(picture)
    return "\n".join([*lines, "}"]) + "\n"


def _node(node: Node) -> str:
    looks = " ".join(filter(None, [_NODES[node.kind], _STATES.get(node.state)]))
    tip = f" tooltip={_text(node.doc)}" if node.doc else ""
    return f"{_quoted(node.id)} [label={_text(node.label, *node.notes)} {looks}{tip}]"


def _edge(edge: Edge) -> str:
    labels = edge_labels(edge)
    label = f"label={_text(*labels)}" if labels else ""
    looks = " ".join(filter(None, [label, _EDGES[edge.kind]]))
    return f"{_quoted(edge.source)} -> {_quoted(edge.target)}" + (f" [{looks}]" if looks else "")


def _legend(picture: Picture) -> Iterator[str]:
    if not picture.nodes:
        return
    yield "    subgraph cluster_legend {"
    yield '        graph [label="Legend" color="#6e7781" fontsize=11]'
    yield "        node [fontsize=11]"
    yield "        edge [fontsize=11]"
    # No step is named like this: a space is no part of a name, unless somebody insists.
    for kind, words in node_legend(picture).items():
        yield f"        {_node(Node(f'legend of {kind}', words, kind))}"
    for edge_kind, words in edge_legend(picture).items():
        ends = [f"legend of {edge_kind}, {end}" for end in ("from", "to")]
        for end in ends:
            yield f'        {_quoted(end)} [label="" shape=circle width=0.1 color="#6e7781"]'
        looks = " ".join(filter(None, [f"label={_text(words)}", _EDGES[edge_kind]]))
        yield f"        {_quoted(ends[0])} -> {_quoted(ends[1])} [{looks}]"
    yield "    }"


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _text(*lines: str) -> str:
    """Return a quoted text of several lines, without the sequences of Graphviz for names and breaks.

    Graphviz reads `&name;` as in HTML.
    """
    return '"' + "\\n".join(_quoted(line.replace("&", "&amp;"))[1:-1] for line in lines) + '"'
