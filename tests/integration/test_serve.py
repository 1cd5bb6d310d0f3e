"""`memoryd serve`: what it refuses, how it ends, and what survives."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pymilvus
import pytest
import redis
from memoryd_client import Client, Mode, Sources, Stage, Text

from tests.daemon import DaemonProcess, free_port
from tests.integration.support import until
from tests.tiny_models import make_tiny_model

EX_CONFIG = 78
CLOCK = "The harbour clock of Vardo was repaired by Ingrid Solberg in the spring of 1957."
QUESTION = "Who repaired the harbour clock of Vardo?"


def memoryd(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of memoryd to its end."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("MEMORYD_")}
    return subprocess.run(
        [sys.executable, "-m", "memoryd", *arguments],
        capture_output=True,
        text=True,
        env=inherited | environment,
        timeout=200,
        check=False,
    )


# --- refused before anything is started ---


def test_an_unknown_flag_is_refused_by_its_name() -> None:
    done = memoryd("serve", "--lissten", "127.0.0.1:1")
    assert done.returncode == EX_CONFIG
    assert "--lissten" in done.stderr


def test_a_flag_is_not_guessed_from_its_beginning() -> None:
    done = memoryd("serve", "--list", "127.0.0.1:1")
    assert done.returncode == EX_CONFIG
    assert "--list" in done.stderr


def test_an_unknown_environment_variable_is_refused_by_its_name() -> None:
    done = memoryd("serve", MEMORYD_LISSTEN="127.0.0.1:1")
    assert done.returncode == EX_CONFIG
    assert "MEMORYD_LISSTEN" in done.stderr


def test_an_unknown_key_of_the_file_is_refused_by_its_name(tmp_path: Path) -> None:
    file = tmp_path / "memoryd.toml"
    file.write_text('lissten = "127.0.0.1:1"\n')
    for done in (memoryd("serve", "--config", str(file)), memoryd("doctor", MEMORYD_CONFIG=str(file))):
        assert done.returncode == EX_CONFIG
        assert "lissten: no such setting" in done.stderr
        assert str(file) in done.stderr


def test_a_bad_value_is_refused_with_its_key_and_what_it_may_be() -> None:
    done = memoryd("serve", "--listen", "7437")
    assert done.returncode == EX_CONFIG
    assert "listen: must be host:port" in done.stderr
    assert "Traceback" not in done.stderr


def test_other_hosts_without_keys_are_refused_with_what_to_do() -> None:
    done = memoryd("serve", "--listen", "0.0.0.0:7437")
    assert done.returncode == EX_CONFIG
    assert "auth=keys" in done.stderr


def test_an_address_of_another_machine_is_refused_with_the_reason(tmp_path: Path) -> None:
    done = memoryd("serve", "--data-dir", str(tmp_path), "--listen", "203.0.113.5:7437", "--auth", "keys")
    assert done.returncode == EX_CONFIG
    assert "listen: 203.0.113.5:7437 can't be bound (" in done.stderr
    assert "something else" not in done.stderr


def test_tls_files_that_are_of_no_use_are_refused_before_anything_is_started(tmp_path: Path) -> None:
    (tmp_path / "junk.pem").write_text("junk")
    junk = str(tmp_path / "junk.pem")
    data = tmp_path / "data"
    tls = ("--tls-cert", junk, "--tls-key", junk)
    done = memoryd("serve", "--data-dir", str(data), "--listen", f"127.0.0.1:{free_port()}", *tls)
    assert done.returncode == EX_CONFIG
    assert f"tls_cert: {junk} holds no certificate" in done.stderr
    assert [path.name for path in data.iterdir()] == ["memoryd.lock"]


def test_a_model_that_can_not_be_loaded_is_refused_by_its_setting(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    done = memoryd("serve", "--data-dir", str(tmp_path / "data"), "--listen", f"127.0.0.1:{free_port()}", "--model", str(model))
    assert done.returncode == EX_CONFIG
    assert f"model: {model} can't be loaded" in done.stderr
    assert "Traceback" not in done.stderr


# --- doctor ---


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[DaemonProcess]:
    """A daemon of this module's own, which its tests stop and start."""
    daemon = DaemonProcess(tmp_path_factory.mktemp("small"), "--model", str(tiny_model))
    daemon.start()
    yield daemon
    daemon.stop()


