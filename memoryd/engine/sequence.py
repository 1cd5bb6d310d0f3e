"""One generation as it runs: its prompt, its keys and values, and what each new token does to its text."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from memoryd.engine.base_model import BaseModel
from memoryd.engine.kv import Kv
from memoryd.engine.lora import Blend
from memoryd.engine.prefixes import marks_of
from memoryd.engine.reader import Refusal
from memoryd.engine.repetition import Repetition
from memoryd.engine.request import GenerateEvent, Generation
from memoryd.engine.sampling import Sampler
from memoryd.engine.text import Detokenizer, StopFilter


class GeneratingSequence:
    """Made when the request arrives. `prompt_TD` and `kv` are its own while it is prefilled; then the batch has them."""

    def __init__(
        self, request: Generation, blend: Blend, base: BaseModel, clock: Callable[[], float], refusal: Refusal | None = None
    ) -> None:
        decode: Callable[..., str] = base.tokenizer.decode  # type: ignore[assignment] # str for one list of ids
        self.request = request
        self.blend = blend
        self.marks = marks_of(request)
        self.prompt_TD: Tensor | None = None
        self.kv = Kv()
        self.token = -1
        self._made = 0
        self._refusal = refusal
        self._eos_ids = base.eos_ids
        self._repetition = Repetition(request.repeat_penalty, lambda token: decode([token]))
        self._sampler = Sampler(request.temperature, request.seed)
        self._detokenizer = Detokenizer(lambda ids: decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        self._stop = StopFilter(request.stop)
        self._clock = clock
        self._arrived = self._started = clock()

    def start(self, prompt_TD: Tensor) -> None:
        """Its first prefill piece is about to run."""
        self.prompt_TD = prompt_TD
        self._started = self._clock()

    def advance(self, logits_V: Tensor) -> GenerateEvent:
        """Take one more token; says what text became certain and whether the sequence ends."""
        if self._refusal and not self._made:
            logits_V[self._refusal.token] += self._refusal.bias
        for token, penalty in self._repetition.penalties().items():
            logits_V[token] -= penalty
        self.token = self._sampler.choose(logits_V)
        self._repetition.push(self.token)
        self._made += 1
        ended = self.token in self._eos_ids
        text = "" if ended else self._stop.push(self._detokenizer.push(self.token))
        reason = "stop" if ended or self._stop.stopped else ""
        if not reason and self._made == self.request.max_tokens:
            reason = "length"
        if reason:
            text += self._stop.push(self._detokenizer.flush())
            reason = "stop" if self._stop.stopped else reason
            text += self._stop.flush()
        if self._made > 1:
            return GenerateEvent(text, self._made, reason)
        queue_ms = 1000 * (self._started - self._arrived)
        return GenerateEvent(text, self._made, reason, queue_ms, 1000 * (self._clock() - self._started))
