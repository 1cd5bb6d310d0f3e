"""`memoryd serve | doctor | reindex | demo | eval | train-compressor`."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path
from typing import Any

from memoryd import __version__, collector, config, log
from memoryd.config import Settings
from memoryd.errors import MemorydError

EX_CONFIG = 78  # sysexits.h: what is wrong is in the settings, starting again would not help


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="memoryd", description="The long-term memory daemon for LLM agents.")
    parser.add_argument("--version", action="version", version=f"memoryd {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, purpose in (
        ("serve", "run the daemon"),
        ("doctor", "check this installation and say what to do"),
        ("reindex", "rebuild the index of every tenant from the texts that are kept"),
    ):
        _add_settings(commands.add_parser(name, help=purpose, allow_abbrev=False))  # a beginning of a flag is no flag
    commands.add_parser("demo", help="write a book into a daemon and ask it questions", add_help=False)
    evals = commands.add_parser("eval", help="measure quality: `memoryd eval reader`, `compression` or `learning`")
    kinds = evals.add_subparsers(dest="kind", required=True, metavar="kind")
    for name, purpose in (
        ("reader", "what the reader answers from raw text"),
        ("compression", "what is answered from compressed embeddings"),
        ("learning", "what learning adds on real memories"),
    ):
        kinds.add_parser(name, help=purpose, add_help=False)
    commands.add_parser("train-compressor", help="train a compressor for a base model", add_help=False)
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file of settings (or MEMORYD_CONFIG)")
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = f" [{default}]" if default not in ("", None) else ""
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, dest=name, metavar="…", default=argparse.SUPPRESS, help=f"{field.description}{shown}")


def _settings(arguments: argparse.Namespace) -> Settings:
    flags: dict[str, Any] = {k: v for k, v in vars(arguments).items() if k in Settings.model_fields}
    return config.load(arguments.config, flags=flags)


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 1 failed, 2 usage, 78 a setting is bad."""
    arguments, rest = _parser().parse_known_args(argv)
    if arguments.command == "demo":
        from memoryd import demo

        return demo.main(rest)
    if arguments.command == "eval":
        return _eval(arguments.kind, rest)
    if arguments.command == "train-compressor":
        from memoryd.learn import train_compressor_cli

        return train_compressor_cli.main(rest)
    if rest:
        help_ = f"memoryd {arguments.command} --help"
        print(f"memoryd {arguments.command}: no such setting: {rest[0]} (see {help_})", file=sys.stderr)
        return EX_CONFIG
    os.umask(0o077)  # what is kept is for this user alone, whoever made the data directory
    try:
        settings = _settings(arguments)
        log.configure(settings.log_level, settings.log_format)
        if arguments.command == "doctor":
            from memoryd import doctor

            return doctor.check(settings)
        with collector.loading():
            from memoryd.app import Daemon, request_reindex_of_all

        if arguments.command == "reindex":
            return request_reindex_of_all(settings)
        return asyncio.run(Daemon(settings).run())
    except MemorydError as error:
        print(f"memoryd: {error.message}", file=sys.stderr)
        return EX_CONFIG if error.reason == "BAD_SETTING" else 1
    except KeyboardInterrupt:
        return 130


def _eval(kind: str, options: list[str]) -> int:
    if kind == "compression":
        from memoryd.eval import compression

        return compression.main(options)
    if kind == "learning":
        from memoryd.eval import learning

        return learning.main(options)
    from memoryd.eval import reader

    return reader.main(options)


if __name__ == "__main__":
    sys.exit(main())
