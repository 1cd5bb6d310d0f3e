"""The pooled compressor: a non-causal pass of the base model, mean pooling in groups of r, a projector.

For a group of r tokens let e be the mean of their token embeddings (in units of the embedding table's RMS) and h the
mean of their last hidden states. The compressed embedding is

    scale · table_rms · rmsnorm(e + projector(h)),        projector = RMSNorm, linear, GELU, linear

The last linear layer starts at zero. Untrained it is thus the mean of the group's token embeddings, which a base model
can already read in part, and training learns a correction to it; in short probes nothing else started from less loss.
Normalising the sum, and not only scaling it, keeps the output's RMS at that of real token embeddings whatever was
learned, since pooling shrinks vectors and the frozen decoder has only ever seen that RMS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import gelu, rms_norm

from memoryd.compress.base import check_chunks
from memoryd.compress.card import RATIOS, Card, Gate, fingerprint_of, read_card, write_card
from memoryd.compress.chunker import Limits
from memoryd.engine.adapters import ENCODER, Adapters
from memoryd.engine.base_model import BaseModel
from memoryd.errors import DataLoss, FailedPrecondition, InvalidArgument

KIND = "pooled"
_WEIGHTS = "projector.safetensors"
_SEED = 20240411  # of the first weights; any number, fixed so that everybody's untrained compressor has one fingerprint


class Projector(nn.Module):
    """h [.., d_model] to the correction [.., d_model]; `scale` is that of the compressed embedding as a whole."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(d_model, eps=1e-6)
        self.up = nn.Linear(d_model, d_model)
        self.down = nn.Linear(d_model, d_model)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, h_D: Tensor) -> Tensor:
        correction_D: Tensor = self.down(gelu(self.up(self.norm(h_D))))
        return correction_D

    @classmethod
    def untrained(cls, d_model: int) -> Projector:
        """First weights: `down` is zero, `up` uniform from numpy's PCG64, whose stream is the same everywhere."""
        projector = cls(d_model)
        bound = 1 / np.sqrt(d_model)
        up = np.random.Generator(np.random.PCG64(_SEED)).random((d_model, d_model), dtype=np.float32)
        with torch.no_grad():
            projector.up.weight.copy_(torch.from_numpy((up * 2 - 1) * np.float32(bound)))
            for parameter in (projector.up.bias, projector.down.weight, projector.down.bias):
                parameter.zero_()
        return projector


