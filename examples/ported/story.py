"""A choose-your-own-adventure: a model writes the story, and a person decides how it continues.

    OPENAI_API_KEY=... python story.py "a lighthouse keeper who is afraid of the dark"
    OPENAI_API_KEY=none OPENAI_BASE_URL=http://localhost:11434/v1 OPENAI_MODEL=llama3.2 python story.py

It needs `pip install ".[trio]" openai` in the checkout.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import AsyncIterator
from typing import Annotated

import anyio
import anyio.to_thread
import attrs
from openai import AsyncOpenAI
from pydantic import BaseModel, Field, ValidationError

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
from anyio_workflows.resource import Resource
from anyio_workflows.retry_policy import (
    retry_if_exception_type,
    retry_policy,
    stop_after_attempt,
    wait_none,
)

MODEL = os.environ.get("OPENAI_MODEL", "gpt-4o-mini")
SYSTEM = "You tell an interactive story, segment by segment, each with two to four choices."


class Segment(BaseModel):
    """What the model is asked for."""

    text: str = Field(description="one paragraph of the story")
    choices: list[str] = Field(description="what the reader can do next; none at the end")


# The events. A scene and the choice that answers it travel between the run and the reader.


class Premise(StartEvent):
    text: str
    segments: int = 3


class NextSegment(Event):
    pass


class Scene(InputRequiredEvent):
    text: str
    choices: list[str]
    problem: str = ""  # why the same scene is shown again


class Choice(HumanResponseEvent):
    number: int


# The state: everything that has happened so far.


@attrs.define
class Page:
    text: str
    choices: list[str]
    chosen: str = ""

    def __str__(self) -> str:
        return f"{self.text}\n\n> {self.chosen}" if self.chosen else self.text


@attrs.define
class Book:
    premise: str = ""
    segments: int = 0
    pages: list[Page] = attrs.field(factory=list)


async def open_client() -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI() as client:
        yield client  # closed when the run ends


ASK_AGAIN = retry_policy(  # the client itself retries when the network or the server fails
    retry=retry_if_exception_type(ValidationError), wait=wait_none(), stop=stop_after_attempt(3)
)


class Story(Workflow[str]):
    @step
    async def begin(self, ctx: Context[Book], ev: Premise) -> NextSegment:
        await ctx.store.set_state(Book(premise=ev.text, segments=ev.segments))
        return NextSegment()

    @step(retry_policy=ASK_AGAIN)
    async def write(
        self,
        ctx: Context[Book],
        ev: NextSegment,
        llm: Annotated[AsyncOpenAI, Resource(open_client)],
    ) -> Scene | StopEvent:
        book = await ctx.store.get_state()
        last = len(book.pages) + 1 == book.segments
        task = "Write the last segment: the story ends here." if last else "Write the next segment."
        prompt = "\n\n".join([book.premise, *map(str, book.pages), task])
        answer = await llm.chat.completions.parse(
            model=MODEL,
            messages=[{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}],
            response_format=Segment,
        )
        segment = answer.choices[0].message.parsed
        if segment is None:
            raise ValueError("the model declined to tell this story")
        book.pages.append(Page(segment.text, segment.choices))
        if last or not segment.choices:
            return StopEvent("\n\n".join(map(str, book.pages)))
        return Scene(text=segment.text, choices=segment.choices)

    @step
    async def choose(self, ctx: Context[Book], ev: Choice) -> NextSegment | Scene:
        page = (await ctx.store.get_state()).pages[-1]
        if not 1 <= ev.number <= len(page.choices):
            problem = f"There is no choice {ev.number}."
            return Scene(text=page.text, choices=page.choices, problem=problem)
        page.chosen = page.choices[ev.number - 1]
        return NextSegment()


# The reader, at a terminal. `input()` blocks, so it gets a thread of its own.


def ask(scene: Scene) -> Choice:
    print("", scene.problem or scene.text, "", sep="\n")
    for number, choice in enumerate(scene.choices, 1):
        print(f"  {number}. {choice}")
    answer = input("Your choice: ")
    return Choice(number=int(answer) if answer.strip().isdecimal() else 0)


async def main(premise: str) -> None:
    async with Story(timeout=None).run(text=premise) as handler:
        async for ev in handler.stream_events():
            if isinstance(ev, Scene):
                await handler.send_event(await anyio.to_thread.run_sync(ask, ev))
        print("", "The whole story:", "", await handler, sep="\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Tell a story together with a language model.")
    parser.add_argument("premise", nargs="?", default="a robot who finds a garden")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    args = parser.parse_args()
    anyio.run(main, args.premise, backend=args.backend)
