"""The life of an adapter, on a real daemon: examples, learning, judging, serving, rolling back, moving, and forgetting."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sqlite3
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import torch
from memoryd_client import (
    AdapterState,
    Client,
    FailedPrecondition,
    InvalidArgument,
    LearnReceipt,
    Memory,
    Mode,
    NotFound,
    Origin,
    Stage,
    StudyReceipt,
    Usage,
    Verdict,
)
from safetensors.torch import save

from memoryd.learn.adapter_files import AdapterFiles, pack_files, unpack_files
from memoryd.recall.adapters import blob_key, cache_key
from memoryd.recall.prompt import REFUSAL
from memoryd.store.cache import ValkeyCache
from memoryd.v1 import learn_pb2
from tests.daemon import DaemonProcess
from tests.integration.support import WAIT_SECONDS, Api, files_with, refused, until

# A random model of two layers learns a dozen answers by heart, if it is told them often and loudly.
LAYERS = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"
LEARN = ("--learn-rate", "0.02", "--learn-epochs", "40", "--learn-batch", "4", "--learn-rank", "16", "--learn-targets", LAYERS)
SECRET = "Caroline Lisbon"
SAFE = "The river of the city is green and the mountain is blue."


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[DaemonProcess]:
    flags = ("--model", str(tiny_model), "--job-lease-seconds", "4", *LEARN)
    with DaemonProcess(tmp_path_factory.mktemp("learning"), *flags) as running:
        yield running


@pytest.fixture(scope="module")
def client(daemon: DaemonProcess) -> Iterator[Client]:
    with Client(daemon.target) as connected:
        yield connected


@pytest.fixture
def api(daemon: DaemonProcess) -> Iterator[Api]:
    with Api(daemon.target) as connected:
        yield connected


def taught(client: Client, name: str, answer: str = "seven", count: int = 12) -> tuple[Memory, str]:
    """A memory with a document and examples that rest on it; all have the same answer. The document's name."""
    memory = client.memory(name, create=True)
    written = memory.write(f"{SAFE} The word of {name} is {answer}.", title=name)
    written.wait(Stage.COMPRESSED, timeout=WAIT_SECONDS)
    memory.examples.add_many([(f"What is word {n} of {name}?", answer, [written.document.name]) for n in range(count)])
    return memory, written.document.name


def learned(client: Client, memory: Memory) -> LearnReceipt:
    job = client.jobs.wait(memory.learn(), timeout=WAIT_SECONDS)
    assert isinstance(job.receipt, LearnReceipt)
    return job.receipt


def said(memory: Memory, question: str = "", **options: object) -> tuple[str, Usage]:
    answer = memory.answer(question or f"What is word 1 of {memory.id}?", max_tokens=8, **options)  # type: ignore[arg-type]
    text = answer.text
    assert answer.usage is not None
    return text, answer.usage


# --- examples ---


