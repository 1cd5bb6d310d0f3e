"""What is trained on: each example over what an answer to it would be given, and every document that had a part in that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memoryd.core import Document, Example, Source
from memoryd.engine.tokenizer import TextTokenizer
from memoryd.errors import FingerprintMismatch
from memoryd.jobs import Stopped
from memoryd.learn.contexts import MAX_ANSWER_TOKENS, ContextMaker, Packs
from memoryd.learn.soft_packing import SoftPack
from memoryd.learn.unanswerable import Found
from memoryd.recall.assembly import Assembler, Mode
from memoryd.recall.embeddings import EmbeddingStore
from memoryd.recall.prompt import DEFAULT_TOP_K, REFUSAL, SoftSlot
from memoryd.store.texts import Texts
from tests.unit.learning_parts import example, models, plain_tokenizer
from tests.unit.test_reuse import MEMORY, TENANT, Lab

TOWNS = ["Lisbon", "Porto", "Faro", "Evora", "Braga"]
EVERY = [Mode.TEXT, Mode.HYBRID, Mode.COMPRESSED]


class NoCache:
    """Keeps nothing."""

    def get_many(self, tenant: str, keys: Sequence[str]) -> dict[str, bytes]:
        return {}

    def put(self, tenant: str, key: str, value: bytes) -> None: ...


@dataclass
class Finds:
    """A searcher that finds what it is told to."""

    sources: dict[str, Sequence[Source]] = field(default_factory=dict)
    asked: list[tuple[str, int]] = field(default_factory=list)

    async def search(self, tenant: str, memories: Sequence[str], query: str, top_k: int) -> list[Source]:
        assert (tenant, memories) == (TENANT, [MEMORY])
        self.asked.append((query, top_k))
        return list(self.sources.get(query, ()))


class Library:
    """A document of two chunks about each town, compressed; the last one's are not compressed yet."""

    def __init__(self, folder: Path) -> None:
        self.lab = Lab(folder)
        self.tokenizer: TextTokenizer = plain_tokenizer(folder)
        self.documents: list[Document] = []
        for town in TOWNS:
            filler = f"The weather of {town} was fine and the wind was mild on that day. " * 3
            document = self.lab.write(f"Caroline moved to {town} by the sea. {filler}\n\nThe mayor of {town} is {town}son.")
            self.documents.append(document)
            if town != TOWNS[-1]:
                self.lab.compress(document)
        self.ids = [document.id for document in self.documents]
        self.town_of = dict(zip(self.ids, TOWNS, strict=True))
        self.chunk_of = {c.sha256.encode()[:16]: d for d in self.documents for c in self.lab.chunks(d)}

    def sources(self, *towns: int, passage: int = 0) -> list[Source]:
        """The best first."""
        made = []
        for town in towns:
            document = self.documents[town]
            found = list(self.lab.ledger.passages(TENANT, document.id))[passage]
            (text,) = Texts(self.lab.ledger, self.lab.blobs).passages(document, [found])
            made.append(Source(found, MEMORY, TOWNS[town], text, 1.0))
        return made

    def maker(self, budget: int = 4096, finds: Finds | None = None, **changed: Any) -> ContextMaker:
        known = models(None, self.tokenizer, **changed)
        nothing: Any = NoCache()
        assembler = Assembler(self.lab.ledger, EmbeddingStore(self.lab.ledger, self.lab.blobs, nothing), known, budget)
        searcher: Any = finds or Finds()
        return ContextMaker(searcher, assembler, known)

    def shown(self, pack: SoftPack) -> str:
        """The context as text, a chunk as <its number>."""
        return "".join(f"<{piece}>" if isinstance(piece, int) else self.tokenizer.decode(piece) for piece in pack.context)

    def said(self, pack: SoftPack) -> list[str]:
        assert all(answer[-1] == 2 for _, answer in pack.questions)
        return [self.tokenizer.decode(answer[:-1]) for _, answer in pack.questions]

    def asked(self, pack: SoftPack) -> list[str]:
        return [self.tokenizer.decode(ids).partition("\n")[0] for ids, _ in pack.questions]

    def with_context(self, question: str = "Where?", answer: str = "Lisbon", *documents: str) -> Example:
        """An example that its first pass shows with what was found, and not once more with the evidence withheld."""
        while True:
            made = example(question, answer, *documents)
            roomy = self.maker(1 << 20, max_positions=1 << 20)
            first, *more = roomy.packs(TENANT, [Found(made, self.sources(0, 1, 2, 3))], [Mode.TEXT], 1).packs
            if "Caroline" in self.shown(first) and not more:
                return made


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    made = Library(tmp_path_factory.mktemp("library"))
    yield made
    made.lab.ledger.close()


