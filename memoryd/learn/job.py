"""The LEARN job: from a memory's examples to an adapter that is judged, published and, if it answers better, served.

Stages: `prepare` searches as answers do, `learn` trains in the worker, `judge` answers held-out examples with what is in use
and with the new adapter, `publish` writes the row; its blob is there before. A job that is taken up again, after a crash or
because a person retries it, goes on training at its checkpoint (`run.py`) and does the rest again; one that had published
already says what it did.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from memoryd.core import (
    Adapter,
    AdapterState,
    Example,
    Job,
    Receipt,
    adapter_name,
    document_name,
    gathered_at,
    memory_name,
    new_id,
    now,
)
from memoryd.engine.request import DEFAULT_REPEAT_PENALTY, GenerateEvent, Generation, Learning, LearnSettings, scope_of
from memoryd.errors import DataLoss, InvalidArgument, NotFound
from memoryd.jobs import NotYet, Progress, Stopped
from memoryd.learn.adapter_files import AdapterFiles, pack_files
from memoryd.learn.contexts import ContextMaker, Packs
from memoryd.learn.judge import LEAST, MOST, Judgement, at_most, is_held_out, judge
from memoryd.learn.run import Run
from memoryd.learn.runs import Runs
from memoryd.learn.unanswerable import Found
from memoryd.models import Models
from memoryd.recall.adapters import AdapterStore, Choice, blob_key
from memoryd.recall.assembly import Mode
from memoryd.recall.citation import split_citation
from memoryd.recall.prompt import REFUSAL
from memoryd.store.base import Blobs, Ledger

_MOST_QUESTIONS = 20_000  # of all passes: they are held in memory, here and in the worker
# Of the optimizer: a small memory has smaller steps. After three passes over 24 questions of QMSum's training meetings the
# loss on 20 others, 3.95 before, is 3.62 with 24 steps of 3, and 3.40 with 72 of 1, in the same time.
_LEAST_STEPS = 64
_ANSWER_TOKENS = 96
_AT_A_TIME = 8  # held-out questions that are answered together


@dataclass(frozen=True, slots=True)
class Lesson:
    """What a run of learning is to do, from the job's payload."""

    memory: str
    epochs: int
    modes: Sequence[Mode]
    activate: bool


