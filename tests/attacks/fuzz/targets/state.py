"""Files that a run leaves: the state of a checkpoint, its records, run.json, and the job secret."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from ascend_cpt.checkpoint.checksums import checksum_bytes
from ascend_cpt.checkpoint.fingerprint import describe_differences
from ascend_cpt.checkpoint.gather import check_ranks
from ascend_cpt.checkpoint.locate import find_missing_ranks, find_newest_complete, locate_checkpoint
from ascend_cpt.checkpoint.state import STATE_NAME, RunState, write_state
from ascend_cpt.checkpoint.verify import choose_share, list_weight_files
from ascend_cpt.cluster.messages.secret import read_secret_file
from ascend_cpt.errors import CptError
from ascend_cpt.monitor.forgetting import AlarmLimits, ForgettingAlarm
from ascend_cpt.monitor.history import (
    EVALUATIONS_NAME,
    METRICS_NAME,
    RUN_INFO_NAME,
    add_evaluations,
    read_evaluations,
    read_history,
    read_lines,
    read_metrics,
    read_run_info,
    read_values,
)
from ascend_cpt.monitor.record import DataRecord, RunInfo, StepRecord, TaskRecord, ValidationRecord, to_values
from ascend_cpt.monitor.report.run_data import load_run
from ascend_cpt.monitor.report.write_report import render_report
from ascend_cpt.monitor.sinks import JsonlSink
from ascend_cpt.monitor.summary import summarize_run
from ascend_cpt.monitor.trackers import EvaluationTrackers
from ascend_cpt.recipe.schedule import build_schedule
from ascend_cpt.run.evaluation.watching import STOP_NAME, drop_recorded, take_stop_request
from ascend_cpt.run.export import model_card
from ascend_cpt.run.verified import Verifier
from tests.attacks.fuzz.harness import Prepared, Target
from tests.attacks.fuzz.mutate import by_lines, mutate_bytes, mutate_json, one_of, rewrite

FINGERPRINT = {
    "seq_length": 64,
    "global_batch_size": 4,
    "phases": [["main", 0, 4, [["code", "1/2"]]]],
    "model": {"hidden_size": 8},
    "schedule": build_schedule("cosine", peak_lr=1e-3, final_lr=1e-4, total_steps=4, warmup_steps=1).to_record(),
    "optimizer": {"beta1": 0.9},
}
STEPS = [
    StepRecord(
        step=step, total_steps=4, loss=3.0 / step, learning_rate=1e-4, grad_norm=0.5, tokens=100 * step,
        step_time_s=0.5, tokens_per_s=200.0, skipped="loss spike" if step == 2 else "", num_skipped=step // 2,
    )
    for step in range(1, 4)
]  # fmt: skip
JUDGED = [
    ValidationRecord(step=0, name="code", loss=3.0, num_labels=10, bits_per_byte=1.5),
    ValidationRecord(step=2, name="code", loss=3.5, num_labels=10, base_loss=3.0, base_step=0, alarm=True),
    TaskRecord(step=2, name="arc", metric="acc", score=0.5, num_items=9, values={"acc": 0.5, "acc/64/0.5": 0.25}),
]
DATA = DataRecord(step=3, tokens={"main": {"code": 300}}, epochs={"code": 0.25})
INFO = RunInfo(
    name="x", model="m", num_parameters=10, num_devices=1, device_name="cpu", flops_per_token=1.0, peak_flops=None,
    total_steps=4, tokens_per_step=100,
    phases=[{"name": "main", "first_step": 0, "stop_step": 4, "tokens": {"code": 400}}],
    sources={"code": {"rows": 9, "tokens": 1200}},
    validation={"code": {"rows": 2, "of_rows": 3, "max_increase": 0.1, "on_increase": "warn"}},
    tasks={"arc": {"max_drop": 0.1, "on_drop": "warn"}}, base={"kind": "hugging_face", "name": "x"},
    trackers={"sinks": [], "project": "p"}, software={"python": "3.11"},
)  # fmt: skip


def prepare_state(folder: Path) -> Prepared:
    root = folder / "run" / "checkpoint"
    step = root / "iteration_00000003"
    step.mkdir(parents=True)
    names = ["cpt-model-0000000-0000002.safetensors", "cpt-model-0000001-0000002.safetensors", "common.json"]
    for name in names:
        (step / name).write_bytes(b"x")
    files, sums = dict.fromkeys(names, 1), dict.fromkeys(names, checksum_bytes(b"x"))
    state = RunState(
        step=3, total_steps=4, tokens=300, position=12, fingerprint=FINGERPRINT, files=files, checksums=sums
    )
    write_state(step, state)
    path = step / STATE_NAME

    def complete(case: bytes) -> bytes:
        try:
            record = json.loads(case)
            del record["checksum"]
            record["checksum"] = checksum_bytes(json.dumps(record, sort_keys=True).encode())
            return json.dumps(record).encode()
        except (ValueError, KeyError, TypeError, RecursionError):
            return case

    def run(case: bytes) -> None:
        path.write_bytes(case)
        found, skipped = find_newest_complete(root)
        checkpoint = locate_checkpoint(step)
        assert found == checkpoint and not skipped
        assert find_missing_ranks(checkpoint.state.files)
        assert list_weight_files(checkpoint.state).keys() <= checkpoint.state.files.keys()
        shares = [choose_share(checkpoint.state.files, index, 2) for index in range(2)]
        assert sorted([*shares[0], *shares[1]]) == sorted(checkpoint.state.files)
        describe_differences(checkpoint.state.fingerprint, FINGERPRINT)
        Verifier().find_damage(step)
        check_ranks(checkpoint, checkpoint.state.files)
        model_card._render_recipe(checkpoint.state, {}, model_card._Recorded())

    return Prepared(seeds=[path.read_bytes()], mutate=rewrite(mutate_json, complete), run=run)


def _write_records(path: Path, records: list[Any]) -> bytes:
    return "".join(json.dumps(to_values(record)) + "\n" for record in records).encode()


def _read_all(run_dir: Path) -> None:
    """Read the records of a run as all programs do; each may end with its own CptError."""
    path = run_dir / METRICS_NAME
    limits = AlarmLimits(max_change=0.1)

    def restore() -> None:
        history = read_history(path, 3, 2)
        alarm = ForgettingAlarm(sets={"code": limits}, tasks={"arc": limits})
        alarm.restore([*history.validations, *history.tasks])
        assert len(history.steps) <= 2

    def resume() -> None:
        JsonlSink(path, 2).close()
        list(read_lines(path))

    def track() -> None:
        EvaluationTrackers(run_dir, io.StringIO()).update()

    calls = [
        lambda: list(read_metrics(path)),
        lambda: list(read_evaluations(run_dir)),
        restore,
        lambda: read_values(path, "validation", "code"),
        lambda: read_values(path, "task", "arc"),
        lambda: summarize_run(run_dir),
        lambda: load_run(run_dir),
        lambda: drop_recorded(run_dir, JUDGED, "x"),
        lambda: add_evaluations([], run_dir),
        track,
        resume,
    ]
    errors: list[CptError] = []
    for call in calls:
        try:
            call()
        except CptError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def _prepare_records(folder: Path, hostile: str) -> Prepared:
    run_dir = folder / "run"
    run_dir.mkdir()
    metrics = _write_records(run_dir / METRICS_NAME, [JUDGED[0], *STEPS[:2], *JUDGED[1:], STEPS[2], DATA])
    evaluations = _write_records(run_dir / EVALUATIONS_NAME, JUDGED)
    contents = {METRICS_NAME: metrics, EVALUATIONS_NAME: evaluations}
    (run_dir / RUN_INFO_NAME).write_text(json.dumps(INFO.to_values()), encoding="utf-8")

    def run(case: bytes) -> None:
        for name, content in contents.items():
            (run_dir / name).write_bytes(case if name == hostile else content)
        _read_all(run_dir)

    return Prepared(seeds=[contents[hostile]], mutate=by_lines(mutate_json), run=run)


def prepare_metrics(folder: Path) -> Prepared:
    return _prepare_records(folder, METRICS_NAME)


def prepare_evaluations(folder: Path) -> Prepared:
    return _prepare_records(folder, EVALUATIONS_NAME)


def prepare_report(folder: Path) -> Prepared:
    """The first line of a case is run.json, the others are metrics.jsonl."""
    metrics = _write_records(folder, [JUDGED[0], *STEPS, *JUDGED[1:], DATA])

    def run(case: bytes) -> None:
        info, _, records = case.partition(b"\n")
        (folder / RUN_INFO_NAME).write_bytes(info)
        (folder / METRICS_NAME).write_bytes(records)
        page = render_report([load_run(folder)])
        page.encode()

    seed = json.dumps(INFO.to_values()).encode() + b"\n" + metrics
    return Prepared(seeds=[seed], mutate=by_lines(mutate_json), run=run)


def prepare_run_files(folder: Path) -> Prepared:
    """run.json, a request to stop, and RUN/best; the first byte chooses the file."""
    names = {b"r": RUN_INFO_NAME, b"s": STOP_NAME, b"b": "best"}
    step = folder / "checkpoint" / "iteration_00000003"
    step.mkdir(parents=True)
    write_state(step, RunState(step=3, total_steps=4, tokens=300, position=12, fingerprint=FINGERPRINT))

    def run(case: bytes) -> None:
        name = names.get(case[:1], RUN_INFO_NAME)
        (folder / name).write_bytes(case[1:])
        if name == RUN_INFO_NAME:
            read_run_info(folder)
            EvaluationTrackers(folder, io.StringIO()).update()
        elif name == STOP_NAME:
            take_stop_request(folder)
        else:
            locate_checkpoint(folder / "best")

    (folder / EVALUATIONS_NAME).write_bytes(_write_records(folder, JUDGED))
    seeds = [b"r" + json.dumps(INFO.to_values()).encode(), b's{"message": "stop"}', b"biteration_00000003\n"]
    return Prepared(seeds=seeds, mutate=_after_first_byte, run=run)


def _after_first_byte(random: Any, data: bytes) -> bytes:
    mutate = mutate_bytes if data[:1] == b"b" else mutate_json
    return data[:1] + mutate(random, data[1:])


def prepare_secret(folder: Path) -> Prepared:
    path = folder / "secret"
    path.touch(mode=0o600)

    def run(case: bytes) -> None:
        path.write_bytes(case)
        secret = read_secret_file(path)
        assert secret == case.strip() and 32 <= len(secret) <= 4096

    return Prepared(seeds=[b"ab" * 32 + b"\n"], mutate=one_of(mutate_bytes), run=run)


TARGETS = (
    Target(name="state", num_cases=5_000, prepare=prepare_state),
    Target(name="metrics", num_cases=5_000, prepare=prepare_metrics),
    Target(name="evaluations", num_cases=5_000, prepare=prepare_evaluations),
    Target(name="report", num_cases=5_000, prepare=prepare_report),
    Target(name="run_files", num_cases=8_000, prepare=prepare_run_files),
    Target(name="secret", num_cases=8_000, prepare=prepare_secret),
)