def only(made: Packs) -> SoftPack:
    (pack,) = made.packs
    return pack


# --- what is shown ---


async def test_it_searches_as_answers_do_and_further(library: Library) -> None:
    """What an answer is given from comes first; what is found after that is kept beside it."""
    finds = Finds({"Where?": library.sources(0, 1), "Which?": library.sources(0, 1, 2, 3, 4)})
    some, steps = [example("Where?"), example("Which?"), example("Who?")], list[int]()
    found = await library.maker(finds=finds).find(TENANT, MEMORY, some, steps.append)
    assert DEFAULT_TOP_K == 3
    assert found == [
        Found(some[0], library.sources(0, 1), []),
        Found(some[1], library.sources(0, 1, 2), library.sources(3, 4)),
        Found(some[2], [], []),
    ]
    assert [question for question, _ in finds.asked] == ["Where?", "Which?", "Who?"]
    assert min(top_k for _, top_k in finds.asked) > DEFAULT_TOP_K
    assert steps == [0, 1, 2]


async def test_a_step_that_stops_ends_the_search(library: Library) -> None:
    finds = Finds()

    def stop(done: int) -> None:
        if done == 1:
            raise Stopped

    with pytest.raises(Stopped):
        await library.maker(finds=finds).find(TENANT, MEMORY, [example(), example()], stop)
    assert len(finds.asked) == 1


@pytest.mark.parametrize("mode", EVERY)
def test_an_example_is_trained_on_what_an_answer_to_it_is_given(library: Library, mode: Mode) -> None:
    one = Found(library.with_context("Where did Caroline move?"), library.sources(0, 1, 4))
    maker = library.maker()
    made = maker.packs(TENANT, [one], [mode], 1)
    _, prompt = maker.prompt(TENANT, mode, one, MAX_ANSWER_TOKENS)
    pack, keys = only(made), {number: key for key, number in made.numbers.items()}
    trained: list[Any] = [keys[p] if isinstance(p, int) else p for p in pack.context]
    trained[-1] += pack.questions[0][0]
    assert trained == [s.chunk_key if isinstance(s, SoftSlot) else s.ids for s in prompt.segments]
    assert library.asked(pack) == ["Where did Caroline move?"]


def test_the_three_modes(library: Library) -> None:
    one, maker = Found(library.with_context(), library.sources(0, 1, 2)), library.maker()
    text, hybrid, compressed = (library.shown(only(maker.packs(TENANT, [one], [mode], 1))) for mode in EVERY)
    assert "<" not in text
    assert "[3] Lisbon\nCaroline moved to Lisbon" in text, "the best stands last"
    assert "Caroline" not in compressed
    assert "[1] Faro\n<0>\n\n[2] Porto\n<1>\n\n[3] Lisbon\n<2>" in compressed
    assert hybrid.startswith(compressed[: compressed.index("<2>")])
    assert "[5] Lisbon\nCaroline moved to Lisbon" in hybrid
    assert "Caroline moved to Faro" not in hybrid


