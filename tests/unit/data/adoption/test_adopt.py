"""`tools/inspect_data.py adopt`: manifests for datasets that other programs made."""

from __future__ import annotations

import json
import sqlite3
import struct
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from ascend_cpt.data.adoption.adopt import adopt
from ascend_cpt.data.adoption.settings import AdoptSettings
from ascend_cpt.data.packed.manifest import Manifest, NoManifestError, check_shards, load_manifest
from ascend_cpt.data.packed.megatron_indexed import IndexedWriter
from ascend_cpt.data.packed.mindrecord_writer import FormatWriter, pack_rows
from ascend_cpt.data.packed.token_stream import TokenStream, check_rows, read_rows
from ascend_cpt.data.tokenizing.base import Encoded
from ascend_cpt.errors import DataError

REPOSITORY = Path(__file__).resolve().parents[4]
TOKENIZER = REPOSITORY / "tests/reference/tasks"
"""4 control tokens and words; see the fixture `sizes`."""
HEADER_BYTES, PAGE_BYTES = 4096, 1 << 16

Ids = npt.NDArray[np.int32]


@pytest.fixture(scope="module")
def info() -> dict[str, int]:
    """Return vocabulary size, EOD and padding id of the tokenizer."""
    from ascend_cpt.data.tokenizing.files import open_tokenizer

    found = open_tokenizer("PretrainedFromHF", TOKENIZER, eod_token=EOD).info
    return {"size": found.vocab_size, "eod": found.eod_id, "pad": found.pad_id}


EOD = next(
    token["content"]
    for token in json.loads((TOKENIZER / "tokenizer.json").read_text())["added_tokens"]
    if token.get("special")
)


def write_columns(path: Path, columns: dict[str, Ids], names: list[str] | None = None) -> None:
    """Write a MindRecord file with several columns of whole numbers, as MindSpore's writer does."""
    order = sorted(columns)
    num_rows = len(columns[order[0]])
    places, blob = [], b""
    for row in range(num_rows):
        parts = [pack_signed(columns[name][row]) for name in order]
        payload = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
        places.append((len(blob), len(blob) + 8 + len(payload)))
        blob += len(payload).to_bytes(8, "little") + payload
    header = {
        "header_size": HEADER_BYTES,
        "page_size": PAGE_BYTES,
        "schema": [
            {"blob_fields": order, "schema": {name: {"shape": [-1], "type": "int64"} for name in order}},
        ],
        "shard_addresses": names or [path.name],
        "version": "3.0",
    }
    text = json.dumps(header).encode()
    page = (len(text).to_bytes(8, "little") + text).ljust(HEADER_BYTES, b"\0") + blob
    path.write_bytes(page.ljust(HEADER_BYTES + PAGE_BYTES, b"\0"))
    with closing(sqlite3.connect(f"{path}.db")) as connection:
        connection.execute("CREATE TABLE INDEXES(ROW_ID, PAGE_ID_BLOB, PAGE_OFFSET_BLOB, PAGE_OFFSET_BLOB_END)")
        connection.executemany("INSERT INTO INDEXES VALUES (?,0,?,?)", [(k, *place) for k, place in enumerate(places)])
        connection.commit()


