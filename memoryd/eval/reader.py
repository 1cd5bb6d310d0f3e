"""Measures the reader on held-out articles with retrieval in the loop; writes docs/figures/reader.json.

    python -m memoryd.eval.reader --data DIR

Same chunker, same prompt and same number of passages as the daemon. The bias towards refusing with which an article's questions
are answered is chosen on the other articles (`refusal.py`); the row of its name has the one that is best on all of them, which
ships, and the least and the largest that were used. Baselines: the same prompts without the reader, the
article's first tokens in place of retrieval, and no memory at all.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from memoryd.engine.base_model import EMBEDDED_MODEL, ensure_base_model, load_base_model
from memoryd.engine.reader import reader_path
from memoryd.engine.retrieval_encoder import load_retrieval_encoder
from memoryd.engine.retrieval_tokenizer import RetrievalTokenizer
from memoryd.engine.tokenizer import TextTokenizer
from memoryd.eval.datasets import Item, squad_items
from memoryd.eval.figures import Row, render_all, write
from memoryd.eval.generate import FirstToken, answers
from memoryd.eval.metrics import bootstrap, exact, f1, is_refusal, mean, wilson
from memoryd.eval.refusal import Answered, best_bias, biases_of_others
from memoryd.recall.citation import split_citation
from memoryd.recall.prompt import DEFAULT_TOP_K, REFUSAL, TextBlock, assemble

F1_AIM, REFUSAL_AIM = 0.65, 0.85
BIAS = "reader, bias towards refusing"


@dataclass(frozen=True, slots=True)
class Options:
    """What is measured with; sizes are numbers of questions."""

    data: Path
    data_dir: Path
    model: str
    reader: Path | None
    limit: int
    refusals: int
    baselines: int
    top_k: int
    threads: int
    batch: int
    quick: bool
    out: Path | None


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 measured, whatever the figures say."""
    options = _parse(argv)
    rows, said = measure(options)
    if options.out:
        options.out.write_text(json.dumps(said, indent=1))
    for row in rows:
        print(f"{row.name:60s} {row.value:.3f} [{row.low:.3f}, {row.high:.3f}] n={row.n}")
    if options.reader or options.model != EMBEDDED_MODEL:
        print("docs/figures stays as it is: it shows the reader that ships")
    elif not options.quick:
        write("reader", rows)
        render_all()
    return 0


