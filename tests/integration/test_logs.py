"""The log names every call by request id, tenant and method, and never holds a text, a question, an answer or a key."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import grpc
import pytest
from memoryd_client import Client, InvalidArgument, Mode, NotFound, Stage

from memoryd.v1 import memory_pb2
from tests.integration.conftest import Keyed
from tests.integration.support import Api, refused, until


def lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]


def calls(log: Path, **wanted: str) -> list[dict[str, Any]]:
    return [line for line in lines(log) if line.get("event") == "call" and wanted.items() <= line.items()]


def test_every_call_is_one_line_with_request_id_tenant_method_and_outcome(keyed: Keyed) -> None:
    request_id = uuid.uuid4().hex
    with Api(keyed.daemon.target, keyed.red) as api:
        metadata = (*api.metadata, ("x-request-id", request_id))
        request = memory_pb2.GetMemoryRequest(name="memories/nowhere")
        failure = refused(lambda: api.memories.GetMemory(request, metadata=metadata))
    assert failure.request_id == request_id
    until(lambda: calls(keyed.daemon.log, request_id=request_id), "the call is logged")
    (line,) = calls(keyed.daemon.log, request_id=request_id)
    assert (line["tenant"], line["outcome"], line["level"]) == ("red", "NOT_FOUND", "info")
    assert line["method"] == "/memoryd.v1.MemoryService/GetMemory"
    assert line["ms"] > 0


def test_a_call_without_a_request_id_is_given_one_and_told_it(keyed: Keyed) -> None:
    with Api(keyed.daemon.target, keyed.red) as api:
        _, call = api.memories.ListMemories.with_call(memory_pb2.ListMemoriesRequest(), metadata=api.metadata)
    trailers = dict(call.trailing_metadata())
    until(lambda: calls(keyed.daemon.log, request_id=trailers["x-request-id"]), "the call is logged")


def test_a_refused_key_is_logged_as_what_it_is(keyed: Keyed) -> None:
    before = len(calls(keyed.daemon.log, outcome="UNAUTHENTICATED"))
    with Api(keyed.daemon.target, "mk_wrong") as api:
        failure = refused(lambda: api.call(api.memories.ListMemories, memory_pb2.ListMemoriesRequest()))
    assert failure.code is grpc.StatusCode.UNAUTHENTICATED
    until(lambda: len(calls(keyed.daemon.log, outcome="UNAUTHENTICATED")) > before, "it is logged")


def test_no_log_holds_a_text_a_question_an_answer_or_a_key(keyed: Keyed, red: Client) -> None:
    """Through every way in: texts, titles, messages, metadata, questions, and all of it in requests that fail."""
    secret = f"zebra{uuid.uuid4().hex}"
    memory = red.memory("secretive", create=True)
    memory.info()
    red.memories.update(memory.name, description=secret, metadata={"key": secret})
    written = memory.write(f"The word is {secret}.", title=secret, metadata={"word": secret})
    memory.write_messages([{"role": "user", "content": f"I said {secret}.", "speaker": secret[:20]}]).wait()
    written.wait(Stage.COMPRESSED)
    memory.search(secret)
    memory.context(secret)
    for mode in (Mode.TEXT, Mode.COMPRESSED):
        memory.answer(f"What is {secret}?", mode=mode, max_tokens=2, stop=[secret[:20]]).text  # noqa: B018
    with pytest.raises(InvalidArgument):
        memory.write(f"{secret}\0")
    with pytest.raises(InvalidArgument):
        memory.write(secret, title=secret * 100)
    with pytest.raises(InvalidArgument):
        memory.answer(f"{secret} " * 200).text  # noqa: B018
    with pytest.raises(NotFound):
        red.memory("nowhere").search(secret)
    red.jobs.wait(memory.documents.delete(written.document))
    red.memories.delete(memory.name)

    logs = [keyed.daemon.log, *(keyed.daemon.data_dir / "logs").iterdir()]
    assert {log.name for log in logs} >= {"daemon.log", "milvus.log", "valkey.log", "worker.log"}
    for log in logs:
        content = log.read_text(errors="replace")
        for forbidden in (secret, secret[:20], keyed.red, keyed.blue, keyed.admin):
            assert forbidden not in content, f"{log.name} holds what it must not"
