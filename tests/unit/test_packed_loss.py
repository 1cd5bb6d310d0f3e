"""A pack's loss and gradient are those of its questions as separate prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from memoryd.engine.base_model import load_base_model
from memoryd.engine.tokenizer import TextTokenizer
from memoryd.learn.packing import EncodedPack, encode_pack, packed_loss, packed_mask
from memoryd.learn.reader_data import Asked, Pack
from memoryd.recall.prompt import REFUSAL, TextBlock, assemble
from tests.tiny_models import make_tiny_model


def separate_loss(model: Any, pack: EncodedPack) -> torch.Tensor:
    losses = []
    for question, answer in pack.questions:
        logits_TV = model(torch.tensor([[*pack.context, *question, *answer]])).logits[0]
        losses.append(F.cross_entropy(logits_TV[-len(answer) - 1 : -1], torch.tensor(answer)))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("kind", ["llama", "qwen3", "mistral"])
def test_packed_is_separate(tmp_path: Path, kind: str) -> None:
    path = make_tiny_model(kind, tmp_path)
    base = load_base_model(path)
    base.model.requires_grad_(True)
    blocks = (TextBlock("the river is blue", "Rivers"), TextBlock("Caroline moved to Lisbon"))
    questions = (Asked("What is blue?", "river", blocks[0]), Asked("Where?", "Lisbon", blocks[1]), Asked("Who?", REFUSAL))
    pack = encode_pack(TextTokenizer(path), Pack("test", blocks, questions), base.eos_ids[0])

    def gradients(loss: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(loss, list(base.model.parameters())))

    packed, separate = packed_loss(base.model, pack), separate_loss(base.model, pack)
    torch.testing.assert_close(packed, separate, rtol=1e-5, atol=1e-6)
    for one, other in zip(gradients(packed), gradients(separate), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)
    assert base.model.config._attn_implementation == "sdpa"  # left as it was


def test_a_question_does_not_see_another(tmp_path: Path) -> None:
    base = load_base_model(make_tiny_model("llama", tmp_path))
    one = EncodedPack((5, 6, 7), (((8, 9), (10, 2)), ((11,), (12, 13))))
    other = EncodedPack((5, 6, 7), (((8, 9), (10, 2)), ((200,), (12, 13))))
    alone = EncodedPack((5, 6, 7), (((8, 9), (10, 2)),))
    first = 2 * packed_loss(base.model, one) - packed_loss(base.model, EncodedPack((5, 6, 7), one.questions[1:]))
    torch.testing.assert_close(first, packed_loss(base.model, alone))
    assert packed_loss(base.model, one) != packed_loss(base.model, other)


def test_the_mask_by_hand() -> None:
    expected = [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 1, 0, 1, 1],
    ]
    assert packed_mask([0, 0, 1, 2, 2])[0, 0].int().tolist() == expected


def test_packs_are_prompts_as_assembled(tmp_path: Path) -> None:
    tokenizer = TextTokenizer(make_tiny_model("llama", tmp_path))
    blocks = (TextBlock("the river is blue"), TextBlock("Caroline moved to Lisbon"))
    questions = (Asked("What?", "river", blocks[0]), Asked("Where?", "Lisbon", blocks[1]), Asked("Who?", REFUSAL))
    pack = encode_pack(tokenizer, Pack("test", blocks, questions), 2)
    for (question, answer), asked in zip(pack.questions, questions, strict=True):
        assert [*pack.context, *question] == assemble(tokenizer, blocks, asked.question).token_ids()
        assert answer[-1] == 2
    # the best block stands last, under the highest number
    said = [tokenizer.decode(answer[:-1]) for _, answer in pack.questions]
    assert [text.split(" ")[0] for text in said] == ["[2]", "[1]", "I"]
    assert pack.tokens == len(pack.context) + sum(len(q) + len(a) for q, a in pack.questions)
