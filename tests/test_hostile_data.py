"""Hostile snapshots and files: a `ContextSerdeError` with a short text, in linear time at most (P4)."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import anyio
import pytest

from anyio_workflows import (
    Context,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)
from anyio_workflows.checkpoint import load_checkpoint, run_with_checkpoints
from anyio_workflows.errors import ContextSerdeError

from .hostile import HUGE, LONG, deep, refused
from .samples import Done, Item

pytestmark = pytest.mark.anyio


class Ask(Workflow):
    @step
    async def begin(self, ev: StartEvent) -> Item:
        return Item(n=1)

    @step
    async def ask(self, ctx: Context, ev: Item) -> StopEvent:
        await ctx.wait_for_event(HumanResponseEvent, InputRequiredEvent())
        return StopEvent()


class Fan(Workflow):
    @step
    async def split(self, ev: StartEvent) -> list[Item]:
        return [Item()]

    @step
    async def work(self, ev: Item) -> Done:
        await anyio.sleep(10)
        return Done()

    @step
    async def end(self, evs: list[Done]) -> StopEvent:
        return StopEvent(result=len(evs))


async def snapshot() -> dict[str, Any]:
    handler = Ask().run()
    await anext(handler.stream_events())
    data: dict[str, Any] = json.loads(json.dumps(handler.ctx.to_dict()))
    await handler.cancel_run()
    return data


def put(data: Any, path: tuple[str | int, ...], value: Any) -> Any:
    """Return a copy of some data with another value in one place."""
    data = place = copy.deepcopy(data)
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return data


WORK = ("work", "work", 0)
INTS = [10**400, -(10**400), HUGE, -HUGE, 2**53 + 1]


@pytest.mark.parametrize("number", INTS, ids=lambda number: f"{number.bit_length()}-bits")
@pytest.mark.parametrize(
    "path",
    [
        ("version",),
        ("work", "next_id"),
        (*WORK, "id"),
        (*WORK, "branch"),
        (*WORK, "attempt"),
        (*WORK, "elapsed"),
        (*WORK, "due_in"),
        (*WORK, "events"),
        (*WORK, "recoveries"),
    ],
    ids=lambda path: path[-1],
)
async def test_p4_integers_of_any_size_are_refused_where_they_make_no_sense(
    path: tuple[str | int, ...], number: int
) -> None:
    good = await snapshot()
    value: Any = {"ask": number} if path[-1] == "recoveries" else number
    data = put(good, path, value)
    if number == 2**53 + 1 and path[-1] in ("elapsed", "due_in"):
        Context.from_dict(Ask(), data)  # a long time, but one
        return
    error = refused(Context.from_dict, Ask(), data)
    assert str(path[-1]) in error.path
    tagged = {"$": "int", "value": hex(number)}
    value = {"ask": tagged} if path[-1] == "recoveries" else tagged
    refused(Context.from_dict, Ask(), put(good, path, value))


PLACES: list[tuple[tuple[str | int, ...], Any]] = [
    (("version",), LONG),
    (("version",), [LONG]),
    (("workflow",), [LONG]),
    (("state",), LONG),
    ((LONG,), 1),
    ((*WORK, "step"), LONG),
    ((*WORK, "step"), {LONG: 1}),
    ((*WORK, LONG), 1),
    ((*WORK, "recoveries"), {LONG: 1}),
    ((*WORK, "recoveries"), {"ask": LONG}),
    ((*WORK, "last_failed_at"), LONG),
    ((*WORK, "events", 0, "$"), LONG),
    ((*WORK, "events", 0, "value"), {LONG: 1}),
    ((*WORK, "events", 0, "value", "n"), LONG),
    ((*WORK, "waits", 0, "event_type"), {"$": "type", "value": LONG}),
    ((*WORK, "waits", 0, "event_type"), {"$": LONG, "value": 1}),
    (("work", "batches"), [LONG]),
    (("work", "sets"), [{"step": LONG, "queues": []}]),
    (("work", "buffers"), [{"step": LONG, "buffer_id": LONG, "expected": [], "kept": []}]),
]


@pytest.mark.parametrize(
    ("path", "value"), PLACES, ids=[f"{n}-{str(p[0][-1])[:20]}" for n, p in enumerate(PLACES)]
)
async def test_p4_long_texts_anywhere_are_refused_in_few_words(
    path: tuple[str | int, ...], value: Any
) -> None:
    refused(Context.from_dict, Ask(), put(await snapshot(), path, value))


async def test_p4_a_value_that_cannot_be_written_is_named_in_few_words() -> None:
    ctx = Context(Ask())
    for value in [
        {LONG: object()},
        [HUGE, object()],
        {"a": {HUGE: object()}},
        deep(300, lambda v: [v]),
    ]:
        await ctx.store.set("it", value)
        assert refused(ctx.to_dict).path.startswith("$")


async def test_p4_batches_may_be_nested_at_any_depth() -> None:
    handler = Fan(timeout=None).run()
    await anyio.sleep(1)
    data = handler.ctx.to_dict()
    await handler.cancel_run()
    (batch,) = data["work"]["batches"]
    outer, depth = batch["branches"], 3000
    data["work"]["batches"] = [
        {**batch, "outer": n - 1 if n else None, "branches": [{**outer[0], "id": n}]}
        for n in range(depth)
    ]
    data["work"]["work"][0]["branch"] = depth - 1
    workflow = Fan(timeout=None)
    ctx = Context.from_dict(workflow, json.loads(json.dumps(data)))
    assert ctx.to_dict() == data
    handler = workflow.run(ctx=ctx)
    await anyio.sleep(1)
    assert len(handler.ctx.to_dict()["work"]["batches"]) == depth
    assert await handler == 1


# --- Files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"version": 1, "wor',
        b'{"version": 1, "workflow": "\xff\xfe"}',
        b'\xef\xbb\xbf{"version": 1}',
        b"[" * 200_000,
        b'{"state":' * 200_000,
        b'{"version": ' + b"9" * 5000 + b"}",
        b'{"version": 1e999}',
        b'{"version": 1, "state": null, "work": null}',
        b'{"version": 1, "workflow": "x", "state": {"' + b"a" * 10**6 + b'": NaN}, "work": null}',
        b"\x00" * 1000,
    ],
    ids=lambda content: f"{content[:20]!r}",
)
@pytest.mark.usefixtures("no_threads")
async def test_p4_whatever_is_in_a_file_the_error_names_it(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "job.json"
    file.write_bytes(content)
    for call in (load_checkpoint, run_with_checkpoints):
        with pytest.raises(ContextSerdeError, match=r"job\.json") as caught:
            await call(Ask(), file)  # type: ignore[operator]
        assert len(str(caught.value)) <= 1000
        assert file.read_bytes() == content
