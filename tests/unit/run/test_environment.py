"""`cpt.environment` and the places where `cpt.compile_cache` is refused; the clock of the start."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from ascend_cpt.config.loader import load_config
from ascend_cpt.config.parallel_layout import ParallelLayout
from ascend_cpt.errors import ConfigError
from ascend_cpt.monitor.record import to_scalars, to_values
from ascend_cpt.monitor.sinks import format_start
from ascend_cpt.run.checks.checkpoints import find_checkpoint_problems
from ascend_cpt.run.checks.environment import find_environment_problems, set_environment
from ascend_cpt.run.launch.start_clock import StartClock

ONE, TWO = (ParallelLayout(world_size=size, data_parallel=size) for size in (1, 2))


def find_problems(tmp_path: Path, cpt: str, layout: ParallelLayout = ONE, device: str = "Ascend") -> list[str]:
    path = tmp_path / "run.yaml"
    path.write_text(f"context: {{device_target: {device}}}\ncpt: {{seq_length: 8, global_batch_size: 2, {cpt}}}\n")
    return find_environment_problems(load_config(path), layout)


def test_known_variables_with_text_or_numbers(tmp_path: Path) -> None:
    assert not find_problems(tmp_path, 'environment: {HCCL_BUFFSIZE: 400, CPU_AFFINITY: "True"}')
    (unknown,) = find_problems(tmp_path, "environment: {HCCL_BUFSIZE: 400}")
    assert "run.yaml:2: cpt.environment.HCCL_BUFSIZE: not a variable" in unknown and "'HCCL_BUFFSIZE'" in unknown
    (preload,) = find_problems(tmp_path, "environment: {LD_PRELOAD: /tmp/x.so}")
    assert "set it in the shell" in preload
    (boolean,) = find_problems(tmp_path, "environment: {CPU_AFFINITY: True}")
    assert "expected text (in quotes)" in boolean


def test_the_shell_must_not_contradict() -> None:
    environ = {"HCCL_BUFFSIZE": "200"}
    with pytest.raises(ConfigError, match=r"HCCL_BUFFSIZE is 400, but the environment has HCCL_BUFFSIZE=200; unset"):
        set_environment({"HCCL_BUFFSIZE": 400}, environ)
    set_environment({"HCCL_BUFFSIZE": 200, "CPU_AFFINITY": "True"}, environ)
    assert environ == {"HCCL_BUFFSIZE": "200", "CPU_AFFINITY": "True"}


@pytest.mark.parametrize(("layout", "device", "refused"), [(ONE, "Ascend", 0), (TWO, "CPU", 0), (TWO, "Ascend", 1)])
def test_where_the_compile_cache_works(tmp_path: Path, layout: ParallelLayout, device: str, refused: int) -> None:
    assert len(find_problems(tmp_path, "compile_cache: True", layout, device)) == refused
    assert not find_problems(tmp_path, "compile_cache: False", TWO)


@pytest.mark.parametrize(("needing", "num_problems"), [("", 0), (", export: {to: /tmp/x}", 1)])
def test_a_run_that_saves_nothing_has_nothing_to_export(tmp_path: Path, needing: str, num_problems: int) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"cpt: {{seq_length: 8, global_batch_size: 2, checkpoint: {{save: False}}{needing}}}\n")
    problems = find_checkpoint_problems(load_config(path))
    assert len(problems) == num_problems
    assert all("cpt.export need checkpoints; remove one of them" in problem for problem in problems)


def test_start_clock_adds_up_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([103.0, 104.0, 106.0, 107.5, 107.6, 120.0])
    monkeypatch.setattr(time, "time", lambda: next(times))
    clock = StartClock(started_s=100.0)
    for part in ("import", "data", "import", "weights", "validation", "compile"):
        clock.end(part)
    record = clock.make_record(5)
    values: dict[str, Any] = to_values(record)
    assert list(values)[:2] == ["kind", "step"] and values["kind"] == "start"
    assert (record.import_s, record.data_s, record.total_s) == pytest.approx((5.0, 1.0, 20.0))
    assert set(to_scalars(record)) == {f"start/{name}_s" for name in
        ("total", "import", "data", "weights", "validation", "compile")}  # fmt: skip
    assert format_start(record).startswith("first step after 20.0 s: import 5.0 s, data 1.0 s, weights 1.5 s")


def test_the_clock_begins_with_the_process() -> None:
    clock = StartClock()
    clock.end("import")
    assert 0 < clock.make_record(1).import_s < 3600
