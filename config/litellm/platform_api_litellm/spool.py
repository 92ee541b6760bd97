"""Events on disk until JetStream has acknowledged them.

One SQLite file per folder, shared by all workers of a proxy. Each process holds a lock file as long as it lives; what
a dead one left behind is adopted by the living. Calls block until the commit is on disk: make them from a thread.
"""

import fcntl
import os
import sqlite3
import threading
import time
import uuid
from pathlib import Path

_SCHEMA = """
CREATE TABLE IF NOT EXISTS event (
    ordinal INTEGER PRIMARY KEY AUTOINCREMENT,
    owner TEXT NOT NULL,
    body BLOB NOT NULL,
    written_at REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS event_owner ON event (owner, ordinal);
"""
# How long a statement waits for another worker's commit, in seconds.
_BUSY_SECONDS = 10.0


class SpoolFull(Exception):
    """The spool holds as many events as it may."""


class Spool:
    def __init__(self, folder: str, events_max: int):
        """Opens the spool in `folder`, which is made if it is missing. Raises OSError or sqlite3.Error."""
        self._folder = Path(folder)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._events_max = events_max
        self._owner = uuid.uuid4().hex
        self._held = self._lock(self._owner)
        self._mutex = threading.Lock()
        self._connection = sqlite3.connect(
            self._folder / "events.db", timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        self._connection.execute("PRAGMA journal_mode = WAL")
        # What is in the spool survives a power cut, not just the end of the process.
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.executescript(_SCHEMA)

    def write(self, bodies: list[bytes]) -> None:
        """Adds events in one commit. Raises SpoolFull, or sqlite3.Error when the disk does not take them; nothing is
        written then."""
        with self._mutex:
            if self._count() + len(bodies) > self._events_max:
                raise SpoolFull(f"{self._events_max} events are waiting in {self._folder}")
            now = time.time()
            rows = [(self._owner, body, now) for body in bodies]
            self._transact("INSERT INTO event (owner, body, written_at) VALUES (?, ?, ?)", rows)

    def oldest(self, limit: int) -> list[tuple[int, bytes]]:
        """Events of this process with their ordinals, oldest first."""
        with self._mutex:
            query = "SELECT ordinal, body FROM event WHERE owner = ? ORDER BY ordinal LIMIT ?"
            return self._connection.execute(query, (self._owner, limit)).fetchall()

    def drop(self, ordinals: list[int]) -> None:
        """Removes events that are acknowledged."""
        with self._mutex:
            self._transact("DELETE FROM event WHERE ordinal = ?", [(ordinal,) for ordinal in ordinals])

    def adopt(self) -> int:
        """Takes over what dead processes left behind; how many events that is."""
        with self._mutex:
            query = "SELECT owner, COUNT(*) FROM event WHERE owner <> ? GROUP BY owner"
            left = self._connection.execute(query, (self._owner,)).fetchall()
            return sum(events for owner, events in left if self._inherit(owner))

    def waiting(self) -> int:
        """Events in the spool, those of other workers included."""
        with self._mutex:
            return self._count()

    def close(self) -> None:
        """Ends the use of the spool; what is left in it is adopted by whoever opens it next."""
        with self._mutex:
            self._connection.close()
            os.close(self._held)
            (self._folder / f"{self._owner}.lock").unlink(missing_ok=True)

    def _inherit(self, owner: str) -> bool:
        lock = self._lock(owner)
        if lock is None:
            return False
        try:
            self._transact("UPDATE event SET owner = ? WHERE owner = ?", [(self._owner, owner)])
            (self._folder / f"{owner}.lock").unlink(missing_ok=True)
        finally:
            os.close(lock)
        return True

    def _lock(self, owner: str):
        """The owner's lock; None while another process holds it."""
        descriptor = os.open(self._folder / f"{owner}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None

    def _count(self) -> int:
        return self._connection.execute("SELECT COUNT(*) FROM event").fetchone()[0]

    def _transact(self, statement: str, rows: list[tuple]) -> None:
        cursor = self._connection.cursor()
        cursor.execute("BEGIN IMMEDIATE")
        try:
            cursor.executemany(statement, rows)
            cursor.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                cursor.execute("ROLLBACK")
            raise
