"""Packs as one sequence: a context once, then each question with its answer, none seeing another.

    [context][question 1, answer 1][question 2, answer 2] ...

A token attends to the context and to what precedes it in its own question; positions restart after the context. The
loss is exactly that of separate prompts (tests/unit/test_packed_loss.py) for a fraction of the tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from memoryd.engine.tokenizer import TextTokenizer
from memoryd.learn.reader_data import Pack
from memoryd.recall.citation import cite
from memoryd.recall.prompt import assemble

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel

_PACKED = "memoryd_packed"


@dataclass(frozen=True, slots=True)
class EncodedPack:
    """Token ids. Each question is (what follows the context up to the answer, the answer with its end of turn)."""

    context: tuple[int, ...]
    questions: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]

    @property
    def tokens(self) -> int:
        return len(self.context) + sum(len(q) + len(a) for q, a in self.questions)


def encode_pack(tokenizer: TextTokenizer, pack: Pack, eos_id: int) -> EncodedPack:
    """The pack as ``assemble`` would prompt for each of its questions."""
    context: tuple[int, ...] = ()
    questions: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    for asked in pack.questions:
        prompt = assemble(tokenizer, pack.blocks, asked.question)
        ids = tuple(prompt.token_ids())
        context = ids[: prompt.context_tokens]
        answer = asked.answer
        if asked.block is not None:
            answer = cite(prompt.numbered.index(pack.blocks.index(asked.block)) + 1, answer)
        questions.append((ids[prompt.context_tokens :], (*tokenizer.encode(answer), eos_id)))
    return EncodedPack(context, tuple(questions))


def packed_loss(model: PreTrainedModel | PeftModel, pack: EncodedPack) -> torch.Tensor:
    """Mean over the questions of the mean cross-entropy of their answers' tokens. Scalar, with gradient.

    Logits are computed where an answer's token is predicted, and nowhere else: the vocabulary is most of the cost.
    """
    import torch
    import torch.nn.functional as F

    device = model.device
    ids: list[int] = list(pack.context)
    positions: list[int] = list(range(len(ids)))
    block = [0] * len(ids)
    predicting: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    for number, (question, answer) in enumerate(pack.questions, start=1):
        start = len(ids)
        length = len(question) + len(answer) - 1  # nothing is predicted from the last token
        ids += (*question, *answer[:-1])
        positions += range(len(pack.context), len(pack.context) + length)
        block += [number] * length
        predicting += range(start + len(question) - 1, start + length)
        targets += answer
        weights += [1 / len(answer) / len(pack.questions)] * len(answer)
    with _packed_attention_in(model):
        output = decoder_of(model)(
            input_ids=torch.tensor([ids], device=device),
            position_ids=torch.tensor([positions], device=device),
            attention_mask=packed_mask(block).to(device),
            use_cache=False,
            context_length=len(pack.context),
        )
    hidden_TD = output.last_hidden_state[0]
    logits_AV = model.get_output_embeddings()(hidden_TD[predicting])
    losses_A = F.cross_entropy(logits_AV.float(), torch.tensor(targets, device=device), reduction="none")
    return (losses_A * torch.tensor(weights, device=device)).sum()


def packed_mask(block: Sequence[int]) -> torch.Tensor:
    """[1, 1, T, T] bool, True where a token may look: backwards, at the context (0) or its own question (> 0)."""
    import torch

    block_T = torch.tensor(block)
    same_TT = block_T[:, None] == block_T[None, :]
    context_TT = (block_T == 0)[None, :]
    return (torch.ones(len(block), len(block), dtype=torch.bool).tril() & (same_TT | context_TT))[None, None]


@contextmanager
def _packed_attention_in(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Attention that knows the packs' shape, for one forward pass: half the work of a [T, T] mask, the same result."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(_PACKED, packed_attention)
    AttentionMaskInterface.register(_PACKED, sdpa_mask)
    before = model.config._attn_implementation
    model.config._attn_implementation = _PACKED
    try:
        yield
    finally:
        model.config._attn_implementation = before


def packed_attention(
    module: torch.nn.Module,
    query_BHTd: torch.Tensor,
    key_BKTd: torch.Tensor,
    value_BKTd: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    context_length: int = 0,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """The context attends to itself, causally, and only the questions' rows of the mask are computed as a mask."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention as attend

    def part(rows: slice, **how: Any) -> torch.Tensor:
        return attend(query_BHTd[:, :, rows], scale=scaling, enable_gqa=True, **how)

    c = context_length
    context = part(slice(0, c), key=key_BKTd[:, :, :c], value=value_BKTd[:, :, :c], is_causal=True)
    questions = part(slice(c, None), key=key_BKTd, value=value_BKTd, attn_mask=attention_mask[:, :, c:])
    return torch.cat([context, questions], dim=2).transpose(1, 2), None


def decoder_of(model: Any) -> torch.nn.Module:
    """The model below its output layer, with or without a LoRA around its linear layers."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner.base_model
