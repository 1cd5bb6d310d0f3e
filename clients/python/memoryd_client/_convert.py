"""Between the wire's messages and this package's types: the only file that knows both."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, TypeVar

from . import _learning as lr
from . import _records as r
from . import _types as t
from . import _wire
from ._errors import InvalidArgument

T = TypeVar("T")
_LARGEST_INT = 2**53  # numbers are doubles
_MESSAGE_FIELDS = [field.name for field in dataclasses.fields(t.Message)]


def name_of(collection: str, given: object) -> str:
    """Full resource name of an id, of a name, or of anything that has a name."""
    name = given if isinstance(given, str) else str(getattr(given, "name", given))
    return name if name.startswith(f"{collection}/") else f"{collection}/{name}"


def name_in(memory: str, collection: str, given: object) -> str:
    """Full resource name of an id in a memory, of a name, or of anything that has a name."""
    name = given if isinstance(given, str) else str(getattr(given, "name", given))
    return name if name.startswith("memories/") else f"{memory}/{collection}/{name}"


def time_out(value: datetime | None) -> Any:
    """A wire time. Refuses times without a zone: the daemon's zone may be another."""
    if value is None:
        return None
    if not isinstance(value, datetime):
        raise InvalidArgument(f"a time is a datetime with a time zone, not a {type(value).__name__}")
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


def mode_out(mode: t.Mode) -> int:
    """A wire mode. InvalidArgument names the modes there are."""
    if mode not in tuple(t.Mode):
        raise InvalidArgument(f"a mode is {', '.join(f'Mode.{one}' for one in t.Mode if one)}, not {mode!r}")
    return int(mode)


def messages_out(given: Iterable[t.Message | Mapping[str, Any]]) -> Iterator[Any]:
    """Wire messages. InvalidArgument says which of them can't be one."""
    for number, one in enumerate(given):
        try:
            yield message_out(one)
        except InvalidArgument as error:
            raise InvalidArgument(f"message {number}: {error.message}") from None


def message_out(message: t.Message | Mapping[str, Any]) -> Any:
    """A wire message, of a Message or of the dict that chat APIs use. InvalidArgument where text would be lost."""
    if isinstance(message, t.Message):
        fields: dict[str, Any] = dataclasses.asdict(message)
    elif isinstance(message, Mapping):
        fields = _chat_fields(message)
    else:
        raise InvalidArgument(f"a message is a Message or a dict, not a {type(message).__name__}")
    if not isinstance(content := fields.get("content"), str):
        raise InvalidArgument(f"content is a {type(content).__name__}: give what is to be remembered as one str")
    fields["time"] = time_out(fields.get("time"))
    try:
        return _wire.message("Message")(**fields)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"a message takes role, content and speaker as str, and time as a datetime: {error}") from None


