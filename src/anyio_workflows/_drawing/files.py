"""Pictures in files: the suffix of the name says in which form."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import attrs

from .._messages import short_repr
from ..errors import WorkflowConfigurationError
from .dot import dot
from .mermaid import mermaid
from .page import page
from .picture import Node, Picture
from .plain import plain
from .summary import Row
from .svg import svg

DrawingFormat = Literal["svg", "mermaid", "dot", "text"]
"""The formats of `draw()`."""

FORMAT_OF_SUFFIX: Mapping[str, DrawingFormat] = {
    ".svg": "svg",
    ".mmd": "mermaid",
    ".mermaid": "mermaid",
    ".dot": "dot",
    ".gv": "dot",
    ".txt": "text",
}

WRITERS: Mapping[DrawingFormat, Callable[[Picture], str]] = {
    "svg": svg,
    "mermaid": mermaid,
    "dot": dot,
    "text": plain,
}


def write(
    filename: str | os.PathLike[str],
    picture: Picture,
    rows: Sequence[Row] = (),
    longest_label: int | None = None,
) -> None:
    """Write a picture to a file; a page has the table of what is said about it as well.

    Raises:
        WorkflowConfigurationError: If the suffix of the name is none of those known, or `longest_label` is
            not a positive number.
        OSError: If the file cannot be written.
    """
    path = Path(filename)
    suffix = path.suffix.lower()
    if longest_label is not None:
        if type(longest_label) is not int or longest_label < 1:
            raise WorkflowConfigurationError(
                "max_label_length must be a positive int, or None for no limit; not "
                f"{short_repr(longest_label)}"
            )
        picture = _with_short_labels(picture, longest_label)
    if suffix == ".html":
        text = page(picture.title, svg(picture), rows)
    elif suffix in FORMAT_OF_SUFFIX:
        text = WRITERS[FORMAT_OF_SUFFIX[suffix]](picture)
    else:
        known = ", ".join((".html", *FORMAT_OF_SUFFIX))
        raise WorkflowConfigurationError(
            f"the name of the file has to end in one of {known}; not {short_repr(path.name)}"
        )
    path.write_text(text, "utf-8", newline="\n")


def _with_short_labels(picture: Picture, longest: int) -> Picture:
    def short(label: str) -> str:
        return label if len(label) <= longest else f"{label[: longest - 1]}…"

    def shortened(node: Node) -> Node:
        if (label := short(node.label)) == node.label:
            return node
        return attrs.evolve(node, label=label, doc=f"{node.label}\n{node.doc}".rstrip())

    nodes = tuple(map(shortened, picture.nodes))
    edges = (attrs.evolve(edge, labels=tuple(map(short, edge.labels))) for edge in picture.edges)
    return attrs.evolve(picture, nodes=nodes, edges=tuple(edges))