def test_doctor_finds_a_good_installation_good(tmp_path: Path, tiny_model: Path) -> None:
    flags = ("--data-dir", str(tmp_path), "--listen", f"127.0.0.1:{free_port()}", "--model", str(tiny_model))
    done = memoryd("doctor", *flags)
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    wrong = [line for line in lines if line.startswith("WRONG") and not line.startswith("WRONG  memory:")]  # a full machine
    assert not wrong
    assert sum(line.startswith("ok") for line in lines) >= 9
    if done.returncode == 0:
        assert lines[-1] == "all is well: memoryd serve"


def test_doctor_says_what_is_wrong_and_what_to_do(small: DaemonProcess, tmp_path: Path) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    done = memoryd(
        *("doctor", "--data-dir", str(tmp_path), "--listen", small.target, "--model", "/no/such/model"),
        *("--redis-url", f"redis://{nowhere}", "--milvus-uri", f"http://{nowhere}"),
    )
    assert done.returncode == 1
    wrong = {line.split()[1]: line for line in done.stdout.splitlines() if line.strip().startswith("WRONG")}
    assert {"listen:", "index:", "cache:", "model:"} <= set(wrong)
    assert "--listen" in wrong["listen:"]
    assert "/no/such/model" in wrong["model:"]
    assert "to mend, see above" in done.stdout


def test_doctor_finds_the_daemon_that_runs_well(small: DaemonProcess, tiny_model: Path) -> None:
    assert small.process is not None
    flags = ("--data-dir", str(small.data_dir), "--listen", small.target, "--model", str(tiny_model))
    lines = [line.strip() for line in memoryd("doctor", *flags).stdout.splitlines()]
    assert (
        f"ok     listen: {small.target} is in use, and memoryd runs on this data directory (process {small.process.pid})"
        in lines
    )
    assert any(line.startswith("ok     ledger: 1 tenant(s)") for line in lines)


# --- one daemon for each directory and port ---


def test_a_second_daemon_on_the_same_directory_is_refused(small: DaemonProcess, tiny_model: Path) -> None:
    flags = ("--data-dir", str(small.data_dir), "--listen", f"127.0.0.1:{free_port()}", "--model", str(tiny_model))
    done = memoryd("serve", *flags)
    assert done.returncode == 1
    assert small.process is not None
    assert f"another memoryd (process {small.process.pid}) runs on {small.data_dir}" in done.stderr
    assert "--data-dir" in done.stderr
    assert small.serving()


def test_a_port_that_is_taken_is_refused_by_its_setting(small: DaemonProcess, tmp_path: Path, tiny_model: Path) -> None:
    done = memoryd("serve", "--data-dir", str(tmp_path), "--listen", small.target, "--model", str(tiny_model))
    assert done.returncode == EX_CONFIG
    assert f"listen: {small.target} can't be bound" in done.stderr
    assert "--listen" in done.stderr
    assert small.serving()


# --- what is kept is for one user alone ---


def test_no_other_account_can_read_what_is_kept(small: DaemonProcess) -> None:
    """Whoever made the data directory, and however."""
    with Client(small.target) as client:
        client.memory("private", create=True).write(CLOCK).wait(Stage.COMPRESSED)
    kept = [path for path in small.data_dir.rglob("*") if path.relative_to(small.data_dir).parts[0] != "models"]
    open_to_others = [path for path in kept if path != small.log and path.lstat().st_mode & 0o077]
    assert {"ledger.db", "blobs", "milvus"} <= {path.name for path in kept}
    assert open_to_others == []


# --- index and cache may be lost at any time ---


def test_an_empty_cache_only_costs_time(small: DaemonProcess) -> None:
    with Client(small.target) as client:
        memory = client.memory("cached", create=True)
        memory.write(CLOCK).wait(Stage.COMPRESSED)
        before = memory.answer(QUESTION, mode=Mode.COMPRESSED, max_tokens=8).text
        with redis.Redis(unix_socket_path=_socket(small)) as valkey:
            assert valkey.dbsize() > 0
            valkey.flushall()
        assert memory.answer(QUESTION, mode=Mode.COMPRESSED, max_tokens=8).text == before


def _socket(daemon: DaemonProcess) -> str:
    line = daemon.child("valkey").cmdline()
    title = next(part for part in line if "valkey.sock" in part)
    return title.rpartition("unixsocket:")[2].strip()


