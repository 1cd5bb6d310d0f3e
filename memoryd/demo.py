"""`memoryd demo`: starts a daemon, writes a book into a memory, and asks about it while the book is still being compressed."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import sys
import tempfile
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from memoryd_client import Client, Job, JobFailed, Memory, MemorydError, Mode, Source, Sources, Text, Usage

from memoryd.recall.prompt import REFUSAL
from memoryd.running import running_daemon
from memoryd.terminal import Terminal, printable

UNITS = {"chunk": "bytes", "index": "passages", "compress": "chunks"}
PATIENCE = 120.0  # seconds that the demo waits for the rest of the compression
_NAME = "around-the-world-in-eighty-days.txt"
_EXAMPLES = (Path(__file__).parents[1] / "examples", Path(__file__).parent / "assets" / "examples")  # a clone's, a wheel's
BOOK = next((folder / _NAME for folder in _EXAMPLES if (folder / _NAME).is_file()), _EXAMPLES[0] / _NAME)


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked; `expected` is a pattern of what the book says, or empty where we don't know."""

    text: str
    expected: str = ""


QUESTIONS = (
    Question("How much did Phileas Fogg pay for the elephant?", "two thousand pounds"),
    Question("Who was the master of the Tankadere?", "John Bunsby"),
    Question("Which company did the steamer Mongolia belong to?", "Peninsular and Oriental"),
    Question("How high is Bridger Pass above the level of the sea?", "seven thousand five hundred and twenty-four"),
    Question("How long did the buffaloes block the train?", "three full hours|three hours"),
)
UNANSWERED = Question("What is the name of Captain Nemo's submarine?", re.escape(REFUSAL))
COMPRESSED = Question("Why did Phileas Fogg dismiss James Forster?", "shaving-water|eighty-four degrees")


class Demo:
    """One run against one daemon."""

    def __init__(self, terminal: Terminal, client: Client) -> None:
        self._terminal = terminal
        self._client = client
        self._warned: set[str] = set()

    def run(self, text: str, name: str, questions: Sequence[Question]) -> None:
        """Writes, asks while it compresses, shows the compressed mode. `name` is the title of a text that begins with none."""
        title = next(iter(text.split("\n")), "").strip()[:80] or name
        memory = self._client.memory("demo", create=True)
        memory.info()  # so that the time shown is that of the write alone
        began = time.perf_counter()
        written = memory.write(text, title=title)
        took = (time.perf_counter() - began) * 1000
        again = " (it was there already)" if written.already_stored else ""
        self._terminal.line(
            f"Wrote {self._terminal.bold(title)}: {len(text.split()):,} words, acknowledged in {took:.0f} ms{again}."
        )
        self._follow(written.job, "index")
        document = written.wait()
        self._terminal.line(
            f"Searchable after {time.perf_counter() - began:.1f} s: {document.token_count:,} tokens in "
            f"{document.chunk_count} chunks. Compression goes on while we ask."
        )
        for question in questions:
            self._ask(memory, question)
        self._terminal.line()
        if not self._follow(written.job, "compress"):
            self._terminal.line(
                self._terminal.dim("The rest takes minutes on this machine; we do not wait, and it would go on by itself.")
            )
        self._terminal.line("The same memory, read in COMPRESSED mode (compressed embeddings instead of text):")
        self._ask(memory, COMPRESSED if questions[-1] is UNANSWERED else questions[0], Mode.COMPRESSED)

    def _ask(self, memory: Memory, question: Question, mode: Mode | None = None) -> None:
        terminal = self._terminal
        terminal.line("\n" + terminal.bold(f"? {question.text}"))
        basis, text = None, ""
        terminal.piece("  ")
        for event in memory.answer(question.text, mode=mode, max_tokens=64):
            match event:
                case Sources():
                    basis = event
                case Text():
                    terminal.piece(terminal.good(printable(event.text)))
                    text += event.text
                case Usage():
                    terminal.piece("\n")
                    self._show_basis(basis, event.cited, question.text + " " + text, refused=REFUSAL in text)
                    self._show_usage(event)
        if question.expected and not re.search(question.expected, text, re.IGNORECASE):
            said = "is silent" if question is UNANSWERED else "says: " + question.expected.split("|")[0]
            terminal.line(terminal.warn(f"  wrong: the book {said} (the embedded base model has 135M parameters)"))

    def _show_basis(self, basis: Sources | None, cited: Sequence[int], words: str, refused: bool) -> None:
        terminal = self._terminal
        if basis is None or not basis.sources:
            return
        for warning in basis.warnings:
            if warning not in self._warned:  # most would come with each answer
                self._warned.add(warning)
                terminal.line(terminal.warn(f"  warning: {warning}"))
        if refused:
            terminal.line(terminal.dim(f"  looked at {len(basis.sources)} passages"))
            return
        named = [basis.sources[i] for i in cited] or basis.sources
        source, quote = max(((s, _best_sentence(s, words)) for s in named), key=lambda x: _shared(x[1], words))
        where = f"{printable(source.title)}, characters {source.start:,}-{source.end:,}, score {source.score:.3f}"
        by = "cited" if cited else "nearest"
        terminal.line(terminal.dim(f"  {by}: {where} ({len(basis.sources) - 1} more passages)"))
        terminal.line(terminal.dim(f"  “{printable(textwrap.shorten(quote, 200, placeholder=' …'))}”"))

    def _show_usage(self, usage: Usage) -> None:
        read = usage.soft_tokens + usage.text_tokens
        soft = f", {usage.soft_tokens:,} of them compressed embeddings" if usage.soft_tokens else ""
        self._terminal.line(
            self._terminal.dim(
                f"  read {read:,} tokens{soft}; the whole text is {usage.full_source_tokens:,}: "
                f"{usage.full_source_tokens / max(1, read):.0f}x fewer. First token after "
                f"{usage.time_to_first_token_ms / 1000:.2f} s, all after {usage.total_ms / 1000:.2f} s."
            )
        )

    def _follow(self, job: str, until: str) -> bool:
        """Shows a job's progress to the end of a stage; False where compressing would take longer than our patience."""
        first: Job | None = None
        began = time.monotonic()
        for now in self._client.jobs.watch(job):
            if until == "index" and (now.stage == "compress" or (now.stage == "index" and now.done == now.total > 0)):
                return True
            if first is None or now.stage != first.stage or now.done < first.done:
                first, began = now, time.monotonic()
            elapsed = time.monotonic() - began
            rate = (now.done - first.done) / elapsed if elapsed > 1 else 0.0
            left = (now.total - now.done) / rate if rate else 0.0
            if now.total and not now.ended:
                pace = f", {rate:.1f} a second, {left:.0f} s left" if rate else ""
                self._terminal.progress(f"  {now.stage}: {now.done:,} of {now.total:,} {UNITS.get(now.stage, '')}{pace}")
            if now.stage == until == "compress" and elapsed > 8 and left > PATIENCE:
                self._terminal.line(f"  {now.done} of {now.total} chunks are compressed, {rate:.1f} a second.")
                return False
        if now.state.name != "SUCCEEDED":
            raise JobFailed(now)
        self._terminal.line(f"  All {now.total} chunks are compressed.")
        return True


