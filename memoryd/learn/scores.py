"""Where the pooled compressor's scores begin: with telling the words that answers are made of from the others.

A logistic regression on what the base model makes of each word in its text, over chunks whose questions and answers are known.
Which segments a chunk is cut into is no smooth function of the scores, so they learn little from what the reader says; and a
word that shares its slot with others can hardly be said again. So they had better begin right. A word by which a question can
be told to be about this place counts half: an answer that nothing leads to is of no use either.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

from memoryd.compress.words import mean_of_words, spelling_of, words_of
from memoryd.engine.tokenizer import TextTokenizer
from memoryd.learn.bm25 import WORD, words
from memoryd.learn.reader_data import Answered

if TYPE_CHECKING:
    from torch import Tensor

    from memoryd.compress.pooled import PooledCompressor

_ASKED = 0.5  # what a question's word is worth, where an answer's is worth 1
_COMMON = 0.1  # of the texts: a word in more of them tells nothing about a question's place
_DECAY = 1e-2  # of the weights' squares; from 1e-4 on it matters little to how many answers of other articles are kept
_SHARPNESS = 6.0  # a word that is chosen begins as nearly all of its slot: the softmax of plain log-odds is too even for that
_SAY_EVERY = 50  # chunks


def begin_scores(
    compressor: PooledCompressor,
    tokenizer: TextTokenizer,
    answered: Sequence[Answered],
    count: int,
    seed: int,
    say: Callable[[str], None] = print,
) -> None:
    """Sets how the compressor spells words and scores them, from at most `count` of the texts."""
    import torch
    from torch.nn.functional import rms_norm

    projector = compressor.projector
    projector.spelling.copy_(spelling_of(tokenizer.texts(len(projector.spelling))))
    found = Counter(word for item in answered for word in set(words(item.text)))
    telling = {word for word, texts in found.items() if texts <= max(1, _COMMON * len(answered))}
    some = list(answered)
    random.Random(f"{seed}/scores").shuffle(some)
    inputs_WD: list[Tensor] = []
    wanted_W: list[Tensor] = []
    for number, item in enumerate(some[:count]):
        encoded = tokenizer.encode_with_offsets(item.text)
        middle_LD = compressor.middle(encoded.ids)
        word_L = words_of(projector.spelling[list(encoded.ids)][None])[0]
        normed_LD = rms_norm(middle_LD, (middle_LD.shape[-1],))
        mean_LD = mean_of_words(normed_LD.T, word_L.expand(normed_LD.shape[1], -1)).T
        worth_L = torch.tensor(worth(item, telling, encoded.offsets))
        word_L = word_L.cpu()
        first_W = torch.nonzero(word_L.diff(prepend=torch.tensor([-1])))[:, 0]
        inputs_WD.append(mean_LD.cpu()[first_W])
        wanted_W.append(torch.zeros(len(first_W)).scatter_reduce(0, word_L, worth_L, "amax"))
        if number % _SAY_EVERY == _SAY_EVERY - 1:
            say(f"scoring: {number + 1} of {min(count, len(some))} chunks read")
    if inputs_WD:
        weight_D = logistic(torch.cat(inputs_WD), torch.cat(wanted_W))
        projector.weigh.weight.data.copy_(_SHARPNESS * weight_D[None])


def worth(item: Answered, telling: Collection[str], offsets: Sequence[tuple[int, int]]) -> list[float]:
    """For each token, by its span in the text: 1 where an answer has a part in it, less where a question has only a word of it
    that is telling, else 0."""
    of_character = [0.0] * len(item.text)
    asked = {word for question in item.questions for word in words(question) if word in telling}
    for match in WORD.finditer(item.text):
        if match.group().lower() in asked:
            of_character[match.start() : match.end()] = [_ASKED] * len(match.group())
    for answer in filter(None, item.answers):
        at = item.text.find(answer)
        while at >= 0:
            of_character[at : at + len(answer)] = [1.0] * len(answer)
            at = item.text.find(answer, at + 1)
    return [max(of_character[start:end], default=0.0) for start, end in offsets]


def logistic(input_WD: Tensor, wanted_W: Tensor) -> Tensor:
    """The weights, [D], of the logistic regression with an intercept from inputs to what is wanted, from 0 to 1."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits

    weight_D = torch.zeros(input_WD.shape[1], requires_grad=True)
    intercept = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([weight_D, intercept], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = binary_cross_entropy_with_logits(input_WD @ weight_D + intercept, wanted_W) + _DECAY * weight_D.pow(2).sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weight_D.detach()
