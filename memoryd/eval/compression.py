"""`memoryd eval compression`: what the reader answers from compressed embeddings, beside the honest baselines.

    memoryd eval compression --compressor DIR --data DIR

Same reader, same questions, same slots. Writes docs/figures/compression.json, the picture of F1 over context slots, and
with --gate the verdict into the compressor's own card.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from memoryd.compress import codec
from memoryd.compress.base import Trainable
from memoryd.compress.card import RATIOS, Gate, read_card, show_verdicts, write_card
from memoryd.compress.load import compressor_path, is_own, load_compressor
from memoryd.compress.pooled import PooledCompressor
from memoryd.engine.adapters import Adapters
from memoryd.engine.base_model import EMBEDDED_MODEL, ensure_base_model, load_base_model
from memoryd.engine.reader import Readers, Refusal, readers_for
from memoryd.engine.retrieval_tokenizer import RetrievalTokenizer
from memoryd.engine.runner import to_bytes
from memoryd.engine.tokenizer import TextTokenizer
from memoryd.eval.arms import AT_A_RATIO, FIXED, INT8, SOFT, show, slots
from memoryd.eval.choices import choose
from memoryd.eval.compression_data import SETS, Case, cases
from memoryd.eval.compression_rows import arm_rows, gate_of, gate_rows, hybrid_rows, int8_rows
from memoryd.eval.figures import Row, render_all, write
from memoryd.eval.generate import answers_of
from memoryd.eval.kept_answers import KeptAnswers
from memoryd.eval.metrics import bootstrap, mean
from memoryd.learn.compressor_data import REPEAT
from memoryd.learn.soft_packing import SoftPack, predict
from memoryd.recall.citation import split_citation
from memoryd.recall.prompt import SoftSlot, assemble

_MAX_TOKENS = 44
_FOLLOW = 128  # tokens of the following text whose perplexity is measured
_KEEP_EVERY = 8  # batches
_KEEP = {8: 0.70, 16: 0.55}  # of the raw text's F1 on squad: what is aimed at


@dataclass(frozen=True, slots=True)
class Bench:
    """The models under test."""

    base: Any
    adapters: Adapters
    compressor: Trainable
    directory: Path | None
    """The compressor's; None for that of first weights."""
    tokenizer: TextTokenizer
    readers: str
    """Their fingerprint; empty without any."""
    refusals: Mapping[bool, Refusal | None]
    """Those of prompts with compressed embeddings, and without; as what is kept."""
    kept: Mapping[bool, KeptAnswers]
    ratios: Sequence[int]
    made: dict[tuple[str, int], codec.CompressedEmbeddings] = field(default_factory=dict)

    def compressed(self, chunk: str, ratio: int, storage: codec.Storage) -> Any:
        """[k, d_model] in the base model's dtype, as the daemon reads it back from what it stored."""
        import torch

        read = codec.decode(self.stored(chunk, ratio, storage), self.compressor.fingerprint)
        table_VD = self.base.model.get_input_embeddings().weight
        return torch.from_numpy(read.to_float32()).to(table_VD.device, table_VD.dtype)

    def stored(self, chunk: str, ratio: int, storage: codec.Storage) -> bytes:
        """What the daemon would store of a chunk. Arms, questions and ratios share a chunk's pass of the encoder."""
        import torch

        if (chunk, ratio) not in self.made:
            ids = [self.tokenizer.encode(chunk)]
            with torch.inference_mode():
                if isinstance(self.compressor, PooledCompressor):
                    soft = self.compressor.encode_at(ids, self.ratios)
                else:
                    soft = {ratio: self.compressor.encode(ids, ratio)}
            self.made.update({(chunk, at): to_bytes(soft_KD) for at, (soft_KD,) in soft.items()})
        sha256 = hashlib.sha256(chunk.encode()).hexdigest()
        fingerprint = self.compressor.fingerprint
        return codec.encode(self.made[chunk, ratio], fingerprint=fingerprint, chunk_sha256=sha256, storage=storage)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 measured, whatever the figures say; 2 where the verdict has no place."""
    import torch

    options = _parse(argv)
    everything = set(options.sets) == set(SETS)
    if options.gate and options.compressor and not is_own(options.compressor):
        print("--gate: a compressor in a published layout has no card to write a verdict into", file=sys.stderr)
        return 2
    if options.gate and not everything:
        print("--gate: a verdict is over all sets: leave --sets out", file=sys.stderr)
        return 2
    torch.set_num_threads(options.threads)
    bench = _load(options)
    tokenizer = bench.tokenizer
    chunk_tokens = bench.compressor.chunk_tokens
    asked: list[Case] = []
    for name in options.sets:
        asked += cases(options.data, name, tokenizer, RetrievalTokenizer(), options.limit, options.chunks, chunk_tokens)
    rows: list[Row] = []
    gates: dict[int, Gate] = {}
    ratios = bench.ratios
    fixed = {arm: _answered(bench, asked, arm, ratios[0], options.batch) for arm in FIXED}
    for arm, said in fixed.items():
        rows += arm_rows(arm, asked, said)
    for ratio in ratios:
        at = {arm: _answered(bench, asked, arm, ratio, options.batch) for arm in AT_A_RATIO}
        for arm, said in at.items():
            aim = _KEEP.get(ratio) if arm == "compressed" else None
            rows += arm_rows(f"{arm} at {ratio}x", asked, said, against=("raw", fixed["raw"]), keep=aim)
        if not options.no_int8:
            rows += int8_rows(ratio, asked, _answered(bench, asked, INT8, ratio, options.batch), at["compressed"])
        rows += _stored_rows(bench, asked, ratio)
        context = {arm: _context(bench, asked, arm, ratio) for arm in ("hybrid", "raw")}
        rows += hybrid_rows(ratio, asked, at["hybrid"], fixed["raw"], fixed["whole"], context["hybrid"], context["raw"])
        taken = [slots(tokenizer, case.chunks, partial(bench.compressor.slots, ratio=ratio)) for case in asked]
        rows.append(Row(f"slots at {ratio}x", mean(taken), "slots", n=len(asked)))
        rows += _language_rows(bench, asked, ratio, options.texts)
        gates[ratio] = gate_of(asked, at, _fingerprint(bench, ratio), bench.readers)
        rows += gate_rows(ratio, gates[ratio])
        verdict = "passed" if gates[ratio].passed else "not passed"
        print(f"gate at {ratio}x: {verdict} {dict(gates[ratio].figures)}", flush=True)
    for row in rows:
        print(f"{row.name:48s} {row.value:.3f} n={row.n}", flush=True)
    if everything and not options.quick:
        if name := _name(bench):
            write(name, [replace(row, command=_command(options)) for row in rows])
            render_all()
        else:
            print("docs/figures stays as it is: it shows the compressor that ships, and this is another one")
    if options.gate and bench.directory:
        card = read_card(bench.directory)
        write_card(bench.directory, replace(card, gates={**card.gates, **gates}))
        show_verdicts(bench.directory)
    return 0


def _load(options: argparse.Namespace) -> Bench:
    path = ensure_base_model(options.base, options.data_dir)
    base = load_base_model(path)
    directory = options.compressor or compressor_path(base.fingerprint)
    readers = readers_for(directory, base.fingerprint)
    adapters = Adapters(base, readers)
    compressor = load_compressor(directory, base, adapters, options.ratios[0])
    by_reader = {soft: Readers(readers.soft if soft and readers.soft else readers.text) for soft in (False, True)}
    refusals = {soft: one.refusal(soft) for soft, one in by_reader.items()}
    kept = {
        soft: KeptAnswers(options.keep, base.fingerprint, one.fingerprint, refusals[soft], _MAX_TOKENS)
        for soft, one in by_reader.items()
    }
    ratios = options.ratios if compressor.name == "pooled" else [compressor.ratio]
    return Bench(base, adapters, compressor, directory, TextTokenizer(path), readers.fingerprint, refusals, kept, ratios)


def _name(bench: Bench) -> str:
    """Of the figures: a part of the ratios does not take the place of all, nor does another compressor that of the one that
    ships, for which there are none. Other kinds, of which none ships, have figures of their own."""
    if bench.compressor.name != "pooled":
        return f"compression-{bench.compressor.name}"
    shipped = compressor_path(bench.base.fingerprint)
    if bench.directory != shipped and (shipped is None or not _is(bench, shipped)):
        return ""
    part = "" if set(bench.ratios) == set(RATIOS) else f"-{'-'.join(f'{ratio}x' for ratio in sorted(set(bench.ratios)))}"
    return f"compression{part}"


def _fingerprint(bench: Bench, ratio: int) -> str:
    """What the compressor is known by where it is loaded at this ratio."""
    return load_compressor(bench.directory, bench.base, bench.adapters, ratio).fingerprint


def _is(bench: Bench, directory: Path) -> bool:
    """Whether what is measured is the compressor in this directory, with its reader."""
    other = load_compressor(directory, bench.base, Adapters(bench.base), bench.ratios[0]).fingerprint
    return (_fingerprint(bench, bench.ratios[0]), bench.readers) == (
        other,
        readers_for(directory, bench.base.fingerprint).fingerprint,
    )


def _command(options: argparse.Namespace) -> str:
    sizes = f"--limit {options.limit} --chunks {options.chunks} --texts {options.texts}"
    made = "--compressor DIR " if options.compressor else ""
    part = "" if options.ratios == list(RATIOS) else f" --ratios {' '.join(map(str, options.ratios))}"
    return f"memoryd eval compression --data DIR {made}{sizes}{part}{' --no-int8' if options.no_int8 else ''}"


def _answered(bench: Bench, asked: Sequence[Case], arm: str, ratio: int, batch: int) -> list[str]:
    """What the reader says to each question in this arm."""
    import torch

    embed = bench.base.model.get_input_embeddings()
    prompts: list[torch.Tensor] = []
    blocks: list[int] = []
    storage: codec.Storage = "int8" if arm == INT8 else "bfloat16"
    for case in asked:
        shown = show(arm, case, bench.tokenizer, partial(bench.compressor.slots, ratio=ratio))
        prompt = assemble(bench.tokenizer, shown.blocks, case.question)
        soft = {key: bench.compressed(chunk, ratio, storage) for key, chunk in shown.chunks.items()}
        with torch.inference_mode():
            pieces = [
                soft[s.chunk_key] if isinstance(s, SoftSlot) else embed(torch.tensor(list(s.ids))) for s in prompt.segments
            ]
            prompts.append(torch.cat(pieces))
        blocks.append(len(prompt.numbered))
    is_soft = arm in SOFT
    kept, refusal = bench.kept[is_soft], bench.refusals[is_soft]
    # An option that was chosen is no answer to the same prompt.
    keys = [kept.key(prompt) + "/option" * bool(case.options) for prompt, case in zip(prompts, asked, strict=True)]
    todo = sorted((n for n, key in enumerate(keys) if kept.get(key) is None), key=lambda n: len(prompts[n]))
    with bench.adapters.using(bench.adapters.reader(is_soft) if bench.readers else ""):
        for n in (n for n in todo if asked[n].options):
            kept.put(keys[n], choose(bench.base.model, bench.tokenizer, prompts[n], asked[n].options, blocks[n] > 0))
        todo = [n for n in todo if not asked[n].options]
        for at in range(0, len(todo), _KEEP_EVERY * batch):
            some = todo[at : at + _KEEP_EVERY * batch]
            label = f"{arm} {ratio}x, {len(todo) - at} to go:"
            given = (bench.base, bench.base.model, bench.tokenizer, [prompts[n] for n in some])
            for n, answer in zip(some, answers_of(*given, _MAX_TOKENS, batch, label, refusal=refusal), strict=True):
                kept.put(keys[n], answer)
    said = [kept.get(key) or "" for key in keys]
    return [
        answer if case.options else split_citation(answer, count)[1]
        for answer, count, case in zip(said, blocks, asked, strict=True)
    ]


def _context(bench: Bench, asked: Sequence[Case], arm: str, ratio: int) -> float:
    """Mean tokens before the question, text and soft."""
    shown = [show(arm, case, bench.tokenizer, partial(bench.compressor.slots, ratio=ratio)).blocks for case in asked]
    prompts = [assemble(bench.tokenizer, blocks, case.question) for blocks, case in zip(shown, asked, strict=True)]
    return mean([prompt.context_tokens for prompt in prompts])


def _stored_rows(bench: Bench, asked: Sequence[Case], ratio: int) -> list[Row]:
    """Bytes that the daemon stores for each source token of the chunks asked about, headers and scales included."""
    chunks = list(dict.fromkeys(chunk for case in asked for chunk in case.chunks))
    tokens = sum(bench.tokenizer.count(chunk) for chunk in chunks)
    plain, small = (
        sum(len(bench.stored(chunk, ratio, storage)) for chunk in chunks) / tokens for storage in ("bfloat16", "int8")
    )
    unit = "bytes/token"
    return [
        Row(f"stored at {ratio}x, bfloat16", plain, unit, n=len(chunks)),
        Row(f"stored at {ratio}x, int8", small, unit, n=len(chunks), baseline=plain, ratio=small / plain),
    ]


def _language_rows(bench: Bench, asked: Sequence[Case], ratio: int, count: int) -> list[Row]:
    """How many tokens of a chunk the base model gets right when it repeats it, each after the right ones before, and how well
    it foresees the text after the chunk. Both from compressed embeddings, and from nothing."""
    import torch

    repeat = tuple(bench.tokenizer.encode(REPEAT))
    hits: dict[str, list[float]] = {"compressed": [], "nothing": []}
    losses: dict[str, list[float]] = {"compressed": [], "nothing": [], "text": []}
    documents = list({case.text: case for case in asked}.values())
    length = bench.compressor.chunk_tokens
    with torch.inference_mode():
        for number in range(count):
            ids = tuple(bench.tokenizer.encode(documents[number % len(documents)].text))
            start = (number // len(documents)) * (length + _FOLLOW)
            chunk, rest = ids[start : start + length], ids[start + length : start + length + _FOLLOW]
            if len(rest) < 2:
                continue
            soft = bench.compressor.encode([chunk], ratio)
            model = bench.base.model
            first, rest = rest[:1], rest[1:]  # something must stand before the first token that is foreseen
            contexts: dict[str, tuple[tuple[int, ...] | int, ...]] = {"compressed": (0, first), "nothing": (first,)}
            for name in hits:
                again = predict(model, [SoftPack((chunk,), contexts[name][:1], ((repeat, chunk),))], [soft])
                hits[name].append(again.hits())
            for name, context in (contexts | {"text": (chunk + first,)}).items():
                losses[name].append(float(predict(model, [SoftPack((chunk,), context, (((), rest),))], [soft]).loss()))
    rows = [
        Row(f"repeated at {ratio}x after {name}: tokens right", mean(values), "share", *bootstrap(values), n=len(values))
        for name, values in hits.items()
    ]
    for name, values in losses.items():
        perplexities = [math.exp(value) for value in values]
        rows.append(
            Row(
                f"continued at {ratio}x after {name}", mean(perplexities), "perplexity", *bootstrap(perplexities), n=len(values)
            )
        )
    return rows


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="memoryd eval compression", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with eval/*.jsonl.gz")
    parser.add_argument("--compressor", type=Path, help="what train-compressor made, of any kind [the one that ships]")
    parser.add_argument("--base", default=EMBEDDED_MODEL)
    parser.add_argument("--data-dir", type=Path, default=Path("~/.memoryd").expanduser(), help="converted base models")
    parser.add_argument("--ratios", type=int, nargs="+", default=list(RATIOS), help="of a pooled compressor")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--limit", type=int, default=75, help="questions of each set")
    parser.add_argument("--chunks", type=int, default=2, help="chunks that retrieval brings")
    parser.add_argument("--texts", type=int, default=24, help="chunks to repeat and to continue")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="file that keeps answers: the same line again goes on where it was stopped")
    parser.add_argument("--no-int8", action="store_true", help="leave out the answers from embeddings stored as int8")
    parser.add_argument("--gate", action="store_true", help="write the verdict into the compressor's card")
    parser.add_argument("--quick", action="store_true", help="only print: docs/figures stays as it is")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
