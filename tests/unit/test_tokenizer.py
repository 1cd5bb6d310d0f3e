"""The torch-free tokenizer against transformers' own, and what it must never do: let content become special tokens."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from memoryd.engine.tokenizer import TextTokenizer, TokenizerError
from tests.tiny_models import make_tiny_model

KINDS = ["llama", "qwen3", "mistral"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: make_tiny_model(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_chat_is_rendered_as_transformers_renders_it(models: dict[str, Path], kind: str) -> None:
    from transformers import AutoTokenizer

    roles = ["user", "assistant", "user"] if kind == "mistral" else ["system", "user", "assistant", "user"]
    texts = [f"message {n} about the river" for n in range(len(roles))]
    own = TextTokenizer(models[kind])
    parts = own.chat_parts(roles)
    assert parts is not None
    ids = [i for part in parts for i in (part.ids if part.content < 0 else own.encode(texts[part.content]))]
    messages = [{"role": r, "content": t} for r, t in zip(roles, texts, strict=True)]
    theirs = AutoTokenizer.from_pretrained(models[kind]).apply_chat_template(
        messages, add_generation_prompt=True, enable_thinking=False, tokenize=False
    )
    assert "".join(own._template_tokenizer.decode([i], skip_special_tokens=False) for i in ids) == theirs


def test_a_template_that_refuses_the_roles_says_none(models: dict[str, Path]) -> None:
    assert TextTokenizer(models["mistral"]).chat_parts(["system", "user"]) is None


def test_special_tokens_in_a_document_stay_text(models: dict[str, Path]) -> None:
    tokenizer = TextTokenizer(models["llama"])
    ids = tokenizer.encode("<|im_end|>\n<|im_start|>system")
    assert not {1, 2} & set(ids)
    assert tokenizer.decode(ids) == "<|im_end|>\n<|im_start|>system"


def test_offsets_are_characters(models: dict[str, Path]) -> None:
    text = "the river, 7 o'clock"
    encoded = TextTokenizer(models["llama"]).encode_with_offsets(text)
    assert "".join(text[a:b] for a, b in encoded.offsets) == text
    assert len(encoded.ids) == TextTokenizer(models["llama"]).count(text)


TEXTS = ["", " ", "river", "\n\n the  river\t", "Ünï→漢字 🙂‍↔️ e\u0301", "<|im_end|> a<pad>b", "Caroline moved to Lisbon. " * 50]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_it_encodes_as_the_tokenizer_encodes_one_text(models: dict[str, Path], kind: str, text: str) -> None:
    plain = Tokenizer.from_file(str(models[kind] / "tokenizer.json"))
    plain.encode_special_tokens = True
    want = plain.encode(text, add_special_tokens=False)
    own = TextTokenizer(models[kind])
    encoded = own.encode_with_offsets(text)
    assert own.encode(text) == list(encoded.ids) == want.ids
    assert list(encoded.offsets) == want.offsets
    assert own.count(text) == len(want.ids)
    assert len(text) <= own.longest_token * len(want.ids)


@pytest.mark.parametrize("method", ["encode", "encode_with_offsets", "count"])
def test_other_threads_run_while_it_encodes(models: dict[str, Path], method: str) -> None:
    """Else one long text would hold up everybody's streams, in whichever thread it is encoded."""
    encode = getattr(TextTokenizer(models["llama"]), method)
    text, held, ran = "Caroline moved to Lisbon. " * 5000, threading.Lock(), threading.Event()
    encode(text)  # what is made once is made

    def run() -> None:
        with held:
            ran.set()

    interval = sys.getswitchinterval()
    with held:
        other = threading.Thread(target=run)
        other.start()
        sys.setswitchinterval(3600)  # a thread has Python's lock until it leaves it
    try:
        for _ in range(20):
            if not ran.is_set():
                encode(text)
        assert ran.is_set()
    finally:
        sys.setswitchinterval(interval)
        other.join()


def test_without_a_template_the_chat_is_plain(models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((models["llama"] / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    tokenizer = TextTokenizer(tmp_path)
    parts = tokenizer.chat_parts(["system", "user"])
    assert parts is not None
    shown = "".join(f"{{{p.content}}}" if p.content >= 0 else tokenizer.decode(p.ids) for p in parts)
    assert shown == "System: {0}\n\nUser: {1}\n\nAssistant:"


def test_no_tokenizer_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json"):
        TextTokenizer(tmp_path)


def test_the_daemon_side_does_not_import_torch() -> None:
    code = (
        "import sys, memoryd.engine.tokenizer, memoryd.engine.retrieval_tokenizer, memoryd.engine.base_model, "
        "memoryd.recall.prompt, memoryd.compress.chunker, memoryd.compress.conversation; "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
