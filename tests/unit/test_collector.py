"""What lives as long as the process is not looked through for garbage."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from memoryd import collector


class Node:
    """Refers to itself: only the collector finds that nobody else does."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_nothing_is_collected_while_things_load_and_what_was_loaded_is_not_looked_at_again() -> None:
    with collector.loading():
        assert not gc.isenabled()
        loaded = Node()
    assert gc.isenabled()
    assert not any(each is loaded for each in gc.get_objects()), "it is out of the collector's sight"


def test_garbage_of_loading_is_not_kept() -> None:
    with collector.loading():
        garbage = weakref.ref(Node())
        assert garbage() is not None
    assert garbage() is None


def test_garbage_of_later_is_found() -> None:
    collector.keep()
    garbage = weakref.ref(Node())
    gc.collect()
    assert garbage() is None


def test_a_failure_while_loading_leaves_the_collector_at_work() -> None:
    with pytest.raises(ValueError, match="no model"), collector.loading():
        raise ValueError("no model")
    assert gc.isenabled()
