"""tools/train_stages.py --reshard: every launch has the flag. No real training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ascend_cpt.checkpoint.state import RunState, write_state
from ascend_cpt.errors import CheckpointError
from ascend_cpt.run.launch.stages import StageOptions
from ascend_cpt.train_stages import resolve_stages
from tests.unit.test_train_stages import FakeLauncher, launcher, run, write_stages  # noqa: F401


def test_an_unfinished_stage_continues_in_another_layout(
    write_stages: Callable[..., Path],  # noqa: F811
    launcher: FakeLauncher,  # noqa: F811
) -> None:
    on_npus = {"set": {"context.device_target": "Ascend", "parallel_config.data_parallel": 2}}
    path = write_stages(on_npus, on_npus)
    plan = resolve_stages(path, [], StageOptions())[0].run
    folder = plan.checkpoint_root / "iteration_00000003"
    folder.mkdir(parents=True)
    layout = {**plan.describe_layout(), "data_parallel": 4}
    state = RunState(step=3, total_steps=10, tokens=1, position=1, fingerprint=plan.fingerprint(), layout=layout)
    write_state(folder, state)
    with pytest.raises(CheckpointError, match=r"data_parallel: 4 → 2\); use that layout, or pass --reshard"):
        run(path)
    assert run(path, reshard=True) == 0
    assert len(launcher.commands) == 2 and all(command.endswith(" --reshard") for command in launcher.commands)
