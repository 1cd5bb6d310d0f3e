"""Compressors that append learned tokens to a text and keep what the base model makes of them: the slots.

A segment is read causally, `[what earlier segments left][the segment][S learned tokens]`, and the last hidden states (after
the final norm) at the learned tokens are its compressed embeddings. Autocompressor and icae are both of this kind.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memoryd.compress.card import Gate
from memoryd.engine.adapters import ENCODER, Adapters
from memoryd.engine.base_model import BaseModel
from memoryd.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class SlotSettings:
    """`segment` tokens become as many embeddings as there are slots; with `accumulate` a later segment of a chunk sees, and
    adds to, those of the earlier ones, without it each stands alone and theirs are put one after another."""

    kind: str
    segment: int
    accumulate: bool


class SlotCompressor:
    """Implements `Compressor` on a base model that it shares, with the adapter ENCODER where there is one."""

    def __init__(self, base: BaseModel, adapters: Adapters, slots_SD: Tensor, settings: SlotSettings, gate: Gate) -> None:
        model: Any = base.model  # transformers types its models' attributes loosely
        self._transformer = model.base_model
        self._embed = model.get_input_embeddings()
        self._adapters = adapters
        self._settings = settings
        table_VD: Tensor = self._embed.weight
        self._slots_SD = slots_SD.to(table_VD)
        self.name = settings.kind
        self.gate = gate
        self.base_fingerprint = base.fingerprint
        digest = hashlib.sha256(json.dumps([settings.kind, settings.segment, settings.accumulate, base.fingerprint]).encode())
        encoder = adapters.state(ENCODER) if adapters.has(ENCODER) else {}
        for key, tensor in {"slots": slots_SD.float().cpu().contiguous(), **encoder}.items():
            digest.update(json.dumps([key, list(tensor.shape)]).encode())
            digest.update(tensor.numpy().tobytes())
        self.fingerprint = digest.hexdigest()
        self._max_positions = int(model.config.max_position_embeddings)

    @property
    def ratio(self) -> int:
        return self._settings.segment // self._slots_SD.shape[0]

    @property
    def chunk_tokens(self) -> int:
        return self._settings.segment

    @property
    def gate_passed(self) -> bool:
        return self.gate.passed

    @torch.inference_mode()
    def compress(self, chunks: Sequence[Sequence[int]]) -> list[Tensor]:
        """See `Compressor`. Tensors are [S · segments, d_model]: a chunk of up to one segment takes S whatever its length."""
        made: list[Tensor | None] = [None] * len(chunks)
        for index, chunk in enumerate(chunks):
            if not 0 < len(chunk) <= self._max_positions:
                raise InvalidArgument(f"chunk {index} has {len(chunk)} tokens, not 1 to {self._max_positions}")
            if min(chunk) < 0 or max(chunk) >= self._embed.weight.shape[0]:
                raise InvalidArgument(f"chunk {index} has an id that is no token of the base model")
        segment = self._settings.segment
        counts = [-(-len(chunk) // segment) for chunk in chunks]
        for count in sorted(set(counts)):  # those of as many segments go through together
            rows = [row for row, other in enumerate(counts) if other == count]
            left_BKD = self._slots_SD.new_zeros(len(rows), 0, self._slots_SD.shape[1])
            kept: list[Tensor] = []
            for number in range(count):
                part = [self._segment(chunks[row], number, count) for row in rows]
                new_BSD = self._read(part, left_BKD)
                kept.append(new_BSD)
                if self._settings.accumulate:
                    left_BKD = torch.cat([left_BKD, new_BSD], dim=1)
            for row, soft_KD in zip(rows, torch.cat(kept, dim=1), strict=True):
                made[row] = soft_KD
        return [soft_KD for soft_KD in made if soft_KD is not None]

    def _segment(self, chunk: Sequence[int], number: int, count: int) -> Sequence[int]:
        """Of full length but for the last; those that stand alone are as even as can be, as icae cuts them."""
        length = self._settings.segment if self._settings.accumulate else -(-len(chunk) // count)
        return chunk[number * length : (number + 1) * length]

    def _read(self, segments: Sequence[Sequence[int]], left_BKD: Tensor) -> Tensor:
        """The slots of a segment of each row, [B, S, D]. Shorter segments are padded on the left, where nobody looks."""
        B, K, S = len(segments), left_BKD.shape[1], self._slots_SD.shape[0]
        L = max(len(segment) for segment in segments)
        pads = [L - len(segment) for segment in segments]
        device = self._slots_SD.device
        ids_BL = torch.tensor([[0] * pad + list(segment) for pad, segment in zip(pads, segments, strict=True)], device=device)
        real_BL = torch.tensor([[0] * pad + [1] * (L - pad) for pad in pads], device=device)
        input_BTD = torch.cat([left_BKD, self._embed(ids_BL), self._slots_SD.expand(B, S, -1)], dim=1)
        mask_BT = torch.cat([real_BL.new_ones(B, K), real_BL, real_BL.new_ones(B, S)], dim=1)
        position_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)  # counting real positions only, so that padding moves nothing
        with self._adapters.using(ENCODER):
            output = self._transformer(
                inputs_embeds=input_BTD, attention_mask=mask_BT, position_ids=position_BT, use_cache=False
            )
        slots_BSD: Tensor = output.last_hidden_state[:, -S:]
        return slots_BSD
