"""Imports leave nothing behind where they fail; exports come in pieces; and no adapter is named twice."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from memoryd import core
from memoryd.api import learn
from memoryd.api.caller import Caller, enter
from memoryd.api.learn import LearnServicer
from memoryd.api.recall import _adapters
from memoryd.core import Origin
from memoryd.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, Unavailable
from memoryd.learn.adapter_files import AdapterFiles, pack_files
from memoryd.recall.adapters import AdapterStore
from memoryd.v1 import learn_pb2, recall_pb2
from tests.unit.learning_parts import models
from tests.unit.test_adapter_choice import Shelf, shelf
from tests.unit.test_reuse import TENANT

__all__ = ["shelf"]  # the fixture

PARENT = core.memory_name("m")


class Api(LearnServicer):
    """The service, on this shelf."""

    def __init__(self, shelf: Shelf) -> None:
        enter(Caller(TENANT))
        nobody: Any = None
        super().__init__(shelf.lab.ledger, shelf.lab.blobs, models(shelf.worker), shelf.store(), nobody)

    async def bring(self, shelf: Shelf) -> learn_pb2.Adapter:
        async def parts() -> AsyncIterator[learn_pb2.ImportAdapterRequest]:
            yield learn_pb2.ImportAdapterRequest(parent=PARENT)
            yield learn_pb2.ImportAdapterRequest(data=pack_files(shelf.files("brought")))

        return await self.ImportAdapter(parts(), None)


def blobs(shelf: Shelf) -> list[tuple[str, str]]:
    """(memory, adapter): there are no documents."""
    return list(shelf.lab.blobs.documents(TENANT))


async def test_what_is_imported_is_recorded_and_readable(shelf: Shelf) -> None:
    made = await Api(shelf).bring(shelf)
    recorded = shelf.lab.ledger.get_adapter(TENANT, "m", made.name.rpartition("/")[2])
    assert recorded.fingerprint == made.fingerprint == shelf.files("brought").fingerprint
    assert shelf.store().read(TENANT, recorded).weights == shelf.files("brought").weights
    assert list(shelf.worker.loaded) == [recorded.id]


@pytest.mark.parametrize(
    "outcome",
    [
        None,
        FailedPrecondition("the adapter was trained with a document that is deleted", reason="ADAPTER_TAINTED"),
        Unavailable("the ledger is not there"),
    ],
)
async def test_of_an_import_that_is_not_recorded_nothing_stays(
    shelf: Shelf, outcome: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored: list[tuple[str, str]] = []

    def refuse(*given: object) -> None:
        stored.extend(blobs(shelf))
        if outcome:
            raise outcome

    monkeypatch.setattr(shelf.lab.ledger, "add_adapter", refuse)
    with pytest.raises(type(outcome) if outcome else FailedPrecondition) as caught:
        await Api(shelf).bring(shelf)
    if outcome:
        assert caught.value is outcome
    else:
        assert "the memory was deleted meanwhile" in str(caught.value)
    assert len(stored) == 1
    assert blobs(shelf) == []
    assert shelf.worker.loaded == {}


async def test_of_an_import_that_cannot_be_stored_nothing_stays(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(shelf.lab.blobs, "put", full)
    with pytest.raises(OSError, match="no space"):
        await Api(shelf).bring(shelf)
    assert shelf.worker.loaded == {}


@pytest.mark.parametrize("moment", ["put", "add_adapter"])
async def test_a_client_that_goes_away_leaves_a_whole_adapter_or_none(
    shelf: Shelf, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads go on when they are cancelled: what they do after that must not stay alone."""
    of: Any = shelf.lab.blobs if moment == "put" else shelf.lab.ledger
    go, ended, began = threading.Event(), threading.Event(), asyncio.Event()
    loop, do = asyncio.get_running_loop(), getattr(of, moment)

    def late(*given: Any) -> Any:
        loop.call_soon_threadsafe(began.set)
        assert go.wait(30)
        try:
            return do(*given)
        finally:
            ended.set()

    api = Api(shelf)
    monkeypatch.setattr(of, moment, late)
    call = asyncio.create_task(api.bring(shelf))
    await began.wait()
    call.cancel()
    loop.call_later(0.1, go.set)
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await asyncio.to_thread(ended.wait, 30)
    recorded = shelf.lab.ledger.list_adapters(TENANT, "m", 10, "").items
    if moment == "put":
        assert (list(recorded), blobs(shelf), shelf.worker.loaded) == ([], [], {})
    else:
        (adapter,) = recorded
        assert AdapterStore.read(api._adapters, TENANT, adapter).weights == shelf.files("brought").weights
        assert list(shelf.worker.loaded) == [adapter.id]


