"""Raw text of stages is packed before the first one starts, in launches of run_cpt.py. Nothing is trained."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from ascend_cpt import train_stages as stages_module
from ascend_cpt.cluster.job.channel import JobChannel
from ascend_cpt.config.loader import load_config
from ascend_cpt.data.packed.manifest import load_manifest
from ascend_cpt.errors import CptError
from ascend_cpt.run.launch.command_line import PACK_ONLY, collect_overrides, parse_arguments
from ascend_cpt.run.launch.stages import StageOptions, plan_launches
from ascend_cpt.run.raw_sources import pack_raw_sources
from ascend_cpt.train_stages import train_stages

REPOSITORY = Path(__file__).resolve().parents[3]
TOKENIZER = REPOSITORY / "tests/reference/tasks"
EOD = json.loads((TOKENIZER / "tokenizer.json").read_text())["added_tokens"][0]["content"]
TRAINED = 9
"""Exit code of a launch that would train."""

Write = Callable[..., Path]


class FakeLauncher:
    """Packs in this process, and ends every launch that would train with `TRAINED`."""

    def __init__(self) -> None:
        self.packed: list[str] = []
        self.trained: list[str] = []

    def __call__(self, arguments: Sequence[str]) -> int:
        args = parse_arguments(shlex.split(arguments[0])[1:])
        config = load_config(args.config, collect_overrides(args))
        if not args.pack_only:
            self.trained.append(config.cpt.run_name or "")
            return TRAINED
        self.packed.append(config.cpt.run_name or "")
        with JobChannel(rank=0, size=1, node=0, address=None) as channel:
            pack_raw_sources(config, channel, print)
        return 0


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> FakeLauncher:
    fake = FakeLauncher()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(stages_module, "run_launcher", fake)
    return fake


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes two stages on the same text, in rows of 64 and 128; arguments go into `set`."""
    lines = [json.dumps({"text": f"the cat sat on mat number {k} " * 20}) for k in range(20)]
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    raw = {"input": str(tmp_path / "text.jsonl"), "tokenizer": str(TOKENIZER), "eod_token": EOD, "n_subs": 1}
    bases = [str(REPOSITORY / f"configs/base/{name}.yaml") for name in ("cpu_tiny", "qwen3_tiny")]
    cpt = {
        "init_from": "random",
        "seq_length": 64,
        "global_batch_size": 2,
        "train_tokens": 10 * 2 * 64,
        "schedule": {"peak_lr": 1e-3},
        "sources": {"web": {"raw": raw}},
    }
    config = {"base_config": bases, "output_dir": str(tmp_path / "output"), "cpt": cpt}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config, sort_keys=False))

    def run(first: dict[str, Any] | None = None, second: dict[str, Any] | None = None) -> Path:
        entries = [
            {"name": "64", "config": "run.yaml", "set": first or {}},
            {"name": "128", "config": "run.yaml", "set": {"cpt.seq_length": 128, **(second or {})}},
        ]
        path = tmp_path / "two.yaml"
        path.write_text(yaml.safe_dump({"stages": entries}))
        return path

    return run


def find_packed(tmp_path: Path) -> list[int]:
    """Return the row lengths of the datasets in the cache."""
    found = sorted((tmp_path / "output/packed").glob("web-*/*.manifest.json"))
    return sorted(load_manifest(path).seq_length or 0 for path in found)


def test_all_stages_are_packed_once_before_the_first_is_trained(
    write: Write, launcher: FakeLauncher, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write()
    assert train_stages(path, [], StageOptions()) == TRAINED
    assert (launcher.packed, launcher.trained) == (["two_64", "two_128"], ["two_64"])
    assert find_packed(tmp_path) == [64, 128]
    assert f"stage 128: packing: run_cpt.py --config {tmp_path}/run.yaml --set " in capfd.readouterr().out
    assert train_stages(path, [], StageOptions()) == TRAINED
    assert launcher.packed == ["two_64", "two_128"], "the second start finds them"


def test_stages_with_the_same_rows_share_a_dataset(write: Write, launcher: FakeLauncher, tmp_path: Path) -> None:
    train_stages(write(second={"cpt.seq_length": 64}), [], StageOptions())
    assert launcher.packed == ["two_64"]
    assert find_packed(tmp_path) == [64]


def test_a_dry_run_says_what_would_be_packed(
    write: Write, launcher: FakeLauncher, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write()
    assert train_stages(path, [], StageOptions(), dry_run=True) == 0
    printed = capfd.readouterr().out
    first, second = printed.split("--- stage ")[1:]
    assert (
        first.startswith("64\nraw      web: 1 json file, ") and "rows of 64, packing concat: to be packed in" in first
    )
    assert "rows of 128, packing concat: to be packed in" in second and "plan     needs the packed data" in second
    assert not (launcher.packed or launcher.trained or find_packed(tmp_path))
    train_stages(path, [], StageOptions())
    capfd.readouterr()
    assert train_stages(path, [], StageOptions(), dry_run=True) == 0
    printed = capfd.readouterr().out
    assert printed.count("packed earlier in") == 2 and "2 rows × 128 tokens" in printed
    assert launcher.trained == ["two_64"]


@pytest.mark.parametrize(("shared", "packings"), [(True, 2), (False, 4)])
def test_nodes_without_shared_storage_always_launch_the_packing(
    write: Write, launcher: FakeLauncher, shared: bool, packings: int
) -> None:
    """A node cannot see whether the text is packed on the others, and all nodes must start the same launches."""
    setting = {"cpt.storage.shared": shared}
    path, launch = write(setting, setting), ["2", "1", "10.0.0.1", "8118", "0"]
    for _ in range(2):
        assert train_stages(path, launch, StageOptions()) == TRAINED
    assert len(launcher.packed) == packings


def test_bad_text_of_the_last_stage_stops_before_anything_is_packed(
    write: Write, launcher: FakeLauncher, tmp_path: Path
) -> None:
    path = write(second={"cpt.sources.web.raw.input": str(tmp_path / "missing.jsonl")})
    with pytest.raises(CptError, match="cpt.sources.web.raw: .*missing.jsonl"):
        train_stages(path, [], StageOptions())
    assert not launcher.packed


def test_a_failed_packing_ends_the_command(
    write: Write, launcher: FakeLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages_module, "run_launcher", lambda arguments: 5 if PACK_ONLY in arguments[0] else TRAINED)
    assert train_stages(write(), [], StageOptions()) == 5


def test_a_stage_starts_from_the_folder_of_the_run_before(write: Write) -> None:
    first, second = plan_launches(write(), [], StageOptions(output_dir="elsewhere"))
    assert first.config.cpt.init_from == "random"
    assert second.config.cpt.init_from == "elsewhere/two_64"
