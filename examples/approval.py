"""Ask a person for approval in the middle of a workflow, at the terminal.

    python approval.py
    python approval.py --item "a telescope" --price 1200 --backend trio

The step that asks is suspended in `ctx.wait_for_event()` until the answer comes, in the middle of
its code. It needs `pip install ".[trio]"` in the checkout.
"""

from __future__ import annotations

import argparse

import anyio
import anyio.to_thread

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

# The events. The question and its answer travel between the run and whoever holds its handler: here
# the terminal, elsewhere a chat window or a web page.


class PurchaseRequest(StartEvent):
    item: str
    price: float


class Approved(Event):
    item: str
    by: str


class ApprovalNeeded(InputRequiredEvent):
    question: str


class Decision(HumanResponseEvent):
    approved: bool
    by: str


# The workflow.


class Purchase(Workflow[str]):
    @step
    async def ask(self, ctx: Context, ev: PurchaseRequest) -> Approved | StopEvent:
        if ev.price < 50:
            return Approved(item=ev.item, by="the house rules")
        question = f"Buy {ev.item} for {ev.price:.2f}?"
        decision = await ctx.wait_for_event(
            Decision, ApprovalNeeded(question=question), timeout=None
        )
        if not decision.approved:
            return StopEvent(result=f"{decision.by} said no to {ev.item}.")
        return Approved(item=ev.item, by=decision.by)

    @step
    async def order(self, ev: Approved) -> StopEvent:
        return StopEvent(result=f"Ordered {ev.item}, approved by {ev.by}.")


# The terminal. `input()` blocks, so it gets a thread of its own and the event loop keeps running.


def decide(question: str) -> Decision:
    answer = input(f"{question} [y/n] ").strip().lower()
    while answer not in ("y", "yes", "n", "no"):
        answer = input("Please answer y or n: ").strip().lower()
    return Decision(approved=answer.startswith("y"), by=input("And who are you? ").strip())


async def run(item: str, price: float) -> str:
    async with Purchase(timeout=None).run(item=item, price=price) as handler:
        async for ev in handler.stream_events():
            if isinstance(ev, ApprovalNeeded):
                await handler.send_event(await anyio.to_thread.run_sync(decide, ev.question))
        return await handler


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Ask for approval of a purchase.")
    parser.add_argument("--item", default="a standing desk", help="default: %(default)s")
    parser.add_argument("--price", type=float, default=450.0, help="default: %(default)s")
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    args = parser.parse_args(argv)
    print(anyio.run(run, args.item, args.price, backend=args.backend))


if __name__ == "__main__":
    main()
