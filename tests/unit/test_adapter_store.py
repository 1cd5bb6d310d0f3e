"""Adapters are brought to the worker when it lacks them, through the tiers, and are never brought back when they are barred."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog

from memoryd.core import Adapter, Source, adapter_name, new_id
from memoryd.engine.request import GenerateEvent, Generation, TokenIds
from memoryd.errors import DataLoss, FailedPrecondition, MemorydError, NotFound, ResourceExhausted, Unavailable
from memoryd.learn.adapter_files import pack_files
from memoryd.recall.adapters import AdapterStore, Choice, blob_key, cache_key
from memoryd.recall.answer import Answerer, AnswerUsage, Question, Text
from memoryd.recall.assembly import Assembler, Mode
from memoryd.recall.underway import AnswersUnderWay
from memoryd.worker.client import WorkerInfo
from tests.unit.learning_parts import models, plain_tokenizer
from tests.unit.test_adapter_choice import Shelf, found, shelf
from tests.unit.test_reuse import TENANT

__all__ = ["shelf"]  # the fixture

REQUEST = Generation([TokenIds([5, 6])], 8, use_reader=True)


async def said(store: AdapterStore, choice: Choice) -> str:
    return "".join([event.text async for event in store.generate(TENANT, choice, REQUEST)])


async def test_without_adapters_it_generates_and_that_is_all(shelf: Shelf) -> None:
    assert await said(shelf.store(), Choice()) == "Lisbon"
    assert shelf.worker.asked == [replace(REQUEST, adapters=())]
    assert shelf.cache.asked == []


async def test_what_the_worker_lacks_is_loaded_once_and_asked_again(shelf: Shelf) -> None:
    one, other = shelf.add("m"), shelf.add("n")
    store, choice = shelf.store(), Choice([(one, 0.75), (other, 0.25)])
    assert await said(store, choice) == "Lisbon"
    assert shelf.worker.calls == [("load", one.id), ("load", other.id)]
    assert shelf.worker.loaded[one.id] == (shelf.files(one.id).config, shelf.files(one.id).weights)
    assert shelf.worker.asked == [replace(REQUEST, adapters=choice.blend)] * 2
    assert await said(store, choice) == "Lisbon"
    assert (len(shelf.worker.asked), len(shelf.worker.calls)) == (3, 2)


async def test_what_the_worker_drops_over_and_over_is_an_error_in_the_end(shelf: Shelf) -> None:
    choice, store = Choice([(shelf.add(), 1.0)]), shelf.store()
    dropped = FailedPrecondition("an adapter is not loaded", reason="ADAPTER_NOT_LOADED")
    shelf.worker.failures = [dropped, dropped]
    assert await said(store, choice) == "Lisbon"
    shelf.worker.failures = [dropped] * 9
    with pytest.raises(Unavailable):
        await said(store, choice)
    assert len(shelf.worker.failures) == 6, "it was tried three times"


# --- what can't be had ---


def spoil(shelf: Shelf, made: Adapter, monkeypatch: pytest.MonkeyPatch, how: str) -> type[Exception]:
    """Makes it one that can't be had; the error of an answer that was to be given with it."""
    if how == "gone":
        shelf.lab.blobs.delete_prefix(TENANT, blob_key(TENANT, "m", made.id))
        return NotFound
    if how == "damaged":
        shelf.lab.blobs.put(TENANT, blob_key(TENANT, "m", made.id), pack_files(shelf.files("another")))
        return DataLoss
    if how == "dropped":

        async def load(adapter: str, config: bytes, weights: bytes) -> None:
            shelf.worker.calls.append(("load", adapter))

        monkeypatch.setattr(shelf.worker, "load_adapter", load)
        return Unavailable

    why: MemorydError = ResourceExhausted("those in use leave no room", reason="ADAPTERS_IN_USE")
    if how == "too large":
        why = FailedPrecondition("it takes more than all of them may", reason="ADAPTER_TOO_LARGE")

    async def refuse(adapter: str, config: bytes, weights: bytes) -> None:
        raise why

    monkeypatch.setattr(shelf.worker, "load_adapter", refuse)
    return type(why)


