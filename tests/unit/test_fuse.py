"""Reciprocal rank fusion: what several rankings agree on comes first."""

from __future__ import annotations

from memoryd.recall.fuse import K, fuse


def test_one_ranking_keeps_its_order() -> None:
    assert [item for item, _ in fuse([["a", "b", "c"]])] == ["a", "b", "c"]


def test_what_both_rankings_hold_beats_the_first_of_one() -> None:
    assert fuse([["a", "both"], ["b", "both"]])[0][0] == "both"


def test_scores_are_sums_of_reciprocal_ranks() -> None:
    assert dict(fuse([["a", "b"], ["b"]])) == {"a": 1 / (K + 1), "b": 1 / (K + 2) + 1 / (K + 1)}


def test_equal_scores_stay_in_the_order_in_which_they_were_met() -> None:
    assert [item for item, _ in fuse([["x"], ["y"]])] == ["x", "y"]


def test_nothing_fuses_to_nothing() -> None:
    assert fuse([]) == []
    assert fuse([[], []]) == []
