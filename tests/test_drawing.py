"""`draw()` (I5): what is in a picture, and that each format writes all of it.

Pictures of every form are kept in `tests/drawings/`; `python -m tests.drawn` writes them again.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any, get_args

import anyio
import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyio_workflows import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StepFailedEvent,
    StopEvent,
    Workflow,
    WorkflowCancelledEvent,
    catch_error,
    step,
)
from anyio_workflows._drawing.dot import dot
from anyio_workflows._drawing.mermaid import mermaid
from anyio_workflows._drawing.picture import Node, Picture, RunFacts, picture_of
from anyio_workflows._drawing.plain import plain
from anyio_workflows._ledger.work import StepStatistics
from anyio_workflows.drawing import DrawingFormat, draw
from anyio_workflows.errors import (
    WorkflowCancelledByUser,
    WorkflowConfigurationError,
    WorkflowValidationError,
)
from anyio_workflows.graph import Graph

from .drawn import (
    HERE,
    PICTURES,
    RUNS,
    SUFFIXES,
    Failing,
    Faulty,
    Slow,
    Surveying,
    draw_run,
    failed,
)
from .ledger_graphs import POLICIES, TAKES, kitchen
from .running import on_each_backend

# --- Files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.name)
def test_i5_the_pictures_that_are_kept(path: Path):
    assert PICTURES[path]() == path.read_text("utf-8"), "look at it after 'python -m tests.drawn'"


def test_no_other_pictures_are_kept():
    assert {path.name for path in HERE.iterdir()} == {path.name for path in PICTURES}


@on_each_backend
@pytest.mark.parametrize("name", RUNS)
def test_i5_the_picture_of_a_run_is_the_same_on_each_backend(name: str, backend: str):
    kept = (HERE / f"{name}.{SUFFIXES['text']}").read_text("utf-8")
    assert draw_run(name, "text", backend) == kept


def test_i5_every_form_is_in_the_pictures_that_are_kept():
    pictures = [picture_of(Surveying._readable_graph()), picture_of(Faulty._readable_graph())]
    nodes = {node.kind for picture in pictures for node in picture.nodes}
    edges = {edge.kind for picture in pictures for edge in picture.edges}
    assert len(nodes) == 9
    assert len(edges) == 4


# --- Arguments --------------------------------------------------------------------------------------


def test_a_workflow_its_class_and_its_graph_are_the_same_picture():
    workflow = Surveying()
    drawn = [draw(one, "text") for one in (workflow, Surveying, workflow.graph)]
    assert drawn[0] == drawn[1] == drawn[2]


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("mermaids", "did you mean 'mermaid'?"),
        ("SVG", "did you mean 'svg'?"),
        ("png", "use one of these (formats: svg, mermaid, dot, text)"),
        (None, "use one of these (formats: svg, mermaid, dot, text)"),
    ],
)
def test_an_unknown_format(given: Any, hint: str):
    with pytest.raises(WorkflowConfigurationError, match=re.escape(hint)) as caught:
        draw(Surveying, given)
    assert repr(given) in str(caught.value)


@pytest.mark.parametrize("given", [None, 3, Graph, "Surveying", Surveying.search])
def test_what_is_no_workflow_is_refused(given: Any):
    with pytest.raises(
        WorkflowConfigurationError, match="takes a workflow, its class or its graph"
    ):
        draw(given)


@pytest.mark.anyio
async def test_what_is_no_handler_is_refused():
    with pytest.raises(
        WorkflowConfigurationError, match=r"takes the handler that workflow.run\(\)"
    ):
        draw(Surveying, "text", run="last")  # type: ignore[arg-type]
    handler = await failed()
    with pytest.raises(WorkflowConfigurationError, match=r"draw\(workflow, run=handler\)"):
        draw(handler, "text")  # type: ignore[arg-type]
    with pytest.raises(WorkflowConfigurationError, match=r"draw\(workflow, run=handler\)"):
        draw(Surveying, handler)  # type: ignore[arg-type]


@pytest.mark.anyio
async def test_i5_the_run_of_another_workflow_is_refused():
    handler = await failed()
    with pytest.raises(WorkflowConfigurationError, match="is of Failing, not of Slow; draw it on"):
        draw(Slow, "text", run=handler)


@pytest.mark.anyio
async def test_e8_the_run_of_a_class_that_was_defined_again():
    def define() -> type[Workflow]:
        class Twice(Workflow):
            @step
            async def only(self, ev: StartEvent) -> StopEvent:
                return StopEvent()

        return Twice

    first, second = define(), define()
    handler = first().run()
    await handler
    with pytest.raises(WorkflowConfigurationError, match="two classes are named Twice"):
        draw(second, "text", run=handler)


@pytest.mark.anyio
async def test_a_run_is_drawn_on_the_steps_that_it_had():
    class Growing(Workflow):
        @step
        async def only(self, ev: StartEvent) -> StopEvent:
            return StopEvent()

    handler = Growing().run()
    await handler

    @step(workflow=Growing)
    async def added(ev: StartEvent) -> StopEvent:
        raise AssertionError

    assert "added" not in draw(Growing, "text", run=handler)
    assert "added" in draw(Growing, "text")


@pytest.mark.anyio
async def test_o6_a_drawn_failure_is_not_retrieved(caplog: pytest.LogCaptureFixture):
    handler = Slow(timeout=1).run()
    await anyio.sleep(2)
    assert "timed out after 1 s" in draw(Slow, "text", run=handler)
    del handler
    assert "never retrieved" in caplog.text


def test_i5_steps_of_no_module_are_drawn():
    """What `exec()` defines has none if it is given no `__name__`."""
    namespace: dict[str, Any] = {"StartEvent": StartEvent, "StopEvent": StopEvent}
    source = "async def go(self, ev: StartEvent) -> StopEvent:\n    'Goes.'"
    exec(compile(source, "made", "exec", dont_inherit=True), namespace)  # without `annotations`
    drawn = draw(type("Made", (Workflow,), {"go": step(namespace["go"])}), "svg")
    assert "Goes" in drawn


def test_i5_a_graph_with_faults_is_drawn():
    with pytest.raises(WorkflowValidationError):
        Faulty()
    text = draw(Faulty, "text")
    assert "Lost        (no step takes it)" in text
    assert "Wanted      (from outside: no step returns it)" in text
    assert "dream; its annotations cannot be resolved" in text


def test_i5_an_instance_that_cannot_run_is_drawn():
    class Lonely(Workflow):
        @step
        async def hope(self, ev: Go) -> StopEvent: ...

    with pytest.raises(WorkflowValidationError):
        Lonely().validate()
    assert "from outside: no step returns it" in draw(Lonely(), "text")


@pytest.mark.parametrize("kind", get_args(DrawingFormat))
def test_a_workflow_without_steps_is_drawn(kind: Any):
    class Empty(Workflow): ...

    assert "Empty" in draw(Empty, kind)
    assert draw(Workflow, kind)


# --- What is in a picture ---------------------------------------------------------------------------


def drawn(workflow: type[Workflow]) -> Picture:
    return picture_of(workflow._readable_graph())


def edges_of(workflow: type[Workflow]) -> set[tuple[str, str, str, tuple[str, ...]]]:
    return {attrs.astuple(edge) for edge in drawn(workflow).edges}


def note_of(workflow: type[Workflow], name: str) -> tuple[str, ...]:
    return next(node.notes for node in drawn(workflow).nodes if node.id == name)


class Go(Event): ...


class Yes(HumanResponseEvent): ...


class Sure(InputRequiredEvent): ...


class Ready(Event): ...


class Notice(Event): ...


async def ask_politely(ctx: Context) -> Yes:
    return await ctx.wait_for_event(Yes, waiter_event=Sure())


def test_i5_what_a_step_waits_for_in_its_body():
    class Waits(Workflow):
        @step
        async def direct(self, ctx: Context, ev: StartEvent) -> Go:
            ctx.write_event_to_stream(Notice())
            await ctx.wait_for_event(Yes, Sure())
            return Go()

        @step
        async def keywords(self, ctx: Context, ev: Go) -> Ready | StopEvent:
            await ctx.wait_for_event(waiter_event=Sure(), event_type=Ready)
            return StopEvent()

    assert edges_of(Waits) == {
        ("(StartEvent)", "direct", "event", ()),
        ("direct", "keywords", "event", ("Go",)),
        ("(Yes)", "direct", "wait", ()),
        ("direct", "(Sure)", "wait", ()),
        ("keywords", "(Ready)", "event", ()),
        ("keywords", "(Sure)", "wait", ()),
        ("keywords", "(StopEvent)", "event", ()),
    }


def test_i5_a_wait_in_a_helper_belongs_to_the_steps_that_name_it():
    class Helped(Workflow):
        @step
        async def first(self, ctx: Context, ev: StartEvent) -> Go:
            await self.ask(ctx)
            return Go()

        @step
        async def second(self, ctx: Context, ev: Go) -> StopEvent:
            await ask_politely(ctx)
            return StopEvent()

        async def ask(self, ctx: Context) -> Any:
            async def inner() -> Any:
                return await ctx.wait_for_event(Yes)

            return await inner()

        async def unused(self, ctx: Context) -> Any:
            return await ctx.wait_for_event(Ready)

    assert {edge for edge in edges_of(Helped) if edge[2] == "wait"} == {
        ("(Yes)", "first", "wait", ()),
        ("(Yes)", "second", "wait", ()),
        ("second", "(Sure)", "wait", ()),
    }


def test_i5_an_event_that_is_returned_and_waited_for_goes_from_step_to_step():
    class Meeting(Workflow):
        @step
        async def hurry(self, ev: StartEvent) -> Ready: ...

        @step
        async def linger(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await ctx.wait_for_event(Ready)
            return StopEvent()

    assert ("hurry", "linger", "wait", ("Ready",)) in edges_of(Meeting)
    assert "(Ready)" not in {node.id for node in drawn(Meeting).nodes}


def test_i5_what_code_only_mentions_is_not_drawn():
    class Mentions(Workflow):
        @step
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            ctx.write_event_to_stream(Notice())
            answer = await ctx.wait_for_event(Yes, timeout=3)
            return StopEvent(result=isinstance(answer, Ready) or Sure)

    assert {node.id for node in drawn(Mentions).nodes} == {
        "(StartEvent)",
        "only",
        "(Yes)",
        "(StopEvent)",
    }


@pytest.mark.anyio
async def test_w5_an_open_wait_is_drawn_whatever_the_code_shows():
    class Hidden(Workflow):
        kinds = [Yes]

        @step
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            wait = "wait_for_event"
            await getattr(ctx, wait)(self.kinds[0], Sure(text="Go on?\x1b"), waiter_id="it")
            return StopEvent()

    assert "Yes" not in draw(Hidden, "text")
    async with Hidden().run() as handler:
        async for _ in handler.stream_events():
            break
        text = draw(Hidden, "text", run=handler)
        assert "… only; 1 waiting; waits for Yes (1:1:it)" in text
        assert r"asks outside; Sure(text='Go on?\x1b')" in text
        assert "◀┄┄ Yes " in text
        await handler.cancel_run()
    assert "Hidden: cancelled" in draw(Hidden, "text", run=handler)


@pytest.mark.anyio
async def test_a_question_is_drawn_without_the_fields_that_its_repr_hides():
    class Login(InputRequiredEvent):
        user: str
        password: str = attrs.field(repr=False)

    class Asks(Workflow):
        @step
        async def only(self, ctx: Context, ev: StartEvent) -> StopEvent:
            await ctx.wait_for_event(Yes, Login(user="me", password="secret"))
            return StopEvent()

    async with Asks().run() as handler:
        async for _ in handler.stream_events():
            break
        text = draw(Asks, "text", run=handler)
        await handler.cancel_run()
    assert "Login(user='me')" in text
    assert "secret" not in text


def test_x4_the_failures_that_an_error_handler_takes():
    class Guarded(Workflow):
        @step
        async def first(self, ev: StartEvent) -> Go: ...

        @step
        async def second(self, ev: Go) -> StopEvent: ...

        @catch_error(for_steps=["second"], max_recoveries=2)
        async def patch(self, ev: StepFailedEvent) -> StopEvent: ...

        @catch_error
        async def rescue(self, ev: StepFailedEvent) -> Go: ...

    assert {edge for edge in edges_of(Guarded) if edge[2] == "failure"} == {
        ("first", "rescue", "failure", ()),
        ("second", "patch", "failure", ()),
    }
    assert note_of(Guarded, "patch") == ("up to 2 recoveries",)


def test_r1_events_of_subclasses_go_to_the_step_that_takes_them():
    class Base(Event): ...

    class Derived(Base): ...

    class Takes(Workflow):
        @step
        async def first(self, ev: StartEvent) -> Derived: ...

        @step(accept_event_subclasses=True)
        async def second(self, ev: Base) -> StopEvent: ...

    assert ("first", "second", "event", ("Derived",)) in edges_of(Takes)
    assert note_of(Takes, "second") == ("subclasses too",)
    assert not {"(Base)", "(Derived)"} & {node.id for node in drawn(Takes).nodes}


def test_free_functions_say_that_they_are():
    class Owner(Workflow): ...

    @step(workflow=Owner, num_workers=1)
    async def only(ev: StartEvent) -> StopEvent: ...

    assert note_of(Owner, "only") == ("1 worker", "free function")


def test_e8_two_events_of_the_same_name_are_two_nodes():
    one, other = (type("Twin", (Event,), {"__module__": name}) for name in ("here", "there"))

    class Twins(Workflow):
        @step
        async def only(self, ev: StartEvent) -> one | other: ...  # type: ignore[valid-type]

    nodes = [node for node in drawn(Twins).nodes if node.label == "Twin"]
    assert [node.id for node in nodes] == ["(Twin)", "(Twin) 2"]
    assert [node.notes for node in nodes] == [(), ("there.Twin",)]


def test_docstrings_of_the_program_are_the_tips():
    docs = {node.id: node.doc for node in drawn(Surveying).nodes}
    assert docs["search"] == "Find the pages about a topic."
    assert docs["(Topic)"] == "What to look for."
    assert docs["(Survey)"] == docs["read"] == ""


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.0002, "under 1 ms"), (0.0123, "12.3 ms"), (1.756, "1.76 s"), (7384.2, "7384 s")],
)
def test_i5_how_long_a_step_took(seconds: float, shown: str):
    counts = {"start": StepStatistics(done=1, seconds=seconds), "read": StepStatistics()}
    picture = picture_of(Failing._readable_graph(), RunFacts(Failing().graph, "running", counts))
    notes = {node.id: node.notes for node in picture.nodes}
    assert notes["start"] == ("1 done", f"{shown} in all")
    assert notes["read"] == ("1 worker",)


@pytest.mark.parametrize(
    ("end", "state"), [(None, "running"), (WorkflowCancelledEvent(), "")], ids=["running", "ended"]
)
def test_i5_work_that_a_run_has_left_is_not_running(end: StopEvent | None, state: str):
    counts = {"start": StepStatistics(done=2, queued=1), "read": StepStatistics(delayed=1)}
    facts = RunFacts(Failing().graph, "ended" if end else "running", counts, end=end)
    picture = picture_of(Failing._readable_graph(), facts)
    states = {node.id: node.state for node in picture.nodes}
    assert (states["start"], states["read"]) == (state, state)


@pytest.mark.anyio
async def test_i5_what_was_cancelled_is_not_done():
    class Endless(Workflow):
        @step
        async def begin(self, ev: StartEvent) -> Go:
            return Go()

        @step
        async def wait(self, ev: Go) -> StopEvent:
            await anyio.sleep_forever()
            return StopEvent()

    handler = Endless().run()
    await anyio.wait_all_tasks_blocked()
    await handler.cancel_run()
    with pytest.raises(WorkflowCancelledByUser):
        await handler
    begin, wait = handler.statistics().steps.values()
    assert (begin.done, begin.cancelled, wait.done, wait.cancelled) == (1, 0, 1, 1)
    text = draw(Endless, "text", run=handler)
    assert "✓ begin; 1 done" in text
    assert "□ wait; 1 cancelled" in text


# --- Every format has everything --------------------------------------------------------------------

NAMES = st.one_of(
    st.sampled_from(["end", "graph", "class", "default", "style", "legend", "(A)", "a b", "n0"]),
    st.sampled_from(
        ['"', "\\", "\\N", '\\"', "&amp;", "<b>", "#35;", "`x`", "%%", "-->", "|", "]"]
    ),
    st.text(min_size=1, max_size=12).filter(lambda name: "\0" not in name and encodable(name)),
)


def encodable(name: str) -> bool:
    """Return whether a class can have this name."""
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Return a graph whose steps and events have any names; it is rarely free of faults."""
    names = draw(st.lists(NAMES, min_size=1, max_size=5, unique=True))
    bases = st.sampled_from([Event, HumanResponseEvent, InputRequiredEvent])
    events = [type(name, (draw(bases),), {}) for name in names] + [StartEvent, StopEvent]
    members: dict[str, Any] = {}
    some = st.lists(st.sampled_from(events[:-1]), min_size=1, max_size=3, unique=True)
    for name in draw(st.lists(NAMES, min_size=1, max_size=5, unique=True)):
        if name.startswith("_") or hasattr(Workflow, name):
            continue

        async def body(self: Any, ev: Any) -> Any: ...

        takes: Any = reduce(or_, draw(some))
        gives: Any = reduce(or_, [*draw(some), StopEvent])
        listed: Any = reduce(or_, draw(some))
        takes, gives = (
            list[takes] if draw(st.booleans()) else takes,
            gives | list[listed] if draw(st.booleans()) else gives,
        )
        body.__annotations__ = {"ev": takes, "return": gives}
        members[name] = step(body)
    return type(draw(NAMES), (Workflow,), members)._readable_graph()


