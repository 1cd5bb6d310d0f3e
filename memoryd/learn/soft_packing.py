"""Packs whose context may hold compressed embeddings, many of them in one pass.

As `packing`, with two differences: a piece of the context may be a chunk, whose place its compressed embeddings take, and
packs of like length go through together, padded on the right. Reconstruction and continuation are packs with one question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from memoryd.learn.packing import decoder_of, packed_mask

if TYPE_CHECKING:
    import torch

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SoftPack:
    """``context`` in order: token ids, or the number of a chunk in ``chunks``. Each question is (what follows the context
    up to the answer, the answer with its end); the first may be empty, then the answer continues the context."""

    chunks: tuple[Ids, ...]
    context: tuple[Ids | int, ...]
    questions: tuple[tuple[Ids, Ids], ...]

    @property
    def source_tokens(self) -> int:
        return sum(len(chunk) for chunk in self.chunks)


@dataclass(frozen=True, slots=True)
class Predicted:
    """``logits_AV`` of every answer token of all packs, what they should be, and what each counts: weights sum to the number
    of packs, within a pack every question counts alike, and within a question every token."""

    logits_AV: torch.Tensor
    targets_A: torch.Tensor
    weights_A: torch.Tensor
    first_Q: torch.Tensor
    """Where among them the first token of each answer is."""

    def leaning(self, token: int, bias: float) -> Predicted:
        """With so much more for this token where an answer begins, as where answers are given (`engine.reader.Refusal`): logit
        adjustment (Menon et al. 2021)."""
        more_AV = self.logits_AV.new_zeros(self.logits_AV.shape)
        more_AV[self.first_Q, token] = bias
        return replace(self, logits_AV=self.logits_AV + more_AV)

    def loss(self) -> torch.Tensor:
        """Mean over packs of the mean cross-entropy of their answers. Scalar."""
        import torch.nn.functional as F

        losses_A = F.cross_entropy(self.logits_AV.float(), self.targets_A, reduction="none")
        return (losses_A * self.weights_A).sum() / self.weights_A.sum()

    def divergence(self, teacher: Predicted) -> torch.Tensor:
        """KL(teacher || this), weighted as the loss, where both are to say the same: a citation's number may differ."""
        import torch.nn.functional as F

        own_AV, teachers_AV = F.log_softmax(self.logits_AV.float(), -1), F.log_softmax(teacher.logits_AV.float(), -1)
        losses_A = F.kl_div(own_AV, teachers_AV, reduction="none", log_target=True).sum(-1)
        return (losses_A * self.weights_A * (self.targets_A == teacher.targets_A)).sum() / self.weights_A.sum()

    def hits(self) -> float:
        """The share of tokens that the model would have chosen."""
        return float((self.logits_AV.argmax(-1) == self.targets_A).float().mean())


def predict(model: Any, packs: Sequence[SoftPack], soft: Sequence[Sequence[torch.Tensor]]) -> Predicted:
    """Run the packs. ``soft[p][c]`` is [k, d_model], for chunk c of pack p; gradients flow into it."""
    import torch

    device = model.device
    embed = model.get_input_embeddings()
    rows_TD: list[torch.Tensor] = []
    positions: list[list[int]] = []
    blocks: list[list[int]] = []
    where: list[tuple[int, int]] = []
    targets: list[int] = []
    weights: list[float] = []
    firsts: list[int] = []
    for row, (pack, of_pack) in enumerate(zip(packs, soft, strict=True)):
        pieces_TD = [of_pack[p] if isinstance(p, int) else embed(torch.tensor(p, device=device)) for p in pack.context]
        context = sum(piece.shape[0] for piece in pieces_TD)
        ids: list[int] = []
        at, block = list(range(context)), [0] * context
        for number, (question, answer) in enumerate(pack.questions, start=1):
            length = len(question) + len(answer) - 1  # nothing is predicted from the last token
            # The first token of an answer is predicted by what stands before it: the question, or the context's end.
            first = context + len(ids) + len(question) - 1 if question else context - 1
            rest = context + len(ids) + len(question)
            firsts.append(len(targets))
            where += [(row, first), *((row, rest + i) for i in range(len(answer) - 1))]
            ids += (*question, *answer[:-1])
            at += range(context, context + length)
            block += [number] * length
            targets += answer
            weights += [1 / len(answer) / len(pack.questions)] * len(answer)
        if ids:
            pieces_TD.append(embed(torch.tensor(ids, device=device)))
        rows_TD.append(torch.cat(pieces_TD))
        positions.append(at)
        blocks.append(block)
    T = max(len(at) for at in positions)
    input_BTD = torch.nn.utils.rnn.pad_sequence(rows_TD, batch_first=True)
    position_BT = torch.tensor([at + [0] * (T - len(at)) for at in positions], device=device)
    mask_B1TT = None  # one question each: causal, and padding on the right is seen by nobody
    if any(len(pack.questions) > 1 for pack in packs):
        # A padded position sees the context, like the others: seeing nothing at all would be NaN.
        masks = [packed_mask(block + [len(block) + 1] * (T - len(block))) for block in blocks]
        mask_B1TT = torch.cat(masks).to(device)
    output = decoder_of(model)(inputs_embeds=input_BTD, position_ids=position_BT, attention_mask=mask_B1TT, use_cache=False)
    row_A, at_A = torch.tensor(where, device=device).T
    logits_AV = model.get_output_embeddings()(output.last_hidden_state[row_A, at_A])
    targets_A, weights_A, first_Q = (torch.tensor(each, device=device) for each in (targets, weights, firsts))
    return Predicted(logits_AV, targets_A, weights_A, first_Q)
