"""The graph of the steps and its faults, all reported together (V1); routing by type (R1)."""

from __future__ import annotations

from typing import Annotated, Any

import pytest

from anyio_workflows import (
    Context,
    Event,
    HumanResponseEvent,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)
from anyio_workflows.collect import Collect, Take
from anyio_workflows.errors import WorkflowError, WorkflowValidationError

from .samples import A, Answer, B, C, Question


class SubA(A):
    pass


class MyEvent(Event):
    pass


class MyStart(StartEvent):
    topic: str


class MyStop(StopEvent):
    total: int


def node(takes: Any, gives: Any, **options: Any) -> Any:
    async def probe(self: Any, ev: Any) -> Any: ...

    probe.__annotations__ = {"ev": takes, "return": gives}
    return step(**options)(probe)


def pair(one: Any, two: Any, gives: Any, **options: Any) -> Any:
    async def probe(self: Any, one: Any, two: Any) -> Any: ...

    probe.__annotations__ = {"one": one, "two": two, "return": gives}
    return step(**options)(probe)


def flow(**steps: Any) -> type[Workflow]:
    return type("Flow", (Workflow,), steps)


def faults(workflow: Workflow) -> list[str]:
    try:
        workflow.validate()
    except WorkflowValidationError as exc:
        return list(exc.faults)
    return []


class Chain(Workflow):
    @step
    async def one(self, ev: StartEvent) -> A | B: ...

    @step
    async def two(self, ctx: Context, ev: A) -> C | None: ...

    @step
    async def three(self, ev: B | C) -> StopEvent: ...


def test_v1_a_sound_graph_has_no_faults():
    assert Chain().validate() is False


def test_the_graph_lists_steps_and_events_in_the_order_of_definition():
    graph = Chain().graph
    assert graph.name == "Chain"
    assert list(graph.steps) == ["one", "two", "three"]
    assert graph.events == [StartEvent, A, B, C, StopEvent]
    assert graph.start_event_types == [StartEvent]
    assert graph.stop_event_types == [StopEvent]


def test_the_repr_of_a_graph_fits_in_a_line():
    assert repr(Chain().graph) == "<Graph of Chain: 3 steps, start StartEvent, stop StopEvent>"
    assert repr(flow()().graph) == "<Graph of Flow: 0 steps, start none, stop none>"
    two = flow(one=node(StartEvent | MyStart, StopEvent | MyStop))(disable_validation=True)
    assert repr(two.graph) == (
        "<Graph of Flow: 1 step, start StartEvent | MyStart, stop StopEvent | MyStop>"
    )


def test_the_repr_of_a_step_is_its_signature():
    collect = Annotated[list[B | C], Collect(Take(2))]
    cls = flow(
        one=node(StartEvent, A | list[B | C] | None), two=node(collect, A), three=pair(A, B, C)
    )
    assert list(map(repr, cls(disable_validation=True).graph.steps.values())) == [
        "<StepSpec one(ev: StartEvent) -> A | list[B | C] | None>",
        "<StepSpec two(ev: list[B | C]) -> A>",
        "<StepSpec three(one: A, two: B) -> C>",
    ]
    assert repr(Chain().graph.steps["two"]) == "<StepSpec two(ev: A) -> C | None>"


def test_the_repr_of_graph_and_step_is_bounded():
    long = type("L" * 100_000, (StartEvent,), {})
    graph = type("W" * 100_000, (Workflow,), {"one": node(long, StopEvent)})().graph
    assert len(repr(graph)) < 400
    assert len(repr(graph.steps["one"])) < 400


# --- R1: who takes what -----------------------------------------------------------------------


def test_r1_an_event_goes_to_every_step_that_accepts_exactly_its_type():
    cls = flow(one=node(A, None), two=node(A | B, None), three=node(SubA, None))
    graph = cls(disable_validation=True).graph
    assert [s.name for s in graph.takers(A)] == ["one", "two"]
    assert [s.name for s in graph.takers(SubA)] == ["three"]
    assert [s.name for s in graph.takers(Event)] == []


