"""`python -m bench`: starts a daemon on a temporary directory, measures it, and writes docs/figures/bench.json."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from memoryd_client import AsyncClient

from bench.answer import answer
from bench.compress import compress
from bench.lab import row
from bench.search import fill, search
from bench.stats import median
from bench.write import acknowledge, searchable, writers
from memoryd.eval import figures
from memoryd.eval.figures import Row
from memoryd.running import running_daemon

STARTS = 3
LOAD = "load of the machine before"
GROUPS = ("start", "write", "answer", "compress", "search")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", action="append", choices=GROUPS, help="this group; may be repeated [all]")
    chosen = parser.parse_args(argv).only or list(GROUPS)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        rows = _measure(Path(directory), chosen)
    kept = [r for r in _earlier() if r.name.partition(":")[0] not in (*chosen, "machine")]
    order = ("machine", *GROUPS)
    loads = [row(f"{group}: {LOAD}", _LOAD, "") for group in chosen]
    every = sorted([*_machine(), *kept, *loads, *rows], key=lambda r: order.index(r.name.partition(":")[0]))
    figures.write("bench", every)
    figures.render_all()
    _say(f"\nTook {time.monotonic() - began:.0f} s. The figures are in docs/figures/bench.json and docs/performance.md.")
    return 1 if any(r.met is False for r in rows) else 0


def _measure(data_dir: Path, chosen: Sequence[str]) -> list[Row]:
    """The first daemon converts the models and takes writes and answers; the last one finds a full index."""
    rows: list[Row] = []
    began = time.monotonic()
    with running_daemon(data_dir) as target:
        rows += _said([row("start: the first, which prepares the models", time.monotonic() - began, "s")])
        if "write" in chosen:
            rows += _run(target, acknowledge) + _run(target, searchable) + _run(target, writers)
        if "answer" in chosen:
            rows += _run(target, lambda client: answer(client, data_dir))
    if "start" in chosen:
        starts = []
        for _ in range(STARTS):
            began = time.monotonic()
            with running_daemon(data_dir):
                starts.append(time.monotonic() - began)
        rows += _said([row("start: again", median(starts), "s")])
    if "compress" in chosen:
        rows += _said(compress(data_dir))
    if "search" in chosen:
        rows += _said(asyncio.run(fill(data_dir)))
        with running_daemon(data_dir) as target:
            rows += _run(target, search)
    return [r for r in rows if r.name.partition(":")[0] in chosen]


def _run(target: str, benchmark: Callable[[AsyncClient], Awaitable[list[Row]]]) -> list[Row]:
    async def run() -> list[Row]:
        async with AsyncClient(target) as client:
            return await benchmark(client)

    return _said(asyncio.run(run()))


def _said(rows: list[Row]) -> list[Row]:
    for r in rows:
        floor = f"  ({r.ratio:.2f}x of {r.baseline:.3g})" if r.ratio is not None else ""
        _say(f"{r.name:<62} {r.value:>9.3g} {r.unit}{floor}{'  AIM MISSED: ' + r.aim if r.met is False else ''}")
    return rows


def _machine() -> list[Row]:
    """What it was measured on: figures of different machines must not be held against each other."""
    return [row("machine: CPU cores", len(os.sched_getaffinity(0)), "cores")]


def _earlier() -> list[Row]:
    try:
        return figures.read("bench")
    except FileNotFoundError:
        return []


def _say(text: str) -> None:
    print(text, flush=True)


_LOAD = os.getloadavg()[0]

if __name__ == "__main__":
    sys.exit(main())
