"""A run of learning on disk: it goes on only with what it began with, and remembers all that it has seen."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path

import pytest

from memoryd.learn.checkpoint import METRICS
from memoryd.learn.run import Run

FACTS = {"base": "b", "settings": "s"}
MONDAY, TUESDAY = datetime(2026, 1, 5, tzinfo=UTC), datetime(2026, 1, 6, tzinfo=UTC)


def alive(_: Collection[str]) -> bool:
    return True


@pytest.fixture
def begun(tmp_path: Path) -> Run:
    run = Run(tmp_path / "acme" / "job")
    assert run.begin(FACTS, {"d1", "d2"}, alive, MONDAY) == {"d1", "d2"}
    (run.directory / "checkpoint").mkdir()
    return run


def test_it_remembers_all_that_it_has_seen(begun: Run) -> None:
    assert Run(begun.directory).begin(FACTS, {"d2", "d3"}, alive, TUESDAY) == {"d1", "d2", "d3"}
    assert (begun.directory / "checkpoint").exists(), "it goes on"
    assert begun.documents == ["d1", "d2", "d3"]


def test_it_knows_what_was_gathered_for_its_first_try(begun: Run) -> None:
    begun.begin(FACTS, {"d2"}, alive, TUESDAY)
    assert begun.gather_time == MONDAY, "its weights may have taken in nothing since"
    begun.begin({**FACTS, "base": "another"}, {"d2"}, alive, TUESDAY)
    assert begun.gather_time == TUESDAY, "it began anew"


def test_where_a_part_of_that_is_deleted_it_begins_anew(begun: Run) -> None:
    begun.name("a1")
    assert begun.begin(FACTS, {"d2"}, lambda seen: "d1" not in seen, MONDAY) == {"d2"}
    assert not (begun.directory / "checkpoint").exists()
    assert begun.adapters == ["a1"], "which is to be erased in the end"


@pytest.mark.parametrize("facts", [{"base": "another", "settings": "s"}, {"base": "b", "settings": "another"}])
def test_with_other_models_or_settings_it_begins_anew(begun: Run, facts: dict[str, str]) -> None:
    assert begun.begin(facts, {"d2"}, alive, MONDAY) == {"d2"}
    assert not (begun.directory / "checkpoint").exists()


def test_what_lies_there_without_notes_is_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "job" / "adapter").mkdir(parents=True)
    run = Run(tmp_path / "job")
    assert run.trained
    assert run.documents is None
    assert run.begin(FACTS, {"d"}, alive, MONDAY) == {"d"}
    assert not run.trained


def test_metrics_count_a_step_once_and_pass_over_what_was_cut_off(begun: Run) -> None:
    lines = [
        '{"step": 1, "loss": 5}',
        '{"step": 2, "loss": 4}',
        '{"step": 2, "loss": 3}',
        '{"st',
        "[]",
        '{"step": 3, "loss": 2}',
    ]
    (begun.directory / METRICS).write_text("\n".join(lines))
    assert [(row["step"], row["loss"]) for row in begun.metrics()] == [(1, 5), (2, 3), (3, 2)]


def test_it_leaves_nothing(begun: Run) -> None:
    begun.remove()
    begun.remove()
    assert not begun.directory.exists()
    assert begun.adapters == []