def _shared(text: str, words: str) -> int:
    """How many words of four letters or more both have."""
    return len(set(re.findall(r"\w{4,}", text.lower())) & set(re.findall(r"\w{4,}", words.lower())))


def _best_sentence(source: Source, words: str) -> str:
    return max(re.split(r"(?<=[.!?]) ", source.text.replace("\n", " ")), key=lambda sentence: _shared(sentence, words))


def _closing(terminal: Terminal, data_dir: Path | None) -> None:
    here = Path(sys.executable).with_name("memoryd")
    memoryd = "memoryd" if shutil.which("memoryd") or not here.exists() else os.path.relpath(here)
    kept = f" --data-dir {data_dir}" if data_dir else ""
    terminal.line(f"\n{terminal.bold('What to try next')}")
    for command, about in (
        (f"{memoryd} serve{kept}", "a daemon that stays, on 127.0.0.1:7437"),
        (f"{memoryd} demo --target 127.0.0.1:7437", "this again, on that daemon"),
        (f'{memoryd} demo --book FILE --question "…"', "a text and questions of your own"),
        (f"{memoryd} doctor{kept}", "what this installation runs on, and whether it is sound"),
    ):
        terminal.line(f"  {command:<52} {terminal.dim(about)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 1 failed, 130 Ctrl-C."""
    parser = argparse.ArgumentParser(prog="memoryd demo", description=__doc__)
    parser.add_argument("--data-dir", type=Path, help="keep the daemon's data there [a temporary directory]")
    parser.add_argument("--target", help="ask a daemon that runs already, at host:port")
    parser.add_argument("--book", type=Path, default=BOOK, help="a plain text, UTF-8 [Around the World in Eighty Days]")
    parser.add_argument("--question", action="append", help="ask this instead; may be repeated")
    arguments = parser.parse_args(argv)
    questions = [*QUESTIONS, UNANSWERED]
    if arguments.question or arguments.book != BOOK:
        questions = [Question(q) for q in arguments.question or ["What is this text about?"]]
    terminal = Terminal()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the daemon and the temporary directory go too
    began = time.monotonic()
    try:
        text = arguments.book.read_text()  # before a daemon is started for it
        with contextlib.ExitStack() as stack:
            target = arguments.target
            if target is None:
                data_dir = arguments.data_dir or Path(stack.enter_context(tempfile.TemporaryDirectory()))
                terminal.progress("Starting the daemon; the first start on a data directory also prepares the models …")
                target = stack.enter_context(running_daemon(data_dir, "--log-format", "json"))
                terminal.line(f"The daemon is ready after {time.monotonic() - began:.1f} s.")
            Demo(terminal, stack.enter_context(Client(target))).run(text, arguments.book.name, questions)
            _closing(terminal, arguments.data_dir)
    except KeyboardInterrupt:
        terminal.line("\nStopped.")
        return 130
    except (MemorydError, OSError, UnicodeDecodeError) as error:
        print(f"memoryd demo: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
