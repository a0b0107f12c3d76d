"""What there is to draw: the nodes and edges of a picture, in words and kinds, without places."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import attrs

from .._code_names import WaitsInCode, waits_in_code
from .._ledger.work import OpenWait, StepStatistics
from .._messages import short_repr, shortened
from ..collect import All, Take
from ..events import (
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowTimedOutEvent,
)
from ..graph import EventParam, EventType, Graph, StepSpec
from ..steps import StepConfig

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


@attrs.frozen
class RunFacts:
    """What a picture shows of one run.

    Attributes:
        graph: The steps of the run.
        state: `"running"`, `"ending"` or `"ended"`, as in `handler.statistics()`.
        steps: Counts per step.
        open_waits: The waits that can be answered now.
        end: The terminal event; `None` until the run has ended.
    """

    graph: Graph
    state: str
    steps: Mapping[str, StepStatistics]
    open_waits: Sequence[OpenWait] = ()
    end: StopEvent | None = None


def picture_of(graph: Graph, run: RunFacts | None = None) -> Picture:
    """Return what there is to draw of a graph, which may be faulty, and of one run on it."""
    return _Painter(graph, run).paint()


# --- Colours, for formats whose pictures have the same ones on light and on dark pages -----------------

NODE_COLOURS: Mapping[NodeKind, tuple[str, str]] = {
    "start": ("#ddf4ff", "#57606a"),
    "stop": ("#ddf4ff", "#57606a"),
    "step": ("#f6f8fa", "#57606a"),
    "join": ("#f6f8fa", "#57606a"),
    "error_handler": ("#ffebe9", "#cf222e"),
    "question": ("#fff8c5", "#9a6700"),
    "answer": ("#fff8c5", "#9a6700"),
    "outside": ("#fff8c5", "#9a6700"),
    "unhandled": ("#ffebe9", "#cf222e"),
}
"""The colours of the inside and of the outline."""

STATE_COLOURS: Mapping[NodeState, str] = {
    "running": "#0969da",
    "waiting": "#9a6700",
    "done": "#1a7f37",
    "failed": "#cf222e",
}
"""The colours of the outline of nodes in a run."""

EDGE_COLOURS: Mapping[EdgeKind, str] = {"failure": "#e5534b", "wait": "#bf8700"}
"""The colours of edges that are not only lines."""


# --- The legend -------------------------------------------------------------------------------------

NODE_LEGEND: Mapping[NodeKind, str] = {
    "start": "start event",
    "step": "step",
    "join": "join: takes a list",
    "error_handler": "error handler",
    "question": "question to the outside",
    "answer": "answer from outside",
    "outside": "event that no step returns",
    "unhandled": "event that no step takes",
    "stop": "stop event",
}
EDGE_LEGEND: Mapping[EdgeKind, str] = {
    "event": "event",
    "list": "list of events (fan-out)",
    "failure": "failure",
    "wait": "asked or awaited inside a step",
}
LEGEND_COLUMNS = 4
"""Kinds of nodes in a row of a legend, for formats that place it beside the picture."""


def node_legend(picture: Picture) -> dict[NodeKind, str]:
    """Return what the kinds of nodes in a picture mean, in a fixed order."""
    kinds = {node.kind for node in picture.nodes}
    return {kind: words for kind, words in NODE_LEGEND.items() if kind in kinds}


def edge_legend(picture: Picture) -> dict[EdgeKind, str]:
    """Return what the kinds of edges in a picture mean, in a fixed order."""
    kinds = {edge.kind for edge in picture.edges}
    return {kind: words for kind, words in EDGE_LEGEND.items() if kind in kinds}


def edge_labels(edge: Edge) -> tuple[str, ...]:
    """Return the labels of an edge in words, for formats whose lines do not tell all kinds apart."""
    if edge.kind == "list":
        return tuple(f"list of {label}" for label in edge.labels)
    return ("fails",) if edge.kind == "failure" else edge.labels


# --- From a graph to a picture ------------------------------------------------------------------------

_ALWAYS_DRAWN = (StartEvent, StopEvent, InputRequiredEvent, HumanResponseEvent)
"""Events with a node of their own, even if one step returns and another takes them."""

_LONGEST_NAME = 1000
_LONGEST_LABEL = 80
_LONGEST_NOTE = 100


def printable(text: str, longest: int) -> str:
    """Return a text in which nothing controls a terminal or breaks a line, of bounded length.

    Control characters, line breaks and surrogates become escapes, as in `repr()`.
    """
    text = shortened(text, longest)
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def quoted(text: str) -> str:
    """Return a text in double quotes, as DOT and YAML read it."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