def test_r1_accept_event_subclasses():
    cls = flow(one=node(A, None, accept_event_subclasses=True), two=node(SubA, None))
    graph = cls(disable_validation=True).graph
    assert [s.name for s in graph.takers(SubA)] == ["one", "two"]
    assert [s.name for s in graph.takers(Event)] == []


def test_r1_accept_event_subclasses_satisfies_the_checks():
    steps = {"one": node(StartEvent, SubA), "two": node(A, StopEvent, accept_event_subclasses=True)}
    assert faults(flow(**steps)()) == []
    steps["two"] = node(A, StopEvent)
    assert [fault.split(",")[0] for fault in faults(flow(**steps)())] == [
        "step two accepts A",
        "step one returns SubA",
    ]


# --- V1: each fault ---------------------------------------------------------------------------

FAULTS = {
    "no steps": ({}, ["it has no steps; mark its methods with @step"]),
    "no start": (
        {"one": node(A, B), "two": node(B, A | StopEvent)},
        [
            "no step accepts StartEvent; annotate the first step with 'ev: StartEvent'",
            "step one cannot be reached from the start event; return A from a step that can",
            "step two cannot be reached from the start event; return B from a step that can",
        ],
    ),
    "several starts": (
        {"one": node(StartEvent, StopEvent), "two": node(MyStart, StopEvent)},
        ["its steps accept several start events (StartEvent, MyStart); keep one"],
    ),
    "no stop": (
        {"one": node(StartEvent, None)},
        ["no step returns StopEvent, so no run could end; let the last step return it"],
    ),
    "several stops": (
        {"one": node(StartEvent, StopEvent | MyStop)},
        ["its steps return several stop events (StopEvent, MyStop); keep one"],
    ),
    "stop accepted": (
        {"one": node(StartEvent, StopEvent), "two": node(StopEvent, None)},
        [
            "step two accepts StopEvent, but a stop event ends the run; return an event of your "
            "own to it"
        ],
    ),
    "never produced": (
        {"one": node(StartEvent, StopEvent), "two": node(A, StopEvent)},
        [
            "step two accepts A, which no step returns; return it from a step, or derive it from "
            "HumanResponseEvent if it comes from outside"
        ],
    ),
    "half never produced": (
        {"one": node(StartEvent, A), "two": node(A | B, StopEvent)},
        [
            "step two accepts B, which no step returns; return it from a step, or derive it from "
            "HumanResponseEvent if it comes from outside"
        ],
    ),
    "never consumed": (
        {"one": node(StartEvent, A | StopEvent)},
        [
            "step one returns A, which no step accepts; add a step for it, or write it to the "
            "stream instead of returning it"
        ],
    ),
    "unreachable": (
        {"one": node(StartEvent, StopEvent), "two": node(A, B), "three": node(B, A | StopEvent)},
        [
            "step two cannot be reached from the start event; return A from a step that can",
            "step three cannot be reached from the start event; return B from a step that can",
        ],
    ),
    "join without a list": (
        {"one": node(StartEvent, A), "two": node(list[A], StopEvent)},
        [
            "step two joins a list of A, but no list leads to it; let a step before it return a "
            "list of events"
        ],
    ),
    "join of another list": (
        {
            "one": node(StartEvent, list[A] | B),
            "two": node(A, None),
            "three": node(list[B], StopEvent),
        },
        [
            "step three joins a list of B, but no list leads to it; let a step before it return a "
            "list of events"
        ],
    ),
    "join across levels": (
        {
            "one": node(StartEvent, list[A]),
            "two": node(A, list[B] | C),
            "three": node(B, C),
            "four": node(list[C], StopEvent),
        },
        [
            "step four joins the lists of two and, one level up, those of one; give each level a "
            "join and events of its own"
        ],
    ),
    "list never consumed": (
        {"one": node(StartEvent, list[A | B]), "two": node(A, StopEvent)},
        [
            "step one returns B, which no step accepts; add a step for it, or write it to the "
            "stream instead of returning it"
        ],
    ),
    "join never produced": (
        {"one": node(StartEvent, StopEvent), "two": node(list[A], StopEvent)},
        [
            "step two accepts A, which no step returns; return it from a step, or derive it from "
            "HumanResponseEvent if it comes from outside",
            "step two joins a list of A, but no list leads to it; let a step before it return a "
            "list of events",
        ],
    ),
    "half a set never produced": (
        {"one": node(StartEvent, A), "two": pair(A, B, StopEvent)},
        [
            "step two accepts B, which no step returns; return it from a step, or derive it from "
            "HumanResponseEvent if it comes from outside"
        ],
    ),
    "dead end behind a join": (
        {
            "one": node(StartEvent, list[A] | StopEvent),
            "two": node(list[A], B),
            "three": node(B, None),
        },
        [
            "step two is a dead end: nothing that follows from B ends the run; let a step after "
            "it return StopEvent"
        ],
    ),
    "dead end": (
        {"one": node(StartEvent, A | StopEvent), "two": node(A, B), "three": node(B, A)},
        [
            "step two is a dead end: nothing that follows from B ends the run; let a step after "
            "it return StopEvent",
            "step three is a dead end: nothing that follows from A ends the run; let a step after "
            "it return StopEvent",
        ],
    ),
}


