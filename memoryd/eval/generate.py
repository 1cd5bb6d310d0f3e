"""Greedy answers for many prompts at once: left-padded batches of prompts of like length."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from memoryd.engine.reader import Refusal
from memoryd.engine.tokenizer import TextTokenizer

if TYPE_CHECKING:
    import torch

    from memoryd.engine.base_model import BaseModel


@dataclass(slots=True)
class FirstToken:
    """How far `token` leads all others where an answer begins, in logits: by the prompt's number, filled by `answers`."""

    token: int
    leads: dict[int, float] = field(default_factory=dict)

    def look(self, rows: Sequence[int], logits_BV: torch.Tensor) -> None:
        for row, logits_V in zip(rows, logits_BV.float().clone(), strict=True):
            own = float(logits_V[self.token])
            logits_V[self.token] = float("-inf")
            self.leads[row] = own - float(logits_V.max())


def answers(
    base: BaseModel,
    model: Any,
    tokenizer: TextTokenizer,
    prompts: Sequence[Sequence[int]],
    max_tokens: int,
    batch: int,
    first: FirstToken | None = None,
) -> list[str]:
    """The model's answer to each prompt of token ids, in the order given. Prints progress with the time left."""
    import torch

    embed = model.get_input_embeddings()
    with torch.inference_mode():
        embedded = [embed(torch.tensor(list(prompt))) for prompt in prompts]
    return answers_of(base, model, tokenizer, embedded, max_tokens, batch, first=first)


def answers_of(
    base: BaseModel,
    model: Any,
    tokenizer: TextTokenizer,
    prompts: Sequence[torch.Tensor],
    max_tokens: int,
    batch: int,
    label: str = "",
    first: FirstToken | None = None,
    refusal: Refusal | None = None,
) -> list[str]:
    """As `answers`, of prompts that are embedded already, each [T, d_model]; with the reader's bias towards refusing."""
    import torch

    def biased(made_BT: torch.Tensor, logits_BV: torch.Tensor) -> torch.Tensor:
        if refusal and made_BT.shape[1] == 0:  # of prompts as embeddings only what is new is shown
            logits_BV[:, refusal.token] += refusal.bias
        return logits_BV

    out = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    begun = time.monotonic()
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        width = max(len(prompts[i]) for i in rows)
        pads = [width - len(prompts[i]) for i in rows]
        mask_BT = torch.tensor([[0] * pad + [1] * (width - pad) for pad in pads])
        with torch.inference_mode():
            input_BTD = torch.stack(
                [torch.nn.functional.pad(prompts[i], (0, 0, pad, 0)) for pad, i in zip(pads, rows, strict=True)]
            )
            made = model.generate(
                inputs_embeds=input_BTD,
                attention_mask=mask_BT,
                max_new_tokens=max_tokens,
                do_sample=False,
                eos_token_id=list(base.eos_ids),
                pad_token_id=base.eos_ids[0],
                logits_processor=[biased],
                output_logits=first is not None,
                return_dict_in_generate=True,
            )
        if first is not None:
            first.look(rows, made.logits[0])
        made_BT = made.sequences
        for i, row_T in zip(rows, made_BT.tolist(), strict=True):  # of embeddings generate() returns the new tokens only
            end = next((k for k, token in enumerate(row_T) if token in base.eos_ids), len(row_T))
            out[i] = tokenizer.decode(row_T[:end]).strip()
        done = start + len(rows)
        left = (time.monotonic() - begun) / done * (len(prompts) - done)
        sys.stderr.write(f"\r{label} {done}/{len(prompts)} answers, {left:.0f} s left ")
        sys.stderr.flush()
    sys.stderr.write("\n")
    return out
