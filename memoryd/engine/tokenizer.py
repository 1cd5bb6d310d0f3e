"""The base model's tokenizer without torch and without transformers: what the daemon process counts and renders with.

Text of documents and questions is always encoded as plain text: a document that contains ``<|im_end|>`` cannot end a
turn. Only the chat template's own text may become special tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from memoryd.errors import SettingsError

# A content's stand-in while the chat template is rendered: private-use characters that no template touches.
_MARK = "\ue0f0{}\ue0f1"


class TokenizerError(SettingsError):
    """The directory holds no tokenizer that can be used without the model's own code."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of a text and each token's character span in it."""

    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class TemplatePart:
    """A stretch of a rendered chat: the template's own token ids, or the place of message number ``content``."""

    ids: tuple[int, ...] = ()
    content: int = -1


class TextTokenizer:
    """Encodes, counts, decodes, and renders chats, for one tokenizer directory. Safe to share between threads.

    Texts go in as batches, of one too: only those leave Python's lock to other threads while they are encoded.
    """

    def __init__(self, path: Path) -> None:
        file = path / "tokenizer.json"
        if not file.is_file():
            raise TokenizerError(f"{path} has no tokenizer.json: save the model with a fast tokenizer")
        self._plain = Tokenizer.from_file(str(file))
        self._plain.encode_special_tokens = True
        self._plain.no_truncation()
        self._plain.no_padding()
        self._template_tokenizer = Tokenizer.from_file(str(file))
        self._path = path

    @cached_property
    def _config(self) -> Mapping[str, Any]:
        file = self._path / "tokenizer_config.json"
        return json.loads(file.read_text()) if file.is_file() else {}

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text: no special tokens are added or recognised."""
        return self._plain.encode_batch_fast([text], add_special_tokens=False)[0].ids

    def encode_with_offsets(self, text: str) -> Encoded:
        (encoding,) = self._plain.encode_batch([text], add_special_tokens=False)
        return Encoded(tuple(encoding.ids), tuple(encoding.offsets))

    def count(self, text: str) -> int:
        return self.count_batch([text])[0]

    def count_batch(self, texts: Sequence[str]) -> list[int]:
        """Token counts of many texts, on all cores."""
        return [len(e) for e in self._plain.encode_batch_fast(list(texts), add_special_tokens=False)]

    @cached_property
    def longest_token(self) -> int:
        """Characters of the longest token: text of more than `n` times as many takes more than `n` tokens. Not so only where a
        tokenizer folds text, a run of spaces say, before or while it encodes."""
        return max(map(len, self._plain.get_vocab()))

    def decode(self, ids: Sequence[int]) -> str:
        return self._plain.decode(list(ids), skip_special_tokens=True)

    def texts(self, vocabulary: int) -> list[str]:
        """What each id up to ``vocabulary`` adds to a text that ends with a letter; nothing, where it is no token."""
        before = self.encode("a")
        start = len(self._plain.decode(before, skip_special_tokens=False))
        known = [[*before, token] for token in range(min(vocabulary, self._plain.get_vocab_size()))]
        texts = [text[start:] for text in self._plain.decode_batch(known, skip_special_tokens=False)]
        return texts + [""] * (vocabulary - len(texts))

    @cached_property
    def chat_template(self) -> str | None:
        """The template's source, from ``chat_template.jinja`` or the tokenizer's configuration."""
        file = self._path / "chat_template.jinja"
        if file.is_file():
            return file.read_text()
        template = self._config.get("chat_template")
        if isinstance(template, list):  # several named templates: the one for plain chats
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
        return template

    def chat_parts(self, roles: Sequence[str]) -> list[TemplatePart] | None:
        """A chat with these roles, ready for the assistant's turn, with a place for each message's content.

        None if the template cannot show every message exactly once, as when it refuses a system role: fold the system
        text into the first user's message and ask again. Without a template a plain one is used.
        """
        marks = [_MARK.format(number) for number in range(len(roles))]
        messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
        try:
            rendered = self._render(messages)
        except jinja2.TemplateError:
            return None
        places = sorted((rendered.find(mark), number) for number, mark in enumerate(marks))
        if any(at < 0 or rendered.count(marks[number]) != 1 for at, number in places):
            return None
        parts: list[TemplatePart] = []
        end = 0
        for at, number in places:
            parts += [self._template_part(rendered[end:at]), TemplatePart(content=number)]
            end = at + len(marks[number])
        parts.append(self._template_part(rendered[end:]))
        return [part for part in parts if part.ids or part.content >= 0]

    def _template_part(self, text: str) -> TemplatePart:
        return TemplatePart(ids=tuple(self._template_tokenizer.encode(text, add_special_tokens=False).ids))

    def _render(self, messages: list[dict[str, str]]) -> str:
        if self._compiled is None:
            turns = "".join(f"{m['role'].capitalize()}: {m['content']}\n\n" for m in messages)
            return f"{self._special.get('bos_token', '')}{turns}Assistant:"
        return self._compiled.render(
            messages=messages, add_generation_prompt=True, enable_thinking=False, tools=None, **self._special
        )

    @cached_property
    def _special(self) -> dict[str, str]:
        """bos_token, eos_token and the like, as templates name them."""
        named = {k: v for k, v in self._config.items() if k.endswith("_token") and v}
        return {k: v["content"] if isinstance(v, dict) else v for k, v in named.items() if not isinstance(v, bool)}

    @cached_property
    def _compiled(self) -> jinja2.Template | None:
        if self.chat_template is None:
            return None
        # The environment that Hugging Face documents for chat templates: sandboxed, blocks trimmed, loop controls.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = lambda value, **_: json.dumps(value, ensure_ascii=False)
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
        return environment.from_string(self.chat_template)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
