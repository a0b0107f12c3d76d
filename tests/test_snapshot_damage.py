"""Snapshots that are damaged or hostile are refused, or run to an end (rule P4).

They are made from the files that `test_snapshot_format` checks, which know its classes by their tags.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import anyio
import attrs
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from anyio_workflows import Context, Event, StopEvent, WorkflowHandler, WorkflowTimedOutEvent
from anyio_workflows.errors import ContextSerdeError

from .conftest import BACKENDS
from .running import run_virtually
from .test_snapshot_format import MOMENTS, VERSION, Answer, golden

# --- What is refused --------------------------------------------------------------------------------


def part(name: str) -> str:
    return f"{Answer.__module__}:{name}"


def changed(name: str, path: str, value: Any) -> Any:
    """Return a file with another value at a path like `work.work.0.id`; `...` deletes it."""
    data = golden(name)
    *keys, last = [int(key) if key.isdecimal() else key for key in path.split(".")]
    holder = data
    for key in keys:
        holder = holder[key]
    if value is ...:
        del holder[last]
    else:
        holder[last] = value
    return data


def item(name: str, **fields: Any) -> Any:
    return {"$": part(name), "value": fields}


def refusal(name: str, data: Any, types: Sequence[type] = (Answer,)) -> ContextSerdeError:
    Context.from_dict(MOMENTS[name].make(), golden(name), types)  # imports what reads snapshots
    before = {*sys.modules}
    with pytest.raises(ContextSerdeError) as caught:
        Context.from_dict(MOMENTS[name].make(), data, types)
    assert {*sys.modules} == before
    return caught.value


@pytest.mark.parametrize(
    "data", [None, {}, [], "", 1, "{}", [["version", 1]], object(), {"version"}]
)
def test_p4_what_is_no_snapshot_is_refused(data: Any) -> None:
    error = refusal("start", data)
    assert error.path == "$"
    assert ("no snapshot: there is no 'version'" in error.problem) == (data == {})


@pytest.mark.parametrize("version", [{}, {"version": 1}, {"version": 2}])
def test_p4_a_snapshot_of_llama_index_workflows_is_called_by_its_name(version: Any) -> None:
    error = refusal("start", {**version, "is_running": True, "state": {}, "workers": {}})
    assert error.path == "$"
    assert error.problem.startswith("this is a snapshot of llama-index-workflows")


@pytest.mark.parametrize("version", [0, -1, True, 1.0, "1", None, [1], math.nan])
def test_p4_a_version_that_never_was_is_refused(version: Any) -> None:
    error = refusal("start", changed("start", "version", version))
    assert (error.path, error.problem[:8]) == ("$.version", "expected")


def test_p4_a_newer_version_is_refused_before_anything_else_is_looked_at() -> None:
    error = refusal("start", {"version": VERSION + 1, "whatever": object()})
    assert error.path == "$.version"
    assert (
        f"in version {VERSION + 1} of the format; this release reads versions up to {VERSION}"
        in error.problem
    )


CALLABLES = [
    "os:system",
    "builtins:eval",
    "subprocess:Popen",
    "antigravity:fly",
    "this:s",
    "anyio_workflows.workflow:Workflow",
    "tests.test_snapshot_format:write_missing",
    "tests.test_snapshot_format:Row.first",
    "tests.test_snapshot_format:MOMENTS",
    "python/object/apply:os.system",
    "type",
    "object",
    "",
    ":",
]


@pytest.mark.parametrize("tag", CALLABLES)
@pytest.mark.parametrize("value", [{}, [], "echo", {"args": ["echo"]}, None])
@pytest.mark.parametrize("path", ["state", "work.work.0.events.0", "work.work.0.last_error"])
def test_p4_names_of_code_are_unknown_names(tag: str, value: Any, path: str) -> None:
    error = refusal("running", changed("running", path, {"$": tag, "value": value}))
    assert error.path.startswith("$." + path.replace(".0", "[0]"))
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("tag", CALLABLES)
def test_p4_names_of_exceptions_are_no_code_either(tag: str) -> None:
    value = {"type": tag, "text": "?", "args": ["echo"]}
    data = changed("retry_delay", "work.work.0.last_error", {"$": "exception", "value": value})
    context = Context.from_dict(MOMENTS["retry_delay"].make(), data)
    assert context.to_dict()["work"]["work"][0]["last_error"]["value"]["type"] == tag
    assert "antigravity" not in sys.modules


EMPTY_BATCH = {"outer": 1, "branches": [], "arrived": {}, "recoveries": {}, "cancelled": False}
"""Nothing would ever end it, nor the batch around it."""


@attrs.frozen
class Damage:
    """What stands where in a file, the problem that is found, and its path if it is another one."""

    name: str
    where: str
    value: Any
    problem: str
    path: str = attrs.Factory(lambda self: place(self.where), takes_self=True)


def place(where: str) -> str:
    """Return the path to a place as errors have it."""
    keys = [key for key in where.split(".") if key not in ("$", "value")]
    return "$" + "".join(f"[{key}]" if key.isdecimal() else f".{key}" for key in keys)


DAMAGE = [
    # what is missing, and what is too much
    Damage("start", "workflow", ..., "missing"),
    Damage("start", "state", ..., "missing"),
    Damage("start", "work", ..., "missing"),
    Damage("start", "extra", 1, "no such field"),
    Damage("start", "work.work.0.attempt", ..., "missing"),
    Damage("start", "work.work.0.attemps", 1, "did you mean 'attempt'"),
    # unknown names, with hints
    Damage("start", "work.work.0.step", "frist", "did you mean 'first'"),
    Damage("start", "work.work.0.step", "run", "Row has no step 'run'"),
    Damage("start", "work.work.0.events.0.$", part("Itme"), f"'{part('Itme')}': '{part('Item')}'"),
    Damage("sets", "work.sets.0.step", "piar", "did you mean 'pair'"),
    Damage(
        "sets_of_branches", "work.batches.0.branches.0.sets.0.step", "piar", "did you mean 'pair'"
    ),
    Damage("collected", "work.buffers.0.step", "wrok", "did you mean 'work'"),
    Damage("batches", "work.batches.0.arrived", {"ouetr": []}, "did you mean 'outer'"),
    Damage("batches", "work.batches.0.arrived", {"work": []}, "joins no batch"),
    Damage("fired", "work.batches.0.arrived", {"work": None}, "joins no batch"),
    # wrong shapes
    Damage("start", "work", [], "expected"),
    Damage("start", "work.work", {}, "expected"),
    Damage("start", "work.work.0", None, "expected"),
    Damage("start", "work.work.0.id", "1", "expected int"),
    Damage("start", "work.work.0.id", True, "expected int"),
    Damage("start", "work.work.0.id", 1.0, "expected int"),
    Damage("start", "work.work.0.events", {}, "expected"),
    Damage("start", "work.work.0.events.0", {"of": "a"}, "does not take Event"),
    Damage(
        "start",
        "work.work.0.recoveries",
        {"first": "1"},
        "expected int",
        path="$.work.work[0].recoveries.first",
    ),
    Damage("start", "work.input_asked", 1, "expected bool"),
    Damage("retry_delay", "work.work.0.last_error", "ValueError", "expected"),
    Damage("retry_delay", "work.work.0.last_failed_at", "yesterday", "datetime"),
    Damage(
        "retry_delay",
        "work.work.0.last_error",
        {"$": "exception", "value": {"type": "SystemExit", "text": "", "args": []}},
        "expected",
    ),
    Damage("batches", "work.work.0.events.0.value.n", "2", "expected int"),
    Damage("typed_state", "state", {}, "expected Basket"),
    Damage("typed_state", "state.value.color", "blue", "expected one of 'red'"),
    Damage("typed_state", "state.value.items", "apple", "expected"),
    Damage("running", "state", [], "expected dict"),
    Damage("running", "state", item("Item", n=1), "expected dict"),
    # events where they do not fit
    Damage("start", "work.work.0.events", [], "takes 1, got 0"),
    Damage("start", "work.work.0.events.0", item("Item", n=1), "does not take Item"),
    Damage(
        "waits",
        "work.work.0.waits.0.event_type",
        {"$": "type", "value": "anyio_workflows._snapshot:Snapshot"},
        "event class",
    ),
    Damage(
        "waits", "work.work.0.waits.0.event_type", {"$": "type", "value": "os:system"}, "unknown"
    ),
    Damage(
        "waits",
        "work.work.0.waits.0.answer",
        {"$": "anyio_workflows.events:StartEvent", "value": {}},
        "StartEvent",
    ),
    Damage(
        "batches",
        "work.batches.0.arrived",
        {"outer": [item("Item", n=1)]},
        "does not take Item",
        path="$.work.batches[0].arrived.outer[0]",
    ),
    Damage(
        "sets",
        "work.sets.0.queues.1",
        [{"event": item("Mail", n=1), "recoveries": {}}],
        "does not take Mail",
        path="$.work.sets[0].queues[1][0].event",
    ),
    Damage("sets", "work.sets.0.queues", [[]], "step pair takes 2"),
    Damage(
        "sets",
        "work.sets.0",
        {"step": "begin", "queues": [[]]},
        "begin",
        path="$.work.sets[0].step",
    ),
    Damage("collected", "work.buffers.0.kept.0.event", 5, "expected"),
    Damage("openers", "work.batches.0.opener", None, "as 'origin' (Numbers), but there is none"),
    Damage("openers", "work.batches.1.opener", ..., "as 'origin' (Item), but there is none"),
    Damage("openers", "work.batches.1.opener", item("Part", n=2), "(Item), not Part"),
    Damage("openers", "work.batches.1.opener", {"n": 2}, "(Item), not Event"),
    Damage("openers", "work.batches.1.opener.value.n", "2", "expected int"),
    Damage("openers", "work.work.2.opener", None, "(Item), but there is none"),
    Damage("openers", "work.work.2.opener", item("Scored", n=2), "(Item), not Scored"),
    # ids that clash, branches that are not there
    Damage("batches", "work.work.1.id", 3, "3 is taken"),
    Damage("batches", "work.next_id", 4, "next_id", path="$.work.work[1].id"),
    Damage("batches", "work.work.0.branch", 9, "no branch 9"),
    Damage("batches", "work.batches.1.outer", 9, "no branch 9"),
    Damage("batches", "work.batches.1.outer", 2, "no branch 2"),
    Damage("batches", "work.batches.0.branches.1.id", 0, "a branch 0 already"),
    Damage(
        "batches",
        "work.batches",
        [*golden("batches")["work"]["batches"], EMPTY_BATCH],
        "at least one branch",
        path="$.work.batches[2].branches",
    ),
    # counts and times out of range
    Damage("start", "work.work.0.attempt", 0, "count from 1"),
    Damage("start", "work.work.0.id", 0, "0 is"),
    Damage(
        "finished",
        "work",
        {**golden("sets")["work"], "next_id": 0, "sets": []},
        "count from 1",
        path="$.work.next_id",
    ),
    Damage("recovered", "work.work.0.recoveries.recover", -1, "got -1"),
    Damage("retry_delay", "work.work.0.elapsed", math.nan, "expected"),
    Damage("retry_delay", "work.work.0.due_in", math.inf, "expected"),
    Damage(
        "retry_delay", "work.work.0.due_in", {"$": "float", "value": "nan"}, "number of seconds"
    ),
    Damage(
        "retry_delay", "work.work.0.elapsed", {"$": "float", "value": "inf"}, "number of seconds"
    ),
    Damage("retry_delay", "work.work.0.elapsed", -1, "got -1"),
    Damage("running", "state.seen", [math.nan], "no JSON value", path="$.state.seen[0]"),
    Damage("questions", "work.events_read", -1, "got -1"),
    Damage("questions", "work.events_read", None, "expected int"),
    Damage("questions", "work.questions.0.number", 0, "count from 1"),
    Damage("questions", "work.questions.0.event", item("Answer"), "InputRequiredEvent"),
    Damage("questions", "work.work.0.waits.0.question_number", -1, "got -1"),
    Damage("questions", "work.work.0.waits.0.number", -1, "below 1"),
    Damage("questions", "work.work.0.waits.1.number", 0, "below 1"),
    Damage("questions", "work.work.0.waits.1.number", 1, "1 is taken"),
    Damage("questions", "work.work.0.waits.0.number", True, "expected int"),
    Damage("questions", "work.work.0.waits.0.since", "2024-05-01T12:00:00", "UTC offset"),
    Damage("questions", "work.work.0.waits.0.since", "today", "datetime"),
    Damage(
        "questions",
        "work.work.0.waits.0.question",
        {"$": "anyio_workflows.events:StopEvent", "value": {}},
        "cannot ask with StopEvent",
    ),
    Damage("failed", "failed.next_id", 0, "count from 1"),
    Damage("failed", "failed.work.0.step", "secnd", "did you mean 'second'"),
    Damage("failed", "failed.work.0.events", [], "takes 1, got 0"),
    Damage("failed", "work", golden("start")["work"], "there is work left", path="$.failed"),
    # two of what there is one of
    Damage(
        "sets",
        "work.sets",
        golden("sets")["work"]["sets"] * 2,
        "there already",
        path="$.work.sets[1].step",
    ),
    Damage(
        "collected",
        "work.buffers",
        golden("collected")["work"]["buffers"] * 2,
        "has a buffer None already",
        path="$.work.buffers[1]",
    ),
]


@pytest.mark.parametrize(
    "damage", DAMAGE, ids=[f"{n}-{one.name}-{one.where}" for n, one in enumerate(DAMAGE)]
)
def test_p4_damage_is_refused_with_its_place(damage: Damage) -> None:
    error = refusal(damage.name, changed(damage.name, damage.where, damage.value))
    assert error.path == damage.path
    assert damage.problem in error.problem


def test_p4_an_unknown_type_hints_at_types() -> None:
    stranger = {"$": "type", "value": part("Answr")}
    error = refusal("waits", changed("waits", "work.work.0.waits.0.event_type", stranger), types=())
    assert error.path == "$.work.work[0].waits[0].event_type"
    assert f"renamed={{{part('Answr')!r}: {part('Answer')!r}}}" in error.problem
    assert "types=[...]" in error.problem


@pytest.mark.parametrize("depth", [200, 5_000, 200_000])
@pytest.mark.parametrize("wrap", [lambda data: [data], lambda data: {"a": data}])
def test_p4_huge_nesting_is_refused(depth: int, wrap: Callable[[Any], Any]) -> None:
    deep: Any = 1
    for _ in range(depth):
        deep = wrap(deep)
    for path in ("state", "work.work.0.events.0.value.of", "work.work.0.recoveries"):
        error = refusal("start", changed("start", path, deep))
        assert "nested" in error.problem
    while deep != 1:  # taken apart here, not by a destructor that recurses
        (deep,) = deep if isinstance(deep, list) else deep.values()


# --- Whatever it is: read and run to an end, or refused ---------------------------------------------


def places(data: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every container in some data, with each of its keys."""
    if isinstance(data, dict | list):
        for key in data if isinstance(data, dict) else range(len(data)):
            yield data, key
            yield from places(data[key])