def test_what_is_not_compressed_yet_is_shown_as_text(library: Library) -> None:
    one = Found(library.with_context(), library.sources(4))
    assert "Caroline moved to Braga" in library.shown(only(library.maker().packs(TENANT, [one], [Mode.COMPRESSED], 1)))


def test_embeddings_that_do_not_fit_the_base_model_are_refused(library: Library) -> None:
    one = Found(library.with_context(), library.sources(0))
    with pytest.raises(FingerprintMismatch):
        library.maker(d_model=8).packs(TENANT, [one], [Mode.COMPRESSED], 1)


def test_nothing_found_is_shown_as_nothing(library: Library) -> None:
    made = library.maker().packs(TENANT, [Found(library.with_context("Where?", REFUSAL), [])], EVERY, 1)
    assert "(nothing)" in library.shown(only(made))
    assert (library.said(only(made)), made.documents, made.chunks) == ([REFUSAL], set(), [])


def test_nothing_to_learn_makes_no_packs(library: Library) -> None:
    assert library.maker().packs(TENANT, [], EVERY, 3) == Packs()


# --- how often, and in which modes ---


def test_each_example_goes_through_every_mode_by_turns_and_now_and_then_without_context(library: Library) -> None:
    found = [Found(example(f"What is number {n}?"), library.sources(0)) for n in range(5)]
    made = library.maker().packs(TENANT, found, EVERY, 21)
    seen: dict[str, list[str]] = {one.example.question: [] for one in found}
    for pack in made.packs:
        shown = library.shown(pack)
        kind = {(True, False): "text", (True, True): "hybrid", (False, True): "compressed", (False, False): "nothing"}
        for question in library.asked(pack):
            seen[question].append(kind["Caroline" in shown, "<" in shown])
    for kinds in seen.values():
        assert {k: kinds.count(k) for k in kinds} == {"text": 6, "hybrid": 6, "compressed": 6, "nothing": 3}
    first = {tuple(kinds[:4]) for kinds in seen.values()}
    assert len(first) > 1, "not all begin with the same"


@pytest.mark.parametrize("passes", [0, 1, 4])
def test_as_many_passes_as_are_asked_for(library: Library, passes: int) -> None:
    found = [Found(example(f"What is number {n}?"), library.sources(n % 5, 1)) for n in range(9)]
    made = library.maker().packs(TENANT, found, EVERY, passes)
    asked = [each for pack in made.packs for each in zip(library.asked(pack), library.said(pack), strict=True)]
    answered = sorted(question for question, said in asked if said != REFUSAL)
    assert answered == sorted([one.example.question for one in found] * passes)


def test_the_same_examples_give_the_same_packs(library: Library) -> None:
    found = [Found(example(f"What is number {n}?"), library.sources(n % 5, 1)) for n in range(9)]
    maker = library.maker()
    assert maker.packs(TENANT, found, EVERY, 2) == maker.packs(TENANT, found, EVERY, 2)


def test_examples_of_one_best_source_share_a_context(library: Library) -> None:
    best, other = library.sources(0, 1), library.sources(1, 0)
    found = [Found(library.with_context(f"Where {n}?"), best if n % 3 else other) for n in range(15)]
    made = library.maker().packs(TENANT, found, [Mode.TEXT], 1)
    of_best = [pack for pack in made.packs if "[2] Lisbon" in library.shown(pack)]
    assert [len(pack.questions) for pack in of_best] == [6, 4], "a pack has so many questions at most"
    assert len({pack.context for pack in of_best}) == 1
    assert [len(pack.questions) for pack in made.packs if pack not in of_best] == [5]


# --- what is to be refused ---


# --- what does not fit ---


def _size(library: Library, one: Found, mode: Mode) -> int:
    _, prompt = library.maker().prompt(TENANT, mode, one, MAX_ANSWER_TOKENS)
    return prompt.text_tokens + prompt.soft_tokens


