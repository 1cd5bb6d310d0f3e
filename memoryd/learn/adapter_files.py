"""An adapter's files, in memory and as a tar archive: a plain PEFT directory, and lineage.json beside it."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memoryd.errors import DataLoss, InvalidArgument

CONFIG, WEIGHTS, LINEAGE = "adapter_config.json", "adapter_model.safetensors", "lineage.json"
CURVE = "curve.jsonl"
MAX_BYTES = 512 << 20  # of an archive's files
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
    def size(self) -> int:
        return len(self.config) + len(self.weights) + len(self.curve)

    @classmethod
    def of_directory(cls, directory: Path, lineage: Mapping[str, Any], curve: bytes = b"") -> AdapterFiles:
        """A PEFT directory's."""
        return cls((directory / CONFIG).read_bytes(), (directory / WEIGHTS).read_bytes(), lineage, curve)


def pack_files(files: AdapterFiles) -> bytes:
    """As a tar archive, the same bytes for the same files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        lineage = json.dumps(files.lineage, indent=1, sort_keys=True).encode()
        for name, data in zip(_KNOWN, (files.config, files.weights, lineage, files.curve), strict=True):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def unpack_files(data: bytes, fingerprint: str = "") -> AdapterFiles:
    """Files of the archive, in its root or in one folder. InvalidArgument where they are not those of an adapter; DataLoss
    where they are not those of this fingerprint, if given."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:*") as archive:
            for member in archive:  # nothing is written anywhere, so no path can lead astray
                name = Path(member.name).name
                if member.isfile() and name in _KNOWN and name not in found:
                    if member.size > MAX_BYTES:
                        raise InvalidArgument(f"{name} has more than {MAX_BYTES} bytes")
                    stream = archive.extractfile(member)
                    found[name] = stream.read() if stream else b""
        lineage = json.loads(found.get(LINEAGE) or b"{}")
    except (tarfile.TarError, ValueError, EOFError, OSError) as error:
        problem = DataLoss if fingerprint else InvalidArgument
        raise problem(f"this is not the tar archive of an adapter: {error}") from error
    if missing := [name for name in _NEEDED if not found.get(name)]:
        raise (DataLoss if fingerprint else InvalidArgument)(f"the archive of an adapter lacks {', '.join(missing)}")
    if not isinstance(lineage, dict):
        raise InvalidArgument(f"the adapter's {LINEAGE} is not a JSON object")
    files = AdapterFiles(found[CONFIG], found[WEIGHTS], lineage, found.get(CURVE, b""))
    if fingerprint and files.fingerprint != fingerprint:
        raise DataLoss("an adapter's bytes are not those that were trained")
    return files