class LearnJob:
    """Handles JobKind.LEARN. One memory learns at a time; the others wait."""

    def __init__(
        self,
        ledger: Ledger,
        blobs: Blobs,
        models: Models,
        contexts: ContextMaker,
        adapters: AdapterStore,
        runs: Runs,
        settings: LearnSettings,
        epochs: int,
        keep: int = 0,
    ) -> None:
        """`keep` adapters of a memory stay beside the active one and what a rollback would activate; 0: all."""
        self._ledger = ledger
        self._blobs = blobs
        self._models = models
        self._contexts = contexts
        self._adapters = adapters
        self._runs = runs
        self._settings = settings
        self._epochs = epochs
        self._keep = keep
        self._one_at_a_time = asyncio.Lock()

    async def __call__(self, job: Job, progress: Progress) -> Receipt:
        if self._one_at_a_time.locked():
            raise NotYet
        async with self._one_at_a_time:
            try:
                return await self._learn(job, progress)
            except Stopped:
                await self._runs.leave(job)
                raise
            except NotFound:
                if await asyncio.to_thread(self._has_memory, job):
                    raise  # a job that fails says so
                await self._runs.leave(job)
                raise Stopped from None

    async def _learn(self, job: Job, progress: Progress) -> Receipt:
        lesson = self._lesson(job)
        published = await asyncio.to_thread(self._ledger.adapter_of_job, job.tenant, job.id)
        if published is not None:  # the last try ended after that
            return await self._end(job, lesson, published, await asyncio.to_thread(self._lineage, published))
        await self._runs.renew(job)
        gathered = now()  # by this try: `gather_time`, of the first one or of the study before it, is for the policy
        gather_time = gathered_at(job.payload, gathered)
        training, held_out = await asyncio.to_thread(self._examples, job.tenant, lesson.memory)
        if not training:
            await self._runs.end(job, keep="")
            return self._receipt(lesson, None, {})
        total = len(training) + len(held_out)
        found = await self._contexts.find(
            job.tenant, lesson.memory, [*training, *held_out], lambda n: progress.step("prepare", n, total, resumable=False)
        )
        to_learn, to_judge = found[: len(training)], found[len(training) :]
        passes = max(1, min(lesson.epochs, _MOST_QUESTIONS // len(training)))
        packs = await asyncio.to_thread(self._contexts.packs, job.tenant, to_learn, lesson.modes, passes)
        packs.documents.update(document for one in to_judge for document in one.example.documents)
        run, alive = self._runs.of(job), partial(self._runs.alive, job.tenant)
        facts = await asyncio.to_thread(self._facts, job)
        packs.documents |= await asyncio.to_thread(run.begin, facts, packs.documents, alive, gather_time)
        in_use = (await asyncio.to_thread(self._ledger.active_adapters, job.tenant, [lesson.memory])).get(lesson.memory)
        await self._train(run, packs, progress)
        counts = {"examples": len(training), "held_out": len(held_out)}
        await self._runs.anew(job)
        adapter, files = await asyncio.to_thread(self._made, job, lesson, in_use, counts, packs)
        archive = await asyncio.to_thread(pack_files, files)
        await asyncio.to_thread(self._blobs.put, job.tenant, blob_key(job.tenant, lesson.memory, adapter.id), archive)
        judgement = await self._judge(job, to_judge, in_use, adapter, progress)
        progress.step("publish", 0, 1, resumable=False)
        judged = replace(adapter, judgement=judgement.to_json())
        activate = judgement.better and lesson.activate
        recorded = await asyncio.to_thread(
            self._ledger.add_adapter, judged, sorted(packs.documents), activate, gathered=gathered
        )
        if recorded is None:  # a document was deleted meanwhile, and the next attempt learns without it; or it was cancelled
            raise Stopped
        return await self._end(job, lesson, recorded, files.lineage)

    async def _end(self, job: Job, lesson: Lesson, adapter: Adapter, lineage: Mapping[str, Any]) -> Receipt:
        """What follows on its adapter's row; may be done again."""
        if self._keep:
            retired = await asyncio.to_thread(self._ledger.retire_adapters, job.tenant, lesson.memory, self._keep)
            await self._adapters.forget(job.tenant, retired)
        await self._runs.end_older(job)
        await self._runs.end(job, keep=adapter.id)
        return self._receipt(lesson, adapter, lineage)

    def _lineage(self, adapter: Adapter) -> Mapping[str, Any]:
        """Of one that is published; empty where its bytes are gone."""
        try:
            return self._adapters.read(adapter.tenant, adapter).lineage
        except (NotFound, DataLoss):
            return {}

    def _facts(self, job: Job) -> dict[str, str]:
        """What a run begins and ends with: weights that were made with anything else are not its own. NotFound."""
        info = self._models.info
        return {
            "memory": self._ledger.get_memory(job.tenant, job.payload["memory"]).create_time.isoformat(),
            "base": info.base_fingerprint,
            "reader": info.reader,
            "compressor": info.compressor.fingerprint,
            "settings": str(replace(self._settings, checkpoint_seconds=0.0)),  # how often does not change what
        }

    def _has_memory(self, job: Job) -> bool:
        try:
            self._ledger.require_memories(job.tenant, [job.payload["memory"]])
        except NotFound:
            return False
        return True

    def _lesson(self, job: Job) -> Lesson:
        given = [Mode(int(mode)) for mode in job.payload.get("modes", "").split(",") if mode]
        usual = [Mode.TEXT, Mode.HYBRID, Mode.COMPRESSED] if self._models.info.compressor.gate_passed else [Mode.TEXT]
        epochs = int(job.payload.get("epochs", 0)) or self._epochs
        return Lesson(job.payload["memory"], epochs, given or usual, not job.payload.get("keep_inactive"))

    def _examples(self, tenant: str, memory: str) -> tuple[list[Example], list[Example]]:
        """Those to train on, and those to judge by."""
        training: list[Example] = []
        held_out: list[Example] = []
        token = ""
        while True:
            page = self._ledger.list_examples(tenant, memory, 1000, token)
            for example in page.items:
                (held_out if is_held_out(example) else training).append(example)
            token = page.next_token
            if not token:
                return at_most(training, _MOST_QUESTIONS), at_most(held_out, MOST)

    async def _train(self, run: Run, packs: Packs, progress: Progress) -> None:
        """Its result lies in the run's directory."""
        if run.trained:
            return
        learning = Learning(
            packs.packs,
            packs.chunks,
            run.directory,
            self._models.info.model_path.name,
            replace(self._settings, batch=max(1, min(self._settings.batch, len(packs.packs) // _LEAST_STEPS))),
            use_reader=bool(self._models.info.reader),
            compressor_fingerprint=self._models.info.compressor.fingerprint if packs.chunks else "",
        )
        async with contextlib.aclosing(self._models.worker.learn(learning)) as events:
            async for event in events:
                progress.note(loss=round(event.loss, 5))
                progress.step("learn", event.step, event.steps, resumable=False)

    def _made(
        self, job: Job, lesson: Lesson, in_use: Adapter | None, counts: Mapping[str, int], packs: Packs
    ) -> tuple[Adapter, AdapterFiles]:
        """The adapter, and its files. `counts` are of examples."""
        info, run = self._models.info, self._runs.of(job)
        id_, parent = new_id(), in_use.id if in_use else ""  # an id of its own for each try: workers never load one anew
        run.name(id_)
        rows = run.metrics()
        lineage = {
            "memory": memory_name(lesson.memory),
            "parent": adapter_name(lesson.memory, parent) if parent else "",
            "base_model": info.base_fingerprint,
            "reader": info.reader,
            "compressor": info.compressor.fingerprint if packs.chunks else "",  # empty: any will do
            "modes": [mode.name for mode in lesson.modes],
            **counts,
            "documents": [document_name(lesson.memory, document) for document in sorted(packs.documents)],
            "epochs": lesson.epochs,
            "learning_rate": self._settings.learning_rate,
            "steps": rows[-1]["step"],
            "seconds": rows[-1]["seconds"],
            "loss": rows[-1]["loss"],
            "gather_time": run.gather_time.isoformat(),
            "create_time": now().isoformat(),
        }
        curve = "".join(json.dumps({"step": row["step"], "loss": row["loss"]}) + "\n" for row in rows)
        files = AdapterFiles.of_directory(run.result, lineage, curve.encode())
        adapter = Adapter(
            job.tenant,
            lesson.memory,
            id_,
            now(),
            files.fingerprint,
            info.base_fingerprint,
            info.reader,
            info.compressor.fingerprint if packs.chunks else "",
            files.size,
            parent=parent,
            job=job.id,
            examples=counts["examples"],
            gather_time=run.gather_time,
        )
        return adapter, files

    async def _judge(
        self, job: Job, held_out: Sequence[Found], in_use: Adapter | None, new: Adapter, progress: Progress
    ) -> Judgement:
        if len(held_out) < LEAST:
            few = [one.example.answer for one in held_out]
            return judge(few, few, few)
        held_out = [*held_out, *self._contexts.unanswerable(held_out)]
        golds = [one.example.answer for one in held_out]
        before = await asyncio.to_thread(self._before, job.tenant, in_use)
        answers: list[tuple[str, str]] = []
        for at in range(0, len(held_out), _AT_A_TIME):
            progress.step("judge", at, len(held_out), resumable=False)
            some = held_out[at : at + _AT_A_TIME]
            both = [(before, one) for one in some] + [(Choice([(new, 1.0)]), one) for one in some]
            said = await asyncio.gather(*(self._answer(job.tenant, choice, one) for choice, one in both))
            answers += zip(said[: len(some)], said[len(some) :], strict=True)
        return await asyncio.to_thread(judge, golds, [b for b, _ in answers], [a for _, a in answers])

    def _before(self, tenant: str, in_use: Adapter | None) -> Choice:
        """What is in use; the reader alone where that can't be used any more."""
        if in_use is None or self._adapters.misfit(in_use):
            return Choice([])
        try:
            self._adapters.read(tenant, in_use)
        except (NotFound, DataLoss):
            return Choice([])
        return Choice([(in_use, 1.0)])

    async def _answer(self, tenant: str, choice: Choice, one: Found) -> str:
        """As HYBRID, the default mode, gives it."""
        if not one.sources:
            return REFUSAL
        try:
            shown, prompt = await asyncio.to_thread(self._contexts.prompt, tenant, Mode.HYBRID, one, _ANSWER_TOKENS)
        except InvalidArgument:  # the question alone is too long, whoever is asked
            return REFUSAL
        request = Generation(
            shown.segments(prompt),
            _ANSWER_TOKENS,
            repeat_penalty=DEFAULT_REPEAT_PENALTY,
            use_reader=bool(self._models.info.reader),
            compressor_fingerprint=self._models.info.compressor.fingerprint if prompt.soft_tokens else "",
            background=True,
            scope=scope_of(tenant),
        )
        events: AsyncGenerator[GenerateEvent, None] = self._adapters.generate(tenant, choice, request)
        async with contextlib.aclosing(events):
            said = "".join([event.text async for event in events])
        return split_citation(said, len(prompt.numbered))[1]

    @staticmethod
    def _receipt(lesson: Lesson, adapter: Adapter | None, lineage: Mapping[str, Any]) -> Receipt:
        active = adapter is not None and adapter.state is AdapterState.ACTIVE
        verdict = "there are no examples to learn from: add some, or study first"
        if adapter is not None:
            judgement = Judgement.from_json(adapter.judgement)
            verdict = judgement.verdict
            if judgement.better and lesson.activate and not active:
                verdict += "; another adapter was activated meanwhile"
        return {
            "memory": memory_name(lesson.memory),
            "adapter": adapter_name(lesson.memory, adapter.id) if adapter else "",
            "activated": int(active),
            "verdict": verdict,
            "examples": adapter.examples if adapter else 0,
            **{name: lineage.get(name, 0) for name in ("held_out", "steps", "seconds", "loss")},
        }
