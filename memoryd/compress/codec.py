"""Compressed embeddings as stored bytes: safetensors with a checksum and the fingerprint of what made them.

Torch-free: the daemon, which stores and loads them, has no torch. There are two storages, and the bytes say which:

bfloat16  `embeddings` BF16 [k, d_model]: what the compressor made, bit for bit
int8      `scales` F32 [k] and `embeddings` I8 [k, d_model], half the bytes: each embedding is its scale times its integers

In memory and on every wire they are bfloat16, as raw little-endian bytes, whatever the storage is.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from memoryd.errors import DataLoss, FingerprintMismatch

Storage: TypeAlias = Literal["bfloat16", "int8"]

_FORMATS: dict[Storage, str] = {"bfloat16": "memoryd.embeddings.v1", "int8": "memoryd.embeddings.int8.v1"}
_STORAGES = {name: storage for storage, name in _FORMATS.items()}
_TENSOR, _SCALES = "embeddings", "scales"
_LARGEST = 127  # integers are symmetric, -127 to 127: an embedding and its opposite are stored equally well


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
        return bits.view(np.float32).reshape(self.k, self.d_model)


def encode(embeddings: CompressedEmbeddings, *, fingerprint: str, chunk_sha256: str, storage: Storage = "bfloat16") -> bytes:
    """Bytes to store. `fingerprint` is the compressor's, `chunk_sha256` that of the chunk's UTF-8 text.

    What int8 can't hold, embeddings that are not finite, is stored as bfloat16 all the same.
    """
    if storage == "int8" and (quantized := _quantized(embeddings)) is not None:
        return _framed("int8", embeddings.k, quantized, fingerprint, chunk_sha256)
    return _framed("bfloat16", embeddings.k, embeddings.data, fingerprint, chunk_sha256)


def decode(data: bytes, expected_fingerprint: str, *, chunk_sha256: str | None = None) -> CompressedEmbeddings:
    """The compressed embeddings in `data`, of either storage.

    Raises DataLoss where a byte is not what was written (or the chunk is not `chunk_sha256`, where given), and
    FingerprintMismatch where another compressor made them; corruption is found first.
    """
    try:
        end = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:end])
        k, facts, body = header[_TENSOR]["shape"][0], header["__metadata__"], data[end:]
        storage, made_by, made_of = _STORAGES[facts["format"]], facts["fingerprint"], facts["chunk_sha256"]
        # Written in one way only, so whatever differs from that, checksum included, is corruption.
        if data != _framed(storage, k, body, made_by, made_of):
            raise DataLoss("compressed embeddings are not what their checksum says")
        embeddings = CompressedEmbeddings(body if storage == "bfloat16" else _dequantized(k, body), k)
    except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as error:
        raise DataLoss("compressed embeddings are not readable") from error
    if made_by != expected_fingerprint:
        raise FingerprintMismatch(
            f"compressed embeddings were made by compressor {made_by}, in use is {expected_fingerprint}",
            details={"made_by": made_by, "in_use": expected_fingerprint},
        )
    if chunk_sha256 is not None and made_of != chunk_sha256:
        raise DataLoss("compressed embeddings are of another chunk", details={"made_of": made_of, "asked": chunk_sha256})
    return embeddings


def _framed(storage: Storage, k: int, body: bytes, fingerprint: str, chunk_sha256: str) -> bytes:
    """The safetensors file around `body`, the data of the storage's tensors one after the other."""
    scales, item, dtype = (4 * k, 1, "I8") if storage == "int8" else (0, 2, "BF16")  # bytes of scales, and of a value
    shape = [k, (len(body) - scales) // (item * k) if k else 0]
    tensors = {_TENSOR: {"dtype": dtype, "shape": shape, "data_offsets": [scales, len(body)]}}
    if storage == "int8":  # scales come first, where float32 is aligned
        tensors[_SCALES] = {"dtype": "F32", "shape": [k], "data_offsets": [0, scales]}
    facts = {"format": _FORMATS[storage], "fingerprint": fingerprint, "chunk_sha256": chunk_sha256}
    checksum = hashlib.sha256(json.dumps([facts, shape], sort_keys=True).encode() + body).hexdigest()
    header = json.dumps({"__metadata__": {**facts, "sha256": checksum}, **tensors}, sort_keys=True).encode()
    header += b" " * (-len(header) % 8)  # the format aligns the data to 8 bytes
    return len(header).to_bytes(8, "little") + header + body


def _quantized(embeddings: CompressedEmbeddings) -> bytes | None:
    """Scales, then integers: the nearest to each value in steps of its row's scale. None where a value is not finite."""
    x_KD = embeddings.to_float32()
    if not np.isfinite(x_KD).all():
        return None
    scale_K = np.abs(x_KD).max(axis=1, initial=0) / np.float32(_LARGEST)
    step_K1 = np.where(scale_K > 0, scale_K, 1)[:, None]  # a row of zeros has no step
    # A subnormal scale is coarse, so that its largest value may come out a step too high.
    q_KD = np.clip(np.rint(x_KD / step_K1), -_LARGEST, _LARGEST)
    return scale_K.astype("<f4").tobytes() + q_KD.astype(np.int8).tobytes()


def _dequantized(k: int, body: bytes) -> bytes:
    """The bfloat16 next to each scale times integer; of two that are equally near, the even one."""
    scale_K1 = np.frombuffer(body, dtype="<f4", count=k)[:, None]
    q_KD = np.frombuffer(body, dtype=np.int8, offset=4 * k).reshape(k, -1)
    bits = (scale_K1 * q_KD).astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype("<u2").tobytes()
