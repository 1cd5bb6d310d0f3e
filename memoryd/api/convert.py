"""Between protobuf and core: the only place that knows both."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from google.longrunning import operations_pb2
from google.protobuf.message import Message as ProtoMessage
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2, status_pb2

from memoryd import core
from memoryd.errors import InvalidArgument, ReplacedNotFound
from memoryd.v1 import admin_pb2, jobs_pb2, learn_pb2, memory_pb2, recall_pb2


def timestamp(value: datetime | None) -> Timestamp | None:
    if value is None:
        return None
    out = Timestamp()
    out.FromDatetime(value.astimezone(UTC).replace(tzinfo=None))
    return out


def moment(value: Timestamp) -> datetime:
    try:
        return value.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidArgument(f"a time is out of range: {error}") from error


def metadata_to_core(values: Mapping[str, memory_pb2.MetadataValue]) -> core.Metadata:
    out: dict[str, core.MetadataValue] = {}
    for key, value in values.items():
        kind = value.WhichOneof("kind")
        out[key] = moment(value.time_value) if kind == "time_value" else getattr(value, str(kind))
    return out


def metadata_to_proto(values: core.Metadata) -> dict[str, memory_pb2.MetadataValue]:
    out: dict[str, memory_pb2.MetadataValue] = {}
    for key, value in values.items():
        if isinstance(value, bool):  # before numbers: bool is an int
            out[key] = memory_pb2.MetadataValue(bool_value=value)
        elif isinstance(value, str):
            out[key] = memory_pb2.MetadataValue(string_value=value)
        elif isinstance(value, datetime):
            out[key] = memory_pb2.MetadataValue(time_value=timestamp(value))
        else:
            out[key] = memory_pb2.MetadataValue(number_value=value)
    return out


def memory(value: core.Memory) -> memory_pb2.Memory:
    return memory_pb2.Memory(
        name=core.memory_name(value.id),
        display_name=value.display_name,
        description=value.description,
        create_time=timestamp(value.create_time),
        update_time=timestamp(value.update_time),
        document_count=value.document_count,
        metadata=metadata_to_proto(value.metadata),
    )


_KINDS = {
    core.Kind.TEXT: memory_pb2.Document.KIND_TEXT,
    core.Kind.MESSAGES: memory_pb2.Document.KIND_MESSAGES,
}


def document(value: core.Document, text: str = "", truncated: bool = False) -> memory_pb2.Document:
    return memory_pb2.Document(
        name=core.document_name(value.memory, value.id),
        title=value.title,
        kind=_KINDS[value.kind],
        stage=int(value.stage),  # type: ignore[arg-type]  # the numbers are the proto's
        metadata=metadata_to_proto(value.metadata),
        size_bytes=value.size_bytes,
        token_count=value.token_count,
        chunk_count=value.chunk_count,
        sha256=value.sha256,
        create_time=timestamp(value.create_time),
        text=text,
        text_truncated=truncated,
        operation=core.operation_name(value.job) if value.job else "",
    )


def message(value: memory_pb2.Message) -> core.Message:
    time = moment(value.time) if value.HasField("time") else None
    return core.Message(role=value.role, content=value.content, speaker=value.speaker, time=time)


def job_metadata(job: core.Job) -> jobs_pb2.JobMetadata:
    return jobs_pb2.JobMetadata(
        name=core.operation_name(job.id),
        kind=str(job.kind),
        target=job.target,
        state=int(job.state),  # type: ignore[arg-type]  # the numbers are the proto's
        stage=job.stage,
        done=job.done,
        total=job.total,
        rate=job.rate,
        attempts=job.attempts,
        error=job.error,
        create_time=timestamp(job.create_time),
        end_time=timestamp(job.end_time),
        loss=job.receipt.get("loss") if job.kind is core.JobKind.LEARN else None,  # type: ignore[arg-type]  # a number
        seconds_left=_seconds_left(job),
    )


def _seconds_left(job: core.Job) -> float | None:
    known = job.state is core.JobState.RUNNING and job.rate > 0 and job.total
    return max(0, job.total - job.done) / job.rate if known else None


def operation(job: core.Job) -> operations_pb2.Operation:
    """A job as clients see it: done with a receipt, or with an error that says why and what to do."""
    out = operations_pb2.Operation(name=core.operation_name(job.id), done=job.state.ended)
    out.metadata.Pack(job_metadata(job))
    if job.state is core.JobState.SUCCEEDED:
        out.response.Pack(_receipt(job))
    elif job.state is core.JobState.DEAD:
        out.error.CopyFrom(
            status_pb2.Status(code=code_pb2.ABORTED, message=f"{job.error} (tried {job.attempts} times; RetryJob tries again)")
        )
    elif job.state is core.JobState.CANCELLED:
        out.error.CopyFrom(status_pb2.Status(code=code_pb2.CANCELLED, message="the job was cancelled"))
    return out


def _receipt(job: core.Job) -> ProtoMessage:
    fields: dict[str, Any] = dict(job.receipt)
    if job.kind is core.JobKind.ERASE:
        return jobs_pb2.EraseReceipt(target=job.target, erase_time=timestamp(job.end_time), **fields)
    if job.kind is core.JobKind.LEARN:
        return learn_pb2.LearnReceipt(**{**fields, "activated": bool(fields.get("activated"))})
    if job.kind is core.JobKind.STUDY:
        return learn_pb2.StudyReceipt(**fields)
    if job.kind is core.JobKind.REINDEX:
        return jobs_pb2.ReindexReceipt(**fields)
    return jobs_pb2.CompressReceipt(document=job.target, **fields)


def tenant(value: core.Tenant) -> admin_pb2.Tenant:
    return admin_pb2.Tenant(
        name=f"tenants/{value.id}", display_name=value.display_name, create_time=timestamp(value.create_time)
    )


def api_key(value: core.ApiKey) -> admin_pb2.ApiKey:
    return admin_pb2.ApiKey(
        name=f"tenants/{value.tenant}/apiKeys/{value.id}",
        display_name=value.display_name,
        prefix=value.prefix,
        create_time=timestamp(value.create_time),
        revoke_time=timestamp(value.revoke_time),
    )


def source(value: core.Source) -> recall_pb2.Source:
    return recall_pb2.Source(
        passage_id=value.passage.id,
        document=core.document_name(value.memory, value.passage.document),
        title=value.title,
        start=value.passage.start,
        end=value.passage.end,
        score=value.score,
        dense_score=value.dense_score,
        text=value.text,
    )


def example(value: core.Example) -> learn_pb2.Example:
    return learn_pb2.Example(
        name=core.example_name(value.memory, value.id),
        question=value.question,
        answer=value.answer,
        documents=[core.document_name(value.memory, document) for document in value.documents],
        origin=int(value.origin),  # type: ignore[arg-type]  # the numbers are the proto's
        create_time=timestamp(value.create_time),
    )


def adapter(value: core.Adapter) -> learn_pb2.Adapter:
    return learn_pb2.Adapter(
        name=core.adapter_name(value.memory, value.id),
        state=int(value.state),  # type: ignore[arg-type]  # the numbers are the proto's
        create_time=timestamp(value.create_time),
        fingerprint=value.fingerprint,
        parent=core.adapter_name(value.memory, value.parent) if value.parent else "",
        base_model=value.base,
        reader=value.reader,
        compressor=value.compressor,
        example_count=value.examples,
        document_count=value.documents,
        size_bytes=value.size_bytes,
        judgement=_judgement(value.judgement) if value.judgement else None,
        gather_time=timestamp(value.gather_time),
    )


def lineage(said: Mapping[str, Any]) -> learn_pb2.Lineage:
    """Of a lineage.json. An imported one may say anything: what is not as ours is left out."""
    lists = {name: said[name] for name in ("documents", "modes") if isinstance(said.get(name), list)}
    counts = {name: said[name] for name in ("epochs", "steps") if _is_count(said.get(name))}
    numbers = {n: said[n] for n in ("learning_rate", "seconds") if isinstance(said.get(n), float) or _is_count(said.get(n))}
    return learn_pb2.Lineage(
        documents=[name for name in lists.get("documents", []) if _is_name(name)][:_LINEAGE_DOCUMENTS],
        modes=[recall_pb2.Mode.Value(f"MODE_{mode}") for mode in _MODES if mode in lists.get("modes", [])],  # type: ignore[misc]  # the numbers are the proto's
        imported_from=said["imported_from"] if _is_name(said.get("imported_from")) else "",
        **counts,
        **numbers,
    )


_LINEAGE_DOCUMENTS = 10_000
_MODES = ("TEXT", "COMPRESSED", "HYBRID")


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 31


def _is_name(value: object) -> bool:
    return isinstance(value, str) and len(value) <= 256 and value.isprintable()


def _judgement(kept: Mapping[str, Any]) -> learn_pb2.Judgement:
    kinds = [learn_pb2.JudgedKind(**kind) for kind in kept["kinds"]]
    return learn_pb2.Judgement(better=kept["better"], verdict=kept["verdict"], kinds=kinds)


def request(message: Any) -> core.Request | None:
    """The request_id with a digest of all that was asked; None where the caller sent none."""
    if not message.request_id:
        return None
    return core.Request(message.request_id, digest(message))


def digest(message: ProtoMessage) -> str:
    body = message.SerializeToString(deterministic=True)
    return hashlib.sha256(message.DESCRIPTOR.full_name.encode() + b"\0" + body).hexdigest()


def last(name: str) -> str:
    """The id at the end of a resource name that validation has let through."""
    return name.rpartition("/")[2]


def child_ids(name: str) -> tuple[str, str]:
    """(memory, id) of memories/{memory}/documents/{id}, or of an example or an adapter."""
    _, memory_id, _, id_ = name.split("/")
    return memory_id, id_


def replaced(write: Any) -> str:
    """The id of the document whose new version a write is, empty where it is none's. ReplacedNotFound where it is named as
    one of another memory than the write's own."""
    if not write.replaces:
        return ""
    memory_id, document_id = child_ids(write.replaces)
    if memory_id != last(write.parent):
        raise ReplacedNotFound
    return document_id
