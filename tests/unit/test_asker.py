"""The local asker: what of a passage is worth asking for, and how the worker is asked for the questions."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memoryd.engine.request import Generation, TokenIds
from memoryd.engine.tokenizer import TextTokenizer
from memoryd.errors import FailedPrecondition, Unavailable
from memoryd.learn import asker as module
from memoryd.learn.adapter_files import CONFIG, WEIGHTS
from memoryd.learn.asker import DISCUSSIONS, LocalAsker, answers_in, asker_path, request_for, spread
from memoryd.learn.discussion import discussion_request
from memoryd.learn.study import Asked
from tests.unit.learning_parts import INFO, Worker, models, plain_tokenizer, prompt_of

TEXT = "In May 1920 Napoleon Hill moved to Lisbon."


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return plain_tokenizer(tmp_path_factory.mktemp("tokenizer"))


# --- what is worth asking for ---


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("we met Phileas Fogg, Mr Fix in the House of Commons", ["Phileas Fogg", "Mr Fix", "House of Commons"]),
        ("he paid $5.5 million, or 20%, for 600,000 miles in 80 days", ["$5.5 million", "20%", "600,000 miles", "80 days"]),
        ("it was on 7 May 2023 that", ["7 May 2023"]),
        ("it was on May 7th, 2023, not in March 1999 nor on 2 April", ["May 7th, 2023", "March 1999", "2 April"]),
        ("he said “the river is blue” and 'no', and \"The Raven\"", ["the river is blue", "The Raven"]),
        ("it is by Caroline's U.S. aunt O'Neil-Smith.", ["Caroline's U.S", "O'Neil-Smith"]),
        ("at 12:30 or 1.000, and 7.", ["12:30", "1.000", "7"]),
        ("Lisbon is big. Porto too! Faro?\nBraga", []),  # a capital that begins a sentence says nothing
        ("Lisbon Oriente is big. Porto Campanha too.", ["Lisbon Oriente", "Porto Campanha"]),
        ("The Denver Broncos won. When Napoleon left, He and I wept.", ["Denver Broncos", "Napoleon"]),
        ("They met THE Queen. It's hers.", ["Queen"]),
        ("12 men left.", ["12"]),
        ("he saw Porto, then Faro, then Porto again", ["Porto", "Faro"]),
        ("we met Phileas\n  Fogg", ["Phileas Fogg"]),  # lines may be broken anywhere
        ("we met Fogg\n\nPassepartout Jean", ["Fogg", "Passepartout Jean"]),  # not so paragraphs
        ("", []),
        ("nothing is said of anybody", []),
        ('"..." and ""', []),
    ],
)
def test_what_is_asked_for(text: str, answers: list[str]) -> None:
    assert answers_in(text) == answers


@given(st.text(alphabet="AaB1. \n\"'$%,-Máy", max_size=80))
def test_what_is_asked_for_stands_in_the_text_once(text: str) -> None:
    found, words = answers_in(text), " ".join(text.split())
    assert len(set(found)) == len(found)
    for answer in found:
        assert answer
        assert answer in words


@pytest.mark.parametrize("piece", ["Aa{}", "Aa of{}", "Aa\n{}", "1{}", "May{}", "{}"])
@pytest.mark.parametrize("filler", [" ", "\n", "A", "1.", "A-.", '"\n', "Ab of "])
def test_it_takes_no_long_time_over_any_text(piece: str, filler: str) -> None:
    text = piece.format(filler * 10_000)
    began = time.perf_counter()
    answers_in(f"{text}x{text}")
    assert time.perf_counter() - began < 1.0  # a thousandth of that, but for a pattern that tries everything


@given(st.integers(0, 40), st.integers(1, 8))
def test_a_few_are_taken_from_all_over(count: int, most: int) -> None:
    answers = [f"{n:02}" for n in range(count)]
    taken = spread(answers, most)
    assert len(taken) == min(most, count)
    assert taken == sorted(set(taken))
    if count > most > 1:
        assert taken[-1] >= answers[count // 2], "not only from its beginning"


# --- how it is asked ---


def question_for(tokenizer: TextTokenizer, questions: dict[str, str]) -> Worker:
    def says(request: Generation) -> str:
        prompt = prompt_of(tokenizer, request)
        return next(question for answer, question in questions.items() if f"\n{request_for(answer)}\n" in prompt)

    return Worker(says)


async def test_each_answer_gets_its_question(tokenizer: TextTokenizer) -> None:
    worker = question_for(
        tokenizer, {"May 1920": " When was that? ", "Napoleon Hill": "Napoleon is a man", "Lisbon": "Where did he move?"}
    )
    asked = await LocalAsker(models(worker, tokenizer)).ask(TEXT, "Lives", "red's")
    assert asked.pairs == [("When was that?", "May 1920"), ("Where did he move?", "Lisbon")], "only what is a question"
    prompts = [prompt_of(tokenizer, request) for request in worker.asked]
    assert all(f"[1] Lives\n{TEXT}" in prompt for prompt in prompts)
    ids = [segment.ids for request in worker.asked for segment in request.segments if isinstance(segment, TokenIds)]
    assert asked.prompt_tokens == sum(map(len, ids))
    assert asked.output_tokens == len(["", "When", "was", "that?", ""]) + len(["Napoleon", "is", "a", "man"]) + 4
    assert {request.scope for request in worker.asked} == {"red's"}
    assert [(request.use_reader, request.stop, request.adapters) for request in worker.asked] == [(False, ["\n"], [])] * 3


async def test_no_more_than_a_few_are_asked_for(tokenizer: TextTokenizer) -> None:
    worker = Worker(lambda request: "Who?")
    asked = await LocalAsker(models(worker, tokenizer)).ask("he met " + " and ".join(f"Mr A{n}" for n in range(40)), "")
    assert len(asked.pairs) == len(worker.asked) <= 8


async def test_where_there_is_nothing_to_ask_for_nothing_is_asked(tokenizer: TextTokenizer) -> None:
    worker = Worker()
    assert await LocalAsker(models(worker, tokenizer)).ask("nothing is said of anybody", "") == Asked([])
    assert worker.asked == []


async def test_a_worker_that_is_down_is_told(tokenizer: TextTokenizer) -> None:
    worker = Worker()
    worker.failures = [Unavailable("the worker is restarting")]
    with pytest.raises(Unavailable):
        await LocalAsker(models(worker, tokenizer)).ask("he met Mr Fogg", "")


# --- what is discussed in a conversation ---

TALK = "Ann: The wall leaks.\nBob: In spring then.\nAnn: Good.\nCleo: Fine.\n"


async def test_a_conversation_is_asked_for_what_is_discussed_and_by_whom(
    shipped: Path, ships_discussions: None, tokenizer: TextTokenizer
) -> None:
    says = {
        "": "What of the wall?\nIt leaks. So they say.\nWhat of the ferry?\nIt leaks.",
        "Ann": "No answer?",
        "Bob": " What did Bob want? \n\n Spring. ",
    }

    def write(request: Generation) -> str:
        prompt = prompt_of(tokenizer, request)
        return next(said for speaker, said in says.items() if f"\n{discussion_request(speaker)}\n" in prompt)

    worker = Worker(write)
    asked = await LocalAsker(models(worker, tokenizer)).discuss(TALK, "Talk", "red's")
    assert asked.pairs == [("What of the wall?", "It leaks. So they say."), ("What did Bob want?", "Spring.")]
    ((name, (config, _)),) = worker.loaded.items()
    assert config == b"config of talk"
    made = worker.asked[-3:]
    assert all(f"[1] Talk\n{TALK}" in prompt_of(tokenizer, request) for request in made)
    assert {(r.scope, tuple(r.adapters), tuple(r.stop), r.background) for r in made} == {("red's", ((name, 1.0),), (), True)}
    assert all(request.repeat_penalty > 0 for request in made), "it goes round in circles else"
    assert (asked.prompt_tokens > 0, asked.output_tokens > 0) == (True, True)


async def test_facts_and_discussions_have_an_asker_each(
    shipped: Path, ships_discussions: None, tokenizer: TextTokenizer
) -> None:
    worker = Worker(lambda request: "Who was it?")
    asker = LocalAsker(models(worker, tokenizer))
    await asker.ask("he met Mr Fogg", "")
    await asker.discuss(TALK, "")
    assert {config for config, _ in worker.loaded.values()} == {b"config of ours", b"config of talk"}


async def test_where_no_asker_of_discussions_ships_none_is_asked_for(shipped: Path, tokenizer: TextTokenizer) -> None:
    worker = Worker()
    assert await LocalAsker(models(worker, tokenizer)).discuss(TALK, "") == Asked([])
    assert worker.asked == []


# --- the asker that ships for a base model ---


@pytest.fixture
def ships_discussions(shipped: Path) -> None:
    """One for discussions too, for the base model in use."""
    folder = shipped / "ours-discussions"
    folder.mkdir()
    (folder / "memoryd.json").write_text(json.dumps({"base_fingerprint": INFO.base_fingerprint, "asks": DISCUSSIONS}))
    (folder / CONFIG).write_bytes(b"config of talk")
    (folder / WEIGHTS).write_bytes(b"weights of talk")


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Askers for two base models, the second of which is in use."""
    monkeypatch.setattr(module, "ASKERS", tmp_path)
    for name, base in (("another", "a" * 64), ("ours", INFO.base_fingerprint)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "memoryd.json").write_text(json.dumps({"base_fingerprint": base}))
        (tmp_path / name / CONFIG).write_bytes(f"config of {name}".encode())
        (tmp_path / name / WEIGHTS).write_bytes(f"weights of {name}".encode())
    return tmp_path


