"""The commands of `memoryd`."""

from __future__ import annotations

import pytest

from memoryd.__main__ import main


def test_help_of_eval_lists_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["eval", "--help"])
    assert ended.value.code == 0
    assert {"reader", "compression", "learning"} <= set(capsys.readouterr().out.split())


@pytest.mark.parametrize("arguments", [[], ["nonsense"]])
def test_eval_of_nothing_that_there_is_is_refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["eval", *arguments])
    assert ended.value.code == 2
    assert "memoryd eval" in capsys.readouterr().err


def test_what_follows_the_kind_of_eval_is_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["eval", "learning", "--help"])
    assert ended.value.code == 0
    assert "--work" in capsys.readouterr().out
