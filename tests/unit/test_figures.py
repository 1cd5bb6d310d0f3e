from __future__ import annotations

from pathlib import Path

import pytest

from memoryd.eval.figures import Row, read, render_all, table, write

ROWS = [
    Row("ack: 10 KB", 4.25, "ms", low=4.0, high=4.5, n=100, baseline=10, ratio=0.425, aim="< 10", met=True, command="bench"),
    Row("answers", 0.5, "share", low=0.4, high=0.6, n=20, aim="≥ 0.8", met=False),
]  # fmt: skip


def test_rows_come_back_stamped(tmp_path: Path) -> None:
    write("speed", ROWS, tmp_path)
    rows = read("speed", tmp_path)
    assert [r.name for r in rows] == ["ack: 10 KB", "answers"]
    assert all(r.commit and r.date for r in rows)


def test_a_page_shows_what_the_file_says(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    write("speed", ROWS, docs)
    page = docs / "page.md"
    page.write_text("before\n<!-- figures: speed match=^ack -->\nstale 99\n<!-- /figures -->\nafter\n")
    render_all(docs)
    text = page.read_text()
    assert "| ack: 10 KB | 4.25 ms | 4 – 4.5 | 100 | 10 | 0.42x | < 10 | yes |" in text
    assert "stale" not in text
    assert "answers" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert (docs / "img" / "speed.png").stat().st_size > 1000
    assert page not in render_all(docs)  # nothing changes the second time


def test_a_table_without_figures_is_an_error(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    write("speed", ROWS, docs)
    (docs / "page.md").write_text("<!-- figures: absent -->\n<!-- /figures -->\n")
    with pytest.raises(KeyError):
        render_all(docs)


def test_not_measured_is_null(tmp_path: Path) -> None:
    path = write("speed", [Row("nothing", float("nan"), "ms")], tmp_path)
    assert '"value": null' in path.read_text()
    assert "| nothing | – ms |" in table(read("speed", tmp_path))
    assert tmp_path / "img" / "speed.png" in render_all(tmp_path)


def test_the_compression_eval_has_a_picture_of_its_own(tmp_path: Path) -> None:
    rows = [Row("raw: F1", 0.6, "F1", 0.5, 0.7), Row("none: F1", 0.05, "F1")]
    for ratio in (4, 8):
        rows.append(Row(f"slots at {ratio}x", 512 / ratio, "slots"))
        rows += [Row(f"{arm} at {ratio}x: F1", 0.3, "F1", 0.2, 0.4) for arm in ("first", "compressed", "int8")]
        rows.append(Row(f"compressed at {ratio}x, squad: F1", 0.3, "F1"))
    write("compression", rows, tmp_path)
    assert tmp_path / "img" / "compression-slots.png" in render_all(tmp_path)
    assert (tmp_path / "img" / "compression-slots.png").stat().st_size > 1000


def test_the_learning_eval_has_a_picture_of_its_own(tmp_path: Path) -> None:
    rows = [Row("learned, supplied: gained over the reader, TEXT, mean of memories", 0.1, "points", 0.0, 0.2)]
    for memory, unit in (("squad", "F1"), ("qmsum", "ROUGE")):
        for arm in ("another memory", "reader", "self-study", "supplied"):
            rows.append(Row(f"{memory}, TEXT, {arm}", 0.4, unit, 0.3, 0.5))
            rows.append(Row(f"{memory}, TEXT, {arm}: refused of another memory's questions", 0.9, "share"))
        rows.append(Row(f"{memory}, TEXT, supplied: gained", -0.1, "points"))
    write("learning", rows, tmp_path)
    assert tmp_path / "img" / "learning.png" in render_all(tmp_path)
    assert (tmp_path / "img" / "learning.png").stat().st_size > 1000