@pytest.mark.parametrize(("steps", "expected"), FAULTS.values(), ids=FAULTS)
def test_v1_each_fault_names_step_event_and_remedy(steps: dict[str, Any], expected: list[str]):
    assert faults(flow(**steps)()) == expected


def test_v1_all_faults_are_reported_together():
    cls = flow(
        one=node(StartEvent, A | MyStop),
        two=node(MyStart, StopEvent),
        three=node(B, StopEvent),
        four=node(StopEvent, None),
    )
    with pytest.raises(WorkflowValidationError) as caught:
        cls(workflow_name="tea").validate()
    text = str(caught.value)
    assert caught.value.where == "tea"
    assert text.startswith("tea has 5 faults:\n  1. ")
    for words in (
        "several start events",
        "several stop events",
        "step four accepts StopEvent",
        "step three accepts B",
        "step one returns A",
    ):
        assert words in text
    assert isinstance(caught.value, WorkflowError)


@pytest.mark.parametrize(
    "steps",
    [
        {"one": node(StartEvent, A), "two": node(A, StopEvent | A)},  # a loop with a way out
        {"one": node(StartEvent, StopEvent | None)},
        {"one": node(MyStart, MyStop)},
        {"one": node(StartEvent, Question), "two": node(Answer, StopEvent)},
        {"one": node(StartEvent, None), "two": node(HumanResponseEvent, StopEvent)},
        {"one": node(StartEvent, A), "two": node(A, None), "three": node(A, StopEvent)},
        {"one": node(StartEvent | A, A | StopEvent)},
        {"one": node(StartEvent, A | StopEvent), "two": node(A, None)},
        {"one": node(StartEvent, list[A]), "two": node(list[A], StopEvent)},
        {"one": node(StartEvent, list[A]), "two": node(A, StopEvent)},  # nobody joins it
        {"one": node(StartEvent, A | B), "two": pair(A, B, StopEvent)},
        {"one": node(StartEvent, A), "two": pair(A, HumanResponseEvent, StopEvent)},
    ],
)
def test_v1_what_is_sound(steps: dict[str, Any]):
    assert faults(flow(**steps)()) == []


# --- F2, F3: who joins what -------------------------------------------------------------------


