"""Transactions on the ledger's database: what differs between SQLite and the others, nothing of what they are for."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection, create_engine, event, make_url
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError, StatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from memoryd.errors import DataLoss, InvalidArgument, MemorydError, ResourceExhausted, Unavailable
from memoryd.store.migrations import migrate

T = TypeVar("T")

BUSY_SECONDS = 5.0  # how long a write waits for another process (a doctor, a backup) before it is Unavailable
CONNECTIONS = 16
_IMMEDIATE = "memoryd_immediate"
_LOG_SECONDS = 10.0  # for the log to be emptied


class Database:
    """Runs functions in transactions. They may be run again after a lost race, so they do nothing but query."""

    def __init__(self, url: str) -> None:
        """`url` as SQLAlchemy takes it: `sqlite:////path/to/ledger.db`, `postgresql+psycopg://…`.

        Creates or migrates the tables. FailedPrecondition where the database is newer than this memoryd.
        """
        parsed = make_url(url)
        self._sqlite = parsed.get_backend_name() == "sqlite"
        options: dict[str, Any] = {}
        if self._sqlite:
            if parsed.database:
                Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
            options = {"timeout": BUSY_SECONDS, "check_same_thread": False, "isolation_level": None}
        self._engine = create_engine(
            url,
            connect_args=options,
            hide_parameters=True,  # an error must not carry titles or metadata into a log
            pool_size=CONNECTIONS,
            max_overflow=0,
            pool_timeout=BUSY_SECONDS,
            pool_pre_ping=not self._sqlite,
        )
        if self._sqlite:
            event.listen(self._engine, "connect", _set_up_sqlite)
            event.listen(self._engine, "begin", _begin_sqlite)
        self._turn = threading.Lock()
        self._waiting: deque[_Write[Any]] = deque()
        try:
            self._transact(migrate)
        except BaseException:
            self._engine.dispose()
            raise

    def read(self, query: Callable[[Connection], T]) -> T:
        """Runs `query` on one consistent view. ResourceExhausted, Unavailable, DataLoss."""
        with _translated(), self._engine.connect() as conn:
            return query(conn)

    def write(self, change: Callable[[Connection], T]) -> T:
        """Runs `change` in a transaction of its own; durable when this returns. Errors as for `read`.

        On SQLite there is one writer at a time and every commit waits for the disk. So whoever's turn it is commits for
        all who wait, each behind a savepoint: many writers share one flush and a change that raises undoes itself only.
        """
        if not self._sqlite:
            try:
                return self._transact(change)
            except IntegrityError:  # lost a race for a unique key: the second look finds what the winner wrote
                return self._transact(change)
        write = _Write(change)
        self._waiting.append(write)
        with self._turn:
            if not write.ended:
                self._commit_waiting()
        return write.outcome()

    def forget_log(self) -> None:
        """After an erase: moves SQLite's log into its file and empties it, for it holds older versions of every page.
        Unavailable where somebody reads the ledger for long, a backup say."""
        if not self._sqlite:
            return
        with _translated(), self._engine.connect() as conn:
            driver = conn.connection.driver_connection  # of SQLAlchemy's it would run inside a transaction, and fail
            assert driver is not None
            until = time.monotonic() + _LOG_SECONDS
            try:
                # It says that it is busy, and raises nothing; for another that empties the log it does not even wait.
                while driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                    if time.monotonic() > until:
                        raise Unavailable("the ledger's log cannot be emptied while it is read: end long reads of the ledger")
                    time.sleep(0.05)
            except sqlite3.Error as error:
                raise Unavailable(f"the ledger's log cannot be emptied just now ({type(error).__name__})") from None

    def close(self) -> None:
        """Ends all connections."""
        self._engine.dispose()

    def _transact(self, change: Callable[[Connection], T]) -> T:
        with _translated(), self._engine.connect() as conn:
            conn = conn.execution_options(**{_IMMEDIATE: True})
            with conn.begin():
                return change(conn)

    def _commit_waiting(self) -> None:
        batch = [self._waiting.popleft() for _ in range(len(self._waiting))]
        try:
            if len(batch) == 1:  # nobody to shield from it, and a savepoint costs two statements
                batch[0].run_alone(self._transact)
                return
            self._transact(lambda conn: _run_nested(conn, batch))
        except (MemorydError, SQLAlchemyError):  # the commit or the database failed: now each stands alone
            for write in batch:
                write.run_alone(self._transact)
        except BaseException as error:
            for write in batch:
                write.error = error
            raise
        finally:
            for write in batch:
                write.ended = True


class _Write(Generic[T]):
    """A change that waits for its turn, and what came of it."""

    def __init__(self, change: Callable[[Connection], T]) -> None:
        self.change = change
        self.ended = False
        self.error: BaseException | None = None
        self._result: list[T] = []

    def run_nested(self, conn: Connection) -> None:
        """Within a shared transaction. An error of the database ends all of it, one of the change only this change."""
        try:
            with conn.begin_nested():
                self._result = [self.change(conn)]
        except SQLAlchemyError:
            raise
        except Exception as error:
            self.error = error

    def run_alone(self, transact: Callable[[Callable[[Connection], T]], T]) -> None:
        self.error = None
        try:
            self._result = [transact(self.change)]
        except Exception as error:
            self.error = error

    def outcome(self) -> T:
        if self.error is not None:
            raise self.error
        return self._result[0]


def _run_nested(conn: Connection, batch: Sequence[_Write[Any]]) -> None:
    for write in batch:
        write.run_nested(conn)


def _set_up_sqlite(connection: Any, _record: object) -> None:
    for pragma in (
        "journal_mode = WAL",
        "synchronous = FULL",  # NORMAL would lose acknowledged writes with the power
        "foreign_keys = ON",
        "secure_delete = ON",  # what is erased is overwritten, not only unlinked
    ):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(conn: Connection) -> None:
    # IMMEDIATE: a transaction that reads and then writes would otherwise fail when another wrote in between.
    conn.exec_driver_sql("BEGIN IMMEDIATE" if conn.get_execution_options().get(_IMMEDIATE) else "BEGIN")


@contextmanager
def _translated() -> Iterator[None]:
    """The database's errors in memoryd's words, never with the statement or its values, which may be a tenant's."""
    try:
        yield
    except IntegrityError:
        raise
    except DBAPIError as error:
        raise _translate(error) from None
    except PoolTimeout:
        raise Unavailable("the ledger is busy: try again") from None
    except StatementError as error:  # a value that cannot be kept
        if isinstance(error.orig, MemorydError):
            raise error.orig from None
        raise MemorydError(f"the ledger cannot keep a value ({type(error.orig).__name__})") from None


def _translate(error: DBAPIError) -> MemorydError:
    code = str(getattr(error.orig, "sqlite_errorname", "") or getattr(error.orig, "sqlstate", "") or "")
    name = code or type(error.orig).__name__
    if isinstance(error, DataError) or code.startswith("22"):  # PostgreSQL keeps no NUL, say
        return InvalidArgument(f"the ledger cannot keep a value of this call ({name}): leave out NUL characters")
    if code.startswith(("SQLITE_FULL", "53")):
        return ResourceExhausted(f"the ledger has no room left ({name}): free disk space", reason="DISK_FULL")
    if code.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return DataLoss(f"the ledger's file is damaged ({name}): restore a backup", reason="LEDGER_DAMAGED")
    if code.startswith(("SQLITE_ERROR", "42")):  # a mistake in a query is ours, and no second try mends it
        return MemorydError(f"the ledger refused a statement ({name})")
    return Unavailable(f"the ledger cannot be used just now ({name}): try again")
