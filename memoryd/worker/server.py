"""The worker's side of the wire: a thin servicer between protobuf and the loop."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from memoryd.compress.codec import CompressedEmbeddings
from memoryd.engine.request import GenerateEvent, Generation, LearnEvent, Learning, LearnSettings, Segment, Soft, TokenIds
from memoryd.errors import InvalidArgument, MemorydError, Unavailable
from memoryd.learn.soft_packing import SoftPack
from memoryd.worker import status
from memoryd.worker.loop import CompressChunks, EmbedTexts, LoadAdapter, Loop, Request, UnloadAdapter
from memoryd.worker.v1 import worker_pb2 as pb
from memoryd.worker.v1 import worker_pb2_grpc

MAX_MESSAGE = 512 << 20
"""A large base model's adapter goes through in one piece."""
OPTIONS = (("grpc.max_receive_message_length", MAX_MESSAGE), ("grpc.max_send_message_length", MAX_MESSAGE))


def _errors_to_status(method: Callable[..., Any]) -> Callable[..., Any]:
    """For a unary method: the call is in hand; a MemorydError becomes its status."""

    @functools.wraps(method)
    async def wrapped(self: Any, request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        await context.send_initial_metadata(status.IN_HAND)
        try:
            return await method(self, request, context)
        except MemorydError as error:
            await context.abort(error.code, error.message, status.trailers(error))

    return wrapped


class WorkerServicer(worker_pb2_grpc.WorkerServiceServicer):
    """Implements memoryd.worker.v1.WorkerService.

    grpc.aio cancels a method's coroutine when the client goes away or the deadline passes; that closes the loop's
    generator, which frees the call within one step.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.description: pb.DescribeResponse | None = None

    @_errors_to_status
    async def Describe(self, request: pb.DescribeRequest, context: object) -> pb.DescribeResponse:
        if self.description is None:
            raise Unavailable("the worker is loading its models", reason="WORKER_LOADING")
        return self.description

    @_errors_to_status
    async def Embed(self, request: pb.EmbedRequest, context: object) -> pb.EmbedResponse:
        values = await self._all(EmbedTexts(list(request.texts), request.urgent), len(request.texts))
        vectors_ND = np.stack(values) if values else np.empty((0, 0), np.float32)
        return pb.EmbedResponse(vectors=vectors_ND.astype("<f4").tobytes(), dim=vectors_ND.shape[1])

    @_errors_to_status
    async def Compress(self, request: pb.CompressRequest, context: object) -> pb.CompressResponse:
        chunks = [list(chunk.ids) for chunk in request.chunks]
        values = await self._all(CompressChunks(chunks, request.fingerprint), len(chunks))
        return pb.CompressResponse(
            embeddings=[pb.Embeddings(data=value.data, k=value.k) for value in values], fingerprint=request.fingerprint
        )

    async def Generate(
        self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.GenerateEvent]:
        await context.send_initial_metadata(status.IN_HAND)
        try:
            async with contextlib.aclosing(self._loop.run(_generation(request))) as outputs:
                async for output in outputs:
                    event = output.value
                    assert isinstance(event, GenerateEvent)
                    yield pb.GenerateEvent(
                        text=event.text,
                        output_tokens=event.output_tokens,
                        finish_reason=event.finish_reason,
                        queue_ms=event.queue_ms,
                        prefill_ms=event.prefill_ms,
                    )
                    if event.finish_reason:
                        return
        except MemorydError as error:
            await context.abort(error.code, error.message, status.trailers(error))

    @_errors_to_status
    async def LoadAdapter(self, request: pb.LoadAdapterRequest, context: object) -> pb.LoadAdapterResponse:
        await self._all(LoadAdapter(request.adapter, request.config, request.weights), 1)
        return pb.LoadAdapterResponse()

    @_errors_to_status
    async def UnloadAdapter(self, request: pb.UnloadAdapterRequest, context: object) -> pb.UnloadAdapterResponse:
        await self._all(UnloadAdapter(request.adapter), 1)
        return pb.UnloadAdapterResponse()

    async def Learn(
        self, requests: AsyncIterator[pb.LearnRequest], context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.LearnEvent]:
        await context.send_initial_metadata(status.IN_HAND)
        try:
            learning = await _learning(requests)
            async with contextlib.aclosing(self._loop.run(learning)) as outputs:
                async for output in outputs:
                    event = output.value
                    assert isinstance(event, LearnEvent)
                    yield pb.LearnEvent(
                        step=event.step,
                        steps=event.steps,
                        loss=event.loss,
                        tokens=event.tokens,
                        seconds=event.seconds,
                        finish_reason=event.finish_reason,
                    )
                    if event.finish_reason:
                        return
        except MemorydError as error:
            await context.abort(error.code, error.message, status.trailers(error))

    async def _all(self, request: Request, count: int) -> list[Any]:
        """All `count` results of a request, in order."""
        values: dict[int, Any] = {}
        async with contextlib.aclosing(self._loop.run(request)) as outputs:
            while len(values) < count:
                output = await anext(outputs)
                values[output.index] = output.value
        return [values[index] for index in range(count)]


def _generation(request: pb.GenerateRequest) -> Generation:
    return Generation(
        segments=[_segment(segment) for segment in request.segments],
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        stop=list(request.stop),
        seed=request.seed,
        repeat_penalty=request.repeat_penalty,
        use_reader=request.use_reader,
        adapters=[(item.adapter, item.weight) for item in request.adapters],
        compressor_fingerprint=request.compressor_fingerprint,
        background=request.background,
        scope=request.scope,
    )


async def _learning(requests: AsyncIterator[pb.LearnRequest]) -> Learning:
    settings = pb.LearnSettings()
    chunks: list[CompressedEmbeddings] = []
    packs: list[SoftPack] = []
    async for request in requests:
        match request.WhichOneof("kind"):
            case "settings":
                settings = request.settings
            case "chunk":
                chunks.append(CompressedEmbeddings(request.chunk.data, request.chunk.k))
            case "pack":
                packs.append(_pack(request.pack, len(chunks)))
            case _:
                raise InvalidArgument("a part of what is to be learned is empty")
    if not settings.directory:
        raise InvalidArgument("what is to be learned comes without settings")
    return Learning(
        packs,
        chunks,
        Path(settings.directory),
        settings.base_model,
        LearnSettings(
            rank=settings.rank,
            alpha=settings.alpha,
            targets=tuple(settings.targets),
            learning_rate=settings.learning_rate,
            epochs=settings.epochs,
            batch=settings.batch,
            seed=settings.seed,
            checkpoint_seconds=settings.checkpoint_seconds,
            dropout=settings.dropout,
            rslora=settings.rslora,
        ),
        use_reader=settings.use_reader,
        compressor_fingerprint=settings.compressor_fingerprint,
    )


def _pack(pack: pb.LearnPack, chunks: int) -> SoftPack:
    context = tuple(p.chunk if p.WhichOneof("kind") == "chunk" else tuple(p.tokens.ids) for p in pack.context)
    if any(isinstance(piece, int) and piece >= chunks for piece in context):
        raise InvalidArgument("a pack names a chunk that did not come before it")
    questions = tuple((tuple(q.question.ids), tuple(q.answer.ids)) for q in pack.questions)
    if not questions or not all(question and answer for question, answer in questions):
        raise InvalidArgument("a pack has a question or an answer without tokens")
    return SoftPack((), context, questions)


def _segment(segment: pb.Segment) -> Segment:
    match segment.WhichOneof("kind"):
        case "tokens":
            return TokenIds(list(segment.tokens.ids))
        case "soft":
            return Soft(CompressedEmbeddings(segment.soft.data, segment.soft.k))
        case _:
            raise InvalidArgument("a segment of the prompt is neither tokens nor soft")
