"""An adapter as an archive: what goes in comes out, and what is none is said to be none. And one that was trained elsewhere."""

from __future__ import annotations

import gzip
import io
import json
import math
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from memoryd.api import convert
from memoryd.core import AdapterState
from memoryd.errors import DataLoss, FingerprintMismatch, InvalidArgument
from memoryd.learn import adapter_files
from memoryd.learn.adapter_files import CONFIG, CURVE, LINEAGE, WEIGHTS, AdapterFiles, pack_files, unpack_files
from memoryd.learn.curve import draw
from memoryd.learn.imported import imported, named_documents
from tests.unit.learning_parts import INFO

FILES = AdapterFiles(b'{"r": 8}', b"weights" * 100, {"memory": "memories/m", "epochs": 3}, b'{"step": 1, "loss": 2.5}\n')
IN_USE = INFO.compressor.fingerprint
PLAIN = {CONFIG: FILES.config, WEIGHTS: FILES.weights}


def tar(files: Mapping[str, bytes], mode: str = "w") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


# --- there and back ---

json_values = st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.text(), max_size=3)


@given(config=st.binary(min_size=1), weights=st.binary(min_size=1), lineage=st.dictionaries(st.text(), json_values))
def test_what_is_packed_is_unpacked(config: bytes, weights: bytes, lineage: dict[str, Any]) -> None:
    files = AdapterFiles(config, weights, lineage, FILES.curve)
    data = pack_files(files)
    assert unpack_files(data) == unpack_files(data, files.fingerprint) == files


def test_the_same_files_make_the_same_bytes() -> None:
    turned = replace(FILES, lineage={"epochs": 3, "memory": "memories/m"})
    assert pack_files(turned) == pack_files(FILES)
    with tarfile.open(fileobj=io.BytesIO(pack_files(FILES))) as archive:
        assert archive.getnames() == [CONFIG, WEIGHTS, LINEAGE, CURVE]


