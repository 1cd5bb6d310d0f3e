"""A daemon as a subprocess, for those that start one only to use it: the demo, the benchmarks, `memoryd eval learning`.

It ends with them: on the way out of the context, and where they were killed by the kernel, which lets go of its data directory
at once. Nothing is lost: what the daemon acknowledged survives kill -9, and its jobs go on in the next one.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from memoryd_client import Client, MemorydError, Unavailable

from memoryd.child import ending_with_us


@contextlib.contextmanager
def running_daemon(data_dir: Path, *flags: str) -> Iterator[str]:
    """Starts a daemon on a free loopback port, gives its target once it is ready, and ends it. Its log is in data_dir.

    A SIGTERM ends this process without a word, and so kills the daemon: where it should drain, let SIGTERM raise SystemExit."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{probe.getsockname()[1]}"
    data_dir.mkdir(parents=True, exist_ok=True)
    log = data_dir / "daemon.log"
    command = [sys.executable, "-m", "memoryd", "serve", "--data-dir", str(data_dir), "--listen", target, *flags]
    with log.open("ab") as output:
        process = subprocess.Popen(ending_with_us(command), stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        with Client(target) as client:
            while not _ready(client):
                if process.poll() is not None:
                    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
                    raise Unavailable(f"the daemon ended with exit code {process.returncode} while starting:\n{tail}")
                time.sleep(0.1)
        yield target
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ready(client: Client) -> bool:
    with contextlib.suppress(MemorydError):
        return client.health(timeout=1).name == "SERVING"
    return False
