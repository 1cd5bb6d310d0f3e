"""The worker as a child process of the daemon.

The daemon knows the worker's models from its first start on, and works with what it knows (`models.py`). So a worker that
comes back with others, since their files were written over, is not let in: it finds that out itself, before it answers
anything, and ends. It is started again, with back-off, until the files are what they were or the daemon is restarted.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from memoryd.child import ChildProcess, ChildSpec
from memoryd.config import Settings
from memoryd.errors import MemorydError, SettingsError
from memoryd.worker.client import WorkerClient, identity

_SOCKET_PATH_LIMIT = 100  # bytes; the kernel takes 107 on Linux, 103 on macOS
_PROBE_SECONDS = 10.0  # on a busy machine a worker may be slow to answer: to restart it then would end what it works on
_START_SECONDS = 600.0  # a large base model is read from disk, and converted the first time
_EX_CONFIG = 78


class WorkerProcess(ChildProcess):
    """`python -m memoryd.worker` on a Unix socket that only its owner may use; ready once its models are loaded."""

    def __init__(self, settings: Settings) -> None:
        self.socket = settings.data_dir / "worker.sock"
        self._socket_dir: Path | None = None
        if len(bytes(self.socket)) > _SOCKET_PATH_LIMIT:
            self._socket_dir = Path(tempfile.mkdtemp(prefix="memoryd-"))
            self.socket = self._socket_dir / "worker.sock"
        self._model = settings.model
        self._expects = False
        super().__init__(
            ChildSpec(
                name="worker",
                command=(
                    *(sys.executable, "-m", "memoryd.worker", "--socket", str(self.socket)),
                    *("--data-dir", str(settings.data_dir), "--model", settings.model, "--ratio", str(settings.ratio)),
                    *(("--compressor", str(settings.compressor)) if settings.compressor else ()),
                    *("--compress-tokens", str(settings.compress_tokens), "--threads", str(settings.threads)),
                    *("--device", settings.device, "--dtype", settings.dtype, "--parent", str(os.getpid())),
                    *("--log-level", settings.log_level, "--log-format", "json"),
                ),
                run_dir=settings.data_dir,
                ready=self._describes,
                start_timeout=_START_SECONDS,
                stop_timeout=10.0,
                probe_timeout=_PROBE_SECONDS,
            )
        )

    async def start(self) -> None:
        """As ChildProcess.start. SettingsError where the models can't be loaded, or are not those of the first start: starting
        again would not help before something else is done."""
        try:
            await super().start()
        except MemorydError:
            if self.exit_code == _EX_CONFIG:
                raise SettingsError(
                    f"model: {self._model} can't be loaded: {self._last_words()}", details={"key": "model"}
                ) from None
            raise

    async def stop(self) -> None:
        """As ChildProcess.stop; nothing of it is left."""
        await super().stop()
        self.socket.unlink(missing_ok=True)
        if self._socket_dir is not None:
            shutil.rmtree(self._socket_dir, ignore_errors=True)

    async def _describes(self) -> bool:
        async with WorkerClient(self.socket) as client:
            try:
                info = await client.describe(timeout=_PROBE_SECONDS)
            except MemorydError:
                return False
        if not self._expects:
            self._expects = True
            self.spec = replace(self.spec, command=(*self.spec.command, "--expect", identity(info)))
        return True

    def _last_words(self) -> str:
        lines = self.spec.log_file.read_text(errors="replace").splitlines()
        return lines[-1] if lines else f"see {self.spec.log_file}"
