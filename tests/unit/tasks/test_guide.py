"""The examples of docs/evaluation.md work."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

from ascend_cpt.config.loader import load_config
from ascend_cpt.config.task_schema import TaskConfig
from ascend_cpt.tasks.check import METRICS, find_task_problems
from ascend_cpt.tasks.load import load_task
from ascend_cpt.tasks.schemas import SCHEMAS

GUIDE = Path(__file__).resolve().parents[3] / "docs/evaluation.md"
ITEMS = re.findall(r"^\| `(\w+)` \| `(\{.+?\})` \| (.+) \|$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)


def test_every_schema_and_kind_is_listed() -> None:
    assert {schema for schema, _, _ in ITEMS} == SCHEMAS.keys()
    kinds = re.findall(
        r"^\| `(\w+)` \| [^|]+ \| (`acc`.*|`exact`.*|`bits.*) \|$", GUIDE.read_text("utf-8"), re.MULTILINE
    )
    assert {kind: tuple(re.findall(r"`(\w+)`", metrics)) for kind, metrics in kinds} == METRICS


@pytest.mark.parametrize(("schema", "item", "description"), ITEMS)
def test_items_load(tmp_path: Path, schema: str, item: str, description: str) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(item + "\n", encoding="utf-8")
    kind = "multiple_choice" if "choices" in item or '"A"' in item or "endings" in item else "continuation"

    def encode(text: str) -> list[int]:
        return list(text.encode())

    for name in (None, schema):
        config = TaskConfig(path=str(path), kind=kind, schema=name)
        task = load_task("demo", config, encode, seq_length=1000, prefix_token=None)
        assert task.num_items == 1
    text = bytes(task.requests[0].context).decode()
    if schema == "hellaswag":
        assert description.startswith(f"`{text}`")
    if schema in ("mmlu", "ceval", "cmmlu", "arc"):
        (ending,) = re.findall(r"`(答案：|Answer:)`", description)
        assert text.endswith(f"\n{ending}")


def test_configuration_loads(tmp_path: Path) -> None:
    blocks = [textwrap.dedent(block) for block in re.findall(r"(?:^    .*\n)+", GUIDE.read_text("utf-8"), re.MULTILINE)]
    section: dict[str, Any] = yaml.safe_load(next(block for block in blocks if block.startswith("cpt:")))
    section["cpt"] |= {"seq_length": 128, "global_batch_size": 8}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(section), encoding="utf-8")
    validation = load_config(path).cpt.validation
    assert validation is not None and len(validation.tasks) == 4
    assert not [problem for task in validation.tasks.values() for problem in find_task_problems(task)]


def test_needle_configuration_loads(tmp_path: Path) -> None:
    blocks = [textwrap.dedent(block) for block in re.findall(r"(?:^    .*\n)+", GUIDE.read_text("utf-8"), re.MULTILINE)]
    (block,) = [block for block in blocks if block.startswith("cpt:") and "kind: needle" in block]
    path = tmp_path / "run.yaml"
    path.write_text(f"{block}  global_batch_size: 8\n", encoding="utf-8")
    cpt = load_config(path).cpt
    assert cpt.validation is not None
    assert find_task_problems(cpt.validation.tasks["needle"], cpt.seq_length) == []