def joins(**steps: Any) -> dict[str, list[str]]:
    """Return the names of the joins of each step that returns a list."""
    workflow = flow(**steps)()
    assert faults(workflow) == []
    specs = workflow.graph.steps.values()
    found = {spec.name: [join.name for join in workflow.graph.joins_of(spec)] for spec in specs}
    assert all(spec.returns_list or not found[spec.name] for spec in specs)
    return {name: found[name] for name in found if workflow.graph.steps[name].returns_list}


def test_f2_a_join_is_found_directly_and_at_the_end_of_a_chain():
    assert joins(
        split=node(StartEvent, list[A | B]),
        work=node(A, B | None),
        again=node(B, C | B),
        early=node(list[A], None),
        last=node(list[C], StopEvent),
    ) == {"split": ["early", "last"]}


def test_f2_nothing_leads_through_a_join():
    assert joins(
        split=node(StartEvent, list[A]),
        first=node(list[A], list[B]),
        second=node(list[B], StopEvent),
    ) == {"split": ["first"], "first": ["second"]}


def test_f2_a_list_may_lead_to_no_join():
    assert joins(split=node(StartEvent, list[A]), work=node(A, StopEvent | None)) == {"split": []}


def test_f3_nested_lists_have_joins_of_their_own():
    assert joins(
        outer=node(StartEvent, list[A]),
        inner=node(A, list[B]),
        work=node(B, B | SubA),
        join_inner=node(list[SubA], C),
        join_outer=node(list[C], StopEvent),
    ) == {"outer": ["join_outer"], "inner": ["join_inner"]}


def test_f3_what_an_inner_join_returns_in_a_list_is_one_level_deeper_again():
    assert joins(
        outer=node(StartEvent, list[A]),
        inner=node(A, list[B]),
        regroup=node(list[B], list[C]),
        join_regrouped=node(list[C], SubA),
        join_outer=node(list[SubA], StopEvent),
    ) == {"outer": ["join_outer"], "inner": ["regroup"], "regroup": ["join_regrouped"]}


def test_f3_two_producers_may_share_a_join():
    assert joins(
        fork=node(StartEvent, A | B),
        left=node(A, list[C]),
        right=node(B, list[C]),
        join=node(list[C], StopEvent),
    ) == {"left": ["join"], "right": ["join"]}


def test_f3_siblings_inside_a_batch_share_the_outer_join():
    assert joins(
        outer=node(StartEvent, list[A | B]),
        left=node(A, list[MyEvent]),
        right=node(B, list[SubA]),
        join_left=node(list[MyEvent], C),
        join_right=node(list[SubA], C),
        join_outer=node(list[C], StopEvent),
    ) == {"outer": ["join_outer"], "left": ["join_left"], "right": ["join_right"]}


def test_f3_two_joins_of_one_list():
    assert joins(
        split=node(StartEvent, list[A]),
        first=node(Annotated[list[A], Collect(Take(1))], StopEvent),
        every=node(list[A], None),
    ) == {"split": ["first", "every"]}


def test_f3_a_step_may_split_what_it_splits():
    assert joins(
        divide=node(StartEvent | A, list[A] | B),
        conquer=node(list[B], B | StopEvent),
    ) == {"divide": ["conquer"]}


def test_f4_a_set_passes_a_branch_on():
    assert joins(
        split=node(StartEvent, list[A]),
        fork=node(A, B | C),
        match=pair(B, C, SubA),
        join=node(list[SubA], StopEvent),
    ) == {"split": ["join"]}


def test_f2_joins_take_subclasses_where_the_step_says_so():
    assert joins(
        split=node(StartEvent, list[SubA]),
        join=node(list[A], StopEvent, accept_event_subclasses=True),
    ) == {"split": ["join"]}


@pytest.mark.parametrize(
    ("parameter", "cancels"),
    [
        (list[A], False),
        (Annotated[list[A], Collect()], False),
        (Annotated[list[A], Collect(Take(2))], False),
        (Annotated[list[A], Collect(Take(2, cancel=True))], True),
    ],
)
def test_f4_whether_a_join_cancels_branches(parameter: Any, cancels: bool):
    cls = flow(one=node(StartEvent, list[A]), two=node(parameter, StopEvent))
    assert cls().graph.cancels_branches is cancels


