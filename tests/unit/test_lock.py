"""One daemon for each data directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from memoryd.errors import FailedPrecondition
from memoryd.lock import DataDirLock


def test_a_second_holder_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    with DataDirLock(tmp_path):
        with pytest.raises(FailedPrecondition) as caught, DataDirLock(tmp_path):
            pass
        assert caught.value.reason == "DATA_DIR_LOCKED"
        assert str(os.getpid()) in caught.value.message
        assert "--data-dir" in caught.value.message


def test_it_is_free_again_afterwards(tmp_path: Path) -> None:
    for _ in range(2):
        with DataDirLock(tmp_path):
            pass


def test_two_directories_do_not_mind_each_other(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with DataDirLock(tmp_path / "a"), DataDirLock(tmp_path / "b"):
        pass
