"""The compression eval: arms get the slots that they should, sets are read as they are, and the gate is what was measured."""

from __future__ import annotations

import gzip
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from memoryd.__main__ import main
from memoryd.compress import pooled
from memoryd.compress.card import Gate, read_card
from memoryd.compress.load import load_compressor
from memoryd.compress.pooled import Projector
from memoryd.compress.slots import LearnedTokens, SlotSettings, save
from memoryd.engine.adapters import ENCODER, Adapters
from memoryd.engine.base_model import load_base_model
from memoryd.engine.retrieval_tokenizer import RetrievalTokenizer
from memoryd.engine.tokenizer import TextTokenizer
from memoryd.eval import compression
from memoryd.eval.arms import AT_A_RATIO, FIXED, INT8, show, slots
from memoryd.eval.choices import choose
from memoryd.eval.compression_data import SETS, Case, cases
from memoryd.eval.compression_rows import arm_rows, gate_rows, hybrid_rows, int8_rows, score
from memoryd.eval.generate import answers
from memoryd.recall.prompt import REFUSAL, SoftBlock, TextBlock
from tests.tiny_models import make_tiny_model

STORY = " ".join(
    f"In NAME on day {n} the river at Lisbon was {('blue', 'green')[n % 2]} and the city slept well." for n in range(90)
)