KITCHENS = st.builds(
    kitchen,
    st.fixed_dictionaries({name: st.integers(1, 4) for name in TAKES}),
    st.fixed_dictionaries(dict.fromkeys(("mix", "count", "serve"), POLICIES)),
)


@given(graphs() | KITCHENS)
def test_i5_every_step_event_and_way_is_in_the_picture(graph: Graph):
    picture = picture_of(graph)
    nodes = {node.id: node for node in picture.nodes}
    assert len(nodes) == len(picture.nodes) >= len(graph.steps)
    assert {edge.source for edge in picture.edges} | {e.target for e in picture.edges} <= set(nodes)
    labels = {label for edge in picture.edges for label in edge.labels}
    labels |= {node.label for node in picture.nodes}
    assert {shown(event.__name__) for event in graph.events} <= labels
    steps = dict(zip(graph.steps, (n for n in picture.nodes if is_step(n)), strict=True))
    for spec in graph.steps.values():
        assert steps[spec.name].label == shown(spec.name)
        for returned in spec.produces:
            for taker in graph.takers(returned):
                here, there = steps[spec.name].id, steps[taker.name].id
                assert is_way(picture, nodes, here, there, shown(returned.__name__))


def is_step(node: Node) -> bool:
    return node.kind in ("step", "join", "error_handler")


