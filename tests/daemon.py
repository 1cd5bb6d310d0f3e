"""A real daemon as a subprocess, for the tests: started, asked, killed, started again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

START_SECONDS = 280.0  # many times what it takes, for machines that do other work


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


class DaemonProcess:
    """`memoryd serve` on a data directory. Its log and screen go to data_dir/daemon.log."""

    def __init__(self, data_dir: Path, *flags: str, models: Path | None = None, port: int = 0) -> None:
        self.data_dir = data_dir
        self.flags = flags
        self.port = port or free_port()
        self.target = f"127.0.0.1:{self.port}"
        self.log = data_dir / "daemon.log"
        self.process: subprocess.Popen[bytes] | None = None
        data_dir.mkdir(parents=True, exist_ok=True)
        if models is not None and not (data_dir / "models").exists():
            shutil.copytree(models, data_dir / "models", copy_function=_link)  # converted once for all tests

    def command(self) -> list[str]:
        return [
            *(sys.executable, "-m", "memoryd", "serve", "--data-dir", str(self.data_dir), "--listen", self.target),
            *("--log-format", "json", *self.flags),
        ]

    def start(self, wait: bool = True) -> Self:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MEMORYD_")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command(), stdout=log, stderr=log, env=environment)
        if wait:
            try:
                self.wait_ready()
            except BaseException:
                self.kill()
                raise
        return self

    def wait_ready(self, seconds: float = START_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not self.serving():
            if self.process is None or self.process.poll() is not None:
                raise AssertionError(f"the daemon ended while starting:\n{self.log.read_text()[-3000:]}")
            if time.monotonic() > deadline:
                raise AssertionError(f"the daemon is not ready:\n{self.log.read_text()[-3000:]}")
            time.sleep(0.05)

    def serving(self) -> bool:
        with grpc.insecure_channel(self.target) as channel:
            try:
                check = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2)
            except grpc.RpcError:
                return False
            return bool(check.status == health_pb2.HealthCheckResponse.SERVING)

    def kill(self) -> None:
        """kill -9, as a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self, seconds: float = 40.0) -> int:
        """SIGTERM; the exit code."""
        if self.process is None or self.process.poll() is not None:
            return 0 if self.process is None else int(self.process.returncode)
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()

    def child(self, name: str) -> psutil.Process:
        """The process of a child by what its command line holds: `milvus_lite`, `valkey`, `memoryd.worker`."""
        assert self.process is not None
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if any(name in part for part in child.cmdline()):
                    return child
            except psutil.NoSuchProcess:
                continue
        raise AssertionError(f"no child {name}")

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()
