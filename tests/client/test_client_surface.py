"""What the package shows to the world: exactly this, in two shapes that agree, and typed."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import memoryd_client
import pytest
from google.protobuf import descriptor_pool
from memoryd_client import _wire

from memoryd.v1 import memory_pb2

PAIRS = [
    ("Client", "AsyncClient"),
    ("Memory", "AsyncMemory"),
    ("Memories", "AsyncMemories"),
    ("Documents", "AsyncDocuments"),
    ("Examples", "AsyncExamples"),
    ("Adapters", "AsyncAdapters"),
    ("Jobs", "AsyncJobs"),
    ("Admin", "AsyncAdmin"),
    ("Tenants", "AsyncTenants"),
    ("Keys", "AsyncKeys"),
    ("Answer", "AsyncAnswer"),
    ("WriteResult", "AsyncWriteResult"),
]
ERRORS = [
    "AlreadyExists",
    "Cancelled",
    "DataLoss",
    "DeadlineExceeded",
    "FailedPrecondition",
    "InternalError",
    "InvalidArgument",
    "JobFailed",
    "MemorydError",
    "NotFound",
    "PermissionDenied",
    "ResourceExhausted",
    "Unauthenticated",
    "Unavailable",
]
TYPES = [
    "Adapter",
    "AdapterState",
    "AddedExamples",
    "AnswerEvent",
    "ApiKey",
    "CompressReceipt",
    "Context",
    "Document",
    "DocumentKind",
    "EraseReceipt",
    "Example",
    "FieldViolation",
    "FinishReason",
    "HealthStatus",
    "Job",
    "JobState",
    "JudgedKind",
    "Judgement",
    "LearnReceipt",
    "Lineage",
    "LossPoint",
    "MemoryInfo",
    "Message",
    "Metadata",
    "MetadataValue",
    "Mode",
    "NewApiKey",
    "Origin",
    "Receipt",
    "ReindexReceipt",
    "Retry",
    "Source",
    "Sources",
    "Stage",
    "StudyReceipt",
    "Tenant",
    "TenantUsage",
    "Text",
    "Tls",
    "Usage",
    "Verdict",
]


def test_exactly_this_is_exported() -> None:
    expected = {*ERRORS, *TYPES, *(name for pair in PAIRS for name in pair), "__version__"}
    assert set(memoryd_client.__all__) == expected
    modules = {n for n, v in vars(memoryd_client).items() if inspect.ismodule(v)}
    assert all(name.startswith("_") for name in modules)


@pytest.mark.parametrize(("blocking", "asyncio"), PAIRS)
def test_both_shapes_agree(blocking: str, asyncio: str) -> None:
    one, other = _surface(getattr(memoryd_client, blocking)), _surface(getattr(memoryd_client, asyncio))
    assert one == other


def _surface(kind: type[Any]) -> dict[str, Any]:
    """Public names to their parameters (names, kinds, defaults) and docstrings."""
    out: dict[str, Any] = {}
    for name, member in inspect.getmembers(kind):
        if name.startswith("_") and name != "__init__":
            continue
        if callable(member) and (name != "__init__" or kind.__name__.endswith("Client")):
            parameters = inspect.signature(member).parameters.values()
            out[name] = [(p.name, p.kind, p.default) for p in parameters], name == "__init__" or inspect.getdoc(member)
        elif isinstance(member, property):
            out[name] = inspect.getdoc(member)
    return out


@pytest.mark.parametrize("name", [n for n in TYPES if dataclasses.is_dataclass(getattr(memoryd_client, n))])
def test_results_are_frozen_and_every_field_is_explained(name: str) -> None:
    kind = getattr(memoryd_client, name)
    assert kind.__dataclass_params__.frozen
    lines = [line.strip() for line in inspect.getsource(kind).splitlines()]
    for field in dataclasses.fields(kind):
        at = next(n for n, line in enumerate(lines) if line.startswith(f"{field.name}: "))
        assert lines[at + 1].startswith('"""'), f"{name}.{field.name} has no docstring"


def test_the_descriptors_are_the_clients_own() -> None:
    mine = _wire.message("Document")
    assert mine is not memory_pb2.Document
    assert mine.DESCRIPTOR.file.pool is not descriptor_pool.Default()
    assert mine.FromString(memory_pb2.Document(name="n", stage=2).SerializeToString()).stage == 2


def test_the_client_imports_nothing_but_grpcio_and_protobuf() -> None:
    script = "import sys, memoryd_client; print(*{m.partition('.')[0] for m in sys.modules})"
    run = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=True)
    # grpcio itself imports its companions (grpc_health, …) where they are installed.
    assert set(run.stdout.split()).isdisjoint({"memoryd", "protovalidate", "googleapis", "pydantic"})


SAMPLE = """
from memoryd_client import Adapter, AsyncClient, Client, Example, Job, Source, Sources, Stage, Text, Usage, Verdict

with Client("localhost:7437", timeout=5) as client:
    memory = client.memory("notes", create=True)
    stage: Stage = memory.write("text", metadata={"k": 1, "b": True}).wait(Stage.COMPRESSED, timeout=3).stage
    for event in memory.answer("When?"):
        match event:
            case Sources(sources=found):
                first: Source = found[0]
            case Text(text):
                print(text)
            case Usage():
                tokens: int = event.output_tokens
    job: Job = client.jobs.wait(memory.documents.delete("d"))
    memory.examples.add_many([("q", "a"), ("q", "a", ["d"]), {"question": "q", "answer": "a"}])
    memory.examples.add_many([Example(question="q", answer="a")])
    answer = memory.answer("When?", adapters=list(memory.adapters.list()))
    example: Example = memory.feedback(answer.question, answer, Verdict.GOOD, documents=["d"])
    active: Adapter | None = memory.adapters.roll_back()
    job = memory.learn(epochs=2)
    hits: list[Source] = client.search(memory, "ferry") + client.search([memory, "other"], "ferry")
    secret: str = client.admin.keys.create(client.admin.tenants.create("red")).secret

async def main() -> None:
    async with AsyncClient() as client:
        memory = client.memory("notes")
        result = await memory.upload("book.txt")
        await result.wait()
        async for event in memory.answer("When?"):
            if isinstance(event, Text):
                print(event.text)
        text: str = await memory.answer("When?").text
        names: list[str] = [d.name async for d in memory.documents.list()]
"""
WRONG = [
    'client.memory("notes").write(1)',
    'client.memory("notes").write("text", metadata={"k": [1]})',
    'client.memory("notes").answer("When?", mode="TEXT")',
    'client.memory("notes").documents.get("d").title = "other"',
    'n: int = client.memory("notes").answer("When?").text',
    'client.memory("notes").answer("When?", adapters={"a": "b"})',
    'client.memory("notes").feedback("q", "a", "GOOD")',
    'client.memory("notes").examples.add_many(["q", "a"])',
    'client.search(1, "ferry")',
    'client.jobs.list(filter="done=true")',
]


def test_a_users_types_are_checked(tmp_path: Path) -> None:
    right, wrong = tmp_path / "right.py", tmp_path / "wrong.py"
    right.write_text(SAMPLE)
    wrong.write_text("\n".join(["from memoryd_client import Client", "client = Client()", *WRONG, ""]))
    run = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--cache-dir", tmp_path / "cache", right, wrong],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    complaints = run.stdout.splitlines()
    assert not [c for c in complaints if "right.py" in c], run.stdout + run.stderr
    lines = {c.split(":")[1] for c in complaints if "wrong.py" in c and ": error:" in c}
    assert lines == {str(n) for n in range(3, 3 + len(WRONG))}, run.stdout + run.stderr
