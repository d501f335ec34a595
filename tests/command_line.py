"""Runs the training command in this process, for tests of what a user types."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ascend_cpt.errors import run_command
from ascend_cpt.train import main

REPO_ROOT = Path(__file__).resolve().parents[1]


class TrainCommand:
    """`run_cpt.py` with captured output."""

    def __init__(self, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
        self._capsys, self._folder = capsys, folder

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Run the command and return its exit code, output and errors."""
        try:
            code = run_command(lambda: main(list(arguments)))
        except SystemExit as ended:  # argparse
            code = int(ended.code or 0)
        output = self._capsys.readouterr()
        return code, output.out, output.err

    def dry_run(self, config: str | Path, *arguments: str, draws: bool = False) -> tuple[int, str, str]:
        """Dry-run a configuration of the repository or another one; without `draws` the picture cannot be written."""
        output = self._folder / "output"
        if not draws:
            output.touch()
        return self.run("--config", str(REPO_ROOT / config), "--dry-run", "--output_dir", str(output), *arguments)

    def write(self, cpt: dict[str, object], *bases: str, **sections: object) -> Path:
        """Write a configuration on base files of the repository (by default the tiny Qwen3 on a CPU)."""
        names = bases or ("cpu_tiny", "qwen3_tiny")
        path = self._folder / "config.yaml"
        content = {"base_config": [str(REPO_ROOT / f"configs/base/{name}.yaml") for name in names], **sections}
        path.write_text(yaml.safe_dump({**content, "cpt": cpt}, sort_keys=False), encoding="utf-8")
        return path


@pytest.fixture
def train_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> TrainCommand:
    """The training command, with its output in a temporary folder."""
    return TrainCommand(capsys, tmp_path)
