"""The worker as a child process of the daemon."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from memoryd.child import ChildProcess, ChildSpec
from memoryd.config import Settings
from memoryd.errors import MemorydError, SettingsError
from memoryd.worker.client import WorkerClient

_SOCKET_PATH_LIMIT = 100  # bytes; the kernel takes 107 on Linux, 103 on macOS
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
                # Threads that wait asleep: spinning ones starve each other as soon as the machine has other work.
                env={"OMP_WAIT_POLICY": "PASSIVE"},
                ready=self._describes,
                start_timeout=_START_SECONDS,
                stop_timeout=10.0,
                probe_timeout=10.0,
            )
        )

    async def start(self) -> None:
        """As ChildProcess.start. SettingsError where the model can't be loaded: starting again would not help."""
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
                await client.describe(timeout=5.0)
            except MemorydError:
                return False
            return True

    def _last_words(self) -> str:
        lines = self.spec.log_file.read_text(errors="replace").splitlines()
        return lines[-1] if lines else f"see {self.spec.log_file}"
