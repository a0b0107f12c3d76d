"""Stream the answer of a language model through a workflow, token by token.

Any server that speaks OpenAI's protocol will do, and either event loop:

    OPENAI_API_KEY=... python streaming_llm.py
    python streaming_llm.py --base-url http://localhost:11434/v1 --model llama3.2 --backend trio

It needs `pip install ".[trio]" openai` in the checkout.
"""

from __future__ import annotations

import argparse
import os
import sys

import anyio
from openai import AsyncOpenAI, OpenAIError

from anyio_workflows import (
    Context,
    Event,
    StartEvent,
    StopEvent,
    Workflow,
    WorkflowCancelledEvent,
    WorkflowFailedEvent,
    WorkflowTimedOutEvent,
    step,
)
from anyio_workflows.errors import WorkflowError

PROMPT = "Please give me the first 3 paragraphs of Moby Dick, a book in the public domain."


# The events. The first two lead from step to step; the third is for whoever watches the run.


class FirstEvent(Event):
    first_output: str


class SecondEvent(Event):
    second_output: str
    response: str


class ProgressEvent(Event):
    msg: str


# The workflow. Which step comes next is said by the annotations: `step_one` returns a `FirstEvent`,
# and `step_two` is the step that takes one.


class MyWorkflow(Workflow[str]):
    def __init__(self, llm: AsyncOpenAI, model: str, timeout: float = 60) -> None:
        super().__init__(timeout=timeout)
        self.llm = llm
        self.model = model

    @step
    async def step_one(self, ctx: Context, ev: StartEvent) -> FirstEvent:
        ctx.write_event_to_stream(ProgressEvent(msg="Step one is happening\n"))
        return FirstEvent(first_output="First step complete.")

    @step
    async def step_two(self, ctx: Context, ev: FirstEvent) -> SecondEvent:
        response = ""
        # `async with` hangs up when the block is left, however it is left: at the end of the
        # answer, when the provider fails, or when the run is cancelled or out of time. (Generators
        # inside the client are left to the loop; trio warns of that, with `python -X dev` only.)
        async with await self.llm.chat.completions.create(
            model=self.model, messages=[{"role": "user", "content": PROMPT}], stream=True
        ) as chunks:
            async for chunk in chunks:
                for choice in chunk.choices:
                    if token := choice.delta.content:
                        ctx.write_event_to_stream(ProgressEvent(msg=token))
                        response += token
        return SecondEvent(
            second_output="Second step complete, full response attached", response=response
        )

    @step
    async def step_three(self, ctx: Context, ev: SecondEvent) -> StopEvent:
        ctx.write_event_to_stream(ProgressEvent(msg="\nStep three is happening\n"))
        return StopEvent(result="Workflow complete.")


# The reader. A run that ends badly says so twice: its last event tells the one who reads the
# stream, and `await handler` raises the exception. What a step raised is raised as it is.


async def run(base_url: str | None, model: str, timeout: float) -> str:
    api_key = os.environ.get("OPENAI_API_KEY", "none")  # local servers take any key
    async with (
        AsyncOpenAI(base_url=base_url, api_key=api_key) as llm,
        # In a block of its own, the run is over before the client that it uses is closed.
        MyWorkflow(llm, model, timeout).run(first_input="Start the workflow.") as handler,
    ):
        async for ev in handler.stream_events():
            if isinstance(ev, ProgressEvent):
                print(ev.msg, end="", flush=True)
            elif isinstance(ev, WorkflowTimedOutEvent):
                print(f"\nWorkflow timed out after {ev.timeout}s")
            elif isinstance(ev, WorkflowCancelledEvent):
                print("\nWorkflow was cancelled")
            elif isinstance(ev, WorkflowFailedEvent):
                print(
                    f"\nStep '{ev.step_name}' failed after {ev.attempts} attempts: {ev.exception}"
                )
        return await handler


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Stream a language model's answer.")
    parser.add_argument("--base-url", help="the provider (default: OpenAI)")
    parser.add_argument("--model", default="gpt-4o-mini", help="default: %(default)s")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    parser.add_argument("--timeout", type=float, default=60, help="in seconds; default: 60")
    args = parser.parse_args(argv)
    try:
        result = anyio.run(run, args.base_url, args.model, args.timeout, backend=args.backend)
    except (OpenAIError, WorkflowError):
        sys.exit(1)  # the reader has said why
    print("Final result:", result)


if __name__ == "__main__":
    main()
