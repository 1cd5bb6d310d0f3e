"""`memoryd eval learning`: what learning adds to a memory's answers, on questions that were never trained on.

    memoryd eval learning --data DIR --work DIR

Three real memories on a real daemon: Wikipedia articles (squad), papers (qasper), meetings (qmsum). A part of each one's
questions is asked: of another memory, of the reader alone, with an adapter of self-study alone, with one of the other
questions supplied as examples; in all three modes. Hours on two cores: what was learned and answered stays in --work, and the
same line goes on.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from memoryd_client import Client, LearnReceipt, Memory, Mode, Stage, StudyReceipt

from memoryd.eval.figures import Row, render_all, write
from memoryd.eval.kept_answers import KeptAnswers
from memoryd.eval.metrics import bootstrap, f1, mean, rouge
from memoryd.learn.reader_data import read_rows
from memoryd.running import running_daemon

DOCUMENTS = {"squad": 2, "qasper": 12, "qmsum": 14}
MODES = (Mode.TEXT, Mode.HYBRID, Mode.COMPRESSED)
ARMS = ("another memory", "reader", "self-study", "supplied")
_MAX_TOKENS = {"squad": 44, "qasper": 64, "qmsum": 128}
_AIMS = {"supplied": 0.07, "self-study": 0.03}  # over the reader, averaged over memories
_AT_A_TIME = 4
_DAYS = 3 * 86400.0


@dataclass(frozen=True, slots=True)
class Asked:
    """A question and its gold answers."""

    question: str
    golds: tuple[str, ...]
    document: str
    """Title of the document that it is about."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 measured, whatever the figures say."""
    options = _parse(argv)
    options.work.mkdir(parents=True, exist_ok=True)
    kept = KeptAnswers(options.work / "kept.jsonl")
    flags = ["--compressor", str(options.compressor)] if options.compressor else []
    rows: list[Row] = []
    gained: dict[str, list[float]] = {arm: [] for arm in _AIMS}
    with running_daemon(options.work / "daemon", *flags) as target, Client(target, timeout=None) as client:
        for name in options.memories:
            scores = _measured(client, kept, options, name, rows)
            for arm in _AIMS:
                gained[arm].append(mean(scores[arm, Mode.HYBRID]) - mean(scores["reader", Mode.HYBRID]))  # the default mode
    for arm, aim in _AIMS.items():
        over = mean(gained[arm])
        name = f"learned, {arm}: gained over the reader, HYBRID, mean of memories"
        row = Row(name, over, "points", *bootstrap(gained[arm]), n=len(gained[arm]))
        rows.append(replace(row, aim=f"≥ {aim}", met=over >= aim))
    command = f"memoryd eval learning --data DIR --work DIR --ask {options.ask} --examples {options.examples}"
    if not options.quick:
        write("learning", [replace(row, command=command) for row in rows])
        render_all()
    return 0


def _measured(
    client: Client, kept: KeptAnswers, options: argparse.Namespace, name: str, rows: list[Row]
) -> Mapping[tuple[str, Mode], list[float]]:
    """Scores by arm and mode of one memory; appends its rows."""
    texts, asked, supplied = load(options.data, name, options.ask, options.examples)
    memory = client.memory(name, create=True)
    names = _write(memory, kept, texts)
    other = client.memory("another", create=True)
    _write(other, kept, {"Another": _SOMETHING_ELSE})
    adapters = {
        "self-study": _studied(client, memory, kept, options.study),
        "supplied": _supplied(client, memory, kept, supplied, names),
    }
    scores: dict[tuple[str, Mode], list[float]] = {}
    metric = rouge if name == "qmsum" else f1
    for mode in MODES:
        for arm in ARMS:
            said = _answers(other if arm == "another memory" else memory, kept, asked, name, mode, arm, adapters.get(arm, ""))
            scores[arm, mode] = [metric(answer, one.golds) for answer, one in zip(said, asked, strict=True)]
            unit = "ROUGE" if name == "qmsum" else "F1"
            values, reader = scores[arm, mode], scores.get(("reader", mode))
            row = Row(f"{name}, {mode.name}, {arm}", mean(values), unit, *bootstrap(values), n=len(values))
            if arm in _AIMS and reader is not None:
                row = replace(row, baseline=mean(reader), ratio=mean(values) / mean(reader) if mean(reader) else None)
            rows.append(row)
            if arm in _AIMS and reader is not None:
                over = [a - b for a, b in zip(values, reader, strict=True)]
                rows.append(Row(f"{name}, {mode.name}, {arm}: gained", mean(over), "points", *bootstrap(over), n=len(over)))
            print(f"{row.name:44s} {row.value:.3f} [{row.low:.3f}, {row.high:.3f}] n={row.n}", flush=True)
    for arm in adapters:
        receipt = json.loads(kept[f"{name}/{arm}"])
        rows.append(Row(f"{name}, {arm}: training", receipt["seconds"] / 60, "minutes", n=receipt["examples"]))
    return scores