def _chat_fields(message: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a Message, of those of chat APIs: `name` is its speaker. What they leave empty says nothing, and neither does
    the id of the call that a tool answers; anything else might."""
    fields = {key: value for key, value in message.items() if key in _MESSAGE_FIELDS or (value and key != "tool_call_id")}
    if name := fields.pop("name", None):
        if fields.get("speaker") not in (None, "", name):
            raise InvalidArgument("it has a name and a speaker, which are the same: give one of them")
        fields["speaker"] = name
    if more := [str(key) for key in fields if key not in _MESSAGE_FIELDS]:
        raise InvalidArgument(
            f"{', '.join(more)} would not be kept: a message takes role, content, speaker (or name) and time, so write what is "
            "to be remembered into content"
        )
    return fields


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
            adapters={used.adapter: used.weight for used in usage.adapters},
        )
    return None


def progress(message: Any, receipt: r.Receipt | None = None) -> r.Job:
    """A job, of its JobMetadata."""
    known = {name: getattr(message, name) if message.HasField(name) else None for name in ("loss", "seconds_left")}
    return _same(r.Job, message, state=r.JobState(message.state), receipt=receipt, **known)


def job(operation: Any) -> r.Job:
    """A job, of its Operation."""
    metadata = _wire.message("JobMetadata")()
    operation.metadata.Unpack(metadata)
    metadata.name = metadata.name or operation.name
    metadata.error = metadata.error or operation.error.message
    return progress(metadata, _receipt(operation.response) if operation.HasField("response") else None)


def _receipt(packed: Any) -> r.Receipt | None:
    for kind in (r.EraseReceipt, r.CompressReceipt, r.ReindexReceipt, r.StudyReceipt, r.LearnReceipt):
        message = _wire.message(kind.__name__)()
        if packed.Unpack(message):
            return _same(kind, message)  # type: ignore[return-value]  # one of them
    return None


def tenant(message: Any) -> r.Tenant:
    return _same(r.Tenant, message)


def api_key(message: Any) -> r.ApiKey:
    return _same(r.ApiKey, message)


def tenant_usage(message: Any) -> r.TenantUsage:
    return _same(r.TenantUsage, message)


def example(message: Any) -> lr.Example:
    return _same(lr.Example, message, documents=tuple(message.documents), origin=lr.Origin(message.origin))


def added_examples(message: Any) -> lr.AddedExamples:
    return _same(lr.AddedExamples, message, examples=tuple(example(m) for m in message.examples))


def examples_out(memory: str, given: Iterable[lr.GivenExample]) -> Iterator[Any]:
    """Wire examples. InvalidArgument says which of them can't be one."""
    for number, one in enumerate(given):
        try:
            yield example_out(memory, one)
        except InvalidArgument as error:
            raise InvalidArgument(f"example {number}: {error.message}") from None


def example_out(memory: str, given: lr.GivenExample) -> Any:
    """A wire example. What only memoryd sets is left out, so that what was read or exported can be added again."""
    if isinstance(given, lr.Example):
        fields: dict[str, Any] = dataclasses.asdict(given)
    elif isinstance(given, Mapping):
        fields = dict(given)
    elif isinstance(given, Sequence) and not isinstance(given, str) and len(given) in (2, 3):
        fields = dict(zip(("question", "answer", "documents"), given, strict=False))
    else:
        raise InvalidArgument("an example is an Example, a dict, or a tuple of question, answer and perhaps documents")
    fields = {key: value for key, value in fields.items() if key not in ("name", "origin", "create_time")}
    fields["documents"] = documents_out(memory, fields.get("documents") or ())
    try:
        return _wire.message("Example")(**fields)
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"an example takes question, answer and documents: {error}") from None


def documents_out(memory: str, given: str | Iterable[str | t.Document]) -> list[str]:
    """Full names of a memory's documents."""
    return [name_in(memory, "documents", one) for one in ([given] if isinstance(given, str) else given)]


def adapter(message: Any) -> lr.Adapter:
    judged = message.judgement
    kinds = tuple(_same(lr.JudgedKind, kind) for kind in judged.kinds)
    return _same(
        lr.Adapter,
        message,
        state=lr.AdapterState(message.state),
        judgement=_same(lr.Judgement, judged, kinds=kinds) if message.HasField("judgement") else None,
        curve=tuple(_same(lr.LossPoint, point) for point in message.curve),
        lineage=_lineage(message.lineage) if message.HasField("lineage") else None,
    )


def _lineage(message: Any) -> lr.Lineage:
    modes = tuple(t.Mode(mode) for mode in message.modes)
    return _same(lr.Lineage, message, documents=tuple(message.documents), modes=modes)


def weights_out(memories: Sequence[str], given: lr.GivenAdapters | None) -> list[dict[str, Any]]:
    """Wire weights of the adapters to answer with. Where one memory is asked, an id will do."""
    if isinstance(given, (str, lr.Adapter)):  # one, where several are meant
        given = [given]
    pairs = given.items() if isinstance(given, Mapping) else [(adapter, 1.0) for adapter in given or ()]
    return [{"adapter": _adapter_name(memories, adapter), "weight": weight} for adapter, weight in pairs]


def _adapter_name(memories: Sequence[str], given: str | lr.Adapter) -> str:
    if len(memories) == 1:
        return name_in(memories[0], "adapters", given)
    name = given if isinstance(given, str) else given.name
    if not name.startswith("memories/"):
        raise InvalidArgument(f"several memories are asked: give the adapter {name!r} with its full name")
    return name