@attrs.define(eq=False)
class _Painter:
    """Collects the nodes and edges of one picture."""

    graph: Graph
    run: RunFacts | None
    nodes: dict[str, Node] = attrs.field(factory=dict)
    edges: dict[tuple[str, str, EdgeKind], dict[str, None]] = attrs.field(factory=dict)
    step_ids: dict[str, str] = attrs.field(factory=dict)
    event_ids: dict[EventType, str] = attrs.field(factory=dict)
    waits: dict[str, WaitsInCode] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        for name in (*self.graph.steps, *self.graph.unread):
            self.step_ids[name] = self._unused(printable(name, _LONGEST_NAME))
        self.waits = {spec.name: self._waits_of(spec) for spec in self.graph.steps.values()}

    def paint(self) -> Picture:
        graph = self.graph
        for event_type in graph.start_event_types:
            self._event_node(event_type, "start")
        for spec in graph.steps.values():
            self._add_step(spec)
        for name in graph.unread:
            notes = ("its annotations cannot be resolved",)
            step = self.step_ids[name]
            self.nodes[step] = Node(step, printable(name, _LONGEST_LABEL), "step", notes)
        for spec in graph.steps.values():
            self._add_inputs(spec)
            self._add_outputs(spec)
            self._add_waits(spec)
            self._add_failures(spec)
        if self.run is not None:
            for wait in self.run.open_waits:
                self._add_open_wait(wait)
        edges = (
            Edge(source, target, kind, tuple(labels))
            for (source, target, kind), labels in self.edges.items()
        )
        return Picture(self._title(), tuple(self.nodes.values()), tuple(edges))

    def _title(self) -> str:
        name = printable(self.graph.name, _LONGEST_LABEL)
        if self.run is None:
            return name
        return f"{name}: {_how_it_stands(self.run)}"

    # --- Nodes ---

    def _add_step(self, spec: StepSpec) -> None:
        kind: NodeKind = "join" if spec.is_join else "step"
        if spec.config.catch is not None:
            kind = "error_handler"
        notes = [*_notes_of(spec, self.graph), *_run_notes(spec, self.run)]
        step = self.step_ids[spec.name]
        self.nodes[step] = Node(
            step,
            printable(spec.name, _LONGEST_LABEL),
            kind,
            tuple(printable(note, _LONGEST_NOTE) for note in notes),
            _state_of(spec, self.run),
            _doc_of(spec.function),
        )

    def _event_node(self, event_type: EventType, kind: NodeKind) -> str:
        """Return the id of the node of an event, which is added if there is none yet."""
        if event_type not in self.event_ids:
            label = printable(event_type.__name__, _LONGEST_LABEL)
            node_id = self._unused(f"({label})")
            twins = [one for one in self.event_ids if one.__name__ == event_type.__name__]
            full_name = f"{event_type.__module__}.{event_type.__qualname__}"
            notes = (printable(full_name, _LONGEST_NOTE),) if twins else ()
            self.event_ids[event_type] = node_id
            doc = _doc_of(event_type)
            state = _event_state(event_type, kind, self.run)
            self.nodes[node_id] = Node(node_id, label, kind, notes, state, doc)
        return self.event_ids[event_type]

    def _unused(self, wanted: str) -> str:
        """Return an id that no node has, and none will have."""
        taken = {*self.step_ids.values(), *self.event_ids.values()}
        names = (wanted if n == 1 else f"{wanted} {n}" for n in itertools.count(1))
        return next(name for name in names if name not in taken)

    def _add_edge(
        self, source: str, target: str, kind: EdgeKind = "event", label: str | None = None
    ) -> None:
        labels = self.edges.setdefault((source, target, kind), {})
        if label is not None:
            labels[printable(label, _LONGEST_LABEL)] = None

    # --- Edges ---

    def _add_inputs(self, spec: StepSpec) -> None:
        if spec.config.catch is not None:
            return
        for accepted in spec.accepts:
            if issubclass(accepted, _ALWAYS_DRAWN) or not self.graph.is_produced(accepted, spec):
                node = self._event_node(accepted, _kind_of(accepted, "outside"))
                self._add_edge(node, self.step_ids[spec.name])

    def _add_outputs(self, spec: StepSpec) -> None:
        for returned in spec.returns:
            self._add_output(spec, returned, "event")
        for returned in spec.returns_list:
            self._add_output(spec, returned, "list")

    def _add_output(self, spec: StepSpec, returned: EventType, kind: EdgeKind) -> None:
        step = self.step_ids[spec.name]
        takers = [self.step_ids[taker.name] for taker in self.graph.takers(returned)]
        waiters = self._waiters(returned)
        if issubclass(returned, _ALWAYS_DRAWN) or not (takers or waiters):
            node = self._event_node(returned, _kind_of(returned, "unhandled"))
            self._add_edge(step, node, kind)
            for taker in takers:
                self._add_edge(node, taker)
            return
        for taker in takers:
            self._add_edge(step, taker, kind, returned.__name__)
        for waiter in waiters:
            self._add_edge(step, waiter, "wait", returned.__name__)

    def _add_waits(self, spec: StepSpec) -> None:
        waits = self.waits[spec.name]
        for asked in waits.asked:
            self._add_edge(self.step_ids[spec.name], self._event_node(asked, "question"), "wait")
        for awaited in waits.awaited:
            if issubclass(awaited, _ALWAYS_DRAWN) or awaited not in self.graph.produced:
                node = self._event_node(awaited, _kind_of(awaited, "outside"))
                self._add_edge(node, self.step_ids[spec.name], "wait")

    def _add_open_wait(self, wait: OpenWait) -> None:
        """Draw a wait of the run, which the code of the step may not have shown."""
        step = self.step_ids[wait.step]
        if wait.event_type not in self.graph.produced:
            node = self._event_node(wait.event_type, _kind_of(wait.event_type, "outside"))
            self._add_edge(node, step, "wait")
        if wait.question is not None:
            node = self._event_node(type(wait.question), "question")
            self._add_edge(step, node, "wait")
            said = printable(_described(wait.question), _LONGEST_NOTE)
            drawn = self.nodes[node]
            if said not in drawn.notes:
                notes = (*drawn.notes, said)
                self.nodes[node] = attrs.evolve(drawn, notes=notes, state="waiting")

    def _add_failures(self, spec: StepSpec) -> None:
        handler = self.graph.error_handler_of(spec)
        if handler is not None:
            self._add_edge(self.step_ids[spec.name], self.step_ids[handler.name], "failure")

    def _waits_of(self, spec: StepSpec) -> WaitsInCode:
        """Return what a step waits for in its body, besides what its signature says already."""
        found = waits_in_code(spec.function, self.graph.owner or object)
        declared = {*spec.accepts, *spec.produces}
        return WaitsInCode(
            tuple(one for one in found.awaited if one not in declared),
            tuple(one for one in found.asked if one not in declared),
        )

    def _waiters(self, returned: EventType) -> list[str]:
        return [
            self.step_ids[name] for name, waits in self.waits.items() if returned in waits.awaited
        ]


