"""Assembles the prompt: a list of token runs and soft slots, and what they cost.

The memory blocks stand in the system message and the question comes last, so that the KV of a context can be reused for
the next question. Each block is encoded on its own: costs add up exactly, and a block's tokens are the same wherever it
stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memoryd.core import Message
from memoryd.engine.tokenizer import TextTokenizer
from memoryd.errors import InvalidArgument

REFUSAL = "I don't know from memory."
INSTRUCTION = f"Answer from the memory below, briefly. If it does not say, answer: {REFUSAL}"
DEFAULT_TOP_K = 3  # passages: what the reader was measured with; a fourth finds 3% more and costs a quarter more


@dataclass(frozen=True, slots=True)
class TextBlock:
    """A passage's text. ``title`` is the document's title, or who speaks in a conversation."""

    text: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class SoftBlock:
    """A chunk's compressed embeddings: ``length`` soft tokens, looked up by ``chunk_key`` where the model runs."""

    chunk_key: str
    length: int
    title: str = ""


@dataclass(frozen=True, slots=True)
class TokenRun:
    """Token ids, to be embedded by the base model."""

    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SoftSlot:
    """A place for ``length`` compressed embeddings of the chunk ``chunk_key``."""

    chunk_key: str
    length: int


Block = TextBlock | SoftBlock
Segment = TokenRun | SoftSlot


@dataclass(frozen=True, slots=True)
class Prompt:
    """``segments`` in order. ``context_tokens`` counts the tokens, text and soft, that stand before the question.

    ``blocks`` are the indices of the blocks that fitted the budget, in the order given to ``assemble``; ``numbered`` are the
    same indices as they are shown: block ``numbered[0]`` stands under ``[1]``.
    """

    segments: tuple[Segment, ...]
    text_tokens: int
    soft_tokens: int
    context_tokens: int
    blocks: tuple[int, ...]
    numbered: tuple[int, ...]

    def token_ids(self) -> list[int]:
        """The ids of a prompt without soft slots."""
        ids: list[int] = []
        for segment in self.segments:
            if isinstance(segment, SoftSlot):
                raise ValueError("a prompt with soft slots has no token ids")
            ids += segment.ids
        return ids


def assemble(
    tokenizer: TextTokenizer,
    blocks: Sequence[Block],
    question: str,
    prior: Sequence[Message] = (),
    budget: int = 4096,
    extra_instruction: str = "",
) -> Prompt:
    """The prompt for ``question`` over ``blocks``, which come best first and are shown best last, soft ones first.

    Blocks are taken in the order given, as long as ``budget`` tokens last; then prior messages, the latest first. Where no
    block fits, it says that there is nothing. Raises InvalidArgument if the question alone is over the budget.
    """
    instruction = f"{INSTRUCTION} {extra_instruction}".strip() + "\n\nMemory:\n"
    head = tokenizer.encode(instruction)
    nothing = tokenizer.encode("(nothing)\n")
    asked = tokenizer.encode(question)
    fixed = len(head) + len(asked) + _frame_tokens(tokenizer, ["system", "user"])
    alone = fixed + len(nothing)
    if alone > budget:
        raise InvalidArgument(f"the question takes {alone} tokens of a prompt of at most {budget}", reason="PROMPT_TOO_LONG")
    left = budget - fixed
    chosen: list[int] = []
    for index, block in enumerate(blocks):
        cost = _cost(tokenizer, block)
        if cost <= left:
            chosen.append(index)
            left -= cost
    if not chosen:
        left -= len(nothing)
    kept = _latest(tokenizer, prior, left)
    numbered = _shown(blocks, chosen)
    system: list[Segment] = [TokenRun(tuple(head))]
    for number, index in enumerate(numbered, start=1):
        system += _segments(tokenizer, number, blocks[index])
    if not numbered:
        system.append(TokenRun(tuple(nothing)))
    contents: list[list[Segment]] = [system]
    contents += [[TokenRun(tuple(tokenizer.encode(m.content)))] for m in kept]
    contents.append([TokenRun(tuple(asked))])
    before, after = _rendered(tokenizer, ["system", *(_role(m) for m in kept), "user"], contents)
    segments = _merged([*before, *after])
    return Prompt(
        segments=segments,
        text_tokens=sum(len(s.ids) for s in segments if isinstance(s, TokenRun)),
        soft_tokens=sum(s.length for s in segments if isinstance(s, SoftSlot)),
        context_tokens=sum(_length(s) for s in before),
        blocks=tuple(chosen),
        numbered=tuple(numbered),
    )


