"""Which adapters an answer is given with: the active ones, weighted by what was found, or those that are asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from memoryd.core import Adapter, AdapterState, Passage, Source, new_id, now
from memoryd.errors import FailedPrecondition, InvalidArgument, NotFound
from memoryd.learn.adapter_files import AdapterFiles, pack_files
from memoryd.models import Models
from memoryd.recall.adapters import AdapterStore, Choice, blob_key
from tests.unit.learning_parts import INFO, Worker, models
from tests.unit.test_reuse import TENANT, Lab

FITS = (INFO.base_fingerprint, INFO.reader, INFO.compressor.fingerprint)


class MemoryCache:
    """A cache in memory; `before_put` is what happens as something is about to be kept."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, str], bytes] = {}
        self.asked: list[str] = []
        self.before_put: Callable[[], object] = lambda: None

    def get_many(self, tenant: str, keys: Sequence[str]) -> dict[str, bytes]:
        self.asked += keys
        return {key: self.held[tenant, key] for key in keys if (tenant, key) in self.held}

    def put(self, tenant: str, key: str, value: bytes) -> None:
        self.before_put()
        self.held[tenant, key] = value

    def delete_prefix(self, tenant: str, prefix: str) -> int:
        doomed = [key for key in self.held if key[0] == tenant and key[1].startswith(prefix)]
        for key in doomed:
            del self.held[key]
        return len(doomed)

    def close(self) -> None: ...


@dataclass
class Shelf:
    """Memories with adapters, and a worker that begins with none of them."""

    lab: Lab
    cache: MemoryCache = field(default_factory=MemoryCache)
    worker: Worker = field(default_factory=Worker)

    def add(self, memory: str = "m", fits: tuple[str, str, str] = FITS, *, active: bool = True) -> Adapter:
        with contextlib.suppress(Exception):
            self.lab.ledger.create_memory(TENANT, memory, "", "", {}, None)
        files = self.files(id_ := new_id())
        made = Adapter(TENANT, memory, id_, now(), files.fingerprint, *fits, files.size)
        self.lab.blobs.put(TENANT, blob_key(TENANT, memory, id_), pack_files(files))
        added = self.lab.ledger.add_adapter(made, [], active)
        assert added is not None
        return added

    @staticmethod
    def files(id_: str) -> AdapterFiles:
        return AdapterFiles(f"config of {id_}".encode(), f"weights of {id_}".encode() * 10, {"id": id_})

    def store(self, process_bytes: int = 1 << 20, **changed: Any) -> AdapterStore:
        known: Models = models(self.worker, None, **changed)
        return AdapterStore(self.lab.ledger, self.lab.blobs, self.cache, known, process_bytes)


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    made = Shelf(Lab(tmp_path))
    yield made
    made.lab.ledger.close()


def found(memory: str, score: float = 1.0) -> Source:
    return Source(Passage("d", 0, 0, 0, 1, 0, 1, 1), memory, "", "x", score)


def chosen(choice: Choice) -> list[tuple[str, float]]:
    return [(adapter.memory, weight) for adapter, weight in choice.adapters]


def test_one_memory_answers_with_its_active_adapter(shelf: Shelf) -> None:
    kept, active = shelf.add(active=False), shelf.add()
    assert kept.state is AdapterState.KEPT
    choice = shelf.store().choose(TENANT, ["m"], [found("m", 0.3), found("m", 0.1)], None)
    assert choice == Choice([(active, 1.0)], [])
    assert choice.blend == ((active.id, 1.0),)
    assert not choice.by_hand


def test_memories_weigh_what_was_found_in_them(shelf: Shelf) -> None:
    for memory in ("m", "n", "o"):
        shelf.add(memory)
    sources = [found("m", 0.3), found("n", 0.2), found("m", 0.3), found("n", 0.1), found("n", 0.1)]
    assert chosen(shelf.store().choose(TENANT, ["m", "n", "o"], sources, None)) == [("m", 0.6), ("n", 0.4)]
    assert chosen(shelf.store().choose(TENANT, ["m", "n", "o"], sources[1:2], None)) == [("n", 1.0)]


def test_what_was_found_in_a_memory_without_an_adapter_weighs_too(shelf: Shelf) -> None:
    shelf.add("m")
    shelf.lab.ledger.create_memory(TENANT, "n", "", "", {}, None)
    assert chosen(shelf.store().choose(TENANT, ["m", "n"], [found("n", 0.75), found("m", 0.25)], None)) == [("m", 0.25)]


