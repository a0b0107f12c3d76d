"""Test workflows: run them, under virtual time, and check that they end as promised."""

# General layout:
#
#   run       _runner: one run from start to end, with the events that it published
#   time      _clock: event loops in which waiting takes no time
#
#   prove     _scenario -> _record -> _instrumented -> _stage -> _rules -> _strategies -> _explore
#             A scenario is plain data: what disturbs a run. Instrumented steps disturb the run
#             as it says, the record keeps what happened, the stage is everybody outside. The rules
#             look at the record alone. Exploring is drawing scenarios, and shrinking those that fail.
#
# Uses public modules of the library only, so what it can do, tests of yours can do. Hypothesis and
# trio are imported where they are needed: neither is a dependency of the library.

from ._clock import VirtualTimeLoop, run_virtually, virtual_time
from ._explore import cancel_everywhere, check_termination, replay
from ._instrumented import InjectedError
from ._record import Marker, TerminationViolation, Violation
from ._runner import WorkflowTestResult, WorkflowTestRunner
from ._scenario import End, Fault, Moment, Pause, Read, Scenario
from ._strategies import faults

__all__ = [
    "End",
    "Fault",
    "InjectedError",
    "Marker",
    "Moment",
    "Pause",
    "Read",
    "Scenario",
    "TerminationViolation",
    "Violation",
    "VirtualTimeLoop",
    "WorkflowTestResult",
    "WorkflowTestRunner",
    "cancel_everywhere",
    "check_termination",
    "faults",
    "replay",
    "run_virtually",
    "virtual_time",
]

# The old names, for one more release.
Probe = Marker
Script = Scenario