class PooledCompressor:
    """See the module. Implements `Compressor` on a base model that it shares with others, through that model's adapters."""

    name = KIND
    chunk_tokens = Limits().chunk_tokens

    def __init__(self, base: BaseModel, adapters: Adapters, projector: Projector, ratio: int, gate: Gate) -> None:
        """The encoder is the base model with the adapter ENCODER; without one, the base model itself."""
        if ratio not in RATIOS:
            raise InvalidArgument(f"ratio {ratio} is not one of {', '.join(map(str, RATIOS))}")
        model: Any = base.model  # transformers types its models' attributes loosely
        self._transformer = model.base_model  # without the head: no logits are needed
        self._embed = model.get_input_embeddings()
        self._adapters = adapters
        table_VD: Tensor = self._embed.weight
        self.ratio = ratio
        self.gate = gate
        self.projector = projector.to(device=table_VD.device, dtype=torch.float32)
        encoder = adapters.state(ENCODER) if adapters.has(ENCODER) else {}
        self.fingerprint = fingerprint_of([KIND, ratio, base.fingerprint], _weights(projector) | encoder)
        self._table_rms = float(table_VD.float().pow(2).mean().sqrt())
        self._max_positions = int(model.config.max_position_embeddings)

    @classmethod
    def untrained(cls, base: BaseModel, adapters: Adapters, ratio: int) -> PooledCompressor:
        """The compressor of the first weights, which has passed no gate."""
        return cls(base, adapters, Projector.untrained(base.d_model).eval().requires_grad_(False), ratio, Gate())

    @classmethod
    def load(cls, directory: Path, base: BaseModel, adapters: Adapters, ratio: int) -> PooledCompressor:
        """The compressor that `save` wrote; its encoder becomes the adapter ENCODER of the base model.

        Raises FingerprintMismatch where it was trained on another base model, FailedPrecondition where the directory
        is of another kind, DataLoss where it cannot be read.
        """
        card = read_card(directory)
        if card.kind != KIND:
            raise FailedPrecondition(f"compressor in {directory} is of kind {card.kind!r}, not {KIND!r}")
        card.check_base(directory, base.fingerprint)
        projector = Projector(base.d_model)
        try:
            projector.load_state_dict(load_file(directory / _WEIGHTS))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise DataLoss(f"compressor in {directory} has no readable {_WEIGHTS}: {error}") from error
        if (directory / ENCODER).is_dir():
            adapters.load(ENCODER, directory / ENCODER)
        return cls(base, adapters, projector.eval().requires_grad_(False), ratio, card.gate(ratio))

    @property
    def gate_passed(self) -> bool:
        return self.gate.passed

    @torch.inference_mode()
    def compress(self, chunks: Sequence[Sequence[int]]) -> list[Tensor]:
        """See `Compressor`. Tensors are [ceil(tokens / ratio), d_model] in the base model's dtype, on its device."""
        return self.encode(chunks, self.ratio) if chunks else []

    def slots(self, tokens: int, ratio: int) -> int:
        """How many compressed embeddings a chunk of so many tokens becomes."""
        return -(-tokens // ratio)

    def encode(self, chunks: Sequence[Sequence[int]], ratio: int) -> list[Tensor]:
        """`compress` at any ratio, with gradients: what training runs."""
        check_chunks(chunks, self._max_positions, self._embed.weight.shape[0])
        lengths = [len(chunk) for chunk in chunks]
        B, r = len(chunks), ratio
        L = -(-max(lengths) // r) * r  # whole groups
        ids_BL = torch.zeros(B, L, dtype=torch.long)
        for row, chunk in enumerate(chunks):
            ids_BL[row, : len(chunk)] = torch.tensor(chunk)
        real_BL = torch.arange(L) < torch.tensor(lengths)[:, None]

        device = self._embed.weight.device
        ids_BL, real_BL = ids_BL.to(device), real_BL.to(device)
        embed_BLD = self._embed(ids_BL)
        # A mask of four dimensions is used as it is, instead of a causal one: every position sees the real ones.
        mask_B1LL = real_BL[:, None, None, :].expand(B, 1, L, L)
        with self._adapters.using(ENCODER):
            encoded = self._transformer(inputs_embeds=embed_BLD, attention_mask=mask_B1LL, use_cache=False)

        e_BGD = _pool(embed_BLD, real_BL, r) / self._table_rms
        soft_BGD = rms_norm(e_BGD + self.projector(_pool(encoded.last_hidden_state, real_BL, r)), (embed_BLD.shape[-1],))
        soft_BGD = (self.projector.scale * self._table_rms * soft_BGD).to(embed_BLD.dtype)
        return [soft_GD[: -(-length // r)] for soft_GD, length in zip(soft_BGD, lengths, strict=True)]


def save(
    directory: Path, base: BaseModel, base_name: str, adapters: Adapters, projector: Projector, gates: Mapping[int, Gate]
) -> None:
    """Write the directory that `PooledCompressor.load` reads: projector in float32, encoder in float16."""
    write_card(directory, Card(KIND, base.fingerprint, gates))
    save_file(_weights(projector), directory / _WEIGHTS)
    if adapters.has(ENCODER):
        adapters.save(ENCODER, directory / ENCODER, base_name)


def _pool(x_BLD: Tensor, real_BL: Tensor, r: int) -> Tensor:
    """Means over the real positions of each group of r, [B, L/r, D] float32; zero where a group has none."""
    B, L, D = x_BLD.shape
    weight_BGr1 = real_BL.view(B, L // r, r, 1).float()
    sum_BGD = (x_BLD.view(B, L // r, r, D).float() * weight_BGr1).sum(2)
    return sum_BGD / weight_BGr1.sum(2).clamp(min=1)


def _weights(projector: Projector) -> dict[str, Tensor]:
    return {name: tensor.float().cpu().contiguous() for name, tensor in sorted(projector.state_dict().items())}
