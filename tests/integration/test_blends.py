"""Adapters of memories: blended as PEFT and merged weights say, different ones in one batch, loaded and dropped."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load, save

from memoryd.engine.adapters import Adapters
from memoryd.engine.bank import Bank
from memoryd.engine.base_model import BaseModel
from memoryd.engine.output import Value
from memoryd.engine.request import Generation, TokenIds
from memoryd.engine.runner import Runner
from memoryd.engine.scheduler import Limits
from memoryd.errors import DataLoss, FailedPrecondition, ResourceExhausted, Unavailable
from tests.integration.engine_parts import make_base, make_reader, make_runner, run, text

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
LLOCO = ["q_proj", "k_proj", "v_proj", "o_proj"]
IDS = [5, 300, 41, 77, 12]


def make_adapter(path: Path, seed: int, rank: int = 4, targets: list[str] | str = LLOCO) -> Path:
    base = make_base("llama", path.parent / "model")
    torch.manual_seed(seed)
    peft = get_peft_model(base.model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets))
    for name, parameter in peft.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    peft.save_pretrained(path)
    return path


def files(path: Path) -> tuple[bytes, bytes]:
    return (path / "adapter_config.json").read_bytes(), (path / "adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters that differ in rank and in the layers that they change."""
    folder = tmp_path_factory.mktemp("adapters")
    make_adapter(folder / "a", 1, rank=4)
    make_adapter(folder / "b", 2, rank=8, targets="all-linear")
    make_adapter(folder / "c", 3, rank=2, targets=["down_proj", "v_proj"])
    return folder


@pytest.fixture
def base(tmp_path: Path) -> BaseModel:
    return make_base("llama", tmp_path / "base")


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        made: torch.Tensor = model(input_ids=torch.tensor([IDS])).logits[0]
    return made


WEIGHTS = {"a": 0.7, "b": 0.2, "c": 1.5}


def test_a_blend_is_the_weighted_sum_that_peft_computes_and_that_merged_weights_give(
    folder: Path, base: BaseModel, tmp_path: Path
) -> None:
    plain = make_base("llama", tmp_path / "plain").model
    peft = PeftModel.from_pretrained(plain, folder / "a", adapter_name="a")
    merged = make_base("llama", tmp_path / "merged").model
    without = logits(merged)
    for name in ("b", "c"):
        peft.load_adapter(folder / name, adapter_name=name)
    peft.add_weighted_adapter(list(WEIGHTS), list(WEIGHTS.values()), "blend", combination_type="cat")
    peft.set_adapter("blend")
    adapters = Adapters(base)
    for name, weight in WEIGHTS.items():
        adapters.load(name, folder / name)
        for path, lora in adapters._loras(name).items():
            merged.get_submodule(path).weight.data += weight * lora.scale * lora.b_OR @ lora.a_RI
    adapters.use(tuple(WEIGHTS.items()))
    ours = logits(base.model)
    assert (ours - without).abs().max() > 0.1, "the adapters must matter here"
    torch.testing.assert_close(ours, logits(peft), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours, logits(merged), atol=1e-4, rtol=1e-4)
    adapters.use()
    torch.testing.assert_close(logits(base.model), without)


def test_rows_of_one_batch_have_each_their_own_blend(folder: Path, base: BaseModel) -> None:
    adapters = Adapters(base)
    for name in WEIGHTS:
        adapters.load(name, folder / name)
    blends = [(), (("a", 1.0),), (("c", 0.5), ("b", 1.0)), tuple(WEIGHTS.items())]
    adapters.use(*blends)
    with torch.inference_mode():
        together = base.model(input_ids=torch.tensor([IDS] * len(blends))).logits
    for row, blend in enumerate(blends):
        adapters.use(blend)
        torch.testing.assert_close(together[row], logits(base.model), atol=1e-4, rtol=1e-4)


def test_ten_memories_with_ten_adapters_answer_at_once_each_as_it_would_alone(tmp_path: Path) -> None:
    """Beside each other, beside one without any, and beside the reader, which all but one have too."""
    base = make_base("llama", tmp_path / "base")
    reader = make_reader("llama", 0, tmp_path / "r", tmp_path / "reader")
    made = {f"ad{n}": files(make_adapter(tmp_path / f"ad{n}", n, rank=2 + n % 3)) for n in range(10)}
    asked = [Generation([TokenIds([*IDS, 30 + n])], 16, use_reader=True, adapters=[(f"ad{n}", 1.0)]) for n in range(10)]
    asked += [Generation([TokenIds(IDS)], 16, use_reader=True), Generation([TokenIds(IDS)], 16)]
    asked += [Generation([TokenIds(IDS)], 16, use_reader=True, adapters=[("ad1", 0.25), ("ad2", 0.75)])]
    runner = make_runner(base, reader, Limits(rows=16, prefill=16))
    for name, (config, weights) in made.items():
        runner.load_adapter(name, config, weights)
    alone = said_alone(runner, asked)
    for call, request in enumerate(asked):
        runner.generate(call, request)
    values = run(runner)
    assert [text(values[call]) for call in range(len(asked))] == alone
    assert len(set(alone)) > 10, "the adapters must matter here"


