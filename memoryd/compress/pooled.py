"""The pooled compressor: a non-causal pass of the base model, pooling in segments, a projector.

A chunk of L tokens becomes k = ceil(L / r) compressed embeddings, each of a segment that ends with a token that was chosen: the
k of the highest score. For a segment let e be the mean of its token embeddings, weighted by the softmax of their scores, and h
the mean of its last hidden states. Its compressed embedding is

    scale · table_rms · rmsnorm(rmsnorm(e) + projector(h)),        projector = RMSNorm, linear, GELU, linear
    score of a token = mean over its word of weigh · rmsnorm(hidden state three fifths up)

A name or a number of several tokens is of no use in part, so the tokens of a word have one score, and are chosen together.
Three fifths up, because what a word is for in its text can be told there best (docs/structure.md).

The last linear layer starts at zero, and so do the scores: untrained it is the mean of the token embeddings of groups of r
tokens, which a base model can already read in part. Training begins the scores by telling the words that answers are made of
from the others (`learn/scores.py`). So those begin as nearly what they are, while the others share slots. Of the pass, what
nothing depends on is left out: all of it as long as both layers that read hidden states are zero and do not learn, and the
upper two fifths as long as the last linear layer is.

Normalising the sum, and not only scaling it, keeps the output's RMS at that of real token embeddings whatever was
learned, since pooling shrinks vectors and the frozen decoder has only ever seen that RMS.
"""

from __future__ import annotations

import copy
import math
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
from memoryd.compress.words import BEGINS, mean_of_words, words_of
from memoryd.engine.adapters import ENCODER, Adapters, stored
from memoryd.engine.base_model import BaseModel
from memoryd.errors import DataLoss, FailedPrecondition, InvalidArgument

KIND = "pooled"
WEIGHTS = "projector.safetensors"
_SEED = 20240411  # of the first weights; any number, fixed so that everybody's untrained compressor has one fingerprint


