"""The learning eval: nothing that is asked was trained on, a run goes on where it was stopped, and figures are honest."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from memoryd_client import Mode

from memoryd.errors import SettingsError
from memoryd.eval import learning
from memoryd.eval.figures import Row
from memoryd.eval.kept_answers import KeptAnswers
from memoryd.eval.learning_data import DOCUMENTS, Asked, load
from memoryd.eval.learning_rows import Pair, gained, headline, learned_rows, refusal_row, score_rows, scores_of, stratified
from memoryd.eval.learning_steps import Learned
from memoryd.eval.settled import commits, fingerprint_of_files, settle
from memoryd.recall.prompt import REFUSAL
from tests.unit.test_learning_steps import Daemon, Fake

Qa = list[tuple[str, list[str]]]
LONG = "it was said at great length by all of those who had come to the hall that evening"


def write_data(folder: Path, **documents: list[Qa]) -> Path:
    """Questions with answers of each document, by memory; of a memory that is not named, one document with one question."""
    (folder / "eval").mkdir()
    for name in DOCUMENTS:
        rows = [
            {"id": f"{name}_{n}", "text": f"text {n}", "qa": [{"question": q, "answers": a} for q, a in qa]}
            for n, qa in enumerate(documents.get(name, [[(f"Outside of {name}?", ["yes"])]]))
        ]
        with gzip.open(folder / "eval" / f"{name}.jsonl.gz", "wt") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows))
    return folder


# --- questions ---


def test_no_question_is_both_asked_and_supplied(tmp_path: Path) -> None:
    qa: Qa = [(f" Question {n}?", ["yes ", "yes"]) for n in range(40)] + [("?", [])]
    data = write_data(tmp_path, squad=[qa, [(f"Other {n}?", ["no"]) for n in range(9)], qa])
    made = load(data, "squad", 10, 30)
    assert list(made.texts) == ["squad 0", "squad 1"], "as many documents as a memory of this kind has"
    assert (len(made.asked), len(made.supplied)) == (10, 30)
    assert {golds for one in made.asked for golds in one.golds} <= {"yes", "no"}
    assert not {one.question for one in made.asked} & {one.question for one in made.supplied}
    assert load(data, "squad", 10, 30) == made
    assert load(data, "squad", 10, 30).fingerprint == made.fingerprint != load(data, "squad", 11, 30).fingerprint


def test_an_example_does_not_tell_what_is_asked(tmp_path: Path) -> None:
    """Two questions that are the same but for their writing are one; so are two with the same long answer about a document."""
    qa: Qa = [("Who came?", ["Ann"]), ("who came", ["Ann"]), ("What was said?", [LONG]), ("What of it?", [f"The {LONG}."])]
    data = write_data(tmp_path, squad=[qa, [("Who spoke?", ["Ann"]), ("And here?", [LONG])]])
    told = set()
    for ask in range(1, 5):
        made = load(data, "squad", ask, 99)
        questions = [one.question for one in [*made.asked, *made.supplied]]
        assert "who came" not in questions
        long = {"What was said?", "What of it?"}
        told.add(len(long & {one.question for one in made.asked}))
        assert not (long & {one.question for one in made.asked} and long & {one.question for one in made.supplied})
        assert {"Who came?", "Who spoke?", "And here?"} <= set(questions), "short answers, and other documents, tell nothing"
    assert max(told) > 0, "one of them was asked, of some number of questions"


def test_a_question_that_names_no_document_is_not_asked(tmp_path: Path) -> None:
    whole = [
        "Summarize the whole meeting.",
        "Summarize the meeting",
        "What was the general discussion?",
        "What was the meeting about?",
    ]
    meeting: Qa = [(question, ["much"]) for question in whole]
    meeting += [("Summarize the discussion about the meeting room", ["It is small."]), ("Why?", ["so"])]
    data = write_data(tmp_path, qmsum=[meeting, [("why", ["because"]), ("Who?", ["Ann"])]])
    made = load(data, "qmsum", 9, 9)
    assert {one.question for one in made.asked} == {"Summarize the discussion about the meeting room", "Who?"}


def test_what_a_paper_does_not_say_is_to_be_refused(tmp_path: Path) -> None:
    data = write_data(tmp_path, qasper=[[("Are all tweets in English?", ["Unanswerable", "unanswerable."])]])
    (asked,) = load(data, "qasper", 1, 0).asked
    assert asked.golds == (REFUSAL,)
    assert scores_of("qasper", [asked, asked], [REFUSAL, "Unanswerable"]) == [(1.0,), (0.0,)]


def test_questions_of_another_memory_are_put_to_each(tmp_path: Path) -> None:
    data = write_data(tmp_path, qasper=[[(f"What of {n}?", ["that"]) for n in range(30)]])
    assert len(load(data, "squad", 40, 0).outside) == 20
    assert len(load(data, "squad", 3, 0).outside) == 3, "a quick run is quick"
    assert [one.question for one in load(data, "qmsum", 9, 0).outside] == ["Outside of squad?"]


# --- what was kept ---


def test_what_was_kept_is_there_after_a_kill(tmp_path: Path) -> None:
    kept = KeptAnswers(tmp_path / "kept.jsonl")
    kept.put("a", "1")
    with (tmp_path / "kept.jsonl").open("a") as file:
        file.write('["b", "cut o')
    again = KeptAnswers(tmp_path / "kept.jsonl")
    assert again["a"] == "1"
    assert "b" not in again


def test_a_run_goes_on_only_with_what_it_was_begun_with(tmp_path: Path) -> None:
    work = tmp_path / "work"
    settle(work, {"--ask": "2", "questions of squad": "a"})
    (work / "kept.jsonl").write_text("")
    settle(work, {"--ask": "2", "questions of qasper": "b"})
    with pytest.raises(SettingsError, match=r"--ask was 2, is 40\. .*give another --work"):
        settle(work, {"--ask": "40", "questions of squad": "a"})
    with pytest.raises(SettingsError, match="questions of squad was a, is c"):
        settle(work, {"--ask": "2", "questions of squad": "c"})
    settle(work, {"--ask": "2", "questions of squad": "a", "questions of qasper": "b"})


def test_figures_are_of_the_code_that_a_run_began_with_to_that_which_ended_it(tmp_path: Path) -> None:
    assert commits(tmp_path, "aaa") == "aaa"
    assert commits(tmp_path, "bbb") == "aaa..bbb"
    assert commits(tmp_path, "aaa") == "aaa"


def test_what_an_earlier_version_kept_is_not_taken_up(tmp_path: Path) -> None:
    (tmp_path / "kept.jsonl").write_text("")
    with pytest.raises(SettingsError, match="empty"):
        settle(tmp_path, {"--ask": "2"})
    assert [path.name for path in tmp_path.iterdir()] == ["kept.jsonl"]


def test_a_directory_is_known_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "weights").write_bytes(b"1")
    first = fingerprint_of_files(tmp_path)
    assert fingerprint_of_files(tmp_path) == first
    (tmp_path / "a" / "weights").write_bytes(b"2")
    assert fingerprint_of_files(tmp_path) != first
    with pytest.raises(SettingsError, match="no directory"):
        fingerprint_of_files(tmp_path / "b")


def test_other_options_are_refused_before_a_daemon_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "running_daemon", None)  # it would be called
    data = write_data(tmp_path, squad=[[(f"Who is {n}?", ["Ann"]) for n in range(9)]])
    work = tmp_path / "work"
    arguments = ["--data", str(data), "--work", str(work), "--memories", "squad", "--examples", "3", "--quick"]
    asked = load(data, "squad", 2, 3)
    settle(work, {"--ask": "2", "--examples": "3", "questions of squad": asked.fingerprint})
    assert learning.main([*arguments, "--ask", "5"]) == learning.EX_CONFIG
    said = capsys.readouterr().err
    assert "--ask was 2, is 5" in said
    assert "another --work" in said


# --- what is asked ---


class Answering(Fake):
    """Remembers what it was asked; with an adapter it knows everything but to refuse."""

    def __init__(self, daemon: Daemon, name: str, asked: list[tuple[str, str, str]]) -> None:
        super().__init__(daemon)
        self.id, self.asked = name, asked

    def answer(self, question: str, *, mode: Mode, adapters: tuple[str, ...] = (), **_: object) -> Any:
        self.asked.append((self.id, mode.name, *adapters))
        return SimpleNamespace(text="Ann" if adapters else REFUSAL)


def measured(
    daemon: Daemon, work: Path, data: Path, usual: Mode = Mode.TEXT
) -> tuple[dict[str, float], list[Row], list[tuple[str, ...]]]:
    """What was gained, the rows, and what was asked of which memory, in which mode, with which adapter."""
    asked: list[Any] = []
    client: Any = Answering(daemon, "squad", asked)
    client.memory = lambda name, create: client
    another: Any = Answering(Daemon(), "another", asked)
    kept, rows = KeptAnswers(work / "kept.jsonl"), list[Row]()
    bench = learning.Bench(client, another, kept, lambda line: None, rows, usual)
    pairs = bench.measure("squad", load(data, "squad", 5, 2), 7)
    assert {len(own) for own in pairs.values()} == {5}
    return {arm: gained(own) for arm, own in pairs.items()}, rows, asked


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path, squad=[[(f"Who is {n}?", ["Ann"]) for n in range(9)]])


def test_every_arm_is_asked_as_often_as_it_takes_and_no_more(tmp_path: Path, data: Path) -> None:
    gains, rows, asked = measured(Daemon(), tmp_path, data)
    arms = [(), ("adapters/operations/1",), ("adapters/operations/2",)]
    expected = [("another", "TEXT")] * 5
    for arm in arms:
        expected += [("squad", "TEXT", *arm)] * (5 + 1) + [("squad", "COMPRESSED", *arm)] * 3  # and one of another memory
    assert sorted(asked) == sorted(expected)
    assert gains == {"self-study": 1.0, "supplied": 1.0}
    by_name = {row.name: row for row in rows}
    assert not [name for name in by_name if "HYBRID" in name], "it would be TEXT again"
    refused = by_name["squad, TEXT, supplied: refused of another memory's questions"]
    assert (refused.value, refused.baseline) == (0.0, 1.0)
    assert by_name["squad, self-study: kept of them"].value == 2


def test_while_the_gate_is_open_hybrid_is_asked_and_counts(tmp_path: Path, data: Path) -> None:
    _, rows, asked = measured(Daemon(), tmp_path, data, usual=Mode.HYBRID)
    assert len([one for one in asked if one[1] == "HYBRID"]) == 15
    assert [row.name for row in rows if row.name.startswith("squad, HYBRID") and row.n == 5]


def test_answers_are_asked_for_once_for_each_adapter(tmp_path: Path, data: Path) -> None:
    first = measured(Daemon(), tmp_path, data)
    again = measured(Daemon(), tmp_path, data)
    assert again == (first[0], first[1], []), "all of it was kept"
    nothing_found = measured(Daemon(finds=0), tmp_path / "other", data)
    assert len(nothing_found[2]) == len(first[2]) - 9, "without an adapter it is the reader, which was asked"
    assert nothing_found[0]["self-study"] == 0.0


# --- figures ---


def over_nothing(*scores: float) -> list[Pair]:
    """Of as many questions: what an adapter scored where the reader scored 0."""
    return [((score,), (0.0,)) for score in scores]


def test_the_headline_is_the_mean_of_memories_and_its_interval_is_of_their_questions() -> None:
    row = headline("supplied", "TEXT", [over_nothing(0.1) * 40, over_nothing(0.2) * 40, over_nothing(0.3) * 10])
    assert row.value == pytest.approx(0.2), "each memory counts as much as another"
    assert row.n == 90
    assert (row.low, row.high) == (pytest.approx(0.2), pytest.approx(0.2)), "that memories differ is no noise"
    assert row.met
    low, high = stratified([over_nothing(0.0, 1.0) * 20, over_nothing(0.5) * 40])
    assert 0.4 < low < 0.5 < high < 0.6
    low, high = stratified([over_nothing(0.0, 1.0)])
    assert (low, high) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("gains", "met"),
    [
        ([[0.07] * 9], True),
        ([[0.06] * 9], False),  # too little
        ([[1.0, -0.8] * 5], False),  # enough, but it may be chance
    ],
)
def test_the_aim_is_met_where_enough_is_gained_beyond_noise(gains: list[list[float]], met: bool) -> None:
    row = headline("supplied", "TEXT", [over_nothing(*own) for own in gains])
    assert row.met is met
    assert "TEXT" in row.name


def test_a_row_is_held_against_the_reader_question_by_question() -> None:
    asked = [Asked("a?", ("x",), "d"), Asked("b?", ("y",), "d")]
    reader, learned = scores_of("squad", asked, ["x", "z"]), scores_of("squad", asked, ["x", "y"])
    (alone,) = score_rows("squad", "TEXT", "reader", reader, None)
    assert (alone.value, alone.unit, alone.baseline) == (0.5, "F1", None)
    row, over = score_rows("squad", "TEXT", "supplied", learned, reader)
    assert (row.value, row.baseline, row.ratio) == (1.0, 0.5, 2.0)
    assert (over.value, over.low, over.high, over.n) == (0.5, 0.0, 1.0, 2)


def test_meetings_are_scored_with_rouge_over_all_their_questions() -> None:
    asked = [Asked("a?", ("one two three",), "d"), Asked("b?", ("four five",), "d")]
    reader, learned = scores_of("qmsum", asked, ["x", "y"]), scores_of("qmsum", asked, ["one", "four five"])
    row, over = score_rows("qmsum", "TEXT", "supplied", learned, reader)
    assert row.unit == "ROUGE"
    assert row.value == pytest.approx((0.75 * 0.5 * 0.75) ** (1 / 3)), "not the mean of 0 and 1"
    assert over.value == row.value
    assert over.low == pytest.approx(0.0), "where the answer that has two words in a row is not drawn"


def test_an_adapter_that_merely_stops_refusing_is_seen() -> None:
    reader, learned = [REFUSAL, REFUSAL, "Ann", REFUSAL], ["Ann", REFUSAL, "Ann", "Bob"]
    assert refusal_row("squad", "reader", reader, None).value == 0.75
    row = refusal_row("squad", "supplied", learned, reader)
    assert (row.value, row.baseline, row.n) == (0.25, 0.75, 4)


def test_a_verdict_is_a_figure_where_there_is_one() -> None:
    training, verdict = learned_rows("squad", "supplied", Learned("a", 64, 16, 120.0, "better", True, 0.4, 0.5, 24))
    assert (training.value, training.n) == (2.0, 64)
    assert (verdict.value, verdict.baseline, verdict.n, verdict.met) == (0.5, 0.4, 24, True), (
        "those to be refused are judged by, too"
    )
    assert len(learned_rows("squad", "self-study", Learned("a", 4, 1, 9.0, "too few are held out"))) == 1