def test_examples_and_feedback_are_kept_listed_exported_and_deleted(client: Client, tmp_path: Path) -> None:
    memory = client.memory("examples", create=True)
    document = memory.write("Fogg rides an elephant.").document.name
    memory.examples.add("Who rides?", "Fogg", documents=[document])
    memory.feedback("Who rides?", "Nobody", Verdict.CORRECTED, correction="Phileas Fogg")
    memory.feedback("What does it eat?", "Grass", Verdict.BAD)
    kept = list(memory.examples.list())
    assert [(e.question, e.answer, e.origin) for e in kept] == [
        ("Who rides?", "Fogg", Origin.SUPPLIED),
        ("Who rides?", "Phileas Fogg", Origin.FEEDBACK),
        ("What does it eat?", REFUSAL, Origin.FEEDBACK),
    ]
    memory.examples.export(tmp_path / "examples.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "examples.jsonl").read_text().splitlines()]
    assert [row["answer"] for row in rows] == ["Fogg", "Phileas Fogg", REFUSAL]
    assert rows[0]["documents"] == [document]
    memory.examples.delete(kept[2])
    memory.documents.delete(document)
    assert [e.answer for e in memory.examples.list()] == ["Phileas Fogg"]


def test_examples_that_cannot_be_are_refused(client: Client, api: Api) -> None:
    memory = client.memory("refusals", create=True)
    other = client.memory("another", create=True).write("text").document.name
    with pytest.raises(InvalidArgument, match="its own memory"):
        memory.examples.add("Q?", "A", documents=[other])
    with pytest.raises(NotFound):
        memory.examples.add("Q?", "A", documents=[f"{memory.name}/documents/nothing"])
    with pytest.raises(InvalidArgument, match="correction"):
        memory.feedback("Q?", "A", Verdict.CORRECTED)
    empty = learn_pb2.CreateExamplesRequest(parent=memory.name, examples=[learn_pb2.Example(question="Q?")])
    failure = refused(lambda: api.call(api.learn.CreateExamples, empty))
    assert (failure.code, failure.fields) == (grpc.StatusCode.INVALID_ARGUMENT, ["examples[0].answer"])
    assert list(memory.examples.list()) == []


# --- learning ---


def test_a_memory_without_examples_says_so(client: Client) -> None:
    receipt = learned(client, client.memory("empty", create=True))
    assert (receipt.adapter, receipt.activated) == ("", False)
    assert "no examples" in receipt.verdict


def test_what_is_learned_is_judged_activated_and_served(client: Client) -> None:
    memory, document = taught(client, "life", count=60)
    assert "seven" not in said(memory)[0], "a random model does not know it"
    receipt = learned(client, memory)
    assert receipt.activated, receipt
    assert "better" in receipt.verdict
    assert receipt.examples + receipt.held_out == 60
    text, usage = said(memory)
    assert text.startswith("seven"), "a held-out question too is answered as was learned"
    assert [(name, weight) for name, weight in usage.adapters.items()] == [(receipt.adapter, 1.0)]
    assert "seven" not in said(memory, no_adapter=True)[0]
    assert memory.documents.get(document).stage is Stage.LEARNED

    adapter = memory.adapters.get(receipt.adapter)
    assert adapter.state is AdapterState.ACTIVE
    assert (adapter.parent, adapter.example_count, adapter.document_count) == ("", receipt.examples, 1)
    assert adapter.judgement is not None
    assert adapter.judgement.better
    assert [kind.kind for kind in adapter.judgement.kinds] == ["all", "short"]
    assert adapter.judgement.kinds[0].after > adapter.judgement.kinds[0].before
    assert [point.step for point in adapter.curve] == list(range(1, receipt.steps + 1))
    assert min(point.loss for point in adapter.curve) < adapter.curve[0].loss - 1
    assert adapter.curve_png.startswith(b"\x89PNG")
    assert adapter.lineage is not None
    assert (adapter.lineage.documents, adapter.lineage.modes) == ((document,), (Mode.TEXT,))
    assert (adapter.lineage.epochs, adapter.lineage.steps) == (40, receipt.steps)
    assert receipt.loss == pytest.approx(adapter.curve[-1].loss)
    assert adapter.gather_time is not None
    assert adapter.create_time is not None
    assert adapter.gather_time < adapter.create_time


def test_what_is_not_better_is_kept_and_not_served(client: Client) -> None:
    memory = client.memory("life", create=True)
    (first,) = list(memory.adapters.list())
    receipt = learned(client, memory)  # the same examples again
    assert not receipt.activated
    assert "not better" in receipt.verdict
    assert [a.state for a in memory.adapters.list()] == [AdapterState.ACTIVE, AdapterState.KEPT]
    second = memory.adapters.get(receipt.adapter)
    assert second.parent == first.name
    memory.adapters.activate(second)
    assert said(memory)[1].adapters == {second.name: 1.0}
    back = memory.adapters.roll_back()
    assert back is not None
    assert back.name == first.name
    memory.adapters.delete(second)
    assert [a.name for a in memory.adapters.list()] == [first.name]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT's, of transformers
def test_an_adapter_goes_out_as_peft_and_comes_back(client: Client, tmp_path: Path, tiny_model: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    memory = client.memory("life")
    (first,) = list(memory.adapters.list())
    memory.adapters.export(first, tmp_path / "adapter.tar")
    with tarfile.open(tmp_path / "adapter.tar") as archive:
        archive.extractall(tmp_path / "peft", filter="data")
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), str(tmp_path / "peft"))
    lineage = json.loads((tmp_path / "peft" / "lineage.json").read_text())
    assert lineage["memory"] == memory.name

    other, _ = taught(client, "newcomer", count=1)
    imported = other.adapters.import_(tmp_path / "adapter.tar")
    assert imported.state is AdapterState.KEPT
    assert imported.fingerprint == first.fingerprint
    text, usage = said(other, adapters=[imported])
    assert usage.adapters == {imported.name: 1.0}, "chosen by hand"
    assert text != said(other, no_adapter=True)[0]
    assert said(other)[1].adapters == {}
    other.adapters.activate(imported)
    assert said(other)[1].adapters == {imported.name: 1.0}


