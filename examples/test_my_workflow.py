"""Find a bug that no ordinary test shows: a join that waits for an event which a branch drops.

    pip install ".[testing,trio]" pytest  # in the checkout
    pytest test_my_workflow.py

`test_the_cheapest_offer` passes, so the workflow looks fine. `test_it_always_ends` fails, within
seconds, with a report that docs/testing.md explains: if the first shop is slow, its offer is no
longer the best one and is dropped, but `decide` still waits for three offers.
"""

from __future__ import annotations

from anyio_workflows import Context, Event, StartEvent, StopEvent, Workflow, step
from anyio_workflows.testing import cancel_everywhere, check_termination, run_virtually

PRICES = {"Alder & Sons": 30, "Birch": 20, "The Cedar": 10}


class Ask(Event):
    shop: str


class Offer(Event):
    shop: str
    price: int


class Shopping(Workflow[str]):
    def __init__(self, timeout: float | None = 45.0) -> None:
        super().__init__(timeout=timeout)
        self.best = 1000

    @step
    async def ask(self, ev: StartEvent) -> list[Ask]:
        return [Ask(shop=shop) for shop in PRICES]

    @step
    async def call(self, ev: Ask) -> Offer | None:
        price = PRICES[ev.shop]
        if price > self.best:
            return None  # too expensive: not worth looking at
        self.best = price
        return Offer(shop=ev.shop, price=price)

    @step
    async def decide(self, ctx: Context, ev: Offer) -> StopEvent | None:
        offers = ctx.collect_events(ev, [Offer] * len(PRICES))  # the bug: some were dropped
        if offers is None:
            return None
        return StopEvent(result=min(offers, key=lambda offer: offer.price).shop)


class FixedShopping(Shopping):
    """The list that `ask` returns is a batch; a join of it fires when every branch has ended."""

    @step
    async def decide(self, offers: list[Offer]) -> StopEvent:
        return StopEvent(result=min(offers, key=lambda offer: offer.price).shop)


def test_the_cheapest_offer() -> None:
    async def main() -> str:
        return await Shopping().run()

    assert run_virtually("asyncio", main) == "The Cedar"


def test_it_always_ends() -> None:
    check_termination(Shopping)


def test_the_fixed_one_always_ends() -> None:
    check_termination(FixedShopping)
    assert cancel_everywhere(FixedShopping) > 10
