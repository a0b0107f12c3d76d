"""Tools for tests of workflows: run them, under virtual time, and check that they end as promised."""

# How a workflow is shown to end: run it under a scenario, record what happens, compare the record with the
# rules, and search for the scenario that breaks one. A scenario is plain data, and so is the record, so a
# finding can be printed, shrunk and replayed. What the rules demand is in `docs/rules.md`.
#
# In the order of the data's path:
#
#   _scenario       what disturbs a run: written by hand, drawn by Hypothesis, made simpler
#   _record         what happened in a run: executions, what could end it, events; and how a finding is shown
#   _instrumented   steps that pause, fail and record, in place of those of the workflow
#   _checks         the rules: some need the live handler, most the record alone
#   _harness        one run: starts it, reads it, answers it, ends it
#   _explore        many runs: draw scenarios, check each run, shrink what fails
#
# How a run is shown to survive: its process is ended at a commit, and another one continues.
#
#   _lives          one run, and the processes that execute it, one after the other
#   _kills          many runs: end the process at each of its commits
#
# Beside it:
#
#   _clock          virtual time: event loops in which waiting takes no time, and counts of what they do
#   _runner         one run in an ordinary test, and the events that it published
#
# All of it uses public modules of the library only: your own tests can do whatever the toolkit does.
# Hypothesis and trio are imported where they are needed; the library depends on neither.

from ._clock import VirtualTimeLoop, run_virtually, virtual_time
from ._explore import cancel_everywhere, check_termination, replay
from ._instrumented import InjectedError
from ._kills import DurabilityViolation, kill_at, kill_everywhere
from ._lives import Kill
from ._record import Marker, TerminationViolation, Violation
from ._runner import WorkflowTestResult, WorkflowTestRunner
from ._scenario import End, Fault, Moment, Pause, Read, Scenario, faults

__all__ = [
    "DurabilityViolation",
    "End",
    "Fault",
    "InjectedError",
    "Kill",
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
    "kill_at",
    "kill_everywhere",
    "replay",
    "run_virtually",
    "virtual_time",
]

# The old names, for one more release.
Probe = Marker
Script = Scenario
