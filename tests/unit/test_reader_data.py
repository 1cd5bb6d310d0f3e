"""The training data says only what is true: answers stand in view, refusals' answers do not."""

from __future__ import annotations

import json
import lzma
import random
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from memoryd.engine.retrieval_tokenizer import RetrievalTokenizer
from memoryd.learn.bm25 import Bm25
from memoryd.learn.reader_data import Pack, ReaderData, holds
from memoryd.learn.synthetic_chat import make_chat
from memoryd.recall.prompt import REFUSAL

CITIES = [f"City{chr(65 + n)}{chr(97 + m)}" for n in range(6) for m in range(10)]


def squad_row(name: str, cities: list[str]) -> dict[str, Any]:
    """An article of paragraphs, each about a city with its own year and river."""
    paragraphs, questions = [], []
    for number, city in enumerate(cities):
        year, river = f"{name[0]}{1000 + number * 7}", f"{city}river"
        filler = f"People of {city} like long walks, old books, music and markets very much. " * 5
        paragraphs.append(f"{city} was founded in {year}. It lies on the {river}. {filler}".strip())
        questions += [
            {"question": f"When was {city} founded?", "answers": [year], "paragraph": number},
            {"question": f"Which river does {city} lie on?", "answers": [river], "paragraph": number},
        ]
    return {"id": name, "text": "\n\n".join(paragraphs), "qa": questions}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    with lzma.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write(folder / "squad.jsonl.xz", [squad_row("Xland", CITIES[:30]), squad_row("Yland", CITIES[30:])])
    turns = "\n".join(f"Speaker {n % 3}: I think remote number {n} is good , yeah {{vocalsound}} ." for n in range(200))
    answer = "Speaker 1 thinks that remote number 7 is good, yeah. Speaker 2 thinks that remote number 8 is good, yeah, good."
    asked = {"question": "What about remote number 7?", "answers": [answer]}
    write(folder / "qmsum.jsonl.xz", [{"id": str(n), "text": turns, "qa": [asked]} for n in range(2)])
    nq = [
        {
            "question": f"who wrote book {n}",
            "answers": [f"Author{n}", "Nobody Else"],
            "ctxs": [{"title": f"Book {n}", "text": f"The book {n} was written by Author{n} long ago."}],
        }
        for n in range(12)
    ]
    write(folder / "nq_open_oracle.jsonl.xz", nq)
    boolq = [
        {"query": f"Thing {n} -- Thing {n} is blue.\nQuestion: is thing {n} blue\nAnswer:", "choices": ["yes", "no"], "gold": 0}
        for n in range(9)
    ]  # fmt: skip
    write(folder / "boolq.jsonl.xz", boolq)
    write(folder / "passages_2wiki.jsonl.xz", [{"title": f"W{n}", "text": "Some words. " * 20} for n in range(5)])
    return folder


def packs(folder: Path, count: int, seed: int = 3) -> list[Pack]:
    retrieval = RetrievalTokenizer()
    return list(islice(ReaderData(folder, retrieval, retrieval, seed).packs(), count))


@pytest.fixture(scope="module")
def made(folder: Path) -> list[Pack]:
    return packs(folder, 300)


def test_the_same_seed_gives_the_same_packs(folder: Path) -> None:
    assert packs(folder, 20) == packs(folder, 20)
    assert packs(folder, 20) != packs(folder, 20, seed=4)


def test_answers_of_articles_stand_in_the_block_that_they_cite(made: list[Pack]) -> None:
    for pack in made:
        if pack.source in ("squad", "nq"):
            for asked in pack.questions:
                if asked.answer != REFUSAL:
                    assert asked.block in pack.blocks
                    assert asked.block is not None
                    assert holds(asked.block.text, [asked.answer]), asked.question


def test_refusals_are_of_what_is_not_in_view(made: list[Pack]) -> None:
    for pack in made:
        text = " ".join(b.text for b in pack.blocks)
        for asked in pack.questions:
            assert (asked.block is None) == (asked.answer == REFUSAL)
            if pack.source == "squad" and asked.answer == REFUSAL:
                city = next(word for word in asked.question.split() if word.startswith("City"))
                assert f"{city} was founded" not in text


def test_some_refusals_are_the_hardest_all_that_is_related_and_not_the_answer(folder: Path) -> None:
    """Retrieval for such a question brings what is shown, from a memory without its answer."""
    retrieval = RetrievalTokenizer()
    data = ReaderData(folder, retrieval, retrieval, seed=3)
    ranked = {
        question: [article.passages[i] for i in ranking if i not in gold]
        for article in data._articles
        for (question, _), ranking, gold in zip(article.questions, article.ranked, article.gold, strict=True)
    }
    made = [pack for pack in islice(data.packs(), 300) if pack.source == "squad"]

    def hardest(pack: Pack) -> bool:
        shown = {block.text for block in pack.blocks}
        refused = [asked.question for asked in pack.questions if asked.answer == REFUSAL]
        return any(set(ranked[question][: len(shown)]) == shown for question in refused if question in ranked)

    several = [pack for pack in made if len(pack.blocks) >= 3]
    assert sum(map(hardest, several)) / len(several) > 0.2


def test_the_mixture(made: list[Pack]) -> None:
    sources = Counter(p.source for p in made)
    assert set(sources) == {"squad", "chat", "nq", "boolq", "qmsum", "empty"}
    assert sources["squad"] > 150
    answers = [asked.answer for p in made for asked in p.questions]
    assert 0.15 < sum(a == REFUSAL for a in answers) / len(answers) < 0.35
    sizes = Counter(len(p.blocks) for p in made if p.source == "squad")
    assert set(sizes) == {1, 2, 3, 4, 5}
    assert all(asked.answer == REFUSAL for p in made if p.source == "empty" for asked in p.questions)


def test_no_question_is_left_out(made: list[Pack]) -> None:
    used = Counter(a.question for p in made if p.source == "squad" for a in p.questions if a.answer != REFUSAL)
    assert len(used) == 2 * len(CITIES)
    assert min(used.values()) >= 3


def test_chats_answer_their_questions_only() -> None:
    r = random.Random(5)
    for _ in range(200):
        chat = make_chat(r)
        for question, answer in chat.questions:
            said = answer.lower() in chat.text.lower()
            assert said or question.startswith("When did"), question
        assert not {q for q, _ in chat.questions} & set(chat.unanswerable)
        assert "{" not in chat.text + " ".join(q for q, _ in chat.questions)


def test_bm25_finds_the_rare_word() -> None:
    index = Bm25(["the cat and the dog", "the zebra", "the dog and the dog"])
    assert index.ranked("where is the zebra")[0] == 1
    assert index.ranked("dog")[0] == 2
    assert index.scores("unheard").tolist() == [0, 0, 0]
