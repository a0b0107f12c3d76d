"""`draw()`: a workflow, or one run of it, as a picture: SVG, Mermaid, DOT or plain text."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, get_args

from ._absent import absent_names
from ._drawing.files import WRITERS, DrawingFormat, write
from ._drawing.page import notebook_part
from ._drawing.picture import Picture, RunFacts, picture_of
from ._drawing.svg import svg
from ._messages import closest, namesakes, short_repr
from .errors import WorkflowConfigurationError
from .graph import Graph
from .handler import WorkflowHandler
from .workflow import Workflow

__all__ = ["DrawingFormat", "draw", "draw_all_possible_flows", "draw_most_recent_execution"]

if not TYPE_CHECKING:
    __getattr__ = absent_names(__name__)


class _Svg(str):
    """A picture that a notebook shows where it is the last expression of a cell.

    A workflow class cannot show itself: notebooks ask only instances.
    """

    __slots__ = ()

    def _repr_svg_(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return notebook_part(self)


_WRITERS: Mapping[DrawingFormat, Callable[[Picture], str]] = {
    **WRITERS,
    "svg": lambda picture: _Svg(svg(picture)),
}


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
        The picture; a notebook shows it where SVG is the last expression of a cell. Mermaid, DOT and text
        end with a line break.

    Raises:
        WorkflowConfigurationError: If `workflow` is none, `format` is unknown, or `run` is not a handler,
            or that of another workflow.
    """
    if format not in get_args(DrawingFormat):  # a tuple, which anything can be looked up in
        hint = closest(format.lower(), _WRITERS) if isinstance(format, str) else ""
        if isinstance(format, WorkflowHandler):
            hint = "a run is drawn with draw(workflow, run=handler)"
        raise WorkflowConfigurationError(
            f"draw() has no format {short_repr(format)}; {hint or 'use one of these'} "
            f"(formats: {', '.join(_WRITERS)})"
        )
    write_as = _WRITERS[format]
    graph = _graph_of(workflow, "draw")
    if run is None:
        return write_as(picture_of(graph))
    facts = _facts_of(run, graph)
    return write_as(picture_of(facts.graph, facts))


def draw_all_possible_flows(
    workflow: Workflow[Any] | type[Workflow[Any]] | Graph,
    filename: str | os.PathLike[str] = "workflow_all_flows.html",
    notebook: bool = False,
    max_label_length: int | None = None,
    include_child_workflows: bool = True,
) -> None:
    """Write a picture of a workflow to a file, called as in `llama_index.utils.workflow`.

    Args:
        workflow: As for `draw()`.
        filename: The file. Its suffix says in which form: `.html`, a page that needs no script and no
            network; `.svg`; `.mmd` or `.mermaid`; `.dot` or `.gv`; `.txt`.
        notebook: Without effect, since no browser is opened. A workflow that is the last expression of
            a cell shows its picture there.
        max_label_length: The most characters of a name; longer ones are cut off, and whole in a tooltip.
        include_child_workflows: Without effect. A workflow whose runs a step starts is a picture of its own.

    Raises:
        WorkflowConfigurationError: If `workflow` is none, `max_label_length` is not a positive number, or
            the suffix is another one.
        OSError: If the file cannot be written.
    """
    write(
        filename, picture_of(_graph_of(workflow, "draw_all_possible_flows")), (), max_label_length
    )


def draw_most_recent_execution(
    handler: WorkflowHandler[Any],
    filename: str | os.PathLike[str] = "workflow_recent_execution.html",
    notebook: bool = False,
    max_label_length: int | None = None,
) -> None:
    """Write a picture of a run to a file, called as in `llama_index.utils.workflow`.

    It is the graph of the workflow, with what the run did at each step. A page has a table as well: the
    result or error, and the open waits. Nothing counts as read or retrieved.

    Args:
        handler: The handler that `workflow.run()` returned; the run may be in progress. A workflow does
            not keep its runs.
        filename: The file, as for `draw_all_possible_flows()`.
        notebook: Without effect; a handler that is the last expression of a cell shows its picture.
        max_label_length: As for `draw_all_possible_flows()`.

    Raises:
        WorkflowConfigurationError: If `handler` is none, `max_label_length` is not a positive number, or
            the suffix is another one.
        WorkflowRuntimeError: If the run is in progress in another event loop or thread.
        OSError: If the file cannot be written.
    """
    if not isinstance(handler, WorkflowHandler):
        raise WorkflowConfigurationError(
            "draw_most_recent_execution() takes the handler that workflow.run() returned, not "
            f"{short_repr(handler)}"
        )
    facts = handler._facts()
    picture = picture_of(facts.graph, facts)
    write(filename, picture, handler._summary(facts), max_label_length)


def _graph_of(workflow: object, function: str) -> Graph:
    if isinstance(workflow, Graph):
        return workflow
    if isinstance(workflow, Workflow):
        return type(workflow)._readable_graph()
    if isinstance(workflow, type) and issubclass(workflow, Workflow):
        return workflow._readable_graph()
    problem = f"{function}() takes a workflow, its class or its graph, not {short_repr(workflow)}"
    if isinstance(workflow, WorkflowHandler):
        problem += "; a run is drawn with draw(workflow, run=handler)"
    raise WorkflowConfigurationError(problem)


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
