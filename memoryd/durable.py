"""What is to outlive a power cut."""

from __future__ import annotations

import os
from pathlib import Path


def flush(path: str | Path) -> None:
    """Returns when a file is on the disk; of a folder, the names in it. OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
