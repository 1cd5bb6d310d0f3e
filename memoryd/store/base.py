"""What memoryd asks of its stores. Every method that reads or writes a tenant's data takes the tenant first and is scoped
by it inside the store: a wrong tenant finds nothing.

Ledger and blobs hold the truth; the index can be rebuilt from them and the cache dropped at any time. All methods block and
may be called from several threads; the daemon calls them through `asyncio.to_thread`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, Protocol, TypeVar

from memoryd.core import (
    Adapter,
    ApiKey,
    Chunk,
    Document,
    Example,
    Job,
    JobKind,
    Kind,
    Memory,
    Metadata,
    Origin,
    Passage,
    Receipt,
    Request,
    Stage,
    Tenant,
    Unlearned,
    Usage,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page, oldest first; `next_token` is empty on the last."""

    items: Sequence[T]
    next_token: str


@dataclass(frozen=True, slots=True)
class Written:
    """What a write did: the document, its job, whether the memory held that content already, and the ERASE job of the document
    that it replaced; None where it replaced none."""

    document: Document
    job: Job
    already_stored: bool
    erase: Job | None = None


class Ledger(Protocol):
    """The truth: rows."""

    # tenants and keys
    def create_tenant(self, tenant: str, display_name: str) -> Tenant:
        """AlreadyExists where there is one."""

    def ensure_tenant(self, tenant: str) -> None:
        """Creates it where there is none."""

    def get_tenant(self, tenant: str) -> Tenant:
        """NotFound."""

    def list_tenants(self, page_size: int, page_token: str) -> Page[Tenant]: ...

    def create_key(self, tenant: str, display_name: str, secret_sha256: str, prefix: str) -> ApiKey:
        """NotFound where there is no such tenant."""

    def find_key(self, secret_sha256: str) -> ApiKey | None:
        """The key, revoked or not; None where there is none."""

    def list_keys(self, tenant: str) -> Sequence[ApiKey]: ...

    def revoke_key(self, tenant: str, key: str) -> None:
        """NotFound; a second time does nothing."""

    # memories
    def create_memory(
        self, tenant: str, memory: str, display_name: str, description: str, metadata: Metadata, request: Request | None
    ) -> Memory:
        """`memory` empty: an id is made. AlreadyExists; RequestIdReused."""

    def get_memory(self, tenant: str, memory: str) -> Memory:
        """NotFound."""

    def require_memories(self, tenant: str, memories: Sequence[str]) -> None:
        """NotFound where one of them is not there. Quicker than `get_memory`, which counts documents."""

    def list_memories(self, tenant: str, page_size: int, page_token: str) -> Page[Memory]: ...

    def update_memory(
        self,
        tenant: str,
        memory: str,
        request: Request | None,
        *,
        display_name: str | None = None,
        description: str | None = None,
        metadata: Metadata | None = None,
    ) -> Memory:
        """None leaves a value as it is. NotFound; RequestIdReused."""

    def delete_memory(self, tenant: str, memory: str, request: Request | None) -> Job:
        """One transaction: the memory and its documents are unreachable, their jobs cancelled, an ERASE job is pending
        (target: the memory's name; payload: memory). Its examples are gone, its adapters tainted. NotFound; a repeat of the
        same request returns the same job."""

    # documents
    def write_document(
        self,
        tenant: str,
        memory: str,
        document: str,
        kind: Kind,
        title: str,
        metadata: Metadata,
        sha256: str,
        size_bytes: int,
        blob: str,
        request: Request | None,
        replaces: str = "",
    ) -> Written:
        """One transaction: the row and its COMPRESS job (target: the document's name; payload: memory, document). Where
        the memory holds that content, or the request came before, nothing is added and what is there is returned with
        already_stored, and with the ERASE job of what the request replaced. NotFound where there is no such memory;
        RequestIdReused.

        `replaces`: the document of that memory whose new version this is. It is deleted as by delete_document, unless it has
        that content itself. The COMPRESS job's payload has `old`, the version to reuse compressed embeddings of: the
        replaced one, or the one before it where that was replaced before it could reuse them. The payload of `old`'s ERASE
        job has `after`: the COMPRESS job that it waits for while that one `reuses`. ReplacedNotFound."""

    def get_document(self, tenant: str, memory: str, document: str) -> Document:
        """NotFound."""

    def get_documents(self, tenant: str, documents: Sequence[str]) -> dict[str, Document]:
        """Those of the ids that exist and are not deleted."""

    def recorded(self, tenant: str, documents: Sequence[str]) -> set[str]:
        """Those of the ids, of documents or adapters, that have a row, deleted or not."""

    def list_documents(self, tenant: str, memory: str, page_size: int, page_token: str) -> Page[Document]:
        """NotFound where there is no such memory."""

    def delete_document(self, tenant: str, memory: str, document: str, request: Request | None) -> Job:
        """As delete_memory, for one document (payload: memory, document): examples that rest on it are gone, adapters that were
        trained with it are tainted, and instead of an active one its nearest clean ancestor is. Learning begins anew."""

    def set_stage(self, tenant: str, document: str, stage: Stage) -> bool:
        """Moves a document on (never back); to COMPRESSED: LEARNED where the active adapter of its memory was trained with it.
        False where it is deleted."""

    def reset_document(self, tenant: str, document: str) -> bool:
        """Back to STORED without chunks and passages, before it is chunked anew. False where it is deleted."""

    def add_chunks(self, tenant: str, document: str, chunks: Sequence[Chunk], passages: Sequence[Passage]) -> bool:
        """Appends, and adds to the document's counts. Repeats of the same ordinals are ignored. False where deleted."""

    def chunks(self, tenant: str, document: str, after: int = -1, limit: int = 256) -> Sequence[Chunk]:
        """By ordinal, those above `after`."""

    def passages(self, tenant: str, document: str, after: int = -1, limit: int = 256) -> Sequence[Passage]:
        """By ordinal, those above `after`."""

    def get_passages(self, tenant: str, passages: Sequence[str]) -> dict[str, Passage]:
        """By passage id; only of documents that are not deleted."""

    def get_chunks(self, tenant: str, keys: Sequence[tuple[str, int]]) -> dict[tuple[str, int], Chunk]:
        """By (document, ordinal); only of documents that are not deleted."""

    def set_embeddings(self, tenant: str, document: str, chunks: Sequence[Chunk]) -> bool:
        """Records compressor, embeddings and soft_tokens of these chunks. False where the document is deleted."""

    def erase_rows(self, tenant: str, memory: str, documents: Sequence[str]) -> int:
        """Removes the rows of these deleted documents (those whose blobs and vectors are purged), and of deleted memories
        of that id that hold no document any more; returns how many documents. Live ones are never touched."""

    def deleted_documents(self, tenant: str, memory: str, document: str = "") -> Sequence[Document]:
        """The deleted documents that an ERASE job is to purge (one, or all of a deleted memory)."""

    def count_tainted(self, tenant: str, memory: str, documents: Sequence[str]) -> int:
        """Adapters that are tainted by the deletion of these documents, or were of a deleted memory of that id."""

    def deleted_chunks(self, tenant: str, document: str, after: int = -1, limit: int = 256) -> Sequence[Chunk]:
        """As chunks, of a deleted document that is not erased yet: for its new version to reuse."""

    def token_count(self, tenant: str, memories: Sequence[str]) -> int:
        """Base-model tokens of all documents of these memories."""

    def count_unsearchable(self, tenant: str, memories: Sequence[str]) -> int:
        """Documents of these memories that are stored and not searchable yet."""

    def stale_documents(self, compressor: str, limit: int) -> Sequence[Document]:
        """Of every tenant, live documents with a chunk that another compressor than this fingerprint made, and no COMPRESS job
        that has not ended: COMPRESSED ones, and those whose job was cancelled or is DEAD."""

    def count_recompressing(self, compressor: str) -> int:
        """Of every tenant, live documents with a job that is to make anew what another compressor made of them."""

    def recompress(self, tenant: str, document: str) -> None:
        """One transaction: the document is SEARCHABLE again, and has a new COMPRESS job. Nothing where it is not SEARCHABLE
        yet, or has a COMPRESS job that has not ended."""

    def remake(self, tenant: str, document: str, lost: Sequence[Chunk]) -> bool:
        """As recompress, for a document whose compressed embeddings of these chunks are lost: nothing says any more that there
        are any. False where nothing was done."""

    def all_documents(self, tenant: str, after: str = "", limit: int = 256) -> Sequence[Document]:
        """A tenant's live documents by id, those above `after` (for reindexing)."""

    # learning
    def add_examples(
        self,
        tenant: str,
        memory: str,
        new: Sequence[tuple[str, str, Sequence[str]]],
        origin: Origin,
        request: Request | None,
    ) -> tuple[Sequence[Example], int]:
        """Of each (question, answer, documents that it rests on) the example; and how many of them were there already, with
        that question and answer. NotFound (the memory, or a document of it); RequestIdReused."""

    def list_examples(self, tenant: str, memory: str, page_size: int, page_token: str) -> Page[Example]:
        """NotFound where there is no such memory."""

    def delete_example(self, tenant: str, memory: str, example: str) -> None:
        """NotFound."""

    def request_learning(
        self, tenant: str, memory: str, kind: JobKind, payload: dict[str, str], request: Request | None
    ) -> Job:
        """The memory's unfinished job of this kind (STUDY or LEARN; target: the memory's name); a new one where there is
        none. NotFound; RequestIdReused."""

    def add_adapter(
        self,
        adapter: Adapter,
        documents: Sequence[str],
        activate: bool,
        weights_sha256: str = "",
        gathered: datetime | None = None,
    ) -> Adapter | None:
        """Records an adapter whose bytes are in blobs, and the documents that it was trained with. None, and nothing is
        recorded, where the memory or one of them is deleted, or its job is not RUNNING. Activated only where its parent is
        still what is in use. FailedPrecondition where these weights are tainted.

        Of a learned one, `gathered` is when its examples were last gathered, its `create_time` where that is not given: those
        that were there by then may have taught it, and what they rest on had a part in it.

        Of an imported one, `weights_sha256` is the content hash of its weights, and `documents` are the ids that its lineage
        names: those that were never here are left out, those that are deleted are refused with FailedPrecondition. So are
        weights that went out, or came in, before a document was deleted that they have seen, whatever their lineage says."""

    def record_export(self, tenant: str, memory: str, adapter: str, weights_sha256: str) -> None:
        """An archive of these weights is outside: what they have seen is remembered when the adapter is deleted.
        FailedPrecondition where it is tainted; NotFound."""

    def adapter_of_job(self, tenant: str, job: str) -> Adapter | None:
        """What this LEARN job has published."""

    def get_adapter(self, tenant: str, memory: str, adapter: str) -> Adapter:
        """NotFound."""

    def list_adapters(self, tenant: str, memory: str, page_size: int, page_token: str) -> Page[Adapter]:
        """NotFound where there is no such memory."""

    def active_adapters(self, tenant: str, memories: Sequence[str]) -> dict[str, Adapter]:
        """Of those memories that have one."""

    def activate_adapter(self, tenant: str, memory: str, adapter: str) -> Adapter:
        """NotFound; FailedPrecondition where it is tainted."""

    def roll_back_adapter(self, tenant: str, memory: str) -> Adapter | None:
        """Activates the nearest clean ancestor of the active one, which is returned; None is none. FailedPrecondition where
        none is active; NotFound."""

    def delete_adapter(self, tenant: str, memory: str, adapter: str) -> Job:
        """One transaction: rolled back where it is active, gone, and an ERASE job is pending (payload: memory, adapter).
        NotFound."""

    def tainted_adapters(self, tenant: str) -> Sequence[Adapter]:
        """Those whose bytes are not purged yet, of live and deleted memories."""

    def purged_adapter(self, tenant: str, adapter: str) -> None:
        """A tainted adapter has no bytes any more."""

    def retire_adapters(self, tenant: str, memory: str, keep: int) -> Sequence[str]:
        """Deletes the oldest KEPT adapters, but for so many and the one that a rollback would activate, as
        `delete_adapter` does. Imported ones stay, and are not counted. Returns their ids. NotFound."""

    def unlearned(self, tenant: str, memory: str) -> Unlearned:
        """Text counts from when what an adapter was trained on was gathered, one that was trained here and is not tainted; and
        no more once studying or learning it has come to nothing. NotFound."""

    def memories_with(self, tokens: int) -> Sequence[tuple[str, str]]:
        """(tenant, memory) of all live memories, of every tenant, whose documents have at least so many tokens."""

    # jobs
    def add_job(self, tenant: str, kind: str, target: str, payload: dict[str, str]) -> Job: ...

    def get_job(self, tenant: str, job: str) -> Job:
        """NotFound."""

    def list_jobs(self, tenant: str, page_size: int, page_token: str) -> Page[Job]: ...

    def claim_job(self, owner: str, lease_seconds: float) -> Job | None:
        """The next job of any tenant that is due (pending, or running with its lease run out), now RUNNING with one more
        attempt and leased to `owner`. Tenants take turns: the tenant with the fewest running jobs goes first, then the
        oldest job. None where there is nothing due."""

    def heartbeat(
        self,
        tenant: str,
        job: str,
        owner: str,
        lease_seconds: float,
        stage: str,
        done: int,
        total: int,
        rate: float,
        receipt: Receipt | None = None,
    ) -> bool:
        """Renews the lease and records progress, and what the receipt has so far, where given. False where the job is no
        longer the owner's (cancelled, taken)."""

    def release_job(self, tenant: str, job: str, owner: str, seconds: float = 0.0) -> None:
        """Back to PENDING, behind those that wait, the attempt uncounted: a long job gives way, or the daemon drains. Due
        again after so many seconds."""

    def finish_job(self, tenant: str, job: str, owner: str, receipt: Receipt) -> bool:
        """SUCCEEDED. False where no longer the owner's."""

    def fail_job(self, tenant: str, job: str, owner: str, error: str, retry_at: datetime | None) -> bool:
        """PENDING again, due at `retry_at`; DEAD where None. False where no longer the owner's."""

    def cancel_job(self, tenant: str, job: str) -> Job:
        """CANCELLED, unless it has ended; FailedPrecondition for an ERASE job (what is deleted stays deleted). NotFound."""

    def retry_job(self, tenant: str, job: str) -> Job:
        """A DEAD or CANCELLED job is PENDING again with no attempts. FailedPrecondition otherwise, or where its document is
        deleted. NotFound."""

    # usage
    def add_usage(
        self, tenant: str, *, answers: int = 0, searches: int = 0, prompt_tokens: int = 0, output_tokens: int = 0
    ) -> None: ...

    def usage(self, tenant: str) -> Usage: ...

    def close(self) -> None: ...