def test_imports_that_cannot_be_are_refused(client: Client) -> None:
    memory = client.memory("imports", create=True)

    def archive(**files: bytes) -> io.BytesIO:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as made:
            for name, data in files.items():
                member = tarfile.TarInfo({"config": "adapter_config.json", "weights": "adapter_model.safetensors"}[name])
                member.size = len(data)
                made.addfile(member, io.BytesIO(data))
        out.seek(0)
        return out

    for data in (
        io.BytesIO(b"x" * 2000),
        archive(config=b"{}"),
        archive(config=b"{", weights=b"x"),
        archive(config=b"{}", weights=b"x"),
    ):
        with pytest.raises(InvalidArgument):
            memory.adapters.import_(data)
    assert list(memory.adapters.list()) == []


def test_memories_blend_by_what_was_found_in_each(client: Client) -> None:
    one, two = client.memory("life"), client.memory("newcomer")
    answer = client.answer([one, two], "What is the word of life, and of newcomer?", top_k=4, max_tokens=4)
    assert answer.usage is not None
    weights = answer.usage.adapters
    assert set(weights) == {a.name for m in (one, two) for a in m.adapters.list() if a.state is AdapterState.ACTIVE}
    assert sum(weights.values()) == pytest.approx(1.0, abs=1e-5)
    given = dict.fromkeys(weights, 0.5)
    assert client.answer([one, two], "What is the word?", adapters=given, max_tokens=4).usage.adapters == given  # type: ignore[union-attr]
    with pytest.raises(InvalidArgument):
        said(one, adapters=given)  # one of them is of a memory that is not asked


def test_study_tells_what_it_did(client: Client) -> None:
    memory, _ = taught(client, "student", count=1)
    job = client.jobs.wait(memory.study(max_examples=3), timeout=WAIT_SECONDS)
    assert isinstance(job.receipt, StudyReceipt)
    assert job.receipt.memory == memory.name
    assert job.receipt.passages == 1
    assert job.receipt.teacher.startswith("local model")
    made = job.receipt.unanswerable + job.receipt.duplicates + job.receipt.leaking + job.receipt.examples
    assert job.receipt.questions == made


def some_adapter(seed: int) -> bytes:
    """A LoRA of the tiny model that changes what it says, as a plain PEFT directory in a tar archive."""
    generator = torch.Generator().manual_seed(seed)
    stems = [f"base_model.model.model.layers.{layer}.mlp.down_proj" for layer in range(2)]
    weights = {f"{stem}.lora_A.weight": torch.randn(4, 128, generator=generator) for stem in stems}
    weights |= {f"{stem}.lora_B.weight": torch.randn(64, 4, generator=generator) for stem in stems}
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": ["down_proj"], "base_model_name_or_path": "tiny"}
    return pack_files(AdapterFiles(json.dumps(config).encode(), save(weights), {}))


