"""The daemon's side of the wire: the worker as typed asyncio methods. Torch-free."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
import numpy as np
import numpy.typing as npt

from memoryd.compress.codec import CompressedEmbeddings
from memoryd.engine.request import GenerateEvent, Generation, LearnEvent, Learning, Segment, Soft, TokenIds
from memoryd.worker import status
from memoryd.worker.v1 import worker_pb2 as pb
from memoryd.worker.v1 import worker_pb2_grpc

__all__ = ["CompressorInfo", "GenerateEvent", "Generation", "Segment", "Soft", "TokenIds", "WorkerClient", "WorkerInfo"]

_TEXTS = 64
_CHUNKS = 32
"""What one call carries, so that a large document is many calls and each is short."""
_OPTIONS = (
    ("grpc.max_receive_message_length", 512 << 20),
    ("grpc.max_send_message_length", 512 << 20),
    # A restarted worker is to be found at once: it is on this machine.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    # Each client has its own connection, so that closing one is not felt by another.
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True, slots=True)
class CompressorInfo:
    """The compressor in use."""

    name: str
    ratio: int
    fingerprint: str
    gate_passed: bool
    chunk_tokens: int


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """What the worker runs on; the fields are those of DescribeResponse."""

    device: str
    dtype: str
    model_path: Path
    base_fingerprint: str
    d_model: int
    max_positions: int
    compressor: CompressorInfo
    encoder_fingerprint: str
    encoder_dim: int
    reader: str
    compress_tokens: int
    eos_ids: Sequence[int] = ()


def identity(info: WorkerInfo | pb.DescribeResponse) -> str:
    """The fingerprints of all that a worker has loaded, as one word: another that says it is its equal."""
    return "/".join((info.base_fingerprint, info.compressor.fingerprint, info.encoder_fingerprint, info.reader))


class WorkerClient:
    """Methods raise memoryd.errors: Unavailable where the worker is not there, which is worth a retry, and of that
    WorkerLost where it died with this very call in hand, at work on it or on another beside it; Cancelled where `timeout`
    seconds, the call's gRPC deadline, passed."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.aio.insecure_channel(f"unix:{socket}", options=_OPTIONS)
        self._stub = worker_pb2_grpc.WorkerServiceStub(self._channel)

    async def close(self) -> None:
        await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        await self.close()

    async def describe(self, timeout: float | None = None) -> WorkerInfo:  # noqa: ASYNC109 - gRPC's deadline, which the worker sees
        """What the worker runs on. Unavailable until its models are loaded."""
        try:
            response = await self._stub.Describe(pb.DescribeRequest(), timeout=timeout)
        except grpc.aio.AioRpcError as error:
            raise status.from_rpc(error) from None
        c = response.compressor
        return WorkerInfo(
            device=response.device,
            dtype=response.dtype,
            model_path=Path(response.model_path),
            base_fingerprint=response.base_fingerprint,
            d_model=response.d_model,
            max_positions=response.max_positions,
            compressor=CompressorInfo(c.name, c.ratio, c.fingerprint, c.gate_passed, c.chunk_tokens),
            encoder_fingerprint=response.encoder_fingerprint,
            encoder_dim=response.encoder_dim,
            reader=response.reader,
            compress_tokens=response.compress_tokens,
            eos_ids=tuple(response.eos_ids),
        )

    async def embed(self, texts: Sequence[str], urgent: bool = False, timeout: float | None = None) -> npt.NDArray[np.float32]:  # noqa: ASYNC109 - gRPC's deadline, which the worker sees
        """Unit vectors [n, dim] of the retrieval encoder. `urgent` for a question that is waited for."""
        parts: list[npt.NDArray[np.float32]] = []
        for start in range(0, len(texts), _TEXTS):
            request = pb.EmbedRequest(texts=texts[start : start + _TEXTS], urgent=urgent)
            try:
                response = await self._stub.Embed(request, timeout=timeout)
            except grpc.aio.AioRpcError as error:
                raise status.from_rpc(error) from None
            parts.append(np.frombuffer(response.vectors, dtype="<f4").reshape(-1, response.dim))
        return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)

    async def compress(
        self,
        chunks: Sequence[Sequence[int]],
        fingerprint: str,
        timeout: float | None = None,  # noqa: ASYNC109 - gRPC's deadline, which the worker sees
    ) -> list[CompressedEmbeddings]:
        """Compressed embeddings of chunks of token ids. FingerprintMismatch where another compressor is loaded."""
        made: list[CompressedEmbeddings] = []
        for start in range(0, len(chunks), _CHUNKS):
            ids = [pb.TokenIds(ids=chunk) for chunk in chunks[start : start + _CHUNKS]]
            try:
                request = pb.CompressRequest(chunks=ids, fingerprint=fingerprint)
                response = await self._stub.Compress(request, timeout=timeout)
            except grpc.aio.AioRpcError as error:
                raise status.from_rpc(error) from None
            made += [CompressedEmbeddings(e.data, e.k) for e in response.embeddings]
        return made

    async def generate(self, request: Generation, timeout: float | None = None) -> AsyncGenerator[GenerateEvent, None]:  # noqa: ASYNC109 - gRPC's deadline, which the worker sees
        """Events of an answer; the last has a finish_reason. Closing the generator ends the work.

        Use it inside `contextlib.aclosing`, so that leaving early closes it at once.
        """
        call = self._stub.Generate(
            pb.GenerateRequest(
                segments=[_segment(segment) for segment in request.segments],
                max_tokens=request.max_tokens,
                temperature=request.temperature,
                stop=request.stop,
                seed=request.seed,
                repeat_penalty=request.repeat_penalty,
                use_reader=request.use_reader,
                adapters=[pb.AdapterWeight(adapter=adapter, weight=weight) for adapter, weight in request.adapters],
                compressor_fingerprint=request.compressor_fingerprint,
                background=request.background,
                scope=request.scope,
            ),
            timeout=timeout,
        )
        try:
            async for event in call:
                yield GenerateEvent(event.text, event.output_tokens, event.finish_reason, event.queue_ms, event.prefill_ms)
        except grpc.aio.AioRpcError as error:
            raise status.from_rpc(error) from None
        finally:
            call.cancel()

    async def load_adapter(self, adapter: str, config: bytes, weights: bytes) -> None:
        """Take a memory's adapter, in PEFT's format, onto the device. DataLoss, FailedPrecondition or ResourceExhausted where
        it can't be."""
        try:
            await self._stub.LoadAdapter(pb.LoadAdapterRequest(adapter=adapter, config=config, weights=weights))
        except grpc.aio.AioRpcError as error:
            raise status.from_rpc(error) from None

    async def unload_adapter(self, adapter: str) -> None:
        """Forget a memory's adapter at once."""
        try:
            await self._stub.UnloadAdapter(pb.UnloadAdapterRequest(adapter=adapter))
        except grpc.aio.AioRpcError as error:
            raise status.from_rpc(error) from None

    async def learn(self, learning: Learning) -> AsyncGenerator[LearnEvent, None]:
        """Events of a run of training; the last has a finish_reason. Closing the generator ends the work, which a run with
        the same directory continues at its last checkpoint."""
        call = self._stub.Learn(_parts(learning))
        try:
            async for event in call:
                yield LearnEvent(event.step, event.steps, event.loss, event.tokens, event.seconds, event.finish_reason)
        except grpc.aio.AioRpcError as error:
            raise status.from_rpc(error) from None
        finally:
            call.cancel()


