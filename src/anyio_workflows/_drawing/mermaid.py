"""Pictures as flowcharts of Mermaid, for Markdown."""

from __future__ import annotations

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

_SHAPES: Mapping[NodeKind, tuple[str, str]] = {
    "start": ("([", "])"),
    "stop": ("([", "])"),
    "step": ("[", "]"),
    "join": ("[[", "]]"),
    "error_handler": ("{{", "}}"),
    "question": (">", "]"),
    "answer": ("[/", "/]"),
    "outside": ("[/", "/]"),
    "unhandled": ("(", ")"),
}
_ARROWS: Mapping[EdgeKind, str] = {"event": "-->", "list": "==>", "failure": "-.->", "wait": "-.->"}

_STYLES: Mapping[NodeKind, str] = {
    "start": "fill:#ddf4ff,stroke:#57606a,color:#1f2328",
    "stop": "fill:#ddf4ff,stroke:#57606a,color:#1f2328,stroke-width:3px",
    "step": "fill:#f6f8fa,stroke:#57606a,color:#1f2328",
    "join": "fill:#f6f8fa,stroke:#57606a,color:#1f2328",
    "error_handler": "fill:#ffebe9,stroke:#cf222e,color:#1f2328",
    "question": "fill:#fff8c5,stroke:#9a6700,color:#1f2328",
    "answer": "fill:#fff8c5,stroke:#9a6700,color:#1f2328",
    "outside": "fill:#fff8c5,stroke:#9a6700,color:#1f2328,stroke-dasharray:5 3",
    "unhandled": "fill:#ffebe9,stroke:#cf222e,color:#1f2328,stroke-dasharray:5 3",
}
"""Both colours are given of each box, so that it can be read on a light and on a dark page."""

_STATES: Mapping[NodeState, str] = {
    "running": "stroke:#0969da,stroke-width:3px",
    "waiting": "stroke:#9a6700,stroke-width:3px",
    "done": "stroke:#1a7f37,stroke-width:3px",
    "failed": "stroke:#cf222e,stroke-width:3px",
}

_EDGE_STYLES: Mapping[EdgeKind, str] = {
    "failure": "stroke:#e5534b,stroke-width:2px",
    "wait": "stroke:#bf8700,stroke-width:2px",
}


def mermaid(picture: Picture) -> str:
    """Return a picture as a flowchart; names may contain anything."""
    # Mermaid has reserved words (`end`, `default`, `style`) that cannot be ids: so numbers are.
    ids = {node.id: f"n{number}" for number, node in enumerate(picture.nodes)}
    lines = ["---", f"title: {_yaml(picture.title)}", "---", "flowchart LR"]
    lines += [f"    {_node(ids[node.id], node)}" for node in picture.nodes]
    kinds: list[EdgeKind | None] = []
    for edge in picture.edges:
        lines.append(f"    {_edge(ids[edge.source], ids[edge.target], edge)}")
        kinds.append(edge.kind)
    lines += _legend(picture, kinds)
    for kind in node_legend(picture):
        lines.append(f"    classDef {kind} {_STYLES[kind]}")
    for state, style in _STATES.items():
        if names := ",".join(ids[node.id] for node in picture.nodes if node.state == state):
            lines += [f"    classDef {state} {style}", f"    class {names} {state}"]
    for edge_kind, style in _EDGE_STYLES.items():
        if numbers := ",".join(str(n) for n, each in enumerate(kinds) if each == edge_kind):
            lines.append(f"    linkStyle {numbers} {style}")
    return "\n".join(lines) + "\n"


def _node(name: str, node: Node) -> str:
    opening, closing = _SHAPES[node.kind]
    text = "<br/>".join(map(_escaped, (node.label, *node.notes)))
    return f'{name}{opening}"{text}"{closing}:::{node.kind}'


def _edge(source: str, target: str, edge: Edge) -> str:
    label = "<br/>".join(map(_escaped, edge_labels(edge)))
    arrow = _ARROWS[edge.kind] + (f'|"{label}"|' if label else "")
    return f"{source} {arrow} {target}"


def _legend(picture: Picture, kinds: list[EdgeKind | None]) -> Iterator[str]:
    """Yield a box with rows of the kinds of nodes, and a row of the kinds of edges.

    Args:
        picture: What it explains.
        kinds: Gets the kind of each edge, as styles of edges go by number; `None`: it is not drawn.
    """
    if not picture.nodes:
        return
    yield '    subgraph legend["Legend"]'
    yield "        direction LR"
    for number, (kind, words) in enumerate(node_legend(picture).items()):
        yield f"        {_node(f'k{number}', Node('', words, kind))}"
        if number % LEGEND_COLUMNS:
            yield f"        k{number - 1} ~~~ k{number}"
            kinds.append(None)
    for number, (edge_kind, words) in enumerate(edge_legend(picture).items()):
        yield f'        e{number}((" ")) {_ARROWS[edge_kind]}|"{words}"| e{number + 1}((" "))'
        kinds.append(edge_kind)
    yield "    end"
    yield "    style legend fill:none,stroke:#8c959f"


def _escaped(text: str) -> str:
    """Write a text so that neither Mermaid, nor Markdown, nor HTML finds anything in it."""
    return "".join(one if one.isalnum() or one in " _,.+-=()" else f"#{ord(one)};" for one in text)


def _yaml(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
