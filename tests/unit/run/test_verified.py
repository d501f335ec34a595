"""The processes of a job verify a checkpoint together and agree on the one to use."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ascend_cpt.checkpoint import verify
from ascend_cpt.checkpoint.state import STATE_NAME
from ascend_cpt.cluster.job import checks
from ascend_cpt.cluster.job.channel import JobChannel
from ascend_cpt.cluster.job.checks import wait_for_work
from ascend_cpt.data.packed.checksum import checksum_file as checksum_data_file
from ascend_cpt.data.packed.manifest import Manifest, Shard, manifest_path, write_manifest
from ascend_cpt.data.packed.verified import find_record
from ascend_cpt.data.tokenizing.info import TokenizerInfo
from ascend_cpt.errors import CheckpointError, DataError
from ascend_cpt.run.checks.job import verify_data
from ascend_cpt.run.resolved_run import ResolvedRun
from ascend_cpt.run.starting_point import choose_start
from ascend_cpt.run.trained_model import _choose
from ascend_cpt.run.verified import ALONE, Verifier
from tests.unit.checkpoint.test_verify import flip_bit, save
from tests.unit.cluster.job.test_channel import run_all

MODEL, OPTIMIZER = "cpt-model-0000000-0000001.safetensors", "cpt-opt-0000000-0000001.safetensors"
DIFFERS = "damaged: its content does not match the checksum recorded when it was saved"


@pytest.fixture
def read_files(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the list of the files whose checksum is computed."""
    found: list[Path] = []
    original = verify.checksum_file

    def record(path: Path) -> str:
        found.append(path)
        return original(path)

    monkeypatch.setattr(verify, "checksum_file", record)
    return found


@pytest.mark.parametrize("name", [MODEL, OPTIMIZER])
def test_a_damaged_newest_checkpoint_is_passed_over_by_all(tmp_path: Path, name: str, read_files: list[Path]) -> None:
    for step in (10, 20, 30):
        save(tmp_path, step)
    damaged = tmp_path / "iteration_00000030" / name
    flip_bit(damaged)

    def work(channel: JobChannel, rank: int) -> Any:
        found, skipped = Verifier(channel=channel).choose_newest(tmp_path)
        return found and found.state.step, skipped

    assert run_all(4, work) == [(20, (f"{damaged}: {DIFFERS}",))] * 4
    assert set(Counter(read_files).values()) == {1}, "every file is read by one process"
    assert len(read_files) == 4


def test_each_node_verifies_its_own_files_without_shared_storage(tmp_path: Path, read_files: list[Path]) -> None:
    for node in range(2):
        for step in (10, 20):
            save(tmp_path / f"node{node}", step)
    damaged = tmp_path / "node1/iteration_00000020" / MODEL
    flip_bit(damaged)

    def work(channel: JobChannel, rank: int) -> Any:
        found, skipped = Verifier(channel=channel, shared=False).choose_newest(tmp_path / f"node{rank // 2}")
        assert found is not None and found.folder.parent == tmp_path / f"node{rank // 2}"
        return found.state.step, [line.partition("): ")[2] for line in skipped]

    assert run_all(4, work) == [(10, [f"{damaged}: {DIFFERS}"])] * 4
    assert len(read_files) == 8 and set(Counter(read_files).values()) == {1}


def test_no_checkpoint_is_left(tmp_path: Path) -> None:
    flip_bit(save(tmp_path, 10) / MODEL)

    def work(channel: JobChannel, rank: int) -> Any:
        return Verifier(channel=channel).choose_newest(tmp_path)[0]

    assert run_all(2, work) == [None, None]


def test_a_damaged_step_that_was_given_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, 20)
    save(tmp_path, 10)
    flip_bit(folder / OPTIMIZER)
    with pytest.raises(CheckpointError, match=f"{OPTIMIZER}: {DIFFERS}; choose another step"):
        Verifier().locate(folder)
    found, skipped = Verifier().locate(tmp_path)
    assert found.state.step == 10 and skipped == (f"{folder / OPTIMIZER}: {DIFFERS}",)
    flip_bit(tmp_path / "iteration_00000010" / MODEL)
    with pytest.raises(CheckpointError, match=f"no complete checkpoint .*{OPTIMIZER}: {DIFFERS}"):
        Verifier().locate(tmp_path)
    # The optimizer's file is not read, and nothing is compared without verification.
    assert Verifier(weights_only=True).locate(folder)[0].folder == folder
    assert Verifier(enabled=False).locate(folder)[0].folder == folder


def test_an_older_version_has_no_checksums(tmp_path: Path) -> None:
    folder = save(tmp_path, 10, checksums=False)
    flip_bit(folder / MODEL)
    found, skipped = Verifier().choose_newest(tmp_path)
    assert found is not None and skipped == ()
    assert Verifier().note_unverified(found) == (
        f"{folder}: saved by an earlier version without checksums, so its files are not verified",
    )
    assert Verifier(enabled=False).note_unverified(found) == ()


