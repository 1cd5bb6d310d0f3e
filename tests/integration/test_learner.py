"""Training an adapter on the worker's loop: what it learns, that it survives a kill, that answers do not wait for it."""

from __future__ import annotations

import copy
import dataclasses
import json
import resource
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from memoryd.compress.codec import CompressedEmbeddings
from memoryd.engine.adapters import ALL_LINEAR, Adapters
from memoryd.engine.base_model import BaseModel
from memoryd.engine.reader import Refusal
from memoryd.engine.request import Generation, LearnEvent, Learning, LearnSettings, Soft, TokenIds
from memoryd.engine.runner import Runner
from memoryd.engine.scheduler import Decode, Learn, Limits
from memoryd.errors import (
    Cancelled,
    FailedPrecondition,
    FingerprintMismatch,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from memoryd.learn import checkpoint
from memoryd.learn.learner import RESULT, Learner
from memoryd.learn.soft_packing import SoftPack
from tests.integration.engine_parts import make_base, make_reader, make_runner, run, text, untrained

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
CHUNK = list(range(100, 140))
QUESTIONS = {(40, 41, 42): (70, 71, 72), (43, 44): (80, 81), (45, 46, 47): (90,)}


@pytest.fixture
def base(tmp_path: Path) -> BaseModel:
    return make_base("llama", tmp_path / "base")


def new_runner(base: BaseModel, limits: Limits | None = None) -> Runner:
    """On a copy of the base model: a process that was started again."""
    return make_runner(dataclasses.replace(base, model=copy.deepcopy(base.model)), limits=limits)


def soft_of(base: BaseModel) -> CompressedEmbeddings:
    (x_KD,) = untrained(base).compress([CHUNK])
    return CompressedEmbeddings(x_KD.to(torch.bfloat16).view(torch.uint16).numpy().tobytes(), len(x_KD))


def lesson(base: BaseModel, directory: Path, *, eos: int = 0, **settings: object) -> Learning:
    """Three questions, each over compressed embeddings, over text and over both."""
    contexts: list[tuple[tuple[int, ...] | int, ...]] = [((5, 6), 0, (7,)), ((5, 6, 11, 12), (7,)), ((5,), 0, (11, 12, 7))]
    packs = [SoftPack((), context, ((q, (*a, eos)),)) for context in contexts for q, a in QUESTIONS.items()]
    chosen = LearnSettings(rank=4, alpha=8, learning_rate=1e-2, epochs=20, batch=3, checkpoint_seconds=0)
    return Learning(
        packs,
        [soft_of(base)],
        directory,
        "tiny",
        dataclasses.replace(chosen, **settings),  # type: ignore[arg-type]
        compressor_fingerprint=untrained(base).fingerprint,
    )


def trained(runner: Runner, learning: Learning, call: int = 1) -> list[LearnEvent]:
    runner.learn(call, learning)
    events = run(runner)[call]
    assert all(isinstance(event, LearnEvent) for event in events), events
    return [event for event in events if isinstance(event, LearnEvent)]


def test_what_was_learned_is_answered_by_the_adapter_alone(base: BaseModel, tmp_path: Path) -> None:
    eos = base.eos_ids[0]
    runner = new_runner(base)
    learning = lesson(base, tmp_path / "run", eos=eos, epochs=60, rank=8, targets=ALL_LINEAR)
    events = trained(runner, learning)
    assert [event.step for event in events] == list(range(1, learning.steps + 1))
    assert [bool(event.finish_reason) for event in events] == [False] * (learning.steps - 1) + [True]
    assert events[-1].loss < 0.2 < events[0].loss
    assert runner.held == 0

    result = tmp_path / "run" / RESULT
    config = (result / "adapter_config.json").read_bytes()
    runner.load_adapter("ad", config, (result / "adapter_model.safetensors").read_bytes())
    soft = Soft(learning.chunks[0])
    for question, answer in QUESTIONS.items():
        asked = [TokenIds([5, 6]), soft, TokenIds([7, *question])]
        request = Generation(asked, 8, adapters=[("ad", 1.0)], compressor_fingerprint=learning.compressor_fingerprint)
        runner.generate(1, request)
        said = text(run(runner)[1])
        assert said == base.tokenizer.decode(list(answer), skip_special_tokens=True)
        runner.generate(1, dataclasses.replace(request, adapters=[]))
        assert text(run(runner)[1]) != said


def test_it_is_the_loss_that_peft_computes_and_it_loads_in_peft_as_it_is(base: BaseModel, tmp_path: Path) -> None:
    """One step over one text example, against PEFT with the same first weights, torch's AdamW and cross-entropy."""
    learning = lesson(base, tmp_path / "run", epochs=1, batch=1, learning_rate=1e-3)
    pack = SoftPack((), ((5, 6, 11, 12, 7),), (((40, 41), (70, 71)),))
    learning = dataclasses.replace(learning, packs=[pack], chunks=[])
    (event,) = trained(new_runner(base), learning)

    model = make_base("llama", tmp_path / "plain").model
    torch.manual_seed(learning.settings.seed)
    peft = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=list(learning.settings.targets)))
    ids = torch.tensor([[5, 6, 11, 12, 7, 40, 41, 70, 71]])
    labels = torch.where(torch.arange(9) >= 7, ids, -100)
    assert event.loss == pytest.approx(float(peft(input_ids=ids, labels=labels).loss.detach()), rel=1e-4)
    assert PeftModel.from_pretrained(make_base("llama", tmp_path / "again").model, tmp_path / "run" / RESULT)


