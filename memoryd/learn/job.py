"""The LEARN job: from a memory's examples to an adapter that is judged, published and, if it answers better, served.

Stages: `prepare` searches as answers do, `learn` trains in the worker, `judge` answers held-out examples with what is in use
and with the new adapter, `publish` writes blob, then row. The adapter has the job's id, so a job that is taken up again after
a crash goes on with the same one: training continues at its checkpoint, the rest is done again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from memoryd.core import Adapter, AdapterState, Example, Job, adapter_name, adapter_prefix, document_name, memory_name, now
from memoryd.engine.request import GenerateEvent, Generation, Learning, LearnSettings
from memoryd.errors import NotFound
from memoryd.jobs import NotYet, Progress, Stopped
from memoryd.learn.adapter_files import AdapterFiles, pack_files
from memoryd.learn.contexts import ContextMaker, Found, Packs
from memoryd.learn.judge import LEAST, MOST, Judgement, is_held_out, judge
from memoryd.models import Models
from memoryd.recall.adapters import AdapterStore, Choice, blob_key
from memoryd.recall.assembly import Mode
from memoryd.recall.citation import split_citation
from memoryd.recall.prompt import REFUSAL
from memoryd.store.base import Blobs, Ledger

_MOST_EXAMPLES = 20_000
_ANSWER_TOKENS = 96
_AT_A_TIME = 8  # held-out questions that are answered together
_METRICS, _RESULT = "metrics.jsonl", "adapter"


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
        settings: LearnSettings,
        epochs: int,
        directory: Path,
    ) -> None:
        """`directory` holds the runs' checkpoints, by job."""
        self._ledger = ledger
        self._blobs = blobs
        self._models = models
        self._contexts = contexts
        self._adapters = adapters
        self._settings = settings
        self._epochs = epochs
        self._directory = directory
        self._one_at_a_time = asyncio.Lock()

    async def __call__(self, job: Job, progress: Progress) -> Mapping[str, str | int]:
        if self._one_at_a_time.locked():
            raise NotYet
        async with self._one_at_a_time:
            try:
                return await self._learn(job, progress)
            except (Stopped, NotFound):  # cancelled, or the memory is deleted: nothing of it stays
                await asyncio.to_thread(self._forget_run, job)
                raise Stopped from None

    async def _learn(self, job: Job, progress: Progress) -> Mapping[str, str | int]:
        lesson = self._lesson(job)
        examples = await asyncio.to_thread(self._examples, job.tenant, lesson.memory)
        held_out = [example for example in examples if is_held_out(example)][:MOST]
        training = [example for example in examples if not is_held_out(example)]
        if not training:
            return self._receipt(lesson, "", False, "there are no examples to learn from: add some, or study first", 0, 0)
        total = len(training) + len(held_out)
        found = await self._contexts.find(
            job.tenant, lesson.memory, [*training, *held_out], lambda n: progress.step("prepare", n, total, resumable=False)
        )
        to_learn, to_judge = found[: len(training)], found[len(training) :]
        packs = await asyncio.to_thread(self._contexts.packs, job.tenant, to_learn, lesson.modes, lesson.epochs)
        packs.documents.update(d for one in to_judge for d in one.example.documents)
        in_use = (await asyncio.to_thread(self._ledger.active_adapters, job.tenant, [lesson.memory])).get(lesson.memory)
        steps, seconds = await self._train(job, packs, progress)
        parent = in_use.id if in_use else ""
        adapter, files = await asyncio.to_thread(self._made, job, lesson, parent, len(training), packs)
        await asyncio.to_thread(self._blobs.put, job.tenant, blob_key(job.tenant, lesson.memory, adapter.id), pack_files(files))
        judgement = await self._judge(job, to_judge, in_use, adapter, progress)
        return await self._publish(job, lesson, adapter, judgement, packs, len(to_judge), steps, seconds, progress)

    def _lesson(self, job: Job) -> Lesson:
        given = [Mode(int(mode)) for mode in job.payload.get("modes", "").split(",") if mode]
        usual = [Mode.TEXT, Mode.HYBRID, Mode.COMPRESSED] if self._models.info.compressor.gate_passed else [Mode.TEXT]
        epochs = int(job.payload.get("epochs", 0)) or self._epochs
        return Lesson(job.payload["memory"], epochs, given or usual, not job.payload.get("keep_inactive"))

    def _examples(self, tenant: str, memory: str) -> list[Example]:
        examples: list[Example] = []
        token = ""
        while len(examples) < _MOST_EXAMPLES:
            page = self._ledger.list_examples(tenant, memory, 1000, token)
            examples += page.items
            token = page.next_token
            if not token:
                break
        return examples

    def _run(self, job: Job) -> Path:
        return self._directory / job.tenant / job.id

    def sweep(self, tenant: str) -> int:
        """Removes what runs left that are over and were not published: it has seen text that may have to be forgotten.
        Returns how many. Blocks."""
        count = 0
        for run in sorted(self._directory.glob(f"{tenant}/*")):
            try:
                count += self._forget_run(self._ledger.get_job(tenant, run.name))
            except NotFound:
                shutil.rmtree(run, ignore_errors=True)
        return count

    def _forget_run(self, job: Job) -> bool:
        """Whether it is over, and so was removed: a job that this process has lost may go on in another."""
        if not self._ledger.get_job(job.tenant, job.id).state.ended:
            return False
        shutil.rmtree(self._run(job), ignore_errors=True)
        if job.id not in self._ledger.recorded(job.tenant, [job.id]):  # else it was published before the last try ended
            self._blobs.delete_prefix(job.tenant, adapter_prefix(job.tenant, job.payload["memory"], job.id))
        return True

    async def _train(self, job: Job, packs: Packs, progress: Progress) -> tuple[int, int]:
        """Steps, and seconds of computing. Its result lies in the run's directory."""
        run = self._run(job)
        if not (run / _RESULT).is_dir():
            learning = Learning(
                packs.packs,
                packs.chunks,
                run,
                str(self._models.info.model_path.name),
                self._settings,
                use_reader=bool(self._models.info.reader),
                compressor_fingerprint=self._models.info.compressor.fingerprint if packs.chunks else "",
            )
            async with contextlib.aclosing(self._models.worker.learn(learning)) as events:
                async for event in events:
                    progress.step("learn", event.step, event.steps, resumable=False)
        last = await asyncio.to_thread(lambda: (run / _METRICS).read_text().splitlines()[-1])
        row = json.loads(last)
        return int(row["step"]), round(row["seconds"])

    def _made(self, job: Job, lesson: Lesson, parent: str, examples: int, packs: Packs) -> tuple[Adapter, AdapterFiles]:
        info, run = self._models.info, self._run(job)
        lineage = {
            "memory": memory_name(lesson.memory),
            "parent": adapter_name(lesson.memory, parent) if parent else "",
            "base_model": info.base_fingerprint,
            "reader": info.reader,
            "compressor": info.compressor.fingerprint,
            "modes": [mode.name for mode in lesson.modes],
            "examples": examples,
            "documents": [document_name(lesson.memory, document) for document in sorted(packs.documents)],
            "epochs": lesson.epochs,
            "learning_rate": self._settings.learning_rate,
            "create_time": now().isoformat(),
        }
        rows = [json.loads(line) for line in (run / _METRICS).read_text().splitlines()]
        by_step = {row["step"]: row["loss"] for row in rows}  # what was done again after a kill counts as it was done last
        curve = "".join(json.dumps({"step": step, "loss": loss}) + "\n" for step, loss in sorted(by_step.items()))
        files = AdapterFiles.of_directory(run / _RESULT, lineage, curve.encode())
        adapter = Adapter(
            job.tenant,
            lesson.memory,
            job.id,
            now(),
            files.fingerprint,
            info.base_fingerprint,
            info.reader,
            info.compressor.fingerprint if packs.chunks else "",
            files.size,
            parent=parent,
            examples=examples,
        )
        return adapter, files

    async def _judge(
        self, job: Job, held_out: Sequence[Found], in_use: Adapter | None, new: Adapter, progress: Progress
    ) -> Judgement:
        if len(held_out) < LEAST:
            return judge([one.example.answer for one in held_out], [""] * len(held_out), [""] * len(held_out))
        usable = in_use is not None and not self._adapters.misfit(in_use)
        before = Choice([(in_use, 1.0)] if in_use and usable else [])
        answers: list[tuple[str, str]] = []
        for at in range(0, len(held_out), _AT_A_TIME):
            progress.step("judge", at, len(held_out), resumable=False)
            some = held_out[at : at + _AT_A_TIME]
            both = [(before, one) for one in some] + [(Choice([(new, 1.0)]), one) for one in some]
            said = await asyncio.gather(*(self._answer(job.tenant, choice, one) for choice, one in both))
            answers += zip(said[: len(some)], said[len(some) :], strict=True)
        golds = [one.example.answer for one in held_out]
        return judge(golds, [b for b, _ in answers], [a for _, a in answers])

    async def _answer(self, tenant: str, choice: Choice, one: Found) -> str:
        """As HYBRID, the default mode, gives it."""
        if not one.sources:
            return REFUSAL
        shown, prompt = await asyncio.to_thread(self._contexts.prompt, tenant, Mode.HYBRID, one, _ANSWER_TOKENS)
        request = Generation(
            shown.segments(prompt),
            _ANSWER_TOKENS,
            use_reader=bool(self._models.info.reader),
            compressor_fingerprint=self._models.info.compressor.fingerprint if prompt.soft_tokens else "",
        )
        events: AsyncGenerator[GenerateEvent, None] = self._adapters.generate(tenant, choice, request)
        async with contextlib.aclosing(events):
            said = "".join([event.text async for event in events])
        return split_citation(said, len(prompt.numbered))[1]

    async def _publish(
        self,
        job: Job,
        lesson: Lesson,
        adapter: Adapter,
        judgement: Judgement,
        packs: Packs,
        held_out: int,
        steps: int,
        seconds: int,
        progress: Progress,
    ) -> Mapping[str, str | int]:
        progress.step("publish", 0, 1, resumable=False)
        judged = replace(adapter, judgement=judgement.to_json())
        activate = judgement.better and lesson.activate
        recorded = await asyncio.to_thread(self._record, judged, sorted(packs.documents), activate)
        if recorded is None:  # a document was deleted meanwhile: a new job learns without it
            await self._adapters.forget(job.tenant, [adapter.id])
            raise Stopped
        await asyncio.to_thread(shutil.rmtree, self._run(job), ignore_errors=True)
        active = recorded.state is AdapterState.ACTIVE
        verdict = judgement.verdict
        if activate and not active:
            verdict += "; another adapter was activated meanwhile"
        return self._receipt(lesson, adapter.id, active, verdict, adapter.examples, held_out, steps, seconds)

    def _record(self, adapter: Adapter, documents: Sequence[str], activate: bool) -> Adapter | None:
        with contextlib.suppress(NotFound):  # an earlier try came so far
            return self._ledger.get_adapter(adapter.tenant, adapter.memory, adapter.id)
        return self._ledger.add_adapter(adapter, documents, activate)

    @staticmethod
    def _receipt(
        lesson: Lesson,
        adapter: str,
        activated: bool,
        verdict: str,
        examples: int,
        held_out: int,
        steps: int = 0,
        seconds: int = 0,
    ) -> Mapping[str, str | int]:
        return {
            "memory": memory_name(lesson.memory),
            "adapter": adapter_name(lesson.memory, adapter) if adapter else "",
            "activated": int(activated),
            "verdict": verdict,
            "examples": examples,
            "held_out": held_out,
            "steps": steps,
            "seconds": seconds,
        }
