"""Compressed embeddings as stored bytes: safetensors with a checksum and the fingerprint of what made them.

Torch-free: the daemon, which stores and loads them, has no torch. bfloat16 travels as raw little-endian bytes.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from memoryd.errors import DataLoss, FingerprintMismatch

_FORMAT = "memoryd.embeddings.v1"
_TENSOR = "embeddings"


@dataclass(frozen=True, slots=True)
class CompressedEmbeddings:
    """What the compressor makes of one chunk: bfloat16 little-endian, [k, d_model], row after row."""

    data: bytes
    k: int

    @property
    def d_model(self) -> int:
        return len(self.data) // (2 * self.k) if self.k else 0

    def to_float32(self) -> npt.NDArray[np.float32]:
        """[k, d_model] float32: bfloat16 is float32's upper half, so this is exact."""
        bits = np.frombuffer(self.data, dtype="<u2").astype(np.uint32) << 16
        return bits.view(np.float32).reshape(self.k, -1)


def encode(embeddings: CompressedEmbeddings, *, fingerprint: str, chunk_sha256: str) -> bytes:
    """Bytes to store. `fingerprint` is the compressor's, `chunk_sha256` that of the chunk's UTF-8 text."""
    facts = {"format": _FORMAT, "fingerprint": fingerprint, "chunk_sha256": chunk_sha256}
    shape = [embeddings.k, embeddings.d_model]
    checksum = hashlib.sha256(json.dumps([facts, shape], sort_keys=True).encode() + embeddings.data).hexdigest()
    tensor = {"dtype": "BF16", "shape": shape, "data_offsets": [0, len(embeddings.data)]}
    header = json.dumps({"__metadata__": {**facts, "sha256": checksum}, _TENSOR: tensor}, sort_keys=True).encode()
    header += b" " * (-len(header) % 8)  # the format aligns the data to 8 bytes
    return len(header).to_bytes(8, "little") + header + embeddings.data


def decode(data: bytes, expected_fingerprint: str, *, chunk_sha256: str | None = None) -> CompressedEmbeddings:
    """The compressed embeddings in `data`.

    Raises DataLoss where a byte is not what was written (or the chunk is not `chunk_sha256`, where given), and
    FingerprintMismatch where another compressor made them; corruption is found first.
    """
    try:
        end = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:end])
        k = header[_TENSOR]["shape"][0]
        made_by, made_of = header["__metadata__"]["fingerprint"], header["__metadata__"]["chunk_sha256"]
        embeddings = CompressedEmbeddings(data[end:], k)
        # Written in one way only, so whatever differs from that, checksum included, is corruption.
        intact = data == encode(embeddings, fingerprint=made_by, chunk_sha256=made_of)
    except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as error:
        raise DataLoss("compressed embeddings are not readable") from error
    if not intact:
        raise DataLoss("compressed embeddings are not what their checksum says")
    if made_by != expected_fingerprint:
        raise FingerprintMismatch(
            f"compressed embeddings were made by compressor {made_by}, in use is {expected_fingerprint}",
            details={"made_by": made_by, "in_use": expected_fingerprint},
        )
    if chunk_sha256 is not None and made_of != chunk_sha256:
        raise DataLoss("compressed embeddings are of another chunk", details={"made_of": made_of, "asked": chunk_sha256})
    return embeddings
