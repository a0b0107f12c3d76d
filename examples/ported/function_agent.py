"""A function-calling agent: the model calls tools, several at a time, until it can answer.

    OPENAI_API_KEY=... python function_agent.py "Which is warmer, Oslo or Rome?" "By how much?"
    OPENAI_API_KEY=none OPENAI_BASE_URL=http://localhost:11434/v1 OPENAI_MODEL=llama3.2 python ...

It needs `pip install ".[trio]" openai` in the checkout.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any, get_type_hints

import anyio
import attrs
from openai import AsyncOpenAI

from anyio_workflows import Context, Event, StartEvent, StopEvent, Workflow, step
from anyio_workflows.collect import Opener
from anyio_workflows.resource import Resource

MODEL = os.environ.get("OPENAI_MODEL", "gpt-4o-mini")
JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}

Tool = Callable[..., Awaitable[object]]


def describe(tool: Tool) -> dict[str, Any]:
    """Describe a function to the model: its name, its docstring and its parameters."""
    hints = get_type_hints(tool)
    names = list(inspect.signature(tool).parameters)
    properties = {name: {"type": JSON_TYPES[hints[name]]} for name in names}
    parameters = {"type": "object", "properties": properties, "required": names}
    function = {"name": tool.__name__, "description": tool.__doc__, "parameters": parameters}
    return {"type": "function", "function": function}


class UserMessage(StartEvent):
    text: str


class AskModel(Event):
    turn: int = 0  # how many messages of the model came before, since the user's


class ToolCall(Event):
    id: str
    name: str
    arguments: str  # as the model wrote them


class ToolResult(Event):
    id: str
    content: str


class Used(Event):
    """For the stream: a tool was called."""

    call: str
    content: str


@attrs.define
class Chat:
    """The state: the messages in the form that the server takes. It outlives the run."""

    messages: list[dict[str, Any]] = attrs.field(factory=list)


async def open_client() -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI() as client:
        yield client  # closed when the run ends


class FunctionAgent(Workflow[str]):
    def __init__(self, tools: list[Tool], timeout: float = 120, turns: int = 12) -> None:
        super().__init__(timeout=timeout)
        self.turns = turns  # a model that finds no answer would go on, at your expense
        self.tools = {tool.__name__: tool for tool in tools}

    @step
    async def listen(self, ctx: Context[Chat], ev: UserMessage) -> AskModel:
        chat = await ctx.store.get_state()
        chat.messages.append({"role": "user", "content": ev.text})
        return AskModel()

    @step
    async def ask(
        self,
        ctx: Context[Chat],
        ev: AskModel,
        llm: Annotated[AsyncOpenAI, Resource(open_client)],
    ) -> list[ToolCall] | StopEvent:
        if ev.turn == self.turns:
            raise RuntimeError(f"no answer after {ev.turn} turns")
        messages: list[Any] = (await ctx.store.get_state()).messages
        tools: list[Any] = [describe(tool) for tool in self.tools.values()]
        answer = await llm.chat.completions.create(model=MODEL, messages=messages, tools=tools)
        message = answer.choices[0].message
        messages.append(message.model_dump(exclude_none=True))
        if not message.tool_calls:
            return StopEvent(message.content)
        return [
            ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
            for call in message.tool_calls
            if call.type == "function"
        ]

    @step(num_workers=4)  # at most four calls at a time
    async def call(self, ctx: Context[Chat], ev: ToolCall) -> ToolResult:
        try:
            content = str(await self.tools[ev.name](**json.loads(ev.arguments)))
        except Exception as error:  # for the model to read: it can try something else
            content = f"error: {error!r}"
        ctx.write_event_to_stream(Used(call=f"{ev.name}({ev.arguments})", content=content))
        return ToolResult(id=ev.id, content=content)

    @step
    async def collect(
        self,
        ctx: Context[Chat],
        results: list[ToolResult],
        asked: Annotated[AskModel, Opener()],  # what led to the calls
    ) -> AskModel:
        chat = await ctx.store.get_state()  # once, when every call of the message has its result
        chat.messages += [
            {"role": "tool", "tool_call_id": result.id, "content": result.content}
            for result in results
        ]
        return AskModel(turn=asked.turn + 1)


async def temperature(city: str) -> float:
    """Tell the temperature in a city, in degrees Celsius."""
    await anyio.sleep(0.1)  # a slow provider
    return {"oslo": 4.0, "rome": 19.5}[city.lower()]


async def subtract(a: float, b: float) -> float:
    """Subtract b from a."""
    return a - b


async def main(texts: list[str]) -> None:
    agent = FunctionAgent([temperature, subtract])
    ctx = Context[Chat](agent)  # one for all messages: the chat continues
    for text in texts:
        async with agent.run(ctx=ctx, text=text) as handler:
            async for ev in handler.stream_events():
                if isinstance(ev, Used):
                    print(f"{ev.call}: {ev.content}")
            print(await handler)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Talk with an agent that has tools.")
    parser.add_argument("text", nargs="*", default=["Which is warmer, Oslo or Rome?"])
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    args = parser.parse_args()
    anyio.run(main, args.text, backend=args.backend)
