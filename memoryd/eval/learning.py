"""`memoryd eval learning`: what learning adds to a memory's answers, on questions that were never trained on.

    memoryd eval learning --data DIR --work DIR

Three real memories on a real daemon: Wikipedia articles (squad), papers (qasper), meetings (qmsum). A part of each one's
questions is asked: of another memory, of the reader alone, with an adapter of self-study alone, with one of other questions
supplied as examples. In TEXT, in HYBRID where the compressor's gate is open (else that answers as TEXT does), and half of them
in COMPRESSED. Questions of another memory are put too, which each adapter should go on to refuse. Hours on two cores: what was
learned and answered stays in --work, and the same line goes on after any stop.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from memoryd_client import Client, Memory, MemorydError, Mode

from memoryd import config
from memoryd.engine.reader import reader_fingerprint
from memoryd.errors import SettingsError
from memoryd.eval.figures import Row, commit, render_all, write
from memoryd.eval.kept_answers import KeptAnswers
from memoryd.eval.learning_data import DOCUMENTS, Asked, Questions, load
from memoryd.eval.learning_rows import (
    AIMS,
    Pair,
    Score,
    headline,
    learned_rows,
    refusal_row,
    score_rows,
    scores_of,
    study_rows,
)
from memoryd.eval.learning_steps import DAYS, Steps
from memoryd.eval.settled import commits, fingerprint_of_files, settle
from memoryd.learn.asker import DISCUSSIONS, FACTS, asker_path
from memoryd.running import running_daemon

EX_CONFIG = 78
ANOTHER, READER, STUDIED, SUPPLIED = "another memory", "reader", "self-study", "supplied"
_MAX_TOKENS = {"squad": 44, "qasper": 64, "qmsum": 128}
_AT_A_TIME = 4
_DECIDES = ("model", "dtype", "ratio", "embedding_storage", "max_context_tokens", "teacher_url", "teacher_model", "learn_")
_SOMETHING_ELSE = (
    "The ferry leaves the island at nine in the morning, except on Sundays. It carries sixty passengers and four cars, and the "
    "crossing takes forty minutes when the sea is calm. Tickets are sold at the harbour office."
)

Say = Callable[[str], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 measured, whatever the figures say; 1 an error, after which the same line goes on; 78 --work holds a run
    with other options; 130 and 143 stopped."""
    options = _parse(argv)
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"{(time.monotonic() - began) / 60:6.1f} min  {line}", flush=True)

    try:
        _measure(options, say)
    except (SettingsError, MemorydError) as error:
        print(f"memoryd eval learning: {error.message}", file=sys.stderr)
        return EX_CONFIG if isinstance(error, SettingsError) else 1
    except KeyboardInterrupt:
        return 130
    return 0


def _measure(options: argparse.Namespace, say: Say) -> None:
    questions = {name: load(options.data, name, options.ask, options.examples) for name in options.memories}
    settle(options.work, _options(options, questions))
    code = commits(options.work, commit())
    kept = KeptAnswers(options.work / "kept.jsonl")
    flags = ["--learn-after-tokens", "0"]  # nothing is learned but what is asked for here
    flags += ["--compressor", str(options.compressor)] if options.compressor else []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the daemon drains
    rows: list[Row] = []
    with running_daemon(options.work / "daemon", *flags) as target, Client(target, timeout=None) as client:
        say("the daemon is ready")
        another = client.memory("another", create=True)
        Steps(client, another, kept, say).write({"Another": _SOMETHING_ELSE})
        settle(options.work, _models(another))
        gate_open = _serves(another, Mode.HYBRID)
        if not gate_open:
            say("HYBRID answers as TEXT while the compressor's gate is shut: it is not asked, and the headline is of TEXT")
        bench = Bench(client, another, kept, say, rows, Mode.HYBRID if gate_open else Mode.TEXT)
        measured = [bench.measure(name, questions[name], options.study) for name in options.memories]
        for arm in AIMS:
            bench.add(headline(arm, bench.usual.name, [own[arm] for own in measured]))
    if options.quick or set(options.memories) != set(DOCUMENTS):
        say("docs/figures stays as it is: it takes a run of all memories without --quick")
        return
    write("learning", [replace(row, command=_command(options), commit=code) for row in rows])
    render_all()


