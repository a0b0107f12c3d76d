"""Every run ends once, says how, and leaves nothing behind: random workflows, random endings."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .conftest import BACKENDS
from .termination import ENDINGS, check, play, scenarios

EXAMPLES = int(os.environ.get("TERMINATION_EXAMPLES", "100"))
"""Examples per ending and backend; set the variable to search longer."""


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("ending", ENDINGS)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(data=st.data())
def test_every_run_obeys_the_termination_contract(
    ending: str, backend: str, data: st.DataObject
) -> None:
    scenario = data.draw(scenarios(ending), label="scenario")
    check(play(scenario, backend))