def test_an_adapter_that_is_not_loaded_is_named(folder: Path, base: BaseModel) -> None:
    runner = make_runner(base)
    runner.load_adapter("a", *files(folder / "a"))
    request = Generation([TokenIds(IDS)], 4, adapters=[("a", 1.0), ("b", 1.0)])
    with pytest.raises(FailedPrecondition, match="not loaded: b") as raised:
        runner.generate(1, request)
    assert (raised.value.reason, raised.value.details) == ("ADAPTER_NOT_LOADED", {"adapters": "b"})
    assert runner.held == 0


def test_a_memorys_adapter_is_never_mistaken_for_the_reader(folder: Path, base: BaseModel) -> None:
    runner = make_runner(base)
    runner.load_adapter("reader", *files(folder / "a"))
    with pytest.raises(FailedPrecondition, match="no reader"):
        runner.generate(1, Generation([TokenIds(IDS)], 4, use_reader=True))


def test_the_least_recently_used_makes_room(folder: Path, base: BaseModel) -> None:
    adapters = Adapters(base)
    bank = Bank(adapters, capacity=1 << 40)
    for name in ("a", "b", "c"):
        bank.load(name, *files(folder / name))
    room = sum(adapters.size(f"memory/{name}") for name in ("a", "b", "c"))
    for name in ("a", "b", "c"):
        bank.unload(name)
    bank = Bank(adapters, capacity=room)
    for name in ("a", "b", "c"):
        bank.load(name, *files(folder / name))
    bank.blend([("a", 1.0)])
    bank.load("d", *files(folder / "c"))
    bank.blend([("a", 1.0), ("c", 1.0), ("d", 1.0)])
    with pytest.raises(FailedPrecondition, match="not loaded: b"):
        bank.blend([("b", 1.0)])


def test_those_in_use_stay_and_what_does_not_fit_beside_them_is_refused(folder: Path, base: BaseModel) -> None:
    adapters = Adapters(base)
    adapters.load("x", folder / "a")
    bank = Bank(adapters, capacity=adapters.size("x"))
    bank.load("a", *files(folder / "a"))
    with pytest.raises(ResourceExhausted, match="no room"):
        bank.load("c", *files(folder / "c"), in_use={"memory/a"})
    bank.blend([("a", 1.0)])
    bank.load("c", *files(folder / "c"))
    with pytest.raises(FailedPrecondition, match="not loaded: a"):
        bank.blend([("a", 1.0)])


def test_what_would_not_fit_alone_is_refused_for_good(folder: Path, base: BaseModel) -> None:
    """There is nothing to wait for."""
    bank = Bank(Adapters(base), capacity=1)
    with pytest.raises(FailedPrecondition, match="lower learn_rank") as refused:
        bank.load("a", *files(folder / "a"))
    assert refused.value.reason == "ADAPTER_TOO_LARGE"
    with pytest.raises(FailedPrecondition, match="not loaded: a"):
        bank.blend([("a", 1.0)])


@pytest.mark.parametrize("steps", [0, 1, 2, 6])
def test_what_runs_with_an_adapter_that_is_forgotten_ends_and_says_no_more(folder: Path, base: BaseModel, steps: int) -> None:
    """What was learned from a deleted document is not said any more, even by an answer that has begun: while it waits, between
    two pieces of its prompt, and while it decodes, when its keys and values still hold what the adapter knew."""
    runner = make_runner(base, limits=Limits(prefill=3))
    for name in ("a", "b"):
        runner.load_adapter(name, *files(folder / name))
    blends = [[("b", 1.0)], [("a", 1.0)], [], [("a", 0.5), ("b", 0.5)]]
    asked = [Generation([TokenIds([*IDS, 30 + n])], 12, adapters=blend) for n, blend in enumerate(blends)]
    alone = said_alone(runner, asked)

    # The forgotten one is the first to be prefilled, and the first row of the batch.
    for call, request in enumerate(asked):
        runner.generate(call, request)
    said = said_after(runner, steps)
    ended = runner.unload_adapter("b")
    assert [output.call for output in ended] == [0, 3]
    assert all(output.ends and isinstance(output.value, Unavailable) for output in ended)
    assert {(output.value.reason, "ask again" in output.value.message) for output in ended} == {("ADAPTER_UNLOADED", True)}  # type: ignore[union-attr]
    after = run(runner)
    assert set(after) == {1, 2}, "of the others no token is made any more"
    assert [text(said.get(call, []) + after[call]) for call in (1, 2)] == alone[1:3], "and the rest is not disturbed"
    assert alone[0].startswith(text(said.get(0, [])))
    assert (runner.held, runner.idle) == (0, True)
    with pytest.raises(FailedPrecondition, match="not loaded: b"):
        runner.generate(9, asked[0])


