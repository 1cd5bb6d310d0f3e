"""Invariants of the whole that can be read from the source or from a process that only imports it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "memoryd"

# What is made once and handed to everyone else, and where it is made: app.py is the daemon's composition root and
# worker/__main__.py the worker's; doctor.py is a program of its own that looks at stores without a daemon.
COMPONENTS = {
    "AdapterEraser",
    "AdapterStore",
    "AdminServicer",
    "Answerer",
    "Assembler",
    "Authenticator",
    "CallInterceptor",
    "CompressJob",
    "ContextBuilder",
    "ContextMaker",
    "DataDirLock",
    "DocumentServicer",
    "DocumentWriter",
    "EmbeddingStore",
    "EraseJob",
    "FsspecBlobs",
    "Indexer",
    "JobRunner",
    "JobServicer",
    "LearnJob",
    "LearnPolicy",
    "LearnServicer",
    "LocalAsker",
    "Loop",
    "MemoryServicer",
    "MilvusIndex",
    "MilvusServer",
    "Models",
    "OperationsServicer",
    "RecallServicer",
    "ReindexJob",
    "Runner",
    "Runs",
    "Searcher",
    "SqlLedger",
    "StudyJob",
    "Teacher",
    "Texts",
    "ValkeyCache",
    "ValkeyServer",
    "WorkerProcess",
    "WorkerServicer",
}
ROOTS = {"app.py", "worker/__main__.py", "doctor.py"}


def constructions() -> list[tuple[str, str, int]]:
    """(component, file, line) of every call, in the package, of a component's class."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        name = str(path.relative_to(ROOT))
        if name.startswith(("v1/", "buf/", "worker/v1/")):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                named = [node.func, *node.args]  # as an argument, too: `asyncio.to_thread(MilvusIndex, …)`
                called = {getattr(part, "id", getattr(part, "attr", "")) for part in named}
                found += [(component, name, node.lineno) for component in called & COMPONENTS]
    return found


def test_only_the_composition_roots_construct_components() -> None:
    elsewhere = [f"{file}:{line} makes a {name}" for name, file, line in constructions() if file not in ROOTS]
    assert elsewhere == []


def test_every_component_that_is_listed_is_made_somewhere() -> None:
    """So that a renamed class does not slip out of the test above."""
    assert {name for name, _, _ in constructions()} >= COMPONENTS


@pytest.mark.parametrize("module", ["memoryd.app", "memoryd.__main__", "memoryd.doctor"])
def test_the_daemons_process_never_loads_torch(module: str) -> None:
    code = f"import sys, {module}; print([name for name in ('torch', 'transformers', 'peft') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=200)
    assert done.stdout.strip() == "[]"
