"""The benchmarks' statistics: what an interval covers, and what a row says."""

import math
from pathlib import Path

import pytest
import torch

from bench.compress import CHUNKS, RANK, as_trained, stored_of_the_book
from bench.lab import concurrently, row
from bench.stats import median, quantile
from bench.texts import questions, texts
from memoryd.compress.pooled import PooledCompressor
from memoryd.engine.adapters import ALL_LINEAR, ENCODER, Adapters
from memoryd.engine.base_model import load_base_model
from memoryd.engine.tokenizer import TextTokenizer
from tests.tiny_models import make_tiny_model


def test_the_median_of_few() -> None:
    assert median([3.0, 1.0, 2.0]).value == 2.0
    assert median([5.0]).value == quantile([5.0], 0.99).value == 5.0


@pytest.mark.parametrize("q", [0.5, 0.9])
@pytest.mark.parametrize("n", [6, 7, 12, 25, 30, 80])
def test_an_interval_misses_the_quantile_at_each_end_no_oftener_than_it_says(n: int, q: float) -> None:
    """Of samples 0, 1, 2 … an end is the number of samples below it, of which the true quantile has binomial(n, q)."""
    chances = [math.comb(n, k) * q**k * (1 - q) ** (n - k) for k in range(n + 1)]
    made = quantile(list(range(n)), q)
    if made.low is not None:
        assert sum(chances[: int(made.low) + 1]) <= 0.025, "else fewer samples lie below the true one"
        assert sum(chances[: int(made.low) + 2]) > 0.025, "and it is no wider than it must be"
    if made.high is not None:
        assert sum(chances[int(made.high) + 1 :]) <= 0.025
        assert sum(chances[int(made.high) :]) > 0.025
    assert (made.low is None) == (chances[0] > 0.025)
    assert (made.high is None) == (chances[n] > 0.025)


def test_few_samples_have_no_interval() -> None:
    for few in ([1.0], [1.0, 2.0], [1.0, 2.0, 3.0, 4.0, 5.0]):
        assert (median(few).low, median(few).high) == (None, None)
    six = median([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert (six.low, six.high) == (1.0, 6.0)
    assert quantile([float(n) for n in range(300)], 0.99).high is None, "the 99th percentile takes more"


def test_many_samples_do_not_overflow() -> None:
    low = median([n / 5000 for n in range(5000)]).low
    assert low is not None
    assert 0.45 < low < 0.5


def test_texts_are_new_each_time_and_of_the_size_asked_for() -> None:
    first, second = (next(texts(10_000, seed)) for seed in (1, 2))
    assert first != second
    assert 9_000 < len(first.encode()) <= 10_000
    assert next(texts(10_000, 1)) == first


def test_questions_are_as_many_as_asked_for() -> None:
    assert len(questions(7, seed=1)) == 7


async def test_each_number_is_worked_on_once() -> None:
    seen: list[int] = []

    async def work(number: int) -> None:
        seen.append(number)

    took, rate = await concurrently(4, 10, work)
    assert sorted(seen) == list(range(10))
    assert len(took) == 10
    assert rate > 0


def test_a_row_knows_its_aim_and_baseline() -> None:
    made = row("write: acknowledged", 5.0, "ms", baseline=2.0, below=10.0)
    assert (made.ratio, made.met, made.aim) == (2.5, True, "< 10 ms")


def test_what_is_stored_of_the_book_is_counted_whole(tmp_path: Path) -> None:
    path = make_tiny_model("llama", tmp_path)
    base = load_base_model(path)
    plain, small = stored_of_the_book(PooledCompressor.untrained(base, Adapters(base), 4), TextTokenizer(path))
    assert (plain.name, small.name) == ("compress: the book stored at 4x, bfloat16", "compress: the book stored at 4x, int8")
    files = 400 * CHUNKS / (512 * CHUNKS)  # headers, of full chunks; these are nearly full
    assert 2 * 64 / 4 + files < plain.value < 2 * 64 / 4 * 1.05
    assert (64 + 4) / 4 + files < small.value < (64 + 4) / 4 * 1.1
    assert small.baseline == plain.value


def test_the_compressor_that_is_timed_does_the_work_of_a_trained_one(tmp_path: Path) -> None:
    base = load_base_model(make_tiny_model("llama", tmp_path))
    adapters = Adapters(base)
    compressor = as_trained(base, adapters, 4)
    state = adapters.state(ENCODER)
    assert {name.split(".")[-3] for name in state} == set(ALL_LINEAR)
    assert {weight.shape[0] for name, weight in state.items() if ".lora_A." in name} == {RANK}
    (with_it,) = compressor.compress([list(range(5, 40))])
    adapters.remove(ENCODER)
    (without,) = compressor.compress([list(range(5, 40))])
    assert not torch.equal(with_it, without), "every layer computes it: it is not zero"
