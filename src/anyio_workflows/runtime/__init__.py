"""Runs that have a name, any number of readers, a history, and, with a database, a life beyond the process."""

# What is kept of a run is what it owes: work, batches, waits, state, each as a small row with a key. A change
# is a set of rows to write and to delete, and the changes of all runs of a process are committed together,
# in groups. To bring a run back is to read its rows into a ledger. Nothing is replayed, so steps need not
# be deterministic.
#
# In the order of the data's path:
#
#   _runtime    the public `Runtime`: starts runs, finds them again, ends them with its block
#   _handle     the public `RunHandle`
#   _records    what is said about runs, and the checks of what is given
#   _kept       the runs that a runtime keeps in memory: found by id, listed, removed when they are old
#   _live       what is known about one run; and the instrument that writes its events to its log
#   _log        the numbered events of one run, for any number of readers (_sizes: what they take)
#   _durable_manager
#               the runs of a runtime in a store: started, found, brought back, let go (_memory_manager: the
#               same without a store)
#   _mail       what is sent to a run from another process, or while it sleeps
#   _followed   the runs that another process executes, or nobody, read for those who have a handle of one
#   _durable    a run that this process executes, and that is in a store
#   _idle       which of them have been idle for long, and are released from memory until they are due
#   _registered a workflow, and how its runs are written and read, also under names that have changed
#   _runs       the variants of a run of the engine that a runtime makes, with what they consist of
#   _books      the ledger of such a run, which marks what it changes, and holds what is not kept yet
#   _journal    what changed in one run since the last group, and what waits for the next commit
#   _rows       the rows of a run, written and read
#   _committer  the groups: what all journals have marked, in one transaction after the other
#   _store      what a runtime asks of the place where runs are kept: the port, and the records that cross it
#   _memory     a store in memory, for tests
#   _sqlite     a store in a file, shared by the processes of one machine (_sqlite_tables: its tables and
#               statements; _sqlite_file: where the file may be, whose it is, and which hosts are alive)
#
# Four gates make it write-ahead: an execution begins when the group that owes it is committed; an event is
# shown after commit; `send_event` returns, and an answered step continues, after commit; and the terminal
# event, `await run` and the status come after the commit of the end of the deciding work.

from ._handle import KeptRunStatistics, RunEvents, RunHandle
from ._log import Gap, LogReader, LogStatistics
from ._memory import MemoryData, MemoryStore
from ._records import RunError, RunInfo, RunPage, RuntimeStatistics
from ._runtime import Durability, Runtime, RuntimeState
from ._store import RunStatus

__all__ = [
    "Durability",
    "Gap",
    "KeptRunStatistics",
    "LogReader",
    "LogStatistics",
    "MemoryData",
    "MemoryStore",
    "RunError",
    "RunEvents",
    "RunHandle",
    "RunInfo",
    "RunPage",
    "RunStatus",
    "Runtime",
    "RuntimeState",
    "RuntimeStatistics",
]