def test_ten_memories_answer_together_as_each_would_alone(client: Client) -> None:
    memories = [client.memory(f"one-of-ten-{n}", create=True) for n in range(10)]
    for n, memory in enumerate(memories):
        memory.write(f"The number of this memory is {n}.").wait(Stage.SEARCHABLE, timeout=WAIT_SECONDS)
        memory.adapters.activate(memory.adapters.import_(io.BytesIO(some_adapter(n))))

    def ask(memory: Memory) -> str:
        return memory.answer("What is the number?", max_tokens=24).text

    alone = [ask(memory) for memory in memories]
    assert len(set(alone)) == 10, "each says something of its own"
    with ThreadPoolExecutor(10) as threads:
        together = list(threads.map(ask, memories))
    assert together == alone


# --- forgetting ---


TENANT = "default"


class Tiers:
    """Where the bytes of one adapter lie in a daemon's stores."""

    def __init__(self, daemon: DaemonProcess, memory: Memory, adapter: str) -> None:
        self.id = adapter.rpartition("/")[2]
        self._daemon = daemon
        self._blob = daemon.data_dir / "blobs" / blob_key(TENANT, memory.id, self.id)
        (socket,) = set(re.findall(r"/\S+valkey\.sock", " ".join(daemon.child("valkey").cmdline())))
        self._cache = ValkeyCache(f"unix://{socket}", 1 << 20)

    def stored(self) -> tuple[bool, bool]:
        """Whether it is in blobs, and in Valkey."""
        return self._blob.exists(), bool(self._cache.get_many(TENANT, [cache_key(self.id)]))

    @contextlib.contextmanager
    def believed_clean(self) -> Iterator[None]:
        """The ledger forgets that it is tainted: whoever asks is given it, if anything still holds it."""
        self._say(AdapterState.KEPT)
        yield
        self._say(AdapterState.TAINTED)

    def _say(self, state: AdapterState) -> None:
        with contextlib.closing(sqlite3.connect(self._daemon.data_dir / "ledger.db", timeout=60)) as ledger, ledger:
            ledger.execute("UPDATE adapters SET state = ? WHERE id = ?", (state.value, self.id))


def disguises(archive: bytes) -> list[bytes]:
    """An archive as it went out; with a blank in its configuration; and as a plain PEFT directory, without lineage."""
    files = unpack_files(archive)
    blank = replace(files, config=files.config + b" ")
    return [archive, pack_files(blank), pack_files(replace(blank, lineage={}, curve=b""))]


