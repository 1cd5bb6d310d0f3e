"""The engine against transformers' and PEFT's own `generate`, on tiny random models of three families."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor

from memoryd.compress.card import Gate
from memoryd.compress.codec import CompressedEmbeddings
from memoryd.compress.pooled import PooledCompressor
from memoryd.engine.adapters import Adapters
from memoryd.engine.base_model import BaseModel
from memoryd.engine.reader import Readers, Refusal
from memoryd.engine.request import GenerateEvent, Generation, Segment, Soft, TokenIds
from memoryd.engine.runner import Runner
from memoryd.engine.scheduler import Decode, Limits
from memoryd.engine.sequence import GeneratingSequence
from memoryd.errors import DataLoss, FailedPrecondition, FingerprintMismatch, InvalidArgument, MemorydError
from tests.integration.engine_parts import make_base, make_reader, make_runner, run, seeing, text, untrained

KINDS = ["llama", "qwen3", "mistral"]
PEFT_WARNS = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
PROMPTS = [[5, 300, 41], list(range(20, 90)), [9] * 17, list(range(400, 433))]


@pytest.fixture(scope="module", params=KINDS)
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return make_base(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return make_base("llama", tmp_path_factory.mktemp("llama"))


def reference(model: Any, base: BaseModel, tokens: int, **prompt: Any) -> str:
    """What transformers' own greedy generation says, as text without the end of turn."""
    made = model.generate(
        **prompt,
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=list(base.eos_ids),
        pad_token_id=0,
        bos_token_id=None,
        temperature=None,
        top_p=None,
        top_k=None,
    )[0]
    ids = made[prompt["input_ids"].shape[1] :] if "input_ids" in prompt else made
    return str(base.tokenizer.decode(ids, skip_special_tokens=True)).rstrip("�")


def of_ids(ids: Sequence[int]) -> dict[str, Tensor]:
    return {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}


def greedy(ids: Sequence[int], tokens: int = 24, **kwargs: Any) -> Generation:
    return Generation([TokenIds(ids)], tokens, **kwargs)


def soft_of(base: BaseModel, chunk: Sequence[int]) -> tuple[Soft, Tensor]:
    """A soft segment and the same as a tensor."""
    x_KD = untrained(base).compress([chunk])[0].to(torch.bfloat16)
    return Soft(CompressedEmbeddings(x_KD.view(torch.uint16).numpy().tobytes(), len(x_KD))), x_KD.float()


def test_together_each_prompt_gets_what_transformers_gives_it_alone(base: BaseModel) -> None:
    """Prompts of four lengths, prefilled in pieces of 16, decoded as rows of one batch."""
    runner = make_runner(base)
    for call, ids in enumerate(PROMPTS):
        runner.generate(call, greedy(ids))
    values = run(runner)
    for call, ids in enumerate(PROMPTS):
        assert text(values[call]) == reference(base.model, base, 24, **of_ids(ids))
    assert runner.held == 0


def test_a_sliding_window_is_kept_to(tmp_path: Path) -> None:
    windowed, full = make_base("mistral", tmp_path / "w"), make_base("mistral", tmp_path / "f")
    windowed.model.config.sliding_window = 12
    runner = make_runner(windowed)
    for call, ids in enumerate(PROMPTS):
        runner.generate(call, greedy(ids))
    values = run(runner)
    want = [reference(windowed.model, windowed, 24, **of_ids(ids)) for ids in PROMPTS]
    assert [text(values[call]) for call in range(len(PROMPTS))] == want
    assert want != [reference(full.model, full, 24, **of_ids(ids)) for ids in PROMPTS], "the window must matter here"


@pytest.mark.parametrize("piece", [1, 7, 64, 4096])
def test_pieces_of_any_size_give_the_same(llama: BaseModel, piece: int) -> None:
    runner = make_runner(llama, limits=Limits(prefill=piece))
    runner.generate(1, greedy(PROMPTS[1]))
    assert text(run(runner)[1]) == reference(llama.model, llama, 24, **of_ids(PROMPTS[1]))


