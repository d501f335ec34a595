"""tools/tune.py through the launcher on an emulated NPU: real overlays, one of which fails."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from ascend_cpt.config.loader import load_config
from ascend_cpt.softnpu.environment import SWITCH
from tests.emulation import needs_emulation
from tests.integration.conftest import REPOSITORY, run_command
from tests.integration.softnpu.layouts import SHORT_ROWS, Layout
from tests.integration.softnpu.trial import describe_layout

pytestmark = [needs_emulation, pytest.mark.slow]
OVERLAYS = ("fused_rope", "jit_level_o1")


@pytest.mark.timeout(1800)
def test_session_on_an_emulated_npu(get_dataset: Callable[[int], Path], tmp_path: Path) -> None:
    config = describe_layout(Layout(), get_dataset(SHORT_ROWS), tmp_path / "run", Path("random"))
    broken = tmp_path / "no_such_operator.yaml"
    broken.write_text(yaml.safe_dump({"model": {"model_config": {"hidden_act": "no_such_operator"}}}))
    overlays = [*(str(REPOSITORY / f"configs/tuning/{name}.yaml") for name in OVERLAYS), str(broken)]
    command = [sys.executable, "tools/tune.py", str(config), "--steps", "4", "--warmup-steps", "1", "--rounds", "2"]
    command += ["--overlays", *overlays, "--folder", str(tmp_path / "work"), "--write", str(tmp_path / "tuned.yaml")]
    environment = {SWITCH: "1", "SOFTNPU_THREADS": str(os.cpu_count() or 1), "ASCEND_CPT_ALLOW_LOCAL_MASTER": "1"}
    result = run_command(command, env=environment, timeout_s=1700)
    print(result.stdout)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-6000:]
    assert "Measured on emulated NPUs; the results do not apply to real NPUs." in result.stdout
    rows = {line.split()[0]: line for line in result.stdout.splitlines() if line.startswith(("base ", *OVERLAYS))}
    dropped = [line for line in result.stdout.splitlines() if line.startswith("dropped ")]
    assert rows.keys() == {"base", *OVERLAYS}
    assert len(dropped) == 1 and dropped[0].startswith("dropped no_such_operator: ")
    if "No overlay gained more than the noise" in result.stdout:
        assert not (tmp_path / "tuned.yaml").exists()
        return
    assert "Fastest: " in result.stdout
    assert "real NPUs" in (tmp_path / "tuned.yaml").read_text(encoding="utf-8").splitlines()[2]
    tuned = load_config(tmp_path / "tuned.yaml").mindformers
    is_fused = bool(tuned["model"]["model_config"].get("apply_rope_fusion"))
    assert is_fused or tuned["context"]["jit_config"]["jit_level"] == "O1"
