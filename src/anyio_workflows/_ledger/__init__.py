"""Decide: what is pending, which execution has a slot, which step gets an event."""

# Theory of operation
#
# Everything here is synchronous: no clock, no AnyIO, and every change happens between two awaits of the
# engine. Times come in as arguments, and what is to be done comes back as work to carry to the steps.
#
#   (event) -- Ledger.route() --> queued ... running -- Ledger.finish() --> (gone)
#
# An event that is routed becomes one piece of `Work` for each step that takes it. From then on that
# work is pending until it is finished: `Ledger.pending` holds it, in order of arrival, and nothing else
# says what is pending. The engine carries references to the work to its step, first in, first out.
#
#   fanin     what has to be complete before it is work: batches, sets of events, collect buffers
#   work      the records of work and waits; the step queues, which say who has a slot
#   waits     which open waits an event answers
#   ledger    routing, joins and the end of work, over all of these
#   pending   the ledger as plain records, and what one run leaves to the next
#
# Slots
# =====
#
# A step has `limit` slots (`num_workers`). A *granted* slot is one that is meant for the oldest work
# queued at the step, while no worker has taken it yet. `StepQueues` lists them in the order in which they
# were granted, over all steps: a free worker takes the first one.
#
#                take_slot()          leave()
#     queued ---------------> running -------> (gone)
#       ^                     |  |  ^
#       | end_delays()        |  |  | a slot is granted, ahead of queued work
#       |             delay() |  |  |
#       +---------- delayed <-+  +-> waiting
#                                suspend()
#
# Waits
# =====
#
# An execution that begins to wait gives its slot back. Several of its tasks may wait at once; it wants
# a slot again when the last of its waits is over, and continues when it has one. A wait that is open
# when an attempt fails stays open, although nothing waits: the next attempt finds its answer, or
# continues the wait where the one before stopped (W3).
#
# Batches
# =======
#
# A step that returns a list opens a *batch*, and each element of the list begins a *branch* of it.
# What descends from the element by being returned belongs to the branch: its work, and the batches that
# its steps open. A branch has ended when it holds nothing any more. When all branches have ended, so has
# the batch, and its joins fire in the branch that the batch was opened in. A join may ask for the event
# whose execution returned the list: then the batch keeps that, its *opener*, for the work of the join (F8).
#
# Rules
# =====
#
# 1. Work is in `Ledger.pending` exactly from `route()` to `finish()` or until it is dropped with its
#    batch: nothing is lost or delivered twice. The run is idle exactly when nothing is pending.
# 2. granted + running <= limit, for every step (R2); only an execution that is cancelled while it waits
#    continues at once, over the limit.
# 3. granted == min(queued, limit - running), for every step, unless executions want a slot back: no slot
#    is free while work is queued or wants to continue.
# 4. What an execution was given, an answer or a collected list, is in its history, and its next attempt
#    is given the same (F6, W3).
# 5. The joins of a batch are known when it opens, from the graph: each fires exactly once, `[]` included.
#    A branch brings its events to a join in the order of their arrival; what comes after the join has
#    fired is dropped.
# 6. Events that are sent, not returned, belong to no branch (F5).
# 7. A batch is part of the branch it was opened in until it ends, so an outer join waits for it.
# 8. Once a join has cancelled its batch, nothing inside is pending any more, joins included (F4).