def test_it_is_found_by_the_base_model(shipped: Path) -> None:
    assert asker_path(INFO.base_fingerprint) == shipped / "ours"
    assert asker_path("c" * 64) is None
    assert asker_path(INFO.base_fingerprint, DISCUSSIONS) is None


def test_where_none_ships_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ASKERS", tmp_path / "nothing")
    assert asker_path(INFO.base_fingerprint) is None
    assert LocalAsker(models()).name == "local model, untrained"


async def test_it_is_loaded_when_the_worker_does_not_have_it(shipped: Path, tokenizer: TextTokenizer) -> None:
    worker = Worker(lambda request: "Who was it?")
    asker = LocalAsker(models(worker, tokenizer))
    assert asker.name == "local model, asker"
    assert (await asker.ask("he met Mr Fogg", "")).pairs == [("Who was it?", "Mr Fogg")]
    ((name, (config, weights)),) = worker.loaded.items()
    assert (config, weights) == (b"config of ours", b"weights of ours")
    assert worker.asked[-1].adapters == [(name, 1.0)]
    await asker.ask("he met Mr Fix", "")
    assert worker.calls == [("load", name)], "once"


async def test_what_else_is_wrong_is_no_reason_to_load_it(shipped: Path, tokenizer: TextTokenizer) -> None:
    worker = Worker()
    worker.failures = [FailedPrecondition("another")]
    with pytest.raises(FailedPrecondition, match="another"):
        await LocalAsker(models(worker, tokenizer)).ask("he met Mr Fogg", "")
    assert worker.calls == []


async def test_without_one_a_missing_adapter_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: TextTokenizer
) -> None:
    monkeypatch.setattr(module, "ASKERS", tmp_path)
    worker = Worker()
    worker.failures = [FailedPrecondition("?", reason="ADAPTER_NOT_LOADED")]
    with pytest.raises(FailedPrecondition):
        await LocalAsker(models(worker, tokenizer)).ask("he met Mr Fogg", "")
