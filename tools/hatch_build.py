"""Build hook: a wheel or an editable install carries the generated gRPC code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class GenerateProto(BuildHookInterface):  # type: ignore[type-arg]  # hatchling's generic parameter is its own
    """Runs tools/genproto.py before the build collects its files."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        subprocess.run([sys.executable, str(Path(self.root) / "tools" / "genproto.py")], check=True)