def test_a_fingerprint_is_of_what_is_served() -> None:
    assert replace(FILES, lineage={}, curve=b"").fingerprint == FILES.fingerprint
    others = [replace(FILES, config=b'{"r": 9}'), replace(FILES, weights=b"x"), AdapterFiles(FILES.weights, FILES.config, {})]
    assert len({FILES.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_all_files_count_in_the_size_and_each_value_of_a_lineage_in_what_it_takes_to_hold_them() -> None:
    with tarfile.open(fileobj=io.BytesIO(pack_files(FILES))) as archive:
        assert FILES.size == sum(member.size for member in archive)
    many = replace(FILES, lineage={"documents": [f"{n:03}" for n in range(1000)]})
    assert many.size - FILES.size > 1000 * len('"000"')
    assert many.held_bytes > sum(map(sys.getsizeof, [many.weights, *many.lineage["documents"]]))


def test_weights_are_known_again_whatever_lies_around_them() -> None:
    """By their tensors: not by the configuration, and not by how the file is laid out."""
    one, two = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(4, np.float16)
    files = replace(FILES, weights=save({"a": one, "b": two}))
    same = [
        replace(files, config=b'{"r": 8 }', lineage={}, curve=b""),
        replace(files, weights=save({"b": two, "a": one}, metadata={"format": "pt"})),
    ]
    assert {other.weights_sha256 for other in same} == {files.weights_sha256}
    others = [{"a": one, "b": -two}, {"a": one.reshape(3, 2), "b": two}, {"a": one, "c": two}, {"a": one}]
    hashes = {files.weights_sha256, *(replace(files, weights=save(weights)).weights_sha256 for weights in others)}
    assert len(hashes) == 1 + len(others)
    assert FILES.weights_sha256 != replace(FILES, weights=b"others").weights_sha256, "even of what is no safetensors"


def test_a_directory_of_peft(tmp_path: Path) -> None:
    (tmp_path / CONFIG).write_bytes(FILES.config)
    (tmp_path / WEIGHTS).write_bytes(FILES.weights)
    (tmp_path / "README.md").write_text("from PEFT")
    assert AdapterFiles.of_directory(tmp_path, FILES.lineage, FILES.curve) == FILES


# --- archives that others made ---


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_compressed_archive(mode: str) -> None:
    assert unpack_files(tar(PLAIN, mode)) == AdapterFiles(FILES.config, FILES.weights, {})


def test_files_in_a_folder_among_others() -> None:
    made = {
        "adapter": b"",
        "./adapter/README.md": b"from PEFT",
        f"./adapter/._{WEIGHTS}": b"of a Mac",
        **{f"./adapter/{name}": data for name, data in PLAIN.items()},
        f"./adapter/checkpoint-8/{WEIGHTS}": b"an earlier one",
    }
    assert unpack_files(tar(made, "w:gz")) == AdapterFiles(FILES.config, FILES.weights, {})


def test_a_path_that_leads_astray_leads_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert unpack_files(tar({f"../../{CONFIG}": b"c", f"/etc/{WEIGHTS}": b"w"})) == AdapterFiles(b"c", b"w", {})
    assert list(tmp_path.iterdir()) == []


def test_a_link_is_no_file() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in (CONFIG, WEIGHTS):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(member)
    with pytest.raises(InvalidArgument, match=f"lacks {CONFIG}, {WEIGHTS}"):
        unpack_files(out.getvalue())


@pytest.mark.parametrize("missing", [CONFIG, WEIGHTS])
def test_a_missing_or_empty_file_is_named(missing: str) -> None:
    for made in ({k: v for k, v in PLAIN.items() if k != missing}, {**PLAIN, missing: b""}):
        with pytest.raises(InvalidArgument, match=f"lacks {missing}$"):
            unpack_files(tar(made))
        with pytest.raises(DataLoss, match=f"lacks {missing}$"):
            unpack_files(tar(made), FILES.fingerprint)


NOT_AN_ADAPTER: dict[str, bytes] = {
    "nothing": b"",
    "text": b"this is no archive",
    "zip": b"PK\x03\x04" + bytes(600),
    "cut off": pack_files(FILES)[:1000],
    "gz, cut off": tar(PLAIN, "w:gz")[:60],
    "gz of text": gzip.compress(b"this is no archive"),
    "gz, damaged": tar(PLAIN, "w:gz")[:40] + b"\xff" * 60,
    "lineage is no JSON": tar({**PLAIN, LINEAGE: b"memory: m"}),
    "lineage is no UTF-8": tar({**PLAIN, LINEAGE: b'{"a": "\xff"}'}),
    "lineage is a list": tar({**PLAIN, LINEAGE: b"[]"}),
    "lineage is deep": tar({**PLAIN, LINEAGE: b'{"a":' * 100_000}),
    "curve is no JSON": tar({**PLAIN, CURVE: b"step 1\n"}),
    "curve is no UTF-8": tar({**PLAIN, CURVE: b"\xff\n"}),
    "curve is of something else": tar({**PLAIN, CURVE: b'{"epoch": 1}\n'}),
    "curve is of half steps": tar({**PLAIN, CURVE: b'{"step": 1.5, "loss": 2.5}\n'}),
    "curve is of words": tar({**PLAIN, CURVE: b'{"step": "one", "loss": 2.5}\n'}),
    "curve is of truths": tar({**PLAIN, CURVE: b'{"step": 1, "loss": true}\n'}),
    "curve is beyond all floats": tar({**PLAIN, CURVE: b'{"step": 1, "loss": 1%s}\n' % (b"0" * 400)}),
    "curve is beyond what can be drawn": tar({**PLAIN, CURVE: b'{"step": 1, "loss": 1.7e308}\n{"step": 2, "loss": 1}\n'}),
    "lineage is of very many values": tar({**PLAIN, LINEAGE: b'{"a": [%s[]]}' % (b"[]," * (1 << 20))}, "w:gz"),
}


@pytest.mark.parametrize("what", NOT_AN_ADAPTER)
def test_what_is_no_adapter_is_refused(what: str) -> None:
    with pytest.raises(InvalidArgument):
        unpack_files(NOT_AN_ADAPTER[what])


@pytest.mark.parametrize("what", NOT_AN_ADAPTER)
def test_what_was_an_adapter_once_is_lost(what: str) -> None:
    """A damaged cache is told from a bad upload by the fingerprint that is asked for."""
    with pytest.raises(DataLoss):
        unpack_files(NOT_AN_ADAPTER[what], FILES.fingerprint)


def test_other_bytes_than_those_that_were_trained_are_refused() -> None:
    for changed in (replace(FILES, config=b'{"r": 9}'), replace(FILES, weights=FILES.weights[:-1])):
        with pytest.raises(DataLoss, match="not those that were trained"):
            unpack_files(pack_files(changed), FILES.fingerprint)


@settings(max_examples=200)
@given(st.sampled_from(["w", "w:gz"]), st.integers(0, 1 << 20), st.binary(max_size=8), st.booleans())
@example("w:gz", 30, b"\xff\xff", False)
def test_any_damage_is_said_to_be_damage(mode: str, at: int, put: bytes, cut: bool) -> None:
    data = tar({**PLAIN, LINEAGE: b'{"memory": "m"}', CURVE: FILES.curve}, mode)
    at %= len(data)
    damaged = data[:at] + put + (b"" if cut else data[at + len(put) :])
    for fingerprint, error in (("", InvalidArgument), (FILES.fingerprint, DataLoss)):
        try:
            files = unpack_files(damaged, fingerprint)
        except error:
            continue
        assert not fingerprint or files.fingerprint == fingerprint


# --- too much ---


def test_a_file_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_files, "MAX_BYTES", 1000)
    assert unpack_files(tar(PLAIN)).weights == FILES.weights
    for made in ({**PLAIN, WEIGHTS: bytes(1001)}, {**PLAIN, WEIGHTS: bytes(900), LINEAGE: b" " * 200}):
        with pytest.raises(InvalidArgument, match="more than 1000 bytes"):
            unpack_files(tar(made))


@pytest.mark.parametrize("name", [CONFIG, LINEAGE, CURVE])
def test_what_is_read_as_a_whole_has_a_limit_of_its_own(name: str) -> None:
    """A curve of zeros takes next to nothing in an archive, and gigabytes once it is read."""
    with pytest.raises(InvalidArgument, match=f"its {name} has more than"):
        unpack_files(tar({**PLAIN, name: b" " * (17 << 20)}, "w:gz"))


def test_a_lineage_of_very_many_documents_is_refused() -> None:
    many = {"documents": ["memories/m/documents/d"] * 200_001}
    with pytest.raises(InvalidArgument, match="more than 200000 documents"):
        named_documents(many)
    with pytest.raises(InvalidArgument, match="more than 200000 documents"):
        imported("red", "m", replace(FILES, lineage=many), INFO)


@pytest.mark.parametrize("lineage", [{"documents": [f"{n:0200}" for n in range(100_000)]}, {"documents": [""] * 300_000}])
def test_nothing_is_written_that_could_not_be_read_again(lineage: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="name fewer documents"):
        pack_files(replace(FILES, lineage=lineage))


def test_as_many_documents_as_may_be_are_read_again() -> None:
    names = [f"memories/notes/documents/018f00000000beef{n:08x}" for n in range(200_000)]
    adapter, files = imported("red", "m", replace(FILES, lineage={"documents": names}), INFO)
    assert unpack_files(pack_files(files), adapter.fingerprint).lineage["documents"] == names


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_a_small_archive_of_very_much_is_refused(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even what is passed over is taken out of it."""
    monkeypatch.setattr(adapter_files, "MAX_BYTES", 1000)
    data = tar({**PLAIN, "optimizer.pt": bytes(1 << 20)}, mode)
    assert len(data) < 10_000
    with pytest.raises(InvalidArgument, match="more than 1000 bytes"):
        unpack_files(data)


def test_an_archive_of_very_many_files_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="files"):
        unpack_files(tar({f"{n}": b"" for n in range(5000)} | PLAIN, "w:gz"))


def test_a_file_that_ends_before_it_begins_is_refused() -> None:
    """CVE-2025-8194: tarfile reads such an archive for ever."""
    member = tarfile.TarInfo("README.md")
    member.size = -1024
    with pytest.raises(InvalidArgument):
        unpack_files(member.tobuf(tarfile.GNU_FORMAT) + tar(PLAIN))


# --- one that was trained elsewhere ---


def test_one_of_ours_keeps_its_lineage() -> None:
    lineage = {"memory": "memories/old", "base_model": INFO.base_fingerprint, "reader": "x" * 64, "compressor": "y" * 64}
    adapter, files = imported("red", "m", replace(FILES, lineage={**lineage, "examples": 7, "documents": ["d"]}), INFO)
    assert (adapter.tenant, adapter.memory, adapter.state, adapter.parent) == ("red", "m", AdapterState.KEPT, "")
    assert (adapter.base, adapter.reader, adapter.compressor, adapter.examples) == (
        INFO.base_fingerprint,
        "x" * 64,
        "y" * 64,
        7,
    )
    assert (adapter.fingerprint, adapter.size_bytes, adapter.judgement) == (FILES.fingerprint, files.size, {})
    assert files.lineage["imported_from"] == "memories/old"
    assert files.lineage["import_time"] == adapter.create_time.isoformat()
    assert {**files.lineage, **lineage} == files.lineage
    assert unpack_files(pack_files(files), adapter.fingerprint) == files


LEARNED = {
    "memory": "memories/old", "parent": "", "base_model": INFO.base_fingerprint, "reader": INFO.reader, "compressor": "",
    "modes": ["TEXT", "HYBRID", "COMPRESSED"], "examples": 40, "held_out": 9,
    "documents": [f"memories/old/documents/{n:024x}" for n in range(3)], "epochs": 3, "learning_rate": 5e-4, "steps": 15,
    "seconds": 61.25, "loss": 1.5, "gather_time": "2026-01-01T00:00:00+00:00", "create_time": "2026-01-01T00:01:00+00:00",
}  # fmt: skip


def test_what_a_training_here_says_is_kept_from_memory_to_memory() -> None:
    files, told = replace(FILES, lineage=LEARNED), convert.lineage(LEARNED)
    for memory in ("memories/old", "memories/old"):  # it names the one that it was trained in, wherever it comes from
        adapter, files = imported("red", "m", unpack_files(pack_files(files)), INFO)
        assert {**files.lineage, **LEARNED} == files.lineage
        assert set(files.lineage) - set(LEARNED) == {"imported_from", "import_time"}
        told.imported_from = memory
        assert convert.lineage(files.lineage) == told
        assert (adapter.compressor, adapter.examples) == ("", 40)


def test_what_no_training_here_says_is_not_kept() -> None:
    """It would be held in memory with every adapter that is in use, and be exported again."""
    strange = {
        "memory": ["x"], "parent": "x" * 300, "create_time": {"at": 1}, "examples": True, "epochs": 10**30, "loss": "low",
        "seconds": None, "modes": ["TEXT", {}, 7, "TEXT", "ALOUD"], "documents": ["a", [], "a", "\0", "x" * 300, 7],
        "more": [[]],
    }  # fmt: skip
    adapter, files = imported("red", "m", replace(FILES, lineage=strange), INFO)
    kept = {"modes": ["TEXT"], "documents": ["a"], "imported_from": "", "import_time": adapter.create_time.isoformat()}
    assert files.lineage == kept
    assert adapter.examples == 0


def test_a_plain_one_of_peft_is_taken_to_be_for_what_is_in_use() -> None:
    adapter, files = imported("red", "m", replace(FILES, lineage={}), INFO)
    assert (adapter.base, adapter.reader, adapter.compressor) == (INFO.base_fingerprint, INFO.reader, IN_USE)
    assert (adapter.examples, files.lineage["imported_from"]) == (0, "")
    again, _ = imported("red", "m", replace(FILES, lineage={}), INFO)
    assert again.id != adapter.id, "a new version each time"


def test_one_for_another_base_model_is_refused() -> None:
    with pytest.raises(FingerprintMismatch, match=r"in use is b{16}$"):
        imported("red", "m", replace(FILES, lineage={"base_model": "c" * 64}), INFO)


@pytest.mark.parametrize("examples", [None, "7", -1, 1 << 31, 10**30, [7], 2.5])
def test_what_its_lineage_may_say_is_not_believed(examples: Any) -> None:
    strange = {"examples": examples, "memory": 7, "base_model": None, "reader": ["x"], "compressor": {}}
    adapter, _ = imported("red", "m", replace(FILES, lineage=strange), INFO)
    assert (adapter.base, adapter.reader, adapter.compressor) == (INFO.base_fingerprint, INFO.reader, IN_USE)
    assert adapter.examples == 0


@pytest.mark.parametrize("bad", ["\0", "\ud800", "x" * 300])
def test_names_that_no_store_could_keep_are_no_names(bad: str) -> None:
    adapter, _ = imported("red", "m", replace(FILES, lineage={"reader": bad, "compressor": bad, "memory": bad}), INFO)
    assert (adapter.reader, adapter.compressor) == (INFO.reader, IN_USE)


# --- the curve ---


@pytest.mark.parametrize("points", [1, 2, 100])
def test_the_curve_is_a_picture(points: int) -> None:
    png = draw([{"step": n, "loss": 3 / (n + 1)} for n in range(points)])
    assert png.startswith(b"\x89PNG\r\n")
    assert b"IEND" in png[-12:]


def test_a_curve_that_went_astray_is_a_curve() -> None:
    points = [{"step": 1, "loss": 2.5}, {"step": 2, "loss": math.inf}, {"step": 3, "loss": math.nan}]
    curve = "".join(json.dumps(point) + "\n" for point in points).encode()
    assert unpack_files(tar({**PLAIN, CURVE: curve}), FILES.fingerprint).curve == curve
    assert draw(points).startswith(b"\x89PNG")
    assert draw(points[2:]).startswith(b"\x89PNG")


@pytest.mark.parametrize("loss", ["Infinity", "-Infinity", "NaN", "1e999"])
def test_one_that_went_astray_elsewhere_is_not_taken(loss: str) -> None:
    curve = f'{{"step": 1, "loss": 2.5}}\n{{"step": 2, "loss": {loss}}}\n'.encode()
    with pytest.raises(InvalidArgument, match="finite numbers: mend it, or leave it out"):
        unpack_files(tar({**PLAIN, CURVE: curve}))


@pytest.mark.parametrize("loss", [0, 7, -1.5, 1e30, -1e30])
def test_any_curve_that_is_taken_can_be_drawn(loss: float) -> None:
    points = [{"step": 0, "loss": loss}, {"step": (1 << 31) - 1, "loss": 1e30}]
    curve = "".join(json.dumps(point) + "\n" for point in points).encode()
    assert unpack_files(tar({**PLAIN, CURVE: curve})).curve == curve
    assert draw(points).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("said", "named"),
    [
        (["memories/m/documents/b", "memories/m/documents/a", "memories/m/documents/a"], ["a", "b"]),
        (["a", "memories/m/documents/", 7, None, ["c"], "d\0", "\ud800", "x" * 300], ["a"]),
        ("memories/m/documents/a", []),
        ({"a": 1}, []),
        (None, []),
    ],
)
def test_documents_that_a_lineage_names(said: object, named: list[str]) -> None:
    assert named_documents({"documents": said}) == named_documents({"documents": said, "more": 1}) == named


def test_a_lineage_that_names_no_documents() -> None:
    assert named_documents({}) == []
