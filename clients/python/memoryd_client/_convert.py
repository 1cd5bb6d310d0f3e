"""Between the wire's messages and this package's types: the only file that knows both."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import Any, TypeVar

from . import _records as r
from . import _types as t
from . import _wire
from ._errors import InvalidArgument

T = TypeVar("T")
_LARGEST_INT = 2**53  # numbers are doubles


def name_of(collection: str, given: object) -> str:
    """Full resource name of an id, of a name, or of anything that has a name."""
    name = given if isinstance(given, str) else str(getattr(given, "name", given))
    return name if name.startswith(f"{collection}/") else f"{collection}/{name}"


def time_out(value: datetime | None) -> Any:
    """A wire time. Refuses times without a zone: the daemon's zone may be another."""
    if value is None:
        return None
    if value.tzinfo is None:
        raise InvalidArgument(f"the time {value.isoformat()} has no time zone: give it one, e.g. tzinfo=timezone.utc")
    out = _wire.message("google.protobuf.Timestamp")()
    out.FromDatetime(value)
    return out


def time_in(owner: Any, field: str) -> datetime | None:
    """A time in UTC, or None where it is not set."""
    return getattr(owner, field).ToDatetime(tzinfo=timezone.utc) if owner.HasField(field) else None


def metadata_out(metadata: t.Metadata | None) -> dict[str, Any]:
    """Wire metadata."""
    return {key: _wire.message("MetadataValue")(**_value(key, value)) for key, value in (metadata or {}).items()}


def _value(key: str, value: t.MetadataValue) -> dict[str, Any]:
    if isinstance(value, bool):  # before numbers: a bool is an int to Python
        return {"bool_value": value}
    if isinstance(value, str):
        return {"string_value": value}
    if isinstance(value, (int, float)):
        if isinstance(value, int) and abs(value) > _LARGEST_INT:
            raise InvalidArgument(f"metadata {key!r} is too large for a number to keep exactly: use a str")
        return {"number_value": float(value)}
    if isinstance(value, datetime):
        return {"time_value": time_out(value)}
    raise InvalidArgument(f"metadata {key!r} is a {type(value).__name__}: use str, float, bool or datetime")


def metadata_in(pairs: Mapping[str, Any]) -> t.Metadata:
    """Metadata. A kind of value that this client does not know yet is left out."""
    out: dict[str, t.MetadataValue] = {}
    for key, value in pairs.items():
        kind = value.WhichOneof("kind")
        if kind == "time_value":
            out[key] = value.time_value.ToDatetime(tzinfo=timezone.utc)
        elif kind is not None:
            out[key] = getattr(value, kind)
    return out


def message_out(message: t.Message | Mapping[str, Any]) -> Any:
    """A wire message, of a Message or of the dict that chat APIs use."""
    fields = {**dataclasses.asdict(message)} if isinstance(message, t.Message) else dict(message)
    fields["time"] = time_out(fields.pop("time", None))
    try:
        return _wire.message("Message")(**fields)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"a message takes role, content, speaker and time: {error}") from None


def _same(kind: type[T], message: Any, /, **given: Any) -> T:
    """Fills a dataclass from the fields of the same name; `given` are those that are not the same."""
    names = [f.name for f in dataclasses.fields(kind) if f.name not in given]  # type: ignore[arg-type]
    times = {n: time_in(message, n) for n in names if n.endswith("_time")}
    return kind(**{n: getattr(message, n) for n in names if n not in times}, **times, **given)


def memory(message: Any) -> t.MemoryInfo:
    return _same(t.MemoryInfo, message, metadata=metadata_in(message.metadata))


def document(message: Any, *, with_text: bool = False) -> t.Document:
    return _same(
        t.Document,
        message,
        kind=t.DocumentKind(message.kind),
        stage=t.Stage(message.stage),
        metadata=metadata_in(message.metadata),
        text=message.text if with_text else None,
        job=message.operation,
    )


def sources(messages: Iterable[Any]) -> tuple[t.Source, ...]:
    return tuple(_same(t.Source, m) for m in messages)


def context(message: Any) -> t.Context:
    return _same(t.Context, message, sources=sources(message.sources))


def answer_event(message: Any) -> t.AnswerEvent | None:
    """None: an event that this client does not know yet."""
    kind = message.WhichOneof("event")
    if kind == "text":
        return t.Text(message.text)
    if kind == "sources":
        of = message.sources
        return t.Sources(sources=sources(of.sources), mode=t.Mode(of.mode), warnings=tuple(of.warnings))
    if kind == "usage":
        usage = message.usage
        return _same(
            t.Usage,
            usage,
            cache_hits=dict(usage.cache_hits),
            stage_ms=dict(usage.stage_ms),
            finish_reason=t.FinishReason(usage.finish_reason),
            cited=tuple(usage.cited),
        )
    return None


def progress(message: Any, receipt: r.Receipt | None = None) -> r.Job:
    """A job, of its JobMetadata."""
    return _same(r.Job, message, state=r.JobState(message.state), receipt=receipt)


def job(operation: Any) -> r.Job:
    """A job, of its Operation."""
    metadata = _wire.message("JobMetadata")()
    operation.metadata.Unpack(metadata)
    metadata.name = metadata.name or operation.name
    metadata.error = metadata.error or operation.error.message
    return progress(metadata, _receipt(operation.response) if operation.HasField("response") else None)


def _receipt(packed: Any) -> r.Receipt | None:
    for kind in (r.EraseReceipt, r.CompressReceipt, r.ReindexReceipt):
        message = _wire.message(kind.__name__)()
        if packed.Unpack(message):
            return _same(kind, message)  # type: ignore[return-value]  # one of the three
    return None


def tenant(message: Any) -> r.Tenant:
    return _same(r.Tenant, message)


def api_key(message: Any) -> r.ApiKey:
    return _same(r.ApiKey, message)


def tenant_usage(message: Any) -> r.TenantUsage:
    return _same(r.TenantUsage, message)
