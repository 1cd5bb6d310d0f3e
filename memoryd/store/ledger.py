"""The ledger on a SQL database: SQLite by default, PostgreSQL by its URL."""

from __future__ import annotations

from memoryd.store.database import Database
from memoryd.store.ledger_adapters import AdapterRows
from memoryd.store.ledger_deleted import DeletedRows
from memoryd.store.ledger_documents import DocumentRows
from memoryd.store.ledger_examples import ExampleRows
from memoryd.store.ledger_jobs import JobRows
from memoryd.store.ledger_learning import LearningRows
from memoryd.store.ledger_memories import MemoryRows
from memoryd.store.ledger_spans import SpanRows
from memoryd.store.ledger_tenants import TenantRows


class SqlLedger(TenantRows, MemoryRows, DocumentRows, DeletedRows, SpanRows, JobRows, ExampleRows, AdapterRows, LearningRows):
    """`base.Ledger`. One instance is shared by all threads."""

    def __init__(self, url: str) -> None:
        """`url`: `sqlite:////path/to/ledger.db` or `postgresql+psycopg://user:password@host/database`.

        Makes or migrates the tables. FailedPrecondition where the database was made by a newer memoryd; Unavailable,
        ResourceExhausted and DataLoss as from every method.
        """
        super().__init__(Database(url))

    def close(self) -> None:
        """Ends all connections."""
        self._db.close()