def _kind_of(event_type: EventType, otherwise: NodeKind) -> NodeKind:
    kinds: list[tuple[EventType, NodeKind]] = [
        (StartEvent, "start"),
        (StopEvent, "stop"),
        (InputRequiredEvent, "question"),
        (HumanResponseEvent, "answer"),
    ]
    for cls, kind in kinds:
        if issubclass(event_type, cls):
            return kind
    return otherwise


def _doc_of(documented: object) -> str:
    """Return the first paragraph of a docstring of the user's."""
    doc = vars(documented).get("__doc__") if isinstance(documented, type) else documented.__doc__
    module = getattr(documented, "__module__", None) or ""  # what exec() made may be of none
    if module.partition(".")[0] == __name__.partition(".")[0]:
        return ""
    first = inspect.cleandoc(doc).partition("\n\n")[0] if isinstance(doc, str) else ""
    return printable(" ".join(first.split()), 300)


# --- Notes ------------------------------------------------------------------------------------------


def _notes_of(spec: StepSpec, graph: Graph) -> Iterator[str]:
    """Yield what the signature and the decorator of a step say, defaults aside."""
    config = spec.config
    for param in spec.event_params:
        if param.policy is not None:
            yield _policy_words(param.policy)
    if len(spec.event_params) > 1:
        yield "one of each: " + " + ".join(_alternatives(p) for p in spec.event_params)
    if spec.opener_param is not None:
        yield f"with the {_alternatives(spec.opener_param)} that opened the list"
    if config.catch is not None and config.catch.max_recoveries != 1:
        yield f"up to {config.catch.max_recoveries} recoveries"
    if config.accept_event_subclasses:
        yield "subclasses too"
    if config.num_workers != StepConfig().num_workers:
        yield _counted(config.num_workers, "worker")
    if config.retry_policy is not None:
        yield "retries"
    if config.timeout is not None:
        yield f"timeout {config.timeout:g} s"
    if not spec.is_async:
        yield "in a thread"
    if spec.dependencies:
        yield "uses " + ", ".join(dict.fromkeys(d.name for d in spec.dependencies.values()))
    if (where := _defined_in(spec, graph.owner)) is not None:
        yield where


