"""What is discussed in a conversation: who speaks, how one asks for it, and what of an answer stands in it. Pure.

Names and numbers of a conversation are asked for as those of any text are. What it is about is another kind of question, whose
answer is a few sentences that stand nowhere as they are: such an answer is held against the conversation sentence by sentence.
"""

from __future__ import annotations

import re
from collections import Counter

from memoryd.learn.bm25 import words

_TURN = re.compile(r"^(?P<who>[^\W\d_][^:\n(]{0,60}?)(?: \([^)\n]{0,60}\))?: +\S", re.MULTILINE)  # as conversations are written
_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_SUPPORTED = 0.6  # of a sentence's words, those that say something, stand in the conversation
_LEAST_WORDS = 8  # of an answer
_SAY_NOTHING = set(
    words(
        "a about also an and are as at be been but by did do does for from had has have he her him his how if in into is it its"
        " not of on or she should so than that the their them there they this to was were what when which who will with would"
    )
)


def speakers(text: str) -> list[str]:
    """Those who speak in it, by the number of their turns; nobody where it is no conversation: what has a turn on most of its
    lines, of two or more, one of whom speaks again. The head of a mail and a list of notes are none."""
    turns = Counter(turn["who"] for turn in _TURN.finditer(text))
    lines = sum(bool(line.strip()) for line in text.splitlines())
    talks = 1 < len(turns) < turns.total() and 2 * turns.total() > lines
    return [who for who, _ in turns.most_common()] if talks else []


def discussion_request(speaker: str = "") -> str:
    """What the asker is asked to write, after the conversation: a question, and on the lines after it the answer."""
    what = f"what {speaker} said or thought about something here" if speaker else "about something that is discussed here"
    return f"Ask {what}, then answer it in a few sentences."


def sentences(text: str) -> list[str]:
    """In order."""
    return _SENTENCE.split(text.strip())


def supported(answer: str, text: str) -> str:
    """The answer's whole sentences whose words stand in the text for the most part, each once; empty where that is too little
    to be an answer."""
    there, kept = set(words(text)), list[str]()
    for sentence in sentences(answer):
        said = [word for word in words(sentence) if word not in _SAY_NOTHING]
        whole = sentence.endswith((".", "!", "?", '"', "”"))
        if whole and sum(word in there for word in said) >= _SUPPORTED * max(1, len(said)) and sentence not in kept:
            kept.append(sentence)
    joined = " ".join(kept)
    return joined if len(words(joined)) >= _LEAST_WORDS else ""
