"""What the reader is trained on: packs of questions over one shared context, as memoryd will show it.

A pack is a few memory blocks and many questions about them, because encoding a context once for a dozen questions costs
a fraction of encoding it a dozen times. Distractors are what retrieval would really bring: the other passages that BM25
ranks high for the question. Questions whose answer is not shown have the refusal as their answer; most of them are hard
ones, with related passages in view.
"""

from __future__ import annotations

import gzip
import json
import lzma
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memoryd.compress.chunker import Counter, Limits, chunk_text
from memoryd.learn.bm25 import Bm25, words
from memoryd.learn.synthetic_chat import make_chat
from memoryd.recall.prompt import REFUSAL, TextBlock

_MAX_ANSWERED, _MAX_REFUSED = 11, 6  # questions of a pack
_MIXTURE = {"squad": 0.74, "chat": 0.13, "nq": 0.08, "boolq": 0.025, "qmsum": 0.025}
_EMPTY = 0.02  # packs whose memory holds nothing
_HIDDEN = 0.3  # SQuAD packs that show all that is related to their first question and not its answer
_NEAR = 5  # a passage among the first so many for a question is a hard distractor


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, its answer, and the block that it is answered from: None for a refusal."""

    question: str
    answer: str
    block: TextBlock | None = None


@dataclass(frozen=True, slots=True)
class Pack:
    """Blocks in the order of ``assemble`` (best first) and the questions asked of them."""

    source: str
    blocks: tuple[TextBlock, ...]
    questions: tuple[Asked, ...]


@dataclass(frozen=True, slots=True)
class Answered:
    """A text, all the questions that it answers, and their answers as they stand in it."""

    text: str
    answers: tuple[str, ...]
    questions: tuple[str, ...]


@dataclass(slots=True)
class Article:
    """One SQuAD article in passages. ``gold[q]`` are the passages that hold question q's answer."""

    title: str
    passages: list[str]
    questions: list[tuple[str, list[str]]]
    gold: list[set[int]]
    ranked: list[list[int]]
    used: list[int] = field(default_factory=list)


def passages_of(text: str, base: Counter, retrieval: Counter) -> list[tuple[int, str]]:
    """(start, text) of each passage of a document, from the project's own chunker."""
    return [(p.start, c.text_of(p)) for c in chunk_text("", [text], base, retrieval) for p in c.passages]


def chunks_of(text: str, base: Counter, retrieval: Counter, tokens: int = Limits().chunk_tokens) -> list[tuple[int, str]]:
    """(start, text) of each chunk of a document, of up to so many tokens."""
    return [(c.chunk.start, c.text) for c in chunk_text("", [text], base, retrieval, Limits(chunk_tokens=tokens))]


Spans = Callable[[str, Counter, Counter], list[tuple[int, str]]]


def load_article(row: dict[str, Any], base: Counter, retrieval: Counter, spans: Spans = passages_of) -> Article:
    """A row of squad.jsonl as an article of such spans; questions whose answer straddles two of them are left out."""
    placed = spans(row["text"], base, retrieval)
    texts = [text for _, text in placed]
    starts = [0]
    for paragraph in row["text"].split("\n\n"):
        starts.append(starts[-1] + len(paragraph) + 2)
    index = Bm25(texts)
    article = Article(title_of(row["id"]), texts, [], [], [])
    for qa in row["qa"]:
        low, high = starts[qa["paragraph"]], starts[qa["paragraph"] + 1]
        answers = list(dict.fromkeys(a.strip() for a in qa["answers"]))
        gold = {
            i
            for i, (start, text) in enumerate(placed)
            if start < high and start + len(text) > low and any(a in text for a in answers)
        }
        if gold:
            article.questions.append((qa["question"].strip(), answers))
            article.gold.append(gold)
            article.ranked.append(index.ranked(qa["question"])[:8])
    article.used = [0] * len(article.questions)
    return article


def title_of(identifier: str) -> str:
    return identifier.replace("_", " ")


