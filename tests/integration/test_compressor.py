"""The pooled compressor on tiny random models of three families."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import rms_norm

from memoryd.compress.card import Gate, read_card, write_card
from memoryd.compress.load import compressor_path
from memoryd.compress.pooled import PooledCompressor, Projector, _segments, save, vocabulary_of
from memoryd.compress.words import ON
from memoryd.engine.adapters import ENCODER, Adapters, LoraLinear
from memoryd.engine.base_model import BaseModel, load_base_model
from memoryd.errors import DataLoss, FailedPrecondition, FingerprintMismatch, InvalidArgument
from tests.tiny_models import make_tiny_model

PASSED = Gate({"over_first_low": 0.02, "over_wrong_low": 0.2, "questions": 300})
CHUNKS = [[5, 9, 4], list(range(10, 73)), [7] * 8, list(range(100, 117))]


@pytest.fixture(scope="module", params=["llama", "qwen3", "mistral"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load_base_model(make_tiny_model(request.param, tmp_path_factory.mktemp(request.param)))


def trained(base: BaseModel, ratio: int = 4) -> PooledCompressor:
    """As after training: no weight is zero, so every part of the compressor shows in what it makes."""
    adapters, projector = parts(base)
    return PooledCompressor(base, adapters, projector, ratio, PASSED)


def parts(base: BaseModel) -> tuple[Adapters, Projector]:
    torch.manual_seed(3)
    projector, adapters = Projector(base.d_model, vocabulary_of(base)), fresh(base)
    with torch.no_grad():
        for parameter in [*projector.parameters(), *adapters.create(ENCODER, rank=4, alpha=8)]:
            parameter.normal_(std=0.3)
        projector.scale.fill_(1.3)
    return adapters, projector.eval().requires_grad_(False)


def fresh(base: BaseModel) -> Adapters:
    """A base model has one `Adapters` at a time; in these tests, which share it, the last one."""
    for path, layer in list(base.model.named_modules()):
        if isinstance(layer, LoraLinear):
            base.model.set_submodule(path, layer.base)
    return Adapters(base)


def untrained(base: BaseModel, ratio: int = 4) -> PooledCompressor:
    return PooledCompressor.untrained(base, fresh(base), ratio)


def test_the_gate_is_what_was_measured() -> None:
    assert PASSED.passed
    assert not Gate().passed
    for worse in ({"over_first_low": -0.01}, {"over_wrong_low": 0.05}, {"questions": 299}):
        assert not Gate({**PASSED.figures, **worse}).passed


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


def test_one_pass_serves_every_ratio(base: BaseModel) -> None:
    compressor, passes = trained(base), list[None]()
    alone = {ratio: compressor.encode(CHUNKS, ratio) for ratio in (4, 8, 16, 32)}
    hook = base.model.base_model.register_forward_hook(lambda *_: passes.append(None))
    together = compressor.encode_at(CHUNKS, [4, 8, 16, 32])
    hook.remove()
    assert len(passes) == 1
    for ratio, made in alone.items():
        for one_KD, other_KD in zip(made, together[ratio], strict=True):
            torch.testing.assert_close(one_KD, other_KD, atol=1e-5, rtol=1e-4)


def test_every_token_sees_the_whole_chunk(base: BaseModel) -> None:
    """Non-causal: changing the last token changes the first vector, which a causal pass could not."""
    compressor = trained(base)
    first, second = compressor.compress([[*range(10, 42)], [*range(10, 41), 99]])
    assert (first[0] - second[0]).abs().max() > 1e-6


def test_output_rms_is_that_of_token_embeddings(base: BaseModel) -> None:
    for x_KD in untrained(base).compress(CHUNKS):
        rms_K = x_KD.pow(2).mean(-1).sqrt()
        torch.testing.assert_close(rms_K, torch.full_like(rms_K, table_rms(base)), rtol=1e-3, atol=0)
    for x_KD in trained(base).compress(CHUNKS):  # whatever was learned, the learned scale alone moves it
        rms_K = x_KD.pow(2).mean(-1).sqrt()
        torch.testing.assert_close(rms_K, torch.full_like(rms_K, 1.3 * table_rms(base)), rtol=1e-3, atol=0)


def test_untrained_it_is_the_mean_of_the_groups_token_embeddings(base: BaseModel) -> None:
    chunk = [5, 9, 4, 17, 80, 81]
    mean_KD = torch.stack([base.model.get_input_embeddings()(torch.tensor(g)).mean(0) for g in (chunk[:4], chunk[4:])])
    made_KD = untrained(base).compress([chunk])[0]
    torch.testing.assert_close(torch.cosine_similarity(made_KD, mean_KD), torch.ones(2))


def test_a_pass_that_nothing_depends_on_is_left_out(base: BaseModel) -> None:
    passes: list[None] = []
    hook = base.model.base_model.register_forward_hook(lambda *_: passes.append(None))
    compressor = untrained(base)
    blind = compressor.encode(CHUNKS, 4)
    assert not passes
    compressor.projector.down.weight.requires_grad_()  # it is to learn, so it must see
    seeing = compressor.encode(CHUNKS, 4)
    hook.remove()
    assert len(passes) == 1
    for without_KD, with_KD in zip(blind, seeing, strict=True):
        torch.testing.assert_close(without_KD, with_KD)
    seeing[0].sum().backward()
    assert compressor.projector.down.weight.grad is not None


def test_layers_that_nothing_depends_on_are_left_out(base: BaseModel) -> None:
    """Those above what scores words, as long as the last hidden states correct nothing."""
    compressor, layers = scored(base), base.model.base_model.layers
    passed = [0] * len(layers)
    hooks = [
        layer.register_forward_hook(lambda *_, n=n: passed.__setitem__(n, passed[n] + 1)) for n, layer in enumerate(layers)
    ]
    lower = compressor.encode(CHUNKS, 4)
    reached = list(passed)
    compressor.projector.down.weight.requires_grad_()
    whole = compressor.encode(CHUNKS, 4)
    for hook in hooks:
        hook.remove()
    count = sum(reached)
    assert 0 < count < len(layers)
    assert reached == [1] * count + [0] * (len(layers) - count)
    assert passed == [n + 1 for n in reached]
    assert all(torch.equal(x_KD, y_KD) for x_KD, y_KD in zip(lower, whole, strict=True))


@pytest.mark.parametrize("seed", range(20))
def test_a_chunk_has_as_many_segments_as_groups_and_each_ends_with_one_of_the_best(seed: int) -> None:
    torch.manual_seed(seed)
    lengths, r, L = [1, 7, 16, 5], 4, 16
    real_BL = torch.arange(L) < torch.tensor(lengths)[:, None]
    score_BL = torch.randn(4, L).masked_fill(~real_BL, float("-inf"))
    segment_BL = _segments(score_BL, torch.tensor(lengths), r)
    for row, length in enumerate(lengths):
        segments, k = segment_BL[row, :length].tolist(), -(-length // r)
        assert sorted(set(segments)) == list(range(k)), "none is empty"
        assert segments == sorted(segments)
        ends = [max(i for i, s in enumerate(segments) if s == segment) for segment in range(k - 1)]
        best = set(score_BL[row, :length].topk(k).indices.tolist())
        assert set(ends) <= best
        assert set(segment_BL[row, length:].tolist()) <= {L // r}


def test_what_scores_high_has_a_slot_of_its_own_and_the_rest_shares_one(base: BaseModel) -> None:
    compressor, chunk = scored(base), [5, 6, 7, 50, 51, 52, 53, 8, 9, 6, 7, 5, 6, 8, 9, 10]
    best = sorted(torch.topk(token_scores(compressor, chunk), 4).indices.tolist())
    (made_KD,) = compressor.compress([chunk])
    best_KD = base.model.get_input_embeddings()(torch.tensor([chunk[n] for n in best]))
    torch.testing.assert_close(torch.cosine_similarity(made_KD[:3], best_KD[:3]), torch.ones(3), atol=1e-4, rtol=0)
    assert len(made_KD) == 4


def test_the_tokens_of_a_word_are_chosen_together(base: BaseModel) -> None:
    """Each of 5, 6 and 7 begins a word that 50 to 53 go on with."""
    compressor, chunk = scored(base), [5, 50, 51, 52, 6, 53, 50, 51, 7, 52, 53, 50]
    compressor.projector.spelling[50:54] = ON
    word_W = token_scores(compressor, chunk).unflatten(0, (3, 4)).mean(1)
    best = int(word_W.argmax())
    (made_KD,) = compressor.encode([chunk], 4)
    word_KD = base.model.get_input_embeddings()(torch.tensor(chunk[4 * best : 4 * best + 3]))
    torch.testing.assert_close(torch.cosine_similarity(made_KD[:2], word_KD[:2]), torch.ones(2), atol=1e-4, rtol=0)


def scored(base: BaseModel) -> PooledCompressor:
    """Of the first weights, but for scores so far apart that a segment is its best token."""
    projector = Projector.untrained(base.d_model, vocabulary_of(base)).requires_grad_(False)
    torch.manual_seed(4)
    projector.weigh.weight.normal_(std=1e3)
    return PooledCompressor(base, fresh(base), projector, 4, Gate())


def token_scores(compressor: PooledCompressor, chunk: list[int]) -> torch.Tensor:
    middle_LD = compressor.middle(chunk)
    return (rms_norm(middle_LD, (middle_LD.shape[-1],)) @ compressor.projector.weigh.weight[0]).detach()


def test_fingerprint_is_of_weights_ratio_and_base_model(base: BaseModel) -> None:
    one = untrained(base)
    assert one.fingerprint == untrained(base).fingerprint
    assert len({one.fingerprint, untrained(base, 8).fingerprint, trained(base).fingerprint}) == 3
    assert not one.gate_passed


def test_fingerprint_is_the_same_in_every_dtype(tmp_path: Path) -> None:
    """Or what was made on a CPU would be made again on a GPU, and the verdict of its gate would not be of it."""
    model = make_tiny_model("llama", tmp_path / "model")
    write(load_base_model(model), tmp_path / "compressor")
    prints = set()
    for dtype in ("float32", "bfloat16", "float16"):
        base = load_base_model(model, dtype)
        loaded = PooledCompressor.load(tmp_path / "compressor", base, Adapters(base), 8)
        assert loaded.gate_passed
        prints.add(loaded.fingerprint)
    assert len(prints) == 1


def write(base: BaseModel, directory: Path) -> Gate:
    """With the verdict that its compressor at 8x has passed; returns that."""
    adapters, projector = parts(base)
    save(directory, base, "tiny", adapters, projector, {})
    passed = replace(PASSED, compressor=PooledCompressor.load(directory, base, fresh(base), 8).fingerprint)
    write_card(directory, replace(read_card(directory), gates={8: passed}))
    return passed


def test_saved_and_loaded_it_is_the_same(base: BaseModel, tmp_path: Path) -> None:
    passed = write(base, tmp_path)
    want = trained(base, 8).compress(CHUNKS)[1]
    loaded = PooledCompressor.load(tmp_path, base, fresh(base), 8)
    assert (loaded.ratio, loaded.gate) == (8, passed)
    torch.testing.assert_close(loaded.compress(CHUNKS)[1], want, rtol=1e-2, atol=1e-2)  # the encoder is kept in half precision
    assert loaded.gate_passed
    assert loaded.fingerprint == PooledCompressor.load(tmp_path, base, fresh(base), 8).fingerprint
    other = PooledCompressor.load(tmp_path, base, fresh(base), 4)
    assert other.fingerprint != loaded.fingerprint
    assert not other.gate_passed, "each ratio has its own gate"


def test_the_one_that_ships_is_found_by_its_base_model(base: BaseModel, tmp_path: Path) -> None:
    assert compressor_path(base.fingerprint, tmp_path) is None
    write(base, tmp_path / "tiny")
    assert compressor_path(base.fingerprint, tmp_path) == tmp_path / "tiny"
    assert compressor_path("another", tmp_path) is None


def test_a_verdict_is_of_the_weights_and_the_reader_that_were_measured(base: BaseModel, tmp_path: Path) -> None:
    write(base, tmp_path)
    assert PooledCompressor.load(tmp_path, base, fresh(base), 8).gate_passed
    reader = fresh(base)
    reader.create("reader", rank=2, alpha=2)
    reader.save("reader", tmp_path / "reader", "tiny")
    assert not PooledCompressor.load(tmp_path, base, fresh(base), 8).gate_passed, "with another reader"
    shutil.rmtree(tmp_path / "reader")
    weights = load_file(tmp_path / "projector.safetensors")
    save_file(weights | {"scale": weights["scale"] * 2}, tmp_path / "projector.safetensors")
    assert not PooledCompressor.load(tmp_path, base, fresh(base), 8).gate_passed, "of other weights"


def test_the_encoder_is_an_adapter_that_others_do_not_see(base: BaseModel) -> None:
    ids = torch.tensor([[5, 9, 4, 17]])
    fresh(base)
    before = base.model(input_ids=ids).logits
    adapters, projector = parts(base)
    compressor = PooledCompressor(base, adapters, projector, 4, Gate())
    with_encoder = compressor.compress(CHUNKS)[1]
    assert torch.equal(base.model(input_ids=ids).logits, before)
    adapters.load_state(ENCODER, {key: torch.zeros_like(value) for key, value in adapters.state(ENCODER).items()})
    assert (with_encoder - compressor.compress(CHUNKS)[1]).abs().max() > 1e-4


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks for it
def test_peft_reads_the_encoder(base: BaseModel, tmp_path: Path) -> None:
    from peft import PeftModel

    write(base, tmp_path)
    adapters, _ = parts(base)
    ids = torch.tensor([[5, 9, 4, 17]])
    with adapters.using(ENCODER):
        want = base.model(input_ids=ids).logits
    fresh(base)
    peft = PeftModel.from_pretrained(base.model, tmp_path / ENCODER)
    torch.testing.assert_close(peft(input_ids=ids).logits, want, rtol=1e-2, atol=1e-2)
    peft.unload()


def test_training_reaches_encoder_and_projector(base: BaseModel) -> None:
    adapters = fresh(base)
    encoder = adapters.create(ENCODER, rank=4, alpha=8)
    projector = Projector.untrained(base.d_model, vocabulary_of(base))
    with torch.no_grad():
        projector.down.weight.normal_(std=0.1)
    soft = PooledCompressor(base, adapters, projector, 4, Gate()).encode(CHUNKS, 8)
    torch.cat(soft).pow(2).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in [*encoder, *projector.parameters()])
    assert sum(float(p.grad.abs().sum()) for p in encoder if p.grad is not None) > 0


def test_another_base_model_is_refused_naming_both(base: BaseModel, tmp_path: Path) -> None:
    write(base, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "base_fingerprint": "another"}))
    with pytest.raises(FingerprintMismatch, match=f"another.*{base.fingerprint}"):
        PooledCompressor.load(tmp_path, base, fresh(base), 4)


def test_a_broken_directory_is_refused(base: BaseModel, tmp_path: Path) -> None:
    with pytest.raises(DataLoss, match="config"):
        PooledCompressor.load(tmp_path, base, fresh(base), 4)
    write(base, tmp_path)
    (tmp_path / "projector.safetensors").write_bytes(b"broken")
    with pytest.raises(DataLoss, match="projector"):
        PooledCompressor.load(tmp_path, base, fresh(base), 4)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "kind": "icae"}))
    with pytest.raises(FailedPrecondition, match="icae"):
        PooledCompressor.load(tmp_path, base, fresh(base), 4)


@pytest.mark.parametrize("chunk", [[], [0] * 5000, [-1], [600]])
def test_what_is_no_chunk_is_refused(base: BaseModel, chunk: list[int]) -> None:
    with pytest.raises(InvalidArgument, match="chunk"):
        trained(base).compress([[5], chunk])


def test_no_chunks() -> None:
    assert PooledCompressor.compress(None, []) == []  # type: ignore[arg-type]
