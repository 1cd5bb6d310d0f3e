"""The index on Milvus: Milvus Lite by default, a Milvus server by its URI. Passages by vector and by words."""

from __future__ import annotations

import contextlib
import logging
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import structlog
from pymilvus import DataType, Function, FunctionType, MilvusClient, MilvusException

from memoryd.errors import InvalidArgument, Unavailable
from memoryd.store.base import Hit, IndexRow

log = structlog.get_logger(__name__)
logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it logs every failed call, with what was asked

T = TypeVar("T")

TEXT_BYTES = 16384  # a passage of 256 tokens is far below; what is beyond is not found by words
CALL_SECONDS = 10.0  # longer than an embedded server needs to restart
WRITE_SECONDS = 60.0
_UPSERT_ROWS = 1000
_IDS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_HIT_FIELDS = ["memory", "document"]

# Words that nearly every text has decide nothing, and on Milvus Lite they cost more than all the others together.
_STOP_WORDS = (
    "a an and are as at be been but by for from had has have he her his i if in into is it its me my no not of on or our "
    "she so than that the their them then there these they this to was we were what when which who will with would you"
)


class MilvusIndex:
    """`base.Index`. One instance is shared by all threads; writers wait for each other, as Milvus Lite needs.

    The collection is named for the fingerprint of the retrieval encoder: vectors of another one are never searched.
    """

    def __init__(self, uri: str, dim: int, fingerprint: str, token: str = "") -> None:
        """Does not connect yet: a server that is still starting is Unavailable at the first call.

        `uri` as `http://host:port`; `dim` of the encoder's vectors; `fingerprint` is the encoder's.
        """
        self._uri = uri
        self._token = token
        self._dim = dim
        self._collection = "memoryd_" + re.sub(r"\W", "_", fingerprint)[:64]
        self._client: MilvusClient | None = None
        self._failures = 0  # to connect
        self._connecting = threading.Lock()
        self._writing = threading.Lock()

    def upsert(self, tenant: str, rows: Sequence[IndexRow]) -> None:
        """Visible to searches when it returns. InvalidArgument for a vector of another dimension; Unavailable."""
        data = [self._row(tenant, row) for row in rows]
        with self._writing:
            for start in range(0, len(data), _UPSERT_ROWS):
                part = data[start : start + _UPSERT_ROWS]
                self._call(
                    lambda client, part=part: client.upsert(self._collection, part, timeout=WRITE_SECONDS)  # type: ignore[misc]
                )

    def search_dense(self, tenant: str, memories: Sequence[str], vector: bytes, limit: int) -> Sequence[Hit]:
        """By cosine similarity, which is the score. Unavailable."""
        return self._search(tenant, memories, "vector", self._vector(vector), limit)

    def search_text(self, tenant: str, memories: Sequence[str], query: str, limit: int) -> Sequence[Hit]:
        """By BM25, which is the score. Unavailable."""
        if not re.search(r"\w", query):
            return []
        return self._search(tenant, memories, "words", _cut(query), limit)

    def delete_document(self, tenant: str, memory: str, document: str) -> int:
        """Returns how many vectors there were. Unavailable."""
        return self._delete(f"{_of(tenant, [memory])} and document == {_quoted(document)}")

    def delete_memory(self, tenant: str, memory: str) -> int:
        """Returns how many vectors there were. Unavailable."""
        return self._delete(_of(tenant, [memory]))

    def count(self, tenant: str) -> int:
        """How many vectors the tenant has. Unavailable."""
        filter_ = f"tenant == {_quoted(tenant)}"
        rows = self._call(
            lambda client: client.query(self._collection, filter=filter_, output_fields=["count(*)"], timeout=WRITE_SECONDS)
        )
        return int(rows[0]["count(*)"])

    def empty(self, tenant: str) -> bool:
        """Whether the tenant has no vectors. Unavailable."""
        filter_ = f"tenant == {_quoted(tenant)}"
        rows = self._call(
            lambda client: client.query(self._collection, filter=filter_, output_fields=["id"], limit=1, timeout=CALL_SECONDS)
        )
        return not rows

    def flush(self) -> None:
        """Unflushed rows are slow to search. Also the first search by words after a flush is: it is done here. Unavailable."""

        def change(client: MilvusClient) -> None:
            client.flush(self._collection, timeout=WRITE_SECONDS)
            client.search(self._collection, data=["memory"], anns_field="words", limit=1, timeout=WRITE_SECONDS)

        with self._writing:
            self._call(change)

    def drop(self) -> None:
        """Forgets everything, of every tenant and of every earlier encoder. Unavailable."""

        def change(client: MilvusClient) -> None:
            for name in client.list_collections(timeout=CALL_SECONDS):
                if name.startswith("memoryd_"):
                    client.drop_collection(name, timeout=WRITE_SECONDS)

        with self._writing:
            self._call(change)
            self._disconnect()  # the next call makes the collection anew

    def close(self) -> None:
        """Ends the connection."""
        self._disconnect()

    def _row(self, tenant: str, row: IndexRow) -> dict[str, Any]:
        # The tenant is in the key as well: a row of one tenant can never replace that of another.
        return {
            "id": f"{_checked(tenant)}/{_checked(row.passage)}",
            "tenant": tenant,
            "memory": _checked(row.memory),
            "document": _checked(row.document),
            "text": _cut(row.text),
            "vector": self._vector(row.vector),
        }

    def _vector(self, data: bytes) -> list[float]:
        if len(data) != 4 * self._dim:
            raise InvalidArgument(f"a vector has {len(data) // 4} dimensions, the index has {self._dim}")
        vector_D = np.frombuffer(data, dtype="<f4")
        # Of length one, so that the inner product is the cosine: Milvus Lite works out every length at every search.
        return (vector_D / max(float(np.linalg.norm(vector_D)), 1e-12)).tolist()

    def _search(self, tenant: str, memories: Sequence[str], field: str, query: object, limit: int) -> Sequence[Hit]:
        if not memories or limit < 1:
            return []
        filter_ = _of(tenant, memories)
        found = self._call(
            lambda client: client.search(
                self._collection,
                data=[query],
                anns_field=field,
                filter=filter_,
                limit=limit,
                output_fields=_HIT_FIELDS,
                timeout=CALL_SECONDS,
            )
        )
        # Milvus Lite gives BM25 scores with their sign turned; they are never below zero.
        hits = [
            Hit(
                passage=hit["id"].partition("/")[2],
                document=hit["entity"]["document"],
                memory=hit["entity"]["memory"],
                score=abs(hit["distance"]) if field == "words" else hit["distance"],
            )
            for hit in found[0]
        ]
        return sorted(hits, key=lambda hit: -hit.score)

    def _delete(self, filter_: str) -> int:
        with self._writing:
            done = self._call(lambda client: client.delete(self._collection, filter=filter_, timeout=WRITE_SECONDS))
        return len(done) if isinstance(done, list) else int(done["delete_count"])  # the keys, where the server has them

    def _call(self, call: Callable[[MilvusClient], T]) -> T:
        """Calls on a ready collection. A server that came back does not know any more that it was: then once more."""
        failures = self._failures
        for attempt in (1, 2):
            client = self._connect(failures)
            try:
                return call(client)
            except MilvusException as error:
                self._disconnect(client)
                if attempt == 2:
                    log.warning("the index refused a call", code=int(error.code), error=type(error).__name__)
                    raise Unavailable("the index does not answer as it should: try again", reason="INDEX_DOWN") from None
            except Exception as error:  # gRPC, a closed channel, whatever the client library lets through
                self._disconnect(client)
                if attempt == 2:
                    raise Unavailable(
                        f"the index cannot be reached ({type(error).__name__}): try again", reason="INDEX_DOWN"
                    ) from None
        raise AssertionError("unreachable")

    def _connect(self, failures: int) -> MilvusClient:
        """`failures` as they were when the call began: one that waited for a try that failed fails with it. A server that hangs
        would else keep all that wait, who would try one after another."""
        with self._connecting:
            if self._client is None:
                if self._failures != failures:
                    raise Unavailable("the index cannot be reached: try again", reason="INDEX_DOWN")
                try:
                    self._client = self._prepared()
                except Exception as error:
                    self._failures += 1
                    raise Unavailable(
                        f"the index cannot be reached ({type(error).__name__}): try again", reason="INDEX_DOWN"
                    ) from None
            return self._client

    def _disconnect(self, client: MilvusClient | None = None) -> None:
        """Of `client`, or of whichever is in use; another thread may have replaced it already."""
        with self._connecting:
            if self._client is None or (client is not None and client is not self._client):
                return
            with contextlib.suppress(Exception):
                self._client.close()
            self._client = None

    def _prepared(self) -> MilvusClient:
        client = MilvusClient(self._uri, token=self._token, timeout=CALL_SECONDS, dedicated=True)
        try:
            if not client.has_collection(self._collection, timeout=CALL_SECONDS):
                self._create(client)
            client.load_collection(self._collection, timeout=WRITE_SECONDS)
        except Exception:
            with contextlib.suppress(Exception):
                client.close()
            raise
        return client

    def _create(self, client: MilvusClient) -> None:
        schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=256)
        schema.add_field("tenant", DataType.VARCHAR, max_length=128, is_partition_key=True)
        schema.add_field("memory", DataType.VARCHAR, max_length=128)
        schema.add_field("document", DataType.VARCHAR, max_length=128)
        analyzer = {"tokenizer": "standard", "filter": ["lowercase", {"type": "stop", "stop_words": _STOP_WORDS.split()}]}
        schema.add_field("text", DataType.VARCHAR, max_length=TEXT_BYTES, enable_analyzer=True, analyzer_params=analyzer)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=self._dim)
        schema.add_field("words", DataType.SPARSE_FLOAT_VECTOR)
        schema.add_function(
            Function(name="bm25", function_type=FunctionType.BM25, input_field_names=["text"], output_field_names=["words"])
        )
        # Milvus Lite's graph looks at few rows where a filter leaves few (of 20 nearest it found 14 at a quarter of 10k);
        # looking at all of them is exact and as fast there. A server's graph copes with filters.
        dense = "FLAT" if "lite" in client.get_server_version(timeout=CALL_SECONDS) else "AUTOINDEX"
        indexes = client.prepare_index_params()
        indexes.add_index("vector", index_type=dense, metric_type="IP")
        indexes.add_index("words", index_type="SPARSE_INVERTED_INDEX", metric_type="BM25")
        client.create_collection(
            self._collection,
            schema=schema,
            index_params=indexes,
            consistency_level="Strong",
            timeout=WRITE_SECONDS,
        )


def _checked(id_: str) -> str:
    """Ids go into filters, so they can hold nothing that means something there. InvalidArgument."""
    if not _IDS.fullmatch(id_):
        raise InvalidArgument("an id may hold letters, digits and . _ - only")
    return id_


def _quoted(id_: str) -> str:
    return f'"{_checked(id_)}"'


def _of(tenant: str, memories: Iterable[str]) -> str:
    return f"tenant == {_quoted(tenant)} and memory in [{', '.join(_quoted(memory) for memory in memories)}]"


def _cut(text: str) -> str:
    """To what the collection's text field takes, in whole characters."""
    data = text.encode()
    return text if len(data) <= TEXT_BYTES else data[:TEXT_BYTES].decode(errors="ignore")