def load(folder: Path, name: str, ask: int, examples: int) -> tuple[dict[str, str], list[Asked], list[Asked]]:
    """(texts by title, questions to ask, other questions that are supplied as examples); no question is in both."""
    rows = list(read_rows(folder / "eval" / f"{name}.jsonl.gz"))[: DOCUMENTS[name]]
    texts = {str(row["id"]).replace("_", " "): row["text"] for row in rows}
    questions: dict[str, Asked] = {}
    for row in rows:
        for qa in row["qa"]:
            golds = tuple(dict.fromkeys(a.strip() for a in qa["answers"] if a.strip()))
            if golds:
                title = str(row["id"]).replace("_", " ")
                questions.setdefault(f"{title}/{qa['question'].strip()}", Asked(qa["question"].strip(), golds, title))
    drawn = list(questions.values())
    random.Random(0).shuffle(drawn)
    asked = drawn[:ask]
    taken = {one.question for one in asked}
    return texts, asked, [one for one in drawn[ask:] if one.question not in taken][:examples]


def _write(memory: Memory, kept: KeptAnswers, texts: Mapping[str, str]) -> dict[str, str]:
    """Documents' names by title, all of them compressed."""
    for title, text in texts.items():
        if (key := f"{memory.id}/document/{title}") not in kept:
            kept.put(key, memory.write(text, title=title).document.name)
    names = {title: kept[f"{memory.id}/document/{title}"] for title in texts}
    for name in names.values():
        memory.documents.wait(name, Stage.COMPRESSED, timeout=_DAYS)
    return names


def _studied(client: Client, memory: Memory, kept: KeptAnswers, count: int) -> str:
    """The adapter that was trained on self-study alone."""
    key = f"{memory.id}/self-study"
    if key not in kept:
        studied = client.jobs.wait(memory.study(max_examples=count), timeout=_DAYS)
        assert isinstance(studied.receipt, StudyReceipt)
        print(f"{memory.id}: {studied.receipt}", flush=True)
        kept.put(key, _learned(client, memory))
        for example in list(memory.examples.list()):
            memory.examples.delete(example)
    return str(json.loads(kept[key])["adapter"])


def _supplied(client: Client, memory: Memory, kept: KeptAnswers, supplied: Sequence[Asked], names: Mapping[str, str]) -> str:
    """The adapter that was trained on supplied examples alone."""
    key = f"{memory.id}/supplied"
    if key not in kept:
        memory.examples.add_many([(one.question, one.golds[0], [names[one.document]]) for one in supplied])
        kept.put(key, _learned(client, memory))
    return str(json.loads(kept[key])["adapter"])


def _learned(client: Client, memory: Memory) -> str:
    done = client.jobs.wait(memory.learn(keep_inactive=True, modes=MODES), timeout=_DAYS)
    receipt = done.receipt
    assert isinstance(receipt, LearnReceipt)
    print(f"{memory.id}: {receipt}", flush=True)
    return json.dumps({"adapter": receipt.adapter, "seconds": receipt.seconds, "examples": receipt.examples})


def _answers(
    memory: Memory, kept: KeptAnswers, asked: Sequence[Asked], name: str, mode: Mode, arm: str, adapter: str
) -> list[str]:
    def answer(one: Asked) -> str:
        key = f"{name}/{arm}/{mode.name}/{one.document}/{one.question}"
        if key not in kept:
            if arm in _AIMS and not adapter:  # self-study found nothing to learn: the reader it is
                kept.put(key, kept[f"{name}/reader/{mode.name}/{one.document}/{one.question}"])
            else:
                chosen = {"adapters": [adapter]} if adapter else {"no_adapter": True}
                said = memory.answer(one.question, mode=mode, max_tokens=_MAX_TOKENS[name], timeout=_DAYS, **chosen)
                kept.put(key, said.text)
        return kept[key]

    with ThreadPoolExecutor(_AT_A_TIME) as threads:
        return list(threads.map(answer, asked))


_SOMETHING_ELSE = (
    "The ferry leaves the island at nine in the morning, except on Sundays. It carries sixty passengers and four cars, and the "
    "crossing takes forty minutes when the sea is calm. Tickets are sold at the harbour office."
)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="memoryd eval learning", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with eval/*.jsonl.gz")
    parser.add_argument("--work", type=Path, required=True, help="folder of the daemon's data and of what was answered")
    parser.add_argument("--compressor", type=Path, help="what train-compressor made [that of first weights]")
    parser.add_argument("--memories", nargs="+", choices=list(DOCUMENTS), default=list(DOCUMENTS))
    parser.add_argument("--ask", type=int, default=40, help="questions of each memory, never trained on")
    parser.add_argument("--examples", type=int, default=120, help="other questions, supplied as examples, at most")
    parser.add_argument("--study", type=int, default=120, help="examples of self-study, at most")
    parser.add_argument("--quick", action="store_true", help="only print: docs/figures stays as it is")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