def test_export_skips_damaged_steps(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (10, 20, 30, 40):
        save(tmp_path, step)
    flip_bit(tmp_path / "iteration_00000040" / MODEL)
    flip_bit(tmp_path / "iteration_00000020" / MODEL)
    assert [checkpoint.state.step for checkpoint in _choose(tmp_path, 2, True)] == [30, 10]
    assert f"iteration_00000040/{MODEL}: {DIFFERS}" in caplog.text
    assert [checkpoint.state.step for checkpoint in _choose(tmp_path, 2, False)] == [40, 30]


def complete(run: ResolvedRun, run_dir: Path, steps: tuple[int, ...]) -> ResolvedRun:
    """Write checkpoints of `run`."""
    run = dataclasses.replace(run, run_dir=run_dir)
    for step in steps:
        folder = save(run.checkpoint_root, step)
        state = json.loads((folder / STATE_NAME).read_text())
        del state["checksum"]
        state.update(fingerprint=json.loads(json.dumps(run.fingerprint())), total_steps=run.budget.total_steps)
        (folder / STATE_NAME).write_text(json.dumps(state))
    return run


def test_a_run_resumes_from_the_undamaged_step(resolve_run: Callable[..., ResolvedRun], tmp_path: Path) -> None:
    run = complete(resolve_run(), tmp_path / "run", (300, 400))
    folder = run.checkpoint_root / "iteration_00000400"
    flip_bit(folder / MODEL)
    for requested in (None, "auto", str(run.run_dir), str(run.checkpoint_root)):
        start = choose_start(run, requested, channel=ALONE)
        assert (start.step, start.warnings) == (300, (f"{folder / MODEL}: {DIFFERS}",))
    with pytest.raises(CheckpointError, match=f"{DIFFERS}; choose another step"):
        choose_start(run, str(folder), channel=ALONE)
    assert choose_start(run, None).step == 400, "a dry run compares sizes only"
    hasty = resolve_run(checkpoint={"verify": False})
    assert choose_start(dataclasses.replace(hasty, run_dir=run.run_dir), None, channel=ALONE).step == 400


def test_processes_that_finish_at_different_times_do_not_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "REPORT_S", 0.05)

    def work(channel: JobChannel, rank: int) -> int:
        return wait_for_work(channel, "work", lambda: time.sleep(1.2 * (rank == 1)) or rank)

    # The channel's timeout is shorter than the work.
    assert run_all(3, work, timeout_s=0.5) == [0, 1, 2]


def test_an_error_of_one_process_ends_all() -> None:
    def fail() -> None:
        raise TimeoutError("the disk")

    def work(channel: JobChannel, rank: int) -> Any:
        try:
            return wait_for_work(channel, "work", fail if rank == 1 else lambda: None)
        except TimeoutError as error:
            return str(error)

    results = run_all(2, work)
    assert results[1] == "the disk"


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    data, index = tmp_path / "data/x.mindrecord0", tmp_path / "data/x.mindrecord0.db"
    data.parent.mkdir()
    data.write_bytes(bytes(range(200)))
    index.write_bytes(b"index")
    shard = Shard(
        file=data.name, size_bytes=200, sha256=checksum_data_file(data), index_file=index.name, index_size_bytes=5,
        index_sha256=checksum_data_file(index), num_rows=1, num_tokens=1, num_documents=1, text_bytes=1,
    )  # fmt: skip
    tokenizer = TokenizerInfo(type="x", name="x", fingerprint="x", vocab_size=9, eod_id=0, pad_id=1)
    whole = Manifest(key="text", output_format="mindrecord", seq_length=8, tokenizer=tokenizer, shards=(shard,))
    return write_manifest(whole, manifest_path(data.parent / "x"))


def test_data_is_verified_once_on_a_machine(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert str(find_record()).startswith(str(tmp_path / "cache/ascend_cpt/verified_"))
    with caplog.at_level("INFO"):
        for _ in range(2):
            verify_data([manifest], ALONE)
    assert [record.args[1] for record in caplog.records if isinstance(record.args, tuple)] == [205, 0]
    path = manifest.folder / "x.mindrecord0"
    flip_bit(path)
    with pytest.raises(DataError, match="x.mindrecord0: content differs from the checksum"):
        verify_data([manifest], ALONE)


def test_a_folder_for_the_record_that_cannot_be_written(
    manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    verify_data([manifest], ALONE)
    assert "verified again at the next start; set XDG_CACHE_HOME" in caplog.text
    assert os.listdir(tmp_path / "data") == os.listdir(manifest.folder)


@pytest.mark.parametrize(
    "change",
    [
        {"model": 3},
        {"model": None},
        {"sources": [1]},
        {"sources": [["a", ["x"]]]},
        {"phases": [3]},
        {"phases": None},
        {"schedule": {"kind": 1}},
        {"schedule": 3},
        {"phases": [[{"name": []}]]},
    ],
)
def test_a_delivered_fingerprint_gives_one_line(
    resolve_run: Callable[..., ResolvedRun], tmp_path: Path, change: dict[str, Any]
) -> None:
    run = complete(resolve_run(), tmp_path / "run", (300,))
    path = run.checkpoint_root / "iteration_00000300" / STATE_NAME
    record = json.loads(path.read_text())
    record["fingerprint"].update(change)
    path.write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="different settings"):
        choose_start(run, None, channel=ALONE)
    config = dataclasses.replace(run.config, cpt=dataclasses.replace(run.config.cpt, init_from=str(run.run_dir)))
    for other, settings in (
        (dataclasses.replace(run, config=config, run_dir=tmp_path / "new"), {}),
        (run, {"extend": True}),
    ):
        with pytest.raises(CheckpointError, match="fingerprint does not describe a run|--extend only makes") as caught:
            choose_start(other, None, channel=ALONE, **settings)
        assert "\n" not in str(caught.value)