leaves = (
    st.none()
    | st.booleans()
    | st.integers(-2, 12)
    | st.sampled_from([10**400, -(10**20), 1e308, -1e308, math.nan, math.inf, 0.5, -0.0])
    | st.sampled_from(["", "$", "value", "os:system", "work", "pair", "join", "0", "\ud800"])
    | st.sampled_from([part("Item"), part("Mail"), part("Answer"), "type", "exception", "dict"])
)
junk = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["$", "value", "n", "id", "step"]), inner, max_size=3)
        | st.builds(lambda tag, value: {"$": tag, "value": value}, leaves, inner)
    ),
    max_leaves=6,
)


def alike(data: Any, holder: Any, key: Any) -> st.SearchStrategy[Any]:
    """Return values that could be in this place, or are in one of the same name or type."""
    value = holder[key]
    if isinstance(value, bool):
        return st.just(not value)
    if isinstance(value, int | float):
        return st.integers(-1, 9)
    return st.sampled_from(
        [
            copy.deepcopy(other[where])
            for other, where in places(data)
            if type(other[where]) is type(value)
            and (where == key or type(where) is int is type(key))
        ]
    )


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, Any]:
    """Return the name of a file, and what a few accidents made of it; in half of them, gentle ones."""
    name, gentle = draw(st.sampled_from([*MOMENTS])), draw(st.booleans())
    data = golden(name)
    for _ in range(draw(st.integers(1, 4))):
        found = [
            (holder, key)
            for holder, key in places(data)
            if not gentle
            or isinstance(holder, list)
            or key not in ("version", "step", "$", "value")
        ]
        if not found:
            break
        holder, key = draw(st.sampled_from(found))
        accidents = ["alike"]
        if isinstance(holder, list):
            accidents += ["delete", "copy", "truncate"]
        if not gentle:
            accidents += ["replace", "delete", "insert" if isinstance(holder, list) else "add"]
        match draw(st.sampled_from(accidents)):
            case "alike":
                holder[key] = draw(alike(data, holder, key))
            case "replace":
                holder[key] = draw(junk)
            case "delete":
                del holder[key]
            case "copy":
                holder.append(copy.deepcopy(holder[key]))
            case "truncate":
                del holder[key:]
            case "insert":
                holder.insert(key, draw(junk))
            case "add":
                holder[draw(st.sampled_from(["$", "value", "n", "id", "extra"]))] = draw(junk)
    assume(data != golden(name))
    return name, data


