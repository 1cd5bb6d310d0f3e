"""The learning eval: nothing that is asked was trained on, and a run goes on where it was stopped."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from memoryd.eval.kept_answers import KeptAnswers
from memoryd.eval.learning import load


def test_no_question_is_both_asked_and_supplied(tmp_path: Path) -> None:
    (tmp_path / "eval").mkdir()
    qa = [{"question": f" Question {n % 30}?", "answers": ["yes ", "yes"]} for n in range(40)] + [
        {"question": "?", "answers": []}
    ]
    rows = [{"id": f"Some_{n}", "text": "text", "qa": qa} for n in range(3)]
    with gzip.open(tmp_path / "eval" / "squad.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    texts, asked, supplied = load(tmp_path, "squad", 10, 30)
    assert list(texts) == ["Some 0", "Some 1"], "as many documents as a memory of this kind has"
    assert len(asked) == 10
    assert asked[0].golds == ("yes",)
    assert not {one.question for one in asked} & {one.question for one in supplied}
    assert load(tmp_path, "squad", 10, 30) == (texts, asked, supplied)


def test_what_was_kept_is_there_after_a_kill(tmp_path: Path) -> None:
    kept = KeptAnswers(tmp_path / "kept.jsonl")
    kept.put("a", "1")
    with (tmp_path / "kept.jsonl").open("a") as file:
        file.write('["b", "cut o')
    again = KeptAnswers(tmp_path / "kept.jsonl")
    assert again["a"] == "1"
    assert "b" not in again
