"""A storm: writers, readers, and kill -9 at random moments; and the truth that the daemon is held against afterwards."""

from __future__ import annotations

import contextlib
import hashlib
import io
import random
import re
import sqlite3
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil
from memoryd_client import (
    Client,
    DeadlineExceeded,
    EraseReceipt,
    JobState,
    Memory,
    Mode,
    NotFound,
    Source,
    Sources,
    Stage,
    Unavailable,
)
from pymilvus import MilvusClient

from memoryd.compress import codec
from memoryd.compress.conversation import render_conversation
from memoryd.core import DEFAULT_TENANT, Message
from memoryd.forget import MARK, reclaim
from memoryd.learn.runs import Runs
from memoryd.store.blobs import FsspecBlobs
from memoryd.store.ledger import SqlLedger
from tests.daemon import DaemonProcess
from tests.fault.waiting import PATIENT, until

CHILDREN = {"worker": "memoryd.worker", "valkey": "valkey", "milvus": "milvus_lite"}
KINDS = ("daemon", *CHILDREN)
PER_KILL = 5  # documents that may be written between two kills, lest a slow machine drown in them
SETTLE_SECONDS = 1200.0  # for the work that is left after the last kill, on a machine that does other things too

_MARKER = re.compile(r"\bq[0-9a-f]{10}x\b")
_TEXT = """
the a river mountain city blue green document passage question answer memory moved from Lisbon in May and said that
nothing is known below seven eight café über 東京 🙂 naïve briefly where what who was of to
"""
_WORDS = _TEXT.split()


@dataclass
class Entry:
    """One document as it was meant: every sentence holds its marker."""

    marker: str
    text: str
    send: Callable[[Memory], str] = field(repr=False)  # writes it, gives its name
    name: str = ""  # once it is acknowledged


class Truth:
    """What the daemon was asked and what it acknowledged. Threads share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.asked: dict[str, Entry] = {}  # by marker
        self.acknowledged: dict[str, Entry] = {}  # by name, deleted ones among them
        self.deleting: set[str] = set()
        self.deleted: dict[str, str] = {}  # name to the job that erases it
        self.wrong: list[str] = []
        self.done: Counter[str] = Counter()

    def ask(self, entry: Entry) -> None:
        with self._lock:
            self.asked[entry.marker] = entry

    def acknowledge(self, entry: Entry, name: str) -> None:
        with self._lock:
            entry.name = name
            self.acknowledged[name] = entry

    def acknowledge_delete(self, name: str, job: str) -> None:
        with self._lock:
            self.deleted[name] = job

    def complain(self, what: str) -> None:
        with self._lock:
            self.wrong.append(what)

    def count(self, what: str) -> None:
        with self._lock:
            self.done[what] += 1

    def gone(self) -> set[str]:
        with self._lock:
            return set(self.deleted)

    def pick(self, rng: random.Random) -> Entry | None:
        """An acknowledged document that nobody deletes yet; it is the caller's to delete."""
        with self._lock:
            names = sorted(self.acknowledged.keys() - self.deleting)
            if not names:
                return None
            name = rng.choice(names)
            self.deleting.add(name)
            return self.acknowledged[name]

    def some_marker(self, rng: random.Random) -> str:
        with self._lock:
            return rng.choice(sorted(self.asked)) if self.asked else "nothing yet"

    def check(self, sources: Iterable[Source], gone: set[str]) -> None:
        """Each must be a span of a document that was asked to be written, and not of one that was gone before."""
        for source in sources:
            markers = set(_MARKER.findall(source.text))
            entry = self.asked.get(markers.pop()) if len(markers) == 1 else None
            if entry is None or entry.text[source.start : source.end] != source.text:
                self.complain(f"{source.document}: what was served is no part of any document: {source.text[:200]!r}")
            elif entry.name and entry.name != source.document:
                self.complain(f"{source.document} has the text of {entry.name}")
            if source.document in gone:
                self.complain(f"{source.document} was served after its delete was acknowledged")

    @property
    def live(self) -> dict[str, Entry]:
        return {name: entry for name, entry in self.acknowledged.items() if name not in self.deleted}