@dataclass(frozen=True, slots=True)
class Bench:
    """A daemon, what was kept, and the rows so far."""

    client: Client
    another: Memory
    kept: KeptAnswers
    say: Say
    rows: list[Row]
    usual: Mode
    """What a caller who says nothing is answered in."""

    def measure(self, name: str, questions: Questions, study: int) -> dict[str, list[Pair]]:
        """One memory: adds its rows; gives each adapter's scores beside the reader's in the usual mode."""
        memory = self.client.memory(name, create=True)
        steps = Steps(self.client, memory, self.kept, self.say)
        names = steps.write(questions.texts)
        studied = steps.study(study)
        learned = {STUDIED: steps.learn(STUDIED)}
        steps.supply(questions.supplied, names)
        learned[SUPPLIED] = steps.learn(SUPPLIED)
        adapters = {READER: "", **{arm: one.adapter for arm, one in learned.items()}}

        pairs: dict[str, list[Pair]] = {}
        self._score(name, Mode.TEXT, ANOTHER, self.another, "", questions.asked)
        for mode in dict.fromkeys((Mode.TEXT, self.usual, Mode.COMPRESSED)):
            asked = questions.asked[: (len(questions.asked) + 1) // 2] if mode is Mode.COMPRESSED else questions.asked
            reader: list[Score] | None = None
            for arm, adapter in adapters.items():
                scores = self._score(name, mode, arm, memory, adapter, asked, reader)
                if reader is not None and mode is self.usual:
                    pairs[arm] = list(zip(scores, reader, strict=True))
                reader = reader or scores
        refused: list[str] | None = None
        for arm, adapter in adapters.items():
            said = self._answers(memory, questions.outside, Mode.TEXT, adapter, _MAX_TOKENS[name])
            self.add(refusal_row(name, arm, said, refused))
            refused = refused or said
        for row in study_rows(name, studied):
            self.add(row)
        for arm, one in learned.items():
            for row in learned_rows(name, arm, one):
                self.add(row)
        return pairs

    def add(self, row: Row) -> None:
        interval = f" [{row.low:.3f}, {row.high:.3f}]" if row.low is not None else ""
        against = f" against {row.baseline:.3f}" if row.baseline is not None else ""
        self.say(f"{row.name}: {row.value:.3f} {row.unit}{interval}{against} n={row.n}")
        self.rows.append(row)

    def _score(
        self,
        name: str,
        mode: Mode,
        arm: str,
        memory: Memory,
        adapter: str,
        asked: Sequence[Asked],
        reader: Sequence[Score] | None = None,
    ) -> list[Score]:
        said = self._answers(memory, asked, mode, adapter, _MAX_TOKENS[name])
        scores = scores_of(name, asked, said)
        for row in score_rows(name, mode.name, arm, scores, reader):
            self.add(row)
        return scores

    def _answers(self, memory: Memory, asked: Sequence[Asked], mode: Mode, adapter: str, max_tokens: int) -> list[str]:
        """With this adapter; of the reader alone where that is empty: then there was nothing to learn."""

        def answer(one: Asked) -> str:
            key = json.dumps([memory.id, mode.name, adapter or READER, one.document, one.question])
            if key not in self.kept:
                chosen = {"adapters": [adapter]} if adapter else {"no_adapter": True}
                said = memory.answer(one.question, mode=mode, max_tokens=max_tokens, timeout=DAYS, **chosen)
                self.kept.put(key, said.text)
            return self.kept[key]

        with ThreadPoolExecutor(_AT_A_TIME) as threads:
            return list(threads.map(answer, asked))


def _options(options: argparse.Namespace, questions: dict[str, Questions]) -> dict[str, str]:
    """All that is known before the daemon starts: it would go on with the jobs that an earlier one left."""
    settings = config.load(flags={"compressor": options.compressor} if options.compressor else {})
    return {
        "--ask": str(options.ask),
        "--examples": str(options.examples),
        "--study": str(options.study),
        "compressor": fingerprint_of_files(settings.compressor) if settings.compressor else "the one that ships",
        **{f"setting {name}": str(value) for name, value in settings if name.startswith(_DECIDES)},
        **{f"questions of {name}": one.fingerprint for name, one in questions.items()},
    }


def _models(memory: Memory) -> dict[str, str]:
    """What the daemon says that it answers with, and the askers that ship for that."""
    used = memory.answer("When does the ferry leave?", mode=Mode.COMPRESSED, max_tokens=1, no_adapter=True, timeout=DAYS).usage
    askers = [path for asks in (FACTS, DISCUSSIONS) if (path := asker_path(used.base_model, asks))]
    return {
        "base model": used.base_model,
        "reader": used.adapter or "none",
        "compressed embeddings": used.compressor,
        "askers": " ".join(map(reader_fingerprint, askers)) or "the base model itself",
    }


def _serves(memory: Memory, mode: Mode) -> bool:
    """Whether answers in this mode are given in this mode."""
    with memory.answer("When does the ferry leave?", mode=mode, max_tokens=1, no_adapter=True, timeout=DAYS) as answer:
        return answer.basis.mode is mode


def _command(options: argparse.Namespace) -> str:
    compressor = " --compressor DIR" if options.compressor else ""
    counts = f"--ask {options.ask} --examples {options.examples} --study {options.study}"
    return f"memoryd eval learning --data DIR --work DIR{compressor} {counts}"


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="memoryd eval learning", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with eval/*.jsonl.gz")
    parser.add_argument("--work", type=Path, required=True, help="folder of the daemon's data and of what was answered")
    parser.add_argument("--compressor", type=Path, help="what train-compressor made [the one that ships]")
    parser.add_argument("--memories", nargs="+", choices=list(DOCUMENTS), default=list(DOCUMENTS))
    parser.add_argument("--ask", type=int, default=40, help="questions of each memory, never trained on [40]")
    parser.add_argument("--examples", type=int, default=80, help="other questions, supplied as examples, at most [80]")
    parser.add_argument("--study", type=int, default=60, help="examples of self-study, at most [60]")
    parser.add_argument("--quick", action="store_true", help="only print: docs/figures stays as it is")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
