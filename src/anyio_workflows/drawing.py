"""`draw()`: a workflow, or one run of it, as a picture: SVG, Mermaid, DOT or plain text."""

from __future__ import annotations

import importlib
from typing import Any, Literal, get_args

from ._drawing.dot import dot
from ._drawing.mermaid import mermaid
from ._drawing.picture import Picture, RunFacts, picture_of
from ._drawing.plain import plain
from ._messages import namesakes, nearest, short_repr
from .errors import WorkflowConfigurationError
from .graph import Graph
from .handler import WorkflowHandler
from .workflow import Workflow

__all__ = ["DrawingFormat", "draw"]

DrawingFormat = Literal["svg", "mermaid", "dot", "text"]
"""The formats of `draw()`."""


def draw(
    workflow: Workflow[Any] | type[Workflow[Any]] | Graph,
    format: DrawingFormat = "svg",  # noqa: A002 - as the reader would guess
    run: WorkflowHandler[Any] | None = None,
) -> str:
    """Return a picture of the steps of a workflow, and of the events that go from one to another.

    A graph that `validate()` refuses is drawn too, as far as the signatures of its steps can be read.

    Args:
        workflow: A workflow, its class, or its `graph`.
        format: `"svg"`, for web pages, light or dark; `"mermaid"`, for Markdown; `"dot"`, for Graphviz;
            `"text"`, for terminals and logs, in lines of at most 80 characters.
        run: The handler of a run of this workflow, in progress or ended. The picture then shows what each
            step did, and how the run stands. A failure of the run does not count as retrieved.

    Returns:
        The picture. Mermaid, DOT and text end with a line break.

    Raises:
        WorkflowConfigurationError: If `workflow` is none, `format` is unknown, or `run` is not a handler,
            or that of another workflow.
    """
    formats = get_args(DrawingFormat)
    if format not in formats:
        hint = nearest(format, formats) if isinstance(format, str) else "use a name"
        raise WorkflowConfigurationError(
            f"draw() has no format {short_repr(format)}; {hint} (formats: {', '.join(formats)})"
        )
    graph = _graph_of(workflow)
    if run is None:
        return _write(picture_of(graph), format)
    facts = _facts_of(run, graph)
    return _write(picture_of(facts.graph, facts), format)


def _graph_of(workflow: object) -> Graph:
    if isinstance(workflow, Graph):
        return workflow
    if isinstance(workflow, Workflow):
        return type(workflow)._readable_graph()
    if isinstance(workflow, type) and issubclass(workflow, Workflow):
        return workflow._readable_graph()
    remedy = "draw(workflow, run=handler)" if isinstance(workflow, WorkflowHandler) else "use one"
    problem = f"draw() takes a workflow, its class or its graph, not {short_repr(workflow)}"
    raise WorkflowConfigurationError(f"{problem}; {remedy}")


def _facts_of(run: object, graph: Graph) -> RunFacts:
    """Return what a run did, if it is of that graph, or of an earlier one of the same class."""
    if not isinstance(run, WorkflowHandler):
        raise WorkflowConfigurationError(
            f"draw(run=) takes the handler that workflow.run() returned, not {short_repr(run)}"
        )
    facts = run._facts()
    if facts.graph is graph or (graph.owner is not None and facts.graph.owner is graph.owner):
        return facts
    owners = [one.owner for one in (graph, facts.graph) if one.owner is not None]
    remedy = namesakes(owners[:1], owners[1:]) or "draw it on the workflow that it is of"
    raise WorkflowConfigurationError(
        f"run {run.run_id} is of {facts.graph.name}, not of {graph.name}; {remedy}"
    )


def _write(picture: Picture, kind: DrawingFormat) -> str:
    if kind == "mermaid":
        return mermaid(picture)
    if kind == "dot":
        return dot(picture)
    if kind == "text":
        return plain(picture)
    module = importlib.import_module("anyio_workflows._drawing.svg")
    return str(module.svg(picture))