class Complaints(logging.Handler):
    """Gathers what the library logs as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record.getMessage())


async def resume(name: str, data: Any) -> None:
    """Refuse it, or go on from it to an end."""
    moment = MOMENTS[name]
    refused = None
    try:
        handler = moment.load(data)
    except ContextSerdeError as error:
        refused = error
    if refused is not None:
        assert refused.path.startswith("$")
        return
    again = json.loads(json.dumps(handler.ctx.to_dict(), allow_nan=False))
    Context.from_dict(moment.make(), again, [Answer])
    await send_all_left(handler, moment.to_send)
    with anyio.fail_after(5000):
        events = [event async for event in handler.stream_events()]
    assert [event for event in events if isinstance(event, StopEvent)] == events[-1:]
    if isinstance(events[-1], WorkflowTimedOutEvent):
        again = json.loads(json.dumps(handler.ctx.to_dict(), allow_nan=False))
        Context.from_dict(moment.make(), again, [Answer])


async def send_all_left(handler: WorkflowHandler[Any], events: Sequence[Event]) -> None:
    for event in events:
        await anyio.sleep(1)
        if not handler.is_done():
            await handler.send_event(event)


def watched(backend: str, act: Callable[[], Awaitable[None]]) -> None:
    """Run it; nothing may break inside, and nothing be imported that data has named."""
    complaints, log = Complaints(), logging.getLogger("anyio_workflows")
    log.addHandler(complaints)
    try:
        run_virtually(backend, act)
    finally:
        log.removeHandler(complaints)
    assert [text for text in complaints.found if "nobody saw" not in text] == []


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=300)
@given(damaged())
def test_p4_damaged_snapshots_are_refused_or_run_to_an_end(
    backend: str, found: tuple[str, Any]
) -> None:
    watched(backend, lambda: resume(*found))


@settings(max_examples=200)
@given(st.sampled_from([*MOMENTS]), junk, st.booleans())
def test_p4_random_json_is_refused(name: str, data: Any, versioned: bool) -> None:
    if isinstance(data, dict) and versioned:
        data["version"] = VERSION
    assert refusal(name, data).path.startswith("$")


# --- Hostile values in every place ------------------------------------------------------------------

HOSTILE: list[Any] = [
    16**6000,
    -(10**400),
    "a" * 5000,
    {"$": "c" * 5000, "value": 1},
    {"$": "set", "value": [n * sys.hash_info.modulus for n in range(1100)]},
]


@pytest.mark.parametrize("name", MOMENTS)
def test_p4_hostile_values_in_any_place_load_or_are_refused_in_few_words(name: str) -> None:
    moment, data = MOMENTS[name], golden(name)
    for holder, key in list(places(data)):
        good = holder[key]
        for value in HOSTILE:
            holder[key] = value
            try:
                context = Context.from_dict(moment.make(), data, [Answer])
            except ContextSerdeError as error:
                assert len(str(error)) <= 1000  # noqa: PT017
            else:
                json.dumps(context.to_dict())
        holder[key] = good
