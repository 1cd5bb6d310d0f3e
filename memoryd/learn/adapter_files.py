"""An adapter's files, in memory and as a tar archive: a plain PEFT directory, and lineage.json beside it."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import math
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, deserialize

from memoryd.errors import DataLoss, InvalidArgument

CONFIG, WEIGHTS, LINEAGE = "adapter_config.json", "adapter_model.safetensors", "lineage.json"
CURVE = "curve.jsonl"
MAX_BYTES = 512 << 20  # of an archive's files
_MOST = {CONFIG: 1 << 20, LINEAGE: 16 << 20, CURVE: 4 << 20}
"""Bytes of these, which are read as a whole; ours stay far below."""
_MOST_VALUES = 1 << 18  # of a lineage, as its commas tell: `[],[],…` is short, and takes twenty times as much once it is read
_VALUE_BYTES = 64  # of memory, that a value takes beside its text
_MOST_LOSS = 1e30  # or there is no picture of it
_MOST_FILES = 1000
_ROOM = 1 << 20  # for the headers of so many
_COMPRESSED: Mapping[bytes, Any] = {  # how it begins, and what opens it
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}
_NEEDED = (CONFIG, WEIGHTS)
_KNOWN = (*_NEEDED, LINEAGE, CURVE)


@dataclass(frozen=True, slots=True)
class AdapterFiles:
    """PEFT's two files, what made them, and the rows {"step", "loss"} of the training."""

    config: bytes
    weights: bytes
    lineage: Mapping[str, Any]
    curve: bytes = b""

    @property
    def fingerprint(self) -> str:
        """Content hash of what is served."""
        return hashlib.sha256(hashlib.sha256(self.config).digest() + self.weights).hexdigest()

    @property
    def weights_sha256(self) -> str:
        """Content hash of the tensors alone: another configuration, or another way to lay them out, does not change it."""
        made = hashlib.sha256()
        try:
            for name, tensor in sorted(deserialize(self.weights), key=itemgetter(0)):
                made.update(json.dumps([name, tensor["dtype"], tensor["shape"]]).encode())
                made.update(tensor["data"])
        except SafetensorError:  # the worker would not load it
            made.update(self.weights)
        return made.hexdigest()

    @property
    def size(self) -> int:
        """Bytes of the files."""
        return len(self.config) + len(self.weights) + len(_as_json(self.lineage)) + len(self.curve)

    @property
    def held_bytes(self) -> int:
        """Bytes of memory that they take, about: the lineage is held as it was read."""
        return self.size + _VALUE_BYTES * _values(_as_json(self.lineage))

    @classmethod
    def of_directory(cls, directory: Path, lineage: Mapping[str, Any], curve: bytes = b"") -> AdapterFiles:
        """A PEFT directory's."""
        return cls((directory / CONFIG).read_bytes(), (directory / WEIGHTS).read_bytes(), lineage, curve)


def pack_files(files: AdapterFiles) -> bytes:
    """As a tar archive, the same bytes for the same files. InvalidArgument where `unpack_files` would not take it."""
    lineage = _as_json(files.lineage)
    if len(lineage) > _MOST[LINEAGE] or _values(lineage) > _MOST_VALUES:
        raise InvalidArgument(
            f"the adapter's {LINEAGE} would have more than {_MOST[LINEAGE]} bytes, or {_MOST_VALUES} values: name fewer "
            "documents there, or leave it out of the archive",
            reason="TOO_LARGE",
        )
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in zip(_KNOWN, (files.config, files.weights, lineage, files.curve), strict=True):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def unpack_files(data: bytes, fingerprint: str = "") -> AdapterFiles:
    """Files of the archive, in its root or in one folder. InvalidArgument where they are not those of an adapter; DataLoss
    where they are not those of this fingerprint, if given."""
    problem = DataLoss if fingerprint else InvalidArgument
    try:
        found = _members(_plain(data))
        lineage = _lineage(found.get(LINEAGE) or b"{}")
        curve = found.get(CURVE, b"")
        is_curve = all(_is_row(json.loads(line), bool(fingerprint)) for line in curve.decode().splitlines())
    except (tarfile.TarError, zlib.error, lzma.LZMAError, ValueError, EOFError, OSError, RecursionError) as error:
        raise problem(f"this is not the tar archive of an adapter: {error}") from error
    if missing := [name for name in _NEEDED if not found.get(name)]:
        raise problem(f"the archive of an adapter lacks {', '.join(missing)}")
    if not isinstance(lineage, dict):
        raise problem(f"the adapter's {LINEAGE} is not a JSON object")
    if not is_curve:
        raise problem(f'the adapter\'s {CURVE} is not rows of {{"step", "loss"}}, finite numbers: mend it, or leave it out')
    files = AdapterFiles(found[CONFIG], found[WEIGHTS], lineage, curve)
    if fingerprint and files.fingerprint != fingerprint:
        raise DataLoss("an adapter's bytes are not those that were trained")
    return files


def _plain(data: bytes) -> bytes:
    """The tar itself, of which no more is taken out of a compressed one than an adapter may have."""
    for magic, opened in _COMPRESSED.items():
        if data.startswith(magic):
            with opened(io.BytesIO(data)) as stream:
                data = stream.read(MAX_BYTES + _ROOM + 1)
            if len(data) > MAX_BYTES + _ROOM:
                raise ValueError(f"it has more than {MAX_BYTES} bytes")
            break
    return data


def _members(plain: bytes) -> dict[str, bytes]:
    """What is known of a tar's files, by name. Nothing is written anywhere, so no path can lead astray."""
    found: dict[str, bytes] = {}
    left = MAX_BYTES
    with tarfile.open(fileobj=io.BytesIO(plain), mode="r:") as archive:
        for number, member in enumerate(archive, start=1):
            left -= member.size
            if member.size < 0 or number > _MOST_FILES:  # where tarfile goes round in circles
                raise ValueError(f"it has more than {_MOST_FILES} files, or one that ends before it begins")
            if left < 0:  # a sparse file may have more bytes than the archive
                raise ValueError(f"it has more than {MAX_BYTES} bytes")
            name = Path(member.name).name
            if member.isfile() and name in _KNOWN and name not in found:
                if member.size > _MOST.get(name, MAX_BYTES):
                    raise ValueError(f"its {name} has more than {_MOST[name]} bytes")
                stream = archive.extractfile(member)
                found[name] = stream.read() if stream else b""
    return found


def _as_json(lineage: Mapping[str, Any]) -> bytes:
    """A value a line: to be read by people, and hardly longer than it must be."""
    return json.dumps(lineage, indent=0, sort_keys=True).encode()


def _lineage(data: bytes) -> Any:
    if _values(data) > _MOST_VALUES:
        raise ValueError(f"its {LINEAGE} has more than {_MOST_VALUES} values")
    return json.loads(data)


def _values(data: bytes) -> int:
    """How many JSON has at most, but for a few that have no neighbour."""
    return data.count(b",")


def _is_row(row: object, ours: bool) -> bool:
    """Whether it has a step, and a loss that can be sent and drawn. A training of ours may have gone astray."""
    if not isinstance(row, dict):
        return False
    step, loss = row.get("step"), row.get("loss")
    if type(step) is not int or not 0 <= step < 1 << 31 or isinstance(loss, bool) or not isinstance(loss, int | float):
        return False
    return abs(loss) <= _MOST_LOSS or (ours and isinstance(loss, float) and not math.isfinite(loss))
