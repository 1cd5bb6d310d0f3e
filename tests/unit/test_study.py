"""The STUDY job on a real ledger and real blobs: what becomes an example, what is dropped, and when it is enough."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memoryd.core import Document, Example, Job, JobKind, Origin
from memoryd.engine.request import GenerateEvent, Generation, scope_of
from memoryd.engine.tokenizer import TextTokenizer
from memoryd.errors import InvalidArgument, Unavailable
from memoryd.jobs import NotYet, Progress
from memoryd.learn.study import DEFAULT_EXAMPLES, Asked, StudyJob, tells
from memoryd.recall.prompt import REFUSAL
from memoryd.store.texts import Texts
from tests.unit.learning_parts import Worker, models, plain_tokenizer, prompt_of
from tests.unit.test_reuse import MEMORY, TENANT, Lab

Pairs = list[tuple[str, str]]


class Asking:
    """An asker that asks of each passage what it is told to, and then does something else."""

    name = "a fake asker"

    def __init__(self) -> None:
        self.of: dict[str, Pairs] = {}
        self.asked: list[tuple[str, str]] = []
        self.then: Callable[[int], object] = lambda count: None
        self.refuses: set[int] = set()
        """Passages, by the order in which they come."""
        self.discussions: dict[str, Pairs] = {}
        self.discussed: list[str] = []
        self.refuses_to_discuss = False
        self.fails_to_discuss = 0
        """So many times."""
        self.stands: asyncio.Event | None = None

    async def ask(self, text: str, title: str, scope: str = "") -> Asked:
        assert scope == scope_of(TENANT)
        self.asked.append((text, title))
        if len(self.asked) - 1 in self.refuses:
            raise InvalidArgument("the teacher refuses a passage")
        self.then(len(self.asked))
        if self.stands:
            await self.stands.wait()
        return Asked(self.of.get(text, []), prompt_tokens=100, output_tokens=10)

    async def discuss(self, text: str, title: str, scope: str = "") -> Asked:
        assert scope == scope_of(TENANT)
        self.discussed.append(text)
        if self.refuses_to_discuss:
            raise InvalidArgument("the teacher refuses a passage")
        if self.fails_to_discuss:
            self.fails_to_discuss -= 1
            raise Unavailable("the teacher can't answer now")
        return Asked(self.discussions.get(text, []), prompt_tokens=1000, output_tokens=100)


class Study:
    """A memory of documents of one passage each, and a reader that knows the answers unless it is told otherwise."""

    def __init__(self, folder: Path) -> None:
        self.lab = Lab(folder)
        self.ledger = self.lab.ledger
        self.tokenizer: TextTokenizer = plain_tokenizer(folder)
        self.asker = Asking()
        self.reads: dict[str, str] = {}
        self.worker = Worker(self._read)
        self.documents: dict[str, Document] = {}

    def _read(self, request: Generation) -> str:
        prompt = prompt_of(self.tokenizer, request)
        return next((answer for question, answer in self.reads.items() if f"\n{question}\n" in prompt), REFUSAL)

    def write(self, text: str, *pairs: tuple[str, str]) -> Document:
        """With what is asked of it, which the reader answers well."""
        document = self.lab.write(text)
        assert document.passage_count == 1
        self.asker.of[text] = list(pairs)
        self.reads |= {question: f"[1] {answer}" for question, answer in pairs}
        self.documents[text] = document
        return document

    def write_towns(self, count: int) -> None:
        for n in range(count):
            self.write(f"Caroline moved to town {n}.", (f"where{n} did{n} move{n}?", f"town {n}"))

    def job(self, **payload: str) -> Job:
        return self.ledger.request_learning(TENANT, MEMORY, JobKind.STUDY, payload, None)

    def handler(self, **changed: Any) -> StudyJob:
        texts = Texts(self.ledger, self.lab.blobs)
        return StudyJob(self.ledger, texts, models(self.worker, self.tokenizer, **changed), self.asker)

    async def run(self, **payload: str) -> Mapping[str, str | int]:
        return await self.handler()(self.job(**payload), Progress(self.job(), lambda: None))

    def end_job(self) -> None:
        """The next one is a job of its own."""
        assert self.ledger.cancel_job(TENANT, self.job().id).state.ended

    @property
    def examples(self) -> list[Example]:
        return list(self.ledger.list_examples(TENANT, MEMORY, 1000, "").items)


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Study]:
    made = Study(tmp_path)
    yield made
    made.ledger.close()


# --- what becomes an example ---


async def test_what_the_reader_finds_again_becomes_an_example_of_its_document(study: Study) -> None:
    one = study.write("Caroline moved to Lisbon in May.", ("Where did she move?", "Lisbon"), ("When was that?", "in May"))
    other = study.write("The river is blue.", ("What colour is it?", "blue"))
    receipt = await study.run()
    assert {(e.question, e.answer, e.documents, e.origin) for e in study.examples} == {
        ("Where did she move?", "Lisbon", (one.id,), Origin.SELF_STUDY),
        ("When was that?", "in May", (one.id,), Origin.SELF_STUDY),
        ("What colour is it?", "blue", (other.id,), Origin.SELF_STUDY),
    }
    assert receipt == {
        "memory": f"memories/{MEMORY}",
        "teacher": "a fake asker",
        "passages": 2,
        "questions": 3,
        "unanswerable": 0,
        "duplicates": 0,
        "leaking": 0,
        "examples": 3,
        "prompt_tokens": 200,
        "output_tokens": 20,
        "refused": 0,
    }


async def test_the_reader_is_given_the_passage_alone(study: Study) -> None:
    study.write("Caroline moved to Lisbon.", ("Where did she move?", "Lisbon"))
    study.write("The river is blue.")
    await study.run()
    (request,) = study.worker.asked
    prompt = prompt_of(study.tokenizer, request)
    assert "[1]\nCaroline moved to Lisbon.\n" in prompt
    assert "river" not in prompt
    assert request.use_reader
    study.worker.asked.clear()
    study.write("Caroline saw Porto.", ("What did she see?", "Porto"))
    await study.handler(reader="")(study.job(), Progress(study.job(), lambda: None))
    assert not study.worker.asked[-1].use_reader, "there is none"


@pytest.mark.parametrize(
    ("said", "examples"),
    [
        ("Lisbon", 1),
        ("[1] Lisbon, Portugal", 1),  # two words of the three are the same
        ("[1] She moved to Lisbon", 0),
        ("[1] Porto", 0),
        (REFUSAL, 0),
        ("", 0),
    ],
)
async def test_what_the_reader_does_not_find_again_is_unanswerable(study: Study, said: str, examples: int) -> None:
    study.write("Caroline moved to Lisbon.", ("Where did she move?", "Lisbon"))
    study.reads["Where did she move?"] = said
    receipt = await study.run()
    assert (receipt["examples"], receipt["unanswerable"], len(study.examples)) == (examples, 1 - examples, examples)


async def test_a_question_that_is_too_long_to_be_read_is_unanswerable(study: Study) -> None:
    study.write("Caroline moved to Lisbon.", ("why " * 3000 + "?", "Lisbon"), ("Where did she move?", "Lisbon"))
    receipt = await study.run()
    assert (receipt["unanswerable"], receipt["examples"]) == (1, 1)
    limited = study.handler(max_positions=600)
    study.write("Caroline moved to Porto by the sea.", ("where to " * 50 + "?", "Porto"))
    receipt = await limited(study.job(), Progress(study.job(), lambda: None))
    assert (receipt["unanswerable"], receipt["duplicates"]) == (2, 1), "the base model's window is what counts"


async def test_a_question_that_tells_its_own_answer_is_dropped_unread(study: Study) -> None:
    study.write("Caroline moved to Lisbon.", ("Who moved to Lisbon?", "the Lisbon"), ("Who is Lisbonese?", "Lisbon"))
    receipt = await study.run()
    assert (receipt["leaking"], receipt["examples"], len(study.worker.asked)) == (1, 1, 1)


@given(st.sampled_from(["Lisbon", "old town", "7 May 2023"]), st.text("ab ,.?", max_size=9), st.text("ab ,.?", max_size=9))
def test_telling_is_of_whole_words(answer: str, before: str, after: str) -> None:
    assert tells(f"{before} {answer.upper()}, {after}", f"{answer}.")
    assert not tells(f"{before} x{answer} {after}", answer)
    assert not tells(f"{before} {after}", answer)


async def test_what_is_asked_already_is_a_duplicate(study: Study) -> None:
    study.ledger.add_examples(TENANT, MEMORY, [("Where did Caroline move to?", "Porto", [])], Origin.SUPPLIED, None)
    study.write(
        "Caroline moved to Lisbon in May.",
        ("Where to did the Caroline move?", "Lisbon"),  # supplied
        ("When did Caroline leave home?", "in May"),
        ("Caroline, when did she leave home?", "May"),  # the one before
        ("Who left?", "Caroline"),
    )
    receipt = await study.run()
    assert (receipt["duplicates"], receipt["examples"], receipt["questions"]) == (2, 2, 4)
    assert [e.question for e in study.examples[1:]] == ["When did Caroline leave home?", "Who left?"]


async def test_to_study_again_adds_nothing(study: Study) -> None:
    study.write_towns(3)
    await study.run()
    before = study.examples
    receipt = await study.run()
    assert (receipt["examples"], receipt["duplicates"]) == (0, 3)
    assert study.examples == before


async def test_one_like_another_that_was_dropped_is_no_duplicate(study: Study) -> None:
    study.write(
        "Caroline moved to Lisbon in May.",
        ("When did Caroline leave home?", "in May"),
        ("Caroline, when did she leave home?", "May"),
    )
    study.reads["When did Caroline leave home?"] = REFUSAL
    receipt = await study.run()
    assert (receipt["unanswerable"], receipt["duplicates"], receipt["examples"]) == (1, 0, 1)


async def test_questions_of_a_passage_are_read_side_by_side(study: Study) -> None:
    study.worker = worker = SideBySide(study._read)
    study.write("Caroline moved to Lisbon.", *[(f"where{n} did{n}?", "Lisbon") for n in range(6)])
    assert (await study.run())["examples"] == 3
    assert worker.most == len(worker.asked) == 3, "and no more than are wanted"


class SideBySide(Worker):
    """Counts how many generations it had at a time."""

    now = most = 0

    async def generate(self, request: Generation) -> AsyncGenerator[GenerateEvent, None]:
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0)
        async for event in super().generate(request):
            yield event
        self.now -= 1


async def test_no_more_than_three_are_kept_of_a_passage(study: Study) -> None:
    pairs = [(f"where{n} did{n}?", "Lisbon") for n in range(6)]
    study.write("Caroline moved to Lisbon.", *pairs)
    study.reads["where0 did0?"] = REFUSAL
    receipt = await study.run()
    assert (receipt["examples"], receipt["unanswerable"], receipt["questions"]) == (3, 1, 4)


async def test_nothing_is_asked_for_nothing(study: Study) -> None:
    receipt = await study.run()
    assert (receipt["passages"], receipt["examples"], study.examples) == (0, 0, [])


# --- what is discussed in conversations ---

TALK = "Ann: The harbour wall leaks.\nBob: Mend it in spring, before the ferry season.\nAnn: Yes."
SAID = "Ann thinks that the harbour wall leaks. Bob would mend it in spring, before the ferry season."
ABOUT = ("What was said of the wall?", SAID)


def write_talk(study: Study, talk: str = TALK, *facts: tuple[str, str]) -> Document:
    """One chunk, whose passages are its turns; the facts are asked of the second."""
    document = study.lab.write(talk)
    assert (document.chunk_count, document.passage_count) == (1, 2)
    study.asker.of[talk.partition("\n")[2]] = list(facts)
    study.reads |= dict(facts)
    return document


async def test_of_a_conversation_it_is_also_asked_what_is_discussed(study: Study) -> None:
    document = write_talk(study, TALK, ("Who wants spring?", "Bob"))
    study.write("Caroline moved to Lisbon: it was in May.", ("Where did she move?", "Lisbon"))
    study.asker.discussions[TALK] = [ABOUT]
    receipt = await study.run()
    assert study.asker.discussed == [TALK], "of a conversation, and of nothing else"
    made = {(e.question, e.answer, e.documents, e.origin) for e in study.examples}
    assert (*ABOUT, (document.id,), Origin.SELF_STUDY) in made
    assert (receipt["passages"], receipt["questions"], receipt["examples"], len(made)) == (3, 3, 3, 3)
    assert (receipt["prompt_tokens"], receipt["output_tokens"]) == (1300, 130)


async def test_of_an_answer_the_sentences_stay_that_the_conversation_supports(study: Study) -> None:
    write_talk(study)
    made_up = "The mayor of Lisbon promised nine million euros for it."
    study.asker.discussions[TALK] = [(ABOUT[0], f"{ABOUT[1]} {made_up}"), ("What did the mayor say of money?", made_up)]
    receipt = await study.run()
    assert [(e.question, e.answer) for e in study.examples] == [ABOUT]
    assert (receipt["unanswerable"], receipt["examples"]) == (1, 1)
    assert study.worker.asked == [], "no reader finds such an answer again"


async def test_a_chunk_is_discussed_once_though_it_has_many_passages(study: Study) -> None:
    turns = [f"{'Ann' if n % 2 else 'Bob'}: I say for the {n}th time that it rains.\n" for n in range(12)]
    document = study.lab.write("".join(turns))
    await study.run()
    assert len(study.asker.asked) == document.passage_count
    assert len(study.asker.discussed) == document.chunk_count < document.passage_count


async def test_no_more_is_discussed_than_is_wanted(study: Study) -> None:
    write_talk(study)
    study.asker.discussions[TALK] = [ABOUT, ("What did Bob want to do?", SAID)]
    assert (await study.run(max_examples="1"))["examples"] == len(study.examples) == 1


async def test_where_the_facts_are_enough_nothing_is_discussed(study: Study) -> None:
    document = study.lab.write("Ann: It is Bob.\nBob: No.\nAnn: Ah.")
    assert document.passage_count == 1
    study.asker.of["Ann: It is Bob.\nBob: No.\nAnn: Ah."] = [("Who is it?", "Bob")]
    study.reads["Who is it?"] = "Bob"
    assert (await study.run(max_examples="1"))["examples"] == 1
    assert study.asker.discussed == []


async def test_a_teacher_that_refuses_to_discuss_has_asked_for_facts_all_the_same(study: Study) -> None:
    study.asker.refuses_to_discuss = True
    write_talk(study, TALK, ("Who wants spring?", "Bob"))
    receipt = await study.run()
    assert (receipt["examples"], receipt["passages"], receipt["refused"]) == (1, 2, 0)


# --- how many ---


@pytest.mark.parametrize("most", [1, 3, 4])
async def test_it_stops_at_as_many_as_are_wanted(study: Study, most: int) -> None:
    for n in range(3):
        study.write(f"Caroline moved to town {n}.", *[(f"where{n}{i} did{n}{i}?", f"town {n}") for i in range(2)])
    receipt = await study.run(max_examples=str(most))
    assert receipt["examples"] == len(study.examples) == most
    assert receipt["passages"] == len(study.asker.asked) == (most + 1) // 2


async def test_there_is_a_usual_number(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    assert DEFAULT_EXAMPLES > 3
    monkeypatch.setattr("memoryd.learn.study.DEFAULT_EXAMPLES", 2)
    study.write_towns(4)
    assert (await study.run())["examples"] == 2


@pytest.mark.parametrize(("most", "read"), [(1, 24), (10, 30), (14, 40)])
async def test_it_does_not_read_on_for_ever_where_few_questions_are_good(study: Study, most: int, read: int) -> None:
    study.write_towns(40)
    study.reads = dict.fromkeys(study.reads, REFUSAL)
    receipt = await study.run(max_examples=str(most))
    assert receipt["passages"] == len(study.asker.asked) == read, "three passages for each that is wanted, and 24 at least"
    assert receipt["unanswerable"] == read


async def test_a_passage_that_the_teacher_refuses_is_passed_over(study: Study) -> None:
    study.write_towns(6)
    study.asker.refuses = {2, 3}
    receipt = await study.run()
    assert (receipt["passages"], receipt["examples"], receipt["refused"]) == (4, 4, 2)


async def test_a_teacher_that_takes_no_passage_is_no_teacher(study: Study) -> None:
    study.write_towns(6)
    study.asker.refuses = set(range(6))
    with pytest.raises(InvalidArgument):
        await study.run()
    assert len(study.asker.asked) == 3


async def test_four_memories_study_at_a_time(study: Study) -> None:
    study.write_towns(1)
    study.asker.stands, begun = asyncio.Event(), asyncio.Event()
    study.asker.then = lambda count: begun.set() if count == 4 else None
    handler, job = study.handler(), study.job()
    running = [asyncio.create_task(handler(job, Progress(job, lambda: None))) for _ in range(4)]
    await begun.wait()
    with pytest.raises(NotYet):
        await handler(job, Progress(job, lambda: None))
    study.asker.stands.set()
    await asyncio.gather(*running)
    assert (await handler(job, Progress(job, lambda: None)))["passages"] == 1


async def test_what_was_paid_for_is_counted_though_the_passage_is_read_again(study: Study) -> None:
    study.write_towns(1)
    study.worker.failures = [Unavailable("the worker restarts", reason="WORKER_DOWN")]
    job = study.job()
    progress = Progress(job, lambda: None)
    with pytest.raises(Unavailable):
        await study.handler()(job, progress)
    assert progress.job.receipt["prompt_tokens"] == 100


async def test_passages_come_in_an_order_of_the_jobs_own_that_stays(study: Study) -> None:
    study.write_towns(20)
    await study.run()
    order = list(study.asker.asked)
    await study.run()
    assert study.asker.asked == order * 2, "the job has not ended"
    assert [text for text, _ in order] != list(study.documents), "not that of writing: a part of them is of all"


async def test_what_was_studied_before_comes_last_to_the_next_job(study: Study) -> None:
    study.write_towns(12)
    await study.run(max_examples="6")
    study.end_job()
    await study.run(max_examples="6")
    assert len(set(study.asker.asked)) == len(study.asker.asked) == 12


async def test_another_job_has_another_order_so_that_it_reads_another_part(study: Study) -> None:
    study.write_towns(12)
    await study.run()
    study.end_job()
    await study.run()
    order, other = study.asker.asked[:12], study.asker.asked[12:]
    assert order != other
    assert sorted(order) == sorted(other)
