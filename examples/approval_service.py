"""An approval that survives restarts: a question that stays open until somebody answers it.

    python approval_service.py              # it asks, and waits; stop it with Ctrl-C or kill -9, and start it again
    python approval_service.py answer yes   # in another terminal, or in the same one after Ctrl-C

The run is kept in an SQLite database beside this file. The first process reserves the item, asks, and waits. When it is
started again it finds the run of this order: nothing is reserved twice, and the question is still open. The answer
may come while it runs, or while it does not: then the process that answers finishes the order.

`--order 18` begins another one. It needs `pip install ".[trio]"` in the checkout, and no account, key or server.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import anyio

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
from anyio_workflows.errors import UnknownRunError
from anyio_workflows.runtime import Runtime

# The events. All of them are kept: those between the steps, and those of the public stream.


class PurchaseRequest(StartEvent):
    item: str
    price: float


class Reserved(Event):
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


class Progress(Event):
    """For whoever watches the order."""

    text: str


# The workflow. Its steps do not know that they are kept.


class Purchase(Workflow[str]):
    @step
    async def reserve(self, ctx: Context, ev: PurchaseRequest) -> Reserved:
        # What has an effect stands in a step of its own, before the one that waits: a step that waits when its
        # process dies starts over.
        ctx.write_event_to_stream(Progress(text=f"{ev.item} is reserved"))
        return Reserved(item=ev.item, price=ev.price)

    @step
    async def ask(self, ctx: Context, ev: Reserved) -> Approved | StopEvent:
        question = ApprovalNeeded(question=f"Buy {ev.item} for {ev.price:.2f}?")
        decision = await ctx.wait_for_event(Decision, question, timeout=None)
        if not decision.approved:
            return StopEvent(result=f"{decision.by} said no to {ev.item}.")
        return Approved(item=ev.item, by=decision.by)

    @step
    async def order(self, ev: Approved) -> StopEvent:
        # A shop would be given `ctx.idempotency_key`, which is the same in each attempt of this step, after crashes too.
        return StopEvent(result=f"Ordered {ev.item}, approved by {ev.by}.")


# The two commands. Both open the database; the order is executed by whichever comes first, and if that process dies,
# by the other one.


async def watch(database: str, order: str, item: str, price: float) -> None:
    """Start the order, or find it, and print what has happened so far, and what happens from now on."""
    async with Runtime(database, workflows=[Purchase(timeout=None)]) as runtime:
        run = await runtime.start(Purchase, run_id=order, item=item, price=price)
        print(f"{order} has {run.info.last_seq} events so far", flush=True)
        async for record in run.records():
            match record.event:
                case Progress(text=text):
                    print(f"{record.seq}. {text}", flush=True)
                case ApprovalNeeded(question=question):
                    print(f"{record.seq}. {question} (answer yes, or answer no)", flush=True)
        print(await run)


async def answer(database: str, order: str, approved: bool, by: str) -> None:
    """Answer the open question of an order, wherever that is executed, and wait for its end."""
    async with Runtime(database, workflows=[Purchase(timeout=None)]) as runtime:
        try:
            run = await runtime.get(order)
        except UnknownRunError as error:
            sys.exit(str(error))
        waits = await run.open_waits()
        if waits:
            await run.send_event(Decision(approved=approved, by=by), wait=waits[0].id)
        else:
            print(f"{order} has no open question, it is {run.info.status}", flush=True)
        print(await run)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", nargs="?", choices=["watch", "answer"], default="watch")
    parser.add_argument("decision", nargs="?", choices=["yes", "no"])
    parser.add_argument("--order", default="17", help="default: %(default)s")
    parser.add_argument("--item", default="a standing desk", help="default: %(default)s")
    parser.add_argument("--price", type=float, default=450.0, help="default: %(default)s")
    parser.add_argument("--by", default="Ada", help="who answers; default: %(default)s")
    parser.add_argument("--file", type=Path, default=Path(__file__).with_suffix(".db"))
    parser.add_argument("--backend", choices=["asyncio", "trio"], default="asyncio")
    args = parser.parse_args(argv)
    if args.command == "answer" and args.decision is None:
        parser.error("answer yes, or answer no")
    database, order = f"sqlite:///{args.file.absolute()}", f"order-{args.order}"
    print(f"runs are kept in {args.file}", flush=True)
    try:
        if args.command == "watch":
            anyio.run(watch, database, order, args.item, args.price, backend=args.backend)
        else:
            approved = args.decision == "yes"
            anyio.run(answer, database, order, approved, args.by, backend=args.backend)
    except KeyboardInterrupt:
        sys.exit("stopped; the same command continues from here")


if __name__ == "__main__":
    main()
