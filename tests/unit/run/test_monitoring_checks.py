"""Invalid settings of validation, sinks and guards are reported before the run."""

from __future__ import annotations

from typing import Any

import pytest

from ascend_cpt.config.loader import load_config
from ascend_cpt.config.parallel_layout import derive_layout
from ascend_cpt.errors import ConfigError
from ascend_cpt.run.checks import monitoring as monitoring_checks
from ascend_cpt.run.checks.monitoring import find_monitoring_problems

WRAPPER = {"type": "MFTrainOneStepCell", "use_clip_grad": True, "scale_sense": 1.0}


def find(tmp_path: Any, overrides: dict[str, Any]) -> list[str]:
    path = tmp_path / "run.yaml"
    path.write_text("context: {device_target: Ascend}\ncpt: {seq_length: 8, global_batch_size: 8}\n", encoding="utf-8")
    config = load_config(path, {"runner_wrapper": WRAPPER, **overrides})
    return find_monitoring_problems(config, derive_layout(config, 8))


def task(every: str | None = None, **settings: Any) -> dict[str, Any]:
    return {"cpt.validation": {"every": every, "tasks": {"exam": {"path": "x", "kind": "continuation", **settings}}}}


def alarm(every: str | None = None, **settings: Any) -> dict[str, Any]:
    return {"cpt.validation": {"every": every, "sets": {"general": {"path": "x", **settings}}}}


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        alarm(max_increase=0.05, on_increase="stop"),
        alarm("10 steps", max_increase=0.05, on_increase="stop", patience="3 validations"),
        {"cpt.guards": {"loss_spike": {}, "grad_norm_spike": {"sigmas": 4}}},
        {"cpt.guards": {"grad_norm_spike": {}}, "parallel_config": {"pipeline_stage": 2}},
        {"cpt.monitor.sinks": []},
        task(schema="lambada", metric="exact", few_shot=1, few_shot_path="y", max_items=4),
        task("10 steps", max_drop=0.02, on_drop="stop", patience="100 steps"),
    ],
)
def test_valid_settings(tmp_path: Any, overrides: dict[str, Any]) -> None:
    assert find(tmp_path, overrides) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            alarm(max_increase=0.1, on_increase="halt"),
            "sets.general.on_increase: 'halt' is unknown; choose warn or stop",
        ),
        ({"cpt.validation": {"every": "1B"}}, "cpt.validation: has neither sets nor tasks; add one"),
        (task(kind="choice"), "cpt.validation.tasks.exam.kind: 'choice' is unknown"),
        (task(on_drop="halt", max_drop=0.1), "tasks.exam.on_drop: 'halt' is unknown; choose warn or stop"),
        (task(on_drop="stop"), "tasks.exam: on_drop stop needs max_drop"),
        (task(max_drop=-0.1), "tasks.exam.max_drop: must not be negative, got -0.1"),
        (task("10 steps", max_drop=0.1, patience="10 steps"), "exam.patience: has no effect without on_drop: stop"),
        (
            task(kind="needle", lengths=[8, 16]),
            "command line: cpt.validation.tasks.exam.lengths: 16 is more than seq_len",
        ),
        (task(metric="acc"), "command line: cpt.validation.tasks.exam.metric: continuation has no acc"),
        (alarm(on_increase="stop"), "on_increase stop needs max_increase"),
        (
            alarm("10 steps", max_increase=0.1, patience="1B"),
            "general.patience: has no effect without on_increase: stop; set it, or remove patience",
        ),
        (
            alarm(max_increase=0.1, on_increase="stop", patience="20 steps"),
            "general.patience: has no effect without cpt.validation.every",
        ),
        (alarm(max_increase=-1), "must not be negative, got -1"),
        ({"cpt.monitor.sinks": ["tensorbord"]}, "'tensorbord' is unknown; did you mean 'tensorboard'?"),
        ({"cpt.monitor.sinks": ["mlflow"]}, "'mlflow' is unknown; choose from tensorboard, wandb, swanlab"),
        ({"cpt.guards": {"loss_spike": {"sigmas": 0}}}, "needs sigmas above 0"),
        ({"cpt.guards": {"loss_spike": {"window_steps": 3}}}, "window_steps of at least 4"),
        ({"cpt.guards": {"loss_spike": {}}, "use_skip_data_by_global_norm": True}, "are both set; keep one"),
        ({"cpt.guards": {"loss_spike": {}}, "runner_wrapper": {"type": "Other"}}, "needs runner_wrapper.type"),
        (
            {"cpt.guards": {"grad_norm_spike": {}}, "runner_wrapper": {"type": "MFTrainOneStepCell"}},
            "set runner_wrapper.use_clip_grad to True",
        ),
        (
            {"cpt.guards": {"loss_spike": {}}, "parallel_config": {"pipeline_stage": 2}},
            "with pipeline stages only the last stage has the loss",
        ),
    ],
)
def test_invalid_settings_are_reported(tmp_path: Any, overrides: dict[str, Any], message: str) -> None:
    if overrides.get("runner_wrapper"):
        overrides = {**overrides}
    (problem,) = find(tmp_path, overrides)
    assert message in problem


@pytest.mark.parametrize("patience", ["0", "0 validations", "-1 steps", "3 epochs", "long", True, [1]])
def test_malformed_patience_is_reported_with_its_place(tmp_path: Any, patience: Any) -> None:
    with pytest.raises(ConfigError, match=r"cpt\.validation\.sets\.general\.patience: expected a"):
        find(tmp_path, alarm("10 steps", max_increase=0.1, on_increase="stop", patience=patience))


def test_every_problem_of_an_alarm_is_listed(tmp_path: Any) -> None:
    assert len(find(tmp_path, alarm(max_increase=-1, patience="1B"))) == 3


def test_service_that_is_not_installed(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitoring_checks, "is_installed", lambda name: False)
    (problem,) = find(tmp_path, {"cpt.monitor.sinks": ["swanlab"]})
    assert "swanlab needs the package swanlab; pip install swanlab" in problem
