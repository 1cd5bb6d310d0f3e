"""Decides what the worker's loop runs next. Pure: no tensors, no clock, no I/O.

Work comes as sequences (prompts to prefill, then to decode), as items (texts to embed, chunks to compress) and as runs of
training. `next()`
names one short unit of it, a step. The order is decode ▸ prefill ▸ urgent embed ▸ embed ▸ compress ▸ learn, bent by two rules
that are counted in steps, never in time:

- after a step of anything else, decode runs next if a sequence can: at most one step comes between two decode steps;
- work that was passed over more often than its patience goes first: nothing starves.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class Work(enum.IntEnum):
    """Kinds of work, most pressing first."""

    DECODE = 0
    PREFILL = 1
    URGENT_EMBED = 2
    EMBED = 3
    COMPRESS = 4
    LEARN = 5


PATIENCE = {Work.DECODE: 1, Work.PREFILL: 1, Work.URGENT_EMBED: 2, Work.EMBED: 16, Work.COMPRESS: 32, Work.LEARN: 64}
"""How many steps of other work may pass a kind by while it waits. Compress waits for about an answer's length, since
one of its steps takes as long as many decode steps, and learning, which nobody waits for, twice as long; a question's
embedding has an answer waiting for it."""

_OVERTAKEN = 16
"""How many sequences may go before one in the background that came earlier."""

_LOOK_AHEAD = 256
"""Items among which those of about one length are sought, so that short ones are not padded to long ones."""
_SHORT = 63


@dataclass(frozen=True, slots=True)
class Limits:
    """How large one step may be, so that it stays short on the device at hand."""

    rows: int = 8
    """Sequences that decode together."""
    positions: int = 32768
    """What their keys and values may take: rows times the longest prompt plus answer. One sequence alone always fits."""
    prefill: int = 256
    """Tokens of one prefill piece."""
    prefill_alone: int = 0
    """The same while nothing decodes that would have to wait; larger pieces take less time a token. 0: as `prefill`."""
    embed: int = 1024
    """Tokens of one embedding micro-batch, padding counted."""
    compress: int = 512
    """Tokens of one compression micro-batch, padding counted. A chunk is not split, so a step takes one at least."""
    learn: int = 512
    """Positions of one training micro-step, padding counted. A prompt is not split, so a step takes one at least."""


@dataclass(frozen=True, slots=True)
class Item:
    """One text to embed or chunk to compress: the `index`-th of the call `call`, `tokens` long."""

    call: int
    index: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Decode:
    """Make one token for each of these sequences."""

    calls: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Prefill:
    """Run positions [start, end) of a prompt; `last` is set where the prompt ends there."""

    call: int
    start: int
    end: int
    last: bool


@dataclass(frozen=True, slots=True)
class Embed:
    """Embed these texts in one pass."""

    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Compress:
    """Compress these chunks in one pass."""

    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Learn:
    """One micro-step of this run of training."""

    call: int


Step = Decode | Prefill | Embed | Compress | Learn


@dataclass(slots=True)
class _Sequence:
    call: int
    prompt: int
    longest: int
    background: bool = False
    done: int = 0
    overtaken: int = 0


class Scheduler:
    """Holds all work that waits or runs, by number of call. Items are forgotten once they run, sequences on `end`."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._waiting: deque[_Sequence] = deque()
        self._decoding: list[_Sequence] = []
        self._items: dict[Work, deque[Item]] = {w: deque() for w in (Work.URGENT_EMBED, Work.EMBED, Work.COMPRESS)}
        self._learning: deque[int] = deque()  # the first has its turn next
        self._passed = dict.fromkeys(Work, 0)
        self._last: Work | None = None

    def add_sequence(self, call: int, prompt: int, answer: int, background: bool = False) -> None:
        """A prompt of `prompt` positions and an answer of at most `answer`. Nobody waits for one in the background: it takes a
        row only while half of them are free, and others overtake it, each so many times. Then it takes any row, as whoever is
        behind it now waits for it."""
        at = len(self._waiting)
        while not background and at and self._yields(self._waiting[at - 1]):
            at -= 1
            self._waiting[at].overtaken += 1
        self._waiting.insert(at, _Sequence(call, prompt, prompt + answer, background))

    def add_items(self, work: Work, items: Iterable[Item]) -> None:
        """Texts to embed or chunks to compress."""
        self._items[work].extend(items)

    def add_learning(self, call: int) -> None:
        """A run of training, which goes on until `end`."""
        self._learning.append(call)

    def end(self, call: int) -> None:
        """Forget a call, whether finished, failed or cancelled. Unknown calls are fine."""
        self._waiting = deque(s for s in self._waiting if s.call != call)
        self._decoding = [s for s in self._decoding if s.call != call]
        self._learning = deque(other for other in self._learning if other != call)
        for work, items in self._items.items():
            self._items[work] = deque(i for i in items if i.call != call)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to run."""
        return not (self._waiting or self._decoding or self._learning or any(self._items.values()))

    def next(self) -> Step | None:
        """The next step, None where there is nothing to run. Its items and positions count as run."""
        runnable = [work for work in Work if self._can(work)]
        if not runnable:
            return None
        work = self._choose(runnable)
        for other in Work:
            self._passed[other] = self._passed[other] + 1 if other in runnable and other is not work else 0
        self._last = work
        if work is Work.DECODE:
            return Decode(tuple(s.call for s in self._decoding))
        if work is Work.PREFILL:
            return self._prefill()
        if work is Work.LEARN:
            self._learning.rotate(-1)
            return Learn(self._learning[-1])
        if work is Work.COMPRESS:
            return Compress(self._take(work, self.limits.compress))
        return Embed(self._take(work, self.limits.embed))

    def _choose(self, runnable: Sequence[Work]) -> Work:
        if Work.DECODE in runnable and self._last is not Work.DECODE:
            return Work.DECODE
        overdue = [w for w in runnable if self._passed[w] >= PATIENCE[w]]
        # max keeps the first of equals, so ties go to the more pressing work.
        return max(overdue, key=lambda w: self._passed[w] / PATIENCE[w]) if overdue else runnable[0]

    def _can(self, work: Work) -> bool:
        if work is Work.DECODE:
            return bool(self._decoding)
        if work is Work.PREFILL:
            return bool(self._waiting) and self._fits(self._waiting[0])
        return bool(self._learning if work is Work.LEARN else self._items[work])

    @staticmethod
    def _yields(sequence: _Sequence) -> bool:
        return sequence.background and not sequence.done and sequence.overtaken < _OVERTAKEN

    def _fits(self, sequence: _Sequence) -> bool:
        running = self._decoding
        rows, longest = len(running) + 1, max(s.longest for s in [sequence, *running])
        most = self.limits.rows // 2 if self._yields(sequence) else self.limits.rows
        return not running or (rows <= most and rows * longest <= self.limits.positions)

    def _prefill(self) -> Prefill:
        sequence = self._waiting[0]
        start = sequence.done
        piece = self.limits.prefill if self._decoding else self.limits.prefill_alone or self.limits.prefill
        sequence.done = min(start + piece, sequence.prompt)
        last = sequence.done == sequence.prompt
        if last:
            self._decoding.append(self._waiting.popleft())
        return Prefill(sequence.call, start, sequence.done, last)

    def _take(self, work: Work, budget: int) -> tuple[Item, ...]:
        """The first item, and of those soon after it what is about as long: as many as fit into `budget` tokens when padded
        to the longest."""
        queue, longest = self._items[work], 0
        bucket = _bucket(queue[0])
        taken: list[Item] = []
        left: list[Item] = []
        for _ in range(min(len(queue), _LOOK_AHEAD)):
            item = queue.popleft()
            longer = max(longest, item.tokens)
            if not taken or (_bucket(item) == bucket and longer * (len(taken) + 1) <= budget):
                taken.append(item)
                longest = longer
            else:
                left.append(item)
        queue.extendleft(reversed(left))
        return tuple(taken)


def _bucket(item: Item) -> int:
    """Lengths within a factor of two; short ones are all alike, since a step has a price of its own."""
    return max(item.tokens, _SHORT).bit_length()
