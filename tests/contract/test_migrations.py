"""Migrations make what the queries expect, only go forward, and refuse a database from the future."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect, text

from memoryd.errors import DataLoss, FailedPrecondition, ResourceExhausted, Unavailable
from memoryd.store import database, schema
from memoryd.store.ledger import SqlLedger
from memoryd.store.migrations import MIGRATIONS, migrate
from tests.contract.rows import memory, write


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/new folder/ledger.db"


def test_all_migrations_make_what_the_schema_says(url: str) -> None:
    SqlLedger(url).close()
    engine = create_engine(url)
    made = inspect(engine)
    assert set(made.get_table_names()) == {*schema.metadata.tables, "schema_versions"}
    for name, table in schema.metadata.tables.items():
        columns = {column["name"]: column for column in made.get_columns(name)}
        assert list(columns) == [column.name for column in table.columns]
        assert made.get_pk_constraint(name)["constrained_columns"] == [key.name for key in table.primary_key]
        assert table.primary_key.columns.keys()[0] == "tenant"
        for column in table.columns:
            made_type = columns[column.name]["type"].compile(engine.dialect)
            assert {"REAL": "DOUBLE"}.get(made_type, made_type) == column.type.compile(engine.dialect)
            assert columns[column.name]["nullable"] == column.nullable
    engine.dispose()


def test_a_second_start_changes_nothing(url: str) -> None:
    first = SqlLedger(url)
    first.create_tenant("acme", "")
    first.close()
    second = SqlLedger(url)
    assert second.get_tenant("acme").id == "acme"
    second.close()


def test_only_what_is_missing_is_run(url: str) -> None:
    SqlLedger(url).close()
    engine = create_engine(url)
    with engine.begin() as conn:
        assert migrate(conn, (*MIGRATIONS, ("CREATE TABLE more (id TEXT)",))) == len(MIGRATIONS) + 1
        assert conn.execute(text("SELECT count(*) FROM more")).scalar() == 0
    engine.dispose()


def test_a_newer_database_is_refused(url: str) -> None:
    SqlLedger(url).close()
    engine = create_engine(url)
    with engine.begin() as conn:
        conn.execute(text("INSERT INTO schema_versions VALUES (99, 0)"))
    engine.dispose()
    with pytest.raises(FailedPrecondition, match=r"version 99.*newer memoryd"):
        SqlLedger(url)


def test_a_full_disk_fails_the_write_and_nothing_else(url: str) -> None:
    ledger = SqlLedger(url)
    ledger.create_tenant("acme", "")
    memory(ledger)
    kept = write(ledger).document
    with ledger._db._engine.connect() as conn:  # as few pages as there are: SQLite's own full disk
        driver = conn.connection.driver_connection
        assert driver is not None
        pages = driver.execute("PRAGMA page_count").fetchone()[0]
        driver.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(ResourceExhausted):
        ledger.create_memory("acme", "big", "", "x" * (1 << 20), {}, None)
    assert ledger.get_document("acme", "m", kept.id) == kept
    ledger.close()


def test_a_ledger_that_another_process_writes_to_is_unavailable(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.1)
    ledger = SqlLedger(url)
    other = create_engine(url, connect_args={"isolation_level": None})
    with other.connect() as conn:
        conn.exec_driver_sql("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable):
            ledger.create_tenant("acme", "")
        conn.exec_driver_sql("ROLLBACK")
    ledger.create_tenant("acme", "")
    other.dispose()
    ledger.close()


def test_a_damaged_file_is_data_loss(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"this is no database" * 1000)
    with pytest.raises(DataLoss):
        SqlLedger(f"sqlite:///{tmp_path}/ledger.db")


def test_a_commit_is_flushed_to_disk(url: str) -> None:
    ledger = SqlLedger(url)
    with ledger._db._engine.connect() as conn:
        assert conn.execute(text("PRAGMA synchronous")).scalar() == 2  # FULL
        assert conn.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert conn.execute(text("PRAGMA foreign_keys")).scalar() == 1
    ledger.close()


def test_a_postgresql_url_can_be_named() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(Unavailable):
        SqlLedger("postgresql+psycopg://nobody@127.0.0.1:1/none")
