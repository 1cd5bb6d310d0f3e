"""Greedy answers for many prompts at once: left-padded batches of prompts of like length."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from memoryd.engine.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from memoryd.engine.base_model import BaseModel


def answers(
    base: BaseModel, model: Any, tokenizer: TextTokenizer, prompts: Sequence[Sequence[int]], max_tokens: int, batch: int
) -> list[str]:
    """The model's answer to each prompt of token ids, in the order given. Prints progress with the time left."""
    import torch

    out = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    begun = time.monotonic()
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        width = max(len(prompts[i]) for i in rows)
        pads = [width - len(prompts[i]) for i in rows]
        ids_BT = torch.tensor([[base.eos_ids[0]] * p + list(prompts[i]) for p, i in zip(pads, rows, strict=True)])
        mask_BT = torch.tensor([[0] * p + [1] * (width - p) for p in pads])
        with torch.inference_mode():
            made_BT = model.generate(
                input_ids=ids_BT,
                attention_mask=mask_BT,
                max_new_tokens=max_tokens,
                do_sample=False,
                eos_token_id=list(base.eos_ids),
                pad_token_id=base.eos_ids[0],
            )
        for i, row_T in zip(rows, made_BT[:, width:].tolist(), strict=True):
            end = next((k for k, token in enumerate(row_T) if token in base.eos_ids), len(row_T))
            out[i] = tokenizer.decode(row_T[:end]).strip()
        done = start + len(rows)
        left = (time.monotonic() - begun) / done * (len(prompts) - done)
        sys.stderr.write(f"\r{done}/{len(prompts)} answers, {left:.0f} s left ")
        sys.stderr.flush()
    sys.stderr.write("\n")
    return out
