"""A ReAct agent: the model thinks in the open, uses tools, and remembers the conversation.

    OPENAI_API_KEY=... python react_agent.py "How long is a marathon in miles?" "And in feet?"
    OPENAI_API_KEY=none OPENAI_BASE_URL=http://localhost:11434/v1 OPENAI_MODEL=llama3.2 python ...

The tools are plain functions, and the model calls them in writing: no server has to support it.
It needs `pip install ".[trio]" openai` in the checkout.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import anyio
import attrs
from openai import AsyncOpenAI

from anyio_workflows import Context, Event, StartEvent, StopEvent, Workflow, step
from anyio_workflows.resource import Resource

MODEL = os.environ.get("OPENAI_MODEL", "gpt-4o-mini")
SYSTEM = """Answer the question with the help of tools. Each of your messages has one of two forms:

Thought: what you need to find out
Action: the name of a tool
Arguments: a JSON object

Thought: what you have found out
Answer: the answer

After an action you are told what was observed. The tools:

"""
ACTION = re.compile(r"Action:\s*(\w+)\s+Arguments:\s*(\{.*\})", re.DOTALL)
ANSWER = re.compile(r"Answer:\s*(.*)", re.DOTALL)


class Question(StartEvent):
    text: str


class Action(Event):
    tool: str
    arguments: dict[str, Any]
    turn: int


class Observation(Event):
    text: str
    source: str = ""  # the call that it comes from
    turn: int = 0  # how many messages of the model came before, since the question


class Delta(Event):
    """For the stream: a piece of what the model is thinking."""

    text: str


class Answer(StopEvent):
    text: str
    sources: list[str]


@attrs.define
class Memory:
    """The state. It outlives the run, so the next question can refer to this one."""

    chat: list[dict[str, str]] = attrs.field(factory=list)
    sources: list[str] = attrs.field(factory=list)  # of the answer to the present question


async def open_client() -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI() as client:
        yield client  # closed when the run ends


class ReActAgent(Workflow[Answer]):
    def __init__(
        self, tools: list[Callable[..., object]], timeout: float = 120, turns: int = 12
    ) -> None:
        super().__init__(timeout=timeout)
        self.turns = turns  # a model that finds no answer would go on, at your expense
        self.tools = {tool.__name__: tool for tool in tools}
        self.system = SYSTEM + "\n".join(
            f"{name}{inspect.signature(tool)}: {tool.__doc__}" for name, tool in self.tools.items()
        )

    @step
    async def listen(self, ctx: Context[Memory], ev: Question) -> Observation:
        await ctx.store.set("sources", [])
        return Observation(text=ev.text)

    @step
    async def think(
        self,
        ctx: Context[Memory],
        ev: Observation,
        llm: Annotated[AsyncOpenAI, Resource(open_client)],
    ) -> Action | Observation | Answer:
        if ev.turn == self.turns:
            raise RuntimeError(f"no answer after {ev.turn} turns")
        memory = await ctx.store.get_state()
        heard = {"role": "user", "content": ev.text}
        messages: list[Any] = [{"role": "system", "content": self.system}, *memory.chat, heard]
        said = ""
        async with await llm.chat.completions.create(
            model=MODEL, messages=messages, stream=True
        ) as chunks:
            async for chunk in chunks:
                for choice in chunk.choices:
                    if piece := choice.delta.content:
                        ctx.write_event_to_stream(Delta(text=piece))
                        said += piece
        # Only now: a call of the model that failed leaves no trace in the memory.
        memory.chat += [heard, {"role": "assistant", "content": said}]
        if ev.source:
            memory.sources.append(ev.source)
        if found := ANSWER.search(said):
            return Answer(text=found[1].strip(), sources=memory.sources)
        if found := ACTION.search(said):
            try:
                return Action(tool=found[1], arguments=json.loads(found[2]), turn=ev.turn + 1)
            except json.JSONDecodeError as error:
                problem = f"The arguments are not JSON: {error}"
        else:
            problem = "Neither an action nor an answer was found in the message."
        return Observation(text=problem, turn=ev.turn + 1)

    @step
    def act(self, ev: Action) -> Observation:  # a plain function: its thread may block
        if ev.tool not in self.tools:
            return Observation(text=f"There is no tool {ev.tool!r}.", turn=ev.turn)
        source = f"{ev.tool}({json.dumps(ev.arguments)})"
        try:
            observed = str(self.tools[ev.tool](**ev.arguments))
        except Exception as error:  # for the model to read, which may know better
            observed = repr(error)
        return Observation(text=f"Observation: {observed}", source=source, turn=ev.turn)


def convert(amount: float, unit: str, to: str) -> str:
    """Convert a length; the units are km, mi, m and ft."""
    meters = {"km": 1000.0, "mi": 1609.344, "m": 1.0, "ft": 0.3048}
    return f"{amount * meters[unit] / meters[to]:.2f} {to}"


async def main(questions: list[str]) -> None:
    agent = ReActAgent([convert])
    ctx = Context[Memory](agent)  # one for all questions: the memory
    for question in questions:
        print(f"\n{question}\n")
        async with agent.run(ctx=ctx, text=question) as handler:
            async for ev in handler.stream_events():
                if isinstance(ev, Delta):
                    print(ev.text, end="", flush=True)
            print("\n\nSources:", *(await handler).sources)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Answer questions with the help of tools.")
    parser.add_argument("question", nargs="*", default=["How long is a marathon in miles?"])
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    args = parser.parse_args()
    anyio.run(main, args.question, backend=args.backend)
