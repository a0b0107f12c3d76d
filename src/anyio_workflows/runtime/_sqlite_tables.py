"""The tables of an SQLite database, how they came to be, and what is said to them."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs

from ._store import RunQuery, StoredRun

COLUMNS = tuple(field.name for field in attrs.fields(StoredRun))
LISTED = ", ".join(f"runs.{name}" for name in COLUMNS)
IS_ACTIVE = "runs.status IN ('queued', 'running', 'waiting')"
HAS_ENDED = "runs.status IN ('completed', 'failed', 'timed_out', 'cancelled')"

_ADD_WAITS = """
    INSERT OR IGNORE INTO waits
        SELECT value, NEW.created, NEW.no FROM json_each(NEW.waiting_for)
"""
_DELETE_WAITS = """
    DELETE FROM waits WHERE created = OLD.created AND run = OLD.no
        AND tag IN (SELECT value FROM json_each(OLD.waiting_for))
"""

# --- The schema ---------------------------------------------------------------------------------

# `rows` is a tree by run and key. `events` is not: in the order in which they were written, the events of all
# runs of a group are on the same pages, which costs a third of the time and much less of the log.
# Only active runs have an owner, so one index serves those who claim runs and those who give them up.
# Lists are ordered by `created`, and then by `id`. No index has the id: there is next to nothing to sort by it,
# as no two runs of a process are created at the same time, and with it a run would take 150 bytes more.
_SCHEMA = (
    """
    CREATE TABLE hosts (id TEXT PRIMARY KEY, since REAL NOT NULL) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE runs (
        no INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        workflow TEXT NOT NULL,
        status TEXT NOT NULL,
        created REAL NOT NULL,
        ended REAL,
        last_seq INTEGER NOT NULL,
        waiting_for TEXT NOT NULL,
        open_waits INTEGER NOT NULL,
        metadata TEXT NOT NULL,
        error TEXT,
        fingerprint TEXT NOT NULL,
        deadline REAL,
        wake_at REAL,
        asleep_since REAL,
        recoveries INTEGER NOT NULL,
        owner TEXT
    ) STRICT
    """,
    "CREATE INDEX runs_by_age ON runs (created)",
    "CREATE INDEX runs_by_status ON runs (status, created)",
    "CREATE INDEX runs_by_workflow ON runs (workflow, created)",
    "CREATE INDEX runs_by_both ON runs (workflow, status, created)",
    f"CREATE INDEX runs_active ON runs (owner, asleep_since, created) WHERE {IS_ACTIVE}",
    "CREATE INDEX runs_to_wake ON runs (wake_at) WHERE wake_at IS NOT NULL",
    "CREATE INDEX runs_asleep ON runs (asleep_since) WHERE asleep_since IS NOT NULL",
    "CREATE INDEX runs_ended ON runs (ended) WHERE ended IS NOT NULL",
    """
    CREATE TABLE rows (
        run INTEGER NOT NULL, key TEXT NOT NULL, data TEXT NOT NULL, PRIMARY KEY (run, key)
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE events (
        run INTEGER NOT NULL, seq INTEGER NOT NULL, time REAL NOT NULL, text TEXT NOT NULL,
        PRIMARY KEY (run, seq)
    ) STRICT
    """,
    """
    CREATE TABLE inbox (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        run INTEGER NOT NULL, kind TEXT NOT NULL, data TEXT NOT NULL, sender TEXT, reply TEXT
    ) STRICT
    """,
    # The sender is the host where somebody waits for the reply. Once nobody does, there is none.
    """
    CREATE TRIGGER host_goes AFTER DELETE ON hosts BEGIN
        UPDATE inbox SET sender = NULL WHERE sender = OLD.id;
    END
    """,
    """
    CREATE TRIGGER reply_is_for_nobody AFTER UPDATE OF sender, reply ON inbox
    WHEN NEW.sender IS NULL AND NEW.reply IS NOT NULL BEGIN
        DELETE FROM inbox WHERE id = NEW.id;
    END
    """,
    "CREATE INDEX inbox_by_run ON inbox (run)",
    "CREATE INDEX inbox_open ON inbox (id, run) WHERE reply IS NULL",
    # The runs that wait for something, by its tag: the index of what `runs.waiting_for` lists.
    """
    CREATE TABLE waits (
        tag TEXT NOT NULL, created REAL NOT NULL, run INTEGER NOT NULL,
        PRIMARY KEY (tag, created, run)
    ) STRICT, WITHOUT ROWID
    """,
    f"""
    CREATE TRIGGER run_begins AFTER INSERT ON runs WHEN NEW.waiting_for <> '[]' BEGIN
        {_ADD_WAITS};
    END
    """,
    f"""
    CREATE TRIGGER run_waits AFTER UPDATE OF waiting_for ON runs BEGIN
        {_DELETE_WAITS};
        {_ADD_WAITS};
    END
    """,
    f"""
    CREATE TRIGGER run_goes AFTER DELETE ON runs BEGIN
        DELETE FROM rows WHERE run = OLD.no;
        DELETE FROM events WHERE run = OLD.no;
        DELETE FROM inbox WHERE run = OLD.no;
        {_DELETE_WAITS};
    END
    """,
)


def _create(db: sqlite3.Connection) -> None:
    for statement in _SCHEMA:
        db.execute(statement)


Migration = Callable[[sqlite3.Connection], None]

MIGRATIONS: list[Migration] = [_create]
"""From each format to the next one. The number of the newest format is their number."""

# --- What is said to the database ---------------------------------------------------------------

HOSTS = "SELECT id FROM hosts"
FIND_HOST = "SELECT 1 FROM hosts WHERE id = ?"
ADD_HOST = "INSERT INTO hosts VALUES (?, ?)"
DELETE_HOST = "DELETE FROM hosts WHERE id = ?"

NEXT_WAKE = "SELECT min(wake_at) FROM runs WHERE wake_at IS NOT NULL"

FIND_RUN = f"SELECT {LISTED} FROM runs WHERE id = ?"
FIND_EACH = f"SELECT {LISTED} FROM runs WHERE id IN (SELECT value FROM json_each(?))"
FIND_NUMBER = f"SELECT {LISTED} FROM runs WHERE no = ?"
INSERT_RUN = f"""
    INSERT INTO runs ({", ".join(COLUMNS)}) VALUES ({", ".join("?" * len(COLUMNS))})
    ON CONFLICT (id) DO NOTHING
"""
DELETE = f"DELETE FROM runs WHERE id = ? AND NOT {IS_ACTIVE}"
PURGE = f"""
    DELETE FROM runs WHERE no IN (
        SELECT no FROM runs WHERE ended < ? AND {HAS_ENDED} ORDER BY ended LIMIT ?
    )
"""

WIPE = "DELETE FROM rows WHERE run = ?"
DELETE_ROW = "DELETE FROM rows WHERE run = ? AND key = ?"
PUT_ROW = "INSERT INTO rows VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET data = excluded.data"
ROWS = "SELECT key, data FROM rows WHERE run = (SELECT no FROM runs WHERE id = ?)"

ADD_EVENT = "INSERT INTO events VALUES (?, ?, ?, ?)"
EVENTS = """
    SELECT seq, time, text FROM events
    WHERE run = (SELECT no FROM runs WHERE id = ?) AND seq > ? ORDER BY seq LIMIT ?
"""

POST = f"""
    INSERT INTO inbox (run, kind, data, sender)
        SELECT no, ?, ?, ? FROM runs WHERE id = ? AND {IS_ACTIVE}
"""
MAIL = """
    SELECT inbox.id, runs.id, kind, data FROM inbox CROSS JOIN runs ON runs.no = inbox.run
    WHERE reply IS NULL AND owner = ? ORDER BY inbox.id
"""
REPLY = "UPDATE inbox SET reply = ? WHERE id = ?"
REPLY_LATE = """
    UPDATE inbox SET reply = ? WHERE run = (SELECT no FROM runs WHERE id = ?) AND reply IS NULL
"""
WANT_NO_REPLY = "UPDATE inbox SET sender = NULL WHERE id = ?"
FIND_REPLY = "SELECT reply FROM inbox WHERE id = ? AND reply IS NOT NULL"
DELETE_MAIL = "DELETE FROM inbox WHERE id = ?"

# Claiming. What has to be continued: the runs that are awake, the oldest first; those due; those that fell asleep
# in the future, as the clock was set back meanwhile (D7); those with mail.
_KNOWN = "runs.workflow IN (SELECT value FROM json_each(:workflows))"
DUE = f"""
    SELECT * FROM (
        SELECT no, created, id FROM runs
        WHERE owner IS NULL AND asleep_since IS NULL AND {IS_ACTIVE} AND {_KNOWN}
        ORDER BY created, id LIMIT :limit
    )
    UNION SELECT no, created, id FROM runs
        WHERE wake_at <= :now AND owner IS NULL AND {IS_ACTIVE} AND {_KNOWN}
    UNION SELECT no, created, id FROM runs
        WHERE asleep_since > :now AND owner IS NULL AND {IS_ACTIVE} AND {_KNOWN}
    UNION SELECT no, created, id FROM runs
        WHERE id IN (SELECT value FROM json_each(:also))
            AND owner IS NULL AND {IS_ACTIVE} AND {_KNOWN}
    UNION SELECT no, created, runs.id FROM inbox CROSS JOIN runs ON runs.no = inbox.run
        WHERE reply IS NULL AND owner IS NULL AND asleep_since IS NOT NULL AND {IS_ACTIVE} AND {_KNOWN}
    ORDER BY created, id LIMIT :limit
"""
_AWAKE = "asleep_since = NULL, wake_at = NULL"
OWN = f"UPDATE runs SET owner = ?, {_AWAKE} WHERE no = ?"
GIVE_UP = (
    f"UPDATE runs SET owner = NULL, recoveries = recoveries + ? WHERE owner = ? AND {IS_ACTIVE}"
)
REQUEUE = f"""
    UPDATE runs SET status = 'queued', ended = NULL, error = NULL, recoveries = 0, {_AWAKE}
    WHERE id = ? AND NOT {IS_ACTIVE} AND status <> 'completed'
"""


def update(names: Sequence[str]) -> str:
    """Return the statement that changes some columns of a run."""
    settings = ", ".join(f"{name} = ?" for name in names)
    return f"UPDATE runs SET {settings} WHERE no = ?"


def stored(columns: Mapping[str, Any]) -> list[Any]:
    """Return values of attributes of a `StoredRun` as the database keeps them."""
    if "waiting_for" not in columns:
        return list(columns.values())
    return [
        json.dumps(list(value)) if name == "waiting_for" else value
        for name, value in columns.items()
    ]


def run_of(row: Sequence[Any]) -> StoredRun:
    facts = dict(zip(COLUMNS, row, strict=True))
    facts["waiting_for"] = tuple(json.loads(facts["waiting_for"]))
    return StoredRun(**facts)


def page_of(query: RunQuery) -> tuple[str, list[Any]]:
    """Return the statement that finds the runs of a query, and its arguments."""
    tags = sorted(set(query.waiting_for))
    terms: list[str] = []
    values: list[Any] = []
    for column, value in (("status", query.status), ("workflow", query.workflow)):
        if value is not None:
            terms.append(f"runs.{column} = ?")
            values.append(value)
    if query.before is not None:
        place = "waits" if tags else "runs"
        terms.append(f"{place}.created <= ? AND ({place}.created, runs.id) < (?, ?)")
        values += query.before[0], *query.before
    if not tags:
        where = f"WHERE {' AND '.join(terms)}" if terms else ""
        newest = "ORDER BY created DESC, id DESC LIMIT ?"
        return f"SELECT {LISTED} FROM runs {where} {newest}", [*values, query.limit]
    # For each tag its runs are in order already; they are merged until the page is full.
    of_tag = (
        "SELECT waits.created AS created, runs.id AS id, run FROM waits "
        f"CROSS JOIN runs ON runs.no = waits.run WHERE {' AND '.join(['waits.tag = ?', *terms])}"
    )
    merged = (
        " UNION ".join([of_tag] * len(tags)) + " ORDER BY created DESC, id DESC, run DESC LIMIT ?"
    )
    page = f"SELECT {LISTED} FROM ({merged}) AS page JOIN runs ON runs.no = page.run"
    arguments = [value for tag in tags for value in (tag, *values)]
    return f"{page} ORDER BY page.created DESC, page.id DESC", [*arguments, query.limit]
