"""The pooled compressor on tiny random models of three families."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from memoryd.compress.pooled import Gate, PooledCompressor, Projector
from memoryd.engine.base_model import BaseModel, load_base_model
from memoryd.errors import DataLoss, FailedPrecondition, FingerprintMismatch, InvalidArgument
from tests.tiny_models import make_tiny_model

CHUNKS = [[5, 9, 4], list(range(10, 73)), [7] * 8, list(range(100, 117))]


@pytest.fixture(scope="module", params=["llama", "qwen3", "mistral"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load_base_model(make_tiny_model(request.param, tmp_path_factory.mktemp(request.param)))


def trained(base: BaseModel, ratio: int = 4) -> PooledCompressor:
    """As after training: no weight is zero, so every part of the compressor shows in what it makes."""
    torch.manual_seed(3)
    projector = Projector(base.d_model)
    with torch.no_grad():
        for parameter in projector.parameters():
            parameter.normal_(std=0.5)
        projector.scale.fill_(1.3)
    return PooledCompressor(base, projector, ratio, Gate(passed=True, figures={"f1": 0.5}))


def table_rms(base: BaseModel) -> float:
    return float(base.model.get_input_embeddings().weight.pow(2).mean().sqrt())


@pytest.mark.parametrize("ratio", [4, 8, 16, 32])
def test_one_vector_for_each_group_of_r_tokens(base: BaseModel, ratio: int) -> None:
    shapes = [tuple(x_KD.shape) for x_KD in trained(base, ratio).compress(CHUNKS)]
    assert shapes == [(-(-len(chunk) // ratio), base.d_model) for chunk in CHUNKS]


def test_a_batch_gives_what_each_chunk_alone_gives(base: BaseModel) -> None:
    """Padding is not seen, and neither are the other chunks."""
    compressor = trained(base)
    for together, chunk in zip(compressor.compress(CHUNKS), CHUNKS, strict=True):
        torch.testing.assert_close(together, compressor.compress([chunk])[0], atol=1e-5, rtol=1e-4)


def test_every_token_sees_the_whole_chunk(base: BaseModel) -> None:
    """Non-causal: changing the last token changes the first vector, which a causal pass could not."""
    compressor = trained(base)
    first, second = compressor.compress([[*range(10, 42)], [*range(10, 41), 99]])
    assert (first[0] - second[0]).abs().max() > 1e-6


def test_output_rms_is_that_of_token_embeddings(base: BaseModel) -> None:
    for x_KD in PooledCompressor.untrained(base, 4).compress(CHUNKS):
        rms_K = x_KD.pow(2).mean(-1).sqrt()
        torch.testing.assert_close(rms_K, torch.full_like(rms_K, table_rms(base)), rtol=1e-3, atol=0)
    for x_KD in trained(base).compress(CHUNKS):  # whatever was learned, the learned scale alone moves it
        rms_K = x_KD.pow(2).mean(-1).sqrt()
        torch.testing.assert_close(rms_K, torch.full_like(rms_K, 1.3 * table_rms(base)), rtol=1e-3, atol=0)


def test_untrained_it_is_the_mean_of_the_groups_token_embeddings(base: BaseModel) -> None:
    chunk = [5, 9, 4, 17, 80, 81]
    mean_KD = torch.stack([base.model.get_input_embeddings()(torch.tensor(g)).mean(0) for g in (chunk[:4], chunk[4:])])
    made_KD = PooledCompressor.untrained(base, 4).compress([chunk])[0]
    torch.testing.assert_close(torch.cosine_similarity(made_KD, mean_KD), torch.ones(2))


def test_fingerprint_is_of_weights_ratio_and_base_model(base: BaseModel) -> None:
    one = PooledCompressor.untrained(base, 4)
    assert one.fingerprint == PooledCompressor.untrained(base, 4).fingerprint
    assert len({one.fingerprint, PooledCompressor.untrained(base, 8).fingerprint, trained(base).fingerprint}) == 3
    assert not one.gate_passed


def test_saved_and_loaded_it_is_the_same(base: BaseModel, tmp_path: Path) -> None:
    saved = trained(base, 8)
    saved.save(tmp_path)
    loaded = PooledCompressor.load(tmp_path, base)
    assert (loaded.fingerprint, loaded.ratio, loaded.gate) == (saved.fingerprint, 8, Gate(True, {"f1": 0.5}))
    assert torch.equal(loaded.compress(CHUNKS)[1], saved.compress(CHUNKS)[1])


def test_another_base_model_is_refused_naming_both(base: BaseModel, tmp_path: Path) -> None:
    trained(base).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "base_fingerprint": "another"}))
    with pytest.raises(FingerprintMismatch, match=f"another.*{base.fingerprint}"):
        PooledCompressor.load(tmp_path, base)


def test_a_broken_directory_is_refused(base: BaseModel, tmp_path: Path) -> None:
    with pytest.raises(DataLoss, match="config"):
        PooledCompressor.load(tmp_path, base)
    trained(base).save(tmp_path)
    (tmp_path / "projector.safetensors").write_bytes(b"broken")
    with pytest.raises(DataLoss, match="projector"):
        PooledCompressor.load(tmp_path, base)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "name": "icae"}))
    with pytest.raises(FailedPrecondition, match="icae"):
        PooledCompressor.load(tmp_path, base)


@pytest.mark.parametrize("chunk", [[], [0] * 5000, [-1], [600]])
def test_what_is_no_chunk_is_refused(base: BaseModel, chunk: list[int]) -> None:
    with pytest.raises(InvalidArgument, match="chunk"):
        trained(base).compress([[5], chunk])


def test_no_chunks() -> None:
    assert PooledCompressor.compress(None, []) == []  # type: ignore[arg-type]
