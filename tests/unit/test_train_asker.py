"""The asker's training data is the reader's turned round; what it exports is found by its base model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memoryd.engine.base_model import load_base_model
from memoryd.engine.tokenizer import TextTokenizer
from memoryd.learn import asker
from memoryd.learn.train_asker import main, packs_of
from tests.tiny_models import make_tiny_model
from tests.unit.test_reader_data import folder

__all__ = ["folder"]  # the fixture with a little data


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("model"))


def test_a_pack_is_a_passage_with_the_questions_that_it_answers(model: Path, folder: Path) -> None:
    tokenizer = TextTokenizer(model)
    packs = packs_of(folder, tokenizer, 2, count=5, seed=1)
    assert packs
    for pack in packs:
        (context,) = pack.context
        assert isinstance(context, tuple)
        text = tokenizer.decode(context)
        for asked, question in pack.questions:
            request = tokenizer.decode(asked)
            answer = request.partition("answered by: ")[2].partition("\n")[0].strip()
            assert answer in text
            assert question[-1] == 2
            assert tokenizer.decode(question[:-1]).endswith("?")
    assert packs == packs_of(folder, tokenizer, 2, count=5, seed=1)


def test_what_is_trained_is_found_by_its_base_model(
    model: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assets = tmp_path / "askers"
    options = ["--data", str(folder), "--out", str(tmp_path / "run"), "--packs", "3", "--threads", "1", "--assets", str(assets)]
    main([*options, "--name", str(model), "--data-dir", str(tmp_path)])
    monkeypatch.setattr(asker, "ASKERS", assets)
    found = asker.asker_path(load_base_model(model).fingerprint)
    assert found is not None
    assert json.loads((found / "adapter_config.json").read_text())["r"] == 8
    assert asker.asker_path("another") is None
