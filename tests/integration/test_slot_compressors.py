"""Autocompressor and icae: checkpoints in exactly their published layouts, against the papers' own way to compute them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from memoryd.compress import autocompressor, icae, slots
from memoryd.compress.base import Compressor, positions
from memoryd.compress.load import load_compressor
from memoryd.engine.adapters import ENCODER, READER, Adapters
from memoryd.engine.base_model import BaseModel, load_base_model
from memoryd.engine.reader import Readers
from memoryd.engine.runner import Runner
from memoryd.engine.scheduler import Limits
from memoryd.errors import DataLoss, FailedPrecondition, FingerprintMismatch, InvalidArgument
from tests.integration.engine_parts import Encoder, run, save_compressor, untrained
from tests.tiny_models import make_tiny_model

SLOTS = 5
CHUNKS = [[5, 9, 4], list(range(10, 73)), list(range(100, 117))]


def make_autocompressor(path: Path) -> Path:
    """As on the hub: one model directory with the summary tokens among its tensors."""
    make_tiny_model("llama", path)
    (weights,) = path.glob("*.safetensors")
    torch.manual_seed(1)
    tensors = load_file(weights) | {"embed_summary.weight": torch.randn(SLOTS, 64) * 0.3}
    save_file(tensors, weights, metadata={"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    config |= {"architectures": ["LlamaAutoCompressorModel"], "summary_length": SLOTS, "accumulate_summary": True}
    (path / "config.json").write_text(json.dumps(config))
    return path


def make_icae(path: Path) -> Path:
    """The state of the published training module: LoRA on q and v, slots, three special tokens."""
    path.mkdir(parents=True)
    torch.manual_seed(2)
    state = {"memory_token_embed.weight": torch.randn(SLOTS + 3, 64) * 0.3}
    for layer in range(2):
        for name, out in (("q_proj", 64), ("v_proj", 32)):
            stem = f"icae.base_model.model.model.layers.{layer}.self_attn.{name}"
            state[f"{stem}.lora_A.default.weight"] = torch.randn(4, 64) * 0.3
            state[f"{stem}.lora_B.default.weight"] = torch.randn(out, 4) * 0.3
    save_file(state, path / "tiny_ft_icae.safetensors")
    return path


def loaded(kind: str, directory: Path, dtype: str = "float32") -> tuple[BaseModel, Compressor]:
    if kind == "autocompressor":
        path = make_autocompressor(directory / "model")
        base = load_base_model(path, dtype)
        return base, load_compressor(path, base, Adapters(base), 4)
    base = load_base_model(make_tiny_model("llama", directory / "model"), dtype)
    if kind == "pooled":
        return base, load_compressor(None, base, Adapters(base), 4)
    return base, load_compressor(make_icae(directory / "icae"), base, Adapters(base), 4)


def hidden(model: Any, embeds_TD: torch.Tensor) -> torch.Tensor:
    """After the final norm, [T, D]."""
    with torch.no_grad():
        out: torch.Tensor = model.model(inputs_embeds=embeds_TD[None]).last_hidden_state[0]
    return out


def test_autocompressor_is_the_papers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autocompressor, "SETTINGS", replace(autocompressor.SETTINGS, segment=20))
    path = make_autocompressor(tmp_path / "model")
    base = load_base_model(path)
    compressor = autocompressor.load(path, base, Adapters(base))
    assert (compressor.name, compressor.ratio, compressor.gate_passed) == ("autocompressor", 4, False)
    learned = load_file(next(path.glob("*.safetensors")))["embed_summary.weight"]
    embed: Any = base.model.get_input_embeddings()
    for chunk, made in zip(CHUNKS, compressor.compress(CHUNKS), strict=True):
        left = torch.zeros(0, 64)
        kept = []
        for start in range(0, len(chunk), 20):
            text = embed(torch.tensor(chunk[start : start + 20]))
            new = hidden(base.model, torch.cat([left, text, learned]))[-SLOTS:]
            kept.append(new)
            left = torch.cat([left, new])
        torch.testing.assert_close(made, torch.cat(kept), atol=1e-4, rtol=1e-3)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks for it
def test_icae_is_the_papers(tmp_path: Path) -> None:
    """Encoded with PEFT's own LoRA; the decoder is the base model, as it was."""
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    plain = load_base_model(make_tiny_model("llama", tmp_path / "plain"))
    base, compressor = loaded("icae", tmp_path)
    assert (compressor.name, compressor.ratio, compressor.gate_passed) == ("icae", 4, False)
    ids = torch.tensor([[5, 9, 4, 17]])
    made = compressor.compress(CHUNKS)
    torch.testing.assert_close(base.model(input_ids=ids).logits, plain.model(input_ids=ids).logits)

    state = load_file(tmp_path / "icae" / "tiny_ft_icae.safetensors")
    lora = {key.removeprefix("icae.").replace(".default.", "."): value for key, value in state.items() if "lora" in key}
    peft = get_peft_model(plain.model, LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj", "v_proj"]))
    set_peft_model_state_dict(peft, lora)
    learned, embed = state["memory_token_embed.weight"][:SLOTS], plain.model.get_input_embeddings()
    for chunk, soft in zip(CHUNKS, made, strict=True):
        count = -(-len(chunk) // (4 * SLOTS))
        length = -(-len(chunk) // count)
        parts = [chunk[at : at + length] for at in range(0, len(chunk), length)]
        expected = [hidden(peft.base_model.model, torch.cat([embed(torch.tensor(p)), learned]))[-SLOTS:] for p in parts]
        torch.testing.assert_close(soft, torch.cat(expected), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", ["autocompressor", "icae"])
def test_a_batch_gives_what_each_chunk_alone_gives(tmp_path: Path, kind: str) -> None:
    _, compressor = loaded(kind, tmp_path)
    for together, chunk in zip(compressor.compress(CHUNKS), CHUNKS, strict=True):
        torch.testing.assert_close(together, compressor.compress([chunk])[0], atol=1e-5, rtol=1e-4)
    assert compressor.compress([]) == []
    for bad in ([], [-1], [600], [0] * 5000):
        with pytest.raises(InvalidArgument, match="chunk 1"):
            compressor.compress([[5], bad])


@pytest.mark.parametrize("kind", ["pooled", "autocompressor", "icae"])
def test_in_bfloat16_each_makes_what_it_makes_in_float32(tmp_path: Path, kind: str) -> None:
    _, exact = loaded(kind, tmp_path / "float32")
    _, half = loaded(kind, tmp_path / "bfloat16", "bfloat16")
    for one, other in zip(exact.compress(CHUNKS), half.compress(CHUNKS), strict=True):
        assert other.dtype == torch.bfloat16
        assert torch.nn.functional.cosine_similarity(one, other.float(), dim=-1).min() > 0.99


@pytest.mark.parametrize("kind", ["autocompressor", "icae", "pooled"])
def test_the_fingerprint_is_of_what_is_stored_whatever_the_dtype(tmp_path: Path, kind: str) -> None:
    """Else a move from one device to another would compress everything anew and leave no adapter that fits."""
    prints = {dtype: loaded(kind, tmp_path / dtype, dtype)[1].fingerprint for dtype in ("float32", "bfloat16", "float16")}
    assert len(set(prints.values())) == 1, prints


def test_so_is_that_of_one_of_our_own(tmp_path: Path) -> None:
    model = make_tiny_model("llama", tmp_path / "model")
    base = load_base_model(model)
    adapters = Adapters(base)
    torch.manual_seed(4)
    for parameter in adapters.create(ENCODER, rank=4, alpha=12):
        torch.nn.init.normal_(parameter, std=0.1)
    slots.save(tmp_path / "own", base, "tiny", adapters, icae.first_tokens(base), icae.SETTINGS, {})
    prints = set()
    for dtype in ("float32", "bfloat16"):
        fresh = load_base_model(model, dtype)
        prints.add(load_compressor(tmp_path / "own", fresh, Adapters(fresh), 4).fingerprint)
    assert len(prints) == 1
    config = tmp_path / "own" / ENCODER / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 1.0}))
    fresh = load_base_model(model)
    assert load_compressor(tmp_path / "own", fresh, Adapters(fresh), 4).fingerprint not in prints, "it computes something else"


def test_a_pooled_one_that_sees_keeps_fingerprint_and_verdict_in_any_dtype(tmp_path: Path) -> None:
    model = make_tiny_model("llama", tmp_path / "model")
    fingerprint = save_compressor(tmp_path / "pooled", model)
    for dtype in ("float32", "bfloat16"):
        base = load_base_model(model, dtype)
        compressor = load_compressor(tmp_path / "pooled", base, Adapters(base), 4)
        assert (compressor.fingerprint, compressor.gate_passed) == (fingerprint, True)


def test_the_learned_tokens_count_among_those_of_a_micro_batch(tmp_path: Path) -> None:
    """Chunks of 16 tokens with 5 learned ones: three of them take 63 positions, and not 48."""
    base, compressor = loaded("icae", tmp_path)
    rows: list[int] = []
    runner = Runner(base, Adapters(base), compressor, Encoder(), Limits(compress=62))
    hook = base.model.base_model.register_forward_hook(
        lambda _, args, kwargs, output: rows.append(kwargs["inputs_embeds"].shape[0]), with_kwargs=True
    )
    runner.compress(1, [[7] * 16] * 4, compressor.fingerprint)
    assert len(run(runner)[1]) == 4
    hook.remove()
    assert rows == [2, 2]
    assert positions(compressor, 16) == 21
    assert positions(untrained(base), 16) == 16


def test_a_later_segment_takes_what_earlier_ones_left_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autocompressor, "SETTINGS", replace(autocompressor.SETTINGS, segment=20))
    base, compressor = loaded("autocompressor", tmp_path)
    widest: list[int] = []
    hook = base.model.base_model.register_forward_hook(
        lambda _, args, kwargs, output: widest.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
    )
    for tokens in (3, 20, 40, 60):
        widest.clear()
        compressor.compress([[7] * tokens])
        assert max(widest) == positions(compressor, tokens)
    hook.remove()


