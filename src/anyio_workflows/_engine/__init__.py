"""Act: the task group of a run, whose tasks call the steps and settle what they did."""

# Theory of operation
#
# A run is one AnyIO task group, opened by its *host*, a background task of the event loop. The host
# executes no step code: a step that shields itself, or leaves a cancel scope broken, must not take the
# host with it. Steps are executed by *workers*, child tasks of the group.
#
#   host      wait for the decision -> cancel the workers, wait for them -> close resources -> publish
#   worker    take a granted slot and its work -> call the step -> settle what it returned or raised
#
# Work travels from the ledger's decision to a worker through the memory object stream of its step, the
# inbox. A worker takes the granted slots of whichever step comes first, and executes step after step
# in the same task until there are none; then it ends. A task per event would cost ten times as much.
#
#   stream      the public event stream and its reader
#   outcome     how a run can end, and the decision how it does
#   blocking    which steps held the event loop, and for how long
#   limiter     how many runs of a workflow are in progress at once
#   describing  what happens in a run, in words: for messages, notes and logs
#   instruments telling instruments what happens, and the one that writes internal events to the stream
#   resources   the task that opens and closes what steps are given
#   block       the `async with workflow:` block, which owns runs and what they share
#   faults      the failures of steps that misbehave
#   workers     the tasks that call steps, and what becomes of results and errors
#   run         the run: start, host, end
#
# Rules
# =====
#
# 1. The outcome is decided once, synchronously, by `decide()`. The first cause wins (T4), where the
#    deadline counts from the moment it passed, not from when it was noticed.
# 2. The terminal event is published, and `ended` set, by `Run.close()` alone (T1, T3); before that no
#    worker is alive, except those that outlasted the cleanup timeout (T6).
# 3. Whatever leaves granted slots behind spawns a worker: before a step is executed, after an event came
#    from outside, when a worker ends. One new worker at a time is enough: it spawns the next before it
#    starts work.
# 4. No step starts after the outcome is decided, or the deadline has passed.
# 5. Nothing that a step raises leaves its worker; the task group never sees an exception of a step.
# 6. A worker whose context variables a step has changed ends: the next step is executed in a task that
#    starts from the caller's context (O7).
# 7. An execution is settled once, by its result, its error or its cancellation, and that ends it in the
#    ledger. A failure is retried, else taken by an error handler, else it ends the run (X2, X4).