def slowly(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, list[str]]:
    """Unpacking waits until it is let; and what began and ended so far."""
    go, log, unpack = threading.Event(), list[str](), learn.unpack_files

    def slow(data: bytes) -> AdapterFiles:
        log.append("began")
        assert go.wait(30)
        log.append("ended")
        return unpack(data)

    monkeypatch.setattr(learn, "unpack_files", slow)
    return go, log


async def until_all_wait() -> None:
    await asyncio.sleep(0.3)  # what would begin too early has begun by then


async def test_archives_are_unpacked_one_after_the_other(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred kilobytes may become 512 MiB."""
    api, (go, log) = Api(shelf), slowly(monkeypatch)
    calls = [asyncio.create_task(api.bring(shelf)) for _ in range(3)]
    await until_all_wait()
    go.set()
    assert len({made.name for made in await asyncio.gather(*calls)}) == 3
    assert log == ["began", "ended"] * 3


async def test_a_client_that_goes_away_lets_no_other_in_too_early(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its archive is being unpacked all the same."""
    api, (go, log) = Api(shelf), slowly(monkeypatch)
    gone = asyncio.create_task(api.bring(shelf))
    await until_all_wait()
    gone.cancel()
    call = asyncio.create_task(api.bring(shelf))
    await until_all_wait()
    go.set()
    await call
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert log == ["began", "ended"] * 2


class Received:
    """An import that has come so far, and no further until it is let."""

    def __init__(self, api: Api, tenant: str, data: bytes) -> None:
        self._tenant, self._data = tenant, data
        self._came, self._go = asyncio.Event(), asyncio.Event()
        self._call = asyncio.create_task(self._run(api))

    async def come(self) -> Received:
        await asyncio.wait([self._call, asyncio.create_task(self._came.wait())], return_when=asyncio.FIRST_COMPLETED)
        self._came.set()
        return self

    async def end(self) -> learn_pb2.Adapter:
        self._go.set()
        return await self._call

    async def _run(self, api: Api) -> learn_pb2.Adapter:
        enter(Caller(self._tenant))
        return await api.ImportAdapter(self._parts(), None)

    async def _parts(self) -> AsyncIterator[learn_pb2.ImportAdapterRequest]:
        yield learn_pb2.ImportAdapterRequest(parent=PARENT)
        yield learn_pb2.ImportAdapterRequest(data=self._data)
        self._came.set()
        await self._go.wait()


async def test_imports_that_are_received_have_so_much_memory_together(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no tenant has all of it."""
    api, archive = Api(shelf), pack_files(shelf.files("brought"))
    size = len(archive)
    monkeypatch.setattr(learn, "MAX_BYTES", size)
    monkeypatch.setattr(learn, "_MOST_HELD", size * 3 // 2)
    shelf.lab.ledger.ensure_tenant("other")
    shelf.lab.ledger.create_memory("other", "m", "", "", {}, None)
    first = await Received(api, TENANT, archive).come()
    for tenant, data, reason in [
        (TENANT, b"x", "IMPORTS_BUSY"),
        ("other", archive, "IMPORTS_BUSY"),
        ("other", archive + b"x", "TOO_LARGE"),
    ]:
        with pytest.raises(ResourceExhausted) as refused:
            await (await Received(api, tenant, data).come()).end()
        assert refused.value.reason == reason
    other = await Received(api, "other", b"x" * (size // 2)).come()
    with pytest.raises(InvalidArgument):  # it is no archive
        await other.end()
    await first.end()
    assert api._held.total() == 0
    await api.bring(shelf)


async def test_what_a_lineage_says_that_is_not_ours_is_not_stored(shelf: Shelf) -> None:
    made = await Api(shelf).bring(shelf)  # its lineage says {"id"}
    recorded = shelf.lab.ledger.get_adapter(TENANT, "m", made.name.rpartition("/")[2])
    assert set(shelf.store().read(TENANT, recorded).lineage) == {"imported_from", "import_time"}


async def test_an_export_is_remembered_before_anybody_has_it(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    api, made = Api(shelf), shelf.add()

    def down(*given: object) -> None:
        assert given == (TENANT, "m", made.id, shelf.files(made.id).weights_sha256)
        raise Unavailable("the ledger is not there")

    monkeypatch.setattr(shelf.lab.ledger, "record_export", down)
    parts = api.ExportAdapter(learn_pb2.ExportAdapterRequest(name=core.adapter_name("m", made.id)), None)
    with pytest.raises(Unavailable):
        await anext(aiter(parts))


async def test_archives_are_made_and_read_beside_the_event_loop(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may have 512 MiB."""
    api, loops = Api(shelf), threading.current_thread()  # the event loop's
    threads: list[threading.Thread] = []

    def watched(do: Callable[..., Any]) -> Callable[..., Any]:
        def watch(*given: Any) -> Any:
            threads.append(threading.current_thread())
            return do(*given)

        return watch

    archive = pack_files(shelf.files("brought"))
    for name in ("pack_files", "unpack_files", "imported"):
        monkeypatch.setattr(learn, name, watched(getattr(learn, name)))

    async def parts() -> AsyncIterator[learn_pb2.ImportAdapterRequest]:
        yield learn_pb2.ImportAdapterRequest(parent=PARENT)
        yield learn_pb2.ImportAdapterRequest(data=archive)

    made = await api.ImportAdapter(parts(), None)
    out = [part.data async for part in api.ExportAdapter(learn_pb2.ExportAdapterRequest(name=made.name), None)]
    assert b"weights of brought" in b"".join(out)
    assert len(threads) == 4, "unpacked, looked at, packed; and packed again"
    assert loops not in threads


async def test_long_examples_are_exported_in_pieces_that_clients_take(shelf: Shelf) -> None:
    answers = [f"{n} " + "語" * 8000 for n in range(100)]
    shelf.lab.ledger.add_examples(
        TENANT, "m", [("語" * 8000 + str(n), a, []) for n, a in enumerate(answers)], Origin.SUPPLIED, None
    )
    pieces = [part.jsonl async for part in Api(shelf).ExportExamples(learn_pb2.ExportExamplesRequest(parent=PARENT), None)]
    assert max(len(piece) for piece in pieces) <= 1 << 20
    assert len(pieces) == 5, "and no smaller than need be"
    assert [json.loads(line)["answer"] for piece in pieces for line in piece.decode().splitlines()] == answers


def test_an_adapter_is_given_once() -> None:
    def given(*names: str) -> recall_pb2.AnswerRequest:
        return recall_pb2.AnswerRequest(adapters=[recall_pb2.AdapterWeight(adapter=f"memories/{name}") for name in names])

    assert _adapters(given("m/adapters/a", "n/adapters/a")) == [("m", "a", 1.0), ("n", "a", 1.0)]
    with pytest.raises(InvalidArgument, match="twice"):
        _adapters(given("m/adapters/a", "m/adapters/b", "m/adapters/a"))