def _alternatives(param: EventParam) -> str:
    return " | ".join(one.__name__ for one in param.accepts)


def _policy_words(policy: All | Take) -> str:
    if isinstance(policy, All):
        return "joins all"
    which = "first" if policy.n == 1 else f"first {policy.n}"
    return f"joins the {which}" + (", cancels the rest" if policy.cancel else "")


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _defined_in(spec: StepSpec, owner: type | None) -> str | None:
    """Say where a step comes from, if not from the body of its workflow class."""
    for base in () if owner is None else owner.__mro__:
        if spec.name in vars(base):
            return None if base is owner else f"of {base.__name__}"
        if spec.name in vars(base).get("_free_steps", {}):
            return "free function" if base is owner else f"of {base.__name__}"
    return None


def _described(event: Event) -> str:
    """Return a repr of an event with short values, without the fields that its own repr leaves out."""
    hidden = {field.name for field in attrs.fields(cast(Any, type(event))) if not field.repr}
    names = [name for name in event if name not in hidden]
    shown = [f"{name}={short_repr(event[name])}" for name in names]
    return f"{type(event).__name__}({', '.join(shown)})"


# --- One run ----------------------------------------------------------------------------------------


def _how_it_stands(run: RunFacts) -> str:
    end = run.end
    if end is None:
        return run.state
    if isinstance(end, WorkflowFailedEvent):
        error = type(end.exception).__name__
        return printable(f"failed in {end.step_name} with {error}", _LONGEST_NOTE)
    if isinstance(end, WorkflowTimedOutEvent):
        return f"timed out after {end.timeout:g} s"
    if isinstance(end, WorkflowCancelledEvent):
        return "cancelled"
    return "completed"


def _state_of(spec: StepSpec, run: RunFacts | None) -> NodeState:
    if run is None:
        return ""
    counts = run.steps.get(spec.name, StepStatistics())
    if counts.running:
        return "running"
    if counts.waiting or any(wait.step == spec.name for wait in run.open_waits):
        return "waiting"
    if counts.failed or _was_interrupted(spec, run):
        return "failed"
    if counts.queued or counts.delayed:
        # What an ended run has left waits for one that continues from its context.
        return "running" if run.end is None else ""
    return "done" if counts.done > counts.cancelled else ""


def _was_interrupted(spec: StepSpec, run: RunFacts) -> bool:
    """Return whether a step was active when the run timed out."""
    return isinstance(run.end, WorkflowTimedOutEvent) and spec.name in run.end.active_steps


def _event_state(event_type: EventType, kind: NodeKind, run: RunFacts | None) -> NodeState:
    if kind != "stop" or run is None or run.end is None:
        return ""
    return "done" if type(run.end) is event_type else ""


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms" if seconds >= 0.001 else "under 1 ms"
    return f"{seconds:.3g} s" if seconds < 1000 else f"{seconds:.0f} s"


def _run_notes(spec: StepSpec, run: RunFacts | None) -> Iterator[str]:
    """Yield what a run did with a step."""
    if run is None or (counts := run.steps.get(spec.name)) is None:
        return
    numbers = {
        "done": counts.done - counts.failed - counts.cancelled,
        "failed": counts.failed,
        "cancelled": counts.cancelled,
        "running": counts.running,
        "waiting": counts.waiting,
        "queued": counts.queued,
        "delayed": counts.delayed,
        "retried": counts.retried,
    }
    if said := ", ".join(f"{number} {what}" for what, number in numbers.items() if number > 0):
        yield said
    if counts.seconds:
        yield f"{_duration(counts.seconds)} in all"
    if _was_interrupted(spec, run):
        yield "active when the run timed out"
    for wait in run.open_waits:
        if wait.step == spec.name:
            yield f"waits for {wait.event_type.__name__} ({wait.id})"
