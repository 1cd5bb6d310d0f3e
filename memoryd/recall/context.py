"""BuildContext: a text context within a token budget, for agents that use another LLM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memoryd.core import Source
from memoryd.models import Models
from memoryd.recall.search import Searcher

DEFAULT_TOKENS = 1024
_TOKENS_PER_PASSAGE = 60  # a short one: how many passages could fit a budget
_MOST = 100


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
        tokenizer = self._models.tokenizer
        depth = min(_MOST, max(4, max_tokens // _TOKENS_PER_PASSAGE))
        found = await self._searcher.search(tenant, memories, query, depth)
        chosen: list[Source] = []
        text, used = "", 0
        for source in found:
            candidate = _render([*chosen, source])
            count = tokenizer.count(candidate)
            if count <= max_tokens:
                chosen.append(source)
                text, used = candidate, count
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