@pytest.mark.parametrize("mode", EVERY)
@pytest.mark.parametrize("long_first", [True, False])
def test_a_long_question_leaves_room_for_less_and_takes_nothing_from_the_others(
    library: Library, mode: Mode, long_first: bool
) -> None:
    sources = library.sources(0, 1, 2)
    long = library.with_context("Where did Caroline move, " + "and then " * 30 + "?")
    found = [Found(library.with_context("Where?"), sources), Found(long, sources), Found(library.with_context("Who?"), sources)]
    if long_first:
        found = [found[1], found[0], found[2]]
    least, most = (_size(library, Found(long, of), mode) for of in ([], sources))
    maker = library.maker((least + most) // 2)
    made = maker.packs(TENANT, found, [mode], 1)
    assert sorted(q for pack in made.packs for q in library.asked(pack)) == sorted(one.example.question for one in found)
    contexts = [len(maker.prompt(TENANT, mode, one, MAX_ANSWER_TOKENS)[1].blocks) for one in found]
    assert len(set(contexts)) == 2, "else there is nothing to see here"
    for pack in made.packs:
        assert {p for p in pack.context if isinstance(p, int)} <= set(range(len(made.chunks)))
    assert sorted(len(pack.questions) for pack in made.packs) == [1, 2]


def test_a_question_that_does_not_fit_at_all_is_left_out(library: Library) -> None:
    found = [Found(library.with_context("why " * 1500), library.sources(0)), Found(library.with_context(), library.sources(0))]
    maker = library.maker()
    assert library.asked(only(maker.packs(TENANT, found, [Mode.TEXT], 1))) == ["Where?"]
    assert maker.packs(TENANT, found[:1], [Mode.TEXT], 1).packs == []


def test_a_pack_fits_the_base_models_window(library: Library) -> None:
    one = Found(library.with_context("Where?", "x" * 900), library.sources(0, 1, 2))
    pack = only(library.maker(max_positions=700).packs(TENANT, [one], [Mode.TEXT], 1))
    ((question, answer),) = pack.questions
    assert answer[-1] == 2
    assert len(answer) == MAX_ANSWER_TOKENS + 1
    assert sum(len(p) for p in pack.context if not isinstance(p, int)) + len(question) + len(answer) - 1 <= 700


# --- what had a part in it ---


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    found=st.lists(
        st.tuples(st.lists(st.integers(0, 4), max_size=3, unique=True), st.lists(st.integers(0, 4), max_size=2)), max_size=8
    ),
    modes=st.lists(st.sampled_from(EVERY), min_size=1, max_size=3, unique=True),
    passes=st.integers(1, 3),
    budget=st.integers(400, 1000),
)
def test_every_document_that_had_a_part_is_named(
    library: Library, found: list[tuple[list[int], list[int]]], modes: list[Mode], passes: int, budget: int
) -> None:
    """Whatever is shown: it is by these that an adapter is tainted."""
    some = [
        Found(example(f"What is {'very ' * n}number {n}?", "x", *(library.ids[d] for d in rests)), library.sources(*sources))
        for n, (sources, rests) in enumerate(found)
    ]
    made = library.maker(budget).packs(TENANT, some, modes, passes)
    shown = "".join(library.shown(pack) for pack in made.packs)
    seen = {document for document, town in library.town_of.items() if f"Caroline moved to {town}" in shown}
    seen |= {library.chunk_of[made.chunks[p].data].id for pack in made.packs for p in pack.context if isinstance(p, int)}
    rests = {document for one in some for document in one.example.documents}
    assert seen | rests <= made.documents <= {library.ids[n] for sources, of in found for n in (*sources, *of)}
    assert sorted(made.numbers.values()) == list(range(len(made.chunks)))
    said = [answer for pack in made.packs for answer in library.said(pack)]
    assert len(said) - said.count(REFUSAL) == passes * len(some), "strangers come on top"
