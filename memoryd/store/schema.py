"""The ledger's tables, as the queries see them; `migrations` makes them.

Every row carries its tenant and every primary key begins with it. Times are whole microseconds since 1970 and JSON is text:
the same order, precision and bytes on every database.

Deleted memories and documents stay as tombstones until they are erased. `tombstone` is empty while a row is live and its own
id from then on, so one unique constraint says "one live row of this id (of this content), any number of deleted ones"
without an index that only some databases know. A memory's rows hang on `uid`, not on its id: a new memory may take the id of
a deleted one while that is still being erased.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, Column, Double, Integer, MetaData, Table, Text
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator

from memoryd.core import Metadata, MetadataValue
from memoryd.errors import InvalidArgument

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Time(TypeDecorator[datetime]):
    """An aware time as microseconds since 1970."""

    impl = BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> int | None:
        return None if value is None else (value - _EPOCH) // timedelta(microseconds=1)

    def process_result_value(self, value: int | None, dialect: Dialect) -> datetime | None:
        return None if value is None else _EPOCH + timedelta(microseconds=value)


class Json(TypeDecorator[Mapping[str, Any]]):
    """A flat mapping of plain values as JSON text."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Mapping[str, Any] | None, dialect: Dialect) -> str | None:
        return None if value is None else json.dumps(dict(value), ensure_ascii=False, separators=(",", ":"))

    def process_result_value(self, value: str | None, dialect: Dialect) -> dict[str, Any] | None:
        return None if value is None else json.loads(value)


class MetadataJson(TypeDecorator[Metadata]):
    """A document's or memory's metadata as JSON text; a time, which JSON lacks, as {"time": "…"}."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Metadata | None, dialect: Dialect) -> str | None:
        if value is None:
            return None
        return json.dumps({key: _plain(key, item) for key, item in value.items()}, ensure_ascii=False)

    def process_result_value(self, value: str | None, dialect: Dialect) -> Metadata | None:
        if value is None:
            return None
        return {
            key: datetime.fromisoformat(item["time"]) if isinstance(item, dict) else item
            for key, item in json.loads(value).items()
        }


def _plain(key: str, value: MetadataValue) -> object:
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise InvalidArgument(f"metadata {key!r}: a time needs a zone")
        return {"time": value.astimezone(UTC).isoformat()}
    if isinstance(value, str | bool):
        return value
    if not math.isfinite(value):
        raise InvalidArgument(f"metadata {key!r}: a number must be finite")
    return float(value)


metadata = MetaData()

tenants = Table(
    "tenants",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("display_name", Text, nullable=False),
    Column("create_time", Time, nullable=False),
    Column("answers", BigInteger, nullable=False, default=0),
    Column("searches", BigInteger, nullable=False, default=0),
    Column("prompt_tokens", BigInteger, nullable=False, default=0),
    Column("output_tokens", BigInteger, nullable=False, default=0),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("display_name", Text, nullable=False),
    Column("prefix", Text, nullable=False),
    Column("secret_sha256", Text, nullable=False),
    Column("create_time", Time, nullable=False),
    Column("revoke_time", Time),
)

requests = Table(
    "requests",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("digest", Text, nullable=False),
    Column("result", Text, nullable=False),
    Column("create_time", Time, nullable=False),
)

memories = Table(
    "memories",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("uid", Text, primary_key=True),
    Column("id", Text, nullable=False),
    Column("tombstone", Text, nullable=False, default=""),
    Column("display_name", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("metadata", MetadataJson, nullable=False),
    Column("create_time", Time, nullable=False),
    Column("update_time", Time, nullable=False),
)

documents = Table(
    "documents",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("memory", Text, nullable=False),
    Column("memory_uid", Text, nullable=False),
    Column("tombstone", Text, nullable=False, default=""),
    Column("kind", Text, nullable=False),
    Column("title", Text, nullable=False),
    Column("metadata", MetadataJson, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("blob", Text, nullable=False),
    Column("create_time", Time, nullable=False),
    Column("stage", Integer, nullable=False),
    Column("token_count", BigInteger, nullable=False, default=0),
    Column("chunk_count", Integer, nullable=False, default=0),
    Column("passage_count", Integer, nullable=False, default=0),
    Column("job", Text, nullable=False),
)

chunks = Table(
    "chunks",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("document", Text, primary_key=True),
    Column("ordinal", Integer, primary_key=True),
    Column("start", BigInteger, nullable=False),
    Column("end", BigInteger, nullable=False),
    Column("byte_start", BigInteger, nullable=False),
    Column("byte_end", BigInteger, nullable=False),
    Column("tokens", Integer, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("compressor", Text, nullable=False),
    Column("embeddings", Text, nullable=False),
    Column("soft_tokens", Integer, nullable=False),
)

passages = Table(
    "passages",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("document", Text, primary_key=True),
    Column("ordinal", Integer, primary_key=True),
    Column("chunk", Integer, nullable=False),
    Column("start", BigInteger, nullable=False),
    Column("end", BigInteger, nullable=False),
    Column("byte_start", BigInteger, nullable=False),
    Column("byte_end", BigInteger, nullable=False),
    Column("tokens", Integer, nullable=False),
)

# `due_time` is when a job may be claimed: its turn while PENDING, the end of its lease while RUNNING, nothing once ended.
jobs = Table(
    "jobs",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("document", Text, nullable=False),
    Column("payload", Json, nullable=False),
    Column("state", Integer, nullable=False),
    Column("due_time", Time),
    Column("owner", Text, nullable=False, default=""),
    Column("attempts", Integer, nullable=False, default=0),
    Column("stage", Text, nullable=False, default=""),
    Column("done", BigInteger, nullable=False, default=0),
    Column("total", BigInteger, nullable=False, default=0),
    Column("rate", Double, nullable=False, default=0.0),
    Column("error", Text, nullable=False, default=""),
    Column("receipt", Json, nullable=False),
    Column("create_time", Time, nullable=False),
    Column("end_time", Time),
)

examples = Table(
    "examples",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("memory", Text, nullable=False),
    Column("memory_uid", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("question", Text, nullable=False),
    Column("answer", Text, nullable=False),
    Column("origin", Integer, nullable=False),
    Column("create_time", Time, nullable=False),
)

example_documents = Table(
    "example_documents",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("example", Text, primary_key=True),
    Column("document", Text, primary_key=True),
)

adapters = Table(
    "adapters",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("memory", Text, nullable=False),
    Column("memory_uid", Text, nullable=False),
    Column("state", Integer, nullable=False),
    Column("parent", Text, nullable=False),
    Column("job", Text, nullable=False),
    Column("fingerprint", Text, nullable=False),
    Column("base", Text, nullable=False),
    Column("reader", Text, nullable=False),
    Column("compressor", Text, nullable=False),
    Column("examples", Integer, nullable=False),
    Column("documents", Integer, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("judgement", Json, nullable=False),
    Column("create_time", Time, nullable=False),
    Column("gather_time", Time),
    Column("weights_sha256", Text),  # where an archive of them went out or came in
)

# Every document that had a part in it: those that examples rest on, and those that were only shown beside them.
adapter_documents = Table(
    "adapter_documents",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("adapter", Text, primary_key=True),
    Column("document", Text, primary_key=True),
)

# Weights of which an archive was exported or imported, and what they have seen. Never deleted: see `ledger_archives`.
archives = Table(
    "archives",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("weights_sha256", Text, primary_key=True),
    Column("document", Text, primary_key=True),
    Column("memory_uid", Text, nullable=False),
    Column("made_time", Time),  # of weights that were trained in this memory; null where it is not known
)
