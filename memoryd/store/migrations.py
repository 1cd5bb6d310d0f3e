"""What made the ledger's tables, step by step. Append only: a migration that was released is never edited.

Written as SQL that SQLite and PostgreSQL both take, not derived from `schema`, which is free to move on. A test holds
that all migrations together make exactly what `schema` says.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, text

from memoryd.core import now
from memoryd.errors import FailedPrecondition

MIGRATIONS: Sequence[Sequence[str]] = (
    # 1: tenants, keys, memories, documents, chunks, passages, jobs
    (
        """CREATE TABLE tenants (
            tenant TEXT NOT NULL PRIMARY KEY, display_name TEXT NOT NULL, create_time BIGINT NOT NULL,
            answers BIGINT NOT NULL, searches BIGINT NOT NULL, prompt_tokens BIGINT NOT NULL, output_tokens BIGINT NOT NULL)""",
        """CREATE TABLE api_keys (
            tenant TEXT NOT NULL REFERENCES tenants (tenant), id TEXT NOT NULL, display_name TEXT NOT NULL,
            prefix TEXT NOT NULL, secret_sha256 TEXT NOT NULL UNIQUE, create_time BIGINT NOT NULL, revoke_time BIGINT,
            PRIMARY KEY (tenant, id))""",
        """CREATE TABLE requests (
            tenant TEXT NOT NULL REFERENCES tenants (tenant), id TEXT NOT NULL, digest TEXT NOT NULL, result TEXT NOT NULL,
            create_time BIGINT NOT NULL, PRIMARY KEY (tenant, id))""",
        """CREATE TABLE memories (
            tenant TEXT NOT NULL REFERENCES tenants (tenant), uid TEXT NOT NULL, id TEXT NOT NULL, tombstone TEXT NOT NULL,
            display_name TEXT NOT NULL, description TEXT NOT NULL, metadata TEXT NOT NULL, create_time BIGINT NOT NULL,
            update_time BIGINT NOT NULL, PRIMARY KEY (tenant, uid), UNIQUE (tenant, id, tombstone))""",
        "CREATE INDEX memories_by_time ON memories (tenant, tombstone, create_time, uid)",
        """CREATE TABLE documents (
            tenant TEXT NOT NULL, id TEXT NOT NULL, memory TEXT NOT NULL, memory_uid TEXT NOT NULL, tombstone TEXT NOT NULL,
            kind TEXT NOT NULL, title TEXT NOT NULL, metadata TEXT NOT NULL, sha256 TEXT NOT NULL, size_bytes BIGINT NOT NULL,
            blob TEXT NOT NULL, create_time BIGINT NOT NULL, stage INTEGER NOT NULL, token_count BIGINT NOT NULL,
            chunk_count INTEGER NOT NULL, passage_count INTEGER NOT NULL, job TEXT NOT NULL, PRIMARY KEY (tenant, id),
            UNIQUE (tenant, memory_uid, sha256, tombstone),
            FOREIGN KEY (tenant, memory_uid) REFERENCES memories (tenant, uid))""",
        "CREATE INDEX documents_by_time ON documents (tenant, memory, tombstone, create_time, id)",
        "CREATE INDEX documents_by_stage ON documents (stage, tombstone)",
        """CREATE TABLE chunks (
            tenant TEXT NOT NULL, document TEXT NOT NULL, ordinal INTEGER NOT NULL, start BIGINT NOT NULL,
            "end" BIGINT NOT NULL, byte_start BIGINT NOT NULL, byte_end BIGINT NOT NULL, tokens INTEGER NOT NULL,
            sha256 TEXT NOT NULL, compressor TEXT NOT NULL, embeddings TEXT NOT NULL, soft_tokens INTEGER NOT NULL,
            PRIMARY KEY (tenant, document, ordinal), FOREIGN KEY (tenant, document) REFERENCES documents (tenant, id))""",
        """CREATE TABLE passages (
            tenant TEXT NOT NULL, document TEXT NOT NULL, ordinal INTEGER NOT NULL, chunk INTEGER NOT NULL,
            start BIGINT NOT NULL, "end" BIGINT NOT NULL, byte_start BIGINT NOT NULL, byte_end BIGINT NOT NULL,
            tokens INTEGER NOT NULL, PRIMARY KEY (tenant, document, ordinal),
            FOREIGN KEY (tenant, document) REFERENCES documents (tenant, id))""",
        """CREATE TABLE jobs (
            tenant TEXT NOT NULL REFERENCES tenants (tenant), id TEXT NOT NULL, kind TEXT NOT NULL, target TEXT NOT NULL,
            document TEXT NOT NULL, payload TEXT NOT NULL, state INTEGER NOT NULL, due_time BIGINT, owner TEXT NOT NULL,
            attempts INTEGER NOT NULL, stage TEXT NOT NULL, done BIGINT NOT NULL, total BIGINT NOT NULL,
            rate DOUBLE PRECISION NOT NULL, error TEXT NOT NULL, receipt TEXT NOT NULL, create_time BIGINT NOT NULL,
            end_time BIGINT, PRIMARY KEY (tenant, id))""",
        "CREATE INDEX jobs_by_due_time ON jobs (tenant, due_time, state)",
        "CREATE INDEX jobs_by_time ON jobs (tenant, create_time, id)",
        "CREATE INDEX jobs_by_document ON jobs (tenant, document)",
    ),
    # 2: examples and adapters
    (
        """CREATE TABLE examples (
            tenant TEXT NOT NULL, id TEXT NOT NULL, memory TEXT NOT NULL, memory_uid TEXT NOT NULL, sha256 TEXT NOT NULL,
            question TEXT NOT NULL, answer TEXT NOT NULL, origin INTEGER NOT NULL, create_time BIGINT NOT NULL,
            PRIMARY KEY (tenant, id), UNIQUE (tenant, memory_uid, sha256),
            FOREIGN KEY (tenant, memory_uid) REFERENCES memories (tenant, uid))""",
        "CREATE INDEX examples_by_time ON examples (tenant, memory_uid, create_time, id)",
        """CREATE TABLE example_documents (
            tenant TEXT NOT NULL, example TEXT NOT NULL, document TEXT NOT NULL, PRIMARY KEY (tenant, example, document),
            FOREIGN KEY (tenant, example) REFERENCES examples (tenant, id))""",
        "CREATE INDEX example_documents_by_document ON example_documents (tenant, document)",
        """CREATE TABLE adapters (
            tenant TEXT NOT NULL, id TEXT NOT NULL, memory TEXT NOT NULL, memory_uid TEXT NOT NULL, state INTEGER NOT NULL,
            parent TEXT NOT NULL, job TEXT NOT NULL, fingerprint TEXT NOT NULL, base TEXT NOT NULL, reader TEXT NOT NULL,
            compressor TEXT NOT NULL, examples INTEGER NOT NULL, documents INTEGER NOT NULL, size_bytes BIGINT NOT NULL,
            judgement TEXT NOT NULL, create_time BIGINT NOT NULL, PRIMARY KEY (tenant, id),
            FOREIGN KEY (tenant, memory_uid) REFERENCES memories (tenant, uid))""",
        "CREATE INDEX adapters_by_time ON adapters (tenant, memory_uid, create_time, id)",
        """CREATE TABLE adapter_documents (
            tenant TEXT NOT NULL, adapter TEXT NOT NULL, document TEXT NOT NULL, PRIMARY KEY (tenant, adapter, document),
            FOREIGN KEY (tenant, adapter) REFERENCES adapters (tenant, id))""",
        "CREATE INDEX adapter_documents_by_document ON adapter_documents (tenant, document)",
    ),
    # 3: when what an adapter was trained on was gathered; of those that are there, only when training was over is known
    (
        "ALTER TABLE adapters ADD COLUMN gather_time BIGINT",
        "UPDATE adapters SET gather_time = create_time WHERE job <> ''",
    ),
    # 4: what the weights of archives have seen
    (
        """CREATE TABLE archives (
            tenant TEXT NOT NULL, weights_sha256 TEXT NOT NULL, document TEXT NOT NULL, memory_uid TEXT NOT NULL,
            PRIMARY KEY (tenant, weights_sha256, document))""",
    ),
    # 5: which adapters have weights that are outside, and when those were made
    (
        "ALTER TABLE adapters ADD COLUMN weights_sha256 TEXT",
        "ALTER TABLE archives ADD COLUMN made_time BIGINT",
    ),
)


def migrate(conn: Connection, migrations: Sequence[Sequence[str]] = MIGRATIONS) -> int:
    """Brings the database to the newest version, within the caller's transaction; returns that version.

    FailedPrecondition where the database was made by a newer memoryd.
    """
    if conn.dialect.name == "postgresql":  # of two daemons that start together, one migrates and one waits
        conn.execute(text("SELECT pg_advisory_xact_lock(7234781234)"))
    conn.execute(
        text("CREATE TABLE IF NOT EXISTS schema_versions (version INTEGER NOT NULL PRIMARY KEY, create_time BIGINT NOT NULL)")
    )
    version = conn.execute(text("SELECT max(version) FROM schema_versions")).scalar() or 0
    if version > len(migrations):
        raise FailedPrecondition(
            f"the ledger has schema version {version}, made by a newer memoryd; this one knows up to {len(migrations)}. "
            "Install the newer memoryd, or restore a backup from before it.",
            reason="LEDGER_TOO_NEW",
        )
    for number, statements in enumerate(migrations[version:], version + 1):
        for statement in statements:
            conn.execute(text(statement))
        conn.execute(
            text("INSERT INTO schema_versions (version, create_time) VALUES (:version, :time)"),
            {"version": number, "time": int(now().timestamp() * 1e6)},
        )
    return len(migrations)