def pack(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    asked = [{"question": "Where is the river?", "answers": ["Lisbon", "Lisbon"]}]
    choice = "Which city slept?\n\n (A) Porto\n (B) Lisbon\n (C) Faro\n (D) Braga"
    for name in SETS:
        qa = [{"question": choice, "answers": ["(B) Lisbon"]}] if name == "quality" else asked
        rows = [{"id": f"The_{n}", "text": STORY.replace("NAME", n), "qa": qa} for n in "ab"]
        pack(folder / "eval" / f"{name}.jsonl.gz", rows)
    raw = {"para_a": ["The river. ", "At Lisbon."], "para_b": ["Blue."], "distractors": [["Porto", ["A ", "city."], 0.4]]}
    pack(
        folder / "eval" / "hotpotqa.jsonl.gz",
        [{"id": n, "question": "Where?", "answers": ["Lisbon"], "raw": raw} for n in "ab"],
    )
    return folder


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model("llama", tmp_path_factory.mktemp("model"))


def test_sets_are_read_as_they_are(data: Path) -> None:
    counter = RetrievalTokenizer()
    (squad, _) = cases(data, "squad", counter, counter, 9, 2)
    assert (squad.question, squad.golds, squad.options) == ("Where is the river?", ("Lisbon",), ())
    assert len(squad.chunks) == len(squad.wrong) == 2
    assert all(chunk in squad.text for chunk in (*squad.chunks, squad.passage))
    assert squad.title != squad.wrong_title
    (quality, _) = cases(data, "quality", counter, counter, 9, 1)
    assert (quality.question, quality.golds) == ("Which city slept?", ("Lisbon",))
    assert quality.options == ("Porto", "Lisbon", "Faro", "Braga")
    hotpot = cases(data, "hotpotqa", counter, counter, 9, 1)
    whole = ["A city.", "Blue.", "The river. At Lisbon."]
    assert [sorted(case.text.split("\n\n")) for case in hotpot] == [whole, whole]
    assert [case.text for case in hotpot] == [case.text for case in cases(data, "hotpotqa", counter, counter, 9, 1)]
    assert len(cases(data, "squad", counter, counter, 1, 1)) == 1
    assert cases(data, "squad", counter, counter, 2, 1) == cases(data, "squad", counter, counter, 2, 1)


@pytest.mark.parametrize("ratio", [4, 32])
def test_arms_have_equal_slots(data: Path, path: Path, ratio: int) -> None:
    tokenizer = TextTokenizer(path)
    (case, _) = cases(data, "squad", tokenizer, RetrievalTokenizer(), 9, 2)

    def slots_of(tokens: int) -> int:
        return -(-tokens // ratio)

    k = slots(tokenizer, case.chunks, slots_of)
    assert k == sum(-(-tokenizer.count(chunk) // ratio) for chunk in case.chunks)
    for arm in AT_A_RATIO:
        shown = show(arm, case, tokenizer, slots_of)
        soft = sum(block.length for block in shown.blocks if isinstance(block, SoftBlock))
        text = [block.text for block in shown.blocks if isinstance(block, TextBlock)]
        if arm in ("first", "passage"):
            assert tokenizer.count(text[0]) <= k
            assert (case.text if arm == "first" else case.passage).startswith(text[0])
        if arm == "compressed":
            assert (soft, text) == (k, [])
        if arm == "wrong":
            assert not set(shown.chunks.values()) & set(case.chunks)
            assert [block.title for block in shown.blocks] == [case.title] * 2, "all that differs are the embeddings"
        if arm == "hybrid":
            assert (soft, text) == (k, [case.passage])
    assert [block.text for block in show("raw", case, tokenizer, slots_of).blocks] == list(case.chunks)  # type: ignore[union-attr]
    assert show("none", case, tokenizer, slots_of).blocks == ()
    assert show("whole", case, tokenizer, slots_of).blocks == (TextBlock(case.passage, case.title),)
    assert show(INT8, case, tokenizer, slots_of) == show("compressed", case, tokenizer, slots_of)


def test_a_choice_is_the_likeliest_option(path: Path) -> None:
    base, tokenizer = load_base_model(path), TextTokenizer(path)
    prompt = tokenizer.encode("Where is the river?")
    prompt_TD = base.model.get_input_embeddings()(torch.tensor(prompt))
    options = ("in Lisbon", "in the old city of Porto", "Faro")

    def likely(option: str, head: list[int]) -> float:
        ids = tokenizer.encode(f"[1] {option}")[len(head) :] if head else tokenizer.encode(option)
        with torch.inference_mode():
            logits_TV = base.model(torch.tensor([prompt + head + ids])).logits[0].log_softmax(-1)
        return sum(float(logits_TV[len(prompt + head) + n - 1, token]) for n, token in enumerate(ids)) / len(ids)

    for cites, head in ((False, []), (True, tokenizer.encode("[1]"))):
        wanted = max(options, key=lambda option: likely(option, head))
        assert choose(base.model, tokenizer, prompt_TD, options, cites) == wanted
        assert choose(base.model, tokenizer, prompt_TD, options[::-1], cites) == wanted
    case = Case("quality", "?", ("in Lisbon",), options, "", "", (), "", (), "")
    assert [score(case, said) for said in options] == [1, 0, 0]


def test_refusals_are_counted_where_no_option_is_chosen() -> None:
    where = Case("squad", "?", ("Lisbon",), (), "", "", (), "", (), "")
    asked = [where, where, where, where, replace(where, set="quality", options=("Porto", "Lisbon"))]
    rows = {row.name: row for row in arm_rows("wrong at 4x", asked, ["Lisbon", REFUSAL, "I don't know", "Porto", "Lisbon"])}
    refused = rows["wrong at 4x: refused"]
    assert (refused.value, refused.n, refused.unit) == (0.25, 4, "share")
    assert refused.low is not None
    assert refused.low > 0


def test_int8_is_held_against_bfloat16_question_by_question() -> None:
    where = Case("squad", "?", ("Lisbon",), (), "", "", (), "", (), "")
    choice = replace(where, set="quality", options=("Porto", "Lisbon"))
    asked = [where, where, where, where, choice]
    bfloat16 = ["Lisbon", "Lisbon", "Porto", "Lisbon", "Lisbon"]
    first, *rest, lost = int8_rows(8, asked, ["Lisbon", "Lisbon", "Lisbon", "Porto", "Porto"], bfloat16)
    assert (first.name, first.value, first.baseline, first.ratio, first.met) == ("int8 at 8x: F1", 0.75, 0.75, 1.0, True)
    assert first.aim == "≥ 0.98 of bfloat16"
    assert (lost.value, lost.n) == (0.0, 4)
    assert lost.low is not None
    assert lost.low < 0, "it gained one and lost one: that is no certainty of nothing lost"
    assert {row.name: row.ratio for row in rest}["int8 at 8x, quality: accuracy"] == 0.0
    first, *_, lost = int8_rows(8, asked, ["Porto", *bfloat16[1:]], bfloat16)
    assert (first.met, lost.value) == (False, 0.25)
    nothing = int8_rows(8, asked, ["Porto"] * 5, ["Porto"] * 5)[0]
    assert (nothing.ratio, nothing.met) == (None, None), "of nothing no share is kept"


def test_hybrid_is_held_against_the_raw_text_and_its_tokens() -> None:
    where = Case("squad", "?", ("Lisbon",), (), "", "", (), "", (), "")
    asked = [where, where, replace(where, set="quality", options=("Porto", "Lisbon"))]
    whole = ["Porto", "Porto", "Lisbon"]
    lost, gained, context = hybrid_rows(8, asked, ["Lisbon", "Porto", "Porto"], ["Lisbon"] * 3, whole, 100, 300)
    assert (lost.value, lost.n, lost.met) == (0.5, 2, False)
    assert (gained.value, gained.n, gained.met) == (0.5, 2, None)
    assert (context.value, context.baseline, context.met) == (100, 300, True)
    lost, gained, context = hybrid_rows(8, asked, ["Lisbon"] * 3, ["Porto"] * 3, ["Lisbon"] * 3, 101, 300)
    assert (lost.value, lost.met, gained.value) == (-1, True, 0)
    assert context.met is False


def test_what_a_verdict_rests_on_is_shown_with_its_aims() -> None:
    figures = {"over_first_low": 0.01, "over_wrong_low": 0.05, "questions": 302}
    over_first, over_wrong = gate_rows(8, Gate(figures))
    assert (over_first.value, over_first.n, over_first.met) == (0.01, 302, True)
    assert (over_wrong.value, over_wrong.met) == (0.05, False)


def test_answers_are_those_of_the_model(path: Path) -> None:
    """Left-padded batches of embeddings say what each prompt says alone, by its ids."""
    base, tokenizer = load_base_model(path), TextTokenizer(path)
    prompts = [[5, 9, 20, 31], [7] * 9, [40, 41]]
    alone = [base.model.generate(torch.tensor([p]), max_new_tokens=6, do_sample=False)[0, len(p) :] for p in prompts]
    wanted = [tokenizer.decode([t for t in ids.tolist() if t not in base.eos_ids]).strip() for ids in alone]
    assert answers(base, base.model, tokenizer, prompts, 6, 2) == wanted


def test_it_measures_and_writes_the_verdict(
    data: Path, path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compression, "write", None)  # the figures are those of what ships
    base = load_base_model(path)
    adapters = Adapters(base)
    adapters.create(ENCODER, rank=2, alpha=2)
    pooled.save(tmp_path, base, "tiny", adapters, Projector.untrained(base.d_model, pooled.vocabulary_of(base)), {})
    sizes = ["--limit", "1", "--texts", "2", "--chunks", "1", "--ratios", "8", "--gate"]
    where = ["--base", str(path), "--data", str(data), "--compressor", str(tmp_path)]
    assert main(["eval", "compression", *where, *sizes]) == 0
    said = capsys.readouterr().out
    assert "docs/figures stays as it is" in said
    for name in (
        *(f"{arm}: F1" for arm in FIXED),
        *(f"{arm} at 8x: F1" for arm in AT_A_RATIO),
        "quality: accuracy",
        "tokens right",
    ):
        assert name in said
    for name in (
        "hybrid at 8x: F1 lost to raw",
        "hybrid at 8x: F1 over the passage alone",
        "hybrid at 8x: context",
        "gate at 8x: at least over the first tokens",
        "int8 at 8x: F1 ",
        "int8 at 8x, squad: F1",
        "int8 at 8x: F1 lost to bfloat16",
    ):
        assert name in said
    plain, small = (float(re.search(rf"stored at 8x, {kind} +([\d.]+)", said)[1]) for kind in ("bfloat16", "int8"))  # type: ignore[index]
    assert 64 / 8 < small < plain
    assert plain > 2 * 64 / 8
    assert "gate at 8x: not passed" in said
    gate = read_card(tmp_path).gates[8]
    assert gate.figures["questions"] == 5
    assert not gate.passed
    assert (gate.compressor, gate.reader) == (load_compressor(tmp_path, base, Adapters(base), 8).fingerprint, "")
    assert main(["eval", "compression", *where, *sizes[:-1], "--sets", "squad", "--texts", "1", "--no-int8"]) == 0
    assert "int8 at 8x" not in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["eval", "nothing"])
    before = (tmp_path / "config.json").read_bytes()
    assert main(["eval", "compression", *where, *sizes, "--sets", "squad"]) == 2
    assert "a verdict is over all sets" in capsys.readouterr().err
    assert (tmp_path / "config.json").read_bytes() == before


def test_kept_answers_are_not_asked_for_again_and_not_taken_for_others(
    data: Path, path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = tmp_path / "kept.jsonl"
    where = ["--base", str(path), "--data", str(data), "--sets", "squad", "--limit", "2", "--texts", "1", "--chunks", "1"]
    line = ["eval", "compression", *where, "--quick", "--no-int8", "--keep", str(keep)]
    assert main([*line, "--ratios", "8"]) == 0
    first = capsys.readouterr().out
    lines = keep.read_text().splitlines()
    assert len(lines) > 4
    keep.write_text("\n".join(lines) + '\n["cut')
    asked: list[int] = []

    def spied(base: object, model: object, tokenizer: object, prompts: list[object], *_: object, **__: object) -> list[str]:
        asked.append(len(prompts))
        return ["Lisbon"] * len(prompts)

    monkeypatch.setattr("memoryd.eval.compression.answers_of", spied)
    assert main([*line, "--ratios", "8"]) == 0
    assert capsys.readouterr().out == first
    assert not asked
    assert main([*line, "--ratios", "16"]) == 0
    assert sum(asked) > 0, "another ratio makes other prompts"
    before = keep.read_text()
    assert before.splitlines().count('["cut') == 1, "nothing is written onto what was cut off"
    assert main([*line[:-2], "--ratios", "8"]) == 0
    assert keep.read_text() == before


def test_a_compressor_of_another_kind_is_measured_at_its_own_ratio(
    data: Path, path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = load_base_model(path)
    settings = SlotSettings("icae", segment=64, accumulate=False)
    save(tmp_path, base, "tiny", Adapters(base), LearnedTokens(torch.randn(8, base.d_model)), settings, {})
    sizes = ["--limit", "1", "--texts", "1", "--chunks", "1", "--quick", "--gate"]
    assert main(["eval", "compression", "--base", str(path), "--data", str(data), "--compressor", str(tmp_path), *sizes]) == 0
    said = capsys.readouterr().out
    assert "compressed at 8x: F1" in said
    assert re.search(r"slots at 8x +8\.000", said)
    assert "at 4x" not in said
    assert read_card(tmp_path).gates[8].figures["questions"] == 5