def test_rslora_and_dropout_go_out_as_peft_has_them(base: BaseModel, tmp_path: Path) -> None:
    learning = lesson(base, tmp_path / "run", epochs=4, rslora=True, dropout=0.25)
    trained(new_runner(base), learning)
    result = tmp_path / "run" / RESULT
    config = json.loads((result / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"], config["lora_dropout"]) == (4, 8.0, True, 0.25)
    ids, adapters = torch.tensor([[5, 6, 11, 12, 7, 40, 41]]), Adapters(base)
    adapters.load("exported", result)
    plain = {**config, "use_rslora": False}
    adapters.load_bytes("plain", json.dumps(plain).encode(), (result / "adapter_model.safetensors").read_bytes(), "plain")
    with torch.no_grad():
        theirs = PeftModel.from_pretrained(make_base("llama", tmp_path / "again").model, result)(input_ids=ids).logits
        ours = {}
        for name in ("exported", "plain"):
            with adapters.using(name):
                ours[name] = base.model(input_ids=ids).logits
    torch.testing.assert_close(ours["exported"], theirs, atol=1e-4, rtol=1e-4)
    assert (ours["plain"] - theirs).abs().max() > 0.01, "the scale is another"


def test_dropout_is_for_training_only(base: BaseModel) -> None:
    adapters = Adapters(base)
    with torch.no_grad():
        for weight in adapters.create("new", rank=4, alpha=8, dropout=0.5):
            weight.add_(0.1)
    ids = torch.tensor([[5, 6, 11, 12]])

    def computed() -> torch.Tensor:
        with adapters.using("new"):
            return base.model(input_ids=ids).logits.detach()

    with torch.no_grad():
        assert torch.equal(computed(), computed())
    with torch.enable_grad():
        assert not torch.equal(computed(), computed())


def test_the_reader_beneath_stays_as_it_is(tmp_path: Path) -> None:
    reader = make_reader("llama", 0, tmp_path / "r", tmp_path / "reader")
    base = make_base("llama", tmp_path / "base")
    adapters_before = load_file(reader / "adapter_model.safetensors")
    runner = make_runner(base, reader)
    before = {name: p.clone() for name, p in base.model.named_parameters()}
    learning = dataclasses.replace(lesson(base, tmp_path / "run", epochs=2), use_reader=True)
    without = lesson(base, tmp_path / "other", epochs=2)
    assert trained(runner, learning)[0].loss != trained(runner, without)[0].loss
    for name, parameter in base.model.named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert parameter.grad is None
    state = runner._adapters.state("reader")
    for name, value in adapters_before.items():
        folded = 2 * value if "lora_B" in name else value  # alpha / r
        torch.testing.assert_close(state[name], folded.float())


def test_each_context_is_learned_above_the_reader_that_will_read_it(tmp_path: Path) -> None:
    """Compressed embeddings above one, text above another, mixed in one run."""
    texts, softs = (make_reader("llama", 0, tmp_path / f"r{n}", tmp_path / f"reader{n}", weights=n) for n in (1, 2))

    def first_loss(name: str, soft: bool | None, reader: Path, soft_reader: Path | None = None) -> float:
        """Of all packs in one step, of those with compressed embeddings, or of those without."""
        base = make_base("llama", tmp_path / "base")
        all_of_it = lesson(base, tmp_path / name, epochs=1)
        packs = [pack for pack in all_of_it.packs if soft in (None, any(isinstance(piece, int) for piece in pack.context))]
        settings = dataclasses.replace(all_of_it.settings, batch=len(packs))
        learning = dataclasses.replace(all_of_it, packs=packs, settings=settings, use_reader=True)
        return trained(make_runner(base, reader, soft_reader=soft_reader), learning)[0].loss

    of_softs, of_texts = first_loss("soft", True, softs), first_loss("text", False, texts)
    assert first_loss("both", None, texts, softs) == pytest.approx((2 * of_softs + of_texts) / 3, rel=1e-4)
    assert first_loss("one", None, texts) != pytest.approx((2 * of_softs + of_texts) / 3, rel=1e-2)


@pytest.mark.parametrize("use_reader", [True, False])
def test_it_is_trained_with_the_readers_bias_towards_refusing_as_it_is_served(
    base: BaseModel, tmp_path: Path, use_reader: bool
) -> None:
    """Answers begin with the refusal's token: the bias makes that likelier, where its reader reads. That of prompts with
    compressed embeddings has none here."""
    reader = make_reader("llama", 0, tmp_path / "r", tmp_path / "reader")

    def first_loss(soft: bool, bias: float) -> float:
        context: tuple[tuple[int, ...] | int, ...] = ((5, 6), 0, (7,)) if soft else ((5, 6, 7),)
        learning = lesson(base, tmp_path / f"{soft}{bias}", epochs=1, batch=1)
        learning = dataclasses.replace(learning, packs=[SoftPack((), context, (((40,), (70, 71)),))], use_reader=use_reader)
        fresh = dataclasses.replace(base, model=copy.deepcopy(base.model))
        return trained(make_runner(fresh, reader, refusal=Refusal(70, bias)), learning)[0].loss

    assert first_loss(True, 5.0) == first_loss(True, 0.0)
    gained = first_loss(False, 0.0) - first_loss(False, 5.0)
    assert 1 < gained < 2.5 if use_reader else gained == 0, "at most 5 for one of two tokens"


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_killed_at_any_step_it_goes_on_with_the_same_curve(base: BaseModel, tmp_path: Path, dropout: float) -> None:
    whole = lesson(base, tmp_path / "whole", epochs=4, dropout=dropout)
    trained(new_runner(base), whole)
    for stop in (1, 5, 11):
        learning = lesson(base, tmp_path / f"cut{stop}", epochs=4, dropout=dropout)
        runner = new_runner(base)
        runner.learn(1, learning)
        while not any(isinstance(o.value, LearnEvent) and o.value.step == stop for o in runner.step()):
            pass
        runner = new_runner(base)
        events = trained(runner, learning)
        assert events[0].step == stop + 1
        curves = [[row["loss"] for row in checkpoint.metrics(folder)] for folder in (whole.directory, learning.directory)]
        assert curves[0] == pytest.approx(curves[1], abs=2e-4)


def test_a_run_that_is_cancelled_gives_back_what_it_held(base: BaseModel, tmp_path: Path) -> None:
    runner = new_runner(base)
    runner.learn(1, lesson(base, tmp_path / "run"))
    for _ in range(7):
        runner.step()
    runner.end(1)
    assert runner.idle
    assert runner.held == 0
    assert not runner._adapters.has("learning/1")
    assert not (tmp_path / "run" / RESULT).exists()


def test_answers_do_not_wait_for_learning_and_are_what_they_are_without_it(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Generation([TokenIds([5, 300, 41])], 24)
    runner = new_runner(base)
    runner.generate(1, request)
    alone = text(run(runner)[1])
    runner = new_runner(base)
    steps: list[str] = []
    next_ = runner._scheduler.next

    def spied() -> object:
        step = next_()
        steps.append(type(step).__name__)
        return step

    monkeypatch.setattr(runner._scheduler, "next", spied)
    runner.learn(1, lesson(base, tmp_path / "run", epochs=3))
    runner.step()
    runner.generate(2, request)
    values = run(runner)
    assert text(values[2]) == alone
    between = "".join("d" if name == Decode.__name__ else "l" if name == Learn.__name__ else "." for name in steps)
    assert "ll" not in between[between.index("d") : between.rindex("d")]
    assert Counter(steps)[Learn.__name__] > 0
    assert any(isinstance(value, LearnEvent) and value.finish_reason for value in values[1])


def test_micro_steps_keep_to_their_budget_and_change_nothing(base: BaseModel, tmp_path: Path) -> None:
    losses = []
    for tokens in (1, 64, 4096):
        learning = lesson(base, tmp_path / f"run{tokens}", epochs=2)
        runner = new_runner(base, Limits(prefill=16, learn=tokens))
        losses.append([event.loss for event in trained(runner, learning)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0] == pytest.approx(losses[2], rel=1e-3)


def test_two_memories_learn_side_by_side_each_as_alone(base: BaseModel, tmp_path: Path) -> None:
    alone = [event.loss for event in trained(new_runner(base), lesson(base, tmp_path / "a", epochs=3))]
    runner = new_runner(base)
    runner.learn(1, lesson(base, tmp_path / "b", epochs=3))
    runner.learn(2, lesson(base, tmp_path / "c", epochs=3))
    values = run(runner)
    for call in (1, 2):
        assert [v.loss for v in values[call] if isinstance(v, LearnEvent)] == pytest.approx(alone, rel=1e-4)


def test_what_cannot_be_learned_is_refused(base: BaseModel, tmp_path: Path) -> None:
    runner = new_runner(base)
    learning = lesson(base, tmp_path / "run")
    with pytest.raises(InvalidArgument, match="no examples"):
        runner.learn(1, dataclasses.replace(learning, packs=[]))
    with pytest.raises(InvalidArgument, match="longer than"):
        runner.learn(1, dataclasses.replace(learning, packs=[SoftPack((), (tuple([5] * 9000),), (((1,), (2,)),))]))
    with pytest.raises(FingerprintMismatch):
        runner.learn(1, dataclasses.replace(learning, compressor_fingerprint="another"))
    with pytest.raises(FailedPrecondition, match="reader"):
        runner.learn(1, dataclasses.replace(learning, use_reader=True))
    with pytest.raises(InvalidArgument, match="no linear layers"):
        Learner(1, lesson(base, tmp_path / "x", targets=("nothing",)), base, Adapters(base), 512)
    runner.end(1)
    assert runner.held == 0


def test_metrics_are_rows_of_json(base: BaseModel, tmp_path: Path) -> None:
    learning = lesson(base, tmp_path / "run", epochs=1)
    trained(new_runner(base), learning)
    rows = [json.loads(line) for line in (tmp_path / "run" / checkpoint.METRICS).read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[-1]["tokens"] > rows[0]["tokens"] > 0


def until(runner: Runner, learning: Learning, step: int) -> None:
    """Train as far as this step; then the process is gone."""
    runner.learn(1, learning)
    while not any(isinstance(o.value, LearnEvent) and o.value.step == step for o in runner.step()):
        pass


def same(learning: Learning, other: Learning) -> None:
    """One curve and one adapter."""
    curves = [[row["loss"] for row in checkpoint.metrics(one.directory)] for one in (learning, other)]
    assert curves[0] == pytest.approx(curves[1], abs=2e-4)
    results = [load_file(one.directory / RESULT / "adapter_model.safetensors") for one in (learning, other)]
    assert results[0].keys() == results[1].keys()
    for key, value in results[0].items():
        torch.testing.assert_close(value, results[1][key], atol=2e-3, rtol=1e-2)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"rank": 8}, {"rank": 4}),
        ({"rank": 1}, {"rank": 4}),  # copied, these would be repeated
        ({"targets": ("q_proj", "k_proj")}, {"targets": ("q_proj", "v_proj")}),
        ({"targets": ALL_LINEAR, "batch": 1}, {"targets": ("v_proj",), "batch": 3}),
    ],
)
def test_a_checkpoint_of_other_settings_is_removed_and_training_begins_anew(
    base: BaseModel, tmp_path: Path, before: dict[str, object], after: dict[str, object]
) -> None:
    until(new_runner(base), lesson(base, tmp_path / "run", epochs=2, **before), 5)
    again, fresh = (lesson(base, tmp_path / name, epochs=2, **after) for name in ("run", "fresh"))
    with structlog.testing.capture_logs() as lines:
        events = trained(new_runner(base), again)
    assert events[0].step == 1
    assert {line["log_level"] for line in lines} == {"warning"}
    trained(new_runner(base), fresh)
    same(again, fresh)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("damage", [empty, cut, Path.unlink])
@pytest.mark.parametrize("file", ["optimizer.pt", "adapter.safetensors", "state.json"])
def test_after_a_power_cut_it_goes_on_from_the_last_checkpoint_that_is_whole(
    base: BaseModel, tmp_path: Path, file: str, damage: Callable[[Path], None]
) -> None:
    whole, learning = (lesson(base, tmp_path / name, epochs=2) for name in ("whole", "run"))
    trained(new_runner(base), whole)
    until(new_runner(base), learning, 4)
    damage(learning.directory / "checkpoint" / file)
    assert trained(new_runner(base), learning)[0].step == 4
    same(learning, whole)

    shutil.rmtree(learning.directory)
    until(new_runner(base), learning, 4)
    for folder in ("checkpoint", "checkpoint.old"):
        damage(learning.directory / folder / file)
    assert trained(new_runner(base), learning)[0].step == 1
    same(learning, whole)


def test_a_checkpoint_is_on_the_disk_before_it_takes_the_place_of_the_last(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    flush, rename = checkpoint.flush, Path.rename

    def flushed(directory: Path) -> None:
        assert (directory / "optimizer.pt").exists() or (directory / "adapter_config.json").exists()
        done.append(f"flush {directory.name}")
        flush(directory)

    def renamed(path: Path, target: Path) -> Path:
        done.append(f"rename {path.name}")
        return rename(path, target)

    monkeypatch.setattr(checkpoint, "flush", flushed)
    monkeypatch.setattr(Path, "rename", renamed)
    trained(new_runner(base), lesson(base, tmp_path / "run", epochs=1))
    one = ["flush checkpoint.new", "rename checkpoint.new"]
    assert done == [*one, one[0], "rename checkpoint", one[1], "flush adapter.new", "rename adapter.new"]


def test_what_fails_to_begin_leaves_nothing_on_the_model(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = new_runner(base)

    def fail(*_: object) -> dict[str, object]:
        raise torch.OutOfMemoryError("no memory")

    until(new_runner(base), lesson(base, tmp_path / "run"), 2)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "resume", fail)
        with pytest.raises(torch.OutOfMemoryError):
            runner.learn(1, lesson(base, tmp_path / "run"))
        patched.setattr(torch.nn.init, "kaiming_uniform_", lambda a_RI, a: len(a_RI) and fail())
        with pytest.raises(torch.OutOfMemoryError):
            runner.learn(1, lesson(base, tmp_path / "run"))
    with pytest.raises(InvalidArgument, match="no linear layers"):
        runner.learn(1, lesson(base, tmp_path / "x", targets=("nothing",)))
    assert not runner._adapters.has("learning/1")
    assert runner.held == 0
    assert trained(runner, lesson(base, tmp_path / "run"))[0].step == 3  # the checkpoint was not to blame


def test_questions_that_share_a_context_may_together_be_longer_than_the_window(base: BaseModel, tmp_path: Path) -> None:
    base.model.config.max_position_embeddings = 40
    fits = SoftPack((), ((*range(10, 30),),), tuple(((40 + n,) * 11, (70 + n,) * 10) for n in range(3)))
    too_long = SoftPack((), ((*range(10, 31),),), fits.questions)
    learning = dataclasses.replace(lesson(base, tmp_path / "run", epochs=1), packs=[too_long, fits, too_long], chunks=[])
    (event,) = trained(new_runner(base), learning)
    assert event.tokens == 20 + 3 * 20
    with pytest.raises(InvalidArgument, match="longer than") as raised:
        new_runner(base).learn(1, dataclasses.replace(learning, packs=[too_long]))
    assert raised.value.reason == "NO_EXAMPLES"


@pytest.mark.parametrize("when", ["metrics", "checkpoint", "result"])
def test_a_full_disk_is_told_as_such_and_the_run_goes_on_once_there_is_room(base: BaseModel, tmp_path: Path, when: str) -> None:
    whole, learning = (lesson(base, tmp_path / name, epochs=1) for name in ("whole", "run"))
    trained(new_runner(base), whole)
    until(runner := new_runner(base), learning, 2 if when == "result" else 1)
    rows = learning.directory / checkpoint.METRICS
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        # What is written beyond the limit fails as on a full disk: half a row of metrics, or some of the weights.
        resource.setrlimit(resource.RLIMIT_FSIZE, (rows.stat().st_size + 10 if when == "metrics" else 4096, hard))
        (error,) = run(runner)[1]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert isinstance(error, ResourceExhausted)
    assert error.reason == "DISK_FULL"
    assert runner.held == 0
    trained(new_runner(base), learning)
    same(learning, whole)


def test_files_that_cannot_be_used_just_now_are_told_as_such(base: BaseModel, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unavailable, match="ENOTDIR"):
        new_runner(base).learn(1, lesson(base, tmp_path / "file" / "run"))
    learning = lesson(base, tmp_path / "run", epochs=1)
    (learning.directory / checkpoint.METRICS).mkdir(parents=True)
    runner = new_runner(base)
    runner.learn(1, learning)
    (error,) = run(runner)[1]
    assert isinstance(error, Unavailable)


@pytest.mark.parametrize("when", ["metrics", "checkpoint", "result"])
def test_a_run_whose_directory_was_removed_does_not_make_it_again(
    base: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Its text has to be forgotten: not even a checkpoint of it may come back."""
    learning = lesson(base, tmp_path / "runs" / "run", epochs=1)
    until(runner := new_runner(base), learning, 1)
    before = {"checkpoint": (checkpoint, "save"), "result": (Adapters, "files")}

    def removed(*given: object, **named: object) -> object:
        shutil.rmtree(learning.directory)
        return original(*given, **named)

    if when in before:
        owner, name = before[when]
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, removed)
    else:
        shutil.rmtree(learning.directory)
    *_, error = run(runner)[1]
    assert isinstance(error, Cancelled)
    assert not learning.directory.exists()
    assert runner.held == 0
