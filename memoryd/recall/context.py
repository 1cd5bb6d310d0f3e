"""BuildContext: a text context within a token budget, for agents that use another LLM."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from memoryd.core import Source
from memoryd.models import Models
from memoryd.recall.search import Searcher

DEFAULT_TOKENS = 1024
_TOKENS_PER_PASSAGE = 60  # a short one: how many passages could fit a budget
_MOST = 100
_SEAM = 4  # tokens at most between a passage and the next


@dataclass(frozen=True, slots=True)
class Context:
    """The text, the sources that it is made of, best first, and its length in base-model tokens."""

    text: str
    sources: Sequence[Source]
    token_count: int


class ContextBuilder:
    """Packs the best passages, shown in the order in which their documents tell them."""

    def __init__(self, searcher: Searcher, models: Models) -> None:
        self._searcher = searcher
        self._models = models

    async def build(self, tenant: str, memories: Sequence[str], query: str, max_tokens: int) -> Context:
        """Never longer than `max_tokens`; empty where not even the best passage fits. Errors as Search."""
        depth = min(_MOST, max(4, max_tokens // _TOKENS_PER_PASSAGE))
        found = await self._searcher.search(tenant, memories, query, depth)
        return await asyncio.to_thread(self._packed, found, max_tokens)

    def _packed(self, found: Sequence[Source], max_tokens: int) -> Context:
        """Of those found as many as fit, the best first. Blocks."""
        count = self._models.tokenizer.count
        chosen: list[Source] = []
        used, exact = 0, True  # what all of it takes; where it isn't exact, at most
        for source in found:
            shown = any(source.passage.document == other.passage.document for other in chosen)  # its title, too
            own = count(source.text if shown else _render([source])) + _SEAM
            if used + own <= max_tokens:  # to count all of it anew for each passage would take seconds
                chosen.append(source)
                used, exact = used + own, False
                continue
            if not exact:
                used, exact = count(_render(chosen)), True
            if used + own - 2 * _SEAM <= max_tokens and (whole := count(_render([*chosen, source]))) <= max_tokens:
                chosen.append(source)
                used = whole
        text = _render(chosen)
        while not exact and (used := count(text)) > max_tokens:  # more than its parts: no tokenizer promises that it isn't
            text = _render(chosen := chosen[:-1])
        return Context(text, chosen, used)


def _render(sources: Sequence[Source]) -> str:
    """Passages under their documents' titles; a document's passages stand together and in order."""
    documents = list(dict.fromkeys(s.passage.document for s in sources))
    parts = []
    for document in documents:
        mine = sorted((s for s in sources if s.passage.document == document), key=lambda s: s.passage.start)
        title = f"# {mine[0].title}\n" if mine[0].title else ""
        parts.append(title + "\n…\n".join(s.text for s in mine))
    return "\n\n".join(parts)