def holds(text: str, answers: list[str]) -> bool:
    """Whether one of the answers stands in ``text``, by whole words."""
    padded = f" {' '.join(words(text))} "
    return any(f" {' '.join(words(a))} " in padded for a in answers if words(a))


class ReaderData:
    """Packs without end, the same ones for the same seed. The least used question comes next.

    Blocks are passages, as retrieval finds them, or with ``spans=chunks_of`` chunks, as they are compressed.
    """

    def __init__(self, folder: Path, base: Counter, retrieval: Counter, seed: int, spans: Spans = passages_of) -> None:
        self._random = random.Random(seed)
        self._articles = [load_article(r, base, retrieval, spans) for r in read_rows(folder / "squad.jsonl.xz")]
        self._nq = [r for r in read_rows(folder / "nq_open_oracle.jsonl.xz") if _nq_answer(r)]
        self._boolq = read_rows(folder / "boolq.jsonl.xz")
        self._wiki = [
            TextBlock(r["text"], r["title"])
            for r in read_rows(folder / "passages_2wiki.jsonl.xz")
            if 20 < len(r["text"].split()) < 150
        ]
        self._meetings = [_meeting(r, base, retrieval, spans) for r in read_rows(folder / "qmsum.jsonl.xz")]

    def answered(self) -> list[Answered]:
        """Each text of the articles that answers a question."""
        found: list[Answered] = []
        for article in self._articles:
            for number, text in enumerate(article.passages):
                asked = [q for q, gold in zip(article.questions, article.gold, strict=True) if number in gold]
                answers = [answer for _, answers in asked for answer in answers if answer in text]
                found += [Answered(text, tuple(answers), tuple(question for question, _ in asked))] if asked else []
        return found

    def packs(self) -> Iterator[Pack]:
        kinds, weights = list(_MIXTURE), list(_MIXTURE.values())
        makers = {
            "squad": self._squad,
            "chat": self._chat,
            "nq": self._nq_pack,
            "boolq": self._boolq_pack,
            "qmsum": self._meeting_pack,
        }
        while True:
            pack = makers[self._random.choices(kinds, weights)[0]]()
            if pack.questions and self._random.random() < _EMPTY:
                pack = Pack("empty", (), tuple(Asked(q.question, REFUSAL) for q in pack.questions[:3]))
            if pack.questions:
                yield pack

    def _squad(self) -> Pack:
        r = self._random
        article = r.choices(self._articles, [len(a.questions) for a in self._articles])[0]
        seed = min(range(len(article.questions)), key=lambda q: (article.used[q], r.random()))
        count = r.choice((1, 2, 3, 3, 3, 3, 4, 5))
        hidden = r.random() < _HIDDEN
        shown = self._without_answer(article, seed)[:count] if hidden else self._with_answer(article, seed, count)
        title = article.title if r.random() < 0.8 else ""
        blocks = [TextBlock(article.passages[i], title) for i in shown]
        shown_as = dict(zip(shown, blocks, strict=True))
        if len(blocks) < 5 and r.random() < 0.25:
            blocks.insert(r.randrange(len(blocks) + 1), self._foreign(article))
        answered = [q for q, g in enumerate(article.gold) if g & set(shown)]
        answered.sort(key=lambda q: (q != seed, article.used[q], r.random()))
        del answered[_MAX_ANSWERED:]
        for q in {seed, *answered}:
            article.used[q] += 1
        questions = [self._from_article(article, q, shown_as) for q in answered]
        wanted = min(_MAX_REFUSED, max(2, round(len(answered) * 0.55)))
        questions += self._refused(article, shown, blocks, wanted, [seed] if hidden else [])
        return self._pack("squad", blocks, questions)

    def _with_answer(self, article: Article, q: int, count: int) -> list[int]:
        """The ``count`` passages that retrieval brings for question ``q``, one that holds its answer among them."""
        ranked = article.ranked[q]
        gold = self._random.choice(sorted(article.gold[q]))
        shown = [i for i in ranked if i != gold][: count - 1]
        at = ranked.index(gold) if gold in ranked else self._random.randrange(count)
        shown.insert(min(at, len(shown)), gold)
        return shown

    def _without_answer(self, article: Article, q: int) -> list[int]:
        """What retrieval brings for question ``q`` from a memory that does not hold its answer: the hardest refusals."""
        answers = article.questions[q][1]
        return [i for i in article.ranked[q] if i not in article.gold[q] and not holds(article.passages[i], answers)]

    def _from_article(self, article: Article, q: int, shown: dict[int, TextBlock]) -> Asked:
        """Question ``q``, answered from the first block that retrieval would give it among those that hold the answer."""
        question, answers = article.questions[q]
        best = [i for i in article.ranked[q] if i in article.gold[q] and i in shown]
        gold = best[0] if best else min(article.gold[q] & set(shown))
        answer = _answer([a for a in answers if a in shown[gold].text], self._random)
        return Asked(question, answer, shown[gold])

    def _refused(
        self, article: Article, shown: list[int], blocks: list[TextBlock], wanted: int, first: list[int]
    ) -> list[Asked]:
        """Questions of the same article that the blocks do not answer: ``first``, then those to which most of the blocks
        are related; one in four of these is a stranger in their place."""
        r = self._random
        text = " ".join(b.text for b in blocks)
        near = [
            q
            for q, ranked in enumerate(article.ranked)
            if not article.gold[q] & set(shown) and set(ranked[:_NEAR]) & set(shown)
        ]
        related = {q: len(set(article.ranked[q][:_NEAR]) & set(shown)) + 2 * r.random() for q in near}
        near.sort(key=lambda q: (q not in first, -related[q]))
        questions: list[Asked] = []
        for q in near[:wanted]:
            stranger = q not in first and r.random() < 0.25
            question, answers = r.choice(r.choice(self._articles).questions) if stranger else article.questions[q]
            if not holds(text, answers):
                questions.append(Asked(question, REFUSAL))
        return questions

    def _foreign(self, article: Article) -> TextBlock:
        """A block that has nothing to do with the question."""
        r = self._random
        kind = r.randrange(4)
        if kind == 0:
            return r.choice(self._wiki)
        if kind == 1:
            other = r.choice([a for a in self._articles if a is not article])
            return TextBlock(r.choice(other.passages), other.title)
        if kind == 2:
            meeting = r.choice(self._meetings)
            return TextBlock(r.choice(meeting.passages), meeting.title)
        chat = make_chat(r)
        return TextBlock(chat.text, chat.title)

    def _chat(self) -> Pack:
        r = self._random
        chats = [make_chat(r, facts=r.randint(3, 6)) for _ in range(r.choice((1, 1, 2)))]
        blocks = [TextBlock(c.text, c.title) for c in chats]
        if r.random() < 0.4:
            meeting = r.choice(self._meetings)
            blocks.append(TextBlock(r.choice(meeting.passages), meeting.title))
        questions = [Asked(q, a, blocks[0]) for q, a in chats[0].questions]
        taken = {asked.question for asked in questions}
        if len(chats) == 2:  # only what the other conversation cannot answer differently
            more = [(q, a) for q, a in chats[1].questions if q not in taken and "user" not in q and " I " not in q]
            questions += [Asked(q, a, blocks[1]) for q, a in more]
            taken |= {q for q, _ in more}
        refused = [q for q in chats[0].unanswerable if q not in taken]
        if len(chats) == 2:
            refused = [q for q in refused if "user" not in q and " my " not in q and " I " not in q]
        r.shuffle(questions)
        return self._pack("chat", blocks, [*questions[:_MAX_ANSWERED], *(Asked(q, REFUSAL) for q in refused[:3])])

    def _nq_pack(self) -> Pack:
        r = self._random
        rows = r.sample(self._nq, r.choice((2, 3, 3, 4)))
        blocks = [_nq_block(row) for row in rows]
        if r.random() < 0.5:
            blocks.append(r.choice(self._wiki))
        questions = [Asked(_asked(row["question"]), _nq_answer(row), _nq_block(row)) for row in rows]
        stranger = r.choice(self._nq)
        if not any(holds(b.text, stranger["answers"]) for b in blocks):
            questions.append(Asked(_asked(stranger["question"]), REFUSAL))
        return self._pack("nq", blocks, questions)

    def _boolq_pack(self) -> Pack:
        r = self._random
        rows = [_boolq_row(row) for row in r.sample(self._boolq, 3)]
        blocks = [block for block, _, _ in rows[:2] if len(block.text.split()) < 170]
        questions = [Asked(question, answer, block) for block, question, answer in rows[:2] if block in blocks]
        return self._pack("boolq", blocks, [*questions, Asked(rows[2][1], REFUSAL)] if questions else [])

    def _meeting_pack(self) -> Pack:
        r = self._random
        meeting = r.choice([m for m in self._meetings if m.questions])
        question, answer = r.choice(meeting.questions)
        blocks = [TextBlock(meeting.passages[i], meeting.title) for i in meeting.index.ranked(question)[:4]]
        text = " ".join(b.text for b in blocks)
        said = [w for w in words(answer) if len(w) > 4]
        supported = sum(w in set(words(text)) for w in said) >= 0.5 * len(said)
        other = r.choice(r.choice([m for m in self._meetings if m is not meeting and m.questions]).questions)[0]
        best = max(blocks, key=lambda b: len(set(said) & set(words(b.text))))
        questions = [Asked(question, answer, best)] if supported else []
        strangers = [Asked(q, REFUSAL) for q in (other, make_chat(r).questions[0][0])]
        return self._pack("qmsum", blocks, [*questions, *strangers][:2])

    def _pack(self, source: str, blocks: list[TextBlock], questions: list[Asked]) -> Pack:
        """Half of the packs keep the blocks' rank, half are shuffled: the reader must not trust the order alone."""
        r = self._random
        if r.random() < 0.5:
            r.shuffle(blocks)
        r.shuffle(questions)
        return Pack(source, tuple(blocks), tuple(questions))