HOW = pytest.mark.parametrize("how", ["gone", "damaged", "dropped", "no room", "too large"])


@HOW
async def test_an_answer_goes_on_without_what_cannot_be_had(shelf: Shelf, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, other, store = shelf.add(), shelf.add("n"), shelf.store()
    spoil(shelf, made, monkeypatch, how)
    left_out: list[int] = []
    events = store.generate(TENANT, Choice([(made, 0.5), (other, 0.5)]), REQUEST, lambda: left_out.append(1))
    with structlog.testing.capture_logs() as logs:
        assert "".join([event.text async for event in events]) == "Lisbon"
    assert left_out == [1], "and that is said, once"
    assert shelf.worker.asked[-1] == REQUEST
    assert len(shelf.worker.asked) == (4 if how == "dropped" else 2)
    (line,) = logs
    assert line["log_level"] == "warning"
    assert line["reason"]
    assert made.id in line.get("adapters", [line.get("adapter")])


@HOW
async def test_what_was_chosen_by_hand_is_not_left_out(shelf: Shelf, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, store = shelf.add(), shelf.store()
    error = spoil(shelf, made, monkeypatch, how)
    left_out: list[int] = []
    for choice, unused in (
        (Choice([(made, 1.0)], by_hand=True), lambda: left_out.append(1)),
        (Choice([(made, 1.0)]), None),  # nobody would know
    ):
        with pytest.raises(error):
            [event async for event in store.generate(TENANT, choice, REQUEST, unused)]
    assert left_out == []
    assert all(request.adapters for request in shelf.worker.asked)


async def test_a_worker_that_is_down_is_no_reason_to_do_without(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    async def down(adapter: str, config: bytes, weights: bytes) -> None:
        raise Unavailable("the worker is restarting")

    monkeypatch.setattr(shelf.worker, "load_adapter", down)
    left_out: list[int] = []
    with pytest.raises(Unavailable):
        [
            event
            async for event in shelf.store().generate(TENANT, Choice([(shelf.add(), 1.0)]), REQUEST, lambda: left_out.append(1))
        ]
    assert left_out == []


@HOW
async def test_usage_names_the_adapters_that_were_used(
    shelf: Shelf, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole answers: with the active adapter, without it where it can't be had, and by hand not without it."""
    made = shelf.add()
    known = models(shelf.worker, plain_tokenizer(tmp_path))

    async def describe() -> WorkerInfo:
        return known.info

    monkeypatch.setattr(shelf.worker, "describe", describe, raising=False)

    class Finds:
        async def search(self, *given: Any) -> list[Source]:
            return [found("m")]

    class Counts:
        def add(self, tenant: str, **given: int) -> None: ...

    nothing: Any = None  # no embeddings: answers of text
    parts: list[Any] = [
        *(shelf.lab.ledger, Finds(), Assembler(shelf.lab.ledger, nothing, known, 4096)),
        *(shelf.store(), known, Counts(), AnswersUnderWay()),
    ]
    answerer = Answerer(*parts, max_answers=1)

    async def answered(**given: Any) -> tuple[str, AnswerUsage]:
        events = [event async for event in answerer.answer(TENANT, Question(["m"], "Where?", Mode.TEXT, **given))]
        assert isinstance(events[-1], AnswerUsage)
        return "".join(event.text for event in events if isinstance(event, Text)), events[-1]

    text, usage = await answered()
    assert (text, usage.adapters) == ("Lisbon", [(adapter_name("m", made.id), 1.0)])
    shelf.worker.loaded.clear()
    shelf.cache.held.clear()
    parts[3] = shelf.store()
    answerer = Answerer(*parts, max_answers=1)
    error = spoil(shelf, made, monkeypatch, how)
    text, usage = await answered()
    assert (text, list(usage.adapters)) == ("Lisbon", [])
    with pytest.raises(error):
        await answered(adapters=[("m", made.id, 1.0)])


# --- errors ---


@pytest.mark.parametrize("failure", [FailedPrecondition("another reason"), Unavailable("the worker is restarting")])
async def test_what_else_fails_is_not_tried_again(shelf: Shelf, failure: Exception) -> None:
    shelf.worker.failures = [failure]
    with pytest.raises(type(failure)):
        await said(shelf.store(), Choice([(shelf.add(), 1.0)]))
    assert (len(shelf.worker.asked), shelf.worker.calls) == (1, [])


async def test_nothing_is_said_twice(shelf: Shelf) -> None:
    """After text began it is not begun again, whatever the worker says."""
    made = shelf.add()

    async def breaks_off(request: Generation) -> Any:
        yield GenerateEvent("Lis", 1)
        raise FailedPrecondition("an adapter is not loaded", reason="ADAPTER_NOT_LOADED")

    shelf.worker.generate = breaks_off  # type: ignore[method-assign]
    events = shelf.store().generate(TENANT, Choice([(made, 1.0)]), REQUEST)
    assert (await anext(events)).text == "Lis"
    with pytest.raises(FailedPrecondition):
        await anext(events)
    assert shelf.worker.calls == []


async def test_leaving_early_ends_the_workers_work(shelf: Shelf) -> None:
    closed = []

    async def endless(request: Generation) -> Any:
        try:
            while True:
                yield GenerateEvent("word ", 1)
        finally:
            closed.append(True)

    shelf.worker.generate = endless  # type: ignore[method-assign]
    async with contextlib.aclosing(shelf.store().generate(TENANT, Choice(), REQUEST)) as events:
        await anext(events)
    assert closed == [True]


# --- the tiers ---


def test_it_is_read_from_the_nearest_tier(shelf: Shelf) -> None:
    made, store = shelf.add(), shelf.store()
    assert store.read(TENANT, made) == shelf.files(made.id)
    assert list(shelf.cache.held) == [(TENANT, cache_key(made.id))]
    shelf.lab.blobs.delete_prefix(TENANT, f"{TENANT}/")
    assert shelf.store().read(TENANT, made) == shelf.files(made.id), "another process finds it in the cache"
    shelf.cache.held.clear()
    assert store.read(TENANT, made) == shelf.files(made.id), "this process has it"
    with pytest.raises(NotFound):
        shelf.store().read(TENANT, made)


def test_tenants_do_not_share_what_is_held(shelf: Shelf) -> None:
    made, store = shelf.add(), shelf.store()
    store.read(TENANT, made)
    with pytest.raises(NotFound):
        store.read("blue", made)


def test_the_process_holds_what_was_used_last(shelf: Shelf) -> None:
    one, two, three = shelf.add(), shelf.add(), shelf.add()
    store = shelf.store(process_bytes=2 * one.size_bytes)
    for adapter in (one, two, one, three):
        store.read(TENANT, adapter)
    shelf.cache.asked.clear()
    for adapter in (one, three, two):
        store.read(TENANT, adapter)
    assert shelf.cache.asked == [cache_key(two.id)]


def test_what_a_lineage_takes_counts_in_what_is_held(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = shelf.add(), shelf.add()
    long = replace(shelf.files(one.id), lineage={"documents": [f"{n}" for n in range(1000)]})
    shelf.lab.blobs.put(TENANT, blob_key(TENANT, "m", one.id), pack_files(long))
    store = shelf.store(process_bytes=long.size + other.size_bytes)
    for adapter in (other, one, other):
        store.read(TENANT, adapter)
    assert store.read(TENANT, one) == long
    assert shelf.cache.asked == [cache_key(a.id) for a in (other, one, other, one)], "a name takes more than its letters"


def test_one_that_is_too_large_to_be_held_is_read_all_the_same(shelf: Shelf) -> None:
    made, store = shelf.add(), shelf.store(process_bytes=10)
    for _ in range(2):
        assert store.read(TENANT, made) == shelf.files(made.id)
    assert len(shelf.cache.asked) == 2


@pytest.mark.parametrize("damage", [b"", b"garbage", "cut", "another", "lineage"])
def test_a_damaged_cache_is_passed_over_and_made_good(shelf: Shelf, damage: bytes | str) -> None:
    made = shelf.add()
    good = pack_files(shelf.files(made.id))
    bad = {
        "cut": good[:700],
        "another": pack_files(shelf.files("another")),
        "lineage": pack_files(replace(shelf.files(made.id), lineage=[])),  # type: ignore[arg-type]
    }
    key = (TENANT, cache_key(made.id))
    shelf.cache.held[key] = damage if isinstance(damage, bytes) else bad[damage]
    assert shelf.store().read(TENANT, made) == shelf.files(made.id)
    assert shelf.cache.held[key] == good


def test_damaged_blobs_are_data_loss(shelf: Shelf) -> None:
    made = shelf.add()
    shelf.lab.blobs.put(TENANT, blob_key(TENANT, "m", made.id), pack_files(shelf.files("another")))
    with pytest.raises(DataLoss):
        shelf.store().read(TENANT, made)
    assert shelf.cache.held == {}


# --- barred: deleted, or tainted ---


async def test_what_is_forgotten_is_unloaded_and_never_brought_back(shelf: Shelf) -> None:
    made, other, store = shelf.add(), shelf.add("n"), shelf.store()
    await said(store, Choice([(made, 0.5), (other, 0.5)]))
    await store.forget(TENANT, [made.id])
    assert list(shelf.worker.loaded) == [other.id]
    with pytest.raises(NotFound):
        await said(store, Choice([(made, 1.0)]))
    with pytest.raises(NotFound):
        store.read(TENANT, made)
    assert list(shelf.worker.loaded) == [other.id]
    assert await said(store, Choice([(other, 1.0)])) == "Lisbon"


async def test_without_a_worker_it_is_forgotten_too(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    made, store = shelf.add(), shelf.store()
    store.read(TENANT, made)

    async def down(adapter: str) -> None:
        raise Unavailable("the worker is restarting")

    monkeypatch.setattr(shelf.worker, "unload_adapter", down)
    await store.forget(TENANT, [made.id])
    with pytest.raises(NotFound):
        store.read(TENANT, made)


async def test_one_that_is_barred_while_it_is_being_loaded_is_unloaded(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    made, store, load = shelf.add(), shelf.store(), shelf.worker.load_adapter

    async def load_late(adapter: str, config: bytes, weights: bytes) -> None:
        await store.forget(TENANT, [adapter])
        await load(adapter, config, weights)

    monkeypatch.setattr(shelf.worker, "load_adapter", load_late)
    with pytest.raises(NotFound):
        await said(store, Choice([(made, 1.0)]))
    assert shelf.worker.loaded == {}
    assert shelf.worker.calls[-1] == ("unload", made.id)


@pytest.mark.parametrize("moment", ["before the cache", "in the cache", "in blobs"])
def test_one_that_is_barred_while_it_is_being_read_is_kept_nowhere(
    shelf: Shelf, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ERASE bars it, then empties the cache: what comes after that must not stay."""
    made, store, get = shelf.add(), shelf.store(), shelf.lab.blobs.get

    def erase() -> None:
        asyncio.run(store.forget(TENANT, [made.id]))
        shelf.cache.delete_prefix(TENANT, cache_key(made.id))

    def get_late(*arguments: Any) -> bytes:
        data = get(*arguments)
        erase()
        return data

    if moment == "in blobs":
        monkeypatch.setattr(shelf.lab.blobs, "get", get_late)
    elif moment == "in the cache":
        shelf.cache.before_put = erase
    else:
        erase()
    with pytest.raises(NotFound):
        store.read(TENANT, made)
    assert shelf.cache.held == {}
    with pytest.raises(NotFound):
        store.read(TENANT, made)


async def test_what_a_delete_tainted_is_forgotten(shelf: Shelf) -> None:
    document = shelf.lab.write("Caroline moved to Lisbon.")
    clean, store = shelf.add(), shelf.store()
    made = replace(clean, id=new_id(), parent=clean.id)
    shelf.lab.blobs.put(TENANT, blob_key(TENANT, "m", made.id), pack_files(shelf.files(clean.id)))
    shelf.lab.ledger.add_adapter(made, [document.id], False)
    await said(store, Choice([(clean, 0.5), (made, 0.5)]))
    shelf.lab.ledger.delete_document(TENANT, "m", document.id, None)
    await store.forget_tainted(TENANT)
    assert list(shelf.worker.loaded) == [clean.id]
    with pytest.raises(NotFound):
        store.read(TENANT, made)
    assert store.read(TENANT, clean) == shelf.files(clean.id)
