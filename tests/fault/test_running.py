"""A daemon that a command starts only to use it ends with that command, however the command ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.fault.waiting import until

pytestmark = pytest.mark.timeout(900)

PROGRAM = """
import signal, sys, time
from pathlib import Path
from memoryd.running import running_daemon
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
with running_daemon(Path(sys.argv[1]), "--model", sys.argv[2]):
    print("ready", flush=True)
    time.sleep(3600)
"""


@pytest.mark.parametrize(("how", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_no_daemon_is_left_behind(tmp_path: Path, tiny_model: Path, how: signal.Signals, code: int) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), str(tiny_model)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n", "it ended while the daemon started"
        daemon = psutil.Process(int((tmp_path / "memoryd.lock").read_text()))
        family = [daemon, *daemon.children(recursive=True)]
        assert len(family) > 1, "it has a worker at least"
        program.send_signal(how)
        assert program.wait() == code
    until(lambda: not any(alive(process) for process in family), "the daemon, or a child of it, goes on")
    drained = "stopped" in (tmp_path / "daemon.log").read_text()
    assert drained == (how is signal.SIGTERM)


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
