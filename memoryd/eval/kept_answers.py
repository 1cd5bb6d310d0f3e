"""Answers kept in a file as they come, so that an evaluation of hours goes on where it was stopped.

An answer is found again by a hash of all that decides it: the prompt's embeddings themselves, the models' fingerprints, the
reader's bias and the length. So it can't be taken for that of another compressor, ratio or reader.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class KeptAnswers:
    """Reads ``path`` where it is there; without one nothing is kept. ``facts`` are what answers depend on beside the prompt."""

    def __init__(self, path: Path | None, *facts: object) -> None:
        self._path = path
        self._facts = json.dumps([str(fact) for fact in facts]).encode()
        self._answers: dict[str, str] = {}
        if path is not None and path.exists():
            text = path.read_text()
            if text and not text.endswith("\n"):  # a kill cut the last line off: what comes next begins a new one
                with path.open("a") as file:
                    file.write("\n")
            for line in text.splitlines():
                try:
                    key, answer = json.loads(line)
                except ValueError:  # such a line
                    continue
                self._answers[key] = answer

    def key(self, prompt_TD: Tensor) -> str:
        """Of a prompt, [T, d_model]."""
        return hashlib.sha256(self._facts + prompt_TD.float().cpu().numpy().tobytes()).hexdigest()

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> str:
        return self._answers[key]

    def get(self, key: str) -> str | None:
        return self._answers.get(key)

    def put(self, key: str, answer: str) -> None:
        """Keeps it for later runs too."""
        self._answers[key] = answer
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.write(json.dumps([key, answer]) + "\n")
