from __future__ import annotations

import hashlib
import subprocess
import sys
from typing import get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load as load_numpy
from safetensors.torch import load

from memoryd.compress.codec import CompressedEmbeddings, Storage, decode, encode
from memoryd.errors import DataLoss, FingerprintMismatch

FINGERPRINT, CHUNK = "f" * 64, "c" * 64
STORAGES: tuple[Storage, ...] = get_args(Storage)


def stored(k: int = 3, d_model: int = 4, storage: Storage = "bfloat16") -> bytes:
    data = (np.arange(k * d_model) % 0x7000).astype("<u2").tobytes()  # all of them finite
    return encode(CompressedEmbeddings(data, k), fingerprint=FINGERPRINT, chunk_sha256=CHUNK, storage=storage)


def bfloat16(x_KD: npt.NDArray[np.float32]) -> CompressedEmbeddings:
    """Cut off, not rounded: any bfloat16 will do."""
    return CompressedEmbeddings((x_KD.astype(np.float32).view(np.uint32) >> 16).astype("<u2").tobytes(), len(x_KD))


def as_int8(embeddings: CompressedEmbeddings) -> bytes:
    return encode(embeddings, fingerprint=FINGERPRINT, chunk_sha256=CHUNK, storage="int8")


@st.composite
def finite(draw: st.DrawFn, lowest: int = -140) -> CompressedEmbeddings:
    """Rows of zeros or of any magnitude that bfloat16 has, from about 2**lowest on: below 2**-126 its numbers are coarse."""
    k, d_model = draw(st.integers(1, 6)), draw(st.integers(1, 24))
    unit = st.one_of(st.floats(-1, 1, width=32), st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5]))
    rows = [np.array(draw(st.lists(unit, min_size=d_model, max_size=d_model))) for _ in range(k)]
    rows = [row / (np.abs(row).max() or 1) * 2.0 ** draw(st.integers(lowest, 127)) for row in rows]
    return bfloat16(np.array(rows))


def test_is_a_safetensors_file_that_torch_reads() -> None:
    x_KD = torch.randn(5, 8).to(torch.bfloat16)
    embeddings = CompressedEmbeddings(x_KD.view(torch.uint16).numpy().tobytes(), 5)
    assert torch.equal(load(encode(embeddings, fingerprint=FINGERPRINT, chunk_sha256=CHUNK))["embeddings"], x_KD)
    assert np.array_equal(embeddings.to_float32(), x_KD.float().numpy())


def test_int8_is_a_safetensors_file_too_with_a_scale_for_each_embedding() -> None:
    x_KD = torch.randn(5, 9).to(torch.bfloat16)
    data = as_int8(CompressedEmbeddings(x_KD.view(torch.uint16).numpy().tobytes(), 5))
    tensors = load(data)
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()} == {
        "embeddings": (torch.int8, (5, 9)),
        "scales": (torch.float32, (5,)),
    }
    torch.testing.assert_close(tensors["scales"], x_KD.float().abs().amax(1) / 127)
    assert (tensors["embeddings"].abs().amax(1) == 127).all(), "the largest value of a row takes the whole range"
    meant = (tensors["scales"][:, None] * tensors["embeddings"]).to(torch.bfloat16)  # torch rounds to nearest, ties to even
    assert np.array_equal(decode(data, FINGERPRINT).to_float32(), meant.float().numpy())


@given(k=st.integers(1, 20), d_model=st.integers(1, 20), data=st.data())
def test_round_trip(k: int, d_model: int, data: st.DataObject) -> None:
    raw = data.draw(st.binary(min_size=2 * k * d_model, max_size=2 * k * d_model))
    embeddings = CompressedEmbeddings(raw, k)
    decoded = decode(encode(embeddings, fingerprint=FINGERPRINT, chunk_sha256=CHUNK), FINGERPRINT, chunk_sha256=CHUNK)
    assert decoded == embeddings
    assert decoded.d_model == d_model


@given(finite())
def test_int8_is_within_half_a_step_of_each_value(embeddings: CompressedEmbeddings) -> None:
    data = as_int8(embeddings)
    scale_K1 = load_numpy(data)["scales"].astype(np.float64)[:, None]
    decoded = decode(data, FINGERPRINT, chunk_sha256=CHUNK)
    assert (decoded.k, decoded.d_model) == (embeddings.k, embeddings.d_model)
    was_KD, is_KD = embeddings.to_float32().astype(np.float64), decoded.to_float32().astype(np.float64)
    rounded_KD = np.abs(is_KD) * 2**-8 + 2**-134  # bfloat16 has 8 significant bits; its smallest step is 2**-133
    assert (np.abs(is_KD - was_KD) <= scale_K1 * (0.5 + 1e-4) + rounded_KD).all()
    assert ((is_KD == 0) | (np.sign(is_KD) == np.sign(was_KD))).all()