def _shown(blocks: Sequence[Block], chosen: Sequence[int]) -> list[int]:
    """Soft blocks, then text blocks, each with the best last: nearest to the question is read best."""
    soft = [i for i in chosen if isinstance(blocks[i], SoftBlock)]
    text = [i for i in chosen if isinstance(blocks[i], TextBlock)]
    return soft[::-1] + text[::-1]


def _segments(tokenizer: TextTokenizer, number: int, block: Block) -> list[Segment]:
    """``[1] title``, the text or the soft tokens on a line of their own, and an empty line."""
    title = " ".join(block.title.split())
    label = f"[{number}] {title}".rstrip() + "\n"
    if isinstance(block, TextBlock):
        return [TokenRun(tuple(tokenizer.encode(f"{label}{block.text.strip()}\n\n")))]
    return [
        TokenRun(tuple(tokenizer.encode(label))),
        SoftSlot(block.chunk_key, block.length),
        TokenRun(tuple(tokenizer.encode("\n\n"))),
    ]


def _cost(tokenizer: TextTokenizer, block: Block) -> int:
    return sum(_length(s) for s in _segments(tokenizer, 10, block))  # two digits: never less than the real number takes


def _length(segment: Segment) -> int:
    return segment.length if isinstance(segment, SoftSlot) else len(segment.ids)


def _role(message: Message) -> str:
    return "assistant" if message.role == "assistant" else "user"


def _latest(tokenizer: TextTokenizer, prior: Sequence[Message], left: int) -> list[Message]:
    """The latest prior messages that fit ``left`` tokens, beginning with a user's, for templates that insist on it."""
    kept: list[Message] = []
    per_turn = _frame_tokens(tokenizer, ["system", "user", "assistant", "user"])
    for message in reversed(prior):
        left -= per_turn
        if len(message.content) > left * tokenizer.longest_token:
            break  # no message has a maximum: one of megabytes would take seconds to be counted
        left -= tokenizer.count(message.content)
        if left < 0:
            break
        kept.insert(0, message)
    while kept and _role(kept[0]) != "user":
        kept.pop(0)
    return kept


def _frame_tokens(tokenizer: TextTokenizer, roles: Sequence[str]) -> int:
    before, after = _rendered(tokenizer, roles, [[] for _ in roles])
    return sum(_length(s) for s in [*before, *after])


def _rendered(
    tokenizer: TextTokenizer, roles: Sequence[str], contents: Sequence[list[Segment]]
) -> tuple[list[Segment], list[Segment]]:
    """The chat's segments: those before the last content, and from it on.

    Where the template refuses a system role, the system text opens the first user's message instead.
    """
    parts = tokenizer.chat_parts(roles)
    if parts is None:
        roles, contents = roles[1:], [[*contents[0], *contents[1]], *contents[2:]]
        parts = tokenizer.chat_parts(roles)
    if parts is None:
        raise InvalidArgument("the base model's chat template cannot show these messages", reason="CHAT_TEMPLATE")
    last = len(roles) - 1
    before: list[Segment] = []
    after: list[Segment] = []
    for part in parts:
        if part.content == last:
            # A folded system text is context too: only the question itself, the last segment, comes after it.
            *context, question = contents[last] or [TokenRun(())]
            before += context
            after.append(question)
        else:
            (after if after else before).extend(contents[part.content] if part.content >= 0 else [TokenRun(part.ids)])
    return before, after


def _merged(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """Neighbouring token runs as one; empty ones left out."""
    merged: list[Segment] = []
    for segment in segments:
        if isinstance(segment, TokenRun):
            if not segment.ids:
                continue
            if merged and isinstance(merged[-1], TokenRun):
                merged[-1] = TokenRun(merged[-1].ids + segment.ids)
                continue
        merged.append(segment)
    return tuple(merged)