def test_an_autocompressor_of_another_family_is_refused(tmp_path: Path) -> None:
    path = make_autocompressor(tmp_path / "auto")
    base = load_base_model(path)
    config = json.loads((path / "config.json").read_text())
    for change, says in (({"model_type": "opt"}, "opt family"), ({"accumulate_summary": False}, "accumulate")):
        (path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(FailedPrecondition, match=says):
            load_compressor(path, base, Adapters(base), 4)


def test_one_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = make_autocompressor(tmp_path / "auto")
    other = load_base_model(make_tiny_model("llama", tmp_path / "other", seed=9))
    with pytest.raises(FingerprintMismatch, match=other.fingerprint) as raised:
        load_compressor(path, other, Adapters(other), 4)
    assert raised.value.details["in_use"] == other.fingerprint
    assert raised.value.details["made_for"] != other.fingerprint
    narrow = make_icae(tmp_path / "icae")
    file = narrow / "tiny_ft_icae.safetensors"
    save_file(load_file(file) | {"memory_token_embed.weight": torch.zeros(8, 32)}, file)
    with pytest.raises(DataLoss, match="d_model 32"):
        load_compressor(narrow, other, Adapters(other), 4)
    save_file({"memory_token_embed.weight": torch.zeros(8, 64)}, file)
    with pytest.raises(DataLoss, match="no LoRA"):
        icae.load(narrow, other, Adapters(other))
    file.write_bytes(b"broken")
    with pytest.raises(DataLoss, match="unreadable"):
        load_compressor(narrow, other, Adapters(other), 4)
    (path / "config.json").write_text(json.dumps(json.loads((path / "config.json").read_text()) | {"summary_length": 7}))
    with pytest.raises((DataLoss, FingerprintMismatch)):
        load_compressor(path, load_base_model(path), Adapters(other), 4)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # PEFT asks for it
def test_the_authors_adapters_are_readers(tmp_path: Path) -> None:
    """LLoCO's: PEFT, r=8, alpha=16, on q, k, v and o."""
    from peft import LoraConfig, get_peft_model

    path = make_autocompressor(tmp_path / "model")
    base, other = load_base_model(path), load_base_model(path)
    torch.manual_seed(5)
    peft = get_peft_model(other.model, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]))
    for name, parameter in peft.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    peft.save_pretrained(tmp_path / "lloco")
    adapters = Adapters(base, Readers(tmp_path / "lloco"))
    ids = torch.tensor([[5, 9, 4, 17]])
    with adapters.using(READER):
        torch.testing.assert_close(base.model(input_ids=ids).logits, peft(input_ids=ids).logits, atol=1e-4, rtol=1e-3)
