"""What an evaluation that goes on after a stop was begun with: what was kept holds for these settings and no others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from memoryd.errors import SettingsError

FILE = "run.json"
_COMMIT = "commit"


def settle(work: Path, facts: Mapping[str, str]) -> None:
    """Writes the facts into `work`/run.json, beside those that are there. SettingsError where one of them is another there, and
    where `work` holds something else."""
    path = work / FILE
    known: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    if not known and work.exists() and any(work.iterdir()):
        raise SettingsError(f"{work} holds something, but no {FILE}: give a --work that is empty or not there yet")
    others = [f"{name} was {known[name]}, is {fact}" for name, fact in facts.items() if known.get(name, fact) != fact]
    if others:
        again = "Run it with what it was begun with to go on, or give another --work to begin anew"
        raise SettingsError(f"{work} holds a run that was begun with something else: {'; '.join(others)}. {again}")
    work.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps({**known, **facts}, indent=1) + "\n")
    beside.replace(path)


def commits(work: Path, now: str) -> str:
    """The commit that the run began with, and up to which it went on, `now`: what was made and answered is of these. Which code
    decides a figure nobody can tell by its files, so a run may go on with newer code, and its figures say so."""
    path = work / _COMMIT
    if not path.exists():
        path.write_text(now)
    first = path.read_text()
    return now if first == now else f"{first}..{now}"


def fingerprint_of_files(directory: Path) -> str:
    """sha256 over names and contents. SettingsError where there is no such directory."""
    if not directory.is_dir():
        raise SettingsError(f"{directory} is no directory")
    digest = hashlib.sha256()
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(directory)}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    return digest.hexdigest()