class BlobWriter(Protocol):
    """A blob being written: nothing is visible until commit."""

    def write(self, data: bytes) -> None: ...

    def commit(self, key: str) -> None:
        """Durable and visible under the key at once, or not at all."""

    def abort(self) -> None:
        """Leaves nothing. Harmless after commit."""

    @property
    def sha256(self) -> str:
        """Of what was written so far, in hex."""

    @property
    def size(self) -> int:
        """Bytes written so far."""


class Blobs(Protocol):
    """The truth: texts, embeddings. Keys begin with `tenant/`; a key of another tenant is refused with NotFound."""

    def put(self, tenant: str, key: str, data: bytes) -> None:
        """Writes beside, flushes to disk, renames: whole or not at all. ResourceExhausted on a full disk."""

    def writer(self, tenant: str) -> BlobWriter:
        """For data that does not fit in memory."""

    def get(self, tenant: str, key: str, sha256: str = "") -> bytes:
        """NotFound; DataLoss where the checksum (if given) differs."""

    def read_range(self, tenant: str, key: str, start: int, end: int, sha256: str = "") -> bytes:
        """Bytes [start, end). NotFound; DataLoss where the checksum (if given) differs."""

    def stream(self, tenant: str, key: str, sha256: str = "", block: int = 1 << 20) -> Iterator[bytes]:
        """In blocks; DataLoss at the end where the checksum (if given) differs."""

    def delete_prefix(self, tenant: str, prefix: str) -> int:
        """Deletes all under it; returns how many blobs there were."""

    def documents(self, tenant: str) -> Iterator[tuple[str, str]]:
        """(memory, document) of all documents that have blobs, whether or not the ledger knows them."""

    def sweep(self, older_than_seconds: float) -> int:
        """Removes abandoned temporary files of writers that never committed; returns how many."""


