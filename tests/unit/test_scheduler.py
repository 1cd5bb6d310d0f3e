"""The scheduler by simulation: nothing here has a tensor or a clock."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

from memoryd.engine.scheduler import PATIENCE, Compress, Decode, Embed, Item, Limits, Prefill, Scheduler, Step, Work

LIMITS = Limits(rows=2, positions=1000, prefill=100, embed=64, compress=64)


def kind(step: Step | None) -> str:
    return type(step).__name__


def test_nothing_to_run() -> None:
    scheduler = Scheduler(LIMITS)
    assert scheduler.next() is None
    assert scheduler.idle


def test_a_prompt_is_prefilled_in_pieces_then_decoded() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.add_sequence(1, 250, 10)
    assert [scheduler.next() for _ in range(4)] == [
        Prefill(1, 0, 100, False),
        Prefill(1, 100, 200, False),
        Prefill(1, 200, 250, True),
        Decode((1,)),
    ]
    scheduler.end(1)
    assert scheduler.idle


def test_pieces_are_larger_while_nothing_decodes() -> None:
    scheduler = Scheduler(Limits(prefill=100, prefill_alone=200))
    scheduler.add_sequence(1, 250, 10)
    scheduler.add_sequence(2, 250, 10)
    assert [scheduler.next() for _ in range(2)] == [Prefill(1, 0, 200, False), Prefill(1, 200, 250, True)]
    pieces = [step for _ in range(6) if isinstance(step := scheduler.next(), Prefill)]
    assert pieces == [Prefill(2, 0, 100, False), Prefill(2, 100, 200, False), Prefill(2, 200, 250, True)]


def test_rows_bound_who_decodes() -> None:
    scheduler = Scheduler(LIMITS)
    for call in (1, 2, 3):
        scheduler.add_sequence(call, 10, 10)
    for _ in range(20):
        step = scheduler.next()
    assert step == Decode((1, 2))
    scheduler.end(1)
    assert {kind(scheduler.next()) for _ in range(2)} == {"Prefill", "Decode"}
    assert scheduler.next() == Decode((2, 3))


def test_positions_bound_who_decodes_but_one_sequence_always_fits() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.add_sequence(1, 10, 5000)
    scheduler.add_sequence(2, 10, 10)
    assert scheduler.next() == Prefill(1, 0, 10, True)
    assert {scheduler.next() for _ in range(9)} == {Decode((1,))}  # with 2 beside it, twice 5010 positions
    scheduler.end(1)
    assert scheduler.next() == Prefill(2, 0, 10, True)


def test_what_nobody_waits_for_is_overtaken_but_not_for_ever() -> None:
    scheduler = Scheduler(Limits(rows=1))
    scheduler.add_sequence(0, 10, 1, background=True)
    for call in range(1, 40):
        scheduler.add_sequence(call, 10, 1)
    order = _begun(scheduler)
    assert order == [*range(1, 17), 0, *range(17, 40)]


def test_of_what_nobody_waits_for_the_first_goes_first() -> None:
    scheduler = Scheduler(Limits(rows=1))
    for call, background in ((1, True), (2, False), (3, True), (4, False)):
        scheduler.add_sequence(call, 10, 1, background)
    assert _begun(scheduler) == [2, 4, 1, 3]


def test_a_prompt_that_is_begun_is_not_overtaken() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.add_sequence(1, 250, 10, background=True)
    assert scheduler.next() == Prefill(1, 0, 100, False)
    scheduler.add_sequence(2, 10, 10)
    assert scheduler.next() == Prefill(1, 100, 200, False)


def test_what_nobody_waits_for_leaves_half_of_the_rows_to_others() -> None:
    scheduler = Scheduler(Limits(rows=4))
    for call in range(4):
        scheduler.add_sequence(call, 10, 10, background=True)
    for _ in range(10):
        step = scheduler.next()
    assert step == Decode((0, 1))
    scheduler.add_sequence(4, 10, 10)
    scheduler.add_sequence(5, 10, 10)
    for _ in range(10):
        step = scheduler.next()
    assert step == Decode((0, 1, 4, 5))


def test_what_was_overtaken_often_enough_takes_any_row_since_answers_now_wait_behind_it() -> None:
    scheduler = Scheduler(Limits(rows=4))
    for call in (0, 1):
        scheduler.add_sequence(call, 10, 1000)
    for _ in range(4):
        scheduler.next()
    scheduler.add_sequence(2, 10, 1000, background=True)
    for call in range(3, 3 + 17):
        scheduler.add_sequence(call, 10, 1)
    order: list[int] = []
    for _ in range(100):
        step = scheduler.next()
        if isinstance(step, Prefill):
            order.append(step.call)
        elif isinstance(step, Decode):
            for call in set(step.calls) - {0, 1, 2}:
                scheduler.end(call)
    assert order == [*range(3, 19), 2, 19]


def _begun(scheduler: Scheduler) -> list[int]:
    """Calls in the order in which their prompts begin; each ends with its first token."""
    order: list[int] = []
    while step := scheduler.next():
        if isinstance(step, Prefill):
            order.append(step.call)
        elif isinstance(step, Decode):
            for call in step.calls:
                scheduler.end(call)
    return order


def test_items_go_in_micro_batches_bounded_with_their_padding() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.add_items(Work.COMPRESS, [Item(1, i, tokens) for i, tokens in enumerate((10, 20, 20, 30, 500, 1))])
    taken = []
    while step := scheduler.next():
        assert isinstance(step, Compress)
        taken.append([item.tokens for item in step.items])
    assert taken == [[10, 20, 20], [30, 1], [500]]


def test_an_item_of_another_call_shares_the_micro_batch_and_order_is_kept() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.add_items(Work.EMBED, [Item(1, 0, 10)])
    scheduler.add_items(Work.EMBED, [Item(2, 0, 10)])
    assert scheduler.next() == Embed((Item(1, 0, 10), Item(2, 0, 10)))


def test_order_of_the_kinds_when_nothing_is_overdue() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.add_items(Work.COMPRESS, [Item(1, 0, 60)])
    scheduler.add_items(Work.EMBED, [Item(2, 0, 60)])
    scheduler.add_items(Work.URGENT_EMBED, [Item(3, 0, 60)])
    scheduler.add_sequence(4, 10, 1)
    assert scheduler.next() == Prefill(4, 0, 10, True)
    assert scheduler.next() == Decode((4,))
    scheduler.end(4)
    assert [scheduler.next() for _ in range(4)] == [
        Embed((Item(3, 0, 60),)),
        Embed((Item(2, 0, 60),)),
        Compress((Item(1, 0, 60),)),
        None,
    ]


def test_items_of_about_one_length_go_together_and_none_is_left_behind() -> None:
    scheduler = Scheduler(Limits(compress=1024))
    lengths = [300, 5, 310, 40, 600, 6, 290, 64, 1000]
    scheduler.add_items(Work.COMPRESS, [Item(1, i, tokens) for i, tokens in enumerate(lengths)])
    made = []
    while (step := scheduler.next()) is not None:
        assert isinstance(step, Compress)
        made.append([item.tokens for item in step.items])
    assert made == [[300, 310, 290], [5, 40, 6], [600], [64], [1000]]


@pytest.mark.parametrize("seed", range(5))
def test_micro_batches_keep_to_their_budget_and_are_little_padded(seed: int) -> None:
    rng = random.Random(seed)
    scheduler = Scheduler(Limits(compress=2048))
    scheduler.add_items(Work.COMPRESS, [Item(1, i, rng.randint(1, 512)) for i in range(1000)])
    seen: list[int] = []
    padded = 0
    while (step := scheduler.next()) is not None:
        assert isinstance(step, Compress)
        lengths = [item.tokens for item in step.items]
        assert len(lengths) == 1 or max(lengths) * len(lengths) <= 2048
        assert max(lengths) < 2 * max(min(lengths), 63)
        seen += [item.index for item in step.items]
        padded += max(lengths) * len(lengths) - sum(lengths)
    assert sorted(seen) == list(range(1000))
    assert padded < 0.35 * 1000 * 256


def test_compress_goes_on_between_decode_steps_and_never_twice_in_a_row() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.add_sequence(1, 10, 500)
    scheduler.add_items(Work.COMPRESS, [Item(2, i, 60) for i in range(1000)])
    steps = [kind(scheduler.next()) for _ in range(1 + 10 * (PATIENCE[Work.COMPRESS] + 1))]
    count = Counter(steps)
    assert count["Compress"] == 10
    assert count["Decode"] == 10 * PATIENCE[Work.COMPRESS]
    assert ("Compress", "Compress") not in itertools.pairwise(steps)


@pytest.mark.parametrize("seed", range(20))
def test_under_random_load_decode_waits_for_one_step_and_nothing_starves(seed: int) -> None:
    """Every kind has work at every moment: decode has at least half of the steps, everything else a bounded wait."""
    rng = random.Random(seed)
    scheduler = Scheduler(Limits(rows=8, positions=10**6, prefill=100, embed=64, compress=64))
    lengths: dict[int, int] = {}
    decoding: set[int] = set()
    waited: Counter[str] = Counter()
    worst: Counter[str] = Counter()
    for call in range(3000):
        scheduler.add_items(rng.choice([Work.URGENT_EMBED, Work.EMBED, Work.COMPRESS]), [Item(-call - 1, 0, 60)])
        if len(lengths) < 12:
            scheduler.add_sequence(call, rng.randint(1, 500), rng.randint(1, 50))
            lengths[call] = rng.randint(1, 50)
        step = scheduler.next()
        assert step is not None
        for name in ("Decode", "Prefill", "Embed", "Compress"):
            waited[name] = 0 if kind(step) == name or (name == "Decode" and not decoding) else waited[name] + 1
            worst[name] = max(worst[name], waited[name])
        if isinstance(step, Prefill) and step.last:
            decoding.add(step.call)
        if isinstance(step, Decode):
            assert set(step.calls) <= decoding
            assert len(step.calls) <= 8
            for row in step.calls:
                lengths[row] -= 1
                if lengths[row] == 0:
                    del lengths[row]
                    decoding.remove(row)
                    scheduler.end(row)
    assert worst["Decode"] == 1
    assert worst["Embed"] <= 16
    assert worst["Compress"] <= 4 * PATIENCE[Work.COMPRESS]


def test_end_forgets_a_call_wherever_it_is() -> None:
    scheduler = Scheduler(LIMITS)
    scheduler.add_sequence(1, 250, 10)
    scheduler.add_sequence(2, 10, 10)
    scheduler.add_items(Work.COMPRESS, [Item(3, i, 60) for i in range(5)])
    scheduler.next()  # 1 is half prefilled
    for call in (1, 2, 3, 99):
        scheduler.end(call)
    assert scheduler.idle
    assert scheduler.next() is None
