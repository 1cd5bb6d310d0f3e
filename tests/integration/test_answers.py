"""Answers: events in order, modes, warnings, numbers that agree, limits, and slots that come free."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from memoryd_client import (
    Client,
    FinishReason,
    Memory,
    Message,
    Mode,
    NotFound,
    ResourceExhausted,
    Sources,
    Stage,
    Text,
    Unavailable,
    Usage,
)

from memoryd.recall.prompt import REFUSAL
from memoryd.v1 import recall_pb2
from tests.daemon import DaemonProcess
from tests.integration.conftest import MAX_ANSWERS, Keyed
from tests.integration.support import Api, refused, until

CLOCK = "The harbour clock of Vardo was repaired by Ingrid Solberg in the spring of 1957."
FERRY = "The ferry from Vardo to Kirkenes leaves at nine in the morning, except on Sundays."
QUESTION = "Who repaired the harbour clock of Vardo?"


@pytest.fixture(scope="module")
def told(daemon: Any) -> Iterator[Memory]:
    """A memory that holds two compressed documents, for all that only ask."""
    with Client(daemon.target) as client:
        memory = client.memory("told", create=True)
        written = [memory.write(CLOCK, title="The clock"), memory.write(FERRY, title="The ferry")]
        for one in written:
            one.wait(Stage.COMPRESSED)
        yield memory


def events(memory: Memory, question: str = QUESTION, **options: Any) -> tuple[Sources, str, Usage]:
    """An answer whose events come as they should: sources, any number of texts, usage."""
    first, *texts, last = list(memory.answer(question, **({"max_tokens": 4} | options)))
    assert isinstance(first, Sources)
    assert isinstance(last, Usage)
    assert all(isinstance(event, Text) and event.text for event in texts)
    return first, "".join(event.text for event in texts if isinstance(event, Text)), last


# --- events and numbers ---


def test_an_answer_names_the_source_that_it_rests_on(told: Memory) -> None:
    answer = told.answer(QUESTION, mode=Mode.TEXT, max_tokens=24)
    assert "Solberg" in answer.text
    assert "[" not in answer.text, "the number is the daemon's and the reader's business"
    assert [source.title for source in answer.cited] == ["The clock"]
    refusal = told.answer("Who composed the opera Tosca?", mode=Mode.TEXT, max_tokens=24)
    assert (refusal.text, refusal.cited) == (REFUSAL, ())


def test_sources_come_first_then_text_then_usage(told: Memory) -> None:
    sources, text, usage = events(told, mode=Mode.TEXT)
    assert text.strip()
    best = sources.sources[0]
    assert (best.title, best.text) == ("The clock", CLOCK)
    assert CLOCK[best.start : best.end] == CLOCK
    assert best.score > 0
    assert 0 < best.dense_score <= 1
    assert (usage.output_tokens, usage.finish_reason) == (4, FinishReason.LENGTH)


def test_the_numbers_of_an_answer_agree(told: Memory) -> None:
    before = told.documents.list()
    _, _, usage = events(told, mode=Mode.TEXT)
    assert usage.full_source_tokens == sum(document.token_count for document in before)
    assert usage.text_tokens > 0
    assert (usage.soft_tokens, usage.compressor, dict(usage.cache_hits)) == (0, "", {})
    assert len(usage.base_model) == 64
    assert set(usage.stage_ms) == {"embed", "search", "load", "queue", "prefill"}
    assert 0 < usage.time_to_first_token_ms <= usage.total_ms
    assert sum(usage.stage_ms.values()) <= usage.total_ms


def test_an_answer_is_counted_in_the_tenants_usage(client: Client, told: Memory) -> None:
    before = client.admin.usage()
    _, _, usage = events(told, mode=Mode.TEXT, max_tokens=1)
    after = client.admin.usage()
    assert after.answers == before.answers + 1
    assert after.prompt_tokens == before.prompt_tokens + usage.text_tokens
    assert after.output_tokens == before.output_tokens + 1


def test_temperature_0_is_deterministic(told: Memory) -> None:
    assert events(told, mode=Mode.TEXT)[1] == events(told, mode=Mode.TEXT)[1]


def test_a_seed_makes_sampling_repeatable(told: Memory) -> None:
    options: dict[str, Any] = {"mode": Mode.TEXT, "temperature": 1.5, "seed": 7}
    assert events(told, **options)[1] == events(told, **options)[1]


def test_an_answer_does_not_go_round_in_circles_where_it_is_not_let(client: Client) -> None:
    song = client.memory("song", create=True)
    song.write(f"The chorus of the song is: {'la ' * 16}la.", title="The song").wait(Stage.COMPRESSED)
    ask: dict[str, Any] = {"question": "What is the chorus of the song?", "mode": Mode.TEXT, "max_tokens": 60}
    let, led = events(song, repeat_penalty=0, **ask), events(song, **ask)
    assert let[2].finish_reason is FinishReason.LENGTH, "it would go on for ever"
    assert "la " * 14 in let[1]
    assert "la " * 14 not in led[1]
    assert led[1] == events(song, repeat_penalty=0.8, **ask)[1]


def test_one_token_is_a_length(told: Memory) -> None:
    _, _, usage = events(told, max_tokens=1)
    assert (usage.output_tokens, usage.finish_reason) == (1, FinishReason.LENGTH)


def test_a_stop_string_ends_the_answer_before_it(told: Memory) -> None:
    _, whole, _ = events(told, mode=Mode.TEXT)
    stop = whole.split()[-1]
    _, text, usage = events(told, mode=Mode.TEXT, stop=[stop])
    assert text == whole[: whole.index(stop)]
    assert usage.finish_reason is FinishReason.STOP


def test_top_k_is_how_many_sources_there_are_at_most(told: Memory) -> None:
    assert len(events(told, top_k=1, max_tokens=1)[0].sources) == 1


def test_what_was_said_before_is_part_of_the_prompt(told: Memory) -> None:
    prior = [Message(role="user", content="Tell me about Vardo."), Message(role="assistant", content="It has a clock.")]
    _, _, without = events(told, mode=Mode.TEXT, max_tokens=1)
    _, _, with_prior = events(told, mode=Mode.TEXT, max_tokens=1, prior_messages=prior)
    assert with_prior.text_tokens > without.text_tokens


# --- modes ---


def test_hybrid_is_text_until_the_compressor_has_passed_its_gate(told: Memory) -> None:
    for mode in (Mode.HYBRID, None):  # and HYBRID is the default
        sources, _, usage = events(told, mode=mode, max_tokens=1)
        assert sources.mode is Mode.TEXT
        assert "has not passed its quality gate" in sources.warnings[0]
        assert usage.soft_tokens == 0


def test_compressed_reads_soft_tokens_and_says_not_to_rely_on_it(told: Memory) -> None:
    sources, text, usage = events(told, mode=Mode.COMPRESSED)
    assert text
    assert sources.mode is Mode.COMPRESSED
    assert len(sources.warnings) == 1
    assert "has not passed its quality gate" in sources.warnings[0]
    assert 0 < usage.soft_tokens < usage.full_source_tokens
    assert len(usage.compressor) == 64
    assert sum(usage.cache_hits.values()) == 2  # one chunk of each document
    _, _, again = events(told, mode=Mode.COMPRESSED)
    assert dict(again.cache_hits) == {"process": 2}


def test_what_is_not_compressed_is_read_as_text_and_says_so_until_it_is(daemon: DaemonProcess, memory: Memory) -> None:
    """A chunk whose compressed embeddings are lost, and cannot be made again while their folder cannot be."""
    written = memory.write(CLOCK).wait(Stage.COMPRESSED)
    blobs = daemon.data_dir / "blobs" / "default" / memory.name.rpartition("/")[2] / written.name.rpartition("/")[2]
    (folder,) = (path for path in blobs.iterdir() if path.is_dir())
    shutil.rmtree(folder)
    folder.symlink_to("nowhere")
    for _ in range(2):
        sources, _, usage = events(memory, mode=Mode.COMPRESSED, top_k=1, max_tokens=1)
        assert CLOCK in sources.sources[0].text
        assert sources.mode is Mode.COMPRESSED
        assert "1 of 1 passages are not compressed yet: read as raw text" in sources.warnings
        assert (usage.soft_tokens, dict(usage.cache_hits)) == (0, {})
        assert memory.documents.get(written).stage is Stage.SEARCHABLE
    folder.unlink()
    until(lambda: memory.documents.get(written).stage is Stage.COMPRESSED, "made again from the text")
    sources, _, usage = events(memory, mode=Mode.COMPRESSED, top_k=1, max_tokens=1)
    assert usage.soft_tokens > 0
    assert not [warning for warning in sources.warnings if "not compressed yet" in warning]


# --- memories ---


def test_a_question_may_span_several_memories(client: Client, told: Memory, memory: Memory) -> None:
    written = memory.write("Ingrid Solberg was born in Hammerfest.", title="Ingrid")
    document = written.wait()
    answer = client.answer([told.name, memory.name], "Where was Ingrid Solberg born?", max_tokens=1)
    assert {"Ingrid", "The clock"} <= {source.title for source in answer.sources}
    both = sum(d.token_count for d in told.documents.list()) + document.token_count
    assert answer.usage.full_source_tokens == both
    titles = {source.title for source in client.search([told.name, memory.name], "Ingrid Solberg", top_k=3)}
    assert "Ingrid" in titles
    assert client.context([told.name, memory.name], "Ingrid Solberg").token_count > 0


def test_naming_a_memory_twice_is_naming_it_once(client: Client, told: Memory) -> None:
    answer = client.answer([told.name, told.name], QUESTION, max_tokens=1)
    assert answer.usage.full_source_tokens == sum(d.token_count for d in told.documents.list())


def test_one_missing_memory_refuses_the_whole_question(client: Client, told: Memory) -> None:
    with pytest.raises(NotFound):
        client.answer([told.name, "memories/nowhere"], QUESTION).text  # noqa: B018


def test_an_empty_memory_does_not_know_and_asks_no_model(memory: Memory) -> None:
    sources, text, usage = events(memory)
    assert (sources.sources, text) == ((), REFUSAL)
    assert (usage.output_tokens, usage.text_tokens, usage.soft_tokens) == (0, 0, 0)
    assert usage.finish_reason is FinishReason.STOP
    assert "prefill" not in usage.stage_ms


def test_a_context_never_exceeds_its_budget(told: Memory) -> None:
    whole = told.context(QUESTION)
    assert CLOCK in whole.text
    assert "# The clock" in whole.text
    assert {source.title for source in whole.sources} == {"The clock", "The ferry"}
    some = told.context(QUESTION, max_tokens=whole.token_count - 1)
    assert some.token_count < whole.token_count
    assert len(some.sources) == 1
    assert told.context(QUESTION, max_tokens=3).sources == ()


# --- slots: on the daemon of low limits, whose tiny model talks at length ---


@pytest.fixture(scope="module")
def talkative(keyed: Keyed) -> Iterator[Memory]:
    with Client(keyed.daemon.target, api_key=keyed.red) as client:
        memory = client.memory("talkative", create=True)
        memory.write(CLOCK).wait()
        yield memory


@contextlib.contextmanager
def running(memory: Memory) -> Iterator[Any]:
    """An answer that has begun, and is far from its end."""
    with memory.answer(QUESTION, max_tokens=2000) as answer:
        stream = iter(answer)
        assert isinstance(next(stream), Sources)
        assert isinstance(next(stream), Text)
        yield answer


def test_more_answers_than_a_tenant_may_have_are_turned_away_at_once_and_anothers_is_not(
    talkative: Memory, blue: Client
) -> None:
    memory = blue.memory("talkative-too", create=True)
    memory.write(CLOCK).wait()
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_ANSWERS - 1):
            stack.enter_context(running(talkative))
        with pytest.raises(ResourceExhausted, match="of tenant red") as caught:
            talkative.answer(QUESTION).text  # noqa: B018
        assert memory.answer(QUESTION, max_tokens=4).text
    assert caught.value.reason == "TOO_MANY_ANSWERS"
    assert "max_answers" in caught.value.message


def test_a_client_that_goes_away_frees_its_slot_and_the_worker(keyed: Keyed, talkative: Memory) -> None:
    for _ in range(MAX_ANSWERS + 1):  # each would be turned away if the one before still held its slot
        with running(talkative) as answer:
            pass
        until(lambda: not _turned_away(talkative), "the slot is free")
        assert answer.text  # what had arrived
    worker = keyed.daemon.child("memoryd.worker")
    until(lambda: worker.cpu_percent(0.5) < 20, "the worker is idle: nobody waits for its words")


@pytest.mark.parametrize("delete", ["document", "memory", "new version"])
def test_an_answer_ends_where_what_it_rests_on_is_deleted(keyed: Keyed, red: Client, talkative: Memory, delete: str) -> None:
    name = f"doomed-{delete.replace(' ', '-')}"
    memory = red.memory(name, create=True)
    written = memory.write(CLOCK)
    spare = memory.write("Reykjavik is cold.")
    for one in (written, spare):
        one.wait(Stage.SEARCHABLE)
    with running(talkative) as other, memory.answer(QUESTION, top_k=1, max_tokens=3000) as answer:
        stream = iter(answer)
        assert [type(next(stream)), type(next(stream))] == [Sources, Text]
        memory.documents.delete(spare.document)
        assert isinstance(next(stream), Text), "it does not rest on that one"
        if delete == "document":
            memory.documents.delete(written.document)
        elif delete == "memory":
            red.memories.delete(memory.name)
        else:
            memory.write(FERRY, replaces=written.document)
        with pytest.raises(Unavailable, match=r"was deleted.*ask again") as cut:
            list(stream)
        assert cut.value.reason == "DOCUMENT_DELETED"
        assert isinstance(list(other)[-1], Usage), "another memory's answer goes on to its end"


def _turned_away(memory: Memory) -> bool:
    try:
        return not memory.answer(QUESTION, max_tokens=1).text
    except ResourceExhausted:
        return True


def test_a_deadline_in_the_middle_of_an_answer_frees_its_slot(keyed: Keyed, talkative: Memory) -> None:
    with Api(keyed.daemon.target, keyed.red) as api:
        request = recall_pb2.AnswerRequest(memories=[talkative.name], question=QUESTION, max_tokens=3000)
        for _ in range(MAX_ANSWERS):
            call = api.recall.Answer(request, timeout=1.0, metadata=api.metadata)
            assert refused(lambda call=call: list(call)).code is grpc.StatusCode.DEADLINE_EXCEEDED  # type: ignore[misc]
    until(lambda: not _turned_away(talkative), "the slots are free")
