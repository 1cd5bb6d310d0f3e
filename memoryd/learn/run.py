"""What a run of learning has on disk while it lasts: checkpoints, metrics, the result; and run.json, which says what they saw.

Weights remember. So a run goes on only with all that it has seen written down, and begins anew where a part of that is deleted,
or where the models or the settings are others than it began with.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from memoryd.errors import Unavailable
from memoryd.learn import checkpoint

_RESULT, _NOTES = "adapter", "run.json"


class Run:
    """One directory. Blocks."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.result = directory / _RESULT
        """PEFT's files, once it is trained."""

    @property
    def trained(self) -> bool:
        return self.result.is_dir()

    @property
    def documents(self) -> list[str] | None:
        """Ids of those that it has seen; None where it does not say."""
        return self._notes().get("documents")

    @property
    def gather_time(self) -> datetime:
        """When what it was trained on was gathered, by the first of its tries: it may have taken in nothing since."""
        return datetime.fromisoformat(self._notes()["gathered"])

    @property
    def adapters(self) -> list[str]:
        """Ids that its result was given."""
        return list(self._notes().get("adapters", []))

    def begin(
        self,
        facts: Mapping[str, str],
        documents: Collection[str],
        alive: Callable[[Collection[str]], bool],
        gather_time: datetime,
    ) -> set[str]:
        """Goes on, or begins. `facts` are what it must not change while it lasts, `documents` those that it is about to see,
        gathered at `gather_time`. Returns all that it has seen then."""
        notes = self._notes()
        seen = set(notes.get("documents", []))
        if self.directory.exists() and (notes.get("facts") != dict(facts) or not alive(seen)):
            adapters = self.adapters  # may still be in blobs
            self.remove()
            notes, seen = {"adapters": adapters}, set()
        seen |= set(documents)
        gathered = notes.get("gathered") or gather_time.isoformat()
        self._write({**notes, "facts": dict(facts), "documents": sorted(seen), "gathered": gathered})
        return seen

    def name(self, adapter: str) -> None:
        """Its result is about to be written under this id."""
        self._write({**self._notes(), "adapters": [*self.adapters, adapter]})

    def metrics(self) -> list[dict[str, Any]]:
        """See `checkpoint.metrics`."""
        return checkpoint.metrics(self.directory)

    def remove(self) -> None:
        """Unavailable where something of it is left: it is tried again."""
        shutil.rmtree(self.directory, ignore_errors=True)
        if self.directory.exists():
            raise Unavailable("a run of learning cannot be removed yet", reason="RUN_IN_USE")

    def _notes(self) -> dict[str, Any]:
        try:
            notes: dict[str, Any] = json.loads((self.directory / _NOTES).read_text())
        except (OSError, ValueError):
            return {}
        return notes

    def _write(self, notes: Mapping[str, Any]) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        beside = self.directory / f"{_NOTES}.new"
        with beside.open("w") as file:
            json.dump(notes, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.directory / _NOTES)
