"""The worker's wire in one process: a real loop and a tiny model behind a real gRPC server on a Unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
import structlog

from memoryd.engine.request import Generation, Learning, LearnSettings, TokenIds
from memoryd.engine.runner import Runner
from memoryd.errors import (
    Cancelled,
    DataLoss,
    FailedPrecondition,
    FingerprintMismatch,
    InvalidArgument,
    MemorydError,
    Unavailable,
)
from memoryd.learn.learner import RESULT
from memoryd.learn.soft_packing import SoftPack
from memoryd.worker import status
from memoryd.worker.client import WorkerClient
from memoryd.worker.loop import Loop
from memoryd.worker.server import OPTIONS, WorkerServicer
from memoryd.worker.v1 import worker_pb2 as pb
from memoryd.worker.v1 import worker_pb2_grpc
from tests.integration.engine_parts import make_base, make_runner, run, text, untrained

PROMPT = list(range(20, 60))
PEFT_FILES = ("adapter_config.json", "adapter_model.safetensors")
LONG = Generation([TokenIds(PROMPT)], 4000)


@dataclass
class Wire:
    client: WorkerClient
    runner: Runner
    loop: Loop
    servicer: WorkerServicer
    fingerprint: str

    async def busy(self) -> None:
        """Wait until the loop has something to do."""
        async with asyncio.timeout(20):
            while self.runner.idle:  # noqa: ASYNC110 - the loop's thread tells nobody
                await asyncio.sleep(0)

    async def settled(self) -> None:
        """Wait until the loop has nothing to do."""
        async with asyncio.timeout(30):
            while not self.runner.idle:  # noqa: ASYNC110 - the loop's thread tells nobody
                await asyncio.sleep(0.01)


@pytest.fixture
async def wire(tmp_path: Path) -> AsyncIterator[Wire]:
    base = make_base("llama", tmp_path / "model")
    base = type(base)(base.model, base.tokenizer, base.fingerprint, base.d_model, ())  # never ends by itself
    runner = make_runner(base)
    loop = Loop(lambda: runner)
    servicer = WorkerServicer(loop)
    server = grpc.aio.server(options=OPTIONS)
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(servicer, server)
    server.add_insecure_port(f"unix:{tmp_path / 's'}")
    await server.start()
    async with WorkerClient(tmp_path / "s") as client:
        with pytest.raises(Unavailable):
            await client.describe()
        with pytest.raises(Unavailable):
            await client.embed(["a"])
        loaded, _ = loop.start()
        await loaded
        yield Wire(client, runner, loop, servicer, untrained(base).fingerprint)
    await server.stop(0)
    await loop.stop()


async def said(wire: Wire, request: Generation) -> str:
    async with contextlib.aclosing(wire.client.generate(request)) as events:
        return "".join([event.text async for event in events])


async def test_describe_tells_all(wire: Wire) -> None:
    wire.servicer.description = pb.DescribeResponse(
        device="cpu",
        model_path="/m",
        d_model=64,
        compressor=pb.CompressorInfo(name="pooled", ratio=4, chunk_tokens=512),
        encoder_dim=3,
        compress_tokens=512,
    )
    info = await wire.client.describe()
    assert (info.device, info.model_path, info.d_model) == ("cpu", Path("/m"), 64)
    assert (info.compressor.ratio, info.compressor.chunk_tokens, info.compress_tokens) == (4, 512, 512)


async def test_embed_in_order_over_several_calls(wire: Wire) -> None:
    vectors = await wire.client.embed(["a" * n for n in range(150)])
    assert (vectors.shape, vectors.dtype) == ((150, 3), np.float32)
    assert vectors[:, 0].tolist() == list(range(150))
    assert (await wire.client.embed([])).shape[0] == 0


async def test_compress_in_order_over_several_calls(wire: Wire) -> None:
    made = await wire.client.compress([[5] * n for n in range(1, 30)], wire.fingerprint)
    assert [e.k for e in made] == [-(-n // 4) for n in range(1, 30)]
    assert {e.d_model for e in made} == {64}
    assert await wire.client.compress([], wire.fingerprint) == []


async def test_a_generation_arrives_as_it_was_sent(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {"temperature": 0.5, "stop": ["x"], "seed": 3, "repeat_penalty": 0.25, "use_reader": True, "background": True}
    sent = Generation([TokenIds(PROMPT)], 7, adapters=[("ad", 0.5)], compressor_fingerprint="f", scope="red's", **shape)  # type: ignore[arg-type]
    unlike = [field.name for field in dataclasses.fields(sent) if getattr(sent, field.name) == field.default]
    assert not unlike, "each has another value than where it is left out"
    arrived: list[Generation] = []

    def generate(_: int, request: Generation) -> None:
        arrived.append(request)
        raise InvalidArgument("seen")

    monkeypatch.setattr(wire.runner, "generate", generate)
    with pytest.raises(InvalidArgument, match="seen"):
        await said(wire, sent)
    assert arrived == [sent]


async def test_concurrent_generations_say_what_each_says_alone(wire: Wire) -> None:
    requests = [Generation([TokenIds(PROMPT[n:])], 20 + n) for n in range(4)]
    alone = [await said(wire, request) for request in requests]
    assert await asyncio.gather(*(said(wire, request) for request in requests)) == alone
    reference = make_runner(wire.runner._base)
    reference.generate(1, requests[0])
    assert alone[0] == text(run(reference)[1])


async def test_errors_cross_the_wire_as_they_are(wire: Wire) -> None:
    with pytest.raises(InvalidArgument, match="4096") as raised:
        await said(wire, Generation([TokenIds(PROMPT)], 5000))
    assert raised.value.reason == "PROMPT_TOO_LONG"
    with pytest.raises(FingerprintMismatch) as mismatch:
        await wire.client.compress([[5]], "other")
    assert mismatch.value.details == {"asked": "other", "loaded": wire.fingerprint}
    with pytest.raises(FailedPrecondition) as reader:
        await said(wire, Generation([TokenIds(PROMPT)], 5, use_reader=True))
    assert reader.value.reason == "NO_READER"
    with pytest.raises(InvalidArgument, match="chunk 1"):
        await wire.client.compress([[5], [600]], wire.fingerprint)
    stub = worker_pb2_grpc.WorkerServiceStub(wire.client._channel)
    with pytest.raises(grpc.aio.AioRpcError) as rpc:
        await stub.Generate(pb.GenerateRequest(segments=[pb.Segment()], max_tokens=5)).read()
    assert isinstance(status.from_rpc(rpc.value), InvalidArgument)


async def test_leaving_a_generation_frees_it(wire: Wire) -> None:
    async with contextlib.aclosing(wire.client.generate(LONG)) as events:
        async for _ in events:
            break
    await wire.settled()
    assert wire.runner.held == 0


async def test_a_cancelled_task_frees_its_call(wire: Wire) -> None:
    for work in (said(wire, LONG), wire.client.compress([PROMPT * 10] * 500, wire.fingerprint)):
        task = asyncio.ensure_future(work)
        await wire.busy()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await wire.settled()
        assert wire.runner.held == 0


async def test_a_deadline_frees_the_call(wire: Wire) -> None:
    with pytest.raises(Cancelled) as raised:
        async for _ in wire.client.generate(LONG, timeout=0.3):
            pass
    assert raised.value.reason == "DEADLINE_EXCEEDED"
    with pytest.raises(Cancelled):
        await wire.client.compress([PROMPT * 10] * 500, wire.fingerprint, timeout=0.001)
    await wire.settled()
    assert wire.runner.held == 0


async def test_a_broken_loop_tells_its_callers_and_the_process(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(lambda: wire.runner)
    loaded, ended = loop.start()
    await loaded

    def fail() -> None:
        raise AssertionError("scheduler and runner disagree")

    monkeypatch.setattr(wire.runner, "step", fail)
    with pytest.raises(Unavailable):
        async for _ in loop.run(LONG):
            pass
    with pytest.raises(AssertionError):
        await ended
    with pytest.raises(Unavailable):
        await anext(loop.run(LONG))
    wire.runner.end(1)


async def test_a_call_that_cannot_begin_is_told_and_the_loop_goes_on(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("what a document says")

    with monkeypatch.context() as patched, structlog.testing.capture_logs() as lines:
        for method in ("load_adapter", "generate", "learn"):
            patched.setattr(wire.runner, method, fail)
        learning = Learning([SoftPack((), ((5, 6),), (((40,), (70,)),))], [], Path("nowhere"), "tiny")
        for work in (wire.client.load_adapter("ad", b"", b""), said(wire, LONG), anext(wire.client.learn(learning))):
            with pytest.raises(MemorydError, match="RuntimeError") as raised:
                await work
            assert (raised.value.reason, "document" in raised.value.message) == ("INTERNAL", False)
    assert [str(line["exc_info"]) for line in lines] == ["what a document says"] * 3
    assert (await wire.client.embed(["a"])).shape == (1, 3)
    assert wire.runner.held == 0


async def test_a_load_that_fails_is_told() -> None:
    def load() -> Runner:
        raise ValueError("no such model")

    loaded, _ = Loop(load).start()
    with pytest.raises(ValueError, match="no such model"):
        await loaded


@pytest.mark.parametrize(
    "kind", [InvalidArgument, FailedPrecondition, FingerprintMismatch, DataLoss, Unavailable, MemorydError]
)
def test_status_round_trip(kind: type[MemorydError]) -> None:
    sent = kind("what: é", details={"a": "é"})
    trailing = grpc.aio.Metadata(*status.trailers(sent))
    error = grpc.aio.AioRpcError(sent.code, grpc.aio.Metadata(), trailing, details=sent.message)
    got = status.from_rpc(error)
    assert (type(got), got.message, got.reason, got.details) == (kind, sent.message, sent.reason, sent.details)


async def test_an_adapter_is_learned_loaded_used_and_forgotten_over_the_wire(wire: Wire, tmp_path: Path) -> None:
    (embeddings,) = await wire.client.compress([PROMPT], wire.fingerprint)
    packs = [SoftPack((), ((5, 6), 0, (7,)), (((40 + n, 41), (70 + n, 0)),)) for n in range(4)]
    shape = {"rank": 2, "alpha": 4.0, "targets": ("q_proj", "down_proj"), "dropout": 0.125, "rslora": True}
    settings = LearnSettings(**shape, learning_rate=0.05, epochs=10, batch=2)  # type: ignore[arg-type]
    learning = Learning(packs, [embeddings], tmp_path / "run", "tiny", settings, compressor_fingerprint=wire.fingerprint)
    async with contextlib.aclosing(wire.client.learn(learning)) as events:
        seen = [event async for event in events]
    assert [event.step for event in seen] == list(range(1, 21))
    assert seen[-1].finish_reason == "trained"
    assert seen[-1].loss < seen[0].loss
    config, weights = ((tmp_path / "run" / RESULT / name).read_bytes() for name in PEFT_FILES)

    said_of_it = json.loads(config)
    assert (said_of_it["r"], said_of_it["lora_dropout"], said_of_it["use_rslora"]) == (2, 0.125, True)

    plain = Generation([TokenIds(PROMPT)], 12)
    with_it = dataclasses.replace(plain, adapters=[("ad", 1.0)])
    with pytest.raises(FailedPrecondition) as raised:
        await said(wire, with_it)
    assert (raised.value.reason, raised.value.details) == ("ADAPTER_NOT_LOADED", {"adapters": "ad"})
    await wire.client.load_adapter("ad", config, weights)
    without = await said(wire, plain)
    assert await said(wire, with_it) != without
    assert await said(wire, dataclasses.replace(plain, adapters=[("ad", 0.0)])) == without
    with pytest.raises(DataLoss):
        await wire.client.load_adapter("broken", config, weights[:-9])
    async with contextlib.aclosing(wire.client.generate(dataclasses.replace(with_it, max_tokens=2000))) as answer:
        await anext(answer)
        await wire.client.unload_adapter("ad")
        with pytest.raises(Unavailable, match="ask again") as cut:
            _ = [event async for event in answer]
        assert cut.value.reason == "ADAPTER_UNLOADED"
    await wire.client.unload_adapter("never there")
    with pytest.raises(FailedPrecondition):
        await said(wire, with_it)
    assert wire.runner.held == 0


async def test_leaving_a_run_of_training_frees_it(wire: Wire, tmp_path: Path) -> None:
    settings = LearnSettings(epochs=10_000)
    learning = Learning([SoftPack((), ((5, 6),), (((40,), (70,)),))], [], tmp_path / "run", "tiny", settings)
    async with contextlib.aclosing(wire.client.learn(learning)) as events:
        assert (await anext(events)).step == 1
    await wire.settled()
    assert wire.runner.held == 0


async def test_what_cannot_be_learned_is_refused_over_the_wire(wire: Wire, tmp_path: Path) -> None:
    good = Learning([SoftPack((), ((5, 6),), (((40,), (70,)),))], [], tmp_path / "run", "tiny")
    for bad, kind, says in (
        (dataclasses.replace(good, packs=[]), InvalidArgument, "no examples"),
        (dataclasses.replace(good, packs=[SoftPack((), (3,), (((40,), (70,)),))]), InvalidArgument, "names a chunk"),
        (dataclasses.replace(good, packs=[SoftPack((), ((5,),), (((40,), ()),))]), InvalidArgument, "without tokens"),
        (dataclasses.replace(good, use_reader=True), FailedPrecondition, "reader"),
    ):
        with pytest.raises(kind, match=says):
            async with contextlib.aclosing(wire.client.learn(bad)) as events:
                await anext(events)
    assert wire.runner.held == 0
