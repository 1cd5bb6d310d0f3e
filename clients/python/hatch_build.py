"""Makes memoryd_client/api.binpb where it is missing: a clone of the repository has none, an sdist has one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

HERE = Path(__file__).resolve().parent
DESCRIPTORS = HERE / "memoryd_client" / "api.binpb"
GENERATOR = HERE.parent.parent / "tools" / "genproto.py"


class ApiDescriptors(BuildHookInterface[Any]):
    """Runs the repository's generator before the package is built."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """What the generator needs; nothing where the descriptors are there."""
        if DESCRIPTORS.exists():
            return []
        return ["grpcio-tools>=1.80", "protovalidate>=2.1,<3", "googleapis-common-protos>=1.70"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if DESCRIPTORS.exists():
            return
        if not GENERATOR.exists():
            raise RuntimeError(f"{DESCRIPTORS.name} is missing: build from a clone of memoryd, or from its own sdist")
        subprocess.run([sys.executable, str(GENERATOR)], check=True)
