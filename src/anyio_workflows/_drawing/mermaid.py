"""Pictures as flowcharts of Mermaid, for Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

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

_OUTLINES: Mapping[NodeKind, str] = {
    "stop": ",stroke-width:3px",
    "outside": ",stroke-dasharray:5 3",
    "unhandled": ",stroke-dasharray:5 3",
}


def mermaid(picture: Picture) -> str:
    """Return a picture as a flowchart; names may contain anything."""
    # Mermaid has reserved words (`end`, `default`, `style`) that cannot be ids: so numbers are.
    ids = {node.id: f"n{number}" for number, node in enumerate(picture.nodes)}
    lines = ["---", f"title: {quoted(picture.title)}", "---", "flowchart LR"]
    lines += [f"    {_node(ids[node.id], node)}" for node in picture.nodes]
    kinds: list[EdgeKind | None] = []
    for edge in picture.edges:
        lines.append(f"    {_edge(ids[edge.source], ids[edge.target], edge)}")
        kinds.append(edge.kind)
    lines += _legend(picture, kinds)
    for kind in node_legend(picture):
        fill, stroke = NODE_COLOURS[kind]
        colours = f"fill:{fill},stroke:{stroke},color:#1f2328"
        lines.append(f"    classDef {kind} {colours}{_OUTLINES.get(kind, '')}")
    for state, stroke in STATE_COLOURS.items():
        if names := ",".join(ids[node.id] for node in picture.nodes if node.state == state):
            lines.append(f"    classDef {state} stroke:{stroke},stroke-width:3px")
            lines.append(f"    class {names} {state}")
    for edge_kind, stroke in EDGE_COLOURS.items():
        if numbers := ",".join(str(n) for n, each in enumerate(kinds) if each == edge_kind):
            lines.append(f"    linkStyle {numbers} stroke:{stroke},stroke-width:2px")
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
