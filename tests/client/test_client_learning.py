"""Examples, feedback, learning and adapters, as a client sees them."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path

import grpc
import pytest
from memoryd_client import (
    Adapter,
    AdapterState,
    AsyncClient,
    Client,
    Example,
    FailedPrecondition,
    InvalidArgument,
    LearnReceipt,
    Memory,
    Mode,
    NotFound,
    Origin,
    StudyReceipt,
    Verdict,
)

from memoryd.v1 import learn_pb2
from tests.client.fake_daemon import FakeDaemon

FERRY = "The ferry to Hvar leaves at noon."
QUESTION, ANSWER = "When does the ferry leave?", "At noon."


@pytest.fixture
def target(fake_target: str) -> str:
    """Of the fake alone: what the real one learns is in its own tests."""
    return fake_target


# examples


def test_an_example_is_added_listed_and_deleted(memory: Memory) -> None:
    document = memory.write(FERRY).document
    example = memory.examples.add(QUESTION, ANSWER, [document])
    assert (example.question, example.answer, example.documents) == (QUESTION, ANSWER, (document.name,))
    assert example.origin is Origin.SUPPLIED
    assert example.create_time is not None
    assert pickle.loads(pickle.dumps(example)) == example
    assert list(memory.examples.list()) == [example]
    memory.examples.delete(example)
    assert list(memory.examples.list()) == []
    with pytest.raises(NotFound):
        memory.examples.delete(example.id)


def test_an_example_is_added_once(memory: Memory) -> None:
    first, again = memory.examples.add(QUESTION, ANSWER), memory.examples.add(QUESTION, ANSWER)
    assert again == first
    added = memory.examples.add_many([(QUESTION, ANSWER), ("Where to?", "To Hvar.")])
    assert added.already_stored == 1
    assert added.examples[0] == first


def test_examples_are_given_in_several_shapes(memory: Memory) -> None:
    document = memory.write(FERRY).document
    added = memory.examples.add_many(
        [
            Example(question="1?", answer="one", documents=(document.name,)),
            {"question": "2?", "answer": "two", "documents": [document.id]},
            ("3?", "three", [document]),
            ("4?", "four", document.name),
            ("5?", "five"),
        ]
    )
    assert [e.answer for e in added.examples] == ["one", "two", "three", "four", "five"]
    assert [e.documents for e in added.examples] == [(document.name,)] * 4 + [()]


@pytest.mark.parametrize(
    "wrong",
    ["ab", 1, ("alone",), ("q", "a", (), "more"), {"question": "q", "reply": "a"}, ("q", 2), ("q", "\ud800")],
    ids=repr,
)
def test_what_is_no_example_is_refused_before_any_is_added(fake: FakeDaemon, memory: Memory, wrong: object) -> None:
    with pytest.raises(InvalidArgument, match=r"^example 1: an example"):
        memory.examples.add_many([(QUESTION, ANSWER), wrong])  # type: ignore[list-item]
    assert fake.faults.of("CreateExamples") == []


def test_what_breaks_a_rule_is_named(memory: Memory) -> None:
    with pytest.raises(InvalidArgument) as caught:
        memory.examples.add("", ANSWER)
    assert caught.value.violations
    with pytest.raises(NotFound):
        memory.examples.add(QUESTION, ANSWER, ["nothing"])


def test_many_examples_are_split_into_calls(fake: FakeDaemon, memory: Memory) -> None:
    given = [(f"{n}?", "yes") for n in range(2001)]
    added = memory.examples.add_many(given)
    assert [e.question for e in added.examples] == [question for question, _ in given]
    calls = [call.request for call in fake.faults.of("CreateExamples")]
    assert [len(call.examples) for call in calls] == [1000, 1000, 1]
    assert len({call.request_id for call in calls}) == 3


def test_long_examples_are_split_into_calls_that_a_daemon_takes(fake: FakeDaemon, memory: Memory) -> None:
    added = memory.examples.add_many((f"{n}?", "ü" * 8000) for n in range(300))
    assert len(added.examples) == 300
    sizes = [call.request.ByteSize() for call in fake.faults.of("CreateExamples")]
    assert len(sizes) > 1
    assert max(sizes) < 4 << 20


def test_no_examples_are_no_call(fake: FakeDaemon, memory: Memory) -> None:
    assert memory.examples.add_many([]).examples == ()
    assert fake.faults.of("CreateExamples") == []


def test_examples_are_iterated_page_by_page_as_they_are_needed(fake: FakeDaemon, memory: Memory) -> None:
    memory.examples.add_many((f"{n}?", "yes") for n in range(5))
    first = next(iter(memory.examples.list(page_size=2)))
    assert first.question == "0?"
    assert len(fake.faults.of("ListExamples")) == 1
    assert [e.question for e in memory.examples.list(page_size=2)] == [f"{n}?" for n in range(5)]


def test_an_export_of_examples_can_be_added_again(client: Client, memory: Memory, unique: str, tmp_path: Path) -> None:
    memory.examples.add_many((f"{n}?", "yes") for n in range(3))
    path = tmp_path / "examples.jsonl"
    memory.examples.export(path)
    other = client.memory(f"{unique}-other", create=True)
    with path.open() as lines:
        assert len(other.examples.add_many(json.loads(line) for line in lines).examples) == 3
    file = io.BytesIO()
    memory.examples.export(file)
    assert file.getvalue() == path.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["examples.jsonl"]


def test_an_export_of_nothing_is_an_empty_file(memory: Memory, tmp_path: Path) -> None:
    memory.examples.export(tmp_path / "examples.jsonl")
    assert (tmp_path / "examples.jsonl").read_bytes() == b""


# feedback


def test_feedback_makes_examples(memory: Memory) -> None:
    good = memory.feedback(QUESTION, ANSWER, Verdict.GOOD)
    assert (good.question, good.answer, good.origin) == (QUESTION, ANSWER, Origin.FEEDBACK)
    assert memory.feedback(QUESTION, "At one.", Verdict.CORRECTED, correction="At two.").answer == "At two."
    assert memory.feedback(QUESTION, "At ten.", Verdict.BAD).answer != "At ten."


def test_feedback_takes_an_answer_with_what_it_cites(memory: Memory) -> None:
    cited = memory.write(FERRY).document
    memory.write("The bus leaves at one.")
    answer = memory.answer(QUESTION)
    example = memory.feedback(answer.question, answer, Verdict.GOOD)
    assert (example.question, example.answer, example.documents) == (QUESTION, answer.text, (cited.name,))
    assert memory.feedback("Noon?", answer, Verdict.GOOD, documents=()).documents == ()


def test_feedback_on_an_answer_that_cites_nothing_rests_on_all_that_it_was_given(memory: Memory, fake: FakeDaemon) -> None:
    """Or its text would stay when what it says is deleted."""
    document = memory.write(FERRY).document
    fake.cites = []
    answer = memory.answer(QUESTION)
    assert memory.feedback(answer.question, answer, Verdict.GOOD).documents == (document.name,)
    assert memory.feedback("Noon?", answer, Verdict.CORRECTED, correction="At one.").documents == ()


def test_feedback_leaves_out_what_another_memory_holds(client: Client, memory: Memory, unique: str) -> None:
    other = client.memory(f"{unique}-other", create=True)
    other.write(FERRY)
    answer = client.answer([memory, other], QUESTION)
    assert len(answer.cited) == 1
    assert memory.feedback(answer.question, answer, Verdict.GOOD).documents == ()


@pytest.mark.parametrize("verdict", [Verdict.UNSPECIFIED, Verdict.CORRECTED])
def test_feedback_that_says_nothing_is_refused(memory: Memory, verdict: Verdict) -> None:
    with pytest.raises(InvalidArgument):
        memory.feedback(QUESTION, ANSWER, verdict)


# learning


def test_a_memory_studies(client: Client, memory: Memory) -> None:
    job = memory.study(max_examples=7)
    assert (job.kind, job.target) == ("study", memory.name)
    receipt = client.jobs.wait(job, timeout=10).receipt
    assert isinstance(receipt, StudyReceipt)
    assert (receipt.memory, receipt.passages, receipt.questions, receipt.teacher) == (memory.name, 3, 7, "smollm2")


def test_a_job_tells_its_loss_and_what_is_left_where_it_knows(client: Client, fake: FakeDaemon, memory: Memory) -> None:
    job = memory.learn()
    assert (job.loss, job.seconds_left) == (None, None)
    fake.jobs[job.name].loss, fake.jobs[job.name].seconds_left = 0.0, 12.5
    job = client.jobs.get(job)
    assert (job.loss, job.seconds_left) == (0.0, 12.5)


def test_a_memory_learns(client: Client, memory: Memory) -> None:
    memory.examples.add(QUESTION, ANSWER)
    job = memory.learn(epochs=2)
    assert memory.learn().name == job.name, "it is learning already"
    receipt = client.jobs.wait(job, timeout=10).receipt
    assert isinstance(receipt, LearnReceipt)
    assert (receipt.activated, receipt.examples, receipt.steps, receipt.seconds) == (True, 1, 2, 1.5)
    assert receipt.loss == 0.5
    adapter = memory.adapters.get(receipt.adapter)
    assert adapter.state is AdapterState.ACTIVE
    assert adapter.judgement is not None
    assert (adapter.judgement.better, adapter.judgement.kinds[0].after, adapter.judgement.kinds[0].exact_after) == (
        True,
        0.5,
        0.25,
    )
    assert adapter.lineage is not None
    assert (adapter.lineage.documents, adapter.lineage.modes) == ((f"{memory.name}/documents/d",), (Mode.TEXT,))
    assert (adapter.lineage.epochs, adapter.lineage.steps, adapter.lineage.imported_from) == (3, 2, "")
    assert adapter.gather_time is not None
    assert [listed.lineage for listed in memory.adapters.list()] == [None]
    assert [(point.step, point.loss) for point in adapter.curve] == [(1, 1.0), (2, 0.5)]
    assert adapter.curve_png.startswith(b"\x89PNG")
    assert "PNG" not in repr(adapter)
    assert pickle.loads(pickle.dumps(adapter)) == adapter


def test_an_adapter_is_kept_inactive_where_that_is_wanted(client: Client, memory: Memory) -> None:
    receipt = client.jobs.wait(memory.learn(keep_inactive=True), timeout=10).receipt
    assert isinstance(receipt, LearnReceipt)
    assert not receipt.activated
    assert memory.adapters.get(receipt.adapter).state is AdapterState.KEPT


# adapters


def _imported(memory: Memory, archive: bytes = b"archive") -> Adapter:
    return memory.adapters.import_(io.BytesIO(archive))


def test_adapters_are_activated_rolled_back_and_deleted(memory: Memory) -> None:
    first = _imported(memory)
    assert (first.state, first.judgement, first.parent) == (AdapterState.KEPT, None, "")
    assert memory.adapters.activate(first).state is AdapterState.ACTIVE
    second = memory.adapters.activate(_imported(memory).id)
    assert second.parent == first.name
    assert [a.name for a in memory.adapters.list(page_size=1)] == [first.name, second.name]
    active = memory.adapters.roll_back()
    assert active is not None
    assert active.name == first.name
    assert memory.adapters.roll_back() is None
    with pytest.raises(FailedPrecondition, match="active"):
        memory.adapters.roll_back()
    memory.adapters.delete(second)
    with pytest.raises(NotFound):
        memory.adapters.get(second)


def test_a_tainted_adapter_is_not_activated(fake: FakeDaemon, memory: Memory) -> None:
    adapter = _imported(memory)
    fake.adapters[adapter.name].state = learn_pb2.Adapter.STATE_TAINTED
    with pytest.raises(FailedPrecondition, match="tainted"):
        memory.adapters.activate(adapter)


@pytest.mark.parametrize("by", ["path", "file"])
def test_an_export_of_an_adapter_is_imported_again(fake: FakeDaemon, memory: Memory, tmp_path: Path, by: str) -> None:
    archive = bytes(range(250)) * 5000  # several pieces, either way
    adapter, path = _imported(memory, archive), tmp_path / "adapter.tar"
    fake.part_sizes.clear()
    if by == "path":
        memory.adapters.export(adapter, path)
        again = memory.adapters.import_(path)
    else:
        with path.open("wb", buffering=0) as file:
            memory.adapters.export(adapter.id, file)
        with path.open("rb") as file:
            again = memory.adapters.import_(file)
    assert path.read_bytes() == fake.archives[again.name] == archive
    assert again.fingerprint == adapter.fingerprint
    assert len(fake.part_sizes) > 1
    assert max(fake.part_sizes) <= 1 << 20


def test_answers_take_adapters_by_hand(fake: FakeDaemon, client: Client, memory: Memory, unique: str) -> None:
    one, two = _imported(memory), _imported(memory)
    assert dict(memory.answer(QUESTION, adapters={one.name: 0.5, two.id: -1}).usage.adapters) == {one.name: 0.5, two.name: -1}
    assert dict(memory.answer(QUESTION, adapters=[one, two.id]).usage.adapters) == {one.name: 1, two.name: 1}
    assert dict(memory.answer(QUESTION, adapters=one.id).usage.adapters) == {one.name: 1}
    assert dict(memory.answer(QUESTION, no_adapter=True).usage.adapters) == {}
    assert [call.request.no_adapter for call in fake.faults.of("Answer")] == [False, False, False, True]
    other = client.memory(f"{unique}-other", create=True)
    assert dict(client.answer([memory, other], QUESTION, adapters=[one]).usage.adapters) == {one.name: 1}
    with pytest.raises(InvalidArgument, match="full name"):
        _ = client.answer([memory, other], QUESTION, adapters=[one.id]).text
    with pytest.raises(InvalidArgument):
        _ = memory.answer(QUESTION, adapters={one.name: "much"}).text  # type: ignore[dict-item]
    with pytest.raises(InvalidArgument) as caught:
        _ = memory.answer(QUESTION, adapters={one.name: 100}).text
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.violations


def test_answers_may_be_let_repeat_themselves(fake: FakeDaemon, memory: Memory) -> None:
    for penalty in (None, 0, 2.5):
        assert memory.answer(QUESTION, repeat_penalty=penalty).text
    sent = [call.request for call in fake.faults.of("Answer")]
    assert [one.repeat_penalty if one.HasField("repeat_penalty") else None for one in sent] == [None, 0, 2.5]


def test_unknown_names_are_not_found(client: Client, memory: Memory) -> None:
    nobody = client.memory("nobody")
    for call in (
        lambda: nobody.examples.add(QUESTION, ANSWER),
        lambda: list(nobody.examples.list()),
        lambda: nobody.feedback(QUESTION, ANSWER, Verdict.GOOD),
        lambda: nobody.study(),
        lambda: nobody.learn(),
        lambda: nobody.adapters.roll_back(),
        lambda: nobody.examples.export(io.BytesIO()),
        lambda: _imported(nobody),
        lambda: memory.adapters.get("nothing"),
        lambda: memory.adapters.activate("nothing"),
        lambda: memory.adapters.delete("nothing"),
        lambda: memory.adapters.export("nothing", io.BytesIO()),
    ):
        with pytest.raises(NotFound):
            call()


async def test_asyncio_has_the_same_shape(target: str, unique: str, tmp_path: Path) -> None:
    async with AsyncClient(target) as client:
        memory = client.memory(unique, create=True)
        document = (await memory.write(FERRY)).document
        example = await memory.examples.add(QUESTION, ANSWER, [document])
        assert (await memory.examples.add_many([(QUESTION, ANSWER)])).already_stored == 1
        answer = memory.answer(QUESTION)
        told = await memory.feedback(answer.question, answer, Verdict.GOOD)
        assert told.documents == (document.name,)
        assert [e async for e in memory.examples.list(page_size=1)] == [example, told]
        await memory.examples.export(tmp_path / "examples.jsonl")
        assert len((tmp_path / "examples.jsonl").read_text().splitlines()) == 2
        await memory.examples.delete(example)
        assert isinstance((await client.jobs.wait(await memory.study(), timeout=10)).receipt, StudyReceipt)
        receipt = (await client.jobs.wait(await memory.learn(), timeout=10)).receipt
        assert isinstance(receipt, LearnReceipt)
        await memory.adapters.export(receipt.adapter, tmp_path / "adapter.tar")
        adapter = await memory.adapters.import_(tmp_path / "adapter.tar")
        assert [a.name async for a in memory.adapters.list()] == [receipt.adapter, adapter.name]
        await memory.adapters.activate(adapter)
        assert (await memory.answer(QUESTION, adapters=[adapter]).usage).adapters == {adapter.name: 1}
        assert (await memory.adapters.roll_back() or adapter).name == receipt.adapter
        await memory.adapters.delete(adapter)
