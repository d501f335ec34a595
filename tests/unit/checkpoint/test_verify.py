"""Checksums of checkpoint files: damage is found and named, and the work is divided among processes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from ascend_cpt.checkpoint.checksums import checksum_file, checksum_from_words, checksum_to_words
from ascend_cpt.checkpoint.locate import check_checkpoint, locate_checkpoint
from ascend_cpt.checkpoint.state import STATE_NAME, RunState, read_state, write_state
from ascend_cpt.checkpoint.verify import check_file, choose_share, list_weight_files
from ascend_cpt.errors import CheckpointError

FILES = {"cpt-model-0000000-0000001.safetensors": b"weights" * 1000, "cpt-opt-0000000-0000001.safetensors": b"x" * 50}


def save(root: Path, step: int, *, checksums: bool = True) -> Path:
    """Write a complete checkpoint."""
    folder = root / f"iteration_{step:08d}"
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    state = RunState(
        step=step,
        total_steps=100,
        tokens=step,
        position=step,
        fingerprint={"seed": 1, "phases": [("a", 0, 1)]},
        files={name: len(content) for name, content in FILES.items()},
        checksums={name: checksum_file(folder / name) for name in FILES} if checksums else {},
    )
    write_state(folder, state)
    return folder


def flip_bit(path: Path, at: int = 20) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 64
    path.write_bytes(content)


def test_a_checksum_is_that_of_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for size in (0, 1, (4 << 20) - 1, 4 << 20, (4 << 20) + 1):
        content = bytes(range(256)) * (size // 256) + bytes(size % 256)
        path.write_bytes(content)
        assert checksum_file(path) == f"xxh3-128:{xxhash.xxh3_128(content).hexdigest()}"


@given(st.integers(0, 2**128 - 1))
def test_words_of_a_checksum(value: int) -> None:
    checksum = f"xxh3-128:{value:032x}"
    assert checksum_from_words(checksum_to_words(checksum)) == checksum
    assert all(0 <= word < 2**16 for word in checksum_to_words(checksum))


def test_a_flipped_bit_is_found_although_the_size_is_right(tmp_path: Path) -> None:
    folder = save(tmp_path, 10)
    state = check_checkpoint(folder).state
    for name, content in FILES.items():
        check_file(folder / name, len(content), state.checksums[name])
        flip_bit(folder / name)
        with pytest.raises(CheckpointError, match=f"{name}: damaged: its content does not match the checksum"):
            check_file(folder / name, len(content), state.checksums[name])
    with pytest.raises(CheckpointError, match="of an unknown kind; update ascend_cpt"):
        check_file(folder / name, len(content), "md5:00")


def test_a_changed_state_file_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, 10)
    path = folder / STATE_NAME
    assert read_state(folder).fingerprint["phases"] == [["a", 0, 1]]
    path.write_text(path.read_text().replace('"position": 10', '"position": 11'))
    with pytest.raises(CheckpointError, match="cpt_state.json: damaged: its content does not match its checksum"):
        read_state(folder)


def test_a_state_without_checksums_is_read(tmp_path: Path) -> None:
    folder = save(tmp_path, 10, checksums=False)
    path = folder / STATE_NAME
    record = json.loads(path.read_text())
    del record["checksum"], record["checksums"]  # as written by earlier versions
    path.write_text(json.dumps(record))
    assert locate_checkpoint(folder).state.checksums == {}


def set_files(names: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    return lambda record: record.update(files=names, checksums={})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_files({"../../evil.txt": 1}), "'../../evil.txt' is not a plain file name"),
        (set_files({"/etc/passwd": 1}), "'/etc/passwd' is not a plain file name"),
        (set_files({"a\0b": 1}), r"'a\\x00b' is not a plain file name"),
        (set_files({"\x1b[2J": 1}), r"'\\x1b\[2J' is not a plain file name"),
        (set_files({STATE_NAME: 1}), "'cpt_state.json' with 1 bytes is not a file of a checkpoint"),
        (set_files({"a": -1}), "'a' with -1 bytes"),
        (set_files({"a": "1"}), r"files\['a'\]: expected int, got '1'"),
        (lambda record: record["checksums"].popitem(), "is only in one of `files` and `checksums`"),
        (lambda record: record.update(step=-1), "negative count"),
        (lambda record: record.update(step=True), "step: expected int, got True"),
        (lambda record: record.update(step="x"), "step: expected int, got 'x'"),
        (lambda record: record.update(fingerprint=[1]), "fingerprint: expected dict, got a list"),
        (lambda record: record.update(evil=1), "'evil': unknown name"),
        (lambda record: record.pop("tokens"), "tokens: missing"),
    ],
)
def test_a_delivered_state_is_checked(tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str) -> None:
    folder = save(tmp_path, 10)
    path = folder / STATE_NAME
    record = json.loads(path.read_text())
    del record["checksum"]
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=message) as caught:
        read_state(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"step": ' * 5000, "\0", "[]", "3", '{"step": NaN}', "\ud800"])
def test_a_state_that_is_no_json_object(tmp_path: Path, text: str) -> None:
    folder = save(tmp_path, 10)
    (folder / STATE_NAME).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(CheckpointError, match="cpt_state.json: cannot be read") as caught:
        read_state(folder)
    assert "\n" not in str(caught.value)


def test_the_ranks_of_the_saving_layout_verify_their_own_shards() -> None:
    files = {f"cpt-{kind}-{rank:07d}-0000008.safetensors": 10 + rank for rank in range(8) for kind in ("model", "opt")}
    files |= {"metadata.json": 3, "common.json": 1}
    for rank in range(8):
        share = choose_share(files, rank, 8)
        assert {f"cpt-{kind}-{rank:07d}-0000008.safetensors" for kind in ("model", "opt")} <= set(share)


@given(st.dictionaries(st.text("abc-0123456789", min_size=1), st.integers(0, 1000), max_size=40), st.integers(1, 9))
def test_every_file_is_verified_by_one_process_and_the_bytes_are_divided(files: dict[str, int], count: int) -> None:
    shares = [choose_share(files, index, count) for index in range(count)]
    assert sorted(name for share in shares for name in share) == sorted(files)
    loads = [sum(files[name] for name in share) for share in shares]
    assert max(loads) - min(loads) <= max(files.values(), default=0)


def test_the_files_of_the_optimizer_are_not_read_for_weights(tmp_path: Path) -> None:
    state = read_state(save(tmp_path, 10))
    assert list(list_weight_files(state)) == ["cpt-model-0000000-0000001.safetensors"]
    gathered = dataclasses.replace(
        state, files={"metadata.json": 1, "opt.json": 1, "cpt-opt-0000001-0000002.safetensors": 1}
    )
    assert list(list_weight_files(gathered)) == ["metadata.json", "opt.json"]
