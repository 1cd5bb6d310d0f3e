"""What the askers that ship are trained on: passages with the questions that they answer, and what the asker is to write.

Facts are of SQuAD, the reader's task turned round: the answer is given, the question is to be written. Discussions are of
QMSum's meetings: the question is to be written with its answer, of which only those sentences are kept that the part of the
meeting which is shown supports.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from memoryd.engine.retrieval_tokenizer import RetrievalTokenizer
from memoryd.engine.tokenizer import TextTokenizer
from memoryd.learn.asker import DISCUSSIONS, FACTS, request_for
from memoryd.learn.bm25 import Bm25, words
from memoryd.learn.discussion import discussion_request, sentences, speakers, supported
from memoryd.learn.reader_data import chunks_of, load_article, read_rows, title_of
from memoryd.learn.soft_packing import SoftPack
from memoryd.recall.prompt import TextBlock, assemble

_MOST = 8  # questions of a pack
_HELD_OUT = 0.1  # of the articles
_LEAST_WORDS = 20  # of what a chunk supports of an answer: an asker that saw shorter ones wrote one sentence and no more
_OF_ALL = re.compile("summari[sz]e (the )?(whole )?meeting|what was (the meeting|discussed in the meeting)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Passage:
    """`asked` is what the asker is asked after this text, each with what it is to write."""

    title: str
    text: str
    asked: tuple[tuple[str, str], ...]


def facts_of(folder: Path, tokenizer: TextTokenizer) -> list[Passage]:
    """All passages of SQuAD's articles that answer a question."""
    found: list[Passage] = []
    for row in read_rows(folder / "squad.jsonl.xz"):
        article = load_article(row, tokenizer, RetrievalTokenizer())
        by_passage: dict[int, list[tuple[str, str]]] = {}
        for (question, answers), gold in zip(article.questions, article.gold, strict=True):
            for passage in gold:
                by_passage.setdefault(passage, []).append((request_for(answers[0]), question))
        found += (Passage(article.title, article.passages[n], tuple(asked)) for n, asked in sorted(by_passage.items()))
    return found


def discussions_of(folder: Path, tokenizer: TextTokenizer) -> list[Passage]:
    """The chunk of QMSum's meetings that a question is about most, for all of whose answer it supports a few sentences."""
    found: list[Passage] = []
    for row in read_rows(folder / "qmsum.jsonl.xz"):
        texts = [text for _, text in chunks_of(row["text"], tokenizer, RetrievalTokenizer())]
        index = Bm25(texts)
        by_chunk: dict[int, list[tuple[str, str]]] = {}
        for qa in row["qa"]:
            question, answer = " ".join(qa["question"].split()), qa["answers"][0]
            best = index.ranked(f"{question} {answer}")[0]
            kept = supported(answer, texts[best])
            if not _OF_ALL.match(question) and len(words(kept)) >= _LEAST_WORDS and len(sentences(kept)) > 1:
                named = (who for who in speakers(texts[best]) if who in question)
                by_chunk.setdefault(best, []).append((discussion_request(next(named, "")), f"{question}\n{kept}"))
        found += (Passage(title_of(row["id"]), texts[n], tuple(asked)) for n, asked in sorted(by_chunk.items()))
    return found


PASSAGES: Mapping[str, Callable[[Path, TextTokenizer], list[Passage]]] = {FACTS: facts_of, DISCUSSIONS: discussions_of}
"""By what an asker asks for."""


def split(passages: Sequence[Passage], seed: int) -> tuple[list[Passage], list[Passage]]:
    """Those to train on, and those of the held-out articles, which `seed` chooses: a tenth of all, one at least."""
    titles = sorted({passage.title for passage in passages})
    held_out = random.Random(seed).sample(titles, max(1, round(_HELD_OUT * len(titles))))
    return [p for p in passages if p.title not in held_out], [p for p in passages if p.title in held_out]


def packs_of(passages: Sequence[Passage], tokenizer: TextTokenizer, eos: int, count: int, seed: int) -> list[SoftPack]:
    """At most `count` of the passages, drawn by `seed`, each with what is asked after it."""
    r = random.Random(seed)
    packs: list[SoftPack] = []
    for passage in r.sample(passages, len(passages))[:count]:
        questions = []
        context: tuple[int, ...] = ()
        for request, wanted in r.sample(passage.asked, min(_MOST, len(passage.asked))):
            prompt = assemble(tokenizer, [TextBlock(passage.text, passage.title)], request)
            ids, cut = tuple(prompt.token_ids()), prompt.context_tokens
            context = ids[:cut]
            questions.append((ids[cut:], (*tokenizer.encode(wanted), eos)))
        packs.append(SoftPack((), (context,), tuple(questions)))
    return packs
