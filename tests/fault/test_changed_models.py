"""Model files that are written over while the daemon runs: nothing of others is served, and nothing is lost by it."""

from __future__ import annotations

from pathlib import Path

from memoryd_client import Client, JobState, Mode, Stage

from tests.daemon import DaemonProcess
from tests.integration.support import until
from tests.tiny_models import make_tiny_model

TEXT = "The ferry to Hvar leaves at noon from the third pier. " * 40
QUESTION = "When does the ferry leave?"


def said(daemon: DaemonProcess, words: str) -> int:
    return daemon.log.read_text().count(words)


def test_a_worker_comes_back_when_its_files_are_whole_again(tmp_path: Path) -> None:
    model = make_tiny_model("llama", tmp_path / "model")
    weights, aside = model / "model.safetensors", tmp_path / "aside"
    with DaemonProcess(tmp_path / "data", "--model", str(model)) as daemon, Client(daemon.target) as client:
        memory = client.memory("notes", create=True)
        memory.write(TEXT).wait(Stage.COMPRESSED)
        weights.rename(aside)
        weights.write_bytes(aside.read_bytes()[:1000])
        daemon.child("memoryd.worker").kill()
        until(lambda: said(daemon, "can't be loaded") >= 2, "it is tried again, and says why")
        late = memory.write(TEXT + "Late.")
        aside.replace(weights)  # with the time that it had: the very same file
        until(daemon.serving, "the worker is back")
        late.wait(Stage.COMPRESSED)
        assert memory.answer(QUESTION, mode=Mode.COMPRESSED, max_tokens=1).usage.soft_tokens > 0


def test_other_models_are_not_let_in_before_the_daemon_is_restarted(tmp_path: Path) -> None:
    model = make_tiny_model("llama", tmp_path / "model")
    data_dir, flags = tmp_path / "data", ("--model", str(model))
    with DaemonProcess(data_dir, *flags) as daemon, Client(daemon.target) as client:
        memory = client.memory("notes", create=True)
        memory.write(TEXT).wait(Stage.COMPRESSED)
        before = memory.answer(QUESTION, mode=Mode.COMPRESSED, max_tokens=1).usage
        make_tiny_model("llama", model, seed=1)
        daemon.child("memoryd.worker").kill()
        until(lambda: said(daemon, "restart memoryd") >= 2, "it says what to do")
        assert not daemon.serving()
        late = memory.write(TEXT + "Late.")
        assert memory.search("ferry"), "words are found without a worker"
        assert client.jobs.get(late.job).state in (JobState.PENDING, JobState.RUNNING)
    with DaemonProcess(data_dir, *flags) as daemon, Client(daemon.target) as client:
        memory = client.memory("notes")
        until(lambda: {document.stage for document in memory.documents.list()} == {Stage.COMPRESSED}, "made anew")
        after = memory.answer(QUESTION, mode=Mode.COMPRESSED, max_tokens=1)
        assert after.usage.soft_tokens > 0
        assert after.usage.base_model != before.base_model
        assert after.usage.compressor != before.compressor
        assert not [warning for warning in after.basis.warnings if "not compressed yet" in warning]