def is_way(picture: Picture, nodes: dict[str, Node], source: str, target: str, event: str) -> bool:
    """Return whether an event leads from one node to another, as a label or as a node between."""
    direct = [e for e in picture.edges if (e.source, e.target) == (source, target)]
    if any(event in edge.labels for edge in direct):
        return True
    out = {e.target for e in picture.edges if e.source == source}
    into = {e.source for e in picture.edges if e.target == target}
    return any(nodes[one].label == event for one in out & into if not is_step(nodes[one]))


def shown(name: str) -> str:
    """Return a name as it is shown."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in name)


# --- Text ---


@given(graphs() | KITCHENS, st.integers(70, 120))
def test_i5_text_has_every_name_in_lines_of_the_width(graph: Graph, width: int):
    picture = picture_of(graph)
    text = plain(picture, width)
    for line in text.splitlines():
        assert len(line) <= width or len(line.split()) == 1
    words = " ".join(text.split())
    names = [node.label for node in picture.nodes]
    names += [label for edge in picture.edges for label in edge.labels]
    assert [name for name in names if " ".join(name.split()) not in words] == []


# --- Mermaid ---

_TEXT = r'"(?:[^\W_]|[ _,.:+\-=()]|#\d+;|<br/>)*"'
_BOX = rf"(?:\(\[{_TEXT}\]\)|\[{_TEXT}\]|\[\[{_TEXT}\]\]|\{{\{{{_TEXT}\}}\}}|>{_TEXT}\]|\[/{_TEXT}/\]|\({_TEXT}\))"
_ARROW = rf"(?:-->|==>|-\.->)(?:\|{_TEXT}\|)?"
_LOOKS = r"[a-z-]+:[#\w. ]+(?:,[a-z-]+:[#\w. ]+)*"
MERMAID_NODE = re.compile(rf"n(\d+){_BOX}:::\w+")
MERMAID_EDGE = re.compile(rf"n(\d+) {_ARROW} n(\d+)")
MERMAID_REST = re.compile(
    rf'---|title: "(?:[^"\\]|\\.)*"|flowchart LR|subgraph legend\["Legend"\]|direction LR|end'
    rf"|k\d+{_BOX}:::\w+|k\d+ ~~~ k\d+|e\d+\(\(\" \"\)\) {_ARROW} e\d+\(\(\" \"\)\)"
    rf"|classDef \w+ {_LOOKS}|class n\d+(?:,n\d+)* \w+|linkStyle \d+(?:,\d+)* {_LOOKS}"
    rf"|style legend {_LOOKS}"
)


@given(graphs() | KITCHENS)
def test_i5_mermaid_has_every_node_and_edge_and_no_name_is_syntax(graph: Graph):
    picture = picture_of(graph)
    lines = [line.strip() for line in mermaid(picture).split("\n")[:-1]]
    nodes = [line for line in lines if MERMAID_NODE.fullmatch(line)]
    edges = [match for line in lines if (match := MERMAID_EDGE.fullmatch(line))]
    rest = [line for line in lines if not MERMAID_NODE.fullmatch(line)]
    rest = [line for line in rest if not MERMAID_EDGE.fullmatch(line)]
    assert [line for line in rest if not MERMAID_REST.fullmatch(line)] == []
    numbers = {node.id: str(number) for number, node in enumerate(picture.nodes)}
    for line, node in zip(nodes, picture.nodes, strict=True):
        assert node.label in unescaped(line)
    assert [match.groups() for match in edges] == [
        (numbers[edge.source], numbers[edge.target]) for edge in picture.edges
    ]
    for match, edge in zip(edges, picture.edges, strict=True):
        assert all(label in unescaped(match.group()) for label in edge.labels)


def unescaped(line: str) -> str:
    return re.sub(r"#(\d+);", lambda match: chr(int(match.group(1))), line)


# --- DOT ---

needs_graphviz = pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz is not installed")
_QUOTED = r'"(?:[^"\\]|\\.)*"'
DOT_LEGEND = re.compile(r"cluster_legend|legend (?:form|end) \d+")
DOT_LINE = re.compile(
    rf"digraph {_QUOTED} \{{|subgraph cluster_legend \{{|\}}"
    rf"|(?:graph|node|edge|{_QUOTED}(?: -> {_QUOTED})?)(?: \[(?:\w+=(?:{_QUOTED}|[\w.]+) ?)+\])?"
)


@given(graphs() | KITCHENS)
def test_i5_no_name_is_syntax_in_dot(graph: Graph):
    for line in dot(picture_of(graph)).split("\n")[:-1]:
        assert DOT_LINE.fullmatch(line.strip())


@needs_graphviz
@settings(max_examples=25)
@given(graphs() | KITCHENS)
def test_i5_graphviz_reads_every_node_and_edge(graph: Graph):
    picture = picture_of(graph)
    read = json.loads(graphviz(dot(picture), "json0"))
    found = read.get("objects", ())
    boxes = {box["_gvid"]: box for box in found if not DOT_LEGEND.fullmatch(box["name"])}
    labels = [html.unescape(box["label"]).replace("\\\\", "\\") for box in boxes.values()]
    assert labels == ["\\n".join([node.label, *node.notes]) for node in picture.nodes]
    ids = dict(zip(boxes, (node.id for node in picture.nodes), strict=True))
    ways = [
        (ids[edge["tail"]], ids[edge["head"]])
        for edge in read.get("edges", ())
        if edge["tail"] in boxes
    ]
    assert sorted(ways) == sorted((edge.source, edge.target) for edge in picture.edges)


@needs_graphviz
@pytest.mark.parametrize("path", sorted(HERE.glob("*.dot")), ids=lambda path: path.name)
def test_graphviz_draws_the_pictures_that_are_kept(path: Path):
    assert graphviz(path.read_text("utf-8"), "svg").rstrip().endswith("</svg>")


def graphviz(text: str, kind: str) -> str:
    ran = subprocess.run(
        ["dot", f"-T{kind}"], input=text, capture_output=True, check=True, encoding="utf-8"
    )
    assert ran.stderr == ""
    return ran.stdout
