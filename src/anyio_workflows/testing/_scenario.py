"""A scenario says what disturbs one run: plain data, printed as the code that makes it again."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args

import attrs

from ..errors import WorkflowConfigurationError

FaultKind = Literal[
    "raise",
    "raise after",
    "raise in cleanup",
    "stray cancellation",
    "hang",
    "slow cleanup",
    "swallow cancellation",
    "write in cleanup",
]
"""What goes wrong, see `Fault`."""

ASYNC_ONLY = frozenset({"raise in cleanup", "slow cleanup", "swallow cancellation"})
"""Faults that a sync step cannot have: its thread is abandoned, not cancelled."""

EndKind = Literal["cancel", "block", "loop"]


class _Shown:
    """Shows a record as the call that makes it, without what has its default."""

    def __repr__(self) -> str:
        shown = []
        for field in attrs.fields(type(self)):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if field.default is attrs.NOTHING:
                shown.append(repr(value))
            elif value != field.default:
                shown.append(f"{field.name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"


def _one_of(*allowed: str) -> Any:
    def check(instance: Any, attribute: attrs.Attribute[Any], value: Any) -> None:
        if value not in allowed:
            raise WorkflowConfigurationError(
                f"{type(instance).__name__}.{attribute.name} must be one of "
                f"{', '.join(map(repr, allowed))}; not {value!r}"
            )

    return check


@attrs.frozen(repr=False)
class Pause(_Shown):
    """Hold up one call of a step.

    Args:
        step: Name of the step.
        call: Which of its calls in the run, from 1.
        at: Where: 0 is before its body, `n` after the n-th time that the body has waited for
            something, -1 after the body. A sync step can be held up before and after its body only.
        seconds: For how long, in virtual time.
        checkpoints: How many times it lets others run after that.
    """

    step: str
    call: int = 1
    at: int = 0
    seconds: float = 0.0
    checkpoints: int = 0


@attrs.frozen(repr=False)
class Fault(_Shown):
    """Something that goes wrong in one call of a step.

    Args:
        step: Name of the step.
        kind: `"raise"` before the body, `"raise after"` it, `"raise in cleanup"` when the call is
            cancelled; `"stray cancellation"`: raise one that nobody asked for; `"hang"` until
            cancelled; `"slow cleanup"`: take `seconds`, shielded, after the body or a cancellation,
            and write to the stream then; `"swallow cancellation"`: return `None` instead of being
            cancelled; `"write in cleanup"`: write to the stream after the body or a cancellation.
        call: Which of its calls in the run, from 1. Each attempt of a retried step is a call.
        seconds: How long the slow cleanup takes, in virtual time.
    """

    step: str
    kind: FaultKind = attrs.field(validator=_one_of(*get_args(FaultKind)))
    call: int = 1
    seconds: float = 0.0


@attrs.frozen(repr=False)
class Moment(_Shown):
    """Some virtual seconds from now, and then some checkpoints later."""

    seconds: float = 0.0
    checkpoints: int = 0


@attrs.frozen(repr=False)
class End(_Shown):
    """What ends the run from outside, and when.

    Args:
        kind: `"cancel"` calls `cancel_run()`, `"block"` leaves the `async with` block of the run by
            an exception, `"loop"` ends the event loop.
        at: When.
        task_step: Instead of `at`: when so many task steps have been made in the event loop.
    """

    kind: EndKind = attrs.field(validator=_one_of(*get_args(EndKind)))
    at: Moment = Moment()
    task_step: int | None = None


@attrs.frozen(repr=False)
class Read(_Shown):
    """Read the stream until `limit` events came or `patience` seconds have passed, then stop."""

    limit: int | None = None
    patience: float | None = None


@attrs.frozen(repr=False)
class Scenario(_Shown):
    """Everything that disturbs one run. The empty scenario disturbs nothing.

    Args:
        pauses: What holds up the steps.
        faults: What goes wrong in them.
        end: What ends the run from outside.
        timeout: The run's deadline, in seconds; for workflows that can be made with `timeout=`.
        cleanup_timeout: Likewise `cleanup_timeout=`.
        outside: When each event from outside comes; those without a moment come at once.
        reads: How the stream is read, before it is read to its end.
    """

    pauses: tuple[Pause, ...] = ()
    faults: tuple[Fault, ...] = ()
    end: End | None = None
    timeout: float | None = None
    cleanup_timeout: float | None = None
    outside: tuple[Moment, ...] = ()
    reads: tuple[Read, ...] = ()

    @property
    def is_peaceful(self) -> bool:
        """Whether nothing in it can keep a run from finishing, except that it takes longer."""
        return not self.faults and self.end is None and self.timeout is None

    @property
    def seconds_lost(self) -> float:
        """The virtual seconds by which it can delay a run, at least."""
        pauses = sum(pause.seconds for pause in self.pauses)
        return pauses + sum(moment.seconds for moment in self.outside)


def simpler_scenarios(scenario: Scenario) -> Iterator[Scenario]:
    """Yield scenarios that say a little less."""
    for limit in ("end", "timeout", "cleanup_timeout"):
        if getattr(scenario, limit) is not None:
            yield _with(scenario, limit, None)
    for name in ("faults", "pauses", "reads", "outside"):
        parts: tuple[Any, ...] = getattr(scenario, name)
        for n in range(len(parts)):
            yield _with(scenario, name, (*parts[:n], *parts[n + 1 :]))
    for n, pause in enumerate(scenario.pauses):
        moment = attrs.evolve(pause, seconds=0.0, checkpoints=1)
        for shorter in (moment, attrs.evolve(pause, checkpoints=0)):
            if (shorter.seconds, shorter.checkpoints) < (pause.seconds, pause.checkpoints):
                parts = (*scenario.pauses[:n], shorter, *scenario.pauses[n + 1 :])
                yield _with(scenario, "pauses", parts)


def _with(scenario: Scenario, name: str, value: Any) -> Scenario:
    changes: dict[str, Any] = {name: value}
    return attrs.evolve(scenario, **changes)