def test_where_nothing_was_found_or_nothing_is_active_none_is_used(shelf: Shelf) -> None:
    shelf.add(active=False)
    assert shelf.store().choose(TENANT, ["m"], [found("m")], None) == Choice([], [])
    shelf.add()
    assert shelf.store().choose(TENANT, ["m"], [], None) == Choice([], [])
    assert shelf.store().choose("blue", ["m"], [found("m")], None) == Choice([], [])


def test_the_ledger_is_asked_for_every_answer(shelf: Shelf) -> None:
    made, store = shelf.add(), shelf.store()
    assert chosen(store.choose(TENANT, ["m"], [found("m")], None)) == [("m", 1.0)]
    shelf.lab.ledger.roll_back_adapter(TENANT, "m")
    assert chosen(store.choose(TENANT, ["m"], [found("m")], None)) == []
    assert chosen(store.choose(TENANT, ["m"], [], [("m", made.id, 1.0)])) == [("m", 1.0)], "but it may be asked for"


@pytest.mark.parametrize(
    ("fits", "why"),
    [
        (("x", *FITS[1:]), "base model"),
        ((FITS[0], "x", FITS[2]), "reader"),
        ((FITS[0], "", FITS[2]), "reader"),
        ((*FITS[:2], "x"), "compressor"),
    ],
)
def test_one_that_does_not_fit_is_not_used_and_that_is_said(shelf: Shelf, fits: tuple[str, str, str], why: str) -> None:
    made, store = shelf.add(fits=fits), shelf.store()
    shelf.add("n")
    choice = store.choose(TENANT, ["m", "n"], [found("m"), found("n")], None)
    assert chosen(choice) == [("n", 0.5)]
    (warning,) = choice.warnings
    assert warning.startswith("the adapter of memory m is not used, which")
    assert why in warning
    assert store.choose(TENANT, ["m", "n"], [found("n")], None).warnings == [], "not where it would not be used anyway"
    with pytest.raises(FailedPrecondition) as caught:
        store.choose(TENANT, ["m"], [], [("m", made.id, 1.0)])
    assert caught.value.reason == "ADAPTER_MISFIT"


def test_one_that_learned_from_text_fits_every_compressor(shelf: Shelf) -> None:
    shelf.add(fits=(*FITS[:2], ""))
    assert chosen(shelf.store().choose(TENANT, ["m"], [found("m")], None)) == [("m", 1.0)]


def test_given_ones_are_used_as_they_are_given(shelf: Shelf) -> None:
    one, other = shelf.add("m", active=False), shelf.add("n")
    given = [("n", other.id, 0.25), ("m", one.id, -1.5)]
    choice = shelf.store().choose(TENANT, ["m", "n"], [found("m")], given)
    assert choice.blend == ((other.id, 0.25), (one.id, -1.5))
    assert choice.by_hand
    assert shelf.store().choose(TENANT, ["m", "n"], [found("n")], []) == Choice([], by_hand=True), "none"


def test_given_ones_are_of_the_memories_that_are_asked(shelf: Shelf) -> None:
    one, other = shelf.add("m"), shelf.add("n")
    with pytest.raises(InvalidArgument):
        shelf.store().choose(TENANT, ["m"], [], [("m", one.id, 1.0), ("n", other.id, 1.0)])
    for tenant, memory, adapter in ((TENANT, "m", other.id), (TENANT, "m", "none"), ("blue", "m", one.id)):
        with pytest.raises(NotFound):
            shelf.store().choose(tenant, ["m"], [], [(memory, adapter, 1.0)])


def test_a_tainted_one_is_refused(shelf: Shelf) -> None:
    document = shelf.lab.write("Caroline moved to Lisbon.")
    made = replace(shelf.add(active=False), id=new_id())
    shelf.lab.ledger.add_adapter(made, [document.id], True)
    assert shelf.lab.ledger.active_adapters(TENANT, ["m"])["m"].id == made.id
    shelf.lab.ledger.delete_document(TENANT, "m", document.id, None)
    assert shelf.store().choose(TENANT, ["m"], [found("m")], None) == Choice([], [])
    with pytest.raises(FailedPrecondition) as caught:
        shelf.store().choose(TENANT, ["m"], [], [("m", made.id, 1.0)])
    assert caught.value.reason == "ADAPTER_TAINTED"
