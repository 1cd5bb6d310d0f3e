"""Trains the askers that ship: of facts on SQuAD's articles, of discussions on QMSum's meetings.

    python -m memoryd.learn.train_asker --data DIR --out DIR [--asks discussions] [--packs N] [--name smollm2-135m-instruct]

A pack is a passage with all that is asked of it (`asker_data.py`). Training is that of memories' adapters (`learner.py`), so it
goes on where it was stopped; at the end what was trained is written out with its model card. A tenth of the articles, or
meetings, is held out: the loss on them, before training and of what is written out, is in the card and in the metrics.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from memoryd.engine.base_model import EMBEDDED_MODEL, ensure_base_model
from memoryd.engine.tokenizer import TextTokenizer
from memoryd.errors import FailedPrecondition, MemorydError
from memoryd.learn import checkpoint
from memoryd.learn.adapter_files import CONFIG, WEIGHTS
from memoryd.learn.asker import ASKERS, DISCUSSIONS, FACTS
from memoryd.learn.asker_data import PASSAGES, packs_of, split
from memoryd.learn.soft_packing import SoftPack, predict

if TYPE_CHECKING:
    from memoryd.engine.adapters import Adapters
    from memoryd.engine.base_model import BaseModel
    from memoryd.engine.request import LearnEvent, Learning

_HELD_OUT_PACKS = 40  # both measurements of them take about a twentieth of the time of training on 600
_RUN = "run.json"
_SAY_EVERY = 5  # steps
_ASKER = "asker"
_CARD = """---
license: {license}
library_name: peft
tags: [lora, question-generation]
---
# Asker for {name}: {asks}

The LoRA that makes {name} write {writes}, with the passage before it.
memoryd's self-study uses it to make examples of a memory's own passages. Trained on {data}:
{packs} passages of {articles} {articles_are}, {tokens:,} positions, {minutes:.0f} minutes on a CPU; LoRA r={rank},
alpha={alpha:g}. The base is {name}, Apache-2.0. Limits: English, and {limits}.

| loss on what it writes | |
|---|---|
| in training, mean of the last tenth of the steps | {loss:.2f} |
| on {held_out_packs} passages of {held_out_articles} held-out {articles_are}, before training | {before:.2f} |
| on the same, after training | {after:.2f} |

