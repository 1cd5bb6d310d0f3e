"""A teacher over real HTTP: what it is sent, what is read of its replies, what is said of its failures, and what never is."""

from __future__ import annotations

import json
import socket
import threading
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memoryd.errors import FailedPrecondition, InvalidArgument, MemorydError, Unavailable
from memoryd.learn.study import Asked
from memoryd.learn.teacher import Teacher, read_pairs

TEXT, TITLE, KEY = "Caroline moved to Lisbon in May.", "Diary of Caroline", "sk-secret-key"
PAIRS = [("Where did she move?", "Lisbon"), ("When was that?", "in May")]
ARRAY = json.dumps([{"question": q, "answer": a} for q, a in PAIRS], indent=1)
JSON = "application/json"


def reply(content: Any, **changed: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 90, "completion_tokens": 30, "total_tokens": 120}
    made = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    return json.dumps(made | changed).encode()


class Endpoint(ThreadingHTTPServer):
    """Replies to everything with what it is told to, and keeps what it was sent."""

    status, kind, body = 200, JSON, reply(ARRAY)

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, dict[str, Any]]] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, self.headers["Authorization"], sent))
        self.send_response(self.server.status)
        self.send_header("Content-Type", self.server.kind)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with Endpoint() as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        yield server
        server.shutdown()
        serving.join()


async def ask(endpoint: Endpoint, key: str = KEY) -> Asked:
    return await Teacher(endpoint.url, "teacher-1", key).ask(TEXT, TITLE)


async def refused(endpoint: Endpoint) -> MemorydError:
    """The error, of which nothing tells what was sent."""
    with pytest.raises(MemorydError) as caught:
        await ask(endpoint)
    told = "".join(traceback.format_exception(caught.value)) + repr(caught.value.details)
    for secret in (TEXT, TITLE, KEY, "Caroline", "Lisbon"):
        assert secret not in told
    return caught.value


async def test_the_passage_is_sent_with_its_title_and_the_key(endpoint: Endpoint) -> None:
    assert await ask(endpoint) == Asked(PAIRS, 90, 30)
    ((path, key, sent),) = endpoint.seen
    assert (path, key, sent["model"]) == ("/v1/chat/completions", f"Bearer {KEY}", "teacher-1")
    (message,) = sent["messages"]
    assert message["role"] == "user"
    assert message["content"].endswith(f"\n\n{TITLE}\n{TEXT}")
    assert '[{"question": "…", "answer": "…"}]' in message["content"]


async def test_what_is_discussed_is_asked_for_in_sentences(endpoint: Endpoint) -> None:
    teacher = Teacher(endpoint.url, "teacher-1", KEY)
    assert (await teacher.discuss(f"Ann: {TEXT} {{so}}\nBob: I see.", TITLE)).pairs == PAIRS
    ((_, _, sent),) = endpoint.seen
    content = sent["messages"][0]["content"]
    assert content.endswith(f"\n\n{TITLE}\nAnn: {TEXT} {{so}}\nBob: I see.")
    assert "sentences" in content


async def test_braces_in_a_passage_are_its_own(endpoint: Endpoint) -> None:
    await Teacher(endpoint.url, "m").ask("{count} {text} {", "")
    ((_, key, sent),) = endpoint.seen
    assert sent["messages"][0]["content"].endswith("\n\n{count} {text} {")
    assert key == "Bearer none", "an endpoint of one's own may need no key"


def test_it_is_known_by_its_models_name() -> None:
    assert Teacher("http://127.0.0.1:9/v1", "teacher-1").name == "teacher-1"


async def test_a_reply_without_usage_is_read(endpoint: Endpoint) -> None:
    for body in (reply(ARRAY, usage=None), reply(ARRAY, usage={}), reply(ARRAY, usage={"prompt_tokens": None})):
        endpoint.body = body
        assert await ask(endpoint) == Asked(PAIRS)


@pytest.mark.parametrize("content", [None, "", "I can't help with that.", "[", "[]", "{}"])
async def test_a_reply_without_questions_has_none(endpoint: Endpoint, content: str | None) -> None:
    for body in (reply(content), reply(content, choices=[])):  # no choices: what was asked is filtered out
        endpoint.body = body
        assert await ask(endpoint) == Asked([], 90, 30)


# --- failures ---


@pytest.mark.parametrize("status", [429, 500, 502, 503, 529])
async def test_one_that_is_busy_or_down_is_tried_again_later(endpoint: Endpoint, status: int) -> None:
    endpoint.status, endpoint.body = status, json.dumps({"error": {"message": f"bad: {TEXT} {KEY}"}}).encode()
    error = await refused(endpoint)
    assert isinstance(error, Unavailable)
    assert error.reason == "TEACHER_UNAVAILABLE"
    assert len(endpoint.seen) == 1, "to try again is the job's"


@pytest.mark.parametrize("status", [401, 403, 404, 409])
async def test_one_that_refuses_says_what_to_check(endpoint: Endpoint, status: int) -> None:
    endpoint.status, endpoint.body = status, json.dumps({"error": {"message": f"bad: {TEXT} {KEY}"}}).encode()
    error = await refused(endpoint)
    assert isinstance(error, FailedPrecondition)
    assert error.reason == "TEACHER_REFUSES"
    assert error.message == f"the teacher refuses with {status}: check teacher_url, teacher_model and teacher_key"