def measure(options: Options) -> tuple[list[Row], list[dict[str, Any]]]:
    """All rows, and what was said to every question of the reader's own arms (for a person to read)."""
    import torch
    from peft import PeftModel

    torch.set_num_threads(options.threads)
    path = ensure_base_model(options.model, options.data_dir)
    base = load_base_model(path)
    tokenizer = TextTokenizer(path)
    encoder = load_retrieval_encoder(options.data_dir)
    items = squad_items(options.data, tokenizer, RetrievalTokenizer(), encoder, options.top_k)
    answerable = items.answerable[: options.limit]
    found = [i for i in answerable if i.retrieved]
    compared = found[: options.baselines]
    removed, foreign = items.removed[: options.refusals // 2], items.foreign[: options.refusals // 2]

    def prompted(item: Item) -> list[int]:
        return assemble(tokenizer, item.blocks, item.question).token_ids()

    def beginning(item: Item) -> list[int]:
        """The article's first tokens, as many as the retrieved passages have."""
        budget = sum(tokenizer.count(b.text) for b in item.blocks)
        end = tokenizer.encode_with_offsets(item.text[: budget * 8]).offsets[budget - 1][1]
        return assemble(tokenizer, [TextBlock(item.text[:end], item.blocks[0].title)], item.question).token_ids()

    def nothing(item: Item) -> list[int]:
        parts = tokenizer.chat_parts(["user"]) or []
        question = tokenizer.encode(f"Answer briefly: {item.question}")
        return [token for part in parts for token in (part.ids or question)]

    def ask(
        model: Any, asked: Sequence[Item], prompt: Callable[[Item], list[int]], first: FirstToken | None = None
    ) -> list[str]:
        said = answers(base, model, tokenizer, [prompt(i) for i in asked], 44, options.batch, first)
        return [split_citation(answer, len(i.blocks))[1] for i, answer in zip(asked, said, strict=True)]

    def ask_reader(asked: Sequence[Item]) -> list[Answered]:
        first = FirstToken(tokenizer.encode(REFUSAL)[0])
        said = ask(model, asked, prompted, first)
        return [Answered(i.text, said[n], first.leads[n], i.golds) for n, i in enumerate(asked)]

    reader = options.reader or reader_path(base.fingerprint)
    model: Any = PeftModel.from_pretrained(base.model, reader).merge_and_unload() if reader else base.model
    unbiased = [ask_reader(asked) for asked in (answerable, removed, foreign)]
    judged = [a for i, a in zip(answerable, unbiased[0], strict=True) if i.retrieved] + unbiased[1] + unbiased[2]
    biases = biases_of_others(judged)
    said, said_removed, said_foreign = ([a.with_bias(biases.get(a.article, 0.0)) for a in asked] for asked in unbiased)
    of_beginning = ask(model, compared, beginning)
    bare = load_base_model(path).model  # the reader was merged into the first one
    of_bare, of_nothing = ask(bare, compared, prompted), ask(bare, compared, nothing)

    of_found = [a for i, a in zip(answerable, said, strict=True) if i.retrieved]
    of_both = [*said_removed, *said_foreign]
    bare_f1 = mean(_scores(compared, of_bare)) if compared else None
    rows = [
        *_f1_rows("reader, passage retrieved", found, of_found, F1_AIM),
        *_f1_rows("reader, all questions", answerable, said),
        _share("reader refuses, memory does not hold the answer", _refused(of_both), len(of_both), REFUSAL_AIM),
        _share("reader refuses, gold passages removed", _refused(said_removed), len(removed)),
        _share("reader refuses, question of another article", _refused(said_foreign), len(foreign)),
        _share("reader refuses although the passage is there", _refused(of_found), len(found)),
        Row(BIAS, best_bias(judged), "logits", min(biases.values()), max(biases.values()), n=len(judged)),
        _share("passage retrieved", len(found), len(answerable)),
        *_f1_rows("reader, on the baselines' questions", compared, of_found[: len(compared)], baseline=bare_f1),
        *_f1_rows("baseline, no memory", compared, of_nothing),
        *_f1_rows("baseline, base model without reader", compared, of_bare),
        *_f1_rows("baseline, reader on the first tokens", compared, of_beginning),
    ]
    record = [
        {"question": i.question, "golds": i.golds, "retrieved": i.retrieved, "answer": a, "unbiased": u.answer, "lead": u.lead}
        for i, a, u in zip([*answerable, *removed, *foreign], [*said, *of_both], chain(*unbiased), strict=True)
    ]
    sizes = f"--limit {options.limit} --refusals {options.refusals} --baselines {options.baselines} --top-k {options.top_k}"
    command = f"python -m memoryd.eval.reader --data DIR {sizes}"
    return [replace(row, command=command) for row in rows], record


def _scores(items: Sequence[Item], said: Sequence[str]) -> list[float]:
    return [f1(a, i.golds) for i, a in zip(items, said, strict=True)]


def _f1_rows(
    name: str, items: Sequence[Item], said: Sequence[str], aim: float | None = None, baseline: float | None = None
) -> list[Row]:
    scores = _scores(items, said)
    hits = [exact(a, i.golds) for i, a in zip(items, said, strict=True)]
    value = mean(scores)
    low, high = bootstrap(scores)
    em_low, em_high = wilson(int(sum(hits)), len(hits))
    first = Row(
        name=f"{name}: F1",
        value=value,
        unit="F1",
        low=low,
        high=high,
        n=len(items),
        baseline=baseline,
        ratio=value / baseline if baseline else None,
        aim=f"≥ {aim:.2f}" if aim else "",
        met=value >= aim if aim else None,
    )
    second = Row(f"{name}: EM", mean(hits), "EM", em_low, em_high, n=len(items))
    return [first, second]


def _refused(said: Sequence[str]) -> int:
    return sum(is_refusal(a, REFUSAL) for a in said)


def _share(name: str, hits: int, n: int, aim: float | None = None) -> Row:
    low, high = wilson(hits, n)
    share = hits / n if n else float("nan")
    return Row(
        name,
        share,
        "share",
        low,
        high,
        n=n,
        aim=f"≥ {aim:.2f}" if aim else "",
        met=share >= aim if aim else None,
    )


def _parse(argv: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(prog="memoryd.eval.reader", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with eval/squad.jsonl.gz")
    parser.add_argument("--data-dir", type=Path, default=Path("~/.memoryd").expanduser(), help="base models")
    parser.add_argument("--model", default=EMBEDDED_MODEL)
    parser.add_argument("--reader", type=Path, default=None, help="a PEFT directory in place of the shipped reader")
    parser.add_argument("--limit", type=int, default=300, help="answerable questions")
    parser.add_argument("--refusals", type=int, default=200, help="questions that the memory does not answer")
    parser.add_argument("--baselines", type=int, default=60, help="questions put to each baseline")
    parser.add_argument("--top-k", type=int, default=DEFAULT_TOP_K)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="only print: docs/figures stays as it is")
    parser.add_argument("--out", type=Path, default=None, help="a file for what was answered")
    return Options(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
