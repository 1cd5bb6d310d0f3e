"""From sources to a prompt: what is shown of each in a mode, its compressed embeddings loaded. Answers are given from this, and
adapters are trained on it, by the same code."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from memoryd.compress.codec import CompressedEmbeddings
from memoryd.core import Chunk, Message, Source
from memoryd.engine.request import Segment, Soft, TokenIds
from memoryd.errors import FingerprintMismatch
from memoryd.models import Models
from memoryd.recall.embeddings import EmbeddingStore
from memoryd.recall.prompt import Block, Prompt, SoftBlock, SoftSlot, TextBlock, assemble
from memoryd.store.base import Ledger

HYBRID_PASSAGES = 2  # raw passages beside the compressed embeddings


class Mode(enum.IntEnum):
    """How an answer reads the memory; the numbers are those of the proto."""

    COMPRESSED = 1
    HYBRID = 2
    TEXT = 3


@dataclass(slots=True)
class Shown:
    """What goes into the prompt: blocks, best first, and the compressed embeddings that the soft ones stand for.

    ``origins`` holds, for each block, the position of the source that it shows.
    """

    mode: Mode
    blocks: list[Block] = field(default_factory=list)
    origins: list[int] = field(default_factory=list)
    soft: dict[str, CompressedEmbeddings] = field(default_factory=dict)
    tiers: Mapping[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def show(self, block: Block, origin: int) -> None:
        self.blocks.append(block)
        self.origins.append(origin)

    def read(self, prompt: Prompt, sources: Sequence[Source]) -> list[int]:
        """Positions of the sources that fitted into the prompt: in words, or with the chunk that their passage is of."""
        fitted = [(self.blocks[index], self.origins[index]) for index in prompt.blocks]
        words = {origin for block, origin in fitted if isinstance(block, TextBlock)}
        chunks = {block.chunk_key for block, _ in fitted if isinstance(block, SoftBlock)}
        return [n for n, source in enumerate(sources) if n in words or _chunk_key(source) in chunks]

    def segments(self, prompt: Prompt) -> list[Segment]:
        """The prompt as the worker takes it."""
        return [Soft(self.soft[s.chunk_key]) if isinstance(s, SoftSlot) else TokenIds(s.ids) for s in prompt.segments]


class Assembler:
    """Blocks. `max_context_tokens` is the budget of a prompt."""

    def __init__(self, ledger: Ledger, embeddings: EmbeddingStore, models: Models, max_context_tokens: int) -> None:
        self._ledger = ledger
        self._embeddings = embeddings
        self._models = models
        self._max_context_tokens = max_context_tokens

    def show(self, tenant: str, mode: Mode, sources: Sequence[Source]) -> Shown:
        """What the sources look like in this mode, or in the one that is used instead. Blocks."""
        compressor = self._models.info.compressor
        if mode is Mode.HYBRID and not compressor.gate_passed:
            warning = f"the compressor {compressor.name} has not passed its quality gate: answered from raw text instead"
            return _as_text(sources, [warning])
        if mode is Mode.TEXT:
            return _as_text(sources)
        found, tiers = self._embeddings.load(tenant, self._chunks(tenant, sources), compressor.fingerprint)
        shown = Shown(mode, tiers=tiers)
        if not compressor.gate_passed:
            shown.warnings.append(
                f"the compressor {compressor.name} has not passed its quality gate: do not rely on this answer"
            )
        missing = 0
        for position, source in enumerate(sources):
            key = (source.passage.document, source.passage.chunk)
            name = _chunk_key(source)
            if key not in found:
                missing += 1
                shown.show(TextBlock(source.text, source.title), position)
                continue
            if name not in shown.soft:
                shown.soft[name] = found[key]
                shown.show(SoftBlock(name, found[key].k, source.title), position)
            if mode is Mode.HYBRID and position < HYBRID_PASSAGES:
                shown.show(TextBlock(source.text, source.title), position)
        if missing:
            shown.warnings.append(f"{missing} of {len(sources)} passages are not compressed yet: read as raw text")
        return shown

    def prompt(self, shown: Shown, question: str, prior: Sequence[Message], max_tokens: int) -> Prompt:
        """For an answer of at most so many tokens. InvalidArgument where the question alone is too long."""
        for embeddings in shown.soft.values():
            if embeddings.d_model != self._models.info.d_model:
                raise FingerprintMismatch("compressed embeddings are not of the base model's width: they are being remade")
        budget = min(self._max_context_tokens, self._models.info.max_positions - max_tokens)
        return assemble(self._models.tokenizer, shown.blocks, question, prior, budget=budget)

    def _chunks(self, tenant: str, sources: Sequence[Source]) -> list[Chunk]:
        keys = list(dict.fromkeys((s.passage.document, s.passage.chunk) for s in sources))
        return list(self._ledger.get_chunks(tenant, keys).values())


def _chunk_key(source: Source) -> str:
    return f"{source.passage.document}/{source.passage.chunk}"


def _as_text(sources: Sequence[Source], warnings: Sequence[str] = ()) -> Shown:
    blocks: list[Block] = [TextBlock(s.text, s.title) for s in sources]
    return Shown(Mode.TEXT, blocks, list(range(len(sources))), warnings=list(warnings))