class Projector(nn.Module):
    """h [.., d_model] to the correction [.., d_model]; `scale` is that of the compressed embedding as a whole; `weigh` scores
    tokens, and `spelling` [vocabulary] says how each takes part in a word (`compress/words.py`)."""

    def __init__(self, d_model: int, vocabulary: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(d_model, eps=1e-6)
        self.up = nn.Linear(d_model, d_model)
        self.down = nn.Linear(d_model, d_model)
        self.weigh = nn.Linear(d_model, 1, bias=False)
        self.scale = nn.Parameter(torch.ones(()))
        self.spelling: Tensor
        self.register_buffer("spelling", torch.full((vocabulary,), BEGINS, dtype=torch.uint8))

    def scores(self, ids_BL: Tensor, real_BL: Tensor, middle_BLD: Tensor) -> Tensor:
        """How much each token is worth a slot of its own, [B, L]; the same for all tokens of a word, nothing for padding."""
        weighed_BL1: Tensor = self.weigh(rms_norm(middle_BLD, (middle_BLD.shape[-1],)))
        word_BL = words_of(self.spelling[ids_BL].masked_fill(~real_BL, BEGINS))
        return mean_of_words(weighed_BL1[..., 0], word_BL).masked_fill(~real_BL, float("-inf"))

    @property
    def scores_words(self) -> bool:
        """Whether the hidden states three fifths up change what is made, or what is learned."""
        return bool(self.weigh.weight.any()) or self.weigh.weight.requires_grad

    @property
    def corrects(self) -> bool:
        """Whether the last hidden states change what is made, or what is learned."""
        return bool(self.down.weight.any()) or self.down.weight.requires_grad

    @property
    def sees(self) -> bool:
        """Whether hidden states change what is made."""
        return any(bool(layer.weight.any()) for layer in (self.down, self.weigh))

    def forward(self, h_D: Tensor) -> Tensor:
        correction_D: Tensor = self.down(gelu(self.up(self.norm(h_D))))
        return correction_D

    @classmethod
    def untrained(cls, d_model: int, vocabulary: int) -> Projector:
        """First weights: `down` and the scores zero, `up` uniform from numpy's PCG64, whose stream is the same everywhere."""
        projector = cls(d_model, vocabulary)
        bound = 1 / np.sqrt(d_model)
        up = np.random.Generator(np.random.PCG64(_SEED)).random((d_model, d_model), dtype=np.float32)
        with torch.no_grad():
            projector.up.weight.copy_(torch.from_numpy((up * 2 - 1) * np.float32(bound)))
            for parameter in (projector.up.bias, projector.down.weight, projector.down.bias, projector.weigh.weight):
                parameter.zero_()
        return projector


class PooledCompressor:
    """See the module. Implements `Compressor` on a base model that it shares with others, through that model's adapters."""

    name = KIND
    chunk_tokens = Limits().chunk_tokens

    def __init__(
        self,
        base: BaseModel,
        adapters: Adapters,
        projector: Projector,
        ratio: int,
        gate: Gate,
        encoder: Mapping[str, Tensor] | None = None,
    ) -> None:
        """The encoder is the base model with the adapter ENCODER; without one, the base model itself.

        `encoder`: the weights of ENCODER as they are stored, since `adapters` holds them in the base model's dtype, and the
        fingerprint must be the same on every device. None while they are trained.
        """
        if ratio not in RATIOS:
            raise InvalidArgument(f"ratio {ratio} is not one of {', '.join(map(str, RATIOS))}")
        model: Any = base.model  # transformers types its models' attributes loosely
        self._transformer: Any = model.base_model  # without the head: no logits are needed
        self._embed = model.get_input_embeddings()
        self._adapters = adapters
        table_VD: Tensor = self._embed.weight
        self.ratio = ratio
        self.gate = gate
        self.projector = projector.to(device=table_VD.device, dtype=torch.float32)
        if encoder is None:
            encoder = adapters.state(ENCODER) if adapters.has(ENCODER) else {}
        self.fingerprint = fingerprint_of([KIND, ratio, base.fingerprint], {**_weights(projector), **encoder})
        self._table_rms = float(table_VD.float().pow(2).mean().sqrt())
        layers: nn.ModuleList = next(
            m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == model.config.num_hidden_layers
        )
        lower = layers[: (len(layers) + 1) * 3 // 5]
        self._middle = lower[-1]  # what leaves it is three fifths up
        self._lower = _with_layers(self._transformer, layers, lower)
        self._max_positions = int(model.config.max_position_embeddings)

    @classmethod
    def untrained(cls, base: BaseModel, adapters: Adapters, ratio: int) -> PooledCompressor:
        """The compressor of the first weights, which has passed no gate."""
        return cls(
            base, adapters, Projector.untrained(base.d_model, vocabulary_of(base)).eval().requires_grad_(False), ratio, Gate()
        )

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
        projector = Projector(base.d_model, vocabulary_of(base))
        try:
            projector.load_state_dict(load_file(directory / WEIGHTS))
        except (OSError, SafetensorError, RuntimeError) as error:
            raise DataLoss(f"compressor in {directory} has no readable {WEIGHTS}: {error}") from error
        encoder: Mapping[str, Tensor] = {}
        if (directory / ENCODER).is_dir():
            adapters.load(ENCODER, directory / ENCODER)
            encoder = stored(directory / ENCODER)
        made = cls(base, adapters, projector.eval().requires_grad_(False), ratio, Gate(), encoder)
        made.gate = card.gate(directory, ratio, made.fingerprint)
        return made

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
        return self.encode_at(chunks, [ratio])[ratio]

    def encode_at(self, chunks: Sequence[Sequence[int]], ratios: Sequence[int]) -> dict[int, list[Tensor]]:
        """`encode` at each of these ratios, from one pass of the encoder."""
        check_chunks(chunks, self._max_positions, self._embed.weight.shape[0])
        lengths = [len(chunk) for chunk in chunks]
        B, r = len(chunks), math.lcm(*ratios)
        L = -(-max(lengths) // r) * r  # whole groups
        ids_BL = torch.zeros(B, L, dtype=torch.long)
        for row, chunk in enumerate(chunks):
            ids_BL[row, : len(chunk)] = torch.tensor(chunk)
        real_BL = torch.arange(L) < torch.tensor(lengths)[:, None]

        device = self._embed.weight.device
        ids_BL, real_BL = ids_BL.to(device), real_BL.to(device)
        embed_BLD = self._embed(ids_BL)
        middle_BLD, h_BLD = self._hidden(embed_BLD, real_BL)
        score_BL = self.projector.scores(ids_BL, real_BL, middle_BLD)
        length_B = torch.tensor(lengths, device=device)
        soft = {ratio: self._pooled(embed_BLD, h_BLD, score_BL, real_BL, length_B, ratio) for ratio in ratios}
        return {
            ratio: [soft_GD[: -(-length // ratio)] for soft_GD, length in zip(soft_BGD, lengths, strict=True)]
            for ratio, soft_BGD in soft.items()
        }

    def _pooled(self, embed_BLD: Tensor, h_BLD: Tensor, score_BL: Tensor, real_BL: Tensor, length_B: Tensor, r: int) -> Tensor:
        """Compressed embeddings, [B, L / r, D]; those beyond a row's own are of nothing."""
        G = score_BL.shape[1] // r
        segment_BL = _segments(score_BL.detach(), length_B, r)
        weight_BL = _softmax(score_BL, segment_BL, G).masked_fill(~real_BL, 0.0)
        e_BGD = _mean(embed_BLD.float(), weight_BL, segment_BL, G)
        correction_BGD = self.projector(_mean(h_BLD, real_BL.float(), segment_BL, G))
        width = (embed_BLD.shape[-1],)
        soft_BGD = rms_norm(rms_norm(e_BGD, width) + correction_BGD, width)
        return (self.projector.scale * self._table_rms * soft_BGD).to(embed_BLD.dtype)

    @torch.inference_mode()
    def middle(self, chunk: Sequence[int]) -> Tensor:
        """The hidden states by which its tokens are scored, [tokens, d_model], in float32."""
        device = self._embed.weight.device
        ids_BL = torch.tensor([list(chunk)], device=device)
        middle_BLD, _ = self._encoded(self._lower, self._embed(ids_BL), torch.ones_like(ids_BL, dtype=torch.bool))
        return middle_BLD[0]

    def _hidden(self, embed_BLD: Tensor, real_BL: Tensor) -> tuple[Tensor, Tensor]:
        """The hidden states three fifths up and the last ones, both [B, L, D] in float32; zeros where nothing depends on
        them."""
        nothing_BLD = torch.zeros_like(embed_BLD, dtype=torch.float32)
        if self.projector.corrects:
            return self._encoded(self._transformer, embed_BLD, real_BL)
        if self.projector.scores_words:
            middle_BLD, _ = self._encoded(self._lower, embed_BLD, real_BL)
            return middle_BLD, nothing_BLD
        return nothing_BLD, nothing_BLD

    def _encoded(self, transformer: Any, embed_BLD: Tensor, real_BL: Tensor) -> tuple[Tensor, Tensor]:
        """What leaves the layer three fifths up, and what leaves this transformer."""
        B, L = real_BL.shape
        # A mask of four dimensions is used as it is, instead of a causal one: every position sees the real ones.
        mask_B1LL = real_BL[:, None, None, :].expand(B, 1, L, L)
        with self._adapters.using(*(() if self._adapters.idle(ENCODER) else (ENCODER,))):
            # To ask for all hidden states would keep those of every layer: measured, 0.72 of a plain pass's rate for 0.87.
            middle: list[Tensor] = []
            hook = self._middle.register_forward_hook(lambda _, __, output: middle.append(_first(output)))
            try:
                encoded = transformer(inputs_embeds=embed_BLD, attention_mask=mask_B1LL, use_cache=False)
            finally:
                hook.remove()
        return middle[0].float(), encoded.last_hidden_state.float()


def save(
    directory: Path, base: BaseModel, base_name: str, adapters: Adapters, projector: Projector, gates: Mapping[int, Gate]
) -> None:
    """Write the directory that `PooledCompressor.load` reads: the projector in float32, and an encoder in float16 where one was
    trained and is seen."""
    write_card(directory, Card(KIND, base.fingerprint, gates))
    save_file(_weights(projector), directory / WEIGHTS)
    if adapters.has(ENCODER) and projector.sees and adapters.trained(ENCODER):
        adapters.save(ENCODER, directory / ENCODER, base_name)


def _with_layers(transformer: Any, layers: nn.ModuleList, fewer: nn.ModuleList) -> Any:
    """The same transformer, of fewer of its layers: all that it is made of is shared."""
    short = copy.copy(transformer)
    short._modules = {name: fewer if module is layers else module for name, module in transformer._modules.items()}
    return short


def _first(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """A layer's hidden states: some models' layers give them out with more."""
    return output[0] if isinstance(output, tuple) else output


def vocabulary_of(base: BaseModel) -> int:
    """Rows of its table of token embeddings."""
    model: Any = base.model
    return int(model.get_input_embeddings().weight.shape[0])


def _segments(score_BL: Tensor, length_B: Tensor, r: int) -> Tensor:
    """The segment of each token, [B, L]: as many for a row as groups of r would be; for padding one that is no row's."""
    L = score_BL.shape[1]
    at_L = torch.arange(L, device=score_BL.device)
    real_BL = at_L < length_B[:, None]
    # Among equals those that end a group of r: where nothing is scored, segments are groups.
    ends_BL = (at_L % r == r - 1) | (at_L == length_B[:, None] - 1)
    rank_BL = (score_BL + 1e-6 * ends_BL).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    count_B1 = ((length_B + r - 1) // r)[:, None]
    chosen_BL = ((rank_BL < count_B1) & real_BL).long()
    before_BL = chosen_BL.cumsum(1) - chosen_BL
    return torch.where(real_BL, torch.minimum(before_BL, count_B1 - 1), L // r)


def _softmax(score_BL: Tensor, segment_BL: Tensor, G: int) -> Tensor:
    """exp(score), scaled so that the largest of each segment is 1: as much of a softmax as a weighted mean needs."""
    lowest_BG = torch.full((len(score_BL), G + 1), float("-inf"), device=score_BL.device)
    top_BG = lowest_BG.scatter_reduce(1, segment_BL, score_BL.detach(), "amax")
    return torch.exp(score_BL - top_BG.gather(1, segment_BL).nan_to_num(neginf=0.0))


def _mean(x_BLD: Tensor, weight_BL: Tensor, segment_BL: Tensor, G: int) -> Tensor:
    """Weighted means over each of the first G segments, [B, G, D]; zero where a segment has no token."""
    B, _, D = x_BLD.shape
    index_BLD = segment_BL[..., None].expand(-1, -1, D)
    sum_BGD = x_BLD.new_zeros(B, G + 1, D).scatter_add(1, index_BLD, x_BLD * weight_BL[..., None])
    count_BG = weight_BL.new_zeros(B, G + 1).scatter_add(1, segment_BL, weight_BL)
    return (sum_BGD / count_BG.clamp(min=1e-6)[..., None])[:, :G]


def _weights(projector: Projector) -> dict[str, Tensor]:
    state = sorted(projector.state_dict().items())
    return {name: (t.float() if t.is_floating_point() else t).cpu().contiguous() for name, t in state}
