"""An adapter that comes from elsewhere: ours, with its lineage, or anybody's LoRA in PEFT's format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from memoryd.core import Adapter, new_id, now
from memoryd.errors import FingerprintMismatch, InvalidArgument
from memoryd.learn.adapter_files import AdapterFiles
from memoryd.recall.assembly import Mode
from memoryd.worker.client import WorkerInfo

_NAMES = ("memory", "parent", "base_model", "reader", "compressor", "gather_time", "create_time")
_COUNTS = ("examples", "held_out", "epochs", "steps")
_NUMBERS = ("learning_rate", "seconds", "loss")
_MOST_DOCUMENTS = 200_000  # more than a run of learning can see; all tenants' writes wait while the ledger looks for them


def imported(tenant: str, memory: str, files: AdapterFiles, info: WorkerInfo) -> tuple[Adapter, AdapterFiles]:
    """The adapter as a memory's new version, and its files. What a plain PEFT directory does not say is taken to be what is in
    use: that it fits is for the worker to try. FingerprintMismatch where its lineage names another base model; InvalidArgument
    where it names too many documents."""
    said = _known(files.lineage)
    base = said.get("base_model", info.base_fingerprint)
    if base != info.base_fingerprint:
        raise FingerprintMismatch(
            f"the adapter changes the base model {base[:16]}, the one in use is {info.base_fingerprint[:16]}",
            details={"adapter": base, "base_model": info.base_fingerprint},
        )
    id_, time = new_id(), now()
    files = replace(files, lineage={**said, "imported_from": said.get("memory", ""), "import_time": time.isoformat()})
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
        examples=said.get("examples", 0),
    )
    return adapter, files


def named_documents(lineage: Mapping[str, Any]) -> list[str]:
    """Ids of the documents that it was trained with, as its lineage says; none where that says nothing. InvalidArgument
    where they are too many."""
    return sorted({name.rpartition("/")[2] for name in _documents(lineage)} - {""})


def _known(said: Mapping[str, Any]) -> dict[str, Any]:
    """What a lineage of ours says, as far as this one says it: others may say anything, and all that is kept is held in memory
    and exported again."""
    known = {name: said[name] for name in _NAMES if _is_name(said.get(name))}
    known |= {name: said[name] for name in _COUNTS if _is_count(said.get(name))}
    known |= {name: said[name] for name in _NUMBERS if isinstance(said.get(name), float) or _is_count(said.get(name))}
    modes = said.get("modes")
    if isinstance(modes, list):
        known["modes"] = list(dict.fromkeys(mode for mode in modes if isinstance(mode, str) and mode in Mode.__members__))
    if documents := _documents(said):
        known["documents"] = documents
    return known


def _documents(lineage: Mapping[str, Any]) -> list[str]:
    """The documents' names, each once. InvalidArgument where they are too many."""
    said = lineage.get("documents")
    names = [name for name in said if isinstance(name, str)] if isinstance(said, list) else []
    if len(names) > _MOST_DOCUMENTS:
        raise InvalidArgument(
            f"the adapter's lineage names more than {_MOST_DOCUMENTS} documents: import one that was trained with fewer",
            reason="TOO_LARGE",
        )
    return [name for name in dict.fromkeys(names) if _is_name(name)]


def _is_name(value: object) -> bool:
    """Whether every store takes it."""
    return isinstance(value, str) and len(value) <= 256 and value.isprintable()


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 31