@dataclass(frozen=True, slots=True)
class _Meeting:
    title: str
    passages: list[str]
    questions: list[tuple[str, str]]  # those with a short answer
    index: Bm25


def _meeting(row: dict[str, Any], base: Counter, retrieval: Counter, spans: Spans) -> _Meeting:
    text = re.sub(r"\s*\{\w+\}", "", row["text"])
    text = re.sub(r" ([.,?!])", r"\1", text).replace(" '", "'")
    passages = [passage for _, passage in spans(text, base, retrieval)]
    short = [(qa["question"], qa["answers"][0].strip()) for qa in row["qa"]]
    return _Meeting("Meeting", passages, [(q, a) for q, a in short if len(a.split()) <= 40], Bm25(passages))


def _answer(answers: list[str], r: random.Random) -> str:
    """One of the answers that people gave, mostly the shortest: answers are to be brief."""
    return min(answers, key=len) if r.random() < 0.7 else answers[0]


def _nq_answer(row: dict[str, Any]) -> str:
    """The shortest answer that stands in the passage, or nothing."""
    found = [a for a in row["answers"] if a in row["ctxs"][0]["text"]]
    return min(found, key=len, default="")


def _nq_block(row: dict[str, Any]) -> TextBlock:
    return TextBlock(row["ctxs"][0]["text"], row["ctxs"][0]["title"])


def _asked(question: str) -> str:
    """A search query as a person would ask it, more or less."""
    return question[0].upper() + question[1:].rstrip("?") + "?"


def _boolq_row(row: dict[str, Any]) -> tuple[TextBlock, str, str]:
    context, question = row["query"].removesuffix("\nAnswer:").rsplit("\nQuestion: ", 1)
    title, _, text = context.partition(" -- ")
    return TextBlock(text, title), _asked(question), row["choices"][row["gold"]].capitalize()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON lines file, packed by gzip or xz."""
    opener = gzip.open if path.suffix == ".gz" else lzma.open
    with opener(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
