"""Multiple choice: the option that the reader finds the likeliest. It was never taught to name one, so it is not asked to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from memoryd.engine.tokenizer import TextTokenizer
from memoryd.learn.soft_packing import SoftPack, predict
from memoryd.recall.citation import cite

if TYPE_CHECKING:
    import torch


def choose(model: Any, tokenizer: TextTokenizer, prompt_TD: torch.Tensor, options: Sequence[str], cites: bool) -> str:
    """The option of the highest mean log-likelihood per token after the prompt, [T, d_model]; where the reader would open
    with a citation (`cites`), after the citation of the first block."""
    import torch

    head = tuple(tokenizer.encode(cite(1, "").strip())) if cites else ()
    answers = [tuple(tokenizer.encode(cite(1, option) if cites else option))[len(head) :] for option in options]
    pack = SoftPack(((),), (0,), tuple((head, answer) for answer in answers))
    with torch.inference_mode():
        predicted = predict(model, [pack], [[prompt_TD]])
        likely_AV = predicted.logits_AV.float().log_softmax(-1)
        likely_A = likely_AV.gather(1, predicted.targets_A[:, None])[:, 0]
    means = [float(of_one.mean()) for of_one in likely_A.split([len(answer) for answer in answers])]
    return options[means.index(max(means))]