# --- T9: events from outside ------------------------------------------------------------------

INSIDE = {"one": node(StartEvent, A), "two": node(A, StopEvent)}


@pytest.mark.parametrize(
    ("steps", "outside"),
    [
        (INSIDE, False),
        ({"one": node(StartEvent, list[A]), "two": node(list[A], StopEvent)}, False),
        ({"one": node(StartEvent, list[A]), "two": node(A, StopEvent)}, False),
        ({"one": node(MyStart, A), "two": node(A, StopEvent)}, False),
        ({**INSIDE, "three": node(B, None)}, True),
        ({**INSIDE, "three": node(HumanResponseEvent, None)}, True),
        ({**INSIDE, "three": node(A | B, None)}, True),
        ({**INSIDE, "three": pair(A, B, None)}, True),
        ({**INSIDE, "three": node(Question, Answer), "four": node(Answer, None)}, True),
        ({"one": node(StartEvent, Answer), "two": node(Answer, StopEvent)}, False),
        ({"one": node(StartEvent, SubA), "two": node(A, StopEvent)}, True),
        (
            {
                "one": node(StartEvent, SubA),
                "two": node(A, StopEvent, accept_event_subclasses=True),
            },
            False,
        ),
    ],
)
def test_t9_whether_the_graph_takes_events_from_outside(steps: dict[str, Any], outside: bool):
    assert flow(**steps)(disable_validation=True).graph.takes_outside_events is outside


# --- V1: leaving checks out -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "check"),
    [
        ("never produced", "reachability"),
        ("half never produced", "reachability"),
        ("unreachable", "reachability"),
        ("never consumed", "terminal_event"),
        ("dead end", "dead_end"),
    ],
)
def test_v1_skip_graph_checks_on_the_workflow(case: str, check: Any):
    cls = flow(**FAULTS[case][0])
    assert faults(cls(skip_graph_checks=[check])) == []
    assert faults(cls(skip_graph_checks=check)) == []
    others = {"reachability", "terminal_event", "dead_end"} - {check}
    assert faults(cls(skip_graph_checks=others)) == FAULTS[case][1]
    assert faults(cls()) == FAULTS[case][1]


def test_v1_skip_graph_checks_on_one_step_leaves_the_others_checked():
    cls = flow(
        one=node(StartEvent, StopEvent),
        two=node(A, StopEvent, skip_graph_checks=["reachability"]),
        three=node(B, StopEvent),
    )
    assert [fault.split(",")[0] for fault in faults(cls())] == ["step three accepts B"]


@pytest.mark.parametrize(
    "steps",
    [
        {"one": node(StartEvent, A | StopEvent, skip_graph_checks=["terminal_event"])},
        {
            "one": node(StartEvent, A | StopEvent),
            "two": node(A, B, skip_graph_checks=["dead_end"]),
            "three": node(B, A, skip_graph_checks=["dead_end"]),
        },
    ],
)
def test_v1_skip_graph_checks_on_steps(steps: dict[str, Any]):
    assert faults(flow(**steps)()) == []


@pytest.mark.parametrize("case", ["join without a list", "join across levels"])
def test_v1_joins_are_checked_whatever_is_skipped(case: str):
    skip: Any = ["reachability", "terminal_event", "dead_end"]
    steps, expected = FAULTS[case]
    assert faults(flow(**steps)(skip_graph_checks=skip)) == expected


def test_v1_start_and_stop_are_checked_whatever_is_skipped():
    skip: Any = ["reachability", "terminal_event", "dead_end"]
    assert len(faults(flow(one=node(A, B))(skip_graph_checks=skip))) == 2


def test_v1_validating_again_gives_the_same_faults():
    workflow = flow(one=node(StartEvent, None))()
    assert faults(workflow) == faults(workflow) != []