@dataclass(frozen=True, slots=True)
class IndexRow:
    """A passage to index. `vector` is float32 little-endian bytes of the retrieval encoder's dimension."""

    passage: str
    memory: str
    document: str
    text: str
    vector: bytes


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that was found; a higher score is better."""

    passage: str
    document: str
    memory: str
    score: float


class Index(Protocol):
    """Rebuildable: passages by vector and by words. Tenant is the partition key and in every filter.

    All raise Unavailable where the server is down.
    """

    def upsert(self, tenant: str, rows: Sequence[IndexRow]) -> None:
        """Visible to searches when it returns."""

    def search_dense(self, tenant: str, memories: Sequence[str], vector: bytes, limit: int) -> Sequence[Hit]:
        """By cosine similarity."""

    def search_text(self, tenant: str, memories: Sequence[str], query: str, limit: int) -> Sequence[Hit]:
        """By BM25."""

    def delete_document(self, tenant: str, memory: str, document: str) -> int:
        """Returns how many vectors there were."""

    def delete_memory(self, tenant: str, memory: str) -> int:
        """Returns how many vectors there were."""

    def count(self, tenant: str) -> int:
        """How many vectors. Reads all of them where the server is Milvus Lite: not for hot paths."""

    def empty(self, tenant: str) -> bool:
        """Whether the tenant has no vectors: a cheap question."""

    def flush(self) -> None:
        """Unflushed rows are slow to search; called now and then in the background."""

    def drop(self) -> None:
        """Forgets everything, of every tenant, before it is rebuilt."""

    def close(self) -> None: ...


class Cache(Protocol):
    """Droppable: a miss, an eviction or a dead server is never an error, only slower."""

    def get_many(self, tenant: str, keys: Sequence[str]) -> dict[str, bytes]:
        """Those that are there."""

    def put(self, tenant: str, key: str, value: bytes) -> None: ...

    def delete_prefix(self, tenant: str, prefix: str) -> int:
        """Returns how many there were. Raises Unavailable where it cannot be sure: erasing must be certain."""

    def close(self) -> None: ...