def pack_signed(values: Ids) -> bytes:
    """Return an array of whole numbers as MindSpore stores it."""
    codes = [0 if -128 <= v < 128 else 1 if -(2**15) <= v < 2**15 else 2 for v in values.tolist()]
    bitmap = bytearray(-(-len(codes) // 4))
    for k, code in enumerate(codes):
        bitmap[k // 4] |= code << (6 - 2 * (k % 4))
    packed = b"".join(struct.pack("<" + "bhi"[code], v) for code, v in zip(codes, values.tolist(), strict=True))
    return len(codes).to_bytes(4, "big") + bytes(bitmap) + packed


def write_rows(path: Path, rows: Ids) -> Path:
    """Write a MindRecord file with the column input_ids, as MindFormers' script does."""
    writer = FormatWriter(path)
    writer.write(rows)
    writer.close()
    return path


def make_rows(info: dict[str, int], num_rows: int, length: int) -> Ids:
    rows = np.random.default_rng(num_rows).integers(10, info["size"], (num_rows, length)).astype(np.int32)
    rows[:, 3] = info["eod"]
    return rows


def run(path: Path, **changes: object) -> Manifest:
    settings = {"path": path, "tokenizer_path": str(TOKENIZER), "eod_token": EOD} | changes
    return adopt(AdoptSettings(**settings))  # type: ignore[arg-type]


def test_the_packed_entries_are_those_of_this_package(info: dict[str, int]) -> None:
    row = np.array([[1, 127, 128, 32767, 32768, 70000, 0]], np.int32)
    assert pack_rows(row)[0][8:] == pack_signed(row[0])


@pytest.mark.parametrize("named", ["wiki32.mindrecord", "wiki32.mindrecord.db", "wiki32", ""])
def test_rows_with_one_token_more(tmp_path: Path, info: dict[str, int], named: str) -> None:
    rows = make_rows(info, 7, 33)
    write_rows(tmp_path / "wiki32.mindrecord", rows)
    manifest = run(tmp_path / named)
    assert manifest.path == tmp_path / "wiki32.manifest.json"
    assert (manifest.seq_length, manifest.num_rows, manifest.num_tokens) == (32, 7, 7 * 33)
    assert (manifest.num_documents, manifest.lacks_last_label) == (7, False)
    check_shards(load_manifest(tmp_path / "wiki32.mindrecord"), checksums=True)
    assert (TokenStream(manifest).read(0, 7 * 33) == rows.reshape(-1)).all()
    # The same command again finds the same dataset.
    assert run(tmp_path / named) == manifest


def test_a_set_of_files_in_the_order_of_their_numbers(tmp_path: Path, info: dict[str, int]) -> None:
    for number in (0, 2, 10):
        write_rows(tmp_path / f"x.mindrecord{number}", make_rows(info, 1 + number, 9))
    manifest = run(tmp_path / "x.mindrecord2")
    assert [shard.num_rows for shard in manifest.shards] == [1, 3, 11]
    for name in ("x", "x.mindrecord10", "x.mindrecord0.db", "x.manifest.json", "x.mindrecord"):
        assert load_manifest(tmp_path / name) == manifest


@pytest.mark.parametrize("is_shifted", [False, True])
def test_rows_of_the_sequence_length_with_labels(tmp_path: Path, info: dict[str, int], is_shifted: bool) -> None:
    ids = make_rows(info, 5, 32)
    labels = np.hstack((ids[:, 1:], ids[:, :1])) if is_shifted else ids.copy()
    if not is_shifted:
        labels[:, 0] = -100
    path = tmp_path / "any_name"
    write_columns(path, {"input_ids": ids, "labels": labels, "attention_mask": np.ones_like(ids)})
    manifest = run(path)
    assert (manifest.path, manifest.seq_length, manifest.lacks_last_label) == (
        tmp_path / "any_name.manifest.json",
        32,
        True,
    )
    assert (TokenStream(manifest).read(30, 40) == ids.reshape(-1)[30:70]).all()
    assert (read_rows(path, 1, 3) == ids[1:4]).all()
    check_rows(path, row_length=32)
    assert run(path) == manifest == load_manifest(path)


def test_a_damaged_row_is_found(tmp_path: Path, info: dict[str, int]) -> None:
    ids = make_rows(info, 5, 32)
    write_columns(tmp_path / "x.mindrecord", {"input_ids": ids, "labels": ids})
    content = bytearray((tmp_path / "x.mindrecord").read_bytes())
    content[HEADER_BYTES + 8] = 255  # the size of the first column
    (tmp_path / "x.mindrecord").write_bytes(content)
    with pytest.raises(DataError, match="a row is damaged"):
        check_rows(tmp_path / "x.mindrecord")
    with pytest.raises(DataError, match="a row is damaged"):
        run(tmp_path / "x.mindrecord")


def test_padding(tmp_path: Path, info: dict[str, int], caplog: pytest.LogCaptureFixture) -> None:
    rows = make_rows(info, 4, 33)
    rows[-1, 20:] = info["pad"]
    manifest = run(write_rows(tmp_path / "tail.mindrecord", rows))
    assert (manifest.shards[0].tail_tokens, manifest.num_tokens) == (20, 3 * 33 + 20)
    rows[0, 30:] = info["pad"]
    manifest = run(write_rows(tmp_path / "rows.mindrecord", rows))
    assert (manifest.shards[0].tail_tokens, manifest.num_tokens) == (0, 4 * 33)
    assert "2 rows are padded" in caplog.text


def test_padding_with_another_token_is_named(tmp_path: Path, info: dict[str, int]) -> None:
    ids = make_rows(info, 4, 33)
    mask = np.ones_like(ids)
    ids[-1, 20:], mask[-1, 20:] = 9, 0
    write_columns(tmp_path / "x.mindrecord", {"input_ids": ids, "attention_mask": mask})
    with pytest.raises(DataError, match="it is padded with id 9: add --pad-id 9"):
        run(tmp_path / "x.mindrecord")
    manifest = run(tmp_path / "x.mindrecord", pad_id=9)
    assert (manifest.tokenizer.pad_id, manifest.shards[0].tail_tokens) == (9, 20)
    write_rows(tmp_path / "y.mindrecord", ids)
    run(tmp_path / "y.mindrecord", pad_id=9)
    with pytest.raises(DataError, match="describes other files or another tokenizer; remove it"):
        run(tmp_path / "y.mindrecord", pad_id=8)


def write_masked(folder: Path, info: dict[str, int]) -> Path:
    ids = make_rows(info, 4, 33)
    labels = ids.copy()
    labels[:, :10] = -100
    write_columns(folder / "x.mindrecord", {"input_ids": ids, "labels": labels})
    return folder / "x.mindrecord"


def test_labels_that_training_would_not_use_are_refused(tmp_path: Path, info: dict[str, int]) -> None:
    path = write_masked(tmp_path, info)
    with pytest.raises(DataError, match="leave at least 36 tokens out of the loss.*--ignore-labels"):
        run(path)
    assert run(path, ignore_labels=True).num_rows == 4
    ids = make_rows(info, 4, 33)
    write_columns(tmp_path / "y.mindrecord", {"input_ids": ids, "labels": ids[:, ::-1]})
    with pytest.raises(DataError, match="labels are neither its input_ids nor the next tokens"):
        run(tmp_path / "y.mindrecord")


def test_files_that_training_cannot_read_are_refused(tmp_path: Path, info: dict[str, int]) -> None:
    rows = make_rows(info, 4, 33)
    path = write_rows(tmp_path / "x.mindrecord", rows)
    with pytest.raises(DataError, match="has rows of 33 ids, for a sequence length of 32 or 33"):
        run(path, seq_length=64)
    assert run(path, seq_length=33).lacks_last_label
    rows[2, 2] = info["size"]
    with pytest.raises(DataError, match=f"has the id {info['size']}, but the tokenizer .* give the tokenizer"):
        run(write_rows(tmp_path / "large.mindrecord", rows))
    write_columns(tmp_path / "other.mindrecord", {"input_id": rows, "labels": rows})
    with pytest.raises(DataError, match=r"has no column input_ids of int32 or int64, only input_id \(int64\), labels"):
        run(tmp_path / "other.mindrecord")
    write_columns(tmp_path / "new.mindrecord", {"input_ids": rows, "labels": rows}, ["old.mindrecord"])
    with pytest.raises(DataError, match="was renamed: .* here old.mindrecord; rename it back"):
        run(tmp_path / "new.mindrecord")
    with pytest.raises(DataError, match="no packed dataset here"):
        run(tmp_path / "missing.mindrecord")
    with pytest.raises(DataError, match="several datasets"):
        run(tmp_path)
    with pytest.raises(DataError, match="is the end-of-document token"):
        run(path, pad_id=info["eod"])


@pytest.mark.parametrize("named", ["dataset.bin", "dataset.idx", "dataset"])
@pytest.mark.parametrize("has_ends", [True, False])
def test_an_indexed_dataset(
    tmp_path: Path, info: dict[str, int], caplog: pytest.LogCaptureFixture, named: str, has_ends: bool
) -> None:
    ids = make_rows(info, 1, 50)[0]
    ids[:] = np.maximum(ids, 10)
    ids[[19, 49]] = info["eod"] if has_ends else 11
    writer = IndexedWriter(tmp_path / "dataset", np.dtype(np.uint16))
    writer.write(Encoded(ids, np.array([0, 20, 50])))
    writer.close()
    with pytest.raises(NoManifestError):
        load_manifest(tmp_path / named)
    manifest = run(tmp_path / named)
    assert (manifest.output_format, manifest.seq_length) == ("mmap", None)
    assert (manifest.num_tokens, manifest.num_documents) == (50, 2)
    assert manifest.settings["append_eod"] is has_ends
    assert has_ends == ("cannot tell the documents apart" not in caplog.text)
    assert load_manifest(tmp_path / named) == manifest
    check_shards(manifest, checksums=True)


def test_the_error_has_the_command_that_writes_the_manifest(tmp_path: Path, info: dict[str, int]) -> None:
    path = write_rows(tmp_path / "a file.mindrecord", make_rows(info, 3, 33))
    with pytest.raises(NoManifestError, match="has no manifest.* adopt '.*/a file.mindrecord' --tokenizer TOKENIZER"):
        load_manifest(path)
    arguments = ["adopt", str(path), "--tokenizer", str(TOKENIZER), "--eod-token", EOD]
    command = [sys.executable, str(REPOSITORY / "tools/inspect_data.py"), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "mindrecord: 3 rows of 32 + 1, 99 tokens" in result.stdout
    assert "first tokens" in result.stderr
