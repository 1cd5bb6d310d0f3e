from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load

from memoryd.compress.codec import CompressedEmbeddings, decode, encode
from memoryd.errors import DataLoss, FingerprintMismatch

FINGERPRINT, CHUNK = "f" * 64, "c" * 64


def stored(k: int = 3, d_model: int = 4) -> bytes:
    data = np.arange(k * d_model, dtype="<u2").tobytes()
    return encode(CompressedEmbeddings(data, k), fingerprint=FINGERPRINT, chunk_sha256=CHUNK)


def test_is_a_safetensors_file_that_torch_reads() -> None:
    x_KD = torch.randn(5, 8).to(torch.bfloat16)
    embeddings = CompressedEmbeddings(x_KD.view(torch.uint16).numpy().tobytes(), 5)
    assert torch.equal(load(encode(embeddings, fingerprint=FINGERPRINT, chunk_sha256=CHUNK))["embeddings"], x_KD)
    assert np.array_equal(embeddings.to_float32(), x_KD.float().numpy())


@given(k=st.integers(1, 20), d_model=st.integers(1, 20), data=st.data())
def test_round_trip(k: int, d_model: int, data: st.DataObject) -> None:
    raw = data.draw(st.binary(min_size=2 * k * d_model, max_size=2 * k * d_model))
    embeddings = CompressedEmbeddings(raw, k)
    decoded = decode(encode(embeddings, fingerprint=FINGERPRINT, chunk_sha256=CHUNK), FINGERPRINT, chunk_sha256=CHUNK)
    assert decoded == embeddings
    assert decoded.d_model == d_model


def test_every_flipped_bit_is_data_loss() -> None:
    data = stored()
    for at in range(len(data) * 8):
        broken = bytearray(data)
        broken[at // 8] ^= 1 << at % 8
        with pytest.raises(DataLoss):
            decode(bytes(broken), FINGERPRINT)


def test_every_truncation_and_any_appendix_is_data_loss() -> None:
    data = stored()
    for cut in range(len(data)):
        with pytest.raises(DataLoss):
            decode(data[:cut], FINGERPRINT)
    with pytest.raises(DataLoss):
        decode(data + b"\0\0", FINGERPRINT)


@given(st.binary(max_size=400))
def test_noise_is_data_loss(data: bytes) -> None:
    with pytest.raises(DataLoss):
        decode(data, FINGERPRINT)


def test_another_compressor_is_refused_naming_both() -> None:
    with pytest.raises(FingerprintMismatch, match=f"{FINGERPRINT}.*other"):
        decode(stored(), "other")


def test_another_chunk_is_data_loss() -> None:
    with pytest.raises(DataLoss):
        decode(stored(), FINGERPRINT, chunk_sha256="d" * 64)


def test_daemon_side_imports_no_torch() -> None:
    code = "import sys, memoryd.worker.client, memoryd.compress.codec; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
