"""The command line of tools/merge_weights.py, and the tool without a sweep."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ascend_cpt.errors import ConfigError
from ascend_cpt.run.merging.command_line import parse_arguments

REPO_ROOT = Path(__file__).resolve().parents[4]
MODELS = REPO_ROOT / "tests/reference/merge"
LINEAR = ["out", "--method", "linear", "--model", "a=1-w", "--model", "b=w"]


def run_tool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/merge_weights.py", *map(str, arguments)]
    return subprocess.run(command, cwd=REPO_ROOT, capture_output=True, text=True, check=False)


def test_a_sweep() -> None:
    order = parse_arguments("", [*LINEAR, "--sweep", "w=1,0,0.25", "--like", "b"])
    assert order.sweep is not None and (order.sweep.variable, order.sweep.values) == ("w", (0.0, 0.25, 1.0))
    assert order.like == Path("b") and order.recipe.at({"w": 0.25}).weights == (0.75, 0.25)
    assert parse_arguments("", LINEAR).like == Path("a")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*LINEAR, "--sweep", "w"], "--sweep 'w': expected NAME=V1,V2"),
        ([*LINEAR, "--sweep", "w=0,x"], "expected NAME=V1,V2"),
        ([*LINEAR, "--sweep", "w=0,nan"], "expected NAME=V1,V2"),
        ([*LINEAR, "--sweep", "w=0,0.0"], "contains a value twice"),
        (
            [*LINEAR, "--sweep", "t=0,1"],
            "--sweep 't': the coefficients must use this variable and no other (they use: w)",
        ),
        (["out", "--method", "linear", "--model", "a", "--model", "b", "--sweep", "w=0,1"], "(they use: none)"),
        (["out", "--method", "slerp", "--base", "a", "--model", "b", "--t", "t", "--sweep", "t=0,1.5"], "--t 1.5"),
        ([*LINEAR, "--like", "c"], "--like c: not one of the merged models"),
        ([*LINEAR, "--max-shard-gb", "0"], "--max-shard-gb 0: must be above 0"),
        ([*LINEAR, "--batch-size", "0"], "--batch-size 0: must be at least 1"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_arguments("", arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_tool_writes_a_merge_with_a_card(tmp_path: Path) -> None:
    arguments = ["--method", "task_arithmetic", "--base", MODELS / "base", "--like", MODELS / "instruct"]
    weights = ["--model", f"{MODELS}/continued=1", "--model", f"{MODELS}/instruct=0.5"]
    result = run_tool(tmp_path / "chat", *arguments, *weights)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{tmp_path / 'chat'}: 21 tensors")
    card = (tmp_path / "chat/README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: transformers\ntags:\n- ascend_cpt\n- merge\n---\n\n# chat\n")
    assert "| base | base |\n| continued | 1 |\n| instruct | 0.5 |" in card and "base_model" not in card
    again = run_tool(tmp_path / "chat", *arguments, *weights)
    assert again.returncode == 2 and again.stderr.startswith("error: ") and "already exists" in again.stderr


def test_the_card_names_models_of_the_hub(tmp_path: Path) -> None:
    cached = tmp_path / "hub/models--Org--Model-Base/snapshots/abc"
    cached.parent.mkdir(parents=True)
    cached.symlink_to(MODELS / "base")
    copied = tmp_path / "hub/models--Org--Model-Chat/snapshots/def"
    copied.mkdir(parents=True)
    for file in (MODELS / "instruct").iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    arguments = ["--method", "slerp", "--base", copied, "--model", MODELS / "continued", "--t", "0.25"]
    result = run_tool(tmp_path / "merged", *arguments)
    assert result.returncode == 0, result.stderr
    card = (tmp_path / "merged/README.md").read_text(encoding="utf-8")
    assert "base_model:\n- Org/Model-Chat\nbase_model_relation: merge\n" in card
    assert "| Org/Model-Chat | base |\n| continued | t = 0.25 |" in card


def test_errors_of_the_tool_are_one_line(tmp_path: Path) -> None:
    result = run_tool(tmp_path / "merged", "--method", "dare_ties", "--model", "a", "--model", "b")
    assert result.returncode == 2
    assert (
        result.stderr
        == "error: --method 'dare_ties': not a known merge method; known: linear, slerp, task_arithmetic\n"
    )
    result = run_tool(tmp_path / "merged", "--method", "linear", "--model", f"{MODELS}/base=w", "--model", "b")
    assert result.returncode == 2 and "w: has no value" in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "merged").exists()


def test_warnings_are_printed(tmp_path: Path) -> None:
    longer = tmp_path / "longer"
    longer.mkdir()
    config = json.loads((MODELS / "continued/config.json").read_text(encoding="utf-8"))
    (longer / "config.json").write_text(json.dumps({**config, "rope_theta": 5e5}), encoding="utf-8")
    (longer / "model.safetensors").symlink_to(MODELS / "continued/model.safetensors")
    result = run_tool(tmp_path / "merged", "--method", "linear", "--model", MODELS / "base", "--model", longer)
    assert result.returncode == 0 and result.stderr.startswith(f"warning: {longer}: rope is ")
