"""What `memoryd serve` shows a person once it is ready: what it runs on, where data lies, what to try."""

from __future__ import annotations

import re

from memoryd import __version__
from memoryd.config import Settings
from memoryd.worker.client import WorkerInfo


def show_ready(settings: Settings, info: WorkerInfo, seconds: float) -> None:
    """One screen, on stdout. Secrets in URLs are not shown."""
    data = settings.data_dir
    keys = "no keys: only this host, as tenant `default`"
    if settings.auth == "keys":
        keys = f"API keys; the admin key is in {data / 'admin.key'}"
    gate = "has passed its quality gate"
    if not info.compressor.gate_passed:
        gate = "has not passed its quality gate: HYBRID answers from raw text"
    rows = {
        "listens": f"{settings.listen}{' with TLS' if settings.tls_cert else ''} ({keys})",
        "data": str(data),
        "ledger": without_secrets(settings.database_url) or "SQLite, ledger.db",
        "blobs": without_secrets(settings.blob_url) or "files, blobs/",
        "index": without_secrets(settings.milvus_uri) or "Milvus Lite, a child",
        "cache": without_secrets(settings.redis_url) or f"Valkey, a child; at most {settings.cache_bytes >> 20} MiB",
        "model": f"{settings.model}, {info.device} {info.dtype}, {info.base_fingerprint[:12]}",
        "reader": info.reader[:19] or "none fits this base model: answers are the model's own",
        "compressor": f"{info.compressor.name} {info.compressor.ratio}x, {gate}",
        "logs": f"stderr, and {data / 'logs'} of its children",
    }
    print(f"memoryd {__version__} is ready, after {seconds:.1f} s\n", flush=True)
    for name, value in rows.items():
        print(f"  {name:<11} {value}")
    print()
    if settings.auth == "off" and not settings.tls_cert:  # the demo has neither a key nor TLS
        print(f"  {'try':<11} memoryd demo --target {settings.listen}")
    print(f"  {'stop':<11} Ctrl-C here: what runs is drained first\n", flush=True)


def without_secrets(url: str) -> str:
    """The URL without who signs in, which may be a token, and without all that follows its path, as a query with a password
    does. What has no scheme is a path and stays as it is."""
    scheme, separator, rest = url.partition("://")
    place = re.split("[?#;&]", rest, maxsplit=1)[0]
    more = rest[len(place) :]
    if "@" in more:  # of a query, or is what comes before it a password with such a character?
        return f"{scheme}{separator}***"
    _, at, host = place.rpartition("@")
    return f"{scheme}{separator}{'***@' if at else ''}{host}{more and more[0] + '***'}"
