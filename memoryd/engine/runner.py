"""Runs one step after another on one copy of the base model. Everything here happens on one thread, the worker's loop.

What it does not know: gRPC, asyncio, tenants, prompts' wording. What comes first is the scheduler's business.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from memoryd.compress.base import Compressor, positions
from memoryd.compress.codec import CompressedEmbeddings
from memoryd.engine.adapters import Adapters
from memoryd.engine.bank import Bank
from memoryd.engine.base_model import BaseModel
from memoryd.engine.kv import Kv, cache_argument
from memoryd.engine.lora import Blend
from memoryd.engine.output import Output, told
from memoryd.engine.prefixes import Prefixes
from memoryd.engine.prompt import PromptReader
from memoryd.engine.reader import Refusal
from memoryd.engine.request import Generation, Learning, Soft
from memoryd.engine.scheduler import Decode, Embed, Item, Learn, Limits, Prefill, Scheduler, Step, Work
from memoryd.engine.sequence import GeneratingSequence
from memoryd.errors import FailedPrecondition, Unavailable
from memoryd.learn.learner import Learner

_MAX_TEXT_TOKENS = 256  # of the retrieval encoder, which cuts longer texts


class RetrievalEncoder(Protocol):
    """Texts to unit vectors [n, dim] float32."""

    @property
    def fingerprint(self) -> str: ...
    @property
    def dim(self) -> int: ...
    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]: ...


class Runner:
    """Takes calls by number (`generate`, `embed`, `compress`, `learn`), runs them in steps, gives out outputs."""

    def __init__(
        self,
        base: BaseModel,
        adapters: Adapters,
        compressor: Compressor,
        encoder: RetrievalEncoder,
        limits: Limits,
        clock: Callable[[], float] = time.monotonic,
        refusals: Mapping[bool, Refusal | None] = MappingProxyType({}),
    ) -> None:
        """`refusals` are the readers': that of prompts with compressed embeddings (True), and of those without."""
        self._refusals = refusals
        self._base, self._adapters, self._compressor, self._encoder = base, adapters, compressor, encoder
        self._limits = limits
        self._bank = Bank(adapters)
        self._scheduler = Scheduler(limits)
        self._clock = clock
        self._model = cast(Any, base.model)  # transformers types its models' attributes loosely
        self._prompts = PromptReader(base, compressor)
        if odd := set(getattr(self._model.config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}:
            raise FailedPrecondition(f"the base model has layers of {', '.join(sorted(odd))}: only attention is served")
        self._sequences: dict[int, GeneratingSequence] = {}
        self._decoding: list[int] = []  # the calls that decode together, rows of `_kv` in this order
        self._kv = Kv()
        self._cache = cache_argument(base.model)
        self._prefixes = Prefixes()
        self._chunks: dict[tuple[int, int], Sequence[int]] = {}
        self._texts: dict[tuple[int, int], str] = {}
        self._learners: dict[int, Learner] = {}

    @property
    def idle(self) -> bool:
        """Whether there is nothing to run."""
        return self._scheduler.idle

    def generate(self, call: int, request: Generation) -> None:
        """Queue a prompt. Raises InvalidArgument or FailedPrecondition where it can't be answered."""
        soft = any(isinstance(segment, Soft) for segment in request.segments)
        reader: Blend = ((self._adapters.reader(soft), 1.0),) if request.use_reader else ()
        blend = (*reader, *self._bank.blend(request.adapters))
        prompt = self._prompts.length(request)
        refusal = self._refusals.get(soft) if reader else None
        self._sequences[call] = GeneratingSequence(request, blend, self._base, self._clock, refusal)
        self._scheduler.add_sequence(call, prompt, request.max_tokens, request.background)

    def embed(self, call: int, texts: Sequence[str], urgent: bool) -> None:
        """Queue texts; each gives one Output."""
        for index, text in enumerate(texts):
            self._texts[call, index] = text
        # A guess from the length is enough to bound a micro-batch; exact counts would tokenize twice.
        items = [Item(call, index, min(_MAX_TEXT_TOKENS, 2 + len(text) // 3)) for index, text in enumerate(texts)]
        self._scheduler.add_items(Work.URGENT_EMBED if urgent else Work.EMBED, items)

    def compress(self, call: int, chunks: Sequence[Sequence[int]], fingerprint: str) -> None:
        """Queue chunks; each gives one Output.

        Raises FingerprintMismatch where another compressor is loaded, InvalidArgument where a chunk can't be compressed:
        now, since in a step it would take down the chunks of other calls that are compressed beside it.
        """
        self._prompts.check_compressor(fingerprint)
        self._prompts.check_chunks(chunks)
        for index, chunk in enumerate(chunks):
            self._chunks[call, index] = chunk
        items = [Item(call, index, positions(self._compressor, len(chunk))) for index, chunk in enumerate(chunks)]
        self._scheduler.add_items(Work.COMPRESS, items)

    def learn(self, call: int, learning: Learning) -> None:
        """Begin, or go on with, a run of training; each step of its optimizer gives one Output.

        Raises as `Learner`, and FingerprintMismatch or FailedPrecondition where another compressor or no reader is loaded.
        """
        if learning.chunks:
            self._prompts.check_compressor(learning.compressor_fingerprint)
        if learning.use_reader:
            self._adapters.reader(soft=False)
        learner = Learner(call, learning, self._base, self._adapters, self._limits.learn, refusals=self._refusals)
        self._learners[call] = learner
        self._scheduler.add_learning(call)

    def load_adapter(self, adapter: str, config: bytes, weights: bytes) -> None:
        """Take a memory's adapter. Raises as `Bank.load`."""
        self._bank.load(adapter, config, weights, {name for s in self._sequences.values() for name, _ in s.blend})

    def unload_adapter(self, adapter: str) -> list[Output]:
        """Forget a memory's adapter, at once, and what is being generated with it: what the adapter wrote into keys and values
        would be said from there without it. Those calls end with Unavailable (ADAPTER_UNLOADED)."""
        self._bank.unload(adapter)
        self._prefixes.clear()
        with_it = [call for call, s in self._sequences.items() if any(name == adapter for name, _ in s.request.adapters)]
        for call in with_it:
            self.end(call)
        why = "an adapter of this answer was deleted while it was given, or a document that the adapter knows: ask again"
        return [Output(call, Unavailable(why, reason="ADAPTER_UNLOADED")) for call in with_it]

    def end(self, call: int) -> None:
        """Drop a call and all that it holds, finished or not. Unknown calls are fine."""
        self._scheduler.end(call)
        for held in (self._chunks, self._texts):
            for key in [key for key in held if key[0] == call]:
                del held[key]
        self._sequences.pop(call, None)
        if not self._sequences:
            self._prefixes.clear()
        if learner := self._learners.pop(call, None):
            learner.close()
        if call in self._decoding:
            rows = [row for row, other in enumerate(self._decoding) if other != call]
            self._decoding = [self._decoding[row] for row in rows]
            self._kv.keep(rows)

    @property
    def held(self) -> int:
        """Rows, positions, chunks, texts and runs of training that are held for calls; 0 when idle, or something leaks."""
        kinds = (self._sequences, self._kv.lengths, self._chunks, self._texts, self._learners)
        return len(self._prefixes) + sum(map(len, kinds))

    @torch.inference_mode()
    def step(self) -> list[Output]:
        """Run one step. A step that fails ends its calls with the error and no others."""
        step = self._scheduler.next()
        if step is None:
            return []
        try:
            outputs = self._run(step)
        except Exception as error:
            outputs = [Output(call, told(error)) for call in _calls(step)]
        for output in outputs:
            if output.ends:
                self.end(output.call)
        return outputs

    def _run(self, step: Step) -> list[Output]:
        if isinstance(step, Decode):
            return self._decode(step)
        if isinstance(step, Prefill):
            return self._prefill(step)
        if isinstance(step, Learn):
            event = self._learners[step.call].step()
            return [Output(step.call, event)] if event else []
        self._adapters.use()
        if isinstance(step, Embed):
            vectors_ND = self._encoder.encode([self._texts.pop((i.call, i.index)) for i in step.items])
            return [Output(i.call, vector_D, i.index) for i, vector_D in zip(step.items, vectors_ND, strict=True)]
        soft = self._compressor.compress([self._chunks.pop((i.call, i.index)) for i in step.items])
        return [Output(i.call, to_bytes(x_KD), i.index) for i, x_KD in zip(step.items, soft, strict=True)]

    def _prefill(self, step: Prefill) -> list[Output]:
        sequence = self._sequences[step.call]
        if sequence.prompt_TD is None:
            sequence.start(self._prompts.embed(sequence.request))
            sequence.kv = self._prefixes.longest(sequence.request.scope, sequence.blend, sequence.marks)
        assert sequence.prompt_TD is not None
        start = max(step.start, sequence.kv.get_seq_length())
        if start >= step.end:
            return []  # an earlier prompt began with all of this piece
        self._adapters.use(sequence.blend)
        piece_1TD = sequence.prompt_TD[None, start : step.end]
        arguments = {"inputs_embeds": piece_1TD, self._cache: sequence.kv, "use_cache": True}
        if not step.last:
            self._model.base_model(**arguments)  # without the head: only the last position's logits are wanted
            return []
        logits_1V = self._model(**arguments, logits_to_keep=1).logits[:, -1].float().cpu()
        sequence.prompt_TD, sequence.kv.lengths = None, [step.end]
        self._prefixes.keep(sequence.request.scope, sequence.blend, sequence.marks, sequence.kv)
        self._kv.join(sequence.kv)
        self._decoding.append(step.call)
        sequence.kv = Kv()
        return [Output(step.call, sequence.advance(logits_1V[0]))]

    def _decode(self, step: Decode) -> list[Output]:
        sequences = [self._sequences[call] for call in step.calls]
        assert self._decoding == list(step.calls), "scheduler and runner disagree on who decodes"
        self._adapters.use(*(sequence.blend for sequence in sequences))
        device, mask_BT = self._model.device, self._kv.mask_BT()
        logits_BV = (
            self._model(
                input_ids=torch.tensor([[s.token] for s in sequences], device=device),
                position_ids=torch.tensor([[length] for length in self._kv.lengths], device=device),
                attention_mask=None if mask_BT is None else mask_BT.to(device),
                use_cache=True,
                logits_to_keep=1,
                **{self._cache: self._kv},
            )
            .logits[:, -1]
            .float()
            .cpu()
        )
        self._kv.lengths = [length + 1 for length in self._kv.lengths]
        events = [s.advance(logits_V) for s, logits_V in zip(sequences, logits_BV, strict=True)]
        return [Output(call, e) for call, e in zip(step.calls, events, strict=True) if e.text or e.finish_reason]


def _calls(step: Step) -> tuple[int, ...]:
    if isinstance(step, Decode):
        return step.calls
    return (step.call,) if isinstance(step, Prefill | Learn) else tuple(dict.fromkeys(i.call for i in step.items))


def to_bytes(x_KD: Tensor) -> CompressedEmbeddings:
    """As they are stored and sent: bfloat16, little-endian."""
    data = x_KD.to(torch.bfloat16).cpu().contiguous().view(torch.uint16).numpy().astype("<u2").tobytes()
    return CompressedEmbeddings(data, x_KD.shape[0])