Made by `python -m memoryd.learn.train_asker --asks {asks}`.
"""
_ABOUT = {
    FACTS: {
        "license": "cc-by-sa-4.0",
        "writes": "the question that a given answer answers",
        "data": "SQuAD 1.1 (Wikipedia, CC BY-SA 4.0)",
        "articles_are": "articles",
        "limits": "questions of SQuAD's kind: short facts",
    },
    DISCUSSIONS: {
        "license": "mit",
        "writes": "a question about a conversation and its answer in a few sentences",
        "data": "QMSum (MIT)",
        "articles_are": "meetings",
        "limits": "questions of QMSum's kind: what was discussed in a meeting, and what somebody said of it",
    },
}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 failed."""
    parser = argparse.ArgumentParser(prog="train_asker", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with squad.jsonl.xz or qmsum.jsonl.xz")
    parser.add_argument("--out", type=Path, required=True, help="checkpoints and metrics; a run found there goes on")
    parser.add_argument("--asks", choices=sorted(PASSAGES), default=FACTS, help=f"what for [{FACTS}]")
    parser.add_argument("--packs", type=int, default=600)
    parser.add_argument("--name", default=EMBEDDED_MODEL)
    parser.add_argument("--data-dir", type=Path, default=Path("~/.memoryd").expanduser(), help="converted base models")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the base model")
    parser.add_argument("--assets", type=Path, default=ASKERS, help="where the result is written")
    options = parser.parse_args(argv)
    import torch

    torch.set_num_threads(options.threads)
    try:
        train(options)
    except (MemorydError, OSError) as error:
        print(f"train_asker: {error}", file=sys.stderr)
        return 1
    return 0


def train(options: argparse.Namespace) -> None:
    """Train on so many packs, or go on with the run in `--out`, and write the asker of the base model into `--assets`.

    FailedPrecondition where the run in `--out` is another one; InvalidArgument where the data has too few articles.
    """
    from memoryd.engine.adapters import ALL_LINEAR, Adapters
    from memoryd.engine.base_model import load_base_model
    from memoryd.engine.request import Learning, LearnSettings
    from memoryd.learn.learner import RESULT

    name, asks, out = options.name, options.asks, options.out
    path = ensure_base_model(name, options.data_dir)
    base = load_base_model(path, options.dtype)
    adapters, tokenizer = Adapters(base), TextTokenizer(path)
    settings = LearnSettings(8, 16.0, ALL_LINEAR, 5e-4, epochs=1, batch=4)
    shown, hidden = split(PASSAGES[asks](options.data, tokenizer), settings.seed)
    packs = packs_of(shown, tokenizer, base.eos_ids[0], options.packs, settings.seed)
    held_out = packs_of(hidden, tokenizer, base.eos_ids[0], _HELD_OUT_PACKS, settings.seed)
    begin(out, base.fingerprint, packs, held_out, asdict(settings))

    before = _before(out, base, adapters, held_out)
    print(f"held-out loss {before:.3f} before training", flush=True)
    last = _train(Learning(packs, [], out, name, settings), base, adapters)
    adapters.load(_ASKER, out / RESULT)  # as it ships: in half precision
    after = loss_of(base, adapters, held_out, _ASKER)
    rows = [row for row in checkpoint.metrics(out) if "loss" in row]
    _log(out, rows[-1] | {"held_out_loss": round(after, 5)})
    loss = mean(row["loss"] for row in rows[-max(1, len(rows) // 10) :])
    print(f"loss {loss:.3f} at the end, held-out loss {after:.3f} after training", flush=True)

    target = options.assets / folder_name(name, asks)
    target.mkdir(parents=True, exist_ok=True)
    for file in (CONFIG, WEIGHTS):
        shutil.copyfile(out / RESULT / file, target / file)
    about: dict[str, Any] = {
        "base_model": name,
        "asks": asks,
        "base_fingerprint": base.fingerprint,
        "packs": len(packs),
        "loss": round(loss, 4),
        "held_out_packs": len(held_out),
        "held_out_loss_before": round(before, 4),
        "held_out_loss": round(after, 4),
    }
    (target / "memoryd.json").write_text(json.dumps(about, indent=1) + "\n")
    card = _CARD.format(
        **_ABOUT[asks],
        name=name,
        asks=asks,
        articles=len({passage.title for passage in shown}),
        packs=len(packs),
        tokens=last.tokens,
        minutes=last.seconds / 60,
        rank=settings.rank,
        alpha=settings.alpha,
        loss=loss,
        held_out_packs=len(held_out),
        held_out_articles=len({passage.title for passage in hidden}),
        before=before,
        after=after,
    )
    (target / "README.md").write_text(card)


def folder_name(name: str, asks: str) -> str:
    """Among the askers that ship."""
    return Path(name).name if asks == FACTS else f"{Path(name).name}-{asks}"


def begin(
    out: Path, base_fingerprint: str, packs: Sequence[SoftPack], held_out: Sequence[SoftPack], settings: Mapping[str, Any]
) -> None:
    """Writes down what decides the run in `out`; FailedPrecondition where what goes on there is another run: two schedules
    would be mixed, and the card would be of neither."""
    data = hashlib.sha256(repr([packs, held_out]).encode()).hexdigest()
    facts = {"packs": len(packs), "base_fingerprint": base_fingerprint, "data": data, "settings": settings}
    text = json.dumps(facts, indent=1) + "\n"
    file = out / _RUN
    known = json.loads(file.read_text()) if file.is_file() else {}
    if known.get("packs", len(packs)) != len(packs):
        raise FailedPrecondition(
            f"{out} holds a run of {known['packs']} packs, not of {len(packs)}: go on with --packs {known['packs']}, or choose "
            "another --out"
        )
    if known != json.loads(text) and (known or (out / checkpoint.METRICS).exists()):
        raise FailedPrecondition(f"{out} holds a run with other data, settings or base model: choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    building = file.with_suffix(".new")
    building.write_text(text)
    building.replace(file)


def loss_of(base: BaseModel, adapters: Adapters, packs: Sequence[SoftPack], adapter: str = "") -> float:
    """Mean over the packs of the loss on their questions, of the base model with this adapter."""
    import torch

    with torch.no_grad(), adapters.using(adapter):
        return mean(predict(base.model, [pack], [()]).loss().item() for pack in packs)


def _before(out: Path, base: BaseModel, adapters: Adapters, held_out: Sequence[SoftPack]) -> float:
    """The held-out loss of the base model; of a run that goes on, as it was measured then."""
    checkpoint.mend_metrics(out)
    rows = checkpoint.metrics(out) if (out / checkpoint.METRICS).is_file() else []
    known = [float(row["held_out_loss"]) for row in rows if row["step"] == 0]
    if known:
        return known[0]
    before = loss_of(base, adapters, held_out)
    _log(out, {"step": 0, "held_out_loss": round(before, 5)})
    return before


def _train(learning: Learning, base: BaseModel, adapters: Adapters) -> LearnEvent:
    """To the end; its last event."""
    from memoryd.learn.learner import Learner

    learner = Learner(1, learning, base, adapters, tokens=1024)
    while True:
        event = learner.step()
        if event and (event.step % _SAY_EVERY == 0 or event.finish_reason):
            rate, left = event.tokens / event.seconds, event.seconds / event.step * (event.steps - event.step) / 60
            print(f"{event.step}/{event.steps} loss {event.loss:.3f}, {rate:.0f} tokens/s, {left:.1f} min left", flush=True)
        if event and event.finish_reason:
            learner.close()
            return event


def _log(out: Path, row: Mapping[str, Any]) -> None:
    with (out / checkpoint.METRICS).open("a") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    sys.exit(main())
