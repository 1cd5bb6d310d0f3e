"""kill -9 of daemon, worker, Valkey and Milvus Lite at random moments: no acknowledged write is lost, nothing half-written
is served, and nothing is left lying about.

`make test` kills five times. `make test-kill` (MEMORYD_KILLS=50) kills more often and writes docs/figures/kills.json.
MEMORYD_SEED repeats a run's choices.
"""

from __future__ import annotations

import os
import random
import secrets
from pathlib import Path

import pytest
from memoryd_client import Client

from memoryd.eval import figures
from memoryd.eval.figures import Row
from tests.daemon import DaemonProcess
from tests.fault import storm
from tests.fault.storm import KINDS, Storm
from tests.fault.waiting import PATIENT

KILLS = int(os.environ.get("MEMORYD_KILLS", "5"))
SEED = int(os.environ.get("MEMORYD_SEED", secrets.randbits(32)))
FULL = 50  # as many kills make a figure
TURN = ["daemon", "worker", "valkey", "milvus"] * 2 + ["valkey", "milvus"]  # these two are back sooner
MEMORIES = ("one", "two")
SOON = ("--job-lease-seconds", "2")  # after so long, the next daemon takes over what a killed one had in hand


@pytest.mark.timeout(600 + 120 * KILLS)
def test_no_acknowledged_write_is_lost(tmp_path: Path, tiny_model: Path) -> None:
    print(f"repeat with MEMORYD_KILLS={KILLS} MEMORYD_SEED={SEED}")
    rng = random.Random(SEED)
    kinds = (TURN * KILLS)[:KILLS]
    rng.shuffle(kinds)
    with DaemonProcess(tmp_path / "data", "--model", str(tiny_model), *SOON) as daemon:
        with Storm(daemon, MEMORIES, SEED) as raging:
            truth = raging.truth
            for kind in kinds:
                raging.pause()
                raging.kill(kind)
            raging.until_done({"writes": 2 * KILLS, "searches": KILLS, "answers": KILLS // 2})
        print(storm.summary(raging))
        with Client(daemon.target, timeout=None, retry=PATIENT) as client:
            storm.settle(client, truth)
            storm.check_served(client, truth, MEMORIES)
        assert storm.index_ids(daemon) == storm.passages_of(daemon.data_dir)
        assert daemon.stop() == 0
    storm.check_stored(daemon.data_dir, truth)
    assert raging.kills.total() == KILLS
    if KILLS >= FULL:
        figures.write("kills", _rows(raging))


def _rows(raging: Storm) -> list[Row]:
    """What is written only after everything was found to be there: so what is lost, is 0."""
    command, truth = f"MEMORYD_SEED={SEED} make test-kill", raging.truth
    made = {
        "documents whose write was acknowledged": truth.done["writes"],
        "acknowledged writes that were repeated": truth.done["repeats"],
        "acknowledged deletes": truth.done["deletes"],
        "searches answered meanwhile": truth.done["searches"],
        "answers finished meanwhile": truth.done["answers"],
    }
    kills = [Row(f"kill -9 of {kind}", raging.kills[kind], "kills", command=command) for kind in KINDS]
    counts = [Row(name, value, "calls", command=command) for name, value in made.items()]
    lost = Row("acknowledged writes lost", 0, "calls", n=truth.done["writes"], aim="0", met=True, command=command)
    return [*kills, *counts, lost]
