"""Packs with compressed embeddings: the loss of each alone, whatever goes through beside it."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from memoryd.engine.base_model import BaseModel, load_base_model
from memoryd.engine.retrieval_tokenizer import RetrievalTokenizer
from memoryd.engine.tokenizer import TextTokenizer
from memoryd.learn.compressor_data import REPEAT, Corpus, QuestionData, TextData
from memoryd.learn.packing import EncodedPack, encode_pack, packed_loss
from memoryd.learn.reader_data import Asked, Pack, ReaderData, chunks_of
from memoryd.learn.soft_packing import SoftPack, predict
from memoryd.recall.prompt import REFUSAL, TextBlock
from tests.tiny_models import make_tiny_model
from tests.unit.test_reader_data import folder, write

__all__ = ["folder"]  # the fixture with a little data


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def base(path: Path) -> BaseModel:
    return load_base_model(path)


def embedded(base: BaseModel, ids: tuple[int, ...]) -> torch.Tensor:
    return base.model.get_input_embeddings()(torch.tensor(ids))


def test_of_text_alone_it_is_the_packed_loss(base: BaseModel) -> None:
    pack = EncodedPack((5, 6, 7), (((8, 9), (10, 11, 2)), ((12,), (13, 2))))
    made = predict(base.model, [SoftPack((), (pack.context,), pack.questions)], [[]])
    torch.testing.assert_close(made.loss(), packed_loss(base.model, pack))


def test_embeddings_of_tokens_in_a_chunks_place_are_those_tokens(base: BaseModel) -> None:
    questions = (((8, 9), (10, 11, 2)), ((12,), (13, 2)))
    text = SoftPack((), ((5, 6, 7, 20, 21),), questions)
    soft = SoftPack(((99,),), ((5, 6), 0, (21,)), questions)
    one = predict(base.model, [text], [[]])
    other = predict(base.model, [soft], [[embedded(base, (7, 20))]])
    torch.testing.assert_close(other.logits_AV, one.logits_AV)
    assert one.divergence(other) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("questions", [1, 2])
def test_padding_is_seen_by_nobody(base: BaseModel, questions: int) -> None:
    long = SoftPack(((1,),), ((5, 6, 7), 0), (((8, 9), (10, 11, 12, 13, 2)), ((30,), (31,)))[:questions])
    short = SoftPack(((1,),), (0,), (((), (14, 15)),))
    soft = [[embedded(base, (40, 41))], [embedded(base, (42, 43, 44))]]
    together = predict(base.model, [long, short], soft)
    alone = [predict(base.model, [pack], [of]) for pack, of in zip((long, short), soft, strict=True)]
    torch.testing.assert_close(together.logits_AV, torch.cat([a.logits_AV for a in alone]))
    torch.testing.assert_close(together.loss(), torch.stack([a.loss() for a in alone]).mean())


def test_an_answer_may_continue_the_context_at_once(base: BaseModel) -> None:
    """As a plain forward pass over context and continuation predicts it."""
    made = predict(base.model, [SoftPack((), ((5, 6, 7),), (((), (8, 9, 10)),))], [[]])
    logits_TV = base.model(torch.tensor([[5, 6, 7, 8, 9]])).logits[0]
    torch.testing.assert_close(made.logits_AV, logits_TV[2:])
    assert 0 <= made.hits() <= 1


def test_a_leaning_is_of_the_first_token_of_each_answer(base: BaseModel) -> None:
    packs = [
        SoftPack((), ((5, 6, 7),), (((8, 9), (10, 11, 2)), ((12,), (13, 2)))),
        SoftPack((), ((5,),), (((), (14, 15)),)),
    ]
    made = predict(base.model, packs, [[], []])
    leaning = made.leaning(10, 3.0)
    more_AV = leaning.logits_AV - made.logits_AV
    assert made.targets_A.tolist() == [10, 11, 2, 13, 2, 14, 15]
    assert more_AV.nonzero().tolist() == [[0, 10], [3, 10], [5, 10]]
    torch.testing.assert_close(more_AV[0, 10], torch.tensor(3.0))
    assert leaning.loss() != made.loss()
    torch.testing.assert_close(made.leaning(10, 0.0).loss(), made.loss())


def test_gradients_reach_the_embeddings(base: BaseModel) -> None:
    soft = embedded(base, (7, 20)).clone().requires_grad_()
    predict(base.model, [SoftPack(((1,),), ((5,), 0), (((8,), (9, 2)),))], [[soft]]).loss().backward()
    assert soft.grad is not None
    assert float(soft.grad.abs().sum()) > 0


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("corpus")
    r = random.Random(1)
    text = " ".join(r.choice(("river", "mountain", "city", "green", "blue", "Lisbon")) for _ in range(4000))
    write(made / "books.jsonl.xz", [{"id": "a", "text": text}, {"id": "b", "text": "a short one"}])
    return made


def test_text_samples_are_whats_there(path: Path, corpus: Path) -> None:
    tokenizer = TextTokenizer(path)
    data = TextData(Corpus(corpus, tokenizer), tokenizer, 3, 512)
    packs = data.packs(7, 20, repeat=0.5, follow=16)
    assert packs == TextData(Corpus(corpus, tokenizer), tokenizer, 3, 512).packs(7, 20, 0.5, 16)
    assert packs != data.packs(8, 20, 0.5, 16)
    whole = " ".join(text for text in Corpus(corpus, tokenizer)._texts)
    kinds = set()
    for pack in packs:
        (chunk,), ((asked, answer),) = pack.chunks, pack.questions
        assert 0 < len(chunk) <= 512
        assert tokenizer.decode(chunk) in whole
        if asked:
            assert (tokenizer.decode(asked), answer) == (REPEAT, chunk)
        else:
            assert len(answer) <= 16
            assert tokenizer.decode((*chunk, *answer)) in whole
        kinds.add(bool(asked))
    assert kinds == {True, False}


def test_questions_are_asked_as_memoryd_asks_them(path: Path, folder: Path) -> None:
    tokenizer, retrieval = TextTokenizer(path), RetrievalTokenizer()
    data = QuestionData(ReaderData(folder, tokenizer, retrieval, 1, chunks_of), tokenizer, 2, seed=1, window=4096)
    blocks = (TextBlock("the river is blue", "Rivers"), TextBlock("Caroline moved to Lisbon", "Moves"))
    asked = (Asked("Where?", "Lisbon", blocks[1]), Asked("Who?", REFUSAL))
    pack = Pack("test", blocks, asked)

    def slots(tokens: int) -> int:
        return -(-tokens // 4)

    text = data.encode(pack, slots, "text")
    plain = encode_pack(tokenizer, pack, 2)
    assert (text.chunks, text.context, text.questions) == ((), (plain.context,), plain.questions)

    soft = data.encode(pack, slots, "compressed")
    assert [tokenizer.decode(chunk) for chunk in soft.chunks] == [block.text for block in blocks]
    shown = "".join(f"<{p}>" if isinstance(p, int) else tokenizer.decode(p) for p in soft.context)
    assert "[1] Moves\n<1>\n\n[2] Rivers\n<0>" in shown, "the best stands last"
    assert "blue" not in shown
    assert [tokenizer.decode(answer[:-1]) for _, answer in soft.questions] == ["[1] Lisbon", REFUSAL]
    assert tokenizer.decode(soft.questions[0][0]).startswith("Where?")

    hybrid = data.encode(pack, slots, "hybrid")
    shown = "".join(f"<{p}>" if isinstance(p, int) else tokenizer.decode(p) for p in hybrid.context)
    assert "[3] Rivers\nthe river is blue" in shown
    assert "<1>" in shown
    assert {data.mode(step, 0) for step in range(40)} == {"compressed", "hybrid", "text"}


def test_text_alone_is_not_for_a_reader_beside_one_of_text(path: Path, folder: Path) -> None:
    tokenizer, retrieval = TextTokenizer(path), RetrievalTokenizer()
    rows = ReaderData(folder, tokenizer, retrieval, 1, chunks_of)
    data = QuestionData(rows, tokenizer, 2, seed=1, window=4096, text=False)
    assert {data.mode(step, 0) for step in range(40)} == {"compressed", "hybrid"}


def test_blocks_are_chunks(folder: Path) -> None:
    counter = RetrievalTokenizer()
    passages = ReaderData(folder, counter, counter, 1)._articles[0].passages
    chunks = ReaderData(folder, counter, counter, 1, chunks_of)._articles[0].passages
    assert len(chunks) < len(passages)
    assert max(counter.count_batch(chunks)) <= 512
