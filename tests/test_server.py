"""The server: runs over HTTP, asked in process."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("orjson")

from anyio_workflows import (
    Context,
    Event,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)

from .asking import Frame, asking

pytestmark = pytest.mark.anyio


class Order(StartEvent):
    item: str
    number: int = 1


class Progress(Event):
    text: str


class Needed(InputRequiredEvent):
    question: str


class Decision(HumanResponseEvent):
    approved: bool


class Buy(Workflow[str]):
    """Buy something, if somebody approves."""

    @step
    async def ask(self, ctx: Context, ev: Order) -> StopEvent:
        """Ask a person."""
        ctx.write_event_to_stream(Progress(text=f"{ev.number} x {ev.item}"))
        decision = await ctx.wait_for_event(Decision, Needed(question="Buy?"), timeout=None)
        if not decision.approved:
            raise ValueError("declined")
        return StopEvent(result=f"bought {ev.item}")


class Count(Workflow[int]):
    @step
    async def count(self, ctx: Context, ev: StartEvent) -> StopEvent:
        for n in range(ev.get("to", 3)):
            ctx.write_event_to_stream(Progress(text=str(n)))
        return StopEvent(result=ev.get("to", 3))


async def test_a_run_is_started_asked_answered_and_read():
    async with asking(Buy(timeout=None), Count()) as server:
        answered = await server.ask("POST", "/v1/workflows/buy/runs", {"input": {"item": "tea"}})
        assert answered.status == 201
        run = answered.json()
        assert answered.headers["location"] == f"/v1/runs/{run['id']}"
        path = answered.headers["location"]
        page = await server.get(f"{path}/events?after=1&wait=60", accept="application/json")
        assert [event["type"] for event in page["events"]] == ["Needed"]
        [question] = (await server.get(f"{path}/questions"))["questions"]
        assert question["step"] == "ask"
        assert question["question"] == {"type": "Needed", "data": {"question": "Buy?"}}
        assert question["schema"]["required"] == ["approved"]
        taken = await server.post(
            f"{path}/questions/{question['id']}", {"data": {"approved": True}}
        )
        assert taken == {"taken_by": ["ask"]}
        run = await server.get(f"{path}?wait=60")
        assert (run["status"], run["result"], run["last_seq"]) == ("completed", "bought tea", 3)
        assert run["steps"]["ask"]["done"] == 1


async def read_frames(server: Any, path: str, **headers: str) -> list[Frame]:
    async with server.streaming("GET", path, headers=headers) as streamed:
        assert streamed.status == 200
        return [frame async for frame in streamed.frames()]


async def test_a_stream_has_every_event_with_its_number_and_an_end():
    async with asking(Count()) as server:
        run = await server.post("/v1/workflows/count/runs?wait=60")
        frames = await read_frames(server, f"/v1/runs/{run['id']}/events")
        assert [frame.id for frame in frames] == ["1", "2", "3", "4", None]
        assert [frame.data["data"] for frame in frames[:4]] == [
            {"text": "0"},
            {"text": "1"},
            {"text": "2"},
            {"result": 3},
        ]
        assert frames[-1] == Frame("end", None, {"status": "completed", "last": 4})
        after = await read_frames(server, f"/v1/runs/{run['id']}/events?after=3")
        assert after == frames[3:]
        again = await read_frames(
            server, f"/v1/runs/{run['id']}/events?after=1", **{"last-event-id": "3"}
        )
        assert again == after
        answered = await server.ask("GET", f"/v1/runs/{run['id']}/events?after=4")
        assert (answered.status, answered.body) == (204, b"")


async def test_a_run_is_started_and_streamed_in_one_request():
    async with asking(Count()) as server:
        async with server.streaming(
            "POST",
            "/v1/workflows/count/runs",
            {"input": {"to": 1}},
            {"accept": "text/event-stream"},
        ) as streamed:
            assert streamed.status == 201
            frames = [frame async for frame in streamed.frames()]
        assert [frame.id for frame in frames] == ["1", "2", None]
        run = await server.get(streamed.headers["location"])
        assert run["result"] == 1
