"""`memoryd train-compressor`: the command line of `train_compressor`."""

from __future__ import annotations

import argparse
import math
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from memoryd.engine.base_model import EMBEDDED_MODEL, ensure_base_model
from memoryd.errors import MemorydError
from memoryd.learn.compressor_parts import KINDS
from memoryd.learn.compressor_recipe import RECIPES

_DTYPE = "of the base model; bfloat16 is the faster one on a CPU with AVX512-BF16 or AMX [bfloat16 on a GPU, else float32]"
_MOST_WORKERS = 8


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done or stopped by --minutes with a checkpoint, 1 failed, 130 Ctrl-C."""
    options = _parse(argv)
    import torch

    from memoryd.learn.train_compressor import train

    device = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    recipe = RECIPES[options.recipe or ("gpu" if device.startswith("cuda") else "cpu")]
    recipe = replace(recipe.of(options.kind).scaled(options.scale), seed=options.seed, micro=options.micro or recipe.micro)
    if options.threads:
        torch.set_num_threads(options.threads)
    hardware = torch.cuda.get_device_name(device) if device.startswith("cuda") else f"CPU ({platform.machine()})"
    try:
        path = ensure_base_model(options.base, options.data_dir)
        train(
            path,
            recipe,
            options.corpus,
            options.qa,
            options.out,
            device=device,
            minutes=options.minutes,
            checkpoint_every=options.checkpoint_every,
            model=options.base,
            hardware=hardware,
            start=options.start,
            dtype=options.dtype,
            workers=_workers(options.workers, device),
            say=lambda text: print(text, flush=True),
        )
    except KeyboardInterrupt:
        print("stopped: the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    except (MemorydError, OSError) as error:
        print(f"memoryd train-compressor: {error}", file=sys.stderr)
        return 1
    return 0


def _workers(asked: int | None, device: str) -> int:
    """On a CPU there is nothing to be won: they would take it from training."""
    if asked is not None:
        return asked
    return min(_MOST_WORKERS, max(1, len(os.sched_getaffinity(0)) - 2)) if device.startswith("cuda") else 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="memoryd train-compressor", description=__doc__)
    parser.add_argument("--base", default=EMBEDDED_MODEL, help=f"base model: a name or a directory [{EMBEDDED_MODEL}]")
    parser.add_argument("--corpus", type=Path, required=True, help="folder of *.jsonl.xz or .gz with rows {id, text}")
    parser.add_argument("--qa", type=Path, required=True, help="folder with squad.jsonl.xz and the reader's other data")
    parser.add_argument("--out", type=Path, required=True, help="checkpoints and the result; a run begun there so goes on")
    parser.add_argument("--start", type=Path, help="a compressor to begin from: an earlier run's, or the one that ships")
    parser.add_argument("--kind", choices=KINDS, default="pooled", help="which compressor")
    parser.add_argument("--recipe", choices=sorted(RECIPES), help="[that of the device]")
    parser.add_argument("--scale", type=float, default=1.0, help="this many times the recipe's steps, to rehearse it")
    parser.add_argument("--micro", type=int, default=0, help="samples that go through at a time [the recipe's]")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help=_DTYPE)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: torch's choice")
    parser.add_argument("--workers", type=int, help="processes that make samples ahead [0 on a CPU, else up to 8]")
    parser.add_argument("--data-dir", type=Path, default=Path("~/.memoryd").expanduser(), help="converted base models")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop with a checkpoint after so long")
    parser.add_argument("--checkpoint-every", type=float, default=300, help="seconds")
    return parser.parse_args(argv)
