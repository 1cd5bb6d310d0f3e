"""How torch's threads wait for each other, in whatever command of memoryd."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(("given", "policy"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_threads_wait_asleep_unless_told_otherwise(given: dict[str, str], policy: str) -> None:
    inherited = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", "import memoryd, torch"],
        env=inherited | given | {"OMP_DISPLAY_ENV": "TRUE"},  # OpenMP tells what it goes by, as it is loaded
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    assert f"OMP_WAIT_POLICY = '{policy}'" in done.stderr
