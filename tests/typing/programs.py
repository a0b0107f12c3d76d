"""Programs as users write them: mypy, pyright, ty and pyrefly find nothing in them (E8).

What they are to refuse is in `api.py`, whose comments mypy and pyright understand.
"""

from __future__ import annotations

from typing import Annotated, Any

import attrs
from pydantic import BaseModel, Field

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
from anyio_workflows.collect import Collect, Opener, Take


class Page(Event):
    url: str
    depth: int = 0
    tags: list[str] = attrs.field(factory=list[str])


class Rated(Page):
    score: float


class Shelf(Event):
    get: int
    items: list[str]
    keys: dict[str, int]
    values: float = 0.0


class Topic(StartEvent):
    topic: str


class Finding(StopEvent):
    pages: list[Page]


class Flow(Workflow):
    @step
    async def begin(self, ctx: Context, ev: Topic) -> Page | None:
        ctx.write_event_to_stream(InputRequiredEvent(prompt="?"))
        answer = await ctx.wait_for_event(HumanResponseEvent)
        return Page(url=ev.topic, depth=1) if answer.response else None

    @step
    async def end(self, ev: Page) -> StopEvent:
        return StopEvent("done") if ev.depth else StopEvent(result=ev.url, why="so")


class Library(StartEvent):
    pages: list[str]


class Read(Event):
    words: int


class Reader(Workflow):
    @step
    async def split(self, ev: Library) -> list[Page]:
        return [Page(url=url) for url in ev.pages]

    @step(num_workers=4)
    async def read(self, ev: Page) -> Read | None:
        return Read(words=len(ev.url)) if ev.url else None

    @step
    async def few(
        self,
        events: Annotated[list[Read], Collect(Take(2, cancel=True))],
        origin: Annotated[Library, Opener()],
    ) -> StopEvent:
        missing: int = len(origin.pages) - len(events)
        return StopEvent(result=(missing, sum(event.words for event in events)))


class Chat(BaseModel):
    messages: list[str] = []


class Said(Event):
    text: str = Field(description="what was said")
    marks: list[str] = Field(default_factory=list)


class Talk(Workflow[Chat]):
    types = (Chat,)

    @step
    async def say(self, ctx: Context[Chat], ev: StartEvent) -> StopEvent:
        async with ctx.store.edit_state() as chat:
            chat.messages = [*chat.messages, Said(text="hello").text]
        await ctx.store.set_state(Chat(messages=["hi"]))
        state: Chat = await ctx.store.get_state()
        return StopEvent(result=state)


def constructors() -> list[Event]:
    return [
        Page(url="a"),
        Rated(url="a", score=1),
        Shelf(get=1, items=["b"], keys={}),
        Topic(topic="tea"),
        Finding(pages=[Page(url="a")]),
        StopEvent(),
        StopEvent("x"),
        StopEvent(result="x"),
    ]


def reads(page: Page, shelf: Shelf, start: StartEvent) -> tuple[Any, ...]:
    depth: int = page.replace(depth=2).depth
    total: int = shelf.get + 1
    first: str = shelf.items[0]
    return depth, total, first, page.get("url"), list(page.keys()), page["url"], start.anything


async def runs() -> None:
    handler = Flow(timeout=5).run(topic="tea")
    async for ev in handler.stream_events():
        if isinstance(ev, Page):
            print(ev.url, "url" in ev, list(ev))
    print(await handler, await Flow().run(start_event=Topic(topic="tea")))
