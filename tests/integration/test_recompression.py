"""After a change of ratio every document is compressed anew, while answers read text; nothing of before is served or kept."""

from __future__ import annotations

from pathlib import Path

from memoryd_client import Client, JobState, Mode, Stage

from tests.daemon import DaemonProcess
from tests.integration.support import until
from tests.integration.test_slot_compressors import SLOTS, make_autocompressor

TEXT = "The ferry to Hvar leaves at noon from the third pier. " * 40


def test_another_ratio_compresses_everything_anew(tmp_path: Path, tiny_model: Path) -> None:
    data_dir = tmp_path / "data"
    flags = ("--model", str(tiny_model))
    with DaemonProcess(data_dir, *flags, "--ratio", "4") as daemon, Client(daemon.target) as client:
        memory = client.memory("notes", create=True)
        written = [memory.write(f"{number}. {TEXT}", title=str(number)) for number in range(3)]
        for each in written:
            each.wait(Stage.COMPRESSED)
        first = memory.answer("When does the ferry leave?", mode=Mode.COMPRESSED, max_tokens=1).usage
        assert first.soft_tokens > 0
    blobs = embeddings(data_dir)
    with DaemonProcess(data_dir, *flags, "--ratio", "16") as daemon, Client(daemon.target) as client:
        memory = client.memory("notes")
        until(lambda: [job.state for job in client.jobs.list()] == [JobState.SUCCEEDED] * 6, "recompressed")
        assert {document.stage for document in memory.documents.list()} == {Stage.COMPRESSED}
        after = memory.answer("When does the ferry leave?", mode=Mode.COMPRESSED, max_tokens=1)
        assert not [warning for warning in after.basis.warnings if "not compressed yet" in warning]
        assert 0 < after.usage.soft_tokens <= first.soft_tokens / 3
        assert after.usage.compressor != first.compressor
        jobs = len(list(client.jobs.list()))
        until(lambda: '"documents are compressed anew"' in daemon.log.read_text(), "it says when it is through")
    again = embeddings(data_dir)
    assert len(again) == len(blobs)
    assert not again & blobs, "what the other one made is gone"
    with DaemonProcess(data_dir, *flags, "--ratio", "16") as daemon, Client(daemon.target) as client:
        assert len(list(client.jobs.list())) == jobs, "nothing is done twice"


def embeddings(data_dir: Path) -> set[Path]:
    """The blobs of compressed embeddings; a document's other blob is its text."""
    found = (data_dir / "blobs" / "default").rglob("*")
    return {path for path in found if path.is_file() and not path.name.startswith("text-")}


def test_an_autocompressor_is_served_with_chunks_of_its_own_length(tmp_path: Path) -> None:
    """A published checkpoint is base model and compressor in one; its chunks are longer than those of the pooled one."""
    model = make_autocompressor(tmp_path / "auto")
    flags = ("--model", str(model), "--compressor", str(model))
    with DaemonProcess(tmp_path / "data", *flags) as daemon, Client(daemon.target) as client:
        memory = client.memory("notes", create=True)
        document = memory.write(TEXT, title="Ferries").wait(Stage.COMPRESSED)
        assert 512 < document.token_count <= 1536
        assert document.chunk_count == 1
        answer = memory.answer("When does the ferry leave?", mode=Mode.COMPRESSED, max_tokens=2)
        assert answer.usage.soft_tokens == SLOTS
        assert any("quality gate" in warning for warning in answer.basis.warnings)
