"""Workflows in a FastAPI application, beside its own routes.

    uvicorn --app-dir examples fastapi_app:app

Then http://127.0.0.1:8000/workflows/ is the page, and the routes of the server are below it. A route of the application
starts an order and says where it can be followed:

    curl -X POST http://127.0.0.1:8000/orders/17
    curl -N http://127.0.0.1:8000/workflows/v1/runs/order-17/events

The order asks for approval: answer on the page. It needs `pip install ".[server]" fastapi` in the checkout.
"""

from __future__ import annotations

from fastapi import FastAPI

from anyio_workflows import (
    Context,
    HumanResponseEvent,
    InputRequiredEvent,
    StartEvent,
    StopEvent,
    Workflow,
    step,
)
from anyio_workflows.runtime import Runtime
from anyio_workflows.server import WorkflowServer


class NewOrder(StartEvent):
    number: int


class Approval(HumanResponseEvent):
    approved: bool


class Order(Workflow[str]):
    """An order that a person approves."""

    @step
    async def confirm(self, ctx: Context, ev: NewOrder) -> StopEvent:
        question = InputRequiredEvent(text=f"Approve order {ev.number}?")
        answer = await ctx.wait_for_event(Approval, question, timeout=None)
        return StopEvent(result="approved" if answer.approved else "declined")


runtime = Runtime(workflows=[Order(timeout=None)])  # "sqlite:///orders.db" keeps the orders
server = WorkflowServer(runtime)

app = FastAPI(lifespan=server.lifespan)
app.mount("/workflows", server.app)


@app.post("/orders/{number}")
async def order(number: int) -> dict[str, str]:
    """Start an order, or find the one that was started."""
    run = await runtime.start(Order, run_id=f"order-{number}", number=number)
    return {"run": run.id, "status": run.info.status, "page": f"/workflows/#run/{run.id}"}