def test_soft_segments_stand_where_they_are_put(base: BaseModel) -> None:
    soft, x_KD = soft_of(base, list(range(100, 150)))
    embed = base.model.get_input_embeddings()
    first, last = torch.tensor(PROMPTS[0]), torch.tensor(PROMPTS[3])
    embeds_1TD = torch.cat([embed(first), x_KD, embed(last)])[None]
    segments: list[Segment] = [TokenIds(PROMPTS[0]), soft, TokenIds(PROMPTS[3])]
    runner = make_runner(base)
    fingerprint = untrained(base).fingerprint
    runner.generate(1, Generation(segments, 24, compressor_fingerprint=fingerprint))
    mask_1T = torch.ones(embeds_1TD.shape[:2], dtype=torch.long)
    want = reference(base.model, base, 24, inputs_embeds=embeds_1TD, attention_mask=mask_1T)
    assert text(run(runner)[1]) == want
    assert want != reference(base.model, base, 24, **of_ids(PROMPTS[0] + PROMPTS[3])), "they must matter here"


@PEFT_WARNS
def test_the_reader_is_applied_where_asked_and_nowhere_else(tmp_path: Path) -> None:
    """With and without reader, side by side and with compression between: as PEFT's own generate, as the plain model's."""
    for kind in KINDS:
        reader = make_reader(kind, 0, tmp_path / f"{kind}-r", tmp_path / f"{kind}-reader")
        base, plain = (make_base(kind, tmp_path / f"{kind}-{name}") for name in ("base", "plain"))
        soft = untrained(plain).compress([PROMPTS[1]])[0]
        without = reference(plain.model, plain, 24, **of_ids(PROMPTS[1]))
        with_reader = reference(PeftModel.from_pretrained(plain.model, reader), plain, 24, **of_ids(PROMPTS[1]))
        assert with_reader != without, "the reader must matter here"

        runner = make_runner(base, reader)
        runner.generate(1, greedy(PROMPTS[1], use_reader=True))
        runner.generate(2, greedy(PROMPTS[1]))
        runner.compress(3, [PROMPTS[1]], untrained(base).fingerprint)
        values = run(runner)
        assert (text(values[1]), text(values[2])) == (with_reader, without)
        made = values[3][0]
        assert isinstance(made, CompressedEmbeddings)
        assert np.array_equal(made.to_float32(), soft.to(torch.bfloat16).float().numpy())


@PEFT_WARNS
def test_compressed_embeddings_are_read_by_the_reader_of_their_compressor(tmp_path: Path) -> None:
    """Beside a prompt of text alone, in one batch: each as where there is only the reader that is its own."""
    texts, softs = (make_reader("llama", 0, tmp_path / f"r{n}", tmp_path / f"reader{n}", weights=n) for n in (1, 2))

    def said(reader: Path, soft_reader: Path | None) -> tuple[str, str]:
        base = make_base("llama", tmp_path / "base")
        runner, (soft, _) = make_runner(base, reader, soft_reader=soft_reader), soft_of(base, PROMPTS[1])
        fingerprint = untrained(base).fingerprint
        runner.generate(1, Generation([soft, TokenIds([5])], 12, use_reader=True, compressor_fingerprint=fingerprint))
        runner.generate(2, greedy(PROMPTS[1], 12, use_reader=True))
        values = run(runner)
        return text(values[1]), text(values[2])

    of_texts, of_softs = said(texts, None), said(softs, None)
    assert of_texts[0] != of_softs[0]
    assert of_texts[1] != of_softs[1]
    assert said(texts, softs) == (of_softs[0], of_texts[1])


@PEFT_WARNS
def test_a_readers_bias_towards_refusing_is_for_the_first_token_of_its_answers_only(tmp_path: Path) -> None:
    reader = make_reader("llama", 0, tmp_path / "r", tmp_path / "reader")
    token = 77

    def said(bias: float, use_reader: bool) -> str:
        runner = make_runner(make_base("llama", tmp_path / "base"), reader, refusal=Refusal(token, bias))
        runner.generate(1, greedy(PROMPTS[1], use_reader=use_reader))
        return text(run(runner)[1])

    begun = make_base("llama", tmp_path / "base").tokenizer.decode([token])
    assert isinstance(begun, str)
    assert said(1e4, use_reader=True).startswith(begun)
    assert not said(1e4, use_reader=True).startswith(begun * 2), "what follows is the reader's own"
    assert said(1e4, use_reader=False) == said(0.0, use_reader=False)
    assert said(1e-4, use_reader=True) == said(0.0, use_reader=True)