def _parts(learning: Learning) -> Iterator[pb.LearnRequest]:
    settings = learning.settings
    yield pb.LearnRequest(
        settings=pb.LearnSettings(
            directory=str(learning.directory),
            base_model=learning.base_model,
            rank=settings.rank,
            alpha=settings.alpha,
            targets=settings.targets,
            learning_rate=settings.learning_rate,
            epochs=settings.epochs,
            batch=settings.batch,
            seed=settings.seed,
            checkpoint_seconds=settings.checkpoint_seconds,
            dropout=settings.dropout,
            rslora=settings.rslora,
            use_reader=learning.use_reader,
            compressor_fingerprint=learning.compressor_fingerprint,
        )
    )
    for chunk in learning.chunks:
        yield pb.LearnRequest(chunk=pb.Embeddings(data=chunk.data, k=chunk.k))
    for pack in learning.packs:
        context = [
            pb.LearnPiece(chunk=piece) if isinstance(piece, int) else pb.LearnPiece(tokens=pb.TokenIds(ids=piece))
            for piece in pack.context
        ]
        questions = [
            pb.LearnQuestion(question=pb.TokenIds(ids=question), answer=pb.TokenIds(ids=answer))
            for question, answer in pack.questions
        ]
        yield pb.LearnRequest(pack=pb.LearnPack(context=context, questions=questions))


def _segment(segment: Segment) -> pb.Segment:
    if isinstance(segment, TokenIds):
        return pb.Segment(tokens=pb.TokenIds(ids=segment.ids))
    return pb.Segment(soft=pb.Embeddings(data=segment.embeddings.data, k=segment.embeddings.k))