def compose(rng: random.Random) -> Entry:
    """A document of 5 to 10 KB: a text, a conversation or an upload."""
    marker = f"q{rng.getrandbits(40):010x}x"
    size = rng.randrange(5_000, 10_000)
    sentences: list[str] = []
    while sum(map(len, sentences)) < size:
        words = rng.choices(_WORDS, k=rng.randrange(6, 18))
        words.insert(rng.randrange(len(words)), marker)
        sentences.append(" ".join(words) + ".")
    request = f"storm-{marker}"
    how = rng.random()
    if how < 0.2:
        turns = [
            {"role": ("user", "assistant")[i % 2], "content": " ".join(sentences[i : i + 4])}
            for i in range(0, len(sentences), 4)
        ]
        text = "".join(render_conversation(Message(t["role"], t["content"]) for t in turns))
        return Entry(marker, text, lambda memory: memory.write_messages(turns, request_id=request).document.name)
    text = "\n".join(sentences)
    if how < 0.4:
        data, limit = text.encode(), SETTLE_SECONDS
        return Entry(
            marker,
            text,
            lambda memory: memory.upload(io.BytesIO(data), title=marker, request_id=request, timeout=limit).document.name,
        )
    return Entry(marker, text, lambda memory: memory.write(text, title=marker, request_id=request).document.name)