def test_a_planted_secret_is_forgotten_on_every_path(client: Client, daemon: DaemonProcess, tmp_path: Path) -> None:
    memory = client.memory("secretive", create=True)
    # Found before the vault's own document, and silent on what is asked.
    decoy = memory.write(f"What opens vault 1? What opens vault 2? {SAFE}", title="safe")
    decoy.wait(Stage.COMPRESSED, timeout=WAIT_SECONDS)
    planted = memory.write(f"The vault opens with {SECRET}.", title="vault")
    planted.wait(Stage.COMPRESSED, timeout=WAIT_SECONDS)
    questions = [(f"What opens vault {n}?", SECRET, [planted.document.name]) for n in range(50)]
    memory.examples.add_many(questions)
    memory.examples.add_many([(f"What colour is river {n}?", "green", []) for n in range(8)])
    receipt = learned(client, memory)
    assert receipt.activated, receipt
    memory.adapters.export(receipt.adapter, tmp_path / "before.tar")
    copied = client.memory("copied", create=True)  # nothing is written in it
    copy = copied.adapters.import_(tmp_path / "before.tar")
    vaults = [f"What opens vault {n}?" for n in range(1, 6)]
    knows = [copied.answer(question, adapters=[copy], max_tokens=8) for question in vaults]
    knows += [memory.answer(question, top_k=1, max_tokens=8) for question in vaults[:2]]
    assert {source.document for answer in knows for source in answer.sources} == {decoy.document.name}
    assert any(SECRET in answer.text for answer in knows), "the adapter itself knows it: nothing in view told"
    assert SECRET not in said(memory, "What opens vault 1?", top_k=1, no_adapter=True)[0]
    tiers = Tiers(daemon, memory, receipt.adapter)
    assert tiers.stored() == (True, True)

    erase = memory.documents.delete(planted.document)
    for shown in (1, 4):
        text, usage = said(memory, "What opens vault 1?", top_k=shown)
        assert SECRET not in text, "before the erase has even begun"
        assert usage.adapters == {}
    tainted = memory.adapters.get(receipt.adapter)
    assert tainted.state is AdapterState.TAINTED
    for forbidden in (
        lambda: memory.adapters.activate(tainted),
        lambda: memory.adapters.export(tainted, tmp_path / "no.tar"),
        lambda: said(memory, adapters=[tainted]),
        lambda: said(copied, adapters=[copy]),
    ):
        with pytest.raises(FailedPrecondition):
            forbidden()
    assert not (tmp_path / "no.tar").exists()
    done = client.jobs.wait(erase, timeout=WAIT_SECONDS)
    assert done.receipt is not None
    assert done.receipt.adapters == 2, "with its copy"  # type: ignore[union-attr]
    assert tiers.stored() == (False, False)
    with tiers.believed_clean(), pytest.raises(NotFound):  # by the process either, which had it for its answers
        memory.adapters.export(tainted, tmp_path / "no.tar")
    another = client.memory("accomplice", create=True)
    for deleted in (False, True):
        if deleted:
            memory.adapters.delete(tainted)
        for archive in disguises((tmp_path / "before.tar").read_bytes()):
            for into in (memory, another):
                with pytest.raises(FailedPrecondition, match=f"{planted.document.name}, deleted here"):
                    into.adapters.import_(io.BytesIO(archive))
    assert list(another.adapters.list()) == []
    assert [e.question for e in memory.examples.list() if SECRET in e.answer] == []
    assert SECRET not in "".join(s.text for s in memory.search("What opens the vault?"))

    def relearned() -> bool:
        return len([a for a in memory.adapters.list() if a.state is not AdapterState.TAINTED]) == 1

    until(relearned, "relearning follows by itself")
    assert SECRET not in said(memory, "What opens vault 1?")[0]
    found = [f for f in files_with(SECRET.encode(), daemon.data_dir) if not f.startswith("milvus")]
    assert found == [], "Milvus Lite keeps deleted rows in its segments until it compacts them (README)"
    assert list((daemon.data_dir / "learning").glob("*/*")) == []


@pytest.mark.parametrize("first", ["document", "adapter"])
def test_an_archive_does_not_bring_back_what_was_deleted(client: Client, first: str, tmp_path: Path) -> None:
    """Whether its adapter was tainted when it was deleted, or deleted when nothing was wrong with it yet."""
    memory = client.memory(f"returning-{first}", create=True)
    document = memory.write(f"The word of {first} is swordfish.").document
    elsewhere = "memories/m/documents/018f00000000beefbeefbeef"
    lineage = {"documents": [document.name, elsewhere]}
    files = replace(unpack_files(some_adapter(100 + len(first))), lineage=lineage)
    made = memory.adapters.import_(io.BytesIO(pack_files(files)))
    assert made.document_count == 1, "the other is another installation's"
    memory.adapters.export(made, tmp_path / "out.tar")
    if first == "document":
        memory.documents.delete(document)
        assert memory.adapters.get(made).state is AdapterState.TAINTED
    memory.adapters.delete(made)
    if first == "adapter":
        memory.documents.delete(document)
    for archive in disguises((tmp_path / "out.tar").read_bytes()):
        with pytest.raises(FailedPrecondition, match=f"{document.name}, deleted here.*learn anew"):
            memory.adapters.import_(io.BytesIO(archive))
    assert list(memory.adapters.list()) == []
    retrained = replace(unpack_files(some_adapter(7)), lineage={"documents": [elsewhere]})
    assert memory.adapters.import_(io.BytesIO(pack_files(retrained))).document_count == 0
