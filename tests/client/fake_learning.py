"""The fake daemon's LearnService. It trains nothing: an adapter is a row, and its archive a few bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import grpc

from memoryd.v1 import jobs_pb2, learn_pb2, learn_pb2_grpc, recall_pb2
from tests.client.fake_parts import Failure, found, page_of

PIECE = 1000  # small, so that an export of a test comes in several


class FakeLearning(learn_pb2_grpc.LearnServiceServicer):
    """A part of FakeDaemon."""

    faults: Any
    memories: dict[str, Any]
    documents: dict[str, Any]
    jobs: dict[str, Any]
    receipts: dict[str, Any]
    _numbers: Iterator[int]
    _job: Any
    _operation: Any

    def __init__(self) -> None:
        self.examples: dict[str, Any] = {}
        self.adapters: dict[str, Any] = {}
        self.archives: dict[str, bytes] = {}
        self.part_sizes: list[int] = []

    # examples

    def CreateExamples(self, request: Any, context: Any) -> Any:
        found(self.memories, request.parent)
        held, out = 0, []
        for example in request.examples:
            stored, added = self._add_example(request.parent, example, learn_pb2.Example.ORIGIN_SUPPLIED)
            held += not added
            out.append(stored)
        return learn_pb2.CreateExamplesResponse(examples=out, already_stored=held)

    def GiveFeedback(self, request: Any, context: Any) -> Any:
        found(self.memories, request.parent)
        right = {
            learn_pb2.VERDICT_GOOD: request.answer,
            learn_pb2.VERDICT_BAD: "I don't know.",
            learn_pb2.VERDICT_CORRECTED: request.correction,
        }[request.verdict]
        if not right:
            raise Failure(grpc.StatusCode.INVALID_ARGUMENT, "it was corrected: to what?", [("correction", "is missing")])
        example = learn_pb2.Example(question=request.question, answer=right, documents=request.documents)
        return self._add_example(request.parent, example, learn_pb2.Example.ORIGIN_FEEDBACK)[0]

    def ListExamples(self, request: Any, context: Any) -> Any:
        found(self.memories, request.parent)
        page, token = page_of(_within(self.examples, request.parent), request)
        return learn_pb2.ListExamplesResponse(examples=page, next_page_token=token)

    def DeleteExample(self, request: Any, context: Any) -> Any:
        found(self.examples, request.name)
        del self.examples[request.name]
        self.faults.strike("DeleteExample, done")
        return learn_pb2.DeleteExampleResponse()

    def ExportExamples(self, request: Any, context: Any) -> Iterator[Any]:
        found(self.memories, request.parent)
        for example in _within(self.examples, request.parent):
            line = {
                "question": example.question,
                "answer": example.answer,
                "documents": list(example.documents),
                "origin": "supplied",
                "create_time": example.create_time.ToJsonString(),
            }
            yield learn_pb2.ExportExamplesResponse(jsonl=json.dumps(line).encode() + b"\n")

    def _add_example(self, parent: str, given: Any, origin: int) -> tuple[Any, bool]:
        for document in given.documents:
            found(self.documents, document)
        for example in _within(self.examples, parent):
            if (example.question, example.answer) == (given.question, given.answer):
                return example, False
        example = learn_pb2.Example(
            name=f"{parent}/examples/e{next(self._numbers)}",
            question=given.question,
            answer=given.answer,
            documents=given.documents,
            origin=origin,
        )
        example.create_time.GetCurrentTime()
        self.examples[example.name] = example
        return example, True

    # learning

    def StudyMemory(self, request: Any, context: Any) -> Any:
        found(self.memories, request.name)
        name = f"operations/o{next(self._numbers)}"
        self._job(name, "study", request.name)
        self.receipts[name] = learn_pb2.StudyReceipt(
            memory=request.name, passages=3, questions=request.max_examples or 200, teacher="smollm2"
        )
        return self._operation(name)

    def LearnMemory(self, request: Any, context: Any) -> Any:
        found(self.memories, request.name)
        for job in self.jobs.values():
            if (job.kind, job.target, job.state) == ("learn", request.name, jobs_pb2.JOB_STATE_PENDING):
                return self._operation(job.name)
        name = f"operations/o{next(self._numbers)}"
        self._job(name, "learn", request.name)
        adapter = self.add_adapter(request.name, b"trained", judged=True)
        if not request.keep_inactive:
            self._activate(adapter)
        examples = len(_within(self.examples, request.name))
        self.receipts[name] = learn_pb2.LearnReceipt(
            memory=request.name,
            adapter=adapter.name,
            activated=not request.keep_inactive,
            verdict="better",
            examples=examples,
            steps=int(request.epochs or 3) * examples,
            seconds=1.5,
            loss=0.5,
        )
        return self._operation(name)

    # adapters

    def ListAdapters(self, request: Any, context: Any) -> Any:
        found(self.memories, request.parent)
        page, token = page_of([_bare(a) for a in _within(self.adapters, request.parent)], request)
        return learn_pb2.ListAdaptersResponse(adapters=page, next_page_token=token)

    def GetAdapter(self, request: Any, context: Any) -> Any:
        return found(self.adapters, request.name)

    def ActivateAdapter(self, request: Any, context: Any) -> Any:
        adapter = found(self.adapters, request.name)
        if adapter.state == learn_pb2.Adapter.STATE_TAINTED:
            raise Failure(grpc.StatusCode.FAILED_PRECONDITION, f"{request.name} is tainted")
        self._activate(adapter)
        return _bare(adapter)

    def RollBackAdapter(self, request: Any, context: Any) -> Any:
        found(self.memories, request.name)
        if self._active(request.name) is None:
            raise Failure(grpc.StatusCode.FAILED_PRECONDITION, "no adapter is active")
        active = self._roll_back(request.name)
        return learn_pb2.RollBackAdapterResponse(active=_bare(active) if active else None)

    def DeleteAdapter(self, request: Any, context: Any) -> Any:
        adapter = found(self.adapters, request.name)
        if adapter.state == learn_pb2.Adapter.STATE_ACTIVE:
            self._roll_back(request.name.partition("/adapters/")[0])
        del self.adapters[request.name]
        return learn_pb2.DeleteAdapterResponse()

    def ExportAdapter(self, request: Any, context: Any) -> Iterator[Any]:
        found(self.adapters, request.name)
        archive = self.archives[request.name]
        for at in range(0, len(archive), PIECE):
            yield learn_pb2.ExportAdapterResponse(data=archive[at : at + PIECE])

    def ImportAdapter(self, requests: Iterator[Any], context: Any) -> Any:
        parent, archive = next(requests).parent, b""
        found(self.memories, parent)
        for part in requests:
            self.part_sizes.append(len(part.data))
            archive += part.data
            self.faults.strike("ImportAdapter")
        if not archive:
            raise Failure(grpc.StatusCode.INVALID_ARGUMENT, "the archive is empty")
        return self.add_adapter(parent, archive)

    def add_adapter(self, memory: str, archive: bytes, *, judged: bool = False) -> Any:
        parent = self._active(memory)
        adapter = learn_pb2.Adapter(
            name=f"{memory}/adapters/a{next(self._numbers)}",
            state=learn_pb2.Adapter.STATE_KEPT,
            parent=parent.name if parent else "",
            fingerprint=f"{hash(archive)}",
            size_bytes=len(archive),
        )
        adapter.create_time.GetCurrentTime()
        if judged:
            kind = learn_pb2.JudgedKind(kind="all", count=8, before=0.25, after=0.5, low=0.125, high=0.375, exact_after=0.25)
            adapter.judgement.CopyFrom(learn_pb2.Judgement(better=True, verdict="better", kinds=[kind]))
            adapter.curve.extend(learn_pb2.LossPoint(step=step, loss=1 / step) for step in (1, 2))
            adapter.curve_png = b"\x89PNG"
            adapter.gather_time.GetCurrentTime()
            of = [f"{memory}/documents/d"]
            adapter.lineage.CopyFrom(learn_pb2.Lineage(documents=of, modes=[recall_pb2.MODE_TEXT], epochs=3, steps=2))
        self.adapters[adapter.name], self.archives[adapter.name] = adapter, archive
        return adapter

    def _active(self, memory: str) -> Any:
        return next((a for a in _within(self.adapters, memory) if a.state == learn_pb2.Adapter.STATE_ACTIVE), None)

    def _activate(self, adapter: Any) -> None:
        if active := self._active(adapter.name.partition("/adapters/")[0]):
            active.state = learn_pb2.Adapter.STATE_KEPT
        adapter.state = learn_pb2.Adapter.STATE_ACTIVE

    def _roll_back(self, memory: str) -> Any:
        if (active := self._active(memory)) is None:
            return None
        active.state = learn_pb2.Adapter.STATE_KEPT
        parent = self.adapters.get(active.parent)
        if parent is not None:
            self._activate(parent)
        return parent


def _within(rows: dict[str, Any], memory: str) -> list[Any]:
    return [row for name, row in rows.items() if name.startswith(f"{memory}/")]


def _bare(adapter: Any) -> Any:
    """As lists show it."""
    out = learn_pb2.Adapter()
    out.CopyFrom(adapter)
    out.ClearField("curve")
    out.ClearField("curve_png")
    out.ClearField("lineage")
    return out
