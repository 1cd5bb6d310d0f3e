"""An adapter that comes from elsewhere: ours, with its lineage, or anybody's LoRA in PEFT's format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from memoryd.core import Adapter, new_id, now
from memoryd.errors import FingerprintMismatch, InvalidArgument
from memoryd.learn.adapter_files import AdapterFiles
from memoryd.worker.client import WorkerInfo

_MOST_DOCUMENTS = 200_000  # more than a run of learning can see; all tenants' writes wait while the ledger looks for them


def imported(tenant: str, memory: str, files: AdapterFiles, info: WorkerInfo) -> tuple[Adapter, AdapterFiles]:
    """The adapter as a memory's new version, and its files. What a plain PEFT directory does not say is taken to be what is in
    use: that it fits is for the worker to try. FingerprintMismatch where its lineage names another base model."""
    said = {key: value for key, value in files.lineage.items() if isinstance(value, str) and _is_name(value)}
    base = said.get("base_model", info.base_fingerprint)
    if base != info.base_fingerprint:
        raise FingerprintMismatch(
            f"the adapter changes the base model {base[:16]}, the one in use is {info.base_fingerprint[:16]}",
            details={"adapter": base, "base_model": info.base_fingerprint},
        )
    id_, time = new_id(), now()
    lineage: dict[str, Any] = {**files.lineage, "imported_from": said.get("memory", ""), "import_time": time.isoformat()}
    files = replace(files, lineage=lineage)
    examples = files.lineage.get("examples")
    adapter = Adapter(
        tenant,
        memory,
        id_,
        time,
        files.fingerprint,
        base,
        said.get("reader", info.reader),
        said.get("compressor", info.compressor.fingerprint),
        files.size,
        examples=examples if isinstance(examples, int) and 0 <= examples < 1 << 31 else 0,
    )
    return adapter, files


def named_documents(lineage: Mapping[str, Any]) -> list[str]:
    """Ids of the documents that it was trained with, as its lineage says; none where that says nothing. InvalidArgument
    where they are too many."""
    said = lineage.get("documents")
    names = [name for name in said if isinstance(name, str)] if isinstance(said, list) else []
    if len(names) > _MOST_DOCUMENTS:
        raise InvalidArgument(f"the adapter's lineage names more than {_MOST_DOCUMENTS} documents", reason="TOO_LARGE")
    return sorted({name.rpartition("/")[2] for name in names if _is_name(name)} - {""})


def _is_name(value: str) -> bool:
    """Whether every store takes it."""
    return len(value) <= 256 and value.isprintable()