@PEFT_WARNS
def test_an_adapter_that_is_no_plain_lora_or_does_not_fit_is_refused(tmp_path: Path) -> None:
    reader = make_reader("llama", 0, tmp_path / "r", tmp_path / "reader")
    base = make_base("llama", tmp_path / "base")
    config = json.loads((reader / "adapter_config.json").read_text())
    for change in ({"use_dora": True}, {"peft_type": "IA3"}, {"lora_bias": True}):
        (reader / "adapter_config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(FailedPrecondition, match="only LoRA"):
            make_runner(base, reader)
    (reader / "adapter_config.json").write_text(json.dumps(config))
    narrow = BaseModel(torch.nn.Linear(3, 3), base.tokenizer, "", 3, ())  # type: ignore[arg-type]
    with pytest.raises(DataLoss, match="does not fit"):
        Adapters(narrow, Readers(reader))
    (reader / "adapter_model.safetensors").write_bytes(b"broken")
    with pytest.raises(DataLoss, match="cannot be read"):
        make_runner(base, reader)


def test_without_a_reader_asking_for_it_is_refused(llama: BaseModel) -> None:
    with pytest.raises(FailedPrecondition, match="reader"):
        make_runner(llama).generate(1, greedy([5], use_reader=True))


def test_rows_that_come_and_go_do_not_disturb_the_others(base: BaseModel) -> None:
    """Calls of different lengths start and end at different steps, one is cancelled: the rest say what they say alone."""
    runner = make_runner(base, limits=Limits(rows=3, prefill=16))
    lengths = [3, 40, 11, 25, 17, 8]
    arrivals = {0: 0, 4: 1, 9: 2, 10: 3, 12: 4, 13: 5}
    values: dict[int, list[Any]] = {}
    for step in range(1000):
        if step in arrivals:
            call = arrivals[step]
            runner.generate(call, greedy(PROMPTS[call % 4], lengths[call]))
        if step == 20:
            runner.end(3)
        if runner.idle and step > 20:
            break
        for output in runner.step():
            values.setdefault(output.call, []).append(output.value)
    for call in (0, 1, 2, 4, 5):
        assert text(values[call]) == reference(base.model, base, lengths[call], **of_ids(PROMPTS[call % 4]))
    assert not any(value.finish_reason for value in values.get(3, []))
    assert runner.held == 0


def test_cancelled_at_any_moment_nothing_is_held(llama: BaseModel) -> None:
    for steps in range(12):
        runner = make_runner(llama)
        runner.generate(1, greedy(PROMPTS[1], 50))
        runner.generate(2, greedy(PROMPTS[0], 50))
        runner.compress(3, PROMPTS * 3, untrained(llama).fingerprint)
        runner.embed(4, ["a"] * 9, urgent=False)
        for _ in range(steps):
            runner.step()
        for call in (1, 2, 3, 4):
            runner.end(call)
        assert (runner.held, runner.idle) == (0, True)


def test_decode_never_waits_for_more_than_one_step_of_compression(llama: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = make_runner(llama, limits=Limits(compress=32))
    runner.generate(1, greedy(PROMPTS[0], 200))
    runner.compress(2, [list(range(30))] * 500, untrained(llama).fingerprint)
    kinds, following = [], runner._scheduler.next
    monkeypatch.setattr(runner._scheduler, "next", lambda: kinds.append(type(step := following())) or step)
    values: list[Any] = []
    while not any(getattr(v, "finish_reason", "") for v in values):
        values += [output.value for output in runner.step()]
    count = Counter(kinds)
    assert sum(isinstance(v, CompressedEmbeddings) for v in values) >= 5, "compression goes on"
    assert count[Decode] > 20 * (len(kinds) - count[Decode]), "but seldom"
    assert all(Decode in pair for pair in itertools.pairwise(kinds[1:]))


def test_a_compressor_that_sees_and_an_answer_beside_it_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Its encoder is an adapter on the same weights, switched on for the steps between those of the answer."""
    base, plain, alone = (make_base("llama", tmp_path / name) for name in ("base", "plain", "alone"))
    adapters, adapters_alone = Adapters(base), Adapters(alone)
    compressor = PooledCompressor(base, adapters, seeing(base, adapters), 4, Gate())
    chunks = [list(range(start, start + 30)) for start in range(5, 65, 5)]
    want = PooledCompressor(alone, adapters_alone, seeing(alone, adapters_alone), 4, Gate()).compress(chunks)
    blind = PooledCompressor(plain, Adapters(plain), compressor.projector, 4, Gate()).compress(chunks)
    assert all(torch.cosine_similarity(x_KD, y_KD).min() < 0.99 for x_KD, y_KD in zip(want, blind, strict=True))

    runner = Runner(base, adapters, compressor, make_runner(plain)._encoder, Limits(prefill=16, compress=30))
    runner.generate(1, greedy(PROMPTS[0], 200))
    runner.compress(2, chunks, compressor.fingerprint)
    said, made, beside = "", {}, 0
    while not runner.idle:
        for output in runner.step():
            if isinstance(output.value, GenerateEvent):
                said, beside = said + output.value.text, len(made)
            else:
                assert isinstance(output.value, CompressedEmbeddings)
                made[output.index] = torch.from_numpy(output.value.to_float32())
    assert beside >= 2, "some are made before the answer ends"
    assert said == reference(plain.model, plain, 200, **of_ids(PROMPTS[0]))
    for index, x_KD in enumerate(want):
        torch.testing.assert_close(made[index], x_KD.to(torch.bfloat16).float(), atol=1e-3, rtol=1e-2)


def test_sampling_repeats_by_seed_and_not_by_company(llama: BaseModel) -> None:
    request = greedy(PROMPTS[0], temperature=1.5, seed=11)
    texts = []
    for company in (0, 2):
        runner = make_runner(llama)
        for call in range(company):
            runner.generate(100 + call, greedy(PROMPTS[1], temperature=1.0))
        runner.generate(1, request)
        texts.append(text(run(runner)[1]))
    runner = make_runner(llama)
    runner.generate(1, greedy(PROMPTS[0], temperature=1.5, seed=12))
    assert texts[0] == texts[1] != text(run(runner)[1])


def test_without_a_seed_it_does_not_repeat(llama: BaseModel) -> None:
    runner = make_runner(llama)
    for call in range(5):
        runner.generate(call, greedy(PROMPTS[0], temperature=1.5))
    assert len({text(values) for values in run(runner).values()}) > 1


def test_what_goes_round_in_circles_is_led_out_of_them(llama: BaseModel) -> None:
    """As a small model does that answers greedily: here one that says the same six tokens again and again."""
    circle = [260, 270, 280, 290, 300, 310]

    def said(penalty: float) -> list[int]:
        sequence = GeneratingSequence(greedy([5], 60, repeat_penalty=penalty), (), llama, float)
        tokens = [circle[0]]
        while len(tokens) < 60:
            logits_V = torch.zeros(512)
            logits_V[circle[(circle.index(tokens[-1]) + 1) % 6 if tokens[-1] in circle else 0]] = 9.0
            sequence.advance(logits_V)
            tokens.append(sequence.token)
        return tokens

    assert said(0.0) == circle * 10
    led = said(0.8)
    assert led[:12] == circle * 2, "twice, because it is that sure"
    assert led[12:18] != circle
    assert len({tuple(led[at : at + 10]) for at in range(51)}) == 51, "no ten tokens come twice"


def test_stop_strings_end_the_text_before_them(llama: BaseModel) -> None:
    whole = reference(llama.model, llama, 24, **of_ids(PROMPTS[1]))
    stop = whole[8:11]
    runner = make_runner(llama)
    runner.generate(1, greedy(PROMPTS[1], stop=[stop, "never said"]))
    events = run(runner)[1]
    assert text(events) == whole[: whole.index(stop)]
    last = events[-1]
    assert isinstance(last, GenerateEvent)
    assert (last.finish_reason, last.output_tokens < 24) == ("stop", True)


def test_the_end_of_turn_ends_and_is_not_said(llama: BaseModel) -> None:
    """Whatever token comes third is made the end of turn."""
    runner = make_runner(llama)
    third = llama.model.generate(**of_ids(PROMPTS[1]), max_new_tokens=3, do_sample=False, pad_token_id=0, eos_token_id=None)[
        0, -1
    ]
    ended = BaseModel(llama.model, llama.tokenizer, llama.fingerprint, llama.d_model, (int(third),))
    runner = make_runner(ended)
    runner.generate(1, greedy(PROMPTS[1]))
    events = run(runner)[1]
    last = events[-1]
    assert isinstance(last, GenerateEvent)
    assert (last.finish_reason, last.output_tokens) == ("stop", 3)
    assert text(events) == reference(llama.model, ended, 3, **of_ids(PROMPTS[1]))


def test_the_first_event_carries_the_times(llama: BaseModel) -> None:
    ticks = iter(range(1000))
    runner = Runner(
        llama, make_runner(llama)._adapters, untrained(llama), make_runner(llama)._encoder, Limits(),
        clock=lambda: float(next(ticks)),
    )  # fmt: skip
    runner.generate(1, greedy(PROMPTS[0], 3))
    first, *others = run(runner)[1]
    assert isinstance(first, GenerateEvent)
    assert (first.queue_ms, first.prefill_ms, first.output_tokens) == (1000, 1000, 1)
    assert all(isinstance(other, GenerateEvent) and other.queue_ms == other.prefill_ms == 0 for other in others)


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (greedy([5] * 4000, 97), "4000 positions.*97.*4096"),
        (greedy([], 5), "empty"),
        (greedy([5], 0), "max_tokens"),
        (greedy([5], 5, temperature=-1), "temperature"),
        (greedy([5], 5, temperature=float("nan")), "temperature"),
        (greedy([5], 5, repeat_penalty=-1), "repeat_penalty"),
        (greedy([5], 5, repeat_penalty=float("inf")), "repeat_penalty"),
        (greedy([600], 5), "no token"),
        (greedy([-1], 5), "no token"),
    ],
)
def test_what_can_never_work_is_refused_at_once(llama: BaseModel, request_: Generation, says: str) -> None:
    runner = make_runner(llama)
    with pytest.raises(InvalidArgument, match=says):
        runner.generate(1, request_)
    assert (runner.held, runner.idle) == (0, True)


def test_soft_segments_of_another_compressor_or_shape_are_refused(llama: BaseModel) -> None:
    runner = make_runner(llama)
    soft, _ = soft_of(llama, PROMPTS[1])
    with pytest.raises(FingerprintMismatch, match="other"):
        runner.generate(1, Generation([soft], 5, compressor_fingerprint="other"))
    fingerprint = untrained(llama).fingerprint
    narrow = Generation([Soft(CompressedEmbeddings(bytes(100), 1))], 5, compressor_fingerprint=fingerprint)
    with pytest.raises(InvalidArgument, match="64"):
        runner.generate(1, narrow)
    with pytest.raises(FingerprintMismatch):
        runner.compress(1, [[5]], "other")


def test_a_chunk_that_cannot_be_compressed_does_not_harm_its_neighbours(llama: BaseModel) -> None:
    runner = make_runner(llama)
    fingerprint = untrained(llama).fingerprint
    runner.compress(1, [[5] * 9], fingerprint)
    for bad in ([], [600], [5] * 5000):
        with pytest.raises(InvalidArgument, match="chunk 1"):
            runner.compress(2, [[5], bad], fingerprint)
        runner.end(2)
    assert [type(v) for v in run(runner)[1]] == [CompressedEmbeddings]
    assert runner.held == 0


def test_texts_come_back_in_order_of_their_index(llama: BaseModel) -> None:
    runner = make_runner(llama, limits=Limits(embed=20))
    runner.embed(1, ["a" * n for n in range(1, 30)], urgent=True)
    vectors: dict[int, Any] = {}
    while not runner.idle:
        vectors.update({output.index: output.value for output in runner.step()})
    assert [vectors[i][0] for i in range(29)] == list(range(1, 30))


def test_a_step_that_fails_ends_its_calls_and_no_others(llama: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = make_runner(llama)
    fingerprint = untrained(llama).fingerprint

    def fail(*_: object) -> None:
        raise RuntimeError("the secret text of a chunk")

    monkeypatch.setattr(runner._compressor, "compress", fail)
    runner.compress(1, PROMPTS, fingerprint)
    runner.generate(2, greedy(PROMPTS[0]))
    values = run(runner)
    error = values[1][0]
    assert isinstance(error, MemorydError)
    assert "secret" not in error.message
    assert text(values[2]) == reference(llama.model, llama, 24, **of_ids(PROMPTS[0]))
    assert runner.held == 0