def test_an_index_that_was_dropped_is_rebuilt_by_one_command(small: DaemonProcess, tiny_model: Path) -> None:
    with Client(small.target) as client:
        memory = client.memory("reindexed", create=True)
        memory.write(CLOCK).wait()
        command = small.child("milvus_lite").cmdline()
        milvus = pymilvus.MilvusClient(uri=f"http://127.0.0.1:{command[command.index('--port') + 1]}")
        for collection in milvus.list_collections():
            milvus.drop_collection(collection)
        milvus.close()

        done = memoryd("reindex", "--data-dir", str(small.data_dir), "--model", str(tiny_model))
        assert done.returncode == 0
        assert "will be rebuilt" in done.stdout
        until(lambda: _finds(memory), "the passage is found again")


def _finds(memory: object) -> bool:
    from memoryd_client import MemorydError

    with contextlib.suppress(MemorydError):
        return bool(memory.search(QUESTION))  # type: ignore[attr-defined]
    return False


# --- ending, and starting again ---


def test_sigterm_drains_what_runs_and_the_next_daemon_has_it_all(small: DaemonProcess) -> None:
    with Client(small.target) as client:
        memory = client.memory("kept", create=True)
        written = memory.write(CLOCK, title="kept", metadata={"n": 1.0})
        written.wait(Stage.COMPRESSED)
        unfinished = memory.write("The clock stands in the harbour of Vardo. " * 3000)
        answer = memory.answer(QUESTION, mode=Mode.TEXT, max_tokens=300)
        stream = iter(answer)
        assert isinstance(next(stream), Sources)
        assert isinstance(next(stream), Text)
        assert small.process is not None
        small.process.send_signal(signal.SIGTERM)
        assert answer.usage.output_tokens > 1  # the answer came to its end
        assert small.process.wait(60) == 0

    shutil.rmtree(small.data_dir / "milvus")  # whoever has the ledger and the blobs has everything
    small.start()
    with Client(small.target) as client:
        memory = client.memory("kept")
        document = memory.documents.get(written.document, text=True)
        assert (document.text, document.title, document.metadata) == (CLOCK, "kept", {"n": 1.0})
        until(lambda: CLOCK in [source.text for source in memory.search(QUESTION)], "the index was rebuilt")
        answer = memory.answer(QUESTION, mode=Mode.COMPRESSED, top_k=1, max_tokens=4)
        assert answer.usage.soft_tokens > 0  # the compressed embeddings are kept, too
        client.jobs.cancel(unfinished.job)  # it was pending; it goes on by itself
        assert "the index has nothing of this tenant" in small.log.read_text()


# --- another base model on the same data ---


def test_another_base_model_serves_the_same_data_and_never_the_others_embeddings(small: DaemonProcess, tmp_path: Path) -> None:
    with Client(small.target) as client:
        memory = client.memory("moved", create=True)
        memory.write(CLOCK).wait(Stage.COMPRESSED)
        made_by = memory.answer(QUESTION, mode=Mode.COMPRESSED, max_tokens=1).usage.compressor
    assert small.stop() == 0  # the last test of this module: nobody starts it again
    model = make_tiny_model("qwen3", tmp_path / "qwen3")
    with DaemonProcess(small.data_dir, "--model", str(model)) as other, Client(other.target) as client:
        answer = client.memory("moved").answer(QUESTION, mode=Mode.COMPRESSED, max_tokens=4)
        assert answer.text
        # Those of another model are read as text until they are made anew, which starts at once.
        read_as_text = any("not compressed yet" in warning for warning in answer.basis.warnings)
        assert read_as_text == (answer.usage.soft_tokens == 0)
        if answer.usage.soft_tokens:
            assert answer.usage.compressor != made_by

        fresh = client.memory("fresh", create=True)
        fresh.write(CLOCK).wait(Stage.COMPRESSED)
        assert fresh.search(QUESTION)[0].text == CLOCK
        for mode in (Mode.TEXT, Mode.COMPRESSED):
            answer = fresh.answer(QUESTION, mode=mode, max_tokens=4)
            assert 0 < answer.usage.output_tokens <= 4
            assert (answer.usage.soft_tokens > 0) == (mode is Mode.COMPRESSED)