@given(finite(lowest=-100))
def test_what_int8_gave_is_stored_again_as_the_same_bytes(embeddings: CompressedEmbeddings) -> None:
    """A row's largest value survives as it is, so its scale does; and rounding to bfloat16 moves nothing by half a step."""
    data = as_int8(embeddings)
    decoded = decode(data, FINGERPRINT)
    assert np.array_equal(np.abs(decoded.to_float32()).max(1), np.abs(embeddings.to_float32()).max(1))
    assert as_int8(decoded) == data


def test_an_outlier_spoils_no_other_embedding() -> None:
    x_KD = np.ones((3, 8), np.float32)
    x_KD[1, 2] = 1e6
    is_KD = decode(as_int8(bfloat16(x_KD)), FINGERPRINT).to_float32()
    assert (is_KD[[0, 2]] == 1).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_stored_as_bfloat16(value: float) -> None:
    embeddings = bfloat16(np.array([[1, 2], [3, value]], np.float32))
    data = as_int8(embeddings)
    assert data == encode(embeddings, fingerprint=FINGERPRINT, chunk_sha256=CHUNK)
    assert decode(data, FINGERPRINT) == embeddings


def test_int8_takes_half_the_bytes() -> None:
    """Of a chunk at the default ratio, for the embedded base model; headers, checksums and scales included."""
    one, other = (len(stored(128, 576, storage)) for storage in STORAGES)
    assert other / one < 0.51


def test_what_earlier_versions_stored_is_what_is_stored_today() -> None:
    assert hashlib.sha256(stored()).hexdigest() == "b2e58af03f4c4713edb374bb84d77f705ee0a228d6e98be1188c4c9a3aa9de67"


@pytest.mark.parametrize("storage", STORAGES)
def test_every_flipped_bit_is_data_loss(storage: Storage) -> None:
    data = stored(storage=storage)
    for at in range(len(data) * 8):
        broken = bytearray(data)
        broken[at // 8] ^= 1 << at % 8
        with pytest.raises(DataLoss):
            decode(bytes(broken), FINGERPRINT)


@pytest.mark.parametrize("storage", STORAGES)
def test_every_truncation_and_any_appendix_is_data_loss(storage: Storage) -> None:
    data = stored(storage=storage)
    for cut in range(len(data)):
        with pytest.raises(DataLoss):
            decode(data[:cut], FINGERPRINT)
    for appendix in (b"\0", b"\0\0", b"\0" * 7):
        with pytest.raises(DataLoss):
            decode(data + appendix, FINGERPRINT)


@given(st.binary(max_size=400))
def test_noise_is_data_loss(data: bytes) -> None:
    with pytest.raises(DataLoss):
        decode(data, FINGERPRINT)


@pytest.mark.parametrize("storage", STORAGES)
def test_a_header_that_says_something_else_is_data_loss(storage: Storage) -> None:
    """As JSON it is sound, and of the same length; only the checksum can tell."""
    data = stored(storage=storage)
    for what, instead in ((b"BF16", b"F16 "), (b"I8", b"U8"), (b"[3, 4]", b"[4, 3]"), (b"[3]", b"[2]"), (b'"ff', b'"fe')):
        if what in data:
            with pytest.raises(DataLoss):
                decode(data.replace(what, instead, 1), FINGERPRINT)


@pytest.mark.parametrize("storage", STORAGES)
def test_another_compressor_is_refused_naming_both(storage: Storage) -> None:
    with pytest.raises(FingerprintMismatch, match=f"{FINGERPRINT}.*other"):
        decode(stored(storage=storage), "other")


@pytest.mark.parametrize("storage", STORAGES)
def test_another_chunk_is_data_loss(storage: Storage) -> None:
    with pytest.raises(DataLoss):
        decode(stored(storage=storage), FINGERPRINT, chunk_sha256="d" * 64)


@pytest.mark.parametrize("module", ["memoryd.app", "memoryd.worker.client", "memoryd.worker.__main__"])
def test_neither_the_daemon_nor_a_worker_that_is_to_listen_first_imports_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
