"""Prompts that begin alike share keys and values: each says what it says alone, and what they share is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from memoryd.compress.codec import CompressedEmbeddings
from memoryd.engine.base_model import BaseModel
from memoryd.engine.output import Output
from memoryd.engine.request import Generation, Segment, Soft, TokenIds
from memoryd.engine.runner import Runner
from memoryd.engine.scheduler import Limits, Prefill
from tests.integration.engine_parts import make_base, make_reader, make_runner, run, text, untrained

BEGINNING = [(7 * n) % 400 + 5 for n in range(90)]
ENDS = [[11, 12, 13], [14, 15], [16] * 20, [17]]


@pytest.fixture(params=["llama", "qwen3", "mistral"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> BaseModel:
    return make_base(request.param, tmp_path / "model")


def of_ids(ids: Sequence[int], use_reader: bool = False, scope: str = "red's") -> Generation:
    return Generation([TokenIds(ids)], 12, use_reader=use_reader, scope=scope)


def counted(base: BaseModel, runner: Runner, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[int, str], int]:
    """What is said, by call, and how many positions of prompts the base model computed for it."""
    seen: list[int] = []
    prefill = runner._prefill
    layer = next(module for name, module in base.model.named_modules() if name.endswith("layers.0"))

    def counting(step: Prefill) -> list[Output]:
        hook = layer.register_forward_hook(lambda _, arguments, __: seen.append(arguments[0].shape[1]))
        try:
            return prefill(step)
        finally:
            hook.remove()

    monkeypatch.setattr(runner, "_prefill", counting)
    said = {call: text(values) for call, values in run(runner).items()}
    return said, sum(seen)


def alone(base: BaseModel, request: Generation) -> str:
    runner = make_runner(base)
    runner.generate(1, request)
    return text(run(runner)[1])


@pytest.mark.parametrize("piece", [16, 256])
def test_a_common_beginning_is_computed_once(base: BaseModel, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = make_runner(base, limits=Limits(rows=2, prefill=piece))
    for call, end in enumerate(ENDS):
        runner.generate(call, of_ids(BEGINNING + end))
    said, computed = counted(base, runner, monkeypatch)
    assert said == {call: alone(base, of_ids(BEGINNING + end)) for call, end in enumerate(ENDS)}
    assert computed == len(BEGINNING) + sum(map(len, ENDS))
    assert runner.held == 0, "and nothing of it stays"


def test_the_same_prompt_again_computes_its_last_position_only(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = alone(base, of_ids(BEGINNING))
    runner = make_runner(base, limits=Limits(prefill=256))
    runner.generate(1, of_ids(BEGINNING))
    runner.generate(2, of_ids(BEGINNING))
    assert counted(base, runner, monkeypatch) == ({1: answer, 2: answer}, len(BEGINNING) + 1)


@pytest.mark.parametrize("scopes", [("red's", "blue's"), ("red's", ""), ("", "red's"), ("", "")])
def test_the_same_prompt_of_another_scope_is_computed_anew(
    base: BaseModel, scopes: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the time that it takes would tell that another tenant's prompt begins so. What has no scope shares with nobody."""
    answer = alone(base, of_ids(BEGINNING))
    runner = make_runner(base, limits=Limits(prefill=256))
    for call, scope in enumerate(scopes):
        runner.generate(call, of_ids(BEGINNING, scope=scope))
    assert counted(base, runner, monkeypatch) == ({0: answer, 1: answer}, 2 * len(BEGINNING))


def test_what_few_have_in_common_is_not_shared(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """An instruction, say, that every prompt begins with."""
    runner = make_runner(base, limits=Limits(prefill=256))
    for call in (1, 2):
        runner.generate(call, of_ids(BEGINNING[:40] + [call] * 80))
    assert counted(base, runner, monkeypatch)[1] == 2 * 120


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_another_blend_has_keys_and_values_of_its_own(tmp_path: Path) -> None:
    reader = make_reader("llama", 0, tmp_path / "r", tmp_path / "reader")
    base = make_base("llama", tmp_path / "base")
    runner = make_runner(base, reader)
    requests = [of_ids([*BEGINNING, 3], use_reader=True), of_ids([*BEGINNING, 4])]
    for call, request in enumerate(requests):
        runner.generate(call, request)
    together = {call: text(values) for call, values in run(runner).items()}
    for call, request in enumerate(requests):
        single = make_runner(make_base("llama", tmp_path / f"alone{call}"), reader)
        single.generate(call, request)
        assert together[call] == text(run(single)[call])
    assert together[0] != together[1]


def test_compressed_embeddings_are_shared_where_they_are_the_same(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    compressor = untrained(base)
    chunks = [
        CompressedEmbeddings(x_KD.to(torch.bfloat16).view(torch.uint16).numpy().tobytes(), len(x_KD))
        for x_KD in compressor.compress([list(range(400)), list(range(5, 405))])
    ]

    def request(chunk: int, end: int) -> Generation:
        segments: list[Segment] = [TokenIds(BEGINNING[:10]), Soft(chunks[chunk]), TokenIds([end])]
        return Generation(segments, 12, compressor_fingerprint=compressor.fingerprint, scope="red's")

    requests = [request(0, 3), request(0, 4), request(1, 3)]
    runner = make_runner(base, limits=Limits(prefill=256))
    for call, one in enumerate(requests):
        runner.generate(call, one)
    said, computed = counted(base, runner, monkeypatch)
    assert computed == 111 + 1 + 111, "the third has ten tokens in common with the others"
    assert said == {call: alone(base, one) for call, one in enumerate(requests)}


def test_what_is_held_is_bounded(base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memoryd.engine.prefixes._MOST", 200)
    runner = make_runner(base, limits=Limits(prefill=256))
    for call in range(6):
        runner.generate(call, Generation([TokenIds([call + 5] * 90)], 60, scope="red's"))
    while len(runner._kv.lengths) < 6:
        runner.step()
    assert len(runner._prefixes) == 180
    for call in range(6):
        runner.end(call)
    assert (runner.held, runner.idle) == (0, True)