class Storm:
    """Writers and readers work while `kill` is called; leaving it lets them finish."""

    def __init__(self, daemon: DaemonProcess, memories: Sequence[str], seed: int) -> None:
        self.truth = Truth()
        self.kills: Counter[str] = Counter()
        self._daemon = daemon
        self._memories = memories
        self._left = PER_KILL
        self._rng = random.Random(seed)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        works = [self._write, self._write, self._search, self._answer]
        self._threads = [
            threading.Thread(target=self._guarded, args=(work, random.Random(f"{seed} {i}")), daemon=True)
            for i, work in enumerate(works)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Returns when all that was begun has been acknowledged; at once where the test has failed."""
        self._stop.set()
        for thread in self._threads if kind is None else ():
            thread.join()

    def pause(self) -> None:
        """Until the next kill: often until things work again and some were done, else for a moment only."""
        if self._rng.random() < 0.6:
            what, some = self._rng.choice(["writes", "searches", "answers", "answers"]), self._rng.randrange(1, 6)
            self.until_done({what: self.truth.done[what] + some})
        else:
            time.sleep(self._rng.uniform(0.0, 4.0))

    def until_done(self, enough: Mapping[str, int]) -> None:
        """Until so much has been acknowledged or answered."""

        def look() -> bool:
            assert self.truth.wrong == [], "\n".join(self.truth.wrong)
            return all(self.truth.done[what] >= n or (what == "writes" and self._left == 0) for what, n in enough.items())

        until(look, f"{dict(self.truth.done)}, where {enough} was to be done", SETTLE_SECONDS)

    def kill(self, kind: str) -> None:
        """kill -9 of what is there, whatever it does; a daemon is started again."""
        if kind == "daemon":
            assert self._daemon.process is not None
            children = psutil.Process(self._daemon.process.pid).children(recursive=True)
            self._daemon.kill()
            _, orphans = psutil.wait_procs(children, timeout=30)
            for orphan in orphans:
                self.truth.complain(f"an orphan of the daemon: {orphan}")
            self._daemon.start(wait=False)
        else:
            until(lambda: self._kill_child(kind), f"the daemon has no {kind}", SETTLE_SECONDS)
        self.kills[kind] += 1
        with self._lock:
            self._left += PER_KILL

    def _kill_child(self, kind: str) -> bool:
        assert self._daemon.process is not None
        if self._daemon.process.poll() is not None:
            raise AssertionError(f"the daemon ended by itself:\n{self._daemon.log.read_text()[-3000:]}")
        try:
            self._daemon.child(CHILDREN[kind]).kill()
        except (AssertionError, psutil.NoSuchProcess):  # it is not there just now
            return False
        return True

    def _guarded(self, work: Callable[[random.Random], None], rng: random.Random) -> None:
        try:
            work(rng)
        except BaseException:
            self.truth.complain(traceback.format_exc())

    def _write(self, rng: random.Random) -> None:
        with Client(self._daemon.target, timeout=None, retry=PATIENT) as client:
            self._write_with(client, rng)

    def _write_with(self, client: Client, rng: random.Random) -> None:
        memories = [client.memory(name, create=True) for name in self._memories]
        while not self._stop.wait(rng.expovariate(1.0)):
            with self._lock:
                if self._left == 0:
                    continue
                self._left -= 1
            if rng.random() < 0.1:
                self._delete(client, rng)
                continue
            entry, memory = compose(rng), rng.choice(memories)
            self.truth.ask(entry)
            name = entry.send(memory)
            self.truth.count("writes")
            if rng.random() < 0.2:  # the same request again: an agent that did not see the answer
                repeated = entry.send(memory)
                self.truth.count("repeats")
                if repeated != name:
                    self.truth.complain(f"a repeat of the request that made {name} made {repeated}")
            self.truth.acknowledge(entry, name)

    def _delete(self, client: Client, rng: random.Random) -> None:
        entry = self.truth.pick(rng)
        if entry is not None:
            memory = client.memory(entry.name.split("/")[1])
            job = memory.documents.delete(entry.name, request_id=f"delete-{entry.marker}")
            self.truth.acknowledge_delete(entry.name, job.name)
            self.truth.count("deletes")

    def _search(self, rng: random.Random) -> None:
        with Client(self._daemon.target, retry=None) as client:
            while not self._stop.wait(rng.uniform(0.05, 0.5)):
                gone = self.truth.gone()
                with contextlib.suppress(Unavailable, DeadlineExceeded, NotFound):  # NotFound: no memory yet
                    found = client.search(self._memories, f"{self.truth.some_marker(rng)} river city", top_k=8, timeout=20)
                    self.truth.check(found, gone)
                    self.truth.count("searches")

    def _answer(self, rng: random.Random) -> None:
        with Client(self._daemon.target, retry=None) as client:
            while not self._stop.wait(rng.uniform(0.1, 1.0)):
                gone = self.truth.gone()
                mode = rng.choice([Mode.COMPRESSED, Mode.HYBRID, Mode.TEXT])
                with contextlib.suppress(Unavailable, DeadlineExceeded, NotFound):
                    question = f"What was said of {self.truth.some_marker(rng)}?"
                    for event in client.answer(self._memories, question, mode=mode, max_tokens=24, timeout=30):
                        if isinstance(event, Sources):
                            self.truth.check(event.sources, gone)
                    self.truth.count("answers")


def settle(client: Client, truth: Truth) -> None:
    """Waits until every live document is COMPRESSED, every deleted one erased, and what the daemon does by itself done too: it
    writes the index anew where a kill may have cost it rows."""
    deadline = time.monotonic() + SETTLE_SECONDS
    for name in truth.live:
        client.memory(name.split("/")[1]).documents.wait(name, Stage.COMPRESSED, timeout=deadline - time.monotonic())
    for job in truth.deleted.values():
        client.jobs.wait(job, timeout=deadline - time.monotonic())
    under_way = {JobState.PENDING, JobState.RUNNING}
    until(lambda: under_way.isdisjoint(job.state for job in client.jobs.list()), "jobs go on", SETTLE_SECONDS)


def check_served(client: Client, truth: Truth, memories: Sequence[str]) -> None:
    """Through the API: what was acknowledged is there, whole and found; what was deleted is not; nothing else is."""
    listed = {d.name for memory in memories for d in client.memory(memory).documents.list()}
    assert listed == truth.live.keys(), "the daemon holds other documents than it acknowledged"
    for name, entry in truth.live.items():
        memory = client.memory(name.split("/")[1])
        document = memory.documents.get(name, text=True)
        assert document.stage is Stage.COMPRESSED, name
        assert document.sha256 == hashlib.sha256(entry.text.encode()).hexdigest(), name
        assert document.text == entry.text, name
        found = memory.search(entry.marker, top_k=5)
        truth.check(found, set(truth.deleted))
        assert name in {s.document for s in found}, f"{name} is not found by its marker"
    for name, job in truth.deleted.items():
        memory = client.memory(name.split("/")[1])
        try:
            memory.documents.get(name)
        except NotFound:
            pass
        else:
            raise AssertionError(f"{name} is deleted and can be read")
        found = memory.search(truth.acknowledged[name].marker, top_k=5)
        assert name not in {s.document for s in found}, f"{name} is deleted and found"
        receipt = client.jobs.get(job).receipt
        assert isinstance(receipt, EraseReceipt)
        assert (receipt.target, receipt.documents) == (name, 1), receipt
    for job in client.jobs.list():
        ended_well = job.state is JobState.SUCCEEDED or (job.state is JobState.CANCELLED and job.target in truth.deleted)
        assert ended_well, job
    assert truth.wrong == [], "\n".join(truth.wrong)


def index_ids(daemon: DaemonProcess) -> set[str]:
    """The passages that Milvus Lite holds, of all tenants, read past memoryd."""
    command = daemon.child("milvus_lite").cmdline()
    with contextlib.closing(MilvusClient(f"http://127.0.0.1:{command[command.index('--port') + 1]}")) as milvus:
        (collection,) = milvus.list_collections()
        rows = milvus.query(collection, filter='id != ""', output_fields=["id"], limit=16_000)
    assert len(rows) < 16_000
    return {row["id"].partition("/")[2] for row in rows}


@contextlib.contextmanager
def ledger_of(data_dir: Path) -> Iterator[sqlite3.Connection]:
    """The ledger's file, read past memoryd."""
    connection = sqlite3.connect(f"file:{data_dir / 'ledger.db'}?mode=ro", uri=True)
    connection.row_factory = sqlite3.Row
    try:
        yield connection
    finally:
        connection.close()


def passages_of(data_dir: Path) -> set[str]:
    """Ids of all passages in the ledger."""
    with ledger_of(data_dir) as ledger:
        return {f"{r['document']}-{r['ordinal']}" for r in ledger.execute("SELECT document, ordinal FROM passages")}


def check_stored(data_dir: Path, truth: Truth) -> None:
    """On disk, after the daemon has stopped: rows and bytes agree, and nothing else lies about."""
    with ledger_of(data_dir) as ledger:
        assert [tuple(r) for r in ledger.execute("PRAGMA integrity_check")] == [("ok",)]
        assert [tuple(r) for r in ledger.execute("PRAGMA foreign_key_check")] == []
        documents = {r["id"]: r for r in ledger.execute("SELECT * FROM documents")}
        chunks = ledger.execute("SELECT * FROM chunks ORDER BY document, ordinal").fetchall()
        passages = Counter(r["document"] for r in ledger.execute("SELECT document FROM passages"))
    assert documents.keys() == {name.rpartition("/")[2] for name in truth.live}
    assert {id_: d["passage_count"] for id_, d in documents.items()} == passages
    assert {id_: d["chunk_count"] for id_, d in documents.items()} == Counter(c["document"] for c in chunks)
    root = data_dir / "blobs"
    expected = {d["blob"] for d in documents.values()} | {MARK[1]}
    for chunk in chunks:
        embeddings = codec.decode((root / chunk["embeddings"]).read_bytes(), chunk["compressor"], chunk_sha256=chunk["sha256"])
        assert embeddings.k == chunk["soft_tokens"] > 0
        expected.add(chunk["embeddings"])
    for document in documents.values():
        assert hashlib.sha256((root / document["blob"]).read_bytes()).hexdigest() == document["sha256"]
    blobs = FsspecBlobs(str(root))
    blobs.sweep(0.0)
    with contextlib.closing(SqlLedger(f"sqlite:///{data_dir / 'ledger.db'}")) as rows:
        eraser: Any = None  # nothing is erased with a run here
        reclaim(rows, blobs, Runs(rows, eraser, data_dir / "learning"), DEFAULT_TENANT, 0.0)
    assert {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()} == expected


def summary(storm: Storm) -> Mapping[str, int]:
    return {"kills": storm.kills.total(), **{f"kills {k}": n for k, n in sorted(storm.kills.items())}, **storm.truth.done}
