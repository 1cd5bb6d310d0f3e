"""`python -m memoryd.worker`: the worker process and its composition root.

Exit codes: 0 drained; 78 (EX_CONFIG) a model can't be loaded, or is not the one that is expected, or the socket not be
opened, so that starting again would not help; 70 (EX_SOFTWARE) a defect: start again.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

from memoryd import collector, log
from memoryd.engine.base_model import BaseModelError, ensure_base_model, fingerprint
from memoryd.errors import SettingsError
from memoryd.worker import parent
from memoryd.worker.client import identity
from memoryd.worker.loop import Loop
from memoryd.worker.server import OPTIONS, WorkerServicer
from memoryd.worker.v1 import worker_pb2 as pb
from memoryd.worker.v1 import worker_pb2_grpc

if TYPE_CHECKING:
    from memoryd.engine.runner import Runner

EX_CONFIG = 78
EX_SOFTWARE = 70
_OTHERS = (
    "the files of the model, the compressor or the reader are not those that memoryd started with: restart memoryd, which then "
    "makes anew what was made with those"
)
_TELL_SECONDS = 1.0  # for calls that did not end in time to be told so
_log = log.get("worker")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m memoryd.worker", description="memoryd's worker process")
    parser.add_argument("--socket", type=Path, required=True, help="Unix socket to listen on")
    parser.add_argument("--data-dir", type=Path, required=True, help="where the converted base model lies")
    parser.add_argument("--model", required=True, help="base model: smollm2-135m-instruct, a directory or a hub name")
    parser.add_argument("--ratio", type=int, default=4, help="source tokens for each compressed embedding")
    parser.add_argument("--compressor", type=Path, help="directory of a trained compressor, instead of --ratio")
    parser.add_argument("--compress-tokens", type=int, default=0, help="of one micro-batch; 0: what suits the device")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: one per core")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--dtype", default="auto", help="auto: bfloat16 on CUDA, else float32")
    parser.add_argument("--drain", type=float, default=5.0, help="seconds that calls may take to end on SIGTERM")
    parser.add_argument("--parent", type=int, default=0, help="process id of the daemon: the worker ends with it")
    parser.add_argument("--expect", default="", help="what the daemon knows of the models: others are refused")
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--log-format", default="auto", help="json, console, auto")
    return parser.parse_args()


def _load(arguments: argparse.Namespace) -> tuple[Runner, pb.DescribeResponse]:
    """Load everything and put it together. Imports are here: they take seconds, and the socket is to listen before."""
    import torch
    import transformers

    from memoryd.compress.load import compressor_path, load_compressor
    from memoryd.engine.adapters import Adapters
    from memoryd.engine.base_model import load_base_model
    from memoryd.engine.reader import readers_for
    from memoryd.engine.retrieval_encoder import load_retrieval_encoder
    from memoryd.engine.runner import Runner
    from memoryd.engine.scheduler import Limits

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(arguments.threads or len(os.sched_getaffinity(0)))
    device = arguments.device if arguments.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    on_gpu = device.startswith("cuda")
    dtype = arguments.dtype if arguments.dtype != "auto" else "bfloat16" if on_gpu else "float32"
    limits = Limits(rows=64, prefill=2048, embed=16384, compress=16384) if on_gpu else Limits(prefill_alone=512)
    if arguments.compress_tokens:
        limits = replace(limits, compress=arguments.compress_tokens)

    path = ensure_base_model(arguments.model, arguments.data_dir)
    base = load_base_model(path, dtype, device)
    chosen = arguments.compressor or compressor_path(base.fingerprint)
    readers = readers_for(chosen, base.fingerprint)
    adapters = Adapters(base, readers)
    compressor = load_compressor(chosen, base, adapters, arguments.ratio)
    encoder = load_retrieval_encoder(arguments.data_dir, device)
    refusals = {soft: readers.refusal(soft) for soft in (False, True)}
    return Runner(base, adapters, compressor, encoder, limits, refusals=refusals), pb.DescribeResponse(
        device=device,
        dtype=dtype,
        model_path=str(path),
        base_fingerprint=base.fingerprint,
        d_model=base.d_model,
        max_positions=base.model.config.max_position_embeddings,
        compressor=pb.CompressorInfo(
            name=compressor.name,
            ratio=compressor.ratio,
            fingerprint=compressor.fingerprint,
            gate_passed=compressor.gate_passed,
            chunk_tokens=compressor.chunk_tokens,
        ),
        encoder_fingerprint=encoder.fingerprint,
        encoder_dim=encoder.dim,
        compress_tokens=limits.compress,
        eos_ids=base.eos_ids,
        reader=f"reader-{readers.fingerprint}" if readers.text else "",
    )


def _look_first(arguments: argparse.Namespace) -> None:
    """Refuses base models that are not those expected, or not whole, before anything is imported: the daemon tries again and
    again, and each try would take ten seconds of a core. SettingsError."""
    path = ensure_base_model(arguments.model, arguments.data_dir)
    try:
        own = fingerprint(path)
    except (OSError, ValueError, KeyError) as error:
        raise BaseModelError(f"base model in {path} cannot be loaded: {error}") from error
    if not arguments.expect.startswith(f"{own}/"):
        raise SettingsError(_OTHERS)


async def _serve(arguments: argparse.Namespace) -> int:
    watching = asyncio.create_task(parent.watch(os.getppid()))
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)

    description = pb.DescribeResponse()

    def load() -> Runner:
        if arguments.expect:
            _look_first(arguments)
        with collector.loading():
            runner, facts = _load(arguments)
        if arguments.expect not in ("", identity(facts)):
            raise SettingsError(_OTHERS)
        description.CopyFrom(facts)
        return runner

    loop = Loop(load)
    servicer = WorkerServicer(loop)
    server = grpc.aio.server(options=OPTIONS)
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(servicer, server)
    arguments.socket.unlink(missing_ok=True)  # a killed predecessor left it
    os.umask(0o077)  # the socket is for this user alone
    try:
        server.add_insecure_port(f"unix:{arguments.socket}")
    except RuntimeError as error:
        _log.error("cannot listen", socket=str(arguments.socket), error=str(error))
        return EX_CONFIG
    await server.start()

    started = time.monotonic()
    loaded, ended = loop.start()
    stopped = asyncio.create_task(stopping.wait())
    await _first(loaded, stopped)
    if loaded.done() and (refused := loaded.exception()):
        _log.error("cannot load", model=arguments.model, error=f"{type(refused).__name__}: {refused}")
        await server.stop(0)
        return EX_CONFIG
    if loaded.done():
        servicer.description = description
        seconds = round(time.monotonic() - started, 2)
        _log.info("ready", seconds=seconds, device=description.device, dtype=description.dtype)
        await _first(ended, stopped)
    if ended.done() and (broken := ended.exception()):
        _log.error("the loop broke", exc_info=broken)
        return EX_SOFTWARE
    _log.info("draining", seconds=arguments.drain)
    stop = asyncio.create_task(server.stop(arguments.drain + _TELL_SECONDS))
    await asyncio.wait([stop], timeout=arguments.drain)
    if loaded.done():
        await loop.stop()  # calls that are left are told that the worker ends: it was not lost over them
    await stop
    watching.cancel()
    return 0


async def _first(*futures: asyncio.Future[Any]) -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


def main() -> None:
    """Run until SIGTERM."""
    arguments = _arguments()
    log.configure(arguments.log_level, arguments.log_format)
    parent.die_with(arguments.parent)
    code = asyncio.run(_serve(arguments))
    sys.stdout.flush()
    os._exit(code)  # a thread in the middle of loading cannot be joined, and there is nothing to clean up


if __name__ == "__main__":
    main()
