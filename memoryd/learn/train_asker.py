"""Trains the asker that ships: the reader's task turned round, on SQuAD's articles.

    python -m memoryd.learn.train_asker --data DIR --out DIR [--packs N] [--name smollm2-135m-instruct]

A pack is a passage with all its answers: for each the question that was asked of it. Training is that of memories' adapters
(`learner.py`), so it goes on where it was stopped; at the end what was trained is written out with its model card.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from memoryd.engine.base_model import EMBEDDED_MODEL, ensure_base_model
from memoryd.engine.retrieval_tokenizer import RetrievalTokenizer
from memoryd.engine.tokenizer import TextTokenizer
from memoryd.learn.adapter_files import CONFIG, WEIGHTS
from memoryd.learn.asker import ASKERS, request_for
from memoryd.learn.reader_data import load_article, read_rows
from memoryd.learn.soft_packing import SoftPack
from memoryd.recall.prompt import TextBlock, assemble

_MOST = 8  # questions of a pack
_CARD = """---
license: cc-by-sa-4.0
library_name: peft
tags: [lora, question-generation]
---
# Asker for {name}

The LoRA that makes {name} write the question that a given answer answers, with the passage before it. memoryd's self-study
uses it to make examples of a memory's own passages. Trained on SQuAD 1.1 (40 Wikipedia articles, CC BY-SA 4.0): {packs}
passages, {tokens:,} positions, {minutes:.0f} minutes on two CPU cores; LoRA r={rank}, alpha={alpha:g}, loss on the questions
only, {loss:.2f} at the end. The base is {name}, Apache-2.0. Limits: English, and questions of SQuAD's kind: short facts.

Made by `python -m memoryd.learn.train_asker`.
"""


def packs_of(folder: Path, tokenizer: TextTokenizer, eos: int, count: int, seed: int) -> list[SoftPack]:
    """At most `count` passages, drawn by `seed`, each with the questions that it answers."""
    found: list[tuple[str, str, list[tuple[str, str]]]] = []
    for row in read_rows(folder / "squad.jsonl.xz"):
        article = load_article(row, tokenizer, RetrievalTokenizer())
        by_passage: dict[int, list[tuple[str, str]]] = {}
        for (question, answers), gold in zip(article.questions, article.gold, strict=True):
            for passage in gold:
                by_passage.setdefault(passage, []).append((question, answers[0]))
        found += ((article.title, article.passages[passage], asked) for passage, asked in sorted(by_passage.items()))
    r = random.Random(seed)
    r.shuffle(found)
    packs: list[SoftPack] = []
    for title, text, asked in found[:count]:
        questions = []
        context: tuple[int, ...] = ()
        for question, answer in r.sample(asked, min(_MOST, len(asked))):
            prompt = assemble(tokenizer, [TextBlock(text, title)], request_for(answer))
            ids, cut = tuple(prompt.token_ids()), prompt.context_tokens
            context = ids[:cut]
            questions.append((ids[cut:], (*tokenizer.encode(question), eos)))
        packs.append(SoftPack((), (context,), tuple(questions)))
    return packs


def main(argv: Sequence[str] | None = None) -> None:
    import torch

    from memoryd.engine.adapters import ALL_LINEAR, Adapters
    from memoryd.engine.base_model import load_base_model
    from memoryd.engine.request import Learning, LearnSettings
    from memoryd.learn.learner import RESULT, Learner

    parser = argparse.ArgumentParser(prog="train_asker", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with squad.jsonl.xz")
    parser.add_argument("--out", type=Path, required=True, help="checkpoints and metrics")
    parser.add_argument("--packs", type=int, default=600)
    parser.add_argument("--name", default=EMBEDDED_MODEL)
    parser.add_argument("--data-dir", type=Path, default=Path("~/.memoryd").expanduser(), help="converted base models")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--assets", type=Path, default=ASKERS, help="where the result is written")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    path = ensure_base_model(options.name, options.data_dir)
    base = load_base_model(path)
    settings = LearnSettings(8, 16.0, ALL_LINEAR, 5e-4, epochs=1, batch=4)
    packs = packs_of(options.data, TextTokenizer(path), base.eos_ids[0], options.packs, settings.seed)
    learner = Learner(1, Learning(packs, [], options.out, options.name, settings), base, Adapters(base), tokens=1024)
    event = None
    while not learner.done:
        began = time.monotonic()
        event = learner.step() or event
        if event and event.step % 5 == 0:
            print(f"{event.step}/{event.steps} loss {event.loss:.3f} {time.monotonic() - began:.1f} s", flush=True)
    assert event is not None
    target = options.assets / Path(options.name).name
    target.mkdir(parents=True, exist_ok=True)
    for file in (CONFIG, WEIGHTS):
        shutil.copyfile(options.out / RESULT / file, target / file)
    about = {
        "base_model": options.name,
        "base_fingerprint": base.fingerprint,
        "packs": len(packs),
        "loss": round(event.loss, 4),
    }
    (target / "memoryd.json").write_text(json.dumps(about, indent=1) + "\n")
    facts = {"name": options.name, "rank": settings.rank, "alpha": settings.alpha}
    card = _CARD.format(packs=len(packs), tokens=event.tokens, minutes=event.seconds / 60, loss=event.loss, **facts)
    (target / "README.md").write_text(card)


if __name__ == "__main__":
    main()