@pytest.mark.parametrize("status", [400, 413, 422])
async def test_one_that_refuses_what_was_sent_says_so(endpoint: Endpoint, status: int) -> None:
    endpoint.status, endpoint.body = status, json.dumps({"error": {"message": f"bad: {TEXT} {KEY}"}}).encode()
    error = await refused(endpoint)
    assert isinstance(error, InvalidArgument)
    assert (error.reason, error.message) == (
        "TEACHER_REFUSES_PASSAGE",
        f"the teacher refuses a passage with {status}: check teacher_model",
    )


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (JSON, f"garbage: {TEXT}".encode()),
        (JSON, b""),
        (JSON, b"\xff\xfe"),
        (JSON, b"null"),
        (JSON, b"[]"),
        (JSON, b'"text"'),
        (JSON, reply(ARRAY, choices="none")),
        (JSON, reply(ARRAY, choices=[{}])),
        (JSON, reply(ARRAY, choices=[{"message": None}])),
        (JSON, reply(ARRAY, choices=[None])),
        (JSON, b'{"error": "quota"}'),
        (JSON, reply([{"type": "text", "text": ARRAY}])),
        ("text/html", f"<h1>{TEXT}</h1>".encode()),
        ("text/plain", b""),
    ],
)
async def test_what_is_no_chat_completion_is_unreadable(endpoint: Endpoint, kind: str, body: bytes) -> None:
    endpoint.kind, endpoint.body = kind, body
    error = await refused(endpoint)
    assert isinstance(error, FailedPrecondition)  # asking again for ever would not help
    assert error.reason == "TEACHER_UNREADABLE"


async def test_one_that_is_not_there_is_tried_again_later() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(Unavailable) as caught:
            await Teacher(url, "m", KEY).ask(TEXT, TITLE)
    assert caught.value.message == "the teacher can't answer now: APIConnectionError"


async def test_one_that_breaks_off_is_tried_again_later(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Handler, "send_header", lambda self, name, value: None)
    monkeypatch.setattr(_Handler, "send_response", lambda self, status: self.wfile.write(b"HTTP/1.0 2"))
    monkeypatch.setattr(_Handler, "end_headers", lambda self: None)
    endpoint.body = b""
    assert isinstance(await refused(endpoint), Unavailable)


# --- what is read of a reply ---


@pytest.mark.parametrize(
    "around",
    [
        "{}",
        "Here are the questions:\n```json\n{}\n```\nAsk me for more!",
        "Of passage [1], as asked [2 of them]:\n{}\nSee [1].",
        '<think>I should write [{{"question": ...}}]. Let me see [1, 2].</think>\n{}',
        "[]\n{}",
    ],
)
def test_prose_around_the_array_is_passed_over(around: str) -> None:
    assert read_pairs(around.format(ARRAY)) == PAIRS


def test_two_arrays_are_read_both() -> None:
    assert read_pairs(f"A first try: {ARRAY}, and now: {ARRAY}") == PAIRS * 2


def test_questions_in_an_object_are_found() -> None:
    assert read_pairs(f'{{"questions": {ARRAY}}}') == PAIRS


def test_what_is_no_pair_is_passed_over() -> None:
    good = {"question": " Who? ", "answer": "\nCaroline"}
    bad: list[Any] = [
        {"question": "Who?"},
        {"answer": "Caroline"},
        {"question": "", "answer": "x"},
        {"question": "x", "answer": " "},
        {"question": 1, "answer": 2},
        {"question": "x", "answer": ["y"]},
        {"question": "x", "answer": None},
        "Who?",
        None,
        7,
        ["Who?", "Caroline"],
    ]
    assert read_pairs(json.dumps([bad[0], good, *bad])) == [("Who?", "Caroline")]


@pytest.mark.parametrize("bad", ["\0", "\ud83d", "x" * 8193])
def test_what_no_store_could_keep_is_passed_over(bad: str) -> None:
    rows = [{"question": f"Who{bad}?", "answer": "x"}, {"question": "Who?", "answer": f"x{bad}"}]
    assert read_pairs(json.dumps([*rows, {"question": "Who?", "answer": "Zoë 🎉"}])) == [("Who?", "Zoë 🎉")]


@pytest.mark.parametrize("hostile", ["[" * 100_000, '[{"a":' * 20_000, '[{"question": 1' + "0" * 10_000 + "}]", "[{" * 50_000])
def test_hostile_replies_have_no_questions(hostile: str) -> None:
    assert read_pairs(hostile) == []


@given(st.text(alphabet='[]{}",:\\ questionanswer\n1', max_size=200) | st.text())
def test_any_reply_can_be_read(said: str) -> None:
    for question, answer in read_pairs(said):
        assert question == question.strip() != ""
        assert answer == answer.strip() != ""


@given(st.lists(st.tuples(st.text(min_size=1), st.text(min_size=1)), max_size=5), st.text(alphabet="ab[] \n", max_size=20))
def test_what_was_written_is_read(pairs: list[tuple[str, str]], around: str) -> None:
    said = json.dumps([{"question": q, "answer": a} for q, a in pairs])
    found = read_pairs(f"{around}{said}{around}")
    assert found == [(q.strip(), a.strip()) for q, a in pairs if q.strip() and a.strip() and "\0" not in q + a]
