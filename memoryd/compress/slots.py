"""Compressors that append learned tokens to a text and keep what the base model makes of them: the slots.

A segment is read causally, `[what earlier segments left][the segment][S learned tokens]`, and the last hidden states (after
the final norm) at the learned tokens are its compressed embeddings. Autocompressor and icae are both of this kind; what
memoryd trains of them lies in a directory with a card (`card.py`), the learned tokens and the encoder's adapter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from memoryd.compress.base import check_chunks
from memoryd.compress.card import Card, Gate, fingerprint_of, write_card
from memoryd.engine.adapters import ENCODER, Adapters, stored
from memoryd.engine.base_model import BaseModel
from memoryd.errors import DataLoss, InvalidArgument

WEIGHTS = "slots.safetensors"


@dataclass(frozen=True, slots=True)
class SlotSettings:
    """`segment` tokens become as many embeddings as there are slots; with `accumulate` a later segment of a chunk sees, and
    adds to, those of the earlier ones, without it each stands alone and theirs are put one after another."""

    kind: str
    segment: int
    accumulate: bool


class LearnedTokens(nn.Module):
    """`slots`, [S, d_model] float32: what is appended to a segment."""

    def __init__(self, slots_SD: Tensor) -> None:
        super().__init__()
        self.slots = nn.Parameter(slots_SD.detach().float().clone())


class SlotCompressor:
    """Implements `Compressor` on a base model that it shares, with the adapter ENCODER where there is one."""

    def __init__(
        self,
        base: BaseModel,
        adapters: Adapters,
        tokens: LearnedTokens,
        settings: SlotSettings,
        gate: Gate,
        encoder: Mapping[str, Tensor] | None = None,
    ) -> None:
        """`encoder`: the weights of ENCODER as they are stored, since `adapters` holds them in the base model's dtype, and the
        fingerprint must be the same on every device. None while they are trained."""
        model: Any = base.model  # transformers types its models' attributes loosely
        self._transformer = model.base_model
        self._embed = model.get_input_embeddings()
        self._adapters = adapters
        self._settings = settings
        self.tokens = tokens.to(self._embed.weight.device)
        self._count = tokens.slots.shape[0]
        self.name = settings.kind
        self.gate = gate
        if encoder is None:
            encoder = adapters.state(ENCODER) if adapters.has(ENCODER) else {}
        facts = [settings.kind, settings.segment, settings.accumulate, base.fingerprint]
        self.fingerprint = fingerprint_of(facts, {"slots": tokens.slots, **encoder})
        self._max_positions = int(model.config.max_position_embeddings)

    @property
    def ratio(self) -> int:
        return self._settings.segment // self._count

    @property
    def chunk_tokens(self) -> int:
        return self._settings.segment

    @property
    def gate_passed(self) -> bool:
        return self.gate.passed

    @torch.inference_mode()
    def compress(self, chunks: Sequence[Sequence[int]]) -> list[Tensor]:
        """See `Compressor`. Tensors are [S · segments, d_model]: a chunk of up to one segment takes S whatever its length."""
        return self.encode(chunks, self.ratio)

    def slots(self, tokens: int, ratio: int) -> int:
        """How many compressed embeddings a chunk of so many tokens becomes; `ratio` can only be this compressor's own."""
        if ratio != self.ratio:
            raise InvalidArgument(f"the {self.name} has one ratio, {self.ratio}, and not {ratio}")
        return -(-tokens // self._settings.segment) * self._count

    def positions(self, tokens: int) -> int:
        """See `base.positions`."""
        segments = -(-tokens // self._settings.segment)
        slots = self._count * (segments if self._settings.accumulate else 1)  # the last segment sees those of all before it
        return min(tokens, self._settings.segment) + slots

    def encode(self, chunks: Sequence[Sequence[int]], ratio: int) -> list[Tensor]:
        """`compress` with gradients: what training runs."""
        made: list[Tensor | None] = [None] * len(chunks)
        check_chunks(chunks, self._max_positions, self._embed.weight.shape[0])
        counts = [self.slots(len(chunk), ratio) // self._count for chunk in chunks]
        slots_SD = self.tokens.slots.to(self._embed.weight.dtype)
        for count in sorted(set(counts)):  # those of as many segments go through together
            rows = [row for row, other in enumerate(counts) if other == count]
            left_BKD = slots_SD.new_zeros(len(rows), 0, slots_SD.shape[1])
            kept: list[Tensor] = []
            for number in range(count):
                part = [self._segment(chunks[row], number, count) for row in rows]
                new_BSD = self._read(part, left_BKD, slots_SD)
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

    def _read(self, segments: Sequence[Sequence[int]], left_BKD: Tensor, slots_SD: Tensor) -> Tensor:
        """The slots of a segment of each row, [B, S, D]. Shorter segments are padded on the left, where nobody looks."""
        B, K, S = len(segments), left_BKD.shape[1], slots_SD.shape[0]
        L = max(len(segment) for segment in segments)
        pads = [L - len(segment) for segment in segments]
        device = slots_SD.device
        ids_BL = torch.tensor([[0] * pad + list(segment) for pad, segment in zip(pads, segments, strict=True)], device=device)
        real_BL = torch.tensor([[0] * pad + [1] * (L - pad) for pad in pads], device=device)
        input_BTD = torch.cat([left_BKD, self._embed(ids_BL), slots_SD.expand(B, S, -1)], dim=1)
        mask_BT = torch.cat([real_BL.new_ones(B, K), real_BL, real_BL.new_ones(B, S)], dim=1)
        position_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)  # counting real positions only, so that padding moves nothing
        with self._adapters.using(ENCODER):
            output = self._transformer(
                inputs_embeds=input_BTD, attention_mask=mask_BT, position_ids=position_BT, use_cache=False
            )
        slots_BSD: Tensor = output.last_hidden_state[:, -S:]
        return slots_BSD


def save(
    directory: Path,
    base: BaseModel,
    base_name: str,
    adapters: Adapters,
    tokens: LearnedTokens,
    settings: SlotSettings,
    gates: Mapping[int, Gate],
) -> None:
    """Write the directory that `load` reads: learned tokens in float32, encoder in float16."""
    about = {key: value for key, value in asdict(settings).items() if key != "kind"}
    write_card(directory, Card(settings.kind, base.fingerprint, gates, about))
    save_file({"slots": tokens.slots.detach().cpu().contiguous()}, directory / WEIGHTS)
    if adapters.has(ENCODER):
        adapters.save(ENCODER, directory / ENCODER, base_name)


def load(directory: Path, card: Card, base: BaseModel, adapters: Adapters) -> SlotCompressor:
    """The compressor that `save` wrote; its encoder becomes the adapter ENCODER of the base model.

    Raises FingerprintMismatch where it was trained on another base model, DataLoss where it cannot be read.
    """
    card.check_base(directory, base.fingerprint)
    try:
        slots_SD = load_file(directory / WEIGHTS)["slots"]
        settings = SlotSettings(card.kind, int(card.settings["segment"]), bool(card.settings["accumulate"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise DataLoss(f"compressor in {directory} has no readable {WEIGHTS} or settings: {error}") from error
    if slots_SD.ndim != 2 or slots_SD.shape[1] != base.d_model or not 0 < slots_SD.shape[0] <= settings.segment:
        raise DataLoss(f"compressor in {directory} has slots of shape {tuple(slots_SD.shape)}")
    encoder: Mapping[str, Tensor] = {}
    if (directory / ENCODER).is_dir():
        adapters.load(ENCODER, directory / ENCODER)
        encoder = stored(directory / ENCODER)
    compressor = SlotCompressor(base, adapters, LearnedTokens(slots_SD), settings, Gate(), encoder)
    compressor.gate = card.gate(directory, compressor.ratio, compressor.fingerprint)
    return compressor