def test_keys_and_values_hold_what_an_adapter_wrote(folder: Path, base: BaseModel) -> None:
    """Why forgetting it ends what runs with it: without its layers the rest would still be its own, not the base model's."""
    runner = make_runner(base)
    runner.load_adapter("b", *files(folder / "b"))
    with_it = Generation([TokenIds(IDS)], 12, adapters=[("b", 1.0)])
    runner.generate(1, dataclasses.replace(with_it, adapters=[]))
    without = text(run(runner)[1])
    runner.generate(1, with_it)
    begun = said_after(runner, 1)[1]
    runner._bank.unload("b")
    assert text(begun + run(runner)[1])[len(text(begun)) :] != without[len(text(begun)) :]


def test_forgetting_an_adapter_that_nothing_runs_with_ends_nothing(folder: Path, base: BaseModel) -> None:
    runner = make_runner(base)
    runner.load_adapter("a", *files(folder / "a"))
    runner.generate(1, Generation([TokenIds(IDS)], 12))
    runner.step()
    assert [runner.unload_adapter(name) for name in ("a", "never there")] == [[], []]
    assert run(runner)[1]


def said_alone(runner: Runner, asked: Sequence[Generation]) -> list[str]:
    """What each of them says with nothing else in its batch."""
    alone = []
    for call, request in enumerate(asked):
        runner.generate(call, request)
        alone.append(text(run(runner)[call]))
    return alone


def said_after(runner: Runner, steps: int) -> dict[int, list[Value]]:
    """Values by call, of so many steps."""
    values: dict[int, list[Value]] = {}
    for _ in range(steps):
        for output in runner.step():
            values.setdefault(output.call, []).append(output.value)
    return values


def test_weights_that_do_not_fit_leave_what_was_there(folder: Path, base: BaseModel) -> None:
    adapters = Adapters(base)
    bank = Bank(adapters)
    bank.load("a", *files(folder / "a"))
    config, weights = files(folder / "b")
    for broken in (weights[:-7], weights.replace(b"layers.0.", b"layers.9.")):
        with pytest.raises(DataLoss):
            bank.load("b", config, broken)
    bank.blend([("a", 1.0)])
    with pytest.raises(FailedPrecondition, match="not loaded"):
        bank.blend([("b", 1.0)])


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 0},
        {"r": 0, "use_rslora": True},
        {"r": -4},
        {"r": -4, "use_rslora": True},
        {"r": float("inf")},
        {"r": 10**400},
        {"lora_alpha": float("nan")},
        {"lora_alpha": float("inf")},
        {"lora_alpha": 10**400},
    ],
)
def test_a_rank_or_an_alpha_that_cannot_be_is_refused(folder: Path, base: BaseModel, settings: dict[str, object]) -> None:
    config, weights = files(folder / "a")
    with pytest.raises(DataLoss):
        Bank(Adapters(base)).load("a", json.dumps({**json.loads(config), **settings}).encode(), weights)


A, B = (f"base_model.model.model.layers.0.self_attn.q_proj.lora_{x}.weight" for x in "AB")
ODD: dict[str, Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]] = {
    "A has no dimension": lambda w: {A: torch.tensor(1.0)},
    "A has one dimension": lambda w: {A: w[A][0]},
    "A has three dimensions": lambda w: {A: w[A][None]},
    "B has no dimension": lambda w: {B: torch.tensor(1.0)},
    "B has one dimension": lambda w: {B: w[B][:, 0]},
    "no ranks": lambda w: {A: w[A][:0], B: w[B][:, :0]},
    "ranks differ": lambda w: {A: w[A][:2]},
    "inf in A": lambda w: {A: w[A] / 0},
    "NaN in A": lambda w: {A: w[A] * float("nan")},
    "inf in B": lambda w: {B: w[B] / 0},
    "inf once scaled": lambda w: {B: w[B].sign() * 3e38},
    "inf in the model's dtype": lambda w: {A: w[A].double() * 1e300},
}


@pytest.mark.parametrize("what", ODD)
def test_weights_that_would_harm_the_rows_of_others_are_refused(folder: Path, base: BaseModel, what: str) -> None:
    adapters = Adapters(base)
    bank = Bank(adapters)
    config, weights = files(folder / "a")
    tensors = load(weights)
    odd = {key: value.contiguous() for key, value in {**tensors, **ODD[what](tensors)}.items()}
    with pytest.raises(DataLoss):
        bank.load("odd", config, save(odd))
    bank.load("a", config, weights)
    adapters.use((("memory/a", 1.0),), (("memory/odd", 1.0),), ())
    with torch.inference_mode():
        assert base.model(input_ids=torch.tensor([IDS] * 3)).logits.isfinite().all()


def test_the_inside_of_a_layer_that_has_adapters_takes_none(folder: Path, base: BaseModel) -> None:
    adapters = Adapters(base)
    bank = Bank(adapters)
    config, weights = files(folder / "a")
    bank.load("a", config, weights)
    odd = {key.replace("q_proj.lora", "q_proj.base.lora"): value for key, value in load(weights).items()}
    with pytest.raises(DataLoss, match="does not fit"):
        bank.load("odd", config, save(odd))
    assert adapters.create("inside", 2, 4.0, ["base"]) == []
    bank.load("b", *files(folder / "b"))
    adapters.use(bank.blend([("a", 1.0), ("b", 1.0)]))
    assert logits(base.model).isfinite().all()
